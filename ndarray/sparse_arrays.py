"""Sparse arrays: `RowSparseNDArray`, of which a few rows are stored, and `CSRNDArray`, in compressed sparse rows.

A sparse array is a name for a few dense arrays, its *parts*: `data`, `indices` and, for csr, `indptr`.  Nobody else has
the parts and nobody writes them; a write to the sparse array gives it other parts.  So whatever was pushed before goes
on with the old ones, and errors, gradients and waits are those of the parts.

How many elements are stored is a matter of values, and shapes are known at once: an operator that has to find its
result's *structure* (the indices) waits for the structure of its operands, or for the values of a dense one.  This is
the one exception to the rule that a call never blocks.  What keeps the structure, or gives a dense array, never waits.
"""

from __future__ import annotations

import math
from collections.abc import Coroutine, Generator, Iterator
from typing import Any, ClassVar, Self

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError, Operation, Pending
from ._late import nd_face
from .array import Array
from .context import Context
from .device import RawArray
from .dtype import DType, as_dtype
from .indexing import ArrayIndexError
from .ndarray import NDArray
from .reading import describe
from .shape import Shape

#: the operators behind Python's
_OPERATORS = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "mod": "mod", "pow": "power"}
_COMPARISONS = {"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
                "ge": "greater_equal"}  # fmt: skip


