"""DETR, and DETR with query recollection.

Paper: End-to-End Object Detection with Transformers (Carion et al., ECCV 2020, arXiv 2005.12872). Official code:
facebookresearch/detr (Apache-2.0); this file is our own.

Published COCO val2017 box AP, 500 epochs, 100 queries: R50 42.0, R50-DC5 43.3, R101 43.5. Recollection on DETR was
never published.

DETR's queries have no boxes that a stage would read: `Queries.boxes` holds what the stage predicted, for whoever looks
on. The first stage sees contents of zero; all position is in the learned query embedding, the same for every group.

Shapes: B images, G groups, N queries, C channels, S cells of the map, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recollect.backbones import Backbone, tiny_backbone
from recollect.decoding import Recollection
from recollect.detectors.staged import Encoded, StagedDetector, detr_data, recollecting
from recollect.layers.transformer import (
    EncodedImage,
    FeedForward,
    GroupSelfAttention,
    ImageCrossAttention,
    ImageEncoder,
    mlp,
    xavier_,
)
from recollect.losses import SetCriterion, SoftmaxClassification
from recollect.ops.precision import full_precision
from recollect.recipe import Data, Optimiser, Recipe, Resize, Schedule
from recollect.registry import Published, register
from recollect.structures import ImageBatch, Prediction, Queries


@dataclass(frozen=True)
class Memory:
    """What the stages read: the encoded image, and the query embedding [1, 1, N, C], the same for every group."""

    image: EncodedImage
    query_position: Tensor


# --- Section 3.2: transformer decoder, and prediction feed-forward networks


class DETRStage(nn.Module):
    """Self-attention, attention to the image, feed-forward, then class and box from the normalised content.

    norm, to_class, to_box: the same modules in every stage.
    """

    def __init__(
        self,
        norm: nn.Module,
        to_class: nn.Module,
        to_box: nn.Module,
        *,
        channels: int = 256,
        heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.self_attention = GroupSelfAttention(channels, heads, dropout)
        self.cross_attention = ImageCrossAttention(channels, heads, dropout)
        self.feedforward = FeedForward(channels, feedforward, dropout)
        for block in (self.self_attention, self.cross_attention, self.feedforward):
            xavier_(block)
        self.norm, self.to_class, self.to_box = norm, to_class, to_box

    def forward(self, queries: Queries, memory: Memory) -> tuple[Queries, Prediction]:
        """[B, G, N, C] contents -> the same, refined, and the prediction; the boxes read are not used."""
        content = self.self_attention(queries.content, memory.query_position)
        content = self.cross_attention(content, memory.query_position, memory.image)
        content = self.feedforward(content)
        seen = self.norm(content)
        boxes = full_precision(self.to_box(seen)).sigmoid()
        return Queries(content, boxes), Prediction(self.to_class(seen), boxes)


# --- The detector


class DETR(StagedDetector):
    """DETR on the last feature map of any backbone.

    encoder: map to EncodedImage. stages: DETRStage modules. Detections: the best class of every query.
    """

    def __init__(
        self,
        backbone: Backbone,
        encoder: ImageEncoder,
        stages: Sequence[DETRStage],
        num_queries: int,
        channels: int = 256,
        *,
        recollection: Recollection | None = None,
        num_detections: int = 100,
    ) -> None:
        super().__init__(
            backbone,
            stages,
            SetCriterion(SoftmaxClassification()),
            recollection=recollection,
            num_detections=num_detections,
            one_class_per_query=True,
        )
        self.encoder = encoder
        self.query_embedding = nn.Embedding(num_queries, channels)

    def encode(self, features: list[Tensor], batch: ImageBatch) -> Encoded:
        """The encoded image as memory; contents and boxes start at zero."""
        image = self.encoder(features[-1], batch.padding_mask())
        position = self.query_embedding.weight[None, None]
        content = torch.zeros_like(position).expand(len(image.cells), -1, -1, -1)
        boxes = full_precision(content[..., :4])
        return Encoded(Queries(content, boxes), Memory(image, position))


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
    dropout: float = 0.1,
) -> DETR:
    encoder = ImageEncoder(backbone.channels[-1], channels, encoder_layers, heads, feedforward, dropout)
    shared = (nn.LayerNorm(channels), nn.Linear(channels, num_classes + 1), mlp(channels, channels, 4, 3))
    stages = [
        DETRStage(*shared, channels=channels, heads=heads, feedforward=feedforward, dropout=dropout)
        for _ in range(num_stages)
    ]
    return DETR(backbone, encoder, stages, num_queries, channels, recollection=recollection)


def detr_500e() -> Recipe:
    """The paper's longer schedule: 500 epochs, batch 64, the DETR crop policy."""
    return Recipe(
        data=detr_data(),
        optimiser=Optimiser(lr=1e-4, batch=64, weight_decay=1e-4, clip_norm=0.1, scales=(("backbone.", 0.1),)),
        schedule=Schedule(epochs=500, drops=(400 / 500,), warmup_steps=0),
        batch=64,
    )


