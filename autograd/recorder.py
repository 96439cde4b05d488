"""The recorder: what the push path calls to put operators on the tape (operators/push.py), under the order lock.

It changes nothing shared: it returns a node, and steps that the push commits.  What runs at once (tiny.py, quick.py)
calls it without the lock, and asks afterwards whether what it has read is still so.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from sys import _getframe
from typing import Any

from ..engine import ArgumentError, here
from ..engine.site import is_ours
from ..ndarray.array import Array
from ..ndarray.buffer import Step
from ..ndarray.line import DETACHED, Line
from ..ndarray.shape import Shape
from ..operators.schema import Attributes, Meta, Operator
from .structure import MOST, Form, Structure, find, learn, link, structure_of
from .tape import ASSIGN, Entry, Node, entry_of, geometry, number

_new = object.__new__
FRAMES = 3  # of quick.py and this file between a user's line and `here`, at least


def _learn(
    key: Any, op: Operator, edges: Sequence[Entry | None], shape: Shape, dtype: Any, numbers: Sequence[bool]
) -> Structure:
    """The structure of a ufunc's node."""
    on = tuple([edge is not None and op.gradient_of(i) is not None for i, edge in enumerate(edges)])
    metas = tuple([((), dtype) if is_number else (shape, dtype) for is_number in numbers])
    form = Form(op, {}, metas, ((shape, dtype),), on) if any(on) else None
    depth = 1 + max(structure_of(edge[0]).depth for edge in edges if edge is not None)
    if depth < MOST:
        return learn(key, depth, form)
    word = op, shape, dtype, on, tuple(numbers)  # one for all that are too deep for a plan
    return learn(key, MOST, form, find(word) or learn(word, MOST, form))


def inplace_policy(inplace: str | None = None) -> str:
    """What a recorded write to an array on the tape does, "allow" or "refuse"; by default, what VARDAG_INPLACE says."""
    policy = os.environ.get("VARDAG_INPLACE", "allow") if inplace is None else inplace
    if policy not in ("allow", "refuse"):
        raise ArgumentError(f"[record] inplace {policy!r}: 'allow' or 'refuse' expected")
    return policy


