"""Random programs over small and large arrays: what runs at once, what joins and what is queued, against the oracle.

Each thread runs a program of its own on one engine, so that its pushes join those of the others and fail beside them.
Steps are views, writes in place, lazy copies, gradients and failures, over arrays of a few and of 140,000 elements.
A failing test names its seed: ``run(seed, ...)``.
"""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from vardag import autograd
from vardag.engine import Engine, Error, Kind, Operation
from vardag.ndarray.array import Array
from vardag.operators.faces import numpy_face as F

ROWS, COLUMNS = 280, 500
FLOAT, MOST = np.dtype("float32"), 20
BINARY = ("add", "subtract", "multiply", "maximum")
UNARY = ("tanh", "sin", "negative", "square", "relu")


class Program:
    """`log`: every value that was read, as bytes, or its error."""

    def __init__(self, seed: int, engine: Engine, disturbed: bool) -> None:
        self.random, self.noise = random.Random(seed), random.Random(-seed)
        self.engine, self.disturbed = engine, disturbed
        self.log: list[Any] = []
        self.marked: list[Array] = []
        numbers = np.random.default_rng(seed)
        shapes = [(3,), (2, 3), (ROWS, COLUMNS), (ROWS * COLUMNS,)] * 2 + [(COLUMNS,)]
        self.arrays = [Array._from_host(numbers.uniform(0.5, 1.5, s).astype(FLOAT)) for s in shapes]
        self.integers = [Array._from_host(numbers.integers(-1, 4, (ROWS, COLUMNS)).astype("int32")) for _ in range(2)]

    def run(self, steps: int) -> list[Any]:
        for _ in range(steps):
            if self.disturbed and self.noise.random() < 0.15:
                numbers = np.ones(self.noise.randrange(100_000))
                self.engine.push(lambda numbers=numbers: np.sin(numbers))  # what is pushed meanwhile joins
            try:
                self.step(self.random.choice(self.STEPS))
            except (Error, ValueError) as error:
                self.log.append((type(error).__name__, str(error)[:60]))
            while len(self.arrays) > MOST:
                del self.arrays[self.random.randrange(MOST)]
        for x in (*self.arrays, *self.integers, *(x.grad for x in self.marked)):
            self.read(x)
        return self.log

    def read(self, x: Any) -> None:
        try:
            value = x.asnumpy()
            value[np.isnan(value)] = 0  # a NaN's sign depends on where it stands
            self.log.append(value.tobytes())
        except Exception as error:
            self.log.append((type(error).__name__, str(error)[:60]))

    STEPS = (
        "unary", "unary", "binary", "binary", "number", "expression", "expression", "update", "update", "fill", "out",
        "view", "view", "view", "copy", "detach", "drop", "drop", "row", "column", "sum", "reduce", "reduce",
        "integers", "function",
        "failure", "read", "heal", "mark", "backward", "backward",
    )  # fmt: skip

    def step(self, kind: str) -> None:
        r, arrays = self.random, self.arrays
        x = r.choice(arrays)
        y = r.choice([a for a in arrays if a.shape == x.shape])
        large = [a for a in arrays if a.shape == (ROWS, COLUMNS)] or [x]
        if kind == "unary":
            arrays.append(getattr(F, r.choice(UNARY))(x))
        elif kind == "binary":
            arrays.append(getattr(F, r.choice(BINARY))(x, y))
        elif kind == "number":
            arrays.append(r.choice([lambda: x * 0.5, lambda: 1 - x, lambda: x / 3])())
        elif kind == "expression":
            arrays.append(F.tanh(x * y + x) * y - x)
        elif kind == "update":
            getattr(F, r.choice(BINARY))(x, y, out=x)
        elif kind == "out":
            F.tanh(y, out=x)
        elif kind == "fill":
            x[r.choice([0, slice(1, None), slice(None, None, 2)])] = r.random()
        elif kind == "heal":
            x[...] = 0.25
        elif kind == "view":
            keys: list[Any] = [0, slice(1, None), slice(None, None, -1)] if len(x.shape) > 1 else [slice(2)]
            arrays.append(r.choice([x[r.choice(keys)], x.T, x.reshape(-1)]))
        elif kind == "copy":
            arrays.append(x.copy())
        elif kind == "detach":
            arrays.append(x.detach())
        elif kind == "drop":
            arrays.remove(x) if len(arrays) > 8 else None
        elif kind in ("row", "column"):
            a, b = r.choice(large), r.choice(large)
            part = (b[0] if kind == "row" else b.reshape(-1)[:ROWS].reshape(ROWS, 1)) if len(b.shape) > 1 else b
            arrays.append(getattr(F, r.choice(BINARY))(a, part))
        elif kind == "sum":
            arrays.append(F.sum(x, axis=0, keepdims=True) * 0.01)
        elif kind == "reduce":
            value = r.choice([lambda: x, lambda: x * y, lambda: F.tanh(x) - y])()
            reducer = getattr(F, r.choice(("sum", "mean", "max", "min", "norm")))
            arrays.append(r.choice([
                lambda: reducer(value, axis=r.choice((None, -1)), keepdims=True) * 0.01,
                lambda: r.choice((F.softmax, F.log_softmax))(value),
                lambda: F.broadcast_to(reducer(value, axis=-1, keepdims=True), shape=x.shape),
            ])())  # fmt: skip
        elif kind == "integers":
            a, b = self.integers
            self.integers = [F.power(F.maximum(a, 0), b) if r.random() < 0.3 else F.maximum(a, b), a]
        elif kind == "function":
            self.engine.push(lambda memory: np.multiply(memory, np.float32(0.5), memory), updates=[x])
        elif kind == "failure" and r.random() < 0.4:
            self.engine.push(lambda memory: 1 / 0, updates=[x])
        elif kind == "read":
            self.read(x)
        elif kind == "mark" and len(self.marked) < 4:
            marked = r.choice([x.copy, lambda: x * 1])()
            marked.attach_grad(r.choice(["write", "add"]))
            self.marked.append(marked)
            arrays.append(marked)
        elif kind == "backward" and self.marked:
            with autograd.record():
                for _ in range(r.randint(1, 6)):
                    self.step(
                        r.choice(["unary", "binary", "number", "expression", "update", "view", "row", "reduce", "drop"])
                    )
                loss = F.sum(self.marked[-1] * self.marked[-1])
                for x in self.arrays[-3:]:
                    loss = loss + F.mean(x)
            loss.backward(retain_graph=r.random() < 0.3, wait=r.random() < 0.5)


