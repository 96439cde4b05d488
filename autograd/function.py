"""`Function`: an operator whose forward and backward the user writes with arrays."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, ClassVar

from ..engine import ArgumentError, ArgumentTypeError, here
from ..ndarray.array import Array
from ..ndarray.buffer import Admission, Saved, hold
from ..ndarray.dtype import DType
from ..ndarray.line import READ_ONLY, Line, Scope, scope, within
from ..ndarray.reading import describe
from ..ndarray.shape import Shape
from ..operators.faces import numpy_face
from ..operators.schema import Attributes, Meta
from .backward import as_face
from .structure import UNKNOWN
from .tape import entry_of, number
from .walk import FunctionNode


class _Call:
    """One call of a forward or a backward.  `keeps`: whether what forward saves is wanted.

    `saved`: each value that forward saved, with its array and that array's version then.   `restored`: for backward.
    """

    __slots__ = ("function", "keeps", "restored", "saved")

    def __init__(self, function: Function, keeps: bool, restored: tuple[Array, ...] = ()) -> None:
        self.function, self.keeps, self.restored = function, keeps, restored
        self.saved: list[tuple[Saved, Array, int]] = []


#: the innermost call of this context: several threads may run one Function at the same time
_running: ContextVar[_Call | None] = ContextVar("vardag_function", default=None)


def _in_call(call: _Call, training: bool, paused: bool, function: Any, arguments: Any) -> Any:
    old = _running.get()
    try:
        _running.set(call)
        if paused:
            return within(Scope(None, training, True), function, *arguments)
        return function(*arguments)
    finally:
        _running.set(old)


class Function:
    """A differentiable function of arrays with a gradient of its own.

    A subclass defines ``forward(self, *inputs)``, which gives an array or a tuple of arrays and runs at the call with
    recording paused, on read-only inputs; and ``backward(self, *output_grads)``, which gives a gradient (or None) for
    each input, and runs during `autograd.backward`, on the thread that calls it.  Both only push, as all operators do.
    What backward needs of forward it saves with ``save_for_backward``.  Under ``create_graph`` backward is recorded, so
    that it can be differentiated again.

    Raises: ArgumentError at the call for a write to an input; at backward for a gradient of the wrong shape or number.

    >>> from vardag import nd, autograd
    >>> class Cube(autograd.Function):
    ...     def forward(self, x):
    ...         self.save_for_backward(x)
    ...         return x * x * x
    ...     def backward(self, dy):
    ...         x, = self.saved_tensors
    ...         return dy * 3 * x * x
    >>> x = nd.array([2.]); x.attach_grad()
    >>> with autograd.record():
    ...     y = Cube()(x)
    >>> y.backward()
    >>> x.grad.asscalar()
    np.float32(12.0)
    """

    def forward(self, *inputs: Any) -> Any:
        """The value.  To be defined."""
        raise ArgumentTypeError(f"[{type(self).__name__}] a Function defines forward")

    def backward(self, *output_grads: Any) -> Any:
        """The gradients of the inputs, from those of the outputs.  To be defined."""
        raise ArgumentTypeError(f"[{type(self).__name__}] a Function defines backward")

    def save_for_backward(self, *arrays: Array) -> None:
        """In forward: keep these values; later writes to the arrays don't change them."""
        call = _running.get()
        if call is None or call.function is not self:
            raise ArgumentError(f"[{type(self).__name__}] save_for_backward is for use in forward")
        for array in arrays:
            if not isinstance(array, Array):
                raise ArgumentTypeError(f"[{type(self).__name__}] save_for_backward {array!r}: an array expected")
        if call.keeps:
            call.saved = _held(arrays)

    @property
    def saved_tensors(self) -> tuple[Array, ...]:
        """In backward: the values that forward saved."""
        call = _running.get()
        return call.restored if call is not None and call.function is self else ()

    def __call__(self, *inputs: Array) -> Any:
        for x in inputs:
            if not isinstance(x, Array):
                raise ArgumentTypeError(f"[{type(self).__name__}] operand {x!r}: an array expected")
        current = scope.get()
        edges = tuple(map(entry_of, inputs)) if current.recorder is not None else ()
        given = [_read_only(x) for x in inputs]
        call = _Call(self, any(edges))
        result = _in_call(call, current.training, True, self.forward, given)
        outputs = [result] if isinstance(result, Array) else list(result)
        for y in outputs:
            if not isinstance(y, Array):
                raise ArgumentTypeError(f"[{type(self).__name__}] forward gave {y!r}: an array expected")
        if not any(edges):
            free = [_own(y) if y._line is READ_ONLY else y for y in outputs]  # an input, or a view of one
            return free[0] if isinstance(result, Array) else type(result)(free)
        fresh = [_own(y) for y in outputs]
        node = _UserNode(self, inputs, edges, fresh)
        node.keep(call.saved, given, outputs)
        for i, y in enumerate(fresh):
            y._chunk.line = Line(y._shape, y._strides, y._offset, (node, i))
        return fresh[0] if isinstance(result, Array) else tuple(fresh)


