"""vardag: asynchronous arrays that feel ordinary.

Operations are pushed to a dependency engine with the arrays they read and write, and run when those allow; a program
means what it would mean run one operation after the other.

>>> import vardag as vd
>>> from vardag import nd, autograd
>>> x = nd.array([1, 2, 3]); x.attach_grad()
>>> with autograd.record():
...     y = (x * x).sum()
>>> y.backward()
>>> x.grad.asnumpy()
array([2., 4., 6.], dtype=float32)
"""

from __future__ import annotations

from . import autograd, base, engine
from . import inputs as io
from . import ndarray as nd
from .autograd.custom import operator
from .engine import Error
from .ndarray import Context, NDArray, cpu, cpu_pinned, current_context, gpu, num_gpus, random

__version__ = "0.1.0"

__all__ = [
    "Context",
    "Error",
    "NDArray",
    "autograd",
    "base",
    "cpu",
    "cpu_pinned",
    "current_context",
    "engine",
    "gpu",
    "io",
    "nd",
    "num_gpus",
    "operator",
    "random",
]


def __getattr__(name: str) -> object:
    if name == "testing":  # with NumPy's, which nobody else needs
        from importlib import import_module

        return import_module(f"{__name__}.testing")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
