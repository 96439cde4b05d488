"""CUDA devices through CuPy (14 or newer): `streams.Driver`, and nothing else.  The one file that imports CuPy.

No machine that this was written on has a GPU: docs/gpu.md says what has been run where.

CuPy's current device and stream belong to the thread, so everything here runs within `on`.  Its memory pool gives a
block back to the stream that it was taken on; streams.py keeps what other streams use.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from .dtype import DType
from .shape import Shape

#: CUDA's numbers of the errors after which a device goes on: invalid value, out of memory, invalid resource handle
REFUSED = {1, 2, 400}


@cache
def _cupy() -> Any:
    """The package, None if it is not installed or does not fit this machine."""
    try:
        return importlib.import_module("cupy")
    except ImportError:
        return None


@cache
def count() -> int:
    """How many GPUs CuPy can use."""
    cupy = _cupy()
    if cupy is None:
        return 0
    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError:  # no driver, or no device
        return 0


def missing(number: int) -> str:
    """Why there is no such device; empty if there is."""
    if number < count():
        return ""
    if _cupy() is None:
        return "CuPy is not installed; install vardag[cuda12x] or vardag[cuda13x]"
    return f"CuPy finds {count()} GPUs on this machine"


class CuPyDriver:
    """See `streams.Driver`."""

    forks = False

    def __init__(self, number: int) -> None:
        self.cupy = cupy = _cupy()
        self.number = number
        self.dlpack = (2, number)  # kDLCUDA
        self.xp = cupy
        self.raw = cupy.ndarray
        self.special = importlib.import_module("cupyx.scipy.special")

    def stream(self) -> Any:
        with self.cupy.cuda.Device(self.number):
            return self.cupy.cuda.Stream(non_blocking=True)

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        with self.cupy.cuda.Device(self.number), stream:  # a Device object for each thread and use: they keep a state
            yield

    def event(self) -> Any:
        return self.cupy.cuda.Event(block=True, disable_timing=True)

    def timer(self) -> Any:
        return self.cupy.cuda.Event(block=True)

    def elapsed(self, first: Any, second: Any) -> float:
        return float(self.cupy.cuda.get_elapsed_time(first, second)) / 1e3

    def record(self, event: Any, stream: Any) -> None:
        event.record(stream)

    def wait(self, stream: Any, event: Any) -> None:
        stream.wait_event(event)

    def passed(self, event: Any) -> bool:
        return bool(event.done)

    def synchronize(self, event: Any) -> None:
        event.synchronize()

    def empty(self, shape: Shape, dtype: DType) -> Any:
        return self.cupy.empty(shape, dtype)

    def view(self, raw: Any, shape: Shape, strides: tuple[int, ...] | None, offset: int) -> Any:
        return self.cupy.ndarray(shape, raw.dtype, raw.data + offset, strides)

    def pinned(self, shape: Shape, dtype: DType) -> np.ndarray[Any, Any]:
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = self.cupy.cuda.alloc_pinned_memory(max(nbytes, 1))
        return np.ndarray(shape, dtype, memory)

    def copy_in(self, host: np.ndarray[Any, Any], raw: Any) -> None:
        raw.data.copy_from_host_async(host.ctypes.data, host.nbytes)

    def copy_out(self, raw: Any, host: np.ndarray[Any, Any]) -> None:
        raw.data.copy_to_host_async(host.ctypes.data, host.nbytes)

    def copy_peer(self, source: Any, raw: Any) -> None:
        raw.data.copy_from_device_async(source.data, raw.nbytes)

    def fetch(self, raw: Any) -> np.ndarray[Any, Any]:
        return raw.get(order="C")  # type: ignore[no-any-return]

    def lend(self, raw: Any, stream: Any, max_version: tuple[int, int] | None) -> Any:
        return raw.__dlpack__(stream=stream, max_version=max_version)

    def take(self, source: Any) -> Any:
        return self.cupy.from_dlpack(source)

    def fatal(self, error: BaseException) -> bool:
        """Of CUDA's runtime, but for memory that ran out and launches that were refused."""
        return isinstance(error, self.cupy.cuda.runtime.CUDARuntimeError) and error.status not in REFUSED

    def release(self) -> int:
        pool = self.cupy.get_default_memory_pool()
        before = pool.total_bytes()
        pool.free_all_blocks()
        self.cupy.get_default_pinned_memory_pool().free_all_blocks()
        return int(before - pool.total_bytes())

    def memory_info(self) -> tuple[int, int]:
        with self.cupy.cuda.Device(self.number):
            free, total = self.cupy.cuda.runtime.memGetInfo()
        return int(free), int(total)

    def properties(self) -> dict[str, Any]:
        return dict(self.cupy.cuda.runtime.getDeviceProperties(self.number))
