"""Choosing elements by arrays of indices.  Each gather has its scatter, each is the other's gradient: any order exists.

Indices may have any dtype (floats are cut towards zero, as MXNet's default index dtype float32 needs).  `mode` says
what an index out of range does: "clip" takes the nearest, "wrap" counts modulo the length, "raise" is an error on the
data, so it is raised by whatever waits for the result.
"""

from __future__ import annotations

import math
from functools import partial
from operator import setitem
from typing import Any

import numpy as np

from ..ndarray.dtype import FLOAT32, as_dtype
from ..ndarray.shape import Shape, as_shape, c_strides
from .faces import Rule, attribute_dtype, composed, nd_face
from .infer import normal_axis
from .products import seen_as
from .schema import Attributes, Inferred, Meta, Metas, Sample, operator, size_of, zero

DATA = {"data": "x", "a": "x"}
MODES = ("clip", "wrap", "raise")


def whole(indices: Any) -> Any:
    """Indices as NumPy takes them."""
    return indices.astype(np.intp, copy=False)


def bounded(indices: Any, n: int, mode: str) -> Any:
    """Whole indices within an axis of length n."""
    indices = whole(indices)
    if mode == "wrap":
        return indices % max(n, 1)
    if mode == "clip":
        return indices.clip(0, max(n - 1, 0))
    outside = (indices < 0) | (indices >= n)
    if outside.any():
        raise IndexError(f"index {indices[outside][0]} is out of bounds for an axis of length {n}")
    return indices


def _mode(attributes: Attributes) -> str:
    if attributes["mode"] not in MODES:
        raise ValueError(f"mode {attributes['mode']!r}: one of {', '.join(MODES)} expected")
    return attributes["mode"]  # type: ignore[no-any-return]


def _known(meta: Meta | None) -> Meta:
    assert meta is not None
    return meta


# ---- rows: take, Embedding -------------------------------------------------------------------------------------------


def _take(metas: Metas, attributes: Attributes) -> Inferred:
    (shape, dtype), (picked, _) = map(_known, metas)
    axis = normal_axis(attributes["axis"], len(shape))
    if shape[axis] == 0 and 0 not in picked:
        raise ValueError(f"axis {axis} has no elements to take")
    made = (*shape[:axis], *picked, *shape[axis + 1 :]), dtype
    return (made,), {"axis": axis, "mode": _mode(attributes)}


_ROWS = np.array([[2, 0], [2, 1]])


@operator(
    "take",
    infer=_take,
    atomic=True,
    widen=False,
    cost=lambda metas, made, attributes: 4.0 * (size_of(made) + size_of(metas[1:])),
    indices=("indices",),
    samples=[
        Sample((3, 2), _ROWS), Sample((2, 3, 2), _ROWS, axis=1), Sample((3,), np.array([5, -1, 0, 5])),
        Sample((2, 3), np.array([-1.0, 4, 4]), axis=-1, mode="wrap"), Sample((3, 2), _ROWS, mode="raise"),
    ],
    reference=lambda x, indices, axis=0, mode="clip": np.take(x, whole(indices), axis, mode=mode),
    nd=Rule(rename=DATA),
)  # fmt: skip
def take(xp: Any, x: Any, indices: Any, *, axis: int = 0, mode: str = "clip", out: Any) -> Any:
    """The slices of x along an axis that the indices name.

    Shapes: (a..., n, b...), (i...) -> (a..., i..., b...).   Duplicates add up in the gradient.   NumPy: take.
    """
    if mode == "raise":
        indices = bounded(indices, x.shape[axis], mode)
    return ((partial(x.take, mode="clip" if mode == "raise" else mode), whole(indices), axis, out),)


def _reference_rows(values: Any, indices: Any, shape: Any, axis: int) -> Any:
    total = np.zeros(shape)
    np.add.at(total, (slice(None),) * axis + (bounded(indices, shape[axis], "clip"),), values)
    return total


