"""The steps of recurrent layers: over a whole sequence, backwards through it, and the same written in F.

The parameters are one vector: for each layer and direction the weights of the input (g hidden, inputs) and of the state
(g hidden, hidden), and of an LSTM with projections those of the projection (out, hidden); then for each layer and
direction their two biases (g hidden,); g gates in the order of `GATES`.
The input of all steps is projected by one product; what remains is a loop over time with one product a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .products import product

#: the gates of each mode; h is the new state
GATES = {"rnn_relu": "h", "rnn_tanh": "h", "lstm": "ifgo", "gru": "run"}
#: what the kernel keeps of each step for the way back, in parts of the state's length: gates, then
KEPT = {"rnn_relu": 1, "rnn_tanh": 1, "lstm": 6, "gru": 5}  # h;  ifgo, cell, h;  run, the state's part of n, h

Slot = tuple[int, tuple[int, ...]]  # where in the parameters, and which shape


class Plan:
    """The shapes of one call; `slots`: (weights of input and state, biases of both) for each layer and direction."""

    def __init__(
        self, data: Sequence[int], state: Sequence[int], mode: str, layers: int, bidirectional: bool,
        hidden: int | None = None,
    ) -> None:  # fmt: skip
        self.steps, self.n, self.inputs = data
        self.out = state[2]  # of an LSTM with projections less than `hidden`, the length of its cell
        self.hidden, self.projected = (self.out, False) if hidden is None else (hidden, True)
        self.mode, self.layers, self.directions = mode, layers, 1 + bidirectional
        rows = len(GATES[mode]) * self.hidden
        self.slots: list[list[Slot]] = []
        at = 0
        for layer in range(layers):
            width = self.directions * self.out if layer else self.inputs
            for _ in range(self.directions):
                shapes = [(rows, width), (rows, self.out), (self.out, self.hidden)]
                self.slots.append([])
                for shape in shapes if self.projected else shapes[:2]:
                    self.slots[-1].append((at, shape))
                    at += math.prod(shape)
        for slot in self.slots:
            slot[2:2] = (at, (rows,)), (at + rows, (rows,))
            at += 2 * rows
        self.size = at

    @property
    def reserve(self) -> tuple[int, ...]:
        return (len(self.slots), self.steps, self.n, KEPT[self.mode] * self.hidden + self.projected * self.out)

    @property
    def mask(self) -> tuple[int, ...]:
        return (self.layers - 1, self.steps, self.n, self.directions * self.out)

    def parts(self, parameters: Any, i: int) -> list[Any]:
        """Weights, biases and weights of the projection, if any, of one layer and direction, as views."""
        return [parameters[at : at + math.prod(shape)].reshape(shape) for at, shape in self.slots[i]]

    def order(self, i: int) -> range:
        """The steps of one layer and direction in their order."""
        return range(self.steps)[:: -1 if i % self.directions else 1]

    def columns(self, i: int) -> slice:
        """Where in a layer's output a direction lies."""
        return slice(i % self.directions * self.out, (i % self.directions + 1) * self.out)

    def split(self, values: Any, count: int) -> list[Any]:
        """Views of so many parts of the length of the cell."""
        h = self.hidden
        return [values[..., k * h : (k + 1) * h] for k in range(count)]

    def kept(self, reserve: Any) -> list[Any]:
        """Views of each part that was kept of one layer and direction; the last is its output."""
        found = self.split(reserve, KEPT[self.mode])
        return [*found, reserve[..., -self.out :]] if self.projected else found


def _times(xp: Any, x: Any, y: Any, out: Any = None) -> Any:
    """The product of two matrices, a big one by several workers."""
    out = xp.empty((x.shape[0], y.shape[1]), x.dtype) if out is None else out
    call, *operands = product(xp, x, y, out)
    call(*operands)
    return out


# ---- forward ---------------------------------------------------------------------------------------------------------


