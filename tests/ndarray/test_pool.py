"""The memory pool: memory comes back when nobody can read it, is never handed out twice, and stays within its bound."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import ArgumentError, Engine, Kind, Operation
from vardag.ndarray import pool as pool_module
from vardag.ndarray.device import HOST
from vardag.ndarray.pool import FEW, Pool, memory_pool, pooled

F32 = np.dtype(np.float32)
N = 2 * FEW


@pytest.fixture
def pool() -> Pool:
    return Pool(1 << 30)


@pytest.fixture
def poison() -> Iterator[None]:
    memory_pool.poison = True
    yield
    memory_pool.poison = False


def in_use(p: Pool) -> int:
    gc.collect()
    s = p.statistics()
    return s.bytes - s.idle_bytes


# ---- one after the other --------------------------------------------------------------------------------------------


def test_memory_comes_back_and_the_last_freed_is_first(pool: Pool) -> None:
    a, b = pool.take((N,), F32), pool.take((N,), F32)
    first, second = a.ctypes.data, b.ctypes.data
    assert first != second
    del a
    del b
    c = pool.take((N,), F32)
    assert c.ctypes.data == second
    d = pool.take((2, N // 2), F32)
    assert d.ctypes.data == first
    s = pool.statistics()
    assert (s.idle, s.idle_bytes, s.requests, s.fresh) == (0, 0, 4, 2)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[5:6],
        lambda a: a.reshape(2, -1).T[3:, ::-1][1:],
        memoryview,
        lambda a: a.view(np.matrix),
        lambda a: a.view(np.matrix).view(np.ndarray)[2:],
        lambda a: a.base,
        lambda a: a[3:].base,
        lambda a: np.frombuffer(a, np.uint8)[7:],
        lambda a: np.lib.stride_tricks.as_strided(a, (4,), (8,)),
        lambda a: np.asarray(memoryview(a)[3:]),
        iter,
        lambda a: a.flat,
        lambda a: a.ctypes,
        lambda a: a.__array_interface__ and a.data,
        lambda a: np.ndarray((3,), np.int32, a, 16),
        lambda a: [a[0:1], a[1:2]],
    ],
)
def test_whoever_can_read_it_keeps_it(pool: Pool, view: Callable[[Any], Any]) -> None:
    a = pool.take((N,), F32)
    v = view(a)
    del a
    assert pool.statistics().idle == 0
    b = pool.take((N,), F32)
    assert in_use(pool) >= 2 * 4 * N
    del b, v
    gc.collect()
    assert pool.statistics().idle == 2


def test_a_value_in_a_cycle_comes_back_when_that_is_collected(pool: Pool) -> None:
    cycle: list[Any] = [pool.take((N,), F32)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert pool.statistics().idle == 1


def test_sizes_and_alignment(pool: Pool) -> None:
    for n in (1, 100, FEW - 1, FEW, FEW + 1, 3 * FEW, 10**6, 2**20, 2**20 + 1):
        for dtype in (np.uint8, np.float16, np.float32, np.float64):
            a = pool.take((n,), np.dtype(dtype))
            assert a.shape == (n,) and a.dtype == dtype and a.flags.c_contiguous and a.flags.writeable
            assert (a.nbytes > FEW) == pooled(a)
            if pooled(a):
                assert a.ctypes.data % 64 == 0
                room = pool.statistics().bytes
                assert room <= 1.3 * a.nbytes
            a[...] = 1
            del a
            pool.release()
    assert pool.take((0, 5), F32).shape == (0, 5)
    assert pool.take((), F32).shape == ()
    with pytest.raises((MemoryError, ValueError)):
        pool.take((2**62,), F32)


# ---- the bound ------------------------------------------------------------------------------------------------------


def test_the_bound_evicts_what_was_used_longest_ago() -> None:
    p = Pool(10 * 4 * N)
    for factor in (1, 2, 3):
        p.take((factor * N,), F32)
    assert p.statistics().idle == 3
    p.take((5 * N,), F32)
    s = p.statistics()
    assert s.bytes <= s.limit and s.idle == 2, "the sizes 3 and 5 are left"
    del s
    everything = [p.take((3 * N,), F32) for _ in range(8)]
    assert p.statistics().bytes <= p.limit
    assert not all(pooled(a) for a in everything), "what is over the bound is NumPy's own"
    del everything
    assert p.statistics().idle_bytes <= p.limit
    p.limit = 0
    assert p.statistics().bytes == 0
    assert not pooled(p.take((N,), F32))
    with pytest.raises(ArgumentError, match="memory_pool"):
        p.limit = -1


def test_old_memory_is_given_back(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "OLD", 1000)
    pool.take((100 * N,), F32)
    large = pool.statistics().bytes
    for _ in range(1000 + 256 * 256):
        pool.take((N,), F32)
    assert pool.statistics().bytes < large / 10


def test_release_and_what_the_engine_asks_when_memory_runs_out() -> None:
    memory_pool.take((N,), F32)
    assert memory_pool.statistics().idle
    with Engine(workers=1, inline=False) as e:
        tries: list[int] = []

        def short() -> None:
            tries.append(memory_pool.statistics().idle)
            if len(tries) == 1:
                raise MemoryError

        op = Operation(Kind.KERNEL, short, "short")
        e.admit(lambda: (op, (), (), (), (), [], False))
        op.wait()
    assert tries[0] and not tries[1]
    memory_pool.take((N,), F32)
    assert memory_pool.release() >= 4 * N
    assert memory_pool.statistics().idle_bytes == 0


def test_a_failed_allocation_releases_and_tries_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.take((N,), F32)
    real, failed = pool_module._fresh_slab, []

    def short(*args: Any) -> Any:
        if pool.statistics().idle:
            failed.append(1)
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(pool_module, "_fresh_slab", short)
    a = pool.take((3 * N,), F32)
    assert pooled(a) and failed


# ---- threads, interrupts, finalizers, forks -------------------------------------------------------------------------


def overlapping(arrays: list[Any]) -> bool:
    spans = sorted((a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays)
    return any(end > start for (_, end), (start, _) in itertools.pairwise(spans))


def test_many_threads_share_nothing(pool: Pool) -> None:
    wrong: list[Any] = []

    def work(me: int) -> None:
        r = Random(me)
        kept: list[Any] = []
        for i in range(3000):
            a = pool.take((r.choice((N, N + 100, 3 * N)),), F32)
            a[:8] = a[-8:] = me * 10_000 + i
            kept.append((a[2:5] if i % 3 else a, a[-8:], me * 10_000 + i))
            del a
            if len(kept) > 6:
                part, end, value = kept.pop(r.randrange(len(kept)))
                if part[0] != value or end[3] != value:
                    wrong.append((me, i))
            if i % 500 == 0:
                pool.release()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    switch = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(switch)
    assert not wrong
    assert in_use(pool) == 0


class Struck(BaseException):
    pass


def at_opcode(k: int, act: Callable[[], None], function: Callable[[], Any]) -> tuple[Any, bool]:
    """Call `function`, and `act` before the k-th instruction that the pool's own code runs in it."""
    passed = 0

    def local(frame: Any, event: str, _: Any) -> Any:
        nonlocal passed
        if event == "opcode":
            passed += 1
            if passed == k:
                sys.settrace(None)
                frame.f_trace = None
                act()
        return local

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename in (pool_module.__file__, Pool.take.__code__.co_filename):
            frame.f_trace_opcodes = True
            return local
        return None

    before = sys.gettrace()
    result = None
    sys.settrace(trace)
    try:
        result = function()
    except Struck:
        pass
    finally:
        sys.settrace(before)
    return result, passed >= k


