"""`vardag.nd.sparse`: sparse arrays, how they are made, and MXNet 1.x's operators for them.

Every name that is not an attribute of this module is an operator of the nd face: ``nd.sparse.dot``, ``nd.sparse.abs``.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError
from ._late import nd_face, numpy_face
from .array import Array
from .context import Context
from .device import RawArray
from .dtype import FLOAT32, INT64, DType, as_dtype
from .ndarray import NDArray
from .ndarray import array as dense_array
from .shape import Shape, as_shape
from .sparse_arrays import KINDS, BaseSparseNDArray, CSRNDArray, RowSparseNDArray

K = TypeVar("K", bound=BaseSparseNDArray)

__all__ = [
    "BaseSparseNDArray",
    "CSRNDArray",
    "RowSparseNDArray",
    "array",
    "csr_matrix",
    "empty",
    "row_sparse_array",
    "zeros",
]


def row_sparse_array(arg1: Any, shape: Any = None, ctx: Context | None = None, dtype: Any = None) -> RowSparseNDArray:
    """A row-sparse array.

    Parameters
    ----------
    arg1 : (data, indices), a shape, or an array
        data: the stored rows, (n, b...); indices: which rows they are, ascending.   A shape: no row is stored.
        An array, dense, nested sequences or row-sparse: the rows that are not 0.
    shape : tuple of int
        Default: as many rows as the indices need.
    dtype : str, type or NumPy dtype
        Default: that of the array or of data; float32 for sequences.

    Sync: blocks for indices, and for a dense array, that the engine has not made yet.
    Raises: ArgumentError, ArgumentTypeError at the call, also for indices that are not ascending or out of range.

    >>> from vardag import nd
    >>> nd.sparse.row_sparse_array(([[1, 2]], [1]), shape=(3, 2)).indices.asnumpy()
    array([1])
    """
    what = "row_sparse_array"
    if _is_shape(arg1):
        return _nothing(RowSparseNDArray, what, arg1, ctx, dtype)
    if not isinstance(arg1, tuple):
        return _cast(what, arg1, RowSparseNDArray, shape, ctx, dtype)
    if len(arg1) != 2:
        raise ArgumentTypeError(f"[{what}] a tuple of {len(arg1)}: (data, indices) or a shape expected")
    data, rows = _dense(arg1[0], ctx, dtype), _whole(what, arg1[1])
    if not data.ndim:
        raise ArgumentError(f"[{what}] data of shape {data.shape}: one row for each index expected")
    if shape is None:
        shape = (int(rows.max(initial=-1)) + 1, *data.shape[1:])
    return _checked(RowSparseNDArray, what, as_shape(shape), data, rows)


def csr_matrix(arg1: Any, shape: Any = None, ctx: Context | None = None, dtype: Any = None) -> CSRNDArray:
    """A matrix in compressed sparse rows.

    Parameters
    ----------
    arg1 : (data, indices, indptr), (data, (row, col)), a shape, or a matrix
        indices: the columns, ascending within a row; indptr: where each row begins, and the end.   row, col: the place
        of each value, in any order; values of one place are added up.   A shape: nothing is stored.   A matrix, dense,
        nested sequences, csr or of SciPy: the elements that are not 0.
    shape : tuple of int
        Default: the smallest that the indices fit in.
    dtype : str, type or NumPy dtype
        Default: that of the array or of data; float32 for sequences.

    Sync: blocks for indices, and for a dense array, that the engine has not made yet.
    Raises: ArgumentError, ArgumentTypeError at the call, also for indices that are not ascending or out of range.

    >>> from vardag import nd
    >>> nd.sparse.csr_matrix(([5, 6], ([1, 0], [0, 2])), shape=(2, 3)).asnumpy()
    array([[0., 0., 6.],
           [5., 0., 0.]], dtype=float32)
    """
    what = "csr_matrix"
    if _is_shape(arg1):
        return _nothing(CSRNDArray, what, arg1, ctx, dtype)
    if hasattr(arg1, "tocsr"):
        found = arg1.tocsr(copy=True)
        found.sum_duplicates()
        shape = found.shape if shape is None else shape
        arg1 = found.data, found.indices, found.indptr
    if not isinstance(arg1, tuple):
        return _cast(what, arg1, CSRNDArray, shape, ctx, dtype)
    if len(arg1) == 2 and isinstance(arg1[1], tuple | list) and len(arg1[1]) == 2:
        return _by_places(what, arg1[0], arg1[1], shape, ctx, dtype)
    if len(arg1) != 3:
        raise ArgumentTypeError(
            f"[{what}] a tuple of {len(arg1)}: (data, indices, indptr) or (data, (row, col)) expected"
        )
    data, columns, starts = _dense(arg1[0], ctx, dtype), _whole(what, arg1[1]), _whole(what, arg1[2])
    if shape is None:
        shape = (max(len(starts) - 1, 0), int(columns.max(initial=-1)) + 1)
    return _checked(CSRNDArray, what, as_shape(shape), data, columns, starts)


def _by_places(what: str, values: Any, places: Any, shape: Any, ctx: Context | None, dtype: Any) -> CSRNDArray:
    data, (rows, columns) = _dense(values, ctx, dtype), [_whole(what, place) for place in places]
    if not data.shape == rows.shape == columns.shape or rows.ndim != 1:
        raise ArgumentError(f"[{what}] data {data.shape}, row {rows.shape}, col {columns.shape}: (n,) expected")
    if shape is None:
        shape = (int(rows.max(initial=-1)) + 1, int(columns.max(initial=-1)) + 1)
    m, n = found = as_shape(shape)
    if len(rows) and (min(rows.min(), columns.min()) < 0 or rows.max() >= m or columns.max() >= n):
        raise ArgumentError(f"[{what}] row and col: places within {found} expected")
    kept, where = np.unique(rows * n + columns, return_inverse=True)
    data = numpy_face.add_rows(data, where, shape=kept.shape, axis=0)
    return _checked(CSRNDArray, what, found, data, kept % max(n, 1), starts_of(kept // max(n, 1), m))


def starts_of(rows: RawArray, count: int) -> RawArray:
    """The `indptr` of elements whose rows are these, ascending."""
    return np.concatenate(([0], np.cumsum(np.bincount(rows, minlength=count)))).astype(np.int64)


def zeros(stype: str, shape: Any, ctx: Context | None = None, dtype: Any = None) -> Any:
    """Zeros of a storage type: "row_sparse", "csr" or "default".  Never blocks; ArgumentError at the call.

    >>> from vardag import nd
    >>> nd.sparse.zeros("csr", (2, 3)).data.shape
    (0,)
    """
    if stype == "default":
        return nd_face.zeros(shape=shape, ctx=ctx, dtype=dtype)
    return _nothing(_kind("zeros", stype), "zeros", shape, ctx, dtype)


def empty(stype: str, shape: Any, ctx: Context | None = None, dtype: Any = None) -> Any:
    """As `zeros`, of "row_sparse" or "csr": nothing is stored."""
    _kind("empty", stype)
    return zeros(stype, shape, ctx, dtype)


def array(source_array: Any, ctx: Context | None = None, dtype: Any = None) -> BaseSparseNDArray:
    """A copy of a sparse array of this library or of SciPy's.  Never blocks.

    Raises: ArgumentTypeError at the call for a dense one: use its tostype.
    """
    if isinstance(source_array, BaseSparseNDArray):
        return _cast("array", source_array, type(source_array), None, ctx, dtype)
    if hasattr(source_array, "tocsr"):
        return csr_matrix(source_array, ctx=ctx, dtype=dtype)
    raise ArgumentTypeError(f"[array] {type(source_array).__name__}: a sparse array expected; of a dense one, tostype")


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(nd_face, "sparse_retain" if name == "retain" else name)


# ---- arguments -------------------------------------------------------------------------------------------------------


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(n, int | np.integer) for n in value)


def _kind(what: str, stype: Any) -> type[BaseSparseNDArray]:
    if stype not in KINDS:
        raise ArgumentError(f"[{what}] stype {stype!r}: one of {', '.join(KINDS)} expected")
    return KINDS[stype]


def _nothing(kind: type[K], what: str, shape: Any, ctx: Context | None, dtype: Any) -> K:
    """An array that stores nothing."""
    shape, none = as_shape(shape), np.empty(0, np.int64)
    if kind.stype == "csr":
        starts = np.zeros((shape or (0,))[0] + 1, np.int64)
        return _checked(kind, what, shape, _host(np.empty(0, as_dtype(dtype)), ctx), none, starts)
    return _checked(kind, what, shape, _host(np.empty((0, *shape[1:]), as_dtype(dtype)), ctx), none)


def _host(raw: RawArray, ctx: Context | None) -> NDArray:
    return NDArray._from_host(raw, ctx)


def _dense(value: Any, ctx: Context | None, dtype: Any) -> NDArray:
    default: DType = value.dtype if isinstance(value, np.ndarray | np.generic) else FLOAT32
    return dense_array(value, ctx, dtype if dtype is not None or isinstance(value, Array) else default)


def _whole(what: str, value: Any) -> RawArray:
    """Indices, as of now: waits for those of the library."""
    try:
        raw = value.asnumpy() if isinstance(value, Array) else np.array(value)
        whole = raw.astype(np.int64)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentTypeError(f"[{what}] {type(value).__name__}: indices expected") from None
    if raw.dtype.kind not in "biuf" or (whole != raw).any():
        raise ArgumentTypeError(f"[{what}] whole numbers expected as indices")
    return whole


def _cast(what: str, source: Any, kind: type[K], shape: Any, ctx: Context | None, dtype: Any) -> K:
    made: K
    if isinstance(source, kind):
        made = source.copy() if ctx is None else source.copyto(ctx)
        made = made if dtype is None else made.astype(dtype, copy=False)
    elif isinstance(source, BaseSparseNDArray):
        raise ArgumentTypeError(f"[{what}] {source._words}: another storage type; go by tostype('default')")
    else:
        made = nd_face.cast_storage(_dense(source, ctx, dtype), stype=kind.stype)
    if shape is not None and as_shape(shape) != made.shape:
        raise ArgumentError(f"[{what}] shape {shape}, but the array has {made.shape}")
    return made


def _checked(kind: type[K], what: str, shape: Shape, data: Array, *structure: RawArray) -> K:
    """An array of these parts; ArgumentError if they don't fit together."""
    why = kind._fault(shape, data.shape, *structure)
    if why is not None:
        raise ArgumentError(f"[{what}] {kind.stype} {shape}: {why}")
    parts = (_host(np.array(part, INT64, order="C"), data.context) for part in structure)
    return kind._of(shape, data, *parts)
