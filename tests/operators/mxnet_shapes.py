"""Operands of random shapes, and random attributes, of the operators that are not elementwise: for mxnet_operators.py.

Each function below gives, of a name and of random numbers, one call that MXNet accepts: (operands, attributes).  The
numbers come from the name and from the number of the call, so both libraries are asked the same for ever.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

CALLS = 12  # of each name
Call = tuple[list[Any], dict[str, Any]]
FAMILIES: dict[str, Callable[[Draw, str], Call]] = {}


class Draw:
    """Random numbers of one call."""

    def __init__(self, name: str, number: int) -> None:
        self.rng, self.number = np.random.default_rng(zlib.crc32(f"{name}/{number}".encode())), number

    def size(self, least: int = 1, most: int = 4) -> int:
        return int(self.rng.integers(least, most + 1))

    def shape(self, axes: int | None = None, least: int = 1, most: int = 4) -> tuple[int, ...]:
        return tuple(self.size(least, most) for _ in range(self.size(1, 4) if axes is None else axes))

    def flag(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def one(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def floats(self, *shape: int, low: float = -1, high: float = 1) -> Any:
        return self.rng.uniform(low, high, shape).astype(np.float32)

    def ties(self, *shape: int) -> Any:
        """Few different values."""
        return self.rng.integers(-2, 3, shape).astype(np.float32)

    def whole(self, high: int, *shape: int, low: int = 0) -> Any:
        """Indices, below `high`."""
        return self.rng.integers(low, high, shape).astype(np.int32)

    def axis(self, axes: int) -> int:
        return int(self.rng.integers(-axes, axes))

    def axes(self, axes: int) -> Any:
        """Some axes, or one, or None for all."""
        some = sorted(self.rng.permutation(axes)[: self.size(1, axes)].tolist())
        return self.one(None, self.axis(axes), tuple(some))


def family(*names: str) -> Callable[[Callable[[Draw, str], Call]], Callable[[Draw, str], Call]]:
    """Declare how to call these."""

    def declare(function: Callable[[Draw, str], Call]) -> Callable[[Draw, str], Call]:
        FAMILIES.update(dict.fromkeys(names, function))
        return function

    return declare


def calls() -> Iterator[tuple[str, int, list[Any], dict[str, Any]]]:
    """(name, number, operands, attributes) of every call."""
    for name, function in FAMILIES.items():
        for number in range(CALLS):
            yield (name, number, *function(Draw(name, number), name))


def kinks() -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
    """(name, operands, attributes) where a derivative does not exist, or exists from one side."""

    def floats(*values: Any) -> Any:
        return np.array(values, np.float32)

    around = floats(-1, -0.5, -0.0, 0, 0.5, 1)
    for name in ("abs", "relu", "sign", "cbrt", "softsign", "square", "floor", "round", "rint", "ceil", "trunc", "fix"):
        yield name, [around], {}
    for name in ("sqrt", "log", "log2", "log10", "rsqrt", "rcbrt", "reciprocal", "gamma", "gammaln"):
        yield name, [floats(0, 0.5)], {}
    for name in ("arcsin", "arccos", "arctanh", "erfinv", "log1p"):
        yield name, [floats(-1, 1)], {}
    yield "arccosh", [floats(1, 2)], {}
    yield "clip", [around], {"a_min": -0.5, "a_max": 0.5}
    yield "hard_sigmoid", [floats(-2.5, -2, 0, 2, 2.5)], {"alpha": 0.25, "beta": 0.5}
    yield "smooth_l1", [floats(-1, 0, 1, 0.25, -0.25)], {"scalar": 1.0}
    yield "smooth_l1", [floats(-1, 0, 1, 0.25, -0.25)], {"scalar": 2.0}
    for kind in ("leaky", "elu", "gelu"):
        yield "LeakyReLU", [around], {"act_type": kind, "slope": 0.3}
    yield "LeakyReLU", [around.reshape(1, 6), np.full(6, 0.3, np.float32)], {"act_type": "prelu"}
    for kind in ("relu", "softsign", "softrelu"):
        yield "Activation", [around], {"act_type": kind}
    for name in ("broadcast_maximum", "broadcast_minimum"):
        yield name, [floats(1, 2, 3, -0.0), floats(2, 2, 2, 0)], {}
    yield "broadcast_hypot", [floats(0, 0, 3), floats(0, 2, 4)], {}
    yield "broadcast_power", [floats(0, 0, 0, 2, 1), floats(0, 1, 2, 0, 0)], {}
    yield "broadcast_mod", [floats(4, -4, 5, 0), floats(2, 2, -2.5, 3)], {}
    for name in ("max", "min"):
        yield name, [floats([1, 3, 3], [-2, -2, 0])], {"axis": 1}
    for name in ("prod", "nanprod"):
        yield name, [floats([2, 0, 3], [0, 0, 2], [1, 2, 3])], {"axis": 1}
    yield "nanprod", [floats([np.nan, 2, 0], [np.nan, 3, 2])], {"axis": 1}
    yield "prod", [floats([2, 1, 3], [-1, 0.5, 2])], {"axis": 1}
    yield "nansum", [floats([np.nan, 2, 0], [np.nan, np.nan, np.nan])], {"axis": 1}
    for order in (1, 2):
        yield "norm", [floats([0, 0], [0, 1])], {"ord": order, "axis": 1}
        yield "norm", [floats(0, 0)], {"ord": order}
    yield "L2Normalization", [floats([0, 0], [3, 4])], {}
    yield "sort", [floats(1, 2, 1, 2)], {"axis": 0}
    yield "Pooling", [floats([[[1, 1], [1, 0]]]).reshape(1, 1, 2, 2)], {"kernel": (2, 2), "pool_type": "max"}
    for name in ("MAERegressionOutput", "LinearRegressionOutput"):
        yield name, [floats([1], [2]), floats([1], [3])], {}
    for linear in (False, True):
        yield "SVMOutput", [floats([0, 1, 1], [2, -1, 0.5]), floats(0, 1)], {"margin": 1.0, "use_linear": linear}
    yield "where", [floats(0, 1, np.nan), floats(1, 2, 3), floats(4, 5, 6)], {}


def middle() -> Iterator[tuple[str, list[Any], dict[str, Any]]]:
    """(name, operands, attributes) of a middle size, where a sample repeated along its first axis is no usual call."""
    d = Draw("middle", 0)
    square = d.floats(16, 64, 64) + 8 * np.eye(64, dtype=np.float32)
    yield "dot", [d.floats(256, 512), d.floats(512, 256)], {}
    yield "batch_dot", [d.floats(32, 64, 64), d.floats(32, 64, 64)], {}
    yield "linalg_gemm", [d.floats(32, 64, 64), d.floats(32, 64, 64), d.floats(32, 64, 64)], {}
    yield "linalg_trsm", [np.tril(square), d.floats(16, 64, 64)], {}
    yield "linalg_potrf", [square @ square.transpose(0, 2, 1)], {}
    yield "linalg_inverse", [square], {}
    yield "FullyConnected", [d.floats(128, 1024), d.floats(256, 1024), d.floats(256)], {"num_hidden": 256}
    how = {"kernel": (3, 3), "pad": (1, 1), "num_filter": 32}
    yield "Convolution", [d.floats(8, 16, 32, 32), d.floats(32, 16, 3, 3), d.floats(32)], how
    yield "Deconvolution", [d.floats(8, 16, 32, 32), d.floats(16, 32, 3, 3)], {**how, "no_bias": True}
    yield "Pooling", [d.floats(8, 16, 32, 32)], {"kernel": (2, 2), "stride": (2, 2), "pool_type": "max"}
    yield "im2col", [d.floats(8, 16, 32, 32)], {"kernel": (3, 3), "pad": (1, 1)}
    yield "UpSampling", [d.floats(8, 16, 32, 32)], {"scale": 2, "sample_type": "nearest", "num_args": 1}
    yield "LRN", [d.floats(8, 16, 32, 32)], {"nsize": 5}
    yield "BilinearSampler", [d.floats(8, 16, 32, 32), d.floats(8, 2, 32, 32)], {}
    rois = np.sort(d.rng.uniform(0, 32, (128, 2, 2)), 1).reshape(128, 4).astype(np.float32)
    rois = np.concatenate((d.whole(2, 128, 1).astype(np.float32), rois), 1)
    yield "ROIPooling", [d.floats(2, 64, 32, 32), rois], {"pooled_size": (7, 7), "spatial_scale": 1.0}
    how = {"kernel_size": 1, "max_displacement": 4, "pad_size": 4}
    yield "Correlation", [d.floats(4, 32, 32, 32), d.floats(4, 32, 32, 32)], how
    yield "CTCLoss", [d.floats(100, 32, 40), d.whole(40, 32, 20, low=1).astype(np.float32)], {}
    how = {"mode": "lstm", "state_size": 128, "num_layers": 1}
    states = [d.floats(1, 32, 128), d.floats(1, 32, 128)]
    yield "RNN", [d.floats(32, 32, 128), d.floats(4 * 128 * (128 + 128 + 2), low=-0.1, high=0.1), *states], how
    yield "SequenceMask", [d.floats(64, 32, 64), d.whole(65, 32).astype(np.float32)], {"use_sequence_length": True}
    yield (
        "SequenceReverse",
        [d.floats(64, 32, 64), d.whole(65, 32, low=1).astype(np.float32)],
        {"use_sequence_length": True},
    )
    yield "topk", [d.floats(128, 1024)], {"k": 10, "ret_typ": "value"}
    yield "sort", [d.floats(128, 1024)], {}
    yield "take", [d.floats(1024, 128), d.whole(1024, 1024)], {}
    yield "Embedding", [d.whole(10000, 1024), d.floats(10000, 128)], {"input_dim": 10000, "output_dim": 128}
    yield "one_hot", [d.whole(128, 1024)], {"depth": 128}
    yield "batch_take", [d.floats(1024, 128), d.whole(128, 1024)], {}
    yield (
        "scatter_nd",
        [d.floats(1024, 128), d.rng.permutation(2048)[None, :1024].astype(np.int32)],
        {"shape": (2048, 128)},
    )
    for name in ("softmax", "log_softmax", "softmin", "SoftmaxActivation"):
        yield name, [d.floats(128, 1000)], {}
    yield "SoftmaxOutput", [d.floats(128, 1000), d.whole(1000, 128).astype(np.float32)], {}
    yield "add_n", [d.floats(256, 512) for _ in range(4)], {}
    yield "broadcast_add", [d.floats(256, 512), d.floats(1, 512)], {}
    yield "khatri_rao", [d.floats(32, 256), d.floats(16, 256)], {}


# ---- broadcasting, reductions, order ---------------------------------------------------------------------------------


@family(
    "broadcast_add", "broadcast_sub", "broadcast_mul", "broadcast_div", "broadcast_power", "broadcast_maximum",
    "broadcast_minimum", "broadcast_hypot", "broadcast_equal", "broadcast_greater", "broadcast_lesser_equal",
    "broadcast_logical_xor", "broadcast_mod",
)  # fmt: skip
def _(d: Draw, name: str) -> Call:
    shape = d.shape()
    pair = [tuple(1 if d.rng.random() < 0.3 else n for n in shape) for _ in range(2)]
    if name in ("broadcast_maximum", "broadcast_minimum", "broadcast_equal", "broadcast_greater"):
        return [d.ties(*s) for s in pair], {}
    return [d.floats(*s, low=0.3, high=2) for s in pair], {}


@family("sum", "mean", "prod", "nansum", "nanprod", "max", "min", "sum_axis", "max_axis", "min_axis")
def _(d: Draw, name: str) -> Call:
    shape = d.shape()
    x = d.ties(*shape) if name[:3] in ("max", "min") else d.floats(*shape)
    if name.startswith("nan"):
        x[d.rng.random(shape) < 0.3] = np.nan
    axis = d.axes(len(shape))
    return [x], {"axis": axis, "keepdims": d.flag(), "exclude": d.flag() if isinstance(axis, int) else False}


@family("norm")
def _(d: Draw, name: str) -> Call:
    x = d.floats(*d.shape(d.size(1, 3)))
    return [x], {"ord": d.one(1, 2), "axis": d.one(None, d.axis(x.ndim)), "keepdims": d.flag()}


@family("argmax", "argmin")
def _(d: Draw, name: str) -> Call:
    x = d.ties(*d.shape())
    return [x], {"axis": d.one(None, d.axis(x.ndim)), "keepdims": d.flag()}


@family("argmax_channel")
def _(d: Draw, name: str) -> Call:
    return [d.ties(*d.shape(2))], {}


@family("moments")
def _(d: Draw, name: str) -> Call:
    x = d.floats(*d.shape())
    return [x], {"axes": tuple(sorted(d.rng.permutation(x.ndim)[: d.size(1, x.ndim)].tolist())), "keepdims": d.flag()}


@family("cumsum")
def _(d: Draw, name: str) -> Call:
    x = d.floats(*d.shape())
    return [x], {"axis": d.one(None, d.size(0, x.ndim - 1))}


@family("sort", "argsort", "topk")
def _(d: Draw, name: str) -> Call:
    shape = d.shape(most=5)
    x = d.rng.permutation(math.prod(shape)).reshape(shape).astype(np.float32)
    axis = d.axis(len(shape))
    if name != "topk":
        return [x], {"axis": axis, "is_ascend": d.flag()}
    k = d.size(1, shape[axis])
    return [x], {"axis": axis, "k": k, "is_ascend": d.flag(), "ret_typ": d.one("value", "indices", "mask", "both")}


@family("softmax", "log_softmax", "softmin")
def _(d: Draw, name: str) -> Call:
    x = d.floats(*d.shape(), low=-4, high=4)
    return [x], {"axis": d.axis(x.ndim), "temperature": d.one(None, 0.7, 2.5)}


@family("SoftmaxActivation")
def _(d: Draw, name: str) -> Call:
    if d.flag():  # with more axes MXNet's gradient of "instance" is not the derivative
        return [d.floats(*d.shape(2), low=-4, high=4)], {"mode": "instance"}
    return [d.floats(*d.shape(d.size(3, 4)), low=-4, high=4)], {"mode": "channel"}


@family("softmax_cross_entropy")
def _(d: Draw, name: str) -> Call:
    n, classes = d.shape(2, least=2)
    return [d.floats(n, classes), d.whole(classes, n).astype(np.float32)], {}


@family("SoftmaxOutput")
def _(d: Draw, name: str) -> Call:
    n, classes, m = d.shape(3, least=2)
    how = {"use_ignore": d.flag(), "ignore_label": 1.0, "normalization": d.one("null", "batch", "valid")}
    how.update(grad_scale=d.one(1.0, 0.5), smooth_alpha=d.one(0.0, 0.2))
    if d.flag():
        return [d.floats(n, classes, m), d.whole(classes, n, m).astype(np.float32)], {**how, "multi_output": True}
    return [d.floats(n, classes), d.whole(classes, n).astype(np.float32)], how


# ---- shapes ----------------------------------------------------------------------------------------------------------


@family("transpose", "expand_dims", "flip", "reverse", "SwapAxis", "Flatten", "squeeze", "flatten")
def _(d: Draw, name: str) -> Call:
    x = d.floats(*d.shape())
    n = x.ndim
    if name == "squeeze":
        return [x[None, :, None]], d.one({}, {"axis": 0}, {"axis": (0, 2)})
    return [x], {
        "transpose": d.one({}, {"axes": tuple(d.rng.permutation(n).tolist())}),
        "expand_dims": {"axis": int(d.rng.integers(-n - 1, n + 1))},
        "flip": {"axis": d.size(0, n - 1)},
        "reverse": {"axis": tuple(d.rng.permutation(n)[: d.size(1, n)].tolist())},
        "SwapAxis": {"dim1": int(d.rng.integers(n)), "dim2": int(d.rng.integers(n))},
    }.get(name, {})


@family("Reshape", "reshape_like", "broadcast_like", "broadcast_to", "broadcast_axis")
def _(d: Draw, name: str) -> Call:
    a, b, c = d.shape(3)
    x = d.floats(a, b, c)
    if name == "Reshape":
        codes = d.one((-1,), (0, -1), (-3, 0), (-2,), (0, 0, -4, 1, -1), (-1, 0), (c, b, a), (0, -4, -1, 1, -2))
        return [x], {"shape": codes, "reverse": codes == (-1, 0)}
    if name == "reshape_like":
        return [x, d.floats(c, a * b)], {}
    thin = d.floats(a, 1, c)
    if name == "broadcast_like":
        return [thin, x], {}
    if name == "broadcast_to":
        return [thin], {"shape": d.one((a, b, c), (0, b, 0))}
    return [d.floats(1, b, 1)], {"axis": d.one((0, 2), (2, 0)), "size": (3, 2)}


@family("tile", "repeat", "pad", "Pad")
def _(d: Draw, name: str) -> Call:
    if name.lower() == "pad":
        x = d.floats(*d.shape(d.one(4, 5), least=3, most=4))
        width = (0, 0, 0, 0, *(d.size(0, 2) for _ in range(2 * x.ndim - 4)))
        return [x], {"mode": d.one("constant", "edge", "reflect"), "pad_width": width, "constant_value": 0.5}
    x = d.floats(*d.shape(d.size(1, 3)))
    if name == "tile":
        return [x], {"reps": d.shape(d.size(1, 4), most=3)}
    return [x], {"repeats": d.size(1, 3), "axis": d.one(None, d.axis(x.ndim))}


@family("slice", "slice_axis", "slice_like")
def _(d: Draw, name: str) -> Call:
    shape = d.shape(d.size(1, 3), least=2, most=6)
    x = d.floats(*shape)
    if name == "slice_like":
        smaller = tuple(d.size(1, n) for n in shape)
        return [x, d.floats(*smaller)], d.one({}, {"axes": (-1,)}) if len(shape) == 1 else {}
    begin = tuple(d.size(0, n - 1) for n in shape)
    end = tuple(d.size(b + 1, n) for b, n in zip(begin, shape, strict=True))
    if name == "slice_axis":
        axis = d.axis(len(shape))
        return [x], {"axis": axis, "begin": begin[axis], "end": d.one(None, end[axis])}
    if d.flag():
        return [x], {"begin": begin, "end": end}
    step = tuple(d.one(1, 2, -1, -2) for _ in shape)
    return [x], {"begin": (None,) * len(shape), "end": (None,) * len(shape), "step": step}


@family("Concat", "stack", "SliceChannel", "split_v2", "add_n")
def _(d: Draw, name: str) -> Call:
    shape = d.shape(d.size(2, 3))
    axis = d.axis(len(shape))
    count = d.size(1, 3)
    if name == "add_n":
        return [d.floats(*shape) for _ in range(count)], {}
    if name == "Concat":
        shapes = [tuple(d.size() if i == axis % len(shape) else n for i, n in enumerate(shape)) for _ in range(count)]
        return [d.floats(*s) for s in shapes], {"dim": axis}
    if name == "stack":
        return [d.floats(*shape) for _ in range(count)], {"axis": int(d.rng.integers(0, len(shape) + 1))}
    long = list(shape)
    long[axis] = 6
    if name == "split_v2":
        return [d.floats(*long)], {"indices_or_sections": d.one(2, 3, (1, 3), (2, 3, 5)), "axis": axis % len(shape)}
    return [d.floats(*long)], {"num_outputs": d.one(2, 3, 6), "axis": axis, "squeeze_axis": False}


@family("depth_to_space", "space_to_depth", "diag", "khatri_rao")
def _(d: Draw, name: str) -> Call:
    if name == "khatri_rao":
        k = d.size()
        return [d.floats(d.size(), k) for _ in range(d.size(2, 3))], {}
    if name == "diag":
        shape = d.shape(d.size(1, 3), least=2)
        return [d.floats(*shape)], {"k": d.one(0, 1, -1)} if len(shape) < 3 else {"axis1": 0, "axis2": d.one(1, 2)}
    n, c, h, w = d.shape(4, most=2)
    block = d.one(1, 2)
    if name == "depth_to_space":
        return [d.floats(n, c * block**2, h, w)], {"block_size": block}
    return [d.floats(n, c, h * block, w * block)], {"block_size": block}


# ---- indices ---------------------------------------------------------------------------------------------------------


@family("take", "batch_take", "pick", "Embedding", "one_hot")
def _(d: Draw, name: str) -> Call:
    shape = d.shape(d.size(2, 3), least=2)
    x = d.floats(*shape)
    if name == "take":
        axis, mode = d.axis(len(shape)), d.one("clip", "wrap")
        return [x, d.whole(shape[axis] + 2, *d.shape(d.size(1, 2)), low=-2)], {"axis": axis, "mode": mode}
    if name == "batch_take":
        return [d.floats(*shape[:2]), d.whole(shape[1], shape[0])], {}
    if name == "pick":
        axis, keep = d.axis(len(shape)), d.flag()
        rest = tuple(1 if keep else n for i, n in enumerate(shape) if keep or i != axis % len(shape))
        rest = tuple(1 if i == axis % len(shape) else n for i, n in enumerate(shape)) if keep else rest
        mode = d.one("clip", "wrap")
        return [x, d.whole(shape[axis] + 1, *rest, low=-1)], {"axis": axis, "keepdims": keep, "mode": mode}
    if name == "Embedding":
        n, k = shape[:2]
        return [d.whole(n, *d.shape(d.size(1, 2))), d.floats(n, k)], {"input_dim": n, "output_dim": k}
    how = {"depth": d.size(2, 4), "on_value": d.one(1.0, 2.5), "off_value": d.one(0.0, -1.0)}
    return [d.whole(5, *d.shape(d.size(1, 2)), low=-1)], how


@family("gather_nd", "scatter_nd", "where", "ravel_multi_index", "unravel_index")
def _(d: Draw, name: str) -> Call:
    shape = d.shape(3, least=2)
    axes = d.size(1, 3)
    if name == "where":
        return [d.whole(2, *shape).astype(np.float32), d.floats(*shape), d.floats(*shape)], {}
    if name == "unravel_index":
        return [d.whole(math.prod(shape), d.size(1, 5))], {"shape": shape}
    count = d.size(1, 4)
    if name == "ravel_multi_index":
        return [np.stack([d.whole(n, count) for n in shape])], {"shape": shape}
    flat = d.rng.permutation(math.prod(shape[:axes]))[:count]  # MXNet's scatter_nd leaves open what equal places give
    where = np.stack(np.unravel_index(flat, shape[:axes])).astype(np.int32)
    if name == "gather_nd":
        return [d.floats(*shape), where], {}
    return [d.floats(len(flat), *shape[axes:]), where], {"shape": shape}


@family("SequenceMask", "SequenceLast", "SequenceReverse")
def _(d: Draw, name: str) -> Call:
    steps, n, *rest = d.shape(d.size(2, 4), least=2)
    axis = 0 if name == "SequenceReverse" else d.one(0, 1)
    shape = (steps, n, *rest) if axis == 0 else (n, steps, *rest)
    use = d.flag() or name == "SequenceLast"  # without, MXNet's gradient of that leaves its memory
    how: dict[str, Any] = {"axis": axis, "use_sequence_length": use}
    if name == "SequenceMask":
        how["value"] = d.one(0.0, -1.5)
    lengths = d.whole(steps + 1, n, low=1).astype(np.float32)
    return [d.floats(*shape), *([lengths] if how["use_sequence_length"] else [])], how


# ---- products --------------------------------------------------------------------------------------------------------


@family("dot", "batch_dot", "linalg_gemm", "linalg_gemm2", "linalg_syrk", "linalg_trmm", "linalg_trsm")
def _(d: Draw, name: str) -> Call:
    n, k, m, batch = d.shape(4)
    first, second = d.flag(), d.flag()
    lead = (batch,) if name != "dot" and (name == "batch_dot" or d.flag()) else ()
    how: dict[str, Any] = {"transpose_a": first, "transpose_b": second}
    scale = {"alpha": d.one(1.0, -0.5)}
    if name in ("linalg_trmm", "linalg_trsm"):
        right = second
        a = d.floats(*lead, n, n) + 2 * np.eye(n, dtype=np.float32)
        b = d.floats(*lead, *((m, n) if right else (n, m)))
        return [a, b], {"transpose": first, "rightside": right, "lower": d.flag(), **scale}
    if name == "linalg_syrk":
        return [d.floats(*lead, n, k)], {"transpose": first, **scale}
    x, y = d.floats(*lead, *((k, n) if first else (n, k))), d.floats(*lead, *((m, k) if second else (k, m)))
    if name == "linalg_gemm":
        return [x, y, d.floats(*lead, n, m)], {**how, **scale, "beta": d.one(1.0, 0.3)}
    return [x, y], {**how, **scale} if name == "linalg_gemm2" else how


@family(
    "linalg_potrf", "linalg_potri", "linalg_sumlogdiag", "linalg_det", "linalg_slogdet", "linalg_inverse",
    "linalg_extractdiag", "linalg_makediag", "linalg_extracttrian", "linalg_maketrian",
)  # fmt: skip
def _(d: Draw, name: str) -> Call:
    n = d.size(1, 4)
    lead = d.shape(d.size(0, 2), most=2)
    x = d.floats(*lead, n, n)
    eye = np.eye(n, dtype=np.float32)
    if name == "linalg_potrf":
        return [x @ np.swapaxes(x, -1, -2) + 2 * eye], {}
    if name in ("linalg_potri", "linalg_sumlogdiag"):
        return [np.tril(abs(x)) + 2 * eye], {}
    if name == "linalg_makediag":
        return [d.floats(*lead, n)], {"offset": d.one(0, 1, -2)}
    if name in ("linalg_extractdiag", "linalg_extracttrian"):
        offset = d.one(0, 1, -1) if n > 1 else 0
        return [x], {"offset": offset, **({"lower": d.flag()} if name == "linalg_extracttrian" and not offset else {})}
    if name == "linalg_maketrian":
        return [d.floats(*lead, n * (n + 1) // 2)], {"lower": d.flag()}
    return [x + 2 * eye], {}


# ---- layers ----------------------------------------------------------------------------------------------------------


@family("FullyConnected")
def _(d: Draw, name: str) -> Call:
    shape = d.shape(d.size(2, 4))
    flat, bias, hidden = d.flag(), d.flag(), d.size()
    width = math.prod(shape[1:]) if flat else shape[-1]
    operands = [d.floats(*shape), d.floats(hidden, width), *([d.floats(hidden)] if bias else [])]
    return operands, {"num_hidden": hidden, "flatten": flat, "no_bias": not bias}


@family("Convolution", "Deconvolution", "im2col")
def _(d: Draw, name: str) -> Call:
    axes = 2 if name == "im2col" else d.size(1, 3)
    groups = d.one(1, 2) if name != "im2col" else 1
    n, inner, outer = d.size(1, 2), groups * d.size(1, 2), groups * d.size(1, 2)
    kernel = d.shape(axes, most=3 if axes < 3 else 2)
    how: dict[str, Any] = {"kernel": kernel, "stride": d.shape(axes, most=2), "pad": d.shape(axes, least=0, most=1)}
    how["dilate"] = d.shape(axes, most=2)
    size = d.shape(axes, least=5 if axes < 3 else 3, most=6 if axes < 3 else 4)
    if name == "im2col":
        return [d.floats(n, inner, *size)], how
    bias = d.flag()
    weight = (outer, inner // groups) if name == "Convolution" else (inner, outer // groups)
    if name == "Deconvolution":
        size = d.shape(axes, most=3)
        how["dilate"] = how["dilate"] if axes < 3 else (1, 1, 1)
        how["adj"] = tuple(d.size(0, s - 1) for s in how["stride"])
        how["pad"] = tuple(min(p, (k - 1) * e // 2) for p, k, e in zip(how["pad"], kernel, how["dilate"], strict=True))
    how.update(num_filter=outer, num_group=groups, no_bias=not bias)
    return [d.floats(n, inner, *size), d.floats(*weight, *kernel), *([d.floats(outer)] if bias else [])], how


@family("Pooling")
def _(d: Draw, name: str) -> Call:
    axes = d.size(1, 3)
    size = d.shape(axes, least=4, most=6 if axes < 3 else 4)
    x = d.floats(d.size(1, 2), d.size(1, 2), *size, low=0.1)
    if d.rng.random() < 0.2:
        return [x], {"kernel": (1,) * axes, "global_pool": True, "pool_type": d.one("max", "avg", "sum")}
    kind = d.one("max", "avg", "sum", "lp")
    how: dict[str, Any] = {"kernel": d.shape(axes, least=2, most=3), "stride": d.shape(axes, most=2)}
    how.update(pad=d.shape(axes, least=0, most=1), pool_type=kind, pooling_convention=d.one("valid", "full"))
    if kind == "avg":
        how["count_include_pad"] = d.flag()
    if kind == "lp":
        how.update(p_value=d.one(1, 2), pad=(0,) * axes)
    return [x], how


@family("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "L2Normalization", "LRN")
def _(d: Draw, name: str) -> Call:
    shape = (d.size(2, 4), *d.shape(d.size(1, 3), least=2, most=3))
    if name == "LRN":
        x = d.floats(*d.shape(4, most=3))
        return [x], {"nsize": d.one(1, 3, 5), "alpha": d.one(0.1, 1e-4), "beta": d.one(0.75, 0.5), "knorm": 1.5}
    if name == "L2Normalization":
        return [d.floats(*shape)], {"mode": d.one("instance", "channel", "spatial") if len(shape) > 2 else "instance"}
    if name == "InstanceNorm":
        shape = (*shape[:2], *shape[2:], 3)
        return [d.floats(*shape), d.floats(shape[1]), d.floats(shape[1])], {"eps": 1e-3}
    if name == "GroupNorm":
        groups = d.size(1, 2)
        x = d.floats(shape[0], 2 * groups, *shape[2:], 3)
        return [x, d.floats(groups), d.floats(groups)], {"num_groups": groups, "eps": 1e-3}
    axis = d.axis(len(shape))
    n = shape[axis]
    scale = [d.floats(n, low=0.5), d.floats(n)]
    if name == "LayerNorm":
        return [d.floats(*shape), *scale], {"axis": axis, "eps": 1e-3}
    how = {"axis": axis % len(shape), "eps": 1e-2, "fix_gamma": d.flag(), "use_global_stats": d.flag()}
    return [d.floats(*shape), *scale, d.floats(n), d.floats(n, low=0.5)], how


@family("LeakyReLU", "Activation")
def _(d: Draw, name: str) -> Call:
    shape = d.shape(d.size(2, 4))
    x = d.floats(*shape, low=-3, high=3)
    if name == "Activation":
        return [x], {"act_type": d.one("relu", "sigmoid", "tanh", "softrelu", "softsign")}
    kind = d.one("leaky", "elu", "gelu", "prelu")
    return [x, *([d.floats(shape[1], low=0.1)] if kind == "prelu" else [])], {"act_type": kind, "slope": 0.3}


@family("RNN")
def _(d: Draw, name: str) -> Call:
    mode = ("rnn_relu", "rnn_tanh", "lstm", "gru")[d.number % 4]
    steps, n, inputs, hidden = d.shape(4, most=3)
    layers, both = d.size(1, 2), d.flag()
    directions, gates = 1 + both, {"lstm": 4, "gru": 3}.get(mode, 1)
    how = {"mode": mode, "state_size": hidden, "num_layers": layers, "bidirectional": both, "state_outputs": True}
    length = hidden
    if mode == "lstm" and d.number > 3:
        how["projection_size"] = length = d.size(1, 3)
    rows = gates * hidden
    size = sum(directions * rows * ((directions * length if k else inputs) + length + 2) for k in range(layers))
    size += directions * layers * length * hidden * ("projection_size" in how)
    more = [d.floats(layers * directions, n, hidden)] if mode == "lstm" else []
    return [d.floats(steps, n, inputs), d.floats(size), d.floats(layers * directions, n, length), *more], how


@family("CTCLoss")
def _(d: Draw, name: str) -> Call:
    n, classes, longest = d.size(1, 3), d.size(3, 5), d.size(1, 3)
    steps = 2 * longest + d.size(0, 2)
    last = d.flag()
    label = d.whole(classes - last, n, longest, low=1 - last).astype(np.float32)
    return [d.floats(steps, n, classes, low=-2, high=2), label], {"blank_label": "last" if last else "first"}


@family("UpSampling", "Crop", "GridGenerator", "BilinearSampler", "SpatialTransformer", "ROIPooling", "Correlation")
def _(d: Draw, name: str) -> Call:
    n, c, h, w = d.size(1, 2), d.size(1, 3), d.size(2, 5), d.size(2, 5)
    x = d.floats(n, c, h, w)
    if name == "UpSampling":
        many = [x] if d.flag() else [x, d.floats(n, c, 2 * h, 2 * w)]
        how = {"scale": 2, "sample_type": "nearest", "num_args": len(many)}
        return many, {**how, "multi_input_mode": d.one("concat", "sum")}
    if name == "Crop":
        height, width = d.size(1, h), d.size(1, w)
        how = {"num_args": 1, "h_w": (height, width)}
        return [x], {**how, **d.one({"center_crop": True}, {"offset": (d.size(0, h - height), d.size(0, w - width))})}
    if name == "GridGenerator":
        if d.flag():
            return [d.floats(n, 6)], {"transform_type": "affine", "target_shape": (h, w)}
        return [d.floats(n, 2, h, w)], {"transform_type": "warp"}
    if name == "BilinearSampler":
        return [x, d.floats(n, 2, *d.shape(2), low=-1.3, high=1.3)], {}
    if name == "SpatialTransformer":
        how = {"target_shape": d.shape(2, least=2), "transform_type": "affine", "sampler_type": "bilinear"}
        return [x, d.floats(n, 6, low=-0.8, high=0.8)], how
    if name == "ROIPooling":
        boxes = d.rng.uniform(-1, 9, (d.size(1, 3), 4)).astype(np.float32)
        rois = np.concatenate((d.whole(n, len(boxes), 1).astype(np.float32), boxes), 1)
        return [x, rois], {"pooled_size": d.shape(2, most=3), "spatial_scale": d.one(1.0, 0.5)}
    kernel, reach, pad = d.one(1, 3), d.size(0, 2), d.size(1, 3)
    size = (2 * (kernel // 2 + reach) + d.size(1, 3),) * 2
    how = {"kernel_size": kernel, "max_displacement": reach, "stride1": d.size(1, 2), "stride2": d.size(1, 2)}
    return [d.floats(n, c, *size), d.floats(n, c, *size)], {**how, "pad_size": pad, "is_multiply": d.flag()}


@family("smooth_l1", "SVMOutput", "LinearRegressionOutput", "MAERegressionOutput", "LogisticRegressionOutput")
def _(d: Draw, name: str) -> Call:
    n, k = d.shape(2, least=2)
    x = d.floats(n, k, low=-2, high=2)
    if name == "smooth_l1":
        return [x], {"scalar": d.one(1.0, 2.0)}
    if name == "SVMOutput":
        how = {"margin": d.one(1.0, 0.5), "regularization_coefficient": 0.7, "use_linear": d.flag()}
        return [x, d.whole(k, n).astype(np.float32)], how
    return [x, d.floats(n, k)], {"grad_scale": d.one(1.0, 0.3)}
