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

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import engine as _engine
from ..engine import ArgumentError, ArgumentTypeError, Error, Kind, Operation, Variable
from ..ndarray.array import Array
from ..ndarray.buffer import Admission, Buffer, Chunk, Saved, Step, Writing, hold, share
from ..ndarray.context import Context, as_context
from ..ndarray.device import Place, RawArray, place_of
from ..ndarray.dtype import DType
from ..ndarray.line import READ_ONLY, scope
from ..ndarray.ndarray import NDArray
from ..ndarray.random import take
from ..ndarray.reading import describe
from ..ndarray.shape import Shape
from .fusion import FUSE, fusible
from .launch import HELPED, WORTH, Launch, watch, watchers
from .schema import Attributes, Meta, Metas, Operator, size_of
from .tiny import INLINE, at_once, prepare

Input = Array | np.generic | RawArray | None


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


def _where(op: Operator, inputs: Sequence[Input], outs: Sequence[Array | None], context: Context | None) -> Place:
    """The place that the operation belongs to: that of its arrays."""
    place: Place | None = None
    for x in (*inputs, *outs):
        if isinstance(x, Array) and x._place is not place:
            here = x._place
            if place is None:
                place = here
            elif place.engine is not here.engine:
                raise ArgumentError(f"[{op.name}] {operands(op, inputs)}: the arrays belong to different engines")
            elif place.device.memory is not here.device.memory:
                raise ArgumentError(
                    f"[{op.name}] {operands(op, inputs)}: arrays on {place.context} and on {here.context}, which are "
                    f"different memories; copy one with .as_in_context"
                )
    if place is None:
        return place_of(_engine.current(), as_context(context))
    if context is None:
        return place
    there = place_of(place.engine, context)
    if there.device.memory is not place.device.memory:
        raise ArgumentError(
            f"[{op.name}] {operands(op, inputs)}: arrays on {place.context}, but the result is to be on {context}, "
            f"which is another memory; copy one with .as_in_context"
        )
    return there


def _check_out(op: Operator, inputs: Sequence[Input], out: Array, shape: Shape, dtype: DType) -> None:
    if out._shape != shape or out._dtype != dtype:
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
    try:
        if op.variant is not None:
            op, inputs, attributes = op.variant(inputs, attributes, current.training)
        metas = [_meta(x) for x in inputs]
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
    place = _where(op, inputs, outs, context)
    if op.alias is not None and out is None and dtype in (None, made[0][1]):  # type: ignore[index]
        shared = _alias(op, inputs, attributes, made, place, cls, zero_d)
        if shared is not None:
            return shared

    if out is None:
        ready = prepare(op, metas, attributes, made, dtype, zero_d)
        done = None if ready is None else at_once(ready, inputs, place, current.recorder, cls)
        if done is not None:
            return done[0] if number == 1 else done
    results: list[Array] = []
    for target, meta in zip(outs, made, strict=False):
        shape, kernel_dtype = meta  # type: ignore[misc]
        if target is None:
            results.append(cls._fresh(place, shape or zero_d, dtype or kernel_dtype))
        else:
            stored = target._dtype if any_dtype else dtype or kernel_dtype
            _check_out(op, inputs, target, shape if target._shape == shape else shape or zero_d, stored)
            results.append(target)
    push = _Push(op, inputs, attributes, results, made, place, current.recorder)
    if out is not None or op.updates:
        push.writes_to([i for i, target in enumerate(outs) if target is not None])
    return push.admit()


def push_known(
    inputs: Sequence[Input], op: Operator, attributes: Attributes, made: Metas, dtype: DType | None, zero_d: Shape
) -> Any:
    """`invoke` for nd arrays of one place (not with an alias): `infer` has been asked before."""
    place = next(x._place for x in inputs if isinstance(x, Array))
    results = [NDArray._fresh(place, m[0] or zero_d, dtype or m[1]) for m in made[: len(op.outputs)] if m is not None]
    given = dict(attributes) if op.random else attributes  # a seed is put in
    push = _Push(op, inputs, given, results, made, place, scope.get().recorder)
    if op.updates:
        push.writes_to(())
    return push.admit()


