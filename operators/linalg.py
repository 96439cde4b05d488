"""Products of matrices, and functions made of operators.  Each gradient is made of the same, so every order exists.

A product is one call of ``np.matmul``, a big one several (products.py); integers are allowed (MXNet refuses them on a
CPU).
"""

from __future__ import annotations

import math
import operator as python_operator
from typing import Any

import numpy as np

from ..ndarray.dtype import DType
from ..ndarray.shape import Shape, broadcast
from .faces import Rule, composed, nd_face
from .infer import loop_dtypes
from .products import cost, product
from .schema import Attributes, Inferred, Meta, Metas, Sample, operator

SIDES = {"lhs": "x", "rhs": "y", "A": "x", "B": "y"}


def _dtype(x: Meta, y: Meta) -> DType:
    return loop_dtypes(np.matmul, (x[1], y[1]))[-1]


def _work(metas: Metas, made: Metas, attributes: Attributes) -> float:
    """Multiplications, (mk)(kn)(mn) = (mkn)**2, by BLAS or without it (integers)."""
    sizes = [math.prod(meta[0]) for meta in (*metas, made[0]) if meta is not None]
    assert made[0] is not None
    return cost(math.sqrt(math.prod(sizes)), made[0][1]) + sum(sizes)


# ---- matmul: NumPy's rules -------------------------------------------------------------------------------------------


def _matmul(metas: Metas, attributes: Attributes) -> Inferred:
    x, y = metas
    assert x is not None and y is not None
    (a, _), (b, _) = x, y
    if not a or not b:
        raise ValueError("arrays with at least one axis expected")
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    if a[-1] != b[-2 if len(b) > 1 else 0]:
        raise ValueError(f"the last axis of x has length {a[-1]}, the rows of y {b[-2 if len(b) > 1 else 0]}")
    return (((*broadcast(a[:-2], b[:-2]), *rows, *columns), _dtype(x, y)),), attributes


@operator(
    "matmul",
    infer=_matmul,
    atomic=True,
    broadcasts=True,
    cost=_work,
    costly=True,
    samples=[
        Sample((2, 3), (3, 4)), Sample((5, 2, 3), (3, 4)), Sample((2, 1, 2, 3), (4, 3, 2)), Sample((3,), (3,)),
        Sample((3,), (2, 3, 4)), Sample((2, 3), (3,)),
    ],
    reference=np.matmul,
)  # fmt: skip
def matmul(xp: Any, x: Any, y: Any, *, out: Any) -> Any:
    """The matrix product over the last two axes; the axes before them broadcast.

    Shapes: (..., n, k), (..., k, m) -> (..., n, m); x may be (k,): no n; y may be (k,): no m.   NumPy: matmul.
    """
    return (product(xp, x, y, out),)


def _matrices(F: Any, g: Any, x_shape: Shape, y_shape: Shape) -> Any:
    """The cotangent of matmul with the axes that vectors leave out."""
    if len(y_shape) == 1:
        g = F.expand_dims(g, axis=-1)
    return F.expand_dims(g, axis=-2) if len(x_shape) == 1 else g


def _matmul_x(F: Any, g: Any, y: Any, x_shape: Shape, y_shape: Shape) -> Any:
    y = F.expand_dims(y, axis=0) if len(y_shape) == 1 else F.swapaxes(y, dim1=-1, dim2=-2)
    return F.matmul(_matrices(F, g, x_shape, y_shape), y)


def _matmul_y(F: Any, g: Any, x: Any, x_shape: Shape, y_shape: Shape) -> Any:
    x = F.expand_dims(x, axis=1) if len(x_shape) == 1 else F.swapaxes(x, dim1=-1, dim2=-2)
    gradient = F.matmul(x, _matrices(F, g, x_shape, y_shape))
    return F.squeeze(gradient, axis=-1) if len(y_shape) == 1 else gradient


matmul.grad(x=_matmul_x, y=_matmul_y)


