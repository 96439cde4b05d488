"""The threaded policies: who runs a ready operation.

`Pooled` has one lane for everything.  `PerDevice` has a lane per device and purpose, made when first named: "cpu",
"cpu-priority", and for other devices one for computing and one for each direction of copying.
"""

from __future__ import annotations

from .ready import Lane, by_priority

PRIORITY = "cpu-priority"
PER_DEVICE_WORKERS = 1  # lanes other than "cpu": a device's work is in order anyway


class Pooled:
    """One lane, one pool of workers."""

    serial = False
    rank = staticmethod(by_priority)

    def __init__(self, workers: int) -> None:
        self.main = Lane("pool", workers)

    def lane(self, name: str) -> Lane:
        """Every operation goes to the one lane."""
        return self.main


class PerDevice:
    """A lane per device and purpose; each has its own ready queue, bell and workers."""

    serial = False
    rank = staticmethod(by_priority)

    def __init__(self, workers: int) -> None:
        self.main = Lane("cpu", workers)
        self._lanes: dict[str, Lane] = {"cpu": self.main}

    def lane(self, name: str) -> Lane:
        """The lane of that name; a new one at its first use."""
        # setdefault: two pushers (or a finalizer in between) agree on one
        return self._lanes.setdefault(name, Lane(name, PER_DEVICE_WORKERS))
