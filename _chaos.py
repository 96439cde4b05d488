"""The rounds of the self-test (selftest.py): random programs, disturbed, against the serial engine.

Knows engines and arrays; prints nothing.  A round takes an engine and a random generator, and raises `Deviation`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

import numpy as np

from . import autograd, nd
from .engine import DeadlockError, Engine, EngineErrors, Kind, Operation, Variable
from .engine.testing import Faults, Gate, audit
from .ndarray import device
from .ndarray.memory import usage

VARIABLES = 10
WAIT = 20.0  # seconds for any wait; then EngineTimeout says what blocks what
HANG = 60.0  # seconds for a round
ENGINE_FILES = str(Path(__file__).parent / "engine")


class Deviation(Exception):
    """The engine did something that the serial engine does not."""


class Fault(Exception):
    """What a failing operation raises."""


class Interrupt(Exception):
    """What the signal handler raises: like an alarm's ..."""


class HardInterrupt(BaseException):
    """... or like Ctrl-C."""


class Item(NamedTuple):
    """One operation: how it is pushed, what it reads, writes and updates, its constant, its priority."""

    kind: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    updates: tuple[int, ...]
    constant: int
    priority: int


class Count(NamedTuple):
    """What a round did."""

    operations: int
    faults: int = 0  # errors, interrupts, failed allocations, forks or exits, as the row says
    inside: int = 0  # interrupts that came while a frame of the engine was running


def program(r: random.Random) -> list[Item]:
    """Operations that do not commute."""
    items = []
    for i in range(r.randint(30, 200)):
        reads = tuple(r.sample(range(VARIABLES), r.choice((0, 1, 1, 2, 3))))
        changed = tuple(r.sample(range(VARIABLES), r.choice((0, 1, 1, 2))))
        whole = r.random() < 0.35
        kind = r.choice(("user", "kernel", "atomic", "cheap"))
        items.append(Item(kind, reads, changed if whole else (), () if whole else changed, i + 1, r.choice((0, 0, 5))))
    return items


class World:
    """Variables of an engine, each with a number in memory, and a list of what was pushed on them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cells = [np.zeros(1, np.uint64) for _ in range(VARIABLES)]
        self.vs = [engine.new_variable(str(i)) for i in range(VARIABLES)]
        self.pushed: list[tuple[Operation, Item]] = []  # before they are admitted: an interrupted push may not be

    def steps(self, item: Item) -> list[tuple[Any, ...]]:
        """What an operation does, in single C calls: mix what it reads, so that any change of order shows."""
        mixed = np.full(1, item.constant, np.uint64)
        odd = np.uint64(6364136223846793005)
        out: list[tuple[Any, ...]] = []
        for i in item.reads:
            out += ((np.multiply, mixed, odd, mixed), (np.add, mixed, self.cells[i], mixed))
        for i in item.updates:
            out += ((np.multiply, self.cells[i], odd, self.cells[i]), (np.add, self.cells[i], mixed, self.cells[i]))
        return out + [(np.positive, mixed, self.cells[i]) for i in item.writes]

    def run_steps(self, item: Item) -> None:
        """The same as a Python function."""
        for f, *args in self.steps(item):
            f(*args)

    def push(self, item: Item) -> None:
        """Push one operation."""
        reads, writes, updates = ([self.vs[i] for i in x] for x in (item.reads, item.writes, item.updates))
        atomic = item.kind in ("atomic", "cheap")
        kind = Kind.USER if item.kind == "user" else Kind.ATOMIC if atomic else Kind.KERNEL
        fn: Callable[[], Any] = (lambda: self.steps(item)) if atomic else (lambda: self.run_steps(item))
        op = Operation(kind, fn, item.kind, priority=item.priority, cheap=item.kind == "cheap", nbytes=item.constant)
        self.pushed.append((op, item))
        self.engine.admit(lambda: (op, reads, writes, updates, (), [], False))

    def look(self, r: random.Random) -> None:
        """Wait for some variable, whatever its error."""
        with contextlib.suppress(Fault, MemoryError):
            self.engine.wait_for_var(r.choice(self.vs), WAIT)

    def run(self, items: Sequence[Item], r: random.Random, looks: float = 0.03) -> None:
        """Push all, waiting now and then."""
        for item in items:
            self.push(item)
            if r.random() < looks:
                self.look(r)

    def result(self) -> tuple[list[int], list[str]]:
        """Each variable's number and error, once everything has ended; checks the invariants."""
        errors = []
        for v in self.vs:
            try:
                self.engine.wait_for_var(v, WAIT)
                errors.append("")
            except (Fault, MemoryError) as error:
                distance = [note for note in error.__notes__ if note.startswith("distance")]
                errors.append(f"{type(error).__name__}: {error} {distance}")
        with contextlib.suppress(EngineErrors):
            self.engine.waitall(WAIT)
        audit(self.engine)
        if self.engine.statistics().bytes:
            raise Deviation(f"{self.engine.statistics().bytes} bytes in flight, and nothing is")
        return [int(cell[0]) for cell in self.cells], errors

    def admitted(self) -> list[Item]:
        """What was admitted, in that order."""
        done = sorted((op.seq, item) for op, item in self.pushed if op.done)
        if len({seq for seq, _ in done}) != len(done):
            raise Deviation("a place in the push order was given twice")
        return [item for _, item in done]


