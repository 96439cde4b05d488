"""Random numbers.  Each operation has its own counter range of its device's generator (see ndarray/random.py).

A distribution is one row: how it is drawn, with its parameters and their defaults, and what they must satisfy.  A row
declares `random_<name>`, with numbers as parameters, and `sample_<name>`, with arrays, which draws `shape` elements for
each of theirs.  Parameters in arrays are not checked: out of range they are an error on the data, or give nan.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Any

import numpy as np

from ..ndarray.dtype import FLOAT32, FLOAT64, DType, as_dtype, is_float
from ..ndarray.random import draw_into, generator
from ..ndarray.shape import Shape, as_shape
from .faces import Rule
from .infer import like_first
from .schema import Attributes, Inferred, Metas, Operator, Sample, operator, registry

INT32 = np.dtype(np.int32)
DRAWN = Rule(dtype="kernel", method=False)
ARRAYS = Rule(dtype="kernel", method=False, rename={"mu": "loc", "sigma": "scale"})


def _shape(attributes: Attributes) -> Shape:
    return () if attributes["shape"] is None else as_shape(attributes["shape"])


def _dtype(attributes: Attributes, default: DType, kinds: str) -> DType:
    given = attributes["dtype"]
    dtype = as_dtype(None if given == "None" else given, default)
    if ("f" if is_float(dtype) else dtype.kind) not in kinds:
        raise ValueError(f"dtype {dtype}: one of kind {' or '.join(kinds)} expected")
    return dtype


def _precision(dtype: DType) -> Any:
    """What floats are drawn in."""
    return FLOAT64 if dtype == FLOAT64 else FLOAT32


def _distribution(
    name: str,
    doc: str,
    wanted: str,
    allowed: Callable[..., bool],
    draw: Callable[..., Any],
    aliases: tuple[str, ...] = (),
) -> None:
    """Declare the operators of draw(generator, shape, dtype, parameters)."""
    parameters = list(signature(draw).parameters.values())[3:]
    defaults = {p.name: p.default for p in parameters}

    def numbers(metas: Metas, attributes: Attributes) -> Inferred:
        given = {n: attributes[n] for n in defaults}
        if not allowed(**given):
            raise ValueError(f"{', '.join(f'{n} {v}' for n, v in given.items())}: {wanted} expected")
        shape, dtype = _shape(attributes), _dtype(attributes, FLOAT32, "f")
        return ((shape, dtype),), {**given, "shape": shape, "dtype": dtype}

    def arrays(metas: Metas, attributes: Attributes) -> Inferred:
        (leading, *others) = [meta[0] for meta in metas if meta is not None]
        if any(shape != leading for shape in others):
            raise ValueError("parameters of one shape expected")
        shape, dtype = _shape(attributes), _dtype(attributes, FLOAT32, "f")
        return (((*leading, *shape), dtype),), {"shape": shape, "dtype": dtype}

    def from_numbers(xp: Any, *, seed: Any, out: Any, shape: Any, dtype: Any, **given: Any) -> None:
        precision = _precision(dtype)
        draw_into(out, seed, lambda rng, n: draw(rng, n, precision, **given))

    def from_arrays(xp: Any, *inputs: Any, seed: Any, out: Any, shape: Any, dtype: Any) -> None:
        given = [x.reshape(x.shape + (1,) * len(shape)) for x in inputs]
        out[...] = draw(generator(seed), out.shape, _precision(dtype), *given)

    own = [Parameter(n, Parameter.KEYWORD_ONLY, default=None) for n in ("shape", "dtype")]
    own += [Parameter(n, Parameter.KEYWORD_ONLY) for n in ("seed", "out")]
    first = Parameter("xp", Parameter.POSITIONAL_OR_KEYWORD)
    attributes = [p.replace(kind=p.KEYWORD_ONLY, annotation="float") for p in parameters]
    inputs = [p.replace(default=p.empty) for p in parameters]
    from_numbers.__signature__ = Signature([first, *attributes, *own])  # type: ignore[attr-defined]
    from_arrays.__signature__ = Signature([first, *inputs, *own])  # type: ignore[attr-defined]
    operator(
        f"random_{name}", infer=numbers, random=True, nd=DRAWN, aliases=(f"_random_{name}", *aliases),
        samples=[Sample(shape=(2, 3), **defaults)], doc=f"{doc}  `shape` elements; float32 by default.",
    )(from_numbers)  # fmt: skip
    operator(
        f"sample_{name}", infer=arrays, random=True, nd=ARRAYS, aliases=(f"_sample_{name}",), widen=False,
        samples=[Sample(*(np.full(2, float(v)) for v in defaults.values()), shape=(3,))],
        doc=f"{doc}  `shape` elements for each parameter: (s...) -> (s..., shape...); float32 by default.",
    )(from_arrays)  # fmt: skip


def _moved(drawn: Any, by: Any, scale: Any) -> Any:
    """by + scale * drawn; drawn is overwritten if these are numbers."""
    if isinstance(by, np.ndarray) or isinstance(scale, np.ndarray):
        return by + scale * drawn
    if scale != 1:
        drawn *= scale
    if by != 0:
        drawn += by
    return drawn


# fmt: off
_distribution(
    "uniform", "Uniform in [low, high).", "low <= high", lambda low, high: low <= high,
    lambda rng, shape, dtype, low=0.0, high=1.0: _moved(rng.random(shape, dtype), low, high - low), ("uniform",))
_distribution(
    "normal", "Normal with mean loc and standard deviation scale.", "scale >= 0", lambda loc, scale: scale >= 0,
    lambda rng, shape, dtype, loc=0.0, scale=1.0: _moved(rng.standard_normal(shape, dtype), loc, scale), ("normal",))
_distribution(
    "gamma", "Gamma with shape alpha and scale beta.", "alpha > 0 and beta > 0",
    lambda alpha, beta: alpha > 0 and beta > 0,
    lambda rng, shape, dtype, alpha=1.0, beta=1.0: beta * rng.standard_gamma(alpha, shape, dtype))
_distribution(
    "exponential", "Exponential with rate lam.", "lam > 0", lambda lam: lam > 0,
    lambda rng, shape, dtype, lam=1.0: rng.standard_exponential(shape, dtype) / lam)
_distribution(
    "poisson", "Poisson with mean lam.", "lam >= 0", lambda lam: lam >= 0,
    lambda rng, shape, dtype, lam=1.0: rng.poisson(lam, shape))
_distribution(
    "negative_binomial", "Failures before the k-th success, each success of probability p.", "k > 0 and 0 < p <= 1",
    lambda k, p: k > 0 and 0 < p <= 1,
    lambda rng, shape, dtype, k=1, p=1.0: rng.negative_binomial(k, p, shape))
_distribution(
    "generalized_negative_binomial", "Poisson, with means from a gamma distribution of mean mu and dispersion alpha.",
    "mu >= 0 and alpha > 0", lambda mu, alpha: mu >= 0 and alpha > 0,
    lambda rng, shape, dtype, mu=1.0, alpha=1.0: rng.poisson(rng.standard_gamma(1 / alpha, shape) * (mu * alpha)))
_distribution(
    "bernoulli", "1 with probability prob, else 0.", "0 <= prob <= 1", lambda prob: 0 <= prob <= 1,
    lambda rng, shape, dtype, prob=0.5: rng.random(shape, dtype) < prob)
# fmt: on


# ---- integers --------------------------------------------------------------------------------------------------------


def _randint(metas: Metas, attributes: Attributes) -> Inferred:
    low, high = int(attributes["begin"]), int(attributes["end"])
    dtype = _dtype(attributes, INT32, "iu")
    limits = np.iinfo(dtype)
    if not limits.min <= low < high <= limits.max + 1:
        raise ValueError(f"low {low}, high {high}: low < high, within {dtype}, expected")
    shape = _shape(attributes)
    return ((shape, dtype),), {"begin": low, "end": high, "shape": shape, "dtype": dtype}


@operator(
    "random_randint",
    infer=_randint,
    random=True,
    aliases=("_random_randint",),
    samples=[Sample(begin=0, end=3, shape=(2, 3))],
    nd=Rule(rename={"low": "begin", "high": "end"}, dtype="kernel", method=False),
)
def randint(xp: Any, *, begin: int, end: int, shape: Any = None, dtype: Any = None, seed: Any, out: Any) -> None:
    """Uniform integers from begin to end - 1 (in the nd face low and high).  `shape` elements; int32 by default."""
    draw_into(out, seed, lambda rng, n: rng.integers(begin, end, n, dtype))


# ---- categories ------------------------------------------------------------------------------------------------------


def _multinomial(metas: Metas, attributes: Attributes) -> Inferred:
    (meta,) = metas
    assert meta is not None
    if not meta[0] or meta[0][-1] == 0:
        raise ValueError("probabilities along a last axis expected")
    shape, dtype = _shape(attributes), _dtype(attributes, INT32, "iuf")
    return (((*meta[0][:-1], *shape), dtype),), {"shape": shape, "dtype": dtype}


def _multinomial_prob(metas: Metas, attributes: Attributes) -> Inferred:
    ((made,), attributes) = _multinomial(metas, attributes)
    assert made is not None and metas[0] is not None
    return (made, (made[0], metas[0][1])), attributes


def _chosen(xp: Any, x: Any, drawn: Shape, seed: Any) -> Any:
    """Indices, drawn for each row by its probabilities (which need not add up to 1), and the rows over `drawn`."""
    rows = x.reshape((*x.shape[:-1], *(1,) * len(drawn), x.shape[-1]))
    below = xp.cumsum(rows, -1, dtype=np.float64)
    at = generator(seed).random((*x.shape[:-1], *drawn, 1)) * below[..., -1:]
    last = xp.argmax(below == below[..., -1:], -1)  # rounding must not lead behind the last possible one
    return xp.minimum((at >= below).sum(-1), last), rows


_ROWS = np.array([[0.2, 0.8, 0.0], [0.0, 0.5, 0.5]])


def _with_prob(inputs: list[Any], attributes: Attributes) -> tuple[Operator, list[Any], Attributes] | None:
    return (registry["sample_multinomial_prob"], inputs, attributes) if attributes.pop("get_prob") else None


@operator(
    "sample_multinomial",
    infer=_multinomial,
    random=True,
    widen=False,
    aliases=("_sample_multinomial",),
    samples=[Sample(_ROWS, shape=(4,))],
    nd=Rule(
        rename={"data": "x"},
        order=("x", "shape", "get_prob", "dtype"),
        extra={"get_prob": False},
        adapt=_with_prob,
        dtype="kernel",
        method=False,
    ),
)
def sample_multinomial(xp: Any, x: Any, *, shape: Any = None, dtype: Any = None, seed: Any, out: Any) -> None:
    """Indices along the last axis, drawn by the probabilities there: (s..., k) -> (s..., shape...); int32 by default.

    In the nd face `get_prob` gives their log-probabilities too.
    """
    out[...] = _chosen(xp, x, shape, seed)[0]


@operator(
    "sample_multinomial_prob",
    infer=_multinomial_prob,
    outputs=("chosen", "logp"),
    random=True,
    samples=[Sample(_ROWS, shape=(4,))],
    nd=False,
)
def sample_multinomial_prob(
    xp: Any, x: Any, *, shape: Any = None, dtype: Any = None, seed: Any, chosen: Any, logp: Any
) -> None:
    """Indices drawn as by sample_multinomial, and the logarithm of each one's probability."""
    found, rows = _chosen(xp, x, shape, seed)
    chosen[...] = found
    rows = xp.broadcast_to(rows, (*found.shape, x.shape[-1]))
    logp[...] = xp.log(xp.take_along_axis(rows, found[..., None], -1)[..., 0])


def _score(F: Any, g_logp: Any, x: Any, x_shape: Shape, chosen: Any, shape: Shape) -> Any:
    weights = F.one_hot(chosen, depth=x_shape[-1], dtype=x.dtype) * F.expand_dims(g_logp, axis=len(g_logp.shape))
    total = F.sum(weights, axis=tuple(range(len(x_shape) - 1, len(x_shape) - 1 + len(shape))))
    return total / F.where(F.equal(x, 0), 1, x)  # an index of probability 0 is never chosen


sample_multinomial_prob.grad(x=_score)


@operator(
    "shuffle", infer=like_first, random=True, widen=False, aliases=("_shuffle",), samples=[Sample((4, 2))],
    nd=Rule(rename={"data": "x"}, method=False),
)  # fmt: skip
def shuffle(xp: Any, x: Any, *, seed: Any, out: Any) -> None:
    """x with the elements along its first axis in random order."""
    out[...] = generator(seed).permutation(x, axis=0) if x.ndim else x
