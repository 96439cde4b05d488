"""Random programs of views, in-place writes, leaf writes and copies: gradients against NumPy, bits against the oracle.

A program is a list of steps over names; it is made by running it on NumPy, so every step is valid.  NumPy's version
runs on complex numbers: with x + 1e-40i v the imaginary part of the result is the directional derivative to the last
digits (every function here is analytic; `detach` takes the real part).  Second derivatives are differences of those.

A failing test names its seed: ``run_gradients(seed)``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vardag import autograd
from vardag.engine import Engine
from vardag.ndarray.array import Array
from vardag.operators import numpy_face as F
from vardag.operators import registry

Step = tuple[Any, ...]
TINY = 1e-40

UNARY = ("tanh", "sin", "negative", "copy", "square")
BINARY = ("add", "subtract", "multiply")
KEYS = (
    0, -1, slice(1, None), slice(None, -1), slice(None, None, 2), slice(None, None, -1), (Ellipsis, 0), None,
    (slice(None), slice(1, 3)), (Ellipsis, slice(None, None, -2)), (0, slice(None)), (),
)  # fmt: skip
#: keys whose values are copies, some with an index twice
ADVANCED: tuple[Any, ...] = (
    [2, 0], [1, 1, 0], [[0, -1], [1, 0]], (slice(None), [0, 1, 0]), ([0, 1], [1, 0]), (Ellipsis, [-1, 0]),
    ([True, False, True],), (slice(1, None), [1]), (0, slice(None), [0, 1]),
)  # fmt: skip


class Program:
    """`leaves`, `constants`: initial values.   `steps`: see `step`.   `heads`: (name, weights).

    `after`: names overwritten when the recording has ended, which must not change a gradient.
    """

    def __init__(self, seed: int, length: int = 14) -> None:
        rng = self.rng = random.Random(f"program {seed}")
        numbers = np.random.default_rng(rng.getrandbits(32))
        shapes = [rng.choice([(4,), (3, 4), (2, 3, 2), (4, 4)]) for _ in range(rng.randint(1, 2))]
        self.leaves = [numbers.uniform(-1, 1, s) for s in shapes for _ in range(2)]
        self.constants = [numbers.uniform(-1, 1, s) for s in shapes]
        self.steps: list[Step] = []
        run = NumPyRun(self, [np.array(x, complex) for x in self.leaves])
        while len(self.steps) < length:
            step = self.draw(run)
            if step is not None:
                run.step(step)
                self.steps.append(step)
                assert all(np.abs(x).max(initial=0) < 1e6 for x, _ in run.names)
        live = [i for i, (x, _) in enumerate(run.names) if x.size]
        self.heads = [(i, numbers.uniform(-1, 1, run.names[i][0].shape)) for i in rng.sample(live, k=min(3, len(live)))]
        self.after = [i for i in live if rng.random() < 0.5 and not run.names[i][1]]
        self.directions = [[numbers.uniform(-1, 1, x.shape) for x in self.leaves] for _ in range(2)]

    def draw(self, run: NumPyRun) -> Step | None:
        """A step that is valid now, or None: try again."""
        rng, names = self.rng, run.names
        i = rng.randrange(len(names))
        x, constant = names[i]
        kind = rng.choice(
            [
                "unary",
                "binary",
                "view",
                "view",
                "reshape",
                "detach",
                "update",
                "update",
                "set",
                "set",
                "fill",
                "out",
                "gather",
                "put",
                "put",
            ]
        )
        if kind == "unary":
            return kind, rng.choice(UNARY), i
        if kind in ("binary", "update", "out"):
            fitting = [j for j, (y, _) in enumerate(names) if y.shape == x.shape or y.shape == x.shape[1:]]
            j = rng.choice(fitting)
            if kind == "binary":
                return kind, rng.choice(BINARY), i, j
            if constant or abs(x).max(initial=0) > 20:
                return None
            if kind == "out":
                return (kind, rng.choice(UNARY), i, j) if names[j][0].shape == x.shape else None
            return kind, rng.choice(BINARY), i, j
        if kind == "reshape":
            return kind, i, rng.choice([(-1,), (1, -1), x.shape[::-1]])
        if kind == "detach":
            return (kind, i) if rng.random() < 0.3 else None
        key = rng.choice((*KEYS, "T") if kind not in ("gather", "put") else ADVANCED)
        try:
            region = run.view(x, key)
        except IndexError:
            return None
        if not region.size:
            return None
        if kind in ("view", "gather"):
            return kind, i, key
        if constant:
            return None
        if kind == "fill":
            return kind, i, key, rng.uniform(-1, 1)
        fitting = [j for j, (y, _) in enumerate(names) if y.shape == region.shape or y.shape == region.shape[1:]]
        return (kind, i, key, rng.choice(fitting)) if fitting else None


class NumPyRun:
    """Runs a program on complex arrays.  A name is (array, whether it is a constant: detached).

    `read`: the values of constants, in the order they were read.   `frozen`: those of another run, to be used instead.
    """

    def __init__(self, program: Program, leaves: list[np.ndarray], frozen: list[np.ndarray] | None = None) -> None:
        self.read: list[np.ndarray] = []
        self.frozen = None if frozen is None else iter(frozen)
        self.names: list[tuple[np.ndarray, bool]] = [(x, False) for x in leaves]
        self.names += [(np.array(x, complex), False) for x in program.constants]

    def value(self, i: int) -> np.ndarray:
        x, constant = self.names[i]
        if not constant:
            return x
        self.read.append(x.real.copy() if self.frozen is None else next(self.frozen))
        return self.read[-1]

    @staticmethod
    def view(x: np.ndarray, key: Any) -> np.ndarray:
        return x.T if key == "T" else x[key] if not isinstance(x[key], np.generic) else x[(*np.index_exp[key], ...)]

    def step(self, step: Step) -> None:
        kind, *rest = step
        if kind == "unary":
            self.names.append((self.call(rest[0], self.value(rest[1])), False))
        elif kind == "binary":
            self.names.append((self.call(rest[0], self.value(rest[1]), self.value(rest[2])), False))
        elif kind == "update":
            x = self.names[rest[1]][0]
            x[...] = self.call(rest[0], x, self.value(rest[2]))
        elif kind == "out":
            self.names[rest[1]][0][...] = self.call(rest[0], self.value(rest[2]))
        elif kind == "view":
            x, constant = self.names[rest[0]]
            self.names.append((self.view(x, rest[1]), constant))
        elif kind == "reshape":
            x, constant = self.names[rest[0]]
            if x.flags.c_contiguous:
                self.names.append((x.reshape(rest[1]), constant))
            else:
                self.names.append((self.value(rest[0]).astype(complex, order="C").reshape(rest[1]), False))
        elif kind == "detach":
            self.names.append((self.names[rest[0]][0], True))
        elif kind == "gather":
            self.names.append((np.array(self.value(rest[0])[rest[1]], complex, order="C"), False))
        elif kind == "put":
            self.names[rest[0]][0][rest[1]] = self.value(rest[2]).copy()
        else:
            value = rest[2] if kind == "fill" else self.value(rest[2]).copy()
            self.view(self.names[rest[0]][0], rest[1])[...] = value

    @staticmethod
    def call(name: str, *values: np.ndarray) -> np.ndarray:
        return np.array(getattr(np, name)(*values), complex, order="C")


def derivative(
    program: Program, leaves: list[np.ndarray], direction: list[np.ndarray], frozen: list[np.ndarray] | None = None
) -> tuple[float, list[np.ndarray]]:
    """The directional derivative of the program's weighted heads, and the constants it read."""
    run = NumPyRun(program, [x + 1j * TINY * v for x, v in zip(leaves, direction, strict=True)], frozen)
    for step in program.steps:
        run.step(step)
    return float(sum((run.value(i) * w).imag.sum() for i, w in program.heads)) / TINY, run.read


