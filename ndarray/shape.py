"""Shapes and geometry.  Strides and offsets count elements; strides of None mean C order."""

from __future__ import annotations

import math
from typing import Any

from ..engine import ArgumentError

Shape = tuple[int, ...]
Strides = tuple[int, ...] | None


def c_strides(shape: Shape) -> Shape:
    """Strides, in elements, of a C-ordered array."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def contiguous(shape: Shape, strides: Shape) -> bool:
    """Whether these strides walk memory in C order without gaps (axes of length 1 do not matter)."""
    step = 1
    for n, s in zip(reversed(shape), reversed(strides), strict=True):
        if n == 0:
            return True
        if n != 1 and s != step:
            return False
        step *= n
    return True


def extent(shape: Shape, strides: Strides, offset: int) -> tuple[int, int]:
    """The half-open range of elements that a view touches; (0, 0) for an empty one."""
    if strides is None:
        n = math.prod(shape)
        return (offset, offset + n) if n else (0, 0)
    low = high = offset
    for n, s in zip(shape, strides, strict=True):
        if n == 0:
            return 0, 0
        if s < 0:
            low += (n - 1) * s
        else:
            high += (n - 1) * s
    return low, high + 1


def as_shape(shape: Any, what: str = "shape") -> Shape:
    """An int or a sequence of ints as a shape; ArgumentError for anything else."""
    try:
        single = hasattr(shape, "__index__") and not getattr(shape, "ndim", 0)
        dims = (int(shape.__index__()),) if single else tuple(int(n.__index__()) for n in shape)
    except (TypeError, AttributeError):
        raise ArgumentError(f"[{what}] {shape!r}: an int or a tuple of ints expected") from None
    if any(n < 0 for n in dims):
        raise ArgumentError(f"[{what}] {dims}: sizes must not be negative")
    return dims


def literal_shape(old: Shape, new: Any) -> Shape:
    """`new` (an int or ints) as a shape of as many elements as `old` has; one size may be -1.

    >>> literal_shape((2, 3), (-1, 2)), literal_shape((0, 3), (0, 7))
    ((3, 2), (0, 7))
    """
    given = (new,) if hasattr(new, "__index__") else tuple(new)
    shape = tuple(int(n.__index__()) for n in given)
    size = math.prod(old)
    unknown = [i for i, n in enumerate(shape) if n < 0]
    known = math.prod(n for n in shape if n >= 0)
    if len(unknown) == 1 and shape[unknown[0]] == -1 and known and size % known == 0:
        return tuple(size // known if n == -1 else n for n in shape)
    if unknown or known != size:
        raise ArgumentError(f"[reshape] cannot reshape an array of shape {old} to {shape}")
    return shape


def reshape_codes(old: Shape, codes: Shape, *, reverse: bool = False) -> Shape:
    """The new shape that MXNet's reshape codes mean.

    0 copies a dimension, -1 infers one, -2 copies the rest, -3 merges the next two, -4 splits one into the two that
    follow it (one of which may be -1).  `reverse` reads both shapes from the right.

    >>> reshape_codes((2, 3, 4), (-3, 0)), reshape_codes((6, 4), (-4, 2, -1, 0))
    ((6, 4), (2, 3, 4))
    """

    def refuse(why: str) -> ArgumentError:
        return ArgumentError(f"[reshape] cannot reshape an array of shape {old} to {codes}: {why}")

    source, wanted = list(old), list(codes)
    if reverse:
        source.reverse()
        wanted.reverse()
    new: list[int] = []
    at, i, unknown = 0, 0, -1

    def take(n: int) -> list[int]:
        nonlocal at
        if at + n > len(source):
            raise refuse("it has too few dimensions")
        at += n
        return source[at - n : at]

    while i < len(wanted):
        code = wanted[i]
        if code > 0:
            new.append(code)
            at += 1
        elif code == 0:
            new += take(1)
        elif code == -1:
            if unknown >= 0:
                raise refuse("only one dimension can be inferred")
            unknown = len(new)
            new.append(1)
            at += 1
        elif code == -2:
            new += source[at:]
            at = len(source)
        elif code == -3:
            new.append(math.prod(take(2)))
        elif code == -4:
            if i + 2 >= len(wanted):
                raise refuse("-4 needs two sizes behind it")
            (whole,) = take(1)
            first, second = wanted[i + 1 : i + 3]
            i += 2
            if first == second == -1 or first == 0 or second == 0 or first < -1 or second < -1:
                raise refuse("-4 needs two sizes, at most one of them -1")
            first = whole // second if first == -1 else first
            second = whole // first if second == -1 else second
            if first * second != whole:
                raise refuse(f"{whole} does not split into {first} and {second}")
            new += [first, second]
        else:
            raise refuse(f"{code} is not a reshape code")
        i += 1
    size = math.prod(old)
    if unknown >= 0:
        rest = math.prod(new)
        if rest == 0 or size % rest:
            raise refuse(f"{size} elements are not a multiple of {rest}")
        new[unknown] = size // rest
    if reverse:
        new.reverse()
    if math.prod(new) != size:
        raise refuse(f"{size} elements against {math.prod(new)}")
    return tuple(new)


def broadcast(*shapes: Shape) -> Shape:
    """The shape that these broadcast to by NumPy's rule; ValueError if they don't."""
    ndim = max(map(len, shapes))
    out = [1] * ndim
    for shape in shapes:
        for i, n in enumerate(shape, ndim - len(shape)):
            if n != 1:
                if out[i] not in (1, n):
                    raise ValueError(f"shapes {', '.join(map(str, shapes))} do not broadcast")
                out[i] = n
    return tuple(out)


def axes_of(axis: Any, ndim: int) -> Shape:
    """`axis` (None: all, an int or a sequence) as sorted axes from 0; ValueError if one is out of range or twice."""
    if axis is None:
        return tuple(range(ndim))
    given = (axis,) if hasattr(axis, "__index__") else tuple(axis)
    found = []
    for a in given:
        if not -ndim <= a < ndim:
            raise ValueError(f"axis {a} is out of range for {ndim} dimensions")
        found.append(int(a) % ndim)
    if len(set(found)) != len(found):
        raise ValueError(f"axis {given} names a dimension twice")
    return tuple(sorted(found))
