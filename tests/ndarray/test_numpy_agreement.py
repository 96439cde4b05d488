"""Every function of the table against NumPy: dtypes, shapes, axes, broadcasting, wrong arguments, `out`, recording.

The canonical face gives NumPy's shape, dtype and values.  The nd face gives NumPy's shape, (1,) in place of (), in the
array's own dtype; see docs/differences.md.  What NumPy refuses is an error, and no gradient is lost silently.
"""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import Error
from vardag.ndarray.array import Array
from vardag.ndarray.ndarray import NDArray
from vardag.operators import numpy_functions
from vardag.operators.numpy_functions import FUNCTIONS, REDUCTIONS

DTYPES = ("float32", "float64", "float16", "int32", "int64", "bool")
SHAPES = ((2, 3), (3,), (), (0, 3), (2, 1, 3))
AXES = (None, 0, -1, (), (0, 1), 5, [0], np.int64(0))
ROW = np.array([True, False, True])


def canonical(raw):
    return Array._from_host(np.array(raw))


def raws():
    random = np.random.default_rng(0)
    for dtype in DTYPES:
        for shape in SHAPES:
            size = int(np.prod(shape))
            values = random.permutation(size) - size // 3 + (0.25 if dtype.startswith("f") else 0)
            yield values.reshape(shape).astype(dtype)


def each(values, more=({},)):
    """Cases function(x, value, **named)."""
    return [(lambda make, x, v=v: (x, v), named) for v in values for named in more]


def alone(*named):
    """Cases function(x, **named)."""
    return [(lambda make, x: (x,), n) for n in named]


def reducing(*more):
    return [
        *alone({}, *({"axis": a} for a in AXES), *({"axis": a, "keepdims": True} for a in AXES), *more),
        *alone({"dtype": "f8"}, {"axis": 0, "where": ROW}, {"initial": 1}, {"axis": 0, "keepdims": np.True_}),
        *each(AXES),
    ]


def bounds():
    pairs = [
        (0, 1), (0.5, 1.5), (None, 1), (1, None), (None, None), (np.float32(0.5), np.float64(1.5)), (2, 1), (True, 2),
        (np.array([0, 0, 1]), 2), (np.int64(0), 1), ("a", 1), (10**12, 2 * 10**12),
    ]  # fmt: skip
    for low, high in pairs:
        yield lambda make, x, b=(low, high): (x, *b), {}
        yield lambda make, x: (x,), {"min": low, "max": high}
        yield lambda make, x: (x,), {"a_min": low, "a_max": high}
    yield lambda make, x: (x, make(np.zeros(3)), 1), {}
    yield from alone({"max": 1}, {"a_min": 0}, {"min": 0, "a_min": 0}, {})
    yield from each([0])


def choices():
    for y in (0, 1, 0.5, True, np.float64(0.5), np.int8(3), None, np.array([1, 2, 3]), 10**12, [1, 2, 3]):
        yield lambda make, x, y=y: (x > 0, x, y), {}
        yield lambda make, x, y=y: (x > 0, y, x), {}
        yield lambda make, x, y=y: (x, y, y), {}
        yield lambda make, x, y=y: (ROW, x, y), {}
        yield lambda make, x, y=y: (True, x, y), {}
    yield lambda make, x: (x > 0, x, x), {}
    yield lambda make, x: (x > 0, make(np.ones(3)), x), {}
    yield lambda make, x: (make(np.array([[True], [False]])), x, x), {}


def joined():
    others = (np.ones((1, 3)), np.ones((2, 3), "f8"), [[1, 2, 3]], 1)
    return [
        *((lambda make, x: ([x, x],), {"axis": a}) for a in AXES),
        *((lambda make, x, y=y: ((x, y),), {}) for y in others),
        (lambda make, x: ([x, make(np.ones((1, 3), "i4"))],), {}), (lambda make, x: ([x],), {}),
        (lambda make, x: (x,), {}), (lambda make, x: ([x, x],), {"dtype": "f8"}),
    ]  # fmt: skip


