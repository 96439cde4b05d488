"""Fusion: large elementwise operators that run together, tile by tile, as one engine operation.

``exp(a * b + a) * b - a`` of ten million elements is five passes over memory and four temporaries.  As a *segment* it
is one pass: for each tile of some 100,000 elements the five kernels run one after the other, and what lies between
them stays in cache.  Tiles are spread over the workers.  Values whose arrays have died before the segment begins never
touch memory; those that nothing alive needs are not computed at all.  A reduction consumes the tiles of a value in the
order of stages.py, and gives its result after the last; operators that work row by row take whole rows for tiles.

When a push becomes a member of the last segment instead of an operation of its own is the engine's rule (joining.py)
and `Segment.takes`: as many elements; operands that lie in C order, whole or broadcast along rows or columns; the
kernel's own dtype; at most `engine.bulk` members.  Closing a segment: a worker begins with it.  A worker that has
nothing else to do dwells for a moment, until somebody waits or something is queued that does not join.

Bytes do not depend on any of this: a member's kernel is the operator's, and an element's bits do not depend on where
in a tile it stands (but for the sign of a NaN, which nobody promises).
                                       [tests/operators/test_fusion.py, tests/operators/test_reduction_members.py]
"""

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

import numpy as np

from ..engine import Operation
from ..engine.claims import here_and_now
from ..engine.joining import Fusible
from ..engine.operation import Kind
from ..engine.parallel import parallel
from ..engine.site import here
from ..ndarray.buffer import Buffer
from ..ndarray.device import RawArray
from ..ndarray.dtype import NARROW
from ..ndarray.pool import memory_pool
from ..ndarray.shape import Shape
from .launch import HELPED, Launch, do
from .schema import Operator, Step, call_into
from .stages import Consumed, Extremes, Lines

FUSE = 1 << 17  # elements from which an elementwise operator may be a member
SMALL_TILE, TILE, MANY = 1 << 16, 1 << 17, 1 << 22  # elements of a tile; the larger ones from MANY elements on
PIECE = 1 << 18  # elements of a brief segment's pieces; it has at most MANY

FLAT, ROW, COLUMN, SINGLE, VALUE, CONSTANT = range(6)
Operand = tuple[int, Any, int]  # (FLAT, ROW, COLUMN or SINGLE, buffer, offset), (VALUE, member, 0), (CONSTANT, it, 0)
WHOLE = (ROW, COLUMN, SINGLE)
REDUCTION = -1  # where the output of a step goes, beside FLAT and VALUE


class Member:
    """One operator of a segment.  `out` refers to the buffer weakly: only arrays keep it alive, and values."""

    __slots__ = (
        "attributes", "columns", "consumed", "dtype", "op", "operands", "out", "site", "size", "steps", "unit",
        "variable", "words", "work",
    )  # fmt: skip

    def __init__(self, launch: Launch, buffer: Buffer, words: Callable[[], str], size: int) -> None:
        self.op: Operator = launch.op
        self.attributes = launch.attributes
        self.words = words
        self.out = ref(buffer)
        self.variable, self.dtype, self.size = buffer.variable, buffer.dtype, size
        self.operands: list[Operand] = []
        self.columns = 0  # if not 0, the tiles consist of rows of so many elements
        self.unit = 1  # elements: tiles begin at multiples of it
        self.consumed: Consumed | None = None  # of a reduction
        self.site: Any = None  # of the first member the operation has it
        #: is its kernel steps, and has the program of one nothing else to do?
        self.steps = self.op.atomic or self.op.ufunc is not None
        self.work = size * (0.3 if callable(self.op.cost) else self.op.cost)

    def blame(self, op: Operation) -> None:
        """The operation that failed is this member's: name, operands and line."""
        op.name, op.operands, op.site = self.op.name, self.words, self.site or op.site


