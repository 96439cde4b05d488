"""A table of MXNet 1.9.1's operators: which are here, their gradients, how far values and gradients are apart.

``python benchmarks/operators.py`` compares with the answers of the real MXNet in tests/operators/mxnet_operators.npz,
and with the references of the declarations, which NumPy computes in float64.  Deviations are relative to the largest
value.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vardag import nd
from vardag.operators import registry
from vardag.operators.signatures import gradient
from vardag.operators.testing import Case, arrays_of

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


def times(tests: Any, python: str) -> dict[str, float]:
    """The time of each operator by MXNet's in the interpreter `python`, at a middle size, one after the other."""
    found: dict[str, float] = {}
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
                ours = tests.mxnet.timed(nd, lambda x: nd.array(x, dtype=x.dtype), question)
                found[question["name"]] = ours / theirs
        mxnet.stdin.close()
    return found


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
        for name in listed:
            op = ours.get(name) if space == "nd" else None
            mx, np64 = apart.get(name) if space == "nd" else None, None if op is None else from_numpy(op)
            shown = [f"{x:9.1e}" if x is not None else f"{'-':>9}" for x in (mx, np64)]
            ratio = f"{ratios[name]:6.2f}" if space == "nd" and name in ratios else f"{'-':>6}"
            print(f"{space + '.' + name:40} {'yes' if name in here else 'no':>5} {shown[0]} {shown[1]} {ratio}  "
                  f"{gradient(op) if op else ''}")  # fmt: skip
            bad += mx is not None and mx > 1e-5
        print(f"-- {space}: {len(here)} of {len(listed)} names; {sum(n in apart for n in listed)} compared with MXNet")
    if ratios:
        slow = sorted((name for name, ratio in ratios.items() if ratio > 3), key=lambda name: -ratios[name])
        within = 1 - len(slow) / len(ratios)
        print(f"-- {len(ratios)} timed, of about 131,072 elements: {within:.0%} within 3 times MXNet's time")
        print(f"-- slower: {', '.join(f'{name} {ratios[name]:.1f}' for name in slow) or 'none'}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
