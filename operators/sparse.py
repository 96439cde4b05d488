"""Operators on sparse arrays: which of the parts each is made of.

A call of the nd face with a sparse operand comes to `_call`.  A *form* does it on the parts, by ordinary operators, so
its errors, its order and its gradients are theirs; without a form the operands' dense values serve.  Structure, the
indices, is worked out on the caller's thread: a form that gives a new one waits for those it starts from.  Values never
are waited for, but by `cast_storage` of a dense array, whose values say what is stored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError
from ..ndarray.arithmetic import SCALARS
from ..ndarray.array import Array
from ..ndarray.device import RawArray
from ..ndarray.ndarray import NDArray
from ..ndarray.reading import describe
from ..ndarray.shape import Shape
from ..ndarray.sparse import starts_of
from ..ndarray.sparse import zeros as sparse_zeros
from ..ndarray.sparse_arrays import KINDS, BaseSparseNDArray, CSRNDArray, RowSparseNDArray
from .csr import rows_of
from .faces import composed, nd_face, numpy_face
from .schema import Attributes, Operator, registry

# ---- from and to dense arrays ----------------------------------------------------------------------------------------


@composed()
def cast_storage(data: Any, stype: Any) -> Any:
    """A copy of another storage type: "default", "row_sparse" or "csr" (of two axes).

    Sync: blocks for the values of a dense array that becomes sparse, else never.   Raises: ArgumentError at the call,
    also from one sparse type to the other.   Gradient: g, of what is stored.   MXNet: cast_storage.

    >>> from vardag import nd
    >>> nd.cast_storage(nd.array([[0, 0], [1, 2]]), "row_sparse").indices.asnumpy()
    array([1])
    """
    if stype != "default" and stype not in KINDS:
        raise ArgumentError(f"[cast_storage] stype {stype!r}: one of default, {', '.join(KINDS)} expected")
    if isinstance(data, BaseSparseNDArray):
        if data.stype == stype:
            return data.copy()
        if stype != "default":
            raise ArgumentError(f"[cast_storage] {data._words}: to {stype} only by way of tostype('default')")
        return _dense(data)
    if not isinstance(data, Array):
        raise ArgumentTypeError(f"[cast_storage] {data!r}: an array expected")
    if stype == "default":
        return nd_face.copy(data)
    if data.ndim != 2 if stype == "csr" else data.ndim == 0:
        raise ArgumentError(f"[cast_storage] {describe(data)}: {'two axes' if stype == 'csr' else 'an axis'} expected")
    data = nd_face.copy(data)  # another thread may write between the look and the copy of what is there
    there = data.asnumpy() != 0
    if stype == "row_sparse":
        return _rows_of(data, np.flatnonzero(there.any(tuple(range(1, data.ndim)))))
    rows, columns = there.nonzero()
    structure = columns, starts_of(rows, len(there))
    return CSRNDArray._of(data.shape, numpy_face.csr_stored(data, *structure), *placed(data, *structure))


nd_face.methods["tostype"] = cast_storage


def _dense(x: BaseSparseNDArray) -> Any:
    """The dense value.  Never blocks."""
    if isinstance(x, RowSparseNDArray):
        data, rows = x._parts
        made = numpy_face.add_rows(data, rows, shape=x.shape, axis=0)
    else:
        made = numpy_face.csr_dense(*x._parts, shape=x.shape)
    return _nd(made)


def _nd(made: Any) -> Any:
    return nd_face.copy(made) if not isinstance(made, NDArray) else made


def placed(like: Any, *structure: RawArray) -> tuple[NDArray, ...]:
    """Indices as arrays where `like` is."""
    return tuple(NDArray._from_host(np.array(part, np.int64, order="C"), like.context) for part in structure)


def _rows_of(dense: Any, rows: RawArray) -> RowSparseNDArray:
    return RowSparseNDArray._of(dense.shape, nd_face.take(dense, rows, axis=0), *placed(dense, rows))


@composed()
def sparse_retain(data: Any, indices: Any) -> Any:
    """The rows of these indices of a row-sparse array, stored even where they are 0.  MXNet: sparse.retain.

    Sync: blocks for the indices of both.   Raises: ArgumentError, ArgumentTypeError at the call.   Gradient: g of the
    rows retained.
    """
    if not isinstance(data, RowSparseNDArray):
        raise ArgumentTypeError(f"[retain] {data!r}: a row_sparse array expected")
    data = data.copy()
    wanted = np.asarray(indices.asnumpy() if isinstance(indices, Array) else indices)
    rows = np.unique(wanted.astype(np.int64))
    if wanted.ndim != 1 or (len(rows) and (rows[0] < 0 or rows[-1] >= len(data))):
        raise ArgumentError(f"[retain] {data._words}: a list of indices from 0 to {len(data) - 1} expected")
    (there,) = data._structure()
    return RowSparseNDArray._of(data.shape, _moved(data._parts[0], there, rows), *placed(data, rows))


def _moved(data: Any, places: RawArray, among: RawArray) -> Any:
    """What is stored at some places, ascending, as stored at others: 0 where it was not, left out where it is not."""
    kept = np.flatnonzero(np.isin(places, among, assume_unique=True))
    if len(kept) < len(places):
        data = nd_face.take(data, kept, axis=0) if len(kept) else data[:0]
    if len(kept) == len(among):
        return data
    where = np.searchsorted(among, places[kept])
    return numpy_face.add_rows(data, where, shape=(len(among), *data.shape[1:]), axis=0)


# ---- forms -----------------------------------------------------------------------------------------------------------

ENDS = ("begin", "end")
#: (operands, attributes, out) -> the result, or NotImplemented: it is to be done on dense values
Form = Callable[[list[Any], Attributes, Any], Any]
_forms: dict[str, Form] = {}


def form(*names: str) -> Callable[[Form], Form]:
    """Declare how these operators work on sparse arrays."""

    def declare(function: Form) -> Form:
        _forms.update((registry[name].name, function) for name in names)
        return function

    return declare


def _call(op: Operator, dense: Callable[..., Any], inputs: list[Any], attributes: Attributes, out: Any) -> Any:
    """The call of an operator with a sparse operand, or a sparse `out`."""
    inputs = [x.copy() if isinstance(x, BaseSparseNDArray) else x for x in inputs]  # the parts of one moment
    for name in op.updates:
        if isinstance(inputs[op.inputs.index(name)], BaseSparseNDArray):
            raise ArgumentTypeError(f"[{op.name}] {name} is changed in place: a dense array expected")
    made = _forms[op.name](inputs, attributes, out) if op.name in _forms else NotImplemented
    into = None if isinstance(out, BaseSparseNDArray) else out
    if made is NotImplemented:
        values = [_dense(x) if isinstance(x, BaseSparseNDArray) else x for x in inputs]
        if op.variadic is None:
            attributes = {**dict(zip(op.inputs, values, strict=True)), **attributes}
            values = []
        made = dense(*values, **attributes, **({} if into is None else {"out": into}))
    if out is None or made is out:
        return made
    if (made.shape, made._dtype) != (out.shape, out._dtype):
        raise ArgumentError(f"[{op.name}] the result is {describe(made)}, but out is {describe(out)}")
    out[:] = made if into is None or not isinstance(made, BaseSparseNDArray) else _dense(made)
    return out


nd_face.sparse = _call

# Functions that are 0 at 0, so that the structure stays.
for _name in (
    "BlockGrad", "abs", "arcsin", "arcsinh", "arctan", "arctanh", "cast", "cbrt", "ceil", "copy", "degrees", "expm1",
    "floor", "log1p", "negative", "radians", "relu", "rint_half_down", "round_half_away", "sign_or_zero", "sin", "sinh",
    "sqrt", "square", "tan", "tanh", "trunc",
):  # fmt: skip

    @form(_name)
    def _same_structure(inputs: list[Any], attributes: Attributes, out: Any, name: str = _name) -> Any:
        (x,) = inputs
        if not isinstance(x, BaseSparseNDArray):
            return NotImplemented
        return x._like(getattr(nd_face, name)(x._parts[0], **attributes))


@form("clip")
def _clip(inputs: list[Any], attributes: Attributes, out: Any) -> Any:
    (x,) = inputs
    low, high = attributes.get("a_min"), attributes.get("a_max")
    if not isinstance(x, BaseSparseNDArray) or (low is not None and low > 0) or (high is not None and high < 0):
        return NotImplemented
    return x._like(nd_face.clip(x._parts[0], **attributes))


@form("zeros_like")
def _zeros_like(inputs: list[Any], attributes: Attributes, out: Any) -> Any:
    (x,) = inputs
    return sparse_zeros(x.stype, x.shape, x.context, x.dtype) if isinstance(x, BaseSparseNDArray) else NotImplemented


def _scaled(name: str, x: Any, y: Any) -> Any:
    """A sparse array by a number."""
    if isinstance(x, BaseSparseNDArray) and isinstance(y, SCALARS):
        return x._like(getattr(nd_face, name)(x._parts[0], y))
    return NotImplemented


@form("divide")
def _divided(inputs: list[Any], attributes: Attributes, out: Any) -> Any:
    return _scaled("divide", *inputs)


@form("multiply")
def _multiplied(inputs: list[Any], attributes: Attributes, out: Any) -> Any:
    x, y = inputs
    if not isinstance(x, BaseSparseNDArray):
        x, y = y, x
    if isinstance(x, BaseSparseNDArray) and isinstance(y, Array) and y.shape == x.shape:
        if isinstance(x, RowSparseNDArray):
            return x._like(x._parts[0] * nd_face.take(y, x._parts[1], axis=0))
        return x._like(x._parts[0] * _nd(numpy_face.csr_stored(y, *x._parts[1:])))
    done = _scaled("multiply", x, y)
    return _together(inputs, "multiply") if done is NotImplemented else done


@form("add")
def _added(inputs: list[Any], attributes: Attributes, out: Any) -> Any:
    return _together(inputs, "add")


@form("subtract")
def _subtracted(inputs: list[Any], attributes: Attributes, out: Any) -> Any:
    return _together(inputs, "subtract")


def _together(inputs: list[Any], name: str) -> Any:
    """Two sparse arrays of one kind: what either stores is stored; of a product of csr what both do."""
    x, y = inputs
    if type(x) is not type(y) or not isinstance(x, BaseSparseNDArray) or x.shape != y.shape:
        return NotImplemented
    a, b = x._structure(), y._structure()
    if all(np.array_equal(p, q) for p, q in zip(a, b, strict=True)):
        return x._like(getattr(nd_face, name)(x._parts[0], y._parts[0]))
    if isinstance(x, RowSparseNDArray):
        (p,), (q,) = a, b
        among = np.union1d(p, q)
        structure: tuple[RawArray, ...] = (among,)
    else:
        p, q = (rows_of(np, starts) * max(x.shape[1], 1) + columns for columns, starts in (a, b))
        among = np.intersect1d(p, q) if name == "multiply" else np.union1d(p, q)
        rows, columns = np.divmod(among, max(x.shape[1], 1))
        structure = columns, starts_of(rows, len(x))
    data = getattr(nd_face, name)(_moved(x._parts[0], p, among), _moved(y._parts[0], q, among))
    return x._of(x.shape, data, *placed(x, *structure))


@form("add_n")
def _summed(inputs: list[Any], attributes: Attributes, out: Any) -> Any:
    return functools.reduce(nd_face.add, inputs)


@form("dot")
def _dot(inputs: list[Any], attributes: Attributes, out: Any) -> Any:
    """csr x dense is dense; csr.T x dense row_sparse, unless asked for "default" or put into a dense array."""
    x, y = inputs
    stype = attributes.pop("forward_stype", None)
    first, second = (bool(attributes.get(name, False)) for name in ("transpose_a", "transpose_b"))
    if x.ndim != 2 or y.ndim != 2:
        return NotImplemented
    if isinstance(x, Array) and isinstance(y, CSRNDArray):  # x y = (y.T x.T).T
        _multiplicable(x, y, x.shape[0 if first else 1], y.shape[1 if second else 0])
        made = _product(y, x if first else nd_face.transpose(x), not second)
        return nd_face.transpose(_nd(made))
    if not isinstance(x, CSRNDArray) or isinstance(y, CSRNDArray):
        return NotImplemented
    _multiplicable(x, y, x.shape[0 if first else 1], y.shape[1 if second else 0])
    y = _dense(y) if isinstance(y, RowSparseNDArray) else y
    y = nd_face.transpose(y) if second else y
    if not first or stype == "default" or isinstance(out, Array):
        return _nd(_product(x, y, first))
    data, columns, starts = x._parts
    rows, where = np.unique(columns.asnumpy(), return_inverse=True)
    made = numpy_face.csr_dot(data, where, starts, y, shape=(len(x), len(rows)), transpose=True)
    shape: Shape = (x.shape[1], y.shape[1])
    return RowSparseNDArray._of(shape, made, *placed(x, rows))


def _multiplicable(x: Any, y: Any, a: int, b: int) -> None:
    given = f"[dot] lhs {describe(x)}, rhs {describe(y)}"
    if a != b:
        raise ArgumentError(f"{given}: the lengths to sum over differ, {a} and {b}")
    if x._dtype != y._dtype:
        raise ArgumentTypeError(f"{given}: dtypes differ; convert one with .astype")


def _product(x: CSRNDArray, y: Any, transpose: bool) -> Any:
    return numpy_face.csr_dot(*x._parts, y, shape=x.shape, transpose=transpose)


@form("concat")
def _joined(inputs: list[Any], attributes: Attributes, out: Any) -> Any:
    """csr matrices one below the other: how many elements each stores is known, so nothing is waited for."""
    columns = {x.shape[1] for x in inputs if isinstance(x, CSRNDArray)}
    if attributes.get("dim", 1) != 0 or len(columns) != 1 or not all(isinstance(x, CSRNDArray) for x in inputs):
        return NotImplemented
    data, indices, starts = zip(*(x._parts for x in inputs), strict=True)
    before = np.cumsum([0, *(part.size for part in data)])
    begins = [starts[0], *(part[1:] + int(n) for part, n in zip(starts[1:], before[1:-1], strict=True))]
    join = nd_face.concat
    shape = sum(map(len, inputs)), *columns
    return CSRNDArray._of(shape, join(*data, dim=0), join(*indices, dim=0), join(*begins, dim=0))


@form("slice")
def _sliced(inputs: list[Any], attributes: Attributes, out: Any) -> Any:
    (x,) = inputs
    begin, end = (value if isinstance(value, tuple | list) else (value,) for value in (attributes[n] for n in ENDS))
    if not isinstance(x, CSRNDArray) or not len(begin) == len(end) == 1 or attributes.get("step"):
        return NotImplemented
    return x[begin[0] : end[0]]


@form("sum")
def _total(inputs: list[Any], attributes: Attributes, out: Any) -> Any:
    """The sums of a csr matrix: products with ones."""
    (x,) = inputs
    axis = attributes.get("axis")
    if not isinstance(x, CSRNDArray) or set(attributes) > {"axis"} or axis not in (0, 1, -1, -2):
        return NotImplemented
    ones = nd_face.ones((x.shape[axis], 1), dtype=x._dtype, ctx=x.context)
    return _nd(_product(x, ones, axis in (0, -2))).reshape(-1)


@form("norm")
def _norm(inputs: list[Any], attributes: Attributes, out: Any) -> Any:
    (x,) = inputs
    return nd_face.norm(x._parts[0]) if isinstance(x, BaseSparseNDArray) and not attributes else NotImplemented


def publish() -> None:
    """``nd.zeros(shape, stype="csr")``, too.  Called when both faces have their operators."""
    dense: Callable[..., Any] = nd_face.zeros

    @functools.wraps(dense)
    def zeros(*arguments: Any, stype: Any = None, **named: Any) -> Any:
        if stype in (None, "default"):
            return dense(*arguments, **named)
        return sparse_zeros(stype, *arguments, **named)

    vars(nd_face)["zeros"] = zeros
