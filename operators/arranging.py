"""Operators that arrange elements anew: stack, split, tile, repeat, flip, slice, pad, diagonals.  Most are copies."""

from __future__ import annotations

import math
import operator as python_operator
from typing import Any

import numpy as np

from ..engine import ArgumentError
from ..ndarray.array import Array, describe
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


# ---- stack and split -------------------------------------------------------------------------------------------------


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
    pieces = [
        nd_face.slice_axis(data, axis=axis, begin=begin, end=end)
        for begin, end in zip(limits, limits[1:], strict=False)
    ]
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