class BaseSparseNDArray:
    """What both kinds of sparse array have.  Make one with `vardag.nd.sparse`, or by ``dense.tostype(...)``.

    Shape, dtype and context are known at once.  Operators without a sparse form take the dense value instead.
    """

    __slots__ = ("__weakref__", "_parts", "_shape")
    __array_priority__ = 1000.0
    __array_ufunc__ = None  # NumPy operands leave the operator to this class
    #: "row_sparse" or "csr"
    stype: ClassVar[str]
    _logical: ClassVar[bool] = False  # never a mask

    _parts: tuple[NDArray, ...]  # data, indices, and indptr if there is one
    _shape: Shape

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ArgumentTypeError(f"[{type(self).__name__}] make sparse arrays with vardag.nd.sparse, or by tostype")

    @classmethod
    def _of(cls, shape: Shape, *parts: Array) -> Self:
        """An array of these parts, whose structure is known to be right."""
        new = object.__new__(cls)
        new._shape, new._parts = shape, tuple(nd_parts(parts))
        return new

    def _like(self, data: Array) -> Self:
        """The same structure with other values."""
        return self._of(self._shape, data, *self._parts[1:])

    def _structure(self) -> tuple[RawArray, ...]:
        """The values of the parts behind `data`: waits for them."""
        return tuple(part.asnumpy() for part in self._parts[1:])

    def _set(self, value: Any) -> None:
        """Take over the value of an array of this shape, sparse or dense, cast to this dtype."""
        if value.shape != self._shape:
            raise ArgumentError(f"[assign] {self._words}, value {describe(value)}: the same shape expected")
        cast = nd_face.cast_storage(value, stype=self.stype)
        self._parts = cast.astype(self._dtype, copy=False)._parts

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
        """Number of elements, stored or not."""
        return math.prod(self._shape)

    @property
    def dtype(self) -> type[np.generic]:
        """Element type, as a NumPy scalar type."""
        return self._dtype.type

    @property
    def _dtype(self) -> DType:
        return self._parts[0]._dtype

    @property
    def context(self) -> Context:
        """The context that the parts live on."""
        return self._parts[0].context

    ctx = context

    @property
    def _words(self) -> str:
        return f"{self.stype} {self._dtype}{self._shape}"

    def __len__(self) -> int:
        return self._shape[0]

    def __repr__(self) -> str:
        """The kind, the shape and the context; never the values, so it never blocks."""
        return f"\n<{type(self).__name__} {'x'.join(map(str, self._shape))} @{self.context}>"

    @property
    def T(self) -> NDArray:
        """The axes in reverse order: a dense copy."""
        return nd_face.transpose(self)  # type: ignore[no-any-return]

    # ---- parts -----------------------------------------------------------------------------------------------------

    @property
    def data(self) -> NDArray:
        """A copy of the stored values; for row_sparse one row each.  Never blocks; the tape follows it."""
        return self._parts[0].copy()

    @property
    def indices(self) -> NDArray:
        """A copy of the int64 indices of what is stored, ascending: of rows, or in csr of columns within each row."""
        return self._parts[1].copy()

    def check_format(self, full_check: bool = True) -> None:
        """Check the structure: its shapes, and with `full_check` every index.  Sync: the full check blocks.

        Raises: ArgumentError with what is wrong.  No array that the library has made has a wrong structure.
        """
        now = self.copy()
        if full_check and (why := self._fault(self._shape, now._parts[0].shape, *now._structure())) is not None:
            raise ArgumentError(f"[check_format] {self._words}: {why}")

    @classmethod
    def _fault(cls, shape: Shape, data: Shape, *structure: RawArray) -> str | None:
        """What is wrong with this structure, for data of this shape; None if nothing is."""
        raise NotImplementedError

    # ---- waiting ---------------------------------------------------------------------------------------------------

    def wait_to_read(self, timeout: float | None = None) -> None:
        """Wait until all parts are there.  Sync: blocks.   Raises: as an NDArray's."""
        for part in self._parts:
            part.wait_to_read(timeout)

    def __await__(self) -> Generator[Any, Any, Self]:
        """``await x``: the array itself, when all parts as of this moment are there.   Raises: as an NDArray's."""
        yield from Pending(self._writers()).__await__()
        return self

    def _writers(self) -> list[Operation | None]:
        return [writer for part in self._parts for writer in part._writers()]

    def asnumpy_async(self) -> Coroutine[Any, Any, RawArray]:
        """As `asnumpy`, to be awaited; the value is the one as of this call."""
        return self.tostype("default").asnumpy_async()  # type: ignore[no-any-return]

    def wait_to_write(self, timeout: float | None = None) -> None:
        """Nothing to wait for: a write takes other parts.  Never blocks."""

    def asnumpy(self, timeout: float | None = None) -> RawArray:
        """The dense value in a NumPy array.  Sync: blocks.   Raises: as an NDArray's."""
        return self.tostype("default").asnumpy(timeout)  # type: ignore[no-any-return]

    def asscalar(self) -> Any:
        """The only element as a NumPy scalar.  Sync: blocks.   Raises: ArgumentError if there is not exactly one."""
        return self.tostype("default").asscalar()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> RawArray:
        return self.tostype("default").__array__(dtype, copy)  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        return bool(self.tostype("default"))

    # ---- copies ----------------------------------------------------------------------------------------------------

    def tostype(self, stype: str) -> Any:
        """A copy of another storage type: "default" (dense), or this one.  Never blocks.

        Raises: ArgumentError at the call, for another sparse type (by way of "default" it can be had).
        """
        return nd_face.cast_storage(self, stype=stype)

    def copy(self) -> Self:
        """A copy.  Never blocks.  (Of one moment: another thread may give the array other parts.)"""
        return self._of(self._shape, *self._parts)

    __copy__ = copy

    def __deepcopy__(self, memo: Any) -> Self:
        return self.copy()

    def astype(self, dtype: Any, copy: bool = True) -> Self:
        """A copy with another dtype, by C's conversion (self, if the dtype is this one and `copy` is false)."""
        if not copy and as_dtype(dtype) == self._dtype:
            return self
        return nd_face.cast(self, dtype=dtype)  # type: ignore[no-any-return]

    def copyto(self, other: Any) -> Any:
        """Copy into an array of the same shape, dense or of this type, or to a new array on a context.

        Cast to the other's dtype.  Never blocks; ArgumentError at the call.
        """
        if isinstance(other, Context):
            return self._of(self._shape, *(part.copyto(other) for part in self._parts))
        if other is self:
            raise ArgumentError(f"[copyto] {self._words}: cannot copy an array onto itself")
        if isinstance(other, BaseSparseNDArray):
            other._set(self)
        elif isinstance(other, Array):
            self.tostype("default").copyto(other)
        else:
            raise ArgumentTypeError(f"[copyto] {other!r}: an array or a Context expected")
        return other

    def as_in_context(self, context: Context) -> Self:
        """The array on that context: itself if it is there, else a copy."""
        return self if context == self.context else self.copyto(context)

    def detach(self) -> Self:
        """The same value without the tape."""
        return self._of(self._shape, *(part.detach() for part in self._parts))

    def __setitem__(self, key: Any, value: Any) -> None:
        """``x[:] = value``: an array of this shape, or for row_sparse a number.  Other keys: ArrayIndexError.

        Never blocks for a value of the same storage type.
        """
        if not (isinstance(key, slice) and key == slice(None)):
            raise ArrayIndexError(f"[assign] {self._words}: only [:] can be assigned to")
        if value is self:
            return
        if isinstance(value, bool | int | float | np.generic):
            make, more = (nd_face.full, {"val": value}) if value else (nd_face.zeros, {"stype": self.stype})
            value = make(shape=self._shape, dtype=self._dtype, ctx=self.context, **more)
        elif not isinstance(value, Array | BaseSparseNDArray):
            raw = np.array(value)
            value = NDArray._from_host(raw.astype(as_dtype(None, self._dtype), order="C"), self.context)
        self._set(value)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        raise NotImplementedError

    # ---- operators -------------------------------------------------------------------------------------------------

    def __neg__(self) -> Self:
        return nd_face.negative(self)  # type: ignore[no-any-return]

    def __abs__(self) -> Self:
        return nd_face.abs(self)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        """Operators as methods: ``x.sum(axis=0)``, ``x.sqrt()``."""
        method = None if name.startswith("_") else nd_face.methods.get(name)
        if method is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return method.__get__(self)

    __hash__ = object.__hash__


