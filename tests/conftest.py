"""What every test shares: the checkout is what is tested, nothing outlives its test, a hang explains itself.

A hang prints every thread's stack (`faulthandler_timeout` and `timeout_method` in pyproject.toml).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vardag as vd
from vardag.engine import Engine, current, default
from vardag.ndarray.context import DEFAULT
from vardag.ndarray.device import FACTORIES

ROOT = Path(__file__).resolve().parent.parent

if Path(vd.__file__).resolve().parent != ROOT:
    raise pytest.UsageError(
        f"these tests belong to {ROOT}, but `import vardag` finds {Path(vd.__file__).parent}.\n"
        "Was the directory copied or moved together with its .venv? Run: make clean, then make test."
    )

# The serial engine is the oracle: whatever runs on it must give the same bytes on the others.
ENGINES = {
    "naive": ("NaiveEngine", None),
    "threaded-1": ("ThreadedEnginePerDevice", 1),
    "threaded-2": ("ThreadedEnginePerDevice", 2),
    "threaded-8": ("ThreadedEnginePerDevice", 8),
}


ELSEWHERE = DEFAULT.device_type in FACTORIES


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`VARDAG_DEFAULT_CONTEXT='simulated(0)'`: all tests but those of the host run on a device with streams."""
    host = item.get_closest_marker("host")
    if host is not None and ELSEWHERE:
        pytest.skip(f"of the host: {host.args[0]}")


@pytest.fixture(params=list(ENGINES))
def engine_kind(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The test runs four times, each time with another engine as the current one."""
    kind, workers = ENGINES[request.param]
    with Engine(kind=kind, workers=workers) as engine:
        yield engine


@pytest.fixture
def no_gc_callbacks() -> Iterator[None]:
    """For tests that throw interrupts anywhere: Python swallows, and reports, one that hits a collection's callback."""
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = callbacks


@pytest.fixture
def nothing_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tape holds small values too, which it would rather copy: for tests of what holds do."""
    from vardag.operators import tiny

    monkeypatch.setattr(tiny, "COPIED", 0)


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A test that leaves an unseen error, a recording scope or an engine behind fails itself, not the next one."""
    yield
    left = []
    try:
        default().wait_for_all(timeout=60)
    except Exception as error:
        left.append(f"errors in the default engine that it never looked at: {describe(error)}")
    if current() is not default():
        left.append(f"the current engine: {current()!r}")
    if vd.autograd.set_recording(False):
        left.append("recording switched on")
    if vd.autograd.set_training(False):
        left.append("training mode switched on")
    if left:
        pytest.fail("the test left behind: " + "; ".join(left))


def describe(error: BaseException) -> str:
    """The leaves of an exception group, one line each."""
    leaves = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
    return "".join(f"\n  {type(leaf).__name__}: {leaf}" for leaf in leaves)
