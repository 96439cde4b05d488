"""Arrays: what they are, where they live, how they are made.  `vardag.nd` is this room with MXNet 1.x's operators.

Every name that is not an attribute of this package is an operator of the nd face: ``nd.exp``, ``nd.zeros``,
``nd.FullyConnected``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .. import engine as _engine
from ..engine import ArgumentTypeError
from . import contrib, image, linalg, random, sparse
from . import handles as _handles  # noqa: F401 - it registers itself with `engine.check`
from ._late import nd_face as _nd_face
from ._mxnet_format import FileFormatError
from .array import Array
from .buffer import counts as _counts
from .context import Context, cpu, cpu_pinned, current_context, gpu
from .device import kernel_state as _kernel_state
from .device import num_gpus
from .device import one_blas_thread as _one_blas_thread
from .files import MissingPackageError, load, load_frombuffer, save
from .imports import from_dlpack, from_numpy, to_dlpack_for_read, to_dlpack_for_write
from .indexing import ArrayIndexError
from .line import pause_here as _pause_here
from .memory import usage as _usage
from .ndarray import NDArray, array, empty, waitall
from .pool import memory_pool

__all__ = [
    "ArgumentTypeError",
    "Array",
    "ArrayIndexError",
    "Context",
    "FileFormatError",
    "MissingPackageError",
    "NDArray",
    "Statistics",
    "array",
    "contrib",
    "cpu",
    "cpu_pinned",
    "current_context",
    "empty",
    "from_dlpack",
    "from_numpy",
    "gpu",
    "image",
    "linalg",
    "load",
    "load_frombuffer",
    "memory_pool",
    "num_gpus",
    "random",
    "save",
    "sparse",
    "statistics",
    "to_dlpack_for_read",
    "to_dlpack_for_write",
    "waitall",
]


@dataclass(frozen=True)
class Statistics:
    """What arrays hold, and what protecting values against writes has cost since the program began.

    `live_bytes`: of the memory of arrays on all devices, whoever keeps it (blocks of less than 4096 bytes aside).
    `peak_bytes`: the most that ever was.   `copies`: copies of held bytes or of chunks, made before a write.
    `renames`: whole writes that took a new buffer because the old one was held.   `overtaking`: those that did so only
    because operations that use the old one were pending; how many depends on the schedule.
    """

    copies: int
    renames: int
    overtaking: int = field(compare=False)
    live_bytes: int = field(compare=False)
    peak_bytes: int = field(compare=False)


def statistics() -> Statistics:
    """The counters of this room.  Never blocks."""
    live, peak = _usage()
    return Statistics(**_counts(), live_bytes=live, peak_bytes=peak)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    found = globals()[name] = getattr(_nd_face, name)
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *dir(_nd_face)})


_one_blas_thread()
_engine.add_kernel_context_hook(_kernel_state)
_engine.user_context_hooks.append(_pause_here)