def strike() -> None:
    raise Struck


@pytest.mark.parametrize("act", ["interrupt", "finalizer"])
@pytest.mark.parametrize("case", ["fresh", "again", "over the bound", "release"])
def test_anything_between_any_two_instructions(case: str, act: str) -> None:
    """An exception, or code that takes, drops and releases: no memory is handed out twice, none is lost."""
    kept: list[Any] = []
    size = 4 * N + 64
    gc.collect()
    gc.freeze()  # the many collections that follow need not look at it
    for k in itertools.count(1, 5 if case == "release" else 1):
        p = Pool(5 * size if case == "over the bound" else 1 << 30)
        p._shelves = p._shelves[:72]  # so that a look at all of them is short
        others = [p.take((N,), F32)]
        if case != "fresh":
            p.take((N,), F32)
            p.take((2 * N,), F32)

        def inside(p: Pool = p) -> None:
            kept.append(p.take((N,), F32))
            p.take((N,), F32)
            p.release()
            kept.append(p.take((N,), F32))

        act_now = strike if act == "interrupt" else inside
        target = (lambda p=p: (p.release(), None)[1]) if case == "release" else (lambda p=p: p.take((N,), F32))
        if case == "over the bound":
            target = lambda p=p: p.take((3 * N,), F32)  # noqa: E731
        result, struck = at_opcode(k, act_now, target)
        alive = [a for a in (*others, *kept, result, *(p.take((N,), F32) for _ in range(3))) if a is not None]
        assert not overlapping(alive), k
        assert act == "interrupt" or case == "release" or result is not None
        s = p.statistics()
        assert s.bytes <= s.limit + 4 * size
        mine = sum(pooled(a) for a in alive)
        del alive, others, result
        kept.clear()
        assert in_use(p) == 0, f"instruction {k}: memory is lost"
        assert mine >= 2
        assert all(p.take((N,), F32) is not None for _ in range(3))
        if not struck:
            break
    gc.unfreeze()
    assert k > 20


