"""Runners of gradient texts: the same text on raw arrays, as one fused engine operation, or on arrays, on the tape.

`raw` is F for raw arrays; `faces.numpy_face` is F for arrays.  Both have the registry's operators under their
canonical names, with the same kernels, so the two give the same bits.  The framework finishes what a text returns:
broadcasting is undone, the shape checked, the dtype made the input's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ..engine import ArgumentError, InternalError, Kind, Operation
from ..ndarray.buffer import Buffer, weigh
from ..ndarray.device import HOST, RawArray
from ..ndarray.dtype import BOOL, FLOAT32, NARROW
from ..ndarray.shape import Shape
from ..ndarray.streams import computing, on_the_host
from .elsewhere import brought, on_host, ufunc_of
from .launch import watch, watchers
from .schema import Attributes, Meta, Operator, Step, Text, registry

T = TypeVar("T")
_ndarray = np.ndarray


def run_raw(op: Operator, *inputs: Any, **attributes: Any) -> Any:
    """One operator on raw arrays and scalars, at once, in this thread."""
    return prepared(op, inputs, attributes)(*inputs)


def prepared(op: Operator, inputs: Sequence[Any], attributes: Attributes) -> Callable[..., Any]:
    """The operator as a function of raw arrays of these shapes and dtypes, and of scalars of these types."""
    home = computing()
    if home is not None and on_host(op):
        return _fetched(op, attributes, home)
    if op.ufunc is not None and op.variant is None:
        return _ufunc(op, inputs)
    bound = op.bind(attributes)
    missing = (None,) * (len(op.inputs) - len(inputs))
    if op.variant is None:
        return _kernel(op, (*inputs, *missing), bound)
    variant = op.variant
    meant, changed, attributes = variant((*inputs, *missing), bound, False)
    if len(changed) != len(inputs) or any(x is not y for x, y in zip(changed, inputs, strict=True)):

        def function(*inputs: Any) -> Any:
            meant, changed, attributes = variant((*inputs, *missing), bound, False)
            return (_ufunc if meant.ufunc is not None else _kernel)(meant, changed, attributes)(*changed)

        return function
    return (_ufunc if meant.ufunc is not None else _kernel)(meant, changed, attributes)


def _ufunc(op: Operator, inputs: Sequence[Any], attributes: Attributes | None = None) -> Callable[..., Any]:
    ufunc: Any = op.ufunc
    home = computing()
    if home is not None:
        return _ufunc_there(ufunc, op, home)
    arrays = [x for x in inputs if type(x) is _ndarray]
    first = arrays[0].dtype if arrays else FLOAT32
    if first in op.widened and all(x.dtype == first for x in arrays):

        def widened(*inputs: Any) -> Any:
            result = np.asarray(ufunc(*(x.astype(FLOAT32) if type(x) is _ndarray else x for x in inputs)))
            return result if result.dtype == BOOL else result.astype(first)

        return widened
    if any(x.ndim for x in arrays):
        return ufunc  # type: ignore[no-any-return]
    return lambda *inputs: np.asarray(ufunc(*inputs))


def _fetched(op: Operator, attributes: Attributes, home: Any) -> Callable[..., Any]:
    """An operator that is computed on the host, on a device."""

    def function(*inputs: Any) -> Any:
        given = [home.fetch(x) if isinstance(x, home.raw) else x for x in inputs]
        made = on_the_host(run_raw, op, *given, **attributes)
        return tuple(map(home.xp.asarray, made)) if isinstance(made, tuple) else home.xp.asarray(made)

    return function


def _ufunc_there(ufunc: Any, op: Operator, home: Any) -> Callable[..., Any]:
    """On a device with streams, whose arrays are of another class."""

    ufunc = ufunc_of(home, ufunc)

    def function(*inputs: Any) -> Any:
        inputs = tuple(map(brought, inputs))
        narrow = next((x.dtype for x in inputs if isinstance(x, home.raw) and x.dtype in op.widened), None)
        if narrow is None:
            return home.xp.asarray(ufunc(*inputs))
        wide = [x.astype(FLOAT32) if isinstance(x, home.raw) and x.dtype in NARROW else x for x in inputs]
        result = home.xp.asarray(ufunc(*wide))
        return result if result.dtype == BOOL else result.astype(narrow)

    return function


def _kernel(op: Operator, inputs: Sequence[Any], attributes: Attributes) -> Callable[..., Any]:
    home = computing() or HOST
    kind = home.raw
    given = next(
        (x.dtype for i, x in enumerate(inputs) if isinstance(x, kind) and op.input_name(i) not in op.indices),
        FLOAT32,
    )
    metas = [None if x is None else (np.shape(x), x.dtype if isinstance(x, kind) else given) for x in inputs]
    made, attributes = op.infer(metas, attributes)
    kernel, atomic, names, xp, empty = op.kernel, op.atomic, (*op.outputs, *op.saves), home.xp, home.empty
    narrow = any(meta is not None and meta[1] in op.widened for meta in metas)
    wide = [None if m is None else (m[0], FLOAT32 if narrow and m[1] in NARROW else m[1]) for m in made]
    number, wanted = len(inputs), len(op.outputs)
    plain = all(isinstance(x, kind) for x in inputs)

    def function(*inputs: Any) -> Any:
        arrays: Sequence[Any] = inputs
        if not plain:
            arrays = [
                x if x is None or isinstance(x, kind) else xp.asarray(x, None if isinstance(x, _ndarray) else given)
                for x in inputs
            ]
            arrays += (None,) * (number - len(arrays))
        if narrow:
            arrays = [a.astype(FLOAT32) if a is not None and a.dtype in NARROW else a for a in arrays]
        filled = [None if m is None else empty(*m) for m in wide]
        steps = kernel(xp, *arrays, **attributes, **dict(zip(names, filled, strict=True)))
        if atomic:
            for step in steps:
                step[0](*step[1:])
        if narrow:
            filled = [
                w if w is None or m is None else w.astype(m[1], copy=False) for w, m in zip(filled, made, strict=True)
            ]
        return filled[0] if wanted == 1 else tuple(filled[:wanted])

    alias: Any = op.alias and inputs[0] is not None and op.alias(metas[0][0], None, attributes)  # type: ignore[index]
    if not alias:
        return function
    shape, strides = alias

    def view(*inputs: Any) -> Any:
        x = inputs[0]
        if not x.flags.c_contiguous:
            return function(*inputs)
        if strides is None:
            return x.reshape(shape)
        where = home if isinstance(x, kind) else HOST
        return where.view(x, shape, tuple(s * x.itemsize for s in strides), 0)

    return view


class RawOperators:
    """F for raw arrays."""

    @staticmethod
    def reshape(x: Any, shape: Shape) -> Any:
        """The operator's kernel is a copy, which an array of one's own does not need."""
        return x.reshape(shape)

    def __getattr__(self, name: str) -> Any:
        if name not in registry:
            raise AttributeError(f"a gradient text uses F.{name}, which is not an operator")
        op = registry[name]

        def function(*inputs: Any, **attributes: Any) -> Any:
            return run_raw(op, *inputs, **attributes)

        setattr(self, name, function)
        return function


raw = RawOperators()


def arguments(text: Text, values: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that a text wants, out of the values at hand and the attributes."""
    try:
        wanted = {name: values[name] if name in values else attributes[name] for name in text.names}
    except KeyError as error:
        raise InternalError(f"a gradient text names {error}, which was not kept") from None
    if text.all_attributes:
        wanted |= {name: value for name, value in attributes.items() if name not in wanted}
    return wanted


