"""Tools for testing concurrency without sleeping, for the engine's tests and for yours.

====================  ==================================================================================
`Gate`                a function that stays where it is until the test lets it go
`Sequencer`           blocks of code in several threads, forced into one order
`Seeded`, `Scripted`  which of the ready operations runs next: pseudo-random, or by a list of names
`wait_quiescent`      until nothing can start any more
`Trace`               what ran, compared with a partly ordered template
`Faults`              the k-th push fails, with an error of your choice, or runs out of memory
`interrupt_at`        an exception at the k-th checkpoint of the engine's code, as Ctrl-C would raise it
`LyingLock`           a lock that says "taken" when it is free
`Checkpoints`         any action at any checkpoint
`audit`, `lint`       the engine's invariants, now; loops in the engine's code that an interrupt could break
====================  ==================================================================================

Whatever waits here gives up after `PATIENCE` seconds with TimeoutError: a test never hangs.

Examples
--------
>>> from vardag.engine import Engine
>>> from vardag.engine.testing import Gate
>>> with Engine(workers=1) as e:
...     v, gate = e.new_variable(), Gate()
...     first = e.push(gate, updates=[v])      # a worker enters the gate and stays there
...     gate.wait_entered()
...     second = e.push(lambda: None, updates=[v])
...     print(second.done)
...     gate.open()
...     e.wait_for_var(v)
False
"""

from __future__ import annotations

import threading
from _thread import allocate_lock
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from time import monotonic
from types import TracebackType
from typing import Any

from .atomic import locked
from .checkpoints import Checkpoints, audit, lint, package_functions
from .core import Engine
from .operation import READY, RUNNING, Kind, Operation
from .tracker import Plan

__all__ = [
    "Checkpoints",
    "Faults",
    "Gate",
    "LyingLock",
    "Scripted",
    "Seeded",
    "Sequencer",
    "Trace",
    "audit",
    "interrupt_at",
    "lint",
    "package_functions",
    "raiser",
    "wait_quiescent",
]

PATIENCE = 30.0  # seconds after which a gate that nobody opens is an error: "otherwise this would hang"


# ==================================================================================================== threads
class Gate:
    """A function to push: it announces that it was entered, then waits until somebody opens the gate.

    Examples
    --------
    >>> import threading
    >>> from vardag.engine.testing import Gate
    >>> gate = Gate()
    >>> thread = threading.Thread(target=gate)
    >>> thread.start()
    >>> gate.wait_entered()
    >>> thread.is_alive()
    True
    >>> gate.open()
    >>> thread.join()
    """

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._opened = threading.Event()

    def __call__(self) -> None:
        """Enter, and wait."""
        self._entered.set()
        if not self._opened.wait(PATIENCE):
            raise TimeoutError("nobody opened the gate")

    def wait_entered(self) -> None:
        """Block until some thread is inside."""
        if not self._entered.wait(PATIENCE):
            raise TimeoutError("nobody entered the gate")

    def open(self) -> None:
        """Let through whoever is inside or comes later."""
        self._opened.set()


class Sequencer:
    """``with seq(n):`` waits until the blocks 0 .. n-1 have ended, in whatever threads they are.

    Examples
    --------
    >>> from vardag.engine import Engine
    >>> from vardag.engine.testing import Sequencer
    >>> seq, out = Sequencer(), []
    >>> def block(n):
    ...     with seq(n):
    ...         out.append(n)
    >>> with Engine("ThreadedEnginePooled", workers=3) as e:
    ...     for n in (2, 0, 1):
    ...         _ = e.push(lambda n=n: block(n))
    >>> out
    [0, 1, 2]
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ended = 0

    @contextmanager
    def __call__(self, n: int) -> Iterator[None]:
        """The n-th block."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended >= n, PATIENCE):
                raise TimeoutError(f"block {n}: only {self._ended} blocks have ended")
        try:
            yield
        finally:
            with self._changed:
                self._ended = max(self._ended, n + 1)
                self._changed.notify_all()


