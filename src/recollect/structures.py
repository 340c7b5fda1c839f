"""The few types that cross rooms.

Shape letters used throughout the project: B images, G groups of queries, N queries in a group, C channels, K classes,
H x W pixels or cells, T objects in an image, S decoder stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Target = dict[str, Any]
"""What one training image holds: `boxes` [T, 4] xyxy in pixels, `labels` [T] in 0..K-1, optionally `masks`,
`image_id`, `iscrowd`, `area`. No boxes at all is a normal image."""


@dataclass(frozen=True)
class Queries:
    """What a decoder stage reads and writes.

    content: [B, G, N, C].
    boxes: [B, G, N, D], in whatever form the detector refines (AdaMixer xyzr; DETR-like reference points or boxes).
        They are stored live; a stage detaches them where it reads, if its paper does.
    Groups never see each other. They stand oldest first, so `[:, -1]` is the plain path, which inference computes.
    """

    content: Tensor
    boxes: Tensor

    @staticmethod
    def cat(parts: Sequence[Queries]) -> Queries:
        """Join along the group axis."""
        if len(parts) == 1:
            return parts[0]
        return Queries(torch.cat([p.content for p in parts], 1), torch.cat([p.boxes for p in parts], 1))


@dataclass(frozen=True)
class Prediction:
    """What a decoder stage says about the image.

    logits: [B, G, N, K], before sigmoid or softmax.
    boxes: [B, G, N, 4], cxcywh normalised by the unpadded image's width and height.
    """

    logits: Tensor
    boxes: Tensor

    def group(self, index: int) -> Prediction:
        """One group, with the group axis kept: `group(-1)` is the plain path."""
        return Prediction(self.logits[:, index].unsqueeze(1), self.boxes[:, index].unsqueeze(1))


@dataclass(frozen=True)
class Priors:
    """Anchors or points of one image: where a dense head predicts, in the order of its flattened outputs.

    boxes: [N, 4] xyxy in pixels; a point is the square of one stride around it.
    strides: [N], pixels per cell. counts: priors per level, finest first; they sum to N.
    """

    boxes: Tensor
    strides: Tensor
    counts: tuple[int, ...]

    @property
    def centres(self) -> Tensor:
        """[N, 2]: x, y in pixels."""
        return (self.boxes[..., :2] + self.boxes[..., 2:]) / 2

    def select(self, mask: Tensor) -> Priors:
        """Only the priors where `mask` [N] is true."""
        counts = tuple(int(level.sum()) for level in mask.split(self.counts))
        return Priors(self.boxes[mask], self.strides[mask], counts)


NEGATIVE, IGNORED = -1, -2


@dataclass(frozen=True)
class Assignment:
    """Which object each prior of one image answers for.

    gt_index: [N] long, the object's place in the target, or NEGATIVE (background), or IGNORED (in no loss).
    overlap: [N], the IoU that decided where the assigner works by IoU; else 0.
    """

    gt_index: Tensor
    overlap: Tensor

    @property
    def positive(self) -> Tensor:
        """[N] bool."""
        return self.gt_index >= 0


@dataclass(frozen=True)
class ImageBatch:
    """Normalised images of one batch, padded at the bottom and right to a common size.

    tensors: [B, 3, H, W] float.
    sizes: (height, width) of each image before padding, in pixels.
    """

    tensors: Tensor
    sizes: list[tuple[int, int]]

    @staticmethod
    def collate(
        images: Sequence[Tensor],
        mean: Tensor,
        std: Tensor,
        divisor: int = 32,
        padded_size: tuple[int, int] | None = None,
    ) -> ImageBatch:
        """Normalise and pad images of different sizes on the device of `mean`.

        images: [3, H, W] each, uint8, or float in 0..1. mean, std: [3], for values in 0..1.
        divisor: the padded height and width are multiples of it; padded_size: use exactly this (height, width).
        Raises ValueError for anything that is not such an image, naming its place in the batch.
        """
        if isinstance(images, Tensor):
            images = list(images)
        for index, image in enumerate(images):
            if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3:
                found = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
                raise ValueError(f"image {index} of the batch must be a tensor [3, H, W] in RGB order, found {found}")
            if image.shape[1] < 1 or image.shape[2] < 1:
                raise ValueError(f"image {index} of the batch has no pixels: {tuple(image.shape)}")
            if image.dtype != torch.uint8 and not image.is_floating_point():
                raise ValueError(f"image {index} of the batch is {image.dtype}: give uint8 in 0..255 or float in 0..1")
        if not images:
            raise ValueError("the batch holds no image")
        sizes = [(int(i.shape[1]), int(i.shape[2])) for i in images]
        if padded_size is None:
            height = -(-max(h for h, _ in sizes) // divisor) * divisor
            width = -(-max(w for _, w in sizes) // divisor) * divisor
        else:
            height, width = padded_size
            if any(h > height or w > width for h, w in sizes):
                raise ValueError(f"an image of {max(sizes)} pixels does not fit the padded size {padded_size}")
        tensors = mean.new_zeros(len(images), 3, height, width)
        for slot, image, (h, w) in zip(tensors, images, sizes):
            pixels = image.to(mean.device, non_blocking=True)
            pixels = pixels.to(mean.dtype) / 255 if image.dtype == torch.uint8 else pixels.to(mean.dtype)
            slot[:, :h, :w] = (pixels - mean[:, None, None]) / std[:, None, None]
        return ImageBatch(tensors, sizes)

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) of the padded batch."""
        return int(self.tensors.shape[-2]), int(self.tensors.shape[-1])

    def whwh(self) -> Tensor:
        """[B, 4]: width, height, width, height of each unpadded image, in pixels."""
        return self.tensors.new_tensor([(w, h, w, h) for h, w in self.sizes])

    def padding_mask(self) -> Tensor:
        """[B, H, W] bool, True where there is padding."""
        height, width = self.padded_size
        device = self.tensors.device
        heights = torch.tensor([h for h, _ in self.sizes], device=device)
        widths = torch.tensor([w for _, w in self.sizes], device=device)
        rows = torch.arange(height, device=device) >= heights[:, None]
        columns = torch.arange(width, device=device) >= widths[:, None]
        return rows[:, :, None] | columns[:, None, :]
