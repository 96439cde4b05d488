"""Exit, fork, inline kernels that are interrupted from inside, the profiler."""

from __future__ import annotations

import json
import operator
import os
import subprocess
import sys
import threading
import warnings

import pytest

from vardag.engine import ArgumentError, Engine, Kind, Operation
from vardag.engine.testing import Gate, audit


def python(code: str) -> subprocess.CompletedProcess:
    code = "from vardag import engine as E\ne = E.default()\n" + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("code", "status", "out"),
    [
        ("", 0, ""),
        ("for i in range(1000): e.push(lambda: None)\ne.push(lambda: print('ran'))", 0, "ran\n"),
        ("import sys\ne.push(lambda: print('ran'))\nsys.exit(3)", 3, "ran\n"),
        ("import threading\ndef f():\n  while True: e.push(lambda: None).wait()\n"
         "threading.Thread(target=f, daemon=True).start()", 0, ""),
        ("e.push_async(lambda c, done: None)\nE.lifecycle.EXIT_GRACE = 0.0", 0, ""),
        ("v = e.new_variable()\ne.push(lambda: 1/0, writes=[v])\ntry: e.wait_for_var(v)\nexcept E.Error: pass", 0, ""),
    ],
    ids=["idle", "work in flight", "sys.exit", "daemon pushes", "callback never comes", "seen error"],
)  # fmt: skip
def test_exit_is_quiet(code, status, out):
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, "")


def test_exit_reports_errors_that_nobody_saw():
    done = python("e.push(lambda: 1/0)")
    assert done.returncode == 0
    assert "division by zero" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_starts_anew():
    with Engine("ThreadedEnginePooled", workers=2) as e:
        v, w, gate = e.new_variable(), e.new_variable(), Gate()
        e.push(lambda: None, writes=[v])
        e.wait_for_var(v)
        e.push(gate, writes=[w])
        gate.wait_entered()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of every fork with threads
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                e.wait_for_var(v, 10)
                try:
                    e.wait_for_var(w, 10)
                except Exception as error:
                    code = 0 if "unfinished at fork" in str(error) else 2
                out = []
                e.push(lambda: out.append(1), updates=[v]).wait(10)
                e.push(lambda: out.append(2), writes=[w])
                e.wait_for_var(w, 10)
                code = code if out == [1, 2] else 3
            finally:
                os._exit(code)
        gate.open()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        e.wait_for_var(w)


def test_start_is_reentrant():
    """A finalizer that pushes while the first push starts the workers, at every line of the standard library too."""

    def first_push(k):
        with Engine("ThreadedEnginePooled", workers=1) as e:
            seen, ran = [0], []

            def trace(frame, event, arg):
                if event == "line":
                    seen[0] += 1
                    if seen[0] == k:
                        e.push(lambda: ran.append(1))  # CPython does not trace within a trace function
                return trace

            sys.settrace(trace)
            try:
                e.push(lambda: None)
            finally:
                sys.settrace(None)
            e.waitall(30)
            assert len(ran) == (seen[0] >= k)
        return bool(ran)

    k = 1
    while first_push(k):
        k += 1
    assert k > 50


# ==================================================================================================== inline
def admit(engine, steps, reads=(), writes=(), updates=(), cheap=True, fn=None):
    op = Operation(Kind.ATOMIC, fn or (lambda: steps), "k", cheap=cheap)
    return engine.admit(lambda: (op, reads, writes, updates, (), [], False))


@pytest.mark.parametrize("failing", [False, True])
def test_push_from_inside_a_kernel(failing):
    """Race "finalizer-in-kernel": a collection inside an inline kernel runs a finalizer that pushes."""
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, cell, pushed = e.new_variable(), [0], []

        def finalizer():
            pushed.append(e.push(lambda: cell.append("finalizer saw " + str(cell[0])), updates=[v]))

        steps = [(operator.call, finalizer), (operator.setitem, cell, 0, 1)]
        if failing:
            steps.append((operator.truediv, 1, 0))
        op = admit(e, steps, updates=(v,))
        assert op.done
        assert op.seq < pushed[0].seq
        if failing:
            with pytest.raises(ZeroDivisionError):
                e.wait_for_var(v)
            assert cell == [1]
        else:
            e.wait_for_var(v)
            assert cell == [1, "finalizer saw 1"]
        assert v.version == 2
        audit(e)


def test_memory_error_within_the_push_queues():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, tries, out = e.new_variable(), [], []

        def prepare():
            tries.append(threading.get_ident())
            if len(tries) == 1:
                raise MemoryError
            return [(list.append, out, 1)]

        admit(e, None, writes=(v,), fn=prepare)
        e.wait_for_var(v)
        assert out == [1]
        assert len(tries) == 2
        assert e.statistics().inline == 0


def test_inline_waits_for_readers_and_writers():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, gate, out = e.new_variable(), Gate(), []
        e.push(gate, reads=[v])
        gate.wait_entered()
        admit(e, [(list.append, out, "read")], reads=(v,))
        assert out == ["read"]
        op = admit(e, [(list.append, out, "write")], writes=(v,))
        assert not op.done
        gate.open()
        e.wait_for_var(v)
        assert out == ["read", "write"]


def test_admit_again_is_one_section():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, out, plans = e.new_variable(), [], []

        def plan():
            plans.append(1)
            kind = "copy" if len(plans) == 1 else "op"
            op = Operation(Kind.ATOMIC, lambda: [(list.append, out, kind)], kind)
            return op, (), (), (v,), [(list.append, out, "step " + kind)], [], kind == "copy"

        op = e.admit(plan)
        assert op.name == "op"
        assert op.seq == 1
        e.wait_for_var(v)
        assert [x for x in out if "step" in x] == ["step copy", "step op"]
        assert [x for x in out if "step" not in x] == ["copy", "op"]
        assert e.admit(lambda: (None, (), (), (), [(list.append, out, "only")], [], False)) is None
        assert out[-1] == "only"


# ==================================================================================================== profiler
def test_profile(tmp_path):
    with Engine("ThreadedEnginePooled", workers=2) as e:
        v = e.new_variable()
        with e.profile() as p:
            with pytest.raises(ArgumentError), e.profile():
                pass
            for i in range(40):
                e.push(lambda: None, updates=[v], name=f"op{i % 3}")
            admit(e, [(operator.add, 1, 1)])
            bad = e.push(lambda: 1 / 0, name="bad")
            e.wait_op(bad)
            e.wait_for_var(v)
            e.stop()
        e.start()
        e.push(lambda: None)
    events = p.events
    assert [x.seq for x in events] == list(range(42))
    assert events[40].thread == "MainThread"
    assert not events[41].ok
    for x in events:
        assert x.push <= x.start <= x.end
        assert x.ready is None or x.push <= x.ready <= x.start
        assert __file__ in x.line
    assert any(x.preds == (events[0].seq,) for x in events[1:2]) or events[1].preds == ()
    table = p.table()
    assert "op0" in table and "14" in table
    p.save(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(x["ph"] == "X" and x["cat"] != "wait" for x in trace) == 42
    assert sum(x["ph"] == "s" for x in trace) == sum(x["ph"] == "f" for x in trace) == sum(len(x.preds) for x in events)
    pytest.importorskip("matplotlib")
    p.plot(tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").stat().st_size > 5000
