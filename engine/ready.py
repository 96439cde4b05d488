"""Ready queues: which of the ready operations runs next, and who is woken for it.

Owns `Lane` (a heap, a bell, its workers' threads), the ranks, and ageing.  The heap belongs to lock T; the bell is
atomic by itself.

Guarantees, per lane: the next pick is the ready operation of the highest priority, and of these the one pushed first;
but every `AGE_EVERY`-th pick is the one pushed first of all.  So a ready operation before which k others were pushed
that are not done is picked at the latest as number ``AGE_EVERY * (k + 1)`` from now, whatever is pushed later and
however urgent it is; and an urgent one is picked next or, if age has its turn, the one after.  (Waits that help are no
picks: they take what they need.)  Ageing starts with the first priority that is not 0, and costs nothing before;
under a schedule of its own (`testing.Seeded`) an engine has none.     [test_priority.py]

HANDING OVER.  A worker that is rung needs the interpreter, and a pusher that goes on with Python code keeps it for 5 ms
(`sys.getswitchinterval`).  So who has pushed a large kernel for a sleeping worker sleeps itself until a worker has
claimed something, or looked in vain; `HANDOVER` seconds at most.  Not so who pushes again within `PAUSE`: the workers
may be short of processors rather than of the interpreter, and had better find several.              [test_handover.py]
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from .atomic import Step, commit, renew
from .operation import READY, Operation

Entry = tuple[Any, int, Operation]
Rank = Callable[[Operation], Any]
HANDOVER, PAUSE = 0.002, 0.001  # seconds
ASSISTANTS = 64
AGE_EVERY = 64  # every so many picks of a lane the oldest ready operation is taken, whatever its priority


def by_priority(op: Operation) -> Any:
    """Priority first, then push order."""
    return -op.priority


def by_order(op: Operation) -> Any:
    """Push order alone: the serial engine."""
    return 0


class Lane:
    """A ready queue and the workers that serve it.

    Invariant (I4): while the heap holds a READY operation, a token is in the bell, or an awake worker will look at the
    heap before it sleeps.  Every push puts a token for its lane, in its commit; a worker that claims one of several
    rings on. Whoever takes a token looks at the heap afterwards, under T.
    """

    __slots__ = (
        "aged", "asleep", "assistants", "bell", "doors", "handed", "heap", "mixed", "name", "picks", "pusher",
        "started", "stopping", "threads", "up", "workers",
    )  # fmt: skip

    def __init__(self, name: str, workers: int) -> None:
        self.name = name
        self.workers = workers
        self.heap: list[Entry] = []  # T: (rank, seq, op).  Entries of operations no longer READY are stale: skipped
        self.mixed = False  # T: a priority other than 0 was here; only ever set.  The next two count from then on
        self.picks = 0  # T: since the last one by age
        # T: (seq, op), a heap: all READY ones of `heap`, and stale ones; None until a pick by age needs it.
        self.aged: list[tuple[int, Operation]] | None = None
        self.bell: SimpleQueue[None] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.asleep: set[int] = set()  # workers that wait for the bell: approximate
        # A thread that hands over the interpreter sleeps on it.  Single stores: who comes second may replace it, and
        # the first one then sleeps for `HANDOVER`.
        self.pusher: SimpleQueue[None] | None = None
        self.handed = 0.0  # when one did so last
        # What a worker with nothing to run may take part in (shared.py); the oldest are dropped.
        self.assistants: deque[Callable[[], None]] = deque(maxlen=ASSISTANTS)
        self.doors: dict[Any, None] = {}  # those that a parent will take: a child without the worker opens them
        self.started = False
        self.stopping = False
        # A token says that its threads have been started.  Not an Event: a finalizer that pushes, run by a collection
        # inside Event.clear(), would come back to the lock that its own thread holds.  [test_life:
        # test_start_is_reentrant]
        self.up: SimpleQueue[None] = SimpleQueue()

    def wait_up(self, timeout: float | None) -> bool:
        """Block until its threads have been started; False after `timeout` seconds."""
        try:
            self.up.get(timeout=timeout)
        except Empty:
            return False
        self.up.put(None)
        return True

    def hand_over(self) -> None:
        """Let a worker have the interpreter, if one is asleep or has not come up yet.  No lock held."""
        if (self.asleep or self.up.empty()) and monotonic() - self.handed >= PAUSE:
            bell: SimpleQueue[None] = SimpleQueue()
            self.pusher = bell
            with suppress(Empty):
                bell.get(timeout=HANDOVER)
            self.handed = monotonic()

    def taken(self) -> None:
        """A worker has the interpreter, and has looked at the heap: a pusher that waits for that goes on."""
        bell, self.pusher = self.pusher, None
        if bell is not None:
            bell.put(None)

    def renew(self) -> None:
        """Empty, without threads: in a forked child."""
        self.heap, self.bell, self.threads, self.asleep = [], SimpleQueue(), [], set()
        self.pusher = None
        self.assistants.clear()
        for door in tuple(self.doors):
            renew(door)
        self.aged, self.mixed, self.picks = None, False, 0
        self.started = self.stopping = False
        self.up.put(None)  # should this very thread have forked while it waits there
        self.up = SimpleQueue()

    def __repr__(self) -> str:
        return f"<Lane {self.name}, {self.workers} workers>"


def mix(steps: list[Step], op: Operation, rank: Rank) -> None:
    """T held.  What ageing asks of an operation that becomes READY in a mixed lane, or makes it one."""
    lane = op.lane
    if rank is by_priority:
        if not lane.mixed:
            steps.append((setattr, lane, "mixed", True))
        if lane.aged is not None:
            steps.append((heappush, lane.aged, (op.seq, op)))


def by_age(lane: Lane, best: Operation, steps: list[Step], keep: list[Operation]) -> Operation:
    """T held, ticket taken, the lane mixed.  Which operation to pick, and its steps; `best` is the top of the heap.

    `steps` holds the pop of `best`.  If what is returned is not READY, the steps only take a stale entry off; what they
    drop is in `keep`, so that it does not die inside the commit.
    """
    if best.state is not READY:
        return best
    aged = lane.aged
    if lane.picks + 1 < AGE_EVERY:
        steps.append((setattr, lane, "picks", lane.picks + 1))
        if aged and aged[0][1].state is not READY:  # one for each pick: so they do not pile up
            keep.append(aged[0][1])
            steps.append((heappop, aged))
        return best
    if not aged:
        aged = sorted((seq, op) for _, seq, op in lane.heap if op.state is READY)
        take: Step = (setattr, lane, "aged", aged[1:])
    else:
        take = (heappop, aged)
    oldest = aged[0][1]
    if oldest is not best:
        steps.clear()  # its entry in the heap stays there, stale
    if oldest.state is READY:
        steps.append((setattr, lane, "picks", 0))
    steps.append(take)
    return oldest


def forget_ages(lane: Lane, guard: list[Any]) -> None:
    """T held.  Nothing is in the heap: what the queue by age still holds is stale."""
    t = object()
    guard[0] = t
    old = lane.aged
    if not lane.heap:
        commit(guard, t, [(setattr, lane, "aged", None)])
    del old  # its operations die after the commit