def products():
    others = (2, 2.5, True, None, np.float64(3), np.array([1, 2, 3]), np.ones((3, 2), "f4"), np.ones((3, 2), "i8"))
    for y in others:
        yield lambda make, x, y=y: (x, y), {}
        yield lambda make, x, y=y: (y, x), {}
    for shape in ((3,), (3, 4), (2, 3, 4)):
        yield lambda make, x, shape=shape: (x, make(np.ones(shape))), {}


def operands():
    for y in (1, 0.5, None, "a", np.array([1, 2, 3]), [1, 2, 3], np.float64(2), np.float32(2), True):
        yield lambda make, x, y=y: (x, y), {}
        yield lambda make, x, y=y: (y, x), {}
    yield lambda make, x: (x, make(np.ones(3))), {}
    yield lambda make, x: (x, x), {"dtype": "f8"}


ALONG = [*alone({}, {"kind": "stable"}, {"dtype": "f8"}, *({"axis": a} for a in AXES)), *each(AXES)]
ALONG_MORE = [*ALONG, *each([1, -2, (0,)])]
COPIES = alone({}, {"dtype": "f8"}, {"order": "F"}, {"shape": (4,)}, {"subok": False})
ORDER = ({}, {"order": "C"}, {"order": "F"})
CASES = {
    **dict.fromkeys([f for f, form in FUNCTIONS.items() if "keepdims" in form.arguments], reducing({"ddof": 1})),
    **dict.fromkeys([np.sort, np.argsort, np.cumsum], ALONG),
    **dict.fromkeys([np.flip, np.squeeze, np.expand_dims], ALONG_MORE),
    **dict.fromkeys([np.concatenate, np.stack], joined()),
    **dict.fromkeys([np.zeros_like, np.ones_like, np.copy], COPIES),
    np.clip: list(bounds()),
    np.where: list(choices()),
    np.transpose: [
        *each([None, (), (1, 0), (0, 1), (-1, 0), (0, 0), [1, 0], (0,), 0, (0, 2, 1)]), *alone({}, {"axes": (1, 0)})
    ],
    np.swapaxes: [(lambda make, x, a=a: (x, *a), {}) for a in ((0, 1), (0, -1), (5, 0), (0, 0), ("a", 0))],
    np.reshape: each(
        [(3, 2), -1, (-1,), 6, (0, 3), (0, -1), (1, 2, 3), (-2,), (3, -1), [3, 2], (), np.int64(6), (-1, -1), (2.0, 3)],
        ORDER,
    ),
    np.ravel: alone(*ORDER),
    np.broadcast_to: each([(0, 3), (2, 3), (4, 2, 3), 3, (3,), (), (2, 0), (-1, 3), [4, 2, 3], np.int64(3), 2.5]),
    np.tile: each([2, (2, 1), (1, 2, 1), (), 0, [2], np.int64(2), -1, (2.5,), 2.5, np.array([2, 1])]),
    np.repeat: each(
        [2, [1, 2], [1, 2, 1], 0, -1, 2.5, np.int64(2), np.array([1, 2]), (2,), True, "a"],
        [{"axis": a} for a in (None, 0, -1, 5, (0, 1))],
    ),
    np.dot: list(products()),
}  # fmt: skip


def attempt(function, make, raw, case):
    arguments, named = case
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = function(*arguments(make, make(raw)), **named)
            if isinstance(found, Array):
                found.wait_to_read()
            return found
    except Exception as error:
        return error


