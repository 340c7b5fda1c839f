"""The focal family. Every function returns the loss of each element, for the caller to weigh and sum."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss


def focal(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017, arXiv 1708.02002) of each logit against a target of 0 or 1."""
    return sigmoid_focal_loss(logits, target, alpha, gamma)


def quality_focal(logits: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """Focal loss towards a quality in 0..1 instead of 1 (Li et al. 2020, arXiv 2006.04388, equation 5)."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return entropy * (target - logits.sigmoid()).abs() ** beta


def distribution_focal(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the two bins around a value (Li et al. 2020, equation 6).

    logits: [..., M + 1], of the bins 0..M. target: [...] in 0 <= target < M. Returns [...].
    """
    low = target.long()
    log_probability = F.log_softmax(logits, -1)
    left, right = (log_probability.gather(-1, (low + i).unsqueeze(-1)).squeeze(-1) for i in (0, 1))
    return -(left * (low + 1 - target) + right * (target - low))


def varifocal(
    logits: Tensor, target: Tensor, alpha: float = 0.75, gamma: float = 2.0, iou_weighted: bool = True
) -> Tensor:
    """Positives (target above 0) weigh their quality, or 1; only negatives are focal (arXiv 2008.13367, equation 2)."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    positive = target if iou_weighted else torch.ones_like(target)
    negative = alpha * (logits.sigmoid() - target).abs() ** gamma
    return entropy * torch.where(target > 0, positive, negative)


def gaussian_focal(
    probabilities: Tensor, heatmap: Tensor, alpha: float = 2.0, gamma: float = 4.0, eps: float = 1e-12
) -> Tensor:
    """Focal loss on a heatmap whose peaks are 1 and whose slopes soften the negatives (CornerNet, arXiv 1808.01244)."""
    yes = -(probabilities + eps).log() * (1 - probabilities) ** alpha
    no = -(1 - probabilities + eps).log() * probabilities**alpha * (1 - heatmap) ** gamma
    return torch.where(heatmap == 1, yes, no)
