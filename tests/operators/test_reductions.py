"""Large reductions: the order that defines them, and the same bits in every mode."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import Engine
from vardag.operators import numpy_face, stages, tiny
from vardag.operators.stages import HEIGHT, LARGE, LINE, WIDTH

N = LARGE + 1000
ROWS, COLUMNS = 301, 700  # tiles of 93 rows
REDUCERS = ("sum", "mean", "max", "min", "norm")


def raw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(0.5, 2, shape).astype("float32")


# ---- the definition, in NumPy's words --------------------------------------------------------------------------------


def lines(row: Any) -> Any:
    """The sums of the lines of a row."""
    line = len(row) if len(row) <= 2 * LINE else LINE
    ones = np.ones(line, row.dtype)
    return np.array([np.vecdot(p, ones[: len(p)]) for p in (row[i : i + line] for i in range(0, len(row), line))])


def sum_of_rows(x: Any) -> Any:
    parts = np.array([lines(row) for row in x])
    if parts.shape[1] == 1:
        return parts[:, 0]
    wide = parts.astype("d")
    total = wide.sum(1) if len(x) == 1 else np.add.reduce(wide.T.copy(), 0)
    return total.astype(x.dtype)


def sum_of_columns(x: Any) -> Any:
    length, columns = x.shape
    k = max(1, min(WIDTH // columns, length // (4 * HEIGHT)))
    folded = x[: length // k * k].reshape(-1, k * columns)
    total = np.zeros(k * columns)
    for i in range(0, len(folded), HEIGHT):
        block = folded[i].copy()
        for row in folded[i + 1 : i + HEIGHT]:
            block += row
        total = total + block
    result = np.zeros(columns)
    for part in (*total.reshape(k, columns), *x[length // k * k :].astype("d")):
        result = result + part
    return result.astype(x.dtype)


@pytest.mark.host("the order of sums is the device's")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(1, N), (1, 5 * LINE * 100), (300, 700), (130, 1030), (140, 1024), (3, 70_001), (40_000, 5)]
)
def test_rows_are_summed_line_by_line(shape: tuple[int, int], dtype: str) -> None:
    x = np.random.default_rng(1).normal(size=shape).astype(dtype)
    a = nd.array(x if shape[0] > 1 else x[0], dtype=dtype)
    assert a.sum(axis=-1).asnumpy().tobytes() == sum_of_rows(x).tobytes()
    n = x.dtype.type(shape[1])
    assert a.mean(axis=-1).asnumpy().tobytes() == (sum_of_rows(x) / n).tobytes()
    if shape[0] > 1:
        whole = sum_of_rows(x.reshape(1, -1))
        assert a.sum().asnumpy().tobytes() == whole.tobytes()


@pytest.mark.host("the order of sums is the device's")
@pytest.mark.parametrize("shape", [(2000, 100), (1000, 1001), (70, 5000), (50_000, 7), (333, 1234), (300, 1500)])
def test_columns_are_summed_block_by_block(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(2).normal(size=shape).astype("f")
    assert nd.array(x).sum(axis=0).asnumpy().tobytes() == sum_of_columns(x).tobytes()


def test_the_error_is_no_larger_than_that_of_pairwise_summation() -> None:
    """Root of the mean square of 20 sums of each kind, relative to the sum of the absolute values."""
    for name in ("random", "standard_normal", "standard_exponential"):
        mine, theirs = [], []
        for seed in range(20):
            x = getattr(np.random.default_rng(seed), name)(1 << 20).astype("f")
            exact, scale = math.fsum(x.tolist()), math.fsum(np.abs(x).tolist())
            mine.append((float(nd.array(x).sum().asscalar()) - exact) / scale)
            theirs.append((float(x.sum()) - exact) / scale)
        assert np.square(mine).sum() <= 1.2 * np.square(theirs).sum(), name
    x = np.full((1 << 25) + 1, 1, "f")  # an accumulator of float32 would stop at 2 ** 24
    assert nd.array(x).sum().asscalar() == 1 << 25
    assert (nd.array(x[:-1]).reshape((-1, 2)).sum(axis=0).asnumpy() == 1 << 24).all()


@pytest.mark.host("the order of sums is the device's")
def test_zeros_nans_and_infinities() -> None:
    x = np.zeros(N, "f")
    x[::2] = -0.0
    a = nd.array(x)
    for y in (a.max(), a.min(), a.sum(), (a * 1).max(), a.reshape((-1, 2)).max(axis=1), a.reshape((-1, 2)).min(axis=0)):
        assert not np.signbit(y.asnumpy()).any()
        assert (y.asnumpy() == 0).all()
    for value in (np.nan, np.inf, -np.inf):
        x[N // 2] = value
        for name in REDUCERS:
            expected = getattr(np.linalg if name == "norm" else np, name)(x)
            np.testing.assert_array_equal(getattr(nd, name)(nd.array(x)).asnumpy(), [expected])
            np.testing.assert_array_equal(getattr(nd, name)(nd.array(x) * 1).asnumpy(), [expected])


# ---- every mode ------------------------------------------------------------------------------------------------------

MODES: tuple[tuple[str, int, bool, bool], ...] = (
    ("NaiveEngine", 1, True, True),
    ("ThreadedEnginePooled", 1, True, True),
    ("ThreadedEnginePooled", 2, True, False),
    ("ThreadedEnginePerDevice", 8, True, True),
    ("ThreadedEnginePerDevice", 2, False, True),
    ("ThreadedEnginePooled", 2, False, False),
)


def in_every_mode(program: Callable[[], list[Any]]) -> list[Any]:
    """What a program gives, the same on every kind of engine, at once or queued, fused or not."""
    found = []
    for kind, workers, fused, inline in MODES:
        with Engine(kind, workers=workers, fusion=fused, inline=inline):
            found.append([x.asnumpy() for x in program()])
    for other, mode in zip(found[1:], MODES[1:], strict=True):
        for i, (a, b) in enumerate(zip(found[0], other, strict=True)):
            assert a.tobytes() == b.tobytes(), (i, mode)
    return found[0]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((N,), None), ((ROWS, COLUMNS), None), ((ROWS, COLUMNS), 1), ((ROWS, COLUMNS), 0), ((20_000, 8), 1),
        ((40, 50, 90), (1, 2)), ((40, 50, 90), (0, 1)), ((40, 50, 90), (0, 2)), ((40, 50, 90), 1), ((5, 30_011), 1),
        ((5, 30_011), None), ((1, 150_000, 1), 1), ((150, 1024), -1),
    ],
)  # fmt: skip
def test_the_bits_are_the_same_in_every_mode(shape: Any, axis: Any, large: bool, monkeypatch: Any) -> None:
    if large:  # a matter for workers
        monkeypatch.setattr(stages, "BIG", LARGE)
        monkeypatch.setattr(stages, "SHARE", 20_000)
    x = np.random.default_rng(3).normal(size=shape).astype("f")

    def program() -> list[Any]:
        a = nd.array(x)
        made = [getattr(nd, name)(a, axis=axis) for name in REDUCERS]
        made += [getattr(nd, name)(a * a - 1, axis=axis) for name in REDUCERS]
        b = a * 0.5
        return [*made, b.mean(axis=axis), b.sum(axis=axis, keepdims=True), numpy_face.sum(b, axis=axis), b.norm()]

    found = in_every_mode(program)
    for i, name in enumerate(REDUCERS):
        wide = x.astype("d")
        each = np.sqrt(np.square(wide).sum(axis)) if name == "norm" else getattr(wide, name)(axis)
        np.testing.assert_allclose(found[i].reshape(each.shape), each, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("offset", range(5))
def test_where_an_array_lies_does_not_matter(offset: int) -> None:
    x = raw(N + 8)
    a = nd.array(x)
    part = a[offset : offset + N]
    for name in REDUCERS:
        expected = getattr(nd, name)(nd.array(x[offset : offset + N])).asnumpy()
        assert getattr(nd, name)(part).asnumpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("seed", range(20))
def test_random_programs_with_reductions(seed: int) -> None:
    in_every_mode(lambda: _program(random.Random(seed)))


def _program(r: random.Random) -> list[Any]:
    shape = r.choice([(N,), (ROWS, COLUMNS), (200, 1024), (LARGE // 64, 65)])
    pool = [nd.array(raw(*shape, seed=i)) for i in range(3)]
    pool[0].attach_grad()
    found: list[Any] = []
    with autograd.record():
        for _ in range(r.randint(5, 15)):
            x, y = r.choice(pool), r.choice(pool)
            kind = r.randrange(8)
            if kind == 0:
                found.append(getattr(nd, r.choice(REDUCERS))(x, axis=r.choice((None, -1, 0))))
            elif kind == 1:
                found.append(getattr(nd, r.choice(REDUCERS))(x * y))
            elif kind == 2:
                pool.append(x - nd.mean(y, axis=-1, keepdims=True) if len(shape) > 1 else nd.tanh(x))
            elif kind == 3 and len(pool) > 3:
                pool[-1] *= 0.5
            elif kind == 4:
                pool.append(nd.broadcast_mul(x, nd.sum(y).reshape((1,) * len(shape))) * 1e-5)
            elif kind == 5 and len(shape) > 1:
                pool.append(r.choice((nd.softmax, nd.log_softmax))(x, axis=r.choice((-1, 0))))
            elif kind == 6 and len(pool) > 4:
                del pool[r.randrange(3, len(pool))]
            else:
                pool.append(x - y * 0.1)
        loss = nd.mean(pool[0] * pool[-1]) + nd.sum(pool[0])
    loss.backward()
    return [*found, loss, pool[0].grad, *pool]


@pytest.mark.host("the order of sums is the device's")
def test_reductions_that_run_at_once_and_those_that_workers_share() -> None:
    with Engine("ThreadedEnginePooled", workers=2) as e:
        a, b = nd.ones((1 << 20,)), nd.ones((1 << 23,))
        nd.waitall()
        before = e.ran_at_once
        assert a.sum().asscalar() == 1 << 20
        assert e.ran_at_once == before + 1
        assert stages.cost([((stages.BIG - 1,), np.dtype("f"))], (), {}) < 1.1 * tiny.NOW
        pushed = e.statistics().pushed
        for _ in range(20):
            assert b.sum().asscalar() == 1 << 23
        assert e.statistics().pushed > pushed + 20  # the helpers


@pytest.mark.parametrize(
    ("shape", "axis"), [((400_000,), (0,)), ((400, 1000), (1,)), ((1000, 400), (0,)), ((40, 250, 40), (0, 2))]
)
@pytest.mark.parametrize("ufunc", [np.add, np.maximum])
def test_the_steps_have_no_checkpoint(shape: Any, axis: Any, ufunc: Any) -> None:
    """A handler that raises inside a step would cut it: no Python, so nothing that NumPy dispatches on its operands."""
    x = np.ones(shape, "f")
    out = np.empty([n for i, n in enumerate(shape) if i not in axis], "f")
    steps = stages.stages(ufunc, x, out, axis, False)
    consumed = stages.consumed(ufunc, shape, x.dtype, x.dtype, axis)
    if consumed is not None:
        consumer = consumed.begin()
        steps += [*consumer.part(x.reshape(-1), 0), *consumer.end(out)]
    for called, *_ in steps:
        function = called.func if isinstance(called, functools.partial) else called
        assert type(function) in (np.ufunc, type(len)), function
