"""The one place with edges to the rooms on the right, each resolved when first called and cached.

Arrays have operators (``x + y``, ``x.exp()``) and gradients (``x.backward()``), but the rooms that hold them import
this one.  A face is looked up by name here: ``numpy_face.add`` is the canonical operator, ``nd_face.add`` MXNet's.
"""

from __future__ import annotations

from typing import Any


class Face:
    """The operators of one face as attributes, fetched on first use."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        from ..operators import faces

        found = getattr(getattr(faces, self._name), name)
        setattr(self, name, found)
        return found

    def __dir__(self) -> list[str]:
        from ..operators import faces

        return dir(getattr(faces, self._name))


class Autograd:
    """autograd's functions as attributes, fetched on first use."""

    def __getattr__(self, name: str) -> Any:
        from .. import autograd

        found = getattr(autograd, name)
        setattr(self, name, found)
        return found


class Indexing:
    """Advanced indexing's functions as attributes, fetched on first use."""

    def __getattr__(self, name: str) -> Any:
        from ..operators import advanced_indexing

        found = getattr(advanced_indexing, name)
        setattr(self, name, found)
        return found


numpy_face = Face("numpy_face")
nd_face = Face("nd_face")
autograd = Autograd()
indexing = Indexing()
