"""Segments: the part of the tape that one call of a function has recorded, and gradients within it.

Nodes are numbered in the order of recording, so what a call has recorded are the nodes from its first number, its
*floor*, on.  A walk within a segment ends at the nodes below: it visits and frees nothing that was there before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..ndarray.array import Array
from ..ndarray.line import Scope, scope, within
from . import plans
from .backward import _apart, _head_grads, _result
from .recorder import Recorder
from .tape import VIEW, Entry, Node, entries_of, entry_of
from .walk import Walk


class Segment(Walk):
    """A walk that ends below a floor.

    `ends`: the nodes at which it ends are part of it, with the cotangents that arrive there; else nothing flows to
    them.   A view is no end: what it is a view of is.
    """

    def __init__(self, entries: Sequence[Entry], retain: bool, create: bool, floor: int, ends: bool = False) -> None:
        self.floor, self.ends = floor, ends
        super().__init__(entries, retain, create)

    def below(self, node: Any) -> bool:
        """Does the walk end at this node?"""
        return node.number < self.floor and not (self.ends and isinstance(node, Node) and node.op is VIEW)

    def _reachable(self) -> list[Any]:
        nodes = super()._reachable()
        return nodes if self.ends else [node for node in nodes if not self.below(node)]

    def _visit(self, node: Any) -> tuple[Any, ...]:
        if self.below(node):
            return ()
        edges = super()._visit(node)
        if self.ends or self.create:  # recorded gradients ask edges for what they lead to
            return edges
        return tuple([None if e is None or self.below(e[0]) else e for e in edges])


def pulled(
    heads: Sequence[Array],
    cotangents: Sequence[Any],
    variables: Sequence[Array],
    entries: Sequence[Entry],
    floor: int,
    *,
    retain: bool = False,
    create: bool = False,
) -> list[Array]:
    """The gradients of heads with respect to entries from the floor on, zeros for one that no head depends on.

    `cotangents`: the weights of the heads, None for ones.   `variables`: arrays of the entries' shapes, dtypes and
    faces.   `create`: record them, so that they can be differentiated again.   Never blocks.
    """
    current = scope.get()
    recorder = (current.recorder or Recorder()) if create else None
    found = [(h, c) for h, c in zip(heads, cotangents, strict=True) if (e := entry_of(h)) and e[0].number >= floor]

    def walked() -> list[Any]:
        if not found:
            return [_zeros(v) for v in variables]
        depending = [h for h, _ in found]
        way = plans.Way(depending, entries_of(depending), list(dict.fromkeys(e[0] for e in entries)), retain, False)
        way.given = given = _head_grads(depending, [c for _, c in found])
        arrived = way.walked(Segment(way.entries, retain, create, floor), given, part=True)
        return _apart(
            [_result(arrived, v, e, i, "zeros") for i, (v, e) in enumerate(zip(variables, entries, strict=True))]
        )

    return within(Scope(recorder, current.training, False), walked)


def _zeros(like: Array) -> Any:
    return within(Scope(None, False, True), like._ops.zeros_like, like)


def in_mode(training: bool, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in this mode; recording stays as it is."""
    current = scope.get()
    return within(Scope(current.recorder, training, current.paused), function, *arguments)
