"""Several engines in one process, and forked ones: none waits for another's locks or inherits what is planned."""

from __future__ import annotations

import contextlib
import operator
import os
import threading
import warnings
from time import monotonic

import pytest

from vardag.engine import (
    Cancelled,
    CompletionError,
    DeadlockError,
    Engine,
    EngineTimeout,
    Kind,
    Operation,
    OperatorError,
    default,
    set_default,
    waiting,
)
from vardag.engine.testing import Checkpoints, Gate, audit

WAIT = 20.0
PATIENCE = 20.0
fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
KINDS = ["NaiveEngine", "ThreadedEnginePooled"]


@pytest.fixture(autouse=True)
def long_slices(monkeypatch):
    """A lost wake-up must show as a time-out and not be hidden by polling."""
    monkeypatch.setattr(waiting, "SLICE", 60.0)


def start(f, *args):
    thread = threading.Thread(target=f, args=args, daemon=True)
    thread.start()
    return thread


def plan_with(finalizer):
    """A preparatory plan in which, the first time, a finalizer runs."""
    once = [finalizer]

    def plan():
        if once:
            once.pop()()
        return None, (), (), (), [], [], False

    return plan


def both(f, a, b):
    """``f(a, b)`` and ``f(b, a)`` in two threads; what they raised."""
    raised = []

    def run(*engines):
        try:
            f(*engines)
        except BaseException as e:
            raised.append(e)

    threads = [start(run, a, b), start(run, b, a)]
    for t in threads:
        t.join(PATIENCE)
    assert not any(t.is_alive() for t in threads), "they wait for each other"
    return raised


def atomic(engine, steps, *, updates=(), cheap=False):
    op = Operation(Kind.ATOMIC, lambda: steps, "k", cheap=cheap)
    return engine.admit(lambda: (op, (), (), updates, (), [], False))


# ==================================================================================================== finalizers
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["push", "wait", "stop"])
def test_finalizers_that_push_to_each_other_s_engine(kind, what):
    """Each inside a section of its own engine, at the same time."""
    ran, barrier = [], threading.Barrier(2)

    def use(x, y):
        def finalizer():
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(0.5)  # both are inside, unless one section keeps the other out, as it should
            op = y.push(lambda: ran.append(1))
            if what == "wait":
                op.wait(WAIT)
            elif what == "stop":
                third = Engine(kind, workers=1)
                third.push(lambda: ran.append(0))
                third.stop(WAIT)

        x.admit(plan_with(finalizer))

    with Engine(kind, workers=1) as a, Engine(kind, workers=1) as b:
        assert both(use, a, b) == []
        a.waitall(WAIT)
        b.waitall(WAIT)
        assert ran.count(1) == 2
        audit(a)
        audit(b)


def test_a_wait_inside_a_section_gives_away_the_locks_of_all_engines():
    """The finalizer waits, inside a section of one engine, for an operation of another, which pushes to the first."""
    with Engine(workers=1) as a, Engine(workers=1) as b:
        v, ran = a.new_variable(), []

        def finalizer():
            b.push(lambda: a.push(lambda: ran.append(1), updates=[v]).wait(WAIT)).wait(WAIT)

        a.admit(plan_with(finalizer))
        assert ran == [1]
        atomic(a, [(operator.call, finalizer), (list.append, ran, 2)], updates=(), cheap=True)
        assert ran == [1, 1, 2]
        audit(a)


def test_a_wait_inside_a_kernel_of_another_engine_that_needs_that_kernel():
    with Engine(workers=1) as a, Engine(workers=1) as b:
        v, raised = a.new_variable(), []

        def finalizer():
            def needs_it():
                a.push(lambda: None, updates=[v]).wait(WAIT)

            atomic(b, [(operator.call, here)], cheap=True)
            b.push(needs_it)

        def here():
            with pytest.raises(DeadlockError):
                a.push(lambda: None, updates=[v]).wait(WAIT)
            raised.append(1)

        atomic(a, [(operator.call, finalizer)], updates=(v,), cheap=True)
        a.waitall(WAIT)
        b.waitall(WAIT)
        assert raised == [1]
        audit(a)
        audit(b)


