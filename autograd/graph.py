"""The graph above some arrays, to be looked at: its operators, and their picture.

`Graph` reads the tape when it is made and keeps no part of it.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..engine import ArgumentError
from ..ndarray.array import Array
from ..ndarray.reading import describe
from ..ndarray.sparse_arrays import BaseSparseNDArray
from ..operators.calls import plain
from .backward import _arrays
from .tape import ASSIGN, VIEW, GraphError, Leaf, entry_of, refuse_freed
from .walk import FunctionNode

WORDS = {VIEW: "view", ASSIGN: "write to a part"}
LONGEST = 48  # letters of an operator's attributes in a label
PICTURES = ("pdf", "png", "svg")


class GraphNode(NamedTuple):
    """One operator, or one marked array.

    `kind`: "variable" or "operator".   `name`: that of the operator; of a marked array the one that it was given.
    `outputs`: dtype and shape of each in words.   `line`: where it was recorded, "" for a variable.   `inputs`: for
    each input on the tape the position of the node that it comes from and which of its outputs it is.   `attributes`:
    those of the operator that are plain values.   `heads`: which of the heads it gives.
    """

    kind: str
    name: str
    outputs: tuple[str, ...]
    line: str
    inputs: tuple[tuple[int, int], ...]
    attributes: dict[str, Any]
    heads: tuple[int, ...]

    @property
    def label(self) -> tuple[str, ...]:
        """Its words in a picture, line by line."""
        given = ", ".join(f"{k}={v}" for k, v in self.attributes.items())
        given = given if len(given) <= LONGEST else given[: LONGEST - 3] + "..."
        where = os.path.basename(self.line)
        head = "head " + ", ".join(map(str, self.heads)) if self.heads else ""
        return tuple(word for word in (head, self.name, given, ", ".join(self.outputs), where) if word)


class Graph:
    """What `graph` gives.   `nodes`: in the order of recording, so inputs come before what uses them."""

    def __init__(self, nodes: tuple[GraphNode, ...]) -> None:
        self.nodes = nodes

    def __repr__(self) -> str:
        operators = sum(node.kind == "operator" for node in self.nodes)
        return f"<Graph of {operators} operators and {len(self.nodes) - operators} variables>"

    def __str__(self) -> str:
        rows = []
        for i, node in enumerate(self.nodes):
            inputs = ", ".join(f"{k}" if n == 0 else f"{k}[{n}]" for k, n in node.inputs)
            words = (f"{i}: {node.name}", f"({inputs})" if inputs else "", ", ".join(node.outputs), node.line)
            rows.append("  ".join(word for word in words if word))
        return "\n".join(rows)

    def to_dot(self) -> str:
        """The graph in the language of Graphviz."""
        lines = ["digraph {", '  rankdir=BT; node [shape=box, fontname="sans-serif", fontsize=10]; edge [fontsize=8];']
        for i, node in enumerate(self.nodes):
            style = ', style=filled, fillcolor="#DCE9F7"' if node.kind == "variable" else ""
            style = ', style=filled, fillcolor="#FDE3C8"' if node.heads else style
            label = r"\n".join(map(_quoted, node.label))
            lines.append(f'  n{i} [label="{label}"{style}];')
            for k, n in node.inputs:
                several = len(self.nodes[k].outputs) > 1
                lines.append(f"  n{k} -> n{i}" + (f' [label="{n}"];' if several else ";"))
        return "\n".join([*lines, "}"]) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file: .dot or .gv for Graphviz, or a picture, .svg, .png or .pdf.

        Pictures are drawn by Graphviz's program ``dot`` if there is one, else by matplotlib.

        Raises: ArgumentError for another ending, and if there is neither.
        """
        ending = Path(path).suffix[1:].lower()
        if ending in ("dot", "gv"):
            Path(path).write_text(self.to_dot(), encoding="utf-8")
            return
        if ending not in PICTURES:
            raise ArgumentError(
                f"[graph] {os.fspath(path)!r}: .dot, .gv, {', '.join(f'.{p}' for p in PICTURES)} expected"
            )
        program = shutil.which("dot")
        if program is None:
            _draw(self, path)
            return
        command = [program, f"-T{ending}", "-o", os.fspath(path)]
        subprocess.run(command, input=self.to_dot(), text=True, encoding="utf-8", check=True)


