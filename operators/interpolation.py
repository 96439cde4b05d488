"""Values between the places of a grid: bilinear sampling and the grids for it.

All come to `interpolate`: each result is a weighted sum of a few cells.  Cells, weights and what is done with the
result form a trilinear product, whose three derivatives are `interpolate`, `spread` and `agree`; they are each other's
gradients, so every order exists.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from .composite import derived
from .faces import Rule
from .infer import floating, uniform
from .nn import known
from .schema import Attributes, Inferred, Metas, Sample, operator, zero
from .texts import raw

FEW = 32  # channels
_PLACES = np.array([[0, 2], [1, -1], [2, 2], [3, 0]])


def weighing(xp: Any, weights: Any, places: Any, length: int) -> Any:
    """The sparse matrix (places, length) with these weights in its rows; a place below 0 is none."""
    counts = places >= 0
    starts = xp.concatenate(([0], xp.cumsum(counts.sum(1))))
    return sparse.csr_matrix((weights[counts], places[counts], starts), shape=(len(places), length))


def _interpolate(metas: Metas, attributes: Attributes) -> Inferred:
    cells, weights, places = metas
    assert cells is not None and weights is not None and places is not None
    dtype = uniform(cells, weights)
    floating(cells)
    if len(cells[0]) != 2 or weights[0] != places[0] or len(places[0]) != 2:
        raise ValueError("cells (k, c), weights and places (p, q) expected")
    return (((places[0][0], cells[0][1]), dtype),), attributes


def _spread(metas: Metas, attributes: Attributes) -> Inferred:
    x = metas[0]
    assert x is not None
    return (((int(attributes["length"]), x[0][1]), x[1]),), attributes


def _agree(metas: Metas, attributes: Attributes) -> Inferred:
    x, _, places = metas
    assert x is not None and places is not None
    return ((places[0], x[1]),), attributes


def _known_cells(cells: Any, places: Any) -> Any:
    return np.where(places[..., None] < 0, 0, cells[places])


@operator(
    "interpolate", infer=_interpolate, indices=("places",), nd=False, samples=[Sample((4, 3), (4, 2), _PLACES)],
    reference=lambda cells, weights, places: np.einsum("pq,pqc->pc", weights, _known_cells(cells, places)),
)  # fmt: skip
def interpolate(xp: Any, cells: Any, weights: Any, places: Any, *, out: Any) -> None:
    """Weighted sums of cells.  Shapes: (k, c), (p, q), (p, q) -> (p, c); a place below 0 is none."""
    out[...] = weighing(xp, weights, places, len(cells)) @ cells


def _reference_spread(x: Any, weights: Any, places: Any, length: int) -> Any:
    total = np.zeros((length, x.shape[1]))
    for p, q in np.argwhere(places >= 0):
        total[places[p, q]] += weights[p, q] * x[p]
    return total


@operator(
    "spread", infer=_spread, indices=("places",), nd=False, samples=[Sample((4, 3), (4, 2), _PLACES, length=5)],
    reference=_reference_spread,
)  # fmt: skip
def spread(xp: Any, x: Any, weights: Any, places: Any, *, length: int, out: Any) -> None:
    """The transpose of `interpolate` as a map of its cells.  Shapes: (p, c), (p, q), (p, q) -> (length, c)."""
    out[...] = weighing(xp, weights, places, length).T @ x


@operator(
    "agree", infer=_agree, indices=("places",), nd=False, samples=[Sample((4, 3), (4, 3), _PLACES)],
    reference=lambda x, cells, places: np.einsum("pc,pqc->pq", x, _known_cells(cells, places)),
)  # fmt: skip
def agree(xp: Any, x: Any, cells: Any, places: Any, *, out: Any) -> None:
    """The transpose of `interpolate` as a map of its weights.  Shapes: (p, c), (k, c), (p, q) -> (p, q)."""
    x = xp.ascontiguousarray(x)
    for j in range(places.shape[1]):
        xp.einsum("pc,pc->p", x, cells[places[:, j]], out=out[:, j])
    out[places < 0] = 0


interpolate.grad(
    cells=lambda F, g, weights, places, cells_shape: F.spread(g, weights, places, length=cells_shape[0]),
    weights=lambda F, g, cells, places: F.agree(g, cells, places),
    places=zero,
)
spread.grad(
    x=lambda F, g, weights, places: F.interpolate(g, weights, places),
    weights=lambda F, g, x, places: F.agree(x, g, places),
    places=zero,
)
agree.grad(
    x=lambda F, g, cells, places: F.interpolate(cells, g, places),
    cells=lambda F, g, x, places, cells_shape: F.spread(x, g, places, length=cells_shape[0]),
    places=zero,
)


def as_cells(F: Any, data: Any) -> Any:
    """(n, c, h, w) -> (n h w, c)"""
    n, c, h, w = data.shape
    return F.reshape(F.transpose(data, axes=(0, 2, 3, 1)), shape=(n * h * w, c))


def from_cells(F: Any, cells: Any, n: int, size: Sequence[int]) -> Any:
    """(n h w, c) -> (n, c, h, w)"""
    return F.transpose(F.reshape(cells, shape=(n, *size, cells.shape[1])), axes=(0, 3, 1, 2))


def images(*metas: Any) -> None:
    uniform(*metas)
    floating(metas[0])
    if any(len(meta[0]) != 4 for meta in metas) or 0 in metas[0][0]:
        raise ValueError("data (n, channels, height, width) expected")


# ---- BilinearSampler -------------------------------------------------------------------------------------------------


def sampled(F: Any, data: Any, grid: Any) -> Any:
    n, _, *size = data.shape
    _, _, *positions = grid.shape
    count = n * math.prod(positions)
    along = []
    for k, length in ((1, size[0]), (0, size[1])):
        at = F.reshape(F.slice_axis(grid, axis=1, begin=k, end=k + 1), shape=(count,))
        at = (at + 1) * ((length - 1) / 2)
        low = F.floor(at)
        after, first = at - low, F.cast(low, dtype="int64")
        along.append([(first, 1 - after), (first + 1, after)])
    base = np.repeat(np.arange(n), math.prod(positions)) * math.prod(size)
    places, weights = [], []
    for y, by_y in along[0]:
        for x, by_x in along[1]:
            inside = F.logical_and(
                F.logical_and(F.greater_equal(y, 0), F.less(y, size[0])),
                F.logical_and(F.greater_equal(x, 0), F.less(x, size[1])),
            )
            places.append(F.where(inside, F.add(y * size[1] + x, base), -1))
            weights.append(by_y * by_x)
    made = F.interpolate(as_cells(F, data), F.stack(*weights, axis=1), F.stack(*places, axis=1))
    return from_cells(F, made, n, positions)


def _corners(at: Any, length: int) -> list[tuple[Any, Any, Any]]:
    """(index, weight, whether it is none) of the places below and above, along one axis."""
    low = np.floor(at)
    after = at - low
    found = []
    for place, weight in ((low, 1 - after), (low + 1, after)):
        inside = (place >= 0) & (place < length)
        outside = ~inside
        np.copyto(weight, 0, where=outside)
        np.copyto(place, 0, where=outside)
        found.append((place.astype(np.int64), weight, outside))
    return found


def _sample_into(out: Any, data: Any, grid: Any) -> None:
    """`sampled` into memory of the result's shape, channel by channel in one call: quicker for few channels."""
    n, channels, h, w = data.shape
    positions = math.prod(grid.shape[2:])
    cells = np.zeros((channels, n * h * w + 1), data.dtype, like=data)  # the last is outside
    cells[:, :-1].reshape(channels, n, h * w)[...] = data.reshape(n, channels, h * w).transpose(1, 0, 2)
    x, y = np.ascontiguousarray(grid.reshape(n, 2, positions).transpose(1, 0, 2), like=grid)
    base = np.arange(n, like=data)[:, None] * (h * w)
    columns, rows = _corners((x + 1) * ((w - 1) / 2), w), _corners((y + 1) * ((h - 1) / 2), h)
    total = np.zeros((channels, n, positions), data.dtype, like=data)
    for (i, by_y, above), (j, by_x, beside) in itertools.product(rows, columns):
        where = i * w
        where += j
        where += base
        np.copyto(where, n * h * w, where=above | beside)
        part = cells.take(where, axis=1)
        part *= by_y * by_x
        total += part
    out[...] = total.transpose(1, 0, 2).reshape(out.shape)


