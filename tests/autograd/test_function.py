"""User-defined functions: forward and backward written with arrays."""

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd


class Cube(autograd.Function):
    def forward(self, x):
        self.save_for_backward(x)
        return x * x * x

    def backward(self, dy):
        (x,) = self.saved_tensors
        return dy * 3 * x * x


class ExpOfOutput(autograd.Function):
    """Saves its output, and has two inputs and two outputs."""

    def forward(self, x, y):
        e = nd.exp(x)
        self.save_for_backward(e, y)
        return e, e * y

    def backward(self, de, dey):
        e, y = self.saved_tensors
        return de * e + dey * e * y, dey * e


def marked(*values):
    x = nd.array(values)
    x.attach_grad()
    return x


def test_gradient(engine_kind):
    x = marked(1, 2, 3)
    with autograd.record():
        y = Cube()(x)
    y.backward()
    assert x.grad.asnumpy().tolist() == [3, 12, 27]


def test_any_order():
    x = marked(1, 2, 3)
    with autograd.record():
        y = Cube()(x)
        first = autograd.grad(y, x, create_graph=True)
        second = autograd.grad(first, x, create_graph=True)
        third = autograd.grad(second, x)
    assert first.asnumpy().tolist() == [3, 12, 27]
    assert second.asnumpy().tolist() == [6, 12, 18]
    assert third.asnumpy().tolist() == [6, 6, 6]


def test_several_inputs_and_outputs_and_a_saved_output():
    x, y = marked(0.5, 1), marked(2, 3)
    with autograd.record():
        e, ey = ExpOfOutput()(x, y)
        total = e + ey * 2
        (gx,) = autograd.grad(total, [x], create_graph=True)
    gx.backward()  # d/dx of e + 2 e y, then once more
    value = np.exp(np.float32([0.5, 1]))
    np.testing.assert_allclose(gx.asnumpy(), value * (1 + 2 * np.array([2, 3])), rtol=1e-6)
    np.testing.assert_allclose(x.grad.asnumpy(), value * (1 + 2 * np.array([2, 3])), rtol=1e-6)
    np.testing.assert_allclose(y.grad.asnumpy(), 2 * value, rtol=1e-6)


def test_saved_values_survive_later_writes():
    x = marked(1, 2, 3)
    with autograd.record():
        y = Cube()(x)
    x[:] = 0
    y.backward()
    assert x.grad.asnumpy().tolist() == [3, 12, 27]


def test_inputs_are_read_only_and_nothing_happens():
    class Writes(autograd.Function):
        def forward(self, x):
            x[0] = 7
            return x

    x = marked(1, 2)
    before = x.version
    with pytest.raises(vd.Error, match="read-only"):
        Writes()(x)
    assert x.version == before and x.asnumpy().tolist() == [1, 2]


def test_an_output_that_is_an_input_is_another_array():
    class Same(autograd.Function):
        def forward(self, x):
            return x

        def backward(self, dy):
            return dy * 5

    x = marked(1, 2)
    with autograd.record():
        y = Same()(x)
        z = y * 2
    z.backward()
    assert x.grad.asnumpy().tolist() == [10, 10]
    y[:] = 9
    assert x.asnumpy().tolist() == [1, 2]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda dy: (dy, dy), "2 gradients for 1 inputs"),
        (lambda dy: nd.ones(5), r"shape \(3,\)"),
        (lambda dy: 3.0, "shape"),
    ],
)
def test_a_wrong_backward_says_so(result, message):
    class Wrong(autograd.Function):
        def forward(self, x):
            return x * 2

        def backward(self, dy):
            return result(dy)

    x = marked(1, 2, 3)
    with autograd.record():
        y = Wrong()(x)
    with pytest.raises(vd.engine.ArgumentError, match=message):
        y.backward()


def test_none_means_no_gradient():
    class Half(autograd.Function):
        def forward(self, x, y):
            return x * y

        def backward(self, dz):
            return dz, None

    x, y = marked(1, 2), marked(3, 4)
    with autograd.record():
        z = Half()(x, y)
    z.backward()
    assert x.grad.asnumpy().tolist() == [1, 1]
    assert y.grad.asnumpy().tolist() == [0, 0]


def test_without_recording_it_is_a_plain_call():
    x = nd.array([2.0])
    assert Cube()(x).asscalar() == 8
    y = Cube()(marked(2))
    with pytest.raises(autograd.GraphError):
        y.backward()
