"""Instance masks without whole images: run lengths, targets cut to a box, and masks of boxes put back into the image.

A mask is written as COCO does: a list of polygons, each flat x, y, ..., or a dict of run lengths (`size` [h, w],
`counts` as a list or COCO's text; column by column, background first). `roi_masks` [n, M, M] are probabilities on a
grid of M x M cells over each box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import hotcoco.mask
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

Segmentation = Any
Masks = Tensor | Sequence[Segmentation]
"""Of one image: [T, H, W] 0 or 1, or T segmentations in the pixels of that image."""

_CHUNK = 2**24  # values in float32 that are held at once


# --- Training targets


def crop_masks(masks: Masks, boxes: Tensor, index: Tensor, size: int, threshold: float = 0.5) -> Tensor:
    """What a mask head should say: masks[index] within boxes [P, 4], on size x size cells -> [P, size, size] 0 or 1.

    Bitmaps are averaged over each cell (RoIAlign) and cut at `threshold`. Run lengths likewise, decoded only under the
    box. Polygons are moved into the box's cells and painted there, as Detectron does. index: [P] into the masks.
    """
    if not len(boxes):
        return boxes.new_zeros(0, size, size)
    if isinstance(masks, Tensor):
        return _crop_bitmaps(masks.as_subclass(Tensor), boxes, index, size, threshold)
    cropped = [_crop_encoded(masks[i], box, size, threshold) for i, box in zip(index.tolist(), boxes.double().cpu())]
    return torch.stack(cropped).to(boxes)


def _crop_bitmaps(masks: Tensor, boxes: Tensor, index: Tensor, size: int, threshold: float) -> Tensor:
    """Bitmaps take as many bytes as numbers in float32 four times that: only some objects are widened at once."""
    result = boxes.new_zeros(len(boxes), size, size)
    masks = masks.to(boxes.device)
    step = max(1, _CHUNK // max(1, masks[0].numel()))
    for used in index.unique().split(step):
        rows = torch.isin(index, used).nonzero().flatten()
        place = torch.searchsorted(used, index[rows])
        regions = torch.cat((place[:, None].to(boxes), boxes[rows]), 1)
        part = roi_align(masks[used, None].to(boxes.dtype), regions, size, 1.0, 0, True)
        result[rows] = (part[:, 0] >= threshold).to(boxes.dtype)
    return result


def _crop_encoded(mask: Segmentation, box: Tensor, size: int, threshold: float) -> Tensor:
    left, top, right, bottom = box.tolist()
    if not isinstance(mask, dict):
        scale = np.array([size / max(right - left, 1e-6), size / max(bottom - top, 1e-6)])
        rings = [((np.reshape(ring, (-1, 2)) - (left, top)) * scale).clip(-4 * size, 5 * size) for ring in mask]
        painted = hotcoco.mask.merge(hotcoco.mask.frPyObjects([r.flatten().tolist() for r in rings], size, size))
        return torch.from_numpy(hotcoco.mask.decode(painted)).double()
    height, width = mask["size"]
    low_x, high_x = max(0, int(left) - 2), min(width, int(right) + 3)
    low_y, high_y = max(0, int(top) - 2), min(height, int(bottom) + 3)
    if low_x >= high_x or low_y >= high_y:
        return box.new_zeros(size, size)
    part = torch.from_numpy(decode_window(mask, low_y, low_x, high_y, high_x)).double()
    region = torch.stack((box.new_zeros(()), *(box - box.new_tensor([low_x, low_y, low_x, low_y]))))
    return (roi_align(part[None, None], region[None], size, 1.0, 0, True)[0, 0] >= threshold).double()


# --- Run lengths


def run_lengths(mask: dict[str, Any]) -> np.ndarray:
    """The counts of a run-length dict as numbers. ValueError if they are not COCO's or do not fill the image."""
    counts = mask["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    runs = _read_text(counts) if isinstance(counts, str) else np.asarray(counts, dtype=np.int64)
    height, width = mask["size"]
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise ValueError(f"the run lengths cover {int(runs.sum())} pixels, the image has {height * width}")
    return runs


def _read_text(text: str) -> np.ndarray:
    """Five bits a character from '0' on, a sixth says that more follow; from the third run on, the difference to the
    last run but one is written."""
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if len(codes) and (codes.min() < 0 or codes.max() > 63 or codes[-1] & 32):
        raise ValueError("the text of run lengths is cut off, or holds a character that COCO does not write")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if len(place) and place.max() > 11:
        raise ValueError("a run length has too many digits")
    values = np.add.reduceat((codes & 31) << (5 * place), starts) if len(starts) else np.zeros(0, np.int64)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * (ends - starts + 1)), 0)
    for parity in (1, 2):  # runs 3, 5, ... add up from run 1, runs 4, 6, ... from run 2; run 0 stands alone
        values[parity::2] = np.cumsum(values[parity::2])
    return values


