"""A few C calls that the thread which runs an operation shares with workers.

`parallel` (parallel.py) pushes a helper for each worker and goes from piece to piece in Python.  That is too much for
an operation of half a millisecond: two threads that want the interpreter between any two calls to NumPy stand in each
other's way.  So here everything is prepared, and then:

- a *piece* is a list of steps, and all that a thread does of an operation is one C call: take pieces until none is
  left, and run their steps.  Nothing is published before the C call of the parent begins;
- an *assistant* is what a worker finds in ``lane.assistants`` when it has nothing to run.  Nobody waits for one that
  has not come.  It works under a door of its own, as the helpers of parallel.py do: the parent's C call ends by
  emptying the queue of pieces and taking every door, so it waits for those that are inside, and who comes later leaves;
- the last step fails unless every piece was done.

What is cut is therefore the operation's own failure, and an interrupt comes before all of it or after; or while the
thread waits for a door, for that is where a C call hears it: then the rest is done before the interrupt goes on.
                                                                                   [tests/engine/test_shared.py]
"""

from __future__ import annotations

import operator
import threading
from collections import deque
from collections.abc import Sequence
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


class Shared:
    """The pieces of one operation, and the steps that do them: `begin`, then `end`, in one C call."""

    __slots__ = ("begin", "done", "end", "errors", "todo")

    def __init__(self, op: Operation, pieces: Sequence[Sequence[Step]], lane: Lane, context: Context) -> None:
        self.todo: deque[Any] = deque()
        self.done: list[int] = []  # the numbers of pieces; each change is a step
        self.errors: list[BaseException] = []
        assistants = [Assistant(self.todo, self.errors, op, context) for _ in range(min(lane.workers, len(pieces)) - 1)]
        whole = [(*piece, (list.append, self.done, i)) for i, piece in enumerate(pieces)]
        self.begin: list[Step] = [(deque.extend, self.todo, [*whole, *(None for _ in range(len(assistants) + 1))])]
        if assistants:
            doors = dict.fromkeys(a.door for a in assistants)
            self.begin.append((dict.update, lane.doors, doors))
            self.begin.append((deque.extend, lane.assistants, assistants))
            self.begin += ((SimpleQueue.put, lane.bell, None) for _ in assistants)
        self.begin.append((deque, together(self.todo), 0))
        #: may be repeated
        self.end: list[Step] = [(deque.clear, self.todo)]
        for a in assistants:
            self.end += [(a.door.acquire,), (dict.pop, lane.doors, a.door, None)]

    def leave(self) -> None:
        """Take all doors, though handlers raise meanwhile: a thread that waits for a lock hears them."""
        while not self._left():
            pass

    def _left(self) -> bool:
        try:
            deque(starmap(call, self.end), 0)
        except BaseException:
            return False
        return True

    def check(self, count: int) -> Step:
        """Fails unless `count` pieces were done."""
        return (operator.getitem, self.done, count - 1)

    def error(self, op: Operation, e: BaseException) -> BaseException:
        """Why it failed, if `e` is what its C call raised."""
        if not isinstance(e, IndexError):
            return e
        return self.errors[0] if self.errors else Cancelled(f"[{op.name or 'operation'}] was interrupted")


def together(todo: deque[Any]) -> Any:
    """The steps of all pieces that nobody else takes, in C: `None` ends it, and so does an empty queue."""
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
        try:
            attempt(self.door, self._work)
        except BaseException as e:
            self.errors.append(e)  # the parent looks here if a piece is missing
        del stack[depth:]

    def _work(self) -> None:
        if self.todo:
            here_and_now.stack.append(self.parent)  # who waits for that one here waits for himself
            self.context.run(deque, together(self.todo), 0)
