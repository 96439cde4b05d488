"""asyncio: operations that can be awaited, `async def` operations, and pushes that suspend.

Owns the way between the engine and event loops (asyncio's, trio's); how a loop hears that something is done is in
mail.py, operations that are `async def` functions are in coroutines.py.  Guarantees:

- a loop's thread never blocks here: to await, it takes no lock that is not free, and it runs nothing of others, save in
  the serial engine, where whoever pushes or awaits runs what is ready;
- an awaiting task binds to an operation, as waits do (waiting.py); cancelling the task leaves the operation alone;
- what can only end after itself raises `DeadlockError` at once: an async operation that awaits what needs it, and a
  wait that blocks the loop which has to run what it waits for.
                                                                [test_aio: test_an_async_operation_that_awaits_itself]
"""

from __future__ import annotations

from _thread import start_new_thread
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from itertools import islice
from queue import Empty
from time import monotonic
from typing import Any

from . import lifecycle
from .atomic import attempt, commit, locked
from .claims import here_and_now
from .coroutines import AsyncOperation, Body, OwnLoop, is_async
from .errors import ArgumentTypeError, DeadlockError
from .held import Suspended
from .limits import Pressure
from .mail import SLICE, Mailbox, my_mailbox, ring_all
from .operation import DONE, RUNNING, Kind, Operation
from .outcome import Full
from .site import describe, here
from .tracker import Plan
from .variable import Variable
from .waiting import needs

LOOKED_AT = 1024  # of the oldest live operations, for some whose runners are gone