def test_a_finalizer_of_the_users_that_takes_memory(pool: Pool) -> None:
    class Loud:
        def __init__(self) -> None:
            self.raw = pool.take((N,), F32)
            self.me = self

        def __del__(self) -> None:
            kept.append(pool.take((N,), F32))

    kept: list[Any] = []
    old = gc.get_threshold()
    gc.set_threshold(3)
    try:
        for i in range(300):
            Loud()
            a = pool.take((N,), F32)
            a[0] = i
            assert not any(b is a or np.shares_memory(a, b) for b in kept[-5:])
    finally:
        gc.set_threshold(*old)
    del a
    gc.collect()
    kept.clear()
    assert in_use(pool) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_the_child_of_a_fork_has_a_pool() -> None:
    code = """
import os, threading, numpy as np, warnings
warnings.simplefilter("ignore")
from vardag.ndarray.pool import memory_pool as p
f = np.dtype("f4")
kept = p.take((50000,), f); kept[:] = 3
p.take((50000,), f)
stop = []
def work():
    while not stop: p.take((20000,), f)
t = threading.Thread(target=work); t.start()
for _ in range(20):
    pid = os.fork()
    if not pid:
        a = p.take((50000,), f); a[:] = 1
        p.limit = 10**6
        ok = kept[0] == 3 and p.statistics().bytes > 0 and p.release() >= 0
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop.append(1); t.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# ---- in the library -------------------------------------------------------------------------------------------------


def test_large_arrays_use_it_again(engine_kind: Engine) -> None:
    a, b = nd.ones((N,)), nd.ones((N,))
    for _ in range(5):
        (a + b).wait_to_read()
    nd.waitall()
    fresh = memory_pool.statistics().fresh
    for _ in range(20):
        c = a + b
    assert c.asnumpy()[0] == 2
    nd.waitall()
    assert memory_pool.statistics().fresh - fresh <= 20


def test_what_asnumpy_gives_is_the_users(engine_kind: Engine) -> None:
    x = nd.array(np.arange(N, dtype=np.float32))
    a = x.asnumpy()
    assert a.flags.writeable and a.flags.c_contiguous
    a[:] = -1
    part = a[5:7]
    del a
    for i in range(20):
        y = x * i
        y.wait_to_read()
        assert part.tolist() == [-1, -1] and y.asnumpy()[-1] == (N - 1) * i
    alive = weakref.ref(part.base)
    del part
    assert alive() is None


def program(seed: int) -> list[bytes]:
    """Large and small arrays; every kind of memory that the library takes."""
    r = Random(seed)
    shape = (96, 96)
    rng = np.random.default_rng(seed)
    xs = [nd.array(rng.normal(0, 1, shape).astype(np.float32)) for _ in range(3)]
    for x in xs:
        x.attach_grad()
    with autograd.record():
        ys = list(xs)
        for _ in range(12):
            a, b = r.choice(ys), r.choice(ys)
            ys.append(
                r.choice(
                    (
                        lambda a=a, b=b: nd.tanh(a + b),
                        lambda a=a, b=b: nd.dot(a, b) * 0.01,
                        lambda a=a, b=b: nd.softmax(a),
                        lambda a=a, b=b: nd.concat(a, b, dim=0)[10:106],
                        lambda a=a, b=b: nd.broadcast_mul(a, b.mean(axis=0, keepdims=True)),
                        lambda a=a, b=b: nd.where(a > b, a, b),
                        lambda a=a, b=b: nd.LayerNorm(a, nd.ones((96,)), nd.zeros((96,))),
                        lambda a=a, b=b: nd.Pooling(
                            a.reshape((1, 1, 96, 96)), kernel=(3, 3), pad=(1, 1), pool_type="avg"
                        ).reshape((96, 96)),
                        lambda a=a, b=b: nd.Convolution(
                            a.reshape((1, 1, 96, 96)),
                            nd.ones((1, 1, 3, 3)) * 0.1,
                            no_bias=True,
                            kernel=(3, 3),
                            pad=(1, 1),
                            num_filter=1,
                        ).reshape((96, 96)),
                        lambda a=a, b=b: nd.sort(a, axis=1) + nd.cumsum(b, axis=0) * 0.01,
                        lambda a=a, b=b: a.T.astype("float16").astype("float32"),
                    )
                )()
            )
        loss = sum((y.sum() for y in ys), nd.zeros((1,)))
    loss.backward()
    for x in xs:
        m = nd.zeros(shape)
        nd.sgd_mom_update(x, x.grad, m, lr=0.01, momentum=0.9, wd=0.1, clip_gradient=0.5, out=x)
    return [a.asnumpy().tobytes() for a in (*xs, *(x.grad for x in xs), *ys)]


@pytest.mark.parametrize("seed", range(4))
def test_no_kernel_reads_what_it_has_not_written(seed: int, poison: None) -> None:
    """A program under poison gives the bytes that it gives without the pool: none relied on zeros."""
    limit = memory_pool.limit
    found = []
    try:
        for n, poisoned in ((limit, True), (0, False)):
            memory_pool.limit, memory_pool.poison = n, poisoned
            with Engine(workers=2):
                found.append(program(seed))
    finally:
        memory_pool.limit = limit
    assert found[0] == found[1]


def test_poison_is_everywhere(poison: None) -> None:
    for n in (1, 10, FEW, 10 * FEW):
        a = HOST.empty((n,), F32)
        assert np.isnan(a).all()
        a[:] = 0
        del a
        assert np.isnan(HOST.empty((n,), F32)).all()


def test_the_environment(tmp_path: Any) -> None:
    code = "from vardag import nd; p = nd.memory_pool; print(p.limit, p.poison)"
    for variables, expected in (
        ({"VARDAG_POOL_BYTES": "1000", "VARDAG_POOL_POISON": "1"}, "1000 True"),
        ({"VARDAG_POOL_BYTES": "0"}, "0 False"),
    ):
        env = {**os.environ, **variables}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env, check=True
        )
        assert done.stdout.strip() == expected
