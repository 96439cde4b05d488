"""Patches of images as columns and back, parts of images, larger images; other functions made of operators."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine import ArgumentError
from ..ndarray.array import Array
from ..ndarray.dtype import BOOL, is_float
from .faces import Rule, composed, nd_face
from .schema import Attributes, Inferred, Meta, Metas, Sample, operator
from .windows import extents, geometry, interior, positions_of, window

RULE = Rule(method=False)


def _known(meta: Meta | None) -> Meta:
    assert meta is not None
    return meta


def _columns(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _known(metas[0])
    axes = len(shape) - 2
    if axes not in (1, 2, 3):
        raise ValueError("data (n, channels, *size) with one to three axes of size expected")
    made = geometry({**attributes, "kernel": extents("kernel", attributes["kernel"], axes, 1, 1)}, axes)
    positions = positions_of(shape[2:], made["kernel"], made["stride"], made["dilate"], made["pad"])
    return (((shape[0], shape[1] * math.prod(made["kernel"]), math.prod(positions)), dtype),), made


def _offsets(kernel: Sequence[int], dilate: Sequence[int]) -> Any:
    for index in itertools.product(*map(range, kernel)):
        yield index, [i * d for i, d in zip(index, dilate, strict=True)]


def _patches(data: Any, kernel: Any, stride: Any = (), dilate: Any = (), pad: Any = ()) -> Any:
    _, made = _columns([(data.shape, data.dtype)], {"kernel": kernel, "stride": stride, "dilate": dilate, "pad": pad})
    kernel, stride, dilate, pad = made["kernel"], made["stride"], made["dilate"], made["pad"]
    n, channels, *size = data.shape
    padded = np.pad(data, ((0, 0), (0, 0), *((p, p) for p in pad)))
    positions = positions_of(tuple(size), kernel, stride, dilate, pad)
    found = np.empty((n, channels, *kernel, *positions), data.dtype, like=data)
    for index, offset in _offsets(kernel, dilate):
        found[(slice(None), slice(None), *index)] = padded[window(offset, stride, positions)]
    return found.reshape(n, channels * math.prod(kernel), math.prod(positions))


@operator(
    "im2col", infer=_columns, nd=RULE, widen=False, reference=_patches,
    samples=[
        Sample((1, 2, 4, 4), kernel=(2, 2), stride=(2, 2)), Sample((2, 1, 5), kernel=(3,), dilate=(2,), pad=(1,)),
        Sample((1, 1, 3, 3), kernel=(2, 2), pad=(1, 0)),
    ],
)  # fmt: skip
def im2col(xp: Any, data: Any, *, kernel: Any, stride: Any = (), dilate: Any = (), pad: Any = (), out: Any) -> None:
    """Every window as a column: (n, channels, *size) -> (n, channels * elements of the kernel, positions).

    Source: MXNet im2col.
    """
    out[...] = _patches(data, kernel, stride, dilate, pad)


def _images(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _known(metas[0])
    size = tuple(attributes["output_size"])
    made = geometry({**attributes, "kernel": extents("kernel", attributes["kernel"], len(size), 1, 1)}, len(size))
    positions = positions_of(size, made["kernel"], made["stride"], made["dilate"], made["pad"])
    count = math.prod(made["kernel"])
    if len(shape) != 3 or shape[1] % count or shape[2] != math.prod(positions):
        raise ValueError(f"columns (n, channels * {count}, {math.prod(positions)}) expected")
    return (((shape[0], shape[1] // count, *size), dtype),), made


def _added(data: Any, output_size: Any, kernel: Any, stride: Any = (), dilate: Any = (), pad: Any = ()) -> Any:
    given = {"output_size": output_size, "kernel": kernel, "stride": stride, "dilate": dilate, "pad": pad}
    ((shape, _),), made = _images([(data.shape, data.dtype)], given)  # type: ignore[misc]
    kernel, stride, dilate, pad = made["kernel"], made["stride"], made["dilate"], made["pad"]
    size = shape[2:]
    positions = positions_of(size, kernel, stride, dilate, pad)
    columns = data.reshape(*shape[:2], *kernel, *positions)
    whole = tuple(n + 2 * p for n, p in zip(size, pad, strict=True))
    if shape[0] > positions[-1]:  # the loops inside NumPy are longer with the samples last
        columns = np.ascontiguousarray(np.moveaxis(columns, 0, -1), like=data)
        padded = np.moveaxis(np.zeros((shape[1], *whole, shape[0]), data.dtype, like=data), -1, 0)
        columns = np.moveaxis(columns, -1, 0)
    else:
        padded = np.zeros((*shape[:2], *whole), data.dtype, like=data)
    for index, offset in _offsets(kernel, dilate):
        padded[window(offset, stride, positions)] += columns[(slice(None), slice(None), *index)]
    return padded[interior(pad, size)]


@operator(
    "col2im", infer=_images, nd=RULE, reference=_added,
    samples=[
        Sample((1, 8, 4), output_size=(4, 4), kernel=(2, 2), stride=(2, 2)),
        Sample((2, 3, 3), output_size=(5,), kernel=(3,), dilate=(2,), pad=(1,)),
        Sample((1, 4, 9), output_size=(4, 4), kernel=(2, 2)),
    ],
)  # fmt: skip
def col2im(
    xp: Any, data: Any, *, output_size: Any, kernel: Any, stride: Any = (), dilate: Any = (), pad: Any = (), out: Any
) -> None:
    """The images to whose windows these columns are added: the gradient of im2col.   Source: MXNet col2im."""
    out[...] = _added(data, output_size, kernel, stride, dilate, pad)


def _im2col_gradient(F: Any, g: Any, data_shape: Any, kernel: Any, stride: Any, dilate: Any, pad: Any) -> Any:
    return F.col2im(g, output_size=data_shape[2:], kernel=kernel, stride=stride, dilate=dilate, pad=pad)


im2col.grad(data=_im2col_gradient)
col2im.grad(
    data=lambda F, g, kernel, stride, dilate, pad: F.im2col(g, kernel=kernel, stride=stride, dilate=dilate, pad=pad)
)


def _counted(metas: Metas, attributes: Attributes) -> Inferred:
    _, dtype = _known(metas[0])
    if dtype == BOOL:
        raise TypeError("numbers expected")
    bins = attributes["bins"]
    edges = metas[1]
    if edges is not None and (len(edges[0]) != 1 or edges[0][0] < 2):
        raise ValueError("edges, (n,) with n of at least 2, expected")
    if not isinstance(attributes["range"], tuple | list | None):
        raise TypeError(f"range {attributes['range']!r}: two numbers expected")
    if edges is None and (not isinstance(bins, int) or bins < 1):
        raise ValueError(f"bins {bins}: a number from 1, or an array of edges, expected")
    limits = attributes["range"]
    if limits is not None and not (len(limits) == 2 and limits[0] <= limits[1]):
        raise ValueError(f"range {limits}: the least and the largest value expected")
    n = bins if edges is None else edges[0][0] - 1
    return (((n,), np.dtype(np.int64)), ((n + 1,), dtype if edges is None else edges[1])), attributes


@operator(
    "histogram_counts", infer=_counted, outputs=("counts", "edges"), widen=False, nd=Rule(method=False, dtype="kernel"),
    samples=[Sample((3, 4), None, bins=4, range=(-1.0, 1.0)), Sample((9,), np.array([-1.0, 0.0, 0.5, 1.0]))],
    reference=lambda x, bounds, bins=10, range=None: np.histogram(x, bins if bounds is None else bounds, range),
)  # fmt: skip
def histogram_counts(
    xp: Any, x: Any, bounds: Any = None, *, bins: Any = 10, range: Any = None, counts: Any, edges: Any
) -> None:
    """How many elements lie in each bin, and the edges of the bins.   NumPy: histogram."""
    counts[...], edges[...] = xp.histogram(x, bins if bounds is None else bounds, range)


# ---- made of operators -----------------------------------------------------------------------------------------------


@composed(method=False)
def khatri_rao(*args: Any) -> Any:
    """The columns' Kronecker products: matrices (n1, k), (n2, k), ... -> (n1 n2 ..., k).   MXNet: khatri_rao."""
    if not args or any(not isinstance(x, Array) or x.ndim != 2 or x.shape[1] != args[0].shape[1] for x in args):
        raise ArgumentError("[khatri_rao] matrices with equally many columns expected")
    made = args[0]
    for x in args[1:]:
        pair = nd_face.expand_dims(made, axis=1) * nd_face.expand_dims(x, axis=0)
        made = nd_face.reshape(pair, shape=(made.shape[0] * x.shape[0], x.shape[1]))
    return made


