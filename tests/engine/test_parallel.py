"""Splitting a running operation: every piece once, one error, nothing that writes after the end, nothing that hangs."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

import pytest

from vardag.engine import DeadlockError, Engine, Kind, Operation
from vardag.engine.parallel import parallel
from vardag.engine.testing import Checkpoints, Gate, audit, wait_quiescent

module = sys.modules["vardag.engine.parallel"]  # the package may have the function under that name
PATIENCE = 30.0


def kernel(engine: Engine, function: Callable[[], object], name: str = "parent", **how: Any) -> Operation:
    op = Operation(Kind.KERNEL, function, name)
    return engine._push(op, how.get("reads", ()), how.get("writes", ()), how.get("updates", ()))


def until(condition: Callable[[], object]) -> None:
    end, pause = monotonic() + PATIENCE, SimpleQueue[None]()
    while not condition():
        assert monotonic() < end, "it did not come to pass"
        try:
            pause.get(timeout=0.001)
        except Empty:
            continue


@pytest.fixture(params=[2, 4])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine("ThreadedEnginePooled", workers=request.param) as e:
        e.push(lambda: None).wait()
        until(lambda: len(e._lane.asleep) == request.param)
        yield e
        e.waitall()
        audit(e)


class Meeting:
    """A piece that returns when so many threads are in such pieces at the same time."""

    def __init__(self, number: int) -> None:
        self.barrier = threading.Barrier(number)
        self.threads: set[int] = set()

    def __call__(self, item: object) -> None:
        self.threads.add(threading.get_ident())
        self.barrier.wait(PATIENCE)


def test_the_workers_that_are_idle_work_together(engine: Engine) -> None:
    workers = engine._lane.workers
    meeting = Meeting(workers)
    kernel(engine, lambda: parallel(meeting, range(workers))).wait()
    assert len(meeting.threads) == workers
    assert engine.statistics().pushed == 1 + 1 + workers - 1


def test_every_item_once(engine: Engine) -> None:
    for number in (0, 1, 2, 3, 100):
        seen: list[int] = []
        kernel(engine, lambda n=number, s=seen: parallel(s.append, range(n))).wait()  # type: ignore[misc]
        assert sorted(seen) == list(range(number))


@pytest.mark.parametrize("kind", ["NaiveEngine", "ThreadedEnginePooled"])
def test_without_anybody_else_it_is_a_loop(kind: str) -> None:
    with Engine(kind, workers=1) as e:
        seen: list[int] = []
        kernel(e, lambda: parallel(seen.append, range(20))).wait()
        assert seen == list(range(20))
        assert e.statistics().pushed == 1
    parallel(seen.append, range(2))
    assert seen[-2:] == [0, 1]


def test_users_functions_do_not_split(engine: Engine) -> None:
    seen: list[int] = []
    engine.push(lambda: parallel(seen.append, range(20))).wait()
    assert seen == list(range(20))


def test_no_helpers_where_nobody_is_idle(engine: Engine) -> None:
    gates = [Gate() for _ in range(engine._lane.workers - 1)]
    for gate in gates:
        engine.push(gate)
        gate.wait_entered()
    before = engine.statistics().pushed
    kernel(engine, lambda: parallel(lambda item: None, range(20))).wait()
    assert engine.statistics().pushed == before + 1
    for gate in gates:
        gate.open()


def test_a_helper_that_comes_late_does_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = [Gate() for _ in range(engine._lane.workers - 1)]
    for gate in gates:
        engine.push(gate)
        gate.wait_entered()
    monkeypatch.setattr(module, "idle", lambda e: 3)
    seen: list[int] = []
    threads: set[int] = set()
    kernel(engine, lambda: parallel(lambda i: (seen.append(i), threads.add(threading.get_ident())), range(20))).wait()
    assert seen == list(range(20))
    assert len(threads) == 1
    for gate in gates:
        gate.open()


def test_workers_that_become_idle_later_help(engine: Engine) -> None:
    """All others are busy when it begins; they are free before its second piece."""
    gates = [Gate() for _ in range(engine._lane.workers - 1)]
    for gate in gates:
        engine.push(gate)
        gate.wait_entered()
    threads: set[int] = set()
    meeting = threading.Barrier(2)

    def piece(i: int) -> None:
        threads.add(threading.get_ident())
        if i == 0:
            assert len(engine._lane.asleep) == 0
            for gate in gates:
                gate.open()
            until(lambda: len(engine._lane.asleep) == len(gates))
        elif i < 3:
            meeting.wait(PATIENCE)  # one and two are done by different threads at the same time

    kernel(engine, lambda: parallel(piece, range(4))).wait()
    assert len(threads) > 1


def test_an_engine_that_is_being_stopped(engine: Engine) -> None:
    """It takes no more pushes: the operation does all pieces itself."""
    gate = Gate()
    seen: list[int] = []

    def function() -> None:
        gate()
        until(lambda: engine.stopped)
        parallel(seen.append, range(20))

    before = engine.statistics().pushed
    kernel(engine, function)
    gate.wait_entered()
    stopper = threading.Thread(target=engine.stop)
    stopper.start()
    gate.open()
    stopper.join(PATIENCE)
    assert seen == list(range(20))
    assert engine.statistics().pushed == before + 1
    engine.start()


@pytest.mark.parametrize("kind", ["NaiveEngine", "ThreadedEnginePooled"])
def test_a_piece_that_raises_stop_iteration(kind: str) -> None:
    def piece(i: int) -> None:
        raise StopIteration

    with Engine(kind, workers=2) as e:
        op = kernel(e, lambda: parallel(piece, range(20)))
        with pytest.raises(Exception, match="StopIteration"):
            op.wait()


def test_it_keeps_nothing_alive(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    class Thing:
        pass

    gates = [Gate() for _ in range(engine._lane.workers)]
    monkeypatch.setattr(module, "idle", lambda e: 3)
    thing = Thing()
    known = weakref.ref(thing)
    operations: list[Any] = []

    def function() -> None:
        mine = Thing()
        operations.append(weakref.ref(mine))
        for gate in gates:
            engine.push(gate)
        parallel(lambda item, thing=mine: None, range(5))

    op = kernel(engine, function)
    op.wait()
    del thing
    gates[0].wait_entered()
    gc.collect()
    assert known() is None
    until(lambda: operations[0]() is None)
    for gate in gates:
        gate.open()


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_the_error_of_the_first_item(engine: Engine) -> None:
    """The second fails while the first runs, and the first fails afterwards."""
    second = threading.Event()
    variable = engine.new_variable()

    def piece(i: int) -> None:
        if i == 0:
            assert second.wait(PATIENCE)
            raise KeyError("first")
        try:
            raise ValueError("second")
        finally:
            second.set()

    op = kernel(engine, lambda: parallel(piece, range(50)), writes=[variable])
    with pytest.raises(KeyError, match="first"):
        op.wait()
    engine.waitall()  # nobody has another
    assert engine.statistics().unseen == 0


def test_nothing_begins_after_an_error(engine: Engine) -> None:
    begun: list[int] = []
    meeting = threading.Barrier(2)

    def piece(i: int) -> None:
        begun.append(i)
        if i < 2:
            meeting.wait(PATIENCE)
            raise ZeroDivisionError
        if engine._lane.workers == 2:
            raise AssertionError("no piece begins")

    with pytest.raises(ZeroDivisionError):
        kernel(engine, lambda: parallel(piece, range(10000))).wait()
    assert len(begun) < 10000


def test_memory_that_runs_out_in_a_piece_is_tried_again(engine: Engine) -> None:
    tries: list[int] = []
    out = bytearray(8)

    def piece(i: int) -> None:
        tries.append(i)
        if i == 3 and tries.count(3) == 1:
            raise MemoryError
        out[i] += 1 if not out[i] else 0

    kernel(engine, lambda: parallel(piece, range(8)), writes=[engine.new_variable()]).wait()
    assert out == bytearray([1] * 8)
    assert tries.count(3) == 2


def test_memory_that_runs_out_while_something_is_changed_in_place(engine: Engine) -> None:
    tries: list[int] = []

    def piece(i: int) -> None:
        tries.append(i)
        raise MemoryError

    op = kernel(engine, lambda: parallel(piece, range(8)), updates=[engine.new_variable()])
    with pytest.raises(MemoryError):
        op.wait()
    assert tries.count(0) == 1


# ---- nesting ---------------------------------------------------------------------------------------------------------


def test_pieces_that_split(engine: Engine) -> None:
    seen: list[tuple[int, int, int]] = []

    def outer(i: int) -> None:
        parallel(lambda j: parallel(lambda k: seen.append((i, j, k)), range(3)), range(4))

    kernel(engine, lambda: parallel(outer, range(5))).wait()
    assert sorted(seen) == [(i, j, k) for i in range(5) for j in range(4) for k in range(3)]


def test_many_operations_that_split(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "idle", lambda e: 3)
    seen: list[int] = []
    for i in range(200):
        kernel(engine, lambda i=i: parallel(lambda j: seen.append(10 * i + j), range(10)))  # type: ignore[misc]
    engine.waitall()
    assert sorted(seen) == list(range(2000))


def test_a_finalizer_in_a_piece_that_waits_for_the_parent(engine: Engine) -> None:
    raised: list[str] = []
    variable = engine.new_variable()
    meeting = threading.Barrier(2)
    mine: list[int] = []

    def wait() -> None:
        for action in (lambda: engine.wait_for_var(variable), engine.waitall):
            try:
                action()
            except DeadlockError as e:
                raised.append(str(e))

    def piece(i: int) -> None:
        meeting.wait(PATIENCE)
        if threading.get_ident() not in mine:  # a helper
            wait()

    def function() -> None:
        mine.append(threading.get_ident())
        until(lambda: len(engine._lane.asleep) == engine._lane.workers - 1)
        parallel(piece, range(2))

    kernel(engine, function, writes=[variable]).wait()
    assert len(raised) == 2
    assert "cannot end" in raised[0]


# ---- exceptions thrown into threads ----------------------------------------------------------------------------------


class Thrown(BaseException):
    """What is thrown into a worker."""


def split(where: str, action: Callable[[int], object]) -> tuple[BaseException | None, list[int], list[int], int]:
    """A split with one helper; `action` is called at the checkpoints of the parent, or of the helper, in the engine.

    Returns the error of the operation, the pieces that ran after its end, those done, and how many checkpoints it saw.
    """
    with Engine("ThreadedEnginePooled", workers=2) as e:
        e.push(lambda: None).wait()
        until(lambda: len(e._lane.asleep) == 2)
        ended, helped = threading.Event(), threading.Event()
        late: list[int] = []
        done: list[int] = []
        seen: list[Checkpoints] = []
        parent: list[int] = []

        def helper_is_gone() -> bool:
            return not any("(part)" in o.name for o in e._pending())

        def piece(i: int) -> None:
            if threading.get_ident() != parent[0]:
                helped.set()
            elif i == 0:
                until(lambda: helped.is_set() or helper_is_gone())
            if ended.is_set():
                late.append(i)
            done.append(i)

        def watched(function: Callable[[], None], here: str) -> None:
            if where == here:
                with Checkpoints(action) as points:
                    seen.append(points)
                    function()
            else:
                function()

        def function() -> None:
            parent.append(threading.get_ident())
            until(lambda: len(e._lane.asleep) == 1)
            watched(lambda: parallel(piece, range(6)), "parent")

        original = module.Helper.__call__
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.Helper, "__call__", lambda self: watched(lambda: original(self), "helper"))
            variable = e.new_variable()
            op = kernel(e, function, writes=[variable])
            after = kernel(e, ended.set, updates=[variable])
            error: BaseException | None = None
            try:
                op.wait(timeout=PATIENCE)
            except BaseException as caught:
                error = caught
            e.wait_op(after, timeout=PATIENCE)
            ended.set()
            wait_quiescent(e)
            e._unseen.clear()
            audit(e)
    return error, late, sorted(done), max((points.count for points in seen), default=0)


@pytest.mark.parametrize("where", ["parent", "helper"])
def test_an_exception_at_every_checkpoint(where: str) -> None:
    error, late, done, count = split(where, lambda n: None)
    assert error is None and not late and done == list(range(6))
    assert count > 20
    failed = 0
    for k in range(1, count + 1):

        def throw(n: int, k: int = k) -> None:
            if n == k:
                raise Thrown

        error, late, done, _ = split(where, throw)
        assert not late
        if error is None:
            assert done == list(range(6))
        else:
            failed += 1
            assert "Thrown" in repr(error.__cause__) or "interrupted" in str(error)
    assert failed


@pytest.mark.parametrize("where", ["parent", "helper"])
def test_two_exceptions_in_a_row(where: str) -> None:
    count = split(where, lambda n: None)[3]
    for k in range(1, count + 1):

        def throw(n: int, k: int = k) -> None:
            if n in (k, k + 1):
                raise Thrown

        error, late, done, _ = split(where, throw)
        assert not late
        if error is None:
            assert done == list(range(6))


def test_a_parent_that_is_thrown_out_waits_for_the_piece_that_writes(engine: Engine) -> None:
    gate, ended = Gate(), threading.Event()
    variable = engine.new_variable()
    parent: list[int] = []

    def piece(i: int) -> None:
        if threading.get_ident() == parent[0]:
            gate.wait_entered()
            raise Thrown
        gate()

    def function() -> None:
        parent.append(threading.get_ident())
        parallel(piece, range(2))

    op = kernel(engine, function, writes=[variable])
    after = kernel(engine, ended.set, updates=[variable])
    gate.wait_entered()
    with pytest.raises(Exception, match="passed; waiting"):
        op.wait(timeout=0.01)
    assert not op.done
    gate.open()
    with pytest.raises(Exception, match="Thrown"):
        op.wait(timeout=PATIENCE)
    engine.wait_op(after)


def test_a_child_forked_in_a_piece_goes_on(engine: Engine) -> None:
    """A finalizer in the parent's piece forks while a helper is inside: in the child nobody will open that door."""
    gate = Gate()
    children: list[int] = []
    parent: list[int] = []

    def piece(i: int) -> None:
        if threading.get_ident() != parent[0]:
            gate()
            return
        gate.wait_entered()
        pid = os.fork()
        if pid:
            children.append(pid)
            gate.open()

    def function() -> None:
        parent.append(threading.get_ident())
        here = os.getpid()
        try:
            parallel(piece, range(2))
        finally:
            if os.getpid() != here:
                os._exit(7)

    kernel(engine, function).wait()
    ended: list[int] = []

    def child_has_ended() -> bool:
        pid, status = os.waitpid(children[0], os.WNOHANG)
        ended.extend([status] * bool(pid))
        return bool(pid)

    try:
        until(child_has_ended)
    finally:
        if not ended:
            os.kill(children[0], signal.SIGKILL)
    assert os.waitstatus_to_exitcode(ended[0]) == 7


@pytest.mark.stress
def test_a_storm_of_exceptions() -> None:
    """Exceptions thrown into all workers at any time: whatever ends well is whole."""
    with Engine("ThreadedEnginePooled", workers=3) as e:
        stop = threading.Event()

        def storm() -> None:
            while not stop.is_set():
                for thread in list(e._lane.threads):
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Thrown)
                    )
                stop.wait(0.0005)

        thrower = threading.Thread(target=storm)
        thrower.start()
        well = 0
        try:
            for _ in range(300):
                out = bytearray(16)

                def piece(i: int, out: bytearray = out) -> None:
                    out[i] = 1

                op = kernel(e, lambda piece=piece: parallel(piece, range(16)))  # type: ignore[misc]
                try:
                    op.wait(timeout=PATIENCE)
                except Exception:
                    continue
                well += 1
                assert out == bytearray([1] * 16)
        finally:
            stop.set()
            thrower.join()
        e._unseen.clear()
        assert well
