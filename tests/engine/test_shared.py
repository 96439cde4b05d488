"""Brief segments: one C call of the thread that runs them, and of workers that come in time; whole, or failed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from vardag.engine import DeadlockError, Engine, EngineTimeout, Operation, OperatorError
from vardag.engine.joining import Fusible
from vardag.engine.operation import Kind
from vardag.engine.testing import Gate, audit, wait_quiescent

PATIENCE = 30.0


class Brief:
    """A segment of given pieces, which nobody joins."""

    brief = True
    awaited: tuple[Operation, ...] = ()

    def __init__(self, *pieces: list[Any], after: Any = ()) -> None:
        self.pieces, self.after = list(pieces), list(after)
        self.members = [self]
        self.door: list[Any] = [self.members]
        self.prepared: list[int] = []
        self.blamed = 0

    def takes(self, other: Any) -> None:
        return None

    def __call__(self) -> None:
        raise AssertionError("a brief one is steps")

    def prepare(self) -> tuple[list[list[Any]], list[Any]]:
        self.prepared.append(threading.get_ident())
        return self.pieces, self.after

    def blame(self, op: Operation) -> None:
        self.blamed += 1


def push(engine: Engine, segment: Any, **how: Any) -> Operation:
    op = Fusible(Kind.KERNEL, segment, "brief")
    return engine._push(op, how.get("reads", ()), how.get("writes", ()), how.get("updates", ()))


@pytest.fixture(params=[1, 2, 4])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine("ThreadedEnginePooled", workers=request.param) as e:
        e.push(lambda: None).wait()
        yield e
        e.waitall()
        audit(e)


class Blocked:
    """While it is entered, all workers wait."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.gates = engine, [Gate() for _ in range(engine._lane.workers)]

    def __enter__(self) -> None:
        for gate in self.gates:
            self.engine.push(gate)
        for gate in self.gates:
            gate.wait_entered()

    def __exit__(self, *_: object) -> None:
        for gate in self.gates:
            gate.open()


def test_every_piece_once_and_then_the_rest(engine: Engine) -> None:
    for _ in range(50):
        done: list[int] = []
        last: list[int] = []
        segment = Brief(*([(done.append, i)] for i in range(8)), after=[(last.extend, done)])
        push(engine, segment).wait(PATIENCE)
        assert sorted(done) == list(range(8))
        assert sorted(last) == list(range(8))


def test_a_waiting_thread_runs_it(engine: Engine) -> None:
    done: list[int] = []
    segment = Brief([(done.append, threading.get_ident())], [(done.append, 1)])
    with Blocked(engine):
        push(engine, segment).wait(PATIENCE)
        assert segment.prepared == [threading.get_ident()]
        assert len(done) == 2
        assert segment.door == []


def test_workers_run_what_nobody_waits_for(engine: Engine) -> None:
    segment = Brief([(list, ())], [(list, ())])
    push(engine, segment)
    wait_quiescent(engine)
    assert segment.prepared != [threading.get_ident()]


def test_a_long_one_is_left_to_workers(engine: Engine) -> None:
    ran: list[int] = []

    class Long(Brief):
        brief = False

        def __call__(self) -> None:
            ran.append(threading.get_ident())

    push(engine, Long()).wait(PATIENCE)
    assert len(ran) == 1
    assert ran != [threading.get_ident()]


def test_a_worker_takes_part() -> None:
    """Two pieces that only end together."""
    with Engine("ThreadedEnginePooled", workers=2) as e:
        e.push(lambda: None).wait()
        met = threading.Barrier(2)
        push(e, Brief([(met.wait, PATIENCE)], [(met.wait, PATIENCE)])).wait(PATIENCE)
        assert not met.broken


@pytest.mark.parametrize("piece", [0, 1, 2])
def test_a_step_that_fails(engine: Engine, piece: int) -> None:
    v = engine.new_variable()
    pieces: list[list[Any]] = [[(list, ())] for _ in range(3)]
    pieces[piece].append((int, "no number"))
    segment = Brief(*pieces)
    op = push(engine, segment, writes=[v])
    for _ in range(2):
        with pytest.raises(ValueError, match="no number") as caught:
            engine.wait_for_var(v, PATIENCE)
        assert isinstance(caught.value, OperatorError)
    assert segment.blamed == 1
    assert op.fate is not None


def test_a_step_that_fails_on_an_assistant() -> None:
    with Engine("ThreadedEnginePooled", workers=2) as e:
        e.push(lambda: None).wait()
        met, threads = threading.Barrier(2), []

        def piece() -> None:
            met.wait(PATIENCE)
            threads.append(threading.get_ident())
            if threads[-1] != segment.prepared[0]:
                raise ValueError("bad")

        v = e.new_variable()
        segment = Brief([(piece,)], [(piece,)])
        push(e, segment, writes=[v])
        with pytest.raises(ValueError, match="bad"):
            e.wait_for_var(v, PATIENCE)
        assert len(threads) == 2


def test_a_step_that_fails_behind_the_pieces(engine: Engine) -> None:
    v = engine.new_variable()
    push(engine, Brief([(list, ())], [(list, ())], after=[(int, "no number")]), writes=[v])
    with pytest.raises(ValueError, match="no number"):
        engine.wait_for_var(v, PATIENCE)


def test_what_fails_to_be_prepared(engine: Engine) -> None:
    class Bad(Brief):
        def prepare(self) -> Any:
            raise ValueError("no steps")

    v = engine.new_variable()
    segment = Bad()
    push(engine, segment, writes=[v])
    with pytest.raises(ValueError, match="no steps"):
        engine.wait_for_var(v, PATIENCE)
    assert segment.blamed >= 1


