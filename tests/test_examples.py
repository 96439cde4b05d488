"""The small examples: PyTorch's losses from the same numbers (torch_examples.py makes them), and they learn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .loading import EXAMPLES, load_example

PYTORCHS = json.loads((Path(__file__).parent / "data" / "torch_examples.json").read_text())["losses"]
#: steps, and the part of the first losses that the last ones may be
LEARNS = {"wgan_gp": (60, 0.5), "maml": (60, 0.6), "long_lstm": (30, 0.9), "neural_ode": (40, 0.2)}


@pytest.mark.parametrize("name", PYTORCHS)
def test_losses_are_pytorchs(name: str) -> None:
    expected = PYTORCHS[name]
    np.testing.assert_allclose(load_example(name).run(len(expected)), expected, rtol=1e-3)


@pytest.mark.parametrize("name", LEARNS)
def test_an_example_learns(name: str) -> None:
    steps, part = LEARNS[name]
    losses = load_example(name).run(steps)
    assert np.mean(losses[-8:]) < part * np.mean(losses[:8])


@pytest.mark.parametrize("name", LEARNS)
def test_an_example_has_a_command_line(name: str) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "at the" in done.stdout
    assert done.stderr == ""
    helped = subprocess.run([*command[:2], "--help"], capture_output=True, text=True, check=True)
    assert "--steps" in helped.stdout
