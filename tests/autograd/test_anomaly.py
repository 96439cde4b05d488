"""detect_anomaly: the first operator that gives what is not finite, with its lines."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.autograd import AnomalyError, detect_anomaly
from vardag.operators.launch import watchers


@pytest.fixture(autouse=True)
def nobody_looks() -> Any:
    engine = vd.engine.current()
    before = engine.inline, engine.fusion
    yield
    assert not watchers and (engine.inline, engine.fusion) == before


def line() -> int:
    """The number of the caller's line."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


def test_the_first_operator_forward(engine_kind: Any) -> None:
    x = nd.array([1.0, 0.0, -1.0])
    with pytest.raises(AnomalyError) as caught, detect_anomaly():
        y = x * 2
        z, at = nd.log(y), line()
        w = nd.exp(z) + nd.sqrt(y)
        w.asnumpy()
    text = str(caught.value)
    assert text.startswith("[log] its result has nan in 1 of 3 elements; no operand had any")
    notes = "\n".join(caught.value.__notes__)
    assert f"test_anomaly.py:{at}" in notes and "float32(3,)" in notes
    assert isinstance(caught.value, FloatingPointError) and isinstance(caught.value, vd.Error)


def test_at_the_end_of_the_block_at_the_latest() -> None:
    x = nd.array([0.0])
    with pytest.raises(AnomalyError, match=r"\[log\] its result has inf in 1 of 1 elements"), detect_anomaly():
        y = nd.log(x)
    with pytest.raises(AnomalyError):  # it is on the data
        y.asnumpy()
    y[:] = 1
    assert y.asnumpy().tolist() == [1]


def test_of_several_the_one_that_was_pushed_first(engine_kind: Any) -> None:
    x = nd.array([-1.0])
    for _ in range(10):
        with pytest.raises(AnomalyError, match=r"\[sqrt\]"), detect_anomaly():
            nd.sqrt(x * nd.ones(1))
            nd.log(x)


def test_a_wait_may_come_upon_a_later_one(engine_kind: Any) -> None:
    """The gradient of log needs no logarithm, and is infinite, too."""
    x = nd.ones(2)
    x.attach_grad()
    words = r"\[log\] its result has inf"
    with pytest.raises(AnomalyError, match=words) as caught, detect_anomaly(), autograd.record():
        nd.log(x - 1).backward()
    assert "[log] its gradient" in str(caught.value.__context__)


def test_backward_names_the_forward_line() -> None:
    x = nd.array([1.0, 0.0])
    x.attach_grad()
    for _ in range(4):  # no plan comes in between
        with autograd.record():
            y = nd.tanh(x)
            z, at = nd.sqrt(y), line()
            w = z.sum()
        with pytest.raises(AnomalyError) as caught, detect_anomaly():
            w.backward()
        text = str(caught.value)
        assert text.startswith("[sqrt] its gradient, recorded at ") and f"test_anomaly.py:{at}," in text
        assert "has inf in 1 of 2 elements; no operand had any" in text


@pytest.mark.parametrize("size", [2, 200_000])
def test_recorded_gradients_too(size: int) -> None:
    x = nd.zeros(size)
    x.attach_grad()
    with autograd.record():
        y, at = nd.sqrt(x), line()
    with autograd.record(), pytest.raises(AnomalyError) as caught, detect_anomaly():
        autograd.grad(y, x, create_graph=size == 2)
    text = str(caught.value)
    assert text.startswith("[sqrt] its gradient, recorded at ") and f"test_anomaly.py:{at}, of which" in text


def test_a_users_function_and_the_accumulation_are_named() -> None:
    class Bad(autograd.Function):
        def forward(self, x: Any) -> Any:
            return x * 1

        def backward(self, dy: Any) -> Any:
            return dy / 0

    x = nd.ones(2)
    x.attach_grad()
    with autograd.record():
        y = Bad()(x)
    words = r"\[Bad\] its gradient, recorded at .*, of which divide is a part, has inf"
    with pytest.raises(AnomalyError, match=words), detect_anomaly():
        y.backward()


def test_what_comes_in_not_finite_is_said() -> None:
    x = nd.array([np.nan, 1.0])
    with pytest.raises(AnomalyError, match=r"has nan in 1 of 2 elements; so had x\n"), detect_anomaly():
        nd.exp(x)


def test_infinities_may_be_meant() -> None:
    x = nd.array([1.0, 2.0])
    x.attach_grad()
    with detect_anomaly(infinite=False):
        masked = nd.where(nd.array([1, 0]), x, nd.array([-np.inf, -np.inf]))
        assert np.isinf(masked.asnumpy()).any()
        with autograd.record():
            y = nd.softmax(nd.where(nd.array([1, 0]), x, nd.array([-np.inf, -np.inf])))
        y.backward()
    with pytest.raises(AnomalyError, match="nan in 1 of 2"), detect_anomaly(infinite=False):
        masked - masked


def test_values_are_the_same_while_somebody_looks(engine_kind: Any) -> None:
    def program() -> list[bytes]:
        vd.random.seed(3)
        x = nd.random.normal(shape=(300, 300))
        x.attach_grad()
        with autograd.record():
            y = nd.tanh(nd.dot(x, x) * 0.01) + nd.exp(x * 0.1)
            y[1:] *= nd.Dropout(x[1:], p=0.3)
            z = y.sum()
        z.backward()
        return [a.asnumpy().tobytes() for a in (y, z, x.grad)]

    plain = program()
    with detect_anomaly():
        assert program() == plain
    assert program() == plain


def test_blocks_in_blocks_and_in_threads() -> None:
    with detect_anomaly(), pytest.raises(AnomalyError), detect_anomaly():
        nd.log(nd.zeros(1))
    found: list[Any] = []

    def other() -> None:
        found.append(nd.log(nd.zeros(1)).asscalar())

    with detect_anomaly():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(60)
    assert found == [-np.inf]  # nobody looks there


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(KeyError), detect_anomaly():
        nd.log(nd.ones(1))
        raise KeyError
    x = nd.ones(1)

    def broken(memory: Any) -> None:
        raise ZeroDivisionError

    with detect_anomaly():
        vd.engine.current().push(broken, updates=[x])
        y = x * 2
    with pytest.raises(ZeroDivisionError):
        y.asnumpy()


def test_an_async_block() -> None:
    async def main() -> None:
        async with detect_anomaly():
            nd.log(nd.zeros(1))

    with pytest.raises(AnomalyError):
        asyncio.run(main())


def test_nothing_is_asked_while_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A push looks at one empty list: not even at the context."""

    class Never:
        def get(self) -> Any:
            raise AssertionError

    for module in ("operators.push", "operators.texts", "autograd.anomaly"):
        monkeypatch.setattr(f"vardag.{module}.watch", Never())
    x = nd.ones(100_000)
    x.attach_grad()
    with autograd.record():
        y = nd.tanh(x * x)
    y.backward()
    assert np.isfinite(x.grad.asnumpy()).all()
