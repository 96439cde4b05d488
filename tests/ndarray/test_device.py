"""Devices with streams, on the simulated one: order, memory, transfers, errors, and that each of its checks fires."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import threading
import weakref

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.engine import Engine, fuzz
from vardag.ndarray import _simulated, streams
from vardag.ndarray import device as device_room
from vardag.ndarray.device import device_of
from vardag.ndarray.streams import Accelerator, DeviceError, Mark

ONE, TWO = nd.Context("simulated", 0), nd.Context("simulated", 1)
SEEDS = range(50)


@pytest.fixture(autouse=True)
def engine():
    """An engine for each test, and a world in which everything has happened."""
    _simulated.world.reset()
    with Engine(workers=2) as own:
        yield own
        with contextlib.suppress(vd.Error, ExceptionGroup):
            own.wait_for_all()
    for context in (ONE, TWO):
        accelerator(context).lost = None
        accelerator(context).driver.fail = None
    _simulated.world.reset()


def accelerator(context):
    return device_of(context)


def program(first, second):
    """Steps on two devices and the host, with copies in every direction, writes after reads, and dying temporaries."""
    rng = np.random.default_rng(3)
    x = nd.array(rng.standard_normal((20, 30)), ctx=first)
    w = nd.array(rng.standard_normal((30, 20)), ctx=second)
    found = []
    for step in range(6):
        near = w.copyto(first)
        w *= 1.5
        passing = (x + 1).copyto(second)
        other = (x * 2).sum(axis=0)
        found.append(passing.sum(axis=0) + other.copyto(second))
        y = nd.dot(x, near)
        found.append((y * 2).copyto(nd.cpu()))
        z = y.copyto(second).T
        w += nd.tanh(z).reshape((-1, 20))[: w.shape[0], :].sum(axis=0)
        x[step] = near.T[step]
        x *= 0.5
        found.append(x.copyto(nd.cpu()) + step)
        del near, y, z, passing, other
    return [f.asnumpy() for f in (*found, x, w)]


def test_a_fuzzed_schedule_has_an_order_of_streams_too(monkeypatch):
    """The same seed, the same steps of the same streams; another seed, others."""
    steps: list[tuple[int, bool]] = []
    plan = _simulated.SimulatedStream.plan

    def noted(stream):
        planned = plan(stream)
        steps.append((streams.setdefault(stream, len(streams)), bool(planned)))
        return planned

    monkeypatch.setattr(_simulated.SimulatedStream, "plan", noted)

    def under(seed):
        steps.clear()
        streams.clear()
        with Engine(workers=2), fuzz(seed):
            values = [x.tobytes() for x in program(ONE, TWO)]
            vd.nd.waitall()
        return tuple(steps), values

    streams: dict[object, int] = {}
    once, again, other = under(3), under(3), under(4)
    assert once == again
    assert once[0] != other[0]
    assert once[1] == other[1]


# ---- the same as on the host -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_program_on_two_devices_gives_the_host_s_bytes(seed):
    _simulated.world.reset(seed)
    expected = program(nd.cpu(), nd.cpu())
    for a, b in zip(program(ONE, TWO), expected, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kind", ["NaiveEngine", "ThreadedEnginePooled", "ThreadedEnginePerDevice"])
def test_on_every_engine(kind):
    expected = program(nd.cpu(), nd.cpu())
    with Engine(kind=kind):
        for a, b in zip(program(ONE, ONE), expected, strict=True):
            assert a.tobytes() == b.tobytes()


def test_gradients_on_a_device():
    def step(ctx):
        x, w = nd.arange(12, ctx=ctx).reshape((3, 4)) / 7, nd.arange(8, ctx=ctx).reshape((4, 2)) / 5
        x.attach_grad(), w.attach_grad("add")
        for _ in range(4):
            with autograd.record():
                y = nd.dot(x, w)
                loss = (nd.tanh(y) * y).sum() + x[1].exp().sum()
            loss.backward()
        return x.grad.asnumpy(), w.grad.asnumpy()

    for a, b in zip(step(ONE), step(nd.cpu()), strict=True):
        assert a.tobytes() == b.tobytes()


def test_gradients_across_memories():
    x = nd.array([1.0, 2.0, 3.0], ctx=ONE)
    x.attach_grad()
    with autograd.record():
        y = (x * x).as_in_context(nd.cpu()) * 3
        z = y.as_in_context(TWO).sum().as_in_context(ONE) + x.sum()
    z.backward()
    assert x.grad.context == ONE
    assert x.grad.asnumpy().tolist() == [7.0, 13.0, 19.0]


def test_data_parallel_training():
    """Half of each batch on each device, gradients summed by copies: the weights of training on the whole batches."""
    rng = np.random.default_rng(0)
    batches, start = rng.standard_normal((5, 8, 4)).astype("f4"), rng.standard_normal((4, 2)).astype("f4")

    def train(contexts):
        weights = [nd.array(start, ctx=ctx) for ctx in contexts]
        for w in weights:
            w.attach_grad()
        for batch in batches:
            parts = vd.io.split_and_load(batch, contexts)
            with autograd.record():
                losses = [(nd.dot(part, w) ** 2).sum() for part, w in zip(parts, weights, strict=True)]
            autograd.backward(losses)
            total = sum((w.grad.as_in_context(contexts[0]) for w in weights[1:]), weights[0].grad.copy())
            for w in weights:
                nd.sgd_update(w, total.as_in_context(w.context), lr=0.01, out=w)
        return weights[-1].asnumpy()

    np.testing.assert_allclose(train([ONE, TWO]), train([nd.cpu()]), rtol=1e-4, atol=1e-6)


def test_a_batch_is_cut_for_contexts():
    x = nd.arange(10).reshape((5, 2))
    parts = vd.io.split_and_load(x, [ONE, TWO], even_split=False)
    assert [part.context for part in parts] == [ONE, TWO]
    assert [part.shape for part in parts] == [(2, 2), (3, 2)]
    assert np.concatenate([part.asnumpy() for part in parts]).tolist() == x.asnumpy().tolist()
    assert [part.shape for part in vd.io.split_and_load(x, [ONE, TWO], batch_axis=1)] == [(5, 1), (5, 1)]
    for wrong in ({"even_split": True}, {"batch_axis": 2}):
        with pytest.raises(ValueError, match="split_and_load"):
            vd.io.split_and_load(x, [ONE, TWO], **wrong)


# ---- the host waits once ---------------------------------------------------------------------------------------------


def test_a_chain_makes_one_host_synchronisation():
    device = accelerator(ONE)
    x = nd.ones((16,), ctx=ONE)
    x.wait_to_read()
    before = device.driver.synchronisations
    for _ in range(1000):
        x = x * 1.001
    x.asnumpy()
    assert device.driver.synchronisations == before + 1


def test_an_operation_is_done_when_it_is_enqueued(monkeypatch):
    monkeypatch.setattr(_simulated, "CHANCE", 0.0)
    x = nd.ones((4,), ctx=ONE) + 1
    buffer = x._chunk.buffer
    buffer.variable.writer.wait()  # the engine's view: done
    memory = buffer.remote.raw.memory
    assert memory.reached < memory.planned
    x.wait_to_read()
    assert memory.reached == memory.planned


def test_waitall_waits_for_devices(monkeypatch):
    monkeypatch.setattr(_simulated, "CHANCE", 0.0)
    x = nd.ones((4,), ctx=ONE) + 1
    nd.waitall()
    memory = x._chunk.buffer.remote.raw.memory
    assert memory.reached == memory.planned


def test_memory_that_nobody_has_written_crosses_both_ways():
    made = []

    def work(here, there):
        for _ in range(50):
            made.append(nd.empty((3,), ctx=here).copyto(there))

    threads = [threading.Thread(target=work, args=pair) for pair in ((ONE, TWO), (TWO, ONE))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    nd.waitall()
    assert {x.shape for x in made} == {(3,)}


@pytest.mark.parametrize("kind", ["NaiveEngine", "ThreadedEnginePooled", "ThreadedEnginePerDevice"])
def test_a_wait_within_a_kernel(kind):
    """As of a finalizer that runs in there: it needs the other lanes, which need the device."""
    found = []
    with Engine(kind=kind):
        y = nd.arange(3, ctx=ONE) + 1

        @vd.operator
        def waits_inside(xp, x, *, out):
            temporary = x + 1
            del temporary
            found.append((y * 1).asnumpy(timeout=30).tolist())
            out[...] = x

        assert waits_inside(nd.ones((2,), ctx=ONE)).asnumpy().tolist() == [1, 1]
    assert found == [[1, 2, 3]]


def test_events_are_used_again():
    device = accelerator(ONE)
    x = nd.ones((4,), ctx=ONE)
    x.wait_to_read()
    before = len(device.idle)
    for _ in range(200):
        x += 1
        x.wait_to_read()
    assert len(device.idle) < before + 20


async def test_awaiting():
    x = nd.ones((3,), ctx=ONE) * 4
    assert (await x) is x
    assert (await x.asnumpy_async()).tolist() == [4.0] * 3
    await asyncio.sleep(0)


def test_what_reads_and_writes_an_array():
    x = nd.arange(6, ctx=ONE)
    assert np.asarray(x).tolist() == list(range(6))
    assert float(x.sum().asscalar()) == 15 and bool(x[1])
    y = nd.zeros((6,))
    x.copyto(y)
    y[0] = 9
    y.copyto(x)
    assert x.asnumpy().tolist() == [9, 1, 2, 3, 4, 5]
    snapshot = x.copy()
    x[:] = 0
    assert snapshot.asnumpy().tolist() == [9, 1, 2, 3, 4, 5]
    assert x.context == ONE and x.as_in_context(ONE) is x


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_operands_of_two_memories_are_refused():
    with pytest.raises(ValueError, match=r"simulated\(0\) and on cpu\(0\)"):
        nd.ones((2,), ctx=ONE) + nd.ones((2,), ctx=nd.cpu())
    with pytest.raises(ValueError, match=r"simulated\(0\) and on simulated\(1\)"):
        nd.ones((2,), ctx=ONE) + nd.ones((2,), ctx=TWO)
    assert (nd.ones((2,), ctx=nd.cpu(1)) + nd.ones((2,), ctx=nd.cpu())).asnumpy().tolist() == [2, 2]


def test_numpy_gets_copies():
    x = nd.arange(5000, ctx=ONE)
    assert np.asarray(x).tolist() == np.array(x).tolist() == list(range(5000))
    with pytest.raises(ValueError, match=r"\[__array__\] .* it is on simulated\(0\), and copy is False"):
        np.asarray(x, copy=False)


class Library:
    """Another library's array on the first device."""

    def __init__(self, raw):
        self.raw = raw

    def __dlpack_device__(self):
        return accelerator(ONE).driver.dlpack

    def __dlpack__(self, *, stream=None, max_version=None, **_):
        assert stream is accelerator(ONE).compute.native
        return self.raw.__dlpack__(max_version=max_version)