def member(launch: Launch, words: Callable[[], str]) -> Member | None:
    """A launch as a member, None if it can't be one."""
    op = launch.op
    (result, *more) = launch.results
    if more or result is None or op.random or op.updates or launch.through:
        return None
    buffer, shape, strides, offset, dtype = result
    size = math.prod(shape)
    if strides is not None or offset or buffer.size != size or buffer.dtype != dtype or dtype in NARROW:
        return None
    if op.consumed is not None:
        return _reduction(launch, words)
    if size < FUSE or (op.ufunc is np.power and dtype.kind in "iu"):  # that can fail, and would poison the others
        return None
    new = Member(launch, buffer, words, size)
    if not op.elementwise:
        if not op.by_rows:
            return None
        if "axis" in launch.attributes:
            if launch.attributes["axis"] != len(shape) - 1 or shape[-1] > TILE:
                return None
            new.columns, new.attributes = shape[-1], {**launch.attributes, "axis": 1}
    for o in launch.operands:
        operand = _operand(new, o, shape)
        if operand is None:
            return None
        new.operands.append(operand)
    new.unit = new.columns or 1
    return new


def _reduction(launch: Launch, words: Callable[[], str]) -> Member | None:
    """A reduction as a member, if its operand is a pending value of a segment that may still be joined."""
    result, operand, op = launch.results[0], launch.operands[0], launch.op
    if type(operand) is not tuple or result is None or op.consumed is None:
        return None
    buffer, shape, strides, offset = operand
    size = math.prod(shape)
    segment = getattr(buffer.variable.writer, "fn", None)
    if size < FUSE or strides is not None or offset or type(segment) is not Segment or not segment.door:
        return None
    consumed = op.consumed(shape, buffer.dtype, result[4], launch.attributes)
    if consumed is None or consumed.columns > TILE:
        return None
    new = Member(launch, result[0], words, size)
    new.operands.append((FLAT, buffer, 0))
    new.consumed, new.columns, new.unit = consumed, consumed.columns, consumed.unit
    return new


def _operand(new: Member, o: Any, shape: Shape) -> Operand | None:
    if type(o) is not tuple:
        return (CONSTANT, o, 0) if getattr(o, "ndim", 0) == 0 else None
    buffer, own, strides, offset = o
    if strides is not None or buffer.dtype in NARROW:
        return None
    if own == shape:
        return FLAT, buffer, offset
    n = math.prod(own)
    if n == 1:
        return SINGLE, buffer, offset
    plain = own[-len(shape) :] if len(own) > len(shape) else (1,) * (len(shape) - len(own)) + own
    rows = next((i for i, (a, b) in enumerate(zip(plain, shape, strict=True)) if a != 1 or b == 1), len(shape))
    if plain[rows:] == shape[rows:]:  # a row: whole trailing axes
        kind, columns = ROW, n
    else:
        last = next((i for i, (a, b) in enumerate(zip(plain, shape, strict=True)) if a != b), len(shape))
        if any(a != 1 for a in plain[last:]):
            return None
        kind, columns = COLUMN, math.prod(shape[last:])
    if new.columns not in (0, columns) or columns > TILE:
        return None
    new.columns = columns
    return kind, buffer, offset


class Segment:
    """The function of a fusible operation: see engine/joining.py for `door` and `awaited`."""

    __slots__ = ("at", "awaited", "brief", "columns", "door", "made", "members", "unit", "whole", "work")

    def __init__(self, first: Member) -> None:
        self.members: list[Member] = [first]
        self.door: list[Any] = [self.members]
        self.awaited: tuple[Operation, ...] = ()
        #: of which member a variable's value is
        self.made: dict[Any, int] = {first.variable: 0}
        #: the variables of which members need all in each tile
        self.whole = {value.variable for kind, value, _ in first.operands if kind in WHOLE}
        self.columns, self.unit = first.columns, first.unit
        self.work = first.work
        self.brief = first.steps and first.size <= MANY
        #: of a brief one that runs: the number of a piece, and the member whose steps it has come to
        self.at: dict[int, int] = {}

    def names(self) -> tuple[str, ...]:
        """Of its members' operators."""
        return tuple([m.op.name for m in self.members])

    # ---- under P ---------------------------------------------------------------------------------------------------

    def takes(self, other: Segment) -> list[Step] | None:
        """Steps that add the one member of another segment; the first asks the door."""
        (new,) = other.members
        members, made = self.members, self.made
        if new.size != members[0].size:
            return None
        if new.columns and self.columns not in (0, new.columns):
            return None
        unit = self.unit if new.unit == self.unit else math.lcm(self.unit, new.unit)
        if unit > 2 * TILE:
            return None
        if new.variable in self.whole:
            return None  # it would overwrite in its first tile what a member needs in all of them
        operands: list[Operand] = []
        for kind, value, offset in new.operands:
            index = made.get(value.variable) if isinstance(value, Buffer) else None
            if index is None:
                operands.append((kind, value, offset))
            elif kind is FLAT and not offset and value.size == new.size:
                operands.append((VALUE, index, 0))
            else:
                return None  # a part or a broadcast of what a member makes; what a reduction will give
        # The member changes with the commit only: if the door is closed by then, it is an operation of its own.
        return [
            (list.index, self.door, members),
            (setattr, new, "operands", operands),
            (setattr, new, "site", here(6)),
            (list.append, members, new),
            (made.__setitem__, new.variable, len(members)),
            (set.update, self.whole, other.whole),
            (setattr, self, "columns", self.columns or new.columns),
            (setattr, self, "unit", unit),
            (setattr, self, "work", self.work + new.work),
            (setattr, self, "brief", self.brief and new.steps and self.work + new.work <= HELPED),
        ]

    # ---- when it runs ----------------------------------------------------------------------------------------------

    def __call__(self) -> None:
        Program(self.members, self.columns, self.unit).run()

    def prepare(self) -> tuple[list[list[Step]], list[Step]]:
        """Of a brief one: the pieces, and the steps after them."""
        self.at = {}
        return Program(self.members, self.columns, self.unit).pieces(self.at)

    def blame(self, op: Operation) -> None:
        """The operation that has failed is that of the member which its first piece that was not done has come to."""
        if self.at:
            self.members[self.at[min(self.at)]].blame(op)


