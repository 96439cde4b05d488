"""Trees of arrays: lists, tuples, named tuples and dicts, nested; what is none of these is a leaf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..engine import ArgumentError
from ..ndarray.reading import describe


class Form(NamedTuple):
    """A tree without its leaves.

    `kind`: the class that makes it anew, None for a leaf.   `keys`: of a dict, in its order, else None.
    """

    kind: Any
    keys: tuple[Any, ...] | None
    parts: tuple[Form, ...]


LEAF = Form(None, None, ())


def flatten(tree: Any) -> tuple[list[Any], Form]:
    """The leaves of a tree, and its form."""
    leaves: list[Any] = []
    return leaves, _flatten(tree, leaves)


def _flatten(tree: Any, leaves: list[Any]) -> Form:
    if isinstance(tree, Mapping):
        return Form(dict, tuple(tree), tuple([_flatten(x, leaves) for x in tree.values()]))
    if isinstance(tree, list | tuple):
        kind = type(tree) if hasattr(tree, "_make") else list if isinstance(tree, list) else tuple
        return Form(kind, None, tuple([_flatten(x, leaves) for x in tree]))
    leaves.append(tree)
    return LEAF


def build(form: Form, leaves: Sequence[Any]) -> Any:
    """The tree of this form with these leaves, in the order of `flatten`."""
    return _build(form, iter(leaves))


def _build(form: Form, leaves: Iterator[Any]) -> Any:
    if form.kind is None:
        return next(leaves)
    parts = [_build(part, leaves) for part in form.parts]
    if form.keys is not None:
        return dict(zip(form.keys, parts, strict=True))
    make = getattr(form.kind, "_make", form.kind)
    return make(parts)


def paths(form: Form, prefix: str = "") -> list[str]:
    """Where each leaf is: ``0['w'][1]`` of a list of arguments."""
    if form.kind is None:
        return [prefix]
    keys = range(len(form.parts)) if form.keys is None else form.keys
    found = []
    for key, part in zip(keys, form.parts, strict=True):
        found += paths(part, f"{prefix}[{key!r}]" if prefix else f"{key!r}")
    return found


def leaves_like(form: Form, tree: Any, what: str) -> list[Any]:
    """The leaves of a tree that must have this form; `what` says in the error what it is.

    Dicts may have their keys in another order, lists and tuples stand for each other.
    """
    leaves: list[Any] = []
    _match(form, tree, what, leaves)
    return leaves


def _match(form: Form, tree: Any, what: str, leaves: list[Any]) -> None:
    if form.kind is None:
        if isinstance(tree, Mapping | list | tuple):
            raise ArgumentError(f"{what} has {words(tree)} in the place of one array or value")
        leaves.append(tree)
    elif form.keys is not None:
        if not isinstance(tree, Mapping) or set(tree) != set(form.keys):
            raise ArgumentError(f"{what} has {words(tree)} in the place of a dict of {', '.join(map(repr, form.keys))}")
        for key, part in zip(form.keys, form.parts, strict=True):
            _match(part, tree[key], what, leaves)
    else:
        if not isinstance(tree, list | tuple) or len(tree) != len(form.parts):
            raise ArgumentError(f"{what} has {words(tree)} in the place of a sequence of {len(form.parts)}")
        for part, x in zip(form.parts, tree, strict=True):
            _match(part, x, what, leaves)


def words(tree: Any) -> str:
    """What it is, in an error."""
    if isinstance(tree, Mapping):
        return f"a dict of {', '.join(map(repr, tree))}"
    return f"a sequence of {len(tree)}" if isinstance(tree, list | tuple) else describe(tree)
