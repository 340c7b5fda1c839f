"""Box losses: the IoU family on xyxy boxes in pixels, and robust distances on encoded values.

Every function returns the loss of each pair (IoU family) or each value (distances), for the caller to weigh and sum.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recollect.ops.boxes import giou, intersection, iou, xyxy_to_cxcywh

# --- IoU family: [..., 4], [..., 4] -> [...]


def iou_loss(boxes: Tensor, target: Tensor, linear: bool = False, eps: float = 1e-6) -> Tensor:
    """-log IoU (UnitBox, arXiv 1608.01471), with IoU at least `eps`; `linear`: 1 - IoU."""
    overlap = iou(boxes, target).clamp(min=eps)
    return 1 - overlap if linear else -overlap.log()


def giou_loss(boxes: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """1 - GIoU (Rezatofighi et al. 2019, arXiv 1902.09630)."""
    return 1 - giou(boxes, target, eps)


def diou_loss(boxes: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """1 - IoU + squared distance of the centres in units of the hull's diagonal (arXiv 1911.08287, equation 7)."""
    overlap, distance, _ = _distance_iou(boxes, target, eps)
    return 1 - overlap + distance


def ciou_loss(boxes: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """DIoU loss plus a term for the aspect ratio (arXiv 1911.08287, equation 10), its weight differentiated too."""
    overlap, distance, aspect = _distance_iou(boxes, target, eps)
    return 1 - overlap + distance + aspect**2 / (1 - overlap + aspect)


def _distance_iou(a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """IoU, relative centre distance, and disagreement of aspect ratios."""
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    overlap = intersection(a, b)
    overlap = overlap / (size_a.prod(-1) + size_b.prod(-1) - overlap + eps)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    shift = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    distance = shift.square().sum(-1) / (hull.square().sum(-1) + eps)
    angle_a, angle_b = (torch.atan(size[..., 0] / (size[..., 1] + eps)) for size in (size_a, size_b))
    return overlap, distance, 4 / math.pi**2 * (angle_b - angle_a) ** 2


def bounded_iou_loss(boxes: Tensor, target: Tensor, beta: float = 0.2, eps: float = 1e-3) -> Tensor:
    """Smooth L1 of the best IoU each of x, y, w, h alone would allow (arXiv 1711.00164): [..., 4] -> [..., 4]."""
    box, truth = xyxy_to_cxcywh(boxes), xyxy_to_cxcywh(target.detach())
    shift = 2 * (truth[..., :2] - box[..., :2]).abs()
    size, true_size = box[..., 2:], truth[..., 2:]
    centre = 1 - ((true_size - shift) / (true_size + shift + eps)).clamp(min=0)
    extent = 1 - torch.minimum(true_size / (size + eps), size / (true_size + eps))
    return smooth_l1(torch.cat((centre, extent), -1), torch.zeros_like(box), beta)


# --- Distances: any shape, elementwise


def l1(values: Tensor, target: Tensor) -> Tensor:
    """|values - target|."""
    return (values - target).abs()


def smooth_l1(values: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Quadratic below `beta`, L1 - beta / 2 above (Fast R-CNN, arXiv 1504.08083)."""
    return F.smooth_l1_loss(values, target, reduction="none", beta=beta)


def balanced_l1(values: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0) -> Tensor:
    """More gradient from accurate boxes than smooth L1 (Libra R-CNN, arXiv 1904.02701, equation 8)."""
    difference = (values - target).abs()
    b = math.exp(gamma / alpha) - 1
    inlier = alpha / b * (b * difference + 1) * (b * difference / beta + 1).log() - alpha * difference
    return torch.where(difference < beta, inlier, gamma * difference + gamma / b - alpha * beta)
