"""Recording scopes: which contexts record, on which tape, in which mode.

A scope is a value of a context variable, so it follows threads and asyncio tasks.  A task made inside ``record()``
inherits the scope and keeps it after the block has ended, as it does every context variable.  ``async with`` does
what ``with`` does: entering and leaving wait for nothing.
"""

from __future__ import annotations

from collections import deque
from contextvars import Token
from itertools import starmap
from typing import Any

from ..engine import ArgumentError
from ..ndarray.line import Scope, marks, scope
from .recorder import Recorder, inplace_policy


class _Mode:
    """A ``with`` (or ``async with``) block in another scope.  Re-usable and re-entrant, by any thread or task."""

    __slots__ = ("_recording", "_tokens", "_training", "inplace")

    def __init__(self, recording: bool | None, training: bool | None, inplace: str | None = None) -> None:
        self._recording, self._training, self.inplace = recording, training, inplace
        self._tokens: list[tuple[Token[Scope], Recorder | None]] = []

    def __enter__(self) -> _Mode:
        old = scope.get()
        recorder, paused, training, own = old.recorder, old.paused, old.training, None
        if self._recording is True:
            paused = False
            if recorder is None:
                recorder = own = Recorder(self.inplace)
        elif self._recording is False:
            recorder, paused = None, True
        if self._training is not None:
            training = self._training
        self._tokens.append((scope.set(Scope(recorder, training, paused)), own))
        return self

    def __exit__(self, *exc: object) -> None:
        own = self._leave()
        if own is not None:
            _end(own)

    async def __aenter__(self) -> _Mode:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__(*exc)

    def _leave(self) -> Recorder | None:
        """Back to the scope before: this context's, for other threads and tasks may be in the same block."""
        for entry in reversed(tuple(self._tokens)):
            token, own = entry
            try:
                scope.reset(token)
            except ValueError:  # another context's
                continue
            self._tokens.remove(entry)
            return own
        raise ArgumentError("[record] a scope is left in the thread or task that entered it")


def _end(recorder: Recorder) -> None:
    """Marked arrays that were written in the scope are leaves again, with their current bytes."""
    leaves: list[tuple[Any, str, Any]] = [(line, "entry", line.leaf) for line in recorder.written_leaves]
    if leaves:
        leaves.append((marks, "last", object()))
    deque(starmap(setattr, leaves), 0)  # one C call: no interrupt leaves some of them behind
    recorder.written_leaves = []


def record(train_mode: bool = True, *, inplace: str | None = None) -> Any:
    """A ``with`` block in which operators on marked arrays, and on what comes of them, are recorded.

    Parameters
    ----------
    train_mode : bool
        What `is_training` says inside: Dropout and BatchNorm ask it.
    inplace : "allow" or "refuse"
        Whether arrays on the tape may be written (``x += y``, ``x[i] = y``, ``out=``).  "allow": the write is recorded
        like any operator.  "refuse": an ArgumentError before anything happens.  Default: the environment variable
        VARDAG_INPLACE, else "allow".

    >>> from vardag import nd, autograd
    >>> x = nd.array([1, 2, 3]); x.attach_grad()
    >>> with autograd.record():
    ...     y = x * x
    >>> y.backward()
    >>> x.grad.asnumpy()
    array([2., 4., 6.], dtype=float32)
    """
    return _Mode(True, train_mode, None if inplace is None else inplace_policy(inplace))


def pause(train_mode: bool = False) -> Any:
    """A ``with`` block in which nothing is recorded; views taken in it are constants to autograd."""
    return _Mode(False, train_mode)


def train_mode() -> Any:
    """A ``with`` block in training mode; recording stays as it is."""
    return _Mode(None, True)


def predict_mode() -> Any:
    """A ``with`` block in prediction mode; recording stays as it is."""
    return _Mode(None, False)


def is_recording() -> bool:
    """Whether operators are recorded here."""
    return scope.get().recorder is not None


def is_training() -> bool:
    """Whether operators run in training mode here."""
    return scope.get().training


def set_recording(is_recording: bool) -> bool:
    """Start or stop recording in this context; gives the previous state."""
    old = scope.get()
    if is_recording and old.recorder is None:
        scope.set(Scope(Recorder(None), old.training, False))
    elif not is_recording and old.recorder is not None:
        scope.set(Scope(None, old.training, False))
        _end(old.recorder)
    return old.recorder is not None


def set_training(train_mode: bool) -> bool:
    """Set the training mode of this context; gives the previous one."""
    old = scope.get()
    scope.set(Scope(old.recorder, bool(train_mode), old.paused))
    return old.training
