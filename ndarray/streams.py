"""Devices with streams: what is run there is enqueued, and what it needs is waited for by the device, not by the host.

An operation on such a device is done for the engine once it is *enqueued*.  From then on its place in the order is
that of its stream, and a `Mark` behind it on the stream.  A buffer there (`Remote`) knows the mark of who wrote it last
and, for each stream, that of who read it last since.  So there are four rules, all in `Accelerator.enqueue`:

  a reader waits for the writer's mark, a writer for that and for the readers': on the device, and not at all if they
  are of one stream, or the stream has waited for a later mark of theirs before;
  memory belongs to the stream that it was taken on, its home: given back, it is used again there, in order.  Whoever
  uses it on another stream keeps it until that stream has passed the mark behind;
  memory of the host that a stream reads is a copy which nobody else has (staging), kept likewise;
  the host waits for a mark only in an operation of the copy-out lane: one that brings bytes to the host, or one that
  a wait has pushed (`arrival`).  So waits on devices are timed, explained and interrupted like any other.

ERRORS.  What a kernel raises while it is enqueued is its operation's, memory that runs out too.  What the device itself
reports later belongs to nobody in particular: the device is *lost*, everything that uses it fails with a `DeviceError`
that lists what was enqueued since the host last waited for it.

Marks, events and `seen` are guarded by the device's lock, which is held before and after a kernel and never while one
is enqueued: a finalizer in there may wait for other lanes, which need it.  Two threads (of several engines, say) may so
enqueue on one stream at a time; their operations are independent of each other, each has its mark behind it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..engine import Engine, Error, InternalError, Kind, Operation
from ..engine.claims import here_and_now
from .dtype import DType
from .shape import Shape

if TYPE_CHECKING:
    from .buffer import Buffer

RawArray = Any
REMEMBERED = 32  # operations that an error of the device lists
AHEAD = 4096  # operations of one stream that may be enqueued and not passed


class DeviceError(Error, RuntimeError):
    """A device has failed, and what was there is lost."""


class Driver(Protocol):
    """The least that has to be known of a kind of device: implemented by `_cupy.py` and `_simulated.py`."""

    xp: ModuleType
    #: the class of its arrays
    raw: type[Any]
    #: the functions of scipy.special for its arrays
    special: Any

    def stream(self) -> Any:
        """A new stream, whose work does not wait for that of others."""
        ...

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Within it the calling thread computes and takes memory on this device and stream."""
        ...

    def event(self) -> Any:
        """A new event, without timing."""
        ...

    def record(self, event: Any, stream: Any) -> None:
        """The event passes when the stream has done all that it was given so far."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """What the stream is given from now on waits for the event as it was recorded last."""
        ...

    def passed(self, event: Any) -> bool:
        """Has it passed?  Never blocks."""
        ...

    def synchronize(self, event: Any) -> None:
        """Block until it has passed."""
        ...

    def empty(self, shape: Shape, dtype: DType) -> RawArray:
        """Memory of the current stream, in C order, with arbitrary contents."""
        ...

    def view(self, raw: RawArray, shape: Shape, strides: tuple[int, ...] | None, offset: int) -> RawArray:
        """Another geometry over the memory of `raw`; strides and offset in bytes."""
        ...

    def pinned(self, shape: Shape, dtype: DType) -> np.ndarray[Any, Any]:
        """Memory of the host that the device can reach."""
        ...

    def copy_in(self, host: np.ndarray[Any, Any], raw: RawArray) -> None:
        """Enqueue a copy on the current stream; both in C order.  `host` stays as it is until then."""
        ...

    def copy_out(self, raw: RawArray, host: np.ndarray[Any, Any]) -> None:
        """Enqueue a copy on the current stream; both in C order."""
        ...

    def copy_peer(self, source: RawArray, raw: RawArray) -> None:
        """Enqueue a copy from another device of this kind on the current stream."""
        ...

    def fetch(self, raw: RawArray) -> np.ndarray[Any, Any]:
        """A copy of its value on the host, in C order.  Blocks until the current stream has come to it."""
        ...

    def fatal(self, error: BaseException) -> bool:
        """Does this error say that the device is in no state to go on?"""
        ...

    def release(self) -> int:
        """Give idle memory back; the number of bytes."""
        ...

    def memory_info(self) -> tuple[int, int]:
        """Bytes that are free, and all bytes, of the device."""
        ...

    def properties(self) -> dict[str, Any]:
        """What is known of the device: name, compute capability, ..."""
        ...


class Mark:
    """A place on a stream.  `event`: None once the stream has passed it."""

    __slots__ = ("event", "number", "stream")

    def __init__(self, stream: Stream, number: int, event: Any) -> None:
        self.stream, self.number, self.event = stream, number, event


class Stream:
    """A queue of the device.

    `seen`: of each other stream the number of the last mark that this one has waited for.   `pending`: marks that it
    has not passed as far as is known, the oldest first, each with the memory that is kept until then.
    """

    __slots__ = ("lane", "native", "number", "pending", "seen")

    def __init__(self, native: Any, lane: str) -> None:
        self.native, self.lane = native, lane
        self.number = 0
        self.seen: dict[Stream, int] = {}
        self.pending: deque[tuple[Mark, list[Any]]] = deque()


class Remote:
    """A buffer's memory on a device: see the module's text."""

    __slots__ = ("home", "raw", "read", "written")

    def __init__(self, raw: RawArray, home: Stream) -> None:
        self.raw, self.home = raw, home
        self.written: Mark | None = None
        self.read: dict[Stream, Mark] = {}


class Accelerator:
    """A device with a stream for computing and one for copies in each direction."""

    queued = True

    def __init__(self, name: str, driver: Driver) -> None:
        self.name, self.driver = name, driver
        self.xp, self.raw, self.special = driver.xp, driver.raw, driver.special
        self.lock = threading.RLock()
        self.unwritten = threading.RLock()  # held by who takes memory for what nobody has written
        self.compute = Stream(driver.stream(), name)
        self.copy_in = Stream(driver.stream(), f"{name}-copy-in")
        self.copy_out = Stream(driver.stream(), f"{name}-copy-out")
        self.idle: list[Any] = []  # events
        self.enqueued: deque[str] = deque(maxlen=REMEMBERED)  # since the host last waited for all
        self.lost: str | None = None
        #: how often the host has waited for the device
        self.synchronisations = 0

    # ---- memory ----------------------------------------------------------------------------------------------------

    def empty(self, shape: Shape, dtype: DType) -> RawArray:
        """Memory of the stream that is being given work."""
        return self.driver.empty(shape, dtype)

    def whole(self, raw: RawArray) -> bool:
        """Is it an array with all of its memory?"""
        return bool(raw.base is None)

    def view(self, raw: RawArray, shape: Shape, strides: tuple[int, ...] | None, offset: int) -> RawArray:
        """Another geometry over the same memory; in bytes."""
        return self.driver.view(raw, shape, strides, offset)

    def remote(self, buffer: Buffer) -> Remote:
        """The buffer's memory, taken now if nobody has taken it yet."""
        found = buffer.remote
        if found is None:
            if _now.stream is None:
                raise InternalError(f"[{self.name}] memory is taken outside of an operation")
            found = buffer.remote = Remote(self.empty(buffer.shape, buffer.dtype), _now.stream)
        return found

    def adopt(self, buffer: Buffer, raw: RawArray) -> None:
        """Take what a kernel has made as the buffer's memory, or copy it."""
        if buffer.remote is None and raw.base is None and raw.flags.c_contiguous and raw.dtype == buffer.dtype:
            if _now.stream is None:
                raise InternalError(f"[{self.name}] memory is adopted outside of an operation")
            buffer.remote = Remote(raw if raw.shape == buffer.shape else raw.reshape(buffer.shape), _now.stream)
        else:
            buffer.view(raw.shape)[...] = raw

    def fetch(self, raw: RawArray) -> np.ndarray[Any, Any]:
        """A copy of a value on the host, for a kernel that computes there.  Blocks; within `enqueue` only."""
        self.synchronisations += 1
        return self.driver.fetch(raw)

    def release(self) -> int:
        """Give back what is idle: memory that was kept for streams that have passed, and the device's pool."""
        with self.lock:
            for stream in (self.compute, self.copy_in, self.copy_out):
                self._reap(stream, len(stream.pending))
            return self.driver.release()

    # ---- work ------------------------------------------------------------------------------------------------------

    def enqueue(
        self,
        stream: Stream,
        reads: Iterable[Buffer],
        writes: Iterable[Buffer],
        function: Callable[[], Any],
        words: str,
        keeps: Sequence[Any] = (),
    ) -> Mark:
        """Give a stream the work of `function`, which uses these buffers.  `keeps`: stays until the stream is past it.

        Raises what `function` does, and DeviceError if the device is lost.
        """
        made = list(dict.fromkeys(writes))
        read = [b for b in dict.fromkeys(reads) if b not in made]
        for buffer in read:
            there: Any = buffer.device
            if buffer.remote is None and there is not self:  # nobody has written it: memory is its own device's to take
                with there.unwritten:
                    if buffer.remote is None:
                        there.enqueue(there.compute, (), (buffer,), buffer.allocate, "memory")
        with self._loses(), self.driver.on(stream.native):
            before, outer = compute_on(self), _now.stream
            _now.stream = stream
            try:
                with self.lock:
                    self._prepare(stream, read, made)
                    self.enqueued.append(words)
                try:
                    function()
                finally:
                    with self.lock:
                        mark = self._mark(stream, read, made, keeps)
            finally:
                _now.stream = outer
                compute_on(before)
        return mark

    def _prepare(self, stream: Stream, read: list[Buffer], made: list[Buffer]) -> None:
        """Let the stream wait for who used the buffers."""
        for buffer in read:  # what nobody has written has memory all the same: nd.empty
            self._await(stream, (buffer.remote or self.remote(buffer)).written)
        for buffer in made:
            remote = buffer.remote
            if remote is not None:
                for mark in (remote.written, *remote.read.values()):
                    self._await(stream, mark)

    def _await(self, stream: Stream, mark: Mark | None) -> None:
        event = None if mark is None else mark.event  # read once: another device may find that it has passed
        if mark is None or event is None or mark.stream is stream:
            return
        if stream.seen.get(mark.stream, 0) < mark.number:
            self.driver.wait(stream.native, event)
            stream.seen[mark.stream] = mark.number

    def _mark(self, stream: Stream, read: list[Buffer], made: list[Buffer], keeps: Sequence[Any]) -> Mark:
        """The mark behind what was just enqueued: the buffers learn of it, the stream keeps what it borrows."""
        event = self.idle.pop() if self.idle else self.driver.event()
        self.driver.record(event, stream.native)
        stream.number += 1
        mark = Mark(stream, stream.number, event)
        borrowed = list(keeps)
        for buffer in (*read, *made):
            remote = buffer.remote
            if remote is None:
                continue  # the kernel failed before it took memory
            if remote.home is not stream:
                borrowed.append(remote.raw)
            if buffer in made:
                remote.written, remote.read = mark, {}
            else:
                remote.read[stream] = mark
        stream.pending.append((mark, borrowed))
        self._reap(stream, 2)
        if len(stream.pending) > AHEAD:
            self.driver.synchronize(stream.pending[0][0].event)
        return mark

    def _reap(self, stream: Stream, most: int) -> None:
        """Let go of what was kept for the oldest marks that the stream has passed."""
        pending = stream.pending
        for _ in range(most):
            if not pending or not self.driver.passed(pending[0][0].event):
                return
            mark, _ = pending.popleft()
            self.idle.append(mark.event)
            mark.event = None

    # ---- the host's waits ------------------------------------------------------------------------------------------

    def synchronize(self, mark: Mark | None) -> None:
        """Block until the stream has passed the mark.  Only on lanes' threads."""
        event = None if mark is None else mark.event  # read once: another thread may find that it has passed
        if event is None:
            return
        self.synchronisations += 1
        with self._loses():
            self.driver.synchronize(event)
        with self.lock:
            for stream in (self.compute, self.copy_in, self.copy_out):
                self._reap(stream, len(stream.pending))
            if not (self.compute.pending or self.copy_in.pending or self.copy_out.pending):
                self.enqueued.clear()

    @contextmanager
    def _loses(self) -> Iterator[None]:
        """Errors of the device, as opposed to those of a kernel, are for all."""
        if self.lost is not None:
            raise DeviceError(self.lost)
        try:
            yield
        except DeviceError:
            raise
        except BaseException as error:
            if not self.driver.fatal(error):
                raise
            names = ", ".join(self.enqueued) or "nothing"
            self.lost = f"[{self.name}] {error}; the device is lost.  Enqueued since it was last waited for: {names}"
            raise DeviceError(self.lost) from error

    # ---- operations ------------------------------------------------------------------------------------------------

    def operation(
        self,
        name: str,
        function: Callable[[], Any],
        reads: Iterable[Buffer],
        writes: Iterable[Buffer],
        **options: Any,
    ) -> Operation:
        """An operation that enqueues a kernel's work."""
        used, made = list(reads), list(writes)

        def run() -> None:
            self.enqueue(self.compute, used, made, function, name)

        return Operation(Kind.KERNEL, run, name, lane=self.compute.lane, **options)

    def arrival(self, buffer: Buffer) -> Operation:
        """An operation that is done when the buffer's value is there; it reads the buffer."""

        def run() -> None:
            remote = buffer.remote
            if self.lost is not None:
                raise DeviceError(self.lost)
            self.synchronize(None if remote is None else remote.written)

        return Operation(Kind.KERNEL, run, f"wait for {self.name}", lane=self.copy_out.lane)

    def wait_quiet(self, engine: Engine, timeout: float | None) -> None:
        """Wait until all that is enqueued now has happened.  Sync: blocks."""

        def run() -> None:
            for stream in (self.compute, self.copy_in, self.copy_out):
                with self.lock:
                    last = stream.pending[-1][0] if stream.pending else None
                self.synchronize(last)

        operation = Operation(Kind.KERNEL, run, f"wait for {self.name}", lane=self.copy_out.lane)
        engine.admit(lambda: (operation, (), (), (), [], [], False))
        operation.wait(timeout)

    def __repr__(self) -> str:
        return f"<{self.name}>"


class _Now(threading.local):
    device: Any = None
    stream: Stream | None = None


_now = _Now()


def compute_on(device: Any) -> Any:
    """Say for which device this thread runs kernels, None for the host; gives which it was before."""
    before, _now.device = _now.device, device
    here_and_now.alone = device is not None
    return before


def computing() -> Any:
    """The device with streams for which this thread runs kernels; None for the host."""
    return _now.device
