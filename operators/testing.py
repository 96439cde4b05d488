"""The tests that every operator has to pass, forward: values, dtypes, layouts, sizes, memory.

A `Case` is an operator with one sample of arguments.  A check takes a `Subject`, an operator with all of its cases, and
raises AssertionError.  Those about gradients are in autograd/testing.py, where `check_operator` runs all of them.
"""

from __future__ import annotations

import itertools
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from ..engine import Error
from ..ndarray.array import Array
from ..ndarray.dtype import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, is_float
from ..ndarray.line import Scope, scope, within
from ..ndarray.ndarray import NDArray
from ..ndarray.random import seed
from .faces import nd_function, numpy_face
from .schema import Operator, Sample, zero


class Narrow(NamedTuple):
    """Floats of 16 bits: the tolerance for a result that is rounded once, and for a gradient."""

    dtype: Any
    result: float
    gradient: float


NARROW = [Narrow(FLOAT16, 2e-3, 1e-2), *([] if BFLOAT16 is None else [Narrow(BFLOAT16, 1e-2, 8e-2)])]


class Case:
    """One operator with one of its samples."""

    def __init__(self, op: Operator, number: int, sample: Sample) -> None:
        self.op, self.number, self.sample = op, number, sample
        self.attributes = dict(sample.attributes)
        self.call: Callable[..., Any] = getattr(numpy_face, op.name)

    def __repr__(self) -> str:
        return f"{self.op.name}[{self.number}]"

    def rng(self, purpose: str = "") -> np.random.Generator:
        """Random numbers that are the same every time."""
        return np.random.default_rng(zlib.crc32(f"{self.op.name}/{self.number}/{purpose}".encode()))

    def name(self, i: int) -> str:
        """The name of an input."""
        return self.op.input_name(i)

    def raws(self, dtype: Any = FLOAT32, purpose: str = "values") -> list[Any]:
        """The inputs as NumPy arrays: random ones for shapes, given ones as they are (indices) or cast."""
        rng = self.rng(purpose)
        found: list[Any] = []
        for i, given in enumerate(self.sample.inputs):
            if given is None:
                found.append(None)
            elif isinstance(given, np.ndarray):
                keep = self.name(i) in self.op.indices and given.dtype.kind != "f"
                found.append(np.array(given) if keep else given.astype(dtype))
            else:
                found.append(np.asarray(rng.uniform(self.sample.low, self.sample.high, given)).astype(dtype))
        return found

    def arrays(self, dtype: Any = FLOAT32) -> list[Any]:
        """The inputs as arrays."""
        return arrays_of(self.raws(dtype))

    def run(self, inputs: Sequence[Any], **more: Any) -> list[Any]:
        """The outputs; random operators draw the same numbers every time, in training mode."""
        seed(7)
        old = scope.get()
        training = Scope(old.recorder, True, old.paused)
        result = within(training, lambda: self.call(*inputs, **{**self.attributes, **more}))
        return [result] if isinstance(result, Array) else list(result)

    def values(self, inputs: Sequence[Any], **more: Any) -> list[Any]:
        """The outputs as NumPy arrays."""
        return [y.asnumpy() for y in self.run(inputs, **more)]

    def connected(self) -> list[int]:
        """The positions of inputs that gradients flow to."""
        return [
            i
            for i, x in enumerate(self.raws())
            if x is not None and is_float(x.dtype) and self.op.gradient_of(i) is not None
            and self.name(i) not in self.op.updates
        ]  # fmt: skip

    def smooth(self, i: int) -> bool:
        """Whether differences say something: not at given values of an operator that is flat between them (indices)."""
        return self.op.gradient_of(i) is not zero or not isinstance(self.sample.inputs[i], np.ndarray)

    def direction(self, like: Any, purpose: str) -> Any:
        """A random array of this shape and dtype."""
        return np.asarray(self.rng(purpose).standard_normal(like.shape)).astype(like.dtype)


class Subject:
    """An operator with its samples, and what is known of it.

    `reference`: its values by NumPy, in float64, or None.   `layout_bits`: whether its last bits may depend on the
    layout of its operands.   `nd`: whether the nd face means the same by the samples.
    """

    def __init__(
        self, op: Operator, samples: Sequence[Sample], reference: Any, *, layout_bits: bool = False, nd: bool = True
    ) -> None:
        self.op, self.reference, self.layout_bits, self.nd = op, reference, layout_bits, nd
        self.cases = [Case(op, i, sample) for i, sample in enumerate(samples)]
        self.connected = [case for case in self.cases if case.connected()]


@dataclass(frozen=True)
class Check:
    """One of the tests.   `applies`: to which subjects."""

    name: str
    applies: Callable[[Subject], Any]
    run: Callable[[Subject], None]


