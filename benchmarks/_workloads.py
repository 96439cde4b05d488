"""The workloads: what each is called, what it is given, and the ratio to its peers that it should reach.

Imports NumPy alone, so that every interpreter with a peer in it can import it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

PEERS = {
    "numpy": "NumPy",
    "numpy1": "NumPy/1",
    "torch": "PyTorch",
    "torch1": "PyTorch/1",
    "jax": "JAX",
    "jit": "jax.jit",
    "mxnet": "MXNet",
    "executor": "executor",
    "one": "1 thread",
}  # /1: with one thread; executor: ThreadPoolExecutor; one: vardag itself, the serial engine
SINGLE = {"numpy1": "numpy", "torch1": "torch"}  # where a bar names the library, the better of the two ways counts
LIBRARIES = {**SINGLE, "jit": "jax", "executor": "numpy", "one": "vardag"}  # where to find them


@dataclass(frozen=True)
class Bar:
    """The most that the ratio to the best of `peers` should be, if there is such; `stretch`: what would be better."""

    peers: tuple[str, ...]
    ratio: float | None = None
    stretch: float | None = None


@dataclass(frozen=True)
class Workload:
    """`make`: its data.   `per`: operations in one unit.   `moved`: bytes that one unit must move at the least."""

    title: str
    make: Callable[[], Any]
    bars: tuple[Bar, ...]
    per: int = 1
    moved: int = 0
    tolerance: float = 1e-4


def _random(*shapes: tuple[int, ...], scale: float = 1.0) -> list[Any]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=shape) * scale).astype("float32") for shape in shapes]


def _layers(batch: int, *sizes: int) -> Any:
    """A batch, its labels, and the weights and biases of a perceptron."""
    rng = np.random.default_rng(0)
    shapes = [s for n, m in pairwise(sizes) for s in ((m, n), (m,))]
    weights = [(rng.normal(size=s) / np.sqrt(s[-1])).astype("float32") for s in shapes]
    return rng.normal(size=(batch, sizes[0])).astype("float32"), rng.integers(0, sizes[-1], batch), weights


def _lenet() -> Any:
    shapes = ((20, 1, 5, 5), (20,), (50, 20, 5, 5), (50,), (500, 800), (500,), (10, 500), (10,))
    rng = np.random.default_rng(0)
    weights = [(rng.normal(size=s) / np.sqrt(np.prod(s[1:]) or 1)).astype("float32") for s in shapes]
    return rng.normal(size=(64, 1, 28, 28)).astype("float32"), rng.integers(0, 10, 64), weights


def _lstm() -> Any:
    steps, batch, hidden = 50, 32, 128
    xs, h, c = _random((steps, batch, hidden), (batch, hidden), (batch, hidden))
    return xs, h, c, _random((4 * hidden, hidden), (4 * hidden, hidden), (4 * hidden,), scale=hidden**-0.5)


def _rows() -> Any:
    (first,) = _random((1000,))
    return 2000, first, np.linspace(0.5, 1.5, 1000, dtype="float32")


def _chains() -> Any:
    return 20, *_random((256, 256), (256, 256), scale=1 / 16)


def _nothing() -> None:
    return None


def _arrays(n: int, count: int = 2, scale: float = 1.0) -> Callable[[], list[Any]]:
    return lambda: _random(*[(n,)] * count, scale=scale)


def _square(n: int) -> Callable[[], list[Any]]:
    return lambda: _random((n, n), (n, n), scale=n**-0.5)


TORCH, EXECUTOR = ("torch",), ("executor",)
EAGER, COMPILED = ("numpy", "torch", "jax"), ("jit",)
M, M10 = 1_000_000, 10_000_000

WORKLOADS: dict[str, Workload] = {
    "tiny": Workload("a + b, 10, result unused", _arrays(10), (Bar(TORCH, 1.3, 1.0),)),
    "tiny_wait": Workload("a + b, 10, then wait", _arrays(10), (Bar(TORCH, 1.5, 1.2),)),
    "formula_32": Workload("exp(a*b+a)*b-a, 32", _arrays(32, scale=0.5), (Bar(TORCH, 1.0),)),
    "backward": Workload("record (x*x+x)*2, backward, 10", _arrays(10, 1), (Bar(TORCH, 0.6),)),
    "queue": Workload("20,000 no-op functions, 1 wait, each", _nothing, (Bar(EXECUTOR, 0.45),), per=20_000),
    "kernel": Workload("push, wait: a kernel", _nothing, (Bar(EXECUTOR, 0.2),)),
    "function": Workload("push, wait: a user function", _nothing, (Bar(EXECUTOR, 1.0),)),
    "add_1e6": Workload("a + b, 10^6", _arrays(M), (Bar(("numpy", "torch"), 1.6, 1.2),), moved=12 * M),
    "add_1e7": Workload("a + b, 10^7", _arrays(M10), (Bar(("numpy", "torch"), 0.6),), moved=12 * M10),
    "formula_1e6": Workload(
        "exp(a*b+a)*b-a, 10^6", _arrays(M, scale=0.5), (Bar(EAGER, 0.9), Bar(COMPILED, 2.0)), moved=12 * M
    ),
    "formula_1e7": Workload(
        "exp(a*b+a)*b-a, 10^7", _arrays(M10, scale=0.5), (Bar(EAGER, 0.4), Bar(COMPILED, 0.6)), moved=12 * M10
    ),
    "eight_exp": Workload(
        "8 independent exp(a*k), 10^6", _arrays(M, 8, scale=0.5), (Bar((*EAGER, "jit"), 0.7),), moved=64 * M
    ),
    "descent": Workload("w -= lr*g, 100 of 10,000", _arrays(10_000, 200), (Bar(TORCH, 0.9),), moved=12 * M),
    "product_1024": Workload("1024 x 1024 product", _square(1024), (Bar(("numpy",), 1.15),)),
    "product_128": Workload("128 x 128 product", _square(128), (Bar(("numpy",), 1.15),)),
    "mlp_small": Workload(
        "MLP 784-256-128-10, batch 32, step", lambda: _layers(32, 784, 256, 128, 10), (Bar(("torch", "mxnet"), 1.1),)
    ),
    "mlp_large": Workload(
        "MLP 784-1024-1024-10, 512, step",
        lambda: _layers(512, 784, 1024, 1024, 10),
        (Bar(("torch", "mxnet", "jit"), 1.2),),
    ),
    "lstm": Workload("LSTM by hand, 50 steps, fwd + bwd", _lstm, (Bar(("torch", "mxnet"), 1.0),), tolerance=1e-3),
    "lenet": Workload("LeNet, batch 64, step", _lenet, (Bar(("torch", "mxnet"), 1.3),), tolerance=1e-3),
    "rows": Workload("2,000 row writes, fwd + bwd", _rows, (Bar(TORCH, 0.1),), tolerance=1e-3),
    "rows_stacked": Workload("the same, the others stack rows", _rows, (Bar(TORCH),), tolerance=1e-3),
    "chains": Workload("2 chains of 20 256 x 256 products", _chains, (Bar(("one",), round(1 / 1.8, 3)),)),
    "copy": Workload("yardstick: copy 10^7, both halves at once", _arrays(M10, 1), (), moved=8 * M10),
}

LR = 0.01  # the learning rate of every step
