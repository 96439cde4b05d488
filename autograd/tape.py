"""The tape: nodes hold metadata and saved values, users hold arrays.

An *entry* is (node, output index); a line's entry says what the tape knows of its bytes.  A node points to the
entries of its inputs, so a graph lives exactly as long as somebody can differentiate it.  Nodes are numbered in the
order of recording; an edge leads to a lower number.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any
from weakref import ref

import numpy as np

from ..engine import ArgumentError, here
from ..engine import describe as describe_site
from ..ndarray.array import Array
from ..ndarray.buffer import Step
from ..ndarray.line import Line, marks
from ..ndarray.reading import describe
from ..ndarray.shape import Shape, Strides, c_strides
from ..ndarray.sparse_arrays import RowSparseNDArray
from ..operators.schema import Attributes, Meta, Operator, registry
from .structure import Form, Retention, Structure, key_of

Entry = tuple["Node", int]
#: () -> the next number of a node, in the order of recording
number = itertools.count().__next__


class GraphError(ArgumentError):
    """The graph cannot be differentiated: it was not recorded, or it was freed.  Raised at the call."""


class Node:
    """One recorded operator.

    `form`: operator, attributes, shapes, dtypes.   `edges`: the entry of each input, None where no gradient can flow.
    `saved`: what its texts name, by name, until freed: constants, values nobody writes, a `Saved` for others.
    `freed`: the line of the backward that freed it, or None.   `structure`: see `structure_of`.
    """

    __slots__ = ("__weakref__", "edges", "form", "freed", "number", "saved", "site", "structure")

    def __init__(
        self,
        op: Operator,
        attributes: Attributes,
        edges: tuple[Entry | None, ...],
        metas: tuple[Meta | None, ...],
        made: tuple[Meta | None, ...],
    ) -> None:
        self.form = Form(op, attributes, metas, made, tuple([edge is not None for edge in edges]))
        self.edges = edges
        self.saved: dict[Any, Any] = {}
        self.number = number()
        self.site = here()
        self.freed: Any = None
        self.structure: Structure | None = None

    @property
    def op(self) -> Operator:
        return self.form.op

    @property
    def attributes(self) -> Attributes:
        return self.form.attributes

    @property
    def metas(self) -> tuple[Meta | None, ...]:
        return self.form.metas

    @property
    def made(self) -> tuple[Meta | None, ...]:
        return self.form.made

    @property
    def retention(self) -> Retention:
        return self.form.retention

    @property
    def names(self) -> frozenset[str]:
        """What it keeps."""
        return self.form.retention.names

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

    __slots__ = ("__weakref__", "gradient", "number", "request", "structure")
    edges: tuple[()] = ()
    freed = None

    def __init__(self, gradient: Array | RowSparseNDArray | None, request: str) -> None:
        self.gradient, self.request = gradient, request
        self.number = number()
        self.structure = Structure(0, None)


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
    if type(line) is Node:
        return line, 0
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
    node = Node(VIEW, geometry(array, line), (entry,), ((line.shape, dtype),), made)
    derived = node, 0
    array._derived = entry, derived
    return derived


def entries_of(heads: Sequence[Array]) -> list[Any]:
    """What the tape knows of the heads of a backward.   Raises: GraphError if it does not know one."""
    entries = [entry_of(h) for h in heads]
    for head, entry in zip(heads, entries, strict=True):
        if entry is None:
            raise GraphError(
                f"[backward] the head {describe(head)} was not recorded: compute it from a marked array "
                f"(attach_grad) inside autograd.record()"
            )
    return entries


def geometry(view: Array, line: Line) -> Attributes:
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
        steps.append((setattr, marks, "last", object()))
        return None, (), (), (), steps, [chunk.line, array._line, chunk.marked], False

    chunk.buffer.engine.admit(plan)
