"""Operators that put elements in another order: concat, stack, split, tile, repeat, flip, shapes of other arrays."""

from __future__ import annotations

import itertools
import math
import operator as python_operator
from typing import Any

import numpy as np

from ..engine import ArgumentError
from ..ndarray.array import Array
from ..ndarray.dtype import INT64
from ..ndarray.reading import describe
from ..ndarray.shape import Shape, axes_of, c_strides
from .faces import Rule, composed, nd_face
from .infer import normal_axis, uniform
from .schema import Attributes, Inferred, Meta, Metas, Sample, operator, zero

DATA = {"data": "x"}


def _first(metas: Metas) -> Meta:
    meta = metas[0]
    assert meta is not None
    return meta


def _set(out: Any, value: Any) -> Any:
    return ((python_operator.setitem, out, ..., value),)


# ---- one array of several, several of one ----------------------------------------------------------------------------


def _concat(metas: Metas, attributes: Attributes) -> Inferred:
    if not metas:
        raise ValueError("at least one array expected")
    dtype = uniform(*metas)
    first = _first(metas)[0]
    axis = normal_axis(attributes["dim"], len(first))
    total = 0
    for meta in metas:
        shape = meta[0] if meta is not None else ()
        if len(shape) != len(first) or (*shape[:axis], *shape[axis + 1 :]) != (*first[:axis], *first[axis + 1 :]):
            raise ValueError(f"shapes differ outside of axis {axis}")
        total += shape[axis]
    return (((*first[:axis], total, *first[axis + 1 :]), dtype),), {"dim": axis}


@operator(
    "concat",
    infer=_concat,
    widen=False,
    aliases=("Concat", "concatenate_along"),
    samples=[Sample((2, 3), (2, 1), dim=1)],
    reference=lambda *data, dim: np.concatenate(data, dim),
    nd=Rule(method=False),
)
def concat(xp: Any, *data: Any, dim: int = 1, out: Any) -> None:
    """The arrays one after the other along the axis `dim`."""
    xp.concatenate(data, axis=dim, out=out)


def _concat_gradient(F: Any, g: Any, data_shapes: Any, index: int, dim: int) -> Any:
    begin = sum(shape[dim] for shape in data_shapes[:index])
    return F.slice_axis(g, axis=dim, begin=begin, end=begin + data_shapes[index][dim])


concat.grad(data=_concat_gradient)


