"""Any torch Dataset that returns (image, target), as a dataset of ours."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torchvision import tv_tensors

from recollect.data.annotations import Annotations, Builder
from recollect.data.dataset import DetectionDataset, boxes_of
from recollect.data.findings import DataError, refuse
from recollect.data.masks import encode
from recollect.structures import Target


class WrappedDataset(DetectionDataset):
    """A torch Dataset whose items are (image, target).

    image: [3, H, W] uint8, or float in 0..1, or a Pillow image. target: `boxes` [T, 4] xyxy in pixels and `labels` [T]
    in 0..K-1; optionally `iscrowd`, `area`, `masks` [T, H, W], `image_id`. Everything is checked when it is read.
    The arrays behind `ground_truth`, `size` and `num_objects` are gathered by reading every item once, when first
    asked for; so the dataset must not draw at random.
    """

    def __init__(self, dataset: Any, names: Sequence[str]) -> None:
        if not names:
            raise DataError(f"{type(dataset).__name__}: a torch Dataset needs names=[...], one per class")
        self.dataset, self.given_names = dataset, list(names)
        self.transform = None
        self.masks = False

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def annotations(self) -> Annotations:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Gathered from every item."""
        builder = Builder(type(self.dataset).__name__, "torch", masks=True)
        builder.categories = dict(enumerate(self.given_names))
        seen: set[int] = set()
        for index in range(len(self)):
            _, target = self.raw(index)
            height, width = target["original_size"]
            if target["image_id"] in seen:
                raise DataError(f"{self._where(index)}: image_id {target['image_id']} occurs twice")
            seen.add(target["image_id"])
            builder.image(target["image_id"], f"item {index}", height, width)
            for place in range(len(target["labels"])):
                left, top, right, bottom = target["boxes"][place].double().tolist()
                builder.object(
                    len(builder.ids) + 1,
                    target["image_id"],
                    int(target["labels"][place]),
                    array("d", (left, top, right - left, bottom - top)),
                    area=float(target["area"][place]),
                    crowd=bool(target["iscrowd"][place]),
                    segmentation=encode(target["masks"][place].numpy()) if "masks" in target else None,
                )
        annotations, findings = builder.build(Path("."))
        refuse(findings, builder.file)
        return annotations

    def raw(self, index: int) -> tuple[Tensor, Target]:
        """The item in our form; DataError naming the item and what is wrong with it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of a dataset of {len(self)} images")
        item = self.dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2 or not isinstance(item[1], dict):
            raise DataError(f"{self._where(index)} is not (image, target dict)")
        image = self._image(item[0], index)
        return tv_tensors.Image(image), self._target(item[1], index, (int(image.shape[1]), int(image.shape[2])))

    def _where(self, index: int) -> str:
        return f"item {index} of {type(self.dataset).__name__}"

    def _image(self, image: Any, index: int) -> Tensor:
        if isinstance(image, PillowImage.Image):
            image = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            found = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise DataError(f"{self._where(index)}: the image must be [3, H, W] in RGB order, found {found}")
        if image.is_floating_point():
            if not bool((image >= 0).all() and (image <= 1).all()):
                raise DataError(f"{self._where(index)}: a float image must lie in 0..1; leave normalising to the model")
            image = (image * 255 + 0.5).to(torch.uint8)
        if image.dtype != torch.uint8:
            raise DataError(f"{self._where(index)}: the image is {image.dtype}; give uint8, or float in 0..1")
        return image.as_subclass(Tensor)

    def _target(self, given: dict[str, Any], index: int, size: tuple[int, int]) -> Target:
        for key in ("boxes", "labels"):
            if key not in given:
                raise DataError(f"{self._where(index)}: its target has no {key!r}")
        boxes = torch.as_tensor(given["boxes"], dtype=torch.float32).as_subclass(Tensor).reshape(-1, 4)
        labels = torch.as_tensor(given["labels"]).reshape(-1).to(torch.int64)
        for key in ("labels", "iscrowd", "area", "masks"):
            if key in given and len(given[key]) != len(boxes):
                raise DataError(f"{self._where(index)}: {len(boxes)} boxes but {len(given[key])} {key}")
        bad = ~torch.isfinite(boxes).all(1) | (boxes[:, 2:] <= boxes[:, :2]).any(1)
        limits = torch.tensor([size[1], size[0]] * 2)
        bad |= (boxes < -1).any(1) | (boxes > limits + 1).any(1)
        if bool(bad.any()):
            place = int(bad.nonzero()[0])
            value = f"box {place} is {boxes[place].tolist()}, the image {size[1]}x{size[0]}"
            raise DataError(f"{self._where(index)}: {value}; boxes must be left, top, right, bottom inside the image")
        wrong = (labels < 0) | (labels >= len(self.given_names))
        if bool(wrong.any()):
            place = int(wrong.nonzero()[0])
            last = len(self.given_names) - 1
            raise DataError(f"{self._where(index)}: label {int(labels[place])} of box {place} is not in 0..{last}")
        boxes = torch.minimum(boxes.clamp(min=0), limits.to(boxes))
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        target: Target = {
            "boxes": boxes_of(boxes, size),
            "labels": labels,
            "iscrowd": torch.as_tensor(given.get("iscrowd", torch.zeros(len(boxes)))).bool(),
            "area": torch.as_tensor(given.get("area", area), dtype=torch.float32),
            "image_id": int(given.get("image_id", index)),
            "original_size": size,
            "fed_size": size,
        }
        if "masks" in given:
            target["masks"] = tv_tensors.Mask(torch.as_tensor(given["masks"]).bool())
        return target

    def file(self, index: int) -> Path:
        """There is none."""
        raise DataError(f"{self._where(index)}: a torch Dataset has no image files")

    @property
    def names(self) -> list[str]:
        """Class names as given."""
        return list(self.given_names)

    @property
    def category_ids(self) -> list[int]:
        """The labels themselves."""
        return list(range(len(self.given_names)))
