"""The rules of the house that a machine can check: who imports whom, how long a file is, what may not be used.

Read from the syntax trees, so that they hold for code that no test happens to run.
"""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("engine", "ndarray", "operators", "autograd")
LONGEST_FILE = 450

SOURCES = [*sorted(ROOT.glob("*.py")), *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SCRIPTS = [*sorted((ROOT / "examples").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str | None:
    """The room a source is in; None for the face (the files at the root)."""
    first = path.relative_to(ROOT).parts[0]
    return first if first in ROOMS else None


def imports(path: Path) -> Iterator[tuple[ast.Import | ast.ImportFrom, tuple[str, ...], bool]]:
    """Every import as (node, absolute dotted name in parts, whether it stands inside a function).

    `from .. import engine` in ndarray/array.py gives ("vardag", "engine"); one entry per imported name.
    """
    package = ("vardag", *path.relative_to(ROOT).parent.parts)

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, tuple[str, ...], bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield child, tuple(alias.name.split(".")), inside
            elif isinstance(child, ast.ImportFrom):
                base = package[: max(0, len(package) - child.level + 1)] if child.level else ()
                module = (*base, *(child.module.split(".") if child.module else ()))
                for alias in child.names:
                    yield child, (*module, alias.name), inside
            else:
                yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def typing_only(path: Path) -> set[int]:
    """The lines of imports under `if TYPE_CHECKING:`, which do not exist at run time."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            lines.update(
                child.lineno for statement in node.body for child in ast.walk(statement) if hasattr(child, "lineno")
            )
    return lines


def layering_faults(path: Path) -> Iterator[str]:
    """What `path` imports against the rule, one sentence each."""
    here = room_of(path)
    late = name(path) == "ndarray/_late.py"
    for node, target, inside in imports(path):
        where = f"{name(path)}:{node.lineno}"
        if not (isinstance(node, ast.ImportFrom) and node.level):
            if target[0] in ("vardag", *ROOMS):
                yield f"{where}: imports inside the package are relative"
            continue
        there = target[1] if len(target) > 1 else ""
        if target[0] != "vardag":
            yield f"{where}: leaves the package"
        elif here is None:
            continue
        elif there not in ROOMS:
            yield f"{where}: a room may not import the face ({'.'.join(target)})"
        elif ROOMS.index(there) > ROOMS.index(here) and not late:
            yield f"{where}: {here} imports {there}, a room to its right"
        elif ROOMS.index(there) > ROOMS.index(here) and not inside:
            yield f"{where}: an edge to the right is resolved inside a function, when it is called"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_each_room_imports_only_rooms_to_its_left(path: Path) -> None:
    assert not list(layering_faults(path))


@pytest.mark.parametrize(
    ("file", "line", "faults"),
    [
        ("ndarray/x.py", "from .. import engine", 0),
        ("ndarray/x.py", "from ..engine.core import Engine", 0),
        ("ndarray/deep/x.py", "from ...engine import Engine", 0),
        ("ndarray/x.py", "from .shape import extent", 0),
        ("ndarray/x.py", "import numpy.linalg as la", 0),
        ("engine/x.py", "from .. import ndarray", 1),
        ("ndarray/x.py", "def f():\n    if f:\n        from ..autograd.tape import Tape", 1),
        ("operators/x.py", "from .. import autograd, engine", 1),
        ("operators/x.py", "from ..numerics import f", 1),
        ("ndarray/_late.py", "def f():\n    from ..autograd.tape import Tape", 0),
        ("ndarray/_late.py", "class A:\n    from .. import autograd", 1),
        ("autograd/x.py", "import vardag.engine", 1),
        ("autograd/x.py", "from engine import core", 1),
        ("autograd/x.py", "from ... import engine", 1),
    ],
)
def test_the_layering_test_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, line: str, faults: int
) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert len(list(layering_faults(path))) == faults


def test_no_file_of_the_package_is_imported_under_another_name() -> None:
    """Else there are two engines, and whether tests can be collected depends on the checkout's name."""
    files = {str(path) for path in SOURCES}
    loaded = {key: str(getattr(module, "__file__", None)) for key, module in list(sys.modules.items())}
    assert not [key for key, file in loaded.items() if file in files and key.split(".")[0] != "vardag"]


@pytest.mark.parametrize("path", [p for p in SOURCES if room_of(p) == "engine"], ids=name)
def test_the_engine_knows_no_arrays(path: Path) -> None:
    found = [node.lineno for node, target, _ in imports(path) if target[0] in ("numpy", "scipy")]
    assert not found, f"{name(path)} imports a library of arrays in lines {found}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_one_file_imports_cupy(path: Path) -> None:
    if name(path) == "ndarray/_cupy.py":
        return
    found = [node.lineno for node, target, _ in imports(path) if target[0] in ("cupy", "cupyx", "cupy_backends")]
    assert not found, f"{name(path)} imports cupy in lines {found}; only ndarray/_cupy.py does"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_the_package_needs_only_what_it_declares(path: Path) -> None:
    allowed = {"numpy", "scipy", "threadpoolctl", "vardag", "cupy", "cupyx"} | sys.stdlib_module_names
    skip = typing_only(path)
    for node, target, inside in imports(path):
        extra = inside and target[0] in (
            "matplotlib",
            "safetensors",
            "rich",
        )  # looked for by who draws, or has such files
        extra = extra or (name(path), target[0]) == ("ndarray/dtype.py", "ml_dtypes")  # may be missing
        extra = extra or (name(path), target[0]) == ("pytest_plugin.py", "pytest")  # which imports it, nobody else does
        if node.lineno not in skip and not extra:
            assert target[0] in allowed, f"{name(path)}:{node.lineno}: {target[0]} is no dependency of the package"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_file_fits_in_a_head(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{name(path)} has {lines} lines; split it at about {LONGEST_FILE}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_finalizer_is_written_in_python(path: Path) -> None:
    """A Python finalizer swallows the interrupt that arrives in it, and may run inside any critical section.

    Allowed: `weakref.ref(x)`, and `weakref.ref(x, queue.append)`, whose callback is one C call.
    """
    weak_names = {"finalize", "WeakValueDictionary", "WeakKeyDictionary", "WeakSet", "WeakMethod"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{name(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.name != "__del__", f"{where}: __del__"
        elif isinstance(node, ast.ImportFrom) and node.module == "weakref":
            bad = weak_names & {alias.name for alias in node.names}
            assert not bad, f"{where}: {bad} use callbacks written in Python"
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            if isinstance(owner, ast.Name) and owner.id == "weakref":
                assert called not in weak_names, f"{where}: weakref.{called} uses callbacks written in Python"
            if called == "ref" and len(node.args) + len(node.keywords) > 1:
                callback = node.args[1] if len(node.args) > 1 else node.keywords[0].value
                in_c = isinstance(callback, ast.Attribute) and callback.attr in ("append", "put")
                assert in_c, f"{where}: a weak reference's callback that is not one C call"


@pytest.mark.parametrize("path", [*SOURCES, *TESTS, *SCRIPTS], ids=name)
def test_nothing_private_to_numpy_is_used(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("np", "numpy"):
            private = node.attr == "core" or (node.attr.startswith("_") and not node.attr.startswith("__"))
            assert not private, f"{name(path)}:{node.lineno}: {node.value.id}.{node.attr} is private to NumPy"
    for node, target, _ in imports(path):
        if target[0] == "numpy":
            private = any(part == "core" or part.startswith("_") for part in target[1:])
            assert not private, f"{name(path)}:{node.lineno}: {'.'.join(target)} is private to NumPy"


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_no_test_sleeps(path: Path) -> None:
    """A sleep makes a test slow when it is long and wrong when it is short; gates say what is waited for."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("time", "sleep"), f"{name(path)}:{node.lineno}: time.sleep"
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            assert "sleep" not in {alias.name for alias in node.names}, f"{name(path)}:{node.lineno}: time.sleep"


MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|home|root|Users|usr/local|opt|tmp)/[\w.-]+")


def texts() -> list[Path]:
    """Every file of the project that a person reads, but for the licence."""
    top = [path for path in ROOT.iterdir() if path.suffix in (".md", ".toml") or path.name == "Makefile"]
    return [*top, *SOURCES, *TESTS, *SCRIPTS, *sorted((ROOT / "docs").rglob("*.md")), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("path", texts(), ids=name)
def test_no_file_names_a_place_on_one_machine(path: Path) -> None:
    with tokenize.open(path) if path.suffix == ".py" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            found = MACHINE_PATHS.search(line)
            allowed = "MACHINE_PATHS" in line
            assert found is None or allowed, f"{name(path)}:{number}: {found[0] if found else ''}"
