"""The format of MXNet 1.x's `nd.save`, in which `.params` files are written; and how files are read without trust.

All numbers are little-endian.  A file is::

    uint64 0x112, uint64 0, uint64 count, the arrays, uint64 names (0 or count), each uint64 length and UTF-8 text

An array begins with its version, and an array without a value ends after its shape::

    V3, V2   uint32 0xF993FACA / 0xF993FAC9, int32 storage, int32 axes, int64 lengths, context, int32 type, elements
    V1       uint32 0xF993FAC8, uint32 axes, int64 lengths, context, int32 type, elements
    V0       uint32 axes, uint32 lengths, context, int32 type, elements

A context is two int32.  V3 is V2 with NumPy's shapes: axes 0 is a scalar, -1 no value; in the others 0 is no value.
MXNet reads V3 only under `npx.set_np()` and the others only without, so all arrays of a file are of one version.
Sparse arrays (storage 1 and 2) have the shape of their elements before the shape (MXNet may write it before it knows
it: that of the indices counts); after the type, a type and a shape for each array of indices; those after the elements.
Of csr the first is indptr.  With V3 MXNet writes no sparse arrays.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from ..engine import ArgumentError
from .device import RawArray
from .dtype import BFLOAT16, BOOL, DType, missing
from .shape import Shape
from .sparse_arrays import KINDS

MAGIC = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
TYPES = {0: "float32", 1: "float64", 2: "float16", 3: "uint8", 4: "int32", 5: "int8", 6: "int64", 7: "bool"}
if BFLOAT16 is not None:
    TYPES[12] = "bfloat16"
FLAGS = {np.dtype(name): flag for flag, name in TYPES.items()}
#: what later versions of MXNet write and this library has no arrays of: the name, and the bytes of an element
FOREIGN = {8: ("int16", 2), 9: ("uint16", 2), 10: ("uint32", 4), 11: ("uint64", 8), 12: ("bfloat16", 2)}
SPARSE = {1: ("row_sparse", 1), 2: ("csr", 2)}
STORAGE = {stype: storage for storage, (stype, _) in SPARSE.items()}
MOST_AXES = 64  # NumPy's limit
PIECE = 1 << 20  # bytes read at once from what is compressed


class Parts(NamedTuple):
    """A sparse array on the host: data, indices and, for csr, indptr."""

    stype: str
    shape: Shape
    parts: tuple[RawArray, ...]


class FileFormatError(ArgumentError):
    """A file that is damaged, of no known format, or holds what the library has no arrays for.

    `file`: its name.   `array`: the name, or the number, of the array it is about; None for the file as a whole.
    `offset`: the byte where reading stopped; None if that is not known.
    """

    def __init__(self, message: str, file: str = "", array: str | int | None = None, offset: int | None = None) -> None:
        super().__init__(message)
        self.file, self.array, self.offset = file, array, offset


class Source:
    """A stream and how many bytes it has: nothing is read, nor memory taken for it, before it is known to be there."""

    def __init__(self, stream: BinaryIO, size: int, file: str) -> None:
        self.stream, self.size, self.file = stream, size, file
        self.offset = 0
        #: the array being read
        self.array: str | int | None = None

    def fault(self, reason: str, offset: int | None = None) -> FileFormatError:
        """The error to raise."""
        at = self.offset if offset is None else offset
        array = "" if self.array is None else f"array {clipped(self.array)}, "
        return FileFormatError(f"[load] {clipped(self.file)}: {array}byte {at}: {reason}", self.file, self.array, at)

    def need(self, count: int, what: str) -> None:
        """Raise unless `count` more bytes are there."""
        left = self.size - self.offset
        if count > left:
            raise self.fault(f"{what}: {clipped(count)} bytes expected, {left} left")

    def skip(self, count: int, what: str) -> None:
        """Pass over bytes."""
        self.need(count, what)
        self.stream.seek(count, os.SEEK_CUR)
        self.offset += count

    def take(self, count: int, what: str) -> bytes:
        """The next bytes."""
        self.need(count, what)
        data = self.stream.read(count)
        if len(data) != count:
            raise self.fault(f"{what}: the file became shorter while it was read")
        self.offset += count
        return data

    def numbers(self, form: str, what: str) -> tuple[Any, ...]:
        """The next numbers, as `struct` spells them."""
        form = "<" + form
        return struct.unpack(form, self.take(struct.calcsize(form), what))

    def number(self, form: str, what: str) -> int:
        """The next number."""
        return int(self.numbers(form, what)[0])

    def nbytes(self, shape: Shape, itemsize: int) -> int:
        """The bytes of so many elements; an error for a shape that no array can have."""
        most = itemsize * math.prod(max(n, 1) for n in shape[: MOST_AXES + 1])
        if len(shape) > MOST_AXES or any(n < 0 for n in shape) or most >= 1 << 63:
            raise self.fault(f"no array has the shape {clipped(shape)}")
        return itemsize * math.prod(shape)

    def elements(self, shape: Shape, dtype: DType) -> RawArray:
        """The next elements, in memory of their own."""
        count = self.nbytes(shape, dtype.itemsize)
        self.need(count, "elements")
        raw: RawArray = np.empty(shape, dtype.newbyteorder("<"))
        octets = raw.reshape(-1).view(np.uint8)
        done = 0
        while done < count:
            # A plain file fills the memory directly; the members of an archive are copied piece by piece.
            got = self.stream.readinto(octets[done : done + 64 * PIECE].data)  # type: ignore[attr-defined]
            if not got:
                raise self.fault("elements: the file became shorter while it was read")
            done += got
        self.offset += count
        return native(raw)


def native(raw: RawArray) -> RawArray:
    """In the byte order of the machine; a truth value is 0 or 1, whatever its byte was."""
    if raw.dtype == BOOL:
        flat = raw.reshape(-1)
        np.not_equal(flat.view(np.uint8), 0, out=flat)
        return raw
    return raw.astype(raw.dtype.newbyteorder("="), copy=False)


def clipped(value: object, most: int = 200) -> str:
    """A value from a file or the caller in a message: never longer than a few lines, whatever it is."""
    if isinstance(value, int):
        return str(value) if value.bit_length() < 256 else "more than 2**255"
    if isinstance(value, tuple):
        inner = ", ".join(clipped(n) for n in value[:8])
        return f"({inner}, ...)" if len(value) > 8 else f"({inner}{',' * (len(value) == 1)})"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else str(value)
    return text if len(text) <= most else text[:most] + "..."


def _shape(source: Source, wide: bool = True, signed: bool = True) -> Shape | None:
    """A shape with its number of axes before it; None for -1 axes."""
    axes = source.number("i" if signed else "I", "number of axes")
    return None if axes == -1 and signed else _lengths(source, axes, wide)


def _lengths(source: Source, axes: int, wide: bool) -> Shape:
    if not 0 <= axes <= MOST_AXES:
        raise source.fault(f"{axes} axes, or no version of MXNet's arrays", source.offset - 4)
    return source.numbers(f"{axes}{'q' if wide else 'I'}", "lengths of the axes")


def _array(source: Source) -> tuple[RawArray | Parts | None, str]:
    """The next array; or None, when all of it has been passed over, and why it cannot be had."""
    version = source.number("I", "version")
    storage = 0
    if version in (V2, V3):
        storage = source.number("i", "storage type")
        if storage in SPARSE:
            _shape(source)
        elif storage == -1:  # MXNet's mark of an array that has no value yet
            source.skip(4, "number of axes")
            return None, "has no value"
        elif storage != 0:
            raise source.fault(f"unknown storage type {storage}", source.offset - 4)
        shape = _shape(source)
        nothing = shape is None or (version == V2 and not shape)
    else:
        shape = _shape(source, signed=False) if version == V1 else _lengths(source, version, wide=False)
        nothing = not shape
    if nothing or shape is None:
        return None, "has no value"
    source.skip(8, "context")  # arrays are loaded on the CPU, wherever they lived
    flag = source.number("i", "element type")
    if flag not in TYPES and flag not in FOREIGN:
        raise source.fault(f"unknown element type {flag}", source.offset - 4)
    if storage in SPARSE:
        return _sparse(source, storage, shape, flag)
    if flag not in TYPES:
        source.skip(source.nbytes(shape, _itemsize(flag)), "elements")
        return None, _unknown(flag)
    return source.elements(shape, np.dtype(TYPES[flag])), ""


def _sparse(source: Source, storage: int, shape: Shape, flag: int) -> tuple[Parts | None, str]:
    """What follows the type of a sparse array."""
    stype, count = SPARSE[storage]
    kinds, forms = [], []
    for _ in range(count):
        kinds.append(source.number("i", "type of indices"))
        if kinds[-1] not in TYPES and kinds[-1] not in FOREIGN:
            raise source.fault(f"unknown type of indices {kinds[-1]}", source.offset - 4)
        forms.append(_shape(source) or ())
    # the last array of indices has one for each element, or for each row
    forms.append(forms[-1] + shape[1:] if stype == "row_sparse" else forms[-1])
    kinds.append(flag)
    source.nbytes(shape, 8)
    sizes = [source.nbytes(form, _itemsize(kind)) for form, kind in zip(forms, kinds, strict=True)]
    foreign = [kind for kind in kinds if kind not in TYPES]
    if foreign:
        source.skip(sum(sizes), "elements")
        return None, _unknown(foreign[0])
    start = source.offset
    data = source.elements(forms[-1], np.dtype(TYPES[flag]))
    structure = [source.elements(form, np.dtype(TYPES[k])) for form, k in zip(forms[:-1], kinds, strict=False)]
    if any(part.dtype.kind not in "iu" for part in structure):
        raise source.fault("indices of whole numbers expected", start)
    structure = [part.astype(np.int64, copy=False) for part in reversed(structure)]  # indptr comes first in a file
    if stype == "csr" and not structure[1].size and not data.size:  # nothing was ever stored
        structure[1] = np.zeros(min(shape[0], source.size) + 1, np.int64)
    why = KINDS[stype]._fault(shape, data.shape, *structure)
    if why is not None:
        raise source.fault(f"{stype} {clipped(shape)}: {clipped(why)}", start)
    return Parts(stype, shape, (data, *structure)), ""


def _unknown(flag: int) -> str:
    name = FOREIGN[flag][0]
    return f"has elements of type {name}: one of {', '.join(TYPES.values())} expected{missing(name)}"


def _itemsize(flag: int) -> int:
    return FOREIGN[flag][1] if flag not in TYPES else np.dtype(TYPES[flag]).itemsize


def read(source: Source) -> list[RawArray | Parts] | dict[str, RawArray | Parts]:
    """The arrays of a file: a dict if they have names."""
    magic, reserved, count = source.numbers("QQQ", "header")
    if magic != MAGIC or reserved != 0:
        raise source.fault("no file of MXNet's arrays", 0)
    source.need(4 * count, f"{count} arrays")  # none is smaller
    arrays: list[RawArray | Parts] = []
    for i in range(count):
        source.array = i
        start = source.offset
        raw, why = _array(source)
        if raw is None:
            _refuse(source, i, count, source.fault(why, start), why)
        else:
            arrays.append(raw)
    names = _names(source, count)
    return dict(zip(names, arrays, strict=True)) if names else arrays


def _refuse(source: Source, number: int, count: int, plain: FileFormatError, why: str) -> NoReturn:
    """Raise what tells that this array cannot be had: by its name, which comes after all arrays."""
    try:
        for source.array in range(number + 1, count):
            _array(source)
        names = _names(source, count)
    except FileFormatError:
        raise plain from None
    source.array = names[number] if names else number
    raise source.fault(why, plain.offset)


def _names(source: Source, count: int) -> list[str]:
    source.array = None
    named = source.number("Q", "number of names")
    if named not in (0, count):
        raise source.fault(f"{named} names for {count} arrays", source.offset - 8)
    names: dict[str, None] = {}
    for i in range(named):
        source.array = i
        data = source.take(source.number("Q", "length of the name"), "name")
        try:
            name = data.decode("utf-8")
        except UnicodeDecodeError:
            raise source.fault(f"the name {clipped(repr(data))} is not UTF-8", source.offset - len(data)) from None
        if name in names:
            raise source.fault(f"a second array of the name {clipped(repr(name))}", source.offset - len(data))
        names[name] = None
    source.array = None
    if source.offset != source.size:
        raise source.fault(f"{source.size - source.offset} bytes more than the file should have")
    return list(names)


def write(stream: BinaryIO, names: Sequence[str] | None, arrays: Sequence[RawArray | Parts]) -> None:
    """A file that MXNet 1.x reads; V3 if one array has no axes, which V2 cannot say."""
    version = V3 if any(not array.shape for array in arrays) else V2
    stream.write(struct.pack("<QQQ", MAGIC, 0, len(arrays)))
    for array in arrays:
        data, *structure = (array,) if not isinstance(array, Parts) else array.parts
        structure.reverse()
        stream.write(struct.pack("<Ii", version, STORAGE[array.stype] if isinstance(array, Parts) else 0))
        if isinstance(array, Parts):
            stream.write(_packed(data.shape))
        stream.write(_packed(array.shape) + struct.pack("<iii", 1, 0, FLAGS[data.dtype]))
        for part in structure:
            stream.write(struct.pack("<i", FLAGS[part.dtype]) + _packed(part.shape))
        for part in (data, *structure):
            stream.write(octets(part))
    stream.write(struct.pack("<Q", len(names or ())))
    for name in names or ():
        text = name.encode("utf-8")
        stream.write(struct.pack("<Q", len(text)) + text)


def _packed(shape: Shape) -> bytes:
    return struct.pack(f"<i{len(shape)}q", len(shape), *shape)


def octets(raw: RawArray) -> memoryview:
    """The elements as they are written: in C order, little-endian.  A copy only if they are not."""
    return np.ascontiguousarray(raw, raw.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
