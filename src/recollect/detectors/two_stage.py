"""What every two-stage detector is: backbone, neck, proposals, and a loop of RoI stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recollect.backbones import Backbone
from recollect.detectors.roi_heads import RoIHead
from recollect.detectors.rpn import RPNHead
from recollect.detectors.staged import check_targets
from recollect.ops.precision import full_precision
from recollect.structures import ImageBatch, Target


class TwoStageDetector(nn.Module):
    """Images to losses in training, to detections in evaluation.

    neck: backbone maps to the maps that both stages read. rpn: makes the proposals; None reads them from the targets
    (`proposals` [n, 4] xyxy in the pixels of the image given, see Fast R-CNN), then also in evaluation.
    divisor: padded sizes are multiples of it.
    """

    def __init__(
        self, backbone: Backbone, neck: nn.Module, rpn: RPNHead | None, roi: RoIHead, *, divisor: int = 32
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn, self.roi = backbone, neck, rpn, roi
        self.divisor = divisor
        self.register_buffer("mean", torch.tensor(backbone.mean), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @property
    def needs_masks(self) -> bool:
        """Whether targets must hold masks in training."""
        return self.roi.has_masks

    @property
    def needs_proposals(self) -> bool:
        """Whether targets must hold proposals, in training and in evaluation."""
        return self.rpn is None

    @property
    def num_detections(self) -> int:
        """Detections kept per image; 100 unless set."""
        return self.roi.post.max_detections

    @num_detections.setter
    def num_detections(self, count: int) -> None:
        self.roi.limit_detections(count)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation; images, targets and detections as in StagedDetector.

        With mask heads, targets need `masks` ([T, H, W], or T COCO segmentations in the image's pixels), and detections
        hold `roi_masks` [n, M, M]: probabilities over each box, for `ops.masks.encode_roi_masks` or `paste_masks`.
        """
        batch = self.collate(images)
        if self.training:
            if targets is None:
                raise ValueError("in training mode the detector needs targets; call .eval() to predict")
            check_targets(targets, len(batch.sizes))
        maps = self.neck(self.backbone(batch.tensors))
        losses, proposals = self.propose(maps, targets, batch)
        if not self.training:
            return self.roi.detections(maps, proposals, batch)
        assert targets is not None
        return losses | self.roi.losses(maps, proposals, targets, batch)

    def propose(
        self, maps: Sequence[Tensor], targets: Sequence[Target] | None, batch: ImageBatch
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The first stage: its losses (in training), and proposals [n, 4] of each image."""
        if self.rpn is not None:
            return self.rpn.loss_and_proposals(maps, targets if self.training else None, batch)
        found = []
        for place, size in enumerate(batch.sizes):
            target = {} if targets is None else targets[place]
            if "proposals" not in target:
                raise ValueError(
                    f"image {target.get('image_id', place)}: the target has no proposals, which this detector reads "
                    "instead of making its own: write them with `recollect predict --proposals FILE` of an RPN"
                )
            boxes = target["proposals"].as_subclass(Tensor).to(maps[0].device).reshape(-1, 4)
            limit = boxes.new_tensor([size[1], size[0]]).repeat(2)
            boxes = full_precision(boxes).clamp(min=0).minimum(limit)
            found.append(boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)])  # a crop may leave nothing of some
        return {}, found

    def collate(self, images: Sequence[Tensor], padded_size: tuple[int, int] | None = None) -> ImageBatch:
        """Normalise and pad."""
        return ImageBatch.collate(images, self.mean, self.std, self.divisor, padded_size)
