"""Regions, padding and diagonals: operators that keep a part of an array, or put an array into a larger one.

Each pair (slice and strided_scatter, pad and pad_back, diag and diagonal_scatter) is each other's gradient.
"""

from __future__ import annotations

import operator as python_operator
from typing import Any

import numpy as np

from ..ndarray.shape import Shape, c_strides
from .faces import Rule
from .infer import normal_axis
from .schema import Attributes, Inferred, Meta, Metas, Sample, operator, size_of, zero

DATA = {"data": "x"}


def _first(metas: Metas) -> Meta:
    meta = metas[0]
    assert meta is not None
    return meta


def _set(out: Any, value: Any) -> Any:
    return ((python_operator.setitem, out, ..., value),)


# ---- regions ---------------------------------------------------------------------------------------------------------


def _limits(given: Any, ndim: int) -> tuple[Any, ...]:
    values = tuple(given) if isinstance(given, tuple | list) else (given,)
    if len(values) > ndim:
        raise ValueError(f"{len(values)} limits for {ndim} axes")
    return (*(None if v is None else int(v) for v in values), *(None,) * (ndim - len(values)))


def _slice(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _first(metas)
    limits = {name: _limits(attributes[name], len(shape)) for name in ("begin", "end", "step")}
    ranges = [range(*slice(*cut).indices(n)) for n, *cut in zip(shape, *limits.values(), strict=True)]
    return ((tuple(map(len, ranges)), dtype),), limits


def _cuts(begin: Any, end: Any, step: Any) -> tuple[slice, ...]:
    return tuple(map(slice, begin, end, step))


@operator(
    "slice",
    infer=_slice,
    atomic=True,
    widen=False,
    aliases=("crop",),
    samples=[
        Sample((3, 4), begin=(1,), end=(3,)),
        Sample((3, 4), begin=(None, -1), end=(2, None), step=(1, -2)),
        Sample((3, 4), begin=1, end=1),
    ],
    reference=lambda x, begin, end, step=(): x[
        tuple(slice(b, e, s) for b, e, s in zip(np.r_[begin], np.r_[end], step or (None, None), strict=False))
    ],
    nd=Rule(rename=DATA),
)
def slice_region(xp: Any, x: Any, *, begin: Any, end: Any, step: Any = (), out: Any) -> Any:
    """x[begin[0]:end[0]:step[0], begin[1]:end[1]:step[1], ...] as a copy; None is Python's default."""
    return _set(out, x[_cuts(begin, end, step)])


def _slice_gradient(F: Any, g: Any, x_shape: Shape, begin: Any, end: Any, step: Any) -> Any:
    ranges = [range(*cut.indices(n)) for n, cut in zip(x_shape, _cuts(begin, end, step), strict=True)]
    steps = c_strides(x_shape)
    return F.strided_scatter(
        g,
        base=x_shape,
        shape=tuple(map(len, ranges)),
        strides=tuple(r.step * s for r, s in zip(ranges, steps, strict=True)),
        offset=sum(r.start * s for r, s in zip(ranges, steps, strict=True)),
        indices=None,
    )


slice_region.grad(x=_slice_gradient)


def _slice_like(metas: Metas, attributes: Attributes) -> Inferred:
    (shape, dtype), (like, _) = [meta for meta in metas if meta is not None]
    axes = attributes["axes"]
    if axes in ((), [], None) and len(shape) != len(like):
        raise ValueError("as many axes, or the axes to slice, expected")
    cut = list(shape)
    for axis in axes or range(len(shape)):
        at, there = normal_axis(axis, len(shape)), normal_axis(axis, len(like))
        if like[there] > shape[at]:
            raise ValueError(f"axis {axis} is longer in shape_like")
        cut[at] = like[there]
    return ((tuple(cut), dtype),), {"axes": ()}


@operator(
    "slice_like",
    infer=_slice_like,
    atomic=True,
    widen=False,
    indices=("shape_like",),
    samples=[Sample((3, 4), (2, 3)), Sample((3, 4), (2, 2, 2), axes=(0, -1))],
    reference=lambda x, like, axes=(): x[: len(like), : like.shape[-1]],
    nd=Rule(rename=DATA),
)
def slice_like(xp: Any, x: Any, shape_like: Any, *, axes: Any = (), out: Any) -> Any:
    """The first elements of x along some axes (default: all), as many as another array has along the same axes."""
    return _set(out, x[tuple(map(slice, out.shape))])


def _slice_like_gradient(F: Any, g: Any, x_shape: Shape) -> Any:
    return F.strided_scatter(g, base=x_shape, shape=tuple(g.shape), strides=c_strides(x_shape), offset=0, indices=None)


slice_like.grad(x=_slice_like_gradient, shape_like=zero)


# ---- padding ---------------------------------------------------------------------------------------------------------


def _widths(attributes: Attributes, ndim: int) -> tuple[tuple[int, int], ...]:
    flat = tuple(int(n) for n in attributes["pad_width"])
    if attributes["mode"] not in ("constant", "edge", "reflect"):
        raise ValueError(f"mode {attributes['mode']!r}: constant, edge or reflect expected")
    if len(flat) != 2 * ndim or min(flat, default=0) < 0:
        raise ValueError(f"a pad_width of {2 * ndim} sizes, before and after each axis, expected")
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _pad(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _first(metas)
    widths = _widths(attributes, len(shape))
    most = {"constant": None, "edge": 1, "reflect": 2}[attributes["mode"]]
    for n, width in zip(shape, widths, strict=True):
        if most and max(width) > (n - 1 if most == 2 else max(width) * n):
            raise ValueError(f"an axis of length {n} is too short to pad it by {width} in mode {attributes['mode']}")
    made = tuple(n + sum(width) for n, width in zip(shape, widths, strict=True)), dtype
    return (made,), {**attributes, "pad_width": tuple(map(int, attributes["pad_width"]))}


_SMALL: dict[str, Any] = {"pad_width": (0, 0, 1, 2)}
_MODES = ("constant", "edge", "reflect")


def _pairs(pad_width: Any) -> list[tuple[int, int]]:
    return list(zip(pad_width[::2], pad_width[1::2], strict=True))


def _numpy_pad(x: Any, mode: str, pad_width: Any, constant_value: float = 0) -> Any:
    more = {"constant_values": constant_value} if mode == "constant" else {}
    return np.pad(x, _pairs(pad_width), mode, **more)  # type: ignore[call-overload]


@operator(
    "pad",
    infer=_pad,
    widen=False,
    aliases=("Pad",),
    samples=[
        *(Sample((2, 3), mode=mode, **_SMALL) for mode in _MODES),
        Sample((2, 2), mode="constant", pad_width=(1, 0, 0, 1), constant_value=7.0),
    ],
    reference=_numpy_pad,
    nd=Rule(rename=DATA),
)
def pad(xp: Any, x: Any, *, mode: str = "constant", pad_width: Any, constant_value: float = 0.0, out: Any) -> None:
    """x with elements before and after each axis: a constant, the nearest ones, or the mirror image.

    pad_width: two sizes an axis.  Unlike MXNet's, for any number of axes.
    """
    out[...] = _numpy_pad(x, mode, pad_width, constant_value)


def _reference_back(x: Any, mode: str, pad_width: Any, shape: Any) -> Any:
    n = int(np.prod(shape))
    places = _numpy_pad(np.arange(n).reshape(shape), mode, pad_width, n)
    return np.bincount(places.ravel(), x.ravel(), n + 1)[:n].reshape(shape)


def _unpadded(metas: Metas, attributes: Attributes) -> Inferred:
    (given, dtype), shape = _first(metas), attributes["shape"]
    ((padded, _), *_), known = _pad([(shape, dtype)], attributes)  # type: ignore[misc]
    if padded != given:
        raise ValueError(f"an array of shape {padded} expected")
    return ((shape, dtype),), known


@operator(
    "pad_back",
    infer=_unpadded,
    nd=False,
    reference=_reference_back,
    samples=[Sample((2, 6), mode=mode, shape=(2, 3), **_SMALL) for mode in _MODES],
)
def pad_back(xp: Any, x: Any, *, mode: str, pad_width: Any, shape: Any, out: Any) -> None:
    """Every element of x added to where pad took it from: what pad's gradient is."""
    for axis, (n, width) in enumerate(zip(shape, _pairs(pad_width), strict=True)):
        x = xp.moveaxis(x, axis, 0)
        inner = x[width[0] : width[0] + n]
        if mode != "constant" and any(width):
            inner = inner.copy()
            sources = xp.pad(xp.arange(n), [width], mode)
            for i in (*range(width[0]), *range(width[0] + n, len(x))):
                inner[sources[i]] += x[i]
        x = xp.moveaxis(inner, 0, axis)
    out[...] = x


pad.grad(
    x=lambda F, g, x_shape, mode, pad_width: F.pad_back(g, mode=mode, pad_width=pad_width, shape=x_shape),
)
pad_back.grad(x=lambda F, g, mode, pad_width: F.pad(g, mode=mode, pad_width=pad_width))


# ---- diagonals -------------------------------------------------------------------------------------------------------


def _diag(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _first(metas)
    k = int(attributes["k"])
    if len(shape) == 1:
        n = shape[0] + abs(k)
        return (((n, n), dtype),), {"k": k, "axis1": 0, "axis2": 1}
    axes = [normal_axis(attributes[name], len(shape)) for name in ("axis1", "axis2")]
    if axes[0] == axes[1]:
        raise ValueError("two different axes expected")
    n = min(shape[axes[0]] + min(k, 0), shape[axes[1]] - max(k, 0))
    if n < 0:
        raise ValueError(f"there is no diagonal {k}")
    made = (*(m for i, m in enumerate(shape) if i not in axes), n), dtype
    return (made,), {"k": k, "axis1": axes[0], "axis2": axes[1]}


_FORMS: tuple[dict[str, Any], ...] = ({"k": 0, "axis1": 0, "axis2": 1}, {"k": -1, "axis1": 1, "axis2": 2})


@operator(
    "diag",
    infer=_diag,
    cost=lambda metas, made, attributes: 4.0 * size_of(made),
    widen=False,
    samples=[*(Sample((2, 3, 3), **form) for form in _FORMS), Sample((3,)), Sample((3,), k=-1)],
    reference=lambda x, k=0, axis1=0, axis2=1: np.diag(x, k) if x.ndim == 1 else np.diagonal(x, k, axis1, axis2),
    nd=Rule(rename=DATA),
)
def diag(xp: Any, x: Any, *, k: int = 0, axis1: int = 0, axis2: int = 1, out: Any) -> None:
    """The elements whose index along axis2 is k more than along axis1, as a last axis; of one axis, that matrix.

    Shapes: (n, m, a...) -> (a..., length of the diagonal); (n,) -> (n + abs(k), n + abs(k)), zeros elsewhere.
    """
    out[...] = xp.diag(x, k) if x.ndim == 1 else x.diagonal(k, axis1, axis2)


def _reference_scatter(x: Any, shape: Any, k: int, axis1: int, axis2: int) -> Any:
    places = np.diagonal(np.arange(int(np.prod(shape))).reshape(shape), k, axis1, axis2)
    total = np.zeros(shape)
    total.flat[places.ravel()] = x.ravel()
    return total


def _scattered(metas: Metas, attributes: Attributes) -> Inferred:
    (given, dtype), shape = _first(metas), attributes["shape"]
    ((diagonal, _), *_), known = _diag([(shape, dtype)], attributes)  # type: ignore[misc]
    if diagonal != given:
        raise ValueError(f"an array of shape {diagonal} expected")
    return ((shape, dtype),), {**known, "shape": shape}


@operator(
    "diagonal_scatter", infer=_scattered, widen=False, nd=False, reference=_reference_scatter,
    samples=[Sample(shape, shape=(2, 3, 3), **form) for shape, form in zip(((3, 2), (2, 2)), _FORMS, strict=True)],
)  # fmt: skip
def diagonal_scatter(xp: Any, x: Any, *, shape: Any, k: int, axis1: int, axis2: int, out: Any) -> None:
    """Zeros of a shape with x on a diagonal: what diag's gradient is."""
    out[...] = 0
    first = xp.arange(x.shape[-1])
    xp.moveaxis(out, (axis1, axis2), (-2, -1))[..., first - min(k, 0), first + max(k, 0)] = x


def _diag_gradient(F: Any, g: Any, x_shape: Shape, k: int, axis1: int, axis2: int) -> Any:
    if len(x_shape) == 1:
        return F.diag(g, k=k)
    return F.diagonal_scatter(g, shape=x_shape, k=k, axis1=axis1, axis2=axis2)


diag.grad(x=_diag_gradient)
diagonal_scatter.grad(x=lambda F, g, k, axis1, axis2: F.diag(g, k=k, axis1=axis1, axis2=axis2))
