"""The tape: nodes hold metadata and saved values, users hold arrays.

An *entry* is (node, output index); a line's entry says what the tape knows of its bytes.  A node points to the
entries of its inputs, so a graph lives exactly as long as somebody can differentiate it.  Nodes are numbered in the
order of recording; an edge leads to a lower number.

`Recorder` is what the push path calls (operators/push.py), under the engine's order lock.  It changes nothing shared:
it returns a node, and steps that the push commits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple
from weakref import ref

import numpy as np

from ..engine import ArgumentError, here
from ..engine import describe as describe_site
from ..ndarray.array import Array
from ..ndarray.buffer import Step
from ..ndarray.line import DETACHED, Line
from ..ndarray.shape import Shape, Strides, c_strides
from ..ndarray.sparse_arrays import RowSparseNDArray
from ..operators.schema import Attributes, Meta, Operator, Text, registry

Entry = tuple["Node", int]
_numbers = itertools.count()


def number() -> int:
    """The next number of a node, in the order of recording."""
    return next(_numbers)


class GraphError(ArgumentError):
    """The graph cannot be differentiated: it was not recorded, or it was freed.  Raised at the call."""


class Retention(NamedTuple):
    """What the texts of the connected inputs name, and so what a node keeps: (position, key) of inputs and outputs."""

    names: frozenset[str]
    inputs: tuple[tuple[int, Any], ...]
    outputs: tuple[tuple[int, str], ...]


@cache
def _retention(op: Operator, connected: tuple[bool, ...]) -> Retention:
    names: set[str] = set()
    for i, is_connected in enumerate(connected):
        text = op.gradient_of(i) if is_connected else None
        if isinstance(text, Text):
            names |= set(text.names)
    inputs = [(i, key_of(op, i)) for i in range(len(connected)) if op.input_name(i) in names]
    outputs = [(i, name) for i, name in enumerate((*op.outputs, *op.saves)) if name in names]
    return Retention(frozenset(names), tuple(inputs), tuple(outputs))


def key_of(op: Operator, index: int) -> Any:
    """Under which key the input at this position is saved."""
    return op.inputs[index] if index < len(op.inputs) else (op.variadic, index)


class Node:
    """One recorded operator.

    `edges`: the entry of each input, None where no gradient can flow.   `saved`: what its texts name, by name, until
    freed: constants, copies of small values, a `Saved` for others.   `metas`: (shape, dtype) of each input.
    `made`: those of the outputs, as the kernel gives them.   `freed`: the line of the backward that freed it, or None.
    """

    __slots__ = (
        "__weakref__",
        "attributes",
        "edges",
        "freed",
        "made",
        "metas",
        "number",
        "op",
        "retention",
        "saved",
        "site",
    )

    def __init__(
        self,
        op: Operator,
        attributes: Attributes,
        edges: tuple[Entry | None, ...],
        metas: tuple[Meta | None, ...],
        made: tuple[Meta | None, ...],
    ) -> None:
        self.op, self.attributes, self.edges, self.metas, self.made = op, attributes, edges, metas, made
        self.retention = _retention(op, tuple([edge is not None for edge in edges]))
        self.saved: dict[Any, Any] = {}
        self.number = next(_numbers)
        self.site = here()
        self.freed: Any = None

    @property
    def names(self) -> frozenset[str]:
        """What it keeps."""
        return self.retention.names

    def key(self, index: int) -> Any:
        """Under which key the input at this position is saved."""
        return key_of(self.op, index)

    def keeps(self, index: int) -> bool:
        """Whether a gradient needs the input at this position."""
        return self.op.input_name(index) in self.names

    def free(self, site: Any) -> None:
        """Let go of everything; a later backward that comes here says where it was freed.  A view keeps nothing."""
        if self.op is not VIEW and self.freed is None:
            self.freed = site
            self.saved = {}
            self.edges = ()

    @property
    def recorded_at(self) -> str:
        return describe_site(self.site)


class Leaf:
    """The entry's node of a marked array.  `gradient`: its gradient array.   `request`: "write", "add" or "null"."""

    __slots__ = ("__weakref__", "gradient", "number", "request")
    edges: tuple[()] = ()
    freed = None

    def __init__(self, gradient: Array | RowSparseNDArray | None, request: str) -> None:
        self.gradient, self.request = gradient, request
        self.number = number()


