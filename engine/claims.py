"""What a thread knows of the operations it runs: its stack, its claims, and the callback that may end one for it."""

from __future__ import annotations

import sys
import threading
from _thread import get_ident
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import ArgumentTypeError, Cancelled, CompletionError
from .operation import OK, Fate, Operation, Root

if TYPE_CHECKING:
    from .running import Runner


#: workers that are being started, each with its engine: a finalizer in the bootstrap of one may wait already
#: [test_guards: test_a_worker_that_waits_before_it_is_one]
starting: list[tuple[threading.Thread, object]] = []
#: threads that have the turn of a serial engine, and wait
in_wait: set[int] = set()


class ThisThread(threading.local):
    """What the engine knows of the calling thread."""

    def __init__(self) -> None:
        me = get_ident()
        #: the engine whose worker this thread is
        self.worker: object = next((engine for thread, engine in tuple(starting) if thread.ident == me), None)
        self.forced = False  # its push is admitted whatever the bounds are
        self.busy: Any = None  # the busy lock of the innermost operation that it helps with; free once that is over
        self.turn = False  # it has the turn of a serial engine
        #: (operation that waits, what for) of its innermost wait
        self.target: tuple[Operation | None, Operation | None] = (None, None)
        self.gave = 0.0  # when it gave way to an event loop last, or will again: see mail.py
        self.mailbox: Any = None  # of the event loop that ran on it last: see mail.py
        self.stack: list[Operation] = []  # the functions running on it, outermost first, of all engines


here_and_now = ThisThread()


Job = tuple[Operation, list[Any], object]  # a claimed operation: (operation, claim, token)


class RunContext(NamedTuple):
    """What a `push_async` or `push_sync` function is given first: the device context it was pushed for, and the
    engine.
    """

    ctx: Any
    engine: Any


class Completion:
    """The ``on_complete`` of one `push_async` operation: call it once, from any thread, with an error or without."""

    __slots__ = ("_claim", "_engine", "_op", "_token")

    def __init__(self, engine: Runner, op: Operation, claim: list[Any], token: object) -> None:
        self._engine = engine
        self._op = op
        self._claim = claim
        self._token = token

    def __call__(self, error: BaseException | type[BaseException] | None = None) -> None:
        """Complete the operation.

        Parameters
        ----------
        error : exception, optional
            Poisons what the operation writes or updates.

        Sync: never blocks.

        Raises
        ------
        CompletionError
            It is complete already.
        """
        if isinstance(error, type) and issubclass(error, BaseException):
            error = error()
        if error is not None and not isinstance(error, BaseException):
            raise ArgumentTypeError(f"[on_complete] {error!r} is not an exception")
        fate = OK if error is None else Fate(Root(self._op, error))
        if fate.root is not None and self._op.cancelled and isinstance(error, Cancelled):
            fate.root.seen = True  # by whoever cancelled it
        engine = self._engine
        if not engine._finish(self._op, self._claim, self._token, fate):
            raise CompletionError(f"[{self._op.name or 'operation'}] is complete already")
        if engine._serial:
            engine._run_ready()


def empty(bell: SimpleQueue[None]) -> None:
    """Take off the tokens of work that is about to be looked at: one C call, ended by the exception."""
    with suppress(Empty):
        deque(iter(bell.get_nowait, bell), 0)  # no token is the bell itself


def deep() -> bool:
    """Is more than half of the stack used?"""
    frame: Any = sys._getframe()
    left = sys.getrecursionlimit() // 2
    while frame is not None and left:
        frame = frame.f_back
        left -= 1
    return frame is not None
