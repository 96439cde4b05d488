"""Convolution: three bilinear operators closed under differentiation, and MXNet's two layers on top of them.

Each goes over the samples in blocks, on several workers: im2col (or its transpose) and one BLAS product for every block
and group.  The blocks depend on shapes alone, and so do the bits.  Within a block the samples are the last axis, so
that what is copied and added is long runs of memory.  Data are (n, channels, ...) with one, two or three axes of
positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine.parallel import parallel
from .faces import Rule
from .infer import floating, uniform
from .nn import check_bias, known, spelling
from .products import cuts
from .schema import Attributes, Inferred, Metas, Sample, operator
from .windows import LAYOUTS, Extents, Plan, empty, extents, geometry, interior, positions_of, window

PARTS = 8  # at most so many sums are made apart and then added
IGNORED = ("workspace", "cudnn_tune", "cudnn_off")


def _channels(what: str, shape: Extents, expected: int) -> None:
    if shape[1] != expected:
        raise ValueError(f"{what} with {expected} channels expected")


def _check(metas: Metas, attributes: Attributes, shapes: str) -> tuple[Attributes, list[Extents]]:
    """The attributes normalised, and the shapes."""
    given = [meta for meta in metas if meta is not None]
    uniform(*given)
    floating(given[0])
    found = [meta[0] for meta in given]
    axes = len(found[0]) - 2
    if axes < 1 or len(found[1]) != axes + 2:
        raise ValueError(f"{shapes} with as many axes of positions expected")
    attributes = geometry(attributes, axes)
    groups = attributes["num_group"] = int(attributes["num_group"])
    if groups < 1:
        raise ValueError(f"num_group {groups}: 1 or more expected")
    return attributes, found


def _filters(weight: Extents, groups: int) -> None:
    if weight[0] % groups:
        raise ValueError(f"{weight[0]} filters do not divide into {groups} groups")


def _convolution(metas: Metas, attributes: Attributes) -> Inferred:
    attributes, (data, weight, *_) = _check(metas, attributes, "data (n, channels, ...) and weight (filters, ...)")
    groups = attributes["num_group"]
    _filters(weight, groups)
    _channels("data", data, weight[1] * groups)
    check_bias(metas[2], metas[2] is None, weight[0])
    where = attributes["stride"], attributes["dilate"], attributes["pad"]
    positions = positions_of(data[2:], weight[2:], *where)
    return (((data[0], weight[0], *positions), metas[0][1]),), attributes  # type: ignore[index]


def _windowed(data: Any, kernel: Any, a: Attributes) -> Any:
    """(index in the kernel, view (n, groups, channels of a group, *positions)) for padded data, element by element."""
    stride, dilate = (np.broadcast_to(a.get(name, 1), data.ndim - 2) for name in ("stride", "dilate"))
    positions = (np.subtract(data.shape[2:], (np.array(kernel) - 1) * dilate) - 1) // stride + 1
    data = data.reshape(len(data), a.get("num_group", 1), -1, *data.shape[2:])
    for index in np.ndindex(*kernel):
        first = index * dilate
        yield index, data[(..., *map(slice, first, first + stride * (positions - 1) + 1, stride))]


def _margins(shape: Any, pad: Any) -> Any:
    pad = np.broadcast_to(pad, len(shape) - 2)
    return ((0, 0), (0, 0), *zip(pad, pad, strict=True))


def _reference(data: Any, weight: Any, bias: Any = None, pad: Any = 0, **a: Any) -> Any:
    """Convolution as a sum over the elements of the kernel."""
    filters = weight.reshape(a.get("num_group", 1), -1, *weight.shape[1:])
    data = np.pad(data, _margins(data.shape, pad))
    out: Any = 0
    for index, patch in _windowed(data, weight.shape[2:], a):
        out = out + np.einsum("ngc...,gfc->ngf...", patch, filters[(..., *index)])
    out = out.reshape(len(data), -1, *out.shape[3:])
    return out if bias is None else out + bias.reshape(-1, *(1,) * (data.ndim - 2))


def _reference_data_grad(grad: Any, weight: Any, bias: Any = None, *, shape: Any, pad: Any = 0, **a: Any) -> Any:
    filters = weight.reshape(a.get("num_group", 1), -1, *weight.shape[1:])
    grads = grad.reshape(len(grad), a.get("num_group", 1), -1, *grad.shape[2:])
    padded = np.pad(np.zeros(shape), _margins(shape, pad))
    for index, patch in _windowed(padded, weight.shape[2:], a):
        np.add(patch, np.einsum("ngf...,gfc->ngc...", grads, filters[(..., *index)]), out=patch)
    out = padded[interior(tuple(np.broadcast_to(pad, len(shape) - 2)), shape[2:])]
    return out if bias is None else out + bias.reshape(-1, *(1,) * (len(shape) - 2))


def _reference_weight_grad(grad: Any, data: Any, *, shape: Any, pad: Any = 0, **a: Any) -> Any:
    grads = grad.reshape(len(grad), a.get("num_group", 1), -1, *grad.shape[2:])
    out = np.zeros((a.get("num_group", 1), grads.shape[2], *shape[1:]))
    for index, patch in _windowed(np.pad(data, _margins(data.shape, pad)), shape[2:], a):
        flat = patch.reshape(*patch.shape[:3], -1)
        out[(..., *index)] = np.einsum("ngfp,ngcp->gfc", grads.reshape(*grads.shape[:3], -1), flat)
    return out.reshape(shape)


@operator(
    "convolution",
    infer=_convolution,
    costly=True,
    samples=[
        Sample((2, 2, 4), (3, 2, 2), (3,), stride=2, pad=1),
        Sample((2, 4, 4, 3), (4, 2, 2, 3), None, pad=(1, 1), num_group=2),
        Sample((1, 1, 5, 5), (2, 1, 2, 2), (2,), stride=(1, 2), dilate=(2, 3)),
        Sample((1, 2, 2, 3, 2), (2, 2, 2, 2, 1), None),
    ],
    reference=_reference,
    nd=False,
)
def convolution(
    xp: Any, data: Any, weight: Any, bias: Any = None, *, stride: Any = (), dilate: Any = (), pad: Any = (),
    num_group: int = 1, out: Any,
) -> None:  # fmt: skip
    """Cross-correlation: each filter's product with every window of the data.

    data: (n, channels, *size).   weight: (filters, channels / num_group, *kernel).   bias: (filters,).
    Result: (n, filters, *positions), positions = (size + 2 pad - (kernel - 1) dilate - 1) // stride + 1.
    """
    attributes = {"stride": stride, "dilate": dilate, "pad": pad, "num_group": num_group}
    plan = Plan(xp, data.shape, weight.shape, attributes, data.itemsize)
    factor = plan.factor(weight)

    def block(part: slice) -> None:
        n = part.stop - part.start
        made = empty(xp, (plan.groups, plan.filters // plan.groups, plan.columns * n), data.dtype)
        xp.matmul(factor, plan.patches(data[part]), made)
        made = made.reshape(plan.filters, *plan.positions, n)
        if bias is not None:
            xp.add(made, bias.reshape(-1, *(1,) * (made.ndim - 1)), made)
        out[part] = xp.moveaxis(made, -1, 0)

    parallel(block, plan.blocks)


def _sum_of_channels(F: Any, g: Any) -> Any:
    return F.sum(g, axis=(0, *range(2, len(g.shape))))


convolution.grad(
    data=lambda F, g, weight, data_shape, **a: F.conv_data_grad(g, weight, shape=data_shape, **a),
    weight=lambda F, g, data, weight_shape, **a: F.conv_weight_grad(g, data, shape=weight_shape, **a),
    bias=_sum_of_channels,
)


def _conv_data_grad(metas: Metas, attributes: Attributes) -> Inferred:
    attributes, (grad, weight, *_) = _check(metas, attributes, "grad (n, filters, ...) and weight (filters, ...)")
    groups = attributes["num_group"]
    shape = attributes["shape"] = tuple(int(n) for n in attributes["shape"])
    _filters(weight, groups)
    _channels("grad", grad, weight[0])
    _channels("shape", shape, weight[1] * groups)
    check_bias(metas[2], metas[2] is None, shape[1])
    where = attributes["stride"], attributes["dilate"], attributes["pad"]
    if shape[0] != grad[0] or positions_of(shape[2:], weight[2:], *where) != grad[2:]:
        raise ValueError(f"not the positions of a convolution of {shape}")
    return ((shape, metas[0][1]),), attributes  # type: ignore[index]


@operator(
    "conv_data_grad",
    infer=_conv_data_grad,
    costly=True,
    reference=_reference_data_grad,
    samples=[
        Sample((2, 3, 3), (3, 2, 2), None, shape=(2, 2, 4), stride=2, pad=1),
        Sample((2, 4, 5, 3), (4, 2, 2, 3), (4,), shape=(2, 4, 4, 3), pad=(1, 1), num_group=2),
    ],
    nd=False,
)
def conv_data_grad(
    xp: Any, grad: Any, weight: Any, bias: Any = None, *, shape: Any, stride: Any = (), dilate: Any = (), pad: Any = (),
    num_group: int = 1, out: Any,
) -> None:  # fmt: skip
    """The transpose of `convolution` as a map of its data; plus a bias.

    grad: (n, filters, *positions).   weight: (filters, channels / num_group, *kernel).   bias: (channels,).
    Result: `shape`, (n, channels, *size).
    """
    attributes = {"stride": stride, "dilate": dilate, "pad": pad, "num_group": num_group}
    plan = Plan(xp, shape, weight.shape, attributes, grad.itemsize)
    factor = plan.factor(weight).swapaxes(1, 2)

    def block(part: slice) -> None:
        n = part.stop - part.start
        parts = empty(xp, (plan.groups, plan.rows, plan.columns * n), grad.dtype)
        xp.matmul(factor, plan.outcomes(grad[part]), parts)
        parts = parts.reshape(plan.channels, *plan.kernel, *plan.positions, n)
        padded = empty(xp, (plan.channels, *plan.padded, n), grad.dtype)
        padded[...] = 0
        for index, offset in plan.offsets():
            target = padded[(slice(None), *window(offset, plan.stride, plan.positions)[1:])]
            xp.add(target, parts[:, *index], target)
        if bias is not None:
            xp.add(padded, bias.reshape(-1, *(1,) * (padded.ndim - 1)), padded)
        out[part] = xp.moveaxis(padded[(slice(None), *interior(plan.pad, plan.size)[1:])], -1, 0)

    parallel(block, plan.blocks)


conv_data_grad.grad(
    grad=lambda F, g, weight, stride, dilate, pad, num_group: F.convolution(
        g, weight, None, stride=stride, dilate=dilate, pad=pad, num_group=num_group
    ),
    weight=lambda F, g, grad, weight_shape, stride, dilate, pad, num_group: F.conv_weight_grad(
        grad, g, shape=weight_shape, stride=stride, dilate=dilate, pad=pad, num_group=num_group
    ),
    bias=_sum_of_channels,
)


def _conv_weight_grad(metas: Metas, attributes: Attributes) -> Inferred:
    attributes, (grad, data) = _check(metas, attributes, "grad (n, filters, ...) and data (n, channels, ...)")
    shape = attributes["shape"] = tuple(int(n) for n in attributes["shape"])
    groups = attributes["num_group"]
    _filters(shape, groups)
    _channels("grad", grad, shape[0])
    _channels("data", data, shape[1] * groups)
    where = attributes["stride"], attributes["dilate"], attributes["pad"]
    if data[0] != grad[0] or positions_of(data[2:], shape[2:], *where) != grad[2:]:
        raise ValueError(f"not the positions of a convolution with a weight of {shape}")
    return ((shape, metas[0][1]),), attributes  # type: ignore[index]


@operator(
    "conv_weight_grad",
    infer=_conv_weight_grad,
    costly=True,
    reference=_reference_weight_grad,
    samples=[
        Sample((2, 3, 3), (2, 2, 4), shape=(3, 2, 2), stride=2, pad=1),
        Sample((2, 4, 5, 3), (2, 4, 4, 3), shape=(4, 2, 2, 3), pad=(1, 1), num_group=2),
    ],
    nd=False,
)
def conv_weight_grad(
    xp: Any, grad: Any, data: Any, *, shape: Any, stride: Any = (), dilate: Any = (), pad: Any = (),
    num_group: int = 1, out: Any,
) -> None:  # fmt: skip
    """The transpose of `convolution` as a map of its weight.

    grad: (n, filters, *positions).   data: (n, channels, *size).   Result: `shape`, (filters, channels / num_group,
    *kernel).
    """
    attributes = {"stride": stride, "dilate": dilate, "pad": pad, "num_group": num_group}
    plan = Plan(xp, data.shape, shape, attributes, data.itemsize)
    form = (plan.groups, plan.filters // plan.groups, plan.rows)
    shares = cuts(len(plan.blocks), min(PARTS, len(plan.blocks)), 1)
    totals: list[Any] = [None] * len(shares)

    def share(i: int) -> None:
        total = empty(xp, form, data.dtype)
        total[...] = 0
        for part in plan.blocks[shares[i]]:
            total += xp.matmul(plan.outcomes(grad[part]), plan.patches(data[part]).swapaxes(1, 2))
        totals[i] = total

    parallel(share, range(len(shares)))
    out[...] = 0
    whole = out.reshape(form)
    for total in totals:
        whole += total
    if not xp.may_share_memory(whole, out):
        out[...] = whole.reshape(shape)


conv_weight_grad.grad(
    grad=lambda F, g, data, stride, dilate, pad, num_group: F.convolution(
        data, g, None, stride=stride, dilate=dilate, pad=pad, num_group=num_group
    ),
    data=lambda F, g, grad, data_shape, stride, dilate, pad, num_group: F.conv_data_grad(
        grad, g, None, shape=data_shape, stride=stride, dilate=dilate, pad=pad, num_group=num_group
    ),
)


# ---- MXNet's layers --------------------------------------------------------------------------------------------------


def _layer(inputs: Sequence[Any], a: Attributes) -> tuple[int, Extents]:
    """(axes of positions, kernel) after the checks that both layers share."""
    data, _, bias = inputs
    axes = data.ndim - 2
    if not 1 <= axes <= 3:
        raise ValueError("data (n, channels, ...) with one, two or three axes of positions expected")
    known("layout", a["layout"], (None, LAYOUTS[axes]))  # type: ignore[arg-type]
    check_bias(None if bias is None else (bias.shape, bias.dtype), bool(a["no_bias"]), int(a["num_filter"]))
    return axes, extents("kernel", a["kernel"], axes, 0, 1)


def _shared(a: Attributes) -> Attributes:
    return {name: a[name] for name in ("stride", "dilate", "pad", "num_group")}


def _convolution_variant(inputs: Sequence[Any], a: Attributes, training: bool) -> Any:
    data, weight, _ = inputs
    _, kernel = _layer(inputs, a)
    groups = int(a["num_group"])
    expected = (int(a["num_filter"]), data.shape[1] // max(groups, 1), *kernel)
    if weight.shape != expected:
        raise ValueError(f"weight of shape {expected} expected: (num_filter, channels / num_group, *kernel)")
    return convolution, inputs, _shared(a)


@operator(
    "Convolution",
    aliases=("Convolution_v1",),
    infer=spelling,
    variant=_convolution_variant,
    samples=[Sample((2, 2, 4, 4), (3, 2, 2, 2), (3,), kernel=(2, 2), num_filter=3, stride=(2, 2), pad=(1, 1))],
    nd=Rule(ignore=IGNORED, method=False),
)
def convolution_layer(
    xp: Any, data: Any, weight: Any, bias: Any = None, *, kernel: Any, stride: Any = (), dilate: Any = (),
    pad: Any = (), num_filter: int, num_group: int = 1, no_bias: bool = False, layout: str | None = None, out: Any,
) -> None:  # fmt: skip
    """Convolution in one, two or three dimensions (cross-correlation, as everywhere in deep learning).

    data: (n, channels, *size).   weight: (num_filter, channels / num_group, *kernel).   bias: (num_filter,).
    Result: (n, num_filter, *positions), positions = (size + 2 pad - (kernel - 1) dilate - 1) // stride + 1.
    layout: NCW, NCHW or NCDHW, the default.   Floating point.   Source: MXNet Convolution.
    """


def _deconvolution_variant(inputs: Sequence[Any], a: Attributes, training: bool) -> Any:
    data, weight, _ = inputs
    axes, kernel = _layer(inputs, a)
    groups, filters = int(a["num_group"]), int(a["num_filter"])
    expected = (data.shape[1], filters // max(groups, 1), *kernel)
    if weight.shape != expected:
        raise ValueError(f"weight of shape {expected} expected: (channels, num_filter / num_group, *kernel)")
    a = geometry(a, axes)
    adj = extents("adj", a["adj"], axes, 0, 0)
    along = zip(data.shape[2:], a["stride"], kernel, a["dilate"], strict=True)
    whole = tuple((n - 1) * s + (k - 1) * d + 1 for n, s, k, d in along)
    if a["target_shape"]:
        target = extents("target_shape", a["target_shape"], axes, 0, 1)
        spare = [w - t for w, t in zip(whole, target, strict=True)]
        if min(spare) < 0:
            raise ValueError(f"target_shape {target}: at most {whole} expected")
        a["pad"], adj = tuple((n + 1) // 2 for n in spare), tuple(n % 2 for n in spare)
    if any(n >= s for n, s in zip(adj, a["stride"], strict=True)):
        raise ValueError(f"adj {adj}: less than the stride expected")
    size = tuple(w - 2 * p + n for w, p, n in zip(whole, a["pad"], adj, strict=True))
    return conv_data_grad, inputs, {"shape": (data.shape[0], filters, *size), **_shared(a)}


@operator(
    "Deconvolution",
    infer=spelling,
    variant=_deconvolution_variant,
    samples=[
        Sample((2, 2, 3, 3), (2, 3, 4, 4), None, kernel=(4, 4), num_filter=3, stride=(2, 2), pad=(1, 1)),
        Sample((1, 2, 3), (2, 1, 3), (2,), kernel=3, num_filter=2, num_group=2, stride=3, adj=2, no_bias=False),
    ],
    nd=Rule(ignore=IGNORED, method=False),
)
def deconvolution_layer(
    xp: Any, data: Any, weight: Any, bias: Any = None, *, kernel: Any, stride: Any = (), dilate: Any = (),
    pad: Any = (), adj: Any = (), target_shape: Any = (), num_filter: int, num_group: int = 1, no_bias: bool = True,
    layout: str | None = None, out: Any,
) -> None:  # fmt: skip
    """Transposed convolution: what takes the result of a Convolution back to the shape of its data.

    data: (n, channels, *size).   weight: (channels, num_filter / num_group, *kernel).   bias: (num_filter,).
    Result: (n, num_filter, *new), new = (size - 1) stride + (kernel - 1) dilate + 1 - 2 pad + adj; target_shape, where
    given, chooses pad and adj.   Floating point.   Source: MXNet Deconvolution.
    """
