"""Random functions with in-place writes, views, detached parts and random numbers.

The transforms agree among themselves, with `backward`, with checkpoints of random parts, and with differences.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd

SHAPE = (2, 3)
KINDS = ("add", "mul", "tanh", "sin", "div", "write", "update", "view", "dot", "sum", "detach", "drop", "outside")


class Program:
    """A function of two arrays and one from outside, made of a seed."""

    def __init__(self, seed: int, checkpoints: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.steps = [self.step() for _ in range(self.rng.integers(4, 12))]
        self.checkpoints = checkpoints
        self.w = nd.array(self.rng.uniform(0.5, 1.5, SHAPE), dtype="float64")

    def step(self) -> tuple[str, int, int, int]:
        return str(self.rng.choice(KINDS)), *(int(i) for i in self.rng.integers(0, 100, 3))

    def apply(self, kind: str, a: Any, b: Any, k: int) -> Any:
        if kind == "add":
            return a + b * 0.5
        if kind == "mul":
            return a * b
        if kind == "tanh":
            return nd.tanh(a) + b
        if kind == "sin":
            return nd.sin(a * b)
        if kind == "div":
            return a / (b * b + 1)
        if kind == "write":
            c = a * 1
            c[k % 2] = b[0]
            return c
        if kind == "update":
            c = a + 0
            c[:, k % 3] *= b[:, 0]
            c += b
            return c
        if kind == "view":
            c = b * 2
            part = c[:, 1:]
            part[:] = nd.sin(a[:, :2])
            return c
        if kind == "dot":
            return nd.dot(a, nd.dot(b, a, transpose_a=True)) * 0.3
        if kind == "sum":
            return a * b.sum() * 0.2
        if kind == "detach":
            return a.detach() * b
        if kind == "drop":
            return nd.Dropout(a, p=0.3) + b * nd.random.uniform(shape=SHAPE, dtype="float64")
        return a * self.w

    def __call__(self, x: Any, y: Any) -> Any:
        values = [x, y]
        for i, (kind, p, q, k) in enumerate(self.steps):
            a, b = values[p % len(values)], values[q % len(values)]
            one: Any = lambda a, b, kind=kind, k=k: self.apply(kind, a, b, k)  # noqa: E731
            values.append((autograd.checkpoint(one) if self.checkpoints and i % 2 else one)(a, b))
        return [nd.tanh(values[-1]), values[-2].sum()]


def seeded(function: Any, *args: Any) -> Any:
    vd.random.seed(11)
    return function(*args)


def near(a: Any, b: Any, where: str = "") -> None:
    for x, y in zip(a, b, strict=True):
        found, expected = (v.asnumpy() if hasattr(v, "asnumpy") else v for v in (x, y))
        np.testing.assert_allclose(found, expected.reshape(found.shape), 1e-8, 1e-9, err_msg=where)


def by_backward(program: Program, x: Any, y: Any) -> list[Any]:
    for a in (x, y, program.w):
        a.attach_grad()
    with autograd.record():
        out, total = seeded(program, x, y)
    autograd.backward([out, total])
    return [a.grad.asnumpy() for a in (x, y, program.w)]


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_transforms_agree(first: int) -> None:
    for seed in range(first, first + 10):
        plain, cut = Program(seed, False), Program(seed, True)
        rng = np.random.default_rng(1000 + seed)
        x, y, u, v = (nd.array(rng.uniform(-1, 1, SHAPE), dtype="float64") for _ in range(4))
        where = f"seed {seed}"
        expected = by_backward(plain, x.copy(), y.copy())
        near(by_backward(cut, x.copy(), y.copy()), expected, where)
        for f in (plain, cut):
            both = autograd.value_and_grad(f, (0, 1))
            near(seeded(both, x, y)[1], expected[:2], where)
            jacobians = seeded(autograd.jacobian(f, (0, 1), mode="reverse"), x, y)
            forward = seeded(autograd.jacobian(f, (0, 1), mode="forward"), x, y)
            blocks = [[j.asnumpy().reshape(-1, 6) for j in row] for row in jacobians]
            near([j for row in forward for j in row], [j for row in jacobians for j in row], where)
            tangent = [blocks[i][0] @ u.asnumpy().ravel() + blocks[i][1] @ v.asnumpy().ravel() for i in (0, 1)]
            near(seeded(autograd.jvp, f, [x, y], [u, v])[1], tangent, where)
            one = nd.array([1.5], dtype="float64")
            pulled = [blocks[0][j].T @ u.asnumpy().ravel() + blocks[1][j].T @ one.asnumpy() for j in (0, 1)]
            near(seeded(autograd.vjp, f, x, y)[1]([u, one]), pulled, where)
        second = [seeded(autograd.hvp, f, [x, y], [u, v])[1] for f in (plain, cut)]
        near(*second, where)
        if seed % 5 == 0:
            rows = seeded(autograd.hessian(plain, (0, 1)), x, y)
            raw = [[h.asnumpy().reshape(6, 6) for h in row] for row in rows]
            near(second[0], [row[0] @ u.asnumpy().ravel() + row[1] @ v.asnumpy().ravel() for row in raw], where)
        if not any(kind == "detach" for kind, *_ in plain.steps):
            autograd.check(plain, x, y, order=2, seed=seed)
