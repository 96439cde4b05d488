"""A device that is not there: streams, events and memory of its own on NumPy, crueller than hardware.

What is enqueued is computed at once, since a kernel's own errors and shapes are known at its launch; but it *happens*
later: each stream has a queue of tasks, and which stream goes on, and when, is drawn from a seed (inside a `fuzz`
block from that one's).  Nothing happens before somebody waits, or later by chance.  A task says which versions of which
memory it reads and makes.  When it begins and when it ends, the memory must be in these versions and nobody else may be
using it otherwise, or the device has a *fault*, which every later call raises.  So these are loud, whatever the values
are:

    memory is used before the event that says it is there, or written while another stream still reads it
    memory is given back while a stream uses it: whoever gets it next (the last to be freed is the first to be used
    again, full of NaN) makes a version that the other one does not expect
    a kernel meets an array of another memory, or an array of this one outside of an operation's `on`
    memory of the host changes before it was copied, or is read before it was copied to: that finds NaN
    a device's scope is left by another thread than the one that has entered it

Synchronising and asking for values (`item`, ``bool``) let the streams go on until what is needed has happened.
                                                                                    [tests/ndarray/test_device.py]
"""

from __future__ import annotations

import math
import os
import random
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import numpy as np

from ..engine import lifecycle
from ..engine.atomic import Step, commit, together
from ._simulated_arrays import (
    BYTE,
    Fault,
    Lease,
    Memory,
    Scope,
    SimulatedArray,
    SimulatedNumPy,
    SimulatedSpecial,
    Task,
    Ticket,
    local,
    plain,
)
from ._simulated_arrays import scope_of as _scope
from .dtype import DType
from .shape import Shape

UNWRITTEN = 0xFF  # in every byte: NaN, or -1
CHANCE = 0.3  # that a stream goes on by itself when something is enqueued
CAPACITY = 1 << 32  # bytes
SEED = int(os.environ.get("VARDAG_SIMULATED_SEED", "0"))

_view = np.ndarray.__new__


class SimulatedEvent:
    """How often it was recorded, the last of these that has passed, and when."""

    __slots__ = ("passed", "recorded", "time")

    def __init__(self) -> None:
        self.recorded = self.passed = 0
        self.time = 0.0


class SimulatedStream:
    """Tasks, events to pass: (event, number), and events to wait for: (event, number, None)."""

    __slots__ = ("free", "tasks")

    def __init__(self) -> None:
        self.tasks: deque[Any] = deque()
        self.free: dict[int, deque[Ticket]] = {}

    def plan(self) -> list[Step]:
        """To go on by one step; nothing if it cannot."""
        try:
            task = self.tasks[0]
        except IndexError:
            return []
        if isinstance(task, Task):
            # A task that only begins stays where it is.
            return [*task.plan(), (self.tasks.popleft,)] if task.began else task.plan()
        event, number = task[:2]
        if len(task) == 2:
            passed = (setattr, event, "passed", max(event.passed, number))
            return [(setattr, event, "time", monotonic()), passed, (self.tasks.popleft,)]
        return [(self.tasks.popleft,)] if event.passed >= number else []


class _World:
    """All simulated devices: their streams go on in one order, drawn from the seed.

    There is no lock, for a finalizer in a section of it may wait for what another thread has to do there.  A step is
    planned and committed, and planned again if another thread has begun to plan meanwhile.
    """

    def __init__(self) -> None:
        self.guard: list[Any] = [None]
        self.streams: list[SimulatedStream] = []
        fuzz = lifecycle.fuzzing
        self.random = random.Random(SEED if fuzz is None else fuzz.seed)
        self.fault: Fault | None = None

    def reset(self, seed: int = SEED) -> None:
        """Begin anew: all that was enqueued has happened, well or not."""
        self.guard[0] = None
        for stream in self.streams:
            for task in stream.tasks:
                if isinstance(task, Task):
                    task.settle()
                elif len(task) == 2:
                    task[0].passed = max(task[0].passed, task[1])
            stream.tasks.clear()
        self.random, self.fault = random.Random(seed), None

    def sow(self, seed: int) -> None:
        """From now on the order is that of this seed; what was enqueued happens before."""
        with suppress(Fault):
            while self.step():
                pass
        self.random = random.Random(seed)

    def check(self) -> None:
        if self.fault is not None:
            raise Fault(*self.fault.args)

    def step(self) -> bool:
        """One step of some stream that can go on; False if none can."""
        while True:
            ticket = object()
            self.guard[0] = ticket
            self.check()
            busy = [stream for stream in self.streams if stream.tasks]
            try:
                steps = next(filter(None, (s.plan() for s in self.random.sample(busy, len(busy)))), None)
            except Fault as fault:
                if self.guard[0] is not ticket:
                    continue
                self.fault = fault
                raise
            if steps is None:
                if self.guard[0] is ticket:
                    return False
            elif commit(self.guard, ticket, steps):
                return True


world = _World()
lifecycle.sowing.append(world.sow)


class _OnHost:
    """What lends itself as memory of the device, for NumPy."""

    def __init__(self, source: Any, stream: Any) -> None:
        self.source, self.stream = source, stream

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, *, max_version: Any = None, **_: Any) -> Any:
        return self.source.__dlpack__(stream=self.stream, max_version=max_version)


