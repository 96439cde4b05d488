"""Brief segments: one C call of the thread that runs them, and of workers that come in time; whole, or failed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vardag.engine import DeadlockError, Engine, EngineTimeout, Operation, OperatorError, running, shared
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
        self.before: Callable[[], object] = list
        self.blamed = 0

    def takes(self, other: Any) -> None:
        return None

    def __call__(self) -> None:
        raise AssertionError("a brief one is steps")

    def prepare(self) -> tuple[list[list[Any]], list[Any]]:
        self.prepared.append(threading.get_ident())
        self.before()
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
    """While it is entered, all workers wait: who waits for an operation runs it, and opens before the pieces."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.gates = engine, [Gate() for _ in range(engine._lane.workers)]

    def __enter__(self) -> Blocked:
        for gate in self.gates:
            self.engine.push(gate)
        for gate in self.gates:
            gate.wait_entered()
        return self

    def __exit__(self, *_: object) -> None:
        self.open()

    def open(self) -> None:
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


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_take_part(workers: int) -> None:
    """Pieces that only end together: the first worker that is rung rings on."""
    with Engine("ThreadedEnginePooled", workers=workers) as e:
        e.push(lambda: None).wait()
        met = threading.Barrier(workers)
        segment = Brief(*([(met.wait, PATIENCE)] for _ in range(workers)))
        with Blocked(e) as blocked:
            segment.before = blocked.open
            push(e, segment).wait(PATIENCE)
        assert not met.broken


def test_an_assistant_leaves_nothing_ready_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has taken the token of what was pushed meanwhile, and another worker sleeps."""
    with Engine("ThreadedEnginePooled", workers=3) as e:
        e.push(lambda: None).wait()
        inside, ran, came = threading.Event(), threading.Event(), []
        original = running.empty

        def empty(bell: Any) -> None:
            if e._lane.assistants and not came:
                came.append(e.push(ran.set))
            original(bell)

        def piece() -> None:
            inside.set()
            if not ran.wait(PATIENCE / 3):
                raise TimeoutError

        def wait_asleep() -> None:
            blocked.open()
            while len(e._lane.asleep) < 3:
                threading.Event().wait(0.001)

        segment = Brief([(inside.wait, PATIENCE)], [(piece,)])
        with Blocked(e) as blocked:
            op = push(e, segment)
            segment.before = wait_asleep
            monkeypatch.setattr(running, "empty", empty)
            op.wait(PATIENCE)


def test_assistants_without_end_do_not_keep_a_worker() -> None:
    with Engine("ThreadedEnginePooled", workers=1) as e:
        e.push(lambda: None).wait()
        lane, ran, endless = e._lane, threading.Event(), []

        def again() -> None:
            endless.append(1)
            if len(endless) == 1:
                e.push(ran.set)
            if not ran.is_set() and len(endless) < 10_000:
                lane.assistants.append(again)

        lane.assistants.append(again)
        lane.bell.put(None)
        assert ran.wait(PATIENCE)
        wait_quiescent(e)
        assert len(endless) < 10_000


def test_one_that_is_brief_no_more_is_left_to_workers() -> None:
    """Somebody joins it between the look of a thread that waits and its claim."""
    with Engine("ThreadedEnginePooled", workers=2) as e:
        e.push(lambda: None).wait()
        ran: list[int] = []

        class Joined(Brief):
            @property
            def brief(self) -> bool:  # type: ignore[override]
                if self.door:
                    return True
                blocked.open()
                return False

            def __call__(self) -> None:
                ran.append(threading.get_ident())

        with Blocked(e) as blocked:
            push(e, Joined()).wait(PATIENCE)
        assert len(ran) == 1
        assert ran != [threading.get_ident()]
        audit(e)


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


def test_the_error_of_an_assistant_is_there_before_its_door_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine("ThreadedEnginePooled", workers=2) as e:
        e.push(lambda: None).wait()
        v, inside, ended = e.new_variable(), threading.Event(), threading.Event()
        original = shared.attempt

        def attempt(*args: Any) -> bool:
            try:
                return original(*args)
            except BaseException:
                ended.wait(PATIENCE / 3)
                raise

        def piece() -> None:
            inside.set()
            raise ValueError("bad")

        monkeypatch.setattr(shared, "attempt", attempt)
        segment = Brief([(inside.wait, PATIENCE)], [(piece,)])
        with Blocked(e) as blocked:
            segment.before = blocked.open
            push(e, segment, writes=[v])
            try:
                with pytest.raises(ValueError, match="bad"):
                    e.wait_for_var(v, PATIENCE)
            finally:
                ended.set()


def test_one_that_comes_late_has_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks before the last piece is taken, and takes nothing; then another one fails."""
    with Engine("ThreadedEnginePooled", workers=3) as e:
        e.push(lambda: None).wait()
        v, first, second, late, last = e.new_variable(), *(threading.Event() for _ in range(3)), threading.Lock()
        last.acquire()
        together, call = shared.together, shared.Assistant.__call__
        came: list[int] = []

        def slow(todo: Any) -> Any:
            if segment.prepared and threading.get_ident() != segment.prepared[0]:
                came.append(threading.get_ident())
                if len(came) == 2:
                    second.set()
                    last.acquire(timeout=PATIENCE)  # the parent waits for doors by then
            return together(todo)

        def called(assistant: Any) -> None:
            call(assistant)
            late.set()

        def bad() -> None:
            first.set()
            late.wait(PATIENCE)
            raise ValueError("bad")

        monkeypatch.setattr(shared, "together", slow)
        monkeypatch.setattr(shared.Assistant, "__call__", called)
        segment = Brief(
            [(first.wait, PATIENCE), (e._lane.bell.put, None), (second.wait, PATIENCE)], [(bad,)], [(last.release,)]
        )
        with Blocked(e) as blocked:
            segment.before = blocked.open
            push(e, segment, writes=[v])
            with pytest.raises(ValueError, match="bad"):
                e.wait_for_var(v, PATIENCE)


