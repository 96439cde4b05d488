"""Row-sparse gradients: of the tables that ``attach_grad(stype="row_sparse")`` marked.

Where an operator that picks rows reads such an array itself, the walk makes the gradient of the picked rows only.
Which rows these are is a matter of values, so the walk waits for the indices; the gradient's values are pushed like
any others.  Every other gradient of such an array is made dense, and stored by what is not 0 when it is there.
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

#: (cotangent, saved values by name, attributes, the table's shape) -> rows ascending, their values; None: make it dense
Rows = Callable[[Any, Mapping[str, Any], Mapping[str, Any], Shape], "tuple[Any, Any] | None"]


def _picked(g: Any, indices: Any, shape: Shape, mode: str) -> tuple[Any, Any]:
    rows, where = np.unique(bounded(indices.reshape(-1), shape[0], mode), return_inverse=True)
    g = g.reshape((len(where), *shape[1:]))
    return rows, numpy_face.add_rows(g, where.reshape(-1), shape=(len(rows), *shape[1:]), axis=0)


def _embedding(g: Any, saved: Mapping[str, Any], attributes: Mapping[str, Any], shape: Shape) -> tuple[Any, Any]:
    return _picked(g, _host(saved["data"]), shape, "clip")


def _take(g: Any, saved: Mapping[str, Any], attributes: Mapping[str, Any], shape: Shape) -> tuple[Any, Any] | None:
    if attributes["axis"] != 0:
        return None
    return _picked(g, _host(saved["indices"]), shape, attributes["mode"])


def _csr_dot(g: Any, saved: Mapping[str, Any], attributes: Mapping[str, Any], shape: Shape) -> tuple[Any, Any] | None:
    if attributes["transpose"]:
        return None
    rows, where = np.unique(_host(saved["indices"]), return_inverse=True)
    form = attributes["shape"][0], len(rows)
    return rows, numpy_face.csr_dot(saved["data"], where, saved["indptr"], g, shape=form, transpose=True)


_RULES: dict[tuple[str, str], Rows] = {
    ("Embedding", "weight"): _embedding,
    ("take", "x"): _take,
    ("csr_dot", "y"): _csr_dot,
}


def _host(kept: Any) -> Any:
    return kept.asnumpy() if isinstance(kept, Array) else np.asarray(kept)


def by_rows(node: Node, index: int, leaf: Any, g: Any, saved: Mapping[str, Any]) -> RowSparseNDArray | None:
    """The gradient for the input at this position as a row-sparse array; None: make it dense.

    Sync: blocks for the indices that the node saved.
    """
    rule = _RULES.get((node.op.name, node.op.input_name(index)))
    if rule is None or not wants(leaf):
        return None
    values = {key: Array._from_saved(x, node) if isinstance(x, Saved) else x for key, x in saved.items()}
    table: Any = node.metas[index]
    found = rule(g, values, node.attributes, table[0])
    if found is None:
        return None
    rows, data = found
    return RowSparseNDArray._of(table[0], data.detach(), *placed(g, rows))


def wants(leaf: Any) -> bool:
    """Whether this is a marked array with a row-sparse gradient array."""
    return isinstance(leaf, Leaf) and isinstance(leaf.gradient, RowSparseNDArray)


def store(target: RowSparseNDArray, gradient: Any, request: str) -> None:
    """Write or add a gradient.  Sync: blocks for a dense one, and to add for the indices of both."""
    if not isinstance(gradient, RowSparseNDArray):
        gradient = nd_face.cast_storage(gradient.reshape(target.shape), stype="row_sparse")
    target[:] = target + gradient if request == "add" else gradient
