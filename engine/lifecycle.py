"""Engines in a process: the default one, the current one, fork and exit.

Owns the default engine, the context variable of the current one, and the handlers of fork and exit.  Guarantees:
nothing is printed at exit but errors that nobody has seen (through `logging`); a forked child starts with empty
engines and new locks.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from _thread import allocate_lock, get_ident
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar, Token
from time import monotonic
from typing import TYPE_CHECKING

from .atomic import P, T, renew
from .claims import here_and_now, in_wait, starting
from .errors import Cancelled, EngineTimeout
from .joining import brief
from .mail import called, unrung
from .operation import DONE, NEW, OK, READY, RUNNING, Fate, Kind, Operation, Root
from .parallel import Helper
from .profiler import Profile
from .status import seen_by_environment
from .tracker import retire
from .watchdog import watched_by_environment

if TYPE_CHECKING:
    from .access import Check
    from .core import Engine
    from .counters import Statistics
    from .schedules import Fuzz

log = logging.getLogger("vardag")

OWN_LOOP = "own loop"  # where in `Engine.attached` the engine's own event loop is: see coroutines.py

# All engines of the process, for fork and exit.  Plain references, pruned when one is added: a WeakSet runs Python code
# when a member dies, and what a signal handler throws there is lost.
_engines: list[weakref.ref[Engine]] = []

# Called once per engine in its template of a kernel's context; the array room sets NumPy's error state here.
kernel_context_hooks: list[Callable[[], object]] = []

_current: ContextVar[Engine | None] = ContextVar("vardag.engine.current", default=None)
_default: Engine | None = None
fuzzing: Fuzz | None = None  # the `fuzz` block that is open: a single store
checking: Check | None = None  # the innermost `check` block: a single store
# Called with the seed where a `fuzz` block begins; simulated devices draw anew then.
sowing: list[Callable[[int], object]] = []


def register(engine: Engine) -> None:
    """Make the engine known to fork and exit."""
    for r in list(_engines):
        if r() is None:
            with suppress(ValueError):  # another thread took it off
                _engines.remove(r)
    _engines.append(weakref.ref(engine))
    if fuzzing is not None:
        fuzzing.adopt(engine)


def living() -> list[Engine]:
    """All engines of the process."""
    return [e for e in (r() for r in _engines) if e is not None]


def new_kernel_context() -> Context:
    """An empty context, prepared by the hooks; kernels run in copies of it."""
    context = Context()
    for hook in kernel_context_hooks:
        context.run(hook)
    return context


def add_kernel_context_hook(hook: Callable[[], object]) -> None:
    """Prepare kernels' contexts with `hook`, in engines that exist too."""
    kernel_context_hooks.append(hook)
    for engine in living():
        engine.kernel_context = new_kernel_context()


def default() -> Engine:
    """The process's default engine, made at the first use.

    Examples
    --------
    >>> from vardag import engine
    >>> engine.default() is engine.default()
    True
    """
    return _default or _make_default()


def _make_default() -> Engine:
    from .core import Engine

    global _default  # noqa: PLW0603
    made = Engine()  # without a lock: two threads, or a finalizer in here, may make one each, and the first one counts
    if _default is None:
        _default = made
        watched_by_environment(made)
        seen_by_environment()
    return _default


def current() -> Engine:
    """The engine of the innermost ``with engine:`` or ``with engine.use():`` of this context, else the default one."""
    return _current.get() or default()


def profile() -> Profile:
    """The current engine's profile: a context manager that records every operation pushed while it is open.

    Examples
    --------
    >>> from vardag import engine
    >>> with engine.Engine(workers=1) as e:
    ...     with engine.profile() as p:
    ...         _ = e.push(lambda: None, name="nothing")
    ...         e.waitall()
    ...     [x.name for x in p.events]
    ['nothing']
    """
    return current().profile()


def statistics() -> Statistics:
    """The current engine's counters: see `Engine.statistics`.  Sync: never blocks."""
    return current().statistics()


def set_default(engine: Engine | None) -> Engine | None:
    """Make `engine` the default (None: a new one at the next use); returns the one before."""
    global _default
    old, _default = _default, engine
    return old


def enter(engine: Engine) -> Token[Engine | None]:
    """Make `engine` the current one of this context."""
    return _current.set(engine)


def leave(token: Token[Engine | None]) -> None:
    """Undo `enter`."""
    try:
        _current.reset(token)
    except ValueError:  # left in another context than it was entered in
        _current.set(None)


