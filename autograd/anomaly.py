"""`detect_anomaly`: the first operator that gives NaN or infinity, forward or backward.

While somebody looks, nothing runs at once and nothing joins: every kernel of the thread or task is an operation of its
own, which looks at what it has made and fails if that is not finite.  So the error is on the data like any other: what
depends on it is not computed, and each look at it raises.  While nobody looks, a push asks whether a list is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import Token
from functools import partial
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np

from .. import engine as _engine
from ..engine import ArgumentError, Engine, Error, Kind, Operation, Variable
from ..ndarray.buffer import Buffer
from ..ndarray.dtype import is_float
from ..operators.launch import Launch, watch, watchers
from ..operators.texts import GradientLaunch


class AnomalyError(Error, FloatingPointError):
    """An operator gave NaN or infinity: see `detect_anomaly`."""


#: how each engine ran that somebody looks at, and how many do
_engines: dict[Engine, tuple[int, bool, bool]] = {}
_lock = Lock()


class detect_anomaly:
    """A ``with`` block that finds the first operator whose result has NaN (or infinities).

    It raises AnomalyError, which names the operator, its operands and the line that pushed it, and for a gradient the
    line that recorded the operator: at the wait (of `backward`, say) that comes upon it, at the latest at the end of
    the block.  The value that is not finite counts as failed: other looks at it raise, too, until it is overwritten.

    Parameters
    ----------
    infinite : bool
        Whether infinities count as well as NaN.

    What this thread or task pushes to the engine that is current at the beginning is looked at, in forward and in
    backward; backward may come in another block than forward.  For searching: the engine is slow meanwhile.

    Sync: the end of the block waits for what was pushed in it.   Raises: AnomalyError, a FloatingPointError.

    >>> from vardag import nd, autograd
    >>> x = nd.array([1.0, 0.0]); x.attach_grad()
    >>> with autograd.record():
    ...     y = nd.sqrt(x)
    >>> with autograd.detect_anomaly():
    ...     y.backward()
    Traceback (most recent call last):
        ...
    vardag.autograd.anomaly.AnomalyError: [sqrt] its gradient, ... has inf ...
    """

    def __init__(self, *, infinite: bool = True) -> None:
        self.infinite = infinite
        self._blocks: list[tuple[Token[Any], Finder, Engine]] = []

    def __enter__(self) -> None:
        engine, finder = _engine.current(), Finder(self.infinite)
        with _lock:
            count, inline, fusion = _engines.get(engine, (0, engine.inline, engine.fusion))
            _engines[engine] = count + 1, inline, fusion
            engine.inline = engine.fusion = False
            watchers.append(finder)
        self._blocks.append((watch.set(finder), finder, engine))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        finder, engine = self._leave()
        with _lock:
            count, inline, fusion = _engines.pop(engine)
            if count > 1:
                _engines[engine] = count - 1, inline, fusion
            else:
                engine.inline, engine.fusion = inline, fusion
            watchers.remove(finder)
        if error is None or isinstance(error, AnomalyError):
            found = finder.first()
            if found is not None and (error is None or str(found) != str(error)):
                raise found  # a wait may have come upon a later one

    def _leave(self) -> tuple[Finder, Engine]:
        """Back to what was before in this context: other threads and tasks may be in the same block."""
        for entry in reversed(tuple(self._blocks)):
            token, finder, engine = entry
            try:
                watch.reset(token)
            except ValueError:  # another context's
                continue
            self._blocks.remove(entry)
            return finder, engine
        raise ArgumentError("[detect_anomaly] a block is left in the thread or task that entered it")

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, tb)


def tell(node: Any) -> None:
    """The walk is at this node; None: it is over."""
    finder = watch.get()
    if finder is not None:
        finder.node = node


class Finder:
    """Makes the operations of one block.

    `node`: whose gradient is being pushed.   `variables`: those of all results, in the order of the pushes.
    """

    __slots__ = ("infinite", "node", "variables")

    def __init__(self, infinite: bool) -> None:
        self.infinite, self.node = infinite, None
        self.variables: dict[Variable, None] = {}

    def forward(self, launch: Launch, words: Callable[[], str]) -> Operation:
        """The operation of a kernel."""
        op, node = launch.op, self.node
        text = f"[{op.name}] its result"
        if node is not None:
            text = f"[{node.op.name}] its gradient, recorded at {node.recorded_at}, of which {op.name} is a part,"
        results = [r for r in launch.results[: len(op.outputs)] if r is not None]
        operands = [(op.input_name(i), o) for i, o in enumerate(launch.operands)]
        self._follow([r[0] for r in results])
        device: Any = results[0][0].device
        run = partial(launch.there, device) if device.queued else launch.run
        looks = _Looks(run, text, self.infinite, operands, [r[:4] for r in results])
        if device.queued:
            return device.operation(  # type: ignore[no-any-return]
                op.name, looks, *launch.uses(), operands=words, nbytes=launch.weigh
            )
        return Operation(Kind.KERNEL, looks, op.name, operands=words, nbytes=launch.weigh)

    def backward(self, launch: GradientLaunch, recorded_at: str) -> Operation:
        """The operation of gradient texts."""
        outs = [out for _, _, part in launch.parts for out in part if out is not None]
        operands = [("the head gradient" if n == "g" or n.startswith("g_") else n, v) for n, v in launch.values.items()]
        self._follow([buffer for _, _, buffer in outs])
        text = f"[{launch.op.name}] its gradient, recorded at {recorded_at},"
        looks = _Looks(launch, text, self.infinite, operands, [(b, meta[0], None, 0) for _, meta, b in outs])
        name, words = f"backward of {launch.op.name}", f"recorded at {recorded_at}"
        device: Any = outs[0][2].device
        if device.queued:
            return device.operation(  # type: ignore[no-any-return]
                name, looks, launch.used(), [b for _, _, b in outs], operands=words, nbytes=launch.weigh
            )
        return Operation(Kind.KERNEL, looks, name, operands=words, nbytes=launch.weigh)

    def _follow(self, buffers: list[Buffer]) -> None:
        for buffer in buffers:
            self.variables[buffer.variable] = None

    def first(self) -> BaseException | None:
        """Wait for everything; the error of the operation that was pushed first.  All of them count as seen."""
        found: list[tuple[int, AnomalyError]] = []
        for variable in self.variables:
            writer = variable.writer
            if writer is None or writer.engine is None:
                continue
            writer.engine.wait_op(writer, None)
            root = None if writer.fate is None else writer.fate.root
            if root is not None and isinstance(root.exc, AnomalyError):
                try:
                    writer.raise_error()
                except AnomalyError as error:
                    found.append((root.seq, error))
        return min(found, key=lambda pair: pair[0])[1] if found else None


class _Looks:
    """A kernel that fails if what it has made is not finite."""

    __slots__ = ("infinite", "operands", "results", "run", "text")

    def __init__(self, run: Callable[[], Any], text: str, infinite: bool, operands: Any, results: Any) -> None:
        self.run, self.text, self.infinite, self.operands, self.results = run, text, infinite, operands, results

    def __call__(self) -> None:
        before = [name for name, view in self.operands if any(self._wrong(raw) for raw in _raws(view))]
        self.run()
        for view in self.results:
            for raw in _raws(view):
                word = self._wrong(raw)
                if word:
                    why = f"so had {', '.join(before)}" if before else "no operand had any"
                    raise AnomalyError(f"{self.text} has {word}; {why}")

    def _wrong(self, raw: Any) -> str:
        """``nan in 2 of 6 elements``, or nothing."""
        if not is_float(raw.dtype):
            return ""
        for word, test in (("nan", np.isnan), ("inf", np.isinf))[: 1 + self.infinite]:
            count = int(np.count_nonzero(test(raw)))
            if count:
                return f"{word} in {count} of {raw.size} elements"
        return ""


def _raws(view: Any) -> Iterator[Any]:
    """The raw arrays of an operand: a view of a buffer, a constant, or a list of such."""
    if type(view) is tuple and view and isinstance(view[0], Buffer):
        yield view[0].view(*view[1:])
    elif type(view) is list:
        for part in view:
            yield from _raws(part)
    elif isinstance(view, np.ndarray | np.generic):
        yield view
