"""The programs for JAX: the same functions, eager or compiled by jax.jit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from _nd import Run
from _workloads import LR
from jax import lax

Function = Callable[..., Any]


def add(a: Any, b: Any) -> Any:
    return (a + b,)


def formula(a: Any, b: Any) -> Any:
    return (jnp.exp(a * b + a) * b - a,)


def quadratic(x: Any) -> Any:
    y, pull = jax.vjp(lambda x: (x * x + x) * 2, x)
    return y, pull(jnp.ones_like(y))[0]


def eight(*arrays: Any) -> Any:
    return [jnp.exp(a * k) for k, a in enumerate(arrays)]


def product(a: Any, b: Any) -> Any:
    return (a @ b,)


def descent(weights: Any, gradients: Any) -> Any:
    return [w - LR * g for w, g in zip(weights, gradients, strict=True)]


def chains(factors: Any) -> Any:
    out = list(factors)
    for _ in range(20):
        out = [c @ a for c, a in zip(out, factors, strict=True)]
    return out


def cross_entropy(scores: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], axis=1).mean()


def perceptron(x: Any, weights: Any) -> Any:
    for i in range(0, len(weights), 2):
        x = x @ weights[i].T + weights[i + 1]
        if i + 2 < len(weights):
            x = jax.nn.relu(x)
    return x


def lenet(x: Any, weights: Any) -> Any:
    k1, b1, k2, b2, *full = weights
    for k, b in ((k1, b1), (k2, b2)):
        x = jnp.tanh(lax.conv_general_dilated(x, k, (1, 1), "VALID") + b[:, None, None])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = jnp.tanh(x.reshape(len(x), -1) @ full[0].T + full[1])
    return x @ full[2].T + full[3]


def lstm(weights: Any, xs: Any, h: Any, c: Any) -> Any:
    wx, wh, bias = weights

    def cell(state: Any, x: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(x @ wx.T + bias + h @ wh.T, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    (h, c), _ = lax.scan(cell, (h, c), xs)
    return h.sum()


def rows(w: Any, first: Any) -> Any:
    def step(row: Any, _: Any) -> Any:
        row = jnp.tanh(row * w)
        return row, row

    return lax.scan(step, first, None, length=1999)[1].sum() + first.sum()


def _programs(compiled: Callable[[Function], Function]) -> dict[str, Callable[[Any], Run]]:
    def plain(function: Function, wait: bool = True) -> Callable[[Any], Run]:
        """Call it on the data, again and again."""

        def make(data: Any) -> Run:
            arrays, call = [jnp.asarray(a) for a in data], compiled(function)

            def run(n: int) -> list[Any]:
                for _ in range(n):
                    out = call(*arrays)
                    if wait:
                        jax.block_until_ready(out)
                return list(jax.block_until_ready(out))

            return run

        return make

    def two_chains(data: Any) -> Run:
        return plain(lambda *factors: chains(factors))(data[1:])

    def gradients(function: Function, order: Callable[[Any], Any]) -> Callable[[Any], Run]:
        """A value and its gradients by the first argument."""

        def make(data: Any) -> Run:
            arguments = jax.tree.map(jnp.asarray, order(data))
            call = compiled(jax.value_and_grad(function))

            def run(n: int) -> list[Any]:
                for _ in range(n):
                    value, grads = jax.block_until_ready(call(*arguments))
                return [value, *jax.tree.leaves(grads)]

            return run

        return make

    def descend(data: Any) -> Run:
        first, grads = [jnp.asarray(w) for w in data[:100]], [jnp.asarray(g) for g in data[100:]]
        call, state = compiled(descent), [first]

        def run(n: int) -> list[Any]:
            for _ in range(n):
                state[0] = jax.block_until_ready(call(state[0], grads))
            return list(state[0])

        return run

    def training(forward: Function) -> Callable[[Any], Run]:
        def loss_of(weights: Any, x: Any, y: Any) -> Any:
            return cross_entropy(forward(x, weights), y)

        def step(weights: Any, x: Any, y: Any) -> Any:
            loss, grads = jax.value_and_grad(loss_of)(weights, x, y)
            return loss, [w - LR * g for w, g in zip(weights, grads, strict=True)]

        def make(data: Any) -> Run:
            x, y, call = jnp.asarray(data[0]), jnp.asarray(data[1]), compiled(step)
            state = [[jnp.asarray(w) for w in data[2]]]

            def run(n: int) -> list[Any]:
                for _ in range(n):
                    loss, state[0] = jax.block_until_ready(call(state[0], x, y))
                return [loss, *state[0]]

            return run

        return make

    return {
        "tiny": plain(add, wait=False),
        "tiny_wait": plain(add),
        "formula_32": plain(formula),
        "backward": plain(quadratic),
        "add_1e6": plain(add),
        "add_1e7": plain(add),
        "formula_1e6": plain(formula),
        "formula_1e7": plain(formula),
        "eight_exp": plain(eight),
        "descent": descend,
        "product_1024": plain(product),
        "product_128": plain(product),
        "mlp_small": training(perceptron),
        "mlp_large": training(perceptron),
        "lstm": gradients(lstm, lambda data: (data[3], *data[:3])),
        "lenet": training(lenet),
        "rows_stacked": gradients(rows, lambda data: (data[2], data[1])),
        "chains": two_chains,
    }


def eager() -> dict[str, Callable[[Any], Run]]:
    return _programs(lambda function: function)


def compiled() -> dict[str, Callable[[Any], Run]]:
    return _programs(jax.jit)


def numpy_of(x: Any) -> Any:
    import numpy as np

    return np.asarray(x)
