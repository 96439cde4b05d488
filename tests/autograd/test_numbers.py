"""Gradients are added up in a fixed order, 16-bit floats in float32; "add" adds to what is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import Engine
from vardag.ndarray.dtype import BFLOAT16

FACTORS = [1 / 3 + k * 1e-3 for k in range(100)]
NARROW = ["float16", *([] if BFLOAT16 is None else ["bfloat16"])]


def marked(dtype: str, n: int = 2, request: str = "write") -> Any:
    x = nd.array(np.ones(n), dtype=dtype)
    x.attach_grad(request)
    return x


def summed(dtype: str) -> Any:
    """The sum of the factors as the dtype has them, in float32 and rounded once."""
    rounded = [nd.array([k], dtype=dtype).astype("float32").asnumpy()[0] for k in FACTORS]
    return nd.array([np.sum(rounded, dtype="f8")], dtype=dtype).asnumpy()[0]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("n", [2, 5000])  # 5000: parts of a large array go into one in place
@pytest.mark.parametrize("how", ["whole", "parts"])
def test_16_bits_are_added_up_in_32(dtype: str, n: int, how: str) -> None:
    with Engine(workers=2):
        for _ in range(3):
            x = marked(dtype, n)
            with autograd.record():
                heads = [((x if how == "whole" else x[:2]) * k).sum() for k in FACTORS]
            autograd.backward(heads)
            assert x.grad.dtype == x.dtype
            assert x.grad[:2].asnumpy().tolist() == [summed(dtype)] * 2
            with autograd.record():
                heads = [(x * k).sum() for k in FACTORS]
            found = autograd.grad(heads, x)
            assert found.dtype == x.dtype
            assert found[:2].asnumpy().tolist() == [summed(dtype)] * 2


@pytest.mark.parametrize("dtype", NARROW)
def test_16_bits_of_an_intermediate_array(dtype: str) -> None:
    with Engine(workers=2):
        x = marked(dtype)
        with autograd.record():
            y = x * 1
            heads = [(y * k).sum() for k in FACTORS]
        autograd.backward(heads)
        assert x.grad.asnumpy().tolist() == [summed(dtype)] * 2


@pytest.mark.parametrize("uses", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_add_of_many_uses(uses: int, dtype: str) -> None:
    """In one graph, and in as many."""
    with Engine(workers=2):
        x = marked(dtype, request="add")
        x.grad[:] = 5
        with autograd.record():
            heads = [(x * (k + 1)).sum() for k in range(uses)]
        autograd.backward(heads)
        expected = 5 + uses * (uses + 1) // 2
        assert x.grad.asnumpy().tolist() == [expected] * 2
        for k in range(uses):
            with autograd.record():
                y = x * (k + 1)
            y.backward()
        assert x.grad.asnumpy().tolist() == [2 * expected - 5] * 2


def test_the_order_of_addition_is_that_of_the_graph() -> None:
    """Whatever the schedule: large numbers that cancel show any other order."""
    factors = [1e8, 1.0, -1e8, 3.0, 1e7, -1e7, 0.5] * 5

    def found(engine: Engine, n: int) -> bytes:
        with engine:
            x = marked("float32", n)
            for _ in range(3):
                with autograd.record():
                    y = x * 1
                    heads = [y * k for k in factors]
                autograd.backward(heads)
            return x.grad.asnumpy().tobytes()  # type: ignore[no-any-return]

    for n in (3, 300_000):
        expected = found(Engine(kind="NaiveEngine", inline=False), n)
        for workers in (1, 2, 8):
            assert found(Engine(workers=workers), n) == expected
            assert found(Engine(workers=workers, inline=False, fusion=False), n) == expected
