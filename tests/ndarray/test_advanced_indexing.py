"""Masks and arrays of indices against NumPy: values, assignment, gradients, errors, what waits and what does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.engine import Engine
from vardag.ndarray.array import Array

RAW = np.arange(24.0).reshape(2, 3, 4)
FIRST, SECOND, THIRD = np.array([1, 0, -1]), np.array([0, -3, 2]), np.array([[3, -1], [0, 0]])
MASK = RAW % 3 == 1
FACES = pytest.mark.parametrize("cls", [nd.Array, nd.NDArray])

#: keys of an array of shape (2, 3, 4), by what they show
KEYS: dict[str, Any] = {
    "one axis": FIRST,
    "an inner axis": np.s_[:, SECOND],
    "the last axis": np.s_[..., THIRD],
    "two axes": (FIRST, SECOND),
    "three axes": (FIRST, SECOND, 1),
    "broadcast": (FIRST[:, None], SECOND),
    "a list": [0, 1, 1],
    "nested lists": [[0, 1], [1, 0]],
    "tuples of lists": ([0, 1], [2, 1], [3, -4]),
    "a range": range(2),
    "no elements": [],
    "an empty array": np.zeros((0, 2), int),
    "an integer before": np.s_[1, SECOND],
    "an integer beside": np.s_[:, 1, FIRST],
    "apart, the axes go first": np.s_[FIRST, :, SECOND],
    "an integer apart": np.s_[0, :, THIRD],
    "an ellipsis between": np.s_[FIRST, ..., SECOND],
    "an empty ellipsis between": np.s_[:, SECOND, ..., THIRD[:, :1]],
    "None between": np.s_[FIRST, None, SECOND],
    "None before": np.s_[None, FIRST],
    "None after": np.s_[:, SECOND, None],
    "a slice beside": np.s_[1:, SECOND],
    "steps": np.s_[::-1, SECOND, ::2],
    "backwards, apart": np.s_[FIRST, ::-2, FIRST],
    "small integers": np.array([1, 0], np.uint8),
    "a transposed array": np.array([[0, 1], [1, 1], [0, 0]], np.int32).T,
    "a mask": MASK,
    "a mask of the first axis": np.array([False, True]),
    "a mask of an inner axis": np.s_[:, np.array([True, False, True])],
    "a mask of two axes": MASK[:, :, 0],
    "a mask of the last two": np.s_[1, MASK[0]],
    "an integer apart from a mask": np.s_[0, :, MASK[0, 0]],
    "a mask and indices": (MASK[:, :, 0], [0, 1]),
    "two masks": (np.array([True, True]), np.array([True, False, True])),
    "a mask apart from indices": np.s_[MASK[:, 0, 0], :, [1]],
    "nothing chosen": np.zeros((2, 3, 4), bool),
    "a list of truth values": [True, False],
    "True": True,
    "False": np.s_[0, False],
    "a truth value of NumPy": np.s_[..., np.True_],
    "a truth value and indices": np.s_[:, SECOND, True],
}
each_key = pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())


def make(cls: type[Array], raw: Any) -> Any:
    return cls._from_host(np.array(raw, order="C"))


def spelled(key: Any, kind: str, cls: type[Array]) -> Any:
    """The key with its arrays as the host's, as arrays of the library, or as what comparisons give."""

    def one(item: Any) -> Any:
        if kind == "host" or not isinstance(item, np.ndarray):
            return item
        if kind == "compared" and item.dtype == bool:
            return make(cls, item.astype(float)) > 0.5
        return make(cls, item if item.dtype in (bool, np.uint8) else item.astype(np.int32))

    return tuple(map(one, key)) if isinstance(key, tuple) else one(key)


def same(x: Any, raw: Any) -> None:
    """Equal bytes; the nd face has (1,) where NumPy has a scalar."""
    raw = np.asarray(raw)
    assert x.shape == (raw.shape or type(x)._zero_d)
    assert x.asnumpy().tobytes() == np.ascontiguousarray(raw).tobytes()


