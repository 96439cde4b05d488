"""Damaged and hostile files: each either loads or raises FileFormatError, within a bound of memory and of time.

The storms run in a process of their own, whose address space may grow by 256 MiB at most: a crash, a hang or a large
allocation, in whatever language, ends it.  One storm: `python tests/ndarray/test_files_hostile.py FORMAT FIRST COUNT`.
"""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vardag import nd
from vardag.ndarray import dtype as dtypes

NAMES = tuple(name for name in dtypes.NAMES if name != "bfloat16")  # for that: test_bfloat16.py

FORMATS = ["mxnet", "npz", "safetensors"]
SPACE = 256 << 20  # bytes of address space beside what the process has when the storm begins
FACTOR, SLACK = 24, 1 << 20  # the bound of what Python and NumPy allocate, by the size of the file

# ---- mutations -------------------------------------------------------------------------------------------------------

LENGTHS = [0, 1, 2, 3, 7, 8, 0x112, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1]


def flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def splice(rng: random.Random, data: bytearray) -> None:
    """A length, or what may be one, over what is there."""
    size = rng.choice([1, 2, 4, 8])
    at = rng.randrange(len(data))
    data[at : at + size] = (rng.choice(LENGTHS) % (1 << 8 * size)).to_bytes(size, "little")


def move(rng: random.Random, data: bytearray) -> None:
    """A piece of the file somewhere else, over what is there or between."""
    start, to = rng.randrange(len(data)), rng.randrange(len(data))
    piece = data[start : start + rng.randrange(1, 40)]
    data[to : to + rng.choice([0, len(piece)])] = piece


def digits(rng: random.Random, data: bytearray) -> None:
    """In formats with lengths in text: other digits."""
    places = [i for i, octet in enumerate(data) if chr(octet) in "0123456789"]
    if places:
        at = rng.choice(places)
        data[at : at + 1] = rng.choice([b"9", b"99999", b"-1", b"1" * 30, b"[", b"(" * 50])


KINDS = [flip, truncate, splice, move, digits]


def mutated(seed: int, originals: list[bytes]) -> bytes:
    rng = random.Random(seed)
    data = bytearray(rng.choice(originals))
    if data.startswith(b"PK") and rng.random() < 0.6:  # behind the checksums, which notice most of the others
        with zipfile.ZipFile(io.BytesIO(data)) as source:
            members = {info: bytearray(source.read(info)) for info in source.infolist()}
        stream = io.BytesIO()
        mutate(rng, rng.choice(list(members.values())))
        with zipfile.ZipFile(stream, "w") as target:
            for info, member in members.items():
                target.writestr(info, bytes(member))
        return stream.getvalue()
    mutate(rng, data)
    return bytes(data)


