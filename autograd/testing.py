"""The tests that every operator has to pass, backward; and `check_operator`, which runs all of them.

"Raw" gradients are those of `backward` (texts on raw memory), "graph" gradients those of ``grad(create_graph=True)``
(the same texts on arrays, recorded).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError, Engine, Error
from ..ndarray.array import Array
from ..ndarray.context import cpu
from ..ndarray.dtype import FLOAT32, FLOAT64, is_float
from ..operators import texts
from ..operators.declare import UserOperator
from ..operators.faces import numpy_face
from ..operators.schema import Operator, Sample, Text, registry
from ..operators.testing import (
    FORWARD,
    NARROW,
    Case,
    Check,
    Subject,
    array,
    arrays_of,
    check,
    emptied,
    geometry,
    near,
    numpy_scalars,
    same,
)
from ..operators.texts import arguments, raw
from .backward import backward
from .checking import slope, weighted
from .functional import grad
from .scope import record

BACKWARD: list[Check] = []


def check_operator(
    op: Any, samples: Sequence[Sample] | None = None, reference: Callable[..., Any] | None = None
) -> list[str]:
    """Run the library's own tests of operators on one of yours.

    Parameters
    ----------
    op : what `vardag.operator` gives, or the name of an operator
    samples : sequence of Sample
        Arguments to try: ``Sample(*shapes, low=-1.0, high=1.0, **attributes)``, or arrays in place of shapes.  Default:
        those of the declaration.
    reference : callable
        Its values by NumPy, in float64; default: that of the declaration.  Without one they are not compared.

    They try values; shapes, dtypes and layouts; sizes of zero; `out` that shares memory with inputs; float16 (and
    bfloat16) against float32; gradients against differences, of the first and the second order, in every combination
    of inputs; engines of all kinds, which must give the same bits.

    Gives the names of the tests that it passed.   Sync: blocks.   Raises: AssertionError, with a note that names the
    test and the operator, or what the operator raised; ArgumentError if there are no samples.

    >>> import vardag as vd
    >>> from vardag import testing
    >>> @vd.operator(samples=[testing.Sample((2, 3)), testing.Sample((4,), scale=2.0)])
    ... def scaled_square(xp, x, *, scale=1.0, out):
    ...     xp.multiply(x * x, scale, out=out)
    >>> _ = scaled_square.grad(x=lambda F, g, x, scale: g * x * (2 * scale))
    >>> "second_order_is_the_directional_derivative" in testing.check_operator(scaled_square)
    True
    """
    declaration: Operator = op.declaration if isinstance(op, UserOperator) else op
    if isinstance(op, str) and op in registry:
        declaration = registry[op]
    if not isinstance(declaration, Operator):
        raise ArgumentTypeError(f"[check_operator] {op!r}: an operator, or the name of one, expected")
    samples = declaration.samples if samples is None else samples
    if not samples:
        raise ArgumentError(f"[check_operator] {declaration.name} has no samples: give some")
    subject = Subject(declaration, samples, reference or declaration.reference)
    passed = []
    for one in (*FORWARD, *BACKWARD):
        if one.applies(subject):
            try:
                one.run(subject)
            except Exception as error:
                error.add_note(f"[check_operator] {declaration.name}: {one.name}")
                raise
            passed.append(one.name)
    return passed


# ---- gradients of a case ---------------------------------------------------------------------------------------------


def floating(outputs: Sequence[Any]) -> list[Any]:
    """Floating-point outputs; if there are none, the outputs converted (they are on the tape, with gradient 0)."""
    found = [y for y in outputs if is_float(y.dtype)]
    return found or [numpy_face.cast(y, dtype="float64") for y in outputs]


def heads_of(case: Case, outputs: Sequence[Any]) -> list[Any]:
    """Random head gradients."""
    return [np.asarray(case.rng(f"head {i}").standard_normal(y.shape)).astype(y.dtype) for i, y in enumerate(outputs)]


def gradients(
    case: Case,
    raws: Sequence[Any],
    *,
    wanted: Sequence[int] | None = None,
    graph: bool = False,
    heads: Sequence[Any] | None = None,
    wait: bool = True,
) -> list[Any]:
    """The gradients of the outputs, weighted by `heads`, with respect to the wanted inputs."""
    wanted = case.connected() if wanted is None else wanted
    inputs = arrays_of(raws)
    for i in wanted:
        inputs[i].attach_grad()
        inputs[i].grad[...] = 77  # an untouched gradient is seen
    with record():
        outputs = floating(case.run(inputs))
    given = [array(h) for h in (heads_of(case, outputs) if heads is None else heads)]
    if graph:
        return list(grad(outputs, [inputs[i] for i in wanted], given, create_graph=True))
    backward(outputs, given, wait=wait)
    return [inputs[i].grad for i in wanted]


def differentiable(subject: Subject) -> Any:
    """Do gradients flow to some input?"""
    return subject.connected


def derived(subject: Subject) -> Any:
    """Are its gradients derivatives?  `defined` ones are definitions: differences say nothing about them, linearity in
    the head gradient neither, and there is no second order to compare with."""
    return subject.connected and not subject.op.defined


def graph_is_raw(subject: Subject) -> bool:
    """Whether the two runners do the same arithmetic: a definition recomputes what the kernel saved."""
    return not subject.op.definitions


# ---- derivatives -----------------------------------------------------------------------------------------------------


def compare_derivative(
    f: Callable[[list[Any]], float], at: Sequence[Any], position: int, gradient: Array, v: Any, what: str
) -> None:
    """<gradient, v> is the derivative of f along v in one of its arguments, by differences."""

    def moved(t: float) -> float:
        values = list(at)
        values[position] = values[position] + t * v
        return f(values)

    assert (gradient.shape, gradient.dtype) == (at[position].shape, FLOAT64), what
    found, known = float((gradient.asnumpy() * v).sum()), slope(moved)
    assert known.smooth, f"{what}: differences of two steps disagree, so the sample is at a kink or too near to one"
    assert known.near(found), f"{what}: {found} against {known.value} by differences"


@check(BACKWARD, derived)
def the_gradient_is_the_directional_derivative(subject: Subject) -> None:
    """In float64, at the samples' values."""
    for case in subject.connected:
        raws = case.raws(FLOAT64)
        heads = heads_of(case, floating(case.run(arrays_of(raws))))

        def f(values: list[Any], case: Case = case, heads: Sequence[Any] = heads) -> float:
            return weighted(floating(case.run(arrays_of(values))), heads)

        for i, gradient in zip(case.connected(), gradients(case, raws, heads=heads), strict=True):
            if case.smooth(i):
                v = case.direction(raws[i], f"direction {i}")
                compare_derivative(f, raws, i, gradient, v, f"{case} along input {i}")


