"""Matrix products in blocks.

BLAS runs with one thread, since its bits depend on how many it has.  So a big product is cut into blocks of rows,
columns or matrices, done by several workers.  The blocks depend on shapes alone: a product is *defined* as these calls
of BLAS, on every engine.  None is much thinner than `THIN`, so each takes the path of BLAS that the whole would.
"""

from __future__ import annotations

import itertools
import operator as python_operator
from typing import Any

from ..engine.parallel import parallel
from ..ndarray.dtype import DType, is_float
from .schema import Step

BIG = 1 << 26  # multiplications from which a product is cut: about a millisecond
THIN = 256  # rows or columns
MOST = 8  # blocks
FOR_WORKERS = 1e8  # at least this cost, so that no thread that waits runs it: more than push.HELPED


def cost(multiplications: float, dtype: DType) -> float:
    """What a product costs, in the units of `schema.operator`: by BLAS, or without it (integers)."""
    work = multiplications * (0.02 * dtype.itemsize if is_float(dtype) else 5.0)
    return max(work, FOR_WORKERS) if multiplications >= 0.99 * BIG else work


def cuts(length: int, count: int, align: int) -> list[slice]:
    """`count` parts of a range, about equal, that begin at multiples of `align`."""
    bounds = [(i * length // count + align // 2) // align * align for i in range(count)]
    return [slice(*pair) for pair in itertools.pairwise((*bounds, length))]


def product(xp: Any, x: Any, y: Any, out: Any) -> Step:
    """The call that does ``out[...] = x @ y``; one in C unless `cost` made it a matter for workers."""
    if min(x.ndim, y.ndim) < 2 or out.size * x.shape[-1] < BIG:
        return (xp.matmul, x, y, out)
    if out.ndim > 2:
        count = min(MOST, len(out), out.size * x.shape[-1] * 2 // BIG)
        parts = [
            (x[part] if x.ndim == out.ndim and len(x) > 1 else x, y[part] if y.ndim == out.ndim and len(y) > 1 else y,
             out[part])
            for part in cuts(len(out), count, 1)
        ]  # fmt: skip
    else:
        rows, columns = out.shape
        count = min(MOST, max(rows, columns) // THIN, out.size * x.shape[1] * 2 // BIG)
        if count < 2:
            return (xp.matmul, x, y, out)
        if rows >= columns:
            parts = [(x[part], y, out[part]) for part in cuts(rows, count, 64)]
        else:
            parts = [(x, y[:, part], out[:, part]) for part in cuts(columns, count, 64)]
    return (parallel, lambda part: xp.matmul(*part), parts)


def seen_as(xp: Any, out: Any, shape: tuple[int, ...]) -> tuple[Any, list[Any]]:
    """(memory of this shape to fill instead of out, C calls that put it into out): none unless out is strided."""
    if out.shape == shape or out.flags.c_contiguous:
        return out.reshape(shape), []
    made = xp.empty(shape, out.dtype)
    return made, [(python_operator.setitem, out, ..., made.reshape(out.shape))]
