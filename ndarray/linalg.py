"""`vardag.nd.linalg`: linear algebra, the nd face's operators whose names begin with ``linalg_``."""

from __future__ import annotations

from typing import Any

from ._late import nd_face

PREFIX = "linalg_"


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    found = globals()[name] = getattr(nd_face, PREFIX + name)
    return found


def __dir__() -> list[str]:
    return sorted(name.removeprefix(PREFIX) for name in dir(nd_face) if name.startswith(PREFIX))
