"""One library in one process: it makes, checks and times the programs that it is asked for, a line of JSON each way.

    python benchmarks/_worker.py PEER

Requests: {"make": KEY, "seconds": S} gives samples of the values and how many units last S seconds, {"time": N} the
seconds of N units, {"drop": true} forgets the program.  An error is answered as {"error": text}.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import time
from typing import Any

from _workloads import LIBRARIES, WORKLOADS

SOURCES = {
    "vardag": ("_vardag", "programs"),
    "one": ("_vardag", "one_thread"),
    "numpy": ("_numpy", "programs"),
    "numpy1": ("_numpy", "threaded"),
    "executor": ("_numpy", "executor"),
    "torch": ("_torch", "programs"),
    "torch1": ("_torch", "threaded"),
    "jax": ("_jax", "eager"),
    "jit": ("_jax", "compiled"),
    "mxnet": ("_mxnet", "programs"),
}
SAMPLES = 4000  # values of one program that are compared
MOST = 1_000_000  # units in one measurement
LONGEST = 3.0  # seconds; what takes longer is run no second time before it is timed


def sample(arrays: list[Any]) -> list[dict[str, Any]]:
    """A few values of each array, and its sum."""
    import numpy as np

    each = max(20, SAMPLES // max(1, len(arrays)))
    out = []
    for x in arrays:
        flat = np.asarray(x).astype("float64").ravel()
        chosen = flat[np.linspace(0, flat.size - 1, min(each, flat.size)).astype(int)]
        out.append({"size": flat.size, "sum": float(flat.sum()), "of": float(abs(flat).sum()), "some": chosen.tolist()})
    return out


class Worker:
    def __init__(self, peer: str) -> None:
        self.module = importlib.import_module(SOURCES[peer][0])
        self.programs = getattr(self.module, SOURCES[peer][1])()
        self.run: Any = None
        self.long = False  # does one unit take more than a second?
        library = LIBRARIES.get(peer, peer)
        self.version = str(getattr(sys.modules[library], "__version__", ""))

    def make(self, key: str, seconds: float) -> dict[str, Any]:
        """The program, run once and checked, and as often as it takes to know how long it lasts."""
        self.run = None
        gc.collect()
        self.run = self.programs[key](WORKLOADS[key].make())
        start = time.perf_counter()
        results = self.run(1)
        spent = time.perf_counter() - start
        values = sample([self.module.numpy_of(x) for x in results])
        del results
        n = 1
        if spent < LONGEST:  # the first unit may have compiled something
            spent = self.time(1)
        self.long = spent > 1
        while spent < seconds / 4 and n < MOST:
            n *= 4
            spent = self.time(n)
        return {"values": values, "units": max(1, min(MOST, round(n * seconds / spent))), "each": spent / n}

    def warm(self) -> None:
        """One unit that is not timed: the other processes' work has emptied caches, and compilers compile."""
        if not self.long:
            self.run(1)

    def time(self, n: int) -> float:
        run = self.run
        start = time.perf_counter()
        run(n)
        return time.perf_counter() - start

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "make" in request:
            return self.make(request["make"], request["seconds"])
        if "time" in request:
            self.warm()
            return {"seconds": self.time(request["time"])}
        self.run = None
        gc.collect()
        return {}


def main(peer: str) -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        worker = Worker(peer)
    except Exception as error:
        send({"error": f"{type(error).__name__}: {error}"})
        return
    gc.collect()
    gc.freeze()  # a collection in one library's time should not walk what its import made
    send({"version": worker.version, "programs": sorted(worker.programs)})
    for line in sys.stdin:
        try:
            send(worker.answer(json.loads(line)))
        except Exception as error:
            send({"error": f"{type(error).__name__}: {error}".splitlines()[0]})


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(sys.argv[1])
