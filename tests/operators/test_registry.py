"""Every operator of the registry, tested by being declared: values, shapes, gradients, aliasing, engines.

Each test takes an operator with all of its samples.  Random values come from a seed made of the operator's name and the
sample's number, so a failure repeats.  "Raw" gradients are those of `backward` (texts on raw memory), "graph" gradients
those of ``grad(create_graph=True)`` (the same texts on arrays, recorded).
"""

from __future__ import annotations

import itertools
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import special

import vardag as vd
from vardag import autograd, nd
from vardag.autograd import plans
from vardag.engine import Engine
from vardag.ndarray.array import Array
from vardag.operators import nd_face, numpy_face, registry, texts
from vardag.operators.faces import PLAIN
from vardag.operators.schema import Operator, Sample, Text, zero
from vardag.operators.texts import arguments, raw

F16, F32, F64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)

# Operators that this suite cannot take, each with the reason.
UNSAMPLED = {
    "zeros": "no operands; tests/ndarray/test_creation.py",
    "ones": "no operands; tests/ndarray/test_creation.py",
    "full": "no operands; tests/ndarray/test_creation.py",
    "arange": "no operands; tests/ndarray/test_creation.py",
    "eye": "no operands; tests/ndarray/test_creation.py",
    "linspace": "no operands; tests/ndarray/test_creation.py",
    "assign": "needs a target; tests/ndarray/test_indexing.py, tests/autograd/test_in_place.py",
    "truncate_divide": "integers only; tests/ndarray/test_mxnet_rules.py",
    "integer_power": "integers only; tests/ndarray/test_mxnet_rules.py",
    "rrelu": "reached as LeakyReLU",
    "rnn_backward": "the gradient of rnn",
    "image_resize_bytes": "uint8 only; test_mxnet_answers.py",
    "image_turn_hue": "colours; test_mxnet_answers.py",
    "adamw_step": "its scale is an operand; test_mxnet_answers.py",
    "roi_align_back": "the gradient of contrib_ROIAlign",
    **dict.fromkeys(
        (
            "mp_sgd_update", "mp_sgd_mom_update", "mp_nag_mom_update", "mp_lamb_update_phase1", "mp_lamb_update_phase2",
        ),
        "two dtypes; test_optimizer_many.py",
    ),
    **dict.fromkeys(("multi_sum_sq", "multi_all_finite"), "float32 of any dtype; test_optimizer_many.py"),
}  # fmt: skip

# Samples of operators whose declaration has none.
MORE_SAMPLES = {"mod_or_zero": [Sample((2, 3), (2, 3), low=1.1, high=1.9)]}


