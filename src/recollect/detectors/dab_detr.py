"""DAB-DETR, and DAB-DETR with query recollection.

Papers: DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR (Liu et al., ICLR 2022, arXiv 2201.12329); Enhanced
Training of Query-Based Object Detection via Selective Query Recollection (Chen et al., CVPR 2023, arXiv 2212.07593).
Official code: IDEA-Research/DAB-DETR (Apache-2.0); this file is our own.

Published COCO val2017 box AP, R50, 50 epochs, 300 queries: 42.2; with SQR 44.5.

Quirks kept for parity with the official code:
- the box that goes on to the next stage is made from the raw content, the predicted one from the normalised content;
- the predicted box is added to the live box of the stage before, so its loss also teaches that stage; where a box is
  read as a position it is detached, except the learned anchors in the first stage;
- division by the anchor's width and height is unguarded, as boxes come from a sigmoid.

Shapes: B images, G groups, N queries, C channels, H heads, S cells of the map, K classes. Boxes are cxcywh in
fractions of the unpadded image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recollect.backbones import Backbone, tiny_backbone
from recollect.decoding import Recollection
from recollect.detectors.staged import Encoded, StagedDetector, detr_data, recollecting
from recollect.layers.position import sine_encoding
from recollect.layers.transformer import EncodedImage, FeedForward, ImageEncoder, mlp, xavier_
from recollect.losses import FocalClassification, SetCriterion
from recollect.ops.boxes import inverse_sigmoid, refine_by_logits
from recollect.ops.precision import full_precision
from recollect.recipe import Data, Optimiser, Recipe, Resize, Schedule
from recollect.registry import Published, register
from recollect.structures import ImageBatch, Prediction, Queries


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, padding: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention; [B, Q, D], [B, S, D], [B, S, C] -> [B, Q, C], D and C split into heads."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    mask = None if padding is None else ~padding[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def join_heads(first: Tensor, second: Tensor, heads: int) -> Tensor:
    """Concatenate [..., C] and [..., C] within every head -> [..., 2 C]."""
    return torch.cat((first.unflatten(-1, (heads, -1)), second.unflatten(-1, (heads, -1))), -1).flatten(-2)


class Shared(nn.Module):
    """What all stages have in common: making positions of boxes, and the heads.

    position: of a box's sine encoding, for self-attention (equation 3). scale: of the content, for the positional part
    of cross-attention (equation 5). size: reference width and height of the content (equation 6).
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.position = mlp(2 * channels, channels, channels, 2)
        self.scale = mlp(channels, channels, channels, 2)
        self.size = mlp(channels, channels, 2, 2)
        for block in (self.position, self.scale, self.size):
            xavier_(block)
        self.norm = nn.LayerNorm(channels)
        self.to_class = nn.Linear(channels, num_classes)
        self.to_box = mlp(channels, channels, 4, 3)
        nn.init.constant_(self.to_class.bias, -math.log(99))  # every class starts at probability 0.01
        for parameter in self.to_box[-1].parameters():
            nn.init.zeros_(parameter)