def serial(items: Sequence[Item], faults: dict[int, BaseException] | None = None) -> tuple[list[int], list[str]]:
    """The oracle: each operation runs to its end within its push."""
    with Engine("NaiveEngine", inline=False) as engine:
        world = World(engine)
        with Faults(engine, faults or {}):
            for item in items:
                world.push(item)
        return world.result()


def compare(got: tuple[list[int], list[str]], want: tuple[list[int], list[str]]) -> None:
    """Raise `Deviation` if they differ."""
    wrong = [i for i in range(VARIABLES) if (got[0][i], got[1][i]) != (want[0][i], want[1][i])]
    if wrong:
        texts = [f"{i}: {got[0][i]} {got[1][i]}, expected {want[0][i]} {want[1][i]}" for i in wrong]
        raise Deviation(f"{len(wrong)} of {VARIABLES} variables differ: {'; '.join(texts[:3])}")


# ==================================================================================================== rounds
def plain(engine: Engine, r: random.Random) -> Count:
    """Failing operations; half of the programs wait behind a gate until all is pushed, so that any order could come."""
    items = program(r)
    errors = (Fault("injected"), MemoryError("injected"))
    faults: dict[int, BaseException] = {
        r.randrange(len(items)): r.choice(errors) for _ in range(r.choice((0, 0, 1, 4)))
    }
    world, gate = World(engine), Gate()
    closed = r.random() < 0.5
    if closed:
        engine.push(gate, updates=world.vs)
    with Faults(engine, faults):
        world.run(items, r, 0.0 if closed else 0.03)
    gate.open()
    compare(world.result(), serial(items, faults))
    return Count(len(items), len(faults))


def threads(engine: Engine, r: random.Random) -> Count:
    """Four threads push on shared variables: some serial order, and no operation lost."""
    items, world = program(r), World(engine)
    seeds = [r.random() for _ in range(4)]
    pool = [threading.Thread(target=world.run, args=(items[i::4], random.Random(seeds[i]))) for i in range(4)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    got, order = world.result(), world.admitted()
    if sorted(order, key=lambda item: item.constant) != items:
        raise Deviation(f"{len(order)} of {len(items)} operations were admitted")
    compare(got, serial(order))
    return Count(len(items), 0)


def interrupts(engine: Engine, r: random.Random) -> Count:
    """Signals cut the program again and again; what was admitted must be as if there had been none."""
    world, items = World(engine), program(r)
    kind = r.choice((Interrupt, HardInterrupt))
    hits, inside = 0, 0
    armed = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal armed, hits, inside
        if armed:
            armed = False
            hits += 1
            while frame is not None and not frame.f_code.co_filename.startswith(ENGINE_FILES):
                frame = frame.f_back
            inside += frame is not None
            raise kind

    def until_cut() -> None:
        while armed:
            world.push(r.choice(items))
            if r.random() < 0.1:
                engine.wait_for_var(r.choice(world.vs), WAIT)

    gc.collect()
    old = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(60):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, r.uniform(2e-5, 1e-3))
                until_cut()
            except kind:
                audit(engine)
            finally:
                armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, old)
    got, order = world.result(), world.admitted()
    compare(got, serial(order))
    return Count(len(order), hits, inside)


