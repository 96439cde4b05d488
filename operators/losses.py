"""Sums of arrays, what stops or starts a gradient, robust losses, and normalisation by norm or moments."""

from __future__ import annotations

import math
import operator as python_operator
from typing import Any

import numpy as np

from ..engine import ArgumentError
from ..ndarray.shape import Shape, Strides
from .faces import Rule, composed, nd_face
from .infer import floating, like_first, uniform
from .schema import Attributes, Inferred, Metas, Sample, operator, zero

DATA = {"data": "x"}


# ---- sums of arrays --------------------------------------------------------------------------------------------------


def _alike(metas: Metas, attributes: Attributes) -> Inferred:
    if not metas:
        raise ValueError("at least one array expected")
    uniform(*metas)
    if any(meta is None or metas[0] is None or meta[0] != metas[0][0] for meta in metas):
        raise ValueError("arrays of one shape expected")
    return (metas[0],), attributes


@operator(
    "add_n",
    infer=_alike,
    atomic=True,
    cost=4,
    aliases=("ElementWiseSum",),
    samples=[Sample((2, 3)), Sample((2, 3), (2, 3), (2, 3))],
    reference=lambda *data: np.sum(data, 0),
    nd=Rule(method=False),
)
def add_n(xp: Any, *data: Any, out: Any) -> Any:
    """The sum of arrays of one shape, added from left to right."""
    first, *rest = data
    if not rest:
        return ((python_operator.setitem, out, ..., first),)
    return [(xp.add, first if i == 0 else out, x, out) for i, x in enumerate(rest)]


add_n.grad(data=lambda F, g: g)


# ---- gradients that are not derivatives ------------------------------------------------------------------------------


def _same_geometry(shape: Shape, strides: Strides, attributes: Attributes) -> Any:
    return shape, strides


def _identity(name: str, aliases: tuple[str, ...], gradient: Any, doc: str) -> None:
    def kernel(xp: Any, x: Any, *, out: Any) -> Any:
        return ((python_operator.setitem, out, ..., x),)

    operator(
        name, infer=like_first, atomic=True, elementwise=True, widen=False, alias=_same_geometry, aliases=aliases,
        defined=True, samples=[Sample((2, 3))], reference=lambda x: x, nd=Rule(rename=DATA), doc=doc,
    )(kernel).grad(x=gradient)  # fmt: skip


_identity("BlockGrad", ("stop_gradient",), zero, "x itself, as a constant: its gradient is 0.")
_identity(
    "make_loss",
    (),
    lambda F, x_shape: F.ones(shape=x_shape),
    "x itself, as a loss: its gradient is 1, whatever is done with it.",
)


@operator(
    "MakeLoss",
    infer=like_first,
    atomic=True,
    elementwise=True,
    widen=False,
    defined=True,
    samples=[Sample((2, 3), grad_scale=2.0, normalization="batch")],
    reference=lambda x, **_: x,
    nd=Rule(rename=DATA, method=False),
)
def scaled_loss(
    xp: Any,
    x: Any,
    *,
    grad_scale: float = 1.0,
    valid_thresh: float = 0.0,
    normalization: str = "null",
    out: Any,
) -> Any:
    """x itself, as a loss: its gradient is grad_scale, whatever is done with it.

    normalization: "null"; "batch" divides by the number of rows (along the last axis), "valid" by that of elements over
    valid_thresh (at least 1).   MXNet: MakeLoss.
    """
    return ((python_operator.setitem, out, ..., x),)


def _scaled(F: Any, x: Any, x_shape: Shape, grad_scale: float, valid_thresh: float, normalization: str) -> Any:
    gradient = F.ones_like(x) * grad_scale
    if normalization == "batch":
        return gradient / float(max(math.prod(x_shape[:-1]), 1))
    if normalization == "valid":
        return gradient / F.maximum(F.sum(F.cast(F.greater(x, valid_thresh), dtype=x.dtype)), 1)
    return gradient


scaled_loss.grad(x=_scaled)


def _hinges(metas: Metas, attributes: Attributes) -> Inferred:
    (shape, dtype), label = metas[0], metas[1]  # type: ignore[misc]
    floating(metas[0])
    if len(shape) != 2 or label is None or label[0] != shape[:1]:
        raise ValueError("data (n, classes) and n labels expected")
    return ((shape, dtype),), attributes


