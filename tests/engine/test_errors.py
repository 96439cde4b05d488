"""Errors live on data: sticky, fresh, of their own type, with lines; poison, healing, cancellation."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import logging
import pickle
import traceback
import weakref

import pytest

from vardag.engine import (
    ArgumentError,
    Cancelled,
    DeadlockError,
    Engine,
    EngineClosed,
    EngineErrors,
    EngineTimeout,
    Error,
    Kind,
    Operation,
    OperatorError,
)
from vardag.engine.errors import rebuild
from vardag.engine.testing import Gate
from vardag.engine.testing import raiser as fails

KINDS = ["NaiveEngine", "ThreadedEnginePooled", "ThreadedEnginePerDevice"]


@pytest.fixture(params=KINDS)
def engine(request):
    with Engine(request.param, workers=2) as e:
        yield e


def line() -> int:
    return inspect.currentframe().f_back.f_lineno


def test_sticky_fresh_and_of_its_own_type(engine):
    v = engine.new_variable()
    engine.push(fails(KeyError("k")), writes=[v])
    seen = []
    for _ in range(3):
        with pytest.raises(KeyError) as info:
            engine.wait_for_var(v)
        assert isinstance(info.value, OperatorError)
        assert isinstance(info.value, Error)
        assert type(info.value.__cause__) is KeyError
        seen.append(info.value)
    assert len(set(map(id, seen))) == 3
    assert len({len(e.__notes__) for e in seen}) == 1
    assert not hasattr(seen[0].__cause__, "__notes__")


def test_notes_name_operator_operands_lines_and_distance(engine):
    a, b = engine.new_variable("a"), engine.new_variable("b")
    op = Operation(Kind.KERNEL, fails(ValueError("inner")), "matmul", operands=lambda: "a float32(2, 3)")
    pushed = line() + 1
    engine.admit(lambda: (op, (), (a,), (), (), [], False))
    engine.push(lambda: None, [a], [b], name="next")
    engine.push(lambda: None, updates=[b])
    with pytest.raises(ValueError, match="inner") as info:
        waited = line() + 1
        engine.wait_for_var(b)
    notes = "\n".join(info.value.__notes__)
    for part in ("matmul", "a float32(2, 3)", f"pushed at {__file__}:{pushed}", f"waited for at {__file__}:{waited}",
                 "2 operations after"):  # fmt: skip
        assert part in notes, (part, notes)


def test_the_root_pushed_first_wins_whatever_the_schedule(engine):
    a, b, c = (engine.new_variable() for _ in range(3))
    gate = Gate()
    if engine.kind == "NaiveEngine":
        gate.open()
    engine.push(lambda: (gate(), 1 / 0), writes=[a], name="first")
    engine.push(fails(KeyError("second")), writes=[b])
    engine.push(lambda: None, [b, a], [c])
    gate.open()
    with pytest.raises(ZeroDivisionError):
        engine.wait_for_var(c)


def test_a_whole_overwrite_heals_an_update_does_not(engine):
    v = engine.new_variable()
    engine.push(fails(ValueError("x")), writes=[v])
    engine.push(lambda: None, updates=[v])
    with pytest.raises(ValueError, match="x"):
        engine.wait_for_var(v)
    engine.push(lambda: None, reads=[v], writes=[v])  # read and written is updated
    with pytest.raises(ValueError, match="x"):
        engine.wait_for_var(v)
    engine.push(lambda: None, writes=[v])
    engine.wait_for_var(v)


def test_a_skipped_function_never_runs(engine):
    v, w, ran = engine.new_variable(), engine.new_variable(), []
    engine.push(fails(ValueError("x")), writes=[v])
    engine.push(lambda: ran.append(1), [v], [w])
    with pytest.raises(ValueError, match="x"):
        engine.wait_for_var(w)
    assert not ran


def test_a_wait_binds_to_its_version(engine):
    v = engine.new_variable()
    op = engine.push(fails(ValueError("x")), writes=[v])
    engine.push(lambda: None, writes=[v])
    engine.wait_for_var(v)
    with pytest.raises(ValueError, match="x"):
        op.wait()
    assert isinstance(op.error, ValueError)


def test_waitall_raises_every_unseen_root_once(engine):
    vs = [engine.new_variable() for _ in range(4)]
    for i, v in enumerate(vs):
        engine.push(fails(ValueError(str(i))), writes=[v])
        engine.push(lambda: None, updates=[v])
    engine.push(fails(SystemExit(3)))  # nothing to poison, and never rebuilt
    with pytest.raises(ValueError, match="2"):
        engine.wait_for_var(vs[2])
    with pytest.raises(EngineErrors) as info:
        engine.waitall()
    assert [str(e) for e in info.value.exceptions] == ["0", "1", "3", "SystemExit: 3"]
    assert isinstance(info.value, Error)
    assert isinstance(info.value.subgroup(ValueError), EngineErrors)
    engine.waitall()
    with pytest.raises(ValueError, match="0"):
        engine.wait_for_var(vs[0])


class Odd(Exception):
    def __init__(self, a, *, b):
        super().__init__(f"{a} {b}")
        self.b = b


class Final(Exception):
    def __init_subclass__(cls, **kwargs):
        raise TypeError("final")


@pytest.mark.parametrize(
    "original",
    [
        ValueError("x"), KeyError("k"), FileNotFoundError(2, "none", "f.txt"), Odd(1, b=2), MemoryError("m"),
        json.JSONDecodeError("bad", "doc", 1), UnicodeDecodeError("utf8", b"x", 0, 1, "why"), ArgumentError("a"),
        ExceptionGroup("g", [ValueError("x")]), ImportError("i", name="n", path="p"), RecursionError("r"),
    ],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_rebuilding(original):
    original.add_note("mine")
    error = rebuild(original)
    assert isinstance(error, type(original))
    assert isinstance(error, OperatorError)
    assert str(error) == str(original)
    assert error.__cause__ is original
    assert error is not rebuild(original)
    assert type(error) is type(rebuild(original))
    error.add_note("new")
    assert original.__notes__ == ["mine"]
    for name in ("filename", "errno", "b", "lineno", "start", "name"):
        assert getattr(error, name, None) == getattr(original, name, None)


def test_a_rebuilt_error_pickles():
    error = rebuild(KeyError("k"))
    error.add_note("n")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, KeyError)
    assert isinstance(again, OperatorError)
    assert again.__notes__ == ["n"]


@pytest.mark.parametrize(
    "original",
    [Final("f"), StopIteration(1), asyncio.CancelledError(), SystemExit(1), KeyboardInterrupt(), GeneratorExit()],
    ids=lambda e: type(e).__name__,
)
def test_never_rebuilt(original):
    error = rebuild(original)
    assert type(error) is OperatorError
    assert error.__cause__ is original
    assert type(original).__name__ in str(error)


def test_natural_types():
    for kind, natural in (
        (ArgumentError, ValueError), (EngineTimeout, TimeoutError), (DeadlockError, RuntimeError),
        (EngineClosed, RuntimeError), (EngineErrors, ExceptionGroup),
    ):  # fmt: skip
        assert issubclass(kind, Error)
        assert issubclass(kind, natural)


def test_sticky_poison_pins_no_memory(engine):
    class Big:
        pass

    v = engine.new_variable()
    big = Big()
    ref = weakref.ref(big)

    def fn(big=big):
        local = big
        assert ref() is local
        raise ValueError(type(local).__name__)

    engine.push(fn, writes=[v])
    del big, fn
    with pytest.raises(ValueError, match="Big"):
        engine.wait_for_var(v)
    gc.collect()
    assert ref() is None


def test_the_traceback_keeps_its_lines(engine):
    v = engine.new_variable()

    def fn():
        raise ValueError("x")

    engine.push(fn, writes=[v])
    with pytest.raises(ValueError, match="x") as info:
        engine.wait_for_var(v)
    text = "".join(traceback.format_exception(info.value))
    assert f'File "{__file__}", line {fn.__code__.co_firstlineno + 1}, in fn' in text
    assert 'raise ValueError("x")' in text


def test_done_operations_hold_nothing(engine):
    class Big:
        pass

    big = Big()
    ref = weakref.ref(big)
    op = engine.push(lambda big=big: None)
    del big
    op.wait()
    assert ref() is None


def test_cancelled_keeps_order():
    """I2: completing a cancelled operation at once would let its successor overtake a running reader."""
    with Engine("ThreadedEnginePooled", workers=2) as e:
        v, gate, cell, saw = e.new_variable(), Gate(), [0], []
        e.push(lambda: (gate(), saw.append(list(cell))), reads=[v])
        gate.wait_entered()
        c = e.push(lambda: cell.append("ran"), updates=[v], name="cancelled")
        c.cancel()
        d = e.push(lambda: cell.append("update"), updates=[v])
        last = e.push(lambda: cell.__setitem__(slice(None), [9]), writes=[v])
        other = e.push(lambda: None)
        other.wait()
        assert not d.done
        assert not last.done
        gate.open()
        e.wait_for_var(v)
        assert saw == [[0]]
        assert cell == [9]
        assert isinstance(c.error, Cancelled)
        with pytest.raises(Cancelled):
            d.wait()


def test_cancel_pending():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, gate = e.new_variable(), Gate()
        e.push(gate, updates=[v])
        gate.wait_entered()
        ran = []
        waiting = [e.push(lambda: ran.append(1), updates=[v]) for _ in range(3)]
        beside = e.push(lambda: ran.append(2))
        assert e.cancel_pending() == 4  # not the one that runs
        assert e.cancel_pending() == 4
        after = e.push(lambda: 3, updates=[w := e.new_variable()])
        assert not any(op.done for op in (*waiting, beside))  # in their turn
        gate.open()
        for op in (*waiting, beside):
            with pytest.raises(Cancelled):
                op.wait(30)
        after.wait(30)
        e.wait_for_var(w)
        with pytest.raises(Cancelled):
            e.wait_for_var(v)
        e.push(lambda: ran.append("healed"), writes=[v])
        e.wait_for_var(v)
        assert ran == ["healed"]
        e.waitall()  # each was seen


def test_cancel_one():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        gate, ran = Gate(), []
        running = e.push(gate)
        gate.wait_entered()
        one, two = e.push(lambda: ran.append(1)), e.push(lambda: ran.append(2))
        running.cancel()  # it has started: nothing happens
        one.cancel()
        gate.open()
        two.wait()
        running.wait()
        assert isinstance(one.error, Cancelled)
        two.cancel()
        assert two.error is None
        assert ran == [2]


def test_errors_nobody_saw_are_logged_at_stop(caplog):
    """Each root once, with its lines; none of those that a wait has raised; not what was merely poisoned by them."""
    with caplog.at_level(logging.ERROR, "vardag"), Engine(workers=1) as e:
        a, b = e.new_variable(), e.new_variable()
        e.push(fails(KeyError("unseen")), writes=[a], name="lost")
        e.push(lambda: None, updates=[a])
        e.push(fails(ValueError("seen")), writes=[b])
        with pytest.raises(ValueError, match="seen"):
            e.wait_for_var(b)
    (record,) = caplog.records
    assert record.name == "vardag"
    for part in ("KeyError: 'unseen'", "operator: lost", f"pushed at {__file__}:"):
        assert part in record.getMessage()
    e.start()
    e.stop()
    assert len(caplog.records) == 1  # and only once


def test_inline_kernel_that_fails_poisons():
    with Engine(workers=1) as e:
        v = e.new_variable()
        op = Operation(Kind.ATOMIC, lambda: [(divmod, 1, 0)], "div", cheap=True, operands="1, 0")
        e.admit(lambda: (op, (), (v,), (), (), [], False))
        assert e.statistics().pushed == 1
        with pytest.raises(ZeroDivisionError) as info:
            e.wait_for_var(v)
        assert "operands: 1, 0" in info.value.__notes__
        bad = Operation(Kind.ATOMIC, fails(IndexError("prepare")), "bad", cheap=True)
        e.admit(lambda: (bad, (), (v,), (), (), [], False))
        with pytest.raises(IndexError, match="prepare"):
            e.wait_for_var(v)
