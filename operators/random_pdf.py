"""Densities: of samples, with the parameters of their distributions in arrays.  MXNet: random_pdf_*.

The parameters, (s...), belong to the leading axes of the sample, (s..., m...).  Each density is made of operators, so
it has gradients of any order, by the sample and by the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..engine import ArgumentError
from ..ndarray.array import Array
from ..ndarray.reading import describe
from .faces import nd_face

HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


def _declare(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the nd face that is no method of arrays."""
    setattr(nd_face, function.__name__, function)
    nd_face.composed[function.__name__] = function
    return function


def _checked(name: str, sample: Any, kept: int, **parameters: Any) -> list[Any]:
    """The parameters with axes of length 1, where the sample has its own (before their last `kept`)."""
    shapes = {p.shape for p in parameters.values() if isinstance(p, Array)}
    (shape,) = shapes if len(shapes) == 1 else ((),)
    lead, tail = shape[: len(shape) - kept], shape[len(shape) - kept :]
    fits = isinstance(sample, Array) and all(isinstance(p, Array) for p in parameters.values()) and len(shapes) == 1
    if not fits or len(shape) < kept or sample.shape[: len(lead)] != lead or sample.shape[sample.ndim - kept :] != tail:
        given = ", ".join(f"{n} {describe(p)}" for n, p in {"sample": sample, **parameters}.items())
        raise ArgumentError(f"[{name}] {given}: parameters of one shape, with which the sample's begins, expected")
    made = []
    for parameter in parameters.values():
        seen = parameter
        for _ in range(sample.ndim - len(shape)):
            seen = nd_face.expand_dims(seen, axis=len(lead))
        made.append(seen)
    return made


def _result(log: Any, is_log: Any) -> Any:
    return log if is_log else nd_face.exp(log)


@_declare
def random_pdf_uniform(sample: Any, low: Any, high: Any, is_log: Any = False) -> Any:
    """Density of the uniform distribution on [low, high]; its logarithm with `is_log`.

    Shapes: (s..., m...), (s...), (s...).
    """
    low, high = _checked("random_pdf_uniform", sample, 0, low=low, high=high)
    inside = (sample >= low) * (sample <= high)
    log = nd_face.zeros_like(sample) - nd_face.log(high - low)
    return _result(nd_face.where(inside, log, nd_face.zeros_like(sample) - math.inf), is_log)


@_declare
def random_pdf_normal(sample: Any, mu: Any, sigma: Any, is_log: Any = False) -> Any:
    """Density of the normal distribution; its logarithm with `is_log`.  Shapes: (s..., m...), (s...), (s...)."""
    mu, sigma = _checked("random_pdf_normal", sample, 0, mu=mu, sigma=sigma)
    return _result(nd_face.square((sample - mu) / sigma) * -0.5 - nd_face.log(sigma) - HALF_LOG_2_PI, is_log)


@_declare
def random_pdf_gamma(sample: Any, alpha: Any, beta: Any, is_log: Any = False) -> Any:
    """Density of the gamma distribution of shape alpha and rate beta; its logarithm with `is_log`.

    Shapes: (s..., m...), (s...), (s...).
    """
    alpha, beta = _checked("random_pdf_gamma", sample, 0, alpha=alpha, beta=beta)
    log = alpha * nd_face.log(beta) + (alpha - 1) * nd_face.log(sample) - beta * sample - nd_face.gammaln(alpha)
    return _result(log, is_log)


@_declare
def random_pdf_exponential(sample: Any, lam: Any, is_log: Any = False) -> Any:
    """Density of the exponential distribution of rate lam; its logarithm with `is_log`.

    Shapes: (s..., m...), (s...).
    """
    (lam,) = _checked("random_pdf_exponential", sample, 0, lam=lam)
    return _result(nd_face.log(lam) - lam * sample, is_log)


@_declare
def random_pdf_poisson(sample: Any, lam: Any, is_log: Any = False) -> Any:
    """Probability by the Poisson distribution of mean lam; its logarithm with `is_log`.

    Shapes: (s..., m...), (s...).
    """
    (lam,) = _checked("random_pdf_poisson", sample, 0, lam=lam)
    return _result(sample * nd_face.log(lam) - lam - nd_face.gammaln(sample + 1), is_log)


def _negative_binomial(sample: Any, k: Any, success: Any, failure: Any) -> Any:
    """By the logarithms of the probabilities of a success and a failure."""
    ways = nd_face.gammaln(sample + k) - nd_face.gammaln(sample + 1) - nd_face.gammaln(k)
    return ways + k * success + sample * failure


@_declare
def random_pdf_negative_binomial(sample: Any, k: Any, p: Any, is_log: Any = False) -> Any:
    """Probability of so many failures before the k-th success, each of probability p; its logarithm with `is_log`.

    Shapes: (s..., m...), (s...), (s...).
    """
    k, p = _checked("random_pdf_negative_binomial", sample, 0, k=k, p=p)
    return _result(_negative_binomial(sample, k, nd_face.log(p), nd_face.log(1 - p)), is_log)


@_declare
def random_pdf_generalized_negative_binomial(sample: Any, mu: Any, alpha: Any, is_log: Any = False) -> Any:
    """Probability by the negative binomial distribution of mean mu and dispersion alpha; its logarithm with `is_log`.

    Shapes: (s..., m...), (s...), (s...).
    """
    mu, alpha = _checked("random_pdf_generalized_negative_binomial", sample, 0, mu=mu, alpha=alpha)
    success = -nd_face.log(mu * alpha + 1)
    return _result(_negative_binomial(sample, 1 / alpha, success, nd_face.log(mu * alpha) + success), is_log)


@_declare
def random_pdf_dirichlet(sample: Any, alpha: Any, is_log: Any = False) -> Any:
    """Density of the Dirichlet distribution; its logarithm with `is_log`.

    Shapes: (s..., m..., k), (s..., k) -> (s..., m...).
    """
    (alpha,) = _checked("random_pdf_dirichlet", sample, 1, alpha=alpha)
    scale = nd_face.gammaln(nd_face.sum(alpha, axis=-1)) - nd_face.sum(nd_face.gammaln(alpha), axis=-1)
    return _result(nd_face.sum((alpha - 1) * nd_face.log(sample), axis=-1) + scale, is_log)
