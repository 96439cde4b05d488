"""How values leave the library: waits, and conversions to what the host has."""

from __future__ import annotations

import math
from collections.abc import Coroutine, Generator, Sequence
from functools import partial
from typing import Any, Self

import numpy as np

from ..engine import OK, ArgumentError, ArgumentTypeError, Operation
from .buffer import Admission, Chunk, Lease, hold
from .context import CPU_0
from .device import RawArray
from .dtype import DType
from .memory import SMALL
from .pool import memory_pool
from .shape import Shape, Strides
from .transfer import across

AT_ONCE = 2**18  # bytes that an event loop's thread copies itself


class Reading:
    """What an array can be asked that waits for its value."""

    __slots__ = ()
    _chunk: Chunk
    _raw: RawArray | None
    _shape: Shape
    _strides: Strides
    _offset: int

    @property
    def _dtype(self) -> DType:
        raw = self._raw
        return self._chunk.buffer.dtype if raw is None else raw.dtype

    def _hold(self) -> tuple[Lease, Operation | None]:
        """The bytes as of now, which stay where they are, and the operation to wait for."""
        chunk = self._chunk
        if chunk.place.queued:
            there: Any = across(self.detach(), CPU_0)  # type: ignore[attr-defined]
            return there._hold()  # type: ignore[no-any-return]
        saved = Lease(chunk, chunk.buffer, self._shape, self._strides, self._offset)
        found: list[Operation | None] = []

        def plan() -> Admission:
            found.clear()
            keep: list[Any] = []
            if chunk.pinned:  # others write there
                return None, (), (), (), [], keep, False
            saved.buffer = chunk.buffer
            found.append(chunk.buffer.variable.writer)
            return None, (), (), (), hold([saved], keep), keep, False

        chunk.buffer.engine.admit(plan)
        if found:
            return saved, found[0]
        own: Any = self.detach().copy()  # type: ignore[attr-defined]
        return own._hold()  # type: ignore[no-any-return]

    def wait_to_read(self, timeout: float | None = None) -> None:
        """Wait until the value as of this call is there.

        Sync: blocks.   Raises: the error that poisoned the value, at every call; EngineTimeout after `timeout` seconds.
        """
        if self._raw is not None:
            return
        if self._chunk.place.queued:
            self._arrival().wait(timeout)
            return
        writer = self._chunk.buffer.variable.writer  # one moment: no other thread comes in between these reads
        if writer is not None:
            writer.wait(timeout)

    def __await__(self) -> Generator[Any, Any, Self]:
        """``await x``: the array itself, when the value as of this moment is there.  Suspends the calling task only.

        Raises: the error that poisoned the value, every time; DeadlockError at once inside an async operation that the
        value needs.  Cancelling the task leaves the operation alone.

        >>> import asyncio
        >>> from vardag import nd
        >>> async def main():
        ...     print((await (nd.ones(2) + 1)).asnumpy())
        >>> asyncio.run(main())
        [2. 2.]
        """
        return self._ready(self._writers())

    def _ready(self, writers: Sequence[Operation | None]) -> Generator[Any, Any, Self]:
        for writer in writers:
            if writer is not None:
                yield from writer.__await__()
        return self

    def _writers(self) -> Sequence[Operation | None]:
        """What the value as of this call waits for."""
        if self._raw is None and self._chunk.place.queued:
            return (self._arrival(),)
        return () if self._raw is not None else (self._chunk.buffer.variable.writer,)

    def _arrival(self) -> Operation:
        """An operation that is done when the value as of this call is on its device (streams.py)."""
        chunk, found = self._chunk, list[Operation]()
        device: Any = chunk.place.device

        def plan() -> Admission:
            buffer = chunk.buffer
            found[:] = [device.arrival(buffer)]
            return found[0], (buffer.variable,), (), (), [], [], False

        chunk.place.engine.admit(plan)
        return found[0]

    def asnumpy_async(self) -> Coroutine[Any, Any, RawArray]:
        """As `asnumpy`, to be awaited: ``await x.asnumpy_async()``.  The value is the one as of this call.

        Suspends the calling task only; a large value is copied by a worker.   Raises: as `asnumpy`, at the await.

        >>> import asyncio
        >>> from vardag import nd
        >>> async def main():
        ...     print(await nd.arange(3).asnumpy_async())
        >>> asyncio.run(main())
        [0. 1. 2.]
        """
        if self._raw is None and self._chunk.place.queued:
            return across(self.detach(), CPU_0).asnumpy_async()  # type: ignore[attr-defined, no-any-return]
        count = math.prod(self._shape)
        if count * self._dtype.itemsize <= AT_ONCE:
            saved, writer = self._hold()
            return _copy_of(saved, writer)
        out = memory_pool.take(self._shape, self._dtype)
        engine = self._chunk.buffer.engine
        return _filled(out, engine.push(partial(np.copyto, out), reads=[self], name="asnumpy"))

    def _fails(self) -> bool:
        """Whether an error has poisoned the value as of this call.  Sync: blocks."""
        writer = None if self._raw is not None else self._chunk.buffer.variable.writer
        if writer is None:
            return False
        self._chunk.buffer.engine.wait_op(writer, None)
        return writer.fate is not OK

    def wait_to_write(self, timeout: float | None = None) -> None:
        """Wait until all operations pushed so far that read or write the current version have finished.

        Sync: blocks.   Raises: as `wait_to_read`.
        """
        if self._raw is None:
            buffer = self._chunk.buffer
            buffer.engine.wait_to_write(buffer.variable, timeout)

    def asnumpy(self, timeout: float | None = None) -> RawArray:
        """A NumPy array with a copy of the value as of this call.

        Sync: blocks until the value is there; writes pushed later, by any thread, don't show.
        Raises: the error that poisoned the value, at every call; EngineTimeout after `timeout` seconds.

        >>> from vardag import nd
        >>> nd.arange(3).asnumpy()
        array([0., 1., 2.], dtype=float32)
        """
        raw = self._raw
        if raw is not None and raw.nbytes < SMALL:
            copy = raw.copy()
            if self._raw is raw:  # still young, so nobody has written meanwhile
                return copy
        saved, writer = self._hold()
        if writer is not None:
            saved.buffer.engine.wait_op(writer, timeout)
            writer.raise_error()
        view = saved.buffer.view(saved.shape, saved.strides, saved.offset)
        if view.size < memory_pool.few:
            return np.array(view, order="C")
        copy = memory_pool.take(view.shape, view.dtype)
        copy[...] = view
        return copy

    def item(self) -> Any:
        """The only element as a Python scalar.  Sync: blocks.   Raises: ArgumentError if there is not exactly one."""
        return self._scalar().item()

    def _scalar(self) -> Any:
        if math.prod(self._shape) != 1:
            raise ArgumentError(f"[asscalar] {describe(self)}: one element expected")
        return self.asnumpy().reshape(())[()]

    def tolist(self) -> Any:
        """The value as nested lists of Python scalars.  Sync: blocks."""
        return self.asnumpy().tolist()

    def __bool__(self) -> bool:
        if math.prod(self._shape) != 1:
            raise ArgumentError(f"[bool] {describe(self)}: the truth value of several elements is ambiguous")
        return bool(self._scalar())

    def __float__(self) -> float:
        return float(self._scalar())

    def __int__(self) -> int:
        return int(self._scalar())

    def __complex__(self) -> complex:
        return complex(self._scalar())

    def __format__(self, form: str) -> str:
        if not form:
            return str(self)
        if math.prod(self._shape) != 1:
            raise ArgumentTypeError(f"[format] {describe(self)}: {form!r} formats one element")
        return format(self._scalar(), form)


async def _copy_of(saved: Lease, writer: Operation | None) -> RawArray:
    if writer is not None:
        await writer
    return np.array(saved.buffer.view(saved.shape, saved.strides, saved.offset), order="C")


async def _filled(out: RawArray, op: Operation) -> RawArray:
    await op
    return out


def describe(value: Any) -> str:
    """An operand in an error message: ``float32(2, 3)``, or the scalar."""
    if isinstance(value, Reading):
        return f"{value._dtype}{value._shape}"
    if isinstance(value, np.ndarray):
        return f"numpy {value.dtype}{value.shape}"
    if hasattr(value, "_words"):  # a sparse array
        return str(value._words)
    return repr(value.item() if isinstance(value, np.generic) else value)