# ---- values ----------------------------------------------------------------------------------------------------------


@FACES
@each_key
@pytest.mark.parametrize("kind", ["host", "library", "compared"])
def test_reading(cls: type[Array], key: Any, kind: str) -> None:
    x = make(cls, RAW)
    found = x[spelled(key, kind, cls)]
    assert type(found) is cls
    same(found, RAW[key])
    found[...] = -1
    same(x, RAW)


@FACES
@each_key
@pytest.mark.parametrize("kind", ["host", "library", "compared"])
def test_assignment(cls: type[Array], key: Any, kind: str) -> None:
    """Of a scalar, one element, what broadcasts, all elements, with more axes, of another dtype."""
    shape = RAW[key].shape
    full = -1 - np.arange(float(np.prod(shape))).reshape(shape)
    x = make(cls, RAW)
    for given in (
        7.0,
        full.reshape(-1)[:1] if full.size else np.ones(1),
        full[:, :1] if full.ndim > 1 else full[:1],
        full[:1],
        full,
        full[None, None],
        full.astype(np.int32),
    ):
        raw = RAW.copy()
        raw[key] = np.broadcast_to(given, (1, *shape))[0] if np.ndim(given) <= len(shape) else full
        for value in (
            (given,) if isinstance(given, float) else (given, make(cls, given), given.tolist() if given.size else given)
        ):
            x[...] = make(cls, RAW)
            x[spelled(key, kind, cls)] = value
            same(x, raw)


@FACES
@pytest.mark.parametrize("layout", [np.s_[::-1], np.s_[:, ::2], np.s_[:, 1:, 1:3], np.s_[1]], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "uint8", "bool"])
def test_of_any_view_and_dtype(cls: type[Array], layout: Any, dtype: str) -> None:
    raw = RAW.astype(dtype)
    x = make(cls, raw)
    view, host = x[layout], raw[layout]
    for key in ([0, 0, -1], np.s_[..., [1, 0]], host > 2, np.s_[[0], ..., [1]]):
        same(view[key], host[key])
        host[key] += host.dtype.type(1)
        view[key] = view[key] + make(cls, np.ones(1, dtype))
        same(x, raw)


def test_a_view_is_updated_through_masks_and_indices() -> None:
    raw = np.arange(12, dtype=np.float32).reshape(3, 4)
    x = nd.array(raw)
    rows, host = x[1:], raw[1:]
    rows[rows > 6] = 0
    host[host > 6] = 0
    same(x, raw)
    x[:, [0, 2]] += 1
    raw[:, [0, 2]] += 1
    same(x, raw)
    x[1:][:, ::2][nd.array([0, 0]), [1, 1]] += 5  # once, as in NumPy
    raw[1, 2] += 5
    same(x, raw)


def test_the_last_of_several_values_stays() -> None:
    x = nd.zeros((3,))
    x[[0, 0, 2, 0]] = [1, 2, 3, 4]
    assert x.asnumpy().tolist() == [4, 0, 3]
    x[nd.array([[1, 1], [1, 0]])] = nd.array([[5, 6], [7, 8]])
    assert x.asnumpy().tolist() == [8, 7, 3]


@pytest.mark.parametrize("source", [np.s_[::-1], np.s_[[2, 0, 1]], np.s_[:]], ids=str)
@pytest.mark.parametrize("key", [np.s_[[1, 2, 0]], np.s_[np.array([True] * 3)]], ids=["indices", "mask"])
def test_overlapping_source_and_target(key: Any, source: Any) -> None:
    raw = np.arange(12, dtype=np.float32).reshape(3, 4)
    for spell in ("host", "library"):
        x, host = nd.array(raw), raw.copy()
        x[spelled(key, spell, nd.NDArray)] = x[source]
        host[key] = raw[source]
        same(x, host)
        y, host = nd.array(raw), raw.copy()
        y[1:, :3][:, spelled(key, spell, nd.NDArray)] = y[:2, :3]
        host[1:, :3][:, key] = raw[:2, :3]
        same(y, host)


