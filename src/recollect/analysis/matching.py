"""COCO's greedy matching of detections to objects, for all images and stages at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recollect.analysis.predictions import Objects, box_iou

UNMATCHED, IGNORED = -1, -2


@dataclass(frozen=True)
class Candidates:
    """Pairs of a detection and an object of its class with enough overlap, in the order in which COCO considers them.

    Detections count flat over [I, S, R] (R of them per image and stage). Crowd objects come apart.
    row, object, overlap: [E]. crowd_row, crowd_overlap: [F].
    shape: (I, S, R). over_limit: [I, S, R] bool, detections beyond the limit per image and class, or None.
    """

    row: np.ndarray
    object: np.ndarray
    overlap: np.ndarray
    crowd_row: np.ndarray
    crowd_overlap: np.ndarray
    shape: tuple[int, int, int]
    over_limit: np.ndarray | None


def find_candidates(
    scores: np.ndarray,
    labels: np.ndarray,
    boxes: np.ndarray,
    objects: Objects,
    minimum: float = 0.5,
    max_detections: int = 300,
) -> Candidates:
    """Pairs of same class with IoU >= `minimum`.

    scores, labels: [I, S, R]. boxes: [I, S, R, 4] xyxy. max_detections: per image, stage and class, the best by score.
    COCO's order: by score descending (the earlier row among equals), then by IoU descending (the later object among
    equals).
    """
    images, stages, count = scores.shape
    flat_labels, flat_boxes = labels.reshape(images, -1), boxes.reshape(images, -1, 4)
    rows, found, overlaps = [], [], []
    step = max(1, 4_000_000 // max(1, stages * count))
    for start in range(0, len(objects.image), step):
        image = objects.image[start : start + step]
        place, row = np.nonzero(flat_labels[image] == objects.label[start : start + step, None])
        index = place + start
        overlap = box_iou(flat_boxes[image[place], row], objects.xywh[index], objects.crowd[index])
        enough = overlap >= min(minimum, 1 - 1e-10)
        rows.append((image[place] * stages * count + row)[enough])
        found.append(index[enough])
        overlaps.append(overlap[enough])
    row = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    index = np.concatenate(found) if found else np.zeros(0, np.int64)
    overlap = np.concatenate(overlaps) if overlaps else np.zeros(0)
    over_limit = _over_limit(scores, labels, max_detections)
    if over_limit is not None:
        keep = ~over_limit.ravel()[row]
        row, index, overlap = row[keep], index[keep], overlap[keep]
    crowd = objects.crowd[index]
    order = np.lexsort((-index, -overlap, row, -scores.ravel()[row]))
    order = order[~crowd[order]]
    return Candidates(
        row[order], index[order], overlap[order], row[crowd], overlap[crowd], (images, stages, count), over_limit
    )


def _over_limit(scores: np.ndarray, labels: np.ndarray, limit: int) -> np.ndarray | None:
    images, stages, count = scores.shape
    if count <= limit:
        return None
    over = np.zeros(scores.shape, bool)
    for image in range(images):
        for stage in range(stages):
            order = np.lexsort((-scores[image, stage], labels[image, stage]))  # stable: earlier rows first
            sorted_labels = labels[image, stage, order]
            first = np.searchsorted(sorted_labels, sorted_labels)
            over[image, stage, order] = np.arange(count) - first >= limit
    return over


def match(candidates: Candidates, threshold: float) -> np.ndarray:
    """[I, S, R]: the object that each detection matches at this IoU, else UNMATCHED, or IGNORED.

    Ignored are detections in a crowd that match no ordinary object, and those over the limit.

    Going through the sorted pairs and taking each whose detection and object are both free is COCO's greedy matching.
    A pair that comes first for both its detection and its object is taken whatever happens elsewhere, so all such
    pairs are taken at once, and again among the pairs left: few rounds instead of a loop over detections.
    """
    _, stages, count = candidates.shape
    least = min(threshold, 1 - 1e-10)
    matched = np.full(int(np.prod(candidates.shape)), UNMATCHED, np.int64)
    if candidates.over_limit is not None:
        matched[candidates.over_limit.ravel()] = IGNORED

    enough = candidates.overlap >= least
    row, index = candidates.row[enough], candidates.object[enough]
    stage = row // count % stages
    rows, row_slot = np.unique(row, return_inverse=True)
    # an object can be matched once per stage
    _, object_slot = np.unique(index * stages + stage, return_inverse=True)
    row_taken, object_taken = np.zeros(len(rows), bool), np.zeros(object_slot.max(initial=-1) + 1, bool)
    first_of_row, first_of_object = np.empty(len(row_taken), np.int64), np.empty(len(object_taken), np.int64)
    pairs = np.arange(len(row))
    while len(pairs):
        r, o = row_slot[pairs], object_slot[pairs]
        first_of_row[r] = first_of_object[o] = len(row)
        np.minimum.at(first_of_row, r, pairs)
        np.minimum.at(first_of_object, o, pairs)
        wins = (first_of_row[r] == pairs) & (first_of_object[o] == pairs)
        matched[row[pairs[wins]]] = index[pairs[wins]]
        row_taken[r[wins]] = object_taken[o[wins]] = True
        pairs = pairs[~row_taken[r] & ~object_taken[o]]

    in_crowd = candidates.crowd_row[candidates.crowd_overlap >= least]
    matched[in_crowd[matched[in_crowd] == UNMATCHED]] = IGNORED
    return matched.reshape(candidates.shape)
