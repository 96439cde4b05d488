"""nd.image: operators on images, (height, width, channels) or a batch of such, uint8 or floating point.

What changes values is computed in float32 and, for integers, cut to the dtype's range and truncated, as MXNet does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError
from ..ndarray.array import Array
from ..ndarray.dtype import FLOAT32, is_float
from ..ndarray.ndarray import NDArray
from ..ndarray.reading import describe
from .faces import composed, nd_face
from .push import invoke
from .resizing import resample
from .schema import Attributes, Inferred, Metas, operator

UINT8 = np.dtype(np.uint8)
GREY = (0.299, 0.587, 0.114)
#: AlexNet's principal components of colours, times the square roots of their variances
_LIGHT = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]) * [
    55.46, 4.794, 1.148,
]  # fmt: skip


def _image(name: str, data: Any, *ndims: int) -> Any:
    if not isinstance(data, Array):
        raise ArgumentTypeError(f"[{name}] {describe(data)}: an array expected")
    if data.ndim not in (ndims or (3, 4)):
        wanted = " or ".join("(height, width, channels)" if n == 3 else "(n, height, width, channels)" for n in ndims)
        raise ArgumentError(f"[{name}] data {describe(data)}: {wanted or 'an image or a batch of images'} expected")
    return data


def _constant(values: Any, like: Any) -> Any:
    return NDArray._from_host(np.array(values, FLOAT32), like.context)


def _into(values: Any, like: Any) -> Any:
    """Float values in the dtype of an image."""
    if is_float(like._dtype):
        return values if values._dtype == like._dtype else values.astype(like._dtype)
    limits = np.iinfo(like._dtype)
    return nd_face.clip(values, int(limits.min), int(limits.max)).astype(like._dtype)


def _floats(data: Any) -> Any:
    return data if data._dtype == FLOAT32 else data.astype(FLOAT32)


@composed(space="image")
def to_tensor(data: Any) -> Any:
    """An image (h, w, c), 0 to 255, as (c, h, w), float32, 0 to 1; of a batch each.  Gradient: to data."""
    data = _image("to_tensor", data)
    axes = (2, 0, 1) if data.ndim == 3 else (0, 3, 1, 2)
    return nd_face.transpose(_floats(data), axes=axes) / 255.0


def _per_channel(name: str, what: str, given: Any, data: Any) -> Any:
    values = (given,) if isinstance(given, int | float) else tuple(map(float, given))
    channels = data.shape[-3]
    if len(values) not in (1, channels):
        raise ArgumentError(f"[{name}] {what} {given}: one number, or one for each of {channels} channels, expected")
    return _constant(values, data).reshape((-1, 1, 1))


@composed(space="image")
def normalize(data: Any, mean: Any = 0.0, std: Any = 1.0) -> Any:
    """(data - mean) / std for each channel of (c, h, w) or (n, c, h, w) with 1 or 3 channels.  Gradient: to data."""
    data = _image("normalize", data)
    if not is_float(data._dtype) or data.shape[-3] not in (1, 3):
        raise ArgumentError(f"[normalize] data {describe(data)}: 1 or 3 channels of floating point expected")
    shifts, scales = (_per_channel("normalize", *pair, data) for pair in (("mean", mean), ("std", std)))
    made = (_floats(data) - shifts) / scales
    return _into(made, data)


def _flipped(name: str, data: Any, axis: int) -> Any:
    return nd_face.flip(_image(name, data, 3), axis=axis)


@composed(space="image")
def flip_left_right(data: Any) -> Any:
    """An image (h, w, c) with its columns reversed.  Gradient: to data."""
    return _flipped("flip_left_right", data, 1)


@composed(space="image")
def flip_top_bottom(data: Any) -> Any:
    """An image (h, w, c) with its rows reversed.  Gradient: to data."""
    return _flipped("flip_top_bottom", data, 0)


@composed(space="image")
def crop(data: Any, x: int, y: int, width: int, height: int) -> Any:
    """The region of images from column x and row y, as a copy.  Gradient: to data."""
    data = _image("crop", data)
    h, w = data.shape[-3:-1]
    if min(x, y) < 0 or min(width, height) < 1 or x + width > w or y + height > h:
        raise ArgumentError(f"[crop] data {describe(data)}: x {x}, y {y}, width {width}, height {height} lie outside")
    lead = (None,) * (data.ndim - 3)
    return nd_face.slice(data, begin=(*lead, y, x, None), end=(*lead, y + height, x + width, None))


# ---- resize ----------------------------------------------------------------------------------------------------------


def _bytes(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = metas[0]  # type: ignore[misc]
    if dtype != UINT8 or len(shape) != 4:
        raise TypeError("images (n, height, width, channels) of uint8 expected")
    return (((shape[0], *attributes["size"], shape[3]), dtype),), attributes


def _fixed(xp: Any, n: int, m: int) -> tuple[Any, Any]:
    """(first and second place, their weights in 2048ths) of m numbers out of n."""
    at = ((np.arange(m) + 0.5) * (n / m) - 0.5).clip(0, n - 1)
    low = at.astype(np.int64)
    after = np.rint((at - low) * 2048).astype(np.int32)
    return xp.asarray(np.stack((low, (low + 1).clip(0, n - 1)))), xp.asarray(np.stack((2048 - after, after)))


@operator("image_resize_bytes", infer=_bytes, nd=False, widen=False)
def resize_bytes(xp: Any, data: Any, *, size: Any, out: Any) -> None:
    """Images of uint8 in another size, by bilinear interpolation in fixed point as OpenCV does it."""
    _, h, w, _ = data.shape
    xs, by_x = _fixed(xp, w, size[1])
    ys, by_y = _fixed(xp, h, size[0])
    by_x = by_x[:, :, None]
    wide = data.astype(np.int32)
    rows = wide[:, :, xs[0]] * by_x[0] + wide[:, :, xs[1]] * by_x[1]
    by_y = by_y[:, :, None, None]
    first, second = rows[:, ys[0]] >> 4, rows[:, ys[1]] >> 4
    out[...] = ((by_y[0] * first >> 16) + (by_y[1] * second >> 16) + 2) >> 2


@composed(space="image")
def resize(data: Any, size: Any = (), keep_ratio: bool = False, interp: int = 1) -> Any:
    """Images in another size.

    Parameters
    ----------
    data : (h, w, c) or (n, h, w, c), uint8 or floating point
    size : int or (width, height)
        One number: both sides, or with keep_ratio the shorter side.
    interp : 0 or 1
        The nearest place, or bilinear.

    Never blocks.   Raises: ArgumentError at the call, for other ways of interpolation too.   Gradient: to data of
    floating point.
    """
    data = _image("resize", data)
    given = (size,) if isinstance(size, int) else tuple(map(int, size))
    if len(given) not in (1, 2) or min(given) < 1:
        raise ArgumentError(f"[resize] size {size}: one number, or (width, height), expected")
    if interp not in (0, 1):
        raise ArgumentError(f"[resize] interp {interp}: 0 (nearest) or 1 (bilinear) expected")
    h, w = data.shape[-3:-1]
    if not h or not w:
        raise ArgumentError(f"[resize] data {describe(data)}: there is nothing to resize")
    if len(given) == 2:
        new: tuple[int, ...] = given[::-1]
    elif keep_ratio:
        new = (given[0], w * given[0] // h) if h <= w else (h * given[0] // w, given[0])
    else:
        new = given * 2
    if interp == 0:
        for axis, n, m in ((data.ndim - 3, h, new[0]), (data.ndim - 2, w, new[1])):
            places = (np.arange(m) * (n / m)).astype(np.int64).clip(0, n - 1)
            data = nd_face.take(data, NDArray._from_host(places, data.context), axis=axis)
        return data
    batch = data if data.ndim == 4 else nd_face.expand_dims(data, axis=0)
    if is_float(data._dtype):
        attributes = resample.bind({"size": new, "kind": "edges", "align": False})
        made = invoke(resample, [nd_face.transpose(batch, axes=(0, 3, 1, 2))], attributes, cls=NDArray)
        made = nd_face.transpose(made, axes=(0, 2, 3, 1))
    else:
        made = invoke(resize_bytes, [batch], resize_bytes.bind({"size": new}), cls=NDArray)
    return made if data.ndim == 4 else nd_face.squeeze(made, axis=0)


# ---- random changes --------------------------------------------------------------------------------------------------


def _factor(name: str, low: float, high: float, least: float | None = 0.0) -> Any:
    if (least is not None and low < least) or high < low:
        raise ArgumentError(f"[{name}] factors from {low} to {high}: an interval{' from 0' * (least == 0)} expected")
    return nd_face.random_uniform(low, high, shape=(1,))


@composed(space="image")
def random_flip_left_right(data: Any) -> Any:
    """`flip_left_right` with probability 0.5."""
    return _perhaps(data, flip_left_right(data))


@composed(space="image")
def random_flip_top_bottom(data: Any) -> Any:
    """`flip_top_bottom` with probability 0.5."""
    return _perhaps(data, flip_top_bottom(data))


def _perhaps(data: Any, changed: Any) -> Any:
    chosen = nd_face.reshape(nd_face.random_uniform(0, 1, shape=(1,)) < 0.5, shape=(1,) * data.ndim)
    return nd_face.where(nd_face.broadcast_to(chosen, shape=data.shape), changed, data)


def _grey(data: Any) -> Any:
    return nd_face.sum(data * _constant(GREY, data), axis=-1, keepdims=True) if data.shape[-1] == 3 else data


@composed(space="image")
def random_brightness(data: Any, min_factor: float, max_factor: float) -> Any:
    """An image times a random factor from an interval."""
    data = _image("random_brightness", data, 3)
    return _into(_floats(data) * _factor("random_brightness", min_factor, max_factor), data)


@composed(space="image")
def random_contrast(data: Any, min_factor: float, max_factor: float) -> Any:
    """An image moved away from, or towards, the mean of its grey values by a random factor."""
    data = _image("random_contrast", data, 3)
    factor, wide = _factor("random_contrast", min_factor, max_factor), _floats(data)
    return _into(wide * factor + nd_face.mean(_grey(wide)) * (1 - factor), data)


@composed(space="image")
def random_saturation(data: Any, min_factor: float, max_factor: float) -> Any:
    """An image whose pixels are moved away from, or towards, their grey values by a random factor."""
    data = _image("random_saturation", data, 3)
    factor, wide = _factor("random_saturation", min_factor, max_factor), _floats(data)
    return _into(wide * factor + _grey(wide) * (1 - factor), data)


def _turned(metas: Metas, attributes: Attributes) -> Inferred:
    return (metas[0],), attributes


@operator("image_turn_hue", infer=_turned, nd=False)
def turn_hue(xp: Any, data: Any, factor: Any, *, out: Any) -> None:
    """Colours (..., 3) with their hue turned: 1 is once round.  Lightness and saturation stay."""
    most, least = data.max(-1), data.min(-1)
    span = xp.where(most > least, most - least, 1)
    r, g, b = xp.moveaxis(data, -1, 0)
    hue = xp.where(most == r, (g - b) / span, xp.where(most == g, 2 + (b - r) / span, 4 + (r - g) / span))
    hue = (hue + 6 * factor.reshape(-1)[0]) % 6
    parts = (abs(hue - 3) - 1, 2 - abs(hue - 2), 2 - abs(hue - 4))
    for k, part in enumerate(parts):
        out[..., k] = least + (most - least) * part.clip(0, 1)


@composed(space="image")
def random_hue(data: Any, min_factor: float, max_factor: float) -> Any:
    """An image whose hue is turned by a random factor: 1 is once round.  No gradient."""
    data = _image("random_hue", data, 3)
    factor = _factor("random_hue", min_factor, max_factor, None)
    if data.shape[-1] != 3:
        return data.copy()
    return _into(invoke(turn_hue, [_floats(data), factor], {}, cls=NDArray), data)


@composed(space="image")
def random_color_jitter(data: Any, brightness: float, contrast: float, saturation: float, hue: float) -> Any:
    """Random changes of brightness, contrast, saturation and hue, one after the other, by factors 1 - b to 1 + b."""
    data = _image("random_color_jitter", data, 3)
    changes: Sequence[tuple[Any, float]] = (
        (random_brightness, brightness), (random_contrast, contrast), (random_saturation, saturation),
    )  # fmt: skip
    for change, by in changes:
        if by > 0:
            data = change(data, max(1 - by, 0.0), 1 + by)
    return random_hue(data, -hue, hue) if hue > 0 else data.copy()


@composed(space="image")
def adjust_lighting(data: Any, alpha: Any) -> Any:
    """An image of 3 channels with AlexNet's three principal components of colours added, times alpha (3,)."""
    data = _image("adjust_lighting", data, 3)
    values = tuple(map(float, alpha))
    if len(values) != 3:
        raise ArgumentError(f"[adjust_lighting] alpha {alpha}: three numbers expected")
    if data.shape[-1] != 3:
        return data.copy()
    return _into(_floats(data) + _constant(_LIGHT @ values, data), data)


@composed(space="image")
def random_lighting(data: Any, alpha_std: float = 0.05) -> Any:
    """`adjust_lighting` with normal numbers of this standard deviation."""
    data = _image("random_lighting", data, 3)
    if alpha_std < 0:
        raise ArgumentError(f"[random_lighting] alpha_std {alpha_std}: 0 or more expected")
    if data.shape[-1] != 3:
        return data.copy()
    alpha = nd_face.random_normal(0, 1, shape=(3,)) * float(alpha_std)
    return _into(_floats(data) + nd_face.dot(_constant(_LIGHT, data), alpha), data)
