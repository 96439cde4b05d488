"""``x += y`` and updates of small ready arrays: the kernel runs within its push, without the push path's general
questions.

Anything else is left to the push path: a recorded scope, a part of a chunk, bytes that somebody holds, pending readers
or writers, an operand of another dtype or shape.  Those answers are found under the order lock, in the plan, and the
kernel runs under it too: so they still hold when it writes.                      [tests/operators/test_tiny.py]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..engine import DONE, OK, Kind, Operation
from ..ndarray.array import Array
from ..ndarray.buffer import Admission, conflicts
from ..ndarray.line import READ_ONLY, scope
from .push import operands
from .quick import Ufunc, number
from .schema import Attributes, Operator
from .tiny import INLINE, settled

ATOMIC = Kind.ATOMIC
NOTHING: Admission = (None, (), (), (), [], [], False)


def update(op: Operator, attributes: Attributes, inputs: Sequence[Any], out: Array, changed: Sequence[int]) -> bool:
    """An elementwise operator of one output, which goes into `out`, one of the inputs.  False: it is to be pushed.

    `inputs`: arrays of one place, and constants.   `changed`: positions of `out` and of the states it updates.
    """
    place = out._place
    xp = place.device.xp
    admitted: list[Operation] = []

    def plan() -> Admission:
        admitted.clear()
        raws: list[Any] = []
        reads: list[Any] = []
        updates: list[Any] = []
        steps: list[Any] = []
        chunks: set[Any] = set()
        target: Any = None
        if place.queued or not place.engine.calm():
            return NOTHING
        for i, x in enumerate(inputs):
            if not isinstance(x, Array):
                raws.append(x)
                continue
            seen = settled(x)
            if seen is None or seen[2] is None or x._chunk in chunks:
                return NOTHING
            raw, chunk, buffer, _ = seen
            chunks.add(chunk)
            raws.append(raw)
            if i not in changed:
                reads.append(buffer.variable)
                continue
            if (
                raw is not buffer.raw
                or buffer.sealed
                or x._line is READ_ONLY
                or not all(p.state is DONE for p in buffer.variable.readers)
            ):
                return NOTHING
            if buffer.holders and conflicts(buffer, chunk, 0, buffer.size):
                return NOTHING
            updates.append(buffer.variable)
            steps.append((setattr, chunk, "version", chunk.version + 1))
            if x is out:
                target = raw
        kernel = lambda: op.kernel(xp, *raws, **attributes, **{op.outputs[0]: target})  # noqa: E731
        admitted.append(Operation(ATOMIC, kernel, op.name, cheap=True, operands=lambda: operands(op, inputs)))
        return admitted[0], reads, (), updates, steps, [], False

    for x in inputs:
        if isinstance(x, Array) and x._raw is not None:
            x._grow()  # should memory run out it is queued, and ordered by variables
    place.engine.admit(plan)
    return bool(admitted)


def in_place(rule: Ufunc) -> Any:
    """A ufunc of two operands as a function (x, y) that puts its result into x."""
    op, ufunc, cls, general, _, same, _, _, _ = rule
    most, get = int(INLINE // op.cost), scope.get

    def function(x: Any, y: Any) -> Any:
        if type(x) is not cls or x._strides is not None or get().recorder is not None:
            return general(x, y)
        engine, chunk = x._place.engine, x._chunk
        admitted: list[Operation] = []

        def plan() -> Admission:
            admitted.clear()
            buffer, line = chunk.buffer, x._line
            raw, v = buffer.raw, buffer.variable
            writer = v.writer
            if (
                raw is None
                or buffer.sealed
                or line is not None
                or buffer.size > most
                or raw.shape != x._shape
                or raw.dtype not in same
            ):
                return NOTHING
            if (writer is not None and (writer.state is not DONE or writer.fate is not OK)) or not engine.calm():
                return NOTHING
            for p in v.readers:
                if p.state is not DONE:
                    return NOTHING
            if buffer.holders and conflicts(buffer, chunk, 0, buffer.size):
                return NOTHING
            reads: tuple[Any, ...] = ()
            if type(y) is cls:
                other = y._raw  # of a young array nobody takes the lock from us to write it
                if other is None:
                    source = y._chunk
                    w = source.buffer.variable.writer
                    other = source.buffer.raw
                    if source is chunk or other is None or y._strides is not None or other.shape != y._shape:
                        return NOTHING
                    if w is not None and (w.state is not DONE or w.fate is not OK):
                        return NOTHING
                    reads = (source.buffer.variable,)
                if other.dtype is not raw.dtype or other.shape != raw.shape or y._place is not x._place:
                    return NOTHING
            elif number(y, raw.dtype):
                other = y
            else:
                return NOTHING
            step = (ufunc, raw, other, raw)
            words = lambda: operands(op, (x, y if type(y) is cls else raw.dtype.type(y)))  # noqa: E731
            # Preparing takes no memory, so it is not queued: nothing orders it after a young `y`.
            admitted.append(Operation(ATOMIC, partial(tuple, (step,)), op.name, cheap=True, operands=words))
            version = (setattr, chunk, "version", chunk.version + 1)
            return admitted[0], reads, (), (v,), [version], [], False

        engine.admit(plan)
        return x if admitted else general(x, y)

    return function
