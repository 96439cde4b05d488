"""A plugin for pytest: ``pytest --vardag-fuzz=100`` runs each test under a hundred schedules.

Loaded by pytest itself where vardag is installed.  Each test becomes one for every seed, with its own fixtures, and its
call stands in ``with vardag.engine.fuzz(seed):``.  What fails names its seed and the last choices;
``--vardag-fuzz-seed=S`` repeats that one.  Without the options nothing happens.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from .engine import fuzz

FIXTURE = "vardag_fuzz_seed"
SHOWN = 40  # choices in a report
STASH = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The two options."""
    group = parser.getgroup("vardag")
    group.addoption("--vardag-fuzz", type=_count, default=0, metavar="N", help="run each test under N schedules")
    group.addoption("--vardag-fuzz-seed", type=int, metavar="S", help="run each test under the schedule of this seed")


def _count(text: str) -> int:
    n = int(text)
    if n < 0:
        raise ValueError("a number of schedules")
    return n


def _seeds(config: pytest.Config) -> list[int]:
    seed = config.getoption("--vardag-fuzz-seed")
    return list(range(config.getoption("--vardag-fuzz"))) if seed is None else [seed]


@pytest.fixture
def vardag_fuzz_seed(request: pytest.FixtureRequest) -> int | None:
    """The seed that the test runs under; None without the options."""
    return getattr(request, "param", None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each seed."""
    seeds = _seeds(metafunc.config)
    if seeds:
        if FIXTURE not in metafunc.fixturenames:
            metafunc.fixturenames.append(FIXTURE)
        metafunc.parametrize(FIXTURE, seeds, indirect=True, ids=[f"seed {seed}" for seed in seeds])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """The call of a test, under its schedule."""
    seed = getattr(item, "callspec", None) and item.callspec.params.get(FIXTURE)  # type: ignore[attr-defined]
    if seed is None:
        return (yield)
    schedule = fuzz(seed)
    try:
        with schedule:
            return (yield)
    except BaseException:
        last = schedule.log[-SHOWN:]
        file = item.nodeid.partition("[")[0]
        item.stash[STASH] = "\n".join(
            [f"seed {seed}; to repeat it: pytest {file} --vardag-fuzz-seed={seed}", f"the last {len(last)} choices:"]
            + [f"  {choice}" for choice in last]
        )
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """What failed says under which seed."""
    report = yield
    text = item.stash.get(STASH, None)
    if text is not None and report.when == "call":
        report.sections.append(("vardag schedule", text))
    return report
