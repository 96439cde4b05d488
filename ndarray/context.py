"""Where an array lives: `Context`, as MXNet spells it.

A context names a device; the memory behind it is a `Device` (see device.py).  `cpu(0)`, `cpu(1)` and `cpu_pinned(0)`
are different contexts over one memory, so their arrays may meet in one operator; the result lives on the first.
"""

from __future__ import annotations

import os
from contextvars import ContextVar, Token
from typing import ClassVar

from ..engine import ArgumentError

DEVICE_TYPES = {"cpu": 1, "gpu": 2, "cpu_pinned": 3, "simulated": 64}


class Context:
    """A device to make arrays on.

    Parameters
    ----------
    device_type : str or Context
        "cpu", "gpu", "cpu_pinned", or "simulated": a device for tests (see _simulated.py).
    device_id : int
        Number of the device, 0 or more.

    Used in a ``with`` statement it is the default context of that block (of that thread or asyncio task only).

    Raises
    ------
    ArgumentError
        At the call, for an unknown device type or a negative number.

    Examples
    --------
    >>> from vardag.ndarray import Context, cpu, current_context
    >>> Context("cpu", 1)
    cpu(1)
    >>> with cpu(1):
    ...     current_context()
    cpu(1)
    """

    __slots__ = ("_tokens", "device_id", "device_type")

    devtype2str: ClassVar[dict[int, str]] = {number: name for name, number in DEVICE_TYPES.items()}
    devstr2type: ClassVar[dict[str, int]] = DEVICE_TYPES

    def __init__(self, device_type: str | Context, device_id: int = 0) -> None:
        name: str = device_type.device_type if isinstance(device_type, Context) else device_type
        if name not in DEVICE_TYPES:
            raise ArgumentError(f"[Context] device type {name!r}: one of {', '.join(DEVICE_TYPES)} expected")
        if not isinstance(device_id, int) or device_id < 0:
            raise ArgumentError(f"[Context] device id {device_id!r}: a number from 0 expected")
        self.device_type: str = name
        self.device_id: int = device_type.device_id if isinstance(device_type, Context) else device_id
        self._tokens: list[Token[Context]] = []

    @property
    def device_typeid(self) -> int:
        """MXNet's number of the device type: 1 cpu, 2 gpu, 3 cpu_pinned."""
        return DEVICE_TYPES[self.device_type]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Context):
            return NotImplemented
        return self.device_type == other.device_type and self.device_id == other.device_id

    def __hash__(self) -> int:
        return hash((self.device_type, self.device_id))

    def __repr__(self) -> str:
        return f"{self.device_type}({self.device_id})"

    def __enter__(self) -> Context:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, *exc: object) -> None:
        _current.reset(self._tokens.pop())


def cpu(device_id: int = 0) -> Context:
    """The CPU.  All ``cpu(i)`` share one memory."""
    return Context("cpu", device_id)


def cpu_pinned(device_id: int = 0) -> Context:
    """CPU memory that a GPU can copy from and to without staging, if there is a GPU; else as `cpu`.

    What is made or copied there is pinned, and large results are; small ones are ordinary memory.
    """
    return Context("cpu_pinned", device_id)


def gpu(device_id: int = 0) -> Context:
    """The GPU with this number.  Making an array on it needs CuPy and such a GPU, else ArgumentError at that call."""
    return Context("gpu", device_id)


CPU_0 = Context("cpu", 0)


def named(text: str) -> Context:
    """The context that is written like this: ``gpu(0)``.

    Raises
    ------
    ArgumentError
        At the call, for anything else.
    """
    name, _, number = text.removesuffix(")").partition("(")
    if not number.isdigit():
        raise ArgumentError(f"[Context] {text!r}: a context such as gpu(0) expected")
    return Context(name, int(number))


#: VARDAG_DEFAULT_CONTEXT, else cpu(0)
DEFAULT = named(os.environ.get("VARDAG_DEFAULT_CONTEXT") or "cpu(0)")
_current: ContextVar[Context] = ContextVar("vardag_context", default=DEFAULT)


def current_context() -> Context:
    """The context that arrays are made on when none is given: the innermost ``with`` block's, else the environment's
    VARDAG_DEFAULT_CONTEXT, else ``cpu(0)``."""
    return _current.get()


def as_context(ctx: Context | str | None) -> Context:
    """`ctx`, or the current context for None."""
    if ctx is None:
        return _current.get()
    if isinstance(ctx, Context):
        return ctx
    raise ArgumentError(f"[Context] {ctx!r}: a Context such as cpu() or gpu(0) expected")
