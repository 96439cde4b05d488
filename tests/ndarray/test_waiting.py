"""Waiting for arrays: snapshots, timeouts, poison, healing, and what one thread sees of another's writes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.engine import Engine
from vardag.engine.testing import Gate


class Broken(Exception):
    """What the failing functions of these tests raise."""


def fail(*_: Any) -> None:
    raise Broken("on purpose")


@pytest.fixture(params=["ThreadedEnginePerDevice", "ThreadedEnginePooled"])
def threaded(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(kind=request.param, workers=2) as engine:
        yield engine


def blocked(engine: Engine, *arrays: Any) -> Gate:
    """A gate that these arrays' next users wait for."""
    gate = Gate()
    engine.push(gate, updates=[a.var for a in arrays], name="gate")
    gate.wait_entered()
    return gate


# ---- pushing does not wait, waiting does -----------------------------------------------------------------------------


def test_metadata_and_pushes_do_not_wait(threaded: Engine) -> None:
    x = nd.ones((2, 3))
    gate = blocked(threaded, x)
    y = ((x + 1) * x)[0].reshape((3, 1))
    assert (y.shape, y.dtype, y.size, y.context) == ((3, 1), np.float32, 3, vd.current_context())
    x[:] = 5
    x += 1
    assert threaded.statistics().pending > 0, "nothing ran yet"
    gate.open()
    assert y.asnumpy().ravel().tolist() == [2, 2, 2]
    assert x.asnumpy().ravel().tolist() == [6] * 6


@pytest.mark.parametrize("wait", ["wait_to_read", "asnumpy", "wait_to_write"])
def test_timeouts(threaded: Engine, wait: str) -> None:
    x = nd.ones((3,))
    gate = blocked(threaded, x)
    y = x + 1
    target = x if wait == "wait_to_write" else y
    with pytest.raises(TimeoutError) as caught:
        getattr(target, wait)(timeout=0.01)
    assert isinstance(caught.value, vd.engine.EngineTimeout) and isinstance(caught.value, vd.Error)
    assert "gate" in str(caught.value), "the text says what blocks"
    gate.open()
    getattr(target, wait)(timeout=30)
    assert y.asnumpy().tolist() == [2, 2, 2]


def test_waitall_with_a_timeout(threaded: Engine) -> None:
    x = nd.ones((3,))
    gate = blocked(threaded, x)
    with pytest.raises(TimeoutError):
        nd.waitall(timeout=0.01)
    gate.open()
    nd.waitall(timeout=30)


def test_a_wait_is_for_the_version_at_its_time(threaded: Engine) -> None:
    """Reading x does not wait for what is pushed to it later, nor for its other readers."""
    x, other = nd.ones((3,)), nd.ones((3,))
    gate = blocked(threaded, other)
    reader = x + other
    assert x.asnumpy(timeout=30).tolist() == [1, 1, 1], "waited for a reader"
    gate.open()
    reader.wait_to_read()


# ---- snapshots -------------------------------------------------------------------------------------------------------


def test_asnumpy_is_a_snapshot_of_its_own(engine_kind: Engine) -> None:
    x = nd.array([1, 2, 3])
    a, b = x.asnumpy(), x.asnumpy()
    a[0] = 9
    x += 1
    assert (a.tolist(), b.tolist(), x.asnumpy().tolist()) == ([9, 2, 3], [1, 2, 3], [2, 3, 4])
    assert a.flags.owndata and a.flags.writeable and a.flags.c_contiguous


def test_a_snapshot_is_taken_before_later_writes(threaded: Engine) -> None:
    """The reading thread has asked; a write pushed meanwhile, in place or not, does not show."""
    for write in (lambda x: x.__setitem__(slice(None), 7), lambda x: x.__setitem__(0, 7), lambda x: x.__iadd__(6)):
        x = nd.ones((4,))
        gate = blocked(threaded, x)
        found: list[Any] = []
        asked = threading.Event()

        class Watched(type(x)):  # type: ignore[misc]
            __slots__ = ()

            def _hold(self) -> Any:
                held = super()._hold()
                asked.set()  # noqa: B023
                return held

        view = Watched._over(x._chunk, x._shape)
        reader = threading.Thread(target=lambda: found.append(view.asnumpy()))  # noqa: B023
        reader.start()
        assert asked.wait(30)
        write(x)
        gate.open()
        reader.join(30)
        assert found[0].tolist() == [1, 1, 1, 1]


def test_no_reader_sees_half_of_a_write() -> None:
    """One thread writes whole versions, in place and by rename; another reads: every snapshot is one version."""
    with Engine(workers=2):
        x = nd.zeros((20_000,))
        stop = threading.Event()
        torn: list[str] = []
        seen = set()

        def read() -> None:
            while not stop.is_set():
                raw = x.asnumpy()
                if raw.min() != raw.max():
                    torn.append(f"{raw.min()} and {raw.max()}")
                seen.add(float(raw[0]))

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for i in range(300):
            if i % 3 == 0:
                x[:] = i
            else:
                x += 1
        x.wait_to_read()
        stop.set()
        for reader in readers:
            reader.join(30)
        assert not torn
        assert seen, "nobody read"


