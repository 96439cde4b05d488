"""Large elementwise operators run together, tile by tile; nobody can tell but by the time and the memory it takes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import Cancelled, Engine, joining
from vardag.engine.lifecycle import set_default
from vardag.engine.testing import Gate
from vardag.ndarray.array import Array
from vardag.operators import fusion
from vardag.operators.faces import numpy_face

N = fusion.FUSE + 1000
ROWS, COLUMNS = 300, fusion.FUSE // 200


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(workers=2, fusion=True) as e:
        old = set_default(e)
        yield e
        set_default(old)


class Blocked:
    """While it is entered the engine's workers wait: what is pushed meanwhile can join."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.gates = [Gate() for _ in range(2)]

    def __enter__(self) -> None:
        for gate in self.gates:
            self.engine.push(gate)
        for gate in self.gates:
            gate.wait_entered()

    def __exit__(self, *_: object) -> None:
        for gate in self.gates:
            gate.open()


def operations(engine: Engine, program: Callable[[], Any]) -> tuple[int, Any]:
    """How many operations are queued for a program whose inputs are ready, and its result."""
    with Blocked(engine):
        before = engine._seq
        result = program()
        count = engine._seq - before
    return count, result


def raw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(0.5, 2, shape).astype("float32")


def arrays(engine: Engine, *shapes: tuple[int, ...]) -> list[Any]:
    made = [nd.array(raw(*shape, seed=i)) for i, shape in enumerate(shapes)]
    for x in made:
        x.wait_to_read()
    return made


@pytest.mark.host("segments")
def test_an_expression_is_one_operation(engine: Engine) -> None:
    a, b = arrays(engine, (N,), (N,))
    count, y = operations(engine, lambda: nd.exp(a * b + a) * b - a)
    assert count == 1
    p, q = raw(N), raw(N, seed=1)
    assert y.asnumpy().tobytes() == (np.exp(p * q + p) * q - p).tobytes()


@pytest.mark.host("segments")
def test_dead_values_never_touch_memory(engine: Engine) -> None:
    a, b = arrays(engine, (N,), (N,))
    nd.waitall()
    from vardag.ndarray import memory

    before = nd.statistics().live_bytes
    memory.reset_peak()
    _, y = operations(engine, lambda: nd.exp(a * b + a) * b - a)
    y.wait_to_read()
    nd.waitall()
    assert nd.statistics().peak_bytes - before == 4 * N


@pytest.mark.host("segments")
def test_what_nobody_can_see_is_not_computed(engine: Engine, monkeypatch: Any) -> None:
    a, b = arrays(engine, (N,), (N,))
    seen: list[int] = []
    real = fusion.Program.pieces
    monkeypatch.setattr(fusion.Program, "pieces", lambda self, at: (seen.append(len(self.steps)), real(self, at))[1])

    def program() -> Any:
        c = a + b
        nd.exp(c)  # its array dies
        return c * 2

    count, y = operations(engine, program)
    y.wait_to_read()
    assert (count, seen) == (1, [2])


CASES: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "rows": lambda x, y, row, column: nd.broadcast_add(x * 2, row) - y,
    "columns": lambda x, y, row, column: nd.exp(nd.broadcast_sub(x, column)) * y,
    "rows and columns": lambda x, y, row, column: nd.broadcast_mul(nd.broadcast_sub(x, column), row) + 1,
    "composed": lambda x, y, row, column: nd.relu(x - 1) + nd.reciprocal(y) * nd.rsqrt(x),
    "compare": lambda x, y, row, column: (x > y) * x + (1 - (x > y)) * y,
    "views": lambda x, y, row, column: (x * 2).reshape((-1,)) + y.reshape((-1,)),
    "scalars": lambda x, y, row, column: 1 / (2 - x * 0.25) ** 2,
    "double": lambda x, y, row, column: x.astype("float64") * y.astype("float64"),
}


def _in_place(x: Any, y: Any, row: Any, column: Any) -> Any:
    z = x * y
    w = z + 1
    z *= 2
    z -= w
    y += z
    return nd.concat(z, w, y, dim=0)


CASES["in place"] = _in_place


