"""Connectionist temporal classification: the loss of all alignments of a label with a longer sequence, for a batch.

A label of l classes is seen as 2 l + 1 places, a blank before, between and after its classes.  `alpha` is the logarithm
of the probability of all ways to stand at each place after each step, `beta` of all ways on from there.  Both are loops
over steps alone.  The kernels know first order; `alignments` is the loss in F, from which every higher one comes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .composite import cotangents_of, derived
from .faces import Rule, composed, nd_face
from .infer import floating
from .nn import known
from .schema import Attributes, Inferred, Metas, Sample, operator, zero
from .texts import raw

LABELS = ("label", "data_lengths", "label_lengths")


class Lattice:
    """The places of a batch of labels.

    The places of all examples lie in one row, each example's after two that nobody reaches, and two more at the end:
    so a step from place to place is a shift of the row.   `classes`: of each place, (n, places).   `barred`: 0 where a
    place can be reached from two places before, else -inf, as a row.   `steps`, `ends`: of each example, how many
    steps count and which is the last place.
    """

    def __init__(
        self, xp: Any, shape: Any, label: Any, data_lengths: Any, label_lengths: Any, blank_label: str, dtype: Any
    ) -> None:
        steps, n, classes = shape
        blank, padding = (0, 0) if blank_label == "first" else (classes - 1, -1)
        label = label.astype(np.int64)
        longest = label.shape[1]
        self.xp, self.n, self.width = xp, n, 2 * longest + 3
        self.steps = _lengths(xp, data_lengths, n, steps, "data_lengths")
        if label_lengths is None:
            lengths = (xp.cumsum(label == padding, axis=1) == 0).sum(1)
        else:
            lengths = _lengths(xp, label_lengths, n, longest, "label_lengths")
        self.ends = 2 * lengths
        self.classes = xp.full((n, 2 * longest + 1), blank)
        self.classes[:, 1::2] = label.clip(0, classes - 1)
        self.barred = xp.full(n * self.width + 2, -np.inf, dtype)
        self.of(self.barred)[:, 3::2][label[:, 1:] != label[:, :-1]] = 0
        places = xp.arange(2 * longest + 1)
        self.final = (places <= self.ends[:, None]) & (places >= self.ends[:, None] - 1)

    def of(self, rows: Any) -> Any:
        """Rows as (..., n, places), a view."""
        return rows[..., : self.n * self.width].reshape(*rows.shape[:-1], self.n, self.width)[..., 2:]

    def rows(self, steps: int) -> Any:
        """Rows of -inf, one for each step."""
        return self.xp.full((steps, len(self.barred)), -np.inf, self.barred.dtype)

    def chosen(self, logs: Any) -> Any:
        """Of the logarithms of all classes (steps, n, classes) those of each place, in rows."""
        steps, n, classes = logs.shape
        made = self.rows(steps)
        where = self.xp.arange(n)[:, None] * classes + self.classes
        self.of(made)[...] = logs.reshape(steps, n * classes).take(where, axis=1)
        return made

    def forward(self, logs: Any) -> Any:
        """alpha, in rows, of the logarithms of each place; what comes after an example's steps means nothing."""
        add, add_logs, barred = self.xp.logaddexp, self.xp.add, self.barred[2:]
        alpha = self.rows(len(logs))
        self.of(alpha)[0, :, :2] = self.of(logs)[0, :, :2]
        skipped = self.xp.empty_like(barred)
        before = alpha[:-1]
        for new, here, one, two, log in zip(
            alpha[1:, 2:], before[:, 2:], before[:, 1:-1], before[:, :-2], logs[1:, 2:], strict=True
        ):
            add(here, one, new)
            add_logs(two, barred, skipped)
            add(new, skipped, new)
            add_logs(new, log, new)
        return alpha

    def last(self, alpha: Any) -> Any:
        """alpha where an example may end, after its last step, else -inf: (n, places)."""
        ends = self.of(alpha)[(self.steps - 1).clip(0), self.xp.arange(self.n)]
        return self.xp.where(self.final, ends, -np.inf)

    def likelihood(self, alpha: Any) -> Any:
        """The logarithm of the probability of each label, (n,); 0 where nothing is to be said."""
        total = self.xp.logaddexp.reduce(self.last(alpha), axis=1)
        return self.xp.where(self.xp.isfinite(total) & (self.steps > 0), total, 0)

    def backward(self, logs: Any) -> Any:
        """beta, in rows."""
        add, add_logs, barred = self.xp.logaddexp, self.xp.add, self.barred[2:]
        beta = self.rows(len(logs))
        at = self.steps > 0
        ends = self.xp.where(self.final[at], logs.dtype.type(0), -np.inf)
        ended = {int(t) for t in self.steps[at] - 1}
        ahead, skipped = self.xp.full_like(self.barred, -np.inf), self.xp.empty_like(barred)
        for t in reversed(range(len(logs))):
            new = beta[t]
            if t + 1 < len(logs):
                add_logs(beta[t + 1], logs[t + 1], ahead)
                add(ahead[:-2], ahead[1:-1], new[:-2])
                add_logs(ahead[2:], barred, skipped)
                add(new[:-2], skipped, new[:-2])
            if t in ended:
                here = self.steps == t + 1
                self.of(new)[here] = ends[here[at]]
        return beta


