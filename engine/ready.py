"""Ready queues: which of the ready operations runs next, and who is woken for it.

Owns `Lane` (a heap, a bell, its workers' threads) and the ranks.  The heap belongs to lock T; the bell is atomic by
itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from .operation import Operation

Entry = tuple[Any, int, Operation]
Rank = Callable[[Operation], Any]


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

    __slots__ = ("bell", "heap", "name", "started", "stopping", "threads", "up", "workers")

    def __init__(self, name: str, workers: int) -> None:
        self.name = name
        self.workers = workers
        self.heap: list[Entry] = []  # T: (rank, seq, op).  Entries of operations no longer READY are stale: skipped
        self.bell: SimpleQueue[None] = SimpleQueue()
        self.threads: list[threading.Thread] = []
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

    def renew(self) -> None:
        """Empty, without threads: in a forked child."""
        self.heap, self.bell, self.threads = [], SimpleQueue(), []
        self.started = self.stopping = False
        self.up = SimpleQueue()

    def __repr__(self) -> str:
        return f"<Lane {self.name}, {self.workers} workers>"