# ---- dot: MXNet's ----------------------------------------------------------------------------------------------------


def _split(shape: Shape, transposed: bool, *, left: bool) -> tuple[Shape, int]:
    """(the axes that stay, the length of the one that is summed over)."""
    if not shape:
        raise ValueError("arrays with at least one axis expected")
    last = left != transposed
    return (shape[:-1], shape[-1]) if last else (shape[1:], shape[0])


def _dot(metas: Metas, attributes: Attributes) -> Inferred:
    x, y = metas
    assert x is not None and y is not None
    attributes = {name: bool(value) for name, value in attributes.items()}
    rows, a = _split(x[0], attributes["transpose_a"], left=True)
    columns, b = _split(y[0], attributes["transpose_b"], left=False)
    if a != b:
        raise ValueError(f"the lengths to sum over differ: {a} and {b}")
    return (((*rows, *columns), _dtype(x, y)),), attributes


def _matrix(x: Any, transposed: bool, *, left: bool) -> Any:
    """An array as the matrix that dot multiplies by."""
    rest, inner = _split(x.shape, transposed, left=left)
    n = math.prod(rest)
    if left:
        return x.reshape(inner, n).transpose() if transposed else x.reshape(n, inner)
    return x.reshape(n, inner).transpose() if transposed else x.reshape(inner, n)


@operator(
    "dot",
    infer=_dot,
    atomic=True,
    cost=_work,
    costly=True,
    samples=[
        Sample((2, 3), (3, 4)), Sample((3,), (3,)), Sample((2, 3), (3,)), Sample((2, 3, 4), (4, 2, 3)),
        Sample((4, 2, 3), (5, 4), transpose_a=True, transpose_b=True), Sample((3, 2), (3, 4), transpose_a=True),
        Sample((2, 4), (3, 2, 4), transpose_b=True),
    ],
    reference=lambda x, y, transpose_a=False, transpose_b=False: np.tensordot(
        np.moveaxis(x, 0, -1) if transpose_a else x, np.moveaxis(y, -1, 0) if transpose_b else y, 1
    ),
    nd=Rule(rename=SIDES, ignore=("forward_stype",)),
)  # fmt: skip
def dot(xp: Any, x: Any, y: Any, *, transpose_a: bool = False, transpose_b: bool = False, out: Any) -> Any:
    """The sum over the last axis of x (the first, if transposed) and the first of y (the last, if transposed).

    Shapes: (n..., k), (k, m...) -> (n..., m...).   MXNet: dot; unlike NumPy's for y with three axes or more.
    """
    a, b = _matrix(x, transpose_a, left=True), _matrix(y, transpose_b, left=False)
    if out.flags.c_contiguous:
        return (product(xp, a, b, out.reshape(len(a), b.shape[1])),)
    made = xp.empty(out.shape, out.dtype)
    return product(xp, a, b, made.reshape(len(a), b.shape[1])), (python_operator.setitem, out, ..., made)


def _flat(F: Any, array: Any, shape: Shape, transposed: bool, *, left: bool) -> Any:
    """An operand of dot as a matrix, its summed axis where it was."""
    rest, inner = _split(shape, transposed, left=left)
    flat = (math.prod(rest), inner) if left != transposed else (inner, math.prod(rest))
    return array if tuple(shape) == flat else F.reshape(array, shape=flat)


def _flat_cotangent(F: Any, g: Any, x_shape: Shape, y_shape: Shape, ta: bool, tb: bool) -> Any:
    flat = math.prod(_split(x_shape, ta, left=True)[0]), math.prod(_split(y_shape, tb, left=False)[0])
    return g if tuple(g.shape) == flat else F.reshape(g, shape=flat)


def _dot_x(F: Any, g: Any, y: Any, x_shape: Shape, y_shape: Shape, transpose_a: bool, transpose_b: bool) -> Any:
    g = _flat_cotangent(F, g, x_shape, y_shape, transpose_a, transpose_b)
    y = _flat(F, y, y_shape, transpose_b, left=False)
    if transpose_a:
        gradient = F.dot(y, g, transpose_a=transpose_b, transpose_b=True)
    else:
        gradient = F.dot(g, y, transpose_b=not transpose_b)
    return F.reshape(gradient, shape=x_shape)