def _lengths(xp: Any, given: Any, n: int, most: int, name: str) -> Any:
    if given is None:
        return xp.full(n, most)
    lengths = given.astype(np.int64)
    outside = (lengths < 0) | (lengths > most)
    if outside.any():
        raise ValueError(f"{name}: {lengths[outside][0]} is not from 0 to {most}")
    return lengths


def alignments(
    F: Any, data: Any, label: Any, data_lengths: Any = None, label_lengths: Any = None, *, blank_label: str = "first"
) -> Any:
    """The loss in F."""
    impossible = -3e4 if np.dtype(data.dtype).itemsize == 2 else -1e30  # the logarithm of 0
    (steps, n, classes), longest = data.shape, label.shape[1]
    blank, padding = (0, 0) if blank_label == "first" else (classes - 1, -1)
    label = F.cast(label, dtype="int64")
    if label_lengths is None:
        over = F.cumsum(F.cast(F.equal(label, padding), dtype="int64"), axis=1)
        ends = F.sum(F.cast(F.equal(over, 0), dtype="int64"), axis=1) * 2
    else:
        ends = F.cast(label_lengths, dtype="int64") * 2
    blanks = F.zeros_like(label) + blank
    places = F.concat(F.reshape(F.stack(blanks, label, axis=2), shape=(n, 2 * longest)),
                      F.slice_axis(blanks, axis=1, begin=0, end=1), dim=1)  # fmt: skip
    rows = F.cumsum(F.zeros_like(places) + classes, axis=0) - classes
    places = F.clip(places, a_min=0, a_max=classes - 1) + rows
    logs = F.take(F.reshape(F.log_softmax(data, axis=2), shape=(steps, n * classes)), places, axis=1)

    def column(array: Any, begin: int, end: int) -> Any:
        return F.slice_axis(array, axis=1, begin=begin, end=end)

    first = F.reshape(F.slice_axis(logs, axis=0, begin=0, end=1), shape=logs.shape[1:])
    never = F.zeros_like(first) + impossible
    alpha = F.concat(column(first, 0, 2), column(never, 2, 2 * longest + 1), dim=1)
    differ = F.cast(F.not_equal(column(label, 1, longest), column(label, 0, longest - 1)), dtype=first.dtype)
    barred = F.reshape(
        F.stack(F.zeros_like(differ) + impossible, (1 - differ) * impossible, axis=2), shape=(n, 2 * longest - 2)
    )
    barred = F.concat(column(never, 0, 2), barred, column(never, 0, 1), dim=1)
    for t in range(1, steps):
        one = F.concat(column(never, 0, 1), column(alpha, 0, 2 * longest), dim=1)
        two = F.concat(column(never, 0, 2), column(alpha, 0, 2 * longest - 1), dim=1)
        row = F.reshape(F.slice_axis(logs, axis=0, begin=t, end=t + 1), shape=logs.shape[1:])
        new = _log_sum(F, alpha, one, F.maximum(two + barred, impossible)) + row
        if data_lengths is None:
            alpha = new
        else:
            counts = F.broadcast_to(F.expand_dims(F.greater(data_lengths, t), axis=1), shape=new.shape)
            alpha = F.where(counts, new, alpha)
    last = F.pick(alpha, ends, axis=1)
    before = F.where(F.greater(ends, 0), F.pick(alpha, F.maximum(ends - 1, 0), axis=1), impossible)
    total = _log_sum(F, last, before)
    said = F.greater(total, impossible / 10)
    if data_lengths is not None:
        said = F.logical_and(said, F.greater(data_lengths, 0))
    return F.where(said, -total, 0)


