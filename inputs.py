"""Input (`vardag.io`): what prepares data while the program computes.

`prefetch` runs an iterator ahead on the engine; `batches` cuts arrays into batches.  Nothing here knows of operators:
a prefetcher is a chain of operations that update one variable, the iterator's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any
from weakref import ref

import numpy as np

from . import engine as _engine
from .engine import ArgumentError, ArgumentTypeError, Operation
from .engine.access import undeclared
from .ndarray import Array, Context, array
from .ndarray.reading import describe

END = object()


class _Slot:
    """Where an operation puts its item; END if there is none."""

    __slots__ = ("item",)

    def __init__(self) -> None:
        self.item: Any = END


class _Source:
    """The iterator, as the operations see it.  They are ordered, so no two of them use it at a time."""

    def __init__(self, source: Any, owner: ref[Prefetcher]) -> None:
        self.owner = owner
        self.ended = False
        self.asynchronous = not isinstance(source, Iterable) and isinstance(source, AsyncIterable)
        self.iterator: Any = source.__aiter__() if self.asynchronous else iter(source)

    def fetch(self, slot: _Slot) -> Callable[[], Any]:
        """The function of one operation."""
        return self._later(slot) if self.asynchronous else lambda: self._now(slot)

    def _over(self) -> bool:
        owner = self.owner()  # gone: the loop over it was left
        return self.ended or owner is None or owner.closed

    def _now(self, slot: _Slot) -> None:
        if not self._over():
            self.ended = True  # unless an item comes: an error ends it too
            with undeclared():
                for slot.item in self.iterator:
                    self.ended = False
                    return

    def _later(self, slot: _Slot) -> Callable[[], Any]:
        async def fetch() -> None:
            if not self._over():
                self.ended = True
                slot.item = await anext(self.iterator, END)
                self.ended = slot.item is END

        return fetch

    def close(self) -> None:
        """End a generator."""
        self.ended = True
        close = getattr(self.iterator, "close", None)
        if close is not None:
            with undeclared():
                close()

    async def aclose(self) -> None:
        """End an asynchronous generator."""
        self.ended = True
        close = getattr(self.iterator, "aclose", None)
        if close is not None:
            await close()


class Prefetcher(Iterator[Any], AsyncIterator[Any]):
    """What `prefetch` gives: an iterator for ``for`` and for ``async for``.  Use one of the two, in one thread or task.

    It is over when the source is, when an error has been raised, and when it is closed: by `close`, by the end of a
    ``with`` or ``async with``, or when nobody holds it any more, as after a ``break``.
    """

    def __init__(self, source: Any, depth: int) -> None:
        self.closed = False
        self._engine = _engine.current()
        self._source = _Source(source, ref(self))
        self._variable = self._engine.new_variable("prefetch")
        self._ahead: deque[tuple[Operation, _Slot]] = deque()
        for _ in range(depth):
            self._push()

    def _push(self) -> None:
        slot = _Slot()
        op = self._engine.push(self._source.fetch(slot), updates=[self._variable], name="prefetch")
        self._ahead.append((op, slot))

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Any:
        """The next item.  Sync: blocks until it is there.   Raises: the source's error, at its item."""
        op, slot = self._first()
        if op is not None:
            try:
                op.wait()
            except BaseException:
                self._ended(op)
                raise
            if self._took(slot):
                return slot.item
        raise StopIteration

    def __aiter__(self) -> Prefetcher:
        return self

    async def __anext__(self) -> Any:
        """The next item.  Suspends the calling task until it is there.   Raises: the source's error, at its item."""
        op, slot = self._first()
        if op is not None:
            try:
                await op
            except BaseException:
                self._ended(op)
                raise
            if self._took(slot):
                return slot.item
        raise StopAsyncIteration

    def _first(self) -> tuple[Operation | None, _Slot]:
        return self._ahead[0] if self._ahead and not self.closed else (None, _Slot())

    def _took(self, slot: _Slot) -> bool:
        """The first one is done: is it an item?  Then another is fetched."""
        if slot.item is END:
            self.closed = True
            return False
        self._push()  # first: if it is refused, nothing is taken
        self._ahead.popleft()
        return True

    def _ended(self, op: Operation) -> None:
        if op.done:  # else the wait was interrupted, and may be repeated
            self.closed = True

    def close(self) -> None:
        """Fetch no more, and end the source if it is a generator.  Sync: blocks until it has ended.

        Raises: what the generator raises when it is closed.
        """
        op = self._close()
        if op is not None:
            op.wait()

    async def aclose(self) -> None:
        """As `close`, to be awaited."""
        op = self._close()
        if op is not None:
            await op

    def _close(self) -> Operation | None:
        done, self.closed = self._source.ended and self.closed, True
        self._ahead.clear()
        if done:
            return None
        close = self._source.aclose if self._source.asynchronous else self._source.close
        return self._engine.push(close, writes=[self._variable], name="close prefetch")

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Prefetcher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


