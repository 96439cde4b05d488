"""Large operators in pieces: the same bytes on every engine, and where pieces are no definition, those of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.autograd import plans
from vardag.engine import Engine
from vardag.ndarray import random
from vardag.operators import convolution, fusion, launch, numpy_face, pooling, products, push, registry
from vardag.operators.schema import Operator

TIMES = 37  # an odd multiple of the samples' sizes, so that tiles end within vectors


def engines() -> Iterator[Engine]:
    for kind, workers in (("NaiveEngine", None), ("ThreadedEnginePooled", 1), ("ThreadedEnginePooled", 3)):
        with Engine(kind, workers=workers) as engine:
            yield engine


def same_everywhere(function: Callable[[], Any]) -> Any:
    """The bytes of what a program gives, which are the same on every engine."""
    found = []
    for _ in engines():
        results = function()
        found.append([r.asnumpy() for r in (results if isinstance(results, list | tuple) else [results])])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.tobytes() == b.tobytes()
    return found[0] if len(found[0]) > 1 else found[0][0]


def counted(monkeypatch: pytest.MonkeyPatch, module: Any = launch) -> list[int]:
    """How many pieces each splitting of a module from now on has."""
    pieces: list[int] = []
    original = module.parallel

    def parallel(function: Callable[[Any], object], items: Any) -> None:
        items = list(items)
        pieces.append(len(items))
        original(function, items)

    monkeypatch.setattr(module, "parallel", parallel)
    return pieces


# ---- elementwise -----------------------------------------------------------------------------------------------------


def cases() -> Iterator[Any]:
    for op in registry:
        if op.elementwise and not op.random and op.variant is None:
            for number, _ in enumerate(op.samples):
                yield pytest.param(op, number, id=f"{op.name}-{number}")


def operands(op: Operator, number: int, dtype: str) -> list[Any]:
    """The operands of a sample, each axis that is longer than 1 as many times as long."""
    sample = op.samples[number]
    rng = np.random.default_rng(number)
    made = []
    for x in sample.inputs:
        if isinstance(x, tuple):
            shape = tuple(n if n == 1 else n * TIMES for n in x)
            made.append(rng.uniform(sample.low, sample.high, shape).astype(dtype))
        else:
            made.append(x if x is None else np.tile(np.asarray(x), [1 if n == 1 else TIMES for n in np.shape(x)]))
    return made


@pytest.mark.host("tiles")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("op", "number"), list(cases()))
def test_tiles_give_the_bytes_of_the_whole(
    op: Operator, number: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = operands(op, number, dtype)
    found: list[Any] = []
    pieces = counted(monkeypatch)
    for tile in (None, 64, 192, 1000):
        monkeypatch.setattr(launch, "SPLIT", 1 << 40 if tile is None else 256)
        monkeypatch.setattr(launch, "TILE", tile)
        monkeypatch.setattr(push, "WORTH", 0)
        with Engine("ThreadedEnginePooled", workers=2, inline=False):
            arrays = [x if x is None else nd.array(x, dtype=x.dtype) for x in given]
            result = getattr(numpy_face, op.name)(*arrays, **op.samples[number].attributes)
            results = result if isinstance(result, tuple) else (result,)
            found.append([r.asnumpy().tobytes() for r in (*results, *(a for a in arrays if a is not None))])
    if results[0].size >= 256 and op.alias is None:
        assert len(pieces) >= 3
    assert found[1] == found[0]
    assert found[2] == found[0]
    assert found[3] == found[0]


@pytest.mark.parametrize("tile", [64, 500, 10000])
def test_tiles_of_layouts(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands that broadcast, views, results of another order and parts of arrays: NumPy's values."""
    monkeypatch.setattr(launch, "SPLIT", 256)
    monkeypatch.setattr(launch, "TILE", tile)
    monkeypatch.setattr(push, "WORTH", 0)
    with Engine("ThreadedEnginePooled", workers=2, inline=False):
        check_layouts()


