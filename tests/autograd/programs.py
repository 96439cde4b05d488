"""Random differentiable programs as Python text, which NumPy, vardag and PyTorch run.

A program is a list of lines over names: views, in-place writes through views and into bases, detached values, loops and
branches on values.  It is made by running it on NumPy, line by line, so that every line is valid.  NumPy knows no tape:
in its run ``constant(x)`` notes the value, or gives what another run has noted, so that differences of a program
leave constants alone.   This file needs NumPy only, so that torch_programs.py can import it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

ONE = (
    "tanh", "sin", "cos", "square", "sigmoid", "exp", "log", "sqrt", "relu", "abs", "softmax", "mean", "sum", "max",
    "cube", "rows",
)  # fmt: skip
ALONG = ("softmax", "mean", "sum", "max", "rows")  # an axis
ALIKE = ("maximum", "hypot", "divide", "join", "pile", "where")  # of two of one shape
KEYS = ("0, ...", "-1, ...", "1:", ":-1", "::2", "..., 0", "..., 1:", "..., None", ":, 0", ":, 1:")


def functions(m: Any) -> dict[str, Callable[..., Any]]:
    """What a program calls, by a module (or the like) with NumPy's names."""
    return {
        "tanh": m.tanh,
        "sin": m.sin,
        "cos": m.cos,
        "square": m.square,
        "abs": m.abs,
        "maximum": m.maximum,
        "sigmoid": lambda x: 1 / (1 + m.exp(-x)),
        "exp": lambda x: m.exp(m.tanh(x)),
        "log": lambda x: m.log(1.5 + m.tanh(x)),
        "sqrt": lambda x: m.sqrt(1.5 + m.tanh(x)),
        "relu": lambda x: m.where(x > 0, x, x * 0),
        "softmax": lambda x: m.exp(x) / m.exp(x).sum(-1)[..., None],
        "mean": lambda x: x.mean(-1),
        "sum": lambda x: x.sum(0),
        "max": lambda x: m.amax(x, -1),
        "cube": lambda x: x**3,
        "hypot": lambda x, y: m.sqrt(x * x + y * y + 1),
        "divide": lambda x, y: x / (1.5 + m.tanh(y)),
        "outer": lambda x, y: x.reshape(-1, 1) * y.reshape(1, -1),
        "product": lambda x, y: m.matmul(x, y.T),
        "join": lambda x, y: m.concatenate([x, y], 0),
        "pile": lambda x, y: m.stack([x, y], 0),
        "where": lambda x, y: m.where(x > 0, x, y),
        "rows": lambda x: x[[0, -1, 0]],
    }


LARGEST = 50.0


class Bad(Exception):
    """A program that is of no use: it grows too large."""


