"""Small guards of the engine, each forced into the one moment in which it matters."""

from __future__ import annotations

import contextlib
import gc
import operator
import threading
import time
import weakref

import pytest

from vardag.engine import Engine, EngineTimeout, Kind, Operation, State, waiting
from vardag.engine.atomic import locked
from vardag.engine.claims import here_and_now
from vardag.engine.operation import OK
from vardag.engine.repair import Repair
from vardag.engine.testing import Checkpoints, Gate, audit

WAIT = 20.0


class Hard(BaseException):
    """Like KeyboardInterrupt."""


@pytest.fixture(autouse=True)
def long_slices(monkeypatch):
    """A lost wake-up must show as a time-out and not be hidden by polling."""
    monkeypatch.setattr(waiting, "SLICE", 60.0)


def start(f, *args):
    thread = threading.Thread(target=f, args=args, daemon=True)
    thread.start()
    return thread


def kernel(engine, steps, *, updates=(), cheap=False, keep=()):
    op = Operation(Kind.ATOMIC, (lambda: steps) if isinstance(steps, list) else steps, "k", cheap=cheap)
    return engine.admit(lambda: (op, (), (), updates, (), list(keep), False))


def visits(attack):
    """`attack(k)` acts at the k-th checkpoint and says whether there was one."""
    k = 1
    while attack(k):
        k += 1
    return k - 1


@contextlib.contextmanager
def held_worker(kind="ThreadedEnginePooled"):
    """An engine whose only worker is inside a gate."""
    with Engine(kind, workers=1) as e:
        gate = Gate()
        e.push(gate)
        gate.wait_entered()
        try:
            yield e
        finally:
            gate.open()


@contextlib.contextmanager
def as_worker(engine):
    """This thread plays a worker, so that it can be traced; it returns instead of going to sleep."""
    here_and_now.worker = engine
    engine._lane.stopping = True
    try:
        yield engine._lane
    finally:
        engine._lane.stopping = False
        here_and_now.worker = None


# ==================================================================================================== claims
def claim(engine, op):
    busy, mine = threading.Lock(), [None, None]
    locked(engine._T, lambda: (engine._drain(), engine._claim_this(op, busy, mine)))
    assert mine[0] is not None
    return busy, mine


@pytest.mark.parametrize("again", [False, True], ids=["READY again", "another's by now"])
@pytest.mark.parametrize("how", ["finish", "turn"])
def test_a_claim_that_was_taken_away_completes_nothing(how, again):
    with held_worker() as e:
        ran = []
        op = kernel(e, [(list.append, ran, 1)])
        later = kernel(e, [(list.append, ran, 2)])
        mine = claim(e, op)[1]
        job = mine[0]
        locked(e._T, e._repair, op)  # its runner is gone, and had not begun
        if again:
            other = claim(e, op)[0]
            other.acquire()
        if how == "finish":
            assert not e._finish(*job, OK)
        else:
            here, mine = threading.Lock(), [job, None]
            assert locked(e._T, e._turn, e._lane, here, mine, OK)
            assert not again or mine[0][0] is later
            if not again:
                assert mine[0][0] is op
                assert mine[0][1] is not job[1]
        assert not op.done
        assert ran == []
        if again:
            other.release()
        op.wait(WAIT)  # whoever finds the claims without a runner gives them back
        later.wait(WAIT)
        assert ran == [1, 2]
        audit(e)


# ==================================================================================================== waits
def test_a_wait_that_timed_out_blocks_nobody():
    """What an operation once waited for is no reason for a DeadlockError later."""
    with Engine("ThreadedEnginePooled", workers=3) as e:
        v, gate_a, gate_b, ops = e.new_variable(), Gate(), Gate(), {}

        def in_b():
            gate_b()
            ops["a"].wait(WAIT)

        def in_a():
            with pytest.raises(EngineTimeout):
                ops["x"].wait(0)
            gate_a()

        ops["b"] = e.push(in_b, updates=[v])
        gate_b.wait_entered()
        ops["x"] = e.push(lambda: None, reads=[v])
        ops["a"] = e.push(in_a)
        gate_a.wait_entered()
        gate_b.open()
        try:
            while not ops["b"].done and not ops["a"].watch:  # until it has failed, or sleeps
                pass
        finally:
            gate_a.open()
        for op in ops.values():
            op.wait(WAIT)


