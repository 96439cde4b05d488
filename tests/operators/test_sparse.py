"""Operators on sparse arrays against their dense values; lazy updates; row-sparse gradients."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.engine import Engine

sp = nd.sparse
STYPES = ("csr", "row_sparse")


def random(seed: int, stype: str = "default", shape: tuple[int, ...] = (5, 4), dtype: str = "float32") -> Any:
    """Small whole numbers, many of them 0."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(-3, 4, shape) * (rng.random(shape) < 0.4) * (rng.random((shape[0], 1)) < 0.7)
    return nd.array(raw, dtype=dtype).tostype(stype)


def check(found: Any, expected: Any, stype: str) -> None:
    assert found.stype == stype
    if stype != "default":
        found.check_format()
    np.testing.assert_array_equal(found.asnumpy(), expected)


# ---- elementwise -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stype", STYPES)
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
@pytest.mark.parametrize("seed", range(10))
def test_two_sparse_arrays(name: str, stype: str, seed: int) -> None:
    x, y = random(seed, stype), random(seed + 100, stype)
    op = getattr(operator, name)
    check(op(x, y), op(x.asnumpy(), y.asnumpy()), stype)
    check(op(x, x), op(x.asnumpy(), x.asnumpy()), stype)


@pytest.mark.parametrize("stype", STYPES)
def test_a_number(stype: str) -> None:
    x = random(1, stype)
    raw = x.asnumpy()
    check(x * 2, raw * 2, stype)
    check(2 * x, raw * 2, stype)
    check(x / 2, raw / 2, stype)
    check(-x, -raw, stype)
    check(x + 1, raw + 1, "default")
    check(1 - x, 1 - raw, "default")
    check(x**2, raw**2, "default")
    check(x > 0, (raw > 0).astype("f4"), "default")


@pytest.mark.parametrize("stype", STYPES)
def test_with_a_dense_array(stype: str) -> None:
    x, dense = random(2, stype), random(3) + 2
    raw, other = x.asnumpy(), dense.asnumpy()
    check(x + dense, raw + other, "default")
    check(dense + x, raw + other, "default")
    check(dense - x, other - raw, "default")
    check(x * dense, raw * other, stype)
    check(dense * x, raw * other, stype)
    check(x * dense[0:1], raw * other[0:1], "default")
    same = dense
    dense += x
    assert same is dense
    check(dense, raw + other, "default")


@pytest.mark.parametrize("stype", STYPES)
def test_in_place(stype: str) -> None:
    x, y = random(4, stype), random(5, stype)
    same, raw, other = x, x.asnumpy(), y.asnumpy()
    x += y
    x *= 3
    assert same is x
    check(x, (raw + other) * 3, stype)
    x -= nd.ones((5, 4))
    check(x, (raw + other) * 3 - 1, stype)


@pytest.mark.parametrize("stype", STYPES)
@pytest.mark.parametrize(
    "name", ["abs", "sqrt", "square", "sign", "sin", "floor", "relu", "expm1", "negative", "rint", "fix"]
)
def test_functions_that_are_0_at_0(name: str, stype: str) -> None:
    x = abs(random(6, stype))
    check(getattr(nd, name)(x), getattr(nd, name)(x.tostype("default")).asnumpy(), stype)
    check(getattr(x, name)(), getattr(nd, name)(x.tostype("default")).asnumpy(), stype)


@pytest.mark.parametrize("stype", STYPES)
def test_others_take_the_dense_value(stype: str) -> None:
    x = random(7, stype)
    raw = x.asnumpy()
    check(nd.cos(x), nd.cos(nd.array(raw)).asnumpy(), "default")
    check(x.sum(), [raw.sum()], "default")
    check(nd.sum(x, axis=0), raw.sum(0), "default")
    check(nd.concat(x, x, dim=1), np.concatenate([raw, raw], 1), "default")
    check(nd.clip(x, -1, 1), raw.clip(-1, 1), stype)
    check(nd.clip(x, 1, 2), raw.clip(1, 2), "default")
    check(nd.where(x, nd.ones((5, 4)), nd.zeros((5, 4))), (raw != 0).astype("f4"), "default")
    check(nd.add_n(x, x, x), raw * 3, stype)
    check(nd.zeros_like(x), raw * 0, stype)


