"""MXNet's Engine contract in Python spelling, and bad input."""

from __future__ import annotations

import threading

import pytest

from vardag.engine import (
    ArgumentError,
    CompletionError,
    DeadlockError,
    Engine,
    EngineClosed,
    Error,
    FnProperty,
    current,
    default,
    set_default,
)
from vardag.engine.testing import Gate, audit

KINDS = ["NaiveEngine", "ThreadedEnginePooled", "ThreadedEnginePerDevice"]


@pytest.fixture(params=KINDS)
def engine(request):
    with Engine(request.param, workers=2) as e:
        yield e


@pytest.mark.parametrize("prop", FnProperty)
def test_push_async_completes_by_its_callback(engine, prop):
    v, seen, calls = engine.new_variable(), [], []

    def fn(run_ctx, on_complete):
        seen.append(run_ctx.ctx)
        calls.append(on_complete)
        handed.set()

    handed = threading.Event()
    after = []
    op = engine.push_async(fn, "gpu0", [], [v], prop, 3, "copy")
    engine.push(lambda: after.append(1), reads=[v])
    other = engine.push(lambda: None)
    other.wait(30)
    assert handed.wait(30)
    assert not op.done
    assert not after
    threading.Thread(target=calls[0]).start()
    engine.wait_to_write(v, 30)
    assert seen == ["gpu0"]
    assert after == [1]
    assert (op.name, op.priority) == ("copy", 3)
    with pytest.raises(CompletionError):
        calls[0]()


def test_push_async_with_an_error(engine):
    v = engine.new_variable()
    engine.push_async(lambda ctx, done: done(KeyError("k")), mutable_vars=[v])
    with pytest.raises(KeyError):
        engine.wait_for_var(v, 30)

    def raises(ctx, done):
        kept.append(done)
        raise IndexError("before")

    kept = []
    engine.push_async(raises, mutable_vars=[w := engine.new_variable()])
    with pytest.raises(IndexError, match="before"):
        engine.wait_for_var(w, 30)
    with pytest.raises(CompletionError):
        kept[0]()

    def late(ctx, done):
        done()
        raise ValueError("after")

    engine.push_async(late, mutable_vars=[u := engine.new_variable()])
    engine.wait_for_var(u, 30)
    engine.push_sync(lambda ctx: None).wait(30)  # the same worker has left `late` by now, or another one has
    if engine.kind == "NaiveEngine":
        with pytest.raises(ExceptionGroup, match="1 operation failed") as info:
            engine.waitall(30)
        assert isinstance(info.value, Error)


def test_push_sync(engine):
    v, out = engine.new_variable(), []
    engine.push_sync(lambda run_ctx: out.append(run_ctx.engine), mutable_vars=[v])
    engine.wait_for_var(v)
    assert out == [engine]


def test_saved_operator(engine):
    a, v, out = engine.new_variable(), engine.new_variable(), []

    def fn(run_ctx, done):
        out.append(1)
        done()

    saved = engine.new_operator(fn, [a], [v], FnProperty.NORMAL, "saved")
    for _ in range(5):
        engine.push_operator(saved)
    engine.push(saved, priority=2)
    engine.delete_operator(saved)
    engine.wait_for_var(v)
    assert len(out) == 6
    assert v.version == 6
    with pytest.raises(ArgumentError, match="deleted"):
        engine.push_operator(saved)
    with pytest.raises(ArgumentError, match="deleted"):
        engine.delete_operator(saved)


def test_delete_variable(engine):
    v, out = engine.new_variable("v"), []
    engine.push(lambda: out.append("op"), updates=[v])
    engine.push(lambda: 1 / 0, updates=[v])
    engine.delete_variable(v, lambda: out.append("deleted"))
    with pytest.raises(ArgumentError, match="v was deleted"):
        engine.push(lambda: None, reads=[v])
    with pytest.raises(ArgumentError, match="deleted"):
        engine.delete_variable(v)
    with pytest.raises(ExceptionGroup):
        engine.waitall()
    assert out == ["op", "deleted"]


def test_throw_never_blocks():
    with Engine("ThreadedEnginePooled", workers=1) as e:
        v, gate = e.new_variable(), Gate()
        e.push(lambda: (gate(), 1 / 0), writes=[v])
        e.throw(v)
        gate.open()
        with pytest.raises(ZeroDivisionError):
            e.wait_for_var(v)
        with pytest.raises(ZeroDivisionError):
            e.throw(v)


def test_stop_and_start(engine):
    out = []
    engine.push(lambda: out.append(1))
    engine.stop()
    assert out == [1]
    assert engine.stopped
    assert engine.statistics().workers == 0
    with pytest.raises(EngineClosed):
        engine.push(lambda: None)
    assert engine.statistics().pushed == 1
    engine.start()
    engine.push(lambda: out.append(2)).wait()
    assert out == [1, 2]
    op = engine.push(engine.stop)
    with pytest.raises(DeadlockError):
        op.wait()


