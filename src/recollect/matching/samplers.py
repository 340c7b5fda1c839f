"""Samplers: keep some of an assignment's positives and negatives for the loss; the rest becomes ignored.

A sampler is called `sample(assignment, generator=None) -> Assignment`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recollect.structures import IGNORED, NEGATIVE, Assignment


@dataclass(frozen=True)
class RandomSampler:
    """At most `count` priors, of which at most `positives` (a fraction) are positive, chosen at random.

    max_ratio: at most so many negatives per positive (per one positive, if there is none); None for no limit.
    """

    count: int = 256
    positives: float = 0.5
    max_ratio: float | None = None

    def sample(self, assignment: Assignment, generator: torch.Generator | None = None) -> Assignment:
        """The same assignment with those not chosen IGNORED."""
        positive = assignment.positive.nonzero().flatten()
        negative = (assignment.gt_index == NEGATIVE).nonzero().flatten()
        positive = _some(positive, int(self.count * self.positives), generator)
        room = self.count - len(positive)
        if self.max_ratio is not None:
            room = min(room, int(self.max_ratio * max(1, len(positive))))
        kept = torch.cat((positive, _some(negative, room, generator)))
        gt_index = torch.full_like(assignment.gt_index, IGNORED)
        gt_index[kept] = assignment.gt_index[kept]
        return Assignment(gt_index, assignment.overlap)


def _some(items: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`count` of them at random; all of them in order if there are no more."""
    if len(items) <= count:
        return items
    device = items.device if generator is None else generator.device
    order = torch.randperm(len(items), generator=generator, device=device)[:count]
    return items[order.to(items.device)]
