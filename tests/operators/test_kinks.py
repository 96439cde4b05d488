"""What gradients are where there is no derivative: each declaration says it, and it is as in MXNet.

The values are MXNet's answers to `mxnet_shapes.kinks`, compared by test_mxnet_operators.py, which names the few that
differ on purpose.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.operators import registry
from vardag.operators.schema import Text
from vardag.operators.signatures import gradient

#: what a gradient text with a kink uses
SWITCHES = {"sign", "where", "greater", "greater_equal", "less", "less_equal", "equal", "maximum", "minimum", "clip"}

#: operators whose gradient texts use these for something else
SMOOTH = {
    "where": "the condition is an operand",
    "put_at": "chooses by places, not by values",
    "contrib_box_nms": "chooses boxes; their order is flat",
    "ctc_backward": "chooses places of the label",
    "sample_multinomial_prob": "chooses by the index drawn",
    "softmax_cross_entropy": "compares labels",
    "SoftmaxOutput": "compares labels",
    "MakeLoss": "its gradient is a definition",
}
#: what the issue names
NAMED = ("abs", "relu", "norm", "max", "min", "prod", "clip")


def used(function: Callable[..., Any], seen: set[Any]) -> set[str]:
    """The names that a text uses, and those of the functions of this package that it calls."""
    code = getattr(function, "__code__", None)
    if code is None or code in seen:
        return set()
    seen.add(code)
    found = set(code.co_names)
    for constant in code.co_consts:
        found |= set(getattr(constant, "co_names", ()))
    called = [function.__globals__.get(name) for name in code.co_names]
    called += [cell.cell_contents for cell in function.__closure__ or ()]
    for other in called:
        if inspect.isfunction(other) and other.__module__.startswith("vardag.operators"):
            found |= used(other, seen)
    return found


def switching() -> Iterator[Any]:
    """Operators whose gradients are made of parts."""
    for op in registry:
        texts = [text for text in op.gradients.values() if isinstance(text, Text)]
        texts += [op.joint] if op.joint is not None else []
        if any(used(text.function, set()) & SWITCHES for text in texts):
            yield op


def test_a_declaration_says_what_the_gradient_is_at_its_kinks() -> None:
    without = {op.name for op in switching() if not op.kinks}
    assert without - set(SMOOTH) == set(), "declare kinks=, or name it in SMOOTH with the reason"
    assert set(SMOOTH) <= without
    for name in NAMED:
        assert registry[name].kinks


def test_help_shows_it() -> None:
    for op in registry:
        if op.kinks:
            assert f"Kinks: {op.kinks}." in op.doc
            assert gradient(op) != "none"
            function = getattr(nd, op.name, None)
            if op.nd and function is not None:
                assert op.kinks in function.__doc__


def slopes(function: Any, *values: Any) -> list[Any]:
    """The gradients of the sum."""
    arrays = [nd.array(v) for v in values]
    for x in arrays:
        x.attach_grad()
    with autograd.record():
        y = function(*arrays)
    y.backward()
    return [x.grad.asnumpy().tolist() for x in arrays]


@pytest.mark.parametrize(
    ("function", "values", "expected"),
    [
        (nd.abs, [[0.0]], [[0]]),
        (nd.relu, [[0.0]], [[0]]),
        (lambda x: nd.LeakyReLU(x, act_type="leaky", slope=0.25), [[0.0]], [[0.25]]),
        (lambda x: nd.clip(x, -1, 1), [[-2.0, -1, 1, 2]], [[0, 1, 1, 0]]),
        (nd.max, [[3.0, 1, 3]], [[1, 0, 1]]),
        (nd.min, [[3.0, 1, 1]], [[0, 1, 1]]),
        (nd.prod, [[2.0, 0, 3]], [[0, 6, 0]]),
        (nd.prod, [[2.0, 0, 0]], [[0, 0, 0]]),
        (nd.norm, [[0.0, 0]], [[0, 0]]),
        (lambda x: nd.norm(x, ord=1), [[0.0, -2]], [[0, -1]]),
        (nd.maximum, [[1.0, 2], [1.0, 3]], [[1, 0], [0, 1]]),
        (nd.minimum, [[1.0, 2], [1.0, 3]], [[1, 1], [0, 0]]),
        (lambda x: nd.hard_sigmoid(x, alpha=0.5, beta=0.5), [[-1.0, 0, 1]], [[0, 0.5, 0]]),
        (nd.sqrt, [[0.0]], [[np.inf]]),
        (lambda x: nd.Pooling(x, kernel=(2,), pool_type="max"), [[[[1.0, 1]]]], [[[[1, 0]]]]),
        (nd.MAERegressionOutput, [[[1.0]], [[1.0]]], [[[-1]], [[0]]]),
        (lambda x: nd.smooth_l1(x, scalar=1.0), [[-1.0, 1]], [[-1, 1]]),
        (lambda x, y: nd.contrib.index_copy(x, nd.array([1, 1]), y), [[1.0, 2], [3.0, 4]], [[1, 0], [1, 1]]),
    ],
)  # fmt: skip
def test_the_gradients_that_are_named(function: Any, values: Any, expected: Any) -> None:
    assert slopes(function, *values) == expected
