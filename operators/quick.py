"""``x + y`` and ``exp(x)`` of small arrays: a ufunc at once, without inference, binding and the push path's questions.

Everything here is done by tiny.py too, at several times the price; whatever is not as usual is left to it, or to the
push path.                                                                          [tests/operators/test_tiny.py]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..ndarray.array import Array
from ..ndarray.device import Place, RawArray
from ..ndarray.line import marks, scope
from ..ndarray.memory import PAGE
from . import tiny
from .tiny import fails, settled, unchanged

CONSTANTS = 1024  # numbers that are kept as arrays
HALF = 65504  # the largest float16
EXACT = 2**20  # integers up to here are themselves in float32, and no float overflows

_new = object.__new__
_ndarray = np.ndarray


def elementwise(place: Place, ufunc: np.ufunc, dtype: Any, stored: bool, *arrays: Any) -> RawArray | None:
    """The ufunc of raw arrays and numbers, on the caller's thread, in the kernels' context; None if it fails by itself.

    `dtype`: that of the result, if `stored` is true or the array is of a page or more; then it comes from the device.
    """
    first = arrays[0] if type(arrays[0]) is _ndarray else arrays[1]
    run = place.engine.kernel_context.copy().run
    try:
        if first.size < PAGE:
            raw = run(ufunc, *arrays)
            if type(raw) is not _ndarray:
                return None
            if not raw.flags.c_contiguous:  # that of transposed operands has their order
                raw = raw.copy()
            return run(raw.astype, dtype) if stored and raw.dtype is not dtype else raw
        raw = place.device.empty(first.shape, dtype)
        run(partial(ufunc, out=raw), *arrays)
    except MemoryError:
        return None
    except Exception:
        if fails(place.engine.kernel_context, ufunc, *arrays):
            return None
        raise
    return raw


class Ufunc(NamedTuple):
    """What a face makes of an operator that is a ufunc.

    `general`: the push path.   `dtypes`: of operands to which no other rule applies.   `same`: those of them in which
    the ufunc gives a result of that dtype.   `stored`: whether the result has the operands' dtype, whatever the ufunc
    gives.   `most`: elements that may be computed at once.   `logical`: whether results are marked as truth values.
    """

    op: Any
    ufunc: np.ufunc
    cls: type[Array]
    general: Callable[..., Any]
    dtypes: tuple[Any, ...]
    same: tuple[Any, ...]
    stored: bool
    most: int
    logical: bool = False


def pair(rule: Ufunc) -> Any:
    """A ufunc of two operands as a function (x, y), for Python's operators too."""
    op, ufunc, cls, general, dtypes, same, stored, most, logical = rule
    get, few = scope.get, min(most, PAGE - 1)

    def function(x: Any, y: Any) -> Any:
        # The hottest code of the library, for young arrays and numbers.  A call more would cost a tenth of the whole.
        if type(x) is cls:
            a, place, shape = x._raw, x._place, x._shape
            if a is None:
                return mixed(x, y)
            dtype, size = a.dtype, a.size
            if type(y) is cls:
                b = y._raw
                if b is None or y._place is not place or y._shape != shape or b.dtype is not dtype:
                    return mixed(x, y)
            else:
                b = constants((y, dtype)) if y.__class__ is float or y.__class__ is int else None
                if b is None:
                    b = constant(y, dtype)
                    if b is None:
                        return general(x, y)
        elif type(y) is cls:
            b, place, shape = y._raw, y._place, y._shape
            if b is None:
                return mixed(x, y)
            dtype, size = b.dtype, b.size
            a = constant(x, dtype)
            if a is None:
                return general(x, y)
        else:
            return general(x, y)
        engine = place.engine
        if size > few:
            return mixed(x, y)
        if (
            dtype in dtypes
            and engine.inline
            and not engine.writing
            and engine._instrument is None
            and not engine._closed
        ):
            recorder = get().recorder
            if recorder is not None and dtype not in same:
                return general(x, y)
            try:
                raw = engine.kernel_context.copy().run(ufunc, a, b)
            except MemoryError:
                return general(x, y)
            except Exception:
                if not fails(engine.kernel_context, ufunc, a, b):
                    raise
                return general(x, y)
            if type(raw) is _ndarray:
                if stored and raw.dtype is not dtype:
                    raw = engine.kernel_context.copy().run(raw.astype, dtype)
                node = None if recorder is None else recorder.pair(op, x, y, a, b, raw, dtype)
                if (type(x) is not cls or x._raw is a) and (type(y) is not cls or y._raw is b) and not engine.writing:
                    engine.ran_at_once += 1
                    new = _new(cls)
                    new._raw, new._place, new._shape, new._strides, new._offset = raw, place, shape, None, 0
                    new._line, new._derived, new._logical = node, None, logical
                    return new
        return general(x, y)

    def mixed(x: Any, y: Any) -> Any:
        """An operand has a chunk already, or they are larger."""
        first: Any = settled(x) if type(x) is cls else None
        second: Any = first if y is x else settled(y) if type(y) is cls else None
        array, (raw, *_) = (x, first) if first is not None else (y, second or (None,))
        if raw is None:
            return general(x, y)
        place, dtype, recorder = array._place, raw.dtype, get().recorder
        if type(x) is not type(y):  # a number; a host array is copied by the general path
            number = constant(y if array is x else x, dtype), None, None, 0
            first, second = (first, number) if array is x else (number, second)
        elif first is None or second is None or y._place is not place:
            return general(x, y)
        a, b = first[0], second[0]
        if a is None or b is None or raw.size > most or (a.shape != b.shape and type(x) is type(y)):
            return general(x, y)
        if a.dtype is not b.dtype or dtype not in (dtypes if raw.size < PAGE and recorder is None else same):
            return general(x, y)
        if not place.engine.calm():
            return general(x, y)
        node, large, marked = None, raw.size >= tiny.COPIED, marks.last
        if recorder is not None and large:
            node = recorder.node(
                None,
                op,
                (a if first[1] is None else x, b if second[1] is None else y),
                {},
                ((array._shape, dtype),),
                (),
            )
            if node is not None and (node.retention.inputs or node.retention.outputs):
                return general(x, y)
        made = elementwise(place, ufunc, dtype, stored, a, b)
        if made is None:
            return general(x, y)
        if recorder is not None and not large:
            node = recorder.pair(op, x, y, a, b, made, dtype)
        if place.engine.writing or not unchanged(first) or not unchanged(second):  # in this order: see tiny.py
            return general(x, y)
        if marks.last is not marked:
            return general(x, y)
        place.engine.ran_at_once += 1
        new = cls._young(place, made)
        new._line, new._logical = node, logical
        return new

    return function