def prefetch(source: Iterable[Any] | AsyncIterable[Any], depth: int = 2) -> Prefetcher:
    """Iterate ahead, on the current engine, while the program does something else.

    Parameters
    ----------
    source : iterable or asynchronous iterable
        Of anything.  Its items are asked for one at a time and in order, by workers (an asynchronous one's by the event
        loop that this is called on, else by the engine's).  When, is open: what it reads, the program should not write
        meanwhile.  (`batches` has values of its own.)
    depth : int
        How many items may be there before they are asked for, at most.

    Returns
    -------
    Prefetcher
        For ``for`` and ``async for``.  It closes the source on ``break`` when nobody else holds it, and at the end of a
        ``with``; an error of the source arrives at its item, after those before it.

    Sync: never blocks; asking for an item blocks until it is there.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        At the call.

    Examples
    --------
    >>> import vardag as vd
    >>> [x * x for x in vd.io.prefetch(range(5), depth=2)]
    [0, 1, 4, 9, 16]
    """
    if not isinstance(source, Iterable | AsyncIterable):
        raise ArgumentTypeError(f"[prefetch] source {type(source).__name__}: an iterable expected")
    if type(depth) is not int or depth < 1:
        raise ArgumentError(f"[prefetch] depth {depth!r}: expected a number from 1 on")
    return Prefetcher(source, depth)


class ArrayDataset:
    """Arrays whose first axes run over the same examples.

    Parameters
    ----------
    arrays : arrays of shapes (n, ...), of the library or of the host
        Those of the host are copied at the call, and keep their dtypes.

    ``len(d)`` is n; ``d[i]`` gives the i-th example, ``d[i:j]`` several and ``d[indices]`` those, as a tuple of arrays.
    Never blocks.

    >>> import vardag as vd
    >>> d = vd.io.ArrayDataset([[1, 2], [3, 4], [5, 6]], [0, 1, 2])
    >>> x, y = d[[2, 0]]
    >>> x.asnumpy().tolist(), y.asnumpy().tolist()
    ([[5, 6], [1, 2]], [2, 0])
    """

    def __init__(self, *arrays: Any) -> None:
        if not arrays:
            raise ArgumentError("[ArrayDataset] no array given")
        self.arrays: tuple[Any, ...] = tuple(map(_as_array, arrays))
        lengths = [a.shape[0] if a.shape else None for a in self.arrays]
        if None in lengths or len(set(lengths)) > 1:
            shapes = ", ".join(str(a.shape) for a in self.arrays)
            raise ArgumentError(f"[ArrayDataset] shapes {shapes}: first axes of one length expected")

    def __len__(self) -> int:
        return int(self.arrays[0].shape[0])

    def __getitem__(self, key: Any) -> tuple[Any, ...]:
        if isinstance(key, int | np.integer):
            if not -len(self) <= key < len(self):
                raise IndexError(f"[ArrayDataset] {key}: there are {len(self)} examples")
            return tuple(a[int(key)].copy() for a in self.arrays)
        if isinstance(key, slice):
            return tuple(a[key].copy() for a in self.arrays)  # shares the memory until one of the two is written
        rows = np.asarray(key)
        return tuple(a[rows] for a in self.arrays)


