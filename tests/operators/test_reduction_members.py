"""Reductions that consume the tiles of a segment: what joins, what never touches memory, and what it gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import Engine
from vardag.engine.lifecycle import set_default
from vardag.engine.testing import Gate
from vardag.ndarray import memory
from vardag.operators import fusion, stages
from vardag.operators.stages import LARGE, LINE

N = LARGE + 1000
ROWS, COLUMNS = 301, 700  # tiles of 93 rows
REDUCERS = ("sum", "mean", "max", "min", "norm")


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(workers=2, fusion=True) as e:
        old = set_default(e)
        yield e
        set_default(old)


def operations(engine: Engine, program: Callable[[], Any]) -> tuple[int, Any]:
    """How many operations are queued for a program whose inputs are ready, and its result.

    The workers wait meanwhile, so what is pushed can join.
    """
    gates = [Gate() for _ in range(2)]
    for gate in gates:
        engine.push(gate)
    for gate in gates:
        gate.wait_entered()
    try:
        before = engine._seq
        result = program()
        return engine._seq - before, result
    finally:
        for gate in gates:
            gate.open()


def raw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(0.5, 2, shape).astype("float32")


def arrays(engine: Engine, *shapes: tuple[int, ...]) -> list[Any]:
    made = [nd.array(raw(*shape, seed=i)) for i, shape in enumerate(shapes)]
    for x in made:
        x.wait_to_read()
    return made


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


# ---- reductions as members -------------------------------------------------------------------------------------------


@pytest.fixture
def programs(monkeypatch: Any) -> Iterator[list[list[str]]]:
    """The names of the operators of each segment that ran."""
    seen: list[list[str]] = []
    real = fusion.Program.pieces

    def pieces(self: Any, at: Any) -> Any:
        seen.append([self.members[i].op.name for i, *_ in self.steps])
        return real(self, at)

    monkeypatch.setattr(fusion.Program, "pieces", pieces)
    yield seen


@pytest.mark.host("segments")
@pytest.mark.parametrize("name", REDUCERS)
@pytest.mark.parametrize("axis", [None, 1])
def test_a_reduction_consumes_what_never_touches_memory(engine: Engine, name: str, axis: int | None) -> None:
    a, b = arrays(engine, (ROWS, COLUMNS), (ROWS, COLUMNS))
    nd.waitall()
    before = nd.statistics().live_bytes
    memory.reset_peak()
    count, y = operations(engine, lambda: getattr(nd, name)(nd.exp(a * b) - a, axis=axis))
    found = y.asnumpy()
    nd.waitall()
    assert count == 1
    assert nd.statistics().peak_bytes - before <= 4 * found.size
    engine.fusion = False
    count, y = operations(engine, lambda: getattr(nd, name)(nd.exp(a * b) - a, axis=axis))
    assert count == 4
    assert y.asnumpy().tobytes() == found.tobytes()


@pytest.mark.host("segments")
def test_a_value_that_lives_is_written_too(engine: Engine) -> None:
    a, b = arrays(engine, (N,), (N,))

    def program() -> Any:
        c = a * b
        return c, c.sum(), c.max(), (c + 1).mean()

    count, (c, *rest) = operations(engine, program)
    assert count == 1
    assert c.asnumpy().tobytes() == (raw(N) * raw(N, seed=1)).tobytes()
    for y, name in zip(rest, ("sum", "max", "mean"), strict=True):
        other = nd.array(raw(N) * raw(N, seed=1))
        expected = getattr(other + 1 if name == "mean" else other, name)()
        expected.wait_to_read()
        assert y.asnumpy().tobytes() == expected.asnumpy().tobytes()


@pytest.mark.host("segments")
def test_a_result_that_nobody_can_see_is_not_computed(engine: Engine, programs: list[list[str]]) -> None:
    a, b = arrays(engine, (N,), (N,))

    def program() -> Any:
        c = a + b
        c.sum()  # its array dies
        return nd.tanh(a)

    count, y = operations(engine, program)
    y.wait_to_read()
    assert count == 1
    assert programs == [["tanh"]]


@pytest.mark.host("segments")
def test_softmax_is_a_member_along_the_last_axis_only(engine: Engine, programs: list[list[str]]) -> None:
    a, b = arrays(engine, (ROWS, COLUMNS), (ROWS, COLUMNS))
    count, y = operations(engine, lambda: nd.log_softmax(a * b, axis=-1).sum(axis=1))
    y.wait_to_read()
    assert (count, len(programs)) == (1, 1)
    assert programs[0][-2:] == ["log_softmax", "sum"]
    assert operations(engine, lambda: nd.log_softmax(a * b, axis=0))[0] == 2


@pytest.mark.host("segments")
def test_what_does_not_join(engine: Engine) -> None:
    a, b = arrays(engine, (ROWS, COLUMNS), (ROWS, COLUMNS))
    (row,) = arrays(engine, (COLUMNS,))
    assert operations(engine, lambda: nd.sum(a * b))[0] == 1
    assert operations(engine, lambda: nd.sum(a * b, axis=0))[0] == 2  # the first axis
    assert operations(engine, lambda: nd.prod(a * b))[0] == 2
    assert operations(engine, lambda: nd.norm(a * b, ord=1))[0] == 2
    assert operations(engine, lambda: (a * b, nd.sum(a)))[0] == 1  # not a value of the segment: at once
    assert operations(engine, lambda: nd.sum((a * b)[10:]))[0] == 2  # a part of one
    assert operations(engine, lambda: nd.sum((a * b).astype("int32")))[0] == 2  # not in lines
    assert operations(engine, lambda: nd.sum((a * b).reshape((-1, 350)), axis=1))[0] == 1  # rows of half the length
    assert operations(engine, lambda: nd.sum(nd.broadcast_add(a, row).reshape((-1, 350)), axis=1))[0] == 2
    with engine.bulk(2):
        assert operations(engine, lambda: nd.sum(a * b + a))[0] == 2

    def used() -> Any:
        c = a * b
        return nd.broadcast_div(c, c.sum().reshape((1, 1)))

    assert operations(engine, used)[0] == 2  # a result is used after the last tile
    engine.fusion = False
    assert operations(engine, lambda: nd.sum(a * b))[0] == 2


@pytest.mark.host("segments")
@pytest.mark.parametrize("columns", [700, 1000, 2049, 257])
def test_tiles_begin_at_lines_and_at_rows(engine: Engine, columns: int) -> None:
    """A sum over everything of what is broadcast by rows: both, or the sum is an operation of its own."""
    rows = 2_000_000 // columns
    x, y = raw(rows, columns), raw(columns, seed=1)
    found = set()
    a, row = nd.array(x), nd.array(y)
    for fused in (True, False):
        engine.fusion = fused
        a.wait_to_read()
        count, total = operations(engine, lambda: nd.sum(nd.broadcast_mul(a, row)))
        assert count == (1 if fused and math.lcm(columns, LINE) <= 2 * fusion.TILE else 2)
        found.add(total.asnumpy().tobytes())
    assert found == {sum_of_rows((x * y).reshape(1, -1)).tobytes()}


@pytest.mark.host("segments")
def test_a_write_in_place_comes_after_the_reduction(engine: Engine) -> None:
    a, b = arrays(engine, (N,), (N,))

    def program() -> Any:
        c = a * b
        first = c.sum()
        c += 1
        second = c.sum()
        a.__imul__(2)
        return first, second, c

    count, (first, second, c) = operations(engine, program)
    assert count == 1
    x = raw(N) * raw(N, seed=1)
    assert first.asnumpy().tobytes() == sum_of_rows(x.reshape(1, -1)).tobytes()
    assert second.asnumpy().tobytes() == sum_of_rows((x + np.float32(1)).reshape(1, -1)).tobytes()
    assert c.asnumpy().tobytes() == (x + np.float32(1)).tobytes()


def test_a_result_given_with_out(engine: Engine) -> None:
    a, b, y = arrays(engine, (N,), (N,), (3,))
    one = y[1:2]

    def program() -> None:
        nd.sum(a * b, out=one)

    operations(engine, program)
    assert y.asnumpy()[1] == sum_of_rows((raw(N) * raw(N, seed=1)).reshape(1, -1))[0]
    assert (y.asnumpy()[::2] == raw(3, seed=2)[::2]).all()


def test_a_door_that_closes_while_a_reduction_joins(engine: Engine, monkeypatch: Any) -> None:
    """RACE "join-while-closing": it is an operation of its own, a segment of one member."""
    (a,) = arrays(engine, (N,))
    real = fusion.Segment.takes

    def takes(self: Any, other: Any) -> Any:
        steps = real(self, other)
        self.door.clear()
        return steps

    monkeypatch.setattr(fusion.Segment, "takes", takes)
    count, y = operations(engine, lambda: nd.sum(a + 1))
    assert count == 2
    assert y.asnumpy().tobytes() == sum_of_rows((raw(N) + np.float32(1)).reshape(1, -1)).tobytes()


@pytest.mark.host("segments")
@pytest.mark.parametrize("where", ["part", "end"])
def test_a_failing_reduction_is_named(engine: Engine, monkeypatch: Any, where: str) -> None:
    a, b = arrays(engine, (N,), (N,))

    def fails(self: Any, *_: Any) -> Any:
        raise FloatingPointError("injected")

    monkeypatch.setattr(stages.Lines, where, fails)
    _, y = operations(engine, lambda: nd.mean(nd.exp(a * b)))
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="injected") as caught:
            y.wait_to_read()
        notes = "\n".join(caught.value.__notes__)
        assert "operator: mean" in notes
        assert f"float32({N},)" in notes
        assert "test_reduction_members.py" in notes


def test_a_reduction_of_what_failed_is_poisoned_with_the_same_error(engine: Engine) -> None:
    a, b = arrays(engine, (N,), (N,))

    def program() -> Any:
        engine.push(lambda x: 1 / 0, updates=[a])
        return (a * 2).sum(), (b * 2).sum()

    _, (bad, good) = operations(engine, program)
    assert good.asnumpy().tobytes() == sum_of_rows((raw(N, seed=1) * np.float32(2)).reshape(1, -1)).tobytes()
    for x in (bad, a):
        with pytest.raises(ZeroDivisionError):
            x.asnumpy()


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.host("segments")
@pytest.mark.parametrize(
    ("loss", "arrays_written"),
    [(lambda a, b: nd.sum(a * b), 0), (lambda a, b: nd.mean(nd.sum(a * b + a, axis=1)), 0)],
    ids=["everything", "rows"],
)
def test_a_gradient_that_a_sum_spreads_never_touches_memory(engine: Engine, loss: Any, arrays_written: int) -> None:
    a, b = arrays(engine, (ROWS, COLUMNS), (ROWS, COLUMNS))
    a.attach_grad()
    a.grad.wait_to_read()

    def program() -> None:
        with autograd.record():
            y = loss(a, b)
        y.backward(wait=False)

    found = []
    for fused in (True, False):
        engine.fusion = fused
        nd.waitall()
        before = nd.statistics().live_bytes
        memory.reset_peak()
        operations(engine, program)
        nd.waitall()
        written = (nd.statistics().peak_bytes - before) // a.grad.asnumpy().nbytes
        assert written == arrays_written or not fused, written
        found.append(a.grad.asnumpy().tobytes())
    assert found[0] == found[1]


def test_an_element_that_every_tile_needs_is_not_overwritten_by_a_later_member(engine: Engine) -> None:
    a, big = arrays(engine, (N,), (N,))
    element = big[3:4]

    def program() -> Any:
        y = nd.broadcast_add(a, element)
        big.__imul__(5)
        return y

    count, y = operations(engine, program)
    assert count == 2
    assert y.asnumpy().tobytes() == (raw(N) + raw(N, seed=1)[3]).tobytes()


@pytest.mark.host("segments")
def test_an_array_of_one_element_is_an_operand_of_every_tile(engine: Engine) -> None:
    a, one = arrays(engine, (ROWS, COLUMNS), (1, 1))
    x, y = raw(ROWS, COLUMNS), raw(1, 1, seed=1)

    def program() -> Any:
        result = nd.broadcast_mul(nd.exp(a), one)
        one.__imul__(2)
        return result

    count, result = operations(engine, program)
    assert count == 2
    assert result.asnumpy().tobytes() == (np.exp(x) * y).tobytes()
    assert one.asnumpy() == y * 2
    count, result = operations(engine, lambda: nd.broadcast_to(one, shape=(ROWS, COLUMNS)) + a)
    assert count == 1
    assert result.asnumpy().tobytes() == (x + y * 2).tobytes()
