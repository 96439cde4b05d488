"""Order along an axis: argsort, sort, topk.  Sorts are stable; of equal elements the first comes first, both ways.

`axis` of None is the flattened array.   nan counts as larger than every number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..ndarray.dtype import FLOAT16, FLOAT32, INT64, as_dtype
from ..ndarray.shape import Shape
from .faces import Rule
from .infer import normal_axis
from .schema import Attributes, Inferred, Meta, Metas, Operator, Sample, operator, registry, zero
from .windows import empty

DATA = {"data": "x"}
FLOATS = {"dtype": "float32"}  # MXNet's default dtype of indices
#: elements that are far apart, for gradients
_APART = (np.arange(12) * 5 % 12 / 4.0 - 1).reshape(3, 4)
_FORMS: tuple[dict[str, Any], ...] = ({}, {"axis": 0}, {"axis": -1, "is_ascend": False}, {"axis": None})


def _lined(shape: Shape, axis: int | None) -> Shape:
    """The shape that the sort sees."""
    return (math.prod(shape),) if axis is None else shape


def _sorted(metas: Metas, attributes: Attributes) -> tuple[Meta, Attributes]:
    (meta,) = metas
    assert meta is not None
    axis = attributes["axis"]
    shape, dtype = _lined(meta[0], axis), meta[1]
    known = {**attributes, "axis": None if axis is None else normal_axis(axis, len(shape))}
    known["is_ascend"] = bool(attributes["is_ascend"])
    if "dtype" in attributes:
        known["dtype"] = as_dtype(attributes["dtype"], INT64)
    return (shape, dtype), known


def ranks(x: Any) -> Any:
    """int32 in the order of numbers of at most 32 bits, nan the largest, 0 as -0; None for other dtypes."""
    if x.dtype.kind in "iub" and (x.dtype.itemsize < 4 or x.dtype == np.int32):
        return x.astype(np.int32)
    if x.dtype not in (FLOAT32, FLOAT16):
        return None
    wide, other = empty(np, x.shape, FLOAT32), empty(np, x.shape, np.dtype(np.int32))
    np.add(x, FLOAT32.type(0), wide)
    nans = np.isnan(wide) if wide.size and np.isnan(wide.max()) else None
    found = wide.view(np.int32)
    np.right_shift(found, 31, other)
    other &= 0x7FFFFFFF
    found ^= other  # negative numbers' bits go the other way
    if nans is not None:
        found[nans] = 0x7FFFFFFF
    return found


def _order(xp: Any, x: Any, axis: int | None, ascending: bool, k: int | None = None) -> Any:
    """The indices that sort an array, or the first k of them, and the array as the sort sees it.

    An element's rank with its index below it is a number of 64 bits, all of them different: any sort is stable then.
    """
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    first = (slice(None),) * axis + (slice(k),)
    upper = ranks(x) if xp is np else None
    if upper is not None:
        keys = empty(np, x.shape, INT64)
        (np.positive if ascending else np.invert)(upper, keys)
        keys <<= 32
        keys |= np.arange(x.shape[axis], like=x).reshape(-1, *(1,) * (x.ndim - axis - 1))
        if k is not None and 0 < k < x.shape[axis] // 2:
            keys.partition(k - 1, axis)
            keys = keys[first]
        keys.sort(axis)
        keys &= 0xFFFFFFFF
        return x, keys[first]
    if ascending:
        return x, xp.argsort(x, axis, kind="stable")[first]
    backwards = xp.argsort(xp.flip(x, axis), axis, kind="stable")
    return x, (x.shape[axis] - 1 - xp.flip(backwards, axis))[first]


def _put(F: Any, g: Any, order: Any, x_shape: Shape, axis: int | None) -> Any:
    """A cotangent of the chosen elements, at their places."""
    return F.reshape(F.put_along(g, order, shape=_lined(x_shape, axis), axis=axis or 0), shape=x_shape)


# ---- whole axes ------------------------------------------------------------------------------------------------------


def _sort(metas: Metas, attributes: Attributes) -> Inferred:
    meta, attributes = _sorted(metas, attributes)
    return (meta,), attributes


def _argsort(metas: Metas, attributes: Attributes) -> Inferred:
    (shape, _), attributes = _sorted(metas, attributes)
    return ((shape, attributes["dtype"]),), attributes


def _reference_order(x: Any, axis: int | None = -1, is_ascend: bool = True) -> Any:
    return np.argsort(x if is_ascend else -x, axis, kind="stable")


@operator(
    "argsort",
    infer=_argsort,
    widen=False,
    samples=[Sample(_APART, **form) for form in _FORMS],
    reference=_reference_order,
    nd=Rule(rename=DATA, extra=FLOATS, dtype="kernel"),
)
def argsort(xp: Any, x: Any, *, axis: int | None = -1, is_ascend: bool = True, dtype: Any = None, out: Any) -> None:
    """The indices that would sort x along an axis; int64 (in the nd face float32) by default."""
    out[...] = _order(xp, x, axis, is_ascend)[1]


@operator(
    "sort",
    infer=_sort,
    widen=False,
    samples=[Sample(_APART, **form) for form in _FORMS],
    reference=lambda x, axis=-1, is_ascend=True: np.sort(x, axis) if is_ascend else -np.sort(-x, axis),
    nd=Rule(rename=DATA),
)
def sort(xp: Any, x: Any, *, axis: int | None = -1, is_ascend: bool = True, out: Any) -> None:
    """x in order along an axis."""
    x = x.reshape(-1) if axis is None else x
    ordered = xp.sort(x, axis or 0)
    out[...] = ordered if is_ascend else xp.flip(ordered, axis or 0)


def _sort_gradient(F: Any, g: Any, x: Any, x_shape: Shape, axis: int | None, is_ascend: bool) -> Any:
    return _put(F, g, F.argsort(x, axis=axis, is_ascend=is_ascend), x_shape, axis)


argsort.grad(x=zero)
sort.grad(x=_sort_gradient)


# ---- the first k -----------------------------------------------------------------------------------------------------


def _first_k(metas: Metas, attributes: Attributes) -> tuple[Meta, Attributes]:
    (shape, dtype), attributes = _sorted(metas, attributes)
    axis = attributes["axis"] or 0
    n = shape[axis]
    k = int(attributes["k"])
    k = n if k < 1 else k
    if k > n:
        raise ValueError(f"k {k}: at most {n} expected")
    return ((*shape[:axis], k, *shape[axis + 1 :]), dtype), {**attributes, "k": k}


def _both(metas: Metas, attributes: Attributes) -> Inferred:
    meta, attributes = _first_k(metas, attributes)
    return (meta, (meta[0], attributes["dtype"])), attributes


def _values(metas: Metas, attributes: Attributes) -> Inferred:
    meta, attributes = _first_k(metas, attributes)
    return (meta,), attributes


def _indices(metas: Metas, attributes: Attributes) -> Inferred:
    (shape, _), attributes = _first_k(metas, attributes)
    return ((shape, attributes["dtype"]),), attributes


def _mask(metas: Metas, attributes: Attributes) -> Inferred:
    _, attributes = _first_k(metas, attributes)
    return (metas[0],), attributes


def _choice(inputs: list[Any], attributes: Attributes) -> tuple[Operator, list[Any], Attributes]:
    """MXNet's ret_typ: which of the operators below."""
    wanted = attributes.pop("ret_typ")
    names = {"both": "topk_both", "value": "topk_values", "indices": "topk", "mask": "topk_mask"}
    if wanted not in names:
        raise ValueError(f"ret_typ {wanted!r}: one of {', '.join(names)} expected")
    op = registry[names[wanted]]
    if "dtype" not in op.attributes:
        attributes.pop("dtype")
    return op, inputs, attributes


