"""Marking, and the functional face of 2017: mark, compute_gradient, grad_and_loss, grad(func)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import Any
from weakref import ref

from ..engine import ArgumentError, ArgumentTypeError
from ..ndarray.array import Array
from ..ndarray.dtype import BOOL
from ..ndarray.reading import describe
from ..ndarray.sparse import zeros
from ..ndarray.sparse_arrays import RowSparseNDArray
from ..operators.faces import numpy_face
from .backward import as_face, backward, gradients_of, leaf_gradients
from .scope import record
from .tape import Leaf, entry_of, mark
from .trees import flatten

REQUESTS = ("write", "add", "null")
#: arrays marked without gradient arrays in this context, in order, until compute_gradient
_marked: ContextVar[tuple[ref[Array], ...]] = ContextVar("vardag_marked", default=())


def mark_variables(variables: Any, gradients: Any = None, grad_reqs: Any = "write") -> None:
    """Mark arrays: gradients with respect to them are computed.

    Parameters
    ----------
    variables : array or list of arrays
        Floating-point or integer.  One that was on the tape is cut from it.
    gradients : array or list of arrays like them, dense or row-sparse
        Where `backward` puts the gradients; default: new zeros.
    grad_reqs : str or list of str
        "write" replaces the gradient, "add" adds to it, "null" computes none.

    Never blocks.   Raises: ArgumentError, ArgumentTypeError at the call, before any array is marked.
    """
    arrays = _mark(variables, gradients, grad_reqs)
    if gradients is None:
        known = [r for r in _marked.get() if (a := r()) is not None and not any(a is b for b in arrays)]
        _marked.set((*known, *(ref(a) for a in arrays)))


def attach_grad(array: Array, grad_req: str, stype: str | None = None) -> None:
    """Mark one array, with new zeros of a storage type as its gradient array."""
    if stype not in (None, "default", "row_sparse"):
        raise ArgumentError(f"[attach_grad] stype {stype!r}: 'default' or 'row_sparse' expected")
    rows = [zeros("row_sparse", array.shape, array.context, array._dtype)] if stype == "row_sparse" else None
    _mark(array, rows, grad_req)


def zero_grad(variables: Any) -> None:
    """Set the gradients of marked arrays to zeros; arrays that are not marked are passed over.

    `variables`: an array, or a tree (lists, tuples, dicts) of arrays and other values.   Never blocks, and is never
    recorded.

    >>> from vardag import nd, autograd
    >>> w, b = nd.ones(2), nd.ones(2)
    >>> w.attach_grad("add"); b.attach_grad("add")
    >>> with autograd.record():
    ...     y = w * 3 + b
    >>> y.backward()
    >>> autograd.zero_grad([w, {"bias": b}])
    >>> w.grad.asnumpy(), b.grad.asnumpy()
    (array([0., 0.], dtype=float32), array([0., 0.], dtype=float32))
    """
    for x in flatten(variables)[0]:
        if isinstance(x, Array):
            x.zero_grad()


def _mark(variables: Any, gradients: Any, grad_reqs: Any) -> list[Array]:
    """Check everything, then mark."""
    arrays = [variables] if isinstance(variables, Array) else list(variables)
    given = [gradients] if isinstance(gradients, Array | RowSparseNDArray) else gradients
    requests = [grad_reqs] * len(arrays) if isinstance(grad_reqs, str) else list(grad_reqs)
    if len(requests) != len(arrays) or (given is not None and len(given) != len(arrays)):
        raise ArgumentError(f"[mark_variables] {len(arrays)} variables: as many gradients and requests expected")
    for i, (array, request) in enumerate(zip(arrays, requests, strict=True)):
        if not isinstance(array, Array):
            raise ArgumentTypeError(f"[mark_variables] {array!r}: an array expected")
        if array._dtype == BOOL or array._dtype.kind == "c":
            raise ArgumentTypeError(f"[mark_variables] {describe(array)}: boolean and complex arrays have no gradient")
        if request not in REQUESTS:
            raise ArgumentError(f"[mark_variables] request {request!r}: one of {', '.join(REQUESTS)} expected")
        if given is not None and not _fits(given[i], array):
            raise ArgumentError(
                f"[mark_variables] variable {describe(array)}, gradient {describe(given[i])}: the same expected"
            )
    for i, (array, request) in enumerate(zip(arrays, requests, strict=True)):
        mark(array, array._ops.zeros_like(array.detach()) if given is None else given[i], request)
    return arrays


def _fits(gradient: Any, array: Array) -> bool:
    if isinstance(gradient, RowSparseNDArray):
        return (gradient.shape, gradient._dtype) == array._meta
    return isinstance(gradient, Array) and gradient._meta == array._meta


def compute_gradient(outputs: Any) -> list[Array]:
    """The gradients of the outputs' sum with respect to the marked arrays, in the order they were marked.

    They are those that `mark_variables` marked without gradient arrays since the last call (zeros for one that the
    outputs don't depend on); if there are none, all marked arrays that the outputs depend on.  The records of this
    graph are freed.

    Sync: blocks until the gradients are there.   Raises: as `backward`.
    """
    heads = [outputs] if isinstance(outputs, Array) else list(outputs)
    arrays = [a for r in _marked.get() if (a := r()) is not None and isinstance(_leaf(a), Leaf)]
    leaves = [_leaf(a) for a in arrays] or None
    found = leaf_gradients(heads, leaves)
    _marked.set(())
    return found


def _leaf(array: Array) -> Any:
    entry = entry_of(array)
    return None if entry is None else entry[0]


def grad_and_loss(func: Callable[..., Any], argnum: int | Sequence[int] | None = None) -> Callable[..., Any]:
    """A function that gives ``(gradients, outputs)`` of `func`.

    Parameters
    ----------
    func : arrays -> array or list of arrays
    argnum : int or list of int
        The arguments to differentiate with respect to; default all.

    >>> from vardag import nd, autograd
    >>> gradients, loss = autograd.grad_and_loss(lambda x: x * x)(nd.array([3.]))
    >>> gradients[0].asscalar(), loss.asscalar()
    (np.float32(6.0), np.float32(9.0))
    """

    @wraps(func)
    def wrapped(*args: Any) -> tuple[list[Array], Any]:
        chosen: Sequence[int] = range(len(args)) if argnum is None else [argnum] if isinstance(argnum, int) else argnum
        variables = [args[i] for i in chosen]
        for variable in variables:
            if not isinstance(variable, Array):
                raise ArgumentTypeError(f"[grad_and_loss] argument {variable!r}: an array expected")
        gradients = [numpy_face.zeros_like(v.detach()) for v in variables]
        mark_variables(variables, [as_face(type(v), g) for v, g in zip(variables, gradients, strict=True)])
        with record():
            outputs = func(*args)
        backward(outputs)
        return [v.grad for v in variables], outputs

    return wrapped


def grad(
    heads: Any,
    variables: Any = None,
    head_grads: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    train_mode: bool = True,
    *,
    unused: str = "error",
) -> Any:
    """The gradients of the heads with respect to some arrays, as new arrays; their ``grad`` stays.

    For a function (the form of 2017) a function that gives its gradients; see `grad_and_loss`.

    Parameters
    ----------
    variables : array or list of arrays
        Marked ones or intermediate ones of the graph.  For a function: the positions of the arguments to differentiate
        with respect to, default all.
    retain_graph : bool
        Default: `create_graph`.
    create_graph : bool
        Record the gradient operators, so that the results can be differentiated again.
    unused : "error", "zeros" or "none"
        What to do for a variable that no head reaches.
    heads, head_grads, train_mode
        As for `backward`.

    Returns: an array for one variable that is not in a list, else a list.
    Sync: never blocks.   Raises: GraphError, ArgumentError at the call.

    >>> from vardag import nd, autograd
    >>> x = nd.array([2.]); x.attach_grad()
    >>> with autograd.record():
    ...     y = x ** 3
    ...     g = autograd.grad(y, x, create_graph=True)
    >>> autograd.grad(g, x).asscalar()
    np.float32(12.0)
    """
    if not callable(heads) or isinstance(heads, Array):
        return gradients_of(heads, variables, head_grads, retain_graph, create_graph, train_mode, unused)
    both = grad_and_loss(heads, variables)

    @wraps(both)
    def wrapped(*args: Any) -> Any:
        return both(*args)[0]

    return wrapped
