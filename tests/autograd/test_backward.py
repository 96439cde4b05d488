"""backward and grad: requests, forms, higher order, freeing, partial graphs, depth, errors, memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.engine import Engine
from vardag.ndarray.array import Array


def marked(*values: float, grad_req: str = "write", dtype: str = "float32") -> Any:
    x = nd.array(values or (1, 2, 3), dtype=dtype)
    x.attach_grad(grad_req)
    return x


def grads(*arrays: Any) -> list[Any]:
    return [a.grad.asnumpy().tolist() for a in arrays]


def record(f: Callable[[], Any]) -> Any:
    with autograd.record():
        return f()


# ---- requests ------------------------------------------------------------------------------------------------------


def test_write_replaces() -> None:
    x = marked()
    for k in (2, 3):
        record(lambda k=k: x * k).backward()
    assert grads(x) == [[3, 3, 3]]


def test_add_accumulates() -> None:
    x = marked(grad_req="add")
    for k in (2, 3):
        record(lambda k=k: x * k).backward()
    assert grads(x) == [[5, 5, 5]]
    x.zero_grad()
    record(lambda: x * x).backward()
    assert grads(x) == [[2, 4, 6]]


def test_null_computes_nothing() -> None:
    x, w = marked(grad_req="null"), marked()
    y = record(lambda: x * w)
    y.backward()
    assert grads(w) == [[1, 2, 3]]
    y = record(lambda: x * 2)
    with pytest.raises(vd.Error):
        y.backward()


def test_an_unreached_variable_keeps_its_gradient() -> None:
    x, w = marked(), marked()
    record(lambda: x * w).backward()
    record(lambda: x * 5).backward()
    assert grads(x, w) == [[5, 5, 5], [1, 2, 3]]


def test_a_variable_used_many_times() -> None:
    x = marked()
    record(lambda: x * x + x * 3 + nd.concat(x, x, dim=0)[2:5] + x[::-1]).backward()
    # d/dx of the last two: x[2] + x[0] + x[1] of the concatenation, and each once of the reverse
    assert grads(x) == [[2 + 3 + 2, 4 + 3 + 2, 6 + 3 + 2]]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
def test_gradients_have_the_dtype_of_their_array(dtype: str) -> None:
    x = marked(dtype=dtype)
    record(lambda: x * 2).backward()
    assert x.grad.dtype == np.dtype(dtype).type
    assert grads(x) == [[2, 2, 2]]


def test_a_head_that_is_a_leaf() -> None:
    x = marked()
    x.backward()
    assert grads(x) == [[1, 1, 1]]
    x.backward(nd.array([4, 5, 6]))
    assert grads(x) == [[4, 5, 6]]


# ---- heads and head gradients --------------------------------------------------------------------------------------


def test_head_gradients_weight() -> None:
    x = marked()
    y, z = record(lambda: (x * x, x * 10))
    autograd.backward([y, z], [nd.array([1, 10, 100]), None])
    assert grads(x) == [[12, 50, 610]]


def test_a_host_head_gradient_is_read_at_the_call() -> None:
    x, host = marked(), np.array([1, 2, 3], np.float32)
    y = record(lambda: x * 2)
    y.backward(nd.array(host), wait=False)
    host[:] = 0
    assert grads(x) == [[2, 4, 6]]


def test_a_head_gradient_may_be_changed_after_the_call() -> None:
    x, h = marked(), nd.array([1, 2, 3])
    y = record(lambda: x + 0)
    y.backward(h, wait=False)
    h[:] = 100
    assert grads(x) == [[1, 2, 3]]
    x.grad[0] = 50
    assert h.asnumpy().tolist() == [100] * 3


def test_the_same_head_twice() -> None:
    x = marked()
    y = record(lambda: x * x)
    autograd.backward([y, y])
    assert grads(x) == [[4, 8, 12]]


def test_gradients_are_nobodys_memory() -> None:
    """``add`` passes its head gradient on: two gradients that share bytes until one is written."""
    a, b = marked(), marked()
    record(lambda: a + b).backward()
    a.grad[0] = 9
    a.grad[:] += 1
    assert grads(a, b) == [[10, 2, 2], [1, 1, 1]]


# ---- grad() --------------------------------------------------------------------------------------------------------


def test_grad_returns_and_leaves_x_grad() -> None:
    x, w = marked(), marked()
    y = record(lambda: x * w)
    one = autograd.grad(y, x, retain_graph=True)
    several = autograd.grad([y], [w, x])
    assert isinstance(one, nd.NDArray) and isinstance(several, list)
    assert [g.asnumpy().tolist() for g in (one, *several)] == [[1, 2, 3]] * 3
    assert grads(x, w) == [[0] * 3] * 2


def test_grad_with_respect_to_an_intermediate() -> None:
    x = marked()
    with autograd.record():
        y = x * 2
        z = y * y
    gy, gx = autograd.grad(z, [y, x])
    assert (gy.asnumpy().tolist(), gx.asnumpy().tolist()) == ([4, 8, 12], [8, 16, 24])


def test_grad_does_no_more_than_asked() -> None:
    """What lies above the variables only is not run: its gradient would fail."""
    x = marked()
    with autograd.record():
        y = x * 2
        y2 = Failing()(y)
        z = y2 * y2
    g = autograd.grad(z, y2)
    assert g.asnumpy().tolist() == [4, 8, 12]


@pytest.mark.parametrize("unused", ["zeros", "none"])
def test_unused_variables(unused: str) -> None:
    x, w = marked(), marked(1, 2)
    y = record(lambda: x * 2)
    gx, gw = autograd.grad(y, [x, w], unused=unused)
    assert gx.asnumpy().tolist() == [2, 2, 2]
    assert gw is None if unused == "none" else gw.asnumpy().tolist() == [0, 0]


def test_an_unused_variable_is_an_error_by_default() -> None:
    x, w = marked(), marked()
    y = record(lambda: x * 2)
    with pytest.raises(vd.Error, match="variable 1"):
        autograd.grad(y, [x, w])


def test_grad_with_head_gradients() -> None:
    x = marked()
    y = record(lambda: x * x)
    g = autograd.grad(y, x, nd.array([1, 10, 100]))
    assert g.asnumpy().tolist() == [2, 40, 600]


# ---- higher order --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "derivatives"),
    [
        (lambda x: x**5, [lambda x: 5 * x**4, lambda x: 20 * x**3, lambda x: 60 * x**2, lambda x: 120 * x]),
        (nd.sin, [np.cos, lambda x: -np.sin(x), lambda x: -np.cos(x), np.sin]),
        (nd.exp, [np.exp] * 4),
        (lambda x: x * nd.log(x), [lambda x: np.log(x) + 1, lambda x: 1 / x, lambda x: -(x**-2), lambda x: 2 * x**-3]),
        (lambda x: 1 / x, [lambda x: -(x**-2), lambda x: 2 * x**-3, lambda x: -6 * x**-4, lambda x: 24 * x**-5]),
    ],
)
def test_to_the_fourth_order(f: Callable[[Any], Any], derivatives: list[Callable[[Any], Any]]) -> None:
    x = marked(0.5, 1.0, 2.0, dtype="float64")
    raw = x.asnumpy()
    with autograd.record():
        y = f(x)
        for derivative in derivatives:
            y = autograd.grad(y, x, create_graph=True)
            np.testing.assert_allclose(y.asnumpy(), derivative(raw), rtol=1e-10)


def test_mixed_derivatives() -> None:
    x, w = marked(1, 2, 3, dtype="float64"), marked(4, 5, 6, dtype="float64")
    with autograd.record():
        y = x * x * w
        gx, gw = autograd.grad(y, [x, w], create_graph=True)
        gxw = autograd.grad(gx, w, create_graph=True)
        gwx = autograd.grad(gw, x, create_graph=True)
    assert gxw.asnumpy().tolist() == gwx.asnumpy().tolist() == [2, 4, 6]


def test_create_graph_outside_of_record() -> None:
    x = marked()
    y = record(lambda: x * x * x)
    g = autograd.grad(y, x, create_graph=True)
    assert not autograd.is_recording()
    g.backward()
    assert grads(x) == [[6, 12, 18]]


def test_without_create_graph_gradients_are_constants() -> None:
    x = marked()
    with autograd.record():
        y = x * x
        g = autograd.grad(y, x)
        z = g * x
    z.backward()
    assert grads(x) == [[2, 4, 6]]


# ---- freeing -------------------------------------------------------------------------------------------------------


def test_retain_graph() -> None:
    x = marked(grad_req="add")
    y = record(lambda: x * x)
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    y.backward()
    assert grads(x) == [[6, 12, 18]]


def here() -> int:
    import inspect

    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


def test_a_freed_graph_names_its_lines() -> None:
    x = marked()
    with autograd.record():
        y, recorded = x * x, here()
    _, freed = y.backward(), here()
    for again in (y.backward, lambda: autograd.grad(y, x)):
        with pytest.raises(vd.autograd.GraphError, match="was freed") as caught:
            again()
        text = str(caught.value)
        assert f"test_backward.py:{recorded}" in text and f"test_backward.py:{freed}" in text and "retain_graph" in text


def test_a_shared_trunk_is_freed_by_the_first_backward() -> None:
    x = marked()
    with autograd.record():
        trunk = x * x
        y, z = trunk * 2, trunk * 3
    y.backward()
    with pytest.raises(vd.autograd.GraphError, match="was freed"):
        z.backward()


def test_heads_that_share_a_trunk_go_together() -> None:
    x = marked()
    with autograd.record():
        trunk = x * x
        y, z = trunk * 2, trunk * 3
    autograd.backward([y, z])
    assert grads(x) == [[10, 20, 30]]


def test_parts_that_keep_nothing_may_be_walked_again() -> None:
    """A view is a name: it has nothing to free."""
    x = marked(grad_req="add")
    with autograd.record():
        v = x[1:]
        y = v * 2
        z = v * 3
    y.backward()
    z.backward()
    assert grads(x) == [[0, 5, 5]]


def test_a_partial_graph() -> None:
    """Unmarked inputs, detours that lead nowhere, operators without a gradient between."""
    x, data = marked(), nd.array([4, 5, 6])
    with autograd.record():
        hidden = x * data
        nd.exp(hidden)  # nobody's head
        gate = hidden > 4
        y = hidden * gate + nd.sign(hidden) * 100
    y.backward()
    assert grads(x) == [[0, 5, 6]]


def test_flat_operators_give_zeros() -> None:
    x = marked()
    record(lambda: x * 9).backward()
    for f in (nd.sign, nd.floor, lambda x: x > 2, nd.round):
        record(lambda f=f: f(x)).backward()
        assert grads(x) == [[0, 0, 0]]
        record(lambda: x * 9).backward()


# ---- depth ---------------------------------------------------------------------------------------------------------


def test_a_deep_chain() -> None:
    """Recording, backward and the deletion of a graph that was not freed are loops, not recursions."""
    n = 100_000
    x = marked()
    with autograd.record():
        y = x
        for _ in range(n):
            y = y + 1
    y.backward(retain_graph=True)
    assert grads(x) == [[1, 1, 1]]
    assert y.asnumpy().tolist() == [n + 1, n + 2, n + 3]
    del y
    gc.collect()


def test_a_deep_chain_of_writes_to_one_array() -> None:
    x, buf = marked(), nd.zeros((3,))
    with autograd.record():
        for _ in range(5_000):
            buf += x
    buf.backward()
    assert grads(x) == [[5_000] * 3]


# ---- errors --------------------------------------------------------------------------------------------------------


class Failing(autograd.Function):
    """Its backward raises on the thread that walks."""

    def forward(self, x: Any) -> Any:
        return x * 1

    def backward(self, dy: Any) -> Any:
        raise ZeroDivisionError("in backward")


def test_an_error_of_a_users_backward_is_raised_by_backward() -> None:
    x = marked()
    y = record(lambda: Failing()(x))
    with pytest.raises(ZeroDivisionError, match="in backward"):
        y.backward()


def test_an_error_in_a_gradient_operation(engine_kind: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised by backward, with the line that recorded the operator; the weights and the engine are well."""
    from vardag.operators import registry

    def broken(F: Any, g: Any, x: Any) -> Any:
        raise ArithmeticError("a gradient that fails")

    monkeypatch.setattr(registry["sin"].gradients["x"], "function", broken)
    x, w = marked(), marked()
    with autograd.record():
        y, line = nd.sin(x * w), here()
    with pytest.raises(ArithmeticError, match="a gradient that fails") as caught:
        y.backward()
    notes = "\n".join(caught.value.__notes__)
    assert "backward of sin" in notes and f"test_backward.py:{line}" in notes
    for g in (x.grad, w.grad):
        with pytest.raises(ArithmeticError):
            g.asnumpy()
    assert (x * w).asnumpy().tolist() == [1, 4, 9]
    record(lambda: x * w).backward()
    assert grads(x) == [[1, 2, 3]]


