"""MXNet's profiler: ``vardag.profiler.set_config``, ``set_state``, ``dump``, and scopes of one's own.

It profiles the current engine with `vardag.engine.profile`, whose own face says more; what it writes opens in Perfetto.

>>> import tempfile, os
>>> from vardag import nd, profiler
>>> path = os.path.join(tempfile.mkdtemp(), "profile.json")
>>> profiler.set_config(filename=path)
>>> profiler.set_state("run")
>>> with profiler.Task(profiler.Domain("mine"), "sums"):
...     nd.ones((2, 2)).sum().wait_to_read()
>>> profiler.set_state("stop")
>>> "sum" in profiler.dumps()
True
>>> profiler.dump()
>>> os.path.getsize(path) > 0
True
"""

from __future__ import annotations

import json
import threading
from time import monotonic
from types import TracebackType
from typing import Any

from .engine import ArgumentError, Profile, current

__all__ = [
    "Counter",
    "Domain",
    "Event",
    "Frame",
    "Marker",
    "Task",
    "dump",
    "dumps",
    "pause",
    "resume",
    "set_config",
    "set_state",
]

CONFIG = frozenset(
    (
        "aggregate_stats", "continuous_dump", "dump_period", "filename", "gpu_memory_profile_filename_prefix",
        "profile_all", "profile_api", "profile_imperative", "profile_memory", "profile_process", "profile_symbolic",
    )
)  # fmt: skip
SORTS = ("total", "avg", "min", "max", "count")


class _State:
    """`profile`: the one that runs or ran last.   `running`: whether it records, or is paused."""

    filename = "profile.json"
    profile: Profile | None = None
    running = False
    paused = False


_state = _State()


def set_config(**config: Any) -> None:
    """``filename="profile.json"`` is where `dump` writes; MXNet's other settings are taken and mean nothing here.

    Raises: ArgumentError for an unknown one, or while the profiler runs.
    """
    for name in config:
        if name not in CONFIG:
            raise ArgumentError(f"[profiler.set_config] {name}: one of {', '.join(sorted(CONFIG))} expected")
    if _state.running:
        raise ArgumentError("[profiler.set_config] the profiler runs: set_state('stop') first")
    _state.filename = str(config.get("filename", _state.filename))


def set_state(state: str = "stop", profile_process: str = "worker") -> None:
    """ "run": record the operations pushed to the current engine from now on; "stop": end that.

    Sync: "stop" waits for what was pushed.   Raises: ArgumentError for another state, and if the engine is being
    profiled already.
    """
    if state not in ("run", "stop"):
        raise ArgumentError(f"[profiler.set_state] {state!r}: 'run' or 'stop' expected")
    if state == "run" and not _state.running:
        profile = current().profile()
        profile.__enter__()
        _state.profile, _state.running, _state.paused = profile, True, False
    elif state == "stop" and _state.running:
        profile = _profile()
        profile.engine.wait_for_all()
        if not _state.paused:
            profile.__exit__(None, None, None)
        _state.running = False


def pause(profile_process: str = "worker") -> None:
    """Record nothing until `resume`."""
    if _state.running and not _state.paused:
        _profile().__exit__(None, None, None)
        _state.paused = True


def resume(profile_process: str = "worker") -> None:
    """Go on recording."""
    if _state.running and _state.paused:
        _profile().resume()
        _state.paused = False


def dump(finished: bool = True, profile_process: str = "worker") -> None:
    """Write what was recorded to the file of `set_config`, for Perfetto.  `finished`: stop recording before.

    Sync: waits for what was pushed.   Raises: ArgumentError if nothing was recorded.
    """
    profile = _profile()
    if finished:
        set_state("stop")
    else:
        profile.engine.wait_for_all()
    profile.save(_state.filename)


