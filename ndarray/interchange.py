"""How memory is lent to other libraries, and taken from them: DLPack, by NumPy's own implementation of it.

    lent for reading        a snapshot: a lease keeps the bytes as they are, writes go elsewhere
    lent for writing        the chunk is pinned: it never moves, both sides see what either writes
    taken, and writable     pinned likewise
    taken, and read-only    sealed: never written, the first write gives the array memory of its own

Nobody orders what other libraries do beside the engine's operations: whoever reads memory that both sides write waits
with `wait_to_read` before, and whoever writes it with `wait_to_write`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine import ArgumentError
from .buffer import pin
from .reading import Reading, describe


class _Lent(np.ndarray[Any, Any]):
    """A read-only view of a buffer whose bytes stay as long as it lives."""

    lease: Any = None


class Interchange(Reading):
    """What an array can lend."""

    __slots__ = ()

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's device: (1, 0), the host's memory.  Never blocks."""
        return 1, 0

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
        Sync: blocks until the value is there.   Raises: the error that poisoned the value; BufferError for another
        device, or if `copy` is false and a copy is needed; ArgumentError for a stream, which the host has not.

        >>> import numpy as np
        >>> from vardag import nd
        >>> np.from_dlpack(nd.arange(3))
        array([0., 1., 2.], dtype=float32)
        """
        if stream is not None:
            raise ArgumentError(f"[__dlpack__] {describe(self)}: stream {stream!r}: the host's memory has no streams")
        if dl_device is not None and tuple(dl_device) != (1, 0):
            raise BufferError(f"[__dlpack__] {describe(self)}: device {dl_device}: the array is on (1, 0), the host")
        versioned = max_version is not None and max_version[0] >= 1
        saved, writer = self._hold()
        if writer is not None:
            saved.buffer.engine.wait_op(writer, None)
            writer.raise_error()
        lent = saved.buffer.view(saved.shape, saved.strides, saved.offset).view(_Lent)
        if copy is not False or not versioned or any(step < 0 for step in lent.strides):
            if copy is False:
                raise BufferError(f"[__dlpack__] {describe(self)}: only as a copy, and copy is False")
            own: Any = np.array(lent, order="C", subok=False)
            return own.__dlpack__(max_version=max_version)
        lent.lease = saved
        lent.flags.writeable = False
        return lent.__dlpack__(max_version=max_version)

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
        Raises: the error that poisoned the value; BufferError for a view with negative strides.
        """
        chunk = self._chunk
        pin(chunk)
        self.wait_to_write()
        raw = chunk.buffer.view(self._shape, self._strides, self._offset)
        if any(step < 0 for step in raw.strides):
            raise BufferError(f"[to_dlpack_for_write] {describe(self)}: its strides are negative")
        return raw.__dlpack__(max_version=max_version)
