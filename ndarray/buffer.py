"""Buffers, chunks and holders: an array is a name, a buffer is a version.

A `Chunk` is what views share: it names a current `Buffer` (engine variable, memory, device) and counts the writes
pushed to it.  An operation is given buffers, never chunks, so renaming a chunk disturbs nothing that was pushed before.

A *holder* needs bytes of a buffer to stay as they are: a value saved by the tape (`Saved`), or another chunk that
shares the buffer lazily.  `Buffer.holders` lists them by weak reference, so a holder lets go by dying: no finalizer,
no counter that could be lost.  A reference whose holder has since moved to another buffer counts as dead.

What a write does (one decision, `Writing`, for every kind of array):
  nobody holds a byte that it touches        in place
  the whole chunk gets a new value           a new buffer for the chunk (a rename): nothing is copied; also if nobody
                                             holds the old one, but operations that use it are pending
  some bytes are held and the rest must stay the cheaper side moves: the held bytes to their holders, or the chunk
Memory that others write too (a *pinned* chunk) stays; what nobody may write (*sealed*) is left by the first write.

Guarded by the order lock P of the engine: Chunk.buffer, Chunk.version, Chunk.line, Chunk.marked, Chunk.pinned,
Buffer.holders, Saved.buffer and Saved.offset.  They change only in steps of a commit, so every plan under P reads a
consistent state.  `Buffer.raw` is written by the operation that runs first on the buffer, and read by those that the
engine orders after it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import ref

import numpy as np

from ..engine import Engine, Kind, Operation, Variable
from .context import Context
from .device import Device, Place, RawArray
from .dtype import DType
from .line import Line
from .memory import SMALL, follow
from .shape import Shape, Strides, extent
from .streams import Remote

Step = tuple[Any, ...]
Admission = tuple[
    Operation | None, Sequence[Variable], Sequence[Variable], Sequence[Variable], list[Step], list[Any], bool
]


class Buffer:
    """One version of some elements: an engine variable and, once the first operation on it has started, memory.

    The memory is C-ordered, `shape` is only the shape it was allocated in.
    """

    __slots__ = (
        "__weakref__",
        "crowd",
        "device",
        "dtype",
        "engine",
        "held",
        "holders",
        "pinned",
        "raw",
        "remote",
        "sealed",
        "shape",
        "size",
        "uncounted",
        "variable",
    )  # fmt: skip

    def __init__(self, engine: Engine, shape: Shape, dtype: DType, device: Device, raw: RawArray | None = None) -> None:
        """`raw`: memory that is followed already."""
        self.engine = engine
        self.variable = Variable(engine)
        self.shape = shape
        self.size = math.prod(shape)
        self.dtype = dtype
        self.device = device
        self.raw = raw
        #: its memory on a device with streams, whose `raw` is None (streams.py)
        self.remote: Remote | None = None
        self.holders: list[ref[Holder]] = []
        #: no holder, living or dead, needs an element outside of this range
        self.held = (0, 0)
        #: with so many holders, the dead ones are to be dropped
        self.crowd = CROWD
        #: an operation makes it, and no operation has counted it as an operand yet (order lock): see `weigh`
        self.uncounted = raw is None
        #: the user has its variable, and may order functions of their own by that.  A single store
        self.pinned = False
        #: the memory is somebody else's, who lets nobody write there
        self.sealed = False

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def allocate(self) -> RawArray:
        """The memory, taken now if no operation has taken it yet.  Called by operations that have started."""
        raw = self.raw
        if raw is None:
            device: Any = self.device
            if device.queued:
                return device.remote(self).raw  # type: ignore[no-any-return]
            raw = self.raw = self.device.empty(self.shape, self.dtype)
            follow(raw)
        return raw

    def view(self, shape: Shape, strides: Strides = None, offset: int = 0) -> RawArray:
        """The memory as a view; strides and offset in elements."""
        raw = self.allocate()
        if strides is None and not offset:
            if shape == self.shape:
                return raw
            if math.prod(shape) == self.size:
                return raw.reshape(shape)
        itemsize = self.dtype.itemsize
        steps = None if strides is None else tuple(s * itemsize for s in strides)
        device: Any = self.device
        if device.queued:
            return device.view(raw, shape, steps, offset * itemsize)  # type: ignore[no-any-return]
        return np.ndarray(shape, self.dtype, raw, offset * itemsize, steps)

    def adopt(self, raw: RawArray) -> None:
        """Take `raw`, which nobody else refers to, as the memory, or copy it if it is a view or of another order."""
        device: Any = self.device
        if device.queued:
            device.adopt(self, raw)
        elif self.raw is None and self.device.whole(raw) and raw.flags.c_contiguous and raw.dtype == self.dtype:
            self.raw = raw if raw.shape == self.shape else raw.reshape(self.shape)
            follow(raw)
        else:
            self.view(raw.shape)[...] = raw


class Holder:
    """Something that needs the bytes of its buffer's `range` to stay."""

    __slots__ = ("__weakref__", "buffer")
    buffer: Buffer
    #: whether a writer may give it a copy elsewhere
    moves = True

    def range(self) -> tuple[int, int]:
        raise NotImplementedError

    def move_to(self, buffer: Buffer, low: int) -> list[Step]:
        """Steps that point this holder to a copy of its range, which began at element `low`."""
        return [(setattr, self, "buffer", buffer)]


