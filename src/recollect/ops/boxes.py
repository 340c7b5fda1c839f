"""Box arithmetic. xyxy is (left, top, right, bottom), cxcywh (centre x, centre y, width, height)."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] cxcywh to xyxy, in the same units."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - size / 2, centre + size / 2), -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] xyxy to cxcywh, in the same units."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def box_area(boxes: Tensor) -> Tensor:
    """[..., 4] xyxy to areas [...]; inverted boxes give negative values or products of two negatives."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Overlapping area of xyxy boxes, broadcast over the leading dimensions: [..., 4], [..., 4] -> [...]."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    return (high - low).clamp(min=0).prod(-1)


def iou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Intersection over union of xyxy boxes, broadcast over the leading dimensions. The union is at least `eps`."""
    overlap = intersection(a, b)
    return overlap / (box_area(a) + box_area(b) - overlap).clamp(min=eps)


def pairwise_iou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """[..., N, 4], [..., M, 4] xyxy -> [..., N, M]."""
    return iou(a.unsqueeze(-2), b.unsqueeze(-3), eps)


def pairwise_iof(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Intersection over the area of `a` (foreground): [..., N, 4], [..., M, 4] xyxy -> [..., N, M]."""
    a, b = a.unsqueeze(-2), b.unsqueeze(-3)
    return intersection(a, b) / box_area(a).clamp(min=eps)


def giou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) of xyxy boxes, broadcast over the leading dimensions, in -1..1.

    Union and hull are at least `eps`, in the units of the boxes squared: MMDetection applies it to pixels.
    """
    overlap = intersection(a, b)
    union = (box_area(a) + box_area(b) - overlap).clamp(min=eps)
    low = torch.minimum(a[..., :2], b[..., :2])
    high = torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).clamp(min=0).prod(-1).clamp(min=eps)
    return overlap / union - (hull - union) / hull


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)) with x and 1 - x held at `eps` or more, as in Deformable DETR."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def refine_by_logits(boxes: Tensor, delta: Tensor) -> Tensor:
    """sigmoid(delta + logit(boxes)) of cxcywh in 0..1, [..., 4]. A box of size zero, a point, has none to add to."""
    point = boxes[..., 2:].eq(0)
    point = torch.cat((torch.zeros_like(point), point), -1)
    return (delta.to(boxes.dtype) + inverse_sigmoid(boxes).masked_fill(point, 0.0)).sigmoid()
