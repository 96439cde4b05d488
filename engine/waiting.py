"""Waits: they help, time out, explain, and find deadlocks.

Owns every way of blocking on an operation.  Guarantees:

- a wait binds to an *operation* at the call, so later pushes, renames and healing writes change neither what it waits
  for nor what it raises;
- a thread that is not a worker runs only ready atomic kernels and brief segments that its wait needs; a worker inside
  an operation runs anything that its wait needs, and when half its stack is used it starts a spare worker instead;
- a wait that needs the operation it is made in raises `DeadlockError` at once (only waits on the thread that runs the
  operation can be seen so; others end by ``timeout``);
- Ctrl-C is heard: nothing sleeps longer than `SLICE` without looking.  Nor does an operation stay without a runner for
  longer, if somebody waits for it: an interrupted runner gives it back at once, and only after a third exception in a
  row does the next look of a wait find it.
                                      [test_guards: test_an_operation_whose_runner_is_interrupted_again_and_again]

RACE "crossed waits": two operations wait for each other.  Each publishes what it waits for (`blocked`) *before* it
searches, so the later one sees both edges.  [test_waits: test_crossed_waits]
"""

from __future__ import annotations

import threading
from _thread import get_ident, start_new_thread
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from . import lifecycle
from .atomic import commit, locked
from .claims import deep, here_and_now, in_wait
from .errors import ArgumentError, ArgumentTypeError, DeadlockError, EngineTimeout
from .joining import brief
from .operation import DONE, NEW, OK, READY, RUNNING, Kind, Operation
from .site import describe, here
from .variable import Variable
from .workers import Workers

BOUND = 64  # how far a user's thread looks for a kernel to help with
SLICE = 0.05  # seconds: the longest sleep.  Windows cannot interrupt a lock, and runners that vanished are found
CHAIN = 20  # lines of an explanation

ATOMIC = Kind.ATOMIC
Bell = SimpleQueue[None]


