"""Updates of weights, part by part: a formula becomes C calls for each part of its operands.

A *formula* is ``formula(do, weight, grad, <states>, *, <attributes>, out)``.  It calls the methods of `do`, a `Calls`,
which notes them; what it needs between two of them is scratch memory, one block for all parts.  So an update goes over
its operands once, whatever their size, and what it makes on the way stays in the cache.

Halves are widened to float32 part by part; states and results are narrowed when the part is done.  An element's bits do
not depend on where in a part it stands, so the cut is not part of the definition of an update.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..ndarray.device import HOST, RawArray
from ..ndarray.dtype import FLOAT32, NARROW
from ..ndarray.streams import computing
from .schema import Step

PART = 1 << 15  # elements

Formula = Callable[..., None]


def _noting(ufunc: np.ufunc) -> Callable[..., None]:
    """The method that notes a call of this ufunc; its last argument is where the result goes."""

    def method(self: Calls, *arrays: Any) -> None:
        self.steps.append((ufunc, *arrays))

    return method


class Calls:
    """C calls, noted for later.  `new` gives scratch memory of the shape of the present part."""

    __slots__ = ("_blocks", "_dtype", "_most", "_shape", "_size", "_taken", "steps")

    add, subtract = _noting(np.add), _noting(np.subtract)
    multiply, divide = _noting(np.multiply), _noting(np.divide)
    sqrt, sign, absolute = _noting(np.sqrt), _noting(np.sign), _noting(np.absolute)
    negative, positive = _noting(np.negative), _noting(np.positive)

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._blocks: list[RawArray] = []
        self._shape: tuple[int, ...] = ()
        self._size, self._taken, self._most = 0, 0, 0
        self._dtype: Any = None

    def begin(self, like: RawArray, dtype: Any) -> None:
        """The next part is like this; scratch memory is of this dtype.  What the last part had is free again."""
        if dtype != self._dtype or like.size > self._most:
            self._blocks, self._dtype, self._most = [], dtype, like.size
        self._shape, self._size, self._taken = like.shape, like.size, 0

    def new(self) -> RawArray:
        """Scratch memory with arbitrary contents."""
        if self._taken == len(self._blocks):
            self._blocks.append((computing() or HOST).empty((self._most,), self._dtype))
        block = self._blocks[self._taken]
        self._taken += 1
        return (block if block.size == self._size else block[: self._size]).reshape(self._shape)

    def copy(self, x: Any, out: Any) -> None:
        """out[...] = x, cast to its dtype."""
        self.steps.append((operator.setitem, out, ..., x))

    def limit(self, x: Any, most: float) -> None:
        """x limited to [-most, most], in place; a negative `most` is none."""
        if most >= 0:
            self.steps.append((partial(np.maximum, out=x), x, -most))
            self.steps.append((partial(np.minimum, out=x), x, most))

    def above(self, x: Any, least: float) -> None:
        """x, at least `least`, in place."""
        self.steps.append((partial(np.maximum, out=x), x, least))

    def gradient(
        self, grad: Any, weight: Any, rescale: float, limit: float, before: float = 0, after: float = 0,
        factor: float = 1, *, own: bool = False,
    ) -> Any:  # fmt: skip
        """`factor` times g: grad, rescaled, plus `before` times weight, limited, plus `after` times weight.

        `own`: scratch memory, which may be overwritten.  Otherwise it may be grad itself.
        """
        early = factor if limit < 0 else 1.0
        if not (own or before or after) and limit < 0 and rescale * factor == 1:
            return grad
        g = self.new()
        self.multiply(grad, rescale * early, g)
        decay = self.new() if before or after else None
        if before:
            self.multiply(weight, before * early, decay)
            self.add(g, decay, g)
        self.limit(g, limit)
        if early != factor:
            self.multiply(g, factor, g)
        if after:
            self.multiply(weight, after * factor, decay)
            self.add(g, decay, g)
        return g

    def average(self, state: Any, rate: float, g: Any, t: Any, *, squared: bool = False) -> None:
        """state = rate * state + (1 - rate) * g, or of g * g; t is overwritten."""
        self.multiply(state, rate, state)
        if squared:
            self.multiply(g, g, t)
            self.multiply(t, 1 - rate, t)
        else:
            self.multiply(g, 1 - rate, t)
        self.add(state, t, state)


def parts(arrays: Sequence[Any], shape: tuple[int, ...], size: int = PART) -> Iterator[list[Any]]:
    """The arrays, those of this shape in parts of about `size` elements, the others whole."""
    same = [a for a in arrays if a.shape == shape]
    total = same[0].size
    if total <= size:
        yield list(arrays)
        return
    if all(a.flags.c_contiguous for a in same):
        flat = [a.reshape(-1) if a.shape == shape else a for a in arrays]
        for first in range(0, total, size):
            where = slice(first, first + size)
            yield [f[where] if a.shape == shape else a for a, f in zip(arrays, flat, strict=True)]
        return
    axis = max(range(len(shape)), key=shape.__getitem__)
    step = max(1, size * shape[axis] // total)
    for first in range(0, shape[axis], step):
        index = (*(slice(None),) * axis, slice(first, first + step))
        cut = [a[index] if a.shape == shape else a for a in arrays]
        if step == 1 and total // shape[axis] > size and len(shape) > 1:
            rows = [c[(*(slice(None),) * axis, 0)] if c is not a else a for a, c in zip(arrays, cut, strict=True)]
            yield from parts(rows, shape[:axis] + shape[axis + 1 :], size)
        else:
            yield cut


def note(
    do: Calls, formula: Formula, changed: Sequence[int], pieces: Sequence[Any], attributes: dict[str, Any]
) -> None:
    """A formula for one part: its arrays, then `out`.   `changed`: positions of the arrays that it changes."""
    *arrays, out = pieces
    if all(a.dtype not in NARROW for a in arrays):
        do.begin(out, out.dtype)
        formula(do, *arrays, **attributes, out=out)
        return
    do.begin(out, FLOAT32)
    wide = []
    for a in arrays:
        w = a
        if a.dtype in NARROW and a.shape != out.shape:
            w = a.astype(FLOAT32)
        elif a.dtype in NARROW:
            w = do.new()
            do.copy(a, w)
        wide.append(w)
    result = do.new() if out.dtype in NARROW else out
    formula(do, *wide, **attributes, out=result)
    for i in changed:
        if wide[i] is not arrays[i]:
            do.copy(wide[i], arrays[i])
    if result is not out:
        do.copy(result, out)


def by_parts(formula: Formula, changed: Sequence[int]) -> Callable[..., list[Step]]:
    """The kernel that does a formula part by part.   `changed`: positions of the states among its arrays."""

    def kernel(xp: Any, *arrays: Any, out: Any, **attributes: Any) -> list[Step]:
        do = Calls()
        for pieces in parts((*arrays, out), out.shape):
            note(do, formula, changed, pieces, attributes)
        return do.steps

    kernel.__signature__ = inspect.signature(formula)  # type: ignore[attr-defined]
    kernel.__doc__ = formula.__doc__
    return kernel


def note_mixed(
    do: Calls, formula: Formula, changed: Sequence[int], pieces: Sequence[Any], attributes: dict[str, Any],
    into_master: bool = True,
) -> None:  # fmt: skip
    """The same with float32 weights as the last array: the formula is about them, and `out` gets a copy of them.

    Without `into_master` they stay, and `out` is what the formula gives.
    """
    _, *arrays, master, out = pieces
    if into_master:
        note(do, formula, changed, (master, *arrays, master), attributes)
        do.copy(master, out)
    else:
        note(do, formula, changed, (master, *arrays, out), attributes)


def mixed_by_parts(
    formula: Formula, changed: Sequence[int], doc: str, *, into_master: bool = True
) -> Callable[..., list[Step]]:
    """The kernel that does a formula part by part with float32 weights, `weight32`, besides the weights."""

    def kernel(xp: Any, *arrays: Any, out: Any, **attributes: Any) -> list[Step]:
        do = Calls()
        for pieces in parts((*arrays, out), out.shape):
            note_mixed(do, formula, changed, pieces, attributes, into_master)
        return do.steps

    parameters = list(inspect.signature(formula).parameters.values())
    where = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    parameters.insert(where, inspect.Parameter("weight32", inspect.Parameter.POSITIONAL_OR_KEYWORD))
    kernel.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    kernel.__doc__ = doc
    return kernel
