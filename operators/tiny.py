"""Kernels that run at once: small operators whose inputs are ready make their output on the caller's thread.

No push and no lock: the output is fresh, so nothing shared changes, and all that has to be sure is that the inputs are
the values of one moment.  `Looks` notes what was read.  When the kernel has run, and the tape has its copies, it asks
whether it is still so:

  a young array      is still young: nobody writes a raw array before its array has a chunk
  any other          its chunk has the same buffer, its variable the same version, and no kernel writes within a push

A version counts a write when it is pushed, before its kernel starts; only a kernel that runs within its push counts it
when it ends, and that one shows in ``engine.writing``, which is asked first: it is counted before it stops to show.
What the tape knows of them is of one moment too, if nothing was marked meanwhile (``marks``).  If anything has changed,
or the kernel failed, nothing has happened, and the push path does it all again, in order.  Signal handlers and
finalizers may come in between anywhere: what they write is seen in the same way, and what they raise goes to the
caller.                                                                              [tests/operators/test_tiny.py]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import ref

from ..engine import DONE, OK
from ..ndarray.array import Array
from ..ndarray.buffer import Buffer, Saved, hold
from ..ndarray.device import Place
from ..ndarray.dtype import NARROW
from ..ndarray.line import Line, marks
from ..ndarray.shape import Shape
from .fusion import FUSE
from .schema import Attributes, Meta, Operator, size_of

INLINE = 131_072.0  # units of work (about 0.2 ns) that may run within the push, under the order lock
COPIED = 32_768  # elements: the tape keeps smaller values as copies, larger ones by holds
NOW = 600_000.0  # units of work that may run on the caller's thread without a lock: about what another thread costs
ESTIMATED = 20  # how much more than it says a kernel of several calls may cost

Seen = tuple[Any, Any, Any, int]


def settled(x: Array) -> Seen | None:
    """The value of an array if it is ready and well: (raw, chunk, buffer, version), or (raw, array, None, 0).

    A number is (number, None, None, 0).
    """
    raw = x._raw
    if raw is not None:
        return raw, x, None, 0
    chunk = x._chunk
    buffer = chunk.buffer
    variable = buffer.variable
    version, writer, raw = variable.version, variable.writer, buffer.raw
    if raw is None or (writer is not None and (writer.state is not DONE or writer.fate is not OK)):
        return None
    if x._strides is not None or x._offset or raw.shape != x._shape:
        raw = buffer.view(x._shape, x._strides, x._offset)
    return raw, chunk, buffer, version


def unchanged(seen: Seen) -> bool:
    """Is it still what `settled` saw?"""
    raw, owner, buffer, version = seen
    if buffer is None:
        return owner is None or owner._raw is raw
    return buffer.variable.version == version and owner.buffer is buffer


class Looks:
    """The values of one moment that a kernel reads; `ready` says whether all of them are there."""

    __slots__ = ("_holds", "_seen", "ready")

    def __init__(self) -> None:
        self.ready = True
        self._seen: list[Seen] = []
        self._holds: list[tuple[Saved, Buffer]] = []

    def at(self, value: Any) -> Any:
        """The raw array of an array or of a value that the tape keeps; a constant as it is."""
        if isinstance(value, Array):
            seen = settled(value)
            if seen is None:
                self.ready = False
                return None
            self._seen.append(seen)
            return seen[0]
        if isinstance(value, Saved):
            buffer, offset = value.buffer, value.offset
            writer = buffer.variable.writer
            if buffer.raw is None or (writer is not None and (writer.state is not DONE or writer.fate is not OK)):
                self.ready = False
                return None
            # Nobody writes held bytes.  Moved by a writer, it has another buffer, before anything is written.
            self._holds.append((value, buffer))
            return buffer.view(value.shape, value.strides, offset)
        return value

    def run(self, place: Place, function: Callable[[], Any]) -> Any:
        """What a kernel that reads them gives, None if it failed by itself or they are no longer what they were."""
        try:
            found = place.engine.kernel_context.copy().run(function)
        except MemoryError:
            return None
        except Exception:
            if fails(place.engine.kernel_context, function):
                return None
            raise
        return found if not place.engine.writing and self.unchanged() else None

    def unchanged(self) -> bool:
        """Are they still what the kernel has read?"""
        for seen in self._seen:
            if not unchanged(seen):
                return False
        return all(saved.buffer is buffer for saved, buffer in self._holds)


def fails(context: Any, function: Callable[..., Any], *arguments: Any) -> bool:
    """Does a kernel raise again what is being handled?  What a signal handler threw into it does not repeat."""
    first = sys.exception()
    try:
        context.copy().run(function, *arguments)
    except Exception as again:
        return first is None or type(again) is type(first)
    return False


def compute(op: Operator, xp: Any, arrays: Sequence[Any], attributes: Attributes, filled: Sequence[Any]) -> None:
    """An operator on raw memory."""
    if op.ufunc is not None:
        op.ufunc(*arrays, out=filled[0])
        return
    outs = dict(zip(op.filled, filled, strict=True))
    steps = op.kernel(xp, *arrays, **attributes, **outs)
    if op.atomic:
        for function, *arguments in steps:
            function(*arguments)


class Ready(NamedTuple):
    """A call that may run at once, if its operands are ready: see `prepare`."""

    op: Operator
    attributes: Attributes
    made: Sequence[Meta | None]
    dtype: Any
    zero_d: Shape
    #: outputs that are stored in another dtype than the kernel gives
    stored: frozenset[int]
    #: see `Recorder.again`
    forms: dict[Any, Any]


def prepare(
    op: Operator, metas: Sequence[Meta | None], attributes: Attributes, made: Sequence[Meta | None], dtype: Any,
    zero_d: Shape,
) -> Ready | None:  # fmt: skip
    """A call of an operator (see push.invoke) that may run at once, or None: it is to be pushed."""
    if op.updates or op.random or op.alias is not None or ((op.elementwise or op.by_rows) and size_of(made) >= FUSE):
        return None
    if any(meta is not None and meta[1] in NARROW for meta in metas):
        return None
    if op.work(metas, made, attributes) > (NOW if op.atomic else NOW / ESTIMATED):
        return None
    others = frozenset(
        i
        for i, meta in enumerate(made[: len(op.outputs)])
        if dtype is not None and meta is not None and meta[1] != dtype
    )
    return Ready(op, attributes, made, dtype, zero_d, others, {})


def at_once(
    call: Ready, inputs: Sequence[Any], place: Place, recorder: Any, cls: type[Array]
) -> tuple[Any, ...] | None:
    """Its outputs, fresh arrays; None: it is to be pushed."""
    if place.queued or not place.engine.calm():
        return None
    op, made, attributes = call.op, call.made, call.attributes
    if recorder is not None:
        for x in inputs:
            if isinstance(x, Array) and x._raw is not None and x._raw.size >= COPIED:
                x._grow()  # it may have to be held
    looks = Looks()
    arrays = [looks.at(x) for x in inputs]
    if not looks.ready:
        return None
    node = None
    marked = marks.last
    if recorder is not None:
        node = recorder.again(call.forms, op, inputs, attributes, made)
        if node is not None and call.stored and any(i in call.stored for i, _ in node.retention.outputs):
            return None  # gradients use what is stored

    def kernel() -> list[Any]:
        filled = [None if m is None else place.device.empty(*m) for m in made]
        compute(op, place.device.xp, arrays, attributes, filled)
        if node is not None:
            save(node, inputs, arrays, filled)
        return filled

    filled = looks.run(place, kernel)
    if filled is None or marks.last is not marked or (node is not None and not _hold(node, inputs, looks, place)):
        return None
    stored, results = call.stored, []
    for i, output in enumerate(filled[: len(op.outputs)]):
        raw: Any = output
        if i in stored:
            raw = place.engine.kernel_context.copy().run(raw.astype, call.dtype)
        new = cls._young(place, raw if raw.shape else raw.reshape(call.zero_d))
        if node is not None:
            new._line = Line(new._shape, None, 0, (node, i)) if i else node
            name = op.outputs[i]
            if name in node.names and name not in node.saved:
                # Nobody else knows it yet: the hold needs no lock.
                chunk = new._chunk
                node.saved[name] = saved = Saved(chunk, chunk.buffer, raw.shape, None, 0, i)
                chunk.buffer.held = (0, chunk.buffer.size)
                chunk.buffer.holders.append(ref(saved))
        results.append(new)
    place.engine.ran_at_once += 1
    return tuple(results)


def save(node: Any, inputs: Sequence[Any], arrays: Sequence[Any], filled: Sequence[Any]) -> None:
    """What the gradient texts name, of small values: the raw arrays of young arrays, copies of others, for that costs
    less than to protect them.  Of larger ones it saves nothing, but for saved outputs, which nobody else has.
    """
    saved, outputs = node.saved, len(node.op.outputs)
    for i, key in node.retention.inputs:
        x = inputs[i]
        if not isinstance(x, Array):
            saved[key] = x
        elif arrays[i].size < COPIED:
            saved[key] = arrays[i] if x._raw is arrays[i] else arrays[i].copy()
    for i, name in node.retention.outputs:
        raw = filled[i]
        if raw is not None and (i >= outputs or raw.size < COPIED):
            saved[name] = raw


def _hold(node: Any, inputs: Sequence[Any], looks: Looks, place: Place) -> bool:
    """Holds on the larger operands that the gradient texts name.  False: they are not what the kernel has read."""
    large = [(i, key) for i, key in node.retention.inputs if key not in node.saved]
    if not large:
        return True
    shared = [_shared(inputs[i], node.edges[i]) for i, _ in large]
    if None not in shared and looks.unchanged():
        node.saved.update((key, saved) for (_, key), saved in zip(large, shared, strict=True))
        return all(saved.buffer is inputs[i]._chunk.buffer for (i, _), saved in zip(large, shared, strict=True))
    held: list[Saved] = []

    def plan() -> Any:
        keep: list[Any] = [*held]
        held.clear()
        if looks.unchanged():
            for i, _ in large:
                x = inputs[i]
                held.append(Saved(x._chunk, x._chunk.buffer, x._shape, x._strides, x._offset, node.edges[i]))
        return None, (), (), (), hold(held, keep), keep, False

    place.engine.admit(plan)
    node.saved.update((key, saved) for (_, key), saved in zip(large, held, strict=False))
    return bool(held)


def _shared(x: Array, entry: Any) -> Any:
    """The hold on this value that another node has, if it is the last one on the buffer: a weight in a loop."""
    chunk = x._chunk
    holders = chunk.buffer.holders
    saved = holders[-1]() if holders else None
    if type(saved) is not Saved or saved.owner() is not chunk or saved.entry is not entry:
        return None
    same = (saved.shape, saved.strides, saved.offset) == (x._shape, x._strides, x._offset)
    return saved if same and saved.buffer is chunk.buffer else None
