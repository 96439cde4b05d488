"""``x[key]`` and ``x[key] = value`` with masks and arrays of indices.  See ndarray/advanced.py for what a key means.

The indexed axes of a view, taken together, have *places*: positions counted from 0, computed at the call from indices
of the host and by an operation from those of the library.  Each operator here is linear in its values and has its
gradient among the others, so any order exists.
"""

from __future__ import annotations

import math
import operator as python_operator
from functools import partial
from typing import Any

import numpy as np

from ..engine import Error
from ..ndarray.advanced import Selection, flat, places, select
from ..ndarray.array import Array
from ..ndarray.indexing import is_whole, refusal
from ..ndarray.shape import Shape, broadcast
from .elementwise import where
from .faces import host_value
from .indexing import sum_rows
from .push import invoke
from .push import refusal as push_refusal
from .schema import Attributes, Inferred, Meta, Metas, Sample, operator, size_of
from .shaping import cast

SET = python_operator.setitem


def _known(meta: Meta | None) -> Meta:
    assert meta is not None
    return meta


# ---- places ----------------------------------------------------------------------------------------------------------


def _index_places(metas: Metas, attributes: Attributes) -> Inferred:
    shape = broadcast(*(_known(meta)[0] for meta in metas))
    return ((shape, np.dtype(np.int64)),), attributes


@operator(
    "index_places",
    infer=_index_places,
    atomic=True,
    widen=False,
    cost=8,
    nd=False,
    samples=[Sample(np.array([[0], [-1]]), np.array([1, -3]), sizes=(2, 3), axes=(0, 1))],
    reference=lambda *indices, sizes, axes: np.arange(math.prod(sizes)).reshape(sizes)[tuple(map(np.int64, indices))],
)
def index_places(xp: Any, *indices: Any, sizes: Any, axes: Any, out: Any) -> Any:
    """Positions in axes of these sizes, taken together, of indices that broadcast; `axes`: their names in a message.

    An index out of bounds is an error on the data.
    """
    return ((SET, out, ..., places(indices, sizes, axes)),)


def _mask_places(metas: Metas, attributes: Attributes) -> Inferred:
    shape, _ = _known(metas[0])
    count = attributes["count"]
    if count > math.prod(shape):
        raise ValueError(f"{count} values for a mask of shape {shape}")
    return (((count,), np.dtype(np.int64)),), attributes


@operator(
    "mask_places", infer=_mask_places, widen=False, nd=False,
    samples=[Sample(np.array([[True, False], [False, True]]), count=2), Sample(np.array([0, 2, -1]), count=2)],
    reference=lambda mask, count: np.flatnonzero(mask),
)  # fmt: skip
def mask_places(xp: Any, mask: Any, *, count: int, out: Any) -> None:
    """Where a mask is not 0; that it chooses another number of elements is an error on the data."""
    found = xp.flatnonzero(mask)
    if len(found) != count:
        raise ValueError(f"{count} values for {len(found)} elements that the mask chooses")
    out[...] = found


def _reference_final(at: Any) -> Any:
    seen = at.ravel().tolist()
    return np.array([p not in seen[i + 1 :] for i, p in enumerate(seen)], bool).reshape(at.shape)


@operator(
    "final", infer=lambda metas, attributes: (((_known(metas[0])[0], np.dtype(bool)),), attributes), widen=False,
    nd=False, samples=[Sample(np.array([[1, 0], [1, 1]]))], reference=_reference_final,
)  # fmt: skip
def final(xp: Any, at: Any, *, out: Any) -> None:
    """Which places do not come again, in C order: those whose values stay when they are assigned."""
    line = at.reshape(-1)
    order = xp.argsort(line, kind="stable")
    line = line[order]
    found = xp.ones(len(line), bool)
    found[order[:-1]] = line[1:] != line[:-1]
    out[...] = found.reshape(at.shape)


# ---- values at places ------------------------------------------------------------------------------------------------


def _rest(shape: Shape, axes: Shape) -> Shape:
    """The axes that are not indexed."""
    return tuple([n for i, n in enumerate(shape) if i not in axes])


