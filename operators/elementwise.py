"""Elementwise and broadcasting operators.  Every row is one operator with its calculus; see `schema` for the texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from ..ndarray.dtype import DType, is_float, truncated
from ..ndarray.shape import broadcast
from .faces import Rule
from .infer import broadcasting, loop_dtypes, same_shape
from .schema import Attributes, Inferred, Metas, Operator, Sample, call_into, operator, registry, zero

TRANSCENDENTAL = 16.0  # cost of an element of exp and the like, against 1 for an addition
UNARY = {"data": "x"}
BINARY = {"lhs": "x", "rhs": "y"}


def _samples(inputs: int, domain: tuple[float, float]) -> list[Sample]:
    low, high = domain
    if inputs == 1:
        return [Sample((2, 3), low=low, high=high), Sample((), low=low, high=high)]
    shapes = (((2, 3), (2, 3)), ((2, 1), (3,)), ((3,), (2, 3)))
    return [Sample(*pair, low=low, high=high) for pair in shapes]


def unary(
    name: str,
    ufunc: Any,
    gradient: Any,
    *,
    domain: tuple[float, float] = (-2, 2),
    cost: float = TRANSCENDENTAL,
    aliases: tuple[str, ...] = (),
    nd: Any = None,
    kinks: str = "",
    doc: str = "",
) -> Operator:
    """Declare y[i] = ufunc(x[i])."""

    def kernel(xp: Any, x: Any) -> None:
        raise AssertionError("a ufunc is called itself")

    op = operator(
        name, infer=same_shape(ufunc), ufunc=ufunc, atomic=True, elementwise=True, cost=cost, aliases=aliases,
        samples=_samples(1, domain), reference=ufunc, nd=Rule(rename=UNARY) if nd is None else nd,
        kinks=kinks,
        doc=doc or f"{name} of each element.\n\nx: any shape.  NumPy: {ufunc.__name__}.",
    )(kernel)  # fmt: skip
    return op.grad(x=gradient)  # type: ignore[no-any-return]


def binary(
    name: str,
    ufunc: Any,
    x: Any,
    y: Any,
    *,
    domain: tuple[float, float] = (-2, 2),
    cost: float = 1.0,
    aliases: tuple[str, ...] = (),
    nd: Any = None,
    kinks: str = "",
    doc: str = "",
) -> Operator:
    """Declare z[i] = ufunc(x[i], y[i]) with broadcasting."""

    def kernel(xp: Any, x: Any, y: Any) -> None:
        raise AssertionError("a ufunc is called itself")

    op = operator(
        name, infer=broadcasting(ufunc), ufunc=ufunc, atomic=True, elementwise=True, broadcasts=True, cost=cost,
        aliases=aliases, samples=_samples(2, domain), reference=ufunc,
        nd=Rule(rename=BINARY, bools=True) if nd is None else nd, kinks=kinks,
        doc=doc or f"{name} of each pair of elements.\n\nx, y: shapes that broadcast.  NumPy: {ufunc.__name__}.",
    )(kernel)  # fmt: skip
    return op.grad(x=x, y=y)  # type: ignore[no-any-return]


def composed(
    name: str,
    steps: Callable[..., Any],
    gradient: Any,
    *,
    domain: tuple[float, float] = (-2, 2),
    cost: float = TRANSCENDENTAL,
    aliases: tuple[str, ...] = (),
    dtype: Any = None,
    kinks: str = "",
    doc: str = "",
    reference: Any = None,
    inplace: bool = True,
) -> Operator:
    """Declare a unary operator whose kernel is a few ufuncs: steps(x, out) gives the C calls.

    `inplace`: no step reads x after one has written out, so that out may be x.
    """

    def infer(metas: Metas, attributes: Attributes) -> Inferred:
        ((shape, given),) = metas  # type: ignore[misc]
        return ((shape, dtype(given) if dtype else _float(given)),), attributes

    def kernel(xp: Any, x: Any, *, out: Any) -> Any:
        return steps(x, out)

    op = operator(
        name, infer=infer, atomic=True, elementwise=inplace, cost=cost, aliases=aliases, nd=Rule(rename=UNARY),
        samples=_samples(1, domain), reference=reference, kinks=kinks,
        doc=doc or f"{name} of each element.",
    )(kernel)  # fmt: skip
    return op.grad(x=gradient)  # type: ignore[no-any-return]


def _float(dtype: DType) -> DType:
    return dtype if is_float(dtype) else np.dtype(np.float64)


def _same(dtype: DType) -> DType:
    return dtype


def _signed(dtype: DType) -> DType:
    return loop_dtypes(np.sign, (dtype,))[-1]


def _angle(dtype: DType) -> DType:
    return loop_dtypes(np.degrees, (dtype,))[-1]


# ---- one argument ---------------------------------------------------------------------------------------------------
# fmt: off

unary("negative",  np.negative,   lambda F, g: -g, cost=1, aliases=("_np_negative",))
unary("abs",       np.absolute,   lambda F, g, x: g * F.sign(x), cost=1,
      kinks="at 0 the gradient is 0")
unary("exp",       np.exp,        lambda F, g, out: g * out)
unary("expm1",     np.expm1,      lambda F, g, x: g * F.exp(x))
unary("log",       np.log,        lambda F, g, x: g / x, domain=(0.5, 4),
      kinks="at 0 the gradient is infinite")
unary("log2",      np.log2,       lambda F, g, x: g / (x * 0.6931471805599453), domain=(0.5, 4),
      kinks="at 0 the gradient is infinite")
unary("log10",     np.log10,      lambda F, g, x: g / (x * 2.302585092994046), domain=(0.5, 4),
      kinks="at 0 the gradient is infinite")
unary("log1p",     np.log1p,      lambda F, g, x: g / (x + 1), domain=(-0.5, 4),
      kinks="at -1 the gradient is infinite")
unary("sqrt",      np.sqrt,       lambda F, g, out: g * 0.5 / out, domain=(0.5, 4), cost=4,
      kinks="at 0 the gradient is infinite")
unary("cbrt",      np.cbrt,       lambda F, g, out: g / (out * out * 3), domain=(0.5, 4),
      kinks="at 0 the gradient is infinite")
unary("square",    np.square,     lambda F, g, x: g * x * 2, cost=1)
unary("sin",       np.sin,        lambda F, g, x: g * F.cos(x))
unary("cos",       np.cos,        lambda F, g, x: -g * F.sin(x))
unary("tan",       np.tan,        lambda F, g, out: g * (out * out + 1), domain=(-1, 1))
unary("arcsin",    np.arcsin,     lambda F, g, x: g / F.sqrt(1 - x * x), domain=(-0.8, 0.8),
      kinks="at -1 and 1 the gradient is infinite")
unary("arccos",    np.arccos,     lambda F, g, x: -g / F.sqrt(1 - x * x), domain=(-0.8, 0.8),
      kinks="at -1 and 1 the gradient is infinite")
unary("arctan",    np.arctan,     lambda F, g, x: g / (x * x + 1))
unary("sinh",      np.sinh,       lambda F, g, x: g * F.cosh(x))
unary("cosh",      np.cosh,       lambda F, g, x: g * F.sinh(x))
unary("tanh",      np.tanh,       lambda F, g, out: g * (1 - out * out))
unary("arcsinh",   np.arcsinh,    lambda F, g, x: g / F.sqrt(x * x + 1))
unary("arccosh",   np.arccosh,    lambda F, g, x: g / F.sqrt(x * x - 1), domain=(1.5, 4),
      kinks="at 1 the gradient is infinite")
unary("arctanh",   np.arctanh,    lambda F, g, x: g / (1 - x * x), domain=(-0.8, 0.8),
      kinks="at -1 and 1 the gradient is infinite")
unary("sigmoid",   special.expit, lambda F, g, out: g * out * (1 - out), doc="1 / (1 + exp(-x)) of each element.")
unary("erf",       special.erf,   lambda F, g, x: g * F.exp(-x * x) * 1.1283791670955126)
unary("erfinv",    special.erfinv, lambda F, g, out: g * F.exp(out * out) * 0.8862269254527580, domain=(-0.8, 0.8),
      kinks="at -1 and 1 the gradient is infinite")
unary("gammaln",   special.gammaln, lambda F, g, x: g * F.digamma(x), domain=(0.5, 4),
      kinks="at 0 the gradient is that from above, -inf")
unary("gamma",     special.gamma, lambda F, g, x, out: g * out * F.digamma(x), domain=(0.5, 4),
      kinks="at 0 the gradient is that from above, -inf")
unary("digamma",   special.psi,   lambda F, g, x: g * F.polygamma(x, order=1), domain=(0.5, 4))
unary("floor",     np.floor,      zero, cost=1, domain=(0.1, 0.9))
unary("ceil",      np.ceil,       zero, cost=1, domain=(0.1, 0.9))
unary("trunc",     np.trunc,      zero, cost=1, domain=(0.1, 0.9), aliases=("fix",))
unary("sign",      np.sign,       zero, cost=1, domain=(0.1, 0.9), nd=False)
unary("rint",      np.rint,       zero, cost=1, domain=(0.1, 0.4), nd=False)
unary("logical_not", np.logical_not, zero, cost=1, domain=(0.1, 0.9))

composed("reciprocal", lambda x, out: ((np.divide, 1, x, out),), lambda F, g, out: -g * out * out, domain=(0.5, 4),
         cost=2, reference=np.reciprocal, doc="1 / x of each element.",
         kinks="at 0 the gradient is infinite")
composed("rsqrt", lambda x, out: ((np.sqrt, x, out), (np.divide, 1, out, out)), lambda F, g, x, out: g * -0.5 * out / x,
         domain=(0.5, 4), reference=lambda x: 1 / np.sqrt(x), doc="1 / sqrt(x) of each element.",
         kinks="at 0 the gradient is infinite")
composed("rcbrt", lambda x, out: ((np.cbrt, x, out), (np.divide, 1, out, out)), lambda F, g, x, out: g * out / (x * -3),
         domain=(0.5, 4), reference=lambda x: 1 / np.cbrt(x), doc="1 / cbrt(x) of each element.",
         kinks="at 0 the gradient is infinite")
composed("degrees", lambda x, out: ((np.multiply, x, np.degrees(out.dtype.type(1)), out),), lambda F, g: g * 57.29577951308232,
         cost=1, dtype=_angle, reference=np.degrees, doc="degrees of each element.\n\nx: any shape.  NumPy: degrees.")
composed("radians", lambda x, out: ((np.multiply, x, np.radians(out.dtype.type(1)), out),), lambda F, g: g * 0.017453292519943295,
         cost=1, dtype=_angle, reference=np.radians, doc="radians of each element.\n\nx: any shape.  NumPy: radians.")
composed("relu", lambda x, out: (call_into(np.maximum, x, x.dtype.type(0), out=out),), lambda F, g, out: F.where(F.greater(out, 0), g, 0),
         cost=1, dtype=_same, domain=(0.1, 2), reference=lambda x: np.maximum(x, 0),
         doc="max(x, 0) of each element.", kinks="at 0 the gradient is 0")
composed("softsign", lambda x, out: ((np.absolute, x, out), (np.add, out, 1, out), (np.divide, x, out, out)),
         lambda F, g, x: g / F.square(F.abs(x) + 1), cost=4, inplace=False, domain=(0.1, 2), reference=lambda x: x / (1 + np.abs(x)),
         doc="x / (1 + abs(x)) of each element.",
         kinks="at 0 the gradient is 1, from both sides")
composed("softrelu", lambda x, out: ((np.logaddexp, x, 0, out),), lambda F, g, x: g * F.sigmoid(x),
         aliases=("softplus",), reference=lambda x: np.logaddexp(x, 0), doc="log(1 + exp(x)) of each element.")
composed("sign_or_zero", lambda x, out: ((np.sign, x, out), (np.fmax, out, -1, out), (np.multiply, out, np.equal(x, x), out)),
         zero, cost=4, dtype=_signed, domain=(0.1, 0.9), aliases=("sign",), reference=np.sign,
         doc="The sign of each element; 0 for nan, as in MXNet.")
composed("round_half_away", lambda x, out: ((np.absolute, x, out), (np.add, out, 0.5, out), (np.floor, out, out), (np.copysign, out, x, out)),
         zero, cost=4, inplace=False, domain=(0.1, 0.4), aliases=("round",), reference=np.round,
         doc="The nearest integer; halves away from zero, as in MXNet.")
composed("rint_half_down", lambda x, out: ((np.subtract, x, 0.5, out), (np.ceil, out, out)),
         zero, cost=2, domain=(0.1, 0.4), aliases=("rint",), reference=np.round,
         doc="The nearest integer; halves downwards, as in MXNet.")

# fmt: on


@operator(
    "polygamma",
    infer=same_shape(np.sin),
    elementwise=True,
    samples=[Sample((2, 3), low=0.5, high=4, order=1)],
    nd=False,
)
def polygamma(xp: Any, x: Any, *, order: int = 1, out: Any) -> None:
    """The derivative of this order of digamma."""
    out[...] = special.polygamma(order, x)


def _next_polygamma(F: Any, g: Any, x: Any, order: int) -> Any:
    return g * F.polygamma(x, order=order + 1)


polygamma.grad(x=_next_polygamma)


# ---- two arguments --------------------------------------------------------------------------------------------------


def _integer_division(inputs: list[Any], attributes: Attributes) -> Any:
    """MXNet's integers divide towards zero; by zero they give 0, as NumPy's do (MXNet dies)."""
    return (registry["truncate_divide"], inputs, attributes) if _first(inputs).kind in "iu" else None


def _mod_by_zero(inputs: list[Any], attributes: Attributes) -> Any:
    return (registry["mod_or_zero"], inputs, attributes) if is_float(_first(inputs)) else None


def _integer_power(inputs: list[Any], attributes: Attributes) -> Any:
    return (registry["integer_power"], inputs, attributes) if _first(inputs).kind in "iu" else None


def _first(inputs: list[Any]) -> DType:
    return next(np.dtype(x.dtype) for x in inputs if x is not None)


def _arithmetic(adapt: Any) -> Rule:
    return Rule(rename=BINARY, bools=True, adapt=adapt)


MULTIPLE = "where x is a multiple of y the gradient by y is that from above"
# fmt: off
binary("add",      np.add,      lambda F, g: g, lambda F, g: g, aliases=("elemwise_add", "broadcast_add", "broadcast_plus", "_plus"))
binary("subtract", np.subtract, lambda F, g: g, lambda F, g: -g, aliases=("elemwise_sub", "broadcast_sub", "broadcast_minus", "_minus"))
binary("multiply", np.multiply, lambda F, g, y: g * y, lambda F, g, x: g * x, aliases=("elemwise_mul", "broadcast_mul", "_mul"))
binary("divide",   np.divide,   lambda F, g, y: g / y, lambda F, g, y, out: -(g * out) / y, domain=(0.5, 2),
       aliases=("elemwise_div", "broadcast_div", "true_divide", "_div"), nd=_arithmetic(_integer_division))
binary("mod",      np.remainder, lambda F, g: g, lambda F, g, x, y: -g * F.floor(x / y), domain=(1.1, 1.9),
       aliases=("modulo", "broadcast_mod"), nd=_arithmetic(_mod_by_zero), kinks=MULTIPLE)
binary("power",    np.power,    lambda F, g, x, y: g * y * F.power(x, y - 1), lambda F, g, x, out: g * out * F.log(x),
       domain=(0.5, 2), cost=TRANSCENDENTAL, aliases=("broadcast_power", "pow"), nd=_arithmetic(_integer_power),
       kinks="at x = 0 the gradients are those of the formulas y x**(y - 1) and log(x) x**y, which may be nan")
binary("maximum",  np.maximum,  lambda F, g, x, y: F.where(F.greater_equal(x, y), g, 0), lambda F, g, x, y: F.where(F.less(x, y), g, 0),
       aliases=("broadcast_maximum",), kinks="where both are equal x has the whole gradient")
binary("minimum",  np.minimum,  lambda F, g, x, y: F.where(F.less_equal(x, y), g, 0), lambda F, g, x, y: F.where(F.greater(x, y), g, 0),
       aliases=("broadcast_minimum",), kinks="where both are equal x has the whole gradient")
binary("hypot",    np.hypot,    lambda F, g, x, out: g * x / out, lambda F, g, y, out: g * y / out, domain=(0.5, 2), cost=4,
       aliases=("broadcast_hypot",), kinks="where both are 0 the gradient is nan")
binary("arctan2",  np.arctan2,  lambda F, g, x, y: g * y / (x * x + y * y), lambda F, g, x, y: -g * x / (x * x + y * y),
       domain=(0.5, 2), cost=TRANSCENDENTAL)
binary("floor_divide", np.floor_divide, zero, zero, domain=(1.1, 1.9), cost=4)

for _name, _ufunc, _also in (
    ("equal", np.equal, ()), ("not_equal", np.not_equal, ()), ("less", np.less, ("lesser",)),
    ("less_equal", np.less_equal, ("lesser_equal",)), ("greater", np.greater, ()), ("greater_equal", np.greater_equal, ()),
    ("logical_and", np.logical_and, ()), ("logical_or", np.logical_or, ()), ("logical_xor", np.logical_xor, ()),
):
    binary(_name, _ufunc, zero, zero, aliases=(*_also, *(f"broadcast_{n}" for n in (_name, *_also))),
           doc=f"{_name} of each pair of elements: 1 or 0 in the operands' dtype (NumPy's rules: bool).")
# fmt: on


def _both(metas: Metas, attributes: Attributes) -> Inferred:
    return broadcasting(np.add)(metas, attributes)


@operator("truncate_divide", infer=_both, elementwise=True, broadcasts=True, nd=False)
def truncate_divide(xp: Any, x: Any, y: Any, *, out: Any) -> None:
    """Integers divided towards zero; 0 where y is 0."""
    quotient = xp.floor_divide(x, y)
    quotient += (xp.remainder(x, y) != 0) & ((x < 0) != (y < 0))
    out[...] = quotient


@operator("mod_or_zero", infer=_both, elementwise=True, broadcasts=True, nd=False, kinks=MULTIPLE)
def mod_or_zero(xp: Any, x: Any, y: Any, *, out: Any) -> None:
    """x % y with the sign of y; 0 where y is 0."""
    out[...] = xp.where(xp.equal(y, 0), 0, xp.remainder(x, y))


mod_or_zero.grad(x=lambda F, g: g, y=lambda F, g, x, y: -g * F.floor(x / y))


@operator("integer_power", infer=_both, elementwise=True, broadcasts=True, nd=False)
def integer_power(xp: Any, x: Any, y: Any, *, out: Any) -> None:
    """x ** y of integers; a negative power is 1 / x ** -y towards zero."""
    inverse = xp.where(xp.equal(x, 1), 1, xp.where(xp.equal(x, -1), 1 - 2 * xp.remainder(y, 2), 0))
    out[...] = xp.where(xp.less(y, 0), inverse, xp.power(x, xp.maximum(y, 0)))


# ---- the rest -------------------------------------------------------------------------------------------------------


def _where(metas: Metas, attributes: Attributes) -> Inferred:
    condition, *values = metas
    assert condition is not None
    ((shape, dtype),), _ = broadcasting(np.add)(values, attributes)  # type: ignore[misc]
    return ((broadcast(condition[0], shape), dtype),), attributes


def _row_condition(inputs: list[Any], attributes: Attributes) -> Any:
    """MXNet: a condition of shape (n,) chooses rows of x and y."""
    condition, x, _ = inputs
    if condition.ndim == 1 and x.ndim > 1:
        inputs[0] = condition.reshape((-1,) + (1,) * (x.ndim - 1))
    return None


@operator(
    "where",
    infer=_where,
    elementwise=True,
    broadcasts=True,
    indices=("condition",),
    samples=[Sample(np.array([True, False, True]), (2, 3), (2, 3))],
    reference=np.where,
    nd=Rule(adapt=_row_condition),
)
def where(xp: Any, condition: Any, x: Any, y: Any, *, out: Any) -> None:
    """Elements of x where the condition is not 0, else of y.  All three broadcast.

    In the nd face a condition of shape (n,) chooses whole rows.
    """
    chosen = condition if condition.dtype == np.bool_ else xp.not_equal(condition, 0)
    out[...] = xp.where(chosen, x, y)


where.grad(
    condition=zero,
    x=lambda F, g, condition: F.where(condition, g, 0),
    y=lambda F, g, condition: F.where(condition, 0, g),
)


def _clip(metas: Metas, attributes: Attributes) -> Inferred:
    ((shape, dtype),) = metas  # type: ignore[misc]
    return ((shape, dtype),), attributes


@operator(
    "clip",
    infer=_clip,
    atomic=True,
    elementwise=True,
    cost=2,
    samples=[Sample((2, 3), a_min=-0.5, a_max=0.5)],
    reference=np.clip,
    kinks="at a_min and a_max the gradient is g",
    nd=Rule(rename=UNARY),
)
def clip(xp: Any, x: Any, *, a_min: float | None = None, a_max: float | None = None, out: Any) -> Any:
    """Elements below a_min become a_min, those above a_max become a_max.

    Bounds are converted to the dtype of x towards zero.
    """
    steps: list[Any] = [] if a_min is not None or a_max is not None else [(xp.copyto, out, x)]
    if a_min is not None:
        steps.append(call_into(xp.maximum, x, truncated(a_min, x.dtype), out=out))
    if a_max is not None:
        steps.append(call_into(xp.minimum, out if steps else x, truncated(a_max, x.dtype), out=out))
    return steps


def _clip_gradient(F: Any, g: Any, x: Any, a_min: float | None, a_max: float | None) -> Any:
    if a_min is not None:
        g = F.where(F.greater_equal(x, a_min), g, 0)
    if a_max is not None:
        g = F.where(F.less_equal(x, a_max), g, 0)
    return g


clip.grad(x=_clip_gradient)
