"""RNN: stacked recurrent layers as one operator, with its backpropagation through time as another.

The kernels (rnn_steps.py) know first order.  `unrolled` is the same function in F, from which every higher one comes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..engine import ArgumentError, ArgumentTypeError
from ..ndarray.array import Array
from ..ndarray.line import scope
from ..ndarray.ndarray import NDArray
from ..ndarray.random import draw_into
from ..ndarray.reading import describe
from .composite import cotangents_of, derived
from .faces import composed
from .infer import floating, uniform
from .nn import known
from .push import invoke
from .rnn_steps import GATES, Plan, backward, forward, unrolled
from .schema import Attributes, Inferred, Metas, Sample, constant, operator
from .texts import raw

MODES = tuple(GATES)
_OWN = ("mode", "num_layers", "bidirectional", "projected")


def _checked(metas: Metas, attributes: Attributes) -> tuple[Plan, Attributes]:
    data, parameters, state, cell = metas
    assert data is not None and parameters is not None and state is not None
    uniform(*metas)
    floating(data)
    known("mode", attributes["mode"], MODES)
    layers, both = int(attributes["num_layers"]), bool(attributes["bidirectional"])
    mode = attributes["mode"]
    if layers < 1:
        raise ValueError(f"num_layers {layers}: 1 or more expected")
    if len(data[0]) != 3 or not data[0][0]:
        raise ValueError("data (steps, n, inputs) with at least one step expected")
    if (cell is None) is (mode == "lstm"):
        raise ValueError("state_cell expected" if cell is None else "state_cell is for mode 'lstm' only")
    if len(state[0]) != 3 or state[0][:2] != (layers * (1 + both), data[0][1]) or not state[0][2]:
        raise ValueError(f"state of shape ({layers * (1 + both)}, {data[0][1]}, state_size) expected")
    projected = bool(attributes["projected"])
    if projected and mode != "lstm":
        raise ValueError("a projection is for mode 'lstm' only")
    if cell is not None:
        length = cell[0][2] if projected and len(cell[0]) == 3 else state[0][2]
        if cell[0] != (*state[0][:2], length) or not length:
            raise ValueError(f"state_cell of shape {(*state[0][:2], 'state_size' if projected else length)} expected")
    plan = Plan(data[0], state[0], mode, layers, both, cell[0][2] if projected and cell is not None else None)
    if parameters[0] != (plan.size,):
        raise ValueError(f"parameters of shape ({plan.size},) expected")
    return plan, {**attributes, "num_layers": layers, "bidirectional": both, "projected": projected}


def _infer(metas: Metas, attributes: Attributes) -> Inferred:
    plan, attributes = _checked(metas, attributes)
    (_, dtype), state = metas[2], metas[2]  # type: ignore[misc]
    out = (plan.steps, plan.n, plan.directions * plan.out), dtype
    made = [out, state, metas[3] or ((0,), dtype), (plan.reserve, dtype)]
    if "p" in attributes:
        attributes["p"] = float(attributes["p"])
        made.append((plan.mask, dtype))
    return tuple(made), attributes


def _work(metas: Metas, made: Metas, attributes: Attributes) -> float:
    """Two products, and some twenty calls a step."""
    sizes = [math.prod(meta[0]) for meta in metas if meta is not None]
    steps = next(meta[0][0] for meta in metas if meta is not None and len(meta[0]) == 3)
    return 1e5 * steps * int(attributes["num_layers"]) + 0.1 * max(sizes) * steps


def _cases() -> Iterator[Sample]:
    for mode, g in (("rnn_relu", 1), ("rnn_tanh", 1), ("lstm", 4), ("gru", 3)):
        for layers, both, hidden in ((1, False, 2), (2, True, 3)) if mode != "rnn_relu" else ((2, False, 2),):
            d = 1 + both
            size = sum(d * g * hidden * ((d * hidden if k else 2) + hidden + 2) for k in range(layers))
            state = (d * layers, 2, hidden)
            yield Sample(
                (3, 2, 2), (size,), state, state if mode == "lstm" else None, mode=mode, num_layers=layers,
                bidirectional=both,
            )  # fmt: skip
    for layers, both in ((1, False), (2, True)):
        plan = Plan((2, 2, 2), (layers * (1 + both), 2, 2), "lstm", layers, both, 3)
        yield Sample(
            (2, 2, 2), (plan.size,), (layers * (1 + both), 2, 2), (layers * (1 + both), 2, 3), mode="lstm",
            num_layers=layers, bidirectional=both, projected=True,
        )  # fmt: skip


def _reference(data: Any, parameters: Any, state: Any, state_cell: Any = None, **attributes: Any) -> Any:
    attributes.pop("p", None)
    return unrolled(raw, data, parameters, state, state_cell, **{"bidirectional": False, **attributes})


def _kernel(
    xp: Any, data: Any, parameters: Any, state: Any, state_cell: Any, mask: Any, own: Attributes, *outs: Any
) -> None:
    *outputs, reserve = outs
    hidden = state_cell.shape[2] if own.pop("projected") else None
    forward(
        xp,
        Plan(data.shape, state.shape, **own, hidden=hidden),
        data,
        parameters,
        state,
        state_cell,
        mask,
        reserve,
        outputs,
    )


@operator(
    "rnn", infer=_infer, outputs=("out", "last", "cell"), saves={"reserve": constant}, cost=_work,
    samples=list(_cases()), reference=_reference, nd=False,
)  # fmt: skip
def rnn(
    xp: Any, data: Any, parameters: Any, state: Any, state_cell: Any = None, *, mode: str, num_layers: int = 1,
    bidirectional: bool = False, projected: bool = False, out: Any, last: Any, cell: Any, reserve: Any,
) -> None:  # fmt: skip
    """RNN without dropout: (out, last state, last cell), the cell of shape (0,) where the mode has none.

    projected: the state of an LSTM is a product of weights with what is otherwise the state, and of its own length.
    """
    own = {"mode": mode, "layers": num_layers, "bidirectional": bidirectional, "projected": projected}
    _kernel(xp, data, parameters, state, state_cell, None, own, out, last, cell, reserve)


@operator(
    "rnn_dropout", infer=_infer, outputs=("out", "last", "cell"), saves={"reserve": constant, "mask": constant},
    cost=_work, random=True, nd=False,
    samples=[
        Sample((3, 2, 2), (96,), (2, 2, 2), (2, 2, 2), mode="lstm", num_layers=2, p=0.4),
        Sample((2, 2, 2), (60,), (4, 2, 1), None, mode="gru", num_layers=2, bidirectional=True, p=0.5),
    ],
)  # fmt: skip
def rnn_dropout(
    xp: Any, data: Any, parameters: Any, state: Any, state_cell: Any = None, *, mode: str, num_layers: int = 1,
    bidirectional: bool = False, projected: bool = False, p: float = 0.5, seed: Any, out: Any, last: Any, cell: Any,
    reserve: Any, mask: Any,
) -> None:  # fmt: skip
    """As `rnn`, with each element of a layer's output 0 with probability p, else divided by 1 - p, for the next."""
    scale = mask.dtype.type(1 / (1 - p) if p < 1 else 0)
    draw_into(mask, seed, lambda rng, n: (rng.random(n, np.float32) >= p) * scale)
    own = {"mode": mode, "layers": num_layers, "bidirectional": bidirectional, "projected": projected}
    _kernel(xp, data, parameters, state, state_cell, mask, own, out, last, cell, reserve)


