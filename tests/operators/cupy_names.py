"""Writes cupy_names.json, what CuPy has under which name and with which parameters; run by a Python that has CuPy 14.

    python tests/operators/cupy_names.py

A test machine needs no CuPy then: the wheel and what it needs take some 290 MB, and the names change with
its releases only.  test_cupy.py compares the file with CuPy where that is installed.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

PATH = Path(__file__).with_name("cupy_names.json")


def _parameters(value: Any) -> list[str] | None:
    """The names of its parameters, starred ones with their stars; None if it does not say."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return None
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [stars.get(p.kind, "") + p.name for p in signature.parameters.values()]


def _method(value: Any) -> Any:
    """The same of a method of an array, which says it in the first line of its docstring only."""
    if not callable(value):
        return "value"
    said = re.match(r"\w+\.\w+\(self(?:, )?(.*?)\)(?: ->|$)", (value.__doc__ or "").split("\n")[0])
    return None if said is None else [p.split("=")[0].split()[-1] for p in said[1].split(", ") if p]


def snapshot() -> dict[str, Any]:
    """name -> "ufunc", "value" or the parameters (None: unknown); under NumPy's and SciPy's names."""
    import cupy  # type: ignore[import-not-found, unused-ignore]
    from cupyx.scipy import special  # type: ignore[import-not-found, unused-ignore]

    found: dict[str, Any] = {}

    def look(prefix: str, module: Any) -> None:
        for name in dir(module):
            if name.startswith("_"):
                continue
            value = getattr(module, name)
            if isinstance(value, cupy.ufunc):
                found[prefix + name] = "ufunc"
            elif isinstance(value, type):
                found[prefix + name] = "value"
            elif callable(value):
                found[prefix + name] = _parameters(value)
            elif not isinstance(value, ModuleType):
                found[prefix + name] = "value"

    look("numpy.", cupy)
    look("numpy.linalg.", cupy.linalg)
    look("numpy.fft.", cupy.fft)
    look("numpy.lib.stride_tricks.", cupy.lib.stride_tricks)
    look("scipy.special.", special)
    found.update((f"ndarray.{n}", _method(getattr(cupy.ndarray, n))) for n in dir(cupy.ndarray) if n[0] != "_")
    generator = (name for name in dir(cupy.random.Generator) if not name.startswith("_"))
    found.update((f"Generator.{name}", "value") for name in generator)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    PATH.write_text(json.dumps(snapshot(), indent=0) + "\n")
