"""Optimizer updates against their formulas in float64, over several steps: the state is carried along."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vardag import nd
from vardag.engine import Engine

RNG_SHAPE = (3, 4)


def sgd(w: Any, g: Any, state: list[Any], *, lr: float, wd: float, rescale_grad: float, clip_gradient: float) -> Any:
    g = np.clip(g * rescale_grad, -clip_gradient, clip_gradient)
    return w - lr * (g + wd * w)


def momentum(
    w: Any,
    g: Any,
    state: list[Any],
    *,
    lr: float,
    wd: float,
    rescale_grad: float,
    clip_gradient: float,
    momentum: float,
) -> Any:
    g = np.clip(g * rescale_grad, -clip_gradient, clip_gradient)
    state[0] = momentum * state[0] - lr * (g + wd * w)
    return w + state[0]


def adam(
    w: Any, g: Any, state: list[Any], *, lr: float, wd: float, rescale_grad: float, clip_gradient: float,
    beta1: float, beta2: float, epsilon: float,
) -> Any:  # fmt: skip
    g = np.clip(g * rescale_grad + wd * w, -clip_gradient, clip_gradient)
    state[0] = beta1 * state[0] + (1 - beta1) * g
    state[1] = beta2 * state[1] + (1 - beta2) * g * g
    return w - lr * state[0] / (np.sqrt(state[1]) + epsilon)


COMMON = {"lr": 0.1, "wd": 0.01, "rescale_grad": 0.5, "clip_gradient": 0.6}
UPDATES: list[tuple[str, Callable[..., Any], int, dict[str, float]]] = [
    ("sgd_update", sgd, 0, {}),
    ("sgd_mom_update", momentum, 1, {"momentum": 0.9}),
    ("adam_update", adam, 2, {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6}),
]


@pytest.mark.parametrize("in_place", [True, False], ids=["out", "new"])
@pytest.mark.parametrize(("name", "formula", "states", "more"), UPDATES, ids=[u[0] for u in UPDATES])
def test_several_steps(
    engine_kind: Engine, name: str, formula: Callable[..., Any], states: int, more: dict[str, float], in_place: bool
) -> None:
    rng = np.random.default_rng(len(name))
    raw = rng.normal(0, 1, RNG_SHAPE)
    w, state = nd.array(raw), [nd.zeros(RNG_SHAPE) for _ in range(states)]
    expected, kept = raw.astype(np.float32).astype(np.float64), [np.zeros(RNG_SHAPE) for _ in range(states)]
    for _ in range(5):
        g = nd.array(rng.normal(0, 2, RNG_SHAPE))
        before = w.asnumpy()
        new = getattr(nd, name)(w, g, *state, **COMMON, **more, **({"out": w} if in_place else {}))
        if in_place:
            assert new is w
        else:
            assert w.asnumpy().tobytes() == before.tobytes(), "the weight changes only as out"
        w = new
        expected = formula(expected, g.asnumpy().astype(np.float64), kept, **COMMON, **more)
    np.testing.assert_allclose(w.asnumpy(), expected, rtol=1e-5, atol=1e-6)
    for s, k in zip(state, kept, strict=True):
        np.testing.assert_allclose(s.asnumpy(), k, rtol=1e-5, atol=1e-6)


def test_a_gradient_beyond_the_limit_is_clipped() -> None:
    w = nd.zeros((3,))
    nd.sgd_update(w, nd.array([5, -5, 0.25]), lr=1, clip_gradient=0.5, out=w)
    assert w.asnumpy().tolist() == [-0.5, 0.5, -0.25]


def test_no_limit_by_default() -> None:
    w = nd.zeros((2,))
    nd.sgd_update(w, nd.array([500, -5]), lr=1, out=w)
    assert w.asnumpy().tolist() == [-500, 5]


def test_an_update_copies_and_renames_nothing() -> None:
    w, m, g = nd.ones((100,)), nd.zeros((100,)), nd.ones((100,))
    before, variables = nd.statistics(), (w.var, m.var)
    for _ in range(5):
        nd.sgd_mom_update(w, g, m, lr=0.1, momentum=0.9, out=w)
    assert nd.statistics() == before and (w.var, m.var) == variables


def test_a_state_of_another_shape_is_refused() -> None:
    w, m, g = nd.ones((3,)), nd.zeros((2,)), nd.ones((3,))
    with pytest.raises(ValueError, match="sgd_mom_update"):
        nd.sgd_mom_update(w, g, m, lr=0.1, out=w)
    assert w.asnumpy().tolist() == [1, 1, 1]
