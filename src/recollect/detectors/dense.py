"""What every dense detector shares: towers, flatten once, assign, loss; decode, top-k, NMS.

A detector of this kind writes `losses`, and overrides at most three more of `predict`, `decode`, `scores`,
`own_priors`; everything else is the arguments of its head. docs/adding_a_method.md shows how further methods fit.

Shapes: B images, N priors of all levels, P positives of the batch, K classes, D values per prior, A priors per cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from recollect.backbones import Backbone
from recollect.detectors.staged import check_targets
from recollect.layers.anchors import AnchorGenerator
from recollect.layers.box_coders import Size
from recollect.layers.conv import Norm, conv_tower, init_normal
from recollect.losses.assigned import Assigned
from recollect.matching.assigner import Assigner, scatter
from recollect.matching.samplers import RandomSampler
from recollect.ops.nms import PostProcess
from recollect.ops.precision import full_precision
from recollect.structures import ImageBatch, Priors, Target

Outputs = dict[str, Tensor]
"""What a head says at every prior, [B, N, D] by name: "logits" (D = K), "boxes" (as its coder decodes), and more."""


class BoxCoder(Protocol):
    """Between boxes and regressed values; see layers.box_coders."""

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor: ...  # noqa: D102

    def decode(self, priors: Tensor, values: Tensor, max_size: Size = None) -> Tensor: ...  # noqa: D102


class DenseHead(nn.Module):
    """Class and box towers shared by all levels, with a prediction at every prior.

    priors: anchors or points. coder, assigner: see layers.box_coders, matching.assigner. convs: 3x3 blocks per tower.
    norm, tower_bias: of those blocks. box_values: regressed per prior. class_kernel: of the last convolutions.
    sampler: keeps some of the assigned priors for the loss. border: priors that leave the image by more pixels take no
        part in training; None keeps them. padding: priors that lie in the padding which batch mates caused take part.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        priors: AnchorGenerator,
        coder: BoxCoder,
        assigner: Assigner,
        post: PostProcess | None = None,
        in_channels: int = 256,
        channels: int = 256,
        convs: int = 4,
        norm: Norm | None = None,
        tower_bias: bool | None = None,
        box_values: int = 4,
        sampler: RandomSampler | None = None,
        border: float | None = None,
        padding: bool = False,
        divisor: int = 32,
    ) -> None:
        super().__init__()
        self.priors, self.coder, self.assigner, self.post = priors, coder, assigner, post or PostProcess()
        self.sampler, self.border, self.padding, self.divisor = sampler, border, padding, divisor
        self.num_classes = num_classes
        width = channels if convs else in_channels
        anchors = priors.per_cell[0]
        self.class_tower = conv_tower(in_channels, channels, convs, norm, tower_bias)
        self.box_tower = conv_tower(in_channels, channels, convs, norm, tower_bias)
        self.to_class = nn.Conv2d(width, anchors * num_classes, 3, padding=1)
        self.to_box = nn.Conv2d(width, anchors * box_values, 3, padding=1)
        init_normal(self)
        assert self.to_class.bias is not None
        nn.init.constant_(self.to_class.bias, -math.log(99))  # every class starts at probability 0.01

    # --- What a detector may override

    def predict(self, class_features: Tensor, box_features: Tensor, level: int) -> Outputs:
        """The two towers' maps [B, C, H, W] of one level -> maps [B, A * D, H, W] by name."""
        del level
        return {"logits": self.to_class(class_features), "boxes": self.to_box(box_features)}

    def losses(self, outputs: Outputs, assigned: Assigned) -> dict[str, Tensor]:
        """Scalars that sum to the loss; runs in float32 or better."""
        raise NotImplementedError

    def decode(self, values: Tensor, priors: Tensor, strides: Tensor, max_size: Size = None) -> Tensor:
        """Regressed values [..., D] at priors [..., 4] of strides [...] -> boxes [..., 4] xyxy in pixels."""
        del strides
        return self.coder.decode(priors, values, max_size)

    def scores(self, outputs: Outputs) -> tuple[Tensor, Tensor | None]:
        """Class scores [..., K], and a quality [...] that multiplies them after the threshold, or None."""
        return outputs["logits"].sigmoid(), None

    def own_priors(self, outputs: Outputs, priors: Priors) -> Priors:
        """One image's outputs [N, D] -> its priors: the generator's, unless a head predicts them."""
        del outputs
        return priors

    # --- The skeleton

    def forward(self, features: Sequence[Tensor]) -> tuple[Outputs, Priors]:
        """Maps [B, C, H_l, W_l] -> flattened outputs [B, N, D], and the priors they stand at."""
        levels: list[Outputs] = []
        for level, feature in enumerate(features):
            maps = self.predict(self.class_tower(feature), self.box_tower(feature), level)
            anchors = self.priors.per_cell[level]
            levels.append({name: _flatten(one, anchors) for name, one in maps.items()})
        outputs = {name: full_precision(torch.cat([one[name] for one in levels], 1)) for name in levels[0]}
        return outputs, self.priors(features)

    def loss(self, features: Sequence[Tensor], targets: Sequence[Target], batch: ImageBatch) -> dict[str, Tensor]:
        """Maps and targets to losses."""
        outputs, priors = self(features)
        with torch.autocast(features[0].device.type, enabled=False):
            return self.losses(outputs, self.assign(outputs, priors, features, targets, batch))

    def assign(
        self,
        outputs: Outputs,
        priors: Priors,
        features: Sequence[Tensor],
        targets: Sequence[Target],
        batch: ImageBatch,
        assigner: Assigner | None = None,
    ) -> Assigned:
        """Ask the assigner (this head's unless given), image by image, about the priors within the image."""
        assigner = assigner or self.assigner
        maps = [(int(f.shape[-2]), int(f.shape[-1])) for f in features]
        found, labels, boxes, prior_boxes = [], [], [], []
        for image, target in enumerate(targets):
            said = {name: values[image].detach() for name, values in outputs.items()}
            own = self.own_priors(said, priors)
            usable = self.usable(own, maps, batch.sizes[image])
            predictions = None
            if assigner.reads_predictions:
                decoded = self.decode(said["boxes"], own.boxes, own.strides)
                predictions = {name: values[usable] for name, values in (said | {"boxes": decoded}).items()}
            if usable.all():
                assignment = assigner.assign(own, target, predictions)
            else:
                assignment = scatter(assigner.assign(own.select(usable), target, predictions), usable)
            if self.sampler is not None:
                assignment = self.sampler.sample(assignment)
            found.append(assignment)
            chosen = assignment.gt_index[assignment.positive]
            labels.append(target["labels"].to(chosen.device)[chosen])
            boxes.append(target["boxes"].as_subclass(Tensor).to(own.boxes).reshape(-1, 4)[chosen])
            prior_boxes.append(own.boxes[assignment.positive])
        gt_index = torch.stack([one.gt_index for one in found])
        image, prior = (gt_index >= 0).nonzero().unbind(1)
        objects = torch.cat(labels), torch.cat(boxes), torch.cat(prior_boxes)
        return Assigned(gt_index, image, prior, *objects, priors.strides[prior])

    def usable(self, priors: Priors, maps: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
        """[N] bool: priors that take part in training for an image of (height, width) `size`."""
        inside = torch.ones_like(priors.strides, dtype=torch.bool)
        if not self.padding:
            height, width = (-(-side // self.divisor) * self.divisor for side in size)
            inside = self.priors.inside(maps, height, width).to(inside.device)
        if self.border is not None:
            low, high = priors.boxes[:, :2], priors.boxes[:, 2:]
            limit = priors.boxes.new_tensor([size[1], size[0]]) + self.border
            inside = inside & (low >= -self.border).all(1) & (high < limit).all(1)
        return inside

    def detections(self, features: Sequence[Tensor], batch: ImageBatch) -> list[dict[str, Tensor]]:
        """Maps to detections of each image."""
        outputs, priors = self(features)
        with torch.autocast(features[0].device.type, enabled=False):
            images = range(len(batch.sizes))
            return [self.detect({k: v[i] for k, v in outputs.items()}, priors, batch.sizes[i]) for i in images]

    def detect(self, outputs: Outputs, priors: Priors, size: tuple[int, int]) -> dict[str, Tensor]:
        """One image's outputs [N, D] -> boxes [n, 4] clipped to (height, width) `size`, scores, labels; best first."""
        priors = self.own_priors(outputs, priors)
        scores, factor = self.scores(outputs)
        boxes, kept, factors, start = [], [], [], 0
        for count in priors.counts:
            level = slice(start, start + count)
            start += count
            of_level = None if factor is None else factor[level]
            chosen, candidates = self.post.choose(scores[level], of_level)
            kept.append(candidates[chosen])
            values, at, strides = outputs["boxes"][level], priors.boxes[level], priors.strides[level]
            boxes.append(self.decode(values[chosen], at[chosen], strides[chosen], size))
            if of_level is not None:
                factors.append(of_level[chosen])
        quality = torch.cat(factors) if factors else None
        found, best, labels = self.post.suppress(torch.cat(boxes), torch.cat(kept), quality)
        return {"boxes": found, "scores": best, "labels": labels}


class DenseDetector(nn.Module):
    """Backbone, neck and dense head: images to losses in training, to detections in evaluation.

    divisor: padded sizes are multiples of it; the head takes it for each image's own padding.
    """

    def __init__(self, backbone: Backbone, neck: nn.Module, head: DenseHead) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head
        self.divisor = head.divisor
        self.register_buffer("mean", torch.tensor(backbone.mean), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation; images, targets and detections as in StagedDetector."""
        batch = self.collate(images)
        features = self.neck(self.backbone(batch.tensors))
        if not self.training:
            return self.head.detections(features, batch)
        if targets is None:
            raise ValueError("in training mode the detector needs targets; call .eval() to predict")
        check_targets(targets, len(batch.sizes))
        return self.head.loss(features, targets, batch)

    @property
    def num_detections(self) -> int:
        """Detections kept per image."""
        return self.head.post.max_detections

    @num_detections.setter
    def num_detections(self, count: int) -> None:
        self.head.post = replace(self.head.post, max_detections=count)

    def collate(self, images: Sequence[Tensor], padded_size: tuple[int, int] | None = None) -> ImageBatch:
        """Normalise and pad."""
        return ImageBatch.collate(images, self.mean, self.std, self.divisor, padded_size)


def _flatten(maps: Tensor, anchors: int) -> Tensor:
    """[B, A * D, H, W] -> [B, H * W * A, D]."""
    batch, channels, _, _ = maps.shape
    return maps.permute(0, 2, 3, 1).reshape(batch, -1, channels // anchors)
