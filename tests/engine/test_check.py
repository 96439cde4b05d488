"""Functions that touch what they did not declare are found; those that keep to it are left in peace."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from vardag import nd
from vardag.engine import AccessError, Engine, check, current
from vardag.ndarray.sentinel import left, sentinel

from .lending import Lent

pytestmark = pytest.mark.host("the checks copy and compare memory of the host")


@pytest.fixture(params=["NaiveEngine", "ThreadedEnginePerDevice"], autouse=True)
def own_engine(request):
    with Engine(request.param, workers=2) as engine:
        yield engine


@pytest.fixture
def xyz():
    """Three arrays that operations have made, and one that is young."""
    x, y, z = (nd.zeros((3,)) for _ in range(3))
    for i, a in enumerate((x, y, z)):
        a[:] = i + 1
    return x, y, z


def pushed(fn, **operands):
    return current().push(fn, **operands)


def found(op, *words):
    """It failed for one reason, and its report has the operation, the array and the line."""
    with pytest.raises(AccessError) as info:
        op.wait()
    text = str(info.value)
    for word in (*words, f"[{op.name}]", f"pushed at {__file__}:"):
        assert word in text, text
    return info.value


# ---- six kinds of wrong declaration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("young", [False, True])
@pytest.mark.parametrize(
    "use",
    [
        lambda a: a.asnumpy(),
        lambda a: a + 1,
        lambda a: a[0],
        lambda a: a.sum(),
        lambda a: float(a[0]),
        np.asarray,
        np.from_dlpack,
        str,
        lambda a: a.wait_to_read(),
        lambda a: a.copy(),
    ],
    ids=["asnumpy", "add", "index", "sum", "float", "asarray", "dlpack", "str", "wait", "copy"],
)
def test_an_array_that_is_not_declared_is_not_read(xyz, young, use):
    x, y, z = xyz
    z = nd.array([1.0, 2, 3]) if young else z

    def reads(a, b):
        use(z)
        b[:] = a

    with check() as c:
        found(pushed(reads, reads=[x], writes=[y]), "float32(3,)", "not declared")
    assert len(c.found) == 1


@pytest.mark.parametrize("young", [False, True])
def test_an_array_that_is_not_declared_is_not_written(xyz, young):
    x, _, z = xyz
    z = nd.array([3.0, 3, 3]) if young else z

    def writes(a):
        z[:] = 7

    def adds(a):
        nonlocal z
        z += 1

    with check():
        for fn in (writes, adds):
            found(pushed(fn, reads=[x]), "float32(3,)", "not declared")
    assert z.asnumpy().tolist() == [3, 3, 3]


def test_what_is_only_read_is_not_written(xyz):
    x, y, _ = xyz

    def writes(a, b):
        a += 1
        b[:] = a

    def forces(a, b):
        np.lib.stride_tricks.as_strided(a)
        a.base[...] = 5
        b[:] = a

    with check():
        for fn in (writes, forces):
            found(pushed(fn, reads=[x], writes=[y]), "reads[0] float32(3,)", "declared as read")
            y[:] = 0
    assert x.asnumpy().tolist() == [1, 1, 1]


def test_nor_past_the_engine(xyz):
    x, _, _ = xyz
    alias = np.from_dlpack(Lent(x))

    def writes(a):
        alias[0] = 9

    with check():
        found(pushed(writes, reads=[x]), "reads[0]", "declared as read")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int64"])
def test_what_is_declared_as_write_is_wholly_written(dtype):
    def part(b):
        b[1:] = 1

    def nothing(b):
        b.sum()

    with check():
        for fn in (part, nothing):
            y = nd.zeros((4,), dtype=dtype)
            y[:] = 1
            found(pushed(fn, writes=[y]), f"writes[0] {dtype}(4,)", "not all of it")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_update_is_no_write(dtype):
    x, y = nd.ones((4,), dtype=dtype), nd.ones((4,), dtype=dtype)

    def adds(a, b):
        b *= 2
        b += a.astype("float64")

    with check():
        found(pushed(adds, reads=[x], writes=[y]), f"writes[0] {dtype}(4,)", "what was not is read")


def values(n, dtype):
    return np.arange(1, n + 1).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64"])
@pytest.mark.parametrize(
    ("fn", "least"),
    [
        (lambda b: np.add(b, 1, b), 1),
        (lambda b: np.subtract(b, values(b.size, b.dtype) % 4, b), 1),
        (lambda b: np.bitwise_xor(b, 1, b), 1),
        (lambda b: np.multiply(b, 3, b), 60),
        (lambda b: np.multiply(b, 4, b), 60),
        (lambda b: np.floor_divide(b, 2, b), 60),
        (lambda b: np.negative(b, b), 60),
        (lambda b: np.bitwise_and(b, 1, b), 60),
        (lambda b: np.minimum(b, 100, out=b), 60),
        (lambda b: np.remainder(b, 10, b), 300),
        (lambda b: np.multiply(b, values(b.size, b.dtype), b), 300),
    ],
    ids=["add", "subtract", "xor", "times", "times-4", "halve", "negative", "and", "minimum", "remainder", "products"],
)
def test_an_update_of_integers_is_no_write(fn, least, dtype):
    """Nothing marks an integer, but it goes with what it was computed from."""
    n = least if dtype.startswith("int") and dtype != "int8" else max(least, 60)
    y = nd.ones((n,), dtype=dtype)
    with check():
        found(pushed(fn, writes=[y], name="f"), f"writes[0] {dtype}({n},)", "what was not is read")


def test_the_variable_of_another_array_is_no_leave(xyz):
    x, y, z = xyz

    def uses():
        return y.asnumpy()

    with check():
        found(pushed(uses, reads=[x.var], updates=[z.var]), "not declared")


@pytest.mark.parametrize("mode", ["reads", "writes", "updates"])
def test_memory_that_is_kept_is_not_written_later(xyz, mode):
    x, _, _ = xyz
    kept = []

    def keeps(a):
        kept.append(a)
        if mode != "reads":
            a[:] = 2

    with pytest.raises(AccessError, match=rf"\[keeps\] {mode}\[0\] float32.*after the function had ended"), check():
        pushed(keeps, **{mode: [x]}).wait()
        memory = kept[0] if mode != "reads" else kept[0].base
        assert np.isnan(memory).all()  # whoever reads there gets no value by chance
        memory[0] = 5
    assert x.asnumpy().tolist() == [2.0 if mode != "reads" else 1.0] * 3


def test_a_thread_that_writes_later_is_found_by_the_next_function(xyz, caplog):
    x, y, _ = xyz
    go, gone = threading.Event(), threading.Event()

    def late(memory):
        go.wait(30)
        memory[:] = 5
        gone.set()

    def starts(a):
        a[:] = 1
        threading.Thread(target=late, args=(a,)).start()

    with check() as c:
        pushed(starts, writes=[x]).wait()
        go.set()
        gone.wait(30)
        pushed(lambda b: None, reads=[y]).wait()
        assert [str(error).partition("]")[0] for error in c.found] == ["[starts"]
    assert "had ended" in caplog.text


# ---- no false alarms -------------------------------------------------------------------------------------------------


def test_right_functions_are_left_in_peace(xyz):
    x, y, z = xyz
    variable = current().new_variable()
    seen = []

    def all_of_it(a, b, c):
        b[:] = a + 1
        c *= 2
        c += b

    def makes_its_own():
        made = nd.ones((3,)) * 2
        made[1:] += 1
        seen.append((made[1] + nd.array([1.0])).asnumpy().tolist())

    def has_nans(b):
        b[:] = [np.nan, -np.nan, np.inf]

    def looks():
        seen.append((x.shape, str(x.dtype), x.ndim, x.version >= 0))

    def nested():
        current().push(lambda a: seen.append(float(a[0])), reads=[x]).wait()

    with check() as c:
        pushed(all_of_it, reads=[x], writes=[y], updates=[z]).wait()
        for fn in (makes_its_own, looks, nested):
            pushed(fn, updates=[variable]).wait()
        pushed(lambda: seen.append(x.asnumpy().sum()), reads=[x.var]).wait()
        pushed(has_nans, writes=[y]).wait()
        pushed(lambda b: None, updates=[z]).wait()
        pushed(lambda b: b.fill(4), writes=[z[1:]]).wait()
        current().push_sync(lambda run_ctx: seen.append(x.asnumpy().sum()), const_vars=[x.var]).wait()
    assert not c.found
    assert z.asnumpy().tolist() == [8, 4, 4]
    assert seen == [[4.0], ((3,), seen[1][1], 1, True), 1.0, 3.0, 3.0]


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "complex64"]
)
def test_random_bytes_are_no_sentinel(dtype):
    rng = np.random.default_rng(0)
    for n in [1, 2, 5, 100, 10_000]:
        memory = np.empty(n, dtype)
        sentinel(memory)
        drawn = memory.copy()
        if np.dtype(dtype).itemsize > 2 or n > 4 or dtype == "bool":
            assert left(memory, drawn)
        memory[:] = rng.integers(0, 2, n) if dtype == "bool" else rng.integers(-1000, 1000, n).astype(dtype)
        assert not left(memory, drawn)
        memory[:] = rng.integers(0, 256, memory.nbytes, np.uint8).view(dtype)[:n] if dtype != "bool" else True
        assert not left(memory, drawn) or memory.dtype.kind in "fc"


def test_what_is_drawn_is_seldom_met_by_chance():
    """The bound is met: of so many functions that read nothing, none is blamed."""
    rng = np.random.default_rng(1)
    for dtype in ("uint8", "int16", "int32", "int64"):
        for n in (1, 3, 17, 60, 300):
            for high in (1, 2, 100):
                memory = np.empty(n, dtype)
                for _ in range(40):
                    sentinel(memory)
                    assert not left(rng.integers(0, high, n).astype(dtype), memory)
                    assert not left(np.arange(n).astype(dtype), memory)


def test_memory_lent_to_others_is_used_by_either_way(xyz):
    x, _, _ = xyz
    alias = np.from_dlpack(Lent(x))

    def by_the_alias(a):
        alias[:] = 5

    def by_the_argument(a):
        a[:] = 6

    with check() as c:
        for fn, value in ((by_the_alias, 5), (by_the_argument, 6)):
            for mode in ("writes", "updates"):
                pushed(fn, **{mode: [x]}).wait()
                assert x.asnumpy().tolist() == [value] * 3
    assert not c.found


@pytest.mark.parametrize(
    ("fn", "operands", "value"),
    [
        (lambda a, b: np.add(b, 1, b), {"reads": [0], "writes": [0]}, [2, 3, 4]),
        (lambda a, b: np.add(a, 1, b), {"reads": [0], "writes": [0]}, [2, 3, 4]),
        (lambda a, b: np.add(b, 1, b), {"reads": [0], "updates": [0]}, [2, 3, 4]),
        (lambda a, b: (np.add(a, 1, a), np.add(b, 1, b)), {"updates": [slice(0, 2), slice(1, 3)]}, [2, 4, 4]),
        (lambda a, b: np.copyto(b, a), {"reads": [slice(0, 1)], "writes": [slice(1, 3)]}, [1, 1, 1]),
    ],
    ids=["both", "both-by-the-other", "read-and-update", "two-updates", "beside"],
)
def test_memory_that_is_named_twice_is_one(fn, operands, value):
    """Else each had a copy, and one of them were lost."""
    x = nd.zeros((3,), dtype="int64")
    x[:] = np.arange(1, 4)

    def names(which):
        return x if which == 0 else x[which]

    given = {mode: [names(w) for w in which] for mode, which in operands.items()}
    with check() as c:
        pushed(fn, **given).wait()
    assert x.asnumpy().tolist() == value
    assert not c.found


def test_what_a_function_raises_is_what_it_raises(xyz):
    x, _, _ = xyz

    def fails(a):
        raise ValueError("mine")

    with check() as c, pytest.raises(ValueError, match="mine"):
        pushed(fails, reads=[x]).wait()
    assert not c.found


@pytest.mark.skipif(bool(os.environ.get("VARDAG_CHECK")), reason="everything is watched")
def test_afterwards_nothing_is_watched(xyz):
    x, _, z = xyz
    with check(), check():
        pass
    assert not {"__getattribute__", "__setattr__", "__vardag_lent__"} & {
        name for c in type(x).__mro__[:-1] for name in vars(c)
    }
    pushed(lambda a: z.asnumpy(), reads=[x]).wait()


PROGRAM = """
from vardag import engine, nd
x, y = nd.ones((2,)), nd.ones((2,))
op = engine.current().push(lambda a: y.asnumpy(), reads=[x], name="f")
try:
    op.wait()
except engine.AccessError as error:
    print(error)
"""


def test_the_environment_switches_it_on():
    root = Path(__file__).resolve().parents[3]
    for value, wanted in (("1", "[f] array float32(2,): used"), ("0", ""), ("", "")):
        env = {**os.environ, "VARDAG_CHECK": value, "PYTHONPATH": str(root)}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(wanted)
        assert bool(done.stdout) == bool(wanted)


def test_reports_survive_other_handles():
    """What follows the protocol and is no array of the library is passed on as it is."""

    class Other:
        def __init__(self, variable):
            self.variable = variable

        def __vardag_resolve__(self, mode, keep):
            return self.variable, mode, lambda: [1], [], None

    out = []
    with check() as c:
        pushed(out.append, updates=[Other(current().new_variable())]).wait()
    assert (out, c.found) == ([[1]], [])
