"""Interleavings of pushes, waits, finalizers and several threads.  Each test is one interleaving, made deterministic by
gates or by code that runs at the very point where another thread, or a finalizer, would come in between.
"""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.autograd.recorder import Recorder
from vardag.engine import Engine
from vardag.engine.testing import Gate
from vardag.operators.tiny import COPIED


def marked(values: Any) -> Any:
    x = nd.array(values)
    x.attach_grad()
    return x


@pytest.mark.host("a copy to the host is an operation")
def test_a_snapshot_is_not_moved_by_a_partial_write() -> None:
    """The reader waits for the writer; meanwhile another thread writes a part.  Whoever has to move, not the bytes that
    the reader is going to read: a copy of them would be an operation that nobody waits for."""
    with Engine(kind="ThreadedEnginePooled", workers=1) as engine:
        x = nd.ones((4,))
        x.wait_to_read()
        first, busy = Gate(), Gate()
        engine.push(first, updates=[x.var])
        first.wait_entered()
        engine.push(busy, updates=[engine.new_variable()])  # comes before a copy: the only worker is not free for it
        found: list[Any] = []
        asked = threading.Event()

        class Watched(type(x)):  # type: ignore[misc]
            __slots__ = ()

            def _hold(self) -> Any:
                held = super()._hold()
                asked.set()
                return held

        view = Watched._over(x._chunk, x._shape)
        reader = threading.Thread(target=lambda: found.append(view.asnumpy().tolist()))
        reader.start()
        assert asked.wait(30)
        x[0:2] = 5
        first.open()
        busy.wait_entered()
        reader.join(30)
        busy.open()
        assert found == [[1, 1, 1, 1]]
        assert x.asnumpy().tolist() == [5, 5, 1, 1]


@pytest.mark.parametrize("holds", range(12, 20))
def test_two_holds_of_one_push_are_both_kept(holds: int) -> None:
    """The list of holders loses its dead references now and then: in the middle of a push that adds two."""
    x = marked([2, 3, 4, 5])
    with autograd.record():
        for _ in range(holds):
            x.sin()
        y = x[:2] * x[2:]
    x[:1] = 10
    x[3:] = 10
    y.backward()
    assert x.grad.asnumpy().tolist() == [4, 5, 2, 3]


def test_dead_holders_do_not_pile_up() -> None:
    x = marked([2, 3])
    x.asnumpy()  # an odd one, so that their number is never a power of two
    for _ in range(200):
        with autograd.record():
            y = x * x
        y.backward()
    assert len(x._chunk.buffer.holders) < 40


@pytest.mark.parametrize("inline", [True, False])
def test_a_finalizer_never_runs_inside_a_commit(inline: bool) -> None:
    """A write cuts an array's entry, and with it the last reference to a user's object, whose finalizer pushes."""
    with Engine(kind="ThreadedEnginePooled", workers=1, inline=inline) as engine:
        inside: list[bool] = []

        class Same(autograd.Function):
            target: Any

            def forward(self, x: Any) -> Any:
                return x * 1

            def __del__(self) -> None:
                inside.append(engine._P._is_owned())
                y = self.target()
                y[:] = 5

        x, function = marked([1, 2]), Same()
        with autograd.record():
            y = function(x)
            function.target = weakref.ref(y)
            del function
            y[:] = 0
        assert inside == [False]
        assert y.asnumpy().tolist() == [5, 5]


def test_a_write_between_two_tries_of_a_push(monkeypatch: pytest.MonkeyPatch) -> None:
    """`y *= y` first holds the old y, in a commit of its own.  A finalizer that writes y before the second one comes
    first in program order, so its value is what is multiplied, and what the gradient is of."""
    x = marked([3.0])
    tries: list[int] = []
    node = Recorder.node

    def finalized(self: Recorder, previous: Any, *arguments: Any) -> Any:
        tries.append(len(tries))
        if len(tries) == 2:
            y.detach()[:] = 5
        return node(self, previous, *arguments)

    with autograd.record():
        y = x * 1
        monkeypatch.setattr(Recorder, "node", finalized)
        y *= y
        monkeypatch.undo()
    assert len(tries) > 2
    y.backward()
    assert (y.asscalar(), x.grad.asscalar()) == (25, 10)


def test_a_saved_value_is_moved_while_it_becomes_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the admission and its return another thread writes a part: the saved bytes move, the new array stays."""
    buffer = nd.arange(2 * COPIED)
    low, high = 10, 10 + COPIED  # too large for a copy of its own
    x = marked([1] * COPIED)
    with autograd.record():
        y = x * buffer[low:high]
    node = y._chunk.line.entry[0]
    (saved,) = node.saved.values()
    engine = vd.engine.current()
    admit = engine.admit
    written = []

    def then_write(plan: Any) -> Any:
        monkeypatch.undo()
        result = admit(plan)
        buffer[low : low + 1] = 9
        written.append(True)
        return result

    monkeypatch.setattr(engine, "admit", then_write)
    array = type(x)._from_saved(saved, node)
    assert written
    assert array.asnumpy().tolist() == list(range(low, high))
    y.backward()
    assert x.grad.asnumpy().tolist() == list(range(low, high))


def test_a_wait_is_not_for_another_arrays_errors() -> None:
    """Two arrays share bytes.  One is renamed, the other poisoned in place, while somebody waits for the first."""
    with Engine(kind="ThreadedEnginePooled", workers=1) as engine:
        x = nd.ones((2,))
        y = x.copy()
        wait_for_var = engine.wait_for_var

        def poison() -> None:
            x[:] = 2
            engine.push(lambda z: 1 / 0, updates=[y])

        def late(*arguments: Any) -> None:  # between looking up the buffer and its writer
            poison()
            wait_for_var(*arguments)

        engine.wait_for_var = late  # type: ignore[method-assign]
        x.wait_to_read()
        del engine.wait_for_var
        x.wait_to_read()


def test_an_array_is_not_updated_while_it_is_an_operand() -> None:
    w, g = nd.array([1, 2]), nd.array([1, 1])
    with pytest.raises(vd.engine.ArgumentError, match="also its operand"):
        nd.sgd_mom_update(w, g, w, lr=0.1, momentum=0.9)
    assert (w.asnumpy().tolist(), w.version) == ([1, 2], 0)


@pytest.mark.parametrize("function", ["exp", "sqrt", "softmax", "dropout"])
def test_a_graph_that_keeps_its_own_output_dies_with_its_arrays(function: str) -> None:
    gc.disable()
    try:
        with Engine(kind="NaiveEngine"), autograd.record():
            x = marked([1, 2])
            y = nd.Dropout(x) if function == "dropout" else getattr(nd, function)(x)
        node, memory = weakref.ref(y._chunk.line.entry[0]), weakref.ref(y._chunk.buffer)
        del y
        assert node() is None
        assert memory() is None
    finally:
        gc.enable()