def graph(heads: Any, names: Mapping[str, Any] | None = None) -> Graph:
    """The graph above some arrays, as it is recorded now: operators, shapes, dtypes, lines.

    Parameters
    ----------
    heads : array or list of arrays
    names : dict
        Names for marked arrays.

    Never blocks.   Raises: GraphError for an array that is not on the tape, and for a graph that was freed.

    >>> from vardag import nd, autograd
    >>> w = nd.ones((2, 3)); w.attach_grad()
    >>> with autograd.record():
    ...     y = nd.tanh(w * 2).sum()
    >>> g = autograd.graph(y, names={"w": w})
    >>> [(node.name, *node.outputs) for node in g.nodes]
    [('w', 'float32(2, 3)'), ('multiply', 'float32(2, 3)'), ('tanh', 'float32(2, 3)'), ('sum', 'float32(1,)')]
    >>> print(g.to_dot().splitlines()[0])
    digraph {
    """
    arrays = _arrays("graph", heads)
    found: dict[Any, None] = {}
    entries = []
    for head in arrays:
        entry = entry_of(head)
        if entry is None:
            raise GraphError(
                f"[graph] {describe(head)} is on no graph: compute it from a marked array (attach_grad) inside "
                "autograd.record()"
            )
        entries.append(entry)
    todo = [entry[0] for entry in entries]
    while todo:
        node = todo.pop()
        if node not in found:
            found[node] = None
            edges = node.edges
            refuse_freed(node)
            todo += [edge[0] for edge in edges if edge is not None]
    ordered = sorted(found, key=lambda node: node.number)
    positions = {node: i for i, node in enumerate(ordered)}
    known = {id(_leaf(x)): name for name, x in (names or {}).items() if isinstance(x, Array) and _leaf(x) is not None}
    made: dict[Any, str] = {}
    for node in ordered:
        for edge, meta in zip(node.edges, getattr(node, "metas", ()), strict=True):
            if edge is not None and meta is not None:
                made[edge[0]] = _words(meta)
    nodes = []
    for node in ordered:
        own = tuple(i for i, (head, _) in enumerate(entries) if head is node)
        if isinstance(node, Leaf):
            like = node.gradient
            if isinstance(like, Array | BaseSparseNDArray):
                made[node] = _words((like.shape, like._dtype))
            outputs: tuple[str, ...] = (made[node],) if node in made else ()
            nodes.append(GraphNode("variable", known.get(id(node), "variable"), outputs, "", (), {}, own))
            continue
        outputs = tuple(_words(meta) if meta is not None else "" for meta in node.made)
        if len(entries) == 1 and own:
            outputs = tuple(describe(arrays[0]) if i == entries[0][1] else word for i, word in enumerate(outputs))
        inputs = tuple((positions[edge[0]], edge[1]) for edge in node.edges if edge is not None)
        hidden = isinstance(node, FunctionNode) or node.op in WORDS
        attributes = {} if hidden else {k: v for k, v in node.attributes.items() if k != "seed" and plain(v)}
        name = WORDS.get(node.op, node.op.name)
        nodes.append(GraphNode("operator", name, outputs, node.recorded_at, inputs, attributes, own))
    return Graph(tuple(nodes))


def _leaf(array: Array) -> Any:
    line = array._tape_line
    return None if line is None or line.leaf is None else line.leaf[0]


def _words(meta: Any) -> str:
    return f"{meta[1]}{meta[0]}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


# ---- a picture without Graphviz --------------------------------------------------------------------------------------


def _layers(nodes: tuple[GraphNode, ...]) -> list[tuple[float, float]]:
    """A place for each node: rows by the longest way from a variable, in a row by the mean of what it comes from."""
    rows: list[list[int]] = []
    height: list[int] = []
    for i, node in enumerate(nodes):
        height.append(1 + max((height[k] for k, _ in node.inputs), default=-1))
        while len(rows) <= height[i]:
            rows.append([])
        rows[height[i]].append(i)
    x = [0.0] * len(nodes)
    uses: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        for k, _ in node.inputs:
            uses[k].append(i)
    for sweep in range(4):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            near = {i: [k for k, _ in nodes[i].inputs] if sweep % 2 == 0 else uses[i] for i in row}
            row.sort(key=lambda i: (math.fsum(x[k] for k in near[i]) / len(near[i]) if near[i] else x[i], i))
            for place, i in enumerate(row):
                x[i] = place - (len(row) - 1) / 2
    return [(x[i], float(height[i])) for i in range(len(nodes))]


def _draw(graph: Graph, path: str | os.PathLike[str]) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ArgumentError(
            "[graph] a picture needs Graphviz's program dot, or matplotlib; to_dot() gives its text"
        ) from None
    places = _layers(graph.nodes)
    wide, high = (max(p[axis] for p in places) - min(p[axis] for p in places) for axis in (0, 1))
    figure = Figure(figsize=(min(2.6 * wide + 3, 200), min(1.1 * high + 1.5, 400)), dpi=100)
    FigureCanvasAgg(figure)
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(min(p[0] for p in places) - 0.6, max(p[0] for p in places) + 0.6)
    axes.set_ylim(-0.6, high + 0.6)
    boxes = []
    for node, (x, y) in zip(graph.nodes, places, strict=True):
        colour = "#DCE9F7" if node.kind == "variable" else "#FDE3C8" if node.heads else "white"
        box = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "#555555"}
        text = "\n".join(node.label).replace("$", r"\$")
        boxes.append(axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box, zorder=3).get_bbox_patch())
    for i, node in enumerate(graph.nodes):
        for k, _ in node.inputs:
            bend = 0.0 if places[i][1] - places[k][1] == 1 else -0.12  # around what lies between
            arrow = {"arrowstyle": "-|>", "color": "#777777", "connectionstyle": f"arc3,rad={bend}"}
            ends = {"patchA": boxes[k], "patchB": boxes[i], "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", places[i], places[k], arrowprops=arrow | ends, zorder=1)
    figure.savefig(path)
