"""The backward pass: from heads down to marked arrays, by descending node number.

The walk runs on the caller's thread and only pushes: gradient operations on raw buffers, on the engine of their arrays,
or (create_graph) ordinary recorded operators.  Both run the same gradient texts with the same kernels, so their values
agree to the bit.  Contributions to one value are added in the order of the walk, which the graph alone decides.

Without `retain_graph` a node lets go of what it saved as soon as its gradient operation has been pushed: that operation
keeps the buffers, and a later update of a weight is an ordinary write after read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..engine import ArgumentError, ArgumentTypeError, here
from ..engine import describe as describe_site
from ..ndarray.array import Array, describe
from ..ndarray.buffer import Admission, Saved, hold
from ..ndarray.line import Scope, scope
from ..operators.faces import numpy_face
from ..operators.schema import Text, zero
from ..operators.texts import GradientLaunch, arguments, finished, gradient_operation
from .tape import Leaf, Node, Recorder, entry_of

#: a cotangent that is zero everywhere, and for which nothing was pushed
ZERO: Any = zero


class GraphError(ArgumentError):
    """The graph cannot be differentiated: it was not recorded, or it was freed.  Raised at the call."""


class Walk:
    """One backward pass over the graph above some heads.

    `cotangents`: for every node, what has arrived for each of its outputs: None, ZERO or an array that nobody writes.
    """

    def __init__(self, heads: Sequence[Array], retain: bool, create: bool) -> None:
        self.retain, self.create = retain, create
        self.site = here()
        self.cotangents: dict[Any, list[Any]] = {}
        entries = [entry_of(h) for h in heads]
        for head, entry in zip(heads, entries, strict=True):
            if entry is None:
                raise GraphError(
                    f"[backward] the head {describe(head)} was not recorded: compute it from a marked array "
                    f"(attach_grad) inside autograd.record()"
                )
        self.entries = entries
        self.nodes = self._reachable()

    def _reachable(self) -> list[Any]:
        """All nodes above the heads, by ascending number."""
        seen: dict[int, Any] = {}
        todo = [entry[0] for entry in self.entries]
        while todo:
            node = todo.pop()
            if node.number in seen:
                continue
            seen[node.number] = node
            if node.freed is not None:
                raise GraphError(
                    f"[backward] the graph of {node.op.name}, recorded at {node.recorded_at}, was freed "
                    f"by the backward at {describe_site(node.freed)}: pass retain_graph=True there, or detach() what is used again"
                )
            todo += [edge[0] for edge in node.edges if edge is not None]
        return [seen[number] for number in sorted(seen)]

    def run(self, head_grads: Sequence[Any], wanted: Callable[[Any], bool]) -> None:
        """Push everything that the wanted nodes' cotangents need."""
        needed: set[int] = set()
        for node in self.nodes:
            if wanted(node) or any(edge is not None and edge[0].number in needed for edge in node.edges):
                needed.add(node.number)
        for (node, index), gradient in zip(self.entries, head_grads, strict=True):
            if node.number in needed:
                self._arrive(node, index, gradient)
        for node in reversed(self.nodes):
            arrived = self.cotangents.get(node)
            if arrived is not None and isinstance(node, Node) and any(a is not None for a in arrived):
                indices = [i for i, e in enumerate(node.edges) if e is not None and e[0].number in needed]
                if indices:
                    self._through(node, indices, arrived)
                if not wanted(node):
                    del self.cotangents[node]
            if not self.retain and isinstance(node, Node):
                node.free(self.site)

    def _arrive(self, node: Any, index: int, gradient: Any) -> None:
        if gradient is None:
            return
        arrived = self.cotangents.setdefault(node, [None] * (len(node.made) if isinstance(node, Node) else 1))
        before = arrived[index]
        if before is None or before is ZERO:
            arrived[index] = gradient
        elif gradient is not ZERO:
            arrived[index] = numpy_face.add(before, gradient)

    def _through(self, node: Node, indices: Sequence[int], arrived: Sequence[Any]) -> None:
        """From the cotangents of a node's outputs to those of its inputs."""
        if isinstance(node, FunctionNode):
            gradients: Iterable[Any] = node.gradients([self._dense(node, i, a) for i, a in enumerate(arrived)])
            for i, gradient in enumerate(gradients):
                if i in indices:
                    self._deliver(node, i, gradient)
            return
        op = node.op
        flat = [i for i in indices if not isinstance(op.gradient_of(i), Text)]
        for i in flat:
            self._deliver(node, i, ZERO)
        indices = [i for i in indices if i not in flat]
        if all(a is None or a is ZERO for a in arrived) and not op.defined:
            for i in indices:
                self._deliver(node, i, ZERO)
            return
        cotangents = self._named(node, arrived)
        pushed = []
        for i in indices:
            passed = self._passed(node, i, cotangents)
            if passed is None:
                pushed.append(i)
            else:
                self._deliver(node, i, passed)
        if pushed:
            (self._record if self.create else self._push)(node, pushed, cotangents)

    def _deliver(self, node: Node, index: int, gradient: Any) -> None:
        edge = node.edges[index]
        if edge is not None:
            self._arrive(edge[0], edge[1], gradient)

    def _dense(self, node: Node, index: int, arrived: Any) -> Any:
        """A cotangent as an array of the output's own shape."""
        meta = node.made[index]
        if meta is None:
            return None
        shape, dtype = meta
        if arrived is None or arrived is ZERO:
            return numpy_face.zeros(shape=shape, dtype=dtype)
        return _reshaped(arrived, shape)

    def _named(self, node: Node, arrived: Sequence[Any]) -> dict[str, Any]:
        """The cotangents by the names that texts have for them, those that somebody names."""
        op = node.op
        if len(op.outputs) == 1:
            return {"g": self._dense(node, 0, arrived[0])}
        return {
            f"g_{name}": self._dense(node, i, arrived[i])
            for i, name in enumerate(op.outputs)
            if f"g_{name}" in node.names
        }

    def _passed(self, node: Node, index: int, cotangents: dict[str, Any]) -> Any:
        """The cotangent itself, where the text says so and its shape and dtype fit: nothing has to be pushed."""
        text, meta = node.op.gradient_of(index), node.metas[index]
        if not isinstance(text, Text) or not text.passes or meta is None:
            return None
        g = cotangents["g"]
        return g if g._meta == meta else None

    # ---- two runners of the texts ------------------------------------------------------------------------------------

    def _parts(self, node: Node, indices: Sequence[int]) -> list[tuple[Text, list[int | None]]]:
        """Texts to run, each with the inputs its results belong to."""
        op = node.op
        joint = [i for i in indices if op.input_name(i) in op.joint_inputs]
        parts: list[tuple[Text, list[int | None]]] = []
        if joint and op.joint is not None:
            by_name = {op.input_name(i): i for i in joint}
            parts.append((op.joint, [by_name.get(name) for name in op.joint_inputs]))
        for i in indices:
            text = op.gradient_of(i)
            if i not in joint and isinstance(text, Text):
                parts.append((text, [i]))
        return parts

    def _metadata(self, node: Node, indices: Sequence[int], part: Sequence[int | None]) -> dict[str, Any]:
        op = node.op
        shapes: dict[str, Any] = {f"{op.input_name(i)}_shape": m[0] for i, m in enumerate(node.metas) if m is not None}
        shapes["needs"] = {op.input_name(i) for i in indices}
        if op.variadic:
            shapes[f"{op.variadic}_shapes"] = tuple(m[0] for m in node.metas[len(op.inputs) :] if m is not None)
            shapes["index"] = (part[0] or 0) - len(op.inputs) if part[0] is not None else 0
        return shapes

    def _record(self, node: Node, indices: Sequence[int], cotangents: dict[str, Any]) -> None:
        """The texts on arrays, recorded, so that their results can be differentiated again."""
        op = node.op
        values: dict[Any, Any] = dict(cotangents)
        for key in node.saved:
            if key not in op.definitions:
                values[key] = _array(node.saved[key])
        if op.variadic in node.names:
            values[op.variadic] = [values.pop((op.variadic, i)) for i in _variadic(node)]
        for name, text in op.definitions.items():
            if name in node.names:
                inputs = {n: values.get(n) for n in op.inputs}
                values[name] = text.function(numpy_face, **arguments(text, inputs, node.attributes))
        for text, part in self._parts(node, indices):
            known = {**values, **self._metadata(node, indices, part)}
            result = text.function(numpy_face, **arguments(text, known, node.attributes))
            for i, gradient in zip(part, result if isinstance(result, tuple) else (result,), strict=True):
                if i is not None and gradient is not None:
                    meta: Any = node.metas[i]
                    self._deliver(node, i, finished(numpy_face, op, op.input_name(i), gradient, meta))

    def _push(self, node: Node, indices: Sequence[int], cotangents: dict[str, Any]) -> None:
        """The texts on raw memory: one engine operation, or one for each text of a costly operator."""
        parts = self._parts(node, indices)
        groups = [[part] for part in parts] if node.op.costly else [parts]
        for group in groups:
            outs: dict[int, Array] = {}
            g = next(iter(cotangents.values()))
            for _, part in group:
                for i in part:
                    if i is not None:
                        meta: Any = node.metas[i]
                        outs[i] = Array._fresh(g._chunk.buffer.engine, meta[0], meta[1], g.context)
            self._admit(node, group, outs, cotangents, indices)
            for i, out in outs.items():
                self._deliver(node, i, out)

    def _admit(
        self,
        node: Node,
        group: Sequence[tuple[Text, Sequence[int | None]]],
        outs: dict[int, Array],
        cotangents: dict[str, Any],
        indices: Sequence[int],
    ) -> None:
        op = node.op
        named = {name for text, _ in group for name in text.names}
        parts = [
            (
                text,
                self._metadata(node, indices, part),
                [None if i is None else (op.input_name(i), node.metas[i], outs[i]._chunk.buffer) for i in part],
            )
            for text, part in group
        ]
        values: dict[str, Any] = {}

        def plan() -> Admission:
            reads = []

            def resolve(kept: Any) -> Any:
                if isinstance(kept, Saved):
                    reads.append(kept.buffer.variable)
                    return kept.buffer, kept.shape, kept.strides, kept.offset
                if isinstance(kept, Array):
                    reads.append(kept._chunk.buffer.variable)
                    return kept._chunk.buffer, kept._shape, kept._strides, kept._offset
                return kept

            for name, cotangent in cotangents.items():
                if name in named:
                    values[name] = resolve(cotangent)
            for name, kept in node.saved.items():
                if name in named:
                    values[name] = resolve(kept)
            if op.variadic in named:
                values[op.variadic] = [resolve(node.saved[op.variadic, i]) for i in _variadic(node)]
            launch = GradientLaunch(op, values, node.attributes, parts)  # type: ignore[arg-type]
            writes = [out._chunk.buffer.variable for out in outs.values()]
            return gradient_operation(launch, node.recorded_at), reads, writes, (), [], [], False

        first = next(iter(outs.values()))
        first._chunk.buffer.engine.admit(plan)


