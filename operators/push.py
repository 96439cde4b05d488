"""The push path: everything that happens between a call of an operator and its operation's admission to the engine.

  1 infer    shapes, dtypes, device from metadata
  2 out      a fresh array without memory, or the one given, checked
  3 check    what autograd refuses, refused before any effect
  4 admit    in ONE critical section: operands to buffers, copy-on-write, the tape's holds, push
  5 record   the node is on the tape when the section ends

All of it runs on the caller's thread and none of it blocks.  Whatever is wrong with the arguments is raised before 4.
`plan` runs under the engine's order lock, perhaps several times; it reads chunks and returns steps, so an exception at
any point finds everything done or nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import engine as _engine
from ..engine import ArgumentError, ArgumentTypeError, Engine, Error, Kind, Operation, Variable
from ..ndarray.array import Array, describe
from ..ndarray.buffer import Admission, Buffer, Chunk, Saved, Step, Writing, hold
from ..ndarray.context import Context, as_context
from ..ndarray.device import RawArray, device_of
from ..ndarray.dtype import FLOAT32, DType
from ..ndarray.line import READ_ONLY, scope
from ..ndarray.random import take
from ..ndarray.shape import Shape, Strides
from .schema import Attributes, Meta, Operator

Input = Array | np.generic | RawArray | None
View = tuple[Buffer, Shape, Strides, int]

INLINE = 16_384.0  # units of work (about 0.2 ns) that may run inside the push, under the order lock
HELPED = 5e7  # units of work (about 10 ms) that a waiting user thread may run


class Launch:
    """What an operation runs: an operator's kernel on raw memory.  It knows buffers, never arrays or chunks.

    `operands`: a view of a buffer, or a constant.   `results`: the views to fill with the dtype the kernel writes, None
    for one that is not made; `through` marks those that need a temporary (another dtype, or memory that an operand
    shares in another order).
    """

    __slots__ = ("attributes", "op", "operands", "results", "through", "xp")

    def __init__(self, op: Operator, attributes: Attributes, xp: Any) -> None:
        self.op, self.attributes, self.xp = op, attributes, xp
        self.operands: list[View | Any] = []
        self.results: list[tuple[Buffer, Shape, Strides, int, DType] | None] = []
        self.through: set[int] = set()

    def __call__(self) -> Sequence[Step]:
        """Take memory and give the C calls to do (an atomic kernel), or do everything and give none."""
        op = self.op
        arrays = [o[0].view(o[1], o[2], o[3]) if type(o) is tuple else o for o in self.operands]
        filled: list[RawArray | None] = []
        after: list[Step] = []
        narrow = op.widen and op.ufunc is None and any(_is_half(a) for a in arrays)
        for i, result in enumerate(self.results):
            if result is None:
                filled.append(None)
                continue
            buffer, shape, strides, offset, dtype = result
            raw = buffer.view(shape, strides, offset)
            if i in self.through or raw.dtype != dtype or (narrow and dtype == np.float16):
                temporary = buffer.device.empty(shape, FLOAT32 if narrow and dtype == np.float16 else dtype)
                after.append((operator.setitem, raw, ..., temporary))
                raw = temporary
            filled.append(raw)
        if op.ufunc is not None:
            return ((op.ufunc, *arrays, *filled), *after)
        if narrow:
            arrays = [a.astype(np.float32) if _is_half(a) else a for a in arrays]
        made = dict(zip((*op.outputs, *op.saves), filled, strict=True))
        steps = op.kernel(self.xp, *arrays, **self.attributes, **made)
        if op.atomic:
            return (*steps, *after)
        for _, target, where, source in after:
            target[where] = source
        return ()

    def run(self) -> None:
        """Take memory and do everything: for atomic kernels too long to be run by a thread that waits."""
        for function, *arguments in self():
            function(*arguments)


def _is_half(array: Any) -> bool:
    return getattr(array, "dtype", None) == np.float16


def refusal(op: Operator, inputs: Sequence[Input], error: Exception) -> Error:
    """The error that a rule's reason becomes: it names the operator and its operands."""
    if isinstance(error, Error):
        return error
    text = f"[{op.name}] {operands(op, inputs)}: {error}"
    return ArgumentTypeError(text) if isinstance(error, TypeError) else ArgumentError(text)


def operands(op: Operator, inputs: Sequence[Input]) -> str:
    """The operands in a message: ``a float32(2, 3), b 2.5``."""
    given = ((op.input_name(i), x) for i, x in enumerate(inputs) if x is not None)
    return ", ".join(f"{name} {describe(x)}" for name, x in given) or "no operands"


def _meta(x: Input) -> Meta | None:
    if isinstance(x, Array):
        return x._meta
    return None if x is None else (x.shape, x.dtype)


