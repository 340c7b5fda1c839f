"""Generalised focal loss (GFL).

Paper: Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object Detection (Li et al.,
NeurIPS 2020, arXiv 2006.04388). Official code: implus/GFocal, in MMDetection 2.x (Apache-2.0); this file is our own.

Published COCO val2017 box AP, R50, 1x, MMDetection 2.x: 40.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recollect.backbones import Backbone, tiny_backbone
from recollect.detectors.dense import DenseDetector, DenseHead, Outputs
from recollect.detectors.retinanet import STRIDES, dense_1x, dense_tiny
from recollect.layers.anchors import AnchorGenerator
from recollect.layers.box_coders import DistanceBoxCoder, Size, expected_bin
from recollect.layers.conv import Scale, group_norm
from recollect.layers.fpn import FPN
from recollect.losses.assigned import Assigned
from recollect.losses.boxes import giou_loss
from recollect.losses.focal import distribution_focal, quality_focal
from recollect.losses.normaliser import mean_over_ranks
from recollect.matching.atss import ATSSAssigner
from recollect.ops.boxes import iou
from recollect.ops.nms import PostProcess
from recollect.registry import Published, register


class GFLHead(DenseHead):
    """ATSS without centreness: the class score learns the box's IoU, each side is a distribution over bins.

    bins: M; a side lies at 0..M strides from the anchor's centre. box_weight, distribution_weight: of GIoU and DFL.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        bins: int = 16,
        box_weight: float = 2.0,
        distribution_weight: float = 0.25,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, coder=DistanceBoxCoder(), box_values=4 * (bins + 1), **options)
        self.bins, self.box_weight, self.distribution_weight = bins, box_weight, distribution_weight
        self.scales = nn.ModuleList(Scale() for _ in self.priors.strides)

    def predict(self, class_features: Tensor, box_features: Tensor, level: int) -> Outputs:
        """Logits, and logits of the bins of every side."""
        return {"logits": self.to_class(class_features), "boxes": self.scales[level](self.to_box(box_features))}

    def losses(self, outputs: Outputs, assigned: Assigned) -> dict[str, Tensor]:
        """`class` (QFL), `box` (GIoU) and `distribution` (DFL); the latter two weigh the anchor's best class score."""
        logits = outputs["logits"]
        sides = assigned.positives(outputs["boxes"])  # [P, 4 * (M + 1)]
        boxes = self.decode(sides, assigned.prior_boxes, assigned.strides)
        quality = iou(boxes.detach(), assigned.boxes)
        weight = assigned.positives(logits).detach().sigmoid().amax(-1)  # [P]
        total = mean_over_ranks(weight.sum(), logits, minimum=1e-12)
        truth = self.coder.encode(assigned.prior_boxes, assigned.boxes) / assigned.strides[:, None]
        distribution = distribution_focal(sides.unflatten(-1, (4, -1)), truth.clamp(0, self.bins - 0.1)).mean(-1)
        return {
            "class": assigned.total(quality_focal(logits, assigned.targets(logits, quality))) / assigned.count(logits),
            "box": self.box_weight * (giou_loss(boxes, assigned.boxes) * weight).sum() / total,
            "distribution": self.distribution_weight * (distribution * weight).sum() / total,
        }

    def decode(self, values: Tensor, priors: Tensor, strides: Tensor, max_size: Size = None) -> Tensor:
        """The mean of each side's distribution, in strides, to boxes."""
        return self.coder.decode(priors, expected_bin(values) * strides[..., None], max_size)


# --- Entry functions


@register(
    dense_1x,
    family="GFL",
    paper="arXiv 2006.04388",
    published=Published(40.2, "MMDetection 2.x model zoo: R50, 1x"),
)
def gfl_r50_fpn(
    num_classes: int = 80,
    *,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> DenseDetector:
    """GFL with ResNet-50 (or any timm backbone), FPN and GN heads."""
    body = Backbone(backbone, STRIDES[:3], backbone_weights, norm="eval", frozen_stages=1, **(backbone_options or {}))
    head = GFLHead(
        num_classes,
        priors=AnchorGenerator.retina(STRIDES, base=8, per_octave=1, ratios=(1.0,)),
        assigner=ATSSAssigner(9),
        norm=group_norm(32),
        post=PostProcess(iou_threshold=0.6),
    )
    return DenseDetector(body, FPN(body.channels, 256, 5, extra="output"), head)


@register(dense_tiny, family="GFL", paper="arXiv 2006.04388")
def gfl_tiny(
    num_classes: int = 10,
    *,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> DenseDetector:
    """Small enough to train from scratch on a CPU in minutes."""
    body = tiny_backbone(STRIDES[:3], backbone, backbone_weights, backbone_options)
    head = GFLHead(
        num_classes,
        priors=AnchorGenerator.retina(STRIDES[:4], base=4, per_octave=1, ratios=(1.0,)),
        assigner=ATSSAssigner(9),
        bins=8,
        in_channels=64,
        channels=64,
        convs=2,
        norm=group_norm(8),
        post=PostProcess(iou_threshold=0.6),
    )
    return DenseDetector(body, FPN(body.channels, 64, 4, extra="output"), head)