class FunctionNode(Node):
    """The node of a user's `Function`: its backward is called during the walk."""

    __slots__ = ("gradients",)
    gradients: Callable[[list[Any]], Iterable[Any]]


def _variadic(node: Node) -> range:
    return range(len(node.op.inputs), len(node.metas))


def _array(kept: Any) -> Any:
    return Array._from_saved(kept) if isinstance(kept, Saved) else kept


def _reshaped(g: Array, shape: tuple[int, ...]) -> Array:
    """The cotangent in the shape that the kernel gave: a scalar's is (1,) in the nd face."""
    return g if g._shape == shape else g.reshape(shape)


# ---- what users call ------------------------------------------------------------------------------------------------


def _arrays(what: str, value: Any) -> list[Array]:
    arrays = [value] if isinstance(value, Array) else list(value)
    for a in arrays:
        if not isinstance(a, Array):
            raise ArgumentTypeError(f"[{what}] {a!r}: an array expected")
    if not arrays:
        raise ArgumentError(f"[{what}] no array given")
    return arrays


def _head_grads(heads: Sequence[Array], head_grads: Any) -> list[Any]:
    """Head gradients as arrays: ones where none is given; host arrays are copied at the call."""
    given = [None] * len(heads) if head_grads is None else [head_grads] if isinstance(head_grads, Array) else head_grads
    if len(given) != len(heads):
        raise ArgumentError(f"[backward] {len(heads)} heads, but {len(given)} head gradients")
    made = []
    for head, g in zip(heads, given, strict=True):
        if g is None:
            made.append(numpy_face.ones(shape=head._shape, dtype=head._chunk.buffer.dtype, ctx=head.context))
        elif isinstance(g, Array) and g._meta == head._meta:
            made.append(_snapshot(g))
        else:
            raise ArgumentError(f"[backward] head {describe(head)}, head gradient {describe(g)}: the same expected")
    return made


