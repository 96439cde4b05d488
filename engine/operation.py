"""Operations: what is pushed, its life, and its fate.

Owns the states and the per-operation fields; the tracker moves operations through them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Sequence
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final

from .errors import ArgumentError, OperatorError, rebuild, release_frames
from .site import Site, describe, here

if TYPE_CHECKING:
    from .core import Engine


class Kind(enum.Enum):
    """What an operation's function is, which decides who may run it."""

    ATOMIC = "atomic"
    """``fn()`` prepares: it returns steps ``[(C callable, *args), ...]`` that then run as one C call.  ``fn`` may be
    repeated, so it must be idempotent.  Runs on workers, on threads that wait, and (cheap) within the push."""
    KERNEL = "kernel"
    """The library's Python code of several calls.  Workers only (and the serial engine)."""
    USER = "user"
    """The user's function, in a copy of the pusher's context.  Workers only (and the serial engine)."""
    ASYNC = "async"
    """The user's ``fn(run_ctx, on_complete)``; done when ``on_complete`` is called, from any thread."""


class State(enum.Enum):
    """Where an operation is in its life; it only moves down this list (an unstarted RUNNING one may go back to
    READY).
    """

    NEW = "new"
    """Not admitted, or admitted and its edges not yet drawn (it is in the inbox)."""
    PENDING = "pending"
    """Some predecessors are not done; ``wait`` counts them."""
    READY = "ready"
    """All predecessors are done; it stands in its lane's heap."""
    RUNNING = "running"
    """Claimed by a thread."""
    DONE = "done"
    """Final.  All predecessors are DONE too, and ``fate`` is set."""


NEW: Final = State.NEW
PENDING: Final = State.PENDING
READY: Final = State.READY
RUNNING: Final = State.RUNNING
DONE: Final = State.DONE


# Called in the context that a user's function is about to run in; the array room pauses recording here.
user_context_hooks: list[Callable[[], object]] = []

_EMPTY: Final = Context()


def user_context() -> Context:
    """A copy of the pusher's context."""
    context = copy_context()
    return context if len(context) else _EMPTY  # one for all: a million pending operations hold a million objects less


def run_in(context: Context, f: Callable[..., Any], *args: Any) -> None:
    """Run a user's function in a copy of its pusher's context, prepared by the hooks."""
    own = context.copy()
    for hook in user_context_hooks:
        own.run(hook)
    own.run(f, *args)


class Root:
    """The first cause of a poison: an operation that failed itself.

    ``seq`` is its place in push order; of several roots the smallest wins, whatever the schedule.
    """

    __slots__ = ("exc", "name", "operands", "seen", "seq", "site")

    def __init__(self, op: Operation, exc: BaseException) -> None:
        self.seq = op.seq
        self.exc = exc
        self.name = op.name
        self.site = op.site
        self.operands = op._render_operands()
        self.seen = False  # only ever set
        release_frames(exc)


class Fate:
    """How an operation ended: `OK` (``root`` is None) or poisoned by `root`, ``distance`` operations away."""

    __slots__ = ("distance", "root")

    def __init__(self, root: Root | None, distance: int = 0) -> None:
        self.root = root
        self.distance = distance


OK: Final = Fate(None)
Operands = str | Callable[[], str] | None
Weigh = Callable[[], tuple[int, int, Sequence[tuple[Any, ...]]]]


