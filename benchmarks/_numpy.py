"""The programs for NumPy, for ThreadPoolExecutor, and the copy that measures the memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from _nd import Run
from _workloads import LR


def add(data: Any) -> Run:
    a, b = data

    def run(n: int) -> list[Any]:
        for _ in range(n):
            c = a + b
        return [c]

    return run


def formula(data: Any) -> Run:
    a, b = data

    def run(n: int) -> list[Any]:
        for _ in range(n):
            c = np.exp(a * b + a) * b - a
        return [c]

    return run


def eight(data: Any) -> Run:
    def run(n: int) -> list[Any]:
        for _ in range(n):
            out = [np.exp(a * np.float32(k)) for k, a in enumerate(data)]
        return out

    return run


def descent(data: Any) -> Run:
    weights, gradients = [w.copy() for w in data[:100]], data[100:]

    def run(n: int) -> list[Any]:
        for _ in range(n):
            for i in range(100):
                weights[i] -= LR * gradients[i]
        return weights

    return run


def product(data: Any) -> Run:
    a, b = data

    def run(n: int) -> list[Any]:
        for _ in range(n):
            c = a @ b
        return [c]

    return run


def chains(data: Any) -> Run:
    length, *factors = data

    def run(n: int) -> list[Any]:
        for _ in range(n):
            out = list(factors)
            for _ in range(length):
                out = [c @ a for c, a in zip(out, factors, strict=True)]
        return out

    return run


def copy(data: Any) -> Run:
    """Copy an array, one thread for each part: what the memory gives at best."""
    source, target = data[0], np.empty_like(data[0])
    parts = os.cpu_count() or 1
    pairs = list(zip(np.array_split(target, parts), np.array_split(source, parts), strict=True))

    def run(n: int) -> list[Any]:
        with ThreadPoolExecutor(parts) as pool:
            for _ in range(n):
                list(pool.map(lambda pair: np.copyto(*pair), pairs))
        return [target]

    return run


def programs() -> dict[str, Callable[[Any], Run]]:
    return {
        "tiny": add,
        "tiny_wait": add,
        "formula_32": formula,
        "add_1e6": add,
        "add_1e7": add,
        "formula_1e6": formula,
        "formula_1e7": formula,
        "eight_exp": eight,
        "descent": descent,
        "product_1024": product,
        "product_128": product,
        "chains": chains,
        "copy": copy,
    }


def threaded() -> dict[str, Callable[[Any], Run]]:
    """Those that NumPy itself spreads over threads."""
    every = programs()
    return {key: every[key] for key in ("product_1024", "product_128")}


# ---- ThreadPoolExecutor ----------------------------------------------------------------------------------------------


def nothing() -> None:
    pass


def queue(data: Any) -> Run:
    pool = ThreadPoolExecutor(os.cpu_count())

    def run(n: int) -> list[Any]:
        for _ in range(n):
            for future in [pool.submit(nothing) for _ in range(20_000)]:
                future.result()
        return []

    return run


def function(data: Any) -> Run:
    pool = ThreadPoolExecutor(os.cpu_count())

    def run(n: int) -> list[Any]:
        for _ in range(n):
            pool.submit(nothing).result()
        return []

    return run


def executor() -> dict[str, Callable[[Any], Run]]:
    return {"queue": queue, "kernel": function, "function": function}


def numpy_of(x: Any) -> Any:
    return x
