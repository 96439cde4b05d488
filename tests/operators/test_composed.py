"""Functions that are made of operators (`faces.composed`), tested as the registry tests operators.

The calls are those of mxnet_shapes.py, whose values and gradients MXNet has answered for float32; here in every
floating-point dtype and layout, without elements, on several engines, and differentiated twice.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import Engine, Error
from vardag.operators.faces import nd_face

_spec: Any = importlib.util.spec_from_file_location("mxnet_shapes", Path(__file__).with_name("mxnet_shapes.py"))
mxnet_shapes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mxnet_shapes)

EXCUSED = {
    "histogram": "counts; test_names.py",
    "onehot_encode": "writes into its operand; test_names.py",
    "amp_multicast": "casts; test_names.py",
    "cast_storage": "sparse arrays; test_sparse.py",
    "sparse_retain": "sparse arrays; test_sparse.py",
    "Custom": "the user's; tests/autograd/test_custom.py",
    **dict.fromkeys((n for n in nd_face.composed if n.startswith("random_pdf_")), "densities; test_random.py"),
    **dict.fromkeys(
        (n for n in nd_face.composed if n.startswith(("multi_", "preloaded_"))),
        "optimizers; test_optimizer_many.py",
    ),
    **dict.fromkeys(("all_finite", "reset_arrays"), "of optimizers; test_optimizer_many.py"),
}


class Called(NamedTuple):
    """One call: operands in float64 or integers."""

    name: str
    number: int
    function: Callable[..., Any]
    operands: list[Any]
    attributes: dict[str, Any]

    @property
    def floats(self) -> list[int]:
        """The operands that gradients flow to."""
        last = 1 if self.name in ("broadcast_like", "reshape_like") else None  # the second gives its shape only
        return [i for i, x in enumerate(self.operands[:last]) if x.dtype == np.float64]

    def run(self, operands: Any) -> list[Any]:
        made = self.function(*operands, **self.attributes)
        return list(made) if isinstance(made, list | tuple) else [made]

    def arrays(self, dtype: Any = np.float64) -> list[Any]:
        return [nd.array(x, dtype=dtype if x.dtype == np.float64 else x.dtype) for x in self.operands]

    def heads(self, made: Any, purpose: int) -> list[Any]:
        rng = np.random.default_rng([self.number, purpose])
        return [nd.array(rng.standard_normal(y.shape), dtype="float64") for y in made]


def calls() -> list[Called]:
    found = []
    for name, number, operands, attributes in mxnet_shapes.calls():
        if name in nd_face.composed and number < 6:
            wide = [x.astype(np.float64) if x.dtype == np.float32 else x for x in operands]
            found.append(Called(name, number, getattr(nd, name), wide, attributes))
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    rows, index = x[0], np.array([1, 0, 3], np.int32)
    more: list[tuple[str, Any, list[Any], dict[str, Any]]] = [
        ("moveaxis", nd.moveaxis, [x], {"source": 0, "destination": -1}),
        ("moveaxis", nd.moveaxis, [x], {"source": (0, 1), "destination": (2, 0)}),
        ("split", nd.split, [x], {"num_outputs": 2, "axis": 2}),
        ("concatenate", lambda *arrays, **named: nd.concatenate(list(arrays), **named), [x, x + 1], {"axis": 1}),
        ("fill_element_0index", nd.fill_element_0index, [rows, x[1, :, 0], index], {}),
        ("amp_cast", lambda x: nd.amp_cast(x, dtype="float64"), [x], {}),
        ("UpSampling", nd.UpSampling, [x[None, :, :, :3], np.ones((2, 1, 4, 4))],
         {"scale": 2, "sample_type": "bilinear", "num_filter": 2, "num_args": 2}),
    ]  # fmt: skip
    return found + [Called(name, 100 + i, *rest) for i, (name, *rest) in enumerate(more)]


CALLS = calls()
each = pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.name}-{call.number}")


def test_every_function_is_tested_or_excused() -> None:
    tested = {nd_face.composed[call.name] for call in CALLS}
    left = {name for name, function in nd_face.composed.items() if function not in tested}
    assert left == set(EXCUSED), "give it calls in mxnet_shapes.py, or name it in EXCUSED with the reason"


@each
def test_dtypes(call: Called) -> None:
    """Results have the operands' dtype, and differ from those in float64 by rounding."""
    wide = [y.asnumpy() for y in call.run(call.arrays())]
    for dtype, rtol in ((np.float32, 1e-4), (np.float16, 6e-2)):
        if call.name == "amp_cast" or (dtype == np.float16 and call.name in ("linalg_potri", "linalg_trsm")):
            continue  # ill-conditioned in 16 bits
        for y, w in zip(call.run(call.arrays(dtype)), wide, strict=True):
            assert y.dtype == dtype and y.shape == w.shape
            np.testing.assert_allclose(y.asnumpy(), w, rtol=rtol, atol=rtol * max(1, abs(w).max(initial=0)))


