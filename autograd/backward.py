"""Backward: gradients of heads with respect to marked arrays, and to any arrays of their graph.

The walk (walk.py) pushes the gradient operations; here arguments are checked, results handed over and waited for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from weakref import ref

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError, Pending
from ..ndarray.array import Array, writable
from ..ndarray.buffer import Admission, Buffer, Chunk, share
from ..ndarray.device import RawArray
from ..ndarray.line import Scope, line_of, scope, within
from ..ndarray.memory import PAGE, SMALL, follow
from ..ndarray.ndarray import NDArray
from ..ndarray.reading import describe
from ..ndarray.sparse_arrays import RowSparseNDArray
from ..operators.faces import numpy_face
from . import plans, rows
from .recorder import Recorder
from .tape import GraphError, Leaf, entries_of, entry_of
from .walk import ZERO, Walk, reshaped


def _arrays(what: str, value: Any) -> list[Array]:
    try:
        arrays = [value] if isinstance(value, Array) else list(value)
    except TypeError:
        arrays = [value]
    for a in arrays:
        if not isinstance(a, Array):
            raise ArgumentTypeError(f"[{what}] {a!r}: an array expected")
    if not arrays:
        raise ArgumentError(f"[{what}] no array given")
    return arrays


def _head_grads(heads: Sequence[Array], head_grads: Any) -> list[Any]:
    """Head gradients as arrays: ones where none is given; host arrays are copied at the call."""
    given = [None] * len(heads) if head_grads is None else [head_grads] if isinstance(head_grads, Array) else head_grads
    if len(given) != len(heads):
        raise ArgumentError(f"[backward] {len(heads)} heads, but {len(given)} head gradients")
    made = []
    for head, g in zip(heads, given, strict=True):
        if g is None and math.prod(head._shape) < PAGE:
            made.append(Array._young(head._place, np.ones(head._shape, head._dtype)))
        elif g is None:
            made.append(numpy_face.ones(shape=head._shape, dtype=head._dtype, ctx=head.context))
        elif isinstance(g, Array) and g._meta == head._meta:
            made.append(_snapshot(g))
        else:
            raise ArgumentError(f"[backward] head {describe(head)}, head gradient {describe(g)}: the same expected")
    return made


def _snapshot(g: Array) -> Array:
    """The value as of now, safe from later writes; on the tape if `g` is."""
    return numpy_face.copy(g)  # type: ignore[no-any-return]


def backward(
    heads: Any,
    head_grads: Any = None,
    retain_graph: bool = False,
    train_mode: bool = True,
    *,
    wait: bool = True,
) -> Pending | None:
    """Put the gradients of the heads with respect to all marked arrays into those arrays' ``grad``.

    Parameters
    ----------
    heads : array or list of arrays, of any shapes
    head_grads : arrays like the heads, or None for ones
        The weight of each element; gradients are those of the weighted sum.
    retain_graph : bool
        Keep what the graph saved, for another backward.
    train_mode : bool
        The mode that gradient operators run in.
    wait : bool
        Wait for the gradients.

    Returns
    -------
    Pending or None
        Without `wait`: what to ``await``, or ``wait()`` for.  It raises what the wait would have raised.

    Sync: pushes all gradient operations, then (with `wait`) blocks until they are done; for row-sparse gradients it
    blocks for their indices in any case.   Raises: GraphError, ArgumentError at the call; with `wait`, errors of the
    operations that the gradients come from.
    """
    arrays = _arrays("backward", heads)
    way = plans.Way(arrays, entries_of(arrays), None, retain_graph, wait)
    found = way.planned() if head_grads is None else None
    if found is not None and _stored(found):
        return None if wait else Pending(())
    gradients = within(Scope(None, train_mode, False), _backward, way, found, head_grads)
    if not wait:
        return Pending(writer for gradient in gradients for writer in gradient._writers())
    for gradient in gradients:
        gradient.wait_to_read()
    return None


def leaf_gradients(heads: Sequence[Array], wanted: Sequence[Leaf] | None) -> list[Array]:
    """The gradients of some leaves, by default of all above the heads in the order of marking, as new arrays.

    Sync: blocks until they are there.   Raises: as `backward`.
    """
    results = within(Scope(None, True, False), _leaf_gradients, heads, wanted)
    for result in results:
        result.wait_to_read()
    return results


def _leaf_gradients(heads: Sequence[Array], wanted: Sequence[Leaf] | None) -> list[Array]:
    entries = entries_of(heads)
    leaves = wanted or [n for n in Walk(entries, False, False).nodes if isinstance(n, Leaf)]
    cotangents = _cotangents(plans.Way(heads, entries, leaves, False, True), None)
    results: list[Array] = []
    for leaf in leaves:
        like = leaf.gradient
        if like is None:
            continue
        arrived = cotangents.get(leaf, [None])[0]
        zeros = arrived is None or arrived is ZERO
        made = numpy_face.zeros(shape=like.shape, dtype=like._dtype, ctx=like.context) if zeros else arrived
        made = made if made._dtype == like._dtype else numpy_face.cast(made, dtype=like._dtype)
        results.append(as_face(type(like) if isinstance(like, Array) else NDArray, reshaped(made, like.shape)))
    return _apart(results)


def _backward(way: plans.Way, found: Any, head_grads: Any) -> list[Any]:
    cotangents = _cotangents(way, head_grads) if found is None else way.cotangents(found)
    written = []
    for leaf, (arrived,) in cotangents.items():
        if arrived is not None and leaf.gradient is not None:
            _store(leaf.gradient, arrived, leaf.request)
            written.append(leaf.gradient)
    return written


def _cotangents(way: plans.Way, head_grads: Any, create: bool = False) -> dict[Any, list[Any]]:
    """What arrives at each output of the targets, in the order of recording."""
    if head_grads is not None or any(math.prod(head._shape) >= PAGE for head in way.heads):
        way.given = _head_grads(way.heads, head_grads)
        found = None if create else way.planned()
        if found is not None:
            return way.cotangents(found)
    walk = Walk(way.entries, way.retain, create)
    if way.targets is None:
        leaves = [node for node in walk.nodes if isinstance(node, Leaf)]
        if all(leaf.gradient is None for leaf in leaves):
            raise GraphError("[backward] no marked array above the heads wants a gradient: see attach_grad")
        walk.rows = any(map(rows.wants, leaves))
    return way.walked(walk, way.given or _head_grads(way.heads, None))


def _stored(found: Sequence[plans.Found]) -> bool:
    """Hand the gradients of a plan over to their arrays, all in one admission.  False, and nothing done: it is not as
    simple as that."""
    versions: list[tuple[Chunk, Buffer]] = []
    seen: set[int] = set()
    for leaf, _, raw in found:
        target = leaf.gradient
        if type(raw) is not np.ndarray or leaf.request != "write" or not isinstance(target, Array):
            return False
        chunk = target._chunk
        old = chunk.buffer
        if target._strides is not None or old.dtype is not raw.dtype or not target.size == old.size == raw.size:
            return False
        if chunk.pinned or id(chunk) in seen:  # of two leaves with one gradient array the later one's stays
            return False
        if not old.device.whole(raw) or not raw.flags.c_contiguous or id(raw) in seen:
            raw = np.array(raw, order="C")  # noqa: PLW2901
        seen |= {id(raw), id(chunk)}
        memory = raw if raw.shape == old.shape else raw.reshape(old.shape)
        versions.append((chunk, Buffer(old.engine, old.shape, old.dtype, old.device, memory)))

    done: list[bool] = []  # by the commit: afterwards another thread may write the arrays

    def plan() -> Admission:
        steps: list[Any] = []
        keep: list[Any] = []
        if not any(chunk.pinned for chunk, _ in versions):
            for chunk, new in versions:
                keep.append(chunk.buffer)
                steps += (setattr, chunk, "buffer", new), (setattr, chunk, "version", chunk.version + 1)
            steps.append((list.append, done, True))
        return None, (), (), (), steps, keep, False

    for _, new in versions:
        if new.nbytes >= SMALL:
            follow(new.raw)
    if versions:
        versions[0][1].engine.admit(plan)
    return bool(done) or not versions


def _store(target: Any, gradient: Any, request: str) -> None:
    """Write or add a gradient to a marked array's; a whole one is handed over, not copied."""
    if gradient is ZERO:
        if request != "add":
            target[:] = 0
        return
    if isinstance(target, RowSparseNDArray):
        rows.store(target, gradient, request)
        return
    gradient = reshaped(gradient, target._shape)
    if request == "add":
        numpy_face.add(target, gradient, out=target)
        return
    old, raw = target._chunk, gradient._raw
    alike = target._strides is None and target._covers_chunk() and target._meta == gradient._meta
    alike = alike and target._place is gradient._place and not old.pinned
    if alike and raw is not None and target._place.device.whole(raw) and _hand_over(old, gradient, raw):
        return
    new = gradient._chunk
    fits = target._covers_chunk() and gradient._covers_chunk() and target._strides is gradient._strides is None
    if old.pinned or not fits or old.buffer.device is not new.buffer.device or target._meta != gradient._meta:
        numpy_face.assign(gradient, out=target)
        return

    done: list[bool] = []

    def plan() -> Admission:
        keep: list[Any] = [old.buffer]
        steps: list[Any] = []
        if not old.pinned:  # somebody may have lent it since
            steps += (setattr, old, "buffer", new.buffer), (setattr, old, "version", old.version + 1)
            steps += (*share(new.buffer, [old, new], keep), (list.append, done, True))
        return None, (), (), (), steps, keep, False

    new.buffer.engine.admit(plan)
    if not done:
        numpy_face.assign(gradient, out=target)


