"""Arrays in files: MXNet 1.x's own format (_mxnet_format.py), NumPy's `.npz`, and safetensors.

Saving takes the values as of the call, waits for them, and only then touches the disk; the file appears whole or not at
all.  Loading trusts nothing: every length is compared with the bytes that are there before memory is taken for it.
"""

from __future__ import annotations

import io
import os
import secrets
import stat
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError, Error, Operation
from . import _mxnet_format as mxnet
from ._mxnet_format import PIECE, FileFormatError, Source, clipped, native, octets
from .array import Array
from .buffer import Lease
from .context import cpu
from .device import RawArray
from .dtype import BFLOAT16, KNOWN, NAMES, is_bfloat16, missing
from .ndarray import NDArray
from .sparse_arrays import KINDS, BaseSparseNDArray

#: a compressed archive may become so many times larger, and a megabyte
INFLATION = 16
#: of the arrays in an archive: enough for 64 axes, and too short to keep Python's parser busy
LONGEST_HEADER = 2048
SAFE_TYPES = {
    "F16": "float16", "F32": "float32", "F64": "float64", "I8": "int8", "I32": "int32", "I64": "int64", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip
if BFLOAT16 is not None:
    SAFE_TYPES["BF16"] = "bfloat16"


class MissingPackageError(Error, ImportError):
    """A file of a format whose package is not installed."""


def save(fname: str | os.PathLike[str], data: Any, format: str | None = None) -> None:
    """Write arrays to a file, which MXNet 1.x can read.

    Parameters
    ----------
    fname : str or path
        An old file of this name is replaced at the end, in one step; until then, and if anything fails, it stays.
    data : array, sequence of arrays, or dict of str to array
        Sparse arrays in "mxnet" only.   Without names, "npz" and "safetensors" call them arr_0, arr_1, ...
    format : str
        "mxnet", "npz" or "safetensors" (which needs the package safetensors).  Default: by the suffix of `fname`,
        ".npz" or ".safetensors"; any other means "mxnet".

    Sync: blocks until the values as of this call are there, and on the disk.
    Raises: ArgumentError, ArgumentTypeError at the call; the error that poisoned an array, with a note that names it;
    OSError; MissingPackageError.

    MXNet reads a file with an array of shape () only under `npx.set_np()`.

    >>> from vardag import nd
    >>> nd.save("model.params", {"weight": nd.ones((2, 3)), "bias": nd.zeros(3)})
    >>> {name: array.shape for name, array in nd.load("model.params").items()}
    {'weight': (2, 3), 'bias': (3,)}
    """
    path = _path("save", fname)
    names, arrays = _items(data)
    kind = _kind("save", format) or _BY_SUFFIX.get(os.path.splitext(path)[1].lower(), "mxnet")
    form = _FORMATS[kind]
    for name in names or ():
        if (why := form.unfit(name)) is not None:
            raise ArgumentError(f"[save] {clipped(path)}: the name {clipped(repr(name))} {why}")
    labels: Sequence[str] | range = names if names is not None else range(len(arrays))
    _check_kinds(path, kind, labels, arrays)
    # the values as of now, without copies
    held = [[part._hold() for part in (a._parts if isinstance(a, BaseSparseNDArray) else (a,))] for a in arrays]
    values = [
        mxnet.Parts(array.stype, array.shape, tuple(views)) if isinstance(array, BaseSparseNDArray) else views[0]
        for array, views in zip(arrays, _views(path, labels, held), strict=True)
    ]
    _replace(path, lambda stream: form.write(stream, names, values))


def load(fname: str | os.PathLike[str], format: str | None = None) -> Any:
    """The arrays of a file, on the CPU: a dict if they have names, else a list.

    Parameters
    ----------
    fname : str or path
        A file of MXNet 1.x (versions 0 to 3, dense and sparse arrays), of `numpy.savez`, or of safetensors.
    format : str
        "mxnet", "npz" or "safetensors"; anything else is then an error.  Default: what the first bytes say.

    Files of "npz" and "safetensors" give a dict always; a file of "mxnet" without arrays is a list, as in MXNet.
    The dict has the order of the file, which in "safetensors" is not that of the saved dict.
    Sync: blocks while it reads.   Raises: FileFormatError, a ValueError that names the file, the array and the byte;
    OSError; MissingPackageError; ArgumentError, ArgumentTypeError for a bad `fname` or `format`.

    >>> from vardag import nd
    >>> nd.save("two.params", [nd.ones(2), nd.arange(3)])
    >>> [x.shape for x in nd.load("two.params")]
    [(2,), (3,)]
    """
    path = _path("load", fname)
    kind = _kind("load", format)
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for a writer, a device may have no end
        raise ArgumentError(f"[load] {clipped(path)}: not a regular file")
    with open(path, "rb") as stream:
        return _load(Source(stream, os.fstat(stream.fileno()).st_size, path), kind)


def load_frombuffer(buf: Any, format: str | None = None) -> Any:
    """As `load`, of the bytes of a file.

    >>> from pathlib import Path
    >>> from vardag import nd
    >>> nd.save("one.params", [nd.ones(2)])
    >>> nd.load_frombuffer(Path("one.params").read_bytes())[0].shape
    (2,)
    """
    try:
        data = bytes(memoryview(buf))
    except (TypeError, ValueError, BufferError):
        raise ArgumentTypeError(f"[load_frombuffer] {type(buf).__name__}: bytes expected") from None
    return _load(Source(io.BytesIO(data), len(data), "<buffer>"), _kind("load_frombuffer", format))


# ---- arguments -------------------------------------------------------------------------------------------------------


def _path(what: str, fname: Any) -> str:
    try:
        path = os.fspath(fname)
    except TypeError:
        path = None
    if not isinstance(path, str):
        raise ArgumentTypeError(f"[{what}] {type(fname).__name__}: the name of a file expected")
    if "\0" in path:
        raise ArgumentError(f"[{what}] {clipped(path)}: no file has a name with a NUL")
    return path


def _kind(what: str, format: Any) -> str | None:
    if format is None or (isinstance(format, str) and format in _FORMATS):
        return format
    raise ArgumentError(f"[{what}] format {format!r}: one of {', '.join(_FORMATS)} expected")


def _items(data: Any) -> tuple[list[str] | None, list[Array | BaseSparseNDArray]]:
    names: list[str] | None = None
    if isinstance(data, Array | BaseSparseNDArray):
        arrays = [data]
    elif isinstance(data, Mapping):
        names, arrays = list(data.keys()), list(data.values())
    elif isinstance(data, Sequence) and not isinstance(data, str | bytes):
        arrays = list(data)
    else:
        raise ArgumentTypeError(f"[save] {type(data).__name__}: an array, a sequence or a dict of arrays expected")
    for label, array in zip(names if names is not None else range(len(arrays)), arrays, strict=True):
        if names is not None and not isinstance(label, str):
            raise ArgumentTypeError(f"[save] the name {label!r}: a str expected")
        if not isinstance(array, Array | BaseSparseNDArray):
            raise ArgumentTypeError(f"[save] array {clipped(label)}: {type(array).__name__}, not an array")
    return names, arrays


def _check_kinds(
    path: str, kind: str, labels: Sequence[str] | range, arrays: Sequence[Array | BaseSparseNDArray]
) -> None:
    for label, array in zip(labels, arrays, strict=True):
        if isinstance(array, BaseSparseNDArray) and (kind != "mxnet" or not all(a.shape for a in arrays)):
            beside = "no sparse arrays" if kind != "mxnet" else "none beside arrays of shape ()"
            raise ArgumentError(
                f"[save] {clipped(path)}: array {clipped(label)} is {array.stype}, and files of {kind} have {beside}; "
                "save it by tostype('default')"
            )
        if kind == "npz" and is_bfloat16(np.dtype(array.dtype)):
            raise ArgumentError(
                f"[save] {clipped(path)}: array {clipped(label)} is of bfloat16, which NumPy's files cannot say; "
                "convert it with .astype, or save it as safetensors"
            )


def _unfit(name: str) -> str | None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "cannot be written as UTF-8"
    return None


def _unfit_mxnet(name: str) -> str | None:
    return "has a NUL, where MXNet would end it" if "\0" in name else _unfit(name)


def _unfit_npz(name: str) -> str | None:
    if "\0" in name or "\\" in name:
        return "has a NUL or a backslash, which names in archives cannot have"
    return _unfit(name) or ("is too long" if len(name.encode("utf-8")) > 65_000 else None)


def _unfit_safetensors(name: str) -> str | None:
    return "is one that safetensors keeps for itself" if name == "__metadata__" else _unfit(name)


# ---- saving ----------------------------------------------------------------------------------------------------------


def _views(
    path: str, labels: Sequence[str] | range, held: Sequence[Sequence[tuple[Lease, Operation | None]]]
) -> list[list[RawArray]]:
    """The values of each array's parts, when they are there.  Their bytes stay as long as the leases live."""
    for label, parts in zip(labels, held, strict=True):
        for saved, writer in parts:
            if writer is not None:
                try:
                    saved.buffer.engine.wait_op(writer, None)
                    writer.raise_error()
                except Exception as error:
                    error.add_note(f"[save] {clipped(path)}: array {clipped(label)}; the file is as it was")
                    raise
    return [[saved.buffer.view(saved.shape, saved.strides, saved.offset) for saved, _ in parts] for parts in held]


def _replace(path: str, write: Callable[[BinaryIO], None]) -> None:
    """Write a file beside the old one, and put it in its place when all of it is on the disk."""
    path = os.path.realpath(path)  # a link goes on pointing there
    folder, name = os.path.split(path)
    mode = None
    if os.path.exists(path):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise ArgumentError(f"[save] {clipped(path)}: not a regular file")
    new = os.path.join(folder, f".{name[:40]}.{secrets.token_hex(8)}.tmp")
    stream = None
    try:
        stream = open(new, "xb")  # noqa: SIM115  (an interrupt between the two steps of `with` would leave it open)
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
        if mode is not None:
            os.chmod(new, stat.S_IMODE(mode))
        os.replace(new, path)
    except BaseException:
        if stream is not None:
            with suppress(OSError):  # of a disk that is full
                stream.close()
        with suppress(FileNotFoundError):
            os.unlink(new)
        raise
    if os.name == "posix":  # else the new name may be lost with the power
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _named(names: Sequence[str] | None, arrays: Sequence[RawArray]) -> dict[str, RawArray]:
    return dict(zip(names if names is not None else [f"arr_{i}" for i in range(len(arrays))], arrays, strict=True))


def _write_npz(stream: BinaryIO, names: Sequence[str] | None, arrays: Sequence[RawArray]) -> None:
    archive = entry = None
    try:
        archive = zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED)
        for name, raw in _named(names, arrays).items():
            member = zipfile.ZipInfo(name + ".npy")  # with one date, so that equal arrays give equal files
            descr = np.lib.format.dtype_to_descr(raw.dtype.newbyteorder("<"))
            header = {"descr": descr, "fortran_order": False, "shape": raw.shape}
            entry = archive.open(member, "w", force_zip64=True)
            np.lib.format.write_array_header_1_0(entry, header)
            entry.write(octets(raw))
            entry.close()
        archive.close()
    except BaseException:  # an interrupt may come anywhere; what is left open complains from its finalizer
        if entry is not None:
            with suppress(Exception):
                entry.close()
        if archive is not None:
            archive.fp = None
        raise