@composed(method=False)
def histogram(a: Any, bins: Any = 10, range: Any = None) -> Any:
    """How many elements lie in each bin (int64), and the edges of the bins.   MXNet: histogram.

    bins: their number, within `range` (default: from the least element to the largest), or an array of edges.
    """
    return (
        nd_face.histogram_counts(a, bins)
        if isinstance(bins, Array)
        else nd_face.histogram_counts(a, bins=bins, range=range)
    )


@composed(method=False)
def moveaxis(tensor: Any, source: Any, destination: Any) -> Any:
    """The axes `source` at the places `destination`, the others in their order.   MXNet: moveaxis."""
    sources, places = (tuple(np.atleast_1d(axes)) for axes in (source, destination))
    n = tensor.ndim
    for axes in (sources, places):
        if any(not -n <= a < n for a in axes) or len({a % n for a in axes}) < len(axes) or len(axes) != len(sources):
            raise ArgumentError(f"[moveaxis] source {source}, destination {destination}: {n} axes")
    moved = sorted((int(d) % n, int(s) % n) for d, s in zip(places, sources, strict=True))
    order = [axis for axis in range(n) if axis not in [s for _, s in moved]]
    for place, axis in moved:
        order.insert(place, axis)
    return nd_face.transpose(tensor, axes=tuple(order))


