"""Short programs that force what the guards of the engine are for; the long list is in docs/engine-proof.md."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings

import pytest

from vardag.engine import DeadlockError, Engine, EngineErrors, waiting
from vardag.engine.atomic import locked
from vardag.engine.testing import Gate, audit

LONG = float(os.environ.get("VARDAG_STRESS") or 0) > 0
WAIT = 20.0


@pytest.fixture(autouse=True)
def long_slices(monkeypatch):
    """A lost wake-up must show as a hang and not be hidden by polling."""
    monkeypatch.setattr(waiting, "SLICE", 60.0)


# ==================================================================================================== waits
def nested(e: Engine) -> None:
    """Fifty operations, each of which pushes the next and waits for it."""
    out = []

    def nest(n):
        if n:
            e.push(lambda: nest(n - 1), writes=[e.new_variable()]).wait(WAIT)
        out.append(n)

    e.push(lambda: nest(50)).wait(WAIT)
    assert out == list(range(51))


def selfish(e: Engine) -> None:
    """A wait for the very operation it is made in: directly, and through another one that needs it."""
    v, w = e.new_variable(), e.new_variable()
    with pytest.raises(DeadlockError):
        e.push(lambda: e.wait_for_var(v, WAIT), updates=[v]).wait(WAIT)

    def through() -> None:
        e.push(lambda: None, reads=[v], writes=[w])
        e.wait_for_var(w, WAIT)

    e.push(lambda: None, writes=[v])
    with pytest.raises(DeadlockError):
        e.push(through, updates=[v]).wait(WAIT)


def crossed(e: Engine) -> None:
    """Two operations on two threads, each of which waits for the other's variable."""
    x, y, both = e.new_variable(), e.new_variable(), threading.Barrier(2, timeout=WAIT)

    def wait_for(v) -> None:
        both.wait()
        e.wait_for_var(v, WAIT)

    ops = [e.push(lambda: wait_for(y), writes=[x]), e.push(lambda: wait_for(x), writes=[y])]
    for op in ops:
        e.wait_op(op, WAIT)
    assert any(isinstance(op.error, DeadlockError) for op in ops)


@pytest.mark.parametrize(("program", "workers"), [(nested, 1), (selfish, 1), (crossed, 2)])
def test_waits_end_or_raise_within_a_second(program, workers, note):
    rounds, longest = (300 if LONG else 3), 0.0
    for _ in range(rounds):
        with Engine("ThreadedEnginePooled", workers=workers) as e:
            start = time.monotonic()
            program(e)
            longest = max(longest, time.monotonic() - start)
            with contextlib.suppress(EngineErrors):
                e.waitall(WAIT)
            audit(e)
    note("waits", rounds, rounds, f"{program.__name__}, {workers} worker(s): the longest {longest:.3f} s")
    assert longest < (1.0 if LONG else WAIT / 2)


# ==================================================================================================== guards
def test_nobody_is_woken_before_the_completion():
    """Whoever watches an operation hears of it once, and finds it DONE: else it would go to sleep again for ever."""
    with Engine("ThreadedEnginePooled", workers=1) as e:
        gate, asleep, woken, seen = Gate(), threading.Event(), threading.Event(), []

        def sleep(queue, seconds) -> None:
            asleep.set()
            waiting.Waiting._sleep(e, queue, seconds)
            seen.append(op.done)
            woken.set()

        def execute(job):
            fate = type(e)._execute(e, job)
            woken.wait(0.05)  # whoever was woken by now has time to look
            return fate

        e._sleep, e._execute = sleep, execute
        op = e.push(gate, name="watched")
        gate.wait_entered()
        thread = threading.Thread(target=lambda: op.wait(WAIT))
        thread.start()
        assert asleep.wait(WAIT)
        gate.open()
        thread.join(WAIT)
        del e._sleep, e._execute
    assert seen == [True]


def test_edges_are_drawn_once():
    """A finalizer that waits runs while edges are planned, and draws them itself: the plan around it must fail."""
    with Engine("ThreadedEnginePooled", workers=1, inline=False) as e:
        gate, out, inner = Gate(), [], []
        v = e.new_variable()
        e.push(gate, updates=[v])
        gate.wait_entered()
        original = e._draw

        def draw(*arguments) -> None:
            original(*arguments)
            if not inner:
                inner.append(1)
                locked(e._T, e._drain)

        e._draw = draw
        for i in range(3):
            e.push(lambda i=i: out.append(i), updates=[v])
        try:
            locked(e._T, e._drain)
        finally:
            del e._draw
            gate.open()
        e.wait_for_var(v, WAIT)
        assert inner
        assert out == [0, 1, 2]
        audit(e)


