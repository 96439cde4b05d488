"""The profiler: one event per operation of every kind, what held up what, and what waits were for."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd, profiler
from vardag.engine import ArgumentError, Engine, Kind
from vardag.engine.testing import Gate


def by_name(profile: Any) -> dict[str, Any]:
    return {e.name: e for e in profile.events}


@pytest.mark.host("kernels that run within their push")
def test_operations_of_every_kind() -> None:
    with Engine(workers=2) as e:
        x = nd.ones((300, 300))
        small = nd.ones(3)
        x.attach_grad()
        with e.profile() as p:
            with autograd.record():
                y = nd.dot(x, x).sum()
            y.backward()
            _ = small + small
            e.push(lambda a: None, updates=[x], name="mine").wait()
            e.push_async(lambda run, done: done(), None, (), [e.new_variable()], name="later")
            e.waitall()
        found = by_name(p)
        assert {"dot", "sum", "mine", "later", "add"} <= set(found)
        assert any(name.startswith("backward of dot") for name in found)
        assert found["mine"].kind == Kind.USER.value
        assert found["dot"].nbytes == 4 * 300 * 300
        assert found["add"].lane == "within the push"
        assert found["add"].thread == "MainThread"
        assert found["add"].nbytes == 4 * 3
        assert all(ev.push <= ev.start <= ev.end and ev.thread for ev in p.events)
        assert __file__ in found["dot"].line


@pytest.mark.host("segments")
def test_a_segment_names_its_members() -> None:
    with Engine(workers=1) as e:
        a, b = nd.ones(500_000), nd.ones(500_000)
        e.waitall()
        with e.profile() as p:
            nd.tanh(nd.exp(a * b) + a).wait_to_read()
            e.waitall()
        members = [ev.members for ev in p.events if ev.members]
        assert [name for names in members for name in names] == ["multiply", "exp", "add", "tanh"]


def chain(e: Engine, gate: Gate) -> Any:
    """A long one, and beside it one that nobody needs."""
    v, w = e.new_variable(), e.new_variable()
    e.push(lambda: None, writes=[v], name="first")
    e.push(gate, updates=[v], name="held")
    gate.wait_entered()
    e.push(lambda: None, writes=[w], name="beside").wait()
    return e.push(lambda: None, updates=[v], name="last")


def test_the_critical_path_is_what_held_up_the_end() -> None:
    with Engine(workers=2) as e:
        gate = Gate()
        with e.profile() as p:
            last = chain(e, gate)
            gate.open()
            last.wait()
            e.waitall()
        assert [ev.name for ev in p.critical_path()] == ["first", "held", "last"]


def test_one_worker_is_a_reason_too() -> None:
    """Two operations that have nothing to do with each other, on one thread: the second waits for the first."""
    with Engine(workers=1) as e:
        gate = Gate()
        with e.profile() as p:
            e.push(gate, name="long")
            gate.wait_entered()
            other = e.push(lambda: None, name="other")
            gate.open()
            other.wait()
            e.waitall()
        assert [ev.name for ev in p.critical_path()] == ["long", "other"]


def test_waits_say_what_they_were_for() -> None:
    with Engine(workers=1) as e:
        gate = Gate()
        with e.profile() as p:
            x = nd.zeros(3)
            e.push(lambda _: gate(), updates=[x], name="slow")
            gate.wait_entered()
            e.push(lambda a: None, updates=[x], name="quick")
            opener = e.push_async(lambda run, done: done(), name="unused")
            import threading

            threading.Timer(0.05, gate.open).start()
            assert x.asnumpy().tolist() == [0, 0, 0]
            opener.wait()
        text = p.waits().splitlines()[0]
        assert "s in asnumpy at " in text
        assert "test_profiler.py" in text
        assert "was slow pushed at" in text
        longest = max(p.waiting, key=lambda w: w.seconds)
        assert longest.seconds > 0.02
        assert p.waits(least=1000) == ""


@pytest.mark.host("segments")
def test_the_trace_has_waits_members_and_arrows(tmp_path: Any) -> None:
    with Engine(workers=2) as e:
        a = nd.ones(500_000)
        e.waitall()
        with e.profile() as p:
            y = nd.exp(a) * 2
            nd.dot(y.reshape((500, 1000)), nd.ones((1000, 10))).wait_to_read()
            e.waitall()
        p.save(tmp_path / "trace.json")
        p.plot(tmp_path / "timeline.png")
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {t["tid"]: t["args"]["name"] for t in trace if t["name"] == "thread_name"}
    assert all(t["tid"] in names for t in trace if t["ph"] in "Xsf")
    assert any(t.get("cat") == "wait" for t in trace)
    assert any("members" in t.get("args", {}) for t in trace)
    assert sum(t["ph"] == "s" for t in trace) == sum(t["ph"] == "f" for t in trace) > 0


# ---- MXNet's face ----------------------------------------------------------------------------------------------------


@pytest.mark.host("kernels that run within their push")
def test_mxnets_face(tmp_path: Any) -> None:
    with Engine(workers=1):
        profiler.set_config(profile_all=True, aggregate_stats=True, filename=str(tmp_path / "p.json"))
        profiler.set_state("run")
        with pytest.raises(ArgumentError):
            profiler.set_config(filename="x")
        domain = profiler.Domain("mine")
        task, counter = domain.new_task("work"), domain.new_counter("items", 5)
        task.start()
        _ = nd.ones((4, 4)).sum()
        task.stop()
        counter += 3
        counter -= 1
        assert counter.value == 7
        domain.new_marker("here").mark("thread")
        profiler.pause()
        _ = nd.ones((4, 4)).prod()
        domain.new_marker("not here").mark()
        profiler.resume()
        with domain.new_frame("frame"), profiler.Event("event"):
            _ = nd.ones((4, 4)).max()
        table = profiler.dumps()
        assert "sum" in table and "max" in table and "prod" not in table
        found = json.loads(profiler.dumps(format="json", sort_by="count"))
        assert found["Time"]["sum"]["count"] == 1
        profiler.dump()
        trace = json.loads((tmp_path / "p.json").read_text())["traceEvents"]
        by = {t["name"]: t for t in trace}
        assert by["work"]["ph"] == by["frame"]["ph"] == by["event"]["ph"] == "X"
        assert [t["args"]["value"] for t in trace if t["ph"] == "C"] == [5, 8, 7]
        assert by["here"]["s"] == "t"
        assert "not here" not in by
        assert len(profiler.dumps(reset=True).splitlines()) > 1
        assert len(profiler.dumps().splitlines()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: profiler.set_config(nonsense=1),
        lambda: profiler.set_state("walk"),
        lambda: profiler.dumps(sort_by="colour"),
        lambda: profiler.Domain("d").new_marker("m").mark("nowhere"),
    ],
)
def test_wrong_requests(wrong: Any) -> None:
    with pytest.raises(ArgumentError):
        wrong()


def test_off_nothing_is_recorded() -> None:
    with Engine(workers=1) as e:
        with e.profile() as p:
            pass
        before = len(p.events)
        for _ in range(10):
            _ = nd.ones(3) + 1
        e.push(lambda: None).wait()
        np.testing.assert_equal((len(p.events), len(p.waiting)), (before, 0))
