"""Random programs of indexing (basic and advanced), views, writes in place and arithmetic, bit for bit as NumPy's.

A program is a list of steps over names; it is made by running it on NumPy, so every step is valid.  It then runs on
arrays of either face, on the serial engine and on a threaded one.  A failing test names its program: ``run(seed)``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vardag import nd
from vardag.engine import Engine
from vardag.ndarray import advanced
from vardag.ndarray.array import Array
from vardag.operators import advanced_indexing

Step = tuple[Any, ...]

SHAPES = ((5,), (3, 4), (4, 3), (2, 3, 2), (1, 4), (3, 1, 3), (0, 3), (2, 0))
DTYPES = (np.float64, np.int64)
MOST = 1e6  # values stay below, so that no integer overflows
ENGINES: tuple[tuple[str, int | None], ...] = (("NaiveEngine", None), ("ThreadedEnginePerDevice", 2))
LATE = ("host", "library", "compared")  # how an array of a key is spelled


class Program:
    """`arrays`: initial values.   `steps`: see `Run.step`."""

    def __init__(self, seed: int, length: int = 16) -> None:
        self.rng = random.Random(f"indexing {seed}")
        numbers = np.random.default_rng(self.rng.getrandbits(32))
        shapes = self.rng.choices(SHAPES, k=3)
        self.arrays = [numbers.integers(-9, 10, s).astype(d) for s in shapes for d in DTYPES]
        self.steps: list[Step] = []
        run = NumPyRun(self)
        for _ in range(length):
            step = self.draw(run)
            if step is not None and run.step(step):
                self.steps.append(step)

    def draw(self, run: NumPyRun) -> Step | None:
        """A step that is likely to be valid now."""
        rng, names = self.rng, run.names
        i = rng.randrange(len(names))
        x = names[i]
        kind = rng.choice(("read", "read", "read", "set", "set", "set", "fill", "update", "binary", "compare", "copy"))
        if kind == "copy":
            return kind, i
        if kind == "compare":
            return (kind, i, rng.randint(-3, 3)) if rng.random() < 0.3 else None
        if kind == "binary":
            fitting = [j for j, y in enumerate(names) if y.dtype == x.dtype and y.shape in (x.shape, x.shape[1:])]
            return kind, rng.choice(("add", "subtract", "multiply")), i, rng.choice(fitting)
        key = self.key(x, run)
        if kind == "read":
            return kind, i, key
        if kind == "fill":
            return kind, i, key, rng.randint(-9, 9)
        if kind == "update":
            return kind, i, key, rng.choice((1, 2, -1))
        try:
            shape = x[plain(key, run)].shape
        except IndexError:
            return None
        fitting = [j for j, y in enumerate(names) if y.shape in (shape, shape[1:], (1,)) and y.dtype == x.dtype]
        source = rng.choice(fitting) if fitting else None
        if rng.random() < 0.3:  # of itself, which overlaps
            return "shift", i, key, self.key(x, run)
        return None if source is None else ("set", i, key, source)

    def key(self, x: np.ndarray, run: NumPyRun) -> Any:
        """Items for some axes of x: (kind, what), see `plain`."""
        rng = self.rng
        masks = [j for j, y in enumerate(run.masks) if y.shape == x.shape]
        if masks and rng.random() < 0.3:
            return (("name", rng.choice(masks)),)
        items: list[Any] = []
        broadcast = rng.choice(((3,), (2,), (1,), (2, 1), (0,)))
        axes = rng.randint(0, x.ndim)
        axis = 0
        while axis < axes:
            n = x.shape[axis]
            kind = rng.choice(("int", "slice", "slice", "array", "array", "mask", "None", "wide mask"))
            if kind == "None":
                items.append(("plain", None))
                continue
            if kind == "int":
                items.append(("plain", rng.randint(-n, n - 1) if n else 0))
            elif kind == "slice":
                limits = [rng.choice((None, rng.randint(-n - 1, n + 1))) for _ in range(2)]
                items.append(("plain", slice(*limits, rng.choice((None, None, 1, 2, -1, -2)))))
            elif kind == "array" and n:
                shape = rng.choice((broadcast, broadcast[-1:], (1,)))
                raw = np.array([rng.randint(-n, n - 1) for _ in range(int(np.prod(shape)))], np.int64).reshape(shape)
                items.append((rng.choice(LATE[:2]), raw if rng.random() < 0.8 else raw[::-1].T))
            elif kind == "wide mask" and axis + 1 < axes:
                raw = np.array([rng.random() < 0.5 for _ in range(n * x.shape[axis + 1])]).reshape(n, x.shape[axis + 1])
                items.append((rng.choice(LATE), raw))
                axis += 1
            elif n:
                raw = np.zeros(n, bool)
                raw[rng.sample(range(n), k=min(n, rng.choice((broadcast[-1], 1))))] = True
                items.append((rng.choice(LATE), raw))
            else:
                items.append(("plain", slice(None)))
            axis += 1
        if rng.random() < 0.3:
            items.insert(rng.randint(0, len(items)), ("plain", Ellipsis))
        return tuple(items)


def plain(key: Any, run: NumPyRun) -> Any:
    """The key for NumPy."""
    return tuple(run.masks[what] if kind == "name" else what for kind, what in key)


class NumPyRun:
    """The meaning of a program.  `masks`: what comparisons have given, frozen."""

    def __init__(self, program: Program) -> None:
        self.names = [x.copy() for x in program.arrays]
        self.masks: list[np.ndarray] = []

    def step(self, step: Step) -> bool:
        """False: it is not valid, and nothing has happened."""
        kind, *rest = step
        try:
            if kind == "copy":
                self.names.append(self.names[rest[0]].copy())
            elif kind == "compare":
                self.masks.append(self.names[rest[0]] > rest[1])
            elif kind == "binary":
                made = getattr(np, rest[0])(self.names[rest[1]], self.names[rest[2]])
                if made.size and abs(made).max() > MOST:
                    return False
                self.names.append(made)
            else:
                x, key = self.names[rest[0]], plain(rest[1], self)
                if kind == "read":
                    made = x[key]
                    if not isinstance(made, np.ndarray):
                        made = x[(*key, ...)]  # a view of one element; where indices are arrays a copy
                    if not made.ndim:
                        return False  # the faces differ
                    self.names.append(made)
                elif kind == "fill":
                    x[key] = rest[2]
                elif kind == "update":
                    x[key] += rest[2]
                else:
                    value = (x[plain(rest[2], self)] if kind == "shift" else self.names[rest[2]]).copy()
                    np.broadcast_to(value, x[key].shape)  # NumPy lets it pass where no element is chosen
                    x[key] = value
        except (IndexError, ValueError):
            return False
        return True


class ArrayRun:
    """The same on arrays of one face."""

    def __init__(self, program: Program, cls: type[Array]) -> None:
        self.cls = cls
        self.names: list[Any] = [self.array(x) for x in program.arrays]
        self.masks: list[Any] = []
        for step in program.steps:
            self.step(step)

    def array(self, raw: np.ndarray) -> Any:
        return self.cls._from_host(np.array(raw, order="C"))

    def key(self, key: Any) -> Any:
        return tuple(self.item(*item) for item in key)

    def item(self, kind: str, what: Any) -> Any:
        if kind == "name":
            return self.masks[what]
        if kind == "library":
            return self.array(what)
        return self.array(what.astype(np.float64)) > 0 if kind == "compared" else what

    def step(self, step: Step) -> None:
        kind, *rest = step
        names = self.names
        if kind == "copy":
            names.append(names[rest[0]].copy())
        elif kind == "compare":
            self.masks.append(names[rest[0]] > rest[1])
        elif kind == "binary":
            function: Callable[..., Any] = getattr(self.cls._ops, rest[0])
            names.append(function(names[rest[1]], names[rest[2]]))
        else:
            x, key = names[rest[0]], self.key(rest[1])
            if kind == "read":
                names.append(x[key])
            elif kind == "fill":
                x[key] = rest[2]
            elif kind == "update":
                x[key] += rest[2]
            elif kind == "shift":
                x[key] = x[self.key(rest[2])]
            else:
                x[key] = names[rest[2]]


def expected(program: Program) -> list[np.ndarray]:
    run = NumPyRun(program)
    for step in program.steps:
        assert run.step(step)
    return run.names


def run(seed: int, faces: Any = (nd.Array, nd.NDArray), engines: Any = ENGINES) -> int:
    """Run a program everywhere, every second one with all operations queued; gives how many advanced keys it has."""
    program = Program(seed)
    wanted = expected(program)
    for cls in faces:
        for kind, workers in engines:
            with Engine(kind=kind, workers=workers, inline=seed % 2 == 0, schedule=seed):
                found = [x.asnumpy() for x in ArrayRun(program, cls).names]
            for i, (x, w) in enumerate(zip(found, wanted, strict=True)):
                text = f"seed {seed}, {cls.__name__}, {kind}, name {i}:\n{x}\n{w}"
                assert x.shape == w.shape and x.tobytes() == np.ascontiguousarray(w).tobytes(), text
    return sum(any(k != "plain" for k, _ in s[2]) for s in program.steps if len(s) > 2 and type(s[2]) is tuple)


@settings(derandomize=True, max_examples=200, deadline=None, database=None)
@given(st.integers(0, 2**32))
def test_programs(seed: int) -> None:
    run(seed)


def test_the_programs_say_something() -> None:
    """Most have several advanced keys, and a wrong rule is seen."""
    counted = [run(seed) for seed in range(20)]
    assert sum(n >= 3 for n in counted) >= 10, counted


@pytest.mark.parametrize("broken", ["the place of the axes", "the order of places", "the mark of truth values"])
def test_broken_rules_are_noticed(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    select, flat = advanced.select, advanced.flat
    if broken == "the place of the axes":
        monkeypatch.setattr(advanced_indexing, "select", lambda *a, **k: select(*a, **k)._replace(at=0))
    elif broken == "the order of places":
        monkeypatch.setattr(advanced_indexing, "flat", lambda *a: flat(*a)[::-1])
    else:
        monkeypatch.setattr(advanced, "is_mask", lambda array: array.dtype == bool)
    failed = 0
    for seed in range(60):
        try:
            run(seed, engines=ENGINES[:1])
        except Exception:
            failed += 1
    assert failed > 3, f"only {failed} of 60 programs noticed"


@pytest.mark.stress
@pytest.mark.parametrize("block", range(100))
def test_many_programs(block: int) -> None:
    for seed in range(10_000 + block * 100, 10_100 + block * 100):
        run(seed)