def _add_rows(metas: Metas, attributes: Attributes) -> Inferred:
    (values, dtype), (indices, _) = map(_known, metas)
    shape, axis = as_shape(attributes["shape"]), attributes["axis"]
    if values != (*shape[:axis], *indices, *shape[axis + 1 :]):
        raise ValueError(f"values of shape {(*shape[:axis], *indices, *shape[axis + 1 :])} expected")
    return ((shape, dtype),), attributes


@operator(
    "add_rows", infer=_add_rows, indices=("indices",), nd=False, reference=_reference_rows,
    samples=[
        Sample((2, 2, 2), _ROWS, shape=(3, 2), axis=0), Sample((2, 2, 2, 2), _ROWS, shape=(2, 3, 2), axis=1),
        Sample((4,), np.array([5, -1, 0, 5]), shape=(3,), axis=0),
    ],
)  # fmt: skip
def add_rows(xp: Any, values: Any, indices: Any, *, shape: Any, axis: int, mode: str = "clip", out: Any) -> None:
    """Zeros of a shape, with each slice of the values added where the indices say: what take's gradient is."""
    places = bounded(indices, shape[axis], mode).reshape(-1)
    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    if before * after == 1 and out.dtype.kind == "f":
        out[...] = xp.bincount(places, values.reshape(-1), out.size).reshape(out.shape)
        return
    out[...] = 0
    sum_rows(
        xp,
        xp.moveaxis(_own(out).reshape(before, shape[axis], after), 1, 0),
        places,
        xp.moveaxis(values.reshape(before, len(places), after), 1, 0),
    )


def _own(out: Any) -> Any:
    """Kernels that scatter fill C-ordered memory: fresh outputs always are."""
    assert out.flags.c_contiguous
    return out


def sum_rows(xp: Any, total: Any, places: Any, rows: Any) -> None:
    """total[place] = the sum of the rows that go there, in the order of the rows."""
    if not rows.size:
        return
    keys = (places.astype(np.int64) << 32) | xp.arange(len(places))  # all different, so that any sort is stable
    keys.sort()
    places, order = keys >> 32, keys & 0xFFFFFFFF
    first = xp.flatnonzero(xp.concatenate(([True], places[1:] != places[:-1])))
    total[places[first]] = xp.add.reduceat(rows[order], first, axis=0)


take.grad(
    x=lambda F, g, indices, x_shape, axis, mode: F.add_rows(g, indices, shape=x_shape, axis=axis, mode=mode),
    indices=zero,
)
add_rows.grad(
    values=lambda F, g, indices, axis, mode: F.take(g, indices, axis=axis, mode=mode),
    indices=zero,
)


def _embedding(metas: Metas, attributes: Attributes) -> Inferred:
    (shape, _), (table, dtype) = map(_known, metas)
    wanted = attributes["input_dim"] or table[0], attributes["output_dim"] or table[-1]
    if table != wanted:
        raise ValueError(f"a weight of shape {wanted} expected")
    return (((*shape, table[1]), dtype),), attributes


@operator(
    "Embedding",
    infer=_embedding,
    atomic=True,
    widen=False,
    cost=lambda metas, made, attributes: 4.0 * (size_of(made) + size_of(metas[:1])),
    indices=("data",),
    samples=[Sample(_ROWS, (3, 2), input_dim=3, output_dim=2)],
    reference=lambda data, weight, input_dim, output_dim: weight[whole(data)],
    nd=Rule(ignore=("dtype", "sparse_grad"), method=False),
)  # fmt: skip
def embedding(xp: Any, data: Any, weight: Any, *, input_dim: int = 0, output_dim: int = 0, out: Any) -> Any:
    """The rows of a table.  Shapes: (i...), (input_dim, output_dim) -> (i..., output_dim).

    Indices out of range take the nearest row.   MXNet: Embedding.
    """
    return ((partial(weight.take, mode="clip"), whole(data), 0, out),)


