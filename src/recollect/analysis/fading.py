"""How later decoder stages spoil what earlier ones had right (SQR, CVPR 2023, section 3): rates and their detections.

At each stage every query gives one detection, its best class. Against the final stage's matches at IoU 0.75:
- a true positive **fades** if the same query with the same class was, at an earlier stage, at least as well placed
  on the same object and more confident;
- a false positive is **exacerbated** if the same query with the same class was, at an earlier stage, less confident
  and no match either, or else matched an object;
- a missed object is **recoverable** if any query matched it at an earlier stage with a score above 0.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from recollect.analysis.matching import UNMATCHED, Candidates, find_candidates, match
from recollect.analysis.predictions import Objects, StagePredictions, box_iou

COUNTS = ("tp", "fading", "fp", "exacerbated", "fn", "recoverable")
RATES = ("fading_rate", "exacerbation_rate", "recoverable_rate", "spoiled_rate")


@dataclass(frozen=True)
class Fading:
    """Counts per image, and which detections and objects they are.

    counts: [I, 6] in the order of COUNTS.
    matched: [I, S, N] the object of each query's detection at each stage, UNMATCHED or IGNORED.
    overlap: [I, N] IoU of the final true positives with their object, NaN elsewhere.
    fading, exacerbated: [I, N] bool over final detections. missed, recoverable: [T] bool over objects.
    better_stage: [I, N] the earlier stage (0-based) at which a fading detection was most confident, or an exacerbated
        one least (a stage where it matched counts as best of all); -1 elsewhere.
    """

    counts: np.ndarray
    matched: np.ndarray
    overlap: np.ndarray
    fading: np.ndarray
    exacerbated: np.ndarray
    missed: np.ndarray
    recoverable: np.ndarray
    better_stage: np.ndarray

    def totals(self) -> dict[str, int]:
        """Counts over all images."""
        return {name: int(n) for name, n in zip(COUNTS, self.counts.sum(0))}

    def rates(self) -> dict[str, float]:
        """Higher is worse. `spoiled_rate` is (exacerbated + recoverable) / (FP + FN). NaN where there is none."""
        return {name: float(v) for name, v in zip(RATES, rates(self.counts.sum(0)))}


def rates(counts: np.ndarray) -> np.ndarray:
    """[..., 6] counts in the order of COUNTS -> [..., 4] in the order of RATES, NaN for 0 / 0."""
    tp, fading, fp, exacerbated, fn, recoverable = np.moveaxis(counts.astype(np.float64), -1, 0)
    above = np.stack((fading, exacerbated, recoverable, exacerbated + recoverable), -1)
    below = np.stack((tp, fp, fn, fp + fn), -1)
    return np.divide(above, below, out=np.full_like(above, math.nan), where=below > 0)


def fading_analysis(
    predictions: StagePredictions,
    objects: Objects,
    *,
    threshold: float = 0.75,
    max_detections: int = 300,
    recoverable_score: float = 0.1,
    candidates: Candidates | None = None,
) -> Fading:
    """The rates of the SQR paper. `threshold`: IoU of the matching; `candidates`: pairs already found, to save time."""
    scores, labels, boxes = predictions.scores, predictions.labels, predictions.boxes
    images, stages, _ = scores.shape
    if candidates is None:
        candidates = find_candidates(scores, labels, boxes, objects, threshold, max_detections)
    matched = match(candidates, threshold)
    final, earlier = matched[:, -1], matched[:, :-1]
    same_class = labels[:, :-1] == labels[:, -1:]

    false = final == UNMATCHED
    was_right = same_class & (earlier >= 0)
    was_lower = same_class & (earlier == UNMATCHED) & (scores[:, :-1] < scores[:, -1:])
    exacerbated = false & (was_right | was_lower).any(1)

    image, query = np.nonzero(final >= 0)
    found = final[image, query]
    overlap = np.full(final.shape, math.nan)
    overlap[image, query] = box_iou(boxes[image, -1, query], objects.xywh[found])
    before = box_iou(boxes[image, :-1, query], objects.xywh[found][:, None])  # [TP, S - 1]
    was_better = (
        same_class[image, :, query]
        & (before >= overlap[image, query][:, None])
        & (scores[image, :-1, query] > scores[image, -1, query][:, None])
    )
    fading = np.zeros(final.shape, bool)
    fading[image, query] = was_better.any(1)

    ordinary = ~objects.crowd
    missed = ordinary.copy()
    missed[found] = False
    hit = np.zeros(len(missed), bool)
    hit[earlier[(earlier >= 0) & (scores[:, :-1] > recoverable_score)]] = True
    recoverable = missed & hit

    better = np.full(final.shape, -1)
    if stages > 1:
        confidence = np.where(was_better, scores[image, :-1, query], -np.inf)
        better[image, query] = np.where(was_better.any(1), confidence.argmax(1), -1)
        spoiled = np.where(was_right, -np.inf, np.where(was_lower, scores[:, :-1], np.inf)).argmin(1)
        better = np.where(exacerbated, spoiled, better)

    def per_image(where: np.ndarray) -> np.ndarray:
        return np.bincount(objects.image[where], minlength=images)

    counts = np.stack(
        (
            (final >= 0).sum(1),
            fading.sum(1),
            false.sum(1),
            exacerbated.sum(1),
            per_image(missed),
            per_image(recoverable),
        ),
        axis=1,
    )
    return Fading(counts, matched, overlap, fading, exacerbated, missed, recoverable, better)
