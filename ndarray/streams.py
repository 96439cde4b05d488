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

THREADS.  There is no lock: a finalizer or handler in a section of it might wait for what another thread does there
[test_a_finalizer_waits_while_a_mark_is_made].  Two threads (of several engines, say) may enqueue on one stream at a
time; their operations are independent of each other.  What makes that right:

  a mark gets its number after its work was enqueued and before its event is recorded: so an event is behind the work of
  all marks of lower numbers, and `seen`, which may lose a number, never has one that was not waited for;
  an event is recorded anew when its mark has passed: who has it from before waits for later work, which is no harm;
  of a stream's pending marks one thread at a time lets go, others go on [reaping];
  memory for what nobody has written is taken by the stream that computes: each reader has a mark made behind that.

An interrupt anywhere in an operation leaves it marked; a second one in the marking itself might not.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar
from itertools import count
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..engine import Engine, InternalError, Kind, Operation
from ..engine.atomic import attempt, commit, together
from ..engine.claims import here_and_now
from ..engine.parallel import alone
from .clock import Clock
from .driver import DeviceError, Driver
from .dtype import DType
from .memory import follow
from .shape import Shape

if TYPE_CHECKING:
    from .buffer import Buffer

RawArray = Any
T = TypeVar("T")
REMEMBERED = 32  # operations that an error of the device lists
AHEAD = 4096  # operations of one stream that may be enqueued and not passed
KEPT = 1 << 28  # bytes that may be kept for these, in blocks of at least
LARGE = KEPT // AHEAD
NUMBER = attrgetter("number")


class Mark:
    """A place on a stream, behind all of its marks of lower numbers.

    `event`: None once the stream has passed it.   `borrowed`: the memory that is kept until then.
    """

    __slots__ = ("borrowed", "event", "number", "stream")

    def __init__(self, stream: Stream, number: int, event: Any, borrowed: Sequence[Any]) -> None:
        self.stream, self.number, self.event = stream, number, event
        self.borrowed: Sequence[Any] = borrowed


class Stream:
    """A queue of the device.

    `seen`: of each other stream the number of a mark that this one has waited for.   `pending`: marks that it has not
    passed as far as is known, the oldest first.
    """

    __slots__ = ("lane", "native", "numbers", "pending", "reaping", "seen")

    def __init__(self, native: Any, lane: str) -> None:
        self.native, self.lane = native, lane
        self.numbers = count(1)
        self.reaping = allocate_lock()  # tried, never waited for
        self.seen: dict[Stream, int] = {}
        self.pending: deque[Mark] = deque()


def kept(stream: Stream) -> int:
    """Bytes that are kept for what a stream has not passed."""
    return sum(memory.nbytes for mark in tuple(stream.pending) for memory in tuple(mark.borrowed))


class Remote:
    """A buffer's memory on a device: see the module's text.  `read`: marks of its readers since it was written."""

    __slots__ = ("home", "raw", "read", "written")

    def __init__(self, raw: RawArray, home: Stream | None) -> None:
        self.raw, self.home = raw, home  # None: of another library
        self.written: Mark | None = None
        self.read: dict[Mark, None] = {}