def check(function, make, raw, case):
    """A function of an array against NumPy's of the same values."""
    expected, found = attempt(function, np.array, raw, case), attempt(function, make, raw, case)
    values = case[0](np.array, raw)
    own = make is nd_array

    def words():
        return f"{function} {raw.dtype}{raw.shape} {values[1:]} {case[1]}: {found!r}, NumPy: {expected!r}"

    if isinstance(expected, Exception):
        overflows = own and isinstance(expected, OverflowError)  # the nd face converts bounds as C does
        unbounded = function is np.clip and raw.dtype == bool
        numbers = own and function in (np.power, np.subtract)  # 1 / x ** -y, cut off; booleans with a number are int64
        assert overflows or unbounded or numbers or isinstance(found, Error | type(expected)), words()
        return
    if isinstance(found, Exception):
        odd = any(x is None or isinstance(x, str) for x in values)  # NumPy makes arrays of objects
        refused = "dtypes differ" in str(found) or (function is np.subtract and raw.dtype == bool)
        assert isinstance(found, Error) and (odd or (own and refused)), words()
        return
    value, meant = np.asarray(found), np.asarray(expected)
    if meant.dtype.kind in "OU":
        return
    assert value.shape == (meant.shape or (found._zero_d if isinstance(found, Array) else ())), words()
    value = value.reshape(meant.shape)
    if isinstance(found, NDArray):
        if raw.dtype.kind != "f" and function not in PURE:
            return  # by the rules of the face
        assert found.dtype == (np.float32 if function is np.argsort else raw.dtype), words()
        with np.errstate(all="ignore"):
            meant = meant.astype(value.dtype)
    assert value.dtype == meant.dtype or (function is np.conjugate and raw.dtype == bool), words()
    if "where" not in case[1]:  # NumPy leaves the others as they were
        tolerance = 0 if value.dtype.kind != "f" else 4e-3 if np.float16 in (raw.dtype, value.dtype) else 1e-5
        assert np.allclose(value, meant, tolerance, tolerance, equal_nan=True), words()


REDUCES = [u.reduce for u in (*REDUCTIONS, np.logical_or)]
#: functions whose result in nd is NumPy's, cast to the array's dtype, for integers and booleans too
PURE = {*REDUCES, *(f for f, form in FUNCTIONS.items() if not form.promoted)}
OPERANDS = list(operands())
UNARY = alone({}, {"dtype": "f8"}, {"where": ROW})
CASES_OF_UFUNCS = {
    **dict.fromkeys(REDUCES, reducing()),
    **{u: OPERANDS if u.nin == 2 else UNARY for u in numpy_functions._ufuncs() if u.__name__ in vars(np)},
}


def given(make):
    return [raw for raw in raws() if make is canonical or raw.ndim]


def nd_array(raw):
    return nd.array(raw, dtype=np.asarray(raw).dtype)


FACES = pytest.mark.parametrize("make", [nd_array, canonical], ids=["nd", "numpy"])


def name(function):
    return getattr(function, "__name__", str(function)) + "_reduce" * (function in REDUCES)


ALL = {**CASES, **CASES_OF_UFUNCS}


def test_every_function_has_cases():
    assert set(CASES) == set(FUNCTIONS)


@FACES
@pytest.mark.parametrize("function", ALL, ids=name)
def test_agrees(function, make):
    for raw in given(make):
        for case in ALL[function]:
            check(function, make, raw, case)


@FACES
@pytest.mark.parametrize("function", ALL, ids=name)
def test_under_record_a_result_is_on_the_tape_or_an_error(function, make):
    def marked(raw):
        x = make(raw)
        if x.dtype == np.float32:
            autograd.mark_variables([x], [make(np.zeros(x.shape, x.dtype))])
        return x

    for raw in given(make):
        if raw.dtype == np.float32:
            for case in ALL[function]:
                with autograd.record():
                    found = attempt(function, marked, raw, case)
                assert isinstance(found, Array | Error | TypeError | ValueError), (case, found)


@FACES
@pytest.mark.parametrize("function", [f for f in FUNCTIONS if "out" in inspect.signature(f).parameters], ids=name)
def test_out(function, make):
    for raw in given(make):
        for arguments, named in [c for c in CASES[function] if "where" not in c[1]][:12]:
            expected = attempt(function, np.array, raw, (arguments, named))
            if isinstance(expected, Exception) or np.ndim(expected) == 0 or expected.dtype == object:
                continue
            host = np.zeros_like(expected)
            assert attempt(function, make, raw, (arguments, {**named, "out": host})) is host
            np.testing.assert_allclose(host, expected, 1e-3, 1e-3)
            found = attempt(function, make, raw, (arguments, named))
            if isinstance(found, Array):
                out = make(np.zeros(found.shape, found.dtype))
                assert attempt(function, make, raw, (arguments, {**named, "out": out})) is out
                np.testing.assert_array_equal(out.asnumpy(), found.asnumpy())
