"""Online hard example mining (Shrivastava et al. 2016, arXiv 1604.03540): keep what the head gets worst."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recollect.structures import IGNORED, NEGATIVE, Assignment


@dataclass(frozen=True)
class OHEMSampler:
    """At most `count` proposals, of which at most `positives` (a fraction) are positive, those of the highest loss.

    max_ratio: at most so many negatives per positive (per one positive, if there is none); None for no limit.
    """

    count: int = 512
    positives: float = 0.25
    max_ratio: float | None = None

    def sample_hard(self, assignment: Assignment, losses: Tensor) -> Assignment:
        """The same assignment with those not chosen IGNORED. losses: [N], classification loss of every prior."""
        positive = _hardest(assignment.positive.nonzero().flatten(), losses, int(self.count * self.positives))
        room = self.count - len(positive)
        if self.max_ratio is not None:
            room = min(room, int(self.max_ratio * max(1, len(positive))))
        negative = _hardest((assignment.gt_index == NEGATIVE).nonzero().flatten(), losses, room)
        kept = torch.cat((positive, negative))
        gt_index = torch.full_like(assignment.gt_index, IGNORED)
        gt_index[kept] = assignment.gt_index[kept]
        return Assignment(gt_index, assignment.overlap)


def _hardest(items: Tensor, losses: Tensor, count: int) -> Tensor:
    return items if len(items) <= count else items[losses[items].topk(count).indices]
