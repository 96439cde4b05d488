"""Arrays and NumPy's functions in the memory of a simulated device (_simulated.py): they note what a kernel uses, and
refuse what a device would refuse.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from operator import setitem
from types import ModuleType
from typing import Any
from weakref import ref

import numpy as np
from scipy import special

from ..engine.atomic import Step, together

BYTE = np.dtype(np.uint8)


class Fault(RuntimeError):
    """The simulated device has seen something that hardware might not have forgiven."""


class Memory:
    """A block.  `planned`: its version when all that is enqueued has happened.   `reached`: its version by now."""

    __slots__ = ("bytes", "device", "planned", "reached", "readers", "ticket", "writer")

    def __init__(self, device: Any, nbytes: int) -> None:
        self.device = device
        self.bytes = np.empty(max(nbytes, 1), BYTE)
        self.planned = self.reached = self.readers = 0
        self.writer = False
        self.ticket: Ticket | None = None


class Ticket(ref[Any]):
    """A reference to what the arrays of a block have for a base.  When that dies the block is free again."""

    __slots__ = ("memory",)
    memory: Memory


class Lease:
    """The base of the arrays of a block."""

    __slots__ = ("__array_interface__", "__weakref__", "memory")

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.__array_interface__ = memory.bytes.__array_interface__


class SimulatedArray(np.ndarray[Any, Any]):
    """An array in a simulated device's memory."""

    memory: Memory | None

    def __array_finalize__(self, source: Any) -> None:
        self.memory = getattr(source, "memory", None)

    @property
    def base(self) -> Any:
        """None for an array with all of its memory, as CuPy has it."""
        found = super().base
        return None if self.memory is None or isinstance(found, Lease) else found

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **named: Any) -> Any:
        if getattr(np, ufunc.__name__, None) is not ufunc and not local.special:
            return NotImplemented  # SciPy's: CuPy's arrays know NumPy's only
        outs = named.get("out", ())
        scope = scope_of(self, ufunc.__name__)
        scope.uses(ufunc.__name__, inputs, outs)
        if outs:
            named["out"] = tuple(plain(o) for o in outs)
        found = getattr(ufunc, method)(*map(plain, inputs), **{k: plain(v) for k, v in named.items()})
        if method == "at":
            scope.uses(ufunc.__name__, (), inputs[:1])
            return None
        if outs:
            return outs[0] if len(outs) == 1 else outs
        return scope.given(found)

    def __array_function__(self, function: Any, types: Any, args: Any, named: Any) -> Any:
        if function in VALUES:
            return function(*map(plain, args), **named)
        return scope_of(self, function.__name__).call(function, args, named)

    def __setitem__(self, key: Any, value: Any) -> None:
        scope_of(self, "assignment").uses("assignment", (value, key), (self,))
        plain(self)[plain(key)] = plain(value)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, np.ndarray) or (isinstance(key, tuple) and any(isinstance(k, np.ndarray) for k in key)):
            scope = scope_of(self, "indexing")
            scope.uses("indexing", (self, key), ())
            return scope.given(plain(self)[plain(key)])
        found = super().__getitem__(key)
        if not isinstance(found, SimulatedArray):  # CuPy gives an array without axes
            found = super().__getitem__((*key, ...) if isinstance(key, tuple) else (key, ...))
        return found

    def fill(self, value: Any) -> None:
        self[...] = value

    def sort(self, *args: Any, **named: Any) -> None:
        scope_of(self, "sort").uses("sort", (), (self,))
        plain(self).sort(*args, **named)

    def settled(self) -> Any:
        """The host asks for the value: the device goes on until it is there."""
        scope = scope_of(self, "item")
        scope.uses("item", (self,), ())
        scope.device.drain()
        return plain(self)

    def item(self, *args: Any) -> Any:
        return self.settled().item(*args)

    def tolist(self) -> Any:
        return self.settled().tolist()

    def __bool__(self) -> bool:
        return bool(self.settled())

    def __int__(self) -> int:
        return int(self.settled())

    def __float__(self) -> float:
        return float(self.settled())

    def __index__(self) -> int:
        return int(self.settled())


