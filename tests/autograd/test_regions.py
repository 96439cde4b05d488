"""Gradients of views and of writes to parts cost their region, and are those of the texts."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.autograd import walk
from vardag.engine import Engine

ROWS, COLUMNS = 8, 600


def raw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype("float32")


def gradients(seed: int) -> list[Any]:
    r = random.Random(seed)
    x, w, base = nd.array(raw(COLUMNS)), nd.array(raw(COLUMNS, seed=1)), nd.array(raw(ROWS, COLUMNS, seed=2))
    for a in (x, w, base):
        a.attach_grad()
    with autograd.record():
        buf = base * 1 if r.random() < 0.7 else nd.zeros((ROWS, COLUMNS))
        kept = []
        for _ in range(r.randint(3, 12)):
            i, j = r.randrange(ROWS), r.randrange(ROWS)
            kind = r.randrange(7)
            if kind == 0:
                buf[i] = nd.tanh(buf[j] * w)
            elif kind == 1:
                buf[i] += x
            elif kind == 2:
                buf[i : i + 2] = x  # broadcast
            elif kind == 3:
                buf[:, 100:200] *= 0.5
            elif kind == 4:
                kept.append(buf[i] * buf[j])
            elif kind == 5:
                buf[i, ::2] = 0
            else:
                kept.append(buf * 2)
        loss = (buf * buf).sum()
        for k in kept:
            loss = loss + (k * k).sum()
    loss.backward()
    return [a.grad.asnumpy() for a in (x, w, base)]


@pytest.mark.parametrize("seed", range(30))
def test_they_are_those_of_the_texts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = gradients(seed)
    with Engine("NaiveEngine"):
        assert all(map(np.array_equal, found, gradients(seed)))
    monkeypatch.setattr(walk, "LARGE", 10**9)
    assert all(map(np.array_equal, found, gradients(seed)))  # 0.0 and -0.0 are equal


def test_a_row_costs_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text of a view runs on the whole array, however many rows are written."""
    whole: list[str] = []
    real = walk.Walk._push

    def push(self: Any, node: Any, indices: Any, cotangents: Any) -> None:
        if node.op.name.startswith("strided"):
            whole.append(node.op.name)
        real(self, node, indices, cotangents)

    monkeypatch.setattr(walk.Walk, "_push", push)
    w = nd.array(raw(COLUMNS))
    w.attach_grad()
    with autograd.record():
        buf = nd.zeros((50, COLUMNS))
        buf[0] = 1
        for t in range(1, 50):
            buf[t] = nd.tanh(buf[t - 1] * w)
        loss = buf.sum()
    loss.backward()
    assert whole == []
    expected, one = np.zeros(COLUMNS), np.float64(w.asnumpy())
    row, slope = np.ones(COLUMNS), np.zeros(COLUMNS)
    for _ in range(1, 50):
        new = np.tanh(row * one)
        slope = (1 - new * new) * (slope * one + row)
        expected, row = expected + slope, new
    np.testing.assert_allclose(w.grad.asnumpy(), expected, rtol=1e-4)


def test_a_cotangent_that_others_see_is_not_written() -> None:
    x = nd.array(raw(ROWS, COLUMNS))
    x.attach_grad()
    with autograd.record():
        y = x * 1
        z = y + x  # passes its cotangent on, to y and to x
        y[0] = 0
        loss = z + y
    head = nd.array(raw(ROWS, COLUMNS, seed=3))
    before = head.asnumpy()
    loss.backward(head)
    expected = before * 3
    expected[0] = before[0] * 2
    np.testing.assert_allclose(x.grad.asnumpy(), expected, rtol=1e-6)
    assert np.array_equal(head.asnumpy(), before)


def test_a_cotangent_that_is_a_result_is_not_written() -> None:
    """The gradient of the written array itself: the walk goes on beyond it."""
    x = nd.ones((ROWS, COLUMNS))
    x.attach_grad()
    with autograd.record():
        buf = x * 2
        buf[0] = 3
        loss = (buf * buf).sum()
    of_buf, of_x = (g.asnumpy() for g in autograd.grad(loss, [buf, x]))
    assert (of_buf[0] == 6).all()
    assert (of_buf[1:] == 4).all()
    assert (of_x[0] == 0).all()
    assert (of_x[1:] == 8).all()
