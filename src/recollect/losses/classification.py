"""Classification in set prediction: a loss and the matching cost that goes with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss


@dataclass(frozen=True)
class FocalClassification:
    """Sigmoid focal loss (Lin et al. 2017): every class a yes-or-no question, no background class.

    weight: of the loss; cost_weight: of the matching cost.
    """

    weight: float = 2.0
    cost_weight: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[..., K] logits, [..., T] labels -> [..., T]: focal loss of "yes" minus that of "no" (Deformable DETR)."""
        p = logits.gather(-1, labels).sigmoid()
        eps = 1e-12  # in float32 a no-op near 0 and 1, kept for parity
        yes = -(p + eps).log() * self.alpha * (1 - p) ** self.gamma
        no = -(1 - p + eps).log() * (1 - self.alpha) * p**self.gamma
        return self.cost_weight * (yes - no)

    def loss(self, logits: Tensor, labels: Tensor, normaliser: Tensor) -> Tensor:
        """[B, G, N, K], [B, G, N] labels with K for "no object" -> [G], summed over all and divided by `normaliser`."""
        classes = logits.shape[-1]
        target = F.one_hot(labels, classes + 1)[..., :classes].to(logits.dtype)
        return self.weight * self.elementwise(logits, target).sum((0, 2, 3)) / normaliser

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Focal loss of every logit against a target of 0 or 1."""
        return sigmoid_focal_loss(logits, target, self.alpha, self.gamma)

    def scores(self, logits: Tensor) -> Tensor:
        """[..., K] -> probabilities of the K classes."""
        return logits.sigmoid()


@dataclass(frozen=True)
class SoftmaxClassification:
    """Cross-entropy over K classes and "no object", the last logit (DETR).

    no_object: weight of that class; the loss is the weighted mean over the batch, as in the original code.
    """

    weight: float = 1.0
    cost_weight: float = 1.0
    no_object: float = 0.1

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[..., K + 1] logits, [..., T] labels -> [..., T]: minus the probability of the object's class."""
        return -self.cost_weight * logits.softmax(-1).gather(-1, labels)

    def loss(self, logits: Tensor, labels: Tensor, normaliser: Tensor) -> Tensor:
        """[B, G, N, K + 1], [B, G, N] labels with K for "no object" -> [G]; `normaliser` is not used (see class)."""
        del normaliser
        classes = logits.shape[-1] - 1
        weights = torch.where(labels == classes, self.no_object, 1.0).to(logits.dtype)
        entropy = F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
        return self.weight * (entropy * weights).sum((0, 2)) / weights.sum((0, 2))

    def scores(self, logits: Tensor) -> Tensor:
        """[..., K + 1] -> probabilities of the K classes."""
        return logits.softmax(-1)[..., :-1]
