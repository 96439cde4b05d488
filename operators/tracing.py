"""Gradient texts as programs: run once on raw arrays, every operator noted, then again without any of the questions.

What `texts.run_raw` asks at each call (arguments, variant, shapes, dtypes) has the same answer whenever shapes, dtypes
and attributes are the same.  A `Trace` runs texts with F = ``trace.F`` on `Traced` arrays and writes down a line of
Python for each call; `Trace.program` is the function of these lines.  It does the same calls of the same kernels on
arrays of the same layout, so its bits are those of the texts.

A text sees shapes and dtypes of a `Traced` array, never its values.  One that wants more cannot be traced.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .quick import constant
from .schema import Operator, registry
from .texts import prepared

Program = Callable[..., tuple[Any, ...]]

#: Python's operators that take a number for its value in the array's dtype.  Powers have ways of their own for some.
PLAIN = frozenset((operator.add, operator.sub, operator.mul, operator.truediv))

_ndarray = np.ndarray


class Untraceable(Exception):
    """Texts that have to run as they are."""


class Traced:
    """A raw array and its name in the program."""

    __slots__ = ("_trace", "name", "raw")
    __array_ufunc__ = None
    __hash__ = object.__hash__

    def __init__(self, trace: Trace, name: str, raw: Any) -> None:
        self._trace, self.name, self.raw = trace, name, raw

    def reshape(self, shape: tuple[int, ...]) -> Traced:
        """As `RawOperators.reshape`: a view where the memory allows one."""
        return self if self.shape == shape else self._trace.reshape(self, shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.raw.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> Any:
        return self.raw.dtype

    @property
    def ndim(self) -> int:
        return self.raw.ndim  # type: ignore[no-any-return]

    @property
    def size(self) -> int:
        return self.raw.size  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        raise Untraceable

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise Untraceable

    def __iter__(self) -> Any:
        raise Untraceable


def _operator(function: Callable[..., Any], reflected: bool = False) -> Any:
    def method(self: Traced, *other: Any) -> Traced:
        return self._trace.apply(function, (*other, self) if reflected else (self, *other))

    return method


for _name in ("neg", "pos", "abs", "add", "sub", "mul", "truediv", "pow", "matmul", "gt", "ge", "lt", "le", "eq", "ne"):
    setattr(Traced, f"__{_name}__", _operator(getattr(operator, _name)))
    if _name in ("add", "sub", "mul", "truediv", "pow", "matmul"):
        setattr(Traced, f"__r{_name}__", _operator(getattr(operator, _name), True))


class Trace:
    """The lines so far.

    `most`, `each`: units of work (see Operator.work) beyond which it gives up, together, if they are more than so many
    for each line.   `spent`: those so far.
    """

    def __init__(self, most: float, each: float) -> None:
        self.F = _TracedOperators(self)
        self._most, self._each = most, each
        self.spent = 0.0
        self._inputs: list[str] = []
        self._lines: list[tuple[str, str, tuple[str, ...]]] = []  # (name, expression, names that it uses)
        self._known: dict[str, Any] = {}  # functions and constants of the program
        self._numbers: dict[Any, Any] = {}
        self._whole: set[str] = set()  # names of what is in C order for certain: inputs, and what kernels make of it

    def input(self, raw: Any) -> Traced:
        """A further argument of the program, in C order."""
        traced = Traced(self, f"a{len(self._inputs)}", raw)
        self._inputs.append(traced.name)
        self._whole.add(traced.name)
        return traced

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A call now, and a line of the program; arguments are traced arrays or constants."""
        values = [x.raw if type(x) is Traced else x for x in arguments]
        result = function(*values)
        if isinstance(result, np.generic):
            result, function = np.asarray(result), _as_array(function)
        words = [x.name if type(x) is Traced else self._name("c", x) for x in arguments]
        expression = f"{self._name('f', function)}({', '.join(words)})"
        return self._line(expression, tuple(x.name for x in arguments if type(x) is Traced), result)

    def _number(self, value: Any, dtype: Any) -> Any:
        """A number as an array without axes, which costs a ufunc half as much; the same one each time."""
        found = constant(value, dtype)
        return value if found is None else self._numbers.setdefault((repr(value), dtype), found)

    def _line(self, expression: str, used: tuple[str, ...], result: Any) -> Any:
        name = f"t{len(self._lines)}"
        self._lines.append((name, expression, used))
        if type(result) is tuple:
            return tuple([self._line(f"{name}[{i}]", (name,), x) for i, x in enumerate(result)])
        if type(result) is not _ndarray:
            raise Untraceable
        return Traced(self, name, result)

    def _name(self, letter: str, value: Any) -> str:
        for name, known in self._known.items():
            if known is value:
                return name
        name = f"{letter}{len(self._known)}"
        self._known[name] = value
        return name

    def call(self, op: Operator, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
        """An operator, as `texts.run_raw` does it."""
        arrays = [x.raw if type(x) is Traced else x for x in inputs]
        metas = [(x.shape, x.dtype) if type(x) is _ndarray else None for x in arrays]
        result = self.run(prepared(op, arrays, attributes), *inputs)
        made = [(x.shape, x.dtype) for x in (result if type(result) is tuple else (result,))]
        self._spend(op.work(metas, made, op.bind(attributes)))
        alike = op.ufunc is not None and self._are_whole(inputs)
        if alike or (op.ufunc is None and op.alias is None and op.variant is None):
            self._whole.update(x.name for x in (result if type(result) is tuple else (result,)))
        return result

    def apply(self, function: Callable[..., Any], inputs: Sequence[Any]) -> Traced:
        """One of Python's operators."""
        if function in PLAIN:
            dtype = next(x.dtype for x in inputs if type(x) is Traced)
            inputs = [x if type(x) is Traced else self._number(x, dtype) for x in inputs]
        result: Traced = self.run(function, *inputs)
        self._spend(result.size)
        if function is not operator.matmul and self._are_whole(inputs):
            self._whole.add(result.name)
        return result

    def _are_whole(self, inputs: Sequence[Any]) -> bool:
        return all(type(x) is not Traced or x.name in self._whole for x in inputs)

    def _spend(self, work: float) -> None:
        self.spent += work
        if self.spent > self._most and self.spent > self._each * len(self._lines):
            raise Untraceable

    def reshape(self, x: Traced, shape: tuple[int, ...]) -> Traced:
        """See `Traced.reshape`."""
        result: Traced = self.run(_ndarray.reshape, x, shape)
        if x.name in self._whole:
            self._whole.add(result.name)
        return result

    def whole(self, x: Traced) -> Traced:
        """In C order, as arrays are."""
        known = not x.ndim or x.name in self._whole
        whole: Traced = x if known else self.run(np.ascontiguousarray, x)
        return whole

    def program(self, results: Sequence[Traced]) -> Program:
        """The function of the inputs, in their order, that gives these."""
        wanted = [x.name for x in results]
        last: dict[str, int] = {}
        needed = set(wanted)
        for i in range(len(self._lines) - 1, -1, -1):
            name, _, used = self._lines[i]
            if name in needed:
                for x in used:
                    if x not in needed:
                        needed.add(x)
                    last.setdefault(x, i)
        text = [f"def program({', '.join(self._inputs)}):"]
        for i, (name, expression, used) in enumerate(self._lines):
            if name in needed:
                text.append(f" {name} = {expression}")
                # What is used for the last time is freed, and its memory used again while the caches know it.
                dead = [x for x in dict.fromkeys(used) if last[x] == i and x not in wanted and x[0] == "t"]
                if dead:
                    text.append(f" del {', '.join(dead)}")
        text.append(f" return ({''.join(f'{name}, ' for name in wanted)})")
        space = dict(self._known)
        exec("\n".join(text), space)
        return space["program"]  # type: ignore[no-any-return]


def _as_array(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *inputs: np.asarray(function(*inputs))


class _TracedOperators:
    """F for traced arrays."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def reshape(self, x: Traced, shape: Any) -> Traced:
        return x.reshape(tuple(shape))

    def __getattr__(self, name: str) -> Any:
        if name not in registry:
            raise AttributeError(f"a gradient text uses F.{name}, which is not an operator")
        op, trace = registry[name], self._trace

        def function(*inputs: Any, **attributes: Any) -> Any:
            return trace.call(op, inputs, attributes)

        setattr(self, name, function)
        return function
