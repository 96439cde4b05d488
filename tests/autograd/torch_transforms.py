"""Small functions of arrays, by methods that PyTorch has too, and what PyTorch's transforms say of them.

Run with PyTorch this writes data/torch_transforms.json, which test_transforms.py reads:

    python tests/autograd/torch_transforms.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).parent / "data" / "torch_transforms.json"


def rosenbrock(x: Any) -> Any:
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def perceptron(p: Any, x: Any) -> Any:
    hidden = (x @ p["layers"][0]["w"] + p["layers"][0]["b"]).tanh()
    return (hidden @ p["layers"][1]["w"] + p["layers"][1]["b"]) * p["scale"]


def two(x: Any, y: Any) -> Any:
    return {"wave": (x * y).sin(), "rest": [(x.exp() * y * y)[1:], (x / y).sum()]}


def in_place(x: Any, y: Any) -> Any:
    z = x * 2
    z[1:] *= y[1:]
    z += x.sin()
    z[0] = (y * y).sum()
    return z * z


def softmax(x: Any) -> Any:
    e = x.exp()
    return e / e.sum()


def _values(*shape: int, seed: int, low: float = -1.0, high: float = 1.0) -> Any:
    return np.random.default_rng(seed).uniform(low, high, shape)


X, Y = _values(4, seed=1), _values(4, seed=2, low=0.5)
PARAMETERS = {
    "layers": [
        {"w": _values(3, 4, seed=3), "b": _values(4, seed=4)},
        {"w": _values(4, 2, seed=5), "b": _values(2, seed=6)},
    ],
    "scale": _values(2, seed=7),
}
#: name: (function, arguments); tangents are `directions` of the arguments
CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "rosenbrock": (rosenbrock, (X,)),
    "perceptron": (perceptron, (PARAMETERS, _values(5, 3, seed=8))),
    "two": (two, (X, Y)),
    "in_place": (in_place, (X, Y)),
    "softmax": (softmax, (X,)),
}


def mapped(function: Any, tree: Any) -> Any:
    """The tree with the function of each leaf."""
    if isinstance(tree, dict):
        return {key: mapped(function, x) for key, x in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(function, x) for x in tree)
    return function(tree)


def directions(tree: Any) -> Any:
    """A fixed tree of the same shapes."""
    rng = np.random.default_rng(99)
    return mapped(lambda x: rng.standard_normal(tuple(x.shape)), tree)


def main() -> None:
    import torch
    from torch import func

    def tensors(tree: Any) -> Any:
        return mapped(lambda x: torch.tensor(x, dtype=torch.float64), tree)

    def lists(tree: Any) -> Any:
        return mapped(lambda x: x.detach().numpy().tolist(), tree)

    found = {}
    for name, (f, values) in CASES.items():
        args = tensors(values)
        positions = tuple(range(len(args)))

        def total(*args: Any, f: Any = f) -> Any:
            leaves: list[Any] = []
            mapped(leaves.append, f(*args))
            return sum(y.sum() for y in leaves)

        value, pull = func.vjp(f, *args)
        tangents = tensors(directions(values))
        gradient = func.grad(total, positions)
        found[name] = {
            "value": lists(value),
            "grad": lists(gradient(*args)),
            "vjp": lists(pull(tensors(directions(value)))),
            "jvp": lists(func.jvp(f, args, tangents)[1]),
            "hvp": lists(func.jvp(gradient, args, tangents)[1]),
            "jacobian": lists(func.jacrev(f, positions)(*args)),
            "hessian": lists(func.jacrev(gradient, positions)(*args)),
        }
    PATH.parent.mkdir(exist_ok=True)
    lines = [f"{json.dumps(name)}: {json.dumps(answers)}" for name, answers in found.items()]
    PATH.write_text("{\n" + ",\n".join([f'"torch": "{torch.__version__}"', *lines]) + "\n}\n")


if __name__ == "__main__":
    main()
