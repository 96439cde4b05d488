"""The device interface: the least that arrays and operators need to know of a device.

A `Device` is one memory with its array module.  Contexts map to devices; everything else in the rooms asks the device
and never imports an array module of its own.  Kernels run with floating-point errors ignored (`kernel_state`), in every
thread alike, so that a result or a warning never depends on who ran the operation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from math import prod
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import threadpoolctl  # type: ignore[import-untyped]

from ..engine import ArgumentError, Engine, low_memory_hooks
from .context import Context
from .driver import Driver
from .pool import memory_pool, pooled
from .streams import Accelerator

RawArray = np.ndarray[Any, Any]

_empty = np.empty


class Device(Protocol):
    """One memory: where buffers are allocated and which array module computes on it."""

    name: str
    #: the same for devices whose arrays may be operands together
    memory: Any
    xp: ModuleType
    #: the class of its raw arrays
    raw: type[Any]
    #: whether it has streams: then it is a `streams.Accelerator`, and operations on it are its own
    queued: bool

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> RawArray:
        """A raw array with arbitrary contents."""
        ...

    def whole(self, raw: RawArray) -> bool:
        """Whether it is an array with all of its memory, not a view of another."""
        ...

    def view(self, raw: RawArray, shape: tuple[int, ...], strides: tuple[int, ...] | None, offset: int) -> RawArray:
        """Another geometry over the same memory; strides and offset in bytes."""
        ...


class CPU:
    """The host's memory, computed on by NumPy."""

    name = "cpu"
    memory: Any = "host"
    xp: ModuleType = np
    raw: type[Any] = np.ndarray
    queued = False

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> RawArray:
        if prod(shape) < memory_pool.few:
            return _empty(shape, dtype)
        return memory_pool.take(shape, dtype)

    def whole(self, raw: RawArray) -> bool:
        return raw.base is None or pooled(raw)

    def view(self, raw: RawArray, shape: tuple[int, ...], strides: tuple[int, ...] | None, offset: int) -> RawArray:
        return np.ndarray(shape, raw.dtype, raw, offset, strides)


HOST = CPU()


class Pinned(CPU):
    """The host's memory that a GPU copies from and to without another copy in between: ``cpu_pinned``."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> RawArray:
        return self.driver.pinned(shape, dtype)

    def whole(self, raw: RawArray) -> bool:
        """What kernels make is ordinary memory, and copied."""
        return not (raw.base is None or isinstance(raw.base, np.ndarray) or pooled(raw))


def pins() -> Driver | None:
    """Who pins memory of the host: the first GPU, if there is one."""
    from ._cupy import count

    return device_of(Context("gpu", 0)).driver if count() else None  # type: ignore[attr-defined]


def device_of(ctx: Context) -> Device:
    """The memory behind a context.

    Raises
    ------
    ArgumentError
        For a GPU context, if CuPy or that GPU is missing.
    """
    if ctx.device_type == "cpu_pinned":
        driver = pins()
        return HOST if driver is None else Pinned(driver)
    if ctx.device_type not in FACTORIES:
        return HOST
    found: Device | None = _devices.get(ctx)
    if found is None:
        found = _devices.setdefault(ctx, FACTORIES[ctx.device_type](ctx.device_id))  # two threads agree on one
    return found


def _gpu(number: int) -> Device:
    from ._cupy import CuPyDriver, missing

    reason = missing(number)
    if reason:
        raise ArgumentError(f"[Context] gpu({number}): {reason}")
    return Accelerator(f"gpu({number})", CuPyDriver(number))


def _simulated(number: int) -> Device:
    from ._simulated import SimulatedDriver

    return Accelerator(f"simulated({number})", SimulatedDriver(number))


#: DLPack's numbers of the kinds of devices
DLPACK = {2: "gpu", 12: "simulated"}
FACTORIES: dict[str, Callable[[int], Any]] = {"gpu": _gpu, "simulated": _simulated}
_devices: dict[Context, Any] = {}


def devices_in_use() -> tuple[Any, ...]:
    """The devices with streams that arrays were made on."""
    return tuple(_devices.values())


def release() -> int:
    """Give back what devices keep for later; the bytes."""
    return sum(device.release() for device in devices_in_use())


low_memory_hooks.append(release)


def _renew() -> None:
    for device in devices_in_use():
        device.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


class Place:
    """Where arrays are: an engine, a context and the device behind it.  One object for each, so `is` compares them."""

    __slots__ = ("context", "device", "engine", "queued")

    def __init__(self, engine: Engine, context: Context) -> None:
        self.engine = engine
        self.context = context
        self.device = device_of(context)
        self.queued = self.device.queued


def place_of(engine: Engine, context: Context) -> Place:
    """The place of this engine and context.

    Raises
    ------
    ArgumentError
        For a context without a device.
    """
    place: Place | None = engine.attached.get(context)
    if place is None:
        place = engine.attached.setdefault(context, Place(engine, context))  # two threads agree on one
    return place


def num_gpus() -> int:
    """How many GPU devices arrays can be made on: 0 without CuPy or without a GPU."""
    from ._cupy import count

    return count()


def kernel_state() -> None:
    """Prepare a context for kernels: NumPy neither warns nor raises on overflow, 0/0 and the like."""
    np.seterr(all="ignore")


def one_blas_thread() -> None:
    """BLAS with 1 and with 2 threads gives different bits; the engine's workers are the one thread budget."""
    threadpoolctl.threadpool_limits(1, user_api="blas")