def number(value: Any, dtype: Any) -> bool:
    """Is it a Python number that the ufunc takes for its value in this dtype?"""
    kind = type(value)
    return (kind is float or kind is int) and dtype.kind == "f" and -EXACT <= value <= EXACT


#: Python numbers as arrays without axes, by value and dtype: a ufunc takes those at half the price.  No zeros, of which
#: there are two.
_constants: dict[Any, RawArray] = {}
constants = _constants.get


def constant(value: Any, dtype: Any) -> RawArray | None:
    """A `number` as an array of this dtype, None for another value."""
    if not number(value, dtype) or (dtype.itemsize == 2 and abs(value) > HALF):
        return None
    found = np.asarray(value, dtype)
    if value:
        if len(_constants) >= CONSTANTS:
            _constants.clear()
        _constants[value, dtype] = found
    return found


def single(rule: Ufunc) -> Any:
    """A ufunc of one operand as a function (x)."""
    op, ufunc, cls, general, dtypes, same, stored, most, logical = rule
    get, few = scope.get, min(most, PAGE - 1)

    def function(x: Any) -> Any:
        if type(x) is not cls:
            return general(x)
        a, place = x._raw, x._place
        recorder = get().recorder
        if a is None or a.size > few or (recorder is not None and a.dtype not in same):
            return larger(x)
        engine, dtype = place.engine, a.dtype
        if (
            dtype in dtypes
            and engine.inline
            and not engine.writing
            and engine._instrument is None
            and not engine._closed
        ):
            try:
                raw = engine.kernel_context.copy().run(ufunc, a)
            except MemoryError:
                return general(x)
            except Exception:
                if not fails(engine.kernel_context, ufunc, a):
                    raise
                return general(x)
            if type(raw) is _ndarray:
                if stored and raw.dtype is not dtype:
                    raw = engine.kernel_context.copy().run(raw.astype, dtype)
                node = None if recorder is None else recorder.single(op, x, a, raw)
                if x._raw is a and not engine.writing:
                    engine.ran_at_once += 1
                    new = _new(cls)
                    new._raw, new._place, new._shape, new._strides, new._offset = raw, place, x._shape, None, 0
                    new._line, new._derived, new._logical = node, None, logical
                    return new
        return general(x)

    def larger(x: Any) -> Any:
        """It has a chunk already, or is larger."""
        seen = settled(x)
        if seen is None:
            return general(x)
        raw, place, recorder = seen[0], x._place, get().recorder
        dtype, size = raw.dtype, raw.size
        if size > most or dtype not in (dtypes if size < PAGE and recorder is None else same):
            return general(x)
        if not place.engine.calm():
            return general(x)
        node, large = None, size >= tiny.COPIED
        if recorder is not None and large:
            node = recorder.node(None, op, (x,), {}, ((x._shape, dtype),), ())
            if node is not None and (node.retention.inputs or node.retention.outputs):
                return general(x)
        made = elementwise(place, ufunc, dtype, stored, raw)
        if made is None:
            return general(x)
        if recorder is not None and not large:
            node = recorder.single(op, x, raw, made)
        if place.engine.writing or not unchanged(seen):
            return general(x)
        place.engine.ran_at_once += 1
        new = cls._young(place, made)
        new._logical = logical
        new._line = node
        return new

    return function
