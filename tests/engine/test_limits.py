"""Back-pressure: how far pushes run ahead, who is held and who never is, and how the bound gives way."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from vardag.engine import ArgumentError, Engine, Kind, Operation, Variable
from vardag.engine import limits as current_limits
from vardag.engine.checkpoints import audit
from vardag.engine.testing import Gate

PATIENCE = 30.0
LONG = float(os.environ.get("VARDAG_STRESS") or 0) > 0


class Clock:
    """A clock that somebody else moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Hurry:
    """A clock that is ten seconds further at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


def nothing() -> None:
    pass


def blocked(e: Engine, nbytes: int = 0) -> tuple[Variable, Gate]:
    """A variable that nobody gets past, until its gate is opened."""
    v, gate = e.new_variable(), Gate()
    e.push(gate, updates=[v], nbytes=nbytes)
    gate.wait_entered()
    return v, gate


class Pusher(threading.Thread):
    """A user's thread that does `work`, and says how far it came."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.error: BaseException | None = None
        self.work = work
        self.start()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        self.join(PATIENCE)
        assert not self.is_alive(), "it is still held"
        if self.error is not None:
            raise self.error


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does before it goes to sleep."""
    tick = threading.Event()
    for _ in range(int(PATIENCE * 1000)):
        if condition():
            return
        tick.wait(0.001)
    raise TimeoutError("it never came true")


def held(e: Engine, count: int = 1) -> None:
    """Wait until so many pushes are held."""
    until(lambda: len(e._room) == count)


# ---- the bounds -----------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    with Engine(workers=1) as e:
        now = e.limits()
        assert now.count == 2**17
        assert now.bytes is not None
        assert now.bytes > 2**20
        if hasattr(os, "sysconf"):
            assert now.bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
        assert e.statistics().limits == now


def test_set_return_and_put_back() -> None:
    with Engine(workers=1) as e:
        first = e.limits()
        assert e.limits(bytes=10) == first
        with e.limits(count=3) as old:
            assert (old.bytes, old.count) == (10, first.count)
            assert (e.limits().bytes, e.limits().count) == (10, 3)
        assert (e.limits().bytes, e.limits().count) == (10, first.count)
        with current_limits(bytes=None, count=None):
            assert (e.limits().bytes, e.limits().count) == (None, None)


@pytest.mark.parametrize("wrong", [{"bytes": -1}, {"bytes": 1.5}, {"count": 0}, {"count": "3"}, {"bytes": True}])
def test_wrong_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with Engine(workers=1) as e:
        before = e.limits()
        with pytest.raises(ArgumentError, match=r"\[limits\]"):
            e.limits(**wrong)
        assert e.limits() == before


@pytest.mark.parametrize(("bound", "nbytes"), [({"bytes": 1000}, 100), ({"count": 10}, 0)])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_hundred_thousand_large_updates_stay_within_the_bound(
    bound: dict[str, int], nbytes: int, threads: int, note: Any
) -> None:
    n = 100_000 // threads // (1 if threads == 1 or LONG else 10)
    most = [0] * threads
    with Engine(workers=2) as e:
        e.limits(**bound)

        def work(k: int) -> None:
            v = e.new_variable()
            for i in range(n):
                e.push(nothing, updates=[v], nbytes=nbytes)
                if i % 64 == 0:
                    most[k] = max(most[k], len(e._live) + len(e._inbox))

        pushers = [Pusher(lambda k=k: work(k)) for k in range(threads)]
        for p in pushers:
            p.finish()
        e.waitall()
        s = e.statistics()
        assert s.completed == threads * n
        assert s.peak_bytes <= bound.get("bytes", 0)
        assert s.held > 0
        assert s.by_worker > 0
        assert s.bytes == 0
        # A look at two lists while a drain moves up to 64 from one to the other may count those twice.
        assert max(most) <= 10 + 64 + threads
        audit(e)
        text = f"bound {bound}, {threads} threads: at most {s.peak_bytes} bytes in flight, {s.held} pushes held"
        note("limits", s.completed, threads * n, text)


def test_held_until_there_is_room() -> None:
    with Engine(workers=1) as e:
        e.limits(bytes=100)
        v, gate = blocked(e, 60)
        p = Pusher(lambda: e.push(nothing, updates=[v], nbytes=41))
        held(e)
        assert e.statistics().pending == 1
        gate.open()
        p.finish()
        e.waitall()
        assert e.statistics().held == 1
        assert e.statistics().peak_bytes <= 100


def test_what_fits_is_not_held() -> None:
    with Engine(workers=1) as e:
        e.limits(bytes=100, count=3)
        v, gate = blocked(e, 60)
        e.push(nothing, updates=[v], nbytes=40)
        e.push(nothing, updates=[v])
        assert e.statistics().held == 0
        gate.open()


def test_larger_than_the_bound_is_admitted_alone() -> None:
    with Engine(workers=1) as e:
        e.limits(bytes=100)
        v, gate = blocked(e)  # zero bytes in flight
        e.push(nothing, updates=[v], nbytes=10**6)
        p = Pusher(lambda: e.push(nothing, updates=[v], nbytes=10**6))
        held(e)
        small = Pusher(lambda: e.push(nothing, updates=[v], nbytes=1))
        held(e, 2)
        gate.open()
        p.finish()
        small.finish()
        e.waitall()
        assert e.statistics().peak_bytes == 10**6


def test_in_the_order_of_arrival() -> None:
    """A large one is not overtaken for ever by small ones that would fit."""
    with Engine(workers=1) as e:
        e.limits(bytes=100)
        v, gate = blocked(e, 50)
        ran: list[str] = []
        large = Pusher(lambda: e.push(lambda: ran.append("large"), updates=[v], nbytes=80))
        held(e)
        small = Pusher(lambda: e.push(lambda: ran.append("small"), updates=[v], nbytes=10))
        held(e, 2)
        assert e.statistics().pending == 1
        gate.open()
        large.finish()
        small.finish()
        e.waitall()
        assert ran == ["large", "small"]


def test_wider_bounds_let_go() -> None:
    with Engine(workers=1) as e:
        e.limits(count=1)
        v, gate = blocked(e)
        p = Pusher(lambda: e.push(nothing, updates=[v]))
        held(e)
        e.limits(count=2)
        p.finish()
        gate.open()


def test_a_finished_output_counts_while_it_is_read() -> None:
    """``a = big(x); slow += a``: `a` stays in memory until the second operation is done."""
    with Engine(workers=2) as e:
        slow, gate = blocked(e)
        a = e.new_variable()
        behind, start = blocked(e)
        made = e.push(nothing, reads=[behind], writes=[a], nbytes=100)
        e.push(nothing, reads=[a], updates=[slow])
        start.open()
        made.wait()
        assert e.statistics().bytes == 100
        gate.open()
        e.waitall()
        assert e.statistics().bytes == 0


# ---- who is never held ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [False, True], ids=["its own engine", "another"])
def test_an_operation_is_never_held(other: bool) -> None:
    with Engine(workers=1) as full, Engine(workers=1) as free:
        full.limits(bytes=10, count=1)
        e = free if other else full
        ran: list[int] = []

        def parent() -> None:
            for i in range(100):
                full.push(lambda i=i: ran.append(i), nbytes=100)

        gate = blocked(full)[1] if other else None
        e.push(parent).wait(PATIENCE)
        if gate is not None:
            gate.open()
        full.waitall(PATIENCE)
        assert sorted(ran) == list(range(100))
        assert full.statistics().held == 0


def test_an_async_operation_and_its_callback_are_never_held() -> None:
    with Engine(workers=1) as e:
        e.limits(bytes=10, count=1)
        v = e.new_variable()
        ran: list[int] = []

        def start(_: Any, on_complete: Callable[[], None]) -> None:
            for i in range(10):
                e.push(lambda i=i: ran.append(i), reads=[v], nbytes=100)
            on_complete()
            e.push(lambda: ran.append(10), reads=[v], nbytes=100)

        e.push_async(start, None, [], [v])
        e.waitall(PATIENCE)
        assert sorted(ran) == list(range(11))
        assert e.statistics().held == 0


def test_a_callback_on_a_foreign_thread_makes_the_bound_give_way(caplog: pytest.LogCaptureFixture) -> None:
    """Its thread pushes before it completes what everybody waits for: nobody can see that, so time has to tell."""
    with Engine(workers=1) as e:
        e.limits(count=1)
        e._clock = Hurry()
        v = e.new_variable()
        threads: list[Pusher] = []

        def start(_: Any, on_complete: Callable[[], None]) -> None:
            def work() -> None:
                e.push(nothing, updates=[v])
                on_complete()

            threads.append(Pusher(work))

        with caplog.at_level(logging.WARNING, logger="vardag"):
            e.push_async(start, None, [], [v])
            e.waitall(PATIENCE)
        threads[0].finish()
        assert e.statistics().gave_way == 1


def test_a_thread_with_an_event_loop_is_never_held() -> None:
    with Engine(workers=1) as e:
        e.limits(bytes=10, count=1)
        v, gate = blocked(e)

        async def main() -> None:
            for _ in range(10):
                e.push(nothing, updates=[v], nbytes=100)

        asyncio.run(main())
        assert e.statistics().pending == 11
        assert e.statistics().held == 0
        gate.open()


class Finalized:
    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action
        self.me = self  # only a collection frees it

    def __del__(self) -> None:
        self.action()


def test_a_finalizer_inside_a_section_is_never_held() -> None:
    with Engine(workers=1) as e:
        e.limits(count=1)
        v, gate = blocked(e)
        inside: list[bool] = []

        def push() -> None:
            e.push(nothing, updates=[v])
            inside.append(e._P._is_owned())

        def plan() -> Any:
            if not inside:
                Finalized(push)
                gc.collect()
            return None, (), (), (), (), [], False

        e.admit(plan)
        assert inside
        assert set(inside) == {True}
        assert e.statistics().held == 0
        gate.open()


def test_a_finalizer_inside_a_kernel_that_is_helped_with_is_never_held() -> None:
    """What is held would wait for the kernel below it on its own stack."""
    with Engine(workers=1) as e:
        v, gate = blocked(e)
        ran: list[str] = []

        def prepare() -> Any:
            Finalized(lambda: e.push(lambda: ran.append("pushed")))
            gc.collect()
            return [(list.append, ran, "kernel")]

        op = Operation(Kind.ATOMIC, prepare, "helped")
        e.admit(lambda: (op, (), (), (), (), [], False))
        e.limits(count=1)
        e.wait_op(op, PATIENCE)
        gate.open()
        e.waitall()
        assert ran == ["kernel", "pushed"]
        assert e.statistics().held == 0
        assert e.statistics().by_helper == 1
        assert v.version == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no signal can be sent to a thread")
def test_a_signal_handler_of_a_held_push_is_never_held() -> None:
    with Engine(workers=1) as e:
        e.limits(count=1)
        v, gate = blocked(e)
        seen: list[int] = []

        def handler(*_: object) -> None:
            e.push(nothing, updates=[v])
            seen.append(len(e._room))
            gate.open()

        old = signal.signal(signal.SIGUSR1, handler)
        try:
            me = threading.get_ident()
            p = Pusher(lambda: (held(e), signal.pthread_kill(me, signal.SIGUSR1)))
            e.push(nothing, updates=[v])
            p.finish()
        finally:
            signal.signal(signal.SIGUSR1, old)
        assert seen == [1]
        assert e.statistics().held == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no signal can be sent to a thread")
def test_a_held_push_can_be_interrupted() -> None:
    with Engine(workers=1) as e:
        e.limits(count=1)
        v, gate = blocked(e)
        ran: list[int] = []
        me = threading.get_ident()
        p = Pusher(lambda: (held(e), signal.pthread_kill(me, signal.SIGINT)))
        with pytest.raises(KeyboardInterrupt):
            e.push(lambda: ran.append(1), updates=[v])
        p.finish()
        assert not e._room
        gate.open()
        e.waitall()
        assert not ran
        audit(e)


def test_the_serial_engine_never_holds() -> None:
    with Engine("NaiveEngine") as e:
        e.limits(bytes=1, count=1)
        v = e.new_variable()
        ran: list[int] = []

        def parent() -> None:
            for i in range(10):
                e.push(lambda i=i: ran.append(i), updates=[v], nbytes=10)

        e.push(parent, nbytes=100)
        e.waitall()
        assert ran == list(range(10))
        assert e.statistics().held == 0


def test_a_held_thread_runs_ready_kernels_and_nothing_else() -> None:
    """The only worker is inside a gate: a kernel that holds the bytes is run by the thread that wants them."""
    with Engine(workers=1) as e:
        e.limits(bytes=100)
        _, gate = blocked(e)
        ran: list[int] = []
        user = e.push(lambda: ran.append(threading.get_ident()), nbytes=10)
        kernel = Operation(Kind.ATOMIC, lambda: [(list.append, ran, 0)], "kernel", nbytes=90)
        e.admit(lambda: (kernel, (), (), (), (), [], False))
        e.push(nothing, nbytes=50)
        assert kernel.done
        assert not user.done
        assert ran == [0]
        assert e.statistics().held == 1
        gate.open()


# ---- giving way -----------------------------------------------------------------------------------------------------


def test_the_bound_gives_way_once_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """The pusher would open the gate afterwards; it is held, and nothing else can open it."""
    with Engine(workers=1) as e:
        e.limits(count=2)
        e._clock = Hurry()
        v, gate = blocked(e)
        e.push(nothing, updates=[v], name="second")
        with caplog.at_level(logging.WARNING, logger="vardag"):
            for _ in range(100):
                e.push(nothing, updates=[v])
        assert len(caplog.records) == 1
        text = caplog.text
        assert "[second]" in text
        assert "after " in text
        assert "running" in text
        assert "test_limits.py" in text
        assert e.statistics().gave_way == 1
        assert e.statistics().held == 1
        gate.open()
        e.waitall()
        _, gate = blocked(e)  # something ended since: the bound holds again
        with caplog.at_level(logging.WARNING, logger="vardag"):
            e.push(nothing)
            e.push(nothing)
        assert e.statistics().gave_way == 2
        gate.open()


def test_it_does_not_give_way_before_its_time() -> None:
    with Engine(workers=1) as e:
        e.limits(count=1)
        clock = Clock()
        looks: list[float] = []

        def look() -> float:
            looks.append(clock.now)
            return clock.now

        e._clock = look
        v, gate = blocked(e)
        p = Pusher(lambda: e.push(nothing, updates=[v]))
        held(e)
        clock.now = 9.9
        seen = len(looks)
        until(lambda: len(looks) > seen + 2)
        assert e.statistics().gave_way == 0
        assert p.is_alive()
        gate.open()
        p.finish()


def test_it_does_not_give_way_while_a_kernel_runs() -> None:
    """The library's own kernels end by themselves."""
    with Engine(workers=1) as e:
        e.limits(count=1)
        hurry = Hurry()
        e._clock = hurry
        gate = Gate()
        op = Operation(Kind.KERNEL, gate, "long")
        e.admit(lambda: (op, (), (), (), (), [], False))
        gate.wait_entered()
        p = Pusher(lambda: e.push(nothing))
        held(e)
        before = hurry.now
        until(lambda: hurry.now > before + 30)
        assert e.statistics().gave_way == 0
        gate.open()
        p.finish()


def test_a_thread_that_died_while_held_holds_nobody_else() -> None:
    """Its entry may stay behind, when a second interrupt comes during the first one's way out; its lock does not."""
    with Engine(workers=1) as e:
        from vardag.engine.limits import Held

        e.limits(count=1)
        e._room = (Held(0, 0, 0.0),)
        v, gate = blocked(e)
        p = Pusher(lambda: e.push(nothing, updates=[v]))
        held(e)
        gate.open()
        p.finish()
        e.waitall()
        assert not e._room


def test_stop_ends_a_held_push() -> None:
    from vardag.engine import EngineClosed

    e = Engine(workers=1)
    e.limits(count=1)
    v, gate = blocked(e)
    p = Pusher(lambda: e.push(nothing, updates=[v]))
    held(e)
    stopper = Pusher(e.stop)
    until(lambda: e.stopped)
    gate.open()
    stopper.finish()
    with pytest.raises(EngineClosed):
        p.finish()
