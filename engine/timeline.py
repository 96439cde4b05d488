"""The profiler's picture.  Imports matplotlib, so it is imported only when somebody asks for one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .profiler import Event

COLOURS = ("#4C78A8", "#F58518", "#54A24B", "#B279A2", "#E45756", "#72B7B2", "#EECA3B", "#9D755D", "#FF9DA6", "#79706E")
OTHER = "#BAB0AC"
BAR = 0.62  # of a row's height
ARROW_BUDGET = 120  # arrows that a picture can take before they hide the bars
LABEL_BUDGET = 150


def draw(
    events: Sequence[Event], threads: Sequence[str], path: str | os.PathLike[str] | None, title: str | None
) -> Any:
    """Bars by thread and time, coloured by operation; arrows and labels only where there is room for them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, Patch

    figure = Figure(figsize=(13, 1.6 + 0.85 * max(1, len(threads))), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    rows = {name: i for i, name in enumerate(threads)}
    total: Counter[str] = Counter()
    for e in events:
        total[e.name or "?"] += e.seconds  # type: ignore[assignment]
    names = [name for name, _ in total.most_common(len(COLOURS))]
    colour = dict(zip(names, COLOURS, strict=False))
    begin = min((e.start or 0.0 for e in events), default=0.0)
    span = max((e.end or 0.0 for e in events), default=1.0) - begin or 1.0
    scale, unit = (1e6, "µs") if span < 2e-3 else (1e3, "ms") if span < 2 else (1.0, "s")

    def x(t: float | None) -> float:
        return ((t or 0.0) - begin) * scale

    least = span * scale / 2500  # a bar thinner than half a pixel is drawn half a pixel wide
    boxes, faces = [], []
    for e in events:
        y, left = rows[e.thread], x(e.start)
        right = max(x(e.end), left + least)
        boxes.append([(left, y - BAR / 2), (right, y - BAR / 2), (right, y + BAR / 2), (left, y + BAR / 2)])
        faces.append(colour.get(e.name or "?", OTHER) if e.ok else "#111111")
    thin = "none" if len(events) > 600 else "white"
    axes.add_collection(PolyCollection(boxes, facecolors=faces, edgecolors=thin, linewidths=0.4, zorder=2))

    labelled = 0
    for e in sorted(events, key=lambda e: -e.seconds)[:LABEL_BUDGET]:
        text = e.name or "?"
        # About 0.0062 of the width for a letter at this size: a label is drawn only if the bar holds it.
        if e.seconds < span * (0.0062 * len(text) + 0.004):
            continue
        middle = (x(e.start) + x(e.end)) / 2
        axes.text(middle, rows[e.thread], text, ha="center", va="center", fontsize=7, color="white",
                  zorder=4, clip_on=True)  # fmt: skip
        labelled += 1

    for before, after in _arrows(events, span):
        across = before.thread != after.thread
        axes.add_patch(
            FancyArrowPatch(
                (x(before.end), rows[before.thread]), (x(after.start), rows[after.thread]),
                connectionstyle="arc3,rad=0.0" if across else "arc3,rad=-0.35", arrowstyle="-|>", mutation_scale=7,
                linewidth=0.7, color="#333333", alpha=0.55, shrinkA=0, shrinkB=0, zorder=3,
            )
        )  # fmt: skip

    axes.set_xlim(-0.01 * span * scale, 1.01 * span * scale)
    axes.set_ylim(max(1, len(threads)) - 0.4, -0.6)
    axes.set_yticks(range(len(threads)), threads)
    axes.set_xlabel(f"time, {unit}")
    axes.set_title(title or f"{len(events)} operations on {len(threads)} threads", fontsize=11, loc="left")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    handles = [Patch(color=colour[n], label=n[:28]) for n in names]
    if len(total) > len(names):
        handles.append(Patch(color=OTHER, label=f"{len(total) - len(names)} others"))
    if not all(e.ok for e in events):
        handles.append(Patch(color="#111111", label="failed or skipped"))
    if handles:
        axes.legend(handles=handles, ncols=1, fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    if path is not None:
        figure.savefig(path)
    return figure


def _arrows(events: Sequence[Event], span: float) -> list[tuple[Event, Event]]:
    """The dependencies worth an arrow: those that held an operation up longest, as far as the budget goes."""
    by_seq = {e.seq: e for e in events}
    pairs = [(by_seq[p], e) for e in events for p in e.preds if p in by_seq]
    # Those that can be seen: the last predecessor of each operation first, and between bars that have some width.
    pairs = [(a, b) for a, b in pairs if max(a.seconds, b.seconds) > span / 800 or len(events) < 80]
    # On one thread, from one bar to the next, an arrow says nothing that the eye does not see.
    pairs = [(a, b) for a, b in pairs if a.thread != b.thread or (b.start or 0.0) - (a.end or 0.0) > span / 100]
    pairs.sort(key=lambda ab: (ab[0].thread == ab[1].thread, -(ab[0].seconds + ab[1].seconds)))
    return pairs[:ARROW_BUDGET]
