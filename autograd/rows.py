"""Row-sparse gradients: of the tables that ``attach_grad(stype="row_sparse")`` marked.

Where an operator that picks rows reads such an array itself, the walk makes the gradient of the picked rows only.
Which rows these are is a matter of values, so the walk waits for the indices; the gradient's values are pushed like
any others.  Every other gradient of such an array is made dense, and stored by what is not 0 when it is there.

Of indices that an error has poisoned, and of wrong ones, the gradient is made dense: so the walk goes on, and the error
is the gradient's.                                                                   [tests/operators/test_sparse.py]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..ndarray.array import Array
from ..ndarray.buffer import Saved
from ..ndarray.shape import Shape
from ..ndarray.sparse_arrays import RowSparseNDArray
from ..operators.faces import nd_face, numpy_face
from ..operators.indexing import bounded
from ..operators.sparse import placed
from .tape import Leaf, Node

#: (cotangent, indices, saved values by name, attributes, the table's shape) -> rows ascending, their values; None: make
#: it dense
Rows = Callable[[Any, Any, Mapping[str, Any], Mapping[str, Any], Shape], "tuple[Any, Any] | None"]


def _picked(g: Any, indices: Any, shape: Shape, mode: str) -> tuple[Any, Any]:
    rows, where = np.unique(bounded(indices.reshape(-1), shape[0], mode), return_inverse=True)
    g = g.reshape((len(where), *shape[1:]))
    return rows, numpy_face.add_rows(g, where.reshape(-1), shape=(len(rows), *shape[1:]), axis=0)


def _embedding(
    g: Any, indices: Any, saved: Mapping[str, Any], attributes: Mapping[str, Any], shape: Shape
) -> tuple[Any, Any]:
    return _picked(g, indices, shape, "clip")


def _take(
    g: Any, indices: Any, saved: Mapping[str, Any], attributes: Mapping[str, Any], shape: Shape
) -> tuple[Any, Any] | None:
    return None if attributes["axis"] != 0 else _picked(g, indices, shape, attributes["mode"])


def _csr_dot(
    g: Any, indices: Any, saved: Mapping[str, Any], attributes: Mapping[str, Any], shape: Shape
) -> tuple[Any, Any] | None:
    if attributes["transpose"]:
        return None
    rows, where = np.unique(indices, return_inverse=True)
    form = attributes["shape"][0], len(rows)
    return rows, numpy_face.csr_dot(saved["data"], where, saved["indptr"], g, shape=form, transpose=True)


#: (operator, the table's name in it) -> the name of the indices, the rule
_RULES: dict[tuple[str, str], tuple[str, Rows]] = {
    ("Embedding", "weight"): ("data", _embedding),
    ("take", "x"): ("indices", _take),
    ("csr_dot", "y"): ("indices", _csr_dot),
}


def by_rows(node: Node, index: int, leaf: Any, g: Any, saved: Mapping[str, Any]) -> RowSparseNDArray | None:
    """The gradient for the input at this position as a row-sparse array; None: make it dense.

    Sync: blocks for the indices that the node saved.
    """
    name, rule = _RULES.get((node.op.name, node.op.input_name(index)), (None, None))
    if name is None or rule is None or not wants(leaf):
        return None
    values = {key: Array._from_saved(x, node) if isinstance(x, Saved) else x for key, x in saved.items()}
    indices = values[name]
    if isinstance(indices, Array):
        if indices._fails():
            return None
        indices = indices.asnumpy()
    table: Any = node.metas[index]
    try:
        found = rule(g, np.asarray(indices), values, node.attributes, table[0])
    except (IndexError, ValueError):  # the forward operation has failed of the same
        return None
    if found is None:
        return None
    rows, data = found
    return RowSparseNDArray._of(table[0], data.detach(), *placed(g, rows))


def wants(leaf: Any) -> bool:
    """Whether this is a marked array with a row-sparse gradient array."""
    return isinstance(leaf, Leaf) and isinstance(leaf.gradient, RowSparseNDArray)


def store(target: RowSparseNDArray, gradient: Any, request: str) -> None:
    """Write or add a gradient.  Sync: blocks for a dense one, and to add for the indices of both.

    A dense gradient that an error has poisoned poisons the target; to a target that is poisoned nothing is added.
    """
    add = request == "add"
    if add and any(part._fails() for part in target._parts[1:]):
        return
    if not isinstance(gradient, RowSparseNDArray):
        gradient = gradient.reshape(target.shape)
        if gradient._fails():
            none = numpy_face.slice_axis(gradient, axis=0, begin=0, end=0)
            rows = numpy_face.cast(numpy_face.reshape(none, shape=(none.size,)), dtype="int64")
            gradient, add = RowSparseNDArray._of(target.shape, none, rows), False
        else:
            gradient = nd_face.cast_storage(gradient, stype="row_sparse")
    target[:] = target + gradient if add else gradient
