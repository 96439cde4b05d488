"""Python's operators on arrays: ``x + y``, ``2 * x``, ``x += y``, ``x > y``.

The operators' room gives each class its methods (`bind`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..engine import ArgumentTypeError
from .array import Array
from .reading import describe

SCALARS = (bool, int, float, np.bool_, np.integer, np.floating)
OPERANDS = (Array, *SCALARS, np.ndarray)


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


def bind(cls: type[Array], quick: Mapping[str, Any]) -> None:
    """Give a class its operators: functions of two operands that give NotImplemented for what is no operand."""
    for method, name in BINARY.items():
        for prefix, made in zip(("", "r", "i"), _three(quick[name], name), strict=True):
            setattr(cls, f"__{prefix}{method}__", made)
    for method, (name, symbol) in COMPARISONS.items():
        setattr(cls, f"__{method}__", _comparison(quick[name], name, symbol))


def _three(forward: Any, name: str) -> tuple[Any, Any, Any]:
    """The three methods of one binary operator: forward, reflected, in place."""

    def reflected(self: Any, other: Any) -> Any:
        return forward(other, self)

    def in_place(self: Any, other: Any) -> Any:
        return getattr(self._ops, name)(self, other, out=self) if isinstance(other, OPERANDS) else NotImplemented

    return forward, reflected, in_place


def _comparison(quick: Any, name: str, symbol: str) -> Any:
    def compare(self: Any, other: Any) -> Any:
        found = quick(self, other)
        if found is NotImplemented:
            raise ArgumentTypeError(f"[{name}] {describe(self)} {symbol} {other!r}: an array or a number expected")
        return found

    return compare
