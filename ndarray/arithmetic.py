"""Python's operators on arrays: ``x + y``, ``2 * x``, ``x += y``, ``x > y``.

The operators' room gives each class its methods (`bind`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..engine import ArgumentTypeError
from .array import Array
from .dtype import NARROW
from .reading import describe
from .sparse_arrays import BaseSparseNDArray

SCALARS: tuple[type, ...] = (bool, int, float, np.bool_, np.integer, np.floating, *(dtype.type for dtype in NARROW))
OPERANDS = (Array, *SCALARS, np.ndarray, BaseSparseNDArray)


BINARY = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "floordiv": "floor_divide",
    "mod": "mod",
    "pow": "power",
    "matmul": "matmul",
}
COMPARISONS = {
    "eq": ("equal", "=="),
    "ne": ("not_equal", "!="),
    "lt": ("less", "<"),
    "le": ("less_equal", "<="),
    "gt": ("greater", ">"),
    "ge": ("greater_equal", ">="),
}


def foreign(value: Any) -> bool:
    """Is it a NumPy array with rules of its own: a mask, units?"""
    if type(value) is np.ndarray or not isinstance(value, np.ndarray):
        return False
    return isinstance(value, np.ma.MaskedArray) or type(value).__array_ufunc__ is not np.ndarray.__array_ufunc__


def bind(cls: type[Array], quick: Mapping[str, Any], in_place: Mapping[str, Any]) -> None:
    """Give a class its operators: functions of two operands that give NotImplemented for what is no operand."""
    for method, name in BINARY.items():
        setattr(cls, f"__{method}__", quick[name])
        setattr(cls, f"__r{method}__", _reflected(quick[name]))
        setattr(cls, f"__i{method}__", in_place[name])
    for method, (name, symbol) in COMPARISONS.items():
        setattr(cls, f"__{method}__", _comparison(quick[name], name, symbol))


def _reflected(quick: Any) -> Any:
    def reflected(self: Any, other: Any) -> Any:
        return quick(other, self)

    return reflected


def _comparison(quick: Any, name: str, symbol: str) -> Any:
    def compare(self: Any, other: Any) -> Any:
        found = quick(self, other)
        if found is NotImplemented and not foreign(other):
            raise ArgumentTypeError(f"[{name}] {describe(self)} {symbol} {other!r}: an array or a number expected")
        return found

    return compare
