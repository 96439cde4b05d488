"""`checkpoint`: a function whose graph is made anew for its gradient instead of being kept.

The first call records, as any other, to find the values on the tape that its results depend on: those of its arguments
and those that the function knows from outside.  Then this graph goes, and one node with an edge to each of these
values takes its place.  The node keeps the arguments; when the walk comes to it, it calls the function again, with the
same arguments, mode and random numbers, and walks the segment that this records down to the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple, cast
from weakref import ref

from ..engine import ArgumentError, ArgumentTypeError, here
from ..ndarray.array import Array
from ..ndarray.buffer import Chunk, Saved
from ..ndarray.line import Line, Scope, scope, within
from ..ndarray.random import Draws, Seed, draws
from ..ndarray.reading import describe
from ..operators.faces import numpy_face
from ..operators.tiny import settled
from .backward import as_face
from .function import UserForm, _held, _own
from .recorder import Recorder
from .segment import Segment
from .structure import UNKNOWN
from .tape import VIEW, Entry, GraphError, Node, entries_of, entry_of, number
from .trees import Form, build, flatten
from .walk import ZERO, FunctionNode


def checkpoint(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the values and gradients of `f`, which keeps its arguments for the gradient and nothing else.

    What `f` computes on its way is computed again when the gradient is asked for: memory for time.

    Parameters
    ----------
    f : callable
        Of arrays, other values, and trees of them; it gives an array, or a tree of arrays and other values.  It is
        given lazy copies of arrays on the tape.  It must do the same when it is called again: it runs in the same mode
        and draws the same random numbers.  Arrays that it knows from outside get their gradients too, and must not be
        written between the two calls.  What it changes outside (running statistics) is put back after the second call,
        but for what it changes under `pause`, which happens twice.

    Outside of `record` it is `f`.  Use it as a decorator, or as ``checkpoint(f)(x)``.

    Sync: where `f` does.   Raises: what `f` raises; ArgumentError at the call for a write to an array on the tape that
    is not its own; GraphError at backward if an array from outside was written, or `f` has done something else.
    Gradient: that of `f`, of any order; those of a higher order keep everything.
    Source: T. Chen and others, "Training Deep Nets with Sublinear Memory Cost" (2016).

    >>> from vardag import nd, autograd
    >>> @autograd.checkpoint
    ... def block(x):
    ...     return nd.tanh(nd.exp(x) * x)
    >>> x = nd.array([0.0]); x.attach_grad()
    >>> with autograd.record():
    ...     y = block(x)
    >>> y.backward()
    >>> x.grad.asscalar()
    np.float32(1.0)
    """
    if not callable(f):
        raise ArgumentTypeError(f"[checkpoint] {f!r}: a function expected")

    @wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        recorder = scope.get().recorder
        return f(*args, **kwargs) if recorder is None else _first(f, recorder, args, kwargs)

    return wrapped


class _Watch(Recorder):
    """The recorder of a first call: it notes what memory the call reads and changes.

    `start`: nodes below it are from outside.   `own`: the chunks of the arguments.   `read`, `changed`: by id, weak
    references to chunks, or to arrays that are young; `read` with (shape, dtype).  What the call has made itself is
    there too, and is soon gone.
    """

    __slots__ = ("changed", "name", "own", "read", "start")

    def __init__(self, inplace: str | None, name: str, own: set[Any]) -> None:
        super().__init__(inplace)
        self.name, self.own, self.start = name, own, number()
        self.read: dict[int, tuple[Any, Any]] = {}
        self.changed: dict[int, Any] = {}

    def node(self, previous: Any, op: Any, inputs: Any, attributes: Any, made: Any, targets: Any) -> Any:
        for x in (*targets, *(inputs[op.inputs.index(name)] for name in op.updates)):
            if isinstance(x, Array) and x._chunk not in self.own:
                line = x._tape_line
                if line is not None and line.entry is not None and line.entry[0].number < self.start:
                    raise ArgumentError(
                        f"[{op.name}] {describe(x)} is on the tape from outside of the checkpointed {self.name}, "
                        "which must not write it, for it is called again"
                    )
                self.changed[id(x._chunk)] = ref(x._chunk)
        self.note(inputs)
        return super().node(previous, op, inputs, attributes, made, targets)

    def note(self, inputs: Sequence[Any]) -> None:
        """Note what is read."""
        for x in inputs:
            if isinstance(x, Array):
                memory: Any = x if x._raw is not None else x._chunk
                known = self.read.get(id(memory))
                if (known is None or known[0]() is not memory) and memory not in self.own:
                    self.read[id(memory)] = ref(memory), x._meta

    def outside(self, results: Sequence[Any]) -> tuple[list[tuple[Any, int, Any]], list[Any]]:
        """What is left of what the call has read, with versions, and of what it has changed; results aside."""
        own = {id(y._chunk) for y in results if isinstance(y, Array) and y._raw is None}
        changed = {key: found for key, found in self.changed.items() if key not in own}
        read = []
        for found, meta in self.read.values():
            memory = found()
            if isinstance(memory, Array) and memory._raw is None:
                memory = memory._chunk  # it is young no more
            if memory is not None and id(memory) not in own and id(memory) not in self.changed:
                read.append((ref(memory), memory.version, meta))
        return read, list(changed.values())

    def again(self, forms: Any, op: Any, inputs: Any, attributes: Any, made: Any) -> Any:
        self.note(inputs)
        return super().again(forms, op, inputs, attributes, made)

    def pair(self, op: Any, x: Any, y: Any, a: Any, b: Any, raw: Any, dtype: Any) -> Any:
        self.note((x, y))
        return super().pair(op, x, y, a, b, raw, dtype)

    def single(self, op: Any, x: Any, a: Any, raw: Any) -> Any:
        self.note((x,))
        return super().single(op, x, a, raw)


