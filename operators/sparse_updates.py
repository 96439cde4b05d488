"""Lazy updates of weights: of a row-sparse gradient's rows alone, and of these rows of the optimizer's states.

They are the updates of optimizer.py on the rows that the gradient stores; no other row is read or written, so weight
decay and momentum leave those as they are.  ``lazy_update=False`` asks for the update of all rows.  The rows' indices
are an operand like any other, so a call never blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import Parameter, Signature, signature
from typing import Any

from ..engine import ArgumentError
from ..ndarray.array import Array
from ..ndarray.ndarray import NDArray
from ..ndarray.reading import describe
from ..ndarray.sparse_arrays import RowSparseNDArray
from .faces import nd_face
from .infer import floating, uniform
from .launch import do
from .push import invoke
from .schema import Attributes, Inferred, Metas, Operator, registry
from .sparse import form


def _lazy(whole: Operator) -> Operator:
    """The update of some rows: weight and states are changed in place, and the output is empty."""

    def kernel(xp: Any, weight: Any, grad: Any, rows: Any, *states: Any, out: Any, **attributes: Any) -> None:
        changed = [array[rows] for array in (weight, *states)]
        new = xp.empty_like(changed[0])
        do(whole.kernel(xp, changed[0], grad, *changed[1:], **attributes, out=new))
        for array, values in zip((weight, *states), (new, *changed[1:]), strict=True):
            array[rows] = values

    first, weight, grad, *others = signature(whole.kernel).parameters.values()
    rows = Parameter("rows", Parameter.POSITIONAL_OR_KEYWORD)
    kernel.__signature__ = Signature([first, weight, grad, rows, *others])  # type: ignore[attr-defined]
    return Operator(
        whole.name, kernel, _inferred, updates=("weight", *whole.updates), indices=("rows",), widen=False, doc=whole.doc
    )


def _inferred(metas: Metas, attributes: Attributes) -> Inferred:
    weight, grad, _, *states = metas
    floating(weight)
    dtype = uniform(weight, grad, *states)
    if any(state is None or weight is None or state[0] != weight[0] for state in states):
        raise ValueError("states of the shape of weight expected")
    return (((0,), dtype),), attributes


def _update(lazy: Operator, inputs: Sequence[Any], attributes: Attributes, out: Any) -> Any:
    weight, grad, *states = inputs
    wanted = attributes.pop("lazy_update", True)
    if not wanted or not isinstance(grad, RowSparseNDArray) or not all(isinstance(x, Array) for x in (weight, *states)):
        return NotImplemented
    if grad.shape != weight.shape:
        given = f"weight {describe(weight)}, grad {describe(grad)}"
        raise ArgumentError(f"[{lazy.name}] {given}: the same shape expected")
    target = weight.copy() if out is None else weight
    if out is not None and out is not weight:
        target = nd_face.assign(weight, out=out)
    data, rows = grad._parts
    invoke(lazy, [target, data, rows, *states], lazy.bind(attributes), cls=NDArray)
    return target


def _declare(name: str) -> None:
    lazy = _lazy(registry[name])
    form(name)(lambda inputs, attributes, out: _update(lazy, inputs, attributes, out))


for _name in ("sgd_update", "sgd_mom_update", "adam_update", "adagrad_update"):
    _declare(_name)