def refuse_freed(node: Any) -> None:
    """Asked after a walk has read what it needs of a node: freed is set first, so what it read is whole."""
    if node.freed is not None:
        raise GraphError(
            f"[backward] the graph of {node.op.name}, recorded at {node.recorded_at}, was freed "
            f"by the backward at {describe_site(node.freed)}: pass retain_graph=True there, or detach() what "
            "is used again"
        )


VIEW = registry["strided"]
ASSIGN = registry["strided_assign"]


def entry_of(array: Array) -> Any:
    """What the tape knows of the array's value; a view's is derived from that of its line, and cached."""
    line = array._line
    if line is None:
        if array._raw is not None:
            return None
        line = array._chunk.line
        if line is None:
            return None
    entry = line.entry
    if entry is None or array._is_root(line):
        return entry
    cached = array._derived
    if cached is not None and cached[0] is entry:
        return cached[1]
    dtype = array._dtype
    made = ((array._shape, dtype),)
    node = Node(VIEW, _geometry(array, line), (entry,), ((line.shape, dtype),), made)
    derived = node, 0
    array._derived = entry, derived
    return derived


def _geometry(view: Array, line: Line) -> Attributes:
    """Where a view lies in its line's root, as attributes of the strided operators: in a C-ordered array of the root's
    shape, whatever the layout of the memory."""
    strides = c_strides(view._shape) if view._strides is None else view._strides
    if line.strides is None:
        return {"shape": view._shape, "strides": strides, "offset": view._offset - line.offset, "indices": None}
    root = _positions(line.shape, line.strides, line.offset).ravel()
    order = np.argsort(root)
    wanted = _positions(view._shape, strides, view._offset)
    indices = order[np.searchsorted(root[order], wanted)]
    return {"shape": view._shape, "strides": None, "offset": 0, "indices": indices}


def _positions(shape: Shape, strides: Strides, offset: int) -> Any:
    position = np.full(shape, offset, np.int64)
    for axis, (n, step) in enumerate(zip(shape, strides or c_strides(shape), strict=True)):
        position += (np.arange(n) * step).reshape((n,) + (1,) * (len(shape) - axis - 1))
    return position


