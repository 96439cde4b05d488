"""Updates of weights: what a training loop runs after backward.

A call changes the states of the optimizer in place and gives the new weights, usually into the weights themselves:
``out=weight``.  All arrays have the shape of the weights.  Each is one pass over them (see optimizer_tiles.py).

In the formulas g is the gradient: grad * rescale_grad, limited to [-clip_gradient, clip_gradient] if that is 0 or more,
with weight decay, wd * weight, added after the limiting or, where the docs say so, before.

Those that begin with mp_ take and give weights of few bits and keep them in float32, `weight32`, as the states are.

MXNet 1.9.1 differs in two places.  Its nag_mom_update with weight decay and ``out=weight`` takes the decay for mom from
the weights it has just written; here `out` makes no difference.  Its mp_lamb_update_phase2 leaves weight32 as it was,
so that weights never get further than one step; here weight32 is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..ndarray.array import Array
from ..ndarray.dtype import FLOAT32
from .faces import Adapt, Rule
from .infer import floating, uniform
from .optimizer_tiles import Calls, Formula, by_parts, mixed_by_parts
from .schema import Attributes, Inferred, Metas, Operator, Sample, registry

DENSE = ("lazy_update",)  # lazy updates are of row-sparse gradients


def _like_weight(metas: Metas, attributes: Attributes) -> Inferred:
    weight = metas[0]
    assert weight is not None
    uniform(*metas)
    floating(weight)
    if any(meta is None or meta[0] != weight[0] for meta in metas):
        raise ValueError("the same shape expected")
    return (weight,), attributes


def _with_master(metas: Metas, attributes: Attributes) -> Inferred:
    weight, grad, *kept = metas
    uniform(weight, grad)
    _like_master((grad, *kept))
    return (weight,), attributes


def _like_master(metas: Metas) -> None:
    grad, *kept = metas
    assert grad is not None
    floating(grad)
    for meta in kept:
        if meta is None or meta[1] != FLOAT32:
            raise TypeError("states and weight32 of float32 expected")
        if meta[0] != grad[0]:
            raise ValueError("the same shape expected")


def _changes(names: Sequence[str], positions: Sequence[int]) -> Adapt:
    """Refuses what is no array where an array is to be changed: NumPy's would be copied first."""

    def adapt(inputs: list[Any], attributes: Attributes) -> None:
        for name, i in zip(names, positions, strict=True):
            if not isinstance(inputs[i], Array):
                raise TypeError(f"{name} is changed in place: an array expected")

    return adapt


def _declare(
    formula: Formula, *states: str, sample: Sequence[Sample], infer: Any = _like_weight, ignore: tuple[str, ...] = ()
) -> Formula:
    inputs = range(2, 2 + len(states))
    kernel = by_parts(formula, inputs)
    op = Operator(
        formula.__name__,
        kernel,
        infer,
        updates=states,
        elementwise=True,
        atomic=True,
        widen=False,
        cost=2 + 2 * len(states),
        samples=sample,
        nd=Rule(method=False, ignore=ignore, adapt=_changes(states, inputs)),
    )
    registry.add(op)
    return formula


def _update(
    *states: str, limit: str = "clip_gradient", ignore: tuple[str, ...] = (), **attributes: Any
) -> Callable[[Formula], Formula]:
    """Declare an update with these states."""
    shapes = [(2, 3)] * (2 + len(states))
    given: Any = {"wd": 0.1, "rescale_grad": 0.5, limit: 0.2, **attributes}
    samples = [Sample(*shapes, low=0.1, **attributes), Sample(*shapes, low=0.1, **given)]
    return lambda formula: _declare(formula, *states, sample=samples, ignore=ignore)


