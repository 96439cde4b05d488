"""Many threads on shared arrays: what comes out is what some serial order gives, and no update is lost.

The engine tells the order in which it admitted the operations; the serial engine then does them in that order.
"""

from __future__ import annotations

import os
import random
import sys
import threading

import numpy as np
import pytest

from vardag import nd
from vardag.engine import Engine
from vardag.engine.instrument import Instrument
from vardag.engine.testing import audit

LONG = float(os.environ.get("VARDAG_STRESS") or 0) > 0
THREADS = 32
EACH = 10_000 if LONG else 60
ARRAYS = 8
PRIME = 1_000_003


class Admitted(Instrument):
    """Notes, under the lock that orders pushes, what the pushing thread says it is doing."""

    def __init__(self) -> None:
        self.mine = threading.local()
        self.order: list[tuple] = []

    def pushed(self, op, preds) -> None:
        self.order.append(self.mine.item)

    def ran_inline(self, op, started, nbytes) -> None:
        self.order.append(self.mine.item)

    def ready(self, ops) -> None:
        pass

    def started(self, op) -> None:
        pass

    def finished(self, op) -> None:
        pass


def mix(x, y, k) -> None:
    """A user's function on the arrays' memory, in several steps, between which other threads run."""
    value = x * 7 + y + k
    x[...] = value % PRIME


def items(seed: int, n: int):
    """(what, array it changes, array it reads, constant)"""
    r = random.Random(seed)
    kinds = ("times", "add", "add array", "function", "count", "set", "part")
    return [
        (r.choices(kinds, (4, 4, 4, 2, 3, 1, 2))[0], r.randrange(ARRAYS), r.randrange(ARRAYS), seed * n + i)
        for i in range(n)
    ]


def do(engine: Engine, arrays, counter, item) -> None:
    """One operation, pushed."""
    what, i, j, k = item
    x, y = arrays[i], arrays[j]
    if what == "times":
        x *= 3
    elif what == "add":
        x += k
    elif what == "add array":
        x += y
    elif what == "count":
        counter += 1
    elif what == "set":
        x[:] = k
    elif what == "part":
        part = x[2:5]  # ``x[2:5] *= 5`` would be two operations: the last one assigns the part to itself
        part *= 5
    elif i == j:
        engine.push(lambda x: mix(x, x, k), updates=[x])
    else:
        engine.push(lambda y, x: mix(x, y, k), reads=[y], updates=[x])


def world():
    arrays = [nd.array(np.arange(8) + i, dtype="int64") for i in range(ARRAYS)]
    return arrays, nd.array([0], dtype="int64")


@pytest.mark.host("every operation that is admitted is one of a thread of the test")
@pytest.mark.parametrize("inline", [True, False] if not LONG else [True])
def test_mixed_operations_of_32_threads_equal_a_serial_order(inline, note):
    work = [items(t, EACH) for t in range(THREADS)]
    begin = threading.Barrier(THREADS, timeout=60)
    problems = []
    with Engine("ThreadedEnginePooled", workers=4, inline=inline) as e:
        arrays, counter = world()
        nd.waitall()
        e._instrument = log = Admitted()

        def go(t: int) -> None:
            r = random.Random(t)
            begin.wait()
            try:
                with e.use():
                    for item in work[t]:
                        log.mine.item = item
                        do(e, arrays, counter, item)
                        if r.random() < 0.005:
                            arrays[item[1]].wait_to_read()
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=go, args=(t,)) for t in range(THREADS)]
        old = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(old)
        assert not problems, problems[0]
        nd.waitall()
        e._instrument = None
        got = [x.asnumpy().tobytes() for x in (*arrays, counter)]
        ran = e.statistics().ran_by
        audit(e)
    total = THREADS * EACH
    assert len(log.order) == len({item[3] for item in log.order}) == total
    switches = sum(a[3] // EACH != b[3] // EACH for a, b in zip(log.order, log.order[1:], strict=False))
    assert switches > total // 200, "the threads came one after the other"
    assert ran["worker"] > 0
    with Engine("NaiveEngine", inline=False) as e:
        arrays, counter = world()
        for item in log.order:
            do(e, arrays, counter, item)
        assert [x.asnumpy().tobytes() for x in (*arrays, counter)] == got
    counts = sum(item[0] == "count" for item in log.order)
    lost = counts - int(np.frombuffer(got[-1], np.int64)[0])
    text = f"updates lost: {lost} of {counts}; the order changed threads {switches} times; ran by {ran}"
    note("threads", total, total, text)
    assert lost == 0
