"""Batches of sequences of different lengths: what is behind the end, at the end, and the other way round.

Data are (steps, batch, ...), or with axis=1 (batch, steps, ...).  A length counts from the first step; without
`use_sequence_length` all sequences are whole.
"""

from __future__ import annotations

import math
from operator import setitem
from typing import Any

import numpy as np

from ..ndarray.shape import as_shape
from .faces import Rule
from .schema import Attributes, Inferred, Meta, Metas, Sample, operator, size_of

RULE = Rule(method=False, mixed=True)
_LENGTHS = np.array([1, 3])


def _known(meta: Meta | None) -> Meta:
    assert meta is not None
    return meta


def _checked(metas: Metas, attributes: Attributes, axes: int = 1) -> Meta:
    shape, dtype = _known(metas[0])
    axis = attributes["axis"]
    if len(shape) < 2 or axis not in range(axes + 1):
        raise ValueError(f"data (steps, batch, ...), and axis 0{' or 1' if axes else ''}, expected")
    if attributes["use_sequence_length"]:
        lengths = None if metas[1] is None else metas[1][0]
        if lengths != (shape[1 - axis],):
            raise ValueError(f"{shape[1 - axis]} lengths, one for each sequence, expected")
    return shape, dtype


def _like(metas: Metas, attributes: Attributes) -> Inferred:
    return (_checked(metas, attributes),), attributes


def _along(lengths: Any, ndim: int, axis: int) -> Any:
    """The lengths in the shape that broadcasts against the data."""
    shape = [1] * ndim
    shape[1 - axis] = -1
    return lengths.astype(np.int64).reshape(shape)


def _inside(shape: tuple[int, ...], lengths: Any, axis: int) -> Any:
    """Which steps belong to the sequences, to be broadcast against data of this shape."""
    steps = np.arange(shape[axis], like=lengths).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return steps < _along(lengths, len(shape), axis)


def _masked(data: Any, lengths: Any = None, use_sequence_length: bool = False, value: float = 0, axis: int = 0) -> Any:
    return np.where(_inside(data.shape, lengths, axis), data, value) if use_sequence_length else data


@operator(
    "SequenceMask", infer=_like, nd=RULE, widen=False, atomic=True, indices=("sequence_length",), reference=_masked,
    samples=[
        Sample((3, 2, 2), _LENGTHS, use_sequence_length=True, value=-1.0), Sample((3, 2), None),
        Sample((2, 4), np.array([0, 4]), use_sequence_length=True, axis=1),
    ],
)  # fmt: skip
def sequence_mask(
    xp: Any,
    data: Any,
    sequence_length: Any = None,
    *,
    use_sequence_length: bool = False,
    value: float = 0.0,
    axis: int = 0,
    out: Any,
) -> Any:
    """The data, with `value` behind the end of each sequence.   MXNet: SequenceMask."""
    steps: list[Any] = [(setitem, out, ..., data)]
    if use_sequence_length:
        outside = ~_inside(data.shape[:2], sequence_length, axis)
        steps.append((setitem, out, outside, value))
    return steps


sequence_mask.grad(
    data=lambda F, g, sequence_length, use_sequence_length, axis: F.SequenceMask(
        g, sequence_length, use_sequence_length=use_sequence_length, axis=axis
    )
)


