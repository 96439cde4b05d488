"""Transforms of functions: against PyTorch's numbers, nested, over trees, without traces on what they are given."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.engine import ArgumentError, ArgumentTypeError
from vardag.ndarray.array import Array
from vardag.operators.faces import numpy_face

_spec = importlib.util.spec_from_file_location("torch_transforms", Path(__file__).with_name("torch_transforms.py"))
assert _spec is not None and _spec.loader is not None
torch = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(torch)
ANSWERS = json.loads(torch.PATH.read_text())


def arrays(tree: Any) -> Any:
    return torch.mapped(lambda x: nd.array(x, dtype="float64"), tree)


def near(found: Any, expected: Any, where: str = "") -> None:
    """A tree against lists of the same form; the shape () is (1,) here."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key, x in expected.items():
            near(found[key], x, f"{where}/{key}")
    elif hasattr(found, "asnumpy"):
        raw = found.asnumpy()
        np.testing.assert_allclose(raw, np.array(expected).reshape(raw.shape), 1e-10, 1e-10, err_msg=where)
    else:
        assert len(found) == len(expected), where
        for i, (x, y) in enumerate(zip(found, expected, strict=True)):
            near(x, y, f"{where}/{i}")


# ---- against PyTorch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", torch.CASES)
def test_transforms_are_those_of_torch(name: str) -> None:
    f, values = torch.CASES[name]
    expected = ANSWERS[name]
    args, tangents = arrays(values), arrays(torch.directions(values))
    positions = tuple(range(len(args)))
    for _ in range(3):  # the third backward of a graph goes by a plan
        value, gradients = autograd.value_and_grad(f, positions)(*args)
        near(value, expected["value"])
        near(gradients, expected["grad"])
    value, pull = autograd.vjp(f, *args)
    cotangents = shaped(arrays(torch.directions(expected_value(value))), value)
    for _ in range(2):
        near(pull(cotangents), expected["vjp"])
    near(autograd.jvp(f, args, tangents)[1], expected["jvp"])
    first, product = autograd.hvp(f, args, tangents)
    near(first, expected["grad"])
    near(product, expected["hvp"])
    for mode in ("auto", "reverse", "forward"):
        near(autograd.jacobian(f, positions, mode=mode)(*args), expected["jacobian"])
    near(autograd.hessian(f, positions)(*args), expected["hessian"])


def expected_value(tree: Any) -> Any:
    return torch.mapped(lambda y: np.zeros(() if y.shape == (1,) else y.shape), tree)


def shaped(tree: Any, like: Any) -> Any:
    """The tree with arrays of the shapes of another's, (1,) for ()."""
    leaves: list[Any] = []
    torch.mapped(leaves.append, like)
    rest = iter(leaves)
    return torch.mapped(lambda x: x.reshape(next(rest).shape), tree)


def test_serial_and_threaded_give_the_same_bits() -> None:
    found = []
    for kind, workers in (("NaiveEngine", 1), ("ThreadedEnginePooled", 2), ("ThreadedEnginePerDevice", 4)):
        with vd.engine.Engine(kind=kind, workers=workers, inline=kind == "ThreadedEnginePerDevice"):
            args = arrays(torch.CASES["perceptron"][1])
            bits: list[bytes] = []
            for tree in (
                autograd.value_and_grad(torch.perceptron)(*args),
                autograd.hessian(torch.perceptron)(*args),
                autograd.jacobian(torch.perceptron, mode="forward")(*args),
            ):
                torch.mapped(lambda x, bits=bits: bits.append(x.asnumpy().tobytes()), tree)
            found.append(bits)
    assert found[0] == found[1] == found[2]


# ---- arguments and results -------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["first", "second"])


