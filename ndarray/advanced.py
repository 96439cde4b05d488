"""Advanced indices: masks and arrays of integers, mixed with basic ones, by NumPy's rules.

A key comes to a basic one, whose view leaves the indexed axes whole, and indices of these axes.  Nothing here looks at
the values of an array of the library, but for masks: how many elements one chooses is part of a shape.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .array import Array
from .device import RawArray
from .dtype import BOOL, is_float
from .indexing import inside, spread, whole_number
from .reading import describe
from .shape import Shape, broadcast

KINDS = "an int, a slice, '...', None or an array of ints or bools"


class Selection(NamedTuple):
    """What an advanced key chooses.

    `view`: the basic key.   `axes`: those of its view that are indexed.   `at`: where in the result the axes of the
    indices begin.   `indices`: each of one axis, or of those of a mask taken together; of the host they are counted
    from 0 and within bounds.   `sizes`, `names`: of the axis of each, the name for messages.   `mask`: instead of
    indices, a mask that has not been waited for.
    """

    view: tuple[Any, ...]
    axes: Shape
    at: int
    indices: list[RawArray | Array]
    sizes: Shape
    names: Shape
    mask: Array | None


def is_mask(item: Any) -> bool:
    """Is an item of a key an array that chooses by truth values?"""
    if isinstance(item, np.ndarray):
        return bool(item.dtype == BOOL)
    return isinstance(item, Array) and (item._dtype == BOOL or item._logical)


def select(array: Array, key: Any, *, lazily: bool = False) -> Selection:
    """What a key chooses.

    Waits for masks of the library; with `lazily` not for one that is the key's only array.
    Raises: IndexError with the reason alone.
    """
    shape = array._shape
    given = [_item(item, array) for item in (key if isinstance(key, tuple) else (key,))]
    # An integer beside an array is advanced too; an ellipsis stands between two even if it stands for no axes.
    advanced = [i for i, item in enumerate(given) if isinstance(item, int | Array | np.ndarray)]
    apart = advanced[-1] - advanced[0] >= len(advanced)
    lazily = lazily and sum(isinstance(item, Array | np.ndarray) for item in given) == 1
    view: list[Any] = []
    axes: list[int] = []
    indices: list[RawArray | Array] = []
    sizes: list[int] = []
    names: list[int] = []
    mask: Array | None = None
    at: int | None = None
    axis = kept = 0  # of the array; of the view
    for item in spread(given, sum(map(_used, given)), len(shape)):
        if item is None or isinstance(item, slice):
            view.append(item)
            axis += item is not None
            kept += 1
            continue
        at = kept if at is None else at
        if isinstance(item, int):
            view.append(inside(item, shape[axis], axis))
            axis += 1
            continue
        n = _used(item)
        covered = shape[axis : axis + n]
        if is_mask(item) and item.shape != covered:
            raise IndexError(f"a mask of shape {item.shape} for axes of shape {covered}")
        if is_mask(item) and lazily and n and isinstance(item, Array):
            mask = item
        else:
            indices.append(_index(item, math.prod(covered), axis))
        view += [slice(None)] * n or [None]  # a truth value chooses or leaves a new axis of length 1
        axes += range(kept, kept + max(n, 1))
        sizes.append(math.prod(covered))
        names.append(axis)
        axis += n
        kept += max(n, 1)
    _check_shapes(indices)
    at = 0 if apart or at is None else at
    return Selection(tuple(view), tuple(axes), at, indices, tuple(sizes), tuple(names), mask)


def _used(item: Any) -> int:
    """How many axes of the array an item of a key stands for."""
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if is_mask(item) else 1


def _index(item: RawArray | Array, size: int, axis: int) -> RawArray | Array:
    """An array of a key as indices; those of the library are bounded when they are there."""
    if is_mask(item):
        return np.flatnonzero(item.asnumpy() if isinstance(item, Array) else item)
    return item if isinstance(item, Array) else _bounded(item, size, axis)


def _check_shapes(indices: list[RawArray | Array]) -> None:
    if len(indices) < 2:
        return
    try:
        broadcast(*(i.shape for i in indices))
    except ValueError:
        shapes = " and ".join(str(i.shape) for i in indices)
        raise IndexError(f"indices of shapes {shapes} do not broadcast") from None


def _item(item: Any, array: Array) -> Any:
    """An item of a key: None, an ellipsis, a slice, an int, or an array of integers or truth values."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    number = whole_number(item)
    if number is not None:
        return number
    if isinstance(item, Array):
        if is_float(item._dtype) and not (is_mask(item) or array._float_indices):
            raise IndexError(f"{describe(item)} as indices: integers or truth values expected")
        return item
    if isinstance(item, list | tuple) and _holds_arrays(item):
        raise IndexError("a list that holds arrays: indices of several axes are a tuple")
    if not isinstance(item, bool | np.bool_ | list | tuple | range | np.ndarray):
        raise IndexError(f"{KINDS} expected")
    try:
        raw = np.asarray(item)
    except (ValueError, TypeError, OverflowError):
        raise IndexError("a list of lists of different lengths") from None
    kind = raw.dtype.kind
    if kind == "b":
        return raw
    if not raw.size and not isinstance(item, np.ndarray):
        return raw.astype(np.intp)
    floats = is_float(raw.dtype) and raw.ndim > 0 and array._float_indices and bool(np.isfinite(raw).all())
    if kind not in "iu" and not floats:
        raise IndexError(f"indices of dtype {raw.dtype}: {KINDS} expected")
    return raw.astype(np.intp)


def _holds_arrays(items: Any) -> bool:
    return any(isinstance(v, Array) or (isinstance(v, list | tuple) and _holds_arrays(v)) for v in items)


def _bounded(indices: RawArray, n: int, axis: int) -> RawArray:
    """Indices of an axis of length n, counted from 0."""
    if not indices.size:
        return indices
    low = indices.min()
    if low < -n or indices.max() >= n:
        inside(int(indices[(indices < -n) | (indices >= n)][0]), n, axis)
    return np.where(indices < 0, indices + n, indices) if low < 0 else indices


def flat(indices: Any, sizes: Shape) -> Any:
    """Indices of several axes, counted from 0, as positions in these axes taken together."""
    if len(indices) == 1:
        return indices[0]
    position, step = 0, 1
    for i, n in zip(reversed(indices), reversed(sizes), strict=True):
        position = i * step + position
        step *= n
    return position


def places(indices: Any, sizes: Shape, axes: Shape) -> Any:
    """As `flat`, of any indices; IndexError for one that is out of bounds."""
    whole = (i.astype(np.intp, copy=False) for i in indices)
    return flat([_bounded(i, n, axis) for i, n, axis in zip(whole, sizes, axes, strict=True)], sizes)
