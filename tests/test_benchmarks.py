"""The benchmarks run and write what they say.  Nothing here looks at a time: the machine is shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BARS = ((4.0, 3.0), (5.0, 4.0), (3.0, 2.0), (2.4, None))
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "compare.py"), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BENCH_PYTHON")}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env=environment)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    out = tmp_path_factory.mktemp("bench")
    done = run(
        *("--quick", "--only", "tiny,tiny_wait,backward,descent,costs", "--peers", "numpy", "--no-plot"),
        *("--rounds", "2", "--seconds", "0.001", "--out", str(out)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in out.iterdir()] == ["compare.json"]
    return json.loads((out / "compare.json").read_text()), done.stdout


def test_the_quick_mode_writes_a_row_for_each_workload(written: tuple[Any, str]) -> None:
    result, printed = written
    assert [row["key"] for row in result["rows"]] == ["tiny", "tiny_wait", "backward", "descent"]
    assert result["rounds"] == 2 and set(result["versions"]) == {"vardag", "numpy"} and not result["missing"]
    for row in result["rows"]:
        peers = {"vardag"} if row["key"] == "backward" else {"vardag", "numpy"}
        assert set(row["times"]) == set(row["median"]) == peers
        assert all(len(times) == 2 and min(times) > 0 for times in row["times"].values())
        assert row["faults"] == {} and row["title"] in printed
        (bar,) = row["bars"]  # every peer of these rows is PyTorch, which was not asked
        assert bar["peers"] == ["torch"] and bar["ratio"] is None and bar["best"] is None
    assert set(result["rows"][-1]["memory"]) == {"copy", "gigabytes_per_second"}


def test_the_costs_of_one_operation_are_written(written: tuple[Any, str]) -> None:
    costs = written[0]["costs"]
    assert [line["n"] for line in costs["pending"]] == [1000, 10_000]
    words = " ".join(costs["stages"])
    assert all(stage in words for stage in ("infer", "push", "record", "run", "wait"))


def test_a_ratio_is_the_median_of_the_rounds_and_names_the_best_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import compare
    from _workloads import Bar

    times = {"vardag": [2.0, 4.0, 9.0], "numpy": [1.0, 1.0, 1.0], "torch": [4.0, 4.0, 0.8]}
    bar = compare.judged(Bar(("numpy", "torch", "jax"), 4.0, 1.0), times)
    assert [bar[key] for key in ("best", "ratio", "least", "most", "quiet")] == ["numpy", 4.0, 2.0, 9.0, 2.5]
    assert bar["missing"] == ["jax"]
    met = [compare.judged(Bar(("numpy", "torch"), ratio, stretch), times)["met"] for ratio, stretch in BARS]
    assert met == ["yes", "stretch", "unsure", "no"]


def test_programs_that_compute_something_else_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _worker
    import compare
    import numpy as np

    x = np.linspace(0, 1, 1000)
    ours = _worker.sample([x])
    assert compare.difference(ours, _worker.sample([x * (1 + 1e-6)]), 1e-4) == ""
    for other in ([x * 1.01], [x[:-1]], [x, x], [np.where(x == x[500], 7, x)], [x * np.nan]):
        assert compare.difference(ours, _worker.sample(other), 1e-4)


def test_a_peer_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    done = run("--only", "tiny", "--peers", "mxnet", "--rounds", "1", "--seconds", "0.001", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    if "mxnet is left out" in done.stdout:
        assert set(json.loads((tmp_path / "compare.json").read_text())["missing"]) == {"mxnet"}


def test_the_lag_of_a_loop_is_printed_for_each_way_of_working() -> None:
    command = [sys.executable, str(BENCHMARKS / "loop_lag.py"), "--number", "200", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    for way in ("threads that count", "executor", "to_thread", "one operation", "an operation each", "at once"):
        assert f"\n{way} " in done.stdout, done.stdout


def test_a_copy_without_hooks_is_timed_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import hooks

    assert hooks.without_hooks(tmp_path) > 20
    assert "_instrument is not None" not in (tmp_path / "vardag" / "engine" / "running.py").read_text("utf-8")
    command = [sys.executable, "-c", "import vardag; vardag.nd.ones(3).asnumpy(); print(vardag.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    file = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    assert Path(file).is_relative_to(tmp_path)
    command = [sys.executable, str(BENCHMARKS / "hooks.py"), "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    ratios = [float(line.rpartition("(")[0].split()[-1]) for line in done.stdout.splitlines()[1:]]
    assert len(ratios) == 4 and min(ratios) > 0


def test_an_unknown_workload_is_refused() -> None:
    done = run("--only", "nonsense")
    assert done.returncode == 2 and "unknown workload 'nonsense'" in done.stderr


def test_the_profile_of_an_operator_shares_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between C calls, lines of kernels, and what is around them; kernels are as before afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import operators as table

    tests = table.load("test_mxnet_operators")
    asked = {question["name"]: question for question in tests.mxnet.timed_questions()}
    kernels = [op.kernel for op in table.registry]
    for name, wanted in (("softmax", "exp"), ("RNN", "rnn_steps.py"), ("sort", "sorting.py")):
        ours = table.here(tests, asked[name], 1)
        found = table.profile(tests, table.Asked(asked[name], ours, 1e-6), 1)
        assert sum(share for share, _ in found) == pytest.approx(1)
        assert [share for share, _ in found] == sorted((share for share, _ in found), reverse=True)
        assert any(wanted in where for _, where in found), found
    assert [op.kernel for op in table.registry] == kernels