def _read_only(x: Array) -> Array:
    array = x.detach()
    array._line = READ_ONLY
    return array


def _own(y: Array) -> Array:
    """An output as an array that no other name reaches: its line begins here."""
    copied: Array = within(Scope(None, False, True), y._ops.copy, y)
    return copied


def _held(arrays: Sequence[Array]) -> list[tuple[Saved, Array, int]]:
    """The values as of now, all of one moment."""
    found: list[tuple[Saved, Array, int]] = []

    def plan() -> Admission:
        keep: list[Any] = [*found]
        found[:] = [
            (Saved(a._chunk, a._chunk.buffer, a._shape, a._strides, a._offset), a, a._chunk.version) for a in arrays
        ]
        return None, (), (), (), hold([saved for saved, _, _ in found], keep), keep, False

    if arrays:
        arrays[0]._chunk.buffer.engine.admit(plan)
    return found


class UserForm:
    """That of a node without an operator: `name` is what messages say of it."""

    __slots__ = ("made", "metas", "name")
    attributes: ClassVar[Attributes] = {}

    def __init__(self, name: str, metas: Sequence[Meta | None], made: Sequence[Meta | None]) -> None:
        self.name, self.metas, self.made = name, tuple(metas), tuple(made)

    @property
    def op(self) -> UserForm:
        return self


class _UserNode(FunctionNode):
    __slots__ = ("faces", "function")

    def __init__(self, function: Function, inputs: Sequence[Array], edges: Any, outputs: Sequence[Array]) -> None:
        self.form: Any = UserForm(type(function).__name__, [x._meta for x in inputs], [y._meta for y in outputs])
        self.edges, self.saved, self.freed, self.structure = edges, {}, None, UNKNOWN
        self.number, self.site = number(), here()
        self.function = function
        self.faces = [type(y) for y in outputs]

    def keep(
        self, saving: Sequence[tuple[Saved, Array, int]], inputs: Sequence[Array], outputs: Sequence[Array]
    ) -> None:
        """Keep what forward saved, with the entry that it has on the tape: an input's, an output's or none."""
        for position, (saved, array, version) in enumerate(saving):
            entry: Any = next((e for x, e in zip(inputs, self.edges, strict=True) if x is array), None)
            if array._chunk.version == version:  # else the output is no longer what was saved
                entry = next((i for i, y in enumerate(outputs) if y is array), entry)
            saved.entry = entry
            self.saved[position] = saved, type(array)

    def gradients(self, cotangents: list[Any], kept: dict[Any, Any]) -> Any:
        function = self.function
        restored = tuple(as_face(face, face._from_saved(saved, self)) for saved, face in kept.values())
        given = [as_face(face, g) for face, g in zip(self.faces, cotangents, strict=True)]
        try:
            result = _in_call(_Call(function, False, restored), False, False, function.backward, given)
        except Exception as error:
            error.add_note(f"in backward of {self.op.name}, recorded at {self.recorded_at}")
            raise
        found = list(result) if isinstance(result, tuple | list) else [result]
        name = type(function).__name__
        if len(found) != len(self.metas):
            raise ArgumentError(f"[{name}] backward gave {len(found)} gradients for {len(self.metas)} inputs")
        return [
            None if gradient is None or meta is None else _canonical(name, i, gradient, *meta)
            for i, (gradient, meta) in enumerate(zip(found, self.metas, strict=True))
        ]


def _canonical(name: str, position: int, gradient: Any, shape: Shape, dtype: DType) -> Array:
    """A gradient as the walk uses it: of the input's shape and dtype, and safe from later writes."""
    if not isinstance(gradient, Array) or gradient._shape != shape:
        raise ArgumentError(f"[{name}] backward gave {describe(gradient)} for input {position}, of shape {shape}")
    return numpy_face.cast(gradient, dtype=dtype)  # type: ignore[no-any-return]