def _dot_y(F: Any, g: Any, x: Any, x_shape: Shape, y_shape: Shape, transpose_a: bool, transpose_b: bool) -> Any:
    g = _flat_cotangent(F, g, x_shape, y_shape, transpose_a, transpose_b)
    x = _flat(F, x, x_shape, transpose_a, left=True)
    if transpose_b:
        gradient = F.dot(g, x, transpose_a=True, transpose_b=transpose_a)
    else:
        gradient = F.dot(x, g, transpose_a=not transpose_a)
    return F.reshape(gradient, shape=y_shape)


dot.grad(x=_dot_x, y=_dot_y)


# ---- batches ---------------------------------------------------------------------------------------------------------


def _batched(metas: Metas, attributes: Attributes) -> Inferred:
    x, y = metas
    assert x is not None and y is not None
    (a, _), (b, _) = x, y
    if len(a) != len(b) or len(a) < 2 or a[:-2] != b[:-2]:
        raise ValueError("two stacks of matrices with equal leading axes expected")
    if attributes.get("axis", -2) not in (-2, len(a) - 2):
        raise ValueError(f"axis {attributes['axis']}: the rows must be on the axis before the last")
    rows, inner = a[:-3:-1] if attributes["transpose_a"] else a[-2:]
    inner_b, columns = b[:-3:-1] if attributes["transpose_b"] else b[-2:]
    if inner != inner_b:
        raise ValueError(f"the lengths to sum over differ: {inner} and {inner_b}")
    return (((*a[:-2], rows, columns), _dtype(x, y)),), attributes


def _turned(x: Any, transposed: bool) -> Any:
    return x.swapaxes(-1, -2) if transposed else x


_BATCHES = [
    Sample(a, b, transpose_a=ta, transpose_b=tb)
    for a, ta in (((2, 3, 4), False), ((2, 4, 3), True))
    for b, tb in (((2, 4, 5), False), ((2, 5, 4), True))
]


def _batch_reference(x: Any, y: Any, transpose_a: bool, transpose_b: bool, alpha: float = 1) -> Any:
    return alpha * np.matmul(_turned(x, transpose_a), _turned(y, transpose_b))


def _batch_x(F: Any, g: Any, y: Any, transpose_a: bool, transpose_b: bool) -> Any:
    if transpose_a:
        return F.batch_dot(y, g, transpose_a=transpose_b, transpose_b=True)
    return F.batch_dot(g, y, transpose_b=not transpose_b)


def _batch_y(F: Any, g: Any, x: Any, transpose_a: bool, transpose_b: bool) -> Any:
    if transpose_b:
        return F.batch_dot(g, x, transpose_a=True, transpose_b=transpose_a)
    return F.batch_dot(x, g, transpose_a=not transpose_a)


@operator(
    "batch_dot", infer=_batched, atomic=True, cost=_work, costly=True, samples=_BATCHES, reference=_batch_reference,
    nd=Rule(rename=SIDES, ignore=("forward_stype",)),
)  # fmt: skip
def batch_dot(xp: Any, x: Any, y: Any, *, transpose_a: bool = False, transpose_b: bool = False, out: Any) -> Any:
    """The products of corresponding matrices: (..., n, k), (..., k, m) -> (..., n, m); leading axes are equal."""
    return (product(xp, _turned(x, transpose_a), _turned(y, transpose_b), out),)