def forward(
    xp: Any, plan: Plan, data: Any, parameters: Any, state: Any, cell: Any, mask: Any, reserve: Any, outs: Sequence[Any]
) -> None:
    out, last, last_cell = outs
    x, joined = data, out
    for i in range(len(plan.slots)):
        layer = i // plan.directions
        if i % plan.directions == 0:
            if layer:
                x = joined
                if mask is not None:
                    x = x * mask[layer - 1]
            joined = xp.empty((plan.steps, plan.n, plan.directions * plan.out), out.dtype)
        w, u, b, v, *project = plan.parts(parameters, i)
        z = _times(xp, x.reshape(plan.steps * plan.n, -1), w.T)
        z += b if plan.mode == "gru" else b + v
        z = z.reshape(plan.steps, plan.n, -1)
        h, c = state[i], None if cell is None else cell[i]
        for t in plan.order(i):
            h, c = _step(xp, plan, z[t], u, v, h, c, reserve[i, t])
            if project:
                h = xp.matmul(h, project[0].T, plan.kept(reserve[i, t])[-1])
        joined[..., plan.columns(i)] = plan.kept(reserve[i])[-1]
        last[i] = h
        if cell is not None:
            last_cell[i] = c
    out[...] = joined


def _sigmoid(xp: Any, x: Any, out: Any) -> None:
    """1 / (1 + exp(-x)), which NumPy has in vectors, as SciPy has not; x is used up."""
    xp.negative(x, x)
    xp.exp(x, x)
    xp.add(x, 1, x)
    xp.reciprocal(x, out)


def _step(xp: Any, plan: Plan, z: Any, u: Any, v: Any, h: Any, c: Any, kept: Any) -> tuple[Any, Any]:
    """(state, not projected, and cell) after one step; z: the input's part of the gates, u, v: the state's weights and
    bias.
    """
    n, parts = plan.hidden, plan.split(kept, KEPT[plan.mode])
    gates = xp.matmul(h, u.T)
    new = parts[-1]
    if plan.mode == "lstm":
        gates += z
        _sigmoid(xp, gates[:, : 2 * n], kept[:, : 2 * n])
        xp.tanh(gates[:, 2 * n : 3 * n], parts[2])
        _sigmoid(xp, gates[:, 3 * n :], parts[3])
        i, f, g, o, cell, _ = parts
        xp.multiply(f, c, cell)
        cell += i * g
        xp.tanh(cell, new)
        new *= o
        return new, cell
    if plan.mode == "gru":
        gates += v
        _sigmoid(xp, gates[:, : 2 * n] + z[:, : 2 * n], kept[:, : 2 * n])
        r, update, candidate, part, _ = parts
        part[...] = gates[:, 2 * n :]
        xp.tanh(z[:, 2 * n :] + r * part, candidate)
        xp.subtract(h, candidate, new)
        new *= update
        new += candidate
        return new, None
    gates += z
    if plan.mode == "rnn_tanh":
        xp.tanh(gates, new)
    else:
        xp.maximum(gates, 0, out=new)
    return new, None


