"""nd.contrib's control flow: Python's loops and conditions, whose operators are recorded one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..engine import ArgumentError, ArgumentTypeError
from ..ndarray.array import Array
from ..ndarray.reading import describe
from .faces import composed, nd_face


def _leaves(value: Any, what: str) -> list[Any]:
    """The arrays of nested lists, from left to right."""
    if isinstance(value, Array):
        return [value]
    if not isinstance(value, list | tuple):
        raise ArgumentTypeError(f"[{what}] {describe(value)}: an array or nested lists of arrays expected")
    return [leaf for part in value for leaf in _leaves(part, what)]


def _like(value: Any, leaves: Any) -> Any:
    """Leaves in the nesting of a value."""
    return next(leaves) if isinstance(value, Array) else [_like(part, leaves) for part in value]


def _truth(value: Any, what: str) -> bool:
    if isinstance(value, Array):
        if value.size != 1:
            raise ArgumentError(f"[{what}] {describe(value)}: one element expected of a condition")
        return bool(value.asnumpy().reshape(-1)[0])
    return bool(value)


@composed(space="contrib")
def foreach(body: Callable[..., Any], data: Any, init_states: Any) -> Any:
    """Run a function over the slices of arrays along their first axis, with states from step to step.

    Parameters
    ----------
    body : (slices, states) -> (outputs, states)
    data : array (n, ...), or nested lists of such
    init_states : array, or nested lists of arrays

    Returns (outputs stacked along a new first axis, the last states), nested as body gives them.   Sync: never blocks.
    Raises: ArgumentError, ArgumentTypeError at the call.   Gradient: that of the operators.

    >>> from vardag import nd
    >>> out, state = nd.contrib.foreach(lambda x, s: (x + s, x + s), nd.array([1, 2, 3]), nd.zeros(1))
    >>> state.asnumpy()
    array([6.], dtype=float32)
    """
    arrays = _leaves(data, "foreach")
    _leaves(init_states, "foreach")
    lengths = {array.shape[:1] for array in arrays}
    if len(lengths) != 1 or lengths == {()}:
        raise ArgumentError("[foreach] data: arrays with first axes of one length expected")
    ((length,),) = lengths
    states, steps, form = init_states, [], None
    for i in range(length):
        made = body(_like(data, iter([array[i] for array in arrays])), states)
        form, states = _pair("foreach", made)
        steps.append(_leaves(form, "foreach"))
    if form is None:
        return [], states
    return _like(form, iter([nd_face.stack(*column, axis=0) for column in zip(*steps, strict=True)])), states


def _pair(what: str, made: Any) -> Any:
    if not isinstance(made, list | tuple) or len(made) != 2:
        raise ArgumentTypeError(f"[{what}] the function gives {type(made).__name__}: (outputs, states) expected")
    return made


@composed(space="contrib")
def while_loop(cond: Callable[..., Any], func: Callable[..., Any], loop_vars: Any, max_iterations: Any = None) -> Any:
    """Run a function while a condition holds, at most max_iterations times.

    Parameters
    ----------
    cond : (*loop_vars) -> number, or array of one element
    func : (*loop_vars) -> (outputs, new loop_vars)
    loop_vars : array, or list of arrays
    max_iterations : int

    Returns (outputs stacked along a new first axis, filled up with zeros to max_iterations; the last loop_vars).
    Sync: blocks for each condition.   Raises: ArgumentError, ArgumentTypeError at the call.   Gradient: that of the
    operators that ran.

    >>> from vardag import nd
    >>> out, (i,) = nd.contrib.while_loop(lambda i: i < 2, lambda i: (i * 10, [i + 1]), [nd.zeros(1)], max_iterations=3)
    >>> out.asnumpy().ravel()
    array([ 0., 10.,  0.], dtype=float32)
    """
    if max_iterations is None or int(max_iterations) < 0:
        raise ArgumentError(f"[while_loop] max_iterations {max_iterations}: a number expected")
    limit, single = int(max_iterations), isinstance(loop_vars, Array)
    values = [loop_vars] if single else list(loop_vars)
    if not values:
        raise ArgumentError("[while_loop] loop_vars: at least one array expected")
    _leaves(values, "while_loop")
    steps: list[list[Any]] = []
    form: Any = []
    while len(steps) < limit and _truth(cond(*values), "while_loop"):
        outputs, new = _pair("while_loop", func(*values))
        form = [] if outputs is None else outputs
        new = [new] if isinstance(new, Array) else list(new)
        if len(new) != len(values):
            raise ArgumentError(f"[while_loop] the function gives {len(new)} loop_vars, not {len(values)}")
        values = new
        steps.append(_leaves(form, "while_loop"))
    stacked = []
    for column in zip(*steps, strict=True):
        whole = nd_face.stack(*column, axis=0)
        if len(steps) < limit:
            fill = nd_face.zeros(shape=(limit - len(steps), *column[0].shape), dtype=whole.dtype, ctx=whole.context)
            whole = nd_face.concat(whole, fill, dim=0)
        stacked.append(whole)
    return _like(form, iter(stacked)), values[0] if single else values


@composed(space="contrib")
def cond(pred: Any, then_func: Callable[[], Any], else_func: Callable[[], Any]) -> Any:
    """What one of two functions gives, by a number or an array of one element.

    Sync: blocks for the condition.   Raises: ArgumentError at the call.   Gradient: that of the operators that ran.

    >>> from vardag import nd
    >>> nd.contrib.cond(nd.ones(1) < 2, lambda: nd.zeros(1), lambda: nd.ones(1)).asnumpy()
    array([0.], dtype=float32)
    """
    return then_func() if _truth(pred, "cond") else else_func()