@operator(
    "SVMOutput", infer=_hinges, atomic=True, widen=False, defined=True, indices=("label",),
    kinks="where a score is just the margin its gradient is 0",
    samples=[Sample((2, 3), np.array([0, 2])), Sample((3, 2), np.array([1, 0, 1]), use_linear=True, margin=0.5)],
    reference=lambda data, label, **_: data, nd=Rule(method=False),
)  # fmt: skip
def svm_output(
    xp: Any,
    data: Any,
    label: Any,
    *,
    margin: float = 1.0,
    regularization_coefficient: float = 1.0,
    use_linear: bool = False,
    out: Any,
) -> Any:
    """data itself, (n, classes); its gradient is *defined* as that of squared hinges, or with use_linear of hinges.

    label: (n,), class numbers.  The score of the class is to be more than the margin, the others less than its
    negative.  The gradient ignores the head's.   MXNet: SVMOutput.
    """
    return ((python_operator.setitem, out, ..., data),)


def _svm(
    F: Any, data: Any, label: Any, data_shape: Shape, margin: float, regularization_coefficient: float, use_linear: bool
) -> Any:
    wanted = F.cast(F.one_hot(label, depth=data_shape[1]), dtype=data.dtype) * 2 - 1
    short = F.maximum(margin - wanted * data, 0)
    if use_linear:
        return -wanted * F.cast(F.greater(short, 0), dtype=data.dtype) * regularization_coefficient
    return -wanted * short * (2 * regularization_coefficient)


svm_output.grad(data=_svm)


# ---- piecewise -------------------------------------------------------------------------------------------------------


def _real(metas: Metas, attributes: Attributes) -> Inferred:
    floating(*metas)
    return (metas[0],), {name: float(value) for name, value in attributes.items()}


@operator(
    "smooth_l1",
    infer=_real,
    elementwise=True,
    kinks="where both parts meet the gradient is that of both, -g or g",
    samples=[Sample((2, 3)), Sample(np.array([[-3.0, -0.2, 0.2, 3.0]]), scalar=2.0)],
    reference=lambda x, scalar=1.0: np.where(abs(x) < 1 / scalar**2, 0.5 * (scalar * x) ** 2, abs(x) - 0.5 / scalar**2),
    nd=Rule(rename=DATA),
)
def smooth_l1(xp: Any, x: Any, *, scalar: float = 1.0, out: Any) -> None:
    """0.5 (scalar x)**2 where abs(x) < 1 / scalar**2, else abs(x) - 0.5 / scalar**2."""
    near = xp.clip(x, -1 / scalar**2, 1 / scalar**2)
    out[...] = scalar**2 * near * (x - 0.5 * near)


smooth_l1.grad(x=lambda F, g, x, scalar: g * F.clip(x * scalar**2, a_min=-1.0, a_max=1.0))


@operator(
    "hard_sigmoid",
    infer=_real,
    elementwise=True,
    kinks="where the result becomes 0 or 1 the gradient is 0",
    samples=[Sample((2, 3)), Sample(np.array([[-3.0, 0.4, 3.0]]), alpha=0.5, beta=0.1)],
    reference=lambda x, alpha=0.2, beta=0.5: np.clip(alpha * x + beta, 0, 1),
    nd=Rule(rename=DATA),
)
def hard_sigmoid(xp: Any, x: Any, *, alpha: float = 0.2, beta: float = 0.5, out: Any) -> None:
    """alpha x + beta, cut to [0, 1]."""
    out[...] = xp.clip(x * alpha + beta, 0, 1)


def _inside(F: Any, g: Any, out: Any, alpha: float) -> Any:
    return F.where(F.logical_and(F.greater(out, 0), F.less(out, 1)), g * alpha, 0)


hard_sigmoid.grad(x=_inside)


# ---- normalisation ---------------------------------------------------------------------------------------------------

#: the axes of each mode: from, to
_NORMED = {"instance": (1, None), "channel": (1, 2), "spatial": (2, None)}


@composed()
def L2Normalization(data: Any, eps: float = 1e-10, mode: str = "instance") -> Any:
    """data over its 2-norm: of each example ("instance"), along axis 1 ("channel") or over the axes from 2 ("spatial").

    eps is added to the sum of squares.

    Kinks: at the origin the gradient is g / sqrt(eps).
    """
    if mode not in _NORMED:
        raise ArgumentError(f"[L2Normalization] mode {mode!r}: one of {', '.join(_NORMED)} expected")
    squares = nd_face.sum(nd_face.square(data), axis=tuple(range(data.ndim))[slice(*_NORMED[mode])], keepdims=True)
    return nd_face.multiply(data, nd_face.rsqrt(squares + eps))


@composed()
def moments(data: Any, axes: Any, keepdims: bool = False) -> Any:
    """[mean, variance] along axes."""
    mean = nd_face.mean(data, axis=axes, keepdims=True)
    variance = nd_face.mean(nd_face.square(data - mean), axis=axes, keepdims=keepdims)
    return [mean if keepdims else nd_face.reshape(mean, shape=variance.shape), variance]
