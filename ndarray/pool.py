"""The memory pool: large blocks are used again instead of being given back, for fresh pages cost more than arithmetic.

A *slab* is memory of one of the pool's sizes, four to each power of two.  It is idle, on the shelf of its size, or in
use by one raw array.  Arrays of fewer than `FEW` elements come from NumPy.

WHEN IS A SLAB IDLE?  When nobody can read it.  A raw array of the pool has as its base a *lease*, an opaque object made
for it alone, which refers to the slab.  NumPy makes the base of every view the last array before an object that is no
array, so each view of any depth refers to that raw array, it to the lease; so does whoever takes `.base`.  The death of
the lease therefore proves that nothing refers to the slab.  The lease is watched by a weak reference (a `Ticket`) whose
callback is one C call: the ticket puts itself on the shelf.  The ticket refers to the slab, the slab to its ticket, so
the ticket lives as long as the lease.

THREADS, INTERRUPTS, FINALIZERS.  Taking a slab is one C call, `deque.pop`: nobody else has it then.  Whatever comes
after it finds the slab in one of two states: with a lease, whose death puts it back on its shelf, or without, and then
it goes back to NumPy when the frame that took it goes (with a cycle to collect).  So none is handed out twice and none
is lost.  No lock is needed, and a fork leaves a working pool.       [tests/ndarray/test_pool.py]

BOUND.  Idle and used slabs together never take more than `limit` bytes (a block more for each thread that takes one at
the same moment); over it, idle slabs of other sizes are given back, those used longest ago first, and if that is not
enough the memory is NumPy's own.  So idle memory is bounded without anything being done when an array dies.  A slab
that was idle for `OLD` further requests is given back, too; and all of them when memory runs out.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from itertools import count
from math import prod
from pickle import PickleBuffer
from typing import Any
from weakref import ref

import numpy as np

from ..engine import ArgumentError, low_memory_hooks, machine_memory
from .memory import Ledger

RawArray = np.ndarray[Any, Any]

FEW = 8192  # elements: malloc keeps the pages of smaller blocks itself
ALIGNMENT = 64  # bytes: a line of the cache, and the widest vector
OLD = 1 << 15  # requests
LOOK = 0xFF  # after so many requests one shelf is looked through for old slabs
POISON = 0xFF  # in every byte: NaN, or -1

_UINT8 = np.dtype(np.uint8)
_ndarray = np.ndarray
_empty = np.empty
_fresh_slab = _ndarray.__new__


class Slab(np.ndarray[Any, Any]):
    """Memory of one size.  A class of its own: NumPy looks for a base up to where the class changes."""

    __slots__ = ("offset", "ticket")
    offset: int
    ticket: Ticket | None


class Ticket(ref[Any]):
    """A reference to the lease of a slab.  It puts itself on the shelf when that dies."""

    __slots__ = ("slab", "stamp")
    slab: Slab
    #: the number of the request that the slab was last used for
    stamp: int


Shelf = deque[Ticket]


@dataclasses.dataclass(frozen=True)
class PoolStatistics:
    """What the pool has.  `bytes`: of all slabs, idle ones included.   `idle_bytes`: of those that wait to be used.

    `requests`: blocks that were large enough for the pool; `fresh`: of these the ones that needed fresh memory.
    """

    bytes: int
    idle_bytes: int
    idle: int
    limit: int
    requests: int = dataclasses.field(compare=False)
    fresh: int = dataclasses.field(compare=False)


class Pool:
    """Memory that is used again.  `vardag.nd.memory_pool` is the one of the host.

    >>> from vardag import nd
    >>> raw = nd.memory_pool.take((1000, 1000), nd.ones((1,)).asnumpy().dtype)
    >>> del raw
    >>> nd.memory_pool.statistics().idle_bytes >= 4_000_000
    True
    >>> _ = nd.memory_pool.release()
    >>> nd.memory_pool.statistics().idle_bytes
    0
    """

    __slots__ = ("_fresh", "_last", "_ledger", "_limit", "_poison", "_shelves", "_stamps", "few")

    def __init__(self, limit: int, poison: bool = False) -> None:
        # Of the sizes from 2^(k+2) to 2^(k+3) bytes those numbered 4k + 5, ..., 4k + 8.
        self._shelves: tuple[Shelf, ...] = tuple(deque() for _ in range(4 * 64))
        self._ledger = Ledger()
        self._stamps = count(1)
        self._last = 0  # approximate, as is the next
        self._fresh = 0
        self._limit = limit
        self._poison = False
        #: smaller arrays need not ask
        self.few = FEW
        self.poison = poison

    # ---- memory ----------------------------------------------------------------------------------------------------

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> RawArray:
        """A raw array with arbitrary contents, C-ordered; one of the pool's sizes is aligned to a line of the cache."""
        top = prod(shape) * dtype.itemsize - 1
        k = top.bit_length() - 3
        if top < FEW or k > 58:  # NumPy says what is wrong with such a size
            return self._plain(shape, dtype)
        quarter = top >> k  # 4 to 7
        shelf = self._shelves[4 * k + quarter]
        self._last = stamp = next(self._stamps)
        slab: Slab | None
        try:
            slab = shelf.pop().slab
        except (IndexError, AttributeError):  # none; or one whose hand-out was cut short
            slab = None
        if slab is None:
            slab = self._make((quarter + 1) << k)
            if slab is None:
                return self._plain(shape, dtype)
        lease: Any = PickleBuffer(slab)  # type: ignore[arg-type]
        ticket = Ticket(lease, shelf.append)
        ticket.slab, ticket.stamp = slab, stamp
        slab.ticket = ticket
        if self._poison:
            slab.fill(POISON)
        if not stamp & LOOK:
            self._look_through(self._shelves[(stamp // (LOOK + 1)) % len(self._shelves)], stamp - OLD)
        return _ndarray(shape, dtype, lease, slab.offset)

    def _plain(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> RawArray:
        raw = _empty(shape, dtype)
        if self._poison:
            _ndarray((raw.nbytes,), _UINT8, raw).fill(POISON)
        return raw

    def _make(self, size: int) -> Slab | None:
        """A slab with fresh memory, None if the bound does not allow it."""
        self._fresh += 1
        room = size + ALIGNMENT
        if self._limit - room < 0:
            return None
        over = self._used() + room - self._limit
        if over > 0:
            self._evict(over)
            if self._used() + room > self._limit:
                return None
        try:
            slab = _fresh_slab(Slab, (room,), _UINT8)
        except MemoryError:
            self.release()
            slab = _fresh_slab(Slab, (room,), _UINT8)
        slab.offset = -slab.ctypes.data % ALIGNMENT
        slab.ticket = None
        self._ledger.follow(slab)
        return slab

    def _used(self) -> int:
        self._ledger.settle()
        return self._ledger.live

    # ---- giving back -----------------------------------------------------------------------------------------------

    def _look_through(self, shelf: Shelf, before: int) -> None:
        while shelf and _stamp(shelf) < before and _give_back(shelf):
            pass

    def _evict(self, nbytes: int) -> None:
        """Give back so many bytes of idle slabs, those used longest ago first."""
        while nbytes > 0:
            shelves = [shelf for shelf in self._shelves if shelf]
            if not shelves:
                return
            nbytes -= _give_back(min(shelves, key=_stamp))

    def release(self) -> int:
        """Give all idle memory back.  Returns the number of bytes.  Never blocks."""
        given = 0
        for shelf in self._shelves:
            for _ in range(len(shelf)):
                given += _give_back(shelf)
        return given

    # ---- the user's --------------------------------------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """The most bytes that the pool's memory may take, in use or idle; settable.

        Default: a quarter of the machine's (of the container's) memory, or the environment's VARDAG_POOL_BYTES.
        0: no pool.
        """
        return self._limit

    @limit.setter
    def limit(self, nbytes: int) -> None:
        if type(nbytes) is not int or nbytes < 0:
            raise ArgumentError(f"[memory_pool] limit {nbytes!r}: expected a number of bytes from 0 on")
        self._limit = nbytes
        over = self._used() - nbytes
        if over > 0:
            self._evict(over)

    @property
    def poison(self) -> bool:
        """Whether memory is filled with NaN (integers: -1) before it is handed out, to find what reads it unwritten.

        Settable; default: whether the environment has VARDAG_POOL_POISON=1.
        """
        return self._poison

    @poison.setter
    def poison(self, poison: bool) -> None:
        self._poison = bool(poison)
        self.few = 0 if poison else FEW

    def statistics(self) -> PoolStatistics:
        """What the pool has now.  Never blocks."""
        sizes = [(slab.nbytes, len(shelf)) for shelf in self._shelves if (slab := _idle(shelf)) is not None]
        idle = sum(n for _, n in sizes)
        used = self._used()
        idle_bytes = min(sum(size * n for size, n in sizes), used)
        return PoolStatistics(used, idle_bytes, idle, self._limit, self._last, self._fresh)


def pooled(raw: RawArray) -> bool:
    """Is it a raw array as `Pool.take` gave it, not a view of one?"""
    base: Any = raw.base
    return type(base) is PickleBuffer


def _idle(shelf: Shelf) -> Slab | None:
    try:
        return shelf[-1].slab
    except (IndexError, AttributeError):
        return None


def _stamp(shelf: Shelf) -> int:
    """When the slab that has been idle for the longest time was last asked for."""
    try:
        return shelf[0].stamp
    except (IndexError, AttributeError):
        return -1


def _give_back(shelf: Shelf) -> int:
    """Give back the memory that has been idle for the longest time; how many bytes, at least 1."""
    try:
        slab = shelf.popleft().slab
    except (IndexError, AttributeError):
        return 1
    slab.ticket = None  # the cycle
    return slab.nbytes


def _bytes_of_the_environment() -> int:
    text = os.environ.get("VARDAG_POOL_BYTES", "")
    if not text:
        return machine_memory() // 4
    if not text.isdigit():
        raise ArgumentError(f"[memory_pool] VARDAG_POOL_BYTES={text!r}: expected a number of bytes")
    return int(text)


memory_pool = Pool(_bytes_of_the_environment(), os.environ.get("VARDAG_POOL_POISON") == "1")
low_memory_hooks.append(memory_pool.release)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=memory_pool._ledger.renew)
