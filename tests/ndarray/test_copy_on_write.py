"""An array is a name, a buffer is a version: who shares memory, who moves when somebody writes, and what that costs.

Counted by `nd.statistics()`.  A rename is a whole write that took a new buffer because the old one was held; a copy
moved bytes.  Only renames and copies due to holds are counted here: those are deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import Engine
from vardag.ndarray import buffer
from vardag.operators.tiny import COPIED

pytestmark = pytest.mark.usefixtures("nothing_copied")


@contextmanager
def costs(*, copies: int = 0, renames: int = 0) -> Iterator[None]:
    """The block makes exactly so many copies and renames."""
    before = nd.statistics()
    yield
    after = nd.statistics()
    assert (after.copies - before.copies, after.renames - before.renames) == (copies, renames)


def marked(values: Any) -> Any:
    x = nd.array(values)
    x.attach_grad()
    return x


# ---- view or copy (nd-rules: in vardag all basic slices are views) -------------------------------------------------

VIEWS: dict[str, Callable[[Any], Any]] = {
    "x[0]": lambda x: x[0],
    "x[0:1]": lambda x: x[0:1],
    "x[0, 1:2]": lambda x: x[0, 1:2],
    "x[:, 0]": lambda x: x[:, 0],
    "x[::2]": lambda x: x[::2],
    "x[::-1]": lambda x: x[::-1],
    "x[...]": lambda x: x[...],
    "x[None]": lambda x: x[None],
    "x[()]": lambda x: x[()],
    "reshape": lambda x: x.reshape((6,)),
    "reshape codes": lambda x: x.reshape((0, -1, 1)),
    "at": lambda x: x.at(0),
    "detach": lambda x: x.detach(),
    "flatten in place": lambda x: x.flatten(inplace=True),
    "expand_dims in place": lambda x: x.expand_dims(0, inplace=True),
    "squeeze in place": lambda x: x[None].squeeze(0, inplace=True),
    "iteration": lambda x: next(iter(x)),
    "astype without a copy": lambda x: x.astype("float32", copy=False),
    "as_in_context of the same": lambda x: x.as_in_context(x.context),
}
COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": lambda x: x.copy(),
    "T": lambda x: x.T,
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "transpose": lambda x: x.transpose(),
    "expand_dims": lambda x: x.expand_dims(0),
    "flatten": lambda x: x.flatten(),
    "squeeze": lambda x: x.squeeze(),
    "slice_axis": lambda x: nd.slice_axis(x, axis=0, begin=0, end=1),
    "broadcast_to": lambda x: x.broadcast_to((2, 3)),
    "astype": lambda x: x.astype("float32"),
    "reshape operator": lambda x: nd.reshape(x, shape=(6,)),
    "array": nd.array,
    "+x": lambda x: +x,
    "reshape of strided": lambda x: x[:, ::2].reshape((-1,)),
}
# copies that share the bytes until somebody writes
LAZY = {
    "copy",
    "expand_dims",
    "flatten",
    "squeeze",
    "astype",
    "reshape operator",
    "+x",
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_shares_memory(name: str) -> None:
    x = nd.ones((2, 3))
    y = VIEWS[name](x)
    with costs():
        y[:] = 9
        assert (x.asnumpy() == 9).sum() == y.size
        x[:] = 4
        assert (y.asnumpy() == 4).all()


@pytest.mark.parametrize("written", ["source", "result"])
@pytest.mark.parametrize("name", COPIES)
def test_a_copy_does_not(name: str, written: str) -> None:
    x = nd.array([[0, 1, 2], [3, 4, 5]])
    y = COPIES[name](x)
    before = x.asnumpy(), y.asnumpy()
    (x if written == "source" else y)[:] = 9
    kept, was = (y, before[1]) if written == "source" else (x, before[0])
    assert kept.asnumpy().tolist() == was.tolist()


@pytest.mark.parametrize("name", COPIES)
def test_a_lazy_copy_moves_nothing_until_a_write(name: str) -> None:
    x = nd.array([[0, 1, 2], [3, 4, 5]])
    with costs():
        y = COPIES[name](x)
        y.wait_to_read()
        x.wait_to_read()
    assert (y.var is x.var) == (name in LAZY)


def test_a_whole_write_of_a_lazy_copy_renames_it() -> None:
    x = nd.ones((2, 3))
    y = x.copy()
    with costs(renames=1):
        y[:] = 2
    with costs():
        y += 1  # its own now
        x += 1  # so is this
    assert (x.asnumpy().max(), y.asnumpy().max()) == (2, 3)


def test_a_partial_write_of_a_lazy_copy_copies_once() -> None:
    x = nd.ones((4, 3))
    y = x.copy()
    with costs(copies=1):
        y[0] = 2
        y[1] = 2
        x[2] = 5
    assert y.asnumpy().tolist() == [[2] * 3, [2] * 3, [1] * 3, [1] * 3]
    assert x.asnumpy().tolist() == [[1] * 3, [1] * 3, [5] * 3, [1] * 3]


def test_a_lazy_copy_that_died_holds_nothing() -> None:
    x = nd.ones((4, 3))
    y = x.copy()
    del y
    with costs():
        x[0] = 2


def test_a_view_of_a_lazily_strided_copy() -> None:
    x = nd.array([[0, 1, 2], [3, 4, 5]])
    y = x.T
    y[0][:] = 9
    assert x.asnumpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert y.asnumpy().tolist() == [[9, 9], [1, 4], [2, 5]]


@pytest.mark.parametrize("make", [lambda x: x.T, lambda x: x.swapaxes(0, 1)])
def test_a_reshape_of_a_transpose_is_a_view(make: Callable[[Any], Any]) -> None:
    """The result of T is a contiguous array (MXNet, NumPy's copy()): reshaping it is a view."""
    y = make(nd.array([[0, 1, 2], [3, 4, 5]]))
    z = y.reshape((6,))
    z[0] = 9
    assert y.asnumpy()[0, 0] == 9


# ---- holds of the tape (rules 1.5, 1.6, 1.7) -----------------------------------------------------------------------


def test_writing_rows_that_nobody_holds_copies_nothing() -> None:
    """Rule 1.5: ``buf[t] = tanh(buf[t - 1] * w)`` is linear, right and free."""
    n = 50
    buf, w = nd.zeros((n, 4)), marked([0.5, 0.6, 0.7, 0.8])
    buf[0] = 1
    with costs(), autograd.record():
        for t in range(1, n):
            buf[t] = nd.tanh(buf[t - 1] * w)
        last = buf[n - 1]
    last.backward()
    h, slope = np.ones(4), np.zeros(4)
    for _ in range(1, n):
        pre = h * w.asnumpy().astype(np.float64)
        h_new = np.tanh(pre)
        slope = (1 - h_new**2) * (slope * w.asnumpy() + h)
        h = h_new
    np.testing.assert_allclose(w.grad.asnumpy(), slope, rtol=1e-4)


def test_a_write_beside_what_is_held_is_in_place() -> None:
    x, w = nd.ones((8, 4)), marked([1, 2, 3, 4])
    with autograd.record():
        y = x[2:4] * w
    with costs():
        x[0], x[4:] = 7, 7
    with costs(copies=1):
        x[3] = 7
    with costs():
        x[2] = 7  # the holder has moved
    y.backward()
    assert w.grad.asnumpy().tolist() == [2, 2, 2, 2]


def test_whole_updates_of_a_held_array_rename_and_copy_nothing() -> None:
    """Rule 1.6: read the old buffer, write a new one, in one pass."""
    x = marked([1, 2, 3])
    with autograd.record():
        y = x * x
    with costs(renames=1):
        x -= 1
    with costs():
        x -= 1
        x[:] = 0
    y.backward()
    assert x.grad.asnumpy().tolist() == [2, 4, 6]
    assert x.asnumpy().tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("write", "renames", "copies"),
    [
        (lambda x: x.__setitem__(slice(None), 9), 1, 0),
        (lambda x: x.__iadd__(1), 1, 0),
        (lambda x: nd.exp(x, out=x), 1, 0),
        (lambda x: nd.ones((3,)).copyto(x), 1, 0),
        (lambda x: x.reshape((3, 1)).__iadd__(1), 1, 0),
        (lambda x: x.__setitem__(0, 9), 0, 1),
        (lambda x: x[1:].__iadd__(1), 0, 1),
        (lambda x: x.__setitem__(slice(3, 3), 9), 0, 0),
    ],
)
def test_what_a_write_to_a_held_array_costs(write: Callable[[Any], Any], renames: int, copies: int) -> None:
    x = marked([1, 2, 3])
    with autograd.record():
        y = x * x
    with costs(renames=renames, copies=copies):
        write(x)
    y.backward()
    assert x.grad.asnumpy().tolist() == [2, 4, 6], "what was saved is as it was"