class DABSelfAttention(nn.Module):
    """Among the queries of each group; content and position have projections of their own."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_content, self.query_position = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.key_content, self.key_position = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.value, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        xavier_(self)

    def forward(self, content: Tensor, position: Tensor) -> Tensor:
        """[B, G, N, C] twice -> [B, G, N, C]."""
        queries = self.query_content(content) + self.query_position(position)
        keys = self.key_content(content) + self.key_position(position)
        queries, keys, values = (part.flatten(0, 1) for part in (queries, keys, self.value(content)))
        return self.norm(content + self.out(attend(queries, keys, values, self.heads).view_as(content)))


class DABCrossAttention(nn.Module):
    """To the image; content and position are concatenated, so that their similarities add up (section 3.2).

    first: in the first stage, whose contents are empty, positions are also added to the contents.
    """

    def __init__(self, channels: int, heads: int, first: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query_content, self.query_sine = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.key_content, self.key_position = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.value, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.query_position = nn.Linear(channels, channels) if first else None
        self.norm = nn.LayerNorm(channels)
        xavier_(self)

    def forward(self, content: Tensor, position: Tensor, sine: Tensor, image: EncodedImage) -> Tensor:
        """[B, G, N, C] three times -> [B, G, N, C]; groups are folded into the queries."""
        queries, keys = self.query_content(content), self.key_content(image.cells)
        key_position = self.key_position(image.position)
        if self.query_position is not None:
            queries, keys = queries + self.query_position(position), keys + key_position
        queries = join_heads(queries, self.query_sine(sine), self.heads).flatten(1, 2)
        keys = join_heads(keys, key_position, self.heads)
        read = attend(queries, keys, self.value(image.cells), self.heads, image.padding)
        return self.norm(content + self.out(read.view_as(content)))


class DABStage(nn.Module):
    """Positions from the box, self-attention, cross-attention modulated by its size, feed-forward, class and box.

    shared: the same module in every stage. first: whether this is the first stage.
    """

    def __init__(self, shared: Shared, channels: int, heads: int, feedforward: int, first: bool) -> None:
        super().__init__()
        self.shared, self.first = shared, first
        self.self_attention = DABSelfAttention(channels, heads)
        self.cross_attention = DABCrossAttention(channels, heads, first)
        self.feedforward = FeedForward(channels, feedforward, activation=nn.PReLU())
        xavier_(self.feedforward)

    def forward(self, queries: Queries, memory: EncodedImage) -> tuple[Queries, Prediction]:
        """[B, G, N, C] contents and [B, G, N, 4] boxes -> the same, refined, and the prediction."""
        content, shared = queries.content, self.shared
        boxes = queries.boxes if self.first else queries.boxes.detach()
        position, sine = self.positions(content, boxes)
        content = self.self_attention(content, position)
        content = self.cross_attention(content, position, sine, memory)
        content = self.feedforward(content)
        seen = shared.norm(content)
        prediction = Prediction(shared.to_class(seen), refine_by_logits(queries.boxes, shared.to_box(seen)))
        return Queries(content, refine_by_logits(boxes, shared.to_box(content))), prediction

    def positions(self, content: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """For self-attention, and for cross-attention, [B, G, N, C] each."""
        channels = content.shape[-1]
        encoded = sine_encoding(boxes[..., [1, 0, 2, 3]], channels // 2).flatten(-2).to(content.dtype)  # y, x, w, h
        sine = encoded[..., :channels]
        if not self.first:
            sine = sine * self.shared.scale(content)
        size = full_precision(self.shared.size(content)).sigmoid() / boxes[..., 2:]  # of reference, per that of the box
        across = size[..., [1, 0]].repeat_interleave(channels // 2, -1)  # y by height, x by width (equation 6)
        return self.shared.position(encoded), sine * across.to(content.dtype)


# --- The detector


class DABDETR(StagedDetector):
    """DAB-DETR on the last feature map of any backbone.

    encoder: map to EncodedImage. stages: DABStage modules.
    """

    def __init__(
        self,
        backbone: Backbone,
        encoder: ImageEncoder,
        stages: Sequence[DABStage],
        num_queries: int,
        channels: int = 256,
        *,
        recollection: Recollection | None = None,
        num_detections: int = 300,
    ) -> None:
        criterion = SetCriterion(FocalClassification(weight=1.0, cost_weight=2.0))
        super().__init__(backbone, stages, criterion, recollection=recollection, num_detections=num_detections)
        self.encoder, self.channels = encoder, channels
        self.anchors = nn.Embedding(num_queries, 4)  # logits of cx, cy, w, h
        with torch.no_grad():
            self.anchors.weight[:, :2] = inverse_sigmoid(torch.rand(num_queries, 2))

    def encode(self, features: list[Tensor], batch: ImageBatch) -> Encoded:
        """The encoded image as memory; learned anchors, empty contents."""
        image = self.encoder(features[-1], batch.padding_mask())
        boxes = full_precision(self.anchors.weight).sigmoid().expand(len(image.cells), 1, -1, -1)
        content = image.cells.new_zeros(*boxes.shape[:3], self.channels)
        return Encoded(Queries(content, boxes), image)


# --- Entry functions


def _build(
    num_classes: int,
    num_queries: int,
    num_stages: int,
    backbone: Backbone,
    recollection: Recollection | None,
    *,
    channels: int = 256,
    heads: int = 8,
    feedforward: int = 2048,
    encoder_layers: int = 6,
) -> DABDETR:
    encoder = ImageEncoder(
        backbone.channels[-1], channels, encoder_layers, heads, feedforward,
        temperature=20.0, scale_position=True, prelu=True,
    )  # fmt: skip
    shared = Shared(num_classes, channels)
    stages = [DABStage(shared, channels, heads, feedforward, first=index == 0) for index in range(num_stages)]
    return DABDETR(backbone, encoder, stages, num_queries, channels, recollection=recollection)


def dab_detr_50e() -> Recipe:
    """50 epochs, batch 16, the DETR crop policy."""
    return Recipe(
        data=detr_data(),
        optimiser=Optimiser(lr=1e-4, batch=16, weight_decay=1e-4, clip_norm=0.1, scales=(("backbone.", 0.1),)),
        schedule=Schedule(epochs=50, drops=(40 / 50,), warmup_steps=0),
        batch=16,
    )


def tiny_recipe() -> Recipe:
    """From scratch on small images, on a CPU."""
    return Recipe(
        data=Data(resize=Resize((128,), 256)),
        optimiser=Optimiser(lr=5e-4, batch=16, weight_decay=1e-4, clip_norm=0.1),
        schedule=Schedule(steps=1000, drops=(0.67, 0.92), warmup_steps=100),
    )


_PAPER = "arXiv 2201.12329"


@register(
    dab_detr_50e,
    family="DAB-DETR",
    paper=_PAPER,
    staged=True,
    published=Published(42.2, "DAB-DETR paper: R50, 300 queries, 50 epochs"),
)
def dab_detr_r50(
    num_classes: int = 80,
    *,
    num_queries: int = 300,
    num_stages: int = 6,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    recollection: Recollection | None = None,
) -> DABDETR:
    """DAB-DETR with ResNet-50 (or any timm backbone), trained plainly unless a `recollection` is given."""
    body = Backbone(backbone, (32,), backbone_weights, norm="frozen", frozen_stages=1, **(backbone_options or {}))
    return _build(num_classes, num_queries, num_stages, body, recollection)


sqr_dab_detr_r50 = recollecting(dab_detr_r50, Published(44.5, "SQR paper: R50, 300 queries, 50 epochs"))


@register(tiny_recipe, family="DAB-DETR", paper=_PAPER, staged=True)
def dab_detr_tiny(
    num_classes: int = 10,
    *,
    num_queries: int = 20,
    num_stages: int = 4,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    recollection: Recollection | None = None,
) -> DABDETR:
    """Small enough to train from scratch on a CPU; reads the map of stride 16."""
    body = tiny_backbone((16,), backbone, backbone_weights, backbone_options)
    return _build(
        num_classes, num_queries, num_stages, body, recollection,
        channels=64, heads=4, feedforward=128, encoder_layers=2,
    )  # fmt: skip


sqr_dab_detr_tiny = recollecting(dab_detr_tiny)
