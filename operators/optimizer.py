"""Updates of weights: what a training loop runs after backward.

A call changes the states of the optimizer in place and gives the new weights, usually into the weights themselves:
``out=weight``.  All arrays have the shape of the weights.  All are C calls in place with few temporaries.

In the formulas g is the gradient: grad * rescale_grad, limited to [-clip_gradient, clip_gradient] if that is 0 or more,
with weight decay, wd * weight, added after the limiting or, where the docs say so, before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .faces import Rule
from .infer import floating, uniform
from .schema import Attributes, Inferred, Metas, Operator, Sample, call_into, operator

Steps = list[Any]


def _like_weight(metas: Metas, attributes: Attributes) -> Inferred:
    weight = metas[0]
    assert weight is not None
    uniform(*metas)
    floating(weight)
    if any(meta is None or meta[0] != weight[0] for meta in metas):
        raise ValueError("the same shape expected")
    return (weight,), attributes


def _update(
    name: str, *states: str, rule: Rule | None = None, **attributes: Any
) -> Callable[[Callable[..., Any]], Operator]:
    """Declare an update with these states."""
    sample = [(2, 3)] * (2 + len(states))
    return operator(
        name,
        infer=_like_weight,
        updates=states,
        elementwise=True,
        atomic=True,
        widen=True,
        cost=4 + 4 * len(states),
        samples=[
            Sample(*sample, low=0.1, **attributes),
            Sample(*sample, low=0.1, wd=0.1, rescale_grad=0.5, clip_gradient=0.2, **attributes),
        ],
        nd=rule or Rule(method=False),
    )


DENSE = Rule(method=False, ignore=("lazy_update",))  # lazy updates are of row-sparse gradients


def _limited(xp: Any, x: Any, limit: float) -> Steps:
    """x limited to [-limit, limit], in place; a negative limit is none."""
    return [] if limit < 0 else [call_into(xp.maximum, x, -limit, out=x), call_into(xp.minimum, x, limit, out=x)]


def _gradient(xp: Any, grad: Any, weight: Any, rescale: float, limit: float, before: float, after: float) -> Any:
    """(C calls, g): grad, rescaled, plus `before` times weight, limited, plus `after` times weight."""
    g = xp.empty_like(grad)
    steps: Steps = [(xp.multiply, grad, rescale, g)]
    decay = xp.empty_like(grad) if before or after else None
    if before:
        steps += (xp.multiply, weight, before, decay), (xp.add, g, decay, g)
    steps += _limited(xp, g, limit)
    if after:
        steps += (xp.multiply, weight, after, decay), (xp.add, g, decay, g)
    return steps, g


def _average(xp: Any, state: Any, rate: float, g: Any, t: Any, *, squared: bool = False) -> Steps:
    """state = rate * state + (1 - rate) * g, or of g * g; t is overwritten."""
    steps: Steps = [(xp.multiply, state, rate, state)]
    if squared:
        steps += (xp.multiply, g, g, t), (xp.multiply, t, 1 - rate, t)
    else:
        steps.append((xp.multiply, g, 1 - rate, t))
    return [*steps, (xp.add, state, t, state)]


# ---- gradient descent ------------------------------------------------------------------------------------------------


@_update("sgd_update", lr=0.1, rule=DENSE)
def sgd_update(
    xp: Any, weight: Any, grad: Any, *, lr: float, wd: float = 0.0, rescale_grad: float = 1.0,
    clip_gradient: float = -1.0, out: Any,
) -> Any:  # fmt: skip
    """weight - lr g."""
    if clip_gradient < 0:  # weight (1 - lr wd) - lr rescale_grad grad
        t = xp.empty_like(grad)
        steps: Steps = [(xp.multiply, grad, lr * rescale_grad, t)]
        kept = weight if wd == 0 else out
        if wd:
            steps.append((xp.multiply, weight, 1 - lr * wd, out))
        return [*steps, (xp.subtract, kept, t, out)]
    steps, g = _gradient(xp, grad, weight, rescale_grad, clip_gradient, 0, wd)
    return [*steps, (xp.multiply, g, lr, g), (xp.subtract, weight, g, out)]


@_update("sgd_mom_update", "mom", lr=0.1, momentum=0.9, rule=DENSE)
def sgd_mom_update(
    xp: Any, weight: Any, grad: Any, mom: Any, *, lr: float, momentum: float = 0.0, wd: float = 0.0,
    rescale_grad: float = 1.0, clip_gradient: float = -1.0, out: Any,
) -> Any:  # fmt: skip
    """mom = momentum mom - lr g;  weight + mom."""
    steps, g = _gradient(xp, grad, weight, rescale_grad, clip_gradient, 0, wd)
    steps += (xp.multiply, g, lr, g), (xp.multiply, mom, momentum, mom), (xp.subtract, mom, g, mom)
    return [*steps, (xp.add, weight, mom, out)]


@_update("nag_mom_update", "mom", lr=0.1, momentum=0.9)
def nag_mom_update(
    xp: Any, weight: Any, grad: Any, mom: Any, *, lr: float, momentum: float = 0.0, wd: float = 0.0,
    rescale_grad: float = 1.0, clip_gradient: float = -1.0, out: Any,
) -> Any:  # fmt: skip
    """mom = momentum mom - lr g;  weight + momentum mom - lr g.  Source: Nesterov 1983."""
    steps, g = _gradient(xp, grad, weight, rescale_grad, clip_gradient, 0, wd)
    steps += (xp.multiply, g, lr, g), (xp.multiply, mom, momentum, mom), (xp.subtract, mom, g, mom)
    t = xp.empty_like(g)
    return [*steps, (xp.multiply, mom, momentum, t), (xp.subtract, t, g, t), (xp.add, weight, t, out)]


@_update("signsgd_update", lr=0.1)
def signsgd_update(
    xp: Any, weight: Any, grad: Any, *, lr: float, wd: float = 0.0, rescale_grad: float = 1.0,
    clip_gradient: float = -1.0, out: Any,
) -> Any:  # fmt: skip
    """(1 - lr wd) weight - lr sign(rescale_grad grad).  Source: Bernstein et al. 2018."""
    t = xp.empty_like(grad)
    steps: Steps = [(xp.multiply, grad, rescale_grad, t), (xp.sign, t, t), (xp.multiply, t, lr, t)]
    return [*steps, (xp.multiply, weight, 1 - lr * wd, out), (xp.subtract, out, t, out)]


@_update("signum_update", "mom", lr=0.1, momentum=0.9)
def signum_update(
    xp: Any, weight: Any, grad: Any, mom: Any, *, lr: float, momentum: float = 0.0, wd: float = 0.0,
    rescale_grad: float = 1.0, clip_gradient: float = -1.0, wd_lh: float = 0.0, out: Any,
) -> Any:  # fmt: skip
    """mom = momentum mom - (1 - momentum) g;  (1 - lr wd_lh) weight + lr sign(mom).  Source: Bernstein et al. 2018."""
    steps, g = _gradient(xp, grad, weight, rescale_grad, clip_gradient, 0, wd)
    steps += (xp.multiply, g, 1 - momentum, g), (xp.multiply, mom, momentum, mom), (xp.subtract, mom, g, mom)
    steps += (xp.sign, mom, g), (xp.multiply, g, lr, g), (xp.multiply, weight, 1 - lr * wd_lh, out)
    return [*steps, (xp.add, out, g, out)]


# ---- with averages of the squared gradient ---------------------------------------------------------------------------


@_update("adam_update", "mean", "var", lr=0.1, rule=DENSE)
def adam_update(
    xp: Any, weight: Any, grad: Any, mean: Any, var: Any, *, lr: float, beta1: float = 0.9, beta2: float = 0.999,
    epsilon: float = 1e-8, wd: float = 0.0, rescale_grad: float = 1.0, clip_gradient: float = -1.0, out: Any,
) -> Any:  # fmt: skip
    """mean = beta1 mean + (1 - beta1) g;  var = beta2 var + (1 - beta2) g^2;  weight - lr mean / (sqrt(var) + epsilon).

    Weight decay is added to g before the limiting.  The caller corrects the bias in lr.   Source: Kingma and Ba 2014.
    """
    steps, g = _gradient(xp, grad, weight, rescale_grad, clip_gradient, wd, 0)
    t = xp.empty_like(g)
    steps += _average(xp, mean, beta1, g, t)
    steps += _average(xp, var, beta2, g, t, squared=True)
    steps += (xp.sqrt, var, t), (xp.add, t, epsilon, t), (xp.divide, mean, t, t), (xp.multiply, t, lr, t)
    return [*steps, (xp.subtract, weight, t, out)]


@_update("rmsprop_update", "n", lr=0.1)
def rmsprop_update(
    xp: Any, weight: Any, grad: Any, n: Any, *, lr: float, gamma1: float = 0.95, epsilon: float = 1e-8, wd: float = 0.0,
    rescale_grad: float = 1.0, clip_gradient: float = -1.0, clip_weights: float = -1.0, out: Any,
) -> Any:  # fmt: skip
    """n = gamma1 n + (1 - gamma1) g^2;  weight - lr g / sqrt(n + epsilon), limited to [-clip_weights, clip_weights].

    Weight decay is added to g before the limiting.   Source: Tieleman and Hinton 2012.
    """
    steps, g = _gradient(xp, grad, weight, rescale_grad, clip_gradient, wd, 0)
    t = xp.empty_like(g)
    steps += _average(xp, n, gamma1, g, t, squared=True)
    steps += (xp.add, n, epsilon, t), (xp.sqrt, t, t), (xp.divide, g, t, t), (xp.multiply, t, lr, t)
    return [*steps, (xp.subtract, weight, t, out), *_limited(xp, out, clip_weights)]


@_update("rmspropalex_update", "n", "g", "delta", lr=0.1)
def rmspropalex_update(
    xp: Any, weight: Any, grad: Any, n: Any, g: Any, delta: Any, *, lr: float, gamma1: float = 0.95,
    gamma2: float = 0.9, epsilon: float = 1e-8, wd: float = 0.0, rescale_grad: float = 1.0,
    clip_gradient: float = -1.0, clip_weights: float = -1.0, out: Any,
) -> Any:  # fmt: skip
    """n = gamma1 n + (1 - gamma1) h^2;  g = gamma1 g + (1 - gamma1) h, with h the gradient;
    delta = gamma2 delta - lr h / sqrt(n - g^2 + epsilon);  weight + delta, limited to [-clip_weights, clip_weights].

    Weight decay is added to h before the limiting.   Source: Graves 2013.
    """
    steps, h = _gradient(xp, grad, weight, rescale_grad, clip_gradient, wd, 0)
    t = xp.empty_like(h)
    steps += _average(xp, n, gamma1, h, t, squared=True)
    steps += _average(xp, g, gamma1, h, t)
    steps += (xp.multiply, g, g, t), (xp.subtract, n, t, t), (xp.add, t, epsilon, t), (xp.sqrt, t, t)
    steps += (xp.divide, h, t, t), (xp.multiply, t, lr, t), (xp.multiply, delta, gamma2, delta)
    steps += (xp.subtract, delta, t, delta), (xp.add, weight, delta, out)
    return [*steps, *_limited(xp, out, clip_weights)]


@_update("ftrl_update", "z", "n", lr=0.1)
def ftrl_update(
    xp: Any, weight: Any, grad: Any, z: Any, n: Any, *, lr: float, lamda1: float = 0.01, beta: float = 1.0,
    wd: float = 0.0, rescale_grad: float = 1.0, clip_gradient: float = -1.0, out: Any,
) -> Any:  # fmt: skip
    """z += g - (sqrt(n + g^2) - sqrt(n)) weight / lr;  n += g^2, g without weight decay;
    -sign(z) max(|z| - lamda1, 0) / ((beta + sqrt(n)) / lr + wd).

    Source: McMahan et al. 2013.
    """
    steps, g = _gradient(xp, grad, weight, rescale_grad, clip_gradient, 0, 0)
    t, root = xp.empty_like(g), xp.empty_like(g)
    steps += (xp.add, z, g, z), (xp.sqrt, n, t), (xp.multiply, g, g, g), (xp.add, n, g, n), (xp.sqrt, n, root)
    steps += (xp.subtract, root, t, t), (xp.multiply, t, weight, t), (xp.divide, t, lr, t), (xp.subtract, z, t, z)
    steps += (xp.absolute, z, t), (xp.subtract, t, lamda1, t), call_into(xp.maximum, t, 0, out=t), (xp.sign, z, g)
    steps += (
        (xp.multiply, t, g, t),
        (xp.add, root, beta, root),
        (xp.divide, root, -lr, root),
        (xp.subtract, root, wd, root),
    )
    return [*steps, (xp.divide, t, root, out)]


@operator(
    "ftml_update", infer=_like_weight, updates=("d", "v", "z"), elementwise=True, atomic=True, cost=16,
    samples=[Sample(*[(2, 3)] * 5, low=0.1, lr=0.1, t=2)], nd=Rule(method=False),
)  # fmt: skip
def ftml_update(
    xp: Any, weight: Any, grad: Any, d: Any, v: Any, z: Any, *, lr: float, beta1: float = 0.6, beta2: float = 0.999,
    epsilon: float = 1e-8, t: int, wd: float = 0.0, rescale_grad: float = 1.0, clip_grad: float = -1.0, out: Any,
) -> Any:  # fmt: skip
    """v = beta2 v + (1 - beta2) g^2;  e = (1 - beta1^t) / lr (sqrt(v / (1 - beta2^t)) + epsilon);
    z = beta1 z + (1 - beta1) g - (e - beta1 d) weight;  d = e;  -z / d.

    t: the number of this update, from 1.   Weight decay is added to g before the limiting.
    Source: Zheng and Kwok 2017.
    """
    steps, g = _gradient(xp, grad, weight, rescale_grad, clip_grad, wd, 0)
    s, e = xp.empty_like(g), xp.empty_like(g)
    steps += _average(xp, v, beta2, g, s, squared=True)
    steps += (xp.divide, v, 1 - beta2**t, e), (xp.sqrt, e, e), (xp.add, e, epsilon, e)
    steps += ((xp.multiply, e, (1 - beta1**t) / lr, e),)
    steps += _average(xp, z, beta1, g, s)
    steps += (xp.multiply, d, beta1, d), (xp.subtract, e, d, d), (xp.multiply, d, weight, d), (xp.subtract, z, d, z)
    return [*steps, (xp.positive, e, d), (xp.divide, z, d, out), (xp.negative, out, out)]


# ---- LAMB ------------------------------------------------------------------------------------------------------------


@operator(
    "lamb_update_phase1", infer=_like_weight, updates=("mean", "var"), atomic=True, elementwise=True, cost=16,
    samples=[
        Sample(*[(2, 3)] * 4, low=0.1, t=2, wd=0.1),
        Sample(*[(2, 3)] * 4, low=0.1, t=1, wd=0, bias_correction=False),
    ],
    nd=Rule(method=False),
)  # fmt: skip
def lamb_update_phase1(
    xp: Any, weight: Any, grad: Any, mean: Any, var: Any, *, beta1: float = 0.9, beta2: float = 0.999,
    epsilon: float = 1e-6, t: int, bias_correction: bool = True, wd: float, rescale_grad: float = 1.0,
    clip_gradient: float = -1.0, out: Any,
) -> Any:  # fmt: skip
    """mean and var as adam_update;  mean / (sqrt(var) + epsilon) + wd weight, the direction of LAMB.

    g has no weight decay.   t: the number of this update, from 1; bias_correction divides mean by 1 - beta1^t and var
    by 1 - beta2^t first.   Source: You et al. 2019.
    """
    steps, g = _gradient(xp, grad, weight, rescale_grad, clip_gradient, 0, 0)
    s = xp.empty_like(g)
    steps += _average(xp, mean, beta1, g, s)
    steps += _average(xp, var, beta2, g, s, squared=True)
    first, second = (1 - beta1**t, 1 - beta2**t) if bias_correction else (1.0, 1.0)
    steps += (xp.divide, var, second, s), (xp.sqrt, s, s), (xp.add, s, epsilon, s)
    steps += (xp.divide, mean, s, s), (xp.divide, s, first, s), (xp.multiply, weight, wd, g)
    return [*steps, (xp.add, s, g, out)]


def _phase2(metas: Metas, attributes: Attributes) -> Inferred:
    weight, g, *norms = metas
    if any(meta is None or math.prod(meta[0]) != 1 for meta in norms):
        raise ValueError("r1 and r2 of one element expected")
    uniform(*metas)
    return _like_weight((weight, g), attributes)


@operator(
    "lamb_update_phase2", infer=_phase2, elementwise=True, atomic=True, cost=4,
    samples=[Sample((2, 3), (2, 3), (1,), (1,), low=0.1, lr=0.1, lower_bound=0.2, upper_bound=0.8)],
    nd=Rule(method=False),
)  # fmt: skip
def lamb_update_phase2(
    xp: Any, weight: Any, g: Any, r1: Any, r2: Any, *, lr: float, lower_bound: float = -1.0, upper_bound: float = -1.0,
    out: Any,
) -> Any:  # fmt: skip
    """weight - lr ratio g;  ratio = r1 / r2, r1 limited to the bounds, or 1 if r1 or r2 is 0.

    r1, r2: (1,), the norms of weight and g.   A negative bound is none.   Source: You et al. 2019.
    """
    norm = r1.copy()
    if lower_bound >= 0:
        xp.maximum(norm, lower_bound, out=norm)
    if upper_bound >= 0:
        xp.minimum(norm, upper_bound, out=norm)
    rate = xp.where((norm != 0) & (r2 != 0), norm / r2, 1).astype(norm.dtype) * lr
    t = xp.empty_like(g)
    return (xp.multiply, g, rate.reshape(()), t), (xp.subtract, weight, t, out)
