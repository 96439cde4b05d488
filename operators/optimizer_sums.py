"""What training loops ask of many gradients: sums of squares, whether all are finite, rates by layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine import ArgumentTypeError
from ..engine.parallel import parallel
from ..ndarray.array import Array
from ..ndarray.device import HOST
from ..ndarray.dtype import FLOAT32, FLOAT64
from ..ndarray.ndarray import NDArray
from ..ndarray.streams import computing
from .faces import Rule, nd_face
from .infer import floating, uniform
from .optimizer_multi import public
from .optimizer_tiles import parts
from .products import FOR_WORKERS
from .push import invoke
from .schema import Attributes, Inferred, Metas, Sample, operator, size_of

BLOCK = 1 << 16  # elements: part of the definition of every large sum of squares
BIG = 1 << 20  # elements from which it is a matter for workers


def _cost(metas: Metas, made: Metas, attributes: Attributes) -> float:
    work = 4.0 * size_of(metas)
    return max(work, FOR_WORKERS) if size_of(metas) >= BIG else work


def _given(metas: Metas, attributes: Attributes) -> Attributes:
    number = attributes["num_arrays"]
    if not metas or number not in (None, len(metas)):
        raise ValueError(f"{len(metas)} arrays given, num_arrays {number}")
    uniform(*metas)
    floating(*metas)
    return {**attributes, "num_arrays": len(metas)}


def _one_each(metas: Metas, attributes: Attributes) -> Inferred:
    attributes = _given(metas, attributes)
    return (((len(metas),), FLOAT32),), attributes


def _one(metas: Metas, attributes: Attributes) -> Inferred:
    return (((1,), FLOAT32),), _given(metas, attributes)


def _blocks(data: Any) -> list[tuple[int, Any]]:
    """(which array, a part of it) for all."""
    return [(i, part) for i, x in enumerate(data) for (part,) in parts((x,), x.shape, BLOCK)]


@operator(
    "multi_sum_sq",
    infer=_one_each,
    widen=False,
    cost=_cost,
    nd=Rule(method=False, dtype="kernel"),
)
def multi_sum_sq(xp: Any, *data: Any, num_arrays: int | None = None, out: Any) -> None:
    """The sum of squares of each array, float32.   Shapes: any, ... -> (number of arrays,)."""
    dtype = FLOAT64 if data[0].dtype == FLOAT64 else FLOAT32
    blocks = _blocks(data)
    sums = np.empty(len(blocks), dtype)

    def add(k: int) -> None:
        part = blocks[k][1]
        t = (computing() or HOST).empty(part.shape, dtype)
        np.multiply(part, part, t, dtype=dtype)
        sums[k] = np.add.reduce(t, None)

    parallel(add, range(len(blocks)))
    first = 0
    for i in range(len(data)):
        last = first + sum(which == i for which, _ in blocks)
        out[i] = np.add.reduce(sums[first:last])
        first = last


@operator(
    "multi_all_finite",
    infer=_one,
    widen=False,
    cost=_cost,
    nd=False,
)
def _all_finite(xp: Any, *data: Any, num_arrays: int | None = None, out: Any) -> None:
    """1 if all elements of all arrays are finite, otherwise 0.   Shapes: any, ... -> (1,), float32."""
    blocks = _blocks(data)
    found: list[int] = []

    def look(k: int) -> None:
        if not found and not np.isfinite(blocks[k][1]).all():
            found.append(k)

    parallel(look, range(len(blocks)))
    out[0] = not found


def _finite(name: str, arrays: Any, number: Any, init_output: bool, out: Any) -> Any:
    for i, x in enumerate(arrays):
        if not isinstance(x, Array):
            raise ArgumentTypeError(f"[{name}] array {i} {x!r}: an array expected")
    if out is not None and not init_output:
        return nd_face.multiply(out, _finite(name, arrays, number, True, None), out=out)
    return invoke(_all_finite, arrays, _all_finite.bind({"num_arrays": number}), out, cls=NDArray)


@public
def all_finite(data: Any, init_output: bool = True, out: Any = None, name: Any = None) -> Any:
    """1 if all elements are finite, otherwise 0.   Shapes: any -> (1,), float32.

    `init_output`: False multiplies `out` by that instead.   Raises ArgumentTypeError for arrays that are not
    floating-point.

    >>> from vardag import nd
    >>> nd.all_finite(nd.array([1, float("inf")])).asnumpy().tolist()
    [0.0]
    """
    return _finite("all_finite", [data], None, init_output, out)


@public
def multi_all_finite(
    *data: Any, num_arrays: Any = None, init_output: bool = True, out: Any = None, name: Any = None
) -> Any:
    """1 if all elements of all arrays are finite, otherwise 0.   Shapes: any, ... -> (1,), float32.

    `init_output`: False multiplies `out` by that instead.   `num_arrays`: counted if it is not given.   Raises
    ArgumentError or ArgumentTypeError for another number of arrays and for arrays that are not floating-point.

    >>> from vardag import nd
    >>> nd.multi_all_finite(nd.ones((2,)), nd.ones((3, 1)), num_arrays=2).asnumpy().tolist()
    [1.0]
    """
    arrays = list(data[0]) if len(data) == 1 and isinstance(data[0], list | tuple) else list(data)
    return _finite("multi_all_finite", arrays, num_arrays, init_output, out)


def _lars(metas: Metas, attributes: Attributes) -> Inferred:
    uniform(*metas)
    floating(*metas)
    if any(meta is None or metas[0] is None or meta[0] != metas[0][0] for meta in metas):
        raise ValueError("the same shape expected")
    return (metas[0],), attributes


@operator(
    "multi_lars",
    infer=_lars,
    elementwise=True,
    cost=40,
    samples=[Sample((4,), (4,), (4,), (4,), low=0.1, eta=0.01, eps=1e-3, rescale_grad=0.5)],
    reference=lambda lrs, w, g, wds, eta, eps, rescale_grad: (
        lrs * eta * np.sqrt(w) / (np.sqrt(g) * rescale_grad + wds * np.sqrt(w) + eps)
    ),
    nd=Rule(method=False),
)
def multi_lars(
    xp: Any, lrs: Any, weights_sum_sq: Any, grads_sum_sq: Any, wds: Any, *, eta: float, eps: float,
    rescale_grad: float = 1.0, out: Any,
) -> None:  # fmt: skip
    """lrs eta |w| / (rescale_grad |g| + wds |w| + eps), |w| and |g| the roots of the sums; lrs where one is 0.

    Shapes: four of (number of weights,) -> (number of weights,).   Source: You et al. 2017.
    """
    w, g = xp.sqrt(weights_sum_sq), xp.sqrt(grads_sum_sq)
    rates = lrs * eta * w / (g * rescale_grad + wds * w + eps)
    out[...] = xp.where((w > 0) & (g > 0), rates, lrs)
