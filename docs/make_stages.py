"""Regenerate the figure and the numbers of docs/stages.md from runs of yours.

python docs/make_stages.py RUN [RUN] --data DIR

Writes docs/stages.svg, and what stands between the two `numbers` marks in docs/stages.md. The figure shows numbers
only, so that a dataset whose pictures may not be passed on can be used.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import shlex
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from recollect.analysis.predictions import box_iou
from recollect.analysis.run_analysis import Measure, RunAnalysis, differences
from recollect.api import load
from recollect.cli.analyze import Arguments, analyse
from recollect.cli.plot import unique_names
from recollect.evaluation import percent

DOCS = Path(__file__).parent
MARKS = ("<!-- numbers: written by make_stages.py -->", "<!-- end of numbers -->")


def main() -> None:
    """Analyse, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--bootstrap", type=int, default=1000)
    options = parser.parse_args()
    arguments = Arguments(tuple(options.runs), data=options.data, bootstrap=options.bootstrap)
    names = unique_names(arguments.runs)
    detectors = [load(folder) for folder in options.runs]
    runs = [analyse(n, d, arguments, lambda text: None)[0] for n, d in zip(names, detectors)]
    draw(runs, DOCS / "stages.svg")
    page = DOCS / "stages.md"
    trained = [f"`{name}` is {d.card['model']}" for name, d in zip(names, detectors)]
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}", re.DOTALL)
    page.write_text(pattern.sub(lambda _: numbers(runs, trained), text), encoding="utf-8")


def numbers(runs: list[RunAnalysis], trained: list[str]) -> str:
    """The tables in Markdown, with command, date and machine."""
    command = shlex.join(["python", "docs/make_stages.py", *sys.argv[1:]])
    lines = [
        MARKS[0],
        f"{'; '.join(trained)}. `{command}`, once, on {datetime.date.today()}, {platform.machine()} CPU with "
        f"{os.cpu_count()} cores; {len(runs[0].predictions.image_ids)} images, {len(runs[0].objects.image)} objects, "
        f"{runs[0].predictions.scores.shape[2]} queries. Percent, in brackets the 95 % bootstrap interval over images.",
        "",
    ]
    change = differences(runs[0], runs[1]) if len(runs) == 2 else {}
    head = ["", *(run.name for run in runs), *(["difference"] if change else [])]
    lines += [row(head), row(["---"] * len(head))]
    for title, measure in runs[0].measures.items():
        others: list[Measure] = [run.measures[title] for run in runs[1:]]
        cells = [m.text() for m in (measure, *others)] + ([change[title].text(signed=True)] if change else [])
        lines.append(row([title, *cells]))
    for run in runs:
        counts = run.fading.totals()
        lines += [
            "",
            f"Behind the rates of `{run.name}`: {counts['fading']} of {counts['tp']} true positives fade, "
            f"{counts['exacerbated']} of {counts['fp']} false positives are exacerbated, {counts['recoverable']} of "
            f"{counts['fn']} missed objects are recoverable. The best stage would have been, from the first to the "
            f"last, for true positives {shares(run.best_stage['true positives'])}, for false positives "
            f"{shares(run.best_stage['false positives'])}, for whole images {shares(run.best_stage['images'])}.",
        ]
    example = fading_example(runs[0])
    if example is not None:
        image, query, label, scores, overlaps = example
        told = ", ".join(f"{s:.2f} (IoU {v:.2f})" for s, v in zip(scores, overlaps))
        lines += [
            "",
            f"The right panel follows the true positive that fades most, query {query} of image {image}, "
            f"class {label}: its score through the stages is {told}.",
        ]
    return "\n".join([*lines, MARKS[1]])


def row(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def shares(counts: list[int]) -> str:
    """Counts as shares in percent."""
    return " / ".join(f"{percent(n / max(1, sum(counts)), 0)} %" for n in counts)


def fading_example(run: RunAnalysis) -> tuple[int, int, str, list[float], list[float]] | None:
    """The true positive that lost most since a stage where it was better: image, query, class, scores, overlaps."""
    scores, fading = run.predictions.scores, run.fading
    image, query = np.nonzero(fading.fading)
    if not len(image):
        return None
    lost = scores[image, fading.better_stage[image, query], query] - scores[image, -1, query]
    i, q = int(image[lost.argmax()]), int(query[lost.argmax()])
    thing = run.objects.xywh[fading.matched[i, -1, q]]
    overlaps = box_iou(run.predictions.boxes[i, :, q], thing).tolist()
    label = run.names[run.predictions.labels[i, -1, q]]
    return int(run.predictions.image_ids[i]), q, label, scores[i, :, q].tolist(), overlaps


def draw(runs: list[RunAnalysis], path: Path) -> None:
    """AP per stage with the oracle; where final detections had their best score; one that fades."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for place, run in enumerate(runs):
        colour = f"C{place}"
        stages = np.arange(1, len(run.stages) + 1)
        measures = [run.measures[f"AP of stage {s}"] for s in stages]
        values = 100 * np.array([m.value for m in measures])
        errors = np.abs(100 * np.array([m.interval() for m in measures]).T - values)
        left.errorbar(stages, values, errors, marker="o", capsize=3, color=colour, label=run.name)
        oracle = run.measures["oracle AP"].value
        left.axhline(100 * oracle, linestyle="--", color=colour, label=f"{run.name}, oracle")
        for kind, shift in (("true positives", -0.2), ("false positives", 0.2)):
            counts = np.array(run.best_stage[kind])
            width = 0.36 / len(runs)
            middle.bar(
                stages + shift + (place - (len(runs) - 1) / 2) * width, 100 * counts / max(1, counts.sum()), width,
                color=colour, alpha=1 if shift < 0 else 0.45, label=f"{run.name}, {kind}",
            )  # fmt: skip
    left.set(title="AP per decoder stage", xlabel="stage", xticks=stages)
    middle.set(title="Stage with the best score, % of final detections", xlabel="stage", xticks=stages)
    example = fading_example(runs[0])
    if example is not None:
        _, _, label, scores, overlaps = example
        course = np.arange(1, len(scores) + 1)
        right.plot(course, scores, marker="o", label="score")
        right.plot(course, overlaps, marker="s", linestyle=":", label="IoU with its object")
        right.set(title=f"A true positive that fades ({label})", xlabel="stage", xticks=course, ylim=(0, 1.02))
    for panel in (left, middle, right):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
