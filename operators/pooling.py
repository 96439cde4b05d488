"""Pooling: the largest, the sum, the mean or the p-norm of every window.

The gradient of max is a pair of linear operators, transposes of each other, which know which element of each window was
the largest; that of the sum is its transpose.  So any order of derivative exists.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine.parallel import parallel
from ..ndarray.dtype import is_float
from .faces import Rule
from .infer import floating
from .nn import X, known, spelling
from .products import cuts
from .schema import Attributes, Inferred, Metas, Sample, constant, operator
from .windows import LAYOUTS, Extents, empty, extents, interior, window

COUNTS = ("none", "padded", "data")


def _padded(xp: Any, x: Any, kernel: Extents, stride: Extents, pad: Extents, positions: Extents, value: Any) -> Any:
    """x with a margin of `value`, as wide as the windows reach."""
    extent = _extent(x.shape[2:], kernel, stride, pad, positions)
    if not any(pad) and extent == x.shape[2:]:
        return x
    padded = xp.full((*x.shape[:2], *extent), value, x.dtype)
    padded[interior(pad, x.shape[2:])] = x
    return padded


def _extent(size: Extents, kernel: Extents, stride: Extents, pad: Extents, positions: Extents) -> Extents:
    """The size of padded data: all the data with their padding in front, and all that the windows reach."""
    along = zip(size, kernel, stride, pad, positions, strict=True)
    return tuple(max(n + p, (m - 1) * s + k) for n, k, s, p, m in along)


def _blocks(data: Any) -> list[slice]:
    """The samples, in blocks that are large enough to be worth a thread."""
    return cuts(len(data), max(1, min(len(data), data.size >> 17)), 1) if data.size else []


def _offsets(kernel: Extents) -> Any:
    """(number, offset) of every element of a window."""
    return enumerate(itertools.product(*map(range, kernel)))


def _used(xp: Any, which: Any, kernel: Extents) -> Any:
    """(number, offset) of every element of a window that occurs in `which`, and of others where they are few."""
    if math.prod(kernel) <= 64:
        return _offsets(kernel)
    return ((number, np.unravel_index(number, kernel)) for number in xp.unique(which).tolist())


def _shape(metas: Metas, attributes: Attributes) -> Extents:
    """The shape of the pooled data."""
    meta = metas[0]
    assert meta is not None
    return _pooled(meta[0], attributes)


def _pooled(shape: Extents, attributes: Attributes) -> Extents:
    """The shape of what pooling makes of data of this shape."""
    positions: Extents = attributes["positions"]
    if len(shape) != len(positions) + 2 or 0 in shape[2:]:
        raise ValueError(f"data (n, c, ...) with {len(positions)} axes of positions, none of them empty, expected")
    return (*shape[:2], *positions)


# ---- max -------------------------------------------------------------------------------------------------------------


def _max_pool(metas: Metas, attributes: Attributes) -> Inferred:
    meta = metas[0]
    assert meta is not None
    if meta[1].kind not in "iu" and not is_float(meta[1]):
        raise TypeError("floating-point or integer data expected")
    shape = _shape(metas, attributes)
    index = np.dtype(np.uint8 if math.prod(attributes["kernel"]) <= 256 else np.int32)
    return ((shape, meta[1]), (shape, index)), attributes


FIRST = "of several largest elements the first has the gradient"
_WINDOWS: dict[str, Any] = {"kernel": (2, 2), "stride": (2, 1), "pad": (0, 1), "positions": (2, 3)}
_DISTINCT = np.random.default_rng(0).permutation(16).astype(float).reshape(1, 2, 4, 2)


def _largest(x: Any, kernel: Any, stride: Any, pad: Any, positions: Any) -> Any:
    """The largest element of every window, window by window."""
    out = np.empty((*x.shape[:2], *positions))
    for at in np.ndindex(*positions):
        begin = np.array(at) * stride - pad
        out[(..., *at)] = x[(..., *map(slice, np.maximum(begin, 0), begin + kernel))].max(tuple(range(2, x.ndim)))
    return out


@operator(
    "max_pool",
    infer=_max_pool,
    widen=False, saves={"which": constant}, kinks=FIRST,
    samples=[
        Sample(_DISTINCT, **_WINDOWS),
        Sample(_DISTINCT, kernel=(3, 2), stride=(2, 1), pad=(0, 0), positions=(1, 1)),
    ],
    reference=_largest,
    nd=False,
)  # fmt: skip
def max_pool(xp: Any, x: Any, *, kernel: Any, stride: Any, pad: Any, positions: Any, out: Any, which: Any) -> None:
    """The largest element of every window.

    x: (n, c, *size), not bool.   Result: (n, c, *positions).   All attributes: one number for each axis of size.
    """
    lowest = -np.inf if is_float(x.dtype) else np.iinfo(x.dtype).min
    if math.prod(positions) == 1:
        padded = _padded(xp, x, kernel, stride, pad, positions, lowest)
        flat = padded[(..., *map(slice, kernel))].reshape(*x.shape[:2], math.prod(kernel))
        which.reshape(x.shape[:2])[...] = flat.argmax(-1)
        out[...] = flat.max(-1).reshape(out.shape)
        return

    def block(part: slice) -> None:
        padded = _padded(xp, x[part], kernel, stride, pad, positions, lowest)
        best, first = out[part], which[part]
        best[...] = padded[window((0,) * len(kernel), stride, positions)]
        first[...] = 0
        candidate = empty(xp, best.shape, x.dtype)
        above, number = empty(xp, best.shape, np.dtype(np.bool_)), empty(xp, best.shape, which.dtype)
        for i, offset in itertools.islice(_offsets(kernel), 1, None):
            candidate[...] = padded[window(offset, stride, positions)]
            xp.greater(candidate, best, above)
            xp.multiply(above.view(np.uint8), which.dtype.type(i), number)
            xp.maximum(first, number, out=first)  # the numbers ascend, so the last that was above counts
            xp.maximum(candidate, best, out=best)

    parallel(block, _blocks(x))


def _chosen(metas: Metas, attributes: Attributes) -> Inferred:
    x, *which = metas
    assert x is not None
    shape = _shape(metas, attributes)
    if any(meta is not None and meta[0] != shape for meta in which):
        raise ValueError(f"numbers of shape {shape} expected")
    return ((shape, x[1]),), attributes


def _gathered(x: Any, which: Any, kernel: Any, stride: Any, pad: Any, positions: Any) -> Any:
    """Of every window the chosen element, one by one; 0 in the padding."""
    out = np.zeros((*x.shape[:2], *positions))
    for *batch, number, at in _choices(which, kernel, stride, pad):
        inside = all(0 <= i < n for i, n in zip(at, x.shape[2:], strict=True))
        out[(*batch, *number)] = x[(*batch, *at)] if inside else 0
    return out


def _scattered(x: Any, which: Any, shape: Any, kernel: Any, stride: Any, pad: Any, positions: Any) -> Any:
    """The transpose of _gathered, one by one."""
    out = np.zeros(shape)
    for *batch, number, at in _choices(which, kernel, stride, pad):
        if all(0 <= i < n for i, n in zip(at, shape[2:], strict=True)):
            out[(*batch, *at)] += x[(*batch, *number)]
    return out


def _choices(which: Any, kernel: Any, stride: Any, pad: Any) -> Any:
    """(sample, channel, number of the window, where its chosen element lies)."""
    for n, c, *number in np.ndindex(which.shape):
        offset = np.unravel_index(int(which[(n, c, *number)]), kernel)
        yield n, c, number, tuple(int(i) for i in np.array(number) * stride + offset - pad)


@operator(
    "window_gather", infer=_chosen, indices=("which",), widen=False, nd=False, reference=_gathered,
    samples=[Sample((1, 2, 4, 2), np.arange(12).reshape(1, 2, 2, 3) % 2 + 1, **_WINDOWS)],
)  # fmt: skip
def window_gather(xp: Any, x: Any, which: Any, *, kernel: Any, stride: Any, pad: Any, positions: Any, out: Any) -> None:
    """Of every window the element with the number `which`.

    x: (n, c, *size).   which: (n, c, *positions), integers, numbers in C order over the kernel.
    """

    def block(part: slice) -> None:
        padded = _padded(xp, x[part], kernel, stride, pad, positions, 0)
        chosen, made = which[part], out[part]
        made[...] = 0
        for number, offset in _used(xp, chosen, kernel):
            xp.copyto(made, padded[window(offset, stride, positions)], where=chosen == number)

    parallel(block, _blocks(x))


def _spread(metas: Metas, attributes: Attributes) -> Inferred:
    x, shape = metas[0], tuple(attributes["shape"])
    assert x is not None
    expected = _pooled(shape, attributes)
    if any(meta is not None and meta[0] != expected for meta in metas):
        raise ValueError(f"arrays of shape {expected} expected")
    return ((shape, x[1]),), {**attributes, "shape": shape}


@operator(
    "window_scatter", infer=_spread, indices=("which",), nd=False, reference=_scattered,
    samples=[Sample((1, 2, 2, 3), np.arange(12).reshape(1, 2, 2, 3) % 2 + 1, shape=(1, 2, 4, 2), **_WINDOWS)],
)  # fmt: skip
def window_scatter(
    xp: Any, x: Any, which: Any, *, shape: Any, kernel: Any, stride: Any, pad: Any, positions: Any, out: Any
) -> None:
    """The transpose of window_gather: zeros of `shape`, with each element of x added where it was chosen."""
    extent = _extent(shape[2:], kernel, stride, pad, positions)
    apart = all(s >= k for s, k in zip(stride, kernel, strict=True))  # no two windows overlap
    bits = np.dtype(f"i{x.itemsize}")

    def block(part: slice) -> None:
        g, chosen = xp.ascontiguousarray(x[part]), which[part]
        direct = extent == tuple(shape[2:]) and not any(pad)
        padded = out[part] if direct else empty(xp, (len(g), shape[1], *extent), x.dtype)
        padded[...] = 0
        equal, mask, share = (empty(xp, g.shape, np.dtype(dtype)) for dtype in (np.bool_, bits, x.dtype))
        for number, offset in _used(xp, chosen, kernel):
            xp.equal(chosen, number, equal)
            xp.negative(equal.view(np.int8), mask, dtype=bits)  # all bits or none: nan and inf times 0 would be nan
            xp.bitwise_and(g.view(bits), mask, share.view(bits))
            target = padded[window(offset, stride, positions)]
            if apart:
                target[...] = share
            else:
                xp.add(target, share, target)
        if not direct:
            out[part] = padded[interior(pad, shape[2:])]

    parallel(block, _blocks(out))


max_pool.grad(x=lambda F, g, which, x_shape, **windows: F.window_scatter(g, which, shape=x_shape, **windows))
window_gather.grad(x=lambda F, g, which, x_shape, **windows: F.window_scatter(g, which, shape=x_shape, **windows))
window_scatter.grad(
    x=lambda F, g, which, kernel, stride, pad, positions: F.window_gather(
        g, which, kernel=kernel, stride=stride, pad=pad, positions=positions
    )
)


# ---- sum, mean, p-norm -----------------------------------------------------------------------------------------------


def _counts(xp: Any, size: Extents, a: Attributes, dtype: Any) -> Any:
    """How many elements each window has: of the padded data, or of the data.  At least 1."""
    total = xp.ones(a["positions"], dtype)
    for axis, (n, k, s, p, m) in enumerate(zip(size, a["kernel"], a["stride"], a["pad"], a["positions"], strict=True)):
        begin = xp.arange(m) * s - p
        first, last = (-p, n + p) if a["count"] == "padded" else (0, n)
        along = xp.clip(begin + k, first, last) - xp.clip(begin, first, last)
        total *= xp.maximum(along, 1).reshape((-1,) + (1,) * (len(size) - axis - 1)).astype(dtype)
    return total


def _sum_pool(metas: Metas, attributes: Attributes) -> Inferred:
    floating(metas[0])
    known("count", attributes["count"], COUNTS)
    return _chosen(metas, attributes)


def _along(axis: int, ndim: int, part: slice) -> Any:
    return (slice(None),) * (axis + 2) + (part,) + (slice(None),) * (ndim - axis - 3)


def _sums(x: Any, kernel: Any, stride: Any, pad: Any, positions: Any, count: str = "none") -> Any:
    """The sum or mean of every window, window by window."""
    out = np.empty((*x.shape[:2], *positions))
    for at in np.ndindex(*positions):
        begin = np.array(at) * stride - pad
        part = x[(..., *map(slice, np.maximum(begin, 0), begin + kernel))]
        end = np.minimum(begin + kernel, np.array(x.shape[2:]) + pad)
        size = {"none": 1, "data": math.prod(part.shape[2:]), "padded": math.prod(end - begin)}[count]
        out[(..., *at)] = part.sum(tuple(range(2, x.ndim))) / size
    return out


@operator(
    "sum_pool",
    infer=_sum_pool,
    samples=[Sample((1, 2, 4, 2), count=count, **_WINDOWS) for count in COUNTS],
    reference=_sums,
    nd=False,
)
def sum_pool(
    xp: Any, x: Any, *, kernel: Any, stride: Any, pad: Any, positions: Any, count: str = "none", out: Any
) -> None:
    """The sum of every window, divided by 1 (count "none"), or by how many elements it has with ("padded") or without
    the padding ("data").

    x: (n, c, *size), floating point.   Result: (n, c, *positions).
    """
    given = {"kernel": kernel, "stride": stride, "pad": pad, "positions": positions, "count": count}
    counts = None if count == "none" else _counts(xp, x.shape[2:], given, x.dtype)

    def block(part: slice) -> None:
        total = _padded(xp, x[part], kernel, stride, pad, positions, 0)
        for axis, (k, s, m) in enumerate(zip(kernel, stride, positions, strict=True)):
            parts = [total[_along(axis, x.ndim, slice(o, o + s * (m - 1) + 1, s))] for o in range(k)]
            total = parts[0].copy()
            for more in parts[1:]:
                total += more
        if counts is not None:
            total /= counts
        out[part] = total

    parallel(block, _blocks(x))


def _shares(x: Any, shape: Any, count: str = "none", **windows: Any) -> Any:
    """The transpose of _sums: what each element of data has in the sums, element by element."""
    out = np.zeros(shape)
    for at in np.ndindex(*shape[2:]):
        unit = np.zeros((1, 1, *shape[2:]))
        unit[(0, 0, *at)] = 1
        out[(..., *at)] = (x * _sums(unit, count=count, **windows)).sum(tuple(range(2, x.ndim)))
    return out


@operator(
    "sum_pool_grad",
    infer=_spread,
    reference=_shares,
    samples=[Sample((1, 2, 2, 3), shape=(1, 2, 4, 2), count=count, **_WINDOWS) for count in COUNTS],
    nd=False,
)
def sum_pool_grad(
    xp: Any, x: Any, *, shape: Any, kernel: Any, stride: Any, pad: Any, positions: Any, count: str = "none", out: Any
) -> None:
    """The transpose of sum_pool: each element of x, divided by its window's count, added to all of the window."""
    given = {"kernel": kernel, "stride": stride, "pad": pad, "positions": positions, "count": count}
    counts = None if count == "none" else _counts(xp, shape[2:], given, x.dtype)
    extent = _extent(shape[2:], kernel, stride, pad, positions)

    def block(part: slice) -> None:
        share = x[part] if counts is None else x[part] / counts
        for axis, (n, k, s, m) in enumerate(zip(extent, kernel, stride, positions, strict=True)):
            wider = xp.zeros((*share.shape[: axis + 2], n, *share.shape[axis + 3 :]), x.dtype)
            for o in range(k):
                wider[_along(axis, x.ndim, slice(o, o + s * (m - 1) + 1, s))] += share
            share = wider
        out[part] = share[interior(pad, shape[2:])]

    parallel(block, _blocks(out))


