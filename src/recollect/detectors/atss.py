"""ATSS.

Paper: Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection (Zhang et
al., CVPR 2020, arXiv 1912.02424). Official code: sfzhang15/ATSS; numbers and conventions follow MMDetection 2.x
(Apache-2.0); this file is our own.

Published COCO val2017 box AP, R50, 1x, MMDetection 2.x: 39.4.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from recollect.backbones import Backbone, tiny_backbone
from recollect.detectors.dense import DenseDetector, DenseHead, Outputs
from recollect.detectors.retinanet import STRIDES, dense_1x, dense_tiny
from recollect.layers.anchors import AnchorGenerator
from recollect.layers.box_coders import DeltaBoxCoder, DistanceBoxCoder, centreness
from recollect.layers.conv import Scale, group_norm, init_normal
from recollect.layers.fpn import FPN
from recollect.losses.assigned import Assigned
from recollect.losses.boxes import giou_loss
from recollect.losses.focal import focal
from recollect.losses.normaliser import mean_over_ranks
from recollect.matching.atss import ATSSAssigner
from recollect.ops.nms import PostProcess
from recollect.registry import Published, register


class ATSSHead(DenseHead):
    """One square anchor per cell, regressed by deltas; otherwise FCOS's outputs with another choice of positives.

    box_weight: of the GIoU loss.
    """

    def __init__(self, num_classes: int, *, box_weight: float = 2.0, **options: Any) -> None:
        super().__init__(num_classes, **options)
        self.box_weight = box_weight
        self.to_centreness = nn.Conv2d(self.to_box.in_channels, self.priors.per_cell[0], 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in self.priors.strides)
        init_normal(self.to_centreness)

    def predict(self, class_features: Tensor, box_features: Tensor, level: int) -> Outputs:
        """Logits, deltas and the centreness logit."""
        return {
            "logits": self.to_class(class_features),
            "boxes": self.scales[level](self.to_box(box_features)),
            "centreness": self.to_centreness(box_features),
        }

    def losses(self, outputs: Outputs, assigned: Assigned) -> dict[str, Tensor]:
        """`class`, `box` and `centreness`."""
        logits = outputs["logits"]
        count = assigned.count(logits)
        central = centreness(DistanceBoxCoder().encode(assigned.prior_boxes, assigned.boxes))
        boxes = self.decode(assigned.positives(outputs["boxes"]), assigned.prior_boxes, assigned.strides)
        box = (giou_loss(boxes, assigned.boxes) * central).sum()
        entropy = F.binary_cross_entropy_with_logits(
            assigned.positives(outputs["centreness"]).squeeze(-1), central, reduction="sum"
        )
        return {
            "class": assigned.total(focal(logits, assigned.targets(logits))) / count,
            "box": self.box_weight * box / mean_over_ranks(central.sum(), box, minimum=1e-12),
            "centreness": entropy / count,
        }

    def scores(self, outputs: Outputs) -> tuple[Tensor, Tensor | None]:
        """Class scores, and centreness as a quality."""
        return outputs["logits"].sigmoid(), outputs["centreness"].sigmoid().squeeze(-1)


# --- Entry functions


@register(
    dense_1x,
    family="ATSS",
    paper="arXiv 1912.02424",
    published=Published(39.4, "MMDetection 2.x model zoo: R50, 1x"),
)
def atss_r50_fpn(
    num_classes: int = 80,
    *,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> DenseDetector:
    """ATSS with ResNet-50 (or any timm backbone), FPN and GN heads."""
    body = Backbone(backbone, STRIDES[:3], backbone_weights, norm="eval", frozen_stages=1, **(backbone_options or {}))
    head = ATSSHead(
        num_classes,
        priors=AnchorGenerator.retina(STRIDES, base=8, per_octave=1, ratios=(1.0,)),
        coder=DeltaBoxCoder(stds=(0.1, 0.1, 0.2, 0.2)),
        assigner=ATSSAssigner(9),
        norm=group_norm(32),
        post=PostProcess(iou_threshold=0.6),
    )
    return DenseDetector(body, FPN(body.channels, 256, 5, extra="output"), head)


@register(dense_tiny, family="ATSS", paper="arXiv 1912.02424")
def atss_tiny(
    num_classes: int = 10,
    *,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> DenseDetector:
    """Small enough to train from scratch on a CPU in minutes."""
    body = tiny_backbone(STRIDES[:3], backbone, backbone_weights, backbone_options)
    head = ATSSHead(
        num_classes,
        priors=AnchorGenerator.retina(STRIDES[:4], base=4, per_octave=1, ratios=(1.0,)),
        coder=DeltaBoxCoder(stds=(0.1, 0.1, 0.2, 0.2)),
        assigner=ATSSAssigner(9),
        in_channels=64,
        channels=64,
        convs=2,
        norm=group_norm(8),
        post=PostProcess(iou_threshold=0.6),
    )
    return DenseDetector(body, FPN(body.channels, 64, 4, extra="output"), head)
