"""Sparse arrays give what the real MXNet 1.9.1 gives: storage types, dtypes, shapes, values, and what is stored.

Its answers are in data/mxnet-sparse.json, written by data/with_mxnet.py.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vardag import nd

DATA = Path(__file__).parent / "data"
ANSWERS: dict[str, list[Any]] = json.loads((DATA / "mxnet-sparse.json").read_text())


def questions() -> Any:
    spec = importlib.util.spec_from_file_location("with_mxnet", DATA / "with_mxnet.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ASKED = questions()


def test_every_question_is_answered() -> None:
    assert ASKED.expressions() == list(ANSWERS)
    assert len(ANSWERS) > 120


@pytest.mark.parametrize("text", ANSWERS)
def test_as_mxnet(text: str) -> None:
    found, expected = ASKED.evaluated(text, nd), ANSWERS[text]
    assert found[:3] == expected[:3]
    np.testing.assert_allclose(found[3], expected[3], rtol=1e-5, atol=1e-7)
    assert found[4] == expected[4]