def _mixed(formula: Formula, *states: str, infer: Any = _with_master, into_master: bool = True, **rule: Any) -> None:
    """Declare the update with float32 weights besides the weights."""
    changed = (*states, "weight32") if into_master else states
    positions = range(2, 2 + len(states))
    doc = f"{formula.__name__} for weight32 (float32);  gives them as the weights' dtype."
    if not into_master:
        doc = f"{formula.__name__} for weight32 (float32), which stay;  gives float32."
    kernel = mixed_by_parts(formula, positions, doc, into_master=into_master)
    op = Operator(
        f"mp_{formula.__name__}",
        kernel,
        infer,
        updates=changed,
        elementwise=True,
        atomic=True,
        widen=False,
        cost=6 + 2 * len(states),
        nd=None,
    )
    where = [op.inputs.index(name) for name in changed]
    op.nd = Rule(method=False, mixed=True, dtype="kernel", adapt=_changes(changed, where), **rule)
    registry.add(op)


# ---- gradient descent ------------------------------------------------------------------------------------------------


@_update(lr=0.1, ignore=DENSE)
def sgd_update(
    do: Calls, weight: Any, grad: Any, *, lr: float, wd: float = 0.0, rescale_grad: float = 1.0,
    clip_gradient: float = -1.0, out: Any,
) -> None:  # fmt: skip
    """weight - lr g."""
    g = do.gradient(grad, weight, rescale_grad, clip_gradient, after=wd, factor=lr)
    do.subtract(weight, g, out)


@_update("mom", lr=0.1, momentum=0.9, ignore=DENSE)
def sgd_mom_update(
    do: Calls, weight: Any, grad: Any, mom: Any, *, lr: float, momentum: float = 0.0, wd: float = 0.0,
    rescale_grad: float = 1.0, clip_gradient: float = -1.0, out: Any,
) -> None:  # fmt: skip
    """mom = momentum mom - lr g;  weight + mom."""
    g = do.gradient(grad, weight, rescale_grad, clip_gradient, after=wd, factor=lr)
    do.multiply(mom, momentum, mom)
    do.subtract(mom, g, mom)
    do.add(weight, mom, out)


@_update("mom", lr=0.1, momentum=0.9)
def nag_mom_update(
    do: Calls, weight: Any, grad: Any, mom: Any, *, lr: float, momentum: float = 0.0, wd: float = 0.0,
    rescale_grad: float = 1.0, clip_gradient: float = -1.0, out: Any,
) -> None:  # fmt: skip
    """mom = momentum mom - lr g;  weight + momentum mom - lr g.  Source: Nesterov 1983."""
    g = do.gradient(grad, weight, rescale_grad, clip_gradient, after=wd, factor=lr, own=True)
    do.multiply(mom, momentum, mom)
    do.subtract(mom, g, mom)
    t = do.new()
    do.multiply(mom, momentum, t)
    do.subtract(t, g, t)
    do.add(weight, t, out)


@_update(lr=0.1)
def signsgd_update(
    do: Calls, weight: Any, grad: Any, *, lr: float, wd: float = 0.0, rescale_grad: float = 1.0,
    clip_gradient: float = -1.0, out: Any,
) -> None:  # fmt: skip
    """(1 - lr wd) weight - lr sign(rescale_grad grad).  Source: Bernstein et al. 2018."""
    t = do.new()
    do.multiply(grad, rescale_grad, t)
    do.sign(t, t)
    do.multiply(t, lr, t)
    do.multiply(weight, 1 - lr * wd, out)
    do.subtract(out, t, out)


@_update("mom", lr=0.1, momentum=0.9)
def signum_update(
    do: Calls, weight: Any, grad: Any, mom: Any, *, lr: float, momentum: float = 0.0, wd: float = 0.0,
    rescale_grad: float = 1.0, clip_gradient: float = -1.0, wd_lh: float = 0.0, out: Any,
) -> None:  # fmt: skip
    """mom = momentum mom - (1 - momentum) g;  (1 - lr wd_lh) weight + lr sign(mom).  Source: Bernstein et al. 2018."""
    g = do.gradient(grad, weight, rescale_grad, clip_gradient, after=wd, factor=1 - momentum, own=True)
    do.multiply(mom, momentum, mom)
    do.subtract(mom, g, mom)
    do.sign(mom, g)
    do.multiply(g, lr, g)
    do.multiply(weight, 1 - lr * wd_lh, out)
    do.add(out, g, out)