def test_a_step_that_fails_behind_the_pieces(engine: Engine) -> None:
    """It is not run again, though it might do better then."""
    v = engine.new_variable()
    ran: list[int] = []

    def once() -> None:
        ran.append(1)
        if len(ran) == 1:
            raise ValueError("no number")

    push(engine, Brief([(list, ())], [(list, ())], after=[(once,)]), writes=[v])
    for _ in range(2):
        with pytest.raises(ValueError, match="no number"):
            engine.wait_for_var(v, PATIENCE)
    assert ran == [1]


def test_a_step_that_raises_what_a_missing_piece_does(engine: Engine) -> None:
    v = engine.new_variable()
    push(engine, Brief([(list.pop, [])], [(list, ())]), writes=[v])
    with pytest.raises(IndexError, match="pop from empty list"):
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


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals")
def test_an_interrupt_while_the_thread_waits_for_an_assistant() -> None:
    """It is heard when all is done."""
    with Engine("ThreadedEnginePooled", workers=2) as e:
        e.push(lambda: None).wait()
        inside, waits, me = threading.Event(), threading.Lock(), threading.get_ident()
        waits.acquire()
        after: list[int] = []
        heard: list[list[int]] = []
        out, into = os.pipe()
        os.set_blocking(into, False)

        def handler(*_: object) -> None:
            heard.append(after.copy())
            raise KeyboardInterrupt

        def piece() -> None:
            inside.set()
            waits.acquire(timeout=PATIENCE)  # when we have it the parent has let go of the interpreter, for the door
            signal.pthread_kill(me, signal.SIGALRM)
            os.read(out, 1)  # it has arrived

        segment = Brief([(inside.wait, PATIENCE), (waits.release,)], [(piece,)], after=[(after.append, 1)])
        old, wakeup = signal.signal(signal.SIGALRM, handler), signal.set_wakeup_fd(into)
        try:
            with Blocked(e) as blocked, pytest.raises(KeyboardInterrupt):
                segment.before = blocked.open
                push(e, segment).wait(PATIENCE)
        finally:
            signal.set_wakeup_fd(wakeup)
            signal.signal(signal.SIGALRM, old)
            os.close(out)
            os.close(into)
        e.waitall(PATIENCE)
        assert heard == [[1]]
        assert not e._lane.doors


