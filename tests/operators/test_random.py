"""Random numbers: their distributions (fixed seeds), their densities, the state, and who draws them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

import vardag as vd
from vardag import autograd, nd
from vardag.engine import Engine

N = 20_000
LEAST = 1e-3  # of the p-values; with fixed seeds a pass is a pass for good

CONTINUOUS: dict[str, tuple[dict[str, float], Any]] = {
    "uniform": ({"low": -1, "high": 3}, stats.uniform(-1, 4)),
    "normal": ({"loc": 2, "scale": 3}, stats.norm(2, 3)),
    "gamma": ({"alpha": 2.5, "beta": 0.5}, stats.gamma(2.5, scale=0.5)),
    "exponential": ({"scale": 4}, stats.expon(scale=4)),
}
DISCRETE: dict[str, tuple[dict[str, float], Any]] = {
    "poisson": ({"lam": 3}, stats.poisson(3)),
    "negative_binomial": ({"k": 4, "p": 0.4}, stats.nbinom(4, 0.4)),
    "generalized_negative_binomial": ({"mu": 2, "alpha": 0.5}, stats.nbinom(2, 1 / (2 * 0.5 + 1))),
    "bernoulli": ({"prob": 0.3}, stats.bernoulli(0.3)),
    "randint": ({"low": -2, "high": 5}, stats.randint(-2, 5)),
}
ALL = {**CONTINUOUS, **DISCRETE}


def frequencies(found: Any, distribution: Any) -> float:
    """The p-value of how often each number came; those that are rare count together."""
    low, high = (int(distribution.ppf(q)) for q in (0.001, 0.999))
    values = np.arange(low, high + 1)
    seen = np.array([(found == v).sum() for v in values])
    expected = distribution.pmf(values) * found.size
    rest = found.size - seen.sum(), found.size - expected.sum()
    if rest[1] > 1:
        seen, expected = np.append(seen, rest[0]), np.append(expected, rest[1])
    else:
        expected = expected * seen.sum() / expected.sum()
    return float(stats.chisquare(seen, expected).pvalue)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_distributions(name: str, dtype: str) -> None:
    vd.random.seed(11)
    parameters, expected = CONTINUOUS[name]
    found = getattr(nd.random, name)(**parameters, shape=(N // 4, 4), dtype=dtype)
    assert found.dtype == np.dtype(dtype).type
    assert stats.kstest(found.asnumpy().ravel(), expected.cdf).pvalue > LEAST


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_distributions(name: str) -> None:
    vd.random.seed(12)
    parameters, expected = DISCRETE[name]
    found = getattr(nd.random, name)(**parameters, shape=(N,))
    assert found.dtype == (np.int32 if name == "randint" else np.float32)
    assert frequencies(found.asnumpy(), expected) > LEAST


@pytest.mark.parametrize("name", [name for name in ALL if name != "randint"])
def test_parameters_in_arrays(name: str) -> None:
    """For each of them so many numbers."""
    vd.random.seed(13)
    parameters, expected = ALL[name]
    arrays = {n: nd.array([v, 1]) for n, v in parameters.items()}
    found = getattr(nd.random, name)(**arrays, shape=(N,)).asnumpy()
    assert found.shape == (2, N)
    test = stats.kstest(found[0], expected.cdf).pvalue if name in CONTINUOUS else frequencies(found[0], expected)
    assert test > LEAST


def test_means_of_sample_normal_by_the_names_of_mxnet() -> None:
    vd.random.seed(14)
    found = nd.sample_normal(mu=nd.array([0, 100]), sigma=nd.array([1, 10]), shape=N).asnumpy()
    np.testing.assert_allclose(found.mean(1), [0, 100], atol=0.3)
    np.testing.assert_allclose(found.std(1), [1, 10], rtol=0.03)


def test_multinomial() -> None:
    vd.random.seed(15)
    weights = np.array([[1, 2, 3, 0], [5, 0, 0, 5.0]])
    found, log = nd.random.multinomial(nd.array(weights / weights.sum(1, keepdims=True)), shape=N, get_prob=True)
    raw = found.asnumpy()
    for row, weight in zip(raw, weights, strict=True):
        seen = np.bincount(row, minlength=4)
        assert seen[weight == 0].sum() == 0
        assert stats.chisquare(seen[weight > 0], (weight / weight.sum() * N)[weight > 0]).pvalue > LEAST
    np.testing.assert_allclose(
        np.exp(log.asnumpy()), np.take_along_axis(weights / weights.sum(1, keepdims=True), raw, 1), rtol=1e-5
    )


def test_shuffle() -> None:
    vd.random.seed(16)
    x = nd.arange(4).reshape((4, 1)) * nd.ones((1, 2))
    found = [tuple(nd.random.shuffle(x).asnumpy()[:, 0].astype(int)) for _ in range(2400)]
    seen = np.unique(found, axis=0, return_counts=True)[1]
    assert len(seen) == 24
    assert stats.chisquare(seen).pvalue > LEAST


def test_numbers_of_different_operations_are_independent() -> None:
    vd.random.seed(17)
    a, b = (nd.random.uniform(shape=(N,)).asnumpy() for _ in range(2))
    assert stats.pearsonr(a, b).pvalue > LEAST
    assert stats.pearsonr(a[1:], a[:-1]).pvalue > LEAST


@pytest.mark.parametrize(
    "name",
    ["uniform", "normal", "gamma", "exponential", "poisson", "negative_binomial", "generalized_negative_binomial"],
)
def test_like(name: str) -> None:
    like = getattr(nd.random, f"{name}_like")
    for dtype in ("float32", "float64", "int32"):
        found = like(nd.ones((3, 2), dtype=dtype, ctx=vd.cpu(1)))
        assert (found.shape, found.context) == ((3, 2), vd.cpu(1))
        assert found.dtype == (np.float32 if dtype == "int32" else np.dtype(dtype).type)
    out = nd.zeros((3, 2))
    assert like(out, out=out) is out
    with pytest.raises(TypeError, match=f"{name}_like"):
        like([1, 2])


def test_parameters_of_like() -> None:
    vd.random.seed(18)
    x = nd.zeros((N,))
    assert abs(nd.random.uniform_like(x, low=4, high=6).asnumpy().mean() - 5) < 0.05
    assert abs(nd.random.exponential_like(x, lam=4).asnumpy().mean() - 0.25) < 0.01


BAD: dict[str, Callable[[], Any]] = {
    "uniform": lambda: nd.random.uniform(2, 1),
    "normal": lambda: nd.random.normal(0, -1),
    "gamma": lambda: nd.random.gamma(0),
    "poisson": lambda: nd.random.poisson(-1),
    "bernoulli": lambda: nd.random.bernoulli(1.5),
    "randint": lambda: nd.random.randint(3, 3),
    "of whole numbers": lambda: nd.random.normal(dtype="int32"),
    "seed": lambda: vd.random.seed(-1),
    "state": lambda: vd.random.set_state({"seed": 1}),
    "state of words": lambda: vd.random.set_state({"seed": "1", "streams": {}}),
    "stream of words": lambda: vd.random.set_state({"seed": 1, "streams": {"cpu": [1, 2, "a"]}}),
    "no state": lambda: vd.random.set_state(3),
}


@pytest.mark.parametrize("which", BAD)
def test_bad_parameters_are_refused_at_the_call(which: str) -> None:
    before = vd.random.get_state()
    with pytest.raises(ValueError, match=r"^\[") as caught:
        BAD[which]()
    assert isinstance(caught.value, vd.Error)
    assert vd.random.get_state() == before


# ---- the state -------------------------------------------------------------------------------------------------------


def draw_all() -> list[bytes]:
    made = [getattr(nd.random, name)(**parameters, shape=(70_000,)) for name, (parameters, _) in ALL.items()]
    made += [
        nd.random.shuffle(nd.arange(100)),
        nd.random.multinomial(nd.array([0.5, 0.5]), shape=9),
        nd.random.randn(2, 3),
    ]
    made.append(nd.Dropout(nd.ones((9, 9)), p=0.5, mode="always"))
    return [x.asnumpy().tobytes() for x in made]


def test_the_state_is_saved_and_restored() -> None:
    vd.random.seed(3)
    nd.random.uniform(shape=(3,))
    state = vd.random.get_state()
    assert vd.random.get_state() == state, "looking changes nothing"
    first = draw_all()
    assert vd.random.get_state() != state
    vd.random.seed(4)
    vd.random.set_state(json.loads(json.dumps(state)))
    assert draw_all() == first


def test_the_state_of_devices_that_were_not_used() -> None:
    vd.random.seed(9)
    state = vd.random.get_state()
    first = nd.random.uniform(shape=(3,)).asnumpy()
    vd.random.seed(10)
    vd.random.set_state(state)
    assert nd.random.uniform(shape=(3,)).asnumpy().tobytes() == first.tobytes()


def test_the_same_bytes_for_any_number_of_workers() -> None:
    found = []
    for kind, workers in (("NaiveEngine", 1), ("ThreadedEnginePooled", 1), ("ThreadedEnginePerDevice", 4)):
        with Engine(kind=kind, workers=workers):
            vd.random.seed(5)
            found.append(draw_all())
    assert found[0] == found[1] == found[2]


# ---- densities -------------------------------------------------------------------------------------------------------

DENSITIES: dict[str, tuple[dict[str, Any], Callable[..., Any], Any]] = {
    "uniform": ({"low": [0, 1], "high": [2, 4]}, lambda low, high: stats.uniform(low, high - low), [0.5, 1.5, 3]),
    "normal": ({"mu": [0, 1], "sigma": [2, 4]}, stats.norm, [-1, 0, 2]),
    "gamma": ({"alpha": [1, 2.5], "beta": [2, 3]}, lambda alpha, beta: stats.gamma(alpha, scale=1 / beta), [0.5, 1, 2]),
    "exponential": ({"lam": [1, 3]}, lambda lam: stats.expon(scale=1 / lam), [0.5, 1, 2]),
    "poisson": ({"lam": [1, 3]}, stats.poisson, [0, 1, 4]),
    "negative_binomial": ({"k": [1, 3], "p": [0.3, 0.6]}, stats.nbinom, [0, 1, 4]),
    "generalized_negative_binomial": (
        {"mu": [2, 3], "alpha": [0.3, 0.5]},
        lambda mu, alpha: stats.nbinom(1 / alpha, 1 / (mu * alpha + 1)),
        [0, 1, 4],
    ),
}


@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize("name", DENSITIES)
def test_densities(name: str, is_log: bool) -> None:
    parameters, distribution, sample = DENSITIES[name]
    values = np.broadcast_to(np.array(sample, float), (2, 3))
    arrays = {n: nd.array(v, dtype="float64") for n, v in parameters.items()}
    found = getattr(nd, f"random_pdf_{name}")(nd.array(values, dtype="float64"), **arrays, is_log=is_log)
    expected = distribution(*(np.array(v, float)[:, None] for v in parameters.values()))
    word = "pdf" if name in ("uniform", "normal", "gamma", "exponential") else "pmf"
    np.testing.assert_allclose(found.asnumpy(), getattr(expected, "log" * is_log + word)(values), rtol=1e-12)


def test_densities_of_dirichlet() -> None:
    sample = np.array([[[0.3, 0.7], [0.5, 0.5]], [[0.1, 0.9], [0.4, 0.6]]])
    alpha = np.array([[2, 3], [0.5, 1.5]])
    expected = [[stats.dirichlet(a).pdf(x) for x in rows] for rows, a in zip(sample, alpha, strict=True)]
    found = nd.random_pdf_dirichlet(nd.array(sample), nd.array(alpha))
    np.testing.assert_allclose(found.asnumpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(
        nd.random_pdf_dirichlet(nd.array(sample[0]), nd.array(alpha[0])).asnumpy(), expected[0], rtol=1e-5
    )


def test_gradients_of_densities() -> None:
    x, mu, sigma = (nd.array(v, dtype="float64") for v in ([[1.0, 2.0]], [0.5], [2.0]))
    for array in (x, mu, sigma):
        array.attach_grad()
    with autograd.record():
        loss = nd.random_pdf_normal(x, mu, sigma, is_log=True).sum()
    loss.backward()
    z = (x.asnumpy() - 0.5) / 2
    np.testing.assert_allclose(x.grad.asnumpy(), -z / 2)
    np.testing.assert_allclose(mu.grad.asnumpy(), [(z / 2).sum()])
    np.testing.assert_allclose(sigma.grad.asnumpy(), [((z * z - 1) / 2).sum()])


def test_parameters_that_do_not_fit_the_sample() -> None:
    with pytest.raises(ValueError, match=r"\[random_pdf_gamma\] sample float32\(2, 3\), alpha float32\(3,\)"):
        nd.random_pdf_gamma(nd.ones((2, 3)), nd.ones(3), nd.ones(3))
