"""Sparse R-CNN, and Sparse R-CNN with query recollection.

Paper: Sparse R-CNN: End-to-End Object Detection with Learnable Proposals (Sun et al., CVPR 2021, arXiv 2011.12450).
Official code: PeizeSun/SparseR-CNN (MIT); this file is our own.

Published COCO val2017 box AP, R50, 36 epochs: 100 proposals 42.8, 300 proposals with random crops 45.0. Recollection on
Sparse R-CNN was never published.

A query is a proposal feature and a box in pixels. Boxes are detached between stages; the first stage's loss reaches the
learned proposal boxes. RoIAlign itself gives boxes no gradient.

Shapes: B images, G groups, N queries, C channels, Q = G * N, P cells of a region, D hidden channels of the interaction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recollect.backbones import Backbone, tiny_backbone
from recollect.decoding import Recollection
from recollect.detectors.staged import Encoded, StagedDetector, recollecting
from recollect.layers.box_coders import DeltaBoxCoder
from recollect.layers.fpn import FPN
from recollect.layers.roi_align import MultiLevelRoIAlign
from recollect.layers.transformer import FeedForward, GroupSelfAttention, xavier_
from recollect.losses import FocalClassification, SetCriterion
from recollect.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from recollect.ops.precision import full_precision
from recollect.recipe import Data, Optimiser, Recipe, Resize, Schedule
from recollect.registry import Published, register
from recollect.structures import ImageBatch, Prediction, Queries

STRIDES = (4, 8, 16, 32)
CODER = DeltaBoxCoder(stds=(0.5, 0.5, 1.0, 1.0), max_ratio=100_000 / 16)


@dataclass(frozen=True)
class Memory:
    """What the stages read: the pyramid's maps [B, C, H_l, W_l] and image sizes [B, 4] as w, h, w, h in pixels."""

    maps: list[Tensor]
    whwh: Tensor


# --- Section 3.2: the dynamic instance interactive head


class DynamicInteraction(nn.Module):
    """Each region's cells pass through two 1x1 convolutions whose weights its proposal feature generates.

    forward: regions [n, P, C], features [n, C] -> [n, C].
    """

    def __init__(self, channels: int, hidden: int, cells: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.generator = nn.Linear(channels, 2 * channels * hidden)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(channels)
        self.out = nn.Linear(channels * cells, channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, regions: Tensor, features: Tensor) -> Tensor:
        """Convolve, then flatten and project."""
        weights = self.generator(features)
        reduce, expand = weights.chunk(2, -1)
        x = regions.to(weights.dtype) @ reduce.unflatten(-1, (-1, self.hidden))  # [n, P, D]
        x = self.norm1(x).relu()
        x = x @ expand.to(x.dtype).unflatten(-1, (self.hidden, -1))  # [n, P, C]
        x = self.norm2(x).relu()
        return self.norm3(self.out(x.flatten(1))).relu()


class SparseRCNNStage(nn.Module):
    """Self-attention among proposal features, interaction with their regions, feed-forward, then class and box.

    detach: read boxes without gradient, as every stage but the first does.
    region: cells per side of a region. class_layers, box_layers: Linear-LayerNorm-ReLU blocks before the last layers.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: int = 256,
        heads: int = 8,
        feedforward: int = 2048,
        hidden: int = 64,
        region: int = 7,
        class_layers: int = 1,
        box_layers: int = 3,
        detach: bool = True,
    ) -> None:
        super().__init__()
        self.detach = detach
        self.self_attention = GroupSelfAttention(channels, heads)
        self.read = MultiLevelRoIAlign(region, STRIDES, sampling=2)
        self.interaction = DynamicInteraction(channels, hidden, region**2)
        self.interaction_norm = nn.LayerNorm(channels)
        self.feedforward = FeedForward(channels, feedforward)
        self.class_layers = _linear_norm_relu(channels, class_layers)
        self.box_layers = _linear_norm_relu(channels, box_layers)
        self.to_class = nn.Linear(channels, num_classes)
        self.to_box = nn.Linear(channels, 4)
        xavier_(self)
        nn.init.constant_(self.to_class.bias, -math.log(99))  # every class starts at probability 0.01

    def forward(self, queries: Queries, memory: Memory) -> tuple[Queries, Prediction]:
        """[B, G, N, C] contents and [B, G, N, 4] xyxy boxes -> the same, refined, and the prediction."""
        boxes = queries.boxes.detach() if self.detach else queries.boxes
        content = self.self_attention(queries.content)
        # Groups are folded into the regions of an image, [B, G * N, 4], so maps are never copied.
        regions = self.read(memory.maps, boxes.flatten(1, 2).unbind(0)).flatten(2).transpose(1, 2)
        mixed = self.interaction(regions, content.flatten(0, 2))
        content = self.feedforward(self.interaction_norm(content + mixed.view_as(content)))
        deltas = self.to_box(self.box_layers(content))
        refined = CODER.decode(boxes, deltas.to(boxes.dtype))
        normalised = xyxy_to_cxcywh(refined / memory.whwh[:, None, None])
        return Queries(content, refined), Prediction(self.to_class(self.class_layers(content)), normalised)


def _linear_norm_relu(channels: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ReLU()]
    return nn.Sequential(*layers)


# --- The detector


class SparseRCNN(StagedDetector):
    """Sparse R-CNN with any backbone that has features at strides 4, 8, 16, 32.

    neck: features to the maps of STRIDES. stages: SparseRCNNStage modules.
    Learned: `proposal_boxes`, cxcywh in fractions of the image, and `proposal_features`.
    initial_boxes: where the former start, "image", the paper's: the whole of it; or "grid": centres on a regular grid,
        a quarter of the image wide and high, which learns much faster on short schedules.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: nn.Module,
        stages: Sequence[SparseRCNNStage],
        num_queries: int,
        channels: int = 256,
        *,
        initial_boxes: Literal["image", "grid"] = "image",
        recollection: Recollection | None = None,
        num_detections: int = 100,
    ) -> None:
        if initial_boxes not in ("image", "grid"):
            raise ValueError(f"initial_boxes must be 'image' or 'grid', not {initial_boxes!r}")
        criterion = SetCriterion(FocalClassification(), l1_format="xyxy")
        super().__init__(backbone, stages, criterion, recollection=recollection, num_detections=num_detections)
        self.neck = neck
        self.proposal_boxes = nn.Embedding(num_queries, 4)
        self.proposal_features = nn.Embedding(num_queries, channels)
        start = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(num_queries, 1)
        if initial_boxes == "grid":
            columns = math.ceil(math.sqrt(num_queries))
            place = torch.arange(num_queries)
            x, y = place % columns + 0.5, place // columns + 0.5
            start = torch.stack((x / columns, y / math.ceil(num_queries / columns)), -1)
            start = torch.cat((start, torch.full_like(start, 0.25)), -1)
        with torch.no_grad():
            self.proposal_boxes.weight.copy_(start)

    def encode(self, features: list[Tensor], batch: ImageBatch) -> Encoded:
        """The pyramid as memory; learned proposals."""
        maps = self.neck(features)
        whwh = full_precision(batch.whwh())
        boxes = cxcywh_to_xyxy(full_precision(self.proposal_boxes.weight)) * whwh[:, None, None]
        content = self.proposal_features.weight.expand(len(whwh), 1, -1, -1)
        return Encoded(Queries(content, boxes), Memory(maps, whwh))


