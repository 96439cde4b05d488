"""The programs for vardag: those it shares with MXNet, and those that only it can run."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import _nd
from _nd import Run

from vardag import autograd, engine, nd
from vardag.engine import Kind, Operation, Variable


def nothing() -> None:
    pass


def queue(data: Any) -> Run:
    """Functions that read what one function made and change one of a hundred variables: a hundred chains."""

    def run(n: int) -> list[Any]:
        current = engine.current()
        shared = current.new_variable()
        chains = [current.new_variable() for _ in range(100)]
        for _ in range(n):
            current.push(nothing, writes=[shared])
            for i in range(20_000):
                current.push(nothing, reads=(shared,), updates=(chains[i % 100],))
            current.waitall()
        return []

    return run


def kernel(data: Any) -> Run:
    """Admit one of the library's own kernels, ready to run, and wait for it."""

    def run(n: int) -> list[Any]:
        current = engine.current()
        source, steps = current.new_variable(), [(operator.add, 1, 2)]

        def plan_of(op: Operation, out: Variable) -> Callable[[], Any]:
            return lambda: (op, (source,), (out,), (), (), [], False)

        for _ in range(n):
            op = Operation(Kind.ATOMIC, lambda: steps, "k")
            current.admit(plan_of(op, current.new_variable()))
            current.wait_op(op)
        return []

    return run


def function(data: Any) -> Run:
    def run(n: int) -> list[Any]:
        current = engine.current()
        v = current.new_variable()
        for _ in range(n):
            current.push(nothing, writes=[v])
            current.wait_for_var(v)
        return []

    return run


def rows(data: Any) -> Run:
    length, first, w = data[0], nd.array(data[1]), nd.array(data[2])
    w.attach_grad()

    def run(n: int) -> list[Any]:
        for _ in range(n):
            with autograd.record():
                buf = nd.zeros((length, first.size))
                buf[0] = first
                for t in range(1, length):
                    buf[t] = nd.tanh(buf[t - 1] * w)
                total = buf.sum()
            total.backward()
            nd.waitall()
        return [total, w.grad]

    return run


def programs() -> dict[str, Callable[[Any], Run]]:
    own = {"queue": queue, "kernel": kernel, "function": function, "rows": rows, "rows_stacked": rows}
    return _nd.programs(nd, autograd) | own


def one_thread() -> dict[str, Callable[[Any], Run]]:
    """What shows how the work scales; the worker process runs the serial engine."""
    every = programs()
    return {key: every[key] for key in ("add_1e7", "formula_1e7", "eight_exp", "product_1024", "mlp_large", "chains")}


def numpy_of(x: Any) -> Any:
    return x.asnumpy()