def test_other_libraries_get_a_copy_when_their_stream_is_there(monkeypatch):
    monkeypatch.setattr(_simulated, "CHANCE", 0.0)
    x, driver = nd.arange(6, ctx=ONE).reshape((2, 3)), accelerator(ONE).driver
    assert x.__dlpack_device__() == driver.dlpack
    theirs, event = driver.stream(), driver.event()
    capsule = (x * 2).__dlpack__(stream=theirs, max_version=(1, 0))
    assert accelerator(ONE).compute.native.tasks, "nothing was waited for"
    driver.record(event, theirs)
    driver.synchronize(event)
    assert not accelerator(ONE).compute.native.tasks
    assert "dltensor" in repr(capsule)
    copied = np.from_dlpack(x.T)
    x += 1
    nd.waitall()
    assert copied.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert np.from_dlpack(x, device="cpu").tolist() == [[1, 2, 3], [4, 5, 6]]
    for words in ({"copy": False}, {"dl_device": (2, 7)}):
        with pytest.raises(BufferError, match=r"\[__dlpack__\] .*simulated\(0\)"):
            x.__dlpack__(**words)
    with pytest.raises(BufferError, match="bfloat16"):
        x.astype("bfloat16").__dlpack__()


def test_memory_of_other_libraries():
    """Both sides see what is written; what does not lie in C order is copied; a dtype that is not known is refused."""
    raw = np.arange(4, dtype="f")
    x, part = nd.from_dlpack(Library(raw)), nd.from_dlpack(Library(raw[::2]))
    assert (x.context, part.context) == (ONE, ONE)
    x *= 2
    part += 1
    assert x.asnumpy().tolist() == raw.tolist() == [0, 2, 4, 6]
    assert part.asnumpy().tolist() == [1, 3]
    assert "dltensor" in repr(x.to_dlpack_for_write())
    with pytest.raises(vd.engine.ArgumentError, match=r"\[from_dlpack\] dtype uint32"):
        nd.from_dlpack(Library(raw.view("u4")))


