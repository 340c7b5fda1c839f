"""COCO's average precision from match flags, for resampled sets of images too.

hotcoco computes the official numbers; this exists because the oracle needs new scores under old match flags, and
bootstrap intervals need the AP of hundreds of resamplings. Without resampling both agree to 1e-12 (tested).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from recollect.analysis.matching import IGNORED
from recollect.analysis.predictions import Objects

RECALLS = np.linspace(0, 1, 101)
_CELLS = 4_000_000  # of the table of samples and detections that is in memory at once


@dataclass(frozen=True)
class Ranking:
    """Detections of one stage with their matches at some IoU thresholds.

    image, label: [D]. scores: [thresholds, D] (the same at every threshold unless re-ranked).
    matched: [thresholds, D] object, UNMATCHED or IGNORED.
    """

    image: np.ndarray
    label: np.ndarray
    scores: np.ndarray
    matched: np.ndarray


def bootstrap_weights(images: int, samples: int, seed: int = 0) -> np.ndarray:
    """[samples, I]: how often each image is drawn when as many as there are are drawn with replacement."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples).astype(np.float64)


def average_precision(ranking: Ranking, objects: Objects, weights: np.ndarray | None = None) -> np.ndarray:
    """[samples] COCO AP, mean over thresholds and classes with objects, under image weights [samples, I].

    Without weights one sample, every image once. NaN for a sample without an object.
    """
    if weights is None:
        weights = np.ones((1, objects.num_images))
    step = max(1, _CELLS // max(1, np.bincount(ranking.label, minlength=1).max()))
    parts = [_average_precision(ranking, objects, weights[i : i + step]) for i in range(0, len(weights), step)]
    return np.concatenate(parts)


def _average_precision(ranking: Ranking, objects: Objects, weights: np.ndarray) -> np.ndarray:
    ordinary = ~objects.crowd
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    by_label = np.argsort(ranking.label, kind="stable")
    starts = np.searchsorted(ranking.label[by_label], np.arange(objects.num_classes + 1))
    for label in np.unique(objects.label[ordinary]):
        positives = weights[:, objects.image[ordinary & (objects.label == label)]].sum(1)  # [samples]
        rows = by_label[starts[label] : starts[label + 1]]
        ap = np.zeros(len(weights))
        for scores, matched in zip(ranking.scores[:, rows], ranking.matched[:, rows]):
            keep = matched != IGNORED
            order = np.argsort(-scores[keep], kind="stable")
            ap += _one_class(ranking.image[rows][keep][order], matched[keep][order] >= 0, positives, weights)
        total += np.where(positives > 0, ap / len(ranking.scores), 0)
        classes += positives > 0
    return np.divide(total, classes, out=np.full_like(total, math.nan), where=classes > 0)


def _one_class(image: np.ndarray, right: np.ndarray, positives: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[samples] AP at one threshold of detections in descending order of score.

    Precision only has peaks where a true positive stands, so only those places are looked at.
    """
    places = np.flatnonzero(right)
    if not len(places):
        return np.zeros(len(weights))
    drawn = weights[:, image[: places[-1] + 1]]  # [samples, D]
    above = drawn.cumsum(1)[:, places]  # detections up to each true positive
    found = drawn[:, places].cumsum(1)
    precision = np.divide(found, above + np.spacing(1), out=np.zeros_like(found), where=above > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = np.divide(found, positives[:, None], out=np.zeros_like(found), where=positives[:, None] > 0)
    covered = np.searchsorted(RECALLS, recall, side="right")  # how many of the 101 recalls are reached so far
    return (np.diff(covered, axis=1, prepend=0) * envelope).sum(1) / len(RECALLS)


def image_average_precision(ranking: Ranking, objects: Objects) -> np.ndarray:
    """[I] AP of every image by itself: mean over thresholds and the classes it holds. NaN where it holds no object."""
    ordinary = ~objects.crowd
    key = objects.image[ordinary] * objects.num_classes + objects.label[ordinary]
    groups, positives = np.unique(key, return_counts=True)  # a group is a class in an image
    total = np.zeros(len(groups))
    slot = np.searchsorted(groups, ranking.image * objects.num_classes + ranking.label)
    slot = np.minimum(slot, len(groups) - 1)
    held = groups[slot] == ranking.image * objects.num_classes + ranking.label if len(groups) else np.zeros(0, bool)
    for scores, matched in zip(ranking.scores, ranking.matched):
        keep = np.flatnonzero(held & (matched != IGNORED)) if len(groups) else np.zeros(0, np.int64)
        order = keep[np.lexsort((-scores[keep], slot[keep]))]
        group, right = slot[order], matched[order] >= 0
        first = np.searchsorted(group, group)
        above = np.arange(len(order)) - first + 1
        before = np.concatenate(([0], right.cumsum()))
        found = before[1:] - before[first]
        group, precision, found = group[right], (found / above)[right], found[right]
        # envelope within groups: an offset that grows towards the front keeps groups apart in one running maximum
        offset = 2.0 * (len(groups) - group)
        envelope = np.maximum.accumulate((precision + offset)[::-1])[::-1] - offset
        reached = np.searchsorted(RECALLS, found / positives[group], side="right")
        earlier = np.where(found > 1, np.concatenate(([0], reached[:-1])), 0)
        total += np.bincount(group, (reached - earlier) * envelope / len(RECALLS), minlength=len(groups))
    image = groups // objects.num_classes
    count = np.bincount(image, minlength=objects.num_images)
    mean = np.bincount(image, total / len(ranking.scores), minlength=objects.num_images)
    return np.divide(mean, count, out=np.full(objects.num_images, math.nan), where=count > 0)
