"""Operators without operands: zeros, ones, full, arange, and their kin."""

from __future__ import annotations

import math
import operator as python_operator
from typing import Any

from ..ndarray.dtype import FLOAT32, as_dtype, truncated
from ..ndarray.shape import as_shape
from .faces import Rule, attribute_dtype
from .infer import like_first
from .schema import Attributes, Inferred, Metas, Sample, operator, zero

MADE = Rule(dtype=attribute_dtype(FLOAT32), method=False, ignore=("stype",), zero_d=())
LIKE = Rule(rename={"data": "x"})


def _shaped(metas: Metas, attributes: Attributes) -> Inferred:
    dtype = as_dtype(attributes["dtype"])
    shape = as_shape(attributes["shape"])
    return ((shape, dtype),), {**attributes, "shape": shape, "dtype": dtype}


def _filled(out: Any, value: Any) -> Any:
    return ((python_operator.setitem, out, ..., value),)


@operator("zeros", infer=_shaped, atomic=True, widen=False, nd=MADE)
def zeros(xp: Any, *, shape: Any, dtype: Any = None, out: Any) -> Any:
    """Zeros of a shape (an int or a tuple); float32 by default.

    >>> from vardag import nd
    >>> nd.zeros((1, 2)).asnumpy()
    array([[0., 0.]], dtype=float32)
    """
    return _filled(out, 0)


@operator("ones", infer=_shaped, atomic=True, widen=False, nd=MADE)
def ones(xp: Any, *, shape: Any, dtype: Any = None, out: Any) -> Any:
    """Ones of a shape (an int or a tuple); float32 by default."""
    return _filled(out, 1)


@operator("full", infer=_shaped, atomic=True, widen=False, nd=MADE)
def full(xp: Any, *, shape: Any, val: Any, dtype: Any = None, out: Any) -> Any:
    """A shape (an int or a tuple) full of one value, cast towards zero; float32 by default."""
    return _filled(out, truncated(val, out.dtype))


@operator("zeros_like", infer=like_first, atomic=True, widen=False, samples=[Sample((2, 3))], nd=LIKE)
def zeros_like(xp: Any, x: Any, *, out: Any) -> Any:
    """Zeros of the shape and dtype of x."""
    return _filled(out, 0)


@operator("ones_like", infer=like_first, atomic=True, widen=False, samples=[Sample((2, 3))], nd=LIKE)
def ones_like(xp: Any, x: Any, *, out: Any) -> Any:
    """Ones of the shape and dtype of x."""
    return _filled(out, 1)


zeros_like.grad(x=zero)
ones_like.grad(x=zero)


def _arange(metas: Metas, attributes: Attributes) -> Inferred:
    start, stop, step = attributes["start"], attributes["stop"], attributes["step"]
    if stop is None:
        start, stop = 0, start
    if step == 0 or attributes["repeat"] < 1:
        raise ValueError("a step other than 0 and a repeat from 1 expected")
    count = max(math.ceil((stop - start) / step), 0) * attributes["repeat"]
    dtype = as_dtype(attributes["dtype"])
    return (((count,), dtype),), {**attributes, "start": start, "stop": stop, "dtype": dtype}


@operator(
    "arange", infer=_arange, widen=False, nd=Rule(dtype="kernel", method=False, ignore=("infer_range",), zero_d=())
)
def arange(
    xp: Any, *, start: Any, stop: Any = None, step: Any = 1.0, repeat: int = 1, dtype: Any = None, out: Any
) -> None:
    """start, start + step, ... below stop (0 ... below start without a stop), each `repeat` times; float32 by default.

    >>> from vardag import nd
    >>> nd.arange(2, 6, 2).asnumpy()
    array([2., 4.], dtype=float32)
    """
    count = len(out) // repeat
    out[...] = xp.repeat(start + xp.arange(count) * step, repeat)


def _eye(metas: Metas, attributes: Attributes) -> Inferred:
    n, m = int(attributes["N"]), int(attributes["M"])
    dtype = as_dtype(attributes["dtype"])
    return (((n, m or n), dtype),), {**attributes, "dtype": dtype}


@operator("eye", infer=_eye, widen=False, nd=MADE)
def eye(xp: Any, *, N: int, M: int = 0, k: int = 0, dtype: Any = None, out: Any) -> None:
    """Ones on the k-th diagonal of an (N, M or N) matrix, zeros elsewhere; float32 by default."""
    out[...] = xp.eye(*out.shape, k)


def _linspace(metas: Metas, attributes: Attributes) -> Inferred:
    dtype = as_dtype(attributes["dtype"])
    return (((int(attributes["num"]),), dtype),), {**attributes, "dtype": dtype}


@operator("linspace", infer=_linspace, widen=False, nd=MADE)
def linspace(
    xp: Any, *, start: float, stop: float, num: int, endpoint: bool = True, dtype: Any = None, out: Any
) -> None:
    """num numbers from start to stop at equal distances; float32 by default."""
    out[...] = xp.linspace(start, stop, num, endpoint)
