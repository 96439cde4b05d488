"""Small operators of nd.contrib: ranges and indices like an array, straight-through rounding, Fourier transforms,
attention on interleaved projections."""

from __future__ import annotations

import math
import operator as python_operator
from typing import Any

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError
from ..ndarray.array import Array
from ..ndarray.dtype import BOOL, INT64, is_float
from ..ndarray.ndarray import NDArray
from ..ndarray.reading import describe
from .composite import derived
from .faces import Rule, composed, nd_face
from .indexing import bounded
from .infer import floating, normal_axis, uniform
from .schema import Attributes, Inferred, Meta, Metas, Operator, Sample, operator, zero
from .texts import raw

CONTRIB = Rule(space="contrib", rename={"data": "x"})
UINT8 = np.dtype(np.uint8)


def _known(meta: Meta | None) -> Meta:
    assert meta is not None
    return meta


# ---- like an array ---------------------------------------------------------------------------------------------------


def _arange(metas: Metas, attributes: Attributes) -> Inferred:
    shape, dtype = _known(metas[0])
    if int(attributes["repeat"]) < 1:
        raise ValueError(f"repeat {attributes['repeat']}: 1 or more expected")
    axis = attributes["axis"]
    made = shape if axis is None else (shape[normal_axis(axis, len(shape))],)
    return ((made, dtype),), attributes