def test_memory_of_other_libraries_is_kept_until_streams_are_past_it(monkeypatch):
    monkeypatch.setattr(_simulated, "CHANCE", 0.0)
    raw = np.arange(4, dtype="f")
    known = weakref.ref(raw)
    x = nd.from_dlpack(Library(raw))
    y = x + 1
    y._chunk.buffer.variable.writer.wait()
    del x, raw
    assert known() is not None
    assert y.asnumpy().tolist() == [1, 2, 3, 4]
    accelerator(ONE).release()
    assert known() is None


def test_a_gpu_that_is_not_there():
    assert nd.num_gpus() == 0
    with pytest.raises(vd.engine.ArgumentError, match=r"gpu\(0\)"):
        nd.ones((2,), ctx=nd.gpu(0))


def test_an_error_at_the_launch_is_its_operation_s():
    @vd.operator
    def fails_to_launch(xp, x, *, out):
        raise ValueError("no such kernel")

    good = nd.ones((2,), ctx=ONE)
    bad = fails_to_launch(good) + 1
    with pytest.raises(ValueError, match="no such kernel") as caught:
        bad.wait_to_read()
    assert any("fails_to_launch" in note for note in caught.value.__notes__)
    assert (good + 1).asnumpy().tolist() == [2, 2]


@pytest.fixture
def pinned(monkeypatch):
    """Memory of the host that was pinned: by its base, which is not NumPy's."""
    monkeypatch.setattr(device_room, "pins", lambda: accelerator(ONE).driver)
    return lambda x: type(x._chunk.buffer.raw.base) is bytearray


