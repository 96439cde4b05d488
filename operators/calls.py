"""Calls that come again: what an operator, its rule and its arguments come to is worked out once.

Binding, the rule of the nd face, the variant, shapes and dtypes depend on the operands' shapes and dtypes and on plain
arguments only.  A `Calls` remembers the answers of one operator, and runs an equal call at once (tiny.py) or pushes it.
Whatever is unusual about a call (`out`, host arrays, arrays of two places, ...) is left to the push path's questions.
                                                                                     [tests/operators/test_calls.py]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..ndarray.dtype import NARROW
from ..ndarray.line import scope
from ..ndarray.ndarray import NDArray
from .in_place import update
from .push import push_known
from .schema import Attributes, Meta, Metas, Operator
from .tiny import INLINE, Ready, at_once, prepare

MOST = 64  # calls of one operator that are remembered
PLAIN = frozenset((int, bool, str, type(None)))
BY_TEXT = frozenset((float, tuple))  # for 1 and 1.0 are equal, and so are the zeros

Resolve = Callable[[tuple[Any, ...], dict[str, Any]], "tuple[Operator, Sequence[Any], Attributes, Any]"]


class Remembered(NamedTuple):
    """`ready`: how it runs at once, if it may.   `update`: (operator, attributes, the meta of its output, positions
    that it changes beside that), if it may run in place.   `order`: for each input which of the arrays given it is, -1
    for a constant.   `meant`: (operator, attributes, the metas of its outputs, what they are stored as), for the push
    path, if it has nothing else to find out.
    """

    ready: Ready | None
    update: tuple[Operator, Attributes, Meta, tuple[int, ...]] | None
    order: tuple[int, ...]
    constants: tuple[Any, ...]
    meant: tuple[Operator, Attributes, Metas, Any] | None

    def inputs(self, arrays: Sequence[NDArray]) -> list[Any]:
        """The operator's inputs."""
        return [arrays[i] if i >= 0 else c for i, c in zip(self.order, self.constants, strict=True)]


class Calls:
    """The calls of one operator of the nd face.  `resolve`: (arguments) -> (operator, inputs, attributes, dtype)."""

    __slots__ = ("_hits", "_known", "_learned", "_resolve", "_zero_d")

    def __init__(self, resolve: Resolve, zero_d: Any) -> None:
        self._resolve, self._zero_d = resolve, zero_d
        self._known: dict[Any, Remembered | None] = {}
        #: approximate.  Calls that never come again (a learning rate that changes at each step) are not worth learning
        self._learned = self._hits = 0

    def run(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The result, at once or pushed; None: it is to be done in the general way."""
        current = scope.get()
        found = self._look(arguments, named, current.training)
        if found is None:
            return None
        call, arrays = found
        inputs = call.inputs(arrays)
        if call.ready is not None:
            done = at_once(call.ready, inputs, arrays[0]._place, current.recorder, NDArray)
            if done is not None:
                return done[0] if len(done) == 1 else done
        return None if call.meant is None else push_known(inputs, *call.meant, self._zero_d)

    def run_into(self, arguments: tuple[Any, ...], named: dict[str, Any], out: Any) -> bool:
        """The result put into `out`, one of the operands.  False: it is to be done in the general way."""
        if type(out) is not NDArray or scope.get().recorder is not None:
            return False
        found = self._look(arguments, named, scope.get().training)
        if found is None or found[0].update is None:
            return False
        op, attributes, made, changed = found[0].update
        inputs = found[0].inputs(found[1])
        where = next((i for i, x in enumerate(inputs) if x is out), None)
        if where is None or where in changed or out._meta != made:
            return False
        return update(op, attributes, inputs, out, (where, *changed))

    def _look(
        self, arguments: tuple[Any, ...], named: dict[str, Any], training: bool
    ) -> tuple[Remembered, list[NDArray]] | None:
        key: list[Any] = [training]
        arrays: list[NDArray] = []
        for x in arguments:
            kind = type(x)
            if kind is NDArray:
                arrays.append(x)
                key.append(x._meta)
            elif kind in PLAIN:
                key += (kind, x)
            elif kind in BY_TEXT and plain(x):
                key += (kind, repr(x))
            else:
                return None
        for name, x in named.items():
            kind = type(x)
            if kind is NDArray:
                arrays.append(x)
                key += (name, x._meta)
            elif kind in PLAIN:
                key += (name, kind, x)
            elif kind in BY_TEXT and plain(x):
                key += (name, kind, repr(x))
            else:
                return None
        if not arrays:
            return None
        place = arrays[0]._place
        for x in arrays:
            if x._place is not place:
                return None
        word = tuple(key)
        if word in self._known:
            self._hits += 1
        elif self._learned < MOST or self._hits > self._learned:
            self._learned += 1
            self._learn(word, arguments, named, arrays, training)
        call = self._known.get(word)
        return None if call is None else (call, arrays)

    def _learn(
        self, key: Any, arguments: tuple[Any, ...], named: dict[str, Any], arrays: Sequence[NDArray], training: bool
    ) -> None:
        """Errors of the call are left to the general way; one that does not come again is a signal handler's."""
        if len(set(map(id, arrays))) < len(arrays):
            return  # which of the two is which input?
        try:
            call = self._meant(arguments, named, arrays, training)
        except Exception:
            try:
                self._meant(arguments, named, arrays, training)
            except Exception:
                call = None
            else:
                raise
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[key] = call

    def _meant(
        self, arguments: tuple[Any, ...], named: dict[str, Any], arrays: Sequence[NDArray], training: bool
    ) -> Remembered | None:
        op, inputs, attributes, dtype = self._resolve(arguments, dict(named))
        if op.variant is not None:
            op, inputs, attributes = op.variant(inputs, attributes, training)
        metas = [x._meta if isinstance(x, NDArray) else None if x is None else (x.shape, x.dtype) for x in inputs]
        made, attributes = op.infer(metas, attributes)
        order = tuple([next((i for i, a in enumerate(arrays) if a is x), -1) for x in inputs])
        if any(i < 0 and isinstance(x, NDArray) for i, x in zip(order, inputs, strict=True)):
            return None  # one that the rule made
        constants = tuple([None if i >= 0 else x for i, x in zip(order, inputs, strict=True)])
        ready = prepare(op, metas, attributes, made, dtype, self._zero_d)
        meant = None if op.alias is not None else (op, attributes, made, dtype)
        return Remembered(ready, _in_place(op, metas, attributes, made, dtype), order, constants, meant)


def plain(x: Any) -> bool:
    """A value that is known by its type and its text: not a NaN, whose sign is not in that, nor a tuple of arrays."""
    kind = type(x)
    if kind is float:
        return not math.isnan(x)
    return kind in PLAIN or (kind is tuple and all(plain(v) for v in x))


def _in_place(op: Operator, metas: Metas, attributes: Attributes, made: Metas, dtype: Any) -> Any:
    """See `Remembered.update`."""
    usual = op.elementwise and op.atomic and not op.random and op.ufunc is None and len(made) == 1
    if not usual or made[0] is None or dtype not in (None, made[0][1]):
        return None
    if any(meta is not None and meta[1] in NARROW for meta in metas) or op.work(metas, made, attributes) > INLINE:
        return None
    return op, attributes, made[0], tuple(op.inputs.index(name) for name in op.updates)
