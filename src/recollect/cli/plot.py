"""`recollect plot`: loss and AP curves of one or several runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Arguments:
    """Draw how trainings went: `recollect plot runs/plain runs/sqr --out curves.svg`."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path = Path("curves.png")
    """The picture: .png, .svg or .pdf."""
    columns: tuple[str, ...] = ("loss", "AP", "AP50")
    """Columns of metrics.csv to draw, a panel each."""
    smooth: int = 1
    """Running mean of the loss over so many rows."""
    log: bool = False
    """Logarithmic loss."""


def run(arguments: Arguments) -> int:
    """Read, draw, say where."""
    from recollect.analysis.curves import draw_curves, read_curves

    if not arguments.runs:
        raise ValueError("which runs? Give one or more run folders")
    if arguments.smooth < 1:
        raise ValueError(f"--smooth {arguments.smooth}: give 1 or more rows")
    names = unique_names(arguments.runs)
    curves = {name: read_curves(folder) for name, folder in zip(names, arguments.runs)}
    draw_curves(curves, arguments.out, columns=arguments.columns, smooth=arguments.smooth, log=arguments.log)
    print(arguments.out)
    return 0


def unique_names(folders: tuple[Path, ...]) -> list[str]:
    """The last parts of the folders' paths, as many as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{folder} ({number})" for number, folder in enumerate(folders, 1)]
