"""`check`: gradients against differences, of any order.

One comparison is a *slope*: the derivative of a number along a direction, by central differences with two steps.  A
slope means something only where the function is smooth: the two steps must agree, and what lies to the left and to the
right of the point must come together as the step is halved, else the point is at a kink, or too near to one.
`check_operator` (testing.py) asks for slopes too, at the samples of an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError, Error
from ..ndarray.array import Array
from ..ndarray.dtype import FLOAT64, is_float
from ..ndarray.line import Scope, within
from ..ndarray.random import Draws, draws
from ..ndarray.reading import describe
from .transforms import vjp
from .trees import build, flatten, paths

STEP = 1e-5  # of the coarser differences, in float64
CLOSE = 2e-6  # how far apart two slopes may be, in parts of their scale
NEARBY = 0.02  # how far from a point that is at a kink another one is tried, in parts of its elements or of 1
TRIES = 20  # points


class GradientMismatch(Error, AssertionError):
    """A gradient is not what differences say: see `check`."""


class Slope(NamedTuple):
    """`value`: of the finer differences.   `smooth`: whether they mean anything.   `scale`: what is large here."""

    value: float
    smooth: bool
    scale: float

    def near(self, found: float) -> bool:
        """Is it the same derivative?"""
        return abs(found - self.value) < CLOSE * self.scale


def slope(f: Callable[[float], float]) -> Slope:
    """The derivative of f at 0."""
    middle = f(0.0)
    sides = [(f(h), f(-h), h) for h in (STEP, STEP / 2)]
    coarse, fine = ((right - left) / (2 * h) for right, left, h in sides)
    scale = max(1.0, abs(middle), abs(fine))
    apart, nearer = (abs(right - 2 * middle + left) / h for right, left, h in sides)
    smooth = abs(coarse - fine) < CLOSE * scale and nearer <= 0.75 * apart + CLOSE * scale
    return Slope(fine, bool(smooth), scale)


def weighted(arrays: Sequence[Any], weights: Sequence[Any]) -> float:
    """The sum of all elements, weighted."""
    with np.errstate(all="ignore"):
        return float(sum((a.asnumpy() * w).sum() for a, w in zip(arrays, weights, strict=True)))


class Checked(NamedTuple):
    """How many slopes `check` has compared, and how many points it has left because they were at a kink."""

    compared: int
    redrawn: int


def check(f: Callable[..., Any], *args: Any, order: int = 1, seed: int = 0, train_mode: bool = True) -> Checked:
    """Compare the gradients of a function with differences, in float64.

    Parameters
    ----------
    f : callable
        Of arrays, and trees of them; it gives an array or a tree with floating-point arrays.  It is called many times,
        with the same random numbers.
    args
        Where: floating-point arrays are cast to float64, everything else is passed on.
    order : int
        Up to which derivatives are compared: 2 compares those of the gradients, too, and so on.
    seed : int
        Of the directions and weights, which are random.
    train_mode : bool
        The mode that `f` runs in.

    For every floating-point array of the arguments the derivative of the weighted sum of the results, along a random
    direction in that array, is compared with central differences of two steps.  Where these say nothing, at a kink,
    another point nearby is taken.

    Returns how many derivatives were compared, and how many points were left.
    Sync: blocks.   Raises: GradientMismatch (an AssertionError), which names order and array; ArgumentError if no point
    nearby is smooth, or the value there is not finite or not of float64.

    >>> from vardag import nd, autograd
    >>> autograd.check(lambda x, y: nd.tanh(x) * y, nd.ones((2, 3)), nd.ones(3), order=2)
    Checked(compared=4, redrawn=0)
    """
    if not callable(f):
        raise ArgumentTypeError(f"[check] {f!r}: a function expected")
    if not isinstance(order, int) or order < 1:
        raise ArgumentError(f"[check] order {order!r}: 1 or more expected")
    run = _Check(f, args, np.random.default_rng(seed), train_mode)
    for k in range(1, order + 1):
        run.compare(k)
    return Checked(run.compared, run.redrawn)


class _Check:
    """`names`, `start`: of the arrays to differentiate by, their values.   `functions`: of these, one for each order,
    with the weights of its results; the next one gives the gradients of the last.   `noted`: the random numbers of `f`.
    """

    def __init__(self, f: Callable[..., Any], args: Any, rng: np.random.Generator, training: bool) -> None:
        self.f, self.rng, self.training = f, rng, training
        self.word = f"[check] {getattr(f, '__name__', repr(f))}"
        self.leaves, self.form = flatten(list(args))
        self.places = [i for i, x in enumerate(self.leaves) if isinstance(x, Array) and is_float(x._dtype)]
        if not self.places:
            raise ArgumentTypeError(f"{self.word}: no argument has a floating-point array")
        named = paths(self.form)
        self.names = [f"argument {named[i]}" for i in self.places]
        self.start = [self.leaves[i].asnumpy().astype(FLOAT64) for i in self.places]
        self.compared = self.redrawn = 0
        self.noted: list[Any] | None = None
        self.functions: list[Callable[..., list[Any]]] = [self._values]
        self.weights: list[list[Any]] = []

    def _values(self, *arrays: Array) -> list[Any]:
        """The floating-point results of f, with the same random numbers every time."""
        leaves = list(self.leaves)
        for i, x in zip(self.places, arrays, strict=True):
            leaves[i] = x
        numbers = Draws(None if self.noted is None else iter(self.noted), draws.get())
        token = draws.set(numbers)
        try:
            made = flatten(self.f(*build(self.form, leaves)))[0]
        finally:
            draws.reset(token)
        self.noted = numbers.taken if self.noted is None else self.noted
        found = [y for y in made if isinstance(y, Array) and is_float(y._dtype)]
        for y in found:
            if y._dtype != FLOAT64:
                raise ArgumentError(f"{self.word}: it gave {describe(y)}: float64 expected, as of its arguments")
        if not found:
            raise ArgumentTypeError(f"{self.word}: it gave no floating-point array")
        return found

    def _arrays(self, raws: Sequence[Any]) -> list[Array]:
        return [_like(self.leaves[i], raw) for i, raw in zip(self.places, raws, strict=True)]

    def _at(self, k: int, raws: Sequence[Any]) -> list[Any]:
        """What the function of this order gives at a point."""
        return within(Scope(None, self.training, False), lambda: self.functions[k - 1](*self._arrays(raws)))

    def _gradients(self, k: int) -> Callable[..., list[Any]]:
        """The function that gives the gradients of the k-th."""

        def function(*arrays: Array) -> list[Any]:
            values, pull = vjp(self.functions[k - 1], *arrays, train_mode=self.training)
            return list(pull([_like(y, w) for y, w in zip(values, self.weights[k - 1], strict=True)]))

        return function

    def compare(self, k: int) -> None:
        """The derivatives of order k."""
        values = self._at(k, self.start)
        self.weights.append([np.asarray(self.rng.standard_normal(y.shape)) for y in values])
        self.functions.append(self._gradients(k))
        if not np.isfinite(weighted(values, self.weights[-1])):
            raise ArgumentError(f"{self.word}: not all it gives there is finite (order {k})")
        for position, name in enumerate(self.names):
            self._compare(k, position, name)

    def _compare(self, k: int, position: int, name: str) -> None:
        point = self.start
        for _ in range(TRIES):
            v = np.asarray(self.rng.standard_normal(point[position].shape))
            known = slope(lambda t, at=point, v=v: self._moved(k, position, at, t * v))  # type: ignore[misc]
            if known.smooth:
                break
            self.redrawn += 1
            point = [x + NEARBY * np.maximum(1, abs(x)) * self.rng.uniform(-1, 1, x.shape) for x in self.start]
        else:
            raise ArgumentError(
                f"{self.word}: differences of two steps disagree at {TRIES} points nearby, along {name} (order {k}): "
                "it is not smooth there, or does not give the same every time"
            )
        found = float((self._at(k + 1, point)[position].asnumpy() * v).sum())
        self.compared += 1
        if not known.near(found):
            raise GradientMismatch(
                f"{self.word}: order {k}, {name}: the gradient gives {found:.10g} along a direction, differences "
                f"{known.value:.10g}"
            )

    def _moved(self, k: int, position: int, at: Sequence[Any], by: Any) -> float:
        values = list(at)
        values[position] = values[position] + by
        return weighted(self._at(k, values), self.weights[k - 1])


def _like(array: Array, raw: Any) -> Array:
    """An array of the same face and place with this value."""
    return type(array)._young(array._place, np.array(raw, order="C"))