def undo_broadcast(F: Any, gradient: Any, shape: Shape) -> Any:
    """Sum a gradient over the axes that broadcasting added or stretched."""
    have = tuple(gradient.shape)
    if have == shape:
        return gradient
    extra = len(have) - len(shape)
    if extra < 0:
        return F.reshape(F.broadcast_to(gradient, shape=(1,) * -extra + have), shape=shape)
    axes = tuple(range(extra)) + tuple(i + extra for i, n in enumerate(shape) if n == 1 and have[i + extra] != 1)
    if axes:
        gradient = F.sum(gradient, axis=axes, keepdims=True)
    return F.reshape(gradient, shape=shape)


def given_by(op: Operator, wanted: Sequence[T], result: Any) -> Iterator[tuple[T, Any]]:
    """What a text has given, each with what it is for."""
    results = result if isinstance(result, tuple) else (result,)
    if len(results) != len(wanted):
        raise ArgumentError(f"[{op.name}] its gradient gave {len(results)} arrays, {len(wanted)} expected")
    return zip(wanted, results, strict=True)


def finished(F: Any, op: Operator, name: str, gradient: Any, meta: Meta) -> Any:
    """A text's result as the gradient of an input with this meta: same shape, same dtype."""
    shape, dtype = meta
    have = tuple(gradient.shape)
    if have != shape:
        wrong = ArgumentError(f"[{op.name}] its gradient for {name} has shape {have}, {shape} expected")
        if not op.broadcasts:
            raise wrong
        try:
            gradient = undo_broadcast(F, gradient, shape)
        except ValueError:
            raise wrong from None
    return gradient if gradient.dtype == dtype else F.cast(gradient, dtype=dtype)


