"""What the engine costs, beside ThreadPoolExecutor in the same run.

    python benchmarks/engine_push.py [--quick]

Prints ratios: the median over rounds, in each of which both sides are measured, one after the other.
"""

from __future__ import annotations

import gc
import operator
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vardag.engine import Engine, Kind, Operation, core, here


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


def push_line(engine: Engine, n: int) -> float:
    """Seconds that a queued push spends on finding the line that pushes: with it, less the same with a line given."""
    v = (engine.new_variable(),)
    gate = threading.Event()
    engine.push(gate.wait, updates=v)
    known = {2: here()}.get  # as quick as a call can be

    def push(find: Callable[..., Any]) -> None:
        core.here = find
        for _ in range(50):
            engine.push(nothing, updates=v)

    gc.collect()
    gc.disable()
    try:  # in turns, so that both meet the same conditions
        pairs = [(timed(lambda: push(known)), timed(lambda: push(here))) for _ in range(n // 50)]
    finally:
        core.here = here
        gc.enable()
        gate.set()
        engine.waitall()
    return statistics.median(found - given for given, found in pairs) / 50


def pending(n: int) -> tuple[float, float]:
    """n operations behind a gate: seconds per push while none can run, and per operation until all are done.

    Processor time of all threads, not wall time: a million operations take long for other programs to disturb them.
    """
    gate = threading.Event()
    engine = Engine("ThreadedEnginePooled", workers=1)  # not entered: the pusher's context stays empty
    engine.limits(count=None)
    v = engine.new_variable()
    engine.push(gate.wait, updates=[v])
    w = [engine.new_variable() for _ in range(100)]

    def push() -> None:
        for i in range(n):
            engine.push(nothing, (v,), (w[i % 100],))

    def finish() -> None:
        gate.set()
        engine.waitall()

    gc.collect()
    start = time.process_time()
    push()
    pushing = time.process_time() - start
    finish()
    running = time.process_time() - start - pushing
    engine.stop()
    return pushing / n, (pushing + running) / n


def compare(ours: str, a: Callable[[], float], theirs: str, b: Callable[[], float], bar: float, rounds: int) -> None:
    pairs = [(a(), b()) for _ in range(rounds)]
    x, y = (statistics.median(p[i] for p in pairs) * 1e6 for i in (0, 1))
    ratios = sorted(p / q for p, q in pairs)
    ratio = statistics.median(ratios)
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"{ours:29} {x:7.2f} us   {theirs} {y:7.2f} us   ratio {ratio:.2f}  (<= {bar}; {spread})")


def main() -> None:
    quick = "--quick" in sys.argv
    rounds, n = (3, 5_000) if quick else (7, 20_000)
    workers = 2
    with Engine("ThreadedEnginePooled", workers=workers) as engine, ThreadPoolExecutor(workers) as pool:
        compare(
            "queued no-op user functions",
            lambda: queued(engine, n),
            "submit, then results",
            lambda: submitted(pool, n),
            0.8,
            2 * rounds,
        )
        compare(
            "push and wait of a kernel",
            lambda: push_and_wait(engine, n // 10),
            "submit().result()",
            lambda: submit_and_result(pool, n // 10),
            0.5,
            2 * rounds,
        )
        a = best(lambda: inline(engine, n), rounds)
        print(f"kernel within its push        {a * 1e6:7.2f} us  (its plan, operation and variable included)")
        engine.limits(count=None)
        lines = sorted(push_line(engine, n) for _ in range(3 * rounds))
        middle = statistics.median(lines) * 1e6
        print(
            f"the line of a push            {middle:7.2f} us  (<= 0.2; {lines[0] * 1e6:.2f} to {lines[-1] * 1e6:.2f})"
        )
        print(engine.statistics())
    few = [min(x) for x in zip(*(pending(10_000) for _ in range(rounds)), strict=True)]
    many = pending(100_000 if quick else 1_000_000)
    label = "10^5" if quick else "10^6"
    for what, i in ("pushed", 0), ("pushed and run", 1):
        ratio = many[i] / few[i]
        ours = f"10^4 {few[i] * 1e6:.2f} us, {label} {many[i] * 1e6:.2f} us per operation"
        print(f"{what:15} {ours}   ratio {ratio:.2f}  (<= 1.6)")


if __name__ == "__main__":
    main()
