"""On a real GPU, if there is one: the suites that the simulated device passes, with `gpu(0)` for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vardag import nd

pytestmark = pytest.mark.skipif(not nd.num_gpus(), reason="CuPy finds no GPU on this machine, or is not installed")


def test_every_operator():
    done = subprocess.run(
        [sys.executable, "-m", "vardag.selftest", "--device", "gpu(0)"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("suite", ["tests/operators/test_registry.py", "tests/engine/test_programs.py"])
def test_a_suite(suite):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", suite],
        env={**os.environ, "VARDAG_DEFAULT_CONTEXT": "gpu(0)"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-10_000:]