@pytest.mark.parametrize("stype", STYPES)
def test_out(stype: str) -> None:
    x, dense, into = random(8, stype), nd.zeros((5, 4)), sp.zeros(stype, (5, 4))
    assert nd.elemwise_add(x, x, out=dense) is dense
    assert nd.elemwise_add(x, x, out=into) is into
    check(dense, x.asnumpy() * 2, "default")
    check(into, x.asnumpy() * 2, stype)
    nd.exp(dense, out=into)
    check(into, nd.exp(dense).asnumpy(), stype)


def test_csr_below_csr() -> None:
    x, y, z = (random(seed, "csr", (n, 4)) for seed, n in ((1, 3), (2, 0), (3, 5)))
    check(nd.concat(x, y, z, x, dim=0), np.concatenate([v.asnumpy() for v in (x, y, z, x)]), "csr")
    check(nd.concat(x, x), np.concatenate([x.asnumpy()] * 2, 1), "default")
    with pytest.raises(vd.Error):
        nd.concat(x, random(1, "csr", (3, 5)), dim=0)


def test_reductions_and_slices() -> None:
    x = random(10, "csr")
    raw = x.asnumpy()
    for axis in (0, 1, -1, (0,), (0, 1), None):
        check(nd.sum(x, axis=axis), np.atleast_1d(raw.sum(axis)), "default")
    check(nd.sum(x, axis=1, keepdims=True), raw.sum(1, keepdims=True), "default")
    check(nd.mean(x, axis=1), raw.mean(1), "default")
    for stype in STYPES:
        np.testing.assert_allclose(
            nd.norm(x.tostype("default").tostype(stype)).asnumpy(), [np.linalg.norm(raw)], rtol=1e-6
        )
    check(nd.slice(x, begin=(1,), end=(3,)), raw[1:3], "csr")
    check(nd.slice(x, begin=1, end=None), raw[1:], "csr")
    check(nd.slice(x, begin=(1, 0), end=(3, 2)), raw[1:3, :2], "default")
    check(nd.slice(x, begin=(None,), end=(None,), step=(-1,)), raw[::-1], "default")


# ---- retain and dot --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [[], [0], [4, 1], [0, 1, 2, 3, 4], [2, 2]])
def test_retain(wanted: list[int]) -> None:
    x = random(9, "row_sparse")
    expected = np.zeros((5, 4), "f4")
    expected[wanted] = x.asnumpy()[wanted]
    for found in (x.retain(nd.array(wanted)), sp.retain(x, np.array(wanted)), sp.retain(data=x, indices=wanted)):
        check(found, expected, "row_sparse")
        assert found.indices.asnumpy().tolist() == sorted(set(wanted))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
