"""`NDArray`: the array of MXNet 1.x, by its rules, and the functions that make one from host data.

What differs from `Array`: float32 by default, no promotion between dtypes, a scalar takes the array's dtype by C's
conversion, results have the operand's dtype, no result has shape ().  The rules are in operators/faces.py.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from .. import engine as _engine
from ..engine import ArgumentError, ArgumentTypeError
from . import array as array_room
from ._late import nd_face
from .array import Array
from .context import Context, as_context
from .device import Pinned, RawArray, devices_in_use, place_of
from .dtype import FLOAT32, as_dtype
from .line import READ_ONLY
from .reading import describe
from .shape import Shape, reshape_codes


class NDArray(Array):
    """An asynchronous array by MXNet 1.x's rules.  Make one with `vardag.nd.array`, `zeros`, ... or an operator.

    >>> from vardag import nd
    >>> (nd.ones((2, 2)) * 3).asnumpy()
    array([[3., 3.],
           [3., 3.]], dtype=float32)
    """

    __slots__ = ()
    _ops: ClassVar[Any] = nd_face
    _zero_d: ClassVar[Shape] = (1,)
    _float_indices: ClassVar[bool] = True

    @property
    def dtype(self) -> type[np.generic]:
        """Element type, as a NumPy scalar type."""
        return self._dtype.type

    @property
    def stype(self) -> str:
        """Storage type: always "default" (dense)."""
        return "default"

    @property
    def T(self) -> NDArray:
        """The axes in reverse order: a copy."""
        return self._ops.transpose(self)  # type: ignore[no-any-return]

    def asscalar(self) -> Any:
        """The only element as a NumPy scalar.  Sync: blocks.   Raises: ArgumentError if there is not exactly one."""
        return self._scalar()

    def reshape(self, *shape: Any, reverse: bool = False, **kwargs: Any) -> Self:
        """The same elements in another shape: a view when the elements are contiguous, else of a copy.

        0 copies a dimension, -1 infers one, -2 copies the rest, -3 merges two, -4 splits one into the two sizes behind
        it; `reverse` reads both shapes from the right.  Never blocks; ArgumentError at the call.

        >>> from vardag import nd
        >>> nd.zeros((2, 3, 4)).reshape((0, -1)).shape
        (2, 12)
        """
        if "shape" in kwargs:
            shape = (kwargs.pop("shape"),)
        if kwargs:
            raise ArgumentTypeError(f"[reshape] unknown argument {next(iter(kwargs))!r}")
        codes = shape[0] if len(shape) == 1 and not hasattr(shape[0], "__index__") else shape
        return self._reshaped(reshape_codes(self._shape, tuple(int(n.__index__()) for n in codes), reverse=reverse))

    def at(self, idx: int) -> NDArray:
        """``self[idx]``: a view of one row."""
        return self[idx]

    _at = at

    def slice_assign(self, rhs: Any, begin: Any, end: Any, step: Any = None) -> NDArray:
        """Assign to the region that begin, end and step name on the leading axes; gives the array itself."""
        steps = step if step is not None else (None,) * len(begin)
        self[tuple(slice(*limits) for limits in zip(begin, end, steps, strict=True))] = rhs
        return self

    def slice_assign_scalar(self, value: Any, begin: Any, end: Any, step: Any = None) -> NDArray:
        """`slice_assign` of a number."""
        return self.slice_assign(value, begin, end, step)

    @property
    def writable(self) -> bool:
        """Whether writes are accepted: not by an input of ``Function.forward``."""
        return self._line is not READ_ONLY

    def as_nd_ndarray(self) -> NDArray:
        """The array itself."""
        return self

    def expand_dims(self, axis: int, inplace: bool = False) -> NDArray:
        """A copy (a view with `inplace`) with a new axis of length 1."""
        if not inplace:
            return self._ops.expand_dims(self, axis=axis)  # type: ignore[no-any-return]
        if not -self.ndim - 1 <= axis <= self.ndim:
            raise ArgumentError(f"[expand_dims] {describe(self)}: axis {axis} is out of range")
        at = axis % (self.ndim + 1)
        return self[(slice(None),) * at + (None,)]

    def flatten(self, inplace: bool = False) -> NDArray:
        """A copy (a view with `inplace`) of shape (first axis, the rest)."""
        return self.reshape((0, -1)) if inplace else self._ops.flatten(self)

    def squeeze(self, axis: Any = None, inplace: bool = False) -> NDArray:
        """A copy (a view with `inplace`) without the axes of length 1."""
        result: NDArray = self._ops.squeeze(self, axis=axis)
        return self.reshape(result.shape) if inplace else result

    def __repr__(self) -> str:
        shape = "x".join(map(str, self._shape))
        return f"\n{self.asnumpy()}\n<NDArray {shape} @{self.context}>"


def array(source: Any, ctx: Context | None = None, dtype: Any = None) -> NDArray:
    """An array with a copy of host data or of another array.

    Parameters
    ----------
    source : array, NumPy array, scalar or nested sequences, of any shape
        Read at the call; later changes to it don't show.
    ctx : Context
        Default: the current context.
    dtype : str, type or NumPy dtype
        Default: float32; for an array of this library its own.

    Never blocks, save to read a source that is an array of this library nested in a sequence.
    Raises: ArgumentError, ArgumentTypeError at the call.

    >>> from vardag import nd
    >>> nd.array([[1, 2], [3, 4]], dtype="int32").shape
    (2, 2)
    """
    if isinstance(source, Array):
        wanted = as_dtype(dtype, source._dtype)
        same = source if ctx is None else source.as_in_context(ctx)
        return nd_face.cast(same, dtype=wanted)  # type: ignore[no-any-return]
    wanted = as_dtype(dtype, FLOAT32)
    try:
        with np.errstate(all="ignore"):
            raw: RawArray = np.array(source).astype(wanted, order="C", copy=True)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"[array] cannot make an array of {type(source).__name__}: {error}") from None
    place = place_of(_engine.current(), as_context(ctx))
    if isinstance(place.device, Pinned):
        new = NDArray._fresh(place, raw.shape, raw.dtype)
        new._chunk.buffer.view(raw.shape)[...] = raw
        return new
    return NDArray._young(place, raw)


def empty(shape: Any, ctx: Context | None = None, dtype: Any = None) -> NDArray:
    """An array whose bytes are arbitrary until someone writes them.  Never blocks.

    >>> from vardag import nd
    >>> nd.empty((2, 3)).shape
    (2, 3)
    """
    return array_room.empty(NDArray, shape, dtype, ctx)


def waitall(timeout: float | None = None) -> None:
    """Wait until all operations pushed before this call have finished, on devices too.

    Sync: blocks.   Raises: an exception group with every error that nobody has seen yet; EngineTimeout after `timeout`
    seconds.
    """
    engine = _engine.current()
    engine.wait_for_all(timeout)
    for device in devices_in_use():
        device.wait_quiet(engine, timeout)