def _write_safetensors(stream: BinaryIO, names: Sequence[str] | None, arrays: Sequence[RawArray]) -> None:
    _safetensors()
    from safetensors.numpy import save as to_bytes

    stream.write(to_bytes({name: np.asarray(raw, order="C") for name, raw in _named(names, arrays).items()}))


def _safetensors() -> Any:
    try:
        import safetensors
    except ImportError:
        message = "files of this format need the package safetensors: pip install 'vardag[safetensors]'"
        raise MissingPackageError(message) from None
    return safetensors


# ---- loading ---------------------------------------------------------------------------------------------------------


def _load(source: Source, kind: str | None) -> Any:
    head = source.stream.read(16)
    source.stream.seek(0)
    found = kind or _by_content(head)
    if found is None:
        raise source.fault("neither a file of MXNet's arrays, nor an archive of NumPy's, nor safetensors")
    result = _FORMATS[found].read(source)
    if isinstance(result, dict):
        return {name: _loaded(value) for name, value in result.items()}
    return [_loaded(value) for value in result]


def _loaded(value: RawArray | mxnet.Parts) -> NDArray | BaseSparseNDArray:
    if isinstance(value, mxnet.Parts):
        return KINDS[value.stype]._of(value.shape, *(NDArray._from_host(part, cpu()) for part in value.parts))
    return NDArray._from_host(value, cpu())


