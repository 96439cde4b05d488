"""Processes that end in every manner with work in flight, and that fork while others push.

`make stress` runs the long form: 500 exits, 200 forks.
"""

from __future__ import annotations

import contextlib
import operator
import os
import random
import subprocess
import sys
import textwrap
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from vardag.engine import Cancelled, Engine, Kind, Operation
from vardag.engine.atomic import locked
from vardag.engine.testing import Gate, audit

LONG = float(os.environ.get("VARDAG_STRESS") or 0) > 0
EXITS = 500 if LONG else 12
FORKS = 200 if LONG else 6
fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def python(code: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=40, check=False, stdin=subprocess.DEVNULL, **kwargs,
    )  # fmt: skip


# ==================================================================================================== exit
# Most of these programs import the engine alone, which takes a fifth of the time; every fifth the whole package.
ALONE = """
import importlib.util, sys, types
package = types.ModuleType("vardag")
package.__path__ = importlib.util.find_spec("vardag").submodule_search_locations
sys.modules["vardag"] = package
"""

START = """
import sys, threading, signal, os
from vardag import engine as E
E.lifecycle.EXIT_GRACE = 0.05
E.lifecycle.EXIT_NESTED = 0.3
e = E.Engine({kind!r}, workers={workers})
E.set_default(e)
"""

WORK = {
    "idle": "",
    "many": "for i in range(2000): e.push(lambda: None)\ne.push(lambda: os.write(1, b'ran\\n'))",
    "chain": "v = e.new_variable()\nfor i in range(500): e.push(lambda: None, updates=[v])\n"
             "e.push(lambda: os.write(1, b'ran\\n'), [v])",
    "nested": "def nest(n):\n  v = e.new_variable()\n"
              "  e.push(lambda: e.wait_for_var(nest(n - 1)) if n else None, writes=[v])\n"
              "  return v\n"
              "e.push(lambda: (e.wait_for_var(nest(9)), os.write(1, b'ran\\n')))",
    "endless": "def again(): e.push(again)\ne.push(again)",
    "callback": "e.push_async(lambda c, done: None)",
    "late callback": "e.push_async(lambda c, done: threading.Timer(0.02, done).start())",
    "asleep": "e.push(threading.Event().wait)\nE.push = e.push",
    "daemon pushes": "def f():\n"
                     "  while True:\n"
                     "    try: e.push(lambda: None).wait()\n"
                     "    except E.Cancelled: pass  # by `cancelled`\n"
                     "threading.Thread(target=f, daemon=True).start()",
    "daemon waits": "w = e.new_variable()\ne.push_async(lambda c, done: None, mutable_vars=[w])\n"
                    "threading.Thread(target=lambda: e.wait_for_var(w), daemon=True).start()",
    "daemon opens": "gate = threading.Event()\ne.push(gate.wait)\nthreading.Timer(0.02, gate.set).start()",
    "thread": "threading.Thread(target=lambda: [e.push(lambda: None) for _ in range(500)]).start()",
    "engines": "f = E.Engine(workers=1)\nx = e.new_variable()\ne.push(lambda: None, updates=[x])\n"
               "f.push(lambda: (e.wait_for_var(x), os.write(1, b'ran\\n')))",
    "seen": "op = e.push(lambda: 1 / 0)\ntry: op.wait()\nexcept E.Error: pass",
    "cancelled": "for i in range(300): e.push(lambda: None)\ne.cancel_pending()",
    "profiled": "p = e.profile(); p.__enter__()\nfor i in range(100): e.push(lambda: None)",
    "lanes": "for i in range(40): e.push(lambda: None, lane=f'gpu{i % 3}')",
}  # fmt: skip
NOT_SERIAL = {"asleep", "endless", "daemon opens", "daemon waits", "nested"}  # there a push is the call

MANNERS = {
    "return": ("", 0, None),
    "sys.exit": ("sys.exit(3)", 3, None),
    "text": ("sys.exit('own text')", 1, "own text"),
    "uncaught": ("raise ValueError('own error')", 1, "ValueError: own error"),
    "interrupt": ("os.kill(os.getpid(), signal.SIGINT)\nfor _ in range(10**9): pass", -2, "KeyboardInterrupt"),
}