# ---- with averages of the squared gradient ---------------------------------------------------------------------------


@_update("mean", "var", lr=0.1, ignore=DENSE)
def adam_update(
    do: Calls, weight: Any, grad: Any, mean: Any, var: Any, *, lr: float, beta1: float = 0.9, beta2: float = 0.999,
    epsilon: float = 1e-8, wd: float = 0.0, rescale_grad: float = 1.0, clip_gradient: float = -1.0, out: Any,
) -> None:  # fmt: skip
    """mean = beta1 mean + (1 - beta1) g;  var = beta2 var + (1 - beta2) g^2;  weight - lr mean / (sqrt(var) + epsilon).

    Weight decay is added to g before the limiting.  The caller corrects the bias in lr.   Source: Kingma and Ba 2014.
    """
    g = do.gradient(grad, weight, rescale_grad, clip_gradient, before=wd)
    t = do.new()
    do.average(mean, beta1, g, t)
    do.average(var, beta2, g, t, squared=True)
    do.sqrt(var, t)
    do.add(t, epsilon, t)
    do.divide(mean, t, t)
    do.multiply(t, lr, t)
    do.subtract(weight, t, out)


@_update("history", lr=0.1)
def adagrad_update(
    do: Calls, weight: Any, grad: Any, history: Any, *, lr: float, epsilon: float = 1e-7, wd: float = 0.0,
    rescale_grad: float = 1.0, clip_gradient: float = -1.0, out: Any,
) -> None:  # fmt: skip
    """history += g^2;  weight - lr (g / sqrt(history + epsilon) + wd weight), g without weight decay.

    Source: Duchi et al. 2011.
    """
    g = do.gradient(grad, weight, rescale_grad, clip_gradient)
    t, decay = do.new(), do.new()
    do.multiply(g, g, t)
    do.add(history, t, history)
    do.add(history, epsilon, t)
    do.sqrt(t, t)
    do.divide(g, t, t)
    do.multiply(weight, wd, decay)
    do.add(t, decay, t)
    do.multiply(t, lr, t)
    do.subtract(weight, t, out)


@_update("n", lr=0.1)
def rmsprop_update(
    do: Calls, weight: Any, grad: Any, n: Any, *, lr: float, gamma1: float = 0.95, epsilon: float = 1e-8,
    wd: float = 0.0, rescale_grad: float = 1.0, clip_gradient: float = -1.0, clip_weights: float = -1.0, out: Any,
) -> None:  # fmt: skip
    """n = gamma1 n + (1 - gamma1) g^2;  weight - lr g / sqrt(n + epsilon), limited to [-clip_weights, clip_weights].

    Weight decay is added to g before the limiting.   Source: Tieleman and Hinton 2012.
    """
    g = do.gradient(grad, weight, rescale_grad, clip_gradient, before=wd)
    t = do.new()
    do.average(n, gamma1, g, t, squared=True)
    do.add(n, epsilon, t)
    do.sqrt(t, t)
    do.divide(g, t, t)
    do.multiply(t, lr, t)
    do.subtract(weight, t, out)
    do.limit(out, clip_weights)


