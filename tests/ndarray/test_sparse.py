"""Sparse arrays as arrays: making them, their parts, conversions, slices, writes; and when they wait."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import sparse as scipy_sparse

import vardag as vd
from vardag import nd
from vardag.engine import Engine
from vardag.engine.testing import Gate
from vardag.operators import nd_face

sp = nd.sparse
DENSE = np.array([[0, 1, 0], [2, 0, 0], [0, 0, 0], [0, 0, 3]], "f4")
STYPES = ("csr", "row_sparse")


def csr() -> Any:
    return sp.csr_matrix(([1, 2, 3], [1, 0, 2], [0, 1, 2, 2, 3]), shape=(4, 3))


def rows() -> Any:
    return sp.row_sparse_array(([[1, 2], [3, 4]], [1, 4]), shape=(6, 2))


def parts(x: Any) -> list[Any]:
    return [part.asnumpy().tolist() for part in (x.data, x.indices, *([x.indptr] if x.stype == "csr" else []))]


# ---- making ----------------------------------------------------------------------------------------------------------


def test_row_sparse_from_its_parts() -> None:
    x = rows()
    assert (x.stype, x.shape, x.ndim, x.size, len(x)) == ("row_sparse", (6, 2), 2, 12, 6)
    assert (x.dtype, x.data.dtype, x.indices.dtype) == (np.float32, np.float32, np.int64)
    assert x.asnumpy().tolist() == [[0, 0], [1, 2], [0, 0], [0, 0], [3, 4], [0, 0]]
    assert repr(x) == f"\n<RowSparseNDArray 6x2 @{vd.current_context()}>"
    assert sp.row_sparse_array(([[1, 2], [3, 4]], [1, 4])).shape == (5, 2)


def test_csr_from_its_parts() -> None:
    x = csr()
    assert (x.stype, x.shape, x.dtype, x.context) == ("csr", (4, 3), np.float32, vd.current_context())
    assert x.asnumpy().tobytes() == DENSE.tobytes()
    assert repr(x) == f"\n<CSRNDArray 4x3 @{vd.current_context()}>"
    assert sp.csr_matrix(([1, 2], [0, 5], [0, 1, 2])).shape == (2, 6)


def test_csr_from_places_in_any_order() -> None:
    x = sp.csr_matrix((nd.array([1, 2, 3, 4]), ([1, 0, 1, 1], [2, 1, 2, 0])))
    assert parts(x) == [[2, 4, 4], [1, 0, 2], [0, 1, 3]], "those of one place are added"


@pytest.mark.parametrize("stype", STYPES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32", "int64", "uint8"])
def test_there_and_back(stype: str, dtype: str) -> None:
    raw = DENSE.astype(dtype)
    x = nd.array(raw, dtype=dtype).tostype(stype)
    assert (x.stype, x.dtype) == (stype, np.dtype(dtype).type)
    assert parts(x) == (
        [[1, 2, 3], [1, 0, 2], [0, 1, 2, 2, 3]] if stype == "csr" else [[[0, 1, 0], [2, 0, 0], [0, 0, 3]], [0, 1, 3]]
    )
    assert x.tostype("default").asnumpy().tobytes() == raw.tobytes()
    assert nd.cast_storage(x, stype).asnumpy().tobytes() == raw.tobytes()
    x.check_format()


def test_from_other_arrays() -> None:
    assert sp.csr_matrix(DENSE.astype("f8")).dtype == np.float64
    assert sp.csr_matrix(DENSE.tolist()).dtype == np.float32
    assert sp.csr_matrix(nd.array(DENSE, dtype="int32")).dtype == np.int32
    assert sp.csr_matrix(DENSE, dtype="int32").dtype == np.int32
    assert sp.csr_matrix(csr(), dtype="float64").dtype == np.float64
    foreign = scipy_sparse.coo_matrix(DENSE)
    assert parts(sp.csr_matrix(foreign)) == parts(sp.array(foreign)) == parts(csr())
    assert parts(sp.array(csr())) == parts(csr())
    assert parts(sp.row_sparse_array(nd.array(DENSE)))[1] == [0, 1, 3]
    assert (csr().asscipy() != foreign).nnz == 0


@pytest.mark.parametrize("stype", STYPES)
def test_nothing_stored(stype: str) -> None:
    for x in (
        sp.zeros(stype, (2, 3)),
        sp.empty(stype, (2, 3)),
        nd.zeros((2, 3), stype=stype),
        nd.zeros((2, 3)).tostype(stype),
    ):
        assert (x.stype, x.data.size, x.dtype) == (stype, 0, np.float32)
        assert x.asnumpy().tolist() == [[0] * 3] * 2
        x.check_format()
    assert sp.csr_matrix((2, 3)).stype == "csr"
    assert sp.row_sparse_array((2, 3), dtype="float64").dtype == np.float64
    assert sp.zeros("default", (2, 3)).stype == nd.zeros((2, 3), stype="default").stype == "default"


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("stype", STYPES)
def test_axes_of_length_0(stype: str, shape: tuple[int, int]) -> None:
    x = sp.zeros(stype, shape)
    assert (x + x).asnumpy().shape == (x * 2).asnumpy().shape == shape
    assert nd.zeros(shape).tostype(stype).asnumpy().shape == shape


def test_row_sparse_of_other_numbers_of_axes() -> None:
    for raw in (np.array([0, 1, 0, 2.0]), np.arange(24.0).reshape(3, 2, 4) * [[[0]], [[1]], [[2]]]):
        x = nd.array(raw).tostype("row_sparse")
        assert x.asnumpy().tolist() == raw.tolist()
        assert (x + x).asnumpy().tolist() == (raw * 2).tolist()


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "rows not ascending": (lambda: sp.row_sparse_array(([[1], [2]], [1, 0])), "[row_sparse_array] row_sparse"),
    "a row twice": (lambda: sp.row_sparse_array(([[1], [2]], [1, 1])), "ascending rows"),
    "a row out of range": (lambda: sp.row_sparse_array(([[1]], [3]), shape=(3, 1)), "ascending rows from 0 to 2"),
    "a negative row": (lambda: sp.row_sparse_array(([[1]], [-1]), shape=(3, 1)), "ascending rows"),
    "rows of another length": (lambda: sp.row_sparse_array(([[1]], [0]), shape=(3, 2)), "data (1, 1)"),
    "fewer indices": (lambda: sp.row_sparse_array(([[1], [2]], [0])), "indices (1,)"),
    "broken indices": (lambda: sp.row_sparse_array(([[1]], [0.5])), "whole numbers"),
    "indices of words": (lambda: sp.row_sparse_array(([[1]], ["a"])), "indices expected"),
    "three parts": (lambda: sp.row_sparse_array(([1], [1], [1])), "(data, indices)"),
    "columns not ascending": (lambda: sp.csr_matrix(([1, 2], [1, 0], [0, 2])), "ascending within each row"),
    "a column out of range": (lambda: sp.csr_matrix(([1], [3], [0, 1]), shape=(1, 3)), "columns from 0 to 2"),
    "indptr falls": (lambda: sp.csr_matrix(([1, 2], [0, 1], [0, 2, 1, 2])), "indptr: ascending"),
    "indptr ends early": (lambda: sp.csr_matrix(([1, 2], [0, 1], [0, 1])), "indptr: ascending from 0 to 2"),
    "indptr begins late": (lambda: sp.csr_matrix(([1, 2], [0, 1], [1, 2])), "indptr: ascending from 0"),
    "another number of rows": (lambda: sp.csr_matrix(([1], [0], [0, 1]), shape=(2, 1)), "indptr (2,)"),
    "three axes": (lambda: sp.csr_matrix((1, 2, 3)), "[csr_matrix] csr (1, 2, 3): two axes"),
    "a place out of range": (lambda: sp.csr_matrix(([1], ([2], [0])), shape=(2, 2)), "places within (2, 2)"),
    "another shape": (lambda: sp.csr_matrix(DENSE, shape=(3, 4)), "shape (3, 4)"),
    "csr of row_sparse": (lambda: sp.csr_matrix(rows()), "another storage type"),
    "an unknown type": (lambda: sp.zeros("coo", (1, 1)), "[zeros] stype 'coo'"),
    "a dense empty": (lambda: sp.empty("default", (1, 1)), "[empty] stype 'default'"),
    "array of a dense one": (lambda: sp.array(nd.ones((1, 1))), "tostype"),
    "cast to an unknown type": (lambda: nd.ones((1, 1)).tostype("coo"), "[cast_storage] stype 'coo'"),
    "cast one sparse to the other": (lambda: csr().tostype("row_sparse"), "by way of tostype('default')"),
    "a vector as csr": (lambda: nd.ones(3).tostype("csr"), "two axes"),
    "cast no array": (lambda: nd.cast_storage([1], "csr"), "[cast_storage] [1]"),
    "a class called": (lambda: sp.CSRNDArray(None), "vardag.nd.sparse"),
}


@pytest.mark.parametrize("which", BAD)
def test_what_is_wrong_is_said_at_the_call(which: str) -> None:
    make, words = BAD[which]
    with pytest.raises(vd.Error) as caught:
        make()
    assert isinstance(caught.value, ValueError | TypeError)
    assert words in str(caught.value)


# ---- rows of csr -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", [0, 1, -1, -4, slice(1, 3), slice(None), slice(2), slice(-1, None), slice(3, 1), slice(9, 12)]
)
def test_rows_of_csr(key: Any) -> None:
    x = csr()[key]
    expected = DENSE[key]
    assert x.stype == "csr"
    assert x.asnumpy().tolist() == np.atleast_2d(expected).tolist()
    x.check_format()


def test_rows_of_csr_are_iterated() -> None:
    assert [x.asnumpy().tolist() for x in csr()] == DENSE[:, None].tolist()


@pytest.mark.parametrize("key", [4, -5, slice(0, 2, 2), (1, 2), "a", None])
def test_other_keys_of_csr_are_refused(key: Any) -> None:
    with pytest.raises(IndexError, match=r"\[getitem\] csr float32\(4, 3\)"):
        csr()[key]


def test_row_sparse_has_only_the_whole() -> None:
    x = rows()
    assert x[:] is x
    with pytest.raises(IndexError, match="row_sparse"):
        x[1]


# ---- copies and writes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stype", STYPES)
def test_copies_are_apart(stype: str) -> None:
    x = nd.array(DENSE).tostype(stype)
    others = [
        x.copy(),
        copy.copy(x),
        copy.deepcopy(x),
        x.astype("float32"),
        x.copyto(vd.cpu(1)),
        x.detach(),
        sp.array(x),
    ]
    data = x.data
    data[:] = 9
    x[:] = nd.ones((4, 3))
    assert x.asnumpy().tolist() == np.ones((4, 3)).tolist()
    for other in others:
        assert other.asnumpy().tolist() == DENSE.tolist()
    assert others[4].context == vd.cpu(1)
    assert x.astype("float32", copy=False) is x
    assert x.as_in_context(x.context) is x


@pytest.mark.parametrize("stype", STYPES)
def test_copyto(stype: str) -> None:
    x, dense, other = (
        nd.array(DENSE).tostype(stype),
        nd.zeros((4, 3), dtype="int32"),
        sp.zeros(stype, (4, 3), dtype="float64"),
    )
    assert x.copyto(dense) is dense
    assert x.copyto(other) is other
    assert dense.asnumpy().tolist() == other.asnumpy().tolist() == DENSE.tolist()
    assert (dense.dtype, other.dtype) == (np.int32, np.float64)
    assert nd.ones((4, 3)).copyto(other) is other
    assert other.asnumpy().tolist() == np.ones((4, 3)).tolist()
    for wrong in (x, sp.zeros(stype, (3, 3)), sp.zeros("csr" if stype == "row_sparse" else "row_sparse", (4, 3)), 3):
        with pytest.raises(vd.Error):
            x.copyto(wrong)


def test_assignments() -> None:
    x = rows()
    x[:] = 0
    assert x.indices.shape == (0,)
    x[:] = np.eye(6, 2)
    assert parts(x) == [[[1, 0], [0, 1]], [0, 1]]
    x[:] = 2
    assert x.asnumpy().tolist() == [[2, 2]] * 6
    with pytest.raises(IndexError, match="only"):
        x[1] = 0
    with pytest.raises(ValueError, match="the same shape"):
        x[:] = nd.ones((2, 2))


def test_single_elements_and_numpy() -> None:
    one = sp.csr_matrix([[3]])
    assert one.asscalar() == 3
    assert bool(one)
    assert np.asarray(csr()).tolist() == DENSE.tolist()
    assert nd.array(csr()).asnumpy().tolist() == DENSE.tolist()


# ---- the engine ------------------------------------------------------------------------------------------------------


def blocked(engine: Engine, *arrays: Any) -> Gate:
    """A gate that these arrays' next users wait for."""
    gate = Gate()
    engine.push(gate, updates=[a.var for a in arrays], name="gate")
    gate.wait_entered()
    return gate


