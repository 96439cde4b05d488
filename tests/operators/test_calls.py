"""Calls that come again give what they gave, and nothing that another call gave."""

from __future__ import annotations

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import ArgumentError, Engine
from vardag.engine.testing import Gate
from vardag.ndarray.buffer import Saved
from vardag.operators import calls, faces


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


def test_a_tuple_of_arrays_is_not_waited_for():
    with Engine(workers=1) as engine:
        x, y = some(2, 2), some(2, 2)
        for _ in range(2):
            gate = Gate()
            engine.push(lambda _: gate(), updates=[x])  # noqa: B023
            gate.wait_entered()
            z = nd.concat((x, y), dim=0)
            gate.open()
            assert z.shape == (4, 2)


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


@pytest.mark.host("what runs within its push")
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


# ---- updates in place ------------------------------------------------------------------------------------------------


def weights(n=300, count=4):
    rng = np.random.default_rng(7)
    return [nd.array(rng.uniform(0.1, 1, n).astype("f")) for _ in range(count)]


UPDATES = {
    "sgd": lambda w, g, m, v: nd.sgd_update(w, g, lr=0.1, wd=0.01, out=w),
    "momentum": lambda w, g, m, v: nd.sgd_mom_update(w, g, m, lr=0.1, momentum=0.9, out=w),
    "adam": lambda w, g, m, v: nd.adam_update(w, g, m, v, lr=0.1, clip_gradient=0.3, out=w),
}


def bytes_of(arrays):
    return [x.asnumpy().tobytes() for x in arrays]


@pytest.fixture
def updates(monkeypatch):
    found, real = [], calls.update

    def update(*arguments):
        found.append(real(*arguments))
        return found[-1]

    monkeypatch.setattr(calls, "update", update)
    return found


@pytest.mark.host("what runs within its push")
@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("marked", [False, True])
def test_updates_in_place_are_those_of_the_push_path(name, marked, updates):
    with Engine(workers=1, inline=False):
        arrays = weights()
        for _ in range(3):
            UPDATES[name](*arrays)
        expected = bytes_of(arrays)
    assert not any(updates)
    with Engine(workers=1):
        arrays = weights()
        if marked:
            arrays[0].attach_grad()
        versions = [x._chunk.version for x in arrays]
        for _ in range(3):
            assert UPDATES[name](*arrays) is arrays[0]
        assert bytes_of(arrays) == expected
        assert arrays[0]._chunk.version == versions[0] + 3
    assert updates[-3:] == [True] * 3


@pytest.mark.host("what runs within its push")
@pytest.mark.parametrize("name", UPDATES)
def test_an_update_waits_for_pending_readers_and_writers(name, updates):
    with Engine(workers=2) as engine:
        w, g, m, v = weights()
        before = w.asnumpy()
        UPDATES[name](*weights())
        gate, seen = Gate(), []
        engine.push(lambda raw: (gate(), seen.append(raw.copy())), reads=[w])
        gate.wait_entered()
        UPDATES[name](w, g, m, v)
        gate.open()
        w.wait_to_read()
        np.testing.assert_array_equal(seen[0], before)
        assert not np.array_equal(w.asnumpy(), before)
        slow = Gate()
        engine.push(lambda raw: (slow(), raw.fill(0)), updates=[g])
        slow.wait_entered()
        UPDATES[name](w, g, m, v)
        slow.open()
        with Engine(workers=1, inline=False):
            same = weights()
            UPDATES[name](*same)
            same[1][:] = 0
            UPDATES[name](*same)
            expected = bytes_of(same)
        assert bytes_of([w, g, m, v]) == expected


def test_an_update_of_a_weight_that_the_tape_keeps():
    with Engine(workers=1):
        w, g, _, _ = weights(40_000)
        w.attach_grad()
        value = w.asnumpy()
        nd.sgd_update(*weights(40_000, 2), lr=0.1)
        with autograd.record():
            head = w * w
        nd.sgd_update(w, g, lr=0.1, out=w)
        head.backward()
        np.testing.assert_array_equal(w.grad.asnumpy(), 2 * value)