def _hand_over(chunk: Chunk, gradient: Array, raw: RawArray) -> bool:
    """The value of a young array as a chunk's next version.  False, and nothing done, if it is young no more, or
    somebody has lent the chunk's memory.

    The array may be another's gradient too, or a user's `Function` may keep it: the two share the bytes.
    """
    engine = chunk.place.engine
    own = Chunk(chunk.buffer, chunk.place)

    def plan() -> Admission:
        old = chunk.buffer
        if gradient._raw is not raw or chunk.pinned:
            return None, (), (), (), [], [old], False
        memory = writable(raw)
        buffer = Buffer(
            engine, old.shape, old.dtype, old.device, memory if raw.shape == old.shape else memory.reshape(old.shape)
        )
        own.buffer, own.line = buffer, line_of(gradient._shape, gradient._line)  # private until the commit
        buffer.holders += ref(chunk), ref(own)
        buffer.held = (0, buffer.size)
        steps: list[Any] = [
            (setattr, chunk, "buffer", buffer),
            (setattr, chunk, "version", chunk.version + 1),
            (setattr, gradient, "_chunk", own),
            (setattr, gradient, "_line", None),
            (setattr, gradient, "_raw", None),
        ]
        return None, (), (), (), steps, [old, gradient._line], False

    engine.admit(plan)
    return gradient._raw is None and gradient._chunk is own


