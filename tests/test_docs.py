"""What the documents say is true: their code runs, their commands exist, their links lead somewhere; so do doctests."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("engine", "ndarray", "operators", "autograd")
SOURCES = [*sorted(ROOT.glob("*.py")), *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
DOCTEST_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the number of the line its text begins on."""

    language: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    found = []
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        found.append(Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1))
    return found


README = blocks(ROOT / "README.md")


# ---- the README ------------------------------------------------------------------------------------------------------


def run_block(block: Block, page: str, names: dict[str, Any]) -> None:
    """Run a Python block; one that is written as a session has its outputs compared."""
    if not block.text.lstrip().startswith(">>>"):
        exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(block.text, {}, page, page, block.line - 1)
    test.globs = names
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=DOCTEST_FLAGS, verbose=False)
    runner.run(test, out=report.append, clear_globs=False)
    assert not runner.failures, "".join(report)


@pytest.mark.host("an async function in it gets memory of the host")
def test_the_tour_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    python = [block for block in README if block.language == "python"]
    assert len(python) > 5
    names: dict[str, Any] = {"__name__": "readme"}
    for block in python:
        run_block(block, "README.md", names)


def test_a_wrong_output_in_the_readme_would_be_noticed() -> None:
    run_block(Block("python", ">>> x + 1\n3\n", 1), "page", {"x": 2})
    with pytest.raises(AssertionError, match="Got:"):
        run_block(Block("python", ">>> x + 1\n4\n", 1), "page", {"x": 2})


def test_the_readme_has_only_blocks_that_are_checked() -> None:
    assert {block.language for block in README} == {"python", "sh"}


def check_command(words: list[str]) -> None:
    """A command of a shell block: a target of the Makefile, or Python on files and extras that exist."""
    program, *arguments = words
    if program == "make":
        assert shutil.which("make"), "the tests need make"
        done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    assert program in ("python", ".venv/bin/python"), f"no test knows how to check {words}"
    if arguments[:3] == ["-m", "pip", "install"]:
        extras = re.search(r"\.\[([\w,]+)\]", arguments[-1])
        assert extras, words
        known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        assert set(extras[1].split(",")) <= set(known), words
    elif arguments[0] == "-m":
        assert arguments[1] == "venv" or importlib.util.find_spec(arguments[1]), words
    else:
        script = (ROOT / arguments[0]).read_text(encoding="utf-8")
        for option in arguments[1:]:
            assert not option.startswith("-") or f'"{option}"' in script, f"{arguments[0]} has no {option}"


@pytest.mark.parametrize(
    "line", [line for block in README if block.language == "sh" for line in block.text.splitlines() if line.strip()]
)
def test_every_command_of_the_readme_exists(line: str) -> None:
    check_command(shlex.split(line))


def test_a_wrong_command_in_the_readme_would_be_noticed() -> None:
    for line in ("make tset", "pip install vardag", "python -m pip install '.[tests]'", "python examples/none.py"):
        with pytest.raises((AssertionError, OSError)):
            check_command(shlex.split(line))


def test_the_readme_gives_the_two_commands() -> None:
    lines = [line for block in README if block.language == "sh" for line in block.text.splitlines()]
    assert {"make demo", "make test"} <= set(lines)


# ---- all pages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "#")):
            assert (path.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_named_files_exist(path: Path) -> None:
    places = "|".join((*ROOMS, "tests", "examples", "benchmarks", "docs"))
    for target in re.findall(rf"`((?:{places})/[\w/.]*)`", path.read_text(encoding="utf-8")):
        assert (ROOT / target).exists() or target in NOT_YET, target


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_named_make_targets_exist(path: Path) -> None:
    for target in set(re.findall(r"`make ([a-z]+)`", path.read_text(encoding="utf-8"))):
        check_command(["make", target])


def test_the_checks_of_a_commit_are_the_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "set -euo pipefail" in script and "</dev/null" in script
    assert script.rstrip().splitlines()[-2:] == ["make test", "make lint"]
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=False).returncode == 0


# Files that the design names and that come with the parts it marks as planned.
NOT_YET = {"ndarray/_cupy.py"}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_named_environment_variables_are_read(path: Path) -> None:
    read = "".join(source.read_text(encoding="utf-8") for source in SOURCES)
    for variable in set(re.findall(r"VARDAG_[A-Z_]+", path.read_text(encoding="utf-8"))):
        assert variable in read, variable


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_pages_speak_of_the_project_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for word in ("../shared", "issue #", "TODO", "FIXME"):
        assert word not in text, word


# ---- doctests --------------------------------------------------------------------------------------------------------


def module_of(path: Path) -> str:
    parts = ["vardag", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


CHECKS = pytest.mark.host("the checks copy and compare memory of the host")


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[CHECKS] * (name(p) == "engine/access.py")) for p in SOURCES], ids=name
)
def test_doctests(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name(path) == "ndarray/_cupy.py":
        pytest.importorskip("cupy")
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(module_of(path))
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=DOCTEST_FLAGS, verbose=False)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
