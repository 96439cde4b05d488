"""MXNet's custom operators: classes whose forward and backward fill arrays, called as ``nd.Custom``.

Each call is a `Function` (function.py): forward runs at the call, on the thread that calls, and only pushes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError
from ..ndarray import ndarray as arrays
from ..ndarray.context import Context
from ..ndarray.ndarray import NDArray
from ..ndarray.reading import describe
from ..operators import declare
from ..operators.faces import nd_face
from .function import Function
from .scope import is_training

Prop = TypeVar("Prop", bound="type[CustomOpProp]")


class CustomOp:
    """What a custom operator does; see `CustomOpProp`."""

    def forward(self, is_train: bool, req: list[str], in_data: Any, out_data: Any, aux: Any) -> None:
        """Fill `out_data` from `in_data`, by `assign`.  To be defined.

        `req`: for each output what `assign` does with it.   `aux`: auxiliary arrays, which may be written.
        """
        raise ArgumentTypeError(f"[{type(self).__name__}] a CustomOp defines forward")

    def backward(self, req: list[str], out_grad: Any, in_data: Any, out_data: Any, in_grad: Any, aux: Any) -> None:
        """Fill `in_grad` from `out_grad` and what forward had and gave, by `assign`.  Does nothing by default: the
        gradients are zero."""

    def assign(self, dst: NDArray, req: str, src: Any) -> None:
        """Write `src` into `dst` ("write", "inplace"), add it ("add") or do nothing ("null")."""
        if req not in ("null", "write", "inplace", "add"):
            raise ArgumentError(f"[assign] req {req!r}: 'null', 'write', 'inplace' or 'add' expected")
        if req == "add":
            dst[:] += src
        elif req != "null":
            dst[:] = src


class CustomOpProp:
    """The declaration of a custom operator: a subclass registered by `register`.

    ``__init__`` is given the keyword arguments of ``nd.Custom`` as strings, as in MXNet.

    >>> import vardag as vd
    >>> from vardag import nd, autograd
    >>> class Square(vd.operator.CustomOp):
    ...     def forward(self, is_train, req, in_data, out_data, aux):
    ...         self.assign(out_data[0], req[0], in_data[0] * in_data[0])
    ...     def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
    ...         self.assign(in_grad[0], req[0], 2 * in_data[0] * out_grad[0])
    >>> @vd.operator.register("square_of_the_docs")
    ... class SquareProp(vd.operator.CustomOpProp):
    ...     def create_operator(self, ctx, in_shapes, in_dtypes):
    ...         return Square()
    >>> x = nd.array([1, 2]); x.attach_grad()
    >>> with autograd.record():
    ...     y = nd.Custom(x, op_type="square_of_the_docs")
    >>> y.backward()
    >>> x.grad.asnumpy()
    array([2., 4.], dtype=float32)
    """

    def __init__(self, need_top_grad: bool = True) -> None:
        self.need_top_grad_ = need_top_grad

    def list_arguments(self) -> list[str]:
        """The names of the inputs."""
        return ["data"]

    def list_outputs(self) -> list[str]:
        """The names of the outputs."""
        return ["output"]

    def list_auxiliary_states(self) -> list[str]:
        """The names of the auxiliary arrays: given after the inputs, without a gradient, and they may be written."""
        return []

    def infer_shape(self, in_shape: list[list[int]]) -> Any:
        """Shapes of (inputs, outputs[, auxiliary arrays]).  Default: outputs like the first input."""
        return in_shape, [in_shape[0]] * len(self.list_outputs()), []

    def infer_type(self, in_type: list[Any]) -> Any:
        """Dtypes, in the form of `infer_shape`.  Default: all like the first input."""
        first = in_type[0]
        return in_type, [first] * len(self.list_outputs()), [first] * len(self.list_auxiliary_states())

    def declare_backward_dependency(self, out_grad: Any, in_data: Any, out_data: Any) -> Any:
        """Never asked: backward is given everything."""
        return [*out_grad, *in_data, *out_data] if self.need_top_grad_ else [*in_data, *out_data]

    def create_operator(self, ctx: Context, in_shapes: Any, in_dtypes: Any) -> CustomOp:
        """The operator for inputs of these shapes and dtypes; asked at every call."""
        return CustomOp()


_registered: dict[str, tuple[type[CustomOpProp], type[_Run]]] = {}


def register(reg_name: str) -> Callable[[Prop], Prop]:
    """A decorator that makes a `CustomOpProp` known to ``nd.Custom`` as `reg_name`; the last of a name counts."""

    def declared(prop: Prop) -> Prop:
        if not (isinstance(prop, type) and issubclass(prop, CustomOpProp)):
            raise ArgumentTypeError(f"[register] {prop!r}: a subclass of CustomOpProp expected")
        _registered[reg_name] = prop, type(reg_name, (_Run,), {})
        return prop

    return declared


def get_all_registered() -> list[str]:
    """The names that ``nd.Custom`` knows."""
    return list(_registered)


class _Run(Function):
    """One call of a custom operator.  Subclasses carry the name that errors give."""

    def __init__(self, op: CustomOp, made: Sequence[tuple[Any, Any]], aux: list[NDArray]) -> None:
        self._op, self._made, self._aux = op, made, aux

    def forward(self, *inputs: NDArray) -> Any:
        outputs = [arrays.empty(shape, inputs[0].context, dtype) for shape, dtype in self._made]
        for y in outputs:
            y[:] = 0
        self._op.forward(
            is_train=is_training(), req=["write"] * len(outputs), in_data=list(inputs), out_data=outputs, aux=self._aux
        )
        self._number = len(inputs)
        self.save_for_backward(*inputs, *outputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def backward(self, *output_grads: Any) -> Any:
        values = self.saved_tensors
        in_data, out_data = list(values[: self._number]), list(values[self._number :])
        in_grad = [nd_face.zeros_like(x) for x in in_data]
        self._op.backward(
            req=["write"] * len(in_grad),
            out_grad=list(output_grads),
            in_data=in_data,
            out_data=out_data,
            in_grad=in_grad,
            aux=self._aux,
        )
        return tuple(in_grad)


def custom(*data: Any, op_type: str, name: Any = None, **named: Any) -> Any:
    """A custom operator, by the name that `register` gave it.

    `data`: its inputs and auxiliary arrays, in that order, or by name.   `named`: what its `CustomOpProp` is made with,
    as strings.   Several outputs are a tuple.

    Sync: `forward` runs on the calling thread; blocks only where that does.   Raises: ArgumentError at the call for an
    unknown name, for inputs of another number, shape or dtype than the declaration wants, and whatever forward raises;
    what backward raises, at `backward`.   Gradient: the operator's backward; of any order where that uses operators.
    Source: MXNet's Custom.
    """
    del name
    if op_type not in _registered:
        raise ArgumentError(f"[Custom] op_type {op_type!r} is not registered: see vardag.operator.register")
    declaration, run = _registered[op_type]
    given = {key: value for key, value in named.items() if isinstance(value, NDArray)}
    words: dict[str, Any] = {key: str(value) for key, value in named.items() if key not in given}
    prop = declaration(**words)
    inputs, aux = _operands(op_type, prop, data, given)
    shapes = _told(op_type, "infer_shape", prop.infer_shape([list(x.shape) for x in inputs]))
    dtypes = _told(op_type, "infer_type", prop.infer_type([x.dtype for x in inputs]))
    outputs = prop.list_outputs()
    for what, wanted, have in (
        ("inputs", shapes[0], [x.shape for x in inputs]),
        ("auxiliary arrays", shapes[2], [x.shape for x in aux]),
    ):
        if [tuple(s) for s in wanted] != have and (what == "inputs" or wanted):
            raise ArgumentError(f"[{op_type}] the {what} have shapes {have}, not {[tuple(s) for s in wanted]}")
    if len(shapes[1]) != len(outputs) or len(dtypes[1]) != len(outputs):
        raise ArgumentError(f"[{op_type}] {len(outputs)} outputs, but shapes or dtypes of another number of them")
    wrong = [describe(x) for x, dtype in zip(inputs, dtypes[0], strict=False) if x.dtype != np.dtype(dtype)]
    if wrong:
        raise ArgumentTypeError(f"[{op_type}] {', '.join(wrong)}: other dtypes expected; convert with .astype")
    op = prop.create_operator(inputs[0].context, [list(x.shape) for x in inputs], [x.dtype for x in inputs])
    if not isinstance(op, CustomOp):
        raise ArgumentTypeError(f"[{op_type}] create_operator gave {op!r}: a CustomOp expected")
    made = [(tuple(shape), np.dtype(dtype)) for shape, dtype in zip(shapes[1], dtypes[1], strict=True)]
    return run(op, made, aux)(*inputs)


def _operands(op_type: str, prop: CustomOpProp, data: Sequence[Any], named: dict[str, Any]) -> Any:
    """(inputs, auxiliary arrays), which may be given by name."""
    arguments, auxiliary = prop.list_arguments(), prop.list_auxiliary_states()
    names = [*arguments, *auxiliary]
    found = dict(zip(names, data, strict=False))
    unknown = [name for name in named if name not in names or name in found]
    found |= named
    if len(data) > len(names) or unknown or len(found) != len(names) or not arguments:
        raise ArgumentError(f"[{op_type}] the arrays {', '.join(names)} expected, once each")
    for name, x in found.items():
        if not isinstance(x, NDArray):
            raise ArgumentTypeError(f"[{op_type}] {name} {describe(x)}: an array expected")
    return [found[name] for name in arguments], [found[name] for name in auxiliary]


def _told(op_type: str, what: str, answer: Any) -> tuple[Any, Any, Any]:
    """(of inputs, of outputs, of auxiliary arrays): the last may be left out."""
    if not isinstance(answer, tuple | list) or len(answer) not in (2, 3):
        raise ArgumentError(f"[{op_type}] {what} gave {answer!r}: (inputs, outputs[, auxiliary arrays]) expected")
    return (*answer, []) if len(answer) == 2 else tuple(answer)


nd_face.Custom = nd_face.composed["Custom"] = custom  # type: ignore[attr-defined]


class Operators:
    """`vardag.operator`: a decorator that declares operators, and MXNet's ``mx.operator``."""

    CustomOp = CustomOp
    CustomOpProp = CustomOpProp
    register = staticmethod(register)
    get_all_registered = staticmethod(get_all_registered)
    __doc__ = declare.operator.__doc__
    __call__ = staticmethod(declare.operator)


operator = Operators()
