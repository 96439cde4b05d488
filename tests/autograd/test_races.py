"""Interleavings of records and backwards.  Each is made deterministic: the other thread runs, start to end, at the
point where it would come in between.
"""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest

from vardag import autograd, nd
from vardag.ndarray.line import scope


def marked(values: Any, request: str = "write") -> Any:
    x = nd.array(values)
    x.attach_grad(request)
    return x


def in_thread(function: Any) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


class Interrupted(autograd.Function):
    """The identity.  In its backward the next of `others` runs, on another thread."""

    def __init__(self) -> None:
        self.others: list[Any] = []

    def forward(self, x: Any) -> Any:
        self.save_for_backward(x)
        return x * 1

    def backward(self, g: Any) -> Any:
        if self.others:
            in_thread(self.others.pop())
        (x,) = self.saved_tensors
        return g + 0 * x


@pytest.mark.parametrize("head", ["before", "beside"])
def test_another_backward_frees_the_graph_in_the_middle_of_one(head: str) -> None:
    x, function = marked([1, 2]), Interrupted()
    with autograd.record():
        before = x * x
        middle = function(before)
        beside = before * 3
        y = middle + beside
    refused: list[bool] = []

    def other() -> None:
        try:
            (before if head == "before" else beside).backward()
        except autograd.GraphError:
            refused.append(True)

    function.others.append(other)
    y.backward()
    assert x.grad.asnumpy().tolist() == [8, 16]
    assert refused == ([] if head == "before" else [True])


def test_two_backwards_of_one_function_at_the_same_time() -> None:
    x, function = marked([1, 2], "add"), Interrupted()
    with autograd.record():
        y = function(x * x)
    function.others.append(lambda: y.backward(retain_graph=True))
    y.backward(retain_graph=True)
    assert x.grad.asnumpy().tolist() == [4, 8]


def test_one_function_called_by_two_threads_at_the_same_time() -> None:
    class Square(autograd.Function):
        def __init__(self) -> None:
            self.others: list[Any] = []

        def forward(self, x: Any) -> Any:
            self.save_for_backward(x)
            if self.others:
                in_thread(self.others.pop())
            return x * x

        def backward(self, g: Any) -> Any:
            (x,) = self.saved_tensors
            return g * 2 * x

    a, b, square = marked([1, 2]), marked([5, 6]), Square()

    def other() -> None:
        with autograd.record():
            square(b).backward()

    square.others = [other]
    with autograd.record():
        y = square(a)
    y.backward()
    assert (a.grad.asnumpy().tolist(), b.grad.asnumpy().tolist()) == ([2, 4], [10, 12])


def test_a_function_saves_the_value_at_the_call() -> None:
    class Late(autograd.Function):
        def forward(self, x: Any) -> Any:
            t = x * 2
            self.save_for_backward(t, x)
            t += 1
            return t

        def backward(self, g: Any) -> Any:
            t, x = self.saved_tensors
            return g * (t + 0 * x)

    x = marked([1, 2])
    with autograd.record():
        y = Late()(x)
    y.backward()
    assert x.grad.asnumpy().tolist() == [2, 4]


def test_an_input_of_a_function_is_read_only_when_detached() -> None:
    class Writes(autograd.Function):
        def forward(self, x: Any) -> Any:
            x.detach()[:] = 7
            return x * 1

    x = marked([1, 2])
    with autograd.record(), pytest.raises(ValueError, match="read-only"):
        Writes()(x)
    assert x.asnumpy().tolist() == [1, 2]


@pytest.mark.parametrize("create_graph", [True, False])
def test_gradients_do_not_share_memory(create_graph: bool) -> None:
    """One cotangent may be the gradient of several variables."""
    a, b = marked([1, 2]), marked([3, 4])
    with autograd.record():
        y = a + b
        ga, gb = autograd.grad(y, [a, b], create_graph=create_graph)
    ga += 1
    assert gb.asnumpy().tolist() == [1, 1]
    a.grad[:] = 0
    a, b = marked([1, 2]), marked([3, 4])
    autograd.mark_variables([a, b])
    with autograd.record():
        y = a + b
    ga, gb = autograd.compute_gradient([y])
    ga += 1
    assert gb.asnumpy().tolist() == [1, 1]


def test_one_scope_object_in_several_threads() -> None:
    record, states = autograd.record(), []

    def other() -> None:
        record.__enter__()
        inside.set()
        assert left.wait(30)
        states.append(autograd.is_recording())
        record.__exit__(None, None, None)
        states.append(autograd.is_recording())

    inside, left = threading.Event(), threading.Event()
    thread = threading.Thread(target=other)
    with record:
        thread.start()
        assert inside.wait(30)
        states.append(autograd.is_recording())
    states.append(autograd.is_recording())
    left.set()
    thread.join(30)
    assert states == [True, False, True, False]


def test_a_scope_left_in_another_context() -> None:
    record = autograd.record()
    contextvars.copy_context().run(record.__enter__)
    with pytest.raises(ValueError, match="entered"):
        record.__exit__(None, None, None)
    assert scope.get().recorder is None


def test_sixteen_threads_through_one_trunk() -> None:
    """Gradients add up exactly: 16 backwards through one retained trunk are 16 times one."""
    w = marked([1, 2, 3], "add")
    with autograd.record():
        trunk = w * w
    start = threading.Barrier(16)
    failed: list[BaseException] = []

    def run(k: int) -> None:
        try:
            with autograd.record():
                head = trunk * k
            start.wait(30)
            head.backward(retain_graph=True)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert w.grad.asnumpy().tolist() == [240, 480, 720]
