"""nd.linalg: what tests/operators/test_registry.py does not try."""

from __future__ import annotations

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import ArgumentError, ArgumentTypeError

RNG = np.random.default_rng(0)
A = RNG.standard_normal((2, 3, 3)).astype("f")
S = A @ A.swapaxes(-1, -2) + 3 * np.eye(3, dtype="f")
B = RNG.standard_normal((2, 3, 3)).astype("f")


def close(found, expected) -> None:
    np.testing.assert_allclose(found.asnumpy(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("rightside", [False, True])
def test_products_and_solutions_with_triangles(transpose, lower, rightside) -> None:
    t = (np.tril if lower else np.triu)(S)
    op = t.swapaxes(-1, -2) if transpose else t
    how = {"transpose": transpose, "rightside": rightside, "lower": lower, "alpha": 0.5}
    made = nd.linalg.trmm(nd.array(S), nd.array(B), **how)
    close(made, 0.5 * (B @ op if rightside else op @ B))
    close(nd.linalg.trsm(nd.array(S), made, **{**how, "alpha": 2.0}), B)


def test_products() -> None:
    a, b, c = map(nd.array, (A, B, S))
    close(nd.linalg.gemm(a, b, c, transpose_a=True, alpha=2, beta=0.5), 2 * A.swapaxes(-1, -2) @ B + 0.5 * S)
    close(nd.linalg.gemm2(a, b, transpose_b=True), A @ B.swapaxes(-1, -2))
    close(nd.linalg.syrk(a, alpha=3), 3 * A @ A.swapaxes(-1, -2))
    close(nd.linalg.syrk(a, transpose=True), A.swapaxes(-1, -2) @ A)


def test_factors_belong_together() -> None:
    s = nd.array(S)
    factor = nd.linalg.potrf(s)
    close(nd.linalg.syrk(factor), S)
    close(nd.linalg.potri(factor), np.linalg.inv(S))
    close(nd.linalg.sumlogdiag(factor) * 2, np.linalg.slogdet(S)[1])
    q, lower = nd.linalg.gelqf(nd.array(A))
    close(nd.linalg.gemm2(lower, q), A)
    close(nd.linalg.gemm2(q, q, transpose_b=True), np.broadcast_to(np.eye(3), (2, 3, 3)))
    u, values = nd.linalg.syevd(s)
    close(nd.linalg.gemm2(u, nd.linalg.gemm2(nd.linalg.makediag(values), u), transpose_a=True), S)
    sign, logarithm = nd.linalg.slogdet(nd.array(A))
    close(sign * nd.exp(logarithm), np.linalg.det(A))
    close(nd.linalg.det(nd.array(A)), np.linalg.det(A))


def test_a_likelihood_is_differentiated() -> None:
    """log det S + trace(inv(S) B B^T) by a Cholesky factor; the gradient is inv(S) - inv(S) B B^T inv(S)."""
    s = nd.array(S[0])
    s.attach_grad()
    with autograd.record():
        factor = nd.linalg.potrf(s)
        z = nd.linalg.trsm(factor, nd.array(B[0]))
        y = 2 * nd.linalg.sumlogdiag(factor) + (z * z).sum()
    y.backward()
    inverse = np.linalg.inv(S[0])
    close(s.grad, inverse - inverse @ B[0] @ B[0].T @ inverse)


def test_values_as_mxnet_gives_them() -> None:
    nine = nd.arange(9).reshape((3, 3))
    for given, expected in (
        ({}, [0, 3, 4, 6, 7, 8]), ({"lower": False}, [0, 1, 4, 2, 5, 8]), ({"offset": 1}, [1, 2, 5]),
        ({"offset": -1}, [3, 6, 7]), ({"offset": -1, "lower": False}, [3, 6, 7]),
    ):  # fmt: skip
        assert nd.linalg.extracttrian(nine, **given).asnumpy().tolist() == expected
        made = nd.linalg.maketrian(nd.linalg.extracttrian(nine, **given), **given)
        assert sorted(made.asnumpy()[made.asnumpy() != 0].tolist()) == [x for x in sorted(expected) if x]
    assert nd.linalg.makediag(nd.array([1, 2]), offset=1).asnumpy().tolist() == [[0, 1, 0], [0, 0, 2], [0, 0, 0]]
    assert nd.linalg.extractdiag(nine, offset=-1).asnumpy().tolist() == [3, 7]
    assert nd.linalg.det(nd.array([[1, 2], [3, 4]])).shape == (1,)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: nd.linalg.potrf(nd.array([[1, 2], [2, 1]])), "linalg_potrf"),
        (lambda: nd.linalg.inverse(nd.array([[1, 2], [2, 4]])), "linalg_inverse"),
    ],
)
def test_matrices_that_have_none_are_an_error_on_the_data(call, name) -> None:
    made = call() + 1
    with pytest.raises(np.linalg.LinAlgError, match=rf"(?s)operator: {name}"):
        made.wait_to_read()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: nd.linalg.det(nd.ones((2, 3))), ArgumentError),
        (lambda: nd.linalg.potrf(nd.ones(3)), ArgumentError),
        (lambda: nd.linalg.inverse(nd.ones((2, 2), dtype="int32")), ArgumentTypeError),
        (lambda: nd.linalg.gelqf(nd.ones((3, 2))), ArgumentError),
        (lambda: nd.linalg.extractdiag(nd.ones((2, 2)), offset=2), ArgumentError),
        (lambda: nd.linalg.maketrian(nd.ones(4)), ArgumentError),
        (lambda: nd.linalg.trsm(nd.ones((2, 2)), nd.ones((3, 2))), ArgumentError),
        (lambda: nd.linalg.trsm(nd.ones((2, 2)), nd.ones((2, 2), dtype="float64")), ArgumentTypeError),
    ],
)
def test_wrong_operands_are_refused_at_the_call(call, error) -> None:
    with pytest.raises(error, match=r"\[linalg_"):
        call()


def test_the_namespace() -> None:
    assert {"potrf", "gemm2", "syevd", "det"} <= set(dir(nd.linalg))
    assert nd.linalg.potrf is nd.linalg_potrf
    with pytest.raises(AttributeError):
        _ = nd.linalg.nothing
