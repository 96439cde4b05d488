"""The public names of MXNet 1.9.1's NDArray: each is there, or stands in docs/differences.md with the reason."""

from __future__ import annotations

import operator as python_operator
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import ArgumentError, ArgumentTypeError

HERE = Path(__file__).resolve()
NAMES = (HERE.parent / "data" / "ndarray-names.txt").read_text("utf-8").split()  # dir() of the real one
PAGE = (HERE.parents[2] / "docs" / "differences.md").read_text("utf-8")
SECTION = PAGE.split("## The surface of NDArray")[1].split("\n## ")[0]
LEFT_OUT = set(re.findall(r"^\| `(\w+)` \|", SECTION, re.MULTILINE))
ARGUMENTS = {
    "broadcast_axes": [(), {"axis": 0, "size": 3}], "broadcast_like": [("other",), {}], "broadcast_to": [((3, 4),), {}],
    "clip": [(0, 1), {}], "depth_to_space": [(2,), {}], "expand_dims": [(0,), {}], "flip": [(1,), {}],
    "one_hot": [(5,), {}], "pad": [(), {"mode": "constant", "pad_width": (0, 0, 0, 0, 1, 1, 1, 1)}],
    "pick": [("index",), {}], "repeat": [(2,), {}], "reshape_like": [("like",), {}], "slice": [((0, 1), (1, 3)), {}],
    "slice_axis": [(1, 1, 3), {}], "slice_like": [("like",), {}], "space_to_depth": [(2,), {}], "split": [(2,), {}],
    "split_v2": [(2,), {"axis": 1}], "swapaxes": [(0, 1), {}], "take": [("index",), {}], "tile": [((2, 1),), {}],
}  # fmt: skip
FOUR_AXES = {"depth_to_space": (1, 4, 2, 2), "space_to_depth": (1, 1, 2, 4), "pad": (1, 1, 2, 4)}
#: no operators: they have tests of their own
PLAIN = {
    "T", "as_in_context", "as_nd_ndarray", "asnumpy", "asscalar", "astype", "attach_grad", "backward", "context",
    "copy", "copyto", "ctx", "detach", "dtype", "grad", "ndim", "reshape", "shape", "size", "slice_assign",
    "slice_assign_scalar", "stype", "to_dlpack_for_read", "to_dlpack_for_write", "tostype", "wait_to_read", "writable",
}  # fmt: skip


def test_every_name() -> None:
    assert len(NAMES) == 111
    missing = {name for name in NAMES if not hasattr(nd.ones(2), name)}
    assert missing == LEFT_OUT & set(NAMES)


OPERATORS = pytest.mark.parametrize("name", [n for n in NAMES if n not in PLAIN | LEFT_OUT])


def operand(name: str) -> Any:
    shape = FOUR_AXES.get(name, (1, 4))
    return nd.array(np.linspace(0.1, 0.9, int(np.prod(shape))).reshape(shape) + (name == "arccosh"))


def both(name: str) -> list[Callable[[Any], list[Any]]]:
    """The method and the function, of one array."""
    others = {"other": nd.ones((3, 4)), "like": nd.ones((1, 4)), "index": nd.zeros((1,))}
    arguments, named = ARGUMENTS.get(name, [(), {}])
    given = [others.get(a, a) if isinstance(a, str) else a for a in arguments]

    def listed(found: Any) -> list[Any]:
        return list(found) if isinstance(found, list | tuple) else [found]

    return [
        lambda x: listed(getattr(x, name)(*given, **named)),
        lambda x: listed(getattr(nd, name)(x, *given, **named)),
    ]


@OPERATORS
def test_a_method_is_its_operator(name: str) -> None:
    x = operand(name)
    for a, b in zip(*(call(x) for call in both(name)), strict=True):
        assert type(a) is nd.NDArray
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.asnumpy().tobytes() == b.asnumpy().tobytes()


@OPERATORS
def test_a_method_is_recorded_as_its_operator(name: str) -> None:
    found: list[Any] = []
    for call in both(name):
        x = operand(name)
        x.attach_grad()
        with autograd.record():
            made = call(x)
        autograd.backward(made)
        found.append(x.grad.asnumpy().tobytes())
    assert found[0] == found[1]


