"""FCOS.

Paper: FCOS: Fully Convolutional One-Stage Object Detection (Tian et al., ICCV 2019, arXiv 1904.01355). Official code:
tianzhi0549/FCOS (BSD-2-Clause); numbers and conventions follow MMDetection 2.x (Apache-2.0); this file is our own.

Published COCO val2017 box AP, R50-caffe, GN heads, MMDetection 2.x: 36.6 (1x), 38.7 with `tricks`.

Conventions:
- points in the middle of their cells (x = (column + 1/2) * stride);
- points in the padding which batch mates caused count as background, as in MMDetection and torchvision;
- `tricks`: only points near an object's centre answer for it, distances in units of the stride and never negative by a
  ReLU, centreness from the box tower, GIoU loss, and NMS at 0.6;
- `torchvision=True` takes that library's: points on the cells' corners, no scale per level (it stays 1), the score
  sqrt(class * centreness) before the threshold, GIoU not weighted by centreness, top-k over pairs of point and class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recollect.backbones import Backbone, tiny_backbone
from recollect.detectors.dense import DenseDetector, DenseHead, Outputs
from recollect.detectors.retinanet import STRIDES, dense_1x, dense_tiny
from recollect.layers.anchors import PointGenerator
from recollect.layers.box_coders import DistanceBoxCoder, Size, centreness
from recollect.layers.conv import Scale, group_norm, init_normal
from recollect.layers.fpn import FPN
from recollect.losses.assigned import Assigned
from recollect.losses.boxes import giou_loss, iou_loss
from recollect.losses.focal import focal
from recollect.losses.normaliser import mean_over_ranks
from recollect.matching.fcos import FCOSAssigner
from recollect.ops.nms import PostProcess
from recollect.ops.precision import full_precision
from recollect.recipe import Recipe
from recollect.registry import Published, register


class FCOSHead(DenseHead):
    """Section 3: per point a class, the distances to four sides, and how central the point is.

    normalised: distances in units of the stride, by ReLU; else in pixels, by exp. centreness_on_box: from which tower.
    box_loss: of (boxes, objects), per pair. weighted: box losses weigh their point's centreness target.
    sqrt_scores: score sqrt(class * centreness), else class * centreness with the threshold before the product.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        normalised: bool = False,
        centreness_on_box: bool = False,
        box_loss: Callable[[Tensor, Tensor], Tensor] = iou_loss,
        weighted: bool = True,
        sqrt_scores: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, coder=DistanceBoxCoder(), padding=True, **options)
        self.normalised, self.centreness_on_box = normalised, centreness_on_box
        self.box_loss, self.weighted, self.sqrt_scores = box_loss, weighted, sqrt_scores
        self.to_centreness = nn.Conv2d(self.to_box.in_channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in self.priors.strides)
        init_normal(self.to_centreness)

    def predict(self, class_features: Tensor, box_features: Tensor, level: int) -> Outputs:
        """Logits, distances and the centreness logit."""
        distances = full_precision(self.scales[level](self.to_box(box_features)))
        return {
            "logits": self.to_class(class_features),
            "boxes": F.relu(distances) if self.normalised else distances.exp(),
            "centreness": self.to_centreness(box_features if self.centreness_on_box else class_features),
        }

    def losses(self, outputs: Outputs, assigned: Assigned) -> dict[str, Tensor]:
        """`class`, `box` and `centreness` (equations 2 and 3)."""
        logits = outputs["logits"]
        count = assigned.count(logits, per_image=False)
        central = centreness(self.coder.encode(assigned.prior_boxes, assigned.boxes))
        boxes = self.decode(assigned.positives(outputs["boxes"]), assigned.prior_boxes, assigned.strides)
        box = self.box_loss(boxes, assigned.boxes)
        if self.weighted:
            box = (box * central).sum() / mean_over_ranks(central.sum(), box, minimum=1e-6)
        else:
            box = box.sum() / count
        entropy = F.binary_cross_entropy_with_logits(
            assigned.positives(outputs["centreness"]).squeeze(-1), central, reduction="sum"
        )
        return {
            "class": assigned.total(focal(logits, assigned.targets(logits))) / count,
            "box": box,
            "centreness": entropy / count,
        }

    def decode(self, values: Tensor, priors: Tensor, strides: Tensor, max_size: Size = None) -> Tensor:
        """Distances, in strides or pixels, to boxes."""
        return self.coder.decode(priors, values * strides[..., None] if self.normalised else values, max_size)

    def scores(self, outputs: Outputs) -> tuple[Tensor, Tensor | None]:
        """Class scores, and centreness as a quality."""
        scores, quality = outputs["logits"].sigmoid(), outputs["centreness"].sigmoid()
        return (torch.sqrt(scores * quality), None) if self.sqrt_scores else (scores, quality.squeeze(-1))


# --- Entry functions


def fcos_1x() -> Recipe:
    """As RetinaNet; biases learn at twice the rate and do not decay (MMDetection: only those of convolutions)."""
    base = dense_1x()
    biases = {"scales": ((".bias", 2.0),), "no_decay": (".bias",)}
    return replace(base, optimiser=replace(base.optimiser, clip_norm=35.0, **biases))


@register(
    fcos_1x,
    family="FCOS",
    paper="arXiv 1904.01355",
    published=Published(36.6, "MMDetection 2.x model zoo: R50-caffe, GN heads, 1x (38.7 with the tricks)"),
)
def fcos_r50_fpn(
    num_classes: int = 80,
    *,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    tricks: bool = False,
    torchvision: bool = False,
) -> DenseDetector:
    """FCOS with ResNet-50 (or any timm backbone), FPN and GN heads; `tricks`, `torchvision`: see the file's header."""
    body = Backbone(backbone, STRIDES[:3], backbone_weights, norm="eval", frozen_stages=1, **(backbone_options or {}))
    tricks = tricks or torchvision
    head = FCOSHead(
        num_classes,
        priors=PointGenerator(STRIDES, offset=0.0 if torchvision else 0.5),
        assigner=FCOSAssigner(radius=1.5 if tricks else None),
        norm=group_norm(32),
        tower_bias=tricks,
        normalised=tricks,
        centreness_on_box=tricks,
        box_loss=giou_loss if tricks else iou_loss,
        weighted=not torchvision,
        sqrt_scores=torchvision,
        post=PostProcess(
            score_threshold=0.2 if torchvision else 0.05,
            iou_threshold=0.6 if tricks else 0.5,
            pairs=torchvision,
        ),
    )
    return DenseDetector(body, FPN(body.channels, 256, 5, extra="output", relu_before_extra=True), head)


@register(dense_tiny, family="FCOS", paper="arXiv 1904.01355")
def fcos_tiny(
    num_classes: int = 10,
    *,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    tricks: bool = True,
) -> DenseDetector:
    """Small enough to train from scratch on a CPU in minutes."""
    body = tiny_backbone(STRIDES[:3], backbone, backbone_weights, backbone_options)
    head = FCOSHead(
        num_classes,
        priors=PointGenerator(STRIDES[:4]),
        assigner=FCOSAssigner(((0, 32), (32, 64), (64, 128), (128, float("inf"))), 1.5 if tricks else None),
        in_channels=64,
        channels=64,
        convs=2,
        norm=group_norm(8),
        tower_bias=tricks,
        normalised=tricks,
        centreness_on_box=tricks,
        box_loss=giou_loss if tricks else iou_loss,
        post=PostProcess(iou_threshold=0.6 if tricks else 0.5),
    )
    return DenseDetector(body, FPN(body.channels, 64, 4, extra="output"), head)