def check(checks: list[Check], applies: Callable[[Subject], Any] = bool) -> Callable[[Any], Any]:
    """Declare a check."""

    def declare(run: Callable[[Subject], None]) -> Callable[[Subject], None]:
        checks.append(Check(run.__name__, applies, run))
        return run

    return declare


FORWARD: list[Check] = []


def array(raw: Any) -> Array:
    """A canonical array with a copy of this value."""
    return Array._from_host(np.array(raw, order="C"))


def arrays_of(raws: Sequence[Any]) -> list[Any]:
    """Canonical arrays with copies of these values."""
    return [None if x is None else array(x) for x in raws]


def same(a: Sequence[Any], b: Sequence[Any]) -> None:
    """Equal bit for bit, dtype for dtype, shape for shape."""
    for pair in zip(a, b, strict=True):
        x, y = (v.asnumpy() if isinstance(v, Array) else v for v in pair)
        assert (x.dtype, x.shape) == (y.dtype, y.shape), f"{x.dtype}{x.shape} against {y.dtype}{y.shape}"
        assert x.tobytes() == y.tobytes(), f"{x} != {y}"


def near(a: Any, b: Any, rtol: float, atol: float, what: Any) -> None:
    """Equal within tolerances."""
    np.testing.assert_allclose(np.asarray(a, FLOAT64), np.asarray(b, FLOAT64), rtol=rtol, atol=atol, err_msg=str(what))


# ---- values ----------------------------------------------------------------------------------------------------------


@check(FORWARD, lambda subject: subject.reference)
def the_value_is_the_reference(subject: Subject) -> None:
    """In float64."""
    for case in subject.cases:
        raws = case.raws(FLOAT64)
        with np.errstate(all="ignore"):
            wanted = subject.reference(*(None if x is None else x.copy() for x in raws), **case.attributes)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        outputs = case.values(arrays_of(raws))
        assert len(outputs) == len(wanted), case
        for y, w in zip(outputs, wanted, strict=True):
            assert y.shape == np.shape(w), case
            near(y, w, 1e-11, 1e-12, case)


@check(FORWARD)
def metadata_is_known_at_the_call_and_dtypes_stay(subject: Subject) -> None:
    """Of floats of all sizes."""
    for case in subject.cases:
        for dtype in (FLOAT32, FLOAT64, *(narrow.dtype for narrow in NARROW)):
            for y in case.run(case.arrays(dtype)):
                value = y.asnumpy()
                assert (y.shape, y.dtype) == (value.shape, value.dtype), case
                if "dtype" not in subject.op.attributes and is_float(y.dtype):
                    assert y.dtype == dtype, f"{case}: {dtype} gives {y.dtype}"


@check(FORWARD, lambda subject: subject.nd and subject.op.nd is not False)
def the_nd_face_gives_the_same_in_its_own_form(subject: Subject) -> None:
    """Of float32 operands: NDArrays, (1,) instead of (), stored in float32 unless the rule says otherwise."""
    function = nd_function(subject.op)
    for case in subject.cases:
        expected = case.values(case.arrays())
        case.call = function
        outputs = case.run([None if x is None else NDArray._from_host(np.array(x)) for x in case.raws()])
        case.call = getattr(numpy_face, subject.op.name)
        assert len(outputs) == len(expected), case
        for y, e in zip(outputs, expected, strict=True):
            assert type(y) is NDArray and y.shape == (e.shape or (1,)), case
            near(y.asnumpy(), e.reshape(y.shape), 1e-6, 0, case)


@check(FORWARD)
def floats_of_16_bits_are_float32_rounded(subject: Subject) -> None:
    """They are widened at the border: the result is that of float32, rounded once."""
    for case, (dtype, tolerance, _) in itertools.product(subject.cases, NARROW):
        halves = case.raws(dtype)
        wide = [x.astype(FLOAT32) if x is not None and x.dtype == dtype else x for x in halves]
        for y, w in zip(case.values(arrays_of(halves)), case.values(arrays_of(wide)), strict=True):
            assert is_float(y.dtype) == is_float(w.dtype), case
            near(y, w, tolerance, tolerance, case)


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


# ---- memory ----------------------------------------------------------------------------------------------------------


def has_kernel(subject: Subject) -> bool:
    """Is it done by a kernel of its own?"""
    return subject.op.ufunc is None and subject.op.variant is None


@check(FORWARD, has_kernel)
def kernels_do_not_write_to_their_inputs(subject: Subject) -> None:
    """Gradient texts always get read-only arrays; kernels get them here."""
    op, kernel, called = subject.op, subject.op.kernel, []

    def guarded(xp: Any, *arrays: Any, **named: Any) -> Any:
        given = [x.view() if isinstance(x, np.ndarray) else x for x in arrays]
        for i, x in enumerate(given):
            if isinstance(x, np.ndarray):
                x.flags.writeable = op.input_name(i) in op.updates
        called.append(True)
        return kernel(xp, *given, **named)

    for case in subject.cases:
        expected = case.values(arrays_of(case.raws()))
        with patch.object(op, "kernel", guarded):
            same(case.values([None if x is None else offset(x) for x in case.raws()]), expected)
        assert called or op.alias, case