class _Push:
    """One push: `plan` is called by the engine under its order lock, perhaps several times.

    `results`: the outputs, fresh or given.   `targets`: positions of those given.   `updated`: the operands that the
    kernel changes in place.   `hidden`: a chunk for each saved output that is made.   `versions`: of which version of
    an operand, by position, an earlier try holds the bytes.
    """

    __slots__ = (
        "attributes", "hidden", "inputs", "made", "node", "op", "place", "recorder", "results", "seed",
        "targets", "updated", "versions",
    )  # fmt: skip

    def __init__(
        self,
        op: Operator,
        inputs: Sequence[Input],
        attributes: Attributes,
        results: Sequence[Array],
        made: Metas,
        place: Place,
        recorder: Any,
    ) -> None:
        self.op, self.inputs, self.attributes = op, inputs, attributes
        self.results, self.made, self.place, self.recorder = results, made, place, recorder
        self.node: Any = None
        self.seed: Any = None
        self.targets: Sequence[int] = ()
        self.updated: Sequence[Array] = ()
        self.versions: dict[int, int] = {}
        self.hidden: list[Chunk | None] = []
        for x in inputs:
            if isinstance(x, Array) and x._raw is not None:
                x._grow()  # an operation knows buffers only
        if op.saves:
            for meta in made[len(results) :]:
                fresh = None if meta is None else Chunk(Buffer(place.engine, *meta, place.device), place)
                self.hidden.append(fresh)

    def admit(self) -> Any:
        """Gives the output, a tuple of several."""
        self.place.engine.admit(self.plan)
        if self.node is not None:
            self.begin_lines()
        return self.results[0] if len(self.op.outputs) == 1 else tuple(self.results)

    def writes_to(self, targets: Sequence[int]) -> None:
        """The operation writes to arrays that others know: check that no two of its operands clash."""
        op = self.op
        where = [op.inputs.index(name) for name in op.updates]
        self.targets, self.updated = targets, [x for i in where if isinstance(x := self.inputs[i], Array)]
        changed = [*(self.results[i] for i in targets), *self.updated]
        for i, a in enumerate(changed):
            if a._line is READ_ONLY:
                raise refusal(op, self.inputs, ValueError("an input of Function.forward is read-only"))
            if any(_overlap(a, b) for b in changed[i + 1 :]):
                raise refusal(op, self.inputs, ValueError("two arrays that it changes share memory"))
        for a in self.updated:
            if any(isinstance(x, Array) and i not in where and _overlap(a, x) for i, x in enumerate(self.inputs)):
                raise refusal(op, self.inputs, ValueError("an array that it changes is also its operand"))

    # ---- under P ---------------------------------------------------------------------------------------------------

    def plan(self) -> Admission:
        op, recorder = self.op, self.recorder
        keep: list[Any] = []
        steps: list[Step] = []
        given = [self.results[i] for i in self.targets]
        if recorder is not None:
            self.node = recorder.node(self.node, op, self.inputs, self.attributes, self.made, given)
            if self.node is not None and given:
                held = self._hold_overwritten(given, keep)
                if held:
                    return None, (), (), (), held, keep, True
        if op.random and self.seed is None:
            self.seed = self.attributes["seed"] = take(self.place.context)

        launch = Launch(op, self.attributes, self.place.device.xp)
        reads: list[Variable] = []
        writes: list[Variable] = []
        updates: list[Variable] = []
        for x in self.inputs:
            if isinstance(x, Array):
                buffer = x._chunk.buffer
                reads.append(buffer.variable)
                launch.operands.append((buffer, x._shape, x._strides, x._offset))
            else:
                launch.operands.append(x)
        first = self._outputs(launch, writes, updates, steps, keep)
        if first is not None:
            return first
        if self.node is not None:
            steps += self._save(launch, keep)
        if recorder is not None:
            for i in self.targets:
                steps += recorder.written(self.node, i, self.results[i], keep)
        return self._operation(launch), reads, writes, updates, steps, keep, False

    def _outputs(
        self, launch: Launch, writes: list[Variable], updates: list[Variable], steps: list[Step], keep: list[Any]
    ) -> Admission | None:
        """Where each output goes.  Instead, an admission to be committed before, if a copy-on-write is due."""
        for i, result in enumerate(self.results):
            shape, dtype = self.made[i]  # type: ignore[misc]
            if i not in self.targets:
                buffer = result._chunk.buffer
                writes.append(buffer.variable)
                launch.results.append((buffer, shape, None, 0, dtype))
                continue
            whole = result._covers_chunk()
            across = any(
                isinstance(x, Array)
                and _overlap(x, result)
                and not ((self.op.elementwise or j == self.op.changes) and _identical(x, result))
                for j, x in enumerate(self.inputs)
            )
            ahead = whole and not any(isinstance(x, Array) and x._chunk is result._chunk for x in self.inputs)
            writing = Writing(
                result._chunk, *result._range(), replace=whole, rename=whole and across, keep=keep, ahead=ahead
            )
            if writing.first is not None:
                return writing.first
            if across and (not whole or result._chunk.pinned):
                launch.through.add(i)
            (writes if whole else updates).append(writing.buffer.variable)
            steps += writing.steps
            strides = result._strides if shape == result._shape else None
            launch.results.append((writing.buffer, shape, strides, result._offset, dtype))
        for chunk, meta in zip(self.hidden, self.made[len(self.results) :], strict=True):
            if chunk is None or meta is None:
                launch.results.append(None)
            else:
                writes.append(chunk.buffer.variable)
                launch.results.append((chunk.buffer, meta[0], None, 0, meta[1]))
        for x in self.updated:
            writing = Writing(x._chunk, *x._range(), replace=False, rename=False, keep=keep)
            if writing.first is not None:
                return writing.first
            updates.append(writing.buffer.variable)
            steps += writing.steps
        return None

    def _hold_overwritten(self, given: Sequence[Array], keep: list[Any]) -> list[Step]:
        """Hold the operands that the tape keeps and this push overwrites, before the write is decided about."""
        node = self.node
        new: list[Saved] = []
        for i, x in enumerate(self.inputs):
            if isinstance(x, Array) and node.keeps(i) and any(_overlap(x, target) for target in given):
                saved, version = node.saved.get(node.key(i)), x._chunk.version
                # Held by an earlier try of this push, if nobody has written in between (a finalizer can).
                if (
                    saved is None
                    or self.versions.get(i) != version
                    or not any(r() is saved for r in saved.buffer.holders)
                ):
                    self.versions[i] = version
                    node.saved[node.key(i)] = saved = self._saved(x, i)
                    new.append(saved)
        return hold(new, keep)

    def _saved(self, x: Array, index: int) -> Saved:
        return Saved(x._chunk, x._chunk.buffer, x._shape, x._strides, x._offset, self.node.edges[index])

    def _save(self, launch: Launch, keep: list[Any]) -> list[Step]:
        """Holds on what the gradient texts name: operands, outputs and saved outputs."""
        node, op = self.node, self.op
        given = [self.results[i] for i in self.targets]
        new: list[Saved] = []
        for i, x in enumerate(self.inputs):
            if not node.keeps(i):
                continue
            key = node.key(i)
            if not isinstance(x, Array):
                node.saved[key] = x
            elif not any(_overlap(x, target) for target in given):  # those are held by now, perhaps in another buffer
                node.saved[key] = saved = self._saved(x, i)
                new.append(saved)
        chunks = [*(result._chunk for result in self.results), *self.hidden]
        for i, name in enumerate((*op.outputs, *op.saves)):
            chunk, result = chunks[i], launch.results[i]
            if name in node.names and chunk is not None and result is not None:
                node.saved[name] = saved = Saved(chunk, *result[:4], i)
                new.append(saved)
        return hold(new, keep)

    def _operation(self, launch: Launch) -> Operation:
        op = self.op
        words = _Described(op, self.inputs)
        if watchers and (watcher := watch.get()) is not None:
            return watcher.forward(launch, words)  # type: ignore[no-any-return]
        if self.place.queued:
            return launch.operation(self.place.device, words)
        if (op.elementwise and size_of(self.made) >= FUSE) or op.consumed is not None or op.by_rows:
            joining = fusible(launch, words)
            if joining is not None:
                return joining
        if op.atomic:
            work = op.work([_meta(x) for x in self.inputs], self.made, self.attributes)
            if work < HELPED and not (work >= WORTH and launch.divides):
                cheap = work <= INLINE
                return Operation(Kind.ATOMIC, launch, op.name, cheap=cheap, operands=words, nbytes=launch.weigh)
        return Operation(Kind.KERNEL, launch.run, op.name, operands=words, nbytes=launch.weigh)

    # ---- after -----------------------------------------------------------------------------------------------------

    def begin_lines(self) -> None:
        """Fresh outputs begin lines: nobody else knows them yet, so no commit is needed."""
        for i, result in enumerate(self.results):
            if i not in self.targets:
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