class Chunk(Holder):
    """What the views of one memory share: the name of its current version."""

    __slots__ = ("line", "marked", "pinned", "place", "version")

    def __init__(self, buffer: Buffer, place: Place) -> None:
        self.buffer = buffer
        self.place = place
        self.version = 0
        #: others have the memory too, and write it (interchange.py): it never moves, its holders do.  Only ever set
        self.pinned = False
        #: the line of its arrays, those marked or detached excepted; None until the tape needs one
        self.line: Line | None = None
        #: the lines of marked arrays in this memory
        self.marked: tuple[ref[Line], ...] = ()

    @property
    def context(self) -> Context:
        return self.place.context

    def range(self) -> tuple[int, int]:
        return 0, self.buffer.size


class Saved(Holder):
    """A value that the tape keeps: a view of a buffer, held against writes, with the entry it had when it was saved.

    `entry`: an int says that it is this output of the node that keeps it.  (The entry itself would be a cycle.)
    """

    __slots__ = ("dtype", "entry", "offset", "owner", "place", "shape", "span", "strides")

    def __init__(
        self, chunk: Chunk, buffer: Buffer, shape: Shape, strides: Strides, offset: int, entry: Any = None
    ) -> None:
        self.buffer = buffer
        self.owner = ref(chunk)
        self.place = chunk.place
        self.dtype = buffer.dtype
        self.shape, self.strides, self.offset = shape, strides, offset
        self.span = extent(shape, strides, offset)
        self.entry = entry

    def range(self) -> tuple[int, int]:
        return self.span

    def move_to(self, buffer: Buffer, low: int) -> list[Step]:
        first, last = self.span
        return [
            (setattr, self, "offset", self.offset - low),
            (setattr, self, "span", (first - low, last - low)),
            (setattr, self, "buffer", buffer),
        ]


class Lease(Saved):
    """A value that somebody reads outside of the engine, where no operation can be ordered after the reading: the bytes
    stay where they are, and who wants to write there goes elsewhere."""

    __slots__ = ()
    moves = False


# ---- plans: called under P, change nothing, return steps ------------------------------------------------------------


