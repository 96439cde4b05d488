"""What the engine's tests look through: the audit of its invariants, the bytecode lint, checkpoints.

Public names are re-exported by testing.py.  Knows the private fields of the engine, and changes none.
"""

from __future__ import annotations

import dis
import importlib
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterable
from types import CodeType, FrameType, TracebackType
from typing import Any

from .atomic import locked
from .core import Engine
from .operation import DONE, NEW, PENDING, READY, RUNNING


# ==================================================================================================== invariants
def audit(engine: Engine) -> None:
    """Check invariants I1 to I3 of tracker.py; AssertionError if one is broken.  Nobody may be pushing meanwhile.

    Examples
    --------
    >>> from vardag.engine import Engine
    >>> from vardag.engine.testing import audit
    >>> with Engine(workers=1) as e:
    ...     _ = e.push(lambda: None)
    ...     audit(e)
    """
    assert not engine._P._is_owned() and not engine._T._is_owned(), "a lock leaked"
    locked(engine._P, locked, engine._T, _audit, engine)


def _audit(engine: Engine) -> None:
    for lane in engine._lanes.values():
        aged = None if lane.aged is None else {id(o) for _, o in lane.aged}
        assert aged is None or all(id(o) in aged for _, _, o in lane.heap if o.state is READY), (
            "not in the queue by age"
        )
    queued = {id(o) for lane in engine._lanes.values() for _, _, o in lane.heap}
    assert engine._inlining is None, "a kernel within a push left its mark"
    for o in engine._inbox:
        assert o.state is NEW and o.seq not in engine._live, o
    for seq, o in engine._live.items():
        assert o.seq == seq, f"{o} is filed under {seq}"
        assert all(p.seq < seq for p in o.preds), "an edge leads backwards"
        if o.state is PENDING:
            undone = [p for p in o.preds if p.state is not DONE]
            assert o.wait_count == len(undone) > 0, (o, o.wait_count, undone)
            for p in undone:
                assert list(p.succ).count(o) == 1, (p, o)
        elif o.state is READY:
            assert id(o) in queued, o
        else:
            assert o.state is RUNNING, o


# ==================================================================================================== bytecode
def package_functions() -> list[Any]:
    """All functions and methods of the engine's modules, testing and plotting aside."""
    found = []
    for info in pkgutil.iter_modules(sys.modules[__package__].__path__):
        if info.name in ("checkpoints", "profiler", "testing"):
            continue
        module = importlib.import_module(f"{__package__}.{info.name}")
        for value in vars(module).values():
            if getattr(value, "__module__", None) == module.__name__:
                members: Iterable[Any] = vars(value).values() if isinstance(value, type) else (value,)
                found += [m for m in members if hasattr(m, "__code__")]
    return found


def lint(functions: Iterable[Any]) -> list[tuple[str, int | None]]:
    """Back jumps that the compiler left outside the ``with`` or ``try`` they belong to (python/cpython#130279).

    Returns (qualified name, line) of each; the engine's code has none.  From 3.12 on a comprehension has a protected
    range of its own, which only gives a variable its old value back: it does not count.
    """
    bad = []
    for f in functions:
        for code in _codes(f.__code__):
            handlers = {x.offset for x in dis.get_instructions(code) if x.opname == "PUSH_EXC_INFO"}
            table = [e for e in dis._parse_exception_table(code) if e.target in handlers]  # type: ignore[attr-defined]
            for x in dis.get_instructions(code):
                if x.opname != "JUMP_BACKWARD":
                    continue
                target = _covered(table, x.argval)
                if target is not None and _covered(table, x.offset) != target:
                    bad.append((code.co_qualname, x.positions.lineno if x.positions else None))
    return bad


def _codes(code: CodeType) -> Iterable[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and constant.co_name not in (
            "<genexpr>",
            "<listcomp>",
            "<dictcomp>",
            "<setcomp>",
        ):
            yield from _codes(constant)


def _covered(table: list[Any], offset: int) -> int | None:
    return next((e.target for e in table if e.start <= offset < e.end), None)


class Checkpoints:
    """``with Checkpoints(action):`` calls ``action(n)`` at the n-th checkpoint of this thread within the engine's code.

    A checkpoint is where CPython may run a signal handler: function entry, backward jump, return from a call.
    `action` may raise, push, or wait; it is not called within itself.

    Examples
    --------
    >>> from vardag.engine import Engine
    >>> from vardag.engine.testing import Checkpoints
    >>> with Engine(workers=1) as e, Checkpoints(lambda n: None) as points:
    ...     e.push(lambda: None).wait()
    >>> points.count > 20
    True
    """

    def __init__(self, action: Callable[[int], object]) -> None:
        self.count = 0
        self._action = action
        self._inside = False
        self._codes = frozenset(c for f in package_functions() for c in _codes(f.__code__))
        self._monitoring = getattr(sys, "monitoring", None)
        self._before: dict[FrameType, int] = {}
        self._maps: dict[CodeType, tuple[dict[int, str], list[Any]]] = {}
        self._thread = threading.get_ident()

    def __enter__(self) -> Checkpoints:
        if self._monitoring is None:
            sys.settrace(self._trace)
        else:
            self._monitor(self._monitoring)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._monitoring is None:
            sys.settrace(None)
            self._before.clear()
        else:
            tool = self._monitoring.DEBUGGER_ID
            for code in self._codes:
                self._monitoring.set_local_events(tool, code, 0)
            self._monitoring.free_tool_id(tool)

    def _reached(self) -> None:
        if self._inside or threading.get_ident() != self._thread:
            return
        self.count += 1
        self._inside = True
        try:
            self._action(self.count)
        finally:
            self._inside = False

    def _monitor(self, monitoring: Any) -> None:
        events, tool = monitoring.events, monitoring.DEBUGGER_ID
        monitoring.use_tool_id(tool, "vardag-checkpoints")
        for event in (events.PY_START, events.PY_RESUME, events.C_RETURN):
            monitoring.register_callback(tool, event, lambda *a: self._reached())
        monitoring.register_callback(tool, events.JUMP, lambda c, o, d: self._reached() if d < o else None)
        monitoring.register_callback(tool, events.CALL, lambda *a: None)
        for code in self._codes:  # C_RETURN comes with CALL
            monitoring.set_local_events(tool, code, events.PY_START | events.PY_RESUME | events.CALL | events.JUMP)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if code not in self._codes:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            before = self._before.get(frame)
            self._before[frame] = frame.f_lasti
            if before is not None and self._is_checkpoint(code, before, frame.f_lasti):
                self._reached()
        elif event == "return":
            self._before.pop(frame, None)
        return self._trace

    def _is_checkpoint(self, code: CodeType, before: int, now: int) -> bool:
        """The eval loop looks for interrupts after these; still within the same protected range."""
        entry = self._maps.get(code)
        if entry is None:
            names = {x.offset: x.opname for x in dis.get_instructions(code)}
            entry = self._maps[code] = names, list(dis._parse_exception_table(code))  # type: ignore[attr-defined]
        names, table = entry
        kind = names.get(before)
        return kind in ("RESUME", "JUMP_BACKWARD", "CALL", "CALL_FUNCTION_EX") and _covered(table, before) == _covered(
            table, now
        )
