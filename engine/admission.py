"""Admission: a push becomes an operation with its place in the order, or runs at once.

Owns everything under lock P: the order of pushes, the variables' fields, and the kernels that run within their push.
Locks, invariants and the named races are in tracker.py.
"""

from __future__ import annotations

import sys
import threading
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable
from contextvars import Context
from itertools import starmap
from queue import SimpleQueue
from time import monotonic
from typing import Any

from .atomic import Step, call, commit, index, locked, setitem, unlocked
from .errors import ArgumentError, EngineClosed
from .joining import Fusible, Joining
from .operation import DONE, NEW, OK, RUNNING, Fate, Kind, Operation, Root, user_context, worst
from .outcome import RAISE, Full, Park, all_done, fails_again, own_error, park, strongest, var_steps
from .ready import Lane
from .site import here
from .tracker import Plan
from .variable import Variable

ATOMIC = Kind.ATOMIC
AHEAD = 2**20  # bytes in flight above which nothing runs within its push
# Without it one thread may see another's changes in another order than they were made.
HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
PRUNE_AT = 16  # readers of one variable before finished ones are taken off its list


class Admission(Joining):
    """The tracker's side of the pushers."""

    # ================================================================================================ admission (P)
    def admit(self, plan: Callable[[], Plan]) -> Operation | None:
        """Admit what ``plan()`` says, all or nothing, in one section under the order lock.

        Parameters
        ----------
        plan : callable
            Library code, called with the lock held, possibly several times.  It only reads shared state and returns
            ``(op, reads, writes, updates, steps, keep, again)``: an unadmitted operation or None; its variables
            (which may repeat; read and written counts as updated); further C calls ``(callable, *args)`` to commit
            with it; a list that keeps overwritten values alive until the lock is free; whether this was preparatory,
            so that ``plan()`` is called again under the same hold of the lock.

        Returns
        -------
        Operation or None
            That of the last plan.

        Sync: never blocks on a computation.

        Raises
        ------
        EngineClosed, ArgumentError
            At the call, with nothing changed; likewise whatever ``plan`` raises.
        """
        if self._T._is_owned():
            return self._without_t(self.admit, plan)  # type: ignore[no-any-return]
        held: list[Plan] = []  # dies after the lock is released: see F4 in atomic.py
        full = -1
        try:
            op: Operation | None = locked(self._P, self._admit, plan, held)
        except Park:
            park()
            raise
        except Full as e:
            full = e.nbytes
        if full >= 0:
            op = self._hold(full, lambda: self._admit_again(plan, held))
        if op is None or op.state is not DONE or len(held) > 1:
            self._queued()
            if op is not None and op.kind is Kind.KERNEL and type(op) is not Fusible:
                self._hand_over(op)
        return op

    def _admit_again(self, plan: Callable[[], Plan], held: list[Plan]) -> Operation | None:
        held.clear()
        try:
            return locked(self._P, self._admit, plan, held)
        except Park:
            park()
            raise

    def _admit(self, plan: Callable[[], Plan], held: list[Plan]) -> Operation | None:
        """P held."""
        guard = self._guard_p
        while True:
            if self._inlining is not None:
                self._promote()
            t = object()
            guard[0] = t
            planned = plan()
            held.append(planned)
            op = planned[0]
            if self._closed and op is not None:
                self._refuse()
            if (commit(guard, t, planned[4]) if op is None else self._admit_op(op, planned, t)) and not planned[6]:
                return op

    def _admit_op(self, op: Operation, planned: Plan, t: object) -> bool:
        """P held, ticket taken.  Find the predecessors; run the operation here, or queue it.  False: plan again."""
        # With much memory in flight it is queued: what was pushed before it and needs memory has not run, and a loop's
        # ready temporaries would pile up.          [test_memory: test_the_gradient_loop_needs_one_temporary]
        if op.cheap and self.inline and op.kind is ATOMIC and self._bytes_pushed - self._bytes_done <= AHEAD:
            done = self._inline(op, planned, t)
            if done is not None:
                return done
        fusible = type(op) is Fusible and self.fusion and not self._serial and HAS_GIL
        if fusible:
            done = self._join(op, planned, t)
            if done is not None:
                return done
        _, reads, writes, updates, steps, keep, _ = planned
        nbytes = op.nbytes
        op.carried = 0
        if type(nbytes) is not int:
            op.nbytes, op.carried, more = nbytes()
            nbytes = op.nbytes + op.carried
            if more:
                steps = [*steps, *more]
                planned = (op, reads, writes, updates, steps, keep, False)
        if self._seq >= self._look_seq or self._bytes_pushed + nbytes > self._look_bytes:
            self._look(op, nbytes)
        op.seq = self._seq
        if updates or len(writes) > 1 or (writes and writes[0] in reads):
            reads, writes, updates = strongest(reads, writes, updates)
            planned = (op, reads, writes, updates, steps, keep, False)
        preds: list[Operation] = []
        fates: list[Fate | None] = []
        # A predecessor that becomes DONE after this look is dropped by the drain (race "done-while-planning").
        for vs in (reads, updates):
            for v in vs:
                if v.engine is not self:
                    self._foreign(v)
                p = v.writer
                if p is not None:
                    if p.state is not DONE:
                        preds.append(p)
                    elif p.fate is not OK:
                        fates.append(p.fate)
        sources = len(preds)  # so far: whose failure is this one's failure
        for vs in (writes, updates):
            for v in vs:
                if v.engine is not self:
                    self._foreign(v)
                p = v.writer
                if p is not None and p.state is not DONE:
                    preds.append(p)
                if v.readers:  # write after read
                    preds += [p for p in v.readers if p.state is not DONE]
        op.poison = worst(fates) if fates else None
        op.tries = 1 if updates else 2
        if len(preds) > 1:
            unique = dict.fromkeys(preds)  # keeps the order: sources first
            sources = sources if len(unique) == len(preds) else len(set(preds[:sources]))
            preds = list(unique)
        count = len(preds)
        op.pred0 = preds[0] if count else None
        op.pred1 = preds[1] if count > 1 else None
        op.others = tuple(preds[2:]) if count > 2 else ()
        op.sources = sources
        op.succ = op.watch = ()
        op.claim = op.blocked = None
        op.wait_count = op.mark = 0
        op.context = None if op.kind is ATOMIC or op.kind is Kind.KERNEL else user_context()
        queue = self._queue_steps(op, planned)
        if fusible:
            op.fn.awaited = tuple(preds[:sources])  # type: ignore[union-attr]
            keep.append(self._last)
            queue.append((setattr, self, "_last", op))
        queue += ((deque.append, self._inbox, op), (SimpleQueue.put, op.lane.bell, None))
        if not commit(self._guard_p, t, queue):
            return False
        if self._dwelling and not fusible:
            self._end_dwelling()
        if self._instrument is not None:
            self._instrument.pushed(op, preds)
        return True

    def _queue_steps(self, op: Operation, planned: Plan) -> list[Step]:
        """The commit that admits `op` as not DONE.  What it sets before that, it sets to the same every time."""
        _, reads, writes, updates, steps, keep, _ = planned
        op.engine = self  # type: ignore[assignment]
        lane = self._lane
        name = op.lane
        if name is None:
            op.lane = lane
        elif type(name) is str:
            op.lane = self._lanes.get(name) or self._new_lane(name)
        if op.site is None:
            op.site = here(5)
        out: list[Step] = [(setattr, self, "_seq", op.seq + 1)]
        nbytes = op.nbytes + op.carried
        if nbytes:
            nbytes += self._bytes_pushed
            out.append((setattr, self, "_bytes_pushed", nbytes))
            if nbytes - self._bytes_done > self._bytes_peak:
                out.append((setattr, self, "_bytes_peak", nbytes - self._bytes_done))
        if steps:
            out += steps
        for v in reads:
            readers = v.readers
            if not readers:
                out.append((setattr, v, "readers", [op]))
            elif len(readers) >= PRUNE_AT and readers[0].state is DONE and readers[len(readers) // 2].state is DONE:
                keep.append(readers)
                out.append((setattr, v, "readers", [*(p for p in readers if p.state is not DONE), op]))
            else:
                out.append((list.append, readers, op))
        if writes:
            var_steps(out, keep, writes, op)
        if updates:
            var_steps(out, keep, updates, op)
        return out

    def _inline(self, op: Operation, planned: Plan, t: object) -> bool | None:
        """P held, ticket taken.  Run a cheap kernel here, if it is ready: kernel and admission are one C call.

        True: done.  False: plan again.  None: it is not ready (or memory ran out before anything happened), queue it.
        The hottest path of the library: it takes no list, no site and no second look at anything.
        """
        _, reads, writes, updates, steps, keep, _ = planned
        for v in reads:
            if v.engine is not self:
                self._foreign(v)
            p = v.writer
            if p is not None and (p.state is not DONE or p.fate is not OK):
                return None
        seq = op.seq = self._seq
        tail: list[Step] = [(setattr, self, "_seq", seq + 1)]
        if steps:
            tail += steps
        if updates or len(writes) != 1 or writes[0] in reads:
            if writes or len(updates) != 1 or updates[0] in reads:
                reads, writes, updates = strongest(reads, writes, updates)
                planned = op, reads, writes, updates, steps, keep, False
            for v in updates:
                if v.engine is not self:
                    self._foreign(v)
                p = v.writer
                if p is not None and (p.state is not DONE or p.fate is not OK):
                    return None
            writes = (*writes, *updates)
        for v in writes:
            if v.engine is not self:
                self._foreign(v)
            p = v.writer
            # After a success the variables need no writer: None means done and well, and costs no memory.
            if p is not None:
                if p.state is not DONE:
                    return None
                keep.append(p)
                tail.append((setattr, v, "writer", None))
            if v.readers:
                if not all_done(v.readers):  # write after read
                    return None
                keep.append(v.readers)
                tail.append((setattr, v, "readers", ()))
            tail.append((setattr, v, "version", v.version + 1))
        op.mark = 0
        began = None if self._instrument is None else (monotonic(), op.weight())
        context = self.kernel_context.copy()  # a context cannot be entered twice; a copy costs nothing
        try:
            kernel = context.run(op.fn)  # type: ignore[arg-type]
        except BaseException as e:
            ended = self._prepare_failed(op, planned, t, context, e)
            if ended is RAISE:
                raise
            return ended  # type: ignore[no-any-return]
        check = (index, self._guard_p, t)
        whole = (check, (setattr, op, "mark", 1), *kernel, (setattr, op, "mark", 2), check, *tail)
        self._inlining = op, planned
        self.writing += 1
        try:
            context.run(deque, starmap(call, whole), 0)
        except BaseException as e:
            self._inlining = None  # no checkpoint between the kernel and this store
            try:
                ended = self._inline_ended(op, planned, t, e)
            finally:
                self.writing -= 1
            if ended is RAISE:
                raise
            return ended  # type: ignore[no-any-return]
        self._inlining = None
        self.writing -= 1
        op.fn = op.operands = None
        op.fate = OK
        op.state = DONE
        self._ran_inline += 1
        if began is not None and self._instrument is not None:
            op.site = op.site or here(2)
            self._instrument.ran_inline(op, *began)
        return True

    def _prepare_failed(self, op: Operation, planned: Plan, t: object, context: Context, e: BaseException) -> Any:
        """`prepare` raised inside a push.  Nothing has happened yet.  Gives what `_inline` does, or `RAISE`."""
        if isinstance(e, MemoryError):
            return None
        if not isinstance(e, Exception) or not fails_again(op.fn, context):  # type: ignore[arg-type]
            return RAISE  # it came from outside (a signal handler): the operation is not admitted
        return self._fail_inline(op, planned, t, e)

    def _inline_ended(self, op: Operation, planned: Plan, t: object, e: BaseException) -> Any:
        try:
            return self._inline_failed(op, planned, t, e)
        except BaseException:
            if op.state is RUNNING:  # promoted, and now without a runner; `_runner_gone` ends it by its mark
                assert op.claim is not None, "a claim and RUNNING come in one commit"
                op.claim[1].release()
                self._runner_gone(op)
            raise

    def _inline_failed(self, op: Operation, planned: Plan, t: object, e: BaseException) -> Any:
        """The C call of an inline kernel raised; `mark` tells where.  Gives what `_inline` does, or `RAISE`."""
        if op.state is RUNNING:  # promoted by a finalizer inside the kernel: finish it as what it now is
            claim = op.claim
            assert claim is not None, "a claim and RUNNING come in one commit"
            fate = OK if op.mark == 2 else Fate(Root(op, own_error(e)))
            self._finish(op, claim, claim[0], fate)
        elif op.mark == 0:
            if isinstance(e, ValueError) and self._guard_p[0] is not t:
                return False
            return RAISE
        elif op.mark == 2:
            op.fn = op.operands = None
            op.fate = OK  # everything is committed; the exception came from outside, after it
            op.state = DONE
            return RAISE
        elif isinstance(e, MemoryError) and not planned[3]:
            op.mark = 0  # nothing was changed in place: queue it, where it may wait for memory
            return None
        elif not self._fail_inline(op, planned, t, own_error(e)):
            return False
        return True if isinstance(e, Exception) else RAISE

    def _fail_inline(self, op: Operation, planned: Plan, t: object, e: BaseException) -> bool:
        """The kernel's own error: admit the operation as DONE and poisoned.  False: plan again."""
        op.engine = self  # type: ignore[assignment]
        op.site = op.site or here(5)
        fate = Fate(Root(op, e))
        if op.state is RUNNING:  # promoted by code that ran inside this very function
            assert op.claim is not None, "a claim and RUNNING come in one commit"
            return self._finish(op, op.claim, op.claim[0], fate)
        _, _, writes, updates, steps, keep, _ = planned
        out: list[Step] = [(setattr, self, "_seq", op.seq + 1), *steps]
        var_steps(out, keep, writes, op)
        var_steps(out, keep, updates, op)
        out += self._unseen_step(fate.root)
        keep += (op.fn, op.operands)
        out += ((setattr, op, "fn", None), (setattr, op, "operands", None))
        out += ((setattr, op, "fate", fate), (setattr, op, "state", DONE))
        if not commit(self._guard_p, t, out):
            return False  # somebody pushed in between: run it again, after that
        if self._instrument is not None:
            self._instrument.ran_inline(op, monotonic(), 0)
        return True

    def _promote(self) -> None:
        """P held by this thread, which is inside an inline kernel (race "finalizer-in-kernel"): admit that one
        first.
        """
        t = object()
        self._guard_p[0] = t
        if self._inlining is None:
            return  # a handler at this function's entry pushed, and so admitted it
        op, planned = self._inlining
        if op.state is not NEW or op.mark != 1:
            return
        op.pred0 = op.pred1 = None
        op.others = ()
        op.sources = 0
        op.poison = None
        op.nbytes = op.carried = 0  # it runs, and its memory is taken
        op.tries = 0
        # Code that runs inside this very function promotes the operation first, and more happens to it then: so fields
        # that change later are set by the commit only.                  [test_attacks: test_push_inside_a_promotion]
        out = self._queue_steps(op, planned)
        busy = allocate_lock()
        busy.acquire()  # its runner, the frame below, exists
        fields = (
            ("succ", ()),
            ("watch", ()),
            ("blocked", None),
            ("context", None),
            ("claim", [object(), busy, get_ident(), monotonic()]),
            ("state", RUNNING),
        )
        out += ((setattr, op, name, value) for name, value in fields)
        out.append((setitem, self._live, op.seq, op))
        commit(self._guard_p, t, out)

    # ------------------------------------------------------------------------------------- kernels without a push
    def calm(self) -> bool:
        """May a kernel whose inputs are ready, and whose outputs nobody knows yet, run at once: no push, no lock?

        It changes nothing shared, so it needs no place in the order of pushes but that its inputs are the values of one
        moment.  Whoever runs it looks at its inputs' versions before and after, and that `writing` is still 0: a write
        is counted by the version when it is pushed, and one that runs within its push shows in `writing` until then.
        """
        return (
            self.inline
            and not self.writing
            and self._instrument is None
            and not self._closed
            and self._bytes_pushed - self._bytes_done <= AHEAD
            and HAS_GIL
        )

    # -------------------------------------------------------------------------------------------- odds and ends of P
    def _without_t(self, f: Callable[..., Any], *args: Any) -> Any:
        """Run f with T given away: a finalizer inside a T section pushes, and P comes before T."""
        return unlocked(self._T, f, *args)

    def _foreign(self, v: Variable) -> None:
        if v.deleted:
            raise ArgumentError(f"variable {v.name or hex(id(v))} was deleted")
        raise ArgumentError(f"variable {v.name or hex(id(v))} belongs to another engine")

    def _new_lane(self, name: str) -> Lane:
        """The lane of that name, for the policies that have several."""
        return self._lane

    def _refuse(self) -> None:
        if self._parking and threading.current_thread() is not threading.main_thread():
            raise Park
        raise EngineClosed("push to a stopped engine; engine.start() starts it again")

    def _runner_gone(self, op: Operation) -> None:
        """A RUNNING operation lost its runner to an exception.  See running.py."""

    def _queued(self) -> None:
        """After a section in which an operation may have been queued: the policy's turn.  See running.py."""

    def _look(self, op: Operation, nbytes: int) -> None:
        """May it be queued?  Else raise `Full`.  See limits.py."""

    def _hold(self, nbytes: int, again: Callable[[], Any]) -> Any:
        """Wait until there is room, then push again.  See limits.py."""