def _sampler(metas: Metas, attributes: Attributes) -> Inferred:
    data, grid = metas
    assert data is not None and grid is not None
    images(data, grid)
    if grid[0][:2] != (data[0][0], 2):
        raise ValueError(f"grid of shape ({data[0][0]}, 2, height, width) expected")
    return (((*data[0][:2], *grid[0][2:]), data[1]),), attributes


@operator(
    "BilinearSampler", kinks="at a place itself the gradient by the grid is that from above",
    infer=_sampler, reference=lambda data, grid: sampled(raw, data, grid), cost=60,
    samples=[Sample((2, 2, 3, 4), (2, 2, 2, 3)), Sample((1, 1, 3, 2), (1, 2, 2, 2), low=-1.9, high=1.7)],
    nd=Rule(ignore=("cudnn_off",), method=False),
)  # fmt: skip
def bilinear_sampler(xp: Any, data: Any, grid: Any, *, out: Any) -> None:
    """Data between its places: out[n, c, i, j] is data[n, c] at x = grid[n, 0, i, j], y = grid[n, 1, i, j].

    data: (n, c, h, w).   grid: (n, 2, i, j); -1 is the first place, 1 the last, what lies outside is 0.   Floating
    point.   Result: (n, c, i, j).   Source: Jaderberg et al. 2015.   MXNet: BilinearSampler.
    """
    if data.shape[1] <= FEW:
        _sample_into(out, data, grid)
    else:
        out[...] = sampled(raw, data, grid)


derived(bilinear_sampler, sampled, "data", "grid")