def test_the_cheaper_side_moves() -> None:
    """Rule 1.7: of a large array little of which is held, the held bytes move; the array keeps its variable."""
    x, w = nd.ones((1000, 4)), marked([1, 2, 3, 4])
    with autograd.record():
        y = x[5] * w
    variable = x.var
    with costs(copies=1):
        x[5, 0] = 3
    assert x.var is variable, "the large side stayed"
    y.backward()
    assert w.grad.asnumpy().tolist() == [1, 1, 1, 1]


def test_a_recorded_update_of_a_part_that_it_keeps() -> None:
    """``v *= y`` keeps the old v: it is held, then moved, then v is overwritten (this used to try forever)."""
    x, y = nd.array([1, 2, 3, 4]), marked([5, 6, 7])
    with autograd.record():
        v = x[1:]
        with costs(copies=1):
            v *= y
    v.backward()
    assert y.grad.asnumpy().tolist() == [2, 3, 4]
    assert x.asnumpy().tolist() == [1, 10, 18, 28]


def test_several_holders_are_copied_once_each_or_the_array_moves() -> None:
    x = nd.ones((6, 4))
    ws = [marked([i] * 4) for i in range(3)]
    with autograd.record():
        y = sum((x[i] * w for i, w in enumerate(ws)), nd.zeros((4,)))
    before = nd.statistics()
    x[0:3] *= 5
    after = nd.statistics()
    assert 1 <= after.copies - before.copies <= 3
    y.backward()
    for w in ws:
        assert w.grad.asnumpy().tolist() == [1, 1, 1, 1]


