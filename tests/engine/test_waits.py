"""Waits: at any depth, with deadlocks found, time-outs explained, and help given only where it is allowed."""

from __future__ import annotations

import contextlib
import inspect
import threading

import pytest

from vardag.engine import DeadlockError, Engine, EngineTimeout, Kind, Operation, waiting
from vardag.engine.testing import Gate, audit

KINDS = ["NaiveEngine", "ThreadedEnginePooled", "ThreadedEnginePerDevice"]


@pytest.fixture(params=KINDS)
def engine(request, monkeypatch):
    monkeypatch.setattr(waiting, "SLICE", 60.0)
    with Engine(request.param, workers=1) as e:
        yield e


@pytest.mark.parametrize("depth", [50, 1000])
def test_nested_waits_on_one_worker(engine, depth):
    out = []

    def nest(n):
        v = engine.new_variable()

        def fn():
            if n:
                engine.wait_for_var(nest(n - 1), 60)
            out.append(n)

        engine.push(fn, writes=[v])
        return v

    engine.wait_for_var(nest(depth), 60)
    assert out == list(range(depth + 1))


def test_a_wait_for_itself_is_a_deadlock_at_once(engine):
    v, w = engine.new_variable(), engine.new_variable()
    box = []

    def selfish():
        engine.wait_for_var(box[0], 60)

    box.append(v)
    gate = engine.new_variable()
    engine.push(selfish, updates=[v], name="selfish")
    with pytest.raises(DeadlockError):
        engine.wait_for_var(v, 60)
    box[0] = w

    def indirect():
        engine.push(lambda: None, [gate], [w])  # needs what this operation updates
        engine.wait_for_var(w, 60)

    engine.push(indirect, updates=[gate])
    with pytest.raises(DeadlockError):
        engine.wait_for_var(gate, 60)


def test_waitall_inside_an_operation_is_a_deadlock(engine):
    v = engine.new_variable()
    engine.push(lambda: engine.waitall(60), writes=[v])
    with pytest.raises(DeadlockError):
        engine.wait_for_var(v, 60)


def test_crossed_waits():
    with Engine("ThreadedEnginePooled", workers=2) as e:
        x, y = e.new_variable(), e.new_variable()
        both = threading.Barrier(2, timeout=30)

        def wait_for(other):
            both.wait()
            e.wait_for_var(other, 60)

        a = e.push(lambda: wait_for(y), writes=[x])
        b = e.push(lambda: wait_for(x), writes=[y])
        e.wait_op(a, 60)
        e.wait_op(b, 60)
        assert isinstance(a.error, DeadlockError) or isinstance(b.error, DeadlockError)
        with contextlib.suppress(ExceptionGroup):
            e.waitall(60)
        audit(e)


def test_a_time_out_explains_the_chain():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, w, gate = e.new_variable(), e.new_variable(), Gate()
        first = inspect.currentframe().f_lineno + 1
        e.push(gate, updates=[v], name="stuck")
        gate.wait_entered()
        e.push(lambda: None, [v], [w], name="after")
        with pytest.raises(EngineTimeout) as info:
            e.wait_for_var(w, 0.01)
        text = str(info.value)
        for part in ("[after]", "pending", "[stuck]", "running", "vardag-pool-0", f"{__file__}:{first}",
                     f"{__file__}:{first + 2}", f"{__file__}:{first + 4}"):  # fmt: skip
            assert part in text, text
        assert isinstance(info.value, TimeoutError)
        for _ in range(5):
            with pytest.raises(EngineTimeout):
                e.wait_for_var(w, 0.0)
        assert not w.writer.watch  # polling leaves no watcher behind
        gate.open()


def test_wait_to_write_waits_for_readers():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, gate = e.new_variable(), Gate()
        e.push(lambda: None, writes=[v])
        reader = e.push(gate, reads=[v])
        gate.wait_entered()
        e.wait_for_var(v, 60)
        with pytest.raises(EngineTimeout):
            e.wait_to_write(v, 0.01)
        gate.open()
        e.wait_to_write(v, 60)
        assert reader.done


def test_waitall_is_a_cut():
    """It returns under a steady pusher: each operation pushes the next."""
    with Engine("ThreadedEnginePooled", workers=1) as e:
        stop = []

        def again():
            if not stop:
                e.push(again)

        e.push(again)
        e.waitall(60)
        stop.append(1)


def test_a_waiting_user_thread_helps_with_needed_kernels_only():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        gate, ran = Gate(), []
        e.push(gate)
        gate.wait_entered()  # the only worker is busy
        me = threading.get_ident

        def atomic(name, reads=(), writes=()):
            op = Operation(Kind.ATOMIC, lambda: [(list.append, ran, (name, me()))], name)
            e.admit(lambda: (op, reads, writes, (), (), [], False))
            return op

        v = e.new_variable()
        other = atomic("other")
        atomic("needed", (), (v,))
        e.wait_op(atomic("target", (v,)), 60)
        assert ran == [("needed", me()), ("target", me())]
        assert not other.done
        user = e.push(lambda: ran.append(("user", me())))
        with pytest.raises(EngineTimeout):
            user.wait(0.01)
        gate.open()
        user.wait(60)
        assert ran[-1][1] != me()
        assert e.statistics().by_helper == 2


def test_waits_from_several_threads():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, gate, done = e.new_variable(), Gate(), []
        e.push(gate, updates=[v])
        threads = [threading.Thread(target=lambda: (e.wait_for_var(v, 60), done.append(1))) for _ in range(8)]
        for t in threads:
            t.start()
        gate.open()
        for t in threads:
            t.join(60)
        assert len(done) == 8


def test_a_wait_is_woken_by_the_completion(engine):
    """SLICE is a minute here: a wake-up that is lost, or comes before its operation is done, is a hang."""
    for _ in range(20):
        gate, v = Gate(), engine.new_variable()
        if engine.kind == "NaiveEngine":
            gate.open()
        engine.push(gate, updates=[v])
        thread = threading.Thread(target=lambda v=v: engine.wait_for_var(v, 20))
        thread.start()
        gate.wait_entered()
        gate.open()
        thread.join(20)
        assert not thread.is_alive()
