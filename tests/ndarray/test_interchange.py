"""Memory lent to other libraries: DLPack."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import ArgumentError, ArgumentTypeError
from vardag.ndarray import reading

pytestmark = pytest.mark.host("how its memory is lent and taken")


def test_numpy_reads_without_a_copy_and_may_not_write():
    x = nd.arange(5000) * 2
    one, two = np.from_dlpack(x, copy=False), np.from_dlpack(x, copy=False)
    assert np.shares_memory(one, two)
    assert not one.flags.writeable


def test_who_does_not_ask_for_the_memory_gets_a_copy():
    """For some consumers write whatever they are given."""
    x = nd.arange(5000) * 2
    one, two = np.from_dlpack(x), np.from_dlpack(x)
    assert not np.shares_memory(one, two)
    assert not np.shares_memory(one, np.from_dlpack(x, copy=False))


@pytest.mark.parametrize("size", [3, 5000, 100_000])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("copy", [None, False])
def test_later_writes_do_not_show(size, whole, copy):
    x = nd.ones((size,))
    lent = np.from_dlpack(x, copy=copy)
    if whole:
        x[:] = 7
    else:
        x[1:2] = 7
    x += 1
    assert (lent == 1).all()
    assert x.asnumpy()[1] == 8


def test_the_memory_outlives_its_array():
    x = nd.ones((50_000,)) * 3
    lent = np.from_dlpack(x, copy=False)
    del x
    gc.collect()
    others = [nd.zeros((50_000,)) + i for i in range(4)]
    nd.waitall()
    assert (lent == 3).all()
    del others


def test_older_consumers_and_copies_get_memory_of_their_own():
    x = nd.ones((4,))
    assert "dltensor_versioned" not in repr(x.__dlpack__())
    assert "dltensor_versioned" in repr(x.__dlpack__(max_version=(1, 0)))
    mine = np.from_dlpack(x, copy=True)
    mine[:] = 5
    assert (x.asnumpy() == 1).all()


def test_a_view():
    x = nd.arange(12).reshape((3, 4))
    assert np.array_equal(np.from_dlpack(x[1], copy=False), [4, 5, 6, 7])


def test_refusals():
    x = nd.ones((4,))
    assert x.__dlpack_device__() == (1, 0)
    with pytest.raises(BufferError, match="device"):
        x.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="copy"):
        x.__dlpack__(copy=False)
    with pytest.raises(ValueError, match="stream"):
        x.__dlpack__(stream=1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,) * 64, (4, 5), (70, 90)])
def test_round_trips_of_every_dtype_and_shape(shape, dtype):
    raw = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    x = nd.array(raw, dtype=dtype)
    views = [x] if not raw.size or len(shape) != 2 else [x, x[::2], x[:, ::-1], x[1:, 2:]]
    for y in views:
        expected = y.asnumpy()
        for there in (np.from_dlpack(y), np.asarray(y)):
            assert (there.shape, there.dtype, there.tobytes()) == (expected.shape, expected.dtype, expected.tobytes())
        back = nd.from_dlpack(y)
        assert (back.shape, back.dtype, back.asnumpy().tobytes()) == (y.shape, y.dtype, expected.tobytes())


# ---- NumPy's own protocol --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 3, 5000, 100_000])
@pytest.mark.parametrize("copy", [None, False])
def test_numpy_sees_the_value_of_the_call_and_cannot_write_it(size, copy):
    x = nd.ones(size) if size else nd.zeros((0,))
    seen = np.array(x, copy=copy)[...]
    x += 1
    x[:] = 5
    assert type(seen) is np.ndarray
    assert (seen == 1).all()
    assert not seen.flags.writeable
    del x
    gc.collect()
    others = [nd.zeros((size,)) + i for i in range(4)]
    nd.waitall()
    assert (seen == 1).all()
    del others


def test_numpy_sees_large_memory_itself_and_nobody_can_make_it_writable():
    x = (nd.arange(50_000) * 2).reshape((50, 1000))
    one, part = np.asarray(x), np.asarray(x[10:40:2, ::-1])
    assert np.shares_memory(one, part)
    assert (part == one[10:40:2, ::-1]).all()
    with pytest.raises(ValueError, match="WRITEABLE"):
        one.flags.writeable = True
    with pytest.raises(ValueError, match="read-only"):
        part[:] = 1


def test_copies_belong_to_the_caller():
    x = nd.ones(5000)
    for own in (np.array(x), np.asarray(x, "int64"), np.array(x, copy=True), np.asarray(nd.ones(3), "float64")):
        own[:] = 7
    assert (x.asnumpy() == 1).all()
    assert np.asarray(nd.ones(5000, ctx=nd.cpu()), "float32", copy=False).dtype == np.float32


def test_numpy_gets_a_copy_of_what_others_write():
    x = nd.ones(5000)
    other = theirs(x)
    seen = np.asarray(x)
    other[:] = 3
    assert (seen == 1).all()
    with pytest.raises(ArgumentError, match=r"\[__array__\] float32\(5000,\): others write its memory"):
        np.asarray(x, copy=False)


@pytest.mark.parametrize("read", [np.asarray, lambda x: np.from_dlpack(x, copy=False), lambda x: x.asnumpy()])
def test_memory_lent_for_writing_just_before_a_snapshot_is_held(monkeypatch, read):
    """Another thread pins the chunk when the snapshot has been made and not yet admitted."""
    x = nd.ones(5000) * 2
    real, others = reading.Lease, []

    def lease(*arguments):
        if not others:
            others.append(None)
            others[0] = theirs(x)
        return real(*arguments)

    monkeypatch.setattr(reading, "Lease", lease)
    seen = read(x)
    others[0][:] = 7
    assert (seen == 2).all()
    assert (x.asnumpy() == 7).all()


def test_what_a_function_only_reads_is_not_lent_for_writing():
    refused = []

    class Reads(autograd.Function):
        def forward(self, x):
            with pytest.raises(ArgumentError, match=r"\[to_dlpack_for_write\] .*read-only"):
                x.to_dlpack_for_write()
            refused.append(np.asarray(x).tolist())
            return x * 1

        def backward(self, dy):
            return dy

    x = nd.ones(3)
    x.attach_grad()
    with autograd.record():
        y = Reads()(x)
    y.backward()
    assert refused == [[1, 1, 1]]


# ---- memory that both sides write ------------------------------------------------------------------------------------


class Lender:
    """NumPy takes no bare capsules."""

    def __init__(self, capsule):
        self.capsule = capsule

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **_):
        return self.capsule


def theirs(x):
    """The memory of an array, lent for writing, as NumPy sees it."""
    return np.from_dlpack(Lender(x.to_dlpack_for_write(max_version=(1, 0))))


def settle(x):
    x.wait_to_write()
    return x


@pytest.mark.parametrize("size", [3, 5000, 100_000])
def test_both_sides_see_all_writes(size):
    x = nd.ones((size,))
    x += 1  # it has a chunk
    other = theirs(x)
    before = other.ctypes.data
    for step, write in enumerate([
        lambda: x.__setitem__(slice(None), 5), lambda: x.__iadd__(1), lambda: x.__setitem__(slice(1, 2), 9),
        lambda: nd.exp(x, out=x), lambda: x.__setitem__(slice(None), nd.zeros(size)),
        lambda: nd.elemwise_add(x, x, out=x), lambda: x.__setitem__(slice(None), x[::-1]),
    ]):  # fmt: skip
        write()
        settle(x)
        assert (other == x.asnumpy()).all(), step
        other[0] = step
        assert x.asnumpy()[0] == step
    assert theirs(x).ctypes.data == before


@pytest.mark.parametrize("size", [3, 5000, 100_000])
def test_who_held_the_bytes_keeps_them(size):
    """Copies, leases and values of the tape are not written by the other side."""
    x = nd.ones((size,))
    x += 1
    copied, lent = x.copy(), np.from_dlpack(x, copy=False)
    other = theirs(x)
    later = x.copy()
    after = np.from_dlpack(x, copy=False)
    nd.waitall()
    other[:] = 7
    x += 1
    assert (copied.asnumpy() == 2).all()
    assert (lent == 2).all()
    assert (later.asnumpy() == 2).all()
    assert (after == 2).all()
    assert (settle(x).asnumpy() == 8).all()


def test_the_tape_keeps_its_values_when_pinned_memory_is_written():
    w = nd.array([1, 2, 3])
    w.attach_grad()
    theirs(w)
    with autograd.record():
        y = w * w
    w[:] = 10
    y.backward()
    assert w.grad.asnumpy().tolist() == [2, 4, 6]
    assert w.asnumpy().tolist() == [10, 10, 10]


def test_a_pinned_gradient_stays_where_it_is():
    w, g = nd.array([1, 2, 3]), nd.zeros(3)
    other = theirs(g)
    autograd.mark_variables([w], [g])
    for _ in range(3):
        with autograd.record():
            y = w * w
        y.backward()
        settle(g)
        assert other.tolist() == [2, 4, 6]


def test_a_whole_write_heals_pinned_memory():
    x = nd.ones(3)
    other = theirs(x)
    engine = x._chunk.buffer.engine

    def fails(*_):
        raise ZeroDivisionError

    engine.push(fails, updates=[x])
    with pytest.raises(ZeroDivisionError):
        x.asnumpy()
    x[:] = 4
    assert x.asnumpy().tolist() == [4, 4, 4]
    assert settle(x) is x
    assert other.tolist() == [4, 4, 4]


def test_views_are_lent_for_writing_too():
    x = nd.zeros((3, 4))
    part = theirs(x[1:, ::2])
    part[:] = 5
    assert x.asnumpy().tolist() == [[0, 0, 0, 0], [5, 0, 5, 0], [5, 0, 5, 0]]
    with pytest.raises(BufferError, match="negative"):
        nd.arange(3)[::-1].to_dlpack_for_write()


# ---- memory of others ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("take", [nd.from_numpy, nd.from_dlpack])
@pytest.mark.parametrize("size", [3, 100_000])
def test_memory_of_numpy_is_shared(take, size):
    a = np.zeros(size, "f")
    mine = a.view()
    x = take(a)
    assert a.flags.writeable is (take is nd.from_dlpack)
    x += 1
    x[0] = 5
    x *= 2
    settle(x)
    assert mine[:2].tolist() == [10, 2]
    mine[1] = 7
    assert x.asnumpy()[1] == 7
    del a, mine
    gc.collect()
    assert x.asnumpy()[:2].tolist() == [10, 7]


@pytest.mark.parametrize("take", [nd.from_numpy, nd.from_dlpack])
@pytest.mark.parametrize("write", [
    lambda x: x.__setitem__(slice(None), 1), lambda x: x.__iadd__(1), lambda x: x.__setitem__(slice(0, 2), 1),
    lambda x: nd.sgd_update(x, nd.ones_like(x) * -1, lr=1.0, out=x), lambda x: nd.exp(x, out=x),
])  # fmt: skip
@pytest.mark.parametrize("size", [3, 100_000])
def test_read_only_memory_is_never_written(take, write, size):
    a = np.zeros(size, "f")
    a.flags.writeable = False
    x = take(a)
    again = x.copy()
    write(x)
    assert x.asnumpy()[1] == 1
    assert not a.any()
    assert not again.asnumpy().any()


def test_what_cannot_be_taken():
    for bad in ([1, 2], 3, None):
        with pytest.raises(ArgumentTypeError, match="from_numpy"):
            nd.from_numpy(bad)
        with pytest.raises(ArgumentTypeError, match="from_dlpack"):
            nd.from_dlpack(bad)
    a = np.arange(6.0).reshape(2, 3)
    with pytest.raises(ArgumentError, match="C order"):
        nd.from_numpy(a.T)
    assert a.flags.writeable
    assert nd.from_numpy(a.T, zero_copy=False).asnumpy().tolist() == a.T.tolist()
    assert nd.from_dlpack(a[:, ::-1]).asnumpy().tolist() == a[:, ::-1].tolist()
    for dtype in ("complex64", "uint16", ">f4"):
        with pytest.raises(ArgumentError, match=r"dtype|DLPack"):
            nd.from_numpy(np.zeros(2, dtype))
        with pytest.raises(ArgumentError, match=r"dtype|DLPack|byte"):
            nd.from_dlpack(np.zeros(2, dtype))


def test_a_capsule_that_says_nothing_of_writing_is_not_written():
    x = nd.ones(2)
    y = nd.from_dlpack(x.to_dlpack_for_write())
    y += 1
    assert x.asnumpy().tolist() == [1, 1]
    z = nd.from_dlpack(x.to_dlpack_for_write(max_version=(1, 0)))
    z += 1
    settle(z)
    assert x.asnumpy().tolist() == [2, 2]


def test_a_capsule_is_used_up():
    capsule = nd.to_dlpack_for_read(nd.ones(2))
    assert nd.from_dlpack(capsule).asnumpy().tolist() == [1, 1]
    with pytest.raises(ArgumentError):
        nd.from_dlpack(capsule)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(0,), (1,), (2, 0, 3), (2, 3), (1,) * 63 + (2,)])
def test_round_trips(dtype, shape):
    raw = (np.arange(np.prod(shape)) % 2).astype(dtype).reshape(shape)
    x = nd.array(raw, dtype=dtype)
    for y in (nd.from_dlpack(x), nd.from_dlpack(x.to_dlpack_for_write()), nd.from_numpy(raw.copy())):
        assert (y.dtype, y.shape) == (x.dtype, shape)
        assert y.asnumpy().tobytes() == raw.tobytes()


def test_torch():
    torch = pytest.importorskip("torch")
    x = nd.ones((100, 100))
    lent = torch.from_dlpack(x)
    lent += 1  # a copy is theirs
    assert (x.asnumpy() == 1).all()
    shared = torch.utils.dlpack.from_dlpack(x.to_dlpack_for_write())
    shared += 1
    assert (x.asnumpy() == 2).all()
    x += 1
    assert (settle(x).asnumpy() == shared.numpy()).all()
    taken = nd.from_dlpack(shared)
    taken[0] = 9
    assert (settle(taken).asnumpy()[0] == 9).all()
    assert (shared[0] == 9).all()
    assert (x.asnumpy()[0] == 9).all()
    del shared, x
    gc.collect()
    assert (taken.asnumpy()[0] == 9).all()


def test_jax():
    jax = pytest.importorskip("jax")
    x = nd.ones((100, 100))
    theirs = jax.dlpack.from_dlpack(x)
    x += 1
    assert (np.asarray(theirs) == 1).all()
    taken = nd.from_dlpack(jax.numpy.zeros(1000))
    taken += 1
    assert (taken.asnumpy() == 1).all()
