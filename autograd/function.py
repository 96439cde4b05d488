"""`Function`: an operator whose forward and backward the user writes with arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engine import ArgumentError, ArgumentTypeError, here
from ..ndarray.array import Array, describe
from ..ndarray.buffer import Admission, Saved, hold
from ..ndarray.dtype import DType
from ..ndarray.line import READ_ONLY, Line, Scope, scope
from ..ndarray.shape import Shape
from ..operators.faces import numpy_face
from .backward import as_face
from .tape import entry_of, number
from .walk import FunctionNode


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

    _saving: tuple[Array, ...] = ()
    _restored: tuple[Array, ...] = ()

    def forward(self, *inputs: Any) -> Any:
        """The value.  To be defined."""
        raise ArgumentTypeError(f"[{type(self).__name__}] a Function defines forward")

    def backward(self, *output_grads: Any) -> Any:
        """The gradients of the inputs, from those of the outputs.  To be defined."""
        raise ArgumentTypeError(f"[{type(self).__name__}] a Function defines backward")

    def save_for_backward(self, *arrays: Array) -> None:
        """In forward: keep these values; later writes to the arrays don't change them."""
        self._saving = arrays

    @property
    def saved_tensors(self) -> tuple[Array, ...]:
        """In backward: the values that forward saved."""
        return self._restored

    def __call__(self, *inputs: Array) -> Any:
        for x in inputs:
            if not isinstance(x, Array):
                raise ArgumentTypeError(f"[{type(self).__name__}] operand {x!r}: an array expected")
        current = scope.get()
        edges = tuple(map(entry_of, inputs)) if current.recorder is not None else ()
        given = [_read_only(x) for x in inputs]
        self._saving = ()
        token = scope.set(Scope(None, current.training, True))
        try:
            result = self.forward(*given)
        finally:
            scope.reset(token)
        outputs = [result] if isinstance(result, Array) else list(result)
        for y in outputs:
            if not isinstance(y, Array):
                raise ArgumentTypeError(f"[{type(self).__name__}] forward gave {y!r}: an array expected")
        if not any(edges):
            return result
        fresh = [_own(y) for y in outputs]
        node = _UserNode(self, inputs, edges, fresh)
        node.keep(self._saving, given, outputs)
        self._saving = ()
        for i, y in enumerate(fresh):
            y._chunk.line = Line(y._shape, y._strides, y._offset, (node, i))
        return fresh[0] if isinstance(result, Array) else tuple(fresh)


def _read_only(x: Array) -> Array:
    array = x.detach()
    array._line = READ_ONLY
    return array


def _own(y: Array) -> Array:
    """An output as an array that no other name reaches: its line begins here."""
    token = scope.set(Scope(None, False, True))
    try:
        copied: Array = y._ops.copy(y)
        return copied
    finally:
        scope.reset(token)


class _Name:
    """What error messages say of a Function's node."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _UserNode(FunctionNode):
    __slots__ = ("faces", "function")

    def __init__(self, function: Function, inputs: Sequence[Array], edges: Any, outputs: Sequence[Array]) -> None:
        self.op: Any = _Name(type(function).__name__)
        self.attributes, self.names, self.saved, self.freed = {}, frozenset(), {}, None
        self.edges = edges
        self.metas = tuple(x._meta for x in inputs)
        self.made = tuple(y._meta for y in outputs)
        self.number, self.site = number(), here()
        self.function = function
        self.faces = [type(y) for y in outputs]

    def keep(self, saving: Sequence[Array], inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Hold what forward saved, with the entry that it has on the tape: an input's, an output's or none."""
        for position, array in enumerate(saving):
            entry: Any = next((e for x, e in zip(inputs, self.edges, strict=True) if x is array), None)
            entry = next(((self, i) for i, y in enumerate(outputs) if y is array), entry)
            chunk = array._chunk
            saved = Saved(chunk, chunk.buffer, array._shape, array._strides, array._offset, entry)

            def plan(saved: Saved = saved, array: Array = array) -> Admission:
                keep: list[Any] = []
                saved.buffer = array._chunk.buffer
                return None, (), (), (), hold(saved.buffer, [saved], keep), keep, False

            chunk.buffer.engine.admit(plan)
            self.saved[position] = saved, type(array)

    def gradients(self, cotangents: list[Any]) -> Any:
        function = self.function
        function._restored = tuple(as_face(face, face._from_saved(saved)) for saved, face in self.saved.values())
        try:
            given = [as_face(face, g) for face, g in zip(self.faces, cotangents, strict=True)]
            result = function.backward(*given)
        finally:
            function._restored = ()
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
