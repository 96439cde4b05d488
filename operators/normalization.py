"""Normalisation: (data - mean) / sqrt(variance + eps) * gamma + beta, over a batch, a layer, an instance or a group.

One kernel and one gradient serve all four; they differ in the axes that are averaged over and in how gamma lies.  The
forward kernel saves mean and 1 / sqrt(variance + eps); their definitions in terms of the data serve higher orders.
"""

from __future__ import annotations

import math
import operator as python_operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..ndarray.dtype import FLOAT32, NARROW, DType
from ..ndarray.shape import Shape
from .faces import Rule
from .infer import floating, normal_axis
from .nn import spelling
from .products import seen_as
from .schema import Attributes, Inferred, Meta, Metas, Sample, Step, operator
from .windows import empty


class Layout(NamedTuple):
    """How data lie for one kind of normalisation.

    `view`: the shape they are seen as.   `axes`: of the view, averaged over.   `gamma`: the shape of gamma and beta
    against the view.   `statistics`: the shape in which a user gets the mean.
    """

    view: Shape
    axes: tuple[int, ...]
    gamma: Shape
    statistics: Shape

    @property
    def kept(self) -> Shape:
        """The view with averaged axes of length 1."""
        return tuple(1 if i in self.axes else n for i, n in enumerate(self.view))

    @property
    def size(self) -> int:
        """How many elements an average is of."""
        return max(math.prod(self.view[a] for a in self.axes), 1)


def only(shape: Shape, axis: int) -> Shape:
    return tuple(n if i == axis else 1 for i, n in enumerate(shape))


def _layer(shape: Shape, axis: int) -> Layout:
    axis = normal_axis(axis, len(shape))
    return Layout(shape, (axis,), only(shape, axis), tuple(1 if i == axis else n for i, n in enumerate(shape)))


def _instance(shape: Shape, _: int) -> Layout:
    if len(shape) < 3:
        raise ValueError("data (n, channels, ...) with at least three axes expected")
    return Layout(shape, tuple(range(2, len(shape))), only(shape, 1), shape[:2])