embedding.grad(
    data=zero,
    weight=lambda F, g, data, weight_shape: F.add_rows(g, data, shape=weight_shape, axis=0),
)


# ---- one element of each row: pick -----------------------------------------------------------------------------------


def _without(shape: Shape, axis: int, n: int | None = None) -> Shape:
    """A shape without an axis, or with another length there."""
    return (*shape[:axis], *(() if n is None else (n,)), *shape[axis + 1 :])


def _pick(metas: Metas, attributes: Attributes) -> Inferred:
    (shape, dtype), (picked, _) = map(_known, metas)
    if attributes["axis"] is None:
        raise ValueError("an axis expected")
    axis = normal_axis(attributes["axis"], len(shape))
    if picked not in (_without(shape, axis), _without(shape, axis, 1)):
        raise ValueError(f"an index of shape {_without(shape, axis)} expected")
    if shape[axis] == 0:
        raise ValueError(f"axis {axis} has no elements to pick")
    keepdims = bool(attributes["keepdims"])
    made = _without(shape, axis, 1 if keepdims else None), dtype
    return (made,), {"axis": axis, "keepdims": keepdims, "mode": _mode(attributes)}


def _reference_pick(x: Any, index: Any, axis: int = -1, keepdims: bool = False, mode: Any = "clip") -> Any:
    index = np.take(np.arange(x.shape[axis]), whole(index), mode=mode)
    index = index if index.ndim == x.ndim else np.expand_dims(index, axis)
    picked = np.take_along_axis(x, index, axis)
    return picked if keepdims else picked.squeeze(axis)


@operator(
    "pick",
    infer=_pick,
    widen=False,
    indices=("index",),
    samples=[
        Sample((2, 3), np.array([2.0, 0])), Sample((2, 3), np.array([1, 0, 9]), axis=0, keepdims=True),
        Sample((2, 3), np.array([[-1], [4]]), mode="wrap"), Sample((2, 3), np.array([0, 2]), mode="raise"),
    ],
    reference=_reference_pick,
    nd=Rule(rename=DATA),
    atomic=True,
    cost=lambda metas, made, attributes: 20.0 * (size_of(made) + size_of(metas[1:])),
    aliases=("choose_element_0index",),
)  # fmt: skip
def pick(xp: Any, x: Any, index: Any, *, axis: int = -1, keepdims: bool = False, mode: str = "clip", out: Any) -> Any:
    """One element of each row along an axis.

    Shapes: (a..., n, b...), (a..., b...) or (a..., 1, b...) -> (a..., b...), with keepdims (a..., 1, b...).
    MXNet: pick.
    """
    places = bounded(index, x.shape[axis], mode).reshape(_without(x.shape, axis, 1))
    return ((setitem, out, ..., xp.take_along_axis(x, places, axis).reshape(out.shape)),)


def _pick_gradient(F: Any, g: Any, index: Any, x_shape: Shape, axis: int, keepdims: bool, mode: str) -> Any:
    g = g if keepdims else F.expand_dims(g, axis=axis)
    index = index if len(index.shape) == len(x_shape) else F.expand_dims(index, axis=axis)
    return F.put_along(g, index, shape=x_shape, axis=axis, mode=mode)


pick.grad(x=_pick_gradient, index=zero)


def _along(metas: Metas, attributes: Attributes) -> Inferred:
    (given, dtype), (picked, _) = map(_known, metas)
    axis = attributes["axis"]
    whole_shape = as_shape(attributes.get("shape", given))
    if _without(whole_shape, axis) != _without(picked, axis) or (whole_shape[axis] == 0 and 0 not in picked):
        raise ValueError(f"an index of the shape {whole_shape}, but for axis {axis}, expected")
    if "shape" in attributes and given != picked:
        raise ValueError("as many values as indices expected")
    return ((whole_shape if "shape" in attributes else picked, dtype),), attributes


