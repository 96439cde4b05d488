"""How values leave the library: waits, and conversions to what the host has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..engine import OK, ArgumentError, ArgumentTypeError, Operation
from .buffer import Admission, Chunk, Lease, hold
from .device import RawArray
from .dtype import DType
from .memory import SMALL
from .pool import memory_pool
from .shape import Shape, Strides


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
        writer = self._chunk.buffer.variable.writer  # one moment: no other thread comes in between these reads
        if writer is not None:
            writer.wait(timeout)

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


def describe(value: Any) -> str:
    """An operand in an error message: ``float32(2, 3)``, or the scalar."""
    if isinstance(value, Reading):
        return f"{value._dtype}{value._shape}"
    if isinstance(value, np.ndarray):
        return f"numpy {value.dtype}{value.shape}"
    if hasattr(value, "_words"):  # a sparse array
        return str(value._words)
    return repr(value.item() if isinstance(value, np.generic) else value)
