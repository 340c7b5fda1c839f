"""AdaMixer, and SQR-AdaMixer.

Papers: AdaMixer: A Fast-Converging Query-Based Object Detector (Gao et al., CVPR 2022, arXiv 2203.16507);
Enhanced Training of Query-Based Object Detection via Selective Query Recollection (Chen et al., CVPR 2023,
arXiv 2212.07593). Official code: MCG-NJU/AdaMixer and Fangyi-Chen/SQR, both MMDetection 2.x; this file is our own.

Published COCO val2017 box AP, 12 epochs, R50, 100 queries: AdaMixer 42.7 (42.5 in the SQR paper), SQR 44.5;
SQR with R101, 7 stages, 300 queries, 36 epochs: 49.8.

Quirks kept for parity, because the published numbers were trained with them:
- the residual of self-attention includes the position encoding (the author calls it a minor bug);
- boxes are not clipped to the image; the L1 loss and its matching cost are taken on normalised xyxy;
- the group norm of the neck sees padding, so detections depend on the padded size (never on batch mates).
Deviation: the classification normaliser is clamped to 1, so a batch without objects has a finite loss.

Shapes: B images, G groups, N queries, C content channels, M mixing groups, P sampling points, Q = G * N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recollect.backbones import Backbone, tiny_backbone
from recollect.decoding import Recollection
from recollect.detectors.staged import Encoded, StagedDetector, recollecting
from recollect.layers.necks import SharedNormChannelMapper
from recollect.losses import FocalClassification, SetCriterion
from recollect.ops.boxes import pairwise_iof, xyxy_to_cxcywh
from recollect.ops.sampling_3d import sample_3d
from recollect.recipe import Data, Optimiser, Recipe, Resize, Schedule
from recollect.registry import Published, register
from recollect.structures import ImageBatch, Prediction, Queries

STRIDES = (4, 8, 16, 32)


# --- Section 3.1: a query is a content vector and a box (x, y, z, r), z = log2 sqrt(w h), r = log2(h / w), in pixels


def xyzr_to_xyxy(xyzr: Tensor) -> Tensor:
    """[..., 4] -> corners in pixels, not clipped."""
    centre, z, r = xyzr[..., :2], xyzr[..., 2:3], xyzr[..., 3:4]
    size = torch.cat((2 ** (z - r / 2), 2 ** (z + r / 2)), -1)
    return torch.cat((centre - size / 2, centre + size / 2), -1)


def refine_xyzr(xyzr: Tensor, delta: Tensor) -> Tensor:
    """Move the centre by `delta` in units of the box's scale, add to z and r."""
    moved = xyzr[..., :2] + delta[..., :2] * 2 ** xyzr[..., 2:3]
    return torch.cat((moved, xyzr[..., 2:] + delta[..., 2:]), -1)


