"""Faster R-CNN, with a feature pyramid, and on one map as C4 and DC5.

Papers: Faster R-CNN (Ren et al., NeurIPS 2015, arXiv 1506.01497); Feature Pyramid Networks (Lin et al., CVPR 2017,
arXiv 1612.03144). Conventions follow MMDetection 2.x (Apache-2.0); this file is our own.

Published COCO val2017 box AP, R50, MMDetection 2.x: 37.4 (FPN, 1x), 38.4 (2x); DC5 37.2 with Caffe-style weights.

Deviations and conventions:
- C4 and DC5 stand on torchvision-style ResNets (stride in the 3x3 convolution), not on Caffe's;
- `torchvision=True` takes torchvision's ways: rounded anchors, RoIAlign with two samples per cell and no half-cell
  shift, smooth L1 at 1/9, 2000 proposals in training. What still differs from torchvision's own model: labels without
  background, decoded sizes limited below as well as above, a prior that several objects want goes to the last of them
  (torchvision: to the one it overlaps most), and crowds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recollect.backbones import Backbone, tiny_backbone
from recollect.detectors.roi_heads import RoIHead
from recollect.detectors.roi_stage import RoIStage
from recollect.detectors.rpn import STRIDES, RPNHead, tiny_rpn_head, two_stage_1x, two_stage_2x, two_stage_tiny
from recollect.detectors.two_stage import TwoStageDetector
from recollect.layers.anchors import AnchorGenerator
from recollect.layers.fpn import FPN
from recollect.layers.roi_align import MultiLevelRoIAlign
from recollect.layers.roi_heads import BoxHead
from recollect.losses.boxes import l1, smooth_l1
from recollect.matching.max_iou import MaxIoUAssigner
from recollect.matching.samplers import RandomSampler
from recollect.registry import Published, register

PAPER = "arXiv 1506.01497"
ROI_STRIDES = STRIDES[:4]


def pyramid(backbone: str, weights: str | Path | None, options: dict[str, Any] | None) -> tuple[Backbone, FPN]:
    """ResNet-50 (or any timm backbone) with its first stage frozen, and the FPN of 256 channels of this family."""
    body = Backbone(backbone, ROI_STRIDES, weights, norm="eval", frozen_stages=1, **(options or {}))
    return body, FPN(body.channels, 256, 5)


def box_stage(head: nn.Module, threshold: float = 0.5, **options: Any) -> RoIStage:
    """A stage for which a proposal is positive from an IoU of `threshold` on."""
    return RoIStage(head, MaxIoUAssigner(threshold, threshold, low_quality=False), **options)


@register(
    two_stage_1x,
    family="Faster R-CNN",
    paper=PAPER,
    published=Published(37.4, "MMDetection 2.x model zoo: R50-FPN, 1x"),
)
def faster_rcnn_r50_fpn(
    num_classes: int = 80,
    *,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    torchvision: bool = False,
) -> TwoStageDetector:
    """Faster R-CNN with ResNet-50 (or any timm backbone) and FPN; `torchvision`: that library's conventions."""
    body, neck = pyramid(backbone, backbone_weights, backbone_options)
    stage = box_stage(BoxHead(num_classes), box_loss=torchvision_l1() if torchvision else l1)
    roi = RoIHead([stage], num_classes, pool(7, torchvision))
    return TwoStageDetector(body, neck, torchvision_rpn() if torchvision else RPNHead(), roi)


def pool(size: int, torchvision: bool = False) -> MultiLevelRoIAlign:
    """RoI features from the four finest levels of the pyramid."""
    return MultiLevelRoIAlign(size, ROI_STRIDES, sampling=2 if torchvision else 0, aligned=not torchvision)


def torchvision_l1() -> Callable[[Tensor, Tensor], Tensor]:
    """Smooth L1 as torchvision's detectors take it."""
    return partial(smooth_l1, beta=1 / 9)


def torchvision_rpn() -> RPNHead:
    """The proposals of torchvision's detectors."""
    anchors = AnchorGenerator.of_sizes(STRIDES, [[8.0 * s] for s in STRIDES], (0.5, 1.0, 2.0), rounded=True)
    return RPNHead(
        anchors=anchors,
        proposals=(2000, 1000),
        min_size=1e-3,
        box_loss=torchvision_l1(),
        assigner=MaxIoUAssigner(0.7, 0.3),
        padding=True,
    )


