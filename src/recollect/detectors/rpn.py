"""Region proposal network: class-agnostic anchors, as a head and as a detector of its own.

Paper: Faster R-CNN (Ren et al., NeurIPS 2015, arXiv 1506.01497); with a pyramid as in FPN (arXiv 1612.03144).
Conventions follow MMDetection 2.x (Apache-2.0); this file is our own. Published: AR@1000 58.2 on COCO val2017, R50, 1x.

Deviations and conventions:
- the loss is divided by the anchors sampled, mean over ranks (MMDetection: per rank);
- at inference anchors in the padding are read too, as in MMDetection: their boxes are cut at the image's border;
- `min_size` drops boxes narrower or lower than that (MMDetection's filter tests a sum of indices, and may not filter).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recollect.backbones import Backbone, tiny_backbone
from recollect.detectors.dense import DenseDetector, DenseHead, Outputs
from recollect.layers.anchors import AnchorGenerator
from recollect.layers.box_coders import DeltaBoxCoder
from recollect.layers.conv import init_normal
from recollect.layers.fpn import FPN
from recollect.losses.assigned import Assigned
from recollect.losses.boxes import l1
from recollect.losses.normaliser import mean_over_ranks
from recollect.matching.max_iou import MaxIoUAssigner
from recollect.matching.samplers import RandomSampler
from recollect.ops.nms import batched_nms
from recollect.recipe import Data, Optimiser, Recipe, Resize, Schedule
from recollect.registry import register
from recollect.structures import IGNORED, NEGATIVE, ImageBatch, Priors, Target

STRIDES = (4, 8, 16, 32, 64)
ASSIGNER = MaxIoUAssigner(0.7, 0.3, min_positive=0.3)
SAMPLER = RandomSampler(256, 0.5)


class RPNHead(DenseHead):
    """A 3x3 convolution, then objectness and deltas of every anchor. Its "detections" are proposals, all of label 0.

    candidates: kept per level before NMS, (in training, at inference); proposals: kept of all levels after it.
    box_loss: of (deltas, target deltas), elementwise.
    """

    def __init__(
        self,
        in_channels: int = 256,
        channels: int = 256,
        *,
        anchors: AnchorGenerator | None = None,
        border: float | None = None,
        candidates: tuple[int, int] = (2000, 1000),
        proposals: tuple[int, int] = (1000, 1000),
        iou_threshold: float = 0.7,
        min_size: float = 0.0,
        score_threshold: float = 0.0,
        box_loss: Callable[[Tensor, Tensor], Tensor] = l1,
        assigner: MaxIoUAssigner = ASSIGNER,
        sampler: RandomSampler = SAMPLER,
        padding: bool = False,
    ) -> None:
        super().__init__(
            1,
            priors=anchors or AnchorGenerator.scaled(STRIDES, [8]),
            coder=DeltaBoxCoder(),
            assigner=assigner,
            sampler=sampler,
            in_channels=in_channels,
            channels=channels,
            convs=0,
            border=border,
            padding=padding,
        )
        per_cell = self.priors.per_cell[0]
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.to_class = nn.Conv2d(channels, per_cell, 1)
        self.to_box = nn.Conv2d(channels, per_cell * 4, 1)
        init_normal(self)
        self.candidates, self.proposals_kept = candidates, proposals
        self.iou_threshold, self.min_size, self.score_threshold = iou_threshold, min_size, score_threshold
        self.box_loss = box_loss

    @property
    def num_detections(self) -> int:
        """Proposals kept per image at inference."""
        return self.proposals_kept[1]

    @num_detections.setter
    def num_detections(self, count: int) -> None:
        self.proposals_kept = (self.proposals_kept[0], count)

    def predict(self, class_features: Tensor, box_features: Tensor, level: int) -> Outputs:
        """One level's map -> objectness [B, A, H, W] and deltas [B, 4 A, H, W]."""
        del box_features, level  # without towers both are the level's own map
        x = F.relu(self.conv(class_features))
        return {"logits": self.to_class(x), "boxes": self.to_box(x)}

    def losses(self, outputs: Outputs, assigned: Assigned) -> dict[str, Tensor]:
        """`rpn_class` and `rpn_box`, over the anchors sampled (counted as at least one of each kind per image)."""
        logits, deltas = outputs["logits"], outputs["boxes"]
        positives = (assigned.gt_index >= 0).sum(1).clamp(min=1)
        negatives = (assigned.gt_index == NEGATIVE).sum(1).clamp(min=1)
        count = mean_over_ranks((positives + negatives).sum(), logits)
        sampled = assigned.gt_index != IGNORED
        objects = (assigned.gt_index[sampled] >= 0).to(logits.dtype)
        objectness = F.binary_cross_entropy_with_logits(logits[..., 0][sampled], objects, reduction="sum")
        truth = self.coder.encode(assigned.prior_boxes, assigned.boxes)
        return {
            "rpn_class": objectness / count,
            "rpn_box": self.box_loss(assigned.positives(deltas), truth).sum() / count,
        }

    @torch.no_grad()
    def detect(self, outputs: Outputs, priors: Priors, size: tuple[int, int]) -> dict[str, Tensor]:
        """One image's outputs [N, D] -> the best proposals: `boxes`, `scores` and `labels` (0)."""
        scores = outputs["logits"][:, 0].sigmoid()
        limit = self.candidates[0 if self.training else 1]
        kept, levels, start = [], [], 0
        for level, count in enumerate(priors.counts):
            best = scores[start : start + count].topk(min(limit, count)).indices
            kept.append(best + start)
            levels.append(torch.full_like(best, level))
            start += count
        chosen, level = torch.cat(kept), torch.cat(levels)
        boxes = self.coder.decode(priors.boxes[chosen], outputs["boxes"][chosen], size)
        scores = scores[chosen]
        usable = (boxes[:, 2:] - boxes[:, :2] >= self.min_size).all(1) & (scores >= self.score_threshold)
        boxes, scores, level = boxes[usable], scores[usable], level[usable]
        best = batched_nms(boxes, scores, level, self.iou_threshold)
        best = best[: self.proposals_kept[0 if self.training else 1]]
        return {"boxes": boxes[best], "scores": scores[best], "labels": torch.zeros_like(best)}

    def loss_and_proposals(
        self, features: Sequence[Tensor], targets: Sequence[Target] | None, batch: ImageBatch
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """For two-stage detectors: the losses (none without targets) and proposals [n, 4] of each image."""
        outputs, priors = self(features)
        with torch.autocast(features[0].device.type, enabled=False):
            losses: dict[str, Tensor] = {}
            if targets is not None:
                losses = self.losses(outputs, self.assign(outputs, priors, features, targets, batch))
            images = range(len(batch.sizes))
            each = [self.detect({k: v[i].detach() for k, v in outputs.items()}, priors, batch.sizes[i]) for i in images]
        return losses, [one["boxes"] for one in each]


class RPN(DenseDetector):
    """The network alone: detections are proposals, to be scored by their recall or written for Fast R-CNN."""

    head: RPNHead

    @property
    def num_detections(self) -> int:
        """Proposals kept per image."""
        return self.head.num_detections

    @num_detections.setter
    def num_detections(self, count: int) -> None:
        self.head.num_detections = count


# --- Recipes and entry functions


def two_stage_1x() -> Recipe:
    """12 epochs of SGD at 0.02 for a batch of 16, as MMDetection trains the R-CNN family."""
    return Recipe(
        data=Data(resize=Resize((800,), 1333)),
        optimiser=Optimiser(lr=0.02, batch=16, weight_decay=1e-4, clip_norm=0.0, kind="sgd", momentum=0.9),
        schedule=Schedule(epochs=12, drops=(8 / 12, 11 / 12), warmup_steps=500, warmup_start=0.001),
    )


def two_stage_2x() -> Recipe:
    """24 epochs, otherwise `two_stage_1x`."""
    base = two_stage_1x()
    return replace(base, schedule=replace(base.schedule, epochs=24, drops=(16 / 24, 22 / 24)))


def two_stage_tiny() -> Recipe:
    """From scratch on small images, on a CPU."""
    return Recipe(
        data=Data(resize=Resize((128,), 256)),
        optimiser=Optimiser(lr=1e-3, batch=16, weight_decay=1e-4, clip_norm=10.0),
        schedule=Schedule(steps=1000, drops=(0.67, 0.92), warmup_steps=100),
    )


@register(two_stage_1x, family="RPN", paper="arXiv 1506.01497")
def rpn_r50_fpn(
    num_classes: int = 80,
    *,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> RPN:
    """Region proposals from ResNet-50 (or any timm backbone) with FPN; classes are not told apart."""
    del num_classes
    body = Backbone(backbone, STRIDES[:4], backbone_weights, norm="eval", frozen_stages=1, **(backbone_options or {}))
    return RPN(body, FPN(body.channels, 256, 5), RPNHead(border=0))


def tiny_rpn_head() -> RPNHead:
    """For the tiny detectors of this family: 64 channels, objects from 16 pixels on, fewer proposals."""
    anchors = AnchorGenerator.scaled(STRIDES, [4])
    return RPNHead(64, 64, anchors=anchors, candidates=(500, 300), proposals=(200, 100), sampler=RandomSampler(128))


@register(two_stage_tiny, family="RPN", paper="arXiv 1506.01497")
def rpn_tiny(
    num_classes: int = 10,
    *,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> RPN:
    """Small enough to train from scratch on a CPU in minutes."""
    del num_classes
    body = tiny_backbone(STRIDES[:4], backbone, backbone_weights, backbone_options)
    return RPN(body, FPN(body.channels, 64, 5), tiny_rpn_head())