class Pending:
    """Several operations that were pushed together: ``await`` them or ``wait()`` for them.

    Examples
    --------
    >>> from vardag import autograd, nd
    >>> x = nd.ones(3)
    >>> x.attach_grad()
    >>> with autograd.record():
    ...     y = (x * x).sum()
    >>> y.backward(wait=False).wait()
    >>> x.grad.asnumpy()
    array([2., 2., 2.], dtype=float32)
    """

    __slots__ = ("_ops",)

    def __init__(self, ops: Iterable[Operation | None]) -> None:
        self._ops = tuple(op for op in ops if op is not None)

    @property
    def done(self) -> bool:
        """Have all ended, well or not?  Never blocks."""
        return all(op.state is DONE for op in self._ops)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all are done, and raise the first error, in push order.

        Sync: blocks, `timeout` seconds at most.   Raises: as `Operation.wait`.
        """
        end = None if timeout is None else monotonic() + timeout
        for op in self._ops:
            op.wait(None if end is None else max(0.0, end - monotonic()))

    def __await__(self) -> Generator[Any, Any, None]:
        """Suspend the calling task until all are done, and raise the first error, in push order."""
        for op in self._ops:
            yield from op.__await__()

    def __repr__(self) -> str:
        return f"<Pending: {sum(op.state is not DONE for op in self._ops)} of {len(self._ops)} operations>"


# ==================================================================================================== the engine's side
class Awaiting(Pressure):
    """The engine's waits and bounds, and what tasks of event loops do instead of waiting."""

    def until_done(self, op: Operation) -> Generator[Any, Any, None]:
        """Suspend the calling task until `op` is done; raise nothing of what it raised.

        Raises
        ------
        ArgumentError
            At the call, where no event loop runs.
        DeadlockError
            At once, inside an operation that `op` needs.
        """
        box = my_mailbox()
        if self._started is not self._lanes:
            self._start_workers()
        if self._dwelling:
            self._end_dwelling()
        if self._serial and not self._run_ready():
            self._run_needed(op)
            box.call(self._run_ready)  # once this step of an async operation is over
        stack = here_and_now.stack
        current = stack[-1] if stack else None
        outer = None if current is None else current.blocked
        try:
            if current is not None:
                current.blocked = op  # before the search: race "crossed waits"
                refuse_circle(op, current, set(stack))
                if here_and_now.worker is not None and not box.stand_in:
                    box.stand_in = True
                    start_new_thread(self._stand_in, (current, box))
            while op.state is not DONE:
                if not attempt(self._T, self._watch_for, op, box):  # T is held for long where much becomes ready
                    box.postpone(op)
                if not op.done:  # under T it was not, or the loop will hear of it
                    yield from box.wait(op)
        finally:
            if current is not None:
                current.blocked = outer
            if op.state is not DONE and op not in box.waiting:
                attempt(self._T, self._forget, op, box)  # what stays there does no harm

    def _run_needed(self, target: Operation) -> None:
        """The serial engine, inside an operation: run what `target` needs, as far as it can be run now."""
        while self._may_run_all():
            op = locked(self._T, self._needed_now, target)
            if op is None:
                return
            self._run(op)

    def _needed_now(self, target: Operation) -> Operation | None:
        """T held."""
        self._drain()
        return self._needed(target, True)[0]

    def _watch_for(self, op: Operation, box: Mailbox) -> bool:
        """T held.  Have the loop told of the end of `op`; False: it has ended."""
        while not op.done and not any(q is box for q in op.watch):
            t = object()
            self._guard_t[0] = t
            if not op.done:
                commit(self._guard_t, t, [(setattr, op, "watch", [*op.watch, box])])
        return not op.done

    def _stand_in(self, current: Operation, box: Mailbox) -> None:
        """While a worker runs an event loop within `current`, this thread does what it can't: run the others."""
        here_and_now.worker = self
        lane = current.lane
        while current.state is RUNNING and box.runs():
            self._serve_once(lane, False, [None, None])
            with suppress(Empty):
                lane.bell.get(timeout=SLICE)
        lane.bell.put(None)  # it may have taken the token of something that it did not run

    def _look_after(self) -> None:
        """On a loop that awaits something, now and then: see that nothing is without a runner."""
        if self._serial:
            self._run_ready()
        else:
            attempt(self._T, self._repair_lost)
        ring_all()

    def _repair_lost(self) -> None:
        """T held."""
        for o in list(islice(self._live.values(), LOOKED_AT)):
            claim = o.claim if o.state is RUNNING else None
            if claim is not None and not claim[1].locked():
                self._repair(o)

    def _would_block_its_loop(self, op: Operation) -> None:
        """A thread that has run an event loop is about to wait for `op`: not if that loop has to run what it needs."""
        box: Mailbox | None = here_and_now.mailbox
        if box is not None and box.hosted and box.is_here():
            cycle = needs(op, set(box.hosted))
            if cycle is not None:
                raise DeadlockError(
                    f"[{op.name or 'operation'}] pushed at {describe(op.site)} needs [{cycle.name or 'operation'}], an "
                    "async operation on the event loop of the very thread that waits: await it instead"
                )

    async def wait_all_async(self) -> None:
        """Suspend until all operations pushed before this call are done, and raise every error that nobody has seen.

        Raises
        ------
        EngineErrors, DeadlockError
            As `wait_for_all`.

        Examples
        --------
        >>> import asyncio
        >>> from vardag.engine import Engine
        >>> async def main():
        ...     async with Engine(workers=1) as e:
        ...         _ = e.push(lambda: print("ran"))
        ...         await e.wait_all_async()
        >>> asyncio.run(main())
        ran
        """
        await self._all_done_async()
        self._raise_unseen(here(2))

    async def _all_done_async(self) -> None:
        for o in here_and_now.stack:
            if o.engine is self and o.state is not DONE:
                raise DeadlockError(f"[{o.name or 'operation'}] waits for all operations, itself among them")
        for op in reversed(self._pending()):
            if op.state is not DONE:
                await Awaited(op)

    async def push_when_room(
        self,
        fn: Callable[..., Any],
        reads: Iterable[Any] = (),
        writes: Iterable[Any] = (),
        updates: Iterable[Any] = (),
        *,
        priority: int = 0,
        name: str = "",
        lane: str | None = None,
        nbytes: int = 0,
    ) -> Operation:
        """`Engine.push` that suspends the calling task while `limits` are reached, in the order of arrival.

        `Engine.push` itself never waits on the thread of an event loop: there it goes over the bounds.

        Returns
        -------
        Operation
            Admitted; ``await`` it for its end.

        Raises
        ------
        ArgumentError, ArgumentTypeError, EngineClosed
            Before anything was changed.  Cancelled while it is suspended, it has pushed nothing.

        Examples
        --------
        >>> import asyncio
        >>> from vardag.engine import Engine
        >>> async def main():
        ...     async with Engine(workers=1) as e:
        ...         with e.limits(count=10):
        ...             for i in range(1000):
        ...                 op = await e.push_when_room(lambda: None)
        ...         await op
        ...         print(e.statistics().pending)
        >>> asyncio.run(main())
        0
        """
        if not callable(fn):
            raise ArgumentTypeError(f"[push_when_room] fn {fn!r} is not callable")
        box = my_mailbox()
        given = operands(reads, "reads"), operands(writes, "writes"), operands(updates, "updates")
        name = name or getattr(fn, "__name__", "")
        options: dict[str, Any] = {"priority": priority, "lane": lane, "nbytes": nbytes, "site": here(1)}
        op = AsyncOperation(fn, name, **options) if is_async(fn) else Operation(Kind.USER, fn, name, **options)
        plan = self._resolved(op, fn, *given)
        held: list[Plan] = []
        full = nbytes if self._first() is not None else self._admitted_or_full(plan, held)
        if full >= 0:
            await self._held_async(Suspended(self, full, box), plan, held)
        self._queued()
        return op

    def _resolved(self, op: Operation, fn: Any, reads: Any, writes: Any, updates: Any) -> Callable[[], Plan]:
        """The plan of a push.  Operands of which some are arrays: ask them, under P, for their variable and raw memory.

        The protocol is one method, ``__vardag_resolve__(mode, keep)`` with mode "read", "write" or "update", called
        with P held, possibly several times, to read shared state only.  It returns ``(variable, mode, memory, steps,
        first)``: how the variable is accessed (of a part that is to be written the rest must stay: "update"), a
        function that gives the raw memory when the operation runs, steps to commit with it, and an admission that has
        to come before, or None.  Memory of a device has a method ``within(function, memories)``, which gives the
        function that runs `function` there.
        """
        for vs in (reads, writes, updates):
            for v in vs:
                if not isinstance(v, Variable) and not hasattr(type(v), "__vardag_resolve__"):
                    raise ArgumentTypeError(f"[push] {type(v).__name__} is neither a Variable nor an array")

        def plan() -> Plan:
            memories: list[Any] = []
            steps: list[Any] = []
            keep: list[Any] = []
            found: dict[str, list[Variable]] = {"read": [], "write": [], "update": []}
            for wanted, operands in (("read", reads), ("write", writes), ("update", updates)):
                for v in operands:
                    if isinstance(v, Variable):
                        found[wanted].append(v)
                        continue
                    variable, mode, memory, more, first = v.__vardag_resolve__(wanted, keep)
                    if first is not None:
                        return first  # type: ignore[no-any-return]
                    found[mode].append(variable)
                    memories.append(memory)
                    steps += more
            if isinstance(op.fn, Body):
                op.fn.memories = memories
            elif lifecycle.checking is not None:
                op.fn = lifecycle.checking.resolved(op, fn, (reads, writes, updates), memories, found)
            elif memories:
                op.fn = lambda: fn(*(memory() for memory in memories))
            for memory in memories:
                if hasattr(memory, "within"):
                    op.fn = memory.within(op, memories)
                    break
            return op, found["read"], found["write"], found["update"], steps, keep, False

        return plan

    def _admitted_or_full(self, plan: Callable[[], Plan], held: list[Plan]) -> int:
        """-1 if it was admitted, else the bytes that there is no room for."""
        try:
            self._admit_again(plan, held)
        except Full as e:
            return e.nbytes
        return -1

    async def _held_async(self, entry: Suspended, plan: Callable[[], Plan], held: list[Plan]) -> None:
        """Suspend until it has been admitted: as `_hold_busy`, but that it runs nothing."""
        box: Any = entry.bell
        try:
            box.held[entry] = None
            while True:
                if entry not in self._room:  # the first time, or its loop did not run for a while
                    locked(self._T, self._enter_room, entry)
                if self._fits(entry) or self._stalled == self._ended():
                    full = self._admitted_or_full(plan, held)
                    if full < 0:
                        return
                    entry.nbytes = full
                await Mail(box, entry)
                self._look_for_stall(entry)
        finally:
            entry.busy.over = True
            box.held.pop(entry, None)
            locked(self._T, self._let_go, entry)
            ring_all()

    def _end_own_loop(self, timeout: float | None) -> None:
        own: OwnLoop | None = self.attached.pop(lifecycle.OWN_LOOP, None)
        if own is not None:
            own.end(timeout)


