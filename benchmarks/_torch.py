"""The programs for PyTorch, eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _nd import Run
from _workloads import LR
from torch.nn import functional as F


def tensors(arrays: Any) -> list[Any]:
    return [torch.from_numpy(a.copy()) for a in arrays]


def add(data: Any) -> Run:
    a, b = tensors(data)

    def run(n: int) -> list[Any]:
        for _ in range(n):
            c = a + b
        return [c]

    return run


def formula(data: Any) -> Run:
    a, b = tensors(data)

    def run(n: int) -> list[Any]:
        for _ in range(n):
            c = torch.exp(a * b + a) * b - a
        return [c]

    return run


def backward(data: Any) -> Run:
    (x,) = tensors(data)
    x.requires_grad_()
    head = torch.ones_like(x)

    def run(n: int) -> list[Any]:
        for _ in range(n):
            x.grad = None
            y = (x * x + x) * 2
            y.backward(head)
        return [y, x.grad]

    return run


def eight(data: Any) -> Run:
    arrays = tensors(data)

    def run(n: int) -> list[Any]:
        for _ in range(n):
            out = [torch.exp(a * k) for k, a in enumerate(arrays)]
        return out

    return run


def descent(data: Any) -> Run:
    weights, gradients = tensors(data[:100]), tensors(data[100:])

    def run(n: int) -> list[Any]:
        for _ in range(n):
            for i in range(100):
                weights[i] -= LR * gradients[i]
        return weights

    return run


def product(data: Any) -> Run:
    a, b = tensors(data)

    def run(n: int) -> list[Any]:
        for _ in range(n):
            c = a @ b
        return [c]

    return run


def chains(data: Any) -> Run:
    length, *factors = data
    factors = tensors(factors)

    def run(n: int) -> list[Any]:
        for _ in range(n):
            out = list(factors)
            for _ in range(length):
                out = [c @ a for c, a in zip(out, factors, strict=True)]
        return out

    return run


def training(forward: Callable[[Any, list[Any]], Any]) -> Callable[[Any], Run]:
    def make(data: Any) -> Run:
        x, y, weights = torch.from_numpy(data[0]), torch.from_numpy(data[1]), tensors(data[2])
        for w in weights:
            w.requires_grad_()
        optimizer = torch.optim.SGD(weights, lr=LR)

        def run(n: int) -> list[Any]:
            for _ in range(n):
                optimizer.zero_grad()
                loss = F.cross_entropy(forward(x, weights), y)
                loss.backward()
                optimizer.step()
            return [loss, *weights]

        return run

    return make


def perceptron(x: Any, weights: list[Any]) -> Any:
    for i in range(0, len(weights), 2):
        x = F.linear(x, weights[i], weights[i + 1])
        if i + 2 < len(weights):
            x = torch.relu(x)
    return x


def lenet(x: Any, weights: list[Any]) -> Any:
    k1, b1, k2, b2, *full = weights
    for k, b in ((k1, b1), (k2, b2)):
        x = F.max_pool2d(torch.tanh(F.conv2d(x, k, b)), 2)
    x = torch.tanh(F.linear(torch.flatten(x, 1), full[0], full[1]))
    return F.linear(x, full[2], full[3])


def lstm(data: Any) -> Run:
    xs, h0, c0 = tensors(data[:3])
    weights = tensors(data[3])
    for w in weights:
        w.requires_grad_()
    wx, wh, bias = weights

    def run(n: int) -> list[Any]:
        for _ in range(n):
            for w in weights:
                w.grad = None
            h, c = h0, c0
            for x in xs:
                gates = F.linear(x, wx, bias) + F.linear(h, wh)
                i, f, g, o = gates.chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            loss = h.sum()
            loss.backward()
        return [loss, *(w.grad for w in weights)]

    return run


def rows(data: Any) -> Run:
    """Backward refuses these writes, since it needs the row before; it accepts them if a copy of that row is used."""
    length, (first, w) = data[0], tensors(data[1:])
    w.requires_grad_()

    def run(n: int) -> list[Any]:
        for _ in range(n):
            w.grad = None
            buf = torch.zeros(length, len(first))
            buf[0] = first
            for t in range(1, length):
                buf[t] = torch.tanh(buf[t - 1].clone() * w)
            total = buf.sum()
            total.backward()
        return [total, w.grad]

    return run


def stacked_rows(data: Any) -> Run:
    length, (first, w) = data[0], tensors(data[1:])
    w.requires_grad_()

    def run(n: int) -> list[Any]:
        for _ in range(n):
            w.grad = None
            every = [first]
            for _ in range(length - 1):
                every.append(torch.tanh(every[-1] * w))
            total = torch.stack(every).sum()
            total.backward()
        return [total, w.grad]

    return run


def programs() -> dict[str, Callable[[Any], Run]]:
    return {
        "tiny": add,
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
        "rows": rows,
        "rows_stacked": stacked_rows,
        "chains": chains,
    }


def threaded() -> dict[str, Callable[[Any], Run]]:
    """Those that PyTorch spreads over threads."""
    tiny = ("tiny", "tiny_wait", "formula_32", "backward")
    return {key: program for key, program in programs().items() if key not in tiny}


def numpy_of(x: Any) -> Any:
    return x.detach().numpy()
