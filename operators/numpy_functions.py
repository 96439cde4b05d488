"""NumPy's functions on arrays: ``np.exp(x)``, ``np.concatenate([x, y])``, ``np.add.reduce(x)``.

Where there is an operator of that meaning it is pushed, by the rules of the array's face: nothing waits, autograd
records it, and the result is an array.  Every other function is NumPy's own, on copies: it waits, and gives NumPy
arrays; with an array that is on the tape, while a scope records, it is an error, for its gradient would be lost.  So is
what would write into a copy.                                                [tests/ndarray/test_numpy_functions.py]
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import ArgumentTypeError
from ..ndarray import _late
from ..ndarray.array import Array
from ..ndarray.line import scope
from ..ndarray.ndarray import NDArray
from ..ndarray.reading import describe
from .schema import registry


class As(NamedTuple):
    """An operator in NumPy's words.  `arguments`: what NumPy calls its arguments, and what the operator calls them.

    A NumPy function whose other arguments are not left out is not the operator.  `series`: the first argument is a
    sequence of arrays.   `fixed`: further attributes.   `most`: axes of an operand up to which it is the operator.
    """

    operator: str
    arguments: Mapping[str, str]
    series: bool = False
    fixed: Mapping[str, Any] = {}
    most: int = 64


OPERAND = {"a": "x"}
AXIS = {"a": "x", "axis": "axis"}
REDUCED = {"a": "x", "axis": "axis", "keepdims": "keepdims"}

FUNCTIONS: dict[Callable[..., Any], As] = {
    **{getattr(np, name): As(name, REDUCED) for name in ("sum", "mean", "prod", "nansum", "nanprod", "max", "min")},
    np.amax: As("max", REDUCED),
    np.amin: As("min", REDUCED),
    np.var: As("var", {**REDUCED, "ddof": "ddof"}),
    np.std: As("std", {**REDUCED, "ddof": "ddof"}),
    np.argmax: As("argmax", REDUCED),
    np.argmin: As("argmin", REDUCED),
    np.sort: As("sort", AXIS),
    np.argsort: As("argsort", AXIS),
    np.clip: As("clip", {"a": "x", "a_min": "a_min", "a_max": "a_max"}),
    np.where: As("where", {"condition": "condition", "x": "x", "y": "y"}),
    np.concatenate: As("concat", {"arrays": "data", "axis": "dim"}, series=True, fixed={"dim": 0}),
    np.stack: As("stack", {"arrays": "data", "axis": "axis"}, series=True),
    np.transpose: As("transpose", {"a": "x", "axes": "axes"}),
    np.swapaxes: As("swapaxes", {"a": "x", "axis1": "dim1", "axis2": "dim2"}),
    np.expand_dims: As("expand_dims", AXIS),
    np.squeeze: As("squeeze", AXIS),
    np.reshape: As("reshape", {"a": "x", "shape": "shape"}),
    np.ravel: As("reshape", OPERAND, fixed={"shape": (-1,)}),
    np.broadcast_to: As("broadcast_to", {"array": "x", "shape": "shape"}),
    np.tile: As("tile", {"A": "x", "reps": "reps"}),
    np.repeat: As("repeat", {"a": "x", "repeats": "repeats", "axis": "axis"}),
    np.flip: As("flip", {"m": "x", "axis": "axis"}),
    np.cumsum: As("cumsum", AXIS),
    np.dot: As("dot", {"a": "x", "b": "y"}, most=2),
    np.zeros_like: As("zeros_like", OPERAND),
    np.ones_like: As("ones_like", OPERAND),
    np.copy: As("copy", OPERAND),
}
REDUCTIONS = {np.add: "sum", np.multiply: "prod", np.maximum: "max", np.minimum: "min"}
METADATA: dict[Callable[..., Any], Callable[[Array], Any]] = {
    np.shape: lambda a: a.shape,
    np.ndim: lambda a: a.ndim,
    np.size: lambda a: a.size,
}
#: functions whose arguments `inspect` does not know
BARE = {np.where: ("condition", "x", "y"), np.concatenate: ("arrays", "axis")}
WRITING = {np.copyto, np.put, np.place, np.putmask, np.fill_diagonal, np.put_along_axis}


def array_ufunc(self: Array, ufunc: np.ufunc, method: str, *inputs: Any, **named: Any) -> Any:
    """NumPy's ufuncs; see the module's text.

    `out`: an array of the library gets an operator's result; a NumPy array is written when the values are there.
    Raises: at the call what the operator raises; ArgumentTypeError for a ufunc that would write into a copy, and for
    one without an operator while an operand is on the tape.
    """
    outs = named.pop("out", (None,))
    out = outs[0] if len(outs) == 1 else outs
    name = _ufuncs().get(ufunc)
    if method == "__call__" and name is not None and not named and (out is None or isinstance(out, Array)):
        face = self._ops
        return getattr(face, name)(*inputs, **({} if out is None else {"out": out}))
    if method == "reduce" and ufunc in REDUCTIONS and out is None and not named.keys() - {"axis", "keepdims"}:
        return getattr(self._ops, REDUCTIONS[ufunc])(*inputs, **{"axis": 0, **named})
    if method == "at" or isinstance(out, Array | tuple):
        raise ArgumentTypeError(f"[numpy.{ufunc.__name__}] cannot write into {describe(self)}")
    if out is not None:
        named["out"] = out
    return _numpy(f"{ufunc.__name__}.{method}", getattr(ufunc, method), inputs, named)


def array_function(self: Array, function: Callable[..., Any], types: Any, arguments: Any, named: Any) -> Any:
    """NumPy's other functions; see the module's text.

    Raises: at the call what the operator raises; ArgumentTypeError for a function that would write into a copy, and
    for one without an operator while an operand is on the tape.
    """
    if not all(issubclass(t, Array | np.ndarray) for t in types):
        return NotImplemented
    metadata = METADATA.get(function)
    if metadata is not None and len(arguments) == 1 and not named:
        return metadata(arguments[0])
    if function is np.copyto and len(arguments) == 2 and not named and isinstance(arguments[0], Array):
        arguments[0][...] = arguments[1]
        return None
    given = _given(function, arguments, named)
    form = FUNCTIONS.get(function)
    meant = None if form is None else _meant(form, given)
    if form is not None and meant is not None and hasattr(self._ops, form.operator):
        inputs, attributes = meant
        return _canonical(self, form.operator)(*inputs, **attributes)
    writes = function in WRITING or (function is np.nan_to_num and given.get("copy") is False)
    target = next(iter(given.values()), None) if writes else given.get("out")
    if isinstance(target, Array):
        raise ArgumentTypeError(f"[numpy.{function.__name__}] cannot write into {describe(target)}")
    return _numpy(function.__name__, function, arguments, named)


def _canonical(array: Array, name: str) -> Callable[..., Any]:
    """An operator of an array's face that is given its attributes under their canonical names."""
    function = getattr(array._ops, name)
    rename = getattr(registry[name].nd, "rename", {}) if isinstance(array, NDArray) else {}
    back = {ours: theirs for theirs, ours in rename.items()}
    return lambda *inputs, **attributes: function(*inputs, **{back.get(k, k): v for k, v in attributes.items()})


