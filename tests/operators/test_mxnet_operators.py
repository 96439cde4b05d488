"""Values and gradients against what MXNet 1.9.1 answered: see mxnet_operators.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd

_spec: Any = importlib.util.spec_from_file_location("mxnet_operators", Path(__file__).with_name("mxnet_operators.py"))
mxnet = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mxnet)

ASKED = {question["key"]: question for question in mxnet.questions()}
ANSWERS: dict[str, dict[str, Any]] = mxnet.answers()

#: questions whose answer differs on purpose, each with the reason
DIFFER = {
    "gather_nd/0": "MXNet loses gradients of negative indices",
    **dict.fromkeys(
        ("prod/5", "prod/kink0", "nanprod/kink0", "nanprod/kink1"),
        "the derivative of a product by an element that is 0; MXNet divides by the element",
    ),
    **dict.fromkeys(("norm/kink2", "norm/kink3"), "0 at the origin, not nan"),
    **dict.fromkeys(("gamma/kink0", "gammaln/kink0"), "at 0 the slope from above, -inf; in MXNet inf"),
    "Pooling/random1": "the largest of no elements: -inf, in MXNet the lowest finite number",
    "LeakyReLU/2": "MXNet's gradient of selu is not its derivative",
}


def compare(key: str) -> float:
    """The largest deviation, relative to the largest value of each array."""
    answers = ANSWERS[key]
    found = mxnet.call(nd, autograd, lambda x: nd.array(x, dtype=x.dtype), ASKED[key])
    worst = 0.0
    for part, theirs in answers.items():
        if part in ("error", "why"):
            continue
        ours = found[part]
        assert ours.shape == theirs.shape, f"{key}/{part}: {ours.shape} against {theirs.shape}"
        assert ours.dtype == theirs.dtype, f"{key}/{part}: {ours.dtype} against {theirs.dtype}"
        with np.errstate(all="ignore"):
            same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
            apart = np.abs(np.where(same, 0, ours.astype(np.float64) - theirs.astype(np.float64)))
            largest = np.abs(theirs).max(initial=0, where=np.isfinite(theirs))
        worst = max(worst, float(np.nan_to_num(apart, nan=np.inf).max(initial=0)) / max(1.0, float(largest)))
    return worst


@pytest.mark.parametrize("name", sorted({key.split("/")[0] for key, found in ANSWERS.items() if "error" not in found}))
def test_the_same_as_mxnet(name: str) -> None:
    for key in ASKED:
        if key.split("/")[0] == name and "error" not in ANSWERS.get(key, {"error": 0}):
            apart = compare(key)
            assert apart < 1e-5 or key in DIFFER, key
            assert apart > 1e-5 or key not in DIFFER, f"{key} agrees: no exception is needed"


def test_the_answers_are_to_these_questions() -> None:
    assert set(ANSWERS) <= set(ASKED), "ask MXNet again: mxnet_operators.py"
    assert len(ANSWERS) > 0.95 * len(ASKED)
    assert set(DIFFER) <= set(ANSWERS)
    refused = [key for key, answers in ANSWERS.items() if "error" in answers]
    assert len(refused) < 0.05 * len(ANSWERS)
