"""Do users' functions keep to what they declare?  `check` looks, at the price of copies.

A function that is pushed with arrays is given memory of its own instead of theirs:

    reads    a copy that cannot be written, compared afterwards; so is the array's real memory
    writes   a copy full of a *sentinel*: what is still there afterwards was not written, and what can be told to come
             from it was computed from what nobody wrote.  Then it is copied to the array
    updates  a copy of the value, copied back

When the function has ended its copies are filled with the sentinel.  Whoever kept one and writes there later is found
when the next function ends, or at the end of the block.  Arrays that the function reaches by their handles without
having declared them are refused there, unless it made them itself.

Memory that other libraries write too (a pinned array's) is not copied but compared: they may be the function's way.
Functions that are given variables only are watched at the handles, and nowhere else.

What is memory, a copy or a handle the array room knows (`Room`: ndarray/handles.py, sentinel.py).

Owns the block, its rules and the reports.  A fault is the operation's error, like any that its function raises, so it
poisons what it writes; those found later are raised by the end of the block, or logged.   [tests/engine/test_check.py]
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from sys import getrefcount
from types import TracebackType
from typing import Any, Protocol
from weakref import ref

from . import lifecycle
from .errors import AccessError
from .operation import Operation
from .site import describe
from .variable import Variable

log = logging.getLogger("vardag")


class Copy(Protocol):
    """Memory that a function is given instead of an array's."""

    apart: bool
    """It is a copy, and not the memory itself."""
    twice: bool
    """Another operand has some of the memory too: they are one update, and nothing of it is looked at."""

    def lent(self) -> Any:
        """What the function gets."""

    def passed(self) -> bool:
        """Was the array's own memory changed, by another way than this?"""

    def changed(self) -> bool:
        """Is it another value than the array's was?"""

    def left(self) -> bool:
        """Is something there that was not written, or computed from it?"""

    def store(self) -> None:
        """The array's memory gets its value."""

    def let_go(self) -> Any:
        """The memory if somebody still refers to it, without a value that one could read by chance; else None."""


class Room(Protocol):
    """Who knows arrays."""

    def install(self) -> None:
        """Watch the handles."""

    def remove(self) -> None:
        """No more."""

    def describe(self, array: Any) -> str:
        """An operand, in a report."""

    def copies(self, memories: list[Any], modes: list[str], shared: list[bool]) -> Sequence[Copy] | None:
        """One for each; None: it is memory of another kind."""


rooms: list[Room] = []  # one, or none without arrays


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


class undeclared:
    """``with undeclared():`` in a function that runs what cannot declare anything: all is allowed there."""

    def __enter__(self) -> None:
        self._outer, now.record = now.record, None

    def __exit__(self, *_: object) -> None:
        now.record = self._outer


def _fault(op: Operation, text: str) -> AccessError:
    return AccessError(f"[{op.name or 'operation'}] {text} (pushed at {describe(op.site)})")


class Kept:
    """Memory that a function was given and somebody still refers to, though it has ended."""

    def __init__(self, op: Operation, operand: Operand, base: Any) -> None:
        self.memory = base
        self.fault = _fault(op, f"{operand.label}: its memory was written after the function had ended")
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
        for room in rooms:
            room.install()
        lifecycle.checking = self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                lifecycle.current()._wait_cut(None)
        finally:
            lifecycle.checking = self._outer.pop()
            if lifecycle.checking is None:
                for room in rooms:
                    room.remove()
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
            Operand(mode, f"{place} {rooms[0].describe(x)}", memory, bool(getattr(x, "__vardag_lent__", bool)()))
            for (mode, place, x), memory in zip(arrays, memories, strict=True)
        ]
        variables = [v for vs in found.values() for v in vs]
        return self.watch(op, fn, operands, [id(x) for _, _, x in arrays], variables)

    def _run(self, op: Operation, fn: Callable[..., Any], operands: Sequence[Operand]) -> Any:
        real = [operand.memory() for operand in operands]
        copies = rooms[0].copies(real, [o.mode for o in operands], [o.shared for o in operands]) if real else ()
        if copies is None:
            return fn(*real)  # of another library's handles: only ours are watched
        del real
        try:
            out = fn(*[copy.lent() for copy in copies])
        except ValueError as e:
            read = [o.label for o in operands if o.mode == "read"]
            if "read-only" not in str(e) or not read:
                raise
            text = f"{', '.join(read)}: declared as read, and the function writes to it"
            raise self._note(_fault(op, text)) from e
        found: list[str] = []
        for o, copy in zip(operands, copies, strict=True):
            past = copy.passed()  # by another way than the one it was given
            if copy.twice:
                pass
            elif o.mode == "read":
                if past:
                    found.append(f"{o.label}: declared as read, and its memory is written while the function runs")
                elif copy.changed():
                    found.append(f"{o.label}: declared as read, and the function writes to it")
            elif copy.apart and not past:
                if o.mode == "write" and copy.left():
                    found.append(f"{o.label}: declared as write, and not all of it is written, or what was not is read")
                copy.store()
        if found:
            raise self._note(_fault(op, "; ".join(found)))
        for o, copy in zip(operands, copies, strict=True):
            if copy.apart:
                self._keep(op, o, copy.let_go())
        self.late()
        return out

    def _keep(self, op: Operation, operand: Operand, memory: Any) -> None:
        if memory is not None:
            self._kept.append(Kept(op, operand, memory))


ALONE = 2  # references: the attribute's, and the one of who counts


def check() -> Check:
    """``with check() as c:`` finds users' functions that touch what they have not declared.

    Every function that is pushed in the block (`Engine.push`, `push_sync`) is run on copies of its arrays; `c.found`
    lists what was found, as `AccessError`s that name the operation, the array and the line of the push.  Found are:
    arrays that are used by their handles without having been declared, for reading or writing, also where only another
    array's variable was declared; what is declared as read and written; what is declared as write and not wholly
    written, or read before; and memory that is written after the function has ended.  ``VARDAG_CHECK=1`` checks
    everything from the import on.

    What it cannot see: Python objects that are no arrays; undeclared memory that was lent by DLPack and is only read;
    memory that is named twice; what an `async def` or `push_async` function does.  That memory declared as write was
    read it sees by what was computed: floats stay NaN, and integers go with the old value element by element, near to
    it or, from about fifty elements on, bit by bit (ndarray/sentinel.py).  Sums over old values, comparisons that have
    truth values for a result, and truth values that were read show nothing.

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
