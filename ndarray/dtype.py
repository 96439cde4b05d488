"""Element types: which exist, and how a Python scalar becomes one."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from ..engine import ArgumentError

DType = np.dtype[Any]

NAMES = ("float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool")
KNOWN: frozenset[DType] = frozenset(np.dtype(name) for name in NAMES)
FLOAT16, FLOAT32, FLOAT64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)
INT64, BOOL = np.dtype(np.int64), np.dtype(np.bool_)


@lru_cache(maxsize=256)
def _known(dtype: Any) -> DType:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found not in KNOWN:
        raise ArgumentError(f"[dtype] {dtype!r}: one of {', '.join(NAMES)} expected")
    native: DType = np.dtype(found.type)
    return native


def as_dtype(dtype: Any, default: DType = FLOAT32) -> DType:
    """`dtype` (a name, a type or a NumPy dtype) as one that arrays can have; `default` for None.

    Raises
    ------
    ArgumentError
        For anything that is not an element type of the library.
    """
    if dtype is None:
        return default
    try:
        return _known(dtype)
    except TypeError:  # not hashable
        raise ArgumentError(f"[dtype] {dtype!r}: one of {', '.join(NAMES)} expected") from None


def truncated(scalar: Any, dtype: DType) -> Any:
    """`scalar` as `dtype` by C's conversion: towards zero, integers wrap.  The nd face's rule for scalars.

    >>> truncated(1.9, np.dtype("int32")), truncated(300, np.dtype("uint8"))
    (np.int32(1), np.uint8(44))
    """
    if dtype.kind == "f":
        try:
            with np.errstate(all="ignore"):
                return dtype.type(scalar)
        except OverflowError:  # an int above float64
            return dtype.type(math.copysign(math.inf, scalar))
    if dtype == BOOL:
        return np.bool_(scalar)
    if isinstance(scalar, float | np.floating):
        if not math.isfinite(scalar):  # C leaves it undefined; x86 gives the smallest integer
            scalar = np.iinfo(dtype).min
        scalar = int(scalar)
    return np.array(int(scalar) & 0xFFFF_FFFF_FFFF_FFFF, np.uint64).astype(dtype)[()]