class _Kept(NamedTuple):
    """What a second call needs.

    `leaves`: of the arguments, in their `form`, with a pair (value, face) for each array.   `inner`: which leaves of
    the result are the node's.   `read`, `changed`: see `_Watch`.
    """

    f: Callable[..., Any]
    form: Form
    leaves: list[Any]
    training: bool
    seeds: list[Seed]
    inner: list[int]
    read: list[tuple[Any, int, Any]]
    changed: list[Any]


def _first(f: Callable[..., Any], outer: Recorder, args: Any, kwargs: Any) -> Any:
    """The first call, and its node."""
    name, training = getattr(f, "__name__", repr(f)), scope.get().training
    leaves, form = flatten([list(args), kwargs])
    arrays = [x for x in leaves if isinstance(x, Array)]
    values = _held(arrays)
    for saved, x, _ in values:
        saved.entry = entry_of(x)
    rest = iter(values)
    kept = [(next(rest)[0], type(x)) if isinstance(x, Array) else x for x in leaves]
    # An array that is not on the tape may be state, which the first call changes.
    given = [_restored(k) if isinstance(x, Array) and k[0].entry else x for k, x in zip(kept, leaves, strict=True)]
    own = {x._chunk for x in (*given, *arrays) if isinstance(x, Array)}
    watch, noted = _Watch(outer.inplace, name, own), Draws(outer=draws.get())
    result = _call(f, form, given, Scope(watch, training, False), noted)
    outer.written_leaves += watch.written_leaves
    outputs, made = flatten(result)
    inner = [i for i, y in enumerate(outputs) if isinstance(y, Array) and _from(y, watch.start)]
    if not inner:
        return result
    edges = _ends([outputs[i] for i in inner], watch.start)
    fresh = [_own(outputs[i]) for i in inner]
    second = _Kept(f, form, kept, training, noted.taken, inner, *watch.outside(outputs))
    node = _CheckpointNode(second, name, edges, fresh)
    for i, y in enumerate(fresh):
        y._chunk.line = Line(y._shape, y._strides, y._offset, (node, i))
        outputs[inner[i]] = y
    return build(made, outputs)


def _call(f: Callable[..., Any], form: Form, leaves: Sequence[Any], mode: Scope, numbers: Draws) -> Any:
    args, kwargs = build(form, leaves)
    token = draws.set(numbers)
    try:
        return within(mode, lambda: f(*args, **kwargs))
    finally:
        draws.reset(token)


def _restored(kept: tuple[Saved, Any]) -> Any:
    """An array with the value and the entry that an argument had."""
    saved, face = kept
    return face._from_saved(saved, None)


def _whole(chunk: Chunk) -> Array:
    """All of a memory, off the tape."""
    return Array._over(chunk, chunk.buffer.shape).detach()