def _alias(
    op: Operator,
    inputs: Sequence[Input],
    attributes: Attributes,
    made: tuple[Meta | None, ...],
    place: Place,
    cls: type[Array],
    zero_d: Shape,
) -> Array | None:
    """The output as another chunk on the input's buffer: no bytes move until one of the two is written."""
    (x,) = inputs
    if not isinstance(x, Array) or not x._covers_chunk() or op.alias is None or x._chunk.pinned:
        return None
    if place.device is not x._place.device:
        return None
    geometry = op.alias(x._shape, x._strides, attributes)
    if geometry is None:
        return None
    recorder = scope.get().recorder
    shape, strides = geometry
    if strides is not None and cls is not Array:
        return None  # in the nd face a copy is C-ordered, so that reshaping it is a view of it
    source = x._chunk
    chunk = Chunk(source.buffer, place)
    node: Any = None

    def plan() -> Admission:
        nonlocal node
        keep: list[Any] = [chunk.buffer]
        chunk.buffer = source.buffer  # private until the commit
        if recorder is not None:
            node = recorder.node(node, op, inputs, attributes, made, ())
        return None, (), (), (), share(source.buffer, [chunk, source], keep), keep, False

    place.engine.admit(plan)
    result = cls._over(chunk, shape or zero_d, strides, x._offset)
    if node is not None:
        recorder.begin_line(result, node, 0)
    return result
