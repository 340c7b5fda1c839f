"""Small things that several tests need."""

from __future__ import annotations

import torch
from torch import Tensor

from recollect.structures import Target


def make_targets(counts: list[int], classes: int = 3, size: tuple[int, int] = (96, 128), seed: int = 0) -> list[Target]:
    """Random objects: `counts[i]` boxes in image i, at least 8 pixels wide, inside (height, width)."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    targets: list[Target] = []
    for index, count in enumerate(counts):
        low = torch.rand(count, 2, generator=generator) * torch.tensor([width * 0.6, height * 0.6])
        extent = 8 + torch.rand(count, 2, generator=generator) * torch.tensor([width * 0.3, height * 0.3])
        labels = torch.randint(0, classes, (count,), generator=generator)
        targets.append({"boxes": torch.cat((low, low + extent), 1), "labels": labels, "image_id": index + 1})
    return targets


def make_images(sizes: list[tuple[int, int]], seed: int = 0) -> list[Tensor]:
    """Random uint8 images of the given (height, width)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def total(losses: dict[str, Tensor]) -> Tensor:
    """The loss that is minimised."""
    return torch.stack(list(losses.values())).sum()