def _put_off(leaves: list[Any], kept: Sequence[Any], other: Array) -> None:
    """Let what uses the arguments wait for another array, or all the second calls of a chain would run ahead of the
    gradients that they are for, and together hold as much as if everything had been kept.

    Of arguments that were computed; of marked ones, which may be large, the smallest, if there are no others.
    """
    places = [i for i, k in enumerate(kept) if type(k) is tuple and k[0].entry is not None]
    computed = [i for i in places if isinstance(kept[i][0].entry[0], Node)]
    for i in computed or sorted(places, key=lambda i: int(leaves[i].size))[:1]:
        leaves[i] = as_face(type(leaves[i]), numpy_face.copy_after(leaves[i], other))


def _from(array: Array, start: int) -> bool:
    """Is it from this call?  A view is what it is a view of."""
    entry = entry_of(array)
    while entry is not None and isinstance(entry[0], Node) and entry[0].op is VIEW and entry[0].number < start:
        entry = entry[0].edges[0]
    return entry is not None and entry[0].number >= start


def _below(node: Any, start: int) -> bool:
    """Is it an end of the segment?  No view is: see `Segment`."""
    return bool(node.number < start and getattr(node, "op", None) is not VIEW)


def _ends(heads: Sequence[Array], start: int) -> tuple[Entry, ...]:
    """The entries from before that these depend on, in the order of recording."""
    todo: list[Entry] = [entry_of(h) for h in heads]
    seen: set[Any] = set()
    found: dict[tuple[int, int], Entry] = {}
    while todo:
        node, index = todo.pop()
        if _below(node, start):
            found[node.number, index] = node, index
        elif node not in seen:
            seen.add(node)
            todo += [edge for edge in node.edges if edge is not None]
    return tuple(found[key] for key in sorted(found))


class _CheckpointNode(FunctionNode):
    __slots__ = ()

    def __init__(self, kept: _Kept, name: str, edges: tuple[Entry, ...], outputs: Sequence[Array]) -> None:
        metas = [node.made[i] if isinstance(node, Node) else None for node, i in edges]
        self.form: Any = UserForm(f"checkpoint of {name}", metas, [y._meta for y in outputs])
        self.edges, self.saved, self.freed, self.structure = edges, {"kept": kept}, None, UNKNOWN
        self.number, self.site = number(), here()

    def gradients(self, cotangents: list[Any], kept: dict[Any, Any]) -> Iterator[Any]:
        second: _Kept = kept["kept"]
        for found, version, (shape, dtype) in second.read:
            memory = found()
            if memory is not None and memory.version != version:
                raise GraphError(
                    f"[{self.op.name}] recorded at {self.recorded_at}: {dtype}{shape}, which it read, was written "
                    "before backward; give it as an argument, whose value is kept"
                )
        create = scope.get().recorder
        floor = number()
        heads = self._again(second, create or Recorder(), cotangents[0])
        walk = Segment(entries_of(heads), True, create is not None, floor, True)
        walk.run(cotangents, partial(_below, start=floor))
        edges = cast("tuple[Entry, ...]", self.edges)  # none of them is None
        wanted = {(node.number, i) for node, i in edges}
        for node, arrived in walk.cotangents.items():
            if any(g is not None and (node.number, i) not in wanted for i, g in enumerate(arrived)):
                raise self._other()
        for node, i in edges:
            yield walk.cotangents.get(node, {i: ZERO})[i]

    def _again(self, second: _Kept, recorder: Recorder, cotangent: Array) -> list[Any]:
        """The heads of the second call."""
        state = [(x := _whole(chunk), x.copy()) for found in second.changed if (chunk := found()) is not None]
        leaves = [_restored(x) if type(x) is tuple else x for x in second.leaves]
        mode = Scope(recorder, second.training, False)
        if settled(cotangent) is None:
            within(mode, _put_off, leaves, second.leaves, cotangent)
        try:
            result = _call(second.f, second.form, leaves, mode, Draws(iter(second.seeds), draws.get()))
        finally:
            for x, value in state:
                numpy_face.assign(value, out=x)
        outputs, _ = flatten(result)
        heads = [outputs[i] if i < len(outputs) else None for i in second.inner]
        for head, made in zip(heads, self.made, strict=True):
            if not isinstance(head, Array) or head._meta != made or entry_of(head) is None:
                raise self._other()
        return heads

    def _other(self) -> GraphError:
        return GraphError(
            f"[{self.op.name}] recorded at {self.recorded_at}: called again for the gradient, it did something else"
        )
