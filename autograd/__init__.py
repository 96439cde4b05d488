"""Autograd: how what was done is undone.  Recording scopes, the tape, backward, custom functions."""

from __future__ import annotations

from .anomaly import AnomalyError, detect_anomaly
from .backward import backward
from .checking import Checked, GradientMismatch, check
from .custom_gradients import custom_gradient
from .function import Function
from .functional import attach_grad, compute_gradient, grad, grad_and_loss, mark_variables, zero_grad
from .graph import Graph, graph
from .graph import graph as get_symbol
from .recompute import checkpoint
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
from .transfer import across
from .transforms import hessian, hvp, jacobian, jvp, value_and_grad, vjp

__all__ = [
    "AnomalyError",
    "Checked",
    "Function",
    "GradientMismatch",
    "Graph",
    "GraphError",
    "across",
    "attach_grad",
    "backward",
    "check",
    "checkpoint",
    "compute_gradient",
    "custom_gradient",
    "detect_anomaly",
    "get_symbol",
    "grad",
    "grad_and_loss",
    "graph",
    "hessian",
    "hvp",
    "is_recording",
    "is_training",
    "jacobian",
    "jvp",
    "mark_variables",
    "pause",
    "predict_mode",
    "record",
    "set_recording",
    "set_training",
    "train_mode",
    "value_and_grad",
    "vjp",
    "zero_grad",
]
