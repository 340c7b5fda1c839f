"""The contract of assigners: which object each anchor, point or proposal of one image answers for.

An assigner is called `assign(priors, target, predictions=None) -> Assignment`, for one image. Those that say
`reads_predictions` get that image's flattened outputs without gradient: "logits" [N, K], "boxes" [N, 4] decoded to xyxy
in pixels, and whatever else the head predicts, as it is.
Crowd objects are never answered for; an assigner may ignore the priors within them.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from recollect.structures import IGNORED, NEGATIVE, Assignment, Priors, Target


class Assigner(Protocol):
    """Decides, for one image, which prior answers for which object."""

    reads_predictions: ClassVar[bool]

    def assign(self, priors: Priors, target: Target, predictions: dict[str, Tensor] | None = None) -> Assignment:
        """The object index of each prior, or NEGATIVE, or IGNORED."""
        ...


def objects_and_crowds(target: Target, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of ordinary objects [T', 4], their places in the target [T'], and boxes of crowds, as `like` is."""
    boxes = target["boxes"].as_subclass(Tensor).to(like).reshape(-1, 4)
    crowd = target.get("iscrowd")
    if crowd is None:
        return boxes, torch.arange(len(boxes), device=like.device), boxes[:0]
    crowd = crowd.to(like.device).bool()
    return boxes[~crowd], (~crowd).nonzero().flatten(), boxes[crowd]


def from_candidates(gt_index: Tensor, places: Tensor, overlap: Tensor) -> Assignment:
    """Translate indices among ordinary objects into places in the target."""
    if not len(places):
        return Assignment(gt_index, overlap)
    return Assignment(torch.where(gt_index >= 0, places[gt_index.clamp(min=0)], gt_index), overlap)


def scatter(assignment: Assignment, mask: Tensor) -> Assignment:
    """The assignment of `priors.select(mask)` on all priors; those left out are ignored."""
    gt_index = torch.full(mask.shape, IGNORED, dtype=torch.long, device=mask.device)
    overlap = assignment.overlap.new_zeros(mask.shape)
    gt_index[mask], overlap[mask] = assignment.gt_index, assignment.overlap
    return Assignment(gt_index, overlap)


def all_negative(priors: Priors) -> Assignment:
    """An image without objects."""
    count = len(priors.boxes)
    index = torch.full((count,), NEGATIVE, dtype=torch.long, device=priors.boxes.device)
    return Assignment(index, priors.boxes.new_zeros(count))
