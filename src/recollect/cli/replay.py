"""`recollect replay`: run a batch again whose numbers went bad, to find where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Arguments:
    """Run again the batch that a training kept when a loss was not finite, and say which module was first."""

    file: tyro.conf.Positional[Path]
    """bad_batch_rank0.pt of a run folder."""
    device: str | None = None
    """By default a GPU if there is one."""


def run(arguments: Arguments) -> int:
    """Replay and report; exit code 0 if all numbers are finite this time."""
    from recollect.training.nonfinite import replay

    report = replay(arguments.file, arguments.device)
    console = Console(highlight=False)
    for line in report.lines():
        console.print(line, markup=False, soft_wrap=True)
    return 0 if report.finite else 1