def offset(x: Any) -> Array:
    """The same value as a view with an offset: no operator may share its buffer."""
    base = array(np.concatenate([np.zeros(1, x.dtype), x.ravel()]))
    return base[1:].reshape(x.shape)


def transposed(x: Any) -> Array:
    """The same value in Fortran's order."""
    return array(x.T).T


def stepped(x: Any) -> Array:
    """Every second element of the last axis of a larger array, backwards."""
    if not x.ndim:
        return offset(x)
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1] + 1), 55).astype(x.dtype)
    wide[..., 1::2] = x[..., ::-1]
    return array(wide)[..., -2::-2] if x.shape[-1] else array(x)


@check(FORWARD)
def the_layout_of_inputs_does_not_matter(subject: Subject) -> None:
    """Views with offsets, transposed, with negative steps."""
    for case, layout in itertools.product(subject.cases, (offset, transposed, stepped)):
        raws = case.raws()
        expected = case.values(arrays_of(raws))
        views = [None if x is None else layout(x) for x in raws]
        same([v for v in views if v is not None], [x for x in raws if x is not None])
        found = case.values(views)
        if subject.layout_bits:
            for y, w in zip(found, expected, strict=True):
                near(y, w, 1e-5, 1e-6, case)
        else:
            same(found, expected)


def geometry(subject: Subject) -> Any:
    """Is it about parts that fit together, so that none can be empty alone?"""
    return "strides" in subject.op.attributes or "indptr" in subject.op.inputs


def emptied(subject: Subject) -> Iterator[tuple[Case, list[Any], list[Any]]]:
    """(case, inputs with an axis of length 0, outputs), where the operator does not refuse them at the call."""
    for case in subject.cases:
        raws = case.raws()
        for n in sorted({n for x in raws if x is not None for n in x.shape if n}):
            empty = [None if x is None else x[tuple(slice(0 if m == n else None) for m in x.shape)] for x in raws]
            try:
                yield case, empty, case.run(arrays_of(empty))
            except Error:
                continue


@check(FORWARD, lambda subject: not geometry(subject))
def sizes_of_zero(subject: Subject) -> None:
    """The operator refuses them at the call, or works, as NumPy where there is a reference."""
    worked = 0
    for case, empty, outputs in emptied(subject):
        worked += 1
        for y in outputs:
            assert y.asnumpy().shape == y.shape, case
        if subject.reference is None:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                wanted = subject.reference(*empty, **case.attributes)
        except (ValueError, IndexError):
            continue  # NumPy refuses it; a value of ours is not wrong
        shapes = [np.shape(w) for w in (wanted if isinstance(wanted, tuple) else (wanted,))]
        assert [y.shape for y in outputs] == shapes, case
    assert worked or not subject.op.elementwise


def identical_memory(x: Any, out: tuple[int, ...]) -> tuple[Array, Array] | None:
    """(input, out): the same array."""
    whole = array(x)
    return (whole, whole) if x.shape == out else None


def shifted_memory(x: Any, out: tuple[int, ...]) -> tuple[Array, Array] | None:
    """(input, out): out begins one element later."""
    n, m = x.size, int(np.prod(out))
    base = array(np.zeros(max(n, m + 1), x.dtype))
    first = base[:n].reshape(x.shape)
    first[...] = x
    return first, base[1 : m + 1].reshape(out)


def transposed_memory(x: Any, out: tuple[int, ...]) -> tuple[Array, Array] | None:
    """(input, out): parts of a matrix and of its transpose."""
    if x.ndim != 2 or len(out) != 2:
        return None
    n = max(*x.shape, *out)
    base = array(np.zeros((n, n), x.dtype))
    first = base[: x.shape[0], : x.shape[1]]
    first[...] = x
    return first, base.T[: out[0], : out[1]]


@check(FORWARD)
def out_may_be_an_input(subject: Subject) -> None:
    """Whatever memory `out` and an input share, the result is that with memory of its own."""
    overlaps = (identical_memory, shifted_memory, transposed_memory)
    for case, overlap in itertools.product(subject.cases, overlaps):
        raws = case.raws()
        expected = case.values(arrays_of(raws))
        for (i, x), (k, y) in itertools.product(enumerate(raws), enumerate(expected)):
            if x is None or case.name(i) in subject.op.updates or x.dtype != y.dtype:
                continue
            pair = overlap(x, y.shape)
            if pair is None:
                continue
            inputs = arrays_of(raws)
            inputs[i], target = pair
            outs: list[Any] = [None] * len(expected)
            outs[k] = target
            got = case.run(inputs, out=target if len(expected) == 1 else outs)
            assert got[k] is target, case
            same(got, expected)
