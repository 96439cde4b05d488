"""`vd.testing.check_operator` finds what is wrong with an operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag.engine import ArgumentError, ArgumentTypeError
from vardag.testing import Sample

SAMPLES = [Sample((2, 3), (2, 3)), Sample((2, 3), (3,), power=3)]


def declared(kernel: Any = None, x: Any = None, y: Any = None, **options: Any) -> Any:
    """x**power * y, or what is wrong with it."""

    def product(xp, x, y, *, power=2, out):
        xp.multiply(x**power, y, out=out)

    op = vd.operator(kernel or product, name="checked", **{"samples": SAMPLES, **options})
    return op.grad(
        x=x or (lambda F, g, x, y, power: g * y * x ** (power - 1) * power),
        y=y or (lambda F, g, x, power: g * x**power),
    )


def test_a_right_one_passes_everything() -> None:
    passed = vd.testing.check_operator(declared(), reference=lambda x, y, power=2: x**power * y)
    assert len(passed) > 20
    assert "the_value_is_the_reference" in passed
    assert "second_order_is_the_directional_derivative" in passed


def test_the_library_s_own_by_name() -> None:
    assert "the_value_is_the_reference" in vd.testing.check_operator("tanh")


def writes_to_its_input(xp, x, y, *, power=2, out):
    x **= power
    xp.multiply(x, y, out=out)


def looks_at_the_layout(xp, x, y, *, power=2, out):
    xp.multiply(x**power, y, out=out)
    out += 0 if x.base is None else 1


def wrong_dtype(metas, attributes):
    return ((np.broadcast_shapes(*(m[0] for m in metas)), np.dtype("float64")),), attributes


def random_bits(xp, x, y, *, power=2, out):
    xp.multiply(x**power, y, out=out)
    out += np.random.default_rng().uniform(0, 1e-6, out.shape)


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        ({"x": lambda F, g, x, y, power: g * y * x ** (power - 1)}, "the_gradient_is_the_directional_derivative"),
        ({"y": lambda F, g, x, power: g * g * x**power}, "the_gradient_is_the_directional_derivative"),
        ({"y": lambda F, g, x, y, power: g * x**power}, "nothing_is_kept_in_vain"),
        ({"y": lambda F, g, x, power: F.cast(g * x**power, dtype="float64")}, "texts_stay_in_the_dtype_of_the_input"),
        ({"kernel": writes_to_its_input}, None),
        pytest.param({"kernel": looks_at_the_layout}, None, marks=pytest.mark.host("how its operands lie")),
        ({"kernel": random_bits}, None),
        ({"infer": wrong_dtype, "broadcasts": True}, "metadata_is_known_at_the_call_and_dtypes_stay"),
        ({"reference": lambda x, y, power=2: x * y}, "the_value_is_the_reference"),
    ],
)
def test_a_wrong_one_does_not(wrong: Any, check: str | None) -> None:
    op = declared(**wrong)
    with pytest.raises((AssertionError, vd.Error, ValueError)) as caught:
        vd.testing.check_operator(op)
    (note,) = [note for note in caught.value.__notes__ if "check_operator" in note]
    assert note.startswith("[check_operator] checked: ")
    assert check is None or note.endswith(check)


def test_wrong_arguments() -> None:
    with pytest.raises(ArgumentError, match="has no samples"):
        vd.testing.check_operator(declared(samples=()))
    for wrong in ("no such operator", 7):
        with pytest.raises(ArgumentTypeError, match="an operator, or the name of one"):
            vd.testing.check_operator(wrong)
    with pytest.raises(AttributeError, match="nothing"):
        _ = vd.nothing
