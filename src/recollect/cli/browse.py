"""`recollect browse`: a picture of what a detector will be fed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Arguments:
    """Draw a grid of images as the detector's recipe feeds them: `recollect browse birds --model sqr_adamixer_r50`."""

    data: tyro.conf.Positional[Path]
    """Folder in COCO, Pascal VOC or YOLO layout, a COCO JSON file, or a YOLO data.yaml."""
    model: str | None = None
    """The detector whose training pipeline is shown; without it the images are shown as they are."""
    out: Path = Path("browse.png")
    """The picture."""
    split: str = "train"
    """train, val, or another split."""
    format: str | None = None
    """coco, voc or yolo; found by looking if not given."""
    evaluation: bool = False
    """Show the evaluation pipeline instead."""
    masks: bool = False
    """Show masks too."""
    count: int = 12
    """Images."""
    seed: int = 0
    """Which images, and how they are augmented."""


def run(arguments: Arguments) -> int:
    """Open, transform, draw."""
    from recollect.data import browse, evaluation_transform, open_dataset, training_transform

    if arguments.count < 1:
        raise ValueError(f"--count {arguments.count}: at least one image")
    dataset = open_dataset(arguments.data, arguments.split, format=arguments.format, masks=arguments.masks)
    transform = None
    if arguments.model is not None:
        import recollect.detectors  # noqa: F401  registers them
        from recollect.registry import model_entry

        data = model_entry(arguments.model).recipe().data
        transform = evaluation_transform(data) if arguments.evaluation else training_transform(data, dataset)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    file = browse(dataset.with_transform(transform), arguments.out, count=arguments.count, seed=arguments.seed)
    console = Console(highlight=False)
    console.print(dataset.describe(), markup=False, soft_wrap=True)
    console.print(f"picture: {file}", markup=False)
    return 0