def unrolled(
    F: Any, data: Any, parameters: Any, state: Any, state_cell: Any = None, mask: Any = None, *, mode: str,
    num_layers: int, bidirectional: bool, projected: bool = False,
) -> Any:  # fmt: skip
    """(out, state, cell) in F; the cell of modes without one is as RNN's kernel gives it."""
    plan = Plan(data.shape, state.shape, mode, num_layers, bidirectional, state_cell.shape[2] if projected else None)
    n, hidden = plan.n, plan.hidden
    x, states, cells = data, [], []
    sides: list[Any] = []

    def row(array: Any, i: int) -> Any:
        return F.reshape(F.slice_axis(array, axis=0, begin=i, end=i + 1), shape=array.shape[1:])

    for layer in range(num_layers):
        if layer:
            x = F.concat(*sides, dim=2)
            if mask is not None:
                x = x * row(mask, layer - 1)
        sides = []
        for i in range(layer * plan.directions, (layer + 1) * plan.directions):
            w, u, b, v, *project = [
                F.reshape(F.slice_axis(parameters, axis=0, begin=at, end=at + math.prod(shape)), shape=shape)
                for at, shape in plan.slots[i]
            ]
            flat = F.reshape(x, shape=(plan.steps * n, x.shape[2]))
            z = F.reshape(F.matmul(flat, F.transpose(w)) + b, shape=(plan.steps, n, w.shape[0]))
            u = F.transpose(u)
            h, c, made = row(state, i), None if state_cell is None else row(state_cell, i), {}
            for t in plan.order(i):
                side, part = row(z, t), F.matmul(h, u) + v
                h, c = _step_in_F(F, mode, hidden, side, part, h, c)
                h = F.matmul(h, F.transpose(project[0])) if project else h
                made[t] = h
            sides.append(F.stack(*(made[t] for t in range(plan.steps)), axis=0))
            states.append(h)
            cells.append(c)
    out = F.concat(*sides, dim=2)
    nothing = F.reshape(F.slice_axis(state, axis=0, begin=0, end=0), shape=(0,))
    return out, F.stack(*states, axis=0), F.stack(*cells, axis=0) if mode == "lstm" else nothing


def _step_in_F(F: Any, mode: str, n: int, z: Any, part: Any, h: Any, c: Any) -> tuple[Any, Any]:
    def gate(array: Any, k: int) -> Any:
        return F.slice_axis(array, axis=1, begin=k * n, end=(k + 1) * n)

    if mode == "lstm":
        z = z + part
        c = F.sigmoid(gate(z, 1)) * c + F.sigmoid(gate(z, 0)) * F.tanh(gate(z, 2))
        return F.sigmoid(gate(z, 3)) * F.tanh(c), c
    if mode == "gru":
        r, update = (F.sigmoid(gate(z, k) + gate(part, k)) for k in (0, 1))
        candidate = F.tanh(gate(z, 2) + r * gate(part, 2))
        return candidate + update * (h - candidate), None
    return (F.tanh if mode == "rnn_tanh" else F.relu)(z + part), None


# ---- backward --------------------------------------------------------------------------------------------------------


def backward(
    xp: Any, plan: Plan, heads: Sequence[Any], operands: Sequence[Any], reserve: Any, mask: Any, outs: Sequence[Any]
) -> None:
    g_out, g_state, g_cell = heads
    data, parameters, state, cell = operands
    d_data, d_parameters, d_state, d_cell = outs
    side = g_out
    for layer in reversed(range(plan.layers)):
        first = layer * plan.directions
        x = data
        if layer:
            before = [plan.kept(reserve[i])[-1] for i in range(first - plan.directions, first)]
            x = xp.concatenate(before, axis=2) if len(before) > 1 else before[0]
            x = x if mask is None else x * mask[layer - 1]
        flat = x.reshape(plan.steps * plan.n, -1)
        total: Any = 0
        for i in range(first, first + plan.directions):
            w, u, _, _, *project = plan.parts(parameters, i)
            dw, du, db, dv, *d_project = plan.parts(d_parameters, i)
            parts = plan.kept(reserve[i])
            h = _before(xp, plan, i, state[i], parts[-1])
            c = None if cell is None else _before(xp, plan, i, cell[i], parts[4])
            d_cell_i = None if cell is None else d_cell[i]
            g_cell_i = None if cell is None else g_cell[i]
            dz, da, dr = _through_time(
                xp, plan, i, side[..., plan.columns(i)], g_state[i], g_cell_i, parts, h, c, u, d_state[i], d_cell_i,
                project[0] if project else None,
            )  # fmt: skip
            if dr is not None:
                flat_r = dr.reshape(plan.steps * plan.n, -1)
                _times(xp, flat_r.T, parts[5].reshape(plan.steps * plan.n, -1), d_project[0])
            dz, da = (a.reshape(plan.steps * plan.n, -1) for a in (dz, da))
            _times(xp, dz.T, flat, dw)
            _times(xp, da.T, h.reshape(plan.steps * plan.n, -1), du)
            dz.sum(0, out=db)
            da.sum(0, out=dv)
            total = total + _times(xp, dz, w)
        total = total.reshape(x.shape)
        side = total * mask[layer - 1] if layer and mask is not None else total
    d_data[...] = side