def test_without_waiting_the_error_is_on_the_gradient(engine_kind: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from vardag.operators import registry

    def broken(F: Any, g: Any, x: Any) -> Any:
        raise ArithmeticError("later")

    monkeypatch.setattr(registry["sin"].gradients["x"], "function", broken)
    x = marked()
    record(lambda: nd.sin(x)).backward(wait=False)
    with pytest.raises(ArithmeticError, match="later"):
        x.grad.asnumpy()


def test_a_failed_push_records_nothing() -> None:
    x, y = marked(), nd.zeros((3,))
    with autograd.record():
        y[:] = x * 2
        entry = y._chunk.line.entry
        with pytest.raises(ValueError):
            y[:] = nd.ones((4,))
        with pytest.raises(ValueError):
            y += nd.ones((2, 3))
        assert y._chunk.line.entry is entry
    y.backward()
    assert grads(x) == [[2, 2, 2]]


class Keeping(autograd.Function):
    """exp, which saves its output."""

    def forward(self, x: Any) -> Any:
        y = nd.exp(x)
        self.save_for_backward(y)
        return y

    def backward(self, dy: Any) -> Any:
        (y,) = self.saved_tensors
        return dy * y


def test_a_saved_output_can_be_differentiated_again() -> None:
    x = marked(dtype="float64")
    with autograd.record():
        y = Keeping()(x)
        g = autograd.grad(y, x, create_graph=True)
        h = autograd.grad(g, x, create_graph=True)
    h.backward()
    np.testing.assert_allclose(x.grad.asnumpy(), np.exp([1.0, 2, 3]), rtol=1e-12)


# ---- a training loop -----------------------------------------------------------------------------------------------


class Net:
    """A two-layer net on random numbers; the nd face, as a user writes it."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.weights = [nd.array(rng.normal(0, 0.1, s)) for s in ((50, 20), (1, 50), (3, 50), (1, 3))]
        for w in self.weights:
            w.attach_grad()
        self.x = nd.array(rng.normal(0, 1, (30, 20)))

    def step(self, wait: bool = True) -> Any:
        w1, b1, w2, b2 = self.weights
        with autograd.record():
            hidden = nd.tanh(nd.dot(self.x, w1, transpose_b=True) + b1)
            out = nd.dot(hidden, w2, transpose_b=True) + b2
            loss = nd.mean(out * out)
        loss.backward(wait=wait)
        for w in self.weights:
            w -= 0.1 * w.grad  # noqa: PLW2901
        return loss


@pytest.mark.parametrize("wait", [True, False])
def test_no_weight_is_copied_or_renamed(engine_kind: Engine, wait: bool) -> None:
    """From the first step on: without retain_graph a node lets go when its gradient operation has been pushed."""
    net = Net()
    first = net.step(wait)
    before, variables = nd.statistics(), [w.var for w in net.weights]
    losses = [net.step(wait) for _ in range(20)]  # kept: they keep no weights
    assert nd.statistics() == before
    assert [w.var for w in net.weights] == variables
    assert losses[-1].asscalar() < first.asscalar()


@pytest.mark.usefixtures("nothing_copied")
def test_a_retained_graph_costs_one_rename_a_weight() -> None:
    x, w = nd.array([1, 2, 3]), marked()
    before = nd.statistics()
    y = record(lambda: x * w * w)
    y.backward(retain_graph=True)
    w -= w.grad
    w -= w.grad
    after = nd.statistics()
    assert (after.renames - before.renames, after.copies - before.copies) == (1, 0)


def test_the_same_loop_gives_the_same_bits_on_every_engine(engine_kind: Engine) -> None:
    net = Net()
    losses = b"".join(net.step(wait=False).asnumpy().tobytes() for _ in range(5))
    found = losses + b"".join(w.asnumpy().tobytes() for w in net.weights)
    with Engine(kind="NaiveEngine"):
        net = Net()
        losses = b"".join(net.step().asnumpy().tobytes() for _ in range(5))
        assert found == losses + b"".join(w.asnumpy().tobytes() for w in net.weights)


def test_memory_of_a_training_loop_is_flat(engine_kind: Engine) -> None:
    net = Net()

    def steps(n: int) -> int:
        for _ in range(n):
            net.step()
        engine_kind.wait_for_all()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        steps(30)
        start = steps(5)
        end = steps(30)
    finally:
        tracemalloc.stop()
    assert end - start < 30_000, f"{end - start} bytes more after 30 steps"


def test_nothing_of_a_graph_is_kept() -> None:
    """Nodes and saved values die with their heads, or with backward, without the cycle collector."""
    import weakref

    x = marked()
    gc.disable()
    try:
        y = record(lambda: nd.sin(x * x))
        node = weakref.ref(y._chunk.line.entry[0])
        del y
        assert node() is None
        y = record(lambda: nd.exp(x * x))
        saved = [weakref.ref(s) for s in y._chunk.line.entry[0].saved.values()]
        y.backward()
        assert saved and [s() for s in saved] == [None] * len(saved)
        # nodes that keep their own output: exp, and a Function that saves what it returns
        for f in (nd.exp, Keeping()):
            y = record(lambda f=f: f(x * x))
            node = weakref.ref(y._chunk.line.entry[0])
            del y
            assert node() is None, f
    finally:
        gc.enable()


def test_faces_may_be_mixed_in_one_graph() -> None:
    """A gradient has the face of its array."""
    x = Array._from_host(np.array([1.0, 2, 3]))
    x.attach_grad()
    with autograd.record():
        y = (x * x).sum()
    assert y.shape == ()
    y.backward()
    assert type(x.grad) is Array and grads(x) == [[2, 4, 6]]
