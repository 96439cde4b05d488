"""Interrupts, finalizers and signal handlers at every checkpoint of the engine's code.

`VARDAG_STRESS=<seconds>` makes the storms of finalizers and exceptions that long, those of signals 4,700 interrupts
each, and visits every checkpoint (with pushes every second one); the default visits every few.  After each fault the
engine is audited, and everything that was admitted is replayed in push order and compared: order, values, roots.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import operator
import os
import random
import signal
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path

import pytest

from vardag.engine import DeadlockError, Engine, Kind, Operation, OperatorError, Variable, waiting
from vardag.engine.testing import Checkpoints, audit

SECONDS = float(os.environ.get("VARDAG_STRESS", "0"))
LONG = SECONDS > 0
WAIT = 20.0
FILES = str(Path(waiting.__file__).parent)
where: Counter[str] = Counter()  # the engine's functions that were interrupted

pytestmark = pytest.mark.usefixtures("no_gc_callbacks")


def innermost(frame) -> str | None:
    """The engine's function that runs in this frame or called it; None: no such function is on this stack."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(FILES) and not code.co_filename.endswith("checkpoints.py"):
            return code.co_qualname
        frame = frame.f_back
    return None


class Boom(Exception):
    """An ordinary exception, as SIGALRM handlers raise."""


class Hard(BaseException):
    """Like KeyboardInterrupt."""


class World:
    """Variables whose cells hold bounded histories, and a log of everything that was pushed on them."""

    def __init__(self, engine: Engine, n: int = 4) -> None:
        self.engine = engine
        self.vs = [engine.new_variable(str(i)) for i in range(n)]
        self.cells = {v: deque(maxlen=6) for v in self.vs}
        self.created: list[tuple[Operation, tuple]] = []
        self.base = {v: ([], None) for v in self.vs}
        self.start = engine.statistics().pushed

    def push(self, reads=(), updates=(), writes=(), kind="atomic", fail=False):
        """Each operation copies what it reads into its log, and appends its own mark to what it changes."""
        both = [v for v in writes if v in reads]
        reads, writes, updates = tuple(reads), tuple(writes), tuple(updates)
        eff_u = (*updates, *both)
        eff_w = tuple(v for v in writes if v not in both)
        eff_r = tuple(v for v in reads if v not in eff_u)
        log: list = []
        mark = object()
        steps = [(list.append, log, "ran")]
        if fail:
            steps.insert(0, (operator.truediv, 1, 0))
        for v in eff_r:
            steps += ((list.extend, log, self.cells[v]), (list.append, log, "|"))
        steps += [(deque.append, self.cells[v], mark) for v in eff_u]
        for v in eff_w:
            steps += ((deque.clear, self.cells[v]), (deque.append, self.cells[v], mark))

        def run():
            for f, *args in steps:
                f(*args)

        user = kind == "user"
        op = Operation(Kind.USER if user else Kind.ATOMIC, run if user else lambda: steps, kind, cheap=kind == "tiny")
        op.priority = len(self.created) % 3
        self.created.append((op, (log, mark, eff_r, eff_u, eff_w, fail)))
        self.engine.admit(lambda: (op, reads, writes, updates, (), [], False))
        return op

    def some(self, r: random.Random) -> None:
        """A short random program, with errors and healing."""
        for _ in range(r.randint(2, 7)):
            a, b, c = r.choice(self.vs), r.choice(self.vs), r.choice(self.vs)
            kind = r.choice(("user", "atomic", "atomic", "tiny", "tiny"))
            x = r.random()
            if x < 0.35:
                self.push((a,), (b,), kind=kind)
            elif x < 0.6:
                self.push((a, c), (), (b,), kind=kind)
            elif x < 0.7:
                self.push((), (b,), kind=kind, fail=True)
            elif x < 0.75:
                self.push((a,), (), (a,), kind=kind)
            elif x < 0.85:
                self.push((), (), (b,), kind=kind)
            else:
                self.push((a,), kind=kind)
        with contextlib.suppress(OperatorError, ExceptionGroup):
            if r.random() < 0.5:
                self.engine.wait_for_var(r.choice(self.vs), WAIT)
            elif r.random() < 0.2:
                self.engine.waitall(WAIT)

    def check(self, where: object) -> int:
        """Quiet the engine, audit it, and replay everything admitted in push order."""
        with contextlib.suppress(ExceptionGroup):
            self.engine.waitall(WAIT)
        audit(self.engine)
        assert not self.engine._live and not self.engine._inbox, where
        end = self.engine.statistics().pushed
        # A push that was cut leaves an operation that was never admitted: not done, and its number went to the next.
        by_seq = {op.seq: (op, what) for op, what in self.created if op.done}
        assert sum(op.done for op, _ in self.created) == len(by_seq), (where, "a number was given twice")
        assert sorted(by_seq) == list(range(self.start, end)), (where, "hole in push order")
        cells = {v: deque(c, 6) for v, (c, _) in self.base.items()}
        bad = {v: e for v, (_, e) in self.base.items()}
        for seq in sorted(by_seq):
            op, (log, mark, reads, updates, writes, fail) = by_seq[seq]
            poison = [bad[v] for v in (*reads, *updates) if bad[v] is not None]
            if poison or fail:
                root = min(poison) if poison else seq
                assert log == [], (where, "ran although poisoned")
                assert op.fate.root is not None and op.fate.root.seq == root, (where, op, root)
                for v in (*updates, *writes):
                    bad[v] = root
                continue
            if mark is None:
                continue  # the scenario's sleeper: it writes no log, and may have been cut
            want = ["ran"]
            for v in reads:
                want += [*cells[v], "|"]
            assert op.fate.root is None, (where, op.fate.root.exc)
            assert log == want, (where, seq)
            for v in updates:
                cells[v].append(mark)
            for v in writes:
                cells[v] = deque([mark], 6)
                bad[v] = None
        for v in self.vs:
            assert self.cells[v] == cells[v], where
            fate = None if v.writer is None else v.writer.fate
            assert (fate.root.seq if fate and fate.root else None) == bad[v], where
        self.created.clear()
        self.base = {v: (list(cells[v]), bad[v]) for v in self.vs}
        self.start = end
        return len(by_seq)


