"""Every name of MXNet 1.9.1's imperative operators is here, or stands in docs/differences.md with the reason."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import ArgumentError

ROOT = Path(__file__).resolve().parents[2]
NAMES = json.loads(Path(__file__).with_name("mxnet_names.json").read_text())
PAGE = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
#: of nd.contrib, what imperative models use
CONTRIB = (
    "boolean_mask", "box_nms", "box_iou", "ROIAlign", "AdaptiveAvgPooling2D", "BilinearResize2D", "arange_like",
    "index_copy", "allclose", "isnan", "isinf", "isfinite", "foreach", "while_loop", "cond",
)  # fmt: skip


def left_out() -> set[str]:
    section = PAGE.split("## Operators left out", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"`([\w.]+)`", section))


def test_every_name_is_here_or_left_out_with_a_reason() -> None:
    missing = {name for name in NAMES["nd"] if not hasattr(nd, name)}
    missing |= {f"random.{name}" for name in NAMES["random"] if not hasattr(nd.random, name)}
    missing |= {f"linalg.{name}" for name in NAMES["linalg"] if not hasattr(nd.linalg, name)}
    missing |= {f"contrib.{name}" for name in CONTRIB if not hasattr(nd.contrib, name)}
    assert missing == {name for name in left_out() if not name.startswith("contrib.") or name.split(".")[1] in CONTRIB}
    assert len(missing) < 0.03 * sum(map(len, (NAMES["nd"], NAMES["random"], NAMES["linalg"], CONTRIB)))


# ---- functions made of operators, by MXNet's answers -----------------------------------------------------------------

X = np.arange(16.0, dtype="f").reshape(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: nd.khatri_rao(nd.array([[1, -1], [2, -3]]), nd.array([[1, 4], [2, 5], [3, 6]])),
         [[1, -4], [2, -5], [3, -6], [2, -12], [4, -15], [6, -18]]),
        (lambda: nd.histogram(nd.array([0, 1, 1, 2, 5, 7]), bins=4, range=(0, 8))[0], [3, 1, 1, 1]),
        (lambda: nd.histogram(nd.array([0, 1, 1, 2, 5, 7]), bins=nd.array([0, 1, 4, 8]))[0], [1, 3, 2]),
        (lambda: nd.concatenate([nd.ones((2, 1)), nd.zeros((1, 1))]), [[1], [1], [0]]),
        (lambda: nd.onehot_encode(nd.array([1, 0]), nd.zeros((2, 3))), [[0, 1, 0], [1, 0, 0]]),
        (lambda: nd.fill_element_0index(nd.zeros((2, 3)), nd.array([5, 6]), nd.array([1, 2])), [[0, 5, 0], [0, 0, 6]]),
        (lambda: nd.UpSampling(nd.array([[[[0, 1], [2, 3]]]]), nd.ones((1, 1, 1, 1)), scale=2, sample_type="nearest",
                               num_args=2, multi_input_mode="sum"),
         [[[[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]]]),
        (lambda: nd.UpSampling(nd.array([[[[0, 1], [2, 3]]]]), nd.ones((1, 1, 4, 4)), scale=2, sample_type="bilinear",
                               num_filter=1, num_args=2),
         [[[[0, 1, 1, 1], [2, 6, 6, 4], [2, 6, 6, 4], [2, 5, 5, 3]]]]),
        (lambda: nd.Crop(nd.array(X), h_w=(2, 2), offset=(1, 1)), [[[[5, 6], [9, 10]]]]),
        (lambda: nd.Crop(nd.array(X), h_w=(2, 2), center_crop=True), [[[[5, 6], [9, 10]]]]),
        (lambda: nd.Crop(nd.array(X), nd.zeros((1, 1, 2, 3)), num_args=2), [[[[0, 1, 2], [4, 5, 6]]]]),
        (lambda: nd.SequenceLast(nd.arange(12).reshape((3, 2, 2)), nd.array([0, 3]), use_sequence_length=True),
         [[0, 1], [10, 11]]),
        (lambda: nd.unravel_index(nd.array([22, 41, 37]), shape=(-1, 6)), [[3, 6, 6], [4, 5, 1]]),
    ],
)  # fmt: skip
def test_values(made, expected) -> None:
    assert made().asnumpy().tolist() == expected


def test_local_response_normalization() -> None:
    x = nd.arange(8).reshape((1, 4, 1, 2))
    x.attach_grad()
    with autograd.record():
        y = nd.LRN(x, nsize=3, alpha=0.5, beta=0.75, knorm=2)
    y.backward()
    np.testing.assert_allclose(y[0, :, 0, 0].asnumpy(), [0, 0.56987679, 0.64757752, 1.01655221], rtol=1e-5)
    assert x.grad.shape == x.shape


def test_axes_and_dtypes() -> None:
    x = nd.zeros((2, 3, 4))
    assert nd.moveaxis(x, 0, 2).shape == (3, 4, 2)
    assert nd.moveaxis(x, (0, 1), (1, 2)).shape == (4, 2, 3)
    assert nd.moveaxis(x, -1, 0).shape == np.moveaxis(np.zeros((2, 3, 4)), -1, 0).shape
    half = nd.ones(2, dtype="float16")
    assert [y.dtype for y in nd.amp_multicast(nd.ones(2), half, num_outputs=2)] == [np.float32] * 2
    assert [y.dtype for y in nd.amp_multicast(nd.ones(2), half, num_outputs=2, cast_narrow=True)] == [np.float16] * 2
    assert nd.amp_cast(nd.ones(2, dtype="int32"), dtype="float16").dtype == np.int32
    for a, b in ((nd.Convolution_v1, nd.Convolution), (nd.Pooling_v1, nd.Pooling), (nd.BatchNorm_v1, nd.BatchNorm)):
        assert a is b


@pytest.mark.parametrize("use_linear", [False, True])
def test_support_vectors(use_linear) -> None:
    x = nd.array([[0.5, -0.2, 2], [1, 0.1, -3]])
    x.attach_grad()
    with autograd.record():
        y = nd.SVMOutput(x, nd.array([0, 2]), regularization_coefficient=0.5, use_linear=use_linear)
    y.backward()
    squared, linear = [[-0.5, 0.8, 3], [2, 1.1, -4]], [[-0.5, 0.5, 0.5], [0.5, 0.5, -0.5]]
    np.testing.assert_allclose(x.grad.asnumpy(), linear if use_linear else squared, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: nd.khatri_rao(nd.ones((2, 2)), nd.ones((2, 3))),
        lambda: nd.moveaxis(nd.ones((2, 3)), 2, 0),
        lambda: nd.moveaxis(nd.ones((2, 3)), (0, 0), (0, 1)),
        lambda: nd.LRN(nd.ones((1, 2, 2)), nsize=2),
        lambda: nd.Crop(nd.array(X), h_w=(5, 2)),
        lambda: nd.UpSampling(nd.array(X), scale=2, sample_type="cubic"),
        lambda: nd.UpSampling(nd.array(X), nd.ones((1, 1, 3, 3)), scale=2, sample_type="nearest"),
        lambda: nd.SequenceMask(nd.ones((3, 2)), nd.ones(3), use_sequence_length=True),
        lambda: nd.SequenceReverse(nd.ones((3, 2)), axis=1),
        lambda: nd.ravel_multi_index(nd.ones((3, 2)), shape=(2, 2)),
        lambda: nd.im2col(nd.ones((1, 1, 2, 2)), kernel=(3, 3)),
        lambda: nd.col2im(nd.ones((1, 4, 5)), output_size=(4, 4), kernel=(2, 2)),
        lambda: nd.histogram(nd.ones(3), bins=0),
        lambda: nd.SVMOutput(nd.ones((2, 3)), nd.ones(3)),
    ],
)
def test_wrong_operands_are_refused_at_the_call(wrong) -> None:
    with pytest.raises(ArgumentError, match=r"^\["):
        wrong()
