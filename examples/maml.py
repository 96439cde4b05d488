"""MAML: weights from which one gradient step fits a new sine wave, found by differentiating through that step.

python examples/maml.py --steps 300
"""

from __future__ import annotations

from typing import Any

import numpy as np
from descent import command_line, descend

from vardag import autograd, nd

POINTS, HIDDEN, INNER, OUTER, TASKS = 10, 24, 0.05, 0.02, 4


def model(x: Any, weights: list[Any]) -> Any:
    w1, b1, w2, b2 = weights
    hidden = nd.tanh(nd.FullyConnected(x, w1, b1, num_hidden=HIDDEN))
    return nd.FullyConnected(hidden, w2, b2, num_hidden=1)


def error(x: Any, y: Any, weights: list[Any]) -> Any:
    return nd.mean(nd.square(model(x, weights) - y))


def adapted(x: Any, y: Any, weights: list[Any]) -> list[Any]:
    """The weights after a step on one task; the step itself is recorded."""
    slopes = autograd.grad(error(x, y, weights), weights, create_graph=True)
    return [w - INNER * g for w, g in zip(weights, slopes, strict=True)]


def start(seed: int) -> tuple[np.random.Generator, list[np.ndarray]]:
    """Random numbers, and the first weights."""
    rng = np.random.default_rng(seed)
    shapes = (HIDDEN, 1), (HIDDEN,), (1, HIDDEN), (1,)
    return rng, [rng.normal(0, 0.7, shape).astype("float32") for shape in shapes]


def task(rng: np.random.Generator) -> list[np.ndarray]:
    """Points of one sine wave to learn from, and others of it to be judged by."""
    height, phase = rng.uniform(0.5, 2), rng.uniform(0, np.pi)
    x, other = rng.uniform(-3, 3, (2, POINTS, 1))
    return [a.astype("float32") for a in (x, height * np.sin(x + phase), other, height * np.sin(other + phase))]


def run(steps: int, seed: int = 0) -> list[float]:
    """Train; at each step the error on new points after adaptation, over some tasks."""
    rng, values = start(seed)

    def loss(weights: list[Any]) -> Any:
        tasks = [[nd.array(a) for a in task(rng)] for _ in range(TASKS)]
        return nd.add_n(*[error(other, y2, adapted(x, y, weights)) for x, y, other, y2 in tasks]) / TASKS

    return descend(values, loss, steps, OUTER)


if __name__ == "__main__":
    command_line(run, "Learn to learn sine waves.", 300)
