"""The list of guards: it fits the source, it fits docs/engine-proof.md, and the script that tries it can tell."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

from vardag.engine import Engine, Operation, Variable
from vardag.engine.coroutines import AsyncOperation
from vardag.engine.held import Held
from vardag.engine.mail import Mailbox
from vardag.engine.ready import Lane
from vardag.ndarray.array import Array
from vardag.ndarray.buffer import Buffer, Chunk, Saved

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "engine-proof.md"
LONG = float(os.environ.get("VARDAG_STRESS") or 0) > 0


def load():
    spec = importlib.util.spec_from_file_location("vardag_mutants", HERE / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SHARED = (Operation, Mailbox, Variable, Lane, Held, Buffer, Chunk, Saved, Array)

mutants = load()
QUICK = mutants.MUTANTS["poison"]


def exists(test: str) -> bool:
    """Is there such a test function?"""
    file, _, function = test.split("[", maxsplit=1)[0].partition("::")
    path = ROOT / file
    return (
        path.exists() and re.search(rf"^(async )?def {function}\(", path.read_text("utf-8"), re.MULTILINE) is not None
    )


@pytest.mark.parametrize("name", list(mutants.MUTANTS))
def test_the_texts_to_replace_are_there_once_and_the_test_exists(name):
    mutant = mutants.MUTANTS[name]
    for file, old, new in mutant.edits:
        assert (ROOT / file).read_text("utf-8").count(old) == 1, (file, old)
        assert old != new
    assert exists(mutant.test)


def test_the_page_lists_these_guards_and_no_others():
    lines = PAGE.read_text("utf-8").splitlines()
    at = lines.index("| mutation | guard | test that fails without it |") + 2
    wanted = [mutants.row(name) for name in mutants.MUTANTS]
    assert lines[at : at + len(wanted)] == wanted
    assert lines[at + len(wanted)] == ""


def test_the_tests_that_the_page_names_exist():
    named = re.findall(r"`(test_\w+): (test_\w+)`", PAGE.read_text("utf-8"))
    assert len(named) > 30
    for file, function in named:
        paths = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob(f"{file}.py")]
        assert any(exists(f"{path}::{function}") for path in paths), (file, function)


def slots(kind: type) -> list[str]:
    return [name for c in kind.__mro__ for name in getattr(c, "__slots__", ()) if name != "__weakref__"]


def test_every_shared_field_has_its_row():
    """Which lock guards it, or why none: whoever adds a field says so on the page."""
    text = PAGE.read_text("utf-8")
    rows = [
        line.split("|")[1] for line in text[text.index("| fields | guard |") :].splitlines() if line.startswith("|")
    ]
    with Engine(workers=1) as e:
        fields = {"Engine": list(vars(e))}
    fields |= {kind.__name__: slots(kind) for kind in SHARED}
    fields["AsyncOperation"] = list(AsyncOperation.__slots__)
    for kind, names in fields.items():
        cells = " ".join(row for row in rows if f"`{kind}" in row)
        missing = [name for name in names if name not in re.findall(r"\w+", cells)]
        assert not missing, f"{kind}: {missing} are not in the table of fields of {PAGE.name}"


def test_a_guard_that_is_noticed():
    assert mutants.run(QUICK).startswith("noticed")


def test_a_mutation_that_nobody_notices():
    file, old, _ = QUICK.edits[0]
    assert mutants.run(QUICK._replace(edits=((file, old, old + "  "),))) == "SURVIVED"


def test_a_mutation_that_breaks_everything_proves_nothing():
    file, old, _ = QUICK.edits[0]
    assert mutants.run(QUICK._replace(edits=((file, old, "import nowhere"),))).startswith(
        "ERROR, it cannot be imported"
    )
    assert mutants.run(QUICK._replace(edits=((file, "no such text", ""),))).startswith("ERROR, engine/")


@pytest.mark.parametrize(
    ("code", "output", "found"),
    [
        (0, "", "SURVIVED"),
        (1, "FAILED tests/engine/test_x.py::test_y[a b] - assert 1 == 2", "noticed: assert"),
        (1, "FAILED tests/engine/test_x.py::test_other - assert 1 == 2", "ERROR"),
        (1, "ERROR tests/engine/test_x.py::test_y - fixture", "ERROR"),
        (2, "ERROR tests/engine/test_x.py - ImportError", "ERROR"),
        (1, "tests/engine/test_x.py::test_y \n+++ Timeout +++", "noticed: it hangs"),
        (None, "tests/engine/test_x.py::test_y ", "noticed: it hangs"),
        (None, "collecting", "ERROR"),
        (-11, "tests/engine/test_x.py::test_y ", "ERROR"),
    ],
)
def test_verdicts(code, output, found):
    mutant = QUICK._replace(test="tests/engine/test_x.py::test_y")
    assert mutants.verdict(mutant, code, output).startswith(found)


@pytest.mark.skipif(not LONG, reason="each takes some seconds; `make stress` tries them all")
@pytest.mark.timeout(900)
def test_every_guard_is_noticed(note):
    found = dict(mutants.run_all(mutants.MUTANTS))
    noticed = [name for name, what in found.items() if what.startswith("noticed")]
    assert set(found) == set(mutants.MUTANTS), found
    wrong = {name: what for name, what in found.items() if name not in noticed}
    assert not wrong, wrong
    hangs = sum(what.endswith("hangs") for what in found.values())
    note("guards", len(noticed), len(mutants.MUTANTS), f"{hangs} of the tests hang without the guard, the others fail")
