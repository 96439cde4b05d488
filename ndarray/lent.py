"""Memory of devices with streams, for functions of users (``engine.push(fn, reads=[x])``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..engine import ArgumentError, Kind, Operation
from .buffer import Buffer


class Lent:
    """What the function is given of one array: the device's own array, over the memory at that time."""

    __slots__ = ("buffer", "geometry", "mode")

    def __init__(self, buffer: Buffer, geometry: Any, mode: str) -> None:
        self.buffer, self.geometry, self.mode = buffer, geometry, mode

    def __call__(self) -> Any:
        raw = self.buffer.view(*self.geometry)
        if self.mode == "read" and isinstance(raw, np.ndarray):  # CuPy's arrays have no such flag
            raw = raw.view()
            raw.flags.writeable = False
        return raw

    def within(self, op: Operation, memories: Sequence[Any]) -> Callable[[], Any]:
        """The operation's function, on the device and its stream for computing; memory of the host may be beside it."""
        lent = [memory for memory in memories if type(memory) is Lent]
        device: Any = self.buffer.device
        other = next((x.buffer.device for x in lent if x.buffer.device is not device), None)
        if other is not None:
            raise ArgumentError(f"[push] a function gets memory of one device, not of {device.name} and {other.name}")
        if op.kind is Kind.ASYNC:
            raise ArgumentError(f"[push] an async function gets memory of the host, not of {device.name}")
        reads = [x.buffer for x in lent if x.mode == "read"]
        writes = [x.buffer for x in lent if x.mode != "read"]
        return partial(device.enqueue, device.compute, reads, writes, op.fn, op.name or "function")
