"""Kernels that run at once, without push and lock: they see the values of one moment, or leave it to the push path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.autograd.recorder import Recorder
from vardag.engine import ArgumentTypeError, Engine, Kind, Operation
from vardag.engine.lifecycle import set_default
from vardag.engine.testing import Gate
from vardag.ndarray.array import Array
from vardag.operators import quick, tiny
from vardag.operators.faces import numpy_face


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(workers=2, inline=True) as e:
        old = set_default(e)
        yield e
        set_default(old)


def at_once(engine: Engine, program: Callable[[], Any]) -> tuple[int, Any]:
    before = engine.ran_at_once
    result = program()
    return engine.ran_at_once - before, result


@pytest.mark.host("what runs within its push")
def test_ready_operands_need_no_push(engine: Engine) -> None:
    x = nd.array([1, 2, 3])
    pushed = engine._seq
    count, y = at_once(engine, lambda: nd.exp(x * x + 1) - x / 2)
    assert (count, engine._seq) == (5, pushed)
    np.testing.assert_allclose(y.asnumpy(), np.exp(np.array([2, 5, 10.0])) - [0.5, 1, 1.5], rtol=1e-6)


@pytest.mark.host("what runs within its push")
@pytest.mark.parametrize(("size", "expected"), [(3, 10), (5000, 10)])
def test_the_bits_are_those_of_the_push_path(engine: Engine, size: int, expected: int) -> None:
    raw = np.random.default_rng(0).normal(size=size).astype("float32")

    def program() -> list[bytes]:
        x, y = nd.array(raw), nd.array(raw[::-1].copy())
        y += 1  # has a chunk
        made = [x + y, y - 2, 3 / y, x > y, x == y, nd.tanh(x), nd.floor(y), y * y, x**2.0, nd.maximum(x, y)]
        return [m.asnumpy().tobytes() for m in made]

    count, quick = at_once(engine, program)
    engine.inline = False
    none, slow = at_once(engine, program)
    assert (count, none) == (expected, 0)
    assert quick == slow


def test_a_pending_or_poisoned_operand_is_left_to_the_push_path(engine: Engine) -> None:
    gate = Gate()
    x = nd.array([1, 2])
    engine.push(lambda a: gate(), updates=[x])
    count, y = at_once(engine, lambda: x + 1)
    gate.open()
    assert count == 0
    assert y.asnumpy().tolist() == [2, 3]
    engine.push(lambda a: 1 / 0, updates=[x])
    count, z = at_once(engine, lambda: x + 1)
    assert count == 0
    with pytest.raises(ZeroDivisionError):
        z.asnumpy()


@pytest.mark.host("what runs within its push")
@pytest.mark.parametrize("young", [True, False])
def test_a_write_while_the_kernel_runs_is_seen(engine: Engine, monkeypatch: Any, young: bool) -> None:
    """RACE "write-while-reading": another thread, or a finalizer, writes an operand between the look and the end."""
    x, y = nd.array([1, 2]), nd.array([10, 20])
    if not young:
        x += 0
        y += 0
    fired: list[int] = []
    real = np.add

    class Disturbed:
        """np.add, in which somebody pushes a write."""

        def __call__(self, *arguments: Any, **named: Any) -> Any:
            if not fired:
                fired.append(1)
                y[:] = 100
            return real(*arguments, **named)

    function = quick.pair(
        quick.Ufunc(None, Disturbed(), nd.NDArray, lambda a, b: "push path", (np.dtype("f4"),), (), True, 100)  # type: ignore[arg-type]
    )
    count, result = at_once(engine, lambda: function(x, y))
    assert (fired, count, result) == ([1], 0, "push path")
    count, result = at_once(engine, lambda: function(x, y))
    assert (count, result.asnumpy().tolist()) == (1, [101, 102])


@pytest.mark.host("what runs within its push")
def test_a_kernel_that_writes_within_a_push_is_seen(engine: Engine) -> None:
    """RACE "half-written": its version counts when it ends; until then `writing` says it."""
    x = nd.array([1.0, 2.0])
    seen: list[tuple[int, str]] = []
    real = np.subtract

    function = quick.pair(
        quick.Ufunc(None, np.add, nd.NDArray, lambda a, b: "push path", (np.dtype("f4"),), (np.dtype("f4"),), True, 100)
    )

    def subtract(*arguments: Any) -> Any:
        seen.append(at_once(engine, lambda: function(x, x)))
        return real(*arguments)

    x += 0
    variable, raw = x.var, x._chunk.buffer.raw
    op = Operation(Kind.ATOMIC, lambda: ((subtract, raw, np.float32(1), raw),), "subtract", cheap=True)
    engine.admit(lambda: (op, (), (), (variable,), [], [], False))
    assert seen == [(0, "push path")]
    assert engine.writing == 0
    assert at_once(engine, lambda: function(x, x))[0] == 1


@pytest.mark.host("what runs within its push")
def test_what_a_signal_handler_raises_goes_to_the_caller(engine: Engine) -> None:
    """An exception that does not repeat is not the kernel's own."""
    x = nd.array([1.0])

    class Once:
        count = 0

        def __call__(self, *arguments: Any) -> Any:
            self.count += 1
            if self.count == 1:
                raise TimeoutError("from outside")
            return np.exp(*arguments)

    function = quick.single(
        quick.Ufunc(None, Once(), nd.NDArray, lambda a: "push path", (np.dtype("f4"),), (np.dtype("f4"),), True, 100)  # type: ignore[arg-type]
    )
    with pytest.raises(TimeoutError, match="from outside"):
        function(x)
    assert x.asnumpy().tolist() == [1]