def decode_window(mask: dict[str, Any], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """Rows top..bottom and columns left..right of run lengths as [rows, columns] bool; the rest stays encoded."""
    ends = np.cumsum(run_lengths(mask))
    height = mask["size"][0]
    place = np.arange(left, right) * height + np.arange(top, bottom)[:, None]
    return np.searchsorted(ends, place, side="right") % 2 == 1


def encode_window(window: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """A bitmap [h, w] whose upper left corner stands at (top, left) of an image of (height, width) `size`, as COCO's
    run lengths with counts as text. Outside the window there is background."""
    height, width = size
    columns = np.zeros((window.shape[1], window.shape[0] + 1), np.int8)  # one row more, which parts the columns
    columns[:, :-1] = window.T
    edges = np.flatnonzero(np.diff(columns.ravel(), prepend=0))
    column, row = np.divmod(edges, window.shape[0] + 1)
    place = (column + left) * height + row + top  # where foreground starts and ends, in turn
    starts, ends = place[0::2], place[1::2]
    apart = np.flatnonzero(starts[1:] != ends[:-1])  # a run may go on at the top of the next column
    starts, ends = (
        starts[np.concatenate(([0], apart + 1))[: len(starts)]],
        ends[np.concatenate((apart, [len(ends) - 1]))[: len(ends)]],
    )
    bounds = np.concatenate(([0], np.stack((starts, ends), 1).ravel(), [height * width]))
    counts = np.diff(bounds).tolist()
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    code = hotcoco.mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    text = code["counts"]
    return {"size": [height, width], "counts": text.decode("ascii") if isinstance(text, bytes) else text}


# --- Masks of boxes back into the image


def paste_windows(
    roi_masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> Iterator[tuple[Tensor, int, int]]:
    """One mask after the other: (bitmap of the box's surroundings [h, w] bool, its top row, its left column).

    roi_masks: [n, M, M] probabilities. boxes: [n, 4] xyxy in the pixels of an image of (height, width) `size`. Bilinear
    between the cells' centres, zero beyond the outermost; foreground from `threshold` on.
    """
    height, width = size
    roi_masks, boxes = roi_masks.detach(), boxes.detach().to(roi_masks)
    low, high = boxes[:, :2].floor() - 1, boxes[:, 2:].ceil() + 1
    limit = boxes.new_tensor([width, height])
    corners = torch.cat((low.clamp(min=0).minimum(limit), high.clamp(min=0).minimum(limit)), 1).long().tolist()
    for mask, box, (left, top, right, bottom) in zip(roi_masks, boxes, corners):
        rows = _bilinear(top, bottom, box[1], box[3], mask.shape[0])
        columns = _bilinear(left, right, box[0], box[2], mask.shape[1])
        yield rows @ mask @ columns.T >= threshold, top, left


def _bilinear(first: int, last: int, low: Tensor, high: Tensor, cells: int) -> Tensor:
    """[last - first, cells]: the weight of every cell between low and high at the centres of pixels first..last."""
    pixels = torch.arange(first, last, dtype=low.dtype, device=low.device) + 0.5
    place = (pixels - low) / (high - low).clamp(min=1e-6) * cells - 0.5
    weights = 1 - (place[:, None] - torch.arange(cells, dtype=low.dtype, device=low.device)).abs()
    return weights.clamp(min=0)


def paste_masks(roi_masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """[n, M, M] and [n, 4] -> [n, height, width] bool. Takes n * h * w bytes: for pictures, not for scoring."""
    whole = torch.zeros(len(boxes), *size, dtype=torch.bool, device=roi_masks.device)
    for one, (window, top, left) in zip(whole, paste_windows(roi_masks, boxes, size, threshold)):
        one[top : top + window.shape[0], left : left + window.shape[1]] = window
    return whole


def encode_roi_masks(
    roi_masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> list[dict[str, Any]]:
    """[n, M, M] and [n, 4] -> COCO run lengths at (height, width) `size`, one box's window at a time."""
    windows = paste_windows(roi_masks.cpu().float(), boxes.cpu(), size, threshold)
    return [encode_window(window.numpy(), top, left, size) for window, top, left in windows]
