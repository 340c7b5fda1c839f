"""Pascal VOC's mean average precision: one IoU threshold, area under the curve or the eleven points of 2007."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from recollect.evaluation.coco import check_results, chosen_categories, usable_ground_truth


@dataclass(frozen=True)
class VocMetrics:
    """mean: mAP over the classes that have objects, 0..1. per_class: class name -> AP, NaN without objects."""

    mean: float
    per_class: dict[str, float]
    iou: float
    method: str

    def to_json(self) -> dict[str, Any]:
        """Plain data; null where there is no object to find."""
        number = lambda v: None if math.isnan(v) else v  # noqa: E731
        per_class = {name: number(ap) for name, ap in self.per_class.items()}
        return {"mAP": number(self.mean), "iou": self.iou, "method": self.method, "per_class": per_class}


def evaluate_voc(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    iou: float = 0.5,
    method: Literal["area", "07"] = "area",
    inclusive_pixels: bool = False,
    classes: Sequence[str] | None = None,
) -> VocMetrics:
    """Mean average precision as the VOC development kit computes it.

    A detection answers for the object of its class that it overlaps most; if another, surer one has taken that object
    it is false, even if it overlaps a second object enough. Objects marked `difficult` (or crowds) count nowhere.

    ground_truth, results: COCO dicts, boxes [x, y, width, height] in continuous coordinates.
    method: "area" under the curve (VOC 2010 on) or "07", the mean of eleven points.
    inclusive_pixels: reckon IoU as the kit does for whole-number corners that belong to the box: sides are one longer.
    Raises ValueError as `evaluate_coco` does.
    """
    if method not in ("area", "07"):
        raise ValueError(f"method must be 'area' or '07', not {method!r}")
    if not 0 < iou <= 1:
        raise ValueError(f"the IoU threshold must lie above 0 and up to 1, found {iou}")
    truth, _ = usable_ground_truth(ground_truth)
    check_results(results, truth)
    objects: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for annotation in truth["annotations"]:
        objects[annotation["category_id"], annotation["image_id"]].append(annotation)
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        found[result["category_id"]].append(result)
    per_class = {}
    for category in chosen_categories(truth, classes):
        mine = {image: rows for (c, image), rows in objects.items() if c == category["id"]}
        per_class[category["name"]] = _class_ap(mine, found[category["id"]], iou, method, float(inclusive_pixels))
    known = [ap for ap in per_class.values() if not math.isnan(ap)]
    return VocMetrics(float(np.mean(known)) if known else math.nan, per_class, iou, method)


def _class_ap(
    objects: dict[int, list[dict[str, Any]]], found: list[dict[str, Any]], iou: float, method: str, extra: float
) -> float:
    boxes = {image: np.array([a["bbox"] for a in rows], np.float64) for image, rows in objects.items()}
    skipped = {i: [bool(a.get("difficult") or a.get("iscrowd")) for a in rows] for i, rows in objects.items()}
    taken = {image: [False] * len(rows) for image, rows in objects.items()}
    positives = sum(not s for rows in skipped.values() for s in rows)
    if not positives:
        return math.nan
    right = []
    for result in sorted(found, key=lambda r: -r["score"]):
        image = result["image_id"]
        if image in boxes:
            overlaps = _overlaps(np.array(result["bbox"], np.float64), boxes[image], extra)
            best = int(overlaps.argmax())
            if overlaps[best] >= iou:
                if skipped[image][best]:
                    continue
                right.append(not taken[image][best])
                taken[image][best] = True
                continue
        right.append(False)
    if not right:
        return 0.0
    true = np.cumsum(right)
    recall, precision = true / positives, true / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if method == "07":
        points = [envelope[recall >= point][:1].sum() for point in np.arange(11) / 10]
        return float(sum(points) / 11)
    return float((np.diff(recall, prepend=0) * envelope).sum())


def _overlaps(box: np.ndarray, others: np.ndarray, extra: float) -> np.ndarray:
    """IoU of one xywh box with many; `extra` pixels are added to every side."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    overlap = (high - low + extra).clip(min=0).prod(1)
    union = (box[2:] + extra).prod() + (others[:, 2:] + extra).prod(1) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
