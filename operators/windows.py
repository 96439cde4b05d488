"""Windows over data (n, channels, ...): their geometry, and what convolution makes of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ndarray.device import HOST
from .products import cuts
from .schema import Attributes

BLOCK = 1 << 21  # bytes of columns that are made before they are multiplied: about a second-level cache
Extents = tuple[int, ...]
LAYOUTS = (None, "NCW", "NCHW", "NCDHW")


def extents(what: str, value: Any, axes: int, default: int, least: int) -> Extents:
    """One number for each axis of positions, from an attribute that may be empty or a single number."""
    given = (default,) * axes if value is None or value == () else (value,) if np.ndim(value) == 0 else tuple(value)
    if len(given) != axes or any(int(n) < least for n in given):
        raise ValueError(f"{what} {value}: {axes} numbers from {least} expected")
    return tuple(int(n) for n in given)


def geometry(attributes: Attributes, axes: int) -> Attributes:
    """The attributes with stride, dilate and pad as tuples."""
    made = dict(attributes)
    for name, default, least in (("stride", 1, 1), ("dilate", 1, 1), ("pad", 0, 0)):
        made[name] = extents(name, attributes[name], axes, default, least)
    return made


def positions_of(size: Extents, kernel: Extents, stride: Extents, dilate: Extents, pad: Extents) -> Extents:
    """How many windows fit along each axis."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilate, strict=True)]
    found = tuple((n + 2 * p - r) // s + 1 for n, p, r, s in zip(size, pad, reach, stride, strict=True))
    if any(n < 1 for n in found):
        raise ValueError(f"a kernel of extent {tuple(reach)} exceeds data of {size} padded by {pad}")
    return found


def interior(pad: Extents, size: Extents) -> Any:
    """Where the data lie in padded data."""
    return (..., *(slice(p, p + n) for p, n in zip(pad, size, strict=True)))


def window(offset: Sequence[int], stride: Extents, positions: Extents) -> Any:
    """In padded data, the element at this offset of every window."""
    return (..., *(slice(o, o + s * (n - 1) + 1, s) for o, s, n in zip(offset, stride, positions, strict=True)))


class Plan:
    """The shapes of one convolution; `blocks` are the ranges of samples that are done together."""

    def __init__(self, xp: Any, data: Extents, weight: Extents, attributes: Attributes, itemsize: int) -> None:
        self.n, self.channels, *size = data
        self.xp = xp
        self.filters, _, *kernel = weight
        self.size, self.kernel = tuple(size), tuple(kernel)
        self.stride, self.dilate, self.pad = attributes["stride"], attributes["dilate"], attributes["pad"]
        self.groups = attributes["num_group"]
        self.positions = positions_of(self.size, self.kernel, self.stride, self.dilate, self.pad)
        self.padded = tuple(n + 2 * p for n, p in zip(self.size, self.pad, strict=True))
        self.rows, self.columns = math.prod(weight[1:]), math.prod(self.positions)
        total = self.n * self.groups * self.rows * self.columns * itemsize
        wanted = max(1, -(-total // BLOCK), min(4, -(-total * 4 // BLOCK)))
        self.blocks = cuts(self.n, min(wanted, self.n), 1) if self.n else []

    def factor(self, weight: Any) -> Any:
        """The weight as a matrix for each group."""
        return weight.reshape(self.groups, self.filters // self.groups, self.rows)

    def patches(self, data: Any) -> Any:
        """All windows of a block of samples: (groups, rows, columns with the samples last)."""
        xp, n = self.xp, len(data)
        inner = empty(xp, (self.channels, *self.padded, n), data.dtype)
        if any(self.pad):
            inner[...] = 0
        inner[(slice(None), *interior(self.pad, self.size)[1:])] = xp.moveaxis(data, 0, -1)
        steps = inner.strides[1:-1]
        within = [s * d for s, d in zip(steps, self.dilate, strict=True)]
        between = [s * d for s, d in zip(steps, self.stride, strict=True)]
        shape = (self.channels, *self.kernel, *self.positions, n)
        strides = (inner.strides[0], *within, *between, inner.strides[-1])
        made = empty(xp, shape, data.dtype)
        made[...] = xp.lib.stride_tricks.as_strided(inner, shape, strides)
        return made.reshape(self.groups, self.rows, self.columns * n)

    def outcomes(self, block: Any) -> Any:
        """A block of samples of the result: (groups, filters of a group, columns with the samples last)."""
        inner = empty(self.xp, (*block.shape[1:], len(block)), block.dtype)
        inner[...] = self.xp.moveaxis(block, 0, -1)
        return inner.reshape(self.groups, self.filters // self.groups, self.columns * len(block))

    def offsets(self) -> Any:
        """(index in the kernel, offset in padded data) of every element of a window."""
        for index in itertools.product(*map(range, self.kernel)):
            yield index, [i * d for i, d in zip(index, self.dilate, strict=True)]


def empty(xp: Any, shape: Extents, dtype: Any) -> Any:
    """Memory for what is on its way."""
    return HOST.empty(shape, dtype) if xp is np else xp.empty(shape, dtype)