def test_nothing_is_written_after_the_end() -> None:
    """The parent's piece fails while an assistant is in another: the operation ends when both have."""
    with Engine("ThreadedEnginePooled", workers=2) as e:
        e.push(lambda: None).wait()
        met, failed, hold = threading.Barrier(2), threading.Event(), threading.Event()
        written: list[int] = []

        def piece() -> None:
            met.wait(PATIENCE)
            if threading.get_ident() == segment.prepared[0]:
                failed.set()
                raise ValueError("bad")
            hold.wait(PATIENCE)
            written.append(1)

        segment = Brief([(piece,)], [(piece,)])
        op = push(e, segment)
        waiter = threading.Thread(target=e.wait_op, args=(op,))
        waiter.start()
        failed.wait(PATIENCE)
        with pytest.raises(EngineTimeout):
            e.wait_op(op, timeout=0.1)
        hold.set()
        e.wait_op(op, PATIENCE)
        assert written == [1]
        waiter.join()
        assert not e._lane.doors
        with pytest.raises(ExceptionGroup):
            e.waitall()


def test_an_assistant_that_comes_too_late_does_nothing(engine: Engine) -> None:
    done: list[int] = []
    with Blocked(engine):
        push(engine, Brief(*([(done.append, i)] for i in range(4)))).wait(PATIENCE)
        assert len(engine._lane.assistants) == engine._lane.workers - 1 if engine._lane.workers < 4 else 3
    engine.push(lambda: None).wait(PATIENCE)
    wait_quiescent(engine)
    assert done == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one that a weak reference's end heard
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_interrupts_come_before_it_or_after(engine: Engine) -> None:
    """Whatever an interrupt cuts, each step runs once, and the operation ends well."""

    class Stop(KeyboardInterrupt):
        pass

    def handler(*_: object) -> None:
        raise Stop

    old = signal.signal(signal.SIGALRM, handler)
    heard = 0
    try:
        for i in range(150):
            counts = [0, 0, 0, 0]
            segment = Brief(*([(list.__setitem__, counts, k, 1), (sum, range(20_000))] for k in range(4)))
            seen: list[int] = []
            segment.after = [(seen.append, 1)]
            op = None
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00005 + i * 0.00001)
                op = push(engine, segment)
                op.wait(PATIENCE)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Stop:
                heard += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            engine.waitall(PATIENCE)
            if op is not None:
                assert counts == [1, 1, 1, 1]
                assert seen == [1]
    finally:
        signal.signal(signal.SIGALRM, old)
    assert heard


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_an_interrupt_while_the_thread_waits_for_an_assistant() -> None:
    """That is the one place in its C call where it is heard: the operation ends well, and then the user hears it."""
    with Engine("ThreadedEnginePooled", workers=2) as e:
        e.push(lambda: None).wait()
        met, heard, threads = threading.Barrier(2), threading.Event(), []

        def handler(*_: object) -> None:
            heard.set()
            raise KeyboardInterrupt

        def piece() -> None:
            met.wait(PATIENCE)
            if threading.get_ident() != segment.prepared[0]:
                heard.wait(PATIENCE)
            threads.append(threading.get_ident())

        after: list[int] = []
        segment = Brief([(piece,)], [(piece,)], after=[(after.append, 1)])
        old = signal.signal(signal.SIGALRM, handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                push(e, segment).wait(PATIENCE)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        e.waitall(PATIENCE)
        assert len(set(threads)) == 2
        assert after == [1]
        assert not e._lane.doors


def test_a_finalizer_that_waits_for_it_is_told(engine: Engine) -> None:
    """On the thread that runs the steps, and on an assistant's."""
    found: list[type[BaseException]] = []

    def finalizer() -> None:
        try:
            op.wait(PATIENCE)
        except BaseException as e:
            found.append(type(e))

    ready = Gate()
    ready_op = engine.push(ready)
    op = push(engine, Brief([(finalizer,)], [(finalizer,)]))
    ready.open()
    ready_op.wait(PATIENCE)
    op.wait(PATIENCE)
    assert found == [DeadlockError] * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_forked_in_a_piece_goes_on() -> None:
    """An assistant is inside; in the child nobody will open its door."""
    with Engine("ThreadedEnginePooled", workers=2) as e:
        e.push(lambda: None).wait()
        met = threading.Barrier(2)
        here = threading.get_ident()
        children: list[int] = []

        def fork() -> None:
            met.wait(PATIENCE)
            if threading.get_ident() == here:
                children.append(os.fork())
            met.wait(PATIENCE if children and children[0] else 0.01)

        op = push(e, Brief([(fork,)], [(fork,)]))
        try:
            op.wait(PATIENCE)
        finally:
            if children == [0]:
                os._exit(7)
        if children:  # else two workers ran it
            assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 7


@pytest.mark.stress
def test_a_storm_of_them() -> None:
    """Several threads push and wait; each step of each runs once."""
    with Engine("ThreadedEnginePooled", workers=3) as e:
        failures: list[object] = []

        def program(seed: int) -> None:
            for i in range(2_000):
                done: list[int] = []
                op = push(e, Brief(*([(done.append, k), (sum, range(10))] for k in range(1 + (seed + i) % 5))))
                if i % 3:
                    op.wait(PATIENCE)
                    if sorted(done) != list(range(1 + (seed + i) % 5)):
                        failures.append((seed, i, done))

        threads = [threading.Thread(target=program, args=(k,)) for k in range(4)]
        old = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            for t in threads:
                t.start()
            for t in threads:
                t.join()
        finally:
            sys.setswitchinterval(old)
        e.waitall(PATIENCE)
        assert failures == []
        assert not e._lane.doors
