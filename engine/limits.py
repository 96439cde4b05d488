"""Back-pressure: how far pushes may run ahead of what is done, in bytes and in number.

Owns the two bounds, the threads that are held at them, and what an operation does when memory runs out.

WHAT COUNTS.  An operation that is queued counts the bytes that it will allocate (`Operation.nbytes`: outputs, renames)
and those that it alone keeps alive until it is done (`Operation.carried`: temporaries, inputs that nobody counts).
When it is done, what it allocated counts on with the last admitted operation that reads it, since that one keeps the
memory alive (`Tracker._give_back`).  So ``a = big(x); w += a`` counts `a` until ``w += a`` is done, not only until `a`
is computed: else a program whose `w` is slow would fill the memory with finished temporaries.  What runs within its
push counts nothing.

GUARANTEES
    G1  Bytes in flight stay within the bound, save for one operation that is larger alone, and for what pushers that
        never wait admit: operations, workers, finalizers and signal handlers inside the engine, threads that run an
        event loop.  They would wait for themselves, or for what they stop from running.
    G2  Held pushes are admitted in the order of their arrival, so that a large one is not overtaken for ever.
    G3  Nobody is held for ever: where only users' functions run (one of them may wait for the very thread that is
        held) and nothing has ended for `PATIENCE` seconds, the bound gives way until something ends, and the log says
        what blocks.  A wait of the user's own, in a helper thread say, cannot be seen in another way.
    G4  A push that is held runs nothing but ready atomic kernels, holds no lock, and can be interrupted; it is then
        not admitted.

PRICE.  Far from the bounds a queued push compares two integers with `_look_bytes` and `_look_seq`: what `_bytes_pushed`
and `_seq` may reach before anybody has to look.  They are hints under P, and too low is always right.  A push that runs
at once pays nothing.

FIELDS      P: `_bytes_pushed`, `_bytes_peak`, `_look_bytes`, `_look_seq`, the bounds.      T: `_bytes_done`, `_room`,
`_held`.  The two byte counters only grow, each under a lock of its own, so pushers and workers share no counter:
pushed - done is what is in flight, and a stale `_bytes_done` errs to the safe side.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import os
import sys
from _thread import get_ident
from collections.abc import Callable
from itertools import starmap
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, Final

from . import lifecycle
from .atomic import call, commit, locked
from .claims import Job, empty, here_and_now
from .errors import ArgumentError, DeadlockError, EngineTimeout, release_frames
from .held import Held
from .mail import ring_all
from .operation import READY, RUNNING, Kind, Operation
from .outcome import Full
from .shared import exhaust
from .site import describe, here
from .waiting import BOUND, SLICE, Waiting

log = logging.getLogger("vardag")

# Operations pending.  Each costs about a kilobyte of Python objects, so that these are some 100 MB, and they are half a
# second of work: the workers never run dry, and a loop that pushes faster than they run cannot fill the memory.
COUNT = 2**17
PATIENCE = 10.0  # seconds without an end after which the bound gives way
MEMORY_PATIENCE = 10.0  # seconds that an operation without memory waits for the kernels that run beside it
UNKNOWN_MACHINE = 8 << 30  # bytes: what a machine that does not say is taken to have
KEEP: Final = object()  # "leave this bound as it is"
#: What is called when memory runs out, to give back what is kept for later.  Never blocks.
low_memory_hooks: list[Callable[[], object]] = []


@dataclasses.dataclass(frozen=True)
class Limits:
    """The bounds of what is pushed and not finished.  ``with engine.limits(...):`` puts the old ones back."""

    bytes: int | None
    """Of memory that pending operations will take or keep; None: no bound."""
    count: int | None
    """Of pending operations; None: no bound."""
    _engine: Any = dataclasses.field(repr=False, compare=False)

    def __enter__(self) -> Limits:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._engine.limits(bytes=self.bytes, count=self.count)


class Pressure(Waiting):
    """The engine's waits, and pushes that wait."""

    def __init__(self) -> None:
        super().__init__()
        self._limit_bytes: int | None = machine_memory() // 4
        self._limit_count: int | None = COUNT
        self._clock: Callable[[], float] = monotonic  # tests put their own here
        self._stalled = -1  # the number of ended operations at which the bound has given way.  A single store
        self._gave_way = 0
        self._held = 0
        self._starved: list[Operation] = []  # operations without memory that wait for others.  T

    # ================================================================================================ the bounds
    def limits(self, *, bytes: Any = KEEP, count: Any = KEEP) -> Limits:
        """Set bounds of what is pushed and not finished; over them a push from a user's thread waits.

        Parameters
        ----------
        bytes : int or None, optional
            Of the memory that pending operations will take or keep.  Default: a quarter of the machine's (of the
            container's) memory.  None: no bound.
        count : int or None, optional
            Of pending operations.  Default: 131,072.  None: no bound.

        Returns
        -------
        Limits
            The old ones; as a context manager it puts them back.

        Sync: never blocks.

        Raises
        ------
        ArgumentError
            At the call, with nothing changed.

        Examples
        --------
        >>> from vardag.engine import Engine
        >>> with Engine(workers=1) as e:
        ...     old = e.limits(bytes=2**20, count=1000)
        ...     e.limits()
        Limits(bytes=1048576, count=1000)
        """
        for name, value, least in (("bytes", bytes, 0), ("count", count, 1)):
            if value is not KEEP and value is not None and (type(value) is not int or value < least):
                raise ArgumentError(f"[limits] {name} {value!r}: expected None or a number from {least} on")
        old = Limits(self._limit_bytes, self._limit_count, self)
        if bytes is not KEEP or count is not KEEP:
            if self._T._is_owned():
                self._without_t(self._set_limits, bytes, count)
            else:
                self._set_limits(bytes, count)
        return old

    def _set_limits(self, nbytes: Any, count: Any) -> None:
        locked(self._P, self._set_limits_locked, nbytes, count)
        steps: list[Any] = []
        for entry in self._room:
            entry.wake(steps)
        exhaust(starmap(call, steps))
        ring_all()

    def _set_limits_locked(self, nbytes: Any, count: Any) -> None:
        if nbytes is not KEEP:
            self._limit_bytes = nbytes
        if count is not KEEP:
            self._limit_count = count
        self._look_bytes = -1  # the next push looks

    # ================================================================================================ admission (P)
    def _look(self, op: Operation, nbytes: int) -> None:
        """P held.  `op` is about to be queued, and a hint says to look: return if it may be, else raise `Full`."""
        flight = self._bytes_pushed - self._bytes_done
        pending = len(self._live) + len(self._inbox)
        most, count = self._limit_bytes, self._limit_count
        fits = (most is None or not flight or flight + nbytes <= most) and (count is None or pending < count)
        first = self._first()
        if fits and first is None:
            self._look_bytes = inf if most is None else self._bytes_done + most
            self._look_seq = inf if count is None else self._seq + count - pending
            return
        self._look_bytes = -1  # whoever comes looks too: G2
        if fits and first is not None and first.thread == get_ident():
            return
        mine = here_and_now
        if mine.forced or self._serial or mine.worker is not None or mine.stack or self._stalled == self._ended():
            return
        raise Full(nbytes)

    def has_room(self, nbytes: int) -> bool:
        """P held.  Is there room for so many bytes that could be done without?  The half of it is for the others."""
        most = self._limit_bytes
        return most is None or (self._bytes_pushed - self._bytes_done + nbytes <= most // 2 and not self._room)

    def _first(self) -> Held | None:
        """Of the threads that are held the one that came first."""
        found: Held | None = next((entry for entry in self._room if entry.busy.locked()), None)
        return found

    def _ended(self) -> int:
        """How many queued operations have ended; approximate while it changes."""
        return self._seq - self._ran_inline - len(self._live) - len(self._inbox)

    def _renew_limits(self) -> None:
        """In a forked child: nothing is in flight, nobody is held."""
        self._bytes_done, self._bytes_peak = self._bytes_pushed, 0
        self._look_bytes = self._look_seq = self._stalled = -1
        self._held = self._gave_way = 0
        self._room = ()
        self._starved.clear()

    # ================================================================================================ held pushes
    def _hold(self, nbytes: int, again: Callable[[], Any]) -> Any:
        """No lock held.  A push did not fit: wait until it does, and admit it.

        ``again()`` tries to admit it, and raises `Full` if it still does not fit.
        """
        if not self._may_wait():
            return self._admit_anyway(again)
        entry = Held(nbytes, self._ended(), self._clock())
        try:
            return locked(entry.busy, self._hold_busy, entry, again)
        finally:
            locked(self._T, self._let_go, entry)
            ring_all()

    def _admit_anyway(self, again: Callable[[], Any]) -> Any:
        try:
            here_and_now.forced = True
            return again()
        finally:
            here_and_now.forced = False

    def _may_wait(self) -> bool:
        """May the calling thread be held?  Not if something that could make room waits for it (G1)."""
        me, mine = get_ident(), here_and_now
        if mine.worker is not None or mine.stack or (mine.busy is not None and mine.busy.locked()):
            return False  # inside an operation, or a finalizer inside a kernel that this thread helps with
        if self._P._is_owned() or self._T._is_owned():
            return False  # a finalizer or a signal handler inside a section, of whatever engine
        for e in lifecycle.living():
            if any(entry.thread == me and entry.busy.locked() for entry in e._room):
                return False  # one inside a push that is held itself
        asyncio = sys.modules.get("asyncio")
        return asyncio is None or asyncio._get_running_loop() is None

    def _hold_busy(self, entry: Held, again: Callable[[], Any]) -> Any:
        locked(self._T, self._enter_room, entry)
        while True:
            if (self._fits(entry) or self._stalled == self._ended()) and self._admitted(entry, again):
                return entry.result
            op = locked(self._T, self._next_atomic)
            if op is not None:
                self._run(op)
            else:
                self._sleep(entry.bell, SLICE)
                empty(entry.bell)
            self._look_for_stall(entry)

    def _admitted(self, entry: Held, again: Callable[[], Any]) -> bool:
        try:
            entry.result = again()
        except Full as e:
            entry.nbytes = e.nbytes
            return False
        return True

    def _enter_room(self, entry: Held) -> None:
        """T held."""
        while True:
            t = object()
            self._guard_t[0] = t
            alive = (*(e for e in self._room if e.busy.locked()), entry)
            if commit(self._guard_t, t, [(setattr, self, "_room", alive), (setattr, self, "_held", self._held + 1)]):
                return

    def _let_go(self, entry: Held) -> None:
        """T held.  If this is cut short the entry stays, without its lock: see `_first`."""
        while entry in self._room:
            t = object()
            self._guard_t[0] = t
            rest = tuple(e for e in self._room if e is not entry)
            steps: list[Any] = [(setattr, self, "_room", rest)]
            if rest:
                rest[0].wake(steps)  # it is the first now
            commit(self._guard_t, t, steps)

    def _fits(self, entry: Held, given: int = 0, ended: int = 0) -> bool:
        """Is it this one's turn, and is there room for it (when `given` bytes and `ended` operations less count)?

        By number an eighth has to be free, else each end of a tiny operation would switch threads for one push.
        """
        flight = self._bytes_pushed - self._bytes_done - given
        most, count = self._limit_bytes, self._limit_count
        first = self._first()
        return (
            (first is entry or first is None)  # None: in a child forked by a handler on this very thread
            and (most is None or not flight or flight + entry.nbytes <= most)
            and (count is None or len(self._live) + len(self._inbox) - ended < count - count // 8)
        )

    def _wake_held(self, steps: list[Any], given: int) -> None:
        """T held.  An operation ends and gives back so many bytes: ring for the first of those held, if it fits now."""
        entry = self._first()
        if entry is not None and self._fits(entry, given, 1):
            entry.wake(steps)

    def _next_atomic(self) -> Operation | None:
        """T held.  A ready kernel that any thread may run."""
        self._drain()
        for lane in list(self._lanes.values()):
            for _, _, op in lane.heap[:BOUND]:
                if op.state is READY and op.kind is Kind.ATOMIC:
                    return op
        return None

    # ------------------------------------------------------------------------------------------------ giving way
    def _look_for_stall(self, entry: Held) -> None:
        """G3."""
        ended = self._ended()
        if ended != entry.ended:
            entry.ended, entry.since = ended, self._clock()
        elif ended != self._stalled and self._clock() - entry.since >= PATIENCE:
            ops = self._pending()
            running = [o for o in ops if o.state is RUNNING]
            if any(o.kind is Kind.ATOMIC or o.kind is Kind.KERNEL for o in running):
                return  # the library's own end by themselves
            # Once for each stall: whoever comes until something ends finds the bound open, and logs nothing.
            self._stalled = ended
            self._gave_way += 1
            waiting = [o for o in ops if o.state is not RUNNING][:1]
            chain = "\n".join(self.explain(o) for o in waiting or running[:1])
            log.warning(
                "a push at %s was held for %.0f s: %d operations with %d bytes are pushed and not finished (bounds: "
                "%s operations, %s bytes), only users' functions run, and none has ended.  The bound gives way until "
                "one does.  What blocks:\n%s",
                describe(here(2)),
                self._clock() - entry.since,
                len(ops),
                self._bytes_pushed - self._bytes_done,
                self._limit_count,
                self._limit_bytes,
                chain,
            )

    # ================================================================================================ out of memory
    def _worth_repeating(self, op: Operation, claim: list[Any], token: object, e: BaseException) -> bool:
        """Memory ran out in the library's own operation, and nothing is lost if it is run again."""
        if not isinstance(e, MemoryError) or op.kind not in (Kind.ATOMIC, Kind.KERNEL):
            return False  # what a user's function has done before, nobody knows
        if op.tries < (1 if op.kind is Kind.ATOMIC and op.mark == 0 else 2):
            return False  # its kernel had begun to change something in place, or this is the second time
        if claim[0] is not token or op.claim is not claim:
            return False
        op.tries = 0
        op.mark = 0  # whoever interrupts what follows leaves an operation that has not started
        release_frames(e)  # what it had allocated is free
        return True

    def _make_room(self, job: Job) -> bool:
        """Free what can be freed, and let the kernels beside this one end.  False: it is not its job any more.

        No lock held, the job claimed by this thread.  It does not wait for users' functions: one may wait for this very
        operation.  Nor for operations that are in here themselves.  So nothing waits in a circle, and `MEMORY_PATIENCE`
        bounds what a very long kernel can cost.
        """
        op, claim, token = job
        gc.collect()
        for hook in low_memory_hooks:
            hook()
        end = monotonic() + MEMORY_PATIENCE
        locked(self._T, self._starved.append, op)
        try:
            self._let_end(end)
        finally:
            locked(self._T, self._fed, op)
        return op.claim is claim and claim[0] is token  # a finalizer that waits for it has it done elsewhere

    def _fed(self, op: Operation) -> None:
        if op in self._starved:
            self._starved.remove(op)

    def _let_end(self, end: float) -> None:
        for o in self._pending():
            if o.state is RUNNING and o.kind in (Kind.ATOMIC, Kind.KERNEL):
                while o.state is RUNNING and o not in self._starved and self._left(o, end):
                    pass

    def _left(self, o: Operation, end: float) -> bool:
        """Wait a little for `o`; False if that is no use (any more)."""
        left = end - monotonic()
        if left <= 0:
            return False
        try:
            self.wait_op(o, min(SLICE, left))
        except EngineTimeout:
            return True
        except DeadlockError:
            return False
        return False


@functools.cache
def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that this process runs in."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not POSIX
        total = UNKNOWN_MACHINE
    granted = [n for n in map(_number_in, CGROUPS) if n > 0]
    return min(total if total > 0 else UNKNOWN_MACHINE, *granted, 1 << 62)


CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def _number_in(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):  # no such file, or "max"
        return 0


def limits(*, bytes: Any = KEEP, count: Any = KEEP) -> Limits:
    """Set the current engine's bounds: see `Engine.limits`.

    Examples
    --------
    >>> from vardag import engine
    >>> with engine.Engine(workers=1), engine.limits(bytes=2**20):
    ...     engine.limits().bytes
    1048576
    >>> engine.limits().bytes == 2**20
    False
    """
    return lifecycle.current().limits(bytes=bytes, count=count)