class ArrayRun:
    """Runs a program on arrays, recorded."""

    def __init__(self, program: Program, dtype: Any) -> None:
        self.program, self.dtype = program, dtype
        self.leaves = [self.array(x) for x in program.leaves]
        for x in self.leaves:
            x.attach_grad()
        self.names = [*self.leaves, *map(self.array, program.constants)]
        with autograd.record():
            for step in program.steps:
                self.step(step)
            one = self.array(np.ones(()))
            one.attach_grad()
            # times one: a head is on the tape even where no leaf reaches it
            self.heads = [self.names[i] * one for i, _ in program.heads]
        for k, i in enumerate(program.after):
            self.names[i][...] = k + 100
        self.weights = [self.array(w) for _, w in program.heads]

    def array(self, raw: np.ndarray) -> Array:
        return Array._from_host(np.array(raw, self.dtype, order="C"))

    def step(self, step: Step) -> None:
        kind, *rest = step
        names = self.names
        if kind == "unary":
            names.append(getattr(F, rest[0])(names[rest[1]]))
        elif kind == "binary":
            names.append(getattr(F, rest[0])(names[rest[1]], names[rest[2]]))
        elif kind == "update":
            getattr(F, rest[0])(names[rest[1]], names[rest[2]], out=names[rest[1]])
        elif kind == "out":
            getattr(F, rest[0])(names[rest[2]], out=names[rest[1]])
        elif kind == "view":
            names.append(names[rest[0]].T if rest[1] == "T" else names[rest[0]][rest[1]])
        elif kind == "gather":
            names.append(names[rest[0]][rest[1]])
        elif kind == "reshape":
            names.append(names[rest[0]].reshape(rest[1]))
        elif kind == "detach":
            names.append(names[rest[0]].detach())
        else:
            target = names[rest[0]].T if rest[1] == "T" else names[rest[0]]
            target[... if rest[1] == "T" else rest[1]] = rest[2] if kind == "fill" else names[rest[2]]

    def first(self) -> list[np.ndarray]:
        autograd.backward(self.heads, self.weights, retain_graph=True)
        return [x.grad.asnumpy() for x in self.leaves]

    def second(self, direction: list[np.ndarray]) -> list[np.ndarray]:
        """The gradients of <gradients, direction>."""
        found = autograd.grad(self.heads, self.leaves, self.weights, create_graph=True, unused="zeros")
        with autograd.record():
            one = self.array(np.ones(()))
            one.attach_grad()
            found = [g * one for g in found]
        for x in self.leaves:
            x.zero_grad()
        autograd.backward(found, [self.array(v) for v in direction])
        return [x.grad.asnumpy() for x in self.leaves]