@_update("n", "g", "delta", lr=0.1)
def rmspropalex_update(
    do: Calls, weight: Any, grad: Any, n: Any, g: Any, delta: Any, *, lr: float, gamma1: float = 0.95,
    gamma2: float = 0.9, epsilon: float = 1e-8, wd: float = 0.0, rescale_grad: float = 1.0,
    clip_gradient: float = -1.0, clip_weights: float = -1.0, out: Any,
) -> None:  # fmt: skip
    """n = gamma1 n + (1 - gamma1) h^2;  g = gamma1 g + (1 - gamma1) h, with h the gradient;
    delta = gamma2 delta - lr h / sqrt(n - g^2 + epsilon);  weight + delta, limited to [-clip_weights, clip_weights].

    Weight decay is added to h before the limiting.   Source: Graves 2013.
    """
    h = do.gradient(grad, weight, rescale_grad, clip_gradient, before=wd)
    t = do.new()
    do.average(n, gamma1, h, t, squared=True)
    do.average(g, gamma1, h, t)
    do.multiply(g, g, t)
    do.subtract(n, t, t)
    do.add(t, epsilon, t)
    do.sqrt(t, t)
    do.divide(h, t, t)
    do.multiply(t, lr, t)
    do.multiply(delta, gamma2, delta)
    do.subtract(delta, t, delta)
    do.add(weight, delta, out)
    do.limit(out, clip_weights)


@_update("z", "n", lr=0.1)
def ftrl_update(
    do: Calls, weight: Any, grad: Any, z: Any, n: Any, *, lr: float, lamda1: float = 0.01, beta: float = 1.0,
    wd: float = 0.0, rescale_grad: float = 1.0, clip_gradient: float = -1.0, out: Any,
) -> None:  # fmt: skip
    """z += g - (sqrt(n + g^2) - sqrt(n)) weight / lr;  n += g^2, g without weight decay;
    -sign(z) max(|z| - lamda1, 0) / ((beta + sqrt(n)) / lr + wd).

    Source: McMahan et al. 2013.
    """
    g = do.gradient(grad, weight, rescale_grad, clip_gradient, own=True)
    t, root = do.new(), do.new()
    do.add(z, g, z)
    do.sqrt(n, t)
    do.multiply(g, g, g)
    do.add(n, g, n)
    do.sqrt(n, root)
    do.subtract(root, t, t)
    do.multiply(t, weight, t)
    do.divide(t, lr, t)
    do.subtract(z, t, z)
    do.absolute(z, t)
    do.subtract(t, lamda1, t)
    do.above(t, 0)
    do.sign(z, g)
    do.multiply(t, g, t)
    do.add(root, beta, root)
    do.divide(root, -lr, root)
    do.subtract(root, wd, root)
    do.divide(t, root, out)


@_update("d", "v", "z", limit="clip_grad", lr=0.1, t=2)
def ftml_update(
    do: Calls, weight: Any, grad: Any, d: Any, v: Any, z: Any, *, lr: float, beta1: float = 0.6, beta2: float = 0.999,
    epsilon: float = 1e-8, t: int, wd: float = 0.0, rescale_grad: float = 1.0, clip_grad: float = -1.0, out: Any,
) -> None:  # fmt: skip
    """v = beta2 v + (1 - beta2) g^2;  e = (1 - beta1^t) / lr (sqrt(v / (1 - beta2^t)) + epsilon);
    z = beta1 z + (1 - beta1) g - (e - beta1 d) weight;  d = e;  -z / d.

    t: the number of this update, from 1.   Weight decay is added to g before the limiting.
    Source: Zheng and Kwok 2017.
    """
    g = do.gradient(grad, weight, rescale_grad, clip_grad, before=wd)
    s, e = do.new(), do.new()
    do.average(v, beta2, g, s, squared=True)
    do.divide(v, 1 - beta2**t, e)
    do.sqrt(e, e)
    do.add(e, epsilon, e)
    do.multiply(e, (1 - beta1**t) / lr, e)
    do.average(z, beta1, g, s)
    do.multiply(d, beta1, d)
    do.subtract(e, d, d)
    do.multiply(d, weight, d)
    do.subtract(z, d, z)
    do.copy(e, d)
    do.divide(z, d, out)
    do.negative(out, out)


# ---- LAMB ------------------------------------------------------------------------------------------------------------