def test_pinned_memory(pinned, monkeypatch):
    """What is made there is pinned, large results too; it meets other memory of the host, and is not staged."""
    there, n = nd.cpu_pinned(), 200_000
    x, ordinary = nd.array(np.arange(n), ctx=there), nd.ones((n,), ctx=nd.cpu())
    made = [x, x + 1, nd.zeros((n,), ctx=there), ordinary.as_in_context(there), x.copyto(ONE).copyto(there)]
    for y in made:
        y.wait_to_read()
        assert y.context == there and pinned(y)
    z = ordinary + x
    assert z.asnumpy().tobytes() == (x + ordinary).asnumpy().tobytes() == np.arange(1, n + 1, dtype="f").tobytes()
    assert not pinned(z)
    staged = []
    monkeypatch.setattr(accelerator(ONE).driver, "pinned", staged.append)
    y = x.copyto(ONE)
    x[:] = 7  # comes after the copy
    assert y.asnumpy().tolist() == list(range(n))
    assert not staged
    with autograd.record():
        x.attach_grad()
        loss = (x.copyto(ONE) * 2).sum()
    monkeypatch.undo()
    loss.backward()
    assert x.grad.asnumpy().tolist() == [2] * n


def test_without_a_gpu_pinned_memory_is_ordinary():
    x = nd.array([1.0], ctx=nd.cpu_pinned())
    assert (x + nd.ones((1,), ctx=nd.cpu())).asnumpy().tolist() == [2]
    assert x._place.device is device_of(nd.cpu())


