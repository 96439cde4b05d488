"""BatchNorm: with the statistics of the batch, which change the moving ones, or with the moving ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ndarray.shape import Shape
from .faces import Rule
from .infer import normal_axis
from .nn import spelling
from .normalization import (
    Layout,
    checked,
    gradients,
    mean_of,
    normalized,
    only,
    reference,
    rstd_of,
    statistics_gradients,
    with_statistics,
)
from .schema import Attributes, Inferred, Metas, Sample, operator

MOMENTUM = 0.9
CALIBRATION = ("cudnn_off", "min_calib_range", "max_calib_range")


def _batch(shape: Shape, axis: int) -> Layout:
    axis = normal_axis(axis, len(shape))
    return Layout(shape, tuple(i for i in range(len(shape)) if i != axis), only(shape, axis), (shape[axis],))


def _batch_infer(metas: Metas, attributes: Attributes) -> Inferred:
    layout, data, dtype = checked(metas, _batch, attributes["axis"])
    attributes = {**attributes, "axis": normal_axis(attributes["axis"], len(data[0]))}
    return (data, (layout.kept, dtype), (layout.kept, dtype)), attributes


_BATCH = ((3,), (3,), (3,), (3,))


def _moving(xp: Any, moving_mean: Any, moving_var: Any, momentum: float) -> Callable[[Any, Any, Any], list[Any]]:
    """See `use` of _normalized: the moving statistics go towards those of the batch."""

    def steps(mean: Any, variance: Any, memory: Any) -> list[Any]:
        part, made = memory.reshape(-1), []
        for moving, new in ((moving_mean, mean.reshape(-1)), (moving_var, variance.reshape(-1))):
            made += [(xp.multiply, new, 1 - momentum, part), (xp.multiply, moving, momentum, moving)]
            made.append((xp.add, moving, part, moving))
        return made

    return steps


def _reference(
    data: Any, gamma: Any, beta: Any, moving_mean: Any, moving_var: Any, eps: float = 1e-3, fix_gamma: bool = False,
    axis: int = 1, frozen: bool = False,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """(result, mean, 1 / sqrt(variance + eps)) by NumPy."""
    layout = _batch(data.shape, axis)
    gamma = np.ones_like(gamma) if fix_gamma else gamma
    if not frozen:
        y, mean, variance = reference(layout, data, gamma, beta, eps)
        return y, mean.reshape(-1), 1 / np.sqrt(variance).reshape(-1)
    across = (moving_mean, moving_var + eps, gamma, beta)
    mean, variance, scale, shift = (vector.reshape(layout.gamma) for vector in across)
    return (data - mean) / np.sqrt(variance) * scale + shift, moving_mean, 1 / np.sqrt(moving_var + eps)


@operator(
    "batch_norm",
    infer=_batch_infer,
    atomic=True,
    cost=12,
    updates=("moving_mean", "moving_var"),
    saves={
        "mean": lambda F, data, axis: mean_of(F, _batch(data.shape, axis), data),
        "rstd": lambda F, data, axis, eps: rstd_of(F, _batch(data.shape, axis), data, eps),
    },
    samples=[
        Sample((4, 3), *_BATCH, low=0.1, eps=0.1),
        Sample((2, 2, 3), *_BATCH, low=0.1, axis=2, fix_gamma=True),
    ],
    reference=lambda *inputs, **attributes: _reference(*inputs, **attributes)[0],
    nd=False,
)
def batch_norm(
    xp: Any, data: Any, gamma: Any, beta: Any, moving_mean: Any, moving_var: Any, *, eps: float = 1e-3,
    momentum: float = MOMENTUM, fix_gamma: bool = False, axis: int = 1, out: Any, mean: Any, rstd: Any,
) -> Any:  # fmt: skip
    """Normalise each channel by the mean and the variance of this batch, and move the moving ones towards them.

    Shapes and attributes as BatchNorm.
    """
    layout, move = _batch(data.shape, axis), _moving(xp, moving_mean, moving_var, momentum)
    return normalized(xp, layout, data, None if fix_gamma else gamma, beta, eps, out, mean, rstd, move)


def _batch_norm_gradient(
    F: Any, g: Any, data: Any, gamma: Any, mean: Any, rstd: Any, needs: Any, axis: int, fix_gamma: bool
) -> Any:
    layout = _batch(data.shape, axis)
    found = gradients(F, layout, g, data, None if fix_gamma else gamma, mean, rstd, needs)
    return (found[0], F.zeros_like(gamma) if fix_gamma else found[1], found[2])


batch_norm.grad("data", "gamma", "beta")(_batch_norm_gradient)


def _frozen_infer(metas: Metas, attributes: Attributes) -> Inferred:
    (data, *_), attributes = _batch_infer(metas, attributes)
    return (data,), attributes


@operator(
    "batch_norm_frozen",
    infer=_frozen_infer,
    atomic=True,
    cost=4,
    samples=[Sample((4, 3), *_BATCH, low=0.1), Sample((2, 2, 3), *_BATCH, low=0.1, axis=2, fix_gamma=True)],
    reference=lambda *inputs, **attributes: _reference(*inputs, **attributes | {"frozen": True})[0],
    nd=False,
)
def batch_norm_frozen(
    xp: Any, data: Any, gamma: Any, beta: Any, moving_mean: Any, moving_var: Any, *, eps: float = 1e-3,
    fix_gamma: bool = False, axis: int = 1, out: Any,
) -> Any:  # fmt: skip
    """Normalise each channel by the moving mean and variance.  Shapes and attributes as BatchNorm."""
    scale, shift = xp.empty_like(moving_var), xp.empty_like(beta)
    steps = [(xp.add, moving_var, eps, scale), (xp.sqrt, scale, scale)]
    steps.append((xp.divide, 1 if fix_gamma else gamma, scale, scale))
    steps += [(xp.multiply, moving_mean, scale, shift), (xp.subtract, beta, shift, shift)]
    shape = only(data.shape, axis)
    steps.append((xp.multiply, data, scale.reshape(shape), out))
    return [*steps, (xp.add, out, shift.reshape(shape), out)]


def _across(F: Any, vector: Any, like: Shape, axis: int) -> Any:
    return F.reshape(vector, shape=only(like, axis))


def _frozen_data(F: Any, g: Any, gamma: Any, moving_var: Any, eps: float, fix_gamma: bool, axis: int) -> Any:
    scale = F.rsqrt(moving_var + eps)
    return g * _across(F, scale if fix_gamma else scale * gamma, g.shape, axis)


def _frozen_gamma(
    F: Any, g: Any, data: Any, moving_mean: Any, moving_var: Any, eps: float, fix_gamma: bool, axis: int
) -> Any:
    if fix_gamma:
        return F.zeros_like(moving_mean)
    shape, axes = g.shape, _batch(g.shape, axis).axes
    normal = (data - _across(F, moving_mean, shape, axis)) * _across(F, F.rsqrt(moving_var + eps), shape, axis)
    return F.sum(g * normal, axis=axes)


def _frozen_statistics(
    F: Any, g: Any, data: Any, gamma: Any, moving_mean: Any, moving_var: Any, eps: float, fix_gamma: bool, axis: int,
    needs: Any,
) -> Any:  # fmt: skip
    rstd = F.rsqrt(moving_var + eps)
    scale = rstd if fix_gamma else rstd * gamma
    d_mean = -_frozen_beta(F, g, axis) * scale
    if "moving_var" not in needs:
        return d_mean, None
    centred = data - _across(F, moving_mean, g.shape, axis)
    return d_mean, F.sum(g * centred, axis=_batch(g.shape, axis).axes) * scale * rstd * rstd * -0.5


def _frozen_beta(F: Any, g: Any, axis: int) -> Any:
    return F.sum(g, axis=_batch(g.shape, axis).axes)


batch_norm_frozen.grad(data=_frozen_data, gamma=_frozen_gamma, beta=_frozen_beta)
batch_norm_frozen.grad("moving_mean", "moving_var")(_frozen_statistics)


def _batch_statistics_infer(metas: Metas, attributes: Attributes) -> Inferred:
    (data, mean, _), attributes = _batch_infer(metas, attributes)
    assert data is not None and mean is not None
    statistics = (data[0][attributes["axis"]],), mean[1]
    return (data, statistics, statistics), attributes


@operator(
    "batch_norm_statistics",
    infer=_batch_statistics_infer,
    atomic=True,
    cost=12,
    outputs=("out", "mean", "deviation"),
    updates=("moving_mean", "moving_var"),
    samples=[Sample((4, 3), *_BATCH, low=0.1, eps=0.1, frozen=frozen) for frozen in (False, True)],
    reference=_reference,
    nd=False,
)
def batch_norm_statistics(
    xp: Any, data: Any, gamma: Any, beta: Any, moving_mean: Any, moving_var: Any, *, eps: float = 1e-3,
    momentum: float = MOMENTUM, fix_gamma: bool = False, axis: int = 1, frozen: bool = False, out: Any, mean: Any,
    deviation: Any,
) -> Any:  # fmt: skip
    """batch_norm, or batch_norm_frozen, with the mean and 1 / sqrt(variance + eps) that were used, each (channels,)."""
    given = data, gamma, beta, moving_mean, moving_var
    if frozen:
        steps = batch_norm_frozen.kernel(xp, *given, eps=eps, fix_gamma=fix_gamma, axis=axis, out=out)
        steps += [(xp.positive, moving_mean, mean), (xp.add, moving_var, eps, deviation)]
        return [*steps, (xp.sqrt, deviation, deviation), (xp.divide, 1, deviation, deviation)]
    layout, move = _batch(data.shape, axis), _moving(xp, moving_mean, moving_var, momentum)
    scale = None if fix_gamma else gamma
    return with_statistics(xp, layout, data, scale, beta, eps, out, mean, deviation, False, move)


def _batch_statistics_gradient(
    F: Any, g_out: Any, g_mean: Any, g_deviation: Any, data: Any, gamma: Any, moving_mean: Any, moving_var: Any,
    needs: Any, eps: float, fix_gamma: bool, axis: int, frozen: bool,
) -> Any:  # fmt: skip
    if frozen:
        return (
            _frozen_data(F, g_out, gamma, moving_var, eps, fix_gamma, axis),
            _frozen_gamma(F, g_out, data, moving_mean, moving_var, eps, fix_gamma, axis),
            _frozen_beta(F, g_out, axis),
        )
    layout, scale = _batch(data.shape, axis), None if fix_gamma else gamma
    found = statistics_gradients(F, layout, (g_out, g_mean, g_deviation), data, scale, needs, eps, False)
    return (found[0], F.zeros_like(gamma) if fix_gamma else found[1], found[2])


batch_norm_statistics.grad("data", "gamma", "beta")(_batch_statistics_gradient)


def _batch_variant(inputs: Sequence[Any], a: Attributes, training: bool) -> Any:
    frozen = bool(a["use_global_stats"]) or not training
    shared = {"eps": float(a["eps"]), "fix_gamma": bool(a["fix_gamma"]), "axis": a["axis"]}
    momentum = {"momentum": float(a["momentum"])}
    if a["output_mean_var"]:
        return batch_norm_statistics, inputs, {**shared, **momentum, "frozen": frozen}
    return (batch_norm_frozen, inputs, shared) if frozen else (batch_norm, inputs, {**shared, **momentum})


@operator(
    "BatchNorm",
    aliases=("BatchNorm_v1",),
    infer=spelling,
    variant=_batch_variant,
    updates=("moving_mean", "moving_var"),
    samples=[
        Sample((4, 3), *_BATCH, low=0.1, fix_gamma=False),
        Sample((2, 2, 3), *_BATCH, low=0.1, axis=-1, use_global_stats=True),
    ],
    nd=Rule(dtype="kernel", mixed=True, ignore=CALIBRATION, method=False),
)
def batch_norm_layer(
    xp: Any, data: Any, gamma: Any, beta: Any, moving_mean: Any, moving_var: Any, *, eps: float = 1e-3,
    momentum: float = MOMENTUM, fix_gamma: bool = True, use_global_stats: bool = False, output_mean_var: bool = False,
    axis: int = 1, out: Any,
) -> None:  # fmt: skip
    """Normalise each channel: (data - mean) / sqrt(variance + eps) * gamma + beta.

    data: any shape, the channels on `axis`.   gamma, beta, moving_mean, moving_var: (channels,).
    In training mode mean and variance (with divisor n) are those of the data, and the forward operation changes
    moving = momentum moving + (1 - momentum) new; in predict mode, or with use_global_stats, they are the moving ones.
    fix_gamma takes gamma as 1, and its gradient is 0.   output_mean_var: gives (result, mean, 1 / sqrt(variance +
    eps)), the last two (channels,).   Floating point; data may be of 16 bits beside float32.
    Source: Ioffe and Szegedy 2015; MXNet BatchNorm.
    """
