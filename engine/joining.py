"""Joining: pushed work that becomes part of an operation that has not begun, instead of one of its own.

Owns `Fusible` operations, the rule of who may join whom, and dwelling.  A fusible operation is admitted, queued and
run like any other; what is special is that its function has a *door*: a list with one element while others may join.
The function takes that element out before it begins.  So nothing else of the engine knows of it: waits, errors, exit,
fork and cancellation see one operation.

THE RULE.  A push joins the last fusible operation S if its door is open, if S takes it (`Segment.takes`, which is the
operators' matter), and if afterwards everything is as if it had run right after S:
  order   whatever it has to come after is done, is S itself, or is a predecessor of S already.  So S gets no new
          predecessor, and no cycle can arise: nothing that is not done already comes between S and its members.
  errors  it depends on the same unfinished operations as S does (directly, or on a member): if one of them fails,
          both are poisoned, and neither otherwise.  Nobody joins an operation that is poisoned or cancelled already.

RACE "join-while-closing".  The joining commit first asks the door, in the same C call that adds the member; the door
is closed by one C call too.  Either the member is seen or the commit changes nothing.  This needs the GIL: without it
nothing joins.                                                                    [tests/operators/test_fusion.py]

DWELLING.  A worker that takes S at once would leave the next operators of an expression to run alone.  So S may dwell
for a moment: until somebody waits, something else is queued, or `DWELL` seconds have passed.
"""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from .atomic import Step, commit
from .claims import here_and_now
from .operation import DONE, OK, Operation
from .outcome import strongest, var_steps
from .tracker import Plan, Tracker

DWELL = 0.0003  # seconds


class Segment(Protocol):
    """The function of a fusible operation, as the engine sees it."""

    door: list[Any]
    awaited: tuple[Operation, ...]
    brief: bool
    """Is it short enough for a thread that waits, and all of it steps?"""

    def __call__(self) -> None:
        """Everything, on a worker."""
        ...

    def prepare(self) -> tuple[list[list[Step]], list[Step]]:
        """Of a brief one: the pieces, which may be done side by side, and the steps after them.  May be repeated."""
        ...

    def blame(self, op: Operation) -> None:
        """Steps have failed: name the member that did as the operation."""
        ...

    def takes(self, other: Any) -> list[Step] | None:
        """Steps that add the member of another segment, the first of which asks the door; None: it does not fit."""
        ...


class Fusible(Operation):
    """An operation that others may join.  `fn` is a `Segment`."""

    __slots__ = ()


def brief(op: Operation) -> bool:
    """Is it a segment that a waiting thread may run?  T held: nobody completes it meanwhile."""
    segment: Any = op.fn if type(op) is Fusible else None
    return segment is not None and bool(segment.brief)


class Joining(Tracker):
    """The tracker's way of joining."""

    _serial: bool

    def __init__(self) -> None:
        super().__init__()
        self.fusion = True  # may pushes join?
        self._last: Fusible | None = None  # P: the fusible operation that was queued last
        self._dwelling: list[SimpleQueue[None]] = []  # bells; list.append and remove are atomic

    def _look(self, op: Operation, nbytes: int) -> None:
        """Is there room for it?  See limits.py."""

    def _join(self, op: Operation, planned: Plan, t: object) -> bool | None:
        """P held, ticket taken.  True: joined.  False: plan again.  None: it can't join."""
        last = self._last
        if last is None or last.state is DONE or last.cancelled or last.poison is not None:
            return None
        segment: Any = last.fn
        if segment is None or not segment.door or len(segment.door[0]) >= self._bulk:
            return None
        reads, writes, updates = strongest(planned[1], planned[2], planned[3])
        steps, keep = planned[4], planned[5]
        if not self._may_join(last, segment.awaited, reads, writes, updates):
            return None
        more = segment.takes(op.fn)
        if more is None:
            return None
        nbytes, carried, counted = op.nbytes()
        if self._seq >= self._look_seq or self._bytes_pushed + nbytes + carried > self._look_bytes:
            self._look(op, nbytes + carried)
        out: list[Step] = [*more, *steps, *counted]
        pushed = self._bytes_pushed + nbytes + carried
        out += (
            (setattr, self, "_bytes_pushed", pushed),
            (setattr, self, "_bytes_peak", max(self._bytes_peak, pushed - self._bytes_done)),
            # `carried` may change under T just now.  What S counts as its own counts for longer: no harm.
            (setattr, last, "nbytes", last.nbytes + nbytes + carried),
        )
        if updates or any(last in v.readers for v in writes):
            out.append((setattr, last, "tries", min(1, last.tries)))  # should memory run out when it has begun
        for v in reads:
            readers = v.readers
            if not readers:
                out.append((setattr, v, "readers", [last]))
            elif readers[-1] is not last:
                out.append((list.append, readers, last))
        var_steps(out, keep, writes, last)
        var_steps(out, keep, updates, last)
        try:
            return commit(self._guard_p, t, out)
        except ValueError:
            return None  # the door was closed meanwhile

    def _may_join(self, last: Fusible, awaited: tuple[Operation, ...], reads: Any, writes: Any, updates: Any) -> bool:
        """The rule of the module's text, for the variables of a push."""
        before = last.preds
        depends = False
        own = set()
        for vs in (reads, updates):
            for v in vs:
                p = v.writer
                if p is last:
                    depends = True
                elif p is not None and p.state is not DONE:
                    if p not in awaited:
                        return False
                    own.add(p)
                elif v.engine is not self or (p is not None and p.fate is not OK):
                    return False
        for vs in (writes, updates):
            for v in vs:
                p = v.writer
                if v.engine is not self or (
                    p is not None and p is not last and p.state is not DONE and p not in before
                ):
                    return False
                for r in v.readers:
                    if r is not last and r.state is not DONE and r not in before:
                        return False
        for p in awaited:
            if p.state is DONE:
                if p.fate is not OK:
                    return False
            elif not depends and p not in own:
                return False
        return True

    # ------------------------------------------------------------------------------------------------ dwelling
    def _shut(self, op: Fusible) -> Segment:
        """On the thread that runs `op`: nobody else joins."""
        segment: Any = op.fn
        if segment.door:
            if here_and_now.worker is not None:
                self.dwell(op)
            segment.door.clear()
        return segment  # type: ignore[no-any-return]

    def dwell(self, op: Operation) -> None:
        """On the worker that runs `op`, a fusible operation: wait for a moment, so that others may join."""
        bell: SimpleQueue[None] = SimpleQueue()
        dwelling = self._dwelling
        try:
            dwelling.append(bell)
            alone = not self.fusion or self._serial or len(here_and_now.stack) > 1
            if not (alone or op.watch or op.succ or op.lane.heap or self._inbox):
                with suppress(Empty):
                    bell.get(timeout=DWELL)
        finally:
            dwelling.remove(bell)

    def _end_dwelling(self) -> None:
        """Somebody waits, or something else was queued."""
        for bell in tuple(self._dwelling):
            bell.put(None)
