"""Run by the real MXNet 1.9.1, not by vardag: writes mxnet-operators.json beside this file.

python3.11 -m venv mx && mx/bin/pip install mxnet==1.9.1 numpy==1.23.5
mx/bin/python tests/operators/data/with_mxnet.py
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"rnn_relu": 1, "rnn_tanh": 1, "lstm": 4, "gru": 3}


def random(seed: int, *shape: int, low: float = -1.0, high: float = 1.0) -> Any:
    return np.random.RandomState(seed).uniform(low, high, shape).astype("f4")


def rnn(mode: str, layers: int, both: bool, steps: int, n: int, inputs: int, hidden: int) -> str:
    d, g = 1 + both, SIZES[mode]
    size = sum(d * g * hidden * ((d * hidden if k else inputs) + hidden + 2) for k in range(layers))
    states = [f"r(3, {d * layers}, {n}, {hidden})", f"r(4, {d * layers}, {n}, {hidden})"][: 1 + (mode == "lstm")]
    arrays = ", ".join([f"r(1, {steps}, {n}, {inputs})", f"r(2, {size}, low=-.5, high=.5)", *states])
    how = f"state_size={hidden}, num_layers={layers}, bidirectional={both}, mode='{mode}', state_outputs=True"
    return f"g(lambda *a: nd.RNN(*a, {how}), {arrays})"


def boxes(seed: int, *shape: int) -> str:
    """Rows of class, score, x1, y1, x2, y2."""
    return f"b({seed}, {', '.join(map(str, shape))})"


def questions() -> list[str]:
    found = [
        rnn(mode, layers, both, steps, 2, inputs, hidden)
        for mode in SIZES
        for layers, both, steps, inputs, hidden in ((1, False, 3, 2, 3), (2, True, 4, 3, 2), (3, False, 1, 1, 2))
    ]
    found += [text.strip() for text in TEXTS.strip().splitlines()]
    for seed, ratio, aligned, sensitive in itertools.product((1, 2), (-1, 2), (False, True), (False, True)):
        how = f"(2, 3), 0.7, {ratio}, {sensitive}, {aligned}"
        found.append(f"g(lambda x, y: C.ROIAlign(x, y, {how}), r({seed}, 2, 6, 5, 7), rois({seed}, 3))")
    for seed, size, scale in itertools.product((1, 2, 3), ((2, 2), (3, 1)), (1.0, 0.45)):
        found.append(
            f"g(lambda x, y: nd.ROIPooling(x, y, {size}, {scale}), r({seed}, 2, 3, 6, 5), rois({seed + 5}, 4))"
        )
    for seed, how in itertools.product(
        (1, 2, 3, 4),
        ("", "overlap_thresh=.2", "topk=3", "id_index=0", "id_index=0, force_suppress=True", "id_index=0, "
         "background_id=1, valid_thresh=.3", "in_format='center'", "out_format='center', overlap_thresh=.1"),
    ):  # fmt: skip
        nms = f"C.box_nms({{}}, {how})"
        whole = f"g(lambda x: {nms.format('x')}, {boxes(seed, 2, 7)})"
        found.append(nms.format(boxes(seed, 2, 7)) if "format" in how else whole)
    for mode, align in itertools.product(("to_even_down", "to_even_up", "to_odd_down", "to_odd_up"), (True, False)):
        found.append(f"C.BilinearResize2D(r(1, 1, 2, 3, 4), mode='{mode}', align_corners={align})")
    for how in (
        "max_displacement=1, pad_size=1", "kernel_size=3, max_displacement=2, stride1=2, stride2=2, pad_size=3",
        "max_displacement=2, stride2=1, pad_size=2, is_multiply=False", "", "kernel_size=3, pad_size=2",
    ):  # fmt: skip
        found.append(f"g(lambda x, y: nd.Correlation(x, y, {how}), r(1, 2, 3, 5, 6), r(2, 2, 3, 5, 6))")
    return found


TEXTS = """
g(lambda x: nd.CTCLoss(x, a([[1, 2, 0], [3, 3, 4]])), r(1, 6, 2, 5))
g(lambda x: nd.ctc_loss(x, a([[1, 2, 0], [3, 3, 4]]), a([5, 6]), a([1, 3]), True, True), r(2, 6, 2, 5))
g(lambda x: C.ctc_loss(x, a([[1, 2, -1], [3, 3, 0]]), blank_label='last'), r(3, 7, 2, 5))
g(lambda x: C.CTCLoss(x, a([[1, 2], [3, 3]]), a([1, 2]), use_label_lengths=True), r(4, 4, 2, 5))
g(lambda x: nd.CTCLoss(x, a([[2, 1, 2], [2, 2, 0]]), a([3, 5]), use_data_lengths=True), r(5, 5, 2, 3))
nd.CTCLoss(r(1, 6, 2, 5), a([[1, 2, 0], [3, 3, 4]]), a([5, 6]), a([1, 3]))
nd.CTCLoss(r(1, 6, 2, 5), a([[1, 2, 0], [3, 3, 4]]), use_data_lengths=True)
nd.CTCLoss(r(1, 6, 2, 5), a([[1, 2, 0]]))
nd.CTCLoss(r(1, 2, 1, 5), a([[1, 2, 3]]))
nd.CTCLoss(r(1, 6, 1, 5), a([[1, 2, 3]]), blank_label='middle')
nd.RNN(r(1, 3, 2, 2), r(1, 7), r(1, 1, 2, 2), state_size=2, num_layers=1, mode='gru')
nd.RNN(r(1, 3, 2, 2), r(1, 12), r(1, 1, 2, 2), state_size=2, num_layers=1)
nd.RNN(r(1, 3, 2, 2), r(1, 12), r(1, 1, 2, 2), state_size=2, num_layers=1, mode='elman')
nd.RNN(r(1, 3, 2, 2), r(1, 12), r(1, 1, 2, 2), state_size=2, num_layers=1, mode='rnn_tanh', p=0.5)
nd.RNN(r(1, 3, 2, 2), r(1, 12), r(1, 1, 1, 2), state_size=2, num_layers=1, mode='rnn_tanh')
nd.RNN(r(1, 3, 2, 2), r(1, 12), r(1, 1, 2, 2), r(1, 1, 2, 2), state_size=2, num_layers=1, mode='rnn_tanh')
nd.RNN(r(1, 3, 2, 2), r(1, 48), r(1, 1, 2, 2), state_size=2, num_layers=1, mode='lstm')
g(lambda x, y: nd.BilinearSampler(x, y), r(1, 2, 3, 4, 5), r(2, 2, 2, 3, 4))
g(lambda x, y: nd.BilinearSampler(x, y), r(3, 1, 2, 5, 3), r(4, 1, 2, 4, 4, low=-1.5, high=1.5))
nd.BilinearSampler(r(1, 2, 3, 4, 5), r(2, 1, 2, 3, 4))
g(lambda x: nd.GridGenerator(x, transform_type='affine', target_shape=(3, 4)), r(1, 2, 6))
g(lambda x: nd.GridGenerator(x, transform_type='warp'), r(1, 2, 2, 3, 4))
nd.GridGenerator(r(1, 2, 5), transform_type='affine', target_shape=(3, 4))
nd.GridGenerator(r(1, 2, 6), transform_type='bent', target_shape=(3, 4))
g(lambda x, y: nd.SpatialTransformer(x, y, (3, 4), 'affine', 'bilinear'), r(1, 2, 3, 5, 6), r(2, 2, 6))
nd.SpatialTransformer(r(1, 2, 3, 5, 6), r(2, 1, 6), (3, 4), 'affine', 'bilinear')
g(lambda x: C.AdaptiveAvgPooling2D(x, output_size=2), r(1, 2, 3, 5, 4))
g(lambda x: C.AdaptiveAvgPooling2D(x, output_size=(3, 7)), r(2, 2, 3, 5, 4))
C.AdaptiveAvgPooling2D(r(1, 2, 3, 5, 4))
C.AdaptiveAvgPooling2D(r(1, 2, 3, 5, 4).astype('int32'))
g(lambda x: C.BilinearResize2D(x, height=7, width=3), r(1, 2, 3, 5, 4))
g(lambda x: C.BilinearResize2D(x, height=3, width=9, align_corners=False), r(2, 2, 3, 5, 4))
C.BilinearResize2D(r(1, 1, 2, 5, 4), height=1, width=3, align_corners=False)
I.resize(im(1, 6, 6, 3).astype('float32'), (1, 3))
C.BilinearResize2D(r(1, 1, 2, 5, 4), scale_height=2., scale_width=1.5)
C.BilinearResize2D(r(1, 1, 2, 5, 4), scale_height=1.5, scale_width=.7, mode='odd_scale')
C.BilinearResize2D(r(1, 1, 2, 5, 4), r(1, 1, 1, 3, 7), mode='like')
C.BilinearResize2D(r(1, 1, 2, 5, 4), r(1, 1, 1, 3, 7), mode='like', align_corners=False)
C.box_iou(b(1, 4)[:, 2:], b(2, 3)[:, 2:])
C.box_iou(r(1, 2, 3, 4, low=1, high=2), r(2, 5, 4, low=1, high=2), format='center')
C.box_iou(b(1, 4), b(2, 3))
C.bipartite_matching(r(1, 2, 3, 4), threshold=1e-3)
C.bipartite_matching(r(2, 5, 3), threshold=0.2, is_ascend=True)
C.bipartite_matching(r(3, 4, 5), threshold=-1., topk=2)
C.box_decode(r(1, 2, 3, 4), r(2, 1, 3, 4), .1, .1, .2, .2)
C.box_decode(r(1, 2, 3, 4), r(2, 1, 3, 4), .1, .1, .2, .2, clip=.1, format='corner')
C.box_encode(a([[1, 0, 1]]), a([[1, 0, 0]]), b(1, 1, 3)[:, :, 2:], b(2, 1, 2)[:, :, 2:], a([.1] * 4), a([.2] * 4))
C.arange_like(r(1, 2, 3)); C.arange_like(r(1, 2, 3), axis=-1, start=2, step=.5); C.arange_like(r(1, 2, 4), repeat=3)
C.arange_like(r(1, 2, 4).astype('int32')); C.index_array(r(1, 2, 3)); C.index_array(r(1, 2, 3), axes=(-1, 0))
g(lambda x, y: C.index_copy(x, a([2, 0]), y), r(1, 4, 2), r(2, 2, 2))
C.index_copy(r(1, 4, 2), a([2, 0]), r(2, 3, 2))
C.allclose(r(1, 3), r(1, 3) + 1e-3); C.allclose(r(1, 3), r(1, 3)); C.allclose(a([np.nan]), a([np.nan]))
C.allclose(a([np.nan]), a([np.nan]), equal_nan=False); C.isnan(a([np.nan, 1, np.inf]))
C.isinf(a([np.nan, 1, -np.inf]))
C.isfinite(a([np.nan, 1, -np.inf])); C.isfinite(a([2, 1]).astype('int32')); g(lambda x: C.div_sqrt_dim(x), r(1, 2, 3))
g(lambda x: C.quadratic(x, a=1, b=-2, c=.5), r(1, 2, 3)); C.quadratic(a([1, 2]).astype('int32'), a=1.5)
g(lambda x: C.gradientmultiplier(x, scalar=3), r(1, 3)); g(lambda x: C.round_ste(x), a([-2.5, -.5, .4, .5, 1.5]))
g(lambda x: C.sign_ste(x), a([-2.5, 0, .4])); C.boolean_mask(r(1, 3, 2), a([1, 0, -2]))
C.boolean_mask(r(1, 3, 2), a([1, 0]))
g(lambda x: C.boolean_mask(x, a([0, 1, 1])), r(1, 3, 2)); C.boolean_mask(r(1, 3, 2), a([0, 0, 0]))
g(lambda x: C.interleaved_matmul_selfatt_qk(x, heads=2), r(1, 3, 2, 12))
g(lambda x, y: C.interleaved_matmul_selfatt_valatt(x, y, heads=2), r(1, 3, 2, 12), r(2, 4, 3, 3))
g(lambda x, y: C.interleaved_matmul_encdec_qk(x, y, heads=2), r(1, 3, 2, 4), r(2, 5, 2, 8))
g(lambda x, y: C.interleaved_matmul_encdec_valatt(x, y, heads=2), r(1, 5, 2, 8), r(2, 4, 3, 5))
adamw(lr=.1, eta=.5, wd=.01, clip_gradient=.5); adamw(lr=.1, eta=1, epsilon=.1, beta1=.5)
C.foreach(lambda x, s: (x * s, s + x), r(1, 3, 2), a([1, 2]))
C.foreach(lambda x, s: ([x[0] * s[0]], s), [r(1, 3, 2)], [a([1, 2])])
g(lambda x: C.foreach(lambda y, s: (y * s, s * y), x, a([1, 2]))[0], r(1, 3, 2))
C.while_loop(lambda i, s: i < 4, lambda i, s: ([s, i], [i + 1, s * 2]), [a([1]), r(1, 1, 2)], max_iterations=3)
C.while_loop(lambda i: i < 4, lambda i: (i, i + 1), a([0])); C.cond(a([1]) < 2, lambda: a([3]), lambda: a([4]))
C.cond(a([1, 2]), lambda: a([3]), lambda: a([4])); I.to_tensor(im(1, 3, 4, 3)); I.to_tensor(im(1, 2, 3, 4, 3))
I.to_tensor(im(1, 3, 4))
I.normalize(r(1, 3, 2, 4), mean=(.1, .2, .3), std=(1, 2, 3)); I.normalize(r(1, 2, 3, 2, 4), mean=.5, std=2.)
I.normalize(r(1, 2, 2, 4), mean=.5, std=2.); I.normalize(r(1, 3, 2, 4), mean=(1., 2.), std=1.)
I.flip_left_right(im(1, 3, 4, 3)); I.flip_top_bottom(im(1, 4, 4, 3)); I.flip_top_bottom(im(1, 2, 3, 4, 3))
I.crop(im(1, 3, 4, 3), 1, 0, 2, 3); I.crop(im(1, 2, 3, 4, 3), 1, 0, 2, 3); I.crop(im(1, 3, 4, 3), 3, 0, 2, 3)
I.resize(im(1, 5, 6, 3), (3, 4)); I.resize(im(2, 5, 6, 3), (9, 5)); I.resize(im(3, 5, 6, 3), 4, keep_ratio=True)
I.resize(im(3, 5, 6, 1), 4); I.resize(im(3, 2, 5, 6, 3), (4, 4)); I.resize(im(3, 5, 6, 3), (4, 9), interp=0)
I.resize(im(3, 5, 6, 3))
I.resize(im(1, 5, 6, 3).astype('float32'), (4, 9)); I.resize(im(1, 6, 6, 3).astype('float32'), (3, 3))
I.random_brightness(im(1, 3, 4, 3), .7, .7); I.random_brightness(im(1, 3, 4, 3).astype('float32'), 1.7, 1.7)
I.random_contrast(im(1, 3, 4, 3).astype('float32'), .7, .7)
I.random_saturation(im(1, 3, 4, 3).astype('float32'), .7, .7)
I.random_hue(im(1, 3, 4, 3).astype('float32'), .3, .3)
I.adjust_lighting(im(1, 3, 4, 3).astype('float32'), (.1, -.2, .3))
I.random_lighting(im(1, 3, 4, 3), 0.); I.random_brightness(im(1, 3, 4, 3), -1, .5)
"""


def split() -> list[str]:
    """One question each: a line may have several."""
    return [part.strip() for text in questions() for part in text.split("; ")]


def evaluated(text: str, nd: Any, autograd: Any) -> Any:
    """What an expression gives, [dtype, shape, values] of each array; "error" if it is refused."""

    def gradients(function: Any, *arrays: Any) -> list[Any]:
        for x in arrays:
            x.attach_grad()
        with autograd.record():
            made = leaves(function(*arrays))
        heads = [nd.array(random(7 + i, *y.shape)) for i, y in enumerate(made)]
        autograd.backward(made, heads)
        return [*made, *(x.grad for x in arrays)]

    def rois(seed: int, count: int) -> Any:
        made = random(seed, count, 5, low=0, high=9)
        made[:, 0] = np.arange(count) % 2
        made[:, 1:3] *= 0.5
        made[:, 3:] += made[:, 1:3] + 0.5
        return nd.array(made)

    def boxes(seed: int, *shape: int) -> Any:
        made = random(seed, *shape, 6, low=0, high=1)
        made[..., 0] = np.floor(made[..., 0] * 3)
        made[..., 4:] += made[..., 2:4]
        return nd.array(made)

    def image(seed: int, *shape: int) -> Any:
        return nd.array(random(seed, *shape, low=0, high=255).astype("uint8"), dtype="uint8")

    def adamw(**how: Any) -> list[Any]:
        w, g, m, v = (nd.array(random(k, 3, low=0.1)) for k in range(4))
        return [nd.contrib.adamw_update(w, g, m, v, nd.array([0.5]), **how), m, v]

    known = {
        "nd": nd, "C": nd.contrib, "I": nd.image, "np": np, "a": nd.array, "g": gradients, "rois": rois, "b": boxes,
        "im": image, "adamw": adamw, "r": lambda *shape, **how: nd.array(random(*shape, **how)),
    }  # fmt: skip
    try:
        made = leaves(eval(text, known))
        return [[np.dtype(y.dtype).name, list(y.shape), values(y.asnumpy())] for y in made]
    except Exception:
        return "error"


def values(raw: Any) -> list[float]:
    return [float(f"{v:.6g}") for v in raw.astype("f8").ravel().tolist()]


def leaves(made: Any) -> list[Any]:
    return [leaf for part in made for leaf in leaves(part)] if isinstance(made, list | tuple) else [made]


if __name__ == "__main__":
    import mxnet as mx

    found = {text: evaluated(text, mx.nd, mx.autograd) for text in split()}
    lines = ",\n".join(f"{json.dumps(text)}: {json.dumps(answer)}" for text, answer in found.items())
    Path(__file__).with_name("mxnet-operators.json").write_text("{" + lines + "}\n")
