"""`custom_gradient`: a decorator that gives a function of arrays a gradient of its own.

Each call is a `Function` (function.py) of the arrays among its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

from ..engine import ArgumentError, ArgumentTypeError
from ..ndarray.array import Array
from ..ndarray.reading import describe
from .function import Function
from .tape import entry_of
from .trees import Form, build, flatten, leaves_like

F = TypeVar("F", bound=Callable[..., Any])


def custom_gradient(gradient: Callable[..., Any]) -> Callable[[F], F]:
    """A decorator: the gradient of the function below is what `gradient` says.

    Parameters
    ----------
    gradient : callable
        ``gradient(g, *args)``: `g` has the form of the function's result, with the head gradients in the place of its
        arrays; the arguments are those of the function, with the values that they had.  If it has a parameter ``out``,
        by keyword, it is given the result, too.  It gives the gradient of the argument, a tree like it, or a tuple with
        one for each if there are several; None, for a tree or an array, says that there is none.

    The function takes arrays, other values and trees of them by position, and gives an array or a tree of arrays; it
    runs with recording paused, and may not write its arguments.  Keyword arguments are passed on to both, and have no
    gradient.

    Sync: where the two do.   Raises: at the call ArgumentError for a write to an argument and for a keyword argument on
    the tape; at backward ArgumentError, which names the function, for gradients of another number, form or shape.
    Gradient: of any order; a further one is that of what `gradient` does.

    >>> from vardag import nd, autograd
    >>> @autograd.custom_gradient(lambda g, x: g * nd.minimum(nd.abs(x), 1.0))
    ... def rounded(x):
    ...     return nd.round(x)
    >>> x = nd.array([0.4, 2.6]); x.attach_grad()
    >>> with autograd.record():
    ...     y = rounded(x)
    >>> y.backward()
    >>> y.asnumpy(), x.grad.asnumpy()
    (array([0., 3.], dtype=float32), array([0.4, 1. ], dtype=float32))
    """
    if not callable(gradient):
        raise ArgumentTypeError(f"[custom_gradient] {gradient!r}: the function that gives the gradient expected")
    with_out = "out" in signature(gradient).parameters

    def decorate(f: F) -> F:
        name = getattr(f, "__name__", "custom_gradient")
        cls: Any = type(name, (_Custom,), {"f": staticmethod(f), "g": staticmethod(gradient), "with_out": with_out})

        @wraps(f)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            for key, value in kwargs.items():
                if any(isinstance(x, Array) and entry_of(x) is not None for x in flatten(value)[0]):
                    raise ArgumentError(f"[{name}] {key}: an array on the tape has to be given by position")
            leaves, form = flatten(args)
            places = [i for i, x in enumerate(leaves) if isinstance(x, Array)]
            if not places:
                raise ArgumentTypeError(f"[{name}] no argument is, or has, an array")
            call: _Custom = cls(form, leaves, places, kwargs)
            return call.result(call(*(leaves[i] for i in places)))

        return wrapped  # type: ignore[return-value]

    return decorate


class _Custom(Function):
    """One call.  Subclasses have the name that errors give.

    `form`, `leaves`: of the arguments; `places` says which are arrays.   `made`, `outputs`: the form of the result and
    its leaves, None in the place of arrays.
    """

    f: Callable[..., Any]
    g: Callable[..., Any]
    with_out: bool

    def __init__(self, form: Form, leaves: Sequence[Any], places: Sequence[int], named: dict[str, Any]) -> None:
        self.form, self.places, self.named = form, places, named
        self.leaves = [None if isinstance(x, Array) else x for x in leaves]

    def forward(self, *inputs: Array) -> Any:
        outputs, self.made = flatten(self.f(*self._arguments(inputs), **self.named))
        arrays = tuple(y for y in outputs if isinstance(y, Array))
        if not arrays:
            raise ArgumentTypeError(f"[{type(self).__name__}] it gave {outputs!r}: arrays expected")
        self.outputs = [... if isinstance(y, Array) else y for y in outputs]
        self.save_for_backward(*inputs, *(arrays if self.with_out else ()))
        return arrays

    def backward(self, *output_grads: Array) -> Any:
        number, name = len(self.places), type(self).__name__
        values = self.saved_tensors
        named = {**self.named, "out": self.result(values[number:])} if self.with_out else self.named
        given = self.g(self.result(output_grads), *self._arguments(values[:number]), **named)
        trees = [given] if len(self.form.parts) == 1 else given
        if not isinstance(trees, tuple | list) or len(trees) != len(self.form.parts):
            raise ArgumentError(
                f"[{name}] its gradient gave {_words(given)}: {len(self.form.parts)} gradients expected, one for each "
                "argument"
            )
        found: list[Any] = []
        for part, tree in zip(self.form.parts, trees, strict=True):
            found += [None] * _size(part) if tree is None else leaves_like(part, tree, f"[{name}] its gradient")
        return tuple(found[i] for i in self.places)

    def result(self, arrays: Sequence[Any]) -> Any:
        """The result, or its like, with these arrays."""
        rest = iter(arrays)
        return build(self.made, [next(rest) if y is ... else y for y in self.outputs])

    def _arguments(self, arrays: Sequence[Any]) -> Any:
        leaves = list(self.leaves)
        for i, x in zip(self.places, arrays, strict=True):
            leaves[i] = x
        return build(self.form, leaves)


def _size(form: Form) -> int:
    return 1 if form.kind is None else sum(map(_size, form.parts))


def _words(given: Any) -> str:
    return f"{len(given)}" if isinstance(given, tuple | list) else describe(given)