IN_PLACE: dict[str, Any] = {
    "+=": python_operator.iadd, "-=": python_operator.isub, "*=": python_operator.imul, "/=": python_operator.itruediv,
    "//=": python_operator.ifloordiv, "%=": python_operator.imod, "**=": python_operator.ipow,
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("symbol", IN_PLACE)
def test_in_place(symbol: str, dtype: str) -> None:
    raw, other = np.array([[7, -7, 5], [-5, 8, 2]], dtype), np.array([[2, 3, 1], [4, 3, 2]], dtype)
    divides = symbol == "/=" and dtype == "int32"  # towards zero
    for right in (nd.array(other, dtype=dtype), other, 2, nd.array(other[0], dtype=dtype)):
        expected = right.asnumpy() if isinstance(right, nd.NDArray) else right
        x = y = nd.array(raw, dtype=dtype)
        x = IN_PLACE[symbol](x, right)
        assert x is y
        assert x.dtype == raw.dtype
        wanted = np.trunc(raw / expected) if divides else IN_PLACE[symbol](raw.copy(), expected)
        np.testing.assert_allclose(x.asnumpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("symbol", IN_PLACE)
def test_in_place_under_record(symbol: str) -> None:
    raw, other = np.array([7.25, 5.5, 8.75], "f"), np.array([2.0, 3, 4], "f")
    x, y = nd.array(raw), nd.array(other)
    x.attach_grad()
    y.attach_grad()
    with autograd.record():
        z = x * 1
        z = IN_PLACE[symbol](z, y)
        plain = getattr(python_operator, IN_PLACE[symbol].__name__[1:])(x, y)
    gradients = []
    for head in (z, plain):
        head.backward()
        gradients.append([x.grad.asnumpy(), y.grad.asnumpy()])
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-6)
    expected = {"//=": [0, 0], "%=": [1, -np.floor(raw / other)]}.get(symbol)
    if expected is not None:
        for found, meant in zip(gradients[0], expected, strict=True):
            np.testing.assert_array_equal(found, np.broadcast_to(meant, 3))


def test_what_is_no_operator() -> None:
    x = nd.array([[1, 2], [3, 4]])
    assert x.as_nd_ndarray() is x
    assert x.writable
    x.slice_assign_scalar(7, (0, 0), (1, 2), (1, 1))
    assert x.asnumpy().tolist() == [[7, 7], [3, 4]]
    x.slice_assign(nd.array([[0], [1]]), (None, 1), (None, 2), (None, None))
    assert x.asnumpy().tolist() == [[7, 0], [3, 1]]
    assert {x: 1}[x] == 1
    assert 3 in x
    assert 9 not in x


def test_numbers() -> None:
    one = nd.array([2.5])
    assert (float(one), int(one), complex(one), bool(one)) == (2.5, 2, 2.5 + 0j, True)
    assert f"{one:.2f} {one * 2:5.1f}" == "2.50   5.0"
    assert f"{nd.ones(2)}" == str(nd.ones(2))
    with pytest.raises(ArgumentTypeError, match="one element"):
        format(nd.ones(2), ".2f")
    for look in (float, int, complex, bool):
        with pytest.raises(ArgumentError):
            look(nd.ones(2))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles(protocol: int) -> None:
    x = nd.array([[1, 2], [3, 4]], dtype="int8")
    x.attach_grad()
    y = pickle.loads(pickle.dumps(x, protocol))
    assert (type(y), y.dtype, y.context, y.grad) == (nd.NDArray, np.int8, x.context, None)
    assert y.asnumpy().tolist() == x.asnumpy().tolist()


def test_pickled_bytes_are_handed_over_apart() -> None:
    x = nd.ones((1000, 1000))
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(x, protocol=5, buffer_callback=buffers.append)
    assert len(text) < 500
    assert sum(len(b.raw()) for b in buffers) == x.nbytes
    memory = bytearray(buffers[0].raw())
    y = pickle.loads(text, buffers=[memory])
    memory[:] = bytes(len(memory))  # it was copied
    assert (y.asnumpy() == 1).all()
