"""What an operation runs when its time has come: a kernel on raw memory."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ndarray.buffer import Buffer, weigh
from ..ndarray.device import RawArray
from ..ndarray.dtype import FLOAT32, DType
from ..ndarray.shape import Shape, Strides
from .schema import Attributes, Operator, Step, call_into

View = tuple[Buffer, Shape, Strides, int]


class Launch:
    """What an operation runs: an operator's kernel on raw memory.  It knows buffers, never arrays or chunks.

    `operands`: a view of a buffer, or a constant.   `results`: the views to fill with the dtype the kernel writes, None
    for one that is not made; `through` marks those that need a temporary (another dtype, or memory that an operand
    shares in another order).
    """

    __slots__ = ("attributes", "op", "operands", "results", "through", "xp")

    def __init__(self, op: Operator, attributes: Attributes, xp: Any) -> None:
        self.op, self.attributes, self.xp = op, attributes, xp
        self.operands: list[View | Any] = []
        self.results: list[tuple[Buffer, Shape, Strides, int, DType] | None] = []
        self.through: set[int] = set()

    def __call__(self) -> Sequence[Step]:
        """Take memory and give the C calls to do (an atomic kernel), or do everything and give none."""
        op = self.op
        arrays: list[Any] = [o[0].view(o[1], o[2], o[3]) if type(o) is tuple else o for o in self.operands]
        filled: list[RawArray | None] = []
        after: list[Step] = []
        narrow = op.widen and any(_is_half(a) for a in arrays)
        for i, result in enumerate(self.results):
            if result is None:
                filled.append(None)
                continue
            buffer, shape, strides, offset, dtype = result
            raw = buffer.view(shape, strides, offset)
            if i in self.through or raw.dtype != dtype or (narrow and dtype == np.float16):
                temporary = buffer.device.empty(shape, FLOAT32 if narrow and dtype == np.float16 else dtype)
                after.append((operator.setitem, raw, ..., temporary))
                raw = temporary
            filled.append(raw)
        if narrow:
            given, arrays = arrays, [a.astype(np.float32) if _is_half(a) else a for a in arrays]
            for name, before, wide in zip(op.inputs, given, arrays, strict=False):
                if name in op.updates and wide is not before:
                    after.append((operator.setitem, before, ..., wide))
        if op.ufunc is not None:
            return (call_into(op.ufunc, *arrays, out=filled[0]), *after)
        made = dict(zip((*op.outputs, *op.saves), filled, strict=True))
        steps = op.kernel(self.xp, *arrays, **self.attributes, **made)
        if op.atomic:
            return (*steps, *after)
        for _, target, where, source in after:
            target[where] = source
        return ()

    def weigh(self) -> tuple[int, int, list[Step]]:
        """For back-pressure: what it will allocate and keep.  Asked if it is queued, under the order lock."""
        results = [r for r in self.results if r is not None]
        temporaries = 0
        for i in self.through:
            result = self.results[i]
            if result is not None:
                temporaries += math.prod(result[1]) * result[4].itemsize
        return weigh([r[0] for r in results], [o[0] for o in self.operands if type(o) is tuple], temporaries)

    def run(self) -> None:
        """Take memory and do everything: for atomic kernels too long to be run by a thread that waits."""
        for function, *arguments in self():
            function(*arguments)


def _is_half(array: Any) -> bool:
    return getattr(array, "dtype", None) == np.float16