@pytest.mark.host("what runs within its push")
def test_a_kernel_that_fails_is_stored_as_everywhere(engine: Engine) -> None:
    x = numpy_face.cast(nd.array([2, 3]), dtype="int32")
    count, y = at_once(engine, lambda: numpy_face.power(x, numpy_face.negative(x)))
    assert count == 1  # only the negative
    for _ in range(2):
        with pytest.raises(ValueError, match="negative integer powers"):
            y.asnumpy()


@pytest.mark.host("what runs within its push")
def test_an_array_grows_a_chunk_once(engine: Engine) -> None:
    x = nd.ones(3) + nd.ones(3)
    assert x._raw is not None
    assert x.version == 0
    view = x[1:]
    assert x._raw is None
    view += 1
    assert x.asnumpy().tolist() == [2, 3, 3]
    assert x.version == 1


@pytest.mark.host("what runs within its push")
def test_recorded_operators_run_at_once_too(engine: Engine) -> None:
    x = nd.array([1.0, 2.0])
    x.attach_grad()

    def program() -> None:
        with autograd.record():
            y = (x * x).sum()
        y.backward()

    count, _ = at_once(engine, program)
    assert count >= 2
    assert x.grad.asnumpy().tolist() == [2, 4]


@pytest.mark.host("what runs within its push")
def test_in_place_within_the_push(engine: Engine) -> None:
    w, g = nd.array([1.0, 2, 3]), nd.array([1.0, 1, 2])
    view = w[:]
    before = engine.statistics().inline
    w -= 0.5 * g
    w *= 2
    w += w
    assert engine.statistics().inline - before >= 4
    assert view.asnumpy().tolist() == w.asnumpy().tolist() == [2, 6, 8]
    assert w.version == 3


CASES = ["held", "pending reader", "pending operand", "poisoned", "recorded", "part", "read-only"]