@register(
    two_stage_2x,
    family="Faster R-CNN",
    paper=PAPER,
    published=Published(38.4, "MMDetection 2.x model zoo: R50-FPN, 2x"),
    like=faster_rcnn_r50_fpn,
)
def faster_rcnn_r50_fpn_2x(num_classes: int = 80, **options: Any) -> TwoStageDetector:
    """Faster R-CNN R50-FPN on the 24-epoch schedule."""
    return faster_rcnn_r50_fpn(num_classes, **options)


# --- On one map: C4 and DC5


class SharedHead(nn.Module):
    """RoI features run through the last stage of a ResNet, whose batch norm keeps its statistics.

    forward: maps, boxes -> [R, channels, S / 2, S / 2].
    """

    def __init__(self, pool: MultiLevelRoIAlign, stage: nn.Module, channels: int) -> None:
        super().__init__()
        self.pool, self.stage, self.channels = pool, stage, channels

    def train(self, mode: bool = True) -> SharedHead:
        """As usual, but batch norm stays in evaluation mode."""
        super().train(mode)
        for module in self.stage.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Features of boxes [n_i, 4] of each image."""
        return self.stage(self.pool(maps, boxes))


def c4(backbone: str, weights: str | Path | None, options: dict[str, Any] | None) -> tuple[Backbone, SharedHead]:
    """A ResNet cut in two: features at stride 16, and its last stage, to be run on the features of every box."""
    body = Backbone(backbone, (16, 32), weights, norm="frozen", frozen_stages=1, **(options or {}))
    stages = dict(body.body.named_children())
    if "layer4" not in stages:
        raise ValueError(f"backbone {backbone!r} does not come apart before its last stage; C4 needs a ResNet")
    channels = body.channels.pop()
    body.strides = (16,)
    last = body.body.pop("layer4")
    return body, SharedHead(MultiLevelRoIAlign(14, (16,)), last, channels)


def one_map_rpn(channels: int, wide: int) -> RPNHead:
    """Proposals on a single map of stride 16, anchors of 32 to 512 pixels."""
    anchors = AnchorGenerator.scaled((16,), (2, 4, 8, 16, 32))
    return RPNHead(channels, wide, anchors=anchors, candidates=(12000, 6000), proposals=(2000, 1000))


@register(two_stage_1x, family="Faster R-CNN", paper=PAPER)
def faster_rcnn_r50_c4(
    num_classes: int = 80,
    *,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> TwoStageDetector:
    """Proposals and RoI features on the stride-16 map; the last stage of the ResNet runs on every box (C4)."""
    body, shared = c4(backbone, backbone_weights, backbone_options)
    stage = box_stage(BoxHead(num_classes, shared.channels, layers=0))
    roi = RoIHead([stage], num_classes, shared)
    return TwoStageDetector(body, nn.Identity(), one_map_rpn(body.channels[0], body.channels[0]), roi)


@register(
    two_stage_1x,
    family="Faster R-CNN",
    paper=PAPER,
    published=Published(37.2, "MMDetection 2.x model zoo: R50-DC5, 1x, Caffe-style weights"),
)
def faster_rcnn_r50_dc5(
    num_classes: int = 80,
    *,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> TwoStageDetector:
    """Proposals and RoI features on the last map, kept at stride 16 by dilation (DC5)."""
    options = {"output_stride": 16, **(backbone_options or {})}
    body = Backbone(backbone, (16,), backbone_weights, norm="frozen", frozen_stages=1, **options)
    stage = box_stage(BoxHead(num_classes, body.channels[0]))
    roi = RoIHead([stage], num_classes, MultiLevelRoIAlign(7, (16,)))
    return TwoStageDetector(body, nn.Identity(), one_map_rpn(body.channels[0], body.channels[0]), roi)


# --- Tiny


@register(two_stage_tiny, family="Faster R-CNN", paper=PAPER)
def faster_rcnn_tiny(
    num_classes: int = 10,
    *,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> TwoStageDetector:
    """Small enough to train from scratch on a CPU in minutes."""
    body, neck = tiny_pyramid(backbone, backbone_weights, backbone_options)
    stage = box_stage(BoxHead(num_classes, 64, width=128), sampler=TINY_SAMPLER)
    return TwoStageDetector(body, neck, tiny_rpn_head(), RoIHead([stage], num_classes, pool(7)))


TINY_SAMPLER = RandomSampler(64, 0.25)


def tiny_pyramid(backbone: str, weights: str | Path | None, options: dict[str, Any] | None) -> tuple[Backbone, FPN]:
    """The narrow ResNet-10 of the tiny detectors with an FPN of 64 channels."""
    body = tiny_backbone(ROI_STRIDES, backbone, weights, options)
    return body, FPN(body.channels, 64, 5)
