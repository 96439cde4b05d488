"""Interleavings that once broke the engine, each forced: at a checkpoint, from a finalizer, or between two threads."""

from __future__ import annotations

import contextlib
import operator
import subprocess
import sys
import threading
import time

import pytest

from vardag.engine import DeadlockError, Engine, EngineClosed, EngineTimeout, Kind, Operation, State, lifecycle, waiting
from vardag.engine.atomic import locked, unlocked
from vardag.engine.claims import here_and_now
from vardag.engine.testing import Checkpoints, Gate, audit
from vardag.engine.workers import Workers

WAIT = 20.0


class Hard(BaseException):
    """Like KeyboardInterrupt."""


@pytest.fixture(autouse=True)
def long_slices(monkeypatch):
    """A lost wake-up must show as a time-out and not be hidden by polling."""
    monkeypatch.setattr(waiting, "SLICE", 60.0)


def admit(engine, steps, *, updates=(), cheap=True):
    op = Operation(Kind.ATOMIC, lambda: steps, "k", cheap=cheap)
    return engine.admit(lambda: (op, (), (), updates, (), [], False))


def visits(attack):
    """`attack(k)` acts at the k-th checkpoint and says whether there was one."""
    k = 1
    while attack(k):
        k += 1
    return k - 1


def start(f, *args):
    thread = threading.Thread(target=f, args=args)
    thread.start()
    return thread


# ==================================================================================================== admission
def test_push_inside_a_promotion():
    """A finalizer inside a kernel within a push pushes, and so does a signal handler inside that push."""

    def attack(k):
        hit, log = [], []
        with Engine("ThreadedEnginePooled", workers=1) as e:
            v = e.new_variable()

            def at(n):
                if n == k:
                    hit.append(e.push(lambda: log.append("handler"), updates=[v]))

            def finalizer():
                with Checkpoints(at):
                    e.push(lambda: log.append("finalizer"), updates=[v])

            admit(e, [(operator.call, finalizer), (list.append, log, "kernel")], updates=(v,))
            e.waitall(WAIT)
            audit(e)
            assert e.statistics().pushed == v.version == len(log) == (3 if hit else 2)
            assert log[0] == "kernel"
        return hit

    assert visits(attack) > 30


def test_a_finalizer_in_a_kernel_that_waits_for_it():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, log = e.new_variable(), []

        def finalizer():
            log.append("finalizer")
            with pytest.raises(DeadlockError):
                e.push(lambda: log.append("pushed"), updates=[v]).wait(WAIT)

        op = admit(e, [(operator.call, finalizer), (list.append, log, "kernel")], updates=(v,))
        assert op.done
        e.wait_for_var(v, WAIT)
        assert log == ["finalizer", "kernel", "pushed"]


def test_a_finalizer_in_a_kernel_that_waits_for_something_else():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, w, gate, log = e.new_variable(), e.new_variable(), Gate(), []
        other = e.push(gate, updates=[w])
        gate.wait_entered()

        def finalizer():
            gate.open()
            other.wait(WAIT)
            log.append("waited")

        admit(e, [(operator.call, finalizer), (list.append, log, "kernel")], updates=(v,))
        e.wait_for_var(v, WAIT)
        assert log == ["waited", "kernel"]


def test_no_root_is_lost():
    """`waitall`, by a finalizer or by another thread, while a kernel fails within its push."""

    def attack(k, other):
        hit, raised = [], []

        def look():
            try:
                e.waitall(WAIT)
            except ExceptionGroup as group:
                raised.extend(group.exceptions)

        def at(n):
            if n == k:
                hit.append(n)
                if other:
                    start(look).join()
                else:
                    look()

        with Engine("ThreadedEnginePooled", workers=1) as e:
            with Checkpoints(at):
                admit(e, [(operator.truediv, 1, 0)])
            look()
            assert len(raised) == 1
        return hit

    assert visits(lambda k: attack(k, False)) > 30
    assert visits(lambda k: attack(k, True)) > 30


def test_stop_inside_a_push():
    """The push is drained, or refused; nothing stays behind and no worker is started again."""

    def attack(k):
        hit, op = [], None
        e = Engine("ThreadedEnginePooled", workers=1)
        e.push(lambda: None).wait(WAIT)

        def at(n):
            if n == k:
                hit.append(n)
                e.stop(WAIT)

        with Checkpoints(at), contextlib.suppress(EngineClosed):
            op = e.push(lambda: None)
        if hit:
            assert op is None or op.done
            assert e.statistics().pending == e.statistics().workers == 0
        e.stop(WAIT)
        return hit

    assert visits(attack) > 20