def dots(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))


def close(found: float, expected: float, scale: float, what: str) -> None:
    assert abs(found - expected) <= scale * max(1.0, abs(expected)), f"{what}: {found}, but NumPy says {expected}"


def run_gradients(seed: int) -> None:
    program = Program(seed)
    u, v = program.directions
    run = ArrayRun(program, np.float64)
    before = [x.asnumpy() for x in run.names]
    gradients = run.first()
    for direction in (u, v):
        expected, frozen = derivative(program, program.leaves, direction)
        close(dots(gradients, direction), expected, 1e-9, f"seed {seed}, first")
    expected = differences(lambda xs: derivative(program, xs, u, frozen)[0], program.leaves, v)
    close(dots(run.second(u), v), expected, 1e-5, f"seed {seed}, second")
    assert [x.asnumpy().tobytes() for x in run.names] == [raw.tobytes() for raw in before], (
        f"seed {seed}: values changed"
    )


def differences(f: Callable[[list[np.ndarray]], float], at: list[np.ndarray], v: list[np.ndarray]) -> float:
    """The derivative of f along v, by central differences of the fourth order."""
    h = 1e-3

    def moved(t: float) -> float:
        return f([x + t * d for x, d in zip(at, v, strict=True)])

    return (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)


def run_bits(seed: int, *, kind: str, workers: int | None, inline: bool) -> list[bytes]:
    """Every byte that a program makes: values, first and second derivatives, in float32."""
    program = Program(seed, length=20)
    with Engine(kind=kind, workers=workers, inline=inline, schedule=seed):
        for _ in range(3):  # the third time by plans, where the engine lets kernels run at once
            run = ArrayRun(program, np.float32)
            found = run.first()
        found += run.second(program.directions[0])
        return [x.tobytes() for x in (*found, *(name.asnumpy() for name in run.names))]


