"""Tests for operators of your own: the library's, as one call."""

from __future__ import annotations

from .autograd.testing import check_operator
from .operators.schema import Sample

__all__ = ["Sample", "check_operator"]
