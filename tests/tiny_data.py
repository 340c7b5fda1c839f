"""A dataset small enough to train on in a test: bright rectangles on noise, in COCO format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("red", "green")

SMALL: dict[str, Any] = {
    "size": (64,), "queries": 5, "stages": 2, "batch": 4, "steps": 4, "log_every": 1, "quiet": True,
    "accelerator": "cpu", "workers": 0,
}  # fmt: skip


def make_rectangles(folder: Path, *, train: int = 12, val: int = 4, size: int = 64, names=NAMES, seed: int = 0) -> Path:
    """Write `images/` and both annotation files; every fourth image is empty. Category ids are 3, 7, 11, ..."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count):
            pixels = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
            for _ in range(0 if number % 4 == 3 else int(rng.integers(1, 4))):
                w, h = (int(v) for v in rng.integers(12, size // 2, 2))
                x, y = int(rng.integers(0, size - w)), int(rng.integers(0, size - h))
                label = int(rng.integers(0, len(names)))
                pixels[y : y + h, x : x + w] = 0
                pixels[y : y + h, x : x + w, label % 3] = 220
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": number + 1, "category_id": 3 + 4 * label,
                        "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
                    }
                )  # fmt: skip
            name = f"{split}_{number}.png"
            Image.fromarray(pixels).save(folder / "images" / name)
            images.append({"id": number + 1, "file_name": name, "width": size, "height": size})
        categories = [{"id": 3 + 4 * i, "name": name} for i, name in enumerate(names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder
