"""Reductions of much: in which order, and on several workers.

An array in C order with at least two blocks of `BLOCK` elements is reduced in stages, on every engine alike.  Its axes
are seen as runs that are kept (K) or reduced (R):

    R, and K R with few rows    each row in blocks; then the blocks' results, in order
    K R                         each row as NumPy does it
    R K                         each column as NumPy does it; or, if columns are few, in blocks of whole rows, then
                                the blocks' results
    R K R                       first the last run, then the first

Everything else, and other memory, is NumPy's.  From `BIG` elements on the blocks are shared by workers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..engine.parallel import parallel
from .launch import tiles
from .nn import seen_as
from .products import FOR_WORKERS, cuts
from .schema import Attributes, Metas, Step

BLOCK = 1 << 16  # elements: part of the definition of every large sum
BIG = 1 << 20  # elements from which it is a matter for workers
SHARE = 1 << 18  # elements that are worth a piece
FEW = 16  # rows that are not enough to be shared
WIDE = 1024  # columns that are


def cost(metas: Metas, made: Metas, attributes: Attributes) -> float:
    """What a reduction costs, in the units of `schema.operator`."""
    size = sum(math.prod(meta[0]) for meta in metas if meta is not None)
    return max(size, FOR_WORKERS) if size >= BIG else size


def stages(ufunc: np.ufunc, x: Any, out: Any, axis: Sequence[int], keepdims: bool) -> list[Step]:
    """The calls that reduce x into out: all in C unless `cost` made it a matter for workers."""
    whole = (ufunc.reduce, x, axis, None, out, keepdims)
    if x.size < 2 * BLOCK or not axis or not x.flags.c_contiguous:
        return [whole]
    kinds, sizes = runs(x.shape, axis)
    if kinds not in ("R", "KR", "RK", "RKR"):
        return [whole]
    kept = sizes[kinds.index("K")] if "K" in kinds else 1
    target, after = seen_as(np, out, (kept,))
    if kinds in ("R", "KR"):
        steps = _rows(ufunc, x.reshape(kept, -1), target)
    elif kinds == "RK":
        steps = _columns(ufunc, x.reshape(-1, kept), target)
    else:
        between = np.empty((sizes[0] * kept,), out.dtype)
        steps = _rows(ufunc, x.reshape(sizes[0] * kept, -1), between)
        steps += _columns(ufunc, between.reshape(-1, kept), target)
    return steps + after


def runs(shape: Sequence[int], axis: Sequence[int]) -> tuple[str, list[int]]:
    """The axes longer than 1, neighbours of one kind taken together: their kinds and lengths."""
    named = [("R" if a in axis else "K", n) for a, n in enumerate(shape) if n != 1]
    together = [(kind, math.prod(n for _, n in group)) for kind, group in itertools.groupby(named, lambda run: run[0])]
    return "".join(kind for kind, _ in together), [n for _, n in together]


def _rows(ufunc: np.ufunc, x: Any, out: Any) -> list[Step]:
    """Each row of a matrix."""
    rows, length = x.shape
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


def _columns(ufunc: np.ufunc, x: Any, out: Any) -> list[Step]:
    """Each column of a matrix."""
    length, columns = x.shape
    if columns >= WIDE:
        if x.size < BIG:
            return [(ufunc.reduce, x, 0, None, out)]
        parts = cuts(columns, min(columns // (WIDE // 2), -(-x.size // SHARE)), 64)
        return [(parallel, lambda part: ufunc.reduce(x[:, part], 0, None, out[part]), parts)]
    height = BLOCK // columns
    number, rest = divmod(length, height)
    if number < 2:
        return [(ufunc.reduce, x, 0, None, out)]
    results = np.empty((number + bool(rest), columns), out.dtype)
    blocks = x[: number * height].reshape(number, height, columns)
    steps = [_shared(ufunc, blocks, results[:number], 1, x.size)]
    if rest:
        steps.append((ufunc.reduce, x[number * height :], 0, None, results[number]))
    return [*steps, (ufunc.reduce, results, 0, None, out)]


def _shared(ufunc: np.ufunc, x: Any, out: Any, axis: int, size: int) -> Step:
    """The call that reduces each x[i] into out[i]: `axis` counts from x."""
    if size < BIG:
        return (ufunc.reduce, x, axis, None, out)
    count = min(len(x), -(-x.size // SHARE))
    return (parallel, lambda part: ufunc.reduce(x[part], axis, None, out[part]), cuts(len(x), count, 1))


def stepwise(function: Callable[..., Any], x: Any, out: Any) -> list[Step]:
    """The calls of ``function(x, out)``, which is elementwise: in tiles if it is a matter for workers."""
    divided = tiles([x], [out]) if x.size >= BIG else None
    if divided is None:
        return [(function, x, out)]
    return [(parallel, lambda tile: function(tile[0][0], tile[1][0]), divided)]
