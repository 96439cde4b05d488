"""Do users' functions keep to what they declare?  `check` looks, at the price of copies.

A function that is pushed with arrays is given memory of its own instead of theirs:

    reads    a copy that cannot be written, compared afterwards; so is the array's real memory
    writes   a copy full of a *sentinel*: what is still there afterwards was not written, and a NaN with the sentinel's
             bits was computed from what nobody wrote.  Then it is copied to the array
    updates  a copy of the value, copied back

When the function has ended its copies are filled with the sentinel.  Whoever kept one and writes there later is found
when the next function ends, or at the end of the block.  Arrays that the function reaches by their handles without
having declared them are refused there, unless it made them itself (the array room's `guards`).

Memory that other libraries write too (a pinned array's) is not copied but compared: they may be the function's way.
Functions that are given variables only are watched at the handles, and nowhere else.

Owns the block, the copies and the reports.  A fault is the operation's error, like any that its function raises, so it
poisons what it writes; those found later are raised by the end of the block, or logged.   [tests/engine/test_check.py]
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from sys import getrefcount
from types import TracebackType
from typing import Any
from weakref import ref

import numpy as np

from . import lifecycle
from .errors import AccessError
from .operation import Operation
from .site import describe
from .variable import Variable

log = logging.getLogger("vardag")

#: ``(install, remove)`` of each room whose handles are to be watched
guards: list[tuple[Callable[[], None], Callable[[], None]]] = []


@dataclass(frozen=True)
class Operand:
    """An array that was declared."""

    mode: str
    label: str
    memory: Callable[[], Any]
    shared: bool
    """Others have its memory, and write it."""


class Record:
    """What the function that runs on this thread may touch."""

    def __init__(self, check: Check, op: Operation, ids: frozenset[int], variables: frozenset[Variable]) -> None:
        self.check = check
        self.op = op
        self.ids = ids
        self.variables = variables
        self.born: dict[int, ref[Any]] = {}

    def bear(self, array: Any) -> None:
        """The function has made this array."""
        self.born[id(array)] = ref(array)

    def allows(self, array: Any, variable: Variable | None) -> bool:
        """Was it declared, or made here?"""
        if id(array) in self.ids or (variable is not None and variable in self.variables):
            return True
        made = self.born.get(id(array))
        return made is not None and made() is array

    def refuse(self, label: str) -> AccessError:
        """The error of touching an array that was not declared."""
        return self.check._note(_fault(self.op, f"{label}: used, but not declared as read, write or update"))


class _Now(threading.local):
    record: Record | None = None


now = _Now()


def _fault(op: Operation, text: str) -> AccessError:
    return AccessError(f"[{op.name or 'operation'}] {text} (pushed at {describe(op.site)})")


class Kept:
    """Memory that a function was given and somebody still refers to, though it has ended."""

    def __init__(self, op: Operation, operand: Operand, base: Any) -> None:
        self.memory = base
        self.fault = _fault(op, f"{operand.label}: its memory was written after the function had ended")
        sentinel(base)
        self.bytes = base.tobytes()

    def written(self) -> bool:
        """Has it been written since?"""
        return bool(self.memory.tobytes() != self.bytes)

    def forgotten(self) -> bool:
        """Does nobody else refer to it any more?"""
        return getrefcount(self.memory) <= ALONE


class Check:
    """``with engine.check() as c:``, see `check`."""

    def __init__(self) -> None:
        self.found: list[AccessError] = []
        self._kept: list[Kept] = []
        self._outer: list[Check | None] = []

    def __enter__(self) -> Check:
        lifecycle.current()._wait_cut(None)
        self._outer.append(lifecycle.checking)
        self.begin()
        return self

    def begin(self) -> None:
        """From now on, until somebody says otherwise."""
        for install, _ in guards:
            install()
        lifecycle.checking = self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                lifecycle.current()._wait_cut(None)
        finally:
            lifecycle.checking = self._outer.pop()
            if lifecycle.checking is None:
                for _, remove in guards:
                    remove()
            late = self.late()
        if late and kind is None:
            raise late[0]

    def late(self) -> list[AccessError]:
        """Look at the memory that was kept: who has written there?"""
        out = []
        for entry in tuple(self._kept):
            written = entry.written()
            if written or entry.forgotten():
                with suppress(ValueError):  # another thread has taken it off
                    self._kept.remove(entry)
                    if written:
                        out.append(self._note(entry.fault))
                        log.error("%s", entry.fault)
        return out

    def _note(self, fault: AccessError) -> AccessError:
        self.found.append(fault)
        return fault

    # ================================================================================================ one function
    def watch(
        self,
        op: Operation,
        fn: Callable[..., Any],
        operands: Sequence[Operand] = (),
        ids: Iterable[int] = (),
        variables: Iterable[Variable] = (),
    ) -> Callable[[], Any]:
        """What runs instead of ``fn``."""
        record = Record(self, op, frozenset(ids), frozenset(variables))

        def watched() -> Any:
            outer, now.record = now.record, record
            try:
                return self._run(op, fn, operands)
            finally:
                now.record = outer

        return watched

    def resolved(
        self,
        op: Operation,
        fn: Callable[..., Any],
        given: tuple[Sequence[Any], ...],
        memories: Sequence[Callable[[], Any]],
        found: Mapping[str, Sequence[Variable]],
    ) -> Callable[[], Any]:
        """`watch` for a push with arrays among its (reads, writes, updates): their memories, and all variables."""
        arrays = [
            (mode, f"{mode}s[{i}]", x)
            for mode, xs in zip(("read", "write", "update"), given, strict=True)
            for i, x in enumerate(xs)
            if not isinstance(x, Variable)
        ]
        operands = [
            Operand(mode, f"{place} {_described(x)}", memory, bool(getattr(x, "__vardag_lent__", bool)()))
            for (mode, place, x), memory in zip(arrays, memories, strict=True)
        ]
        variables = [v for vs in found.values() for v in vs]
        return self.watch(op, fn, operands, [id(x) for _, _, x in arrays], variables)

    def _run(self, op: Operation, fn: Callable[..., Any], operands: Sequence[Operand]) -> Any:
        real = [operand.memory() for operand in operands]
        if not all(isinstance(memory, np.ndarray) for memory in real):
            return fn(*real)  # of another library's handles: only ours are watched
        before = [memory.tobytes() for memory in real]
        copies = [memory if o.shared else _copied(o, memory) for o, memory in zip(operands, real, strict=True)]
        try:
            out = fn(*[_lent(o, copy) for o, copy in zip(operands, copies, strict=True)])
        except ValueError as e:
            read = [o.label for o in operands if o.mode == "read"]
            if "read-only" not in str(e) or not read:
                raise
            text = f"{', '.join(read)}: declared as read, and the function writes to it"
            raise self._note(_fault(op, text)) from e
        found: list[str] = []
        copy = memory = None
        for o, memory, copy, old in zip(operands, real, copies, before, strict=True):
            past = memory.tobytes() != old  # by another way than the one it was given
            if o.mode == "read":
                if past:
                    found.append(f"{o.label}: declared as read, and its memory is written while the function runs")
                elif copy.tobytes() != old:
                    found.append(f"{o.label}: declared as read, and the function writes to it")
            elif not o.shared and not past:
                if o.mode == "write" and left(copy):
                    found.append(f"{o.label}: declared as write, and not all of it is written, or what was not is read")
                memory[...] = copy
        if found:
            raise self._note(_fault(op, "; ".join(found)))
        bases = [(o, ref(copy)) for o, copy in zip(operands, copies, strict=True) if not o.shared]
        del copies, real, copy, memory
        self._kept += [Kept(op, o, kept) for o, base in bases if (kept := base()) is not None]
        self.late()
        return out


def _described(array: Any) -> str:
    return f"{np.dtype(array.dtype)}{array.shape}" if hasattr(array, "dtype") else type(array).__name__


def _copied(operand: Operand, memory: Any) -> Any:
    copy = memory.copy()
    if operand.mode == "write":
        sentinel(copy)
    return copy


def _lent(operand: Operand, memory: Any) -> Any:
    view = memory.view()
    if operand.mode == "read":
        view.flags.writeable = False
    return view


# ==================================================================================================== the sentinel
# As the payload of a NaN it survives arithmetic.  The same one in three lengths.
NANS = {2: ("u2", 0x7ED1), 4: ("u4", 0x7FDA3C69), 8: ("u8", 0x7FFB478D20000000)}


def _floats(memory: Any) -> Any:
    """The memory as floats of a NumPy length; None for what is none."""
    if memory.dtype.kind == "c":
        memory = memory.reshape(-1).view(memory.real.dtype)
    return memory if memory.dtype.kind == "f" and memory.dtype.itemsize in NANS else None


def _bytes(memory: Any) -> Any:
    """The bytes of a C-ordered array, an element a row."""
    return memory.reshape(-1).view(np.uint8).reshape(memory.size, memory.dtype.itemsize)


def sentinel(memory: Any) -> None:
    """Fill memory, which is C-ordered, with what no function writes by chance."""
    if not memory.size:
        return
    floats = _floats(memory)
    if floats is None:
        _bytes(memory)[...] = np.resize(PATTERN, memory.dtype.itemsize)
    else:
        unsigned, bits = NANS[floats.dtype.itemsize]
        floats.view(unsigned)[...] = bits


def left(memory: Any) -> bool:
    """Is some of the sentinel there, or in what was computed from it?

    Of integers it is only seen where it stands unchanged; and in those of few bits it may have been written by chance:
    only so many count that this has less than a millionth of a chance.
    """
    if not memory.size:
        return False
    floats = _floats(memory)
    if floats is not None:
        unsigned, bits = NANS[floats.dtype.itemsize]
        sign = 1 << (8 * floats.dtype.itemsize - 1)
        return bool(((floats.view(unsigned) & (sign - 1)) == bits).any())
    same = int(np.count_nonzero((_bytes(memory) == np.resize(PATTERN, memory.dtype.itemsize)).all(axis=1)))
    if not same or memory.dtype.kind == "b":
        return bool(same > 0)  # no truth value has this pattern
    chance = same * (math.log(math.e * memory.size / same) - 8 * memory.dtype.itemsize * math.log(2))
    return bool(chance < math.log(1e-6))


PATTERN = np.array([0xA5, 0xC3, 0x5A, 0x96, 0x3C, 0x69, 0xD2, 0x87], np.uint8)


ALONE = 2  # references: the attribute's, and the one of who counts


def check() -> Check:
    """``with check() as c:`` finds users' functions that touch what they have not declared.

    Every function that is pushed in the block (`Engine.push`, `push_sync`) is run on copies of its arrays; `c.found`
    lists what was found, as `AccessError`s that name the operation, the array and the line of the push.  Found are:
    arrays that are used by their handles without having been declared, for reading or writing, also where only another
    array's variable was declared; what is declared as read and written; what is declared as write and not wholly
    written, or read before; and memory that is written after the function has ended.  ``VARDAG_CHECK=1`` checks
    everything from the import on.

    What it cannot see: Python objects that are no arrays, undeclared memory that was lent by DLPack and is only read,
    and what an `push_async` function does.

    Sync: blocks at its beginning and its end until the current engine has nothing pending.

    Raises
    ------
    AccessError
        As the operation's error, at its waits; of what is written too late, at the end of the block.

    Examples
    --------
    >>> from vardag import engine, nd
    >>> x, y = nd.ones((2,)), nd.zeros((2,))
    >>> def add(x, y):
    ...     y += x
    >>> with engine.check():
    ...     op = engine.current().push(add, reads=[x], writes=[y])  # an update
    ...     try:
    ...         op.wait()
    ...     except engine.AccessError as error:
    ...         print(str(error).partition(" (")[0])
    [add] writes[0] float32(2,): declared as write, and not all of it is written, or what was not is read
    """
    return Check()