_TOP: tuple[dict[str, Any], ...] = (
    {},
    {"k": 2},
    {"k": 2, "axis": 0, "is_ascend": True},
    {"k": 3, "axis": None},
    {"k": 0},
)


def _reference_top(x: Any, axis: int | None = -1, k: int = 1, is_ascend: bool = False) -> Any:
    order = _reference_order(x, axis, is_ascend)
    return np.take(order, range(k or order.shape[axis or 0]), 0 if axis is None else axis)


def _reference_values(x: Any, axis: int | None = -1, **form: Any) -> Any:
    return np.take_along_axis(x, _reference_top(x, axis, **form), axis)


@operator(
    "topk",
    infer=_indices,
    widen=False,
    samples=[Sample(_APART, **form) for form in _TOP],
    reference=_reference_top,
    nd=Rule(
        rename=DATA,
        order=("x", "axis", "k", "ret_typ", "is_ascend", "dtype"),
        extra={"ret_typ": "indices", **FLOATS},
        adapt=_choice,
        dtype="kernel",
    ),
)
def topk(
    xp: Any, x: Any, *, axis: int | None = -1, k: int = 1, is_ascend: bool = False, dtype: Any = None, out: Any
) -> None:
    """The indices of the k largest (smallest, if ascending) elements along an axis, in order; of all for k < 1.

    Indices are int64 (in the nd face float32) by default.  There, `ret_typ` is "indices", "value", "both" (two arrays)
    or "mask" (1 where an element is one of the k, else 0).   MXNet: topk.
    """
    out[...] = _order(xp, x, axis, is_ascend, k)[1]