def _before(xp: Any, plan: Plan, i: int, first: Any, values: Any) -> Any:
    """What each step begins with, of the values that the steps end with."""
    made = xp.empty((plan.steps, *first.shape), first.dtype)
    order = plan.order(i)
    made[order[0]] = first
    if order.step > 0:
        made[1:] = values[:-1]
    else:
        made[:-1] = values[1:]
    return made


def _through_time(
    xp: Any, plan: Plan, i: int, dy: Any, g_state: Any, g_cell: Any, parts: Any, before: Any, cells: Any, u: Any,
    d_state: Any, d_cell: Any, project: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """(cotangents of the input's part of the gates, of the state's part, of the projected state); fills those of the
    first state and cell.

    All that does not depend on later steps is computed for all steps at once: `slope` is the gates' derivative by the
    step's cotangent.
    """
    n, mode, gates = plan.hidden, plan.mode, len(GATES[plan.mode])
    da = xp.empty((plan.steps, plan.n, gates * n), dy.dtype)
    slope = xp.empty_like(da)
    slopes = plan.split(slope, gates)
    back = g_state
    if mode == "lstm":
        i_, f, g, o, cell, *_ = parts
        bent = xp.tanh(cell)
        for made, gate, factor in ((0, i_, g), (1, f, cells), (3, o, bent)):
            xp.multiply(gate, 1 - gate, slopes[made])
            slopes[made] *= factor
        xp.multiply(i_, 1 - g * g, slopes[2])
        through, along = o * (1 - bent * bent), g_cell
        dr = None if project is None else xp.empty(dy.shape, dy.dtype)
        for t in reversed(plan.order(i)):
            dh = dy[t] + back
            if dr is not None:
                dr[t] = dh
                dh = xp.matmul(dh, project)
            dc = along + dh * through[t]
            shape = (plan.n, 3, n)
            xp.multiply(slope[t, :, : 3 * n].reshape(shape), dc[:, None], da[t, :, : 3 * n].reshape(shape))
            xp.multiply(slopes[3][t], dh, da[t, :, 3 * n :])
            back, along = xp.matmul(da[t], u), dc * f[t]
        d_cell[...] = along
        d_state[...] = back
        return da, da, dr
    if mode == "gru":
        r, update, candidate, part, _ = parts
        bend = (1 - update) * (1 - candidate * candidate)
        xp.multiply(update * (1 - update), before - candidate, slopes[1])
        xp.multiply(bend, r, slopes[2])
        xp.multiply(slopes[2] * (1 - r), part, slopes[0])
    elif mode == "rnn_tanh":
        xp.subtract(1, parts[0] * parts[0], slope)
    else:
        xp.greater(parts[0], 0, slope, casting="unsafe")
    dz = da
    if mode == "gru":
        dz = xp.empty_like(da)
    shape = (plan.n, gates, n)
    for t in reversed(plan.order(i)):
        dh = dy[t] + back
        xp.multiply(slope[t].reshape(shape), dh[:, None], da[t].reshape(shape))
        back = xp.matmul(da[t], u)
        if mode == "gru":
            xp.multiply(dh, bend[t], dz[t, :, 2 * n :])
            back += dh * update[t]
    if mode == "gru":
        dz[..., : 2 * n] = da[..., : 2 * n]
    d_state[...] = back
    return dz, da, None
