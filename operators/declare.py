"""Operators that users declare, in the way of the built-in ones (schema.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import ndarray
from ..engine import ArgumentError, InternalError
from ..ndarray import _late
from ..ndarray.array import Array
from ..ndarray.ndarray import NDArray
from ..ndarray.shape import broadcast
from .faces import Rule, nd_face, numpy_face
from .schema import Attributes, Inferred, Metas, Operator, registry
from .texts import raw

LONG = 1e12  # units of work
RULE = Rule(method=False)


class UserOperator:
    """What `vardag.operator` makes of a kernel: a function of arrays, with gradients once `grad` has named them.

    `declaration`: the operator as the library sees it.
    """

    def __init__(self, declaration: Operator) -> None:
        self.declaration = declaration
        self.__name__ = self.__qualname__ = declaration.name
        self.__doc__ = declaration.doc

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Push it.  Raises at the call what `infer` refuses, at the wait what the kernel raises."""
        given = (*arguments, *named.values())
        canonical = any(isinstance(x, Array) and not isinstance(x, NDArray) for x in given)
        return getattr(numpy_face if canonical else nd_face, self.declaration.name)(*arguments, **named)

    def grad(self, *names: str, **texts: Any) -> Any:
        """Declare gradients: ``op.grad(x=text, y=text)``, which gives the operator, or as a decorator of one joint text
        for the inputs named.  Inputs without a text have no gradient.

        A text is ``text(F, <names>)``: what it names it is given, and nothing else is kept for it: ``g`` (the gradient
        of the output; ``g_<name>`` of one of several), inputs, outputs, saved outputs, attributes, ``<input>_shape``.
        It uses the operators of F, where this one is too, and Python's on what it is given; then every order of
        derivative exists.   Raises: ArgumentError at the call if it names something else.
        """
        declared = _told(self.declaration.grad, *names, **texts)
        return self if declared is self.declaration else declared

    def __repr__(self) -> str:
        return f"<operator {self.__name__}>"


def operator(
    kernel: Callable[..., Any] | None = None, *, name: str | None = None, infer: Any = None, **options: Any
) -> Any:
    """Declare an operator of your own from its kernel.

    Parameters
    ----------
    kernel : callable
        ``kernel(xp, <inputs>, *, <attributes>, <outputs>)`` on raw arrays: the inputs by position (None as default
        makes one optional), the attributes by keyword with their defaults, then what it is to fill, by default
        ``out``, by keyword without one.  `xp` is the device's NumPy.  It runs on a worker, when its inputs are ready;
        inputs may not be written.
    name : str
        Default: the kernel's.  `nd` and gradient texts know it by this name.
    infer : callable
        ``infer(metas, attributes) -> (metas of the outputs, attributes)``, a meta being (shape, dtype), that of an
        input left out None.  It runs at the call; the ValueError that it raises becomes one that names the operator
        and its operands.  Default: each output has the shape that the inputs broadcast to and the first one's dtype.
    options
        ``outputs``, ``saves``, ``updates`` (state that the kernel changes in place), ``samples`` and the others of the
        built-in declarations: see `vardag.operators.schema.operator`.

    Gives the operator, a function of arrays; name its gradients with `UserOperator.grad`.  Declaring one's own a second
    time replaces it.   Raises: ArgumentError at the call, for a name that is taken or a kernel of another form.

    >>> import vardag as vd
    >>> from vardag import nd, autograd
    >>> @vd.operator
    ... def cube(xp, x, *, scale=1.0, out):
    ...     xp.multiply(x * x * x, scale, out=out)
    >>> _ = cube.grad(x=lambda F, g, x, scale: g * x * x * (3 * scale))
    >>> x = nd.array([1, 2]); x.attach_grad()
    >>> with autograd.record():
    ...     y = cube(x, scale=2.0)
    >>> y.backward()
    >>> x.grad.asnumpy()
    array([ 6., 24.], dtype=float32)
    """
    if kernel is None:
        return lambda function: operator(function, name=name, infer=infer, **options)
    name = name or kernel.__name__
    taken = registry.has_own(name) or (name not in registry and hasattr(ndarray, name))
    if taken or not name.isidentifier() or name.startswith("_"):
        raise ArgumentError(f"[operator] the name {name!r} is taken, or cannot be one")
    if infer is None:
        infer = _like_operands(len(options.get("outputs", "x")) + len(options.get("saves", ())))
        options.setdefault("broadcasts", True)
    options = {"cost": _long, "nd": RULE, **options}
    declaration: Operator = _told(Operator, name, kernel, infer, **options)
    registry.put(declaration)
    numpy_face._publish(declaration)
    nd_face._publish(declaration)
    for owner in (raw, _late.numpy_face, _late.nd_face, ndarray):
        vars(owner).pop(name, None)  # of one that it replaces; last, for others look it up meanwhile
    return UserOperator(declaration)


def _long(metas: Metas, made: Metas, attributes: Attributes) -> float:
    """A user's kernel runs on a worker, whatever it does."""
    return LONG


def _like_operands(outputs: int) -> Callable[[Metas, Attributes], Inferred]:
    def infer(metas: Metas, attributes: Attributes) -> Inferred:
        given = [meta for meta in metas if meta is not None]
        shape = broadcast(*(meta[0] for meta in given))
        return ((shape, given[0][1]),) * outputs, attributes

    return infer


def _told(declare: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What is wrong with a declaration is the caller's matter here."""
    try:
        return declare(*arguments, **named)
    except (InternalError, TypeError) as error:
        raise ArgumentError(f"[operator] {error}") from None
