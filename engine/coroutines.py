"""Operations that are `async def` functions: how they get to an event loop, run there and end.

Owns `AsyncOperation` and the engine's own loop.  Guarantees:

- they are admitted, ordered, poisoned and cancelled like any other, and each ends exactly once, whatever becomes of its
  task: one whose loop is closed before it ended is `Cancelled`;
- they run on the loop that they were pushed from, else on a loop of the engine's own.

A coroutine's operation is handed out like that of `push_async`: its claim's lock is its `Leash`, free once the loop is
closed, so that whoever looks repairs it.       [test_aio: test_an_operation_whose_loop_is_closed]
While one of its steps runs it is on its thread's stack of operations, so what it pushes is never held, and its waits
are searched for circles.                       [test_aio: test_an_async_operation_that_awaits_itself]
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from _thread import get_ident, start_new_thread
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context, copy_context
from itertools import starmap
from queue import Empty, SimpleQueue
from types import coroutine
from typing import Any

from .claims import Completion, RunContext, here_and_now
from .errors import Cancelled, CompletionError
from .lifecycle import OWN_LOOP
from .mail import Mailbox, mailbox_here, my_mailbox
from .operation import DONE, Kind, Operation
from .shared import exhaust

LOOP = "loop"  # the lane whose worker hands coroutines to their loops
HOSTED = 1024  # operations that a loop remembers before it forgets those that are done


def is_async(fn: Any) -> bool:
    """Does it give a coroutine?"""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(type(fn), "__call__", None))  # noqa: B004


class Leash:
    """What stands for the lock of a running coroutine's claim: free once its loop is closed."""

    __slots__ = ("box",)

    def __init__(self) -> None:
        self.box: Mailbox | None = None

    def locked(self) -> bool:
        """Is there a loop that may go on with it?"""
        return self.box is None or not self.box.closed()


class Body:
    """The function of an async operation: hands the coroutine to its loop."""

    __slots__ = ("box", "fn", "memories", "op")

    def __init__(self, op: AsyncOperation, fn: Callable[..., Coroutine[Any, Any, Any]], box: Mailbox | None) -> None:
        self.op = op
        self.fn = fn
        self.box = box
        self.memories: list[Callable[[], Any]] = []

    def __call__(self, run_ctx: RunContext, complete: Completion) -> None:
        """On a worker, in the operation's context."""
        op, context = self.op, copy_context()
        start = Start(op, self.fn, self.memories, complete)
        if self.box is None:
            own_loop(run_ctx.engine).submit(start, context)
            return
        op.leash.box = self.box
        if not self.box.call(start, context):
            raise Cancelled(f"[{op.name or 'operation'}] lost its event loop, which was closed")


class Start:
    """Begins a coroutine, on its loop and in the operation's context."""

    __slots__ = ("complete", "fn", "made", "memories", "op")

    def __init__(self, op: AsyncOperation, fn: Any, memories: Any, complete: Completion) -> None:
        self.op = op
        self.fn = fn
        self.memories = memories
        self.complete: Completion | None = complete  # None once it has ended
        self.made: Any = None

    def __call__(self) -> None:
        try:
            self.begin()
        except BaseException as e:
            self.end(e)
            if not isinstance(e, Exception):
                raise

    def begin(self) -> None:
        """Make the coroutine a task."""
        op, box = self.op, my_mailbox()
        if op.cancelled:
            raise Cancelled(f"[{op.name or 'operation'}] was cancelled")
        whole = self.whole()
        try:
            self.made = self.fn(*[memory() for memory in self.memories])
            self.fn = self.memories = None
            op.box = box
            box.hosted.add(op)
            op.stop = box.start(op.name or "operation", whole, self.ended)
        except BaseException:
            whole.close()
            if self.made is not None:
                self.made.close()
            raise
        if op.cancelled:
            op.stop()

    async def whole(self) -> None:
        """The coroutine and the end of its operation.  An `Exception` is the operation's, and nobody else's."""
        try:
            await driven(self.op, self.made)
        except Exception as e:
            self.end(e)
        except BaseException as e:
            self.end(e)
            raise
        else:
            self.end(None)

    def ended(self, task: Any) -> None:
        """The task is over; if it was cancelled before its first step, nobody has heard of that."""
        if self.complete is not None:
            self.made.close()
            self.end(asyncio.CancelledError())

    def end(self, error: BaseException | None) -> None:
        """Complete the operation, once; what ends a task is no error of the function."""
        op, complete = self.op, self.complete
        if complete is None:
            return
        box = op.box
        op.stop = op.box = None
        if box is not None:
            box.hosted.discard(op)
        if error is not None and not isinstance(error, Exception):
            own = isinstance(error, KeyboardInterrupt | SystemExit)
            error = error if own else Cancelled(f"[{op.name or 'operation'}] was cancelled while it ran")
        with suppress(CompletionError):  # a wait found its loop closed
            complete(error)
        self.complete = self.made = None  # last: if an interrupt cuts this, the end of the task comes here once more