def check_layouts() -> None:
    rng = np.random.default_rng(0)
    shapes = [(40, 30), (30,), (1, 30), (40, 1), (1, 1), (), (3, 40, 30), (3, 1, 30), (1, 40, 1), (2, 700), (700,)]
    for a, b in itertools.product(shapes, shapes):
        x, y = rng.random(a).astype("f"), rng.random(b).astype("f")
        try:
            expected = x * y + x
        except ValueError:
            continue
        u, v = nd.array(x, dtype="f"), nd.array(y, dtype="f")
        got = numpy_face.add(numpy_face.multiply(u.reshape(a), v.reshape(b)), u.reshape(a))
        assert got.asnumpy().reshape(expected.shape).tobytes() == expected.tobytes()
    x = rng.random((60, 50)).astype("f")
    for view in (np.s_[::2], np.s_[:, ::3], np.s_[5:55, 7:], np.s_[::-1, ::-1]):
        u = nd.array(x)
        v = numpy_face.add(u, 0)
        part = v[view]
        part += 1
        expected = x.copy()
        expected[view] += 1
        assert v.asnumpy().tobytes() == expected.tobytes()
        assert (part.T * 2).asnumpy().tobytes() == (expected[view].T * 2).tobytes()


@pytest.mark.parametrize("name", ["exp", "tanh", "negative", "sigmoid"])
def test_large_ones_are_the_same_everywhere(name: str) -> None:
    x = np.random.default_rng(1).random(launch.SPLIT * 3 + 77).astype("f")

    def program() -> Any:
        a = nd.array(x)
        return [getattr(numpy_face, name)(a), a * a.reshape((-1,)) + 2, numpy_face.cast(a, dtype="float64")]

    first, second, third = same_everywhere(program)
    assert second.tobytes() == (x * x + np.float32(2)).tobytes()
    assert third.tobytes() == x.astype("d").tobytes()
    np.testing.assert_allclose(first[:1000], getattr(numpy_face, name)(nd.array(x[:1000])).asnumpy())


def test_workers_share_a_large_one() -> None:
    x = np.random.default_rng(1).random(2 * fusion.MANY).astype("f")
    with Engine("ThreadedEnginePooled", workers=2) as engine:
        a = nd.array(x)
        before = engine.statistics().pushed
        for _ in range(50):
            a.exp().wait_to_read()
        assert engine.statistics().pushed > before + 50  # the helpers
        assert engine.statistics().by_helper == 0


def test_an_error_in_a_tile_is_the_operation_s() -> None:
    with Engine("ThreadedEnginePooled", workers=2) as engine:
        a = nd.ones((launch.SPLIT * 2,))
        bad = registry["clip"]
        kernel = bad.kernel

        def fails(xp: Any, x: Any, **attributes: Any) -> Any:
            raise ZeroDivisionError("tile")

        bad.kernel = fails  # type: ignore[method-assign]
        try:
            b = numpy_face.clip(a, a_min=0.0)
            with pytest.raises(ZeroDivisionError, match="tile") as caught:
                b.wait_to_read()
        finally:
            bad.kernel = kernel
        assert any("operator: clip" in note for note in caught.value.__notes__)
        assert engine.statistics().unseen == 0


# ---- products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "blocks"),
    [
        ((1024, 1024), (1024, 1024), 4),
        ((512, 512), (512, 512), 2),
        ((1000, 700), (700, 300), 3),
        ((200, 700), (700, 1100), 4),
        ((300, 1000), (1000, 300), 0),
        ((256, 256), (256, 256), 0),
        ((5, 4096), (4096, 5000), 3),
        ((12, 200, 300), (12, 300, 200), 4),
        ((3, 1, 300, 300), (4, 300, 300), 3),
        ((70, 300, 300), (300, 20), 3),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_products_in_blocks(a: Any, b: Any, blocks: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-9, 9, shape).astype(dtype) for shape in (a, b))
    pieces = counted(monkeypatch, products)
    got = same_everywhere(lambda: numpy_face.matmul(nd.array(x, dtype=dtype), nd.array(y, dtype=dtype)))
    assert pieces == [blocks] * 3 * bool(blocks)
    assert (got == np.matmul(x, y)).all()  # small integers: exact


def test_products_of_views_and_of_transposes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.random((600, 600)).astype("f") for _ in range(2))
    pieces = counted(monkeypatch, products)

    def program() -> Any:
        a, b = nd.array(x), nd.array(y)
        made = nd.zeros((600, 600))
        nd.dot(a, b, out=made)
        return [
            nd.dot(a, b, transpose_a=True), nd.dot(a, b, transpose_b=True), made, nd.dot(a[10:], b[:, 0:600]),
            nd.FullyConnected(a, b, None, num_hidden=600, no_bias=True),
            nd.dot(a, b, transpose_a=True, transpose_b=True),
        ]  # fmt: skip

    found = same_everywhere(program)
    assert pieces == [2] * len(found) * 3
    for got, expected in zip(found, [x.T @ y, x @ y.T, x @ y, x[10:] @ y, x @ y.T, x.T @ y.T], strict=True):
        np.testing.assert_allclose(got, expected, 1e-4)