@pytest.mark.parametrize("seed", range(5))
def test_dot(seed: int, dtype: str) -> None:
    x, y, z = (
        random(seed, "csr", dtype=dtype),
        random(seed, shape=(4, 3), dtype=dtype),
        random(seed, shape=(5, 3), dtype=dtype),
    )
    a, b, c = (v.asnumpy().astype("f8") for v in (x, y, z))
    check(nd.dot(x, y), a @ b, "default")
    check(sp.dot(x, y.T, transpose_b=True), a @ b, "default")
    check(nd.dot(x, y.tostype("row_sparse")), a @ b, "default")
    check(nd.dot(x, z, transpose_a=True), a.T @ c, "row_sparse")
    check(nd.dot(x, z, transpose_a=True, forward_stype="default"), a.T @ c, "default")
    into = nd.zeros((4, 3), dtype=dtype)
    check(nd.dot(x, z, transpose_a=True, out=into), a.T @ c, "default")
    check(nd.dot(z.T, x), c.T @ a, "default")
    check(nd.dot(z, x, transpose_a=True), c.T @ a, "default")
    check(nd.dot(y, x, transpose_a=True, transpose_b=True), b.T @ a.T, "default")
    check(nd.dot(x, x, transpose_b=True), a @ a.T, "default")
    assert nd.dot(x, y).dtype == x.dtype


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: nd.dot(random(1, "csr"), nd.ones((5, 2))),
            "[dot] lhs csr float32(5, 4), rhs float32(5, 2): the lengths",
        ),
        (lambda: nd.dot(random(1, "csr"), nd.ones((4, 2), dtype="float64")), "dtypes differ"),
        (lambda: random(1, "csr") + nd.ones((3, 4)), "[add]"),
        (lambda: random(1, "csr") + random(1, "csr", dtype="float64"), "[add]"),
        (lambda: random(1, "row_sparse") + None, "[add]"),
        (lambda: random(1, "row_sparse").retain([5]), "[retain] row_sparse float32(5, 4)"),
        (lambda: random(1, "row_sparse").retain([[1]]), "[retain]"),
        (lambda: sp.retain(random(1, "csr"), [1]), "[retain]"),
        (
            lambda: nd.sgd_update(nd.ones((4, 4)), random(1, "row_sparse"), lr=1),
            "[sgd_update] weight float32(4, 4), grad row_sp",
        ),
        (lambda: nd.sgd_update(nd.ones((5, 4)), random(1, "row_sparse", dtype="float64"), lr=1), "[sgd_update]"),
        (lambda: nd.sgd_update(nd.ones((5, 4)), random(1, "row_sparse")), "[sgd_update] argument 'lr'"),
        (
            lambda: nd.adam_update(
                nd.ones((5, 4)), random(1, "row_sparse"), random(1, "row_sparse"), nd.ones((5, 4)), lr=1
            ),
            "mean",
        ),
        (lambda: nd.ones(1).attach_grad(stype="csr"), "[attach_grad] stype 'csr'"),
        (lambda: nd.array(2, dtype="float32").reshape(()).attach_grad(stype="row_sparse"), "row_sparse"),
    ],
)
def test_errors_name_the_operator_and_its_operands(call: Any, words: str) -> None:
    with pytest.raises(vd.Error) as caught:
        call()
    assert isinstance(caught.value, ValueError | TypeError)
    assert words in str(caught.value)


def test_gradients_flow_through_the_parts() -> None:
    """To the dense array that was cast, to what the matrix is multiplied by, and to the stored values."""
    x, y = random(11) + 0, random(12, shape=(4, 2))
    values = nd.array([2.0, 3.0])
    for a in (x, y, values):
        a.attach_grad()
    with autograd.record():
        matrix = x.tostype("csr") * 3
        total = nd.dot(matrix, y) + nd.dot(matrix.tostype("default"), y)
        rows = x.tostype("row_sparse").retain([0, 1]).tostype("default")
        own = nd.dot(sp.csr_matrix((values, [0, 1], [0, 1, 2]), shape=(2, 2)), nd.array([[1, 2], [3, 4]]))
        loss = total.sum() + (rows * rows).sum() + own.sum()
    loss.backward()
    raw = x.asnumpy()
    through = 6 * np.ones((5, 2)) @ y.asnumpy().T * (raw != 0)
    np.testing.assert_allclose(x.grad.asnumpy(), through + 2 * raw * np.array([1, 1, 0, 0, 0])[:, None])
    np.testing.assert_allclose(y.grad.asnumpy(), 6 * raw.T @ np.ones((5, 2)))
    assert values.grad.asnumpy().tolist() == [3, 7]


# ---- lazy updates ----------------------------------------------------------------------------------------------------

UPDATES: dict[str, tuple[int, dict[str, Any]]] = {
    "sgd_update": (0, {}),
    "sgd_mom_update": (1, {"momentum": 0.9}),
    "adam_update": (2, {"beta1": 0.8}),
    "adagrad_update": (1, {"epsilon": 1e-3}),
}
COMMON = {"lr": 0.1, "wd": 0.01, "rescale_grad": 0.5, "clip_gradient": 0.6}


@pytest.mark.parametrize("in_place", [True, False], ids=["out", "new"])
@pytest.mark.parametrize("name", UPDATES)
def test_only_the_rows_of_the_gradient_change(engine_kind: Engine, name: str, in_place: bool) -> None:
    count, more = UPDATES[name]
    w, states = nd.array(np.arange(1.0, 13).reshape(6, 2)), [nd.ones((6, 2)) for _ in range(count)]
    dense, kept = w.copy(), [s.copy() for s in states]
    for present in ([0, 3], [3, 5], []):
        before = [x.asnumpy() for x in (w, *states)]
        g = nd.array(np.random.default_rng(len(present)).normal(0, 1, (6, 2))).tostype("row_sparse").retain(present)
        new = getattr(nd.sparse, name)(w, g, *states, **COMMON, **more, **({"out": w} if in_place else {}))
        assert (new is w) == in_place
        if not in_place:
            assert w.asnumpy().tobytes() == before[0].tobytes(), "the weight changes only as out"
        whole = getattr(nd, name)(dense, g.tostype("default"), *kept, **COMMON, **more)
        w, absent = new, [i for i in range(6) if i not in present]
        for array, expected, old in zip((w, *states), (whole, *kept), before, strict=True):
            assert array.asnumpy()[present].tobytes() == expected.asnumpy()[present].tobytes()
            assert array.asnumpy()[absent].tobytes() == old[absent].tobytes()
        dense, kept = w.copy(), [s.copy() for s in states]


