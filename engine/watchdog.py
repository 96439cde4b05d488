"""The watchdog: says once, in the log, why nothing goes on.

A thread of its own looks at an engine's counters from time to time.  It takes no lock but, when it has something to
say, the one that `Engine.explain` takes; it logs while it holds none.  It keeps no engine alive, and ends with it.
A forked child has none, unless it makes one.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from queue import Empty, SimpleQueue
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import ref

from .errors import ArgumentError
from .operation import RUNNING, Operation

if TYPE_CHECKING:
    from .core import Engine

log = logging.getLogger("vardag.engine")
LOOKS = 4  # within the time of a stall
LEAST = 0.01  # seconds between two looks


class Watchdog:
    """What `watchdog` returns; a context manager that stops it.

    Examples
    --------
    >>> from vardag import engine
    >>> with engine.Engine(workers=1) as e, engine.watchdog(5) as dog:
    ...     e.push(lambda: None).wait()
    ...     dog.stalls
    0
    """

    def __init__(self, engine: Engine, seconds: float) -> None:
        #: how often it has had something to say
        self.stalls = 0
        self._seconds = seconds
        self._bell: SimpleQueue[Any] = SimpleQueue()  # whatever comes, it ends
        self._engine = ref(engine, self._bell.put)
        self._thread = threading.Thread(target=self._run, name="vardag-watchdog", daemon=True)
        self._thread.start()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End it.  Sync: blocks for the moment that it may need to say something."""
        self._bell.put(None)
        self._thread.join()

    def _run(self) -> None:
        before = -1
        since, said = monotonic(), False
        while True:
            try:
                self._bell.get(timeout=max(LEAST, self._seconds / LOOKS))
            except Empty:
                engine = self._engine()
                if engine is None:
                    return
                now = progress(engine)
                if now != before or not pending(engine):
                    before, since, said = now, monotonic(), False
                elif not said and monotonic() - since >= self._seconds:
                    said = self._say(engine, monotonic() - since)
                del engine  # it may die while this sleeps
            else:
                return

    def _say(self, engine: Engine, seconds: float) -> bool:
        ops = engine._pending()
        if not ops:
            return False
        text = (
            f"nothing has ended for {seconds:.1f} s; {len(ops)} pending, the first of which:\n{engine.explain(ops[0])}"
        )
        running = [line for op in ops if op.state is RUNNING for line in whereabouts(op)]
        self.stalls += 1
        log.warning("%s", "\n".join([text, *running]))
        return True


def progress(engine: Engine) -> int:
    """A number that changes when an operation ends that was queued."""
    found = engine.statistics()
    return found.completed - found.inline


def pending(engine: Engine) -> bool:
    """Is anything admitted and not done?"""
    return engine.statistics().pending > 0


def whereabouts(op: Operation) -> list[str]:
    """Where the thread that runs it is now."""
    claim: Any = op.claim
    frame = None if claim is None else sys._current_frames().get(claim[2])
    if frame is None:
        return []
    last = traceback.extract_stack(frame)[-1]
    return [f"[{op.name or 'operation'}] #{op.seq} is in {last.name} at {last.filename}:{last.lineno}"]


def watchdog(seconds: float, engine: Engine | None = None) -> Watchdog:
    """Log, once for each stall, what blocks what if no operation has ended for so many seconds though some are pending.

    By default of the current engine.  ``VARDAG_WATCHDOG=seconds`` has one for the default engine.  The warning goes to
    the logger "vardag.engine": the chain of what the first pending operation waits for, with states, threads, running
    times and push lines, as `EngineTimeout` has it, and the lines at which running operations are.

    Sync: never blocks.   Raises: ArgumentError at the call for a time that is not above 0.
    """
    from .lifecycle import current

    if not isinstance(seconds, int | float) or not seconds > 0:
        raise ArgumentError(f"[watchdog] {seconds!r}: seconds above 0 expected")
    return Watchdog(engine or current(), seconds)


def watched_by_environment(engine: Engine) -> Watchdog | None:
    """The one that VARDAG_WATCHDOG asks for."""
    text = os.environ.get("VARDAG_WATCHDOG")
    if not text:
        return None
    try:
        return watchdog(float(text), engine)
    except ValueError as error:
        raise ArgumentError(f"VARDAG_WATCHDOG={text!r}: seconds above 0 expected") from error