sum_pool.grad(x=lambda F, g, x_shape, **windows: F.sum_pool_grad(g, shape=x_shape, **windows))
sum_pool_grad.grad(
    x=lambda F, g, kernel, stride, pad, positions, count: F.sum_pool(
        g, kernel=kernel, stride=stride, pad=pad, positions=positions, count=count
    )
)


@operator(
    "lp_pool",
    infer=_chosen,
    kinks="where the norm is 0 the gradient is 0",
    samples=[Sample((1, 2, 4, 2), low=0.2, p=p, **_WINDOWS) for p in (1, 2, 3)],
    reference=lambda x, p, **windows: _sums(np.abs(x) ** p, **windows) ** (1 / p),
    nd=False,
)
def lp_pool(xp: Any, x: Any, *, kernel: Any, stride: Any, pad: Any, positions: Any, p: int, out: Any) -> None:
    """The p-norm of every window.

    x: (n, c, *size), floating point.   Result: (n, c, *positions).
    """
    sum_pool.kernel(xp, xp.abs(x) ** p, kernel=kernel, stride=stride, pad=pad, positions=positions, out=out)
    xp.power(out, 1 / p, out)


def _lp_gradient(F: Any, g: Any, x: Any, out: Any, x_shape: Any, p: int, **windows: Any) -> Any:
    some = F.greater(out, 0)
    each = F.where(some, g / F.power(F.where(some, out, 1), p - 1), 0)
    return F.sum_pool_grad(each, shape=x_shape, **windows) * F.power(F.abs(x), p - 1) * F.sign(x)


