"""The table of evidence: tests note what they counted, and a long run (`make stress`) prints it at its end."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest

LONG = float(os.environ.get("VARDAG_STRESS") or 0) > 0

# A test notes ``record_property("evidence", (row, count, wanted, remark))``; counts of one row are added up.
ROWS = {
    "programs": "random programs against the serial engine, faults at random operations, 1/2/8 workers",
    "interrupts": "interrupts: at every checkpoint, twice in a row, and in storms",
    "inside": "of these, inside the engine",
    "memory": "programs in which every single allocation fails, once and twice",
    "forks": "forks while four threads push: children that compute and exit with 0",
    "exits": "process exits with work in flight: right code, empty stderr",
    "waits": "nested, crossed and self-waits that end or raise within a second",
    "threads": "operations of 32 threads on shared arrays, equal to a serial order",
    "limits": "large updates within the bounds",
    "loop": "steps of dw += dot(x.T, dy), with one temporary per thread that runs operations",
    "guards": "guards whose removal a named test notices",
}


# What a whole long run has to reach, where that is more than the sum of what its tests ask for.
LEAST = {"interrupts": 10_000, "inside": 3_000}


@pytest.fixture(autouse=True, scope="module")
def what_lived_before_is_not_collected() -> Iterator[None]:
    """Every injected MemoryError has the engine collect garbage, which takes the longer the more other tests left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if LONG:
        terminalreporter.section("evidence")
        for line in table(noted(terminalreporter)):
            terminalreporter.write_line(line)


def noted(terminalreporter: Any) -> list[tuple[str, int, int, str]]:
    """What the tests have noted."""
    return [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "evidence"
    ]


def table(notes: list[tuple[str, int, int, str]]) -> Iterator[str]:
    """A line for each row, and what its tests remarked."""
    assert {row for row, *_ in notes} <= set(ROWS)
    yield f"{'count':>8} {'wanted':>8}"
    for row, text in ROWS.items():
        mine = [note for note in notes if note[0] == row]
        count, wanted = sum(note[1] for note in mine), LEAST.get(row) or sum(note[2] for note in mine)
        yield f"{count:8} {wanted:8}  {text}{'' if mine and count >= wanted else '   MISSING'}"
        for *_, remark in mine:
            if remark:
                yield f"{'':20}{remark}"


@pytest.fixture
def note(record_property: Any) -> Any:
    """``note(row, count, wanted, remark="")``."""

    def noting(row: str, count: int, wanted: int, remark: str = "") -> None:
        record_property("evidence", (row, count, wanted, remark))
        assert row in ROWS
        assert count >= wanted

    return noting