def _snapshot(g: Array) -> Array:
    """The value as of now, safe from later writes; on the tape if `g` is."""
    return numpy_face.copy(g)  # type: ignore[no-any-return]


def backward(
    heads: Any,
    head_grads: Any = None,
    retain_graph: bool = False,
    train_mode: bool = True,
    *,
    wait: bool = True,
) -> None:
    """Put the gradients of the heads with respect to all marked arrays into those arrays' ``grad``.

    Parameters
    ----------
    heads : array or list of arrays, of any shapes
    head_grads : arrays like the heads, or None for ones
        The weight of each element; gradients are those of the weighted sum.
    retain_graph : bool
        Keep what the graph saved, for another backward.
    train_mode : bool
        The mode that gradient operators run in.
    wait : bool
        Wait for the gradients.

    Sync: pushes all gradient operations, then (with `wait`) blocks until they are done.   Raises: GraphError,
    ArgumentError at the call; with `wait`, errors of the operations that the gradients come from.
    """
    arrays = _arrays("backward", heads)
    token = scope.set(Scope(None, train_mode, False))
    try:
        gradients = _backward(arrays, head_grads, retain_graph)
    finally:
        scope.reset(token)
    if wait:
        for gradient in gradients:
            gradient.wait_to_read()


def leaf_gradients(heads: Sequence[Array], wanted: Sequence[Leaf] | None) -> list[Array]:
    """The gradients of some leaves, by default of all above the heads in the order of marking, as new arrays.

    Sync: blocks until they are there.   Raises: as `backward`.
    """
    token = scope.set(Scope(None, True, False))
    try:
        walk = Walk(heads, False, False)
        leaves = wanted or [n for n in walk.nodes if isinstance(n, Leaf)]
        walk.run(_head_grads(heads, None), lambda node: isinstance(node, Leaf))
        results = []
        for leaf in leaves:
            like = leaf.gradient
            if like is None:
                continue
            arrived = walk.cotangents.get(leaf, [None])[0]
            zeros = arrived is None or arrived is ZERO
            results.append(
                as_face(type(like), numpy_face.zeros_like(like) if zeros else _reshaped(arrived, like.shape))
            )
    finally:
        scope.reset(token)
    for result in results:
        result.wait_to_read()
    return results