def share(buffer: Buffer, holders: Sequence[Holder], keep: list[Any]) -> list[Step]:
    """Steps that register holders with the buffer whose bytes they need.  Chunks that share a buffer must all hold it.

    Once for each buffer in a plan: the list is replaced, without the dead references, whenever it has doubled.
    """
    known = buffer.holders
    new = [ref(h) for h in holders if isinstance(h, Saved) or not any(r() is h for r in known)]
    if len(known) < buffer.crowd:
        spans = [buffer.held, *(h.range() for h in holders)]
        return [(setattr, buffer, "held", _hull(spans)), *((list.append, known, r) for r in new)]
    keep.append(known)
    living = [(r, h) for r in known if (h := r()) is not None and h.buffer is buffer]
    alive = [*(r for r, _ in living), *new]
    return [
        (setattr, buffer, "held", _hull([h.range() for h in (*(h for _, h in living), *holders)])),
        (setattr, buffer, "holders", alive),
        (setattr, buffer, "crowd", max(CROWD, 2 * len(alive))),
    ]


def _hull(spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The least range with all of these in it."""
    some = [span for span in spans if span[0] < span[1]]
    return (min(low for low, _ in some), max(high for _, high in some)) if some else (0, 0)


def hold(values: Sequence[Saved], keep: list[Any]) -> list[Step]:
    """Steps that hold values, of whatever buffers."""
    by_buffer: dict[Buffer, list[Holder]] = {}
    for saved in values:
        by_buffer.setdefault(saved.buffer, []).append(saved)
    return [step for buffer, holders in by_buffer.items() for step in share(buffer, holders, keep)]


def conflicts(buffer: Buffer, writer: Chunk | None, low: int, high: int) -> list[Holder]:
    """The living holders, other than the writing chunk, of bytes in this range."""
    found: list[Holder] = []
    first, last = buffer.held
    if low >= high or high <= first or last <= low:  # as of rows that are written one after the other
        return found
    for r in buffer.holders:
        h = r()
        if h is not None and h is not writer and h.buffer is buffer:
            first, last = h.span if type(h) is Saved else h.range()
            if first < high and low < last:
                found.append(h)
    return found


def _copy(holder: Holder) -> Admission:
    """Admission of a copy that gives this holder its range in a buffer of its own."""
    old = holder.buffer
    low, high = holder.range()
    shape = old.shape if (low, high) == (0, old.size) else (high - low,)
    new = Buffer(old.engine, shape, old.dtype, old.device)
    if isinstance(holder, Saved):
        new.holders.append(ref(holder))
        new.held = (0, new.size)

    def prepare() -> Sequence[Step]:
        source = old.view((high - low,), None, low)
        return ((operator.setitem, new.view((high - low,)), ..., source),)

    op = steps_operation("copy-on-write", prepare, (old,), (new,), high - low, nbytes=new.nbytes)
    steps = [*holder.move_to(new, low), *count("copies")]
    return op, (old.variable,), (new.variable,), (), steps, [old], True


def steps_operation(
    name: str, prepare: Any, reads: Sequence[Buffer], writes: Sequence[Buffer], size: int, *, nbytes: int = 0
) -> Operation:
    """The operation of a few C calls on so many elements of these buffers, where the buffers are."""
    device: Any = writes[0].device
    if device.queued:

        def function() -> None:
            for step in prepare():
                step[0](*step[1:])

        return device.operation(name, function, reads, writes, nbytes=nbytes)  # type: ignore[no-any-return]
    return Operation(Kind.ATOMIC, prepare, name, cheap=size <= CHEAP, nbytes=nbytes)


def _delays(buffer: Buffer) -> bool:
    """Would a whole write in place wait, though a new buffer is worth its price and within the engine's bound?"""
    nbytes = buffer.nbytes
    if nbytes < OVERTAKING or buffer.pinned or not buffer.engine.has_room(nbytes):
        return False
    variable = buffer.variable
    writer = variable.writer
    return (writer is not None and not writer.done) or not all(o.done for o in reversed(variable.readers))


class Writing:
    """How one operation writes a region of a chunk.  Made in a plan; the facts hold if the plan commits.

    `first`: an admission that has to be committed before (a copy-on-write); then everything else is to be ignored.
    `buffer`: where the operation writes.   `fresh`: it is a new buffer, all of which the operation writes.
    `steps`: to be committed with the operation.
    """

    __slots__ = ("buffer", "first", "fresh", "steps")

    def __init__(
        self, chunk: Chunk, low: int, high: int, *, replace: bool, rename: bool, keep: list[Any], ahead: bool = False
    ) -> None:
        """`replace`: the operation gives every element of the chunk a new value without needing the old ones in place.
        `rename`: it must not do so in place, since it reads the old ones in another order (only with `replace`).
        `ahead`: it reads none of them, so with a new buffer it need not wait for who does (only with `replace`)."""
        buffer = chunk.buffer
        if chunk.pinned:
            replace = rename = ahead = False
        self.first: Admission | None = None
        self.fresh = False
        self.steps: list[Step] = [(setattr, chunk, "version", chunk.version + 1)]
        held = conflicts(buffer, chunk, low, high) if buffer.holders else ()
        overtakes = ahead and not rename and not held and _delays(buffer)
        if rename or overtakes or ((held or buffer.sealed) and replace):
            keep.append(buffer)
            buffer = Buffer(buffer.engine, buffer.shape, buffer.dtype, buffer.device)
            self.fresh = True
            self.steps.append((setattr, chunk, "buffer", buffer))
            if held or overtakes:
                self.steps += count("overtaking" if overtakes else "renames")
        elif buffer.sealed:
            self.first = _copy(chunk)
        elif held:
            holders_bytes = sum(last - first for first, last in (h.range() for h in held))
            moves = chunk.pinned or (holders_bytes <= buffer.size and all(h.moves for h in held))
            self.first = _copy(held[0] if moves else chunk)
        self.buffer = buffer


def pin(chunk: Chunk) -> None:
    """From now on the memory stays where it is, and nobody else has it: whoever held bytes of it gets a copy."""

    def plan() -> Admission:
        buffer = chunk.buffer
        held = conflicts(buffer, chunk, 0, buffer.size)
        if buffer.sealed or not all(h.moves for h in held):
            return _copy(chunk)
        if held:
            return _copy(held[0])
        return None, (), (), (), [(setattr, chunk, "pinned", True)], [buffer], False

    while not chunk.pinned:
        chunk.buffer.engine.admit(plan)


def weigh(made: Iterable[Buffer], used: Iterable[Buffer], carried: int = 0) -> tuple[int, int, list[Step]]:
    """What an operation counts for the engine's back-pressure: (bytes it will allocate, bytes it keeps alive, steps).

    It allocates what nobody has been pushed to make before.  The memory that it reads counts with the operation that
    makes it; if that is done, with the first one that is queued to use it, and only that: the many readers of one large
    array count nothing.  An array that came from the host never counts.
    """
    nbytes = 0
    steps: list[Step] = []
    for buffer in made:
        if buffer.raw is None and buffer.remote is None and buffer.variable.writer is None:
            nbytes += buffer.nbytes
    for buffer in dict.fromkeys(used):
        if buffer.uncounted:
            writer = buffer.variable.writer
            if writer.done if writer is not None else buffer.raw is not None:
                carried += buffer.nbytes
                steps.append((setattr, buffer, "uncounted", False))
    return nbytes, carried, steps


# ---- statistics -----------------------------------------------------------------------------------------------------

CROWD = 16  # holders of one buffer
OVERTAKING = SMALL  # bytes: the least array that gets a new buffer only so that its writer need not wait
CHEAP = 16384  # elements: what a kernel that takes well under 5 us per pass may have to run inside its push

_counts = {"copies": 0, "renames": 0, "overtaking": 0}


def count(what: str) -> list[Step]:
    """A step that counts.  Exact per engine (the plan read the old value under P), approximate with several at once."""
    return [(operator.setitem, _counts, what, _counts[what] + 1)]


def counts() -> dict[str, int]:
    """Since the program began: copies and renames that protected held bytes, renames that went ahead of readers."""
    return dict(_counts)