@cache
def _ufuncs() -> dict[np.ufunc, str]:
    return {op.ufunc: op.name for op in registry if op.ufunc is not None} | {np.matmul: "matmul", np.conjugate: "copy"}


@cache
def _parameters(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def _given(function: Any, arguments: Any, named: Any) -> dict[str, Any]:
    """The arguments by name, without those that are as NumPy has them by default; empty if NumPy will complain."""
    if function in BARE:
        return {**dict(zip(BARE[function], arguments, strict=False)), **named}
    try:
        bound = _parameters(function).bind(*arguments, **named)
    except (TypeError, ValueError):
        return {}
    defaults = {n: p.default for n, p in _parameters(function).parameters.items()}
    return {n: v for n, v in bound.arguments.items() if v is not defaults[n]}


def _meant(form: As, given: dict[str, Any]) -> tuple[list[Any], dict[str, Any]] | None:
    """The operator's inputs and attributes; None if it is not what is asked for."""
    op = registry[form.operator]
    renamed = {form.arguments[n]: v for n, v in given.items() if n in form.arguments}
    if len(renamed) < len(given.keys() - {"out"}):
        return None
    if form.series:
        inputs = list(renamed.pop(op.variadic or "", ()))
    else:
        inputs = [renamed.pop(name) for name in op.inputs if name in renamed]
        if len(inputs) < len(op.inputs):
            return None
    if not all(isinstance(x, Array | np.ndarray | int | float | np.generic) for x in inputs):
        return None
    if any(isinstance(x, Array) and x.ndim > form.most for x in inputs):
        return None
    attributes = {**form.fixed, **renamed}
    if any(isinstance(v, Array | np.ndarray) for v in attributes.values()) or not attributes.keys() >= set(op.required):
        return None
    if any(isinstance(x, NDArray) for x in inputs) and _differs(form, inputs, attributes):
        return None
    if attributes.get("dim", 0) is None or isinstance(given.get("out"), np.ndarray):
        return None
    return inputs, attributes if given.get("out") is None else {**attributes, "out": given["out"]}


def _differs(form: As, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> bool:
    """Has the nd face a meaning of its own: rows chosen by a condition, codes in a shape?"""
    if form.operator == "where":
        return len({np.shape(x) for x in inputs}) > 1
    shape = attributes.get("shape", ()) if form.operator == "reshape" else ()
    return any(n == 0 or n < -1 for n in (shape if isinstance(shape, tuple | list) else (shape,)))


def _numpy(name: str, function: Callable[..., Any], arguments: Any, named: Any) -> Any:
    """NumPy's own, on copies."""
    return function(*_host(name, arguments), **_host(name, named))


def _host(name: str, value: Any) -> Any:
    """NumPy arrays in place of arrays, in whatever holds them."""
    if isinstance(value, Array):
        if scope.get().recorder is not None and _late.autograd.tape.entry_of(value) is not None:
            raise ArgumentTypeError(
                f"[numpy.{name}] {describe(value)}: no operator does this, and the gradient would be lost; use detach()"
            )
        return value.asnumpy()
    if isinstance(value, tuple | list):
        return type(value)(_host(name, v) for v in value)
    if isinstance(value, dict):
        return {key: _host(name, v) for key, v in value.items()}
    return value


setattr(Array, "__array_ufunc__", array_ufunc)  # noqa: B010  (mypy takes it for a method of another signature)
setattr(Array, "__array_function__", array_function)  # noqa: B010