def _group(shape: Shape, num_groups: int) -> Layout:
    if len(shape) < 3 or num_groups < 1 or shape[1] % num_groups:
        raise ValueError("data (n, channels, ...) whose channels divide into num_groups expected")
    view = (shape[0], num_groups, shape[1] // num_groups, *shape[2:])
    return Layout(view, tuple(range(2, len(view))), only(view, 1), view[:2])


def _dtype(metas: Metas) -> DType:
    """The dtype of the statistics: that of gamma; data may be of 16 bits beside float32."""
    floating(*metas)
    data, *others = [meta[1] for meta in metas if meta is not None]
    narrow = data in NARROW and others[0] == FLOAT32
    if any(d != others[0] for d in others) or (data != others[0] and not narrow):
        raise TypeError("one dtype expected, or 16-bit data beside float32")
    return others[0]


def checked(metas: Metas, layout_of: Callable[[Shape, int], Layout], over: int) -> tuple[Layout, Meta, DType]:
    """(layout, meta of the data, dtype of the statistics) after the checks that all kinds share."""
    data, *vectors = metas
    assert data is not None
    layout = layout_of(data[0], over)
    length = max(layout.gamma, default=1) if math.prod(layout.gamma) else 0
    if any(meta is not None and meta[0] != (length,) for meta in vectors):
        raise ValueError(f"vectors of shape {(length,)} beside the data expected")
    return layout, data, _dtype(metas)


def reference(layout: Layout, data: Any, gamma: Any, beta: Any, eps: float) -> tuple[Any, Any, Any]:
    """(result, mean, variance + eps) by NumPy; the last two keep the averaged axes."""
    x = data.reshape(layout.view)
    mean, variance = x.mean(layout.axes, keepdims=True), x.var(layout.axes, keepdims=True) + eps
    y = (x - mean) / np.sqrt(variance) * gamma.reshape(layout.gamma) + beta.reshape(layout.gamma)
    return y.reshape(data.shape), mean, variance


# ---- the kernel and the gradient that all share ----------------------------------------------------------------------


def normalized(
    xp: Any, layout: Layout, data: Any, gamma: Any, beta: Any, eps: float, out: Any, mean: Any, rstd: Any,
    use: Callable[[Any, Any, Any], list[Any]] | None = None,
) -> list[Any]:  # fmt: skip
    """C calls that fill out, mean and rstd; `use`: those in between that need (mean, variance, memory of that size)."""
    view, axes, n = layout.view, layout.axes, layout.size
    x, (y, after) = xp.ascontiguousarray(data).reshape(view), seen_as(xp, out, view)  # sums follow memory
    mean, rstd, squares = mean.reshape(layout.kept), rstd.reshape(layout.kept), xp.empty(view, out.dtype)
    steps = [(xp.add.reduce, x, axes, None, mean, True), (xp.divide, mean, n, mean), (xp.subtract, x, mean, y)]
    steps += [
        (xp.multiply, y, y, squares),
        (xp.add.reduce, squares, axes, None, rstd, True),
        (xp.divide, rstd, n, rstd),
    ]
    if use is not None:
        steps += use(mean, rstd, xp.empty_like(mean))
    steps += [(xp.add, rstd, eps, rstd), (xp.sqrt, rstd, rstd), (xp.divide, 1, rstd, rstd), (xp.multiply, y, rstd, y)]
    if gamma is not None:
        steps.append((xp.multiply, y, gamma.reshape(layout.gamma), y))
    steps.append((xp.add, y, beta.reshape(layout.gamma), y))
    return steps + after


def gradients(
    F: Any, layout: Layout, g: Any, data: Any, gamma: Any, mean: Any, rstd: Any, needs: Any
) -> tuple[Any, Any, Any]:
    """Those of data, gamma and beta; gamma None counts as 1."""
    axes, n = layout.axes, layout.size
    g, normal = F.reshape(g, shape=layout.view), (F.reshape(data, shape=layout.view) - mean) * rstd
    scale = rstd
    weighted, outside = g, all(layout.gamma[a] == 1 for a in axes)  # gamma is the same in all of an average
    if gamma is not None:
        factor = F.reshape(gamma, shape=layout.gamma)
        if outside:
            scale = rstd * factor
        else:
            weighted = g * factor
    total, product = F.sum(weighted, axis=axes, keepdims=True), weighted * normal
    along = F.sum(product, axis=axes, keepdims=True)
    d_data = None
    if "data" in needs:
        d_data = F.reshape(scale * (weighted - (total + normal * along) / n), shape=data.shape)
    if not outside:
        total, along = g, g * normal
    rest = tuple(i for i, m in enumerate(layout.gamma) if m == 1)
    length = (math.prod(layout.gamma),)
    d_gamma = F.reshape(F.sum(along, axis=rest, keepdims=True), shape=length) if "gamma" in needs else None
    d_beta = F.reshape(F.sum(total, axis=rest, keepdims=True), shape=length) if "beta" in needs else None
    return d_data, d_gamma, d_beta


def mean_of(F: Any, layout: Layout, data: Any) -> Any:
    return F.mean(F.reshape(data, shape=layout.view), axis=layout.axes, keepdims=True)


def rstd_of(F: Any, layout: Layout, data: Any, eps: float) -> Any:
    centred = F.reshape(data, shape=layout.view) - mean_of(F, layout, data)
    return F.rsqrt(F.mean(F.square(centred), axis=layout.axes, keepdims=True) + eps)


def with_statistics(
    xp: Any, layout: Layout, data: Any, gamma: Any, beta: Any, eps: float, out: Any, mean: Any, deviation: Any,
    inverse: bool, use: Callable[[Any, Any, Any], list[Any]] | None = None,
) -> list[Any]:  # fmt: skip
    """C calls that fill out, mean and deviation: 1 / sqrt(variance + eps), or its inverse."""
    mu, rstd = xp.empty(layout.kept, mean.dtype), xp.empty(layout.kept, mean.dtype)
    steps = normalized(xp, layout, data, gamma, beta, eps, out, mu, rstd, use)
    if inverse:
        steps.append((xp.divide, 1, rstd, rstd))
    for given, made in ((mean, mu), (deviation, rstd)):
        steps.append((python_operator.setitem, given, ..., made.reshape(given.shape)))
    return steps


def statistics_gradients(
    F: Any, layout: Layout, g: tuple[Any, Any, Any], data: Any, gamma: Any, needs: Any, eps: float, inverse: bool
) -> tuple[Any, Any, Any]:
    g_out, g_mean, g_deviation = g
    mean, rstd = mean_of(F, layout, data), rstd_of(F, layout, data, eps)
    d_data, d_gamma, d_beta = gradients(F, layout, g_out, data, gamma, mean, rstd, needs)
    if d_data is not None:
        normal = (F.reshape(data, shape=layout.view) - mean) * rstd
        slope = normal if inverse else -normal * rstd * rstd
        more = F.reshape(g_mean, shape=layout.kept) + F.reshape(g_deviation, shape=layout.kept) * slope
        d_data = d_data + F.reshape(more / layout.size, shape=data.shape)
    return d_data, d_gamma, d_beta


# ---- LayerNorm, InstanceNorm, GroupNorm ------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Shape, int], Layout]] = {
    "layer": _layer,
    "instance": _instance,
    "group": _group,
}