def _log_sum(F: Any, *logs: Any) -> Any:
    most = logs[0]
    for other in logs[1:]:
        most = F.maximum(most, other)
    most = F.BlockGrad(most)
    total: Any = None
    for array in logs:
        part = F.exp(array - most)
        total = part if total is None else total + part
    return F.log(total) + most


# ---- declarations ----------------------------------------------------------------------------------------------------


def _checked(metas: Metas, attributes: Attributes) -> None:
    data, label, data_lengths, label_lengths = metas
    assert data is not None and label is not None
    floating(data)
    known("blank_label", attributes["blank_label"], ("first", "last"))
    if len(data[0]) != 3 or 0 in data[0]:
        raise ValueError("data (steps, n, classes) expected")
    if len(label[0]) != 2 or label[0][0] != data[0][1] or not 0 < label[0][1] <= data[0][0]:
        raise ValueError(f"label of shape ({data[0][1]}, at least 1 and at most {data[0][0]} classes) expected")
    for name, meta in (("data_lengths", data_lengths), ("label_lengths", label_lengths)):
        if meta is not None and meta[0] != data[0][1:2]:
            raise ValueError(f"{name} of shape {data[0][1:2]} expected")
        if f"use_{name}" in attributes and bool(attributes[f"use_{name}"]) is not (meta is not None):
            raise ValueError(f"{name} go with use_{name}=True")


def _loss(metas: Metas, attributes: Attributes) -> Inferred:
    _checked(metas, attributes)
    (shape, dtype) = metas[0]  # type: ignore[misc]
    return ((shape[1:2], dtype),), attributes


def _shifted(inputs: list[Any], attributes: Attributes) -> None:
    """MXNet: an operand that is not used has no place among the positional ones."""
    data_lengths, label_lengths = inputs[2:]
    if attributes.get("use_label_lengths") and not attributes.get("use_data_lengths") and label_lengths is None:
        inputs[2:] = None, data_lengths


_SAMPLES = [
    Sample((4, 2, 4), np.array([[1, 2, 0], [3, 3, 0]]), None, None),
    Sample((4, 3, 3), np.array([[0, 1], [1, -1], [1, 1]]), None, None, blank_label="last"),
    Sample(
        (5, 2, 3), np.array([[1, 2, 1], [1, 1, 2]]), np.array([4, 3]), np.array([2, 1]), use_data_lengths=True,
        use_label_lengths=True,
    ),
    Sample((2, 2, 3), np.array([[1.0, 1], [2, 0]]), np.array([0, 1]), None, use_data_lengths=True),
]  # fmt: skip


def _reference(
    data: Any, label: Any, data_lengths: Any = None, label_lengths: Any = None, blank_label: str = "first", **_: Any
) -> Any:
    return alignments(raw, data, label, data_lengths, label_lengths, blank_label=blank_label)


def _work(metas: Metas, made: Metas, attributes: Attributes) -> float:
    data = max((meta[0] for meta in metas if meta is not None), key=len)
    return 3e5 * data[0] + 50.0 * data[0] * data[1] * data[2]