def _place(
    op: Operator, inputs: Sequence[Input], outs: Sequence[Array | None], context: Context | None
) -> tuple[Engine, Context]:
    """The engine and the context that the operation belongs to: those of its arrays."""
    engine: Engine | None = None
    for x in (*inputs, *outs):
        if isinstance(x, Array):
            chunk = x._chunk
            if engine is None:
                engine = chunk.buffer.variable.engine
                first = chunk
            elif engine is not chunk.buffer.variable.engine:
                raise ArgumentError(f"[{op.name}] {operands(op, inputs)}: the arrays belong to different engines")
            elif chunk.buffer.device is not first.buffer.device:
                raise ArgumentError(
                    f"[{op.name}] {operands(op, inputs)}: arrays on {first.context} and on {chunk.context}, which are "
                    f"different memories; copy one with .as_in_context"
                )
    if engine is None:
        return _engine.current(), as_context(context)
    return engine, context or first.context


def _check_out(op: Operator, inputs: Sequence[Input], out: Array, shape: Shape, dtype: DType) -> None:
    if out._shape != shape or out._chunk.buffer.dtype != dtype:
        raise ArgumentError(
            f"[{op.name}] {operands(op, inputs)}: the result is {dtype}{shape}, but out is {describe(out)}"
        )


def _overlap(a: Array, b: Array) -> bool:
    if a._chunk is not b._chunk:
        return False
    (low, high), (first, last) = a._range(), b._range()
    return first < high and low < last


def _identical(a: Array, b: Array) -> bool:
    return (a._shape, a._strides, a._offset) == (b._shape, b._strides, b._offset)


def invoke(
    op: Operator,
    inputs: Sequence[Input],
    attributes: Attributes,
    out: Array | Sequence[Array | None] | None = None,
    *,
    cls: type[Array] = Array,
    context: Context | None = None,
    dtype: DType | None = None,
    zero_d: Shape = (),
    any_dtype: bool = False,
) -> Any:
    """Push one operator.  Gives its output (a tuple of several), arrays of class `cls`.

    `attributes`: bound (see Operator.bind).   `dtype`: what the outputs are stored as, if not what the kernel gives.
    `zero_d`: the shape of an output that would have none.   `any_dtype`: `out` may have any dtype (assignment).
    """
    current = scope.get()
    metas = [_meta(x) for x in inputs]
    if op.training:
        attributes["training"] = current.training
    try:
        made, attributes = op.infer(metas, attributes)
    except (ValueError, TypeError, IndexError) as error:
        raise refusal(op, inputs, error) from None

    number = len(op.outputs)
    outs: list[Array | None] = [None] * number
    if out is not None:
        given = (out,) if isinstance(out, Array) else tuple(out)
        if len(given) != number or not all(o is None or isinstance(o, Array) for o in given):
            raise ArgumentError(f"[{op.name}] out: {number} array{'s' if number > 1 else ''} expected")
        outs = list(given)
    engine, place = _place(op, inputs, outs, context)
    if op.alias is not None and out is None and dtype in (None, made[0][1]):  # type: ignore[index]
        shared = _alias(op, inputs, attributes, made, engine, place, cls, zero_d)
        if shared is not None:
            return shared

    results: list[Array] = []
    for target, meta in zip(outs, made[:number], strict=True):
        shape, kernel_dtype = meta  # type: ignore[misc]
        if target is None:
            results.append(cls._fresh(engine, shape or zero_d, dtype or kernel_dtype, place))
        else:
            stored = target._chunk.buffer.dtype if any_dtype else dtype or kernel_dtype
            _check_out(op, inputs, target, shape if target._shape == shape else shape or zero_d, stored)
            results.append(target)
    push = _Push(op, inputs, attributes, outs, results, made, engine, place, current.recorder)
    engine.admit(push.plan)
    push.attach_fresh()
    return results[0] if number == 1 else tuple(results)


