"""Updates of many weights by one operation, and what training loops ask of many arrays.

The arrays come interleaved: weight, grad and the states of the first weight, then those of the second.  `out` is the
list of the weights (or of other arrays, which leaves the weights as they are).  In the push each array has its own
variable, so the operation waits for exactly what it uses; a number of arrays has its own `Operator`.

All operands are checked at the call, in time proportional to their number: the push path's own checks compare them in
pairs.

>>> from vardag import nd
>>> weights, grads = [nd.ones((2,)), nd.ones((3,))], [nd.ones((2,)), nd.ones((3,))]
>>> pairs = [array for pair in zip(weights, grads) for array in pair]
>>> updated = nd.multi_sgd_update(*pairs, lrs=(0.5, 0.25), wds=(0, 0), out=weights)
>>> [w.asnumpy().tolist() for w in weights]
[[0.5, 0.5], [0.75, 0.75, 0.75]]
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from ..engine import ArgumentError, ArgumentTypeError, Variable
from ..engine.parallel import parallel
from ..ndarray.array import Array
from ..ndarray.buffer import Admission, Chunk, Writing
from ..ndarray.dtype import FLOAT32, is_float
from ..ndarray.line import READ_ONLY, scope
from ..ndarray.ndarray import NDArray
from ..ndarray.reading import describe
from .faces import nd_face
from .launch import HELPED, Launch, do
from .optimizer import sgd_mom_update, sgd_update
from .optimizer_tiles import PART, Calls, Formula, note, note_mixed, parts
from .products import FOR_WORKERS
from .push import _identical, _overlap, _Push, _where
from .schema import Attributes, Metas, Operator, Step, size_of

Use = tuple[int, Any, bool]

SHARED = HELPED  # units of work from which several workers do it: below, its calls are too short for two threads
SHARE = 1 << 16  # elements of weights that are worth a piece


class Form(NamedTuple):
    """What an update of many weights is made of."""

    name: str
    formula: Formula
    states: tuple[str, ...]
    mixed: bool
    preloaded: bool

    @property
    def roles(self) -> tuple[str, ...]:
        return ("weight", "grad", *self.states, *(("weight32",) if self.mixed else ()))


def _cost(metas: Metas, made: Metas, attributes: Attributes) -> float:
    work = 4.0 * (size_of(metas) + size_of(made))
    return max(work, FOR_WORKERS) if work >= SHARED else work


@cache
def _operator(form: Form, count: int) -> Operator:
    """The operator for so many weights."""
    roles, step = form.roles, len(form.roles)
    inputs = [f"{role}_{i}" for i in range(count) for role in roles]
    inputs += ["lrs", "wds"] if form.preloaded else []
    outputs = tuple(f"out_{i}" for i in range(count))
    changed = range(2, 2 + len(form.states))
    apply = note_mixed if form.mixed else note

    def kernel(xp: Any, *arrays: Any, lrs: Any = (), wds: Any = (), **given: Any) -> list[Step]:
        outs = [given.pop(name) for name in outputs]
        if form.preloaded:
            *arrays, lrs, wds = arrays  # type: ignore[assignment]
            lrs, wds = lrs.tolist(), wds.tolist()
        jobs = []
        for i, out in enumerate(outs):
            attributes = {**given, "lr": lrs[i], "wd": wds[i]}
            jobs += [(p, attributes) for p in parts((*arrays[i * step : (i + 1) * step], out), out.shape)]

        def steps(some: Iterable[Any]) -> list[Step]:
            calls = Calls()
            for pieces, attributes in some:
                apply(calls, form.formula, changed, pieces, attributes)
            return calls.steps

        if 4.0 * sum(a.size for a in (*arrays, *outs)) < SHARED:
            return steps(jobs)
        return [(parallel, lambda some: do(steps(some)), list(_shares(jobs)))]

    positional = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("xp", *inputs)]
    named = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in outputs]
    kernel.__signature__ = inspect.Signature(positional + named)  # type: ignore[attr-defined]
    updates = [f"{role}_{i}" for i in range(count) for role in roles[2:]]
    return Operator(
        form.name, kernel, lambda metas, attributes: ((), attributes), outputs=outputs, updates=tuple(updates),
        atomic=True, widen=False, cost=_cost, doc=form.name,
    )  # fmt: skip


def _shares(jobs: Sequence[Any]) -> Iterable[list[Any]]:
    """The jobs in order, in pieces of about `SHARE` elements."""
    piece, size = [], 0
    for job in jobs:
        piece.append(job)
        size += job[0][0].size
        if size > SHARE - PART:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


class Many(_Push):
    """A push whose operands are checked by what memory they use, not in pairs."""

    __slots__ = ("apart", "step")
    #: of each output given: is nothing of its chunk an operand?
    apart: dict[int, bool]
    #: operands of one weight
    step: int

    def writes_to(self, targets: Sequence[int]) -> None:
        inputs, step = self.inputs, self.step
        count = step * len(self.results)  # behind them are rates
        # (its place among inputs and then outputs, the array, is it changed?)
        uses: list[Use] = [(i, x, i < count and i % step >= 2) for i, x in enumerate(inputs)]
        self.targets, self.updated = targets, [x for _, x, changed in uses if changed]
        read = {x._chunk for _, x, _ in uses}
        for i in targets:
            result = self.results[i]
            self.apart[i] = result._chunk not in read
            if step and result is inputs[i * step]:
                uses[i * step] = i * step, result, True
            else:
                uses.append((len(inputs) + i, result, True))
        known: dict[Chunk, list[Use]] = {}
        for use in uses:
            _, x, changed = use
            if changed and x._line is READ_ONLY:
                raise ArgumentError(f"[{self.op.name}] {self._words(use)}: an input of Function.forward is read-only")
            others = known.setdefault(x._chunk, [])
            for other in others:
                if (changed or other[2]) and _overlap(x, other[1]) and not self._own(other, use):
                    words = f"{self._words(other)}, {self._words(use)}"
                    raise ArgumentError(f"[{self.op.name}] {words}: they share memory that it changes")
            others.append(use)

    def _words(self, use: Use) -> str:
        i, x, _ = use
        inputs = len(self.inputs)
        return f"{self.op.input_name(i) if i < inputs else f'out_{i - inputs}'} {describe(x)}"

    def _own(self, use: Use, other: Use) -> bool:
        """Is one the weight, and the other where its new value goes?"""
        (i, x, _), (j, y, _) = use, other
        return i == (j - len(self.inputs)) * self.step and _identical(x, y)

    def _outputs(
        self, launch: Launch, writes: list[Variable], updates: list[Variable], steps: list[Step], keep: list[Any]
    ) -> Admission | None:
        for i, result in enumerate(self.results):
            shape, dtype = self.made[i]  # type: ignore[misc]
            if i not in self.apart:
                buffer = result._chunk.buffer
                writes.append(buffer.variable)
                launch.results.append((buffer, shape, None, 0, dtype))
                continue
            whole = result._covers_chunk()
            writing = Writing(
                result._chunk, *result._range(), replace=whole, rename=False, keep=keep,
                ahead=whole and self.apart[i],
            )  # fmt: skip
            if writing.first is not None:
                return writing.first
            (writes if whole else updates).append(writing.buffer.variable)
            steps += writing.steps
            launch.results.append((writing.buffer, shape, result._strides, result._offset, dtype))
        for x in self.updated:
            writing = Writing(x._chunk, *x._range(), replace=False, rename=False, keep=keep)
            if writing.first is not None:
                return writing.first
            updates.append(writing.buffer.variable)
            steps += writing.steps
        return None


def _push(
    op: Operator, inputs: list[Any], step: int, metas: Sequence[Any], attributes: Attributes, out: Any
) -> list[NDArray]:
    """One operation; `step`: operands of one weight;  `metas`: of the outputs."""
    outs: list[Any] = [None] * len(metas)
    if out is not None:
        outs = [out] if isinstance(out, Array) else list(out)
        if len(outs) != len(metas) or not all(isinstance(o, Array) for o in outs):
            raise ArgumentError(f"[{op.name}] out: {len(metas)} array{'s' * (len(metas) > 1)} expected")
        for i, (o, meta) in enumerate(zip(outs, metas, strict=True)):
            if o._meta != meta:
                raise ArgumentError(f"[{op.name}] out_{i} {describe(o)}: {meta[1]}{meta[0]} expected")
    place = _where(op, inputs, outs, None)
    results = [NDArray._fresh(place, *meta) if o is None else o for o, meta in zip(outs, metas, strict=True)]
    for o in results:
        if o._raw is not None:
            o._grow()
    push = Many(op, inputs, attributes, results, tuple(metas), place, scope.get().recorder)
    push.apart, push.step = {}, step
    push.writes_to([] if out is None else range(len(results)))
    place.engine.admit(push.plan)
    return results


def _unlike(op: Operator, arrays: Sequence[Array], first: int, wanted: Sequence[Any]) -> Exception:
    """What is wrong with the arrays of one weight."""
    weight = f"[{op.name}] {op.input_name(first)} {describe(arrays[0])}"
    for j, (x, (shape, dtype)) in enumerate(zip(arrays, wanted, strict=True)):
        if x._shape != shape:
            return ArgumentError(f"{weight}, {op.input_name(first + j)} {describe(x)}: the same shape expected")
        if x._dtype != dtype:
            return ArgumentTypeError(f"{weight}, {op.input_name(first + j)} {describe(x)}: {dtype} expected")
    return ArgumentTypeError(f"{weight}: floating-point arrays expected")


def _update_many(form: Form, data: Sequence[Any], attributes: Attributes, number: Any, out: Any) -> Any:
    name, roles = form.name, form.roles
    data = list(data[0]) if len(data) == 1 and isinstance(data[0], list | tuple) else list(data)
    count, rest = divmod(len(data) - 2 * form.preloaded, len(roles))
    if count < 1 or rest or number not in (None, count):
        weights = "" if number is None else f" of {number} weights"
        more = ", then lrs and wds" if form.preloaded else ""
        raise ArgumentError(f"[{name}] {len(data)} arrays: {', '.join(roles)}{weights} for each weight{more} expected")
    op = _operator(form, count)
    for i, x in enumerate(data):
        if not isinstance(x, Array):
            raise ArgumentTypeError(f"[{name}] {op.input_name(i)} {x!r}: an array expected")
    metas = [x._meta for x in data]
    step = len(roles)
    for i in range(0, count * step, step):
        meta = metas[i]
        wanted = [meta, meta, *([(meta[0], FLOAT32) if form.mixed else meta] * (step - 2))]
        if metas[i : i + step] != wanted or not is_float(meta[1]):
            raise _unlike(op, data[i : i + step], i, wanted)
    if form.preloaded:
        for label, x in (("lrs", data[-2]), ("wds", data[-1])):
            if x._shape != (count,) or not is_float(x._dtype):
                raise ArgumentError(f"[{name}] {label} {describe(x)}: {count} floating-point numbers expected")
    else:
        for label in ("lrs", "wds"):
            given = attributes[label]
            numbers = tuple(map(float, given)) if isinstance(given, tuple | list) else (float(given),)
            if len(numbers) != count:
                raise ArgumentError(f"[{name}] {label} {given!r}: {count} numbers expected, one for each weight")
            attributes[label] = numbers
    made = metas[0 : count * step : step]
    results = _push(op, data, step, made, attributes, out)
    return results[0] if count == 1 else results


# ---- the functions ---------------------------------------------------------------------------------------------------

RAISES = """

    `data`: {roles} of the first weight, then of the second, and so on{preloaded}.   A weight's arrays have one shape;
    {dtypes}.   `lrs`, `wds`: numbers, one for each weight.   `num_weights`: counted if it is not given.   The rest as
    in {single}.

    Gives the new weights, a list if there are several; one operation.   Raises ArgumentError or ArgumentTypeError for
    a wrong number of arrays, other shapes or dtypes, and arrays that share memory; nothing has changed then.
    """


def public(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the nd face that arrays do not have as a method."""
    setattr(nd_face, function.__name__, function)
    nd_face.composed[function.__name__] = function
    return function


