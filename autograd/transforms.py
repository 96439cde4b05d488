"""Transforms of functions: value_and_grad, vjp, jvp, jacobian, hessian, hvp, over trees of arrays; see calls.py.

Their names and forms are those of JAX, where that has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError
from ..ndarray.array import Array
from ..operators.faces import numpy_face
from .backward import as_face
from .calls import Argnums, Call, like_zeros, off_the_tape
from .scope import record


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
    Source: J. Townsend, "A new trick for calculating Jacobian vector products" (2017).

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

    Parameters and what is raised are those of `jvp`; both results are tuples with a tree for each argument.  The
    Hessian itself is never made: it costs a gradient and another one of that.

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
    return call.like_arguments(first if call.recording else off_the_tape(first)), call.like_arguments(second)


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
        found.append([_stacked([p[i] for p in passes], 0, head._shape, v) for i, v in enumerate(call.variables)])
    return found


def _by_columns(call: Call) -> list[list[Any]]:
    """The same, by a pass for each element of the variables."""
    push = call.pushing()
    found: list[list[Any]] = [[] for _ in call.heads]
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
        return type(variable)._young(variable._place, np.zeros(whole, variable._dtype))
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