def _view(x: Any, shape: Any, strides: Any, offset: int, indices: Any) -> Any:
    steps = [s * x.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(x.reshape(-1)[offset:], shape, steps)


def _scattered(base: Any, value: Any, **view: Any) -> Any:
    base = base.copy()
    _view(base, **view)[...] = value
    return base


# NumPy's value for operators whose declaration names none.
MORE_REFERENCES: dict[str, Callable[..., Any]] = {
    "zeros_like": np.zeros_like,
    "ones_like": np.ones_like,
    "compact": np.copy,
    "mod_or_zero": np.remainder,
    "polygamma": lambda x, order: special.polygamma(order, x),
    "LinearRegressionOutput": lambda data, label, **_: data,
    "MAERegressionOutput": lambda data, label, **_: data,
    "LogisticRegressionOutput": lambda data, label, **_: special.expit(data),
    "strided": _view,
    "strided_scatter": lambda x, base, **view: _scattered(np.zeros(base), x, **view),
    "strided_assign": _scattered,
}

# Operators that mean something else in the nd face for the samples given.
ND_MEANS_ELSE = {"where": "a condition of shape (n,) chooses rows"}

# Operators whose last bits depend on the layout of their operands, each with the reason.
LAYOUT_BITS = {
    "power": "NumPy's vector loop takes contiguous memory only",
    "arctan2": "NumPy's vector loop takes contiguous memory only",
    **dict.fromkeys(("sum", "mean", "prod", "var", "std"), "NumPy's order of summation follows memory"),
    "matmul": "NumPy gives BLAS only what BLAS can take",
}

# Operators without a reference, each with the reason.
UNREFERENCED: dict[str, str] = {
    **dict.fromkeys(
        (
            "sgd_update", "sgd_mom_update", "nag_mom_update", "signsgd_update", "signum_update", "adam_update",
            "adagrad_update", "rmsprop_update", "rmspropalex_update", "ftrl_update", "ftml_update",
            "lamb_update_phase1", "lamb_update_phase2",
        ),
        "changes its state; its formula is in test_optimizer.py",
    ),
    "softmax_of_length": "row 365 of tests/ndarray/test_mxnet_rules.py",
    "SoftmaxOutput": "rows 554 to 556 of tests/ndarray/test_mxnet_rules.py",
}  # fmt: skip


# ---- cases ---------------------------------------------------------------------------------------------------------


class Case:
    """One operator with one of its samples."""

    def __init__(self, op: Operator, number: int, sample: Sample) -> None:
        self.op, self.number, self.sample = op, number, sample
        self.attributes = dict(sample.attributes)
        self.call = getattr(numpy_face, op.name)

    def __repr__(self) -> str:
        return f"{self.op.name}[{self.number}]"

    def rng(self, purpose: str = "") -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(f"{self.op.name}/{self.number}/{purpose}".encode()))

    def name(self, i: int) -> str:
        return self.op.input_name(i)

    def raws(self, dtype: np.dtype[Any] = F32, purpose: str = "values") -> list[Any]:
        """The inputs as NumPy arrays: random ones for shapes, given ones as they are (indices) or cast."""
        rng, found = self.rng(purpose), []
        for i, given in enumerate(self.sample.inputs):
            if given is None:
                found.append(None)
            elif isinstance(given, np.ndarray):
                keep = self.name(i) in self.op.indices and given.dtype.kind != "f"
                found.append(np.array(given) if keep else given.astype(dtype))
            else:
                found.append(np.asarray(rng.uniform(self.sample.low, self.sample.high, given)).astype(dtype))
        return found

    def arrays(self, dtype: np.dtype[Any] = F32) -> list[Any]:
        return arrays_of(self.raws(dtype))

    def run(self, inputs: Sequence[Any], **more: Any) -> list[Any]:
        """The outputs; random operators draw the same numbers every time, in training mode."""
        vd.random.seed(7)
        with autograd.train_mode():
            result = self.call(*inputs, **{**self.attributes, **more})
        return [result] if isinstance(result, Array) else list(result)

    def values(self, inputs: Sequence[Any], **more: Any) -> list[np.ndarray]:
        return [y.asnumpy() for y in self.run(inputs, **more)]

    def connected(self) -> list[int]:
        """The positions of inputs that gradients flow to."""
        return [
            i
            for i, x in enumerate(self.raws())
            if x is not None and x.dtype.kind == "f" and self.op.gradient_of(i) is not None
            and self.name(i) not in self.op.updates
        ]  # fmt: skip

    def smooth(self, i: int) -> bool:
        """Whether differences say something: not at given values of an operator that is flat between them (indices)."""
        return self.op.gradient_of(i) is not zero or not isinstance(self.sample.inputs[i], np.ndarray)

    def direction(self, like: np.ndarray, purpose: str) -> np.ndarray:
        return np.asarray(self.rng(purpose).standard_normal(like.shape)).astype(like.dtype)

    def gradients(
        self,
        raws: Sequence[Any],
        *,
        wanted: Sequence[int] | None = None,
        graph: bool = False,
        heads: Sequence[np.ndarray] | None = None,
        wait: bool = True,
    ) -> list[Any]:
        """The gradients of the outputs, weighted by `heads`, with respect to the wanted inputs."""
        wanted = self.connected() if wanted is None else wanted
        inputs = arrays_of(raws)
        for i in wanted:
            inputs[i].attach_grad()
            inputs[i].grad[...] = 77  # an untouched gradient is seen
        with autograd.record():
            outputs = floating(self.run(inputs))
        given = [array(h) for h in (self.heads(outputs) if heads is None else heads)]
        if graph:
            return autograd.grad(outputs, [inputs[i] for i in wanted], given, create_graph=True)
        autograd.backward(outputs, given, wait=wait)
        return [inputs[i].grad for i in wanted]

    def heads(self, outputs: Sequence[Any]) -> list[np.ndarray]:
        return [
            np.asarray(self.rng(f"head {i}").standard_normal(y.shape)).astype(y.dtype) for i, y in enumerate(outputs)
        ]

    @property
    def graph_is_raw(self) -> bool:
        """Whether the two runners do the same arithmetic: a definition recomputes what the kernel saved."""
        return not self.op.definitions


