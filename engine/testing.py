"""Tools for testing concurrency without sleeping: gates, schedules, audits, the bytecode lint."""

from __future__ import annotations

from .operation import Operation


class Seeded:
    """A schedule: among ready operations a pseudo-random one runs next, the same for the same seed.

    Its rank depends on the seed and the operation's place in push order alone, not on when it became ready.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def rank(self, op: Operation) -> int:
        """A well mixed number of (seed, seq)."""
        x = (op.seq * 0x9E3779B97F4A7C15 + self.seed * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ (x >> 31)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        return x ^ (x >> 29)
