"""Layers without spatial structure: FullyConnected, activations with parameters, Dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from ..ndarray.random import draw_into, generator
from ..ndarray.shape import axes_of
from ..ndarray.streams import computing
from .elsewhere import ufunc_of
from .faces import Rule
from .infer import floating, uniform
from .products import cost, product, seen_as
from .schema import Attributes, Inferred, Meta, Metas, Operator, Sample, call_into, constant, operator, registry

X = {"data": "x"}


def known(what: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{what} {value!r}: one of {', '.join(choices)} expected")


def spelling(*_: Any, **__: Any) -> Inferred:
    """The infer of an operator that is always another one: see its variant."""
    raise AssertionError("the variant is called instead")


# ---- FullyConnected --------------------------------------------------------------------------------------------------


def _rows(shape: tuple[int, ...], flatten: bool) -> tuple[int, int]:
    """The shape of the data as a matrix."""
    if flatten:
        return shape[0], math.prod(shape[1:])
    return math.prod(shape[:-1]), shape[-1]


def _fully_connected(metas: Metas, attributes: Attributes) -> Inferred:
    data, weight, bias = metas
    assert data is not None and weight is not None
    dtype = uniform(*metas)
    floating(data)
    units, flatten = int(attributes["num_hidden"]), bool(attributes["flatten"])
    if not data[0]:
        raise ValueError("data with at least one axis expected")
    _, features = _rows(data[0], flatten)
    if weight[0] != (units, features):
        raise ValueError(f"weight of shape {(units, features)} expected: (num_hidden, features)")
    check_bias(bias, bool(attributes["no_bias"]), units)
    shape = (data[0][0], units) if flatten else (*data[0][:-1], units)
    return ((shape, dtype),), {"num_hidden": units, "no_bias": bias is None, "flatten": flatten}


def check_bias(bias: Meta | None, no_bias: bool, units: int) -> None:
    """ValueError unless there is a bias of shape (units,), or none where none is wanted."""
    if (bias is None) is not no_bias:
        raise ValueError("a bias expected, or no_bias=True" if bias is None else "no bias expected with no_bias=True")
    if bias is not None and bias[0] != (units,):
        raise ValueError(f"bias of shape {(units,)} expected")


def _fully_connected_cost(metas: Metas, made: Metas, attributes: Attributes) -> float:
    (_, weight, *_), (out,) = metas, made
    assert weight is not None and out is not None
    return cost(math.prod(out[0]) * weight[0][1], out[1])


@operator(
    "FullyConnected",
    infer=_fully_connected,
    atomic=True,
    cost=_fully_connected_cost,
    costly=True,
    samples=[
        Sample((2, 3), (4, 3), (4,), num_hidden=4),
        Sample((2, 3, 2), (4, 6), None, num_hidden=4, no_bias=True),
        Sample((2, 3, 2), (4, 2), (4,), num_hidden=4, flatten=False),
    ],
    reference=lambda data, weight, bias=None, num_hidden=0, no_bias=False, flatten=True: (
        np.einsum("...k,mk->...m", data.reshape(len(data), -1) if flatten else data, weight)
        + (0 if bias is None else bias)
    ),
    nd=Rule(method=False),
)
def fully_connected(
    xp: Any,
    data: Any,
    weight: Any,
    bias: Any = None,
    *,
    num_hidden: int,
    no_bias: bool = False,
    flatten: bool = True,
    out: Any,
) -> Any:
    """data @ weight.T + bias.

    data: (n, ...), seen as (n, k); with flatten=False (..., k).   weight: (num_hidden, k).   bias: (num_hidden,).
    Result: (n, num_hidden), or (..., num_hidden).   Floating point.   Source: MXNet FullyConnected.
    """
    rows = data.reshape(_rows(data.shape, flatten))
    target, after = seen_as(xp, out, (len(rows), num_hidden))
    steps: list[Any] = [product(xp, rows, weight.T, target)]
    if bias is not None:
        steps.append((xp.add, target, bias, target))
    return steps + after


def _as_rows(F: Any, g: Any, num_hidden: int) -> Any:
    return F.reshape(g, shape=(math.prod(g.shape[:-1]), num_hidden))


fully_connected.grad(
    data=lambda F, g, weight, data_shape, num_hidden: F.reshape(
        F.matmul(_as_rows(F, g, num_hidden), weight), shape=data_shape
    ),
    weight=lambda F, g, data, data_shape, num_hidden, flatten: F.matmul(
        F.transpose(_as_rows(F, g, num_hidden)), F.reshape(data, shape=_rows(data_shape, flatten))
    ),
    bias=lambda F, g, num_hidden: F.sum(_as_rows(F, g, num_hidden), axis=(0,)),
)


# ---- activations -----------------------------------------------------------------------------------------------------


def _float_like_first(metas: Metas, attributes: Attributes) -> Inferred:
    floating(metas[0])
    return (metas[0],), attributes


BELOW = "at 0 the gradient is that from below"


def _activation(
    name: str, steps: Any, gradient: Any, reference: Any, doc: str, cost: float = 16, **attributes: Any
) -> Operator:
    """Declare a floating-point unary operator with one attribute at most: steps(x, t, out, ...) gives the C calls."""

    def kernel(xp: Any, x: Any, *, out: Any) -> Any:
        return steps(x, xp.empty_like(out), out)

    def sloped(xp: Any, x: Any, *, slope: float = 0.25, out: Any) -> Any:
        return steps(x, xp.empty_like(out), out, slope)

    op: Operator = operator(
        name,
        infer=_float_like_first,
        atomic=True,
        elementwise=True,
        cost=cost,
        samples=[Sample((2, 3), low=low, high=low + 1.8, **attributes) for low in (-2, 0.1)],
        reference=reference,
        nd=False,
        doc=f"{doc}\n\nx: any shape, floating point.",
        kinks=BELOW,
    )(sloped if attributes else kernel)
    op.grad(x=gradient)
    return op


SELU, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def _curved(x: Any, t: Any, out: Any, slope: Any) -> Any:
    """C calls for x where positive, else slope (exp(x) - 1)."""
    return call_into(np.minimum, x, 0, out=t), (np.expm1, t, t), *_joined(x, t, out, slope)


def _straight(x: Any, t: Any, out: Any, slope: Any) -> Any:
    if isinstance(slope, float) and 0 < slope <= 1:
        return (np.multiply, x, slope, t), call_into(np.maximum, x, t, out=out)
    return call_into(np.minimum, x, 0, out=t), *_joined(x, t, out, slope)


def _joined(x: Any, t: Any, out: Any, slope: Any) -> Any:
    return (np.multiply, t, slope, t), call_into(np.maximum, x, 0, out=out), (np.add, out, t, out)


def _normal(x: Any, t: Any, out: Any) -> Any:
    half = (np.add, t, 1, t), (np.multiply, t, 0.5, t)
    return (
        (np.multiply, x, 0.7071067811865476, t),
        (ufunc_of(computing(), special.erf), t, t),
        *half,
        (np.multiply, x, t, out),
    )


# fmt: off
_activation("leaky_relu", _straight,
            lambda F, g, x, slope: F.where(F.greater(x, 0), g, g * slope),
            lambda x, slope: np.where(x > 0, x, slope * x),
            "x where positive, else slope x.", cost=4, slope=0.1)
_activation("elu", _curved,
            lambda F, g, x, out, slope: F.where(F.greater(x, 0), g, g * (out + slope)),
            lambda x, slope: np.where(x > 0, x, slope * np.expm1(x)),
            "x where positive, else slope (exp(x) - 1).", slope=0.4)
_activation("selu", lambda x, t, out: (*_curved(x, t, out, SELU_ALPHA), (np.multiply, out, SELU, out)),
            lambda F, g, x, out: F.where(F.greater(x, 0), g * SELU, g * (out + SELU * SELU_ALPHA)),
            lambda x: SELU * np.where(x > 0, x, SELU_ALPHA * np.expm1(x)),
            "elu with the slope and the scale that keep mean 0 and variance 1.  Source: Klambauer et al. 2017.")
_activation("gelu", _normal,
            lambda F, g, x: g * (F.erf(x * 0.7071067811865476) / 2 + x * F.exp(x * x / -2) * 0.3989422804014327 + 0.5),
            lambda x: x * special.ndtr(x),
            "x times the normal distribution function of x.  Source: Hendrycks and Gimpel 2016.")
# fmt: on


def _along_channels(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """The shape in which one number a channel broadcasts against data with its channels on axis 1."""
    return (1, *shape, *(1,) * (ndim - 2)) if len(shape) == 1 and ndim > 1 else shape


def _prelu(metas: Metas, attributes: Attributes) -> Inferred:
    x, gamma = metas
    assert x is not None and gamma is not None
    uniform(x, gamma)
    floating(x)
    shape = _along_channels(gamma[0], len(x[0]))
    if len(shape) != len(x[0]) or any(n not in (1, m) for n, m in zip(shape, x[0], strict=True)):
        raise ValueError("gamma of shape (channels,) or (1,) expected")
    return (x,), attributes


@operator(
    "prelu",
    infer=_prelu,
    kinks=BELOW,
    atomic=True,
    cost=4,
    samples=[Sample((2, 3, 2), (3,), low=0.1), Sample((2, 3), (1,), low=-1, high=-0.1)],
    reference=lambda x, gamma: np.where(x > 0, x, x * gamma.reshape(1, -1, *(1,) * (x.ndim - 2))),
    nd=False,
)
def prelu(xp: Any, x: Any, gamma: Any, *, out: Any) -> Any:
    """x where positive, else gamma x.

    x: (n, c, ...), floating point.   gamma: (c,) or (1,).   Source: He et al. 2015.
    """
    t = xp.empty_like(out)
    slope = gamma.reshape(_along_channels(gamma.shape, x.ndim))
    return _straight(x, t, out, slope)


def _prelu_gradient(F: Any, g: Any, x: Any, gamma: Any, gamma_shape: Any) -> Any:
    slope = F.reshape(gamma, shape=_along_channels(gamma_shape, len(g.shape)))
    return F.where(F.greater(x, 0), g, g * slope)


def _prelu_slope_gradient(F: Any, g: Any, x: Any, gamma_shape: Any) -> Any:
    shape = _along_channels(gamma_shape, len(g.shape))
    axes = tuple(i for i, n in enumerate(shape) if n == 1)
    return F.reshape(F.sum(g * F.minimum(x, 0), axis=axes, keepdims=True), shape=gamma_shape)


prelu.grad(x=_prelu_gradient, gamma=_prelu_slope_gradient)


def _with_slopes(metas: Metas, attributes: Attributes) -> Inferred:
    floating(metas[0])
    return (metas[0], metas[0]), attributes


@operator("rrelu", infer=_with_slopes, elementwise=True, random=True, saves={"slopes": constant}, nd=False)
def rrelu(
    xp: Any, x: Any, *, lower_bound: float = 0.125, upper_bound: float = 0.334, seed: Any, out: Any, slopes: Any
) -> None:
    """x where positive, else x times a random number between lower_bound and upper_bound.  Floating point."""
    slopes[...] = generator(seed).uniform(lower_bound, upper_bound, x.shape)
    slopes[x > 0] = 1
    xp.multiply(x, slopes, out)


rrelu.grad(x=lambda F, g, slopes: g * slopes)

ACTIVATIONS = ("relu", "sigmoid", "tanh", "softrelu", "softsign")
LEAKY = ("leaky", "elu", "selu", "gelu", "prelu", "rrelu")


def _activation_variant(inputs: Sequence[Any], attributes: Attributes, training: bool) -> Any:
    known("act_type", attributes["act_type"], ACTIVATIONS)
    return registry[attributes["act_type"]], inputs, {}


@operator(
    "Activation",
    infer=spelling,
    variant=_activation_variant,
    elementwise=True,
    samples=[Sample((2, 3), low=0.1, high=2, act_type=name) for name in ACTIVATIONS],
    kinks="those of the operator named: at 0 the gradient of relu is 0",
    nd=Rule(method=False),
)
def activation(xp: Any, data: Any, *, act_type: str, out: Any) -> None:
    """relu, sigmoid, tanh, softrelu or softsign of each element: the operator of that name."""


def _leaky_variant(inputs: Sequence[Any], attributes: Attributes, training: bool) -> Any:
    kind = attributes["act_type"]
    known("act_type", kind, LEAKY)
    data, gamma = inputs
    low, high = attributes["lower_bound"], attributes["upper_bound"]
    if (gamma is None) is (kind == "prelu"):
        raise ValueError("gamma expected" if gamma is None else "gamma is for act_type 'prelu' only")
    if kind == "prelu":
        return prelu, inputs, {}
    if kind == "rrelu" and training:
        return rrelu, [data], {"lower_bound": low, "upper_bound": high}
    slope = {"leaky": attributes["slope"], "elu": attributes["slope"], "rrelu": (low + high) / 2}.get(kind)
    op = registry["leaky_relu" if kind in ("leaky", "rrelu") else kind]
    return op, [data], {} if slope is None else {"slope": float(slope)}


@operator(
    "LeakyReLU",
    infer=spelling,
    variant=_leaky_variant,
    samples=[
        *(Sample((2, 3), low=-1.5, high=-0.1, act_type=name) for name in LEAKY if name != "prelu"),
        Sample((2, 3), (3,), low=0.1, act_type="prelu"),
    ],
    kinks=f"{BELOW}; gelu has none",
    nd=Rule(method=False),
)
def leaky(
    xp: Any,
    data: Any,
    gamma: Any = None,
    *,
    act_type: str = "leaky",
    slope: float = 0.25,
    lower_bound: float = 0.125,
    upper_bound: float = 0.334,
    out: Any,
) -> None:
    """Rectifiers that let something through below 0.

    leaky: slope x.   elu: slope (exp(x) - 1).   selu, gelu: see there.   prelu: gamma x, gamma (channels,) or (1,).
    rrelu: x times a random number between the bounds in training mode, times their mean otherwise.
    """


# ---- Dropout ---------------------------------------------------------------------------------------------------------


def _dropout_variant(inputs: Sequence[Any], attributes: Attributes, training: bool) -> Any:
    p, mode = attributes["p"], attributes["mode"]
    known("mode", mode, ("training", "always"))
    if not 0 <= p <= 1:
        raise ValueError(f"p {p}: a probability expected")
    if p == 0 or (mode == "training" and not training):
        return registry["copy"], inputs, {}
    return dropout, inputs, attributes


def _dropout(metas: Metas, attributes: Attributes) -> Inferred:
    (meta,) = metas
    assert meta is not None
    floating(meta)
    shape, dtype = meta
    axes = axes_of(tuple(attributes["axes"]), len(shape))
    mask = tuple(1 if i in axes else n for i, n in enumerate(shape))
    return (meta, (mask, dtype)), {**attributes, "p": float(attributes["p"]), "axes": axes}


@operator(
    "Dropout",
    infer=_dropout,
    variant=_dropout_variant,
    elementwise=True,
    random=True,
    saves={"mask": constant},
    samples=[Sample((2, 3)), Sample((2, 3), p=0.4, mode="always"), Sample((2, 3, 2), mode="always", axes=(0, 2))],
    nd=Rule(rename=X, ignore=("cudnn_off",), method=False),
)
def dropout(
    xp: Any, x: Any, *, p: float = 0.5, mode: str = "training", axes: Any = (), seed: Any, out: Any, mask: Any
) -> None:
    """Each element is 0 with probability p, else divided by 1 - p; in predict mode a copy, unless mode is "always".

    x: any shape, floating point.   axes: those along which all elements share one draw.   The gradient goes through the
    elements that were kept.   Source: Srivastava et al. 2014.
    """
    scale = mask.dtype.type(1 / (1 - p) if p < 1 else 0)
    draw_into(mask, seed, lambda rng, n: (rng.random(n, np.float32) >= p) * scale)
    xp.multiply(x, mask, out)


dropout.grad(x=lambda F, g, mask: g * mask)
