"""Handles under `engine.check`: a user's function that runs may use the arrays that it declared, and those it made.

Installed while a check is on, and only then: methods of `Array` that look at who asks for a value.  Shape, dtype
and version are everybody's.
"""

from __future__ import annotations

import os
import sys
from types import CodeType
from typing import Any

from ..engine.access import check, now, rooms
from . import sentinel
from .array import Array
from .reading import Reading, describe

_PROPERTIES: tuple[Any, ...] = (Reading._dtype, Array._meta, Array.version, Array._tape_line, Array.grad)
METADATA = {p.fget.__code__ for p in _PROPERTIES}
# A push inside the function: what that one declares is its own.
for method in (Array.__vardag_resolve__, Array._covers_chunk, Array._grow):
    METADATA |= {method.__code__, *(c for c in method.__code__.co_consts if isinstance(c, CodeType))}


def _get(self: Array, name: str) -> Any:
    record = now.record
    if record is not None and name in ("_raw", "_chunk") and sys._getframe(1).f_code not in METADATA:
        young = object.__getattribute__(self, "_raw") is not None
        variable = None if young else object.__getattribute__(self, "_chunk").buffer.variable
        if not record.allows(self, variable):
            raise record.refuse(f"array {describe(self)}")
    return object.__getattribute__(self, name)


def _set(self: Array, name: str, value: Any) -> None:
    object.__setattr__(self, name, value)
    if name == "_place" and now.record is not None:  # the function has just made it
        now.record.bear(self)


def _is_lent(self: Array) -> bool:
    """Do others have the memory too, and write it?"""
    return object.__getattribute__(self, "_raw") is None and object.__getattribute__(self, "_chunk").pinned


class Handles:
    """What `engine.check` asks of the array room."""

    copies = staticmethod(sentinel.copies)

    def describe(self, array: Any) -> str:
        """An operand, in a report."""
        return describe(array) if hasattr(array, "dtype") else type(array).__name__

    def install(self) -> None:
        """Watch the handles."""
        Array.__vardag_lent__ = _is_lent  # type: ignore[attr-defined]
        Array.__getattribute__ = _get  # type: ignore[assignment, method-assign]
        Array.__setattr__ = _set  # type: ignore[assignment, method-assign]

    def remove(self) -> None:
        """No more."""
        for name in ("__getattribute__", "__setattr__", "__vardag_lent__"):
            if name in vars(Array):
                delattr(Array, name)


rooms.append(Handles())
if os.environ.get("VARDAG_CHECK", "0") not in ("", "0"):
    check().begin()