def test_what_a_stream_keeps_is_bounded(monkeypatch):
    """Of copies to the device that the device does not come to, only so many bytes wait."""
    monkeypatch.setattr(_simulated, "CHANCE", 0.0)
    monkeypatch.setattr(streams, "LARGE", 1000)
    monkeypatch.setattr(streams, "KEPT", 50_000)
    stream, most = accelerator(ONE).copy_in, 0
    for _ in range(40):
        nd.array(np.ones(2_000, "f"), ctx=ONE)._chunk.buffer.variable.writer.wait()
        most = max(most, streams.kept(stream))
    assert 40_000 <= most <= 50_000
    monkeypatch.setattr(streams, "AHEAD", 10)
    for _ in range(40):
        nd.array(np.ones(20, "f"), ctx=ONE)._chunk.buffer.variable.writer.wait()
        assert len(stream.pending) <= 10


def test_release_gives_back_what_is_kept(monkeypatch):
    monkeypatch.setattr(_simulated, "CHANCE", 0.0)
    x = nd.array(np.ones(100_000, "f"), ctx=ONE).copyto(TWO)
    x._chunk.buffer.variable.writer.wait()
    kept = [streams.kept(s) for d in (ONE, TWO) for s in (accelerator(d).copy_in, accelerator(d).compute)]
    assert sum(kept) >= 400_000
    del x
    nd.waitall()
    assert accelerator(ONE).release() + accelerator(TWO).release() >= 800_000


def test_memory_that_runs_out(monkeypatch):
    accelerator(ONE).release()
    monkeypatch.setattr(accelerator(ONE).driver, "capacity", 0)
    x = nd.ones((1000, 777), ctx=ONE)
    with pytest.raises(MemoryError):
        x.wait_to_read()
    monkeypatch.undo()
    x[:] = 2
    assert x[0, 0].asscalar() == 2


def test_a_copy_that_was_cut_writes_nothing_later(monkeypatch):
    """The bytes come after its operation has failed, and after somebody else has written the target."""
    monkeypatch.setattr(_simulated, "CHANCE", 0.0)
    device, x = accelerator(ONE), nd.ones((4,), ctx=ONE)
    x._chunk.buffer.variable.writer.wait()
    with monkeypatch.context() as cut:

        def cut_off(event):
            raise OSError("cut")

        cut.setattr(device.driver, "synchronize", cut_off)
        z = x.copyto(nd.cpu())
        with pytest.raises(OSError, match="cut"):
            z.wait_to_read()
    z[:] = 5
    z.wait_to_read()
    nd.waitall()
    assert z.asnumpy().tolist() == [5] * 4


def test_a_lost_device_fails_everything_and_says_what_was_enqueued():
    x = nd.ones((3,), ctx=ONE)
    y = nd.tanh(x)
    y._chunk.buffer.variable.writer.wait()
    accelerator(ONE).driver.fail = _simulated.Fault("an illegal address")
    with pytest.raises(DeviceError, match=r"an illegal address.*Enqueued since.*tanh"):
        y.wait_to_read()
    for array in (x, y, x + 1):
        with pytest.raises(DeviceError, match="illegal address"):
            array.asnumpy()
    assert nd.ones((2,), ctx=nd.cpu()).asnumpy().tolist() == [1, 1]


# ---- functions -------------------------------------------------------------------------------------------------------


def test_functions_get_the_device_s_memory(engine):
    """What is read may not be written, what is written is taken, and memory of the host may be beside it."""
    before = accelerator(ONE).synchronisations
    x, y, host = nd.ones((2, 3), ctx=ONE), nd.empty((2, 3), ctx=ONE), nd.ones((3,), ctx=nd.cpu())

    def function(a, b, c, part):
        assert type(a) is type(b) is accelerator(ONE).raw and type(c) is np.ndarray
        b[...] = a * 2 + 1
        part[...] = 9
        c[:] = 7

    z = nd.zeros((4,), ctx=ONE)
    engine.push(function, reads=[x], writes=[y, host], updates=[z[1:3]])
    later = y + 1
    assert accelerator(ONE).synchronisations == before
    assert later.asnumpy().tolist() == [[4, 4, 4]] * 2
    assert host.asnumpy().tolist() == [7, 7, 7]
    assert z.asnumpy().tolist() == [0, 9, 9, 0]
    engine.push(lambda a: a.fill(5), reads=[x], name="careless")
    with pytest.raises(ExceptionGroup) as caught:
        engine.wait_for_all()
    assert "read-only" in str(caught.value.exceptions[0])


