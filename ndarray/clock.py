"""When operations ran on their device: for the profiler."""

from __future__ import annotations

from typing import Any

from ..engine.claims import here_and_now
from .driver import DeviceError, Driver


class Clock:
    """Takes the time of what one operation gives to a stream.   `host`: seconds of `time.monotonic` at `zero`."""

    __slots__ = ("begin", "driver", "end", "host", "stream", "zero")

    def __init__(self, driver: Driver, stream: Any, host: float, zero: Any) -> None:
        self.driver, self.stream, self.host, self.zero = driver, stream, host, zero
        self.begin, self.end = driver.timer(), driver.timer()
        driver.record(self.begin, stream.native)

    def stop(self) -> None:
        """All was given."""
        self.driver.record(self.end, self.stream.native)
        op: Any = here_and_now.stack[-1]
        instrument = op.engine._instrument
        if instrument is not None:
            instrument.ran_there(op, self.stream.lane, self.times)

    def times(self) -> tuple[float, float]:
        """When it began and ended there; blocks until it has ended."""
        try:
            self.driver.synchronize(self.end)
            first, last = (self.driver.elapsed(self.zero, timer) for timer in (self.begin, self.end))
        except RuntimeError as error:
            raise DeviceError(str(error)) from error
        return self.host + first, self.host + last
