"""The profiler: which operation ran when, on which thread, and what it waited for.

Owns the record and its three renderings.  Off, it costs the tracker one attribute test per operation.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError
from .errors import Error as EngineError
from .instrument import Instrument
from .joining import Fusible
from .operation import Operation
from .ready import Lane
from .site import Site, asked, describe

if TYPE_CHECKING:
    from .core import Engine


@dataclasses.dataclass(slots=True)
class Event:
    """One operation.  Times are seconds since the profile began; those that did not happen are None.

    `kind`: "atomic", "kernel", "user" or "async".   `nbytes`: memory that it makes.   `members`: of a segment, what it
    ran together.   `lane`: "within the push" if the pushing thread ran it at once.   `there`: (stream, start, end) of
    what it gave to devices; it ran itself when it gave them that.
    """

    name: str
    seq: int
    kind: str
    lane: str
    preds: tuple[int, ...]
    site: Site | None
    push: float
    nbytes: int = 0
    ready: float | None = None
    start: float | None = None
    end: float | None = None
    thread: str = ""
    ok: bool = True
    members: tuple[str, ...] = ()
    there: tuple[tuple[str, float, float], ...] = ()

    @property
    def line(self) -> str:
        """``file:line`` that pushed it."""
        return describe(self.site)

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return 0.0 if self.start is None or self.end is None else self.end - self.start

    def within(self, begin: float, end: float) -> float:
        """For how long it ran between these times."""
        return 0.0 if self.start is None or self.end is None else max(0.0, min(self.end, end) - max(self.start, begin))


@dataclasses.dataclass(slots=True)
class Wait:
    """One time that a thread waited for operation `seq`.   `asked`: the function that the user called, at `site`."""

    asked: str
    site: Site | None
    seq: int
    begin: float
    end: float
    thread: str

    @property
    def line(self) -> str:
        """``file:line`` that waited."""
        return describe(self.site)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


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
        super().__init__()
        self._engine = engine
        self._there: deque[tuple[int, str, Callable[[], tuple[float, float]]]] = deque()  # not asked for yet
        self._events: dict[int, Event] = {}
        self._waits: list[Wait] = []
        self._notes: list[tuple[str, dict[str, Any]]] = []  # (thread, entry): see `note`
        self._zero = monotonic()

    def __enter__(self) -> Profile:
        if self._engine._instrument is not None:
            raise ArgumentError("[profile] this engine is being profiled already")
        self._zero = monotonic()
        self.resume()
        return self

    @property
    def engine(self) -> Engine:
        """The one that it records."""
        return self._engine

    def resume(self) -> None:
        """Go on after the block has ended; times go on too."""
        self._engine._instrument = self

    def clear(self) -> None:
        """Forget what was recorded."""
        self._events, self._waits, self._notes = {}, [], []
        self._there.clear()

    def note(self, entry: dict[str, Any]) -> None:
        """Add an entry of the trace on this thread's row; "began" and "end" are seconds of `time.monotonic`."""
        self._notes.append((threading.current_thread().name, entry))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._engine._instrument = None

    @property
    def events(self) -> list[Event]:
        """One per operation, in push order.  Sync: blocks until devices have done what they were given."""
        with suppress(IndexError):
            while True:
                self._ask(*self._there.popleft())
        return sorted(self._events.values(), key=lambda e: e.seq)

    # -------------------------------------------------------------------------------------------- the tracker's calls
    def _now(self) -> float:
        return monotonic() - self._zero

    def pushed(self, op: Operation, preds: Sequence[Operation]) -> None:
        """Admitted, not run within the push."""
        lane = op.lane.name if isinstance(op.lane, Lane) else "cpu"
        event = Event(op.name, op.seq, op.kind.value, lane, tuple(p.seq for p in preds), op.site, self._now())
        event.nbytes = op.nbytes if type(op.nbytes) is int else 0
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
            segment: Any = op.fn if type(op) is Fusible else None
            event.members = () if segment is None else segment.names()

    def finished(self, op: Operation) -> None:
        """Well or not."""
        event = self._events.get(op.seq)
        if event is not None:
            event.end = self._now()
            event.ok = op.fate is not None and op.fate.root is None

    def ran_inline(self, op: Operation, started: float, nbytes: int) -> None:
        """Within its push, on the pushing thread."""
        start = started - self._zero
        ok = op.fate is not None and op.fate.root is None
        self._events[op.seq] = Event(
            op.name, op.seq, op.kind.value, "within the push", (), op.site, start, nbytes, start, start,
            self._now(), threading.current_thread().name, ok,
        )  # fmt: skip

    def ran_there(self, op: Operation, stream: str, times: Callable[[], tuple[float, float]]) -> None:
        """By this thread just now."""
        self._there.append((op.seq, stream, times))

    def _ask(self, seq: int, stream: str, times: Callable[[], tuple[float, float]]) -> None:
        event = self._events.get(seq)
        if event is not None:
            with suppress(EngineError):  # the device is lost
                begin, end = times()
                event.there += ((stream, begin - self._zero, end - self._zero),)

    def waited(self, op: Operation, began: float) -> None:
        """By this thread, in vain or not."""
        site, name = asked(2)
        self._waits.append(Wait(name, site, op.seq, began - self._zero, self._now(), threading.current_thread().name))

    # ------------------------------------------------------------------------------------------------ explanations
    @property
    def waiting(self) -> list[Wait]:
        """One for each time that a thread waited, in the order in which they ended."""
        return list(self._waits)

    def _chain(self, last: Event) -> list[Event]:
        """What had to end before it could: its way back, each time to what held it up last."""
        on_thread: dict[str, list[Event]] = {}
        for e in self._ran():
            on_thread.setdefault(e.thread, []).append(e)
        chain, event = [last], last
        while True:
            begin = event.start or 0.0
            before = [p for seq in event.preds if (p := self._events.get(seq)) is not None and p.end is not None]
            # what ran on its thread while it was ready already
            ready = event.ready if event.ready is not None else event.push
            before += [e for e in on_thread[event.thread] if e is not event and ready < (e.end or 0.0) <= begin]
            before = [e for e in before if (e.end or 0.0) <= begin and e not in chain]
            if not before:
                return chain[::-1]
            event = max(before, key=lambda e: e.end or 0.0)
            chain.append(event)

    def critical_path(self) -> list[Event]:
        """The operations that the end of the last one hung on, in the order in which they ran: each began when the one
        before had ended, for it depends on that, or wanted its thread.  Only a shorter one of these ends it earlier.

        Sync: never blocks.
        """
        ran = self._ran()
        return self._chain(max(ran, key=lambda e: e.end or 0.0)) if ran else []

    def waits(self, least: float = 0.0) -> str:
        """The waits of at least so many seconds, longest first: where, how long, and what for.

        ``waited 0.980 s in asnumpy at f.py:12, of which 0.950 s was Convolution pushed at f.py:7``

        Sync: never blocks.
        """
        lines = []
        for wait in sorted(self._waits, key=lambda w: -w.seconds):
            if wait.seconds < least:
                break
            text = f"waited {wait.seconds:.3f} s in {wait.asked} at {wait.line}"
            target = self._events.get(wait.seq)
            if target is not None and target.end is not None:
                longest = max(self._chain(target), key=lambda e: e.within(wait.begin, wait.end))
                share = longest.within(wait.begin, wait.end)
                text += f", of which {share:.3f} s was {longest.name or 'an operation'} pushed at {longest.line}"
            lines.append(text)
        return "\n".join(lines)

    # ------------------------------------------------------------------------------------------------ renderings
    def _ran(self) -> list[Event]:
        return [e for e in self.events if e.start is not None and e.end is not None]

    def _shown(self) -> list[Event]:
        """What ran, and what ran on devices as further events."""
        ran = self._ran()
        there = [
            dataclasses.replace(e, thread=stream, start=begin, end=end, preds=(), there=())
            for e in ran for stream, begin, end in e.there
        ]  # fmt: skip
        return [*ran, *there]

    def _threads(self, events: Sequence[Event]) -> list[str]:
        names = sorted({e.thread for e in events})
        return sorted(names, key=lambda n: (not n.startswith("Main"), n))

    def table(self) -> str:
        """Operations by name: how many, total and mean running time, mean time from ready to start, and the total time
        on devices if they were used.

        Sync: blocks until devices have done what they were given.
        """
        rows: dict[str, list[Event]] = {}
        ran = self._ran()
        elsewhere = any(e.there for e in ran)
        for e in ran:
            rows.setdefault(e.name or "?", []).append(e)
        lines = [f"{'operation':32} {'count':>7} {'total ms':>10} {'mean us':>10} {'queued us':>10}"]
        if elsewhere:
            lines[0] += f" {'device ms':>10}"
        for name, es in sorted(rows.items(), key=lambda x: -sum(e.seconds for e in x[1])):
            total = sum(e.seconds for e in es)
            queued = sum((e.start or 0.0) - (e.ready if e.ready is not None else e.start or 0.0) for e in es)
            lines.append(
                f"{name[:32]:32} {len(es):7d} {total * 1e3:10.3f} {total / len(es) * 1e6:10.1f}"
                f" {queued / len(es) * 1e6:10.1f}"
            )
            if elsewhere:
                lines[-1] += f" {sum(end - begin for e in es for _, begin, end in e.there) * 1e3:10.3f}"
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write Chrome's trace format, which Perfetto opens: a slice per operation, an arrow per dependency."""
        events = self._shown()
        rows = [*self._threads(events), *(w.thread for w in self._waits), *(thread for thread, _ in self._notes)]
        threads = {name: i for i, name in enumerate(dict.fromkeys(rows))}
        by_seq = {e.seq: e for e in reversed(events)}  # on the host
        out: list[dict[str, Any]] = [{"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "vardag"}}]
        for name, i in threads.items():
            out.append({"ph": "M", "pid": 0, "tid": i, "name": "thread_name", "args": {"name": name}})
        for e in events:
            assert e.start is not None, "of those that ran"
            args = {"seq": e.seq, "pushed at": e.line, "push us": e.push * 1e6, "lane": e.lane, "ok": e.ok}
            if e.ready is not None:
                args["ready us"] = e.ready * 1e6
            if e.nbytes:
                args["bytes"] = e.nbytes
            if e.members:
                args["members"] = list(e.members)
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
        for wait in self._waits:
            out.append(
                {
                    "ph": "X", "pid": 0, "tid": threads[wait.thread], "name": f"wait in {wait.asked}", "cat": "wait",
                    "ts": wait.begin * 1e6, "dur": wait.seconds * 1e6, "args": {"for": wait.seq, "at": wait.line},
                }
            )  # fmt: skip
        for thread, entry in self._notes:
            began = entry["began"] - self._zero
            rest = {key: value for key, value in entry.items() if key not in ("began", "end")}
            if "end" in entry:
                rest["dur"] = (entry["end"] - entry["began"]) * 1e6
            out.append({"pid": 0, "tid": threads[thread], "ts": began * 1e6, **rest})
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": out, "displayTimeUnit": "ms"}, file)

    def plot(
        self, path: str | os.PathLike[str] | None = None, *, title: str | None = None, last: float | None = None
    ) -> Any:
        """Draw the timeline with matplotlib: a row per thread, a bar per operation, arrows for dependencies.

        Parameters
        ----------
        path : path, optional
            Where to save the picture; the figure is returned in any case.
        title : str, optional
        last : float, optional
            Draw the last so many seconds only.
        """
        from .timeline import draw

        events = self._shown()
        if last is not None and events:
            begin = max(e.end or 0.0 for e in events) - last
            events = [e for e in events if (e.start or 0.0) >= begin]
        return draw(events, self._threads(events), path, title)
