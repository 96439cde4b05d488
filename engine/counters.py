"""`Statistics`: what an engine tells of itself in numbers."""

from __future__ import annotations

import dataclasses

from .limits import Limits


@dataclasses.dataclass(frozen=True)
class Statistics:
    """A snapshot of an engine's counters.  Those of who ran what are approximate while it runs, exact when it is
    idle.
    """

    pushed: int
    """Operations admitted since the engine was made, and kernels that ran at once."""
    completed: int
    """Of these, done (well or not)."""
    pending: int
    """Of these, not done."""
    inline: int
    """Ran within their push, or at once, without one."""
    by_worker: int
    """Ran on one of the engine's threads."""
    by_helper: int
    """Ran on a thread that waited (serial engine: on the thread that pushed or waited)."""
    unseen: int
    """Failures that no wait has raised."""
    workers: int
    """Threads of the engine that are alive."""
    bytes: int
    """In flight: what pending operations will take or keep.  Bounded, as `pending` is, by `limits`."""
    peak_bytes: int
    """The most that was ever in flight."""
    limits: Limits
    """The bounds."""
    held: int
    """Pushes that had to wait at a bound."""
    gave_way: int
    """Stalls in which a bound gave way."""

    @property
    def ran_by(self) -> dict[str, int]:
        """Who ran the operations."""
        return {"inline": self.inline, "worker": self.by_worker, "helper": self.by_helper}
