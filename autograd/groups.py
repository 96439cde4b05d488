"""Which gradient texts a node has, and which of them run together: what depends on the operator alone."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from ..operators.schema import Operator, Text


class Group(NamedTuple):
    """Texts that one operation runs, each with the inputs its results belong to; what they name; whether that is
    metadata too."""

    parts: tuple[tuple[Text, tuple[int | None, ...]], ...]
    named: frozenset[str]
    metadata: bool


@cache
def split(op: Operator, indices: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Of these inputs: those whose gradient is zero, those with a text, and of these those whose text is ``g``."""
    texts = tuple(i for i in indices if isinstance(op.gradient_of(i), Text))
    passing = tuple(i for i in texts if op.gradient_of(i).passes)  # type: ignore[union-attr]
    return tuple(i for i in indices if i not in texts), texts, passing


@cache
def groups(op: Operator, indices: tuple[int, ...]) -> tuple[Group, ...]:
    """The texts of these inputs, those that one operation runs in one group."""
    joint = [i for i in indices if op.input_name(i) in op.joint_inputs]
    parts: list[tuple[Text, tuple[int | None, ...]]] = []
    if joint and op.joint is not None:
        by_name = {op.input_name(i): i for i in joint}
        parts.append((op.joint, tuple(by_name.get(name) for name in op.joint_inputs)))
    for i in indices:
        text = op.gradient_of(i)
        if i not in joint and isinstance(text, Text):
            parts.append((text, (i,)))
    found = []
    for group in [[part] for part in parts] if op.costly else [parts]:
        named = frozenset(name for text, _ in group for name in text.names)
        own = {*op.inputs, *op.outputs, *op.saves, *op.attributes, "g", *(f"g_{name}" for name in op.outputs)}
        found.append(Group(tuple(group), named, bool(named - own)))
    return tuple(found)


def variadic(node: Any) -> range:
    """The positions of a node's variadic inputs."""
    return range(len(node.op.inputs), len(node.metas))
