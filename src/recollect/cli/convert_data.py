"""`recollect convert-data`: a dataset in another format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console


@dataclass(frozen=True)
class Arguments:
    """Write a dataset in another format, images copied: `recollect convert-data birds birds-yolo --to yolo`."""

    data: tyro.conf.Positional[Path]
    """Folder in COCO, Pascal VOC or YOLO layout, a COCO JSON file, or a YOLO data.yaml."""
    out: tyro.conf.Positional[Path]
    """New folder."""
    to: str = "coco"
    """coco, voc or yolo."""
    format: str | None = None
    """What the dataset is; found by looking if not given."""


def run(arguments: Arguments) -> int:
    """Convert, and say what the new format cannot hold."""
    from recollect.data import convert_dataset

    done = convert_dataset(arguments.data, arguments.out, arguments.to, source_format=arguments.format)
    console = Console(highlight=False)
    for split, images in done.images.items():
        console.print(f"{split}: {images} images, {done.objects[split]} objects", markup=False)
    for loss in done.lost:
        console.print(f"lost: {loss}", markup=False)
    console.print(f"{done.format} dataset: {arguments.out}", markup=False)
    return 0
