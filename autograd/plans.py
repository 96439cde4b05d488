"""Plans: the gradients of a small graph as one program, for the graphs that a training loop makes again and again.

Two graphs with the same *signature* (operators, attributes, shapes, dtypes, edges, heads, what is wanted) have the same
gradient texts to run in the same order.  The second time that a signature comes, the walk is gone through once more
with traced arrays (operators/tracing.py): same class, same order, so the same bits.  From then on its program runs at
once on the caller's thread, under the conditions of every kernel that does (operators/tiny.py), and if one of them does
not hold, or the program fails, nothing has happened and the walk goes its way.    [tests/autograd/test_plans.py]

A signature is read off the walk, node by node.  Graphs of one structure (structure.py), which is known when they are
recorded, have one signature; so a training loop, whose leaves stay the same, finds its plan without a walk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import here
from ..ndarray.array import Array
from ..ndarray.buffer import Saved
from ..ndarray.device import HOST, RawArray
from ..ndarray.dtype import NARROW
from ..ndarray.memory import PAGE
from ..operators.fusion import FUSE
from ..operators.schema import Meta, registry, size_of
from ..operators.texts import arguments, finished, given_by
from ..operators.tiny import Looks, fails
from ..operators.tracing import Program, Trace, Traced, Untraceable
from .groups import groups, variadic
from .regions import region_of
from .structure import MOST as DEEPEST
from .structure import link
from .tape import VIEW, Leaf, Node
from .walk import LARGE, ZERO, FunctionNode, Walk

NODES = 4_000  # of a graph that is worth a plan
MOST = 5e6  # units of work (about a millisecond) that a program may do at once
EACH = 4e5  # per call, of one that does more while the caller would wait for it: less than what handing it over costs
REMEMBERED = 64  # signatures
KNOWN = 256  # structures
SEEN = object()  # once
NONE = object()  # cannot be planned

Entry = tuple[Any, int]
Place = tuple[int, int]  # position of a node among those of the results, output
Found = tuple[Any, int, Any]  # node, output, and its cotangent: a raw array, an array or ZERO
Gathered = tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]


class Plan(NamedTuple):
    """`work`: what the program costs.   `gather`: (nodes of the heads) -> what was saved, the nodes that results belong
    to, all that a backward frees.   `kinds`: the types of what was saved, as the program wants it.   `held`: which of
    it are `Saved`.   `results`: where what the program gives belongs.
    `shared`: cotangents that are head gradients.   `zeros`: those that are zero everywhere.
    """

    program: Program
    work: float
    gather: Callable[..., Gathered]
    kinds: tuple[type, ...]
    held: tuple[int, ...]
    results: tuple[Place, ...]
    shared: tuple[tuple[Place, int], ...]
    zeros: tuple[Place, ...]


#: by signature: a plan, SEEN or NONE
_plans: dict[Any, Any] = {}
#: those found before, by structure
_found: dict[Any, Plan] = {}


def _remember(table: dict[Any, Any], key: Any, value: Any, most: int) -> None:
    if len(table) >= most and key not in table:
        with suppress(RuntimeError, StopIteration):  # another thread forgets one, or has learned one
            table.pop(next(iter(table)), None)
    table[key] = value


@lru_cache(KNOWN)
def _ones(meta: Meta) -> RawArray:
    """The gradient of a small head that was given none; nobody writes it."""
    return np.ones(*meta)


class Way:
    """How one backward goes: by the plan of its graph, or else on foot.

    `entries`: those of the heads.   `given`: the head gradients, None for ones.   `targets`: the nodes whose cotangents
    are wanted, None for all leaves.   `wait`: whether the caller will wait for them.
    """

    __slots__ = ("entries", "given", "heads", "place", "retain", "targets", "wait")

    def __init__(
        self, heads: Sequence[Array], entries: Sequence[Entry], targets: Sequence[Any] | None, retain: bool, wait: bool
    ) -> None:
        self.heads, self.entries, self.targets, self.retain, self.wait = heads, entries, targets, retain, wait
        self.given: Sequence[Array] | None = None
        self.place = heads[0]._place

    def _word(self) -> Any:
        """Structures, heads and what is wanted; None if there is no plan."""
        heads = self.heads if self.given is None else self.given
        if not self._fits():
            return None
        words: list[Any] = [registry.edition]
        first = self.entries[0][0].number
        for head, entry in zip(heads, self.entries, strict=True):
            structure, back = link(first, entry)
            if structure.depth >= DEEPEST:
                return None
            words += structure, back, head._meta
            if self.given is None and math.prod(head._shape) >= PAGE:
                return None
        if self.targets is not None:
            words.append(len(words))
            for node in self.targets:
                words += link(first, (node, 0))
        return tuple(words)

    def _fits(self) -> bool:
        place, heads = self.place, self.heads if self.given is None else self.given
        return place.device is HOST and place.engine.calm() and all(head._place is place for head in heads)

    def planned(self) -> list[Found] | None:
        """The results by the plan.  None, and nothing done, if there is none, or it does not fit the moment."""
        word = self._word()
        plan = None if word is None else _found.get(word)
        return None if plan is None else _run(plan, self)

    def walked(self, walk: Walk, given: Sequence[Array], part: bool = False) -> dict[Any, list[Any]]:
        """What arrives at each output of the targets, in the order of recording, by a walk that has not begun yet.

        `given`: the head gradients.   `part`: the walk visits a part of the graph.
        """
        found = None if walk.create else self._learned(walk, given, None if part else self._word(), part)
        if found is not None:
            return self.cotangents(found)
        leaves = [node for node in walk.nodes if type(node) is Leaf]
        wanted = set(leaves if self.targets is None else self.targets)
        walk.run(given, wanted.__contains__)
        return {node: walk.cotangents[node] for node in walk.nodes if node in wanted and node in walk.cotangents}

    def _learned(self, walk: Walk, given: Sequence[Array], word: Any, part: bool) -> list[Found] | None:
        """The results by the plan that the walk has, or makes."""
        if (word is None and not (part and self._fits())) or word in _found or walk.rows or len(walk.nodes) > NODES:
            return None
        wanted = {node for node in walk.nodes if type(node) is Leaf} if self.targets is None else set(self.targets)
        key = _signature(walk, given, wanted)
        if key is None:
            return None
        plan = _plans.get(key)
        if plan is None:
            _remember(_plans, key, SEEN, REMEMBERED)
        elif plan is SEEN:
            plan = _made(walk, given, wanted)
            _remember(_plans, key, plan, REMEMBERED)
        if not isinstance(plan, Plan):
            return None
        if word is not None:
            _remember(_found, word, plan, KNOWN)
        return _run(plan, self)

    def head(self, looks: Looks, i: int) -> Any:
        """A head gradient's value, None if it is not there or not in C order."""
        if self.given is None:
            return _ones(self.heads[i]._meta)
        raw = looks.at(self.given[i])
        return raw if looks.ready and raw.flags.c_contiguous else None

    def cotangents(self, found: Sequence[Found]) -> dict[Any, list[Any]]:
        """Results as a walk gives them: arrays, by node and output."""
        place = self.place
        known: dict[int, Array] = {}
        arrived: dict[Any, list[Any]] = {}
        for node, index, value in sorted(found, key=_by_number):
            array: Any = value
            if value is not ZERO and not isinstance(value, Array):
                array = known.get(id(value))
                if array is None:
                    own = place.device.whole(value) and value.flags.c_contiguous
                    known[id(value)] = array = Array._young(place, value if own else np.array(value, order="C"))
            outputs = len(node.made) if isinstance(node, Node) else 1
            arrived.setdefault(node, [None] * outputs)[index] = array
        return arrived


