"""Reductions: sums, products, extremes, norms, and where the extremes lie.

In the canonical face `axis` is None (all), an int or a tuple and () reduces nothing, as in NumPy.  In the nd face () is
all axes, `exclude` reduces the others, and results have the operand's dtype.  What is large is reduced in the order of
`stages.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..ndarray.dtype import INT64, DType, as_dtype
from ..ndarray.shape import axes_of
from .faces import Rule
from .infer import averaged, normal_axis, reduced, reduction, summed
from .schema import Attributes, Inferred, Meta, Metas, Operator, Sample, operator, zero
from .stages import consumed, cost, in_lines, in_order, runs, stages, stepwise

DATA = {"data": "x"}


def _mxnet_axes(inputs: list[Any], attributes: Attributes) -> None:
    """MXNet: an axis of () is all; `exclude` reduces the axes not named."""
    axis = attributes.get("axis")
    everything = axis is None or (isinstance(axis, tuple | list) and not axis)
    if attributes.pop("exclude") and not everything:
        named = axes_of(axis, inputs[0].ndim)
        attributes["axis"] = tuple(i for i in range(inputs[0].ndim) if i not in named)
    elif everything:
        attributes["axis"] = None


ND = Rule(rename=DATA, order=("x", "axis", "keepdims", "exclude"), extra={"exclude": False}, adapt=_mxnet_axes)


def kept(F: Any, reduced: Any, axis: Any, keepdims: bool) -> Any:
    """A reduced array with its reduced axes back, of length 1."""
    if not keepdims:
        for a in axis:
            reduced = F.expand_dims(reduced, axis=a)
    return reduced


def _samples(low: float = -1.0, high: float = 1.0, x: Any = (2, 3, 4)) -> list[Sample]:
    forms: tuple[dict[str, Any], ...] = (
        {},
        {"axis": 1},
        {"axis": -1, "keepdims": True},
        {"axis": (0, 2)},
        {"axis": (-1, 0), "keepdims": True},
    )
    return [Sample(x, low=low, high=high, **form) for form in forms]


#: no two elements within 0.01 of each other
_APART = (np.arange(24) * 7 % 24 / 12 - 1).reshape(2, 3, 4)


def reducing(
    name: str,
    steps: Callable[..., Any],
    gradient: Any,
    reference: Callable[..., Any],
    doc: str,
    *,
    dtype: Callable[[DType], DType] | None = None,
    empty: bool = True,
    samples: list[Sample] | None = None,
    aliases: tuple[str, ...] = (),
    consuming: Callable[..., Any] | None = None,
    kinks: str = "",
) -> Operator:
    """Declare a reduction; steps(x, out, axis, keepdims) are its C calls."""

    def kernel(xp: Any, x: Any, *, axis: Any = None, keepdims: bool = False, out: Any) -> Any:
        return steps(x, out, axis, keepdims)

    op = operator(
        name, infer=reduction(dtype, empty=empty), atomic=True, cost=cost, aliases=aliases, reference=reference,
        samples=samples or _samples(), consumed=consuming, nd=ND, kinks=kinks,
        doc=f"{doc}\n\nx: any shape; axis: None (all), an int or a tuple.",
    )(kernel)  # fmt: skip
    return op.grad(x=gradient)  # type: ignore[no-any-return]


def _consuming(ufunc: np.ufunc) -> Callable[..., Any]:
    return lambda shape, dtype, made, attributes: consumed(ufunc, shape, dtype, made, attributes["axis"])


def _consuming_mean(shape: Any, dtype: Any, made: Any, attributes: Attributes) -> Any:
    n = math.prod(shape[a] for a in attributes["axis"])
    return consumed(np.add, shape, dtype, made, attributes["axis"], after=lambda out: [(np.divide, out, n, out)])


def _consuming_norm(shape: Any, dtype: Any, made: Any, attributes: Attributes) -> Any:
    if attributes["ord"] != 2:
        return None
    return consumed(np.add, shape, dtype, made, attributes["axis"], True, lambda out: [(np.sqrt, out, out)])


def _reduce(ufunc: np.ufunc) -> Callable[..., Any]:
    return lambda x, out, axis, keepdims: stages(ufunc, x, out, axis, keepdims)


def _mean(x: Any, out: Any, axis: Any, keepdims: bool) -> Any:
    n = math.prod(x.shape[a] for a in axis)
    return (*stages(np.add, x, out, axis, keepdims), (np.divide, out, n, out))


def _spread(F: Any, g: Any, x_shape: Any, axis: Any, keepdims: bool) -> Any:
    return F.broadcast_to(kept(F, g, axis, keepdims), shape=x_shape)


def _spread_mean(F: Any, g: Any, x_shape: Any, axis: Any, keepdims: bool) -> Any:
    n = math.prod(x_shape[a] for a in axis)
    return F.broadcast_to(kept(F, g, axis, keepdims) / float(n), shape=x_shape)


def _to_extreme(F: Any, g: Any, x: Any, out: Any, axis: Any, keepdims: bool) -> Any:
    return F.where(F.equal(x, kept(F, out, axis, keepdims)), kept(F, g, axis, keepdims), 0)


def _others(F: Any, x: Any, axis: int) -> Any:
    """For each element the product of all the others along one axis, without a division: by halves."""
    n = x.shape[axis]
    if n <= 1:
        return F.ones_like(x)
    half = n // 2
    a, b = F.slice_axis(x, axis=axis, begin=0, end=half), F.slice_axis(x, axis=axis, begin=half, end=2 * half)
    rest = [F.slice_axis(x, axis=axis, begin=2 * half, end=n)] if n % 2 else []
    pairs = F.concat(a * b, *rest, dim=axis)
    others = _others(F, pairs, axis)
    of_pairs = F.slice_axis(others, axis=axis, begin=0, end=half)
    of_rest = [F.slice_axis(others, axis=axis, begin=half, end=half + 1)] if rest else []
    return F.concat(of_pairs * b, of_pairs * a, *of_rest, dim=axis)


def _prod_gradient(F: Any, g: Any, x: Any, axis: Any, keepdims: bool) -> Any:
    gradient = kept(F, g, axis, keepdims)
    for a in axis:
        gradient = gradient * _others(F, x, a)
        x = F.prod(x, axis=a, keepdims=True)
    return F.broadcast_to(gradient, shape=gradient.shape)


def _nanprod_gradient(F: Any, g: Any, x: Any, axis: Any, keepdims: bool) -> Any:
    known = F.equal(x, x)
    gradient = _prod_gradient(F, g, F.where(known, x, 1), axis, keepdims)
    return F.where(known, gradient, 0)


def _nansum_gradient(F: Any, g: Any, x: Any, axis: Any, keepdims: bool) -> Any:
    return F.where(F.equal(x, x), kept(F, g, axis, keepdims), 0)


def _known(ufunc: np.ufunc, neutral: int) -> Callable[..., Any]:
    def steps(x: Any, out: Any, axis: Any, keepdims: bool) -> Any:
        known = np.empty(x.shape, np.bool_, like=x)
        return (np.equal, x, x, known), (ufunc.reduce, x, axis, None, out, keepdims, neutral, known)

    return steps


TIES = "of several elements that tie, each has the gradient g"
ZEROS = "where elements are 0 the gradient is the derivative, products of the others (MXNet: nan)"

reducing(
    "sum", _reduce(np.add), _spread, np.sum, "The sum of the elements.", dtype=summed, aliases=("sum_axis",),
    consuming=_consuming(np.add),
)  # fmt: skip
reducing(
    "mean", _mean, _spread_mean, np.mean, "The mean of the elements; float64 for integers.", dtype=averaged,
    consuming=_consuming_mean,
)  # fmt: skip
reducing(
    "prod", _reduce(np.multiply), _prod_gradient, np.prod,
    "The product of the elements.", dtype=summed, kinks=ZEROS,
    samples=[*_samples(0.5, 2), Sample(np.array([[0.0, 2, 3], [0, 0, 1], [4, 5, 6]]), axis=1)],
)  # fmt: skip
reducing(
    "max", _reduce(np.maximum), _to_extreme, np.max, "The largest element.", kinks=TIES,
    empty=False, samples=_samples(x=_APART), aliases=("max_axis",),
    consuming=_consuming(np.maximum),
)  # fmt: skip
reducing(
    "min", _reduce(np.minimum), _to_extreme, np.min, "The smallest element.", kinks=TIES,
    empty=False, samples=_samples(x=_APART), aliases=("min_axis",),
    consuming=_consuming(np.minimum),
)  # fmt: skip
reducing(
    "nansum",
    _known(np.add, 0),
    _nansum_gradient,
    np.nansum,
    "The sum of the elements that are not nan.",
    dtype=summed,
    kinks="where an element is nan the gradient is 0",
)
reducing(
    "nanprod", _known(np.multiply, 1), _nanprod_gradient, np.nanprod, "The product of the elements that are not nan.",
    dtype=summed, samples=_samples(0.5, 2), kinks=f"{ZEROS}; where one is nan its gradient is 0",
)  # fmt: skip


# ---- norm ------------------------------------------------------------------------------------------------------------


def _norm(metas: Metas, attributes: Attributes) -> Inferred:
    if attributes["ord"] not in (1, 2):
        raise ValueError(f"ord {attributes['ord']}: 1 or 2 expected")
    ((made, *_), attributes) = reduction(averaged)(metas, attributes)
    assert made is not None
    return ((made[0], as_dtype(attributes["out_dtype"], made[1])),), attributes


def _norm_dtype(dtype: DType | None, attributes: Attributes) -> DType:
    return as_dtype(attributes["out_dtype"], dtype)  # type: ignore[arg-type]


def _norm_cost(metas: Metas, made: Metas, attributes: Attributes) -> float:
    (x, *_), (out, *_) = metas, made
    assert x is not None and out is not None
    return (1 if attributes["ord"] == 2 and in_lines(np.add, x[1], out[1]) else 4) * cost(metas, made, attributes)


@operator(
    "norm",
    infer=_norm,
    atomic=True,
    cost=_norm_cost,
    consumed=_consuming_norm,
    samples=[Sample((2, 3, 4), ord=ord, axis=axis, low=0.2) for ord in (1, 2) for axis in (None, -1, (0, 2))],
    kinks="with ord=2 the gradient at the origin is 0 (MXNet: nan), with ord=1 where an element is 0",
    reference=lambda x, ord=2, axis=None: np.sum(np.abs(x) ** ord, axis) ** (1 / ord),
    nd=Rule(
        rename=DATA,
        order=("x", "ord", "axis", "out_dtype", "keepdims"),
        extra={"exclude": False},
        dtype=_norm_dtype,
        adapt=_mxnet_axes,
    ),
)
def norm(
    xp: Any, x: Any, *, ord: int = 2, axis: Any = None, keepdims: bool = False, out_dtype: Any = None, out: Any
) -> Any:
    """The sum of absolute values (ord=1) or the root of the sum of squares (ord=2).

    x: any shape.
    """
    if ord == 2 and in_order(x, axis) and in_lines(np.add, x.dtype, out.dtype) and runs(x.shape, axis)[0][-1] == "R":
        return [*stages(np.add, x, out, axis, keepdims, squares=True), (np.sqrt, out, out)]
    parts = xp.empty(x.shape, out.dtype)
    each = partial((xp.absolute, xp.square)[ord - 1], dtype=out.dtype)
    steps = [*stepwise(each, x, parts), *stages(xp.add, parts, out, axis, keepdims)]
    return steps if ord == 1 else [*steps, (xp.sqrt, out, out)]


def _norm_gradient(F: Any, g: Any, x: Any, out: Any, ord: int, axis: Any, keepdims: bool) -> Any:
    g = kept(F, g, axis, keepdims)
    if ord == 1:
        return g * F.sign(x)
    out = kept(F, out, axis, keepdims)
    return x * (g / F.where(F.equal(out, 0), 1, out))


norm.grad(x=_norm_gradient)


# ---- spread ----------------------------------------------------------------------------------------------------------


def _variance(name: str, gradient: Any, doc: str, kinks: str = "") -> None:
    def kernel(xp: Any, x: Any, *, axis: Any = None, keepdims: bool = False, ddof: int = 0, out: Any) -> None:
        n = math.prod(x.shape[a] for a in axis)
        mean = xp.add.reduce(x, axis, out.dtype, None, True) / xp.asarray(n, out.dtype)
        xp.add.reduce(xp.square(x - mean), axis, None, out, keepdims)
        xp.divide(out, max(n - ddof, 0), out)
        if name == "std":
            xp.sqrt(out, out)

    op = operator(
        name, infer=reduction(averaged), samples=[*_samples(), Sample((3, 4), axis=0, ddof=1)], nd=False, doc=doc,
        kinks=kinks,
        reference=getattr(np, name),
    )(kernel)  # fmt: skip
    op.grad(x=gradient)


def _deviation(F: Any, x: Any, axis: Any, ddof: int) -> Any:
    n = math.prod(x.shape[a] for a in axis)
    return (x - F.mean(x, axis=axis, keepdims=True)) / float(n - ddof)


def _var_gradient(F: Any, g: Any, x: Any, axis: Any, keepdims: bool, ddof: int) -> Any:
    return kept(F, g, axis, keepdims) * _deviation(F, x, axis, ddof) * 2


def _std_gradient(F: Any, g: Any, x: Any, out: Any, axis: Any, keepdims: bool, ddof: int) -> Any:
    return kept(F, g, axis, keepdims) / kept(F, out, axis, keepdims) * _deviation(F, x, axis, ddof)


_variance("var", _var_gradient, "The mean squared deviation from the mean, over n - ddof.")
_variance("std", _std_gradient, "The root of the variance.", "where all elements are equal the gradient is nan")


# ---- where the extremes lie ------------------------------------------------------------------------------------------


def _position(metas: Metas, attributes: Attributes) -> Inferred:
    (meta,) = metas
    assert meta is not None
    axis = attributes["axis"]
    axis = None if axis is None else normal_axis(axis, len(meta[0]))
    axes, shape = reduced(meta, axis, attributes["keepdims"])
    if any(meta[0][a] == 0 for a in axes):
        raise ValueError("no elements to choose from")
    return ((shape, INT64),), {"axis": axis, "keepdims": bool(attributes["keepdims"])}


def _first_extreme(name: str, doc: str) -> None:
    def kernel(xp: Any, x: Any, *, axis: Any = None, keepdims: bool = False, out: Any) -> Any:
        return ((partial(getattr(x, name), keepdims=keepdims), axis, out),)

    forms: tuple[Any, ...] = ({}, {"axis": 0}, {"axis": -1, "keepdims": True})
    operator(
        name, infer=_position, atomic=True, widen=False, samples=[Sample(_APART, **form) for form in forms],
        reference=getattr(np, name), nd=Rule(rename=DATA), doc=doc,
    )(kernel).grad(x=zero)  # fmt: skip


_first_extreme("argmax", "The index of the first largest element, along an axis or (None) of the flattened array.")
_first_extreme("argmin", "The index of the first smallest element, along an axis or (None) of the flattened array.")


def _channel(metas: Metas, attributes: Attributes) -> Inferred:
    made, _ = _position(metas, {"axis": 1, "keepdims": False})
    return made, attributes


@operator(
    "argmax_channel", infer=_channel, atomic=True, widen=False, samples=[Sample(_APART)],
    reference=lambda x: np.argmax(x, 1), nd=Rule(rename=DATA),
)  # fmt: skip
def argmax_channel(xp: Any, x: Any, *, out: Any) -> Any:
    """The index of the first largest element along axis 1."""
    return ((x.argmax, 1, out),)


argmax_channel.grad(x=zero)


# ---- running sums ----------------------------------------------------------------------------------------------------


def _cumsum(metas: Metas, attributes: Attributes) -> Inferred:
    (meta,) = metas
    assert meta is not None
    shape, dtype = meta
    axis = attributes["axis"]
    made: Meta = (math.prod(shape),) if axis is None else shape, as_dtype(attributes["dtype"], summed(dtype))
    return (made,), {"axis": None if axis is None else normal_axis(axis, len(shape)), "dtype": made[1]}


@operator(
    "cumsum",
    infer=_cumsum,
    atomic=True,
    cost=4,
    samples=[Sample((2, 3)), Sample((2, 3), axis=1), Sample((2, 3), axis=-2)],
    reference=np.cumsum,
    nd=Rule(rename={"a": "x"}, dtype=lambda dtype, attributes: as_dtype(attributes["dtype"], dtype)),
)
def cumsum(xp: Any, x: Any, *, axis: int | None = None, dtype: Any = None, out: Any) -> Any:
    """Sums of the elements up to each one, along an axis or (None) of the flattened array.   x: any shape."""
    return ((xp.add.accumulate, x.reshape(-1) if axis is None else x, axis or 0, None, out),)


def _cumsum_gradient(F: Any, g: Any, x_shape: Any, axis: int | None) -> Any:
    at = axis or 0
    return F.reshape(F.flip(F.cumsum(F.flip(g, axis=at), axis=at), axis=at), shape=x_shape)


cumsum.grad(x=_cumsum_gradient)