def _bind() -> None:
    """Python's operators, by those of the nd face."""

    def forward(name: str) -> Any:
        def method(self: BaseSparseNDArray, other: Any) -> Any:
            return getattr(nd_face, name)(self, other)

        return method

    def reflected(name: str) -> Any:
        def method(self: BaseSparseNDArray, other: Any) -> Any:
            return getattr(nd_face, name)(other, self)

        return method

    def in_place(name: str) -> Any:
        def method(self: BaseSparseNDArray, other: Any) -> BaseSparseNDArray:
            self._set(getattr(nd_face, name)(self, other))
            return self

        return method

    for method, name in _OPERATORS.items():
        setattr(BaseSparseNDArray, f"__{method}__", forward(name))
        setattr(BaseSparseNDArray, f"__r{method}__", reflected(name))
        setattr(BaseSparseNDArray, f"__i{method}__", in_place(name))
    for method, name in _COMPARISONS.items():
        setattr(BaseSparseNDArray, f"__{method}__", forward(name))


_bind()


class RowSparseNDArray(BaseSparseNDArray):
    """An array of which only the rows ``indices`` are stored: ``dense[indices[i]] = data[i]``, the others are 0.

    Shapes: data (n, b...), indices (n,), ascending, for an array of shape (a, b...).  Gradients of tables are such.

    >>> from vardag import nd
    >>> x = nd.sparse.row_sparse_array(([[1, 2], [3, 4]], [0, 2]), shape=(3, 2))
    >>> x.asnumpy()
    array([[1., 2.],
           [0., 0.],
           [3., 4.]], dtype=float32)
    """

    __slots__ = ()
    stype = "row_sparse"

    @classmethod
    def _fault(cls, shape: Shape, data: Shape, *structure: RawArray) -> str | None:
        (rows,) = structure
        if not shape or rows.ndim != 1 or data != (*rows.shape, *shape[1:]):
            return f"data {data} and indices {rows.shape}: (n, {', '.join(map(str, shape[1:]))}) and (n,) expected"
        return fault_in(rows, shape[0], "rows")

    def retain(self, indices: Any) -> RowSparseNDArray:
        """The rows of these indices alone, stored even if they are 0.  Sync: blocks for the indices of both."""
        return nd_face.sparse_retain(self, indices)  # type: ignore[no-any-return]

    def __getitem__(self, key: Any) -> RowSparseNDArray:
        """``x[:]`` is x.  Raises: ArrayIndexError for any other key."""
        if isinstance(key, slice) and key == slice(None):
            return self
        raise ArrayIndexError(f"[getitem] {self._words}: only [:]; tostype('default') can be indexed")


