"""Non-maximum suppression, and the post-processing that dense heads, RPNs and RoI heads end with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torchvision
from torch import Tensor

from recollect.ops.boxes import pairwise_iou


@dataclass(frozen=True)
class SoftNMS:
    """Instead of removing a box that overlaps a better one, lower its score (Bodla et al. 2017, arXiv 1704.04503).

    method: "linear": times 1 - IoU above the IoU threshold; "gaussian": times exp(-IoU^2 / sigma) whatever the IoU.
    min_score: boxes whose score falls below are dropped.
    """

    method: Literal["linear", "gaussian"] = "linear"
    sigma: float = 0.5
    min_score: float = 0.05


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Indices that survive NMS within each group, best first. A box of IoU above `threshold` with a better one goes.

    boxes: [n, 4] xyxy. scores: [n]. groups: [n] ints, for example class or level; boxes of two groups never meet.
    """
    if torch.jit.is_tracing():  # torchvision then takes the largest coordinate, and there may be no box
        reach = torch.cat((boxes.flatten(), boxes.new_zeros(1))).max() + 1
        return torchvision.ops.nms(boxes + (groups.to(boxes) * reach)[:, None], scores, threshold)
    return torchvision.ops.batched_nms(boxes, scores, groups, threshold)


def soft_nms(
    boxes: Tensor, scores: Tensor, threshold: float, soft: SoftNMS = SoftNMS(), groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(indices, lowered scores), best first. The loop is over the boxes kept, all groups at once.

    boxes: [n, 4] xyxy. scores: [n]. groups: [n]; boxes of two groups never meet.
    """
    count = len(boxes)
    scores = scores.clone()
    overlaps = pairwise_iou(boxes, boxes, eps=1e-12)
    if groups is not None:
        overlaps = overlaps * (groups[:, None] == groups)
    decay = torch.exp(-overlaps.square() / soft.sigma)
    if soft.method == "linear":
        decay = torch.where(overlaps > threshold, 1 - overlaps, 1.0)
    alive = scores >= soft.min_score
    kept, values = [], []
    for _ in range(count):
        best = torch.where(alive, scores, -torch.inf).argmax()
        if not alive[best]:
            break
        kept.append(best)
        values.append(scores[best].clone())
        alive[best] = False
        scores = torch.where(alive, scores * decay[best], scores)
        alive &= scores >= soft.min_score
    if not kept:
        return torch.zeros(0, dtype=torch.long, device=boxes.device), scores[:0]
    return torch.stack(kept), torch.stack(values)


def multiclass_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    factor: Tensor | None = None,
    soft: SoftNMS | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best detections of one image: (boxes [n, 4], scores [n], labels [n], index [n] into the N given), best first.

    boxes: [N, 4], or [N, K, 4] where every class has its own. scores: [N, K].
    score_threshold: on `scores`, before `factor` [N] (centreness, IoU, ...) multiplies them.
    soft: use soft-NMS with `iou_threshold`.
    """
    index, labels = (scores > score_threshold).nonzero().unbind(1)
    kept_boxes = boxes[index, labels] if boxes.ndim == 3 else boxes[index]
    values = scores[index, labels]
    if factor is not None:
        values = values * factor[index]
    if soft is None:
        keep = batched_nms(kept_boxes, values, labels, iou_threshold)[:max_detections]
        values = values[keep]
    else:
        keep, values = soft_nms(kept_boxes, values, iou_threshold, soft, labels)
        keep, values = keep[:max_detections], values[:max_detections]
    return kept_boxes[keep], values, labels[keep], index[keep]


@dataclass(frozen=True)
class PostProcess:
    """From scores and boxes to detections.

    candidates: kept per level before NMS, the priors whose best class scores highest; pairs: pairs of prior and class
        instead, as torchvision does. score_threshold: on class scores, before a quality multiplies them.
    """

    candidates: int = 1000
    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    max_detections: int = 100
    pairs: bool = False
    soft: SoftNMS | None = None

    def choose(self, scores: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
        """One level: [n, K], [n] -> (indices of the candidates [m], their scores [m, K])."""
        if self.pairs:
            number = min(self.candidates, scores.numel())
            least = scores.flatten().topk(number).values[-1]
            scores = torch.where(scores >= least, scores, 0.0)
            return (scores > self.score_threshold).any(-1).nonzero().flatten(), scores
        if not 0 < self.candidates < len(scores):
            return torch.arange(len(scores), device=scores.device), scores
        ranking = scores if factor is None else scores * factor[:, None]
        return ranking.amax(-1).topk(self.candidates).indices, scores

    def suppress(self, boxes: Tensor, scores: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates of all levels, [m, 4], [m, K], [m] -> boxes [n, 4], scores [n], labels [n], best first."""
        return multiclass_nms(
            boxes,
            scores,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
            max_detections=self.max_detections,
            factor=factor,
            soft=self.soft,
        )[:3]
