"""Pushes that are held at the bounds: a thread's, or a task's of an event loop.  See limits.py and aio.py."""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from collections import deque
from queue import SimpleQueue
from typing import Any

from .mail import Mailbox, unrung


class Held:
    """A push that is held: `busy` is locked as long as its thread is in there, so an entry left behind is no entry."""

    __slots__ = ("bell", "busy", "ended", "nbytes", "result", "since", "thread", "token")

    def __init__(self, nbytes: int, ended: int, since: float) -> None:
        self.bell: SimpleQueue[Any] = SimpleQueue()
        self.token: Any = None  # what is put into it
        self.busy: Any = allocate_lock()
        self.thread = get_ident()
        self.nbytes = nbytes
        self.result: Any = None
        # For G3: how many had ended when this thread last saw that number change, and when that was.
        self.ended = ended
        self.since = since

    def wake(self, steps: list[Any]) -> None:
        """T held.  It is to look whether it fits now."""
        steps.append((SimpleQueue.put, self.bell, self.token))
        if type(self.bell) is not SimpleQueue:  # an event loop's: who commits this rings afterwards
            steps.append((deque.append, unrung, self.bell))


class Life:
    """What stands for the lock of a suspended push: held while its task may go on."""

    __slots__ = ("box", "over")

    def __init__(self, box: Mailbox) -> None:
        self.box = box
        self.over = False

    def locked(self) -> bool:
        """Is it held?"""
        return not self.over and self.box.runs()


class Suspended(Held):
    """A push of a task that waits for room."""

    __slots__ = ("engine",)

    def __init__(self, engine: Any, nbytes: int, box: Mailbox) -> None:
        super().__init__(nbytes, engine._ended(), engine._clock())
        self.engine = engine
        self.bell = box
        self.token = self
        self.busy = Life(box)
