"""Kernels on devices with streams: which cannot run there, and what stands in for calls that devices lack.

Every kernel gets the device's module for `xp` and may use what is in CuPy (tests/operators/test_cupy.py compares).  Two
kinds cannot: those that draw random numbers, so that a seed gives the same numbers on every device, and those that need
something of SciPy or NumPy that CuPy has not.  They run `on_host`: what they read is fetched, for which the host waits,
and their results are brought back.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ndarray.device import HOST
from ..ndarray.streams import computing

#: operators that need what CuPy has not, or step through their input element by element
HOST_KERNELS = frozenset({
    "CTCLoss", "ROIPooling", "contrib_AdaptiveAvgPooling2D", "contrib_BilinearResize2D",
    "contrib_ROIAlign", "contrib_box_iou", "contrib_box_nms", "csr_dot", "ctc_backward", "interpolate",
    "linalg_solve_triangle", "polygamma", "resample", "resample_back", "roi_align_back", "spread",
})  # fmt: skip

REDUCTIONS: dict[Any, str] = {
    np.add: "sum", np.multiply: "prod", np.maximum: "max", np.minimum: "min", np.logical_or: "any",
    np.logical_and: "all",
}  # fmt: skip


def on_host(op: Any) -> bool:
    """Is it computed on the host, wherever its arrays are?"""
    return op.random or op.name in HOST_KERNELS


def ufunc_of(device: Any, ufunc: np.ufunc) -> Any:
    """The ufunc for arrays of a device: NumPy's find their way themselves, SciPy's do not."""
    name = ufunc.__name__
    return ufunc if device is None or getattr(np, name, None) is ufunc else getattr(device.special, name)


def brought(value: Any) -> Any:
    """A constant in a text: where kernels run on a device, an array of the host becomes that device's."""
    home = computing()
    return value if home is None or type(value) is not HOST.raw else home.xp.asarray(value)


def reduced(ufunc: np.ufunc, x: Any, axis: Any, out: Any, keepdims: bool) -> None:
    """``ufunc.reduce`` on the device whose kernel runs."""
    found = getattr(computing().xp, REDUCTIONS[ufunc])(x, axis=tuple(axis), keepdims=keepdims)
    out[...] = found.reshape(out.shape)