def tiny_recipe() -> Recipe:
    """From scratch on small images, on a CPU."""
    return Recipe(
        data=Data(resize=Resize((128,), 256)),
        optimiser=Optimiser(lr=5e-4, batch=16, weight_decay=1e-4, clip_norm=0.1),
        schedule=Schedule(steps=1000, drops=(0.67, 0.92), warmup_steps=100),
    )


_PAPER = "arXiv 2005.12872"
_entry = partial(register, detr_500e, family="DETR", paper=_PAPER, staged=True)


@_entry(published=Published(42.0, "DETR paper: R50, 100 queries, 500 epochs"))
def detr_r50(
    num_classes: int = 80,
    *,
    num_queries: int = 100,
    num_stages: int = 6,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    dc5: bool = False,
    recollection: Recollection | None = None,
) -> DETR:
    """DETR with ResNet-50 (or any timm backbone). dc5: the last stage is dilated instead of strided."""
    options = {"output_stride": 16, **(backbone_options or {})} if dc5 else backbone_options or {}
    strides = (16,) if dc5 else (32,)
    body = Backbone(backbone, strides, backbone_weights, norm="frozen", frozen_stages=1, **options)
    return _build(num_classes, num_queries, num_stages, body, recollection)


@_entry(published=Published(43.5, "DETR paper: R101, 100 queries, 500 epochs"), like=detr_r50)
def detr_r101(num_classes: int = 80, **options: Any) -> DETR:
    """DETR with ResNet-101."""
    return detr_r50(num_classes, **{"backbone": "resnet101.tv_in1k", **options})


@_entry(published=Published(43.3, "DETR paper: R50-DC5, 100 queries, 500 epochs"), like=detr_r50)
def detr_r50_dc5(num_classes: int = 80, **options: Any) -> DETR:
    """DETR with ResNet-50 whose last stage keeps stride 16 by dilation."""
    return detr_r50(num_classes, **{"dc5": True, **options})


sqr_detr_r50 = recollecting(detr_r50)
sqr_detr_r101 = recollecting(detr_r101)
sqr_detr_r50_dc5 = recollecting(detr_r50_dc5)


@register(tiny_recipe, family="DETR", paper=_PAPER, staged=True)
def detr_tiny(
    num_classes: int = 10,
    *,
    num_queries: int = 20,
    num_stages: int = 4,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    recollection: Recollection | None = None,
) -> DETR:
    """Small enough to train from scratch on a CPU; reads the map of stride 16."""
    body = tiny_backbone((16,), backbone, backbone_weights, backbone_options)
    return _build(
        num_classes, num_queries, num_stages, body, recollection,
        channels=64, heads=4, feedforward=128, encoder_layers=2, dropout=0.0,
    )  # fmt: skip


sqr_detr_tiny = recollecting(detr_tiny)