def test_what_a_function_raises_is_its_outputs_error(engine):
    x = nd.ones((3,), ctx=ONE)
    engine.push(lambda a: 1 / 0, updates=[x], name="careless")
    y = x * 2
    with pytest.raises(ZeroDivisionError) as caught:
        y.asnumpy()
    assert "operator: careless" in "".join(caught.value.__notes__)
    assert nd.ones((2,), ctx=ONE).asnumpy().tolist() == [1, 1]


def test_functions_that_cannot_have_it_are_refused(engine):
    async def coroutine(a):
        raise AssertionError

    x, away = nd.ones((3,), ctx=ONE), nd.ones((3,), ctx=TWO)
    with pytest.raises(vd.Error, match=r"\[push\] .*one device, not of simulated\(0\) and simulated\(1\)"):
        engine.push(lambda a, b: None, reads=[x], writes=[away])
    with pytest.raises(vd.Error, match=r"\[push\] an async function .* not of simulated\(0\)"):
        engine.push(coroutine, updates=[x])
    assert [v.asnumpy().tolist() for v in (x, away)] == [[1, 1, 1]] * 2


@pytest.mark.parametrize("seed", range(10))
def test_functions_are_in_the_order_of_operators(seed, engine):
    _simulated.world.reset(seed)

    def values(context):
        x, w = nd.ones((50,), ctx=context), nd.ones((50,), ctx=context)
        for _ in range(10):
            y = x * 1.5
            engine.push(lambda a, b: np.add(a, b, out=b), reads=[y], updates=[w])
            x = w.copyto(nd.cpu()).copyto(context) * 0.5
            engine.push(lambda a: np.multiply(a, 0.75, out=a), updates=[x])
        return w.asnumpy().tobytes()

    assert values(ONE) == values(nd.cpu())


HOSTS = [
    lambda x: x + 1, lambda x: x.sum(axis=0), lambda x: x.norm(), nd.softmax, nd.erf, lambda x: nd.dot(x, x),
    lambda x: nd.LeakyReLU(x, act_type="gelu"), lambda x: nd.sgd_update(x, x, lr=0.1),
    lambda x: nd.adam_update(x, x, x * 0, x * 0, lr=0.1), lambda x: nd.multi_sum_sq(x, x, num_arrays=2),
    lambda x: nd.ones((1000, 400), ctx=nd.cpu()).sum(axis=0),
    lambda x: autograd.grad_and_loss(lambda x: (nd.softmax(x * x) * nd.erf(x)).sum())(x)[0][0],
]  # fmt: skip


@pytest.mark.parametrize("within", ["a kernel", "a function"])
@pytest.mark.parametrize("kind", ["NaiveEngine", "ThreadedEnginePerDevice"])
def test_operators_of_the_host_that_run_within_a_device_s_operation(kind, within):
    """A finalizer there, or the function itself, calls them: their kernels are the host's."""

    def values():
        x = nd.array(np.linspace(0.1, 1, 16).reshape(4, 4), ctx=nd.cpu())
        return [f(x).asnumpy().tobytes() for f in HOSTS]

    found = []

    @vd.operator
    def calls(xp, x, *, out):
        found.append(values())
        out[...] = x

    with Engine(kind) as own:
        expected, x = values(), nd.ones((3,), ctx=ONE)
        if within == "a kernel":
            calls(x).wait_to_read()
        else:
            own.push(lambda raw: found.append(values()), updates=[x]).wait()
    assert found == [expected]


# ---- the profiler ----------------------------------------------------------------------------------------------------


