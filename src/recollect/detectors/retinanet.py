"""RetinaNet.

Paper: Focal Loss for Dense Object Detection (Lin et al., ICCV 2017, arXiv 1708.02002). Official code: Detectron
(Apache-2.0); numbers and conventions follow MMDetection 2.x (Apache-2.0); this file is our own.

Published COCO val2017 box AP, R50, MMDetection 2.x: 36.5 (1x), 37.4 (2x).

Deviations and conventions:
- an object that overlaps no anchor at all gets none (MMDetection then takes every anchor of IoU 0);
- losses are divided by the positives of the batch, at least one per image, mean over ranks (MMDetection: per rank);
- anchors are not rounded; their centres stand on the cells' corners;
- `torchvision="v1"` takes that library's conventions: anchors in whole pixels, extra levels made from P5, top-k over
  pairs of anchor and class, 300 detections; "v2" also group norm in the towers and GIoU loss, extra levels from C5.
  What remains different from it is listed in tests/dense/test_torchvision.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from recollect.backbones import Backbone, tiny_backbone
from recollect.detectors.dense import DenseDetector, DenseHead, Outputs
from recollect.layers.anchors import AnchorGenerator
from recollect.layers.box_coders import DeltaBoxCoder
from recollect.layers.conv import group_norm
from recollect.layers.fpn import FPN
from recollect.losses.assigned import Assigned
from recollect.losses.boxes import giou_loss, l1
from recollect.losses.focal import focal
from recollect.matching.max_iou import MaxIoUAssigner
from recollect.ops.nms import PostProcess
from recollect.recipe import Data, Optimiser, Recipe, Resize, Schedule
from recollect.registry import Published, register

STRIDES = (8, 16, 32, 64, 128)


class RetinaHead(DenseHead):
    """Section 4: two towers, nine anchors per cell, focal loss over all of them, L1 on the positives' deltas.

    box_loss: of (deltas, target deltas), elementwise; or with `decoded` of (boxes, objects), per pair.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        box_loss: Callable[[Tensor, Tensor], Tensor] = l1,
        decoded: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, **options)
        self.box_loss, self.decoded = box_loss, decoded

    def losses(self, outputs: Outputs, assigned: Assigned) -> dict[str, Tensor]:
        """`class` and `box`."""
        logits, boxes, truth = outputs["logits"], assigned.positives(outputs["boxes"]), assigned.boxes
        count = assigned.count(logits)
        if self.decoded:
            boxes = self.decode(boxes, assigned.prior_boxes, assigned.strides)
        else:
            truth = self.coder.encode(assigned.prior_boxes, truth)
        return {
            "class": assigned.total(focal(logits, assigned.targets(logits))) / count,
            "box": self.box_loss(boxes, truth).sum() / count,
        }


# --- Entry functions


def dense_1x() -> Recipe:
    """12 epochs of SGD at 0.01 for a batch of 16, as MMDetection trains RetinaNet, ATSS and GFL."""
    return Recipe(
        data=Data(resize=Resize((800,), 1333)),
        optimiser=Optimiser(lr=0.01, batch=16, weight_decay=1e-4, clip_norm=0.0, kind="sgd", momentum=0.9),
        schedule=Schedule(epochs=12, drops=(8 / 12, 11 / 12), warmup_steps=500, warmup_start=0.001),
    )


def dense_2x() -> Recipe:
    """24 epochs, otherwise `dense_1x`."""
    base = dense_1x()
    return replace(base, schedule=replace(base.schedule, epochs=24, drops=(16 / 24, 22 / 24)))


def dense_tiny() -> Recipe:
    """From scratch on small images, on a CPU."""
    return Recipe(
        data=Data(resize=Resize((128,), 256)),
        optimiser=Optimiser(lr=2e-3, batch=16, weight_decay=1e-4, clip_norm=10.0),
        schedule=Schedule(steps=1000, drops=(0.67, 0.92), warmup_steps=100),
    )


@register(
    dense_1x,
    family="RetinaNet",
    paper="arXiv 1708.02002",
    published=Published(36.5, "MMDetection 2.x model zoo: R50, 1x"),
)
def retinanet_r50_fpn(
    num_classes: int = 80,
    *,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    torchvision: Literal["", "v1", "v2"] = "",
) -> DenseDetector:
    """RetinaNet with ResNet-50 (or any timm backbone) and FPN; `torchvision`: that library's conventions."""
    if torchvision not in ("", "v1", "v2"):
        raise ValueError(f"torchvision's conventions are 'v1', 'v2' or '' for none, not {torchvision!r}")
    body = Backbone(backbone, STRIDES[:3], backbone_weights, norm="eval", frozen_stages=1, **(backbone_options or {}))
    extra = "output" if torchvision == "v1" else "input"
    sizes = [[int(4 * s * 2 ** (i / 3)) for i in range(3)] for s in STRIDES]
    anchors = AnchorGenerator.of_sizes(STRIDES, sizes, (0.5, 1.0, 2.0), rounded=True)
    head = RetinaHead(
        num_classes,
        priors=anchors if torchvision else AnchorGenerator.retina(STRIDES),
        coder=DeltaBoxCoder(),
        assigner=MaxIoUAssigner(0.5, 0.4, min_positive=0.0),
        norm=group_norm(32) if torchvision == "v2" else None,
        post=PostProcess(pairs=bool(torchvision), max_detections=300 if torchvision else 100),
        box_loss=giou_loss if torchvision == "v2" else l1,
        decoded=torchvision == "v2",
    )
    return DenseDetector(body, FPN(body.channels, 256, 5, extra=extra, relu_before_extra=bool(torchvision)), head)


@register(dense_tiny, family="RetinaNet", paper="arXiv 1708.02002")
def retinanet_tiny(
    num_classes: int = 10,
    *,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> DenseDetector:
    """Small enough to train from scratch on a CPU in minutes."""
    body = tiny_backbone(STRIDES[:3], backbone, backbone_weights, backbone_options)
    head = RetinaHead(
        num_classes,
        priors=AnchorGenerator.retina(STRIDES[:4], base=2),
        coder=DeltaBoxCoder(),
        assigner=MaxIoUAssigner(0.5, 0.4),
        in_channels=64,
        channels=64,
        convs=2,
        norm=group_norm(8),
    )
    return DenseDetector(body, FPN(body.channels, 64, 4, extra="output"), head)
