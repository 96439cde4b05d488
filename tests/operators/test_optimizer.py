"""Optimizer updates against their formulas in float64, over several steps: the state is carried along.

The formulas give what MXNet 1.9.1 gives.  `g` is the gradient, rescaled and limited; a formula says where weight decay
comes in.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import Engine
from vardag.operators import optimizer, optimizer_tiles

RNG_SHAPE = (3, 4)
LR, WD, RESCALE, LIMIT = 0.1, 0.01, 0.5, 0.6
COMMON = {"lr": LR, "wd": WD, "rescale_grad": RESCALE, "clip_gradient": LIMIT}


def after(w: Any, g: Any) -> Any:
    return np.clip(g * RESCALE, -LIMIT, LIMIT) + WD * w


def before(w: Any, g: Any) -> Any:
    return np.clip(g * RESCALE + WD * w, -LIMIT, LIMIT)


def sgd(w: Any, g: Any, s: list[Any], t: int) -> Any:
    return w - LR * after(w, g)


def momentum(w: Any, g: Any, s: list[Any], t: int) -> Any:
    s[0] = 0.9 * s[0] - LR * after(w, g)
    return w + s[0]


def nag(w: Any, g: Any, s: list[Any], t: int) -> Any:
    g = after(w, g)
    s[0] = 0.9 * s[0] - LR * g
    return w + 0.9 * s[0] - LR * g


def signsgd(w: Any, g: Any, s: list[Any], t: int) -> Any:
    return (1 - LR * WD) * w - LR * np.sign(g)


def signum(w: Any, g: Any, s: list[Any], t: int) -> Any:
    s[0] = 0.9 * s[0] - (1 - 0.9) * after(w, g)
    return (1 - LR * 0.2) * w + LR * np.sign(s[0])


def adam(w: Any, g: Any, s: list[Any], t: int) -> Any:
    g = before(w, g)
    s[0] = 0.8 * s[0] + 0.2 * g
    s[1] = 0.95 * s[1] + 0.05 * g * g
    return w - LR * s[0] / (np.sqrt(s[1]) + 1e-3)


def adagrad(w: Any, g: Any, s: list[Any], t: int) -> Any:
    g = np.clip(g * RESCALE, -LIMIT, LIMIT)
    s[0] = s[0] + g * g
    return w - LR * (g / np.sqrt(s[0] + 1e-3) + WD * w)


def rmsprop(w: Any, g: Any, s: list[Any], t: int) -> Any:
    g = before(w, g)
    s[0] = 0.9 * s[0] + 0.1 * g * g
    return np.clip(w - LR * g / np.sqrt(s[0] + 1e-3), -1.1, 1.1)


def rmspropalex(w: Any, g: Any, s: list[Any], t: int) -> Any:
    g = before(w, g)
    s[0] = 0.9 * s[0] + 0.1 * g * g
    s[1] = 0.9 * s[1] + 0.1 * g
    s[2] = 0.7 * s[2] - LR * g / np.sqrt(s[0] - s[1] ** 2 + 1e-3)
    return np.clip(w + s[2], -1.1, 1.1)


def ftrl(w: Any, g: Any, s: list[Any], t: int) -> Any:
    g = np.clip(g * RESCALE, -LIMIT, LIMIT)
    n = s[1] + g * g
    s[0] = s[0] + g - (np.sqrt(n) - np.sqrt(s[1])) / LR * w
    s[1] = n
    moved = (np.sign(s[0]) * 0.05 - s[0]) / ((0.7 + np.sqrt(n)) / LR + WD)
    return np.where(np.abs(s[0]) > 0.05, moved, 0)


def ftml(w: Any, g: Any, s: list[Any], t: int) -> Any:
    g = before(w, g)
    s[1] = 0.9 * s[1] + 0.1 * g * g
    d = (1 - 0.6**t) / LR * (np.sqrt(s[1] / (1 - 0.9**t)) + 1e-3)
    s[2] = 0.6 * s[2] + 0.4 * g - (d - 0.6 * s[0]) * w
    s[0] = d
    return -s[2] / d


def lamb(correct: bool) -> Callable[..., Any]:
    def formula(w: Any, g: Any, s: list[Any], t: int) -> Any:
        g = np.clip(g * RESCALE, -LIMIT, LIMIT)
        s[0] = 0.8 * s[0] + 0.2 * g
        s[1] = 0.95 * s[1] + 0.05 * g * g
        mean, var = (s[0] / (1 - 0.8**t), s[1] / (1 - 0.95**t)) if correct else (s[0], s[1])
        return mean / (np.sqrt(var) + 1e-3) + WD * w

    return formula


RATES = {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}
UPDATES: dict[str, tuple[str, Callable[..., Any], int, dict[str, Any]]] = {
    "sgd": ("sgd_update", sgd, 0, {}),
    "sgd_mom": ("sgd_mom_update", momentum, 1, {"momentum": 0.9}),
    "nag": ("nag_mom_update", nag, 1, {"momentum": 0.9}),
    "signsgd": ("signsgd_update", signsgd, 0, {}),
    "signum": ("signum_update", signum, 1, {"momentum": 0.9, "wd_lh": 0.2}),
    "adam": ("adam_update", adam, 2, RATES),
    "adagrad": ("adagrad_update", adagrad, 1, {"epsilon": 1e-3}),
    "rmsprop": ("rmsprop_update", rmsprop, 1, {"gamma1": 0.9, "epsilon": 1e-3, "clip_weights": 1.1}),
    "alex": (
        "rmspropalex_update",
        rmspropalex,
        3,
        {"gamma1": 0.9, "gamma2": 0.7, "epsilon": 1e-3, "clip_weights": 1.1},
    ),
    "ftrl": ("ftrl_update", ftrl, 2, {"lamda1": 0.05, "beta": 0.7}),
    "ftml": ("ftml_update", ftml, 3, {"beta1": 0.6, "beta2": 0.9, "epsilon": 1e-3}),
    "lamb": ("lamb_update_phase1", lamb(True), 2, RATES),
    "lamb_uncorrected": ("lamb_update_phase1", lamb(False), 2, {**RATES, "bias_correction": False}),
}
MIXED = ["sgd", "sgd_mom", "nag", "lamb", "lamb_uncorrected"]


def given(name: str, more: dict[str, Any], t: int) -> dict[str, Any]:
    attributes = {**COMMON, **more}
    if name == "ftml_update":
        attributes["clip_grad"] = attributes.pop("clip_gradient")
    if name.startswith("lamb"):
        del attributes["lr"]
    return attributes | ({"t": t} if name.startswith(("lamb", "ftml")) else {})


@pytest.mark.parametrize("in_place", [True, False], ids=["out", "new"])
@pytest.mark.parametrize("which", UPDATES)
def test_several_steps(engine_kind: Engine, which: str, in_place: bool) -> None:
    name, formula, states, more = UPDATES[which]
    rng = np.random.default_rng(len(name))
    raw = rng.normal(0, 1, RNG_SHAPE)
    w, state = nd.array(raw), [nd.zeros(RNG_SHAPE) for _ in range(states)]
    expected, kept = raw.astype(np.float32).astype(np.float64), [np.zeros(RNG_SHAPE) for _ in range(states)]
    for t in range(1, 6):
        g = nd.array(rng.normal(0, 2, RNG_SHAPE))
        before = w.asnumpy()
        new = getattr(nd, name)(w, g, *state, **given(name, more, t), **({"out": w} if in_place else {}))
        if in_place:
            assert new is w
        else:
            assert w.asnumpy().tobytes() == before.tobytes(), "the weight changes only as out"
        w = new
        expected = formula(expected, g.asnumpy().astype(np.float64), kept, t)
    np.testing.assert_allclose(w.asnumpy(), expected, rtol=2e-5, atol=2e-5)
    for s, k in zip(state, kept, strict=True):
        np.testing.assert_allclose(s.asnumpy(), k, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("which", MIXED)
def test_float32_weights_besides_the_weights(which: str) -> None:
    name, formula, states, more = UPDATES[which]
    lamb = name.startswith("lamb")
    rng = np.random.default_rng(1)
    w = nd.array(rng.normal(0, 1, RNG_SHAPE), dtype="float16")
    master, state = w.astype("float32"), [nd.zeros(RNG_SHAPE) for _ in range(states)]
    expected, kept = master.asnumpy().astype(np.float64), [np.zeros(RNG_SHAPE) for _ in range(states)]
    for t in range(1, 6):
        g = nd.array(rng.normal(0, 2, RNG_SHAPE), dtype="float16")
        out = getattr(nd, f"mp_{name}")(w, g, *state, master, **given(name, more, t), **({} if lamb else {"out": w}))
        value = formula(expected, g.asnumpy().astype(np.float64), kept, t)
        if lamb:
            np.testing.assert_allclose(master.asnumpy(), expected, rtol=1e-7, err_msg="phase 1 changes no weights")
        else:
            expected = value
            np.testing.assert_allclose(master.asnumpy(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(out.asnumpy(), value, rtol=1e-5 if lamb else 1e-3, atol=1e-5 if lamb else 1e-3)
        assert out.dtype == (np.float32 if lamb else np.float16)
    for s, k in zip(state, kept, strict=True):
        np.testing.assert_allclose(s.asnumpy(), k, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    ("r1", "r2", "bounds", "ratio"),
    [
        (3, 4, {}, 0.75), (0, 4, {}, 1), (3, 0, {}, 1), (3, 4, {"lower_bound": 6}, 1.5),
        (3, 4, {"upper_bound": 1}, 0.25), (0, 4, {"lower_bound": 2}, 0.5),
    ],
)  # fmt: skip
def test_the_second_phase_of_lamb(mixed: bool, r1: float, r2: float, bounds: dict[str, float], ratio: float) -> None:
    raw, g = np.array([1.0, -2, 0.5]), np.array([0.5, 1, -1])
    w, master = nd.array(raw, dtype="float16" if mixed else "float32"), nd.array(raw)
    name = "mp_lamb_update_phase2" if mixed else "lamb_update_phase2"
    operands = [w, nd.array(g), nd.array([r1]), nd.array([r2]), *([master] if mixed else [])]
    getattr(nd, name)(*operands, lr=0.1, out=w, **bounds)
    np.testing.assert_allclose(w.asnumpy(), raw - 0.1 * ratio * g, rtol=1e-3 if mixed else 1e-6)
    if mixed:
        np.testing.assert_allclose(master.asnumpy(), raw - 0.1 * ratio * g, rtol=1e-6)


@pytest.mark.parametrize("which", UPDATES)
def test_the_parts_of_an_array_do_not_show(which: str, monkeypatch: Any) -> None:
    """Whole, in parts, in parts of a view, on one worker and on several: the same bits."""
    name, _, states, more = UPDATES[which]
    rng = np.random.default_rng(2)
    raws = [rng.uniform(0.5, 1, (40, 37)).astype("f4") for _ in range(2 + states)]

    def run(part: int, view: bool, dtype: str) -> list[bytes]:
        monkeypatch.setattr(optimizer_tiles.parts, "__defaults__", (part,))
        arrays = [nd.array(raw, dtype=dtype) for raw in raws]
        if view:
            wide = [nd.zeros((40, 50), dtype=dtype) for _ in raws]
            for large, small in zip(wide, arrays, strict=True):
                large[:, 3:40] = small
            arrays = [large[:, 3:40] for large in wide]
        getattr(nd, name)(*arrays, **given(name, more, 2), out=arrays[0])
        return [a.asnumpy().tobytes() for a in arrays]

    for dtype in ("float32", "float16"):
        whole = run(10_000, False, dtype)
        assert run(100, False, dtype) == run(100, True, dtype) == run(10, True, dtype) == whole


@pytest.mark.parametrize("which", ["sgd_mom", "adam"])
def test_large_arrays_need_little_memory_and_no_worker_shows(which: str) -> None:
    name, _, states, more = UPDATES[which]
    n = 1_200_000
    rng = np.random.default_rng(3)
    raws = [rng.uniform(0.5, 1, n).astype("f4") for _ in range(2 + states)]
    found = []
    for kind, workers in (("NaiveEngine", None), ("ThreadedEnginePerDevice", 3)):
        with Engine(kind=kind, workers=workers):
            arrays = [nd.array(raw) for raw in raws]
            nd.waitall()
            tracemalloc.start()
            getattr(nd, name)(*arrays, **given(name, more, 2), out=arrays[0])
            nd.waitall()
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 4 * n * 4 / 10 * (workers or 1), "scratch memory of parts"
            found.append([a.asnumpy().tobytes() for a in arrays])
    assert found[0] == found[1]


def test_a_gradient_beyond_the_limit_is_clipped() -> None:
    w = nd.zeros((3,))
    nd.sgd_update(w, nd.array([5, -5, 0.25]), lr=1, clip_gradient=0.5, out=w)
    assert w.asnumpy().tolist() == [-0.5, 0.5, -0.25]


@pytest.mark.parametrize("limit", [{}, {"clip_gradient": -1}, {"clip_gradient": 0}])
def test_no_limit_by_default_and_a_limit_of_zero(limit: dict[str, float]) -> None:
    w = nd.zeros((2,))
    nd.sgd_update(w, nd.array([500, -5]), lr=1, out=w, lazy_update=False, **limit)
    assert w.asnumpy().tolist() == ([0, 0] if limit.get("clip_gradient") == 0 else [-500, 5])


def test_an_update_copies_and_renames_nothing() -> None:
    w, m, g = nd.ones((100,)), nd.zeros((100,)), nd.ones((100,))
    before, variables = nd.statistics(), (w.var, m.var)
    for _ in range(5):
        nd.sgd_mom_update(w, g, m, lr=0.1, momentum=0.9, out=w)
    assert nd.statistics() == before and (w.var, m.var) == variables


def unchanged(error: type[Exception], words: str, name: str, *arrays: Any, **more: Any) -> None:
    before = [a.asnumpy().tobytes() for a in arrays if isinstance(a, nd.NDArray)]
    with pytest.raises(error, match=words) as caught:
        getattr(nd, name)(*arrays, lr=0.1, **more)
    assert f"[{name}]" in str(caught.value)
    assert [a.asnumpy().tobytes() for a in arrays if isinstance(a, nd.NDArray)] == before


def test_bad_operands_are_refused_and_nothing_changes() -> None:
    w, g = nd.ones((3,)), nd.ones((3,))
    unchanged(ValueError, r"mom float32\(2,\)", "sgd_mom_update", w, g, nd.zeros((2,)), out=w)
    unchanged(TypeError, r"mom float64\(3,\)", "sgd_mom_update", w, g, nd.zeros((3,), dtype="float64"), out=w)
    unchanged(TypeError, "mom is changed in place", "sgd_mom_update", w, g, np.zeros(3, "f4"), out=w)
    unchanged(ValueError, "share memory", "sgd_mom_update", w, g, w, out=w)
    half, m = nd.ones((3,), dtype="float16"), nd.zeros((3,))
    unchanged(TypeError, "float32 expected", "mp_sgd_update", half, half, half, out=half)
    unchanged(TypeError, "dtypes differ", "mp_sgd_update", half, g, m, out=half)
    unchanged(ValueError, "same shape", "mp_sgd_mom_update", half, half.copy(), m, nd.zeros((2,)), out=half)
    unchanged(TypeError, "weight32 is changed in place", "mp_sgd_update", half, half.copy(), np.zeros(3, "f4"))


def test_what_the_tape_or_a_function_has_is_not_changed() -> None:
    x, m = nd.ones((3,)), nd.zeros((3,))
    m.attach_grad()
    with autograd.record(), pytest.raises(ValueError, match="tape"):
        nd.sgd_mom_update(x, x.copy(), m, lr=0.1, out=x)

    class Reader(autograd.Function):
        def forward(self, weight: Any) -> Any:
            nd.sgd_update(weight, weight.copy(), lr=0.1, out=weight)
            return weight

    with pytest.raises(ValueError, match="read-only"):
        Reader()(x)
    assert x.asnumpy().tolist() == [1, 1, 1] and m.asnumpy().tolist() == [0, 0, 0]


def test_every_update_is_here() -> None:
    declared = {name for name in vars(optimizer) if name[0] != "_" and name.endswith(("update", "phase1"))}
    assert declared == {name for name, *_ in UPDATES.values()}