class Program:
    """`lines`: see above.   `leaves`: their initial values, by name; `marked`: how, None for plain data.   `heads`: the
    weights, by name.   `directions`: two, of all marked leaves.
    """

    def __init__(
        self, seed: int, length: int = 12, run: type[NumPyRun] | None = None, operators: Sequence[str] = ()
    ) -> None:
        """`operators`: calls that lines make too, as text without their operands; `run` is who knows them."""
        self.seed, self.operators = seed, operators
        self.reference = run or NumPyRun
        for attempt in range(100):
            try:
                self._make(random.Random(f"{seed} {attempt}"), length)
            except Bad:
                continue
            break

    def _make(self, rng: random.Random, length: int) -> None:
        self.rng = rng
        numbers = np.random.default_rng(rng.getrandbits(32))
        shape = rng.choice([(4,), (3, 4), (2, 3), (3, 3)])
        self.lines: list[str] = []
        self.leaves = {f"x{i}": numbers.uniform(-1, 1, shape) for i in range(rng.randint(2, 4))}
        self.marked = {name: rng.choice(["write", "write", "add", None]) for name in self.leaves}
        self.marked["x0"] = "write"
        run = self.reference(self)
        self.count = 0
        while len(self.lines) < length:
            line = self._draw(run)
            if line is not None:
                try:
                    run.line(line)
                except (IndexError, ValueError, TypeError, np.exceptions.AxisError):
                    continue
                self.lines.append(line)
                if not all(np.isfinite(x).all() and abs(x).max(initial=0) < LARGEST for x in run.arrays().values()):
                    raise Bad
        live = [name for name, x in run.arrays().items() if x.size and name not in run.constants]
        heads = rng.sample(live, k=min(3, len(live)))
        self.heads = {name: numbers.uniform(-1, 1, run.arrays()[name].shape) for name in heads}
        self.directions = [
            {name: numbers.uniform(-1, 1, shape) for name, how in self.marked.items() if how} for _ in range(2)
        ]

    def _draw(self, run: NumPyRun) -> str | None:
        rng, arrays = self.rng, run.arrays()
        x = rng.choice(list(arrays))
        shape = arrays[x].shape
        alike = [name for name, a in arrays.items() if a.shape == shape]
        y, new = rng.choice(alike), f"a{self.count}"
        kind = rng.choice(["f", "f", "f", "b", "b", "b", "p", "v", "v", "k", "i", "i", "w", "w", "o", "c", "l", "n"])
        self.count += 1
        if self.operators and kind in "fbp" and rng.random() < 0.6:
            return f"{new} = {rng.choice(self.operators)}, {x}, {rng.choice(list(arrays))})"
        if kind == "f":
            name = rng.choice(ONE)
            return f"{new} = F.{name}({x})" if shape or name not in ALONG else None
        if kind == "b":
            return f"{new} = {x} {rng.choice('+-*')} {rng.choice([y, '0.5', '1.5'])}"
        if kind == "p":
            if rng.random() < 0.7:
                return f"{new} = F.{rng.choice(ALIKE)}({x}, {y})"
            return f"{new} = F.{rng.choice(['outer', 'product'])}({x}, {rng.choice(list(arrays))})"
        if kind == "v":
            return f"{new} = {x}[{rng.choice(KEYS)}]"
        if kind == "n":  # a view where the memory allows one, which is not the same everywhere: only where it does
            return f"{new} = {x}.reshape(-1)" if arrays[x].flags.c_contiguous else None
        if kind == "k":
            return f"{new} = {rng.choice(['constant', 'paused'])}({x})"
        if kind == "c":
            return f"{new} = F.sin({x}) if value(F.sum({x}.reshape(-1))) > {rng.uniform(-1, 1):.2f} else {x} * 0.5"
        if kind == "l":
            return f"{new} = {x}\nfor _ in range({rng.randint(1, 3)}):\n    {new} = F.tanh({new} + {y})"
        if x in run.constants or (x in self.leaves and rng.random() < 0.8):  # PyTorch refuses to write leaves
            return None
        target, source = x, y
        if kind in "wi" and rng.random() < 0.6:
            key = rng.choice(KEYS[:5])
            target, source = f"{x}[{key}]", f"{y}[{key}]"
        if kind == "i":
            return f"{target} {rng.choice(['+=', '-=', '*='])} {rng.choice([source, '0.5'])}"
        if kind == "w":
            whole = target if target != x else f"{x}[:]"
            return f"{whole} = {rng.choice([f'F.tanh({source})', source, '0.25'])}"
        return f"{x}[:] = F.cos({y})"

    def text(self) -> str:
        """For a message."""
        rows = [f"{name} = {x.tolist()}  # {self.marked[name]}" for name, x in self.leaves.items()]
        rows += self.lines
        rows += [f"head {name}, weights {w.tolist()}" for name, w in self.heads.items()]
        return f"program {self.seed}:\n" + "\n".join(rows)


class Run:
    """A program in some library.  `F`: the functions.   `names`: what the lines have made so far."""

    F: Any

    def __init__(self, leaves: dict[str, Any]) -> None:
        self.names: dict[str, Any] = dict(leaves)
        self.tools = {
            "F": self.F,
            "operator": self.operator,
            "constant": self.constant,
            "paused": self.paused,
            "value": self.value,
        }

    def line(self, text: str) -> None:
        """Run it."""
        scope = {**self.tools, **self.names}
        exec(text, scope)
        self.names = {name: x for name, x in scope.items() if name[0] in "xa" and name[1:].isdigit()}

    def constant(self, x: Any) -> Any:
        """The same value, to which no gradient flows."""
        raise NotImplementedError

    paused = constant

    def operator(self, name: str, number: int, *arrays: Any) -> Any:
        """A sample of an operator of the registry."""
        raise NotImplementedError

    @staticmethod
    def value(x: Any) -> float:
        """A scalar's."""
        return float(x)


