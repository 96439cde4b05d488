"""MXNet's Engine contract in Python spelling, on top of the tracker.

Owns the translation and nothing else: ``const_vars`` are reads, ``mutable_vars`` are updates, a `SavedOperator` is
pushed as a new operation each time.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from . import lifecycle
from .aio import Awaiting
from .claims import Completion, RunContext
from .errors import ArgumentError, ArgumentTypeError
from .operation import Kind, Operation
from .threaded import PRIORITY
from .variable import Variable

AsyncFn = Callable[[RunContext, Completion], Any]


class FnProperty(enum.Enum):
    """What a function is for, as in MXNet; the per-device engine chooses the lane by it."""

    NORMAL = 0
    COPY_FROM_GPU = 1
    COPY_TO_GPU = 2
    CPU_PRIORITIZED = 3
    ASYNC = 4
    DELETE_VAR = 5
    GPU_PRIORITIZED = 6


class SavedOperator:
    """A function with its variables, saved to be pushed many times: see `Contract.new_operator`."""

    __slots__ = ("const_vars", "deleted", "engine", "fn", "mutable_vars", "name", "prop")

    def __init__(
        self,
        engine: Contract,
        fn: AsyncFn,
        const_vars: tuple[Variable, ...],
        mutable_vars: tuple[Variable, ...],
        prop: FnProperty,
        name: str,
    ) -> None:
        self.engine = engine
        self.fn = fn
        self.const_vars = const_vars
        self.mutable_vars = mutable_vars
        self.prop = prop
        self.name = name
        self.deleted = False

    def __repr__(self) -> str:
        return f"<SavedOperator {self.name or '?'}{', deleted' if self.deleted else ''}>"


class Bulk:
    """``with engine.bulk(n):`` see `Contract.bulk`."""

    def __init__(self, engine: Contract, size: int) -> None:
        self._engine = engine
        self._size = size
        self._old: list[int] = []

    def __enter__(self) -> None:
        self._old.append(self._engine.set_bulk_size(self._size))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._engine.set_bulk_size(self._old.pop())


class Contract(Awaiting):
    """The engine's waits, and MXNet's way of pushing."""

    def __init__(self) -> None:
        super().__init__()
        self._quiet = False  # notify_shutdown: unseen errors are not logged

    def _push(self, op: Operation, reads: Any, writes: Any, updates: Any) -> Operation:
        raise NotImplementedError

    # ================================================================================================ variables
    def delete_variable(self, variable: Variable, on_delete: Callable[[], object] | None = None) -> None:
        """Delete a variable: at once for further use; what was pushed before still runs.

        Parameters
        ----------
        variable : Variable
        on_delete : callable, optional
            Called, on a worker, when everything pushed on `variable` so far is done, whether well or not.

        Sync: never blocks.

        Raises
        ------
        ArgumentError, ArgumentTypeError
            At the call.
        """
        self._check(variable)
        if on_delete is not None:
            if not callable(on_delete):
                raise ArgumentTypeError(f"[delete_variable] on_delete {on_delete!r} is not callable")
            op = Operation(Kind.USER, on_delete, f"delete {variable.name}".strip())
            self._push(op, (), (variable,), ())  # a write, so that no poison skips it
        variable.deleted = True
        variable.engine = None

    # ================================================================================================ operators
    def new_operator(
        self,
        fn: AsyncFn,
        const_vars: Iterable[Variable] = (),
        mutable_vars: Iterable[Variable] = (),
        prop: FnProperty = FnProperty.NORMAL,
        name: str = "",
    ) -> SavedOperator:
        """Save ``fn(run_ctx, on_complete)`` with its variables, to be pushed many times.

        Examples
        --------
        >>> from vardag.engine import Engine
        >>> with Engine(workers=1) as e:
        ...     v, out = e.new_variable(), []
        ...     def fn(run_ctx, on_complete):
        ...         out.append(1)
        ...         on_complete()
        ...     saved = e.new_operator(fn, mutable_vars=[v])
        ...     for _ in range(3):
        ...         _ = e.push_operator(saved)
        ...     e.wait_for_var(v)
        ...     e.delete_operator(saved)
        ...     len(out)
        3
        """
        const, mutable = self._vars("new_operator", fn, const_vars, mutable_vars, prop)
        return SavedOperator(self, fn, const, mutable, prop, name or getattr(fn, "__name__", ""))

    def delete_operator(self, operator: SavedOperator) -> None:
        """Delete a saved operator; what was pushed of it still runs.  Sync: never blocks."""
        self._saved("delete_operator", operator)
        operator.deleted = True

    def push_operator(self, operator: SavedOperator, ctx: Any = None, priority: int = 0) -> Operation:
        """Push a saved operator (`Engine.push` takes one too).  Sync: never blocks."""
        self._saved("push_operator", operator)
        return self._push_async(
            operator.fn, ctx, operator.const_vars, operator.mutable_vars, operator.prop, priority, operator.name
        )

    def push_async(
        self,
        fn: AsyncFn,
        ctx: Any = None,
        const_vars: Iterable[Variable] = (),
        mutable_vars: Iterable[Variable] = (),
        prop: FnProperty = FnProperty.NORMAL,
        priority: int = 0,
        name: str = "",
    ) -> Operation:
        """Push ``fn(run_ctx, on_complete)``: done when ``on_complete()`` or ``on_complete(error)`` is called, by any
        thread.

        Parameters
        ----------
        fn : callable
        ctx : device context, optional
            Where it runs; given to `fn` as ``run_ctx.ctx``.
        const_vars, mutable_vars : iterable of Variable
            What it reads; what it reads and changes.
        prop : FnProperty
        priority : int
        name : str

        Sync: never blocks.

        Raises
        ------
        ArgumentError, ArgumentTypeError, EngineClosed
            At the call, with nothing changed; a variable given twice is an error here, as in MXNet.

        Examples
        --------
        >>> import threading
        >>> from vardag.engine import Engine
        >>> with Engine(workers=1) as e:
        ...     v = e.new_variable()
        ...     _ = e.push_async(lambda run_ctx, done: threading.Thread(target=done).start(), mutable_vars=[v])
        ...     e.wait_for_var(v)
        """
        const, mutable = self._vars("push_async", fn, const_vars, mutable_vars, prop)
        return self._push_async(fn, ctx, const, mutable, prop, priority, name or getattr(fn, "__name__", ""))

    def push_sync(
        self,
        fn: Callable[[RunContext], Any],
        ctx: Any = None,
        const_vars: Iterable[Variable] = (),
        mutable_vars: Iterable[Variable] = (),
        prop: FnProperty = FnProperty.NORMAL,
        priority: int = 0,
        name: str = "",
    ) -> Operation:
        """Push ``fn(run_ctx)``, done when it returns.  ("Sync" is the function; the push never blocks.)"""
        const, mutable = self._vars("push_sync", fn, const_vars, mutable_vars, prop)
        run_ctx = RunContext(ctx, self)
        op = Operation(Kind.USER, lambda: fn(run_ctx), name or getattr(fn, "__name__", ""), priority=priority)
        op.lane = lane_of(ctx, prop)
        if lifecycle.checking is not None:
            op.fn = lifecycle.checking.watch(op, lambda: fn(run_ctx), variables=(*const, *mutable))
        return self._push(op, const, (), mutable)

    def _push_async(
        self,
        fn: AsyncFn,
        ctx: Any,
        const: tuple[Variable, ...],
        mutable: tuple[Variable, ...],
        prop: FnProperty,
        priority: int,
        name: str,
    ) -> Operation:
        run_ctx = RunContext(ctx, self)
        op = Operation(Kind.ASYNC, lambda _, on_complete: fn(run_ctx, on_complete), name, priority=priority)
        op.lane = lane_of(ctx, prop)
        return self._push(op, const, (), mutable)

    # ================================================================================================ bulk, shutdown
    def set_bulk_size(self, size: int) -> int:
        """Set how many pushed operations the engine takes over in one step, and how many elementwise operators may run
        as one operation (see joining.py); returns the previous number.

        Larger costs less per operation, smaller lets others at the scheduler sooner.  It never changes results.
        """
        if not isinstance(size, int) or size < 1:
            raise ArgumentError(f"[set_bulk_size] {size!r}: expected a positive number")
        old, self._bulk = self._bulk, size
        return old

    def bulk(self, size: int) -> Bulk:
        """``with engine.bulk(n):`` sets the bulk size inside.

        Examples
        --------
        >>> from vardag.engine import Engine
        >>> with Engine(workers=1) as e:
        ...     with e.bulk(16):
        ...         e.set_bulk_size(8)
        16
        """
        if not isinstance(size, int) or size < 1:
            raise ArgumentError(f"[bulk] {size!r}: expected a positive number")
        return Bulk(self, size)

    def notify_shutdown(self) -> None:
        """Say that the process is about to end: errors that nobody has seen are then not logged.  Sync: never
        blocks.
        """
        self._quiet = True

    # ------------------------------------------------------------------------------------------------ arguments
    def _vars(
        self, call: str, fn: Any, const_vars: Iterable[Variable], mutable_vars: Iterable[Variable], prop: Any
    ) -> tuple[tuple[Variable, ...], tuple[Variable, ...]]:
        if not callable(fn):
            raise ArgumentTypeError(f"[{call}] fn {fn!r} is not callable")
        if not isinstance(prop, FnProperty):
            raise ArgumentTypeError(f"[{call}] prop {prop!r} is not an FnProperty")
        const, mutable = tuple(const_vars), tuple(mutable_vars)
        for v in (*const, *mutable):
            self._check(v)
        if len({*const, *mutable}) != len(const) + len(mutable):
            raise ArgumentError(f"[{call}] a variable is given twice in const_vars and mutable_vars")
        return const, mutable

    def _saved(self, call: str, operator: SavedOperator) -> None:
        if not isinstance(operator, SavedOperator):
            raise ArgumentTypeError(f"[{call}] {operator!r} is not a saved operator")
        if operator.engine is not self:
            raise ArgumentError(f"[{call}] the operator belongs to another engine")
        if operator.deleted:
            raise ArgumentError(f"[{call}] the operator {operator.name} was deleted")


def lane_of(ctx: Any, prop: FnProperty) -> str | None:
    """The name of the lane for a device context (an object with device_type and device_id, a string, or None)."""
    device = "" if ctx is None else ctx if isinstance(ctx, str) else f"{ctx.device_type}{ctx.device_id}"
    if not device or device.startswith("cpu"):
        return PRIORITY if prop is FnProperty.CPU_PRIORITIZED else None
    if prop is FnProperty.COPY_FROM_GPU:
        return f"{device}-copy-out"
    if prop is FnProperty.COPY_TO_GPU:
        return f"{device}-copy-in"
    return f"{device}-priority" if prop is FnProperty.GPU_PRIORITIZED else device