def _chosen(shape: Shape, places: Shape, axes: Shape, at: int) -> Shape:
    """The shape of the elements at places."""
    if 0 not in places and any(shape[a] == 0 for a in axes):
        raise ValueError("an axis that is indexed has no elements")
    rest = _rest(shape, axes)
    return (*rest[:at], *places, *rest[at:])


def _take_at(metas: Metas, attributes: Attributes) -> Inferred:
    (shape, dtype), (line, _) = map(_known, metas)
    return ((_chosen(shape, line, attributes["axes"], attributes["at"]), dtype),), attributes


def _put_at(metas: Metas, attributes: Attributes) -> Inferred:
    (shape, dtype), (line, _), (given, _) = map(_known, metas)
    chosen = _chosen(shape, line, attributes["axes"], attributes["at"])
    extra = max(len(given) - len(chosen), 0)
    if any(n != 1 for n in given[:extra]) or not _broadcasts(given[extra:], chosen):
        raise ValueError(f"does not broadcast to the shape {chosen} that is assigned to")
    return ((shape, dtype),), attributes


def _add_at(metas: Metas, attributes: Attributes) -> Inferred:
    (given, dtype), (line, _) = map(_known, metas)
    shape = attributes["shape"]
    if _chosen(shape, line, attributes["axes"], attributes["at"]) != given:
        raise ValueError("as many values as places expected")
    return ((shape, dtype),), attributes


def _cells(xp: Any, x: Any, at: Any, axes: Shape) -> tuple[Any, Any]:
    """(a view of x with the indexed axes first, the index of the places in it)."""
    n, line = len(axes), at.reshape(-1)
    rows = xp.moveaxis(x, axes, range(n))
    if n == 1:
        return rows, line
    if rows.flags.c_contiguous:
        return rows.reshape(math.prod(rows.shape[:n]), *rows.shape[n:]), line
    return rows, xp.unravel_index(line, rows.shape[:n])


def _first(xp: Any, values: Any, n: int, at: int) -> Any:
    """Values with the axes of the places first, as one."""
    rest = values.shape[:at] + values.shape[at + n :]
    return xp.moveaxis(values, range(at, at + n), range(n)).reshape(math.prod(values.shape[at : at + n]), *rest)


def _merged(x: Any, axes: Shape, at: int) -> Any:
    """x with the indexed axes as one, the middle one of three, if that is a view and the places go there; else None."""
    if at != axes[0] or axes[-1] - axes[0] != len(axes) - 1 or not x.flags.c_contiguous:
        return None
    end = axes[-1] + 1
    return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:end]), math.prod(x.shape[end:]))


_GRID = np.array([[4, 0], [4, 2]])
_LINE = np.array([5, 0, 3, 5])
_FORMS: tuple[tuple[Shape, Any, dict[str, Any]], ...] = (
    ((5, 2), _GRID, {"axes": (0,), "at": 0}),
    ((2, 5), _GRID, {"axes": (1,), "at": 1}),
    ((2, 5, 2), _GRID, {"axes": (1,), "at": 0}),
    ((2, 2, 3), _LINE, {"axes": (1, 2), "at": 1}),
    ((2, 2, 3), _LINE, {"axes": (0, 2), "at": 0}),
)


def _reference_cells(shape: Shape, at: Any, axes: Shape, position: int) -> Any:
    """Which element of a C-ordered array of this shape is meant."""
    moved = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), axes, range(len(axes)))
    found = moved.reshape(math.prod(shape[a] for a in axes), *_rest(shape, axes))[at]
    return np.moveaxis(found, range(at.ndim), range(position, position + at.ndim))


def _reference_put(x: Any, places: Any, value: Any, axes: Shape, at: int) -> Any:
    x = x.copy()
    x.reshape(-1)[_reference_cells(x.shape, places, axes, at)] = value
    return x


