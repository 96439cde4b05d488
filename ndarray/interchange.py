"""How memory is lent to other libraries without a copy: DLPack, by NumPy's own implementation of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine import ArgumentError
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