class CSRNDArray(BaseSparseNDArray):
    """A matrix in compressed sparse rows: row i has its values in ``data[indptr[i]:indptr[i + 1]]``.

    Shapes: data (n,), indices (n,), the columns, ascending within a row, indptr (rows + 1,).

    >>> from vardag import nd
    >>> nd.sparse.csr_matrix(([1, 2], [1, 0], [0, 1, 2]), shape=(2, 3)).asnumpy()
    array([[0., 1., 0.],
           [2., 0., 0.]], dtype=float32)
    """

    __slots__ = ()
    stype = "csr"

    @property
    def indptr(self) -> NDArray:
        """A copy of the int64 places where the rows begin and the last one ends."""
        return self._parts[2].copy()

    @classmethod
    def _fault(cls, shape: Shape, data: Shape, *structure: RawArray) -> str | None:
        columns, starts = structure
        if len(shape) != 2 or math.prod(shape) >= 1 << 63:
            return "two axes, and not more than 2**63 elements, expected"
        if columns.ndim != 1 or data != columns.shape or starts.shape != (shape[0] + 1,):
            return (
                f"data {data}, indices {columns.shape}, indptr {starts.shape}: (n,), (n,), ({shape[0] + 1},) expected"
            )
        if starts[0] != 0 or starts[-1] != len(columns) or (starts[1:] < starts[:-1]).any():
            return f"indptr: ascending from 0 to {len(columns)} expected"
        rows = np.repeat(np.arange(shape[0]), np.diff(starts))
        if len(columns) and (columns.min() < 0 or columns.max() >= shape[1]):
            return f"indices: columns from 0 to {shape[1] - 1} expected"
        if ((rows[1:] == rows[:-1]) & (columns[1:] <= columns[:-1])).any():
            return "indices: ascending within each row expected"
        return None

    def asscipy(self) -> Any:
        """A `scipy.sparse.csr_matrix` with a copy of the value.  Sync: blocks."""
        from scipy import sparse

        data, columns, starts = (part.asnumpy() for part in self._parts)
        return sparse.csr_matrix((data, columns, starts), shape=(self._shape[0], self._shape[1]))

    def __getitem__(self, key: Any) -> CSRNDArray:
        """``x[i]`` and ``x[i:j]``: a copy of these rows, of two axes.  Sync: blocks for `indptr`.

        Raises: ArrayIndexError at the call.
        """
        n = self._shape[0]
        if isinstance(key, slice) and key.step in (None, 1):
            begin, end, _ = key.indices(n)
        elif hasattr(key, "__index__") and -n <= (i := int(key.__index__())) < n:
            begin, end = i % n, i % n + 1
        else:
            raise ArrayIndexError(
                f"[getitem] {self._words}: a row from {-n} to {n - 1} or rows [i:j] expected, not {key!r}"
            )
        if (begin, end) == (0, n):
            return self
        data, columns, starts = self._parts
        end = max(begin, end)
        first = starts[begin : end + 1].asnumpy()
        low, high = int(first[0]), int(first[-1])
        begins = NDArray._from_host(first - low, self.context)
        return self._of((end - begin, self._shape[1]), data[low:high].copy(), columns[low:high].copy(), begins)


KINDS: dict[str, type[BaseSparseNDArray]] = {kind.stype: kind for kind in (RowSparseNDArray, CSRNDArray)}


def nd_parts(parts: tuple[Array, ...]) -> Iterator[NDArray]:
    """The same arrays under the nd face."""
    for part in parts:
        if isinstance(part, NDArray):
            yield part
        else:
            new = NDArray._over(part._chunk, part._shape, part._strides, part._offset)
            new._line = part._line
            yield new


def fault_in(indices: RawArray, n: int, what: str) -> str | None:
    """What is wrong with indices that should ascend within an axis of length n; None if nothing is."""
    if len(indices) and (indices[0] < 0 or indices[-1] >= n or (indices[1:] <= indices[:-1]).any()):
        return f"indices: ascending {what} from 0 to {n - 1} expected"
    return None
