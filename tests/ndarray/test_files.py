"""Saving and loading in every format: round trips, what other libraries read, errors, and files that appear whole."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import vardag as vd
from vardag import nd
from vardag.engine.testing import Gate
from vardag.ndarray import dtype as dtypes
from vardag.ndarray import files

NAMES = tuple(name for name in dtypes.NAMES if name != "bfloat16")  # for that: test_bfloat16.py

FORMATS = ["mxnet", "npz", "safetensors"]
SUFFIXES = {"mxnet": ".params", "npz": ".npz", "safetensors": ".safetensors"}


def same(found: Any, raw: Any) -> None:
    assert type(found) is nd.NDArray
    assert (found.shape, found.dtype) == (raw.shape, raw.dtype.type)
    assert found.asnumpy().tobytes() == raw.tobytes(), "bit for bit, NaNs too"


# ---- round trips -----------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\\"), max_size=12)
RAWS = st.sampled_from(NAMES).flatmap(
    lambda name: arrays.arrays(np.dtype(name), arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(TEXTS.filter(lambda name: name != "__metadata__"), RAWS, max_size=5))
def test_a_dict_comes_back(format: str, content: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "x"
    nd.save(path, {name: nd.array(raw, dtype=raw.dtype) for name, raw in content.items()}, format=format)
    for found in (nd.load(path), nd.load(path, format=format), nd.load_frombuffer(path.read_bytes())):
        if format == "mxnet" and not content:
            assert found == [], "as in MXNet"
            continue
        assert set(found) == set(content)
        assert format == "safetensors" or list(found) == list(content), "in this order"
        for name, raw in content.items():
            same(found[name], raw)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.lists(RAWS, max_size=5))
def test_a_list_comes_back(content: list[Any], tmp_path: Path) -> None:
    nd.save(tmp_path / "x", [nd.array(raw, dtype=raw.dtype) for raw in content])
    found = nd.load(tmp_path / "x")
    assert isinstance(found, list)
    for array, raw in zip(found, content, strict=True):
        same(array, raw)


@pytest.mark.parametrize("format", FORMATS)
def test_one_array_a_tuple_and_views(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{SUFFIXES[format]}"
    x = nd.arange(6).reshape((2, 3))
    for data, expected in [(x, [x]), ((x, x), [x, x]), ([x[:, 1], x[::-1, ::2], x[1]], [x[:, 1], x[::-1, ::2], x[1]])]:
        nd.save(path, data)
        found = nd.load(path)
        if format != "mxnet":
            assert set(found) == {f"arr_{i}" for i in range(len(expected))}
            found = [found[f"arr_{i}"] for i in range(len(expected))]
        for array, other in zip(found, expected, strict=True):
            same(array, other.asnumpy())


@pytest.mark.parametrize("format", FORMATS)
def test_equal_arrays_give_equal_files(format: str, tmp_path: Path) -> None:
    for name in "ab":
        nd.save(tmp_path / name, {"x": nd.arange(4), "y": nd.ones((2, 2))}, format=format)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("suffix", [".npz", ".NPZ", ".safetensors", ".params", "", ".nd"])
def test_the_suffix_chooses_and_the_format_overrules(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    expected = {".npz": "npz", ".safetensors": "safetensors"}.get(suffix.lower(), "mxnet")
    nd.save(str(path), {"x": nd.ones(2)})
    for format in FORMATS:
        if format == expected:
            assert nd.load(path, format=format)["x"].shape == (2,)
        else:
            with pytest.raises(nd.FileFormatError):
                nd.load(path, format=format)
    nd.save(path, {"x": nd.ones(3)}, format="npz")
    assert nd.load(path)["x"].shape == (3,), "what is in it counts, not its name"


# ---- other libraries -------------------------------------------------------------------------------------------------


def test_numpy_reads_and_writes_the_same_archives(tmp_path: Path) -> None:
    raws = {f"a/{name}": np.array([[0, 1], [2, 3]]).astype(name) for name in NAMES}
    raws |= {"scalar": np.array(2.5), "empty": np.zeros((0, 3)), "file": np.ones(1)}
    nd.save(tmp_path / "ours.npz", {name: nd.array(raw, dtype=raw.dtype) for name, raw in raws.items()})
    with np.load(tmp_path / "ours.npz") as found:
        assert found.files == list(raws)
        for name, raw in raws.items():
            assert (found[name].dtype, found[name].tobytes()) == (raw.dtype, raw.tobytes())
    del raws["file"]  # an argument of savez
    raws |= {"fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "big": np.arange(3, dtype=">i4")}
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "theirs.npz", **raws)
        for name, array in nd.load(tmp_path / "theirs.npz").items():
            same(array, np.array(raws[name].astype(raws[name].dtype.newbyteorder("=")), order="C"))


def test_safetensors_reads_and_writes_the_same_files(tmp_path: Path) -> None:
    raws = {name: np.array([[0, 1], [2, 3]]).astype(name) for name in NAMES}
    raws |= {"scalar": np.array(2.5), "empty": np.zeros((0, 3))}
    nd.save(tmp_path / "ours.safetensors", {name: nd.array(raw, dtype=raw.dtype) for name, raw in raws.items()})
    for name, raw in safetensors.numpy.load_file(tmp_path / "ours.safetensors").items():
        assert (raw.dtype, raw.shape, raw.tobytes()) == (raws[name].dtype, raws[name].shape, raws[name].tobytes())
    safetensors.numpy.save_file(raws, tmp_path / "theirs.safetensors", metadata={"format": "np"})
    found = nd.load(tmp_path / "theirs.safetensors")
    assert set(found) == set(raws)
    for name, array in found.items():
        same(array, raws[name])


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nd.save(tmp_path / "x.safetensors", {"x": nd.ones(1)})
    before = (tmp_path / "x.safetensors").read_bytes()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for attempt in (
        lambda: nd.load(tmp_path / "x.safetensors"),
        lambda: nd.save(tmp_path / "x.safetensors", nd.ones(2)),
    ):
        with pytest.raises(ImportError, match=r"pip install 'vardag\[safetensors\]'") as caught:
            attempt()
        assert isinstance(caught.value, vd.Error)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x.safetensors": before}


# ---- what is waited for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_the_values_are_those_of_the_call(format: str, tmp_path: Path, engine_kind: Any) -> None:
    x = nd.ones(3)
    for i in range(20):
        x += 1
        nd.save(tmp_path / "x", {"x": x}, format=format)
        x += 100
        assert nd.load(tmp_path / "x")["x"].asnumpy().tolist() == [2 + 101 * i] * 3


def test_saving_waits_and_writes_meanwhile_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, gate = vd.engine.current(), Gate()
    x, y = nd.ones(3), nd.ones(3)
    engine.push(gate, updates=[x.var])
    x += 1
    write = files.mxnet.write

    def late(stream: Any, names: Any, raws: Any) -> None:  # the values are there, and not written yet
        for array in (x, y):
            array[:] = -1
            array.wait_to_read()
        write(stream, names, raws)

    monkeypatch.setitem(files._FORMATS, "mxnet", files._FORMATS["mxnet"]._replace(write=late))
    monkeypatch.setattr(files, "_views", opens(gate, files._views))
    nd.save(tmp_path / "x", [x, y])
    assert [array.asnumpy().tolist() for array in nd.load(tmp_path / "x")] == [[2, 2, 2], [1, 1, 1]]
    assert x.asnumpy().tolist() == y.asnumpy().tolist() == [-1, -1, -1]


def opens(gate: Gate, function: Any) -> Any:
    def opened(*args: Any) -> Any:
        gate.open()
        return function(*args)

    return opened


@pytest.mark.parametrize("format", FORMATS)
def test_an_array_that_failed_leaves_the_old_file(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{SUFFIXES[format]}"
    nd.save(path, nd.ones(1))
    before = path.read_bytes()
    bad = nd.ones(2)

    def broken() -> None:
        raise ZeroDivisionError("no luck")

    vd.engine.current().push(broken, updates=[bad.var])
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="no luck") as caught:
            nd.save(path, {"good": nd.ones(2), "bad": bad})
        assert any("array bad; the file is as it was" in note for note in caught.value.__notes__)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {path.name: before}


# ---- bad arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (3, TypeError, "int: an array"),
        ("abc", TypeError, "str: an array"),
        ([nd.ones(1), np.ones(1)], TypeError, "array 1: ndarray, not an array"),
        ({"a": None}, TypeError, "array a: NoneType"),
        ({1: nd.ones(1)}, TypeError, "the name 1: a str"),
        ({"\ud800": nd.ones(1)}, ValueError, "cannot be written as UTF-8"),
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_what_cannot_be_saved(data: Any, kind: type[Exception], words: str, format: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=words) as caught:
        nd.save(tmp_path / "x", data, format=format)
    assert isinstance(caught.value, vd.Error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "format", "words"),
    [
        ("a\0", "npz", "NUL"),
        ("a\\b", "npz", "backslash"),
        ("a" * 66_000, "npz", "too long"),
        ("__metadata__", "safetensors", "keeps for itself"),
    ],
)
def test_names_that_a_format_cannot_have(name: str, format: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        nd.save(tmp_path / "x", {name: nd.ones(1)}, format=format)
    assert len(str(caught.value)) < 1000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", [lambda f: nd.save(f, nd.ones(1)), nd.load], ids=["save", "load"])
@pytest.mark.parametrize(
    ("fname", "kind"), [(3, TypeError), (None, TypeError), (b"x", TypeError), ("a\0b", ValueError)]
)
def test_bad_names_of_files(call: Any, fname: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        call(fname)
    assert isinstance(caught.value, vd.Error)


def test_other_bad_arguments(tmp_path: Path) -> None:
    for call in (
        lambda: nd.save(tmp_path / "x", nd.ones(1), format="hdf5"),
        lambda: nd.load(tmp_path / "x", format="hdf5"),
        lambda: nd.load_frombuffer(b"", format="hdf5"),
        lambda: nd.load_frombuffer(b"", format=[]),
    ):
        with pytest.raises(nd.Array.__init__.__globals__["ArgumentError"], match="one of mxnet, npz, safetensors"):
            call()
    with pytest.raises(TypeError, match="str: bytes expected"):
        nd.load_frombuffer("text")
    with pytest.raises(FileNotFoundError):
        nd.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        nd.save(tmp_path / "none" / "x", nd.ones(1))


def test_buffers_of_every_kind(tmp_path: Path) -> None:
    nd.save(tmp_path / "x", [nd.arange(3)])
    data = (tmp_path / "x").read_bytes()
    for buffer in (data, bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        (found,) = nd.load_frombuffer(buffer)
        found[:] = 0
        assert found.asnumpy().tolist() == [0, 0, 0]
    assert (tmp_path / "x").read_bytes() == data


def test_the_error_can_be_pickled(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(nd.FileFormatError, match="neither a file of MXNet's") as caught:
        nd.load(tmp_path / "x")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.file, again.array, again.offset) == (str(caught.value), str(tmp_path / "x"), None, 0)


# ---- the file appears whole or not at all ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_failing_disk_leaves_the_old_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    nd.save(path, nd.ones(1))
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(OSError, match="no space"):
            nd.save(path, nd.ones(1000))
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"x": before}


@pytest.mark.parametrize("format", FORMATS)
def test_an_interrupt_at_any_line_leaves_one_whole_file(format: str, tmp_path: Path, no_gc_callbacks: None) -> None:
    path = tmp_path / "x"
    old, new = {"x": nd.ones(2)}, {"x": nd.zeros(3), "y": nd.ones(1)}
    wholes = []
    for content in (new, old):
        nd.save(path, content, format=format)
        wholes.append(path.read_bytes())
    ours = {files.__file__, files.mxnet.__file__}
    outcomes = set()
    for at in range(10_000):
        left = at

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in ours:
                return None
            if event == "line":
                left -= 1
                if left < 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            nd.save(path, new, format=format)
        except KeyboardInterrupt:
            ended = False
        else:
            ended = True
        finally:
            sys.settrace(before)
        assert [entry.name for entry in tmp_path.iterdir()] == ["x"], f"litter after line {at}"
        outcomes.add(wholes.index(path.read_bytes()))
        if ended:
            break
        nd.save(path, old, format=format)
    assert at > 30
    assert outcomes == {0, 1}


@pytest.mark.skipif(os.name != "posix", reason="modes, links and pipes of POSIX")
def test_modes_links_and_other_kinds_of_files(tmp_path: Path) -> None:
    path, link = tmp_path / "x", tmp_path / "link"
    mask = os.umask(0o027)
    try:
        nd.save(path, nd.ones(1))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640, "what the umask leaves"
    path.chmod(0o604)
    link.symlink_to(path)
    nd.save(link, nd.ones(2))
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o604, "as it was"
    assert nd.load(path)[0].shape == (2,)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        for call in (lambda other=other: nd.load(other), lambda other=other: nd.save(other, nd.ones(1))):
            with pytest.raises(ValueError, match="not a regular file"):
                call()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "pipe", "x"]