def test_what_keeps_the_structure_does_not_wait() -> None:
    with Engine(workers=2) as engine:
        data, w = nd.ones((2, 2)), nd.zeros((4, 2))
        gate = blocked(engine, data)
        x = sp.row_sparse_array((data, [0, 2]), shape=(4, 2))
        y = sp.row_sparse_array((data, [0, 3]), shape=(4, 2))
        results = [
            x * 2, -x, x + y, x - y, x * y, x.tostype("default"), x.retain([0, 1]), x.astype("float64"), nd.sqrt(x),
        ]  # fmt: skip
        z = sp.csr_matrix((data.reshape(-1), [0, 1, 0, 1], [0, 2, 4]))
        results += [z + z, z * nd.ones((2, 2)), nd.dot(z, data), nd.dot(z, data, transpose_a=True), nd.exp(z)]
        nd.sgd_update(w, x, lr=1, out=w)
        assert engine.statistics().pending > 0, "nothing ran yet"
        gate.open()
        sums = [8, -4, 8, 0, 2, 4, 2, 4, 4, 8, 4, 8, 8, 4 * np.exp(np.float32(1))]
        np.testing.assert_allclose([r.asnumpy().sum() for r in results], sums, rtol=1e-6)
        assert w.asnumpy().tolist() == [[-1, -1], [0, 0], [-1, -1], [0, 0]]


