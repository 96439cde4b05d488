"""Basic indices: integers, slices, an ellipsis and None.  Each gives a view, in NumPy's order.

Keys with masks or arrays of indices are advanced.py's.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine import ArgumentError
from .reading import Reading, describe
from .shape import Shape, Strides, c_strides, contiguous

LONG = 8  # elements of a list that an error message shows


class ArrayIndexError(ArgumentError, IndexError):
    """An index that an array does not have.  Raised at the call."""


def refusal(array: Reading, key: Any, reason: object) -> ArrayIndexError:
    """The error of a key, which names both and looks at no values."""
    return ArrayIndexError(f"[index] {describe(array)}[{_spelled(key)}]: {reason}")


def _spelled(key: Any) -> str:
    if isinstance(key, tuple):
        return ", ".join(map(_spelled, key)) if key else "()"
    if isinstance(key, slice):
        limits = ["" if v is None else _spelled(v) for v in (key.start, key.stop, key.step)]
        return ":".join(limits if limits[2] else limits[:2])
    if isinstance(key, Reading | np.ndarray):
        return describe(key)
    if isinstance(key, list):
        return f"[{', '.join(map(_spelled, key))}]" if len(key) <= LONG else f"a list of {len(key)}"
    if key is Ellipsis:
        return "..."
    return repr(key) if isinstance(key, int | float | str | range | np.generic | None) else type(key).__name__


def spread(items: Sequence[Any], used: int, ndim: int) -> list[Any]:
    """One item for each of the axes (and one for each None): the ellipsis replaced by full slices.

    `used`: how many axes the items stand for.   Raises: IndexError with the reason alone.
    """
    dots = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can have one ellipsis ('...') only")
    if used > ndim:
        raise IndexError(f"too many indices: the array has {ndim} dimensions, {used} were indexed")
    at = dots[0] if dots else len(items)
    return [*items[:at], *[slice(None)] * (ndim - used), *items[at + 1 :]]


def whole_number(item: Any) -> int | None:
    """An item of a key as an integer, None if it is something else.  A truth value is no integer but a mask."""
    if isinstance(item, bool):
        return None
    try:
        return operator.index(item)
    except TypeError:
        return None


def basic_index(shape: Shape, strides: Strides, offset: int, key: Any) -> tuple[Shape, Strides, int] | None:
    """The geometry of ``array[key]`` for an array of this geometry; None if the key is not a basic one.

    Raises: IndexError with the reason alone.
    """
    items = key if isinstance(key, tuple) else (key,)
    used = 0
    for item in items:
        if item is None or item is Ellipsis:
            continue
        kind = type(item)
        if kind is not slice and kind is not int and whole_number(item) is None:
            return None
        used += 1
    steps = c_strides(shape) if strides is None else strides
    new_shape: list[int] = []
    new_strides: list[int] = []
    axis = 0
    for item in spread(items, used, len(shape)):
        if item is None:
            new_shape.append(1)
            new_strides.append(0)
            continue
        n, step = shape[axis], steps[axis]
        if isinstance(item, slice):
            try:
                start, stop, stride = item.indices(n)
            except (TypeError, ValueError) as error:
                raise IndexError(error) from None
            length = len(range(start, stop, stride))
            new_shape.append(length)
            new_strides.append(stride * step)
            offset += start * step if length else 0
        else:
            offset += inside(operator.index(item), n, axis) * step
        axis += 1
    shape, strides = tuple(new_shape), tuple(new_strides)
    if 0 in shape:
        offset = 0  # an empty view lies anywhere; inside the memory
    return shape, None if contiguous(shape, strides) else strides, offset


def is_whole(item: Any) -> bool:
    """Is an item of a key ``:``?"""
    return type(item) is slice and item.start is None and item.stop is None and item.step is None


def inside(i: int, n: int, axis: int) -> int:
    """An index of an axis of length n, from 0."""
    if not -n <= i < n:
        raise IndexError(f"index {i} is out of bounds for axis {axis} with size {n}")
    return i % n
