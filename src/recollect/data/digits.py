"""The demo set: real handwritten digits (scikit-learn's, 8x8) scattered over cluttered scenes, in COCO format.

Train and val use different handwriting: no digit image of val occurs in train.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIDES = (14, 56)  # of a digit, in pixels
DIGITS = (2, 6)  # per scene
MAX_OVERLAP = 0.15  # intersection over the smaller box
INK = 0.35  # share of the strongest ink that counts as belonging to the digit's box


def make_digit_scenes(folder: str | Path, *, train: int = 4000, val: int = 200, size: int = 128, seed: int = 0) -> Path:
    """Write `images/`, `instances_train.json` and `instances_val.json`; the same seed gives the same files.

    size: side of the square scenes, at least 64 pixels. Returns the folder. ImportError, saying what to install, if
    scikit-learn is not there.
    """
    if size < 64:
        raise ValueError(f"scenes of {size} pixels are too small for digits of up to {SIDES[1]}: take 64 or more")
    digits, labels = _load_digits()
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    held_out = np.random.default_rng([seed, 2]).permutation(len(digits)) < len(digits) // 5
    for split, count, mask, stream in (("train", train, ~held_out, 0), ("val", val, held_out, 1)):
        pool = np.flatnonzero(mask)
        scenes: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
        for number in range(count):
            rng = np.random.default_rng([seed, stream, number])
            picture, boxes = draw_scene(rng, digits[pool], labels[pool], size)
            name = f"{split}_{number:05d}.jpg"
            picture.save(folder / "images" / name, quality=92)
            image = {"id": number + 1, "file_name": name, "width": size, "height": size}
            scenes["images"].append(image)
            for label, (x, y, w, h) in boxes:
                item = {"id": len(scenes["annotations"]) + 1, "image_id": number + 1, "category_id": label + 1}
                scenes["annotations"].append({**item, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
        categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
        (folder / f"instances_{split}.json").write_text(json.dumps({**scenes, "categories": categories}), "utf-8")
    return folder


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """[1797, 8, 8] ink in 0..1 and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the demo needs scikit-learn's digits: pip install 'recollect[demo]'") from error
    bunch: Any = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64)


def draw_scene(
    rng: np.random.Generator, digits: np.ndarray, labels: np.ndarray, size: int
) -> tuple[Image.Image, list[tuple[int, list[float]]]]:
    """A scene, and (label, [left, top, width, height]) of each digit in it."""
    canvas = clutter(rng, size)
    boxes: list[tuple[int, list[float]]] = []
    wanted = int(rng.integers(DIGITS[0], DIGITS[1] + 1))
    for _ in range(wanted * 20):
        if len(boxes) == wanted:
            break
        index = int(rng.integers(len(digits)))
        low, high = np.log(SIDES[0]), np.log(min(SIDES[1], size * 0.6))
        ink = _scaled(digits[index], float(np.exp(rng.uniform(low, high))), float(rng.uniform(0.8, 1.2)))
        height, width = ink.shape
        if height >= size or width >= size:
            continue
        left, top = int(rng.integers(0, size - width)), int(rng.integers(0, size - height))
        box = [float(left), float(top), float(width), float(height)]
        if any(_overlap(box, other) > MAX_OVERLAP for _, other in boxes):
            continue
        _blend(canvas, ink, left, top, rng)
        boxes.append((int(labels[index]), box))
    noise = rng.normal(0, rng.uniform(2, 10), canvas.shape)
    return Image.fromarray((canvas + noise).clip(0, 255).astype(np.uint8)), boxes


def _scaled(digit: np.ndarray, side: float, aspect: float) -> np.ndarray:
    """The digit's ink, enlarged smoothly so that its longer side is about `side`, cut to what is inked."""
    rows, columns = np.flatnonzero(digit.max(1) > 0.2), np.flatnonzero(digit.max(0) > 0.2)
    digit = np.pad(digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    scale = side / max(digit.shape[0] - 2, digit.shape[1] - 2)
    height, width = max(4, round(digit.shape[0] * scale)), max(4, round(digit.shape[1] * scale * aspect))
    ink = np.asarray(Image.fromarray(digit).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
    rows, columns = np.flatnonzero(ink.max(1) > INK), np.flatnonzero(ink.max(0) > INK)
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return ((ink - 0.15) / 0.5).clip(0, 1)


def _blend(canvas: np.ndarray, ink: np.ndarray, left: int, top: int, rng: np.random.Generator) -> None:
    """Write the digit in a colour that stands off from what is behind it."""
    height, width = ink.shape
    behind = canvas[top : top + height, left : left + width]
    mean = behind.mean((0, 1))
    step = rng.uniform(70, 150) * (1 if mean.mean() < 110 else -1 if mean.mean() > 145 else rng.choice([-1, 1]))
    colour = (mean + step + rng.normal(0, 25, 3)).clip(0, 255)
    behind += ink[:, :, None] * (colour - behind)


def _overlap(a: list[float], b: list[float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height) / min(a[2] * a[3], b[2] * b[3])


def clutter(rng: np.random.Generator, size: int) -> np.ndarray:
    """[size, size, 3] float background in 0..255: a gradient, blobs and lines, none of them a digit."""
    corners = rng.uniform(40, 215, (2, 2, 3)).astype(np.float32)
    across = np.linspace(0, 1, size, dtype=np.float32)[None, :, None]
    down = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    upper = corners[0, 0] * (1 - across) + corners[0, 1] * across
    lower = corners[1, 0] * (1 - across) + corners[1, 1] * across
    picture = Image.fromarray((upper * (1 - down) + lower * down).astype(np.uint8))
    pen = ImageDraw.Draw(picture, "RGBA")
    for _ in range(int(rng.integers(3, 9))):
        x, y = rng.uniform(0, size, 2)
        a, b = rng.uniform(size * 0.03, size * 0.25, 2)
        colour = (*rng.integers(0, 256, 3).tolist(), int(rng.integers(40, 140)))
        shape = pen.ellipse if rng.random() < 0.6 else pen.rectangle
        shape((x - a, y - b, x + a, y + b), fill=colour)
    for _ in range(int(rng.integers(3, 10))):
        ends = rng.uniform(0, size, 4).tolist()
        colour = (*rng.integers(0, 256, 3).tolist(), int(rng.integers(60, 200)))
        pen.line(ends, fill=colour, width=int(rng.integers(1, 4)))
    return np.array(picture, dtype=np.float32)
