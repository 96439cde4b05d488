"""The engine: the tracker, its runners, waits and MXNet's contract under one name.

Owns construction, `push`, stop and start.  Guarantees that bad input is refused at the call with nothing changed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextvars import Token
from inspect import CO_COROUTINE
from operator import attrgetter
from queue import SimpleQueue
from time import monotonic
from types import TracebackType
from typing import Any

from . import lifecycle
from .aio import operands
from .atomic import locked, unlocked
from .claims import here_and_now
from .contract import Contract, SavedOperator
from .coroutines import AsyncOperation, is_async
from .counters import Statistics
from .errors import ArgumentError, ArgumentTypeError, Cancelled, DeadlockError, EngineClosed, EngineTimeout
from .operation import DONE, RUNNING, Kind, Operation, fresh_error
from .outcome import Full, Park, park
from .profiler import Profile
from .ready import Lane
from .serial import Serial
from .site import here
from .threaded import PerDevice, Pooled
from .tracker import Plan
from .variable import Variable

POLICIES: dict[str, type[Serial] | type[Pooled] | type[PerDevice]] = {
    "NaiveEngine": Serial,
    "ThreadedEnginePooled": Pooled,
    "ThreadedEnginePerDevice": PerDevice,
}


class Engine(Contract):
    """Runs operations as soon as the variables they read, write and update allow.

    Parameters
    ----------
    kind : str, optional
        "ThreadedEnginePerDevice" (default), "ThreadedEnginePooled" or "NaiveEngine" (serial, for debugging and as the
        oracle of tests); default from ``VARDAG_ENGINE_TYPE``.
    workers : int, optional
        Threads for CPU work; default from ``VARDAG_CPU_WORKER_NTHREADS``, else the number of cores (2 to 8).
    schedule : int or object with ``rank(op)``, optional
        Randomises the order among ready operations: see `vardag.engine.testing.Seeded`.
    inline : bool, optional
        May cheap ready kernels run within their push?  Default yes, ``VARDAG_INLINE=0`` says no.
    fusion : bool, optional
        May large elementwise operators run together, tile by tile?  Default yes, ``VARDAG_FUSION=0`` says no.

    Examples
    --------
    >>> from vardag.engine import Engine
    >>> with Engine(workers=2) as e:
    ...     v, out = e.new_variable(), []
    ...     for i in range(3):
    ...         _ = e.push(lambda i=i: out.append(i), updates=[v])
    ...     e.wait_for_var(v)
    ...     print(out)
    [0, 1, 2]
    """

    def __init__(
        self,
        kind: str | None = None,
        workers: int | None = None,
        *,
        schedule: Any = None,
        inline: bool | None = None,
        fusion: bool | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind or os.environ.get("VARDAG_ENGINE_TYPE") or "ThreadedEnginePerDevice"
        policy = POLICIES.get(self.kind)
        if policy is None:
            raise ArgumentError(f"[Engine] kind {self.kind!r}: expected one of {', '.join(POLICIES)}")
        if workers is None:
            workers = _workers_wanted()
        if not isinstance(workers, int) or workers < 1:
            raise ArgumentError(f"[Engine] workers {workers!r}: expected a positive number")
        self.inline = os.environ.get("VARDAG_INLINE", "1") != "0" if inline is None else bool(inline)
        self.fusion = os.environ.get("VARDAG_FUSION", "1") != "0" if fusion is None else bool(fusion)
        self._policy = policy(workers)
        self._serial = policy.serial
        self._rank = self._policy.rank
        self.scheduled = schedule is not None
        if schedule is not None:
            from .testing import Seeded

            self._rank = (Seeded(schedule) if isinstance(schedule, int) else schedule).rank
        self._lane = self._policy.main
        self._lanes = {self._lane.name: self._lane}
        self.kernel_context = lifecycle.new_kernel_context()
        self._tokens: list[Token[Engine | None]] = []
        self._nested_until = 0.0  # at exit: until when operations may push
        lifecycle.register(self)

    # ================================================================================================ push
    def new_variable(self, name: str = "") -> Variable:
        """A new variable of this engine."""
        return Variable(self, name)

    def push(
        self,
        fn: Callable[..., Any] | SavedOperator,
        reads: Iterable[Any] = (),
        writes: Iterable[Any] = (),
        updates: Iterable[Any] = (),
        *,
        priority: int = 0,
        name: str = "",
        lane: str | None = None,
        nbytes: int = 0,
    ) -> Operation:
        """Push a function; it runs on a worker when what it needs is done.

        Parameters
        ----------
        fn : callable
            Called with no arguments if only variables are given.  If arrays are among `reads`, `writes`, `updates`,
            it is called with the raw memory of those arrays, in this order.  A `SavedOperator` is pushed as
            `push_operator` does.
        reads, writes, updates : iterable of Variable or array
            What it only reads, overwrites completely, reads and changes.  May repeat; read and written means updated.
        priority : int
            Higher runs first among the ready ones.
        name : str
        lane : str, optional
            Which lane's workers run it (per-device engine).
        nbytes : int
            How much memory `fn` will take and leave: it counts for `limits`.

        Returns
        -------
        Operation

        Sync: never blocks for a computation; a thread of the user's waits here while `limits` are reached.

        Raises
        ------
        ArgumentError, ArgumentTypeError, EngineClosed
            At the call, with nothing changed.  What `fn` raises is raised by waits.
        """
        if not callable(fn):
            if isinstance(fn, SavedOperator):
                return self.push_operator(fn, priority=priority)
            raise ArgumentTypeError(f"[push] fn {fn!r} is not callable")
        if type(reads) is not tuple:
            reads = operands(reads, "reads")
        if type(writes) is not tuple:
            writes = operands(writes, "writes")
        if type(updates) is not tuple:
            updates = operands(updates, "updates")
        name = name or getattr(fn, "__name__", "")
        code = getattr(fn, "__code__", None)
        if is_async(fn) if code is None else code.co_flags & CO_COROUTINE:
            op: Operation = AsyncOperation(fn, name, priority=priority, lane=lane, nbytes=nbytes, site=here(2))
        else:
            op = Operation(Kind.USER, fn, name, priority=priority, lane=lane, nbytes=nbytes, site=here(2))
        for v in (*reads, *writes, *updates):
            if type(v) is not Variable:
                self.admit(self._resolved(op, fn, reads, writes, updates))
                return op
        if lifecycle.checking is not None and op.kind is Kind.USER:
            op.fn = lifecycle.checking.watch(op, fn, variables=(*reads, *writes, *updates))
        return self._push(op, reads, writes, updates)

    def _push(self, op: Operation, reads: Any, writes: Any, updates: Any) -> Operation:
        """`admit` for operands that are variables already."""
        if self._T._is_owned():
            return self._without_t(self._push, op, reads, writes, updates)  # type: ignore[no-any-return]
        planned: Plan = (op, reads, writes, updates, (), [], False)  # dies after the lock is released
        full = -1
        try:
            locked(self._P, self._push_locked, op, planned)
        except Park:
            park()
        except Full as e:
            full = e.nbytes
        if full >= 0:
            self._hold(full, lambda: self._push_again(op, planned))
        if self._started is not self._lanes or self._serial:
            self._queued()
        return op

    def _push_again(self, op: Operation, planned: Plan) -> None:
        try:
            locked(self._P, self._push_locked, op, planned)
        except Park:
            park()

    def _push_locked(self, op: Operation, planned: Plan) -> None:
        guard = self._guard_p
        while True:
            if self._inlining is not None:
                self._promote()
            t = object()
            guard[0] = t
            if self._closed:
                self._refuse()
            if self._admit_op(op, planned, t):
                return

    def _new_lane(self, name: str) -> Lane:
        lane = self._policy.lane(name)
        while self._lanes.get(lane.name) is not lane:
            old = self._lanes
            lanes = {**old, lane.name: lane}  # (3.11) a collection in here may run code that pushes to a new lane too
            if self._lanes is old:  # no checkpoint from here to the store
                self._lanes = lanes  # its workers are started after the section
        return lane

    # ================================================================================================ observing
    def statistics(self) -> Statistics:
        """Counters of what was pushed and who ran it.  Sync: never blocks."""
        at_once = self.ran_at_once
        pushed, pending = self._seq + at_once, len(self._live) + len(self._inbox)
        return Statistics(
            pushed=pushed,
            completed=pushed - pending,
            pending=pending,
            inline=self._ran_inline + at_once,
            by_worker=self._ran_worker,
            by_helper=self._ran_helper,
            unseen=sum(not r.seen for r in list(self._unseen)) + self._unseen_more,
            workers=sum(t.is_alive() for lane in list(self._lanes.values()) for t in lane.threads),
            bytes=max(0, self._bytes_pushed - self._bytes_done),
            peak_bytes=self._bytes_peak,
            limits=self.limits(),
            held=self._held,
            gave_way=self._gave_way,
        )

    def profile(self) -> Profile:
        """A context manager that records every operation pushed while it is open.

        Examples
        --------
        >>> from vardag.engine import Engine
        >>> with Engine(workers=1) as e:
        ...     with e.profile() as p:
        ...         _ = e.push(lambda: None, name="nothing")
        ...         e.waitall()
        ...     [x.name for x in p.events]
        ['nothing']
        """
        return Profile(self)

    # ================================================================================================ life
    @property
    def stopped(self) -> bool:
        """Are pushes refused?"""
        return self._closed

    def stop(self, timeout: float | None = None) -> None:
        """Refuse further pushes, let everything pending end, and end the workers.

        Sync: blocks until everything is done.

        Raises
        ------
        DeadlockError
            Inside one of its operations.
        EngineTimeout
            After `timeout` seconds; the engine then refuses pushes and its workers still run.
        """
        for o in here_and_now.stack:
            if o.engine is self and o.state is not DONE:
                raise DeadlockError(f"[{o.name}] stops the engine that runs it")
        self._close()
        try:
            self._wait_cut(None if timeout is None else monotonic() + timeout)
        except EngineTimeout:
            self._log_unseen()
            raise
        self._apart(self._end_workers, None)
        if self._live or self._inbox:
            self._start_workers()  # another thread called `start` meanwhile, and pushed before it could see them end
        self._log_unseen()

    def _close(self) -> None:
        """Refuse pushes: a push that is being planned is either admitted before this returns, or sees it."""
        if self._T._is_owned():
            unlocked(self._T, self._close)
        else:
            locked(self._P, self._close_locked)

    def _close_locked(self) -> None:
        if self._inlining is not None:
            self._promote()
        self._guard_p[0] = object()  # this thread may be inside a plan of its own, which has to look again
        self._closed = True

    def _end_workers(self, timeout: float | None) -> None:
        self._end_own_loop(timeout)
        lanes = [lane for lane in list(self._lanes.values()) if lane.started]
        for lane in lanes:
            lane.wait_up(timeout)
            lane.stopping = True
            lane.bell.put(None)
        end = None if timeout is None else monotonic() + timeout
        for lane in lanes:
            for thread in [t for t in lane.threads if t.is_alive()]:
                thread.join(None if end is None else max(0.0, end - monotonic()))
            lane.stopping = any(t.is_alive() for t in lane.threads)
            lane.up = SimpleQueue()
            lane.started = False
        self._started = None

    def start(self) -> None:
        """Accept pushes again after `stop`; workers start with the first one.  Sync: never blocks."""
        self._closed = False

    def _refuse(self) -> None:
        if self._parking and here_and_now.stack:  # exit drains what was pushed before it, and what that pushes
            if monotonic() < self._nested_until:
                return
            raise EngineClosed("push by an operation while the process is ending")
        super()._refuse()

    def wait_op(self, op: Operation, timeout: float | None = None) -> None:
        """Wait until `op` is done; raise nothing of what it raised: see `Waiting.wait_op`."""
        if here_and_now.mailbox is not None and op.state is not DONE:
            self._would_block_its_loop(op)
        super().wait_op(op, timeout)
        if self._parking and op.cancelled and not here_and_now.stack:
            main = threading.current_thread() is threading.main_thread()
            if not main:
                park()  # the process ends by Ctrl-C, which cancelled it: to a daemon thread that is no error

    def _log_unseen(self) -> None:
        logged = False
        while not logged:
            roots, more = self._look_unseen()
            if not self._quiet:
                # Who cancelled knows it; and that exit ends an endless chain is no error of the program.
                own = (Cancelled, EngineClosed) if self._parking else Cancelled
                errors = [r for r in sorted(roots, key=attrgetter("seq")) if not r.seen and not isinstance(r.exc, own)]
                lifecycle.log_unseen([fresh_error(r, 0, None) for r in errors], more)
            logged = locked(self._T, self._take_unseen, roots, (), more, [])  # last: an interrupt loses none

    def cancel_pending(self) -> int:
        """Ask that nothing that has not started be started; returns how many operations were asked.

        They end in their turn (after what they depend on, even so) with `Cancelled`, which poisons what they would
        have changed; a whole overwrite heals that as always.  What runs goes on to its end.

        Sync: never blocks.

        Examples
        --------
        >>> from vardag.engine import Cancelled, Engine
        >>> from vardag.engine.testing import Gate
        >>> with Engine(workers=1) as e:
        ...     v, gate = e.new_variable(), Gate()
        ...     _ = e.push(gate, updates=[v])
        ...     gate.wait_entered()
        ...     _ = e.push(lambda: print("never"), updates=[v])
        ...     print(e.cancel_pending())
        ...     gate.open()
        ...     try:
        ...         e.wait_for_var(v)
        ...     except Cancelled:
        ...         print("cancelled")
        1
        cancelled
        """
        ops = [o for o in self._pending() if o.state is not RUNNING and o.state is not DONE]
        for o in ops:
            o.cancel()
        return len(ops)

    def use(self) -> lifecycle.Use:
        """``with engine.use():`` makes it the current engine of this context, and leaves it running afterwards."""
        return lifecycle.Use(self)

    def __enter__(self) -> Engine:
        self._tokens.append(lifecycle.enter(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        lifecycle.leave(self._tokens.pop())
        if kind is not None and not issubclass(kind, Exception):
            self.cancel_pending()  # Ctrl-C: do not first do everything that was asked before it
        self.stop()

    async def __aenter__(self) -> Engine:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if kind is not None and not issubclass(kind, Exception):
                self.cancel_pending()
            await self._all_done_async()  # suspends, where `stop` would block
        finally:
            self.__exit__(kind, error, tb)

    def __repr__(self) -> str:
        return f"<Engine {self.kind}, {self._lane.workers} workers, {len(self._live) + len(self._inbox)} pending>"


def _workers_wanted() -> int:
    text = os.environ.get("VARDAG_CPU_WORKER_NTHREADS")
    if not text:
        return min(8, max(2, os.cpu_count() or 2))
    try:
        return int(text)
    except ValueError:
        raise ArgumentError(f"[Engine] VARDAG_CPU_WORKER_NTHREADS={text!r}: expected a number") from None
