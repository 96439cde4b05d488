"""bfloat16, which needs the package ml_dtypes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import ArgumentError, ArgumentTypeError, Engine
from vardag.ndarray.array import Array

ml_dtypes = pytest.importorskip("ml_dtypes")
B = np.dtype(ml_dtypes.bfloat16)


def rounded(x):
    return np.asarray(x, np.float32).astype(B)


def bf16(values):
    return nd.array(values, dtype="bfloat16")


@pytest.mark.parametrize("spelling", ["bfloat16", B, ml_dtypes.bfloat16])
def test_creation(spelling) -> None:
    for x in (
        nd.array([1, 2.5], dtype=spelling), nd.zeros((2, 3), dtype=spelling), nd.ones(2, dtype=spelling),
        nd.full((2,), 7, dtype=spelling), nd.arange(3, dtype=spelling), nd.empty((2,), dtype=spelling),
        nd.ones(2).astype(spelling), nd.random.uniform(shape=(4,), dtype=spelling), nd.eye(3, dtype=spelling),
        nd.array(np.ones(3, B), dtype=spelling), nd.ones(2, dtype=spelling).zeros_like(),
    ):  # fmt: skip
        assert x.dtype == ml_dtypes.bfloat16
        assert x.asnumpy().dtype == B
        assert x.itemsize == 2
    assert "[1 2.5]" in repr(nd.array([1, 2.5], dtype=spelling))


@pytest.mark.parametrize("other", ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool"])
def test_conversions_are_numpys(other) -> None:
    raw = np.array([0, 1, 2, 3.14159, 100.3])
    there = nd.array(raw, dtype="float32").astype("bfloat16")
    assert there.asnumpy().tobytes() == rounded(raw).tobytes()
    assert there.astype(other).asnumpy().tolist() == rounded(raw).astype(other).tolist()
    assert nd.array(raw, dtype=other).astype("bfloat16").asnumpy().tolist() == raw.astype(other).astype(B).tolist()


def test_arithmetic_is_float32_rounded_once() -> None:
    rng = np.random.default_rng(0)
    a, b = (rounded(rng.uniform(0.5, 2, (5, 7))) for _ in range(2))
    x, y = bf16(a), bf16(b)
    wide, other = a.astype("f"), b.astype("f")
    for got, expected in (
        (x + y, wide + other), (x * 0.1, wide * np.float32(B.type(0.1))), (x / y, wide / other), (1 - x, 1 - wide),
        (nd.exp(x), np.exp(wide)), (x**2, wide**2), (nd.dot(x, y.T), wide @ other.T), (x.sum(), wide.sum(keepdims=1)),
        (nd.sigmoid(x), 1 / (1 + np.exp(-wide))), (x.mean(axis=0), wide.mean(0)), (-x, -wide), (abs(x), abs(wide)),
    ):  # fmt: skip
        assert got.dtype == ml_dtypes.bfloat16
        np.testing.assert_allclose(got.asnumpy().astype("f").ravel(), expected.ravel(), rtol=1 / 256)
    assert (x > y).asnumpy().tolist() == (wide > other).tolist()
    assert x.argmax().asscalar() == wide.argmax()


def test_a_long_sum_is_not_done_in_bfloat16() -> None:
    """Which would stop at 256."""
    assert nd.ones(100_000, dtype="bfloat16").sum().asscalar() == rounded(100_000)
    assert nd.dot(nd.ones((1, 5000), dtype="bfloat16"), nd.ones((5000, 1), dtype="bfloat16")).asscalar() == rounded(
        5000
    )


def test_no_promotion_in_nd_and_numpys_in_the_other_face() -> None:
    x = bf16([1, 2])
    with pytest.raises(ArgumentTypeError, match=r"\[add\] x bfloat16\(2,\), y float32\(2,\): dtypes differ.*astype"):
        x + nd.ones(2)
    canonical = Array._from_host(np.ones(2, B))
    assert (canonical + Array._from_host(np.ones(2, "f"))).dtype == np.float32
    assert (canonical + 1.5).dtype == ml_dtypes.bfloat16
    with pytest.raises(ArgumentTypeError, match="float16 and bfloat16 have no common dtype"):
        canonical + Array._from_host(np.ones(2, np.float16))
    assert (x + 1.9).asnumpy().tolist() == rounded([2.9, 3.9]).tolist()


def test_indexing_views_and_in_place() -> None:
    x = bf16([[1, 2, 3], [4, 5, 6]])
    assert x[1, ::-1].asnumpy().tolist() == [6, 5, 4]
    assert x[x > 3].asnumpy().tolist() == [4, 5, 6]
    assert x[[1, 0]].asnumpy().tolist() == [[4, 5, 6], [1, 2, 3]]
    x[0] += 10
    x[x > 12] = 0
    x[:, 2] = 7
    assert x.asnumpy().tolist() == [[11, 12, 7], [4, 5, 7]]
    assert nd.arange(3)[bf16([2, 0])].asnumpy().tolist() == [2, 0]  # floats are indices in nd


def test_gradients_of_any_order_and_their_dtype() -> None:
    x = bf16([0.5, 1, 2])
    x.attach_grad()
    with autograd.record():
        (first,) = autograd.grad([(x * x * x).sum()], [x], create_graph=True)
    first.backward()
    assert first.dtype == x.grad.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(first.asnumpy().astype("f"), [0.75, 3, 12], rtol=1e-2)
    np.testing.assert_allclose(x.grad.asnumpy().astype("f"), [3, 6, 12], rtol=1e-2)


def test_a_step_of_training_with_float32_weights() -> None:
    rng = np.random.default_rng(1)
    data, label = bf16(rng.standard_normal((64, 10))), nd.array(rng.integers(0, 2, 64))
    master = nd.array(rng.standard_normal((2, 10)) * 0.1)
    w, b, losses = master.astype("bfloat16"), nd.zeros(2, dtype="bfloat16"), []
    w.attach_grad()
    for _ in range(30):
        with autograd.record():
            scores = nd.log_softmax(nd.FullyConnected(data, w, b, num_hidden=2))
            loss = -nd.pick(scores, label.astype("bfloat16")).mean()
        loss.backward()
        nd.mp_sgd_update(w, w.grad, master, lr=0.5, out=w)
        losses.append(float(loss.asscalar()))
    assert losses[-1] < 0.8 * losses[0]
    assert w.asnumpy().tobytes() == master.asnumpy().astype(B).tobytes()


@pytest.mark.parametrize("size", [50, 300_000])
def test_the_same_bits_everywhere(size) -> None:
    raw, found = rounded(np.random.default_rng(2).uniform(0.5, 1.5, size)), []
    for engine in ({"kind": "NaiveEngine"}, {"workers": 1}, {"workers": 3}, {"workers": 2, "fusion": False}):
        with Engine(**engine):
            x = bf16(raw)
            x.attach_grad()
            with autograd.record():
                y = nd.tanh(x * x + x) * 2 - nd.softmax(x.reshape((-1, 50))).reshape((-1,))
                z = y.sum()
            z.backward()
            found.append([a.asnumpy().tobytes() for a in (y, z, x.grad)])
    assert all(f == found[0] for f in found)


def test_copies_and_pickles() -> None:
    x = bf16([[1, 2.5], [3, 4]])
    for other in (x.copy(), copy.deepcopy(x), pickle.loads(pickle.dumps(x)), pickle.loads(pickle.dumps(x, 5))):
        assert other.dtype == ml_dtypes.bfloat16
        assert other.asnumpy().tobytes() == x.asnumpy().tobytes()
    seen = np.asarray(nd.ones(5000, dtype="bfloat16"))
    assert seen.dtype == B and not seen.flags.writeable


@pytest.mark.parametrize("name", ["x.params", "x.safetensors"])
@pytest.mark.parametrize("shape", [(3,), (2, 0), (4, 5), ()])
def test_files(tmp_path, name, shape) -> None:
    x = bf16(np.random.default_rng(3).standard_normal(shape))
    nd.save(tmp_path / name, {"x": x})
    y = nd.load(tmp_path / name)["x"]
    assert (y.shape, y.dtype) == (x.shape, ml_dtypes.bfloat16)
    assert y.asnumpy().tobytes() == x.asnumpy().tobytes()


def test_what_numpy_cannot_say_is_refused(tmp_path) -> None:
    x = bf16([1, 2])
    with pytest.raises(ArgumentError, match=r"\[save\].*array 0 is of bfloat16.*\.astype"):
        nd.save(tmp_path / "x.npz", [x])
    assert not list(tmp_path.iterdir())
    with pytest.raises(BufferError, match=r"\[__dlpack__\] bfloat16\(2,\).*\.astype"):
        np.from_dlpack(x)
    with pytest.raises(BufferError, match=r"\[to_dlpack_for_write\] bfloat16\(2,\)"):
        x.to_dlpack_for_write()
    assert (nd.from_numpy(np.ones(3, B)) + 1).asnumpy().tolist() == [2, 2, 2]


def test_without_the_package() -> None:
    """As on a machine that has not got it."""
    program = """
