"""Locks and commits that no exception, signal handler or finalizer can break.

This module owns the two primitives on which every shared change of the engine rests.

THE PATTERN: plan, then commit in one C call::

    locked(lock, f, *args)          # the only way a lock is ever taken; inside f:
        t = object(); guard[0] = t  # my ticket, BEFORE the first read of shared state
        ...                         # plan: read, build a private list of steps; change and drop nothing shared
        commit(guard, t, steps)     # ticket check and all steps in one C call

Facts about CPython 3.11 to 3.13 that it rests on (tests/engine/test_interrupts.py tests each):

F1. Asynchronous exceptions, signal handlers and (3.12+) the garbage collector run only at *checkpoints*: function
    entry, backward jump, return from a call to C.  Never inside a C call that calls only C.  So a commit is all or
    nothing.
F2. ``acquire(); try:`` has a checkpoint before the ``try``, and so has every context manager written in Python.
    ``with`` on a C lock has none on 3.11 to 3.13, but has one from 3.14 on until python/cpython#148874 is fixed
    there, so 3.14 takes the slower of the two ``locked`` below.  A loop written directly inside ``with`` or ``try``
    may have its back jump outside the protected range (python/cpython#130279): loops live in the function that is
    called.  `testing.lint` checks the bytecode of this package for it.
F3. 3.11 collects garbage when container objects are allocated.  Steps are C functions with the vectorcall protocol
    (setattr, list.append, operator.setitem, deque.append, heappush, SimpleQueue.put): none allocates one.
F4. Old values that a step overwrites are kept alive in a list that dies after the lock is released, so that no
    finalizer starts inside a commit.

What follows: code that runs *inside* a section (finalizer, signal handler) finds a consistent engine.  It may push
and wait: the locks are re-entrant, its own plan takes the ticket, and the outer commit fails at its first step and
plans again.

Assumes: memory does not run out inside a commit (a list growing); that would be an `InternalError`.
"""

from __future__ import annotations

import operator
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import Any, TypeVar

call = operator.call
setitem = operator.setitem
index = list.index

R = TypeVar("R")
Step = tuple[Any, ...]  # (C callable, *args)


def commit(guard: list[Any], ticket: object, steps: Sequence[Step]) -> bool:
    """Run the steps in one C call; False, and nothing done, if a newer plan took the ticket."""
    try:
        deque(starmap(call, ((index, guard, ticket), *steps)), 0)
    except ValueError:
        if guard[0] is ticket:
            raise
        return False
    return True


def together(steps: Sequence[Step]) -> None:
    """The same without a ticket: of what nobody else changes."""
    deque(starmap(call, steps), 0)


if sys.version_info < (3, 14):

    def locked(lock: Any, f: Callable[..., R], *args: Any) -> R:
        """``f(*args)`` under the lock; every way out releases it."""
        with lock:
            return f(*args)

else:
    _ONCE = (True,)

    def locked(lock: Any, f: Callable[..., R], *args: Any) -> R:
        """``f(*args)`` under the lock; every way out releases it."""
        held: list[bool] = []
        try:
            held += map(lock.acquire, _ONCE)  # taken and noted: one instruction, no checkpoint in between
            result = f(*args)
        except BaseException:
            if held:
                lock.release()  # no checkpoint before this release
            raise
        lock.release()  # nor before this one
        return result


def unlocked(lock: Any, f: Callable[..., R], *args: Any) -> R:
    """``f(*args)`` with a re-entrant lock of this thread given away fully; every way out takes it back."""
    given: list[Any] = []
    try:
        given += map(call, (lock._release_save,))  # given away and noted: one instruction
        return f(*args)
    finally:
        if given:
            lock._acquire_restore(given[0])


# The two locks of all engines, see tracker.py.  Of the process and not of an engine: a finalizer inside a section of
# one engine may push to another, and on another thread it may be the other way round.  [test_engines_together.py]
P: Any = threading.RLock()
T: Any = threading.RLock()


def renew(lock: Any) -> None:
    """In a forked child: free a re-entrant lock of threads that are no more; this one goes on holding what it held."""
    mine = lock._release_save() if lock._is_owned() else None
    lock._at_fork_reinit()
    if mine is not None:
        lock._acquire_restore(mine)


_TRY = (False,)


def attempt(lock: Any, f: Callable[..., Any], *args: Any) -> bool:
    """``f(*args)`` under the lock if it is free; False, and nothing done, if it is not."""
    held: list[bool] = []
    try:
        held += map(lock.acquire, _TRY)
        if held[0]:
            f(*args)
    except BaseException:
        if held and held[0]:
            lock.release()
        raise
    if held[0]:
        lock.release()
    return held[0]