def _normalize_infer(metas: Metas, attributes: Attributes) -> Inferred:
    layout, data, dtype = checked(metas, KINDS[attributes["kind"]], int(attributes["over"]))
    return (data, (layout.kept, dtype), (layout.kept, dtype)), attributes


_NORMALIZED = [
    Sample((2, 3), (3,), (3,), kind="layer", over=-1, eps=0.1),
    Sample((2, 3, 2), (3,), (3,), kind="layer", over=1, eps=0.1),
    Sample((2, 3, 4), (3,), (3,), kind="instance", eps=0.1),
    Sample((2, 4, 3), (2,), (2,), kind="group", over=2, eps=0.1),
]


@operator(
    "normalize",
    infer=_normalize_infer,
    atomic=True,
    cost=12,
    saves={
        "mean": lambda F, data, kind, over: mean_of(F, KINDS[kind](data.shape, over), data),
        "rstd": lambda F, data, kind, over, eps: rstd_of(F, KINDS[kind](data.shape, over), data, eps),
    },
    samples=_NORMALIZED,
    reference=lambda data, gamma, beta, kind, over=1, eps=1e-5: reference(
        KINDS[kind](data.shape, over), data, gamma, beta, eps
    )[0],
    nd=False,
)
def normalize(
    xp: Any, data: Any, gamma: Any, beta: Any, *, kind: str, over: int = 1, eps: float = 1e-5, out: Any, mean: Any,
    rstd: Any,
) -> Any:  # fmt: skip
    """LayerNorm over the axis `over`, InstanceNorm, or GroupNorm with `over` groups: kind layer, instance or group."""
    return normalized(xp, KINDS[kind](data.shape, over), data, gamma, beta, eps, out, mean, rstd)


def _normalize_gradient(
    F: Any, g: Any, data: Any, gamma: Any, mean: Any, rstd: Any, needs: Any, kind: str, over: int
) -> Any:
    return gradients(F, KINDS[kind](data.shape, over), g, data, gamma, mean, rstd, needs)


normalize.grad("data", "gamma", "beta")(_normalize_gradient)


def _normalize_statistics_infer(metas: Metas, attributes: Attributes) -> Inferred:
    layout, data, dtype = checked(metas, KINDS[attributes["kind"]], int(attributes["over"]))
    return (data, (layout.statistics, dtype), (layout.statistics, dtype)), attributes


