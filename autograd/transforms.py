"""Transforms of functions: value_and_grad, vjp, jvp, jacobian, hessian, hvp, over trees of arrays.

A transform calls the function with new names for the arrays that it is differentiated by: lazy copies, marked, or
recorded if an array is on the tape and somebody records, so that transforms nest.  Nothing of the caller's is marked,
freed or written.  What is asked of the tape is a walk within the call's segment (segment.py), whatever the transform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from typing import Any

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError
from ..ndarray.array import Array
from ..ndarray.dtype import BOOL, is_float
from ..ndarray.line import Line, Scope, scope, within
from ..ndarray.reading import describe
from ..ndarray.sparse_arrays import BaseSparseNDArray
from ..operators.faces import numpy_face
from .backward import as_face
from .scope import record
from .segment import in_mode, pulled
from .tape import Entry, Leaf, entry_of, number
from .trees import Form, build, flatten, leaves_like

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
        value, self.aux = result if has_aux else (result, None)
        self.outputs, self.form = flatten(value)
        for y in self.outputs:
            if isinstance(y, BaseSparseNDArray):
                raise ArgumentTypeError(f"{self.what}: it gave {describe(y)}: dense arrays expected")
        self.heads = [y for y in self.outputs if isinstance(y, Array) and is_float(y._dtype)]
        if not self.heads:
            raise ArgumentTypeError(f"{self.what}: it gave {value!r}: floating-point arrays expected")
        if not self.recording:
            self.aux = _off_the_tape(self.aux)
            value = _off_the_tape(value)
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
    return pulled(
        heads, cotangents, call.variables, call.entries, call.floor, retain=retain or create, create=create
    )


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
    return _marked(within(Scope(None, False, True), x._ops.copy, x))


def _marked(fresh: Array) -> Array:
    """Begin the line of an array that nobody else knows, as a leaf without a gradient array."""
    line = Line(fresh._shape, fresh._strides, fresh._offset, (Leaf(None, "write"), 0))
    if fresh._raw is not None:
        fresh._line = line
    else:
        fresh._chunk.line = line
    return fresh


def like_zeros(x: Array) -> Any:
    """Zeros, of the same face."""
    return as_face(type(x), numpy_face.zeros(shape=x._shape, dtype=x._dtype, ctx=x.context))


def _off_the_tape(tree: Any) -> Any:
    leaves, form = flatten(tree)
    return build(form, [x.detach() if isinstance(x, Array) and entry_of(x) is not None else x for x in leaves])


# ---- the transforms --------------------------------------------------------------------------------------------------


def value_and_grad(
    f: Callable[..., Any], argnums: Argnums = 0, *, has_aux: bool = False, train_mode: bool | None = None
) -> Callable[..., Any]:
    """A function that gives ``(value, gradients)`` of `f`: of the sum of all elements that `f` gives.

    Parameters
    ----------
    f : callable
        Its arguments and its result are arrays of any shapes, or trees of them: lists, tuples, named tuples and dicts,
        nested.  It is given lazy copies, so what it writes into them stays inside.
    argnums : int, str, or a sequence of them
        The arguments to differentiate by, by position or by name.
    has_aux : bool
        `f` gives ``(value, other)``, and the new function ``((value, other), gradients)``.
    train_mode : bool
        The mode that `f` and its gradients run in.  Default: in a recording scope that of the scope, else training.

    The gradients have the form of the argument (for a sequence of argnums they are a tuple); in the place of what is no
    array stands None.  In a recording scope value and gradients can be differentiated again, and so can transforms of
    transforms; else they are constants.

    Sync: never blocks.   Raises: ArgumentError, ArgumentTypeError at the call of the new function.

    >>> from vardag import nd, autograd
    >>> def loss(p, x):
    ...     return ((p["w"] * x + p["b"]) ** 2).sum()
    >>> p = {"w": nd.array([2.]), "b": nd.array([1.])}
    >>> value, g = autograd.value_and_grad(loss)(p, nd.array([3.]))
    >>> value.asscalar(), g["w"].asscalar(), g["b"].asscalar()
    (np.float32(49.0), np.float32(42.0), np.float32(14.0))
    """

    @wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = Call("value_and_grad", f, args, kwargs, argnums, has_aux=has_aux, train_mode=train_mode)
        gradients = call.like_arguments(call.gradients([None] * len(call.heads)))
        return ((call.value, call.aux) if has_aux else call.value), gradients

    return wrapped


def vjp(f: Callable[..., Any], *args: Any, train_mode: bool | None = None) -> tuple[Any, Callable[[Any], Any]]:
    """``(value, pull)``: `pull` takes cotangents of the value to those of the arguments, a tuple with one for each.

    Parameters
    ----------
    f, train_mode
        As for `value_and_grad`.
    args : trees of arrays

    `pull` takes a tree like the value, with arrays of the same shapes and dtypes (anything where the value has no
    floating-point array), and may be called any number of times; the graph lives as long as it.  In a recording scope
    what it gives can be differentiated by the cotangents, and by the arguments.

    Sync: never blocks, `pull` neither.   Raises: ArgumentError, ArgumentTypeError at the call.

    >>> from vardag import nd, autograd
    >>> value, pull = autograd.vjp(lambda x, y: x * y, nd.array([2.]), nd.array([3.]))
    >>> [g.asscalar() for g in pull(nd.array([10.]))]
    [np.float32(30.0), np.float32(20.0)]
    """
    call = Call("vjp", f, args, {}, tuple(range(len(args))), train_mode=train_mode)
    if call.recording:  # a later write to the value is not meant
        with record(call.training):
            copies = {id(h): h._ops.copy(h) for h in call.heads}
        outputs = [copies.get(id(y), y) for y in call.outputs]
        call.heads, call.outputs = [copies[id(h)] for h in call.heads], outputs

    def pull(cotangents: Any) -> Any:
        return call.like_arguments(call.gradients(call.cotangents(cotangents), retain=True))

    return call.value, pull


def jvp(
    f: Callable[..., Any], args: Sequence[Any], tangents: Sequence[Any], *, train_mode: bool | None = None
) -> tuple[Any, Any]:
    """``(value, tangent)``: the derivative of `f` along a direction in its arguments.

    Parameters
    ----------
    f, train_mode
        As for `value_and_grad`.
    args, tangents : sequences of trees
        The arguments, and for each a tree like it with arrays of the same shapes and dtypes.

    The tangent has the form of the value, with None where that has no floating-point array.  It is the derivative of a
    gradient by its cotangent, so it costs two backward passes, and exists wherever second derivatives do.

    Sync: never blocks.   Raises: ArgumentError, ArgumentTypeError at the call.

    >>> from vardag import nd, autograd
    >>> value, tangent = autograd.jvp(lambda x: x * x, [nd.array([2., 3.])], [nd.array([1., 10.])])
    >>> tangent.asnumpy()
    array([ 4., 60.], dtype=float32)
    """
    args, tangents = _sequences("jvp", args, tangents)
    call = Call("jvp", f, args, {}, tuple(range(len(args))), train_mode=train_mode)
    given = call.tangents(tangents)
    return call.value, call.like_result(call.pushing()(given))


def hvp(
    f: Callable[..., Any], args: Sequence[Any], tangents: Sequence[Any], *, train_mode: bool | None = None
) -> tuple[Any, Any]:
    """``(gradients, products)``: the gradients of the sum of what `f` gives, and its Hessian times the tangents.

    Parameters and what is raised are those of `jvp`; both results are tuples with a tree for each argument.  The Hessian
    itself is never made: it costs a gradient and another one of that.

    >>> from vardag import nd, autograd
    >>> (g,), (product,) = autograd.hvp(lambda x: x ** 3, [nd.array([2.])], [nd.array([1.])])
    >>> g.asscalar(), product.asscalar()
    (np.float32(12.0), np.float32(12.0))
    """
    args, tangents = _sequences("hvp", args, tangents)
    call = Call("hvp", f, args, {}, tuple(range(len(args))), train_mode=train_mode)
    given = call.tangents(tangents)
    first = call.gradients([None] * len(call.heads), retain=True, create=True)
    second = call.gradients(given, heads=first)
    return call.like_arguments(first if call.recording else _off_the_tape(first)), call.like_arguments(second)


def _sequences(what: str, args: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
    for word, given in (("args", args), ("tangents", tangents)):
        if not isinstance(given, list | tuple):
            raise ArgumentTypeError(f"[{what}] {word} {type(given).__name__}: a list or tuple, one for each argument")
    if len(args) != len(tangents):
        raise ArgumentError(f"[{what}] {len(args)} arguments, {len(tangents)} tangents: as many expected")
    return list(args), list(tangents)


def jacobian(
    f: Callable[..., Any], argnums: Argnums = 0, *, mode: str = "auto", train_mode: bool | None = None
) -> Callable[..., Any]:
    """A function that gives the derivatives of every element that `f` gives by every element of its arguments.

    Parameters
    ----------
    f, argnums, train_mode
        As for `value_and_grad`.
    mode : "reverse", "forward" or "auto"
        A backward pass for each element of the result, or one for each element of the arguments; "auto" takes what is
        fewer.  They agree but for rounding.

    Returns: for a result of shape (s...) and an argument of shape (t...) an array of shape (s..., t...); for trees the
    form of the result, with the form of the arguments in the place of each of its arrays.

    Sync: never blocks.   Raises: ArgumentError, ArgumentTypeError at the call of the new function.

    >>> from vardag import nd, autograd
    >>> autograd.jacobian(lambda x: x * x)(nd.array([1., 2.])).asnumpy()
    array([[2., 0.],
           [0., 4.]], dtype=float32)
    """
    if mode not in ("auto", "reverse", "forward"):
        raise ArgumentError(f"[jacobian] mode {mode!r}: 'auto', 'reverse' or 'forward' expected")

    @wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        call = Call("jacobian", f, args, kwargs, argnums, train_mode=train_mode)
        rows, columns = (sum(x.size for x in arrays) for arrays in (call.heads, call.variables))
        forward = mode == "forward" or (mode == "auto" and columns < rows)
        blocks = _by_columns(call) if forward else _by_rows(call)
        return call.like_result([call.like_arguments(row) for row in blocks])

    return wrapped


def _by_rows(call: Call) -> list[list[Any]]:
    """For each head and variable the block of the Jacobian, by a backward pass for each element of the heads."""
    found = []
    for head in call.heads:
        passes = [call.gradients([unit], heads=[head], retain=True) for unit in _units(head)]
        found.append(
            [_stacked([p[i] for p in passes], 0, head._shape, v) for i, v in enumerate(call.variables)]
        )
    return found


def _by_columns(call: Call) -> list[list[Any]]:
    """The same, by a pass for each element of the variables."""
    push, found = call.pushing(), [[] for _ in call.heads]  # type: list[list[Any]]
    for variable in call.variables:
        passes = []
        for unit in _units(variable):
            given = [unit if v is variable else like_zeros(v) for v in call.variables]
            passes.append(push(given, True))
        for i, head in enumerate(call.heads):
            found[i].append(_stacked([p[i] for p in passes], -1, head._shape, variable))
    return found


def _units(like: Array) -> list[Array]:
    """For each element an array that is 1 there and 0 elsewhere."""
    units = []
    for k in range(like.size):
        raw = np.zeros(like._shape, like._dtype)
        raw.reshape(-1)[k] = 1
        units.append(type(like)._young(like._place, raw))
    return units


def _stacked(parts: Sequence[Array], axis: int, shape: Any, variable: Array) -> Any:
    whole = (*shape, *variable._shape)
    if not math.prod(whole):
        return as_face(type(variable), numpy_face.zeros(shape=whole, dtype=variable._dtype, ctx=variable.context))
    return as_face(type(variable), numpy_face.reshape(numpy_face.stack(*parts, axis=axis), shape=whole))


def hessian(f: Callable[..., Any], argnums: Argnums = 0, *, train_mode: bool | None = None) -> Callable[..., Any]:
    """A function that gives the second derivatives of the sum of all elements that `f` gives.

    Parameters and what is raised are those of `value_and_grad`.

    Returns: for an argument of shape (t...) an array of shape (t..., t...); for trees, and several arguments, the form
    of the arguments with the same form in the place of each array.   Sync: never blocks.

    >>> from vardag import nd, autograd
    >>> autograd.hessian(lambda x: x[0] * x[1] ** 2)(nd.array([1., 2.])).asnumpy()
    array([[0., 4.],
           [4., 2.]], dtype=float32)
    """
    both = value_and_grad(f, argnums, train_mode=train_mode)

    @wraps(f)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        return both(*args, **kwargs)[1]

    return jacobian(gradient, argnums, mode="reverse", train_mode=train_mode)