def test_a_freed_graph_holds_nothing() -> None:
    x = marked([1, 2, 3])
    with autograd.record():
        y = x * x
    y.backward()
    with costs():
        x -= 1


def test_a_graph_that_died_holds_nothing() -> None:
    x = marked([1, 2, 3])
    with autograd.record():
        y = x * x
    del y
    with costs():
        x -= 1


def test_a_retained_graph_holds_until_it_is_freed() -> None:
    x = marked([1, 2, 3])
    with autograd.record():
        y = x * x
    y.backward(retain_graph=True)
    with costs(renames=1):
        x -= 1
    y.backward()
    assert x.grad.asnumpy().tolist() == [2, 4, 6]


def test_an_operator_that_keeps_nothing_holds_nothing() -> None:
    x = marked([1, 2, 3])
    with autograd.record():
        y = x + x
        z = nd.floor(x)
    with costs():
        x -= 1
    (y + z).wait_to_read()


# ---- what an operation was given (rules 1.2, 1.12) -----------------------------------------------------------------


def test_a_pushed_reader_keeps_its_version(engine_kind: Engine) -> None:
    x = nd.ones((3,))
    y = x.copy()
    sums = []
    for i in range(20):
        sums.append(x + y)
        if i % 2:
            x[:] = i
        else:
            y[i % 3] = i
    expected_x, expected_y, expected = np.ones(3), np.ones(3), []
    for i in range(20):
        expected.append((expected_x + expected_y).tolist())
        if i % 2:
            expected_x[:] = i
        else:
            expected_y[i % 3] = i
    assert [s.asnumpy().tolist() for s in sums] == expected


def test_versions_count_writes_in_program_order() -> None:
    x = nd.ones((3,))
    start, view = x.version, x[1:]
    x += 1
    view[:] = 2
    x[0] = 1
    x + 1
    assert x.version == view.version == start + 3
    y = x.copy()
    y += 1
    assert x.version == start + 3


def test_out_may_be_what_is_read() -> None:
    x = nd.array([[1, 2], [3, 4]])
    nd.concat(x[0:1], x[1:2], dim=0, out=x)
    assert x.asnumpy().tolist() == [[1, 2], [3, 4]]
    nd.transpose(x, out=x)
    assert x.asnumpy().tolist() == [[1, 3], [2, 4]]
    x[:] = x[::-1]
    assert x.asnumpy().tolist() == [[2, 4], [1, 3]]


def test_a_rename_is_not_seen_by_views() -> None:
    """Views name the chunk: whoever renames it renames it for all."""
    x = marked([1, 2, 3])
    view = x[1:]
    with autograd.record():
        y = x * x
    x[:] = 7
    view += 1
    assert x.asnumpy().tolist() == [7, 8, 8]
    y.backward()
    assert x.grad.asnumpy().tolist() == [2, 4, 6]


def test_writes_beside_what_is_held_do_not_look_at_every_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are written one after the other, each while the tape holds those before: linear, not quadratic."""
    looked = []
    real = buffer.conflicts

    def counting(b, writer, low, high):
        first, last = b.held
        looked.append(len(b.holders) if low < last and first < high else 0)
        return real(b, writer, low, high)

    monkeypatch.setattr(buffer, "conflicts", counting)
    width = COPIED
    w = nd.ones(width)
    w.attach_grad()
    with autograd.record():
        rows = nd.zeros((40, width))
        for t in range(1, 40):
            rows[t] = rows[t - 1] * w + 1
        total = rows.sum()
    total.backward()
    assert sum(looked) < 40
    assert rows[:, 0].asnumpy().tolist() == list(range(40))
    assert w.grad[0].asscalar() == expected(40)


def expected(n: int) -> float:
    """The derivative at 1 of the sum of x_t = w x_(t - 1) + 1, x_0 = 0."""
    x, dx, total = 0.0, 0.0, 0.0
    for _ in range(1, n):
        x, dx = x + 1, x + dx
        total += dx
    return total


def test_what_is_held_again_after_a_move_is_protected() -> None:
    """The range of what is held never says less than the holders need."""
    x = nd.arange(4 * COPIED)
    w = nd.ones(COPIED)
    w.attach_grad()
    with autograd.record():
        kept = [w * x[i * COPIED : (i + 1) * COPIED] for i in (2, 0, 3, 1)]
    for i in (1, 3, 0, 2):
        x[i * COPIED : (i + 1) * COPIED] = -1
    x[:] = 7
    for y, i in zip(kept, (2, 0, 3, 1), strict=True):
        y.backward()
        assert w.grad.asnumpy().tolist() == list(range(i * COPIED, (i + 1) * COPIED))
