"""Random numbers.  Each operation has its own counter range of its device's generator (see ndarray/random.py).

A distribution is one row: how it is drawn, with its parameters and their defaults, and what they must satisfy.  A row
declares `random_<name>`, with numbers as parameters, and `sample_<name>`, with arrays, which draws `shape` elements for
each of theirs.  Parameters in arrays are not checked: out of range they are an error on the data, or give nan.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from ..ndarray.dtype import FLOAT32, FLOAT64, DType, as_dtype
from ..ndarray.random import generator
from ..ndarray.shape import Shape, as_shape
from .faces import Rule
from .infer import like_first
from .schema import Attributes, Inferred, Meta, Metas, Sample, constant, operator

INT32, INT64 = np.dtype(np.int32), np.dtype(np.int64)


def _shape(attributes: Attributes) -> Shape:
    return () if attributes["shape"] is None else as_shape(attributes["shape"])


def _dtype(attributes: Attributes, default: DType, kinds: str) -> DType:
    given = attributes["dtype"]
    dtype = as_dtype(None if given == "None" else given, default)
    if dtype.kind not in kinds:
        raise ValueError(f"dtype {dtype}: {'an integer' if default.kind == 'i' else 'a floating-point'} one expected")
    return dtype


def _distribution(
    name: str,
    draw: Callable[..., Any],
    allowed: Callable[..., bool],
    wanted: str,
    doc: str,
    *,
    aliases: tuple[str, ...] = (),
    dtype: DType = FLOAT32,
) -> None:
    """Declare the operators of draw(generator, shape, dtype, parameters)."""
    parameters = list(inspect.signature(draw).parameters.values())[3:]
    defaults = {p.name: p.default for p in parameters}
    kinds = "f" if dtype.kind == "f" else "iu"

    def numbers(metas: Metas, attributes: Attributes) -> Inferred:
        given = {n: attributes[n] for n in defaults}
        if not allowed(**given):
            raise ValueError(f"{', '.join(f'{n} {v}' for n, v in given.items())}: {wanted} expected")
        shape, made = _shape(attributes), _dtype(attributes, dtype, kinds)
        return ((shape, made),), {**given, "shape": shape, "dtype": made}

    def arrays(metas: Metas, attributes: Attributes) -> Inferred:
        (leading, *others) = [meta[0] for meta in metas if meta is not None]
        if any(shape != leading for shape in others):
            raise ValueError("parameters of one shape expected")
        shape, made = _shape(attributes), _dtype(attributes, dtype, kinds)
        return (((*leading, *shape), made),), {"shape": shape, "dtype": made}

    def from_numbers(xp: Any, *, seed: Any, out: Any, shape: Any, dtype: Any, **given: Any) -> None:
        out[...] = draw(generator(seed), out.shape, FLOAT64 if dtype == FLOAT64 else FLOAT32, **given)

    def from_arrays(xp: Any, *inputs: Any, seed: Any, out: Any, shape: Any, dtype: Any) -> None:
        given = [x.reshape(x.shape + (1,) * len(shape)) for x in inputs]
        out[...] = draw(generator(seed), out.shape, FLOAT64 if dtype == FLOAT64 else FLOAT32, *given)

    own = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in ("shape", "dtype")]
    own += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in ("seed", "out")]
    first = inspect.Parameter("xp", inspect.Parameter.POSITIONAL_ONLY)
    for kernel, kind in (
        (from_numbers, inspect.Parameter.KEYWORD_ONLY),
        (from_arrays, inspect.Parameter.POSITIONAL_ONLY),
    ):
        arrays_wanted = kernel is from_arrays
        given = [p.replace(kind=kind, default=p.empty if arrays_wanted else p.default) for p in parameters]
        kernel.__signature__ = inspect.Signature([first, *given, *own])  # type: ignore[attr-defined]
    common: dict[str, Any] = {"random": True, "widen": False, "nd": Rule(dtype="kernel", method=False)}
    operator(
        f"random_{name}", infer=numbers, aliases=(f"_random_{name}", *aliases), doc=f"{doc}  `shape` elements.",
        samples=[Sample(shape=(2, 3), **defaults)], **common,
    )(from_numbers)  # fmt: skip
    operator(
        f"sample_{name}", infer=arrays, aliases=(f"_sample_{name}",), doc=f"{doc}  `shape` elements for each parameter.",
        samples=[Sample(*(np.full(2, float(v)) for v in defaults.values()), shape=(3,))], **common,
    )(from_arrays)  # fmt: skip


# fmt: off
_distribution(
    "uniform", lambda rng, shape, dtype, low=0.0, high=1.0: low + (high - low) * rng.random(shape, dtype),
    lambda low, high: low <= high, "low <= high", "Uniform in [low, high).", aliases=("uniform",))
_distribution(
    "normal", lambda rng, shape, dtype, loc=0.0, scale=1.0: loc + scale * rng.standard_normal(shape, dtype),
    lambda loc, scale: scale >= 0, "scale >= 0", "Normal with mean loc and standard deviation scale.", aliases=("normal",))
_distribution(
    "gamma", lambda rng, shape, dtype, alpha=1.0, beta=1.0: beta * rng.standard_gamma(alpha, shape, dtype),
    lambda alpha, beta: alpha > 0 and beta > 0, "alpha > 0 and beta > 0", "Gamma with shape alpha and scale beta.")
_distribution(
    "exponential", lambda rng, shape, dtype, lam=1.0: rng.standard_exponential(shape, dtype) / lam,
    lambda lam: lam > 0, "lam > 0", "Exponential with rate lam.")
_distribution(
    "poisson", lambda rng, shape, dtype, lam=1.0: rng.poisson(lam, shape),
    lambda lam: lam >= 0, "lam >= 0", "Poisson with mean lam.")
_distribution(
    "negative_binomial", lambda rng, shape, dtype, k=1, p=1.0: rng.negative_binomial(k, p, shape),
    lambda k, p: k > 0 and 0 < p <= 1, "k > 0 and 0 < p <= 1", "Failures before the k-th success, each of probability p.")
_distribution(
    "generalized_negative_binomial",
    lambda rng, shape, dtype, mu=1.0, alpha=1.0: rng.poisson(rng.standard_gamma(1 / alpha, shape) * (mu * alpha)),
    lambda mu, alpha: mu >= 0 and alpha > 0, "mu >= 0 and alpha > 0", "Poisson with a gamma-distributed mean mu of dispersion alpha.")
# fmt: on