def _by_content(head: bytes) -> str | None:
    if head[8:9] == b"{":
        return "safetensors"
    if head[:8] == mxnet.MAGIC.to_bytes(8, "little"):
        return "mxnet"
    return "npz" if head[:4] in (b"PK\3\4", b"PK\5\6") else None


def _read_npz(source: Source) -> dict[str, RawArray]:
    try:
        with zipfile.ZipFile(source.stream) as archive:
            return _members(source, archive)
    except (FileFormatError, MemoryError):
        raise
    except Exception as error:  # the packages that read it have many kinds
        raise source.fault(f"no archive of NumPy's: {clipped(error)}") from error


def _members(source: Source, archive: zipfile.ZipFile) -> dict[str, RawArray]:
    arrays: dict[str, RawArray] = {}
    members = archive.infolist()
    total = sum(member.file_size for member in members)
    if total > INFLATION * source.size + (1 << 20):
        raise source.fault(f"{total} bytes when inflated, more than {INFLATION} times the file's {source.size}")
    for member in members:
        name = member.filename.removesuffix(".npy")
        source.array, source.offset = name, member.header_offset
        if name == member.filename:
            raise source.fault("not an array: its name does not end with .npy")
        if name in arrays:
            raise source.fault("a second array of this name")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise source.fault(f"compressed by method {member.compress_type}, which NumPy does not use")
        with archive.open(member) as entry:
            arrays[name] = _read_npy(entry, member.file_size, source)
    source.array = None
    return arrays


