"""From an image as read to an image as fed, objects in step. Images stay uint8; the model normalises them.

Every transform is a callable (image, target) -> (image, target) and draws from torch's default generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from recollect.data.dataset import DetectionDataset, Transform
from recollect.recipe import Data, Resize
from recollect.structures import Target

FILL = (124, 116, 104)  # the mean colour of ImageNet, where there is no image
PER_OBJECT = ("boxes", "labels", "iscrowd", "area", "masks")


class Pipeline:
    """Transforms one after the other; at the end `fed_size` says what became of the image."""

    def __init__(self, steps: Sequence[Transform]) -> None:
        self.steps = list(steps)

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Apply."""
        for step in self.steps:
            image, target = step(image, target)
        return image, {**target, "fed_size": (int(image.shape[-2]), int(image.shape[-1]))}

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(type(s).__name__ for s in self.steps)})"


def training_transform(data: Data, dataset: DetectionDataset | None = None) -> Pipeline:
    """The recipe's training pipeline. Crowd objects are dropped first; what the recipe leaves at 0 or None is left out.

    dataset: where mosaic, mixup and copy-paste take their other images from. ValueError if they need one that is not
    given, or masks that it does not have.
    """
    # mixing builds on this module
    from recollect.data.mixing import CopyPaste, MixUp, Mosaic

    steps: list[Transform] = [DropCrowds()]
    if data.copy_paste:
        steps.append(Sometimes(data.copy_paste, CopyPaste(_needed(dataset, "copy_paste"), data.min_box)))
    if data.mosaic:
        mosaic = Mosaic(_needed(dataset, "mosaic"), data.mosaic_size, data.min_box)
        steps.append(Sometimes(data.mosaic, mosaic))
    if data.mixup:
        steps.append(Sometimes(data.mixup, MixUp(_needed(dataset, "mixup"))))
    if data.photometric:
        steps.append(Library(v2.RandomPhotometricDistort(p=0.5), data.photometric))
    if data.zoom_out:
        fill: Any = {tv_tensors.Image: FILL, "others": 0}
        steps.append(Library(v2.RandomZoomOut(fill=fill, side_range=(1.0, data.zoom_out_to), p=1.0), data.zoom_out))
    if data.iou_crop:
        steps.append(Library(v2.RandomIoUCrop(), data.iou_crop, data.min_box))
    if data.crop:
        first = [ShortestSide(data.crop_resize), RandomCrop(data.crop_size, data.min_box)]
        steps.append(Sometimes(0.5, Pipeline(first)))
    if data.jitter is not None:
        steps.append(ScaleJitter(data.jitter, data.jitter_size, data.min_box))
    else:
        steps.append(ShortestSide(data.resize))
    if data.flip:
        steps.append(Flip(data.flip))
    return Pipeline(steps)


def _needed(dataset: DetectionDataset | None, step: str) -> DetectionDataset:
    if dataset is None:
        raise ValueError(f"{step} takes objects from other images: give training_transform the dataset too")
    return dataset


def evaluation_transform(data: Data) -> Pipeline:
    """Only the resize, to the largest of the recipe's short sides; crowd objects stay."""
    return Pipeline([ShortestSide(Resize((max(data.resize.short),), data.resize.long))])


def keep_objects(target: Target, keep: Tensor) -> Target:
    """The target with only the objects where `keep` [T] is true."""
    kept = dict(target)
    for key in PER_OBJECT:
        if key in target:
            value = target[key]
            kept[key] = like(value[keep], value)
    return kept


def like(plain: Tensor, model: Tensor) -> Tensor:
    """The tensor with the kind of `model` (boxes with their canvas, masks), which indexing loses."""
    return tv_tensors.wrap(plain, like=model) if isinstance(model, tv_tensors.TVTensor) else plain  # pyright: ignore


def move_objects(target: Target, move: Callable[[Tensor], Tensor]) -> Target:
    """Apply a geometric function of transforms v2 to boxes and masks; areas follow the boxes."""
    moved = dict(target)
    moved["boxes"] = move(target["boxes"])
    if "masks" in target:
        moved["masks"] = move(target["masks"])
    if "proposals" in target:
        moved["proposals"] = move(target["proposals"])
    moved["area"] = target["area"] * (_areas(moved["boxes"]) / _areas(target["boxes"]).clamp(min=1e-6))
    return moved


def _areas(boxes: Tensor) -> Tensor:
    plain = boxes.as_subclass(Tensor)
    return (plain[:, 2] - plain[:, 0]) * (plain[:, 3] - plain[:, 1])


def tidy(target: Target, min_box: float) -> Target:
    """After a cut: boxes shrink to what is left of their masks, and objects thinner than `min_box` pixels go."""
    boxes = target["boxes"].as_subclass(Tensor).clone()
    if "masks" in target:
        boxes = _shrink(boxes, target["masks"].as_subclass(Tensor))
    keep = ((boxes[:, 2:] - boxes[:, :2]) >= max(min_box, 1e-3)).all(1)
    if "masks" in target:
        keep &= target["masks"].flatten(1).any(1).as_subclass(Tensor)
    return keep_objects({**target, "boxes": like(boxes, target["boxes"])}, keep)