def lamb_update_phase1(
    do: Calls, weight: Any, grad: Any, mean: Any, var: Any, *, beta1: float = 0.9, beta2: float = 0.999,
    epsilon: float = 1e-6, t: int, bias_correction: bool = True, wd: float, rescale_grad: float = 1.0,
    clip_gradient: float = -1.0, out: Any,
) -> None:  # fmt: skip
    """mean and var as adam_update;  mean / (sqrt(var) + epsilon) + wd weight, the direction of LAMB.

    g has no weight decay.   t: the number of this update, from 1; bias_correction divides mean by 1 - beta1^t and var
    by 1 - beta2^t first.   Source: You et al. 2019.
    """
    g = do.gradient(grad, weight, rescale_grad, clip_gradient)
    s = do.new()
    do.average(mean, beta1, g, s)
    do.average(var, beta2, g, s, squared=True)
    first, second = (1 - beta1**t, 1 - beta2**t) if bias_correction else (1.0, 1.0)
    do.divide(var, second, s)
    do.sqrt(s, s)
    do.add(s, epsilon, s)
    do.divide(mean, s, s)
    do.divide(s, first, s)
    decay = do.new()
    do.multiply(weight, wd, decay)
    do.add(s, decay, out)


_declare(
    lamb_update_phase1, "mean", "var",
    sample=[
        Sample(*[(2, 3)] * 4, low=0.1, t=2, wd=0.1),
        Sample(*[(2, 3)] * 4, low=0.1, t=1, wd=0, bias_correction=False),
    ],
)  # fmt: skip


def _one_element(*norms: Any) -> None:
    if any(meta is None or math.prod(meta[0]) != 1 for meta in norms):
        raise ValueError("r1 and r2 of one element expected")


def _phase2(metas: Metas, attributes: Attributes) -> Inferred:
    weight, g, *norms = metas
    _one_element(*norms)
    uniform(*metas)
    return _like_weight((weight, g), attributes)


def lamb_update_phase2(
    do: Calls, weight: Any, g: Any, r1: Any, r2: Any, *, lr: float, lower_bound: float = -1.0,
    upper_bound: float = -1.0, out: Any,
) -> None:  # fmt: skip
    """weight - lr ratio g;  ratio = r1 / r2, r1 limited to the bounds, or 1 if r1 or r2 is 0.

    r1, r2: (1,), the norms of weight and g.   A negative bound is none.   Source: You et al. 2019.
    """
    t = do.new()
    do.multiply(g, lr * _ratio(r1.item(), r2.item(), lower_bound, upper_bound), t)
    do.subtract(weight, t, out)


def _ratio(r1: float, r2: float, lower_bound: float, upper_bound: float) -> float:
    r1 = max(r1, lower_bound) if lower_bound >= 0 else r1
    r1 = min(r1, upper_bound) if upper_bound >= 0 else r1
    return r1 / r2 if r1 and r2 else 1.0


_declare(
    lamb_update_phase2, infer=_phase2,
    sample=[Sample((2, 3), (2, 3), (1,), (1,), low=0.1, lr=0.1, lower_bound=0.2, upper_bound=0.8)],
)  # fmt: skip


# ---- float32 weights besides the weights -----------------------------------------------------------------------------


def _mixed_phase1(metas: Metas, attributes: Attributes) -> Inferred:
    (weight,), attributes = _with_master(metas, attributes)
    assert weight is not None
    return ((weight[0], FLOAT32),), attributes


def _mixed_phase2(metas: Metas, attributes: Attributes) -> Inferred:
    weight, g, r1, r2, master = metas
    _one_element(r1, r2)
    floating(weight, r1, r2)
    if g is None or g[1] != FLOAT32:
        raise TypeError("g of float32 expected")
    _like_master((weight, (g[0], FLOAT32), master))
    return (weight,), attributes


_mixed(sgd_update, infer=_with_master, ignore=DENSE)
_mixed(sgd_mom_update, "mom", ignore=DENSE)
_mixed(nag_mom_update, "mom")
_mixed(lamb_update_phase1, "mean", "var", infer=_mixed_phase1, into_master=False)
_mixed(lamb_update_phase2, infer=_mixed_phase2)
