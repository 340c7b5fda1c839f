"""What is odd about the objects of one split, beyond what forbids reading it."""

from __future__ import annotations

import numpy as np

from recollect.data.annotations import Annotations
from recollect.data.checks import box_finding
from recollect.data.findings import Finding
from recollect.data.masks import NONE, POLYGONS

NEAR_IOU = 0.9
TINY = 2.0  # pixels
UNUSUAL = 5.0  # standard deviations, of the logarithm of the size within its class


def object_findings(
    annotations: Annotations,
    *,
    queries: int | None = None,
    fed: tuple[int, int] | None = None,
) -> list[Finding]:
    """Duplicates, sizes and counts, and masks that do not fit.

    queries: how many objects the model can find in an image. fed: (short, long) sides that images are resized to.
    """
    findings = [*_sizes(annotations, fed), *_unusual(annotations), *_duplicates(annotations), *_masks(annotations)]
    counts = np.bincount(annotations.images_of_rows()[~annotations.crowd], minlength=len(annotations))
    if queries is not None and (counts > queries).any():
        worst = int(counts.argmax())
        value = f"{counts[worst]} objects in {annotations.paths[worst]!r}, {queries} queries"
        many = int((counts > queries).sum())
        findings.append(Finding("too-many-objects", annotations.source(worst), value, image=worst, count=many))
    bare = int((np.diff(annotations.offsets) == 0).sum())
    if bare:
        findings.append(Finding("image-no-objects", annotations.file, f"{bare} of {len(annotations)}", count=bare))
    paths, repeats = np.unique(np.array(list(annotations.paths)), return_counts=True)
    findings += [Finding("image-listed-twice", annotations.file, repr(str(p))) for p in paths[repeats > 1]]
    return findings


def _sizes(annotations: Annotations, fed: tuple[int, int] | None) -> list[Finding]:
    boxes, owner = annotations.boxes, annotations.images_of_rows()
    size = np.stack((annotations.widths[owner], annotations.heights[owner]), 1).astype(np.float64)
    area = size.prod(1)
    solid = np.isfinite(boxes).all(1) & (boxes[:, 2:] > 0).all(1) & ~annotations.crowd
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(area > 0, boxes[:, 2] * boxes[:, 3] / area, 0)
        longest, shortest = size.max(1), size.min(1)
        scale = np.ones(len(boxes)) if fed is None else np.minimum(fed[0] / shortest, fed[1] / longest)
    thin = boxes[:, 2:].min(1, initial=np.inf)
    tiny = solid & (thin < TINY)
    kinds = {
        "box-whole-image": solid & (share >= 0.995),
        "box-huge": solid & (share >= 0.95) & (share < 0.995),
        "box-tiny": tiny,
        "box-tiny-fed": solid & ~tiny & (area > 0) & (thin * scale < TINY),
    }
    return [box_finding(annotations, int(row), kind) for kind, mask in kinds.items() for row in np.flatnonzero(mask)]


def _unusual(annotations: Annotations, most: int = 10) -> list[Finding]:
    """Per class, the boxes whose size is far from that of the others: often a slip in the class."""
    findings = []
    solid = np.isfinite(annotations.boxes).all(1) & (annotations.boxes[:, 2:] > 0).all(1) & ~annotations.crowd
    for label in range(len(annotations.names)):
        rows = np.flatnonzero(solid & (annotations.labels == label))
        if len(rows) < 30:
            continue
        size = np.log(annotations.boxes[rows, 2:].prod(1)) / 2
        middle = np.median(size)
        spread = max(1.4826 * float(np.median(np.abs(size - middle))), 0.05)  # as a standard deviation, but robust
        off = np.abs(size - middle) / spread
        for place in np.argsort(-off)[:most]:
            if off[place] > UNUSUAL:
                usual = f", {annotations.names[label]!r}s have a side of {np.exp(middle):.3g} px as a rule"
                findings.append(box_finding(annotations, int(rows[place]), "box-size-unusual", usual))
    return findings


def _duplicates(annotations: Annotations) -> list[Finding]:
    findings = []
    for image in np.flatnonzero(np.diff(annotations.offsets) > 1):
        rows = annotations.rows(int(image))
        place = np.arange(rows.start, rows.stop)
        low, size = annotations.boxes[rows, :2], annotations.boxes[rows, 2:]
        usable = np.isfinite(annotations.boxes[rows]).all(1) & (size > 0).all(1) & ~annotations.crowd[rows]
        place, low, size = place[usable], low[usable], size[usable]
        high = low + size
        overlap = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
        shared = overlap.clip(0).prod(-1)
        area = size.prod(-1)
        iou = shared / (area[:, None] + area - shared)
        for a, b in zip(*np.nonzero(np.triu(iou > NEAR_IOU, 1))):
            one, two = int(place[a]), int(place[b])
            same_box = bool((annotations.boxes[one] == annotations.boxes[two]).all())
            same_class = annotations.labels[one] == annotations.labels[two]
            names = [repr(annotations.names[annotations.labels[row]]) for row in (one, two)]
            if same_class:
                kind, remark = "box-duplicate" if same_box else "box-near-duplicate", names[0]
            elif iou[a, b] > 0.98:
                kind, remark = "box-two-classes", " and ".join(names)
            else:
                continue
            other = one - rows.start + 1 if annotations.format != "coco" else int(annotations.ids[one])
            remark = f", {remark}, IoU {iou[a, b]:.3f} with annotation {other}"
            findings.append(box_finding(annotations, two, kind, remark))
    return findings


def _masks(annotations: Annotations) -> list[Finding]:
    """Masks that cannot be decoded, or whose extent is not the box."""
    packed = annotations.segmentations
    if packed is None:
        return []
    findings = []
    owner = annotations.images_of_rows()
    for row in np.flatnonzero(packed.kinds != NONE):
        height, width = int(annotations.heights[owner[row]]), int(annotations.widths[owner[row]])
        if packed.kinds[row] == POLYGONS:
            points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in packed.coco(int(row))])
            extent = np.concatenate((points.min(0), points.max(0)))
        else:
            try:
                if not height or not width:
                    height, width = packed.sizes[row].tolist()
                mask = packed.decode(int(row), height, width)
            except ValueError as error:
                findings.append(box_finding(annotations, int(row), "mask-broken", f": {error}"))
                continue
            if mask is None or not mask.any():
                findings.append(box_finding(annotations, int(row), "mask-broken", ": it is empty"))
                continue
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
        box = annotations.boxes[row]
        corners = np.concatenate((box[:2], box[:2] + box[2:]))
        allowed = np.maximum(2.0, 0.05 * np.tile(box[2:].clip(0), 2))
        if np.isfinite(box).all() and (np.abs(extent - corners) > allowed).any():
            told = ", ".join(format(float(v), ".6g") for v in extent)
            findings.append(box_finding(annotations, int(row), "mask-box-differ", f"; its mask spans {told}"))
    return findings