class Waiting(Workers):
    """The runner, and everything that blocks."""

    # ================================================================================================ public waits
    def wait_for_var(self, variable: Variable, timeout: float | None = None) -> None:
        """Wait until everything pushed so far that writes `variable` is done, and raise its error.

        Parameters
        ----------
        variable : Variable
        timeout : float, optional
            Seconds.

        Sync: blocks until the last writer pushed before this call is done; runs kernels that it needs meanwhile.

        Raises
        ------
        OperatorError
            At the wait, every time, fresh: of the original exception's type where it can be rebuilt.
        EngineTimeout
            After `timeout` seconds; the text explains what blocks what.
        DeadlockError
            At once, inside an operation that `variable` needs.

        Examples
        --------
        >>> from vardag.engine import Engine
        >>> with Engine(workers=1) as e:
        ...     v = e.new_variable()
        ...     _ = e.push(lambda: print("ran"), writes=[v])
        ...     e.wait_for_var(v)
        ran
        """
        self._check(variable)
        op = variable.writer  # the version as of this call
        if op is None:
            return
        if op.state is not DONE:
            self.wait_op(op, timeout)
        if op.fate is not OK:
            op.raise_error()

    def wait_to_write(self, variable: Variable, timeout: float | None = None) -> None:
        """Like `wait_for_var`, and for everything pushed so far that reads `variable` too.

        Sync: blocks until those operations are done.

        Raises
        ------
        OperatorError, EngineTimeout, DeadlockError
            As `wait_for_var`; a reader's own error is not raised here.
        """
        self._check(variable)
        op = variable.writer
        readers = tuple(variable.readers)
        end = None if timeout is None else monotonic() + timeout
        for o in (*readers, op):
            if o is not None and o.state is not DONE:
                self.wait_op(o, None if end is None else max(0.0, end - monotonic()))
        if op is not None and op.fate is not OK:
            op.raise_error()

    def wait_for_all(self, timeout: float | None = None) -> None:
        """Wait for all operations pushed before this call, and raise every error that nobody has seen.

        Parameters
        ----------
        timeout : float, optional
            Seconds, for the whole wait.

        Sync: blocks until they are done.

        Raises
        ------
        EngineErrors
            An ExceptionGroup of all unseen first causes; each is raised by exactly one `wait_for_all`.
        DeadlockError
            Inside an operation: it would wait for itself.
        EngineTimeout
            After `timeout` seconds.

        Examples
        --------
        >>> from vardag.engine import Engine, EngineErrors
        >>> with Engine(workers=1) as e:
        ...     _ = e.push(lambda: 1 / 0), e.push(lambda: [][1])
        ...     try:
        ...         e.wait_for_all()
        ...     except EngineErrors as group:
        ...         print([type(x).__name__ for x in group.exceptions])
        ['ZeroDivisionError', 'IndexError']
        """
        for o in here_and_now.stack:
            if o.engine is self and o.state is not DONE:
                raise DeadlockError(f"[{o.name or 'operation'}] waits for all operations, itself among them")
        self._wait_cut(None if timeout is None else monotonic() + timeout)
        self._raise_unseen(here(2))

    waitall = wait_for_all

    def throw(self, variable: Variable) -> None:
        """Raise the error of `variable`'s last writer, if that is done and failed.

        Sync: never blocks.

        Raises
        ------
        OperatorError
            As `wait_for_var`.
        """
        self._check(variable)
        op = variable.writer
        if op is not None and op.state is DONE and op.fate is not OK:
            op.raise_error()

    def raise_error(self, op: Operation) -> None:
        """Raise the error of a finished operation; nothing if it is well or not done.  Sync: never blocks."""
        op.raise_error()

    # ================================================================================================ one operation
    def wait_op(self, op: Operation, timeout: float | None = None) -> None:
        """Wait until `op` is done; raise nothing of what it raised.   Sync: blocks until then.

        Raises
        ------
        EngineTimeout, DeadlockError
            See `wait_for_var`.
        """
        if op.state is DONE:
            return
        if op.seq < 0 or op.engine is not self:
            raise ArgumentError(f"[{op.name or 'operation'}] was not pushed to this engine")
        if self._started is not self._lanes:
            self._start_workers()
        if self._dwelling:
            self._end_dwelling()
        if self._T._is_owned() or self._P._is_owned():
            self._apart(self.wait_op, op, timeout)  # a finalizer inside a section
            return
        if self._serial:
            self._run_ready()
        stack = here_and_now.stack
        current = stack[-1] if stack else None
        end = None if timeout is None else monotonic() + timeout
        queue: Bell = SimpleQueue()
        watched: list[Operation] = []
        outer, instrument, began = here_and_now.target, self._instrument, monotonic()
        if self._serial:
            self._turn_bells.append(queue)
        again = get_ident() in in_wait
        try:
            here_and_now.target = current, op
            if here_and_now.turn and not again:
                self._give_way()
            self._until_done(op, end, timeout, queue, watched, current)
        finally:
            here_and_now.target = outer
            if instrument is not None:
                instrument.waited(op, began)
            if current is not None:
                # A finalizer's wait inside a wait gives back what it found, but nothing of another thread that runs
                # a share of the same operation.                [test_shared: test_finalizers_on_two_threads]
                current.blocked = outer[1] if outer[0] is current else None
            if not again:
                in_wait.discard(get_ident())
            self._leave(watched, queue)

    def _give_way(self) -> None:
        """This thread has the turn of a serial engine: while it waits, others may run what they need there."""
        me = get_ident()
        in_wait.add(me)
        for engine in lifecycle.living():
            if engine._turn_thread == me:
                engine._ring_turn()

    def _leave(self, watched: list[Operation], queue: Bell) -> None:
        if self._serial:
            with suppress(ValueError):  # in a child forked by a handler inside the wait
                self._turn_bells.remove(queue)
        for o in watched:
            locked(self._T, self._forget, o, queue)

    def _forget(self, op: Operation, queue: Bell) -> None:
        if queue in op.watch:
            op.watch.remove(queue)  # type: ignore[union-attr]

    def _until_done(
        self,
        target: Operation,
        end: float | None,
        timeout: float | None,
        queue: Bell,
        watched: list[Operation],
        current: Operation | None,
    ) -> None:
        while not target.done:
            worker = self._may_run_all()
            op, told = locked(self._T, self._next_for, target, queue, watched, worker, current)
            if self._fuzz is not None:
                op = self._fuzz.pause(self, target, op, end)
            if op is not None and (worker or not self._serial):
                if worker and deep():
                    self._spare(queue, op)
                elif not self._serial or here_and_now.stack or self._turn_lock.locked() or not self._run_ready():
                    self._run(op)
            elif told or op is not None:
                left = SLICE if end is None else min(SLICE, end - monotonic())
                if left <= 0:
                    raise EngineTimeout(
                        f"{timeout} s passed; waiting at {describe(here(2))} for\n{self.explain(target)}"
                    )
                self._sleep(queue, left)

    def _may_run_all(self) -> bool:
        """May this thread run users' functions?  Workers, of whatever engine: its own workers may all be waiting for
        other engines.  In the serial engine whoever has the turn or can have it; or if who has it waits itself, perhaps
        for this thread: one thing at a time, but none for ever.
                            [test_engines_together: test_two_serial_engines_whose_turns_wait_for_each_other]
        """
        if not self._serial:
            return here_and_now.worker is not None
        holder = self._turn_thread
        return not self._turn_lock.locked() or holder == get_ident() or holder in in_wait

    def _next_for(
        self, target: Operation, queue: Bell, watched: list[Operation], worker: bool, current: Operation | None
    ) -> tuple[Operation | None, bool]:
        """T held.  An operation to run for `target`, or None and whether word is left where this thread is to be
        woken.
        """
        self._drain()
        if current is not None:
            current.blocked = target  # before the search: race "crossed waits"
            cycle = needs(target, set(here_and_now.stack))
            if cycle is not None:
                raise DeadlockError(
                    f"[{current.name or 'operation'}] waits for [{target.name or 'operation'}] pushed at "
                    f"{describe(target.site)}, which needs [{cycle.name or 'operation'}], which cannot end before it"
                )
        op, watch = self._needed(target, worker)
        if op is not None or target.state is DONE:
            return op, False
        t = object()
        self._guard_t[0] = t
        new = [o for o in watch if o not in watched]
        # A list of its own is started privately: the field may hold the empty tuple.
        if any(o.state is DONE for o in watch) or not commit(
            self._guard_t, t, [(setattr, o, "watch", [*o.watch, queue]) for o in new]
        ):
            return None, False
        watched[:] = [*(o for o in watched if o.state is not DONE), *new]
        return None, True

    def _needed(self, target: Operation, worker: bool) -> tuple[Operation | None, list[Operation]]:
        """T held.  (a ready operation that `target` needs and this thread may run, _) or (None, whose end to watch).

        A worker watches whatever runs of what its target needs: each may make something ready that only this thread
        is free to run.  Users' threads leave that to the workers; and a kernel that takes memory too, unless it is what
        its lane would run next, or the oldest of all that the target needs: else they would fill the memory with
        temporaries from the end of a long program while the workers are at its beginning.
                                                     [test_memory: test_the_gradient_loop_needs_one_temporary]
        """
        oldest: Operation | None = None
        seen: set[Operation] = set()
        todo = [target]
        running: list[Operation] = []
        while todo:
            o = todo.pop()
            state = o.state
            if state is DONE or o in seen:
                continue
            seen.add(o)
            if not worker and len(seen) > BOUND:
                oldest = None  # there may be older ones
                break
            if state is READY:
                # The heap may be empty: a handler in this very section may push, and give T away for that.
                here_too = o.kind is ATOMIC or brief(o)
                if worker or (here_too and (not o.nbytes or any(top[2] is o for top in o.lane.heap[:1]))):
                    return o, running
                if here_too and (oldest is None or o.seq < oldest.seq):
                    oldest = o
            elif state is RUNNING:
                if self._orphan(o):
                    self._repair(o)  # what waited for it may be READY now: begin anew
                    seen.clear()
                    running.clear()
                    oldest, todo = None, [target]
                else:
                    running.append(o)
            else:
                todo.extend(reversed(o.preds))  # the oldest first
        return oldest, running if worker and running else [target]

    def _sleep(self, queue: Bell, seconds: float) -> None:
        """No lock held."""
        with suppress(Empty):
            queue.get(timeout=seconds)

    # ------------------------------------------------------------------------------------------------ deep stacks
    def _spare(self, queue: Bell, op: Operation) -> None:
        """This stack is too deep to help on.  A thread of its own runs the operation, then ends."""
        try:
            start_new_thread(self._spare_work, (queue, op))
        except RuntimeError:  # there are too many
            self._run(op)
        else:
            if op.state is READY:
                self._sleep(queue, SLICE)  # until it ends: the next round watches it, or looks for a runner again

    def _spare_work(self, queue: Bell, op: Operation) -> None:
        here_and_now.worker = self
        try:
            while op.state is READY:  # what runs in between may have it claimed, or given back
                self._run(op)  # this one and no other: another may wait for the stack that waits here
        finally:
            queue.put(None)

    # ================================================================================================ all operations
    def _wait_cut(self, end: float | None) -> None:
        """Wait for what is admitted now: a cut, else two steady pushers would keep it here for ever."""
        ops = self._pending()
        ops.reverse()  # the last first: when that is done, most are
        for o in ops:
            if o.state is not DONE:
                self.wait_op(o, None if end is None else max(0.0, end - monotonic()))

    def _pending(self) -> list[Operation]:
        """What is admitted and not done now, in push order."""
        return locked(self._T, self._pending_locked)

    def _pending_locked(self) -> list[Operation]:
        # Each list() is one C call.  The inbox first: code that runs in between may drain it, never fill it from there.
        fresh = list(self._inbox)
        return list(dict.fromkeys([*list(self._live.values()), *fresh]))

    # ================================================================================================ explanations
    def explain(self, target: Operation) -> str:
        """What `target` waits for, a line each: state, thread, running time, where it was pushed.

        Sync: never blocks on a computation.
        """
        lines: list[str] = []
        seen: set[Operation] = set()
        threads = {t.ident: t.name for t in threading.enumerate()}
        self._explain(target, "", "", lines, seen, threads)
        return "\n".join(lines)

    def _explain(
        self, o: Operation, indent: str, why: str, lines: list[str], seen: set[Operation], threads: dict[Any, str]
    ) -> None:
        if len(lines) >= CHAIN:
            if len(lines) == CHAIN:
                lines.append(f"{indent}...")
            return
        again = o in seen
        seen.add(o)
        text = f"{indent}{why}[{o.name or 'operation'}] #{o.seq} {o.state.value}"
        claim = o.claim if o.state is RUNNING else None  # what ran within its push never had one
        if claim is not None:
            handed = o.kind is Kind.ASYNC and o.mark == 1
            where = "awaiting its on_complete" if handed else f"on {threads.get(claim[2], 'a thread that is gone')}"
            text += f", {where}, for {monotonic() - claim[3]:.3f} s"
        lines.append(f"{text}, pushed at {describe(o.site)}{', see above' if again else ''}")
        if again or o.state is DONE:
            return
        if o.blocked is not None and o.blocked.state is not DONE:
            self._explain(o.blocked, indent + "  ", "which waits for ", lines, seen, threads)
        for p in o.preds:
            if p.state is not DONE:
                self._explain(p, indent + "  ", "after ", lines, seen, threads)

    # ------------------------------------------------------------------------------------------------ arguments
    def _check(self, variable: Variable) -> None:
        if not isinstance(variable, Variable):
            raise ArgumentTypeError(f"expected a Variable, got {type(variable).__name__}")
        if variable.engine is not self:
            self._foreign(variable)


def needs(target: Operation, mine: set[Operation]) -> Operation | None:
    """Which of `mine` does `target` need, over predecessors and over what running operations wait for?

    Needs no lock: an operation's ancestors never grow after its admission.
    """
    seen: set[Operation] = set()
    todo = [target]
    while todo:
        o = todo.pop()
        if o.state is DONE or o in seen:
            continue
        if o in mine:
            return o
        seen.add(o)
        todo.extend(o.preds)
        if o.state is not NEW and o.blocked is not None:
            todo.append(o.blocked)
    return None
