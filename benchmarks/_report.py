"""What compare.py prints and draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from _workloads import PEERS

WIDTH = 38
NAMES = {"vardag": "vardag", **PEERS}
COLOURS = {
    "stretch": "#1d5c46",
    "yes": "#2a7f62",
    "unsure": "#c9a227",
    "no": "#c0504d",
    "-": "#7f7f7f",
}  # is the bar met?


def amount(seconds: float | None) -> str:
    """Three digits and a unit: ``1.23 us``."""
    if seconds is None:
        return "-"
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        value = seconds * factor
        if value < 1000 or unit == "ms":
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    raise AssertionError


def show_title(peers: list[str]) -> None:
    columns = "".join(f"{NAMES[peer]:>10}" for peer in peers)
    print(f"{'':{WIDTH}}{columns}  {'best':>8} {'ratio':>6} {'rounds':>12} {'quiet':>6} {'bar':>6}  met", flush=True)


def show_row(row: dict[str, Any], peers: list[str]) -> None:
    median = row["median"]
    words = [f"{row['title']:{WIDTH}}", *(f"{amount(median.get(peer)):>10}" for peer in peers)]
    line, indent = "".join(words), " " * (WIDTH + 10 * len(peers))
    for i, bar in enumerate(row["bars"]):
        head, limit = line if i == 0 else indent, f"{bar['bar']:6.2f}" if bar["bar"] else f"{'-':>6}"
        if bar["ratio"] is None:
            print(f"{head}  {'-':>8} {'-':>6} {'':12} {'':6} {limit}")
            continue
        spread = f"{bar['least']:.2f}-{bar['most']:.2f}"
        missing = f"; without {', '.join(bar['missing'])}" if bar["missing"] else ""
        ratios = f"{bar['ratio']:6.2f} {spread:>12} {bar['quiet']:6.2f} {limit}"
        print(f"{head}  {NAMES[bar['best']]:>8} {ratios}  {bar['met']}{missing}")
    if not row["bars"]:
        print(line)
    memory = row.get("memory", {})
    if memory.get("copy") and "vardag" in median:
        rate, copy = memory["gigabytes_per_second"]["vardag"], memory["copy"]
        print(f"{'':{WIDTH}}  at least {rate:.1f} GB/s; a large copy {copy:.1f} GB/s: {rate / copy:.0%}")
    for peer, fault in row["faults"].items():
        print(f"    {NAMES[peer]}: {fault}")
    print(end="", flush=True)


def show_costs(costs: dict[str, Any]) -> None:
    if "error" in costs:
        print(f"costs of one operation: {costs['error']}")
        return
    print("\na + b of ten elements, stage by stage, microseconds")
    for stage, cost in costs["stages"].items():
        print(f"    {stage:{WIDTH + 18}} {cost:8.2f}")
    print("n pending functions, microseconds of processor time each: push, push and run, by the figure of 10^3")
    first = costs["pending"][0]
    for line in costs["pending"]:
        ratio = line["all"] / first["all"]
        print(f"    {line['n']:>10,} {line['push']:8.2f} {line['all']:8.2f} {ratio:8.2f}")


def draw(rows: list[dict[str, Any]], path: Path) -> bool:
    """A bar for each ratio, and a mark where it should end at most.  False if there is nothing to draw with."""
    bars = [(row["title"], bar) for row in rows for bar in row["bars"] if bar["ratio"]]
    if not bars or not importlib.util.find_spec("matplotlib"):
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.3 * len(bars)), layout="constrained")
    places = range(len(bars))
    colours = [COLOURS[bar["met"]] for _, bar in bars]
    axes.barh(places, [bar["ratio"] - 0.01 for _, bar in bars], left=0.01, color=colours, height=0.6)
    limits = [bar["bar"] or float("nan") for _, bar in bars]
    axes.scatter(limits, places, marker="|", s=160, color="black", label="bar", zorder=3)
    axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    least = min(min(bar["ratio"], bar["bar"] or 1) for _, bar in bars)
    axes.set_xlim(max(0.02, least / 2), None)
    axes.set_yticks(places, [f"{title}  ({NAMES[bar['best']]})" for title, bar in bars])
    axes.invert_yaxis()
    axes.set_xlabel("ratio to the best peer, which is in brackets\n(below 1: vardag is faster)")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
