"""In-place writes and views under record(): the rules of lines, one section each.

A line is the tape's name for a stretch of memory; an array and its views share one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.ndarray.array import Array


def marked(*values: float) -> Any:
    x = nd.array(values or (1, 2, 3))
    x.attach_grad()
    return x


def grads(*arrays: Any) -> list[Any]:
    return [a.grad.asnumpy().tolist() for a in arrays]


# ---- 1, 2: a view shares its base's line, wherever it is taken -----------------------------------------------------


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (lambda x: x[0:2], [2, 4, 0]),
        (lambda x: x[1], [0, 4, 0]),
        (lambda x: x[::-1], [2, 4, 6]),
        (lambda x: x[None], [2, 4, 6]),
        (lambda x: x.reshape((3, 1)), [2, 4, 6]),
        (lambda x: x[::2][1:], [0, 0, 6]),
        (lambda x: x[...], [2, 4, 6]),
    ],
)
def test_a_view_is_a_name(view: Callable[[Any], Any], expected: list[float], where: str) -> None:
    x = marked()
    if where == "outside":
        v = view(x)
        with autograd.record():
            y = v * v
    else:
        with autograd.record():
            v = view(x)
            y = v * v
    y.backward()
    assert grads(x) == [expected]


def test_a_view_taken_before_marking_is_of_the_marked_line() -> None:
    x = nd.array([1, 2, 3])
    v = x[1:]
    x.attach_grad()
    with autograd.record():
        y = v * x[1:]
    y.backward()
    assert grads(x) == [[0, 4, 6]]


def test_a_view_of_an_intermediate_taken_outside() -> None:
    x = marked()
    with autograd.record():
        y = x * x
    v = y[1:]
    with autograd.record():
        z = v * 10
    z.backward()
    assert grads(x) == [[0, 40, 60]]


def test_a_view_as_head() -> None:
    x = marked()
    with autograd.record():
        y = x * x
    y[2].backward()
    assert grads(x) == [[0, 0, 6]]


def test_a_transposed_view_in_the_canonical_face() -> None:
    x = Array._from_host(np.arange(6.0).reshape(2, 3))
    x.attach_grad()
    with autograd.record():
        x.T[1:] *= 2
        y = x * x
    y.backward()
    scale = np.array([[1, 2, 2], [1, 2, 2]])
    assert grads(x) == [(2 * np.arange(6.0).reshape(2, 3) * scale**2).tolist()]


# ---- 3: detach, and views taken under pause, have no line ----------------------------------------------------------


def test_a_detached_array_is_a_constant() -> None:
    x = marked()
    with autograd.record():
        y = x * x
        z = y.detach() * x + y.detach()[::-1]
    z.backward()
    assert grads(x) == [[1, 4, 9]]


def test_a_view_taken_under_pause_is_a_constant() -> None:
    x = marked()
    with autograd.record():
        with autograd.pause():
            v = x[:]
        y = x * v
    y.backward()
    assert grads(x) == [[1, 2, 3]]


@pytest.mark.parametrize("write", [lambda d: d.__setitem__(slice(None), 5), lambda d: d.__iadd__(4)])
def test_writes_through_detached_change_bytes_and_no_entry(write: Callable[[Any], Any]) -> None:
    x = marked(1, 1, 1)
    with autograd.record():
        y = x * 2
        write(y.detach())
        z = y * y
    value = y.asnumpy()
    assert value.tolist() in ([5] * 3, [6] * 3)
    z.backward()
    np.testing.assert_allclose(x.grad.asnumpy(), 2 * value * 2)


def test_a_detached_view_may_be_marked() -> None:
    x = marked()
    d = x.detach()
    d.attach_grad()
    with autograd.record():
        y = x * x + d * 10
    y.backward()
    assert grads(x, d) == [[2, 4, 6], [10, 10, 10]]


# ---- 4: a recorded write through any name of a line ----------------------------------------------------------------


def test_a_whole_write_replaces_the_entry() -> None:
    x, a = marked(), nd.zeros((3,))
    with autograd.record():
        a[:] = x * 2
        b = a[1:]
        b2 = b * b
    b2.backward()
    assert grads(x) == [[0, 16, 24]]


def test_a_part_keeps_the_rest() -> None:
    x, w = marked(), marked(5, 6, 7)
    with autograd.record():
        y = x * 2
        y[1:] = w[1:] * 3
        z = y * y
    z.backward()
    assert grads(x, w) == [[8, 0, 0], [0, 6 * 18, 6 * 21]]


def test_a_write_through_a_view_is_seen_by_every_name() -> None:
    x, buf = marked(1, 2), nd.zeros((2, 2))
    rows, first = buf[0], buf.reshape((4,))[:2]
    with autograd.record():
        buf[0] = x * 3
        y = rows * first + buf[1]
    y.backward()
    assert grads(x) == [[18, 36]]


@pytest.mark.parametrize(
    ("update", "gx", "gw"),
    [
        (lambda y, w: y.__iadd__(w), [2, 2, 2], [1, 1, 1]),
        (lambda y, w: y.__isub__(w), [2, 2, 2], [-1, -1, -1]),
        (lambda y, w: y.__imul__(w), [8, 10, 12], [2, 4, 6]),
        (lambda y, w: y.__itruediv__(w), [0.5, 0.4, 2 / 6], [-2 / 16, -4 / 25, -6 / 36]),
        (lambda y, w: nd.multiply(y, w, out=y), [8, 10, 12], [2, 4, 6]),
        (lambda y, w: w.copyto(y), [0, 0, 0], [1, 1, 1]),
        (lambda y, w: nd.exp(w, out=y), [0, 0, 0], np.exp([4.0, 5, 6]).tolist()),
        (lambda y, w: y.__setitem__(slice(1, None), w[:2]), [2, 0, 0], [1, 1, 0]),
    ],
)
def test_every_kind_of_write(update: Callable[..., Any], gx: list[float], gw: list[float]) -> None:
    x, w = marked(), marked(4, 5, 6)
    with autograd.record():
        y = x * 2
        update(y, w)
        z = y + x * 0
    z.backward()
    np.testing.assert_allclose(x.grad.asnumpy(), gx, rtol=1e-5)
    np.testing.assert_allclose(w.grad.asnumpy(), gw, rtol=1e-5)


def test_a_constant_into_a_part_cuts_that_part() -> None:
    x = marked()
    with autograd.record():
        y = x * x
        y[0] = 100
        z = y * 2
    z.backward()
    assert grads(x) == [[0, 8, 12]]
    assert z.asnumpy().tolist() == [200, 8, 18]


def test_a_constant_over_all_of_it_cuts_the_entry() -> None:
    x = marked()
    with autograd.record():
        y = x * x
        y[:] = 1
    with pytest.raises(vd.Error, match="not recorded"):
        y.backward()


def test_writes_of_constants_to_constants_are_bytes_only() -> None:
    a = nd.zeros((3,))
    with autograd.record():
        a += 1
        a[0] = 3
    assert a.asnumpy().tolist() == [3, 1, 1]
    with pytest.raises(vd.Error, match="not recorded"):
        a.backward()


def test_an_overlapping_update() -> None:
    x = marked(1, 2, 3)
    with autograd.record():
        y = x * 1
        y[1:] += y[:-1]
        z = y * nd.array([1, 10, 100])
    z.backward()
    assert (z.asnumpy().tolist(), grads(x)) == ([1, 30, 500], [[11, 110, 100]])


# ---- 5: a write that is not recorded changes bytes and no entry ----------------------------------------------------


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize(
    "write", [lambda a: a.__setitem__(slice(None), 10), lambda a: a.__iadd__(5), lambda a: a.__setitem__(0, 9)]
)
@pytest.mark.parametrize("which", ["leaf", "intermediate"])
def test_saved_values_are_protected(which: str, write: Callable[[Any], Any], paused: bool) -> None:
    x = marked()
    with autograd.record():
        y = nd.exp(x * x)
        target = x if which == "leaf" else y
        if paused:
            with autograd.pause():
                write(target)
    if not paused:
        write(target)
    y.backward()
    v = np.array([1.0, 2, 3])
    np.testing.assert_allclose(x.grad.asnumpy(), 2 * v * np.exp(v * v), rtol=1e-5)


def test_the_entry_stays_with_new_bytes() -> None:
    """y's bytes are 101, 104, 109; what is made of y later uses those, its derivative is still that of x * x."""
    x = marked()
    with autograd.record():
        y = x * x
    y += 100
    with autograd.record():
        z = y * y
    z.backward()
    assert z.asnumpy().tolist() == [101**2, 104**2, 109**2]
    assert grads(x) == [[2 * 101 * 2, 2 * 104 * 4, 2 * 109 * 6]]


