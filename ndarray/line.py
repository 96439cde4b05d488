"""Lines and recording scopes: what arrays must know of autograd, and no more.

A *line* is the tape's name for a stretch of memory: an array and the views taken from it share one, so that a recorded
write through a view is seen by its base.  A chunk has one line, made when the tape first needs it.  Only two kinds of
array have another: marked arrays their own, and detached ones `DETACHED`, which is never on the tape.  The entry of a
line is opaque here; autograd sets it, in the commit of a push.

A *scope* says whether this context (thread or asyncio task) is recording.  The push path reads it, autograd sets it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from .shape import Shape, Strides, extent

T = TypeVar("T")


class Line:
    """The tape's name for a stretch of memory.

    `shape`, `strides`, `offset`: the root view, that of the array the line began with.
    `entry`: what the tape knows of the bytes now, or None for a constant.  Written in commits only (order lock).
    `leaf`: for a marked array, the entry that it has outside of recording; `gradient` its stable gradient array.
    """

    __slots__ = ("__weakref__", "entry", "gradient", "leaf", "offset", "shape", "strides")

    def __init__(self, shape: Shape, strides: Strides, offset: int, entry: Any = None) -> None:
        self.shape, self.strides, self.offset = shape, strides, offset
        self.entry = entry
        self.leaf: Any = None
        self.gradient: Any = None

    def range(self) -> tuple[int, int]:
        """The half-open range of its chunk's elements that the root view touches."""
        return extent(self.shape, self.strides, self.offset)


def line_of(shape: Shape, name: Any) -> Line | None:
    """What `Array._line` of a young array says as a line: a node of the tape stands for that of its first output."""
    return name if name is None or type(name) is Line else Line(shape, None, 0, (name, 0))


class Scope:
    """How one context runs operators.  Immutable: a change of mode is another scope.

    `recorder`: the tape to record on, or None.   `training`: what is_training() says.
    `paused`: inside pause(), where new views have no line.
    """

    __slots__ = ("paused", "recorder", "training")

    def __init__(self, recorder: Any, training: bool, paused: bool) -> None:
        self.recorder, self.training, self.paused = recorder, training, paused


class Marks:
    """`last`: another object whenever an array was marked, or became a leaf again.  An operator that runs at once has
    found several arrays on the tape as they were at one moment, if that is the same before and after."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = object()


marks = Marks()

#: the line of detached arrays, and of views taken under pause(): writes through them change bytes, never entries
DETACHED = Line((), None, 0)

#: the line of arrays that must not be written: the inputs that Function.forward gets, and views of them
READ_ONLY = Line((), None, 0)

IDLE = Scope(None, False, False)
PAUSED = Scope(None, False, True)

scope: ContextVar[Scope] = ContextVar("vardag_scope", default=IDLE)


def within(new: Scope, function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)`` in another scope; every way out restores the old one, an interrupt too."""
    old = scope.get()
    try:
        scope.set(new)
        return function(*arguments)
    finally:
        scope.set(old)


def pause_here() -> None:
    """Pause recording in the current context: what a user's function on a worker starts with."""
    scope.set(PAUSED)
