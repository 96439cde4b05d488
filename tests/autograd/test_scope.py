"""Recording scopes: nesting, what each block says, threads and tasks, the plain setters."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.autograd import (
    is_recording,
    is_training,
    pause,
    predict_mode,
    record,
    set_recording,
    set_training,
    train_mode,
)


def state() -> tuple[bool, bool]:
    return is_recording(), is_training()


@pytest.fixture(autouse=True)
def outside_is_idle() -> Any:
    assert state() == (False, False)
    yield
    assert state() == (False, False)


def test_what_each_block_says() -> None:
    with record():
        assert state() == (True, True)
        with predict_mode():
            assert state() == (True, False)
        with pause():
            assert state() == (False, False)
            with train_mode():
                assert state() == (False, True)
            with record(train_mode=False):
                assert state() == (True, False)
            assert state() == (False, False)
        with pause(train_mode=True):
            assert state() == (False, True)
        assert state() == (True, True)
    with record(train_mode=False):
        assert state() == (True, False)
    with train_mode():
        assert state() == (False, True)


def test_an_exception_ends_the_block() -> None:
    with pytest.raises(KeyError), record(), pause(), record(train_mode=False):
        raise KeyError
    assert state() == (False, False)


def test_a_block_may_be_entered_again_and_within_itself() -> None:
    block = record()
    for _ in range(2):
        with block:
            with block:
                assert is_recording()
            assert is_recording()
        assert not is_recording()


def test_setters_give_what_was_before() -> None:
    assert set_recording(True) is False
    assert set_recording(True) is True
    assert set_training(True) is False
    assert set_training(False) is True
    assert set_recording(False) is True
    assert set_recording(False) is False


def test_setters_inside_a_block_last_until_its_end() -> None:
    with record():
        assert set_recording(False) is True
        assert not is_recording()
        set_training(False)
    assert state() == (False, False)


def test_only_what_was_recorded_is_on_the_tape() -> None:
    x = nd.array([1, 2, 3])
    x.attach_grad()
    with record():
        y = x * 2
        with pause():
            z = y * 100
        w = y + z
    w.backward()
    assert x.grad.asnumpy().tolist() == [2, 2, 2]
    with pytest.raises(vd.Error):
        z.backward()


def test_backward_may_be_called_anywhere() -> None:
    x = nd.array([1, 2, 3])
    x.attach_grad()
    for block in (record, pause, train_mode, predict_mode):
        with record():
            y = x * x
        with block():
            before = state()
            y.backward()
            assert state() == before
        assert x.grad.asnumpy().tolist() == [2, 4, 6]
        x.zero_grad()


def test_backward_runs_in_the_mode_it_is_given() -> None:
    seen = []

    class Watching(autograd.Function):
        def forward(self, x: Any) -> Any:
            return x * 1

        def backward(self, dy: Any) -> Any:
            seen.append(state())
            return dy

    x = nd.array([1, 2, 3])
    x.attach_grad()
    for mode in (True, False):
        with record():
            y = Watching()(x)
        y.backward(train_mode=mode)
    assert seen == [(False, True), (False, False)]


def test_every_thread_has_its_own() -> None:
    """Two threads record at once, a third does not; each backward finds its own graph."""
    barrier = threading.Barrier(3, timeout=30)
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        x = nd.array([1, 2, 3]) * (i + 1)
        x.attach_grad()
        before = state()
        if i < 2:
            with record(train_mode=bool(i)):
                barrier.wait()
                inside = state()
                y = x * x
                barrier.wait()
            y.backward()
            found[i] = before, inside, x.grad.asnumpy().tolist()
        else:
            barrier.wait()
            inside = state()
            y = x * x
            barrier.wait()
            found[i] = before, inside, y.asnumpy().tolist()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    with record():  # a new thread does not inherit it
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
    idle = (False, False)
    assert found == {
        0: (idle, (True, False), [2, 4, 6]),
        1: (idle, (True, True), [4, 8, 12]),
        2: (idle, idle, [9, 36, 81]),
    }


def test_every_task_has_its_own() -> None:
    async def main() -> list[Any]:
        turn = [asyncio.Event() for _ in range(2)]

        async def recording() -> list[float]:
            x = nd.array([1, 2, 3])
            x.attach_grad()
            with record():
                y = x * x
                turn[0].set()
                await turn[1].wait()
                y = y * 10
            y.backward()
            return list(x.grad.asnumpy().tolist())

        async def idle() -> tuple[bool, bool]:
            await turn[0].wait()
            found = state()
            with pause():
                await asyncio.sleep(0)
            turn[1].set()
            return found

        return list(await asyncio.gather(recording(), idle()))

    assert asyncio.run(main()) == [[20, 40, 60], (False, False)]


def test_a_users_function_on_a_worker_is_not_recorded(engine_kind: Any) -> None:
    """It starts paused, whatever the scope of the thread that pushed it or that runs it."""
    seen = []
    v = engine_kind.new_variable()
    with record():
        engine_kind.push(lambda: seen.append(state()), updates=[v])
        engine_kind.wait_for_var(v)
        assert state() == (True, True)
    assert seen == [(False, False)]


def test_two_threads_share_leaves() -> None:
    """Graphs of several threads over one marked array, gradients added."""
    x = nd.array([1, 2, 3])
    x.attach_grad("add")

    def work() -> None:
        for _ in range(20):
            with record():
                y = x * x
            y.backward()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert x.grad.asnumpy().tolist() == [60 * 2, 60 * 4, 60 * 6]


# ---- async with ------------------------------------------------------------------------------------------------------


async def test_async_blocks_say_what_blocks_say() -> None:
    async with record():
        assert state() == (True, True)
        async with predict_mode():
            assert state() == (True, False)
            await asyncio.sleep(0)
            assert state() == (True, False)
        async with pause():
            assert state() == (False, False)
            async with train_mode(), record(train_mode=False):
                assert state() == (True, False)
        assert state() == (True, True)
    with pytest.raises(KeyError):
        async with record():
            raise KeyError


async def test_async_blocks_of_tasks_that_take_turns() -> None:
    """Each task enters and leaves while the others are inside; every gradient is its own."""
    block = record()  # one block for all

    async def work(k: int) -> list[float]:
        x = nd.array([1, 2, 3])
        x.attach_grad()
        y = x
        async with block:
            for _ in range(k):
                await asyncio.sleep(0)
                assert state() == (True, True)
                y = y * 2
        assert state() == (False, False)
        await asyncio.sleep(0)
        y.backward()
        return list(x.grad.asnumpy().tolist())

    found = await asyncio.gather(*(work(k) for k in (5, 1, 3, 2, 8)))
    assert found == [[float(2**k)] * 3 for k in (5, 1, 3, 2, 8)]


async def test_setters_and_transforms_stay_in_their_task() -> None:
    turn = asyncio.Event()

    async def setting() -> None:
        set_recording(True)
        set_training(True)
        await turn.wait()
        assert state() == (True, True)
        set_recording(False)

    async def other() -> None:
        await asyncio.sleep(0)
        assert state() == (False, False)
        gradient = autograd.value_and_grad(lambda x: x * x)(nd.array([3]))[1]
        turn.set()
        assert gradient.asscalar() == 6 and state() == (False, False)

    await asyncio.gather(setting(), other())


async def test_a_block_is_left_by_whoever_entered_it() -> None:
    block = record()

    async def enter() -> None:
        await block.__aenter__()

    await asyncio.create_task(enter())
    assert not is_recording()
    with pytest.raises(vd.engine.ArgumentError, match="is left in the thread or task that entered it"):
        await block.__aexit__(None, None, None)


async def test_a_cancelled_task_leaves_its_block() -> None:
    entered = asyncio.Event()
    states = []

    async def work() -> None:
        try:
            async with record():
                entered.set()
                await asyncio.Event().wait()
        finally:
            states.append(state())

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert states == [(False, False)]
