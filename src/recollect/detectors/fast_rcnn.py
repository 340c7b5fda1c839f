"""Fast R-CNN: the second stage alone, on proposals that something else has made.

Paper: Fast R-CNN (Girshick, ICCV 2015, arXiv 1504.08083), here with a feature pyramid as in MMDetection 2.x
(Apache-2.0); this file is our own.

Proposals come in the targets, as `proposals` [n, 4] xyxy in the pixels of the image given, in training and in
evaluation: `recollect.data.with_proposals(dataset, file)` puts them there, from a file that an RPN has written with
`recollect predict --proposals FILE`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recollect.detectors.faster_rcnn import TINY_SAMPLER, box_stage, pool, pyramid, tiny_pyramid
from recollect.detectors.roi_heads import RoIHead
from recollect.detectors.rpn import two_stage_1x, two_stage_2x, two_stage_tiny
from recollect.detectors.two_stage import TwoStageDetector
from recollect.layers.roi_heads import BoxHead
from recollect.registry import register

PAPER = "arXiv 1504.08083"


@register(two_stage_1x, family="Fast R-CNN", paper=PAPER)
def fast_rcnn_r50_fpn(
    num_classes: int = 80,
    *,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> TwoStageDetector:
    """Fast R-CNN with ResNet-50 (or any timm backbone) and FPN."""
    body, neck = pyramid(backbone, backbone_weights, backbone_options)
    return TwoStageDetector(body, neck, None, RoIHead([box_stage(BoxHead(num_classes))], num_classes, pool(7)))


@register(two_stage_2x, family="Fast R-CNN", paper=PAPER, like=fast_rcnn_r50_fpn)
def fast_rcnn_r50_fpn_2x(num_classes: int = 80, **options: Any) -> TwoStageDetector:
    """Fast R-CNN R50-FPN on the 24-epoch schedule."""
    return fast_rcnn_r50_fpn(num_classes, **options)


@register(two_stage_tiny, family="Fast R-CNN", paper=PAPER)
def fast_rcnn_tiny(
    num_classes: int = 10,
    *,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> TwoStageDetector:
    """Small enough to train from scratch on a CPU in minutes."""
    body, neck = tiny_pyramid(backbone, backbone_weights, backbone_options)
    stage = box_stage(BoxHead(num_classes, 64, width=128), sampler=TINY_SAMPLER)
    return TwoStageDetector(body, neck, None, RoIHead([stage], num_classes, pool(7)))
