"""What a declaration says of an operator, for people: its signature, its gradient, its text.

`sign` gives the nd face's functions all that, so that `help` shows it; reference.py makes a page of it.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from .faces import PLAIN, Rule, nd_function
from .schema import Operator, Text, registry, zero


def signature(op: Operator, rule: Rule) -> inspect.Signature:
    """How the nd face takes an operator's arguments: MXNet's names and order."""
    spelled = {new: old for old, new in rule.rename.items()}
    order = rule.order or (*op.inputs, *op.attributes)
    P = inspect.Parameter
    found = []
    if op.variadic is not None:
        found.append(P(op.variadic, P.VAR_POSITIONAL))
        order = tuple(n for n in order if n in op.attributes)
    kind = P.KEYWORD_ONLY if op.variadic is not None else P.POSITIONAL_OR_KEYWORD
    optional = False
    for n in order:
        required = (n in op.inputs and n not in op.optional) or n in op.required
        optional = optional or not required
        default = P.empty if not optional else ... if required else op.attributes.get(n, rule.extra.get(n))
        found.append(P(spelled.get(n, n), kind, default=default))
    more = {**{n: v for n, v in rule.extra.items() if n not in order}, "out": None, "ctx": None, "name": None}
    found += [P(n, P.KEYWORD_ONLY, default=v) for n, v in more.items()]
    return inspect.Signature(found)


def meant_by(op: Operator) -> Operator:
    """The operator that does the first sample, in training mode."""
    if op.variant is None or not op.samples:
        return op
    sample = op.samples[0]
    inputs = [x if x is None or isinstance(x, np.ndarray) else np.ones(x, np.float32) for x in sample.inputs]
    inputs += [None] * (len(op.inputs) - len(inputs))
    return op.variant(inputs, op.bind(dict(sample.attributes)), True)[0]


def gradient(op: Operator) -> str:
    """Which inputs have a gradient, and of which order."""
    op = meant_by(op)
    names = [*op.inputs, *([op.variadic] if op.variadic else [])]
    texts = {name: op.gradient_of(i) for i, name in enumerate(names) if name not in op.updates}
    made = [name for name, text in texts.items() if isinstance(text, Text)]
    flat = [name for name, text in texts.items() if text is zero]
    parts = []
    if made:
        parts.append(f"{', '.join(made)} ({'a definition, not the derivative' if op.defined else 'of every order'})")
    if flat:
        parts.append(f"zero for {', '.join(flat)}")
    return "; ".join(parts) or "none"


def description(op: Operator) -> str:
    """The declaration's text, and what follows from the declaration."""
    parts = [op.doc]
    if op.updates:
        parts.append(f"Changes in place: {', '.join(op.updates)}.")
    parts.append(f"Gradient: {gradient(op)}.")
    return "\n\n".join(parts)


def sign() -> None:
    """Give the nd face's functions their signatures and texts, which `help` shows.  Called once, at import."""
    for op in registry:
        if op.nd is not False:
            made, text = signature(op, op.nd or PLAIN), description(op)
            function: Any = nd_function(op)  # one for all its names
            function.__signature__, function.__doc__ = made, text