class LyingLock:
    """A lock whose attempts (``acquire`` without blocking, and ``locked``) say "taken" when `lies` says so.

    Forces the race in which somebody leaves work to a holder who is no longer there.

    Parameters
    ----------
    lies : collection of int
        Which attempts, counted from 0, are answered falsely.

    Examples
    --------
    >>> from vardag.engine.testing import LyingLock
    >>> lock = LyingLock({0})
    >>> lock.acquire(False), lock.acquire(False), lock.acquire(False)
    (False, True, False)
    """

    def __init__(self, lies: Collection[int]) -> None:
        self._lock: Any = allocate_lock()
        self._lies = lies
        self.asked = 0

    def _lie(self) -> bool:
        self.asked += 1
        return self.asked - 1 in self._lies

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it; an attempt may be refused by a lie."""
        if not blocking and self._lie():
            return False
        return self._lock.acquire(blocking, timeout)  # type: ignore[no-any-return]

    def release(self) -> None:
        """Let it go."""
        self._lock.release()

    def locked(self) -> bool:
        """Is it taken?  May be a lie."""
        return self._lie() or self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


# ==================================================================================================== schedules
class Seeded:
    """A schedule: among ready operations a pseudo-random one runs next, the same for the same seed.

    Its rank depends on the seed and the operation's place in push order alone, not on when it became ready.  An integer
    as an engine's `schedule` means this.

    Examples
    --------
    >>> from vardag.engine import Engine
    >>> from vardag.engine.testing import Gate, Seeded
    >>> def order(schedule):
    ...     with Engine("ThreadedEnginePooled", workers=1, schedule=schedule) as e:
    ...         gate, out = Gate(), []
    ...         _ = e.push(gate)
    ...         gate.wait_entered()
    ...         for i in range(9):
    ...             _ = e.push(lambda i=i: out.append(i))
    ...         gate.open()
    ...     return out
    >>> order(None)
    [0, 1, 2, 3, 4, 5, 6, 7, 8]
    >>> order(Seeded(1)) == order(1) != order(2)
    True
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def rank(self, op: Operation) -> int:
        """A well mixed number of (seed, seq)."""
        x = (op.seq * 0x9E3779B97F4A7C15 + self.seed * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) & 0xFFFFFFFFFFFFFFFF
        x = ((x ^ (x >> 31)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        return x ^ (x >> 29)


class Scripted:
    """A schedule: among ready operations those named in `script` run first, in its order; the rest in push order.

    Examples
    --------
    >>> from vardag.engine import Engine
    >>> from vardag.engine.testing import Gate, Scripted
    >>> with Engine("ThreadedEnginePooled", workers=1, schedule=Scripted(["gate", "c", "a"])) as e:
    ...     gate, out = Gate(), []
    ...     _ = e.push(gate, name="gate")
    ...     gate.wait_entered()
    ...     for name in "abcd":
    ...         _ = e.push(lambda name=name: out.append(name), name=name)
    ...     gate.open()
    >>> out
    ['c', 'a', 'b', 'd']
    """

    def __init__(self, script: Iterable[str]) -> None:
        self._places = {name: place for place, name in enumerate(script)}

    def rank(self, op: Operation) -> int:
        """The place of its name in the script."""
        return self._places.get(op.name, len(self._places))


# ==================================================================================================== observing
def wait_quiescent(engine: Engine, *, running: int = 0, timeout: float = PATIENCE) -> None:
    """Block until `running` operations run and none can start.  Raises nothing of what operations raised.

    Operations that wait for the callback of a `push_async` count as not running.

    Parameters
    ----------
    engine : Engine
    running : int
        How many are inside gates.
    timeout : float
        Seconds.

    Examples
    --------
    >>> from vardag.engine import Engine
    >>> from vardag.engine.testing import Gate, wait_quiescent
    >>> with Engine("ThreadedEnginePooled", workers=2) as e:
    ...     v, gate = e.new_variable(), Gate()
    ...     _ = e.push(gate, updates=[v])
    ...     pending, beside = e.push(lambda: None, updates=[v]), e.push(lambda: None)
    ...     wait_quiescent(e, running=1)
    ...     print(pending.done, beside.done)
    ...     gate.open()
    False True
    """
    end = monotonic() + timeout
    pause: SimpleQueue[None] = SimpleQueue()
    while not locked(engine._T, _is_quiescent, engine, running):
        if monotonic() > end:
            raise TimeoutError(f"{engine!r} did not come to rest")
        try:
            pause.get(timeout=0.001)
        except Empty:
            continue


def _is_quiescent(engine: Engine, running: int) -> bool:
    engine._drain()
    ops = list(engine._live.values())
    runs = [o for o in ops if o.state is RUNNING and not (o.kind is Kind.ASYNC and o.mark == 1)]
    return len(runs) == running and not any(o.state is READY for o in ops)


class Trace:
    """What ran, in order; compared with a template in which only part of the order is given.

    Call it with a name to get a function to push.  In a template a list or tuple is in order, a set is in any order and
    its members may interleave; names occur once.

    Examples
    --------
    >>> from vardag.engine import Engine
    >>> from vardag.engine.testing import Trace
    >>> with Engine("ThreadedEnginePooled", workers=2) as e:
    ...     v, trace = e.new_variable(), Trace()
    ...     _ = e.push(trace("write"), writes=[v])
    ...     _ = e.push(trace("read 1"), reads=[v])
    ...     _ = e.push(trace("read 2"), reads=[v])
    ...     _ = e.push(trace("update"), updates=[v])
    >>> trace.check(["write", {"read 1", "read 2"}, "update"])
    >>> trace.check(["update", {"read 1", "read 2", "write"}])
    Traceback (most recent call last):
    AssertionError: 'write' ran before 'update' in ['write', ..., 'update']
    """

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, fn: Callable[[], object] | None = None) -> Callable[[], None]:
        """A function that notes `name`, then calls `fn`."""

        def note() -> None:
            self.names.append(name)
            if fn is not None:
                fn()

        note.__name__ = name
        return note

    def check(self, template: Any) -> None:
        """AssertionError unless exactly the template's names ran, in one of the orders that it allows."""
        pairs: list[tuple[str, str]] = []
        wanted = _leaves(template, pairs)
        if sorted(wanted) != sorted(self.names) or len(set(wanted)) != len(wanted):
            raise AssertionError(f"ran {self.names}, expected each once: {sorted(wanted)}")
        place = {name: i for i, name in enumerate(self.names)}
        wrong = sorted((place[b], b, a) for a, b in pairs if place[a] > place[b])
        if wrong:
            raise AssertionError(f"{wrong[0][1]!r} ran before {wrong[0][2]!r} in {self.names}")


def _leaves(template: Any, pairs: list[tuple[str, str]]) -> list[str]:
    """The names of a template; adds to `pairs` what has to be before what."""
    if isinstance(template, str):
        return [template]
    out: list[str] = []
    for part in template:
        names = _leaves(part, pairs)
        if isinstance(template, list | tuple):
            pairs += [(a, b) for a in out for b in names]
        out += names
    return out


# ==================================================================================================== faults
class Faults:
    """``with Faults(engine, {k: error}):`` the k-th operation pushed inside, counted from 0, fails with that error.

    Its function is not called; a kernel's fault is raised where it prepares, which is where memory is taken.  Every
    other push is left alone.  `hits` counts the faults that were put in.

    Examples
    --------
    >>> from vardag.engine import Engine
    >>> from vardag.engine.testing import Faults
    >>> with Engine(workers=1) as e, Faults(e, {1: MemoryError("injected")}) as faults:
    ...     ops = [e.push(lambda: None) for _ in range(3)]
    ...     try:
    ...         e.waitall()
    ...     except* MemoryError:
    ...         print([op.error is None for op in ops], faults.hits)
    [True, False, True] 1
    """

    def __init__(self, engine: Engine, at: Mapping[int, BaseException | type[BaseException]]) -> None:
        self._engine = engine
        self._at = at
        self._first = 0
        self.hits = 0

    def __enter__(self) -> Faults:
        self._first = self._engine._seq
        self._engine._admit_op = self._admit_op  # type: ignore[method-assign]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        del self._engine._admit_op

    def _admit_op(self, op: Operation, planned: Plan, t: object) -> bool:
        error = self._at.get(self._engine._seq - self._first)
        original = op.fn
        if error is not None:
            op.fn = raiser(error)
        if type(self._engine)._admit_op(self._engine, op, planned, t):
            self.hits += error is not None
            return True
        op.fn = original  # it is planned again, perhaps at another place
        return False


def raiser(error: BaseException | type[BaseException]) -> Callable[..., Any]:
    """A function that raises `error`, whatever it is called with.

    Examples
    --------
    >>> from vardag.engine.testing import raiser
    >>> raiser(KeyError("k"))()
    Traceback (most recent call last):
    KeyError: 'k'
    """

    def raises(*args: object, **kwargs: object) -> Any:
        raise error

    return raises


def interrupt_at(k: int, error: BaseException | type[BaseException] = KeyboardInterrupt) -> Checkpoints:
    """``with interrupt_at(k):`` raise `error` at this thread's k-th checkpoint (from 1) inside the engine's code.

    Examples
    --------
    >>> from vardag.engine import Engine
    >>> from vardag.engine.testing import audit, interrupt_at
    >>> with Engine(workers=1) as e:
    ...     try:
    ...         with interrupt_at(5):
    ...             _ = e.push(lambda: None)
    ...     except KeyboardInterrupt:
    ...         print("interrupted")
    ...     e.waitall()
    ...     audit(e)
    interrupted
    """

    def at(n: int) -> None:
        if n == k:
            raise error

    return Checkpoints(at)
