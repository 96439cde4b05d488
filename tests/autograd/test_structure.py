"""Structures: graphs that differ in values only have one, and what the tape keeps of small arrays is never written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.autograd import plans, structure
from vardag.autograd.tape import entry_of
from vardag.engine import Engine


def structure_after(program: Any, *arrays: Any) -> Any:
    with autograd.record():
        y = program(*arrays)
    return structure.structure_of(entry_of(y)[0])


def marked(*values: float) -> Any:
    x = nd.array(values)
    x.attach_grad()
    return x


def test_what_differs_in_values_only_has_one_structure() -> None:
    with Engine(workers=1):
        x, w = marked(1, 2), nd.array([3, 4])
        found = {structure_after(lambda x, w, c=c: nd.tanh(x * w + c) * x, x, w) for c in (1, 2.5, 7)}
        assert len(found) == 1
        w[:] = 9
        x[:] = 9
        assert structure_after(lambda x, w: nd.tanh(x * w + 3) * x, x, w) in found


def squared(a: Any) -> Any:
    return a * a


PROGRAMS = {
    "used twice": lambda x, y: squared(nd.exp(x)),
    "two alike": lambda x, y: nd.exp(x) * nd.exp(x),
    "another leaf": lambda x, y: squared(nd.exp(y)),
    "another operator": lambda x, y: squared(nd.sin(x)),
    "a number": lambda x, y: nd.exp(x) * 2,
    "an array": lambda x, y: nd.exp(x) * nd.ones(2),
    "a number before": lambda x, y: 2 - nd.exp(x),
    "a number behind": lambda x, y: nd.exp(x) - 2,
    "a leaf twice": lambda x, y: x * x,
    "two leaves": lambda x, y: x * y,
    "two leaves in turn": lambda x, y: y * x,
    "a part": lambda x, y: nd.exp(x[:1]),
    "another part": lambda x, y: nd.exp(x[1:]),
    "an axis": lambda x, y: nd.sum(nd.exp(x), axis=0),
    "keeping it": lambda x, y: nd.sum(nd.exp(x), axis=0, keepdims=True),
}


def test_what_differs_otherwise_has_another() -> None:
    with Engine(workers=1):
        x, y = marked(1, 2), marked(3, 4)
        found = {name: structure_after(program, x, y) for name, program in PROGRAMS.items()}
        again = {name: structure_after(program, x, y) for name, program in PROGRAMS.items()}
    assert again == found
    assert len(set(found.values())) == len(PROGRAMS)


def test_each_program_has_the_gradient_of_its_own_plan() -> None:
    """One after the other and in turn: a plan that took another's structure would show."""
    with Engine(workers=1, inline=False):
        x, y = marked(1, 2), marked(3, 4)
        expected = {name: gradients(program, x, y) for name, program in PROGRAMS.items()}
    with Engine(workers=1):
        x, y = marked(1, 2), marked(3, 4)
        for _ in range(4):
            for name, program in PROGRAMS.items():
                assert gradients(program, x, y) == expected[name], name


def gradients(program: Any, *leaves: Any) -> list[bytes]:
    for x in leaves:
        x.grad[:] = 0
    with autograd.record():
        y = program(*leaves)
    y.backward()
    return [x.grad.asnumpy().tobytes() for x in leaves]


def test_a_deep_graph_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "_known", known := {})
    monkeypatch.setattr(structure, "find", known.get)
    monkeypatch.setattr("vardag.autograd.recorder.find", known.get)

    def deep(x: Any) -> Any:
        for _ in range(structure.MOST + 500):
            x = x + 1
        return x

    with Engine(workers=1):
        x = marked(1, 2)
        before = dict(plans._found)
        for _ in range(3):
            assert gradients(deep, x) == [np.ones(2, "f").tobytes()]
        assert plans._found.keys() <= before.keys()
        assert len(known) < structure.MOST + 10  # what is deeper has one in common


@pytest.mark.host("devices have no plans")
def test_structures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "REMEMBERED", 10)
    with Engine(workers=1):
        for i in range(50):
            x = marked(1, i)
            assert gradients(lambda x: x * x * x, x) == [(3 * np.array([1, i], "f") ** 2).tobytes()]
            assert len(structure._known) <= 10


@pytest.mark.parametrize(
    "name", ["x * x", "x / x", "x ** x", "x - x", "nd.arctan2(x, x)", "nd.maximum(x, x)", "nd.hypot(x, x)"]
)
def test_an_array_with_itself(name: str) -> None:
    """The tape has a copy of its value for each way in which it is kept."""
    with Engine(workers=1):
        x = marked(1.5, 2)
        with autograd.record():
            y = eval(name, {"x": x, "nd": nd})
        x.detach()[:] = 50
        with autograd.pause():
            expected = marked(1.5, 2)
        y.backward()
        with autograd.record():
            other = eval(name, {"x": expected, "nd": nd})
        other.backward()
        assert x.grad.asnumpy().tobytes() == expected.grad.asnumpy().tobytes()


@pytest.mark.parametrize("write", ["whole", "part", "in place", "by a view", "by a function"])
def test_a_small_value_that_the_tape_keeps_is_not_written(write: str) -> None:
    with Engine(workers=1) as engine:
        x = marked(1, 2)
        data = nd.array([3, 4]) + 0
        with autograd.record():
            h = nd.exp(x * data)
            y = h * h * data
        for array in (data, h.detach(), y.detach()):
            if write == "whole":
                array[:] = 50
            elif write == "part":
                array[0] = 50
            elif write == "in place":
                array *= 50  # noqa: PLW2901
            elif write == "by a view":
                array[1:] += 50
            else:
                engine.push(lambda a: a.fill(50), updates=[array])
        y.backward()
        assert data.asnumpy().max() > 40
        u = np.exp(np.array([3, 8], "f"))
        np.testing.assert_allclose(x.grad.asnumpy(), 2 * u * u * np.array([9, 16]), rtol=1e-5)


def test_a_gradient_is_nobody_elses_memory() -> None:
    """Those that a plan gives: two leaves of one cotangent, a head gradient, a value that was saved."""
    with Engine(workers=1):
        for _ in range(4):
            x, y, z = marked(1, 2), marked(3, 4), marked(5, 6)
            with autograd.record():
                total = (x + y) * 3 + z
            total.backward()
            x.grad[:] = 7
            assert y.grad.asnumpy().tolist() == [3, 3]
            z.grad[:] = 8
            with autograd.record():
                other = z + 0
            other.backward()
            assert z.grad.asnumpy().tolist() == [1, 1]


def test_numbers_keep_their_sign_and_their_dtype() -> None:
    """Zeros are equal, 1 and True too; a number is of the array's dtype."""
    with Engine(workers=1):
        x = nd.array([1.0])
        for _ in range(3):
            assert (x / 0.0).asscalar() == np.inf
            assert (x / -0.0).asscalar() == -np.inf
            assert (x * 1).asscalar() == (x * 1.0).asscalar() == (x * True).asscalar() == 1
            assert (nd.array([1.0], dtype="float64") / 3).asscalar() == 1 / 3
            assert (x / 3).asscalar() == np.float32(1) / np.float32(3)
            assert (nd.array([1.0], dtype="float16") * 1e6).asscalar() == np.inf
