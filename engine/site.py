"""Where in the user's program a push or a wait happened.

Owns the test "is this frame ours?".  Guarantees that `here` costs a fraction of a microsecond: it keeps the code
object and the instruction's offset; the line number is worked out only when somebody reads it.
"""

from __future__ import annotations

import contextlib
import os
from sys import _getframe
from types import CodeType
from typing import Any

Site = tuple[CodeType, int]

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_ROOMS = ("engine", "ndarray", "operators", "autograd")

# File name -> "belongs to the package".  Keyed by name and not by code object, so that no code made by exec is pinned.
# contextlib counts as ours: `with engine.bulk(8):` is the user's line, not contextlib's.
_files: dict[str, bool] = {contextlib.__file__: True}
is_ours = _files.get


def _is_ours(filename: str) -> bool:
    """Classify a file once: the rooms and the files beside them are ours; tests, examples, benchmarks are not."""
    path = os.path.abspath(filename)
    ours = False
    if not filename.startswith("<") and path.startswith(_PACKAGE):
        first, _, rest = path[len(_PACKAGE) :].partition(os.sep)
        ours = not rest or first in _ROOMS
    _files[filename] = ours
    return ours


def belongs_to_the_package(filename: str) -> bool:
    """Is it a file of the library's?"""
    return _files[filename] if filename in _files else _is_ours(filename)


def here(depth: int = 1) -> Site | None:
    """The innermost frame outside the package, as (code, offset); `depth` frames are skipped unseen."""
    frame = _getframe(depth)
    code = frame.f_code
    if _files.get(code.co_filename, True):
        return _above(frame)
    return code, frame.f_lasti


def _above(frame: Any) -> Site | None:
    while frame is not None:
        name = frame.f_code.co_filename
        if not (_files[name] if name in _files else _is_ours(name)):
            return frame.f_code, frame.f_lasti
        frame = frame.f_back
    return None


def asked(depth: int = 1) -> tuple[Site | None, str]:
    """As `here`, and the name of the function of the package that it called: what the user asked for."""
    frame: Any = _getframe(depth)
    below = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if not (_files[name] if name in _files else _is_ours(name)):
            return (frame.f_code, frame.f_lasti), below
        below, frame = frame.f_code.co_name, frame.f_back
    return None, below


def line_of(site: Site) -> int:
    """The line number of a site."""
    code, offset = site
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return line
    return code.co_firstlineno


def describe(site: Site | None) -> str:
    """``file:line`` of a site, "an unknown line" without one."""
    return "an unknown line" if site is None else f"{site[0].co_filename}:{line_of(site)}"
