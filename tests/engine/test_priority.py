"""Priority with ageing: the urgent next, the old within a bound; also through the chain shortcut of a worker's turn."""

from __future__ import annotations

import pytest

from vardag.engine import Engine
from vardag.engine.ready import AGE_EVERY
from vardag.engine.testing import Gate, audit


@pytest.fixture(params=["ThreadedEnginePooled", "ThreadedEnginePerDevice"])
def engine(request):
    with Engine(request.param, workers=1) as e:
        yield e


def busy(engine: Engine) -> Gate:
    """The only worker, held."""
    gate = Gate()
    engine.push(gate)
    gate.wait_entered()
    return gate


def test_a_high_one_runs_next(engine):
    gate, out = busy(engine), []
    for i in range(1000):
        engine.push(lambda i=i: out.append(i))
    engine.push(lambda: out.append("high"), priority=1)
    gate.open()
    engine.waitall(60)
    assert out.index("high") <= 1  # or the one after, when age has its turn
    out.remove("high")
    assert out == list(range(1000))


def test_a_high_one_runs_next_whenever_it_comes(engine):
    """Pushed from the middle of low ones, again and again: next, or the one after."""
    gate, out = busy(engine), []

    def low(i):
        out.append(i)
        if i % 7 == 0:
            engine.push(lambda: out.append(-i), priority=3)

    for i in range(1, 1000):
        engine.push(lambda i=i: low(i))
    gate.open()
    engine.waitall(60)
    engine.waitall(60)
    assert len(out) == 999 + 142
    for i in range(7, 1000, 7):
        assert out.index(-i) - out.index(i) <= 2


@pytest.mark.parametrize("lows", [1, 5])
def test_a_low_one_among_endless_high_ones(engine, lows):
    """Each high one pushes another before it ends, so one is always ready; a low one with k older ones before it is
    picked within 64 (k + 1) picks.
    """
    gate, out, done = busy(engine), [], []

    def high():
        out.append("high")
        if len(done) < lows:
            engine.push(high, priority=9)

    def low(i):
        out.append(i)
        done.append(i)

    for i in range(lows):
        engine.push(lambda i=i: low(i))
    for _ in range(2):
        engine.push(high, priority=9)
    gate.open()
    engine.push(lambda: None, priority=-1)
    while len(done) < lows:
        engine.waitall(60)
    for k in range(lows):
        assert out.index(k) < AGE_EVERY * (k + 1)
    assert out.count("high") > (lows - 1) * (AGE_EVERY - 1)  # not at once, either
    audit(engine)


def test_a_low_one_beside_a_chain_of_high_ones(engine):
    """A chain's next operation is claimed in the commit that ends the one before: that must not starve others."""
    gate, out = busy(engine), []
    v = engine.new_variable()
    for i in range(3):
        engine.push(lambda i=i: out.append(i))
    for _ in range(1000):
        engine.push(lambda: out.append("link"), updates=[v], priority=2)
    gate.open()
    engine.waitall(60)
    assert [out.index(k) for k in range(3)] == sorted(out.index(k) for k in range(3))
    for k in range(3):
        assert out.index(k) < AGE_EVERY * (k + 1)
    assert out[:10].count("link") == 10
    audit(engine)


def test_a_high_one_beside_a_chain_of_low_ones(engine):
    gate, out = busy(engine), []
    v = engine.new_variable()

    def link(i):
        out.append(i)
        if i == 500:
            engine.push(lambda: out.append("high"), priority=1)

    for i in range(1000):
        engine.push(lambda i=i: link(i), updates=[v])
    gate.open()
    engine.waitall(60)
    engine.waitall(60)
    assert out.index("high") - out.index(500) <= 2


def test_what_age_keeps_does_not_pile_up(engine):
    """Stale entries of the queue by age go as operations are picked, and it is gone with the last of them."""
    gate = busy(engine)
    for i in range(2000):
        engine.push(lambda: None, priority=i % 5)
    gate.open()
    engine.waitall(60)
    done = engine.push(lambda: None)  # its worker has looked at the heap after those
    done.wait(60)
    assert engine._lane.aged is None or len(engine._lane.aged) <= 1
    assert engine._lane.mixed
    audit(engine)


def test_programs_without_priorities_keep_no_ages(engine):
    gate = busy(engine)
    for _ in range(500):
        engine.push(lambda: None)
    gate.open()
    engine.waitall(60)
    lane = engine._lane
    assert (lane.mixed, lane.aged, lane.picks) == (False, None, 0)