# ---- GridGenerator and SpatialTransformer ----------------------------------------------------------------------------


def _mesh(size: Sequence[int], dtype: Any) -> Any:
    """(x, y) of every position, counted from -1 to 1, and 1: (3, h w)."""
    ys, xs = ((np.arange(n) * 2 / (n - 1) - 1 if n > 1 else np.full(1, -1.0)) for n in size)
    grid = np.broadcast_arrays(xs, ys[:, None], 1.0)
    return np.stack(grid).reshape(3, -1).astype(dtype)


def generated(F: Any, data: Any, *, transform_type: str, target_shape: Any) -> Any:
    n = data.shape[0]
    if transform_type == "affine":
        made = F.matmul(F.reshape(data, shape=(2 * n, 3)), _mesh(target_shape, data.dtype))
        return F.reshape(made, shape=(n, 2, *target_shape))
    h, w = data.shape[2:]
    places = np.stack(np.meshgrid(np.arange(w), np.arange(h))).astype(data.dtype)
    halves = np.array([max(w - 1, 1), max(h - 1, 1)]).reshape(2, 1, 1).astype(data.dtype) / 2
    return F.divide(F.add(data, places), halves) - 1


def _target(attributes: Attributes) -> tuple[int, int]:
    given = attributes["target_shape"]
    given = (given, given) if isinstance(given, int) else tuple(given)
    if len(given) != 2 or min(given) < 1:
        raise ValueError(f"target_shape {given}: (height, width) expected")
    return given


def _generator(metas: Metas, attributes: Attributes) -> Inferred:
    (data,) = metas
    assert data is not None
    floating(data)
    kind = attributes["transform_type"]
    known("transform_type", kind, ("affine", "warp"))
    if kind == "affine":
        if len(data[0]) != 2 or data[0][1] != 6:
            raise ValueError("data (n, 6) expected")
        target = _target(attributes)
        return (((data[0][0], 2, *target), data[1]),), {**attributes, "target_shape": target}
    if len(data[0]) != 4 or data[0][1] != 2:
        raise ValueError("data (n, 2, height, width) expected")
    return (data,), attributes


@operator(
    "GridGenerator", infer=_generator, nd=Rule(method=False),
    reference=lambda data, transform_type, target_shape=(): generated(
        raw, data, transform_type=transform_type, target_shape=target_shape
    ),
    samples=[
        Sample((2, 6), transform_type="affine", target_shape=(2, 3)), Sample((2, 2, 2, 3), transform_type="warp"),
    ],
)  # fmt: skip
def grid_generator(xp: Any, data: Any, *, transform_type: str, target_shape: Any = (0, 0), out: Any) -> None:
    """A grid for BilinearSampler.

    "affine": data (n, 6), the matrix (2, 3) that takes (x, y, 1) of each position of target_shape, from -1 to 1, to
    where it samples; result (n, 2, *target_shape).   "warp": data (n, 2, h, w), how far from its own place each
    position samples; result of the same shape.   MXNet: GridGenerator.
    """
    out[...] = generated(raw, data, transform_type=transform_type, target_shape=target_shape)


derived(grid_generator, generated, "data")


def transformed(F: Any, data: Any, loc: Any, *, target_shape: Any) -> Any:
    return sampled(F, data, generated(F, loc, transform_type="affine", target_shape=target_shape))


def _transformer(metas: Metas, attributes: Attributes) -> Inferred:
    data, loc = metas
    assert data is not None and loc is not None
    uniform(data, loc)
    images(data)
    known("transform_type", attributes["transform_type"], ("affine",))
    known("sampler_type", attributes["sampler_type"], ("bilinear",))
    if loc[0] != (data[0][0], 6):
        raise ValueError(f"loc of shape ({data[0][0]}, 6) expected")
    target = data[0][2:] if attributes["target_shape"] in ((0, 0), (), 0) else _target(attributes)
    return (((*data[0][:2], *target), data[1]),), {**attributes, "target_shape": target}


@operator(
    "SpatialTransformer", kinks="those of BilinearSampler",
    infer=_transformer, cost=60, nd=Rule(ignore=("cudnn_off",), method=False),
    reference=lambda data, loc, target_shape, **_: transformed(raw, data, loc, target_shape=target_shape),
    samples=[
        Sample((2, 2, 3, 4), (2, 6), target_shape=(2, 3), transform_type="affine", sampler_type="bilinear", low=-0.6,
               high=0.7),
    ],
)  # fmt: skip
def spatial_transformer(
    xp: Any, data: Any, loc: Any, *, target_shape: Any = (0, 0), transform_type: str, sampler_type: str, out: Any
) -> None:
    """Data sampled where an affine map says: BilinearSampler of the grid that GridGenerator makes of loc.

    data: (n, c, h, w).   loc: (n, 6).   Result: (n, c, *target_shape), by default of the shape of data.
    MXNet: SpatialTransformer.
    """
    bilinear_sampler.kernel(xp, data, generated(raw, loc, transform_type="affine", target_shape=target_shape), out=out)


derived(spatial_transformer, transformed, "data", "loc")