@check(BACKWARD, derived)
def second_order_is_the_directional_derivative(subject: Subject) -> None:
    """The derivatives of <gradients, u> along every input and every head gradient."""
    for case in subject.connected:
        second_order(case)


def second_order(case: Case) -> None:
    """Of one case."""
    raws, connected = case.raws(FLOAT64), case.connected()
    inputs = arrays_of(raws)
    raw_heads = heads_of(case, floating(case.run(inputs)))
    heads = arrays_of(raw_heads)
    marked = [inputs[i] for i in connected]
    one = array(np.ones(()))
    for x in (*marked, *heads, one):
        x.attach_grad()
    with record():
        outputs = floating(case.run(inputs))
        # times one: on the tape even where a gradient depends on nothing
        found = [g * one for g in grad(outputs, marked, heads, create_graph=True)]
    us = [case.direction(g.asnumpy(), f"second {k}") for k, g in enumerate(found)]
    backward(found, arrays_of(us))
    n = len(raws)

    def f(values: list[Any]) -> float:
        return weighted(gradients(case, values[:n], heads=values[n:]), us)

    for i, x in [(i, inputs[i]) for i in connected if case.smooth(i)] + [
        (n + k, h) for k, h in enumerate(heads) if h.dtype == FLOAT64
    ]:
        v = case.direction(x.asnumpy(), f"third {i}")
        compare_derivative(f, [*raws, *raw_heads], i, x.grad, v, f"{case} second order along {i}")