class Accelerator:
    """A device with a stream for computing and one for copies in each direction."""

    queued = True

    def __init__(self, name: str, driver: Driver) -> None:
        self.name, self.driver = name, driver
        self.memory: Any = self
        self.xp, self.raw, self.special = driver.xp, driver.raw, driver.special
        self.taking: list[Any] = [None]  # the ticket of who takes memory for a buffer
        self.compute = Stream(driver.stream(), name)
        self.copy_in = Stream(driver.stream(), f"{name}-copy-in")
        self.copy_out = Stream(driver.stream(), f"{name}-copy-out")
        self.idle: list[Any] = []  # events
        self.enqueued: deque[str] = deque(maxlen=REMEMBERED)  # since the host last waited for all
        self.lost: str | None = None
        self.context = kernels_for(self)
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
        while True:
            ticket = object()
            self.taking[0] = ticket
            found = buffer.remote
            if found is not None:
                return found
            if _now.stream is None:
                raise InternalError(f"[{self.name}] memory is taken outside of an operation")
            new = Remote(self.empty(buffer.shape, buffer.dtype), _now.stream)
            if commit(self.taking, ticket, [(setattr, buffer, "remote", new)]):
                follow(new.raw)

    def adopt(self, buffer: Buffer, raw: RawArray) -> None:
        """Take what a kernel has made as the buffer's memory, or copy it."""
        if buffer.remote is None and raw.base is None and raw.flags.c_contiguous and raw.dtype == buffer.dtype:
            if _now.stream is None:
                raise InternalError(f"[{self.name}] memory is adopted outside of an operation")
            buffer.remote = Remote(raw if raw.shape == buffer.shape else raw.reshape(buffer.shape), _now.stream)
            follow(raw)
        else:
            buffer.view(raw.shape)[...] = raw

    def fetch(self, raw: RawArray) -> np.ndarray[Any, Any]:
        """A copy of a value on the host, for a kernel that computes there.  Blocks; within `enqueue` only."""
        self.synchronisations += 1
        return self.driver.fetch(raw)

    def release(self) -> int:
        """Give back what is idle, once the streams have passed what they were given, and the device's pool."""
        for stream in (self.compute, self.copy_in, self.copy_out):
            for mark in tuple(stream.pending)[-1:]:
                self.synchronize(mark)
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
        users: bool = False,
    ) -> Mark:
        """Give a stream the work of `function`, which uses these buffers.  `keeps`: stays until the stream is past it.
        `users`: it is no kernel, and runs in the context that it is called in.

        Raises what `function` does, and DeviceError if the device is lost.
        """
        made = list(dict.fromkeys(writes))
        read = [b for b in dict.fromkeys(reads) if b not in made]
        for buffer in read:
            if buffer.remote is None or buffer.remote.written is None:
                there: Any = buffer.device
                there._unwritten(buffer)
        with self._loses(), self.driver.on(stream.native):
            outer, _now.stream = _now.stream, stream
            try:
                self._prepare(stream, read, made)
                self.enqueued.append(words)
                clock = self._clock(stream)
                try:
                    if users:
                        function()
                    else:
                        self.context.copy().run(function)
                finally:
                    try:
                        mark = self._mark(stream, read, made, keeps)
                    except BaseException:  # an interrupt; to mark twice is no harm
                        self._mark(stream, read, made, keeps)
                        raise
                if clock is not None:
                    clock.stop()
            finally:
                _now.stream = outer
            borrows = any(memory.nbytes >= LARGE for memory in mark.borrowed)
            if len(stream.pending) > AHEAD or (borrows and kept(stream) > KEPT):
                self._catch_up(stream)
        return mark

    def _clock(self, stream: Stream) -> Clock | None:
        """Started, if the operation that runs is profiled."""
        op = here_and_now.stack[-1] if here_and_now.stack else None
        instrument = None if op is None or op.engine is None else op.engine._instrument
        if instrument is None:
            return None
        if self not in instrument.clocks:
            timer = self.driver.timer()
            self.driver.record(timer, stream.native)
            self.driver.synchronize(timer)
            instrument.clocks[self] = (monotonic(), timer)
        return Clock(self.driver, stream, *instrument.clocks[self])

    def _unwritten(self, buffer: Buffer) -> None:
        """Take memory for what is read and nobody has written: nd.empty."""
        mark = self.enqueue(self.compute, (), (), lambda: self.remote(buffer), "memory")
        remote: Any = buffer.remote
        if remote.written is None:
            remote.written = mark  # or another reader's: each is behind the taking

    def _prepare(self, stream: Stream, read: list[Buffer], made: list[Buffer]) -> None:
        """Let the stream wait for who used the buffers."""
        for buffer in read:
            self._await(stream, buffer.remote.written)  # type: ignore[union-attr]
        for buffer in made:
            remote = buffer.remote
            if remote is not None:
                for mark in (remote.written, *remote.read):
                    self._await(stream, mark)

    def _await(self, stream: Stream, mark: Mark | None) -> None:
        event = None if mark is None else mark.event  # read once: another thread may find that it has passed
        if mark is None or event is None or mark.stream is stream:
            return
        if stream.seen.get(mark.stream, 0) < mark.number:
            self.driver.wait(stream.native, event)
            stream.seen[mark.stream] = mark.number

    def _mark(self, stream: Stream, read: list[Buffer], made: list[Buffer], keeps: Sequence[Any]) -> Mark:
        """The mark behind what was just enqueued: the buffers learn of it, the stream keeps what it borrows."""
        try:
            event = self.idle.pop()
        except IndexError:
            event = self.driver.event()
        borrowed = list(keeps)
        for buffer in (*read, *made):
            remote = buffer.remote
            if remote is not None and remote.home is not stream:  # None: the kernel failed before it took memory
                borrowed.append(remote.raw)
        mark = Mark(stream, next(stream.numbers), event, borrowed)
        self.driver.record(event, stream.native)
        stream.pending.append(mark)
        for buffer in made:
            if buffer.remote is not None:
                buffer.remote.written, buffer.remote.read = mark, {}
        for buffer in read:
            marks: dict[Mark, None] = buffer.remote.read  # type: ignore[union-attr]
            marks[mark] = None
            for other in tuple(marks):
                if other.event is None or (other.stream is stream and other.number < mark.number):
                    marks.pop(other, None)
        self._reap(stream, 2)
        return mark

    def _catch_up(self, stream: Stream) -> None:
        """Wait for the oldest marks of a stream that is far behind."""
        while len(stream.pending) > AHEAD or kept(stream) > KEPT:
            with suppress(IndexError):  # it has passed meanwhile
                event = stream.pending[0].event
                if event is not None:
                    self.driver.synchronize(event)
            self._reap(stream, len(stream.pending))

    def _reap(self, stream: Stream, most: int) -> None:
        """Let go of what was kept for the oldest marks that the stream has passed."""
        attempt(stream.reaping, self._let_go, stream.pending, most)

    def renew(self) -> None:
        """In a forked child."""
        for stream in (self.compute, self.copy_in, self.copy_out):
            stream.reaping = allocate_lock()  # its holder may be a thread that is not here
        if not self.driver.forks:
            self.lost = f"[{self.name}] it was used before this process was forked; start processes with spawn"

    def _reap_all(self) -> None:
        for stream in (self.compute, self.copy_in, self.copy_out):
            self._reap(stream, len(stream.pending))

    def _let_go(self, pending: deque[Mark], most: int) -> None:
        for _ in range(most):
            if not pending or not self.driver.passed(pending[0].event):
                return
            mark = pending[0]
            borrowed = mark.borrowed  # dies after the steps
            together([
                (pending.popleft,), (self.idle.append, mark.event), (setattr, mark, "event", None),
                (setattr, mark, "borrowed", ()),
            ])  # fmt: skip
            del borrowed

    # ---- the host's waits ------------------------------------------------------------------------------------------

    def synchronize(self, mark: Mark | None) -> None:
        """Block until the stream has passed the mark.  Only on lanes' threads."""
        event = None if mark is None else mark.event  # read once: another thread may find that it has passed
        if event is None:
            return
        self.synchronisations += 1
        with self._loses():
            self.driver.synchronize(event)
        self._reap_all()
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
                self.synchronize(max(tuple(stream.pending), key=NUMBER, default=None))

        operation = Operation(Kind.KERNEL, run, f"wait for {self.name}", lane=self.copy_out.lane)
        engine.admit(lambda: (operation, (), (), (), [], [], False))
        operation.wait(timeout)

    def __repr__(self) -> str:
        return f"<{self.name}>"


class _Now(threading.local):
    stream: Stream | None = None  # the one that this thread gives work to


_now = _Now()

# What kernels are run for belongs to their context: what a finalizer or a function of the user runs in between, on the
# same thread, has another one.
_device: ContextVar[Any] = ContextVar("vardag_device", default=None)


def kernels_for(device: Any) -> Context:
    """A context for kernels on this device; None: the host."""
    new = Context()
    new.run(np.seterr, all="ignore")
    new.run(_device.set, device)
    new.run(alone.set, device is not None)
    return new


_host = kernels_for(None)


def on_the_host(function: Callable[..., T], *inputs: Any, **named: Any) -> T:
    """``function(*inputs, **named)``, whose kernels run on the host."""
    return _host.copy().run(function, *inputs, **named)


def computing() -> Any:
    """The device with streams for which kernels of this context run; None for the host."""
    return _device.get()
