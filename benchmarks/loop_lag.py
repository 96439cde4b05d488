"""How late an event loop is while 10,000 of its tasks await, beside asyncio with threads in the same run.

    python benchmarks/loop_lag.py [--number 10000] [--rounds 7] [--load 0] [--collector] [--only WORD]

A task sleeps for a millisecond again and again; how much later it goes on is the lag.  Printed for each way of working
are the median over the rounds of the longest lag, the least and the largest, the lag that 99 of 100 sleeps stay below,
and the seconds from the first completion to the last wake-up.  All ways are measured in each round, one after another.

    threads that count      two Python threads that never stop, and no vardag: what the interpreter itself does
    executor                a future of `run_in_executor` each, two threads
    to_thread               `asyncio.to_thread` each, two threads
    one operation           all tasks await one operation
    an operation each       each awaits one of its own; a hundred become ready at once
    at once                 the same, but one completion makes all of them ready
    with others             an operation each, and as many beside them that nobody awaits
    with work               an operation each that counts for some 50 us

`--load N` runs N processes beside it that only count.  The collector is off unless `--collector` is given: for ten
thousand tasks it stops the loop for 30 ms and more, whoever completes what they await.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from vardag.engine import Engine

PAUSE = 0.001  # seconds that the probe sleeps
AT_ONCE = 100  # tasks begun in one turn, operations made ready by one completion


def nothing() -> None: ...


def work() -> None:
    for _ in range(1000):
        pass


class Probe:
    """How late a task goes on, in seconds; from `begin` on."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.began = time.perf_counter()
        self.over = False

    def begin(self) -> None:
        self.lags.clear()
        self.began = time.perf_counter()

    async def run(self) -> None:
        while not self.over:
            before = time.perf_counter()
            await asyncio.sleep(PAUSE)
            self.lags.append(time.perf_counter() - before - PAUSE)


Result = tuple[float, float, float]  # longest lag, of 99 of 100, seconds in all


async def awaiting(number: int, start: Callable[[int], Awaitable[Any]], release: Callable[[], object]) -> Result:
    """Begin `number` tasks that await what `start` gives, let them be completed, and watch the loop meanwhile."""
    probe, left, entered = Probe(), number, 0
    ended = asyncio.Event()

    async def one(i: int) -> None:
        nonlocal left, entered
        found = start(i)
        entered += 1
        await found
        left -= 1
        if not left:
            ended.set()

    tasks = []
    for i in range(number):
        tasks.append(asyncio.ensure_future(one(i)))
        if i % AT_ONCE == 0:
            await asyncio.sleep(0)
    while entered < number:
        await asyncio.sleep(0)
    watcher = asyncio.ensure_future(probe.run())
    await asyncio.sleep(0.01)
    probe.begin()
    release()
    await ended.wait()
    seconds = time.perf_counter() - probe.began
    await asyncio.sleep(0)  # the probe's last sleep, which the end may have delayed
    probe.over = True
    await watcher
    await asyncio.gather(*tasks)
    return summary(probe.lags, seconds)


def summary(lags: list[float], seconds: float) -> Result:
    ordered = sorted(lags)
    return ordered[-1], ordered[int(len(ordered) * 0.99)], seconds


async def counting(number: int) -> Result:
    """Two threads that only count, for as long as `number` operations may take."""
    over: list[None] = []

    def count() -> None:
        i = 0
        while not over:
            i += 1

    threads = [threading.Thread(target=count) for _ in range(2)]
    probe = Probe()
    watcher = asyncio.ensure_future(probe.run())
    for t in threads:
        t.start()
    try:
        probe.begin()
        await asyncio.sleep(number * 5e-5)
        seconds = time.perf_counter() - probe.began
    finally:
        over.append(None)
        for t in threads:
            t.join()
    probe.over = True
    await watcher
    return summary(probe.lags, seconds)


async def in_executor(number: int, to_thread: bool) -> Result:
    """Futures of two threads that are held until all tasks await."""
    loop, gate = asyncio.get_running_loop(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        loop.set_default_executor(pool)
        for _ in range(2):
            pool.submit(gate.wait)

        def start(i: int) -> Awaitable[Any]:
            if to_thread:
                return asyncio.ensure_future(asyncio.to_thread(nothing))
            return loop.run_in_executor(pool, nothing)

        return await awaiting(number, start, gate.set)


async def operations(number: int, kind: str) -> Result:
    """Operations of an engine with two workers, behind one that waits for a gate."""
    with Engine(workers=2) as e:
        e.limits(count=None)
        gate, v = threading.Event(), e.new_variable()
        first = e.push(gate.wait, writes=[v])
        if kind == "one":
            ops = [first] * number
        elif kind == "at once":
            ops = [e.push(nothing, reads=[v]) for _ in range(number)]
        else:
            ops = []
            for _ in range(number // AT_ONCE):
                w = e.new_variable()
                e.push(nothing, reads=[v], writes=[w])
                ops += [e.push(work if kind == "work" else nothing, reads=[w]) for _ in range(AT_ONCE)]
                if kind == "others":
                    for _ in range(AT_ONCE):
                        e.push(nothing, reads=[w])
            ops += ops[: number - len(ops)]

        async def until_done(i: int) -> None:
            await ops[i]

        result = await awaiting(number, until_done, gate.set)
        await e.wait_all_async()
    return result


WAYS: dict[str, Callable[[int], Awaitable[Result]]] = {
    "threads that count": counting,
    "executor": lambda n: in_executor(n, False),
    "to_thread": lambda n: in_executor(n, True),
    "one operation": lambda n: operations(n, "one"),
    "an operation each": lambda n: operations(n, "each"),
    "at once": lambda n: operations(n, "at once"),
    "with others": lambda n: operations(n, "others"),
    "with work": lambda n: operations(n, "work"),
}


@contextmanager
def loaded(processes: int) -> Iterator[None]:
    """Beside processes that only count."""
    with ExitStack() as stack:
        for _ in range(processes):
            child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(child.wait)
            stack.callback(child.kill)
        yield


def measure(number: int, rounds: int, ways: list[str], collector: bool) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            gc.collect()
            if not collector:
                gc.disable()
            try:
                found[way].append(asyncio.run(WAYS[way](number)))  # type: ignore[arg-type]
            finally:
                gc.enable()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--load", type=int, default=0)
    parser.add_argument("--collector", action="store_true")
    parser.add_argument("--only", default="", help="the ways whose names contain this word")
    given = parser.parse_args()
    ways = [way for way in WAYS if given.only in way]
    with loaded(given.load):
        found = measure(given.number, given.rounds, ways, given.collector)
    interval = sys.getswitchinterval() * 1e3
    print(
        f"{given.number} tasks, switch interval {interval:.0f} ms, {given.load} processes beside; lag in milliseconds"
    )
    for way, results in found.items():
        longest, most, seconds = (sorted(r[i] for r in results) for i in range(3))
        print(
            f"{way:20} longest {statistics.median(longest) * 1e3:6.1f}"
            f" ({longest[0] * 1e3:.1f} to {longest[-1] * 1e3:.1f})"
            f"   99 % {statistics.median(most) * 1e3:6.1f}   in all {statistics.median(seconds):.2f} s"
        )


if __name__ == "__main__":
    main()
