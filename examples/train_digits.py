"""Train two classifiers of handwritten digits, and draw when each operation ran.

The data are the 1,797 images of 8 x 8 pixels that scikit-learn brings along; one in five is held out.  The first model
is a multilayer perceptron, the second a small convolutional net.  Nothing in the loops waits for an operation by hand:
every call pushes its operation and goes on, `loss.backward()` waits for the gradients, and the progress bar looks at a
loss once per epoch.

    python examples/train_digits.py --out demo

writes demo/timeline.png, and demo/trace.json to be opened at https://ui.perfetto.dev.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from tqdm import tqdm

import vardag as vd
from vardag import autograd, nd

BATCH = 64
CLASSES = 10

Parameters = dict[str, Any]  # NDArrays by name; those with a gradient are trained, the others are running statistics
Forward = Callable[[Parameters, Any], Any]


# ---- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """Images as float32 (n, 1, 8, 8) between 0 and 1, labels as float32 (n,); NDArrays of the current engine."""

    train_images: Any
    train_labels: Any
    test_images: Any
    test_labels: np.ndarray


def load(seed: int = 0) -> Digits:
    """The digits, split 80 to 20 by a permutation that depends on the seed alone."""
    raw = load_digits()
    images = (raw.images / 16).astype("float32").reshape(-1, 1, 8, 8)
    labels = raw.target.astype("float32")
    order = np.random.default_rng(seed).permutation(len(images))
    test, train = np.split(order, [len(order) // 5])
    return Digits(nd.array(images[train]), nd.array(labels[train]), nd.array(images[test]), labels[test])


def batches(digits: Digits, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
    """One epoch of (images, labels) in random order; the last, smaller batch is left out."""
    order = rng.permutation(digits.train_images.shape[0])
    for start in range(0, len(order) - BATCH + 1, BATCH):
        rows = nd.array(order[start : start + BATCH])
        yield digits.train_images.take(rows), digits.train_labels.take(rows)


# ---- models ----------------------------------------------------------------------------------------------------------


def he(*shape: int) -> Any:
    """Normal numbers whose variance keeps the signal's size through a rectifier: 2 / (inputs of one unit)."""
    return nd.random.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape=shape)


def mlp_parameters(hidden: int = 256) -> Parameters:
    p = {"w1": he(hidden, 64), "b1": nd.zeros((hidden,)), "w2": he(CLASSES, hidden), "b2": nd.zeros((CLASSES,))}
    for parameter in p.values():
        parameter.attach_grad()
    return p


def mlp(p: Parameters, images: Any) -> Any:
    """Scores of the ten classes: one hidden layer of rectified units; some pixels and half the units are left out."""
    x = nd.Dropout(images, p=0.1)
    x = nd.relu(nd.FullyConnected(x, p["w1"], p["b1"], num_hidden=p["w1"].shape[0]))
    x = nd.Dropout(x, p=0.5)
    return nd.FullyConnected(x, p["w2"], p["b2"], num_hidden=CLASSES)


def convnet_parameters(channels: tuple[int, int] = (24, 48)) -> Parameters:
    p: Parameters = {}
    inputs = 1
    for layer, outputs in enumerate(channels, 1):
        p[f"w{layer}"] = he(outputs, inputs, 3, 3)
        p[f"gamma{layer}"], p[f"beta{layer}"] = nd.ones((outputs,)), nd.zeros((outputs,))
        p[f"mean{layer}"], p[f"var{layer}"] = nd.zeros((outputs,)), nd.ones((outputs,))
        inputs = outputs
    p["w"], p["b"] = he(CLASSES, inputs * 2 * 2), nd.zeros((CLASSES,))
    for name, parameter in p.items():
        if not name.startswith(("mean", "var")):
            parameter.attach_grad()
    return p


def convnet(p: Parameters, images: Any) -> Any:
    """Scores of the ten classes: twice convolution, batch normalisation, rectifier, pooling; then a linear layer."""
    x = images
    for layer in (1, 2):
        w = p[f"w{layer}"]
        x = nd.Convolution(x, w, kernel=(3, 3), pad=(1, 1), num_filter=w.shape[0], no_bias=True)
        statistics = p[f"gamma{layer}"], p[f"beta{layer}"], p[f"mean{layer}"], p[f"var{layer}"]
        x = nd.BatchNorm(x, *statistics, fix_gamma=False)
        x = nd.Activation(x, act_type="relu")
        x = nd.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="max")
    x = nd.Dropout(nd.Flatten(x), p=0.2)
    return nd.FullyConnected(x, p["w"], p["b"], num_hidden=CLASSES)


# ---- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """What to train and how."""

    title: str
    forward: Forward
    parameters: Callable[[], Parameters]
    epochs: int
    rate: float


MLP = Model("MLP", mlp, mlp_parameters, epochs=40, rate=0.2)
CONVNET = Model("conv net", convnet, convnet_parameters, epochs=20, rate=0.05)