def test_a_mask_that_is_the_array_itself() -> None:
    x = make(nd.Array, np.array([True, False, True]))
    x[x] = False
    assert x.asnumpy().tolist() == [False] * 3


def test_arrays_without_axes() -> None:
    x = make(nd.Array, np.array(3.0))
    assert x[x > 2].asnumpy().tolist() == [3.0]
    x[x > 2] = 5
    same(x, np.array(5.0))
    row = make(nd.Array, np.arange(3.0))
    same(row[make(nd.Array, np.array(1))], np.array(1.0))
    assert nd.array([1, 2, 3])[nd.array(1)].shape == (1,)


# ---- truth values in the nd face -------------------------------------------------------------------------------------

x = nd.array([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]])
MARKED: dict[str, Callable[[], Any]] = {
    "comparison": lambda: x > 0,
    "reflected": lambda: nd.array([0.0]) < x,
    "with an array": lambda: nd.greater(x, nd.zeros((2, 3))),
    "broadcast": lambda: nd.broadcast_greater(x, nd.zeros((1, 3))),
    "recorded": lambda: recorded(lambda: x > 0),
    "pending": lambda: (x + nd.zeros((2, 3)))[:] > 0,
    "and": lambda: nd.logical_and(x > 0, x > -9),
    "not": lambda: nd.logical_not(x <= 0),
    "copy": (x > 0).copy,
    "view": lambda: nd.concat(x > 0, x > 0, dim=0)[:2],
    "reshape": lambda: (x.reshape((-1,)) > 0).reshape((2, 3)),
    "transpose": lambda: (x.T > 0).T,
    "detach": (x > 0).detach,
    "gathered": lambda: (x > 0)[[0, 1]],
    "small integers": lambda: x.astype("int32") > 0,
}  # fmt: skip


def recorded(function: Callable[[], Any]) -> Any:
    x.attach_grad()
    with autograd.record():
        return function()


@pytest.mark.parametrize("make_mask", MARKED.values(), ids=MARKED.keys())
def test_what_remembers_that_it_is_logical(make_mask: Callable[[], Any]) -> None:
    mask = make_mask()
    assert mask.dtype in (np.float32, np.int32)
    assert x[mask].asnumpy().tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    "forget",
    [
        lambda m: m + 0,
        lambda m: m.astype("int32"),
        lambda m: m * m,
        lambda m: nd.array(m.asnumpy()),
        lambda m: nd.concat(m, nd.zeros((1,)), dim=0)[:3],
        lambda m: nd.stack(m, x[0] * 0)[0],
    ],
)
def test_what_forgets(forget: Callable[[Any], Any]) -> None:
    assert x[forget(x[0] > 0)].shape == (3, 3)


def test_a_mask_given_as_out_keeps_its_kind() -> None:
    """Where results go says nothing about them: an array of indices stays one."""
    indices = nd.zeros((2,))
    nd.greater(nd.array([1, 2]), nd.array([0, 3]), out=indices)
    assert x[indices].shape == (2, 3)


def test_numbers_are_indices() -> None:
    assert x[nd.array([1.9, 0])].asnumpy().tolist() == x.asnumpy()[[1, 0]].tolist()
    assert x[[1.9, 0]].shape == (2, 3) and x[np.array([-1.0])].shape == (1, 3)


# ---- waiting ---------------------------------------------------------------------------------------------------------


