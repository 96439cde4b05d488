"""Operators on a device with streams: the values are the host's, and those that run on the host have to."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import vardag as vd
from vardag import autograd, nd
from vardag.engine import Engine
from vardag.ndarray import _simulated
from vardag.ndarray.device import device_of
from vardag.operators import elsewhere
from vardag.operators.schema import registry
from vardag.operators.testing import Subject, array

DEVICE = nd.Context("simulated", 0)
SUBJECTS = {op.name: Subject(op, op.samples, None) for op in registry if op.samples}


@pytest.fixture(autouse=True)
def engine():
    _simulated.world.reset()
    with Engine(workers=2) as own:
        yield
        with contextlib.suppress(vd.Error, ExceptionGroup):
            own.wait_for_all()
    device_of(DEVICE).lost = None


def on_the_device(case):
    with DEVICE:
        return case.values(case.arrays())


@pytest.mark.parametrize("name", SUBJECTS)
def test_values_are_those_of_the_host(name):
    for case in SUBJECTS[name].cases:
        expected = case.values(case.arrays())
        for found, wanted in zip(on_the_device(case), expected, strict=True):
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def gradients(case):
    """The first and the second gradients of a sum of squares: all are curved, and on the tape."""
    inputs = case.arrays()
    marked = [inputs[i] for i in case.connected()]
    for x in marked:
        x.attach_grad()
    with autograd.record():
        outs = [y for y in case.run(inputs) if np.dtype(y.dtype).kind == "f"]
        loss = sum((y * y * array(case.direction(y, f"head {i}"))).sum() for i, y in enumerate(outs))
        loss = loss + sum((x * x * x).sum() for x in marked)
        try:
            first = autograd.grad(loss, marked, create_graph=True, retain_graph=True)
        except vd.Error as error:  # no second derivative: said the same everywhere
            assert case.op.name in str(error)
            loss.backward()
            return [x.grad.asnumpy() for x in marked]
        again = sum((g * array(case.direction(g, f"again {i}"))).sum() for i, g in enumerate(first))
    again.backward()
    return [g.asnumpy() for g in (*first, *(x.grad for x in marked))]


@pytest.mark.parametrize("name", [name for name, subject in SUBJECTS.items() if subject.connected])
def test_gradients_are_those_of_the_host(name):
    for case in SUBJECTS[name].connected:
        expected = gradients(case)
        with DEVICE:
            found = gradients(case)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(elsewhere.HOST_KERNELS & SUBJECTS.keys() - {"CTCLoss", "ctc_backward"}))
def test_what_runs_on_the_host_cannot_run_on_the_device(name, monkeypatch):
    monkeypatch.setattr(elsewhere, "HOST_KERNELS", frozenset())
    with pytest.raises(Exception, match=r"host's memory|memory|__array_ufunc__|scipy"):
        for case in SUBJECTS[name].cases:
            on_the_device(case)


def test_host_kernels_are_operators():
    assert all(name in registry for name in elsewhere.HOST_KERNELS)


def test_a_seed_gives_the_same_numbers_everywhere():
    found = []
    for context in (nd.cpu(), DEVICE):
        vd.ndarray.random.seed(5)
        with context:
            found.append(nd.random.normal(shape=(100,)).asnumpy())
    assert found[0].tobytes() == found[1].tobytes()


def test_host_arrays_meet_device_arrays_as_copies():
    with DEVICE:
        x = nd.zeros((2, 3))
        x[:] = np.arange(6).reshape(2, 3)
        assert (x + 1).asnumpy().tolist() == [[1, 2, 3], [4, 5, 6]]


def test_bytes_of_images_are_resized_there():
    image = np.random.default_rng(0).integers(0, 255, (5, 6, 3)).astype("uint8")
    expected = nd.image.resize(nd.array(image, dtype="uint8"), size=(9, 4)).asnumpy()
    with DEVICE:
        found = nd.image.resize(nd.array(image, dtype="uint8"), size=(9, 4))
        assert found.context == DEVICE
        assert found.asnumpy().tobytes() == expected.tobytes()