class Awaited:
    """``await Awaited(op)``: until it is done, without its error."""

    __slots__ = ("op",)

    def __init__(self, op: Operation) -> None:
        self.op = op

    def __await__(self) -> Generator[Any, Any, None]:
        if self.op.state is not DONE:
            yield from self.op.engine.until_done(self.op)


class Mail:
    """``await Mail(box, key)``: until `key` comes with the mail."""

    __slots__ = ("box", "key")

    def __init__(self, box: Mailbox, key: Any) -> None:
        self.box = box
        self.key = key

    def __await__(self) -> Generator[Any, Any, None]:
        yield from self.box.wait(self.key)


def refuse_circle(op: Operation, current: Operation, stack: set[Operation]) -> None:
    """An operation is about to await `op`, which may need it."""
    cycle = needs(op, stack)
    if cycle is not None:
        raise DeadlockError(
            f"[{current.name or 'operation'}] awaits [{op.name or 'operation'}] pushed at {describe(op.site)}, which "
            f"needs [{cycle.name or 'operation'}], which cannot end before it"
        )


def operands(given: Iterable[Any], what: str) -> tuple[Any, ...]:
    """What was given as `reads`, `writes` or `updates`."""
    try:
        return tuple(given)
    except TypeError:
        raise ArgumentTypeError(
            f"[push] {what}: expected an iterable of variables, got {type(given).__name__}"
        ) from None


async def wait_all_async() -> None:
    """Suspend until all that was pushed to the current engine is done: see `Engine.wait_all_async`."""
    await lifecycle.current().wait_all_async()
