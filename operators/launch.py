"""What an operation runs when its time has come: a kernel on raw memory."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..engine import Operation
from ..engine.parallel import parallel
from ..ndarray.buffer import Buffer, weigh
from ..ndarray.device import HOST, RawArray
from ..ndarray.dtype import FLOAT32, NARROW, DType
from ..ndarray.shape import Shape, Strides
from ..ndarray.streams import computing, on_the_host
from .elsewhere import brought, on_host, ufunc_of
from .schema import Attributes, Operator, Step, call_into

View = tuple[Buffer, Shape, Strides, int]

#: who makes the operations of this thread or task instead (autograd/anomaly.py); `watchers`: all there are now
watch: ContextVar[Any] = ContextVar("vardag_watch", default=None)
watchers: list[Any] = []


SPLIT = 1 << 19  # elements of the result from which an elementwise operator is done in tiles
TILE = 1 << 17  # elements
HELPED = 5e7  # units of work (about 10 ms) that a waiting user thread may run
WORTH = 1 << 22  # units of work from which it is done by several workers rather than by the thread that waits


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
        return self._steps(*self._memory())

    def _memory(self) -> tuple[list[Any], list[RawArray | None]]:
        """The operands and the results, as raw arrays."""
        arrays: list[Any] = [o[0].view(o[1], o[2], o[3]) if type(o) is tuple else o for o in self.operands]
        return arrays, [None if r is None else r[0].view(r[1], r[2], r[3]) for r in self.results]

    def _steps(self, arrays: list[Any], raws: list[RawArray | None]) -> Sequence[Step]:
        """The C calls for these operands and results, which may be parts of all."""
        op = self.op
        filled: list[RawArray | None] = []
        after: list[Step] = []
        narrow = any(getattr(a, "dtype", None) in op.widened for a in arrays)
        for i, raw in enumerate(raws):
            result = self.results[i]
            if raw is None or result is None:
                filled.append(None)
                continue
            dtype = result[4]
            if i in self.through or raw.dtype != dtype or (narrow and dtype in NARROW):
                wide = FLOAT32 if narrow and dtype in NARROW else dtype
                temporary = result[0].device.empty(raw.shape, wide)
                after.append((operator.setitem, raw, ..., temporary))
                filled.append(temporary)
            else:
                filled.append(raw)
        if narrow:
            given, arrays = arrays, [a.astype(FLOAT32) if getattr(a, "dtype", None) in NARROW else a for a in arrays]
            for name, before, wide in zip(op.inputs, given, arrays, strict=False):
                if name in op.updates and wide is not before:
                    after.append((operator.setitem, before, ..., wide))
        if op.ufunc is not None:
            ufunc = op.ufunc if self.xp is np else ufunc_of(computing(), op.ufunc)
            return (call_into(ufunc, *arrays, out=filled[0]), *after)
        made = dict(zip((*op.outputs, *op.saves), filled, strict=True))
        steps = op.kernel(self.xp, *arrays, **self.attributes, **made)
        if op.atomic:
            return (*steps, *after)
        for _, target, where, source in after:
            target[where] = source
        return ()

    @property
    def divides(self) -> bool:
        """Is it done in tiles?  Then it is a matter for workers."""
        result = self.results[0]
        return (
            result is not None
            and self.xp is np
            and self.op.elementwise
            and not self.op.random
            and not self.through
            and math.prod(result[1]) >= SPLIT
        )

    def run(self) -> None:
        """Take memory and do everything: for kernels too long to be run by a thread that waits."""
        arrays, raws = self._memory()
        divided = tiles(arrays, raws) if self.divides else None
        if divided is None:
            do(self._steps(arrays, raws))
        else:
            parallel(lambda tile: do(self._steps(*tile)), divided)

    def operation(self, device: Any, words: Any) -> Operation:
        """The operation on a device with streams."""
        return device.operation(  # type: ignore[no-any-return]
            self.op.name, partial(self.there, device), *self.uses(), operands=words, nbytes=self.weigh
        )

    def uses(self) -> tuple[list[Buffer], list[Buffer]]:
        """The buffers that it reads, and those that it changes."""
        changed = {self.op.inputs.index(name) for name in self.op.updates}
        reads = [o[0] for o in self.operands if type(o) is tuple]
        writes = [r[0] for r in self.results if r is not None]
        writes += [o[0] for i, o in enumerate(self.operands) if i in changed and type(o) is tuple]
        return reads, writes

    def there(self, device: Any) -> None:
        """Enqueue everything on the device for which this thread runs kernels."""
        if on_host(self.op):
            self._by_the_host(device)
            return
        arrays, raws = self._memory()
        do(self._steps(list(map(brought, arrays)), raws))

    def _by_the_host(self, device: Any) -> None:
        """Fetch what it reads, compute on the host, and bring back what it writes (elsewhere.py)."""
        arrays, raws = self._memory()
        given = [device.fetch(a) if isinstance(a, device.raw) else a for a in arrays]
        made = [None if r is None else device.fetch(r) for r in raws]
        there = Launch(self.op, self.attributes, HOST.xp)
        there.through = self.through
        there.results = [None if r is None else (_On(HOST), *r[1:]) for r in self.results]  # type: ignore[misc]
        on_the_host(lambda: do(there._steps(given, made)))
        changed = [i for i, name in enumerate(self.op.inputs) if name in self.op.updates and i < len(arrays)]
        for raw, value in [*zip(raws, made, strict=True), *((arrays[i], given[i]) for i in changed)]:
            if raw is not None:
                raw[...] = device.xp.asarray(value)

    def weigh(self) -> tuple[int, int, list[Step]]:
        """For back-pressure: what it will allocate and keep.  Asked if it is queued, under the order lock."""
        results = [r for r in self.results if r is not None]
        temporaries = 0
        for i in self.through:
            result = self.results[i]
            if result is not None:
                temporaries += math.prod(result[1]) * result[4].itemsize
        return weigh([r[0] for r in results], [o[0] for o in self.operands if type(o) is tuple], temporaries)


class _On(NamedTuple):
    """Stands for a buffer when all that is asked is where."""

    device: Any


def do(steps: Sequence[Step]) -> None:
    """Call them."""
    for function, *arguments in steps:
        function(*arguments)


Tile = tuple[list[Any], list[RawArray | None]]


def tiles(arrays: Sequence[Any], results: Sequence[RawArray | None]) -> Iterator[Tile] | None:
    """Operands and results of an elementwise operator, in parts that can be done apart; None if there is but one.

    Contiguous ones of one shape (and single elements) in parts of `TILE` elements, others in rows.  An element's bits
    do not depend on where in a part it stands; parts are multiples of a vector of the processor all the same.
    """
    made = [r for r in results if r is not None]
    shape = made[0].shape
    given = [a for a in arrays if isinstance(a, np.ndarray)]
    if any(r.shape != shape for r in made) or any(a.ndim > len(shape) for a in given):
        return None
    if all(r.flags.c_contiguous for r in made) and all(
        a.size == 1 or (a.shape == shape and a.flags.c_contiguous) for a in given
    ):
        flat = [a.reshape(-1) if isinstance(a, np.ndarray) else a for a in arrays]
        return _cut(flat, [r if r is None else r.reshape(-1) for r in results], 0, made[0].size, TILE)
    rows = max(range(len(shape)), key=lambda i: shape[i]) if shape[0] < 8 else 0
    length = shape[rows]
    step = max(1, TILE * length // made[0].size)
    return None if step >= length else _cut(arrays, results, rows - len(shape), length, step)


def _cut(
    arrays: Sequence[Any], results: Sequence[RawArray | None], axis: int, length: int, step: int
) -> Iterator[Tile]:
    """Parts along an axis, counted from the last; operands that broadcast along it are whole in each."""

    def part(a: Any, where: slice) -> Any:
        if not isinstance(a, np.ndarray) or -axis > a.ndim or a.shape[axis] != length:
            return a
        index: Any = (..., where, *(slice(None),) * (-axis - 1)) if axis else where
        return a[index]

    for first in range(0, length, step):
        where = slice(first, first + step)
        yield [part(a, where) for a in arrays], [part(r, where) for r in results]