def test_two_serial_engines_whose_turns_wait_for_each_other():
    """Each thread, between two operations of its turn, waits for one of the engine whose turn the other has."""
    barrier, ran = threading.Barrier(2), []

    def use(x, y):
        class Noisy:
            def __del__(self):
                with contextlib.suppress(threading.BrokenBarrierError):
                    barrier.wait(5)
                y.push(lambda: ran.append(1)).wait(WAIT)

        def outer():
            held = [Noisy()]
            x.push(lambda held=held: None)  # it runs after this one, and then what it holds is dropped

        x.push(outer)

    with Engine("NaiveEngine") as a, Engine("NaiveEngine") as b:
        assert both(use, a, b) == []
        a.waitall(WAIT)
        b.waitall(WAIT)
        assert ran == [1, 1]


def test_a_serial_engine_whose_turn_waits_for_a_worker_that_needs_it():
    """The worker is in a finalizer inside a kernel, so it is inside no operation of its own that shows."""
    with Engine("NaiveEngine") as a, Engine("ThreadedEnginePooled", workers=1) as b:
        in_turn, in_kernel, ran = Gate(), Gate(), []

        def finalizer():
            in_kernel()
            a.push(lambda: ran.append("by the worker")).wait(WAIT)

        class Noisy:
            def __del__(self):
                in_turn()
                b.push(lambda: ran.append("on the worker")).wait(WAIT)

        def outer():
            held = [Noisy()]
            a.push(lambda held=held: None)

        atomic(b, [(operator.call, finalizer)])
        in_kernel.wait_entered()
        thread = start(a.push, outer)
        in_turn.wait_entered()
        in_kernel.open()
        in_turn.open()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        b.waitall(WAIT)
        a.waitall(WAIT)
        assert ran == ["by the worker", "on the worker"]


