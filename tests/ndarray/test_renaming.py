"""A whole write of an array whose readers are pending goes ahead of them, into a new buffer.

How often depends on the schedule; bytes, errors, versions and gradients never do.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import Engine
from vardag.engine.testing import Gate
from vardag.ndarray import buffer

N = 2048  # float32 elements: two pages


def gated(e: Engine, gate: Gate) -> Any:
    """An array of zeros that is ready only when the gate is open."""
    z = nd.zeros((N,))
    e.push(gate, updates=[z.var])
    gate.wait_entered()
    return z


def overtaking() -> int:
    return nd.statistics().overtaking


@pytest.fixture(params=[False, True], ids=["queued", "inline"])
def e(request: pytest.FixtureRequest) -> Any:
    with Engine(workers=2, inline=request.param) as engine:
        yield engine


def test_a_whole_write_overtakes_a_reader(e: Engine) -> None:
    x = nd.ones((N,))
    gate = Gate()
    y = x + gated(e, gate)
    before, version = overtaking(), x.version
    x[:] = 5
    assert x.asnumpy(timeout=60)[0] == 5, "the writer has run"
    assert not y._chunk.buffer.variable.writer.done, "and the reader has not"
    assert overtaking() == before + 1 and x.version == version + 1
    gate.open()
    assert y.asnumpy().tolist() == [1] * N, "the reader has seen the old bytes"


def test_a_whole_write_overtakes_a_writer(e: Engine) -> None:
    gate = Gate()
    z = gated(e, gate)
    x = nd.ones((N,))
    nd.elemwise_add(z, z, out=x)
    y = x * 2
    nd.zeros((N,)).copyto(x)
    x += 3
    assert x.asnumpy(timeout=60)[0] == 3
    gate.open()
    assert y.asnumpy()[0] == 0


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.__setitem__(slice(1, None), 5),  # a part
        lambda x: x[2:].__iadd__(1),
        lambda x: x.__iadd__(1),  # reads what it writes
        lambda x: nd.sgd_update(x, x.copy() * 1, lr=0.1, out=x),
        lambda x: (x.var, x.__setitem__(slice(None), 5)),  # the user may order by its variable
    ],
)
def test_what_does_not_overtake(write: Callable[[Any], Any]) -> None:
    with Engine(workers=2) as e:
        x = nd.ones((N,))
        gate = Gate()
        y = x + gated(e, gate)
        old, before = x._chunk.buffer, overtaking()
        write(x)
        assert overtaking() == before
        assert x._chunk.buffer is old or nd.statistics().renames
        gate.open()
        assert y.asnumpy()[0] == 1
        assert np.isfinite(x.asnumpy()).all()


def test_a_small_array_waits() -> None:
    with Engine(workers=2) as e:
        x = nd.ones((4,))
        gate = Gate()
        y = x + gated(e, gate)[:4]
        before = overtaking()
        x[:] = 5
        assert overtaking() == before
        gate.open()
        assert (x + y).asnumpy().tolist() == [6] * 4


def test_the_bound_holds() -> None:
    """A loop of whole writes with a slow reader makes no more versions than back-pressure allows; nobody is held."""
    with Engine(workers=2, inline=False) as e:
        x = nd.ones((N,))
        nd.waitall()
        gate = Gate()
        z = gated(e, gate)
        e.limits(bytes=20 * N * 4)
        ys = []
        before = overtaking()
        for i in range(4):
            ys.append(x + z)
            x[:] = i
        some = overtaking() - before
        assert 1 <= some <= 4
        assert e.statistics().peak_bytes <= 20 * N * 4
        e.limits(bytes=e.statistics().bytes + 2 * N * 4)
        x[:] = 7
        assert overtaking() - before == some, "near the bound it waits its turn"
        gate.open()
        assert [y.asnumpy()[0] for y in ys] == [1, 0, 1, 2]
        assert x.asnumpy()[0] == 7


def test_an_error_stays_with_its_readers_and_the_write_heals(e: Engine) -> None:
    gate = Gate()
    z = gated(e, gate)
    bad = nd.zeros((N,))

    def fail() -> None:
        raise ValueError("spoiled")

    e.push(fail, reads=[z.var], updates=[bad.var])
    x = nd.zeros((N,))
    nd.elemwise_add(bad, bad, out=x)
    y = x + 1
    x[:] = 2
    assert x.asnumpy(timeout=60)[0] == 2
    gate.open()
    for a in (y, bad):
        with pytest.raises(ValueError, match="spoiled"):
            a.asnumpy()
    assert x.asnumpy()[0] == 2


def test_batches_overlap(e: Engine) -> None:
    """``x[:] = batch; y = net(x)``: the next batch is there while the network still works on the last one."""
    x = nd.zeros((N,))
    nd.waitall()
    gate = Gate()
    w = gated(e, gate)
    results = []
    for i in range(3):
        x[:] = nd.array(np.full(N, i, np.float32))
        results.append(x + w)
    assert x.asnumpy(timeout=60)[0] == 2
    gate.open()
    assert [r.asnumpy()[0] for r in results] == [0, 1, 2]


# ---- random programs ------------------------------------------------------------------------------------------------


def program(seed: int) -> list[Any]:
    """Whole and partial writes, views, recorded arithmetic and gradients."""
    r = Random(seed)
    xs = [nd.array(np.full(N, i + 1, np.float32)) for i in range(4)]
    xs[0].attach_grad()
    read: list[Any] = []
    for _ in range(25):
        a, b, c = (r.choice(xs[1:]) for _ in range(3))
        kind = r.randrange(8)
        if kind == 0:
            a[:] = r.randint(0, 9)
        elif kind == 1 and a is not b and a is not c:
            nd.elemwise_add(b, c, out=a)
        elif kind == 2:
            a[r.randrange(N) :] = b[:1]
        elif kind == 3:
            read.append(a * 0.5 + b)
        elif kind == 4:
            view = a[10:20]
            a[:] = b * 0.25
            read.append(view + 1)
        elif kind == 5:
            a += b * 0.125
        elif kind == 6:
            with autograd.record():
                y = (xs[0] * a).sum()
                a[:] = b
            y.backward(wait=False)
            read.append(xs[0].grad.copy())
        elif a is not b:
            b.copyto(a)
    return [*((x.asnumpy().tobytes(), x.version) for x in xs), *(x.asnumpy().tobytes() for x in read)]


@pytest.mark.parametrize("seed", range(12))
def test_on_and_off_give_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine("NaiveEngine"):
        right = program(seed)
    for least in (1, 10**9):
        monkeypatch.setattr(buffer, "OVERTAKING", least)
        for workers in (1, 2):
            with Engine(workers=workers, inline=False):
                assert program(seed) == right, f"seed {seed}, from {least} bytes on, {workers} workers"


def test_programs_overtake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the comparison above would compare a thing with itself."""
    before = overtaking()
    for seed in range(6):
        with Engine(workers=1, inline=False):
            program(seed)
    assert overtaking() > before
