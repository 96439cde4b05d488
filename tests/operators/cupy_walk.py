"""Reads the source of every kernel and gradient text, and of all they call, for what CuPy lacks.

What a function calls is found from its live object: its globals, its closure, tables and partials in them, so one made
by another function is followed too.  What depends on a value of the run (a method's receiver, ``*`` and ``**`` in a
call) is known by name only.  CuPy's arrays dispatch NumPy's functions, so ``np.sum(x)`` counts as ``xp.sum(x)``; what
makes an array from nothing, or asks for NumPy's class, does not dispatch, and is a finding of its own.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from scipy import special

from vardag.operators.schema import Operator, Text

NAMES: dict[str, Any] = json.loads(Path(__file__).with_name("cupy_names.json").read_text())
UFUNC_KEYWORDS = {"out", "where", "dtype", "casting"}  # of cupy.ufunc.__call__; it refuses others
METHOD_KEYWORDS = {"axis", "dtype", "out", "keepdims"}  # of its methods
#: ufunc methods that CuPy computes, and for which ufuncs; it raises NotImplementedError for others
UFUNC_METHODS = {
    "reduce": {"add", "multiply"},
    "accumulate": {"add", "multiply"},
    "reduceat": {"add"},
    "at": {"add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"},
    "outer": None,
}
#: functions of NumPy that make an array of the host, or take a host array only, when they are not called through `xp`
HOST_ONLY = {
    "array", "asarray", "ascontiguousarray", "arange", "empty", "zeros", "ones", "full", "eye", "linspace", "indices",
    "tril_indices", "triu_indices", "fromiter", "frombuffer",
}  # fmt: skip
#: methods of buffers and parameters that are called like an array's
AMBIGUOUS = {"ndarray.view", "ndarray.copy"}
#: names of NumPy that are not arrays' business: dtypes, classes of scalars, constants
NEUTRAL = (type, np.dtype, float, int, type(None), type(np.newaxis))

_trees: dict[str, dict[int, list[ast.AST]]] = {}


def _candidates(path: str) -> dict[int, list[ast.AST]]:
    """The functions of a file by the line that their code objects name."""
    if path not in _trees:
        _trees[path] = lines = {}
        for node in ast.walk(ast.parse(Path(path).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                lines.setdefault(first, []).append(node)
            elif isinstance(node, ast.Lambda):
                lines.setdefault(node.lineno, []).append(node)
    return _trees[path]


def node_of(function: FunctionType) -> Any:
    """The syntax tree of a function; of several lambdas in a line that whose body has the code's positions."""
    code = function.__code__
    nodes: list[Any] = list(_candidates(code.co_filename).get(code.co_firstlineno, []))
    named = [n for n in nodes if getattr(n, "name", "<lambda>") == code.co_name]
    if len(named) > 1:
        last = [p for p in code.co_positions() if p[0] is not None and p[2] is not None and p[2] > 0][-1]
        named = [n for n in named if _has(n.body, last)]
        named.sort(key=lambda n: -n.col_offset)  # the innermost that has them
        named = named[:1]
    return named[0] if named else None


def _has(body: Any, position: Any) -> bool:
    line, _, column, _ = position
    return (body.lineno, body.col_offset) <= (line, column) <= (body.end_lineno, body.end_col_offset)


