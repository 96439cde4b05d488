"""Updates of many weights by one operation, and questions about many arrays."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import Engine
from vardag.engine.testing import Gate
from vardag.operators import optimizer_multi

SHAPES = [(3, 4), (5,), (2, 1, 3)]
LRS, WDS = (0.1, 0.2, 0.3), (0.0, 0.05, 0.1)
FORMS = list(itertools.product((False, True), repeat=3))


def name_of(preloaded: bool, mixed: bool, mom: bool) -> str:
    return f"{'preloaded_' * preloaded}multi_{'mp_' * mixed}sgd_{'mom_' * mom}update"


class Weights:
    """Weights with what an update of them takes."""

    def __init__(self, mixed: bool, mom: bool, shapes: Any = SHAPES) -> None:
        rng = np.random.default_rng(11)
        self.dtype = "float16" if mixed else "float32"
        self.raw = [rng.normal(size=s).astype(self.dtype) for s in shapes]
        self.w = [nd.array(raw, dtype=self.dtype) for raw in self.raw]
        self.g = [nd.array(rng.normal(size=s), dtype=self.dtype) for s in shapes]
        self.m = [nd.array(rng.normal(size=s)) for s in shapes] if mom else []
        self.w32 = [w.astype("float32") for w in self.w] if mixed else []
        columns = [self.w, self.g, *([self.m] if mom else []), *([self.w32] if mixed else [])]
        self.data = [x for row in zip(*columns, strict=True) for x in row]

    def bytes(self) -> list[bytes]:
        return [x.asnumpy().tobytes() for x in self.data]


def arguments(preloaded: bool, mom: bool, count: int = 3) -> tuple[list[Any], dict[str, Any]]:
    """(further arrays, attributes)."""
    more: dict[str, Any] = {"rescale_grad": 0.5, "clip_gradient": 0.3, "num_weights": count}
    more |= {"momentum": 0.9} if mom else {}
    if preloaded:
        return [nd.array(LRS[:count]), nd.array(WDS[:count])], more
    return [], more | {"lrs": LRS[:count], "wds": WDS[:count]}


@pytest.mark.parametrize(("preloaded", "mixed", "mom"), FORMS)
def test_the_formula(engine_kind: Engine, preloaded: bool, mixed: bool, mom: bool) -> None:
    x = Weights(mixed, mom)
    expected = [raw.astype(np.float64) for raw in x.raw]
    kept = [m.asnumpy().astype(np.float64) for m in x.m] or [np.zeros(s) for s in SHAPES]
    arrays, more = arguments(preloaded, mom)
    for _ in range(3):
        assert getattr(nd, name_of(preloaded, mixed, mom))(*x.data, *arrays, out=x.w, **more) == x.w
        for i, g in enumerate(x.g):
            step = LRS[i] * (np.clip(g.asnumpy().astype(np.float64) * 0.5, -0.3, 0.3) + WDS[i] * expected[i])
            kept[i] = (0.9 if mom else 0) * kept[i] - step
            expected[i] = expected[i] + kept[i]
    for i, w in enumerate(x.w):
        np.testing.assert_allclose(w.asnumpy(), expected[i], rtol=1e-3 if mixed else 1e-5, atol=1e-3 if mixed else 1e-6)
    for exact, wanted in [*zip(x.w32, expected, strict=False), *zip(x.m, kept, strict=False)]:
        np.testing.assert_allclose(exact.asnumpy(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("preloaded", "mixed", "mom"), FORMS)
def test_the_bits_are_those_of_one_by_one(preloaded: bool, mixed: bool, mom: bool, monkeypatch: Any) -> None:
    """As one operation, shared by workers or not, and as one for each weight."""
    found = []
    for worth in (1, 1e12, None):
        monkeypatch.setattr(optimizer_multi, "SHARED", worth or 1e12)
        x = Weights(mixed, mom, [(300, 400), (5,), (70_000,)])
        if worth:
            arrays, more = arguments(preloaded, mom)
            getattr(nd, name_of(preloaded, mixed, mom))(*x.data, *arrays, out=x.w, **more)
        else:
            step = len(x.data) // 3
            more = {"momentum": 0.9} if mom else {}
            for i, w in enumerate(x.w):
                getattr(nd, f"{'mp_' * mixed}sgd_{'mom_' * mom}update")(
                    *x.data[step * i : step * i + step], lr=float(np.float32(LRS[i])) if preloaded else LRS[i],
                    wd=float(np.float32(WDS[i])) if preloaded else WDS[i], rescale_grad=0.5, clip_gradient=0.3, out=w,
                    **more,
                )  # fmt: skip
        found.append(x.bytes())
    assert found[0] == found[1] == found[2]


def test_without_out_the_weights_stay() -> None:
    x = Weights(False, True)
    _, more = arguments(False, True)
    before = [w.asnumpy().tobytes() for w in x.w]
    made = nd.multi_sgd_mom_update(x.data, **more)
    assert [w.asnumpy().tobytes() for w in x.w] == before
    y = Weights(False, True)
    nd.multi_sgd_mom_update(*y.data, out=y.w, **more)
    assert [a.asnumpy().tobytes() for a in made] == [w.asnumpy().tobytes() for w in y.w]
    assert [a.asnumpy().tobytes() for a in x.m] == [a.asnumpy().tobytes() for a in y.m]
    (single,) = [nd.multi_sgd_update(x.w[0], x.g[0], lrs=0.1, wds=0)]
    assert isinstance(single, nd.NDArray), "of one weight it is no list"


def test_it_is_one_operation_that_waits_for_each_of_its_arrays() -> None:
    with Engine(workers=2) as engine:
        x = Weights(False, True)
        _, more = arguments(False, True)
        expected = Weights(False, True)
        expected.g[2] += 1
        nd.multi_sgd_mom_update(*expected.data, out=expected.w, **more)
        nd.waitall()
        for pending in (x.g[2], x.m[0], x.w[1]):  # it waits for any of them
            gate = Gate()
            engine.push(lambda a, gate=gate: gate(), updates=[pending])  # type: ignore[misc]
            before = engine._seq
            nd.multi_sgd_mom_update(*x.data, out=x.w, lrs=(0, 0, 0), wds=(0, 0, 0), momentum=1)
            assert engine._seq == before + 1
            reader = x.w[0] + 0
            assert not any(v.writer is None or v.writer.done for v in (x.w[0].var, x.m[2].var, reader.var))
            gate.open()
            nd.waitall()
        y = Weights(False, True)
        gate = Gate()
        engine.push(lambda a: (gate(), a.__iadd__(1)), updates=[y.g[2]])
        nd.multi_sgd_mom_update(*y.data, out=y.w, **more)
        gate.open()
        assert y.bytes() == expected.bytes()


def test_a_poisoned_gradient_poisons_all_that_it_changes() -> None:
    with Engine(workers=1) as engine:
        x = Weights(False, True)
        _, more = arguments(False, True)
        engine.push(lambda a: 1 / 0, updates=[x.g[1]])
        nd.multi_sgd_mom_update(*x.data, out=x.w, **more)
        for a in (*x.w, *x.m):
            with pytest.raises(ZeroDivisionError):
                a.asnumpy()
        assert x.g[0].asnumpy().shape == (3, 4)


def test_held_weights_and_views_are_changed_like_others() -> None:
    """What the tape holds, and parts of an array, as weights."""
    base, grads = nd.array(np.arange(8.0)), nd.ones((8,))
    base.attach_grad()
    with autograd.record():
        y = nd.square(base).sum()
    with autograd.pause():
        halves = [base[:4], base[4:]]
    nd.multi_sgd_update(halves[0], grads[:4], halves[1], grads[4:], lrs=(1, 2), wds=(0, 0), out=halves)
    y.backward()
    assert base.asnumpy().tolist() == [-1, 0, 1, 2, 2, 3, 4, 5]
    assert base.grad.asnumpy().tolist() == [2.0 * i for i in range(8)]


def refused(error: type[Exception], words: str, x: Weights, call: Callable[[], Any]) -> None:
    before, versions = x.bytes(), [a._chunk.version for a in x.data]
    with pytest.raises(error, match=words) as caught:
        call()
    assert "multi_sgd_mom_update" in str(caught.value)
    assert (x.bytes(), [a._chunk.version for a in x.data]) == (before, versions)


def test_bad_operands_are_refused_and_nothing_changes() -> None:
    x = Weights(False, True)
    update = nd.multi_sgd_mom_update
    _, more = arguments(False, True)

    def with_(i: int, value: Any) -> Any:
        return lambda: update(*(value if k == i else a for k, a in enumerate(x.data)), out=x.w, **more)

    refused(ValueError, "8 arrays: weight, grad, mom", x, lambda: update(*x.data[:8], out=x.w, **more))
    refused(ValueError, "of 2 weights", x, lambda: update(*x.data, out=x.w, **{**more, "num_weights": 2}))
    refused(ValueError, r"weight_1 float32\(5,\), mom_1 float32\(4,\): the same shape", x, with_(5, nd.zeros((4,))))
    refused(TypeError, r"grad_1 float64\(5,\): float32 expected", x, with_(4, nd.zeros((5,), dtype="float64")))
    refused(TypeError, "mom_1 .*an array expected", x, with_(5, np.zeros(5, "f4")))
    refused(ValueError, "lrs .*3 numbers", x, lambda: update(*x.data, out=x.w, **{**more, "lrs": (1, 2)}))
    refused(ValueError, "'wds' is missing", x, lambda: update(*x.data, out=x.w, lrs=LRS))
    refused(ValueError, "unknown argument 'beta1'", x, lambda: update(*x.data, out=x.w, beta1=1, **more))
    refused(ValueError, "out: 3 arrays", x, lambda: update(*x.data, out=x.w[:2], **more))
    refused(ValueError, "out_1", x, lambda: update(*x.data, out=[x.w[0], x.w[2], x.w[1]], **more))
    refused(ValueError, "share memory", x, with_(5, x.w[1]))
    refused(ValueError, "share memory", x, with_(4, x.m[1]))
    refused(ValueError, "share memory", x, lambda: update(*x.data, out=x.g, **more))
    refused(ValueError, "share memory", x, lambda: update(*x.data[:3] * 3, out=x.w[:1] * 3, **more))
    x.m[2].attach_grad()
    with autograd.record():
        refused(ValueError, "mom_2 .*on the tape", x, lambda: update(*x.data, out=x.w, **more))

    class Reader(autograd.Function):
        def forward(self, weight: Any) -> Any:
            nd.multi_sgd_mom_update(weight, x.g[0], x.m[0], lrs=1, wds=0, out=weight)
            return weight

    refused(ValueError, "weight_0|out_0", x, lambda: Reader()(x.w[0]))


@pytest.mark.parametrize("lrs", [(2,), (3, 1)])
def test_rates_of_another_shape_are_refused(lrs: tuple[int, ...]) -> None:
    x = Weights(False, False)
    with pytest.raises(ValueError, match=r"\[preloaded_multi_sgd_update\] lrs .*3 floating"):
        nd.preloaded_multi_sgd_update(*x.data, nd.ones(lrs), nd.ones((3,)), out=x.w)


# ---- questions about many arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sums_of_squares(engine_kind: Engine, dtype: str) -> None:
    rng = np.random.default_rng(4)
    raws = [rng.normal(size=s).astype(dtype) for s in [(3, 4), (0,), (1100, 1000)]]
    arrays = [nd.array(raw, dtype=dtype) for raw in raws]
    sums = nd.multi_sum_sq(*arrays, num_arrays=3)
    assert sums.dtype == np.float32
    np.testing.assert_allclose(sums.asnumpy(), [np.sum(raw.astype(np.float64) ** 2) for raw in raws], rtol=1e-5)
    strided = nd.multi_sum_sq(arrays[2][:, 100:900])
    np.testing.assert_allclose(strided.asnumpy(), [np.sum(raws[2][:, 100:900].astype(np.float64) ** 2)], rtol=1e-5)


def test_the_bits_of_sums_do_not_depend_on_workers() -> None:
    raw, found = np.random.default_rng(5).normal(size=1_500_000), set()
    for kind, workers in (("NaiveEngine", None), ("ThreadedEnginePerDevice", 4)):
        with Engine(kind=kind, workers=workers):
            found.add(nd.multi_sum_sq(nd.array(raw), nd.ones((3,))).asnumpy().tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("values", "expected"), [((1, 2), 1), ((1, np.inf), 0), ((np.nan, 1), 0)])
def test_all_finite(values: Any, expected: float, dtype: str) -> None:
    x, fine = nd.array(values, dtype=dtype), nd.ones((200_000,), dtype=dtype)
    for found in (nd.all_finite(x), nd.multi_all_finite(fine, x, num_arrays=2)):
        assert (found.asnumpy().tolist(), found.dtype) == ([expected], np.float32)
    for before, init in itertools.product((0, 1), (True, False)):
        out = nd.array([before])
        assert nd.all_finite(x, init_output=init, out=out) is out
        assert out.asscalar() == (expected if init or before else 0)
        out = nd.array([before])
        nd.multi_all_finite(x, fine, num_arrays=2, init_output=init, out=out)
        assert out.asscalar() == (expected if init or before else 0)


def test_rates_by_layer() -> None:
    lrs, w, g, wds = np.array([0.1, 0.2, 0.3, 0.4]), np.array([4.0, 0, 2, 9]), np.array([1.0, 3, 0, 2]), 0.5
    found = nd.multi_lars(
        nd.array(lrs), nd.array(w), nd.array(g), nd.full((4,), wds), eta=0.01, eps=1e-3, rescale_grad=2
    )
    rates = lrs * 0.01 * np.sqrt(w) / (2 * np.sqrt(g) + wds * np.sqrt(w) + 1e-3)
    np.testing.assert_allclose(found.asnumpy(), np.where((w > 0) & (g > 0), rates, lrs), rtol=1e-6)


def test_zeros_in_many_arrays_by_one_operation() -> None:
    with Engine(workers=2) as engine:
        arrays = [nd.ones((3,)), nd.ones((2, 2), dtype="int32"), nd.ones((100_000,))]
        part = arrays[2][10:20]
        engine.push(lambda a: 1 / 0, updates=[arrays[0]])
        before = engine._seq
        assert nd.reset_arrays(arrays[0], arrays[1], part, num_arrays=3) == []
        assert engine._seq == before + 1
        assert arrays[0].asnumpy().tolist() == [0, 0, 0], "a full overwrite heals"
        assert not arrays[1].asnumpy().any() and arrays[2].asnumpy().sum() == 99_990
        with pytest.raises(ExceptionGroup):
            nd.waitall()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda x: nd.reset_arrays(x, x[1:]), ValueError), (lambda x: nd.reset_arrays(), ValueError),
        (lambda x: nd.reset_arrays(x, 3), TypeError), (lambda x: nd.reset_arrays(x, num_arrays=2), ValueError),
        (lambda x: nd.multi_sum_sq(x, num_arrays=2), ValueError), (lambda x: nd.all_finite([1]), TypeError),
        (lambda x: nd.all_finite(x.astype("int32")), TypeError),
        (lambda x: nd.multi_lars(x, x, x, nd.ones((4,)), eta=1, eps=0), ValueError),
    ],
)  # fmt: skip
def test_what_is_refused_changes_nothing(call: Callable[[Any], Any], error: type[Exception]) -> None:
    x = nd.ones((3,))
    with pytest.raises(error, match=r"\[\w+\]"):
        call(x)
    assert x.asnumpy().tolist() == [1, 1, 1]
