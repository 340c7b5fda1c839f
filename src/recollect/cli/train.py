"""`recollect train`: the main verb."""

from __future__ import annotations

from dataclasses import dataclass

import tyro
from rich.console import Console

from recollect.api import train_with
from recollect.training.options import Options


@dataclass(frozen=True)
class Arguments(Options):
    """Train a detector: `recollect train sqr_adamixer_r50 --data ./birds --out runs/birds`.

    The run folder gets weights.safetensors (the best by AP, with the class names), last.ckpt (for --resume),
    metrics.csv, recipe.json and sample pictures.
    """

    model: tyro.conf.Positional[str | None] = None
    """Name of the detector; `recollect models` lists them. Not needed with --resume."""


def run(arguments: Arguments) -> int:
    """Train, and say where the result is."""
    result = train_with(arguments.model, arguments)
    console = Console(highlight=False)
    if result.metrics is not None:
        console.print(result.metrics.table())
    best = "" if result.best_ap is None else f", best AP {100 * result.best_ap:.1f}"
    console.print(f"{result.steps} steps in {result.seconds / 60:.1f} minutes{best}: {result.weights}", soft_wrap=True)
    return 0