@operator(
    "topk_values", infer=_values, widen=False, samples=[Sample(_APART, **form) for form in _TOP],
    reference=_reference_values, nd=False,
)  # fmt: skip
def topk_values(xp: Any, x: Any, *, axis: int | None = -1, k: int = 1, is_ascend: bool = False, out: Any) -> None:
    """The k largest (smallest, if ascending) elements along an axis, in order."""
    x, order = _order(xp, x, axis, is_ascend, k)
    out[...] = xp.take_along_axis(x, order, axis or 0)


def _values_gradient(F: Any, g: Any, x: Any, x_shape: Shape, axis: int | None, k: int, is_ascend: bool) -> Any:
    return _put(F, g, F.topk(x, axis=axis, k=k, is_ascend=is_ascend), x_shape, axis)


def _both_gradient(F: Any, g_values: Any, order: Any, x_shape: Shape, axis: int | None) -> Any:
    return _put(F, g_values, order, x_shape, axis)


@operator(
    "topk_both", infer=_both, outputs=("values", "order"), widen=False, nd=False,
    samples=[Sample(_APART, **form) for form in _TOP],
    reference=lambda x, **form: (_reference_values(x, **form), _reference_top(x, **form)),
)  # fmt: skip
def topk_both(
    xp: Any,
    x: Any,
    *,
    axis: int | None = -1,
    k: int = 1,
    is_ascend: bool = False,
    dtype: Any = None,
    values: Any,
    order: Any,
) -> None:
    """The k largest (smallest, if ascending) elements along an axis, and their indices."""
    x, found = _order(xp, x, axis, is_ascend, k)
    values[...] = xp.take_along_axis(x, found, axis or 0)
    order[...] = found


def _reference_mask(x: Any, axis: int | None = -1, **form: Any) -> Any:
    values = _reference_values(x, axis, **form)
    if axis is None:
        return np.isin(x, values)
    return (x[..., None] == np.expand_dims(np.moveaxis(values, axis, -1), axis % x.ndim)).any(-1)


@operator(
    "topk_mask", infer=_mask, widen=False, samples=[Sample(_APART, **form) for form in _TOP], nd=False,
    reference=_reference_mask,
)  # fmt: skip
def topk_mask(xp: Any, x: Any, *, axis: int | None = -1, k: int = 1, is_ascend: bool = False, out: Any) -> None:
    """1 where an element is one of the k largest (smallest, if ascending) along an axis, else 0."""
    lined, found = _order(xp, x, axis, is_ascend, k)
    mask = xp.zeros(lined.shape, out.dtype)
    xp.put_along_axis(mask, found, 1, axis or 0)
    out[...] = mask.reshape(out.shape)


topk.grad(x=zero)
topk_mask.grad(x=zero)
topk_values.grad(x=_values_gradient)
topk_both.grad(x=_both_gradient)
