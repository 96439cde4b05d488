"""autograd.check: right gradients pass at every order, wrong ones don't, kinks are gone around."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.autograd import GradientMismatch, check
from vardag.autograd.checking import slope
from vardag.engine import ArgumentError, ArgumentTypeError

X, Y = nd.array([[0.3, -0.7, 1.2], [0.5, 0.1, -0.4]]), nd.array([0.8, 1.5, -0.6])


# ---- right ones ------------------------------------------------------------------------------------------------------


def test_right_gradients_pass_at_every_order() -> None:
    f = lambda x, y: nd.sin(x * y) * nd.exp(x)  # noqa: E731
    for order in (1, 2, 3, 4):
        assert check(f, X, Y, order=order) == (2 * order, 0)


def test_trees_and_other_values() -> None:
    calls = []

    def f(p: Any, k: int, mask: Any) -> Any:
        calls.append(p["b"][0].dtype)
        assert mask.dtype == np.int32 and k == 3
        y = nd.dot(p["w"], p["b"][0]) * k
        return {"y": y, "where": nd.cast(y, dtype="int32"), "rest": [nd.where(mask, p["w"], p["w"] * 2), "word"]}

    mask = nd.array([[1, 0, 1], [0, 0, 1]], dtype="int32")
    assert check(f, {"w": X, "b": (Y, None)}, 3, mask, order=2) == (4, 0)
    assert set(calls) == {np.float64}
    assert X.grad is None and X.dtype == np.float32


def test_in_place_writes_functions_and_checkpoints() -> None:
    def f(x: Any, y: Any) -> Any:
        z = x * y
        z[0] = nd.tanh(z[1]) * y
        z *= x
        return z.sum()

    assert check(f, X, Y, order=2).compared == 4
    assert check(autograd.checkpoint(f), X, Y, order=2).compared == 4
    cube = autograd.custom_gradient(lambda g, x: g * 3 * x * x)(lambda x: x * x * x)
    assert check(cube, X, order=3).compared == 3


@pytest.mark.parametrize("training", [True, False])
def test_random_functions_draw_the_same_every_time(training: bool) -> None:
    seen = set()

    def f(x: Any) -> Any:
        seen.add(autograd.is_training())
        return nd.Dropout(x, p=0.5) * x * nd.random.uniform(shape=(50,), dtype="float64")

    vd.random.seed(5)
    assert check(f, nd.ones(50), order=2, train_mode=training).compared == 2
    assert seen == {training}


def test_the_same_seed_asks_the_same() -> None:
    points: list[list[Any]] = [[], []]
    for found, seed in zip(points, (3, 3), strict=True):
        check(lambda x, found=found: found.append(x.asnumpy().tolist()) or x * x, X, seed=seed)
    assert points[0] == points[1]


# ---- wrong ones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradient", "order"),
    [
        (lambda g, x: g * nd.cos(x) * 1.0001, 1),
        (lambda g, x: -g * nd.cos(x), 1),
        (lambda g, x: g * 0, 1),
        (lambda g, x: g * nd.cos(x) + 1e-4, 1),
        (lambda g, x: g * nd.cos(x).detach(), 2),
        (lambda g, x: g * nd.cos(x) * g / g.detach(), 2),
    ],
)
def test_wrong_gradients_are_found_at_their_order(gradient: Any, order: int) -> None:
    sine = autograd.custom_gradient(gradient)(nd.sin)
    f = lambda x, y: nd.exp(sine(x)) * y  # noqa: E731
    if order > 1:
        check(f, X, Y, order=order - 1)
    with pytest.raises(GradientMismatch, match=rf"\[check\] <lambda>: order {order}, argument 0: the gradient gives"):
        check(f, X, Y, order=2)
    assert issubclass(GradientMismatch, AssertionError) and issubclass(GradientMismatch, vd.Error)


def test_the_wrong_argument_is_named() -> None:
    product = autograd.custom_gradient(lambda g, x, y: (g * y, (g * x * 1.1).sum(axis=0)))(lambda x, y: x * y)
    with pytest.raises(GradientMismatch, match=r"argument 0\['y'\]\[1\]: the gradient gives"):
        check(lambda p: product(p["x"], p["y"][1]), {"x": X, "y": [Y, Y]})


def test_a_missing_gradient_is_found() -> None:
    with pytest.raises(GradientMismatch, match="gives 0 along"):
        check(lambda x: x.detach() * x.detach(), X)
    with pytest.raises(GradientMismatch, match="order 1, argument 1"):
        check(lambda x, y: nd.BlockGrad(y) * x, X, Y)


# ---- kinks -----------------------------------------------------------------------------------------------------------


def test_kinks_are_gone_around() -> None:
    at = nd.array([0.0, 1.0, -1.0, 0.0])
    for f in (nd.relu, nd.abs, lambda x: nd.maximum(x, x * x * x), lambda x: nd.clip(x, 0, 1)):
        result = check(f, at)
        assert result.compared == 1 and result.redrawn >= 1
    assert check(nd.relu, nd.array([0.5, -0.5])) == (1, 0)


def test_a_wrong_gradient_beside_a_kink_is_found() -> None:
    wrong = autograd.custom_gradient(lambda g, x: g * (x > 0) * 1.01)(nd.relu)
    with pytest.raises(GradientMismatch):
        check(wrong, nd.array([0.0, 1.0, -1.0]))


@pytest.mark.parametrize("distance", [0.0, 1e-6, 3e-6, 4e-6, 5e-6, 7e-6, 9.9e-6])
def test_slopes_at_and_near_a_kink_are_not_smooth(distance: float) -> None:
    assert not slope(lambda t: abs(t + distance)).smooth
    assert not slope(lambda t: max(0.0, t - distance) + t).smooth


@pytest.mark.parametrize("f", [np.sin, np.exp, lambda t: t**3, lambda t: 1e6 * np.cos(t + 1), lambda t: abs(t + 1e-4)])
def test_slopes_of_smooth_functions(f: Any) -> None:
    h = 1e-3
    derivative = (8 * (f(h) - f(-h)) - f(2 * h) + f(-2 * h)) / (12 * h) if f(0.0) != 1e-4 else 1.0
    found = slope(f)
    assert found.smooth and found.near(derivative)


# ---- what cannot be checked ------------------------------------------------------------------------------------------


def test_what_cannot_be_checked_says_so() -> None:
    noise = itertools.count()
    for call, error, words in [
        (lambda: check(7, X), ArgumentTypeError, "a function expected"),
        (lambda: check(nd.sin, X, order=0), ArgumentError, "order 0: 1 or more expected"),
        (lambda: check(nd.sin, 3.0), ArgumentTypeError, "no argument has a floating-point array"),
        (lambda: check(lambda x: "word", X), ArgumentTypeError, "it gave no floating-point array"),
        (lambda: check(lambda x: nd.cast(x, dtype="float32"), X), ArgumentError, r"float32\(2, 3\): float64 expected"),
        (lambda: check(nd.log, nd.array([-1.0])), ArgumentError, "finite"),
        (lambda: check(lambda x: x * (next(noise) % 3), X), ArgumentError, "does not give the same every time"),
        (lambda: check(lambda x: x / 0, X), ArgumentError, "finite"),
    ]:
        with pytest.raises(error, match=words):
            call()
    assert not autograd.is_recording()
