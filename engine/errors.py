"""The engine's exceptions, and how a stored one is raised anew.

Owns the hierarchy and `rebuild`.  Guarantees: every exception raised by the library is an `Error` and, where there is
one, the natural built-in type; every raise is a fresh object, and the original keeps its own notes and traceback
unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from types import FunctionType, TracebackType
from typing import Any

from .site import _files, _is_ours


class Error(Exception):
    """The base of all errors that the library raises."""


class ArgumentError(Error, ValueError):
    """A bad argument, found at the call, before any effect."""


class ArgumentTypeError(Error, TypeError):
    """An argument of the wrong type, found at the call, before any effect."""


class OperatorError(Error):
    """An operation failed; what it computed does not exist.  ``__cause__`` is the original exception."""


class AccessError(Error, RuntimeError):
    """A function touched what it had not declared: see `vardag.engine.check`."""


class EngineTimeout(Error, TimeoutError):
    """A wait reached its ``timeout``; the text is the chain of what blocks what."""


class DeadlockError(Error, RuntimeError):
    """A wait that could only end after itself."""


class Cancelled(Error):
    """The operation was cancelled, or cut by an interrupt, before it ended."""


class EngineClosed(Error, RuntimeError):
    """A push to an engine that was stopped."""


class CompletionError(Error, RuntimeError):
    """``on_complete`` was called for an operation that is complete already."""


class InternalError(Error, RuntimeError):
    """A bug in the library; please report it."""


class EngineErrors(Error, ExceptionGroup):
    """All errors that nobody has seen yet, raised by ``waitall``.

    Examples
    --------
    >>> from vardag.engine import EngineErrors, Error
    >>> group = EngineErrors("two", [ValueError("a"), TypeError("b")])
    >>> isinstance(group.subgroup(ValueError), Error)
    True
    """

    def derive(self, excs: Sequence[Exception]) -> EngineErrors:  # type: ignore[override]
        """Keep the class when ``except*`` or ``split`` makes a smaller group."""
        return EngineErrors(self.message, excs)


# Raising one of these anew would do something else than report: StopIteration ends a loop, a CancelledError cancels
# the awaiting task.  They, and whatever is not an Exception, are wrapped in a plain OperatorError.
_NEVER_REBUILT = (StopIteration, StopAsyncIteration, GeneratorExit, asyncio.CancelledError)

# original type -> (rebuilt class, names of the fields that its C part holds); None: cannot be rebuilt.
_rebuilt: dict[type[BaseException], tuple[type[OperatorError], tuple[str, ...]] | None] = {}


class _Rebuilt(OperatorError):
    """Marks the classes made by `_rebuilt_class`; ``original`` is the exception it speaks for."""

    original: BaseException


def _str(self: _Rebuilt) -> str:
    return str(self.original)


def _init(self: _Rebuilt, *args: object, **kwargs: object) -> None:
    """Nothing: `rebuild` fills the object in; the original type's __init__ may want other arguments."""


def _reduce(self: _Rebuilt) -> tuple[Any, ...]:
    return _restore, (self.original, list(getattr(self, "__notes__", ())))


def _restore(original: BaseException, notes: list[str]) -> OperatorError:
    error = rebuild(original)
    for note in notes:
        error.add_note(note)
    return error


def _rebuilt_class(kind: type[BaseException]) -> tuple[type[OperatorError], tuple[str, ...]] | None:
    """The cached subclass of (OperatorError, kind); None for a final class or a conflict of layouts."""
    try:
        return _rebuilt[kind]
    except KeyError:
        pass
    entry: tuple[type[OperatorError], tuple[str, ...]] | None
    if issubclass(kind, _Rebuilt):  # an operation let pass what its own wait had raised
        entry = kind, ()
    else:
        body = {
            "__init__": _init,
            "__str__": _str,
            "__reduce__": _reduce,
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__doc__": f"An operation failed with {kind.__qualname__}; ``__cause__`` is the original.",
        }
        try:
            made = type(kind.__name__, (_Rebuilt, kind), body)
            entry = (
                made,
                tuple(
                    name
                    for base in kind.__mro__
                    for name, value in vars(base).items()
                    if type(value).__name__ in ("member_descriptor", "getset_descriptor")
                    and name != "args"
                    and not name.startswith("__")
                ),
            )
        except Exception:
            entry = None
    return _rebuilt.setdefault(kind, entry)  # two threads may build one each: both keep the first


