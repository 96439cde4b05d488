"""Autograd: how what was done is undone.  Recording scopes, the tape, backward, custom functions."""

from __future__ import annotations

from .backward import backward
from .function import Function
from .functional import attach_grad, compute_gradient, grad, grad_and_loss, mark_variables
from .scope import (
    is_recording,
    is_training,
    pause,
    predict_mode,
    record,
    set_recording,
    set_training,
    train_mode,
)
from .tape import GraphError

__all__ = [
    "Function",
    "GraphError",
    "attach_grad",
    "backward",
    "compute_gradient",
    "grad",
    "grad_and_loss",
    "is_recording",
    "is_training",
    "mark_variables",
    "pause",
    "predict_mode",
    "record",
    "set_recording",
    "set_training",
    "train_mode",
]