def encode_position(xyzr: Tensor, channels: int) -> Tensor:
    """Sine encoding of (x / 1000, y / 1000, z, r), [..., 4] -> [..., channels]: sines and cosines interleaved."""
    per_value = channels // 4
    index = torch.arange(per_value, dtype=xyzr.dtype, device=xyzr.device)
    wavelength = 10000 ** (2 * (index // 2) / per_value)
    angle = (xyzr / xyzr.new_tensor([1000, 1000, 1, 1])).unsqueeze(-1) / wavelength
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-3)


def place_points(offsets: Tensor, xyzr: Tensor) -> Tensor:
    """Offsets [B, Q, M, P, 3] in units of the boxes' width, height and octaves of scale, [B, Q, 4] -> x, y, z."""
    xyzr = xyzr[:, :, None, None]
    z, r = xyzr[..., 2:3], xyzr[..., 3:4]
    size = torch.cat((2 ** (z - r / 2), 2 ** (z + r / 2)), -1)
    return torch.cat((xyzr[..., :2] + offsets[..., :2] * size, z + offsets[..., 2:]), -1)


@dataclass(frozen=True)
class Memory:
    """What the stages read: the neck's maps [B, C, H_l, W_l] and the images' sizes [B, 4] as w, h, w, h in pixels."""

    features: list[Tensor]
    whwh: Tensor


# --- Section 3.3: adaptive mixing of sampled features


class AdaptiveMixing(nn.Module):
    """Mix channels, then points, with weights that the query generates; each followed by layer norm and ReLU.

    channels: of the features. forward: samples [B, Q, M, P, channels / M], content [B, Q, C] -> [B, Q, C].
    """

    def __init__(self, channels: int, content: int, groups: int, in_points: int, out_points: int) -> None:
        super().__init__()
        self.groups, self.in_points, self.out_points = groups, in_points, out_points
        self.width = channels // groups
        self.generator = nn.Linear(content, groups * (self.width**2 + in_points * out_points))
        self.out = nn.Linear(groups * self.width * out_points, content)
        nn.init.zeros_(self.generator.weight)  # at first every query mixes alike, by the bias alone

    def forward(self, samples: Tensor, content: Tensor) -> Tensor:
        """Mix, project and add to the content."""
        batch, queries, groups, points, width = samples.shape
        samples = samples.reshape(batch * queries * groups, points, width)
        weights = self.generator(content).view(batch * queries * groups, -1)
        channel_mix, point_mix = weights.split((width**2, self.in_points * self.out_points), -1)
        x = samples.to(weights.dtype) @ channel_mix.view(-1, width, width)
        x = F.relu(F.layer_norm(x, x.shape[-2:]))
        x = point_mix.view(-1, self.out_points, points) @ x
        x = F.relu(F.layer_norm(x, x.shape[-2:]))
        return content + self.out(x.view(batch, queries, -1))


# --- Section 3.4: a decoder stage


class AdaMixerStage(nn.Module):
    """Self-attention with the IoF bias, 3-D sampling, adaptive mixing, feed-forward, then class and box.

    sampling_scale_bias: initial z offset of the sampling points (-1: half the box's scale).
    class_layers, box_layers: Linear-LayerNorm-ReLU blocks before the final layers.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        content: int = 256,
        channels: int = 256,
        heads: int = 8,
        feedforward: int = 2048,
        mixing_groups: int = 4,
        in_points: int = 32,
        out_points: int = 128,
        class_layers: int = 1,
        box_layers: int = 1,
        strides: Sequence[int] = STRIDES,
        sampling_scale_bias: float = -1.0,
    ) -> None:
        super().__init__()
        self.mixing_groups, self.in_points, self.strides = mixing_groups, in_points, tuple(strides)
        self.attention = nn.MultiheadAttention(content, heads, batch_first=True)
        self.iof_scale = nn.Parameter(torch.empty(heads))
        self.attention_norm = nn.LayerNorm(content)
        self.sampling_offsets = nn.Linear(content, mixing_groups * in_points * 3)
        self.mixing = AdaptiveMixing(channels, content, mixing_groups, in_points, out_points)
        self.mixing_norm = nn.LayerNorm(content)
        self.feedforward = nn.Sequential(nn.Linear(content, feedforward), nn.ReLU(), nn.Linear(feedforward, content))
        self.feedforward_norm = nn.LayerNorm(content)
        self.class_layers = _linear_norm_relu(content, class_layers)
        self.box_layers = _linear_norm_relu(content, box_layers)
        self.to_class = nn.Linear(content, num_classes)
        self.to_box = nn.Linear(content, 4)
        self.reset_parameters(sampling_scale_bias)

    def reset_parameters(self, sampling_scale_bias: float = -1.0) -> None:
        """The paper's initialisation; at the start a stage leaves boxes as they are."""
        for block in (self.feedforward, self.class_layers, self.box_layers, self.attention):
            for parameter in block.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        nn.init.xavier_uniform_(self.mixing.out.weight)
        nn.init.xavier_uniform_(self.to_class.weight)
        nn.init.constant_(self.to_class.bias, -math.log(99))  # every class starts at probability 0.01
        nn.init.zeros_(self.to_box.weight)
        nn.init.zeros_(self.to_box.bias)
        nn.init.uniform_(self.iof_scale, 0, 4)
        nn.init.zeros_(self.sampling_offsets.weight)
        offsets = torch.empty(self.mixing_groups, self.in_points, 3).uniform_(-0.5, 0.5)
        offsets[..., 2] = sampling_scale_bias
        side = math.isqrt(self.in_points)
        if side * side == self.in_points:  # a regular grid over the box instead
            line = (torch.arange(side) + 0.5) / side - 0.5
            y, x = torch.meshgrid(line, line, indexing="ij")
            offsets[..., 0], offsets[..., 1] = x.flatten(), y.flatten()
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(self, queries: Queries, memory: Memory) -> tuple[Queries, Prediction]:
        """[B, G, N, C] contents and [B, G, N, 4] xyzr boxes -> the same, refined, and the prediction."""
        # Section 3.4: boxes carry no gradient from stage to stage.
        return self.refine(queries.content, queries.boxes.detach(), memory)

    def refine(self, content: Tensor, xyzr: Tensor, memory: Memory) -> tuple[Queries, Prediction]:
        """The stage itself: `forward`, with a gradient to the boxes if they ask for one."""
        batch, groups, num_queries, channels = content.shape
        content = self.attend(content.flatten(0, 1), xyzr.flatten(0, 1))
        content = content.view(batch, groups * num_queries, channels)
        content = self.sample_and_mix(content, xyzr.flatten(1, 2), memory)
        content = self.feedforward_norm(content + self.feedforward(content))
        logits = self.to_class(self.class_layers(content))
        delta = self.to_box(self.box_layers(content))

        refined = refine_xyzr(xyzr, delta.view(batch, groups, num_queries, 4).to(xyzr.dtype))
        boxes = xyxy_to_cxcywh(xyzr_to_xyxy(refined) / memory.whwh[:, None, None])
        written = Queries(content.view(batch, groups, num_queries, channels), refined)
        return written, Prediction(logits.view(batch, groups, num_queries, -1), boxes)

    def attend(self, content: Tensor, xyzr: Tensor) -> Tensor:
        """Self-attention within each group: groups are folded into the batch, [B * G, N, C]."""
        with torch.no_grad():
            position = encode_position(xyzr, content.shape[-1]).to(content.dtype)
            boxes = xyzr_to_xyxy(xyzr)
            overlap = torch.log(pairwise_iof(boxes, boxes) + 1e-7)  # [B * G, N, N]
        bias = overlap.unsqueeze(1).to(self.iof_scale.dtype) * self.iof_scale.view(1, -1, 1, 1)
        placed = content + position  # also the residual: see the quirks above
        attended, _ = self.attention(placed, placed, placed, attn_mask=bias.flatten(0, 1), need_weights=False)
        return self.attention_norm(placed + attended)

    def sampling_points(self, content: Tensor, xyzr: Tensor) -> Tensor:
        """Where the stage looks: [B, Q, C], [B, Q, 4] -> [B, Q, M, P, 3] x, y in pixels and z (section 3.2)."""
        offsets = self.sampling_offsets(content).to(xyzr.dtype)
        return place_points(offsets.unflatten(-1, (self.mixing_groups, self.in_points, 3)), xyzr)

    def sample_and_mix(self, content: Tensor, xyzr: Tensor, memory: Memory) -> Tensor:
        """Reading the image: groups are folded into the queries, [B, G * N, C], so maps are never copied."""
        samples = sample_3d(memory.features, self.sampling_points(content, xyzr), self.strides)
        return self.mixing_norm(self.mixing(samples, content))


def _linear_norm_relu(channels: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU()]
    return nn.Sequential(*layers)


# --- The detector


class AdaMixer(StagedDetector):
    """AdaMixer with any backbone that has features at strides 4, 8, 16, 32.

    stages: AdaMixerStage modules. channels: of the neck. content: of the queries.
    initial_boxes: "image", the paper's: every query starts as the whole image; or "grid": centres on a regular grid,
        squares of a quarter of the image's scale, which learns much faster on short schedules.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: nn.Module,
        stages: Sequence[AdaMixerStage],
        num_queries: int,
        content: int = 256,
        *,
        initial_boxes: Literal["image", "grid"] = "image",
        recollection: Recollection | None = None,
        num_detections: int = 100,
    ) -> None:
        if initial_boxes not in ("image", "grid"):
            raise ValueError(f"initial_boxes must be 'image' or 'grid', not {initial_boxes!r}")
        criterion = SetCriterion(FocalClassification(), l1_format="xyxy")
        super().__init__(
            backbone, stages, criterion, recollection=recollection, num_detections=num_detections, clip=False
        )
        self.neck = neck
        self.query_content = nn.Embedding(num_queries, content)
        self.initial_boxes = initial_boxes

    def encode(self, features: list[Tensor], batch: ImageBatch) -> Encoded:
        """Initial queries: learned contents, boxes that depend on the image size alone."""
        maps = self.neck(features)
        whwh = batch.whwh().to(maps[0].dtype)
        content = F.layer_norm(self.query_content.weight, self.query_content.weight.shape[-1:])
        content = content.expand(len(whwh), 1, -1, -1)
        whwh = whwh if whwh.dtype == torch.float64 else whwh.float()
        return Encoded(Queries(content, self._initial_xyzr(whwh).unsqueeze(1)), Memory(maps, whwh))

    def _initial_xyzr(self, whwh: Tensor) -> Tensor:
        """[B, 4] image sizes -> [B, N, 4]."""
        count = self.query_content.num_embeddings
        width, height = whwh[:, 0:1], whwh[:, 1:2]
        scale = (width * height).sqrt().log2()
        if self.initial_boxes == "image":
            one = torch.stack((width / 2, height / 2, scale, (height / width).log2()), -1)
            return one.expand(-1, count, -1)
        columns = math.ceil(math.sqrt(count))
        rows = math.ceil(count / columns)
        place = torch.arange(count, device=whwh.device)
        x = (place % columns + 0.5) / columns * width
        y = (place // columns + 0.5) / rows * height
        return torch.stack((x, y, (scale - 2).expand_as(x), torch.zeros_like(x)), -1)


# --- Entry functions


def _build(
    num_classes: int,
    num_queries: int,
    num_stages: int,
    backbone: Backbone,
    recollection: Recollection | None,
    initial_boxes: Literal["image", "grid"] = "image",
    content: int = 256,
    **stage: Any,
) -> AdaMixer:
    stages = [AdaMixerStage(num_classes, content=content, channels=content, **stage) for _ in range(num_stages)]
    neck = SharedNormChannelMapper(backbone.channels, content)
    return AdaMixer(
        backbone, neck, stages, num_queries, content, recollection=recollection, initial_boxes=initial_boxes
    )


def adamixer_1x() -> Recipe:
    """12 epochs, batch 16, the paper's optimiser."""
    return Recipe(
        data=Data(resize=Resize((800,), 1333)),
        optimiser=Optimiser(lr=2.5e-5, batch=16, weight_decay=1e-4, clip_norm=1.0),
        schedule=Schedule(epochs=12, drops=(8 / 12, 11 / 12), warmup_steps=500, warmup_start=0.001),
    )


def adamixer_3x() -> Recipe:
    """36 epochs with the DETR crop policy and multi-scale training."""
    base = adamixer_1x()
    return replace(
        base,
        data=replace(base.data, resize=Resize(tuple(range(480, 801, 32)), 1333), crop=True),
        schedule=replace(base.schedule, epochs=36, drops=(24 / 36, 33 / 36)),
    )


def tiny_recipe() -> Recipe:
    """From scratch on small images, on a CPU."""
    return Recipe(
        data=Data(resize=Resize((128,), 256)),
        optimiser=Optimiser(lr=1e-3, batch=16, weight_decay=1e-4, clip_norm=1.0),
        schedule=Schedule(steps=1000, drops=(0.67, 0.92), warmup_steps=100),
    )


def small_recipe() -> Recipe:
    """Fine-tuning a pretrained light backbone on a small data set, on a CPU; ours, not a paper's."""
    return Recipe(
        data=Data(resize=Resize((192, 208, 224, 240, 256), 512)),
        optimiser=Optimiser(lr=1e-3, batch=8, weight_decay=1e-4, clip_norm=1.0, scales=(("backbone.", 0.1),)),
        schedule=Schedule(epochs=30, drops=(0.67, 0.92), warmup_steps=100),
        batch=8,
    )


_PAPER = "arXiv 2203.16507"
_SQR_PAPER = "arXiv 2212.07593"


@register(
    adamixer_1x,
    family="AdaMixer",
    paper=_PAPER,
    staged=True,
    published=Published(42.7, "AdaMixer paper: R50, 100 queries, 12 epochs"),
)
def adamixer_r50(
    num_classes: int = 80,
    *,
    num_queries: int = 100,
    num_stages: int = 6,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    initial_boxes: Literal["image", "grid"] = "image",
    recollection: Recollection | None = None,
) -> AdaMixer:
    """AdaMixer with ResNet-50 (or any timm backbone), trained plainly unless a `recollection` is given."""
    body = Backbone(backbone, STRIDES, backbone_weights, norm="eval", frozen_stages=1, **(backbone_options or {}))
    return _build(num_classes, num_queries, num_stages, body, recollection, initial_boxes)


@register(
    adamixer_3x,
    family="AdaMixer",
    paper=_PAPER,
    staged=True,
    published=Published(48.0, "AdaMixer paper: R101, 300 queries, 36 epochs"),
    like=adamixer_r50,
)
def adamixer_r101(num_classes: int = 80, **options: Any) -> AdaMixer:
    """AdaMixer with ResNet-101 and 300 queries."""
    return adamixer_r50(num_classes, **{"backbone": "resnet101.tv_in1k", "num_queries": 300, **options})


sqr_adamixer_r50 = recollecting(adamixer_r50, Published(44.5, "SQR paper: R50, 100 queries, 12 epochs"))


@register(
    adamixer_3x,
    family="AdaMixer",
    paper=_SQR_PAPER,
    staged=True,
    published=Published(49.8, "SQR paper: R101, 7 stages, 300 queries, 36 epochs"),
    like=adamixer_r50,
)
def sqr_adamixer_r101_7stages(num_classes: int = 80, **options: Any) -> AdaMixer:
    """The paper's largest: ResNet-101, seven stages, 300 queries, selective query recollection."""
    return adamixer_r101(num_classes, **{"num_stages": 7, "recollection": Recollection(), **options})


@register(small_recipe, family="AdaMixer", paper=_PAPER, staged=True)
def adamixer_mobilenetv2(
    num_classes: int = 80,
    *,
    num_queries: int = 50,
    num_stages: int = 4,
    backbone: str = "mobilenetv2_100",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    initial_boxes: Literal["image", "grid"] = "grid",
    recollection: Recollection | None = None,
) -> AdaMixer:
    """A light AdaMixer for fine-tuning on a CPU: MobileNetV2, four narrow stages, queries on a grid. Not in a paper."""
    frozen = 0 if backbone_weights is None else 1  # a stem of random weights must learn
    body = Backbone(backbone, STRIDES, backbone_weights, frozen_stages=frozen, **(backbone_options or {}))
    return _build(
        num_classes, num_queries, num_stages, body, recollection, initial_boxes,
        content=64, heads=4, feedforward=256, mixing_groups=2, in_points=16, out_points=32, sampling_scale_bias=-1.5,
    )  # fmt: skip


sqr_adamixer_mobilenetv2 = recollecting(adamixer_mobilenetv2)


@register(tiny_recipe, family="AdaMixer", paper=_PAPER, staged=True)
def adamixer_tiny(
    num_classes: int = 10,
    *,
    num_queries: int = 20,
    num_stages: int = 4,
    backbone: str = "resnet10t",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
    initial_boxes: Literal["image", "grid"] = "grid",
    recollection: Recollection | None = None,
) -> AdaMixer:
    """Small enough to train from scratch on a CPU in minutes; queries start on a grid."""
    body = tiny_backbone(STRIDES, backbone, backbone_weights, backbone_options)
    return _build(
        num_classes, num_queries, num_stages, body, recollection, initial_boxes,
        content=64, heads=4, feedforward=256, mixing_groups=2, in_points=16, out_points=32, sampling_scale_bias=-2.0,
    )  # fmt: skip


sqr_adamixer_tiny = recollecting(adamixer_tiny)
