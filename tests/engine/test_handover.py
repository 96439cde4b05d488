"""Handing over the interpreter: a large kernel starts although its pusher goes on with Python code, and who never pays.

The switch interval is five seconds here: without a handover a worker gets its turn only when the busy thread is done.
`HANDOVER` is longer too: so the machine may be slow, and what ends it is what should.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from time import monotonic

import numpy as np
import pytest

from vardag import nd
from vardag.engine import DONE, Engine, Kind, Operation, ready
from vardag.engine.atomic import locked
from vardag.engine.testing import Gate, audit

WAIT = 20.0
BUSY = 2.0  # seconds of Python code without a pause


@pytest.fixture(autouse=True)
def interval(monkeypatch):
    monkeypatch.setattr(ready, "HANDOVER", WAIT)
    monkeypatch.setattr(ready, "PAUSE", 0.0)
    old = sys.getswitchinterval()
    sys.setswitchinterval(5.0)
    try:
        yield
    finally:
        sys.setswitchinterval(old)


@pytest.fixture(params=["ThreadedEnginePooled", "ThreadedEnginePerDevice"])
def engine(request):
    with Engine(request.param, workers=2) as e:
        rest(e)
        yield e
        e.waitall(WAIT)
        audit(e)


def rest(e: Engine) -> None:
    """All workers are up and asleep."""
    e.push(lambda: None)
    e.waitall(WAIT)
    until(lambda: len(e._lane.asleep) == e._lane.workers)


def until(condition) -> None:
    end = monotonic() + WAIT
    while not condition():
        assert monotonic() < end
        threading.Event().wait(0.001)


def admit(e: Engine, kind: Kind, fn, **accesses) -> Operation:
    op = Operation(kind, fn, "kernel")
    reads, updates = accesses.get("reads", ()), accesses.get("updates", ())
    e.admit(lambda: (op, reads, (), updates, (), [], False))
    return op


def busy(stop, seconds=BUSY) -> None:
    """Python code, until `stop` has something in it or the time is over."""
    end = monotonic() + seconds
    while not stop and monotonic() < end:
        pass


@pytest.fixture
def handed(monkeypatch):
    """The lanes that were handed the interpreter, which they are not."""
    lanes: list[ready.Lane] = []

    def hand_over(lane: ready.Lane) -> None:
        lanes.append(lane)

    monkeypatch.setattr(ready.Lane, "hand_over", hand_over)
    return lanes


# ==================================================================================================== it starts
def test_a_large_kernel_starts_while_its_pusher_is_busy(engine):
    started, gate = [], Gate()

    def kernel() -> None:
        started.append(threading.get_ident())
        gate()

    op = admit(engine, Kind.KERNEL, kernel)
    busy(started)
    try:
        assert started
        assert started[0] != threading.get_ident()
        assert op.state is not DONE
    finally:
        gate.open()


def test_without_it_the_kernel_starts_late(engine, handed):
    started = []
    admit(engine, Kind.KERNEL, lambda: started.append(1))
    busy(started, 0.1)
    assert not started
    assert handed == [engine._lane]


def test_a_second_one_starts_on_the_second_worker(engine):
    started, gate = [], Gate()

    def kernel() -> None:
        started.append(threading.get_ident())
        gate()

    for n in 1, 2:
        admit(engine, Kind.KERNEL, kernel)
        end = monotonic() + BUSY
        while len(started) < n and monotonic() < end:
            pass
    gate.open()
    assert len(set(started)) == 2


def test_the_first_operation_of_an_engine(handed):
    """Its workers are not up yet."""
    with Engine(workers=1) as e:
        op = admit(e, Kind.KERNEL, lambda: None)
        assert handed == [e._lane]
        op.wait(WAIT)


def test_a_product_of_arrays(engine):
    x = nd.array(np.ones((700, 700), "float32"))
    nd.waitall()
    until(lambda: len(engine._lane.asleep) == 2)
    y = nd.dot(x, x)
    op = y._chunk.buffer.variable.writer
    end = monotonic() + BUSY
    while op.claim is None and op.state is not DONE and monotonic() < end:
        pass
    assert op.claim is not None or op.state is DONE
    assert (y.asnumpy() == 700).all()


# ==================================================================================================== who never pays
@pytest.mark.host("what is handed over")
def test_users_functions_and_short_kernels_do_not(engine, handed):
    engine.push(lambda: None)
    admit(engine, Kind.ATOMIC, lambda: ())
    nd.ones(10) + nd.ones(10)
    assert not handed


def test_what_cannot_start_does_not(engine, handed):
    v, gate = engine.new_variable(), Gate()
    engine.push(gate, updates=[v])
    gate.wait_entered()
    admit(engine, Kind.KERNEL, lambda: None, reads=(v,))
    gate.open()
    assert not handed


def test_it_costs_nothing_while_all_workers_are_awake(engine):
    gate = Gate()
    for _ in range(2):
        engine.push(gate)
    until(lambda: not engine._lane.asleep)
    start = monotonic()
    admit(engine, Kind.KERNEL, lambda: None)
    gate.open()
    assert monotonic() - start < WAIT / 2
    assert engine._lane.pusher is None


def test_threads_that_must_not_block_do_not(engine, handed):
    """Inside an operation, inside a section of pushes, on an event loop."""
    engine.push(lambda: admit(engine, Kind.KERNEL, lambda: None))
    engine.waitall(WAIT)
    locked(engine._P, admit, engine, Kind.KERNEL, lambda: None)

    async def task() -> None:
        admit(engine, Kind.KERNEL, lambda: None)

    asyncio.run(task())
    assert not handed


def test_a_second_push_at_once_does_not(engine, monkeypatch):
    admit(engine, Kind.KERNEL, lambda: None)
    engine.waitall(WAIT)
    until(lambda: len(engine._lane.asleep) == 2)
    monkeypatch.setattr(ready, "PAUSE", WAIT)
    before = engine._lane.handed
    assert before
    admit(engine, Kind.KERNEL, lambda: None)
    assert engine._lane.handed == before


def test_the_serial_engine_does_not():
    with Engine("NaiveEngine") as e:
        out = []
        admit(e, Kind.KERNEL, lambda: out.append(1))
        assert out == [1]
        assert e._lane.pusher is None


# ==================================================================================================== it ends
def test_a_worker_that_looks_in_vain_ends_it(engine):
    start = monotonic()
    engine._lane.bell.put(None)
    engine._lane.hand_over()
    assert monotonic() - start < WAIT / 2


def test_it_is_bounded(engine, monkeypatch):
    """The worker that is rung cannot claim: the push returns all the same."""
    monkeypatch.setattr(ready, "HANDOVER", 0.01)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        leave.wait(WAIT)

    thread = threading.Thread(target=locked, args=(engine._T, hold))
    thread.start()
    assert inside.wait(WAIT)
    op = admit(engine, Kind.KERNEL, lambda: None)
    assert op.state is not DONE
    leave.set()
    thread.join(WAIT)
    op.wait(WAIT)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_an_interrupt_ends_it_and_the_operation_runs(engine):
    inside, leave, out = threading.Event(), threading.Event(), []

    class Stop(BaseException):
        pass

    def stop(*_) -> None:
        raise Stop

    def hold() -> None:
        inside.set()
        leave.wait(WAIT)

    thread = threading.Thread(target=locked, args=(engine._T, hold))
    thread.start()
    assert inside.wait(WAIT)
    old = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(Stop):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            admit(engine, Kind.KERNEL, lambda: out.append(1))
    finally:
        signal.signal(signal.SIGALRM, old)
        leave.set()
        thread.join(WAIT)
    engine.waitall(WAIT)
    assert out == [1]
