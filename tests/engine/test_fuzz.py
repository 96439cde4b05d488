"""Schedules to order: what is open is permuted, what is not stays, a seed repeats."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import nd
from vardag.engine import ArgumentError, DeadlockError, Engine, EngineTimeout, current, fuzz, schedules
from vardag.engine.testing import audit

from .lending import Lent

SEEDS, REPEATS = 200, 20


@pytest.fixture(autouse=True)
def own_engine():
    with Engine(workers=2) as engine:
        yield engine
        audit(engine)


# ---- a user's program: it trains, counts and logs with functions of its own.  `bug` names the one that it has -------


class Program:
    """Steps of ``w += rate * gradient``, with statistics in functions of the user's."""

    def __init__(self, bug: str = "") -> None:
        self.bug = bug
        self.e = current()
        self.w, self.total, self.mean = nd.zeros((3,)), nd.zeros((3,)), nd.zeros((3,))
        self.alias = np.from_dlpack(Lent(self.total)) if "read" in bug else None  # its memory, past the engine
        self.seen = {"n": 0}
        self.rows: list[int] = []
        self.cache: dict[str, Any] = {}
        self.counted, self.logged = self.e.new_variable("counted"), self.e.new_variable("logged")

    def run(self) -> None:
        for step in range(1, 4):
            gradient = nd.array([step, 2 * step, 3 * step])
            self.w += gradient
            self.add(gradient)
            self.count()
            self.log(step)
        self.average()
        self.once()
        self.e.wait_for_all()

    def add(self, gradient: Any) -> None:
        def add(*memory):
            total, g = memory
            total += g

        if self.bug == "an update declared as a read":
            self.e.push(lambda g, _: add(self.alias, g), reads=[gradient, self.total])
        else:
            self.e.push(lambda g, total: add(total, g), reads=[gradient], updates=[self.total])

    def count(self) -> None:
        def count():
            n = self.seen["n"]
            self.seen["n"] = n + 1

        self.e.push(count, updates=[] if self.bug == "a counter without a variable" else [self.counted])

    def log(self, step: int) -> None:
        def log():
            self.rows.append(step)

        wrong = self.bug == "an order without a variable"
        self.e.push(log, **({"reads": [self.logged]} if wrong else {"updates": [self.logged]}))

    def average(self) -> None:
        def average(total, mean):
            mean[:] = total / 3

        if self.bug == "a read that is not declared":
            self.e.push(lambda mean: average(self.alias, mean), writes=[self.mean])
        else:
            self.e.push(average, reads=[self.total], writes=[self.mean])

    def once(self) -> None:
        made = self.cache.setdefault("made", [])
        filled = self.e.new_variable("filled")

        def fill():
            if "table" not in self.cache:
                made.append(1)
                self.cache["table"] = 1

        for _ in range(2):
            self.e.push(fill, updates=[] if self.bug == "check, then act" else [filled])

    def result(self) -> Any:
        arrays = [x.asnumpy().tolist() for x in (self.w, self.total, self.mean)]
        return arrays, self.seen["n"], self.rows, len(self.cache["made"])


RIGHT = [[6, 12, 18], [6, 12, 18], [2, 4, 6]], 3, [1, 2, 3], 1
BUGS = [
    "an update declared as a read",
    "a counter without a variable",
    "an order without a variable",
    "a read that is not declared",
    "check, then act",
]


def under(seed: int, bug: str) -> tuple[Any, list[str]]:
    with fuzz(seed) as schedule:
        program = Program(bug)
        program.run()
        result = program.result()
    return result, schedule.log


@pytest.mark.host("its function uses memory that it kept")
@pytest.mark.skipif(bool(os.environ.get("VARDAG_CHECK")), reason="the checker finds them first")
@pytest.mark.parametrize("bug", BUGS)
def test_it_finds_the_bug_and_repeats_it(bug):
    seed = next(seed for seed in range(SEEDS) if under(seed, bug)[0] != RIGHT)
    assert any(under(s, bug)[0] == RIGHT for s in range(SEEDS))  # it depends on the schedule
    first = under(seed, bug)
    assert first[0] != RIGHT
    for _ in range(REPEATS):
        assert under(seed, bug) == first