class Failing:
    """The host's allocations, of which the `times` from the k-th on fail."""

    def __init__(self) -> None:
        self.original = device.HOST.empty
        self.lock = threading.Lock()
        self.count = self.failed = self.times = 0
        self.k = -1

    def empty(self, shape: Any, dtype: Any) -> Any:
        """In place of NumPy's."""
        with self.lock:
            self.count += 1
            fails = 0 < self.k <= self.count < self.k + self.times
            self.failed += fails
        if fails:
            raise MemoryError("injected")
        return self.original(shape, dtype)

    def reset(self, k: int, times: int) -> None:
        """Count from 1 again."""
        self.count, self.k, self.times = 0, k, times


def arrays(seed: float) -> list[bytes | None]:
    """A program of arrays and gradients; the bytes of each array, None where memory ran out."""
    r, dot = random.Random(seed), cast(Any, nd.dot)
    xs: list[Any] = [nd.full((40, 40), i + 1.0) for i in range(3)]
    for x in xs:
        x.attach_grad()
    with autograd.record():
        for _ in range(r.randint(4, 8)):
            a, b = r.choice(xs), r.choice(xs)
            kinds: list[Any] = [a.__add__, lambda x, a=a: dot(a, x) * 0.01, nd.softmax]
            xs.append(r.choice(kinds)(b))
            if r.random() < 0.3 and xs[3:]:
                xs[-1][2:5] = 0.5
        loss = xs[-1].sum()
    loss.backward(wait=False)
    xs[0] -= 0.1 * xs[0].grad
    found: list[bytes | None] = []
    for x in [*xs, *(x.grad for x in xs[:3]), loss]:
        try:
            found.append(x.asnumpy().tobytes())
        except MemoryError as error:
            if "injected" not in str(error):
                raise
            found.append(None)
    return found


def memory(engine: Engine, r: random.Random) -> Count:
    """Allocations of an array program fail: once, which must not show, or for good, after which no byte is wrong."""
    seed, failing = r.random(), Failing()

    def run(k: int, times: int) -> list[bytes | None]:
        failing.reset(k, times)
        found = arrays(seed)
        with contextlib.suppress(EngineErrors):
            nd.waitall()
        return found

    device.HOST.empty = failing.empty  # type: ignore[method-assign]
    try:
        with engine.use():
            right = run(-1, 0)
            gc.collect()
            before, total = usage()[0], failing.count
            for _ in range(4):
                k, times = r.randint(1, total), r.choice((1, 2, 1000))
                got = run(k, times)
                allowed = [(x,) if times == 1 else (x, None) for x in right]
                if any(x not in y for x, y in zip(got, allowed, strict=True)):
                    raise Deviation(f"other bytes, with {times} of {total} allocations failing from number {k} on")
                gc.collect()
                stay = usage()[0] - before
                if stay or engine.statistics().bytes:
                    raise Deviation(f"{stay} bytes stay, {engine.statistics().bytes} in flight")
            if run(-1, 0) != right:
                raise Deviation("other bytes once there is memory again")
    finally:
        del device.HOST.empty
    audit(engine)
    return Count(engine.statistics().pushed, failing.failed)