def _publish(name: str, formula: Formula, *states: str, mixed: bool, preloaded: bool) -> None:
    form = Form(name, formula, states, mixed, preloaded)
    defaults: Attributes = {} if preloaded else {"lrs": ..., "wds": ...}
    defaults |= {"momentum": 0.0} if states else {}
    defaults |= {"rescale_grad": 1.0, "clip_gradient": -1.0, "num_weights": None, "out": None, "name": None}

    def function(*data: Any, **named: Any) -> Any:
        for given in named:
            if given not in defaults:
                raise ArgumentError(f"[{name}] unknown argument {given!r}; it has data, {', '.join(defaults)}")
        attributes = {**defaults, **named}
        for given, value in attributes.items():
            if value is ...:
                raise ArgumentError(f"[{name}] argument {given!r} is missing")
        number, out, _ = attributes.pop("num_weights"), attributes.pop("out"), attributes.pop("name")
        return _update_many(form, data, attributes, number, out)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{formula.__name__} of many weights by one operation." + RAISES.format(
        roles=", ".join(form.roles),
        preloaded="; then lrs and wds, arrays of shape (number of weights,)" if preloaded else "",
        dtypes="weight and grad of one dtype, the rest float32" if mixed else "and one dtype",
        single=f"{'mp_' * mixed}{formula.__name__}",
    )
    parameters = [inspect.Parameter("data", inspect.Parameter.VAR_POSITIONAL, annotation=Any)]
    for given, value in defaults.items():
        default = inspect.Parameter.empty if value is ... else value
        parameters.append(inspect.Parameter(given, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Any))
    function.__signature__ = inspect.Signature(parameters, return_annotation=Any)  # type: ignore[attr-defined]
    public(function)


