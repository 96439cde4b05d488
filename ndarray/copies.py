"""How arrays are copied: to another dtype, into others, and to where others are."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from ..engine import ArgumentError, ArgumentTypeError
from ._late import autograd
from .context import Context
from .device import Place, place_of
from .dtype import as_dtype
from .interchange import Interchange
from .line import scope
from .reading import describe
from .transfer import across


class Copies(Interchange):
    """What makes copies of an array."""

    __slots__ = ()
    _ops: ClassVar[Any]
    _place: Place
    context: Any

    def copy(self) -> Self:
        """A copy; the bytes are shared until one of the two is written.  Never blocks.   Gradient: g."""
        return self._ops.copy(self)  # type: ignore[no-any-return]

    def astype(self, dtype: Any, copy: bool = True) -> Self:
        """A copy with another dtype, by C's conversion (self, if the dtype is this one and `copy` is false)."""
        dtype = as_dtype(dtype)
        if dtype == self._dtype:
            return self.copy() if copy else self
        return self._ops.cast(self, dtype=dtype)  # type: ignore[no-any-return]

    def copyto(self, other: Copies | Context) -> Any:
        """Copy into another array (its shape; cast to its dtype), or to a new array on a context, of whatever memory.

        Never blocks.   Gradient: g.
        """
        if isinstance(other, Context):
            return self._copied(place_of(self._place.engine, other))
        if hasattr(other, "tostype") and not isinstance(other, Copies):
            other[:] = self
            return other
        if not isinstance(other, Copies):
            raise ArgumentTypeError(f"[copyto] {other!r}: an array or a Context expected")
        if other is self:
            raise ArgumentError(f"[copyto] {describe(self)}: cannot copy an array onto itself")
        self._ops.assign(
            self._copied(other._place) if other._place.device.memory is not self._place.device.memory else self,
            out=other,
        )
        return other

    def _copied(self, place: Place) -> Self:
        """A copy in this place.  Gradient: g, brought back."""
        if place.device.memory is self._place.device.memory:
            return self._ops.copy(self, ctx=place.context)  # type: ignore[no-any-return]
        if scope.get().recorder is not None and autograd.tape.entry_of(self) is not None:
            return autograd.across(self, place.context)  # type: ignore[no-any-return]
        return across(self, place.context)

    def as_in_context(self, context: Context) -> Self:
        """The array on that context: itself if it is there, else a copy."""
        return self if context == self.context else self.copyto(context)

    as_in_ctx = to_device = as_in_context
