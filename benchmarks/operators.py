"""A table of MXNet 1.9.1's operators: which are here, their gradients, how far values and gradients are apart.

``python benchmarks/operators.py`` compares with the answers of the real MXNet in tests/operators/mxnet_operators.npz,
and with the references of the declarations, which NumPy computes in float64.  Deviations are relative to the largest
value.  ``--mxnet PATH/python`` times operators beside MXNet's; those beyond 3 times its time are listed with a profile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import linecache
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vardag import nd
from vardag.engine import Engine
from vardag.operators import registry
from vardag.operators.signatures import gradient
from vardag.operators.testing import Case, arrays_of

FOLDER = str(Path(nd.__file__).resolve().parent.parent / "operators")
AROUND = "around the kernels, and ufuncs"
TESTS = Path(__file__).resolve().parent.parent / "tests" / "operators"


def load(name: str) -> Any:
    """A file beside the tests as a module."""
    spec: Any = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_mxnet(tests: Any) -> dict[str, float]:
    """The largest deviation of each name from MXNet's answers."""
    found: dict[str, float] = {}
    for key, answers in tests.ANSWERS.items():
        name = key.split("/")[0]
        if "error" not in answers and key not in tests.DIFFER:
            found[name] = max(found.get(name, 0.0), tests.compare(key))
    return found


