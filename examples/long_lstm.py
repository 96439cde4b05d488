"""An LSTM written by hand that remembers, for 200 steps, which of two signals came first.

python examples/long_lstm.py --steps 60
"""

from __future__ import annotations

from typing import Any

import numpy as np
from descent import command_line, descend

from vardag import nd

LENGTH, BATCH, HIDDEN, RATE = 200, 16, 16, 0.005
LONGEST = 1.0  # the norm beyond which a gradient is shortened, for over so many steps it may explode


def cell(x: Any, h: Any, c: Any, weights: list[Any]) -> tuple[Any, Any]:
    wx, wh, bias = weights
    gates = nd.FullyConnected(x, wx, bias, num_hidden=4 * HIDDEN)
    gates = gates + nd.FullyConnected(h, wh, no_bias=True, num_hidden=4 * HIDDEN)
    i, f, g, o = nd.split(gates, num_outputs=4, axis=1)
    c = nd.sigmoid(f) * c + nd.sigmoid(i) * nd.tanh(g)
    return nd.sigmoid(o) * nd.tanh(c), c


def loss_of(xs: Any, y: Any, weights: list[Any]) -> Any:
    *recurrent, out = weights
    h = c = nd.zeros((BATCH, HIDDEN))
    for x in xs:
        h, c = cell(x, h, c, recurrent)
    return -nd.log_softmax(nd.dot(h, out)).pick(y).mean()


def start(seed: int) -> tuple[np.random.Generator, list[np.ndarray]]:
    """Random numbers, and the first weights; the gates begin open for what is remembered."""
    rng = np.random.default_rng(seed)
    shapes = (4 * HIDDEN, 2), (4 * HIDDEN, HIDDEN), (4 * HIDDEN,), (HIDDEN, 2)
    weights = [rng.normal(0, 0.3, shape).astype("float32") for shape in shapes]
    weights[2][:] = 0
    weights[2][HIDDEN : 2 * HIDDEN] = 6
    return rng, weights


def batch(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of noise with one mark on either channel at the beginning, and which channel it was."""
    y = rng.integers(0, 2, BATCH)
    xs = rng.normal(0, 0.02, (LENGTH, BATCH, 2))
    xs[0, np.arange(BATCH), y] += 3
    return xs.astype("float32"), y.astype("float32")


def run(steps: int, seed: int = 0) -> list[float]:
    """Train; the loss at each step."""
    rng, values = start(seed)

    def loss(weights: list[Any]) -> Any:
        xs, y = map(nd.array, batch(rng))
        return loss_of(xs, y, weights)

    return descend(values, loss, steps, RATE, LONGEST)


if __name__ == "__main__":
    command_line(run, "Remember a mark for 200 steps.", 60)
