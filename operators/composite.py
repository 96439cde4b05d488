"""Operators made of operators: the gradient of any function that is written in F, as a text in F.

`cotangents_of` runs such a function on a `Tape` of its own, and then the gradient texts of what it used, backwards.
All of that happens in the F that it is given, so it serves raw arrays, arrays on autograd's tape and itself: the
gradient of a gradient comes of the same few lines.  `derived` declares an operator's gradient that way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..engine import InternalError
from ..ndarray.dtype import is_float
from .elsewhere import brought
from .schema import Attributes, Operator, Text, registry
from .texts import arguments, finished

Function = Callable[..., Any]


class Value:
    """What a function in F works on.

    `value`: in the F beneath.   `op`, `inputs`, `attributes`: how it was made, None for an operand of the function.
    `needed`: whether a cotangent is wanted here or further back.
    """

    __slots__ = ("attributes", "inputs", "needed", "op", "tape", "value")
    __array_ufunc__ = None

    def __init__(self, tape: Tape, value: Any, needed: bool) -> None:
        self.tape, self.value, self.needed = tape, value, needed
        self.op: Operator | None = None
        self.inputs: Sequence[Any] = ()
        self.attributes: Attributes = {}

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def ndim(self) -> int:
        return len(self.value.shape)

    @property
    def dtype(self) -> Any:
        return np.dtype(self.value.dtype)


def _operator(name: str, reflected: bool = False) -> Any:
    def method(self: Value, *other: Any) -> Any:
        return getattr(self.tape, name)(*((*other, self) if reflected else (self, *other)))

    return method


for _name, _op in (("add", "add"), ("sub", "subtract"), ("mul", "multiply"), ("truediv", "divide"), ("pow", "power")):
    setattr(Value, f"__{_name}__", _operator(_op))
    setattr(Value, f"__r{_name}__", _operator(_op, True))
setattr(Value, "__neg__", _operator("negative"))  # noqa: B010


class Tape:
    """F for `Value`: every operator is done in the F beneath, and noted if a cotangent goes through it."""

    def __init__(self, F: Any) -> None:
        self.F = F
        self.made: list[Value] = []

    def __getattr__(self, name: str) -> Any:
        if name not in registry:
            raise AttributeError(f"a function in F uses F.{name}, which is not an operator")
        op = registry[name]

        def function(*inputs: Any, **attributes: Any) -> Any:
            return self._call(op, inputs, attributes)

        setattr(self, name, function)
        return function

    def _call(self, op: Operator, inputs: Sequence[Any], attributes: Attributes) -> Any:
        plain = [x.value if isinstance(x, Value) else x for x in inputs]
        results = getattr(self.F, op.name)(*plain, **attributes)
        if type(results) is tuple:
            raise InternalError(f"a function in F uses {op.name}, which has several outputs")
        result = Value(self, results, False)
        if any(isinstance(x, Value) and x.needed for x in inputs) and is_float(result.dtype):
            if op.variant is not None:
                raise InternalError(f"a function in F uses {op.name}, which is another operator")
            dtype = next(np.dtype(x.dtype) for x in plain if hasattr(x, "dtype"))
            metas = [
                None if x is None else (tuple(x.shape), np.dtype(x.dtype)) if hasattr(x, "dtype") else ((), dtype)
                for x in plain
            ]
            result.needed, result.op, result.inputs = True, op, inputs
            _, result.attributes = op.infer(metas, op.bind(attributes))
            self.made.append(result)
        return result


def cotangents_of(
    F: Any, function: Function, inputs: Sequence[Any], attributes: Mapping[str, Any], wanted: Sequence[int], heads: Any
) -> list[Any]:
    """The cotangents of the wanted inputs (by position) of ``function(F, *inputs, **attributes)``.

    heads: the cotangent of each output, None where there is none.   What nothing depends on is zeros.
    """
    tape = Tape(F)
    operands = [None if x is None else Value(tape, x, i in wanted) for i, x in enumerate(inputs)]
    outputs = function(tape, *operands, **attributes)
    found: dict[Value, Any] = {}

    def arrive(at: Value, cotangent: Any) -> None:
        found[at] = cotangent if at not in found else F.add(found[at], cotangent)

    for output, head in zip(outputs if type(outputs) is tuple else (outputs,), heads, strict=True):
        if head is not None and output.needed:
            arrive(output, head)
    for value in reversed(tape.made):
        g = found.pop(value, None)
        if g is not None:
            for x, cotangent in _through(F, value, g):
                arrive(x, cotangent)
    made = []
    for i in wanted:
        x = operands[i]
        assert x is not None
        made.append(found[x] if x in found else F.zeros_like(x.value))
    return made


def _through(F: Any, value: Value, g: Any) -> Any:
    """(input, cotangent) of each input of an operator that wants one."""
    op = value.op
    assert op is not None
    plain = [x.value if isinstance(x, Value) else brought(x) for x in value.inputs]
    known: dict[str, Any] = {**dict.fromkeys(op.inputs), "g": g, op.outputs[0]: value.value}
    for i, x in enumerate(plain):
        if i < len(op.inputs):
            known[op.inputs[i]] = x
            known[f"{op.inputs[i]}_shape"] = tuple(getattr(x, "shape", ()))
    if op.variadic:
        known[op.variadic] = plain[len(op.inputs) :]
        known[f"{op.variadic}_shapes"] = tuple(tuple(x.shape) for x in known[op.variadic])
    wanting = [i for i, x in enumerate(value.inputs) if isinstance(x, Value) and x.needed]
    known["needs"] = {op.input_name(i) for i in wanting}
    joint: Any = None
    for i in wanting:
        text, name = op.gradient_of(i), op.input_name(i)
        if not isinstance(text, Text):
            continue
        if op.variadic:
            known["index"] = i - len(op.inputs)
        if text is op.joint:
            if joint is None:
                made = text.function(F, **arguments(text, known, value.attributes))
                made = made if type(made) is tuple else (made,)
                joint = dict(zip(op.joint_inputs, made, strict=True))
            cotangent = joint[name]
        else:
            cotangent = text.function(F, **arguments(text, known, value.attributes))
        if cotangent is not None:
            x = value.inputs[i]
            yield x, finished(F, op, name, cotangent, (x.shape, x.dtype))


def derived(op: Operator, function: Function, *names: str) -> None:
    """Declare the gradients of these inputs as those of a function in F, which is what the kernel computes.

    function(F, <all inputs>, **<attributes of the function's own that the operator has>); it gives the outputs.
    """
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    attributes = [p.name for p in own if p.name in op.attributes]
    cotangents = ["g"] if len(op.outputs) == 1 else [f"g_{name}" for name in op.outputs]

    def text(F: Any, **known: Any) -> Any:
        wanted = [op.inputs.index(name) for name in names if name in known["needs"]]
        inputs = [known[name] for name in op.inputs]
        heads = [known[name] for name in cotangents]
        made = cotangents_of(F, function, inputs, {n: known[n] for n in attributes}, wanted, heads)
        by_name = dict(zip([op.inputs[i] for i in wanted], made, strict=True))
        return tuple(by_name.get(name) for name in names)

    parameters = ["F", *cotangents, *op.inputs, *attributes, "needs"]
    text.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in parameters]
    )
    op.grad(*names)(text)