def test_trees_keep_their_form() -> None:
    p = Pair([nd.array([1.0, 2]), "name", 7], {"b": nd.array([3.0]), "a": (None, nd.array([4.0]))})

    def f(p: Any, k: Any) -> Any:
        assert isinstance(p, Pair) and p.first[1:] == ["name", 7] and p.second["a"][0] is None
        return Pair((p.first[0] * p.second["b"]).sum() * k, [p.second["a"][1] ** 2])

    value, g = autograd.value_and_grad(f)(p, 10)
    assert isinstance(value, Pair) and isinstance(value.second, list)
    assert isinstance(g, Pair) and list(g.second) == ["b", "a"]
    assert g.first[0].asnumpy().tolist() == [30, 30] and g.first[1:] == [None, None]
    assert g.second["b"].asscalar() == 30 and g.second["a"][0] is None and g.second["a"][1].asscalar() == 8


def test_arguments_by_position_and_by_name() -> None:
    x, y = nd.array([2.0]), nd.array([5.0])

    def f(x: Any, y: Any, *, z: Any = None) -> Any:
        return x * x * y * (1 if z is None else z)

    grad = lambda argnums, *a, **k: autograd.value_and_grad(f, argnums)(*a, **k)[1]  # noqa: E731
    assert grad(0, x, y).asscalar() == 20
    assert grad("y", x, y).asscalar() == 4
    assert grad(-1, x, y).asscalar() == 4
    assert [g.asscalar() for g in grad(("y", 0), x, y)] == [4, 20]
    assert grad("z", x, y, z=nd.array([3.0])).asscalar() == 20
    assert grad("y", x, y=y).asscalar() == 4
    assert isinstance(grad((0,), x, y), tuple)


def test_other_results_by_the_side() -> None:
    def f(x: Any) -> Any:
        return (x * x).sum(), {"twice": x * 2, "n": 7}

    (value, aux), g = autograd.value_and_grad(f, has_aux=True)(nd.array([1.0, 2]))
    assert value.asscalar() == 5 and g.asnumpy().tolist() == [2, 4]
    assert aux["twice"].asnumpy().tolist() == [2, 4] and aux["n"] == 7
    with pytest.raises(ArgumentError, match=r"has_aux a pair"):
        autograd.value_and_grad(lambda x: x, has_aux=True)(nd.array([1.0]))


def test_what_does_not_depend_has_zeros() -> None:
    x, y = nd.array([1.0, 2]), nd.array([3.0])
    _, g = autograd.value_and_grad(lambda x, y: y * 2, (0, 1))(x, y)
    assert g[0].asnumpy().tolist() == [0, 0] and g[1].asscalar() == 2
    assert autograd.value_and_grad(lambda x: nd.ones(3))(x)[1].asnumpy().tolist() == [0, 0]
    assert autograd.jacobian(lambda x: nd.ones(3))(x).asnumpy().tolist() == [[0, 0]] * 3
    assert autograd.jvp(lambda x: nd.ones(3), [x], [x])[1].asnumpy().tolist() == [0, 0, 0]
    assert autograd.hessian(lambda x: x.sum())(x).asnumpy().tolist() == [[0, 0], [0, 0]]
    assert autograd.hvp(lambda x: x.sum(), [x], [x])[1][0].asnumpy().tolist() == [0, 0]