def _by_number(found: Found) -> int:
    number: int = found[0].number
    return number


def _signature(walk: Walk, head_grads: Sequence[Any], wanted: set[Any]) -> Any:
    """What decides the program, hashable; None if there is none."""
    positions: dict[Any, int] = {}
    found: list[Any] = []
    for node in walk.nodes:
        positions[node] = len(positions)
        if type(node) is Node:
            word = node.form.word
            if word is None:
                return None
            found.append(word)
            for edge in walk.edges[node]:
                found.append(-1 if edge is None else positions[edge[0]] << 16 | edge[1])
        elif type(node) is Leaf:
            found.append(0)
        else:
            return None
    for (node, index), g in zip(walk.entries, head_grads, strict=True):
        found += (positions[node], index, g._meta)
    return registry.edition, tuple([i for i, node in enumerate(walk.nodes) if node in wanted]), *found


def _run(plan: Plan, way: Way) -> list[Found] | None:
    if plan.work > MOST and not way.wait:
        return None
    looks, place = Looks(), way.place
    try:
        saved, nodes, freed = plan.gather(*[node for node, _ in way.entries])
    except (IndexError, KeyError):
        Walk(way.entries, True, False)  # says which node was freed, and by whom
        raise
    if tuple(map(type, saved)) != plan.kinds:
        return None
    values: list[Any] = [way.head(looks, i) for i in range(len(way.entries))]
    values += saved
    for i in plan.held:
        position = len(way.entries) + i
        values[position] = raw = looks.at(saved[i])
        if type(raw) is not np.ndarray or not raw.flags.c_contiguous:
            return None
    if not looks.ready or any(raw is None for raw in values):
        return None
    found = looks.run(place, lambda: plan.program(*values))
    if found is None:
        return None
    given = set(map(id, values))
    results: list[Found] = []
    for (i, index), raw in zip(plan.results, found, strict=True):
        results.append((nodes[i], index, raw.copy() if id(raw) in given else raw))
    for (i, index), head in plan.shared:
        results.append((nodes[i], index, _ones(way.heads[head]._meta).copy() if way.given is None else way.given[head]))
    results += [(nodes[i], index, ZERO) for i, index in plan.zeros]
    if not way.retain:
        site = here()
        for node in freed:
            node.freed = site
            node.saved = {}
            node.edges = ()
    place.engine.ran_at_once += 1
    return results