def forks(engine: Engine, r: random.Random) -> Count:
    """Children forked while two threads push run a program; so does the parent afterwards."""
    items = program(r)
    want = serial(items)
    stop, ready = threading.Event(), threading.Barrier(3, timeout=WAIT)

    def pusher(seed: float) -> None:
        own, q = World(engine), random.Random(seed)
        ready.wait()
        while not stop.is_set():
            own.run(q.sample(items, 10), q)
            own.look(q)

    def check() -> None:
        world = World(engine)
        world.run(items, r)
        compare(world.result(), want)

    pool = [threading.Thread(target=pusher, args=(r.random(),)) for _ in range(2)]
    for thread in pool:
        thread.start()
    ready.wait()
    codes = [in_child(check) for _ in range(3)]
    stop.set()
    for thread in pool:
        thread.join()
    if any(codes):
        raise Deviation(f"forked children ended with {codes}")
    check()
    return Count(engine.statistics().pushed, len(codes))


def in_child(check: Callable[[], None]) -> int:
    """The exit code of a forked child: 0 if `check` raised nothing in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of every fork with threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(int(2 * WAIT))  # its default action ends a child that hangs
            check()
            code = 0
        except BaseException as error:
            os.write(2, f"in the child: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def waits(engine: Engine, r: random.Random) -> Count:
    """Nested waits end whatever the number of workers; waits that need themselves raise."""
    depth = r.randint(10, 60)
    v, x, y, own = (engine.new_variable() for _ in range(4))

    def nest(n: int) -> None:
        if n:
            engine.push(lambda: nest(n - 1), updates=[engine.new_variable()]).wait(WAIT)

    both = threading.Barrier(2, timeout=WAIT)
    engine.push(lambda: nest(depth), writes=[v]).wait(WAIT)
    selfish = [engine.push(lambda: engine.wait_for_var(own, WAIT), updates=[own])]
    if engine._lane.workers > 1:

        def crossed(other: Variable) -> None:
            both.wait()
            engine.wait_for_var(other, WAIT)

        selfish += [engine.push(lambda: crossed(y), writes=[x]), engine.push(lambda: crossed(x), writes=[y])]
    for op in selfish:
        engine.wait_op(op, WAIT)
    found = [isinstance(op.error, DeadlockError) for op in selfish]
    if not found[0] or (found[1:] and not any(found[1:])):
        raise Deviation(f"waits that need themselves ended with {[op.error for op in selfish]}")
    audit(engine)
    return Count(engine.statistics().pushed, len(selfish))


EXIT = """
import sys, threading
from vardag import engine
e = engine.Engine({kind!r}, workers={workers})
v = e.new_variable()
for _ in range({n}):
    e.push(lambda: None, updates=[v])
e.push(lambda: print("ran", flush=True), [v])
def forever():
    while True:
        e.push(lambda: None).wait()
if {daemon}:
    threading.Thread(target=forever, daemon=True).start()
{end}
"""


def exits(engine: Engine, r: random.Random) -> Count:
    """A process that ends with work in flight: all of it is done, the exit code is right, nothing else is printed."""
    ends = (("", 0, ""), ("sys.exit(3)", 3, ""), ("1 / 0", 1, "ZeroDivisionError: division by zero"))
    end, code, last = r.choice(ends)
    text = EXIT.format(kind=engine.kind, workers=r.randint(1, 4), n=r.randint(0, 500), daemon=r.random() < 0.5, end=end)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=WAIT, check=False)
    lines = done.stderr.strip().splitlines()
    if (done.returncode, done.stdout) != (code, "ran\n") or lines[-1:] != ([last] if last else []):
        raise Deviation(f"a process ended with {done.returncode}, {done.stdout!r}, {done.stderr!r}: {text}")
    return Count(1, 1)


ROUNDS: dict[str, Callable[[Engine, random.Random], Count]] = {
    "plain": plain, "threads": threads, "memory": memory, "waits": waits, "exits": exits,
}  # fmt: skip
if hasattr(signal, "setitimer"):
    ROUNDS["interrupts"] = interrupts
if hasattr(os, "fork"):
    ROUNDS["forks"] = forks
