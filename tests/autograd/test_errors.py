"""What autograd refuses: each error says what is wrong, names operator and lines, and changes nothing."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.autograd import GraphError
from vardag.engine import ArgumentError, ArgumentTypeError


def marked(*values: Any, **options: Any) -> Any:
    x = nd.array(values, **options)
    x.attach_grad()
    return x


def line() -> int:
    """The number of the caller's line."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


# ---- a second backward -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", range(4))
def test_a_second_backward_names_the_recording_and_the_first_backward(times: int) -> None:
    """The same with plans, which the third time brings."""
    x = marked(1, 2)
    for _ in range(times + 1):
        with autograd.record():
            y, recorded = x * x, line()
            z = y + 1
        freed = line() + 1
        z.backward()
    before = x.grad.asnumpy().tolist()
    for again in (z.backward, y.backward, lambda: autograd.grad(z, x), lambda: autograd.grad(y, x, create_graph=True)):
        with pytest.raises(GraphError) as caught:
            again()
        text = str(caught.value)
        assert f"recorded at {__file__}:{recorded}" in text or f"recorded at {__file__}:{recorded + 1}" in text
        assert f"was freed by the backward at {__file__}:{freed}: pass retain_graph=True there" in text
    assert x.grad.asnumpy().tolist() == before


def test_new_work_on_a_freed_graph_says_so_too() -> None:
    x = marked(1, 2)
    with autograd.record():
        y = nd.exp(x)
    y.backward()
    with autograd.record():
        z = y * 2
    with pytest.raises(GraphError, match=r"the graph of exp, recorded at .*test_errors\.py:\d+, was freed by"):
        z.backward()


def test_retained_graphs_and_other_branches_stay() -> None:
    x, w = marked(1, 2), marked(3, 4)
    with autograd.record():
        y, other = x * x, w * w
    y.backward(retain_graph=True)
    y.backward()
    other.backward()
    assert w.grad.asnumpy().tolist() == [6, 8]


# ---- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda x: nd.ones(2), lambda x: x * 2, lambda x: x.detach()])
def test_a_head_without_a_graph(make: Any) -> None:
    x = marked(1, 2)
    head = make(x)
    for call in (head.backward, lambda: autograd.grad(head, x), lambda: autograd.backward([head])):
        with pytest.raises(GraphError, match=r"\[backward\] the head float32\(2,\) was not recorded: .*attach_grad"):
            call()
    assert x.grad.asnumpy().tolist() == [0, 0]


def test_one_of_several_heads_without_a_graph_changes_nothing() -> None:
    x = marked(1, 2)
    with autograd.record():
        y = x * x
    with pytest.raises(GraphError, match="was not recorded"):
        autograd.backward([y, nd.ones(2)])
    assert x.grad.asnumpy().tolist() == [0, 0]
    y.backward()
    assert x.grad.asnumpy().tolist() == [2, 4]


def test_heads_whose_arrays_want_no_gradient() -> None:
    x = marked(1, 2)
    with autograd.record():
        y = x * x
    x.attach_grad("null")
    with autograd.record():
        z = x * x
    with pytest.raises(GraphError, match="was not recorded"):
        z.backward()
    y.backward()  # of the old mark
    assert x.grad.asnumpy().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        (lambda: nd.ones(3), r"float32\(3,\)"),
        (lambda: nd.ones((1, 2)), r"float32\(1, 2\)"),
        (lambda: nd.ones(2, dtype="float64"), r"float64\(2,\)"),
        (lambda: nd.ones(2, dtype="int32"), r"int32\(2,\)"),
        (lambda: np.ones(2, np.float32), r"numpy float32\(2,\)"),
        (lambda: 3.0, r"3\.0"),
        (lambda: "one", "'one'"),
    ],
)
def test_wrong_head_gradients(gradient: Any, words: str) -> None:
    x = marked(1, 2)
    with autograd.record():
        y = x * x
    given = gradient()
    for call in (
        lambda: y.backward(given),
        lambda: autograd.backward([y], [given]),
        lambda: autograd.grad([y], [x], [given]),
        lambda: autograd.grad([y], [x], [given], create_graph=True),
    ):
        with pytest.raises(ArgumentError, match=rf"head float32\(2,\), head gradient {words}: the same expected"):
            call()
    with pytest.raises(ArgumentError, match="1 heads, but 2 head gradients"):
        autograd.backward([y], [None, None])
    y.backward()  # the graph is still there
    assert x.grad.asnumpy().tolist() == [2, 4]


@pytest.mark.parametrize("wrong", [3, "x", [3], [None], np.ones(2)])
def test_heads_that_are_no_arrays(wrong: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="an array expected"):
        autograd.backward(wrong)
    with pytest.raises(ArgumentError, match="no array given"):
        autograd.backward([])


# ---- marking ---------------------------------------------------------------------------------------------------------