def array(raw: np.ndarray) -> Array:
    """A canonical array with a copy of this value."""
    return Array._from_host(np.array(raw, order="C"))


def arrays_of(raws: Sequence[Any]) -> list[Any]:
    return [None if x is None else array(x) for x in raws]


def floating(outputs: Sequence[Any]) -> list[Any]:
    """Floating-point outputs; if there are none, the outputs converted (they are on the tape, with gradient 0)."""
    found = [y for y in outputs if y.dtype.kind == "f"]
    return found or [numpy_face.cast(y, dtype="float64") for y in outputs]


def samples_of(op: Operator) -> Sequence[Sample]:
    return op.samples or MORE_SAMPLES.get(op.name, ())


def reference_of(op: Operator) -> Callable[..., Any] | None:
    return op.reference or MORE_REFERENCES.get(op.name)


def cases(op: Operator) -> list[Case]:
    return [Case(op, i, sample) for i, sample in enumerate(samples_of(op))]


def connected_cases(op: Operator) -> list[Case]:
    return [case for case in cases(op) if case.connected()]


OPERATORS = [op for op in registry if samples_of(op)]
DIFFERENTIABLE = [op for op in OPERATORS if connected_cases(op)]
#: `defined` gradients are definitions and not derivatives: finite differences say nothing about them, linearity in the
#: head gradient neither, and there is no second order to compare with
DERIVED = [op for op in DIFFERENTIABLE if not op.defined]
KERNELS = [op for op in OPERATORS if op.ufunc is None and op.variant is None]

each = pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
each_differentiable = pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda op: op.name)
each_derived = pytest.mark.parametrize("op", DERIVED, ids=lambda op: op.name)


def same(a: Sequence[Any], b: Sequence[Any]) -> None:
    """Equal bit for bit, dtype for dtype, shape for shape."""
    for pair in zip(a, b, strict=True):
        x, y = (v.asnumpy() if isinstance(v, Array) else v for v in pair)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert x.tobytes() == y.tobytes(), f"{x} != {y}"


# ---- the registry --------------------------------------------------------------------------------------------------


def test_every_operator_is_tested_or_excused() -> None:
    without = {op.name for op in registry if not samples_of(op)}
    assert not without - set(UNSAMPLED), "give it samples, or name it in UNSAMPLED with the reason"
    assert {op.name for op in registry} >= set(UNSAMPLED) | set(MORE_SAMPLES)


def test_every_operator_has_a_reference_or_is_excused() -> None:
    """A random operator has none; one with a `variant` is another operator under an attribute."""
    without = {op.name for op in OPERATORS if reference_of(op) is None and not op.random and not op.variant}
    assert not without - set(UNREFERENCED), "give it a reference, or name it in UNREFERENCED with the reason"
    assert {op.name for op in registry} >= set(UNREFERENCED) | set(MORE_REFERENCES)


# ---- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [op for op in OPERATORS if reference_of(op)], ids=lambda op: op.name)
def test_forward_is_the_reference(op: Operator) -> None:
    reference = reference_of(op)
    assert reference is not None
    for case in cases(op):
        raws = case.raws(F64)
        with np.errstate(all="ignore"):
            wanted = reference(*(None if x is None else x.copy() for x in raws), **case.attributes)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        outputs = case.values(arrays_of(raws))
        assert len(outputs) == len(wanted), case
        for y, w in zip(outputs, wanted, strict=True):
            assert y.shape == np.shape(w), case
            np.testing.assert_allclose(y, w, rtol=1e-11, atol=1e-12, err_msg=repr(case))