class Recorder:
    """One outermost recording scope: what pushes record on.

    `inplace`: "allow", or "refuse" for MXNet's rule that arrays on the tape are not written; None: as the environment
    variable VARDAG_INPLACE says when something is written.
    """

    __slots__ = ("inplace", "written_leaves")

    def __init__(self, inplace: str | None = None) -> None:
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
        if previous is not None and previous.edges == edges:
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
            if (on_tape or tracked) and (self.inplace or inplace_policy()) == "refuse":
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
        return Node(ASSIGN, geometry(target, line), (line.entry, value), (base, target._meta), (base,))

    # ---- called by what runs at once (operators/tiny.py, quick.py) ---------------------------------------------------

    def again(
        self, forms: dict[Any, Form], op: Operator, inputs: Sequence[Any], attributes: Attributes,
        made: Sequence[Meta | None],
    ) -> Node | None:  # fmt: skip
        """As `node`, of a call that comes again.   `forms`: those of its nodes so far, by what was connected."""
        edges = tuple([entry_of(x) if isinstance(x, Array) else None for x in inputs])
        on = tuple([edge is not None for edge in edges])
        form = forms.get(on)
        if form is None:
            if True not in on:
                return None
            metas = tuple([x._meta if isinstance(x, Array) else x if x is None else (x.shape, x.dtype) for x in inputs])
            smooth = tuple([is_on and op.gradient_of(i) is not None for i, is_on in enumerate(on)])
            forms[on] = form = Form(op, attributes, metas, tuple(made), smooth)
        if not form.all_connected:
            edges = tuple([edge if is_on else None for edge, is_on in zip(edges, form.connected, strict=True)])
            if True not in form.connected:
                return None
        node: Node = _new(Node)
        node.form, node.edges, node.structure, node.number, node.freed = form, edges, None, number(), None
        node.saved = {}
        node.site = here(FRAMES)
        return node

    def pair(self, op: Operator, x: Any, y: Any, a: Any, b: Any, raw: Any, dtype: Any) -> Node | None:
        """The node of a ufunc of two arrays of one shape and dtype, or of one and a number; None if nothing is on the
        tape.  `a`, `b`, `raw`: the values of the operands and of the result, of fewer elements than the tape copies.
        """
        # Called for every recorded x + y: what a call or two more cost is seen.
        first = second = structure = other = kept = None
        back = behind = -1  # of a number
        if isinstance(x, Array):
            back, name = 0, x._line
            if type(name) is Node:
                first = name, 0
            elif name is not None or x._raw is None:
                first = entry_of(x)
        if y is x:
            second, behind = first, back
        elif isinstance(y, Array):
            behind, name = 0, y._line
            if type(name) is Node:
                second = name, 0
            elif name is not None or y._raw is None:
                second = entry_of(y)
        n = number()  # after those of the views that `entry_of` records
        if first is not None:
            below = first[0]
            structure = below.structure or structure_of(below)
            back = n - below.number << 16 | first[1] if structure.depth else first[1]
            if second is not None:
                other, behind = (structure, back) if second is first else link(n, second)
        elif second is not None:
            below = second[0]
            other = below.structure or structure_of(below)
            behind = n - below.number << 16 | second[1] if other.depth else second[1]
        else:
            return None
        key = op, raw.shape, dtype, structure, back, other, behind
        found = find(key)
        if found is None:
            found = _learn(key, op, (first, second), raw.shape, dtype, (back < 0, behind < 0))
        form = found.form
        if form is None:
            return None
        node: Node = _new(Node)
        node.form, node.structure, node.number, node.freed = form, found, n, None
        if form.all_connected:
            node.edges = first, second
        else:
            on = form.connected
            node.edges = first if on[0] else None, second if on[1] else None
        node.saved = saved = {}
        if found.keeps:
            if found.first is not None:
                saved[found.first] = kept = a if back < 0 or x._raw is a else a.copy()
                if y is x:
                    b = kept
            if found.second is not None:
                saved[found.second] = b if b is kept or behind < 0 or y._raw is b else b.copy()
            if found.output is not None:
                saved[found.output] = raw
        frame = _getframe(2)  # the user's, if quick.py's first function has called this: no call for that
        code = frame.f_code
        node.site = here(FRAMES) if is_ours(code.co_filename, True) else (code, frame.f_lasti)
        return node

    def single(self, op: Operator, x: Array, a: Any, raw: Any) -> Node | None:
        """As `pair`, of a ufunc of one array."""
        name = x._line
        entry = (name, 0) if type(name) is Node else entry_of(x)
        if entry is None:
            return None
        n, below = number(), entry[0]
        structure = below.structure or structure_of(below)
        back = n - below.number << 16 | entry[1] if structure.depth else entry[1]
        key = op, raw.shape, a.dtype, structure, back
        found = find(key)
        if found is None:
            found = _learn(key, op, (entry,), raw.shape, a.dtype, (False,))
        form = found.form
        if form is None:
            return None
        node: Node = _new(Node)
        node.form, node.structure, node.number, node.freed = form, found, n, None
        node.edges = (entry,)
        node.saved = saved = {}
        if found.first is not None:
            saved[found.first] = a if x._raw is a else a.copy()
        if found.output is not None:
            saved[found.output] = raw
        frame = _getframe(2)  # the user's, if quick.py's first function has called this: no call for that
        code = frame.f_code
        node.site = here(FRAMES) if is_ours(code.co_filename, True) else (code, frame.f_lasti)
        return node

    # ---- after the push --------------------------------------------------------------------------------------------

    def begin_line(self, array: Array, node: Node, index: int) -> None:
        """The line of a fresh output, which nobody else knows yet."""
        array._chunk.line = Line(array._shape, array._strides, array._offset, (node, index))
