"""The tracker: when an operation may run.

Owns all shared state of an engine; here are the edges, completion and poison (lock T).  Admission (lock P) is in
admission.py, who runs a ready operation in running.py and workers.py, waits in waiting.py; all change state in the
same manner, by commits.

LOCKS (both re-entrant, only ever taken by `locked`; one of each for all engines of the process, a guard for each)
    P   order of pushes: Variable fields, `_seq`, appends to `_inbox`, `_inlining`.
    T   scheduling: everything of an operation after its admission, the heaps, `_live`, `_unseen`.
    Order: P before T.  Whoever holds T and needs P gives T away first (only a finalizer inside a T section can be in
    that place).  Pushers never take T and workers never take P, so a busy pusher and the workers form no convoy.
    Whoever waits for an operation or a thread, or runs a user's function, gives both away first (`Repair._apart`; again
    only a finalizer inside a section).  Nobody who holds one of them blocks on any further lock.
    Of the process: if each engine had its own, finalizers inside sections of two engines, each pushing to the other,
    would wait for each other.            [test_engines_together: test_finalizers_that_push_to_each_other_s_engine]

INVARIANTS (checked by `testing.audit`)
    I1  edges lead from lower to higher seq.
    I2  DONE only after all predecessors are DONE, whatever the fate: cancelled and poisoned operations end in their
        turn, else a later write would overtake a running reader.            [test_errors: test_cancelled_keeps_order]
    I3  at every checkpoint: admitted and not DONE = in the inbox (NEW) or in live; PENDING: wait_count = undone
        predecessors, and the operation is in each one's succ once; READY: in its lane's heap.
    I4  see `Lane`.
    I5  an operation runs above another on one stack only if the lower one's wait needs it.
    I6  no user code under a lock (finalizers and signal handlers excepted: they find I1-I5 true).

RACES, by name
    read-before-ticket    A plan that reads before it takes its ticket can miss what a finalizer pushed in between.
                          Cure: the ticket comes first, everywhere.    [test_interrupts: push at every checkpoint]
    done-while-planning   A predecessor becomes DONE while a push plans.  Harmless: the drain looks again, under T.
    finalizer-in-kernel   (3.11) A collection inside an inline kernel runs a finalizer that pushes: the ticket check
                          is behind us. Cure: `_promote` admits the kernel's own operation first, as RUNNING; the
                          outer commit then fails its second ticket check.               [test_life:
                          test_push_from_inside_a_kernel]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextvars import Context
from heapq import heappush
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from .atomic import P, Step, T, commit, locked, setitem
from .errors import Cancelled
from .mail import ring_all, unrung
from .operation import DONE, OK, PENDING, READY, RUNNING, Fate, Operation, Root, worst
from .ready import Lane, Rank, by_priority, mix
from .variable import Variable

if TYPE_CHECKING:
    from .instrument import Instrument

UNSEEN_KEPT = 1000  # errors nobody has seen that are kept; further ones are counted

Access = Sequence[Variable]
# (operation or None, reads, writes, updates, steps, keep, again): see `Tracker.admit`
Plan = tuple[Operation | None, Access, Access, Access, Sequence[Step], list[Any], bool]


class Tracker:
    """Edges and completion.  See the module's text for locks and invariants."""

    def __init__(self) -> None:
        self._P: Any = P
        self._guard_p: list[Any] = [None]
        self._T: Any = T
        self._guard_t: list[Any] = [None]
        self._seq = 0  # P: the next operation's place in push order
        self._inbox: deque[Operation] = deque()  # admitted, edges not drawn: appended under P, taken under T
        self._live: dict[int, Operation] = {}  # T: seq -> edges drawn, not DONE
        # Roots that no wait has raised.  Always the same list: a failure within a push is added without T, and must not
        # land on one that a `waitall` has taken away.                            [test_attacks: test_no_root_is_lost]
        self._unseen: list[Root] = []
        self._unseen_more = 0  # how many more there were: approximate
        self._inlining: tuple[Operation, Plan] | None = None  # P: not None exactly while a kernel runs inside a push
        # P: how many kernels run within pushes now: while it is not 0, what one reads without the lock may be half
        # written.  An exception that comes twice may leave it too high: then nothing runs `at_once` any more.
        self.writing = 0
        self._closed = False
        self._parking = False  # at exit: a refused push parks its (daemon) thread instead of raising noisily
        self._fuzz: Any = None  # who schedules it instead of workers (schedules.py); a single store
        self._started: dict[str, Lane] | None = None  # the dictionary of lanes whose workers have been started
        self._bulk = 64  # operations whose edges one commit draws
        self._rank: Rank = by_priority
        self.kernel_context = Context()  # the template; each kernel runs in a copy of it
        self._lanes: dict[str, Lane] = {}
        self._lane: Lane = Lane("cpu", 0)
        self._instrument: Instrument | None = None
        # Back-pressure, see limits.py.  In flight = pushed - done; each counter has a lock of its own.
        self._bytes_pushed = 0  # P
        self._bytes_peak = 0  # P
        self._bytes_done = 0  # T
        self._look_bytes: float = -1  # P: a queued push that passes one of these looks whether there is room
        self._look_seq: float = -1
        self._room: tuple[Any, ...] = ()  # T: pushes that are held
        self.inline = True
        self.attached: dict[Any, Any] = {}  # what the rooms to the right keep per engine
        self.ran_at_once = 0  # kernels that ran without a push, see `calm`; approximate as the counters below
        self._ran_inline = 0  # P.  The counters below: approximate, single stores
        self._ran_worker = 0
        self._ran_helper = 0

    # ================================================================================================ edges (T)
    def _drain(self) -> None:
        """T held.  Draw the edges of newly admitted operations: peek, plan, and commit with the popleft."""
        inbox, guard = self._inbox, self._guard_t
        while inbox:
            t = object()
            guard[0] = t
            steps: list[Step] = []
            fresh: dict[Operation, list[Operation]] = {}  # succ lists that this plan starts
            ready: list[Operation] = []
            self._draw(min(len(inbox), self._bulk), steps, fresh, ready)
            steps += [(setattr, p, "succ", new) for p, new in fresh.items()]
            if commit(guard, t, steps) and ready and self._instrument is not None:
                self._instrument.ready(ready)

    def _draw(self, n: int, steps: list[Step], fresh: dict[Operation, list[Operation]], ready: list[Operation]) -> None:
        inbox, rank, live, popleft = self._inbox, self._rank, self._live, deque.popleft
        for i in range(n):
            try:
                o = inbox[i]
            except IndexError:  # code that ran inside this section drained it: the commit will fail
                return
            count = 0
            for p in o.preds:
                if p.state is not DONE:
                    count += 1
                    if p.succ:
                        steps.append((list.append, p.succ, o))
                    elif p in fresh:
                        fresh[p].append(o)
                    else:
                        fresh[p] = [o]
            seq = o.seq
            if count:
                steps += ((setattr, o, "wait_count", count), (setattr, o, "state", PENDING))
            else:
                lane, r = o.lane, rank(o)
                steps += ((setattr, o, "state", READY), (heappush, lane.heap, (r, seq, o)))
                if r or lane.mixed:
                    mix(steps, o, rank)
                ready.append(o)
            steps += ((setitem, live, seq, o), (popleft, inbox))

    # ================================================================================================ handing over
    def _hand_over(self, op: Operation) -> None:
        """`op`, a large kernel, was pushed and is ready: let a sleeping worker begin with it.  See ready.py."""
        if op.state is not DONE and op.pred0 is None and self._may_wait():
            op.lane.hand_over()

    def _may_wait(self) -> bool:
        """May the calling thread sleep for a moment?  See limits.py."""
        return False

    # ================================================================================================ completion (T)
    def _doom(self, op: Operation) -> Fate | None:
        """The fate that an operation inherits before it runs; None: it may run.  Its predecessors are DONE."""
        if op.cancelled:
            root = Root(op, Cancelled(f"[{op.name or 'operation'}] was cancelled"))
            root.seen = True  # by whoever cancelled it: waits for its data raise it, `waitall` and the log do not
            return Fate(root)
        best = op.poison
        for p in op.preds[: op.sources]:
            if p.fate is not OK:
                best = worst([p.fate], best)
        return None if best is None else Fate(best.root, best.distance + 1)

    def _done_steps(self, op: Operation, fate: Fate, ready: list[Operation]) -> list[Step]:
        """T held.  RUNNING -> DONE.  Operations that this makes ready go to `ready`; the caller places them."""
        op.fate = fate  # nobody looks before DONE
        steps: list[Step] = [(setattr, op, "state", DONE), (dict.pop, self._live, op.seq)]
        for s in op.succ:
            n = s.wait_count - 1
            if n:
                steps.append((setattr, s, "wait_count", n))
            else:
                steps.append((setattr, s, "state", READY))
                ready.append(s)
        for q in op.watch:
            steps.append((SimpleQueue.put, q, op))
            if type(q) is not SimpleQueue:  # an event loop's: who commits this rings afterwards
                steps.append((deque.append, unrung, q))
        if fate.root is not None and fate.root.seq == op.seq and not fate.root.seen:
            steps += self._unseen_step(fate.root)
        if op.nbytes or op.carried or self._room:
            self._give_back(op, steps)
        return steps

    def _give_back(self, op: Operation, steps: list[Step]) -> None:
        """T held.  What `op` counted in flight no longer counts; but what it allocated goes on to count with the last
        operation that reads it, which keeps it alive.
        """
        given = op.carried
        if op.nbytes:
            for s in reversed(op.succ):
                if op in s.preds[: s.sources]:
                    steps.append((setattr, s, "carried", s.carried + op.nbytes))
                    break
            else:
                given += op.nbytes
        if given:
            steps.append((setattr, self, "_bytes_done", self._bytes_done + given))
        if self._room:
            self._wake_held(steps, given)

    def _wake_held(self, steps: list[Step], given: int) -> None:
        """An operation ends: is there room now for a push that is held?  See limits.py."""

    def _unseen_step(self, root: Root | None) -> list[Step]:
        if len(self._unseen) < UNSEEN_KEPT:
            return [(list.append, self._unseen, root)]
        return [(setattr, self, "_unseen_more", self._unseen_more + 1)]

    def _finish(self, op: Operation, claim: list[Any], token: object, fate: Fate) -> bool:
        """RUNNING -> DONE, successors and wake-ups.  False, and nothing done, if the claim is no longer mine."""
        try:
            return self._finish_whole(op, claim, token, fate)
        except BaseException:
            if op.state is DONE:
                retire(op)  # what it no longer needs is dropped, however long its handle lives
            raise

    def _finish_whole(self, op: Operation, claim: list[Any], token: object, fate: Fate) -> bool:
        while True:
            done = locked(self._T, self._finish_locked, op, claim, token, fate)
            if done is not None:
                break
        if done:
            retire(op)
            if unrung:
                ring_all()
            if self._instrument is not None:
                self._instrument.finished(op)
        return done

    def _finish_locked(self, op: Operation, claim: list[Any], token: object, fate: Fate) -> bool | None:
        t = object()
        self._guard_t[0] = t
        if op.state is not RUNNING or op.claim is not claim or claim[0] is not token:
            return False
        ready: list[Operation] = []
        steps = self._done_steps(op, fate, ready)
        self._place(steps, ready)
        if not commit(self._guard_t, t, steps):
            return None
        if ready and self._instrument is not None:
            self._instrument.ready(ready)
        return True

    def _place(self, steps: list[Step], ready: list[Operation]) -> None:
        """Into the heap, and a token for each lane concerned."""
        rank = self._rank
        for s in ready:
            lane, r = s.lane, rank(s)
            steps.append((heappush, lane.heap, (r, s.seq, s)))
            if r or lane.mixed:
                mix(steps, s, rank)
            steps.append((SimpleQueue.put, lane.bell, None))


def retire(op: Operation) -> None:
    """Drop what a DONE operation no longer needs.  DONE is final, so this may be cut short anywhere."""
    op.others = op.succ = op.watch = ()
    op.pred0 = op.pred1 = None
    op.sources = 0
    op.fn = op.operands = op.context = op.claim = op.poison = op.blocked = None