def scenario(w: World) -> None:
    """Every path once: inline, queued, poisoned, healed, helped, and a worker that waits for what this thread runs."""
    a, b, c, d = w.vs
    e = w.engine

    def wait(v: Variable) -> None:
        with contextlib.suppress(OperatorError):
            e.wait_for_var(v, WAIT)

    w.push((), (), (a,), kind="tiny")
    w.push((), (a,), kind="user")
    w.push((a,), (b,))
    w.push((b,), (), (c,), kind="tiny")
    wait(c)
    w.push((c,), (), (d,), kind="tiny")
    w.push((), (d,), kind="tiny", fail=True)
    w.push((d,), (b,))
    w.push((a,), (), (d,), kind="tiny")
    wait(b)
    w.push((), (), (b,))
    wait(b)
    wait(d)
    g = w.push((), (a,))
    h = w.push((a,), (c,))
    sleeper = Operation(Kind.USER, lambda: e.wait_op(h, WAIT), "sleeper")
    w.created.append((sleeper, ([], None, (), (), (), False)))
    e.admit(lambda: (sleeper, (), (), (), (), [], False))
    e.wait_op(g, WAIT)
    e.wait_op(h, WAIT)
    with contextlib.suppress(ExceptionGroup):
        e.waitall(WAIT)


@pytest.fixture(autouse=True)
def long_slices(monkeypatch):
    """A lost wake-up must show as a hang and not be hidden by polling."""
    monkeypatch.setattr(waiting, "SLICE", 60.0)