@pytest.mark.parametrize("name", CASES)
def test_the_bits_are_those_without_fusion(name: str) -> None:
    found = set()
    for kind, workers, fused in (
        ("NaiveEngine", 1, True),
        ("ThreadedEnginePooled", 1, True),
        ("ThreadedEnginePooled", 2, True),
        ("ThreadedEnginePerDevice", 8, True),
        ("ThreadedEnginePerDevice", 2, False),
    ):
        with Engine(kind, workers=workers, fusion=fused):
            made = [nd.array(raw(*s, seed=i)) for i, s in enumerate([(ROWS, COLUMNS)] * 2 + [(COLUMNS,), (ROWS, 1)])]
            found.add(CASES[name](*made).asnumpy().tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("seed", range(25))
def test_random_programs_in_place_and_recorded(seed: int) -> None:
    found = []
    for kind, fused in (("NaiveEngine", False), ("ThreadedEnginePooled", True), ("ThreadedEnginePooled", False)):
        with Engine(kind, workers=2, fusion=fused):
            found.append(_program(random.Random(seed)))
    assert found[0] == found[1] == found[2]


def _program(r: random.Random) -> list[bytes]:
    marked = [nd.array(raw(N, seed=i)) for i in range(2)]
    for x in marked:
        x.attach_grad()
    pool = [*marked, nd.array(raw(N, seed=9))]
    with autograd.record():
        for _ in range(r.randint(4, 14)):
            x, y = r.choice(pool), r.choice(pool)
            kind = r.randrange(7)
            if kind == 0:
                pool.append(nd.tanh(x))
            elif kind == 1 and len(pool) > 3:
                pool[r.randrange(3, len(pool))] *= 0.5
            elif kind == 2 and len(pool) > 3:
                pool[-1] += x
            elif kind == 3:
                pool.append(x * r.choice((0.5, 2, -1)))
            elif kind == 4 and len(pool) > 4:
                del pool[r.randrange(3, len(pool))]
            elif kind == 5 and len(pool) > 3:
                pool[-1][: N // 2] = 0.25
            else:
                pool.append(x - y * 0.1)
        loss = pool[0] + pool[-1] * pool[-1]
    loss.backward()
    return [x.asnumpy().tobytes() for x in (*pool, loss, *(m.grad for m in marked))]


@pytest.mark.host("segments")
def test_a_push_that_cannot_join_is_an_operation_of_its_own(engine: Engine) -> None:
    a, b = arrays(engine, (N,), (N,))
    (long,) = arrays(engine, (2 * N,))
    assert operations(engine, lambda: (a + b, long + 1))[0] == 2  # another size
    assert operations(engine, lambda: nd.dot(a + b, a))[0] == 2  # another kind of operator
    with engine.bulk(2):
        assert operations(engine, lambda: a + b + a + b + a)[0] == 2  # at most two members
    with engine.bulk(1):
        assert operations(engine, lambda: a + b + a)[0] == 2
    engine.fusion = False
    assert operations(engine, lambda: a + b + a)[0] == 2


def test_members_depend_on_the_same_unfinished_operations(engine: Engine) -> None:
    """Else the failure of one would poison what has nothing to do with it."""
    a, b, c = arrays(engine, (N,), (N,), (N,))

    def program() -> Any:
        engine.push(lambda x: 1 / 0, updates=[a])
        bad = a + b
        good = b + c
        return bad * 2, good * 2, bad + good

    count, (bad, good, both) = operations(engine, program)
    assert good.asnumpy().tobytes() == ((raw(N, seed=1) + raw(N, seed=2)) * np.float32(2)).tobytes()
    for x in (bad, both):
        with pytest.raises(ZeroDivisionError):
            x.asnumpy()
    with pytest.raises(ZeroDivisionError):
        a.asnumpy()
    assert count >= 3


@pytest.mark.host("segments")
def test_a_failing_member_is_named(engine: Engine, monkeypatch: Any) -> None:
    a, b = arrays(engine, (N,), (N,))
    real = fusion.call_into

    def failing(ufunc: Any, *arguments: Any, out: Any) -> Any:
        if ufunc is np.exp:
            raise FloatingPointError("injected")
        return real(ufunc, *arguments, out=out)

    monkeypatch.setattr(fusion, "call_into", failing)
    _, y = operations(engine, lambda: nd.exp(a * b) + a)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="injected") as caught:
            y.wait_to_read()
        notes = "\n".join(caught.value.__notes__)
        assert "operator: exp" in notes
        assert f"data float32({N},)" in notes or f"x float32({N},)" in notes
        assert "test_fusion.py" in notes


def test_an_idle_worker_begins_without_a_wait(engine: Engine) -> None:
    """Dwelling ends by itself: nobody waits, nothing else is pushed."""
    (a,) = arrays(engine, (N,))
    y = a + 1
    operation = y.var.writer
    end = monotonic() + 30
    while operation is not None and not operation.done:
        assert monotonic() < end


@pytest.mark.host("segments")
def test_gradients_of_large_arrays_are_fused_too(engine: Engine) -> None:
    a, b = arrays(engine, (N,), (N,))
    a.attach_grad()
    with autograd.record():
        y = nd.exp(a * b) * b
    y.wait_to_read()
    nd.waitall()
    count, _ = operations(engine, lambda: y.backward(wait=False))
    p, q = raw(N), raw(N, seed=1)
    np.testing.assert_allclose(a.grad.asnumpy(), np.exp(p * q) * q * q, rtol=1e-5)
    engine.fusion = False
    with autograd.record():
        y = nd.exp(a * b) * b
    y.wait_to_read()
    nd.waitall()
    assert operations(engine, lambda: y.backward(wait=False))[0] > count


@pytest.mark.host("segments")
@pytest.mark.parametrize("how", ["a wait", "a push"])
def test_what_ends_dwelling(engine: Engine, monkeypatch: Any, how: str) -> None:
    monkeypatch.setattr(joining, "DWELL", 3600)
    (a,) = arrays(engine, (N,))
    y = a + 1
    end = monotonic() + 30
    while not engine._dwelling:
        assert monotonic() < end
    if how == "a push":
        engine.push(lambda: None)
        while not y.var.writer.done:
            assert monotonic() < end
    y.wait_to_read(timeout=30)


def test_an_operand_that_every_tile_needs_is_not_overwritten_by_a_later_member(engine: Engine) -> None:
    """A row of an array that a later push changes in place."""
    x, big = arrays(engine, (ROWS, COLUMNS), (ROWS, COLUMNS))
    row = big[0:1]

    def program() -> Any:
        y = nd.broadcast_add(x, row)
        big.__imul__(5)
        return y

    count, y = operations(engine, program)
    assert count == 2
    assert y.asnumpy().tobytes() == (raw(ROWS, COLUMNS) + raw(ROWS, COLUMNS, seed=1)[:1]).tobytes()
    assert big.asnumpy().tobytes() == (raw(ROWS, COLUMNS, seed=1) * np.float32(5)).tobytes()


@pytest.mark.host("segments")
def test_nobody_joins_what_was_cancelled(engine: Engine) -> None:
    (a,) = arrays(engine, (N,))

    def program() -> Any:
        cancelled = a + 1
        engine.cancel_pending()
        return cancelled, a * 2

    count, (cancelled, y) = operations(engine, program)
    assert count == 2
    assert y.asnumpy().tobytes() == (raw(N) * np.float32(2)).tobytes()
    with pytest.raises(Cancelled):
        cancelled.asnumpy()


def test_nobody_joins_what_is_poisoned(engine: Engine) -> None:
    """The operation that failed is done already when the poisoned one is pushed."""
    a, b = arrays(engine, (N,), (N,))
    engine.push(lambda x: 1 / 0, updates=[a])
    with pytest.raises(ZeroDivisionError):
        a.wait_to_read()
    count, (bad, good) = operations(engine, lambda: (a + 1, b + 1))
    assert count == 2
    assert good.asnumpy().tobytes() == (raw(N, seed=1) + np.float32(1)).tobytes()
    with pytest.raises(ZeroDivisionError):
        bad.asnumpy()


def test_what_can_fail_by_its_values_is_no_member(engine: Engine) -> None:
    a, b = (Array._from_host(np.full(N, value, "int32")) for value in (2, -1))
    count, (bad, good) = operations(engine, lambda: (numpy_face.power(a, b), numpy_face.add(a, b)))
    assert count == 2
    assert (good.asnumpy() == 1).all()
    with pytest.raises(ValueError, match="negative integer powers"):
        bad.asnumpy()


def test_a_door_that_closes_while_a_push_joins(engine: Engine, monkeypatch: Any) -> None:
    """RACE "join-while-closing": the push is then an operation of its own, and knows its operands."""
    (a,) = arrays(engine, (N,))
    real = fusion.Segment.takes

    def takes(self: Any, other: Any) -> Any:
        steps = real(self, other)
        self.door.clear()
        return steps

    monkeypatch.setattr(fusion.Segment, "takes", takes)
    count, y = operations(engine, lambda: (a + 1) * 3)
    assert count == 2
    assert y.asnumpy().tobytes() == ((raw(N) + np.float32(1)) * np.float32(3)).tobytes()


@pytest.mark.host("segments")
def test_memory_that_runs_out_between_tiles_repeats_nothing_that_was_overwritten(
    engine: Engine, monkeypatch: Any
) -> None:
    """One member reads an array, a later one gives it a new value in place: the first must not read that."""
    a, b = arrays(engine, (N,), (N,))
    b.var  # its memory stays  # noqa: B018
    real = fusion.Program._tile
    failed: list[int] = []

    def tile(self: Any, low: int) -> None:
        real(self, low)
        if low and not failed:
            failed.append(low)
            raise MemoryError

    def program() -> Any:
        y = b + 1
        nd.exp(a, out=b)
        return y

    monkeypatch.setattr(fusion, "MANY", 0)
    monkeypatch.setattr(fusion.Program, "_tile", tile)
    count, y = operations(engine, program)
    assert count == 1
    with pytest.raises(MemoryError):
        y.asnumpy()
    assert failed
