"""PyTorch's answers for the programs of programs.py: derivatives of first and second order, None for what it refuses.

python tests/autograd/torch_programs.py     (in an environment with PyTorch 2.13; writes data/torch_programs.json)
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch  # type: ignore[import-not-found]
from programs import Program, Run, Table, functions

COUNT = 400


class TorchRun(Run):
    F = Table(functions(torch))

    def __init__(self, program: Program) -> None:
        marked = program.marked
        leaves = {n: torch.tensor(x, requires_grad=bool(marked[n])) for n, x in program.leaves.items()}
        self.leaves = {n: x for n, x in leaves.items() if marked[n]}
        super().__init__(leaves)
        for line in program.lines:
            self.line(line)

    def constant(self, x: Any) -> Any:
        return x.detach().clone()

    paused = constant


def answer(program: Program) -> list[float]:
    u, v = program.directions
    run = TorchRun(program)
    total = sum((run.names[n] * torch.tensor(w)).sum() for n, w in program.heads.items())
    slope = along(run, total, u, True)
    return [float(slope), float(along(run, slope, v, False))]


def along(run: TorchRun, head: Any, direction: dict[str, Any], create: bool) -> Any:
    """The derivative of the head."""
    if not head.requires_grad:
        return torch.zeros(())
    found = torch.autograd.grad(head, list(run.leaves.values()), create_graph=create, allow_unused=True)
    terms = [(g * torch.tensor(direction[n])).sum() for n, g in zip(run.leaves, found, strict=True) if g is not None]
    return sum(terms, torch.zeros(()))


def main() -> None:
    answers: list[Any] = []
    reasons: Counter[str] = Counter()
    for seed in range(COUNT):
        try:
            answers.append(answer(Program(seed)))
        except RuntimeError as error:
            answers.append(None)
            reasons[str(error).partition(":")[0][:60]] += 1
    refused = answers.count(None)
    target = Path(__file__).parent / "data" / "torch_programs.json"
    found = {"torch": torch.__version__, "refused": refused, "reasons": dict(reasons), "programs": answers}
    target.write_text(json.dumps(found) + "\n")
    print(f"{COUNT} programs, {refused} refused: {dict(reasons)}")


if __name__ == "__main__":
    main()
