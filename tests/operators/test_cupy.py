"""What every kernel and gradient text uses is in CuPy, with the arguments used; shown without a GPU and without CuPy.

cupy_names.json says what CuPy has, cupy_walk.py what the operators use.  What they use and CuPy lacks stands in
cupy_gaps.txt, which may only say what is so: a new gap fails, and so does one that is gone.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from vardag.operators import fusion, launch, quick, registry, stages, texts, tiny, tracing
from vardag.operators.schema import Operator

sys.path.insert(0, str(Path(__file__).parent))
try:
    import cupy_names
    import cupy_walk
finally:
    sys.path.pop(0)

GAPS = Path(__file__).with_name("cupy_gaps.txt")
#: what runs kernels and texts on raw arrays
RUNNERS = (fusion, launch, quick, stages, texts, tiny, tracing)


def walk_of(op: Operator) -> cupy_walk.Walk:
    return cupy_walk.Walk(cupy_walk.parts(op))


@pytest.fixture(scope="module")
def walks() -> dict[str, cupy_walk.Walk]:
    made = {op.name: walk_of(op) for op in registry}
    return {**made, "(runners)": cupy_walk.Walk(cupy_walk.everything(RUNNERS))}


def test_every_operator_is_read(walks: dict[str, cupy_walk.Walk]) -> None:
    unread = {name: walk.unread for name, walk in walks.items() if walk.unread}
    assert not unread, "functions whose source is not found"
    empty = [name for name, walk in walks.items() if not walk.functions and not walk.uses]
    assert not empty, "operators of which nothing is read"
    functions = set().union(*(walk.functions for walk in walks.values()))
    assert len(functions) > 700
    print(f"{len(walks) - 1} operators, {len(functions)} functions, 100 % read")


def test_what_they_use_is_in_cupy(walks: dict[str, cupy_walk.Walk]) -> None:
    found: dict[str, set[str]] = {}
    for name, walk in walks.items():
        for finding in walk.found:
            found.setdefault(finding, set()).add(name)
    known = set(GAPS.read_text().splitlines())
    assert not {f: sorted(names) for f, names in found.items() if f not in known}, "CuPy lacks it: use what it has"
    assert not sorted(known - set(found)), "no gap any more: take it out of cupy_gaps.txt"


def test_the_names_are_those_of_cupy() -> None:
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("no CuPy here; cupy_names.json is of CuPy 14")
    assert cupy_names.snapshot() == cupy_walk.NAMES


# ---- the check finds what it is to find ------------------------------------------------------------------------------


def _not_there(xp: Any, x: Any, *, out: Any) -> None:
    xp.spacing(x, out=out)


def _keyword(xp: Any, x: Any, *, out: Any) -> None:
    out[...] = xp.argsort(x, stable=True)


def _keyword_of_a_ufunc(xp: Any, x: Any, *, out: Any) -> None:
    xp.add(x, x, out=out, order="C")


def _step(xp: Any, x: Any, *, out: Any) -> Any:
    return ((xp.spacing, x, out),)


def _method(xp: Any, x: Any, *, out: Any) -> None:
    out[...] = xp.maximum.reduce(x)


def _of_a_method(xp: Any, x: Any, *, out: Any) -> None:
    out[...] = xp.add.reduce(x, initial=0)


def _of_arrays(xp: Any, x: Any, *, out: Any) -> None:
    out[...] = x.reshape(-1).getfield(x.dtype)


def _keyword_of_arrays(xp: Any, x: Any, *, out: Any) -> None:
    out[...] = x.max(initial=1)


def _too_many(xp: Any, x: Any, *, out: Any) -> None:
    out[...] = xp.triu(x, 0, 1)


def _called(xp: Any, x: Any, *, out: Any) -> None:
    _not_there(xp, x, out=out)


def _table(xp: Any, x: Any, *, out: Any) -> None:
    _TABLE["spacing"](xp, x, out=out)


_TABLE = {"spacing": _not_there}


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (_not_there, "numpy.spacing is not"), (_keyword, "argsort(stable=)"), (_keyword_of_a_ufunc, "add(order=)"),
        (_step, "numpy.spacing is not"), (_method, "maximum.reduce"), (_of_a_method, "add.reduce(initial=)"),
        (_of_arrays, ".getfield"), (_keyword_of_arrays, "max(initial=)"),
        (_too_many, "triu takes 2"), (_called, "numpy.spacing is not"),
        (_table, "numpy.spacing is not"),
    ],
)  # fmt: skip
def test_a_kernel_that_uses_what_is_not_there(kernel: Any, words: str) -> None:
    op = Operator("seeded", kernel, lambda metas, attributes: ((metas[0],), attributes))
    assert any(words in finding for finding in walk_of(op).found), walk_of(op).found