def visit(kind: str, workers: int, action, step: int, allowed=(Boom, Hard), again=None) -> int:
    """Run the scenario once per checkpoint, with `action` at it; returns how often it acted.

    ``again(k)``: it acts a second time so many checkpoints later, while the engine deals with the first.
    """
    fired, k = 0, 1
    with Engine(kind, workers=workers) as engine:
        w = World(engine)
        while True:
            hit = []

            def at(n, k=k, hit=hit):
                if n >= k if not hit else again and n >= hit[0] + again(k) and len(hit) == 1:
                    hit.append(n)
                    where[innermost(sys._getframe())] += 1
                    action(w)

            points = Checkpoints(at)
            start = time.monotonic()
            with contextlib.suppress(*allowed), points:
                scenario(w)
            w.check((kind, k))
            assert time.monotonic() - start < WAIT / 2, (kind, k, "a wake-up was lost")
            if not hit:
                return fired
            fired += len(hit)
            k += step if not LONG else 3 if kind == "NaiveEngine" else 2 if action in INSIDE else 1


def throw(kind):
    def action(w):
        raise kind

    return action


def push_inside(w: World) -> None:
    w.push((w.vs[0],), (w.vs[1],))
    w.push((), (w.vs[0],), kind="tiny")


def wait_inside(w: World) -> None:
    w.push((w.vs[0],), (w.vs[1],), kind="user")
    w.push((w.vs[1],), (w.vs[0],))
    with contextlib.suppress(OperatorError, DeadlockError):
        w.engine.wait_for_var(w.vs[0], WAIT)


@pytest.mark.parametrize("action", [throw(Boom), throw(Hard)], ids=["exception", "interrupt"])
def test_exception_at_every_checkpoint(action, note):
    count = visit("ThreadedEnginePooled", 1, action, 11)
    note("interrupts", count, 30, f"{count} at every checkpoint in turn")
    note("inside", count, 30)


@pytest.mark.parametrize("action", [throw(Boom), throw(Hard)], ids=["exception", "interrupt"])
def test_a_second_exception_while_the_first_is_dealt_with(action, note, monkeypatch):
    monkeypatch.setattr(waiting, "SLICE", 0.05)  # a runner that was interrupted twice is found by who looks for it
    r = random.Random(3)
    count = visit("ThreadedEnginePooled", 1, action, 11, again=lambda k: r.randint(1, 12))
    note("interrupts", count, 30, f"{count} in pairs, the second up to 12 checkpoints after the first")
    note("inside", count, 30)


INSIDE = (push_inside, wait_inside)


def test_push_at_every_checkpoint_of_the_serial_engine():
    # Exceptions are another matter: a user's function runs on the thread that is interrupted, and is cut.
    assert visit("NaiveEngine", 1, push_inside, 17) > 10


def test_push_and_wait_at_every_checkpoint_of_the_serial_engine():
    assert visit("NaiveEngine", 1, wait_inside, 23) > 10


def test_push_at_every_checkpoint():
    assert visit("ThreadedEnginePooled", 1, push_inside, 11) > 30


def test_push_and_wait_at_every_checkpoint():
    assert visit("ThreadedEnginePooled", 1, wait_inside, 11) > 30


