"""Schedules to order: under `fuzz` one thread at a time goes on, and a seed decides which.

Owns the *baton* and who gets it.  While an engine is fuzzed it has no workers.  Its operations run on *hands*, threads
that do nothing unless they are given the baton, with one operation each; the threads that push and wait need it too.
It is handed on at every push and wait, where an operation ends, and between two lines (or instructions) of a user's
function.  Who gets it, and which ready operation a hand begins with, whether a waiting thread helps, whether cheap
kernels run within their push, where a segment closes and the order of tiles are drawn from one generator.  So they are
a function of the seed and the program, and `Fuzz.log` lists them.

Priorities are not looked at: they are wishes.  What the variables order stays in order: the tracker is the same.

A THREAD THAT SLEEPS with the baton (it waits for a lock of the user's, or computes in C for long) would stop all.
Those that wait for it look at its frame: if that has not moved for `STALL` seconds, the baton is taken away from it,
and it asks for it again at its next turn.  Before each choice, those that sleep are given `GRACE` seconds to wake up,
so that the choices stay the same; on a machine that is slower than that they may differ from there on.  A thread that
goes on for `ALONE` seconds without a turn, as one does that polls, is left behind likewise, but nobody waits for it.
Threads of the program's own that the engine never hears of are scheduled by nobody.

`_lock` guards every field but the actors' bells.  It is taken before T, and by no thread that holds P or T.
                                                                                   [tests/engine/test_fuzz.py]
"""

from __future__ import annotations

import os
import random
import sys
import sysconfig
import threading
from _thread import get_ident
from collections.abc import Sequence
from contextlib import suppress
from heapq import heappop
from queue import Empty, SimpleQueue
from time import monotonic
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from . import lifecycle
from .atomic import commit, locked
from .claims import deep, empty, here_and_now
from .errors import ArgumentError, ArgumentTypeError, EngineTimeout
from .operation import READY, Kind, Operation
from .site import belongs_to_the_package

if TYPE_CHECKING:
    from .core import Engine

T = TypeVar("T")

STALL, GRACE, LOOK = 0.1, 0.003, 0.03  # seconds
ALONE = 1.0  # seconds
PATIENCE = 10.0  # seconds that the end of a block that an exception leaves waits for what was pushed in it
LIBRARIES = tuple({p for k in ("stdlib", "platstdlib", "purelib", "platlib") if (p := sysconfig.get_paths().get(k))})


class Actor:
    """A thread that needs the baton."""

    def __init__(self, name: str, thread: int) -> None:
        self.name = name
        self.thread = thread
        self.bell: SimpleQueue[None] = SimpleQueue()
        self.parked = False  # it waits for the baton
        self.away: tuple[int, int] | None = None  # the baton was taken from it: where it slept
        self.target: Operation | None = None  # what it waits for, and may run meanwhile
        self.help: Operation | None = None
        self.end: float | None = None  # until when
        self.job: Operation | None = None  # of a hand
        self.idle = False  # a hand without a job
        self.seen: tuple[Any, float] = (None, 0.0)
        self.since = 0.0  # when it got the baton, or had its last turn

    def may_go_on(self) -> bool:
        """Is there anything it could do with the baton?"""
        target = self.target
        if self.idle or not self.parked:
            return False
        if target is None or target.done or (self.help is not None and self.help.state is READY):
            return True
        return self.end is not None and monotonic() >= self.end


