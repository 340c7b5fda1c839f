"""Mends annotations as far as that needs no person, and says what it changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from recollect.data.annotations import Annotations
from recollect.data.findings import KINDS, Finding

DROPPED_OBJECTS = {"box-not-finite", "box-empty", "box-outside", "box-duplicate"}
DROPPED_IMAGES = {"file-missing", "file-empty", "file-unreadable", "file-truncated", "annotation-unreadable"}
DROPPED_IMAGES |= {"image-in-both"}


def repair_annotations(annotations: Annotations, findings: Sequence[Finding]) -> tuple[Annotations, list[str]]:
    """A mended copy, and one line per change.

    findings are those of this split, with `row` or `image` counted in `annotations`. Entries that the reader could
    not place at all are gone already; they are listed too.
    """
    boxes = annotations.boxes.copy()
    keep_row = np.ones(annotations.num_objects, dtype=bool)
    keep_image = np.ones(len(annotations), dtype=bool)
    owner = annotations.images_of_rows()
    changes: list[str] = []
    broken: list[int] = []
    for finding in findings:
        if finding.row is not None and finding.kind in {"box-not-finite", "mask-box-differ"}:
            done = _box_from_mask(annotations, boxes, finding.row, int(owner[finding.row]))
            if not done and finding.kind == "box-not-finite":
                keep_row[finding.row] = False
            change = "box taken from its mask" if done else "dropped"
        elif finding.row is not None and finding.kind in DROPPED_OBJECTS:
            keep_row[finding.row] = False
            change = "dropped"
        elif finding.row is not None and finding.kind == "box-inverted":
            boxes[finding.row, :2] += np.minimum(boxes[finding.row, 2:], 0)
            boxes[finding.row, 2:] = np.abs(boxes[finding.row, 2:])
            change = "corners swapped"
        elif finding.row is not None and finding.kind == "mask-broken":
            broken.append(finding.row)
            change = "mask dropped"
        elif finding.image is not None and finding.kind in DROPPED_IMAGES:
            keep_image[finding.image] = False
            change = KINDS[finding.kind].fix
        elif (
            KINDS[finding.kind].fix and finding.row is None and (finding.image is None or finding.kind == "size-wrong")
        ):
            change = KINDS[finding.kind].fix
        else:
            continue
        changes.append(f"{finding}: {change}")
    packed = annotations.segmentations
    mended = replace(annotations, boxes=boxes, segmentations=packed and packed.without(broken))
    changes += _clip(mended, keep_row, findings)
    mended = mended.select(np.flatnonzero(keep_image), keep_row)
    if len(mended.ids) and (int(mended.ids.min()) < 1 or len(np.unique(mended.ids)) < len(mended.ids)):
        mended = replace(mended, ids=np.arange(1, len(mended.ids) + 1))
    return mended, changes


def _clip(annotations: Annotations, keep: np.ndarray, findings: Sequence[Finding]) -> list[str]:
    """Clip boxes to images of known size, in place; what is empty afterwards is marked for dropping."""
    boxes, owner = annotations.boxes, annotations.images_of_rows()
    limits = np.stack((annotations.widths[owner], annotations.heights[owner]), 1).astype(np.float64)
    known = (limits > 0).all(1) & np.isfinite(boxes).all(1) & keep
    low = boxes[:, :2].clip(0)
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], limits)
    moved = known & ((low != boxes[:, :2]).any(1) | (boxes[:, :2] + boxes[:, 2:] > limits).any(1))
    boxes[moved] = np.concatenate((low, high - low), 1)[moved]
    keep &= ~(known & (boxes[:, 2:] <= 0).any(1))
    told = {f.row: f for f in findings if f.kind == "box-beyond"}
    changes = [f"{finding}: clipped" for row, finding in told.items() if moved[row]]
    slight = int(moved.sum()) - len(changes)
    if slight:
        changes.append(f"{annotations.file}: {slight} boxes that reached less than a pixel beyond their image: clipped")
    return changes


def _box_from_mask(annotations: Annotations, boxes: np.ndarray, row: int, image: int) -> bool:
    if annotations.segmentations is None:
        return False
    try:
        size = int(annotations.heights[image]), int(annotations.widths[image])
        mask = annotations.segmentations.decode(row, *size)
    except ValueError:
        return False
    if mask is None or not mask.any():
        return False
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    boxes[row] = columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
    return True