class Program:
    """What a segment does for each tile: for every member that is needed, its kernel with slots for arrays.

    A slot is a flat external array, a row, a column, a constant, the memory of a living value, or scratch memory of a
    tile, which is used again as soon as nobody needs what is in it.
    """

    def __init__(self, members: Sequence[Member], columns: int, unit: int) -> None:
        self.members = members
        self.columns = columns
        self.size = members[0].size
        alive = [m.out() for m in members]
        needed = [buffer is not None for buffer in alive]
        last = list(range(len(members)))  # the last member that uses a value
        for i in range(len(members) - 1, -1, -1):
            if needed[i]:
                for kind, value, _ in members[i].operands:
                    if kind is VALUE:
                        last[value] = max(last[value], i)
                        needed[value] = True
        self.scratch: list[Any] = []  # dtypes
        self.steps: list[tuple[int, list[tuple[int, Any]], tuple[int, Any]]] = []
        self.ends: list[tuple[int, Lines | Extremes, RawArray]] = []  # of reductions
        places: dict[int, tuple[int, Any]] = {}
        free: dict[Any, list[int]] = {}
        for i, m in enumerate(members):
            if not needed[i]:
                continue
            operands = [self._source(o, places) for o in m.operands]
            buffer = alive[i]
            if m.consumed is not None and buffer is not None:
                consumer = m.consumed.begin()
                self.ends.append((i, consumer, buffer.allocate().reshape(-1)))
                places[i] = REDUCTION, consumer
            elif buffer is not None:
                places[i] = FLAT, buffer.allocate().reshape(-1)
            else:
                idle = free.setdefault(m.dtype, [])
                if not idle:
                    idle.append(len(self.scratch))
                    self.scratch.append(m.dtype)
                places[i] = VALUE, idle.pop()
            self.steps.append((i, operands, places[i]))
            for kind, value, _ in m.operands:
                if kind is VALUE and last[value] == i and places[value][0] is VALUE and alive[value] is None:
                    slot = places[value][1]
                    idle = free.setdefault(members[value].dtype, [])
                    if slot not in idle:
                        idle.append(slot)
        step = SMALL_TILE if self.size < MANY else TILE
        self.tile, self.unit = max(1, step // unit) * unit, unit
        self.idle: deque[list[RawArray]] = deque()  # scratch memory that no tile uses now
        self.failed: list[tuple[int, int]] = []

    def _source(self, operand: Operand, places: dict[int, tuple[int, Any]]) -> tuple[int, Any]:
        kind, value, offset = operand
        if kind is VALUE:
            return places[value]
        if kind is FLAT:
            return FLAT, value.view((self.size,), None, offset)
        if kind is ROW:
            return ROW, value.view((self.columns,), None, offset)
        if kind is COLUMN:
            return COLUMN, value.view((self.size // self.columns, 1), None, offset)
        return kind, value.view((1,), None, offset) if kind is SINGLE else value

    def run(self) -> None:
        """Everything, a tile at a time."""
        try:
            parallel(self._tile, range(0, self.size, self.tile) if self.steps else ())
            for i, consumer, out in self.ends:
                self._end(i, consumer, out)
        except BaseException:
            if self.failed:
                self.members[min(self.failed)[1]].blame(here_and_now.stack[-1])
            raise

    def _end(self, i: int, consumer: Lines | Extremes, out: RawArray) -> None:
        try:
            do(self._last(i, consumer, out))
        except BaseException:
            self.failed.append((self.size, i))
            raise

    def _tile(self, low: int) -> None:
        high = min(low + self.tile, self.size)
        try:
            scratch = self.idle.popleft()
        except IndexError:
            scratch = [np.empty(self.tile, dtype) for dtype in self.scratch]
        for i, operands, result in self.steps:
            try:
                do(self._calls(i, operands, result, low, high, scratch))
            except BaseException:
                self.failed.append((low, i))
                raise
        self.idle.append(scratch)

    def pieces(self, at: dict[int, int]) -> tuple[list[list[Step]], list[Step]]:
        """All steps in an even number of pieces, and those after them.  `at`: which member of a piece is at work."""
        found: list[list[Step]] = []
        count = 2 * max(2, -(-self.size // (2 * PIECE)))
        length = -(-self.size // (count * self.unit)) * self.unit
        lows = range(0, self.size, length) if self.steps else ()
        for piece, low in enumerate(lows):
            high = min(low + length, self.size)
            scratch = [memory_pool.take((high - low,), dtype) for dtype in self.scratch]
            steps: list[Step] = []
            for i, operands, result in self.steps:
                at[piece] = i
                steps.append((operator.setitem, at, piece, i))
                steps += self._calls(i, operands, result, low, high, scratch)
            found.append([*steps, (operator.delitem, at, piece)])
        at.clear()
        after: list[Step] = []
        for i, consumer, out in self.ends:
            at[len(found)] = i
            after += ((operator.setitem, at, len(found), i), *self._last(i, consumer, out))
        at.clear()
        return found, after

    def _calls(
        self, i: int, operands: Sequence[tuple[int, Any]], result: tuple[int, Any], low: int, high: int, scratch: Any
    ) -> Sequence[Step]:
        """The C calls of a member for some elements; if its kernel is not steps, they are done by now."""
        m, columns, (where, target) = self.members[i], self.columns, result
        arrays = [_part(kind, value, low, high, columns, scratch) for kind, value in operands]
        if where is REDUCTION:
            return target.part(arrays[0], low)  # type: ignore[no-any-return]
        out = target[low:high] if where is FLAT else scratch[target][: high - low]
        if m.columns:
            arrays = [
                a.reshape(-1, columns) if kind in (FLAT, VALUE) else a
                for (kind, _), a in zip(operands, arrays, strict=True)
            ]
            out = out.reshape(-1, columns)
        if m.op.ufunc is not None:
            return (call_into(m.op.ufunc, *arrays, out=out),)
        steps = m.op.kernel(np, *arrays, **m.attributes, **{m.op.outputs[0]: out})
        return steps if m.op.atomic else ()

    def _last(self, i: int, consumer: Lines | Extremes, out: RawArray) -> list[Step]:
        """The C calls that make a reduction's result of what the tiles gave."""
        consumed = self.members[i].consumed
        assert consumed is not None, "a reduction"
        return [*consumer.end(out), *consumed.after(out)]


def _part(kind: int, value: Any, low: int, high: int, columns: int, scratch: Sequence[RawArray]) -> Any:
    if kind is FLAT:
        return value[low:high]
    if kind is VALUE:
        return scratch[value][: high - low]
    if kind is COLUMN:
        return value[low // columns : high // columns]
    return value


def fusible(launch: Launch, words: Callable[[], str]) -> Operation | None:
    """The operation of a launch that may join, or be joined by, others; None: it is an ordinary one."""
    new = member(launch, words)
    if new is None:
        return None
    return Fusible(Kind.KERNEL, Segment(new), launch.op.name, operands=words, nbytes=launch.weigh)
