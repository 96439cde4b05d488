"""Engines in a process: the default one, the current one, fork and exit.

Owns the default engine, the context variable of the current one, and the handlers of fork and exit.  Guarantees:
nothing is printed at exit but errors that nobody has seen (through `logging`); a forked child starts with empty
engines and new locks.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextvars import Context, ContextVar, Token
from time import monotonic
from typing import TYPE_CHECKING, Any

from .atomic import locked
from .claims import here_and_now
from .errors import Cancelled, EngineTimeout
from .operation import DONE, Fate, Root
from .profiler import Profile

if TYPE_CHECKING:
    from .core import Engine

log = logging.getLogger("vardag")

# All engines of the process, for fork and exit.  Plain references, pruned when one is added: a WeakSet runs Python code
# when a member dies, and what a signal handler throws there is lost.
_engines: list[weakref.ref[Engine]] = []

# Called once per engine in its template of a kernel's context; the array room sets NumPy's error state here.
kernel_context_hooks: list[Callable[[], object]] = []

_current: ContextVar[Engine | None] = ContextVar("vardag.engine.current", default=None)
_default: Engine | None = None
_lock: Any = threading.RLock()


def register(engine: Engine) -> None:
    """Make the engine known to fork and exit."""
    _engines[:] = [*(r for r in _engines if r() is not None), weakref.ref(engine)]


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
        engine._kernel_context = new_kernel_context()


def default() -> Engine:
    """The process's default engine, made at the first use.

    Examples
    --------
    >>> from vardag import engine
    >>> engine.default() is engine.default()
    True
    """
    return _default or locked(_lock, _make_default)


def _make_default() -> Engine:
    from .core import Engine

    global _default  # noqa: PLW0603
    if _default is None:
        _default = Engine()  # built wholly, then published by one store
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
EXIT_GRACE = 2.0  # seconds that exit waits for callbacks of push_async once nothing else is left


@atexit.register
def _at_exit() -> None:
    for engine in living():
        _close_at_exit(engine)


def _close_at_exit(engine: Engine) -> None:
    """Drain, then end the workers.  A push by a daemon thread from now on parks that thread: it could only fail
    noisily.
    """
    engine._closed = engine._parking = True
    idle_since = monotonic()
    while engine._live or engine._inbox:
        done = engine.statistics().completed
        try:
            engine._wait_cut(monotonic() + 0.5)
        except EngineTimeout:
            handed_out = not engine._busy()
            if engine.statistics().completed != done or not handed_out:
                idle_since = monotonic()
            if monotonic() - idle_since > EXIT_GRACE:
                break  # only callbacks that never came
        except KeyboardInterrupt:
            engine.cancel_pending()
            break
    engine._end_workers(1.0)
    engine._log_unseen()


# ==================================================================================================== fork
def _after_fork_in_child() -> None:
    """Only the forking thread exists here.  Every engine starts anew; what was not done has failed."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    here_and_now.__init__()  # type: ignore[misc]
    for engine in living():
        _renew(engine)


def _renew(engine: Engine) -> None:
    engine._P, engine._T, engine._life = threading.RLock(), threading.RLock(), threading.RLock()
    engine._turn_lock = threading.Lock()
    engine._inlining = None
    unfinished = [*engine._live.values(), *engine._inbox]
    engine._live = {}
    engine._inbox.clear()
    for lane in engine._lanes.values():
        lane.renew()
    engine._started = None
    engine._unseen, engine._unseen_more = [], 0  # the parent reports its own
    for op in unfinished:
        root = Root(op, Cancelled(f"[{op.name or 'operation'}] was unfinished at fork"))
        root.seen = True
        op.fate = Fate(root)
        op.state = DONE


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
