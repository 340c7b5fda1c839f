"""From a detector's output to COCO results, and from several ranks to one list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recollect.ops.masks import encode_roi_masks
from recollect.structures import Target


def coco_results(
    detections: Sequence[dict[str, Tensor]], targets: Sequence[Target], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections of some images as COCO results, in the pixels of the image files and with the source's category ids.

    detections: per image `boxes` [n, 4] xyxy in the pixels of the image that the model was given, `scores`, `labels`,
        optionally `masks` [n, H, W] of that image's size (bool, or probabilities, which are cut at 0.5), or `roi_masks`
        [n, M, M], probabilities over each box, which are put into the file's pixels one after the other.
    targets: per image `image_id`, `original_size` (h, w) of the file and `fed_size` (h, w) of what the model was given.
    category_ids: the source's id of every label.
    """
    if len(detections) != len(targets):
        raise ValueError(f"{len(detections)} detections for {len(targets)} images")
    results = []
    for found, target in zip(detections, targets):
        image_id = int(target["image_id"])
        height, width = original_size(target)
        boxes = to_original(found["boxes"], target).cpu().numpy()
        boxes[:, 2:] -= boxes[:, :2]
        labels = found["labels"].tolist()
        if labels and max(labels) >= len(category_ids):
            raise ValueError(
                f"image {image_id}: the model found label {max(labels)}, the dataset has {len(category_ids)} classes"
            )
        rows = [
            {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            for label, box, score in zip(labels, boxes.tolist(), found["scores"].double().tolist())
        ]
        if "roi_masks" in found:
            codes = encode_roi_masks(found["roi_masks"], to_original(found["boxes"], target), (height, width))
            for row, code in zip(rows, codes):
                row["segmentation"] = code
        elif "masks" in found:
            for row, mask in zip(rows, found["masks"]):
                row["segmentation"] = encode_mask(mask, (height, width))
        results += rows
    return results


def original_size(target: Target) -> tuple[int, int]:
    """(height, width) of the image file, after EXIF rotation and before any resize."""
    if "original_size" not in target or "fed_size" not in target:
        missing = "original_size" if "original_size" not in target else "fed_size"
        raise ValueError(f"the target of image {target.get('image_id')} has no {missing!r}: use evaluation_transform")
    height, width = target["original_size"]
    return int(height), int(width)


def to_original(boxes: Tensor, target: Target) -> Tensor:
    """[..., 4] xyxy in the pixels of the image fed to the model -> in those of its file, in float64."""
    height, width = original_size(target)
    fed_height, fed_width = target["fed_size"]
    x, y = width / int(fed_width), height / int(fed_height)
    return boxes.double() * torch.tensor([x, y, x, y], dtype=torch.float64, device=boxes.device)


def encode_mask(mask: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """[H, W] bool or probabilities -> COCO run-length code at (height, width) `size`, counts as text."""
    if tuple(mask.shape) != size:
        mask = F.interpolate(mask[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0]
    binary = mask if mask.dtype == torch.bool else mask > 0.5
    code = hotcoco.mask.encode(np.asfortranarray(binary.cpu().numpy().astype(np.uint8)))
    return {"size": list(size), "counts": _text(code["counts"])}


def _text(counts: Any) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def gather(items: dict[int, Any]) -> dict[int, Any]:
    """Per-image items of all ranks, on every rank: each image exactly once, in the order of image ids.

    Samplers give some image to two ranks so that all have equally many; the lowest rank's answer counts. The order
    does not depend on how images were shared out, so metrics over several ranks equal those of one to the bit.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts: list[dict[int, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(parts, items)
        items = {image: item for part in reversed(parts) for image, item in part.items()}
    return {image: items[image] for image in sorted(items)}
