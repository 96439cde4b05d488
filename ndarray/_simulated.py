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
from typing import Any

import numpy as np

from ..engine import lifecycle
from ._simulated_arrays import (
    BYTE,
    Fault,
    Lease,
    Memory,
    Scope,
    SimulatedArray,
    SimulatedNumPy,
    SimulatedSpecial,
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

_view = np.ndarray.__new__


class Task:
    """Work of a stream; it takes two steps, so that others may come in between."""

    __slots__ = ("arrives", "began", "leaves", "reads", "writes")

    def __init__(self, reads: dict[Memory, int], writes: dict[Memory, int], arrives: Any, leaves: Any) -> None:
        self.reads = {m: v for m, v in reads.items() if m not in writes}
        self.writes, self.arrives, self.leaves = writes, arrives, leaves
        self.began = False

    def step(self) -> bool:
        """Begin, or end; True if it has ended."""
        for memory, version in self.reads.items():
            if memory.reached != version or memory.writer:
                raise Fault(
                    f"memory is read in version {memory.reached}{' while it is written' if memory.writer else ''}, "
                    f"version {version} was meant: an event was not waited for, or memory was used again too early"
                )
        for memory, version in self.writes.items():
            if memory.reached != version - 1 or memory.readers or memory.writer is not self.began:
                raise Fault(
                    f"version {version} of memory is written over version {memory.reached} with {memory.readers} "
                    f"readers: an event was not waited for, or memory was used again too early"
                )
        for kept, host in self.leaves:
            if host.tobytes() != kept:
                raise Fault("memory of the host has changed before it was copied to the device")
        change = -1 if self.began else 1
        for memory in self.reads:
            memory.readers += change
        for memory, version in self.writes.items():
            memory.writer = not self.began
            if self.began:
                memory.reached = version
        if self.began:
            for kept, host in self.arrives:
                host.reshape(-1).view(BYTE)[:] = np.frombuffer(kept, BYTE)
        self.began = not self.began
        return not self.began

    def settle(self) -> None:
        """It has happened, whatever went wrong."""
        for memory in (*self.reads, *self.writes):
            memory.reached, memory.readers, memory.writer = memory.planned, 0, False


class SimulatedEvent:
    """How often it was recorded, and the last of these that has passed."""

    __slots__ = ("passed", "recorded")

    def __init__(self) -> None:
        self.recorded = self.passed = 0


class SimulatedStream:
    """Tasks, events to pass: (event, number), and events to wait for: (event, number, None)."""

    __slots__ = ("free", "lock", "tasks")

    def __init__(self) -> None:
        self.tasks: deque[Any] = deque()
        self.lock = threading.RLock()  # what one thread gives it at a time is one task
        self.free: dict[int, deque[Ticket]] = {}

    def add(self, *uses: Any) -> None:
        """A task that uses memory."""
        self.tasks.append(Task(*uses))

    def step(self) -> bool:
        """Go on by one step; False if there is nothing that can be done."""
        if not self.tasks:
            return False
        task = self.tasks[0]
        if isinstance(task, Task):
            task.step()
            # A task that has just begun stays where it is.
            if not task.began:
                self.tasks.popleft()
            return True
        event, number, *waits = task
        if waits and event.passed < number:
            return False
        self.tasks.popleft()
        if not waits:
            event.passed = max(event.passed, number)
        return True


class _World:
    """All simulated devices: their streams go on in one order, drawn from the seed."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.streams: list[SimulatedStream] = []
        fuzz = lifecycle.fuzzing
        seed = int(os.environ.get("VARDAG_SIMULATED_SEED", "0")) if fuzz is None else fuzz.seed
        self.random = random.Random(seed)
        self.fault: Fault | None = None

    def reset(self, seed: int) -> None:
        """Begin anew: all that was enqueued has happened, well or not."""
        with self.lock:
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
        with self.lock:
            with suppress(Fault):
                while self.step():
                    pass
            self.random = random.Random(seed)

    def check(self) -> None:
        if self.fault is not None:
            raise Fault(*self.fault.args)

    def step(self) -> bool:
        """One step of some stream that can go on; False if none can."""
        self.check()
        try:
            busy = [stream for stream in self.streams if stream.tasks]
            order = self.random.sample(busy, len(busy))
            return any(stream.step() for stream in order)
        except Fault as fault:
            self.fault = fault
            raise


world = _World()
lifecycle.sowing.append(world.sow)


class SimulatedDriver:
    """See `streams.Driver`.  `fail`: what the next call is to raise, for tests of what the device itself reports."""

    raw: type[Any] = SimulatedArray

    def __init__(self, number: int) -> None:
        self.number = number
        self.xp: Any = SimulatedNumPy()
        self.special: Any = SimulatedSpecial()
        self.used = 0
        self.streams: list[SimulatedStream] = []
        self.fail: BaseException | None = None
        self.capacity = CAPACITY
        #: how often the host has waited
        self.synchronisations = 0

    def stream(self) -> SimulatedStream:
        with world.lock:
            new = SimulatedStream()
            world.streams.append(new)
            self.streams.append(new)
            return new

    @contextmanager
    def on(self, stream: SimulatedStream) -> Iterator[Scope]:
        outer = local.scope
        if outer is not None:  # what was launched before comes before
            with world.lock:
                outer.end()
        stream.lock.acquire()
        scope = Scope(self, stream)
        local.scope = scope
        try:
            yield scope
        finally:
            local.scope = outer
            if scope.thread != threading.get_ident():
                raise Fault(f"{self}: the scope of one thread is left by another")
            with world.lock:
                scope.end()
            stream.lock.release()
        with world.lock:
            while world.random.random() < CHANCE and world.step():
                pass

    def event(self) -> SimulatedEvent:
        return SimulatedEvent()

    def record(self, event: SimulatedEvent, stream: SimulatedStream) -> None:
        self._raise()
        with world.lock:
            if local.scope is not None and local.scope.stream is stream:
                local.scope.end()
            event.recorded += 1
            stream.tasks.append((event, event.recorded))

    def wait(self, stream: SimulatedStream, event: SimulatedEvent) -> None:
        with world.lock:
            if local.scope is not None and local.scope.stream is stream:
                local.scope.end()
            stream.tasks.append((event, event.recorded, None))

    def passed(self, event: SimulatedEvent) -> bool:
        return event.passed >= event.recorded

    def synchronize(self, event: SimulatedEvent) -> None:
        self._raise()
        self.synchronisations += 1
        with world.lock:
            number = event.recorded
            while event.passed < number:
                if not world.step():
                    raise Fault("the streams wait for each other")

    def drain(self) -> None:
        """Let everything happen that was enqueued."""
        self.synchronisations += 1
        with world.lock:
            if local.scope is not None:
                local.scope.end()
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
            self.used += size
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
        return np.empty(shape, dtype)

    def copy_in(self, host: np.ndarray[Any, Any], raw: SimulatedArray) -> None:
        scope = _scope(raw, "copy")
        scope.uses("copy", (), (raw,))
        plain(raw)[...] = host
        scope.leaves.append((host.tobytes(), host))

    def copy_out(self, raw: SimulatedArray, host: np.ndarray[Any, Any]) -> None:
        scope = _scope(raw, "copy")
        scope.uses("copy", (raw,), ())
        scope.arrives.append((plain(raw).tobytes(), host))
        host.reshape(-1).view(BYTE)[:] = UNWRITTEN

    def copy_peer(self, source: SimulatedArray, raw: SimulatedArray) -> None:
        scope = _scope(raw, "copy")
        scope._reads(source.memory)
        scope.uses("copy", (), (raw,))
        plain(raw)[...] = plain(source)

    def fetch(self, raw: SimulatedArray) -> np.ndarray[Any, Any]:
        return np.array(raw.settled(), order="C")

    def fatal(self, error: BaseException) -> bool:
        return isinstance(error, Fault)

    def release(self) -> int:
        with world.lock:
            if world.fault is not None:
                return 0
            self.drain()
            before = self.used
            for stream in self.streams:
                for size, shelf in stream.free.items():
                    while shelf:
                        shelf.pop().memory.ticket = None
                        self.used -= size
            return before - self.used

    def memory_info(self) -> tuple[int, int]:
        return self.capacity - self.used, self.capacity

    def properties(self) -> dict[str, Any]:
        return {"name": f"simulated device {self.number}", "total memory": self.capacity}

    def __repr__(self) -> str:
        return f"simulated({self.number})"