class Recorder:
    """One outermost recording scope: what pushes record on.

    `inplace`: "allow", or "refuse" for MXNet's rule that arrays on the tape are not written.
    """

    __slots__ = ("inplace", "written_leaves")

    def __init__(self, inplace: str = "allow") -> None:
        self.inplace = inplace
        #: lines of marked arrays written in this scope: leaves again when it ends
        self.written_leaves: list[Line] = []

    # ---- called by plans, under P ----------------------------------------------------------------------------------

    def node(
        self,
        previous: Node | None,
        op: Operator,
        inputs: Sequence[Any],
        attributes: Attributes,
        made: tuple[Meta | None, ...],
        targets: Sequence[Array],
    ) -> Node | None:
        """The node of a push, None if nothing is on the tape.

        `targets`: arrays given as outputs.   `previous`: the node of an earlier try of this push.

        Raises
        ------
        ArgumentError
            For a write that autograd refuses; nothing has happened then.
        """
        connected = False
        found: list[Entry | None] = []
        metas: list[Meta | None] = []
        for i, x in enumerate(inputs):
            entry: Entry | None = None
            if isinstance(x, Array):
                metas.append(x._meta)
                if op.gradient_of(i) is not None:
                    entry = entry_of(x)
                    connected = connected or entry is not None
            else:
                metas.append(None if x is None else (x.shape, x.dtype))
            found.append(entry)
        if targets or op.updates:
            self._check(op, inputs, targets, connected)
        if not connected:
            return None
        edges = tuple(found)
        if previous is not None and all(a is b for a, b in zip(previous.edges, edges, strict=True)):
            return previous
        return Node(op, attributes, edges, tuple(metas), made)

    def _check(self, op: Operator, inputs: Sequence[Any], targets: Sequence[Array], tracked: bool) -> None:
        for name in op.updates:
            x = inputs[op.inputs.index(name)]
            if isinstance(x, Array) and entry_of(x) is not None:
                raise ArgumentError(f"[{op.name}] {name} is changed by the operator, so it must not be on the tape")
        for target in targets:
            line = target._tape_line
            if line is DETACHED:
                continue
            on_tape = line is not None and line.entry is not None
            if self.inplace == "refuse" and (on_tape or tracked):
                raise ArgumentError(
                    f"[{op.name}] Inplace operations (+=, -=, x[:]=, etc) are not supported when recording with "
                    "autograd."
                )
            if on_tape or tracked:
                self._check_other_lines(op, target, line)

    def _check_other_lines(self, op: Operator, target: Array, line: Line | None) -> None:
        """Two tracked lines over the same bytes: a recorded write through one would make the other's gradient wrong."""
        chunk = target._chunk
        low, high = target._range()
        others = [r() for r in chunk.marked]
        for other in (*others, chunk.line):
            if other is None or other is line or other.entry is None:
                continue
            first, last = other.range()
            if first < high and low < last:
                raise ArgumentError(
                    f"[{op.name}] a recorded write to an array of shape {target._shape} that shares memory with "
                    f"another array on the tape, of shape {other.shape}, marked on its own; write to that one, or "
                    "detach it"
                )

    def written(self, node: Node | None, index: int, target: Array, keep: list[Any]) -> list[Step]:
        """Steps that give the line of a written array its new entry."""
        line = target._tape_line
        if line is DETACHED:
            return []
        value: Entry | None = None if node is None else (node, index)
        steps: list[Step] = []
        if line is None:
            if value is None:
                return []
            line = Line((target._chunk.buffer.size,), None, 0)
            if target._covers_chunk():
                line = Line(target._shape, target._strides, target._offset)
            steps.append((setattr, target._chunk, "line", line))
        if target._is_root(line):
            entry: Entry | None = value
        elif line.entry is None and value is None:
            return []
        else:
            entry = self._assigned(line, value, target), 0
        keep.append(line.entry)  # the last reference to a user's Function, perhaps
        steps.append((setattr, line, "entry", entry))
        if line.leaf is not None:
            steps.append((list.append, self.written_leaves, line))
        return steps

    def _assigned(self, line: Line, value: Entry | None, target: Array) -> Node:
        dtype = target._dtype
        base = line.shape, dtype
        return Node(ASSIGN, _geometry(target, line), (line.entry, value), (base, target._meta), (base,))

    # ---- after the push --------------------------------------------------------------------------------------------

    def begin_line(self, array: Array, node: Node, index: int) -> None:
        """The line of a fresh output, which nobody else knows yet."""
        array._chunk.line = Line(array._shape, array._strides, array._offset, (node, index))


def mark(array: Array, gradient: Array | RowSparseNDArray | None, request: str) -> None:
    """Make an array a leaf: its own line, with `gradient` as its gradient array.  What was on the tape is cut."""
    line = Line(array._shape, array._strides, array._offset)
    leaf = Leaf(gradient, request)
    line.leaf = line.entry = (leaf, 0) if request != "null" else None
    line.gradient = gradient
    chunk = array._chunk
    whole = array._line is None and array._covers_chunk()

    def plan() -> Any:
        marked = tuple(r for r in chunk.marked if r() is not None)
        steps: list[Step] = [(setattr, chunk, "marked", (*marked, ref(line)))]
        steps.append((setattr, chunk, "line", line) if whole else (setattr, array, "_line", line))
        return None, (), (), (), steps, [chunk.line, array._line, chunk.marked], False

    chunk.buffer.engine.admit(plan)
