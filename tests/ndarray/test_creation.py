"""Making arrays: from host data, zeros and their kin, random numbers; dtypes, contexts, conversion, pickling, repr."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import nd
from vardag.engine import Engine
from vardag.ndarray.dtype import NAMES

DTYPES = list(NAMES)


# ---- from host data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        3,
        2.5,
        True,
        [1, 2],
        (1.5, 2),
        [[1, 2], [3, 4]],
        [],
        np.ones((2, 3)),
        np.arange(4),
        np.array(7),
        np.zeros((0, 3)),
    ],
    ids=repr,
)
def test_float32_is_the_default_of_host_data(source: Any) -> None:
    x = nd.array(source)
    assert (x.dtype, x.shape) == (np.float32, np.shape(source))
    np.testing.assert_array_equal(x.asnumpy(), np.asarray(source, np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: str) -> None:
    host = np.array([0, 1, 2], dtype)
    for given in (dtype, np.dtype(dtype), np.dtype(dtype).type):
        x = nd.array([0, 1, 2], dtype=given)
        assert x.dtype is np.dtype(dtype).type
        assert x.itemsize * 3 == x.nbytes == host.nbytes
        assert x.asnumpy().tobytes() == host.tobytes()
    assert nd.array(x).dtype is x.dtype, "an array keeps its own"
    assert nd.zeros(2, dtype=dtype).asnumpy().dtype == dtype


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_astype_is_cs_conversion(source: str, target: str) -> None:
    host = np.array([0, 1, 2, 100]).astype(source)
    x = nd.array(host, dtype=source).astype(target)
    assert x.dtype is np.dtype(target).type
    assert x.asnumpy().tobytes() == host.astype(target).tobytes()


def test_a_host_array_is_read_at_the_call() -> None:
    host = np.ones(3, np.float32)
    x = nd.array(host)
    host[:] = 5
    assert x.asnumpy().tolist() == [1, 1, 1]


@pytest.mark.parametrize("order", ["C", "F", "step"])
def test_any_layout_of_host_data(order: str) -> None:
    host = np.arange(12.0).reshape(3, 4)
    host = {"C": host, "F": np.asfortranarray(host), "step": np.repeat(host, 2, 1)[::-1, ::2]}[order]
    np.testing.assert_array_equal(nd.array(host).asnumpy(), host)


def test_an_array_is_copied() -> None:
    x = nd.ones((3,))
    y = nd.array(x)
    y += 1
    assert x.asnumpy().tolist() == [1, 1, 1]


def test_overflow_is_infinite_and_warns_nobody() -> None:
    assert nd.array([1e300, -1e300]).asnumpy().tolist() == [np.inf, -np.inf]


# ---- zeros and their kin -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), 0, 3, (0, 2), (2, 3), [2, 3], np.array([2, 3])], ids=repr)
@pytest.mark.parametrize("dtype", [None, "int32", "float64", "bool"])
def test_filled(shape: Any, dtype: Any) -> None:
    for make, host in ((nd.zeros, np.zeros), (nd.ones, np.ones)):
        x, raw = make(shape, dtype=dtype), host(shape, dtype or np.float32)
        assert (x.shape, x.asnumpy().dtype, x.asnumpy().tobytes()) == (raw.shape, raw.dtype, raw.tobytes())
    assert nd.empty(shape, dtype=dtype).shape == raw.shape
    x = nd.full(shape, 7.9, dtype=dtype)
    assert (x.asnumpy() == np.array(7.9).astype(dtype or np.float32)).all()


@pytest.mark.parametrize("args", [(5,), (2, 7), (0, 10, 3), (5, 0, -2), (0, 1, 0.25), (1.5, 4), (3, 3), (0,)], ids=repr)
def test_arange(args: tuple[float, ...]) -> None:
    x = nd.arange(*args)
    assert x.dtype is np.float32
    np.testing.assert_allclose(x.asnumpy(), np.arange(*args), rtol=1e-6)
    np.testing.assert_array_equal(nd.arange(*args, repeat=2).asnumpy(), x.asnumpy().repeat(2))


def test_eye_and_linspace() -> None:
    for n, m, k in ((3, 0, 0), (2, 4, 1), (4, 2, -1)):
        np.testing.assert_array_equal(nd.eye(n, m, k).asnumpy(), np.eye(n, m or n, k))
    for endpoint in (True, False):
        found = nd.linspace(0, 1, 5, endpoint=endpoint)
        np.testing.assert_allclose(found.asnumpy(), np.linspace(0, 1, 5, endpoint), rtol=1e-6)


def test_likes() -> None:
    x = nd.array([[1, 2]], dtype="int32")
    assert nd.zeros_like(x).asnumpy().tolist() == [[0, 0]]
    assert nd.ones_like(x).dtype is np.int32


# ---- random numbers ------------------------------------------------------------------------------------------------


def draws() -> list[bytes]:
    vd.random.seed(42)
    found = [nd.random.uniform(shape=(100,)), nd.random.normal(shape=(3, 5)), nd.random.uniform(-1, 1, shape=(7,))]
    found += [x + 1 for x in found]
    found.append(nd.random.normal(2, 3, shape=(4,), dtype="float64"))
    return [x.asnumpy().tobytes() for x in found]


def test_one_seed_one_sequence(engine_kind: Engine) -> None:
    expected = draws()
    assert draws() == expected
    with Engine(kind="NaiveEngine", inline=False):
        assert draws() == expected
    vd.random.seed(43)
    assert nd.random.uniform(shape=(100,)).asnumpy().tobytes() != expected[0]


def test_random_numbers_are_as_asked() -> None:
    vd.random.seed(1)
    u = nd.random.uniform(2, 5, shape=(20_000,)).asnumpy()
    assert u.dtype == np.float32 and u.min() >= 2 and u.max() <= 5 and abs(u.mean() - 3.5) < 0.05
    n = nd.random.normal(1, 2, shape=(20_000,)).asnumpy()
    assert abs(n.mean() - 1) < 0.1 and abs(n.std() - 2) < 0.1
    assert nd.random.uniform().shape == (1,)


def test_a_seed_of_one_device() -> None:
    vd.random.seed(5, ctx=vd.cpu())
    a = nd.random.uniform(shape=(4,)).asnumpy()
    vd.random.seed(5, ctx=vd.cpu())
    assert nd.random.uniform(shape=(4,)).asnumpy().tobytes() == a.tobytes()


def test_draws_differ() -> None:
    vd.random.seed(5)
    seen = {nd.random.uniform(shape=(4,)).asnumpy().tobytes() for _ in range(50)}
    assert len(seen) == 50


# ---- contexts ------------------------------------------------------------------------------------------------------


def test_contexts() -> None:
    assert vd.cpu() == vd.Context("cpu", 0) == vd.Context(vd.cpu()) != vd.cpu(1)
    assert len({vd.cpu(), vd.cpu(0), vd.cpu(1), vd.gpu(0), vd.cpu_pinned()}) == 4
    assert [str(c) for c in (vd.cpu(), vd.gpu(2), vd.cpu_pinned(1))] == ["cpu(0)", "gpu(2)", "cpu_pinned(1)"]
    assert [c.device_typeid for c in (vd.cpu(), vd.gpu(), vd.cpu_pinned())] == [1, 2, 3]
    assert (vd.cpu() == "cpu(0)") is False


def test_the_current_context() -> None:
    outer = vd.current_context()
    with vd.cpu(1):
        assert nd.zeros(2).context == vd.cpu(1)
        with vd.cpu(2) as inner:
            assert nd.array([1]).context == inner == vd.cpu(2)
        assert nd.zeros(2, ctx=vd.cpu(3)).context == vd.cpu(3)
    assert nd.zeros(2).context == vd.current_context() == outer


def test_arrays_of_one_memory_meet() -> None:
    x, y = nd.ones(2, ctx=vd.cpu(0)), nd.ones(2, ctx=vd.cpu(1))
    assert [(x + y).context, (y + x).context, (y * 2).context] == [vd.cpu(0), vd.cpu(1), vd.cpu(1)]
    assert x.as_in_context(vd.cpu(0)) is x
    z = x.as_in_context(vd.cpu(1))
    z += 1
    assert (z.context, x.asnumpy().tolist(), z.asnumpy().tolist()) == (vd.cpu(1), [1, 1], [2, 2])
    assert x.copyto(vd.cpu(1)).context == vd.cpu(1)
    assert x.copyto(y) is y and y.context == vd.cpu(1)


# ---- copies, conversion, pickling, repr ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pickle", "copy", "deepcopy"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pickling_and_copying(how: str, dtype: str) -> None:
    base = nd.array([[0, 1, 2], [1, 0, 3]], dtype=dtype, ctx=vd.cpu(1))
    for x in (base, base[:, ::2], base[1], base[0:0]):
        make = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "copy": copy.copy, "deepcopy": copy.deepcopy}[how]
        y = make(x)
        assert type(y) is nd.NDArray and (y.shape, y.dtype, y.context) == (x.shape, x.dtype, x.context)
        assert y.asnumpy().tobytes() == x.asnumpy().tobytes()
        y[:] = 1
        assert base.asnumpy().tolist() == nd.array([[0, 1, 2], [1, 0, 3]], dtype=dtype).asnumpy().tolist()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_marks_are_not_pickled(protocol: int) -> None:
    x = nd.array([1, 2, 3])
    x.attach_grad()
    y = pickle.loads(pickle.dumps(x, protocol))
    assert y.grad is None and y.asnumpy().tolist() == [1, 2, 3]


def test_scalars() -> None:
    x = nd.array([2.5])
    assert (type(x.asscalar()), x.asscalar(), type(x.item()), x.item()) == (np.float32, 2.5, float, 2.5)
    assert (float(x), int(x), bool(x), bool(x - 2.5)) == (2.5, 2, True, False)
    assert nd.array([[1, 2]]).tolist() == [[1.0, 2.0]]
    assert 2 in nd.array([1, 2]) and 3 not in nd.array([1, 2])
    with pytest.raises(TypeError, match="length"):
        len(nd.array(3))


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (nd.ones((1, 2), ctx=vd.cpu()), "\n[[1. 1.]]\n<NDArray 1x2 @cpu(0)>"),
        (nd.array([], ctx=vd.cpu()), "\n[]\n<NDArray 0 @cpu(0)>"),
        (nd.array([1, 2], dtype="int32", ctx=vd.cpu(1)), "\n[1 2]\n<NDArray 2 @cpu(1)>"),
        (nd.array([[1, 2], [3, 4]], ctx=vd.cpu())[:, 1], "\n[2. 4.]\n<NDArray 2 @cpu(0)>"),
    ],
)
def test_repr(x: Any, text: str) -> None:
    assert repr(x) == str(x) == text


def test_arrays_are_hashable_by_identity() -> None:
    x, y = nd.ones(1), nd.ones(1)
    assert len({x, y, x}) == 2


def test_names_at_the_root() -> None:
    assert vd.base.MXNetError is vd.Error
    assert vd.nd.NDArray is vd.NDArray
    for name in ("nd", "autograd", "engine", "random", "cpu", "gpu", "Context", "current_context"):
        assert hasattr(vd, name)
    with pytest.raises(AttributeError):
        nd.no_such_operator  # noqa: B018
    with pytest.raises(AttributeError, match="no_such_method"):
        nd.ones(1).no_such_method()
