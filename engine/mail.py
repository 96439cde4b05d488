"""Mail: how an event loop hears, without a thread of its own, that operations it awaits are done.

Owns `Mailbox`, one per event loop: a queue that completions put operations into, and the loop's waiters by operation.
Guarantees:

- a completion costs the loop at most one call, however many complete before it comes to look (`ring`);
- a loop settles at most `CHUNK` waiters a turn, so that its other tasks have theirs;
- a loop that was called `TURN` seconds ago and has not come finds the interpreter free: a worker that sees it between
  two operations sleeps until it has come (`give_way`), once for a call, and `GIVEN` seconds at most;
- no wake-up is lost: see the races.  A loop that is closed, or never runs again, keeps nobody but its tasks waiting.

THREADS.  `waiting`, `due`, `held`, `looking` belong to the loop's thread.  Completions, under T and on any thread, put
into the queue and append to `unrung`, both in their commit; whoever committed then rings, without any lock.  `called`
and `aside` belong to nobody: one C call each, and what is lost there costs a loop its precedence, or a worker `GIVEN`.

RACES, by name
    mail-before-look   The operation is in the queue before anybody rings, and `deliver` says that it has been called
                       (`called`) before it looks: so what came after the look rings anew.
                                                            [test_aio: test_a_completion_while_the_loop_takes_its_mail]
    bell-before-look   A worker lists its bell in `aside` before it looks whether the loop has come meanwhile; the loop
                       says in `called` that it has, and rings the bells afterwards: so one of the two sees the other.
                                                                    [test_aio: test_a_worker_gives_way_to_a_late_loop]
    killed postman     An interrupt ends the runner between its commit and the ring: the mailbox stays in `unrung`,
                       where the next completion finds it; and the loop looks by itself every `SLICE` seconds while
                       anything is awaited.                 [test_aio: test_a_ring_that_is_cut_is_made_up_for]
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from .atomic import P, T, attempt
from .claims import here_and_now
from .errors import ArgumentError, Cancelled

if TYPE_CHECKING:
    from .operation import Operation

CHUNK: Final = 200  # waiters that a loop settles in one turn
AWAITED: Final = 256  # how many of the operations that it awaits a loop asks for their engines when it looks
SOON = 0.001  # seconds until a loop that found T taken tries again
TURN = 0.001  # seconds since a loop was called, after which workers give it the interpreter
GIVEN = 0.005  # seconds at most that one does without it
VAIN = 0.05  # seconds that one goes on for, at least, after a loop did not come in that time
SLICE = 0.05  # seconds between two looks of a loop that awaits something

#: mailboxes that a commit put something into, and that nobody has rung since
unrung: deque[Mailbox] = deque()
#: loops that have been called and have not come, and since when; without those for which it was in vain to give way
called: dict[Mailbox, float] = {}


class Mailbox(SimpleQueue[Any]):
    """What one event loop hears of operations: the queue, its waiters, and how to call it."""

    __slots__ = (
        "aside", "delivered", "due", "held", "hosted", "looking", "loop", "overdue", "stand_in", "uncalled",
        "unwatched", "waiting",
    )  # fmt: skip

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.stand_in = False  # a thread runs operations for the worker that this loop keeps
        # Empty: the loop has been called and has not come to look.  Who calls it takes the element, so only one does.
        self.uncalled: list[None] = [None]
        self.waiting: dict[Any, dict[Any, None]] = {}  # operation (or held push) -> its waiters, in their order
        self.due: deque[Any] = deque()  # waiters to settle
        self.held: dict[Any, None] = {}  # pushes of this loop's tasks that are held: see aio.py
        self.hosted: set[Operation] = set()  # async operations that this loop runs; may hold some that are done
        self.looking = False
        self.delivered = 0  # how often it has come to look
        self.overdue = -1  # that number when `look` found that the loop was called and had not come, else -1
        self.aside: deque[SimpleQueue[None]] = deque()  # workers that have given way to it sleep on these
        self.unwatched: list[Operation] = []  # awaited, and nobody told of it so far, since T was not free

    # ------------------------------------------------------------------------------------------------ any thread
    def call(self, f: Callable[[], object], context: Context | None = None) -> bool:
        """Have the loop call `f`; False: it is closed."""
        try:
            self.loop.call_soon_threadsafe(f, context=Context() if context is None else context)
        except RuntimeError:
            return False
        return True

    def closed(self) -> bool:
        """Will it never run again?"""
        return bool(self.loop.is_closed())

    def runs(self) -> bool:
        """Is it running now?"""
        return bool(self.loop.is_running())

    def ring(self) -> None:
        """Have the loop look, unless it has been called already."""
        if self.uncalled:
            with suppress(IndexError):  # another one was faster
                self.uncalled.pop()
                self._call_it()

    def _call_it(self) -> None:
        try:
            called[self] = monotonic()
            if not self.call(self.deliver):
                called.pop(self, None)
        except BaseException:
            self.uncalled[:] = (None,)
            raise

    # ------------------------------------------------------------------------------------------------ the loop's own
    def is_here(self) -> bool:
        """Is it the loop that runs on this thread?"""
        return asyncio._get_running_loop() is self.loop

    def new_waiter(self) -> Any:
        """Something to await."""
        return self.loop.create_future()

    def suspend(self, waiter: Any) -> Generator[Any, Any, None]:
        """Until the waiter is settled."""
        yield from waiter.__await__()

    def settle(self, waiter: Any) -> None:
        """Wake who awaits it, if nobody cancelled that."""
        if not waiter.done():
            waiter.set_result(None)

    def later(self, seconds: float, f: Callable[[], object]) -> None:
        """Call `f` in so many seconds."""
        self.loop.call_later(seconds, f, context=Context())

    def start(self, name: str, coroutine: Any, ended: Callable[[Any], object]) -> Callable[[], object]:
        """Run a coroutine as a task, and call `ended` after that; gives the function that cancels it."""
        task = self.loop.create_task(coroutine, name=name)
        task.add_done_callback(ended)
        return task.cancel  # type: ignore[no-any-return]

    # ------------------------------------------------------------------------------------------------ waiting
    def wait(self, key: Any) -> Generator[Any, Any, None]:
        """Suspend the calling task until `key` comes with the mail."""
        waiter = self.new_waiter()
        self.waiting.setdefault(key, {})[waiter] = None
        if not self.looking:
            self.looking = True
            self.later(SLICE, self.look)
        try:
            yield from self.suspend(waiter)
        finally:
            waiters = self.waiting.get(key)
            if waiters is not None:
                waiters.pop(waiter, None)
                if not waiters:
                    del self.waiting[key]

    def postpone(self, op: Operation) -> None:
        """T is not free, and a loop does not wait for it: try again soon."""
        if not self.unwatched:
            self.later(SOON, self.watch_rest)
        self.unwatched.append(op)

    def watch_rest(self) -> None:
        """Have the loop told of what was postponed, if T is free; a part of it a turn."""
        rest = self.unwatched
        attempt(T, self.watch_some, rest[-CHUNK:])
        if rest:
            self.later(SOON, self.watch_rest)

    def watch_some(self, ops: list[Operation]) -> None:
        """T held."""
        for op in ops:
            if not op.engine._watch_for(op, self):
                self.put(op)  # it has ended by now
        del self.unwatched[-len(ops) :]
        if not self.empty():
            self.later(0, self.ring)

    def deliver(self) -> None:
        """Settle whose operations are done; the rest of them in the next turn."""
        self.uncalled[:] = (None,)  # before the look: race "mail-before-look"
        called.pop(self, None)
        self.delivered += 1
        due = self.due
        self.sort()
        for _ in range(min(CHUNK, len(due))):
            self.settle(due.popleft())
        if due or not self.empty():
            self.ring()
        with suppress(IndexError):
            while True:
                self.aside.pop().put(None)  # after the calls are settled: race "bell-before-look"

    def sort(self) -> None:
        """From the queue to `due`, about a chunk of it."""
        due, waiting = self.due, self.waiting
        with suppress(Empty):
            while len(due) < CHUNK:
                due.extend(waiting.pop(self.get_nowait(), ()))

    def look(self) -> None:
        """Once in a `SLICE` while anything is awaited: make up for a ring, and for a runner, that an interrupt took."""
        self.looking = bool(self.waiting or self.due)
        if not self.looking:
            return
        self.later(SLICE, self.look)
        ring_all()
        # A ring that is on its way comes by itself, in a turn of its own; not so one that was lost a slice ago.
        if (self.due or not self.empty()) and (self.uncalled or self.overdue == self.delivered):
            self.deliver()
        self.overdue = -1 if self.uncalled else self.delivered
        engines = {key.engine for key, _ in zip(self.waiting, range(AWAITED), strict=False)}
        for engine in engines:
            engine._look_after()
        for entry in tuple(self.held):
            if entry.engine._first() in (entry, None):  # it is the one who has to see when nothing goes on
                self.put(entry)
                self.ring()


def give_way() -> None:
    """Between two operations of a worker: sleep until a loop has come that was called a while ago."""
    now = monotonic()
    for box, since in list(called.items()):
        if not box.runs():
            called.pop(box, None)
        elif here_and_now.gave < since < now - TURN:
            here_and_now.gave = now
            bell: SimpleQueue[None] = SimpleQueue()
            box.aside.append(bell)
            if called.get(box) == since:  # race "bell-before-look"
                try:
                    bell.get(timeout=GIVEN)
                except Empty:  # what it does keeps the interpreter by itself, or it waits for operations
                    called.pop(box, None)
                    here_and_now.gave = now + VAIN
            return


class TrioMailbox(Mailbox):
    """The same for trio: `loop` is its token."""

    __slots__ = ("over",)

    def __init__(self, loop: Any) -> None:
        super().__init__(loop)
        self.over = False
        sys.modules["trio"].lowlevel.spawn_system_task(self.see_the_end, context=Context())

    async def see_the_end(self) -> None:
        """A task of trio's own, until the run ends."""
        try:
            await sys.modules["trio"].sleep_forever()
        finally:
            self.over = True

    def call(self, f: Callable[[], object], context: Context | None = None) -> bool:
        """Have trio call `f`; False: its run is over."""
        try:
            self.loop.run_sync_soon((Context() if context is None else context).run, f)
        except RuntimeError:
            return False
        return True

    def closed(self) -> bool:
        """Is its run over?"""
        return self.over

    def runs(self) -> bool:
        """Is it running now?"""
        return not self.over

    def is_here(self) -> bool:
        """Is it the one of this thread?"""
        return trio_token() is self.loop

    def new_waiter(self) -> Any:
        """Something to await."""
        return sys.modules["trio"].Event()

    def suspend(self, waiter: Any) -> Generator[Any, Any, None]:
        """Until the waiter is settled."""
        yield from waiter.wait().__await__()

    def settle(self, waiter: Any) -> None:
        """Wake who awaits it."""
        waiter.set()

    def later(self, seconds: float, f: Callable[[], object]) -> None:
        """Call `f` in so many seconds."""

        async def sleeping() -> None:
            await sys.modules["trio"].sleep(seconds)
            f()

        sys.modules["trio"].lowlevel.spawn_system_task(sleeping, context=Context())

    def start(self, name: str, coroutine: Any, ended: Callable[[Any], object]) -> Callable[[], object]:
        """Run a coroutine as a task of trio's own, which begins whatever comes; gives the function that cancels it."""
        trio = sys.modules["trio"]
        scope = trio.CancelScope()

        async def scoped() -> None:
            with scope:
                await coroutine

        try:
            trio.lowlevel.spawn_system_task(scoped, name=name, context=copy_context())
        except RuntimeError:  # the run is about to end
            raise Cancelled(f"[{name}] lost its event loop, which has ended") from None
        return scope.cancel  # type: ignore[no-any-return]


