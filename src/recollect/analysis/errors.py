"""Errors by kind (TIDE), confusion matrix, precision-recall curves, calibration, best and worst images: by hotcoco."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from recollect.evaluation import CocoMetrics

KINDS = {
    "Cls": "classification",
    "Loc": "localisation",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


@dataclass(frozen=True)
class Errors:
    """What kind of errors cost how much, at IoU 0.5.

    kinds: TIDE (Bolya et al. 2020): name -> `ap` gained if that kind were mended, and the `count`.
    confusion: [K + 1, K + 1] counts of detections above `confusion_score`; rows are objects, columns detections, the
        last row and column background. names: of its K classes.
    curves: name of a class, or "all classes" -> 101 precisions at recalls 0..1 at IoU 0.5; NaN without objects.
    curve_thresholds: the same averaged over classes, per IoU threshold.
    calibration: bins with `score` (mean), `accuracy`, `count`; calibration_error: their weighted distance (ECE).
    images: image id -> tp, fp, fn, f1 at score 0.5.
    """

    kinds: dict[str, dict[str, float]]
    confusion: np.ndarray
    names: list[str]
    confusion_score: float
    curves: dict[str, list[float]]
    curve_thresholds: dict[str, list[float]]
    calibration: list[dict[str, float]]
    calibration_error: float
    images: dict[int, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        """Plain data; null for what does not exist."""

        def curve(values: list[float]) -> list[float | None]:
            return [None if math.isnan(v) else v for v in values]

        return {
            "kinds": self.kinds,
            "confusion": {"names": self.names, "score": self.confusion_score, "matrix": self.confusion.tolist()},
            "precision_recall": {name: curve(values) for name, values in self.curves.items()},
            "precision_recall_by_iou": {name: curve(values) for name, values in self.curve_thresholds.items()},
            "calibration": {"bins": self.calibration, "error": self.calibration_error},
        }


def error_breakdown(metrics: CocoMetrics, *, confusion_score: float = 0.3) -> Errors:
    """Everything hotcoco knows about the errors behind `metrics`, which `evaluate_coco` made."""
    evaluator = metrics.evaluator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tide = evaluator.tide_errors()
        confusion = evaluator.confusion_matrix(iou_thr=0.5, min_score=confusion_score)
        calibration = evaluator.calibration(n_bins=10, iou_threshold=0.5)
        images = evaluator.image_diagnostics(iou_thr=0.5, score_thr=0.5)["img_summary"]
    kinds = {
        name: {"ap": float(tide["delta_ap"][key]), "count": int(tide["counts"][key])} for key, name in KINDS.items()
    }
    limit = list(evaluator.params.max_dets).index(metrics.max_detections)
    precision = np.asarray(evaluator.eval["precision"])[:, :, :, 0, limit].astype(np.float64)
    precision[precision < 0] = math.nan
    thresholds = np.asarray(evaluator.params.iou_thrs)
    at = int(np.argmin(np.abs(thresholds - 0.5)))
    curves = {"all classes": _mean(precision[at])}
    curves |= {name: precision[at, :, k].tolist() for k, name in enumerate(metrics.per_class)}
    by_iou = {f"{t:.2f}": _mean(precision[i]) for i, t in enumerate(thresholds)}
    bins = [
        {"score": float(b["avg_confidence"]), "accuracy": float(b["avg_accuracy"]), "count": int(b["count"])}
        for b in calibration["bins"]
    ]
    return Errors(
        kinds,
        np.asarray(confusion["matrix"]).astype(np.int64),
        list(confusion["cat_names"]),
        confusion_score,
        curves,
        by_iou,
        bins,
        float(calibration["ece"]),
        {int(image): {k: float(row[k]) for k in ("tp", "fp", "fn", "f1")} for image, row in images.items()},
    )


def _mean(precision: np.ndarray) -> list[float]:
    """[101, K] with NaN for classes without objects -> 101 means over the others."""
    known = ~np.isnan(precision)
    count = known.sum(1)
    total = np.where(known, precision, 0).sum(1)
    return np.divide(total, count, out=np.full(len(total), math.nan), where=count > 0).tolist()