def test_an_update_of_views_copies_and_the_same_array_twice():
    for inline in (False, True):
        with Engine(workers=1, inline=inline):
            w, g, m, v = weights(12)
            nd.sgd_update(w, g, lr=0.5, out=w)
            part = w[2:8]
            nd.sgd_update(part, g[2:8], lr=0.5, out=part)
            other = w.copy()
            nd.sgd_update(w, g, lr=0.5, out=w)
            nd.sgd_update(w, w, lr=0.5, out=w)
            with pytest.raises(ArgumentError):
                nd.sgd_mom_update(w, g, w, lr=0.5, out=w)
            into = nd.zeros((12,))
            nd.sgd_update(w, g, lr=0.5, out=into)
            found = bytes_of([w, g, m, v, other, part, into])
        if not inline:
            expected = found
    assert found == expected


def test_learning_rates_that_change_are_not_learnt_for_ever():
    with Engine(workers=1):
        w, g = weights(8, 2)
        before = w.asnumpy().astype("d")
        for k in range(5 * calls.MOST):
            nd.sgd_update(w, g, lr=k / 1e4, out=w)
        total = sum(k / 1e4 for k in range(5 * calls.MOST))
        np.testing.assert_allclose(w.asnumpy(), before - total * g.asnumpy(), rtol=1e-4)


def test_the_sign_of_a_nan_is_not_remembered():
    x = some(2)
    signs = [np.signbit(nd.broadcast_maximum(x, value).asnumpy()).tolist() for value in (float("nan"), -float("nan"))]
    with Engine(workers=1, inline=False):
        queued = [np.signbit(np.maximum(x.asnumpy(), np.float32(v))).tolist() for v in (float("nan"), -float("nan"))]
    assert signs == queued


@pytest.mark.host("what runs within its push")
def test_an_update_that_is_queued_after_all_is_ordered(monkeypatch):
    """Memory runs out while it is prepared: then it is an operation like any other."""
    from vardag.operators import optimizer_tiles

    class Host:
        def __init__(self, real):
            self.real, self.failed = real, False

        def __getattr__(self, name):
            return getattr(self.real, name)

        def empty(self, *arguments):
            if not self.failed:
                self.failed = True
                raise MemoryError
            return self.real.empty(*arguments)

    with Engine(workers=1) as engine:
        from vardag.engine.lifecycle import set_default

        old = set_default(engine)
        try:
            for _ in range(3):
                w, g = nd.ones(8), nd.ones(8)
                nd.sgd_update(w, g, lr=1.0, wd=0.1, out=w)
            gate = Gate()
            engine.push(gate)
            gate.wait_entered()
            host = Host(optimizer_tiles.HOST)
            monkeypatch.setattr(optimizer_tiles, "HOST", host)
            w, g = nd.ones(8), nd.ones(8)
            nd.sgd_update(w, g, lr=1.0, wd=0.1, out=w)
            g[:] = 1000
            gate.open()
            assert host.failed
            np.testing.assert_allclose(w.asnumpy(), -0.1, rtol=1e-5)
        finally:
            set_default(old)


def test_a_large_call_that_comes_again_asks_no_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is pushed with what was worked out the first time."""
    monkeypatch.setattr(calls, "MOST", 10**9)  # whatever was learned, and left, before
    with Engine(workers=2):
        x, y = nd.ones((700, 700)), nd.ones((700, 700)) * 2
        first = nd.maximum(x, y)
        monkeypatch.delattr(faces, "invoke")
        again = nd.maximum(x, y)
        np.testing.assert_array_equal(first.asnumpy(), again.asnumpy())


def test_random_calls_that_come_again_have_seeds_of_their_own() -> None:
    """The node of each keeps its own: a gradient has the mask of its call."""
    with Engine(workers=2), autograd.record():
        x = nd.ones((700, 700))
        x.attach_grad()
        values = [nd.Dropout(x, p=0.5) for _ in range(4)]
        for value in values:
            value.backward(retain_graph=True)
            np.testing.assert_array_equal(x.grad.asnumpy(), value.asnumpy())
        assert len({value.asnumpy().tobytes() for value in values}) == 4
