"""Sample pictures of what a detector finds while it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from recollect.evaluation.run import evaluating
from recollect.structures import Detections

SAMPLES = 4
SIDE = 480  # pixels of a tile's longer side at most


def draw_samples(model: nn.Module, dataset: Any, path: Path, threshold: float = 0.3) -> None:
    """One sheet with some images of a dataset and what the detector finds in them.

    dataset: with its evaluation transform, so the picture shows what the detector saw.
    """
    device = next(model.parameters()).device
    tiles = []
    count = min(SAMPLES, len(dataset))
    for index in range(0, len(dataset), max(1, len(dataset) // count)):
        image, _ = dataset[index]
        with evaluating(model):
            found = model([image.to(device)])[0]
        tiles.append(_tile(image, found, tuple(dataset.names), threshold))
        if len(tiles) == count:
            break
    sheet(tiles).save(path, quality=88)


def _tile(image: torch.Tensor, found: dict[str, torch.Tensor], classes: tuple[str, ...], threshold: float):
    size = (int(image.shape[-2]), int(image.shape[-1]))
    boxes, scores, labels = (found[k].cpu() for k in ("boxes", "scores", "labels"))
    detections = Detections(boxes.float(), scores.float(), labels, classes, size)
    picture = detections.draw(image.as_subclass(torch.Tensor), threshold)
    picture.thumbnail((SIDE, SIDE))
    return picture


def sheet(tiles: list[Image.Image], columns: int = 2) -> Image.Image:
    """Pictures side by side on one."""
    width, height = max(t.width for t in tiles), max(t.height for t in tiles)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    board = Image.new("RGB", (columns * width, rows * height), "white")
    for place, tile in enumerate(tiles):
        board.paste(tile, (place % columns * width, place // columns * height))
    return board