_ORDER = np.array([[2, 0], [1, 2]])


def _reference_put(values: Any, index: Any, shape: Any, axis: int) -> Any:
    places = np.zeros(shape)
    np.put_along_axis(places, index, values, axis)
    return places


@operator(
    "take_along", infer=_along, widen=False, indices=("index",), nd=False, samples=[Sample((2, 3), _ORDER, axis=1)],
    reference=np.take_along_axis,
)  # fmt: skip
def take_along(xp: Any, x: Any, index: Any, *, axis: int, mode: str = "clip", out: Any) -> None:
    """The elements of x that different indices name in each row.  Within a row they must differ, for the gradient."""
    out[...] = xp.take_along_axis(x, bounded(index, x.shape[axis], mode), axis)


@operator(
    "put_along", infer=_along, widen=False, indices=("index",), nd=False, reference=_reference_put,
    samples=[Sample((2, 2), _ORDER, shape=(2, 3), axis=1)],
)  # fmt: skip
def put_along(xp: Any, values: Any, index: Any, *, shape: Any, axis: int, mode: str = "clip", out: Any) -> None:
    """Zeros of a shape, with the values where the indices say in each row: what take_along's gradient is."""
    out[...] = 0
    xp.put_along_axis(out, bounded(index, shape[axis], mode), values, axis)


take_along.grad(
    x=lambda F, g, index, x_shape, axis, mode: F.put_along(g, index, shape=x_shape, axis=axis, mode=mode),
    index=zero,
)
put_along.grad(
    values=lambda F, g, index, axis, mode: F.take_along(g, index, axis=axis, mode=mode),
    index=zero,
)


@composed()
def batch_take(a: Any, indices: Any, **more: Any) -> Any:
    """a[i, indices[i]] for each row.  MXNet: batch_take."""
    return nd_face.pick(a, indices, axis=1, **more)


# ---- one hot ---------------------------------------------------------------------------------------------------------


def _one_hot(metas: Metas, attributes: Attributes) -> Inferred:
    depth, dtype = int(attributes["depth"]), as_dtype(attributes["dtype"])
    if depth < 0:
        raise ValueError("a depth from 0 expected")
    return (((*_known(metas[0])[0], depth), dtype),), {**attributes, "depth": depth, "dtype": dtype}


@operator(
    "one_hot",
    infer=_one_hot,
    widen=False,
    atomic=True,
    cost=4,
    indices=("indices",),
    samples=[Sample(np.array([[0, 2], [-1, 5]]), depth=3), Sample(np.array([1.7]), depth=2, on_value=5, off_value=-1)],
    reference=lambda indices, depth, on_value=1, off_value=0: np.where(
        whole(indices)[..., None] == np.arange(depth), on_value, off_value
    ),
    nd=Rule(dtype=attribute_dtype(FLOAT32)),
)
def one_hot(
    xp: Any, indices: Any, *, depth: int, on_value: float = 1.0, off_value: float = 0.0, dtype: Any = None, out: Any
) -> Any:
    """on_value where the index is, off_value elsewhere, along a new last axis; an index out of range has no place.

    Shapes: (i...) -> (i..., depth); float32 by default.
    """
    on, off = (np.asarray(value).astype(out.dtype) for value in (on_value, off_value))
    flat, after = seen_as(xp, out, (out.size,))
    places = whole(indices).reshape(-1)
    where = xp.arange(places.size) * depth + places
    inside = (places >= 0) & (places < depth)
    where = where if inside.all() else where[inside]
    return [(flat.fill, off), (setitem, flat, where, on), *after]


one_hot.grad(indices=zero)


# ---- indices of several axes -----------------------------------------------------------------------------------------