class GradientLaunch:
    """What a gradient operation runs: one or several texts on raw memory.

    `values`: what the texts name, as views of buffers, constants or lists of both.
    `parts`: (text, metadata that it may name, for each of its results the name and meta of the input and the buffer to
    fill, or None).
    """

    __slots__ = ("attributes", "op", "parts", "values")

    def __init__(
        self,
        op: Operator,
        values: dict[str, Any],
        attributes: Mapping[str, Any],
        parts: Sequence[tuple[Text, Mapping[str, Any], Sequence[tuple[str, Meta, Any] | None]]],
    ) -> None:
        self.op, self.values, self.attributes, self.parts = op, values, attributes, parts

    def __call__(self) -> None:
        for (_, _, buffer), made in self.compute():
            buffer.adopt(made)

    def compute(self) -> list[tuple[Any, RawArray]]:
        """The gradients, each with its place in `parts`; nobody else's memory."""
        op = self.op
        found = []
        narrow = any(meta[1] in op.widened for *_, outs in self.parts for _, meta, _ in filter(None, outs))
        values = {name: _raw(value, narrow) for name, value in self.values.items()}
        asarray = (computing() or HOST).xp.asarray
        own = [id(v) for v in values.values()]
        for text, metadata, outs in self.parts:
            result = text.function(raw, **arguments(text, {**values, **metadata}, self.attributes))
            for out, gradient in given_by(op, outs, result):
                if out is None:
                    continue
                name, meta, _ = out
                made = asarray(finished(raw, op, name, asarray(gradient), meta))
                if id(made) in own:
                    made = made.copy()
                own.append(id(made))  # a text may give one array twice
                found.append((out, made))
        return found

    def weigh(self) -> tuple[int, int, list[Step]]:
        """For back-pressure: see `Launch.weigh`.  What the texts take on their way is not known."""
        return weigh([out[2] for *_, outs in self.parts for out in outs if out is not None], self.used())

    def used(self) -> list[Buffer]:
        """The buffers that the texts may read."""
        return [
            v[0] for value in self.values.values() for v in (value if type(value) is list else (value,)) if _view(v)
        ]


def _view(value: Any) -> bool:
    return type(value) is tuple and bool(value) and isinstance(value[0], Buffer)


def _raw(value: Any, narrow: bool) -> Any:
    if _view(value):
        array: RawArray = value[0].view(value[1], value[2], value[3])
        if type(array) is _ndarray:
            array = array.view()
            array.flags.writeable = False
        return array.astype(FLOAT32) if narrow and array.dtype in NARROW else array
    if type(value) is list:
        return tuple(_raw(v, narrow) for v in value)
    value = brought(value)
    if isinstance(value, np.generic | np.ndarray) and narrow and value.dtype in NARROW:
        return value.astype(FLOAT32)
    return value


def gradient_operation(launch: GradientLaunch, recorded_at: str) -> Operation:
    """The engine operation of a gradient, not yet admitted."""
    if watchers and (watcher := watch.get()) is not None:
        return watcher.backward(launch, recorded_at)  # type: ignore[no-any-return]
    name = f"backward of {launch.op.name}"
    made = [out[2] for *_, outs in launch.parts for out in outs if out is not None]
    if made and made[0].device.queued:
        return made[0].device.operation(  # type: ignore[no-any-return]
            name, launch, launch.used(), made, operands=f"recorded at {recorded_at}", nbytes=launch.weigh
        )
    return Operation(Kind.KERNEL, launch, name, operands=f"recorded at {recorded_at}", nbytes=launch.weigh)
