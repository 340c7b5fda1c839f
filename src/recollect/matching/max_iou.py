"""Assignment by IoU thresholds (Faster R-CNN, RetinaNet, SSD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from recollect.matching.assigner import all_negative, from_candidates, objects_and_crowds
from recollect.ops.boxes import pairwise_iof, pairwise_iou
from recollect.structures import IGNORED, NEGATIVE, Assignment, Priors, Target


@dataclass(frozen=True)
class MaxIoUAssigner:
    """A prior answers for the object it overlaps most, if by `positive` or more; below `negative` it is background.

    negative: a threshold, or (low, high): background from low up to high only. What lies between is ignored.
    low_quality: the priors that overlap an object most answer for it whatever their IoU, if that is at least
        `min_positive` (and above zero); a later object takes a prior from an earlier one.
    all_best: all priors that tie for an object's best IoU, else the first.
    crowd: ignore priors of which a larger part than this lies in one crowd; None treats crowds as background.
    crowd_of_prior: that part is of the prior's area; else of the crowd's.
    """

    positive: float = 0.5
    negative: float | tuple[float, float] = 0.4
    min_positive: float = 0.0
    low_quality: bool = True
    all_best: bool = True
    crowd: float | None = None
    crowd_of_prior: bool = True

    reads_predictions: ClassVar[bool] = False

    @torch.no_grad()
    def assign(self, priors: Priors, target: Target, predictions: dict[str, Tensor] | None = None) -> Assignment:
        """See `matching.assigner`; `predictions` are not read."""
        boxes, places, crowds = objects_and_crowds(target, priors.boxes)
        if not len(boxes) or not len(priors.boxes):
            return all_negative(priors)
        overlaps = pairwise_iou(boxes, priors.boxes)  # [T, N]
        if self.crowd is not None and len(crowds):
            if self.crowd_of_prior:
                covered = pairwise_iof(priors.boxes, crowds).amax(1)
            else:
                covered = pairwise_iof(crowds, priors.boxes).amax(0)
            overlaps = torch.where(covered > self.crowd, -1.0, overlaps)
        chosen = self.assign_overlaps(overlaps)
        return from_candidates(chosen.gt_index, places, chosen.overlap)

    def assign_overlaps(self, overlaps: Tensor) -> Assignment:
        """The rule itself: [T, N] IoU with T >= 1 (-1 for priors to be ignored) -> indices among the T objects."""
        best, index = overlaps.max(0)
        low, high = self.negative if isinstance(self.negative, tuple) else (0.0, self.negative)
        chosen = torch.full_like(index, IGNORED)
        chosen[(best >= low) & (best < high)] = NEGATIVE
        chosen = torch.where(best >= self.positive, index, chosen)
        if self.low_quality:
            top, first = overlaps.max(1)
            if self.all_best:
                tied = overlaps == top[:, None]
            else:
                tied = torch.zeros_like(overlaps, dtype=torch.bool).scatter_(1, first[:, None], True)
            tied &= ((top >= self.min_positive) & (top > 0))[:, None]
            order = torch.arange(len(overlaps), device=overlaps.device)[:, None]
            latest = torch.where(tied, order, -1).amax(0)
            chosen = torch.where(latest >= 0, latest, chosen)
        return Assignment(chosen, best)
