"""MXNet 1.x's own files: what the real MXNet 1.9.1 wrote is read and written again byte for byte; and it reads ours.

The files in data/ were written by data/with_mxnet.py under MXNet 1.9.1, which also reads what is written here if
MXNET_PYTHON names an interpreter that has it.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vardag import nd
from vardag.ndarray import dtype as dtypes

NAMES = tuple(name for name in dtypes.NAMES if name != "bfloat16")  # for that: test_bfloat16.py

DATA = Path(__file__).parent / "data"
MXNET = os.environ.get("MXNET_PYTHON")
FILES = sorted(path.name for path in DATA.glob("*.params"))


def as_list(count: int, arrays: bytes, names: tuple[bytes, ...] = ()) -> bytes:
    """A file of arrays that are bytes already."""
    texts = b"".join(struct.pack("<Q", len(name)) + name for name in names)
    return struct.pack("<QQQ", 0x112, 0, count) + arrays + struct.pack("<Q", len(names)) + texts


def v2(shape: tuple[int, ...], flag: int, elements: bytes, storage: int = 0, version: int = 0xF993FAC9) -> bytes:
    return struct.pack(f"<Iii{len(shape)}qiii", version, storage, len(shape), *shape, 1, 0, flag) + elements


TWO = struct.pack("<ff", 1, 2)


# ---- files of the real MXNet -----------------------------------------------------------------------------------------


def test_there_are_files_to_read() -> None:
    assert len(FILES) == 7


@pytest.mark.parametrize(
    "name", [name for name in FILES if "csr" not in name]
)  # its shape of the elements is too early
def test_what_mxnet_wrote_is_written_again_byte_for_byte(name: str, tmp_path: Path) -> None:
    nd.save(tmp_path / "again", nd.load(DATA / name))
    assert (tmp_path / "again").read_bytes() == (DATA / name).read_bytes()


def test_values_of_every_dtype() -> None:
    found = nd.load(str(DATA / "mxnet-dtypes.params"))
    assert list(found) == [f"arg:{name}" for name in NAMES]
    for name in NAMES:
        expected = np.array([[0, 1, 2], [3, 100, 127]]).astype(name)
        array = found[f"arg:{name}"]
        assert type(array) is nd.NDArray
        assert array.dtype is np.dtype(name).type
        np.testing.assert_array_equal(array.asnumpy(), expected)


def test_a_list_and_an_empty_file() -> None:
    first, second = nd.load(DATA / "mxnet-list.params")
    assert first.asnumpy().tolist() == [0, 1, 2, 3, 4]
    assert (second.shape, second.dtype) == ((2, 1, 3), np.int64)
    assert nd.load(DATA / "mxnet-empty.params") == []


def test_shapes_of_numpy() -> None:
    found = nd.load(DATA / "mxnet-numpy.params")
    assert {name: array.shape for name, array in found.items()} == {"scalar": (), "empty": (0, 3), "vector": (2,)}
    assert found["scalar"].item() == 1


def test_parameters_of_a_gluon_network() -> None:
    shapes = {name: array.shape for name, array in nd.load(DATA / "mxnet-gluon.params").items()}
    assert shapes["0.weight"] == (2, 1, 3, 3)
    assert shapes["1.running_var"] == (2,)
    assert shapes["2.weight"] == (3, 8)


def test_sparse_arrays() -> None:
    found = nd.load(DATA / "mxnet-row-sparse.params")
    assert list(found) == ["dense", "rows", "after"]
    assert type(found["rows"]) is nd.sparse.RowSparseNDArray
    assert found["rows"].asnumpy().tolist() == [[0, 0], [1, 2], [0, 0]]
    (csr,) = nd.load(DATA / "mxnet-csr.params").values()
    assert type(csr) is nd.sparse.CSRNDArray
    assert csr.indptr.asnumpy().tolist() == [0, 1, 2]
    assert csr.asnumpy().tolist() == [[1, 0], [0, 2]]


def packed(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f"<i{len(shape)}q", len(shape), *shape)


def sparse(storage: int, shape: tuple[int, ...], data: Any, *structure: Any, flag: int = 6) -> bytes:
    """A sparse array of float32, by hand; `structure` in the order of the file."""
    arrays = [np.array(part, "<i8" if flag == 6 else "<f4") for part in structure]
    values = np.array(data, "<f4")
    head = struct.pack("<Ii", 0xF993FAC9, storage) + packed(values.shape) + packed(shape) + struct.pack("<iii", 1, 0, 0)
    kinds = b"".join(struct.pack("<i", flag) + packed(part.shape) for part in arrays)
    return head + kinds + values.tobytes() + b"".join(part.tobytes() for part in arrays)


def test_sparse_arrays_that_store_nothing() -> None:
    rows, never = nd.load_frombuffer(
        as_list(2, sparse(1, (2, 3), np.empty((0, 3)), []) + sparse(2, (2, 3), [], [], []))
    )
    assert (rows.stype, rows.indices.shape) == ("row_sparse", (0,))
    assert never.indptr.asnumpy().tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (sparse(1, (3, 2), [[1, 2]], [3]), "ascending rows from 0 to 2"),
        (sparse(1, (3, 2), [[1, 2]], [-1]), "ascending rows"),
        (sparse(1, (3, 2), [[1, 2], [3, 4]], [2, 1]), "ascending rows"),
        (sparse(1, (3, 2), [[1, 2], [3, 4]], [1, 1]), "ascending rows"),
        (sparse(1, (3, 2), [[1, 2]], [1], flag=0), "whole numbers"),
        (sparse(2, (2, 2), [1, 2], [0, 2, 1], [0, 1]), "indptr"),
        (sparse(2, (2, 2), [1, 2], [0, 1, 3], [0, 1]), "indptr"),
        (sparse(2, (2, 2), [1, 2], [1, 1, 2], [0, 1]), "indptr"),
        (sparse(2, (2, 2), [1, 2], [0, 1, 2, 2], [0, 1]), "indptr"),
        (sparse(2, (2, 2), [1, 2], [0, 2, 2], [1, 0]), "ascending within each row"),
        (sparse(2, (2, 2), [1, 2], [0, 1, 2], [0, 2]), "columns from 0 to 1"),
        (sparse(2, (1 << 40, 1 << 40), [1, 2], [0, 1, 2], [0, 1]), "no array has the shape"),
        (sparse(2, (1 << 40, 2), [], [], []), "indptr"),
        (sparse(2, (2, 2, 2), [1, 2], [0, 1, 2], [0, 1]), "two axes"),
        (sparse(1, (1, 1 << 40), [[1]], [0]), "bytes expected"),
    ],
)
def test_a_structure_is_not_believed(array: bytes, words: str) -> None:
    with pytest.raises(nd.FileFormatError, match=words):
        nd.load_frombuffer(as_list(1, array))


# ---- older and newer versions, by hand -------------------------------------------------------------------------------

# The real MXNet 1.9.1 reads these (`test_mxnet_reads_the_older_versions`) and cannot write them any more.
OLD = {
    "V0": struct.pack("<IIIiii", 2, 1, 2, 1, 0, 0) + TWO,
    "V1": struct.pack("<IIqqiii", 0xF993FAC8, 2, 1, 2, 1, 0, 0) + TWO,
    "V1 of a GPU": struct.pack("<IIqqiii", 0xF993FAC8, 2, 1, 2, 2, 3, 0) + TWO,
    "V2": v2((1, 2), 0, TWO),
}


@pytest.mark.parametrize("version", OLD)
def test_older_versions(version: str) -> None:
    (found,) = nd.load_frombuffer(as_list(1, OLD[version]))
    assert found.asnumpy().tolist() == [[1, 2]]
    assert str(found.context) == "cpu(0)"


def test_versions_may_be_mixed() -> None:
    found = nd.load_frombuffer(
        as_list(3, OLD["V0"] + OLD["V2"] + v2((), 0, TWO[:4], version=0xF993FACA), (b"a", b"b", b""))
    )
    assert {name: array.shape for name, array in found.items()} == {"a": (1, 2), "b": (1, 2), "": ()}


@pytest.mark.parametrize(
    "nothing",
    [
        struct.pack("<I", 0),
        struct.pack("<II", 0xF993FAC8, 0),
        struct.pack("<Iii", 0xF993FAC9, 0, 0),
        struct.pack("<Iii", 0xF993FAC9, -1, 0),
        struct.pack("<Iii", 0xF993FACA, 0, -1),
    ],
    ids=["V0", "V1", "V2", "V2 without storage", "V3"],
)
def test_an_array_without_a_value_is_refused_by_name(nothing: bytes) -> None:
    with pytest.raises(nd.FileFormatError, match="array never, byte 24: has no value"):
        nd.load_frombuffer(as_list(2, nothing + OLD["V2"], (b"never", b"other")))


def test_a_dtype_of_later_versions_is_refused_by_name() -> None:
    with pytest.raises(nd.FileFormatError, match=r"array half, .*int16"):
        nd.load_frombuffer(as_list(2, OLD["V2"] + v2((2,), 8, b"abcd"), (b"ok", b"half")))


def test_a_truth_value_is_0_or_1_whatever_its_byte() -> None:
    (found,) = nd.load_frombuffer(as_list(1, v2((3,), 7, b"\0\1\xff")))
    assert found.asnumpy().view(np.uint8).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (as_list(1, v2((5,), 0, TWO)), "array 0, byte 56: elements: 20 bytes expected, 16 left"),
        (as_list(1, v2((1 << 40,), 0, TWO)), "elements: 4398046511104 bytes expected, 16 left"),
        (as_list(1, v2((1 << 62, 1 << 62), 0, TWO)), "no array has the shape"),
        (as_list(1, v2((0, 1 << 62, 4), 0, b"")), "no array has the shape"),
        (as_list(1, v2((-2,), 0, TWO)), r"no array has the shape \(-2,\)"),
        (as_list(1, v2((2,), 99, TWO)), "byte 52: unknown element type 99"),
        (as_list(1, v2((2,), 0, TWO, storage=7)), "byte 28: unknown storage type 7"),
        (as_list(1, v2((2,), 0, TWO, version=0xF993FACB)), "no version of MXNet's arrays"),
        (as_list(1, v2((1,) * 65, 0, TWO)), "65 axes"),
        (as_list(1 << 60, OLD["V2"]), "4611686018427387904 bytes expected"),
        (as_list(2, OLD["V2"] + OLD["V2"][:20]), "array 1, byte 100: context: 8 bytes expected, 0 left"),
        (as_list(1, OLD["V2"], (b"a", b"b")), "2 names for 1 arrays"),
        (as_list(1, OLD["V2"], (b"\xff",)), "is not UTF-8"),
        (as_list(2, OLD["V2"] * 2, (b"a", b"a")), "a second array of the name 'a'"),
        (as_list(1, OLD["V2"]) + b"x", "1 bytes more"),
        (struct.pack("<QQQ", 0x112, 1, 0), "no file of MXNet's arrays"),
        (as_list(1, OLD["V2"])[:-8] + struct.pack("<QQ", 1, 1 << 63), "9223372036854775808 bytes expected"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, words: str) -> None:
    with pytest.raises(nd.FileFormatError, match=words) as caught:
        nd.load_frombuffer(data)
    assert str(caught.value).startswith("[load] <buffer>: ")


def test_every_truncation_is_noticed() -> None:
    for name in FILES:
        data = (DATA / name).read_bytes()
        for end in range(len(data)):
            with pytest.raises(nd.FileFormatError):
                nd.load_frombuffer(data[:end], format="mxnet")


# ---- what is written -------------------------------------------------------------------------------------------------


def first_version(path: Path) -> int:
    return int(struct.unpack("<I", path.read_bytes()[24:28])[0])


def test_where_sparse_arrays_cannot_be_written(tmp_path: Path) -> None:
    rows = nd.sparse.zeros("row_sparse", (2, 3))
    for name, content in {"x.npz": [rows], "x.safetensors": {"a": rows}, "x.params": [nd.array(1), rows]}.items():
        with pytest.raises(ValueError, match=r"is row_sparse, and files of .* have no"):
            nd.save(tmp_path / name, content)
    assert not list(tmp_path.iterdir())


def test_version_3_only_if_an_array_needs_it(tmp_path: Path) -> None:
    path = tmp_path / "x.params"
    nd.save(path, [nd.ones(2), nd.zeros((0, 3))])
    assert first_version(path) == 0xF993FAC9
    nd.save(path, [nd.ones(2), nd.array(1)])
    assert first_version(path) == 0xF993FACA


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="NUL"):
        nd.save(tmp_path / "x", {"a\0b": nd.ones(1)})
    assert not list(tmp_path.iterdir())


needs_mxnet = pytest.mark.skipif(not MXNET, reason="MXNET_PYTHON names no interpreter with mxnet 1.9.1")


def read_by_mxnet(*files: Path) -> list[Any]:
    assert MXNET is not None
    command = [MXNET, "-W", "ignore", DATA / "with_mxnet.py", "read", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def described(array: Any) -> list[Any]:
    raw = array.asnumpy()
    return [raw.dtype.name, list(raw.shape), raw.tobytes().hex()]


@needs_mxnet
def test_mxnet_reads_what_is_written_here(tmp_path: Path) -> None:
    every = {f"größe/{name}": nd.array([[0, 1, 2], [3, 4, 5]], dtype=name) for name in NAMES}
    contents: list[Any] = [
        every,
        {**every, "scalar": nd.array(2.5), "empty": nd.zeros((0, 3)), "": nd.ones((1,) * 6)},
        [nd.arange(7)[::-2], nd.ones((2, 0)), nd.arange(6).reshape((2, 3)).T],
        {
            f"{stype}/{n}": nd.array(x, dtype=n).tostype(stype)
            for x in (np.eye(3)[1:],)
            for n in NAMES
            for stype in ("csr", "row_sparse")
            if n != "bool"
        },
        [nd.sparse.zeros("csr", (2, 3)), nd.sparse.zeros("row_sparse", (2, 3)), nd.ones(1)],
    ]
    files = [tmp_path / str(i) for i in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        nd.save(file, content)
    for found, content in zip(read_by_mxnet(*files), contents, strict=True):
        if isinstance(content, dict):
            assert found == {name: described(array) for name, array in content.items()}
        else:
            assert found == [described(array) for array in content]


@needs_mxnet
def test_mxnet_reads_the_older_versions(tmp_path: Path) -> None:
    files = [tmp_path / str(i) for i in range(len(OLD))]
    for file, array in zip(files, OLD.values(), strict=True):
        file.write_bytes(as_list(1, array))
    assert read_by_mxnet(*files) == [[["float32", [1, 2], TWO.hex()]]] * len(OLD)