def from_numpy(op: Any) -> float | None:
    """The largest deviation of the float32 values from the reference in float64."""
    if op.reference is None or not op.samples:
        return None
    worst = 0.0
    for number, sample in enumerate(op.samples):
        case = Case(op, number, sample)
        raws = case.raws()
        wide = [x if x is None or x.dtype.kind != "f" else x.astype(np.float64) for x in raws]
        with np.errstate(all="ignore"):
            wanted = op.reference(*wide, **case.attributes)
        for y, w in zip(case.values(arrays_of(raws)), wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
            if y.dtype.kind == "f" and y.size:
                apart = np.nanmax(np.abs(y - w), initial=0)
                worst = max(worst, float(apart) / max(1.0, float(np.nanmax(np.abs(w), initial=0))))
    return worst


class Asked(NamedTuple):
    """One timed call: seconds here and in MXNet."""

    question: dict[str, Any]
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def times(tests: Any, python: str) -> dict[str, Asked]:
    """Each operator beside MXNet's in the interpreter `python`, at a middle size, one after the other."""
    found: dict[str, Asked] = {}
    mxnet = subprocess.Popen(
        [python, str(TESTS / "mxnet_operators.py"), "clock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with mxnet:
        assert mxnet.stdin is not None and mxnet.stdout is not None
        for question in tests.mxnet.timed_questions():
            mxnet.stdin.write(json.dumps(question) + "\n")
            mxnet.stdin.flush()
            answer = mxnet.stdout.readline()
            if not answer:
                break
            theirs = json.loads(answer)
            if theirs:
                found[question["name"]] = Asked(question, here(tests, question), theirs)
        mxnet.stdin.close()
    return found


def here(tests: Any, question: dict[str, Any], rounds: int = 15) -> float:
    """The least seconds of a call in this library."""
    seconds: float = tests.mxnet.timed(nd, lambda x: nd.array(x, dtype=x.dtype), question, rounds)
    return seconds


def profile(tests: Any, asked: Asked, rounds: int = 10) -> list[tuple[float, str]]:
    """(share of the time, where), the largest first: lines of kernels, their C calls, and what is around the kernels.

    Kernels run on this thread, by the serial engine; the rest of the time is the way there and back: arguments, push,
    hand-over between threads.
    """
    spent: Counter[str] = Counter()  # seconds

    def where(frame: Any) -> str:
        """The line of an operator's file that this frame is in, or was called by."""
        while frame is not None and not frame.f_code.co_filename.startswith(FOLDER):
            frame = frame.f_back
        if frame is None:
            return "?"
        file = frame.f_code.co_filename
        return f"{Path(file).name}:{frame.f_lineno} {linecache.getline(file, frame.f_lineno).strip()}"

    def lines(kernel: Any) -> Any:
        def follow(frame: Any, event: str, _: Any) -> Any:
            nonlocal last, place
            spent[place] += time.perf_counter() - last
            place = where(frame.f_back if event == "return" else frame)
            last = time.perf_counter()
            return follow if frame.f_code.co_filename.startswith(FOLDER) else None

        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal last, place
            place, last, before = "?", time.perf_counter(), sys.gettrace()
            sys.settrace(follow)
            try:
                steps = kernel(*arguments, **named)
            finally:
                sys.settrace(before)
            for function, *operands in steps or ():
                begin = time.perf_counter()
                function(*operands)
                owner = getattr(function, "__self__", None)
                name = getattr(function, "__name__", None) or getattr(getattr(function, "func", None), "__name__", "")
                spent[f"{getattr(owner, '__name__', '')}.{name}".strip(".")] += time.perf_counter() - begin
            return () if steps is not None else None

        last: float = 0.0
        place = "?"
        return run

    kernels = [(op, op.kernel) for op in registry if op.ufunc is None]
    for op, kernel in kernels:
        op.kernel = lines(kernel)
    try:
        with Engine(kind="NaiveEngine", inline=False):
            here(tests, asked.question, rounds)
    finally:
        for op, kernel in kernels:
            op.kernel = kernel
    del spent["?"]
    whole = max(asked.ours * (rounds + 2), spent.total())
    around = whole - spent.total()
    return [(seconds / whole, place) for place, seconds in (spent + Counter({AROUND: around})).most_common()]


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if a deviation is more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--mxnet", help="an interpreter with mxnet 1.9.1: operators are timed beside it")
    given = parser.parse_args(arguments)
    tests = load("test_mxnet_operators")
    ratios = times(tests, given.mxnet) if given.mxnet else {}
    names = json.loads((TESTS / "mxnet_names.json").read_text())
    ours = {name: op for op in registry if op.nd is not False for name in (op.name, *op.aliases)}
    apart = from_mxnet(tests)
    bad = 0
    print(f"{'name':40} {'here':>5} {'MXNet':>9} {'NumPy':>9} {'time':>6}  gradient")
    for space, listed in names.items():
        root = nd if space == "nd" else getattr(nd, space, None)
        here = [name for name in listed if hasattr(root, name)]
        prefix = "" if space == "nd" else f"{space}_"
        for name in listed:
            full = prefix + name
            op, mx = ours.get(full), apart.get(full)
            np64 = None if op is None else from_numpy(op)
            shown = [f"{x:9.1e}" if x is not None else f"{'-':>9}" for x in (mx, np64)]
            ratio = f"{ratios[full].ratio:6.2f}" if full in ratios else f"{'-':>6}"
            print(f"{space + '.' + name:40} {'yes' if name in here else 'no':>5} {shown[0]} {shown[1]} {ratio}  "
                  f"{gradient(op) if op else ''}")  # fmt: skip
            bad += mx is not None and mx > 1e-5
        compared = sum(prefix + name in apart for name in listed)
        print(f"-- {space}: {len(here)} of {len(listed)} names; {compared} compared with MXNet")
    if ratios:
        slow = sorted((asked for asked in ratios.values() if asked.ratio > 3), key=lambda asked: -asked.ratio)
        within = 1 - len(slow) / len(ratios)
        print(f"-- {len(ratios)} timed, of about 131,072 elements: {within:.0%} within 3 times MXNet's time; slower:")
        for asked in slow:
            shapes = ", ".join(str(np.shape(x)) for _, x, _, _ in asked.question["operands"])
            took = f"{asked.ours * 1e6:.0f} us, MXNet {asked.theirs * 1e6:.0f} us"
            print(f"{asked.question['name']} {asked.ratio:.1f}: {took}; {shapes} x {asked.question['times']}, "
                  f"{asked.question['attributes']}")  # fmt: skip
            for share, where in profile(tests, asked)[:4]:
                print(f"    {share:4.0%}  {where[:100]}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