def gradients_of(
    heads: Any,
    variables: Any,
    head_grads: Any,
    retain_graph: bool | None,
    create_graph: bool,
    train_mode: bool,
    unused: str,
) -> Any:
    """See `functional.grad`."""
    if unused not in ("error", "zeros", "none"):
        raise ArgumentError(f"[grad] unused {unused!r}: 'error', 'zeros' or 'none' expected")
    arrays, wanted = _arrays("grad", heads), _arrays("grad", variables)
    targets = [entry_of(v) for v in wanted]
    for variable, target in zip(wanted, targets, strict=True):
        if target is None and unused == "error":
            raise GraphError(
                f"[grad] the variable {describe(variable)} is not in the graph: neither marked nor recorded"
            )
    nodes = list(dict.fromkeys(target[0] for target in targets if target is not None))
    retain = create_graph if retain_graph is None else retain_graph
    current = scope.get()
    recorder = (current.recorder or Recorder()) if create_graph else None

    def walked() -> list[Any]:
        way = plans.Way(arrays, entries_of(arrays), nodes, retain, False)
        found = _cotangents(way, head_grads, create_graph)
        return _apart([_result(found, v, t, i, unused) for i, (v, t) in enumerate(zip(wanted, targets, strict=True))])

    results = within(Scope(recorder, train_mode, False), walked)
    return results[0] if isinstance(variables, Array) else results


def _apart(results: list[Any]) -> list[Any]:
    """The same arrays, but no two over the same memory: one cotangent may be the gradient of several variables."""
    chunks: set[Any] = set()
    for i, g in enumerate(results):
        if g is not None and g._chunk in chunks:
            results[i] = as_face(type(g), g.copy())
        elif g is not None:
            chunks.add(g._chunk)
    return results


def _result(cotangents: dict[Any, list[Any]], variable: Array, target: Any, position: int, unused: str) -> Any:
    arrived = cotangents.get(target[0]) if target is not None else None
    gradient = None if arrived is None else arrived[target[1]]
    if gradient is None:
        if unused == "error":
            raise GraphError(f"[grad] variable {position}, {describe(variable)}: no head depends on it")
        if unused == "none":
            return None
    if gradient is None or gradient is ZERO:
        gradient = numpy_face.zeros(shape=variable._shape, dtype=variable._dtype, ctx=variable.context)
    gradient = reshaped(gradient, variable._shape)
    if gradient._dtype != variable._dtype:  # 16-bit floats were added up in float32
        gradient = numpy_face.cast(gradient, dtype=variable._dtype)
    return as_face(type(variable), gradient)


def as_face(cls: type[Array], array: Array) -> Array:
    """The same array under another face."""
    if type(array) is cls:
        return array
    new = cls._over(array._chunk, array._shape, array._strides, array._offset)
    new._line = array._line
    return new
