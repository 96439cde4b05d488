"""Python's operators on arrays: ``x + y``, ``2 * x``, ``x += y``, ``x > y``.

Each looks up the operator in the array's face when it is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine import ArgumentTypeError
from .array import Array, describe

SCALARS = (bool, int, float, np.bool_, np.integer, np.floating)


def operand(value: Any) -> bool:
    """Whether an operator takes this as an operand: an array, a NumPy array or a real number."""
    return isinstance(value, (Array, *SCALARS, np.ndarray))


def _binary(name: str) -> tuple[Any, Any, Any]:
    """The three methods of one binary operator: forward, reflected, in place."""

    def forward(self: Any, other: Any) -> Any:
        return getattr(self._ops, name)(self, other) if operand(other) else NotImplemented

    def reflected(self: Any, other: Any) -> Any:
        return getattr(self._ops, name)(other, self) if operand(other) else NotImplemented

    def in_place(self: Any, other: Any) -> Any:
        return getattr(self._ops, name)(self, other, out=self) if operand(other) else NotImplemented

    return forward, reflected, in_place


def _comparison(name: str, symbol: str) -> Any:
    def compare(self: Any, other: Any) -> Any:
        if not operand(other):
            raise ArgumentTypeError(f"[{name}] {describe(self)} {symbol} {other!r}: an array or a number expected")
        return getattr(self._ops, name)(self, other)

    return compare


for _method, _name in {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "floordiv": "floor_divide",
    "mod": "mod",
    "pow": "power",
    "matmul": "matmul",
}.items():
    for _prefix, _function in zip(("", "r", "i"), _binary(_name), strict=True):
        _function.__name__ = f"__{_prefix}{_method}__"
        setattr(Array, f"__{_prefix}{_method}__", _function)

for _method, _name, _symbol in (
    ("eq", "equal", "=="),
    ("ne", "not_equal", "!="),
    ("lt", "less", "<"),
    ("le", "less_equal", "<="),
    ("gt", "greater", ">"),
    ("ge", "greater_equal", ">="),
):
    setattr(Array, f"__{_method}__", _comparison(_name, _symbol))
