"""vardag beside the libraries that are installed: the time of the same work, its ratio to the best, and the bar.

    python benchmarks/compare.py [--quick] [--only KEYS] [--peers PEERS] [--rounds N] [--python PEER=PATH ...]

Every library runs in a process of its own, and the rounds go from process to process, so that whatever else the machine
does hits them alike.  A ratio is the median over rounds of vardag's time by that of the best peer in the same round;
"quiet" is the ratio of the least times, nearer to what an idle machine would show.  A bar is met if both are within it.
Before it is timed each program is run once, and its values are compared with vardag's.

A library that is installed elsewhere is found by --python mxnet=PATH, or by BENCH_PYTHON_MXNET=PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from _report import draw, show_costs, show_row, show_title
from _workloads import LIBRARIES, PEERS, SINGLE, WORKLOADS, Bar

HERE = Path(__file__).resolve().parent
QUICK = ("tiny", "tiny_wait", "formula_32", "backward", "kernel", "function", "product_128", "mlp_small")
PATIENCE = 120.0  # seconds for one answer
FEWEST, ROW = 3, 6.0  # a row has so many rounds, and after so many seconds no more
SLOW = 1.0  # seconds; a peer that takes longer for one unit, and five times the fastest peer's time, is timed once
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
ENVIRONMENT = {"one": {"VARDAG_ENGINE_TYPE": "NaiveEngine"}, "numpy1": ONE_THREAD, "torch1": ONE_THREAD}


class Process:
    """A worker process; `ask` gives its answer, {"error": text} if it has none."""

    def __init__(self, peer: str, python: str) -> None:
        self.peer, self.python = peer, python
        self.programs: list[str] = []
        self.version = self.fault = ""
        self.start()

    def start(self) -> None:
        environment = os.environ | ENVIRONMENT.get(self.peer, {})
        self.process = subprocess.Popen(
            [self.python, str(HERE / "_worker.py"), self.peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def greet(self) -> None:
        hello = self.hear(PATIENCE)
        self.programs, self.version = hello.get("programs", []), hello.get("version", "")
        self.fault = hello.get("error", "")

    def ask(self, **request: Any) -> dict[str, Any]:
        if self.process.poll() is not None:
            self.start()
            self.greet()
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            return {"error": "the process has ended"}
        return self.hear(PATIENCE)

    def hear(self, seconds: float) -> dict[str, Any]:
        """The next answer.  A process that takes longer is killed; the next question starts another."""
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        return {"error": f"no answer: ended with {self.process.wait()}"}

    def stop(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tolerance: float) -> str:
    """How two programs' values differ; "" if they do not."""
    if len(ours) != len(theirs):
        return f"{len(ours)} arrays and {len(theirs)}"
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a["size"] != b["size"]:
            return f"array {i} has {a['size']} values and {b['size']}"
        scale = max(map(abs, b["some"]), default=0.0)
        worst = max((abs(x - y) for x, y in zip(a["some"], b["some"], strict=True)), default=0.0)
        if not worst <= tolerance * scale or not abs(a["sum"] - b["sum"]) <= tolerance * b["of"]:
            return f"array {i} differs by {worst:.3g} (largest value {scale:.3g}); sums {a['sum']:.8g}, {b['sum']:.8g}"
    return ""


def measure(key: str, processes: dict[str, Process], rounds: int, seconds: float) -> dict[str, Any]:
    """One row: the seconds per operation of every round, by peer, and what was wrong, by peer."""
    workload = WORKLOADS[key]
    faults: dict[str, str] = {}
    units: dict[str, int] = {}
    each: dict[str, float] = {}
    ours: list[dict[str, Any]] | None = None
    for peer, process in processes.items():
        answer = process.ask(make=key, seconds=seconds) if key in process.programs else {}
        if "error" in answer:
            faults[peer] = answer["error"]
        elif answer:
            units[peer], each[peer] = answer["units"], answer["each"]
            if peer == "vardag":
                ours = answer["values"]
            elif ours is not None and (text := difference(ours, answer["values"], workload.tolerance)):
                faults[peer] = f"other values than vardag's: {text}"
                del units[peer]
    times: dict[str, list[float]] = {peer: [] for peer in units}
    fastest = min((each[peer] for peer in units if peer != "vardag"), default=0.0)
    for peer in [peer for peer in units if peer != "vardag" and each[peer] > max(SLOW, 5 * fastest)]:
        times[peer].append(each[peer] / workload.per)  # not the best: what the check took will do
        del units[peer]
        processes[peer].ask(drop=True)
    if workload.moved and key != "copy" and "copy" in processes:
        units["copy"] = processes["copy"].ask(make="copy", seconds=seconds).get("units", 1)
        times["copy"] = []
    started = time.perf_counter()
    for number in range(rounds):
        if number >= FEWEST and time.perf_counter() - started > ROW:
            break
        order = list(units) if number % 2 == 0 else list(units)[::-1]
        for peer in order:
            answer = processes[peer].ask(time=units[peer])
            if "error" in answer:
                faults[peer] = answer["error"]
                del units[peer], times[peer]
            else:
                times[peer].append(answer["seconds"] / units[peer] / workload.per)
    for peer in units:
        processes[peer].ask(drop=True)
    copies = times.pop("copy", None)
    row: dict[str, Any] = {"key": key, "title": workload.title, "times": times, "faults": faults}
    row["median"] = {peer: statistics.median(t) for peer, t in times.items()}
    row["bars"] = [judged(bar, times) for bar in workload.bars]
    if workload.moved:
        rates = {peer: workload.moved / workload.per / t / 1e9 for peer, t in row["median"].items()}
        row["memory"] = {"gigabytes_per_second": rates}
        if copies:
            row["memory"]["copy"] = WORKLOADS["copy"].moved / statistics.median(copies) / 1e9
    return row