def test_a_wait_inside_a_wait_gives_back_what_the_outer_one_waits_for():
    with Engine("ThreadedEnginePooled", workers=3) as e:
        gate, found = Gate(), []
        slow = e.push(gate)
        gate.wait_entered()
        other = e.push(gate)

        def waits():
            me = here_and_now.stack[-1]

            def at(n):
                if me.blocked is slow and not found:
                    with contextlib.suppress(EngineTimeout):
                        other.wait(0)
                    found.append(me.blocked)
                    gate.open()

            with Checkpoints(at):
                slow.wait(WAIT)

        e.push(waits).wait(WAIT)
        assert found == [slow]


# ==================================================================================================== stop
def test_stop_while_another_thread_starts_again():
    """It pushes while the workers are ending, and before it could see that: they are started again."""
    with Engine("ThreadedEnginePooled", workers=1) as e:
        e.push(lambda: None).wait(WAIT)
        ran = threading.Event()

        class Last:
            alive = True

            def is_alive(self):
                return self.alive

            def join(self, timeout):
                self.alive = False
                assert e._started is e._lanes
                e.start()
                e.push(ran.set)

        assert e._lane.wait_up(WAIT)
        e._lane.threads.append(Last())
        e.stop()
        assert ran.wait(WAIT)  # and not a wait of the engine's, which would start them itself


# ==================================================================================================== what is kept
@pytest.mark.parametrize("where", ["kernel", "prepare", "wait"])
def test_an_interrupt_is_in_no_cycle(where):
    """What the interrupted push had planned, and the exception itself, are free at once."""

    class Held:
        pass

    def raises():
        raise Hard

    def local(op, held):
        op.wait(WAIT)  # the exception's frames hold this one

    held = Held()
    ref = weakref.ref(held)
    gc.collect()
    gc.disable()
    try:
        with held_worker() as e:
            with contextlib.suppress(Hard):
                if where == "kernel":
                    kernel(e, [(operator.call, raises)], cheap=True, keep=[held])
                elif where == "prepare":
                    kernel(e, raises, cheap=True, keep=[held])
                else:
                    local(kernel(e, raises), held)
            del held
            assert ref() is None
            e.cancel_pending()  # else it goes on raising
    finally:
        gc.enable()


def pending(e):
    v, w, done = e.new_variable(), e.new_variable(), []
    return [
        e.push(lambda: done.append(1), updates=[v]),
        kernel(e, [(list.append, done, 2)], updates=(v,)),
        e.push(lambda: 1 / 0, updates=[w]),
        e.push_async(lambda ctx, end: end(), const_vars=[v], mutable_vars=[w]),
        kernel(e, [(list.append, done, 3)], updates=(v,)),
    ]


def slim(op):
    return op.preds == () and op.context is op.claim is op.fn is op.poison is op.blocked is None and not op.succ


def interrupted(monkeypatch, times):
    """What an exception makes necessary is interrupted itself, before it does anything."""
    abandoned, left = Repair._abandoned, [None] * times

    def cut(self, mine):
        if mine != [None, None] and left:
            left.pop()
            raise Hard
        abandoned(self, mine)

    monkeypatch.setattr(Repair, "_abandoned", cut)


@pytest.mark.parametrize("more", [0, 1, 4])
def test_an_interrupted_worker_keeps_nothing_of_what_it_finished(more, monkeypatch):
    def attack(k):
        hit = []
        with held_worker() as e, monkeypatch.context() as patch:
            interrupted(patch, more)
            ops, mine = pending(e), [None, None]

            def at(n):
                if n == k:
                    hit.append(n)
                    raise Hard

            def serve():
                for _ in range(more + 3):
                    with contextlib.suppress(Hard):
                        e._serve_safely(e._lane, mine)

            with as_worker(e), Checkpoints(at):
                serve()
            assert all(op.done for op in ops), ops
            assert all(slim(op) for op in ops), [op for op in ops if not slim(op)]
            with contextlib.suppress(ExceptionGroup):
                e._raise_unseen(None)
            audit(e)
        return hit

    assert visits(attack) > 100