def _shrink(boxes: Tensor, masks: Tensor) -> Tensor:
    """Boxes cut down to the extent of their masks; left as they are where the mask is empty or elsewhere."""
    columns, rows = masks.any(1), masks.any(2)
    some = rows.any(1)
    width, height = masks.shape[2], masks.shape[1]
    left, top = columns.int().argmax(1), rows.int().argmax(1)
    right, bottom = width - columns.flip(1).int().argmax(1), height - rows.flip(1).int().argmax(1)
    low = torch.stack((left, top), 1).to(boxes)
    high = torch.stack((right, bottom), 1).to(boxes)
    cut = torch.cat((torch.maximum(boxes[:, :2], low), torch.minimum(boxes[:, 2:], high)), 1)
    some &= (cut[:, 2:] > cut[:, :2]).all(1)
    return torch.where(some[:, None], cut, boxes)


class Library:
    """A transform of torchvision's v2, with probability p, and its boxes tidied."""

    def __init__(self, transform: v2.Transform, p: float, min_box: float = 1e-3) -> None:
        self.transform, self.p, self.min_box = transform, p, min_box

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Apply."""
        if float(torch.rand(())) >= self.p or not len(target["boxes"]):
            return image, target
        shapes = {key: target[key] for key in ("boxes", "masks") if key in target}
        image, changed = self.transform(image, shapes)
        if isinstance(self.transform, v2.RandomPhotometricDistort):
            return image, target
        area = target["area"] * (_areas(changed["boxes"]) / _areas(target["boxes"]).clamp(min=1e-6))
        return image, tidy({**target, **changed, "area": area}, self.min_box)


class DropCrowds:
    """Leave crowd regions out: they are no single objects."""

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Apply."""
        return image, keep_objects(target, ~target["iscrowd"]) if target["iscrowd"].any() else target


class Sometimes:
    """Apply a transform with probability p."""

    def __init__(self, p: float, transform: Transform) -> None:
        self.p, self.transform = p, transform

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Apply."""
        return self.transform(image, target) if float(torch.rand(())) < self.p else (image, target)


def resized(size: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `short`, or the longer one at `long` if it would pass that."""
    height, width = size
    scale = min(short / min(size), long / max(size))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_to(image: Tensor, target: Target, size: tuple[int, int]) -> tuple[Tensor, Target]:
    """Resize image and objects to exactly (height, width)."""
    if size == (image.shape[-2], image.shape[-1]):
        return image, target
    resized_target = move_objects(target, lambda o: F.resize(o, list(size)))
    boxes = F.clamp_bounding_boxes(resized_target["boxes"]).as_subclass(Tensor)  # float32 rounds beyond the edge
    if "masks" in target:  # thin parts of a mask can vanish
        boxes = _shrink(boxes, resized_target["masks"].as_subclass(Tensor))
    resized_target["boxes"] = like(boxes, resized_target["boxes"])
    return F.resize(image, list(size), antialias=True), resized_target


class ShortestSide:
    """Resize to one of the shorter sides, drawn at random, within the longest side."""

    def __init__(self, resize: Resize) -> None:
        self.resize = resize

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Apply."""
        shorts = self.resize.short
        short = shorts[int(torch.randint(len(shorts), ()))]
        return resize_to(image, target, resized((image.shape[-2], image.shape[-1]), short, self.resize.long))


class Flip:
    """Mirror left and right with probability p."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Apply."""
        if float(torch.rand(())) >= self.p:
            return image, target
        return F.horizontal_flip(image), move_objects(target, F.horizontal_flip)


class RandomCrop:
    """Cut out a rectangle whose sides are drawn from `sides` (at most the image's), wherever it falls."""

    def __init__(self, sides: tuple[int, int], min_box: float) -> None:
        self.sides, self.min_box = sides, min_box

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Apply."""
        low, high = self.sides
        full = (image.shape[-2], image.shape[-1])
        height, width = (int(torch.randint(min(low, s), min(high, s) + 1, ())) for s in full)
        top, left = (int(torch.randint(0, f - s + 1, ())) for f, s in zip(full, (height, width)))
        return crop(image, target, top, left, height, width, self.min_box)


class ScaleJitter:
    """Scale to a factor, drawn from `factors`, of what fits a square of `size`; cut at random what is larger."""

    def __init__(self, factors: tuple[float, float], size: int, min_box: float) -> None:
        self.factors, self.size, self.min_box = factors, size, min_box

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Apply."""
        low, high = self.factors
        factor = low + (high - low) * float(torch.rand(()))
        scale = factor * self.size / max(image.shape[-2:])
        wanted = (max(1, round(image.shape[-2] * scale)), max(1, round(image.shape[-1] * scale)))
        image, target = resize_to(image, target, wanted)
        height, width = (min(self.size, side) for side in wanted)
        if (height, width) == wanted:
            return image, tidy(target, self.min_box)
        top, left = (int(torch.randint(0, w - s + 1, ())) for w, s in zip(wanted, (height, width)))
        return crop(image, target, top, left, height, width, self.min_box)


def crop(
    image: Tensor, target: Target, top: int, left: int, height: int, width: int, min_box: float
) -> tuple[Tensor, Target]:
    """The rectangle of image and objects; objects of which less than `min_box` pixels remain are dropped."""
    place = [top, left, height, width]
    return F.crop(image, *place), tidy(move_objects(target, lambda o: F.crop(o, *place)), min_box)