def exit_case(seed: int) -> str | None:
    """A program of one to three kinds of work and a manner to end; what is wrong with its end, or None."""
    r = random.Random(seed)
    names = list(WORK)
    works = list(dict.fromkeys([names[seed % len(names)], *r.sample(names, r.randint(0, 2))]))
    manner = list(MANNERS)[seed // len(names) % len(MANNERS)] if seed >= len(names) else r.choice(list(MANNERS))
    kind = r.choice(("ThreadedEnginePooled", "ThreadedEnginePerDevice", "NaiveEngine"))
    if NOT_SERIAL & {*works}:
        kind = "ThreadedEnginePooled"
    blocked = sum(w in ("asleep", "daemon opens", "endless", "nested") for w in works)
    end, code, text = MANNERS[manner]
    whole = START.format(kind=kind, workers=r.randint(1, 3) + blocked) + "\n".join(WORK[w] for w in works) + "\n" + end
    done = python(whole if seed % 5 == 0 else ALONE + whole)
    err = done.stderr.strip().splitlines()
    wanted = sum("b'ran" in WORK[w] for w in works)
    right = done.returncode == code and (
        manner == "interrupt" or "cancelled" in works or done.stdout == "ran\n" * wanted
    )
    quiet = not err if text is None else err[-1:] == [text] and done.stderr.count("Traceback") == (manner[0] in "ui")
    quiet = quiet and "vardag" not in done.stderr
    return None if right and quiet else f"seed {seed}: {works} {manner} {kind}: {done}\n{whole}"


def test_every_exit_has_its_code_and_an_empty_stderr(note):
    seeds = range(EXITS) if LONG else random.Random(3).sample(range(85), EXITS)
    with ThreadPoolExecutor(4) as pool:
        wrong = [w for w in pool.map(exit_case, seeds) if w]
    assert not wrong, wrong[0]
    note("exits", EXITS, EXITS, f"{len(WORK)} kinds of work in flight, {len(MANNERS)} manners")


def test_an_exit_that_is_wrong_would_be_noticed(monkeypatch):
    monkeypatch.setitem(WORK, "idle", "e.push(lambda: 1 / 0)")
    assert "ZeroDivisionError" in (exit_case(0) or "")


# ==================================================================================================== fork
def in_child(check) -> int:
    """Fork, run `check` in the child, and return its exit code: 0 if it raised nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of every fork with threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            check()
            code = 0
        except BaseException as error:
            os.write(2, f"in the child: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def value(pushes: int) -> int:
    x = 0
    for _ in range(pushes):
        x = (x * 7 + 1) % 1_000_003
    return x


@fork
def test_fork_while_four_threads_push(note):
    """The child finds finished state intact, unfinished state failed, and an engine that works."""
    held = [0]
    with Engine("ThreadedEnginePooled", workers=2) as e:
        vs = [e.new_variable(str(i)) for i in range(4)]
        cells = [[0] for _ in vs]
        stop, started = threading.Event(), threading.Barrier(5, timeout=30)

        def grow(i):
            cells[i][0] = (cells[i][0] * 7 + 1) % 1_000_003

        def pusher(i):
            r = random.Random(i)
            started.wait()
            while not stop.is_set():
                for _ in range(r.randint(1, 12)):
                    if r.random() < 0.5:
                        e.push(lambda: grow(i), updates=[vs[i]])
                    else:
                        op = Operation(Kind.ATOMIC, lambda: [(operator.call, grow, i)], cheap=r.random() < 0.7)
                        e.admit(lambda op=op: (op, (), (), (vs[i],), (), [], False))
                e.wait_for_var(vs[i], 60)

        def check():
            for i, v in enumerate(vs):
                pushes = v.version
                try:
                    e.wait_for_var(v, 10)
                except Cancelled as error:
                    assert "unfinished at fork" in str(error), error
                else:
                    assert cells[i][0] == value(pushes), (i, pushes)
            out = []
            for k in range(20):
                e.push(lambda k=k: out.append(k), updates=[v] if (v := vs[k % 4]).writer is None else (), writes=[v])
            e.waitall(10)
            assert sorted(out) == list(range(20))
            audit(e)

        threads = [threading.Thread(target=pusher, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        started.wait()
        codes = []
        for n in range(FORKS):
            e.push(lambda: None).wait(30)
            gate = Gate()
            holder = threading.Thread(target=locked, args=((e._P, e._T)[n % 2], gate))
            if n % 3:  # somebody is inside a section, for certain
                holder.start()
                gate.wait_entered()
            held[0] += not repr(e._P).startswith("<unlocked") or not repr(e._T).startswith("<unlocked")
            codes.append(in_child(check))
            gate.open()
            if n % 3:
                holder.join()
        stop.set()
        for t in threads:
            t.join()
        e.waitall(60)
        for i, v in enumerate(vs):
            assert cells[i][0] == value(v.version)
        audit(e)
    note("forks", codes.count(0), FORKS, f"{held[0]} of the forks while another thread was inside a section")
    assert codes == [0] * FORKS
    assert held[0] >= FORKS // 2


@fork
def test_fork_while_a_kernel_runs_within_its_push():
    """Race "fork-in-kernel": its memory may be half written in the child, so it is unfinished there."""
    with Engine("ThreadedEnginePooled", workers=1) as e, Engine("ThreadedEnginePooled", workers=1) as second:
        v, other, gate = e.new_variable(), e.new_variable(), threading.Lock()
        w, busy = second.new_variable(), Gate()
        second.push(busy, updates=[w])
        busy.wait_entered()
        gate.acquire()
        inside = Gate()
        op = Operation(Kind.ATOMIC, lambda: [(operator.call, inside._entered.set), (gate.acquire,)], "half", cheap=True)
        thread = threading.Thread(target=lambda: e.admit(lambda: (op, (), (), (v,), (), [], False)))
        thread.start()
        inside.wait_entered()  # it holds lock P, and has let go of the GIL

        def check():
            with pytest.raises(Cancelled, match=r"\[half\] was unfinished at fork"):
                e.wait_for_var(v, 10)
            e.push(lambda: None, writes=[v])
            e.push(lambda: None, updates=[other])
            e.waitall(10)
            e.wait_for_var(v)
            audit(e)
            with pytest.raises(Cancelled):
                second.wait_for_var(w, 10)
            second.push(lambda: None, writes=[w])
            second.wait_for_var(w, 10)

        assert in_child(check) == 0
        busy.open()
        gate.release()
        thread.join()
        e.wait_for_var(v)
        assert (v.version, v.writer) == (1, None)
        audit(e)


@fork
def test_children_of_children():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v = e.new_variable()
        e.push(lambda: None, writes=[v]).wait()

        def generation(n):
            gate = Gate()
            e.push(gate, writes=[v])  # what the parent left unfinished heals
            gate.wait_entered()
            if n:
                assert in_child(lambda: generation(n - 1)) == 0
            gate.open()
            with contextlib.suppress(Cancelled):
                e.wait_for_var(v, 10)
            e.push(lambda: None, writes=[v])
            e.wait_for_var(v, 10)

        generation(4)


PROCESSES = """
import multiprocessing, os, sys, threading, warnings
import vardag as vd
from vardag import engine as E, nd

def child(x, queue):
    e = E.default()
    out = []
    v = e.new_variable()
    for i in range(50):
        e.push(lambda i=i: out.append(i), updates=[v])
    e.wait_for_var(v, 30)
    queue.put((len(out), (nd.ones((3,)) * x).sum().asscalar().item()))

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    e, stop = E.default(), threading.Event()
    def pusher():
        while not stop.is_set():
            e.push(lambda: None).wait()
    threads = [threading.Thread(target=pusher) for _ in range(2)]
    for t in threads: t.start()
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.SimpleQueue()
    children = [context.Process(target=child, args=(x, queue)) for x in (2, 5)]
    for c in children: c.start()
    got = sorted(queue.get() for _ in children)
    for c in children: c.join(60)
    stop.set()
    for t in threads: t.join()
    print(got, [c.exitcode for c in children])
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_child_processes(method, tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROCESSES)
    done = subprocess.run(
        [sys.executable, file, method], capture_output=True, text=True, timeout=40, check=False, cwd=tmp_path
    )
    assert (done.stdout, done.stderr) == ("[(50, 6.0), (50, 15.0)] [0, 0]\n", "")


PREFORK = """
import os, signal, socket, sys, threading, warnings
from vardag import engine as E, nd
warnings.simplefilter("ignore", DeprecationWarning)
weights = nd.ones((4,)) * 3  # made before the fork, shared by all
weights.wait_to_read()
server = socket.socket(); server.bind(("127.0.0.1", 0)); server.listen(16)

def serve():
    while True:
        connection = server.accept()[0]
        with connection:
            x = int(connection.recv(20))
            if x == 0: return
            connection.sendall(str((weights * x).sum().asscalar()).encode())

def start():
    pid = os.fork()
    if pid == 0:
        serve()
        sys.exit(0)
    return pid

def ask(x):
    with socket.create_connection(server.getsockname(), 30) as c:
        c.sendall(str(x).encode())
        return c.recv(20)

stop = threading.Event()
def busy():
    while not stop.is_set(): (weights + 1).wait_to_read()
thread = threading.Thread(target=busy); thread.start()
workers = [start() for _ in range(3)]
answers = [float(ask(x)) for x in range(1, 30)]
os.kill(workers[0], signal.SIGKILL); os.waitpid(workers.pop(0), 0)
workers.append(start())
answers += [float(ask(x)) for x in range(30, 60)]
for _ in workers: ask(0)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
stop.set(); thread.join()
print(answers == [12.0 * x for x in range(1, 60)], codes)
"""


@fork
def test_a_server_that_forks_first():
    done = python(PREFORK)
    assert (done.stdout, done.stderr) == ("True [0, 0, 0]\n", "")


# ==================================================================================================== stop and start
@pytest.mark.parametrize("kind", ["NaiveEngine", "ThreadedEnginePooled", "ThreadedEnginePerDevice"])
def test_stop_and_start_again_and_again(kind):
    with Engine(kind, workers=2) as e:
        v, out = e.new_variable(), []
        rounds = 300 if LONG else 30
        for i in range(rounds):
            e.push(lambda i=i: out.append(i), updates=[v])
            e.push(lambda: None, reads=[v], lane="gpu0")
            e.stop()
            assert e.statistics().workers == 0
            e.start()
        assert out == list(range(rounds))
        audit(e)
