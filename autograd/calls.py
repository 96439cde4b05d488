"""One call of a function that is differentiated: what the transforms (transforms.py) ask of it.

The function is called with new names for the arrays that it is differentiated by: lazy copies, marked, or recorded if
an array is on the tape and somebody records, so that transforms nest.  Nothing of the caller is marked or freed.  What
is asked of the tape is a walk within the segment of the call (segment.py), whatever the transform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError
from ..ndarray.array import Array
from ..ndarray.dtype import BOOL, is_float
from ..ndarray.line import Line, Scope, scope, within
from ..ndarray.memory import PAGE
from ..ndarray.reading import describe
from ..ndarray.sparse_arrays import BaseSparseNDArray
from .scope import record
from .segment import in_mode, pulled
from .structure import UNKNOWN
from .tape import Entry, Leaf, entry_of, number
from .trees import Form, build, flatten, leaves_like, words

Argnums = int | str | Sequence[int | str]


class Call:
    """One recorded call of a function.

    `variables`: the new names of the arrays that it is differentiated by, with their `entries`; `places` says where in
    the chosen arguments they stand, `forms` and `leaves` what these are.   `outputs`: the leaves of the result, `heads`
    those that gradients come from.   `value`: the result for the caller.   `floor`: of the segment.
    """

    def __init__(
        self,
        what: str,
        f: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        argnums: Argnums,
        *,
        has_aux: bool = False,
        train_mode: bool | None = None,
    ) -> None:
        self.what = f"[{what}] {getattr(f, '__name__', repr(f))}"
        if not callable(f):
            raise ArgumentTypeError(f"[{what}] {f!r}: a function expected")
        self.single = isinstance(argnums, int | str)
        chosen = [argnums] if isinstance(argnums, int | str) else list(argnums)
        keys = [_place(self.what, f, len(args), kwargs, key) for key in chosen]
        if not keys or len(set(keys)) < len(keys):
            raise ArgumentError(f"{self.what}: argnums {argnums!r}: some arguments expected, each once")
        current = scope.get()
        self.recording = current.recorder is not None
        self.training = (current.training if self.recording else True) if train_mode is None else train_mode
        self.forms: list[Form] = []
        self.leaves: list[list[Any]] = []
        self.places: list[tuple[int, int]] = []
        for key in keys:
            leaves, form = flatten(args[key] if isinstance(key, int) else kwargs[key])
            self._check(key, leaves)
            self.places += [(len(self.leaves), i) for i, x in enumerate(leaves) if isinstance(x, Array)]
            self.forms.append(form)
            self.leaves.append(leaves)
        given, named, self.floor = list(args), dict(kwargs), number()
        self.variables = [_renamed(self.leaves[k][i]) for k, i in self.places]
        self.entries: list[Entry] = [entry_of(v) for v in self.variables]
        for key, form, leaves in zip(keys, self.forms, self._filled(self.variables), strict=True):
            (given if isinstance(key, int) else named)[key] = build(form, leaves)  # type: ignore[index]
        with record(self.training):
            result = f(*given, **named)
        if has_aux and (not isinstance(result, tuple) or len(result) != 2):
            raise ArgumentError(f"{self.what}: with has_aux a pair (value, other results) expected")
        self.aux: Any
        value, self.aux = (result[0], result[1]) if has_aux else (result, None)
        self.outputs, self.form = flatten(value)
        for y in self.outputs:
            if isinstance(y, BaseSparseNDArray):
                raise ArgumentTypeError(f"{self.what}: it gave {describe(y)}: dense arrays expected")
        self.heads = [y for y in self.outputs if isinstance(y, Array) and is_float(y._dtype)]
        if not self.heads:
            raise ArgumentTypeError(f"{self.what}: it gave {words(value)}: floating-point arrays expected")
        if not self.recording:
            self.aux = off_the_tape(self.aux)
            value = off_the_tape(value)
        self.value = value

    def _check(self, key: int | str, leaves: Sequence[Any]) -> None:
        word = f"argument {key!r}"
        for x in leaves:
            if isinstance(x, np.ndarray | np.generic | float | complex | BaseSparseNDArray):
                raise ArgumentTypeError(f"{self.what}: {word} has {describe(x)}: arrays expected, see nd.array")
            if isinstance(x, Array) and x._dtype == BOOL:
                raise ArgumentTypeError(f"{self.what}: {word} has {describe(x)}: boolean arrays have no gradient")
        if not any(isinstance(x, Array) for x in leaves):
            raise ArgumentTypeError(f"{self.what}: {word} has no array to differentiate by")

    def _filled(self, values: Sequence[Any]) -> list[list[Any]]:
        """The leaves of the chosen arguments with these in the places of the variables."""
        filled = [list(leaves) for leaves in self.leaves]
        for (k, i), value in zip(self.places, values, strict=True):
            filled[k][i] = value
        return filled

    def like_arguments(self, values: Sequence[Any]) -> Any:
        """These in the form of the chosen arguments, None where no array is; of a single one not in a tuple."""
        empty = [[x if isinstance(x, Array) else None for x in leaves] for leaves in self.leaves]
        for (k, i), value in zip(self.places, values, strict=True):
            empty[k][i] = value
        trees = [build(form, leaves) for form, leaves in zip(self.forms, empty, strict=True)]
        return trees[0] if self.single else tuple(trees)

    def like_result(self, values: Sequence[Any]) -> Any:
        """These in the form of the result, in the places of the heads; None where there is none."""
        rest = iter(values)
        heads = {id(h) for h in self.heads}
        return build(self.form, [next(rest) if id(y) in heads else None for y in self.outputs])

    def tangents(self, tree: Any) -> list[Array]:
        """The arrays of tangents for the variables."""
        trees = [tree] if self.single else tree
        if not isinstance(trees, list | tuple) or len(trees) != len(self.forms):
            raise ArgumentError(f"{self.what}: {len(self.forms)} tangents expected, one for each argument")
        leaves = [leaves_like(f, t, f"{self.what}: a tangent") for f, t in zip(self.forms, trees, strict=True)]
        return [self.fits(leaves[k][i], v, "tangent") for (k, i), v in zip(self.places, self.variables, strict=True)]

    def cotangents(self, tree: Any) -> list[Array]:
        """The arrays of cotangents for the heads."""
        heads = {id(h) for h in self.heads}
        leaves = leaves_like(self.form, tree, f"{self.what}: the cotangent")
        found = [(y, g) for y, g in zip(self.outputs, leaves, strict=True) if id(y) in heads]
        return [self.fits(g, y, "cotangent") for y, g in found]

    def fits(self, given: Any, like: Array, word: str) -> Array:
        """An array of this shape and dtype."""
        if not isinstance(given, Array) or given._meta != like._meta:
            raise ArgumentError(f"{self.what}: {word} {describe(given)} for {describe(like)}: the same expected")
        return given

    def gradients(
        self, cotangents: Sequence[Any], *, heads: Any = None, retain: bool = False, create: bool | None = None
    ) -> list[Array]:
        """With respect to the variables; recorded if somebody records."""
        create = scope.get().recorder is not None if create is None else create
        given = self.heads if heads is None else heads
        return in_mode(self.training, _pulled, self, given, cotangents, retain, create)  # type: ignore[no-any-return]

    def pushing(self) -> Callable[..., list[Array]]:
        """The function that takes tangents of the variables to those of the heads.

        The gradients are linear in the cotangents, so their own derivatives by these are what is looked for.
        """
        floor = number()
        dummies = [_marked(like_zeros(h)) for h in self.heads]
        entries: list[Entry] = [entry_of(u) for u in dummies]
        rows = self.gradients(dummies, retain=True, create=True)

        def push(tangents: Sequence[Array], retain: bool = False) -> list[Array]:
            create = scope.get().recorder is not None
            return in_mode(  # type: ignore[no-any-return]
                self.training,
                lambda: pulled(rows, tangents, self.heads, entries, floor, retain=retain or create, create=create),
            )

        return push


def _pulled(call: Call, heads: Any, cotangents: Sequence[Any], retain: bool, create: bool) -> list[Array]:
    return pulled(heads, cotangents, call.variables, call.entries, call.floor, retain=retain or create, create=create)


def _place(what: str, f: Any, given: int, kwargs: dict[str, Any], key: Any) -> int | str:
    """An argument, by position or by name, as where it was given."""
    if isinstance(key, str):
        if key in kwargs:
            return key
        names = list(signature(f).parameters)
        if key in names and names.index(key) < given:
            return names.index(key)
        raise ArgumentError(f"{what}: no argument {key!r} was given")
    if not isinstance(key, int) or not -given <= key < given:
        raise ArgumentError(f"{what}: {given} positional arguments were given, argnums {key!r}")
    return key % given


def _renamed(x: Array) -> Array:
    """A lazy copy that is on the tape, and on the caller's if `x` is and somebody records."""
    if scope.get().recorder is not None and entry_of(x) is not None:
        copied: Array = x._ops.copy(x)
        if entry_of(copied) is not None:
            return copied
    copy = _own(x)
    return _marked(within(Scope(None, False, True), x._ops.copy, x) if copy is None else copy)


