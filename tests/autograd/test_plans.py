"""Plans: a graph that comes again is differentiated by a program, with the bits of the walk."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.autograd import plans
from vardag.engine import Engine
from vardag.engine.testing import Gate
from vardag.operators import tracing

pytestmark = pytest.mark.host("devices have no plans")


@pytest.fixture
def ran(monkeypatch):
    """How many backwards went by a plan."""
    count, real = [], plans._run

    def run(*arguments):
        found = real(*arguments)
        count.append(found is not None)
        return found

    monkeypatch.setattr(plans, "_run", run)
    monkeypatch.setattr(plans, "_plans", {})
    monkeypatch.setattr(plans, "_found", {})
    return count


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [nd.array(rng.uniform(-1, 1, s).astype("f")) for s in shapes]


def network(x, w, b, v):
    h = nd.tanh(nd.dot(x, w) + b)
    h = nd.concat(nd.sigmoid(h), h * h, dim=1)
    return (nd.log_softmax(nd.dot(h, v)) * 3 - 1).sum(axis=1)


def gradients(function, leaves, times):
    found = []
    for _ in range(times):
        with autograd.record():
            y = function(*leaves)
        y.backward()
        found.append([x.grad.asnumpy().tobytes() for x in leaves])
    return found


def test_a_plan_gives_the_bits_of_the_walk(ran):
    shapes = (4, 5), (5, 6), (1, 6), (12, 3)
    with Engine(workers=1, inline=False):
        leaves = arrays(*shapes)
        for x in leaves:
            x.attach_grad()
        (expected,) = gradients(network, leaves, 1)
    assert ran == []
    with Engine(workers=1):
        leaves = arrays(*shapes)
        for x in leaves:
            x.attach_grad()
        found = gradients(network, leaves, 4)
    assert ran == [True] * 3  # the second backward makes the plan
    assert found == [expected] * 4


def test_what_differs_has_a_plan_of_its_own(ran):
    """Shapes, attributes, dtypes, edges, heads and what is wanted; but not values."""
    with Engine(workers=1):
        x, y, z = arrays((2, 3), (2, 3), (3, 2))
        for a in (x, y, z):
            a.attach_grad()

        def twice(*makers):
            for make in makers:
                for _ in range(2):
                    with autograd.record():
                        head = make()
                    head.backward()
            return len(plans._plans)

        assert twice(lambda: x * y, lambda: y * x, lambda: x * x) == 3
        assert twice(lambda: nd.sum(x, axis=0), lambda: nd.sum(x, axis=1), lambda: nd.sum(y, axis=1)) == 5
        assert twice(lambda: nd.clip(x, 0.0, 1.0), lambda: nd.clip(x, -0.0, 1.0)) == 7
        assert twice(lambda: z * z) == 8
        assert twice(lambda: x * 2.0, lambda: x * 3.0) == 9
        x.grad[:] = 0
        with autograd.record():
            head = x * 5.0
        head.backward()
        assert x.grad.asnumpy().tolist() == [[5.0] * 3] * 2  # the constant is an operand of the program


def test_a_value_that_is_not_there_yet_is_waited_for_by_the_walk(ran):
    with Engine(workers=1) as engine:
        (x,) = arrays((3,))
        x.attach_grad()
        for k in range(4):
            gate = Gate()
            big = nd.ones((200_000,))
            if k == 3:
                engine.push(lambda _: gate(), updates=[big])  # noqa: B023
                gate.wait_entered()
            with autograd.record():
                y = x * big[:3] + nd.sum(big * 1)
            if k == 3:
                gate.open()
            y.backward()
            assert x.grad.asnumpy().tolist() == [1, 1, 1]


def test_an_error_in_a_program_is_the_walks(ran, monkeypatch):
    """It fails by itself: then nothing has happened, and the walk says what is wrong."""
    with Engine(workers=1):
        (x,) = arrays((3,))
        x.attach_grad()

        def once():
            with autograd.record():
                y = nd.tanh(x)
            y.backward()

        once()
        once()
        (key, plan), *_ = plans._found.items()

        def broken(*given):
            raise MemoryError

        plans._found[key] = plan._replace(program=broken)
        once()
        assert ran == [True, False]
        np.testing.assert_allclose(x.grad.asnumpy(), 1 - np.tanh(x.asnumpy()) ** 2, rtol=1e-5)


def test_a_write_while_a_program_runs(ran, monkeypatch):
    """What was saved does not change; a leaf written in between has nothing to do with it."""
    with Engine(workers=1):
        (x,) = arrays((5000,))  # saved by a hold, not by a copy
        x.attach_grad()
        value = x.asnumpy()

        def once():
            with autograd.record():
                y = x * x
            y.backward()

        once()
        once()
        (key, plan), *_ = plans._found.items()
        real = plan.program

        def program(*given):
            x[:] = 7
            return real(*given)

        plans._found[key] = plan._replace(program=program)
        once()
        np.testing.assert_array_equal(x.grad.asnumpy(), 2 * value)
        assert x.asnumpy().tolist() == [7] * 5000


def test_heads_shared_and_retained(ran):
    with Engine(workers=1):
        x, y = arrays((3,), (3,))
        x.attach_grad()
        y.attach_grad(grad_req="add")
        weight = nd.array([1, 2, 3])
        for k in range(4):
            with autograd.record():
                z = x + y
            z.backward(weight, retain_graph=True)
            z.backward(weight)
            with pytest.raises(autograd.GraphError):
                z.backward(weight)
            assert x.grad.asnumpy().tolist() == [1, 2, 3]
            assert y.grad.asnumpy().tolist() == [2 * (k + 1) * i for i in (1, 2, 3)]
            x.grad[0] = 9  # the two share no bytes, nor with the weight
            assert weight.asnumpy().tolist() == [1, 2, 3]
        assert any(ran)


def test_gradients_of_intermediate_arrays(ran):
    with Engine(workers=1):
        (x,) = arrays((3,))
        x.attach_grad()
        for _ in range(4):
            with autograd.record():
                y = x * 2
                z = y * y
            gy, gx = autograd.grad(z, [y, x])
            np.testing.assert_array_equal(gy.asnumpy(), 4 * x.asnumpy())
            np.testing.assert_array_equal(gx.asnumpy(), 8 * x.asnumpy())
        assert ran[-1]


def test_a_plan_keeps_nothing_alive(ran):
    with Engine(workers=1):
        (x,) = arrays((3,))
        x.attach_grad()
        for _ in range(3):
            with autograd.record():
                y = x * x
            node = weakref.ref(y._line)
            y.backward()
            del y
            gc.collect()
            assert node() is None


def test_plans_are_bounded(ran, monkeypatch):
    monkeypatch.setattr(plans, "REMEMBERED", 4)
    with Engine(workers=1):
        for n in range(1, 10):
            (x,) = arrays((n,))
            x.attach_grad()
            gradients(lambda x: x * x, [x], 3)
        assert len(plans._plans) <= 4


def test_too_much_work_has_no_plan(ran, monkeypatch):
    monkeypatch.setattr(plans, "MOST", 10.0)
    monkeypatch.setattr(plans, "EACH", 10.0)
    with Engine(workers=1):
        (x,) = arrays((100,))
        x.attach_grad()
        gradients(nd.tanh, [x], 3)
        assert list(plans._plans.values()) == [plans.NONE]
        assert ran == []


def test_texts_that_look_at_values_are_not_traced():
    trace = tracing.Trace(1e9, 1.0)
    x = trace.input(np.ones(3, "f"))
    for look in (float, list, np.asarray, np.sum, lambda x: np.add(x, 1), lambda x: 1 if x else 2):
        with pytest.raises((TypeError, tracing.Untraceable)):
            look(x)


def test_an_attribute_of_a_type_of_its_own_is_not_planned(ran):
    class Odd(int):
        def __eq__(self, other):
            return True

        def __hash__(self):
            return 1

    x = nd.array([-3, -1, 1, 3])
    x.attach_grad()
    for low, expected in ((0, [0, 0, 1, 1]), (2, [0, 0, 0, 1])):
        for _ in range(3):
            with autograd.record():
                y = nd.clip(x, Odd(low), 10)
            y.backward()
            assert x.grad.asnumpy().tolist() == expected


def test_plans_keep_no_engine(ran):
    def use():
        with Engine(workers=1) as engine:
            from vardag.engine.lifecycle import set_default

            old = set_default(engine)
            try:
                x = nd.ones(3)
                x.attach_grad()
                for _ in range(4):
                    with autograd.record():
                        y = x * x
                    y.backward()
            finally:
                set_default(old)
            return weakref.ref(engine)

    engines = [use() for _ in range(3)]
    gc.collect()
    assert len(plans._plans) == 1  # and one plan serves all
    assert sum(ref() is not None for ref in engines) <= 1  # the last may be in a frame of a thread that ends


def test_no_memory_while_a_plan_is_made_is_the_walks_to_deal_with(ran, monkeypatch):
    with Engine(workers=1):
        (x,) = arrays((3,))
        x.attach_grad()
        expected, real, left = (1 - np.tanh(x.asnumpy()) ** 2).tolist(), plans._TracedWalk.run, [1]

        def run(*arguments):
            if left and left.pop():
                raise MemoryError
            return real(*arguments)

        monkeypatch.setattr(plans._TracedWalk, "run", run)
        for _ in range(4):
            with autograd.record():
                y = nd.tanh(x)
            y.backward()
            np.testing.assert_allclose(x.grad.asnumpy(), expected, rtol=1e-5)
        assert ran == [True] * 2  # one turn later