@coroutine
def driven(op: Operation, made: Any) -> Generator[Any, Any, Any]:
    """Await `made`, with `op` on the thread's stack of operations during each of its steps."""
    step: Callable[[Any], Any] = made.send
    value: Any = None
    while True:
        stack = here_and_now.stack
        depth = len(stack)
        try:
            try:
                stack.append(op)
                asked = step(value)
            finally:
                del stack[depth:]
        except StopIteration as e:
            return e.value
        finally:
            del stack[depth:]  # once more: an interrupt may have cut the other
        try:
            value = yield asked
            step = made.send
        except BaseException as e:
            value, step = e, made.throw


class AsyncOperation(Operation):
    """A handle on an operation whose function is an `async def`."""

    __slots__ = ("box", "leash", "stop")
    leash: Leash
    # These belong to the loop's thread; others read them once.
    box: Mailbox | None  # of the loop that runs it
    stop: Callable[[], object] | None  # cancels its task

    def __init__(self, fn: Any, name: str, **options: Any) -> None:
        box = mailbox_here()
        super().__init__(Kind.ASYNC, Body(self, fn, box), name, **options)
        self.leash = Leash()
        self.box = self.stop = None
        self.lane = self.lane or LOOP
        if box is not None:
            if len(box.hosted) > HOSTED:
                box.hosted = {o for o in box.hosted if o.state is not DONE}
            box.hosted.add(self)

    def cancel(self) -> None:
        """Ask that it not be started, or, if it runs, that it end where it awaits; it then fails with `Cancelled`.

        Sync: never blocks.
        """
        self.cancelled = True
        box, stop = self.box, self.stop  # whoever sets `stop` looks at `cancelled` afterwards
        if box is not None and stop is not None:
            box.call(stop)


# ==================================================================================================== a loop of its own
class OwnLoop:
    """A thread with an event loop, for the async operations of one engine that no loop's thread has pushed."""

    def __init__(self) -> None:
        self.todo: deque[tuple[Start, Context]] = deque()
        self.box: Mailbox | None = None
        self.thread = 0
        self.ended: asyncio.Event | None = None
        self.down: SimpleQueue[None] = SimpleQueue()
        self._starts: deque[Any] = deque([(self._work, ())])

    def submit(self, start: Start, context: Context) -> None:
        """Run it there.  It is in the list before the look whether the loop runs; and that looks when it begins."""
        self.todo.append((start, context))
        if self.box is None:
            self.begin()
        elif not self.box.call(self.drain):
            raise Cancelled(f"[{start.op.name or 'operation'}] lost its event loop, which was closed")

    def begin(self) -> None:
        """Start the thread, once."""
        try:
            with suppress(IndexError):  # one C call takes what is to be started, and starts it
                exhaust(starmap(start_new_thread, iter(self._starts.popleft, None)))
        except RuntimeError:  # too many threads
            self._starts.append((self._work, ()))
            raise

    def drain(self) -> None:
        """On its loop."""
        with suppress(IndexError):
            while True:
                start, context = self.todo.popleft()
                start.op.leash.box = self.box
                context.run(start)

    def _work(self) -> None:
        self.thread = get_ident()
        threading.current_thread().name = "vardag-loop"
        try:
            asyncio.run(self._main())
        finally:
            self.down.put(None)

    async def _main(self) -> None:
        self.ended = asyncio.Event()
        self.box = my_mailbox()
        self.drain()
        await self.ended.wait()

    def end(self, timeout: float | None) -> None:
        """End it, and wait for that."""
        if self.box is not None and self.ended is not None and self.box.call(self.ended.set):
            with suppress(Empty):
                if self.thread != get_ident():
                    self.down.get(timeout=timeout)


def own_loop(engine: Any) -> OwnLoop:
    """The engine's own loop."""
    found: OwnLoop = engine.attached.get(OWN_LOOP) or engine.attached.setdefault(OWN_LOOP, OwnLoop())
    return found
