"""Transforms that take other images from the dataset: mosaic, mixup, copy-paste. Their crowds are dropped."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors

from recollect.data.dataset import DetectionDataset, boxes_of
from recollect.data.transforms import (
    FILL,
    PER_OBJECT,
    DropCrowds,
    crop,
    keep_objects,
    resize_to,
    tidy,
)
from recollect.structures import Target

Sample = tuple[Tensor, Target]


class Mixing:
    """What the three have in common: drawing another image."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset.with_transform(None)

    def draw(self) -> Sample:
        """Another image, at random, as it is read."""
        return DropCrowds()(*self.dataset[int(torch.randint(len(self.dataset), ()))])


class Mosaic(Mixing):
    """Four images, each filling its quarter of a square of `size`; the quarters meet at a drawn point.

    Every image is scaled so that it covers its quarter, up to half as large again, and cut at random.
    """

    def __init__(self, dataset: DetectionDataset, size: int, min_box: float) -> None:
        super().__init__(dataset)
        self.size, self.min_box = size, min_box

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Apply."""
        size = self.size
        row, column = (int(size * (0.25 + 0.5 * float(torch.rand(())))) for _ in range(2))
        canvas = _canvas(size, size)
        parts = []
        for place in range(4):
            top, height = (0, row) if place < 2 else (row, size - row)
            left, width = (0, column) if place % 2 == 0 else (column, size - column)
            picture, objects = (image, target) if place == 0 else self.draw()
            picture, objects = self._fit(picture, objects, height, width)
            canvas[:, top : top + height, left : left + width] = picture
            parts.append(_placed(objects, top, left, (size, size)))
        return tv_tensors.Image(canvas), _merged(target, parts)

    def _fit(self, image: Tensor, target: Target, height: int, width: int) -> Sample:
        cover = max(height / image.shape[-2], width / image.shape[-1]) * (1 + 0.5 * float(torch.rand(())))
        wanted = (max(height, round(image.shape[-2] * cover)), max(width, round(image.shape[-1] * cover)))
        image, target = resize_to(image, target, wanted)
        top, left = (int(torch.randint(0, w - s + 1, ())) for w, s in zip(wanted, (height, width)))
        return crop(image, target, top, left, height, width, self.min_box)


class MixUp(Mixing):
    """Blend with another image, which is laid over the top left corner; the objects of both count in full.

    The share of the first is drawn from Beta(8, 8): mostly near a half.
    """

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Apply."""
        other, objects = self.draw()
        size = tuple(max(a, b) for a, b in zip(image.shape[-2:], other.shape[-2:]))
        one, two = torch._standard_gamma(torch.full((2,), 8.0)).tolist()
        share = one / (one + two)
        canvas = torch.zeros(3, *size)
        for picture, weight in ((image, share), (other, 1 - share)):
            whole = _canvas(*size)
            whole[:, : picture.shape[-2], : picture.shape[-1]] = picture
            canvas += weight * whole
        parts = [_placed(target, 0, 0, size), _placed(objects, 0, 0, size)]
        return tv_tensors.Image(canvas.add_(0.5).clamp_(0, 255).to(torch.uint8)), _merged(target, parts)


class CopyPaste(Mixing):
    """Paste some objects of another image, by their masks, at their size and a drawn place.

    What is covered is taken off the masks and boxes beneath; objects of which less than a tenth is left are dropped.
    ValueError if the dataset was opened without masks.
    """

    def __init__(self, dataset: DetectionDataset, min_box: float) -> None:
        if not dataset.masks:
            raise ValueError("copy_paste cuts objects out by their masks: open the dataset with masks=True")
        super().__init__(dataset)
        self.min_box = min_box

    def __call__(self, image: Tensor, target: Target) -> Sample:
        """Apply."""
        other, objects = self.draw()
        count = len(objects["labels"])
        if not count:
            return image, target
        objects = keep_objects(objects, torch.rand(count) < 0.5)
        if not len(objects["labels"]):
            return image, target
        size = (int(image.shape[-2]), int(image.shape[-1]))
        # shift by up to half of the image either way; what leaves it is cut
        down, right = (int(torch.randint(-(s // 2), s // 2 + 1, ())) for s in size)
        masks = _shifted(objects["masks"].as_subclass(Tensor), down, right, size)
        pixels = _shifted(other.as_subclass(Tensor), down, right, size)
        boxes = objects["boxes"].as_subclass(Tensor) + torch.tensor([right, down, right, down])
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([size[1], size[0]] * 2).to(boxes))
        pasted = tidy(
            {**objects, "boxes": boxes_of(boxes, size), "masks": tv_tensors.Mask(masks)}, max(self.min_box, 1.0)
        )
        cover = pasted["masks"].as_subclass(Tensor).any(0) if len(pasted["labels"]) else torch.zeros(size).bool()
        before = target["masks"].as_subclass(Tensor)
        after = before & ~cover
        left = after.flatten(1).sum(1) >= 0.1 * before.flatten(1).sum(1)
        beneath = tidy(keep_objects({**target, "masks": tv_tensors.Mask(after)}, left), self.min_box)
        picture = torch.where(cover, pixels, image.as_subclass(Tensor))
        merged = _merged(target, [beneath, pasted])
        merged["area"] = merged["masks"].as_subclass(Tensor).flatten(1).sum(1).float()
        return tv_tensors.Image(picture), merged


def _canvas(height: int, width: int) -> Tensor:
    return torch.tensor(FILL, dtype=torch.uint8)[:, None, None].repeat(1, height, width)


def _shifted(stack: Tensor, down: int, right: int, size: tuple[int, int]) -> Tensor:
    """[..., H, W] moved onto a canvas of another size; zeros where nothing comes to lie."""
    height, width = size
    moved = stack.new_zeros(*stack.shape[:-2], height, width)
    top, left = max(0, down), max(0, right)
    bottom, end = min(height, stack.shape[-2] + down), min(width, stack.shape[-1] + right)
    if bottom > top and end > left:
        moved[..., top:bottom, left:end] = stack[..., top - down : bottom - down, left - right : end - right]
    return moved


def _placed(target: Target, top: int, left: int, size: tuple[int, ...]) -> Target:
    """The objects of an image that comes to lie at (top, left) of a canvas of that size."""
    boxes = target["boxes"].as_subclass(Tensor) + torch.tensor([left, top, left, top])
    placed = {**target, "boxes": boxes_of(boxes, (int(size[0]), int(size[1])))}
    if "masks" in target:
        masks = _shifted(target["masks"].as_subclass(Tensor), top, left, (int(size[0]), int(size[1])))
        placed["masks"] = tv_tensors.Mask(masks)
    return placed


def _merged(first: Target, parts: list[Target]) -> Target:
    """The first image's target with the objects of all parts, which lie on one canvas."""
    merged = {key: value for key, value in first.items() if key != "proposals"}
    for key in PER_OBJECT:
        if key in first:
            merged[key] = torch.cat([part[key].as_subclass(Tensor) for part in parts])
    merged["boxes"] = boxes_of(merged["boxes"], parts[0]["boxes"].canvas_size)
    if "masks" in first:
        merged["masks"] = tv_tensors.Mask(merged["masks"])
    return merged
