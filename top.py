"""A live view of a running process: ``python -m vardag.top [PID]``.

The process has to let itself be looked into: VARDAG_TOP=1 in its environment, or ``vardag.engine.serve()``.  Needs
rich (``pip install vardag[top]``).
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from .engine.status import ask, processes


def view(answer: dict[str, Any]) -> Any:
    """What the terminal shows of one answer."""
    from rich.console import Group
    from rich.table import Table

    parts: list[Any] = []
    for engine in answer["engines"]:
        head = f"{engine['engine']}   in flight {size(engine['bytes'])}, at most {size(engine['peak_bytes'])}"
        if engine["unseen"] or engine["held"]:
            head += f"   errors nobody has seen {engine['unseen']}, pushes that were held {engine['held']}"
        lanes = Table(title=head, title_justify="left", expand=False)
        for column in ("lane", "ready", "workers", "asleep"):
            lanes.add_column(column, justify="left" if column == "lane" else "right")
        for lane in engine["lanes"]:
            lanes.add_row(*(str(lane[key]) for key in ("name", "ready", "workers", "asleep")))
        slowest = Table(expand=False)
        for column in ("running", "seconds", "thread", "pushed at"):
            slowest.add_column(column, justify="right" if column == "seconds" else "left")
        for op in engine["running"]:
            slowest.add_row(op["name"], f"{op['seconds']:.3f}", op["thread"], op["line"])
        names = ", ".join(f"{name or '?'} {count}" for name, count in engine["names"].items())
        counts = f"{engine['completed']} of {engine['pushed']} done, {engine['pending']} pending: {names or 'none'}"
        parts += [lanes, counts, slowest]
    return Group(*parts) if parts else "no engine yet"


def size(nbytes: int) -> str:
    """Bytes for people."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.4g} {unit}"
        value /= 1000
    return f"{value:.4g} TB"


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m vardag.top", description="Look into a running process.")
    parser.add_argument(
        "pid", nargs="?", type=int, help="the process; by default the only one that lets itself be seen"
    )
    parser.add_argument("--once", action="store_true", help="print one view and end")
    parser.add_argument("--every", type=float, default=0.5, metavar="SECONDS", help="time between two views")
    options = parser.parse_args(arguments)
    from rich.console import Console
    from rich.live import Live

    found = [options.pid] if options.pid is not None else list(processes())
    if len(found) != 1:
        which = "no process lets itself be seen: set VARDAG_TOP=1 there" if not found else f"which of {found}?"
        print(which, file=sys.stderr)
        return 2
    try:
        if options.once:
            Console().print(view(ask(found[0])))
            return 0
        with Live(view(ask(found[0])), auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(options.every)
                live.update(view(ask(found[0])), refresh=True)
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        print(f"process {found[0]} does not answer: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