def test_no_block_is_thin() -> None:
    for length in range(512, 5000):
        for count in range(2, min(8, length // products.THIN) + 1):
            parts = products.cuts(length, count, 64)
            assert [part.stop for part in parts[:-1]] == [part.start for part in parts[1:]]
            assert (len(parts), parts[0].start, parts[-1].stop) == (count, 0, length)
            assert min(part.stop - part.start for part in parts) >= products.THIN * 3 // 4


def test_gradients_of_products_are_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.random((640, 640)).astype("f") for _ in range(2))
    monkeypatch.setattr(plans, "NODES", 0)  # each engine walks
    pieces = counted(monkeypatch, products)

    def program() -> Any:
        a, b = nd.array(x), nd.array(y)
        a.attach_grad()
        b.attach_grad()
        with autograd.record():
            c = nd.dot(a, b)
        c.backward()
        return [a.grad, b.grad]

    by_x, _ = same_everywhere(program)
    assert len(pieces) == 9
    np.testing.assert_allclose(by_x, np.ones_like(x) @ y.T, 1e-4)


# ---- convolution and pooling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"stride": (2, 1), "pad": (1, 2)}, {"dilate": (2, 2), "num_group": 2}])
def test_convolutions_in_blocks_of_samples(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    groups = how.get("num_group", 1)
    x = rng.integers(-3, 4, (33, 4, 24, 20)).astype("f")
    w = rng.integers(-3, 4, (6, 4 // groups, 3, 4)).astype("f")
    bias = rng.integers(-3, 4, 6).astype("f")
    pieces = counted(monkeypatch, convolution)
    monkeypatch.setattr(plans, "NODES", 0)  # each engine walks

    def program() -> Any:
        arrays = [nd.array(a) for a in (x, w, bias)]
        for a in arrays:
            a.attach_grad()
        with autograd.record():
            y = nd.Convolution(*arrays, kernel=(3, 4), num_filter=6, **how)
            loss = (y * y).sum()
        loss.backward()
        return [y, *(a.grad for a in arrays)]

    y, *gradients = same_everywhere(program)
    assert len(pieces) == 9
    assert min(pieces) > 1
    reference = registry["convolution"].reference
    assert reference is not None
    expected = reference(x.astype("d"), w.astype("d"), bias.astype("d"), **how)
    assert (y == expected).all()  # small integers: exact
    for name, given, gradient in (("data", x, gradients[0]), ("weight", w, gradients[1])):
        other = w if name == "data" else x
        expected = registry[f"conv_{name}_grad"].reference(2.0 * y, other.astype("d"), shape=given.shape, **how)  # type: ignore[misc]
        assert (gradient == expected).all()


@pytest.mark.parametrize("how", [{"stride": (2, 2)}, {"stride": (1, 2), "pad": (1, 1)}, {"stride": (3, 3)}])
@pytest.mark.parametrize("kind", ["max", "avg", "sum", "lp"])
def test_pooling_in_blocks_of_samples(how: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.permutation(80 * 5 * 30 * 30).reshape(80, 5, 30, 30).astype("f")
    pieces = counted(monkeypatch, pooling)

    def program(x: Any = x) -> Any:
        a = nd.array(x)
        a.attach_grad()
        with autograd.record():
            y = nd.Pooling(a, kernel=(2, 2), pool_type=kind, p_value=2, **how)
        y.backward()
        return [y, a.grad]

    y, gradient = same_everywhere(program)
    assert min(pieces) == 2
    apart = [program(x[i : i + 4]) for i in range(0, 80, 4)]
    assert y.tobytes() == b"".join(part[0].asnumpy().tobytes() for part in apart)
    assert gradient.tobytes() == b"".join(part[1].asnumpy().tobytes() for part in apart)


def test_the_gradient_of_max_pooling_takes_infinities_and_nans() -> None:
    x = nd.array(np.arange(16.0).reshape(1, 1, 4, 4))
    x.attach_grad()
    with autograd.record():
        y = nd.Pooling(x, kernel=(2, 2), stride=(2, 2))
    y.backward(nd.array([[[[np.inf, np.nan], [-np.inf, 1]]]]))
    expected = np.zeros((4, 4), "f")
    expected[1::2, 1::2] = [[np.inf, np.nan], [-np.inf, 1]]
    np.testing.assert_array_equal(x.grad.asnumpy()[0, 0], expected)


# ---- reductions ------------------------------------------------------------------------------------------------------

REDUCED: list[tuple[tuple[int, ...], Any]] = [
    (((1 << 20) + 7,), None), ((3, 1 << 19), 1), ((1 << 19, 3), 0), ((2000, 1100), 0), ((2000, 1100), 1),
    ((64, 20, 32, 32), (0, 2, 3)), ((30, 40, 1000), (0, 2)), ((20, 30, 40, 60), (1, 3)), ((5, 1, 300000), (1, 2)),
    (((1 << 17) + 1,), None), ((9, 20000), 0),
]  # fmt: skip


@pytest.mark.parametrize("name", ["sum", "mean", "prod", "max", "min", "norm", "nansum", "var"])
@pytest.mark.parametrize(("shape", "axis"), REDUCED)
def test_reductions_are_the_same_everywhere(shape: Any, axis: Any, name: str) -> None:
    x = np.random.default_rng(0).uniform(0.99, 1.01, shape)
    given = x.astype("f")
    got = same_everywhere(lambda: getattr(numpy_face, name)(nd.array(given), axis=axis))
    reference = registry[name].reference
    assert reference is not None
    np.testing.assert_allclose(got, reference(given.astype("d"), axis=axis), 1e-3)


@pytest.mark.parametrize("dtype", ["int32", "bool", "float16", "float64"])
@pytest.mark.parametrize(("shape", "axis"), REDUCED)
def test_reductions_of_other_dtypes(shape: Any, axis: Any, dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    a = nd.array(x, dtype=dtype)
    assert (numpy_face.max(a, axis=axis).asnumpy() == x.max(axis)).all()
    total = numpy_face.sum(a, axis=axis).asnumpy()
    if dtype == "float16":
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(total, x.astype("d").sum(axis).astype(dtype), 1e-2)
    else:
        assert total.dtype == x.sum(axis).dtype
        assert (total == x.sum(axis)).all()


def test_workers_share_a_reduction_and_the_waiting_thread_does_not_run_it() -> None:
    with Engine("ThreadedEnginePooled", workers=2) as engine:
        a = nd.ones((1 << 21,))
        a.wait_to_read()
        before = engine.statistics().by_helper
        for _ in range(20):
            assert a.sum().asscalar() == 1 << 21
        assert engine.statistics().by_helper == before


# ---- random numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", ["uniform", "normal", "gamma", "exponential", "poisson", "negative_binomial"])
def test_random_numbers_are_the_same_everywhere(name: str, dtype: str) -> None:
    def program() -> Any:
        nd.random.seed(3)
        return [getattr(nd.random, name)(shape=(3, 70001), dtype=dtype), nd.random.randint(0, 1000, shape=(200000,))]

    found = same_everywhere(program)[0].reshape(-1)
    assert len(set(found[:1000].tolist()) & set(found[1 << 16 : (1 << 16) + 1000].tolist())) < 1000  # blocks differ


def test_random_numbers_go_into_views() -> None:
    nd.random.seed(3)
    plain = nd.random.uniform(shape=(300, 300))
    target = nd.zeros((300, 600))
    nd.random.seed(3)
    nd.random.uniform(shape=(300, 300), out=target[:, 100:400])
    assert (target.asnumpy()[:, 100:400] == plain.asnumpy()).all()
    assert (target.asnumpy()[:, :100] == 0).all()


def test_a_seed_gives_known_numbers() -> None:
    """The definition: block b of operation k is Philox's stream from the counter (0, b, k, 0)."""
    nd.random.seed(5)
    nd.random.uniform(shape=(1,))
    got = nd.random.uniform(shape=(random.BLOCK + 10,)).asnumpy()
    key = np.random.SeedSequence((5, 0)).generate_state(2, np.uint64)
    for block, part in enumerate((got[: random.BLOCK], got[random.BLOCK :])):
        counter: Any = (0, block, 1, 0)
        rng = np.random.Generator(np.random.Philox(key=key, counter=counter))
        assert (part == rng.random(len(part), np.float32)).all()


def test_dropout_is_the_same_everywhere() -> None:
    def program() -> Any:
        nd.random.seed(3)
        return nd.Dropout(nd.ones((500, 500)), p=0.3, mode="always")

    found = same_everywhere(program)
    assert abs((found == 0).mean() - 0.3) < 0.01
