"""Operators: what can be done with arrays.  One declaration each (see schema.py), two faces (see faces.py)."""

from __future__ import annotations

from . import creation, elementwise, shaping
from .faces import nd_face, numpy_face, publish
from .schema import Operator, registry

publish()

__all__ = ["Operator", "creation", "elementwise", "nd_face", "numpy_face", "registry", "shaping"]
