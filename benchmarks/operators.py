"""A table of MXNet 1.9.1's operators: which are here, their gradients, how far values and gradients are apart.

``python benchmarks/operators.py`` compares with the answers of the real MXNet in tests/operators/mxnet_operators.npz,
and with the references of the declarations, which NumPy computes in float64.  Deviations are relative to the largest
value.
"""

from __future__ import annotations

import importlib.util
import json
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


def main() -> int:
    """Print the table; 1 if a deviation is more than rounding."""
    tests = load("test_mxnet_operators")
    names = json.loads((TESTS / "mxnet_names.json").read_text())
    ours = {name: op for op in registry if op.nd is not False for name in (op.name, *op.aliases)}
    apart = from_mxnet(tests)
    bad = 0
    print(f"{'name':40} {'here':>5} {'MXNet':>9} {'NumPy':>9}  gradient")
    for space, listed in names.items():
        root = nd if space == "nd" else getattr(nd, space, None)
        here = [name for name in listed if hasattr(root, name)]
        for name in listed:
            op = ours.get(name) if space == "nd" else None
            mx, np64 = apart.get(name) if space == "nd" else None, None if op is None else from_numpy(op)
            shown = [f"{x:9.1e}" if x is not None else f"{'-':>9}" for x in (mx, np64)]
            print(f"{space + '.' + name:40} {'yes' if name in here else 'no':>5} {shown[0]} {shown[1]}  "
                  f"{gradient(op) if op else ''}")  # fmt: skip
            bad += mx is not None and mx > 1e-5
        print(f"-- {space}: {len(here)} of {len(listed)} names; {sum(n in apart for n in listed)} compared with MXNet")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
