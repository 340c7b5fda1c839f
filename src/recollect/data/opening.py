"""Opens a dataset whatever its format, by looking at it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recollect.data import coco, voc, yolo
from recollect.data.annotations import Annotations
from recollect.data.checks import check_annotations
from recollect.data.classes import match_names
from recollect.data.dataset import DetectionDataset
from recollect.data.findings import DataError, Finding, refuse
from recollect.data.repair import repair_annotations
from recollect.data.wrapping import WrappedDataset

FORMATS = ("coco", "voc", "yolo")
COMMON_SPLITS = ("train", "val", "test")


def open_dataset(
    path: Any,
    split: str = "train",
    *,
    format: str | None = None,
    names: Sequence[str] | None = None,
    images: str | Path | None = None,
    masks: bool = False,
    repair: bool = False,
) -> DetectionDataset:
    """Open one split of a dataset.

    path: a folder in COCO, Pascal VOC or YOLO layout, a COCO JSON file, a YOLO data.yaml, or a torch Dataset whose
    items are (image, target), which needs `names`.
    split: "train", "val", or any other name that the dataset uses.
    format: "coco", "voc" or "yolo"; found by looking if not given.
    names: the classes that labels shall mean, in that order, for example those of train or of a checkpoint.
    images: the folder of the pictures, where it is not found.
    masks: read masks too; they are decoded when an item is read.
    repair: mend what can be mended (`recollect check --fix` does the same, to a copy) instead of refusing.
    DataError, naming file, item, value and remedy, for anything that would spoil a training later.
    """
    if not isinstance(path, (str, Path)):
        return WrappedDataset(path, names or [])
    annotations, findings = read_annotations(path, split, format=format, images=images, masks=masks)
    findings = [*findings, *check_annotations(annotations)]
    if repair:
        annotations, _ = repair_annotations(annotations, findings)
        findings = check_annotations(annotations)
    refuse(findings, path)
    if names is not None:
        annotations = match_names(annotations, names)
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
    found = locate(path, split, format)
    if found is None:
        raise DataError(_nothing_found(path, split, format))
    format, place = found
    if format == "coco":
        return coco.read(place, images=folder, masks=masks)
    if format == "voc":
        return voc.read(place, images=folder, masks=masks)
    return yolo.read(place, split, images=folder, masks=masks)


def locate(path: Path, split: str, format: str | None = None) -> tuple[str, Path] | None:
    """(format, where it stands) of a split; None if the dataset holds no such split."""
    if path.is_file():
        by_suffix = {".json": "coco", ".yaml": "yolo", ".yml": "yolo", ".txt": "voc"}.get(path.suffix.lower(), "coco")
        return format or by_suffix, path
    for name, reader in (("coco", coco), ("voc", voc), ("yolo", yolo)):
        if format in (None, name) and (place := reader.find(path, split)) is not None:
            return name, place
    return None


def splits_of(path: Path, format: str | None = None) -> list[str]:
    """Which of train, val and test the dataset holds. A single COCO file counts as train."""
    if path.is_file() and path.suffix.lower() not in (".yaml", ".yml"):
        return ["train"]
    if path.is_file():
        return [s for s in COMMON_SPLITS if s in {"val" if k == "valid" else k for k in yolo.splits(path.parent)}]
    return [split for split in COMMON_SPLITS if locate(path, split, format) is not None]


def _nothing_found(path: Path, split: str, format: str | None) -> str:
    others = [s for s in splits_of(path, format) if s != split]
    if others:
        return f"{path}: holds no {split!r} split, but {', '.join(others)}"
    lists = sorted({*voc.splits(path), *yolo.splits(path)})
    if lists:
        return f"{path}: holds no {split!r} split, but {', '.join(lists)}"
    wanted = {
        "coco": f"instances_{split}.json or annotations/instances_{split}*.json (COCO)",
        "voc": f"Annotations/*.xml with ImageSets/Main/{split}.txt (Pascal VOC)",
        "yolo": f"data.yaml, or images/{split} with labels/{split} (YOLO)",
    }
    return f"{path}: no {split!r} split found; looked for " + ", ".join(
        v for k, v in wanted.items() if format in (None, k)
    )