def test_an_interrupt_while_a_step_fails() -> None:
    """It came while the steps ran, so it is heard as soon as they are cut; an assistant is inside."""

    class Stop(KeyboardInterrupt):
        pass

    with Engine("ThreadedEnginePooled", workers=2) as e:
        e.push(lambda: None).wait()
        inside, hold = threading.Event(), threading.Event()
        written: list[int] = []
        early: list[bool] = []
        interrupt = (
            ctypes.pythonapi.PyThreadState_SetAsyncExc,
            ctypes.c_ulong(threading.get_ident()),
            ctypes.py_object(Stop),
        )
        segment = Brief(
            [(inside.wait, PATIENCE), interrupt, (int, "no number")],
            [(inside.set,), (hold.wait, PATIENCE), (written.append, 1)],
        )

        def look() -> None:
            inside.wait(PATIENCE)
            try:
                e.wait_op(op, timeout=0.1)
            except EngineTimeout:
                early.append(False)
            else:
                early.append(True)
            hold.set()

        looker = threading.Thread(target=look)
        with Blocked(e) as blocked:
            segment.before = blocked.open
            op = push(e, segment)
            looker.start()
            with pytest.raises(Stop):
                op.wait(PATIENCE)
            assert written == [1]
        looker.join()
        assert early == [False]
        with pytest.raises(ExceptionGroup):
            e.waitall(PATIENCE)


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


def test_finalizers_on_two_threads() -> None:
    """Each wait gives back what its own thread waited for: the operation waits for nothing when both are over."""
    with Engine("ThreadedEnginePooled", workers=3) as e:
        e.push(lambda: None).wait()
        waits, over, ended = threading.Event(), threading.Event(), threading.Event()
        found: list[BaseException] = []
        hold, other = Gate(), Gate()

        def user() -> None:
            hold()
            try:
                op.wait(0.05)
            except BaseException as error:
                found.append(error)
            ended.set()

        def first() -> None:  # gives up
            try:
                x.wait(0.5)
            except EngineTimeout:
                over.set()

        def second() -> None:  # begins while the first one waits, and ends later
            while op.blocked is not x:
                assert not over.is_set()
            waits.set()
            other_op.wait(PATIENCE)
            hold.open()
            ended.wait(PATIENCE)

        def opener() -> None:
            waits.wait(PATIENCE)
            over.wait(PATIENCE)
            other.open()

        x, other_op = e.push(user), e.push(other)
        hold.wait_entered()
        other.wait_entered()
        thread = threading.Thread(target=opener)
        thread.start()
        op = push(e, Brief([(second,)], [(first,)]))
        op.wait(PATIENCE)
        thread.join()
        e.waitall(PATIENCE)
        assert [type(error) for error in found] == [EngineTimeout]


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_it_ends_in_a_child_forked_by_a_finalizer_within() -> None:
    """The C call goes on in the child, so what it writes is not anybody else's before it ends."""
    with Engine("ThreadedEnginePooled", workers=2) as e:
        e.push(lambda: None).wait()
        children: list[int] = []
        done: list[Any] = []

        def fork() -> None:
            children.append(os.fork())
            done.append(op.done)

        code = 1
        with Blocked(e):
            op = push(e, Brief([(fork,)], [(done.append, 1)]))
            try:
                op.wait(PATIENCE)
                if children == [0] and op.done and op.error is None and done == [False, 1]:
                    code = 0
            finally:
                if children == [0]:
                    os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0


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
