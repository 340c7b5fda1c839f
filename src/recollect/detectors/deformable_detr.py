"""Deformable DETR (plain, with iterative box refinement, two-stage), and SQR-Deformable-DETR.

Papers: Deformable DETR: Deformable Transformers for End-to-End Object Detection (Zhu et al., ICLR 2021,
arXiv 2010.04159); Enhanced Training of Query-Based Object Detection via Selective Query Recollection (Chen et al.,
CVPR 2023, arXiv 2212.07593). Official code: fundamentalvision/Deformable-DETR; numbers are held against the
MMDetection 2.x version in Fangyi-Chen/SQR, which differs in the neck's missing bias and the sine encoding's offset.
This file is our own.

Published COCO val2017 box AP, R50, 50 epochs, 300 queries: plain 44.5, refinement 46.2, two-stage 46.9; SQR 45.8.

With recollection every group carries its own reference boxes, which the SQR code never supported. The first stage alone
gives the learned reference points a gradient where boxes are refined; later stages detach every box they read.
Quirks kept for parity:
- the two-stage encoder scores with as many classes as the decoder, but learns only class 0, as "an object";
- cells whose proposal is padded or too near the border keep a constant score and the box (1, 1, 1, 1);
- the group norm of the neck sees padding, so detections depend on the padded size (never on batch mates).

Shapes: B images, G groups, N queries, C channels, L levels, S cells of all levels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recollect.backbones import Backbone, tiny_backbone
from recollect.decoding import Recollection
from recollect.detectors.staged import Encoded, StagedDetector, detr_data, recollecting
from recollect.layers.deformable import DeformableAttention, DeformableEncoder, Pyramid
from recollect.layers.necks import ChannelMapper
from recollect.layers.position import sine_encoding
from recollect.layers.transformer import FeedForward, GroupSelfAttention, mlp, xavier_
from recollect.losses import FocalClassification, SetCriterion
from recollect.ops.boxes import refine_by_logits
from recollect.ops.precision import full_precision
from recollect.recipe import Data, Optimiser, Recipe, Resize, Schedule
from recollect.registry import Published, register
from recollect.structures import ImageBatch, Prediction, Queries

STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class Memory:
    """What the stages read: the encoded image, and the positional half of the queries.

    query_position: [B or 1, 1, N, C], the same for every group.
    """

    image: Pyramid
    query_position: Tensor


# --- Section 4.1: a decoder stage. A reference is cxcywh in fractions of the unpadded image, its size 0 for a point


class DeformableStage(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward, then class and box.

    to_class, to_box: heads, the same modules in every stage or each stage's own.
    refine: hand the predicted box on as the next stage's reference; else references stay as they are.
    detach: read references without gradient, as every refining stage but the first does.
    """

    def __init__(
        self,
        to_class: nn.Module,
        to_box: nn.Module,
        *,
        channels: int = 256,
        heads: int = 8,
        feedforward: int = 1024,
        levels: int = 4,
        points: int = 4,
        dropout: float = 0.1,
        refine: bool = False,
        detach: bool = False,
    ) -> None:
        super().__init__()
        self.self_attention = GroupSelfAttention(channels, heads, dropout)
        self.cross_attention = DeformableAttention(channels, heads, levels, points)
        self.dropout = nn.Dropout(dropout)
        self.cross_norm = nn.LayerNorm(channels)
        self.feedforward = FeedForward(channels, feedforward, dropout)
        self.to_class, self.to_box = to_class, to_box
        self.refine, self.detach = refine, detach
        xavier_(self.self_attention)
        xavier_(self.feedforward)

    def forward(self, queries: Queries, memory: Memory) -> tuple[Queries, Prediction]:
        """[B, G, N, C] contents and [B, G, N, 4] references -> the same, refined, and the prediction."""
        reference = queries.boxes.detach() if self.detach else queries.boxes
        content = self.self_attention(queries.content, memory.query_position)
        content = self.feedforward(self.read_image(content, reference, memory))
        boxes = refine_by_logits(reference, self.to_box(content))
        return Queries(content, boxes if self.refine else queries.boxes), Prediction(self.to_class(content), boxes)

    def read_image(self, content: Tensor, reference: Tensor, memory: Memory) -> Tensor:
        """Groups are folded into the queries, [B, G * N, C]."""
        placed = (content + memory.query_position).flatten(1, 2)
        read = self.cross_attention(placed, reference.flatten(1, 2), memory.image)
        return self.cross_norm(content + self.dropout(read.view_as(content)))


# --- Section 4.2: two-stage, the first queries are the encoder's best proposals


