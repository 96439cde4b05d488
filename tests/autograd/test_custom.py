"""MXNet's custom operators: CustomOp, CustomOpProp, nd.Custom."""

from __future__ import annotations

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.engine import ArgumentError, ArgumentTypeError, Engine


class Scaled(vd.operator.CustomOp):
    def __init__(self, factor):
        self.factor = factor

    def forward(self, is_train, req, in_data, out_data, aux):
        x, y = in_data
        self.assign(out_data[0], req[0], self.factor * x * y)
        self.assign(out_data[1], req[1], x - y)
        aux[0][:] += 1
        seen.append(is_train)

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        x, y = in_data
        self.assign(in_grad[0], req[0], self.factor * y * out_grad[0] + out_grad[1])
        self.assign(in_grad[1], req[1], self.factor * x * out_grad[0] - out_grad[1])


seen: list[bool] = []


@vd.operator.register("scaled")
class ScaledProp(vd.operator.CustomOpProp):
    def __init__(self, factor="1"):
        super().__init__(need_top_grad=True)
        assert isinstance(factor, str)
        self.factor = float(factor)

    def list_arguments(self):
        return ["x", "y"]

    def list_outputs(self):
        return ["product", "difference"]

    def list_auxiliary_states(self):
        return ["calls"]

    def infer_shape(self, in_shape):
        return in_shape, [in_shape[0], in_shape[0]], [[1]]

    def create_operator(self, ctx, in_shapes, in_dtypes):
        assert ctx == vd.current_context()
        assert in_shapes == [[3], [3]]
        return Scaled(self.factor)


class Head(vd.operator.CustomOp):
    """A loss of MXNet's kind: its gradient is not the derivative of its value, and asks for no head gradient."""

    def forward(self, is_train, req, in_data, out_data, aux):
        e = np.exp(in_data[0].asnumpy())
        self.assign(out_data[0], req[0], nd.array(e / e.sum(axis=1, keepdims=True)))

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        y = out_data[0].asnumpy().copy()
        y[np.arange(len(y)), in_data[1].asnumpy().astype(int)] -= 1
        self.assign(in_grad[0], req[0], nd.array(y))


@vd.operator.register("head")
class HeadProp(vd.operator.CustomOpProp):
    def __init__(self):
        super().__init__(need_top_grad=False)

    def list_arguments(self):
        return ["data", "label"]

    def infer_shape(self, in_shape):
        return [in_shape[0], [in_shape[0][0]]], [in_shape[0]]

    def create_operator(self, ctx, in_shapes, in_dtypes):
        return Head()


def marked(values):
    x = nd.array(values)
    x.attach_grad()
    return x


@pytest.mark.parametrize("by_name", [False, True])
def test_outputs_gradients_and_auxiliary_arrays(by_name) -> None:
    x, y, calls = marked([1, 2, 3]), marked([4, 5, 6]), nd.zeros(1)
    seen.clear()
    with autograd.record():
        given = ((), {"y": y, "x": x, "calls": calls}) if by_name else ((x, y, calls), {})
        product, difference = nd.Custom(*given[0], op_type="scaled", factor=2, **given[1])
        total = (product + 10 * difference).sum()
    total.backward()
    assert product.asnumpy().tolist() == [8, 20, 36]
    assert difference.asnumpy().tolist() == [-3, -3, -3]
    assert x.grad.asnumpy().tolist() == [18, 20, 22]
    assert y.grad.asnumpy().tolist() == [-8, -6, -4]
    assert calls.asscalar() == 1
    nd.Custom(x, y, calls, op_type="scaled", name="a_name")
    assert seen == [True, False]
    assert calls.asscalar() == 2


def test_a_loss_of_its_own() -> None:
    data, label = marked([[1, 2, 3], [3, 2, 1]]), nd.array([2, 2])
    with autograd.record():
        p = nd.Custom(data, label, op_type="head")
    p.backward()
    e = np.exp([[1, 2, 3], [3, 2, 1]])
    e /= e.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(p.asnumpy(), e, rtol=1e-6)
    e[:, 2] -= 1
    np.testing.assert_allclose(data.grad.asnumpy(), e, rtol=1e-5, atol=1e-7)


def test_a_second_derivative() -> None:
    x, y = marked([1, 2, 3]), nd.array([4, 5, 6])
    with autograd.record():
        product, _ = nd.Custom(x * x, y, nd.zeros(1), op_type="scaled", factor=3)
        first = autograd.grad(product, x, create_graph=True)
    first.backward()
    assert first.asnumpy().tolist() == [24, 60, 108]
    assert x.grad.asnumpy().tolist() == [24, 30, 36]