# ---- making one ------------------------------------------------------------------------------------------------------


def _made(walk: Walk, head_grads: Sequence[Any], wanted: Any) -> Any:
    """The plan of a walk, NONE, or SEEN if it is to be tried again."""
    heads: list[Traced] = []

    def trace() -> _TracedWalk:
        traced = _TracedWalk(walk)
        heads[:] = [traced.given(-1, i, g) for i, g in enumerate(head_grads)]
        traced.run(heads, wanted.__contains__)
        return traced

    context = head_grads[0]._place.engine.kernel_context
    try:
        traced = context.copy().run(trace)
    except (Later, MemoryError):  # the walk does without, in its own time
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
    results = [i for i, node in enumerate(walk.nodes) if node in wanted and node in traced.cotangents]
    for at, i in enumerate(results):
        for index, g in enumerate(traced.cotangents[walk.nodes[i]]):
            if g is ZERO:
                zeros.append((at, index))
            elif g is not None and g.name in names:
                shared.append(((at, index), names[g.name]))
            elif g is not None:
                found.append(((at, index), g))
    program = traced.trace.program([g for _, g in found])
    saved = traced.inputs[len(heads) :]
    return Plan(
        program,
        traced.trace.spent,
        _gatherer(walk, [(i, key) for i, key, _ in saved], results),
        tuple(kind for _, _, kind in saved),
        tuple(i for i, (_, _, kind) in enumerate(saved) if kind is Saved),
        tuple(place for place, _ in found),
        tuple(shared),
        tuple(zeros),
    )


def _gatherer(walk: Walk, saved: Sequence[tuple[int, Any]], results: Sequence[int]) -> Callable[..., Gathered]:
    """`Plan.gather` of graphs with this structure: their edges lead from node to node as here."""
    positions = {node: i for i, node in enumerate(walk.nodes)}
    heads = [positions[node] for node, _ in walk.entries]
    lines = [f"def gather({', '.join(f'h{i}' for i in range(len(heads)))}):"]
    for i, position in enumerate(heads):
        lines.append(f" n{position} = h{i}")
    kept: dict[int, list[int]] = {}
    for i, (position, _) in enumerate(saved):
        kept.setdefault(position, []).append(i)
    known, todo = set(heads), list(dict.fromkeys(heads))
    for position in todo:
        node = walk.nodes[position]
        below = {i: positions[edge[0]] for i, edge in enumerate(walk.edges[node]) if edge is not None}
        new = {below[i]: i for i in reversed(below) if below[i] not in known}
        if new:
            lines.append(f" e = n{position}.edges")
            lines += [f" n{p} = e[{i}][0]" for p, i in new.items()]
            known |= set(new)
            todo += new
        if position in kept:
            lines.append(f" s = n{position}.saved")
            lines += [f" a{i} = s[{saved[i][1]!r}]" for i in kept[position]]
        elif not new and type(node) is Node and node.op is not VIEW:
            lines.append(f" n{position}.edges[0]")  # nothing is needed of it, but it may have been freed
    freed = [i for i, node in enumerate(walk.nodes) if type(node) is Node and node.op is not VIEW]
    values, nodes, all_freed = (
        "".join(f"{letter}{i}, " for i in numbers)
        for letter, numbers in (("a", range(len(saved))), ("n", results), ("n", freed))
    )
    lines.append(f" return ({values}), ({nodes}), ({all_freed})")
    space: dict[str, Any] = {}
    exec("\n".join(lines), space)
    return space["gather"]  # type: ignore[no-any-return]


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
        self.inputs.append((position, key, type(value)))
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

        for group in groups(op, tuple(indices)):
            known = {name: g for name, g in cotangents.items() if name in group.named}
            known.update((name, value(name)) for name in self.saved[node] if name in group.named)
            if op.variadic in group.named:
                known[op.variadic] = tuple(value((op.variadic, i)) for i in variadic(node))
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
