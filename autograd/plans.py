"""Plans: the gradients of a small graph as one program, for the graphs that a training loop makes again and again.

Two graphs with the same *signature* (operators, attributes, shapes, dtypes, edges, heads, what is wanted) have the same
gradient texts to run in the same order.  The second time that a signature comes, the walk is gone through once more
with traced arrays (operators/tracing.py): same class, same order, so the same bits.  From then on its program runs at
once on the caller's thread, under the conditions of every kernel that does (operators/tiny.py), and if one of them does
not hold, or the program fails, nothing has happened and the walk goes its way.   [tests/autograd/test_plans.py]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from ..ndarray.array import Array
from ..ndarray.buffer import Saved
from ..ndarray.device import HOST
from ..ndarray.dtype import NARROW
from ..operators.calls import plain
from ..operators.fusion import FUSE
from ..operators.schema import registry, size_of
from ..operators.texts import arguments, finished, given_by
from ..operators.tiny import Looks, fails
from ..operators.tracing import Program, Trace, Traced, Untraceable
from .regions import region_of
from .tape import Leaf, Node
from .walk import LARGE, ZERO, FunctionNode, Walk, _groups, _variadic

NODES = 4_000  # of a graph that is worth a signature
MOST = 5e6  # units of work (about a millisecond) that a program may do at once
EACH = 4e5  # per call, of one that does more while the caller would wait for it: less than what handing it over costs
REMEMBERED = 64  # signatures
SEEN = object()  # once
NONE = object()  # cannot be planned

Place = tuple[int, int]  # position of a node, output


class Plan(NamedTuple):
    """`work`: what the program costs.   `inputs`: what it is given: saved values (position of the node, key, type) and
    head gradients (-1, position, type).   `results`: what it gives.   `shared`: cotangents that are head gradients.
    `zeros`: those that are zero everywhere.
    """

    program: Program
    work: float
    inputs: tuple[tuple[int, Any, type], ...]
    results: tuple[Place, ...]
    shared: tuple[tuple[Place, int], ...]
    zeros: tuple[Place, ...]


_plans: dict[Any, Any] = {}
_forms: dict[Any, object] = {}


def follow(walk: Walk, head_grads: Sequence[Any], wanted: Callable[[Any], bool], wait: bool) -> None:
    """Do the walk, by its plan if there is one.  `wait`: whether the caller will wait for the results."""
    if not _planned(walk, head_grads, wanted, wait):
        walk.run(head_grads, wanted)


def _planned(walk: Walk, head_grads: Sequence[Any], wanted: Callable[[Any], bool], wait: bool) -> bool:
    """The wanted nodes' cotangents by the plan.  False, and nothing done, if there is none."""
    place = head_grads[0]._place
    if walk.create or walk.rows or len(walk.nodes) > NODES or place.device is not HOST or not place.engine.calm():
        return False
    results = [i for i, node in enumerate(walk.nodes) if wanted(node)]
    key = _signature(walk, head_grads, results)
    if key is None:
        return False
    plan = _plans.get(key)
    if plan is None or plan is NONE:
        if plan is None:
            if len(_plans) >= REMEMBERED:
                with suppress(RuntimeError, StopIteration):  # another thread forgets one, or has learned one
                    _plans.pop(next(iter(_plans)), None)
            _plans[key] = SEEN
        return False
    if plan is SEEN:
        _plans[key] = plan = _made(walk, head_grads, results)
    if not isinstance(plan, Plan) or (plan.work > MOST and not wait):
        return False
    return _run(plan, walk, head_grads, place)


def _signature(walk: Walk, head_grads: Sequence[Any], results: Iterable[int]) -> Any:
    """What decides the program, hashable; None if there is none."""
    positions: dict[Any, int] = {}
    found: list[Any] = []
    for node in walk.nodes:
        positions[node] = len(positions)
        if type(node) is Node:
            form = _form(node)
            if form is None:
                return None
            found.append(form)
            for edge in walk.edges[node]:
                found.append(-1 if edge is None else positions[edge[0]] << 16 | edge[1])
        elif type(node) is Leaf:
            found.append(0)
        else:
            return None
    place = head_grads[0]._place
    for (node, index), g in zip(walk.entries, head_grads, strict=True):
        if g._place is not place:
            return None
        found += (positions[node], index, g._meta)
    return registry.edition, tuple(results), *found


def _form(node: Node) -> Any:
    """What a node is, without its values; None for an attribute that is no plain value.

    The seed of a random operator is a value: no text names it.
    """
    attributes = node.attributes
    if not attributes:
        return node.op, node.metas, node.made
    words: list[Any] = [node.op, node.metas, node.made]
    for name, v in attributes.items():
        if name == "seed":
            continue
        if plain(v):
            words.append(f"{name}={v!r}")  # as text, for 1, 1.0 and True are equal, and so are the zeros
        elif isinstance(v, np.dtype):
            words.append(v)
        else:
            return None
    return tuple(words)


