"""Operators: what can be done with arrays.  One declaration each (see schema.py), two faces (see faces.py)."""

from __future__ import annotations

from . import (
    advanced_indexing,
    arranging,
    batch_norm,
    convolution,
    creation,
    csr,
    ctc,
    elementwise,
    indexing,
    linalg,
    losses,
    nn,
    normalization,
    numpy_functions,
    optimizer,
    optimizer_multi,
    optimizer_sums,
    pooling,
    random,
    random_pdf,
    reduction,
    rnn,
    shaping,
    slicing,
    softmax,
    sorting,
    sparse,
    sparse_updates,
)
from .faces import nd_face, numpy_face, publish
from .schema import Operator, registry

publish()
sparse.publish()

__all__ = [
    "Operator",
    "advanced_indexing",
    "arranging",
    "batch_norm",
    "convolution",
    "creation",
    "csr",
    "ctc",
    "elementwise",
    "indexing",
    "linalg",
    "losses",
    "nd_face",
    "nn",
    "normalization",
    "numpy_face",
    "numpy_functions",
    "optimizer",
    "optimizer_multi",
    "optimizer_sums",
    "pooling",
    "random",
    "random_pdf",
    "reduction",
    "registry",
    "rnn",
    "shaping",
    "slicing",
    "softmax",
    "sorting",
    "sparse",
    "sparse_updates",
]