class EncoderProposals(nn.Module):
    """A box and a score for every cell of the encoded image, and queries from the best of them."""

    def __init__(self, channels: int, to_class: nn.Module, to_box: nn.Module) -> None:
        super().__init__()
        self.project = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.to_class, self.to_box = to_class, to_box
        self.position = nn.Linear(2 * channels, 2 * channels)
        self.position_norm = nn.LayerNorm(2 * channels)
        xavier_(self.project)
        xavier_(self.position)

    def forward(self, image: Pyramid) -> Prediction:
        """Logits [B, 1, S, K], of which only class 0 is learned, and boxes [B, 1, S, 4]."""
        centres, level = image.centres()
        size = (0.05 * 2 ** level.to(centres))[:, None].expand_as(centres)
        anchors = torch.cat((centres, size), -1)
        outside = (((anchors <= 0.01) | (anchors >= 0.99)).any(-1) | image.padding).unsqueeze(-1)
        cells = self.norm(self.project(image.cells.masked_fill(outside, 0.0)))
        logit = torch.log(anchors / (1 - anchors)).masked_fill(outside, math.inf)
        boxes = (self.to_box(cells).to(logit.dtype) + logit).sigmoid()
        return Prediction(self.to_class(cells).unsqueeze(1), boxes.unsqueeze(1))

    def queries(self, proposals: Prediction, count: int) -> tuple[Tensor, Queries]:
        """The `count` best proposals as [B, 1, count, C] positions and queries, without gradient to the proposals."""
        scores = proposals.logits[:, 0, :, 0]
        best = scores.topk(min(count, scores.shape[1]), dim=1).indices
        boxes = proposals.boxes[:, 0].detach().gather(1, best.unsqueeze(-1).expand(-1, -1, 4))
        encoded = sine_encoding(boxes, self.position.in_features // 4).flatten(-2).to(self.position.weight.dtype)
        position, content = self.position_norm(self.position(encoded)).unsqueeze(1).chunk(2, -1)
        return position, Queries(content, boxes.unsqueeze(1))


# --- The detector


class DeformableDETR(StagedDetector):
    """Deformable DETR with any backbone.

    neck: backbone features to L maps of C channels. encoder: maps to a Pyramid. stages: DeformableStage modules.
    proposals: makes the first queries two-stage; None learns them, with their reference points.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: nn.Module,
        encoder: DeformableEncoder,
        stages: Sequence[DeformableStage],
        num_queries: int,
        channels: int = 256,
        *,
        proposals: EncoderProposals | None = None,
        recollection: Recollection | None = None,
        num_detections: int = 100,
    ) -> None:
        criterion = SetCriterion(FocalClassification())
        super().__init__(backbone, stages, criterion, recollection=recollection, num_detections=num_detections)
        self.neck, self.encoder, self.proposals = neck, encoder, proposals
        self.num_queries = num_queries
        if proposals is None:
            self.query_embedding = nn.Embedding(num_queries, 2 * channels)  # position, then content
            self.reference_points = nn.Linear(channels, 2)
            xavier_(self.reference_points)
            nn.init.zeros_(self.reference_points.bias)

    def encode(self, features: list[Tensor], batch: ImageBatch) -> Encoded:
        """The encoded image as memory; queries learned, or from the best proposals."""
        image = self.encoder(self.neck(features), batch.padding_mask())
        if self.proposals is not None:
            proposals = self.proposals(image)
            position, queries = self.proposals.queries(proposals, self.num_queries)
            return Encoded(queries, Memory(image, position), proposals)
        position, content = self.query_embedding.weight[None, None].chunk(2, -1)
        points = F.pad(full_precision(self.reference_points(position)).sigmoid(), (0, 2))
        images = len(image.cells)
        queries = Queries(content.expand(images, -1, -1, -1), points.expand(images, -1, -1, -1))
        return Encoded(queries, Memory(image, position))


# --- Entry functions


def _build(
    num_classes: int,
    num_queries: int,
    num_stages: int,
    backbone: Backbone,
    recollection: Recollection | None,
    *,
    refine: bool,
    two_stage: bool,
    channels: int = 256,
    heads: int = 8,
    feedforward: int = 1024,
    encoder_layers: int = 6,
    points: int = 4,
    dropout: float = 0.1,
    norm_groups: int = 32,
    neck_bias: bool = False,
) -> DeformableDETR:
    levels = len(backbone.channels) + 1
    neck = ChannelMapper(backbone.channels, channels, extra=1, norm_groups=norm_groups, bias=neck_bias)
    encoder = DeformableEncoder(channels, encoder_layers, heads, feedforward, levels, points, dropout)
    if refine:  # a pair of heads per stage, of which the first makes boxes from points
        stage_heads = [_heads(num_classes, channels, two_stage or i > 0) for i in range(num_stages)]
    else:  # one pair for all
        stage_heads = [_heads(num_classes, channels, two_stage)] * num_stages
    stages = [
        DeformableStage(
            *pair, channels=channels, heads=heads, feedforward=feedforward, levels=levels, points=points,
            dropout=dropout, refine=refine, detach=refine and index > 0,
        )
        for index, pair in enumerate(stage_heads)
    ]  # fmt: skip
    proposals = EncoderProposals(channels, *_heads(num_classes, channels, True)) if two_stage else None
    return DeformableDETR(
        backbone, neck, encoder, stages, num_queries, channels, proposals=proposals, recollection=recollection
    )


def _heads(num_classes: int, channels: int, sized: bool) -> tuple[nn.Module, nn.Module]:
    """Class and box heads. sized: references have a size to start from; else a box begins at 0.12 of the image."""
    to_class, to_box = nn.Linear(channels, num_classes), mlp(channels, channels, 4, 3)
    nn.init.constant_(to_class.bias, -math.log(99))  # every class starts at probability 0.01
    last = to_box[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0] if sized else [0.0, 0.0, -2.0, -2.0]))
    return to_class, to_box


def deformable_detr_50e() -> Recipe:
    """50 epochs, batch 32, the DETR crop policy."""
    slow = (("backbone.", 0.1), ("sampling_offsets.", 0.1), ("reference_points.", 0.1))
    return Recipe(
        data=detr_data(),
        optimiser=Optimiser(lr=2e-4, batch=32, weight_decay=1e-4, clip_norm=0.1, scales=slow),
        schedule=Schedule(epochs=50, drops=(40 / 50,), warmup_steps=0),
        batch=32,
    )


def tiny_recipe() -> Recipe:
    """From scratch on small images, on a CPU."""
    return Recipe(
        data=Data(resize=Resize((128,), 256)),
        optimiser=Optimiser(lr=1e-3, batch=16, weight_decay=1e-4, clip_norm=1.0, scales=(("sampling_offsets.", 0.1),)),
        schedule=Schedule(steps=1000, drops=(0.67, 0.92), warmup_steps=100),
    )


_entry = partial(register, family="Deformable DETR", paper="arXiv 2010.04159", staged=True)


@_entry(deformable_detr_50e, published=Published(44.5, "Deformable DETR repository: R50, 50 epochs"))
def deformable_detr_r50(
    num_classes: int = 80,
    *,
    num_queries: int = 300,
    num_stages: int = 6,
    refine: bool = False,
    two_stage: bool = False,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    neck_bias: bool = False,
    recollection: Recollection | None = None,
) -> DeformableDETR:
    """Deformable DETR with ResNet-50 (or any timm backbone), trained plainly unless a `recollection` is given."""
    body = Backbone(backbone, STRIDES, backbone_weights, norm="frozen", frozen_stages=1, **(backbone_options or {}))
    return _build(
        num_classes, num_queries, num_stages, body, recollection,
        refine=refine, two_stage=two_stage, neck_bias=neck_bias,
    )  # fmt: skip


_variant = partial(_entry, deformable_detr_50e, like=deformable_detr_r50)


@_variant(published=Published(46.2, "Deformable DETR repository: R50, refinement, 50 epochs"))
def deformable_detr_r50_refine(num_classes: int = 80, **options: Any) -> DeformableDETR:
    """Deformable DETR with iterative box refinement."""
    return deformable_detr_r50(num_classes, **{"refine": True, **options})


@_variant(published=Published(46.9, "Deformable DETR repository: R50, refinement, two-stage, 50 epochs"))
def deformable_detr_r50_two_stage(num_classes: int = 80, **options: Any) -> DeformableDETR:
    """Two-stage Deformable DETR with iterative box refinement."""
    return deformable_detr_r50_refine(num_classes, **{"two_stage": True, **options})


sqr_deformable_detr_r50 = recollecting(deformable_detr_r50, Published(45.8, "SQR paper: R50, 50 epochs"))
sqr_deformable_detr_r50_refine = recollecting(deformable_detr_r50_refine)
sqr_deformable_detr_r50_two_stage = recollecting(deformable_detr_r50_two_stage)


@_entry(tiny_recipe)
def deformable_detr_tiny(
    num_classes: int = 10,
    *,
    num_queries: int = 20,
    num_stages: int = 4,
    refine: bool = False,
    two_stage: bool = False,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    recollection: Recollection | None = None,
) -> DeformableDETR:
    """Small enough to train from scratch on a CPU."""
    body = tiny_backbone(STRIDES, backbone, backbone_weights, backbone_options)
    return _build(
        num_classes, num_queries, num_stages, body, recollection, refine=refine, two_stage=two_stage,
        channels=64, heads=4, feedforward=128, encoder_layers=2, points=4, dropout=0.0, norm_groups=8,
    )  # fmt: skip


@_entry(tiny_recipe, like=deformable_detr_tiny)
def deformable_detr_refine_tiny(num_classes: int = 10, **options: Any) -> DeformableDETR:
    """The tiny Deformable DETR with iterative box refinement."""
    return deformable_detr_tiny(num_classes, **{"refine": True, **options})


@_entry(tiny_recipe, like=deformable_detr_tiny)
def deformable_detr_two_stage_tiny(num_classes: int = 10, **options: Any) -> DeformableDETR:
    """The tiny two-stage Deformable DETR."""
    return deformable_detr_refine_tiny(num_classes, **{"two_stage": True, **options})


sqr_deformable_detr_tiny = recollecting(deformable_detr_tiny)
sqr_deformable_detr_refine_tiny = recollecting(deformable_detr_refine_tiny)
sqr_deformable_detr_two_stage_tiny = recollecting(deformable_detr_two_stage_tiny)
