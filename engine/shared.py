"""A few C calls that the thread which runs an operation shares with workers.

`parallel` (parallel.py) pushes a helper for each worker and goes from piece to piece in Python.  That is too much for
an operation of half a millisecond: two threads that want the interpreter between any two calls to NumPy stand in each
other's way.  So here everything is prepared, and then:

- a *piece* is a list of steps, and all that a thread does of an operation is one C call: take pieces until none is
  left, and run their steps.  Nothing is published before the C call of the parent begins;
- an *assistant* is what a worker finds in ``lane.assistants`` when it has nothing to run.  Nobody waits for one that
  has not come.  It works under a door of its own, as the helpers of parallel.py do: the parent's C call ends by taking
  every door, so it waits for those that are inside, and who comes later leaves;
- then a step fails unless every piece was done.

NOBODY IS LEFT INSIDE.  Doors are taken with `RLock._acquire_restore`, which waits for a lock without hearing signals:
so nothing but a step's own failure cuts the C call, and an interrupt comes before all of it or after.  What is cut
takes the doors first of all: the handler begins with one C call (`Shared.left`), and is entered without a checkpoint
(F1 in atomic.py), for an interrupt may have come while the steps ran.           [tests/engine/test_shared.py]
"""

from __future__ import annotations

import operator
import threading
from _thread import get_ident
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, starmap
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from .atomic import Step, attempt, call
from .claims import here_and_now
from .errors import Cancelled

if TYPE_CHECKING:
    from contextvars import Context

    from .operation import Operation
    from .ready import Lane


#: all of an iterator, for what it does
exhaust = deque[Any](maxlen=0).extend


class Shared:
    """The pieces of one operation, and the steps that do them; made by the thread that runs it.

    `left`: to be exhausted if they were cut.  Behind that no assistant is inside, and none will be.
    """

    __slots__ = ("asked", "errors", "left", "steps")

    def __init__(self, op: Operation, pieces: Sequence[Sequence[Step]], lane: Lane, context: Context) -> None:
        todo: deque[Any] = deque()
        done: list[int] = []  # the numbers of pieces; each change is a step
        self.errors: list[BaseException] = []  # of assistants
        self.asked: list[int] = []  # not empty: it is the last look that fails
        assistants = [Assistant(todo, self.errors, op, context) for _ in range(min(lane.workers, len(pieces)) - 1)]
        whole = [(*piece, (list.append, done, i)) for i, piece in enumerate(pieces)]
        me = (1, get_ident())
        # One iterator: whoever exhausts it, each door is taken once.
        doors = starmap(
            call,
            [s for a in assistants for s in ((a.door._acquire_restore, me), (dict.pop, lane.doors, a.door, None))],
        )
        self.left = starmap(call, [(deque.clear, todo), (exhaust, doors)])
        # A `None` for each thread, behind all pieces: as long as nothing is cut, nobody finds the queue empty.
        steps: list[Step] = [(deque.extend, todo, [*whole, *(None for _ in range(len(assistants) + 1))])]
        if assistants:
            steps.append((dict.update, lane.doors, dict.fromkeys(a.door for a in assistants)))
            steps.append((deque.extend, lane.assistants, assistants))
            steps.append((SimpleQueue.put, lane.bell, None))  # who comes rings on
        steps += ((exhaust, together(todo)), (exhaust, doors))
        if pieces:
            steps.append((list.append, self.asked, 1))
            steps.append((operator.getitem, done, len(pieces) - 1))  # fails unless all were done
            steps.append((list.clear, self.asked))
        self.steps = steps

    def error(self, op: Operation, e: BaseException) -> BaseException:
        """Why it failed, if `e` is what its C call raised."""
        if not self.asked:
            return e
        return self.errors[0] if self.errors else Cancelled(f"[{op.name or 'operation'}] was interrupted")


def together(todo: deque[Any]) -> Any:
    """The steps of all pieces that nobody else takes, in C: `None` ends it."""
    return starmap(call, chain.from_iterable(iter(todo.popleft, None)))


class Assistant:
    """A worker's share, should one come in time.  One that has missed it keeps nothing alive."""

    __slots__ = ("context", "door", "errors", "parent", "todo")

    def __init__(self, todo: deque[Any], errors: list[BaseException], parent: Operation, context: Context) -> None:
        self.todo, self.errors, self.parent, self.context = todo, errors, parent, context.copy()
        self.door: Any = threading.RLock()

    def __call__(self) -> None:
        """On a worker that runs nothing."""
        stack = here_and_now.stack
        depth = len(stack)
        with suppress(BaseException):  # thrown into this thread before its C call or after: nothing is lost
            attempt(self.door, self._work)
        del stack[depth:]

    def _work(self) -> None:
        if self.todo:
            here_and_now.stack.append(self.parent)  # who waits for that one here waits for himself
            try:
                self.context.run(exhaust, together(self.todo))
            except BaseException as e:
                self.errors.append(e)  # as long as the door is shut: then the parent looks, if a piece is missing