def judged(bar: Bar, times: dict[str, list[float]]) -> dict[str, Any]:
    """The ratio to the best of the bar's peers; None where vardag or all of them are missing."""
    out: dict[str, Any] = {"peers": bar.peers, "bar": bar.ratio, "stretch": bar.stretch, "best": None, "ratio": None}
    rounds = len(times.get("vardag", ()))
    present = [peer for peer in times if SINGLE.get(peer, peer) in bar.peers and len(times[peer]) == rounds]
    if present:
        best = min(present, key=lambda peer: statistics.median(times[peer]))
        ratios = [a / b for a, b in zip(times["vardag"], times[best], strict=True)]
        ratio = statistics.median(ratios)
        quiet = min(times["vardag"]) / min(min(times[peer]) for peer in present)
        met = met_by(bar, min(ratio, quiet), max(ratio, quiet))
        out |= {"best": best, "ratio": ratio, "least": min(ratios), "most": max(ratios), "quiet": quiet, "met": met}
        out["missing"] = [peer for peer in bar.peers if peer not in times]
    return out


def met_by(bar: Bar, low: float, high: float) -> str:
    if bar.ratio is None:
        return "-"
    if bar.stretch and high <= bar.stretch:
        return "stretch"
    return "yes" if high <= bar.ratio else "no" if low > bar.ratio else "unsure"


def costs(quick: bool, python: str) -> dict[str, Any]:
    """What one tiny operation and one pending operation cost, measured in another process."""
    command = [python, str(HERE / "_costs.py"), *(["--quick"] if quick else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * PATIENCE)
    except subprocess.TimeoutExpired:
        return {"error": "no answer"}
    if done.returncode:
        return {"error": (done.stderr.splitlines() or ["?"])[-1]}
    out: dict[str, Any] = json.loads(done.stdout)
    return out


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time vardag and its peers.", epilog=f"KEYS: {', '.join(WORKLOADS)}")
    parser.add_argument("--quick", action="store_true", help="the small workloads, few and short rounds")
    parser.add_argument("--only", help="workloads, comma between them; 'costs' for the costs of one operation")
    parser.add_argument("--peers", default=",".join(PEERS), help="of %(default)s")
    parser.add_argument("--rounds", type=int, help="rounds of each workload")
    parser.add_argument("--seconds", type=float, help="how long one library's part of a round should last")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="the interpreter of a peer")
    parser.add_argument("--out", type=Path, default=Path("build"), help="directory of compare.json and compare.png")
    parser.add_argument("--no-plot", action="store_true", help="write no PNG")
    given = parser.parse_args(arguments)
    given.peers = [peer for peer in given.peers.split(",") if peer]
    chosen = given.only.split(",") if given.only else [*(QUICK if given.quick else WORKLOADS), "costs"]
    for what, names, known in (("peer", given.peers, PEERS), ("workload", chosen, {**WORKLOADS, "costs": 0})):
        for name in names:
            if name not in known:
                parser.error(f"unknown {what} {name!r}; known: {', '.join(known)}")
    given.only = chosen
    given.rounds = given.rounds or (3 if given.quick else 11)
    given.seconds = given.seconds or (0.02 if given.quick else 0.06)
    given.python = dict(pair.partition("=")[::2] for pair in given.python)
    return given


def interpreter(peer: str, given: dict[str, str]) -> str:
    """Where the peer is installed; that of a library holds for each way to run it."""
    for name in (peer, LIBRARIES.get(peer, peer)):
        path = given.get(name) or os.environ.get(f"BENCH_PYTHON_{name.upper()}")
        if path:
            return path
    return sys.executable


def start(peers: list[str], python: dict[str, str], keys: list[str]) -> tuple[dict[str, Process], dict[str, str]]:
    """The processes that answer, and why the others do not."""
    wanted = ["vardag", *peers]
    processes = {peer: Process(peer, interpreter(peer, python)) for peer in wanted}
    if any(WORKLOADS[key].moved for key in keys if key != "copy"):
        processes["copy"] = Process("numpy", sys.executable)
    missing = {}
    for peer, process in list(processes.items()):
        process.greet()
        if process.fault:
            missing[peer] = process.fault
            process.stop()
            del processes[peer]
        elif peer == "copy":
            process.programs = []
    return processes, missing


def main(arguments: list[str] | None = None) -> int:
    given = options(arguments)
    keys = [key for key in given.only if key != "costs"]
    started = time.perf_counter()
    processes, missing = start(given.peers, given.python, keys)
    for peer, why in missing.items():
        print(f"{peer} is left out: {why}")
    if "vardag" in missing:
        return 1
    versions = {peer: process.version for peer, process in processes.items() if peer not in ("copy", *LIBRARIES)}
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, {given.rounds} rounds;", versions)
    rows: list[dict[str, Any]] = []
    shown = [peer for peer in processes if peer != "copy"]
    try:
        show_title(shown)
        for key in keys:
            rows.append(measure(key, processes, given.rounds, given.seconds))
            show_row(rows[-1], shown)
    finally:
        for process in processes.values():
            process.stop()
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "rounds": given.rounds,
        "versions": versions,
        "missing": missing,
        "rows": rows,
    }
    if "costs" in given.only:
        result["costs"] = costs(given.quick, interpreter("vardag", given.python))
        show_costs(result["costs"])
    result["seconds"] = time.perf_counter() - started
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "compare.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    written = [given.out / "compare.json"]
    if not given.no_plot and draw(rows, given.out / "compare.png"):
        written.append(given.out / "compare.png")
    print(f"{result['seconds']:.0f} seconds; written:", *written)
    return 1 if any(row["faults"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