def test_two_threads_update_one_array() -> None:
    """Updates of one array are ordered whoever pushes them: none is lost."""
    with Engine(workers=2):
        x, n = nd.zeros((8,)), 200
        threads = [threading.Thread(target=lambda: [x.__iadd__(1) for _ in range(n)]) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(30)
        assert x.asnumpy().tolist() == [4 * n] * 8


# ---- errors live on data ---------------------------------------------------------------------------------------------


def poisoned(engine: Engine, shape: tuple[int, ...] = (3,)) -> Any:
    x = nd.ones(shape)
    x.wait_to_read()
    engine.push(fail, updates=[x.var], name="failing")
    return x


@pytest.mark.parametrize("wait", ["wait_to_read", "asnumpy", "item", "asscalar", "tolist"])
def test_poison_is_raised_by_every_wait_every_time(engine_kind: Engine, wait: str) -> None:
    x = poisoned(engine_kind, (1,))
    for _ in range(3):
        with pytest.raises(Broken, match="on purpose") as caught:
            getattr(x, wait)()
        assert isinstance(caught.value, vd.engine.OperatorError)
        assert isinstance(caught.value.__cause__, Broken)
        notes = "\n".join(caught.value.__notes__)
        assert "failing" in notes and "test_waiting.py" in notes


def test_poison_spreads_to_what_depends_on_it_and_nowhere_else(engine_kind: Engine) -> None:
    x, clean = poisoned(engine_kind), nd.ones((3,))
    derived = [x + clean, nd.exp(x), x[1:], x.reshape((3, 1)), x.copy(), nd.concat(clean, x, dim=0), x.T]
    clean += 1
    target = nd.zeros((3,))
    target[0:1] = x[0:1]
    for y in (*derived, target):
        with pytest.raises(Broken):
            y.asnumpy()
    assert clean.asnumpy().tolist() == [2, 2, 2]
    assert (clean * 2).asnumpy().tolist() == [4, 4, 4]


def test_the_first_root_wins(engine_kind: Engine) -> None:
    def second() -> None:
        raise ValueError("pushed later")

    x, y = poisoned(engine_kind), nd.ones((3,))
    engine_kind.push(second, updates=[y.var])
    for z in (x + y, y + x):
        with pytest.raises(Broken):
            z.asnumpy()
    with pytest.raises(ValueError, match="pushed later"):
        y.asnumpy()


def test_a_full_overwrite_heals(engine_kind: Engine) -> None:
    x = poisoned(engine_kind)
    with pytest.raises(Broken):
        x.asnumpy()
    x += 1  # an update reads: no healing
    with pytest.raises(Broken):
        x.asnumpy()
    x[0] = 5  # part of it: no healing
    with pytest.raises(Broken):
        x.asnumpy()
    x[:] = 4
    assert x.asnumpy().tolist() == [4, 4, 4]
    nd.exp(nd.zeros((3,)), out=x)
    assert x.asnumpy().tolist() == [1, 1, 1]


def test_reading_and_writing_what_is_poisoned_does_not_heal(engine_kind: Engine) -> None:
    """Rule 1.1: ``op(w, out=w)`` reads w."""
    x = poisoned(engine_kind)
    nd.exp(x, out=x)
    with pytest.raises(Broken):
        x.asnumpy()


def test_waitall_raises_what_nobody_has_seen(engine_kind: Engine) -> None:
    x = poisoned(engine_kind)
    with pytest.raises(ExceptionGroup) as caught:
        nd.waitall()
    assert isinstance(caught.value, vd.Error)
    assert [type(e.__cause__) for e in caught.value.exceptions] == [Broken]
    with pytest.raises(Broken):
        x.asnumpy()
    nd.waitall()


def test_the_engine_survives(engine_kind: Engine) -> None:
    for _ in range(20):
        with pytest.raises(Broken):
            poisoned(engine_kind).wait_to_read()
    assert (nd.ones((3,)) + 1).asnumpy().tolist() == [2, 2, 2]


def test_a_lazy_copy_of_poison_is_poisoned_and_heals_alone(engine_kind: Engine) -> None:
    x = poisoned(engine_kind)
    y = x.copy()
    y[:] = 1
    assert y.asnumpy().tolist() == [1, 1, 1]
    with pytest.raises(Broken):
        x.asnumpy()


def test_backward_through_poison_raises_and_leaves_the_rest(engine_kind: Engine) -> None:
    x, w = nd.ones((3,)), nd.ones((3,))
    w.attach_grad()
    with autograd.record():
        y = x * w
    engine_kind.push(fail, updates=[y.var])
    y.backward()  # the gradient needs x, which is well
    assert w.grad.asnumpy().tolist() == [1, 1, 1]
    with pytest.raises(Broken):
        y.asnumpy()
    with autograd.record():
        z = poisoned(engine_kind) * w
    with pytest.raises(Broken):
        z.backward()
    with pytest.raises(Broken):
        w.grad.asnumpy()
    w.grad[:] = 0
    assert w.asnumpy().tolist() == [1, 1, 1]


def test_user_functions_get_the_arrays_memory(engine_kind: Engine) -> None:
    x, y = nd.array([1, 2, 3]), nd.zeros((3,))

    def double(source: np.ndarray, target: np.ndarray) -> None:
        np.multiply(source, 2, out=target)

    engine_kind.push(double, reads=[x], writes=[y])
    assert y.asnumpy().tolist() == [2, 4, 6]
    engine_kind.push(lambda raw: raw.__iadd__(1), updates=[y[1:]])
    assert y.asnumpy().tolist() == [2, 5, 7]


def test_waiting_in_a_task_does_not_lose_the_engine() -> None:
    async def total() -> list[float]:
        async def one(i: int) -> float:
            x = nd.ones((3,)) * i
            await asyncio.sleep(0)
            return float(x.asnumpy()[0])

        return list(await asyncio.gather(*(one(i) for i in range(5))))

    assert asyncio.run(total()) == [0, 1, 2, 3, 4]
