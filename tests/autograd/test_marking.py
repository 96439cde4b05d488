"""attach_grad, mark_variables, grad, zero_grad and detach, as in MXNet 1.9.1 (zero_grad is an addition)."""

from __future__ import annotations

from typing import Any

import pytest

from vardag import autograd, nd


def backward(f: Any) -> None:
    with autograd.record():
        y = f()
    y.backward()


def test_marking_gives_zeros_and_marks_anew() -> None:
    x = nd.array([1, 2])
    assert x.grad is None
    x.attach_grad()
    first = x.grad
    assert first.asnumpy().tolist() == [0, 0] and x.grad is first
    backward(lambda: x * 3)
    assert first.asnumpy().tolist() == [3, 3] and x.grad is first
    x.attach_grad("add")
    assert x.grad is not first and x.grad.asnumpy().tolist() == [0, 0]
    backward(lambda: x * 3)
    backward(lambda: x * 4)
    assert x.grad.asnumpy().tolist() == [7, 7] and first.asnumpy().tolist() == [3, 3]


def test_null_has_a_gradient_array_that_stays() -> None:
    x, w = nd.array([1, 2]), nd.array([3, 4])
    x.attach_grad("null")
    w.attach_grad()
    backward(lambda: x * w)
    assert x.grad.asnumpy().tolist() == [0, 0] and w.grad.asnumpy().tolist() == [1, 2]


def test_marking_cuts_what_was_recorded() -> None:
    x = nd.array([2])
    x.attach_grad()
    with autograd.record():
        y = x * x
        y.attach_grad()
        z = y * 5
    z.backward()
    assert y.grad.asscalar() == 5 and x.grad.asscalar() == 0


def test_storage_types() -> None:
    x = nd.ones((4, 2))
    x.attach_grad(stype="row_sparse")
    assert x.grad.stype == "row_sparse" and x.grad.shape == (4, 2)
    backward(lambda: nd.take(x, nd.array([1, 1])))
    assert x.grad.indices.asnumpy().tolist() == [1]
    x.zero_grad()
    assert x.grad.stype == "row_sparse" and x.grad.asnumpy().tolist() == [[0, 0]] * 4
    x.attach_grad("add", "default")
    assert x.grad.stype == "default"


def test_gradients_given_to_mark_variables_are_written() -> None:
    x, y, gx, gy = nd.array([1]), nd.array([2]), nd.array([50]), nd.array([60])
    autograd.mark_variables([x, y], [gx, gy], ["write", "add"])
    assert x.grad is gx and gy is y.grad
    backward(lambda: x * y)
    assert gx.asscalar() == 2 and gy.asscalar() == 61


def test_detached_arrays_share_memory_and_have_no_gradient() -> None:
    x = nd.array([1, 2])
    x.attach_grad()
    with autograd.record():
        y = x * x
        d = y.detach()
        z = d * x
    assert d.grad is None
    z.backward()
    assert x.grad.asnumpy().tolist() == [1, 4]
    d[:] = 7
    assert y.asnumpy().tolist() == [7, 7]
    d.attach_grad()
    assert d.grad is not None and y.grad is None
    assert nd.BlockGrad(x).asnumpy().tolist() == [1, 2]


@pytest.mark.parametrize("recording", [False, True])
def test_zero_grad(recording: bool) -> None:
    """Of an array, or of a tree with whatever in it; in a recording scope it is no part of the graph."""
    a, b, c, plain = (nd.array([k]) for k in (1, 2, 3, 4))
    for x in (a, b, c):
        x.attach_grad("add")
    backward(lambda: a * b * c)
    arrays = a.grad, b.grad, c.grad
    if recording:
        with autograd.record():
            y = a * a
            a.zero_grad()
            autograd.zero_grad({"b": b, "more": [(plain, "word", None)]})
        y.backward()
        assert [g.asscalar() for g in arrays] == [2, 0, 2]
    else:
        a.zero_grad()
        autograd.zero_grad({"b": b, "more": [(plain, "word", None)]})
        assert [g.asscalar() for g in arrays] == [0, 0, 2]
    autograd.zero_grad(c)
    plain.zero_grad()
    assert arrays[2].asscalar() == 0 and c.grad is arrays[2] and plain.grad is None
