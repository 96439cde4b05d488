"""Operators that users declare: ``@vd.operator``."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.engine import ArgumentError, ArgumentTypeError, Engine, OperatorError
from vardag.ndarray.array import Array
from vardag.operators import registry
from vardag.operators.texts import raw


@vd.operator
def squared_sum(xp, x, y, *, scale=1.0, out):
    """scale * (x + y)**2."""
    xp.multiply((x + y) ** 2, scale, out=out)


squared_sum.grad(
    x=lambda F, g, x, y, scale: g * (x + y) * (2 * scale),
    y=lambda F, g, x, y, scale: g * (x + y) * (2 * scale),
)


def _halves(metas, attributes):
    ((shape, dtype),) = metas
    if len(shape) != 1 or shape[0] % 2:
        raise ValueError("a vector of even length expected")
    half = (shape[0] // 2,), dtype
    return (half, half), attributes


@vd.operator(infer=_halves, outputs=("low", "high"))
def halves(xp, x, *, low, high):
    n = len(low)
    low[...], high[...] = x[:n], x[n:]


halves.grad(x=lambda F, g_low, g_high: F.concat(g_low, g_high, dim=0))


def _counting(metas, attributes):
    x, _ = metas
    return (x,), attributes


@vd.operator(infer=_counting, updates=("state",))
def counted(xp, x, state, *, out):
    state += 1
    xp.multiply(x, state, out=out)


@vd.operator
def failing(xp, x, *, out):
    raise ZeroDivisionError("a user's")


@vd.operator
def own_derivative(xp, x, *, out):
    xp.sin(x, out=out)


own_derivative.grad(x=lambda F, g, x: g * F.own_derivative(x + np.float32(np.pi / 2)))


def marked(values):
    x = nd.array(values)
    x.attach_grad()
    return x


def test_values_broadcasting_and_gradients() -> None:
    x, y = marked([[1, 2], [3, 4]]), marked([10, 20])
    for _ in range(4):  # later rounds go by a plan
        with autograd.record():
            z = squared_sum(x, y, scale=0.5)
        z.backward()
        assert z.asnumpy().tolist() == [[60.5, 242], [84.5, 288]]
        assert x.grad.asnumpy().tolist() == [[11, 22], [13, 24]]
        assert y.grad.asnumpy().tolist() == [24, 46]


def test_any_order() -> None:
    """The text uses the operator itself."""
    x = marked([0.5])
    with autograd.record():
        first = autograd.grad(own_derivative(x), x, create_graph=True)
        second = autograd.grad(first, x, create_graph=True)
    second.backward()
    found = [a.asscalar() for a in (first, second, x.grad)]
    np.testing.assert_allclose(found, [np.cos(0.5), -np.sin(0.5), -np.cos(0.5)], rtol=1e-5)


def test_several_outputs_and_errors_of_infer() -> None:
    x = marked([1, 2, 3, 4])
    with autograd.record():
        low, high = halves(x)
        y = (low * 2 + high).sum()
    y.backward()
    assert x.grad.asnumpy().tolist() == [2, 2, 1, 1]
    with pytest.raises(ArgumentError, match=r"\[halves\] x float32\(3,\): a vector of even length expected"):
        halves(nd.ones(3))
    with pytest.raises(ArgumentTypeError, match=r"\[halves\]"):
        halves([1, 2])
    with pytest.raises(ArgumentError, match="unknown argument 'size'"):
        squared_sum(nd.ones(2), nd.ones(2), size=3)


def test_state_is_changed_in_the_order_of_pushes() -> None:
    state = nd.zeros(1)
    found = [counted(nd.ones(2), state) for _ in range(20)]
    assert [y.asnumpy().tolist() for y in found] == [[i, i] for i in range(1, 21)]
    assert state.asscalar() == 20


def test_a_failing_kernel_poisons_and_names_its_line() -> None:
    x = nd.ones(3)
    y = failing(x) + 1
    other = squared_sum(x, x)
    with pytest.raises(OperatorError, match=r"(?s)a user's.operator: failing.*pushed at .*test_declare\.py:") as caught:
        y.wait_to_read()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert other.asnumpy().tolist() == [4, 4, 4]
    with pytest.raises(ZeroDivisionError):
        y.asnumpy()


def test_kernels_run_on_workers_and_never_within_the_push() -> None:
    threads = []

    @vd.operator
    def where_it_runs(xp, x, *, out):
        threads.append(threading.current_thread())
        out[...] = x

    with Engine(workers=1):
        for x in (nd.ones(2), nd.zeros((0, 3))):
            where_it_runs(x).wait_to_read()
    assert len(threads) == 2
    assert threading.main_thread() not in threads


def test_the_same_in_every_engine_and_face() -> None:
    raws = [np.random.default_rng(i).standard_normal((50, 30)).astype("float32") for i in range(2)]
    found = []
    for kind in ("NaiveEngine", "ThreadedEnginePooled"):
        with Engine(kind=kind):
            x, y = marked(raws[0]), marked(raws[1])
            with autograd.record():
                z = squared_sum(x, y) * own_derivative(y)
            z.backward()
            found.append([a.asnumpy().tobytes() for a in (z, x.grad, y.grad)])
    assert found[0] == found[1]
    canonical = squared_sum(*map(Array._from_host, raws))
    assert type(canonical) is Array
    np.testing.assert_allclose(canonical.asnumpy(), (raws[0] + raws[1]) ** 2, rtol=1e-6)


def test_out_and_float16() -> None:
    x, out = nd.array([1, 2]), nd.zeros(2)
    assert squared_sum(x, x, out=out) is out
    assert out.asnumpy().tolist() == [4, 16]
    half = squared_sum(x.astype("float16"), x.astype("float16"))
    assert half.dtype == np.float16
    with pytest.raises(ArgumentTypeError, match="dtypes differ"):
        squared_sum(x, x.astype("float64"))


def test_declared_again_the_last_one_counts() -> None:
    def declare(factor):
        @vd.operator(name="declared_again")
        def kernel(xp, x, *, out):
            xp.multiply(x, factor, out=out)

        kernel.grad(x=lambda F, g: g * factor)
        return kernel

    @vd.operator
    def uses_it(xp, x, *, out):
        out[...] = x

    uses_it.grad(x=lambda F, g: F.declared_again(g))
    for factor in (2, 3):
        op = declare(factor)
        x = marked([1])
        for _ in range(4):
            with autograd.record():
                y = uses_it(op(x))
            y.backward()
            assert (y.asscalar(), x.grad.asscalar()) == (factor, factor * factor)
        assert nd.declared_again(x).asscalar() == factor


def test_who_looks_up_an_operator_while_it_is_replaced_gets_the_new_one_afterwards(monkeypatch) -> None:
    """Another thread's gradient text resolves the name just before the new one is there."""

    def declare(factor):
        @vd.operator(name="looked_up_meanwhile")
        def kernel(xp, x, *, out):
            xp.multiply(x, factor, out=out)

    declare(2)
    real = registry.put

    def put(op):
        assert float(raw.looked_up_meanwhile(np.ones(1))[0]) == 2
        assert nd.looked_up_meanwhile(nd.ones(1)).asscalar() == 2
        real(op)

    monkeypatch.setattr(registry, "put", put)
    declare(3)
    assert float(raw.looked_up_meanwhile(np.ones(1))[0]) == 3
    assert nd.looked_up_meanwhile(nd.ones(1)).asscalar() == 3