@each
def test_metadata_is_known_at_the_call_and_dtypes_stay(op: Operator) -> None:
    for case in cases(op):
        for dtype in (F16, F32, F64):
            outputs = case.run(case.arrays(dtype))
            for y in outputs:
                value = y.asnumpy()
                assert (y.shape, y.dtype) == (value.shape, value.dtype), case
                if "dtype" not in op.attributes and y.dtype.kind == "f":
                    assert y.dtype == dtype, f"{case}: {dtype} gives {y.dtype}"


@pytest.mark.parametrize("op", [op for op in OPERATORS if op.nd is not False], ids=lambda op: op.name)
def test_the_nd_face_gives_the_same_in_its_own_form(op: Operator) -> None:
    """Of float32 operands: NDArrays, (1,) instead of (), stored in float32 unless the rule says otherwise."""
    if op.name in ND_MEANS_ELSE:
        pytest.skip(ND_MEANS_ELSE[op.name])
    for case in cases(op):
        expected = case.values(case.arrays())
        rule = op.nd or PLAIN
        case.call = getattr(nd_face.spaces[rule.space] if rule.space else nd_face, rule.names(op)[0])
        outputs = case.run([None if x is None else nd.NDArray._from_host(np.array(x)) for x in case.raws()])
        assert len(outputs) == len(expected), case
        for y, e in zip(outputs, expected, strict=True):
            assert type(y) is nd.NDArray and y.shape == (e.shape or (1,)), case
            np.testing.assert_allclose(y.asnumpy().astype(F64), e.reshape(y.shape).astype(F64), rtol=1e-6)


@each
def test_float16_is_float32_rounded(op: Operator) -> None:
    """16-bit floats are widened at the border: the result is that of float32, rounded once."""
    for case in cases(op):
        halves = case.raws(F16)
        wide = [x.astype(F32) if x is not None and x.dtype == F16 else x for x in halves]
        got = case.values(arrays_of(halves))
        expected = case.values(arrays_of(wide))
        for y, w in zip(got, expected, strict=True):
            np.testing.assert_allclose(y.astype(F64), w.astype(F64), rtol=2e-3, atol=2e-3, err_msg=repr(case))


@each
def test_inputs_are_untouched(op: Operator) -> None:
    for case in cases(op):
        raws = case.raws()
        inputs = arrays_of(raws)
        for i in case.connected():
            inputs[i].attach_grad()
        with autograd.record():
            outputs = floating(case.run(inputs))
        if case.connected():
            autograd.backward(outputs)
        kept = [i for i, x in enumerate(raws) if x is not None and case.name(i) not in op.updates]
        same([inputs[i] for i in kept], [raws[i] for i in kept])


