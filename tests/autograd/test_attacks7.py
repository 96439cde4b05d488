"""Attacks on what runs at once: plans, records of small operators, gradients that are handed over.

Each other thread runs, start to end, at the point where it would come in between.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import Any, ClassVar

import numpy as np
import pytest

from vardag import autograd, nd
from vardag.autograd import plans, recorder, structure
from vardag.autograd.backward import _store, as_face
from vardag.autograd.tape import entry_of
from vardag.engine import Engine, Kind, Operation
from vardag.engine.lifecycle import set_default
from vardag.ndarray.memory import usage
from vardag.operators import quick


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(workers=1, inline=True) as e:
        old = set_default(e)
        yield e
        set_default(old)


def marked(values: Any, request: str = "write") -> Any:
    x = nd.array(values)
    x.attach_grad(request)
    return x


def once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, other: Callable[[], Any], after: bool = False) -> None:
    """`other` comes in between, before (or after) the next call of this function."""
    real, todo = getattr(owner, name), [other]

    def function(*arguments: Any, **named: Any) -> Any:
        if not after and todo:
            todo.pop()()
        result = real(*arguments, **named)
        if after and todo:
            todo.pop()()
        return result

    monkeypatch.setattr(owner, name, function)


@pytest.mark.parametrize("inline", [True, False])
def test_a_plan_sees_that_a_node_of_which_it_needs_nothing_was_freed(inline: bool) -> None:
    with Engine(workers=1, inline=inline):
        a, b = marked([1, 2]), marked([3, 4])
        for turn in range(6):
            with autograd.record():
                total = a + b
                y = total + a * b
            if turn == 4:
                total.backward()
                with pytest.raises(autograd.GraphError, match="freed"):
                    y.backward()
            else:
                y.backward()
            assert a.grad.asnumpy().tolist() == ([1, 1] if turn == 4 else [4, 5])


@pytest.mark.parametrize("inline", [True, False])
def test_leaves_with_one_gradient_array_write_it_in_their_order(inline: bool) -> None:
    with Engine(workers=1, inline=inline):
        a, b, g = nd.array([1.0, 2]), nd.array([0.0, 0]), nd.zeros(2)
        autograd.mark_variables([a, b], [g, g])
        for _ in range(5):
            with autograd.record():
                y = a + nd.exp(b) * 3
            y.backward()
            assert g.asnumpy().tolist() == [3, 3]
            with autograd.record():
                y = nd.exp(a * 0) * 3 + b
            y.backward()
            assert g.asnumpy().tolist() == [1, 1]


def test_ones_are_not_kept_for_every_shape_of_a_head(engine: Engine) -> None:
    x = marked([1.0])
    for n in range(1, 2 * plans.KNOWN):
        for _ in range(3):
            with autograd.record():
                y = nd.broadcast_to(x, shape=(n,))
            y.backward()
        assert x.grad.asscalar() == n
    assert plans._ones.cache_info().currsize <= plans.KNOWN


@pytest.mark.host("kernels that run within their push")
def test_what_a_thread_writes_to_a_gradient_is_not_written_over(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RACE "stored-twice": the gradient was stored, lent and written again before `backward` looked."""
    x = marked(np.arange(2000.0))

    lent: list[Any] = []

    def other() -> None:
        lent.append(np.asarray(x.grad))
        x.grad[:] = 5

    def head() -> Any:
        with autograd.record():
            y = nd.sum(x * x)
        return y

    for _ in range(4):
        head().backward()
    y = head()
    once(monkeypatch, engine, "admit", other, after=True)
    before = engine.ran_at_once
    y.backward()
    assert engine.ran_at_once > before
    assert x.grad.asnumpy().tolist() == [5] * 2000
    x.grad[:] = 6
    assert lent[0].tolist() == (2 * np.arange(2000.0)).tolist()


@pytest.mark.parametrize("way", ["handed over", "shared"])
def test_a_gradient_that_is_lent_meanwhile_stays_where_it_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """RACE "pinned-late": another thread lends the memory for writing when `backward` has looked whether it is lent."""
    x = marked([1.0, 2])
    target, gradient = x.grad, nd.array([7.0, 8]) + 0
    target[:] = 1
    if way == "shared":
        gradient += 0
    seen: list[Any] = []

    class Capsule:
        """A consumer's side of DLPack."""

        def __init__(self, array: Any) -> None:
            self.capsule = array.to_dlpack_for_write(max_version=(1, 0))

        def __dlpack__(self, **_: Any) -> Any:
            return self.capsule

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    once(monkeypatch, engine, "admit", lambda: seen.append(np.from_dlpack(Capsule(target))))
    _store(target, gradient, "write")
    target.wait_to_read()
    assert target.asnumpy().tolist() == [7, 8]
    assert seen[0].tolist() == [7, 8]


