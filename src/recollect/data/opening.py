"""Opens a dataset whatever its format, by looking at it."""

from __future__ import annotations

from pathlib import Path

from recollect.data import coco
from recollect.data.annotations import Annotations
from recollect.data.checks import check_annotations
from recollect.data.dataset import DetectionDataset
from recollect.data.findings import DataError, Finding, refuse

FORMATS = ("coco",)


def open_dataset(
    path: str | Path,
    split: str = "train",
    *,
    format: str | None = None,
    images: str | Path | None = None,
    masks: bool = False,
) -> DetectionDataset:
    """Open one split of a dataset: a folder, or a COCO JSON file.

    split: "train", "val", or any other name that the dataset uses. format: "coco"; found by looking if not given.
    images: the folder of the pictures, where it is not found. masks: read masks too, decoded when an item is read.
    DataError, naming file, item, value and remedy, for anything that would spoil a training later.
    """
    annotations, findings = read_annotations(path, split, format=format, images=images, masks=masks)
    refuse([*findings, *check_annotations(annotations)], path)
    return DetectionDataset(annotations, masks=masks)


def read_annotations(
    path: str | Path,
    split: str = "train",
    *,
    format: str | None = None,
    images: str | Path | None = None,
    masks: bool = False,
) -> tuple[Annotations, list[Finding]]:
    """Like `open_dataset`, but hand over the arrays and all findings instead of refusing."""
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise DataError(f"there is no dataset format {format!r}; known are {', '.join(FORMATS)}")
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    folder = Path(images) if images is not None else None
    if path.is_file():
        return coco.read(path, images=folder, masks=masks)
    found = coco.find(path, split)
    if found is not None:
        return coco.read(found, images=folder, masks=masks)
    raise DataError(f"{path}: no {split!r} split found: neither instances_{split}.json nor annotations/ in COCO format")
