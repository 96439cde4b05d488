"""Random programs (programs.py): gradients against differences, against PyTorch's numbers, and engine against engine.

PyTorch's answers are stored; torch_programs.py makes them, in an environment that has it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vardag import autograd
from vardag.autograd.tape import entry_of
from vardag.engine import Engine
from vardag.ndarray.array import Array
from vardag.ndarray.dtype import is_float
from vardag.operators import numpy_face as F
from vardag.operators import registry
from vardag.operators.testing import Case

from . import programs
from .programs import Program, Run, Table

ANSWERS = Path(__file__).parent / "data" / "torch_programs.json"
NAMES = ["tanh", "sin", "cos", "square", "abs", "maximum", "exp", "log", "sqrt", "where", "matmul"]
OURS = SimpleNamespace(
    **{name: getattr(F, name) for name in NAMES},
    amax=lambda x, axis: F.max(x, axis=axis),
    concatenate=lambda arrays, axis: F.concat(*arrays, dim=axis),
    stack=lambda arrays, axis: F.stack(*arrays, axis=axis),
)
CASES = {
    (op.name, case.number): case
    for op in sorted(registry, key=lambda op: op.name)
    for case in (Case(op, i, sample) for i, sample in enumerate(op.samples))
    if case.connected() and not op.defined
}
OPERATORS = [f"operator({name!r}, {number}" for name, number in CASES]
BEFORE = 0.25  # what is in a gradient array that is added to


class RegistryRun(programs.NumPyRun):
    """The reference for programs with operators of the registry: their values, which test_registry.py compares with
    NumPy's."""

    def operator(self, name: str, number: int, *arrays: Any) -> Any:
        return ArrayRun.operator(name, number, *(Array._from_host(np.array(x, order="C")) for x in arrays)).asnumpy()


def with_operators(seed: int) -> Program:
    return Program(seed, 10, RegistryRun, OPERATORS)


class ArrayRun(Run):
    """A program on arrays, recorded."""

    F = Table(programs.functions(OURS))

    def __init__(self, program: Program, dtype: Any = np.float64) -> None:
        self.program = program
        super().__init__({n: Array._from_host(np.array(x, dtype)) for n, x in program.leaves.items()})
        self.leaves = {n: self.names[n] for n, how in program.marked.items() if how}
        for name, x in self.leaves.items():
            x.attach_grad(program.marked[name])
            if program.marked[name] == "add":
                x.grad[:] = BEFORE
        with autograd.record():
            for line in program.lines:
                self.line(line)
            # a leaf that was written is a leaf again when the recording ends: its new value is on the tape by this
            heads = {n: self.names[n] * 1 for n in program.heads}
        self.dtype = dtype
        live = [(n, w) for n, w in program.heads.items() if on_tape(heads[n])]
        self.heads = [heads[n] for n, _ in live]
        self.weights = [Array._from_host(np.array(w, dtype)) for _, w in live]

    @staticmethod
    def operator(name: str, number: int, *arrays: Any) -> Any:
        """A sample of an operator of the registry, whose smooth inputs are made of the arrays' elements."""
        case = CASES[name, number]
        inputs = case.arrays(np.float64)
        given = iter(arrays * len(inputs))
        for i in case.connected():
            if not (case.smooth(i) and inputs[i].size and all(x.size for x in arrays)):
                continue
            x, of, n = next(given), case.sample.inputs[i], inputs[i].size
            apart = Array._from_host(case.rng(f"apart {i}").uniform(-1, 1, n))  # no two are equal
            chosen = F.sigmoid(x.reshape(-1)[[k % x.size for k in range(n)]] + apart).reshape(inputs[i].shape)
            low, width = (
                (inputs[i], 0.01)
                if isinstance(of, np.ndarray)
                else (case.sample.low, case.sample.high - case.sample.low)
            )
            inputs[i] = chosen * width + low
        outputs = [y for y in case.run(inputs) if is_float(y.dtype) and y.size]
        return F.tanh(outputs[0].reshape(-1)[:6]) if outputs else arrays[0] * 1

    def constant(self, x: Any) -> Any:
        return x.detach().copy()

    def paused(self, x: Any) -> Any:
        with autograd.pause():
            return x * 1

    def first(self) -> dict[str, np.ndarray]:
        """The gradients of marked leaves."""
        if self.heads:
            autograd.backward(self.heads, self.weights, retain_graph=True)
        how = self.program.marked
        return {n: x.grad.asnumpy() - (BEFORE if how[n] == "add" else 0) for n, x in self.leaves.items()}

    def second(self, direction: dict[str, Any], along: dict[str, Any]) -> float:
        """The derivative along a direction of the gradient's product with another."""
        if not self.heads:
            return 0.0
        found = autograd.grad(self.heads, list(self.leaves.values()), self.weights, create_graph=True, unused="zeros")
        heads = [(g, direction[n]) for n, g in zip(self.leaves, found, strict=True) if on_tape(g)]
        if not heads:
            return 0.0
        weights = [Array._from_host(np.array(v, self.dtype)) for _, v in heads]
        again = autograd.grad([g for g, _ in heads], list(self.leaves.values()), weights, unused="zeros")
        return dots({n: g.asnumpy() for n, g in zip(self.leaves, again, strict=True)}, along)


