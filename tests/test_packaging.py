"""What is installed is what the tree holds, and nothing else."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import vardag

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("engine", "ndarray", "operators", "autograd")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages_in_the_tree() -> set[str]:
    found = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    return {"vardag", *(".".join(("vardag", *path.relative_to(ROOT).parts)) for path in found)}


def files_of_the_package() -> set[str]:
    files = [ROOT / "py.typed", *ROOT.glob("*.py"), *ROOT.glob("*.pyi")]
    files += [path for room in ROOMS for suffix in ("py", "pyi") for path in (ROOT / room).rglob(f"*.{suffix}")]
    return {"vardag/" + path.relative_to(ROOT).as_posix() for path in files}


def test_every_package_is_listed() -> None:
    settings = PROJECT["tool"]["setuptools"]
    assert set(settings["packages"]) == packages_in_the_tree()
    assert set(settings["package-data"]) == packages_in_the_tree()
    assert "py.typed" in settings["package-data"]["vardag"]


def test_every_directory_with_sources_is_a_package() -> None:
    for name in packages_in_the_tree() - {"vardag"}:
        assert ROOT.joinpath(*name.split(".")[1:], "__init__.py").is_file(), name


def test_mypy_reads_every_room() -> None:
    settings = PROJECT["tool"]["mypy"]
    assert settings["modules"] == [
        "vardag",
        "vardag.profiler",
        "vardag.pytest_plugin",
        "vardag.selftest",
        "vardag.testing",
        "vardag.top",
    ]  # which imports all other files beside it
    assert settings["packages"] == [f"vardag.{room}" for room in ROOMS]


def test_the_version_is_written_once() -> None:
    assert importlib.metadata.version("vardag") == PROJECT["project"]["version"]
    assert getattr(vardag, "__version__", PROJECT["project"]["version"]) == PROJECT["project"]["version"]
    first = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## [")[1]
    assert first.startswith(("Unreleased]", PROJECT["project"]["version"]))


def test_the_dependencies_are_the_promised_ones() -> None:
    names = {requirement.split(">=")[0] for requirement in PROJECT["project"]["dependencies"]}
    assert names == {"numpy", "scipy", "threadpoolctl"}
    assert set(PROJECT["project"]["optional-dependencies"]) == {
        *("test", "examples", "dev", "cuda12x", "cuda13x", "safetensors", "bfloat16", "top")
    }


@pytest.mark.skipif(
    tuple(map(int, importlib.metadata.version("setuptools").split(".")[:1])) < (77,),
    reason="setuptools 77 or newer builds the wheel; the test extra installs it",
)
def test_the_wheel_holds_the_package_and_works(tmp_path: Path) -> None:
    """Built from a clone of another name, with a .venv in it that must not leak into the wheel."""
    clone = tmp_path / "another-name"
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo", "tests")
    shutil.copytree(ROOT, clone, ignore=skip)
    decoy = clone / ".venv" / "lib" / "decoy"
    decoy.mkdir(parents=True)
    (decoy / "__init__.pyi").touch()

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    run([*pip, "wheel", *offline, "--wheel-dir", tmp_path, clone])
    (wheel,) = tmp_path.glob("vardag-*-py3-none-any.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == files_of_the_package()
    infos = {name.split(".dist-info/")[1] for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" in name}
    assert "licenses/LICENSE" in infos

    target = tmp_path / "installed"
    run([*pip, "install", *offline, "--target", target, wheel])
    program = (
        f"import sys; sys.path.insert(0, {str(target)!r}); import vardag; print(vardag.__file__); "
        "print((vardag.nd.ones((2,)) + 1).asnumpy().tolist())"
    )
    where, value = run([sys.executable, "-c", program], cwd=tmp_path).splitlines()
    assert Path(where) == target / "vardag" / "__init__.py"
    assert value == "[2.0, 2.0]"
    program = f"import sys, runpy; sys.path.insert(0, {str(target)!r}); sys.argv[1:] = ['--seed', '1']; "
    program += "runpy.run_module('vardag.selftest', run_name='__main__')"
    assert "deviations: 0" in run([sys.executable, "-c", program], cwd=tmp_path)


def run(command: list[str | Path], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
