"""Running operations: claim, execute, complete, repair.

Owns the way of an operation from READY to DONE on some thread, the workers' loop and the serial engine's trampoline.
Guarantees: whatever happens to a runner (an exception thrown into it, an interrupt, a failing function), its
operation ends or becomes READY again, and the thread goes on.  Threads that are not workers run only atomic kernels
here.

A claim is ``[token, busy, thread, start]``.  ``busy`` is a lock held as long as the runner exists; the token proves
that the claim is still the runner's.  Whoever meets a RUNNING operation whose busy lock is free repairs it by its mark:
2 it ran: complete it; 0 it has not started: READY again; 1 it was cut: Cancelled.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from collections import deque
from contextlib import suppress
from heapq import heappop
from itertools import repeat, starmap
from queue import SimpleQueue
from time import monotonic
from typing import Any

from .atomic import Step, call, commit, index, locked, setitem
from .claims import Completion, Job, RunContext, empty, here_and_now
from .joining import Fusible
from .mail import called, give_way, ring_all, unrung
from .operation import DONE, OK, READY, RUNNING, Fate, Kind, Operation, Root, run_in, user_context_hooks
from .outcome import RAISE, fails_again
from .ready import AGE_EVERY, Lane, by_age, forget_ages
from .shared import Shared, exhaust
from .unseen import Unseen

ATOMIC, KERNEL, USER, ASYNC = Kind.ATOMIC, Kind.KERNEL, Kind.USER, Kind.ASYNC


class Runner(Unseen):
    """The tracker, and the threads' side of it."""

    def __init__(self) -> None:
        super().__init__()
        self._serial = False  # no workers: whoever pushes or waits runs
        self._turn_lock: Any = allocate_lock()  # serial: held by the thread whose turn it is
        self._turn_thread = 0  # that thread
        self._turn_bells: list[SimpleQueue[None]] = []  # serial: of threads that wait, rung at the end of each turn

    def _serve_once(self, lane: Lane, sleep: bool, mine: list[Job | None]) -> None:
        """`_serve` with a busy lock; on the way out by an exception, whatever was claimed is repaired."""
        busy = allocate_lock()
        stack = here_and_now.stack
        depth = len(stack)
        try:
            locked(busy, self._serve, lane, busy, mine, sleep)
        except BaseException:
            del stack[depth:]
            self._gone(mine)
            raise

    def _serve(self, lane: Lane, busy: Any, mine: list[Job | None], sleep: bool) -> None:
        """Run what is ready; sleep on the bell or return when nothing is."""
        bell = lane.bell
        fate: Fate | None = None
        while True:
            old = mine[1] = mine[0]
            if not locked(self._T, self._turn, lane, busy, mine, fate):
                continue  # somebody planned in between
            fate = None
            if unrung:
                ring_all()
            if old is not None:
                op = old[0]
                if op.state is DONE:  # what `retire` does, without the call
                    op.others = op.succ = op.watch = ()
                    op.pred0 = op.pred1 = op.fn = op.operands = op.context = op.claim = op.poison = op.blocked = None
                    op.sources = 0
                    if self._instrument is not None:
                        self._instrument.finished(op)
                mine[1] = None
                del old, op
            if called and sleep:  # not who waits: it is wanted
                give_way()
            job = mine[0]
            if lane.pusher is not None:
                lane.taken()
            if job is None:
                if not sleep or lane.stopping or lane.bell is not bell:
                    return
                lane.asleep.add(get_ident())
                bell.get()
                lane.asleep.discard(get_ident())
                empty(bell)
                if lane.assistants:  # before the look at the heap: the interpreter is wanted
                    self._assist(lane)
                continue
            fate = self._execute(job)
            if self._serial:
                self._ran_helper += here_and_now.worker is not self
            else:
                self._ran_worker += 1
            if fate is None:
                mine[0] = None
            del job

    def _assist(self, lane: Lane) -> None:
        """Take part in what other threads run, until there is no more of it, or something to run.

        The bell's tokens are gone, and a share may take a while: ring on before and after.
        """
        with suppress(IndexError):
            if len(lane.assistants) > 1 or lane.heap or self._inbox:
                lane.bell.put(None)
            lane.assistants.popleft()()
            while not lane.heap and not self._inbox:
                lane.assistants.popleft()()
            if lane.assistants:
                lane.bell.put(None)

    def _turn(self, lane: Lane, busy: Any, mine: list[Job | None], fate: Fate | None) -> bool:
        """T held.  Complete the old job, if any, and claim the lane's best: one commit.  False: plan again."""
        if self._inbox:
            self._drain()
        t = object()
        self._guard_t[0] = t
        heap, rank = lane.heap, self._rank
        steps: list[Step] = []
        others: list[Operation] = []
        best: Operation | None = None
        old = mine[0]
        if old is not None:
            op, claim, token = old
            if fate is None or op.state is not RUNNING or op.claim is not claim or claim[0] is not token:
                mine[0] = old = None
            else:
                steps = self._done_steps(op, fate, others)
        job: Job | None = None
        if len(others) == 1 and others[0].lane is lane and (not lane.mixed or lane.picks + 1 < AGE_EVERY):
            # The common case, a chain: my successor against the top of the heap, without a detour through it.
            s = others[0]
            if not heap or (rank(s), s.seq) < heap[0][:2]:
                best = s
                others.clear()
                if lane.mixed:
                    steps.append((setattr, lane, "picks", lane.picks + 1))
        if others or (steps and best is None and lane.mixed):
            self._place(steps, others)
            # What to claim is seen next time round: the heap has to be changed first, or age be looked at.
            if commit(self._guard_t, t, steps):
                mine[0] = None
                if others and self._instrument is not None:
                    self._instrument.ready(others)
                self._claim_top(lane, busy, mine)
                return True
            return False
        if best is None:
            if not steps:
                self._claim_top(lane, busy, mine)
                return True
            if not heap:
                if not commit(self._guard_t, t, steps):
                    return False
                mine[0] = None
                return True
            best = heap[0][2]
            steps.append((heappop, heap))
            if best.state is not READY:
                best = None  # stale: only take it off
            more = len(heap) > 1
        else:
            more = bool(heap)
        if best is not None:
            token = object()
            claim = [token, busy, get_ident(), monotonic()]
            job = (best, claim, token)
            steps.append((setattr, best, "claim", claim))
            steps.append((setattr, best, "state", RUNNING))
            steps.append((setitem, mine, 0, job))
            if more and lane.bell.empty():
                steps.append((SimpleQueue.put, lane.bell, None))
        else:
            steps.append((setitem, mine, 0, None))
        if not commit(self._guard_t, t, steps):
            return False
        if best is None:
            self._claim_top(lane, busy, mine)
        return True

    def _claim_top(self, lane: Lane, busy: Any, mine: list[Job | None]) -> None:
        """T held.  READY -> RUNNING for the best of the heap; ``mine[0]`` is the claimed job or None."""
        heap = lane.heap
        keep: list[Operation] = []
        mine[0] = None
        while heap and mine[0] is None:
            t = object()
            self._guard_t[0] = t
            if not heap:
                return
            op = heap[0][2]
            steps: list[Step] = [(heappop, heap)]
            if lane.mixed:
                op = by_age(lane, op, steps, keep)
            if op.state is READY:
                token = object()
                claim = [token, busy, get_ident(), monotonic()]
                steps.append((setattr, op, "claim", claim))
                steps.append((setattr, op, "state", RUNNING))
                steps.append((setitem, mine, 0, (op, claim, token)))
                if len(heap) > 1 and lane.bell.empty():
                    # Non-empty: whoever takes that token looks at this heap afterwards (I4).
                    steps.append((SimpleQueue.put, lane.bell, None))
            commit(self._guard_t, t, steps)
        if lane.aged and not heap:
            forget_ages(lane, self._guard_t)

    # ================================================================================================ the serial engine
    def _run_ready(self) -> bool:
        """The outermost push, wait or completion runs whatever is ready, in push order: a trampoline, no recursion.

        False: not this time.
        """
        if self._P._is_owned() or self._T._is_owned():  # a finalizer or handler inside a section, of whatever engine
            return self._inlining is None and self._apart(self._run_ready)
        if any(o.engine is self for o in here_and_now.stack):
            return False  # a push from inside an operation: it runs after that one
        lane = self._lane
        while (self._inbox or lane.heap) and self._take_turn(lane):
            pass
        empty(lane.bell)  # nobody sleeps on it here, and its tokens would pile up
        return True

    def _take_turn(self, lane: Lane) -> bool:
        held: list[bool] = []
        lock, me, outer = self._turn_lock, get_ident(), here_and_now.turn
        try:
            held += map(lock.acquire, (False,))
            if held[0]:
                self._turn_thread = me  # no checkpoint since the lock was taken, nor between the next two
                here_and_now.turn = True
                self._serve_once(lane, False, [None, None])
        finally:
            here_and_now.turn = outer
            if held and held[0]:
                self._turn_thread = 0
                lock.release()
            # Who waits while another has the turn leaves its work to that one, whom an exception may end.
            # [test_attacks: test_the_serial_turn_is_taken_over]
            self._ring_turn()
        return held[0]

    def _ring_turn(self) -> None:
        """Whoever waits for the turn looks again."""
        deque(map(SimpleQueue.put, self._turn_bells, repeat(None)), 0)

    # ================================================================================================ one operation
    def _run(self, op: Operation) -> None:
        """Claim this very operation and run it here, if nobody else has it."""
        stack = here_and_now.stack
        depth = len(stack)
        busy = allocate_lock()
        mine: list[Job | None] = [None, None]
        outer = here_and_now.busy
        try:
            here_and_now.busy = busy
            locked(busy, self._run_busy, op, busy, mine)
        except BaseException:
            here_and_now.busy = outer
            del stack[depth:]
            self._gone(mine)
            raise
        here_and_now.busy = outer

    def _run_busy(self, op: Operation, busy: Any, mine: list[Job | None]) -> None:
        locked(self._T, self._claim_this, op, busy, mine)
        job = mine[0]
        if job is None:
            return
        fate = self._execute(job)
        if here_and_now.worker is None:
            self._ran_helper += 1
        else:
            self._ran_worker += 1
        if fate is not None:
            self._finish(op, job[1], job[2], fate)

    def _claim_this(self, op: Operation, busy: Any, mine: list[Job | None]) -> None:
        """T held.  Its entry stays in the heap and is skipped there as stale."""
        t = object()
        self._guard_t[0] = t
        if op.state is READY:
            token = object()
            claim = [token, busy, get_ident(), monotonic()]
            steps = [
                (setattr, op, "claim", claim),
                (setattr, op, "state", RUNNING),
                (setitem, mine, 0, (op, claim, token)),
            ]
            commit(self._guard_t, t, steps)

    def _execute(self, job: Job) -> Fate | None:
        """Run a claimed operation and return its fate; None: it is not this runner's to complete (any more)."""
        op, claim, token = job
        if self._instrument is not None:
            self._instrument.started(op)
        if op.sources or op.cancelled or op.poison is not None:
            fate = self._doom(op)
            if fate is not None:
                op.fate = fate  # nobody looks before DONE, but `_repair`
                op.fn = None  # what the function holds is free before anybody hears that it is done
                return fate
        stack = here_and_now.stack
        depth = len(stack)
        try:
            handed_out: bool | None = self._call(op, claim, token, stack)
        except BaseException as e:
            del stack[depth:]
            if not self._worth_repeating(op, claim, token, e):
                fate = self._own_fate(op, claim, token, e)
                if fate is RAISE:
                    raise
                if fate is not None:
                    op.fate = fate
                    op.fn = None
                return fate  # type: ignore[no-any-return]
            handed_out = None
        if handed_out is None:
            return self._execute(job) if self._make_room(job) else None
        del stack[depth:]
        if handed_out:
            return None
        op.fn = None
        return OK

    def _call(self, op: Operation, claim: list[Any], token: object, stack: list[Operation]) -> bool:
        """The function itself.  True: a callback will complete it, or it is another runner's by now."""
        kind, fn = op.kind, op.fn
        if fn is None:
            return True  # a finalizer before this had it done
        if kind is USER:
            stack.append(op)  # from here on no finalizer on this thread takes it for an orphan
            if claim[0] is not token:
                return True  # one did, before
            op.mark = 1
            own = op.context.copy()  # type: ignore[union-attr]
            for hook in user_context_hooks:
                own.run(hook)
            own.run(fn)
            op.mark = 2
        elif kind is ATOMIC:
            context = self.kernel_context.copy()
            kernel = context.run(fn)
            steps = ((index, claim, token), (setattr, op, "mark", 1), *kernel, (setattr, op, "mark", 2))
            context.run(deque, starmap(call, steps), 0)
        elif kind is KERNEL:
            stack.append(op)
            if claim[0] is not token:
                return True
            fusible = type(op) is Fusible and not self._serial
            if fusible and self._shut(op).brief:  # type: ignore[arg-type]
                self._call_shared(op, claim, token)
            elif fusible and here_and_now.worker is None and here_and_now.busy is claim[1]:
                self._unclaim(op, claim, token)  # it was brief until somebody joined: a matter for workers
                return True
            else:
                op.mark = 1
                self.kernel_context.copy().run(fn)
                op.mark = 2
        else:
            self._call_async(op, claim, token, stack)
            return True
        return False

    def _call_shared(self, op: Operation, claim: list[Any], token: object) -> None:
        """A brief segment, in one C call, together with workers that have nothing to run."""
        segment: Any = op.fn
        context = self.kernel_context.copy()
        try:
            pieces, after = context.run(segment.prepare)  # may be repeated
        except BaseException:
            segment.blame(op)
            raise
        if self._fuzz is not None:
            pieces = self._fuzz.order(pieces)
        shared = Shared(op, pieces, op.lane, context)
        steps = ((index, claim, token), (setattr, op, "mark", 1), *shared.steps, *after, (setattr, op, "mark", 2))
        try:
            context.run(exhaust, starmap(call, steps))
        except BaseException as e:
            exhaust(shared.left)  # at once: see shared.py
            if op.mark == 1:
                segment.blame(op)
                raise shared.error(op, e) from None
            raise

    def _own_fate(self, op: Operation, claim: list[Any], token: object, e: BaseException) -> Any:
        """The function raised `e`, or `e` came from outside.  A fate, None (nothing to complete) or `RAISE`."""
        if claim[0] is not token or op.claim is not claim:
            return None  # revoked, or completed by its callback
        if op.mark == 2 or (op.kind is ASYNC and op.mark == 1):
            return RAISE  # it had ended, or is handed out: `_abandoned` sees to it
        if here_and_now.worker is None:
            # A user's thread: interrupts and signal handlers' exceptions must reach the user.  (In the serial engine a
            # function runs here; what it raises cannot be told from what a handler throws into it, save Ctrl-C.)
            own = op.kind is not ATOMIC and op.mark == 1 and not isinstance(e, KeyboardInterrupt)
            if not own and not isinstance(e, Exception):
                return RAISE
            if isinstance(e, MemoryError):
                return Fate(Root(op, e))
            prepare: Any = op.fn.prepare if type(op) is Fusible else op.fn  # type: ignore[union-attr]
            again = op.kind is ATOMIC or type(op) is Fusible
            if op.mark == 0 and not (again and fails_again(prepare, self.kernel_context.copy())):
                return RAISE
        return Fate(Root(op, e))

    # ------------------------------------------------------------------------------------------------ push_async
    def _call_async(self, op: Operation, claim: list[Any], token: object, stack: list[Operation]) -> None:
        """Hand the operation out: from here on its callback is its runner, and only it or an exception ends it."""
        fn, context = op.fn, op.context
        if fn is None or context is None:
            return  # a finalizer before this had it done
        kept = allocate_lock()
        kept.acquire()  # never released: nobody may repair it
        complete = Completion(self, op, claim, token)
        stack.append(op)
        if claim[0] is not token:
            return  # a finalizer that waited for it took it over
        claim[1] = op.leash or kept
        op.mark = 1
        try:
            run_in(context, fn, RunContext(None, self), complete)
        except BaseException as e:
            self._async_raised(op, claim, token, e)
            if here_and_now.worker is None and not isinstance(e, Exception):
                raise
        op.fn = None

    def _async_raised(self, op: Operation, claim: list[Any], token: object, e: BaseException) -> None:
        root = Root(op, e)
        if not self._finish(op, claim, token, Fate(root)):
            # It had called on_complete first, so its data are well; the error must not vanish all the same.
            locked(self._T, self._add_unseen, root)
