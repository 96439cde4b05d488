"""The watchdog: one warning for each stall, with the chain of what blocks what."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest

from vardag import engine
from vardag.engine import ArgumentError, Engine
from vardag.engine.testing import Gate


class Said(logging.Handler):
    """Waits for messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.more = threading.Semaphore(0)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.more.release()


@pytest.fixture
def said() -> Any:
    log, handler = logging.getLogger("vardag.engine"), Said()
    log.addHandler(handler)
    log.propagate = False
    yield handler
    log.removeHandler(handler)
    log.propagate = True


def test_a_stall_is_explained_once(said: Any) -> None:
    with Engine(workers=2) as e, engine.watchdog(0.05, e) as dog:
        for turn in range(1, 3):
            gate, v = Gate(), e.new_variable()
            e.push(gate, writes=[v], name="stuck")
            last = e.push(lambda: None, updates=[v], name="behind")
            assert said.more.acquire(timeout=60)
            text = said.messages[-1]
            assert "nothing has ended for" in text
            assert "2 pending" in text
            assert "[stuck]" in text and "running, on" in text and "test_watchdog.py" in text
            assert "is in" in text  # where it is now
            assert not said.more.acquire(timeout=0.3)  # once
            assert dog.stalls == turn
            gate.open()
            last.wait()


def test_what_goes_on_is_no_stall(said: Any) -> None:
    with Engine(workers=1) as e, engine.watchdog(10, e) as dog:
        for _ in range(100):
            e.push(lambda: None).wait()
        assert dog.stalls == 0
    assert said.messages == []


def test_it_keeps_no_engine_alive() -> None:
    e = Engine(workers=1)
    dog = engine.watchdog(1000, e)
    e.push(lambda: None).wait()
    e.stop()
    seen = weakref.ref(e)
    del e
    gc.collect()
    assert seen() is None
    dog._thread.join(timeout=60)
    assert not dog._thread.is_alive()
    dog.stop()


@pytest.mark.parametrize("seconds", [0, -1, "5", None, float("nan")])
def test_wrong_times(seconds: Any) -> None:
    with pytest.raises(ArgumentError, match="watchdog"):
        engine.watchdog(seconds)


def test_by_the_environment() -> None:
    program = """
from vardag import engine
from vardag.engine.testing import Gate
import threading
gate = Gate()
op = engine.current().push(gate, name="stuck")
threading.Timer(0.5, gate.open).start()
op.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "VARDAG_WATCHDOG": "0.05"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr.count("nothing has ended for") == 1
    assert "[stuck]" in done.stderr
    wrong = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "VARDAG_WATCHDOG": "soon"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert wrong.returncode and "VARDAG_WATCHDOG='soon'" in wrong.stderr