def _gather_nd(metas: Metas, attributes: Attributes) -> Inferred:
    (shape, dtype), (picked, _) = map(_known, metas)
    if not picked or not 0 < picked[0] <= len(shape):
        raise ValueError("indices of shape (number of axes indexed, ...) expected")
    if 0 in shape[: picked[0]] and 0 not in picked:
        raise ValueError("an axis that is indexed has no elements")
    return (((*picked[1:], *shape[picked[0] :]), dtype),), attributes


def _scatter_nd(metas: Metas, attributes: Attributes) -> Inferred:
    (given, dtype), (picked, _) = map(_known, metas)
    shape = as_shape(attributes["shape"])
    if not picked or not 0 < picked[0] <= len(shape) or given != (*picked[1:], *shape[picked[0] :]):
        raise ValueError(f"indices of shape (number of axes indexed, ...), and data for them in {shape}, expected")
    return ((shape, dtype),), {**attributes, "shape": shape}


def _places(indices: Any) -> Any:
    return tuple(whole(indices))


def _reference_scatter(x: Any, indices: Any, shape: Any) -> Any:
    total = np.zeros(shape)
    np.add.at(total, _places(indices), x)
    return total


_CELLS = np.array([[0, 1, -1], [2, 0, 0]])


@operator(
    "gather_nd",
    infer=_gather_nd,
    cost=lambda metas, made, attributes: 10.0 * (size_of(made) + size_of(metas[1:])),
    widen=False,
    indices=("indices",),
    samples=[Sample((2, 3), _CELLS), Sample((2, 3), np.array([[0, 1, 1]])), Sample((2, 3), np.array([[[0.0], [1]]]))],
    reference=lambda x, indices: x[_places(indices)],
    nd=Rule(rename=DATA),
)
def gather_nd(xp: Any, x: Any, indices: Any, *, out: Any) -> None:
    """x[indices[0], indices[1], ...].  An index out of range is an error on the data.

    Shapes: (n1, ..., nm, b...), (m, i...) -> (i..., b...).   Duplicates add up in the gradient.
    """
    out[...] = x[_places(indices)]


@operator(
    "scatter_nd",
    infer=_scatter_nd,
    widen=False,
    indices=("indices",),
    samples=[
        Sample((3,), np.array([[0, 1, 1], [2, 0, 1]]), shape=(2, 3)),
        Sample((2, 3), np.array([[1, 0]]), shape=(2, 3)),
    ],
    reference=_reference_scatter,
    nd=Rule(rename=DATA, method=False),
)
def scatter_nd(xp: Any, x: Any, indices: Any, *, shape: Any, out: Any) -> None:
    """Zeros of a shape with the elements of x at indices[0], indices[1], ...; of duplicates the last one stays.

    Shapes: (i..., b...), (m, i...) -> (n1, ..., nm, b...).
    """
    out[...] = 0
    out[_places(indices)] = x


@operator(
    "scatter_add_nd", infer=_scatter_nd, indices=("indices",), nd=False, samples=[Sample((3,), _CELLS, shape=(2, 3))],
    reference=_reference_scatter,
)  # fmt: skip
def scatter_add_nd(xp: Any, x: Any, indices: Any, *, shape: Any, out: Any) -> None:
    """As scatter_nd; duplicates add up.  What gather_nd's gradient is."""
    out[...] = 0
    m = len(indices)
    places = xp.zeros(indices.shape[1:], np.intp)
    for n, step, along in zip(shape, c_strides(shape[:m]), _places(indices), strict=False):
        places += along % max(n, 1) * step
    places = places.reshape(-1)
    after = math.prod(shape[m:])
    sum_rows(xp, _own(out).reshape(math.prod(shape[:m]), after), places, x.reshape(len(places), after))


gather_nd.grad(x=lambda F, g, indices, x_shape: F.scatter_add_nd(g, indices, shape=x_shape), indices=zero)
scatter_nd.grad(x=lambda F, g, indices: F.gather_nd(g, indices), indices=zero)
scatter_add_nd.grad(x=lambda F, g, indices: F.gather_nd(g, indices), indices=zero)