def test_a_serial_engine_runs_one_thing_at_a_time():
    """Also for a thread that is inside another engine's turn."""
    with Engine("NaiveEngine") as a, Engine("NaiveEngine") as b:
        order, inside = [], Gate()

        def first():
            order.append("begins")
            inside()
            order.append("ends")

        def use():
            b.push(lambda: a.push(lambda: order.append("second")).wait(WAIT))

        threads = [start(a.push, first)]
        inside.wait_entered()
        threads.append(start(use))
        while not a._turn_bells:  # it waits
            pass
        inside.open()
        for t in threads:
            t.join(PATIENCE)
        assert order == ["begins", "ends", "second"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_push_at_every_checkpoint_of_another_engine(kind):
    """The other one is used by a second thread, which does the same to this one."""

    def attack(k):
        hit = [], []
        with Engine(kind, workers=1) as a, Engine(kind, workers=1) as b:
            v, w, ran = a.new_variable(), b.new_variable(), []

            def use(x, mine, y, other, hit):
                def at(n):
                    if n == k:
                        hit.append(n)
                        op = y.push(lambda: ran.append(1), updates=[other])
                        if kind != "NaiveEngine":  # there the other thread may have the turn, and wait for this one
                            op.wait(WAIT)

                with Checkpoints(at):
                    op = x.push(lambda: ran.append(1), updates=[mine])
                    if kind != "NaiveEngine":
                        op.wait(WAIT)
                    atomic(x, [(list.append, ran, 1)], updates=(mine,), cheap=True)

            if hasattr(os, "register_at_fork") and not hasattr(threading, "settrace_all_threads"):
                one = start(use, a, v, b, w, hit[0])  # 3.11 traces each thread for itself
                use(b, w, a, v, hit[1])
                one.join(PATIENCE)
                assert not one.is_alive()
            else:
                use(b, w, a, v, hit[1])
            a.waitall(WAIT)
            b.waitall(WAIT)
            assert v.version + w.version == len(ran)
            audit(a)
            audit(b)
        return hit[0] or hit[1]

    k = 1
    while attack(k):
        k += 5
    assert k > 100


def test_workers_start_while_another_thread_starts_some():
    """A push never blocks on that, whatever locks are held below."""
    with Engine(workers=1) as e:
        gate = Gate()

        def hold():
            with e._life:
                gate()

        holder = start(hold)
        gate.wait_entered()
        ran = []
        pusher = start(lambda: ran.append(e.push(lambda: ran.append(1))))
        pusher.join(PATIENCE)
        assert not pusher.is_alive()
        gate.open()
        holder.join(PATIENCE)
        ran[0].wait(WAIT)


def test_the_default_engine_is_one():
    """A finalizer inside its making asks for it too; another thread makes one meanwhile."""

    def attack(k, elsewhere):
        hit, before = [], set_default(None)

        def at(n):
            if n == k:
                if elsewhere:
                    start(lambda: hit.append(default())).join(PATIENCE)
                else:
                    hit.append(default())

        try:
            with Checkpoints(at):
                made = default()
            assert not hit or hit == [made]
            assert default() is made
        finally:
            set_default(before)
        return hit

    for elsewhere in (False, True):
        k = 1
        while attack(k, elsewhere):
            k += 3
        assert k > 20


# ==================================================================================================== fork
def fork_here():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12+: this process has threads
        return os.fork()


def finish(pid, check):
    """The end of a test in both processes: the child checks and ends; the parent gives the child's exit code."""
    if pid == 0:
        code = 1
        try:
            check()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@fork
@pytest.mark.parametrize("kind", KINDS)
def test_fork_inside_a_section(kind):
    """A handler forks, at any checkpoint: what was planned below it does not reach the child's engine by halves."""

    def attack(k):
        pids = []
        with Engine(kind, workers=2) as e:
            v, w, ran = e.new_variable(), e.new_variable(), []
            e.push(lambda: ran.append(0), updates=[v])
            gate = Gate()
            if kind != "NaiveEngine":
                e.push(gate, updates=[w])
                gate.wait_entered()
                e.push(lambda: None, updates=[w])

            def at(n):
                if n == k:
                    pids.append(fork_here())

            def check():
                audit(e)
                assert e.statistics().bytes == e.statistics().held == 0
                for x in (v, w):
                    with contextlib.suppress(Cancelled):
                        e.wait_for_var(x, WAIT)
                out = []
                op = e.push(lambda: out.append(1), writes=[v, w])
                atomic(e, [(list.append, out, 2)], updates=(v, w))
                atomic(e, [(list.append, out, 3)], updates=(v, w), cheap=True)
                e.wait_for_var(v, WAIT)
                assert op.done
                assert out == [1, 2, 3]
                try:
                    e.waitall(WAIT)
                except* CompletionError:
                    pass  # a callback of a function that forked: the fork has ended its operation
                audit(e)
                assert not e._live and not e._inbox
                assert not e._turn_bells
                e.stop(WAIT)

            error = None
            try:
                with Checkpoints(at), contextlib.suppress(Cancelled):
                    atomic(e, [(list.append, ran, 1)], updates=(v,), cheap=True)
                    e.push(lambda: None, updates=[v], nbytes=10)
                    e.push_async(lambda ctx, done: done(), mutable_vars=[v])
                    atomic(e, [(list.append, ran, 1)], updates=(v,)).wait(WAIT)
            except BaseException as x:
                if not pids or pids[0]:
                    raise
                error = x

            def check_all():
                if error is not None:
                    raise error
                check()

            if pids:
                code = finish(pids[0], check_all)
                gate.open()
                assert code == 0, k
            gate.open()
            e.waitall(WAIT)
            audit(e)
        return pids

    k = 1
    while attack(k):
        k += 1 if os.environ.get("VARDAG_STRESS") else 4
    assert k > 100


@fork
def test_fork_inside_a_wait():
    """A handler forks at any checkpoint of a wait: in the child what was unfinished is over, and it hears of it."""

    def attack(k):
        pids, gate = [], Gate()
        with Engine("ThreadedEnginePooled", workers=1) as e:
            v = e.new_variable()
            e.push(gate)
            gate.wait_entered()
            op = e.push(lambda: None, updates=[v])

            def at(n):
                if n == k:
                    pids.append(fork_here())
                    if pids[0]:
                        gate.open()

            raised, begun = [], monotonic()
            try:
                with Checkpoints(at):
                    op.wait(1.0)
            except (Cancelled, EngineTimeout) as error:
                raised.append(error)
            took = monotonic() - begun

            def check():
                audit(e)
                assert isinstance(raised[0], Cancelled)
                assert took < 0.9, "nothing woke it"

            asleep = bool(pids) and took >= 1.0 and pids[0] != 0  # that checkpoint comes after the sleep
            if pids:
                assert finish(pids[0], check) == 0 or asleep, k
            gate.open()
        return not asleep

    k = 1
    while attack(k):
        k += 1
    assert k > 20


@fork
def test_fork_inside_a_kernel_of_this_thread():
    """It goes on in the child, whose engine knows it: within its push, nested in another, or helped with."""
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, w, gate, pids, log = e.new_variable(), e.new_variable(), Gate(), [], []

        def inner():
            pids.append(fork_here())

        def outer():
            atomic(e, [(operator.call, inner), (list.append, log, "inner")], updates=(w,), cheap=True)

        atomic(e, [(operator.call, outer), (list.append, log, "outer")], updates=(v,), cheap=True)

        def check():
            assert log == ["inner", "outer"]
            for x in (v, w):
                e.wait_for_var(x, WAIT)
            e.push(lambda: None, updates=[v, w]).wait(WAIT)
            audit(e)

        assert finish(pids.pop(), check) == 0
        e.push(gate)
        gate.wait_entered()
        op = atomic(e, [(operator.call, inner), (list.append, log, "helped")], updates=(v,))
        later = e.push(lambda: None, reads=[v])
        op.wait(WAIT)

        def check_again():
            assert log[-1] == "helped"
            with pytest.raises(Cancelled):
                later.wait(WAIT)
            e.push(lambda: None, updates=[v]).wait(WAIT)
            audit(e)

        assert finish(pids.pop(), check_again) == 0
        gate.open()
        later.wait(WAIT)
        audit(e)


@fork
def test_a_worker_that_forks_is_no_worker_in_the_child():
    """An operation forks and returns: the child's only thread ends."""
    with Engine("ThreadedEnginePooled", workers=1) as e:
        pids = []
        e.push(lambda: pids.append(fork_here())).wait(WAIT)
        assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0


@fork
def test_fork_where_a_push_is_held(monkeypatch):
    """A handler on the held thread forks: the child has room."""
    monkeypatch.setattr(waiting, "SLICE", 0.01)
    with Engine("ThreadedEnginePooled", workers=1) as e:
        gate, pids, out = Gate(), [], []
        e.push(gate)
        gate.wait_entered()

        def at(n):
            if e._room and not pids:
                pids.append(fork_here())
                if pids[0]:
                    gate.open()

        with e.limits(count=1):
            e.limits(count=1)
            with Checkpoints(at):
                op = e.push(lambda: out.append(1))

            def check():
                op.wait(WAIT)
                assert out == [1]
                assert not e._room

            assert finish(pids[0], check) == 0
            op.wait(WAIT)


def test_errors_of_one_engine_are_not_another_s():
    with Engine(workers=1) as a, Engine(workers=1) as b:
        a.push(lambda: 1 / 0, name="of a")
        b.waitall(WAIT)
        with pytest.raises(ExceptionGroup) as raised:
            a.waitall(WAIT)
        assert isinstance(raised.value.exceptions[0], OperatorError)