def _backward(heads: list[Array], head_grads: Any, retain_graph: bool) -> list[Array]:
    walk = Walk(heads, retain_graph, False)
    leaves = [node for node in walk.nodes if isinstance(node, Leaf) and node.gradient is not None]
    if not leaves:
        raise GraphError("[backward] no marked array above the heads wants a gradient: see attach_grad")
    walk.run(_head_grads(heads, head_grads), lambda node: isinstance(node, Leaf))
    written = []
    for leaf in leaves:
        arrived = walk.cotangents.get(leaf)
        if arrived is not None and arrived[0] is not None and leaf.gradient is not None:
            _store(leaf.gradient, arrived[0], leaf.request)
            written.append(leaf.gradient)
    return written


def _store(target: Array, gradient: Any, request: str) -> None:
    """Write or add a gradient to a marked array's; a whole one is handed over, not copied."""
    if gradient is ZERO:
        if request != "add":
            numpy_face.assign(0, out=target)
        return
    gradient = _reshaped(gradient, target._shape)
    if request == "add":
        numpy_face.add(target, gradient, out=target)
        return
    old, new = target._chunk, gradient._chunk
    fits = target._covers_chunk() and gradient._covers_chunk() and target._strides is gradient._strides is None
    if not fits or old.buffer.device is not new.buffer.device or target._meta != gradient._meta:
        numpy_face.assign(gradient, out=target)
        return

    def plan() -> Admission:
        keep: list[Any] = [old.buffer]
        steps: list[Any] = [(setattr, old, "buffer", new.buffer), (setattr, old, "version", old.version + 1)]
        return None, (), (), (), steps + hold(new.buffer, [old, new], keep), keep, False

    new.buffer.engine.admit(plan)


