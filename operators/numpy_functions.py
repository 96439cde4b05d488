"""NumPy's functions on arrays: ``np.exp(x)``, ``np.concatenate([x, y])``, ``np.add.reduce(x)``.

Where there is an operator of that meaning it is pushed, by the rules of the array's face: nothing waits, autograd
records it, and the result is an array.  Every other function is NumPy's own, on copies: it waits, and gives NumPy
arrays; with an array that is on the tape, while a scope records, it is an error, for its gradient would be lost.  So is
what would write into a copy.  [tests/ndarray/test_numpy_functions.py, tests/ndarray/test_numpy_agreement.py]

In the canonical face an operator that is pushed gives NumPy's shape, dtype and values.  In the nd face it gives NumPy's
shape (but never ()) and the face's dtype: see docs/differences.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from ..engine import ArgumentTypeError
from ..ndarray import _late
from ..ndarray.arithmetic import foreign
from ..ndarray.array import Array
from ..ndarray.dtype import FLOAT16, KNOWN, NARROW, DType
from ..ndarray.line import scope
from ..ndarray.ndarray import NDArray
from ..ndarray.reading import describe
from .schema import Operator, registry


class As(NamedTuple):
    """An operator in NumPy's words.  `arguments`: what NumPy calls its arguments, and what the operator calls them.

    A NumPy function whose other arguments are not left out is not the operator.  `series`: the first argument is a
    sequence of arrays.   `fixed`: further attributes.   `axes`: how many axes an operand may have.   `tuples`: `axis`
    may be a tuple.   `promoted`: inputs and attributes whose dtypes give the result's, in the canonical face.
    """

    operator: str
    arguments: Mapping[str, str]
    series: bool = False
    fixed: Mapping[str, Any] = {}
    axes: range = range(65)
    tuples: bool = False
    promoted: tuple[str, ...] = ()


OPERAND = {"a": "x"}
AXIS = {"a": "x", "axis": "axis"}
REDUCED = {"a": "x", "axis": "axis", "keepdims": "keepdims"}

FUNCTIONS: dict[Callable[..., Any], As] = {
    **{
        getattr(np, name): As(name, REDUCED, tuples=True)
        for name in ("sum", "mean", "prod", "nansum", "nanprod", "max", "min")
    },
    np.amax: As("max", REDUCED, tuples=True),
    np.amin: As("min", REDUCED, tuples=True),
    np.var: As("var", {**REDUCED, "ddof": "ddof"}, tuples=True),
    np.std: As("std", {**REDUCED, "ddof": "ddof"}, tuples=True),
    np.argmax: As("argmax", REDUCED),
    np.argmin: As("argmin", REDUCED),
    np.sort: As("sort", AXIS),
    np.argsort: As("argsort", AXIS),
    np.clip: As(
        "clip", {"a": "x", "a_min": "a_min", "a_max": "a_max", "min": "a_min", "max": "a_max"},
        promoted=("x", "a_min", "a_max"),
    ),
    np.where: As("where", {"condition": "condition", "x": "x", "y": "y"}, promoted=("x", "y")),
    np.concatenate: As("concat", {"arrays": "data", "axis": "dim"}, series=True, fixed={"dim": 0}, promoted=("data",)),
    np.stack: As("stack", {"arrays": "data", "axis": "axis"}, series=True, promoted=("data",)),
    np.transpose: As("transpose", {"a": "x", "axes": "axes"}),
    np.swapaxes: As("swapaxes", {"a": "x", "axis1": "dim1", "axis2": "dim2"}),
    np.expand_dims: As("expand_dims", AXIS),
    np.squeeze: As("squeeze", AXIS, tuples=True),
    np.reshape: As("reshape", {"a": "x", "shape": "shape"}),
    np.ravel: As("reshape", OPERAND, fixed={"shape": (-1,)}),
    np.broadcast_to: As("broadcast_to", {"array": "x", "shape": "shape"}),
    np.tile: As("tile", {"A": "x", "reps": "reps"}),
    np.repeat: As("repeat", {"a": "x", "repeats": "repeats", "axis": "axis"}),
    np.flip: As("flip", {"m": "x", "axis": "axis"}, tuples=True),
    np.cumsum: As("cumsum", AXIS),
    np.dot: As("dot", {"a": "x", "b": "y"}, axes=range(1, 3), promoted=("x", "y")),
    np.zeros_like: As("zeros_like", OPERAND),
    np.ones_like: As("ones_like", OPERAND),
    np.copy: As("copy", OPERAND),
}  # fmt: skip
REDUCTIONS = {
    ufunc: FUNCTIONS[function]
    for ufunc, function in ((np.add, np.sum), (np.multiply, np.prod), (np.maximum, np.max), (np.minimum, np.min))
}
METADATA: dict[Callable[..., Any], Callable[[Array], Any]] = {
    np.shape: lambda a: a.shape,
    np.ndim: lambda a: a.ndim,
    np.size: lambda a: a.size,
}
#: functions whose arguments `inspect` does not know
BARE = {np.where: ("condition", "x", "y"), np.concatenate: ("arrays", "axis")}
WRITING = {np.copyto, np.put, np.place, np.putmask, np.fill_diagonal, np.put_along_axis}
#: types of a ufunc's operands that have no rules of their own
PLAIN = frozenset((Array, NDArray, np.ndarray, bool, int, float, np.float32, np.float64, np.int64))


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _wholes(value: Any) -> bool:
    return _whole(value) or (isinstance(value, tuple | list) and all(map(_whole, value)))


def _bound(value: Any) -> bool:
    return isinstance(value, NoneType | bool | int | float | np.bool_ | np.integer | np.floating)


#: what an operator takes for an attribute; NumPy is left to do something with all else, or to refuse it
TAKEN: dict[str, Callable[[Any], bool]] = {
    "axis": lambda v: v is None or (_wholes(v) and not isinstance(v, list)),
    "keepdims": lambda v: isinstance(v, bool),
    "ddof": lambda v: _bound(v) and v is not None,
    "dim": _whole,
    "dim1": _whole,
    "dim2": _whole,
    "axes": lambda v: v is None or (isinstance(v, tuple | list) and len(v) > 0 and _wholes(v)),
    "shape": lambda v: _wholes(v) and np.min(v, initial=0) >= -1,
    "reps": _wholes,
    "repeats": lambda v: _whole(v) and v >= 0,
    "a_min": _bound,
    "a_max": _bound,
}


def array_ufunc(self: Array, ufunc: np.ufunc, method: str, *inputs: Any, **named: Any) -> Any:
    """NumPy's ufuncs; see the module's text.

    `out`: an array of the library gets an operator's result; a NumPy array is written when the values are there.
    Raises: at the call what the operator raises; ArgumentTypeError for a ufunc that would write into a copy, and for
    one without an operator while an operand is on the tape.
    """
    outs = named.pop("out", (None,))
    out = outs[0] if len(outs) == 1 else outs
    usual = PLAIN.issuperset(map(type, inputs))
    if not usual:
        if any(map(_has_rules, (*inputs, *outs))):
            if any(isinstance(x, np.ndarray) for x in (*inputs, *outs) if _has_rules(x)):
                _host(ufunc.__name__, inputs)  # it would read copies
            return NotImplemented
        inputs = tuple(np.array(_host(ufunc.__name__, x)) if isinstance(x, list | tuple) else x for x in inputs)
        usual = not any(map(foreign, inputs))
    if usual and not named and method == "__call__" and (out is None or isinstance(out, Array)):
        name = _ufuncs().get(ufunc)
        if name is not None:
            function = getattr(self._ops, name)
            return function(*inputs) if out is None else function(*inputs, out=out)
    if method == "reduce" and ufunc in REDUCTIONS and out is None and not named.keys() - {"axis", "keepdims"}:
        form = REDUCTIONS[ufunc]
        meant = _meant(form, {"a": inputs[0], "axis": 0, **named})
        if meant is not None:
            return getattr(self._ops, form.operator)(*meant[0], **meant[1])
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
    more = {np.matmul: "matmul", np.conjugate: "copy", np.degrees: "degrees", np.radians: "radians"}
    return {op.ufunc: op.name for op in registry if op.ufunc is not None} | more


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
        given_series = renamed.pop(op.variadic or "", ())
        if not isinstance(given_series, tuple | list):
            return None
        if any(isinstance(x, list | tuple) for x in given_series):
            return None
        inputs = [x if isinstance(x, Array | np.ndarray) else np.asarray(x) for x in given_series]
    else:
        inputs = [renamed.pop(name) for name in op.inputs if name in renamed]
        if len(inputs) < len(op.inputs):
            return None
    if not all(isinstance(x, Array | np.ndarray | int | float | np.generic) and not foreign(x) for x in inputs):
        return None
    attributes = {**form.fixed, **renamed}
    if not attributes.keys() >= set(op.required) or not all(TAKEN[n](v) for n, v in attributes.items()):
        return None
    if _differs(form, op, inputs, attributes, given) or isinstance(given.get("out"), np.ndarray):
        return None
    if form.promoted and not any(isinstance(x, NDArray) for x in inputs):
        promoted = _promoted(op, form.promoted, inputs, attributes)
        if promoted is None:
            return None
        inputs = promoted
    return inputs, attributes if given.get("out") is None else {**attributes, "out": given["out"]}


def _differs(
    form: As, op: Operator, inputs: Sequence[Any], attributes: Mapping[str, Any], given: Mapping[str, Any]
) -> bool:
    """Does the operator take these operands otherwise than NumPy, or not at all?"""
    axis = attributes.get("axis", op.attributes.get("axis"))
    if isinstance(axis, tuple) and not form.tuples:
        return True
    if form.operator == "clip" and ("a_min" in given) != ("a_max" in given):
        return True
    for x in inputs:
        n = getattr(x, "ndim", 0)
        if n not in form.axes or (n == 0 and axis is not None and form.operator not in ("expand_dims", "stack")):
            return True
    return any(isinstance(x, NDArray) for x in inputs) and _differs_in_nd(form, inputs, attributes)


def _differs_in_nd(form: As, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> bool:
    """Has the nd face a meaning of its own: rows chosen by a condition, codes in a shape, () for all axes?"""
    if form.operator == "where":
        condition, x, y = inputs
        rows = getattr(condition, "ndim", 0) == 1 and getattr(x, "ndim", 0) > 1
        return rows or not (isinstance(x, Array) or isinstance(y, Array))
    if form.operator in ("reshape", "broadcast_to"):
        return 0 in np.atleast_1d(attributes["shape"])
    return isinstance(attributes.get("axis"), tuple) and not attributes["axis"] and "keepdims" in form.arguments


def _promoted(op: Operator, names: Sequence[str], inputs: list[Any], attributes: Mapping[str, Any]) -> list[Any] | None:
    """The inputs, cast to what NumPy promotes these to; None if the library has no such dtype, or not the values."""
    chosen = [op.input_name(i) in names for i in range(len(inputs))]
    values = [x for x, is_one in zip(inputs, chosen, strict=True) if is_one]
    values += [attributes[name] for name in names if attributes.get(name) is not None]
    try:
        dtypes = [x._dtype if isinstance(x, Array) else getattr(x, "dtype", x) for x in values]
        narrow = {d for d in dtypes if isinstance(d, np.dtype) and d in NARROW}
        dtype = np.result_type(*(FLOAT16 if isinstance(d, np.dtype) and d in NARROW else d for d in dtypes))
        if len(narrow) == 1 and dtype == FLOAT16:  # of bfloat16 NumPy knows no promotion with numbers
            (dtype,) = narrow
        for x in values:
            if isinstance(x, int):
                dtype.type(x)
    except (TypeError, ValueError, OverflowError):
        return None
    if dtype not in KNOWN or len(narrow) > 1:
        return None
    return [_cast(x, dtype) if is_one else x for x, is_one in zip(inputs, chosen, strict=True)]


def _cast(x: Any, dtype: DType) -> Any:
    if not isinstance(x, Array):
        return np.asarray(x, dtype)
    return x if x._dtype == dtype else x.astype(dtype)


def _has_rules(x: Any) -> bool:
    """Does it take part in ufuncs by NumPy's protocol, in a way of its own?"""
    own = getattr(type(x), "__array_ufunc__", None)
    return own is not None and own is not np.ndarray.__array_ufunc__ and not isinstance(x, Array)


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
