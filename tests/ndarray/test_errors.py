"""Bad input: an error at the call that names operator and operands, of the natural kind, with nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.engine import Engine


class Given:
    """The operands of one bad call, and what they were before it."""

    def __init__(self) -> None:
        self.a = nd.array([[1, 2, 3], [4, 5, 6]])
        self.b = nd.array([[1, 2], [3, 4]])
        self.i = nd.array([1, 2, 3], dtype="int32")
        self.t = nd.array([True, False], dtype="bool")
        self.e = nd.zeros((0, 3))
        self.m = nd.array([1, 2, 3])
        self.m.attach_grad()
        with autograd.record():
            self.y = self.m * self.m
        self.arrays = dict(vars(self))
        self.before = self.state()

    def state(self) -> dict[str, Any]:
        return {
            name: (x.version, x.shape, x.dtype, x.asnumpy().tobytes(), x.grad is None)
            for name, x in self.arrays.items()
        }


def other_engine() -> Any:
    with Engine(kind="NaiveEngine"):
        return nd.ones((2, 3))


class Bad:
    """A call, the natural kind of its error, and what its message must contain."""

    def __init__(self, name: str, kind: type[Exception], call: Callable[[Given], Any], *words: str) -> None:
        self.name, self.kind, self.call, self.words = name, kind, call, words


CALLS = [
    # shapes
    Bad("shapes do not broadcast", ValueError, lambda g: g.a + g.b, "[add]", "float32(2, 3)", "float32(2, 2)"),
    Bad("shapes, in place", ValueError, lambda g: g.a.__iadd__(g.b), "[add]", "float32(2, 3)", "float32(2, 2)"),
    Bad("in place would grow", ValueError, lambda g: g.m.detach().__iadd__(g.a), "[add]", "float32(2, 3)"),
    Bad("out has another shape", ValueError, lambda g: nd.exp(g.a, out=g.b), "[exp]", "out is float32(2, 2)"),
    Bad("assigned value is too large", ValueError, lambda g: g.b.__setitem__(slice(None), g.a), "[assign]", "(2, 2)"),
    Bad("assigned host value", ValueError, lambda g: g.b.__setitem__(0, np.zeros(5)), "[assign]", "(5,)"),
    Bad("reshape to another size", ValueError, lambda g: g.a.reshape((4, 2)), "[reshape]", "(2, 3)", "(4, 2)"),
    Bad("reshape with two unknowns", ValueError, lambda g: g.a.reshape((-1, -1)), "[reshape]", "(-1, -1)"),
    Bad("reshape by operator", ValueError, lambda g: nd.reshape(g.a, shape=(7,)), "[reshape]", "(2, 3)", "(7,)"),
    Bad("broadcast_to", ValueError, lambda g: nd.broadcast_to(g.a, shape=(2, 4)), "[broadcast_to]", "float32(2, 3)"),
    Bad("concat", ValueError, lambda g: nd.concat(g.a, g.b, dim=0), "[concat]", "float32(2, 3)", "float32(2, 2)"),
    Bad("concat of nothing", ValueError, lambda g: nd.concat(), "[concat]"),
    Bad("squeeze", ValueError, lambda g: nd.squeeze(g.a, axis=0), "[squeeze]", "axis 0"),
    Bad("expand_dims", ValueError, lambda g: nd.expand_dims(g.a, axis=5), "[expand_dims]", "axis 5"),
    Bad("expand_dims in place", ValueError, lambda g: g.a.expand_dims(7, inplace=True), "[expand_dims]", "axis 7"),
    Bad("transpose", ValueError, lambda g: nd.transpose(g.a, axes=(0, 0)), "[transpose]", "float32(2, 3)"),
    Bad("transpose axes", ValueError, lambda g: nd.transpose(g.a, axes=(0, 2)), "[transpose]", "axis 2"),
    Bad("swapaxes", ValueError, lambda g: nd.swapaxes(g.a, 0, 3), "[swapaxes]", "axis 3"),
    Bad("negative size", ValueError, lambda g: nd.zeros((2, -1)), "(2, -1)"),
    Bad("a shape of floats", ValueError, lambda g: nd.zeros((2.5,)), "2.5"),
    Bad("where", ValueError, lambda g: nd.where(g.b, g.a, g.a), "[where]", "float32(2, 2)"),
    # dtypes
    Bad("dtypes differ", TypeError, lambda g: g.m + g.i, "[add]", "float32(3,)", "int32(3,)", "astype"),
    Bad("dtypes differ, concat", TypeError, lambda g: nd.concat(g.m, g.i, dim=0), "[concat]", "int32(3,)"),
    Bad("out has another dtype", ValueError, lambda g: nd.exp(g.m, out=g.i), "[exp]", "int32(3,)"),
    Bad("no such dtype", ValueError, lambda g: nd.zeros(2, dtype="complex64"), "complex64"),
    Bad("not a dtype", ValueError, lambda g: g.a.astype("flot32"), "flot32"),
    Bad("an unhashable dtype", ValueError, lambda g: nd.ones(1, dtype=["x"]), "[dtype]"),
    Bad("floor of bool, minus", TypeError, lambda g: -g.t, "[negative]", "bool(2,)"),
    Bad("strings", TypeError, lambda g: nd.array(["a", "b"]), "[array]"),
    Bad("ragged", TypeError, lambda g: nd.array([[1, 2], [3]]), "[array]"),
    # arity and operands
    Bad("operand missing", TypeError, lambda g: nd.add(g.a), "[add]", "'y'"),
    Bad("too many operands", TypeError, lambda g: nd.exp(g.a, g.b, g.b), "[exp]"),
    Bad("operand given twice", TypeError, lambda g: nd.exp(g.a, data=g.b), "[exp]", "twice"),
    Bad("an operand that is no array", TypeError, lambda g: nd.exp([1, 2]), "[exp]", "[1, 2]"),
    Bad("a scalar alone", TypeError, lambda g: nd.exp(1.5), "[exp]", "1.5"),
    Bad("compared with None", TypeError, lambda g: g.a == None, "[equal]", "float32(2, 3)", "None"),  # noqa: E711
    Bad("compared with a string", TypeError, lambda g: g.a < "a", "[less]", "'a'"),
    Bad("NumPy array of objects", TypeError, lambda g: g.a + np.array([object()] * 3), "[add]"),
    Bad("out is no array", ValueError, lambda g: nd.exp(g.a, out=[1, 2]), "[exp]", "out"),
    Bad("two outs", ValueError, lambda g: nd.exp(g.a, out=[g.a, g.a]), "[exp]", "out"),
    # attributes
    Bad("unknown attribute", ValueError, lambda g: nd.exp(g.a, axis=1), "[exp]", "'axis'"),
    Bad("attribute missing", ValueError, lambda g: nd.slice_axis(g.a, axis=0), "[slice_axis]", "'begin'"),
    Bad("bad axis", ValueError, lambda g: nd.slice_axis(g.a, axis=2, begin=0, end=1), "[slice_axis]", "axis 2"),
    Bad("step of zero", ValueError, lambda g: nd.arange(0, 5, 0), "[arange]", "step"),
    Bad("reshape without a shape", ValueError, lambda g: nd.reshape(g.a), "[reshape]", "'shape'"),
    Bad("reshape with more", TypeError, lambda g: g.a.reshape((6,), order="C"), "[reshape]", "'order'"),
    # contexts and engines
    Bad("no such device type", ValueError, lambda g: vd.Context("tpu"), "[Context]", "'tpu'"),
    Bad("negative device", ValueError, lambda g: vd.cpu(-1), "[Context]", "-1"),
    Bad("no such GPU", ValueError, lambda g: nd.zeros(2, ctx=vd.gpu(0)), "gpu(0)"),
    Bad("copy to no such GPU", ValueError, lambda g: g.a.as_in_context(vd.gpu(0)), "gpu(0)"),
    Bad("a context by name", ValueError, lambda g: nd.zeros(2, ctx="cpu"), "[Context]", "'cpu'"),
    Bad("another engine", ValueError, lambda g: g.a + other_engine(), "[add]", "engines"),
    Bad("out of another engine", ValueError, lambda g: nd.exp(g.a, out=other_engine()), "[exp]", "engines"),
    # whole values
    Bad("asscalar of several", ValueError, lambda g: g.a.asscalar(), "[asscalar]", "float32(2, 3)"),
    Bad("bool of several", ValueError, lambda g: bool(g.a), "[bool]", "float32(2, 3)"),
    Bad("bool of none", ValueError, lambda g: bool(g.e), "[bool]", "float32(0, 3)"),
    Bad("float of several", ValueError, lambda g: float(g.a), "float32(2, 3)"),
    Bad("copyto itself", ValueError, lambda g: g.a.copyto(g.a), "[copyto]", "float32(2, 3)"),
    Bad("copyto a list", TypeError, lambda g: g.a.copyto([1]), "[copyto]", "[1]"),
    Bad("copyto another shape", ValueError, lambda g: g.a.copyto(g.b), "[assign]", "(2, 2)"),
    Bad("a dtype without a copy", ValueError, lambda g: np.asarray(g.a, "int64", copy=False), "[__array__]"),
    Bad("the class is no constructor", TypeError, lambda g: nd.NDArray([1, 2]), "[NDArray]"),
    # autograd
    Bad("grad_req", ValueError, lambda g: autograd.mark_variables([g.a], [g.a], "all"), "[mark_variables]", "'all'"),
    Bad("sparse gradients", ValueError, lambda g: g.a.attach_grad(stype="csr"), "[attach_grad]", "'csr'"),
    Bad("marking bool", TypeError, lambda g: autograd.mark_variables([g.t]), "[mark_variables]", "bool(2,)"),
    Bad("marking a list", TypeError, lambda g: autograd.mark_variables([[1]]), "[mark_variables]"),
    Bad("gradients of another shape", ValueError, lambda g: autograd.mark_variables([g.a], [g.b]), "[mark_variables]"),
    Bad("fewer gradients", ValueError, lambda g: autograd.mark_variables([g.a, g.b], [g.b]), "[mark_variables]", "2"),
    Bad("head not recorded", ValueError, lambda g: g.a.backward(), "[backward]", "float32(2, 3)"),
    Bad("no head", ValueError, lambda g: autograd.backward([]), "[backward]"),
    Bad("head is no array", TypeError, lambda g: autograd.backward([3]), "[backward]", "3"),
    Bad("head gradient's shape", ValueError, lambda g: g.y.backward(g.b), "[backward]", "float32(3,)", "float32(2, 2)"),
    Bad("head gradient's dtype", ValueError, lambda g: g.y.backward(g.i), "[backward]", "int32(3,)"),
    Bad("head gradients' number", ValueError, lambda g: autograd.backward([g.y], [g.y, g.y]), "[backward]", "2"),
    Bad("unmarked variable", ValueError, lambda g: autograd.grad(g.y, g.a), "[grad]", "float32(2, 3)"),
    Bad("unused=", ValueError, lambda g: autograd.grad(g.y, g.m, unused="maybe"), "[grad]", "'maybe'"),
    Bad("inplace=", ValueError, lambda g: autograd.record(inplace="never"), "[record]", "'never'"),
    Bad("a seed", ValueError, lambda g: vd.random.seed(-1), "[seed]", "-1"),
]  # fmt: skip


def test_the_table_is_long() -> None:
    assert len(CALLS) >= 40 and len({bad.name for bad in CALLS}) == len(CALLS)


@pytest.mark.parametrize("bad", CALLS, ids=lambda bad: bad.name)
def test_a_bad_call(bad: Bad) -> None:
    g = Given()
    pushed = vd.engine.current().statistics().pushed
    with pytest.raises(bad.kind) as caught:
        bad.call(g)
    error = caught.value
    assert isinstance(error, vd.Error), f"{type(error).__mro__} is no vardag.Error"
    assert isinstance(error, vd.base.MXNetError)
    text = str(error)
    assert text.startswith("["), text
    for word in bad.words:
        assert word in text, f"{word!r} is not in {text!r}"
    assert vd.engine.current().statistics().pushed == pushed, "something was pushed"
    assert g.state() == g.before, "something changed"
    g.y.backward()
    assert g.m.grad.asnumpy().tolist() == [2, 4, 6], "the graph is as it was"


def test_a_host_operand_out_of_range_is_infinite_without_a_warning() -> None:
    """Whoever converts, the caller or a worker: floating-point errors are values."""
    x = nd.ones((2,))
    x[:] = np.array([1e300, -1e300])
    assert (x + np.array([1e300, 0])).asnumpy().tolist() == [np.inf, -np.inf]


def test_messages_name_every_operand() -> None:
    x, y = nd.ones((2, 3)), nd.ones((4, 5))
    with pytest.raises(ValueError, match=r"\[multiply\] x float32\(2, 3\), y float32\(4, 5\): "):
        x * y


def test_a_push_to_a_stopped_engine() -> None:
    with Engine(kind="ThreadedEnginePerDevice", workers=1):
        x = nd.ones((3,))
        x.wait_to_read()
    version = x.version
    with pytest.raises(vd.engine.EngineClosed):
        x + 1
    with pytest.raises(vd.engine.EngineClosed):
        x += 1
    assert x.version == version