@check(BACKWARD, derived)
def gradients_are_linear_in_the_head_gradient(subject: Subject) -> None:
    """3 a - 2 b gives three times the gradient of a less twice that of b."""
    for case in subject.connected:
        raws = case.raws(FLOAT64)
        first = heads_of(case, floating(case.run(arrays_of(raws))))
        second = [case.direction(h, f"other {k}") for k, h in enumerate(first)]
        mixed = [3 * a - 2 * b for a, b in zip(first, second, strict=True)]
        a, b, c = ([g.asnumpy() for g in gradients(case, raws, heads=h)] for h in (first, second, mixed))
        for x, y, z in zip(a, b, c, strict=True):
            near(z, 3 * x - 2 * y, 1e-9, 1e-10, case)


# ---- the same in every way -------------------------------------------------------------------------------------------


@check(BACKWARD, differentiable)
def planned_gradients_are_the_same(subject: Subject) -> None:
    """The third backward of a graph goes by a plan: see plans.py."""
    for case in subject.connected:
        raws = case.raws()
        with Engine(workers=1, inline=False):
            expected = [x.asnumpy() for x in gradients(case, raws)]
        with Engine(workers=1):
            for _ in range(3):
                same(gradients(case, raws), expected)


@check(BACKWARD, differentiable)
def raw_gradients_are_graph_gradients(subject: Subject) -> None:
    """Bit for bit, but where a definition recomputes what the kernel saved."""
    for case in subject.connected:
        raws = case.raws()
        found, recorded = gradients(case, raws), gradients(case, raws, graph=True)
        if graph_is_raw(subject):
            same(found, recorded)
        else:
            for a, b in zip(found, recorded, strict=True):
                assert a.dtype == b.dtype, case
                near(a.asnumpy(), b.asnumpy(), 2e-5, 2e-5, case)


@check(BACKWARD, differentiable)
def every_subset_of_inputs_gives_the_same(subject: Subject) -> None:
    """Whatever other gradients are wanted."""
    for case in subject.connected:
        raws, connected = case.raws(), case.connected()
        whole = dict(zip(connected, gradients(case, raws), strict=True))
        for n in range(1, len(connected)):
            for subset in itertools.combinations(connected, n):
                for graph in (False, True) if graph_is_raw(subject) else (False,):
                    same(gradients(case, raws, wanted=subset, graph=graph), [whole[i] for i in subset])


@check(BACKWARD)
def every_engine_gives_the_same_bytes(subject: Subject) -> None:
    """Serial and threaded, within the push and queued."""
    expected: list[bytes] | None = None
    for kind, inline in itertools.product(("NaiveEngine", "ThreadedEnginePooled"), (False, True)):
        with Engine(kind=kind, inline=inline):
            pending: list[Any] = []
            for case in subject.cases:
                pending += case.run(case.arrays())
                if case.connected():
                    pending += gradients(case, case.raws(), wait=False)
            found = [x.asnumpy().tobytes() for x in pending]
        assert expected is None or found == expected, f"{kind}, inline={inline}"
        expected = found


# ---- inputs, attributes, dtypes --------------------------------------------------------------------------------------


@check(BACKWARD)
def inputs_are_untouched(subject: Subject) -> None:
    """But for those that it is declared to change."""
    for case in subject.cases:
        raws = case.raws()
        inputs = arrays_of(raws)
        for i in case.connected():
            inputs[i].attach_grad()
        with record():
            outputs = floating(case.run(inputs))
        if case.connected():
            backward(outputs)
        kept = [i for i, x in enumerate(raws) if x is not None and case.name(i) not in subject.op.updates]
        same([inputs[i] for i in kept], [raws[i] for i in kept])


@check(BACKWARD, lambda subject: not geometry(subject))
def gradients_of_no_elements_have_their_shape(subject: Subject) -> None:
    """Where an axis of length 0 is not refused."""
    for case, empty, _ in emptied(subject):
        if case.connected():
            for g, i in zip(gradients(case, empty), case.connected(), strict=True):
                assert g.asnumpy().shape == empty[i].shape, case


@check(BACKWARD, lambda subject: any(case.attributes for case in subject.cases))
def attributes_may_be_numpy_scalars(subject: Subject) -> None:
    """As code that computes them with NumPy would pass them."""
    for case in subject.cases:
        raws, connected = case.raws(), case.connected()
        expected = case.values(arrays_of(raws))
        expected_gradients = gradients(case, raws) if connected else []
        given = case.attributes
        case.attributes = {name: numpy_scalars(value) for name, value in given.items()}
        same(case.values(arrays_of(raws)), expected)
        same(gradients(case, raws) if connected else [], expected_gradients)
        case.attributes = given


