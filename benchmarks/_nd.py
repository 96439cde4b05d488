"""The programs in the face that vardag and MXNet share: `nd` and `autograd` are the modules of either.

A program is `make(data) -> run`; `run(n)` does n units of work, each complete at its end, and gives values to check.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from _workloads import LR

Run = Callable[[int], list[Any]]


def programs(nd: Any, autograd: Any) -> dict[str, Callable[[Any], Run]]:
    def unused(data: Any) -> Run:
        a, b = map(nd.array, data)

        def run(n: int) -> list[Any]:
            for _ in range(n):
                c = a + b
            nd.waitall()
            return [c]

        return run

    def add(data: Any) -> Run:
        a, b = map(nd.array, data)

        def run(n: int) -> list[Any]:
            for _ in range(n):
                c = a + b
                c.wait_to_read()
            return [c]

        return run

    def formula(data: Any) -> Run:
        a, b = map(nd.array, data)

        def run(n: int) -> list[Any]:
            for _ in range(n):
                c = nd.exp(a * b + a) * b - a
                c.wait_to_read()
            return [c]

        return run

    def backward(data: Any) -> Run:
        x = nd.array(data[0])
        x.attach_grad()

        def run(n: int) -> list[Any]:
            for _ in range(n):
                with autograd.record():
                    y = (x * x + x) * 2
                y.backward()
                x.grad.wait_to_read()
            return [y, x.grad]

        return run

    def eight(data: Any) -> Run:
        arrays = [nd.array(a) for a in data]

        def run(n: int) -> list[Any]:
            for _ in range(n):
                out = [nd.exp(a * k) for k, a in enumerate(arrays)]
                nd.waitall()
            return out

        return run

    def descent(data: Any) -> Run:
        weights, gradients = [nd.array(w) for w in data[:100]], [nd.array(g) for g in data[100:]]

        def run(n: int) -> list[Any]:
            for _ in range(n):
                for i in range(100):
                    weights[i] -= LR * gradients[i]
                nd.waitall()
            return weights

        return run

    def product(data: Any) -> Run:
        a, b = map(nd.array, data)

        def run(n: int) -> list[Any]:
            for _ in range(n):
                c = nd.dot(a, b)
                c.wait_to_read()
            return [c]

        return run

    def chains(data: Any) -> Run:
        length, *factors = data
        factors = [nd.array(a) for a in factors]

        def run(n: int) -> list[Any]:
            for _ in range(n):
                out = list(factors)
                for _ in range(length):
                    out = [nd.dot(c, a) for c, a in zip(out, factors, strict=True)]
                nd.waitall()
            return out

        return run

    def training(forward: Callable[[Any, list[Any]], Any]) -> Callable[[Any], Run]:
        """Steps of gradient descent on the mean cross entropy."""

        def make(data: Any) -> Run:
            x, y, weights = nd.array(data[0]), nd.array(data[1]), [nd.array(w) for w in data[2]]
            for w in weights:
                w.attach_grad()

            def run(n: int) -> list[Any]:
                for _ in range(n):
                    with autograd.record():
                        loss = -nd.log_softmax(forward(x, weights)).pick(y).mean()
                    loss.backward()
                    for w in weights:
                        nd.sgd_update(w, w.grad, lr=LR, out=w)
                    nd.waitall()
                return [loss, *weights]

            return run

        return make

    def perceptron(x: Any, weights: list[Any]) -> Any:
        for i in range(0, len(weights), 2):
            x = nd.FullyConnected(x, weights[i], weights[i + 1], num_hidden=weights[i].shape[0])
            if i + 2 < len(weights):
                x = nd.relu(x)
        return x

    def lenet(x: Any, weights: list[Any]) -> Any:
        k1, b1, k2, b2, *full = weights
        for k, b in ((k1, b1), (k2, b2)):
            x = nd.tanh(nd.Convolution(x, k, b, kernel=(5, 5), num_filter=k.shape[0]))
            x = nd.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="max")
        x = nd.tanh(nd.FullyConnected(nd.flatten(x), full[0], full[1], num_hidden=500))
        return nd.FullyConnected(x, full[2], full[3], num_hidden=10)

    def lstm(data: Any) -> Run:
        xs, h0, c0 = map(nd.array, data[:3])
        weights = [nd.array(w) for w in data[3]]
        for w in weights:
            w.attach_grad()
        wx, wh, bias = weights

        def run(n: int) -> list[Any]:
            for _ in range(n):
                with autograd.record():
                    h, c = h0, c0
                    for t in range(xs.shape[0]):
                        gates = nd.FullyConnected(xs[t], wx, bias, num_hidden=bias.size)
                        gates = gates + nd.FullyConnected(h, wh, no_bias=True, num_hidden=bias.size)
                        i, f, g, o = nd.split(gates, num_outputs=4, axis=1)
                        c = nd.sigmoid(f) * c + nd.sigmoid(i) * nd.tanh(g)
                        h = nd.sigmoid(o) * nd.tanh(c)
                    loss = h.sum()
                loss.backward()
                nd.waitall()
            return [loss, *(w.grad for w in weights)]

        return run

    def stacked_rows(data: Any) -> Run:
        """Instead of writing rows into a buffer: recorded arrays may not be written in MXNet."""
        length, first, w = data[0], nd.array(data[1]), nd.array(data[2])
        w.attach_grad()

        def run(n: int) -> list[Any]:
            for _ in range(n):
                with autograd.record():
                    rows = [first]
                    for _ in range(length - 1):
                        rows.append(nd.tanh(rows[-1] * w))
                    total = nd.stack(*rows).sum()
                total.backward()
                nd.waitall()
            return [total, w.grad]

        return run

    return {
        "tiny": unused,
        "tiny_wait": add,
        "formula_32": formula,
        "backward": backward,
        "add_1e6": add,
        "add_1e7": add,
        "formula_1e6": formula,
        "formula_1e7": formula,
        "eight_exp": eight,
        "descent": descent,
        "product_1024": product,
        "product_128": product,
        "mlp_small": training(perceptron),
        "mlp_large": training(perceptron),
        "lstm": lstm,
        "lenet": training(lenet),
        "rows_stacked": stacked_rows,
        "chains": chains,
    }
