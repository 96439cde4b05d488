"""Memory lent to other libraries: DLPack."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from vardag import nd


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
