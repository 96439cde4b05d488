"""Basic indices: integers, slices, an ellipsis and None.  Each gives a view, in NumPy's order."""

from __future__ import annotations

import operator
from typing import Any

from ..engine import ArgumentError
from .shape import Shape, Strides, c_strides, contiguous


class ArrayIndexError(ArgumentError, IndexError):
    """An index that an array does not have.  Raised at the call."""


def _spread(key: Any, ndim: int) -> list[Any]:
    """The key as a list with one item an axis (and one a None): the ellipsis replaced by full slices."""
    items = list(key) if isinstance(key, tuple) else [key]
    used = sum(item is not None and item is not Ellipsis for item in items)
    dots = sum(item is Ellipsis for item in items)
    if dots > 1:
        raise ArrayIndexError("[index] an index can have one ellipsis ('...') only")
    if used > ndim:
        raise ArrayIndexError(f"[index] too many indices: the array has {ndim} dimensions, {used} were indexed")
    at = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    items[at : at + dots] = [slice(None)] * (ndim - used)
    return items


def basic_index(shape: Shape, strides: Strides, offset: int, key: Any) -> tuple[Shape, Strides, int]:
    """The geometry of ``array[key]`` for an array of this geometry.

    Raises
    ------
    ArrayIndexError
        Out of bounds, too many indices, or a key that is not basic.
    """
    steps = c_strides(shape) if strides is None else strides
    new_shape: list[int] = []
    new_strides: list[int] = []
    axis = 0
    for item in _spread(key, len(shape)):
        if item is None:
            new_shape.append(1)
            new_strides.append(0)
            continue
        n, step = shape[axis], steps[axis]
        if isinstance(item, slice):
            try:
                start, stop, stride = item.indices(n)
            except (TypeError, ValueError) as error:
                raise ArrayIndexError(f"[index] {item}: {error}") from None
            length = len(range(start, stop, stride))
            new_shape.append(length)
            new_strides.append(stride * step)
            offset += start * step if length else 0
        else:
            try:
                i = operator.index(item if not isinstance(item, bool) else None)  # type: ignore[arg-type]
            except TypeError:
                what = repr(item) if isinstance(item, int | float | str) else type(item).__name__
                raise ArrayIndexError(f"[index] {what}: an int, a slice, '...' or None expected") from None
            if not -n <= i < n:
                raise ArrayIndexError(f"[index] index {i} is out of bounds for axis {axis} with size {n}")
            offset += (i % n) * step
        axis += 1
    shape, strides = tuple(new_shape), tuple(new_strides)
    if 0 in shape:
        offset = 0  # an empty view lies anywhere; inside the memory
    return shape, None if contiguous(shape, strides) else strides, offset