def mutate(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if data:
            rng.choice(KINDS)(rng, data)


def originals(format: str) -> list[bytes]:
    """Files of this format, of every dtype, with and without names, scalars and sparse arrays."""
    every = {f"name:{name}": nd.array([[0, 1, 2], [3, 4, 5]], dtype=name) for name in NAMES}
    contents: list[Any] = [every, [nd.arange(200), nd.zeros((0, 3))], {"scalar": nd.array(1), "x": nd.ones((2, 1, 2))}]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        for content in contents:
            nd.save(path, content, format=format)
            found.append(path.read_bytes())
    if format == "mxnet":
        found += [path.read_bytes() for path in sorted((Path(__file__).parent / "data").glob("*.params"))]
    if format == "npz":
        packed = io.BytesIO()
        np.savez_compressed(packed, a=np.asfortranarray(np.arange(600.0).reshape(20, 30)), b=np.zeros(50))
        found.append(packed.getvalue())
    return found


def storm(format: str, first: int, count: int) -> dict[str, int]:
    """Load so many mutations; with what was said of them counted."""
    files = originals(format)
    for data in files:  # what the first load imports is no part of the measurement
        attempt(data, format)
    limit_space()
    outcomes = {"loaded": 0, "refused": 0}
    tracemalloc.start()
    for seed in range(first, first + count):
        data = mutated(seed, files)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        outcomes[attempt(data, format if seed % 2 else None)] += 1
        used = tracemalloc.get_traced_memory()[1] - before
        assert used <= FACTOR * len(data) + SLACK, f"seed {seed}: {used} bytes for a file of {len(data)}"
    return outcomes


def attempt(data: bytes, format: str | None) -> str:
    try:
        found = nd.load_frombuffer(data, format=format)
    except nd.FileFormatError as error:
        assert str(error).startswith("[load] <buffer>: ")
        assert len(str(error)) < 1000
        assert error.offset is not None
        return "refused"
    for array in found.values() if isinstance(found, dict) else found:
        if isinstance(array, nd.sparse.BaseSparseNDArray):
            array.check_format()
        else:
            assert array.asnumpy().nbytes == array.nbytes
    return "loaded"


def limit_space() -> None:
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run_storm(format: str, first: int, count: int) -> dict[str, int]:
    command = [sys.executable, "-X", "faulthandler", "-W", "ignore", __file__, format, str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("format", FORMATS)
def test_mutations(format: str) -> None:
    outcomes = run_storm(format, 0, 150)
    assert min(outcomes.values()) >= 5, outcomes


@pytest.mark.stress
@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("format", FORMATS)
def test_many_mutations(format: str, block: int) -> None:
    outcomes = run_storm(format, 1000 * (block + 1), 1000)
    assert min(outcomes.values()) >= 50, outcomes


def test_a_storm_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that allocates what a length says, or raises something else, ends the storm."""
    monkeypatch.setattr(sys.modules[__name__], "limit_space", lambda: None)
    load = nd.load_frombuffer

    def greedy(data: bytes, format: str | None) -> Any:
        np.empty(100 * len(data) + (2 << 20), np.uint8)
        return load(data, format)

    def careless(data: bytes, format: str | None) -> Any:
        try:
            return load(data, format)
        except nd.FileFormatError:
            raise IndexError("out of range") from None

    for broken, kind in [(greedy, AssertionError), (careless, IndexError)]:
        monkeypatch.setattr(nd, "load_frombuffer", broken)
        try:
            with pytest.raises(kind):
                storm("mxnet", 0, 20)
        finally:
            tracemalloc.stop()


# ---- hostile by intent -----------------------------------------------------------------------------------------------


def npy(header: str, elements: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + elements


def archive(method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as target:
        for name, data in members.items():
            target.writestr(name.replace("__", "."), data)
    return stream.getvalue()


def header(shape: str, descr: str = "'<f4'", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}\n"


def safe(header: str, elements: bytes = b"") -> bytes:
    text = header.encode()
    return struct.pack("<Q", len(text)) + text + elements


def pickled() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=np.array([{"a": 1}], dtype=object))
    return stream.getvalue()


HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "npz, pickles": ("npz", pickled, "array x, byte 0: has elements of type object"),
    "npz, structures": (
        "npz",
        lambda: archive(x__npy=npy(header("(1,)", "[('a', '<f4')]"), b"abcd")),
        "elements of type",
    ),
    "npz, complex": (
        "npz",
        lambda: archive(x__npy=npy(header("(1,)", "'<c8'"), b"abcdefgh")),
        "elements of type complex64",
    ),
    "npz, more elements than bytes": (
        "npz",
        lambda: archive(x__npy=npy(header("(1099511627776,)"))),
        "array x, .*0 bytes of",
    ),
    "npz, an impossible shape": ("npz", lambda: archive(x__npy=npy(header("(2**62, 0)"))), "array x"),
    "npz, many lengths": (
        "npz",
        lambda: archive(x__npy=npy(header(f"({'9223372036854775807, ' * 9}0)"))),
        "no array has",
    ),
    "npz, a negative length": ("npz", lambda: archive(x__npy=npy(header("(-1,)"), b"abcd")), "no array has the shape"),
    "npz, 65 axes": ("npz", lambda: archive(x__npy=npy(header(f"({'1, ' * 65})"), b"abcd")), "no array has the shape"),
    "npz, deep brackets": ("npz", lambda: archive(x__npy=npy("(" * 9_000)), "array x"),
    "npz, deep signs": ("npz", lambda: archive(x__npy=npy(header("-" * 9_000 + "1"))), "array x"),
    "npz, a long header": ("npz", lambda: archive(x__npy=npy(header("()") + " " * 500_000, version=2)), "array x"),
    "npz, a header of four GiB": ("npz", lambda: archive(x__npy=b"\x93NUMPY\2\0" + b"\xff" * 4), "array x"),
    "npz, no array": ("npz", lambda: archive(readme__txt=b"hello"), "not an array"),
    "npz, another method": ("npz", lambda: archive(zipfile.ZIP_LZMA, x__npy=npy(header("()"), b"abcd")), "method 14"),
    "npz, a bomb": (
        "npz",
        lambda: archive(zipfile.ZIP_DEFLATED, x__npy=npy(header("(25000000,)"), bytes(100_000_000))),
        "bytes when inflated, more than 16 times",
    ),
    "mxnet, a long name": ("mxnet", lambda: struct.pack("<QQQQQ", 0x112, 0, 0, 0, 0)[:32] + b"\0", "1 bytes more"),
    "mxnet, many arrays": (
        "mxnet",
        lambda: struct.pack("<QQQ", 0x112, 0, 1 << 40),
        "4398046511104 bytes expected, 0 left",
    ),
    "safetensors, a long header": ("safetensors", lambda: struct.pack("<Q", 1 << 60) + b"{}", "no file of safetensors"),
    "safetensors, deep": ("safetensors", lambda: safe("{" + '"a":[' * 5000), "no file of safetensors"),
    "safetensors, more than there is": (
        "safetensors",
        lambda: safe('{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}', b"abcd"),
        "no file of safetensors",
    ),
    "safetensors, an impossible shape": (
        "safetensors",
        lambda: safe('{"x":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}}'),
        "byte 0",
    ),
    "safetensors, another type": (
        "safetensors",
        lambda: safe('{"x":{"dtype":"I16","shape":[1],"data_offsets":[0,2]}}', b"ab"),
        "array x, byte 0: has elements of type I16",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(case: str) -> None:
    format, make, words = HOSTILE[case]
    data = make()
    tracemalloc.start()
    try:
        with pytest.raises(nd.FileFormatError, match=words) as caught:
            nd.load_frombuffer(data, format=format)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000
    assert used <= FACTOR * len(data) + 2 * SLACK, "bytes"


@pytest.mark.parametrize("format", FORMATS)
def test_loading_takes_a_few_times_the_file(format: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    nd.save(path, {str(i): nd.ones(1 << 18) for i in range(8)}, format=format)  # 8 MiB
    size = path.stat().st_size
    nd.load(path)
    tracemalloc.start()
    try:
        found = nd.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(array.nbytes for array in found.values()) <= size
    assert size * 0.9 < peak < size * {"mxnet": 1.1, "npz": 1.5, "safetensors": 3.2}[format]


if __name__ == "__main__":
    print(json.dumps(storm(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
