"""What streams.py has to know of a kind of device: implemented by _cupy.py and _simulated.py."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from ..engine import Error
from .dtype import DType
from .shape import Shape

RawArray = Any


class DeviceError(Error, RuntimeError):
    """A device has failed, and what was there is lost."""


class Driver(Protocol):
    """The least that has to be known of a kind of device: implemented by `_cupy.py` and `_simulated.py`."""

    xp: ModuleType
    #: DLPack's (device type, number)
    dlpack: tuple[int, int]
    #: does it go on in a forked child?
    forks: bool
    #: the class of its arrays
    raw: type[Any]
    #: the functions of scipy.special for its arrays
    special: Any

    def stream(self) -> Any:
        """A new stream, whose work does not wait for that of others."""
        ...

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Within it the calling thread computes and takes memory on this device and stream."""
        ...

    def event(self) -> Any:
        """A new event, without timing."""
        ...

    def timer(self) -> Any:
        """A new event that knows when it passed."""
        ...

    def elapsed(self, first: Any, second: Any) -> float:
        """Seconds between the passing of two timers."""
        ...

    def record(self, event: Any, stream: Any) -> None:
        """The event passes when the stream has done all that it was given so far."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """What the stream is given from now on waits for the event as it was recorded last."""
        ...

    def passed(self, event: Any) -> bool:
        """Has it passed?  Never blocks."""
        ...

    def synchronize(self, event: Any) -> None:
        """Block until it has passed."""
        ...

    def empty(self, shape: Shape, dtype: DType) -> RawArray:
        """Memory of the current stream, in C order, with arbitrary contents."""
        ...

    def view(self, raw: RawArray, shape: Shape, strides: tuple[int, ...] | None, offset: int) -> RawArray:
        """Another geometry over the memory of `raw`; strides and offset in bytes."""
        ...

    def pinned(self, shape: Shape, dtype: DType) -> np.ndarray[Any, Any]:
        """Memory of the host that the device can reach."""
        ...

    def copy_in(self, host: np.ndarray[Any, Any], raw: RawArray) -> None:
        """Enqueue a copy on the current stream; both in C order.  `host` stays as it is until then."""
        ...

    def copy_out(self, raw: RawArray, host: np.ndarray[Any, Any]) -> None:
        """Enqueue a copy on the current stream; both in C order."""
        ...

    def copy_peer(self, source: RawArray, raw: RawArray) -> None:
        """Enqueue a copy from another device of this kind on the current stream."""
        ...

    def fetch(self, raw: RawArray) -> np.ndarray[Any, Any]:
        """A copy of its value on the host, in C order.  Blocks until the current stream has come to it."""
        ...

    def lend(self, raw: RawArray, stream: Any, max_version: tuple[int, int] | None) -> Any:
        """A DLPack capsule; the other side's stream waits for what the current one was given so far."""
        ...

    def take(self, source: Any) -> RawArray:
        """An array over what lends itself by DLPack; the current stream waits for what the lender says."""
        ...

    def fatal(self, error: BaseException) -> bool:
        """Does this error say that the device is in no state to go on?"""
        ...

    def release(self) -> int:
        """Give idle memory back; the number of bytes."""
        ...

    def memory_info(self) -> tuple[int, int]:
        """Bytes that are free, and all bytes, of the device."""
        ...

    def properties(self) -> dict[str, Any]:
        """What is known of the device: name, compute capability, ..."""
        ...