@check(BACKWARD, lambda subject: subject.connected and "dtype" not in subject.op.attributes)
def texts_stay_in_the_dtype_of_the_input(subject: Subject) -> None:
    """No text drifts to float64 (F.sqrt(2), g / np.prod(shape)); a cast at the end would hide it."""
    drifted = []
    finished = texts.finished

    def watch(F: Any, op: Operator, name: str, gradient: Any, meta: Any) -> Any:
        if np.dtype(gradient.dtype) != meta[1] and op.name != "cast":
            drifted.append((op.name, name, gradient.dtype, meta[1]))
        return finished(F, op, name, gradient, meta)

    users = [m for name, m in list(sys.modules.items()) if name.startswith(__package__.split(".")[0] + ".")]
    patches = [patch.object(m, "finished", watch) for m in users if getattr(m, "finished", None) is finished]
    for one in patches:
        one.start()
    try:
        for case, graph in itertools.product(subject.connected, (False, True)):
            gradients(case, case.raws(), graph=graph)
    finally:
        for one in patches:
            one.stop()
    assert not drifted, drifted


@check(BACKWARD, differentiable)
def gradients_of_16_bits_are_near_float32s(subject: Subject) -> None:
    """And of 16 bits."""
    for case, (dtype, _, tolerance) in itertools.product(subject.connected, NARROW):
        raws = case.raws(dtype)
        wide = gradients(case, [x.astype(FLOAT32) if x is not None and x.dtype == dtype else x for x in raws])
        for graph in (False, True):
            for g, w in zip(gradients(case, raws, graph=graph), wide, strict=True):
                assert g.dtype == dtype, case
                near(g.asnumpy(), w.asnumpy(), tolerance, 2 * tolerance, f"{case} graph={graph}")


# ---- what the tape keeps ---------------------------------------------------------------------------------------------


class Vain:
    """Stands for a kept value; any use of it is an error."""

    __array_ufunc__ = None

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("used")


def texts_of(op: Operator) -> Iterator[Text]:
    """The gradient texts of an operator, each once."""
    yield from {id(t): t for t in (*op.gradients.values(), op.joint) if isinstance(t, Text)}.values()


@check(BACKWARD, differentiable)
def nothing_is_kept_in_vain(subject: Subject) -> None:
    """Every array that a text names is one that it fails without, in one of the samples at least."""
    op = subject.op
    for text in texts_of(op):
        kept = set(text.names) & {*op.inputs, *op.outputs, *op.saves, op.variadic}
        function, vain = text.function, set(kept)
        calls: list[dict[str, Any]] = []

        def watched(F: Any, _calls: list[Any] = calls, _function: Any = function, **named: Any) -> Any:
            _calls.append(named)
            return _function(F, **named)

        # texts that run, not programs, on arrays that can be computed with outside of operations
        with patch.object(text, "function", watched), Engine(workers=1, inline=False), cpu():
            for case in subject.connected:
                gradients(case, case.raws())
        assert calls or not kept, f"no sample runs the text of {kept}"
        for named, name in itertools.product(calls, kept):
            try:
                function(raw, **{**named, name: Vain()})
            except (TypeError, AttributeError, Error):
                vain.discard(name)
        assert not vain, f"{op.name}: its gradient names {vain} and does not use them"


@check(BACKWARD, lambda subject: subject.op.definitions)
def definitions_are_what_the_kernel_saves(subject: Subject) -> None:
    """Saved outputs against the texts that define them, in float64."""
    op, kernel = subject.op, subject.op.kernel
    calls: list[tuple[Any, Any]] = []

    def watched(xp: Any, *arrays: Any, **named: Any) -> Any:
        calls.append(([None if x is None else np.array(x) for x in arrays], named))
        return kernel(xp, *arrays, **named)

    with patch.object(op, "kernel", watched):
        for case in subject.cases:
            case.values(case.arrays(FLOAT64))
            arrays, named = calls.pop()
            inputs = dict(zip(op.inputs, arrays, strict=False))
            for name, text in op.definitions.items():
                if named.get(name) is not None:
                    defined = text.function(raw, **arguments(text, inputs, named))
                    near(named[name], defined, 1e-9, 1e-11, f"{case}: {name}")
