"""What an operator is: one declaration, read from the signatures of its kernel and of its gradient texts.

A kernel is ``kernel(xp, <inputs>, *, <attributes>, <outputs>, <saved outputs>)``.  Its positional parameters are the
inputs (with a default of None: optional; starred: any number), its keyword-only ones with a default the attributes,
the others what it must fill.  It returns nothing, or, declared with ``atomic=True``, a sequence of C calls
``(callable, *args)`` that do its work; the engine may then run it on any thread.

A gradient text is ``text(F, <names>)``.  The names say what it needs, and nothing else is kept for it: ``g`` (the
cotangent of the only output; ``g_<output>`` of one of several), an input, an output, a saved output, an attribute,
``<input>_shape``, ``needs``; ``**attributes`` takes the attributes that it does not name.  It uses F and Python
literals only; one text serves raw arrays (one fused engine operation) and arrays on the tape (any order).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import NoneType
from typing import Any, Final

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError, InternalError
from ..ndarray.dtype import FLOAT16, NARROW, DType
from ..ndarray.shape import Shape

Meta = tuple[Shape, DType]
Step = tuple[Any, ...]
Metas = Sequence[Meta | None]
Attributes = dict[str, Any]
#: (metas of outputs and saved outputs, None for one that is not made; normalised attributes)
Inferred = tuple[tuple[Meta | None, ...], Attributes]
Infer = Callable[[Metas, Attributes], Inferred]
#: (inputs, attributes, whether in training mode) -> the operator that does it, its inputs and its attributes
Variant = Callable[[Sequence[Any], Attributes, bool], "tuple[Operator, Sequence[Any], Attributes]"]


def call_into(ufunc: np.ufunc, *arrays: Any, out: Any) -> Step:
    """The C call ``ufunc(*arrays, out=out)``."""
    if ufunc is np.maximum or ufunc is np.minimum:  # a positional out is deprecated for these two
        return (partial(ufunc, out=out), *arrays)
    return (ufunc, *arrays, out)


#: annotation -> what it says, and the types that a value may have
NUMBERS: dict[Any, tuple[str, tuple[type, ...]]] = {
    "float": ("a number", (int, float)),
    "float | None": ("a number", (int, float, NoneType)),
    "int": ("a whole number", (int,)),
    "bool": ("a truth value", (bool, int)),
    "int | None": ("a whole number", (int, NoneType)),
}


class _Zero:
    """The gradient of an operator that is flat almost everywhere: on the tape, keeps nothing."""

    def __repr__(self) -> str:
        return "zero"


zero: Final = _Zero()


class _Constant:
    """A saved output that no derivative flows through: a mask, indices."""

    def __repr__(self) -> str:
        return "constant"


constant: Final = _Constant()


class Text:
    """A gradient text and what it names."""

    __slots__ = ("all_attributes", "function", "names", "passes")

    def __init__(self, function: Callable[..., Any]) -> None:
        first, *rest = inspect.signature(function).parameters.values()
        if first.name != "F":
            raise InternalError(f"a gradient text starts with F, not {first.name}")
        self.function = function
        self.names = tuple(p.name for p in rest if p.kind is not p.VAR_KEYWORD)
        self.all_attributes = len(self.names) != len(rest)
        #: the gradient is the cotangent itself, so nothing has to be pushed
        self.passes = self.names == ("g",) and not self.all_attributes and _is_identity(function)


def _is_identity(function: Callable[..., Any]) -> bool:
    token = object()
    try:
        return function(None, token) is token
    except (TypeError, AttributeError):
        return False


class Sample:
    """Arguments that the registry's tests try an operator with.

    `inputs`: shapes, or arrays where the values matter (indices).   `low`, `high`: the range of random values.
    """

    __slots__ = ("attributes", "high", "inputs", "low")

    def __init__(self, *inputs: Any, low: float = -1.0, high: float = 1.0, **attributes: Any) -> None:
        self.inputs, self.low, self.high, self.attributes = inputs, low, high, attributes


class Operator:
    """One operator.  Immutable once declared; see `operator` for the fields."""

    name: str
    gradients: dict[str, Text | _Zero]

    def __init__(
        self,
        name: str,
        kernel: Callable[..., Any],
        infer: Infer,
        *,
        outputs: tuple[str, ...] = ("out",),
        saves: Mapping[str, Any] | None = None,
        updates: tuple[str, ...] = (),
        elementwise: bool = False,
        changes: int | None = None,
        broadcasts: bool = False,
        atomic: bool = False,
        ufunc: np.ufunc | None = None,
        alias: Callable[..., Any] | None = None,
        widen: bool = True,
        random: bool = False,
        variant: Variant | None = None,
        cost: float | Callable[..., float] = 1.0,
        costly: bool = False,
        defined: bool = False,
        indices: tuple[str, ...] = (),
        by_rows: bool = False,
        consumed: Callable[..., Any] | None = None,
        samples: Sequence[Sample] = (),
        reference: Callable[..., Any] | None = None,
        nd: Any = None,
        aliases: tuple[str, ...] = (),
        kinks: str = "",
        doc: str = "",
    ) -> None:
        self.name = name
        self.kernel = kernel
        self.infer = infer
        self.outputs = outputs
        self.saves = dict(saves or {})
        self.updates = updates
        self.elementwise, self.changes, self.broadcasts = elementwise, changes, broadcasts
        self.atomic, self.ufunc, self.alias = atomic, ufunc, alias
        self.random, self.variant = random, variant
        self.cost, self.costly, self.defined, self.indices = cost, costly, defined, indices
        self.by_rows, self.consumed = by_rows, consumed
        self.samples, self.reference = tuple(samples), reference
        self.nd, self.aliases = nd, aliases
        self.kinks = kinks
        self.doc = inspect.cleandoc(doc or kernel.__doc__ or "") + (f"\n\nKinks: {kinks}." if kinks else "")
        native = ufunc is not None and any(loop.startswith("e") for loop in ufunc.types)
        #: the dtypes that are widened to float32 around the kernel
        self.widened: frozenset[DType] = (NARROW - {FLOAT16} if native else NARROW) if widen else frozenset()
        self._read_signature()
        self.gradients = {}
        self._texts: tuple[Text | _Zero | None, ...] | None = None
        self.joint: Text | None = None
        self.joint_inputs: tuple[str, ...] = ()
        self.definitions = {n: Text(d) for n, d in self.saves.items() if not isinstance(d, _Constant)}
        for text in self.definitions.values():
            self._check(text)

    def _read_signature(self) -> None:
        parameters = list(inspect.signature(self.kernel).parameters.values())[1:]
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.inputs = tuple(p.name for p in positional)
        self.optional = frozenset(p.name for p in positional if p.default is None)
        self.variadic = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        #: what a kernel fills, in order
        self.filled = (*self.outputs, *self.saves)
        filled = set(self.filled)
        keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in filled]
        self.attributes = {p.name: p.default for p in keywords if p.name != "seed"}
        #: attributes that have to be numbers: what is expected, and the types that it may have
        self.numbers = {p.name: NUMBERS[p.annotation] for p in keywords if p.annotation in NUMBERS}
        self.required = tuple(n for n, default in self.attributes.items() if default is inspect.Parameter.empty)
        for name in (*self.updates, *self.indices):
            if name not in self.inputs:
                raise InternalError(f"operator {self.name}: {name} is not an input")
        #: positions of the inputs in `indices`
        self.indexed = frozenset(i for i, name in enumerate(self.inputs) if name in self.indices)
        missing = filled - {p.name for p in parameters}
        if missing and self.ufunc is None:
            raise InternalError(f"operator {self.name}: the kernel does not fill {sorted(missing)}")

    def _check(self, text: Text) -> None:
        cotangents = {"g"} if len(self.outputs) == 1 else {f"g_{name}" for name in self.outputs}
        known = {*self.inputs, *self.outputs, *self.saves, *self.attributes, *cotangents, "needs"}
        known |= {f"{name}_shape" for name in self.inputs}
        if self.variadic:
            known |= {self.variadic, f"{self.variadic}_shapes", "index"}
        for name in text.names:
            if name not in known:
                raise InternalError(f"operator {self.name}: its gradient names {name}, which is nothing of its own")

    def grad(self, *names: str, **texts: Any) -> Any:
        """Declare gradients: ``op.grad(x=text, y=zero)``; or, as a decorator, one joint text for the inputs named.

        Inputs without a gradient are not connected.  A joint text returns a tuple in the order of its inputs and may
        leave out (None) what ``needs``, a set of names, does not contain.
        """
        self._texts = None
        for name, text in texts.items():
            if name not in self.inputs and name != self.variadic:
                raise InternalError(f"operator {self.name}: {name} is not an input")
            if isinstance(text, _Zero):
                self.gradients[name] = text
            else:
                self.gradients[name] = known = Text(text)
                self._check(known)
        if not names:
            return self

        def declare(function: Callable[..., Any]) -> Callable[..., Any]:
            self.joint, self.joint_inputs = Text(function), names
            self._check(self.joint)
            return function

        return declare

    def work(self, metas: Sequence[Meta | None], made: Sequence[Meta | None], attributes: Attributes) -> float:
        """What a call costs, in units of about 0.2 ns."""
        if callable(self.cost):
            return self.cost(metas, made, attributes)
        most = size_of(made) if self.elementwise else max(size_of(made), size_of(metas))
        return self.cost * most

    @property
    def differentiable(self) -> bool:
        """Whether the operator goes on the tape."""
        return bool(self.gradients) or self.joint is not None

    def gradient_of(self, index: int) -> Text | _Zero | None:
        """The text for the input at this position; None if it is not connected."""
        texts = self._texts
        if texts is None:
            names = (*self.inputs, self.variadic or "")
            texts = self._texts = tuple(
                self.joint if name in self.joint_inputs else self.gradients.get(name) for name in names
            )
        return texts[index] if index < len(texts) else texts[-1]

    def input_name(self, index: int) -> str:
        """The declared name of the input at this position."""
        return self.inputs[index] if index < len(self.inputs) else (self.variadic or f"input {index}")

    def position(self, key: Any) -> int:
        """The position of the input that the tape keeps under this key (see `autograd.tape.key_of`), -1 for none."""
        if type(key) is tuple:
            return key[1]  # type: ignore[no-any-return]
        return self.inputs.index(key) if key in self.inputs else -1

    def bind(self, attributes: Attributes) -> Attributes:
        """The attributes with defaults filled in.

        Raises
        ------
        ArgumentError, ArgumentTypeError
            For an unknown or a missing attribute; for one that is to be a number and is not.
        """
        if not attributes and not self.required:
            return dict(self.attributes) if self.attributes else attributes
        for name in attributes:
            if name not in self.attributes:
                known = ", ".join((*self.inputs, *self.attributes)) or "none"
                raise ArgumentError(f"[{self.name}] unknown argument {name!r}; it has {known}")
        for name in self.required:
            if name not in attributes:
                raise ArgumentError(f"[{self.name}] argument {name!r} is missing")
        plain = {name: _plain(value) for name, value in attributes.items()}
        for name in self.numbers.keys() & plain.keys():
            expected, types = self.numbers[name]
            if not isinstance(plain[name], types):
                raise ArgumentTypeError(f"[{self.name}] {name} {plain[name]!r}: {expected} expected")
        return {**self.attributes, **plain}

    def __repr__(self) -> str:
        return f"<operator {self.name}>"


def size_of(metas: Sequence[Meta | None]) -> int:
    """Elements of all of these."""
    return sum(math.prod(meta[0]) for meta in metas if meta is not None)


def _plain(value: Any) -> Any:
    """An attribute without NumPy scalars, which would decide the dtype of what a kernel or a text computes."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return tuple(_plain(v) for v in value)
    return value


