"""What the engine costs, beside ThreadPoolExecutor in the same run.

    python benchmarks/engine_push.py [--quick]

Prints ratios; each is the best of several rounds of both sides, taken in turn.
"""

from __future__ import annotations

import gc
import operator
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vardag.engine import Engine, Kind, Operation


def best(f: Callable[[], float], rounds: int) -> float:
    return min(f() for _ in range(rounds))


def timed(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def nothing() -> None:
    pass


def queued(engine: Engine, n: int) -> float:
    """n user functions, each with a read and a write variable, then one wait; seconds per operation."""
    shared = engine.new_variable()
    out = [engine.new_variable() for _ in range(n)]

    def run() -> None:
        for v in out:
            engine.push(nothing, (shared,), (v,))
        engine.waitall()

    return timed(run) / n


def submitted(pool: ThreadPoolExecutor, n: int) -> float:
    def run() -> None:
        for f in [pool.submit(nothing) for _ in range(n)]:
            f.result()

    return timed(run) / n


def kernel(engine: Engine, cheap: bool) -> Callable[[], Operation]:
    """A function that admits one no-op kernel with a read and a fresh write variable."""
    read = engine.new_variable()
    steps = [(operator.add, 1, 2)]

    def push() -> Operation:
        out = engine.new_variable()
        op = Operation(Kind.ATOMIC, lambda: steps, "k", cheap=cheap)
        engine.admit(lambda: (op, (read,), (out,), (), (), [], False))
        return op

    return push


def push_and_wait(engine: Engine, n: int) -> float:
    push, wait = kernel(engine, False), engine.wait_op

    def run() -> None:
        for _ in range(n):
            wait(push())

    return timed(run) / n


def submit_and_result(pool: ThreadPoolExecutor, n: int) -> float:
    def run() -> None:
        for _ in range(n):
            pool.submit(nothing).result()

    return timed(run) / n


def inline(engine: Engine, n: int) -> float:
    push = kernel(engine, True)

    def run() -> None:
        for _ in range(n):
            push()

    return timed(run) / n


def pending(n: int) -> float:
    """n operations behind a gate: seconds per push while none can run."""
    import threading

    gate = threading.Event()
    with Engine("ThreadedEnginePooled", workers=1) as engine:
        v = engine.new_variable()
        engine.push(gate.wait, updates=[v])
        w = [engine.new_variable() for _ in range(100)]

        def run() -> None:
            for i in range(n):
                engine.push(nothing, (v,), (w[i % 100],))

        gc.collect()
        seconds = timed(run) / n
        gate.set()
        engine.waitall()
    return seconds


def main() -> None:
    quick = "--quick" in sys.argv
    rounds, n = (3, 5_000) if quick else (7, 20_000)
    workers = 2
    with Engine("ThreadedEnginePooled", workers=workers) as engine, ThreadPoolExecutor(workers) as pool:
        a = best(lambda: queued(engine, n), rounds)
        b = best(lambda: submitted(pool, n), rounds)
        print(f"queued no-op user functions   {a * 1e6:7.2f} us   submit+results {b * 1e6:7.2f} us   ratio {a / b:.2f}  (<= 0.8)")
        a = best(lambda: push_and_wait(engine, n // 10), rounds)
        b = best(lambda: submit_and_result(pool, n // 10), rounds)
        print(f"push+wait of a kernel         {a * 1e6:7.2f} us   submit().result() {b * 1e6:4.2f} us   ratio {a / b:.2f}  (<= 0.5)")
        a = best(lambda: inline(engine, n), rounds)
        print(f"inline kernel                 {a * 1e6:7.2f} us   (<= 2, without NumPy)")
        print(engine.statistics())
    few = best(lambda: pending(10_000), rounds)
    many = best(lambda: pending(100_000 if quick else 1_000_000), 1 if quick else 2)
    print(f"10^4 pending {few * 1e6:.2f} us per push, {'10^5' if quick else '10^6'} {many * 1e6:.2f} us   ratio {many / few:.2f}  (<= 1.6)")


if __name__ == "__main__":
    main()