@each
def test_layouts(call: Called) -> None:
    """Of transposed operands and of every second element of larger ones; operands stay as they are."""
    expected = [y.asnumpy() for y in call.run(call.arrays())]

    def stepped(x: Any) -> Any:
        wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), 7).astype(x.dtype)
        wide[..., ::2] = x
        return nd.array(wide, dtype=x.dtype)[..., ::2]

    for layout in (stepped, lambda x: nd.array(x.T.copy(), dtype=x.dtype).T):
        views = [layout(x) for x in call.operands]
        for y, w in zip(call.run(views), expected, strict=True):
            np.testing.assert_allclose(y.asnumpy(), w, rtol=1e-12, atol=1e-12)
        for view, x in zip(views, call.operands, strict=True):
            np.testing.assert_array_equal(view.asnumpy(), x)


@each
def test_no_elements(call: Called) -> None:
    """With a first axis of length 0 a function refuses the call, or gives results that can be waited for."""
    length = len(call.operands[0])
    empty = [x[:0] if len(x) == length else x for x in call.operands]
    try:
        made = call.run([nd.array(x, dtype=x.dtype) for x in empty])
    except Error:
        return
    for y in made:
        assert y.asnumpy().shape == y.shape


def pulled(call: Called, operands: list[Any], heads: list[Any], graph: bool = False) -> list[Any]:
    """The gradients of the squares of the results, weighted by `heads`: of squares, for most functions are linear."""
    arrays = [nd.array(x, dtype=x.dtype) for x in operands]
    for i in call.floats:
        arrays[i].attach_grad()
    with autograd.record():
        made = [y * y for y in call.run(arrays)]
        if graph:
            wanted = [arrays[i] for i in call.floats]
            first = autograd.grad(made, wanted, heads, create_graph=True)
            total = sum((g * h).sum() for g, h in zip(first, call.heads(first, 2), strict=True))
    if graph:
        total.backward()
    else:
        autograd.backward(made, heads)
    return [arrays[i].grad.asnumpy() for i in call.floats]


def inner(a: Any, b: Any) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


@each
def test_gradients_are_directional_derivatives(call: Called) -> None:
    """Of the first order of the values, of the second of the first."""
    heads = call.heads(call.run(call.arrays()), 1)
    rng = np.random.default_rng(call.number)
    ways = {i: rng.standard_normal(call.operands[i].shape) for i in call.floats}

    def moved(t: float) -> list[Any]:
        return [x + t * ways[i] if i in ways else x for i, x in enumerate(call.operands)]

    def value(t: float) -> float:
        made = call.run([nd.array(x, dtype=x.dtype) for x in moved(t)])
        return inner([y.asnumpy() ** 2 for y in made], [h.asnumpy() for h in heads])

    def slope(t: float) -> float:
        first = pulled(call, moved(t), heads)
        weights = [h.asnumpy() for h in call.heads(first, 2)]
        return inner(first, weights)

    step = 1e-6
    found = inner(pulled(call, call.operands, heads), ways.values())
    assert found == pytest.approx((value(step) - value(-step)) / (2 * step), rel=1e-5, abs=1e-6)
    again = inner(pulled(call, call.operands, heads, graph=True), ways.values())
    assert again == pytest.approx((slope(step) - slope(-step)) / (2 * step), rel=1e-4, abs=1e-5)


def test_engines_give_the_same_bytes() -> None:
    def everything() -> list[bytes]:
        pending = [y for call in CALLS for y in call.run(call.arrays(np.float32))]
        return [y.asnumpy().tobytes() for y in pending]

    with Engine(kind="NaiveEngine", inline=False):
        serial = everything()
    for inline in (False, True):
        with Engine(workers=2, inline=inline, schedule=5) as engine:
            assert everything() == serial
            ran = engine.statistics()
        assert inline or ran.by_worker > 0