def test_an_interrupted_helper_keeps_nothing_of_what_it_finished():
    def attack(k):
        hit, out = [], []
        with held_worker() as e:
            op = kernel(e, [(list.append, out, 1)])

            def at(n):
                if n == k:
                    hit.append(n)
                    raise Hard

            with contextlib.suppress(Hard), Checkpoints(at):
                op.wait(WAIT)
            if op.done:
                assert slim(op)
            else:
                op.wait(WAIT)
            assert out == [1]
        return hit

    assert visits(attack) > 20


@pytest.mark.parametrize("act", ["raise", "waitall", "waitall elsewhere"])
def test_an_interrupted_waitall_loses_no_error(act):
    """Nor does another `waitall` in the middle of it raise an error a second time."""

    def attack(k):
        hit, raised = [], []

        def collect():
            try:
                e.waitall(WAIT)
            except ExceptionGroup as group:
                raised.extend(type(x.__cause__).__name__ for x in group.exceptions)

        def at(n):
            if n == k:
                hit.append(n)
                if act == "raise":
                    raise Hard
                if act == "waitall":
                    collect()
                elif not e._T._is_owned():
                    start(collect).join(WAIT)

        with Engine("ThreadedEnginePooled", workers=1) as e:
            kernel(e, [(operator.truediv, 1, 0)], cheap=True)
            kernel(e, [(operator.getitem, (), 0)], cheap=True)
            with contextlib.suppress(Hard), Checkpoints(at):
                collect()
            collect()
            assert sorted(raised) == ["IndexError", "ZeroDivisionError"], k
        return hit

    assert visits(attack) > 30


# ==================================================================================================== in a row
@pytest.mark.parametrize("more", [1, 2, 10])
def test_an_operation_whose_runner_is_interrupted_again_and_again(more, monkeypatch):
    """Twice: the runner itself still gives it back.  More often: whoever waits for it finds it, within `SLICE`."""
    if more > 1:
        monkeypatch.setattr(waiting, "SLICE", 0.05)

    def attack(k):
        hit, out, first = [], [], []
        with held_worker() as e, monkeypatch.context() as patch:
            interrupted(patch, more)
            op = kernel(e, [(list.append, out, 1)])
            ready = Gate()
            waiter = start(lambda: (ready(), op.wait(WAIT), out.append("waited")))
            ready.wait_entered()

            def at(n):
                if not first and op.state is State.RUNNING and not e._T._is_owned():
                    first.append(n)
                    ready.open()
                    while not op.watch:
                        pass
                if first and n == first[0] + k and not op.done:
                    hit.append(n)
                    raise Hard

            with contextlib.suppress(Hard), Checkpoints(at):
                op.wait(WAIT)
            ready.open()
            begun = time.monotonic()
            waiter.join(WAIT / 2)
            assert not waiter.is_alive(), (k, op, op.mark, op.claim)
            assert time.monotonic() - begun < WAIT / 4
            assert out in ([1, "waited"], ["waited", 1])
        return hit

    k = 0
    while attack(k):
        k += 1
    assert k > 5


@pytest.mark.skipif(not hasattr(threading, "gettrace"), reason="no trace hook here")
def test_a_worker_that_waits_before_it_is_one():
    """A finalizer, here a trace function, in the bootstrap of the only worker waits for what only a worker runs."""
    ran, before = [], threading.gettrace()
    with Engine("ThreadedEnginePooled", workers=1) as e:

        def finalizer(frame, event, arg):
            if threading.current_thread().name.startswith("vardag") and not ran:
                ran.append("begun")
                assert here_and_now.worker is e
                e.push(lambda: ran.append("in bootstrap")).wait(WAIT)

        threading.settrace(finalizer)
        try:
            e.push(lambda: ran.append("first")).wait(WAIT)
        finally:
            threading.settrace(before)
        e.waitall(WAIT)
        assert sorted(ran) == ["begun", "first", "in bootstrap"]
        audit(e)
