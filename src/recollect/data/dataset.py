"""The one dataset class: annotations in arrays, pictures read when asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from recollect.data.annotations import NAMED_BY_ANNOTATIONS, Annotations
from recollect.data.coco import to_coco
from recollect.data.findings import DataError, Finding
from recollect.data.images import image_size, read_image
from recollect.structures import Target

Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Images and their objects, one split.

    `dataset[i]` is (image [3, H, W] uint8, target). The target holds `boxes` [T, 4] (tv_tensors.BoundingBoxes, xyxy
    in pixels), `labels` [T] in 0..K-1, `iscrowd` [T] bool, `area` [T], `image_id` (the file's own), `original_size`
    (h, w) of the file after EXIF rotation and `fed_size`, the size of the image returned; with `masks`, also `masks`
    [T, H, W] bool.
    """

    def __init__(self, annotations: Annotations, *, transform: Transform | None = None, masks: bool = False) -> None:
        if masks and annotations.segmentations is None:
            raise ValueError("masks were not read: open the dataset with masks=True")
        self.annotations = annotations
        self.transform = transform
        self.masks = masks
        self.proposals: Mapping[str, Tensor] | None = None  # boxes by name of the image file; see data.proposals

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = self.raw(index)
        return (image, target) if self.transform is None else self.transform(image, target)

    def raw(self, index: int) -> tuple[Tensor, Target]:
        """The item without the transform. DataError if the file is missing, broken or of another size than declared."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of a dataset of {len(self)} images")
        index = int(index) % len(self)
        image = read_image(self._inside(index))
        size = (int(image.shape[1]), int(image.shape[2]))
        declared = (int(self.annotations.heights[index]), int(self.annotations.widths[index]))
        if min(declared) > 0 and declared != size:
            value = (
                f"{declared[1]}x{declared[0]} declared in {self.annotations.source(index)}, {size[1]}x{size[0]} read"
            )
            raise DataError(str(Finding("size-wrong", str(self.file(index)), value)))
        target = self.target(index, size)
        if self.proposals is not None:
            target["proposals"] = boxes_of(self.proposals[self.file(index).name], size)
        return tv_tensors.Image(image), target

    def _inside(self, index: int) -> Path:
        """The image file; DataError if it is a link that leads out of the images' folder."""
        file = self.file(index)
        if self.annotations.format in NAMED_BY_ANNOTATIONS:
            real, folder = file.resolve(), self.annotations.folder.resolve()
            if not real.is_relative_to(folder):
                raise DataError(f"{file} is a link that leaves the images' folder {folder}: copy the file there")
        return file

    def target(self, index: int, size: tuple[int, int]) -> Target:
        """What is known of image `index`, without reading it; size (h, w) is its own."""
        annotations, rows = self.annotations, self.annotations.rows(index)
        corners = annotations.boxes[rows].copy()
        corners[:, 2:] += corners[:, :2]
        corners[:, 0::2] = corners[:, 0::2].clip(0, size[1])
        corners[:, 1::2] = corners[:, 1::2].clip(0, size[0])
        target: Target = {
            "boxes": boxes_of(torch.from_numpy(corners.astype(np.float32)), size),
            "labels": torch.from_numpy(annotations.labels[rows].astype(np.int64)),
            "iscrowd": torch.from_numpy(annotations.crowd[rows].copy()),
            "area": torch.from_numpy(annotations.areas[rows].astype(np.float32)),
            "image_id": int(annotations.image_ids[index]),
            "original_size": size,
            "fed_size": size,
        }
        if self.masks:
            target["masks"] = tv_tensors.Mask(torch.from_numpy(self._masks(rows, size)))
        return target

    def _masks(self, rows: slice, size: tuple[int, int]) -> np.ndarray:
        """[T, H, W] bool; an object without a mask gets its box filled."""
        annotations = self.annotations
        assert annotations.segmentations is not None
        masks = np.zeros((rows.stop - rows.start, *size), dtype=bool)
        for place, row in enumerate(range(rows.start, rows.stop)):
            try:
                mask = annotations.segmentations.decode(row, *size)
            except ValueError as error:
                image = int(np.searchsorted(annotations.offsets, row, side="right") - 1)
                found = Finding(
                    "mask-broken", annotations.source(image), str(error), annotation=int(annotations.ids[row])
                )
                raise DataError(str(found)) from error
            if mask is None:
                left, top, width, height = annotations.boxes[row]
                rounded = np.floor(np.array([top, top + height, left, left + width]) + 0.5).astype(int).clip(0)
                masks[place, rounded[0] : rounded[1], rounded[2] : rounded[3]] = True
            else:
                masks[place] = mask
        return masks

    def with_transform(self, transform: Transform | None) -> DetectionDataset:
        """The same data under another transform; the arrays are shared."""
        other = copy.copy(self)
        other.transform = transform
        return other

    @property
    def names(self) -> list[str]:
        """Class names; the index is the label."""
        return list(self.annotations.names)

    @property
    def category_ids(self) -> list[int]:
        """The source's own id of each label."""
        return list(self.annotations.category_ids)

    @property
    def image_ids(self) -> list[int]:
        """The source's own id of each image."""
        return self.annotations.image_ids.tolist()

    @property
    def num_objects(self) -> int:
        """Objects in all images, crowds included."""
        return self.annotations.num_objects

    def file(self, index: int) -> Path:
        """The image file."""
        return self.annotations.path(index)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) after EXIF rotation: as declared, else from the file's header."""
        declared = (int(self.annotations.heights[index]), int(self.annotations.widths[index]))
        return declared if min(declared) > 0 else image_size(self.file(index))

    def ground_truth(self) -> dict[str, Any]:
        """COCO dict in source ids for scoring; annotation ids are always at least 1."""
        return to_coco(self.annotations)

    def describe(self) -> str:
        """What was read and how source ids map to labels, in a few words; printed once before a training."""
        annotations = self.annotations
        classes = [f"{i}={n}({c})" for i, (n, c) in enumerate(zip(annotations.names, annotations.category_ids))]
        if len(classes) > 12:
            classes = [*classes[:10], "...", classes[-1]]
        return (
            f"{annotations.file} ({annotations.format}): {len(self)} images, {self.num_objects} objects, "
            f"{len(annotations.names)} classes, label=name(source id): {', '.join(classes)}"
        )


def boxes_of(corners: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """[T, 4] xyxy with the image's size (h, w) attached, for transforms v2."""
    return tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]
        corners, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size
    )
