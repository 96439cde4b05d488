"""What memory arrays hold: bytes alive, and the most there ever were.

A *block* is the raw array that a buffer took.  It is followed with a weak reference whose callback is one C call,
`deque.append`: no finalizer in Python.  Births and deaths go into one queue, in the order in which they happen, and are
counted when somebody asks or when the queue has grown long.  So the figures are exact, the peak too, and an allocation
pays a reference and an append, no lock.  A raw array lives as long as a view of it, whoever has that.

Blocks of less than `SMALL` bytes, a page, are not followed: an operation on so few elements would take a tenth longer.
Nor is what a kernel takes and frees before it ends.

`_count` and taking from the queue are guarded by `_lock`; appending needs no guard.
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
LONG = 128  # events that wait to be counted


class Block(ref[Any]):
    """A reference to a raw array that appends itself to the queue when that dies."""

    __slots__ = ("nbytes",)
    nbytes: int


class Count:
    """The figures, as of the events that were taken off the queue."""

    __slots__ = ("alive", "live", "peak")

    def __init__(self) -> None:
        self.alive: dict[int, Block] = {}  # by id: it keeps the reference, and so its callback
        self.live = 0
        self.peak = 0


_events: deque[Block] = deque()
_count = Count()
_lock: Any = allocate_lock()


def follow(raw: Any) -> None:
    """Count this raw array's bytes as alive until it is freed."""
    nbytes = raw.nbytes
    if nbytes >= SMALL:
        block = Block(raw, _events.append)
        block.nbytes = nbytes
        _events.append(block)
        if len(_events) > LONG:
            _settle()


def _settle() -> None:
    """Count what has happened, if nobody else does it right now (on this thread: a frame below)."""
    attempt(_lock, _take)


def _take() -> None:
    """Lock held.  Plan, then commit in one C call (engine/atomic.py): an interrupt counts nothing twice or never."""
    count = _count
    batch = _events.copy()  # one C call, while others append
    live, peak, alive = count.live, count.peak, count.alive
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
        (setattr, count, "live", live),
        (setattr, count, "peak", peak),
        *repeat((deque.popleft, _events), len(batch)),
    )
    deque(starmap(operator.call, steps), 0)


def usage() -> tuple[int, int]:
    """Bytes alive now, and the most since the program began (or `reset_peak`).  Never blocks."""
    _settle()
    return _count.live, _count.peak


def reset_peak() -> None:
    """Let the peak begin anew, at what is alive now."""
    _settle()
    _count.peak = _count.live


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603 - its holder may be a thread that is not here
    _lock = allocate_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
