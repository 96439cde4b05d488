"""The main job: both models learn the digits, to the same bytes on every engine; no weight is copied, nothing grows."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vardag as vd
from vardag import nd

from .loading import load_example

ROOT = Path(__file__).resolve().parent.parent
ENGINES = {
    "naive": ("NaiveEngine", None),
    "per-device-1": ("ThreadedEnginePerDevice", 1),
    "per-device-2": ("ThreadedEnginePerDevice", 2),
    "pooled-8": ("ThreadedEnginePooled", 8),
}
LEAST_ACCURACY = {"mlp": 0.97, "convnet": 0.98}


digits = load_example("train_digits")
MODELS = {"mlp": digits.MLP, "convnet": digits.CONVNET}


@cache
def trained(model: str, engine: str) -> Any:
    """The result of the whole training, as the demo does it; one run per session."""
    return getattr(digits, f"train_{model}")(*ENGINES[engine])


def weights(trainer: Any) -> dict[str, Any]:
    return {name: p for name, p in trainer.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("model", MODELS)
def test_the_held_out_digits_are_recognised(model: str) -> None:
    assert trained(model, "naive").accuracy >= LEAST_ACCURACY[model]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "naive"])
def test_every_engine_trains_to_the_same_bytes(model: str, engine: str) -> None:
    expected, found = trained(model, "naive"), trained(model, engine)
    assert found.accuracy == expected.accuracy
    assert found.parameters.keys() == expected.parameters.keys()
    for name, value in expected.parameters.items():
        assert found.parameters[name].dtype == np.float32
        assert found.parameters[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("model", MODELS)
def test_another_seed_trains_to_other_bytes(model: str) -> None:
    """What the comparison of bytes is worth: it does tell trainings apart."""
    first, second = (getattr(digits, f"train_{model}")("NaiveEngine", epochs=1, seed=seed) for seed in (0, 1))
    assert all(first.parameters[name].tobytes() != second.parameters[name].tobytes() for name in ("w1", "w2"))


@pytest.mark.parametrize("model", MODELS)
def test_training_uses_the_workers(model: str) -> None:
    """Else the comparison above would compare the pushing thread with itself."""
    with vd.engine.Engine(kind="ThreadedEnginePerDevice", workers=2) as engine:
        vd.random.seed(0)
        digits.Trainer(MODELS[model]).train(digits.load(), epochs=1, quiet=True)
        nd.waitall()
        assert engine.statistics().ran_by["worker"] > 0


@pytest.mark.parametrize("model", MODELS)
def test_a_hundred_steps_copy_and_rename_no_weight(model: str, engine_kind: Any) -> None:
    """After the first step every weight stays in its buffer, though backward saved it: the tape lets go in time."""
    vd.random.seed(0)
    data = digits.load()
    trainer = digits.Trainer(MODELS[model])
    images, labels = next(digits.batches(data, np.random.default_rng(0)))
    trainer.step(images, labels, 0.01)
    nd.waitall()
    buffers = {name: w._chunk.buffer for name, w in weights(trainer).items()}
    before = nd.statistics()
    for _ in range(100):
        trainer.step(images, labels, 0.01)
    nd.waitall()
    after = nd.statistics()
    assert after.copies == before.copies
    assert after.renames == before.renames
    for name, w in weights(trainer).items():
        assert w._chunk.buffer is buffers[name], name


@pytest.mark.usefixtures("nothing_copied")
def test_the_count_of_renames_can_rise() -> None:
    """What the count is worth: with the graph kept alive, its saved weights must be stepped around."""
    with vd.engine.Engine(kind="NaiveEngine"):
        w = nd.ones((5, 5))
        w.attach_grad()
        with vd.autograd.record():
            loss = nd.dot(nd.ones((5, 5)), w * w).sum()
        loss.backward(retain_graph=True)
        before = nd.statistics()
        nd.sgd_update(w, w.grad, out=w, lr=0.1)
        nd.waitall()
        after = nd.statistics()
        assert after.renames + after.copies == before.renames + before.copies + 1


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("engine", ["naive", "per-device-2"])
def test_memory_is_flat(model: str, engine: str) -> None:
    """After the first 60 steps neither the arrays nor the engine's own records grow.

    tracemalloc sees the memory of NumPy's arrays too: a tenth of a kilobyte kept per step would show.  The pool's idle
    memory is as much as was ever needed at the same moment, which is a matter of who was quicker.
    """
    kind, workers = ENGINES[engine]
    with vd.engine.Engine(kind=kind, workers=workers):
        vd.random.seed(0)
        data = digits.load()
        trainer = digits.Trainer(MODELS[model])
        batches = list(digits.batches(data, np.random.default_rng(0)))[:3]

        def traced_after(steps: int) -> int:
            for step in range(steps):
                trainer.step(*batches[step % len(batches)], 0.01)
            nd.waitall()
            gc.collect()
            nd.waitall()
            return tracemalloc.get_traced_memory()[0] - nd.memory_pool.statistics().idle_bytes

        nd.memory_pool.release()
        tracemalloc.start()
        try:
            # What is in use at one moment differs by an array; what is kept does not go away again.
            before = max(traced_after(40) for _ in range(3))
            after = min(traced_after(100 if model == "mlp" else 15) for _ in range(4))
            assert after - before <= 32 * 1024
        finally:
            tracemalloc.stop()


def test_the_demo_writes_its_picture_and_its_trace(tmp_path: Path) -> None:
    """The command itself, for one epoch."""
    command = [sys.executable, ROOT / "examples" / "train_digits.py", "--out", tmp_path / "out", "--epochs", "1"]
    done = subprocess.run(
        [*command, "--quiet", "--engine", "ThreadedEnginePerDevice", "--workers", "2"],
        cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "MLP" in done.stdout and "conv net" in done.stdout and "%" in done.stdout
    assert (tmp_path / "out" / "timeline.png").read_bytes().startswith(b"\x89PNG")
    events = json.loads((tmp_path / "out" / "trace.json").read_text())
    events = events["traceEvents"] if isinstance(events, dict) else events
    names = {event.get("name", "") for event in events if event.get("ph") == "X"}
    assert any("onvolution" in name for name in names), names
    assert {"s", "f"} <= {event.get("ph") for event in events}, "no arrows for dependencies"
