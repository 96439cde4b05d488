"""Images in another size, by bilinear interpolation or adaptive averages: weighted sums of a few places each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ndarray.dtype import is_float
from .composite import cotangents_of
from .faces import Rule
from .interpolation import images
from .nn import known, spelling
from .schema import Attributes, Inferred, Metas, Operator, Sample, operator
from .texts import raw


def _bilinear(n: int, m: int, align: bool) -> tuple[Any, Any]:
    """(places, weights), each (m, 2): how m numbers come of n; one comes of the first."""
    if align or m == 1:
        return _between(n, np.arange(m) * ((n - 1) / (m - 1) if m > 1 else 0.0))
    return _edges(n, m, align)


def _edges(n: int, m: int, _: bool) -> tuple[Any, Any]:
    """The same where the edges of the outermost places stay."""
    return _between(n, ((np.arange(m) + 0.5) * (n / m) - 0.5).clip(0))


def _between(n: int, at: Any) -> tuple[Any, Any]:
    low = at.astype(np.int64).clip(0, n - 1)
    after = at - low
    return np.stack((low, (low + 1).clip(0, n - 1)), 1), np.stack((1 - after, after), 1)


def _averages(n: int, m: int, _: bool) -> tuple[Any, Any]:
    """(places, weights): each of m numbers is an average of some of n."""
    starts, ends = np.arange(m) * n // m, -(-(np.arange(m) + 1) * n // m)
    places = starts[:, None] + np.arange((ends - starts).max())
    places = np.where(places < ends[:, None], places, -1)
    return places, (places >= 0) / (ends - starts)[:, None]


_KINDS = {"bilinear": _bilinear, "edges": _edges, "average": _averages}


def resampled(F: Any, data: Any, *, size: Any, kind: str, align: bool) -> Any:
    n, c, *before = data.shape
    (ys, by_y), (xs, by_x) = (_KINDS[kind](old, new, align) for old, new in zip(before, size, strict=True))
    ys, by_y = ys[:, None, :, None], by_y[:, None, :, None]
    places = np.where((ys < 0) | (xs[:, None] < 0), -1, ys * before[1] + xs[:, None])
    count = math.prod(size)
    weights = (by_y * by_x[:, None]).reshape(count, -1).astype(data.dtype)
    cells = F.transpose(F.reshape(data, shape=(n * c, math.prod(before))))
    made = F.interpolate(cells, weights, places.reshape(count, -1))
    return F.reshape(F.transpose(made), shape=(n, c, *size))


def _resample(metas: Metas, attributes: Attributes) -> Inferred:
    (data,) = metas
    images(data)
    assert data is not None
    return (((*data[0][:2], *attributes["size"]), data[1]),), attributes


@operator(
    "resample", infer=_resample, nd=False, cost=20,
    reference=lambda data, size, kind="bilinear", align=True: resampled(raw, data, size=size, kind=kind, align=align),
    samples=[Sample((2, 1, 3, 4), size=(2, 6), kind=kind, align=align)
             for kind, align in (("bilinear", True), ("bilinear", False), ("edges", True), ("average", True))],
)  # fmt: skip
def resample(xp: Any, data: Any, *, size: Any, kind: str = "bilinear", align: bool = True, out: Any) -> None:
    """Images (n, c, h, w) in another size, by bilinear interpolation or adaptive averages."""
    out[...] = resampled(raw, data, size=size, kind=kind, align=align)


def _resample_gradient(F: Any, g: Any, data_shape: Any, size: Any, kind: str, align: bool) -> Any:
    return F.resample_back(g, size=data_shape[2:], kind=kind, align=align)


def _reference_back(data: Any, size: Any, kind: str, align: bool) -> Any:
    n, c, *now = data.shape
    basis = np.eye(math.prod(size)).reshape(-1, 1, *size)
    spread_out = resampled(raw, basis, size=tuple(now), kind=kind, align=align).reshape(len(basis), -1)
    return (data.reshape(n * c, -1) @ spread_out.T).reshape(n, c, *size)


@operator(
    "resample_back", infer=_resample, nd=False, cost=20,
    samples=[Sample((2, 1, 3, 4), size=(2, 6), kind=kind, align=align)
             for kind, align in (("bilinear", True), ("bilinear", False), ("edges", True), ("average", True))],
    reference=_reference_back,
)  # fmt: skip
def resample_back(xp: Any, data: Any, *, size: Any, kind: str = "bilinear", align: bool = True, out: Any) -> None:
    """The transpose of `resample` of images of this size."""
    n, c, *now = data.shape
    identity = {"size": tuple(now), "kind": kind, "align": align}
    out[...] = _transposed(data, (n, c, *size), identity)


def _transposed(data: Any, shape: Any, how: Attributes) -> Any:
    (made,) = cotangents_of(raw, resampled, (np.zeros(shape, data.dtype),), how, (0,), (data,))
    return made


resample.grad(data=_resample_gradient)
resample_back.grad(
    data=lambda F, g, data_shape, size, kind, align: F.resample(g, size=data_shape[2:], kind=kind, align=align)
)


def _images_of(x: Any) -> tuple[int, int]:
    if x.ndim != 4 or not is_float(np.dtype(x.dtype)) or 0 in x.shape:
        raise ValueError("data (n, channels, height, width), floating point, expected")
    h, w = x.shape[2:]
    return h, w


def _average_variant(inputs: Sequence[Any], a: Attributes, training: bool) -> tuple[Operator, Any, Attributes]:
    _images_of(inputs[0])
    given = a["output_size"]
    given = (given,) if isinstance(given, int) else tuple(given) or (1,)
    size = given * 2 if len(given) == 1 else given
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"output_size {a['output_size']}: one or two numbers from 1 expected")
    return resample, inputs, {"size": size, "kind": "average", "align": True}


@operator(
    "contrib_AdaptiveAvgPooling2D", infer=spelling, variant=_average_variant, nd=Rule(space="contrib"),
    samples=[Sample((2, 1, 3, 4), output_size=(2, 3)), Sample((1, 2, 3, 2))],
)  # fmt: skip
def adaptive_average(xp: Any, data: Any, *, output_size: Any = (), out: Any) -> None:
    """Averages of as many windows as output_size says: one number, two, or none for one average.

    data: (n, c, h, w), floating point.   Window i of m reaches from i h // m to where (i + 1) h / m is rounded up.
    MXNet: contrib.AdaptiveAvgPooling2D.
    """


_MODES = {
    "to_even_down": lambda n: n - n % 2, "to_even_up": lambda n: n + n % 2,
    "to_odd_down": lambda n: n - (n % 2 == 0), "to_odd_up": lambda n: n + (n % 2 == 0),
}  # fmt: skip


def _resize_variant(inputs: Sequence[Any], a: Attributes, training: bool) -> tuple[Operator, Any, Attributes]:
    data, like = inputs
    old, mode = _images_of(data), a["mode"]
    scales, given = (a["scale_height"], a["scale_width"]), (a["height"], a["width"])
    known("mode", mode, ("size", "odd_scale", "like", *_MODES))
    if (like is None) is (mode == "like"):
        raise ValueError("like expected" if like is None else "like is for mode 'like' only")
    if mode == "odd_scale" and None in scales:
        raise ValueError("scale_height and scale_width expected")
    if mode == "like":
        size = like.shape[2:]
    elif mode == "odd_scale":
        size = tuple(int((n - n % 2) * s) + n % 2 for n, s in zip(old, scales, strict=True))
    elif mode == "size":
        size = tuple(int(m) if s is None else int(n * s) for n, m, s in zip(old, given, scales, strict=True))
    else:
        size = tuple(map(_MODES[mode], old))
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"the new size would be {size}")
    return resample, [data], {"size": size, "kind": "bilinear", "align": bool(a["align_corners"])}


@operator(
    "contrib_BilinearResize2D", infer=spelling, variant=_resize_variant, nd=Rule(space="contrib", mixed=True),
    samples=[Sample((2, 1, 3, 4), None, height=5, width=2), Sample((1, 1, 3, 4), None, mode="to_even_up")],
)  # fmt: skip
def bilinear_resize(
    xp: Any, data: Any, like: Any = None, *, height: int = 1, width: int = 1, scale_height: float | None = None,
    scale_width: float | None = None, mode: str = "size", align_corners: bool = True, out: Any,
) -> None:  # fmt: skip
    """Images in another size, by bilinear interpolation.

    data: (n, c, h, w), floating point.   mode: "size", by height and width or the scales; "like", that of the images
    `like`; "odd_scale", scaled so that odd sizes stay odd; "to_even_down", "to_even_up", "to_odd_down", "to_odd_up".
    align_corners: the corners' centres stay, rather than the image's edges.   MXNet: contrib.BilinearResize2D.
    """