class Batches:
    """What `batches` gives: each ``for`` over it is another epoch."""

    def __init__(self, dataset: ArrayDataset, size: int, shuffle: bool, seed: Any, last: str) -> None:
        self.dataset, self.size, self.shuffle, self.last = dataset, size, shuffle, last
        self.epoch = 0
        self._seeds = np.random.SeedSequence(seed)

    def __len__(self) -> int:
        """How many batches an epoch has."""
        n = len(self.dataset)
        return n // self.size if self.last == "discard" else -(-n // self.size)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        # now: a prefetcher's operations come to the batches when the schedule lets them
        return self._epoch(epoch, ArrayDataset(*(a.copy() for a in self.dataset.arrays)))

    def _epoch(self, epoch: int, dataset: ArrayDataset) -> Iterator[tuple[Any, ...]]:
        n, size = len(dataset), self.size
        order = None
        if self.shuffle:
            seeds = np.random.SeedSequence(self._seeds.entropy, spawn_key=(epoch,))
            order = np.random.default_rng(seeds).permutation(n)
        for begin in range(0, len(self) * size, size):
            if self.last == "pad" and begin + size > n:
                rows = np.arange(begin, begin + size) % n
                yield dataset[rows if order is None else order[rows]]
            elif order is None:
                yield dataset[begin : min(begin + size, n)]
            else:
                yield dataset[order[begin : begin + size]]


def batches(
    arrays: Any, batch_size: int, *, shuffle: bool = False, seed: int | None = None, last: str = "keep"
) -> Batches:
    """Cut arrays into batches along their first axes.

    Parameters
    ----------
    arrays : ArrayDataset, array of shape (n, ...), or sequence of such arrays
    batch_size : int
    shuffle : bool
        In another order each epoch: the k-th ``for`` over the result has the k-th order of this `seed`.
    seed : int, optional
        The same seed gives the same orders; None: others every time.
    last : str
        What becomes of the last n mod `batch_size` examples: "keep" a smaller batch, "discard" them, or "pad" the batch
        with examples from the beginning of the epoch's order.

    Returns
    -------
    Batches
        Of tuples of arrays (batch_size, ...).  They share no memory that anybody can see: writing one changes no other.
        An epoch has the values that the arrays have when its ``for`` begins (or its `prefetch`): what is written
        meanwhile is copied.

    Sync: never blocks, nor does iterating.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        At the call.

    Examples
    --------
    >>> import vardag as vd
    >>> [x.shape for x, in vd.io.batches(vd.nd.zeros((5, 3)), 2)]
    [(2, 3), (2, 3), (1, 3)]
    """
    if type(batch_size) is not int or batch_size < 1:
        raise ArgumentError(f"[batches] batch_size {batch_size!r}: expected a number from 1 on")
    if last not in ("keep", "discard", "pad"):
        raise ArgumentError(f"[batches] last {last!r}: 'keep', 'discard' or 'pad' expected")
    if not isinstance(arrays, ArrayDataset):
        several = isinstance(arrays, Sequence)
        arrays = ArrayDataset(*arrays) if several else ArrayDataset(arrays)
    if last == "pad" and not len(arrays):
        raise ArgumentError("[batches] no example to pad with")
    return Batches(arrays, batch_size, shuffle, seed, last)


def split_and_load(data: Any, ctx_list: Sequence[Context], batch_axis: int = 0, even_split: bool = True) -> list[Any]:
    """A batch in as many parts as there are contexts, each on its own: data parallelism in one process.

    Parameters
    ----------
    data : array, NumPy array, or nested sequences
        The batch.
    ctx_list : sequence of Context
    batch_axis : int
        The axis that is cut.
    even_split : bool
        Whether the parts must be of one length.  If not, the last one is longer.

    Sync: never blocks.   Raises: ArgumentError at the call, if the batch cannot be cut like that.   Gradient: g, in its
    place.   Source: MXNet gluon.utils.split_and_load.

    >>> from vardag import io, nd
    >>> [part.shape for part in io.split_and_load(nd.ones((6, 2)), [nd.cpu(0), nd.cpu(1)])]
    [(3, 2), (3, 2)]
    """
    whole, contexts = data if isinstance(data, Array) else array(data), list(ctx_list)
    if not contexts or not -whole.ndim <= batch_axis < whole.ndim:
        raise ArgumentError(f"[split_and_load] {describe(whole)}: contexts, and one of its axes to cut, expected")
    length, count = whole.shape[batch_axis], len(contexts)
    if length < count or (even_split and length % count):
        raise ArgumentError(f"[split_and_load] {describe(whole)}: axis {batch_axis} cannot be cut into {count} parts")
    step, parts = length // count, []
    for i, context in enumerate(contexts):
        high = length if i == count - 1 else (i + 1) * step
        key = (*[slice(None)] * (batch_axis % whole.ndim), slice(i * step, high))
        parts.append(whole[key].as_in_context(context))
    return parts


def _as_array(value: Any) -> Any:
    if hasattr(value, "wait_to_read"):
        return value
    host = np.asarray(value)
    return array(host, dtype=host.dtype)
