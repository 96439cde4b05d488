"""The losses of the small examples in PyTorch, from the same numbers.

    python tests/torch_examples.py     (in an environment with PyTorch 2.13; writes data/torch_examples.json)

The examples import vardag, which that environment need not have: what they take from it is not called here.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch  # type: ignore[import-not-found]
from torch.nn.functional import cross_entropy, linear  # type: ignore[import-not-found]

STEPS = 8
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
sys.modules["vardag"] = ModuleType("vardag")
sys.modules["vardag"].__dict__.update(autograd=SimpleNamespace(checkpoint=lambda f: f), nd=None)


def wgan_gp(m: Any, data: list[Any], weights: list[Any]) -> Any:
    real, made, mix = data

    def critic(x: Any) -> Any:
        return linear(torch.tanh(linear(x, weights[0], weights[1])), weights[2], weights[3])

    between = (real * mix + made * (1 - mix)).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    length = torch.sqrt((slope * slope).sum(1) + 1e-12)
    return critic(made).mean() - critic(real).mean() + m.PENALTY * ((length - 1) ** 2).mean()


def maml(m: Any, data: list[Any], weights: list[Any]) -> Any:
    def error(x: Any, y: Any, weights: list[Any]) -> Any:
        return (linear(torch.tanh(linear(x, weights[0], weights[1])), weights[2], weights[3]) - y).square().mean()

    total = torch.zeros(())
    for x, y, other, wanted in data:
        slopes = torch.autograd.grad(error(x, y, weights), weights, create_graph=True)
        total = total + error(other, wanted, [w - m.INNER * g for w, g in zip(weights, slopes, strict=True)])
    return total / m.TASKS


def long_lstm(m: Any, data: list[Any], weights: list[Any]) -> Any:
    xs, y = data
    wx, wh, bias, out = weights
    h = c = torch.zeros(m.BATCH, m.HIDDEN)
    for x in xs:
        i, f, g, o = (linear(x, wx, bias) + linear(h, wh)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return cross_entropy(h @ out, y.long())


def neural_ode(m: Any, data: list[Any], weights: list[Any]) -> Any:
    def field(x: Any) -> Any:
        return linear(torch.tanh(linear(x, weights[0], weights[1])), weights[2], weights[3])

    x, y = data
    for _ in range(m.STEPS):
        a = field(x)
        b = field(x + m.H / 2 * a)
        c = field(x + m.H / 2 * b)
        x = x + m.H / 6 * (a + 2 * b + 2 * c + field(x + m.H * c))
    return (x - y).square().mean()


def losses(module: ModuleType, loss_of: Callable[..., Any], rate: float) -> list[float]:
    rng, values = module.start(0)
    weights = [torch.tensor(w, requires_grad=True) for w in values]
    found = []
    for _ in range(STEPS):
        if hasattr(module, "TASKS"):
            data: Any = [[torch.tensor(a) for a in module.task(rng)] for _ in range(module.TASKS)]
        else:
            data = [torch.tensor(a) for a in module.batch(rng)]
        loss = loss_of(module, data, weights)
        slopes = torch.autograd.grad(loss, weights)
        if hasattr(module, "LONGEST"):
            norm = torch.sqrt(sum((g * g).sum() for g in slopes))
            slopes = [g * (module.LONGEST / norm.clamp(min=module.LONGEST)) for g in slopes]
        for w, g in zip(weights, slopes, strict=True):
            w.data -= rate * g
        found.append(loss.item())
    return found


def main() -> None:
    found = {}
    for loss_of in (wgan_gp, maml, long_lstm, neural_ode):
        module = importlib.import_module(loss_of.__name__)
        rate = module.OUTER if loss_of is maml else module.RATE
        found[loss_of.__name__] = losses(module, loss_of, rate)
    text = json.dumps({"torch": torch.__version__, "losses": found})
    (HERE / "data" / "torch_examples.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