@composed(method=False)
def concatenate(arrays: Any, axis: int = 0, always_copy: bool = True) -> Any:
    """The arrays one after the other along an axis; always a new array.   MXNet: concatenate."""
    return nd_face.concat(*arrays, dim=axis)


@composed(method=False)
def onehot_encode(indices: Any, out: Any) -> Any:
    """Write 1 at the index of each row of `out`, (n, depth), and 0 elsewhere.  Gives out.   MXNet: onehot_encode."""
    out[:] = nd_face.one_hot(indices, depth=out.shape[1], dtype=out.dtype)
    return out


@composed(method=False)
def fill_element_0index(lhs: Any, mhs: Any, rhs: Any) -> Any:
    """lhs, (n, k), with element rhs[i] of row i replaced by mhs[i].   MXNet: fill_element_0index."""
    chosen = nd_face.one_hot(rhs, depth=lhs.shape[1], dtype=lhs.dtype)
    return nd_face.where(chosen, nd_face.broadcast_like(nd_face.expand_dims(mhs, axis=1), lhs), lhs)


@composed(method=False)
def UpSampling(
    *data: Any, scale: int, sample_type: str, num_filter: int = 0, multi_input_mode: str = "concat", num_args: int = 1,
    workspace: int = 512,
) -> Any:  # fmt: skip
    """Images `scale` times as high and wide, (n, channels, height, width).   MXNet: UpSampling.

    sample_type: "nearest", of several inputs each to the size of the first's result, which are concatenated along the
    channels or ("sum") added; or "bilinear" with the weight of a transposed convolution as second input.
    """
    images = list(data)
    if sample_type == "bilinear":
        if len(images) != 2:
            raise ArgumentError("[UpSampling] data and the weight of the convolution expected")
        n = images[0].shape[1]
        size, pad = 2 * scale - scale % 2, math.ceil((scale - 1) / 2)
        how: Attributes = {"kernel": (size, size), "stride": (scale, scale), "pad": (pad, pad)}
        return nd_face.Deconvolution(*images, num_filter=n, num_group=n, no_bias=True, **how)
    if sample_type != "nearest" or multi_input_mode not in ("concat", "sum") or not images:
        raise ArgumentError(f"[UpSampling] sample_type {sample_type!r}, multi_input_mode {multi_input_mode!r}")
    if any(x.ndim != 4 for x in images):
        raise ArgumentError("[UpSampling] data (n, channels, height, width) expected")
    height = images[0].shape[2] * scale
    made = []
    for x in images:
        times = height // x.shape[2]
        if times * x.shape[2] != height or times * x.shape[3] != images[0].shape[3] * scale:
            raise ArgumentError(f"[UpSampling] data of {x.shape}: its size does not divide that of the result")
        made.append(nd_face.repeat(nd_face.repeat(x, repeats=times, axis=2), repeats=times, axis=3))
    if multi_input_mode == "concat":
        return nd_face.concat(*made, dim=1)
    total = made[0]
    for x in made[1:]:
        total = total + x
    return total


@composed(method=False)
def Crop(*data: Any, offset: Any = (0, 0), h_w: Any = (0, 0), center_crop: bool = False, num_args: int = 1) -> Any:
    """A part of images (n, channels, height, width): of size h_w, or of that of a second array.   MXNet: Crop.

    It begins at `offset`, or lies in the middle.
    """
    x = data[0]
    height, width = data[1].shape[2:] if len(data) == 2 else h_w
    top, left = ((x.shape[2] - height) // 2, (x.shape[3] - width) // 2) if center_crop else offset
    if not (0 <= top <= top + height <= x.shape[2] and 0 <= left <= left + width <= x.shape[3]) or not height * width:
        raise ArgumentError(f"[Crop] {height} x {width} from ({top}, {left}) of data of shape {x.shape}")
    rows = nd_face.slice_axis(x, axis=2, begin=top, end=top + height)
    return nd_face.slice_axis(rows, axis=3, begin=left, end=left + width)


@composed(method=False)
def amp_cast(data: Any, dtype: Any) -> Any:
    """data as another floating-point type; integers stay as they are.   MXNet: amp_cast."""
    return nd_face.cast(data, dtype=dtype) if is_float(np.dtype(data.dtype)) else data


@composed(method=False)
def amp_multicast(*data: Any, num_outputs: int = 0, cast_narrow: bool = False) -> Any:
    """The arrays with the widest of their floating-point types, or the narrowest.   MXNet: amp_multicast."""
    floats = [np.dtype(x.dtype) for x in data if is_float(np.dtype(x.dtype))]
    if not floats:
        return tuple(data)
    chosen = (min if cast_narrow else max)(floats, key=lambda dtype: dtype.itemsize)
    return tuple(amp_cast(x, chosen) for x in data)
