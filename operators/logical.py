"""Results that remember that they are truth values: as an index such an array is a mask, whatever its dtype.

The nd face's comparisons give numbers in their operands' dtype.  Their results carry a mark (`Array._logical`), which
views, copies and rearrangements of a marked array have too.  Arithmetic and conversions make arrays without it; writes
in place leave it as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ndarray.array import Array
from ..ndarray.sparse_arrays import BaseSparseNDArray

GIVING = frozenset(
    (
        "equal", "not_equal", "less", "less_equal", "greater", "greater_equal",
        "logical_and", "logical_or", "logical_xor", "logical_not",
    )
)  # fmt: skip
KEEPING = frozenset(
    (
        "copy", "compact", "reshape", "flatten", "expand_dims", "squeeze", "transpose", "swapaxes", "broadcast_to",
        "concat", "stack", "flip", "tile", "repeat", "slice", "slice_axis",
    )
)  # fmt: skip


def giving(call: Callable[..., Any]) -> Callable[..., Any]:
    """An operator of the nd face whose new results are marked."""

    def marked(*arguments: Any, out: Any = None, **named: Any) -> Any:
        made = call(*arguments, out=out, **named)
        if out is None:
            made._logical = True
        return made

    return marked


def keeping(call: Callable[..., Any]) -> Callable[..., Any]:
    """An operator of the nd face whose new results are marked if all its operands are."""

    def kept(*arguments: Any, out: Any = None, **named: Any) -> Any:
        made = call(*arguments, out=out, **named)
        given = [*arguments, *named.values()]
        if given and isinstance(given[0], list | tuple):
            given = [*given[0]]
        if out is None and all(x._logical for x in given if isinstance(x, Array | BaseSparseNDArray)):
            for array in made if isinstance(made, tuple | list) else (made,):
                array._logical = True
        return made

    return kept
