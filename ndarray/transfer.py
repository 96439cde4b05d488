"""Copies between memories: host to device, device to host, device to device.

    to a device      from a staging copy, on its copy-in stream
    to the host      on the copy-out stream, whose lane's thread waits for the bytes: then the operation is done
    between devices  on the target's copy-in stream, after the source's writer

[tests/ndarray/test_device.py]
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from ..engine import Kind, Operation
from .buffer import Admission, Buffer
from .context import Context
from .device import Pinned, Place, RawArray, place_of

A = TypeVar("A", bound=Any)


def across(x: A, context: Context) -> A:
    """A copy of the array in another memory, off the tape.  Never blocks."""
    place = place_of(x._place.engine, context)
    source = x if x._raw is not None or (x._strides is None) else x._ops.compact(x.detach())
    new = type(x)._fresh(place, source._shape, source._dtype)
    new._logical = x._logical
    buffer, geometry = new._chunk.buffer, (source._shape, source._strides, source._offset)

    def plan() -> Admission:
        origin = source._chunk.buffer
        op = _operation(origin, geometry, buffer)
        return op, (origin.variable,), (buffer.variable,), (), [], [], False

    place.engine.admit(plan)
    return new  # type: ignore[no-any-return]


def upload(place: Place, raw: RawArray, new: Any) -> None:
    """Bring a host array that nobody else has to the device of the fresh array `new`."""
    buffer: Buffer = new._chunk.buffer
    device: Any = place.device

    def run() -> None:
        device.enqueue(device.copy_in, (), (buffer,), lambda: device.driver.copy_in(raw, buffer.view(raw.shape)),
                       "copy to the device", (raw,))  # fmt: skip

    def plan() -> Admission:
        op = Operation(Kind.KERNEL, run, "copy to the device", lane=device.copy_in.lane, nbytes=buffer.nbytes)
        return op, (), (buffer.variable,), (), [], [], False

    place.engine.admit(plan)


def _operation(source: Buffer, geometry: Any, target: Buffer) -> Operation:
    """The copy of a part in C order of one buffer to the whole of another, on the lane of the device that does it."""
    here: Any = source.device
    there: Any = target.device
    if not there.queued:
        name, lane = "copy to the host", here.copy_out.lane

        def run() -> None:
            host = there.empty(target.shape, target.dtype)  # the target's when the bytes are there, and not before
            mark = here.enqueue(
                here.copy_out, (source,), (), lambda: here.driver.copy_out(source.view(*geometry), host), name, (host,)
            )
            here.synchronize(mark)
            target.adopt(host)

    elif not here.queued:
        name, lane = "copy to the device", there.copy_in.lane

        def run() -> None:
            part = source.view(*geometry)
            if isinstance(here, Pinned) and part.flags.c_contiguous:
                # who writes it next waits for this operation, and so for the copy
                there.synchronize(there.enqueue(
                    there.copy_in, (), (target,), lambda: there.driver.copy_in(part, target.view(part.shape)), name,
                ))  # fmt: skip
                return
            staged = there.driver.pinned(part.shape, part.dtype)
            np.copyto(staged, part)
            there.enqueue(
                there.copy_in, (), (target,),
                lambda: there.driver.copy_in(staged, target.view(part.shape)), name, (staged,),
            )  # fmt: skip

    else:
        name, lane = "copy between devices", there.copy_in.lane

        def run() -> None:
            there.enqueue(
                there.copy_in, (source,), (target,),
                lambda: there.driver.copy_peer(source.view(*geometry), target.view(geometry[0])), name,
            )  # fmt: skip

    return Operation(Kind.KERNEL, run, name, lane=lane, nbytes=target.nbytes)
