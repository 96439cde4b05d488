"""The device interface: the least that arrays and operators need to know of a device.

A `Device` is one memory with its array module.  Contexts map to devices; everything else in the rooms asks the device
and never imports an array module of its own.  Kernels run with floating-point errors ignored (`kernel_state`), in every
thread alike, so that a result or a warning never depends on who ran the operation.
"""

from __future__ import annotations

from math import prod
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import threadpoolctl  # type: ignore[import-untyped]

from ..engine import ArgumentError, Engine
from .context import Context
from .pool import memory_pool, pooled

RawArray = np.ndarray[Any, Any]

_empty = np.empty


class Device(Protocol):
    """One memory: where buffers are allocated and which array module computes on it."""

    name: str
    xp: ModuleType

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> RawArray:
        """A raw array with arbitrary contents."""
        ...

    def whole(self, raw: RawArray) -> bool:
        """Whether it is an array with all of its memory, not a view of another."""
        ...


class CPU:
    """The host's memory, computed on by NumPy."""

    name = "cpu"
    xp: ModuleType = np

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> RawArray:
        if prod(shape) < memory_pool.few:
            return _empty(shape, dtype)
        return memory_pool.take(shape, dtype)

    def whole(self, raw: RawArray) -> bool:
        return raw.base is None or pooled(raw)


HOST = CPU()


def device_of(ctx: Context) -> Device:
    """The memory behind a context.

    Raises
    ------
    ArgumentError
        For a GPU context: this build of the library has no GPU device yet.
    """
    if ctx.device_type != "gpu":
        return HOST
    raise ArgumentError(f"[Context] {ctx}: no such device; this version computes on CPU contexts only")


class Place:
    """Where arrays are: an engine, a context and the device behind it.  One object for each, so `is` compares them."""

    __slots__ = ("context", "device", "engine")

    def __init__(self, engine: Engine, context: Context) -> None:
        self.engine = engine
        self.context = context
        self.device = device_of(context)


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
    """How many GPU devices arrays can be made on."""
    return 0


def kernel_state() -> None:
    """Prepare a context for kernels: NumPy neither warns nor raises on overflow, 0/0 and the like."""
    np.seterr(all="ignore")


def one_blas_thread() -> None:
    """BLAS with 1 and with 2 threads gives different bits; the engine's workers are the one thread budget."""
    threadpoolctl.threadpool_limits(1, user_api="blas")