def _infer_backward(metas: Metas, attributes: Attributes) -> Inferred:
    _, attributes = _checked(metas[3:7], attributes)
    return (*metas[3:6], metas[6] or ((0,), metas[3][1])), attributes  # type: ignore[index]


@operator(
    "rnn_backward", infer=_infer_backward, outputs=("d_data", "d_parameters", "d_state", "d_cell"), cost=_work,
    nd=False,
)  # fmt: skip
def rnn_backward(
    xp: Any, g_out: Any, g_last: Any, g_cell: Any, data: Any, parameters: Any, state: Any, state_cell: Any = None,
    reserve: Any = None, mask: Any = None, *, mode: str, num_layers: int, bidirectional: bool,
    projected: bool, d_data: Any, d_parameters: Any, d_state: Any, d_cell: Any,
) -> None:  # fmt: skip
    """The cotangents of the operands of `rnn` and `rnn_dropout`, of those of the results and of what they kept."""
    hidden = state_cell.shape[2] if projected else None
    plan = Plan(data.shape, state.shape, mode, num_layers, bidirectional, hidden)
    operands, outs = (data, parameters, state, state_cell), (d_data, d_parameters, d_state, d_cell)
    backward(xp, plan, (g_out, g_last, g_cell), operands, reserve, mask, outs)


def _unrolled_backward(
    F: Any, g_out: Any, g_last: Any, g_cell: Any, data: Any, parameters: Any, state: Any, state_cell: Any,
    reserve: Any, mask: Any, *, mode: str, num_layers: int, bidirectional: bool, projected: bool,
) -> Any:  # fmt: skip
    own = {"mode": mode, "num_layers": num_layers, "bidirectional": bidirectional, "projected": projected}
    operands = (data, parameters, state, state_cell, mask)
    wanted = range(3 if state_cell is None else 4)
    made = cotangents_of(F, unrolled, operands, own, wanted, (g_out, g_last, None if state_cell is None else g_cell))
    return tuple(made) if len(made) == 4 else (*made, F.zeros_like(g_cell))


derived(rnn_backward, _unrolled_backward, "g_out", "g_last", "g_cell", "data", "parameters", "state", "state_cell")


def _back(F: Any, mask: Any, known: Attributes) -> Any:
    own = {name: known[name] for name in _OWN}
    names = ("g_out", "g_last", "g_cell", "data", "parameters", "state", "state_cell", "reserve")
    return F.rnn_backward(*(known[name] for name in names), mask, **own)