def test_the_profiler_says_when_devices_ran(engine, monkeypatch, tmp_path):
    monkeypatch.setattr(_simulated, "CHANCE", 0.0)
    with engine.profile() as profile:
        x = nd.array(np.ones(50), ctx=ONE)
        y = nd.tanh(x + 1)
        y.asnumpy()
        engine.push(lambda a: 1 / 0, updates=[x], name="careless")
        with pytest.raises(ExceptionGroup):
            engine.wait_for_all()
    ran = {event.name: event for event in profile.events}
    streams = {name: [stream for stream, _, _ in event.there] for name, event in ran.items()}
    assert streams["copy to the device"] == ["simulated(0)-copy-in"]
    assert streams["tanh"] == streams["add"] == ["simulated(0)"]
    assert streams["copy to the host"] == ["simulated(0)-copy-out"]
    assert streams["careless"] == []
    ((_, begin, end),), ((_, later, last),) = ran["add"].there, ran["tanh"].there
    assert ran["add"].start <= begin <= end <= later <= last, "one after the other, and not when they were enqueued"
    assert last <= ran["copy to the host"].end
    assert "device ms" in profile.table()
    profile.save(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    rows = {t["args"]["name"]: t["tid"] for t in trace if t["name"] == "thread_name"}
    assert [t["name"] for t in trace if t["ph"] == "X" and t["tid"] == rows["simulated(0)"]] == ["add", "tanh"]


def test_a_profile_of_a_lost_device(engine):
    with engine.profile() as profile:
        x = nd.ones((3,), ctx=ONE)
        x._chunk.buffer.variable.writer.wait()
        accelerator(ONE).driver.fail = _simulated.Fault("an illegal address")
        with pytest.raises(DeviceError):
            x.asnumpy()
        accelerator(ONE).driver.fail = _simulated.Fault("an illegal address")
        assert [event.there for event in profile.events if event.name == "ones"] == [()]
    assert "device ms" not in profile.table()


# ---- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["record", "wait", "passed", "empty"])
def test_a_finalizer_waits_while_a_mark_is_made(where, monkeypatch):
    """Whatever the device is asked in between, another thread brings its values to the host."""
    monkeypatch.setattr(_simulated, "CHANCE", 0.0)
    x, away = nd.ones((3,), ctx=ONE), nd.ones((3,), ctx=TWO)
    nd.waitall()
    driver, finished = accelerator(ONE).driver, []
    asked = getattr(driver, where)

    def interrupted(*args):
        setattr(driver, where, asked)
        other = threading.Thread(target=lambda: finished.append(x.asnumpy().tolist()), daemon=True)
        other.start()
        other.join(20)
        finished.append(other.is_alive())
        return asked(*args)

    monkeypatch.setattr(driver, where, interrupted)
    y = (away.copyto(ONE) + x) * 2
    assert y.asnumpy().tolist() == [4, 4, 4]
    assert finished == [[1, 1, 1], False]


def test_two_threads_in_scopes_of_two_devices_the_other_way_round():
    met = threading.Barrier(2, timeout=20)

    def nested(first, second):
        with accelerator(first).driver.on(accelerator(first).compute.native):
            met.wait()
            with accelerator(second).driver.on(accelerator(second).compute.native):
                pass

    threads = [threading.Thread(target=nested, args=order, daemon=True) for order in ((ONE, TWO), (TWO, ONE))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_threads_on_one_stream():
    """Engines of their own, one array that all read."""
    shared, found = nd.array(np.arange(50.0), ctx=ONE), {}
    shared.wait_to_read()

    def work(number):
        with Engine(workers=2) as own, own.use():
            found[number] = [(nd.array([1.0 * i], ctx=ONE) * number).asnumpy()[0] for i in range(60)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [1.0 * i * n for i in range(60)] for n in range(4)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("forks", [True, False])
def test_a_child_forked_while_a_kernel_runs(forks, monkeypatch):
    inside, go = threading.Event(), threading.Event()

    @vd.operator
    def slow(xp, x, *, out):
        inside.set()
        go.wait(20)
        out[...] = x

    monkeypatch.setattr(type(accelerator(ONE).driver), "forks", forks)
    y = slow(nd.ones((2,), ctx=ONE))
    assert inside.wait(20)
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a hang in the child ends it
        try:
            right = (nd.ones((2,), ctx=ONE) + 1).asnumpy().tolist() == [2, 2] and forks
        except DeviceError as error:
            right = not forks and "forked" in str(error)
        os._exit(0 if right else 1)
    go.set()
    assert os.waitpid(pid, 0)[1] == 0
    assert y.asnumpy().tolist() == [1, 1]


# ---- each check fires ------------------------------------------------------------------------------------------------


def scoped(function, context=ONE, stream="compute"):
    """Run it as an operation's kernel would be."""
    device = accelerator(context)
    with device.driver.on(getattr(device, stream).native):
        return function(device.driver)


def test_memory_of_another_device_is_refused():
    other = scoped(lambda driver: driver.xp.ones(3), TWO)
    with pytest.raises(_simulated.Fault, match="memory of simulated\\(1\\)"):
        scoped(lambda driver: driver.xp.exp(other))
    with pytest.raises(TypeError, match="host's memory"):
        scoped(lambda driver: driver.xp.ones(3) + np.ones(3))
    with pytest.raises(_simulated.Fault, match="outside of its operations"):
        other + 1


def test_a_scope_belongs_to_its_thread():
    device = accelerator(ONE)
    scope = device.driver.on(device.driver.stream())
    entering = threading.Thread(target=scope.__enter__)
    entering.start()
    entering.join()
    with pytest.raises(_simulated.Fault, match="by another"):
        scope.__exit__(None, None, None)


def test_memory_of_the_host_must_stay_until_it_was_copied(monkeypatch):
    monkeypatch.setattr(_simulated, "CHANCE", 0.0)
    host = np.ones(4)

    def enqueue(driver):
        raw = driver.empty((4,), host.dtype)
        driver.copy_in(host, raw)
        return raw

    raw = scoped(enqueue)
    host[0] = 7
    with pytest.raises(_simulated.Fault, match="host has changed"):
        scoped(lambda driver: driver.drain())
    del raw


def test_memory_of_the_host_has_no_value_until_it_was_copied_to(monkeypatch):
    monkeypatch.setattr(_simulated, "CHANCE", 0.0)
    host = np.zeros(4)
    scoped(lambda driver: driver.copy_out(driver.xp.ones(4), host))
    assert np.isnan(host).all()
    scoped(lambda driver: driver.drain())
    assert host.tolist() == [1.0] * 4


def faults(seed):
    """Does the program on two devices fail under this seed?"""
    _simulated.world.reset(seed)
    try:
        program(ONE, TWO)
    except DeviceError as error:
        assert "version" in str(error) or "changed" in str(error)
        return True
    finally:
        with contextlib.suppress(vd.Error, ExceptionGroup):
            nd.waitall()
        for context in (ONE, TWO):
            accelerator(context).lost = None
        _simulated.world.reset(seed)
        gc.collect()
    return False


def no_waits(self, stream, mark):
    """The mutant: a stream does not wait for another's event."""


def free_at_once(monkeypatch):
    """The mutant: what a stream borrows is not kept until it has passed."""
    original = Accelerator._mark

    def forgetful(self, stream, read, made, keeps):
        mark = original(self, stream, read, made, ())
        stream.pending[-1].borrowed.clear()
        return mark

    monkeypatch.setattr(Accelerator, "_mark", forgetful)


def no_readers(monkeypatch):
    """The mutant: a buffer does not learn who reads it."""
    original = Accelerator._mark

    def forgetful(self, stream, read, made, keeps):
        mark: Mark = original(self, stream, read, made, keeps)
        for buffer in read:
            buffer.remote.read.clear()
        return mark

    monkeypatch.setattr(Accelerator, "_mark", forgetful)


@pytest.mark.parametrize(
    "mutate", [lambda m: m.setattr(Accelerator, "_await", no_waits), free_at_once, no_readers],
    ids=["no event is waited for", "memory is free at once", "readers are forgotten"],
)  # fmt: skip
def test_a_broken_rule_is_found(mutate, monkeypatch):
    mutate(monkeypatch)
    assert any(faults(seed) for seed in range(20))


def test_the_unbroken_rules_are_not():
    assert not any(faults(seed) for seed in range(20))