def _reference_add(values: Any, places: Any, shape: Shape, axes: Shape, at: int) -> Any:
    total = np.zeros(shape)
    np.add.at(total.reshape(-1), _reference_cells(shape, places, axes, at), values)
    return total


@operator(
    "take_at", infer=_take_at, atomic=True, widen=False, indices=("places",), nd=False,
    cost=lambda metas, made, attributes: 8 * size_of(made),
    samples=[Sample(shape, line, **form) for shape, line, form in _FORMS],
    reference=lambda x, places, axes, at: x.reshape(-1)[_reference_cells(x.shape, places, axes, at)],
)  # fmt: skip
def take_at(xp: Any, x: Any, places: Any, *, axes: Any, at: int, out: Any) -> Any:
    """The elements of x at places in some of its axes, taken together: what ``x[key]`` reads.

    Shapes: with the indexed axes left out, those of the places inserted as axes at...   Duplicates add up in the
    gradient.
    """
    merged = _merged(x, axes, at)
    if merged is not None and out.flags.c_contiguous:
        line = places.reshape(-1)
        made = out.reshape(len(merged), len(line), merged.shape[2])
        return ((partial(merged.take, mode="clip"), line, 1, made),)
    rows, cells = _cells(xp, x, places, axes)
    found = rows[cells].reshape(*places.shape, *_rest(x.shape, axes))
    return ((SET, out, ..., xp.moveaxis(found, range(places.ndim), range(at, at + places.ndim))),)


@operator(
    "put_at", infer=_put_at, atomic=True, widen=False, changes=0, broadcasts=True, indices=("places",), nd=False,
    cost=lambda metas, made, attributes: size_of(made) + 8 * size_of(metas[1:]),
    samples=[
        *(Sample(shape, line, (), **form) for shape, line, form in _FORMS[:2]),
        Sample((5, 2), _GRID, (2, 1), axes=(0,), at=0), Sample((2, 2, 3), _LINE, (4,), axes=(1, 2), at=1),
        Sample((2, 2, 3), _LINE, (1, 4, 2), axes=(0, 2), at=0), Sample((2, 5, 2), _GRID, (2, 2, 2, 2), axes=(1,), at=0),
    ],
    reference=_reference_put,
)  # fmt: skip
def put_at(xp: Any, x: Any, places: Any, value: Any, *, axes: Any, at: int, out: Any) -> Any:
    """x with a value, which broadcasts, at places in some of its axes: what ``x[key] = value`` makes of x.

    Of a place named several times the last value stays, in C order of the places; the others get no gradient.
    """
    rows, cells = _cells(xp, out, places, axes)
    if value.ndim:
        chosen = _chosen(x.shape, places.shape, axes, at)
        value = value.reshape(value.shape[max(value.ndim - len(chosen), 0) :])
        value = _first(xp, xp.broadcast_to(value, chosen), places.ndim, at)
    step = (SET, rows, cells, value)
    return (step,) if xp.may_share_memory(x, out) else ((SET, out, ..., x), step)


@operator(
    "add_at", infer=_add_at, indices=("places",), nd=False, reference=_reference_add,
    samples=[
        Sample(_chosen(shape, line.shape, **form), line, shape=shape, **form) for shape, line, form in _FORMS
    ],
)  # fmt: skip
def add_at(xp: Any, values: Any, places: Any, *, shape: Any, axes: Any, at: int, out: Any) -> None:
    """Zeros of a shape, with each of the values added at its place: what take_at's gradient is."""
    sizes = [shape[a] for a in axes]
    total = xp.zeros((math.prod(sizes), *_rest(shape, axes)), out.dtype)
    sum_rows(xp, total, places.reshape(-1), _first(xp, values, places.ndim, at))
    out[...] = xp.moveaxis(total.reshape(*sizes, *total.shape[1:]), range(len(axes)), axes)


def _put_gradient(F: Any, g: Any, places: Any, axes: Any, at: int) -> Any:
    taken = F.take_at(g, places, axes=axes, at=at)
    after = len(taken.shape) - at - len(places.shape)
    return F.where(F.reshape(F.final(places), shape=(*places.shape, *(1,) * after)), taken, 0)