class Use:
    """See `Engine.use`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tokens: list[Token[Engine | None]] = []

    def __enter__(self) -> Engine:
        self._tokens.append(enter(self._engine))
        return self._engine

    def __exit__(self, *exc: object) -> None:
        leave(self._tokens.pop())


def log_unseen(errors: Sequence[BaseException], more: int = 0) -> None:
    """Log errors that no wait has raised; nothing if there are none."""
    for error in errors:
        notes = "; ".join(getattr(error, "__notes__", ()))
        log.error("an operation failed and nobody waited for it: %s: %s (%s)", type(error).__name__, error, notes)
    if more:
        log.error("%d further operations failed and nobody waited for them", more)


# ==================================================================================================== exit
# Exit drains: everything pushed before it runs, and what that pushes, as long as anything can go on.  Seconds:
EXIT_GRACE = 2.0  # for callbacks of push_async, and functions asleep for ever, once nothing else is left
EXIT_NESTED = 10.0  # during which operations may go on pushing: an endless chain has to end

_SLEEP = threading.Condition.wait.__code__  # what Event, Barrier, Semaphore and queue.Queue sleep in


@atexit.register
def _at_exit() -> None:
    """Drain all engines, then end their workers.  A push by a daemon thread from now on parks that thread: it could
    only fail noisily.
    """
    engines = living()
    for engine in engines:
        engine._nested_until = monotonic() + EXIT_NESTED
        engine._closed = engine._parking = True
    try:
        if issubclass(getattr(sys, "last_type", None) or Exception, KeyboardInterrupt) and not hasattr(sys, "ps1"):
            _cancel_all(engines)  # it ends by Ctrl-C: do not first do everything that was asked before
        _drain_all(engines)
    except KeyboardInterrupt:
        _cancel_all(engines)
    for engine in engines:
        engine._end_workers(1.0)
        engine._log_unseen()


def _cancel_all(engines: list[Engine]) -> None:
    for engine in engines:
        engine.cancel_pending()


def _drain_all(engines: list[Engine]) -> None:
    """Together, since an operation of one may wait for another's."""
    idle_since, before = monotonic(), -1
    while any(e._live or e._inbox for e in engines):
        for engine in engines:
            with suppress(EngineTimeout):
                engine._wait_cut(monotonic() + 0.2)
        done = sum(e.statistics().completed for e in engines)
        if done != before or any(_may_end(e) for e in engines):
            idle_since, before = monotonic(), done
        elif monotonic() - idle_since > EXIT_GRACE:
            for engine in engines:
                for op in engine._pending():
                    log.info("given up at exit: %s", engine.explain(op))
            return


def _may_end(engine: Engine) -> bool:
    """Is anything pending that can go on without a callback, or without being woken from an endless sleep?"""
    frames = sys._current_frames()
    for op in engine._pending():
        claim = op.claim if op.state is RUNNING else None
        if claim is None:
            if op.state is READY:
                return True
        elif not (op.kind is Kind.ASYNC and op.mark == 1) and op.blocked is None:
            frame = frames.get(claim[2])
            if frame is None or frame.f_code is not _SLEEP or frame.f_locals.get("timeout") is not None:
                return True
    return False


# ==================================================================================================== fork
def _after_fork_in_child() -> None:
    """Only the forking thread exists here.  Every engine starts anew; what was not done has failed.

    It may have forked inside a section (a handler or a finalizer did): it goes on holding the locks that it held, and
    what it had planned there is out of date.                      [test_engines_together: test_fork_inside_a_section]
    """
    global fuzzing  # noqa: PLW0603
    fuzzing = None  # its threads are not here
    for engine in living():
        engine._fuzz = None
        engine._guard_p[0], engine._guard_t[0] = object(), object()
        if engine._inlining is not None and P._is_owned():
            engine._promote()  # a finalizer inside this thread's own kernel: that goes on in the child too
    renew(P)
    renew(T)
    here_and_now.worker = here_and_now.busy = here_and_now.mailbox = None
    unrung.clear()
    called.clear()
    here_and_now.stack.clear()
    starting.clear()
    in_wait.intersection_update((get_ident(),))
    dropped: list[Operation] = []
    for engine in living():
        _renew(engine, dropped)
    for op in dropped:  # last: what their functions held may have finalizers, and those may push
        retire(op)


def _renew(engine: Engine, dropped: list[Operation]) -> None:
    """There is one thread, and it may be inside a section of this engine.  No commit was cut, but for a kernel inside
    its push.

    RACE "fork-in-kernel": another thread forks while a cheap kernel runs within its push and has let go of the GIL.  In
    the child its memory is half written, and nothing of the operation is admitted: so it is admitted here, as failed.
    """
    renew(engine._life)
    if engine._turn_thread != get_ident():
        engine._turn_lock, engine._turn_thread = allocate_lock(), 0
    engine._turn_bells.clear()
    inlining = None if P._is_owned() else engine._inlining
    # Kernels that a finalizer on this thread interrupted go on in the child, before anything else here.
    going_on = {o.seq: o for o in engine._live.values() if _is_mine(o)}
    for o in going_on.values():
        o.succ = o.watch = ()
        o.nbytes = o.carried = 0
    unfinished = [o for o in (*engine._live.values(), *engine._inbox) if o.seq not in going_on]
    engine._live = going_on
    engine._inbox.clear()
    for lane in engine._lanes.values():
        lane.renew()
    engine._started = None
    engine._dwelling = []
    engine.attached.pop(OWN_LOOP, None)
    engine._renew_limits()
    engine.writing = engine.writing if P._is_owned() else 0
    engine._unseen.clear()  # the parent reports its own
    engine._unseen_more = 0
    if inlining is not None:
        engine._inlining = None
        op, planned = inlining
        if op.state is NEW and op.mark == 1:
            _, _, writes, updates, _, _, _ = planned
            engine._seq = op.seq + 1
            for v in (*writes, *updates):
                v.writer, v.readers, v.version = op, (), v.version + 1
            op.succ = op.watch = ()  # it was never queued
            unfinished.append(op)
        elif op.mark == 2:  # all is committed but its fate
            op.fate, op.state = OK, DONE
    for op in unfinished:
        if type(op.fn) is Helper:
            renew(op.fn.door)  # its parent may go on here, and would wait for a helper that is no more
        op.engine = engine
        root = Root(op, Cancelled(f"[{op.name or 'operation'}] was unfinished at fork"))
        root.seen = True
        op.fate = Fate(root)
        claim = op.claim if op.state is RUNNING else None
        op.state = DONE
        if claim is not None:
            claim[0] = None  # nor does it begin here, should a frame of this thread be about to call it
        for bell in op.watch:
            bell.put(op)  # a frame of this thread may be about to sleep until it is done
    dropped += unfinished


def _is_mine(op: Operation) -> bool:
    claim = op.claim if (op.kind is Kind.ATOMIC or brief(op)) and op.state is RUNNING and op.mark else None
    return claim is not None and claim[2] == get_ident() and claim[1].locked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