def no_outputs(xp, x):
    pass


def fills_nothing_known(xp, x, *, out):
    pass


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: vd.operator(no_outputs), "does not fill"),
        (lambda: vd.operator(fills_nothing_known, name="exp"), "'exp' is taken"),
        (lambda: vd.operator(fills_nothing_known, name="array"), "'array' is taken"),
        (lambda: vd.operator(fills_nothing_known, name="two words"), "cannot be one"),
        (lambda: vd.operator(fills_nothing_known, name="a_name", costs=1), "unexpected keyword"),
        (lambda: vd.operator(fills_nothing_known, name="a_name", updates=("z",)), "z is not an input"),
        (lambda: vd.operator(fills_nothing_known, name="b_name").grad(z=lambda F, g: g), "z is not an input"),
        (lambda: vd.operator(fills_nothing_known, name="c_name").grad(x=lambda F, g, w: g), "names w"),
        (lambda: vd.operator(fills_nothing_known, name="d_name").grad(x=lambda g: g), "starts with F"),
    ],
)
def test_wrong_declarations(declare, message) -> None:
    with pytest.raises(ArgumentError, match=rf"\[operator\].*{message}"):
        declare()
    assert "a_name" not in registry


def test_the_library_s_own_table_is_not_changed() -> None:
    names = {op.name for op in registry}
    assert "squared_sum" in registry
    assert not names & {"squared_sum", "declared_again"}
    assert "squared_sum" not in dir(nd.ones(1))