@operator(
    "linalg_gemm2", infer=_batched, atomic=True, cost=_work, costly=True, reference=_batch_reference,
    samples=[*_BATCHES, Sample((3, 4), (4, 2), transpose_a=False, transpose_b=False, alpha=0.5)],
    nd=Rule(rename=SIDES, method=False),
)  # fmt: skip
def gemm2(
    xp: Any,
    x: Any,
    y: Any,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    alpha: float = 1.0,
    axis: int = -2,
    out: Any,
) -> Any:
    """alpha times the products of corresponding matrices: (..., n, k), (..., k, m) -> (..., n, m).

    Unlike MXNet's, the rows are always on the axis before the last.
    """
    whole = product(xp, _turned(x, transpose_a), _turned(y, transpose_b), out)
    return (whole,) if alpha == 1 else (whole, (xp.multiply, out, alpha, out))


batch_dot.grad(x=_batch_x, y=_batch_y)
gemm2.grad(
    x=lambda F, g, y, transpose_a, transpose_b, alpha: _batch_x(F, g * alpha, y, transpose_a, transpose_b),
    y=lambda F, g, x, transpose_a, transpose_b, alpha: _batch_y(F, g * alpha, x, transpose_a, transpose_b),
)


# ---- functions made of operators -----------------------------------------------------------------------------------


def _transposed(x: Any) -> Any:
    return nd_face.swapaxes(x, dim1=-1, dim2=-2)


@composed(method=False)
def linalg_gemm(
    A: Any, B: Any, C: Any, transpose_a: bool = False, transpose_b: bool = False, alpha: float = 1.0, beta: float = 1.0,
    axis: int = -2,
) -> Any:  # fmt: skip
    """alpha A B + beta C of corresponding matrices, A and B transposed on demand.  MXNet: linalg_gemm."""
    made = nd_face.linalg_gemm2(A, B, transpose_a=transpose_a, transpose_b=transpose_b, alpha=alpha, axis=axis)
    return made + C * beta


@composed(method=False)
def linalg_syrk(A: Any, transpose: bool = False, alpha: float = 1.0) -> Any:
    """alpha A A^T of each matrix, or alpha A^T A.  MXNet: linalg_syrk."""
    return nd_face.linalg_gemm2(A, A, transpose_a=transpose, transpose_b=not transpose, alpha=alpha)


def _triangle(A: Any, lower: bool) -> Any:
    return nd_face.linalg_triangle(A, lower=lower)


@composed(method=False)
def linalg_trmm(
    A: Any, B: Any, transpose: bool = False, rightside: bool = False, lower: bool = True, alpha: float = 1.0
) -> Any:
    """alpha op(t) B, or with `rightside` alpha B op(t): t is a triangle of A.  MXNet: linalg_trmm."""
    t = _triangle(A, lower)
    if rightside:
        return nd_face.linalg_gemm2(B, t, transpose_b=transpose, alpha=alpha)
    return nd_face.linalg_gemm2(t, B, transpose_a=transpose, alpha=alpha)


@composed(method=False)
def linalg_trsm(
    A: Any, B: Any, transpose: bool = False, rightside: bool = False, lower: bool = True, alpha: float = 1.0
) -> Any:
    """x with op(t) x = alpha B, or with `rightside` x op(t) = alpha B: t is a triangle of A.  MXNet: linalg_trsm."""
    solve = nd_face.linalg_solve_triangle
    if rightside:
        found = _transposed(solve(A, _transposed(B), lower=lower, transpose=not transpose))
    else:
        found = solve(A, B, lower=lower, transpose=transpose)
    return found if alpha == 1 else found * alpha


@composed(method=False)
def linalg_potri(A: Any) -> Any:
    """The inverse of A A^T, A being a Cholesky factor: lower triangular.  MXNet: linalg_potri."""
    made = nd_face.linalg_inverse(_triangle(A, True))
    return nd_face.linalg_gemm2(made, made, transpose_a=True)


@composed(method=False)
def linalg_sumlogdiag(A: Any) -> Any:
    """The sum of the logarithms of each diagonal: (..., n, n) -> (...).  MXNet: linalg_sumlogdiag."""
    return nd_face.sum(nd_face.log(nd_face.linalg_extractdiag(A)), axis=-1)