METHODS = (
    "all", "any", "argmax", "argmin", "argsort", "astype", "clip", "copy", "cumsum", "diagonal", "dot", "flatten",
    "max", "mean", "min", "nonzero", "prod", "ravel", "repeat", "round", "searchsorted", "std", "sum", "take", "trace",
    "var",
)  # fmt: skip


def _method(name: str) -> Any:
    def method(self: SimulatedArray, *args: Any, **named: Any) -> Any:
        return scope_of(self, name).call(getattr(np.ndarray, name), (self, *args), named)

    return method


for _name in METHODS:
    setattr(SimulatedArray, _name, _method(_name))


def plain(x: Any) -> Any:
    """As NumPy's, to compute with."""
    if isinstance(x, SimulatedArray):
        return x.view(np.ndarray)
    if isinstance(x, tuple):
        return tuple(map(plain, x))
    return [plain(v) for v in x] if isinstance(x, list) else x


def _arrays(x: Any) -> Iterator[Any]:
    if isinstance(x, np.ndarray):
        yield x
    elif isinstance(x, tuple | list):
        for v in x:
            yield from _arrays(v)


class _Local(threading.local):
    scope: Scope | None = None
    special = False


local = _Local()


def scope_of(array: SimulatedArray, what: str) -> Scope:
    scope = local.scope
    if scope is None:
        raise Fault(f"{what}: an array of a device is used outside of its operations")
    return scope


class Task:
    """Work of a stream; it takes two steps, so that others may come in between.

    `arrives`: (bytes, host memory that gets them when it ends).   `leaves`: (bytes, host memory that must not have
    changed by then).
    """

    __slots__ = ("arrives", "began", "leaves", "reads", "writes")

    def __init__(self, reads: dict[Memory, int], writes: dict[Memory, int], arrives: Any, leaves: Any) -> None:
        self.reads = {m: v for m, v in reads.items() if m not in writes}
        self.writes, self.arrives, self.leaves = writes, arrives, leaves
        self.began = False

    def plan(self) -> list[Step]:
        """Begin, or end: see atomic.py."""
        for memory, version in self.reads.items():
            if memory.reached != version or memory.writer:
                raise Fault(
                    f"memory is read in version {memory.reached}{' while it is written' if memory.writer else ''}, "
                    f"version {version} was meant: an event was not waited for, or memory was used again too early"
                )
        for memory, version in self.writes.items():
            if memory.reached != version - 1 or memory.readers or memory.writer is not self.began:
                raise Fault(
                    f"version {version} of memory is written over version {memory.reached} with {memory.readers} "
                    f"readers: an event was not waited for, or memory was used again too early"
                )
        for kept, host in self.leaves:
            if host.tobytes() != kept:
                raise Fault("memory of the host has changed before it was copied to the device")
        change = -1 if self.began else 1
        steps: list[Step] = [(setattr, self, "began", not self.began)]
        steps += [(setattr, memory, "readers", memory.readers + change) for memory in self.reads]
        steps += [(setattr, memory, "writer", not self.began) for memory in self.writes]
        if self.began:
            steps += [(setattr, memory, "reached", version) for memory, version in self.writes.items()]
            for kept, host in self.arrives:
                steps.append((setitem, memoryview(host.reshape(-1).view(BYTE)), slice(None), kept))
        return steps

    def settle(self) -> None:
        """It has happened, whatever went wrong."""
        for memory in (*self.reads, *self.writes):
            memory.reached, memory.readers, memory.writer = memory.planned, 0, False