@pytest.mark.parametrize("name", ["sgd_update", "sgd_mom_update", "adam_update", "ftrl_update"])
def test_the_update_of_all_rows(name: str) -> None:
    count = {"ftrl_update": 2}.get(name) or UPDATES[name][0]
    more = {} if name == "ftrl_update" else {"lazy_update": False}
    g = random(3, "row_sparse")
    found, expected = ([nd.ones((5, 4)) for _ in range(count + 1)] for _ in range(2))
    getattr(nd, name)(found[0], g, *found[1:], lr=0.1, wd=0.1, out=found[0], **more)
    getattr(nd, name)(expected[0], g.tostype("default"), *expected[1:], lr=0.1, wd=0.1, out=expected[0])
    for a, b in zip(found, expected, strict=True):
        assert a.asnumpy().tobytes() == b.asnumpy().tobytes()


def test_lazy_updates_of_halves() -> None:
    w, g = nd.ones((3, 2), dtype="float16"), sp.row_sparse_array(([[1, 2]], [1]), shape=(3, 2), dtype="float16")
    m = nd.zeros((3, 2), dtype="float16")
    nd.sgd_mom_update(w, g, m, lr=0.5, out=w)
    assert w.asnumpy().tolist() == [[1, 1], [0.5, 0], [1, 1]]


# ---- row-sparse gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", ["write", "add"])
@pytest.mark.parametrize("retain", [False, True])
def test_gradients_of_tables(request_: str, retain: bool) -> None:
    index, table = nd.array([[1, 7], [1, 4]]), np.arange(18.0).reshape(9, 2)
    matrix = sp.csr_matrix(([1.0, 2, 3], [0, 7, 7], [0, 2, 2, 3]), shape=(3, 9))
    sparse, dense = nd.array(table), nd.array(table)
    sparse.attach_grad(request_, stype="row_sparse")
    dense.attach_grad(request_)
    for _ in range(2):
        for w in (sparse, dense):
            with autograd.record():
                picked = nd.Embedding(index, w, input_dim=9, output_dim=2, sparse_grad=True)
                loss = (picked * picked).sum() + nd.dot(matrix, w).sum() + (nd.take(w, index[0]) * 3).sum()
            loss.backward(retain_graph=retain)
    gradient = sparse.grad
    assert isinstance(gradient, sp.RowSparseNDArray)
    gradient.check_format()
    assert gradient.indices.asnumpy().tolist() == [0, 1, 4, 7]
    np.testing.assert_allclose(gradient.asnumpy(), dense.grad.asnumpy(), rtol=1e-6)
    assert sparse.grad is gradient, "one stable array"
    sparse.zero_grad()
    assert gradient.asnumpy().sum() == 0


def test_other_gradients_of_tables_are_cast() -> None:
    w = nd.array([[1.0, 2], [0, 0], [3, 4]])
    w.attach_grad(stype="row_sparse")
    with autograd.record():
        loss = (w * w).sum() + nd.Embedding(nd.array([1]), w, input_dim=3, output_dim=2).sum()
    loss.backward()
    assert w.grad.stype == "row_sparse"
    assert w.grad.asnumpy().tolist() == [[2, 4], [1, 1], [6, 8]]
    with autograd.record():
        loss = nd.dot(w, nd.zeros((2, 1))).sum()
    loss.backward()
    assert w.grad.indices.shape == (0,)