def _reference_statistics(
    data: Any, gamma: Any, beta: Any, kind: str, over: int = 1, eps: float = 1e-5
) -> tuple[Any, Any, Any]:
    layout = KINDS[kind](data.shape, over)
    y, mean, variance = reference(layout, data, gamma, beta, eps)
    return y, mean.reshape(layout.statistics), np.sqrt(variance).reshape(layout.statistics)


@operator(
    "normalize_statistics",
    infer=_normalize_statistics_infer,
    atomic=True,
    cost=12,
    outputs=("out", "mean", "deviation"),
    samples=_NORMALIZED,
    reference=_reference_statistics,
    nd=False,
)
def normalize_statistics(
    xp: Any, data: Any, gamma: Any, beta: Any, *, kind: str, over: int = 1, eps: float = 1e-5, out: Any, mean: Any,
    deviation: Any,
) -> Any:  # fmt: skip
    """normalize, with the mean and sqrt(variance + eps)."""
    layout = KINDS[kind](data.shape, over)
    return with_statistics(xp, layout, data, gamma, beta, eps, out, mean, deviation, True)


def _normalize_statistics_gradient(
    F: Any, g_out: Any, g_mean: Any, g_deviation: Any, data: Any, gamma: Any, needs: Any, kind: str, over: int,
    eps: float,
) -> Any:  # fmt: skip
    layout = KINDS[kind](data.shape, over)
    return statistics_gradients(F, layout, (g_out, g_mean, g_deviation), data, gamma, needs, eps, True)


normalize_statistics.grad("data", "gamma", "beta")(_normalize_statistics_gradient)


def _kind(kind: str, over: str | None = None) -> Any:
    """The variant of a layer of this kind, whose attribute `over` says over what."""

    def variant(inputs: Sequence[Any], a: Attributes, training: bool) -> Any:
        op = normalize_statistics if a.get("output_mean_var") else normalize
        return op, inputs, {"kind": kind, "over": 1 if over is None else int(a[over]), "eps": float(a["eps"])}

    return variant


_LAYER = Rule(dtype="kernel", mixed=True, method=False)


@operator("LayerNorm", infer=spelling, variant=_kind("layer", "axis"), samples=[Sample((2, 3), (3,), (3,))], nd=_LAYER)
def layer_norm(
    xp: Any, data: Any, gamma: Any, beta: Any, *, axis: int = -1, eps: float = 1e-5, output_mean_var: bool = False,
    out: Any,
) -> None:  # fmt: skip
    """Normalise along one axis: (data - mean) / sqrt(variance + eps) * gamma + beta.

    data: any shape.   gamma, beta: the length of the axis.   output_mean_var: gives (result, mean,
    sqrt(variance + eps)).   Floating point.   Source: Ba et al. 2016; MXNet LayerNorm.
    """


@operator("InstanceNorm", infer=spelling, variant=_kind("instance"), samples=[Sample((2, 3, 4), (3,), (3,))], nd=_LAYER)
def instance_norm(xp: Any, data: Any, gamma: Any, beta: Any, *, eps: float = 1e-3, out: Any) -> None:
    """Normalise each channel of each instance over its positions.

    data: (n, channels, ...).   gamma, beta: (channels,).   Floating point.
    Source: Ulyanov et al. 2016; MXNet InstanceNorm.
    """


@operator(
    "GroupNorm",
    infer=spelling,
    variant=_kind("group", "num_groups"),
    samples=[Sample((2, 4, 3), (2,), (2,), num_groups=2)],
    nd=_LAYER,
)
def group_norm(
    xp: Any, data: Any, gamma: Any, beta: Any, *, num_groups: int = 1, eps: float = 1e-5,
    output_mean_var: bool = False, out: Any,
) -> None:  # fmt: skip
    """Normalise each group of channels of each instance.

    data: (n, channels, ...).   gamma, beta: (num_groups,), as MXNet 1.9 has them.   output_mean_var: gives (result,
    mean, sqrt(variance + eps)), the last two (n, num_groups).   Floating point.
    Source: Wu and He 2018; MXNet GroupNorm.
    """


