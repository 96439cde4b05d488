"""What memory arrays hold: bytes alive, and the most there ever were.

A *block* is the raw array that a buffer took.  It is followed with a weak reference whose callback is one C call,
`deque.append`: no finalizer in Python.  Births and deaths go into one queue, in the order in which they happen, and are
counted when somebody asks or when the queue has grown long.  So the figures are exact, the peak too, and an allocation
pays a reference and an append, no lock.  A raw array lives as long as a view of it, whoever has that.

Blocks of less than `SMALL` bytes, a page, are not followed: an operation on so few elements would take a tenth longer.
Nor is what a kernel takes and frees before it ends.  What the pool (pool.py) keeps for later is counted apart.

A ledger's `alive`, `live` and `peak`, and taking from its queue, are guarded by its lock; appending needs no guard.
"""

from __future__ import annotations

import operator
import os
from _thread import allocate_lock
from collections import deque
from itertools import repeat, starmap
from typing import Any
from weakref import ref

from ..engine.atomic import attempt

SMALL = 4096  # bytes
PAGE = SMALL // 8  # elements: fewer are of less than a page, whatever their dtype
KEPT = 32_768  # elements: the tape keeps the raw array of a smaller young array as it is
LONG = 128  # events that wait to be counted


class Block(ref[Any]):
    """A reference to some memory that appends itself to the queue when that dies."""

    __slots__ = ("nbytes",)
    nbytes: int


class Ledger:
    """The bytes of what it follows.  The figures are those of the events that were taken off the queue."""

    __slots__ = ("alive", "events", "live", "lock", "peak")

    def __init__(self) -> None:
        self.events: deque[Block] = deque()
        self.alive: dict[int, Block] = {}  # by id: it keeps the reference, and so its callback
        self.live = 0
        self.peak = 0
        self.lock: Any = allocate_lock()

    def follow(self, memory: Any) -> None:
        """Count this memory's bytes as alive until it is freed."""
        nbytes = memory.nbytes
        if nbytes >= SMALL:
            events = self.events
            block = Block(memory, events.append)
            block.nbytes = nbytes
            events.append(block)
            if len(events) > LONG:
                self.settle()

    def settle(self) -> None:
        """Count what has happened, if nobody else does it right now (on this thread: a frame below)."""
        attempt(self.lock, self._take)

    def renew(self) -> None:
        """In the child of a fork: the lock's holder may be a thread that is not here."""
        self.lock = allocate_lock()

    def _take(self) -> None:
        """Lock held.  Plan, then commit in one C call (atomic.py): an interrupt counts nothing twice or never."""
        batch = self.events.copy()  # one C call, while others append
        live, peak, alive = self.live, self.peak, self.alive
        born: dict[int, Block] = {}
        died: list[int] = []
        for block in batch:  # the first event of a block is its birth, the second its death
            key = id(block)
            if born.pop(key, None) is not None:
                live -= block.nbytes
            elif key in alive:
                live -= block.nbytes
                died.append(key)
            else:
                born[key] = block
                live += block.nbytes
                peak = max(peak, live)
        steps = (
            (dict.update, alive, born),
            *((dict.pop, alive, key) for key in died),
            (setattr, self, "live", live),
            (setattr, self, "peak", peak),
            *repeat((deque.popleft, self.events), len(batch)),
        )
        deque(starmap(operator.call, steps), 0)


arrays = Ledger()
follow = arrays.follow


def usage() -> tuple[int, int]:
    """Bytes alive now, and the most since the program began (or `reset_peak`).  Never blocks."""
    arrays.settle()
    return arrays.live, arrays.peak


def reset_peak() -> None:
    """Let the peak begin anew, at what is alive now."""
    arrays.settle()
    arrays.peak = arrays.live


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=arrays.renew)
