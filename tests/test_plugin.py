"""`pytest --vardag-fuzz`: in a pytest of its own, as a user's project would have it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

PROJECT = """
import pytest
from vardag import engine

@pytest.fixture
def counter():
    return {"n": 0}

def test_lost_update(counter):
    def add():
        old = counter["n"]
        counter["n"] = old + 1
    for _ in range(4):
        engine.current().push(add)
    engine.current().wait_for_all()
    assert counter["n"] == 4

@pytest.mark.parametrize("n", [1, 2])
def test_right(counter, n):
    v = engine.current().new_variable()
    def add():
        old = counter["n"]
        counter["n"] = old + n
    for _ in range(3):
        engine.current().push(add, updates=[v])
    engine.current().wait_for_all()
    assert counter["n"] == 3 * n
"""


@pytest.fixture
def run(tmp_path: Path) -> Any:
    (tmp_path / "test_it.py").write_text(PROJECT)
    paths = os.pathsep.join(filter(None, [str(ROOT.parent), os.environ.get("PYTHONPATH")]))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "VARDAG"))} | {"PYTHONPATH": paths}

    def run(*options: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "-p", "vardag.pytest_plugin", "-p", "no:cacheprovider", *options]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.skipif(ROOT.name != "vardag", reason="a clone of another name is not what `import vardag` finds here")
def test_a_failing_seed_is_printed_and_repeats(run: Any) -> None:
    code, text = run("--vardag-fuzz=30")
    assert code == 1
    assert "right[" not in "".join(re.findall("^FAILED.*", text, re.MULTILINE))
    command = re.search(r"to repeat it: pytest (\S+) --vardag-fuzz-seed=(\d+)", text)
    assert command is not None
    assert "begins add #" in text  # the choices
    choices = [text.partition("the last ")[2].partition("===")[0].partition("___")[0]]
    for _ in range(2):
        code, text = run(command[1], f"--vardag-fuzz-seed={command[2]}")
        assert code == 1
        assert "1 failed" in text
        choices.append(text.partition("the last ")[2].partition("===")[0])
    assert choices[0] == choices[1] == choices[2]


@pytest.mark.skipif(ROOT.name != "vardag", reason="a clone of another name is not what `import vardag` finds here")
def test_a_test_for_each_seed(run: Any) -> None:
    code, text = run("--vardag-fuzz=4", "-k", "right")
    assert (code, "8 passed" in text) == (0, True), text
    code, text = run()
    assert (code, "3 passed" in text) == (0, True), text
    code, text = run("--vardag-fuzz=-1")
    assert code == 4, text


def test_pytest_finds_it_where_vardag_is_installed() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"vardag.pytest_plugin": "vardag.pytest_plugin"}