@pytest.mark.parametrize("op", KERNELS, ids=lambda op: op.name)
def test_kernels_do_not_write_to_their_inputs(op: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts always get read-only arrays; kernels get them here."""
    kernel = op.kernel

    def guarded(xp: Any, *arrays: Any, **named: Any) -> Any:
        given = [x.view() if isinstance(x, np.ndarray) else x for x in arrays]
        for i, x in enumerate(given):
            if isinstance(x, np.ndarray):
                x.flags.writeable = op.input_name(i) in op.updates
        called.append(True)
        return kernel(xp, *given, **named)

    called: list[bool] = []
    for case in cases(op):
        expected = case.values(arrays_of(case.raws()))
        with monkeypatch.context() as patch:
            patch.setattr(op, "kernel", guarded)
            same(case.values([None if x is None else offset(x) for x in case.raws()]), expected)
        assert called or op.alias, case


def offset(x: np.ndarray) -> Array:
    """The same value as a view with an offset: no operator may share its buffer."""
    base = array(np.concatenate([np.zeros(1, x.dtype), x.ravel()]))
    return base[1:].reshape(x.shape)


def transposed(x: np.ndarray) -> Array:
    return array(x.T).T


def stepped(x: np.ndarray) -> Array:
    """Every second element of the last axis of a larger array, backwards."""
    if not x.ndim:
        return offset(x)
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1] + 1), 55).astype(x.dtype)
    wide[..., 1::2] = x[..., ::-1]
    return array(wide)[..., -2::-2] if x.shape[-1] else array(x)


@each
@pytest.mark.parametrize("layout", [offset, transposed, stepped], ids=lambda f: f.__name__)
def test_layout_of_inputs_does_not_matter(op: Operator, layout: Callable[..., Array]) -> None:
    for case in cases(op):
        raws = case.raws()
        expected = case.values(arrays_of(raws))
        views = [None if x is None else layout(x) for x in raws]
        same([v for v in views if v is not None], [x for x in raws if x is not None])
        found = case.values(views)
        if op.name in LAYOUT_BITS:
            for y, w in zip(found, expected, strict=True):
                np.testing.assert_allclose(y, w, rtol=1e-5, atol=1e-6, err_msg=repr(case))
        else:
            same(found, expected)


@each
def test_zero_size_inputs(op: Operator) -> None:
    """An axis of length 0: the operator refuses it at the call, or works, as NumPy where there is a reference."""
    if "strides" in op.attributes:
        pytest.skip("its attributes are a geometry over an array of exactly this shape")
    if "indptr" in op.inputs:
        pytest.skip("its inputs are the parts of a sparse array, which fit together")
    reference, worked = reference_of(op), 0
    for case in cases(op):
        raws = case.raws()
        for n in sorted({n for x in raws if x is not None for n in x.shape if n}):
            empty = [None if x is None else x[tuple(slice(0 if m == n else None) for m in x.shape)] for x in raws]
            try:
                outputs = case.run(arrays_of(empty))
            except vd.Error:
                continue
            worked += 1
            for y in outputs:
                assert y.asnumpy().shape == y.shape, case
            if reference is None:
                continue
            try:
                with warnings.catch_warnings(action="ignore"):
                    wanted = reference(*empty, **case.attributes)
            except (ValueError, IndexError):
                continue  # NumPy refuses it; a value of ours is not wrong
            shapes = [np.shape(w) for w in (wanted if isinstance(wanted, tuple) else (wanted,))]
            assert [y.shape for y in outputs] == shapes, case
            if case.connected():
                for g, i in zip(case.gradients(empty), case.connected(), strict=True):
                    assert g.asnumpy().shape == empty[i].shape
    assert worked or not op.elementwise


def numpy_scalars(value: Any) -> Any:
    """An attribute as code that computes it with NumPy would pass it."""
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int64(value)
    if isinstance(value, float):
        return np.float64(value)
    if isinstance(value, tuple | list):
        return type(value)(map(numpy_scalars, value))
    return value


@pytest.mark.parametrize(
    "op", [op for op in OPERATORS if any(case.attributes for case in cases(op))], ids=lambda op: op.name
)
def test_attributes_may_be_numpy_scalars(op: Operator) -> None:
    for case in cases(op):
        raws, connected = case.raws(), case.connected()
        inputs = arrays_of(raws)
        expected = case.values(inputs)
        gradients = case.gradients(raws) if connected else []
        case.attributes = {name: numpy_scalars(value) for name, value in case.attributes.items()}
        same(case.values(arrays_of(raws)), expected)
        same(case.gradients(raws) if connected else [], gradients)


# ---- out= ----------------------------------------------------------------------------------------------------------


def identical_memory(x: np.ndarray, out: tuple[int, ...]) -> tuple[Array, Array] | None:
    whole = array(x)
    return (whole, whole) if x.shape == out else None


def shifted_memory(x: np.ndarray, out: tuple[int, ...]) -> tuple[Array, Array] | None:
    n, m = x.size, int(np.prod(out))
    base = array(np.zeros(max(n, m + 1), x.dtype))
    first = base[:n].reshape(x.shape)
    first[...] = x
    return first, base[1 : m + 1].reshape(out)


def transposed_memory(x: np.ndarray, out: tuple[int, ...]) -> tuple[Array, Array] | None:
    if x.ndim != 2 or len(out) != 2:
        return None
    n = max(*x.shape, *out)
    base = array(np.zeros((n, n), x.dtype))
    first = base[: x.shape[0], : x.shape[1]]
    first[...] = x
    return first, base.T[: out[0], : out[1]]


@each
@pytest.mark.parametrize(
    "overlap", [identical_memory, shifted_memory, transposed_memory], ids=lambda f: f.__name__.split("_")[0]
)
def test_out_may_alias_an_input(op: Operator, overlap: Callable[..., Any]) -> None:
    """Whatever memory `out` and an input share, the result is that with memory of its own."""
    for case in cases(op):
        raws = case.raws()
        expected = case.values(arrays_of(raws))
        for (i, x), (k, y) in itertools.product(enumerate(raws), enumerate(expected)):
            if x is None or case.name(i) in op.updates or x.dtype != y.dtype:
                continue
            pair = overlap(x, y.shape)
            if pair is None:
                continue
            inputs = arrays_of(raws)
            inputs[i], target = pair
            outs = [None] * len(expected)
            outs[k] = target
            got = case.run(inputs, out=target if len(expected) == 1 else outs)
            assert got[k] is target
            same(got, expected)


# ---- gradients -----------------------------------------------------------------------------------------------------

EPSILON = 1e-5


def weighted(arrays: Sequence[Any], weights: Sequence[np.ndarray]) -> float:
    return float(sum((a.asnumpy() * w).sum() for a, w in zip(arrays, weights, strict=True)))


def check_derivative(
    f: Callable[[list[Any]], float], at: Sequence[Any], position: int, gradient: Array, v: np.ndarray, what: str
) -> None:
    """<gradient, v> is the derivative of f along v in one of its arguments, by central differences."""

    def moved(t: float) -> float:
        values = list(at)
        values[position] = values[position] + t * v
        return f(values)

    assert (gradient.shape, gradient.dtype) == (at[position].shape, F64), what
    found, expected = float((gradient.asnumpy() * v).sum()), (moved(EPSILON) - moved(-EPSILON)) / (2 * EPSILON)
    scale = max(1.0, abs(moved(0.0)), abs(expected))
    assert abs(found - expected) < 2e-6 * scale, f"{what}: {found} against {expected} by differences"


def first_order(case: Case) -> None:
    raws = case.raws(F64)
    heads = case.heads(floating(case.run(arrays_of(raws))))

    def f(values: list[Any]) -> float:
        return weighted(floating(case.run(arrays_of(values))), heads)

    for i, gradient in zip(case.connected(), case.gradients(raws, heads=heads), strict=True):
        if not case.smooth(i):
            continue
        check_derivative(f, raws, i, gradient, case.direction(raws[i], f"direction {i}"), f"{case} along input {i}")


def second_order(case: Case) -> None:
    """The derivatives of <gradients, u> along every input and every head gradient."""
    raws, connected = case.raws(F64), case.connected()
    inputs = arrays_of(raws)
    raw_heads = case.heads(floating(case.run(inputs)))
    heads = arrays_of(raw_heads)
    marked = [inputs[i] for i in connected]
    one = array(np.ones(()))
    for x in (*marked, *heads, one):
        x.attach_grad()
    with autograd.record():
        outputs = floating(case.run(inputs))
        # times one: on the tape even where a gradient depends on nothing
        found = [g * one for g in autograd.grad(outputs, marked, heads, create_graph=True)]
    us = [case.direction(g.asnumpy(), f"second {k}") for k, g in enumerate(found)]
    autograd.backward(found, arrays_of(us))
    n = len(raws)

    def f(values: list[Any]) -> float:
        return weighted(case.gradients(values[:n], heads=values[n:]), us)

    for i, x in [(i, inputs[i]) for i in connected if case.smooth(i)] + [
        (n + k, h) for k, h in enumerate(heads) if h.dtype == F64
    ]:
        v = case.direction(x.asnumpy(), f"third {i}")
        check_derivative(f, [*raws, *raw_heads], i, x.grad, v, f"{case} second order along {i}")


@each_derived
def test_gradient_is_the_directional_derivative(op: Operator) -> None:
    for case in connected_cases(op):
        first_order(case)


@each_differentiable
def test_planned_gradients_are_the_same(op: Operator) -> None:
    """The third backward of a graph goes by a plan: see autograd/plans.py."""
    for case in connected_cases(op):
        raws = case.raws()
        with Engine(workers=1, inline=False):
            expected = [x.asnumpy() for x in case.gradients(raws)]
        with Engine(workers=1):
            for _ in range(3):
                same(case.gradients(raws), expected)


def test_most_operators_can_be_planned() -> None:
    """Of these no text looks at a value."""
    without = set()
    with Engine(workers=1):
        for op in DIFFERENTIABLE:
            for case in connected_cases(op):
                plans._plans.clear()
                for _ in range(2):
                    case.gradients(case.raws())
                if plans.NONE in plans._plans.values():
                    without.add(op.name)
    assert sorted(without) == []


@each_derived
def test_second_order_is_the_directional_derivative(op: Operator) -> None:
    for case in connected_cases(op):
        second_order(case)


@each_differentiable
def test_raw_gradients_are_graph_gradients(op: Operator) -> None:
    for case in connected_cases(op):
        raws = case.raws()
        found, recorded = case.gradients(raws), case.gradients(raws, graph=True)
        if case.graph_is_raw:
            same(found, recorded)
        else:
            for a, b in zip(found, recorded, strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_allclose(a.asnumpy(), b.asnumpy(), rtol=2e-5, atol=2e-5)


@each_differentiable
@pytest.mark.parametrize("graph", [False, True], ids=["raw", "graph"])
def test_texts_stay_in_the_dtype_of_the_input(op: Operator, graph: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No text drifts to float64 (F.sqrt(2), g / np.prod(shape)); a cast at the end would hide it."""
    drifted = []
    finished = texts.finished

    def watch(F: Any, op: Operator, name: str, gradient: Any, meta: Any) -> Any:
        if np.dtype(gradient.dtype) != meta[1] and op.name != "cast":
            drifted.append((op.name, name, gradient.dtype, meta[1]))
        return finished(F, op, name, gradient, meta)

    for name, module in list(sys.modules.items()):
        if name.startswith("vardag.") and getattr(module, "finished", None) is finished:
            monkeypatch.setattr(module, "finished", watch)
    for case in connected_cases(op):
        if "dtype" not in op.attributes:
            case.gradients(case.raws(), graph=graph)
    assert not drifted


@each_differentiable
def test_float16_gradients_are_float16(op: Operator) -> None:
    for case in connected_cases(op):
        raws = case.raws(F16)
        wide = case.gradients([x.astype(F32) if x is not None and x.dtype == F16 else x for x in raws])
        for graph in (False, True):
            for g, w in zip(case.gradients(raws, graph=graph), wide, strict=True):
                assert g.dtype == F16
                np.testing.assert_allclose(
                    g.asnumpy().astype(F64), w.asnumpy(), rtol=1e-2, atol=2e-2, err_msg=f"{case} graph={graph}"
                )


@each_differentiable
def test_every_subset_of_needs(op: Operator) -> None:
    for case in connected_cases(op):
        raws, connected = case.raws(), case.connected()
        whole = dict(zip(connected, case.gradients(raws), strict=True))
        for n in range(1, len(connected)):
            for subset in itertools.combinations(connected, n):
                for graph in (False, True) if case.graph_is_raw else (False,):
                    same(case.gradients(raws, wanted=subset, graph=graph), [whole[i] for i in subset])


@each_derived
def test_gradients_are_linear_in_the_head_gradient(op: Operator) -> None:
    for case in connected_cases(op):
        raws = case.raws(F64)
        outputs = floating(case.run(arrays_of(raws)))
        first = case.heads(outputs)
        second = [case.direction(h, f"other {k}") for k, h in enumerate(first)]
        mixed = [3 * a - 2 * b for a, b in zip(first, second, strict=True)]
        a, b, c = ([g.asnumpy() for g in case.gradients(raws, heads=h)] for h in (first, second, mixed))
        for x, y, z in zip(a, b, c, strict=True):
            np.testing.assert_allclose(z, 3 * x - 2 * y, rtol=1e-9, atol=1e-10, err_msg=repr(case))


class Vain:
    """Stands for a kept value; any use of it is an error."""

    __array_ufunc__ = None

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("used")


def texts_of(op: Operator) -> Iterator[Text]:
    yield from {id(t): t for t in (*op.gradients.values(), op.joint) if isinstance(t, Text)}.values()


@each_differentiable
def test_nothing_is_kept_in_vain(op: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array that a text names is one that it fails without, in one of the samples at least."""
    for text in texts_of(op):
        kept = set(text.names) & {*op.inputs, *op.outputs, *op.saves, op.variadic}
        function, vain = text.function, set(kept)
        calls: list[dict[str, Any]] = []

        def watched(F: Any, **named: Any) -> Any:
            calls.append(named)  # noqa: B023
            return function(F, **named)  # noqa: B023

        with monkeypatch.context() as patch, Engine(workers=1, inline=False):  # texts that run, not their programs
            patch.setattr(text, "function", watched)
            for case in connected_cases(op):
                case.gradients(case.raws())
        assert calls or not kept or not op.samples, f"no sample runs the text of {kept}"
        for named, name in itertools.product(calls, kept):
            try:
                function(raw, **{**named, name: Vain()})
            except (TypeError, AttributeError, vd.Error):
                vain.discard(name)
        assert not vain, f"{op.name}: its gradient names {vain} and does not use them"


@pytest.mark.parametrize("op", [op for op in OPERATORS if op.definitions], ids=lambda op: op.name)
def test_definitions_are_what_the_kernel_saves(op: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = op.kernel
    calls: list[tuple[Any, Any]] = []

    def watched(xp: Any, *arrays: Any, **named: Any) -> Any:
        calls.append(([None if x is None else np.array(x) for x in arrays], named))
        return kernel(xp, *arrays, **named)

    monkeypatch.setattr(op, "kernel", watched)
    for case in cases(op):
        case.values(case.arrays(F64))
        arrays, named = calls.pop()
        inputs = dict(zip(op.inputs, arrays, strict=False))
        for name, text in op.definitions.items():
            if named.get(name) is None:
                continue
            defined = text.function(raw, **arguments(text, inputs, named))
            np.testing.assert_allclose(named[name], defined, rtol=1e-9, atol=1e-11, err_msg=f"{case}: {name}")


# ---- engines -------------------------------------------------------------------------------------------------------


def everything() -> dict[str, bytes]:
    """Outputs and gradients of every operator, all pushed before the first is looked at."""
    pending: list[tuple[str, Any]] = []
    for op in OPERATORS:
        for case in cases(op):
            pending += [(f"{case} output {k}", y) for k, y in enumerate(case.run(case.arrays()))]
            if case.connected():
                found = case.gradients(case.raws(), wait=False)
                pending += [(f"{case} gradient {k}", g) for k, g in enumerate(found)]
    return {name: a.asnumpy().tobytes() for name, a in pending}


@pytest.fixture(scope="module")
def serially() -> dict[str, bytes]:
    with Engine(kind="NaiveEngine", inline=False):
        return everything()


@pytest.mark.parametrize("inline", [False, True], ids=["queued", "inline"])
@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("NaiveEngine", None),
        ("ThreadedEnginePerDevice", 1),
        ("ThreadedEnginePerDevice", 2),
        ("ThreadedEnginePerDevice", 8),
        ("ThreadedEnginePooled", 2),
    ],
)
def test_every_engine_gives_the_same_bytes(
    kind: str, workers: int | None, inline: bool, serially: dict[str, bytes]
) -> None:
    with Engine(kind=kind, workers=workers, inline=inline, schedule=11) as engine:
        found = everything()
        statistics = engine.statistics()
    assert [name for name in serially if found[name] != serially[name]] == []
    assert found.keys() == serially.keys()
    if kind == "NaiveEngine":
        assert statistics.by_worker == 0
    elif not inline:
        assert statistics.by_worker > 0 and statistics.inline == 0, "nothing was concurrent"


def test_zero_is_a_gradient_of_its_own() -> None:
    """Flat operators are on the tape: the gradient of what they were made from becomes 0, it is not left as it was."""
    for op in DIFFERENTIABLE:
        if all(op.gradient_of(i) is zero for case in connected_cases(op) for i in case.connected()):
            for case in connected_cases(op):
                for g in case.gradients(case.raws()):
                    assert not g.asnumpy().any(), case