class Scope:
    """What one thread gives to one stream: see `SimulatedDriver.on`."""

    def __init__(self, device: Any, stream: Any) -> None:
        self.device, self.stream = device, stream
        self.thread = threading.get_ident()

    def uses(self, what: str, read: Any, written: Any, arrives: Any = (), leaves: Any = ()) -> None:
        """Enqueue a kernel that uses these arrays; they must be of this device."""
        used = [self._own(what, x) for x in _arrays(read)]
        self.launch(used, [self._own(what, x) for x in _arrays(written)], arrives, leaves)

    def launch(self, read: list[Any], written: list[Any], arrives: Any = (), leaves: Any = ()) -> None:
        """The same, of memory."""
        reads = {m: m.planned for m in read if m is not None}
        writes = {m: m.planned + 1 for m in written if m is not None}
        if reads or writes:
            steps: list[Step] = [(setattr, m, "planned", version) for m, version in writes.items()]
            steps.append((self.stream.tasks.append, Task(reads, writes, arrives, leaves)))
            together(steps)

    def _own(self, what: str, x: Any) -> Memory | None:
        if not isinstance(x, SimulatedArray):
            if x.ndim:
                raise TypeError(f"{what}: Unsupported type {type(x)}, an array of the host's memory")
            return None
        if x.memory is not None and x.memory.device is not self.device:
            raise Fault(f"{what}: memory of {x.memory.device} is read on {self.device}")
        return x.memory

    def call(self, function: Any, args: Any, named: Any) -> Any:
        """A function of NumPy on arrays of this device."""
        out = named.get("out")
        outs = () if out is None else out if isinstance(out, tuple) else (out,)
        if function not in FROM_HOST or not isinstance(args[0], np.ndarray) or isinstance(args[0], SimulatedArray):
            self.uses(function.__name__, (args, [v for k, v in named.items() if k != "out"]), outs)
        if function in WRITES:
            self.uses(function.__name__, (), args[:1])
        found = function(*map(plain, args), **{k: plain(v) for k, v in named.items()})
        if out is not None:
            return out
        return self.given(found, args)

    def given(self, found: Any, sources: Any = ()) -> Any:
        """What a kernel has made, as this device's: new memory, or a view of a source's."""
        if isinstance(found, tuple):
            return tuple(self.given(f, sources) for f in found)
        if isinstance(found, list):
            return [self.given(f, sources) for f in found]
        if isinstance(found, np.generic):
            found = np.asarray(found)
        if not isinstance(found, np.ndarray):
            return found
        for source in _arrays(sources):
            if isinstance(source, SimulatedArray) and np.may_share_memory(found, plain(source)):
                shared = found.view(SimulatedArray)
                shared.memory = source.memory
                return shared
        made = self.device.empty(found.shape, found.dtype)
        plain(made)[...] = found
        self.uses("result", (), (made,))
        return made


WRITES = {np.copyto, np.put, np.put_along_axis, np.place, np.putmask, np.fill_diagonal}
FROM_HOST = {np.array, np.asarray, np.ascontiguousarray}
VALUES = {np.result_type, np.can_cast, np.promote_types, np.iinfo, np.finfo, np.errstate, np.shape, np.ndim, np.size}


class SimulatedSpecial:
    """scipy.special for the device's arrays."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(special, name)

        def function(*args: Any, **named: Any) -> Any:
            local.special = True
            try:
                return found(*args, **named)
            finally:
                local.special = False

        setattr(self, name, function)
        return function


class _Strides:
    """NumPy's ``lib.stride_tricks``, as far as CuPy has it."""

    @staticmethod
    def as_strided(x: Any, shape: Any, strides: Any) -> Any:
        scope = scope_of(x, "as_strided")
        return scope.given(np.lib.stride_tricks.as_strided(plain(x), shape, strides), (x,))


class _Library:
    stride_tricks = _Strides


class SimulatedNumPy(ModuleType):
    """NumPy's functions, which make arrays in the memory of the device whose operation runs."""

    def __init__(self) -> None:
        super().__init__("simulated")
        self.lib = _Library

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if isinstance(found, type | np.ufunc | ModuleType) or not callable(found) or found in VALUES:
            return found

        def function(*args: Any, **named: Any) -> Any:
            scope = local.scope
            if scope is None:
                raise Fault(f"{name}: outside of the operations of a device")
            return scope.call(found, args, named)

        function.__name__ = name
        setattr(self, name, function)
        return function
