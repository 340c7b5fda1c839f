"""Four images that any detector must be able to learn by heart: coloured rectangles on dark noise."""

from __future__ import annotations

import torch
from torch import Tensor

from recollect.structures import Target

COLOURS = torch.tensor([[255, 40, 40], [40, 255, 40], [60, 60, 255]], dtype=torch.uint8)


def make_scenes(sizes: list[tuple[int, int]], objects: list[int], seed: int = 0) -> tuple[list[Tensor], list[Target]]:
    """Images of the given (height, width) with so many objects each; the label is the colour.

    Targets hold everything that any model asks for: masks, and proposals around the objects for Fast R-CNN.
    """
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for place, ((height, width), count) in enumerate(zip(sizes, objects)):
        image = torch.randint(0, 60, (3, height, width), generator=generator, dtype=torch.uint8)
        boxes, labels, masks = [], [], []
        for number in range(count):
            w, h = torch.randint(14, 26, (2,), generator=generator).tolist()
            # Objects of one image stand in columns of their own, so that none hides another.
            left = number * width // count
            x = left + int(torch.randint(0, max(1, width // count - w), (1,), generator=generator))
            y = int(torch.randint(0, height - h, (1,), generator=generator))
            label = (place + number) % len(COLOURS)
            image[:, y : y + h, x : x + w] = COLOURS[label][:, None, None]
            mask = torch.zeros(height, width, dtype=torch.bool)
            mask[y : y + h, x : x + w] = True
            boxes.append([x, y, min(x + w, width), y + h])
            labels.append(label)
            masks.append(mask)
        found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        shifts = torch.rand(8, len(found), 4, generator=generator) * 6 - 3
        noise = torch.rand(12, 2, generator=generator) * torch.tensor([width / 2, height / 2])
        elsewhere = torch.cat((noise, noise + 20), 1)
        target: Target = {
            "boxes": found,
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool),
            "image_id": place + 1,
            "iscrowd": torch.zeros(count, dtype=torch.bool),
            "area": (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1]),
            "proposals": torch.cat(((found + shifts).flatten(0, 1), elsewhere)),
        }
        images.append(image)
        targets.append(target)
    return images, targets