class _Push:
    """One push: `plan` is called by the engine under its order lock, perhaps several times."""

    __slots__ = (
        "attributes", "engine", "hidden", "inputs", "made", "node", "op", "outs", "place", "recorder", "results",
        "seed", "written",
    )  # fmt: skip

    def __init__(
        self,
        op: Operator,
        inputs: Sequence[Input],
        attributes: Attributes,
        outs: Sequence[Array | None],
        results: Sequence[Array],
        made: tuple[Meta | None, ...],
        engine: Engine,
        place: Context,
        recorder: Any,
    ) -> None:
        self.op, self.inputs, self.attributes = op, inputs, attributes
        self.outs, self.results, self.made = outs, results, made
        self.engine, self.place, self.recorder = engine, place, recorder
        self.node: Any = None
        self.seed: Any = None
        device = device_of(place)
        self.hidden = [
            None if meta is None else Chunk(Buffer(engine, *meta, device), place) for meta in made[len(results) :]
        ]
        #: (array, identity of the input it may be written over in place)
        self.written = [r for r, o in zip(results, outs, strict=True) if o is not None]
        updated = [inputs[op.inputs.index(name)] for name in op.updates]
        _check_written(op, inputs, self.written, updated)
        self.written += [x for x in updated if isinstance(x, Array)]

    # ---- under P ---------------------------------------------------------------------------------------------------

    def plan(self) -> Admission:
        op, inputs = self.op, self.inputs
        keep: list[Any] = []
        steps: list[Step] = []
        if self.recorder is not None:
            self.node = self.recorder.node(self.node, op, inputs, self.attributes, self.made, self.written)
            if self.node is not None and self.written:
                held = self._hold_inputs(keep)
                if held:
                    return None, (), (), (), held, keep, True
        if op.random and self.seed is None:
            self.seed = self.attributes["seed"] = take(self.place)

        launch = Launch(op, self.attributes, device_of(self.place).xp)
        reads: list[Variable] = []
        for x in inputs:
            if isinstance(x, Array):
                buffer = x._chunk.buffer
                reads.append(buffer.variable)
                launch.operands.append((buffer, x._shape, x._strides, x._offset))
            else:
                launch.operands.append(x)
        writes: list[Variable] = []
        updates: list[Variable] = []
        first = self._outputs(launch, writes, updates, steps, keep)
        if first is None:
            first = self._updated(launch, updates, steps, keep)
        if first is not None:
            return first
        for chunk, meta in zip(self.hidden, self.made[len(self.results) :], strict=True):
            if chunk is None or meta is None:
                launch.results.append(None)
            else:
                launch.results.append((chunk.buffer, meta[0], None, 0, meta[1]))
                writes.append(chunk.buffer.variable)
        if self.node is not None:
            steps += self._save(launch, keep)
            for target in self.written[: len(self.written) - len(op.updates)]:
                steps += self.recorder.written(self.node, self.results.index(target), target)
        elif self.recorder is not None:
            for target in self.written[: len(self.written) - len(op.updates)]:
                steps += self.recorder.written(None, 0, target)
        return self._operation(launch), reads, writes, updates, steps, keep, False

    def _outputs(
        self, launch: Launch, writes: list[Variable], updates: list[Variable], steps: list[Step], keep: list[Any]
    ) -> Admission | None:
        """Where each output goes.  An admission to be committed before, if a copy-on-write is due."""
        op = self.op
        for i, (result, target, meta) in enumerate(zip(self.results, self.outs, self.made, strict=False)):
            assert meta is not None
            chunk = result._chunk
            if target is None:
                buffer = chunk.buffer
                writes.append(buffer.variable)
                launch.results.append((buffer, meta[0], None, 0, meta[1]))
                continue
            whole = result._covers_chunk()
            across = any(
                isinstance(x, Array) and _overlap(x, result) and not (op.elementwise and _identical(x, result))
                for x in self.inputs
            )
            writing = Writing(chunk, *result._range(), replace=whole, rename=whole and across, keep=keep)
            if writing.first is not None:
                return writing.first
            if across and not whole:
                launch.through.add(i)
            (writes if whole else updates).append(writing.buffer.variable)
            steps += writing.steps
            strides = result._strides if meta[0] == result._shape else None
            launch.results.append((writing.buffer, meta[0], strides, result._offset, meta[1]))
        return None

    def _updated(
        self, launch: Launch, updates: list[Variable], steps: list[Step], keep: list[Any]
    ) -> Admission | None:
        for name in self.op.updates:
            x = self.inputs[self.op.inputs.index(name)]
            if isinstance(x, Array):
                writing = Writing(x._chunk, *x._range(), replace=False, rename=False, keep=keep)
                if writing.first is not None:
                    return writing.first
                updates.append(writing.buffer.variable)
                steps += writing.steps
        return None

    def _hold_inputs(self, keep: list[Any]) -> list[Step]:
        """Hold the inputs that the tape keeps and this push overwrites, before anything is decided about the write."""
        steps: list[Step] = []
        for i, x in enumerate(self.inputs):
            if isinstance(x, Array) and self.node.keeps(i) and any(_overlap(x, w) for w in self.written):
                saved = self.node.saved.get(self.node.key(i))
                if saved is None or not any(r() is saved for r in saved.buffer.holders):
                    saved = self._saved(x, i)
                    self.node.saved[self.node.key(i)] = saved
                    steps += hold(saved.buffer, [saved], keep)
        return steps

    def _saved(self, x: Array, index: int) -> Saved:
        return Saved(x._chunk, x._chunk.buffer, x._shape, x._strides, x._offset, self.node.edges[index])

    def _save(self, launch: Launch, keep: list[Any]) -> list[Step]:
        """Holds on what the gradient texts name: inputs, outputs and saved outputs."""
        node, op = self.node, self.op
        steps: list[Step] = []
        for i, x in enumerate(self.inputs):
            if not node.keeps(i):
                continue
            key = node.key(i)
            if not isinstance(x, Array):
                node.saved[key] = x
                continue
            saved = node.saved.get(key)
            if saved is not None and self.written and any(_overlap(x, w) for w in self.written):
                continue  # held by _hold_inputs, perhaps in a buffer of its own by now
            saved = node.saved[key] = self._saved(x, i)
            steps += hold(saved.buffer, [saved], keep)
        for i, name in enumerate((*op.outputs, *op.saves)):
            result = launch.results[i]
            if name in node.names and result is not None:
                chunk = self.results[i]._chunk if i < len(self.results) else self.hidden[i - len(self.results)]
                saved = Saved(chunk, result[0], result[1], result[2], result[3], (node, i))  # type: ignore[arg-type]
                node.saved[name] = saved
                steps += hold(saved.buffer, [saved], keep)
        return steps

    def _operation(self, launch: Launch) -> Operation:
        op, inputs = self.op, self.inputs
        work = op.cost(self.made, self.attributes) if callable(op.cost) else op.cost * _size(self.made)
        atomic = op.atomic and work < HELPED
        return Operation(
            Kind.ATOMIC if atomic else Kind.KERNEL,
            launch if atomic else launch.run,
            op.name,
            cheap=atomic and work <= INLINE,
            operands=_Described(op, inputs),
        )

    # ---- after -----------------------------------------------------------------------------------------------------

    def attach_fresh(self) -> None:
        """Fresh outputs begin lines: nobody else knows them yet, so no commit is needed."""
        if self.node is not None:
            for i, (result, target) in enumerate(zip(self.results, self.outs, strict=True)):
                if target is None:
                    self.recorder.begin_line(result, self.node, i)