# ==================================================================================================== waits
def test_two_engines_wait_for_each_other_without_a_cycle():
    with Engine(workers=1) as a, Engine(workers=1) as b:
        gate_a, gate_b, later = Gate(), Gate(), {}

        def in_a():
            gate_a()
            later["b"].wait(WAIT)

        def in_b():
            gate_b()
            later["a"].wait(WAIT)

        one, two = a.push(in_a), b.push(in_b)
        gate_a.wait_entered()
        gate_b.wait_entered()
        later.update(a=a.push(lambda: None), b=b.push(lambda: None))
        gate_a.open()
        gate_b.open()
        one.wait(WAIT)
        two.wait(WAIT)


def test_nested_waits_back_and_forth_between_two_engines():
    with Engine(workers=1) as a, Engine(workers=1) as b:

        def inner():
            a.push(lambda: None).wait(WAIT)

        a.push(lambda: b.push(inner).wait(WAIT)).wait(WAIT)


def test_a_worker_watches_all_that_runs_for_it():
    """A callback comes only from what becomes ready when something else ends; only the waiting worker can run that."""
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, w, callbacks, gate, lock = e.new_variable(), e.new_variable(), [], Gate(), threading.Lock()
        handed_out = e.push_async(lambda ctx, done: callbacks.append(done), mutable_vars=[v])
        while not callbacks:
            pass

        def waits():
            gate()
            last.wait(WAIT)

        outer = e.push(waits)
        gate.wait_entered()
        lock.acquire()
        kernel = admit(e, [(lock.acquire,)], updates=(w,), cheap=False)
        e.push(callbacks[0], updates=[w])
        last = e.push(lambda: None, reads=[v, w])
        helper = start(kernel.wait, WAIT)
        while kernel.state is not State.RUNNING:
            pass
        gate.open()
        while not handed_out.watch:
            pass
        lock.release()
        outer.wait(WAIT)
        helper.join()


def test_a_worker_hears_that_a_claimed_kernel_is_free_again():
    """The thread that helped with it is interrupted before it starts; the worker in a wait hears no bell."""
    with Engine("ThreadedEnginePooled", workers=1) as e:
        gate, out, hit = Gate(), [], []

        def waits():
            gate()
            kernel.wait()

        outer = e.push(waits)
        gate.wait_entered()
        kernel = admit(e, [(list.append, out, 1)], cheap=False)

        def at(n):
            if kernel.state is State.RUNNING and not e._T._is_owned() and not hit:
                hit.append(n)
                gate.open()
                while not kernel.watch:
                    pass
                raise Hard

        with pytest.raises(Hard), Checkpoints(at):
            kernel.wait(WAIT)
        outer.wait(WAIT)
        assert out == [1]


def test_a_spare_worker_runs_what_the_deep_stack_needs():
    """And not something else that waits for that stack."""
    with Engine("ThreadedEnginePooled", workers=1) as e:
        gate, ops = Gate(), []

        def nest(depth):
            if depth:
                e.push(lambda: nest(depth - 1)).wait(WAIT)

        def bottom():
            gate()
            nest(100)

        ops.append(e.push(bottom))
        gate.wait_entered()
        urgent = e.push(lambda: ops[0].wait(WAIT), priority=5)
        gate.open()
        ops[0].wait(WAIT)
        urgent.wait(WAIT)


def test_pending_work_is_not_overlooked_while_its_edges_are_drawn():
    """A finalizer inside `waitall`'s look at the pending operations moves them from the inbox to the live ones."""

    def attack(k):
        hit = []
        with Engine("ThreadedEnginePooled", workers=1) as e:
            gate = Gate()
            ops = [e.push(gate)]
            gate.wait_entered()
            ops.append(e.push(lambda: None))

            def at(n):
                if n == k:
                    hit.append(n)
                    with contextlib.suppress(EngineTimeout):
                        ops[1].wait(0)

            with Checkpoints(at):
                found = e._pending()
            gate.open()
            assert found == ops
        return hit

    assert visits(attack) > 5


def test_an_explanation_of_what_ran_within_its_push():
    with Engine(workers=1) as e:
        op = admit(e, [(operator.add, 1, 1)])
        assert "#0 done" in e.explain(op)


# ==================================================================================================== threads
def test_the_serial_turn_is_taken_over():
    """Serial engine: a thread waits while another has the turn, and that one is interrupted."""
    with Engine("NaiveEngine") as e:
        gate, ran = Gate(), []

        def interrupted():
            gate()
            raise KeyboardInterrupt

        def push():
            with contextlib.suppress(KeyboardInterrupt):
                e.push(interrupted)

        one = start(push)
        gate.wait_entered()
        op = e.push(lambda: ran.append(1))
        two = start(op.wait, WAIT)
        while not op.watch:
            pass
        gate.open()
        one.join()
        two.join()
        assert ran == [1]
        with contextlib.suppress(ExceptionGroup):
            e.waitall()


