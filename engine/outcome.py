"""What admission plans with: how a push may be turned away, and functions without effects."""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Final

from .atomic import Step
from .errors import Cancelled
from .operation import DONE, Operation
from .tracker import Access

# "Raise what you have caught."  Whoever decides on an exception does not raise it: its traceback would then hold his
# frame, and his frame the exception, so that what it had planned would live until the garbage collector comes by.
RAISE: Final = object()


class Full(BaseException):
    """Raised inside the section, nothing changed: there is no room for an operation with so many bytes."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.nbytes = nbytes


class Park(BaseException):
    """Raised inside the section, so that the lock is free before the thread is parked."""


def park() -> None:
    """Never return: the process is ending."""
    lock = allocate_lock()
    lock.acquire()
    lock.acquire()


def var_steps(out: list[Step], keep: list[Any], variables: Access, op: Operation) -> None:
    """The change of variables that a queued or failed `op` writes or updates."""
    for v in variables:
        if v.writer is not None:
            keep.append(v.writer)
        if v.readers:
            keep.append(v.readers)
            out.append((setattr, v, "readers", ()))
        out += ((setattr, v, "writer", op), (setattr, v, "version", v.version + 1))


def all_done(ops: Sequence[Operation]) -> bool:
    """Are all of them DONE?"""
    for o in ops:  # noqa: SIM110 - a generator costs three times as much
        if o.state is not DONE:
            return False
    return True


def strongest(reads: Access, writes: Access, updates: Access) -> tuple[Access, Access, Access]:
    """Each variable once, in its strongest meaning; read and written is updated."""
    if not updates and len(reads) < 3 and len(writes) == 1 and writes[0] not in reads:
        return (reads if len(reads) < 2 or reads[0] is not reads[1] else reads[:1]), writes, updates
    u = dict.fromkeys(updates)
    w = dict.fromkeys(writes)
    r = dict.fromkeys(reads)
    u.update((v, None) for v in w if v in r)
    return [v for v in r if v not in u], [v for v in w if v not in u], list(u)


def fails_again(prepare: Callable[[], object], context: Context) -> bool:
    """Does it raise a second time?  An exception that a signal handler threw into the first one does not
    repeat.
    """
    try:
        context.run(prepare)
    except Exception:
        return True
    return False


def own_error(e: BaseException) -> BaseException:
    """What a kernel cut by `e` is poisoned with: its own error, or, for an interrupt, that it was cut."""
    return e if isinstance(e, Exception) else Cancelled("interrupted")
