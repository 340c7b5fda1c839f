"""`recollect analyze`: why a detector errs, decoder stage by decoder stage, of one run or of two side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Arguments:
    """Analyse a staged detector: `recollect analyze runs/plain runs/sqr --data DIR --out report.html`."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders or weights files: one, or several to compare."""
    data: str | None = None
    """Dataset: a folder, or a COCO JSON file."""
    split: str = "val"
    """Which split of the dataset."""
    out: Path | None = None
    """Write a report for the browser, one self-contained HTML file."""
    json: Path | None = None
    """Write all numbers to this file."""
    bootstrap: int = 500
    """Resamples of the images for confidence intervals; 0 for none."""
    images: int = 200
    """Images to browse in the report, at most."""
    limit: int | None = None
    """Analyse only so many images."""
    batch: int = 1
    """Images per pass."""
    device: str | None = None
    """cpu, cuda, cuda:1; by default a GPU if there is one."""


def run(arguments: Arguments) -> int:
    """Analyse, print, write what was asked for."""
    from recollect.analysis.report import choose_images, record_points, write_report
    from recollect.analysis.run_analysis import differences, summary_tables
    from recollect.api import load
    from recollect.cli.plot import unique_names

    if not arguments.runs or arguments.data is None:
        raise ValueError("give one or more runs and --data DIR")
    for value, flag in ((arguments.images, "--images"), (arguments.batch, "--batch"), (arguments.limit, "--limit")):
        if value is not None and value < 1:
            raise ValueError(f"{flag} {value}: give 1 or more")
    if arguments.bootstrap < 0:
        raise ValueError(f"--bootstrap {arguments.bootstrap}: give 0 or more")
    console = Console(highlight=False)
    names = unique_names(arguments.runs)
    detectors = [load(folder, arguments.device) for folder in arguments.runs]
    with Console(stderr=True).status("analysing") as status:
        analyses = [
            analyse(name, detector, arguments, lambda text, name=name: status.update(f"{name}: {text}"))
            for name, detector in zip(names, detectors)
        ]
        for other, _ in analyses[1:]:
            differences(analyses[0][0], other)  # the same images, or a sentence
        found = [analysis for analysis, _ in analyses]
        if arguments.out is not None:
            chosen = choose_images(found, arguments.images)
            shown = []
            for folder, detector, (analysis, dataset) in zip(arguments.runs, detectors, analyses):
                status.update(f"{analysis.name}: sampling points")
                points = record_points(detector.model, dataset, analysis, chosen, device=detector.device)
                shown.append(_report_run(analysis, folder, points))
            status.update("writing the report")
            title = "Stage by stage: " + " and ".join(names)
            subtitle = f"{len(found[0].predictions.image_ids)} images of {arguments.data} ({arguments.split})"
            write_report(arguments.out, shown, analyses[0][1], chosen, title=title, subtitle=subtitle)
    for table in summary_tables(found):
        console.print(table)
    if arguments.json is not None:
        data: dict[str, Any] = {"runs": [analysis.to_json() for analysis in found]}
        if len(found) == 2:
            data["differences"] = {t: m.to_json() for t, m in differences(*found).items()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if arguments.out is not None:
        console.print(str(arguments.out), markup=False)
    return 0


def analyse(name: str, detector: Any, arguments: Arguments, notice: Any) -> tuple[Any, Any]:
    """(the analysis of one run, the dataset as that run is fed it)."""
    from recollect.analysis.predictions import collect_stages
    from recollect.analysis.run_analysis import analyse_run
    from recollect.data import evaluation_loader, evaluation_transform, open_dataset

    dataset = open_dataset(arguments.data, arguments.split)
    if tuple(dataset.names) != detector.names:
        raise ValueError(
            f"{name} knows the classes {', '.join(detector.names[:5])} ..., {arguments.data} has "
            f"{', '.join(dataset.names[:5])} ...: they must be the same, in the same order"
        )
    dataset = dataset.with_transform(evaluation_transform(detector.recipe.data))
    loader = evaluation_loader(dataset, arguments.batch, workers=0 if detector.device.type == "cpu" else None)
    predictions = collect_stages(
        detector.model, loader, dataset, device=detector.device, limit=arguments.limit,
        progress=lambda done, total: notice(f"{done} of {total} images"),
    )  # fmt: skip
    analysis = analyse_run(
        name, predictions, dataset.ground_truth(), dataset.names, dataset.category_ids,
        bootstrap=arguments.bootstrap, notice=notice,
    )  # fmt: skip
    return analysis, dataset


def _report_run(analysis: Any, folder: Path, points: Any) -> Any:
    """With the training's curves, if its folder has any."""
    from recollect.analysis.curves import read_curves
    from recollect.analysis.report import ReportRun

    has_curves = folder.is_dir() and (folder / "metrics.csv").is_file()
    return ReportRun(analysis, read_curves(folder) if has_curves else {}, points)
