"""Cotangents of views and of writes to parts: what happens to a region costs the region, not the whole.

``buf[t] = f(buf[t - 1])`` records a view and an assignment for every row.  By their texts each of their gradients is a
new array as large as `buf`.  Here the walk changes its cotangent in place instead, if it is its own: made by the walk
for this one place in the graph, so that nobody else will look at it.  The values are the same (but for the sign of a
zero), and so is the order in which they are added up.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ..ndarray.array import Array
from ..ndarray.buffer import Admission, Buffer, steps_operation
from ..ndarray.shape import c_strides

Region = tuple[Any, Any, int]  # shape, strides, offset: a view of a C-ordered array


def region_of(attributes: dict[str, Any]) -> Region | None:
    """The region of a strided operator; None if it is given by indices."""
    if attributes["indices"] is not None:
        return None
    shape, strides = attributes["shape"], attributes["strides"]
    return shape, c_strides(shape) if strides is None else strides, attributes["offset"]


def _push(name: str, target: Buffer, source: Buffer | None, made: Buffer | None, prepare: Any) -> None:
    size = (source or made or target).size
    reads = () if source is None else (source.variable,)
    writes = () if made is None else (made.variable,)

    def plan() -> Admission:
        nbytes = 0 if made is None else made.nbytes
        used = (target,) if source is None else (target, source)
        changed = (target,) if made is None else (target, made)
        op = steps_operation(f"backward of {name}", prepare, used, changed, size, nbytes=nbytes)
        return op, reads, writes, (target.variable,), [], [], False

    target.engine.admit(plan)


def add(cotangent: Array, region: Region, g: Array) -> None:
    """``cotangent[region] += g``, in place."""
    target, source = cotangent._chunk.buffer, g._chunk.buffer

    def prepare() -> Any:
        view = target.view(*region)
        return ((np.add, view, source.view(g._shape, g._strides, g._offset).reshape(region[0]), view),)

    _push("strided", target, source, None, prepare)


def take(cotangent: Array, region: Region, shape: Any) -> Array:
    """``cotangent[region]`` as a new array of this shape; the region is zeros afterwards."""
    target = cotangent._chunk.buffer
    out = Array._fresh(cotangent._place, shape, target.dtype)
    made = out._chunk.buffer

    def prepare() -> Any:
        view = target.view(*region)
        return (operator.setitem, made.view(region[0]), ..., view), (operator.setitem, view, ..., 0)

    _push("strided_assign", target, None, made, prepare)
    return out


def clear(cotangent: Array, region: Region) -> None:
    """``cotangent[region] = 0``, in place."""
    target = cotangent._chunk.buffer
    _push("strided_assign", target, None, None, lambda: ((operator.setitem, target.view(*region), ..., 0),))
