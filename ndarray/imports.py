"""Arrays over memory of other libraries; see interchange.py for who may write it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import engine as _engine
from ..engine import ArgumentError, ArgumentTypeError
from .buffer import Buffer, Chunk
from .context import Context, cpu
from .device import DLPACK, RawArray, place_of
from .dtype import KNOWN, NAMES, missing
from .lent import taken
from .ndarray import NDArray


class _Capsule:
    """A bare DLPack capsule of the host's memory, as an object that lends it."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule


def from_dlpack(source: Any) -> NDArray:
    """An array over the memory that another library lends: of any shape and a dtype of this library.

    Parameters
    ----------
    source : array with ``__dlpack__``, or DLPack capsule
        In the host's memory, or a GPU's, whose array is there.  If it says that it may be written, both sides see what
        either writes.  If not, and a capsule of before DLPack 1.0 says nothing, it is never written: the first write
        gives the array memory of its own.  On a GPU nothing is said, and both sides see what either writes.  If it does
        not lie in C order, it is copied.

    Sync: never blocks, save if the lender does.   Raises: ArgumentTypeError for what lends nothing; ArgumentError for a
    dtype or a device that this library has not; both at the call.

    >>> import numpy as np
    >>> from vardag import nd
    >>> a = np.zeros(3, "float32")
    >>> x = nd.from_dlpack(a)
    >>> x += 1
    >>> x.wait_to_read()
    >>> a
    array([1., 1., 1.], dtype=float32)
    """
    if type(source).__name__ == "PyCapsule":
        source = _Capsule(source)
    if not hasattr(source, "__dlpack__") or not hasattr(source, "__dlpack_device__"):
        raise ArgumentTypeError(
            f"[from_dlpack] {type(source).__name__}: an array with __dlpack__, or a capsule, expected"
        )
    kind, number = source.__dlpack_device__()
    if kind in DLPACK:
        place = place_of(_engine.current(), Context(DLPACK[kind], number))
        buffer, shared = taken(source, place)
        chunk = Chunk(buffer, place)
        chunk.pinned = shared
        return NDArray._over(chunk, buffer.shape)
    try:
        raw = np.from_dlpack(source)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ArgumentError(f"[from_dlpack] {type(source).__name__}: {error}") from None
    return _over("from_dlpack", raw)


def from_numpy(ndarray: RawArray, zero_copy: bool = True) -> NDArray:
    """An array over the memory of a NumPy array, or with a copy of it.

    Parameters
    ----------
    ndarray : numpy.ndarray
        Of any shape, in C order, of a dtype of this library.
    zero_copy : bool
        Both sides see what this one writes, and `ndarray` may not be written any more, as in MXNet; one that may not
        be written already is never written.  False: the values as of this call.

    Sync: never blocks.   Raises: ArgumentTypeError if it is no NumPy array; ArgumentError for another dtype or order;
    both at the call.

    >>> import numpy as np
    >>> from vardag import nd
    >>> nd.from_numpy(np.ones((2, 3))).shape
    (2, 3)
    """
    if not isinstance(ndarray, np.ndarray):
        raise ArgumentTypeError(f"[from_numpy] {type(ndarray).__name__}: a NumPy array expected")
    if not zero_copy:
        return _over("from_numpy", ndarray.view(np.ndarray), copy=True)
    if not ndarray.flags.c_contiguous:
        raise ArgumentError("[from_numpy] only arrays in C order can be taken without a copy; use zero_copy=False")
    array = _over("from_numpy", ndarray.view(np.ndarray))
    ndarray.flags.writeable = False
    return array


def to_dlpack_for_read(data: NDArray) -> Any:
    """As ``data.to_dlpack_for_read()``.

    >>> from vardag import nd
    >>> nd.from_dlpack(nd.to_dlpack_for_read(nd.ones(2))).shape
    (2,)
    """
    return data.to_dlpack_for_read()


def to_dlpack_for_write(data: NDArray) -> Any:
    """As ``data.to_dlpack_for_write()``.

    >>> from vardag import nd
    >>> nd.from_dlpack(nd.to_dlpack_for_write(nd.ones(2))).shape
    (2,)
    """
    return data.to_dlpack_for_write()


def _over(name: str, raw: RawArray, copy: bool = False) -> NDArray:
    """An array over this memory."""
    if raw.dtype not in KNOWN:
        raise ArgumentError(f"[{name}] dtype {raw.dtype}: one of {', '.join(NAMES)} expected{missing(raw.dtype)}")
    if copy or not raw.flags.c_contiguous or not raw.flags.aligned:
        return NDArray._from_host(np.array(raw, order="C"))
    place = place_of(_engine.current(), cpu())
    buffer = Buffer(place.engine, raw.shape, raw.dtype, place.device, raw)
    buffer.sealed = not raw.flags.writeable
    chunk = Chunk(buffer, place)
    chunk.pinned = raw.flags.writeable
    return NDArray._over(chunk, raw.shape)