class SimulatedDriver:
    """See `streams.Driver`.  `fail`: what the next call is to raise, for tests of what the device itself reports."""

    raw: type[Any] = SimulatedArray
    forks = True

    def __init__(self, number: int) -> None:
        self.number = number
        self.dlpack = (12, number)  # kDLExtDev
        self.xp: Any = SimulatedNumPy()
        self.special: Any = SimulatedSpecial()
        self.blocks: dict[Memory, int] = {}  # and their sizes
        self.streams: list[SimulatedStream] = []
        self.fail: BaseException | None = None
        self.capacity = CAPACITY
        #: how often the host has waited
        self.synchronisations = 0

    def stream(self) -> SimulatedStream:
        new = SimulatedStream()
        world.streams.append(new)
        self.streams.append(new)
        return new

    @contextmanager
    def on(self, stream: SimulatedStream) -> Iterator[Scope]:
        outer, scope = local.scope, Scope(self, stream)
        local.scope = scope
        try:
            yield scope
        finally:
            local.scope = outer
            if scope.thread != threading.get_ident():
                raise Fault(f"{self}: the scope of one thread is left by another")
        while world.random.random() < CHANCE and world.step():
            pass

    def event(self) -> SimulatedEvent:
        return SimulatedEvent()

    timer = event

    def elapsed(self, first: SimulatedEvent, second: SimulatedEvent) -> float:
        return second.time - first.time

    def record(self, event: SimulatedEvent, stream: SimulatedStream) -> None:
        self._raise()
        number = event.recorded + 1
        together([(setattr, event, "recorded", number), (stream.tasks.append, (event, number))])

    def wait(self, stream: SimulatedStream, event: SimulatedEvent) -> None:
        stream.tasks.append((event, event.recorded, None))

    def passed(self, event: SimulatedEvent) -> bool:
        return event.passed >= event.recorded

    def synchronize(self, event: SimulatedEvent) -> None:
        self._raise()
        self.synchronisations += 1
        number = event.recorded
        while event.passed < number:
            if not world.step() and event.passed < number:
                raise Fault("the streams wait for each other")

    def drain(self) -> None:
        """Let everything happen that was enqueued."""
        self.synchronisations += 1
        while world.step():
            pass

    def _raise(self) -> None:
        world.check()
        error, self.fail = self.fail, None
        if error is not None:
            raise error

    # ---- memory ----------------------------------------------------------------------------------------------------

    def empty(self, shape: Shape, dtype: DType) -> SimulatedArray:
        self._raise()
        scope = local.scope
        if scope is None or scope.device is not self:
            raise Fault(f"{self}: memory is taken outside of an operation")
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        size = 1 << max(nbytes - 1, 0).bit_length()
        shelf = scope.stream.free.setdefault(size, deque())
        try:
            memory = shelf.pop().memory
        except IndexError:
            if self.used + size > self.capacity:
                raise MemoryError(f"{self}: out of memory allocating {nbytes:,} bytes") from None
            memory = Memory(self, size)
            self.blocks[memory] = size
        lease = Lease(memory)
        memory.ticket = Ticket(lease, shelf.append)
        memory.ticket.memory = memory
        memory.bytes.fill(UNWRITTEN)
        found: SimulatedArray = np.asarray(lease)[:nbytes].view(dtype).reshape(shape).view(SimulatedArray)
        found.memory = memory
        return found

    def view(self, raw: SimulatedArray, shape: Shape, strides: tuple[int, ...] | None, offset: int) -> SimulatedArray:
        found: SimulatedArray = _view(SimulatedArray, shape, raw.dtype, raw, offset, strides)
        found.memory = raw.memory
        return found

    def pinned(self, shape: Shape, dtype: DType) -> np.ndarray[Any, Any]:
        return np.ndarray(shape, dtype, bytearray(math.prod(shape) * np.dtype(dtype).itemsize))

    def copy_in(self, host: np.ndarray[Any, Any], raw: SimulatedArray) -> None:
        scope = _scope(raw, "copy")
        plain(raw)[...] = host
        scope.uses("copy", (), (raw,), leaves=[(host.tobytes(), host)])

    def copy_out(self, raw: SimulatedArray, host: np.ndarray[Any, Any]) -> None:
        scope = _scope(raw, "copy")
        host.reshape(-1).view(BYTE)[:] = UNWRITTEN
        scope.uses("copy", (raw,), (), arrives=[(plain(raw).tobytes(), host)])

    def copy_peer(self, source: SimulatedArray, raw: SimulatedArray) -> None:
        scope = _scope(raw, "copy")
        plain(raw)[...] = plain(source)
        scope.launch([source.memory], [raw.memory])

    def fetch(self, raw: SimulatedArray) -> np.ndarray[Any, Any]:
        return np.array(raw.settled(), order="C")

    def lend(self, raw: SimulatedArray, stream: Any, max_version: tuple[int, int] | None) -> Any:
        scope = _scope(raw, "lend")
        if stream is not None:
            event = self.event()
            self.record(event, scope.stream)
            self.wait(stream, event)
        return plain(raw).__dlpack__(max_version=max_version)

    def take(self, source: Any) -> SimulatedArray:
        raw = np.from_dlpack(_OnHost(source, local.scope.stream if local.scope else None))
        found = raw.view(SimulatedArray)
        found.memory = Memory(self, 0)
        return found

    def fatal(self, error: BaseException) -> bool:
        return isinstance(error, Fault)

    def release(self) -> int:
        if world.fault is not None:
            return 0
        self.drain()
        before = self.used
        for stream in self.streams:
            for shelf in tuple(stream.free.values()):
                with suppress(IndexError):
                    while True:
                        memory = shelf.pop().memory
                        memory.ticket = None
                        self.blocks.pop(memory, None)
        return before - self.used

    @property
    def used(self) -> int:
        """Bytes of its blocks, idle ones too."""
        return sum(self.blocks.values())

    def memory_info(self) -> tuple[int, int]:
        return self.capacity - self.used, self.capacity

    def properties(self) -> dict[str, Any]:
        return {"name": f"simulated device {self.number}", "total memory": self.capacity}

    def __repr__(self) -> str:
        return f"simulated({self.number})"
