"""What the profiler, the access checks and the schedules to order cost while they are off.

    python benchmarks/hooks.py [--rounds 15]

A copy of the package is made in which every question for them is answered: ``x._instrument is None`` is ``True``,
``is not None`` is ``False``, and so for `_fuzz`, `fuzzing` and `checking`.  Package and copy run the same work in
turns, in processes of their own.  Printed is, for each kind of work, the median over the rounds of the ratio of the
package's time to the copy's, and the least and the largest.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("engine", "ndarray", "operators", "autograd")
HOOKS = frozenset(("_instrument", "_fuzz", "fuzzing", "checking"))
BLOCKS = 12  # of which the fastest counts


class Answered(ast.NodeTransformer):
    """Comparisons of a hook with None become what they are while it is off."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        name = getattr(node.left, "attr", getattr(node.left, "id", ""))
        (other,) = node.comparators[:1]
        if name in HOOKS and isinstance(other, ast.Constant) and other.value is None:
            self.count += 1
            return ast.copy_location(ast.Constant(isinstance(node.ops[0], ast.Is)), node)
        return node


def without_hooks(place: Path) -> int:
    """Write the copy; gives how many questions it no longer asks."""
    package, answered = place / "vardag", Answered()
    package.mkdir()
    for file in ROOT.glob("*.py"):
        shutil.copy(file, package)
    for room in ROOMS:
        shutil.copytree(ROOT / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
        for file in (package / room).rglob("*.py"):
            text = file.read_text("utf-8")
            if any(hook in text for hook in HOOKS):
                file.write_text(ast.unparse(answered.visit(ast.parse(text))), "utf-8")
    return answered.count


def works() -> dict[str, Callable[[], object]]:
    """Name of a kind of work -> one block of it."""
    from vardag import autograd, nd
    from vardag.engine import current

    engine = current()
    a, b = nd.ones(10), nd.ones(10)
    large = nd.ones(1 << 17)
    a.attach_grad()
    variables = [engine.new_variable() for _ in range(8)]

    def at_once() -> None:
        for _ in range(2000):
            a + b

    def functions() -> None:
        for i in range(1000):
            engine.push(nothing, reads=(variables[i % 8],), updates=(variables[(i + 3) % 8],))
        engine.wait_for_all()

    def kernels() -> None:
        for _ in range(200):
            large + large
        nd.waitall()

    def training() -> None:
        for _ in range(100):
            with autograd.record():
                y = (a * a + a) * 2
            y.backward()

    return {"a + b, 10 elements": at_once, "1,000 functions": functions, "200 kernels": kernels, "backward": training}


def nothing() -> None: ...


def worker() -> None:
    """Print the seconds of the fastest block of each kind."""
    for name, work in works().items():
        times = []
        for _ in range(BLOCKS):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        print(f"{min(times)!r} {name}")


def times(root: Path | None) -> dict[str, float]:
    """Of a process of its own.  `root`: where the package is to be found, None for the installed one."""
    environment = dict(os.environ, VARDAG_NUM_WORKERS="2", **({} if root is None else {"PYTHONPATH": str(root)}))
    command = [sys.executable, __file__, "--worker"]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return {name: float(seconds) for seconds, _, name in (line.partition(" ") for line in out.splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker()
        return
    with tempfile.TemporaryDirectory(prefix="vardag-hooks-") as directory:
        place = Path(directory)
        print(f"{without_hooks(place)} questions answered in the copy; the package's time is so many times the copy's")
        ratios: dict[str, list[float]] = {}
        for i in range(given.rounds):
            ours, copied = (times(root) for root in ((None, place), (place, None))[i % 2])
            if i % 2:
                ours, copied = copied, ours
            for name, seconds in ours.items():
                ratios.setdefault(name, []).append(seconds / copied[name])
    for name, found in ratios.items():
        print(f"{name:20} {statistics.median(found):.3f}   ({min(found):.3f} to {max(found):.3f})")


if __name__ == "__main__":
    main()
