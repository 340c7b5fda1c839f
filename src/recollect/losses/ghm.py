"""Gradient harmonising (Li et al. 2019, arXiv 1811.05181): examples of a gradient that many share weigh less.

Both losses are modules: with momentum, the histogram of gradients is a moving average and belongs into checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Harmonised(nn.Module):
    """bins: of the histogram over gradients in 0..1. momentum: of its moving average; 0 for none."""

    counts: Tensor

    def __init__(self, bins: int, momentum: float) -> None:
        super().__init__()
        self.bins, self.momentum = bins, momentum
        self.register_buffer("counts", torch.zeros(bins))

    def weights(self, gradient: Tensor, valid: Tensor, total: Tensor) -> Tensor:
        """Sizes of gradients in 0..1 and which of them count -> total / density, zero for those that do not count."""
        index = (gradient * self.bins).long().clamp(max=self.bins - 1)
        found = torch.bincount(index[valid], minlength=self.bins).to(gradient.dtype)
        filled = found > 0
        if self.momentum > 0:
            moved = self.momentum * self.counts.to(found) + (1 - self.momentum) * found
            found = torch.where(filled, moved, self.counts.to(found))
            self.counts.copy_(found)
        density = found[index] * filled.sum().clamp(min=1)
        return torch.where(valid, total / density.where(valid, 1.0), 0.0)


class GHMClassification(_Harmonised):
    """Binary cross-entropy, harmonised (section 3.3)."""

    def __init__(self, bins: int = 10, momentum: float = 0.0) -> None:
        super().__init__(bins, momentum)

    def forward(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """[..., K] logits, their targets 0 or 1, which of them count (bool) -> the mean over those that count."""
        total = valid.sum().clamp(min=1).to(logits.dtype)
        gradient = (logits.detach().sigmoid() - target).abs()
        weights = self.weights(gradient, valid, total)
        return F.binary_cross_entropy_with_logits(logits, target, weights, reduction="sum") / total


class GHMRegression(_Harmonised):
    """sqrt(d^2 + mu^2) - mu of the deviation d, harmonised (section 3.4)."""

    def __init__(self, mu: float = 0.02, bins: int = 10, momentum: float = 0.0) -> None:
        super().__init__(bins, momentum)
        self.mu = mu

    def forward(self, values: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """[..., 4] values, targets, which of them count (bool) -> the mean over those that count."""
        total = valid.sum().clamp(min=1).to(values.dtype)
        deviation = values - target
        length = (deviation.square() + self.mu**2).sqrt()
        weights = self.weights((deviation / length).abs().detach(), valid, total)
        return ((length - self.mu) * weights).sum() / total
