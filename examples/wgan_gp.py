"""The critic of a Wasserstein GAN with a gradient penalty: a loss that contains the norm of a gradient.

The penalty asks that the critic's slope between real and generated points is 1, so its gradient is of second order:
`autograd.grad(..., create_graph=True)` gives arrays that can be differentiated like any others.

    python examples/wgan_gp.py --steps 200
"""

from __future__ import annotations

from typing import Any

import numpy as np
from descent import command_line, descend

from vardag import autograd, nd

BATCH, HIDDEN, RATE, PENALTY = 64, 32, 0.02, 10.0


def critic(x: Any, weights: list[Any]) -> Any:
    w1, b1, w2, b2 = weights
    hidden = nd.tanh(nd.FullyConnected(x, w1, b1, num_hidden=HIDDEN))
    return nd.FullyConnected(hidden, w2, b2, num_hidden=1)


def loss_of(real: Any, made: Any, mix: Any, weights: list[Any]) -> Any:
    """Wasserstein distance (negative) and the penalty on the slope between the two."""
    between = real * mix + made * (1 - mix)
    between.attach_grad()
    slope = autograd.grad(critic(between, weights).sum(), between, create_graph=True)
    length = nd.sqrt(nd.sum(slope * slope, axis=1) + 1e-12)
    penalty = nd.mean((length - 1) ** 2)
    return critic(made, weights).mean() - critic(real, weights).mean() + PENALTY * penalty


def start(seed: int) -> tuple[np.random.Generator, list[np.ndarray]]:
    """Random numbers, and the first weights."""
    rng = np.random.default_rng(seed)
    shapes = (HIDDEN, 2), (HIDDEN,), (1, HIDDEN), (1,)
    return rng, [rng.normal(0, 0.5, shape).astype("float32") for shape in shapes]


def batch(rng: np.random.Generator) -> list[np.ndarray]:
    """Points on a circle, points around its centre, and where between them to look."""
    angle = rng.uniform(0, 2 * np.pi, BATCH)
    real = np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.05, (BATCH, 2))
    return [a.astype("float32") for a in (real, rng.normal(0, 0.3, (BATCH, 2)), rng.uniform(0, 1, (BATCH, 1)))]


def run(steps: int, seed: int = 0) -> list[float]:
    """Train the critic; its loss at each step."""
    rng, values = start(seed)

    def loss(weights: list[Any]) -> Any:
        real, made, mix = map(nd.array, batch(rng))
        return loss_of(real, made, nd.broadcast_to(mix, shape=real.shape), weights)

    return descend(values, loss, steps, RATE)


if __name__ == "__main__":
    command_line(run, "Train the critic of a WGAN-GP.", 200)
