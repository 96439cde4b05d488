"""Wrong arguments of every operator, generated: an error at the call that names the operator, or an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vardag import nd
from vardag.engine import Error
from vardag.operators import registry
from vardag.operators.faces import PLAIN, nd_function
from vardag.operators.schema import Operator
from vardag.operators.testing import Case

OPERATORS = [op for op in registry if op.nd is not False and op.samples]
ATTRIBUTES = ("text", -7, 99, (), (1, 2, 3, 4, 5), None, 2.5, [None], {}, (-1, -1), float("nan"))
#: whose answer depends on values that no call can see
BY_VALUES = {"gather_nd": "indices out of bounds poison the result"}

Arguments = tuple[str, list[Any], dict[str, Any]]


def variations(op: Operator, case: Case) -> Iterator[Arguments]:
    """(what is wrong, operands, attributes)."""
    raws, attributes = case.raws(), dict(case.attributes)
    missing = len(op.inputs) - len(raws)
    yield "no operands", [], attributes
    yield "one more", [*raws, *[np.ones((2, 2), "f")] * (missing + 1)], attributes
    yield "unknown attribute", raws, {**attributes, "no_such_thing": 1}
    for i, x in enumerate(raws):
        if x is None:
            continue
        others = {
            "scalar": x.ravel()[0].reshape(()), "more axes": x[None, None], "empty": x[:0] if x.ndim else x,
            "longer": np.concatenate([x, x], -1) if x.ndim else x, "string": "text", "None": None,
            **{dtype: x.astype(dtype) for dtype in ("int32", "bool", "float64")},
        }  # fmt: skip
        for what, other in others.items():
            yield f"operand {i}: {what}", [*raws[:i], other, *raws[i + 1 :]], attributes
    for name in op.attributes:
        for value in ATTRIBUTES:
            yield f"{name}={value!r}", raws, {**attributes, name: value}


def called(op: Operator, case: Case, operands: list[Any], attributes: dict[str, Any]) -> list[Any]:
    """The outputs of the nd face."""
    rule = op.nd or PLAIN
    spelled = {new: old for old, new in rule.rename.items()}
    named = {spelled.get(name, name): value for name, value in attributes.items()}
    given = [nd.array(x, dtype=x.dtype) if isinstance(x, np.ndarray) else x for x in operands]
    if rule.order or any(x is None for x in given):
        for i, x in enumerate(given):
            if x is not None:
                named[spelled.get(op.input_name(i), op.input_name(i))] = x
        given = []
    made = nd_function(op)(*given, **named)
    return list(made) if isinstance(made, tuple | list) else [made]


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
def test_an_error_at_the_call_or_an_answer(op: Operator) -> None:
    if op.name in BY_VALUES:
        pytest.skip(BY_VALUES[op.name])
    case, refused = Case(op, 0, op.samples[0]), 0
    for what, operands, attributes in variations(op, case):
        try:
            made = called(op, case, operands, attributes)
        except Error as error:
            assert str(error).startswith("["), f"{what}: {error}"
            refused += 1
            continue
        for y in made:
            y.wait_to_read()  # no error comes after the call
    assert refused