class Trainer:
    """A model's parameters, the momentum of each that has a gradient, and the steps that change them."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.parameters = model.parameters()
        self.momenta = {name: nd.zeros(p.shape) for name, p in self.parameters.items() if p.grad is not None}

    def step(self, images: Any, labels: Any, rate: float) -> Any:
        """One step of gradient descent with momentum; returns the loss, which nobody has waited for."""
        with autograd.record():
            scores = self.model.forward(self.parameters, images)
            loss = -nd.log_softmax(scores).pick(labels).mean()
        loss.backward()
        for name, momentum in self.momenta.items():
            p = self.parameters[name]
            nd.sgd_mom_update(p, p.grad, momentum, out=p, lr=rate, momentum=0.9, wd=1e-4)
        return loss

    def train(self, digits: Digits, *, epochs: int | None = None, seed: int = 0, quiet: bool = False) -> None:
        """All epochs; the rate falls to nothing along half a cosine."""
        rng = np.random.default_rng(seed)
        epochs = epochs or self.model.epochs
        steps = epochs * (digits.train_images.shape[0] // BATCH)
        with tqdm(total=steps, desc=f"{self.model.title:>8}", unit="step", disable=quiet) as bar:
            done = 0
            for _ in range(epochs):
                for images, labels in batches(digits, rng):
                    loss = self.step(images, labels, self.model.rate * (1 + math.cos(math.pi * done / steps)) / 2)
                    done += 1
                    bar.update()
                bar.set_postfix(loss=f"{loss.asscalar():.4f}")

    def accuracy(self, digits: Digits) -> float:
        """The share of the held-out images whose highest score is that of the right class."""
        scores = self.model.forward(self.parameters, digits.test_images).asnumpy()
        return float((scores.argmax(axis=1) == digits.test_labels).mean())


@dataclass(frozen=True)
class Result:
    """Accuracy on the held-out images, and every parameter as a NumPy array."""

    accuracy: float
    parameters: dict[str, np.ndarray]


def engine(kind: str | None, workers: int | None) -> AbstractContextManager[Any]:
    """An engine of this kind as the current one; the default engine when nothing is asked for."""
    if kind is None and workers is None:
        return nullcontext()
    return vd.engine.Engine(kind=kind, workers=workers)


def fit(model: Model, kind: str | None, workers: int | None, epochs: int | None, seed: int, quiet: bool) -> Result:
    with engine(kind, workers):
        vd.random.seed(seed)
        digits = load()
        trainer = Trainer(model)
        trainer.train(digits, epochs=epochs, seed=seed, quiet=quiet)
        accuracy = trainer.accuracy(digits)
        return Result(accuracy, {name: p.asnumpy() for name, p in trainer.parameters.items()})


def train_mlp(
    kind: str | None = None, workers: int | None = None, *, epochs: int | None = None, seed: int = 0, quiet: bool = True
) -> Result:
    """Train the perceptron on an engine of this kind.  The same seed gives the same bytes on every engine."""
    return fit(MLP, kind, workers, epochs, seed, quiet)


def train_convnet(
    kind: str | None = None, workers: int | None = None, *, epochs: int | None = None, seed: int = 0, quiet: bool = True
) -> Result:
    """Train the convolutional net on an engine of this kind.  The same seed gives the same bytes on every engine."""
    return fit(CONVNET, kind, workers, epochs, seed, quiet)


# ---- the picture -----------------------------------------------------------------------------------------------------


def draw(trainers: list[Trainer], digits: Digits, out: Path, steps: int = 2) -> None:
    """Profile a few more steps of each model and save them as a picture and as a trace."""
    nd.waitall()
    with vd.engine.current().profile() as profile:
        for trainer in trainers:
            for _, (images, labels) in zip(range(steps), batches(digits, np.random.default_rng(0)), strict=False):
                trainer.step(images, labels, 0.001)
        nd.waitall()
    out.mkdir(parents=True, exist_ok=True)
    profile.plot(out / "timeline.png")
    profile.save(out / "trace.json")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train two classifiers of handwritten digits on vardag.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="directory for timeline.png and trace.json")
    parser.add_argument(
        "--epochs", type=int, help="passes over the data (default: 40 for the MLP, 15 for the conv net)"
    )
    parser.add_argument("--engine", help="NaiveEngine, ThreadedEnginePooled or ThreadedEnginePerDevice")
    parser.add_argument("--workers", type=int, help="worker threads of that engine")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)

    with engine(options.engine, options.workers):
        vd.random.seed(0)
        digits = load()
        trainers = [Trainer(MLP), Trainer(CONVNET)]
        for trainer in trainers:
            trainer.train(digits, epochs=options.epochs, quiet=options.quiet)
        for trainer in trainers:
            accuracy = trainer.accuracy(digits)
            print(f"{trainer.model.title:>8}: {accuracy:.2%} of {len(digits.test_labels)} held-out digits are right")
        draw(trainers, digits, options.out)
        print(
            f"wrote {options.out / 'timeline.png'} and {options.out / 'trace.json'} (open it at https://ui.perfetto.dev)"
        )


if __name__ == "__main__":
    main()
