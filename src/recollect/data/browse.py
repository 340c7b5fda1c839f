"""A grid of what the model will be fed: images after the transform, with their objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from PIL import ImageDraw
from torch import Tensor

from recollect.structures import Target

MOST_NAMES = 30  # in images with more objects only the boxes are drawn
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")


def browse(
    dataset: Any,
    file: str | Path,
    *,
    images: Sequence[int] | None = None,
    count: int = 12,
    columns: int = 4,
    cell: int = 320,
    seed: int = 0,
) -> Path:
    """Draw items of a dataset, as its transform leaves them, into one picture.

    dataset: has `names` and gives (image, target). images: which ones; drawn at random from `seed` if not given.
    cell: side of a grid cell in pixels. Returns the file. DataError if an item cannot be read.
    """
    if images is None:
        order = np.random.default_rng(seed).permutation(len(dataset))
        images = [int(i) for i in order[:count]]
    rows = -(-len(images) // columns)
    caption = 14
    grid = PillowImage.new("RGB", (columns * cell, rows * (cell + caption)), "white")
    pen = ImageDraw.Draw(grid)
    for place, index in enumerate(images):
        torch.manual_seed(seed * 1000 + place)
        image, target = dataset[index]
        picture = draw(image, target, dataset.names, cell)
        left, top = place % columns * cell, place // columns * (cell + caption)
        grid.paste(picture, (left, top + caption))
        size = f"{image.shape[-1]}x{image.shape[-2]}"
        pen.text(
            (left + 2, top + 1), f"image {target['image_id']}, {size}, {len(target['boxes'])} objects", fill="black"
        )
    grid.save(file)
    return Path(file)


def draw(image: Tensor, target: Target, names: Sequence[str], side: int) -> PillowImage.Image:
    """One image with boxes, class names, and masks if there are any, scaled to fit a square of `side` pixels."""
    pixels = image.as_subclass(Tensor).permute(1, 2, 0).numpy().copy()
    for place, mask in enumerate(target.get("masks", [])):
        colour = PillowImage.new("RGB", (1, 1), COLOURS[int(target["labels"][place]) % len(COLOURS)]).getpixel((0, 0))
        inside = mask.as_subclass(Tensor).numpy().astype(bool)
        pixels[inside] = (0.6 * pixels[inside] + 0.4 * np.array(colour)).astype(np.uint8)
    picture = PillowImage.fromarray(pixels)
    scale = side / max(picture.size)
    picture = picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
    pen = ImageDraw.Draw(picture)
    boxes = target["boxes"].as_subclass(Tensor) * scale
    for box, label, crowd in zip(boxes.tolist(), target["labels"].tolist(), target["iscrowd"].tolist()):
        colour = COLOURS[label % len(COLOURS)]
        pen.rectangle(box, outline=colour, width=1 if crowd else 2)
        if len(boxes) > MOST_NAMES:
            continue
        name = f"{names[label]}{' (crowd)' if crowd else ''}"
        at = (max(0.0, box[0]), max(0.0, box[1] - 11))
        pen.rectangle(pen.textbbox(at, name), fill=colour)
        pen.text(at, name, fill="white")
    return picture