class Walk:
    """All functions that these can reach, and what they use."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self.functions: set[FunctionType] = set()
        self.unread: set[str] = set()
        self.found: set[str] = set()
        self.uses: set[str] = set()
        self._later = list(roots)
        self._seen: set[int] = set()
        while self._later:
            self._value(self._later.pop())

    def _value(self, value: Any) -> None:
        """A value that code can reach: a function is read, a table gone through, an array function looked up."""
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Text):
            self._later.append(value.function)
        elif isinstance(value, functools.partial):
            self._later += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            self._later.append(value.__func__)
        elif isinstance(value, dict):
            self._later += list(value.values())
        elif isinstance(value, tuple | list | set | frozenset):
            self._later += list(value)
        elif isinstance(value, Operator):
            self._later += parts(value)
        elif isinstance(value, type):
            if value.__module__.startswith("vardag.operators"):
                self._later += [getattr(v, "fget", v) for v in vars(value).values() if callable(getattr(v, "fget", v))]
        elif hasattr(value, "__wrapped__"):
            self._later.append(value.__wrapped__)
        elif isinstance(value, FunctionType) and _own(value):
            self._function(value)
        elif (name := name_of(value)) is not None:
            self._use(name, None, False)

    def _function(self, function: FunctionType) -> None:
        if function in self.functions:
            return
        node = node_of(function)
        if node is None:
            self.unread.add(f"{function.__module__}.{function.__qualname__}")
            return
        self.functions.add(function)
        closed = inspect.getclosurevars(function)
        names = {**vars(builtins), **function.__globals__, **closed.nonlocals}
        own = {a.arg for n in ast.walk(node) if isinstance(n, ast.arguments) for a in (*n.args, *n.kwonlyargs)}
        own |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        own -= set(closed.nonlocals)
        calls = {id(n.func): n for n in ast.walk(node) if isinstance(n, ast.Call)}
        where = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"

        def resolve(n: ast.AST) -> tuple[Any, bool]:
            """The value of a dotted name, and whether it is of `xp`; ... for one that is not known."""
            if isinstance(n, ast.Name):
                if n.id == "xp":
                    return np, True
                return (..., False) if n.id in own else (names.get(n.id, ...), False)
            if isinstance(n, ast.Attribute):
                if n.attr == "xp":
                    return np, True
                base, device = resolve(n.value)
                if isinstance(base, ModuleType | np.ufunc):
                    return getattr(base, n.attr, ...), device
            return ..., False

        bodies = node.body if isinstance(node.body, list) else [node.body]
        for n in (n for body in bodies for n in ast.walk(body)):
            if isinstance(n, ast.Attribute):
                base, _ = resolve(n.value)
                if isinstance(base, np.ufunc):
                    self._method(base.__name__, n.attr, where)
                    for keyword in calls[id(n)].keywords if id(n) in calls else ():
                        if keyword.arg and keyword.arg not in METHOD_KEYWORDS:
                            self.found.add(f"{where}: {base.__name__}.{n.attr}({keyword.arg}=) is not in CuPy")
                elif base is ... and n.attr in ("reduce", "accumulate", "reduceat"):
                    self.found.add(f"{where}: .{n.attr} of any ufunc; CuPy has it of few")
                elif (
                    base is ...
                    and hasattr(np.ndarray, n.attr)
                    and not n.attr.startswith("__")
                    and f"ndarray.{n.attr}" not in NAMES
                ):
                    self.found.add(f"{where}: arrays have no .{n.attr}")
                elif base is ... and id(n) in calls and f"ndarray.{n.attr}" in NAMES:
                    if not (isinstance(n.value, ast.Name) and n.value.id == "F"):  # operators; their own kernels count
                        self._arguments(f"ndarray.{n.attr}", calls[id(n)], where)
                elif base is ... and id(n) in calls and hasattr(np.random.Generator, n.attr):
                    if f"Generator.{n.attr}" not in NAMES and f"ndarray.{n.attr}" not in NAMES:
                        self.found.add(f"{where}: a generator of CuPy has no .{n.attr}")
                elif id(n) not in calls:
                    self._reference(resolve(n), None, where)
            elif isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and id(n) not in calls:
                self._reference(resolve(n), None, where)
            elif isinstance(n, ast.Call):
                self._reference(resolve(n.func), n, where)

    def _arguments(self, name: str, call: ast.Call, where: str) -> None:
        has = NAMES[name]
        if isinstance(has, list) and name not in AMBIGUOUS:
            self.found.update(
                f"{where}: {name}({k.arg}=) is not in CuPy" for k in call.keywords if k.arg and k.arg not in has
            )
            if not any(p.startswith("*") for p in has) and len(call.args) > len(has):
                self.found.add(f"{where}: {name} takes {len(has)} arguments")

    def _method(self, ufunc: str, method: str, where: str) -> None:
        if method in UFUNC_METHODS:
            of = UFUNC_METHODS[method]
            if of is not None and ufunc not in of:
                self.found.add(f"{where}: {ufunc}.{method} is not in CuPy")

    def _reference(self, resolved: tuple[Any, bool], call: ast.Call | None, where: str) -> None:
        value, device = resolved
        if value is ... or isinstance(value, ModuleType):
            return
        name = name_of(value)
        if str(getattr(value, "__module__", "")).startswith("numpy.random"):
            self.found.add(f"{where}: random numbers of the host")
        elif value is np.ndarray:
            self.found.add(f"{where}: asks for numpy.ndarray")
        elif name is None:
            self._later.append(value)
        else:
            self._use(name, call, device, where)

    def _use(self, name: str, call: ast.Call | None, device: bool, where: str = "") -> None:
        self.uses.add(name)
        short = name.removeprefix("numpy.")
        if name not in NAMES:
            self.found.add(f"{where}: {name} is not in CuPy")
            return
        like = call is not None and any(k.arg == "like" for k in call.keywords)  # NumPy gives it to the array's library
        if short in HOST_ONLY and not (device or like) and call is not None:
            self.found.add(f"{where}: {name} makes an array of the host")
        has = NAMES[name]
        if call is None or has is None or has == "value":
            return
        for keyword in call.keywords:
            known = UFUNC_KEYWORDS if has == "ufunc" else has
            if keyword.arg == "like" and not device:
                continue
            if keyword.arg and keyword.arg not in known and "**kwargs" not in known:
                self.found.add(f"{where}: {name}({keyword.arg}=) is not in CuPy")
        if has != "ufunc" and not any(p.startswith("*") for p in has) and len(call.args) > len(has):
            self.found.add(f"{where}: {name} takes {len(has)} arguments")


def _own(function: FunctionType) -> bool:
    """Is it of the operators, or of a test?"""
    module = function.__module__ or ""
    return module.startswith("vardag.operators") or module.rpartition(".")[2].startswith("test_")


def name_of(value: Any) -> str | None:
    """What NumPy or SciPy call it; None for what is not a function of theirs, but for a dtype or a number."""
    if isinstance(value, NEUTRAL) or not callable(value):
        return None
    return _known().get(id(value)) or _foreign(value)


def _foreign(value: Any) -> str | None:
    module = getattr(value, "__module__", None) or ""
    return (
        f"{module}.{value.__name__}" if module.startswith(("scipy", "numpy")) and hasattr(value, "__name__") else None
    )


@functools.cache
def _known() -> dict[int, str]:
    modules: list[tuple[str, Any]] = [
        ("scipy.special.", special), ("numpy.lib.stride_tricks.", np.lib.stride_tricks),
        ("numpy.fft.", np.fft), ("numpy.linalg.", np.linalg), ("numpy.", np),
    ]  # fmt: skip
    return {id(f): p + n for p, m in modules for n, f in vars(m).items() if callable(f) and not n.startswith("_")}


def parts(op: Operator) -> list[Any]:
    """What an operator computes with on raw arrays."""
    texts: Iterator[Any] = (t for t in op.gradients.values() if isinstance(t, Text))
    kernel: Callable[..., Any] = op.kernel
    own = [op.ufunc] if op.ufunc is not None else [kernel]
    return [*own, op.alias, *texts, op.joint, *op.definitions.values()]


def everything(modules: Iterable[ModuleType]) -> list[Any]:
    """All functions and classes of these modules."""
    return [v for m in modules for v in vars(m).values() if getattr(v, "__module__", None) == m.__name__]
