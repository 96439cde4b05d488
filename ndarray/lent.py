"""Memory of devices with streams, lent: to functions of users (``engine.push(fn, reads=[x])``), to and from other
libraries (DLPack).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..engine import ArgumentError, Kind, Operation
from .buffer import Buffer
from .device import Place
from .dtype import KNOWN, NAMES, missing
from .streams import Remote


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
        return partial(device.enqueue, device.compute, reads, writes, op.fn, op.name or "function", users=True)


def capsule(x: Any, stream: Any, max_version: tuple[int, int] | None) -> Any:
    """A DLPack capsule of a fresh array, of which nobody knows; `stream`: the other side's."""
    buffer: Buffer = x._chunk.buffer
    device: Any = buffer.device
    writer = buffer.variable.writer
    if writer is not None:
        buffer.engine.wait_op(writer, None)  # until it is enqueued
        writer.raise_error()
    found: list[Any] = []
    device.enqueue(
        device.compute, (), (buffer,),
        lambda: found.append(device.driver.lend(buffer.view(x._shape, x._strides, x._offset), stream, max_version)),
        "__dlpack__",
    )  # fmt: skip
    return found[0]


def taken(source: Any, place: Place) -> tuple[Buffer, bool]:
    """A buffer over what another library lends; whether it is the memory itself, which it is if it lies in C order.

    The other library may use its memory again as soon as it gets it back, so each stream keeps it until it is past it.
    """
    device: Any = place.device
    with device.driver.on(device.compute.native):
        raw = device.driver.take(source)
    if raw.dtype not in KNOWN:
        raise ArgumentError(f"[from_dlpack] dtype {raw.dtype}: one of {', '.join(NAMES)} expected{missing(raw.dtype)}")
    buffer = Buffer(place.engine, raw.shape, raw.dtype, device)
    shared = bool(raw.flags.c_contiguous)
    if shared:
        buffer.remote = Remote(raw, None)

    def copy() -> None:
        if not shared:
            buffer.view(raw.shape)[...] = raw

    device.enqueue(device.compute, (), (buffer,), copy, "from_dlpack", (raw,))
    return buffer, shared