def test_a_worker_that_is_killed_is_replaced(monkeypatch):
    """A second exception is thrown into it where it has dealt with the first."""
    serve, killed = Workers._serve_safely, []

    def kill(self, lane, mine):
        if not killed:
            killed.append(threading.current_thread())
            raise Hard
        serve(self, lane, mine)

    monkeypatch.setattr(Workers, "_serve_safely", kill)
    with Engine("ThreadedEnginePooled", workers=1) as e:
        e.push(lambda: None).wait(WAIT)
        assert killed
        end = time.monotonic() + WAIT
        while killed[0] in e._lane.threads or e.statistics().workers != 1:
            assert time.monotonic() < end


def test_engines_made_at_once_are_all_known():
    def attack(k):
        made = []

        def at(n):
            if n == k:
                made.append(Engine(workers=1))

        with Checkpoints(at):
            made.append(Engine(workers=1))
        assert all(e in lifecycle.living() for e in made)
        return len(made) > 1

    assert visits(attack) > 20


def test_workers_start_although_no_thread_can(monkeypatch):
    """3.12+ starts none once the main thread has ended; elsewhere a limit may be reached."""
    monkeypatch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no thread")))
    with Engine("ThreadedEnginePooled", workers=2) as e:
        ran = []
        e.push(lambda: ran.append(1)).wait(WAIT)
        assert ran == [1]


@pytest.mark.parametrize(
    "code",
    [
        "e.push(lambda: print('ran'))",
        "import threading\nentered, go = threading.Event(), threading.Event()\n"
        "def f():\n  entered.set(); go.wait()\n  while not e.stopped: pass\n"
        "  try: e.push(lambda: None)\n  except E.Error: pass\n  print('ran')\n"
        "e.push(f); entered.wait(); go.set()",
    ],
    ids=["the first push is the last statement", "an operation pushes at exit"],
)
def test_exit_does_not_hang(code):
    code = "from vardag import engine as E\ne = E.Engine(workers=1)\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


# ==================================================================================================== small guards
def test_unlocked_takes_the_lock_back():
    def attack(k):
        hit, lock = [], threading.RLock()

        def at(n):
            if n == k:
                hit.append(n)
                raise Hard

        with lock:
            with contextlib.suppress(Hard), Checkpoints(at):
                unlocked(lock, int)
            assert lock._is_owned()
        return hit

    assert visits(attack) >= 2


def test_a_lane_made_while_another_is_made():
    """(3.11) A collection inside `_new_lane` runs a finalizer that pushes to a new lane too."""

    class Lanes(dict):
        __iter__ = None  # else `{**lanes}` does not ask for the keys

        def keys(self):
            e._lanes = dict(self.items())
            e._new_lane("one")
            return super().keys()

    with Engine("ThreadedEnginePerDevice", workers=1) as e:
        e._lanes = Lanes(e._lanes)
        e._new_lane("two")
        assert set(e._lanes) == {"cpu", "one", "two"}


@pytest.mark.parametrize("kind", [Kind.USER, Kind.KERNEL, Kind.ASYNC])
@pytest.mark.parametrize("taken", [False, True], ids=["waits", "loses it"])
def test_a_finalizer_between_the_claim_and_the_function(kind, taken):
    """It waits for the claimed operation, and runs it, or another worker takes it meanwhile: it runs once."""

    def attack(k):
        hit, ran, lost = [], [], []
        blocker, inside, busy, mine = Gate(), Gate(), threading.Lock(), [None]

        def function(*args):
            ran.append(1)
            if lost and len(ran) == 1:
                inside()
            if args:
                args[1]()

        def at(n):
            if n == k and op.mark == 0 and op.state is State.RUNNING and op not in here_and_now.stack:
                hit.append(n)
                if taken:
                    lost.append(n)
                    locked(e._T, e._repair, op)
                    blocker.open()
                    inside.wait_entered()
                else:
                    op.wait(WAIT)
            elif n == k:
                hit.append(n)

        def work():
            locked(e._T, lambda: (e._drain(), e._claim_this(op, busy, mine)))
            with Checkpoints(at):
                fate = e._execute(mine[0])
            if fate is not None:
                e._finish(op, *mine[0][1:], fate)

        with Engine("ThreadedEnginePooled", workers=1) as e:
            e.push(blocker)
            blocker.wait_entered()
            op = Operation(kind, function, "op")
            e.admit(lambda: (op, (), (), (), (), [], False))
            here_and_now.worker = e  # this thread plays a worker, so that it can be traced
            try:
                locked(busy, work)
            finally:
                here_and_now.worker = None
            blocker.open()
            inside.open()
            op.wait(WAIT)
            assert len(ran) == 1
        return hit

    assert visits(attack) > 4