def test_marked_with_a_gradient_array() -> None:
    w, g = nd.ones((3, 2)), sp.zeros("row_sparse", (3, 2))
    autograd.mark_variables(w, g)
    with autograd.record():
        loss = nd.Embedding(nd.array([2, 2]), w, input_dim=3, output_dim=2).sum()
    loss.backward()
    assert g.asnumpy().tolist() == [[0, 0], [0, 0], [2, 2]]
    with pytest.raises(ValueError, match="the same expected"):
        autograd.mark_variables(w, sp.zeros("row_sparse", (3, 3)))


def test_grad_and_compute_gradient_are_dense() -> None:
    w = nd.ones((3, 2))
    w.attach_grad(stype="row_sparse")
    for compute in (lambda y: autograd.grad(y, w), lambda y: autograd.compute_gradient(y)[0]):
        with autograd.record():
            loss = nd.Embedding(nd.array([2, 2]), w, input_dim=3, output_dim=2).sum()
        found = compute(loss)
        assert type(found) is nd.NDArray
        assert found.asnumpy().tolist() == [[0, 0], [0, 0], [2, 2]]


def test_a_table_is_trained(engine_kind: Engine) -> None:
    """A step costs what its rows cost: the table's gradient never exists whole."""
    w, m = nd.ones((50_000, 4)), nd.zeros((50_000, 4))
    w.attach_grad(stype="row_sparse")
    nd.waitall()
    before = nd.statistics().live_bytes
    for step in range(3):
        with autograd.record():
            loss = nd.Embedding(nd.array([step, 49_999]), w, input_dim=50_000, output_dim=4, sparse_grad=True).sum()
        loss.backward()
        nd.sgd_mom_update(w, w.grad, m, lr=0.25, momentum=1, out=w)
    nd.waitall()
    assert nd.statistics().live_bytes < before + w.nbytes / 2
    assert w.asnumpy()[[0, 1, 2, 3, 49_999], 0].tolist() == [0.75, 0.75, 0.75, 1, 1 - 0.25 - 0.5 - 0.75]


def test_a_gradient_has_the_error_of_its_indices() -> None:
    with Engine(workers=1) as engine:
        w, index = nd.ones((3, 2)), nd.zeros(2)

        def fail() -> None:
            raise RuntimeError("no indices")

        engine.push(fail, writes=[index.var])
        w.attach_grad(stype="row_sparse")
        with autograd.record():
            loss = nd.Embedding(index, w, input_dim=3, output_dim=2).sum()
        loss.backward(wait=False)
        with pytest.raises(RuntimeError, match="no indices"):
            w.grad.wait_to_read()


def _failing(x: Any) -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError("no such rows")

    x._place.engine.push(fails, updates=[x])


@pytest.mark.parametrize("request_", ["write", "add"])
@pytest.mark.parametrize("kind", ["Embedding", "take", "out of range", "dot", "dense"])
def test_poison_stays_on_its_gradient(kind: str, request_: str) -> None:
    table, weight, other = nd.ones((5, 3)), nd.ones((2, 3)), nd.ones((2, 3))
    table.attach_grad(request_, stype="row_sparse")
    weight.attach_grad()
    other.attach_grad()
    indices, matrix = nd.array([1, 3]), sp.csr_matrix(([1.0, 1.0], [1, 3], [0, 1, 2]), shape=(2, 5))
    error: type[Exception] = ZeroDivisionError
    if kind == "out of range":
        indices, error = nd.array([1, 7]), IndexError
    elif kind == "dot":
        _failing(matrix._parts[1])
    else:
        _failing(indices)
    with autograd.record():
        before = other * 3
        if kind == "dense":
            y = table[:2] * indices.reshape((2, 1))
        elif kind == "Embedding":
            y = nd.Embedding(indices, table, input_dim=5, output_dim=3)
        else:
            y = sp.dot(matrix, table) if kind == "dot" else nd.take(table, indices, mode="raise")
        heads = [(y * weight).sum(), before.sum()]
    for _ in range(2):
        with pytest.raises(error):
            autograd.backward(heads, retain_graph=True)
        for look in (table.grad.wait_to_read, table.grad.asnumpy, table.grad.indices.asnumpy, weight.grad.asnumpy):
            with pytest.raises(error):
                look()
        assert (other.grad.asnumpy() == 3).all()

    table.grad[:] = 0
    with autograd.record():
        y = nd.take(table, nd.array([1, 3]))
    y.backward()
    check(table.grad, np.repeat([[0.0], [1], [0], [1], [0]], 3, 1), "row_sparse")
