"""Gradients of functions in F, and what is made of operators: control flow, masks, random changes of images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.engine import ArgumentError, ArgumentTypeError, InternalError
from vardag.operators.composite import cotangents_of
from vardag.operators.texts import raw

C, I = nd.contrib, nd.image  # noqa: E741


def function(F: Any, x: Any, y: Any, *, times: float) -> Any:
    both = F.concat(F.tanh(x) * times, y / (x * x + 1), dim=1)
    return F.sum(both, axis=1) - 2.0, F.matmul(x, F.transpose(y))


def test_cotangents_by_differences() -> None:
    rng = np.random.default_rng(3)
    x, y, u, v = rng.normal(size=(2, 3)), rng.normal(size=(2, 3)), rng.normal(size=2), rng.normal(size=(2, 2))

    def total(x: Any, y: Any) -> float:
        a, b = function(raw, x, y, times=1.5)
        return float((a * u).sum() + (b * v).sum())

    found = cotangents_of(raw, function, (x, y), {"times": 1.5}, (0, 1), (u, v))
    for k, g in enumerate(found):
        d, e = rng.normal(size=(2, 3)), 1e-6
        moved = [[a + s * e * d * (i == k) for i, a in enumerate((x, y))] for s in (1, -1)]
        assert math.isclose((g * d).sum(), (total(*moved[0]) - total(*moved[1])) / (2 * e), rel_tol=1e-6)


def test_what_nothing_depends_on_is_zeros() -> None:
    x = np.ones(3)
    found = cotangents_of(raw, lambda F, x, y: F.exp(x), (x, x), {}, (0, 1), (x,))
    assert found[1].tolist() == [0, 0, 0]
    (found,) = cotangents_of(raw, lambda F, x: F.floor(x), (x,), {}, (0,), (x,))
    assert found.tolist() == [0, 0, 0]


def test_an_operator_that_is_another_one_is_refused() -> None:
    with pytest.raises(InternalError, match="another operator"):
        cotangents_of(raw, lambda F, x: F.softmax(x), (np.ones((2, 2)),), {}, (0,), (np.ones((2, 2)),))


# ---- RNN -----------------------------------------------------------------------------------------------------------


def test_dropout_of_rnn() -> None:
    x, w = nd.random.uniform(-1, 1, shape=(3, 2, 4)), nd.random.uniform(-1, 1, shape=(2 * 4 * (4 + 4 + 2),))
    h, how = nd.zeros((2, 2, 4)), {"state_size": 4, "num_layers": 2, "mode": "rnn_tanh"}
    plain = nd.RNN(x, w, h, **how).asnumpy()
    assert (nd.RNN(x, w, h, p=0.5, **how).asnumpy() == plain).all()
    with autograd.train_mode():
        vd.random.seed(3)
        first = nd.RNN(x, w, h, p=0.5, **how).asnumpy()
        vd.random.seed(3)
        assert (nd.RNN(x, w, h, p=0.5, **how).asnumpy() == first).all()
    assert (first != plain).any()


def test_rnn_into_given_arrays() -> None:
    x, w, h = nd.ones((3, 2, 4)), nd.ones(4 * 10) * 0.1, nd.zeros((1, 2, 4))
    how = {"state_size": 4, "num_layers": 1, "mode": "rnn_relu"}
    expected = nd.RNN(x, w, h, state_outputs=True, **how)
    out, last = nd.zeros((3, 2, 4)), nd.zeros((1, 2, 4))
    found = nd.RNN(x, w, h, state_outputs=True, out=[out, last], **how)
    assert found[0] is out and found[1] is last
    assert all((a.asnumpy() == b.asnumpy()).all() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("error", "more"),
    [
        (ArgumentError, {"mode": "gru"}), (ArgumentError, {"num_layers": 0}), (ArgumentError, {"mode": None}),
        (ArgumentError, {"projection_size": 3}), (ArgumentError, {"lstm_state_clip_min": -1.0}),
        (ArgumentError, {"use_sequence_length": True}), (ArgumentError, {"p": 1.5}), (ArgumentError, {"state_size": 5}),
        (ArgumentTypeError, {"state": 3}), (ArgumentError, {"data": nd.zeros((0, 2, 4))}),
    ],
)  # fmt: skip
def test_rnn_refuses(error: type[Exception], more: Any) -> None:
    call = {"data": nd.ones((3, 2, 4)), "parameters": nd.ones(40), "state": nd.zeros((1, 2, 4)), "state_size": 4,
            "num_layers": 1, "mode": "rnn_tanh"}  # fmt: skip
    with pytest.raises(error, match=r"\[(RNN|rnn)\]"):
        nd.RNN(**{**call, **more})


def test_lengths_out_of_range_are_errors_on_the_data() -> None:
    x, label = nd.zeros((4, 2, 3)), nd.ones((2, 2))
    for lengths in ([5, 1], [-1, 1]):
        loss = nd.CTCLoss(x, label, nd.array(lengths), use_data_lengths=True)
        with pytest.raises(ValueError, match="data_lengths"):
            loss.asnumpy()
    for name in ("ROIPooling", "ROIAlign"):
        call = getattr(nd if name == "ROIPooling" else C, name)
        made = call(nd.ones((1, 1, 3, 3)), nd.array([[1, 0, 0, 2, 2]]), (2, 2), 1.0)
        with pytest.raises(IndexError, match="rois of image 1"):
            made.asnumpy()


# ---- control flow --------------------------------------------------------------------------------------------------


def test_loops_are_recorded() -> None:
    x, w = nd.array([[1, 2], [3, 4], [5, 6]]), nd.array([2])
    w.attach_grad()
    with autograd.record():
        outputs, state = C.foreach(lambda row, s: ([row * w, s], s + w), x, nd.zeros(1))
        total = outputs[0].sum() + state
        _, final = C.while_loop(
            lambda i, v: i < 2, lambda i, v: (v, [i + 1, v * w]), [nd.zeros(1), w], max_iterations=5
        )
        chosen = C.cond(final[1] > 3, lambda: w * 10, lambda: w)
        loss = total + final[1] + chosen
    loss.backward()
    assert w.grad.asscalar() == 21 + 3 + 3 * 4 + 10


def test_loops_without_steps() -> None:
    assert C.foreach(lambda x, s: (x, s), nd.zeros((0, 2)), [])[0] == []
    outputs, (i,) = C.while_loop(lambda i: i < 0, lambda i: (i, [i]), [nd.zeros(1)], max_iterations=2)
    assert outputs == [] and i.asscalar() == 0


def test_control_flow_refuses() -> None:
    with pytest.raises(ArgumentError, match="foreach"):
        C.foreach(lambda x, s: (x, s), [nd.ones(2), nd.ones(3)], nd.ones(1))
    with pytest.raises(ArgumentTypeError, match="foreach"):
        C.foreach(lambda x, s: x, nd.ones(2), nd.ones(1))
    with pytest.raises(ArgumentTypeError, match="foreach"):
        C.foreach(lambda x, s: (x, s), 3, nd.ones(1))
    with pytest.raises(ArgumentError, match="max_iterations"):
        C.while_loop(lambda i: i < 2, lambda i: (i, i), nd.ones(1))
    with pytest.raises(ArgumentError, match="loop_vars"):
        C.while_loop(lambda i: i < 2, lambda i: (i, [i, i]), [nd.ones(1)], max_iterations=2)
    with pytest.raises(ArgumentError, match="one element"):
        C.cond(nd.ones(2), lambda: 1, lambda: 2)


# ---- contrib and image ---------------------------------------------------------------------------------------------


def test_fourier_transforms() -> None:
    x = nd.random.uniform(-1, 1, shape=(2, 5))
    np.testing.assert_allclose(C.ifft(C.fft(x)).asnumpy(), x.asnumpy() * 5, rtol=1e-5, atol=1e-6)


def test_boolean_mask_along_another_axis() -> None:
    x = nd.arange(6).reshape((2, 3))
    assert C.boolean_mask(x, nd.array([1, 0, 2]), axis=-1).asnumpy().tolist() == [[0, 2], [3, 5]]
    with pytest.raises(ArgumentError, match="boolean_mask"):
        C.boolean_mask(x, nd.array([1, 0, 2]))


@pytest.mark.parametrize("scale", [0.0, math.nan, math.inf])
def test_adamw_does_nothing_without_a_finite_scale(scale: float) -> None:
    w, g, mean, var = nd.ones(3), nd.ones(3), nd.ones(3), nd.ones(3)
    C.adamw_update(w, g, mean, var, nd.array([scale]), lr=0.1, eta=1.0, out=w)
    assert all(x.asnumpy().tolist() == [1, 1, 1] for x in (w, mean, var))


def test_adamw_of_few_bits() -> None:
    w, g = nd.ones(3, dtype="float16"), nd.ones(3, dtype="float16")
    mean, var, master = nd.zeros(3), nd.zeros(3), nd.ones(3)
    C.mp_adamw_update(w, g, mean, var, master, 1.0, lr=0.1, eta=1.0, wd=0.5, out=w)
    wide, other = nd.ones(3), [nd.zeros(3), nd.zeros(3)]
    C.adamw_update(wide, nd.ones(3), *other, 1.0, lr=0.1, eta=1.0, wd=0.5, out=wide)
    assert (master.asnumpy() == wide.asnumpy()).all()
    assert (w.asnumpy() == wide.asnumpy().astype("f2")).all()
    with pytest.raises(ArgumentTypeError, match="mean"):
        C.adamw_update(w, g, 3, var, 1.0, lr=0.1, eta=1.0)


def test_random_changes_repeat_with_the_seed() -> None:
    x = nd.array(np.arange(60).reshape(4, 5, 3) * 4, dtype="uint8")
    calls = [
        I.random_flip_left_right, I.random_flip_top_bottom, I.random_lighting,
        lambda x: I.random_brightness(x, 0.2, 2.0), lambda x: I.random_contrast(x, 0.2, 2.0),
        lambda x: I.random_saturation(x, 0.2, 2.0), lambda x: I.random_hue(x, -0.5, 0.5),
        lambda x: I.random_color_jitter(x, 0.4, 0.4, 0.4, 0.2),
    ]  # fmt: skip
    for call in calls:
        vd.random.seed(1)
        first = [call(x) for _ in range(12)]
        vd.random.seed(1)
        assert [y.asnumpy().tobytes() for y in first] == [call(x).asnumpy().tobytes() for _ in range(12)]
        assert all((y.shape, y.dtype) == (x.shape, x.dtype) for y in first)
        assert len({y.asnumpy().tobytes() for y in first}) > 1


def test_a_flip_is_the_image_or_its_mirror() -> None:
    x = nd.arange(12).reshape((2, 2, 3))
    both = {x.asnumpy().tobytes(), I.flip_left_right(x).asnumpy().tobytes()}
    assert {I.random_flip_left_right(x).asnumpy().tobytes() for _ in range(40)} == both


def test_images_have_gradients() -> None:
    x = nd.random.uniform(0, 1, shape=(4, 6, 3))
    x.attach_grad()
    with autograd.record():
        y = I.normalize(I.to_tensor(I.resize(I.crop(I.flip_left_right(x), 1, 0, 4, 4), (2, 2))), mean=0.5, std=0.5)
        loss = y.sum()
    loss.backward()
    assert math.isclose(float(x.grad.sum().asscalar()), 12 * 2 / 255, rel_tol=1e-4)


def test_image_refuses() -> None:
    x = nd.ones((4, 6, 3))
    for call in (
        lambda: I.resize(x, 0), lambda: I.resize(x, 3, interp=2), lambda: I.crop(x, 5, 0, 4, 4),
        lambda: I.normalize(x), lambda: I.flip_left_right(nd.ones(2)), lambda: I.random_contrast(x, 2.0, 1.0),
        lambda: I.adjust_lighting(x, (1, 2)), lambda: I.random_lighting(x, -1.0),
    ):  # fmt: skip
        with pytest.raises(ArgumentError):
            call()
    with pytest.raises(ArgumentTypeError):
        I.to_tensor(3)