# --- Entry functions


def _build(
    num_classes: int,
    num_queries: int,
    num_stages: int,
    backbone: Backbone,
    recollection: Recollection | None,
    initial_boxes: Literal["image", "grid"] = "image",
    channels: int = 256,
    **stage: Any,
) -> SparseRCNN:
    neck = FPN(backbone.channels, channels, levels=len(STRIDES))
    stages = [SparseRCNNStage(num_classes, channels=channels, detach=index > 0, **stage) for index in range(num_stages)]
    return SparseRCNN(
        backbone, neck, stages, num_queries, channels, initial_boxes=initial_boxes, recollection=recollection
    )


def sparse_rcnn_36e() -> Recipe:
    """36 epochs, batch 16, multi-scale training."""
    return Recipe(
        data=Data(resize=Resize(tuple(range(480, 801, 32)), 1333)),
        optimiser=Optimiser(lr=2.5e-5, batch=16, weight_decay=1e-4, clip_norm=1.0),
        schedule=Schedule(epochs=36, drops=(27 / 36, 33 / 36), warmup_steps=1000, warmup_start=0.01),
    )


def sparse_rcnn_36e_crop() -> Recipe:
    """The same with the DETR crop policy."""
    base = sparse_rcnn_36e()
    return replace(base, data=replace(base.data, crop=True))


def tiny_recipe() -> Recipe:
    """From scratch on small images, on a CPU."""
    return Recipe(
        data=Data(resize=Resize((128,), 256)),
        optimiser=Optimiser(lr=5e-4, batch=16, weight_decay=1e-4, clip_norm=1.0),
        schedule=Schedule(steps=1000, drops=(0.67, 0.92), warmup_steps=100),
    )


_FAMILY, _PAPER = "Sparse R-CNN", "arXiv 2011.12450"
_entry = partial(register, family=_FAMILY, paper=_PAPER, staged=True)


@_entry(sparse_rcnn_36e, published=Published(42.8, "Sparse R-CNN paper: R50, 100 proposals, 36 epochs"))
def sparse_rcnn_r50_100(
    num_classes: int = 80,
    *,
    num_queries: int = 100,
    num_stages: int = 6,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    initial_boxes: Literal["image", "grid"] = "image",
    recollection: Recollection | None = None,
) -> SparseRCNN:
    """Sparse R-CNN with ResNet-50 (or any timm backbone), trained plainly unless a `recollection` is given."""
    body = Backbone(backbone, STRIDES, backbone_weights, norm="frozen", frozen_stages=1, **(backbone_options or {}))
    return _build(num_classes, num_queries, num_stages, body, recollection, initial_boxes)


@_entry(
    sparse_rcnn_36e_crop,
    published=Published(45.0, "Sparse R-CNN paper: R50, 300 proposals, random crops, 36 epochs"),
    like=sparse_rcnn_r50_100,
)
def sparse_rcnn_r50_300(num_classes: int = 80, **options: Any) -> SparseRCNN:
    """Sparse R-CNN with 300 proposals."""
    return sparse_rcnn_r50_100(num_classes, **{"num_queries": 300, **options})


sqr_sparse_rcnn_r50_100 = recollecting(sparse_rcnn_r50_100)
sqr_sparse_rcnn_r50_300 = recollecting(sparse_rcnn_r50_300)


@_entry(tiny_recipe)
def sparse_rcnn_tiny(
    num_classes: int = 10,
    *,
    num_queries: int = 20,
    num_stages: int = 4,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    initial_boxes: Literal["image", "grid"] = "grid",
    recollection: Recollection | None = None,
) -> SparseRCNN:
    """Small enough to train from scratch on a CPU; proposals start on a grid."""
    body = tiny_backbone(STRIDES, backbone, backbone_weights, backbone_options)
    return _build(
        num_classes, num_queries, num_stages, body, recollection, initial_boxes,
        channels=64, heads=4, feedforward=128, hidden=16, region=5, box_layers=1,
    )  # fmt: skip


sqr_sparse_rcnn_tiny = recollecting(sparse_rcnn_tiny)
