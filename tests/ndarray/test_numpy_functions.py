"""NumPy's functions on arrays: an operator where there is one, NumPy on copies elsewhere, never a lost gradient."""

from __future__ import annotations

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import ArgumentTypeError, Engine
from vardag.engine.lifecycle import set_default
from vardag.engine.testing import Gate
from vardag.ndarray.array import Array
from vardag.operators import numpy_functions
from vardag.operators.numpy_functions import FUNCTIONS

RAW = np.array([[3.0, 1.0, 2.0], [0.5, 4.0, 1.5]], "f")
MORE = {
    np.clip: (1, 3), np.transpose: ((1, 0),), np.swapaxes: (0, 1), np.expand_dims: (1,), np.reshape: ((3, 2),),
    np.broadcast_to: ((4, 2, 3),), np.tile: ((2, 1),), np.repeat: (2, 1), np.flip: (1,), np.cumsum: (1,),
    np.argsort: (1,), np.sort: (0,), np.argmax: (1,), np.argmin: (0,),
}  # fmt: skip


def canonical(raw):
    return Array._from_host(np.array(raw))


def arguments(function, make):
    x = make(RAW)
    if function is np.where:
        return x > 1, x, make(RAW * 2)
    if function in (np.concatenate, np.stack):
        return ([x, make(RAW * 2)],)
    if function is np.dot:
        return x, make(RAW.T.copy())
    return x, *MORE.get(function, ())