def _gradient(
    F: Any, g_out: Any, g_last: Any, g_cell: Any, data: Any, parameters: Any, state: Any, state_cell: Any, reserve: Any,
    mode: str, num_layers: int, bidirectional: bool, projected: bool,
) -> Any:  # fmt: skip
    return _back(F, None, locals())


rnn.grad("data", "parameters", "state", "state_cell")(_gradient)


def _gradient_with_mask(
    F: Any, g_out: Any, g_last: Any, g_cell: Any, data: Any, parameters: Any, state: Any, state_cell: Any, reserve: Any,
    mask: Any, mode: str, num_layers: int, bidirectional: bool, projected: bool,
) -> Any:  # fmt: skip
    return _back(F, mask, locals())


rnn_dropout.grad("data", "parameters", "state", "state_cell")(_gradient_with_mask)


@composed(method=False)
def RNN(
    data: Any, parameters: Any, state: Any, state_cell: Any = None, sequence_length: Any = None, state_size: Any = None,
    num_layers: Any = None, bidirectional: bool = False, mode: Any = None, p: float = 0.0, state_outputs: bool = False,
    projection_size: Any = None, lstm_state_clip_min: Any = None, lstm_state_clip_max: Any = None,
    lstm_state_clip_nan: bool = False, use_sequence_length: bool = False, out: Any = None, name: Any = None,
) -> Any:  # fmt: skip
    """Recurrent layers over a whole sequence: of a plain, LSTM or GRU cell, stacked, in one direction or both.

    Parameters
    ----------
    data : (steps, n, inputs), float32, float64 or float16
    parameters : (size,)
        For each layer and direction (g state_size, inputs) and (g state_size, state_size), then for each again two
        biases (g state_size,).  g gates: 1; in, forget, cell, out of an LSTM; reset, update, new of a GRU.  With
        projections (g state_size, projection_size) for the second, and after it (projection_size, state_size).
    state, state_cell : (num_layers * directions, n, state_size)
        What the first step begins with; state_cell for "lstm" only.
    projection_size : int
        For "lstm": the state of each step is projected to this length, which then is that of state and results; cells
        keep state_size.
    mode : "rnn_relu", "rnn_tanh", "lstm" or "gru"
    p : float
        In training mode, each element of a layer's output is 0 with this probability, else divided by 1 - p, as the
        next layer's input.
    state_outputs : bool
        Give the last states (and cells) too.

    Returns (steps, n, directions * length of state), or a list of that, the last states, and for "lstm" the last cells.
    Sync: never blocks.   Raises: ArgumentError, ArgumentTypeError at the call, for bounds of the cell and sequence
    lengths too.   Gradient: of any order.   Source: MXNet RNN.

    >>> from vardag import nd
    >>> x, h, w = nd.ones((5, 2, 3)), nd.zeros((1, 2, 4)), nd.zeros(4 * 4 * (3 + 4 + 2))
    >>> [y.shape for y in nd.RNN(x, w, h, h, state_size=4, num_layers=1, mode="lstm", state_outputs=True)]
    [(5, 2, 4), (1, 2, 4), (1, 2, 4)]
    """
    if use_sequence_length or sequence_length is not None:
        raise ArgumentError("[RNN] sequence_length: not supported (MXNet takes it on a CPU and ignores it)")
    if lstm_state_clip_min is not None or lstm_state_clip_max is not None:
        raise ArgumentError("[RNN] lstm_state_clip_min, lstm_state_clip_max: not supported (nor by MXNet on a CPU)")
    length = state_size if projection_size is None else projection_size
    for what, given in (("state_size", state_size), ("num_layers", num_layers), ("mode", mode)):
        if given is None:
            raise ArgumentError(f"[RNN] argument {what!r} is missing")
    operands = {"data": data, "parameters": parameters, "state": state, "state_cell": state_cell}
    for what, array in operands.items():
        if not isinstance(array, Array) and not (what == "state_cell" and array is None):
            raise ArgumentTypeError(f"[RNN] {what} {describe(array)}: an array expected")
    if not 0 <= p <= 1:
        raise ArgumentError(f"[RNN] p {p}: a probability expected")
    for what, array, size in (("state", state, length), ("state_cell", state_cell, state_size)):
        if array is not None and (array.ndim != 3 or array.shape[2] != size):
            raise ArgumentError(f"[RNN] {what} {describe(array)}: (layers, n, {size}) expected")
    own = {"mode": mode, "num_layers": num_layers, "bidirectional": bidirectional}
    own["projected"] = projection_size is not None
    number = 1 if not state_outputs else 3 if mode == "lstm" else 2
    outs: list[Any] = [None] * 3
    if out is not None:
        outs[:number] = [out] if isinstance(out, Array) else list(out)
    drop = {"p": p} if p > 0 and scope.get().training else {}
    op = rnn_dropout if drop else rnn
    made = invoke(op, list(operands.values()), op.bind({**own, **drop}), None if out is None else outs, cls=NDArray)
    return made[0] if number == 1 else list(made[:number])