# ==================================================================================================== storms
def storm(kind: type[BaseException], workers: int, wanted: int) -> tuple[int, int, int]:
    """Real signals at random moments of random programs, until so many came; the engine is audited after each.

    Returns (interrupts, of these inside the engine, operations replayed).
    """
    armed = [False]
    inside = [0]

    def handler(number, frame):
        if armed[0]:
            armed[0] = False
            name = innermost(frame)
            if name is not None:
                where[name] += 1
                inside[0] += 1
            raise kind

    gc.collect()  # dead threads of other tests: the WeakSet that `threading` keeps of them loses interrupts
    old = signal.signal(signal.SIGALRM, handler)
    hits = ops = 0
    r = random.Random(1)

    def spin(w):
        while armed[0]:
            w.some(r)

    try:
        with Engine("ThreadedEnginePooled", workers=workers) as engine:
            w = World(engine)
            while hits < wanted:
                try:
                    armed[0] = True
                    signal.setitimer(signal.ITIMER_REAL, r.uniform(1e-5, 3e-4))
                    spin(w)
                except kind:
                    hits += 1
                finally:
                    armed[0] = False
                    signal.setitimer(signal.ITIMER_REAL, 0)
                ops += w.check("storm")
    finally:
        signal.signal(signal.SIGALRM, old)
    return hits, inside[0], ops


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers")
@pytest.mark.parametrize("kind", [Boom, Hard])
def test_storm_of_signals(kind, note):
    wanted = 4700 if LONG else 400
    hits, inside, ops = storm(kind, 2, wanted)
    note("interrupts", hits, wanted, f"{hits} by signals, {inside} of them inside the engine")
    note("inside", inside, wanted // 3)
    assert ops > wanted


def test_every_part_of_the_engine_was_interrupted(note):
    """By the tests above."""
    parts = {
        "push": ("_push", "_admit", "_admit_op", "_inline", "_queue_steps", "admit"),
        "drain": ("_drain", "_draw"),
        "claim": ("_claim_this", "_run_busy", "_claim_top", "_turn"),
        "finish": ("_finish", "_finish_locked", "_done_steps", "retire"),
        "wait": ("wait_op", "wait_for_var", "_until_done", "_next_for", "_needed", "_sleep"),
    }
    if not where:
        pytest.skip("they did not run")
    found = {part: sum(where[name] for name in where if name.split(".")[-1] in names) for part, names in parts.items()}
    common = ", ".join(f"{name} {count}" for name, count in where.most_common(24))
    note("inside", 0, 0, f"by part: {found}")
    note("inside", 0, 0, f"by function: {common}")
    assert all(found.values()), found


def test_finalizers_that_push_and_wait():
    """Collections every few allocations; each runs a finalizer that pushes, every second one waits."""
    with Engine("ThreadedEnginePooled", workers=2) as engine:
        w = World(engine)
        busy, ran = [False], [0, 0]

        class Node:
            def __init__(self, wait):
                self.me = self
                self.wait = wait

            def __del__(self):
                if busy[0]:
                    return
                busy[0] = True
                try:
                    self.work()
                finally:
                    busy[0] = False

            def work(self):
                w.push((w.vs[2],), (w.vs[3],))
                w.push((w.vs[3],), (w.vs[2],), kind="user")
                ran[0] += 1
                if self.wait:
                    with contextlib.suppress(DeadlockError):
                        self.wait_well()
                        ran[1] += 1

            def wait_well(self):
                with contextlib.suppress(OperatorError):
                    engine.wait_for_var(w.vs[2], WAIT)

        r = random.Random(5)
        old = gc.get_threshold()
        end = time.monotonic() + SECONDS
        rounds = 10
        try:
            while rounds > 0 or time.monotonic() < end:
                rounds -= 1
                gc.set_threshold(3, 2, 2)
                for i in range(30):
                    Node(i % 2)
                    w.some(r)
                gc.set_threshold(*old)
                gc.collect()
                w.check("finalizers")
        finally:
            gc.set_threshold(*old)
        assert ran[0] > 100
        assert ran[1] > 20


def test_exceptions_thrown_into_workers():
    """Whatever is thrown into a worker, it goes on, and nothing hangs."""
    with Engine("ThreadedEnginePooled", workers=2) as engine:
        w = World(engine)
        r = random.Random(9)
        w.push((), (w.vs[0],), kind="user")
        w.check("start")
        assert engine._lane.wait_up(WAIT)
        threads = engine._lane.threads
        assert len(threads) == 2
        end = time.monotonic() + SECONDS
        rounds = 30
        while rounds > 0 or time.monotonic() < end:
            rounds -= 1
            for _ in range(20):
                w.some(r)
                thread = ctypes.c_ulong(r.choice(threads).ident)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(Hard))
            with contextlib.suppress(ExceptionGroup):
                engine.waitall(WAIT)
            audit(engine)
            assert all(t.is_alive() for t in threads)


def test_four_pushing_threads():
    with Engine("ThreadedEnginePooled", workers=3) as engine:
        w = World(engine, 6)

        def go(seed):
            r = random.Random(seed)
            for _ in range(30):
                w.some(r)

        for round_ in range(5):
            threads = [threading.Thread(target=go, args=(round_ * 10 + i,)) for i in range(4)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            w.check("threads")
        stats = engine.statistics()
        assert stats.by_worker > 0
        assert stats.by_helper > 0