def test_nothing_is_waited_for_but_masks_that_are_read() -> None:
    gate = threading.Event()
    with Engine(workers=2) as engine:
        late = nd.array([2, 0])
        x, y = nd.arange(9).reshape((3, 3)), nd.zeros((3, 3))
        engine.push(lambda *_: gate.wait(60), updates=[late])
        mask = nd.concat(late, late[:1], dim=0) > 1
        found = [x[late], x[:, late], x[late, [0, 1]], x[1:][np.array([True, False])]]
        y[late] = x[late]
        y[mask] = 5
        y[:, mask] = nd.array([[7]])
        y[mask, 0] = nd.array([1, 2])
        assert not gate.is_set()
        gate.set()
        host, out, chosen = np.arange(9.0).reshape(3, 3), np.zeros((3, 3)), np.array([True, False, True])
        for f, wanted in zip(found, (host[[2, 0]], host[:, [2, 0]], host[[2, 0], [0, 1]], host[1:2]), strict=True):
            assert f.asnumpy().tolist() == wanted.tolist()
        out[[2, 0]] = host[[2, 0]]
        out[chosen] = 5
        out[:, chosen] = [[7]]
        out[chosen, 0] = [1, 2]
        assert y.asnumpy().tolist() == out.tolist()


def test_host_indices_are_read_at_the_call() -> None:
    x, key, mask = nd.arange(3), np.array([2, 0]), np.array([True, False, True])
    found = x[key], x[mask]
    x[key] = mask[:2]
    key[:], mask[:] = 1, False
    assert [f.asnumpy().tolist() for f in found] == [[2, 0], [0, 2]]
    assert x.asnumpy().tolist() == [0, 1, 1]


# ---- errors ----------------------------------------------------------------------------------------------------------


@FACES
@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ([0, 2], "index 2 is out of bounds for axis 0 with size 2"),
        (np.s_[:, [-4]], "index -4 is out of bounds for axis 1 with size 3"),
        (np.s_[[0], 3], "index 3 is out of bounds for axis 1 with size 3"),
        (([0], [0], [0], [0]), "too many indices"),
        ((MASK, 0), "too many indices"),
        (np.s_[..., [0], ...], "one ellipsis"),
        (MASK[:, :2], r"a mask of shape \(2, 2, 4\) for axes of shape \(2, 3, 4\)"),
        ([True, False, True], "a mask of shape"),
        (([0, 1], [0, 1, 2]), "do not broadcast"),
        ((MASK[0, 0], [0, 1, 2]), "a mask of shape"),
        ("a", "expected"),
        (["a"], "expected"),
        ([None], "expected"),
        ([[0], [0, 1]], "different lengths"),
        (np.array([0], object), "expected"),
        (np.array([0], complex), "expected"),
        (np.array(1.0), "expected"),
        (1.5, "expected"),
        ({0}, "expected"),
        ([float("nan")], "expected"),
        (np.s_["a":], "slice indices"),
    ],
    ids=str,
)
def test_a_bad_key_is_refused_at_the_call(cls: type[Array], key: Any, reason: str) -> None:
    x = make(cls, RAW)
    for access in (lambda: x[key], lambda: x.__setitem__(key, 5)):
        with pytest.raises(IndexError, match=reason) as caught:
            access()
        assert isinstance(caught.value, nd.ArrayIndexError)
        assert str(caught.value).startswith("[index] float64(2, 3, 4)[")
    same(x, RAW)


def test_errors_do_not_look_at_values() -> None:
    gate = threading.Event()
    with Engine(workers=2) as engine:
        x, late = nd.ones((2, 3)), nd.array([1, 0])
        engine.push(lambda *_: gate.wait(60), updates=[late])
        for key in ((late, late, late), [late], (late > 0, "a"), (late[:1] > 0), slice(late), (late, [0, 1, 2])):
            for access in (lambda key=key: x[key], lambda key=key: x.__setitem__(key, 0)):
                with pytest.raises(IndexError, match=r"^\[index\] float32\(2, 3\)"):
                    access()
        assert x.version == 0
        gate.set()


def test_floats_are_no_indices_of_the_canonical_face() -> None:
    x = make(nd.Array, RAW)
    for key in ([0.0], np.array([1.0]), make(nd.Array, np.array([1.0])), nd.array([1])):
        with pytest.raises(IndexError, match="expected"):
            x[key]