def dumps(reset: bool = False, format: str = "table", sort_by: str = "total", ascending: bool = False) -> str:
    """Operations by name, as a table or as JSON.   `reset`: forget what was recorded.

    Raises: ArgumentError for an unknown format or order, or if nothing was recorded.
    """
    if format not in ("table", "json") or sort_by not in SORTS:
        raise ArgumentError(f"[profiler.dumps] format 'table' or 'json' and sort_by one of {SORTS} expected")
    profile = _profile()
    rows: dict[str, list[float]] = {}
    for event in profile.events:
        if event.end is not None:
            rows.setdefault(event.name or "?", []).append(event.seconds * 1e3)
    found = [
        {"name": name, "count": len(ms), "total": sum(ms), "min": min(ms), "max": max(ms), "avg": sum(ms) / len(ms)}
        for name, ms in rows.items()
    ]
    found.sort(key=lambda row: row[sort_by], reverse=not ascending)
    if reset:
        profile.clear()
    if format == "json":
        return json.dumps({"Time": {row["name"]: row for row in found}, "Unit": {"Time": "ms"}})
    lines = [f"{'Name':32} {'Total Count':>12} {'Time (ms)':>12} {'Min (ms)':>10} {'Max (ms)':>10} {'Avg (ms)':>10}"]
    for row in found:
        times = " ".join(
            f"{row[key]:{width}.4f}" for key, width in (("total", 12), ("min", 10), ("max", 10), ("avg", 10))
        )
        lines.append(f"{str(row['name'])[:32]:32} {row['count']:12d} {times}")
    return "\n".join(lines)


def _profile() -> Profile:
    if _state.profile is None:
        raise ArgumentError("[profiler] nothing was recorded: set_state('run') first")
    return _state.profile


# ---- scopes of one's own ---------------------------------------------------------------------------------------------


def _note(entry: dict[str, Any]) -> None:
    profile = _state.profile
    if profile is not None and _state.running and not _state.paused:
        profile.note(entry)


class Domain:
    """A group of the user's own tasks, frames, counters and markers."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name

    def new_task(self, name: str) -> Task:
        """A `Task` of it."""
        return Task(self, name)

    def new_frame(self, name: str) -> Frame:
        """A `Frame` of it."""
        return Frame(self, name)

    def new_counter(self, name: str, value: float | None = None) -> Counter:
        """A `Counter` of it."""
        return Counter(self, name, value)

    def new_marker(self, name: str) -> Marker:
        """A `Marker` of it."""
        return Marker(self, name)


class _Span:
    """From `start` to `stop`, or a ``with`` block: a slice on the row of the thread that stops it."""

    def __init__(self, domain: Domain | None, name: str) -> None:
        self.domain, self.name = domain, name
        self._began: float | None = None

    def __str__(self) -> str:
        return self.name

    def start(self) -> None:
        """It begins."""
        self._began = monotonic()

    def stop(self) -> None:
        """It ends.  Without a beginning nothing happens."""
        began, self._began = self._began, None
        if began is not None:
            _note(
                {"ph": "X", "name": self.name, "cat": str(self.domain or "event"), "began": began, "end": monotonic()}
            )

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


class Task(_Span):
    """A piece of the user's work."""

    def __init__(self, domain: Domain, name: str) -> None:
        super().__init__(domain, name)


class Frame(_Span):
    """One of a row of equal pieces of work."""

    def __init__(self, domain: Domain, name: str) -> None:
        super().__init__(domain, name)


class Event(_Span):
    """A piece of work without a domain."""

    def __init__(self, name: str) -> None:
        super().__init__(None, name)


class Counter:
    """A number over time."""

    def __init__(self, domain: Domain, name: str, value: float | None = None) -> None:
        self.domain, self.name = domain, name
        self.value = 0.0
        self._lock = threading.Lock()
        if value is not None:
            self.set_value(value)

    def set_value(self, value: float) -> None:
        """It is this from now on."""
        self._to(lambda _: value)

    def increment(self, delta: float = 1) -> None:
        """So much more."""
        self._to(lambda before: before + delta)

    def decrement(self, delta: float = 1) -> None:
        """So much less."""
        self._to(lambda before: before - delta)

    def _to(self, change: Any) -> None:
        with self._lock:
            self.value = change(self.value)
            entry = {
                "ph": "C",
                "name": f"{self.domain}: {self.name}",
                "began": monotonic(),
                "args": {"value": self.value},
            }
        _note(entry)

    def __iadd__(self, delta: float) -> Counter:
        self.increment(delta)
        return self

    def __isub__(self, delta: float) -> Counter:
        self.decrement(delta)
        return self

    def __str__(self) -> str:
        return self.name


class Marker:
    """A moment."""

    def __init__(self, domain: Domain, name: str) -> None:
        self.domain, self.name = domain, name

    def mark(self, scope: str = "process") -> None:
        """Now.   `scope`: how far it is drawn, "thread", "process" or "global"."""
        letters = {"thread": "t", "task": "t", "process": "p", "global": "g"}
        if scope not in letters:
            raise ArgumentError(f"[Marker.mark] scope {scope!r}: one of {', '.join(letters)} expected")
        _note({"ph": "i", "name": self.name, "cat": str(self.domain), "began": monotonic(), "s": letters[scope]})