@pytest.mark.parametrize("case", CASES)
def test_in_place_is_left_to_the_push_path(engine: Engine, case: str) -> None:
    w, g = nd.array([1.0, 2]), nd.array([3.0, 4])
    g += 0
    gate = Gate()
    if case == "held":
        kept = w.copy()  # shares the bytes
        w += g
        assert (kept.asnumpy().tolist(), w.asnumpy().tolist()) == ([1, 2], [4, 6])
    elif case == "pending reader":
        seen: list[Any] = []
        engine.push(lambda a: (gate(), seen.append(a.tolist())), reads=[w])
        w += g
        gate.open()
        assert (w.asnumpy().tolist(), seen) == ([4, 6], [[1, 2]])
    elif case == "pending operand":
        engine.push(lambda a: (gate(), a.fill(7)), writes=[g])
        w += g
        gate.open()
        assert w.asnumpy().tolist() == [8, 9]
    elif case == "poisoned":
        engine.push(lambda a: 1 / 0, updates=[g])
        w += g
        with pytest.raises(ZeroDivisionError):
            w.asnumpy()
    elif case == "recorded":
        w.attach_grad()
        with autograd.record():
            y = w * 1
            y *= g
        y.backward()
        assert w.grad.asnumpy().tolist() == [3, 4]
    elif case == "part":
        w[:1] += 1
        assert w.asnumpy().tolist() == [2, 2]
    else:

        class Writes(autograd.Function):
            def forward(self, x: Any) -> Any:
                x += 1
                return x

        with pytest.raises(Exception, match="read-only"):
            Writes()(w)


@pytest.mark.host("what runs within its push")
@pytest.mark.parametrize("name", ["pair", "single", "any operator"])
def test_what_the_tape_keeps_is_what_the_kernel_read(engine: Engine, monkeypatch: Any, name: str) -> None:
    """RACE "write-before-keeping": an operand is written after the kernel and before the tape has its copy."""
    x = nd.array([1.0, 2.0])
    x.attach_grad()
    programs: dict[str, Any] = {
        "pair": lambda: x * x,
        "single": lambda: nd.square(x),
        "any operator": lambda: nd.prod(x),
    }
    owner, keeps = (tiny, "save") if name == "any operator" else (Recorder, name)
    real, fired = getattr(owner, keeps), []

    def save(*arguments: Any) -> Any:
        if not fired:
            fired.append(1)
            x.detach()[:] = 50
        return real(*arguments)

    monkeypatch.setattr(owner, keeps, save)
    with autograd.record():
        y = programs[name]()
    value = y.asnumpy()
    y.backward()
    assert fired
    assert np.unique(value).tolist() == [2500.0]
    assert x.grad.asnumpy().tolist() == [50 if name == "any operator" else 100] * 2


def test_a_gradient_that_two_arrays_share_is_each_one_s_own(engine: Engine, monkeypatch: Any) -> None:
    """The first is written before the second is stored."""
    a, b = nd.array([1.0]), nd.array([2.0])
    for x in (a, b):
        x.attach_grad()
    with autograd.record():
        y = a + b
    room = sys.modules["vardag.autograd.backward"]
    real, fired = room._store, []  # type: ignore[attr-defined]

    def store(target: Any, *rest: Any) -> None:
        real(target, *rest)
        if not fired:
            fired.append(1)
            target[:] = 100

    monkeypatch.setattr(room, "_store", store)
    y.backward()
    assert [a.grad.asnumpy().tolist(), b.grad.asnumpy().tolist()] == [[100], [1]]


def test_what_a_function_keeps_of_its_gradient_stays(engine: Engine) -> None:
    kept: list[Any] = []

    class Same(autograd.Function):
        def forward(self, x: Any) -> Any:
            return numpy_face.copy(x)

        def backward(self, g: Any) -> Any:
            kept.append(g)
            return g

    a, b = (Array._from_host(np.ones(2, "float32")) for _ in range(2))
    for x in (a, b):
        x.attach_grad()
    with autograd.record():
        y = numpy_face.add(a, Same()(b))
    y.backward()
    a.grad[:] = 7  # type: ignore[index]
    b.grad[:] = 8  # type: ignore[index]
    assert kept[0].asnumpy().tolist() == [1, 1]