def trio_token() -> Any:
    """Trio's token, if trio runs on this thread; else None."""
    trio = sys.modules.get("trio")
    try:
        return None if trio is None else trio.lowlevel.current_trio_token()
    except (RuntimeError, AttributeError):  # no run; still being imported
        return None


def mailbox_here() -> Mailbox | None:
    """The mailbox of the event loop that runs on this thread; None if there is none."""
    box: Mailbox | None = here_and_now.mailbox
    loop = asyncio._get_running_loop()
    if loop is not None:
        if box is None or box.loop is not loop:
            box = here_and_now.mailbox = Mailbox(loop)
        return box
    token = trio_token()
    if token is None:
        return None
    if box is None or box.loop is not token:
        box = here_and_now.mailbox = TrioMailbox(token)
    return box


def my_mailbox() -> Mailbox:
    """As `mailbox_here`; an error if there is none."""
    box = mailbox_here()
    if box is None:
        raise ArgumentError("[await] no event loop of asyncio or trio runs on this thread")
    return box


def ring_all() -> None:
    """Ring for all mail that nobody has rung for.  Not under a lock of the engine: the next who comes rings then."""
    if T._is_owned() or P._is_owned():
        return
    with suppress(IndexError, ValueError):  # another thread was faster
        while True:
            box = unrung[0]
            box.ring()  # first: cut here, it is still listed
            unrung.remove(box)
