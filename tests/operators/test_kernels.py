"""What kernels promise beyond their values: bits that do not depend on a split, ties, what lies outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import threadpoolctl  # type: ignore[import-untyped]
from scipy import special

from vardag import autograd, nd
from vardag.operators import interpolation, registry
from vardag.operators.launch import do
from vardag.operators.regions_of_interest import _slow_pooling

OPERATORS = {op.name: op for op in registry}


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_bits_of_a_row_do_not_depend_on_its_neighbours(name: str, dtype: Any) -> None:
    """So neither on tiles, nor on the number of workers; with short rows and with long ones."""
    op, rng = OPERATORS[name], np.random.default_rng(1)

    def made(x: Any) -> Any:
        out = np.empty_like(x)
        do(op.kernel(np, x, axis=1, out=out))
        return out

    for classes in (1, 2, 3, 7, 8, 9, 16, 31, 32, 33, 64, 200):
        x = rng.standard_normal((150, classes)).astype(dtype) * 5
        whole = made(x)
        expected = getattr(special, name)(x.astype(np.float64), 1)
        np.testing.assert_allclose(whole, expected, rtol=1e-5 if dtype == np.float32 else 1e-13, atol=1e-6)
        for begin, end in ((0, 1), (1, 3), (3, 20), (20, 149), (149, 150)):
            assert made(x[begin:end]).tobytes() == whole[begin:end].tobytes(), (classes, begin, end)


def test_softmax_of_what_is_strided() -> None:
    x = np.random.default_rng(2).standard_normal((5, 4, 6)).astype("f")
    for view in (lambda a: a.transpose((2, 1, 0)), lambda a: a[:, ::2], lambda a: a[::-1, :, 1:4]):
        assert np.array_equal(nd.softmax(view(nd.array(x))).asnumpy(), nd.softmax(nd.array(view(x).copy())).asnumpy())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pooled_regions_bin_by_bin(dtype: str) -> None:
    """Of few values, so that bins have several largest elements: the first of them has the gradient."""
    rng = np.random.default_rng(3)
    for number in range(40):
        n, c, h, w = (int(v) for v in rng.integers(1, 12, 4))
        data = rng.integers(-1, 2, (n, c, h, w)).astype(dtype) * (-0.0 if number % 5 == 0 else 1)
        rois = np.concatenate((rng.integers(0, n, (4, 1)), rng.uniform(-3, 12, (4, 4))), 1).astype(dtype)
        size = tuple(int(v) for v in rng.integers(1, 5, 2))
        x = nd.array(data, dtype=dtype)
        x.attach_grad()
        with autograd.record():
            y = nd.ROIPooling(x, nd.array(rois, dtype=dtype), pooled_size=size, spatial_scale=0.5)
        y.backward()
        np.testing.assert_array_equal(y.asnumpy(), _slow_pooling(data, rois, size, 0.5))
        counted = np.zeros_like(data)
        for image, *box in rois:
            x1, y1, x2, y2 = (np.floor(abs(v * 0.5) + 0.5) * np.sign(v) for v in box)
            tall, wide = (max(b - a + 1, 1) / s for a, b, s in ((y1, y2, size[0]), (x1, x2, size[1])))
            for i, j in np.ndindex(*size):
                top, bottom = (int(np.clip(v + y1, 0, h)) for v in (np.floor(i * tall), np.ceil((i + 1) * tall)))
                left, right = (int(np.clip(v + x1, 0, w)) for v in (np.floor(j * wide), np.ceil((j + 1) * wide)))
                part = data[int(image), :, top:bottom, left:right]
                for channel in range(c) if part.size else ():
                    a, b = np.unravel_index(part[channel].argmax(), part.shape[1:])
                    counted[int(image), channel, top + a, left + b] += 1
        np.testing.assert_array_equal(x.grad.asnumpy(), counted, err_msg=str(number))


def test_pooled_regions_with_what_is_no_number() -> None:
    x = np.zeros((1, 1, 4, 4), "f")
    x[0, 0, 1, 2], x[0, 0, 3, 3] = -np.nan, np.inf
    y = nd.ROIPooling(nd.array(x), nd.array([[0, 0, 0, 3, 3]]), pooled_size=(2, 2), spatial_scale=1.0)
    np.testing.assert_array_equal(y.asnumpy()[0, 0], [[0, np.nan], [0, np.inf]])


def test_samples_of_few_and_of_many_channels() -> None:
    """Two ways, one answer; what is outside of the data counts for nothing, even if there is no number."""
    rng = np.random.default_rng(4)
    for n, h, w in ((1, 1, 1), (2, 3, 5), (3, 4, 2)):
        data = rng.standard_normal((n, interpolation.FEW + 1, h, w)).astype("f")
        grid = rng.uniform(-1.6, 1.6, (n, 2, 6, 7)).astype("f")
        grid[0, :, 0, :5] = [[np.nan, np.inf, -np.inf, 1e30, -1e30]] * 2
        grid[0, :, 1, :4] = [[-1, 1, -1, 1], [-1, -1, 1, 1]]
        data[0, 0, 0, 0] = np.nan
        many = nd.BilinearSampler(nd.array(data), nd.array(grid)).asnumpy()
        few = nd.BilinearSampler(nd.array(data[:, :2]), nd.array(grid)).asnumpy()
        np.testing.assert_allclose(few, many[:, :2], rtol=1e-6, atol=1e-6)
        assert h == 1 or not many[0, 1:, 0, :5].any()
        assert np.isnan(few[0, 0, 1, 0]) and (h == 1 or not np.isnan(few[0, 0, 1, 2:4]).any())


def test_positions_beyond_32_bits() -> None:
    shape = (7, 1 << 20, 1 << 13)
    where = np.array([0, 5, (1 << 33) + 3, 3 * (1 << 33) - 1])
    found = nd.unravel_index(nd.array(where, dtype="int64"), shape=shape).asnumpy()
    np.testing.assert_array_equal(found, np.unravel_index(where, shape))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int8", "uint8", "int64"])
def test_orders_are_stable(dtype: str) -> None:
    """Both ways, with ties, with what is no number, with zeros of both signs; of all elements and of the first few."""
    rng = np.random.default_rng(5)
    for shape, axis in (((40,), 0), ((3, 30), 1), ((30, 3), 0), ((2, 9, 4), 1)):
        x = rng.integers(0, 5, shape).astype(dtype)
        if x.dtype.kind == "f":
            x = np.where(rng.random(shape) < 0.4, -x, x)  # -0 too
            x[rng.random(shape) < 0.1] = np.nan
            x[rng.random(shape) < 0.1] = -np.nan
            x[rng.random(shape) < 0.1] = -np.inf
        a = nd.array(x, dtype=dtype)
        up = np.argsort(x, axis, kind="stable")
        down = x.shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
        np.testing.assert_array_equal(nd.argsort(a, axis=axis, dtype="int64").asnumpy(), up)
        np.testing.assert_array_equal(nd.argsort(a, axis=axis, is_ascend=False, dtype="int64").asnumpy(), down)
        for k in (1, 2, 4, x.shape[axis]):
            first = (slice(None),) * axis + (slice(k),)
            np.testing.assert_array_equal(nd.topk(a, axis=axis, k=k, dtype="int64").asnumpy(), down[first])
            np.testing.assert_array_equal(
                nd.topk(a, axis=axis, k=k, is_ascend=True, dtype="int64").asnumpy(), up[first]
            )


def test_every_blas_has_one_thread() -> None:
    """SciPy's too: bits depend on the number of threads, and the engine's workers are the one budget of threads."""
    blas = [library for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]
    assert blas and all(library["num_threads"] == 1 for library in blas), blas