def test_it_finds_nothing_where_nothing_is():
    logs = set()
    for seed in range(SEEDS):
        result, log = under(seed, "")
        assert result == RIGHT, seed
        logs.add(tuple(log))
    assert len(logs) > SEEDS // 2  # the schedules differ


# ---- what is permuted ------------------------------------------------------------------------------------------------


def orders(seeds, push):
    found = set()
    for seed in seeds:
        out: list[int] = []
        with fuzz(seed):
            push(out)
            current().wait_for_all()
        found.add(tuple(out))
    return found


def test_ready_operations_come_in_every_order():
    assert len(orders(range(100), lambda out: [current().push(lambda i=i: out.append(i)) for i in range(3)])) == 6


def test_what_a_variable_orders_stays_in_order():
    def push(out):
        v = current().new_variable()
        for i in range(4):
            current().push(lambda i=i: out.append(i), updates=[v])

    assert orders(range(50), push) == {(0, 1, 2, 3)}


def test_reads_between_two_writes():
    def push(out):
        v = current().new_variable()
        current().push(lambda: out.append(0), writes=[v])
        for i in (1, 2):
            current().push(lambda i=i: out.append(i), reads=[v])
        current().push(lambda: out.append(3), writes=[v])

    assert orders(range(50), push) == {(0, 1, 2, 3), (0, 2, 1, 3)}


def test_lines_of_two_functions_mix():
    def push(out):
        def twice(name):
            out.append(name)
            out.append(name)

        current().push(lambda: twice(0))
        current().push(lambda: twice(1))

    found = orders(range(400), push)
    assert {(0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0), (1, 0, 0, 1)} <= found


def test_tiles_come_in_any_order_and_the_first_error_counts():
    from vardag.engine import Kind, Operation
    from vardag.engine.parallel import parallel

    found = set()
    for seed in range(20):
        done: list[int] = []

        def piece(i, done=done):
            done.append(i)
            if i in (1, 3):
                raise KeyError(i)

        op = Operation(Kind.KERNEL, lambda piece=piece: parallel(piece, range(5)))
        with fuzz(seed):
            current().admit(lambda op=op: (op, (), (), (), (), [], False))
            with pytest.raises(KeyError, match="1"):
                op.wait()
        found.add(tuple(done))
        assert 1 in done
    assert len(found) > 5


@pytest.mark.host("segments")
def test_large_segments_give_the_same_bytes():
    """They join, close and are tiled at random."""
    rng = np.random.default_rng(1)
    data = rng.standard_normal((400, 500)).astype(np.float32)
    wanted = None
    logs = ""
    for seed in range(12):
        with fuzz(seed) as schedule:
            x = nd.array(data)
            for _ in range(3):
                x = nd.exp(x * 0.5 + 1) - x
                x[3:200] += 1
            got = x.asnumpy()
        wanted = got if wanted is None else wanted
        np.testing.assert_array_equal(got, wanted)
        logs += "\n".join(schedule.log)
    assert "a segment closes" in logs


def test_gradients_are_the_same_under_any_schedule():
    for seed in range(20):
        with fuzz(seed):
            x = nd.array([1.0, 2.0, 3.0])
            x.attach_grad()
            with vd.autograd.record():
                y = (x * x).sum() + x.exp().sum()
            y.backward()
            np.testing.assert_allclose(x.grad.asnumpy(), 2 * np.arange(1, 4) + np.exp(np.arange(1, 4)), rtol=1e-6)


# ---- waits, locks and errors -----------------------------------------------------------------------------------------


def test_waits_within_operations():
    for seed in range(20):
        with fuzz(seed):

            def nest(n):
                if n:
                    current().push(lambda: nest(n - 1)).wait()

            current().push(lambda nest=nest: nest(20)).wait()


def test_a_wait_for_itself_is_found(own_engine):
    v = own_engine.new_variable()
    with fuzz(1):
        op = own_engine.push(lambda: own_engine.wait_for_var(v), updates=[v])
        with pytest.raises(DeadlockError):
            op.wait()


def test_a_lock_of_the_user_s_is_no_deadlock():
    for seed in range(3, 6):
        lock, seen = threading.Lock(), {"n": 0}

        def add(lock=lock, seen=seen):
            with lock:
                old = seen["n"]
                seen["n"] = old + 1

        with fuzz(seed):
            for _ in range(4):
                current().push(add)
            current().wait_for_all()
        assert seen["n"] == 4


