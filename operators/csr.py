"""Matrices in compressed sparse rows, as operators on their parts: data, indices, indptr.  What sparse.py is made of.

The structure is trusted: nobody makes a sparse array with a wrong one.  The four are each other's gradients, so any
order exists.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from ..ndarray.shape import as_shape
from .infer import uniform
from .schema import Attributes, Inferred, Meta, Metas, Sample, operator, zero

STRUCTURE = ("indices", "indptr")
_COLUMNS, _STARTS = np.array([1, 0, 2]), np.array([0, 1, 1, 3])
_PLACES = (np.array([0, 2, 2]), _COLUMNS)


def _known(meta: Meta | None) -> Meta:
    assert meta is not None
    return meta


def rows_of(xp: Any, starts: Any) -> Any:
    """The row of each stored element."""
    return xp.repeat(xp.arange(len(starts) - 1), xp.diff(starts))


def _dense_meta(metas: Metas, attributes: Attributes) -> Inferred:
    return ((as_shape(attributes["shape"]), _known(metas[0])[1]),), attributes


def _reference_dense(data: Any, indices: Any, indptr: Any, shape: Any) -> Any:
    made = np.zeros(shape)
    made[_PLACES] = data
    return made


@operator(
    "csr_dense", infer=_dense_meta, widen=False, indices=STRUCTURE, nd=False, reference=_reference_dense,
    samples=[Sample((3,), _COLUMNS, _STARTS, shape=(3, 4))],
)  # fmt: skip
def csr_dense(xp: Any, data: Any, indices: Any, indptr: Any, *, shape: Any, out: Any) -> None:
    """A csr matrix as a dense one."""
    out[...] = 0
    out[rows_of(xp, indptr), indices] = data


def _stored_meta(metas: Metas, attributes: Attributes) -> Inferred:
    return ((_known(metas[-2])[0], uniform(*metas[:-2])),), attributes


@operator(
    "csr_stored", infer=_stored_meta, widen=False, indices=STRUCTURE, nd=False,
    reference=lambda x, indices, indptr: x[_PLACES], samples=[Sample((3, 4), _COLUMNS, _STARTS)],
)  # fmt: skip
def csr_stored(xp: Any, x: Any, indices: Any, indptr: Any, *, out: Any) -> None:
    """The elements of a dense matrix at the places of a structure."""
    out[...] = x[rows_of(xp, indptr), indices]


def _dot_meta(metas: Metas, attributes: Attributes) -> Inferred:
    (rows, columns), (y, _) = attributes["shape"], _known(metas[3])
    inner, outer = (rows, columns) if attributes["transpose"] else (columns, rows)
    if len(y) != 2 or y[0] != inner:
        raise ValueError(f"y of shape ({inner}, n) expected")
    return (((outer, y[1]), uniform(metas[0], metas[3])),), attributes


def _reference_dot(data: Any, indices: Any, indptr: Any, y: Any, shape: Any, transpose: bool = False) -> Any:
    x = _reference_dense(data, indices, indptr, shape)
    return (x.T if transpose else x) @ y


@operator(
    "csr_dot", infer=_dot_meta, indices=STRUCTURE, nd=False, costly=True, reference=_reference_dot,
    samples=[
        Sample((3,), _COLUMNS, _STARTS, (4, 2), shape=(3, 4)),
        Sample((3,), _COLUMNS, _STARTS, (3, 2), shape=(3, 4), transpose=True),
    ],
)  # fmt: skip
def csr_dot(
    xp: Any, data: Any, indices: Any, indptr: Any, y: Any, *, shape: Any, transpose: bool = False, out: Any
) -> None:
    """The product of a csr matrix of a shape, or of its transpose, with a dense one."""
    matrix = sparse.csr_matrix((data, indices, indptr), shape=shape)
    out[...] = (matrix.T if transpose else matrix) @ y


def _sampled_meta(metas: Metas, attributes: Attributes) -> Inferred:
    return ((_known(metas[2])[0], uniform(*metas[:2])),), attributes


@operator(
    "csr_sampled", infer=_sampled_meta, indices=STRUCTURE, nd=False,
    reference=lambda x, y, indices, indptr: (x @ y.T)[_PLACES],
    samples=[Sample((3, 2), (4, 2), _COLUMNS, _STARTS)],
)  # fmt: skip
def csr_sampled(xp: Any, x: Any, y: Any, indices: Any, indptr: Any, *, out: Any) -> None:
    """The elements of x @ y.T at the places of a structure."""
    xp.einsum("ij,ij->i", x[rows_of(xp, indptr)], y[indices], out=out)


csr_dense.grad(data=lambda F, g, indices, indptr: F.csr_stored(g, indices, indptr), indices=zero, indptr=zero)
csr_stored.grad(
    x=lambda F, g, indices, indptr, x_shape: F.csr_dense(g, indices, indptr, shape=x_shape), indices=zero, indptr=zero
)
csr_dot.grad(
    data=lambda F, g, indices, indptr, y, transpose: F.csr_sampled(
        y if transpose else g, g if transpose else y, indices, indptr
    ),
    indices=zero,
    indptr=zero,
    y=lambda F, g, data, indices, indptr, shape, transpose: F.csr_dot(
        data, indices, indptr, g, shape=shape, transpose=not transpose
    ),
)
csr_sampled.grad(
    x=lambda F, g, y, indices, indptr, x_shape, y_shape: F.csr_dot(
        g, indices, indptr, y, shape=(x_shape[0], y_shape[0])
    ),
    y=lambda F, g, x, indices, indptr, x_shape, y_shape: F.csr_dot(
        g, indices, indptr, x, shape=(x_shape[0], y_shape[0]), transpose=True
    ),
    indices=zero,
    indptr=zero,
)
