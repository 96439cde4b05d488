"""`vardag.nd.image`: MXNet 1.x's operators for images.

Every name here is one of the nd face's namespace `image` (operators/faces.py).
"""

from __future__ import annotations

from typing import Any

from ._late import nd_face


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    found = globals()[name] = getattr(nd_face.spaces["image"], name)
    return found


def __dir__() -> list[str]:
    return sorted(dir(nd_face.spaces["image"]))
