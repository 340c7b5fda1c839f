"""`recollect eval`: COCO metrics of a trained detector, or of a file of predictions."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from recollect.evaluation import CocoMetrics, evaluate_coco, evaluate_proposals, evaluate_voc, percent


@dataclass(frozen=True)
class Arguments:
    """Measure a run on a dataset (`eval RUN --data DIR`) or COCO results (`eval --predictions FILE --truth FILE`)."""

    run: tyro.conf.Positional[Path | None] = None
    """Run folder or weights file."""
    data: str | None = None
    """Dataset: a folder, or a COCO JSON file."""
    split: str = "val"
    """Which split of the dataset."""
    predictions: Path | None = None
    """COCO results: a JSON list with image_id, category_id, bbox, score."""
    truth: Path | None = None
    """COCO ground truth, a JSON file."""
    json: Path | None = None
    """Write all numbers to this file."""
    stages: bool = False
    """Also every decoder stage alone."""
    per_class: bool = False
    """Also a table of all classes."""
    iou: tuple[float, ...] = ()
    """AP over these IoU thresholds, instead of 0.50:0.05:0.95."""
    classes: tuple[str, ...] = ()
    """Score only these classes."""
    voc: Literal["area", "07"] | None = None
    """Also Pascal VOC's mAP at IoU 0.5: area under the curve, or the eleven points of 2007."""
    recall_at: tuple[int, ...] = ()
    """Also the average recall, whatever the class, of so many detections per image (for proposals)."""
    batch: int = 1
    """Images per pass."""
    max_detections: int = 100
    """Detections that count per image and class; the detector keeps as many per image."""
    masks: bool = False
    """Score masks instead of boxes."""
    proposals: Path | None = None
    """Proposals for Fast R-CNN: a file that `recollect predict RPN_RUN IMAGES --proposals FILE` wrote."""


def run(arguments: Arguments) -> int:
    """Measure and print."""
    console = Console(highlight=False)
    if arguments.voc is not None and arguments.masks:
        raise ValueError("--voc scores boxes: leave out --masks")
    metrics = _metrics(arguments, console)
    all_classes = metrics
    if arguments.iou or arguments.classes:
        metrics = metrics.rescored(iou_thresholds=arguments.iou or None, classes=arguments.classes or None)
    data = metrics.to_json()
    console.print(metrics.table())
    if arguments.per_class:
        console.print(metrics.table(per_class=True))
    if arguments.voc is not None:
        voc = evaluate_voc(*all_classes.inputs(), method=arguments.voc, classes=arguments.classes or None)
        data["voc"] = voc.to_json()
        console.print(f"VOC mAP ({arguments.voc}, IoU 0.5): {percent(voc.mean)}")
    if arguments.recall_at:
        data["recall"] = evaluate_proposals(
            *all_classes.inputs(), limits=arguments.recall_at, iou_type=metrics.iou_type
        )
        console.print(", ".join(f"{name} {percent(value)}" for name, value in data["recall"].items()))
        data["recall"] = {k: None if math.isnan(v) else v for k, v in data["recall"].items()}
    for note in metrics.notes:
        console.print(note, markup=False)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 0


def _metrics(arguments: Arguments, console: Console) -> CocoMetrics:
    if arguments.predictions is not None or arguments.truth is not None:
        if arguments.predictions is None or arguments.truth is None or arguments.run is not None:
            raise ValueError("give --predictions FILE and --truth FILE together, without a run")
        return evaluate_coco(
            read_json(arguments.truth, dict, "a COCO ground truth"),
            read_json(arguments.predictions, list, "a list of COCO results"),
            max_detections=arguments.max_detections,
            iou_type="segm" if arguments.masks else "bbox",
        )
    if arguments.run is None or arguments.data is None:
        raise ValueError("give a run and --data DIR, or --predictions FILE and --truth FILE")
    from recollect.api import evaluate

    with console.status("evaluating") as status:
        return evaluate(
            arguments.run, arguments.data, split=arguments.split, stages=arguments.stages, batch=arguments.batch,
            max_detections=arguments.max_detections, masks=arguments.masks, proposals=arguments.proposals,
            progress=lambda done, total: status.update(f"evaluating: {done} of {total} images"),
        )  # fmt: skip


def read_json(path: Path, kind: type, what: str) -> Any:
    """The contents of a JSON file; ValueError naming it if it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} is not {what}: it holds a {type(content).__name__}")
    return content
