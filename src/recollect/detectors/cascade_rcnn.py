"""Cascade R-CNN and Cascade Mask R-CNN: three stages, each trained on what the one before it made of its boxes.

Paper: Cascade R-CNN (Cai and Vasconcelos, CVPR 2018, arXiv 1712.00726). Conventions follow MMDetection 2.x
(Apache-2.0); this file is our own. Published COCO val2017 AP, R50-FPN, MMDetection 2.x, 1x: Cascade R-CNN box 40.3;
Cascade Mask R-CNN box 41.2, mask 35.9.

Stages differ in the IoU that makes a positive (0.5, 0.6, 0.7), the spread of their box deltas and the weight of their
losses (1, 0.5, 0.25). At inference the class logits of all stages are averaged, boxes are the last stage's, and mask
probabilities are averaged over the stages.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from recollect.detectors.faster_rcnn import TINY_SAMPLER, box_stage, pool, pyramid, tiny_pyramid
from recollect.detectors.roi_heads import RoIHead
from recollect.detectors.roi_stage import SAMPLER, RoIStage
from recollect.detectors.rpn import RPNHead, tiny_rpn_head, two_stage_1x, two_stage_2x, two_stage_tiny
from recollect.detectors.two_stage import TwoStageDetector
from recollect.layers.box_coders import DeltaBoxCoder
from recollect.layers.roi_heads import BoxHead, MaskHead
from recollect.losses.boxes import smooth_l1
from recollect.matching.samplers import RandomSampler
from recollect.registry import Published, register

PAPER = "arXiv 1712.00726"
THRESHOLDS = (0.5, 0.6, 0.7)
STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
WEIGHTS = (1.0, 0.5, 0.25)


def cascade_stages(
    num_classes: int,
    box: dict[str, Any],
    mask: dict[str, Any] | None = None,
    sampler: RandomSampler = SAMPLER,
) -> list[RoIStage]:
    """Section 4: one stage per threshold, with class-agnostic boxes. box, mask: options of BoxHead and MaskHead."""
    return [
        box_stage(
            BoxHead(num_classes, class_agnostic=True, **box),
            threshold,
            mask_head=None if mask is None else MaskHead(num_classes, **mask),
            coder=DeltaBoxCoder(stds=stds),
            box_loss=smooth_l1,
            weight=weight,
            sampler=sampler,
        )
        for threshold, stds, weight in zip(THRESHOLDS, STDS, WEIGHTS)
    ]


@register(
    two_stage_1x,
    family="Cascade R-CNN",
    paper=PAPER,
    published=Published(40.3, "MMDetection 2.x model zoo: R50-FPN, 1x"),
)
def cascade_rcnn_r50_fpn(
    num_classes: int = 80,
    *,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    masks: bool = False,
) -> TwoStageDetector:
    """Cascade R-CNN with ResNet-50 (or any timm backbone) and FPN; `masks`: with a mask head per stage."""
    body, neck = pyramid(backbone, backbone_weights, backbone_options)
    stages = cascade_stages(num_classes, {}, {} if masks else None)
    roi = RoIHead(stages, num_classes, pool(7), pool(14) if masks else None)
    return TwoStageDetector(body, neck, cascade_rpn(), roi)


def cascade_rpn() -> RPNHead:
    """Proposals with the box loss of the cascade, 2000 of them in training."""
    return RPNHead(box_loss=partial(smooth_l1, beta=1 / 9), proposals=(2000, 1000))


@register(two_stage_2x, family="Cascade R-CNN", paper=PAPER, like=cascade_rcnn_r50_fpn)
def cascade_rcnn_r50_fpn_2x(num_classes: int = 80, **options: Any) -> TwoStageDetector:
    """Cascade R-CNN R50-FPN on the 24-epoch schedule."""
    return cascade_rcnn_r50_fpn(num_classes, **options)


@register(
    two_stage_1x,
    family="Cascade R-CNN",
    paper=PAPER,
    published=Published(41.2, "MMDetection 2.x model zoo: R50-FPN, 1x; mask AP 35.9"),
    like=cascade_rcnn_r50_fpn,
    masks=True,
)
def cascade_mask_rcnn_r50_fpn(num_classes: int = 80, **options: Any) -> TwoStageDetector:
    """Cascade R-CNN with a mask head in every stage."""
    return cascade_rcnn_r50_fpn(num_classes, **{"masks": True, **options})


@register(two_stage_2x, family="Cascade R-CNN", paper=PAPER, like=cascade_rcnn_r50_fpn, masks=True)
def cascade_mask_rcnn_r50_fpn_2x(num_classes: int = 80, **options: Any) -> TwoStageDetector:
    """Cascade Mask R-CNN R50-FPN on the 24-epoch schedule."""
    return cascade_mask_rcnn_r50_fpn(num_classes, **options)


@register(two_stage_tiny, family="Cascade R-CNN", paper=PAPER)
def cascade_rcnn_tiny(
    num_classes: int = 10,
    *,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    masks: bool = False,
) -> TwoStageDetector:
    """Small enough to train from scratch on a CPU in minutes; `masks`: with a mask head per stage."""
    body, neck = tiny_pyramid(backbone, backbone_weights, backbone_options)
    mask = {"in_channels": 64, "channels": 64, "convs": 1} if masks else None
    stages = cascade_stages(num_classes, {"in_channels": 64, "width": 128}, mask, TINY_SAMPLER)
    roi = RoIHead(stages, num_classes, pool(7), pool(14) if masks else None)
    return TwoStageDetector(body, neck, tiny_rpn_head(), roi)


@register(two_stage_tiny, family="Cascade R-CNN", paper=PAPER, like=cascade_rcnn_tiny, masks=True)
def cascade_mask_rcnn_tiny(num_classes: int = 10, **options: Any) -> TwoStageDetector:
    """The tiny cascade with masks."""
    return cascade_rcnn_tiny(num_classes, **{"masks": True, **options})
