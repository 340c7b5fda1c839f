"""The assignments of a batch, as the losses of dense heads read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recollect.losses.normaliser import mean_over_ranks
from recollect.structures import IGNORED


@dataclass(frozen=True)
class Assigned:
    """What a dense head is told to predict. Shapes: B images, N priors, P positives of the batch, K classes.

    gt_index: [B, N], as in Assignment. image, prior: [P], where the positives are. labels: [P]. boxes: [P, 4], of the
    objects they answer for. prior_boxes: [P, 4]; strides: [P].
    """

    gt_index: Tensor
    image: Tensor
    prior: Tensor
    labels: Tensor
    boxes: Tensor
    prior_boxes: Tensor
    strides: Tensor

    def positives(self, outputs: Tensor) -> Tensor:
        """[B, N, ...] -> [P, ...]."""
        return outputs[self.image, self.prior]

    def targets(self, logits: Tensor, values: Tensor | float = 1.0) -> Tensor:
        """[B, N, K]: zero, but `values` (one, or [P]) at the class of each positive."""
        target = torch.zeros_like(logits)
        target[self.image, self.prior, self.labels] = torch.as_tensor(values, dtype=logits.dtype, device=logits.device)
        return target

    def total(self, elementwise: Tensor) -> Tensor:
        """Sum of a [B, N, K] loss over all priors that are not ignored."""
        return (elementwise * (self.gt_index != IGNORED).unsqueeze(-1)).sum()

    def count(self, like: Tensor, per_image: bool = True) -> Tensor:
        """Positives of the batch, mean over ranks, at least 1; `per_image`: at least 1 in every image, as MMDetection
        counts for methods with anchors."""
        count = (self.gt_index >= 0).sum(1)
        return mean_over_ranks(count.clamp(min=1).sum() if per_image else count.sum(), like)
