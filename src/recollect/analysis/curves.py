"""Loss and AP over a training, from a run's `metrics.csv`: as numbers, and drawn."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

CURVES = ("loss", "AP", "AP50")
Curves = dict[str, list[tuple[float, float]]]


def read_curves(run: Path) -> Curves:
    """Column -> [(step, value)] of a run folder's `metrics.csv`, in order of steps; every numeric column.

    ValueError naming the file if it is missing, holds no row, or holds no steps.
    """
    path = run / "metrics.csv" if run.is_dir() else run
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give the folder of a run that `recollect train` made")
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    curves: Curves = {}
    for number, row in enumerate(rows, 2):
        step = _number(row.get("step"))
        if math.isnan(step):
            raise ValueError(f"{path}, line {number}: its step is {row.get('step')!r}, not a number")
        for column, text in row.items():
            value = _number(text)
            if column != "step" and not math.isnan(value):
                curves.setdefault(column, []).append((step, value))
    if not curves:
        raise ValueError(f"{path} holds no numbers yet")
    return {column: sorted(points) for column, points in curves.items()}


def _number(text: object) -> float:
    try:
        return float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return math.nan


def smoothed(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Running mean over the last `window` points."""
    values = [value for _, value in points]
    means = [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]
    return [(step, mean) for (step, _), mean in zip(points, means)]


def draw_curves(
    runs: Mapping[str, Curves], path: Path, *, columns: Sequence[str] = CURVES, smooth: int = 1, log: bool = False
) -> None:
    """One panel per column with a line per run, written as PNG or SVG by the file's ending.

    smooth: running mean of the loss over so many rows. log: logarithmic loss. ValueError for a column no run has.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [column for column in columns if any(column in curves for curves in runs.values())]
    known = sorted({column for curves in runs.values() for column in curves})
    if tuple(columns) != CURVES and (missing := [c for c in columns if c not in shown]):
        raise ValueError(f"no run has {', '.join(missing)} in its metrics.csv; there is {', '.join(known)}")
    if not shown:
        raise ValueError(f"there is neither loss nor AP to draw; the runs have {', '.join(known)}")
    figure = Figure(figsize=(5.2 * len(shown), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, column in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        for name, curves in runs.items():
            points = curves.get(column, [])
            if column == "loss":
                points = smoothed(points, smooth)
            mark = "." if len(points) < 40 else None
            panel.plot([s for s, _ in points], [v for _, v in points], marker=mark, label=name.replace("$", r"\$"))
        panel.set_xlabel("step")
        panel.set_title(column)
        panel.grid(alpha=0.3)
        if column == "loss" and log:
            panel.set_yscale("log")
    if len(runs) > 1:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise ValueError(f"{path}: pictures are written as .png, .svg or .pdf ({error})") from error
