"""The original face of 2017: set_recording, mark_variables, compute_gradient, grad_and_loss, grad(func)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.autograd import compute_gradient, grad, grad_and_loss, mark_variables, set_recording


def uniform(*shape: int, low: float = 0.5, high: float = 1.5) -> Any:
    rng = np.random.default_rng(shape)
    return nd.array(rng.uniform(low, high, shape))


@pytest.fixture(autouse=True)
def nothing_recorded() -> Any:
    yield
    assert not autograd.is_recording(), "a test left recording on"


def check(func: Callable[..., Any], derivatives: list[Callable[..., Any]], *args: Any) -> None:
    """Both functional forms give the analytic derivatives, and the outputs."""
    expected = [d(*(a.asnumpy() for a in args)) for d in derivatives]
    gradients, outputs = grad_and_loss(func)(*args)
    np.testing.assert_allclose(outputs.asnumpy(), func(*args).asnumpy(), rtol=1e-6)
    for found in (gradients, grad(func)(*args)):
        assert isinstance(found, list) and len(found) == len(args)
        for g, e, a in zip(found, expected, args, strict=True):
            assert (g.shape, g.dtype) == (a.shape, a.dtype)
            np.testing.assert_allclose(g.asnumpy(), np.broadcast_to(e, a.shape), rtol=1e-4, atol=1e-6)


# ---- set_recording -------------------------------------------------------------------------------------------------


def test_set_recording_gives_the_previous_state() -> None:
    assert [set_recording(True), set_recording(True), set_recording(False), set_recording(False)] == [
        False, True, True, False,
    ]  # fmt: skip


def test_recording_without_a_block() -> None:
    x = nd.array([1, 2, 3])
    mark_variables([x])
    set_recording(True)
    y = x * x
    set_recording(False)
    z = y * 100  # not recorded
    (g,) = compute_gradient([y])
    assert g.asnumpy().tolist() == [2, 4, 6]
    with pytest.raises(vd.Error, match="not recorded"):
        z.backward()


# ---- mark_variables and compute_gradient ---------------------------------------------------------------------------


def recorded(f: Callable[[], Any]) -> Any:
    set_recording(True)
    try:
        return f()
    finally:
        set_recording(False)


def test_gradients_come_in_the_order_of_marking() -> None:
    a, b, c = uniform(3), uniform(3, low=2, high=3), uniform(3, low=4, high=5)
    mark_variables([c, a])
    mark_variables([b])
    y = recorded(lambda: a * b * c)
    found = [g.asnumpy() for g in compute_gradient([y])]
    a, b, c = a.asnumpy(), b.asnumpy(), c.asnumpy()
    for g, e in zip(found, (a * b, b * c, a * c), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-6)


def test_an_unused_variable_has_zeros() -> None:
    a, b = uniform(3), uniform(2)
    mark_variables([a, b])
    found = compute_gradient(recorded(lambda: a * 2))
    assert [g.asnumpy().tolist() for g in found] == [[2, 2, 2], [0, 0]]


def test_compute_gradient_clears_the_records() -> None:
    x = nd.array([1, 2, 3])
    mark_variables([x])
    y = recorded(lambda: x * x)
    compute_gradient([y])
    with pytest.raises(vd.Error, match="was freed"):
        compute_gradient([y])
    mark_variables([x])
    assert compute_gradient([recorded(lambda: x * 3)])[0].asnumpy().tolist() == [3, 3, 3]


def test_several_outputs_are_summed() -> None:
    x = nd.array([1, 2, 3])
    mark_variables([x])
    outputs = recorded(lambda: [x * x, x * 10])
    assert compute_gradient(outputs)[0].asnumpy().tolist() == [12, 14, 16]


def test_a_partially_marked_graph_works() -> None:
    """MXNet refused it."""
    x, w = uniform(2, 3), uniform(4, 3)
    mark_variables([w])
    y = recorded(lambda: nd.dot(x * 2, w, transpose_b=True))
    (g,) = compute_gradient([y])
    np.testing.assert_allclose(g.asnumpy(), np.ones((4, 2)) @ (2 * x.asnumpy()), rtol=1e-5)


def test_marking_with_gradients_and_requests() -> None:
    x, w, frozen = nd.array([1, 2, 3]), nd.array([4, 5, 6]), nd.array([7, 8, 9])
    gx, gw, gf = nd.ones((3,)), nd.ones((3,)), nd.ones((3,))
    mark_variables([x, w, frozen], [gx, gw, gf], grad_reqs=["write", "add", "null"])
    assert x.grad is gx and w.grad is gw
    recorded(lambda: x * w * frozen).backward()
    assert gx.asnumpy().tolist() == [28, 40, 54]
    assert gw.asnumpy().tolist() == [1 + 7, 1 + 16, 1 + 27]
    assert gf.asnumpy().tolist() == [1, 1, 1]


def test_gradients_may_be_views_of_one_buffer() -> None:
    flat = nd.zeros((5,))
    x, w = nd.array([1, 2, 3]), nd.array([4, 5])
    mark_variables([x, w], [flat[:3], flat[3:]])
    autograd.backward(recorded(lambda: [x * x, w * 3]))
    assert flat.asnumpy().tolist() == [2, 4, 6, 3, 3]


def test_marks_of_arrays_that_died_are_forgotten() -> None:
    x, y = nd.array([1, 2]), nd.array([3, 4])
    mark_variables([x, y])
    del x
    gc.collect()
    assert [g.asnumpy().tolist() for g in compute_gradient(recorded(lambda: y * 2))] == [[2, 2]]


# ---- functions -----------------------------------------------------------------------------------------------------


def test_unary_functions() -> None:
    x = uniform(3, 4)
    check(lambda x: x, [np.ones_like], x)
    check(nd.exp, [np.exp], x)
    check(lambda x: x / 2, [lambda x: 0.5 + 0 * x], x)
    check(lambda x: x**2, [lambda x: 2 * x], x)
    check(nd.log, [lambda x: 1 / x], x)


def test_binary_functions() -> None:
    x, y = uniform(4, 5), uniform(4, 5, low=2, high=3)
    check(lambda x, y: x + y, [lambda x, y: 1.0, lambda x, y: 1.0], x, y)
    check(lambda x, y: x * y, [lambda x, y: y, lambda x, y: x], x, y)
    check(lambda x, y: x * y + x, [lambda x, y: y + 1, lambda x, y: x], x, y)
    check(lambda x, y: x / y, [lambda x, y: 1 / y, lambda x, y: -x / y**2], x, y)


def test_compositions() -> None:
    x, y = uniform(3), uniform(3, low=1, high=2)
    check(
        lambda x, y: nd.exp(x * y) / (x + y),
        [
            lambda x, y: np.exp(x * y) * (y * (x + y) - 1) / (x + y) ** 2,
            lambda x, y: np.exp(x * y) * (x * (x + y) - 1) / (x + y) ** 2,
        ],
        x, y,
    )  # fmt: skip
    check(lambda x: nd.tanh(nd.sin(x)), [lambda x: np.cos(x) / np.cosh(np.sin(x)) ** 2], x)


def test_the_same_argument_twice() -> None:
    x = nd.array([2, 3])
    assert [g.asnumpy().tolist() for g in grad(lambda a, b: a * b)(x, nd.array([5, 7]))] == [[5, 7], [2, 3]]
    assert grad(lambda a: a * a * a)(x)[0].asnumpy().tolist() == [12, 27]


def test_argnum() -> None:
    x, y = nd.array([2, 3]), nd.array([5, 7])
    f = lambda a, b: a * b + a  # noqa: E731
    assert [g.asnumpy().tolist() for g in grad(f, 0)(x, y)] == [[6, 8]]
    assert [g.asnumpy().tolist() for g in grad(f, [1])(x, y)] == [[2, 3]]
    assert [g.asnumpy().tolist() for g in grad(f, [1, 0])(x, y)] == [[2, 3], [6, 8]]
    gradients, loss = grad_and_loss(f, 1)(x, y)
    assert (len(gradients), loss.asnumpy().tolist()) == (1, [12, 24])


def test_grad_and_loss_of_a_list() -> None:
    gradients, outputs = grad_and_loss(lambda x: [x * 2, x * x])(nd.array([1, 2]))
    assert [g.asnumpy().tolist() for g in gradients] == [[4, 6]]
    assert [y.asnumpy().tolist() for y in outputs] == [[2, 4], [1, 4]]


def test_functions_keep_their_names() -> None:
    def square(x: Any) -> Any:
        """The square."""
        return x * x

    assert (grad(square).__name__, grad_and_loss(square).__doc__) == ("square", "The square.")


def test_no_array_is_no_argument() -> None:
    with pytest.raises(TypeError, match="an array expected"):
        grad(lambda x: x)(3)
    assert not autograd.is_recording()


def test_a_function_that_raises_leaves_recording_off() -> None:
    def broken(x: Any) -> Any:
        raise KeyError("on purpose")

    with pytest.raises(KeyError):
        grad(broken)(nd.ones((1,)))
    assert not autograd.is_recording()


# ---- operators with state ------------------------------------------------------------------------------------------


def test_a_fully_connected_of_a_product() -> None:
    """Data, weight and bias, each the product of two marked arrays or one of them."""
    a, x, w, b = uniform(2, 3), uniform(2, 3, low=1, high=2), uniform(4, 3), uniform(4)
    mark_variables([a, x, w, b])
    y = recorded(lambda: nd.FullyConnected(a * x, w, b, num_hidden=4))
    ga, gx, gw, gb = (g.asnumpy() for g in compute_gradient([y]))
    a, x, w = a.asnumpy(), x.asnumpy(), w.asnumpy()
    ones = np.ones((2, 4))
    np.testing.assert_allclose(ga, (ones @ w) * x, rtol=1e-5)
    np.testing.assert_allclose(gx, (ones @ w) * a, rtol=1e-5)
    np.testing.assert_allclose(gw, ones.T @ (a * x), rtol=1e-5)
    np.testing.assert_allclose(gb, ones.sum(0), rtol=1e-6)


def test_state_is_recorded_reused_and_freed() -> None:
    """Dropout's mask: forward and backward use the same; two calls have two; backward lets both go."""
    vd.random.seed(3)
    x = nd.ones((1000,))
    x.attach_grad()
    with autograd.record():
        first, second = nd.Dropout(x, p=0.5), nd.Dropout(x, p=0.5)
    assert set(first.asnumpy().tolist()) == {0.0, 2.0}
    assert (first.asnumpy() != second.asnumpy()).any(), "the calls share one state"
    first.backward()
    assert x.grad.asnumpy().tobytes() == first.asnumpy().tobytes()
    second.backward()
    assert x.grad.asnumpy().tobytes() == second.asnumpy().tobytes()


def test_state_dies_with_its_graph() -> None:
    x = nd.ones((4,))
    x.attach_grad()
    with autograd.record():
        y = nd.Dropout(x, p=0.5)
    node = y._chunk.line.entry[0]
    state = [weakref.ref(saved) for saved in node.saved.values()]
    assert state
    y.backward()
    del node
    gc.collect()
    assert [r() for r in state] == [None] * len(state)


def test_training_mode_comes_from_the_scope() -> None:
    x = nd.ones((100,))
    assert nd.Dropout(x, p=0.5).asnumpy().tolist() == [1] * 100
    with autograd.record(train_mode=False):
        assert nd.Dropout(x, p=0.5).asnumpy().tolist() == [1] * 100
    with autograd.train_mode():
        assert (nd.Dropout(x, p=0.5).asnumpy() != 1).all()