class Operation:
    """A handle on one pushed operation.

    Parameters
    ----------
    kind : Kind
    fn : callable
        See `Kind`.
    name : str
    priority : int
        Higher runs first among the ready ones.
    cheap : bool
        An ATOMIC kernel of under five microseconds, which may run within the push.
    operands : str or callable, optional
        Describes the operands in error notes; called only on failure.
    site : (code, offset), optional
        The user's line; by default the one that calls the library.
    lane : str, optional
        Where it runs, for the per-device policy.
    nbytes : int or callable, optional
        Bytes that it will allocate and leave, for back-pressure (limits.py).  A callable is asked only if the operation
        is queued, under P, and gives ``(nbytes, carried, steps)``: also those that are free when it is done, and C
        calls to commit with it.
    """

    __slots__ = (  # noqa: RUF023 - in groups, by who guards them
        "__weakref__",
        # set before admission, constant until DONE; fn, operands, context, preds and sources are dropped then
        "cheap", "context", "engine", "fn", "kind", "lane", "name", "operands", "others", "poison", "pred0", "pred1",
        "nbytes", "priority", "seq", "site", "sources",
        # T: everything about scheduling.  claim = [token, runner's lock, thread id, start in seconds]
        "carried", "claim", "state", "succ", "wait_count", "watch",
        # the runner alone, before DONE: fate (one store).  Inside the kernel's C call: mark
        # 0 not started, 1 started, 2 ran.  Whoever meets an operation without a runner repairs it by this mark.
        "fate", "mark", "tries",
        # own thread: blocked, what it waits for right now.  Any thread: cancelled, only ever set.
        "blocked", "cancelled",
    )  # fmt: skip

    def __init__(
        self,
        kind: Kind,
        fn: Callable[..., Any] | None,
        name: str = "",
        *,
        priority: int = 0,
        cheap: bool = False,
        operands: Operands = None,
        site: Site | None = None,
        lane: str | None = None,
        nbytes: int | Weigh = 0,
    ) -> None:
        self.kind = kind
        self.fn = fn
        self.name = name
        self.priority = priority
        self.cheap = cheap
        self.operands = operands
        self.site = site
        self.nbytes: Any = nbytes  # a number from admission on
        self.lane: Any = lane  # a name, or None; the Lane itself from admission on
        self.seq = -1
        self.state = NEW
        self.fate: Fate | None = None
        self.cancelled = False
        # An operation that runs within its push does not need the fields below: `Tracker._queue_steps` sets them.

    engine: Engine
    context: Context | None
    mark: int
    # The predecessors: two fields and a tuple for the rest, since a tuple for each of a million pending operations
    # costs the garbage collector a third of what a push costs.
    pred0: Operation | None
    pred1: Operation | None
    others: tuple[Operation, ...]
    carried: int  # bytes that count until it is done, beside those that it allocates
    # If memory runs out, may it be run once more?  2: yes, since it changes nothing in place; 1: before its kernel has
    # begun; 0: never, or no more.
    tries: int
    sources: int  # the first so many of preds: whose failure is this one's failure
    poison: Fate | None
    claim: list[Any] | None
    succ: list[Operation] | tuple[()]
    wait_count: int
    watch: list[Any] | tuple[()]
    blocked: Operation | None
    leash: Any = None  # of a coroutine: what stands for its claim's lock, see coroutines.py

    @property
    def preds(self) -> tuple[Operation, ...]:
        """The operations that have to be done first; none once it is DONE itself."""
        first, second = self.pred0, self.pred1
        if first is None:
            return ()
        return (first,) if second is None else (first, second, *self.others)

    def weight(self) -> int:
        """P held, before it has memory: the bytes that it will make."""
        return self.nbytes if type(self.nbytes) is int else self.nbytes()[0]

    # ------------------------------------------------------------------------------------------------ the handle
    @property
    def done(self) -> bool:
        """Has it ended, well or not?  Never blocks."""
        return self.state is DONE

    @property
    def error(self) -> BaseException | None:
        """A fresh exception if it ended badly, else None.

        Sync: never blocks; None while it is not done.
        """
        if self.state is not DONE or self.fate is OK:
            return None
        return self._fresh_error(None)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is done, and raise its error.

        Parameters
        ----------
        timeout : float, optional
            Seconds.

        Sync: blocks until this operation is done; runs what it needs meanwhile.

        Raises
        ------
        EngineTimeout, DeadlockError
            See `Engine.wait_for_var`.
        OperatorError
            A fresh exception of the original's type, every time.

        Examples
        --------
        >>> from vardag.engine import Engine
        >>> with Engine(workers=1) as e:
        ...     op = e.push(lambda: 1 / 0)
        ...     try:
        ...         op.wait()
        ...     except ZeroDivisionError as error:
        ...         print(error)
        division by zero
        """
        if self.state is not DONE:
            if self.seq < 0:
                raise ArgumentError(f"[{self.name or 'operation'}] was never pushed")
            self.engine.wait_op(self, timeout)
        if self.fate is not OK:
            self.raise_error()

    def __await__(self) -> Generator[Any, Any, None]:
        """Suspend the calling task until it is done, and raise its error.  Cancelling the task leaves it alone.

        Raises
        ------
        DeadlockError
            At once, inside an async operation that this one needs.
        OperatorError
            As `wait`.

        Examples
        --------
        >>> import asyncio
        >>> from vardag.engine import Engine
        >>> async def main():
        ...     async with Engine(workers=1) as e:
        ...         await e.push(lambda: print("ran"))
        >>> asyncio.run(main())
        ran
        """
        if self.state is not DONE:
            if self.seq < 0:
                raise ArgumentError(f"[{self.name or 'operation'}] was never pushed")
            yield from self.engine.until_done(self)
        if self.fate is not OK:
            self.raise_error()

    def raise_error(self) -> None:
        """Raise a fresh exception if it ended badly.

        Sync: never blocks.
        """
        if self.state is DONE and self.fate is not OK:
            raise self._fresh_error(here(2))

    def cancel(self) -> None:
        """Ask that it not be started; it then ends, in its turn, with `Cancelled`.

        Sync: never blocks.  Does nothing to an operation that has started.
        """
        self.cancelled = True

    def __repr__(self) -> str:
        return f"<Operation {self.name or '?'} #{self.seq} {self.state.value}>"

    # ------------------------------------------------------------------------------------------------ for the engine
    def _render_operands(self) -> str:
        given = self.operands
        if callable(given):
            try:
                return str(given())
            except Exception as e:  # a description must not hide the error it describes
                return f"<operands not described: {type(e).__name__}>"
        return given or ""

    def _fresh_error(self, waiter: Site | None) -> OperatorError:
        """The stored error as a new exception with notes; marks the root as seen."""
        fate = self.fate
        assert fate is not None and fate.root is not None, "asked of a DONE operation that is not well"
        return fresh_error(fate.root, fate.distance, waiter)


def fresh_error(root: Root, distance: int, waiter: Site | None, *, seen: bool = True) -> OperatorError:
    """A new exception for `root`, with the notes that tell the user where to look; the root counts as seen, or not."""
    error = rebuild(root.exc)
    error.add_note(f"operator: {root.name or 'unnamed'}")
    if root.operands:
        error.add_note(f"operands: {root.operands}")
    error.add_note(f"pushed at {describe(root.site)}")
    if waiter is not None:
        error.add_note(f"waited for at {describe(waiter)}")
    if distance:
        error.add_note(f"distance: {distance} operation{'s' if distance > 1 else ''} after the one that failed")
    root.seen = root.seen or seen
    return error


def worst(fates: Sequence[Fate | None], also: Fate | None = None) -> Fate | None:
    """Of the poisoned fates the one whose root was pushed first (then the nearest); None if all are well."""
    best = also
    for fate in fates:
        if fate is None or fate.root is None:
            continue
        if best is None or best.root is None or (fate.root.seq, fate.distance) < (best.root.seq, best.distance):
            best = fate
    return best
