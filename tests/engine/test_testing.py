"""The testing tools themselves: each can fail, and each forces what it says; races that only they can force."""

from __future__ import annotations

import threading

import pytest

from vardag.engine import Cancelled, Engine, EngineTimeout, Kind, Operation, testing, tracker
from vardag.engine.testing import (
    Checkpoints,
    Faults,
    Gate,
    LyingLock,
    Scripted,
    Seeded,
    Sequencer,
    Trace,
    audit,
    interrupt_at,
    lint,
    package_functions,
    wait_quiescent,
)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(testing, "PATIENCE", 0.01)


def test_gates_give_up(impatient):
    gate = Gate()
    with pytest.raises(TimeoutError, match="entered"):
        gate.wait_entered()
    with pytest.raises(TimeoutError, match="opened"):
        gate()
    gate.open()
    gate()


def test_a_sequencer_gives_up_and_goes_on_after_an_error(impatient):
    seq = Sequencer()
    with pytest.raises(TimeoutError, match="only 0 blocks"), seq(1):
        pass
    with pytest.raises(KeyError), seq(0):
        raise KeyError
    with seq(1):
        pass


@pytest.mark.parametrize(
    ("ran", "template", "ok"),
    [
        ("abc", ["a", "b", "c"], True),
        ("acb", ["a", "b", "c"], False),
        ("acb", ["a", {"b", "c"}], True),
        ("cab", ["a", {"b", "c"}], False),
        ("xaybz", ["x", {("a", "b"), "y"}, "z"], True),
        ("xbyaz", ["x", {("a", "b"), "y"}, "z"], False),
        ("axbyd", {("a", "b"), ("x", "y"), "d"}, True),
        ("ab", ["a", "b", "c"], False),
        ("abcc", ["a", "b", "c"], False),
        ("aa", ["a", "a"], False),
    ],
)
def test_templates(ran, template, ok):
    trace = Trace()
    for name in ran:
        trace(name)()
    if ok:
        trace.check(template)
    else:
        with pytest.raises(AssertionError):
            trace.check(template)


def test_what_runs_is_a_linear_order_of_the_edges():
    """A diamond over four variables, under fifty schedules."""
    orders = set()
    for seed in range(50):
        with Engine("ThreadedEnginePooled", workers=1, schedule=Seeded(seed)) as e:
            a, b, c = (e.new_variable() for _ in range(3))
            trace, gate = Trace(), Gate()
            e.push(gate, updates=[a])
            gate.wait_entered()
            e.push(trace("top"), updates=[a])
            e.push(trace("left 1"), [a], [b])
            e.push(trace("right 1"), [a], [c])
            e.push(trace("left 2"), updates=[b])
            e.push(trace("right 2"), updates=[c])
            e.push(trace("bottom"), [b, c], [a])
            gate.open()
        trace.check(["top", {("left 1", "left 2"), ("right 1", "right 2")}, "bottom"])
        orders.add(tuple(trace.names))
    assert len(orders) > 3  # the schedules do differ


def test_a_script_decides_who_runs_next():
    with Engine("ThreadedEnginePooled", workers=1, schedule=Scripted("dcba")) as e:
        v, trace, gate = e.new_variable(), Trace(), Gate()
        e.push(gate, updates=[v])
        gate.wait_entered()
        for name in "abcd":
            e.push(trace(name), reads=[v])
        wait_quiescent(e, running=1)
        assert trace.names == []
        gate.open()
        e.waitall()
        assert trace.names == ["d", "c", "b", "a"]


def test_quiescence_gives_up_and_ignores_handed_out_operations():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        gate, kept = Gate(), []
        e.push(gate)
        gate.wait_entered()
        with pytest.raises(TimeoutError, match="1 pending"):
            wait_quiescent(e, timeout=0.01)
        gate.open()
        op = e.push_async(lambda ctx, done: kept.append(done))
        wait_quiescent(e)
        assert not op.done
        kept[0]()
        op.wait()


def test_a_turn_that_is_lied_about():
    """Serial engine: a push that finds the turn taken leaves its operation to whoever has it.  If nobody has,
    the wait finds it all the same.
    """
    with Engine("NaiveEngine") as e:
        v, out = e.new_variable(), []
        e._turn_lock = LyingLock({0, 1})
        op = e.push(lambda: out.append(1), updates=[v])
        assert not op.done
        assert not out
        e.wait_for_var(v, 30)
        assert out == [1]
        assert e._turn_lock.asked > 2
        audit(e)


@pytest.mark.parametrize("kind", ["NaiveEngine", "ThreadedEnginePooled"])
def test_faults_hit_the_operation_they_name(kind):
    with Engine(kind, workers=2) as e:
        v, out = e.new_variable(), []

        def push(i):
            if i % 2:
                return e.push(lambda: out.append(i), updates=[v])
            op = Operation(Kind.ATOMIC, lambda: [(list.append, out, i)], cheap=i % 4 == 0)
            e.admit(lambda: (op, (), (v,) if i == 6 else (), () if i == 6 else (v,), (), [], False))
            return op

        with Faults(e, {2: MemoryError, 5: KeyError("five")}) as faults:
            ops = [push(i) for i in range(8)]
            with pytest.raises(MemoryError):
                ops[4].wait()
            e.wait_for_var(v)
            assert faults.hits == 2
        push(8)
        e.wait_for_var(v)
        assert out == [0, 1, 6, 7, 8]
        assert isinstance(ops[5].error, MemoryError)  # poisoned before its own turn to fail
        audit(e)


def test_an_interrupt_at_every_tenth_checkpoint_of_a_push():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        cut = 0
        for k in range(1, 400, 10):
            try:
                with interrupt_at(k, Cancelled):
                    e.push(lambda: None)
            except Cancelled:
                cut += 1
            e.waitall(30)
            audit(e)
        assert 3 < cut < 39


def test_checkpoints_are_of_one_thread():
    with Engine("ThreadedEnginePooled", workers=1) as e, Checkpoints(lambda n: None) as points:
        thread = threading.Thread(target=lambda: e.push(lambda: None).wait())
        thread.start()
        thread.join()
        assert points.count == 0


def test_the_audit_is_not_blind(monkeypatch):
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, gate = e.new_variable(), Gate()
        e.push(gate, updates=[v])
        gate.wait_entered()
        op = e.push(lambda: None, updates=[v])
        with pytest.raises(EngineTimeout):
            op.wait(0.0)
        audit(e)
        op.wait_count += 1
        with pytest.raises(AssertionError):
            audit(e)
        op.wait_count -= 1
        op.state = tracker.READY
        with pytest.raises(AssertionError):
            audit(e)
        op.state = tracker.PENDING
        gate.open()
        op.wait()


def test_no_loop_hides_in_a_protected_range():
    functions = package_functions()
    assert len(functions) > 150
    assert lint(functions) == []


def test_lint_is_not_blind():
    def bad(lock):
        with lock:
            while lock:
                if lock.locked():
                    continue
                lock.acquire()

    found = lint([bad])
    assert isinstance(found, list)  # the compiler of 3.11 keeps the jump inside; 3.13 does not
