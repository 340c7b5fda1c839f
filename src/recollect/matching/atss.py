"""Adaptive training sample selection (ATSS, Zhang et al. 2020, arXiv 1912.02424, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from recollect.matching.assigner import all_negative, from_candidates, objects_and_crowds
from recollect.ops.boxes import pairwise_iof, pairwise_iou
from recollect.structures import IGNORED, NEGATIVE, Assignment, Priors, Target


@dataclass(frozen=True)
class ATSSAssigner:
    """Positive: among an object's nearest priors, those above the mean plus one deviation of their IoU with it.

    per_level: candidates of each level, the nearest by centre. A positive's centre is inside its object; a prior that
    several objects claim answers for the one it overlaps most. Everything else is background.
    crowd: ignore priors of which a larger part than this lies in one crowd; None treats crowds as background.
    """

    per_level: int = 9
    crowd: float | None = None

    reads_predictions: ClassVar[bool] = False

    @torch.no_grad()
    def assign(self, priors: Priors, target: Target, predictions: dict[str, Tensor] | None = None) -> Assignment:
        """See `matching.assigner`; `predictions` are not read."""
        boxes, places, crowds = objects_and_crowds(target, priors.boxes)
        if not len(boxes) or not len(priors.boxes):
            return all_negative(priors)
        overlaps = pairwise_iou(boxes, priors.boxes)  # [T, N]
        centres, object_centres = priors.centres, (boxes[:, :2] + boxes[:, 2:]) / 2
        distances = (object_centres[:, None] - centres).square().sum(-1).sqrt()
        within = torch.zeros_like(overlaps[0], dtype=torch.bool)
        if self.crowd is not None and len(crowds):
            within = pairwise_iof(priors.boxes, crowds).amax(1) > self.crowd
            distances, overlaps = torch.where(within, torch.inf, distances), torch.where(within, -1.0, overlaps)
        candidates, start = [], 0
        for level in distances.split(priors.counts, 1):
            nearest = level.topk(min(self.per_level, level.shape[1]), dim=1, largest=False).indices
            candidates.append(nearest + start)
            start += level.shape[1]
        candidate = torch.cat(candidates, 1)  # [T, C]
        theirs = overlaps.gather(1, candidate)
        threshold = theirs.mean(1)
        if theirs.shape[1] > 1:
            threshold = threshold + theirs.std(1)
        points = centres[candidate]  # [T, C, 2]
        inside = torch.cat((points - boxes[:, None, :2], boxes[:, None, 2:] - points), -1).amin(-1) > 0.01
        claim = torch.zeros_like(overlaps, dtype=torch.bool)
        claim.scatter_(1, candidate, (theirs >= threshold[:, None]) & inside)
        best, index = torch.where(claim, overlaps, -torch.inf).max(0)
        claimed = best > -torch.inf
        chosen = torch.where(claimed, index, torch.where(within, IGNORED, NEGATIVE))
        return from_candidates(chosen, places, torch.where(claimed, best, 0.0))
