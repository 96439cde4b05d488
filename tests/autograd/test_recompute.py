"""checkpoint: the gradients of the function itself, from what is computed again, and nothing kept."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.autograd.tape import entry_of
from vardag.engine import ArgumentError, ArgumentTypeError
from vardag.ndarray.memory import reset_peak


def marked(*values: Any, dtype: str = "float32") -> Any:
    x = nd.array(values, dtype=dtype)
    x.attach_grad()
    return x


def both(f: Any, *arrays: Any) -> list[Any]:
    """Values and gradients with and without."""
    found = []
    for function in (f, autograd.checkpoint(f)):
        for x in arrays:
            x.zero_grad()
        with autograd.record():
            y = function(*arrays)
        y.backward()
        found.append([y.asnumpy().tolist()] + [x.grad.asnumpy().tolist() for x in arrays])
    return found


# ---- the same values and gradients -----------------------------------------------------------------------------------


def test_values_and_gradients_are_the_functions(engine_kind: Any) -> None:
    x, w = marked(0.5, 1, 2), marked(3, 4, 5)
    plain, again = both(lambda x, w: nd.tanh(x * w) * nd.exp(x) + w, x, w)
    assert plain == again


def test_it_runs_once_at_the_call_and_once_for_the_gradient() -> None:
    calls = []

    @autograd.checkpoint
    def f(x: Any) -> Any:
        calls.append(autograd.is_recording())
        return x * x

    x = marked(1, 2)
    assert f(x).asnumpy().tolist() == [1, 4] and calls == [False]
    with autograd.record():
        y = f(x) + f(x * 2)
    assert calls == [False, True, True]
    y.backward()
    assert calls == [False] + [True] * 4
    assert x.grad.asnumpy().tolist() == [2 + 8, 4 + 16]


def test_chains_of_them() -> None:
    x = marked(0.1, 0.2, dtype="float64")
    w = marked(1.5, 0.5, dtype="float64")

    def layers(block: Any) -> Any:
        def f(x: Any, w: Any) -> Any:
            for _ in range(30):
                x = block(x, w)
            return x

        return f

    block = lambda x, w: nd.sin(x * w) + x  # noqa: E731
    found = []
    for one in (block, autograd.checkpoint(block)):
        with autograd.record():
            y = layers(one)(x, w)
        y.backward()
        found.append((y.asnumpy(), x.grad.asnumpy(), w.grad.asnumpy()))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, 1e-13)


def test_trees_other_values_and_keywords() -> None:
    x, y = marked(2), marked(3)

    @autograd.checkpoint
    def f(tree: Any, *, power: int, scale: Any) -> Any:
        a, (b, word) = tree["a"], tree["b"]
        assert word == "word"
        return {"product": a * b * scale, "power": [a**power, "text"], "count": nd.cast(a, dtype="int32")}

    with autograd.record():
        made = f({"a": x, "b": (y, "word")}, power=3, scale=y)
        total = made["product"] + made["power"][0]
    assert made["power"][1] == "text" and made["count"].asscalar() == 2
    total.backward()
    assert x.grad.asscalar() == 9 + 12 and y.grad.asscalar() == 12


def test_arrays_known_from_outside_have_gradients() -> None:
    x, w = marked(1, 2), marked(3, 4)
    with autograd.record():
        h = w * w
        y = autograd.checkpoint(lambda x: x * h * w + h[::-1])(x)
        z = y + h
    z.backward()
    assert x.grad.asnumpy().tolist() == [27, 64]
    assert w.grad.asnumpy().tolist() == [3 * 9 + 2 * 3 * 2, 2 * 3 * 16 + 2 * 4 * 2]


def test_an_argument_that_another_comes_from() -> None:
    """Both lead to x; each gradient is passed on once."""
    x = marked(2)
    with autograd.record():
        h = x * 3
        y = autograd.checkpoint(lambda a, b, c: a * b * c + h)(x, h, x[:])
    y.backward()
    assert x.grad.asscalar() == 3 * 3 * 4 + 3  # 3 x^3 + 3 x


@pytest.mark.parametrize("when", ["before", "inside"])
def test_views_of_what_is_known_from_outside(when: str) -> None:
    x, w = marked(1, 2), marked(3, 4, 5)
    with autograd.record():
        part = w[1:]
        if when == "before":
            part * 1
        y = autograd.checkpoint(lambda x: x * part + w[:2])(x)
    y.backward()
    assert w.grad.asnumpy().tolist() == [1, 2, 2] and x.grad.asnumpy().tolist() == [4, 5]


def test_nested() -> None:
    x, w = marked(0.5, dtype="float64"), marked(2.0, dtype="float64")
    inner = autograd.checkpoint(lambda x: nd.sin(x * w))
    plain, again = both(lambda x, w: inner(inner(x) * w) + x, x, w)
    assert plain == again


def test_higher_order() -> None:
    x, w = marked(0.5, 0.7, dtype="float64"), marked(2.0, 3.0, dtype="float64")
    f = lambda x: nd.sin(x * w) * x  # noqa: E731
    found = []
    for function in (f, autograd.checkpoint(f)):
        with autograd.record():
            g = autograd.grad(function(x), x, create_graph=True)
            gg = autograd.grad(g, x, create_graph=True)
        gg.backward()
        found.append([a.asnumpy() for a in (g, gg, x.grad, w.grad)])
        with autograd.record():
            penalty = autograd.grad(function(x), x, create_graph=True) ** 2
        penalty.backward()
        found[-1] += [x.grad.asnumpy(), w.grad.asnumpy()]
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, 1e-13)


def test_within_transforms() -> None:
    f = lambda x: nd.tanh(x * x).sum()  # noqa: E731
    x = nd.array([0.3, 0.4], dtype="float64")
    for transform in (autograd.hessian, autograd.jacobian, lambda f: lambda x: autograd.hvp(f, [x], [x])[1][0]):
        a, b = transform(f)(x).asnumpy(), transform(autograd.checkpoint(f))(x).asnumpy()
        np.testing.assert_allclose(a, b, 1e-13)


def test_the_graph_may_be_used_twice() -> None:
    x = marked(1, 2)
    with autograd.record():
        y = autograd.checkpoint(lambda x: x * x)(x)
    for _ in range(2):
        y.backward(retain_graph=True)
        assert x.grad.asnumpy().tolist() == [2, 4]
    y.backward()
    with pytest.raises(autograd.GraphError, match=r"the graph of checkpoint of <lambda>, .*test_recompute\.py:\d+"):
        y.backward()


# ---- the second call is like the first -------------------------------------------------------------------------------


def test_random_numbers_are_drawn_again() -> None:
    x = marked(*[1.0] * 500)

    @autograd.checkpoint
    def f(x: Any) -> Any:
        return nd.Dropout(x, p=0.5) * nd.random.uniform(1, 2, shape=(500,))

    vd.random.seed(1)
    with autograd.record():
        y = f(x)
        other = nd.random.uniform(shape=(1,))
    state = vd.random.get_state()
    y.backward()
    assert (x.grad.asnumpy() == y.asnumpy()).all() and 150 < (y.asnumpy() == 0).sum() < 350
    assert vd.random.get_state() == state  # and nobody else's numbers have changed
    vd.random.seed(1)
    with autograd.record():
        assert (f(x).asnumpy() == y.asnumpy()).all()
        assert nd.random.uniform(shape=(1,)).asscalar() == other.asscalar()


def test_random_numbers_of_nested_ones() -> None:
    x = marked(*[1.0] * 300)
    inner = autograd.checkpoint(lambda x: nd.Dropout(x, p=0.5))
    outer = autograd.checkpoint(lambda x: inner(nd.Dropout(x, p=0.5)) + nd.Dropout(x, p=0.5))
    with autograd.record():
        y = outer(x)
    y.backward()
    assert (x.grad.asnumpy() == y.asnumpy()).all()


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_is_kept(mode: bool) -> None:
    seen = []

    @autograd.checkpoint
    def f(x: Any) -> Any:
        seen.append(autograd.is_training())
        return nd.Dropout(x, p=0.5) * 2

    x = marked(*[1.0] * 100)
    with autograd.record(train_mode=mode):
        y = f(x)
    y.backward(train_mode=not mode)
    assert seen == [mode, mode]
    assert (x.grad.asnumpy() == y.asnumpy()).all() and (y.asnumpy() == 0).any() == mode


def test_arguments_have_the_values_of_the_call() -> None:
    x, k = marked(1, 2), nd.array([10, 20])
    with autograd.record():
        y = autograd.checkpoint(lambda x, k: x * x * k)(x, k)
    x[:] = 0
    k[:] = 0
    y.backward()
    assert x.grad.asnumpy().tolist() == [20, 80]


def test_what_it_writes_into_its_arguments_stays_inside() -> None:
    def f(x: Any) -> Any:
        y = x * x
        x += 1
        x[0] *= 3
        return x * y

    x = marked(1, 2, 3)
    with autograd.record():
        h = x * 1
        y = autograd.checkpoint(f)(h)
    assert h.asnumpy().tolist() == [1, 2, 3]
    y.backward()
    assert x.grad.asnumpy().tolist() == [3 * (3 + 2), 12 + 4, 27 + 6]  # k (x + 1) x^2


def test_running_statistics_change_once() -> None:
    def layer(mean: Any, var: Any) -> Any:
        return lambda x: nd.BatchNorm(x, gamma, beta, mean, var, fix_gamma=False)

    x = marked(*np.random.default_rng(1).normal(size=(4, 3)))
    gamma, beta = marked(1, 2, 3), marked(0, 0, 0)
    found = []
    for again in (False, True):
        mean, var = nd.zeros(3), nd.ones(3)
        f = layer(mean, var)
        with autograd.record():
            y = (autograd.checkpoint(f) if again else f)(x) ** 2
        after = mean.asnumpy().tolist()
        y.backward()
        assert mean.asnumpy().tolist() == after
        found.append([a.asnumpy().tolist() for a in (y, mean, var, gamma.grad, beta.grad, x.grad)])
    assert found[0] == found[1] and found[0][1] != [0, 0, 0]
    mean, var = nd.zeros(3), nd.ones(3)
    given = autograd.checkpoint(lambda x, mean, var: nd.BatchNorm(x, gamma, beta, mean, var, fix_gamma=False))
    with autograd.record():
        y = given(x, mean, var) ** 2
    y.backward()
    assert [a.asnumpy().tolist() for a in (y, mean, var, gamma.grad, beta.grad, x.grad)] == found[0]


def test_state_that_it_reads_and_writes_changes_once() -> None:
    x, mean, count = marked(1, 2, 3), nd.zeros(3), nd.zeros(2)

    @autograd.checkpoint
    def f(x: Any) -> Any:
        mean[:] = mean * 0.5 + x.detach() * 0.5
        count[1:] += 1
        buffer = nd.zeros(3)
        buffer[:] = 7
        return x * x + buffer, buffer

    with autograd.record():
        y, buffer = f(x)
        z = f(x)[0]
    buffer[:] = 8  # a result, and nobody else's
    autograd.backward([y, z])
    assert x.grad.asnumpy().tolist() == [4, 8, 12] and count.asnumpy().tolist() == [0, 2]
    np.testing.assert_allclose(mean.asnumpy(), [0.75, 1.5, 2.25])


@pytest.mark.parametrize("young", [True, False])
def test_constants_from_outside_that_were_written_are_an_error(young: bool) -> None:
    x, data = marked(1, 2), nd.array([3, 4])
    if not young:
        data[:] = data * 1
    with autograd.record():
        y = autograd.checkpoint(lambda x: x * data)(x)
        z = autograd.checkpoint(lambda x, data: x * data)(x, data)
    data[:] = 5
    with pytest.raises(autograd.GraphError, match=r"float32\(2,\), which it read, was written before backward"):
        y.backward()
    z.backward()
    assert x.grad.asnumpy().tolist() == [3, 4]


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_nothing_of_the_way_is_kept() -> None:
    def f(x: Any) -> Any:
        for _ in range(20):
            x = nd.tanh(x) * nd.exp(x * 0.01)
        return x

    def alive(function: Any) -> int:
        x = nd.ones((400, 400))
        x.attach_grad()
        x.wait_to_read()
        gc.collect()
        before = nd.statistics().live_bytes
        with autograd.record():
            y = function(x)
        y.wait_to_read()
        gc.collect()
        held = nd.statistics().live_bytes - before
        y.backward()
        return int(held)

    one = 400 * 400 * 4
    assert alive(f) > 30 * one
    assert alive(autograd.checkpoint(f)) <= 2 * one


def test_the_peak_of_a_chain_is_that_of_a_few_blocks(engine_kind: Any) -> None:
    """No second call runs ahead of the gradient that it is for."""

    def block(x: Any) -> Any:
        for _ in range(10):
            x = nd.tanh(x) * nd.exp(x * 0.01)
        return x

    def peak(function: Any) -> int:
        x = nd.ones((300, 300))
        x.attach_grad()
        x.wait_to_read()
        gc.collect()
        reset_peak()
        before = nd.statistics().live_bytes
        with autograd.record():
            y = x
            for _ in range(20):
                y = function(y)
        y.backward()
        return int(nd.statistics().peak_bytes - before)

    assert 2 * peak(autograd.checkpoint(block)) < peak(block)


def test_a_function_without_a_gradient_records_nothing() -> None:
    x = marked(1, 2)
    with autograd.record():
        y = autograd.checkpoint(lambda x: nd.ones(2) * 3)(x)
        same = autograd.checkpoint(lambda x: x)(x)
        z = autograd.checkpoint(lambda x: "word")(x)
    assert entry_of(y) is None and z == "word"
    same.backward()
    assert x.grad.asnumpy().tolist() == [1, 1]


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", [lambda w: w, lambda w: w[:], lambda w: w[::-1], lambda w: w * 1])
@pytest.mark.parametrize("write", [lambda w: w.__iadd__(1), lambda w: w[1:].__imul__(2)])
def test_an_array_from_outside_that_was_written_is_an_error(use: Any, write: Any) -> None:
    x, w = marked(1, 2), marked(3, 4)
    with autograd.record():
        y = autograd.checkpoint(lambda x: x * use(w))(x)
    write(w)
    with pytest.raises(autograd.GraphError, match=r"test_recompute\.py:\d+: float32\(2,\), which it read, was written"):
        y.backward()


def test_writes_to_arrays_on_the_tape_from_outside_are_refused() -> None:
    x, w = marked(1, 2), marked(3, 4)

    def f(x: Any) -> Any:
        w[0] = x[1]
        return x * w

    with autograd.record(), pytest.raises(ArgumentError, match="from outside of the checkpointed f"):
        autograd.checkpoint(f)(x)
    assert w.asnumpy().tolist() == [3, 4]


def test_a_function_that_does_something_else_the_second_time_is_an_error() -> None:
    x, w = marked(1, 2), marked(3, 4)
    for second in (lambda x: x * w, lambda x: nd.ones(2), lambda x: x[:1] * 2, lambda x: 7):
        functions = iter([lambda x: x * 2, second])
        with autograd.record():
            y = autograd.checkpoint(lambda x, functions=functions: next(functions)(x))(x)
        with pytest.raises(autograd.GraphError, match="called again for the gradient, it did something else"):
            y.backward()


def test_errors_of_the_function_come_out() -> None:
    x = marked(1, 2)
    with pytest.raises(ArgumentTypeError, match="a function expected"):
        autograd.checkpoint(7)
    answers = iter([lambda x: x * 2, lambda x: {}["missing"]])

    @autograd.checkpoint
    def f(x: Any) -> Any:
        return next(answers)(x)

    with autograd.record():
        y = f(x)
    with pytest.raises(KeyError, match="missing"):
        y.backward()
    assert not autograd.is_recording()


def test_no_cycles_are_left_for_the_collector() -> None:
    x = nd.ones((300, 300))
    x.attach_grad()
    block = autograd.checkpoint(lambda x: nd.tanh(x) * nd.exp(x))

    def step() -> None:
        with autograd.record():
            y = block(block(x))
        y.backward()
        autograd.value_and_grad(block)(x)[1].wait_to_read()
        autograd.jvp(block, [x], [x])[1].wait_to_read()
        autograd.vjp(block, x)[1](x)[0].wait_to_read()

    gc.collect()
    gc.disable()
    try:
        step()
        nd.waitall()
        before = nd.statistics().live_bytes
        for _ in range(5):
            step()
        nd.waitall()
        assert nd.statistics().live_bytes < before + 2 * x.nbytes  # a worker may hold its last one
    finally:
        gc.enable()
