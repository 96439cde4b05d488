"""Operators give what the real MXNet 1.9.1 gives: dtypes, shapes, values, gradients, and where it refuses, an error.

Its answers are in data/mxnet-operators.json, written by data/with_mxnet.py.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd

DATA = Path(__file__).parent / "data"
ANSWERS: dict[str, Any] = json.loads((DATA / "mxnet-operators.json").read_text())

#: Where we differ, each with the reason.
DIFFERENT = {
    "C.bipartite_matching(r(3, 4, 5), threshold=-1., topk=2)": "MXNet makes one pair more than topk",
    "I.random_saturation(im(1, 3, 4, 3).astype('float32'), .7, .7)": "MXNet's grey is blue alone",
    **{text: "no array of this face has shape ()" for text in ANSWERS if text.startswith("C.allclose")},
}


def questions() -> Any:
    spec = importlib.util.spec_from_file_location("operators_with_mxnet", DATA / "with_mxnet.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ASKED = questions()


def test_every_question_is_answered() -> None:
    assert ASKED.split() == list(ANSWERS)
    assert len(ANSWERS) > 190
    assert set(ANSWERS) > set(DIFFERENT)


@pytest.mark.parametrize("text", [text for text in ANSWERS if text not in DIFFERENT])
def test_as_mxnet(text: str) -> None:
    found, expected = ASKED.evaluated(text, nd, autograd), ANSWERS[text]
    assert (found == "error") == (expected == "error"), found if found == "error" else expected
    if expected != "error":
        assert [y[:2] for y in found] == [y[:2] for y in expected]
        for y, w in zip(found, expected, strict=True):
            np.testing.assert_allclose(y[2], w[2], rtol=2e-4, atol=2e-5)