def test_integers_in_the_result_have_no_derivative() -> None:
    def f(x: Any) -> Any:
        return x * 2, nd.cast(x, dtype="int32"), "word"

    x = nd.array([1.0, 2])
    value, pull = autograd.vjp(f, x)
    assert value[2] == "word" and pull((nd.array([1.0, 10]), None, None))[0].asnumpy().tolist() == [2, 20]
    tangent = autograd.jvp(f, [x], [x])[1]
    assert tangent[0].asnumpy().tolist() == [2, 4] and tangent[1:] == (None, None)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_jacobians_of_no_elements(mode: str) -> None:
    f = autograd.jacobian(lambda x, y: x[:0] * 2, (0, 1), mode=mode)
    shapes = [j.shape for j in f(nd.ones((3, 2)), nd.ones((0,)))]
    assert shapes == [(0, 2, 3, 2), (0, 2, 0)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_results_have_the_dtype_of_their_argument(dtype: str) -> None:
    x = nd.array([1, 2], dtype=dtype)
    assert autograd.value_and_grad(lambda x: x * x)(x)[1].dtype == np.dtype(dtype).type
    assert autograd.hessian(lambda x: x * x)(x).dtype == np.dtype(dtype).type
    assert autograd.jvp(lambda x: x * x, [x], [x])[1].dtype == np.dtype(dtype).type


# ---- no traces -------------------------------------------------------------------------------------------------------


def test_nothing_of_the_callers_is_marked_written_or_freed() -> None:
    x, w = nd.array([1.0, 2]), nd.array([3.0, 4])
    w.attach_grad()
    with autograd.record():
        h = w * w

    def f(x: Any) -> Any:
        y = x * h
        x += 100
        x[0] = 5
        return y * y + x

    before = x.version
    for _ in range(4):
        value, g = autograd.value_and_grad(f)(x)
    assert x.asnumpy().tolist() == [1, 2] and x.version == before and x.grad is None
    assert g.asnumpy().tolist() == [162, 1 + 2 * 2 * 16**2]  # x[0] of the sum is a constant
    assert w.grad.asnumpy().tolist() == [0, 0]
    with pytest.raises(autograd.GraphError):
        value.backward()
    h.backward()
    assert w.grad.asnumpy().tolist() == [6, 8]
    assert not autograd.is_recording()


def test_a_pull_lives_on_its_own() -> None:
    x = nd.array([1.0, 2])
    value, pull = autograd.vjp(lambda x: x * x, x)
    value[:] = 0
    x[:] = 0
    one = nd.ones(2)
    for _ in range(3):
        assert pull(one)[0].asnumpy().tolist() == [2, 4]
    assert value.asnumpy().tolist() == [0, 0]


def test_a_pull_in_a_recording_scope_ignores_later_writes() -> None:
    x = nd.array([1.0, 2])
    x.attach_grad()
    with autograd.record():
        value, pull = autograd.vjp(lambda x: x * x, x)
        value *= 3
        (g,) = pull(value)  # 2 x (3 x x)
    g.backward()
    assert g.asnumpy().tolist() == [6, 48]
    assert x.grad.asnumpy().tolist() == [18, 72]


def test_an_error_of_the_function_comes_out_and_ends_the_scope() -> None:
    def f(x: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        autograd.value_and_grad(f)(nd.ones(1))
    assert not autograd.is_recording()


def test_an_error_in_an_operation_is_on_the_gradient() -> None:
    engine = vd.engine.current()
    x = nd.ones(2)

    def broken(memory: Any) -> None:
        raise ZeroDivisionError("here")

    engine.push(broken, updates=[x])
    value, g = autograd.value_and_grad(lambda x: x * x)(x)
    for wrong in (value, g):
        with pytest.raises(ZeroDivisionError, match="here"):
            wrong.asnumpy()


# ---- in a recording scope, and nested --------------------------------------------------------------------------------


def test_gradients_are_part_of_the_graph_where_somebody_records() -> None:
    """A penalty on the norm of a gradient, as WGAN-GP has it, by the parameters that f knows from outside."""
    w = nd.array([[1.0, 2], [3, 4]], dtype="float64")
    w.attach_grad()
    x = nd.array([[0.3, 0.5]], dtype="float64")

    def critic(x: Any) -> Any:
        return nd.tanh(nd.dot(x, w)).sum()

    def penalty() -> Any:
        g = autograd.value_and_grad(critic)(x)[1]
        return ((g * g).sum() - 1) ** 2

    with autograd.record():
        loss = penalty()
    loss.backward()
    raw = w.asnumpy()
    for i in np.ndindex(2, 2):
        values = []
        for step in (1e-6, -1e-6):
            w[:] = raw
            w[i] = raw[i] + step
            with autograd.record():
                values.append(penalty().asscalar())
        w[:] = raw
        assert abs((values[0] - values[1]) / 2e-6 - w.grad.asnumpy()[i]) < 1e-6


def test_the_argument_may_be_on_the_outer_tape() -> None:
    x = nd.array([2.0])
    x.attach_grad()
    with autograd.record():
        y = x * x
        value, g = autograd.value_and_grad(lambda y: y**3)(y)  # 3 x^4
        total = value + g
    total.backward()
    assert x.grad.asscalar() == 6 * 2**5 + 12 * 2**3


def test_transforms_of_transforms() -> None:
    x = nd.array([2.0], dtype="float64")
    grad = lambda f: lambda x: autograd.value_and_grad(f)(x)[1]  # noqa: E731
    f = lambda x: x**5  # noqa: E731
    for expected in (80, 160, 240, 240, 120, 0):
        f = grad(f)
        assert f(x).asscalar() == expected
    cube = lambda x: (x**3).sum()  # noqa: E731
    v = nd.array([1.0, 2], dtype="float64")
    third = autograd.jacobian(autograd.hessian(cube))(v).asnumpy()
    expected_third = np.zeros((2, 2, 2))
    expected_third[0, 0, 0] = expected_third[1, 1, 1] = 6
    assert (third == expected_third).all()
    along = autograd.jvp(lambda x: autograd.jvp(cube, [x], [v])[1], [v], [v])[1]
    assert along.asscalar() == 6 * 1 * 1 + 6 * 2 * 2**2  # 6 x v^2, added up
    pushed = autograd.jvp(grad(cube), [v], [v])[1]
    assert pushed.asnumpy().tolist() == autograd.hvp(cube, [v], [v])[1][0].asnumpy().tolist() == [6, 24]


def test_the_modes() -> None:
    seen = []

    def f(x: Any) -> Any:
        seen.append(autograd.is_training())
        return nd.Dropout(x, p=0.5)

    x = nd.ones(1000)
    vd.random.seed(3)
    value, g = autograd.value_and_grad(f)(x)
    assert (value.asnumpy() == g.asnumpy()).all() and 300 < (g.asnumpy() == 0).sum() < 700
    autograd.value_and_grad(f, train_mode=False)(x)
    with autograd.record(train_mode=False):
        autograd.value_and_grad(f)(x)
    with autograd.pause(), autograd.train_mode():
        autograd.value_and_grad(f)(x)
    assert seen == [True, False, False, True]
    assert not autograd.is_training()


def test_threads_do_not_meet() -> None:
    barrier, found = threading.Barrier(4, timeout=60), {}

    def work(k: int) -> None:
        def f(x: Any) -> Any:
            barrier.wait()
            y = x * x * k
            barrier.wait()
            return y

        x = nd.array([1.0, 2, 3])
        found[k] = [autograd.value_and_grad(f)(x)[1].asnumpy().tolist() for _ in range(5)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert found == {k: [[2 * k, 4 * k, 6 * k]] * 5 for k in range(4)}


# ---- wrong arguments -------------------------------------------------------------------------------------------------


def test_wrong_arguments_say_what_is_expected() -> None:
    x = nd.array([1.0, 2])
    vag, square = autograd.value_and_grad, lambda x: x * x
    for call, error, words in [
        (lambda: vag(square, 1)(x), ArgumentError, "1 positional arguments were given, argnums 1"),
        (lambda: vag(square, "y")(x), ArgumentError, "no argument 'y' was given"),
        (lambda: vag(square, ())(x), ArgumentError, "some arguments expected"),
        (lambda: vag(square, (0, "x"))(x), ArgumentError, "each once"),
        (lambda: vag(square)(2.0), ArgumentTypeError, "argument 0 has 2.0: arrays expected"),
        (lambda: vag(square)([np.ones(2)]), ArgumentTypeError, r"numpy float64\(2,\): arrays expected"),
        (lambda: vag(square)("x"), ArgumentTypeError, "no array to differentiate by"),
        (lambda: vag(square)(nd.array([1], dtype="bool")), ArgumentTypeError, "boolean arrays have no gradient"),
        (lambda: vag(lambda x: 3)(x), ArgumentTypeError, "it gave 3: floating-point arrays expected"),
        (lambda: vag(lambda x: nd.cast(x, dtype="int32"))(x), ArgumentTypeError, "floating-point arrays expected"),
        (lambda: vag(7)(x), ArgumentTypeError, "a function expected"),
        (lambda: vag(square)(nd.sparse.zeros("csr", (2, 2))), ArgumentTypeError, "arrays expected"),
        (lambda: autograd.vjp(square, x)[1](nd.ones(3)), ArgumentError, r"cotangent float32\(3,\) for float32\(2,\)"),
        (lambda: autograd.vjp(square, x)[1]([x]), ArgumentError, "in the place of one array"),
        (lambda: autograd.vjp(lambda x: [x], x)[1](x), ArgumentError, "in the place of a sequence of 1"),
        (lambda: autograd.vjp(lambda x: {"a": x}, x)[1]({"b": x}), ArgumentError, "a dict of 'a'"),
        (lambda: autograd.vjp(square), ArgumentError, "some arguments expected"),
        (lambda: autograd.jvp(square, x, x), ArgumentTypeError, "args NDArray: a list or tuple"),
        (lambda: autograd.jvp(square, [x], [x, x]), ArgumentError, "1 arguments, 2 tangents"),
        (lambda: autograd.jvp(square, [x], [nd.ones(3)]), ArgumentError, r"tangent float32\(3,\) for float32\(2,\)"),
        (lambda: autograd.hvp(square, [x], [x.astype("float64")]), ArgumentError, "the same expected"),
        (lambda: autograd.jacobian(square, mode="back"), ArgumentError, "'auto', 'reverse' or 'forward'"),
    ]:
        with pytest.raises(error, match=words):
            call()
    assert not autograd.is_recording()


# ---- corners ---------------------------------------------------------------------------------------------------------


def test_results_that_are_arguments_views_of_them_or_each_other() -> None:
    x = nd.array([1.0, 2, 3])

    def f(x: Any) -> Any:
        y = x * x
        return x, x[1:], y, y, y[::-1]

    value, pull = autograd.vjp(f, x)
    one = nd.ones(3)
    (g,) = pull((one, nd.array([10, 10]), one, one * 2, nd.array([100, 0, 0])))
    assert g.asnumpy().tolist() == [1 + 6, 1 + 10 + 12, 1 + 10 + 18 + 600]
    value[0][:] = 0
    assert x.asnumpy().tolist() == [1, 2, 3]


def test_one_array_as_two_arguments() -> None:
    x = nd.array([2.0])
    g = autograd.value_and_grad(lambda x, y: x * x * y, (0, 1))(x, x)[1]
    assert [a.asscalar() for a in g] == [8, 4]
    assert g[0] is not g[1]
    same = autograd.value_and_grad(lambda p: p["a"] + p["b"])({"a": x, "b": x})[1]
    same["a"][:] = 7
    assert same["b"].asscalar() == 1


def test_views_on_the_outer_tape_as_arguments() -> None:
    x = nd.array([1.0, 2, 3])
    x.attach_grad()
    with autograd.record():
        h = x * x
        value, g = autograd.value_and_grad(lambda part: part**2)(h[1:])
        y = value.sum() + g.sum()
    y.backward()
    assert x.grad.asnumpy().tolist() == [0, 4 * 8 + 8, 4 * 27 + 12]


def test_what_is_known_from_outside_may_be_written() -> None:
    """Marked arrays that the function writes are leaves again afterwards."""
    w, x = nd.array([1.0, 1]), nd.array([2.0, 3])
    w.attach_grad("add")
    w.grad[:] = 5

    def f(x: Any) -> Any:
        w[:] = w + x
        return w * x

    value, g = autograd.value_and_grad(f)(x)
    assert value.asnumpy().tolist() == [6, 12] and g.asnumpy().tolist() == [5, 7]
    assert w.asnumpy().tolist() == [3, 4] and w.grad.asnumpy().tolist() == [5, 5]
    with autograd.record():
        y = w * 2
    y.backward()
    assert w.grad.asnumpy().tolist() == [7, 7]


@pytest.mark.parametrize("size", [3, 300_000])
def test_small_and_large_arrays(size: int) -> None:
    rng = np.random.default_rng(4)
    raws = [rng.uniform(-1, 1, size) for _ in range(2)]
    x, v = (nd.array(raw, dtype="float64") for raw in raws)
    f = lambda x: nd.tanh(x * x) * nd.exp(x)  # noqa: E731
    a, b = raws
    t, e = np.tanh(a * a), np.exp(a)
    first = (1 - t * t) * 2 * a * e + t * e
    slope = 2 * (1 - t * t)
    second = (slope - 2 * t * (1 - t * t) * 4 * a * a) * e + slope * a * e + slope * a * e + t * e
    for function in (f, autograd.checkpoint(f)):
        np.testing.assert_allclose(autograd.value_and_grad(function)(x)[1].asnumpy(), first, 1e-10, 1e-12)
        np.testing.assert_allclose(autograd.jvp(function, [x], [v])[1].asnumpy(), first * b, 1e-10, 1e-12)
        np.testing.assert_allclose(autograd.hvp(function, [x], [v])[1][0].asnumpy(), second * b, 1e-9, 1e-11)
        np.testing.assert_allclose(autograd.vjp(function, x)[1](v)[0].asnumpy(), first * b, 1e-10, 1e-12)


def test_arrays_of_the_canonical_face() -> None:
    x = numpy_face.cast(nd.array([1.0, 2]), dtype="float64")
    value, g = autograd.value_and_grad(lambda x: (x * x).sum())(x)
    assert type(value) is Array and type(g) is Array and value.shape == () and g.asnumpy().tolist() == [2, 4]
    h = autograd.hessian(lambda x: (x**3).sum())(x)
    assert type(h) is Array and h.asnumpy().tolist() == [[6, 0], [0, 12]]
    assert autograd.jacobian(lambda x: (x * x).sum())(x).asnumpy().tolist() == [2, 4]
    assert autograd.jvp(lambda x: x.sum(), [x], [x])[1].asnumpy().tolist() == 3


def test_arrays_of_an_engine_that_is_not_the_current_one() -> None:
    with vd.engine.Engine(workers=1):
        x, large = nd.array([1.0, 2]), nd.ones(5000)
        with vd.engine.Engine(workers=1):
            f = lambda x: x * x * 3  # noqa: E731
            assert autograd.value_and_grad(f)(x)[1].asnumpy().tolist() == [6, 12]
            assert autograd.jvp(f, [large], [large])[1].asnumpy()[0] == 6
            assert autograd.hessian(f)(x).asnumpy().tolist() == [[6, 0], [0, 6]]
            assert autograd.value_and_grad(nd.BlockGrad)(large)[1].asnumpy()[0] == 0


def test_checkpoints_of_transforms() -> None:
    def f(x: Any) -> Any:
        value, g = autograd.value_and_grad(lambda x: nd.sin(x) * x)(x)
        return value * g + autograd.jvp(nd.exp, [x], [g])[1]

    x = nd.array([0.3, 0.8], dtype="float64")
    plain, again = (autograd.value_and_grad(one)(x)[1].asnumpy() for one in (f, autograd.checkpoint(f)))
    np.testing.assert_allclose(plain, again, 1e-13)
    assert autograd.check(autograd.checkpoint(f), x, order=2).compared == 2


def test_arrays_that_leave_the_function_are_no_trap() -> None:
    kept = []

    def f(x: Any) -> Any:
        kept.append(x)
        return x * x

    autograd.value_and_grad(f)(nd.array([3.0]))
    with autograd.record():
        y = kept[0] * 2
    with pytest.raises(autograd.GraphError, match="no marked array above the heads wants a gradient"):
        y.backward()
