"""Softmax, its kin, and MXNet's output layers, whose gradients are those of a loss that is never computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import setitem
from typing import Any

import numpy as np
from scipy import special

from ..ndarray.dtype import as_dtype
from ..ndarray.streams import computing
from .elsewhere import ufunc_of
from .faces import Rule, attribute_dtype
from .infer import floating, normal_axis, uniform
from .nn import known, spelling
from .products import seen_as
from .schema import Attributes, Inferred, Metas, Sample, operator, size_of, zero
from .windows import empty

NORMALIZED = Rule(rename={"data": "x"}, dtype=attribute_dtype(), ignore=("use_length",))
DATA = {"data": "x"}
SHORT = 32  # elements along the last axis, up to which it is done in columns


def _softmax(metas: Metas, attributes: Attributes) -> Inferred:
    meta = metas[0]
    assert meta is not None
    floating(meta)
    shape, dtype = meta
    temperature = attributes["temperature"]
    if temperature == 0:
        raise ValueError("a temperature other than 0 expected")
    dtype = as_dtype(attributes["dtype"], dtype)
    given = {"axis": normal_axis(attributes["axis"], len(shape)), "dtype": dtype}
    return ((shape, dtype),), {**attributes, **given, "temperature": 1.0 if temperature is None else float(temperature)}


# ---- softmax ---------------------------------------------------------------------------------------------------------


def _softmax_reference(
    x: Any, length: Any = None, axis: int = -1, temperature: float = 1.0, use_length: bool = False
) -> Any:
    if length is not None:
        x = np.where(np.arange(x.shape[axis]) < length[..., None], x, -np.inf)  # axis -1 in the samples
    return special.softmax(x / temperature, axis)


def _steps(xp: Any, x: Any, axis: int, temperature: float, out: Any, log: bool = False) -> list[Any]:
    """C calls for the softmax of x along an axis, or its logarithm.

    Along a short last axis NumPy's loops would begin anew at every row: then it is done in columns, of which there are
    at least two, for the sum of a single one has another order than that of several.
    """
    if not x.size:
        return []
    classes = x.shape[axis]
    columns = classes <= SHORT and math.prod(x.shape[axis + 1 :]) == 1
    if columns:
        rows = x.size // classes
        made, after = seen_as(xp, out, (rows, classes))
        work = empty(xp, (classes, max(rows, 2)), xp.result_type(x, out))
        steps: list[Any] = [(setitem, work, ..., x.reshape(rows, classes).T)]
        x, axis, out = work, 0, work
    else:
        steps, work = [], out
    part = xp.empty((*x.shape[:axis], 1, *x.shape[axis + 1 :]), out.dtype)
    extreme = xp.maximum if temperature > 0 else xp.minimum
    steps += (extreme.reduce, x, axis, None, part, True), (xp.subtract, x, part, out)
    if temperature != 1:
        steps.append((xp.divide, out, temperature, out))
    powers = empty(xp, out.shape, out.dtype) if log else out
    steps += (xp.exp, out, powers), (xp.add.reduce, powers, axis, None, part, True)
    if log:
        steps.append((xp.log, part, part))
    last = xp.subtract if log else xp.divide
    if columns:
        return [*steps, (last, work[:, :rows], part[:, :rows], made.T), *after]
    return [*steps, (last, out, part, out)]


def _work(metas: Metas, made: Metas, attributes: Attributes) -> float:
    """Five passes, of which those along rows take longer for short ones."""
    (shape, _), *_ = made  # type: ignore[misc]
    return (4.5 if shape[attributes.get("axis", -1)] >= 4 * SHORT else 7.0) * size_of(made)


def _length_variant(inputs: Sequence[Any], attributes: Attributes, training: bool) -> Any:
    _, length = inputs
    if (length is None) is bool(attributes["use_length"]):
        raise ValueError("length expected" if length is None else "length is for use_length=True only")
    if length is None:
        return softmax, inputs, attributes
    return softmax_of_length, inputs, {n: v for n, v in attributes.items() if n != "use_length"}


@operator(
    "softmax",
    infer=_softmax,
    variant=_length_variant,
    indices=("length",),
    atomic=True,
    by_rows=True,
    cost=_work,
    samples=[
        Sample((2, 3), None),
        Sample((2, 3, 2), None, axis=1, temperature=2.0),
        Sample((4,), None, temperature=-0.5),
        Sample((2, 3), np.array([1, 3]), use_length=True),
    ],
    reference=_softmax_reference,
    nd=Rule(rename=DATA, dtype=attribute_dtype(), order=("x", "length", "axis", "temperature", "dtype", "use_length")),
)
def softmax(
    xp: Any,
    x: Any,
    length: Any = None,
    *,
    axis: int = -1,
    temperature: float | None = None,
    dtype: Any = None,
    use_length: bool = False,
    out: Any,
) -> Any:
    """exp(x / temperature) along an axis, divided by the sum.

    x: any shape with axes, floating point.   length: the shape of x without the axis, integers; with use_length=True
    only so many elements count, and the others give 0.   dtype: of the result, default that of x.
    """
    return _steps(xp, x, axis, temperature or 1.0, out)


def _softmax_gradient(F: Any, g: Any, out: Any, axis: int, temperature: float) -> Any:
    weighted = g * out
    gradient = weighted - out * F.sum(weighted, axis=(axis,), keepdims=True)
    return gradient if temperature == 1 else gradient * (1 / temperature)


softmax.grad(x=_softmax_gradient)


def _softmax_of_length(metas: Metas, attributes: Attributes) -> Inferred:
    made, attributes = _softmax(metas[:1], attributes)
    (shape, _), axis = made[0], attributes["axis"]  # type: ignore[misc]
    length = metas[1]
    assert length is not None
    if length[1].kind not in "iu" or length[0] != (*shape[:axis], *shape[axis + 1 :]):
        raise ValueError(f"length of shape {(*shape[:axis], *shape[axis + 1 :])} and of an integer type expected")
    return made, attributes


@operator(
    "softmax_of_length",
    infer=_softmax_of_length,
    indices=("length",),
    samples=[Sample((2, 3), np.array([1, 3])), Sample((2, 3), np.array([0, 1, 2]), axis=0, temperature=2.0)],
    nd=False,
)
def softmax_of_length(
    xp: Any, x: Any, length: Any, *, axis: int = -1, temperature: float | None = None, dtype: Any = None, out: Any
) -> None:
    """softmax of the first `length` elements along the axis; 0 for the others.

    x: any shape with axes, floating point.   length: the shape of x without the axis, integers.
    """
    position = xp.arange(x.shape[axis]).reshape((-1,) + (1,) * (x.ndim - axis - 1))
    inside = position < xp.expand_dims(length, axis)
    scaled = xp.where(inside, x / temperature, -np.inf)
    lowest = xp.finfo(scaled.dtype).min
    largest = xp.maximum(scaled.max(axis, keepdims=True), lowest) if scaled.size else lowest
    xp.exp(scaled - largest, out)
    xp.divide(out, xp.maximum(out.sum(axis, keepdims=True), xp.finfo(out.dtype).tiny), out)


softmax_of_length.grad(x=_softmax_gradient)


@operator(
    "log_softmax",
    infer=_softmax,
    atomic=True,
    by_rows=True,
    cost=_work,
    samples=[Sample((2, 3)), Sample((2, 3, 2), axis=1, temperature=2.0)],
    reference=lambda x, axis=-1, temperature=1.0: special.log_softmax(x / temperature, axis),
    nd=NORMALIZED,
)
def log_softmax(
    xp: Any, x: Any, *, axis: int = -1, temperature: float | None = None, dtype: Any = None, out: Any
) -> Any:
    """The logarithm of softmax, exact also where softmax is 0.

    x: any shape with axes, floating point.
    """
    return _steps(xp, x, axis, temperature or 1.0, out, log=True)


def _log_softmax_gradient(F: Any, g: Any, out: Any, axis: int, temperature: float) -> Any:
    gradient = g - F.exp(out) * F.sum(g, axis=(axis,), keepdims=True)
    return gradient if temperature == 1 else gradient * (1 / temperature)


log_softmax.grad(x=_log_softmax_gradient)


def _softmin_variant(inputs: Sequence[Any], attributes: Attributes, training: bool) -> Any:
    temperature = attributes["temperature"]
    attributes = {**attributes, "temperature": -1.0 if temperature is None else -temperature}
    return softmax, (*inputs, None), softmax.bind(attributes)


@operator(
    "softmin",
    infer=spelling,
    variant=_softmin_variant,
    samples=[Sample((2, 3)), Sample((2, 3), axis=0, temperature=2.0)],
    reference=lambda x, axis=-1, temperature=1.0: special.softmax(-x / temperature, axis),
    nd=NORMALIZED,
)
def softmin(xp: Any, x: Any, *, axis: int = -1, temperature: float | None = None, dtype: Any = None, out: Any) -> None:
    """softmax of -x.  x: any shape with axes, floating point."""


def _softmax_activation_variant(inputs: Sequence[Any], attributes: Attributes, training: bool) -> Any:
    mode = attributes["mode"]
    known("mode", mode, ("instance", "channel"))
    return softmax, (*inputs, None), softmax.bind({"axis": 1 if mode == "channel" else -1})


@operator(
    "SoftmaxActivation",
    infer=spelling,
    variant=_softmax_activation_variant,
    samples=[Sample((2, 3)), Sample((2, 3, 2), mode="channel")],
    nd=Rule(method=False),
)
def softmax_activation(xp: Any, data: Any, *, mode: str = "instance", out: Any) -> None:
    """softmax along the last axis, or, with mode "channel", along axis 1."""


# ---- losses ----------------------------------------------------------------------------------------------------------


def indicator(F: Any, label: Any, n: int) -> Any:
    """1 where class number and label agree, of shape (..., n, m), for labels of shape (..., 1, m); of bool."""
    return F.equal(label, F.reshape(F.arange(start=0, stop=n), shape=(n, 1)))


def _cross_entropy(metas: Metas, attributes: Attributes) -> Inferred:
    data, label = metas
    assert data is not None and label is not None
    floating(data)
    if len(data[0]) != 2 or label[0] != data[0][:1] or not data[0][1]:
        raise ValueError("data of shape (n, classes) and label of shape (n,) expected")
    return (((1,), data[1]),), attributes


@operator(
    "softmax_cross_entropy",
    infer=_cross_entropy,
    indices=("label",),
    samples=[Sample((3, 4), np.array([1.0, 3.0, 0.0]))],
    reference=lambda data, label: -special.log_softmax(data, 1)[range(len(data)), label.astype(int)].sum(keepdims=True),
    nd=Rule(method=False),
)
def softmax_cross_entropy(xp: Any, data: Any, label: Any, *, out: Any) -> None:
    """The sum of -log softmax(data) at the labels.

    data: (n, classes), floating point.   label: (n,), class numbers; one that is no class counts log(1e-8).
    Result: (1,).
    """
    logs = empty(xp, data.shape, data.dtype)
    for function, *arguments in _steps(xp, data, 1, 1.0, logs, log=True):
        function(*arguments)
    row = xp.arange(len(data))
    number = label.astype(np.int64)
    inside = (number >= 0) & (number < data.shape[1])
    picked = logs[row, xp.where(inside, number, 0)]
    out[0] = -xp.where(inside, xp.maximum(picked, math.log(1e-8)), math.log(1e-8)).sum()


def _cross_entropy_gradient(F: Any, g: Any, data: Any, label: Any, data_shape: Any) -> Any:
    n, classes = data_shape
    target = F.reshape(indicator(F, F.reshape(label, shape=(n, 1, 1)), classes), shape=(n, classes))
    return g * (F.softmax(data, axis=1) - target)


softmax_cross_entropy.grad(data=_cross_entropy_gradient, label=zero)


def _instances(shape: tuple[int, ...], multi_output: bool, preserve_shape: bool) -> tuple[int, int, int]:
    """The data of SoftmaxOutput as (instances, classes, positions)."""
    if multi_output:
        return shape[0], shape[1], math.prod(shape[2:])
    if preserve_shape:
        return math.prod(shape[:-1]), shape[-1], 1
    return shape[0], math.prod(shape[1:]), 1


def _softmax_output(metas: Metas, attributes: Attributes) -> Inferred:
    data, label = metas
    assert data is not None and label is not None
    floating(data)
    known("normalization", attributes["normalization"], ("null", "batch", "valid"))
    shape = data[0]
    if len(shape) < 2:
        raise ValueError("data with at least two axes expected")
    n, _, m = _instances(shape, attributes["multi_output"], attributes["preserve_shape"])
    if label[0] != shape and math.prod(label[0]) != n * m:
        raise ValueError(f"label of {n * m} class numbers, or of the shape of data, expected")
    return (data,), attributes


@operator(
    "SoftmaxOutput",
    infer=_softmax_output,
    indices=("label",),
    defined=True,
    atomic=True,
    cost=_work,
    aliases=("Softmax",),
    samples=[
        Sample((2, 3), np.array([2.0, 0.0])),
        Sample((2, 3, 2), np.array([[2.0, 0.0], [1.0, 1.0]]), multi_output=True, use_ignore=True, ignore_label=1.0),
    ],
    nd=Rule(method=False),
)
def softmax_output(
    xp: Any,
    data: Any,
    label: Any,
    *,
    grad_scale: float = 1.0,
    ignore_label: float = -1.0,
    multi_output: bool = False,
    use_ignore: bool = False,
    preserve_shape: bool = False,
    normalization: str = "null",
    out_grad: bool = False,
    smooth_alpha: float = 0.0,
    out: Any,
) -> Any:
    """softmax, whose gradient is *defined* as that of the cross entropy with the labels: softmax - target.

    data: (n, classes), or (n, ...) seen so; with multi_output (n, classes, ...); with preserve_shape (..., classes).
    label: a class number for each softmax (one that is no class has no target), or probabilities of the shape of data.
    The gradient ignores the head's unless out_grad is set, and is multiplied by grad_scale.  With class numbers it is 0
    where use_ignore is set and the label is ignore_label; smooth_alpha of the target goes to the other classes in equal
    parts (not with multi_output, as in MXNet); and it is divided by n (normalization "batch") or by the number of
    labels other than ignore_label ("valid"), and, unless "valid", by the number of positions (multi_output).
    Source: MXNet SoftmaxOutput.
    """
    shape = _instances(data.shape, multi_output, preserve_shape)
    data, (out, after) = data.reshape(shape), seen_as(xp, out, shape)
    return _steps(xp, data, 1, 1.0, out) + after


def _softmax_output_gradient(
    F: Any, g: Any, out: Any, label: Any, data_shape: Any, label_shape: Any, grad_scale: float, ignore_label: float,
    multi_output: bool, use_ignore: bool, preserve_shape: bool, normalization: str, out_grad: bool, smooth_alpha: float,
) -> Any:  # fmt: skip
    if label_shape == data_shape:
        gradient = (out - label) * grad_scale
        return gradient * g if out_grad else gradient
    n, classes, m = _instances(data_shape, multi_output, preserve_shape)
    label = F.reshape(label, shape=(n, 1, m))
    target = F.cast(indicator(F, label, classes), dtype=out.dtype)
    if smooth_alpha and not multi_output:
        rest = smooth_alpha / max(classes - 1, 1)
        target = target * (1 - smooth_alpha - rest) + rest
    gradient = F.reshape(out, shape=(n, classes, m)) - target
    if use_ignore:
        gradient = F.where(F.not_equal(label, ignore_label), gradient, 0)
    if normalization == "valid":
        valued = F.cast(F.not_equal(label, ignore_label), dtype=out.dtype)
        gradient = gradient * (grad_scale / F.maximum(F.sum(valued), 1))
    else:
        gradient = gradient * (grad_scale / max(m * (n if normalization == "batch" else 1), 1))
    gradient = F.reshape(gradient, shape=data_shape)
    return gradient * g if out_grad else gradient


softmax_output.grad(data=_softmax_output_gradient, label=zero)


# ---- regression ------------------------------------------------------------------------------------------------------


def _regression_output(metas: Metas, attributes: Attributes) -> Inferred:
    data, label = metas
    assert data is not None and label is not None
    uniform(data, label)
    floating(data)
    if math.prod(label[0]) != math.prod(data[0]) or label[0][:1] != data[0][:1]:
        raise ValueError("as many labels as data expected")
    return (data,), {"grad_scale": float(attributes["grad_scale"])}


def _regression(name: str, call: Any, gradient: Any, doc: str, kinks: str = "") -> None:
    """Declare an output layer whose gradient is defined as `gradient(F, out, label)` / elements in an instance."""

    def kernel(xp: Any, data: Any, label: Any, *, grad_scale: float = 1.0, out: Any) -> Any:
        return ((ufunc_of(computing(), call), data, out),)

    def text(F: Any, out: Any, label: Any, data_shape: Any, grad_scale: float) -> Any:
        scale = grad_scale / max(math.prod(data_shape[1:]), 1)
        return gradient(F, out, F.reshape(label, shape=data_shape)) * scale

    operator(
        name,
        infer=_regression_output,
        atomic=True,
        defined=True,
        samples=[Sample((2, 3), (2, 3)), Sample((3, 1), (3,), grad_scale=2.0)],
        nd=Rule(method=False),
        kinks=kinks,
        doc=f"{doc}\n\ndata: (n, ...).   label: as many elements.   The gradient ignores the head's; it is multiplied "
        f"by grad_scale and divided by the number of elements in an instance.   Source: MXNet {name}.",
    )(kernel).grad(data=text, label=zero)


_regression("LinearRegressionOutput", np.positive, lambda F, out, label: out - label,
            "The data, with the gradient of half the squared distance from the label.")  # fmt: skip
_regression("LogisticRegressionOutput", special.expit, lambda F, out, label: out - label,
            "sigmoid of the data, with the gradient of the cross entropy with the label.")  # fmt: skip
_regression("MAERegressionOutput", np.positive,
            lambda F, out, label: F.cast(F.greater(out, label), dtype=out.dtype) * 2 - 1,
            "The data, with the gradient of the absolute distance from the label.",
            "where data and label are equal the gradient is that from below")  # fmt: skip