def _reborn(original: BaseException) -> OperatorError | None:
    kind = type(original)
    entry = _rebuilt_class(kind)
    if entry is None:
        return None
    made, fields = entry
    try:
        error: Any = _new(kind, made, original.args)
        error.args = original.args
        error.__dict__.update((k, v) for k, v in vars(original).items() if k != "__notes__")
        _copy_fields(error, original, fields)
        error.original = getattr(original, "original", original) if isinstance(original, _Rebuilt) else original
        if str(error) != str(original):
            return None
    except Exception:
        return None
    return error  # type: ignore[no-any-return]


def _new(kind: type[BaseException], made: type[OperatorError], args: tuple[Any, ...]) -> Any:
    try:
        return kind.__new__(made, *args)
    except TypeError:  # MemoryError's own __new__ refuses subclasses of two exceptions
        return BaseException.__new__(made, *args)


def _copy_fields(new: Any, old: BaseException, fields: tuple[str, ...]) -> None:
    for name in fields:
        try:
            setattr(new, name, getattr(old, name))
        except Exception:
            continue  # a read-only field: __new__ has set it, or the comparison of the texts will tell


def rebuild(original: BaseException) -> OperatorError:
    """A fresh exception that is an `OperatorError` *and* of the original's type where that is possible.

    Parameters
    ----------
    original : BaseException
        What the operation raised; becomes ``__cause__``.

    Examples
    --------
    >>> from vardag.engine.errors import OperatorError, rebuild
    >>> e = rebuild(KeyError("x"))
    >>> isinstance(e, KeyError), isinstance(e, OperatorError), str(e)
    (True, True, "'x'")
    """
    error: OperatorError | None = None
    if isinstance(original, Exception) and not isinstance(original, _NEVER_REBUILT):
        error = _reborn(original)
    if error is None:
        error = OperatorError(f"{type(original).__name__}: {_text(original)}")
    error.__cause__ = original
    return error


def _text(original: BaseException) -> str:
    try:
        return str(original)
    except Exception as e:  # a broken __str__ must not hide the error
        return f"<no text: {type(e).__name__}>"


def release_frames(exc: BaseException) -> None:
    """Keep the traceback's lines and drop its frames, so that a sticky error pins no array.

    Clearing the frames' locals would not be enough: a frame also holds its function, and that its closure and defaults.
    """
    seen: set[int] = set()
    todo: list[BaseException | None] = [exc]
    while todo:
        e = todo.pop()
        if e is None or id(e) in seen:
            continue
        seen.add(id(e))
        e.__traceback__ = _slim(_outside(e.__traceback__))
        todo += (e.__cause__, e.__context__)
        if isinstance(e, BaseExceptionGroup):
            todo += e.exceptions


def _frame() -> Generator[None, None, None]:
    yield  # a generator that is never started has a frame without locals, and without callers that it would keep alive


# "No location", entries of up to 8 instructions: what prints a traceback then takes the line from the traceback itself.
_UNITS = len(_frame.__code__.co_code) // 2
_NOWHERE = b"\xff" * (_UNITS // 8) + (bytes([0xF8 | (_UNITS % 8 - 1)]) if _UNITS % 8 else b"")


def _slim(tb: TracebackType | None) -> TracebackType | None:
    """The same lines on empty frames."""
    entries = []
    while tb is not None:
        entries.append((tb.tb_frame.f_code, tb.tb_lineno))
        tb = tb.tb_next
    slim: TracebackType | None = None
    for code, line in reversed(entries):
        stub = _frame.__code__.replace(
            co_filename=code.co_filename,
            co_name=code.co_name,
            co_qualname=code.co_qualname,
            co_firstlineno=code.co_firstlineno,
            co_linetable=_NOWHERE,
        )
        slim = TracebackType(slim, FunctionType(stub, {})().gi_frame, 0, line)
    return slim


def _outside(tb: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame on that is not the engine's."""
    while tb is not None:
        name = tb.tb_frame.f_code.co_filename
        if not (_files[name] if name in _files else _is_ours(name)):
            return tb
        tb = tb.tb_next
    return None
