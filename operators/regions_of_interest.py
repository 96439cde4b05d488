"""Regions of images: ROIAlign, ROIPooling, and Correlation of the surroundings of two images."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from ..engine.parallel import parallel
from ..ndarray.dtype import INT64
from .composite import derived
from .faces import Rule
from .infer import floating, uniform
from .interpolation import as_cells, from_cells, weighing
from .products import cuts
from .schema import Attributes, Inferred, Meta, Metas, Sample, constant, operator, zero
from .sorting import ranks
from .texts import raw

BLOCK = 1 << 18  # elements that are looked at together
LAST = 0xFFFFFFFF  # cell


def _pair(what: str, given: Any) -> tuple[int, int]:
    size = (int(given),) * 2 if isinstance(given, int) else tuple(map(int, given))
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{what} {given}: (height, width) from 1 expected")
    return size


def _regions(data: Any, rois: Any, attributes: Attributes) -> Attributes:
    if len(data[0]) != 4 or 0 in data[0]:
        raise ValueError("data (n, channels, height, width) expected")
    if len(rois[0]) != 2 or rois[0][1] != 5:
        raise ValueError("rois (k, 5) expected: which image, x1, y1, x2, y2")
    scale = float(attributes["spatial_scale"])
    return {**attributes, "pooled_size": _pair("pooled_size", attributes["pooled_size"]), "spatial_scale": scale}


def _images(rois: Any, n: int) -> Any:
    images = rois[:, 0].astype(np.int64)
    if len(images) and (images.min() < 0 or images.max() >= n):
        raise IndexError(f"rois of image {images[(images < 0) | (images >= n)][0]}, and there are {n}")
    return images


# ---- ROIAlign --------------------------------------------------------------------------------------------------------


def _samples_along(first: Any, extent: Any, bins: int, counts: Any, length: int) -> tuple[Any, Any]:
    """(places, weights), (rois, bins, samples, 2), along one axis; -1 is none."""
    sample = np.arange(max(int(counts.max()), 1) if counts.size else 1, like=counts)
    width = (extent / bins)[:, None, None]
    at = first[:, None, None] + (np.arange(bins, like=counts)[:, None] + (sample + 0.5) / counts[:, None, None]) * width
    outside = (at < -1) | (at > length) | (sample >= counts[:, None, None])
    at = at.clip(0, length - 1)
    low = at.astype(np.int64)
    after = at - low
    places = np.stack((low, (low + 1).clip(0, length - 1)), -1)
    return np.where(outside[..., None], -1, places), np.stack((1 - after, after), -1)


def _aligned(rois: Any, shape: Any, pooled: Any, scale: float, ratio: int, aligned: bool) -> tuple[Any, Any]:
    """(places among all cells, weights), (rois * bins, cells of a bin)."""
    n, _, h, w = shape
    base = _images(rois, n) * h * w
    x1, y1, x2, y2 = rois[:, 1:].T * rois.dtype.type(scale) - rois.dtype.type(0.5 if aligned else 0)
    along = []
    numbers: Any = 1.0
    for first, last, bins, length in ((y1, y2, pooled[0], h), (x1, x2, pooled[1], w)):
        extent = last - first if aligned else (last - first).clip(1)
        counts = np.full(len(rois), ratio, like=rois) if ratio > 0 else np.ceil(extent / bins).clip(1).astype(np.int64)
        numbers = numbers * counts
        along.append(_samples_along(first, extent, bins, counts, length))
    (ys, by_y), (xs, by_x) = along
    ys, by_y = ys[:, :, None, :, None, :, None], by_y[:, :, None, :, None, :, None]
    xs, by_x = xs[:, None, :, None, :, None], by_x[:, None, :, None, :, None]
    where = base[:, None, None, None, None, None, None] + ys * w + xs
    places = np.where((ys < 0) | (xs < 0), -1, where)
    weights = by_y * by_x / numbers[:, None, None, None, None, None, None]
    rows = len(rois) * math.prod(pooled)
    width = math.prod(places.shape[3:])
    return places.reshape(rows, width), np.broadcast_to(weights, places.shape).reshape(rows, width)


def _both(metas: Metas, attributes: Attributes) -> tuple[Meta, Meta, Attributes]:
    """Data, regions and normalised attributes, checked."""
    data, rois = metas
    assert data is not None and rois is not None
    uniform(data, rois)
    floating(data)
    return data, rois, _regions(data, rois, attributes)


def _align(metas: Metas, attributes: Attributes) -> Inferred:
    data, rois, attributes = _both(metas, attributes)
    channels, bins = data[0][1], math.prod(attributes["pooled_size"])
    if attributes["position_sensitive"]:
        if channels % bins:
            raise ValueError(f"channels that divide by {bins} expected with position_sensitive")
        channels //= bins
    return (((rois[0][0], channels, *attributes["pooled_size"]), data[1]),), attributes


_ROIS = np.array([[0, 0.3, 0.2, 3.1, 2.7], [1, -2.0, 1.1, 6.4, 2.2], [0, 1.2, 1.3, 1.4, 1.5]])
_ALIGNED: list[dict[str, Any]] = [
    {"pooled_size": (2, 2), "spatial_scale": 1.0}, {"pooled_size": (1, 2), "spatial_scale": 0.5, "sample_ratio": 2},
    {"pooled_size": (2, 2), "spatial_scale": 0.9, "aligned": True, "position_sensitive": True},
]  # fmt: skip


def _slow_align(data: Any, rois: Any, pooled_size: Any, spatial_scale: float, sample_ratio: int = -1,
                position_sensitive: bool = False, aligned: bool = False) -> Any:  # fmt: skip
    """ROIAlign, sample by sample."""
    (ph, pw), (h, w) = pooled_size, data.shape[2:]
    channels = data.shape[1] // (ph * pw if position_sensitive else 1)
    out = np.zeros((len(rois), channels, ph, pw))
    for k, (image, *box) in enumerate(rois):
        x1, y1, x2, y2 = (v * spatial_scale - 0.5 * aligned for v in box)
        rh, rw = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1), max(x2 - x1, 1))
        nh, nw = (sample_ratio,) * 2 if sample_ratio > 0 else (max(math.ceil(rh / ph), 1), max(math.ceil(rw / pw), 1))
        for c, i, j, a, b in itertools.product(range(channels), range(ph), range(pw), range(nh), range(nw)):
            y, x = y1 + (i + (a + 0.5) / nh) * rh / ph, x1 + (j + (b + 0.5) / nw) * rw / pw
            if not (-1 <= y <= h and -1 <= x <= w):
                continue
            y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
            cell = data[int(image), (c * ph + i) * pw + j if position_sensitive else c]
            y0, x0 = int(y), int(x)
            for yy, fy in ((y0, 1 - y + y0), (min(y0 + 1, h - 1), y - y0)):
                for xx, fx in ((x0, 1 - x + x0), (min(x0 + 1, w - 1), x - x0)):
                    out[k, c, i, j] += cell[yy, xx] * fy * fx / (nh * nw)
    return out


@operator(
    "contrib_ROIAlign", infer=_align, nd=Rule(space="contrib"), cost=100, reference=_slow_align,
    samples=[Sample((2, 4, 4, 5), _ROIS, **how) for how in _ALIGNED],
)  # fmt: skip
def roi_align(
    xp: Any, data: Any, rois: Any, *, pooled_size: Any, spatial_scale: float, sample_ratio: int = -1,
    position_sensitive: bool = False, aligned: bool = False, out: Any,
) -> None:  # fmt: skip
    """Averages of bilinear samples in the bins of regions.

    data: (n, c, h, w).   rois: (k, 5), which image, x1, y1, x2, y2, in pixels / spatial_scale; no gradient flows to
    them.   sample_ratio: samples along each axis of a bin, default as many as it has pixels.   aligned: pixels' centres
    lie at halves.   position_sensitive: each bin has channels of its own.   Result: (k, c, *pooled_size), or
    (k, c / bins, ...).   An image that is not there is an error on the data.   MXNet: contrib.ROIAlign.
    """
    places, weights = _aligned(rois, data.shape, pooled_size, spatial_scale, sample_ratio, aligned)
    matrix = weighing(xp, weights.astype(data.dtype), places, data.size // data.shape[1])
    made = from_cells(raw, matrix @ as_cells(raw, data), len(rois), pooled_size)
    if position_sensitive:
        made = xp.einsum("kcijij->kcij", made.reshape(*out.shape, *pooled_size))
    out[...] = made


def _align_back(metas: Metas, attributes: Attributes) -> Inferred:
    return ((attributes["shape"], metas[0][1]),), attributes  # type: ignore[index]


@operator("roi_align_back", infer=_align_back, nd=False, cost=100)
def roi_align_back(
    xp: Any, grad: Any, rois: Any, *, shape: Any, pooled_size: Any, spatial_scale: float, sample_ratio: int,
    position_sensitive: bool, aligned: bool, out: Any,
) -> None:  # fmt: skip
    """The transpose of ROIAlign as a map of its data, of this shape."""
    places, weights = _aligned(rois, shape, pooled_size, spatial_scale, sample_ratio, aligned)
    matrix = weighing(xp, weights.astype(grad.dtype), places, math.prod(shape) // shape[1])
    if position_sensitive:
        whole = xp.zeros((*grad.shape, *pooled_size), grad.dtype)
        xp.einsum("kcijij->kcij", whole)[...] = grad
        grad = whole.reshape(len(rois), shape[1], *pooled_size)
    out[...] = from_cells(raw, matrix.T @ as_cells(raw, grad), shape[0], shape[2:])


roi_align.grad(data=lambda F, g, rois, data_shape, **how: F.roi_align_back(g, rois, shape=data_shape, **how), rois=zero)
roi_align_back.grad(
    grad=lambda F, g, rois, pooled_size, spatial_scale, sample_ratio, position_sensitive, aligned: F.contrib_ROIAlign(
        g, rois, pooled_size=pooled_size, spatial_scale=spatial_scale, sample_ratio=sample_ratio,
        position_sensitive=position_sensitive, aligned=aligned,
    ),
    rois=zero,
)  # fmt: skip


# ---- ROIPooling ------------------------------------------------------------------------------------------------------


def _pooling(metas: Metas, attributes: Attributes) -> Inferred:
    data, rois, attributes = _both(metas, attributes)
    shape = (rois[0][0], data[0][1], *attributes["pooled_size"])
    return ((shape, data[1]), (shape, INT64)), attributes


def _bins_along(first: Any, last: Any, bins: int, length: int) -> tuple[Any, Any]:
    """Where each bin begins and ends, (rois, bins)."""
    dtype = first.dtype
    first, last = (np.copysign(np.floor(abs(v) + 0.5), v).astype(np.int64) for v in (first, last))
    width = ((last - first + 1).clip(1).astype(dtype) / dtype.type(bins))[:, None]
    counts = np.arange(bins + 1, dtype=dtype)
    starts = (np.floor(counts[:-1] * width).astype(np.int64) + first[:, None]).clip(0, length)
    return starts, (np.ceil(counts[1:] * width).astype(np.int64) + first[:, None]).clip(0, length)


def _keys(data: Any) -> Any:
    """Whole numbers in the order of the elements, earlier cells before later ones of the same value: (n, h, w, c).

    The lower half is `LAST` - the cell.  The upper half is the element's rank.
    """
    n, c, h, w = data.shape
    order = ranks(data)
    if order is None:
        order = np.unique(data, return_inverse=True)[1].reshape(data.shape)
    keys = np.empty((n, h, w, c), np.int64, like=data)
    keys[...] = order.transpose(0, 2, 3, 1)
    keys <<= 32
    keys |= (LAST - np.arange(h * w, like=data)).reshape(h, w, 1)
    return keys


def _largest(data: Any, images: Any, along: Any) -> Any:
    """The cell, counted in its channel, of the largest element of each bin, (rois, bins, bins, c); -1: an empty bin.

    A bin is covered by four rectangles whose sides are powers of two.  The largest elements of all such rectangles come
    from those of half the side.
    """
    (top, bottom), (left, right) = along
    levels = [np.frexp(ends - starts)[1] - 1 for starts, ends in along]
    found = np.full((*top.shape, left.shape[1], data.shape[1]), -1, like=data)
    tall = _keys(data)
    for a in range(max(int(levels[0].max()), 0) + 1 if levels[0].size else 1):
        if a:
            half = 1 << (a - 1)
            tall = np.maximum(tall[:, :-half], tall[:, half:])
        wide = tall
        for b in range(max(int(levels[1].max()), 0) + 1 if levels[1].size else 1):
            if b:
                half = 1 << (b - 1)
                wide = np.maximum(wide[:, :, :-half], wide[:, :, half:])
            k, i, j = np.nonzero((levels[0] == a)[:, :, None] & (levels[1] == b)[:, None, :])
            if len(k):
                rows = [(images[k] * wide.shape[1] + y) * wide.shape[2] for y in (top[k, i], bottom[k, i] - (1 << a))]
                flat = wide.reshape(-1, wide.shape[3])
                best: Any = None
                for row, x in itertools.product(rows, (left[k, j], right[k, j] - (1 << b))):
                    values = flat.take(row + x, axis=0)
                    best = values if best is None else np.maximum(best, values, out=best)
                found[k, i, j] = LAST - (best & LAST)
    return found


def _slow_pooling(data: Any, rois: Any, pooled_size: Any, spatial_scale: float) -> Any:
    (ph, pw), (h, w) = pooled_size, data.shape[2:]
    out = np.zeros((len(rois), data.shape[1], ph, pw))
    for k, (image, *box) in enumerate(rois):
        x1, y1, x2, y2 = (math.floor(abs(v * spatial_scale) + 0.5) * (1 if v > 0 else -1) for v in box)
        bh, bw = max(y2 - y1 + 1, 1) / ph, max(x2 - x1 + 1, 1) / pw
        for i, j in np.ndindex(ph, pw):
            ys = slice(*(min(max(v + y1, 0), h) for v in (math.floor(i * bh), math.ceil((i + 1) * bh))))
            xs = slice(*(min(max(v + x1, 0), w) for v in (math.floor(j * bw), math.ceil((j + 1) * bw))))
            part = data[int(image), :, ys, xs].reshape(data.shape[1], -1)
            out[k, :, i, j] = part.max(1) if part.size else 0
    return out


@operator(
    "ROIPooling", kinks="of several largest elements the first has the gradient",
    infer=_pooling, saves={"places": constant}, nd=Rule(method=False), cost=100, reference=_slow_pooling,
    samples=[
        Sample((2, 2, 4, 5), _ROIS, pooled_size=(2, 2), spatial_scale=1.0),
        Sample((2, 1, 4, 5), _ROIS, pooled_size=(3, 2), spatial_scale=0.7),
    ],
)  # fmt: skip
def roi_pooling(
    xp: Any, data: Any, rois: Any, *, pooled_size: Any, spatial_scale: float, out: Any, places: Any
) -> None:
    """The largest element of each bin of regions; 0 for a bin outside of the image.

    data: (n, c, h, w).   rois: (k, 5), which image, x1, y1, x2, y2, in pixels / spatial_scale, rounded; no gradient
    flows to them.   Result: (k, c, *pooled_size).   An image that
    is not there is an error on the data.   MXNet: ROIPooling.
    """
    n, c, h, w = data.shape
    images = _images(rois, n)
    x1, y1, x2, y2 = rois[:, 1:].T * rois.dtype.type(spatial_scale)
    along = _bins_along(y1, y2, pooled_size[0], h), _bins_along(x1, x2, pooled_size[1], w)

    used, own = np.unique(images, return_inverse=True)

    def block(part: slice) -> None:
        cells = np.moveaxis(_largest(data[used, part], own, along), 3, 1)
        base = ((images[:, None] * c + np.arange(c, like=images)[part]) * (h * w))[:, :, None, None]
        places[:, part] = np.where(cells < 0, -1, base + cells)
        out[:, part] = np.where(cells < 0, 0, data.take(places[:, part].clip(0)))

    size = len(used) * c * h * w + 4 * out.size
    parallel(block, cuts(c, max(1, min(c, -(-size // BLOCK))), 1) if len(rois) else [])


def _pooling_gradient(F: Any, g: Any, places: Any, data_shape: Any) -> Any:
    count = math.prod(g.shape)
    g = F.where(F.greater_equal(places, 0), g, 0)
    flat, where = F.reshape(g, shape=(count,)), F.reshape(places, shape=(count,))
    return F.reshape(F.add_rows(flat, where, shape=(math.prod(data_shape),), axis=0), shape=data_shape)


roi_pooling.grad(data=_pooling_gradient, rois=zero)


# ---- Correlation -----------------------------------------------------------------------------------------------------


def _layout(shape: Any, a: Attributes) -> tuple[int, int, tuple[int, ...]]:
    """(border, displacements to each side, positions)"""
    border = a["max_displacement"] + (a["kernel_size"] - 1) // 2
    positions = tuple(-(-(n + 2 * a["pad_size"] - 2 * border) // a["stride1"]) for n in shape[2:])
    return border, a["max_displacement"] // a["stride2"], positions


def correlated(
    F: Any, data1: Any, data2: Any, *, kernel_size: int, max_displacement: int, stride1: int, stride2: int,
    pad_size: int, is_multiply: bool,
) -> Any:  # fmt: skip
    own = {"kernel_size": kernel_size, "max_displacement": max_displacement, "stride1": stride1, "stride2": stride2}
    border, side, positions = _layout(data1.shape, {**own, "pad_size": pad_size})
    channels, half = data1.shape[1], (kernel_size - 1) // 2
    width = (0, 0, 0, 0, *(pad_size,) * 4)
    x, y = (F.pad(d, mode="constant", pad_width=width) if pad_size else d for d in (data1, data2))

    def cut(array: Any, dy: int, dx: int) -> Any:
        begin = (0, 0, border - half + dy, border - half + dx)
        end = [b + (n - 1) * stride1 + 1 for b, n in zip(begin[2:], positions, strict=True)]
        return F.slice(array, begin=begin, end=(*array.shape[:2], *end), step=(1, 1, stride1, stride1))

    made = []
    for p, o in itertools.product(range(-side, side + 1), repeat=2):
        total: Any = None
        for i, j in itertools.product(range(kernel_size), repeat=2):
            a, b = cut(x, i, j), cut(y, i + p * stride2, j + o * stride2)
            part = F.sum(a * b if is_multiply else F.abs(a - b), axis=(1,))
            total = part if total is None else total + part
        made.append(total / float(kernel_size * kernel_size * channels))
    return F.stack(*made, axis=1)


def _correlation(metas: Metas, attributes: Attributes) -> Inferred:
    first, second = metas
    assert first is not None and second is not None
    uniform(first, second)
    floating(first)
    if len(first[0]) != 4 or second[0] != first[0] or 0 in first[0]:
        raise ValueError("two arrays (n, channels, height, width) of one shape expected")
    names = ("kernel_size", "max_displacement", "stride1", "stride2", "pad_size")
    attributes = {**{name: int(attributes[name]) for name in names}, "is_multiply": bool(attributes["is_multiply"])}
    if (
        attributes["kernel_size"] % 2 != 1
        or attributes["kernel_size"] < 1
        or min(attributes["stride1"], attributes["stride2"]) < 1
    ):
        raise ValueError("an odd kernel_size, and strides from 1, expected")
    if min(attributes["max_displacement"], attributes["pad_size"]) < 0:
        raise ValueError("max_displacement and pad_size from 0 expected")
    _, side, positions = _layout(first[0], attributes)
    if min(positions) < 1:
        raise ValueError("the kernel and its displacements exceed the padded data")
    return (((first[0][0], (2 * side + 1) ** 2, *positions), first[1]),), attributes


def _slow_correlation(a: Any, b: Any, kernel_size: int = 1, max_displacement: int = 1, stride1: int = 1,
                      stride2: int = 1, pad_size: int = 0, is_multiply: bool = True) -> Any:  # fmt: skip
    half, d = (kernel_size - 1) // 2, max_displacement // stride2
    a, b = (np.pad(x, ((0, 0), (0, 0), (pad_size,) * 2, (pad_size,) * 2)) for x in (a, b))
    border = max_displacement + half
    rows, columns = (range(border, n - border, stride1) for n in a.shape[2:])
    out = np.zeros((len(a), (2 * d + 1) ** 2, len(rows), len(columns)))
    for (i, y), (j, x) in itertools.product(enumerate(rows), enumerate(columns)):
        for k, (p, o) in enumerate(itertools.product(range(-d, d + 1), repeat=2)):
            one = a[:, :, y - half : y + half + 1, x - half : x + half + 1]
            y2, x2 = y + p * stride2, x + o * stride2
            two = b[:, :, y2 - half : y2 + half + 1, x2 - half : x2 + half + 1]
            out[:, k, i, j] = (one * two if is_multiply else abs(one - two)).mean((1, 2, 3))
    return out


@operator(
    "Correlation", kinks="without is_multiply the gradient where elements are equal is 0",
    infer=_correlation, nd=Rule(method=False), cost=500, reference=_slow_correlation,
    samples=[
        Sample((2, 2, 4, 5), (2, 2, 4, 5), max_displacement=1, pad_size=1),
        Sample((1, 2, 6, 5), (1, 2, 6, 5), kernel_size=3, max_displacement=2, stride1=2, stride2=2, pad_size=3),
        Sample((1, 1, 4, 4), (1, 1, 4, 4), is_multiply=False, max_displacement=1, pad_size=0),
    ],
)  # fmt: skip
def correlation(
    xp: Any, data1: Any, data2: Any, *, kernel_size: int = 1, max_displacement: int = 1, stride1: int = 1,
    stride2: int = 1, pad_size: int = 0, is_multiply: bool = True, out: Any,
) -> None:  # fmt: skip
    """Averages of products (or of absolute differences) of windows of data1 with displaced windows of data2.

    data1, data2: (n, c, h, w), padded by pad_size.   Windows have kernel_size (odd) and lie stride1 apart; they are
    displaced by multiples of stride2 up to max_displacement, each displacement a channel of the result.   Floating
    point.   Source: Dosovitskiy et al. 2015.   MXNet: Correlation.
    """
    out[...] = correlated(
        raw, data1, data2, kernel_size=kernel_size, max_displacement=max_displacement, stride1=stride1,
        stride2=stride2, pad_size=pad_size, is_multiply=is_multiply,
    )  # fmt: skip


derived(correlation, correlated, "data1", "data2")