class Fuzz:
    """``with engine.fuzz(seed) as f:``, see `fuzz`."""

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ArgumentTypeError(f"[fuzz] seed {seed!r}: expected an integer")
        self.seed = seed
        self.log: list[str] = []
        self._random = random.Random(seed)
        self._hands = self._random.randint(1, 4)
        # how often a user's function is left between two lines (or instructions)
        self._often = self._random.choice((0.0, 0.05, 0.2, 0.5))
        self._fine = self._random.random() < 0.3
        self._ahead = self._random.choice((0.0, 0.4, 0.9))  # how often who pushes goes on at once
        self._lock = threading.Lock()
        self._actors: list[Actor] = []
        self._engines: list[tuple[Engine, int, bool]] = []
        self._holder: Actor | None = None
        self._closed = False
        self._process = os.getpid()
        self._mine = threading.local()

    # ================================================================================================ the block
    def __enter__(self) -> Fuzz:
        engine = lifecycle.current()
        if lifecycle.fuzzing is not None or self._closed:
            raise ArgumentError("[fuzz] one block at a time, and each `fuzz` once")
        if here_and_now.stack:
            raise ArgumentError("[fuzz] is not for the inside of an operation")
        engine._wait_cut(None)
        self._holder = me = self._me()
        me.since = monotonic()
        with self._lock:
            self._new_hand()  # somebody has to see that the first thread sleeps
        self.adopt(engine)
        for sow in lifecycle.sowing:
            sow(self.seed)
        lifecycle.fuzzing = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            for engine, _, _ in tuple(self._engines):
                with suppress(EngineTimeout):
                    engine._wait_cut(None if kind is None else monotonic() + PATIENCE)
        finally:
            lifecycle.fuzzing = None
            self._release()

    def adopt(self, engine: Engine) -> None:
        """Fuzz this engine too.  A serial one, and one with a schedule of its own, leave nothing open."""
        if engine._serial or engine.scheduled:
            return
        engine._apart(engine._end_workers, None)
        self._engines.append((engine, engine._seq, engine.inline))
        engine._fuzz = self
        engine._started = None  # so that every push asks for workers: see `pushed`
        for lane in engine._lanes.values():
            lane.up.put(None)  # nobody hands over to a worker

    def _release(self) -> None:
        """All threads go on by themselves, and the engines have workers again."""
        if os.getpid() != self._process:
            self._lock = threading.Lock()  # a forked child: who held it is not here
        with self._lock:
            self._closed = True
            actors = tuple(self._actors)
        for engine, _, inline in self._engines:
            engine._fuzz = None
            engine.inline = inline
            for lane in engine._lanes.values():
                empty(lane.up)
            if engine._live or engine._inbox:
                engine._start_workers()
        for a in actors:
            a.bell.put(None)

    # ================================================================================================ turns
    def pushed(self, engine: Engine) -> None:
        """Something was pushed by the calling thread, or it is about to wait."""
        if engine._T._is_owned() or engine._P._is_owned() or self._closed:
            return
        me = self._me()
        self._take(me)
        engine.inline = self._random.random() < 0.3
        segment: Any = None if engine._last is None else engine._last.fn
        if segment is not None and segment.door and self._random.random() < 0.2:
            self._note("a segment closes")
            segment.door.clear()
        if self._random.random() >= self._ahead:
            self._pass_on(me)

    def pause(self, engine: Engine, target: Operation, op: Operation | None, end: float | None) -> Operation | None:
        """The calling thread waits for `target` and may run `op` for that: a turn.  Gives `op` if it is to do so."""
        if self._closed or target.done:
            return None
        me = self._me()
        if deep():
            op = None  # a hand has more of a stack
        outer = me.target, me.help, me.end
        me.target, me.help, me.end = target, op, end
        try:
            self._pass_on(me)
        finally:
            me.target, me.help, me.end = outer
        return op if op is not None and op.state is READY and not target.done and not self._closed else None

    def order(self, items: Sequence[T]) -> list[T]:
        """The tiles of an operation that runs, in the order in which they are to be done."""
        out = list(items)
        if not self._closed:
            self._take(self._me())
            self._random.shuffle(out)
            self._note(f"{len(out)} tiles are shuffled")
        return out

    def _me(self) -> Actor:
        me: Actor | None = getattr(self._mine, "actor", None)
        if me is None:
            with self._lock:
                me = self._mine.actor = Actor(f"thread {len(self._actors)}", get_ident())
                self._actors.append(me)
        return me

    def _note(self, text: str) -> None:
        self.log.append(text)

    def _take(self, me: Actor) -> None:
        """Go on with the baton only."""
        if self._holder is me:
            me.since = monotonic()
        else:
            self._park(me, False)

    def _pass_on(self, me: Actor) -> None:
        """Offer the baton; come back with it."""
        self._park(me, True)

    def _park(self, me: Actor, give: bool) -> None:
        with self._lock:
            me.parked, me.away = True, None
            if self._holder is me and give:
                self._holder = None
            if self._holder is None:
                self._choose()
        self._sleep(me)

    def _sleep(self, me: Actor) -> None:
        while not self._closed:
            with suppress(Empty):
                me.bell.get(timeout=LOOK)
            with self._lock:
                if self._holder is me:
                    me.parked = False
                    return
                self._watch()

    def _watch(self) -> None:
        """Lock held.  Is the one with the baton asleep?  Can anybody go on by now?"""
        holder = self._holder
        if holder is None:
            self._choose()
            return
        if holder.parked:
            return  # it has been rung
        place, now = _place(holder.thread), monotonic()
        if place != holder.seen[0] and now - holder.since < ALONE:
            holder.seen = (place, now)
        elif place != holder.seen[0]:
            self._holder = None
            self._note(f"{holder.name} is left behind")
            self._choose()
        elif now - holder.seen[1] > STALL or place is None:
            holder.away = place or (0, 0)
            self._holder = None
            self._note(f"{holder.name} sleeps")
            self._choose()

    # ================================================================================================ choices
    def _choose(self) -> None:
        """Lock held, nobody has the baton.  Who gets it, and with what."""
        if self._closed:
            return
        self._let_wake_up()
        ready = [o for engine, _, _ in self._engines for o in locked(engine._T, _ready, engine)]
        choices: list[tuple[Actor | None, Operation | None]] = [(a, None) for a in self._actors if a.may_go_on()]
        working = sum(a.job is not None for a in self._actors)
        if working < self._hands or not choices:
            choices += [(None, o) for o in ready]
        if not choices:
            return
        actor, op = choices[self._random.randrange(len(choices))]
        if op is None:
            assert actor is not None, "a thread or an operation"
            self._note(f"{actor.name} goes on")
        else:
            idle = [a for a in self._actors if a.idle and a.parked]
            actor = self._random.choice(idle) if idle else self._new_hand()
            actor.job, actor.idle = op, False
            self._note(f"{actor.name} begins {self._name(op)}")
        actor.seen, actor.since = (None, 0.0), monotonic()
        self._holder = actor
        actor.bell.put(None)

    def _name(self, op: Operation) -> str:
        base = next(seq for engine, seq, _ in self._engines if engine is op.engine)
        return f"{op.name or 'operation'} #{op.seq - base}"

    def _let_wake_up(self) -> None:
        """Lock held.  What was done may have woken those that sleep: they are heard before the choice."""
        pause: SimpleQueue[None] = SimpleQueue()
        for a in [a for a in self._actors if a.away is not None]:
            with suppress(Empty):
                pause.get(timeout=GRACE)
            end = monotonic() + STALL
            while _place(a.thread) not in (a.away, None) and monotonic() < end:
                if _waits_for(a.thread, self._lock):
                    a.parked, a.away = True, None
                    break
                with suppress(Empty):
                    pause.get(timeout=GRACE / 10)

    # ================================================================================================ hands
    def _new_hand(self) -> Actor:
        """Lock held."""
        actor = Actor(f"hand {sum(a.name.startswith('hand') for a in self._actors)}", 0)
        actor.parked = actor.idle = True
        self._actors.append(actor)
        thread = threading.Thread(target=self._work, args=(actor,), daemon=True, name=f"vardag-fuzz-{actor.name}")
        thread.start()
        actor.thread = thread.ident or 0
        return actor

    def _work(self, me: Actor) -> None:
        self._mine.actor = me
        while not self._closed:
            self._sleep(me)
            op = me.job
            if op is not None:
                here_and_now.worker = op.engine
                if op.kind is Kind.USER and self._often:
                    sys.settrace(self._enter_frame)
                try:
                    op.engine._run(op)
                except BaseException as e:
                    # what an operation raises is its fate; this is what the engine lets through to a worker's loop
                    self._note(f"{me.name} was cut by {type(e).__name__}")
                finally:
                    sys.settrace(None)
            del op
            with self._lock:
                me.job, me.idle, me.parked, me.away = None, True, True, None
                if self._holder is me:
                    self._holder = None
                    self._choose()

    def _enter_frame(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not users(frame.f_code.co_filename):
            return None
        if self._fine:
            frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        """Between two lines or instructions of a user's function."""
        if event in ("line", "opcode") and not self._closed:
            me = self._me()
            self._take(me)
            if self._random.random() < self._often:
                self._pass_on(me)
        return self._step


def _ready(engine: Engine) -> list[Operation]:
    """T held.  The ready operations, in push order."""
    engine._drain()
    out = []
    for lane in tuple(engine._lanes.values()):
        keep = []
        while lane.heap and lane.heap[0][2].state is not READY:
            t = object()
            engine._guard_t[0] = t
            keep.append(lane.heap[0])
            commit(engine._guard_t, t, [(heappop, lane.heap)])
        empty(lane.bell)
        out += [entry[2] for entry in lane.heap if entry[2].state is READY]
    return sorted(out, key=lambda o: o.seq)


def _place(thread: int) -> tuple[int, int] | None:
    """Where a thread is; None: it is no more."""
    frame = sys._current_frames().get(thread)
    return None if frame is None else (id(frame), frame.f_lasti)


def _waits_for(thread: int, lock: object) -> bool:
    """Has it come back to this module, to ask for the baton?"""
    frame = sys._current_frames().get(thread)
    return frame is not None and frame.f_code in (Fuzz._park.__code__, Fuzz._work.__code__)


_users: dict[str, bool] = {}


def users(filename: str) -> bool:
    """Is it a file of the user's: neither the library's nor Python's nor an installed one?"""
    found = _users.get(filename)
    if found is None:
        ours = belongs_to_the_package(filename) or filename.startswith(("<frozen", *LIBRARIES))
        found = _users[filename] = not ours
    return found


def fuzz(seed: int) -> Fuzz:
    """``with fuzz(seed) as f:`` runs what is pushed in the block under a schedule that the seed decides.

    Parameters
    ----------
    seed : int
        The same program under the same seed makes the same choices: they are listed in ``f.log``.

    Returns
    -------
    context manager
        With ``seed`` and ``log``.  It holds for the current engine and those that are made in the block; not for serial
        engines and those with a `schedule`.

    Every choice that the semantics leave open is drawn: which ready operation is next and on which thread; whether a
    waiting thread helps; whether a cheap kernel runs within its push; where a segment closes; the order of tiles; when
    the streams of simulated devices go on; and where users' functions are interrupted for others, between lines or
    between instructions.  Priorities decide nothing: they are wishes, and a program that is right only as long as they
    are granted is wrong.  A thread that sleeps or polls holds the others up for `STALL` or `ALONE` seconds each time,
    and so does an event loop that waits.

    Sync: blocks at its beginning until what was pushed before is done, at its end for what was pushed inside.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        At the call or at the beginning of the block: inside another one or inside an operation, or no integer.

    Examples
    --------
    >>> from vardag import engine
    >>> def program():
    ...     out = []
    ...     for i in range(5):
    ...         _ = engine.current().push(lambda i=i: out.append(i))
    ...     engine.current().wait_for_all()
    ...     return out
    >>> def under(seed):
    ...     with engine.Engine(workers=2), engine.fuzz(seed):
    ...         return program()
    >>> under(3) == under(3)
    True
    >>> len({tuple(under(seed)) for seed in range(8)}) > 1
    True
    """
    return Fuzz(seed)
