"""A neural ODE: the field of a spiral is learned from where its points go, through the steps of Runge and Kutta.

`checkpoint` computes the inside of each step again during backward instead of keeping it.

    python examples/neural_ode.py --steps 200
"""

from __future__ import annotations

from typing import Any

import numpy as np
from descent import command_line, descend

from vardag import autograd, nd

BATCH, HIDDEN, STEPS, H, RATE = 32, 24, 10, 0.1, 0.1
SPIRAL = np.array([[-0.3, 2.0], [-2.0, -0.3]])


def field(x: Any, weights: list[Any]) -> Any:
    w1, b1, w2, b2 = weights
    hidden = nd.tanh(nd.FullyConnected(x, w1, b1, num_hidden=HIDDEN))
    return nd.FullyConnected(hidden, w2, b2, num_hidden=2)


@autograd.checkpoint
def advanced(x: Any, weights: list[Any]) -> Any:
    """One step of the classical method of fourth order."""
    a = field(x, weights)
    b = field(x + H / 2 * a, weights)
    c = field(x + H / 2 * b, weights)
    d = field(x + H * c, weights)
    return x + H / 6 * (a + 2 * b + 2 * c + d)


def start(seed: int) -> tuple[np.random.Generator, list[np.ndarray]]:
    """Random numbers, and the first weights."""
    rng = np.random.default_rng(seed)
    shapes = (HIDDEN, 2), (HIDDEN,), (2, HIDDEN), (2,)
    return rng, [rng.normal(0, 0.5, shape).astype("float32") for shape in shapes]


def batch(rng: np.random.Generator) -> list[np.ndarray]:
    """Points, and where the spiral takes them (by many small steps)."""
    x = rng.uniform(-1, 1, (BATCH, 2))
    y = x
    for _ in range(1000):
        y = y + STEPS * H / 1000 * y @ SPIRAL.T
    return [x.astype("float32"), y.astype("float32")]


def run(steps: int, seed: int = 0) -> list[float]:
    """Train; the error at each step."""
    rng, values = start(seed)

    def loss(weights: list[Any]) -> Any:
        x, y = map(nd.array, batch(rng))
        for _ in range(STEPS):
            x = advanced(x, weights)
        return nd.mean(nd.square(x - y))

    return descend(values, loss, steps, RATE)


if __name__ == "__main__":
    command_line(run, "Learn the field of a spiral.", 200)
