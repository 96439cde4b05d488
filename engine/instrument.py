"""What the tracker tells an observer; the profiler is the one there is.

Assumes of an instrument: its methods are short library code that raises nothing, takes no engine lock and pushes
nothing. They are called outside commits, so an interrupted thread may leave a call out: the record is best effort,
the engine is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .operation import Operation


class Instrument:
    """Hooks in an operation's life.  Times are taken by the hooks themselves.

    `clocks`: what devices need to tell the time, of each its own.
    """

    def __init__(self) -> None:
        self.clocks: dict[Any, Any] = {}

    def pushed(self, op: Operation, preds: Sequence[Operation]) -> None:
        """Admitted, not to be run within the push."""

    def ready(self, ops: Sequence[Operation]) -> None:
        """These have just become ready."""

    def started(self, op: Operation) -> None:
        """The calling thread is about to run it (or to skip it, if it is poisoned)."""

    def finished(self, op: Operation) -> None:
        """It is DONE."""

    def ran_there(self, op: Operation, stream: str, times: Callable[[], tuple[float, float]]) -> None:
        """It has given work to a device's stream.  `times`: asks when that began and ended there, in seconds of
        `time.monotonic`; blocks until it has ended.
        """

    def waited(self, op: Operation, began: float) -> None:
        """The calling thread has waited for it, since `began`, in seconds of `time.monotonic`."""

    def ran_inline(self, op: Operation, started: float, nbytes: int) -> None:
        """It ran within its push, by the calling thread; `started` in seconds of `time.monotonic`.   `nbytes`: what it
        made.
        """