def test_the_same_on_every_engine() -> None:
    found = []
    for kind in ("NaiveEngine", "ThreadedEnginePooled"):
        with Engine(kind=kind):
            x, y = marked([0.1, 0.2, 0.3]), marked([4, 5, 6])
            with autograd.record():
                product, difference = nd.Custom(x, y, nd.zeros(1), op_type="scaled", factor=0.3)
                z = nd.exp(product) * difference
            z.backward()
            found.append([a.asnumpy().tobytes() for a in (z, x.grad, y.grad)])
    assert found[0] == found[1]


class Fails(vd.operator.CustomOp):
    def __init__(self, where):
        self.where = where

    def forward(self, is_train, req, in_data, out_data, aux):
        if self.where == "forward":
            raise LookupError("a user's")
        if self.where == "writes":
            in_data[0][:] = 1
        out_data[0][:] = in_data[0]

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux):
        raise LookupError("a user's")


@vd.operator.register("fails")
class FailsProp(vd.operator.CustomOpProp):
    def __init__(self, where):
        super().__init__()
        self.where = where

    def infer_shape(self, in_shape):
        if self.where == "one answer":
            return [in_shape]
        if self.where == "two shapes":
            return in_shape, [in_shape[0], in_shape[0]], []
        return [[7]] if self.where == "another shape" else in_shape, [in_shape[0]]

    def infer_type(self, in_type):
        return ["float64"] if self.where == "another dtype" else in_type, in_type, []

    def create_operator(self, ctx, in_shapes, in_dtypes):
        return 7 if self.where == "no operator" else Fails(self.where)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("forward", LookupError, "a user's"),
        ("writes", ArgumentError, "read-only"),
        ("one answer", ArgumentError, r"\[fails\] infer_shape gave"),
        ("two shapes", ArgumentError, r"\[fails\] 1 outputs, but"),
        ("another shape", ArgumentError, r"\[fails\] the inputs have shapes \[\(2,\)\], not \[\(7,\)\]"),
        ("another dtype", ArgumentTypeError, r"\[fails\] float32\(2,\): other dtypes expected"),
        ("no operator", ArgumentTypeError, r"\[fails\] create_operator gave 7"),
    ],
)
def test_what_is_wrong_is_said_at_the_call(where, error, message) -> None:
    x = marked([1, 2])
    with autograd.record(), pytest.raises(error, match=message):
        nd.Custom(x, op_type="fails", where=where)
    assert x.asnumpy().tolist() == [1, 2]


def test_what_backward_raises_comes_out_of_backward() -> None:
    x = marked([1, 2])
    with autograd.record():
        y = nd.Custom(x, op_type="fails", where="backward")
    with pytest.raises(LookupError, match="a user's"):
        y.backward()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: nd.Custom(x, op_type="nothing"), ArgumentError, "'nothing' is not registered"),
        (lambda x: nd.Custom(x, x, op_type="scaled"), ArgumentError, "arrays x, y, calls expected"),
        (lambda x: nd.Custom(x, x, x, x, op_type="scaled"), ArgumentError, "arrays x, y, calls expected"),
        (lambda x: nd.Custom(x, x, x, x=x, op_type="scaled"), ArgumentError, "arrays x, y, calls expected"),
        (lambda x: nd.Custom(x, x, z=x, op_type="scaled"), ArgumentError, "arrays x, y, calls expected"),
        (lambda x: nd.Custom(x, [1], x, op_type="scaled"), ArgumentTypeError, r"y \[1\]: an array expected"),
        (lambda x: nd.Custom(x, x, nd.ones(2), op_type="scaled"), ArgumentError, "auxiliary arrays have shapes"),
        (lambda x: vd.operator.register("a")(int), ArgumentTypeError, "a subclass of CustomOpProp"),
        (lambda x: vd.operator.CustomOp().assign(x, "copy", x), ArgumentError, "req 'copy'"),
    ],
)
def test_wrong_arguments(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call(nd.ones(3))


def test_assign() -> None:
    op, x = vd.operator.CustomOp(), nd.ones(2)
    for req, expected in (("null", 1), ("write", 3), ("inplace", 3), ("add", 6)):
        op.assign(x, req, nd.full((2,), 3))
        assert x.asnumpy().tolist() == [expected] * 2
    assert "scaled" in vd.operator.get_all_registered()