take_at.grad(x=lambda F, g, places, x_shape, axes, at: F.add_at(g, places, shape=x_shape, axes=axes, at=at))
put_at.grad(x=lambda F, g, places, axes, at: F.put_at(g, places, 0, axes=axes, at=at), value=_put_gradient)
add_at.grad(values=lambda F, g, places, axes, at: F.take_at(g, places, axes=axes, at=at))


# ---- x[key] ----------------------------------------------------------------------------------------------------------


def read(array: Array, key: Any) -> Array:
    """``array[key]`` of an advanced key: a copy."""
    selection, view = _selected(array, key, lazily=False)
    attributes = {"axes": selection.axes, "at": selection.at}
    cls = type(array)
    result: Array = invoke(take_at, [view, _places(view, selection)], attributes, cls=cls, zero_d=cls._zero_d)
    result._logical = array._logical
    return result


def write(array: Array, key: Any, value: Any) -> None:
    """``array[key] = value`` of an advanced key."""
    selection, view = _selected(array, key, lazily=True)
    dtype = view._dtype
    if not isinstance(value, Array):
        value = host_value(put_at, value, dtype)
    elif value._dtype != dtype:
        value = invoke(cast, [value], {"dtype": dtype}, cls=type(value))
    if selection.mask is not None:
        _write_masked(view, selection, value)
        return
    attributes = {"axes": selection.axes, "at": selection.at}
    invoke(put_at, [view, _places(view, selection), value], attributes, view)


def _selected(array: Array, key: Any, *, lazily: bool) -> tuple[Selection, Array]:
    try:
        selection = select(array, key, lazily=lazily)
    except IndexError as error:
        if isinstance(error, Error):
            raise  # of a mask that was waited for
        raise refusal(array, key, error) from None
    return selection, array if all(map(is_whole, selection.view)) else array[selection.view]


def _places(view: Array, selection: Selection) -> Array:
    """The places, as an array of the library."""
    given, place = selection.indices, view._place
    if not any(isinstance(i, Array) for i in given):
        return Array._young(place, np.ascontiguousarray(flat(given, selection.sizes)))
    inputs = [i if isinstance(i, Array) else Array._young(place, np.ascontiguousarray(i)) for i in given]
    made: Array = invoke(index_places, inputs, {"sizes": selection.sizes, "axes": selection.names})
    return made


def _write_masked(view: Array, selection: Selection, value: Any) -> None:
    """By a mask that is not waited for.  One value for all chosen elements goes where the mask is; several go to its
    places, and must be as many."""
    mask, axes, at = selection.mask, selection.axes, selection.at
    assert mask is not None
    rest = _rest(view._shape, axes)
    shape: Shape = value.shape
    while len(shape) > len(rest) + 1 and shape[0] == 1:
        shape = shape[1:]
    along = len(shape) - (len(rest) - at) - 1  # the axis that runs over the chosen elements
    if along >= 0 and shape[along] != 1:
        places = invoke(mask_places, [mask], {"count": shape[along]})
        invoke(put_at, [view, places, value], {"axes": axes, "at": at}, view)
        return
    if along >= 0:
        shape = (*shape[:along], *shape[along + 1 :])
    before = len(shape) - (len(rest) - axes[0])
    if before > 0:
        shape = (*shape[:before], *(1,) * len(axes), *shape[before:])
    if shape != value.shape:
        value = value._reshaped(shape) if isinstance(value, Array) else value.reshape(shape)
    condition = mask._reshaped((*mask._shape, *(1,) * (len(view._shape) - axes[-1] - 1)))
    if not _broadcasts(shape, view._shape):
        reason = ValueError(f"the value does not broadcast to the elements that the mask chooses of {view._shape}")
        raise push_refusal(put_at, [view, condition, value], reason)
    invoke(where, [condition, value, view], {}, view)


def _broadcasts(shape: Shape, to: Shape) -> bool:
    try:
        return broadcast(shape, to) == to
    except ValueError:
        return False