def _run(plan: Plan, walk: Walk, head_grads: Sequence[Any], place: Any) -> bool:
    looks, nodes, saved = Looks(), walk.nodes, walk.saved
    given: list[Any] = []
    for position, key, kind in plan.inputs:
        value = looks.at(head_grads[key] if position < 0 else saved[nodes[position]].get(key))
        if type(value) is not kind or not value.flags.c_contiguous:  # type: ignore[attr-defined]
            return False
        given.append(value)
    found = looks.run(place, lambda: plan.program(*given)) if looks.ready else None
    if found is None:
        return False
    known: dict[int, Any] = {id(raw): None for raw in given}
    arrived = walk.cotangents
    for (position, index), raw in zip(plan.results, found, strict=True):
        array = known.get(id(raw))
        if array is None:
            own = place.device.whole(raw) and raw.flags.c_contiguous and id(raw) not in known
            known[id(raw)] = array = Array._young(place, raw if own else np.array(raw, order="C"))
        _put(arrived, nodes[position], index, array)
    for (position, index), i in plan.shared:
        _put(arrived, nodes[position], index, head_grads[i])
    for position, index in plan.zeros:
        _put(arrived, nodes[position], index, ZERO)
    if not walk.retain:
        for node in nodes:
            if type(node) is Node:
                node.free(walk.site)
    place.engine.ran_at_once += 1
    return True


def _put(cotangents: dict[Any, list[Any]], node: Any, index: int, value: Any) -> None:
    outputs = len(node.made) if isinstance(node, Node) else 1
    cotangents.setdefault(node, [None] * outputs)[index] = value


# ---- making one ------------------------------------------------------------------------------------------------------


def _made(walk: Walk, head_grads: Sequence[Any], results: Sequence[int]) -> Any:
    """The plan of a walk, NONE, or SEEN if it is to be tried again."""
    wanted = {walk.nodes[i] for i in results}
    heads: list[Traced] = []

    def trace() -> _TracedWalk:
        traced = _TracedWalk(walk)
        heads[:] = [traced.given(-1, i, g) for i, g in enumerate(head_grads)]
        traced.run(heads, wanted.__contains__)
        return traced

    context = head_grads[0]._place.engine.kernel_context
    try:
        traced = context.copy().run(trace)
    except Later:
        return SEEN
    except Untraceable:
        return NONE
    except Exception:
        if fails(context, trace):  # else it is a signal handler's
            return NONE
        raise
    names = {g.name: i for i, g in enumerate(heads)}
    found: list[tuple[Place, Traced]] = []
    shared: list[tuple[Place, int]] = []
    zeros: list[Place] = []
    for i in results:
        for index, g in enumerate(traced.cotangents.get(walk.nodes[i], ())):
            if g is ZERO:
                zeros.append((i, index))
            elif g is not None and g.name in names:
                shared.append(((i, index), names[g.name]))
            elif g is not None:
                found.append(((i, index), g))
    program = traced.trace.program([g for _, g in found])
    return Plan(
        program, traced.trace.spent, tuple(traced.inputs), tuple(p for p, _ in found), tuple(shared), tuple(zeros)
    )


VALUES = Saved | np.generic | np.ndarray


class Later(Exception):
    """Some value is not there yet."""


class _TracedWalk(Walk):
    """The walk over a graph with traced arrays in place of its own."""

    def __init__(self, walk: Walk) -> None:
        self.retain, self.create, self.site = True, False, walk.site
        self.entries, self.edges, self.nodes = walk.entries, walk.edges, walk.nodes
        self.cotangents, self.own = {}, set()
        self.trace, self.looks = Trace(MOST, EACH), Looks()
        self.F = self.trace.F
        self.inputs: list[tuple[int, Any, type]] = []
        self.positions = {node: i for i, node in enumerate(walk.nodes)}
        self.saved = dict(walk.saved)

    def given(self, position: int, key: Any, value: Any) -> Traced:
        """A value that the program is given."""
        raw = self.looks.at(value)
        if not self.looks.ready:
            raise Later
        if raw.dtype in NARROW or not raw.flags.c_contiguous:
            raise Untraceable
        self.inputs.append((position, key, type(raw)))
        return self.trace.input(raw)

    def _in_regions(self, node: Node, texts: Sequence[int], g: Any) -> bool:
        base = node.metas[0]
        if region_of(node.attributes) is not None and base is not None and int(np.prod(base[0])) >= LARGE:
            raise Untraceable
        return False

    def _through(self, node: Node, indices: Sequence[int], arrived: Sequence[Any]) -> None:
        if isinstance(node, FunctionNode) or any(m is not None and m[1] in NARROW for m in (*node.metas, *node.made)):
            raise Untraceable
        if node.op.elementwise and size_of(node.made) >= FUSE:
            raise Untraceable  # these run together, tile by tile
        super()._through(node, indices, arrived)

    def _push(self, node: Node, indices: Sequence[int], cotangents: dict[str, Any]) -> None:
        op, position = node.op, self.positions[node]
        saved: dict[Any, Any] = {}

        def value(key: Any) -> Any:
            if key not in saved:
                kept = self.saved[node][key]
                saved[key] = self.given(position, key, kept) if isinstance(kept, VALUES) else kept
            return saved[key]

        for group in _groups(op, tuple(indices)):
            known = {name: g for name, g in cotangents.items() if name in group.named}
            known.update((name, value(name)) for name in self.saved[node] if name in group.named)
            if op.variadic in group.named:
                known[op.variadic] = tuple(value((op.variadic, i)) for i in _variadic(node))
            for text, part in group.parts:
                if text.all_attributes and "seed" in node.attributes:
                    raise Untraceable
                metadata = self._metadata(node, indices, part) if group.metadata else {}
                result = text.function(self.F, **arguments(text, {**known, **metadata}, node.attributes))
                for i, g in given_by(op, part, result):
                    if i is not None:
                        meta: Any = node.metas[i]
                        if type(g) is not Traced:
                            raise Untraceable
                        gradient = finished(self.F, op, op.input_name(i), g, meta)
                        self._deliver(node, i, self.trace.whole(gradient), True)