class Registry:
    """All operators by canonical name: the library's, filled at import, and users' (declare.py), by single stores.

    To iterate is to go through the library's.   `edition`: another object once a user's operator has taken the place of
    another; replaced after that, so that what was learned under the new edition knows the new operator (plans.py).
    """

    def __init__(self) -> None:
        self._operators: dict[str, Operator] = {}
        self._users: dict[str, Operator] = {}
        self.edition = object()

    def add(self, op: Operator) -> Operator:
        """Declare an operator; a second one of that name is an error."""
        if op.name in self._operators:
            raise InternalError(f"operator {op.name} is declared twice")
        self._operators[op.name] = op
        return op

    def put(self, op: Operator) -> None:
        """Declare a user's operator, in place of the user's that had its name."""
        replaced = op.name in self._users
        self._users[op.name] = op
        if replaced:
            self.edition = object()

    def __getitem__(self, name: str) -> Operator:
        return self._users[name] if name in self._users else self._operators[name]

    def has_own(self, name: str) -> bool:
        """Is it one of the library's?"""
        return name in self._operators

    def __contains__(self, name: object) -> bool:
        return name in self._operators or name in self._users

    def __iter__(self) -> Any:
        return iter(self._operators.values())

    def __len__(self) -> int:
        return len(self._operators)


