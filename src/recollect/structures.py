"""The few types that cross rooms.

Shape letters used throughout the project: B images, G groups of queries, N queries in a group, C channels, K classes,
H x W pixels or cells, T objects in an image, S decoder stages.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
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
        padded = []  # not written in place into one tensor, which a traced export would lose
        for image, (h, w) in zip(images, sizes):
            pixels = image.to(mean.device, non_blocking=True)
            pixels = pixels.to(mean.dtype) / 255 if image.dtype == torch.uint8 else pixels.to(mean.dtype)
            padded.append(F.pad((pixels - mean[:, None, None]) / std[:, None, None], (0, width - w, 0, height - h)))
        return ImageBatch(torch.stack(padded), sizes)

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


@dataclass(frozen=True)
class Detections:
    """What was found in one image, for people: the result of `recollect.load(...).predict(...)`.

    boxes: [n, 4] xyxy in the pixels of the image as it was given. scores: [n], descending. labels: [n] in 0..K-1.
    classes: the names of all K classes. size: (height, width) of the image. masks: [n, H, W] bool, or None.
    path: the image's file, if it came from one. All tensors are on the CPU.

    Indexing gives Detections again, with an index, a slice, a mask or a list of indices; iterating gives one at a time.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    size: tuple[int, int]
    masks: Tensor | None = None
    path: str | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Detections:
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"detection {index} of {len(self)}")
            index = [index]
        elif not isinstance(index, slice):
            index = torch.as_tensor(index)
            index = index if index.numel() else index.long()
        masks = None if self.masks is None else self.masks[index]
        return replace(self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index], masks=masks)

    def __iter__(self) -> Iterator[Detections]:
        return (self[i] for i in range(len(self)))

    @property
    def names(self) -> list[str]:
        """The class name of every detection."""
        return [self.classes[label] for label in self.labels.tolist()]

    def filter(self, threshold: float = 0.0, classes: Sequence[str] | None = None) -> Detections:
        """Those with at least this score, and of these classes if given; ValueError for a class that is not known."""
        keep = self.scores >= threshold
        if classes is not None:
            unknown = [name for name in classes if name not in self.classes]
            if unknown:
                raise ValueError(f"there is no class {unknown[0]!r}; the detector knows {', '.join(self.classes)}")
            wanted = torch.tensor([self.classes.index(name) for name in classes], dtype=self.labels.dtype)
            keep = keep & torch.isin(self.labels, wanted)
        return self[keep]

    def to_json(self) -> dict[str, Any]:
        """Plain data, numbers as they are: one entry per detection."""
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), self.names)
        found = [{"box": box, "score": score, "label": label, "name": name} for box, score, label, name in rows]
        return {"path": self.path, "height": self.size[0], "width": self.size[1], "detections": found}

    def save_json(self, path: str | Path) -> None:
        """Write `to_json()` to a file."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO results: boxes as x, y, width, height. category_ids: the id of every label, by default 1..K."""
        ids = range(1, len(self.classes) + 1) if category_ids is None else category_ids
        if len(ids) != len(self.classes):
            raise ValueError(f"{len(ids)} category ids for {len(self.classes)} classes")
        boxes = self.boxes.double()
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1).tolist()
        return [
            {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score}
            for box, score, label in zip(boxes, self.scores.tolist(), self.labels.tolist())
        ]

    def to_supervision(self) -> Any:
        """As `supervision.Detections`; that package is not one of ours and must be installed."""
        try:
            import supervision  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError("to_supervision() needs the package supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            mask=None if self.masks is None else self.masks.numpy(),
            data={"class_name": np.array(self.names)},
        )

    def draw(self, image: Any = None, threshold: float = 0.0) -> Image.Image:
        """A copy of the image with boxes, masks, names and scores of at least `threshold`, one colour per class.

        image: a PIL image, or a [3, H, W] uint8 tensor; by default the file that it came from.
        """
        if image is None:
            if self.path is None:
                raise ValueError("these detections did not come from a file: give draw() the image")
            image = ImageOps.exif_transpose(Image.open(self.path))
        if isinstance(image, Tensor):
            image = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        canvas = image.convert("RGB")
        if (canvas.height, canvas.width) != self.size:
            raise ValueError(f"the image is {canvas.height}x{canvas.width}, its detections are for {self.size}")
        pixels = np.array(canvas)
        shown = self.filter(threshold)
        colours = [_colour(label) for label in shown.labels.tolist()]
        for mask, colour in zip(() if shown.masks is None else shown.masks.bool().numpy(), colours):
            pixels[mask] = pixels[mask] // 2 + np.array(colour, dtype=np.uint8) // 2
        canvas = Image.fromarray(pixels)
        pen = ImageDraw.Draw(canvas)
        line = max(1, round(max(self.size) / 400))
        font = ImageFont.load_default(max(9, round(max(self.size) / 50)))
        for box, score, name, colour in zip(shown.boxes.tolist(), shown.scores.tolist(), shown.names, colours):
            left, right = sorted((box[0], box[2]))  # a decoder that diverged may turn boxes inside out
            top, bottom = sorted((box[1], box[3]))
            pen.rectangle((left, top, right, bottom), outline=colour, width=line)
            text = f"{name} {score:.2f}"
            around = pen.textbbox((max(0, left), max(0, top)), text, font=font)
            pen.rectangle(around, fill=colour)
            pen.text((max(0, left), max(0, top)), text, fill="black", font=font)
        return canvas


def _colour(label: int) -> tuple[int, int, int]:
    """Bright colours, neighbouring labels far apart on the colour wheel."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618 % 1, 0.65, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)
