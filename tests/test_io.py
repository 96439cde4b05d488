"""`vardag.io`: prefetching and batches."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import numpy as np
import pytest

import vardag as vd
from vardag import nd
from vardag.engine import ArgumentError, ArgumentTypeError, Engine, check, fuzz
from vardag.engine.testing import Gate

WAIT = 20.0


def test_in_order(engine_kind):
    assert list(vd.io.prefetch(range(100), depth=3)) == list(range(100))
    assert list(vd.io.prefetch([], depth=3)) == []


async def test_in_order_with_async_for(engine_kind):
    assert [x async for x in vd.io.prefetch(range(100), depth=3)] == list(range(100))

    async def source():
        for i in range(50):
            await asyncio.sleep(0)
            yield i

    assert [x async for x in vd.io.prefetch(source(), depth=4)] == list(range(50))


def test_it_runs_ahead_as_far_as_the_depth_and_no_farther():
    with Engine(workers=1) as e:
        taken = []

        def source():
            for i in range(100):
                taken.append(i)
                yield i

        it = vd.io.prefetch(source(), depth=3)
        e.waitall(WAIT)
        assert taken == [0, 1, 2]
        assert next(it) == 0
        e.waitall(WAIT)
        assert taken == [0, 1, 2, 3]
        assert threading.get_ident()
        it.close()


def test_items_are_made_while_the_consumer_does_something_else():
    with Engine(workers=1):
        gate = Gate()

        def source():
            yield 1
            gate()
            yield 2

        it = vd.io.prefetch(source(), depth=2)
        assert next(it) == 1
        gate.wait_entered()  # it is at the second one, and nobody has asked
        gate.open()
        assert list(it) == [2]


def test_break_closes(engine_kind):
    closed = []

    def source():
        try:
            yield from range(100)
        finally:
            closed.append(1)

    for x in vd.io.prefetch(source(), depth=3):
        if x == 5:
            break
    engine_kind.waitall(WAIT)
    gc.collect()
    assert closed == [1]
    with vd.io.prefetch(source(), depth=3) as it:
        assert next(it) == 0
    assert closed == [1, 1]
    assert list(it) == []
    it.close()


async def test_break_closes_with_async_for():
    closed = []

    async def source():
        try:
            for i in range(100):
                yield i
        finally:
            closed.append(1)

    async with vd.io.prefetch(source(), depth=3) as it:
        async for x in it:
            if x == 5:
                break
    assert closed == [1]
    assert [x async for x in it] == []


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_error_arrives_at_its_item(engine_kind, asynchronous):
    def source():
        yield 1
        yield 2
        raise KeyError("third")

    it = vd.io.prefetch(source(), depth=5)
    got = []
    with pytest.raises(KeyError, match="third") as found:
        if asynchronous:
            async for x in it:
                got.append(x)
        else:
            for x in it:
                got.append(x)
    assert got == [1, 2]
    assert found.value.__cause__ is not None
    assert list(it) == []


async def test_cancelling_who_asks_loses_no_item():
    with Engine(workers=1):
        gate = Gate()

        def source():
            gate()
            yield 1
            yield 2

        it = vd.io.prefetch(source(), depth=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(it)
        gate.open()
        assert [x async for x in it] == [1, 2]


def test_nothing_is_kept_of_a_dropped_one():
    class Item:
        pass

    with Engine(workers=1) as e:
        items = []

        def source():
            while True:
                item = Item()
                items.append(weakref.ref(item))
                yield item

        it = vd.io.prefetch(source(), depth=3)
        next(it)
        del it
        e.waitall(WAIT)
        gc.collect()
        assert not any(item() for item in items)
        assert len(items) <= 4


def test_bad_arguments():
    for depth in (0, -1, 1.5, None):
        with pytest.raises(ArgumentError, match="depth"):
            vd.io.prefetch([1], depth)
    with pytest.raises(ArgumentTypeError, match="int"):
        vd.io.prefetch(3)


# ==================================================================================================== batches
def values(batches) -> list[list[int]]:
    return [[int(v) for v in x.asnumpy()] for (x,) in batches]


def test_batches(engine_kind):
    x = nd.arange(7)
    assert values(vd.io.batches(x, 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert values(vd.io.batches(x, 3, last="discard")) == [[0, 1, 2], [3, 4, 5]]
    assert values(vd.io.batches(x, 3, last="pad")) == [[0, 1, 2], [3, 4, 5], [6, 0, 1]]
    assert values(vd.io.batches(nd.arange(2), 5, last="pad")) == [[0, 1, 0, 1, 0]]
    for last, n in (("keep", 3), ("discard", 2), ("pad", 3)):
        assert len(vd.io.batches(x, 3, last=last)) == n
    for (batch,) in vd.io.batches(x, 3):
        batch[:] = -1
    assert x.asnumpy().tolist() == list(range(7))


def test_shuffled_batches_depend_on_the_seed_and_the_epoch():
    images, labels = np.arange(40, dtype="float32").reshape(20, 2), np.arange(20, dtype="int64")

    def epochs(seed):
        b = vd.io.batches((images, labels), 6, shuffle=True, seed=seed)
        return [[(x.asnumpy().tolist(), y.asnumpy().tolist()) for x, y in b] for _ in range(2)]

    first, second = epochs(3)
    assert epochs(3) == [first, second]
    assert epochs(4) != [first, second]
    assert first != second
    for epoch in (first, second):
        assert sorted(label for _, ys in epoch for label in ys) == list(range(20))
        assert all(x == [2 * y, 2 * y + 1] for xs, ys in epoch for x, y in zip(xs, ys, strict=True))
    x, y = next(iter(vd.io.batches((images, labels), 6)))
    assert (x.dtype, y.dtype) == (np.float32, np.int64)


def test_a_dataset():
    d = vd.io.ArrayDataset(np.eye(3), [5, 6, 7])
    assert len(d) == 3
    assert d[-1][1].asnumpy().tolist() == [7]
    assert d[1:][1].asnumpy().tolist() == [6, 7]
    with pytest.raises(IndexError):
        d[3]
    with pytest.raises(ArgumentError, match="first axes"):
        vd.io.ArrayDataset(np.eye(3), [1, 2])
    with pytest.raises(ArgumentError):
        vd.io.ArrayDataset()
    for bad in ({"batch_size": 0}, {"batch_size": 2, "last": "roll"}):
        with pytest.raises(ArgumentError, match="batches"):
            vd.io.batches(d, **bad)


def test_batches_are_prefetched():
    x = np.arange(100, dtype="float32")
    total = 0.0
    for (batch,) in vd.io.prefetch(vd.io.batches(x, 8, shuffle=True, seed=1), depth=2):
        total += batch.sum().asscalar()
    assert total == x.sum()


def test_batches_have_the_values_of_the_beginning():
    """Under any schedule: a prefetcher comes to a batch sooner or later."""

    def program():
        x, seen = nd.zeros((4, 1)), []
        for (b,) in vd.io.prefetch(vd.io.batches(x, 1), depth=2):
            x += 1
            seen.append(b.asscalar())
        return seen

    for seed in range(20):
        with Engine(workers=2), fuzz(seed):
            assert program() == [0, 0, 0, 0], seed
    with Engine("NaiveEngine"):
        assert program() == [0, 0, 0, 0]


def test_an_iterator_is_not_held_to_declarations(engine_kind):
    """It cannot declare anything.  What it pushes can."""
    x, y = nd.ones((2,)), nd.zeros((2,))

    def source():
        try:
            yield x.asnumpy().sum()
            yield vd.engine.current().push(lambda a: y.asnumpy(), reads=[x], name="f")
        finally:
            y.asnumpy()

    with check() as c:
        with vd.io.prefetch(source(), depth=1) as items:
            assert next(items) == 2
            with pytest.raises(vd.engine.AccessError, match=r"\[f\] array float32"):
                next(items).wait()
        assert len(c.found) == 1