def _slice_axis(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _first(metas)
    axis = normal_axis(attributes["axis"], len(shape))
    n = shape[axis]
    begin, end, _ = slice(attributes["begin"], attributes["end"]).indices(n)
    made = (*shape[:axis], max(end - begin, 0), *shape[axis + 1 :]), dtype
    return (made,), {"axis": axis, "begin": begin, "end": max(begin, end)}


@operator(
    "slice_axis",
    infer=_slice_axis,
    atomic=True,
    widen=False,
    samples=[Sample((2, 5), axis=1, begin=1, end=3)],
    reference=lambda x, axis, begin, end: np.take(x, range(begin, end), axis),
    nd=Rule(rename=DATA),
)
def slice_axis(xp: Any, x: Any, *, axis: int, begin: int, end: int | None, out: Any) -> Any:
    """x[begin:end] along one axis, as a copy; an end of None is the axis's."""
    return _set(out, x[(slice(None),) * axis + (slice(begin, end),)])


def _slice_axis_gradient(F: Any, g: Any, x_shape: Any, axis: int, begin: int, end: int) -> Any:
    shape = (*x_shape[:axis], end - begin, *x_shape[axis + 1 :])
    steps = c_strides(x_shape)
    return F.strided_scatter(g, base=x_shape, shape=shape, strides=steps, offset=begin * steps[axis], indices=None)


slice_axis.grad(x=_slice_axis_gradient)


def _stack(metas: Metas, attributes: Attributes) -> Inferred:
    if not metas:
        raise ValueError("at least one array expected")
    shape, dtype = _first(metas)[0], uniform(*metas)
    if any(meta is None or meta[0] != shape for meta in metas):
        raise ValueError("arrays of one shape expected")
    axis = normal_axis(attributes["axis"], len(shape) + 1)
    return (((*shape[:axis], len(metas), *shape[axis:]), dtype),), {"axis": axis}


@operator(
    "stack",
    infer=_stack,
    widen=False,
    samples=[Sample((2, 3), (2, 3), axis=axis) for axis in (0, 1, -1)],
    reference=lambda *data, axis: np.stack(data, axis),
    nd=Rule(method=False),
)
def stack(xp: Any, *data: Any, axis: int = 0, out: Any) -> None:
    """Arrays of one shape along a new axis.  Shapes: (a..., b...), ... -> (a..., number of arrays, b...)."""
    xp.stack(data, axis=axis, out=out)


def _stack_gradient(F: Any, g: Any, index: int, axis: int) -> Any:
    return F.squeeze(F.slice_axis(g, axis=axis, begin=index, end=index + 1), axis=axis)


stack.grad(data=_stack_gradient)


def _array(name: str, data: Any) -> Array:
    if not isinstance(data, Array):
        raise ArgumentError(f"[{name}] {describe(data)}: an array expected")
    return data


def _axis(name: str, data: Array, axis: int) -> int:
    try:
        return normal_axis(axis, data.ndim)
    except ValueError as error:
        raise ArgumentError(f"[{name}] {describe(data)}: {error}") from None


def _pieces(data: Array, axis: int, limits: list[int], squeeze: bool) -> list[Any]:
    pieces = [nd_face.slice_axis(data, axis=axis, begin=begin, end=end) for begin, end in itertools.pairwise(limits)]
    return [nd_face.squeeze(p, axis=axis) if p.shape[axis] == 1 else p for p in pieces] if squeeze else pieces


@composed("SliceChannel")
def split(data: Any, num_outputs: int, axis: int = 1, squeeze_axis: bool = False) -> Any:
    """Equal parts along an axis: a list of arrays, or the array if there is one; `squeeze_axis` drops an axis of 1."""
    data = _array("split", data)
    axis = _axis("split", data, axis)
    n = data.shape[axis]
    if num_outputs < 1 or n % num_outputs or (squeeze_axis and n != num_outputs):
        raise ArgumentError(f"[split] {describe(data)}: axis {axis} does not split into {num_outputs} such parts")
    pieces = _pieces(data, axis, list(range(0, n + 1, max(n // num_outputs, 1))), squeeze_axis)
    return pieces[0] if num_outputs == 1 else pieces


@composed()
def split_v2(ary: Any, indices_or_sections: Any, axis: int = 0, squeeze_axis: bool = False) -> Any:
    """Parts along an axis: so many equal ones (an int), or cut at these places (a tuple)."""
    ary = _array("split_v2", ary)
    axis = _axis("split_v2", ary, axis)
    if isinstance(indices_or_sections, int):
        return split(ary, indices_or_sections, axis, squeeze_axis)
    n = ary.shape[axis]
    limits = [0, *(slice(cut).indices(n)[1] for cut in indices_or_sections), n]
    pieces = _pieces(ary, axis, limits, squeeze_axis)
    return pieces[0] if len(pieces) == 1 else pieces


# ---- repetition and order --------------------------------------------------------------------------------------------


def _flip(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _first(metas)
    return ((shape, dtype),), {"axis": axes_of(attributes["axis"], len(shape))}


@operator(
    "flip",
    infer=_flip,
    atomic=True,
    widen=False,
    cost=2,
    aliases=("reverse",),
    samples=[Sample((2, 3), axis=axis) for axis in (0, -1, (0, 1))],
    reference=np.flip,
    nd=Rule(rename=DATA),
)
def flip(xp: Any, x: Any, *, axis: Any, out: Any) -> Any:
    """x in reverse order along an axis or several."""
    return _set(out, x[tuple(slice(None, None, -1 if i in axis else 1) for i in range(x.ndim))])


flip.grad(x=lambda F, g, axis: F.flip(g, axis=axis))


def _tile(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _first(metas)
    reps = attributes["reps"]
    reps = tuple(int(n) for n in (reps if isinstance(reps, tuple | list) else (reps,)))
    if any(n < 0 for n in reps):
        raise ValueError(f"reps {reps}: numbers from 0 expected")
    reps = (1,) * (len(shape) - len(reps)) + reps
    long = (1,) * (len(reps) - len(shape)) + shape
    return ((tuple(a * b for a, b in zip(reps, long, strict=True)), dtype),), {"reps": reps}


@operator(
    "tile",
    infer=_tile,
    widen=False,
    samples=[Sample((2, 3), reps=2), Sample((2, 3), reps=(2, 1, 3)), Sample((2, 1, 3), reps=(3, 2))],
    reference=np.tile,
    nd=Rule(rename=DATA),
)
def tile(xp: Any, x: Any, *, reps: Any, out: Any) -> None:
    """x side by side, reps[i] times along axis i; fewer reps are for the last axes, more make new axes in front."""
    out[...] = xp.tile(x, reps)


def _tile_gradient(F: Any, g: Any, x_shape: Shape, reps: Any) -> Any:
    long = (1,) * (len(reps) - len(x_shape)) + x_shape
    pairs = tuple(n for pair in zip(reps, long, strict=True) for n in pair)
    return F.reshape(F.sum(F.reshape(g, shape=pairs), axis=tuple(range(0, len(pairs), 2))), shape=x_shape)


tile.grad(x=_tile_gradient)


def _repeat(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _first(metas)
    repeats, axis = attributes["repeats"], attributes["axis"]
    if not isinstance(repeats, int | float):
        raise TypeError(f"repeats {repeats!r}: a number expected")
    repeats = int(repeats)
    if repeats < 0:
        raise ValueError(f"repeats {repeats}: a number from 0 expected")
    if axis is None:
        return (((math.prod(shape) * repeats,), dtype),), {"repeats": repeats, "axis": None}
    axis = normal_axis(axis, len(shape))
    made = (*shape[:axis], shape[axis] * repeats, *shape[axis + 1 :]), dtype
    return (made,), {"repeats": repeats, "axis": axis}


@operator(
    "repeat",
    infer=_repeat,
    widen=False,
    samples=[Sample((2, 3), repeats=2), Sample((2, 3), repeats=3, axis=0), Sample((2, 3), repeats=2, axis=-1)],
    reference=np.repeat,
    nd=Rule(rename=DATA),
)
def repeat(xp: Any, x: Any, *, repeats: int, axis: int | None = None, out: Any) -> None:
    """Every element `repeats` times in a row, along an axis or (None) of the flattened array."""
    out[...] = xp.repeat(x, repeats, axis)


def _repeat_gradient(F: Any, g: Any, x_shape: Shape, repeats: int, axis: int | None) -> Any:
    after = len(x_shape) if axis is None else axis + 1
    split = F.reshape(g, shape=(*x_shape[:after], repeats, *x_shape[after:]))
    return F.sum(split, axis=after)


repeat.grad(x=_repeat_gradient)


# ---- shapes of others ------------------------------------------------------------------------------------------------


def _listed(axes: Any) -> tuple[int, ...]:
    return tuple(axes) if isinstance(axes, tuple | list) else (axes,)


@composed("broadcast_axes")
def broadcast_axis(data: Any, axis: Any = (), size: Any = ()) -> Any:
    """data repeated along axes of length 1, to these sizes."""
    shape = list(_array("broadcast_axis", data).shape)
    for a, n in zip(_listed(axis), _listed(size), strict=True):
        at = _axis("broadcast_axis", data, a)
        if shape[at] != 1:
            raise ArgumentError(f"[broadcast_axis] {describe(data)}: axis {a} is not of length 1")
        shape[at] = n
    return nd_face.broadcast_to(data, shape=tuple(shape))


@composed()
def broadcast_like(lhs: Any, rhs: Any, lhs_axes: Any = None, rhs_axes: Any = None) -> Any:
    """lhs broadcast to the shape of rhs; or each of lhs_axes to the length of rhs along the same place in rhs_axes."""
    lhs, rhs = _array("broadcast_like", lhs), _array("broadcast_like", rhs)
    if lhs_axes is None or rhs_axes is None:
        return nd_face.broadcast_to(lhs, shape=rhs.shape)
    sizes = [rhs.shape[_axis("broadcast_like", rhs, a)] for a in _listed(rhs_axes)]
    return broadcast_axis(lhs, lhs_axes, sizes)


@composed()
def reshape_like(
    lhs: Any, rhs: Any, lhs_begin: Any = None, lhs_end: Any = None, rhs_begin: Any = None, rhs_end: Any = None
) -> Any:
    """lhs with its axes from lhs_begin to lhs_end as those of rhs from rhs_begin to rhs_end; default: all."""
    lhs, rhs = _array("reshape_like", lhs), _array("reshape_like", rhs)
    begin, end, _ = slice(lhs_begin, lhs_end).indices(lhs.ndim)
    shape = (*lhs.shape[:begin], *rhs.shape[slice(rhs_begin, rhs_end)], *lhs.shape[max(begin, end) :])
    if math.prod(shape) != lhs.size:
        raise ArgumentError(f"[reshape_like] {describe(lhs)}: its elements do not fill {shape}")
    return nd_face.reshape(lhs, shape=shape)


def _counts(name: str, value: Any, infer: Any, doc: str) -> None:
    """Declare an operator of the shape alone."""

    def inferred(metas: Metas, attributes: Attributes) -> Inferred:
        return ((infer(_first(metas)[0]), INT64),), attributes

    def kernel(xp: Any, x: Any, *, out: Any) -> Any:
        return _set(out, xp.asarray(value(x)))

    operator(
        name, infer=inferred, atomic=True, widen=False, samples=[Sample((2, 3))], reference=value,
        nd=Rule(rename=DATA, dtype="kernel"), doc=doc,
    )(kernel).grad(x=zero)  # fmt: skip


_counts("shape_array", lambda x: np.array(x.shape), lambda shape: (len(shape),), "The shape of x, int64.")
_counts("size_array", np.size, lambda shape: (), "The number of elements of x, int64.")


def _block(name: str, data: Any, block_size: int, axes: tuple[int, ...], divisors: tuple[int, ...]) -> tuple[int, ...]:
    shape = _array(name, data).shape
    if len(shape) != 4 or any(shape[a] % d for a, d in zip(axes, divisors, strict=True)):
        raise ArgumentError(f"[{name}] {describe(data)}: four axes that blocks of {block_size} fit in expected")
    return shape


@composed()
def depth_to_space(data: Any, block_size: int) -> Any:
    """Channels to blocks of pixels: (n, b*b*c, h, w) -> (n, c, h*b, w*b)."""
    b = block_size
    n, c, h, w = _block("depth_to_space", data, b, (1,), (b * b,))
    blocks = nd_face.reshape(data, shape=(n, b, b, c // (b * b), h, w))
    return nd_face.reshape(nd_face.transpose(blocks, axes=(0, 3, 4, 1, 5, 2)), shape=(n, c // (b * b), h * b, w * b))


@composed()
def space_to_depth(data: Any, block_size: int) -> Any:
    """Blocks of pixels to channels: (n, c, h*b, w*b) -> (n, b*b*c, h, w)."""
    b = block_size
    n, c, h, w = _block("space_to_depth", data, b, (2, 3), (b, b))
    blocks = nd_face.reshape(data, shape=(n, c, h // b, b, w // b, b))
    return nd_face.reshape(nd_face.transpose(blocks, axes=(0, 3, 5, 1, 2, 4)), shape=(n, b * b * c, h // b, w // b))
