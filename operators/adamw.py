"""AdamW: Adam with weight decay beside the adaptive step.  The scale of gradients is an operand of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine import ArgumentTypeError
from ..ndarray.array import Array
from ..ndarray.dtype import FLOAT32
from ..ndarray.ndarray import NDArray
from ..ndarray.reading import describe
from .faces import composed
from .infer import floating
from .push import invoke
from .schema import Attributes, Inferred, Metas, operator

STATES = ("mean", "var", "weight32")


def _infer(metas: Metas, attributes: Attributes) -> Inferred:
    weight, grad, rescale_grad, mean, var, master = metas
    assert weight is not None and rescale_grad is not None
    floating(weight, grad, rescale_grad, mean, var, master)
    if any(meta is not None and meta[0] != weight[0] for meta in (grad, mean, var, master)):
        raise ValueError("the same shape expected")
    kept = weight[1] if master is None else FLOAT32
    if (
        any(meta is not None and meta[1] != kept for meta in (mean, var, master))
        or grad is None
        or grad[1] != weight[1]
    ):
        raise TypeError(f"a gradient of {weight[1]} and states of {kept} expected")
    if rescale_grad[0] not in ((), (1,)):
        raise ValueError("rescale_grad: one number expected")
    return (weight,), {name: float(value) for name, value in attributes.items()}


@operator("adamw_step", infer=_infer, updates=STATES, nd=False, widen=False)
def adamw_step(
    xp: Any, weight: Any, grad: Any, rescale_grad: Any, mean: Any, var: Any, weight32: Any = None, *, lr: float,
    eta: float, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, wd: float = 0.0,
    clip_gradient: float = -1.0, out: Any,
) -> None:  # fmt: skip
    """The new weights; mean and var (and weight32) are changed, unless rescale_grad is 0 or no finite number."""
    before = weight if weight32 is None else weight32
    scale = rescale_grad.reshape(-1)[0]
    if not np.isfinite(scale) or scale == 0:
        out[...] = before
        return
    g = grad.astype(before.dtype) * before.dtype.type(scale)
    if clip_gradient >= 0:
        g = g.clip(-clip_gradient, clip_gradient)
    mean *= beta1
    mean += (1 - beta1) * g
    var *= beta2
    var += (1 - beta2) * g * g
    after = before - eta * (lr * mean / (xp.sqrt(var) + epsilon) + wd * before)
    if weight32 is not None:
        weight32[...] = after
    out[...] = after


def _update(name: str, arrays: dict[str, Any], rescale_grad: Any, attributes: Attributes, out: Any) -> Any:
    for what, array in arrays.items():
        if not isinstance(array, Array):
            raise ArgumentTypeError(f"[{name}] {what} {describe(array)}: an array expected")
    if not isinstance(rescale_grad, Array):
        rescale_grad = NDArray._from_host(np.array([rescale_grad], FLOAT32), arrays["weight"].context)
    weight, grad, *states = arrays.values()
    inputs = [weight, grad, rescale_grad, *states]
    return invoke(adamw_step, inputs + [None] * (6 - len(inputs)), adamw_step.bind(attributes), out, cls=NDArray)


@composed(space="contrib")
def adamw_update(
    weight: Any, grad: Any, mean: Any, var: Any, rescale_grad: Any, lr: float, eta: float, beta1: float = 0.9,
    beta2: float = 0.999, epsilon: float = 1e-8, wd: float = 0.0, clip_gradient: float = -1.0, out: Any = None,
    name: Any = None,
) -> Any:  # fmt: skip
    """AdamW: weight - eta (lr mean / (sqrt(var) + epsilon) + wd weight).

    g = grad * rescale_grad, limited to clip_gradient if that is 0 or more; mean = beta1 mean + (1 - beta1) g,
    var = beta2 var + (1 - beta2) g**2, changed in place.   rescale_grad: a number, or an array of one; where it is 0 or
    not finite nothing changes.   Never blocks.   Source: Loshchilov and Hutter 2019.   MXNet: contrib.adamw_update.
    """
    arrays = {"weight": weight, "grad": grad, "mean": mean, "var": var}
    numbers = {"lr": lr, "eta": eta, "beta1": beta1, "beta2": beta2, "epsilon": epsilon, "wd": wd}
    return _update("adamw_update", arrays, rescale_grad, {**numbers, "clip_gradient": clip_gradient}, out)


@composed(space="contrib")
def mp_adamw_update(
    weight: Any, grad: Any, mean: Any, var: Any, weight32: Any, rescale_grad: Any, lr: float, eta: float,
    beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8, wd: float = 0.0, clip_gradient: float = -1.0,
    out: Any = None, name: Any = None,
) -> Any:  # fmt: skip
    """`adamw_update` of weight32 (float32, changed in place as mean and var are); gives it in the weights' dtype."""
    arrays = {"weight": weight, "grad": grad, "mean": mean, "var": var, "weight32": weight32}
    numbers = {"lr": lr, "eta": eta, "beta1": beta1, "beta2": beta2, "epsilon": epsilon, "wd": wd}
    return _update("mp_adamw_update", arrays, rescale_grad, {**numbers, "clip_gradient": clip_gradient}, out)