# ---- the tests -----------------------------------------------------------------------------------------------------


def test_values_are_numpys() -> None:
    """The two interpreters mean the same; else the gradients below would prove nothing."""
    for seed in range(60):
        program = Program(seed)
        program.after = []
        run = NumPyRun(program, [np.array(x, complex) for x in program.leaves])
        for step in program.steps:
            run.step(step)
        for i, (name, (x, _)) in enumerate(zip(ArrayRun(program, np.float64).names, run.names, strict=True)):
            np.testing.assert_allclose(name.asnumpy(), x.real, rtol=1e-10, atol=1e-12, err_msg=f"seed {seed}, name {i}")


@pytest.mark.parametrize("block", range(20))
def test_gradients(block: int) -> None:
    for seed in range(block * 20, block * 20 + 20):
        run_gradients(seed)


@pytest.mark.stress
@pytest.mark.parametrize("block", range(100))
def test_gradients_of_many_programs(block: int) -> None:
    for seed in range(1000 + block * 100, 1100 + block * 100):
        run_gradients(seed)


@pytest.mark.parametrize("inline", [False, True], ids=["queued", "inline"])
@pytest.mark.parametrize(
    ("kind", "workers"),
    [("ThreadedEnginePerDevice", 1), ("ThreadedEnginePerDevice", 2), ("ThreadedEnginePooled", 8)],
)
def test_bits_do_not_depend_on_the_engine(
    kind: str, workers: int, inline: bool, oracle: dict[int, list[bytes]]
) -> None:
    for seed, expected in oracle.items():
        assert run_bits(seed, kind=kind, workers=workers, inline=inline) == expected, f"seed {seed}"


@pytest.fixture(scope="module")
def oracle() -> dict[int, list[bytes]]:
    return {seed: run_bits(seed, kind="NaiveEngine", workers=None, inline=False) for seed in range(5000, 5025)}


def test_the_oracle_would_notice() -> None:
    """A gradient that is wrong in one element fails."""
    program = Program(0)
    gradients = ArrayRun(program, np.float64).first()
    gradients[0].flat[0] += 1e-4
    with pytest.raises(AssertionError, match="NumPy says"):
        for direction in program.directions:
            close(dots(gradients, direction), derivative(program, program.leaves, direction)[0], 1e-9, "broken")


@pytest.mark.parametrize(
    ("broken", "least"), [("holds", 15), ("entries of writes", 15), ("entries of views", 15), ("indices", 3)]
)
def test_broken_rules_are_noticed(broken: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that cannot fail is a defect: without the rule many programs are wrong."""
    if broken == "holds":
        monkeypatch.setattr("vardag.operators.push.hold", lambda *_: [])
    elif broken == "entries of writes":
        monkeypatch.setattr("vardag.autograd.recorder.Recorder.written", lambda *_: [])
    elif broken == "entries of views":
        monkeypatch.setattr(Array, "_is_root", lambda self, line: True)
    else:
        monkeypatch.setattr(registry["add_at"], "kernel", lambda *_, out, **__: out.fill(0.5))
    failed = sum(fails(seed) for seed in range(60))
    assert failed > least, f"only {failed} of 60 programs noticed"


def fails(seed: int) -> bool:
    try:
        run_gradients(seed)
    except Exception:
        return True
    return False