class Table:
    """Functions as attributes."""

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        self.__dict__.update(functions)


def apart(x: Any, y: Any = 0.0) -> None:
    """Refuse a program that compares equal values: which of them the gradient takes is a convention."""
    if (abs(x - y) < 1e-9).any():
        raise Bad


def careful(functions: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """NumPy's functions, those with kinks not at their kinks."""

    def largest(x: Any) -> Any:
        two = np.sort(x, -1)[..., -2:]
        if two.shape[-1] == 2:
            apart(two[..., 0], two[..., 1])
        return functions["max"](x)

    def away(name: str) -> Callable[..., Any]:
        return lambda x, *more: (apart(x), functions[name](x, *more))[1]

    def different(x: Any, y: Any) -> Any:
        apart(x, y)
        return functions["maximum"](x, y)

    return {
        **functions,
        "max": largest,
        "maximum": different,
        **{name: away(name) for name in ("abs", "relu", "where")},
    }


class NumPyRun(Run):
    """`read`: the values of constants, in the order in which they were asked for.   `frozen`: those of another run."""

    F = Table(functions(np))

    def __init__(
        self, program: Program, leaves: dict[str, Any] | None = None, frozen: Sequence[Any] | None = None
    ) -> None:
        self.read: list[Any] = []
        self.frozen: Iterator[Any] | None = None if frozen is None else iter(frozen)
        self.constants: set[str] = set()
        super().__init__({name: np.array(x) for name, x in (leaves or program.leaves).items()})

    def arrays(self) -> dict[str, Any]:
        return self.names

    def line(self, text: str) -> None:
        super().line(text)
        self.names = {name: np.asarray(x) for name, x in self.names.items()}
        name, _, expression = text.partition(" = ")
        if expression.startswith(("constant(", "paused(")) or expression.partition("[")[0] in self.constants:
            self.constants.add(name)
        if expression.endswith(".reshape(-1)") and expression.partition(".")[0] in self.constants:
            self.constants.add(name)

    def constant(self, x: Any) -> Any:
        self.read.append(np.array(x) if self.frozen is None else next(self.frozen))
        return np.array(self.read[-1])

    paused = constant


def total(program: Program, leaves: dict[str, Any], frozen: Sequence[Any] | None = None) -> tuple[float, list[Any]]:
    """The sum of the weighted heads, and the constants that it took."""
    run = program.reference(program, leaves, frozen)
    for line in program.lines:
        run.line(line)
    return float(sum((run.names[name] * w).sum() for name, w in program.heads.items())), run.read


def moved(program: Program, direction: dict[str, Any], h: float) -> dict[str, Any]:
    """The leaves, a step away."""
    return {name: x + h * direction[name] if name in direction else x for name, x in program.leaves.items()}


def slope(program: Program, direction: dict[str, Any]) -> float | None:
    """The directional derivative by differences of two step sizes; None if a kink is near.

    One away shows in differences that do not agree.  One right here does not, for they look the same from both sides;
    but there the second difference is of the first order.
    """
    try:
        return _slope(program, direction)
    except Bad:
        return None


def _slope(program: Program, direction: dict[str, Any]) -> float | None:
    here, frozen = total(program, program.leaves)

    def differences(h: float) -> tuple[float, float]:
        at = [total(program, moved(program, direction, k * h), frozen)[0] for k in (-2, -1, 1, 2)]
        return (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h), (at[1] - 2 * here + at[2]) / h

    (a, bend), (b, smaller) = differences(1e-3), differences(5e-4)
    smooth = abs(a - b) <= 1e-7 * max(1.0, abs(b)) and abs(bend - 2 * smaller) <= 1e-4 * max(1.0, abs(bend))
    return b if smooth else None