import sys
sys.modules["ml_dtypes"] = None
from vardag import nd
for make in (lambda: nd.zeros(2, dtype="bfloat16"), lambda: nd.ones(2).astype("bfloat16")):
    try:
        make()
    except ValueError as error:
        assert "pip install 'vardag[bfloat16]'" in str(error), error
    else:
        raise SystemExit("no error")
assert (nd.ones(2, dtype="float16") + 1).asnumpy().tolist() == [2, 2]
nd.exp(nd.ones(2, dtype="float64")).wait_to_read()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_sparse() -> None:
    x = bf16([[0, 1], [2, 0]])
    rows = x.tostype("csr")
    assert rows.dtype == ml_dtypes.bfloat16
    assert nd.sparse.dot(rows, x).asnumpy().tolist() == [[2, 0], [0, 2]]
    assert (rows + rows).asnumpy().tolist() == [[0, 2], [4, 0]]
    assert x.tostype("row_sparse").tostype("default").asnumpy().tolist() == [[0, 1], [2, 0]]


def test_scalars_of_it_are_operands() -> None:
    half = B.type(0.5)
    assert (bf16([1, 2]) * half).asnumpy().tolist() == [0.5, 1]
    assert (half - nd.ones(2)).asnumpy().tolist() == [-0.5, -0.5]
    assert nd.full((2,), B.type(2.5), dtype="int32").asnumpy().tolist() == [2, 2]