@operator(
    "CTCLoss", infer=_loss, indices=LABELS, aliases=("ctc_loss",), samples=_SAMPLES, reference=_reference, cost=_work,
    nd=Rule(method=False, adapt=_shifted),
)  # fmt: skip
def ctc_loss(
    xp: Any, data: Any, label: Any, data_lengths: Any = None, label_lengths: Any = None, *,
    use_data_lengths: bool = False, use_label_lengths: bool = False, blank_label: str = "first", out: Any,
) -> None:  # fmt: skip
    """The negative logarithm of the probability of each label: that of all its alignments with the sequence.

    data: (steps, n, classes), floating point; a softmax over classes is part of the operator.   label: (n, l), any
    dtype, l <= steps.   data_lengths, label_lengths: (n,), with use_data_lengths, use_label_lengths; without the
    latter a label ends before its first 0 (blank_label "first": the blank is class 0) or -1 ("last": it is the last
    class).   Result: (n,), 0 for a label that no alignment fits.   Lengths out of range are an error on the data.
    Source: Graves et al. 2006.   MXNet: CTCLoss.
    """
    lattice = Lattice(xp, data.shape, label, data_lengths, label_lengths, blank_label, data.dtype)
    logs = lattice.chosen(raw.log_softmax(data, axis=2))
    xp.subtract(0, lattice.likelihood(lattice.forward(logs)), out)


def _slopes(metas: Metas, attributes: Attributes) -> Inferred:
    _checked(metas[1:], attributes)
    return (metas[1],), attributes


@operator(
    "ctc_backward", infer=_slopes, indices=LABELS, nd=False, cost=_work,
    samples=[Sample((s.inputs[0][1],), *s.inputs, **{n: v for n, v in s.attributes.items() if n == "blank_label"})
             for s in _SAMPLES],
    reference=lambda head, data, *rest, **attributes: _unrolled_backward(raw, head, data, *rest, **attributes),
)  # fmt: skip
def ctc_backward(
    xp: Any, head: Any, data: Any, label: Any, data_lengths: Any = None, label_lengths: Any = None, *,
    blank_label: str = "first", out: Any,
) -> None:  # fmt: skip
    """The cotangent of CTCLoss's data, of that of its result."""
    lattice = Lattice(xp, data.shape, label, data_lengths, label_lengths, blank_label, data.dtype)
    all_logs = raw.log_softmax(data, axis=2)
    logs = lattice.chosen(all_logs)
    alpha = lattice.forward(logs)
    total = lattice.likelihood(alpha)
    along = lattice.of(alpha) + lattice.of(lattice.backward(logs))
    steps, n, classes = data.shape
    said = xp.isfinite(lattice.last(alpha)).any(1)
    counts = (xp.arange(steps)[:, None] < lattice.steps) & said
    share = xp.where(counts[..., None], xp.exp(along - total[:, None]), 0)
    places = (xp.arange(steps * n) * classes).reshape(steps, n, 1) + lattice.classes
    taken = xp.bincount(places.reshape(-1), share.reshape(-1), data.size).reshape(data.shape)
    xp.exp(all_logs, out)
    out *= counts[..., None]
    out -= taken
    out *= head[:, None]


def _unrolled_backward(
    F: Any, head: Any, data: Any, label: Any, data_lengths: Any = None, label_lengths: Any = None, *,
    blank_label: str = "first",
) -> Any:  # fmt: skip
    operands = (data, label, data_lengths, label_lengths)
    (made,) = cotangents_of(F, alignments, operands, {"blank_label": blank_label}, (0,), (head,))
    return made


ctc_loss.grad(
    data=lambda F, g, data, label, data_lengths, label_lengths, blank_label: F.ctc_backward(
        g, data, label, data_lengths, label_lengths, blank_label=blank_label
    ),
    **dict.fromkeys(LABELS, zero),
)
derived(ctc_backward, _unrolled_backward, "head", "data")


def _of_contrib(*arguments: Any, **named: Any) -> Any:
    """As nd.CTCLoss."""
    return nd_face.CTCLoss(*arguments, **named)


for _name in ("CTCLoss", "ctc_loss"):
    _of_contrib.__name__ = _name
    composed(space="contrib")(_of_contrib)
