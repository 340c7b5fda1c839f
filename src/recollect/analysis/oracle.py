"""What each decoder stage would have been worth: AP per stage, the best-stage oracle, and which stage is best.

The oracle keeps the final stage's detections and matches, and gives every one the best score that its query, with the
same class, had at any stage: the lowest for a false positive, the highest for a true one. It knows the objects, so it
is an upper bound on re-ranking, not a method; missed objects stay missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recollect.analysis.average_precision import Ranking, average_precision, image_average_precision
from recollect.analysis.matching import UNMATCHED, find_candidates, match
from recollect.analysis.predictions import Objects, StagePredictions, box_iou

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10))


@dataclass(frozen=True)
class StageWorth:
    """AP per stage and of the oracle, each for every sample of images (sample 0: all images once).

    stage_ap: [S, samples]. oracle_ap: [samples].
    best_for_true, best_for_false: [I, S] final true and false positives at IoU 0.75 whose best score was that stage's
        (the final stage where no earlier one was better).
    best_for_image: [I] the stage with the highest AP on the image (the latest of equals), -1 without objects.
    image_ap: [I] of the final stage.
    matched: [I, D] object of each final detection at IoU 0.5.
    """

    stage_ap: np.ndarray
    oracle_ap: np.ndarray
    best_for_true: np.ndarray
    best_for_false: np.ndarray
    best_for_image: np.ndarray
    image_ap: np.ndarray
    matched: np.ndarray


def stage_worth(
    predictions: StagePredictions,
    objects: Objects,
    weights: np.ndarray | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> StageWorth:
    """Worth of every stage's best detections (`top_*`). weights: [samples, I] of a bootstrap; see StageWorth."""
    scores, labels, boxes = predictions.top_scores, predictions.top_labels, predictions.top_boxes
    images, stages, count = scores.shape
    candidates = find_candidates(scores, labels, boxes, objects, min(thresholds), count)
    matched = np.stack([match(candidates, t) for t in thresholds])  # [thresholds, I, S, D]
    image = np.repeat(np.arange(images), count)

    def ranking(stage: int) -> Ranking:
        flat = np.broadcast_to(scores[:, stage].reshape(1, -1), (len(thresholds), images * count))
        return Ranking(image, labels[:, stage].ravel(), flat, matched[:, :, stage].reshape(len(thresholds), -1))

    samples = np.ones((1, images)) if weights is None else np.concatenate((np.ones((1, images)), weights))
    rankings = [ranking(stage) for stage in range(stages)]
    stage_ap = np.stack([average_precision(r, objects, samples) for r in rankings])

    same = _same_pair(predictions)  # [S - 1, I * D]: place of the final detection's query and class there, or -1
    rescored = rankings[-1].scores.copy()
    best = np.full((len(thresholds), images * count), stages - 1)
    for index, threshold in enumerate(thresholds):
        final = rankings[-1].matched[index]
        for stage in range(stages - 1):
            there = same[stage]
            rows = np.flatnonzero((there >= 0) & (final >= UNMATCHED))
            place = there[rows]
            score = scores[image[rows], stage, place]
            found = final[rows]
            overlap = np.zeros(len(rows))
            true = found >= 0
            overlap[true] = box_iou(boxes[image[rows[true]], stage, place[true]], objects.xywh[found[true]])
            was_unmatched = matched[index, image[rows], stage, place] == UNMATCHED
            better = np.where(
                found == UNMATCHED,
                was_unmatched & (score < rescored[index, rows]),
                (overlap >= min(threshold, 1 - 1e-10)) & (score > rescored[index, rows]),
            )
            rescored[index, rows[better]] = score[better]
            best[index, rows[better]] = stage
    last = rankings[-1]
    oracle_ap = average_precision(Ranking(last.image, last.label, rescored, last.matched), objects, samples)

    at = int(np.argmin(np.abs(np.asarray(thresholds) - 0.75)))

    def per_stage(rows: np.ndarray) -> np.ndarray:
        flat = image[rows] * stages + best[at, rows]
        return np.bincount(flat, minlength=images * stages).reshape(images, stages)

    per_image = np.stack([image_average_precision(r, objects) for r in rankings])  # [S, I]
    latest_best = stages - 1 - np.nan_to_num(np.round(per_image, 9)[::-1], nan=-1).argmax(0)
    return StageWorth(
        stage_ap,
        oracle_ap,
        per_stage(np.flatnonzero(last.matched[at] >= 0)),
        per_stage(np.flatnonzero(last.matched[at] == UNMATCHED)),
        np.where(np.isnan(per_image[-1]), -1, latest_best),
        per_image[-1],
        matched[0, :, -1],
    )


def _same_pair(predictions: StagePredictions) -> np.ndarray:
    """[S - 1, I * D]: place of each final detection's query and class among an earlier stage's, -1 if not there."""
    labels, queries = predictions.top_labels.astype(np.int64), predictions.top_queries.astype(np.int64)
    images, stages, count = labels.shape
    classes, per_image = labels.max(initial=0) + 1, queries.max(initial=0) + 1
    key = (np.arange(images)[:, None, None] * per_image + queries) * classes + labels  # [I, S, D]
    wanted = key[:, -1].ravel()
    found = np.full((stages - 1, images * count), -1)
    for stage in range(stages - 1):
        there = key[:, stage].ravel()
        order = np.argsort(there)
        slot = np.minimum(np.searchsorted(there[order], wanted), len(there) - 1)
        hit = there[order][slot] == wanted
        found[stage, hit] = order[slot[hit]] % count
    return found