def on_tape(x: Any) -> bool:
    return entry_of(x) is not None


def dots(a: dict[str, Any], b: dict[str, Any]) -> float:
    return math.fsum(float((x * b[name]).sum()) for name, x in a.items())


def against_differences(program: Program) -> bool:
    """False: the differences do not agree with each other, so the program says nothing."""
    u, v = program.directions
    expected = programs.slope(program, u)
    if expected is None:
        return False
    run = ArrayRun(program)
    found = dots(run.first(), u)
    assert abs(found - expected) <= 1e-6 * max(1.0, abs(expected)), (
        f"{found}, differences: {expected}\n{program.text()}"
    )
    reference = second_by_differences(program, u, v)
    if reference is not None:
        found = run.second(u, v)
        assert abs(found - reference) <= 1e-5 * max(1.0, abs(reference)), (
            f"second order {found}, differences: {reference}\n{program.text()}"
        )
    return reference is not None


def second_by_differences(program: Program, u: Any, v: Any) -> float | None:
    """Differences of the first order, which has been compared with differences itself."""
    _, frozen = programs.total(program, program.leaves)

    def first(h: float) -> float:
        at = Program.__new__(Program)
        at.__dict__.update(program.__dict__, leaves=programs.moved(program, v, h))
        run = FrozenRun(at, frozen)
        return dots(run.first(), u)

    found = []
    for h in (1e-3, 5e-4):
        found.append((first(-2 * h) - 8 * first(-h) + 8 * first(h) - first(2 * h)) / (12 * h))
    a, b = found
    return b if abs(a - b) <= 1e-6 * max(1.0, abs(b)) else None


class FrozenRun(ArrayRun):
    """With the constants of another run."""

    def __init__(self, program: Program, frozen: list[Any]) -> None:
        self.frozen = iter(frozen)
        super().__init__(program)

    def constant(self, x: Any) -> Any:
        return Array._from_host(np.array(next(self.frozen)))

    paused = constant


def test_values_are_numpys() -> None:
    for seed in range(100):
        program = Program(seed)
        run = programs.NumPyRun(program)
        for line in program.lines:
            run.line(line)
        ours = ArrayRun(program).names
        for name, x in run.names.items():
            np.testing.assert_allclose(ours[name].asnumpy(), x, rtol=1e-10, atol=1e-10, err_msg=program.text())


BOTH = pytest.mark.parametrize("make", [Program, with_operators], ids=["", "registry"])


@BOTH
@pytest.mark.parametrize("block", range(3))
def test_gradients_are_differences(block: int, make: Any) -> None:
    said = sum(against_differences(make(seed)) for seed in range(block * 15, block * 15 + 15))
    assert said > 8


@pytest.mark.stress
@BOTH
@pytest.mark.parametrize("block", range(25))
def test_gradients_are_differences_in_many_programs(block: int, make: Any) -> None:
    said = sum(against_differences(make(seed)) for seed in range(10_000 + block * 100, 10_100 + block * 100))
    assert said > 60  # of the others, differences of two step sizes say different things


def test_gradients_are_pytorchs() -> None:
    """Where PyTorch takes the program: the answers say how many it refused."""
    answers = json.loads(ANSWERS.read_text())
    compared = 0
    for seed, answer in enumerate(answers["programs"]):
        if answer is None:
            continue
        program = Program(seed)
        u, v = program.directions
        run = ArrayRun(program)
        first, second = dots(run.first(), u), run.second(u, v)
        np.testing.assert_allclose([first, second], answer, rtol=1e-7, atol=1e-7, err_msg=program.text())
        compared += 1
    assert compared == len(answers["programs"]) - answers["refused"] > 100


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_every_engine_gives_the_same_bytes(workers: int) -> None:
    def found(seed: int, engine: Engine) -> list[bytes]:
        with engine:
            program = Program(seed)
            for _ in range(3):  # the third time by a plan
                run = ArrayRun(program, np.float32)
                gradients = run.first()
            names = [*gradients.values(), *(x.asnumpy() for x in run.names.values())]
            return [x.tobytes() for x in names] + [np.float64(run.second(*program.directions)).tobytes()]

    for seed in range(20):
        expected = found(seed, Engine(kind="NaiveEngine", inline=False))
        assert found(seed, Engine(workers=workers)) == expected, Program(seed).text()
        assert found(seed, Engine(workers=workers, inline=False)) == expected, Program(seed).text()
