"""Factorizations, inverses and determinants of stacks of square matrices, and their triangles and diagonals.

All of LAPACK by NumPy and SciPy, which go through a stack without Python.  Each gradient is made of the same operators.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import linalg

from ..ndarray.device import one_blas_thread
from .faces import Rule
from .infer import floating, uniform
from .schema import Attributes, Inferred, Meta, Metas, Sample, operator


def _stacks() -> bool:
    """Whether this SciPy solves stacks of triangles."""
    try:
        linalg.solve_triangular(np.ones((2, 1, 1)), np.ones((2, 1, 1)))
    except ValueError:
        return False
    return True


one_blas_thread()  # SciPy has a BLAS of its own
STACKS = _stacks()
LARGE = 24  # matrices of a stack from which SciPy is quicker than NumPy's solution of general systems
RULE = Rule(rename={"A": "x", "B": "y"}, method=False)

#: well-conditioned matrices: symmetric, positive definite
_DEFINITE = [
    np.array([[4.0, 1.0, 0.5], [1.0, 3.0, -0.5], [0.5, -0.5, 2.0]]),
    np.array([[[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.3], [-0.3, 3.0]]]),
]
_REGULAR = [np.array([[2.0, 1.0, 0.5], [-1.0, 3.0, 0.25], [0.5, -0.5, -2.0]]), np.array([[[2.0, 0.5], [0.1, 1.0]]] * 2)]


def _known(meta: Meta | None) -> Meta:
    assert meta is not None
    return meta


def _square(meta: Meta | None) -> Meta:
    shape, dtype = _known(meta)
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError("square matrices, (..., n, n), expected")
    floating(meta)
    return shape, dtype


def _like(metas: Metas, attributes: Attributes) -> Inferred:
    return (_square(metas[0]),), attributes


def _cubic(metas: Metas, made: Metas, attributes: Attributes) -> float:
    shape, _ = _known(metas[0])
    return 0.2 * math.prod(shape[:-1]) * shape[-1] ** 2 + 1000.0 * math.prod(shape[:-2])


def turned(F: Any, x: Any) -> Any:
    """Every matrix transposed."""
    return F.swapaxes(x, dim1=-1, dim2=-2)


# ---- triangles and diagonals -----------------------------------------------------------------------------------------


@operator(
    "linalg_triangle", infer=_like, nd=RULE, widen=False,
    samples=[Sample((3, 3)), Sample((2, 3, 3), lower=False, offset=1)],
    reference=lambda x, lower=True, offset=0: np.tril(x, offset) if lower else np.triu(x, offset),
)  # fmt: skip
def triangle(xp: Any, x: Any, *, lower: bool = True, offset: int = 0, out: Any) -> None:
    """x, and zeros outside of a triangle."""
    out[...] = xp.tril(x, offset) if lower else xp.triu(x, offset)


triangle.grad(x=lambda F, g, lower, offset: F.linalg_triangle(g, lower=lower, offset=offset))


def _from_diagonal(metas: Metas, attributes: Attributes, what: str) -> tuple[Meta, int]:
    """Square matrices, and how long their diagonal `offset` is."""
    shape, dtype = _known(metas[0])
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError("square matrices, (..., n, n), expected")
    n = shape[-1] - abs(attributes["offset"])
    if n <= 0:
        raise ValueError(f"offset {attributes['offset']}: matrices of {shape[-1]} rows have no such {what}")
    return (shape, dtype), n


def _diagonal_of(metas: Metas, attributes: Attributes) -> Inferred:
    (shape, dtype), n = _from_diagonal(metas, attributes, "diagonal")
    return (((*shape[:-2], n), dtype),), attributes


@operator(
    "linalg_extractdiag", infer=_diagonal_of, nd=RULE, widen=False,
    samples=[Sample((3, 3)), Sample((2, 3, 3), offset=1), Sample((2, 4, 4), offset=-2)],
    reference=lambda x, offset=0: np.diagonal(x, offset, -2, -1),
)  # fmt: skip
def extractdiag(xp: Any, x: Any, *, offset: int = 0, out: Any) -> None:
    """A diagonal of each matrix: (..., n, n) -> (..., n - |offset|); above the main one for offset > 0."""
    out[...] = xp.diagonal(x, offset, -2, -1)


def _diagonal_into(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _known(metas[0])
    if not shape or not shape[-1]:
        raise ValueError("rows of numbers, (..., n), expected")
    n = shape[-1] + abs(attributes["offset"])
    return (((*shape[:-1], n, n), dtype),), attributes


@operator(
    "linalg_makediag", infer=_diagonal_into, nd=RULE, widen=False,
    samples=[Sample((3,)), Sample((2, 3), offset=1), Sample((2, 2), offset=-2)],
    reference=lambda x, offset=0: np.apply_along_axis(lambda row: np.diag(row, offset), -1, x),
)  # fmt: skip
def makediag(xp: Any, x: Any, *, offset: int = 0, out: Any) -> None:
    """Matrices with these rows as a diagonal, zeros elsewhere: (..., n) -> (..., n + |offset|, n + |offset|)."""
    rows = xp.arange(x.shape[-1])
    out[...] = 0
    out[..., rows + max(-offset, 0), rows + max(offset, 0)] = x


extractdiag.grad(x=lambda F, g, offset: F.linalg_makediag(g, offset=offset))
makediag.grad(x=lambda F, g, offset: F.linalg_extractdiag(g, offset=offset))


def _places(xp: Any, n: int, offset: int, lower: bool) -> Any:
    """The rows and columns of a triangle: below a diagonal under the main one row by row, above one over it column by
    column."""
    if offset < 0 or (offset == 0 and lower):
        return xp.tril_indices(n, offset)
    return xp.tril_indices(n, -offset)[::-1]


def _triangle_of(metas: Metas, attributes: Attributes) -> Inferred:
    (shape, dtype), n = _from_diagonal(metas, attributes, "triangle")
    return (((*shape[:-2], n * (n + 1) // 2), dtype),), attributes


@operator(
    "linalg_extracttrian", infer=_triangle_of, nd=RULE, widen=False,
    samples=[Sample((3, 3)), Sample((2, 3, 3), lower=False), Sample((4, 4), offset=1), Sample((2, 4, 4), offset=-2)],
    reference=lambda x, offset=0, lower=True: x[(..., *_places(np, x.shape[-1], offset, lower))],
)  # fmt: skip
def extracttrian(xp: Any, x: Any, *, offset: int = 0, lower: bool = True, out: Any) -> None:
    """A triangle of each matrix: (..., n, n) -> (..., m (m + 1) / 2), m = n - |offset|.

    That below the diagonal `offset` if it is under the main one, row by row; above it if it is over it, column by
    column; `lower` says which for 0.
    """
    out[...] = x[(..., *_places(xp, x.shape[-1], offset, lower))]


def _triangle_into(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _known(metas[0])
    m = (math.isqrt(8 * shape[-1] + 1) - 1) // 2 if shape else 0
    if not shape or m * (m + 1) // 2 != shape[-1] or not m:
        raise ValueError("as many elements as a triangle has, m (m + 1) / 2, expected along the last axis")
    n = m + abs(attributes["offset"])
    return (((*shape[:-1], n, n), dtype),), attributes


def _made_triangle(x: Any, offset: int = 0, lower: bool = True) -> Any:
    n = (math.isqrt(8 * x.shape[-1] + 1) - 1) // 2 + abs(offset)
    made = np.zeros((*x.shape[:-1], n, n), x.dtype)
    made[(..., *_places(np, n, offset, lower))] = x
    return made


@operator(
    "linalg_maketrian", infer=_triangle_into, nd=RULE, widen=False,
    samples=[Sample((6,)), Sample((2, 3), lower=False), Sample((2, 6), offset=1), Sample((3,), offset=-2)],
    reference=_made_triangle,
)  # fmt: skip
def maketrian(xp: Any, x: Any, *, offset: int = 0, lower: bool = True, out: Any) -> None:
    """Matrices with such a triangle, zeros elsewhere: what `linalg_extracttrian` undoes."""
    out[...] = 0
    out[(..., *_places(xp, out.shape[-1], offset, lower))] = x


extracttrian.grad(x=lambda F, g, offset, lower: F.linalg_maketrian(g, offset=offset, lower=lower))
maketrian.grad(x=lambda F, g, offset, lower: F.linalg_extracttrian(g, offset=offset, lower=lower))


# ---- inverses and determinants ---------------------------------------------------------------------------------------


@operator(
    "linalg_inverse", infer=_like, nd=RULE, cost=_cubic,
    samples=[Sample(x) for x in _REGULAR], reference=np.linalg.inv,
)  # fmt: skip
def inverse(xp: Any, x: Any, *, out: Any) -> None:
    """The inverse of each matrix: (..., n, n).  Of a singular one: LinAlgError, raised at the wait."""
    out[...] = xp.linalg.inv(x)


inverse.grad(x=lambda F, g, out: -F.matmul(F.matmul(turned(F, out), g), turned(F, out)))


def _number(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _square(metas[0])
    return ((shape[:-2], dtype),), attributes


@operator(
    "linalg_det", infer=_number, nd=RULE, cost=_cubic,
    samples=[Sample(x) for x in _REGULAR], reference=np.linalg.det,
)  # fmt: skip
def det(xp: Any, x: Any, *, out: Any) -> None:
    """The determinant of each matrix: (..., n, n) -> (...).  The gradient wants it not to be 0."""
    out[...] = xp.linalg.det(x)


def _spread(F: Any, g: Any) -> Any:
    """A number for each matrix, to be multiplied with it."""
    return F.reshape(g, shape=(*g.shape, 1, 1))


det.grad(x=lambda F, g, x, out: _spread(F, g * out) * turned(F, F.linalg_inverse(x)))


def _two_numbers(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _square(metas[0])
    return ((shape[:-2], dtype),) * 2, attributes


@operator(
    "linalg_slogdet", infer=_two_numbers, outputs=("sign", "logabsdet"), nd=RULE, cost=_cubic,
    samples=[Sample(x) for x in _REGULAR],
    reference=lambda x: tuple(np.linalg.slogdet(x)),
)  # fmt: skip
def slogdet(xp: Any, x: Any, *, sign: Any, logabsdet: Any) -> None:
    """The sign and the logarithm of the absolute value of each determinant: (..., n, n) -> (...), (...)."""
    sign[...], logabsdet[...] = xp.linalg.slogdet(x)


slogdet.grad(x=lambda F, g_logabsdet, x: _spread(F, g_logabsdet) * turned(F, F.linalg_inverse(x)))


# ---- factorizations --------------------------------------------------------------------------------------------------


def _symmetric(x: Any) -> Any:
    return (x + x.swapaxes(-1, -2)) / 2


@operator(
    "linalg_potrf", infer=_like, nd=RULE, cost=_cubic,
    samples=[Sample(x) for x in _DEFINITE], reference=lambda x: np.linalg.cholesky(_symmetric(x)),
)  # fmt: skip
def potrf(xp: Any, x: Any, *, out: Any) -> None:
    """The Cholesky factor of each matrix: lower triangular, with x = out out^T.  (..., n, n), symmetric.

    Of one that is not positive definite: LinAlgError, raised at the wait.  What is not symmetric is made so, (x + x^T)
    / 2, and so the gradient is.
    """
    out[...] = xp.linalg.cholesky(_symmetric(x))


def mirrored(F: Any, x: Any) -> Any:
    """The lower triangle, and above the diagonal the same."""
    return F.linalg_triangle(x) + turned(F, F.linalg_triangle(x, offset=-1))


def _potrf(F: Any, g: Any, out: Any) -> Any:
    middle = mirrored(F, F.matmul(turned(F, out), F.linalg_triangle(g))) * 0.5
    left = F.linalg_solve_triangle(out, middle, transpose=True)
    return turned(F, F.linalg_solve_triangle(out, turned(F, left), transpose=True))


potrf.grad(x=_potrf)


def _solved(metas: Metas, attributes: Attributes) -> Inferred:
    (a, _), (b, _) = _square(metas[0]), _known(metas[1])
    if len(a) != len(b) or a[:-2] != b[:-2] or b[-2] != a[-1]:
        raise ValueError(f"stacks of equal leading axes, (..., {a[-1]}, m) beside (..., {a[-1]}, {a[-1]}), expected")
    floating(metas[1])
    return ((b, uniform(*metas)),), attributes


def _solution(x: Any, y: Any, lower: bool = True, transpose: bool = False) -> Any:
    x = np.tril(x) if lower else np.triu(x)
    return np.linalg.solve(x.swapaxes(-1, -2) if transpose else x, y)


@operator(
    "linalg_solve_triangle", infer=_solved, nd=RULE, cost=_cubic, reference=_solution,
    samples=[
        Sample(_DEFINITE[0], (3, 2)), Sample(_DEFINITE[1], (2, 2, 3), transpose=True),
        Sample(_DEFINITE[0], (3, 1), lower=False), Sample(_DEFINITE[1], (2, 2, 2), lower=False, transpose=True),
    ],
)  # fmt: skip
def solve_triangle(xp: Any, x: Any, y: Any, *, lower: bool = True, transpose: bool = False, out: Any) -> None:
    """z with t z = y, or t^T z = y, t being a triangle of x: (..., n, n), (..., n, m) -> (..., n, m)."""
    if not y.size:
        return
    if x.ndim == 2 or (STACKS and x.shape[-1] >= LARGE):  # it looks at the triangle alone
        x, y = xp.ascontiguousarray(x), xp.ascontiguousarray(y)
        out[...] = linalg.solve_triangular(x, y, trans=1 if transpose else 0, lower=lower, check_finite=False)
        return
    x = xp.tril(x) if lower else xp.triu(x)
    out[...] = xp.linalg.solve(x.swapaxes(-1, -2) if transpose else x, y)


def _solve_y(F: Any, g: Any, x: Any, lower: bool, transpose: bool) -> Any:
    return F.linalg_solve_triangle(x, g, lower=lower, transpose=not transpose)


def _solve_x(F: Any, g: Any, x: Any, out: Any, lower: bool, transpose: bool) -> Any:
    back = -_solve_y(F, g, x, lower, transpose)
    pair = (out, back) if transpose else (back, out)
    return F.linalg_triangle(F.matmul(pair[0], turned(F, pair[1])), lower=lower)


solve_triangle.grad(x=_solve_x, y=_solve_y)


def _wide(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _known(metas[0])
    if len(shape) < 2 or not 0 < shape[-2] <= shape[-1]:
        raise ValueError("matrices with at least as many columns as rows, (..., n, m), expected")
    floating(metas[0])
    return ((shape, dtype), ((*shape[:-1], shape[-2]), dtype)), attributes


def _factors(x: Any) -> Any:
    q, r = np.linalg.qr(x.swapaxes(-1, -2))
    return q.swapaxes(-1, -2), r.swapaxes(-1, -2)


@operator(
    "linalg_gelqf", infer=_wide, outputs=("q", "l"), nd=RULE, cost=_cubic,
    samples=[Sample(x) for x in _REGULAR] + [Sample(np.array([[1.0, 0.5, -0.3], [0.2, 2.0, 1.0]]))],
    reference=_factors,
)  # fmt: skip
def gelqf(xp: Any, x: Any, *, q: Any, l: Any) -> None:  # noqa: E741
    """x = l q with orthonormal rows q and l lower triangular: (..., n, m) -> (..., n, m), (..., n, n); n <= m.

    The gradient wants n independent rows.
    """
    q[...], l[...] = _factors(x)


def _gelqf(F: Any, g_q: Any, g_l: Any, q: Any, l: Any) -> Any:  # noqa: E741
    middle = F.matmul(turned(F, l), F.linalg_triangle(g_l)) - F.matmul(g_q, turned(F, q))
    return F.linalg_solve_triangle(l, g_q + F.matmul(mirrored(F, middle), q), transpose=True)


gelqf.grad(x=_gelqf)


def _vectors(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _square(metas[0])
    if not shape[-1]:
        raise ValueError("matrices of at least one row expected")
    return ((shape, dtype), (shape[:-1], dtype)), attributes


def _eigen(x: Any) -> Any:
    """Rows of eigenvectors, the element of each that is largest positive, and the values, ascending."""
    values, vectors = np.linalg.eigh(_symmetric(x))
    rows = vectors.swapaxes(-1, -2)
    where = np.abs(rows).argmax(-1)[..., None] if rows.size else np.zeros((*rows.shape[:-1], 1), int)
    return rows * np.sign(np.take_along_axis(rows, where, -1)) if rows.size else rows, values


@operator(
    "linalg_syevd", infer=_vectors, outputs=("u", "l"), nd=RULE, cost=_cubic, samples=[Sample(x) for x in _DEFINITE],
    reference=_eigen,
)  # fmt: skip
def syevd(xp: Any, x: Any, *, u: Any, l: Any) -> None:  # noqa: E741
    """The eigenvectors, as rows of u, and the eigenvalues l, ascending: x = u^T diag(l) u.  x symmetric: (..., n, n).

    Of each row the element that is largest in magnitude is positive.
    What is not symmetric is made so, and so the gradient is; that of u wants the values to differ.
    """
    u[...], l[...] = _eigen(x)


def _syevd(F: Any, g_u: Any, g_l: Any, u: Any, l: Any) -> Any:  # noqa: E741
    one = F.linalg_makediag(F.ones_like(l))
    apart = F.expand_dims(l, axis=-2) - F.expand_dims(l, axis=-1)
    between = (1 / (apart + one) - one) * F.matmul(u, turned(F, g_u))
    made = F.matmul(F.matmul(turned(F, u), F.linalg_makediag(g_l) + between), u)
    return (made + turned(F, made)) * 0.5


syevd.grad(x=_syevd)
