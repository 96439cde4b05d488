"""What the real MXNet 1.9.1 does, row by row, against vardag.

`mxnet_rules.tsv` holds programs with what they gave in MXNet (CPU wheel, NaiveEngine, one process each).  A row passes
if vardag gives the same value, or refuses it with an error of the same kind (MXNetError: any `vardag.Error`).  Where
vardag decides otherwise the row is in DIFFERS with the reason, and must indeed differ.  Rows about operators that
do not exist yet are left out; MISSING names those operators.

In the programs `A(list, dtype)` makes an array, `R` is [[0, 1, 2], [3, 4, 5]], `X(...)` a marked float32 array; a line
break is written as a return sign.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd

FILE = Path(__file__).with_name("mxnet_rules.tsv")

# Rows where vardag decides otherwise, by reason.
DIFFERS = {
    "arrays of size 0 and of shape () are ordinary arrays": [15, 17, 18, 31, 339],
    "bool arrays can be added, multiplied and compared, as NumPy's": [46, 53, 115],
    "an integer divided by zero is 0, as in NumPy; MXNet dies": [55, 323],
    "// and @ and unary + exist": [56, 57, 75, 129, 132],
    "NumPy arrays are operands, with the array's dtype": [87, 88, 119, 343],
    "elementwise names broadcast": [104],
    "float(), int() and item() of one element": [134, 135, 146],
    "negative of bool is refused, as in NumPy": [130],
    "a reshape keeps every element": [217],
    "all basic slices are views": [226, 227, 228],
    "masks choose elements": [252, 253, 254, 255],
    "arctan2 exists": [316],
    "at least one operand of an operator is an array": [344],
    "unknown arguments are refused": [358],
    "broadcast_to reads 0 as 'keep the dimension' as a method too": [407],
    "arrays convert to NumPy with their own dtype": [349, 462],
    "writes under record are recorded, not refused": [476, 477, 478, 481, 482, 483, 484, 485, 487, 489],
    "what the tape saved is protected against later writes": [491, 492, 493],
    "a view taken outside record is a name, not a constant": [494],
    "a head gradient has the shape of its head": [514],
    "gradients with respect to intermediate arrays": [521],
    "every recorded gradient can be differentiated": [523],
    "x.grad is one array, always": [527],
    "a mean of float16 does not overflow on the way": [160],
    "dot takes integers and float16": [195, 196],
    "log_softmax and norm to float32's last digits": [366, 413],
    "Dropout with p=1 gives zeros": [384],
    "pad takes any number of axes": [404],
    "norm takes out_dtype": [414],
    "gradients of prod and norm have their limit where MXNet has nan": [535, 536],
    "sort is differentiable": [549],
    "SoftmaxOutput's out_grad multiplies by the head gradient; MXNet multiplies by its own output": [556],
    "BatchNorm changes its running statistics in the forward pass": [561, 562],
    "MXNet's own internals": [576],
    "NumPy's functions are operators": [346, 347],
}


# Operators that rows are about and that nd does not have; to be shortened as they arrive.
MISSING = {
    "SequenceLast", "SequenceMask", "SequenceReverse", "_internal._slice_assign", "contrib.boolean_mask",
    "contrib.isnan", "full_like", "histogram", "linalg_det", "linalg_potrf",
    "ravel_multi_index", "std", "unravel_index",
}  # fmt: skip


class Row:
    """A program, and what MXNet gave for it."""

    def __init__(self, line: str) -> None:
        number, self.title, program, self.expected = line.rstrip("\n").split("\t")
        self.number = int(number)
        self.program = re.sub(r"\s*⏎ ", "\n", program).replace("import mxnet as m\n", "m=mx\n")

    def __repr__(self) -> str:
        return f"{self.number} {self.title or self.program}".replace("\n", " ")[:60]

    def operators(self) -> set[str]:
        """The names it uses of nd, nd.contrib, nd.random and of arrays (as methods that only operators can be)."""
        found = set(re.findall(r"\bnd\.((?:contrib\.|random\.|_internal\.)?\w+)", self.program))
        return found | {name for name in re.findall(r"[\w)]\.(\w+)\(", self.program) if name in METHODS}


METHODS = {"sum", "mean", "swapaxes", "slice_axis", "broadcast_to", "std"}


def exists(name: str) -> bool:
    holder: Any = nd
    for part in name.split("."):
        if not hasattr(holder, part):
            return False
        holder = getattr(holder, part)
    return True


ROWS = [Row(line) for line in FILE.read_text(encoding="utf-8").splitlines()[1:]]
LEFT_OUT = {row.number: absent for row in ROWS if (absent := {n for n in row.operators() if not exists(n)})}
PRESENT = [row for row in ROWS if row.number not in LEFT_OUT]


def run(row: Row) -> Any:
    def array(values: Any, dtype: Any = "float32") -> Any:
        return nd.array(values, dtype=dtype)

    def marked(*values: float) -> Any:
        x = nd.array(values or (1, 2, 3))
        x.attach_grad()
        return x

    names: dict[str, Any] = {
        "nd": nd, "np": np, "A": array, "X": marked, "ag": autograd, "R": nd.array([[0, 1, 2], [3, 4, 5]]),
        "mx": types.SimpleNamespace(cpu=vd.cpu, nd=nd, autograd=autograd),
    }  # fmt: skip
    # in a context of its own: a row may leave recording or training on
    return contextvars.copy_context().run(execute, row.program, names)


def execute(program: str, names: dict[str, Any]) -> Any:
    try:
        code = compile(program, "<row>", "eval")
    except SyntaxError:
        exec(compile(program, "<row>", "exec"), names)
        result = names["r"]
    else:
        result = eval(code, names)
    wait(result)
    return result


def wait(value: Any) -> None:
    if isinstance(value, nd.NDArray):
        value.wait_to_read()
    elif isinstance(value, list | tuple):
        for item in value:
            wait(item)


def split(text: str) -> list[str]:
    """The items of ``[a; b; [c; d]]``."""
    items, depth, start = [], 0, 1
    for i, c in enumerate(text):
        depth += (c == "[") - (c == "]")
        if (c == ";" and depth == 1) or (c == "]" and depth == 0):
            items.append(text[start:i].strip())
            start = i + 1
    return [item for item in items if item]


VALUES = {"nan": math.nan, "inf": math.inf, "True": True, "False": False}
SCALARS = {"int", "float", "bool", "float32", "float16", "float64", "type", "set", "NoneType"}


def agrees(expected: str, value: Any) -> bool:
    """Whether a value is what the table says.  Floats may differ in the last digits."""
    if isinstance(value, nd.NDArray | np.ndarray):
        found = re.match(r"(\w+)[(\[]([\d, ]*)[)\]] (.*)$", expected)
        if found is None:
            return False
        dtype, dims, numbers = found.groups()
        raw = value if isinstance(value, np.ndarray) else value.asnumpy()
        shape = tuple(int(n) for n in dims.replace(" ", "").split(",") if n)
        if (raw.dtype.name, raw.shape) != (dtype, shape):
            return False
        wanted = np.array(eval(numbers, {}, dict(VALUES))).reshape(shape)
        return bool(np.allclose(raw, wanted, rtol=2e-6 if dtype != "float16" else 1e-3, atol=0, equal_nan=True))
    if isinstance(value, list | tuple):
        items = split(expected) if expected.startswith("[") else [expected]
        return len(items) == len(value) and all(agrees(e, v) for e, v in zip(items, value, strict=True))
    if isinstance(value, str):
        return value == expected.replace("\\n", "\n")
    kind, _, rest = expected.partition(" ")
    if kind in SCALARS and kind == type(value).__name__:
        return rest.replace("mxnet", "vardag") == str(value)
    return expected == str(value)


KINDS = {
    "MXNetError": vd.Error, "TypeError": TypeError, "ValueError": ValueError, "IndexError": IndexError,
    "AttributeError": AttributeError, "AssertionError": vd.Error,
}  # fmt: skip


def outcome(row: Row) -> tuple[bool, str]:
    """(whether vardag does what MXNet does, what it does)."""
    try:
        with contextlib.nullcontext() if "cpu" not in row.program + row.expected else vd.cpu():
            result = run(row)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        if not row.expected.startswith("ERR"):
            return False, text
        return isinstance(error, KINDS[row.expected.split()[1]]), text
    return agrees(row.expected, result), repr(result)


OTHERWISE = {number for numbers in DIFFERS.values() for number in numbers}


def test_the_lists_are_of_rows() -> None:
    assert {row.number for row in ROWS} == set(range(1, len(ROWS) + 1))
    assert {row.number for row in ROWS} >= OTHERWISE


@pytest.mark.parametrize("row", [r for r in PRESENT if r.number not in OTHERWISE], ids=repr)
def test_as_mxnet(row: Row) -> None:
    same, found = outcome(row)
    assert same, f"{row.program!r}: MXNet gives {row.expected}, vardag {found}"


@pytest.mark.parametrize("row", [r for r in PRESENT if r.number in OTHERWISE], ids=repr)
def test_decided_otherwise(row: Row) -> None:
    same, found = outcome(row)
    assert not same, f"{row.program!r}: no difference any more, vardag gives {found}"


def test_operators_that_rows_need_and_nd_has_not() -> None:
    """No operator that was there may vanish unseen, taking its rows along."""
    assert set().union(*LEFT_OUT.values()) <= MISSING