@pytest.mark.parametrize("how", ["read", "write"])
@pytest.mark.parametrize("index", [2, -3])
def test_indices_of_the_library_are_checked_when_it_runs(how: str, index: int) -> None:
    x = nd.ones((2, 3))
    key = nd.array([0, index])
    if how == "read":
        found = x[:, 1:][key]
    else:
        x[key] = 5
        found = x
    for _ in range(2):
        with pytest.raises(IndexError, match=f"index {index} is out of bounds for axis 0 with size 2") as caught:
            found.asnumpy()
        assert isinstance(caught.value, vd.Error)
        assert any("index_places" in note for note in caught.value.__notes__)
    x[:] = 1
    assert x.asnumpy().tolist() == np.ones((2, 3)).tolist()


def test_as_many_values_as_a_mask_chooses() -> None:
    x = nd.ones((3,))
    mask = nd.array([1, 0, 1]) > 0
    x[mask] = [4, 5]
    assert x.asnumpy().tolist() == [4, 1, 5]
    x[mask] = [1, 2, 3]
    with pytest.raises(ValueError, match="3 values for 2 elements"):
        x.asnumpy()
    for key in (mask, np.array([True, False, True])):
        with pytest.raises(vd.Error):
            x[key] = np.zeros((2, 2, 2))
    with pytest.raises(vd.Error, match="4 values for a mask"):
        x[mask] = [1, 2, 3, 4]


@pytest.mark.parametrize("value", ["a", {1}, None, [[1], [1, 2]], object()], ids=str)
def test_what_cannot_be_assigned(value: Any) -> None:
    x = nd.ones((3,))
    for key in ([0], x > 0, 0, slice(None)):
        with pytest.raises(TypeError) as caught:
            x[key] = value
        assert isinstance(caught.value, vd.Error)


# ---- gradients -------------------------------------------------------------------------------------------------------


def by_differences(f: Callable[..., float], at: list[np.ndarray], i: int) -> np.ndarray:
    gradient = np.zeros_like(at[i])
    for cell in np.ndindex(*at[i].shape):
        moved = [[a.copy() for a in at] for _ in range(2)]
        moved[0][i][cell] += 1e-4
        moved[1][i][cell] -= 1e-4
        gradient[cell] = (f(*moved[0]) - f(*moved[1])) / 2e-4
    return gradient


each_spelling = pytest.mark.parametrize("kind", ["host", "library"])


@each_key
@each_spelling
def test_the_gradient_of_reading(key: Any, kind: str) -> None:
    """Of sum(w x[key]^3), and of a directional derivative of that."""
    rng = np.random.default_rng(0)
    raw, weights, v = rng.normal(size=RAW.shape), rng.normal(size=RAW[key].shape), rng.normal(size=RAW.shape)
    x = make(nd.Array, raw)
    x.attach_grad()
    with autograd.record():
        y = (x[spelled(key, kind, nd.Array)] ** 3 * weights).sum()
        (g,) = autograd.grad([y], [x], create_graph=True)
        z = (g * v).sum()
    z.backward()

    def first(x: np.ndarray) -> np.ndarray:
        total = np.zeros_like(x)
        np.add.at(total, key, 3 * x[key] ** 2 * weights)
        return total

    np.testing.assert_allclose(g.asnumpy(), first(raw), rtol=1e-12)
    second = (first(raw + 1e-5 * v) - first(raw - 1e-5 * v)) / 2e-5
    np.testing.assert_allclose(x.grad.asnumpy(), second, atol=1e-7)