# ---- 6: marked arrays written under record -------------------------------------------------------------------------


def test_a_leaf_written_under_record_is_an_intermediate_until_the_scope_ends() -> None:
    x = marked()
    with autograd.record():
        x += 1
        x *= x
        y = x * 10
    y.backward()
    assert grads(x) == [[40, 60, 80]]
    assert x.asnumpy().tolist() == [4, 9, 16]
    with autograd.record():
        z = x * x
    z.backward()
    assert grads(x) == [[8, 18, 32]]


def test_only_the_outermost_scope_ends_it() -> None:
    x = marked()
    with autograd.record():
        with autograd.record():
            x *= 2
        with autograd.train_mode():
            y = x * x
    y.backward()
    assert grads(x) == [[8, 16, 24]]


def test_a_leaf_overwritten_by_a_constant() -> None:
    x = marked()
    with autograd.record():
        y = x * 5
        x[:] = 100
        z = x * y
    z.backward()
    assert grads(x) == [[500, 500, 500]]
    with autograd.record():
        z = x * 3
    z.backward()
    assert grads(x) == [[3, 3, 3]]


def test_backward_inside_the_scope() -> None:
    x = marked()
    with autograd.record():
        x *= 2
        y = x * x
        y.backward()
    assert grads(x) == [[8, 16, 24]]


