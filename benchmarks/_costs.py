"""What one operation costs: stage by stage, and among many pending ones.  Prints JSON.

python benchmarks/_costs.py [--quick]
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vardag import autograd, nd
from vardag.engine import Engine, Kind, Operation
from vardag.operators.schema import registry


def each(work: Callable[[], object], n: int, rounds: int = 7) -> float:
    """Microseconds of one call: the median over rounds of n calls."""
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(n):
            work()
        spent.append((time.perf_counter() - start) / n * 1e6)
    return statistics.median(spent)


def behind_a_gate(n: int) -> tuple[float, float]:
    """a + b pushed n times while the only worker is busy, then run: microseconds of each."""
    gate = threading.Event()
    with Engine("ThreadedEnginePooled", workers=1, inline=False) as engine:
        engine.limits(count=None)
        a, b = nd.ones(10), nd.ones(10)
        nd.waitall()
        engine.push(gate.wait, writes=[engine.new_variable()])
        start = time.perf_counter()
        results = [a + b for _ in range(n)]
        pushed = time.perf_counter()
        gate.set()
        nd.waitall()
        end = time.perf_counter()
        del results
    return (pushed - start) / n * 1e6, (end - pushed) / n * 1e6


def start_while_busy(n: int) -> float:
    """From the push of a large kernel to its start on a worker, while the pusher goes on in Python: microseconds."""
    spent, started = [], list[float]()

    def push() -> None:
        op = Operation(Kind.KERNEL, lambda: started.append(time.perf_counter()), "large")
        engine.admit(lambda: (op, (), (), (), (), [], False))

    with Engine("ThreadedEnginePooled", workers=2) as engine:
        for _ in range(n):
            time.sleep(0.003)  # all workers are asleep
            started.clear()
            start = time.perf_counter()
            push()
            while not started:
                pass
            spent.append(started[0] - start)
            engine.waitall()
    return statistics.median(spent) * 1e6


def stages(n: int) -> dict[str, float]:
    """The stages of a + b of ten elements.  What is a difference of two medians says so."""
    raw = np.ones(10, "float32")
    a, b = nd.array(raw), nd.array(raw)
    out: dict[str, float] = {"the bare kernel: NumPy's a + b": each(lambda: raw + raw, n)}
    op = registry["add"]
    metas = [((10,), raw.dtype)] * 2
    out["infer: shape and dtype of the result"] = each(lambda: op.infer(metas, {}), n)
    plain = out["whole: ready and cheap, run within the call"] = each(lambda: a + b, n)

    def waited() -> None:
        (a + b).wait_to_read()

    out["wait: for what is ready (difference)"] = each(waited, n) - plain
    a.attach_grad()
    with autograd.record():
        out["record (difference)"] = each(lambda: a + b, n) - plain
    runs = [behind_a_gate(n) for _ in range(3)]
    out["push: queued behind a busy worker"] = statistics.median(x for x, _ in runs)
    out["run: drained by the worker"] = statistics.median(x for _, x in runs)
    with Engine("ThreadedEnginePooled", workers=1, inline=False):
        a, b = nd.array(raw), nd.array(raw)
        out["push, then wait: nothing runs within a push"] = each(waited, n)
    out["start: of a large kernel, its pusher busy"] = start_while_busy(min(n, 200))
    return out


def nothing() -> None:
    pass


def pending(n: int) -> dict[str, Any]:
    """n functions behind a gate: processor time of all threads, which other programs disturb less than wall time."""
    gate = threading.Event()
    engine = Engine("ThreadedEnginePooled", workers=1)
    engine.limits(count=None)
    v = engine.new_variable()
    engine.push(gate.wait, updates=[v])
    w = [engine.new_variable() for _ in range(100)]
    gc.collect()
    start = time.process_time()
    for i in range(n):
        engine.push(nothing, (v,), (w[i % 100],))
    pushed = time.process_time()
    gate.set()
    engine.waitall()
    end = time.process_time()
    engine.stop()
    return {"n": n, "push": (pushed - start) / n * 1e6, "all": (end - start) / n * 1e6}


def many(n: int, rounds: int) -> dict[str, Any]:
    results = [pending(n) for _ in range(rounds)]
    return {key: statistics.median(r[key] for r in results) for key in ("n", "push", "all")}


def main() -> None:
    quick = "--quick" in sys.argv
    counts = [(1000, 3), (10_000, 1)] if quick else [(1000, 15), (10_000, 7), (100_000, 3), (1_000_000, 1)]
    result = {"stages": stages(300 if quick else 5000), "pending": [many(n, rounds) for n, rounds in counts]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
