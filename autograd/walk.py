"""The walk from heads down to marked arrays, by descending node number.

The walk runs on the caller's thread and only pushes: gradient operations on raw buffers, on the engine of their arrays,
or (create_graph) ordinary recorded operators.  Both run the same gradient texts with the same kernels, so their values
agree to the bit.  Contributions to one value are added in the order of the walk, which the graph alone decides.

Without `retain_graph` a node lets go of what it saved as soon as its gradient operation has been pushed: that operation
keeps the buffers, and a later update of a weight is an ordinary write after read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..engine import here
from ..ndarray.array import Array
from ..ndarray.buffer import Admission, Saved
from ..ndarray.dtype import FLOAT32, NARROW, is_float
from ..operators.faces import nd_face, numpy_face
from ..operators.fusion import FUSE
from ..operators.launch import watchers
from ..operators.schema import size_of, zero
from ..operators.texts import GradientLaunch, arguments, finished, given_by, gradient_operation
from ..operators.tiny import NOW, Looks
from . import regions
from .anomaly import tell
from .groups import Group, groups, split, variadic
from .regions import region_of
from .rows import by_rows, wants
from .tape import ASSIGN, VIEW, Node, refuse_freed

#: a cotangent that is zero everywhere, and for which nothing was pushed
ZERO: Any = zero
LARGE = 4096  # elements of an array from which its regions are worth a closer look


class Walk:
    """One backward pass over the graph above some heads.

    `F`: the operators that it adds cotangents with.
    `cotangents`: for every node, what has arrived for each of its outputs: None, ZERO or an array that nobody writes.
    `edges`, `saved`: those of every node when the walk began, so that another thread's walk may free the graph.
    """

    F: Any = numpy_face
    rows = False  # whether a marked array wants a row-sparse gradient, see rows.py
    narrow = False  # whether 16-bit floats have been added up

    def __init__(self, entries: Sequence[Any], retain: bool, create: bool) -> None:
        self.retain, self.create = retain, create
        self.site = here()
        self.cotangents: dict[Any, list[Any]] = {}
        #: (node, output) of cotangents that are the walk's own: it may write them, see regions.py
        self.own: set[tuple[Any, int]] = set()
        self.wanted: Callable[[Any], bool] = bool  # whose cotangents are results; set by `run`
        self.entries = entries
        self.edges: dict[Any, tuple[Any, ...]] = {}
        self.saved: dict[Any, dict[Any, Any]] = {}
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
            self.edges[node] = edges = self._visit(node)
            todo += [edge[0] for edge in edges if edge is not None]
        return [seen[number] for number in sorted(seen)]

    def _visit(self, node: Any) -> tuple[Any, ...]:
        """The edges that the walk follows; what the node has saved is noted."""
        edges: tuple[Any, ...] = node.edges
        if isinstance(node, Node):
            self.saved[node] = node.saved
        refuse_freed(node)
        return edges

    def run(self, head_grads: Sequence[Any], wanted: Callable[[Any], bool]) -> None:
        """Push everything that the wanted nodes' cotangents need."""
        self.wanted = wanted
        needed: set[int] = set()
        for node in self.nodes:
            if wanted(node) or any(e is not None and e[0].number in needed for e in self.edges[node]):
                needed.add(node.number)
        for (node, index), gradient in zip(self.entries, head_grads, strict=True):
            if node.number in needed:
                self._arrive(node, index, gradient)
        for node in reversed(self.nodes):
            arrived = self.cotangents.get(node)
            if watchers:
                tell(node)
            if arrived is not None and isinstance(node, Node) and any(a is not None for a in arrived):
                if self.narrow:
                    self._round(node, arrived)
                indices = [i for i, e in enumerate(self.edges[node]) if e is not None and e[0].number in needed]
                if indices:
                    self._through(node, indices, arrived)
                if not wanted(node):
                    del self.cotangents[node]
            if not self.retain and isinstance(node, Node):
                node.free(self.site)
            self.saved.pop(node, None)
        if watchers:
            tell(None)

    def _arrive(self, node: Any, index: int, gradient: Any, own: bool = False) -> None:
        if gradient is None:
            return
        arrived = self.cotangents.setdefault(node, [None] * (len(node.made) if isinstance(node, Node) else 1))
        before = arrived[index]
        if before is None or before is ZERO:
            arrived[index] = gradient
            if own:
                self.own.add((node, index))
        elif gradient is not ZERO:
            face = nd_face if self.rows and wants(node) else self.F
            arrived[index] = face.add(self._wide(before), self._wide(gradient))
            self.own.add((node, index))

    def _wide(self, gradient: Any) -> Any:
        """What is to be added to others: 16-bit floats are added up in float32, and rounded once."""
        if getattr(gradient, "_dtype", None) not in NARROW:
            return gradient
        self.narrow = True
        return self.F.cast(gradient, dtype=FLOAT32)

    def _round(self, node: Node, arrived: list[Any]) -> None:
        for i, (gradient, meta) in enumerate(zip(arrived, node.made, strict=True)):
            if meta is not None and meta[1] in NARROW and isinstance(gradient, Array) and gradient._dtype != meta[1]:
                arrived[i] = self.F.cast(gradient, dtype=meta[1])

    def _through(self, node: Node, indices: Sequence[int], arrived: Sequence[Any]) -> None:
        """From the cotangents of a node's outputs to those of its inputs."""
        if isinstance(node, FunctionNode):
            gradients: Iterable[Any] = node.gradients(
                [self._dense(node, i, a) for i, a in enumerate(arrived)], self.saved[node]
            )
            for i, gradient in enumerate(gradients):
                if i in indices:
                    self._deliver(node, i, gradient)
            return
        op = node.op
        flat, texts, passing = split(op, tuple(indices))
        for i in flat:
            self._deliver(node, i, ZERO)
        if not op.defined and all(a is None or a is ZERO for a in arrived):
            for i in texts:
                self._deliver(node, i, ZERO)
            return
        if not texts:
            return
        if op in (VIEW, ASSIGN) and not self.create and self._in_regions(node, texts, arrived[0]):
            return
        if self.rows:
            texts = tuple([i for i in texts if not self._by_rows(node, i, arrived[0])])
            if not texts:
                return
        cotangents = self._named(node, arrived)
        for i in passing:
            g = cotangents["g"]
            if (g.shape, g.dtype) == node.metas[i]:  # the gradient is the cotangent itself: nothing has to be pushed
                texts = tuple([j for j in texts if j != i])
                self._deliver(node, i, g)
        if texts:
            (self._record if self.create else self._push)(node, texts, cotangents)

    def _by_rows(self, node: Node, index: int, g: Any) -> bool:
        """A row-sparse gradient of a marked array that wants one."""
        edge = self.edges[node][index]
        if edge is None or g is None or g is ZERO:
            return False
        made = by_rows(node, index, edge[0], self._dense(node, 0, g), self.saved[node])
        if made is not None:
            self._arrive(edge[0], edge[1], made)
        return made is not None

    def _in_regions(self, node: Node, texts: Sequence[int], g: Any) -> bool:
        """A view, or a write to a part, of a large array: see regions.py."""
        region, base = region_of(node.attributes), node.metas[0]
        if region is None or base is None or math.prod(base[0]) < LARGE or not is_float(base[1]):
            return False
        if node.op is VIEW:
            to, index = self.edges[node][0]
            whole = self._writable(to, index)
            if whole is None:
                self.narrow |= base[1] in NARROW
                zeros = numpy_face.zeros(shape=base[0], dtype=FLOAT32 if base[1] in NARROW else base[1], ctx=g.context)
                self._arrive(to, index, zeros, True)
                whole = self._writable(to, index)
            if whole is None:
                return False
            regions.add(whole, region, g)
            return True
        value = node.metas[1]
        if 1 in texts and (value is None or math.prod(value[0]) != math.prod(region[0])):
            return False  # the value was broadcast
        own = None if self.wanted(node) else self._writable(node, 0)  # what is wanted is somebody's result
        whole = own if own is not None else numpy_face.add(g, 0)
        if 1 in texts and value is not None:
            self._deliver(node, 1, regions.take(whole, region, value[0]), True)
        else:
            regions.clear(whole, region)
        if 0 in texts:
            self._deliver(node, 0, whole, True)
        return True

    def _writable(self, node: Any, index: int) -> Any:
        """The cotangent, if it is the walk's own and lies in memory as it is."""
        found = self.cotangents.get(node, [None] * (index + 1))[index]
        if not isinstance(found, Array) or (node, index) not in self.own:
            return None
        return found if found._strides is None and found._covers_chunk() else None

    def _deliver(self, node: Node, index: int, gradient: Any, own: bool = False) -> None:
        edge = self.edges[node][index]
        if edge is not None:
            self._arrive(edge[0], edge[1], gradient, own)

    def _dense(self, node: Node, index: int, arrived: Any) -> Any:
        """A cotangent as an array of the output's own shape."""
        meta = node.made[index]
        if meta is None:
            return None
        shape, dtype = meta
        if arrived is None or arrived is ZERO:
            return self.F.zeros(shape=shape, dtype=dtype)
        return reshaped(arrived, shape)

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

    # ---- two runners of the texts ------------------------------------------------------------------------------------

    def _metadata(self, node: Node, indices: Sequence[int], part: Sequence[int | None]) -> dict[str, Any]:
        op = node.op
        shapes: dict[str, Any] = {f"{op.input_name(i)}_shape": m[0] for i, m in enumerate(node.metas) if m is not None}
        shapes["needs"] = {op.input_name(i) for i in indices}
        if op.variadic:
            shapes[f"{op.variadic}_shapes"] = tuple(m[0] for m in node.metas[len(op.inputs) :] if m is not None)
            shapes["index"] = (part[0] or 0) - len(op.inputs) if part[0] is not None else 0
        return shapes

    def _record(self, node: Node, indices: Sequence[int], cotangents: dict[str, Any]) -> None:
        """The texts on arrays; in a recording scope their results can be differentiated again."""
        op = node.op
        values: dict[Any, Any] = dict(cotangents)
        place = next(iter(cotangents.values()))._place
        for key, kept in self.saved[node].items():
            if key in op.definitions:
                continue
            if isinstance(kept, Saved):
                values[key] = Array._from_saved(kept, node)
            elif isinstance(kept, np.ndarray):
                values[key] = Array._from_copy(place, kept, self._entry(node, key))
            else:
                values[key] = kept
        if op.variadic in node.names:
            values[op.variadic] = [values.pop((op.variadic, i)) for i in variadic(node)]
        for name, text in op.definitions.items():
            if name in node.names:
                inputs = {n: values.get(n) for n in op.inputs}
                values[name] = text.function(numpy_face, **arguments(text, inputs, node.attributes))
        for text, part in (part for group in groups(op, tuple(indices)) for part in group.parts):
            known = {**values, **self._metadata(node, indices, part)}
            result = text.function(numpy_face, **arguments(text, known, node.attributes))
            for i, gradient in given_by(op, part, result):
                if i is not None and gradient is not None:
                    meta: Any = node.metas[i]
                    self._deliver(node, i, finished(numpy_face, op, op.input_name(i), gradient, meta))

    def _entry(self, node: Node, key: Any) -> Any:
        """The entry of a value that the node keeps: an input's, or one of its own outputs."""
        position = node.op.position(key)
        return self.edges[node][position] if position >= 0 else (node, node.op.filled.index(key))

    def _push(self, node: Node, indices: Sequence[int], cotangents: dict[str, Any]) -> None:
        """The texts on raw memory: one engine operation, or one for each text of a costly operator.

        Those of large elementwise operators, and of what they may be reduced by, are pushed operator by operator, so
        that they join others.
        """
        op = node.op
        if size_of(node.made if op.elementwise else node.metas) >= FUSE and (
            op.elementwise or op.by_rows or op.consumed is not None
        ):
            self._record(node, indices, cotangents)
            return
        for group in groups(node.op, tuple(indices)):
            outs: dict[int, Array] = {}
            if self._at_once(node, group, cotangents, indices):
                continue
            g = next(iter(cotangents.values()))
            for _, part in group.parts:
                for i in part:
                    if i is not None:
                        meta: Any = node.metas[i]
                        outs[i] = Array._fresh(g._place, meta[0], meta[1])
            self._admit(node, group, outs, cotangents, indices)
            for i, out in outs.items():
                self._deliver(node, i, out, True)

    def _at_once(
        self,
        node: Node,
        group: Group,
        cotangents: dict[str, Any],
        indices: Sequence[int],
    ) -> bool:
        """Small gradients of what is ready, on this thread: see operators/tiny.py."""
        op = node.op
        place = next(iter(cotangents.values()))._place
        if (
            place.queued
            or not place.engine.calm()
            or (1 if op.costly else 4) * op.work(node.metas, node.made, node.attributes) > NOW
        ):
            return False
        named, looks, values = group.named, Looks(), {}
        for known in (cotangents, self.saved[node]):
            for name, kept in known.items():
                if name in named:
                    values[name] = looks.at(kept)
        if op.variadic in named:
            values[op.variadic] = [looks.at(self.saved[node][op.variadic, i]) for i in variadic(node)]
        if not looks.ready:
            return False
        parts = [
            (
                text,
                self._metadata(node, indices, part) if group.metadata else {},
                [None if i is None else (op.input_name(i), node.metas[i], i) for i in part],
            )
            for text, part in group.parts
        ]
        found = looks.run(place, GradientLaunch(op, values, node.attributes, parts).compute)  # type: ignore[arg-type]
        if found is None:
            return False
        for (_, _, i), made in found:
            raw = made if place.device.whole(made) and made.flags.c_contiguous else np.array(made, order="C")
            self._deliver(node, i, Array._young(place, raw), True)
        return True

    def _admit(
        self,
        node: Node,
        group: Group,
        outs: dict[int, Array],
        cotangents: dict[str, Any],
        indices: Sequence[int],
    ) -> None:
        op = node.op
        named = group.named
        parts = [
            (
                text,
                self._metadata(node, indices, part) if group.metadata else {},
                [None if i is None else (op.input_name(i), node.metas[i], outs[i]._chunk.buffer) for i in part],
            )
            for text, part in group.parts
        ]
        saved = self.saved[node]
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
            for name, kept in saved.items():
                if name in named:
                    values[name] = resolve(kept)
            if op.variadic in named:
                values[op.variadic] = [resolve(saved[op.variadic, i]) for i in variadic(node)]
            launch = GradientLaunch(op, values, node.attributes, parts)  # type: ignore[arg-type]
            writes = [out._chunk.buffer.variable for out in outs.values()]
            return gradient_operation(launch, node.recorded_at), reads, writes, (), [], [], False

        first = next(iter(outs.values()))
        first._place.engine.admit(plan)


class FunctionNode(Node):
    """The node of a user's `Function`: its backward is called during the walk."""

    __slots__ = ("gradients",)
    gradients: Callable[[list[Any], dict[Any, Any]], Iterable[Any]]


def reshaped(g: Any, shape: tuple[int, ...]) -> Any:
    """The cotangent in the shape that the kernel gave: a scalar's is (1,) in the nd face."""
    return g if g.shape == shape else g.reshape(shape)