def test_the_structure_of_a_graph_that_is_freed_meanwhile(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """RACE "structure-of-nothing": a freed node has no edges, and so must not share a structure with another."""
    x, y = marked([1.0, 2]), marked([3.0, 4])
    with autograd.record():
        one, other = nd.sum(x), nd.sum(y)
    for head in (one, other):
        head.backward()
        node = entry_of(head)[0]
        node.structure = None
        assert structure.structure_of(node) is structure.UNKNOWN


@pytest.mark.host("what runs at once")
def test_a_half_written_array_is_not_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """RACE "half-written": the writer within its push ends between the two looks of a reader."""
    x, y = nd.array([1.0, 2.0]), nd.array([0.0, 0.0])
    x += 0
    y += 0
    raw = x._chunk.buffer.raw
    in_the_middle, go_on = Event(), Event()

    def subtract(*_: Any) -> None:
        raw[0] = 100
        in_the_middle.set()
        assert go_on.wait(30)
        raw[1] = 200

    def write() -> None:
        op = Operation(Kind.ATOMIC, lambda: ((subtract,),), "subtract", cheap=True)
        variable = x._chunk.buffer.variable
        engine.admit(lambda: (op, (), (), (variable,), [], [], False))

    writer = Thread(target=write)
    real = np.add

    class Add:
        def __call__(self, *arguments: Any) -> Any:
            writer.start()
            assert in_the_middle.wait(30)
            return real(*arguments)

    def end() -> None:
        go_on.set()
        writer.join(30)

    f4 = np.dtype("f4")
    function = quick.pair(quick.Ufunc(None, Add(), nd.NDArray, lambda a, b: "push path", (f4,), (f4,), False, 100))  # type: ignore[arg-type]
    once(monkeypatch, quick, "unchanged", end, after=True)
    result = function(x, y)
    end()
    assert result == "push path"
    assert x.asnumpy().tolist() == [100, 200]


@pytest.mark.host("kernels that run within their push")
def test_what_a_handler_raises_into_a_kernel_that_fails_goes_to_the_caller(engine: Engine) -> None:
    class Failing:
        todo: ClassVar[list[Exception]] = [TimeoutError("from outside")]

        def __call__(self, *_: Any) -> Any:
            raise self.todo.pop() if self.todo else ValueError("its own")

    f4 = np.dtype("f4")
    function = quick.single(quick.Ufunc(None, Failing(), nd.NDArray, lambda a: "push path", (f4,), (f4,), False, 9))  # type: ignore[arg-type]
    x = nd.array([1.0])
    with pytest.raises(TimeoutError, match="from outside"):
        function(x)
    assert function(x) == "push path"


@pytest.mark.parametrize("program", [lambda x, w: x * w, lambda x, w: nd.concat(x, w, dim=0)])
def test_operands_that_are_marked_meanwhile_are_all_so_or_none(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, program: Any
) -> None:
    """RACE "marked-between": the tape is asked for the first operand, both are marked, and it is asked for the next."""
    x, w = marked([1.0, 2]), marked([3.0, 4])

    def mark() -> None:
        x.attach_grad()
        w.attach_grad()

    once(monkeypatch, recorder, "entry_of", mark, after=True)
    with autograd.record():
        y = program(x, w)
    y.backward()
    assert x.grad.asnumpy().any() == w.grad.asnumpy().any()


def test_an_output_beyond_the_256th_has_a_structure_of_its_own(engine: Engine) -> None:
    with autograd.record():
        x = marked([1.0])
        y = x * 1
    node = entry_of(y)[0]
    found = {structure.link(node.number + back, (node, i)) for back in (1, 2) for i in (0, 1, 255, 256, 257)}
    assert len(found) == 10


@pytest.mark.parametrize("inline", [True, False])
def test_memory_of_gradients_is_counted_once(inline: bool) -> None:
    with Engine(workers=1, inline=inline):
        gc.collect()
        before = usage()[0]
        x, w = marked(np.ones(40000)), marked(np.ones(40000))
        w.attach_grad("add")  # so it is stored another way
        for _ in range(5):
            with autograd.record():
                y = nd.sum(x * w)
            y.backward()
        del y
        gc.collect()
        assert usage()[0] - before == 4 * x.nbytes


class Own(nd.NDArray):
    """A user's class of arrays."""

    __slots__ = ()


@pytest.mark.parametrize("inline", [True, False])
def test_a_gradient_has_the_class_of_its_variable(inline: bool) -> None:
    with Engine(workers=1, inline=inline):
        for _ in range(4):
            x, y = (as_face(Own, nd.array([1.0, 2])) for _ in range(2))
            autograd.mark_variables([x, y])
            with autograd.record():
                z = x + y
            assert [type(g) for g in autograd.grad(z, [x, y])] == [Own, Own]
