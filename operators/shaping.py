"""Operators that move elements and compute nothing.  Those with an `alias` share their input's bytes until a write."""

from __future__ import annotations

import math
import operator as python_operator
from typing import Any

import numpy as np

from ..ndarray.device import HOST
from ..ndarray.dtype import as_dtype
from ..ndarray.shape import (
    Shape,
    Strides,
    as_shape,
    axes_of,
    broadcast,
    c_strides,
    contiguous,
    literal_shape,
    reshape_codes,
)
from ..ndarray.streams import computing
from .faces import Rule
from .infer import like_first, normal_axis
from .schema import Attributes, Inferred, Meta, Metas, Sample, operator

Geometry = tuple[Shape, Strides] | None
DATA = {"data": "x"}


def _first(metas: Metas) -> Meta:
    meta = metas[0]
    assert meta is not None
    return meta


def _set(out: Any, value: Any) -> Any:
    return ((python_operator.setitem, out, ..., value),)


# ---- copies and casts ------------------------------------------------------------------------------------------------


def _same_geometry(shape: Shape, strides: Strides, attributes: Attributes) -> Geometry:
    return (shape, None) if strides is None else None


@operator(
    "copy",
    infer=like_first,
    atomic=True,
    elementwise=True,
    widen=False,
    alias=_same_geometry,
    aliases=("identity", "_copy"),
    samples=[Sample((2, 3))],
    reference=lambda x: x,
    nd=Rule(rename=DATA),
)
def copy(xp: Any, x: Any, *, out: Any) -> Any:
    """A copy of x, of any shape; the bytes are shared until x or the copy is written."""
    return _set(out, x)


copy.grad(x=lambda F, g: g)


@operator(
    "compact",
    infer=like_first,
    atomic=True,
    elementwise=True,
    widen=False,
    samples=[Sample((2, 3))],
    nd=Rule(method=False),
)
def compact(xp: Any, x: Any, *, out: Any) -> Any:
    """A copy of x in C order."""
    return _set(out, x)


compact.grad(x=lambda F, g: g)


@operator(
    "copy_after",
    infer=like_first,
    atomic=True,
    widen=False,
    samples=[Sample((2, 3), (4,))],
    reference=lambda x, other: x,
    nd=False,
)
def copy_after(xp: Any, x: Any, other: Any, *, out: Any) -> Any:
    """A copy of x that is made when `other` is there: what uses it runs after what makes the other."""
    return _set(out, x)


copy_after.grad(x=lambda F, g: g)


def _cast(metas: Metas, attributes: Attributes) -> Inferred:
    dtype = as_dtype(attributes["dtype"])
    return ((_first(metas)[0], dtype),), {"dtype": dtype}


@operator(
    "cast",
    infer=_cast,
    atomic=True,
    elementwise=True,
    widen=False,
    cost=2,
    aliases=("Cast",),
    samples=[Sample((2, 3), dtype="float64")],
    reference=lambda x, dtype: x.astype(dtype),
    nd=Rule(dtype="kernel", rename=DATA),
)
def cast(xp: Any, x: Any, *, dtype: Any, out: Any) -> Any:
    """x in another dtype, by C's conversion (towards zero).  The gradient is cast back."""
    return _set(out, x)


cast.grad(x=lambda F, g: g)