@pytest.mark.parametrize("make", [nd.array, canonical], ids=["nd", "numpy"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_what_is_an_operator(function, make):
    found = function(*arguments(function, make))
    expected = function(*arguments(function, np.array))
    if make is nd.array and function in (np.var, np.std):  # the nd face has none
        assert found == expected
        return
    assert type(found) is type(make(RAW))
    assert found.shape == (np.shape(expected) or make(RAW)._zero_d)
    np.testing.assert_allclose(found.asnumpy().reshape(np.shape(expected)), expected, rtol=1e-6)


@pytest.mark.parametrize("make", [nd.array, canonical], ids=["nd", "numpy"])
@pytest.mark.parametrize(
    "function", sorted(numpy_functions._ufuncs(), key=lambda u: u.__name__), ids=lambda u: u.__name__
)
def test_ufuncs(function, make):
    if function.__name__ not in vars(np):
        pytest.skip("one of SciPy's")
    first, second = RAW / (0.5 if function is np.arccosh else 5), RAW.T.copy() if function is np.matmul else RAW / 4
    raws = [first, second][: function.nin]
    found, expected = function(*map(make, raws)), function(*raws)
    assert type(found) is type(make(RAW))
    np.testing.assert_allclose(found.asnumpy(), expected, rtol=1e-5)


def test_nothing_waits():
    with Engine(workers=1) as engine:
        old = set_default(engine)
        try:
            x = nd.ones((3, 4))
            gate = Gate()
            engine.push(lambda *_: gate(), updates=[x])
            y = np.exp(x) + np.sum(x, axis=0) - np.concatenate([x, x])[:1]
            shape = np.shape(y), np.ndim(y), np.size(y)
            gate.open()
            assert shape == ((3, 4), 2, 12)
            assert np.allclose(y.asnumpy(), np.e + 3 - 1)
        finally:
            set_default(old)


def test_gradients():
    x = nd.array([1, 2, 3])
    x.attach_grad()
    with autograd.record():
        y = np.sum(np.multiply(np.exp(x), 2) + np.concatenate([x, x])[1:4] * np.float32(3))
    y.backward()
    np.testing.assert_allclose(x.grad.asnumpy(), 2 * np.exp([1, 2, 3]) + [3, 3, 3], rtol=1e-5)


def test_host_operands_on_the_left():
    h = np.full((2, 3), 2, "f")
    x = nd.array(RAW)
    for found, expected in (
        (h + x, h + RAW), (h * x, h * RAW), (h - x, h - RAW), (h / x, h / RAW), (np.float32(3) * x, 3 * RAW),
        (np.float64(3) - x, 3 - RAW), (h > x, h > RAW), (h == x, h == RAW), (np.add.reduce(x), RAW.sum(0)),
        (np.maximum.reduce(x, axis=1), RAW.max(1)), (h @ x.T, h @ RAW.T),
    ):  # fmt: skip
        assert type(found) is nd.NDArray
        np.testing.assert_allclose(found.asnumpy(), expected, rtol=1e-6)


def test_out():
    x, y, h = nd.array(RAW), nd.zeros((2, 3)), np.zeros((2, 3), "f")
    assert np.exp(x, out=y) is y
    np.testing.assert_allclose(y.asnumpy(), np.exp(RAW), rtol=1e-6)
    assert np.exp(x, out=h) is h
    np.testing.assert_allclose(h, np.exp(RAW), rtol=1e-6)
    h += x
    assert type(h) is np.ndarray
    np.testing.assert_allclose(h, np.exp(RAW) + RAW, rtol=1e-6)
    z = nd.zeros(3)
    assert np.sum(x, 0, None, z) is z
    assert np.sum(x, axis=0, out=z) is z
    np.testing.assert_allclose(z.asnumpy(), RAW.sum(0), rtol=1e-6)
    assert np.clip(x, 1, 2, y) is y
    np.testing.assert_array_equal(y.asnumpy(), RAW.clip(1, 2))
    k = np.zeros(3, "f")
    assert np.sum(x, axis=0, out=k) is k
    np.testing.assert_allclose(k, RAW.sum(0), rtol=1e-6)
    np.copyto(y, x)
    np.testing.assert_array_equal(y.asnumpy(), RAW)


def test_other_functions_are_numpys_on_copies():
    x = nd.array(RAW)
    assert np.allclose(x, RAW)
    assert np.array_equal(x, x)
    assert type(np.median(x)) is np.float32
    assert np.median(x) == np.median(RAW)
    np.testing.assert_array_equal(np.percentile(x, 50, axis=0), np.percentile(RAW, 50, axis=0))
    np.testing.assert_array_equal(np.sum(x, axis=1, dtype="d", initial=2), np.sum(RAW, axis=1, dtype="d", initial=2))
    np.testing.assert_array_equal(np.add.accumulate(x), np.add.accumulate(RAW))
    np.testing.assert_array_equal(np.isnan(x), np.isnan(RAW))
    np.testing.assert_array_equal(np.where(x > 1)[0], np.where(RAW > 1)[0])
    np.testing.assert_array_equal(np.where(x > 1, x, 0), np.where(RAW > 1, RAW, 0))
    np.testing.assert_array_equal(np.flip(x), np.flip(RAW))
    np.testing.assert_array_equal(np.concatenate([x, x], axis=None), np.concatenate([RAW, RAW], axis=None))
    with pytest.raises(ValueError, match="reshape"):
        np.reshape(x, (0, -1))
    np.testing.assert_array_equal(np.einsum("ij->j", x), RAW.sum(0))
    np.testing.assert_array_equal(np.where(np.array([True, False, True]), x, RAW), RAW)  # by NumPy's broadcasting
    np.testing.assert_array_equal(np.exp(x, where=RAW > 1, out=np.zeros((2, 3), "f")) > 0, RAW > 1)


def test_no_gradient_is_lost():
    x = nd.array(RAW)
    x.attach_grad()
    with autograd.record():
        for call in (lambda: np.median(x), lambda: np.add.accumulate(x), lambda: np.isnan(x * 2)):
            with pytest.raises(ArgumentTypeError, match="gradient"):
                call()
        assert np.median(x.detach()) == np.median(RAW)
    assert np.median(x) == np.median(RAW)


def test_nothing_is_written_into_a_copy():
    x = nd.array(RAW)
    for call in (
        lambda: np.add.at(x, 0, 1), lambda: np.put(x, 0, 1), lambda: np.fill_diagonal(x, 0),
        lambda: np.place(x, RAW > 1, 0),
        lambda: np.percentile(x, 50, 0, nd.zeros(3)), lambda: np.nan_to_num(x, copy=False),
        lambda: np.isnan(x, out=nd.zeros((2, 3))),
    ):  # fmt: skip
        with pytest.raises(ArgumentTypeError, match="cannot write"):
            call()
    np.testing.assert_array_equal(x.asnumpy(), RAW)


def marked(raw=RAW):
    x = nd.array(raw)
    x.attach_grad()
    return x


MASKED = np.ma.array(RAW, mask=RAW > 2)


def test_masks_are_not_dropped():
    x = nd.array(RAW)
    for found in (
        np.add(x, MASKED),
        np.add(MASKED, x),
        MASKED + x,
        x + MASKED,
        x * MASKED,
        np.add.reduce(MASKED, out=None),
    ):
        assert type(found) is np.ma.MaskedArray
    np.testing.assert_array_equal((x + MASKED).mask, MASKED.mask)
    np.testing.assert_array_equal((x < MASKED).mask, MASKED.mask)
    for call in (lambda: nd.add(x, MASKED), lambda: x.__iadd__(MASKED), lambda: np.exp(MASKED, out=nd.zeros((2, 3)))):
        with pytest.raises(ArgumentTypeError, match=r"mask|cannot write"):
            call()
    with pytest.raises(ArgumentTypeError, match=r"MaskedArray numpy float32\(2, 3\): an array or a number expected"):
        nd.add(x, MASKED)
    np.testing.assert_array_equal(x.asnumpy(), RAW)


def test_masks_and_gradients():
    x = marked()
    with autograd.record():
        y = x * 2
        for call in (lambda: np.add(y, MASKED), lambda: np.add(MASKED, y), lambda: np.concatenate([y, MASKED])):
            with pytest.raises(ArgumentTypeError, match="gradient"):
                call()
        total = MASKED.copy()
        for call in (
            lambda: MASKED + y, lambda: y + MASKED, lambda: total.__iadd__(y), lambda: np.ma.add(y, MASKED),
            lambda: np.asarray(y), lambda: np.array([y, y]), lambda: np.add.reduce([y, y]), lambda: np.array(y),
        ):  # fmt: skip
            with pytest.raises(ArgumentTypeError, match=r"\[__array__\].*gradient"):
                call()
        assert y.asnumpy().shape == np.asarray(y.detach()).shape == np.asarray(nd.ones((2, 3))).shape
    np.testing.assert_array_equal(np.asarray(y), RAW * 2)


class Units(np.ndarray):
    """A NumPy array that reads what it meets."""

    def __array_ufunc__(self, ufunc, method, *inputs, **named):
        return "units", getattr(ufunc, method)(*(np.asarray(x).view(np.ndarray) for x in inputs), **named)


class Wrapper:
    """Another library's class, which is handed the array itself."""

    def __array_ufunc__(self, ufunc, method, *inputs, **named):
        return ufunc(*(x.x if isinstance(x, Wrapper) else x for x in inputs), **named)

    def __init__(self, x):
        self.x = x


class Silent:
    def __array_ufunc__(self, *_, **__):
        return NotImplemented


def test_others_that_know_ufuncs():
    x, units = nd.array(RAW), RAW.copy().view(Units)
    for found in (np.add(x, units), np.add(units, x), x + units, units + x):
        assert found[0] == "units"
        np.testing.assert_array_equal(found[1], RAW * 2)
    with pytest.raises(ArgumentTypeError, match="Units"):
        nd.add(x, units)
    y = marked()
    with autograd.record():
        assert type(np.add(y, Wrapper(y))) is nd.NDArray
        z = np.multiply(Wrapper(y), y)
        with pytest.raises(ArgumentTypeError, match="gradient"):
            np.add(y * 2, units)
    z.backward()
    np.testing.assert_allclose(y.grad.asnumpy(), 2 * RAW)
    with pytest.raises(TypeError, match="all returned NotImplemented"):
        np.add(x, Silent())
    with pytest.raises(TypeError):
        x + Silent()


def test_lists_are_operands():
    x = marked()
    with autograd.record():
        y = np.multiply(x, [1, 2, 3])
        with pytest.raises(ArgumentTypeError, match="gradient"):
            np.add(x, [y, y][:1])
    y.backward()
    np.testing.assert_array_equal(x.grad.asnumpy(), np.broadcast_to([1, 2, 3], (2, 3)))


def test_promoted_by_casts_that_are_recorded():
    x = canonical(RAW)
    autograd.mark_variables([x], [canonical(np.zeros_like(RAW))])
    with autograd.record():
        y = np.where(RAW > 1, np.clip(x, np.float64(1), 3), np.arange(3)) + np.concatenate([x, np.ones((2, 3))])[:2]
    assert y.dtype == np.float64
    y.backward()
    np.testing.assert_array_equal(x.grad.asnumpy(), 1 + (RAW > 1) * (RAW <= 3))
    i = canonical(np.arange(4))
    np.testing.assert_array_equal(np.clip(i, 0.5, 2.5).asnumpy(), [0.5, 1, 2, 2.5])
    assert np.where(i > 1, i > 2, 0).dtype == np.int64


def test_where_chooses_in_nd():
    x = marked()
    with autograd.record():
        y = np.where(x > 1, x, 0)
        with pytest.raises(ArgumentTypeError, match="gradient"):  # rows, by the face
            np.where(nd.array([1, 0]), x, x)
    y.backward()
    np.testing.assert_array_equal(x.grad.asnumpy(), RAW > 1)
    np.testing.assert_array_equal(np.where(nd.array([1, 0, 1]), x, 0), np.where([1, 0, 1], RAW, 0))


def test_errors_say_what_is_expected():
    x = nd.array(RAW)
    for call, words in (
        (lambda: np.add(x, None), r"\[add\] y None: an array or a number expected"),
        (lambda: nd.add(None, x), r"\[add\] x None: an array or a number expected"),
        (lambda: np.add(canonical(RAW), None), r"\[add\] y None: an array or a number expected"),
        (lambda: nd.expand_dims(x, axis=(0, 1)), r"\[expand_dims\] x float32\(2, 3\): axis \(0, 1\): an int expected"),
        (lambda: nd.repeat(x, repeats=(1, 2)), r"\[repeat\] repeats \(1, 2\): a whole number expected"),
    ):
        with pytest.raises(ArgumentTypeError, match=words):
            call()
    assert nd.sum(x, axis=np.int64(0)).shape == (3,)
    assert nd.reshape(x, shape=np.int64(6)).shape == (6,)


def test_bfloat16_and_numbers():
    x = canonical(nd.array([1, 2, 3], dtype="bfloat16").asnumpy())
    for found, expected in (
        (np.clip(x, 1.5, 2), [1.5, 2, 2]), (np.where(x > 1, x, 0), [0, 2, 3]), (np.concatenate([x, x])[:3], [1, 2, 3]),
    ):  # fmt: skip
        assert found.dtype == x.dtype
        np.testing.assert_array_equal(found.asnumpy().astype("f"), expected)


def test_booleans_of_the_nd_face():
    x = nd.array([True, False], dtype="bool")
    np.testing.assert_array_equal(nd.relu(x).asnumpy(), [True, False])
    np.testing.assert_array_equal(nd.clip(x, None, None).asnumpy(), [True, False])
    with pytest.raises(ArgumentTypeError, match="sign"):
        nd.sign(x)


def test_halves_are_promoted_by_others():
    x = canonical(RAW.astype("e"))
    assert np.add(x, canonical(np.arange(3))).dtype == np.float64
    assert np.add(x, np.arange(3.0)).dtype == np.float64
    assert (x + 1).dtype == (x + 0.5).dtype == np.float16


def test_errors_are_the_operators():
    x = nd.array(RAW)
    with pytest.raises(ArgumentTypeError, match="dtypes differ"):
        np.add(x, nd.ones((2, 3), dtype="int32"))
    with pytest.raises(ArgumentTypeError):
        x + np.array([object()] * 3)

    engine = x._place.engine

    def fails(*_):
        raise ZeroDivisionError

    engine.push(fails, updates=[x])
    y = np.exp(x)
    for look in (lambda: np.median(y), y.asnumpy):
        with pytest.raises(ZeroDivisionError):
            look()