for _preloaded, _is_mixed in itertools.product((False, True), repeat=2):
    _prefix = f"{'preloaded_' * _preloaded}multi_{'mp_' * _is_mixed}"
    _publish(f"{_prefix}sgd_update", sgd_update, mixed=_is_mixed, preloaded=_preloaded)
    _publish(f"{_prefix}sgd_mom_update", sgd_mom_update, "mom", mixed=_is_mixed, preloaded=_preloaded)


@cache
def _reset(count: int) -> Operator:
    outputs = tuple(f"out_{i}" for i in range(count))

    def kernel(xp: Any, **outs: Any) -> list[Step]:
        return [(out.fill, 0) for out in outs.values()]

    named = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in outputs]
    first = inspect.Parameter("xp", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    kernel.__signature__ = inspect.Signature([first, *named])  # type: ignore[attr-defined]
    return Operator(
        "reset_arrays", kernel, lambda metas, attributes: ((), attributes), outputs=outputs, atomic=True, widen=False,
        cost=_cost, doc="reset_arrays",
    )  # fmt: skip


@public
def reset_arrays(*data: Any, num_arrays: Any = None, out: Any = None, name: Any = None) -> Any:
    """Zeros in all of these arrays, of any shapes and dtypes, by one operation.   Gives an empty list.

    Raises ArgumentError or ArgumentTypeError for what is no array, arrays that share memory, and a number of arrays
    that is not `num_arrays`; nothing has changed then.

    >>> from vardag import nd
    >>> x, y = nd.ones((2,)), nd.ones((1,))
    >>> nd.reset_arrays(x, y, num_arrays=2), x.asnumpy().tolist(), y.asnumpy().tolist()
    ([], [0.0, 0.0], [0.0])
    """
    arrays = list(data[0]) if len(data) == 1 and isinstance(data[0], list | tuple) else list(data)
    if out is not None:
        raise ArgumentError("[reset_arrays] it changes its operands: no out expected")
    if not arrays or num_arrays not in (None, len(arrays)):
        raise ArgumentError(f"[reset_arrays] {len(arrays)} arrays given, num_arrays {num_arrays}")
    for i, x in enumerate(arrays):
        if not isinstance(x, Array):
            raise ArgumentTypeError(f"[reset_arrays] array {i} {x!r}: an array expected")
    _push(_reset(len(arrays)), [], 0, [x._meta for x in arrays], {}, arrays)
    return []
