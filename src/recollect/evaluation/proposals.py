"""How many objects a set of proposals holds: average recall without regard to class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from recollect.evaluation.coco import IouType, check_results, run_hotcoco, usable_ground_truth


def evaluate_proposals(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    limits: Sequence[int] = (100, 300, 1000),
    iou_type: IouType = "bbox",
    iou_thresholds: Sequence[float] | None = None,
) -> dict[str, float]:
    """Average recall over IoU 0.50:0.95, at so many proposals per image, and by object size at the last limit.

    results: COCO results; their categories are not looked at (but must exist). Returns `AR@100`, ..., `ARs@1000`,
    `ARm@1000`, `ARl@1000`; NaN where there is no object of that size.
    """
    limits = sorted(set(limits))
    if not limits or limits[0] < 1:
        raise ValueError(f"limits must be numbers of proposals, found {limits}")
    truth, _ = usable_ground_truth(ground_truth, iou_type)
    check_results(results, truth, iou_type)
    evaluator = run_hotcoco(truth, results, iou_type, limits=limits, thresholds=iou_thresholds, by_class=False)
    recall = np.asarray(evaluator.eval["recall"])  # [thresholds, 1, sizes, limits]

    def mean(values: np.ndarray) -> float:
        found = values[values > -1]
        return float(found.mean()) if found.size else math.nan

    stats = {f"AR@{limit}": mean(recall[:, :, 0, i]) for i, limit in enumerate(limits)}
    sizes = {f"AR{s}@{limits[-1]}": mean(recall[:, :, i, -1]) for i, s in enumerate("sml", 1)}
    return {**stats, **sizes}