def test_pushes_while_the_process_ends(monkeypatch):
    """A daemon thread's push is parked, not refused noisily; what an operation pushes is admitted."""
    parked, errors, ran = [], [], []
    monkeypatch.setattr("vardag.engine.core.park", lambda: parked.append(1))
    with Engine("ThreadedEnginePooled", workers=1) as e:
        gate = Gate()

        def operation() -> None:
            gate()
            e.push(lambda: ran.append("pushed inside"))

        def daemon() -> None:
            try:
                e.push(lambda: ran.append("pushed outside"))
            except BaseException as error:
                errors.append(error)

        op = e.push(operation)
        gate.wait_entered()
        e._nested_until = time.monotonic() + WAIT
        e._closed = e._parking = True
        thread = threading.Thread(target=daemon, daemon=True)
        thread.start()
        thread.join(WAIT)
        gate.open()
        e.wait_op(op, WAIT)
        e._closed = e._parking = False
        assert op.error is None
        e.waitall(WAIT)
    assert (parked, errors, ran) == ([1], [], ["pushed inside"])


def test_a_push_from_inside_a_scheduling_section_lets_go_of_it():
    """A finalizer in a T section pushes; another thread holds P and wants T: P comes before T, or both hang."""
    with Engine("ThreadedEnginePooled", workers=1) as e:
        e.push(lambda: None).wait(WAIT)
        inside, held = threading.Event(), threading.Event()
        pushed = []

        def finalizer() -> None:
            inside.set()
            assert held.wait(WAIT)
            pushed.append(e.push(lambda: None))

        def both() -> None:
            held.set()
            locked(e._T, lambda: None)

        first = threading.Thread(target=locked, args=(e._T, finalizer), daemon=True)
        first.start()
        assert inside.wait(WAIT)
        second = threading.Thread(target=locked, args=(e._P, both), daemon=True)
        second.start()
        for thread in (first, second):
            thread.join(5)
            assert not thread.is_alive(), "each holds what the other wants"
        pushed[0].wait(WAIT)
        audit(e)


def test_a_push_sees_what_came_in_while_it_looked():
    """Race "read-before-ticket": between a push's look at its variable and its commit, the same thread pushes."""
    with Engine("ThreadedEnginePooled", workers=1, inline=False) as e:
        v, out = e.new_variable(), []
        gate = Gate()
        e.push(gate, updates=[v])
        gate.wait_entered()
        original = e._queue_steps

        def look(op, planned):
            steps = original(op, planned)
            if not out:
                out.append("looked")
                e.push(lambda: out.append("inner"), updates=[v])
            return steps

        e._queue_steps = look
        e.push(lambda: out.append("outer"), updates=[v])
        del e._queue_steps
        gate.open()
        e.wait_for_var(v, WAIT)
        assert out == ["looked", "inner", "outer"]
        assert v.version == 3
        audit(e)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_counts_from_nothing():
    """What was in flight in the parent is not in flight in the child, and nobody is held there; the bounds are kept."""
    with Engine("ThreadedEnginePooled", workers=1) as e:
        e.limits(bytes=100, count=4)
        v, gate = e.new_variable(), Gate()
        e.push(gate, updates=[v], nbytes=60)
        gate.wait_entered()
        held = threading.Thread(target=lambda: e.push(lambda: None, updates=[v], nbytes=60), daemon=True)
        held.start()
        while not e._room:
            threading.Event().wait(0.001)

        def check() -> bool:
            s = e.statistics()
            fresh = (s.bytes, s.pending, s.limits.bytes, s.limits.count, len(e._room)) == (0, 0, 100, 4, 0)
            w, own = e.new_variable(), Gate()
            e.push(own, updates=[w], nbytes=60)
            e.push(lambda: None, updates=[w], nbytes=40)  # fits: would hang if the parent's bytes counted
            own.wait_entered()
            over = threading.Thread(target=lambda: e.push(lambda: None, updates=[w], nbytes=1))
            over.start()
            while not e._room:
                threading.Event().wait(0.001)
            own.open()
            over.join(WAIT)
            e.waitall(WAIT)
            return fresh and not over.is_alive() and e.statistics().bytes == 0 and e.statistics().peak_bytes <= 100

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of every fork with threads
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if check() else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        gate.open()
        held.join(WAIT)
        e.waitall(WAIT)
