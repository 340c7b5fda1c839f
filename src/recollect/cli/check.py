"""`recollect check`: the dataset doctor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import Progress


@dataclass(frozen=True)
class Arguments:
    """Examine a dataset: files, boxes, classes, duplicates. Exit code 1 if anything forbids training."""

    data: tyro.conf.Positional[Path]
    """Folder in COCO, Pascal VOC or YOLO layout, a COCO JSON file, or a YOLO data.yaml."""
    val: Path | None = None
    """The val split, if it is not beside train."""
    format: str | None = None
    """coco, voc or yolo; found by looking if not given."""
    model: str | None = None
    """Examine for this detector: its number of queries and the size it is fed."""
    fix: Path | None = None
    """Write a repaired copy into this new folder, with changes.txt."""
    html: Path | None = None
    """Write a page with statistics and pictures of the worst findings."""
    json: Path | None = None
    """Write everything found."""
    annotations_only: bool = False
    """Do not read the image files."""
    examples: int = 3
    """Findings shown of each kind."""
    workers: int | None = None
    """Threads that read images."""


def run(arguments: Arguments) -> int:
    """Examine, print, write what was asked for."""
    from recollect.data.doctor import examine, fix_dataset, write_page

    queries, fed = asked_by(arguments.model) if arguments.model else (None, None)
    console = Console(highlight=False)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading annotations", total=None)
        report = examine(
            arguments.data,
            val=arguments.val,
            format=arguments.format,
            queries=queries,
            fed=fed,
            pictures=not arguments.annotations_only,
            workers=arguments.workers,
            progress=lambda split, done, total: bar.update(task, description=split, completed=done, total=total),
        )
    console.print(report.text(arguments.examples), markup=False, soft_wrap=True)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    if arguments.html is not None:
        arguments.html.parent.mkdir(parents=True, exist_ok=True)
        write_page(report, arguments.html)
        console.print(f"page: {arguments.html}", markup=False)
    if arguments.fix is not None:
        changes = fix_dataset(report, arguments.fix)
        console.print(f"repaired copy: {arguments.fix} ({len(changes)} changes, listed in changes.txt)", markup=False)
    return 1 if report.errors else 0


def asked_by(model: str) -> tuple[int | None, tuple[int, int]]:
    """(queries, (short, long) sides fed) of a registered detector; queries is None if it has none."""
    import inspect

    import recollect.detectors  # noqa: F401  registers them
    from recollect.registry import model_entry

    entry = model_entry(model)
    queries = None
    for function in (entry.build, entry.like):
        parameter = inspect.signature(function).parameters.get("num_queries") if function is not None else None
        if queries is None and parameter is not None and isinstance(parameter.default, int):
            queries = parameter.default
    resize = entry.recipe().data.resize
    return queries, (max(resize.short), resize.long)