def test_a_leaf_written_through_a_view_in_an_exception() -> None:
    x = marked()
    with pytest.raises(KeyError), autograd.record():
        x[0] = 5
        raise KeyError
    with autograd.record():
        y = x * x
    y.backward()
    assert grads(x) == [[10, 4, 6]]


# ---- 7: marking cuts -----------------------------------------------------------------------------------------------


def test_marking_an_intermediate_cuts_it() -> None:
    x = marked()
    with autograd.record():
        y = x * 2
        y.attach_grad()
        z = y * y
    z.backward()
    assert grads(x, y) == [[0, 0, 0], [4, 8, 12]]


def test_marking_again_starts_anew() -> None:
    x = marked()
    with autograd.record():
        y = x * x
    y.backward()
    old = x.grad
    x.attach_grad("add")
    assert grads(x) == [[0, 0, 0]] and x.grad is not old
    for _ in range(2):
        with autograd.record():
            y = x * x
        y.backward()
    assert grads(x) == [[4, 8, 12]]
    assert old.asnumpy().tolist() == [2, 4, 6]


def test_a_marked_view_has_its_own_entry() -> None:
    flat = nd.zeros((5,))
    w, b = flat[:3], flat[3:]
    w.attach_grad()
    b.attach_grad()
    flat[:] = nd.array([1, 2, 3, 4, 5])
    with autograd.record():
        y = w * w
        z = b * 7
    autograd.backward([y, z])
    assert grads(w, b) == [[2, 4, 6], [7, 7]]
    assert flat.grad is None
    flat -= 1
    assert w.asnumpy().tolist() == [0, 1, 2]


# ---- 8: two tracked lines over the same memory ---------------------------------------------------------------------


def test_a_recorded_write_that_another_marked_line_would_not_see_is_refused() -> None:
    flat = nd.array([1, 2, 3, 4])
    w = flat[:2]
    w.attach_grad()
    flat.attach_grad()
    before = flat.version, flat.asnumpy().tolist()
    with autograd.record():
        for write in (lambda: flat.__imul__(2), lambda: w.__imul__(2), lambda: flat.__setitem__(1, 5)):
            with pytest.raises(ValueError, match="shares memory with another array on the tape") as caught:
                write()
            assert isinstance(caught.value, vd.Error)
    assert (flat.version, flat.asnumpy().tolist()) == before
    with autograd.record():
        flat[2:] *= 2  # does not overlap w
        y = flat * w[0]
    y.backward()
    assert flat.grad.asnumpy().tolist() == [1, 1, 2, 2]


def test_an_unmarked_base_of_a_marked_view() -> None:
    flat = nd.array([1, 2, 3, 4])
    w = flat[:2]
    w.attach_grad()
    x = marked(5, 6)
    with autograd.record():
        with pytest.raises(ValueError, match="shares memory"):
            flat[0:2] = x
        flat[2:] = x
        y = flat[2:] * w
    y.backward()
    assert grads(x, w) == [[1, 2], [5, 6]]


# ---- 9: saved values carry their entry -----------------------------------------------------------------------------


def test_second_order_through_values_saved_before_a_write() -> None:
    x = marked()
    with autograd.record():
        y = x * 1
        z = y * y * y
        y[:] = 0
        g = autograd.grad(z, x, create_graph=True)
    g.backward()
    assert g.asnumpy().tolist() == [3, 12, 27]
    assert grads(x) == [[6, 12, 18]]


# ---- 10: x.grad is one stable array, never tracked -----------------------------------------------------------------