def test_memory_that_runs_out_once_is_not_the_caller_s_matter(engine: Engine) -> None:
    x = nd.array([1.0])

    class Once:
        count = 0

        def __call__(self, *arguments: Any) -> Any:
            self.count += 1
            if self.count == 1:
                raise MemoryError
            return np.exp(*arguments)

    rule = quick.Ufunc(None, Once(), nd.NDArray, lambda *a: "push path", (np.dtype("f4"),), (), True, 100)  # type: ignore[arg-type]
    assert quick.single(rule)(x) == "push path"


@pytest.mark.parametrize("program", [lambda t: t * t, lambda t: t + 1, numpy_face.exp, numpy_face.negative])
def test_results_of_transposed_operands_are_c_ordered(engine: Engine, program: Any) -> None:
    raw = np.arange(6, dtype="float32").reshape(2, 3)
    y = program(Array._from_host(raw.copy()).T)
    value = y.asnumpy()
    assert y.reshape(-1).asnumpy().tolist() == value.ravel().tolist()
    assert y[1].asnumpy().tolist() == value[1].tolist()
    assert y.asnumpy().tolist() == value.tolist()


# ---- host operands, and dtypes that are stored narrower --------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["young", "written"])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("function", [lambda x, h: x * h, lambda x, h: h - x, nd.maximum])
def test_a_host_operand_of_the_same_shape_and_dtype(function: Any, recorded: bool, old: bool) -> None:
    h = np.full((2, 3), 2, "f")
    x = nd.ones((2, 3))
    x.attach_grad()
    if old:
        x[:] = 3
    expected = np.asarray(function(x.asnumpy(), h) if function is not nd.maximum else np.maximum(x.asnumpy(), h))
    if recorded:
        with autograd.record():
            y = function(x, h)
    else:
        y = function(x, h)
    h[:] = 100  # it was copied at the call
    assert (y.asnumpy() == expected).all()


def test_the_tape_copies_a_host_operand() -> None:
    for swap in (False, True):
        h = np.full((2, 3), 2, "f")
        x = nd.ones((2, 3))
        x.attach_grad()
        with autograd.record():
            y = h * x if swap else x * h
        h[:] = 100
        y.backward()
        assert (x.grad.asnumpy() == 2).all()


@pytest.mark.parametrize("name", ["tanh", "reciprocal", "sqrt"])
@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_gradients_of_integers_are_those_of_what_is_stored(name: str, dtype: str) -> None:
    found = []
    for inline in (True, False):
        with Engine(workers=1, inline=inline) as e:
            old = set_default(e)
            try:
                x = nd.array([1, 2, 3], dtype=dtype)
                x.attach_grad()
                with autograd.record():
                    y = getattr(nd, name)(x)
                y.backward()
                found.append(x.grad.asnumpy().tobytes())
            finally:
                set_default(old)
    assert found[0] == found[1]


@pytest.mark.parametrize("call", [
    nd.dot, lambda x, h: nd.dot(h, x), lambda x, h: nd.FullyConnected(x, h, num_hidden=2, no_bias=True),
    lambda x, h: nd.LeakyReLU(x, h[0], act_type="prelu"),
])  # fmt: skip
def test_gradients_beside_a_host_operand(call: Any) -> None:
    h = np.arange(4, dtype="f").reshape(2, 2)
    gradients = []
    for other in (h, nd.array(h)):
        x = nd.array([[1, -2], [3, 4]])
        x.attach_grad()
        with autograd.record():
            y = call(x, other)
        y.backward()
        gradients.append(x.grad.asnumpy().tobytes())
    assert gradients[0] == gradients[1]


def test_attributes_that_are_no_numbers() -> None:
    w, g = nd.ones(3), nd.ones(3)
    for call in (lambda: nd.sgd_update(w, g, lr="a", out=w), lambda: nd.clip(w, "a", "b"), lambda: nd.clip(w, g, 2)):
        with pytest.raises(ArgumentTypeError, match="a number expected"):
            call()
    assert w.version == 0
    assert w.asnumpy().tolist() == [1, 1, 1]
