"""Inference rules that many operators share: from shapes and dtypes to shapes and dtypes, at the call.

A rule raises ValueError or TypeError with the reason alone; the push path adds the operator and its operands.
A scalar operand arrives as ((), its dtype).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ndarray.dtype import BOOL, FLOAT16, NARROW, DType, is_float
from ..ndarray.shape import axes_of, broadcast
from .schema import Attributes, Infer, Inferred, Meta, Metas

_loops: dict[tuple[Any, ...], tuple[DType, ...]] = {}


def loop_dtypes(ufunc: np.ufunc, dtypes: tuple[Any, ...]) -> tuple[DType, ...]:
    """The dtypes that a ufunc computes in and gives, by NumPy's promotion (int, float: weak Python scalars)."""
    key = (ufunc, *dtypes)
    found = _loops.get(key)
    if found is None:
        narrow = next((d for d in dtypes if d in NARROW), None)
        if narrow is not None and any(d in NARROW and d != narrow for d in dtypes):
            raise TypeError("float16 and bfloat16 have no common dtype; convert one with .astype")
        found = ufunc.resolve_dtypes((*(FLOAT16 if d in NARROW else d for d in dtypes), *(None,) * ufunc.nout))
        if narrow is not None:
            weak = all(isinstance(d, type) or d in (narrow, BOOL) for d in dtypes)  # float64 equals float, too
            if FLOAT16 not in found and weak:
                found = (narrow,) * len(found)  # no loop for halves: computed in float32, see Operator.widened
            found = tuple(narrow if d == FLOAT16 else d for d in found)
        _loops[key] = found
    return found


def same_shape(ufunc: np.ufunc) -> Infer:
    """One input; the dtype is the ufunc's."""

    def infer(metas: Metas, attributes: Attributes) -> Inferred:
        ((shape, dtype),) = metas  # type: ignore[misc]
        return ((shape, loop_dtypes(ufunc, (dtype,))[-1]),), attributes

    return infer


def broadcasting(ufunc: np.ufunc) -> Infer:
    """Inputs broadcast; the dtype is the ufunc's."""

    def infer(metas: Metas, attributes: Attributes) -> Inferred:
        (a, da), (b, db) = metas  # type: ignore[misc]
        shape = a if a == b else broadcast(a, b)
        return ((shape, loop_dtypes(ufunc, (da, db))[-1]),), attributes

    return infer


def like_first(metas: Metas, attributes: Attributes) -> Inferred:
    """The output is like the first input."""
    return (metas[0],), attributes


def floating(*metas: Meta | None) -> None:
    """TypeError unless all of these are floating-point."""
    for meta in metas:
        if meta is not None and not is_float(meta[1]):
            raise TypeError("floating-point arrays expected")


def uniform(*metas: Meta | None) -> DType:
    """The one dtype of these; TypeError if they differ."""
    given = [meta[1] for meta in metas if meta is not None]
    if any(dtype != given[0] for dtype in given):
        raise TypeError(f"dtypes differ, {' and '.join(dict.fromkeys(map(str, given)))}; convert with .astype")
    return given[0]


def normal_axis(axis: Any, ndim: int) -> int:
    """One axis from 0; ValueError if it is out of range."""
    (found,) = axes_of((axis,), ndim)
    return found


def reduced(meta: Meta, axis: Any, keepdims: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(the axes from 0, the shape without them)."""
    shape = meta[0]
    axes = axes_of(axis, len(shape))
    if keepdims:
        return axes, tuple(1 if i in axes else n for i, n in enumerate(shape))
    return axes, tuple(n for i, n in enumerate(shape) if i not in axes)


def reduction(dtype: Any = None, *, empty: bool = True) -> Infer:
    """Attributes axis (None, an int, a tuple) and keepdims; `dtype`: a function of the input's, default the same.

    `empty`: whether reducing no elements has a value.
    """

    def infer(metas: Metas, attributes: Attributes) -> Inferred:
        (meta,) = metas
        assert meta is not None
        axes, shape = reduced(meta, attributes["axis"], attributes["keepdims"])
        if not empty and any(meta[0][a] == 0 for a in axes):
            raise ValueError("no elements to reduce, and no value for that")
        out = (shape, dtype(meta[1]) if dtype else meta[1])
        return (out,), {**attributes, "axis": axes, "keepdims": bool(attributes["keepdims"])}

    return infer


def summed(dtype: DType) -> DType:
    """The dtype of sums and products: NumPy's (small integers and bool to 64 bits)."""
    return np.add.reduce(np.empty(0, dtype)).dtype if dtype.kind in "iub" else dtype


def averaged(dtype: DType) -> DType:
    """The dtype of means: float64 for integers."""
    return dtype if is_float(dtype) else np.dtype(np.float64)


def boolean(_: DType) -> DType:
    """The dtype of comparisons."""
    return BOOL