def gradients_of(
    heads: Any,
    variables: Any,
    head_grads: Any,
    retain_graph: bool | None,
    create_graph: bool,
    train_mode: bool,
    unused: str,
) -> Any:
    """See `functional.grad`."""
    if unused not in ("error", "zeros", "none"):
        raise ArgumentError(f"[grad] unused {unused!r}: 'error', 'zeros' or 'none' expected")
    arrays, wanted = _arrays("grad", heads), _arrays("grad", variables)
    targets = [entry_of(v) for v in wanted]
    for variable, target in zip(wanted, targets, strict=True):
        if target is None and unused == "error":
            raise GraphError(
                f"[grad] the variable {describe(variable)} is not in the graph: neither marked nor recorded"
            )
    nodes = {target[0] for target in targets if target is not None}
    retain = create_graph if retain_graph is None else retain_graph
    current = scope.get()
    recorder = (current.recorder or Recorder()) if create_graph else None
    token = scope.set(Scope(recorder, train_mode, False))
    try:
        walk = Walk(arrays, retain, create_graph)
        walk.run(_head_grads(arrays, head_grads), lambda node: node in nodes)
        results = [_result(walk, v, t, i, unused) for i, (v, t) in enumerate(zip(wanted, targets, strict=True))]
    finally:
        scope.reset(token)
    return results[0] if isinstance(variables, Array) else results


def _result(walk: Walk, variable: Array, target: Any, position: int, unused: str) -> Any:
    arrived = walk.cotangents.get(target[0]) if target is not None else None
    gradient = None if arrived is None else arrived[target[1]]
    if gradient is None:
        if unused == "error":
            raise GraphError(f"[grad] variable {position}, {describe(variable)}: no head depends on it")
        if unused == "none":
            return None
    if gradient is None or gradient is ZERO:
        gradient = numpy_face.zeros(shape=variable._shape, dtype=variable._chunk.buffer.dtype, ctx=variable.context)
    gradient = _reshaped(gradient, variable._shape)
    return as_face(type(variable), gradient)


def as_face(cls: type[Array], array: Array) -> Array:
    """The same array under another face."""
    if type(array) is cls:
        return array
    new = cls._over(array._chunk, array._shape, array._strides, array._offset)
    new._line = array._line
    return new
