"""One running operation on several workers.

Owns the splitting of a kernel into pieces: ``parallel(function, items)`` calls ``function(item)`` for every item, on
the thread that runs the operation and on workers that have nothing to do.  Guarantees:

- when it returns or raises, no piece is running and none will; every piece was called once, unless one failed;
- the error is that of the first item whose call failed, whatever the schedule, and only the operation has it;
- it ends whatever becomes of the helpers, and an exception thrown into any of the threads ends the operation, never
  before the last piece that writes;
- outside of a kernel, in the serial engine and where no worker is idle it is a plain loop in order.

WHAT MAY BE SPLIT.  How many pieces there are and what each one does depends on shapes and dtypes alone, never on
workers or load: then the bytes are the same on every engine.  Pieces are library code; they write to disjoint memory,
take no locks and may call `parallel` themselves.

HOW.  A *helper* is an operation without variables, pushed by the running one, its parent.  Parent and helpers take
items from one queue, an item by one C call.  Each helper works under a lock of its own (its *door*), which it takes
without waiting.  The parent ends with one C call: empty the queue, then take every door for good.  So it waits for
those that are inside, and who comes later finds the door shut and leaves.  It does not wait for helpers that have not
begun.

An exception thrown into the parent arrives before or after that C call, and the `finally` that holds it is entered
without a checkpoint (F1 in atomic.py).  One thrown into a helper leaves an item that was taken and not done.  The
parent sees which are missing: what had not begun it does itself, what was cut is an error.

While a helper works, the parent is on its thread's stack too: a finalizer that waits there for what only the parent
can finish raises `DeadlockError`, as it does on the parent's own thread.     [tests/engine/test_parallel.py]
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from itertools import starmap
from typing import TYPE_CHECKING, Any

from .atomic import attempt, call
from .claims import here_and_now
from .errors import Cancelled, EngineClosed
from .operation import Kind, Operation

if TYPE_CHECKING:
    from .core import Engine

KERNEL = Kind.KERNEL

#: of a context in which kernels belong to their thread: a device's current stream is a thread's
alone: ContextVar[bool] = ContextVar("vardag_alone", default=False)


def parallel(function: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Call ``function(item)`` for every item, in any order and on several workers if the caller is a running kernel.

    Parameters
    ----------
    function : callable
        Library code.  Called at most once for each item.
    items : iterable
        Few: each should be worth 20 microseconds at the very least, or the threads only pass the interpreter around.

    Sync: blocks until all are done; waits for nothing but pieces that run.

    Raises
    ------
    What the call for the first failing item raised.

    Examples
    --------
    >>> from vardag.engine.parallel import parallel
    >>> parallel(print, ["in", "order"])  # no operation is running
    in
    order
    """
    items = tuple(items)
    stack = here_and_now.stack
    parent = stack[-1] if stack else None
    if parent is None or parent.kind is not KERNEL or len(items) < 2 or parent.engine._lane.workers < 2 or alone.get():
        for item in items:
            function(item)
    elif parent.engine._fuzz is not None:
        _shuffled(function, parent.engine._fuzz.order(range(len(items))), items)
    else:
        Split(parent, function, items).run()


def _shuffled(function: Callable[[Any], object], order: list[int], items: tuple[Any, ...]) -> None:
    """In this order; but the error is that of the first item whose call fails."""
    failed: dict[int, BaseException] = {}
    for i in order:
        if not failed or i < min(failed):
            try:
                function(items[i])
            except BaseException as e:
                failed[i] = e
    if failed:
        try:
            raise failed[min(failed)]
        finally:
            failed.clear()


def idle(engine: Engine) -> int:
    """How many workers have nothing to do: a guess, at the price of nothing."""
    lane = engine._lane
    return len(lane.asleep) - len(lane.heap) - len(engine._inbox)


class Split:
    """The pieces of one operation."""

    __slots__ = ("begun", "done", "errors", "function", "helpers", "items", "last", "parent", "todo")

    def __init__(self, parent: Operation, function: Callable[[Any], object], items: tuple[Any, ...]) -> None:
        self.parent, self.function, self.items = parent, function, items
        self.todo = deque(range(len(items)))
        # Places of items.  Each change is one C call.
        self.begun: list[int] = []
        self.done: list[int] = []
        self.errors: dict[int, BaseException] = {}
        self.helpers: list[Helper] = []
        self.last: list[tuple[Any, ...]] = [(self.todo.clear,)]  # the end, see the module's text

    def run(self) -> None:
        """All pieces, on the parent's thread and its helpers'."""
        ending, nothing = starmap(call, self.last), deque[Any](maxlen=0)
        try:
            self.lead()
        finally:
            nothing.extend(ending)  # one C call, with the doors of all who have been called by now
            self.dismiss(self.helpers)
        if self.errors:
            self._raise_first()
        if len(self.done) < len(self.items):
            self._finish()

    def lead(self) -> None:
        """The parent's share.  Before each piece it calls those workers who have nothing to do by then."""
        engine, todo = self.parent.engine, self.todo
        while todo:
            for _ in range(min(idle(engine), len(todo) - 1)):
                self._call()
            try:
                i = todo.popleft()
            except IndexError:
                return
            self._one(i)

    def _call(self) -> None:
        helper = Helper(self)
        self.helpers.append(helper)
        self.last.append((helper.door.acquire,))  # before anybody can know the helper
        op = Operation(KERNEL, helper, f"{self.parent.name} (part)", site=self.parent.site)
        with suppress(EngineClosed):
            self.parent.engine._push(op, (), (), ())

    def dismiss(self, helpers: list[Helper]) -> None:
        """All doors are shut: what has not begun need not keep anything alive."""
        for helper in helpers:
            helper.split = None

    def pull(self) -> None:
        """Do what nobody else has taken, item by item."""
        todo = self.todo
        while todo:
            try:
                i = todo.popleft()
            except IndexError:
                return
            self._one(i)

    def _one(self, i: int) -> None:
        try:
            self.begun.append(i)
            self.function(self.items[i])
            self.done.append(i)
        except BaseException as e:
            self.errors[i] = e
            self.todo.clear()  # those before it have been taken; so the first error of all is among those found

    def _raise_first(self) -> None:
        error = self.errors[min(self.errors)]
        try:
            raise error
        finally:
            self.errors.clear()  # they refer to frames, and those to this
            del error

    def _finish(self) -> None:
        """Some helper was thrown out between two of its steps."""
        for i in sorted(set(range(len(self.items))).difference(self.done)):
            if i in self.begun:
                raise Cancelled(f"[{self.parent.name or 'operation'}] was interrupted")
            self.function(self.items[i])


class Helper:
    """The function of a helper's operation."""

    __slots__ = ("door", "split")

    def __init__(self, split: Split) -> None:
        self.split: Split | None = split
        self.door: Any = threading.RLock()

    def __call__(self) -> None:
        try:
            attempt(self.door, self._work)
        except BaseException:
            return  # thrown into this thread between two pieces: nothing is lost, see `Split._finish`

    def _work(self) -> None:
        split, stack = self.split, here_and_now.stack
        assert split is not None, "the door was open"
        stack.insert(len(stack) - 1, split.parent)  # the engine cuts the stack behind an operation
        split.pull()