def test_notify_shutdown_silences(caplog):
    for quiet in (False, True):
        caplog.clear()
        with Engine(workers=1) as e:
            e.push(lambda: 1 / 0)
            if quiet:
                e.notify_shutdown()
        assert ("division by zero" in caplog.text) != quiet


def test_bulk(engine):
    before = engine.set_bulk_size(4)
    with engine.bulk(1):
        assert engine.set_bulk_size(2) == 1
        v, out = engine.new_variable(), []
        for i in range(20):
            engine.push(lambda i=i: out.append(i), updates=[v])
        engine.wait_for_var(v)
    assert out == list(range(20))
    assert engine.set_bulk_size(before) == 4


def test_versions_count_pushes(engine):
    v = engine.new_variable()
    engine.push(lambda: None, reads=[v])
    engine.push(lambda: None, writes=[v])
    engine.push(lambda: None, updates=[v, v], reads=[v])
    assert v.version == 2


def test_resolved_operands(engine):
    class Array:
        def __init__(self):
            self.variable, self.raw = engine.new_variable(), []

        def __vardag_resolve__(self, mode, keep):
            step = (list.append, self.raw, f"resolved to {mode}")
            return self.variable, mode, lambda: (mode, self.raw), [step], None

    a, b = Array(), Array()
    engine.push(lambda x, y: y[1].append((x[0], y[0])), [a], updates=[b])
    engine.wait_for_var(b.variable)
    assert a.raw == ["resolved to read"]
    assert b.raw == ["resolved to update", ("read", "update")]
    assert (a.variable.version, b.variable.version) == (0, 1)
    with pytest.raises(TypeError, match="neither a Variable nor an array"):
        engine.push(print, [a, 3])


BAD = {
    "not callable": lambda e, v, o: e.push(3),
    "not a variable": lambda e, v, o: e.push(print, reads=[3]),
    "not iterable": lambda e, v, o: e.push(print, reads=v),
    "foreign read": lambda e, v, o: e.push(print, reads=[o]),
    "foreign write": lambda e, v, o: e.push(print, [v], [o]),
    "foreign update": lambda e, v, o: e.push(print, [v], (), [o]),
    "foreign wait": lambda e, v, o: e.wait_for_var(o),
    "wait for nothing": lambda e, v, o: e.wait_for_var(None),
    "async: not callable": lambda e, v, o: e.push_async(None),
    "async: twice": lambda e, v, o: e.push_async(print, None, [v], [v]),
    "async: foreign": lambda e, v, o: e.push_async(print, None, [], [o]),
    "async: prop": lambda e, v, o: e.push_async(print, None, [], [v], 0),
    "sync: not callable": lambda e, v, o: e.push_sync(1),
    "operator: foreign": lambda e, v, o: e.new_operator(print, [o]),
    "operator: none": lambda e, v, o: e.push_operator(None),
    "delete: foreign": lambda e, v, o: e.delete_variable(o),
    "delete: not callable": lambda e, v, o: e.delete_variable(v, 3),
    "bulk": lambda e, v, o: e.set_bulk_size(0),
    "kind": lambda e, v, o: Engine("Fast"),
    "workers": lambda e, v, o: Engine(workers=0),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_with_nothing_changed(engine, what):
    with Engine("NaiveEngine") as other:
        v, foreign = engine.new_variable(), other.new_variable()
        with pytest.raises(Error) as info:
            BAD[what](engine, v, foreign)
        assert isinstance(info.value, ValueError | TypeError)
        assert (v.version, v.writer, list(v.readers), v.deleted) == (0, None, [], False)
        assert engine.statistics().pushed == 0
        audit(engine)
        engine.push(lambda: None, updates=[v]).wait()


def test_default_and_current(monkeypatch):
    monkeypatch.setenv("VARDAG_ENGINE_TYPE", "ThreadedEnginePooled")
    monkeypatch.setenv("VARDAG_CPU_WORKER_NTHREADS", "3")
    monkeypatch.setenv("VARDAG_INLINE", "0")
    before = set_default(None)
    try:
        assert default() is current()
        assert default().kind == "ThreadedEnginePooled"
        assert default()._lane.workers == 3
        assert default().inline is False
        with Engine("NaiveEngine") as e:
            assert current() is e
            with default().use():
                assert current() is default()
            assert current() is e
        assert e.stopped
        assert not default().stopped
        monkeypatch.setenv("VARDAG_CPU_WORKER_NTHREADS", "many")
        with pytest.raises(ArgumentError, match="many"):
            Engine()
    finally:
        made = set_default(before)
        made.stop()