@pytest.mark.parametrize("request_", ["write", "add"])
def test_the_gradient_array_is_stable(request_: str) -> None:
    x = nd.array([1, 2, 3])
    x.attach_grad(request_)
    g, view = x.grad, x.grad[1:]
    for _ in range(2):
        with autograd.record():
            y = x * x
        y.backward()
    assert x.grad is g
    assert view.asnumpy().tolist() == ([4, 6] if request_ == "write" else [8, 12])


def test_the_gradient_may_be_an_input() -> None:
    x = marked()
    with autograd.record():
        y = x * x
    y.backward()
    with autograd.record():
        z = x * x.grad  # a constant, held: backward overwrites it
    z.backward()
    assert grads(x) == [[2, 4, 6]]
    with pytest.raises(vd.Error, match="not recorded"):
        x.grad.backward()


def test_the_gradient_can_be_changed_by_hand() -> None:
    x = marked()
    with autograd.record():
        y = x * x
    y.backward()
    g = x.grad
    g *= 0.5
    x -= g
    assert x.asnumpy().tolist() == [0, 0, 0]
    x.zero_grad()
    assert grads(x) == [[0, 0, 0]]


# ---- 11: arrays that an operator mutates change bytes only ---------------------------------------------------------


def test_a_mutated_operand_must_not_be_on_the_tape() -> None:
    w, g, momentum = nd.ones((3,)), nd.ones((3,)), marked()
    before = momentum.version
    with autograd.record(), pytest.raises(ValueError, match="must not be on the tape"):
        nd.sgd_mom_update(w, g, momentum, lr=0.1, momentum=0.9, out=w)
    assert (momentum.version, momentum.asnumpy().tolist(), w.asnumpy().tolist()) == (before, [1, 2, 3], [1, 1, 1])


# ---- 12: Function.forward gets read-only arrays --------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [lambda x: x.__iadd__(1), lambda x: x.__setitem__(0, 1), lambda x: nd.exp(x, out=x), lambda x: x[1:].__imul__(2)],
)
def test_a_write_to_an_input_of_forward_is_an_error_at_the_call(write: Callable[[Any], Any]) -> None:
    class Writing(autograd.Function):
        def forward(self, x: Any) -> Any:
            write(x)
            return x

    x = marked()
    with autograd.record(), pytest.raises(ValueError, match="read-only"):
        Writing()(x)
    assert x.asnumpy().tolist() == [1, 2, 3]


# ---- 13: a freed intermediate in a new graph -----------------------------------------------------------------------


def test_a_freed_intermediate_is_an_error_that_says_where() -> None:
    x = marked()
    with autograd.record():
        y = x * x
    y.backward()
    with autograd.record():
        z = y * 3
    with pytest.raises(vd.autograd.GraphError) as caught:
        z.backward()
    text = str(caught.value)
    assert text.count("test_in_place.py:") == 2 and "detach()" in text and "multiply" in text
    with autograd.record():
        z = y.detach() * x
    z.backward()
    assert grads(x) == [[1, 4, 9]]


# ---- 14: a task made inside record() keeps the scope ---------------------------------------------------------------


def test_a_task_inherits_the_scope_and_keeps_it() -> None:
    async def main() -> list[bool]:
        seen = []
        go = asyncio.Event()

        async def child() -> None:
            seen.append(autograd.is_recording())
            await go.wait()
            seen.append(autograd.is_recording())

        with autograd.record():
            task = asyncio.create_task(child())
            await asyncio.sleep(0)
        seen.append(autograd.is_recording())
        go.set()
        await task
        return seen

    assert asyncio.run(main()) == [True, False, True]


# ---- MXNet's refusal -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write", [lambda a: a.__iadd__(1), lambda a: a.__setitem__(0, 1), lambda a: nd.exp(nd.ones((3,)), out=a)]
)
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_refuse(write: Callable[[Any], Any], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any effect; arrays that have nothing to do with the tape may be written."""
    if how == "environment":
        monkeypatch.setenv("VARDAG_INPLACE", "refuse")
    x, free = marked(), nd.zeros((3,))
    with autograd.record(**({"inplace": "refuse"} if how == "argument" else {})):
        y = x * x
        for target in (x, y):
            before = target.version
            with pytest.raises(vd.Error, match="not supported when recording with autograd"):
                write(target)
            assert target.version == before
        with pytest.raises(vd.Error, match="not supported"):
            free += x
        free += 1
        write(free)
    y.backward()
    assert grads(x) == [[2, 4, 6]]
    write(x)
