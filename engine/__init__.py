"""When things run: a dependency engine that sees functions and variables, and knows nothing of arrays."""

from .access import Check, check
from .aio import Pending, wait_all_async
from .claims import RunContext
from .contract import FnProperty, SavedOperator
from .core import Engine
from .counters import Statistics
from .errors import (
    AccessError,
    ArgumentError,
    ArgumentTypeError,
    Cancelled,
    CompletionError,
    DeadlockError,
    EngineClosed,
    EngineErrors,
    EngineTimeout,
    Error,
    InternalError,
    OperatorError,
)
from .lifecycle import add_kernel_context_hook, current, default, profile, set_default, statistics
from .limits import Limits, limits, low_memory_hooks, machine_memory
from .operation import DONE, OK, Kind, Operation, State, user_context_hooks
from .profiler import Event, Profile, Wait
from .schedules import Fuzz, fuzz
from .site import describe, here, line_of
from .status import serve
from .variable import Variable
from .watchdog import Watchdog, watchdog

__all__ = [
    "DONE",
    "OK",
    "AccessError",
    "ArgumentError",
    "ArgumentTypeError",
    "Cancelled",
    "Check",
    "CompletionError",
    "DeadlockError",
    "Engine",
    "EngineClosed",
    "EngineErrors",
    "EngineTimeout",
    "Error",
    "Event",
    "FnProperty",
    "Fuzz",
    "InternalError",
    "Kind",
    "Limits",
    "Operation",
    "OperatorError",
    "Pending",
    "Profile",
    "RunContext",
    "SavedOperator",
    "State",
    "Statistics",
    "Variable",
    "Wait",
    "Watchdog",
    "add_kernel_context_hook",
    "check",
    "current",
    "default",
    "describe",
    "fuzz",
    "here",
    "limits",
    "line_of",
    "low_memory_hooks",
    "machine_memory",
    "profile",
    "serve",
    "set_default",
    "statistics",
    "user_context_hooks",
    "wait_all_async",
    "watchdog",
]