# ---- over neighbouring channels --------------------------------------------------------------------------------------


def _channels(metas: Metas, attributes: Attributes) -> Inferred:
    (meta,) = metas
    assert meta is not None
    floating(meta)
    nsize = int(attributes["nsize"])
    if len(meta[0]) < 2 or nsize < 1 or nsize % 2 == 0:
        raise ValueError(f"nsize {nsize}: data (n, channels, ...) and an odd number expected")
    return (meta,), {**attributes, "nsize": nsize}


def _sums(x: Any, nsize: int, out: Any) -> list[Step]:
    steps: list[Step] = [(np.positive, x, out)]
    for i in range(1, min(nsize // 2 + 1, x.shape[1])):
        after, before = out[:, i:], out[:, :-i]
        steps += (np.add, after, x[:, :-i], after), (np.add, before, x[:, i:], before)
    return steps


def _slow_sums(x: Any, nsize: int) -> Any:
    half = nsize // 2
    padded = np.pad(x, [(half, half) if i == 1 else (0, 0) for i in range(x.ndim)])
    return sum(padded[:, i : i + x.shape[1]] for i in range(nsize))


@operator(
    "channel_sums",
    infer=_channels,
    nd=False,
    atomic=True,
    cost=4,
    samples=[Sample((2, 4, 3), nsize=3)],
    reference=_slow_sums,
)
def channel_sums(xp: Any, x: Any, *, nsize: int, out: Any) -> Any:
    """The sum of the `nsize` channels around each.   x: (n, channels, ...), floating point."""
    return _sums(x, nsize, out)


channel_sums.grad(x=lambda F, g, nsize: F.channel_sums(g, nsize=nsize))


@operator(
    "LRN", infer=_channels, atomic=True, cost=30, nd=Rule(method=False),
    samples=[Sample((2, 4, 3), alpha=0.5, nsize=3), Sample((1, 3, 2, 2), alpha=0.3, beta=0.5, knorm=1.0, nsize=5)],
    reference=lambda data, alpha=1e-4, beta=0.75, knorm=2.0, nsize=5: (
        data * (knorm + alpha / nsize * _slow_sums(data * data, nsize)) ** -beta
    ),
)  # fmt: skip
def lrn(
    xp: Any, data: Any, *, alpha: float = 1e-4, beta: float = 0.75, knorm: float = 2.0, nsize: int = 5, out: Any
) -> Any:
    """Local response normalization across channels: data / (knorm + alpha / nsize * sum of squares) ** beta.

    data: (n, channels, ...), floating point.   nsize: an odd number; the sum is over so many channels around each.
    Source: Krizhevsky et al. 2012.   MXNet: LRN.
    """
    squares, total = empty(xp, data.shape, data.dtype), empty(xp, data.shape, data.dtype)
    steps = [(xp.multiply, data, data, squares), *_sums(squares, nsize, total)]
    steps += (xp.multiply, total, alpha / nsize, total), (xp.add, total, knorm, total)
    if beta == 0.75:  # roots are quicker than powers
        steps += (xp.sqrt, total, total), (xp.sqrt, total, squares), (xp.multiply, total, squares, total)
        return [*steps, (xp.divide, data, total, out)]
    steps.append((xp.power, total, -beta, total))
    return [*steps, (xp.multiply, data, total, out)]


def _lrn_gradient(F: Any, g: Any, data: Any, alpha: float, beta: float, knorm: float, nsize: int) -> Any:
    total = F.channel_sums(data * data, nsize=nsize) * (alpha / nsize) + knorm
    power = total**-beta
    across = F.channel_sums(g * data * power / total, nsize=nsize)
    return g * power - data * across * (2 * alpha * beta / nsize)


lrn.grad(data=_lrn_gradient)