def _assign(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _first(metas)
    wanted = attributes["shape"]
    extra = len(shape) - len(wanted)
    if (extra > 0 and any(n != 1 for n in shape[:extra])) or broadcast(wanted, shape[max(extra, 0) :]) != wanted:
        raise ValueError(f"does not broadcast to the shape {wanted} that is assigned to")
    return ((wanted, dtype),), attributes


@operator("assign", infer=_assign, atomic=True, elementwise=True, broadcasts=True, widen=False, nd=Rule(method=False))
def assign(xp: Any, value: Any, *, shape: Any, out: Any) -> Any:
    """What ``x[...] = value`` pushes: value broadcast to `shape` and cast."""
    extra = value.ndim - len(shape)
    return _set(out, value.reshape(value.shape[extra:]) if extra > 0 else value)


assign.grad(value=lambda F, g: g)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def _reshape(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _first(metas)
    new = literal_shape(shape, attributes["shape"])
    return ((new, dtype),), {"shape": new}


def _reshape_by_codes(inputs: list[Any], attributes: Attributes) -> Any:
    codes = attributes.get("shape")
    if codes is None:
        raise ValueError("argument 'shape' is missing")
    codes = (codes,) if isinstance(codes, int | np.integer) else tuple(int(n) for n in codes)
    attributes["shape"] = reshape_codes(inputs[0].shape, codes, reverse=attributes.pop("reverse"))
    return None


def _reshape_alias(shape: Shape, strides: Strides, attributes: Attributes) -> Geometry:
    return (attributes["shape"], None) if strides is None else None


@operator(
    "reshape",
    infer=_reshape,
    atomic=True,
    widen=False,
    alias=_reshape_alias,
    aliases=("Reshape",),
    samples=[Sample((2, 3), shape=(3, -1))],
    reference=lambda x, shape: x.reshape(shape),
    nd=Rule(rename=DATA, method=False, extra={"reverse": False}, adapt=_reshape_by_codes),
)
def reshape(xp: Any, x: Any, *, shape: Any, out: Any) -> Any:
    """The elements of x in another shape, one size of which may be -1.

    The nd face knows the codes 0, -1, -2, -3 and -4 (see NDArray.reshape).
    """
    return _set(out, x.reshape(shape))


reshape.grad(x=lambda F, g, x_shape: F.reshape(g, shape=x_shape))


def _reshaping(name: str, infer: Any, sample: Sample, reference: Any, rule: Rule, doc: str, **more: Any) -> None:
    """Declare a copy of x in the shape that `infer` gives."""

    def inferred(metas: Metas, attributes: Attributes) -> Inferred:
        shape, dtype = _first(metas)
        return ((infer(shape, attributes), dtype),), attributes

    def alias(shape: Shape, strides: Strides, attributes: Attributes) -> Geometry:
        return (infer(shape, attributes), None) if strides is None else None

    def plain(xp: Any, x: Any, *, out: Any) -> Any:
        return _set(out, x.reshape(out.shape))

    def with_axis(xp: Any, x: Any, *, axis: Any = None, out: Any) -> Any:
        return _set(out, x.reshape(out.shape))

    op = operator(
        name, infer=inferred, atomic=True, widen=False, alias=alias, samples=[sample], reference=reference, nd=rule,
        doc=doc, **more,
    )(with_axis if "axis" in sample.attributes else plain)  # fmt: skip
    op.grad(x=lambda F, g, x_shape: F.reshape(g, shape=x_shape))


def _expanded(shape: Shape, attributes: Attributes) -> Shape:
    axis = attributes["axis"]
    if not isinstance(axis, int):
        raise TypeError(f"axis {axis!r}: an int expected")
    if not -len(shape) - 1 <= axis <= len(shape):
        raise ValueError(f"axis {axis} is out of range for a new axis beside {len(shape)}")
    axis %= len(shape) + 1
    return (*shape[:axis], 1, *shape[axis:])


def _squeezed(shape: Shape, attributes: Attributes) -> Shape:
    axis = attributes["axis"]
    axes = axes_of(axis, len(shape)) if axis is not None else tuple(i for i, n in enumerate(shape) if n == 1)
    if any(shape[a] != 1 for a in axes):
        raise ValueError(f"axis {axis} is not of length 1")
    return tuple(n for i, n in enumerate(shape) if i not in axes)


_reshaping(
    "expand_dims", _expanded, Sample((2, 3), axis=1), np.expand_dims,
    Rule(rename=DATA, method=False), "x with a new axis of length 1 at `axis`.",
)  # fmt: skip
_reshaping(
    "squeeze", _squeezed, Sample((2, 1, 3), axis=1), np.squeeze,
    Rule(rename=DATA, method=False), "x without its axes of length 1, or without those in `axis`.",
)  # fmt: skip
_reshaping(
    "flatten", lambda shape, attributes: (shape[0] if shape else 1, math.prod(shape[1:])), Sample((2, 3, 4)),
    lambda x: x.reshape(len(x), -1), Rule(rename=DATA, method=False), "x as (first axis, all the others).",
    aliases=("Flatten",),
)  # fmt: skip


def _transpose(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _first(metas)
    axes = attributes["axes"]
    axes = tuple(reversed(range(len(shape)))) if not axes else tuple(normal_axis(a, len(shape)) for a in axes)
    if sorted(axes) != list(range(len(shape))):
        raise ValueError(f"axes {axes} are not a permutation of the {len(shape)} axes")
    return ((tuple(shape[a] for a in axes), dtype),), {"axes": axes}


def _transpose_alias(shape: Shape, strides: Strides, attributes: Attributes) -> Geometry:
    steps = c_strides(shape) if strides is None else strides
    axes = attributes["axes"]
    shape, steps = tuple(shape[a] for a in axes), tuple(steps[a] for a in axes)
    return shape, None if contiguous(shape, steps) else steps


@operator(
    "transpose",
    infer=_transpose,
    atomic=True,
    widen=False,
    cost=4,
    alias=_transpose_alias,
    samples=[Sample((2, 3, 4)), Sample((2, 3, 4), axes=(1, 0, 2))],
    reference=lambda x, axes=None: np.transpose(x, axes),
    nd=Rule(rename=DATA),
)
def transpose(xp: Any, x: Any, *, axes: Any = None, out: Any) -> Any:
    """x with its axes in the order `axes`; reversed by default."""
    return _set(out, x.transpose(axes))


def _transpose_gradient(F: Any, g: Any, axes: Any) -> Any:
    return F.transpose(g, axes=tuple(int(i) for i in np.argsort(axes)))


transpose.grad(x=_transpose_gradient)


def _swapaxes(metas: Metas, attributes: Attributes) -> Inferred:
    ndim = len(_first(metas)[0])
    axes = list(range(ndim))
    a, b = normal_axis(attributes["dim1"], ndim), normal_axis(attributes["dim2"], ndim)
    axes[a], axes[b] = axes[b], axes[a]
    (made, _) = _transpose(metas, {"axes": tuple(axes)})
    return made, {"dim1": a, "dim2": b}


def _swapaxes_alias(shape: Shape, strides: Strides, attributes: Attributes) -> Geometry:
    axes = list(range(len(shape)))
    a, b = attributes["dim1"], attributes["dim2"]
    axes[a], axes[b] = axes[b], axes[a]
    return _transpose_alias(shape, strides, {"axes": axes})


@operator(
    "swapaxes",
    infer=_swapaxes,
    atomic=True,
    widen=False,
    cost=4,
    alias=_swapaxes_alias,
    aliases=("SwapAxis",),
    samples=[Sample((2, 3, 4), dim1=0, dim2=-1)],
    reference=lambda x, dim1, dim2: x.swapaxes(dim1, dim2),
    nd=Rule(rename=DATA),
)
def swapaxes(xp: Any, x: Any, *, dim1: int = 0, dim2: int = 0, out: Any) -> Any:
    """x with two axes exchanged."""
    return _set(out, x.swapaxes(dim1, dim2))


swapaxes.grad(x=lambda F, g, dim1, dim2: F.swapaxes(g, dim1=dim1, dim2=dim2))


def _broadcast_to(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _first(metas)
    wanted = as_shape(attributes["shape"])
    if broadcast(shape, wanted) != wanted:
        raise ValueError(f"does not broadcast to {wanted}")
    return ((wanted, dtype),), {"shape": wanted}


def _kept_dimensions(inputs: list[Any], attributes: Attributes) -> None:
    """MXNet: 0 keeps a dimension."""
    shape, wanted = inputs[0].shape, as_shape(attributes["shape"])
    if len(wanted) == len(shape):
        attributes["shape"] = tuple(w or n for n, w in zip(shape, wanted, strict=True))


@operator(
    "broadcast_to",
    infer=_broadcast_to,
    atomic=True,
    by_rows=True,
    broadcasts=True,
    widen=False,
    samples=[Sample((3, 1), shape=(2, 3, 4))],
    reference=np.broadcast_to,
    nd=Rule(rename=DATA, adapt=_kept_dimensions),
)
def broadcast_to(xp: Any, x: Any, *, shape: Any, out: Any) -> Any:
    """x repeated along its axes of length 1, and along new ones in front, to `shape`."""
    return _set(out, x)


broadcast_to.grad(x=lambda F, g: g)


# ---- views, as the tape sees them ------------------------------------------------------------------------------------
# A view is (shape, strides, offset) in elements over a C-ordered array of the base's shape, or `indices` into it.


def _strided(metas: Metas, attributes: Attributes) -> Inferred:
    return ((attributes["shape"], _first(metas)[1]),), attributes


def _region(base: Any, shape: Any, strides: Any, offset: int) -> Any:
    """The view of a C-ordered array."""
    steps = tuple(s * base.itemsize for s in strides)
    device: Any = computing() or HOST
    return device.view(base, shape, steps, offset * base.itemsize if math.prod(shape) else 0)


_VIEWS: dict[str, Any] = {"shape": (2,), "strides": (2,), "offset": 1, "indices": None}


@operator("strided", infer=_strided, widen=False, samples=[Sample((2, 3), **_VIEWS)], nd=False)
def strided(xp: Any, x: Any, *, shape: Any, strides: Any, offset: int, indices: Any, out: Any) -> None:
    """The elements of x that a view shows."""
    x = xp.ascontiguousarray(x)
    out[...] = _region(x, shape, strides, offset) if indices is None else x.reshape(-1)[xp.asarray(indices)]


strided.grad(x=lambda F, g, x_shape, **view: F.strided_scatter(g, base=x_shape, **view))


def _scatter(metas: Metas, attributes: Attributes) -> Inferred:
    return ((attributes["base"], _first(metas)[1]),), attributes


def _fill(xp: Any, out: Any, value: Any, shape: Any, strides: Any, offset: int, indices: Any) -> None:
    if indices is None:
        _region(out, shape, strides, offset)[...] = value
    else:
        out.reshape(-1)[xp.asarray(indices)] = value


@operator("strided_scatter", infer=_scatter, widen=False, samples=[Sample((2,), base=(2, 3), **_VIEWS)], nd=False)
def strided_scatter(
    xp: Any, x: Any, *, base: Any, shape: Any, strides: Any, offset: int, indices: Any, out: Any
) -> None:
    """Zeros of the shape `base`, with x where a view lies."""
    out = _own(out)
    out[...] = 0
    _fill(xp, out, x.reshape(shape), shape, strides, offset, indices)


def _own(out: Any) -> Any:
    """Kernels of views fill C-ordered memory: fresh outputs always are."""
    assert out.flags.c_contiguous
    return out


def _strided_again(F: Any, g: Any, x_shape: Any, base: Any, **view: Any) -> Any:
    return F.reshape(F.strided(g, **view), shape=x_shape)


strided_scatter.grad(x=_strided_again)


@operator("strided_assign", infer=like_first, widen=False, samples=[Sample((2, 3), (2,), **_VIEWS)], nd=False)
def strided_assign(
    xp: Any, base: Any, value: Any, *, shape: Any, strides: Any, offset: int, indices: Any, out: Any
) -> None:
    """base with value where a view lies: what a recorded write to a part of an array means."""
    out, value = _own(out), xp.asarray(value)
    out[...] = base
    _fill(xp, out, value.reshape(shape) if value.size == math.prod(shape) else value, shape, strides, offset, indices)


strided_assign.grad(
    base=lambda F, g, **view: F.strided_assign(g, 0, **view),
    value=lambda F, g, value_shape, **view: F.reshape(F.strided(g, **view), shape=value_shape),
)
