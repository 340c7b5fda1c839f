"""`recollect demo`: recollection at work on handwritten digits, on two CPU cores, in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Arguments:
    """Train a tiny AdaMixer plainly and with recollection, and compare them stage by stage."""

    quick: bool = False
    """Only see that everything runs, in under a minute."""
    out: Path = Path("runs/demo")
    """Folder for data, runs and pictures."""
    seed: int = 0
    """Of data, weights and order."""


def run(arguments: Arguments) -> int:
    """Run the demo."""
    from recollect.cli._demo import demo

    return demo(arguments.out, quick=arguments.quick, seed=arguments.seed)