class _Described:
    """The operands of an operation in words, without keeping the arrays alive."""

    __slots__ = ("inputs", "op")

    def __init__(self, op: Operator, inputs: Sequence[Input]) -> None:
        self.op = op
        self.inputs = [
            x._meta if isinstance(x, Array) else x if isinstance(x, np.generic) else _meta(x) for x in inputs
        ]

    def __call__(self) -> str:
        words = []
        for i, x in enumerate(self.inputs):
            if x is not None:
                text = f"{x[1]}{x[0]}" if type(x) is tuple else describe(x)
                words.append(f"{self.op.input_name(i)} {text}")
        return ", ".join(words)


def _check_written(op: Operator, inputs: Sequence[Input], outs: Sequence[Array], updated: Sequence[Any]) -> None:
    """Two things that one operation changes must not share memory, nor may it change what it only reads elsewhere."""
    changed = [*outs, *(x for x in updated if isinstance(x, Array))]
    if any(a._line is READ_ONLY for a in changed):
        raise ArgumentError(f"[{op.name}] {operands(op, inputs)}: an input of Function.forward is read-only")
    for i, a in enumerate(changed):
        for b in changed[i + 1 :]:
            if _overlap(a, b):
                raise ArgumentError(f"[{op.name}] {operands(op, inputs)}: two arrays that it changes share memory")
    for a in changed[len(outs) :]:
        for x in inputs:
            if isinstance(x, Array) and x is not a and _overlap(a, x):
                raise ArgumentError(f"[{op.name}] {operands(op, inputs)}: an array that it changes is also its operand")


def _alias(
    op: Operator,
    inputs: Sequence[Input],
    attributes: Attributes,
    made: tuple[Meta | None, ...],
    engine: Engine,
    place: Context,
    cls: type[Array],
    zero_d: Shape,
) -> Array | None:
    """The output as another chunk on the input's buffer: no bytes move until one of the two is written."""
    (x,) = inputs
    if not isinstance(x, Array) or not x._covers_chunk() or op.alias is None:
        return None
    if device_of(place) is not x._chunk.buffer.device:
        return None
    geometry = op.alias(x._shape, x._strides, attributes)
    if geometry is None:
        return None
    recorder = scope.get().recorder
    shape, strides = geometry
    source = x._chunk
    chunk = Chunk(source.buffer, place)
    node: Any = None

    def plan() -> Admission:
        nonlocal node
        keep: list[Any] = [chunk.buffer]
        chunk.buffer = source.buffer  # private until the commit
        if recorder is not None:
            node = recorder.node(None, op, inputs, attributes, made, ())
        return None, (), (), (), hold(source.buffer, [chunk, source], keep), keep, False

    engine.admit(plan)
    result = cls._over(chunk, shape or zero_d, strides, x._offset)
    if node is not None:
        recorder.begin_line(result, node, 0)
    return result


def _size(made: Sequence[Meta | None]) -> int:
    return sum(math.prod(meta[0]) for meta in made if meta is not None)
