"""Reductions of much: in which order, and on several workers.

An array in C order with at least `LARGE` elements is reduced in the order below, which depends on its shape and dtype
alone: on every engine, with any number of workers, at once, queued, or as a member of a segment (fusion.py).  Its axes
are seen as runs that are kept (K) or reduced (R):

    R, K R    SUMS   each row in *lines* of `LINE` elements, the last one shorter; a row of at most two lines is one.
                     A line is one dot product of BLAS with ones (of the line with itself, for a sum of squares), so
                     its bits depend on nothing else.
                     The sums of a row's lines are added in float64: pairwise if there is one row, in order otherwise.
    R K       SUMS   rows are taken together by k, to some `WIDTH` elements, and these in blocks of `HEIGHT`, the last
                     one shorter: the rows of a block in order, then the blocks in order, then their k parts, then
                     the rows that are left over; all but the first in float64.
    R K R     SUMS   first the last run, then the first.

These are SUMS of float32 and float64 that stay so.  EXTREMES are the same in any order, but for the zeros: a zero of a
large reduction is +0.  Everything else is exact (integers), or as NumPy does it in the blocks of `columns` and `rows`.

BLAS adds a line in as many partial sums as its registers hold (32 with AVX2), so an element passes some 20 roundings in
its line (36 in one of twice the length), or `HEIGHT` in its block, and one after that, however many elements there are.
In pairwise summation as NumPy does it these are 19, and log2(n / 128) after that. [tests/operators/test_reductions.py]
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..engine.parallel import parallel
from ..ndarray.dtype import is_float
from ..ndarray.streams import computing
from .elsewhere import reduced
from .launch import tiles
from .products import FOR_WORKERS, cuts, seen_as
from .schema import Attributes, Metas, Step

LARGE = 1 << 17  # elements from which the order is the one above
LINE = 512  # elements
HEIGHT = 32  # rows of a block
WIDTH = 4096  # elements of a block's row
BLOCK = 1 << 16  # elements of a block of other reductions
BIG = 1 << 21  # elements from which it is a matter for workers
SHARE = 1 << 20  # elements that are worth a piece
FEW = 16  # rows that are not enough to be shared

_ONES = {dtype: np.ones(2 * LINE, dtype) for dtype in (np.dtype("f4"), np.dtype("f8"))}


def cost(metas: Metas, made: Metas, attributes: Attributes) -> float:
    """What a reduction costs, in the units of `schema.operator`."""
    size = sum(math.prod(meta[0]) for meta in metas if meta is not None)
    if size >= BIG:
        return FOR_WORKERS
    return 0.3 * size if size >= LARGE else size


def runs(shape: Sequence[int], axis: Sequence[int]) -> tuple[str, list[int]]:
    """The axes longer than 1, neighbours of one kind taken together: their kinds and lengths."""
    named = [("R" if a in axis else "K", n) for a, n in enumerate(shape) if n != 1]
    together = [(kind, math.prod(n for _, n in group)) for kind, group in itertools.groupby(named, lambda run: run[0])]
    return "".join(kind for kind, _ in together), [n for _, n in together]


def stages(ufunc: np.ufunc, x: Any, out: Any, axis: Sequence[int], keepdims: bool, squares: bool = False) -> list[Step]:
    """The calls that reduce x into out: all in C unless `cost` made it a matter for workers.

    squares: of the squares of x; only of what is `in_order` and `in_lines`, along the last axes at least.
    """
    if computing() is not None:
        return [(_there, ufunc, x, axis, out, keepdims, squares)]
    if not in_order(x, axis):
        zeros = _zeros(ufunc, out) if x.size >= LARGE and axis else ()
        return [(ufunc.reduce, x, axis, None, out, keepdims), *zeros]
    kinds, sizes = runs(x.shape, axis)
    kept = sizes[kinds.index("K")] if "K" in kinds else 1
    target, after = seen_as(np, out, (kept,))
    if kinds in ("R", "KR"):
        steps = _rows(ufunc, x.reshape(kept, -1), target, squares)
    elif kinds == "RK":
        steps = _columns(ufunc, x.reshape(-1, kept), target)
    else:
        between = np.empty((sizes[0] * kept,), out.dtype)
        steps = _rows(ufunc, x.reshape(sizes[0] * kept, -1), between, squares)
        steps += _columns(ufunc, between.reshape(-1, kept), target)
    return [*steps, *_zeros(ufunc, target), *after]


def _there(ufunc: np.ufunc, x: Any, axis: Sequence[int], out: Any, keepdims: bool, squares: bool) -> None:
    """On a device with streams, in whatever order it has."""
    reduced(ufunc, x * x if squares else x, axis, out, keepdims)


def in_order(x: Any, axis: Sequence[int]) -> bool:
    """Is it large, and reduced in the order of this module?"""
    if x.size < LARGE or not axis or not x.flags.c_contiguous:
        return False
    return runs(x.shape, axis)[0] in ("R", "KR", "RK", "RKR")


def in_lines(ufunc: np.ufunc, dtype: Any, made: Any) -> bool:
    """Is it a sum that is done in lines?"""
    return ufunc is np.add and dtype == made and made in _ONES


def _zeros(ufunc: np.ufunc, out: Any) -> list[Step]:
    """Which of the zeros is the largest depends on the order, so all are +0."""
    extreme = ufunc is np.maximum or ufunc is np.minimum
    return [(np.add, out, 0, out)] if extreme and is_float(out.dtype) else []


def _put(out: Any, x: Any) -> Step:
    """The call that copies x.  Not `numpy.copyto`, which asks Python for its operands: a handler could raise there."""
    return (operator.setitem, out, ..., x)


# ---- rows ------------------------------------------------------------------------------------------------------------


class Lines:
    """Sums of the rows of a matrix in C order, line by line; any part may be done by anybody, in any order."""

    __slots__ = ("full", "length", "line", "ones", "partial", "rest", "rows", "squares", "sums", "unit")

    def __init__(self, rows: int, length: int, dtype: Any, squares: bool = False) -> None:
        self.rows, self.length, self.squares = rows, length, squares
        self.line = length if length <= 2 * LINE else LINE
        self.full, self.rest = divmod(length, self.line)
        self.ones = _ONES[np.dtype(dtype)]
        self.partial = np.empty((self.full + bool(self.rest), rows), dtype)
        self.sums = self.partial.reshape(-1)
        #: elements: a part begins at a multiple of it
        self.unit = length if rows > 1 else LINE

    def part(self, x: Any, low: int) -> list[Step]:
        """The calls for a part, flat, that begins at element `low` and ends at a multiple of the unit or at the end."""
        if self.rows == 1:
            number, rest = divmod(x.size, LINE)
            if rest:
                return self._lines(x.reshape(1, -1), slice(0, 1), low // LINE)
            full, first = x.reshape(number, LINE), low // LINE  # as `_lines` would, in a hurry
            return [(np.vecdot, full, full if self.squares else self.ones[:LINE], self.sums[first : first + number])]
        first = low // self.length
        rows = x.size // self.length
        return self._lines(x.reshape(rows, self.length), slice(first, first + rows), 0)

    def _lines(self, x: Any, rows: slice, first: int) -> list[Step]:
        """Lines of rows: x are these rows from the line `first` on."""
        line = self.line
        number, rest = divmod(x.shape[1], line)
        steps: list[Step] = []
        if number:
            step, size = x.strides[0], x.itemsize
            full = np.ndarray((len(x), number, line), x.dtype, x, 0, (step, line * size, size))
            steps.append(
                (np.vecdot, full, full if self.squares else self.ones[:line], self.partial[first:, rows][:number].T)
            )
        if rest:
            last = x[:, number * line :]
            steps.append((np.vecdot, last, last if self.squares else self.ones[:rest], self.partial[-1, rows]))
        return steps

    def pieces(self, x: Any) -> list[list[Step]]:
        """The calls for the whole matrix, in pieces for workers."""
        count = -(-x.size // SHARE)
        if self.rows >= FEW:
            return [self._lines(x[part], part, 0) for part in cuts(self.rows, min(count, self.rows), 1)]
        return [
            self._lines(x[row : row + 1, part], slice(row, row + 1), part.start // self.line)
            for row in range(self.rows)
            for part in cuts(self.length, max(1, min(count // self.rows, self.full)), self.line)
        ]

    def end(self, out: Any) -> list[Step]:
        """The calls that add up the lines of each row."""
        partial = self.partial
        if len(partial) == 1:
            return [_put(out, partial[0])]
        wide = np.empty(partial.shape, np.float64)
        total = np.empty(self.rows, np.float64)
        steps: list[Step] = [_put(wide, partial)]
        if self.rows == 1:
            steps.append((np.add.reduce, wide.reshape(1, -1), 1, None, total))
        else:
            steps.append((np.add.reduce, wide, 0, None, total))
        return [*steps, _put(out, total)]


class Extremes:
    """The largest or smallest of each row of a matrix in C order, part by part."""

    __slots__ = ("found", "length", "rows", "ufunc", "unit")

    def __init__(self, ufunc: np.ufunc, rows: int, length: int) -> None:
        self.ufunc, self.rows, self.length = ufunc, rows, length
        self.found: dict[int, Any] = {}
        self.unit = length if rows > 1 else 1

    def part(self, x: Any, low: int) -> list[Step]:
        """As that of `Lines`."""
        rows = 1 if self.rows == 1 else x.size // self.length
        self.found[low] = found = np.empty(rows, x.dtype)
        return [_extremes(self.ufunc, x.reshape(rows, -1), found)]

    def end(self, out: Any) -> list[Step]:
        """As that of `Lines`."""
        parts = [self.found[low] for low in sorted(self.found)]
        found = out if self.rows > 1 else np.empty(len(parts), out.dtype)
        ends = list(itertools.accumulate(map(len, parts)))
        steps = [_put(found[end - len(part) : end], part) for end, part in zip(ends, parts, strict=True)]
        if self.rows == 1:
            steps.append((self.ufunc.reduce, found, 0, None, out.reshape(())))
        return [*steps, *_zeros(self.ufunc, out)]


class Consumed(NamedTuple):
    """What a segment has to know of a reduction that consumes a value of its tiles (fusion.py)."""

    ufunc: np.ufunc
    rows: int
    length: int
    dtype: Any
    squares: bool
    after: Callable[[Any], Sequence[Step]]  # the calls that make the result of sums or extremes

    @property
    def columns(self) -> int:
        """Tiles consist of rows of so many elements, if it is not 0."""
        return self.length if self.rows > 1 else 0

    @property
    def unit(self) -> int:
        """Tiles begin at multiples of so many elements."""
        return self.columns or (LINE if self.ufunc is np.add else 1)

    def begin(self) -> Lines | Extremes:
        """Memory for what the tiles give."""
        if self.ufunc is np.add:
            return Lines(self.rows, self.length, self.dtype, self.squares)
        return Extremes(self.ufunc, self.rows, self.length)


def nothing(out: Any) -> Sequence[Step]:
    """A sum, or an extreme, is the result already."""
    return ()


def consumed(
    ufunc: np.ufunc, shape: Sequence[int], dtype: Any, made: Any, axis: Sequence[int], squares: bool = False,
    after: Callable[[Any], Sequence[Step]] = nothing,
) -> Consumed | None:  # fmt: skip
    """The reduction of a large array in C order along all axes or the last ones, as a segment may do it; else None."""
    kinds, sizes = runs(shape, axis)
    if kinds not in ("R", "KR") or dtype != made or (ufunc is np.add and made not in _ONES):
        return None
    return Consumed(ufunc, sizes[0] if kinds == "KR" else 1, sizes[-1], dtype, squares, after)


def _extremes(ufunc: np.ufunc, x: Any, out: Any) -> Step:
    """The call for the extremes of each row, on one thread."""
    rows, length = x.shape
    if rows == 1 or length >= 8192:
        return (ufunc.reduce, x, 1, None, out)
    return (ufunc.reduceat, x.reshape(-1), np.arange(0, x.size, length), 0, None, out)


def _rows(ufunc: np.ufunc, x: Any, out: Any, squares: bool) -> list[Step]:
    """Each row of a matrix."""
    rows, length = x.shape
    if in_lines(ufunc, x.dtype, out.dtype):
        lines = Lines(rows, length, x.dtype, squares)
        if x.size < BIG:
            return [*lines.part(x.reshape(-1), 0), *lines.end(out)]
        return [(parallel, _call, lines.pieces(x)), *lines.end(out)]
    if ufunc in (np.maximum, np.minimum) and x.size < BIG and x.dtype == out.dtype:
        return [_extremes(ufunc, x, out)]
    if rows >= FEW or length < 2 * BLOCK:
        return [_shared(ufunc, x, out, 1, x.size)]
    number, rest = divmod(length, BLOCK)
    results = np.empty((rows, number + bool(rest)), out.dtype)
    steps: list[Step] = []
    for row, result in zip(x, results, strict=True):
        blocks = row[: number * BLOCK].reshape(number, BLOCK)
        steps.append(_shared(ufunc, blocks, result[:number], 1, x.size))
        if rest:
            steps.append((ufunc.reduce, row[number * BLOCK :], 0, None, result[number:].reshape(())))
    return [*steps, (ufunc.reduce, results, 1, None, out)]


def _call(steps: list[Step]) -> None:
    for function, *arguments in steps:
        function(*arguments)


# ---- columns ---------------------------------------------------------------------------------------------------------


def _columns(ufunc: np.ufunc, x: Any, out: Any) -> list[Step]:
    """Each column of a matrix."""
    length, columns = x.shape
    fold = max(1, min(WIDTH // columns, length // (4 * HEIGHT)))
    number = length // (HEIGHT * fold)
    if number < 2:
        if x.size < BIG or columns < WIDTH:
            return [(ufunc.reduce, x, 0, None, out)]
        parts = cuts(columns, min(columns // (WIDTH // 2), -(-x.size // SHARE)), 64)
        return [(parallel, lambda part: ufunc.reduce(x[:, part], 0, None, out[part]), parts)]
    wide = np.float64 if ufunc is np.add and is_float(out.dtype) else out.dtype
    done = number * HEIGHT * fold
    more, rest = divmod(length - done, fold)
    blocks = x[:done].reshape(number, HEIGHT, fold * columns)
    results = np.empty((number + bool(more), fold * columns), out.dtype)
    sums = np.empty((fold + rest, columns), wide)
    steps: list[Step] = [_shared(ufunc, blocks, results[:number], 1, x.size)]
    if more:
        steps.append((ufunc.reduce, x[done : length - rest].reshape(more, -1), 0, None, results[number]))
    if wide != out.dtype:
        given, results = results, np.empty(results.shape, wide)
        steps.append(_put(results, given))
    steps.append((ufunc.reduce, results, 0, None, sums[:fold].reshape(-1)))
    if rest:
        steps.append(_put(sums[fold:], x[length - rest :]))
    total = np.empty(columns, wide)
    return [*steps, (ufunc.reduce, sums, 0, None, total), _put(out, total)]


def _shared(ufunc: np.ufunc, x: Any, out: Any, axis: int, size: int) -> Step:
    """The call that reduces each x[i] into out[i]: `axis` counts from x."""
    if size < BIG:
        return (ufunc.reduce, x, axis, None, out)
    count = min(len(x), -(-x.size // SHARE))
    return (parallel, lambda part: ufunc.reduce(x[part], axis, None, out[part]), cuts(len(x), count, 1))


def stepwise(function: Callable[..., Any], x: Any, out: Any) -> list[Step]:
    """The calls of ``function(x, out)``, which is elementwise: in tiles if it is a matter for workers."""
    divided = tiles([x], [out]) if x.size >= BIG and computing() is None else None
    if divided is None:
        return [(function, x, out)]
    return [(parallel, lambda tile: function(tile[0][0], tile[1][0]), divided)]
