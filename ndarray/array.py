"""`Array`: a view of a chunk, with NumPy's semantics.  `NDArray` (ndarray.py) puts MXNet's rules on top.

An array has a geometry (shape, strides, offset) over a chunk whose current buffer holds, or will hold, the bytes.  A
*young* array is only a value yet, a raw array that nobody writes: it gets its chunk when somebody asks for that.  The
tape keeps the values of small ones as they are, so the chunk of a small array is made of a copy.
Shape and dtype are known at once; the bytes exist when the engine has run what was pushed.  Nothing here waits except
what reading.py adds.  An array may be used, written and waited for by any thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from .. import engine as _engine
from ..engine import ArgumentError, ArgumentTypeError, Pending, Variable
from ._late import autograd, indexing, numpy_face
from .buffer import Admission, Buffer, Chunk, Saved, Writing, share
from .context import Context, as_context
from .copies import Copies
from .device import Place, RawArray, place_of
from .dtype import DType, as_dtype
from .indexing import basic_index, is_whole, refusal
from .lent import Lent
from .line import DETACHED, READ_ONLY, Line, line_of, scope
from .memory import KEPT, SMALL, follow
from .reading import describe
from .shape import Shape, Strides, as_shape, c_strides, contiguous, extent, literal_shape
from .transfer import upload

A = TypeVar("A", bound="Array")


class Array(Copies):
    """An asynchronous array: shape and dtype now, bytes when they are needed.

    Make one with `vardag.nd.array`, `zeros`, ... or with an operator.  Python's operators follow NumPy's rules.
    """

    __slots__ = (
        "__weakref__", "_chunk", "_derived", "_line", "_logical", "_offset", "_place", "_raw", "_shape", "_strides",
    )  # fmt: skip
    __array_priority__ = 1000.0
    _ops: ClassVar[Any] = numpy_face
    #: the shape of what NumPy would return as a scalar
    _zero_d: ClassVar[Shape] = ()
    #: whether floats may be indices
    _float_indices: ClassVar[bool] = False

    _chunk: Chunk  # a young array gets it when it is first asked for
    _place: Place
    _raw: RawArray | None  # the value of a young array; None says that the chunk has it
    _shape: Shape
    _strides: Strides  # None: C order
    _offset: int
    _line: Any  # a Line, or None: the chunk's.  A young array's may be a node of the tape: see line.line_of
    _derived: tuple[Any, Any] | None  # (entry of the line, the entry of this view derived from it)
    _logical: bool  # truth values, whatever the dtype: as an index it is a mask

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ArgumentTypeError(f"[{type(self).__name__}] make arrays with vardag.nd.array, zeros, ...")

    # ---- making ----------------------------------------------------------------------------------------------------

    @classmethod
    def _over(cls, chunk: Chunk, shape: Shape, strides: Strides = None, offset: int = 0) -> Self:
        """An array of this geometry over a chunk, on the chunk's line."""
        new = object.__new__(cls)
        new._chunk, new._place, new._raw = chunk, chunk.place, None
        new._shape, new._strides, new._offset = shape, strides, offset
        new._line = new._derived = None
        new._logical = False
        return new

    @classmethod
    def _fresh(cls, place: Place, shape: Shape, dtype: DType) -> Self:
        """An array with a variable of its own and no memory yet."""
        return cls._over(Chunk(Buffer(place.engine, shape, dtype, place.device), place), shape)

    @classmethod
    def _young(cls, place: Place, raw: RawArray) -> Self:
        """An array whose value is `raw`: C-ordered, and nobody else's from now on."""
        if place.queued:
            new = cls._fresh(place, raw.shape, raw.dtype)
            upload(place, raw, new)
            return new
        new = object.__new__(cls)
        new._raw, new._place, new._shape = raw, place, raw.shape
        new._strides, new._offset = None, 0
        new._line = new._derived = None
        new._logical = False
        if raw.nbytes >= SMALL:
            follow(raw)
        return new

    @classmethod
    def _from_host(cls, raw: RawArray, context: Context | None = None) -> Self:
        """As `_young`, on the current engine."""
        return cls._young(place_of(_engine.current(), as_context(context)), raw)

    def _grow(self) -> Chunk:
        """A young array's chunk.  From then on the chunk's memory may be written: see `writable`."""
        place = self._place

        def plan() -> Admission:
            raw = self._raw
            if raw is None:  # another thread, or a finalizer, was here
                return None, (), (), (), [], [], False
            chunk = Chunk(Buffer(place.engine, self._shape, raw.dtype, place.device, writable(raw)), place)
            chunk.line = line_of(self._shape, self._line)
            steps = [(setattr, self, "_chunk", chunk), (setattr, self, "_line", None), (setattr, self, "_raw", None)]
            return None, (), (), (), steps, [self._line], False

        place.engine.admit(plan)
        return self._chunk

    def _view(self, shape: Shape, strides: Strides, offset: int) -> Self:
        """Another geometry over the same chunk.  It shares the line, except under autograd.pause()."""
        new = self._over(self._chunk, shape, strides, offset)
        new._line = DETACHED if scope.get().paused and self._line is not READ_ONLY else self._line
        new._logical = self._logical
        return new

    @classmethod
    def _from_copy(cls, place: Place, raw: RawArray, entry: Any) -> Self:
        """An array with the value that the tape keeps as a copy, with that entry."""
        new = cls._young(place, raw.copy())
        new._line = Line(new._shape, None, 0, entry)
        return new

    @classmethod
    def _from_saved(cls, saved: Saved, node: Any) -> Self:
        """An array over the buffer of a value that `node` saved: they share it until one of them writes."""
        entry = (node, saved.entry) if type(saved.entry) is int else saved.entry
        chunk = Chunk(saved.buffer, saved.place)
        new = cls._over(chunk, saved.shape, saved.strides, saved.offset)
        owner = saved.owner()
        engine = saved.buffer.engine

        def plan() -> Admission:
            keep: list[Any] = [chunk.buffer]
            chunk.buffer, new._offset = saved.buffer, saved.offset  # private until the commit
            others = [owner] if owner is not None and owner.buffer is saved.buffer else []
            return None, (), (), (), share(saved.buffer, [chunk, *others], keep), keep, False

        engine.admit(plan)
        chunk.line = Line(new._shape, new._strides, new._offset, entry)
        return new

    def _covers_chunk(self) -> bool:
        return self._raw is not None or math.prod(self._shape) == self._chunk.buffer.size

    # ---- metadata: never blocks ------------------------------------------------------------------------------------

    @property
    def shape(self) -> Shape:
        """Length of each axis."""
        return self._shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self._shape)

    @property
    def dtype(self) -> Any:
        """Element type: a NumPy dtype (in the nd face, as in MXNet, the NumPy scalar type)."""
        return self._dtype

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self._dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.itemsize

    @property
    def context(self) -> Context:
        """The context that the array lives on."""
        return self._place.context

    ctx = context
    device = context

    @property
    def version(self) -> int:
        """How many writes have been pushed to the memory that this array is a view of, in program order."""
        return 0 if self._raw is not None else self._chunk.version

    @property
    def var(self) -> Variable:
        """The engine variable of the current version; valid until the next write, which may take another."""
        buffer = self._chunk.buffer
        buffer.pinned = True
        return buffer.variable

    @property
    def _meta(self) -> tuple[Shape, DType]:
        raw = self._raw
        return self._shape, self._chunk.buffer.dtype if raw is None else raw.dtype

    # ---- views -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        if not self._shape:
            raise ArgumentTypeError(f"[len] {describe(self)}: an array without axes has no length")
        return self._shape[0]

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Self:
        """``x[key]``: with integers, slices, ``...`` and None a view, with masks or arrays of indices too a copy.

        Sync: blocks only for a mask that is an array of the library, since the shape depends on it.
        Raises: ArrayIndexError at the call; indices that are arrays of the library are checked when it runs.
        Gradient: added up where an element is chosen several times.

        >>> from vardag import nd
        >>> x = nd.array([[1, 2], [3, 4]])
        >>> x[x > 1].asnumpy(), x[[1, 1], 0].asnumpy()
        (array([2., 3., 4.], dtype=float32), array([3., 3.], dtype=float32))
        """
        view = self._region(key)
        return indexing.read(self, key) if view is None else view

    def _region(self, key: Any) -> Self | None:
        """The view that a basic key names; None for another key."""
        try:
            found = basic_index(self._shape, self._strides, self._offset, key)
        except IndexError as error:
            raise refusal(self, key, error) from None
        return None if found is None else self._view(found[0] or self._zero_d, *found[1:])

    def __setitem__(self, key: Any, value: Any) -> None:
        """``x[key] = value``: an array, a host array (copied at the call) or a scalar, broadcast and cast.

        Of an element named several times the last value stays.

        Sync: blocks only for a mask of the library beside other arrays in the key.
        Raises: ArrayIndexError, ArgumentError at the call; indices of the library are checked when it runs.
        Gradient: flows to the values that stay, and to the old value outside of the region.
        """
        target = self if is_whole(key) else self._region(key)
        if target is None:
            indexing.write(self, key, value)
        else:
            self._ops.assign(value, out=target)

    def reshape(self, *shape: Any) -> Self:
        """The same elements in another shape, one size of which may be -1.

        A view when the elements are contiguous, else of a copy.  Never blocks; ArgumentError at the call.
        """
        return self._reshaped(literal_shape(self._shape, shape[0] if len(shape) == 1 else shape))

    def _reshaped(self, new: Shape) -> Self:
        base = self if self._strides is None else self._ops.compact(self)
        return base._view(new, None, base._offset)

    def _transposed(self, axes: Shape) -> Self:
        strides = c_strides(self._shape) if self._strides is None else self._strides
        shape, strides = tuple(self._shape[a] for a in axes), tuple(strides[a] for a in axes)
        return self._view(shape, None if contiguous(shape, strides) else strides, self._offset)

    @property
    def T(self) -> Self:
        """The axes in reverse order: a view (in the nd face a copy)."""
        return self._transposed(tuple(range(self.ndim))[::-1])

    def detach(self) -> Self:
        """The same memory without the tape: a constant to autograd.  Writes through it change bytes only."""
        new = self._over(self._chunk, self._shape, self._strides, self._offset)
        new._line = READ_ONLY if self._line is READ_ONLY else DETACHED
        new._logical = self._logical
        return new

    def __vardag_resolve__(self, mode: str, keep: list[Any]) -> tuple[Variable, str, Any, list[Any], Any]:
        """What ``engine.push(fn, reads=, writes=, updates=)`` asks of an array, under the order lock.

        Gives (variable, mode, memory, steps, first): a view of a part is updated where it is to be written; `memory()`
        is a view of the bytes, read-only in mode "read", for when the operation runs: NumPy's, or the device's array;
        `first` is an admission to be committed before (a copy-on-write), or None.
        """
        buffer, geometry = self._chunk.buffer, (self._shape, self._strides, self._offset)
        steps: list[Any] = []
        if mode != "read":
            if self._tape_line is READ_ONLY:
                raise ArgumentError(f"[push] {describe(self)}: an input of Function.forward is read-only")
            whole = mode == "write" and self._covers_chunk()
            writing = Writing(self._chunk, *self._range(), replace=whole, rename=False, keep=keep)
            if writing.first is not None:
                return buffer.variable, mode, None, steps, writing.first
            buffer, steps, mode = writing.buffer, writing.steps, "write" if whole else "update"

        if self._chunk.place.queued:
            return buffer.variable, mode, Lent(buffer, geometry, mode), steps, None

        def memory() -> RawArray:
            raw = buffer.view(*geometry)
            if mode == "read":
                raw = raw.view()
                raw.flags.writeable = False
            return raw

        return buffer.variable, mode, memory, steps, None

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.asnumpy(), self.context.device_type, self.context.device_id)

    def __copy__(self) -> Self:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Self:
        return self.copy()

    # ---- autograd --------------------------------------------------------------------------------------------------

    def attach_grad(self, grad_req: str = "write", stype: str | None = None) -> None:
        """Mark the array: `backward` puts the gradient with respect to it into `self.grad`, which starts as zeros.

        `grad_req`: "write" replaces the old gradient, "add" adds to it, "null" computes none.  `stype`: that of the
        gradient, "default" or "row_sparse".  An array that was on the tape is cut from it.  Never blocks; ArgumentError
        at the call.
        """
        autograd.attach_grad(self, grad_req, stype)

    @property
    def grad(self) -> Self | None:
        """The gradient array of a marked array, the same object every time; None for others."""
        line = None if self._raw is not None else self._tape_line
        if line is None or line.gradient is None or not self._is_root(line):
            return None
        return line.gradient  # type: ignore[no-any-return]

    def zero_grad(self) -> None:
        """Set the gradient to zeros."""
        grad = self.grad
        if grad is not None:
            grad[:] = 0

    def backward(
        self,
        out_grad: Array | None = None,
        retain_graph: bool = False,
        train_mode: bool = True,
        wait: bool = True,
    ) -> Pending | None:
        """Gradients of this array's sum (or weighted by `out_grad`) with respect to all marked arrays it was made from.

        Pushes the gradient operations and, with `wait`, blocks until they are done; without, gives what to await.
        """
        given = None if out_grad is None else [out_grad]
        return autograd.backward([self], given, retain_graph, train_mode, wait=wait)  # type: ignore[no-any-return]

    @property
    def _tape_line(self) -> Line | None:
        """The line that the array is on."""
        line: Line | None = self._line
        if type(line) is Line or (line is None and self._raw is not None):
            return line
        return self._chunk.line

    def _is_root(self, line: Line) -> bool:
        return (self._shape, self._strides, self._offset) == (line.shape, line.strides, line.offset)

    def _range(self) -> tuple[int, int]:
        return extent(self._shape, self._strides, self._offset)

    # ---- Python's operators ----------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Operators as methods: ``x.exp()``, ``x.sum(axis=0)``; and what a young array has not got yet."""
        if name == "_chunk":
            return self._grow()
        method = self._ops.methods.get(name) if not name.startswith("_") else None
        if method is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return method.__get__(self)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._ops.methods]

    def __neg__(self) -> Self:
        return self._ops.negative(self)  # type: ignore[no-any-return]

    def __pos__(self) -> Self:
        return self.copy()

    def __abs__(self) -> Self:
        return self._ops.abs(self)  # type: ignore[no-any-return]

    def __contains__(self, value: Any) -> bool:
        return bool((self.asnumpy() == value).any())

    __hash__ = object.__hash__


def writable(raw: RawArray) -> RawArray:
    """A young array's value as a chunk's memory: a copy of a small one, for the tape may keep that itself."""
    if raw.size >= KEPT:
        return raw
    copy = raw.copy()
    if copy.nbytes >= SMALL:
        follow(copy)
    return copy


def _rebuild(cls: type[A], raw: RawArray, device_type: str, device_id: int) -> A:
    return cls._from_host(np.array(raw, order="C"), Context(device_type, device_id))


def empty(cls: type[A], shape: Any, dtype: Any, ctx: Context | None) -> A:
    """An array of this class whose bytes are arbitrary until someone writes them."""
    return cls._fresh(place_of(_engine.current(), as_context(ctx)), as_shape(shape), as_dtype(dtype))
