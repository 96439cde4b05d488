"""Arrays against NumPy, and against PyTorch where it is installed: ratios of the same work in the same run.

    python benchmarks/arrays.py [rounds]

Each line gives the median time of vardag, then how many times that of each peer it is (below 1: faster).  Rounds of the
peers alternate, so that what else the machine does hits them alike.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vardag import autograd, nd

torch: Any = None
if importlib.util.find_spec("torch"):
    import torch

Work = Callable[[], object]


def add(n: int, times: int) -> dict[str, Work]:
    """a + b of n float32 elements, `times` times, then a look at the last."""
    raw = np.random.default_rng(0).normal(size=n).astype("float32")
    a = nd.array(raw)

    def vardag() -> object:
        for _ in range(times):
            c = a + a
        return c.asnumpy()

    def numpy() -> object:
        for _ in range(times):
            c = raw + raw
        return c

    peers: dict[str, Work] = {"vardag": vardag, "NumPy": numpy}
    if torch:
        t = torch.from_numpy(raw)

        def pytorch() -> object:
            for _ in range(times):
                c = t + t
            return c.numpy()

        peers["PyTorch"] = pytorch
    return peers


def products(n: int, count: int) -> dict[str, Work]:
    """`count` independent n x n products, one after the other in the program."""
    raw = np.random.default_rng(0).normal(size=(n, n)).astype("float32")
    a = nd.array(raw)
    peers: dict[str, Work] = {
        "vardag": lambda: [x.wait_to_read() for x in [nd.dot(a, a) for _ in range(count)]],
        "NumPy": lambda: [raw @ raw for _ in range(count)],
    }
    if torch:
        t = torch.from_numpy(raw)
        peers["PyTorch"] = lambda: [t @ t for _ in range(count)]
    return peers


def gradient(length: int) -> dict[str, Work]:
    """Record a chain of `length` tanh of 1,000 elements and differentiate it."""
    raw = np.random.default_rng(0).normal(size=1000).astype("float32")
    x = nd.array(raw)
    x.attach_grad()

    def vardag() -> object:
        with autograd.record():
            y = x
            for _ in range(length):
                y = nd.tanh(y)
        y.backward()
        return x.grad.asnumpy()

    peers: dict[str, Work] = {"vardag": vardag}
    if torch:
        t = torch.from_numpy(raw).requires_grad_()

        def pytorch() -> object:
            y = t
            for _ in range(length):
                y = torch.tanh(y)
            t.grad = None
            y.sum().backward()
            return t.grad.numpy()

        peers["PyTorch"] = pytorch
    return peers


def training(batch: int) -> dict[str, Work]:
    """A step of a 64-128-10 perceptron: forward, backward, gradient descent."""
    rng = np.random.default_rng(0)
    data, labels = rng.normal(size=(batch, 64)).astype("float32"), rng.integers(0, 10, batch)
    shapes = ((128, 64), (128,), (10, 128), (10,))
    weights = [(rng.normal(size=s) * 0.1).astype("float32") for s in shapes]
    x, y, p = nd.array(data), nd.array(labels), [nd.array(w) for w in weights]
    for w in p:
        w.attach_grad()

    def vardag() -> object:
        with autograd.record():
            h = nd.relu(nd.FullyConnected(x, p[0], p[1], num_hidden=128))
            scores = nd.FullyConnected(h, p[2], p[3], num_hidden=10)
            loss = -nd.log_softmax(scores).pick(y).mean()
        loss.backward()
        for w in p:
            nd.sgd_update(w, w.grad, out=w, lr=0.01)
        return loss.asnumpy()

    peers: dict[str, Work] = {"vardag": vardag}
    if torch:
        tx, ty, tp = torch.from_numpy(data), torch.from_numpy(labels), [torch.from_numpy(w.copy()) for w in weights]
        for w in tp:
            w.requires_grad_()

        def pytorch() -> object:
            f = torch.nn.functional
            h = torch.relu(f.linear(tx, tp[0], tp[1]))
            loss = f.cross_entropy(f.linear(h, tp[2], tp[3]), ty)
            loss.backward()
            with torch.no_grad():
                for w in tp:
                    w.sub_(0.01 * w.grad)
                    w.grad = None
            return loss.item()

        peers["PyTorch"] = pytorch
    return peers


CASES: dict[str, dict[str, Work]] = {
    "1,000 times a + b of 10 elements": add(10, 1000),
    "100 times a + b of 10^5 elements": add(100_000, 100),
    "8 products of 256 x 256": products(256, 8),
    "gradient of 100 tanh of 1,000 elements": gradient(100),
    "training step of a small perceptron, batch 64": training(64),
}


def main(rounds: int) -> None:
    for title, peers in CASES.items():
        times: dict[str, list[float]] = {name: [] for name in peers}
        for _ in range(rounds + 2):
            for name, work in peers.items():
                start = time.perf_counter()
                work()
                times[name].append(time.perf_counter() - start)
        median = {name: statistics.median(t[2:]) for name, t in times.items()}
        ratios = ", ".join(f"{median['vardag'] / m:.2f} of {n}" for n, m in median.items() if n != "vardag")
        print(f"{title:48} {median['vardag'] * 1e3:9.3f} ms: {ratios or 'no peer installed'}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
