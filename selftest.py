"""Chaos on this machine: ``python -m vardag.selftest [seconds] [--seed N]``; or a device: ``--device 'gpu(0)'``.

Rounds of random programs until the time is over.  All of a round follows from its seed, but for the moments at which
threads and signals come.  What is compared is always the same: the values and the errors of every variable with those
of the serial engine, which is given the operations in the order in which they were admitted; the engine's invariants
must hold, bytes in flight be back at nothing, and nothing may hang.

With `--device` every operator runs with its samples on that device and on the host, and the values are compared.

Ends with 0 if nothing deviated; with 1 on a deviation, naming the seed; with 2 on wrong arguments; with 3 if a round
hangs, after printing the stacks of all threads.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue

from . import _chaos
from ._chaos import ROUNDS, Count, Deviation
from .engine import Engine
from .engine.testing import Seeded

KINDS = ("ThreadedEnginePooled", "ThreadedEnginePerDevice")
WEIGHTS = {"plain": 12, "threads": 6, "interrupts": 4, "forks": 2, "waits": 2}  # the others: 1


def choose(seed: int) -> tuple[str, random.Random]:
    """Which kind of round this seed is, and the generator that decides the rest of it."""
    r = random.Random(seed)
    return r.choice([name for name in ROUNDS for _ in range(WEIGHTS.get(name, 1))]), r


def one_round(seed: int) -> tuple[str, Count]:
    """Everything of one seed."""
    what, r = choose(seed)
    kind, workers, inline = r.choice(KINDS), r.choice((1, 2, 8)), r.random() < 0.5
    schedule = Seeded(seed) if r.random() < 0.5 else None
    with Engine(kind, workers, schedule=schedule, inline=inline) as engine:
        try:
            return what, ROUNDS[what](engine, r)
        except Exception as error:  # said before the engine is left, which may hang
            mode = f"{kind}, {workers} workers, schedule {'by seed' if schedule else 'as it comes'}, inline {inline}"
            print(
                f"DEVIATION in the round of seed {seed} ({what}; {mode}): {type(error).__name__}: {error}", flush=True
            )
            raise Deviation from error


def watch(rounds: SimpleQueue[int | None]) -> None:
    """A thread that hears of the beginning (a seed) and the end (None) of each round."""
    while True:
        seed = rounds.get()
        if seed is None:
            return
        try:
            rounds.get(timeout=_chaos.HANG)
        except Empty:
            print(f"HANG: the round of seed {seed} has not ended after {_chaos.HANG:g} s\n{replay(seed)}", flush=True)
            faulthandler.dump_traceback(all_threads=True)
            os._exit(3)


def replay(seed: int) -> str:
    """How to see it again."""
    return f"again: python -m vardag.selftest --seed {seed} (with seconds before it: that round over and over)"


def table(counts: dict[str, list[int]]) -> Iterator[str]:
    """The summary."""
    yield f"{'rounds of':12} {'rounds':>8} {'operations':>12} {'faults':>8} {'in engine':>10}"
    for what, row in [*counts.items(), ("all", [sum(column) for column in zip(*counts.values(), strict=True)])]:
        yield f"{what:12} {row[0]:8} {row[1]:12} {row[2]:8} {row[3]:10}"


def on_device(text: str) -> int:
    """Every operator's samples on a device beside the host; how many operators deviate."""
    import numpy as np

    from .ndarray.context import CPU_0, named
    from .operators.schema import registry
    from .operators.testing import Subject

    context, deviations, calls = named(text), 0, 0
    for op in registry:
        for case in Subject(op, op.samples, None).cases:
            calls += 1
            try:
                with CPU_0:
                    wanted = case.values(case.arrays())
                with context:
                    found = case.values(case.arrays())
                for a, b in zip(found, wanted, strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
            except Exception as error:
                deviations += 1
                print(f"DEVIATION of {op.name}: {type(error).__name__}: {error}", flush=True)
    print(f"vardag selftest: {calls} calls on {context} and on the host, deviations: {deviations}", flush=True)
    return min(deviations, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run rounds; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vardag.selftest", description="Chaos tests of the engine.")
    parser.add_argument("seconds", nargs="?", type=float, help="how long (default 5)")
    parser.add_argument("--seed", type=int, help="this round only: once, or over and over for the given seconds")
    parser.add_argument("--device", help="compare every operator on it with the host, for example 'gpu(0)'")
    given = parser.parse_args(arguments)
    if given.device is not None:
        return on_device(given.device)
    once = given.seed is not None and given.seconds is None
    seconds = 0.0 if once else 5.0 if given.seconds is None else given.seconds
    seed = first = random.SystemRandom().randrange(10**9) if given.seed is None else given.seed
    start = time.monotonic()
    print(
        f"vardag selftest: {'one round' if once else f'{seconds:g} s'}, seed {first}, Python {sys.version.split()[0]}",
        flush=True,
    )
    counts = {what: [0, 0, 0, 0] for what in ROUNDS}
    rounds: SimpleQueue[int | None] = SimpleQueue()
    threading.Thread(target=watch, args=(rounds,), daemon=True, name="selftest-watch").start()
    deviations = 0
    while True:
        rounds.put(seed)
        try:
            what, count = one_round(seed)
            counts[what] = [a + b for a, b in zip(counts[what], (1, *count), strict=True)]
        except Deviation:
            deviations = 1
            break
        finally:
            rounds.put(None)
        if time.monotonic() - start >= seconds:
            break
        seed += given.seed is None
    rounds.put(None)
    for line in table(counts):
        print(line)
    print(f"seeds {first} to {seed}, {time.monotonic() - start:.1f} s, deviations: {deviations}", flush=True)
    if deviations:
        print(replay(seed), flush=True)
    return deviations


if __name__ == "__main__":
    faulthandler.enable()
    code = main()
    if code:
        os._exit(code)  # a broken engine may not end at exit
    sys.exit(0)