@operator(
    "contrib_arange_like", infer=_arange, nd=CONTRIB, widen=False,
    samples=[Sample((2, 3)), Sample((2, 4), axis=-1, repeat=2, start=1.5, step=-0.5)],
    reference=lambda x, start=0.0, step=1.0, repeat=1, axis=None: (
        start + step * (np.arange(x.size if axis is None else x.shape[axis]) // repeat)
    ).reshape(x.shape if axis is None else -1),
)  # fmt: skip
def arange_like(
    xp: Any, x: Any, *, start: float = 0.0, step: float = 1.0, repeat: int = 1, axis: int | None = None, out: Any
) -> None:
    """start, start + step, ..., each `repeat` times, in the shape of x, or as many as x is long along an axis."""
    out[...] = (start + step * (xp.arange(out.size) // repeat)).reshape(out.shape)


arange_like.grad(x=zero)


def _indices(metas: Metas, attributes: Attributes) -> Inferred:
    shape, _ = _known(metas[0])
    given = attributes["axes"]
    axes = range(len(shape)) if given is None else [normal_axis(axis, len(shape)) for axis in given]
    return (((*shape, len(axes)), INT64),), {"axes": tuple(axes)}


@operator(
    "contrib_index_array", infer=_indices, nd=Rule(space="contrib", rename={"data": "x"}, dtype="kernel"), widen=False,
    samples=[Sample((2, 3)), Sample((2, 3, 2), axes=(-1, 0))],
    reference=lambda x, axes=None: np.moveaxis(np.indices(x.shape), 0, -1)[..., list(axes or range(x.ndim))],
)  # fmt: skip
def index_array(xp: Any, x: Any, *, axes: Any = None, out: Any) -> None:
    """The index of each element, int64.  Shapes: (a...) -> (a..., number of axes); `axes` chooses some."""
    for j, axis in enumerate(axes):
        along = [1] * x.ndim
        along[axis] = x.shape[axis]
        out[..., j] = xp.arange(x.shape[axis]).reshape(along)


index_array.grad(x=zero)


def _copied(metas: Metas, attributes: Attributes) -> Inferred:
    (old, dtype), (index, _), (new, other) = map(_known, metas)
    if dtype != other:
        raise TypeError("one dtype of old_tensor and new_tensor expected")
    if not old or len(index) != 1 or new != (index[0], *old[1:]):
        raise ValueError("index_vector (k,) and new_tensor (k, ...) for old_tensor (n, ...) expected")
    if not old[0] and index[0]:
        raise ValueError("old_tensor has no rows to replace")
    return ((old, dtype),), attributes


def _reference_copy(old: Any, index: Any, new: Any) -> Any:
    old[index.astype(int)] = new
    return old


@operator(
    "contrib_index_copy", infer=_copied, nd=Rule(space="contrib"), widen=False, indices=("index_vector",),
    samples=[Sample((4, 2), np.array([2, 0]), (2, 2)), Sample((3,), np.array([1.0]), (1,))], reference=_reference_copy,
)  # fmt: skip
def index_copy(xp: Any, old_tensor: Any, index_vector: Any, new_tensor: Any, *, out: Any) -> None:
    """old_tensor with the rows that index_vector names replaced by those of new_tensor.

    Shapes: (n, a...), (k,), (k, a...) -> (n, a...).   An index out of range is an error on the data.
    Indices should differ: of rows named twice the last one stays, but each has the gradient of that place, as in MXNet;
    the derivative is 0 for all but the last.   MXNet: contrib.index_copy.
    """
    out[...] = old_tensor
    out[bounded(index_vector, len(old_tensor), "raise")] = new_tensor


index_copy.grad(
    old_tensor=lambda F, g, index_vector, new_tensor_shape: F.contrib_index_copy(
        g, index_vector, F.zeros(shape=new_tensor_shape, dtype=g.dtype)
    ),
    new_tensor=lambda F, g, index_vector: F.take(g, index_vector, axis=0),
    index_vector=zero,
)


# ---- comparisons -----------------------------------------------------------------------------------------------------


def _close(metas: Metas, attributes: Attributes) -> Inferred:
    a, b = map(_known, metas)
    uniform(a, b)
    if a[0] != b[0]:
        raise ValueError("arrays of one shape expected")
    return (((), UINT8),), attributes


@operator(
    "contrib_allclose", infer=_close, nd=Rule(space="contrib", dtype="kernel"), samples=[Sample((2, 3), (2, 3))],
    reference=lambda a, b: np.asarray(np.allclose(a, b)),
)  # fmt: skip
def allclose(
    xp: Any, a: Any, b: Any, *, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = True, out: Any
) -> None:
    """1 if abs(a - b) <= atol + rtol abs(b) everywhere, else 0: one number, uint8."""
    out[...] = xp.allclose(a, b, rtol, atol, equal_nan)


def _array(name: str, data: Any) -> Any:
    if not isinstance(data, Array):
        raise ArgumentTypeError(f"[{name}] {describe(data)}: an array expected")
    return data


@composed(space="contrib")
def isnan(data: Any) -> Any:
    """1 where an element is NaN, else 0."""
    return _array("isnan", data) != data


@composed(space="contrib")
def isinf(data: Any) -> Any:
    """1 where an element is infinite, else 0."""
    data = _array("isinf", data)
    return nd_face.abs(data) == math.inf if is_float(data._dtype) else nd_face.zeros_like(data)


@composed(space="contrib")
def isfinite(data: Any) -> Any:
    """1 where an element is a finite number, else 0."""
    data = _array("isfinite", data)
    return nd_face.abs(data) < math.inf if is_float(data._dtype) else nd_face.ones_like(data)


@composed(space="contrib")
def boolean_mask(data: Any, index: Any, axis: int = 0) -> Any:
    """The slices of data along an axis where index, (n,), is not 0.

    Sync: blocks until the index is known, for the shape depends on it.   Raises: ArgumentError at the call.
    Gradient: to data.   MXNet: contrib.boolean_mask (which takes axis 0 only).
    """
    data, index = _array("boolean_mask", data), _array("boolean_mask", index)
    at = axis + data.ndim if axis < 0 else axis
    if not 0 <= at < data.ndim or index.shape != data.shape[at : at + 1]:
        raise ArgumentError(
            f"[boolean_mask] data {describe(data)}, index {describe(index)}: one number for each slice along axis "
            f"{axis} expected"
        )
    places = NDArray._from_host(np.flatnonzero(index.asnumpy()).astype(np.int64), data.context)
    return nd_face.take(data, places, axis=at)


# ---- elementwise -----------------------------------------------------------------------------------------------------


def _numbers(metas: Metas, attributes: Attributes) -> Inferred:
    if _known(metas[0])[1] == BOOL:
        raise TypeError("numbers expected")
    return (metas[0],), attributes


def _unary(
    name: str, gradient: Any, reference: Any, doc: str, kernel: Any, defined: bool = False, **sample: Any
) -> None:
    made: Operator = operator(
        f"contrib_{name}", infer=_numbers, elementwise=True, nd=CONTRIB, reference=reference, doc=doc,
        defined=defined, samples=[Sample((2, 3), **sample)],
    )(kernel)  # fmt: skip
    made.grad(x=gradient)


def _quadratic(xp: Any, x: Any, *, a: float = 0.0, b: float = 0.0, c: float = 0.0, out: Any) -> None:
    wide = x if is_float(x.dtype) else x.astype(np.float64)
    out[...] = (wide * a + b) * wide + c


def _multiplier(xp: Any, x: Any, *, scalar: float = 1.0, out: Any) -> None:
    python_operator.setitem(out, ..., x)


def _round(xp: Any, x: Any, *, out: Any) -> None:
    out[...] = xp.copysign(xp.floor(xp.abs(x) + 0.5), x)


def _sign(xp: Any, x: Any, *, out: Any) -> None:
    xp.sign(x, out)


_unary(
    "quadratic", lambda F, g, x, a, b: g * (x * (2 * a) + b), lambda x, a=0, b=0, c=0: a * x**2 + b * x + c,
    "a x**2 + b x + c.", _quadratic, a=0.5, b=-1.5, c=2.0,
)  # fmt: skip
_unary(
    "gradientmultiplier", lambda F, g, scalar: g * scalar, lambda x, scalar: x,
    "x itself; its gradient is multiplied by scalar.", _multiplier, True, scalar=3.0,
)  # fmt: skip
_unary(
    "round_ste", lambda F, g: g, lambda x: np.trunc(x + np.copysign(0.5, x)),
    "x rounded, halves away from 0; the gradient goes straight through.", _round, True, low=-3, high=3,
)  # fmt: skip
_unary("sign_ste", lambda F, g: g, np.sign, "The sign of x; the gradient goes straight through.", _sign, True)


def _float_like_first(metas: Metas, attributes: Attributes) -> Inferred:
    shape, _ = _known(metas[0])
    floating(metas[0])
    if not shape or not shape[-1]:
        raise ValueError("data with elements along a last axis expected")
    return (metas[0],), attributes


@operator(
    "contrib_div_sqrt_dim", infer=_float_like_first, nd=CONTRIB, samples=[Sample((2, 3))],
    reference=lambda x: x / math.sqrt(x.shape[-1]),
)  # fmt: skip
def div_sqrt_dim(xp: Any, x: Any, *, out: Any) -> None:
    """x over the square root of the length of its last axis."""
    xp.divide(x, math.sqrt(x.shape[-1]), out)


div_sqrt_dim.grad(x=lambda F, g, x_shape: g / math.sqrt(x_shape[-1]))


# ---- Fourier transforms ----------------------------------------------------------------------------------------------


def _fourier(double: bool) -> Any:
    def infer(metas: Metas, attributes: Attributes) -> Inferred:
        shape, dtype = _known(metas[0])
        floating(metas[0])
        if not shape or not shape[-1] or (not double and shape[-1] % 2):
            raise ValueError("data (..., d) expected" if double else "data (..., 2 d) expected")
        return (((*shape[:-1], shape[-1] * 2 if double else shape[-1] // 2), dtype),), attributes

    return infer


def _pairs(z: Any) -> Any:
    return np.stack((z.real, z.imag), -1).reshape(*z.shape[:-1], -1)


@operator(
    "contrib_fft", infer=_fourier(True), nd=CONTRIB, cost=50, samples=[Sample((2, 5)), Sample((2, 2, 4))],
    reference=lambda x, compute_size=128: _pairs(np.fft.fft(x)),
)  # fmt: skip
def fft(xp: Any, x: Any, *, compute_size: int = 128, out: Any) -> None:
    """The Fourier transform along the last axis, real and imaginary parts in turn: (..., d) -> (..., 2 d).

    compute_size has no effect.   MXNet: contrib.fft (on GPUs only).
    """
    found = xp.fft.fft(x)
    out[..., ::2], out[..., 1::2] = found.real, found.imag


@operator(
    "contrib_ifft", infer=_fourier(False), nd=CONTRIB, cost=50, samples=[Sample((2, 6)), Sample((2, 2, 4))],
    reference=lambda x, compute_size=128: np.fft.ifft(x[..., ::2] + 1j * x[..., 1::2]).real * (x.shape[-1] // 2),
)  # fmt: skip
def ifft(xp: Any, x: Any, *, compute_size: int = 128, out: Any) -> None:
    """The real part of the inverse Fourier transform, times its length: (..., 2 d) -> (..., d).

    compute_size has no effect.   MXNet: contrib.ifft (on GPUs only).
    """
    xp.multiply(xp.fft.ifft(x[..., ::2] + 1j * x[..., 1::2]).real, out.shape[-1], out)


fft.grad(x=lambda F, g: F.contrib_ifft(g))
ifft.grad(x=lambda F, g: F.contrib_fft(g))


# ---- attention -------------------------------------------------------------------------------------------------------


def _head(F: Any, x: Any, heads: int, kinds: int, kind: int) -> Any:
    """One of the projections that lie beside each other: (l, n, heads kinds d) -> (n heads, l, d)."""
    length, n, width = x.shape
    d = width // (heads * kinds)
    x = F.reshape(x, shape=(length, n * heads, kinds * d))
    return F.transpose(F.slice_axis(x, axis=2, begin=kind * d, end=(kind + 1) * d), axes=(1, 0, 2))


def _scores(F: Any, queries: Any, keys: Any) -> Any:
    return F.batch_dot(queries / math.sqrt(queries.shape[2]), keys, transpose_b=True)


def _gathered(F: Any, attention: Any, values: Any, heads: int) -> Any:
    made = F.transpose(F.batch_dot(attention, values), axes=(1, 0, 2))
    length, rows, d = made.shape
    return F.reshape(made, shape=(length, rows // heads, heads * d))


def _self_scores(F: Any, queries_keys_values: Any, *, heads: int) -> Any:
    return _scores(F, *(_head(F, queries_keys_values, heads, 3, k) for k in (0, 1)))


def _self_values(F: Any, queries_keys_values: Any, attention: Any, *, heads: int) -> Any:
    return _gathered(F, attention, _head(F, queries_keys_values, heads, 3, 2), heads)


def _other_scores(F: Any, queries: Any, keys_values: Any, *, heads: int) -> Any:
    return _scores(F, _head(F, queries, heads, 1, 0), _head(F, keys_values, heads, 2, 0))


def _other_values(F: Any, keys_values: Any, attention: Any, *, heads: int) -> Any:
    return _gathered(F, attention, _head(F, keys_values, heads, 2, 1), heads)


def _attending(kinds: tuple[int, ...], values: bool) -> Any:
    def infer(metas: Metas, attributes: Attributes) -> Inferred:
        given = [_known(meta) for meta in metas]
        dtype, heads = uniform(*given), int(attributes["heads"])
        floating(*given)
        shapes = [meta[0] for meta in given]
        if any(len(s) != 3 for s in shapes) or heads < 1:
            raise ValueError("arrays with three axes, and heads from 1, expected")
        for shape, kind in zip(shapes, kinds, strict=False):
            if shape[2] % (heads * kind) or not shape[2]:
                raise ValueError(f"a last axis that divides into {heads} heads of {kind} expected")
        (length, n, width), rest = shapes[0], shapes[1:]
        if values:
            if rest[0][0] != n * heads or rest[0][2] != length:
                raise ValueError(f"attention of shape ({n * heads}, queries, {length}) expected")
            made = (rest[0][1], n, width // kinds[0])
        elif rest:
            if rest[0][1:] != (n, 2 * width):
                raise ValueError(f"keys_values of shape (keys, {n}, {2 * width}) expected")
            made = (n * heads, length, rest[0][0])
        else:
            made = (n * heads, length, length)
        return ((made, dtype),), {"heads": heads}

    return infer


def _attention(name: str, function: Any, kinds: tuple[int, ...], samples: Any, kernel: Any, doc: str) -> None:
    op: Operator = operator(
        f"contrib_interleaved_matmul_{name}", infer=_attending(kinds, "valatt" in name), nd=Rule(space="contrib"),
        cost=20, reference=lambda *arrays, heads: function(raw, *arrays, heads=heads), samples=samples,
        doc=f"{doc}\n\nl, k: queries, keys.   n: batch.   d: length of a head.   MXNet: its name.",
    )(kernel)  # fmt: skip
    derived(op, function, *op.inputs)


def _self_qk(xp: Any, queries_keys_values: Any, *, heads: int, out: Any) -> None:
    out[...] = _self_scores(raw, queries_keys_values, heads=heads)


def _self_valatt(xp: Any, queries_keys_values: Any, attention: Any, *, heads: int, out: Any) -> None:
    out[...] = _self_values(raw, queries_keys_values, attention, heads=heads)


def _other_qk(xp: Any, queries: Any, keys_values: Any, *, heads: int, out: Any) -> None:
    out[...] = _other_scores(raw, queries, keys_values, heads=heads)


def _other_valatt(xp: Any, keys_values: Any, attention: Any, *, heads: int, out: Any) -> None:
    out[...] = _other_values(raw, keys_values, attention, heads=heads)


_attention("selfatt_qk", _self_scores, (3,), [Sample((3, 2, 12), heads=2)], _self_qk,
           "Products of queries, over sqrt(d), with keys: (l, n, heads 3 d) -> (n heads, l, l).")  # fmt: skip
_attention("selfatt_valatt", _self_values, (3,), [Sample((3, 2, 12), (4, 3, 3), heads=2)], _self_valatt,
           "Values by attention: (l, n, heads 3 d), (n heads, l, l) -> (l, n, heads d).")  # fmt: skip
_attention(
    "encdec_qk",
    _other_scores,
    (1, 2),
    [Sample((3, 2, 4), (5, 2, 8), heads=2)],
    _other_qk,
    "Products of queries, over sqrt(d), with keys: (l, n, heads d), (k, n, heads 2 d) -> (n heads, l, k).",
)
_attention("encdec_valatt", _other_values, (2,), [Sample((5, 2, 8), (4, 3, 5), heads=2)], _other_valatt,
           "Values by attention: (k, n, heads 2 d), (n heads, l, k) -> (l, n, heads d).")  # fmt: skip