lp_pool.grad(x=_lp_gradient)


# ---- MXNet's layer ---------------------------------------------------------------------------------------------------


def _positions(size: Extents, kernel: Extents, stride: Extents, pad: Extents, convention: str) -> Extents:
    found = []
    for n, k, s, p in zip(size, kernel, stride, pad, strict=True):
        room = n + 2 * p - k
        found.append({"valid": room // s, "full": -(-room // s), "same": -(-(room + k) // s) - 1}[convention] + 1)
    return tuple(found)


def _pooling_variant(inputs: Sequence[Any], a: Attributes, training: bool) -> Any:
    (x,) = inputs
    kind, convention = a["pool_type"], a["pooling_convention"]
    known("pool_type", kind, ("max", "avg", "sum", "lp"))
    known("pooling_convention", convention, ("valid", "full", "same"))
    axes = x.ndim - 2
    if not 1 <= axes <= 3:
        raise ValueError("data (n, channels, ...) with one, two or three axes of positions expected")
    known("layout", a["layout"], (None, LAYOUTS[axes]))  # type: ignore[arg-type]
    size = x.shape[2:]
    if a["global_pool"]:
        kernel, stride, pad, convention = size, (1,) * axes, (0,) * axes, "valid"
    else:
        kernel = extents("kernel", a["kernel"], axes, 0, 1)
        stride, pad = extents("stride", a["stride"], axes, 1, 1), extents("pad", a["pad"], axes, 0, 0)
    if any(p >= k or k > n + 2 * p for n, k, p in zip(size, kernel, pad, strict=True)):
        raise ValueError(f"a kernel {kernel} larger than its padding {pad} and within data of {size} expected")
    windows = {"kernel": kernel, "stride": stride, "pad": pad}
    windows["positions"] = _positions(size, kernel, stride, pad, convention)
    if kind == "max":
        return max_pool, inputs, windows
    if kind == "lp":
        if a["p_value"] not in (1, 2, 3):
            raise ValueError(f"p_value {a['p_value']}: 1, 2 or 3 expected")
        return lp_pool, inputs, {**windows, "p": int(a["p_value"])}
    count = "none" if kind == "sum" else "data" if a["count_include_pad"] is False else "padded"
    return sum_pool, inputs, {**windows, "count": count}


@operator(
    "Pooling", kinks=f"{FIRST} (max); where a norm is 0 the gradient is 0 (lp)",
    infer=spelling, variant=_pooling_variant, aliases=("Pooling_v1",),
    samples=[
        Sample(_DISTINCT, kernel=(2, 2), stride=(2, 1), pad=(0, 1)),
        Sample((1, 2, 5), kernel=3, stride=2, pool_type="avg", pooling_convention="full", count_include_pad=False),
        Sample((2, 2, 3, 3), pool_type="avg", global_pool=True),
        Sample((1, 1, 3, 3, 2), low=0.2, kernel=(2, 2, 2), pool_type="lp", p_value=2),
    ],
    nd=Rule(rename=X, ignore=("cudnn_off",), method=False),
)  # fmt: skip
def pooling(
    xp: Any, x: Any, *, kernel: Any = (), pool_type: str = "max", global_pool: bool = False,
    pooling_convention: str = "valid", stride: Any = (), pad: Any = (), p_value: int | None = None,
    count_include_pad: bool | None = None, layout: str | None = None, out: Any,
) -> None:  # fmt: skip
    """The largest element ("max"), mean ("avg"), sum or p-norm ("lp", p_value 1, 2 or 3) of every window.

    x: (n, channels, *size) with one, two or three axes of positions.   Result: (n, channels, *positions),
    positions = (size + 2 pad - kernel) / stride + 1, rounded down ("valid") or up ("full"), or (size + 2 pad) / stride
    rounded up ("same"); (1, ...) with global_pool.  A mean counts the padding unless count_include_pad is False.
    Source: MXNet Pooling.
    """