class Finalizer:
    """Garbage whose end pushes, writes and waits."""

    def __init__(self, engine: Engine) -> None:
        self.me, self.engine = self, engine
        self.x = Array._from_host(np.ones(3, FLOAT))

    def __del__(self) -> None:
        if not self.engine.stopped:
            self.x += self.x * 2
            self.x.asnumpy()


@contextmanager
def collections(engine: Engine, often: bool) -> Iterator[None]:
    old = gc.get_threshold()
    try:
        if often:
            gc.set_threshold(20)
        yield
    finally:
        gc.set_threshold(*old)


def run(seed: int, threads: int, kind: str, workers: int, often: bool = False) -> list[Any]:
    logs: list[Any] = [None] * threads
    with Engine(kind, workers=workers) as engine:
        serial = kind == "NaiveEngine"
        engine.inline = not serial

        def program(i: int) -> None:
            with engine.use():
                p = Program(10 * seed + i, engine, not serial)
                if often:
                    Finalizer(engine)
                logs[i] = p.run(50)

        with collections(engine, often):
            started = [threading.Thread(target=program, args=(i,), daemon=True) for i in range(threads)]
            for thread in started:
                thread.start()
                if serial:
                    thread.join()
            for thread in started:
                thread.join(60)
                assert not thread.is_alive()
        engine._unseen.clear()  # errors of values that nobody read
    return logs


KINDS = (("ThreadedEnginePooled", 1), ("ThreadedEnginePooled", 2), ("ThreadedEnginePerDevice", 3))


@pytest.mark.parametrize("seed", range(48))
def test_random_programs_give_the_bytes_of_the_serial_engine(seed: int) -> None:
    threads = 1 + seed % 3
    expected = run(seed, threads, "NaiveEngine", 1)
    kind, workers = KINDS[seed // 3 % 3]
    assert run(seed, threads, kind, workers, often=seed % 4 == 0) == expected


def test_a_wait_looks_at_a_heap_that_a_handler_has_emptied() -> None:
    """A handler inside the section of a wait pushes, for which T is given away: workers take what is ready."""
    with Engine(workers=1) as engine:
        variable = engine.new_variable()
        op = Operation(Kind.ATOMIC, lambda: (), "kernel", nbytes=8)
        heap = engine._lane.heap

        def plan() -> Any:
            return op, (), (variable,), (), [], [], False

        with engine._T:
            engine._P.acquire()
            try:
                engine._admit(plan, [])
                engine._drain()
                entries = heap[:]
                heap.clear()
                assert engine._needed(op, False)[0] is op
                heap.extend(entries)
            finally:
                engine._P.release()
        op.wait()
