"""What graphs have in common: two of one structure differ in values only, and have the same gradient texts to run.

A `Form` is what a node is, without values and edges.  A `Structure` is that of a node and of all nodes below it: it is
found by the form and, for each input, the structure of its node and how far back in the recording that is.  So equal
structures mean equal edges too: a node that is used twice is not taken for two alike.  A leaf is itself.

Structures are what plans (plans.py) are found by, and what makes recording cheap: everything that depends on shapes and
dtypes only is worked out once for each.                                          [tests/autograd/test_structure.py]
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..operators.calls import plain
from ..operators.schema import Attributes, Meta, Operator, Text

MOST = 4_000  # nodes on the longest way down of a graph that has a structure: about as many as are worth a plan
REMEMBERED = 20_000  # structures


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


class Form:
    """What nodes that differ in values and edges only have in common.

    `metas`: (shape, dtype) of each input.   `made`: those of the outputs, as the kernel gives them.   `connected`:
    whether each input has an edge.
    """

    __slots__ = ("_token", "_word", "all_connected", "attributes", "connected", "made", "metas", "op", "retention")

    def __init__(
        self,
        op: Operator,
        attributes: Attributes,
        metas: tuple[Meta | None, ...],
        made: tuple[Meta | None, ...],
        connected: tuple[bool, ...],
    ) -> None:
        self.op, self.attributes, self.metas, self.made, self.connected = op, attributes, metas, made, connected
        self.all_connected = all(connected)
        self.retention = _retention(op, connected)
        self._word: Any = ()
        self._token: Any = None

    @property
    def word(self) -> Any:
        """All of it, hashable; None if an attribute is no plain value.

        The seed of a random operator is a value: no text names it.
        """
        if self._word == ():
            self._word = self._words()
        return self._word

    @property
    def token(self) -> Any:
        """Something that stands for the word, and costs nothing to compare."""
        if self._token is None:
            word = self.word
            if len(_tokens) >= REMEMBERED:
                _tokens.clear()
            self._token = word if word is None else _tokens.setdefault(word, object())
        return self._token

    def _words(self) -> Any:
        words: list[Any] = [self.op, self.metas, self.made]
        for name, v in self.attributes.items():
            if name == "seed":
                continue
            if plain(v):
                words.append(f"{name}={v!r}")  # as text, for 1, 1.0 and True are equal, and so are the zeros
            elif isinstance(v, np.dtype):
                words.append(v)
            else:
                return None
        return tuple(words)


class Structure:
    """See above; compared by identity.

    `depth`: nodes on the longest way down.   `form`: of its nodes, if `Recorder.pair` or `single` makes them; `first`,
    `second` and `output`: under which keys these keep the inputs and the output, None for what no text names.
    """

    __slots__ = ("depth", "first", "form", "keeps", "output", "second")

    def __init__(self, depth: int, form: Form | None = None) -> None:
        self.depth, self.form = depth, form
        self.first = self.second = self.output = None
        if form is not None:
            kept: dict[int, Any] = dict(form.retention.inputs)
            self.first, self.second = kept.get(0), kept.get(1)
            self.output = form.op.outputs[0] if form.retention.outputs else None
        self.keeps = any((self.first, self.second, self.output))


#: that of what has none: too deep, or with nodes that are not known by a form
UNKNOWN = Structure(MOST)
_known: dict[Any, Structure] = {}
_tokens: dict[Any, object] = {}
find = _known.get


def learn(key: Any, depth: int, form: Form | None, same: Structure | None = None) -> Structure:
    """The structure with this key, from now on; `same`: one that there is already."""
    if len(_known) >= REMEMBERED:
        _known.clear()  # nodes keep theirs; graphs to come get others
    return _known.setdefault(key, same or Structure(depth, form))


def structure_of(node: Any) -> Structure:
    """The structure of a node's graph; worked out once, when it is first asked for."""
    todo = [node]
    while todo:
        node = todo[-1]
        below = [edge[0] for edge in node.edges if edge is not None]
        unknown = [n for n in below if n.structure is None]
        if node.structure is None and unknown:
            todo += unknown
            if len(todo) > MOST:  # too large for a plan: not worth what it would cost to find out more
                for n in todo:
                    n.structure = n.structure or UNKNOWN
                return todo[0].structure  # type: ignore[no-any-return]
            continue
        todo.pop()
        if node.structure is None:
            node.structure = _structure(node)
    return node.structure  # type: ignore[no-any-return]


def _structure(node: Any) -> Structure:
    edges = node.edges
    if node.freed is not None:  # looked at last, and set first: the edges may be gone
        return UNKNOWN
    depth = 1 + max((edge[0].structure.depth for edge in edges if edge is not None), default=0)
    token = None if depth >= MOST else node.form.token
    if token is None:
        return UNKNOWN
    key: list[Any] = [token]
    for edge in edges:
        key += (None, 0) if edge is None else link(node.number, edge)
    found = tuple(key)
    return find(found) or learn(found, depth, None)


def link(number: int, edge: Any) -> tuple[Structure, int]:
    """An edge from the node with this number, as a structure's key says it."""
    node, index = edge
    structure = node.structure or structure_of(node)
    return structure, number - node.number << 16 | index if structure.depth else index
