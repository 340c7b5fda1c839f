"""What the arrays alone can tell is wrong: fast enough to run whenever a dataset is opened."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from recollect.data.annotations import Annotations
from recollect.data.findings import Finding

ROUNDING = 1.0  # boxes may reach this many pixels beyond the image: annotation tools round; the reader clips them


def check_annotations(annotations: Annotations) -> list[Finding]:
    """Errors that forbid training, as far as the annotation files alone show them."""
    if not len(annotations):
        return [Finding("dataset-empty", annotations.file)]
    if not annotations.num_objects:
        return [Finding("dataset-no-objects", annotations.file, f"{len(annotations)} images")]
    return [*check_boxes(annotations), *check_ids(annotations), *check_files(annotations)]


def check_ids(annotations: Annotations) -> list[Finding]:
    """Annotation ids that COCO scoring would trip over."""
    ids, counts = np.unique(annotations.ids, return_counts=True)
    findings = [
        Finding("annotation-id-twice", annotations.file, f"id {id}", annotation=int(id)) for id in ids[counts > 1]
    ]
    return findings + [Finding("annotation-id-zero", annotations.file, annotation=0) for _ in ids[ids == 0]]


def check_boxes(annotations: Annotations) -> list[Finding]:
    """Boxes that are no boxes, or not in the image. Sizes that the file does not declare are not looked at."""
    boxes, owner = annotations.boxes, annotations.images_of_rows()
    x, y, w, h = boxes.T
    finite = np.isfinite(boxes).all(1)
    inverted = finite & ((w < 0) | (h < 0))
    empty = finite & ~inverted & ((w == 0) | (h == 0))
    solid = finite & ~inverted & ~empty
    width, height = annotations.widths[owner], annotations.heights[owner]
    known = (width > 0) & (height > 0)
    outside = solid & known & ((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0))
    beyond = (x < -ROUNDING) | (y < -ROUNDING) | (x + w > width + ROUNDING) | (y + h > height + ROUNDING)
    beyond &= solid & known & ~outside
    kinds = [("box-not-finite", ~finite), ("box-inverted", inverted), ("box-empty", empty)]
    kinds += [("box-outside", outside), ("box-beyond", beyond)]
    found = [(row, kind) for kind, mask in kinds for row in np.flatnonzero(mask)]
    return [box_finding(annotations, int(row), kind) for row, kind in sorted(found)]


def box_finding(annotations: Annotations, row: int, kind: str, remark: str = "") -> Finding:
    """A finding about one object, with its box and image."""
    image = int(np.searchsorted(annotations.offsets, row, side="right") - 1)
    left, top, width, height = (format(float(v), ".6g") for v in annotations.boxes[row])
    size = f" of {annotations.widths[image]}x{annotations.heights[image]}" if annotations.widths[image] else ""
    numbered = annotations.format == "coco"  # elsewhere objects have no id, but a place in the image's own file
    value = f"left {left}, top {top}, width {width}, height {height} in image {annotations.paths[image]!r}{size}"
    return Finding(
        kind,
        annotations.source(image),
        value + remark,
        image=image,
        annotation=int(annotations.ids[row]) if numbered else row - int(annotations.offsets[image]) + 1,
        row=row,
    )


def check_files(annotations: Annotations) -> list[Finding]:
    """Image files that are not there. Lists each folder once instead of asking for every file."""
    by_folder: dict[str, list[int]] = defaultdict(list)
    names = list(annotations.paths)
    for index, name in enumerate(names):
        by_folder[os.path.dirname(name)].append(index)
    missing = []
    for folder, indices in by_folder.items():
        try:
            present = set(os.listdir(annotations.folder / folder))
        except OSError:
            present = set()
        missing += [i for i in indices if os.path.basename(names[i]) not in present]
    return [
        Finding("file-missing", str(annotations.path(i)), f"listed in {annotations.source(i)}", image=i)
        for i in missing
    ]


def find_image_folder(candidates: list[Path], paths: list[str]) -> Path:
    """The first candidate that holds one of the first few images; else the first that is a folder at all."""
    folders = [c for c in dict.fromkeys(candidates) if c.is_dir()]
    for folder in folders:
        if any(_is_file(folder / path) for path in paths[:5]):
            return folder
    return folders[0] if folders else candidates[0]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
