"""Expressions give what the real MXNet 1.9.1 gives: dtypes, shapes, values, gradients; where it refuses, an error.

Dense ones are in data/with_mxnet.py, its answers beside it; those of sparse arrays, with storage types and what is
stored, in tests/ndarray/data.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd

TESTS = Path(__file__).resolve().parent.parent


def stored(folder: str, answers: str) -> tuple[Any, dict[str, Any]]:
    """The script that asked MXNet, as a module, and what it wrote down: {expression: answer}."""
    data = TESTS / folder / "data"
    spec: Any = importlib.util.spec_from_file_location(f"{folder}_with_mxnet", data / "with_mxnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, json.loads((data / answers).read_text())


ASKED, ANSWERS = stored("operators", "mxnet-operators.json")
SPARSE, SPARSE_ANSWERS = stored("ndarray", "mxnet-sparse.json")

#: Where we differ, each with the reason.
DIFFERENT = {
    "C.bipartite_matching(r(3, 4, 5), threshold=-1., topk=2)": "MXNet makes one pair more than topk",
    "I.random_saturation(im(1, 3, 4, 3).astype('float32'), .7, .7)": "MXNet's grey is blue alone",
    **{text: "no array of this face has shape ()" for text in ANSWERS if text.startswith("C.allclose")},
}


def test_every_question_is_answered() -> None:
    assert ASKED.split() == list(ANSWERS) and len(ANSWERS) > 190
    assert SPARSE.expressions() == list(SPARSE_ANSWERS) and len(SPARSE_ANSWERS) > 120
    assert set(ANSWERS) > set(DIFFERENT)


@pytest.mark.parametrize("text", [text for text in ANSWERS if text not in DIFFERENT])
def test_as_mxnet(text: str) -> None:
    found, expected = ASKED.evaluated(text, nd, autograd), ANSWERS[text]
    assert (found == "error") == (expected == "error"), found if found == "error" else expected
    if expected != "error":
        assert [y[:2] for y in found] == [y[:2] for y in expected]
        for y, w in zip(found, expected, strict=True):
            np.testing.assert_allclose(y[2], w[2], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("text", SPARSE_ANSWERS)
def test_sparse_as_mxnet(text: str) -> None:
    *kind, values, indices = SPARSE.evaluated(text, nd)
    *kind_there, values_there, indices_there = SPARSE_ANSWERS[text]
    assert (kind, indices) == (kind_there, indices_there)
    np.testing.assert_allclose(values, values_there, rtol=1e-5, atol=1e-7)
