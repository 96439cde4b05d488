"""The two faces of the operators: NumPy's rules on `Array`, MXNet 1.x's on `NDArray`.

`numpy_face.name` and `nd_face.name` are the functions that users call.  Both bind arguments to one declaration; the
nd face then applies a `Rule`, whose defaults are MXNet's: no promotion, scalars and host arrays take the dtype of the
first array, results are stored in that dtype, and none has shape ().
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError, Error
from ..ndarray.arithmetic import OPERANDS, SCALARS, bind, foreign
from ..ndarray.array import Array
from ..ndarray.context import as_context
from ..ndarray.dtype import BOOL, INT64, KNOWN, DType, as_dtype, truncated
from ..ndarray.ndarray import NDArray
from ..ndarray.reading import describe
from ..ndarray.shape import Shape
from ..ndarray.sparse_arrays import CSRNDArray, RowSparseNDArray
from .calls import Calls
from .fusion import FUSE
from .in_place import in_place
from .infer import loop_dtypes
from .logical import GIVING, KEEPING, giving, keeping
from .push import invoke, operands, refusal
from .quick import Ufunc, pair, single
from .schema import Attributes, Operator, registry
from .tiny import NOW

Adapt = Callable[[list[Any], Attributes], "tuple[Operator, list[Any], Attributes] | None"]


@dataclass(frozen=True)
class Rule:
    """How the nd face differs for one operator.

    `dtype`: what results are stored as: "operand" (the dtype of the first array), "kernel" (what the kernel gives), a
    dtype, or a function of (dtype of the first array, attributes).
    `rename`: MXNet's argument names, as far as they differ.   `order`: MXNet's order of positional arguments.
    `extra`: further arguments of MXNet's with defaults, for `adapt`.   `ignore`: arguments accepted without effect.
    `adapt`: (inputs, attributes) -> (operator, inputs, attributes), or None for no change; may change them in place.
    `mixed`: dtypes may differ.   `bools`: boolean arrays count as int64 (MXNet's scalar operators).
    `method`: whether arrays have it as a method.   `zero_d`: the shape of a result without axes.   `space`: the
    namespace it belongs to (nd.contrib, nd.image), there without the prefix of its name; it is no method then.
    """

    dtype: Any = "operand"
    rename: Mapping[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    adapt: Adapt | None = None
    mixed: bool = False
    bools: bool = False
    method: bool = True
    zero_d: Shape = (1,)
    space: str = ""

    def names(self, op: Operator) -> tuple[str, ...]:
        """How users call an operator."""
        return (op.name.removeprefix(f"{self.space}_"), *op.aliases)


PLAIN = Rule()
HIDDEN = ("methods", "quick", "quick_in_place", "composed", "spaces")
MISSING: Any = object()
Method = Callable[..., Any]
SPARSE = frozenset((RowSparseNDArray, CSRNDArray))


def bound(op: Operator, order: Sequence[str], arguments: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
    """The inputs, in order; what remains in `named` are attributes.  Positional arguments go by `order`."""
    if not named and len(arguments) == len(op.inputs) and op.variadic is None and order[: len(arguments)] == op.inputs:
        return list(arguments)
    if op.variadic is not None:
        given = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], list | tuple) else arguments
        named.pop("num_args", None)
        return list(given)
    if len(arguments) > len(order):
        raise ArgumentTypeError(f"[{op.name}] {len(arguments)} arguments given, at most {len(order)} expected")
    for name, value in zip(order, arguments, strict=False):
        if name in named:
            raise ArgumentTypeError(f"[{op.name}] argument {name!r} is given twice")
        named[name] = value
    inputs = [named.pop(name, None) for name in op.inputs]
    for name, value in zip(op.inputs, inputs, strict=True):
        if value is None and name not in op.optional:
            raise ArgumentTypeError(f"[{op.name}] operand {name!r} is missing")
    return inputs


def _refuse(op: Operator, name: str, value: Any) -> Error:
    masked = f"{type(value).__name__} " if foreign(value) else ""
    return ArgumentTypeError(
        f"[{op.name}] {name} {masked}{describe(value)}: an array{' or a number' * op.elementwise} expected"
        f"{', which has no mask and no units' if masked else ''}"
    )


class Space:
    """Operators and functions of the nd face that have a namespace of their own."""

    def __init__(self) -> None:
        self.composed: dict[str, Method] = {}

    def __dir__(self) -> list[str]:
        return [name for name in vars(self) if name != "composed"]


class Face:
    """A namespace of operators."""

    cls: type[Array] = Array

    def __init__(self) -> None:
        #: operators that arrays have as methods
        self.methods: dict[str, Method] = {}
        #: operators as functions of two operands, for Python's operators
        self.quick: dict[str, Method] = {}
        self.quick_in_place: dict[str, Method] = {}
        #: functions that are made of operators
        self.composed: dict[str, Method] = {}
        #: namespaces within this one
        self.spaces = {"contrib": Space(), "image": Space()}

    def _publish(self, op: Operator) -> None:
        raise NotImplementedError

    def _quick(self, op: Operator, call: Method, adapt: Adapt | None, stored: bool, logical: bool = False) -> Method:
        """`call`, but by way of quick.py where that can do it."""

        def operator(x: Any, y: Any) -> Any:
            known = isinstance(x, OPERANDS) and isinstance(y, OPERANDS) and not foreign(x) and not foreign(y)
            return call(x, y) if known else NotImplemented

        def update(x: Any, y: Any) -> Any:
            return call(x, y, out=x) if isinstance(y, OPERANDS) else NotImplemented

        self.quick[op.name], self.quick_in_place[op.name] = operator, update
        if op.ufunc is None or op.variant is not None:
            return call
        plain, same = [], []
        for dtype in (np.dtype(t) for t in "fdlibB"):
            operands = [dtype.type(1)] * len(op.inputs)
            *loop, result = loop_dtypes(op.ufunc, (dtype,) * len(operands))
            if loop == [dtype] * len(operands) and (adapt is None or adapt(operands, {}) is None):
                plain.append(dtype)
                same += [dtype] * (result == dtype)
        make = single if len(op.inputs) == 1 else pair
        most = min(int(NOW // op.work([((1,), BOOL)], [((1,), BOOL)], {})), FUSE - 1)
        rule = Ufunc(op, op.ufunc, self.cls, call, tuple(plain), tuple(same), stored, most, logical)
        quick = make(rule)

        def one(x: Any = MISSING, *more: Any, **named: Any) -> Any:
            if more or named or x is MISSING:
                return call(*(() if x is MISSING else (x,)), *more, **named)
            return quick(x)

        def two(x: Any = MISSING, y: Any = MISSING, *more: Any, **named: Any) -> Any:
            if more or named or y is MISSING:
                return call(*(v for v in (x, y) if v is not MISSING), *more, **named)
            return quick(x, y)

        function: Any = one
        if make is pair:
            function, self.quick[op.name] = two, pair(rule._replace(general=operator))
            if op.ufunc not in (np.maximum, np.minimum):  # they take no positional out
                self.quick_in_place[op.name] = in_place(rule._replace(general=self.quick_in_place[op.name]))
        function.__name__ = function.__qualname__ = op.name
        function.__doc__ = op.doc
        return function  # type: ignore[no-any-return]

    def __dir__(self) -> list[str]:
        return [name for name in vars(self) if name not in HIDDEN]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"there is no operator {name!r}")


class NumpyFace(Face):
    """NumPy's rules: promotion, results of shape (), boolean comparisons.  What gradient texts use as F."""

    def _publish(self, op: Operator) -> None:
        order = (*op.inputs, *op.attributes)

        def call(*arguments: Any, out: Any = None, ctx: Any = None, **named: Any) -> Any:
            inputs = bound(op, order, arguments, named)
            if op.name == "assign":  # the value takes the target's dtype
                return _assign(op, inputs, out, Array)
            self._convert(op, inputs)
            context = None if ctx is None else as_context(ctx)
            return invoke(op, inputs, op.bind(named), out, cls=Array, context=context)

        call.__name__ = call.__qualname__ = op.name
        call.__doc__ = op.doc
        function = self._quick(op, call, None, False)
        setattr(self, op.name, function)
        if not (isinstance(op.nd, Rule) and op.nd.space):
            self.methods[op.name] = function

    @staticmethod
    def _convert(op: Operator, inputs: list[Any]) -> None:
        """Scalars become constants of the dtype that the operator computes in; host arrays are copied."""
        for i, x in enumerate(inputs):
            if isinstance(x, Array) or (x is None and op.input_name(i) in op.optional):
                continue
            if isinstance(x, np.ndarray) and not foreign(x):
                inputs[i] = _host(op, op.input_name(i), x, None)
            elif isinstance(x, SCALARS):
                inputs[i] = _weak(op, x, inputs)
            else:
                raise _refuse(op, op.input_name(i), x)


def _host(op: Operator, name: str, x: Any, dtype: DType | None) -> Any:
    if x.dtype.kind in "biuf" or x.dtype in KNOWN:
        if dtype is None or x.dtype == dtype:
            raw = np.array(x, order="C")
        else:
            with np.errstate(all="ignore"):  # a value that the dtype has not is inf, as in kernels
                raw = np.array(x, dtype=dtype, order="C")
        if raw.dtype in KNOWN:
            return raw
    raise ArgumentTypeError(f"[{op.name}] {name} {describe(x)}: not an element type of arrays")


def _weak(op: Operator, scalar: Any, inputs: Sequence[Any]) -> Any:
    """A scalar as a constant: in the dtype of the ufunc's loop, where there is one, else of the first array."""
    arrays = [x for i, x in enumerate(inputs) if isinstance(x, Array) and op.input_name(i) not in op.indices]
    dtype = arrays[0]._dtype if arrays else None
    if dtype is None:
        return np.float32(scalar) if isinstance(scalar, float) else np.asarray(scalar)[()]
    if op.ufunc is not None and not isinstance(scalar, np.generic):
        kind: Any = float if isinstance(scalar, float) else bool if isinstance(scalar, bool) else int
        pair = (dtype, np.dtype(bool) if kind is bool else kind)
        dtype = loop_dtypes(op.ufunc, pair)[0]
    elif isinstance(scalar, np.generic):
        return scalar
    try:
        return dtype.type(scalar)
    except OverflowError as error:
        raise ArgumentError(f"[{op.name}] {operands(op, inputs)}: {error}") from None


def _assign(op: Operator, inputs: list[Any], out: Any, cls: type[Array]) -> Any:
    """``out[...] = value``: any dtype, cast as C does."""
    if not isinstance(out, Array):
        raise ArgumentTypeError(f"[assign] out {out!r}: an array expected")
    (value,) = inputs
    if not isinstance(value, Array):
        value = host_value(op, value, out._dtype)
    return invoke(op, [value], {"shape": out._shape}, out, cls=cls, any_dtype=True)


def host_value(op: Operator, value: Any, dtype: DType) -> Any:
    """What is assigned, but for arrays of the library: a scalar, a NumPy array or nested lists, cast as C does."""
    if isinstance(value, SCALARS):
        return truncated(value, dtype)
    if isinstance(value, list | tuple):
        try:
            value = np.array(value)
        except ValueError as error:
            raise ArgumentTypeError(f"[{op.name}] value: {error}") from None
    if not isinstance(value, np.ndarray):
        raise _refuse(op, "value", value)
    return _host(op, "value", value, dtype)


class NDFace(Face):
    """MXNet 1.x's rules."""

    cls = NDArray
    #: (operator, its function, operands, attributes, out) -> what a call with a sparse array gives (sparse.py)
    sparse: Callable[..., Any]

    def _publish(self, op: Operator) -> None:
        if op.nd is False:
            return
        rule: Rule = op.nd if op.nd is not None else PLAIN
        order = rule.order or (*op.inputs, *op.attributes)
        rename = rule.rename
        ignored = {"name", *rule.ignore}

        def resolve(arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if named:
                named = {rename.get(n, n): v for n, v in named.items() if n not in ignored}
            return self._resolve(op, rule, bound(op, order, arguments, named), named)

        calls = Calls(resolve, rule.zero_d)

        def call(*arguments: Any, out: Any = None, ctx: Any = None, **named: Any) -> Any:
            if op.name == "assign":
                return _assign(op, bound(op, order, arguments, named), out, NDArray)
            if ctx is None and out is None:
                done = calls.run(arguments, named)
                if done is not None:
                    return done
            elif ctx is None and calls.run_into(arguments, named, out):
                return out
            if not SPARSE.isdisjoint(map(type, (*arguments, *named.values(), out))):
                given = {rename.get(n, n): v for n, v in named.items() if n != "name"}
                return self.sparse(op, call, bound(op, order, arguments, given), given, out)
            meant, inputs, attributes, dtype = resolve(arguments, named)
            context = None if ctx is None else as_context(ctx)
            return invoke(meant, inputs, attributes, out, cls=NDArray, context=context, dtype=dtype, zero_d=rule.zero_d)

        call.__name__ = call.__qualname__ = op.name
        call.__doc__ = op.doc
        logical = op.name in GIVING
        marking = giving(call) if logical else keeping(call) if op.name in KEEPING else call
        function = self._quick(op, marking, rule.adapt, rule.dtype == "operand", logical)
        for name in rule.names(op):
            setattr(self.spaces[rule.space] if rule.space else self, name, function)
            if rule.method and not rule.space:
                self.methods[name] = function

    def _resolve(
        self, op: Operator, rule: Rule, inputs: list[Any], named: Attributes
    ) -> tuple[Operator, Sequence[Any], Attributes, Any]:
        """By the rule: the operator meant, its inputs, bound attributes, and what results are stored as."""
        dtype = self._convert(op, rule, inputs)
        if rule.extra:
            named = {**rule.extra, **named}
        if rule.adapt is not None:
            try:
                changed = rule.adapt(inputs, named)
            except (ValueError, TypeError, IndexError) as error:
                raise refusal(op, inputs, error) from None
            if changed is not None:
                op, inputs, named = changed
        attributes = op.bind(named)
        stored = rule.dtype
        if stored == "operand":
            stored = dtype
        elif stored == "kernel":
            stored = None
        elif callable(stored):
            stored = stored(dtype, attributes)
        return op, inputs, attributes, stored

    @staticmethod
    def _convert(op: Operator, rule: Rule, inputs: list[Any]) -> DType | None:
        """Check the operands' kinds and dtypes; scalars and host arrays take the first array's.  Gives that dtype."""
        dtype: DType | None = None
        plain = True
        indexed = op.indexed
        for i, x in enumerate(inputs):
            if not isinstance(x, Array):
                plain = plain and x is None and op.input_name(i) in op.optional
            elif dtype is None and i not in indexed:
                dtype = x._dtype
        if not plain:
            if dtype is None:
                raise ArgumentTypeError(f"[{op.name}] {operands(op, inputs)}: at least one array expected")
            if rule.bools and dtype == BOOL and any(isinstance(x, SCALARS) for x in inputs):
                dtype = INT64
                inputs[:] = [x.astype(INT64) if isinstance(x, Array) else x for x in inputs]
            for i, x in enumerate(inputs):
                name = op.input_name(i)
                if isinstance(x, Array) or (x is None and name in op.optional):
                    continue
                if isinstance(x, np.ndarray) and not foreign(x):
                    inputs[i] = _host(op, name, x, None if name in op.indices else dtype)
                elif isinstance(x, SCALARS) and op.elementwise:
                    inputs[i] = truncated(x, dtype)
                else:
                    raise _refuse(op, name, x)
        if not rule.mixed:
            for i, x in enumerate(inputs):
                if isinstance(x, Array) and x._dtype is not dtype and x._dtype != dtype and i not in indexed:
                    raise ArgumentTypeError(
                        f"[{op.name}] {operands(op, inputs)}: dtypes differ; convert one with .astype"
                    )
        return dtype


def attribute_dtype(default: Any = None) -> Callable[[DType | None, Attributes], DType | None]:
    """A rule's dtype for operators with an attribute of that name."""

    def stored(_: DType | None, attributes: Attributes) -> DType | None:
        given = attributes.get("dtype")
        return None if given is None and default is None else as_dtype(given, default)

    return stored


numpy_face = NumpyFace()
nd_face = NDFace()


def nd_function(op: Operator) -> Method:
    """An operator as users of the nd face call it."""
    rule: Rule = op.nd or PLAIN
    return getattr(nd_face.spaces[rule.space] if rule.space else nd_face, rule.names(op)[0])  # type: ignore[no-any-return]


def composed(*aliases: str, method: bool = True, space: str = "") -> Callable[[Method], Method]:
    """Declare a function of the nd face made of operators, each recorded on its own.

    Arrays have it as a method, unless it belongs to a namespace (see Rule) or `method` says no.
    """
    where: Any = nd_face.spaces[space] if space else nd_face

    def declare(function: Method) -> Method:
        for name in (function.__name__, *aliases):
            setattr(where, name, function)
            where.composed[name] = function
            if method and not space:
                nd_face.methods[name] = function
        return function

    return declare


def publish() -> None:
    """Give both faces every operator of the registry.  Called once, when all are declared."""
    for op in registry:
        numpy_face._publish(op)
        nd_face._publish(op)
    for face in (numpy_face, nd_face):
        bind(face.cls, face.quick, face.quick_in_place)
        for name in face.methods.keys() & set(dir(face.cls)):
            if name in vars(face.cls) or name in vars(Array):
                del face.methods[name]
