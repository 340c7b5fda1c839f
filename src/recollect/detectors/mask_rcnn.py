"""Mask R-CNN: Faster R-CNN with a mask for every box.

Paper: Mask R-CNN (He et al., ICCV 2017, arXiv 1703.06870). Conventions follow MMDetection 2.x (Apache-2.0); this file
is our own. Published COCO val2017 AP, R50-FPN, MMDetection 2.x, 1x: box 38.2, mask 34.7.

Conventions: proposals that an object overlaps best are positive whatever their IoU, if that is 0.5 or more (as
MMDetection configures it); masks are cut at a probability of 0.5; `torchvision=True` as in faster_rcnn.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from recollect.detectors.faster_rcnn import (
    TINY_SAMPLER,
    box_stage,
    c4,
    one_map_rpn,
    pool,
    pyramid,
    tiny_pyramid,
    torchvision_l1,
    torchvision_rpn,
)
from recollect.detectors.roi_heads import RoIHead
from recollect.detectors.roi_stage import RoIStage
from recollect.detectors.rpn import RPNHead, tiny_rpn_head, two_stage_1x, two_stage_2x, two_stage_tiny
from recollect.detectors.two_stage import TwoStageDetector
from recollect.layers.roi_heads import BoxHead, MaskHead
from recollect.losses.boxes import l1
from recollect.matching.max_iou import MaxIoUAssigner
from recollect.registry import Published, register

PAPER = "arXiv 1703.06870"
ASSIGNER = MaxIoUAssigner(0.5, 0.5, min_positive=0.5, low_quality=True)


@register(
    two_stage_1x,
    family="Mask R-CNN",
    paper=PAPER,
    published=Published(38.2, "MMDetection 2.x model zoo: R50-FPN, 1x; mask AP 34.7"),
    masks=True,
)
def mask_rcnn_r50_fpn(
    num_classes: int = 80,
    *,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    torchvision: bool = False,
) -> TwoStageDetector:
    """Mask R-CNN with ResNet-50 (or any timm backbone) and FPN; `torchvision`: that library's conventions."""
    body, neck = pyramid(backbone, backbone_weights, backbone_options)
    heads = BoxHead(num_classes), MaskHead(num_classes)
    if torchvision:
        stage = box_stage(heads[0], mask_head=heads[1], box_loss=torchvision_l1())
    else:
        stage = RoIStage(heads[0], ASSIGNER, mask_head=heads[1], box_loss=l1)
    roi = RoIHead([stage], num_classes, pool(7, torchvision), pool(14, torchvision))
    return TwoStageDetector(body, neck, torchvision_rpn() if torchvision else RPNHead(), roi)


@register(two_stage_2x, family="Mask R-CNN", paper=PAPER, like=mask_rcnn_r50_fpn, masks=True)
def mask_rcnn_r50_fpn_2x(num_classes: int = 80, **options: Any) -> TwoStageDetector:
    """Mask R-CNN R50-FPN on the 24-epoch schedule."""
    return mask_rcnn_r50_fpn(num_classes, **options)


@register(two_stage_1x, family="Mask R-CNN", paper=PAPER, masks=True)
def mask_rcnn_r50_c4(
    num_classes: int = 80,
    *,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> TwoStageDetector:
    """Mask R-CNN on the stride-16 map; boxes and masks share what the last stage of the ResNet makes of every box."""
    body, shared = c4(backbone, backbone_weights, backbone_options)
    box_head = BoxHead(num_classes, shared.channels, layers=0)
    stage = box_stage(box_head, mask_head=MaskHead(num_classes, shared.channels, convs=0))
    wide = body.channels[0]
    return TwoStageDetector(body, nn.Identity(), one_map_rpn(wide, wide), RoIHead([stage], num_classes, shared))


@register(two_stage_tiny, family="Mask R-CNN", paper=PAPER, masks=True)
def mask_rcnn_tiny(
    num_classes: int = 10,
    *,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> TwoStageDetector:
    """Small enough to train from scratch on a CPU in minutes; masks of 28 x 28 cells."""
    body, neck = tiny_pyramid(backbone, backbone_weights, backbone_options)
    heads = BoxHead(num_classes, 64, width=128), MaskHead(num_classes, 64, 64, convs=2)
    stage = RoIStage(heads[0], ASSIGNER, TINY_SAMPLER, mask_head=heads[1])
    return TwoStageDetector(body, neck, tiny_rpn_head(), RoIHead([stage], num_classes, pool(7), pool(14)))