def _own(x: Array) -> Array | None:
    """A small young array's value as another array, which costs less than sharing it."""
    raw = x._raw
    if raw is None or raw.size >= PAGE:
        return None
    copied = raw.copy()
    return type(x)._young(x._place, copied) if x._raw is raw else None


def _marked(fresh: Array) -> Array:
    """Begin the line of an array that nobody else knows, as a leaf without a gradient array.

    It is another one each time, so its graphs have no structure to be known by.
    """
    leaf = Leaf(None, "write")
    leaf.structure = UNKNOWN
    line = Line(fresh._shape, fresh._strides, fresh._offset, (leaf, 0))
    if fresh._raw is not None:
        fresh._line = line
    else:
        fresh._chunk.line = line
    return fresh


def like_zeros(x: Array) -> Any:
    """Zeros, of the same face and place."""
    if x.size < PAGE:
        return type(x)._young(x._place, np.zeros(x._shape, x._dtype))
    return within(Scope(None, False, True), x._ops.zeros_like, x)


def _constant(x: Array) -> Array:
    copy = _own(x)
    return x.detach() if copy is None else copy


def off_the_tape(tree: Any) -> Any:
    leaves, form = flatten(tree)
    return build(form, [_constant(x) if isinstance(x, Array) and entry_of(x) else x for x in leaves])
