"""The profiler: which operation ran when, on which thread, and what it waited for.

Owns the record and its three renderings.  Off, it costs the tracker one attribute test per operation.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError
from .instrument import Instrument
from .operation import Operation
from .ready import Lane
from .site import Site, describe

if TYPE_CHECKING:
    from .core import Engine


@dataclasses.dataclass(slots=True)
class Event:
    """One operation.  Times are seconds since the profile began; those that did not happen are None."""

    name: str
    seq: int
    kind: str
    lane: str
    preds: tuple[int, ...]
    site: Site | None
    push: float
    ready: float | None = None
    start: float | None = None
    end: float | None = None
    thread: str = ""
    ok: bool = True

    @property
    def line(self) -> str:
        """``file:line`` that pushed it."""
        return describe(self.site)

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return 0.0 if self.start is None or self.end is None else self.end - self.start


class Profile(Instrument):
    """What `Engine.profile` returns.

    Examples
    --------
    >>> from vardag.engine import Engine
    >>> with Engine(workers=1) as e:
    ...     v = e.new_variable()
    ...     with e.profile() as p:
    ...         _ = e.push(lambda: None, name="first", updates=[v])
    ...         _ = e.push(lambda: None, name="second", updates=[v])
    ...         e.waitall()
    ...     [(x.name, len(x.preds) <= 1, x.end >= x.start >= x.push) for x in p.events]
    [('first', True, True), ('second', True, True)]
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._events: dict[int, Event] = {}
        self._zero = monotonic()

    def __enter__(self) -> Profile:
        if self._engine._instrument is not None:
            raise ArgumentError("[profile] this engine is being profiled already")
        self._zero = monotonic()
        self._engine._instrument = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._engine._instrument = None

    @property
    def events(self) -> list[Event]:
        """One per operation, in push order."""
        return sorted(self._events.values(), key=lambda e: e.seq)

    # -------------------------------------------------------------------------------------------- the tracker's calls
    def _now(self) -> float:
        return monotonic() - self._zero

    def pushed(self, op: Operation, preds: Sequence[Operation]) -> None:
        """Admitted, not run within the push."""
        lane = op.lane.name if isinstance(op.lane, Lane) else "cpu"
        event = Event(op.name, op.seq, op.kind.value, lane, tuple(p.seq for p in preds), op.site, self._now())
        self._events.setdefault(op.seq, event)

    def ready(self, ops: Sequence[Operation]) -> None:
        """Their predecessors are done."""
        now = self._now()
        for op in ops:
            event = self._events.get(op.seq)
            if event is not None:
                event.ready = now

    def started(self, op: Operation) -> None:
        """On this thread."""
        event = self._events.get(op.seq)
        if event is not None:
            event.start = self._now()
            event.thread = threading.current_thread().name

    def finished(self, op: Operation) -> None:
        """Well or not."""
        event = self._events.get(op.seq)
        if event is not None:
            event.end = self._now()
            event.ok = op.fate is not None and op.fate.root is None

    def ran_inline(self, op: Operation, started: float) -> None:
        """Within its push, on the pushing thread."""
        start = started - self._zero
        ok = op.fate is not None and op.fate.root is None
        self._events[op.seq] = Event(
            op.name, op.seq, op.kind.value, "within the push", (), op.site, start, start, start, self._now(),
            threading.current_thread().name, ok,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ renderings
    def _ran(self) -> list[Event]:
        return [e for e in self.events if e.start is not None and e.end is not None]

    def _threads(self, events: Sequence[Event]) -> list[str]:
        names = sorted({e.thread for e in events})
        return sorted(names, key=lambda n: (not n.startswith("Main"), n))

    def table(self) -> str:
        """Operations by name: how many, total and mean running time, mean time from ready to start.

        Sync: never blocks.
        """
        rows: dict[str, list[Event]] = {}
        for e in self._ran():
            rows.setdefault(e.name or "?", []).append(e)
        lines = [f"{'operation':32} {'count':>7} {'total ms':>10} {'mean us':>10} {'queued us':>10}"]
        for name, es in sorted(rows.items(), key=lambda x: -sum(e.seconds for e in x[1])):
            total = sum(e.seconds for e in es)
            queued = sum((e.start or 0.0) - (e.ready if e.ready is not None else e.start or 0.0) for e in es)
            lines.append(
                f"{name[:32]:32} {len(es):7d} {total * 1e3:10.3f} {total / len(es) * 1e6:10.1f}"
                f" {queued / len(es) * 1e6:10.1f}"
            )
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write Chrome's trace format, which Perfetto opens: a slice per operation, an arrow per dependency."""
        events = self._ran()
        threads = {name: i for i, name in enumerate(self._threads(events))}
        by_seq = {e.seq: e for e in events}
        out: list[dict[str, Any]] = [{"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "vardag"}}]
        for name, i in threads.items():
            out.append({"ph": "M", "pid": 0, "tid": i, "name": "thread_name", "args": {"name": name}})
        for e in events:
            assert e.start is not None, "of those that ran"
            args = {"seq": e.seq, "pushed at": e.line, "push us": e.push * 1e6, "lane": e.lane, "ok": e.ok}
            if e.ready is not None:
                args["ready us"] = e.ready * 1e6
            out.append(
                {
                    "ph": "X", "pid": 0, "tid": threads[e.thread], "name": e.name or "?", "cat": e.kind,
                    "ts": e.start * 1e6, "dur": e.seconds * 1e6, "args": args,
                }
            )  # fmt: skip
            for p in e.preds:
                if p not in by_seq:
                    continue
                before = by_seq[p]
                flow = {"pid": 0, "name": "dependency", "cat": "dependency", "id": f"{p}-{e.seq}"}
                out.append({**flow, "ph": "s", "tid": threads[before.thread], "ts": (before.end or 0.0) * 1e6})
                out.append({**flow, "ph": "f", "bp": "e", "tid": threads[e.thread], "ts": e.start * 1e6})
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": out, "displayTimeUnit": "ms"}, file)

    def plot(self, path: str | os.PathLike[str] | None = None, *, title: str | None = None) -> Any:
        """Draw the timeline with matplotlib: a row per thread, a bar per operation, arrows for dependencies.

        Parameters
        ----------
        path : path, optional
            Where to save the picture; the figure is returned in any case.
        title : str, optional
        """
        from .timeline import draw

        events = self._ran()
        return draw(events, self._threads(events), path, title)