registry = Registry()


def operator(name: str, *, infer: Infer, **options: Any) -> Callable[[Callable[..., Any]], Operator]:
    """Declare an operator from its kernel; see the module's text for the kernel's form.

    Parameters
    ----------
    infer : (metas of the inputs, attributes) -> (metas of outputs and saved outputs, normalised attributes)
        Runs at the call, before any effect; raises ValueError or TypeError with the reason alone: the push path adds
        the operator's name and its operands.
    outputs : names of the outputs the caller gets; ("out",) by default.
    saves : dict of hidden outputs, made by the kernel, kept by the tape, freed with it.  Each is `constant`, or a text
        of the inputs that defines it, used where the graph of the gradient is wanted.
    updates : inputs that the kernel changes in place.
    elementwise : element i of the output depends on element i of the inputs only, so `out` may be an input.
    changes : position of the input that `out` may be; the kernel then gets the same memory as both.
    broadcasts : inputs broadcast by NumPy's rule; the framework sums the gradients back.
    alias : geometry(shape, strides, attributes) -> (shape, strides) or None, for operators whose output is a view of
        their input: it then shares the bytes until someone writes.
    widen : 16-bit floats are widened to float32 around the kernel and its gradient texts.
    random : the kernel gets ``seed``, its own counter range of the device's generator.
    variant : (inputs, bound attributes, training) -> (operator, inputs, attributes): the operator that does the call,
        for what is another operator in predict mode, or under some attribute.
    cost : of an atomic kernel, in units of about 0.2 ns an element (of its inputs or its outputs, whichever are more);
        or cost(metas of inputs, metas made, attributes).
    costly : gradients of different inputs are separate operations, which may run side by side.
    defined : the gradient is a definition, not the derivative.
    indices : inputs that hold indices or conditions; their dtype need not match the others.
    by_rows : element i of the output depends on element i of the inputs, broadcast, and if there is an `axis`, on those
        of its row along that only; large ones may join a segment (fusion.py).
    consumed : (shape, dtype, dtype made, attributes) -> how a segment reduces a value of its tiles, or None.
    kinks : where the derivative does not exist, or has no finite value, and what the gradient is there.
    samples, reference : what the registry's tests try, and a float64 NumPy implementation to compare with.
    nd : the rule of the nd face (see faces.py), False to leave it out of that face.
    aliases : further names in the nd face.
    """

    def declare(kernel: Callable[..., Any]) -> Operator:
        return registry.add(Operator(name, kernel, infer, **options))

    return declare