def _last(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _checked(metas, attributes)
    if not shape[attributes["axis"]]:
        raise ValueError("sequences of at least one step expected")
    return ((shape[: attributes["axis"]] + shape[attributes["axis"] + 1 :], dtype),), attributes


def _ends(x: Any, steps: int, batch: int, lengths: Any, use: bool, axis: int) -> Any:
    """The index of the last step of each sequence in the data."""
    last = np.clip(lengths.astype(np.int64) - 1, 0, steps - 1) if use else np.full(batch, steps - 1, like=x)
    each = np.arange(batch, like=x)
    return (last, each) if axis == 0 else (each, last)


def _last_of(data: Any, lengths: Any = None, use_sequence_length: bool = False, axis: int = 0) -> Any:
    return data[_ends(data, data.shape[axis], data.shape[1 - axis], lengths, use_sequence_length, axis)]


@operator(
    "SequenceLast", infer=_last, cost=lambda metas, made, attributes: 4.0 * size_of(made), nd=RULE, widen=False,
    indices=("sequence_length",), reference=_last_of,
    samples=[
        Sample((3, 2, 2), _LENGTHS, use_sequence_length=True), Sample((3, 2), None),
        Sample((2, 4), np.array([2, 4]), use_sequence_length=True, axis=1),
    ],
)  # fmt: skip
def sequence_last(
    xp: Any, data: Any, sequence_length: Any = None, *, use_sequence_length: bool = False, axis: int = 0, out: Any
) -> None:
    """The last step of each sequence: (batch, ...).  Of one of length 0 the first.   MXNet: SequenceLast."""
    out[...] = _last_of(data, sequence_length, use_sequence_length, axis)


def _placed(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _known(metas[0])
    axis = attributes["axis"]
    return (((*shape[:axis], attributes["steps"], *shape[axis:]), dtype),), attributes


def _placed_at(x: Any, lengths: Any = None, *, steps: int, use_sequence_length: bool = False, axis: int = 0) -> Any:
    made = np.zeros((*x.shape[:axis], steps, *x.shape[axis:]), x.dtype, like=x)
    made[_ends(x, steps, len(x), lengths, use_sequence_length, axis)] = x
    return made


@operator(
    "sequence_end", infer=_placed, nd=False, widen=False, indices=("sequence_length",), reference=_placed_at,
    samples=[
        Sample((2, 2), _LENGTHS, steps=3, use_sequence_length=True), Sample((2,), None, steps=3),
        Sample((2, 3), np.array([2, 4]), steps=4, use_sequence_length=True, axis=1),
    ],
)  # fmt: skip
def sequence_end(
    xp: Any, x: Any, sequence_length: Any = None, *, steps: int, use_sequence_length: bool = False, axis: int = 0,
    out: Any,
) -> None:  # fmt: skip
    """Sequences of zeros that end with x: what SequenceLast's gradient is."""
    out[...] = _placed_at(x, sequence_length, steps=steps, use_sequence_length=use_sequence_length, axis=axis)


sequence_last.grad(
    data=lambda F, g, sequence_length, data_shape, use_sequence_length, axis: F.sequence_end(
        g, sequence_length, steps=data_shape[axis], use_sequence_length=use_sequence_length, axis=axis
    )
)
sequence_end.grad(
    x=lambda F, g, sequence_length, use_sequence_length, axis: F.SequenceLast(
        g, sequence_length, use_sequence_length=use_sequence_length, axis=axis
    )
)


def _reversible(metas: Metas, attributes: Attributes) -> Inferred:
    return (_checked(metas, attributes, 0),), attributes


def _reversed(data: Any, lengths: Any = None, use_sequence_length: bool = False, axis: int = 0) -> Any:
    if not use_sequence_length:
        return data[::-1]
    steps = np.arange(len(data), like=data)[:, None]
    lengths = lengths.astype(np.int64)
    return data[np.where(steps < lengths, lengths - 1 - steps, steps), np.arange(data.shape[1], like=data)]


@operator(
    "SequenceReverse", infer=_reversible, nd=RULE, widen=False, indices=("sequence_length",), reference=_reversed,
    samples=[Sample((3, 2, 2), _LENGTHS, use_sequence_length=True), Sample((3, 2), None)],
)  # fmt: skip
def sequence_reverse(
    xp: Any, data: Any, sequence_length: Any = None, *, use_sequence_length: bool = False, axis: int = 0, out: Any
) -> None:
    """Each sequence the other way round; what is behind its end stays.  axis: 0.   MXNet: SequenceReverse."""
    out[...] = _reversed(data, sequence_length, use_sequence_length)


sequence_reverse.grad(
    data=lambda F, g, sequence_length, use_sequence_length: F.SequenceReverse(
        g, sequence_length, use_sequence_length=use_sequence_length
    )
)


# ---- positions in several axes, and in all of them taken together ----------------------------------------------------


def _positions(attributes: Attributes) -> tuple[int, ...]:
    shape = tuple(attributes["shape"])
    if not shape:
        raise ValueError("a shape with axes expected")
    return (1, *as_shape(shape[1:])) if shape and shape[0] == -1 else as_shape(shape)


def _raveled(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _known(metas[0])
    if not shape or shape[0] != len(_positions(attributes)):
        raise ValueError(f"indices ({len(_positions(attributes))}, ...), a row for each axis of shape, expected")
    return ((shape[1:], dtype),), attributes


def _strides(shape: tuple[int, ...]) -> Any:
    return np.cumprod([1, *shape[:0:-1]])[::-1]


@operator(
    "ravel_multi_index", infer=_raveled, widen=False, nd=Rule(method=False), aliases=("_ravel_multi_index",),
    samples=[Sample(np.array([[3, 6, 6], [4, 5, 1]]), shape=(7, 6))],
    reference=lambda data, shape: np.ravel_multi_index(tuple(data.astype(int)), shape),
)  # fmt: skip
def ravel_multi_index(xp: Any, data: Any, *, shape: Any, out: Any) -> None:
    """Positions in an array of this shape from its indices: (axes, ...) -> (...).   MXNet: ravel_multi_index."""
    strides = _strides(_positions({"shape": shape})).astype(data.dtype)
    out[...] = (data * xp.asarray(strides.reshape(-1, *(1,) * (data.ndim - 1)))).sum(0)


def _unraveled(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _known(metas[0])
    return (((len(_positions(attributes)), *shape), dtype),), attributes


@operator(
    "unravel_index", infer=_unraveled, widen=False, nd=Rule(method=False), aliases=("_unravel_index",),
    samples=[Sample(np.array([22, 41, 37]), shape=(7, 6)), Sample(np.array([0, 5]), shape=(-1, 3))],
    reference=lambda data, shape: np.array(np.unravel_index(data.astype(int), (9, *shape[1:]))),
)  # fmt: skip
def unravel_index(xp: Any, data: Any, *, shape: Any, out: Any) -> None:
    """The indices of positions in an array of this shape: (...) -> (axes, ...).   MXNet: unravel_index.

    The first length may be -1: it does not matter.
    """
    sizes = _positions({"shape": shape})
    narrow = bool(data.size) and max(abs(float(data.max())), abs(float(data.min())), math.prod(sizes)) < 2**31
    position = data.astype(np.int32 if narrow else np.int64)  # division by 32-bit numbers is many times as fast
    for i, step in enumerate(_strides(sizes)[:-1].tolist()):
        along = position // step
        out[i] = along
        along *= step
        position -= along
    out[-1] = position
