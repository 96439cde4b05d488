"""Element types: which exist, and how a Python scalar becomes one.

bfloat16 is there if the package ml_dtypes is; NumPy knows it as a kind of its own, "V", hence `is_float`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from ..engine import ArgumentError

try:
    import ml_dtypes

    BFLOAT16: np.dtype[Any] | None = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    BFLOAT16 = None

DType = np.dtype[Any]

NAMES: tuple[str, ...] = ("float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool")
if BFLOAT16 is not None:
    NAMES = ("bfloat16", *NAMES)
KNOWN: frozenset[DType] = frozenset(np.dtype(name) for name in NAMES)
FLOAT16, FLOAT32, FLOAT64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)
INT64, BOOL = np.dtype(np.int64), np.dtype(np.bool_)
#: floats of 16 bits: what is computed of them is computed in float32, and rounded once
NARROW: frozenset[DType] = frozenset((FLOAT16,) if BFLOAT16 is None else (FLOAT16, BFLOAT16))


def is_float(dtype: DType) -> bool:
    """Is it a floating-point type?"""
    return dtype.kind == "f" or dtype in NARROW


def is_bfloat16(dtype: DType) -> bool:
    """Is it the one that NumPy itself does not know?"""
    return BFLOAT16 is not None and dtype == BFLOAT16


def missing(dtype: Any) -> str:
    """What a refusal of a dtype says if a package is missing for it."""
    wanted = BFLOAT16 is None and "bfloat16" in str(dtype)
    return "; bfloat16 needs the package ml_dtypes: pip install 'vardag[bfloat16]'" if wanted else ""


@lru_cache(maxsize=256)
def _known(dtype: Any) -> DType:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found not in KNOWN:
        raise ArgumentError(f"[dtype] {dtype!r}: one of {', '.join(NAMES)} expected{missing(dtype)}")
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
    if is_float(dtype):
        try:
            with np.errstate(all="ignore"):
                return dtype.type(scalar)
        except OverflowError:  # an int above float64
            return dtype.type(math.copysign(math.inf, scalar))
    if dtype == BOOL:
        return np.bool_(scalar)
    if isinstance(scalar, np.generic):
        scalar = scalar.item()
    if isinstance(scalar, float):
        if not math.isfinite(scalar):  # C leaves it undefined; x86 gives the smallest integer
            scalar = np.iinfo(dtype).min
        scalar = int(scalar)
    return np.array(int(scalar) & 0xFFFF_FFFF_FFFF_FFFF, np.uint64).astype(dtype)[()]