def _read_npy(entry: Any, size: int, outer: Source) -> RawArray:
    """The array of a member, which inflates to `size` bytes at most.  No pickles: they would be of type object."""
    version = np.lib.format.read_magic(entry)
    if version not in ((1, 0), (2, 0)):
        raise outer.fault(f"version {version} of NumPy's format, which only structures need")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = header(entry, max_header_size=LONGEST_HEADER)
    except MemoryError:  # Python's parser says so of expressions that are too deep
        raise outer.fault("its header is no description of an array") from None
    if dtype.newbyteorder("=") not in KNOWN:
        raise outer.fault(f"has elements of type {clipped(dtype)}: one of {', '.join(NAMES)} expected")
    start = entry.tell()
    if outer.nbytes(shape, dtype.itemsize) != size - start:
        raise outer.fault(f"{size - start} bytes of elements for the shape {clipped(shape)} of {dtype}")
    raw: RawArray = np.empty(shape[::-1] if fortran else shape, dtype)
    flat = raw.reshape(-1).view(np.uint8)
    done = 0
    while done < flat.size:
        piece = entry.read(min(PIECE, flat.size - done))
        if not piece:
            raise outer.fault("the elements end too early")
        flat[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    entry.read(1)  # compares the checksum
    raw = native(raw)
    return np.array(raw.T, order="C") if fortran else raw


def _read_safetensors(source: Source) -> dict[str, RawArray]:
    package = _safetensors()
    data = source.take(source.size, "file")
    source.offset = 0
    try:
        found = package.deserialize(data)
    except package.SafetensorError as error:
        raise source.fault(f"no file of safetensors: {clipped(error)}") from None
    arrays: dict[str, RawArray] = {}
    for name, tensor in found:
        source.array = name
        kind = tensor["dtype"]
        if kind not in SAFE_TYPES:
            names = f"{', '.join(NAMES)} expected{missing('bfloat16' if kind == 'BF16' else kind)}"
            raise source.fault(f"has elements of type {clipped(kind)}: one of {names}")
        dtype = np.dtype(SAFE_TYPES[kind])
        shape = tuple(tensor["shape"])
        if source.nbytes(shape, dtype.itemsize) != len(tensor["data"]):
            raise source.fault(f"{len(tensor['data'])} bytes of elements for the shape {clipped(shape)} of {dtype}")
        raw = np.frombuffer(tensor["data"], dtype.newbyteorder("<")).reshape(shape)
        arrays[name] = native(np.array(raw, order="C"))
    source.array = None
    return arrays


class _Format(NamedTuple):
    read: Callable[[Source], Any]
    write: Callable[[BinaryIO, Sequence[str] | None, Sequence[Any]], None]
    unfit: Callable[[str], str | None]


_FORMATS = {
    "mxnet": _Format(mxnet.read, mxnet.write, _unfit_mxnet),
    "npz": _Format(_read_npz, _write_npz, _unfit_npz),
    "safetensors": _Format(_read_safetensors, _write_safetensors, _unfit_safetensors),
}
_BY_SUFFIX = {".npz": "npz", ".safetensors": "safetensors"}
