"""What the small examples have in common: steps of gradient descent, and a command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vardag import autograd, nd


def descend(
    values: Sequence[np.ndarray],
    loss_of: Callable[[list[Any]], Any],
    steps: int,
    rate: float,
    longest: float | None = None,
) -> list[float]:
    """The loss at each step from these weights on.   `longest`: the norm beyond which a gradient is shortened to it."""
    weights = [nd.array(w) for w in values]
    for w in weights:
        w.attach_grad()
    losses = []
    for _ in range(steps):
        with autograd.record():
            loss = loss_of(weights)
        loss.backward()
        part = 1
        if longest is not None:
            norm = nd.sqrt(nd.add_n(*[nd.sum(w.grad * w.grad) for w in weights]))
            part = longest / nd.maximum(norm, longest)
        for w in weights:
            w -= rate * w.grad * part  # noqa: PLW2901
        losses.append(loss)
    return [loss.asscalar().item() for loss in losses]


def command_line(run: Callable[[int], list[float]], description: str, steps: int) -> None:
    """``--steps``: how many; prints the first and the last loss."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps)
    losses = run(parser.parse_args().steps)
    print(f"loss {losses[0]:.4f} at the first step, {losses[-1]:.4f} at the last")
