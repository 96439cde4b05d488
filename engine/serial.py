"""The serial policy (`NaiveEngine`): no workers; the outermost push, wait or completion runs what is ready, in push
order.

It goes through the same tracker as the others, so its results are the oracle that theirs are compared with.
"""

from __future__ import annotations

from .ready import Lane, by_order


class Serial:
    """One lane without workers."""

    serial = True
    rank = staticmethod(by_order)

    def __init__(self, workers: int) -> None:
        self.main = Lane("serial", 0)

    def lane(self, name: str) -> Lane:
        """Every operation goes to the one lane."""
        return self.main