def test_a_name_is_written_while_others_are_pending() -> None:
    """What was pushed before a write goes on with the old value."""
    with Engine(workers=2) as engine:
        data = nd.ones((1, 2))
        gate = blocked(engine, data)
        x = sp.row_sparse_array((data, [1]), shape=(3, 2))
        before = x * 3
        x[:] = sp.row_sparse_array(([[5, 5]], [2]), shape=(3, 2))
        after = x * 3
        gate.open()
        assert before.asnumpy().tolist() == [[0, 0], [3, 3], [0, 0]]
        assert after.asnumpy().tolist() == [[0, 0], [0, 0], [15, 15]]


def broken(engine: Engine, shape: tuple[int, ...]) -> nd.NDArray:
    """An array whose values could not be made."""

    def fail() -> None:
        raise RuntimeError("no values")

    made = nd.zeros(shape)
    engine.push(fail, writes=[made.var])
    return made


@pytest.mark.parametrize("stype", STYPES)
def test_an_operator_sees_the_parts_of_one_moment(monkeypatch: pytest.MonkeyPatch, stype: str) -> None:
    """Another thread may give the array parts of other lengths while an operator works on it."""
    x, other, square = nd.array(DENSE).tostype(stype), nd.ones((4, 3)).tostype(stype), nd_face.square

    def interrupted(values: Any) -> Any:
        x[:] = other
        return square(values)

    monkeypatch.setattr(nd_face, "square", interrupted)
    found = square(x)
    found.check_format()
    assert found.asnumpy().tolist() == (DENSE**2).tolist()
    assert x.asnumpy().tolist() == np.ones((4, 3)).tolist()


def test_an_error_stays_on_the_values() -> None:
    with Engine(workers=1) as engine:
        x = sp.row_sparse_array((broken(engine, (1, 2)), [1]), shape=(3, 2))
        total = x + x
        for look in (x.wait_to_read, x.asnumpy, total.asnumpy, total.tostype("default").asnumpy):
            with pytest.raises(RuntimeError, match="no values"):
                look()
        assert x.indices.asnumpy().tolist() == [1]
        x[:] = 0
        x.wait_to_read()
        with pytest.raises(RuntimeError, match="no values"):
            broken(engine, (2, 2)).tostype("csr")
        with pytest.raises(RuntimeError, match="no values"):
            sp.row_sparse_array(([[1]], broken(engine, (1,))))
