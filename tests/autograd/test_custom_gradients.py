"""custom_gradient: functions with a gradient that somebody says."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.engine import ArgumentError, ArgumentTypeError


def marked(*values: Any, dtype: str = "float32") -> Any:
    x = nd.array(values, dtype=dtype)
    x.attach_grad()
    return x


@autograd.custom_gradient(lambda g, x: g * 5)
def rounded(x: Any) -> Any:
    """To the nearest integer."""
    return nd.round(x)


def test_the_gradient_is_what_is_said(engine_kind: Any) -> None:
    x = marked(0.4, 1.6)
    for _ in range(3):
        with autograd.record():
            y = rounded(x) * 2
        y.backward()
        assert y.asnumpy().tolist() == [0, 4] and x.grad.asnumpy().tolist() == [10, 10]
    assert rounded.__name__ == "rounded" and rounded.__doc__ == "To the nearest integer."


def test_any_order_of_what_the_gradient_does() -> None:
    @autograd.custom_gradient(lambda g, x, out: g * 3 * out / x)
    def cube(x: Any) -> Any:
        return x**3

    x = marked(2, dtype="float64")
    with autograd.record():
        y = cube(x)
        first = autograd.grad(y, x, create_graph=True)
        second = autograd.grad(first, x, create_graph=True)
        third = autograd.grad(second, x)
    assert [a.asscalar() for a in (y, first, second, third)] == [8, 12, 12, 6]
    assert autograd.hessian(cube)(nd.array([2.0])).asscalar() == 12


def test_trees_several_arguments_and_other_values() -> None:
    Point = namedtuple("Point", ["x", "y"])
    seen = []

    def gradient(g: Any, p: Any, scale: Any, k: int, *, flag: bool, out: Any) -> Any:
        seen.append((type(g), g["word"], k, flag, out["sum"].asscalar(), p.x[0].asscalar()))
        return Point([g["sum"] * 10, None], g["sum"] * 20), None, None

    @autograd.custom_gradient(gradient)
    def f(p: Any, scale: Any, k: int, *, flag: bool) -> Any:
        return {"sum": (p.x[0] + p.y) * k * scale, "word": "word"}

    a, b, c = marked(1), marked(2), marked(3)
    with autograd.record():
        made = f(Point([a, "text"], b), c, 2, flag=True)
    made["sum"].backward()
    assert made["word"] == "word" and made["sum"].asscalar() == 18
    assert [x.grad.asscalar() for x in (a, b, c)] == [10, 20, 0]
    assert seen == [(dict, "word", 2, True, 18, 1)]
    plain = f(Point([nd.ones(1), "text"], nd.ones(1)), nd.ones(1), 1, flag=False)
    assert plain["sum"].asscalar() == 2


def test_values_are_those_of_the_call() -> None:
    @autograd.custom_gradient(lambda g, x: g * x)
    def f(x: Any) -> Any:
        return x * 1

    x = marked(2, 3)
    with autograd.record():
        y = f(x)
    x[:] = 0
    y.backward()
    assert x.grad.asnumpy().tolist() == [2, 3]


def test_a_result_that_is_an_argument_may_be_written() -> None:
    same = autograd.custom_gradient(lambda g, x: g)(lambda x: x)
    x = nd.ones(2)
    y = same(x)
    y[:] = 3
    part = autograd.custom_gradient(lambda g, x: g)(lambda x: (x[1:], x * 2))(x)
    part[0][:] = 7
    assert x.asnumpy().tolist() == [1, 1] and isinstance(part, tuple)


def test_gradients_of_a_wrong_form_name_the_function() -> None:
    x, y = marked(1, 2), marked(3, 4)
    for gradient, words in [
        (lambda g, x, y: g, r"\[named\] its gradient gave float32\(2,\): 2 gradients expected, one for each argument"),
        (lambda g, x, y: (g, g, g), r"\[named\] its gradient gave 3: 2 gradients expected"),
        (lambda g, x, y: (g, nd.ones(3)), r"\[named\] backward gave float32\(3,\) for input 1, of shape \(2,\)"),
        (lambda g, x, y: (g, 3.0), r"\[named\] backward gave 3.0 for input 1"),
        (lambda g, x, y: ([g], g), r"\[named\] its gradient has a sequence of 1 in the place of one array"),
    ]:

        def named(x: Any, y: Any) -> Any:
            return x * y

        f = autograd.custom_gradient(gradient)(named)
        with autograd.record():
            z = f(x, y)
        with pytest.raises(ArgumentError, match=words):
            z.backward()


def test_wrong_calls() -> None:
    x = marked(1, 2)
    f = autograd.custom_gradient(lambda g, x, k=None: g)(lambda x, k=None: x * 2)
    with pytest.raises(ArgumentTypeError, match=r"\[custom_gradient\] 7: the function that gives the gradient"):
        autograd.custom_gradient(7)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="no argument is, or has, an array"):
        f(3)
    with pytest.raises(ArgumentError, match=r"\[<lambda>\] k: an array on the tape has to be given by position"):
        f(nd.ones(2), k=x)
    with pytest.raises(ArgumentTypeError, match=r"it gave .*: arrays expected"):
        autograd.custom_gradient(lambda g, x: g)(lambda x: 3)(x)
    with pytest.raises(ArgumentError, match="read-only"):

        @autograd.custom_gradient(lambda g, x: g)
        def writes(x: Any) -> Any:
            x += 1
            return x

        writes(x)
    assert x.asnumpy().tolist() == [1, 2]


def test_clipped_gradients_in_a_network() -> None:
    """Straight-through and clipping, beside ordinary operators."""
    clipped = autograd.custom_gradient(lambda g, x: nd.clip(g, -0.1, 0.1))(lambda x: x + 0)
    w, x = marked(2.0, -3.0, dtype="float64"), nd.array([[1, 2], [3, 4]], dtype="float64")
    with autograd.record():
        y = nd.tanh(clipped(nd.dot(x, w)) * rounded(nd.dot(x, w) * 0.3)).sum()
    y.backward()
    h = x.asnumpy() @ w.asnumpy()
    r = np.round(h * 0.3)
    d = 1 - np.tanh(h * r) ** 2
    expected = x.asnumpy().T @ (np.clip(d * r, -0.1, 0.1) + d * h * 5 * 0.3)
    np.testing.assert_allclose(w.grad.asnumpy(), expected, 1e-12)