def test_priorities_are_wishes():
    def push(out):
        gate = current().new_variable()
        current().push(lambda: None, writes=[gate])
        current().push(lambda: out.append("low"), reads=[gate], priority=-5)
        current().push(lambda: out.append("high"), reads=[gate], priority=5)

    assert orders(range(50), push) == {("low", "high"), ("high", "low")}


def test_the_first_thread_may_poll_for_an_operation(own_engine, monkeypatch):
    """It never comes to a turn, and does not stay at one place either."""
    monkeypatch.setattr(schedules, "ALONE", 0.05)
    logs = []
    for seed in range(8):
        with fuzz(seed) as f:
            op = current().push(lambda: None)
            end = time.monotonic() + 20
            while not op.done:
                assert time.monotonic() < end, "nobody ran it"
        logs += f.log
    assert "thread 0 is left behind" in logs


def test_the_first_thread_may_sleep_for_an_operation(own_engine):
    for seed in range(5):
        event = threading.Event()
        with fuzz(seed):
            own_engine.push(event.set)
            assert event.wait(30)


def test_a_timeout_is_a_timeout(own_engine):
    event = threading.Event()
    with fuzz(0):
        op = own_engine.push(lambda: event.wait(30))
        with pytest.raises(EngineTimeout):
            op.wait(timeout=0.05)
        event.set()
        op.wait()


def test_errors_arrive(own_engine):
    for seed in range(10):
        v = own_engine.new_variable()
        with fuzz(seed):
            own_engine.push(lambda: 1 / 0, writes=[v])
            own_engine.push(lambda: None, updates=[v])
            with pytest.raises(ZeroDivisionError):
                own_engine.wait_for_var(v)
    own_engine.wait_for_all()  # they have been seen


def test_threads_of_the_program(own_engine):
    for seed in range(5):
        v, out = own_engine.new_variable(), []

        def push(v=v, out=out):
            for _ in range(5):
                own_engine.push(lambda: out.append(1), updates=[v])

        with fuzz(seed):
            threads = [threading.Thread(target=push) for _ in range(3)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            own_engine.wait_for_all()
        assert len(out) == 15


# ---- the block -------------------------------------------------------------------------------------------------------


def test_afterwards_there_are_workers_again(own_engine):
    before = own_engine.inline
    with fuzz(4):
        own_engine.push(lambda: None)
    threads = set()
    own_engine.push(lambda: threads.add(threading.current_thread().name)).wait()
    assert {name.startswith("vardag-cpu") for name in threads} == {True}
    assert own_engine.inline is before


def test_an_exception_leaves_nothing_undone(own_engine):
    out = []
    with pytest.raises(KeyError), fuzz(5):
        own_engine.push(lambda: out.append(1))
        raise KeyError
    own_engine.wait_for_all()
    assert out == [1]


def test_engines_made_in_the_block_are_fuzzed_and_serial_ones_are_not():
    found = set()
    for seed in range(30):
        out: list[int] = []
        with fuzz(seed), Engine(workers=2) as e:
            for i in range(3):
                e.push(lambda i=i, out=out: out.append(i))
            e.wait_for_all()
        found.add(tuple(out))
        with fuzz(seed) as schedule, Engine("NaiveEngine") as e:
            e.push(lambda: None)
        assert not [line for line in schedule.log if "begins" in line]
    assert len(found) > 1


def test_what_is_refused(own_engine):
    with pytest.raises(TypeError, match="fuzz"):
        fuzz("1")  # type: ignore[arg-type]
    with fuzz(1) as schedule, pytest.raises(ArgumentError), fuzz(2):
        pass
    with pytest.raises(ArgumentError), schedule:
        pass

    def inside():
        with fuzz(1):
            pass

    with pytest.raises(ArgumentError):
        own_engine.push(inside).wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_has_workers(own_engine):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of every fork with threads
        out = []
        with fuzz(1):
            own_engine.push(lambda: None).wait()
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)
                own_engine.push(lambda: out.append(threading.current_thread().name)).wait(30)
                os._exit(0 if out[0].startswith("vardag-cpu") else 1)
            _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