@each_key
@each_spelling
@pytest.mark.parametrize("form", ["full", "broadcast"])
def test_the_gradient_of_assignment(key: Any, kind: str, form: str) -> None:
    """To the value and to what is left of the old one, through a view and with double backward."""
    rng = np.random.default_rng(1)
    shape = RAW[key].shape if form == "full" else RAW[key].shape[-1:]
    raw, value = rng.normal(size=RAW.shape), rng.normal(size=shape)

    def program(x: np.ndarray, value: np.ndarray) -> np.ndarray:
        x = x * 1.5
        x[::-1][key] = value * value
        return x

    weights = rng.normal(size=RAW.shape)
    a, b = make(nd.Array, raw), make(nd.Array, value)
    a.attach_grad()
    b.attach_grad()
    with autograd.record():
        y = a * 1.5
        y[::-1][spelled(key, kind, nd.Array)] = b * b
        loss = (y**3 * weights).sum()
        found = autograd.grad([loss], [a, b], create_graph=True)
        again = (found[0] * found[0]).sum() + (found[1] * found[1]).sum()
    same(y, program(raw, value))

    def f(x: np.ndarray, value: np.ndarray) -> float:
        return float((program(x, value) ** 3 * weights).sum())

    wanted = [by_differences(f, [raw, value], i) for i in range(2)]
    for g, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(g.asnumpy(), w, atol=1e-5)
    again.backward()
    if raw.size * value.size <= 64:

        def squared(x: np.ndarray, value: np.ndarray) -> float:
            return sum(float((by_differences(f, [x, value], i) ** 2).sum()) for i in range(2))

        np.testing.assert_allclose(b.grad.asnumpy(), by_differences(squared, [raw, value], 1), rtol=1e-3, atol=1e-2)


def test_only_values_that_stay_get_a_gradient() -> None:
    x, value = nd.zeros((3,)), nd.array([1, 2, 3, 4])
    value.attach_grad()
    with autograd.record():
        x[[0, 1, 0, 0]] = value
        y = (x * nd.array([10, 20, 30])).sum()
    y.backward()
    assert value.grad.asnumpy().tolist() == [0, 20, 0, 10]


def test_an_update_through_indices_is_differentiated() -> None:
    x = nd.array([1, 2, 3])
    x.attach_grad()
    with autograd.record():
        y = x * 1
        y[[0, 2]] *= y[[2, 0]]
        y[y > 2] = 0 * y.sum() + y[1]
        loss = (y * nd.array([1, 2, 4])).sum()
    loss.backward()
    assert y.asnumpy().tolist() == [2, 2, 2]
    assert x.grad.asnumpy().tolist() == [0, 7, 0]


def test_a_write_outside_of_the_recording_changes_no_gradient() -> None:
    x = nd.arange(70_000)
    x.attach_grad()
    with autograd.record():
        y = x[1:] * x[:-1]
    x[[0, 5]] = 100
    x[x > 3] = -1
    y.backward()
    wanted = np.zeros(70_000, np.float32)
    wanted[1:] += np.arange(69_999)
    wanted[:-1] += np.arange(1, 70_000)
    assert x.grad.asnumpy().tolist() == wanted.tolist()


def test_mxnet_s_refusal_of_writes() -> None:
    x = nd.ones((3,))
    x.attach_grad()
    with autograd.record(inplace="refuse"):
        for key in ([0], x > 0):
            with pytest.raises(vd.Error, match="Inplace operations"):
                x[key] = 5
    assert x.asnumpy().tolist() == [1, 1, 1]


# ---- large -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["host", "library"])
def test_large_arrays(kind: str) -> None:
    rng = np.random.default_rng(2)
    raw = rng.normal(size=(700, 1000)).astype(np.float32)
    rows, cells = rng.integers(-700, 700, 900), rng.integers(0, 1000, 900)
    x = nd.array(raw)
    for key in (rows, (rows, cells), np.s_[::2, cells], raw > 0):
        mine = spelled(key, kind, nd.NDArray)
        same(x[mine], raw[key])
        x[mine] = x[mine] * 2
        raw[key] = raw[key] * 2
        same(x, raw)


def test_a_write_to_a_few_rows_is_in_place() -> None:
    """No byte of the others moves."""
    x = nd.zeros((100_000,))
    x.wait_to_read()
    before = nd.statistics().copies, nd.statistics().renames
    x[[3, 5]] += 1
    x[nd.array([7])] = 2
    x.wait_to_read()
    assert (nd.statistics().copies, nd.statistics().renames) == before
    assert x[:8].asnumpy().tolist() == [0, 0, 0, 1, 0, 1, 0, 2]
