"""Every operator of the registry, tested by being declared: values, shapes, gradients, aliasing, engines.

The checks are those of operators/testing.py and autograd/testing.py, which users run by ``vd.testing.check_operator``.
Random values come from a seed made of the operator's name and the sample's number, so a failure repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import special

from vardag.autograd import plans
from vardag.autograd.testing import BACKWARD, gradients
from vardag.engine import Engine
from vardag.operators import registry
from vardag.operators.schema import Operator, Sample, zero
from vardag.operators.testing import FORWARD, Check, Subject

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
    "dot": "BLAS has kernels for either order; on some processors their last bits differ",
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


# ---- the checks ------------------------------------------------------------------------------------------------------


def samples_of(op: Operator) -> Sequence[Sample]:
    return op.samples or MORE_SAMPLES.get(op.name, ())


def reference_of(op: Operator) -> Callable[..., Any] | None:
    return op.reference or MORE_REFERENCES.get(op.name)


SUBJECTS = [
    Subject(op, samples_of(op), reference_of(op), layout_bits=op.name in LAYOUT_BITS, nd=op.name not in ND_MEANS_ELSE)
    for op in registry
    if samples_of(op)
]
DIFFERENTIABLE = [subject for subject in SUBJECTS if subject.connected]


@pytest.mark.parametrize(
    ("check", "subject"),
    [
        pytest.param(check, subject, id=f"{check.name}-{subject.op.name}")
        for check in (*FORWARD, *BACKWARD)
        for subject in SUBJECTS
        if check.applies(subject) and check.name != "every_engine_gives_the_same_bytes"  # below, with more of them
    ],
)
def test_operator(check: Check, subject: Subject) -> None:
    check.run(subject)


def test_every_operator_is_tested_or_excused() -> None:
    without = {op.name for op in registry if not samples_of(op)}
    assert not without - set(UNSAMPLED), "give it samples, or name it in UNSAMPLED with the reason"
    assert {op.name for op in registry} >= set(UNSAMPLED) | set(MORE_SAMPLES)


def test_every_operator_has_a_reference_or_is_excused() -> None:
    """A random operator has none; one with a `variant` is another operator under an attribute."""
    without = {s.op.name for s in SUBJECTS if s.reference is None and not s.op.random and not s.op.variant}
    assert not without - set(UNREFERENCED), "give it a reference, or name it in UNREFERENCED with the reason"
    assert {op.name for op in registry} >= set(UNREFERENCED) | set(MORE_REFERENCES)


def test_most_operators_can_be_planned() -> None:
    """Of these no text looks at a value."""
    without = set()
    with Engine(workers=1):
        for subject in DIFFERENTIABLE:
            for case in subject.connected:
                plans._plans.clear()
                for _ in range(2):
                    gradients(case, case.raws())
                if plans.NONE in plans._plans.values():
                    without.add(subject.op.name)
    assert sorted(without) == []


# ---- engines -------------------------------------------------------------------------------------------------------


def everything() -> dict[str, bytes]:
    """Outputs and gradients of every operator, all pushed before the first is looked at."""
    pending: list[tuple[str, Any]] = []
    for subject in SUBJECTS:
        for case in subject.cases:
            pending += [(f"{case} output {k}", y) for k, y in enumerate(case.run(case.arrays()))]
            if case.connected():
                found = gradients(case, case.raws(), wait=False)
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
    for subject in DIFFERENTIABLE:
        if all(subject.op.gradient_of(i) is zero for case in subject.connected for i in case.connected()):
            for case in subject.connected:
                for g in gradients(case, case.raws()):
                    assert not g.asnumpy().any(), case
