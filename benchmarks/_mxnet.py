"""The programs for MXNet 1.9.1, which needs an interpreter with an old NumPy in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import _nd
from mxnet import autograd, nd


def programs() -> dict[str, Callable[[Any], _nd.Run]]:
    return _nd.programs(nd, autograd)


def numpy_of(x: Any) -> Any:
    return x.asnumpy()
