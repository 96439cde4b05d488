"""Basic indexing against NumPy: geometry, shared memory, assignment, errors; reshape and its codes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import vardag as vd
from vardag import nd

shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
deterministic = settings(derandomize=True, max_examples=150, deadline=None)


def counting(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


@st.composite
def keyed(draw: st.DrawFn, keys: int = 1) -> tuple[np.ndarray, list[Any]]:
    """An array and keys, each for the view that the one before gives."""
    raw = counting(draw(shapes))
    found, view = [], raw
    for _ in range(keys):
        key = draw(hnp.basic_indices(view.shape, allow_newaxis=True, allow_ellipsis=True, max_dims=6))
        found.append(key)
        view = np.asarray(view[key])
        if not view.ndim:
            break
    return raw, found


def at(view: Any, keys: list[Any]) -> Any:
    for key in keys:
        view = view[key]
    return view


def same(x: Any, raw: Any) -> None:
    """Equal bytes; the nd face has (1,) where NumPy has a scalar."""
    raw = np.asarray(raw)
    assert x.shape == (raw.shape or (1,))
    assert x.asnumpy().tobytes() == np.ascontiguousarray(raw).tobytes()


@deterministic
@given(keyed(keys=3))
def test_views_show_what_numpy_shows(case: tuple[np.ndarray, list[Any]]) -> None:
    raw, keys = case
    same(at(nd.array(raw), keys), at(raw, keys))


@deterministic
@given(keyed(keys=3))
def test_views_share_memory(case: tuple[np.ndarray, list[Any]]) -> None:
    """A write through a view is seen by its base, and the other way round."""
    raw, keys = case
    x = nd.array(raw)
    view = at(x, keys)
    if view.size:
        target = at(raw, keys[:-1])
        target[keys[-1]] = -5
        view[:] = -5
        same(x, raw)
        x += 1
        raw += 1
        same(view, at(raw, keys))


@deterministic
@given(keyed(keys=2), st.data())
def test_assignment(case: tuple[np.ndarray, list[Any]], data: st.DataObject) -> None:
    """A scalar, a NumPy array or an array of a shape that broadcasts to the region."""
    raw, keys = case
    x = nd.array(raw)
    base, host = at(x, keys[:-1]), at(raw, keys[:-1])
    shape = np.shape(host[keys[-1]])
    kept = data.draw(st.integers(0, len(shape)))
    value_shape = tuple(n if data.draw(st.booleans()) else 1 for n in shape[kept:])
    value = -1 - counting(value_shape)
    kind = data.draw(st.sampled_from(["scalar", "numpy", "array", "float64"]))
    if kind == "scalar":
        base[keys[-1]], host[keys[-1]] = 7, 7
    else:
        given = {"numpy": value, "array": nd.array(value), "float64": nd.array(value, dtype="float64")}[kind]
        base[keys[-1]], host[keys[-1]] = given, value
    same(x, raw)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (3, 3)])
@pytest.mark.parametrize(
    ("target", "source"),
    [
        (np.s_[1:], np.s_[:-1]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[::-1], np.s_[:]),
        (np.s_[:], np.s_[::-1]),
        (np.s_[...], np.s_[..., ::-1]),
    ],
)
@pytest.mark.parametrize("how", ["assign", "add"])
def test_overlapping_source_and_target(shape: tuple[int, ...], target: Any, source: Any, how: str) -> None:
    """As if the source had been copied first."""
    raw = counting(shape)
    x = nd.array(raw)
    if how == "assign":
        x[target] = x[source]
        raw[target] = raw[source].copy()
    else:
        x[target] += x[source]
        raw[target] += raw[source].copy()
    same(x, raw)


def test_a_transpose_into_itself() -> None:
    raw = counting((4, 4))
    x = nd.array(raw)
    x[:] = x.T
    same(x, raw.T)


def test_a_host_array_is_read_at_the_call() -> None:
    x, host = nd.zeros((3,)), np.ones(3, np.float32)
    x[:] = host
    host[:] = 9
    assert x.asnumpy().tolist() == [1, 1, 1]


def test_assignment_casts_as_c_does() -> None:
    x = nd.zeros((3,), dtype="int32")
    x[0], x[1:] = 1.9, nd.array([-1.9, 2.5])
    assert x.asnumpy().tolist() == [1, -1, 2]


@pytest.mark.parametrize("cls", [nd.Array, nd.NDArray])
def test_an_assigned_scalar_takes_the_dtype_of_its_target(cls: type[nd.Array]) -> None:
    x = cls._from_host(np.zeros(2))
    x[0] = 0.1
    x[1:] = 2**53 + 2
    assert x.asnumpy().tolist() == [0.1, 2**53 + 2]


def test_iteration_and_unpacking_give_views() -> None:
    x = nd.zeros((2, 3))
    for i, row in enumerate(x):
        row[:] = i + 1
    first, second = x
    assert (first.asnumpy().tolist(), second.asnumpy().tolist()) == ([1, 1, 1], [2, 2, 2])
    assert len(x) == 2


@pytest.mark.parametrize(
    ("shape", "key"),
    [
        ((2, 3), 2),
        ((2, 3), -3),
        ((2, 3), (0, 3)),
        ((2, 3), (0, 0, 0)),
        ((2, 3), (..., ...)),
        ((2, 3), 1.0),
        ((2, 3), "a"),
        ((2, 3), slice("a")),
        ((2, 3), slice(0, 2, 0)),
        ((0,), 0),
        ((2, 3), np.float32(1)),
    ],
    ids=repr,
)
def test_bad_keys(shape: tuple[int, ...], key: Any) -> None:
    x = nd.ones(shape)
    for access in (lambda: x[key], lambda: x.__setitem__(key, 5)):
        with pytest.raises(IndexError) as caught:
            access()
        assert isinstance(caught.value, vd.Error) and "[index]" in str(caught.value)
    assert x.version == nd.ones(shape).version
    assert x.asnumpy().tolist() == np.ones(shape).tolist()


def test_numpy_integers_are_keys() -> None:
    raw = counting((3, 4))
    x = nd.array(raw)
    same(x[np.int64(1)], raw[1])
    same(x[np.int32(-1), np.uint8(2)], raw[-1, 2])
    same(x[np.array(1)], raw[1])


# ---- reshape ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "codes", "new"),
    [
        ((2, 3, 4), (4, 0, 2), (4, 3, 2)),
        ((2, 3, 4), (2, 0, 0), (2, 3, 4)),
        ((2, 3, 4), (6, 1, -1), (6, 1, 4)),
        ((2, 3, 4), (3, -1, 8), (3, 1, 8)),
        ((2, 3, 4), (-1,), (24,)),
        ((2, 3, 4), (-2,), (2, 3, 4)),
        ((2, 3, 4), (2, -2), (2, 3, 4)),
        ((2, 3, 4), (-2, 1, 1), (2, 3, 4, 1, 1)),
        ((2, 3, 4), (-3, 4), (6, 4)),
        ((2, 3, 4, 5), (-3, -3), (6, 20)),
        ((2, 3, 4), (0, -3), (2, 12)),
        ((2, 3, 4), (-3, -2), (6, 4)),
        ((2, 3, 4), (-4, 1, 2, -2), (1, 2, 3, 4)),
        ((2, 3, 4), (2, -4, -1, 3, -2), (2, 1, 3, 4)),
        ((6, 4), (-4, 2, -1, 0), (2, 3, 4)),
        ((0, 3), (3, -2), None),
        ((2, 3), (7,), None),
        ((2, 3), (-1, -1), None),
        ((2, 3), (4, -1), None),
        ((2, 3), (-5,), None),
        ((2, 3), (-4, 2), None),
        ((2, 3), (-4, -1, -1, 0), None),
        ((5, 3), (-4, 2, -1, 0), None),
        ((2,), (0, 0), None),
        ((2,), (-3,), None),
    ],
    ids=str,
)
def test_reshape_codes(old: tuple[int, ...], codes: tuple[int, ...], new: tuple[int, ...] | None) -> None:
    raw = counting(old)
    x = nd.array(raw)
    if new is None:
        with pytest.raises(ValueError, match=r"^\[reshape\]") as caught:
            x.reshape(codes)
        assert isinstance(caught.value, vd.Error)
    else:
        for found in (x.reshape(codes), x.reshape(*codes), x.reshape(shape=codes), nd.reshape(x, shape=codes)):
            same(found, raw.reshape(new))


@pytest.mark.parametrize(
    ("old", "codes", "new"),
    [((10, 5, 4), (-1, 0), (50, 4)), ((8, 2, 1), (-1, 0), (16, 1)), ((2, 3, 4), (0, -3), (2, 12))],
)
def test_reshape_from_the_right(old: tuple[int, ...], codes: tuple[int, ...], new: tuple[int, ...]) -> None:
    assert nd.ones(old).reshape(codes, reverse=True).shape == new


@deterministic
@given(keyed(), st.data())
def test_reshape_is_a_view_of_contiguous_elements_only(case: tuple[np.ndarray, list[Any]], data: st.DataObject) -> None:
    raw, keys = case
    x = nd.array(raw)
    view, host = at(x, keys), np.atleast_1d(at(raw, keys))
    flat = view.reshape((-1,))
    same(flat, host.reshape(-1))
    if view.size:
        flat[0] = -9
        shared = view.asnumpy().reshape(-1)[0] == -9
        assert shared == (view._strides is None), "contiguous elements are shared, others copied"