def test_marking_what_has_no_gradient() -> None:
    x, flag = nd.ones(2), nd.array([1, 0], dtype="bool")
    for call in (flag.attach_grad, lambda: autograd.mark_variables([x, flag], [nd.zeros(2), nd.zeros(2)])):
        with pytest.raises(ArgumentTypeError, match=r"bool\(2,\): boolean and complex arrays have no gradient"):
            call()
    assert x.grad is None and flag.grad is None
    with pytest.raises(ArgumentError, match="'complex64': one of"):
        nd.zeros(2, dtype="complex64")
    with pytest.raises(ArgumentTypeError, match="an array expected"):
        autograd.mark_variables([3.0], [nd.zeros(1)])
    with pytest.raises(AttributeError):
        nd.sparse.zeros("csr", (2, 2)).attach_grad()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32", "int64", "uint8"])
def test_floats_and_integers_may_be_marked(dtype: str) -> None:
    x = marked(1, 2, dtype=dtype)
    assert x.grad.dtype is x.dtype and x.grad.asnumpy().tolist() == [0, 0]


def test_wrong_requests() -> None:
    x = nd.ones(2)
    for call, words in [
        (lambda: x.attach_grad("replace"), "request 'replace': one of write, add, null expected"),
        (lambda: x.attach_grad(stype="csr"), "stype 'csr': 'default' or 'row_sparse' expected"),
        (lambda: autograd.mark_variables(x, nd.zeros(3)), r"gradient float32\(3,\): the same expected"),
        (lambda: autograd.mark_variables(x, nd.zeros(2, dtype="float64")), "the same expected"),
        (lambda: autograd.mark_variables([x], []), "as many gradients and requests expected"),
        (lambda: autograd.mark_variables([x], [nd.zeros(2)], ["add", "add"]), "as many gradients and requests"),
        (lambda: autograd.grad(x, x, unused="maybe"), "unused 'maybe'"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            call()
    assert x.grad is None


# ---- gradients of one's own operators --------------------------------------------------------------------------------


def declared(gradient: Any, *, broadcasts: bool) -> Any:
    def wrong_in_the_tests(xp: Any, x: Any, y: Any, *, out: Any) -> None:
        xp.multiply(x, y, out=out)

    infer = None if broadcasts else lambda metas, attributes: ((metas[0],), attributes)
    return vd.operator(wrong_in_the_tests, infer=infer).grad(x=gradient, y=lambda F, g, x: g * x)


@pytest.mark.parametrize("broadcasts", [True, False])
@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        (lambda F, g, y: (g * y, g), "its gradient gave 2 arrays, 1 expected"),
        (lambda F, g, y: F.concat(g, y, dim=0), r"its gradient for x has shape \(4,\), \(2,\) expected"),
        (lambda F, g, y: F.reshape(F.concat(g, g, g, dim=0), shape=(2, 3)), r"its gradient for x has shape \(2, 3\), "),
    ],
)
def test_gradients_of_a_wrong_number_or_shape_name_the_operator(
    gradient: Any, words: str, create: bool, broadcasts: bool
) -> None:
    op = declared(gradient, broadcasts=broadcasts)
    for _ in range(3):
        x, y = marked(1, 2), nd.array([3, 4])
        with autograd.record():
            z, at = op(x, y), line()
        with pytest.raises(vd.Error, match=rf"\[wrong_in_the_tests\] {words}") as caught:
            if create:
                autograd.grad(z, x, create_graph=True)
            else:
                z.backward()
        assert isinstance(caught.value, ValueError)
        if not create:
            assert f"recorded at {__file__}:{at}" in "\n".join(caught.value.__notes__)
            with pytest.raises(ValueError, match=r"\[wrong_in_the_tests\]"):
                x.grad.asnumpy()


def test_mxnets_custom_operators_name_themselves() -> None:
    class Prop(vd.operator.CustomOpProp):
        def create_operator(self, ctx: Any, in_shapes: Any, in_dtypes: Any) -> Any:
            return Op()

    class Op(vd.operator.CustomOp):
        def forward(self, is_train: Any, req: Any, in_data: Any, out_data: Any, aux: Any) -> None:
            self.assign(out_data[0], req[0], in_data[0] * 2)

        def backward(self, req: Any, out_grad: Any, in_data: Any, out_data: Any, in_grad: Any, aux: Any) -> None:
            self.assign(in_grad[0], req[0], nd.ones(5))

    vd.operator.register("wrong_custom_in_the_tests")(Prop)
    x = marked(1, 2)
    with autograd.record():
        y, at = nd.Custom(x, op_type="wrong_custom_in_the_tests"), line()
    with pytest.raises(ArgumentError, match=r"value float32\(5,\): shapes \(2,\), \(5,\) do not broadcast") as caught:
        y.backward()
    assert f"in backward of wrong_custom_in_the_tests, recorded at {__file__}:{at}" in caught.value.__notes__
