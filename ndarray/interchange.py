"""How memory is lent to other libraries, and taken from them: DLPack, by NumPy's own implementation of it.

    lent for reading        a snapshot: a lease keeps the bytes as they are, writes go elsewhere (``__array__`` too)
    lent for writing        the chunk is pinned: it never moves, both sides see what either writes
    taken, and writable     pinned likewise
    taken, and read-only    sealed: never written, the first write gives the array memory of its own

Nobody orders what other libraries do beside the engine's operations: whoever reads memory that both sides write waits
with `wait_to_read` before, and whoever writes it with `wait_to_write`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError
from ._late import autograd
from .buffer import Lease, pin
from .device import Place, RawArray
from .dtype import is_bfloat16
from .lent import capsule
from .line import READ_ONLY, Line, scope
from .memory import SMALL
from .reading import Reading, describe
from .shape import c_strides


class _Lent(np.ndarray[Any, Any]):
    """Bytes that stay as they are as long as this array lives."""

    lease: Lease


def _lend(saved: Lease) -> RawArray:
    """The value that a lease holds.  Its base is no NumPy array: nobody can make it writable, or drop the lease by
    taking a view of it."""
    raw = saved.buffer.allocate()
    lent = raw.reshape(-1).view(np.uint8).view(_Lent)
    lent.lease = saved
    flat = np.frombuffer(lent.data.toreadonly(), raw.dtype)
    strides = c_strides(saved.shape) if saved.strides is None else saved.strides
    itemsize = raw.itemsize
    return np.ndarray(saved.shape, raw.dtype, flat, saved.offset * itemsize, tuple(s * itemsize for s in strides))


class Interchange(Reading):
    """What an array can lend."""

    __slots__ = ()
    _line: Line | None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> RawArray:
        """The value as of this call as a NumPy array that cannot be written; later writes don't show.

        Of a large array the memory itself, lent: what writes the array meanwhile goes elsewhere.  With `copy`, or to
        another dtype, a copy that is the caller's own.
        Sync: blocks until the value is there.   Raises: the error that poisoned the value; ArgumentError (a ValueError)
        if `copy` is false and a copy is needed; ArgumentTypeError at the call for an array on the tape while a scope
        records, since what is computed from it loses the gradient: `asnumpy` or `detach` says that this is meant.

        >>> import numpy as np
        >>> from vardag import nd
        >>> np.asarray(nd.arange(3))
        array([0., 1., 2.], dtype=float32)
        """
        if scope.get().recorder is not None and autograd.tape.entry_of(self) is not None:
            raise ArgumentTypeError(
                f"[__array__] {describe(self)}: a NumPy array would lose the gradient; use asnumpy() or detach()"
            )
        own = copy or (dtype is not None and np.dtype(dtype) != self._dtype)
        if own and copy is False:
            raise ArgumentError(f"[__array__] {describe(self)}: {np.dtype(dtype)} only as a copy, and copy is False")
        if own or (copy is None and math.prod(self._shape) * self._dtype.itemsize < SMALL):
            raw: RawArray = self.asnumpy()
            if own:
                return raw if dtype is None else raw.astype(dtype, copy=False)
            raw.flags.writeable = False
            return raw
        saved = self._settled()
        if copy is False and saved.owner() is not self._chunk:
            place = self._chunk.place
            why = f"it is on {place.context}" if place.queued else "others write its memory"
            raise ArgumentError(f"[__array__] {describe(self)}: {why}, and copy is False")
        return _lend(saved)

    def _settled(self) -> Lease:
        """The bytes as of now, held and there."""
        saved, writer = self._hold()
        if writer is not None:
            saved.buffer.engine.wait_op(writer, None)
            writer.raise_error()
        return saved

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's device: (1, 0) for the host's memory, (2, n) for gpu(n).  Never blocks."""
        place: Place = self._place  # type: ignore[attr-defined]
        return place.device.driver.dlpack if place.queued else (1, 0)  # type: ignore[attr-defined]

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule of the value as of this call; later writes don't show.

        A copy, unless `copy` is False and the consumer knows DLPack 1.0: then the memory itself, marked as read-only.
        Consumers are free to ignore that mark, and some do (PyTorch); what they write, no operation knows of.
        Of an array on a GPU always a copy, there, and the consumer's `stream` waits for it; for ``dl_device=(1, 0)`` a
        copy on the host.
        Sync: blocks until the value is there, on a GPU until it is enqueued.   Raises: the error that poisoned the
        value; BufferError for another device, for bfloat16, or if `copy` is false and a copy is needed; ArgumentError
        for a stream, which the host has not.

        >>> import numpy as np
        >>> from vardag import nd
        >>> np.from_dlpack(nd.arange(3))
        array([0., 1., 2.], dtype=float32)
        """
        if self._place.queued:  # type: ignore[attr-defined]
            return self._dlpack_there(stream, max_version, dl_device, copy)
        if stream is not None:
            raise ArgumentError(f"[__dlpack__] {describe(self)}: stream {stream!r}: the host's memory has no streams")
        if dl_device is not None and tuple(dl_device) != (1, 0):
            raise BufferError(f"[__dlpack__] {describe(self)}: device {dl_device}: the array is on (1, 0), the host")
        if is_bfloat16(self._dtype):
            raise BufferError(f"[__dlpack__] {describe(self)}: NumPy lends no bfloat16; convert with .astype")
        versioned = max_version is not None and max_version[0] >= 1
        lent = _lend(self._settled())
        if copy is not False or not versioned or any(step < 0 for step in lent.strides):
            if copy is False:
                raise BufferError(f"[__dlpack__] {describe(self)}: only as a copy, and copy is False")
            own: Any = np.array(lent, order="C")
            return own.__dlpack__(max_version=max_version)
        return lent.__dlpack__(max_version=max_version)

    def _dlpack_there(self, stream: Any, max_version: Any, dl_device: Any, copy: bool | None) -> Any:
        """Of an array on a device with streams."""
        x: Any = self
        place = x._place
        if is_bfloat16(x._dtype):
            raise BufferError(f"[__dlpack__] {describe(self)}: bfloat16 is not lent; convert with .astype")
        if dl_device is not None and tuple(dl_device) not in ((1, 0), place.device.driver.dlpack):
            raise BufferError(f"[__dlpack__] {describe(self)}: device {dl_device}: the array is on {place.context}")
        if copy is False:
            raise BufferError(f"[__dlpack__] {describe(self)} on {place.context}: only as a copy, and copy is False")
        if dl_device is not None and tuple(dl_device) == (1, 0):
            return x.asnumpy().__dlpack__(max_version=max_version)
        return capsule(x._ops.copy(x.detach()), stream, max_version)

    def to_dlpack_for_read(self) -> Any:
        """A DLPack capsule with a copy of the value as of this call.

        Sync: blocks until the value is there.   Raises: the error that poisoned the value.
        """
        return self.__dlpack__()

    def to_dlpack_for_write(self, max_version: tuple[int, int] | None = None) -> Any:
        """A DLPack capsule of the memory itself: from now on both sides see what either writes there.

        `max_version`: as of ``__dlpack__``.  A capsule without a version, which MXNet gives, says nothing of writing:
        PyTorch writes there, NumPy does not.

        The memory of the whole chunk, views and base included, stays where it is for good.  Autograd knows nothing of
        what the other side writes, and operations pushed later are not ordered before it: `wait_to_write` first.
        Sync: blocks until all operations pushed so far that use the memory have finished.
        Raises: the error that poisoned the value; BufferError for a view with negative strides, and for bfloat16.
        """
        if self._line is READ_ONLY:
            raise ArgumentError(f"[to_dlpack_for_write] {describe(self)}: an input of Function.forward is read-only")
        if is_bfloat16(self._dtype):
            raise BufferError(f"[to_dlpack_for_write] {describe(self)}: NumPy lends no bfloat16")
        chunk = self._chunk
        pin(chunk)
        self.wait_to_write()
        if chunk.place.queued:
            return capsule(self, None, max_version)
        raw = chunk.buffer.view(self._shape, self._strides, self._offset)
        if any(step < 0 for step in raw.strides):
            raise BufferError(f"[to_dlpack_for_write] {describe(self)}: its strides are negative")
        return raw.__dlpack__(max_version=max_version)
