"""Calls that come again give what they gave, and nothing that another call gave."""

from __future__ import annotations

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import ArgumentError, Engine
from vardag.ndarray.buffer import Saved
from vardag.operators import calls


def some(*shape):
    return nd.array(np.arange(np.prod(shape), dtype="f").reshape(shape) / 7)


@pytest.fixture
def hits(monkeypatch):
    """How many calls were remembered ones."""
    found, real = [], calls.at_once

    def at_once(*arguments):
        found.append(arguments[0].op.name)
        return real(*arguments)

    monkeypatch.setattr(calls, "at_once", at_once)
    return found


def test_equal_calls_are_answered_from_memory(hits):
    with Engine(workers=1):
        x, y = some(2, 3), some(3, 4)
        first = nd.dot(x, y)
        again = nd.dot(x, y)
        with Engine(workers=1, inline=False):
            expected = nd.dot(some(2, 3), some(3, 4)).asnumpy()
        for z in (first, again):
            assert (type(z), z.shape, z.dtype) == (nd.NDArray, (2, 4), np.float32)
            assert z.asnumpy().tobytes() == expected.tobytes()
        assert hits[:2] == ["dot", "dot"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: nd.sum(x, axis=1), lambda x: nd.sum(x, axis=True)),
        (lambda x: nd.sum(x, axis=(0, 1)), lambda x: nd.sum(x, axis=(1,))),
        (lambda x: nd.clip(x, -1.0, 0.0), lambda x: nd.clip(x, -1.0, -0.0)),
        (lambda x: nd.softmax(x, axis=0), lambda x: nd.softmax(x, axis=1)),
        (lambda x: nd.dot(x, x, transpose_a=True), lambda x: nd.dot(x, x, transpose_b=True)),
        (lambda x: nd.broadcast_maximum(x, x[0:1]), lambda x: nd.broadcast_maximum(x[0:1], x)),
    ],
)
def test_calls_that_differ_are_told_apart(one, other):
    for first, second in ((one, other), (other, one)):
        found = []
        for inline in (True, False):
            with Engine(workers=1, inline=inline):
                x = some(3, 3) - 1
                found.append([f(x).asnumpy().tobytes() for f in (first, second, first, second)])
        assert found[0] == found[1]


def test_operands_go_where_they_went():
    """The same array twice says nothing about which is which."""
    with Engine(workers=1):
        x, y = some(2, 2), some(2, 2) + 1
        for _ in range(2):
            nd.dot(x, x)
            np.testing.assert_allclose(nd.dot(x, y).asnumpy(), x.asnumpy() @ y.asnumpy(), rtol=1e-6)
            np.testing.assert_allclose(nd.dot(y, x).asnumpy(), y.asnumpy() @ x.asnumpy(), rtol=1e-6)
            np.testing.assert_allclose(nd.dot(rhs=x, lhs=y).asnumpy(), y.asnumpy() @ x.asnumpy(), rtol=1e-6)


def test_training_mode_is_part_of_a_call():
    with Engine(workers=1):
        x = nd.ones((100,))
        for _ in range(3):
            assert (nd.Dropout(x, p=0.5).asnumpy() == 1).all()
            with autograd.train_mode():
                assert not (nd.Dropout(x, p=0.5).asnumpy() == 1).all()


def test_two_places_and_bad_arguments_are_refused_as_ever():
    with Engine(workers=1) as a, Engine(workers=1) as b:
        with a.use():
            x = some(2, 2)
        with b.use():
            y = some(2, 2)
        for _ in range(2):
            with pytest.raises(ArgumentError, match="different engines"):
                nd.dot(x, y)
            with b.use(), pytest.raises(ArgumentError, match=r"\[dot\] .*: the lengths to sum over differ: 2 and 3"):
                nd.dot(y, some(3, 2))


def test_what_a_handler_throws_into_learning_is_not_lost(monkeypatch):
    real, thrown = calls.prepare, []

    def prepare(*arguments):
        if not thrown:
            thrown.append(1)
            raise RuntimeError("a handler's")
        return real(*arguments)

    with Engine(workers=1):
        x, y = some(5, 7), some(7, 11)
        monkeypatch.setattr(calls, "prepare", prepare)
        with pytest.raises(RuntimeError, match="a handler's"):
            nd.dot(x, y)
        assert nd.dot(x, y).shape == (5, 11)


def test_memory_is_bounded():
    with Engine(workers=1):
        for n in range(1, 3 * calls.MOST):
            assert nd.dot(nd.ones((n,)), nd.ones((n,))).asscalar() == n


def test_recorded_calls_share_the_hold_on_a_weight():
    with Engine(workers=1):
        w = nd.array(np.full((40_000,), 2, "f"))
        w.attach_grad()
        x = nd.array(np.full((40_000,), 3, "f"))
        with autograd.record():
            heads = [nd.maximum(w, x), nd.maximum(w, x)]
        held = [r() for r in w._chunk.buffer.holders if isinstance(r(), Saved)]
        w[:] = 7  # what the tape keeps stays
        autograd.backward(heads)
        assert len(held) == 1
        assert w.grad.asnumpy().tolist() == [0] * 40_000
        with autograd.record():
            head = nd.maximum(w, x)
        w[:] = 1
        head.backward()
        assert w.grad.asnumpy().tolist() == [1] * 40_000
