"""Mask geometry against pycocotools and brute force, and masks of crowded images within bounded memory."""

import hotcoco.mask
import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torchvision.ops import roi_align

from recollect.evaluation.results import coco_results
from recollect.ops.masks import (
    crop_masks,
    decode_window,
    encode_roi_masks,
    encode_window,
    paste_masks,
    paste_windows,
    run_lengths,
)


def blobs(count, height, width, seed=0):
    """Random bitmaps with holes, empty ones and full ones among them."""
    generator = np.random.default_rng(seed)
    masks = generator.random((count, height, width)) < generator.random((count, 1, 1))
    masks[0], masks[1] = False, True
    return masks


def encoded(mask):
    code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}


def test_run_lengths_are_those_of_pycocotools():
    for mask in blobs(20, 37, 53):
        code = encoded(mask)
        runs = run_lengths(code)
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(53, 37).T
        assert (flat == mask).all()
        assert encode_window(mask, 0, 0, mask.shape) == code


@pytest.mark.parametrize("counts", ["0", "`", "zz", [3, 4], [-1, 13]])
def test_broken_run_lengths_are_refused(counts):
    with pytest.raises(ValueError):
        run_lengths({"size": [3, 4], "counts": counts})


def test_windows_are_parts_of_the_whole():
    generator = np.random.default_rng(1)
    for mask in blobs(20, 37, 53, seed=1):
        top, bottom = sorted(generator.integers(0, 38, 2))
        left, right = sorted(generator.integers(0, 54, 2))
        window = mask[top:bottom, left:right]
        assert (decode_window(encoded(mask), top, left, bottom, right) == window).all()
        alone = np.zeros_like(mask)
        alone[top:bottom, left:right] = window
        assert encode_window(window, int(top), int(left), mask.shape) == encoded(alone)


def random_boxes(count, height, width, seed=2):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) - 4
    return torch.cat((low, low + 1 + torch.rand(count, 2, generator=generator) * 30), 1).double()


def test_targets_from_run_lengths_are_those_from_bitmaps():
    masks = blobs(6, 40, 60, seed=3)
    boxes = random_boxes(30, 40, 60)
    index = torch.arange(30) % 6
    expected = roi_align(
        torch.from_numpy(masks)[index, None].double(),
        torch.cat((torch.arange(30.0)[:, None].double(), boxes), 1),
        14,
        1.0,
        0,
        True,
    )[:, 0]
    clear = (expected - 0.5).abs() > 1e-9  # elsewhere rounding decides
    from_bitmaps = crop_masks(torch.from_numpy(masks), boxes, index, 14)
    from_runs = crop_masks([encoded(m) for m in masks], boxes, index, 14)
    assert torch.equal(from_bitmaps[clear], (expected >= 0.5).double()[clear])
    assert torch.equal(from_runs[clear], from_bitmaps[clear])
    assert clear.float().mean() > 0.9


def test_targets_from_polygons_lie_where_those_from_bitmaps_lie():
    polygons = [
        [[5.0, 5.0, 35.0, 8.0, 30.0, 34.0, 8.0, 30.0]],
        [[2.0, 2.0, 20.0, 2.0, 11.0, 20.0], [30.0, 22.0, 50.0, 22.0, 40.0, 38.0]],
    ]
    whole = [hotcoco.mask.decode(hotcoco.mask.merge(hotcoco.mask.frPyObjects(p, 40, 60))) for p in polygons]
    boxes = torch.tensor(
        [[5.0, 5.0, 35.0, 34.0], [0.0, 0.0, 60.0, 40.0], [2.0, 2.0, 50.0, 38.0], [10.0, 0.0, 25.0, 15.0]]
    )
    index = torch.tensor([0, 0, 1, 1])
    ours = crop_masks(polygons, boxes, index, 28)
    bitmaps = crop_masks(torch.from_numpy(np.stack(whole)), boxes, index, 28)
    overlap = ((ours > 0) & (bitmaps > 0)).sum((1, 2)) / ((ours > 0) | (bitmaps > 0)).sum((1, 2))
    assert (overlap > 0.9).all(), overlap


def test_no_boxes_and_no_masks():
    nothing = crop_masks(torch.zeros(0, 8, 8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 7)
    assert nothing.shape == (0, 7, 7)
    assert encode_roi_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (20, 30)) == []
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (20, 30)).shape == (0, 20, 30)


def test_pasting_is_bilinear_sampling_over_the_whole_image():
    masks, boxes = torch.rand(12, 28, 28).double(), random_boxes(12, 40, 60)
    y, x = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(60) + 0.5, indexing="ij")
    for mask, box, found in zip(masks, boxes, paste_masks(masks, boxes, (40, 60))):
        grid = torch.stack(((x - box[0]) / (box[2] - box[0]), (y - box[1]) / (box[3] - box[1])), -1) * 2 - 1
        expected = torch.nn.functional.grid_sample(mask[None, None], grid[None].double(), align_corners=False)[0, 0]
        clear = (expected - 0.5).abs() > 1e-9
        assert torch.equal(found[clear], (expected >= 0.5)[clear])


def test_hundreds_of_masks_are_never_bitmaps_at_once():
    """400 detections in an image of 6000 x 4000: whole, they would take 9.6 GB; each is encoded from its own window."""
    height, width = 4000, 6000
    corner = torch.rand(400, 2) * torch.tensor([width - 60.0, height - 60.0])
    boxes = torch.cat((corner, corner + 20 + 40 * torch.rand(400, 2)), 1)
    masks = torch.ones(400, 28, 28)
    largest = max(window.numel() for window, _, _ in paste_windows(masks, boxes, (height, width)))
    assert largest < 70 * 70
    found = [
        {"boxes": boxes, "scores": torch.ones(400), "labels": torch.zeros(400, dtype=torch.long), "roi_masks": masks}
    ]
    target = {"image_id": 1, "original_size": (height, width), "fed_size": (height, width)}
    results = coco_results(found, [target], [7])
    areas = np.array(
        [coco.area({**r["segmentation"], "counts": r["segmentation"]["counts"].encode()}) for r in results]
    )
    sides = (boxes[:, 2:] - boxes[:, :2]).numpy()
    assert len(results) == 400 and (np.abs(areas - sides.prod(1)) <= 2.5 * sides.sum(1)).all()


def test_masks_are_put_into_the_pixels_of_the_file():
    boxes = torch.tensor([[4.0, 4.0, 20.0, 12.0]])
    found = [
        {
            "boxes": boxes,
            "scores": torch.ones(1),
            "labels": torch.zeros(1, dtype=torch.long),
            "roi_masks": torch.ones(1, 28, 28),
        }
    ]
    target = {"image_id": 1, "original_size": (80, 120), "fed_size": (40, 60)}
    code = coco_results(found, [target], [3])[0]["segmentation"]
    mask = hotcoco.mask.decode(code).astype(bool)
    inside = np.zeros((80, 120), bool)
    inside[9:23, 9:39] = True
    outside = np.ones((80, 120), bool)
    outside[7:25, 7:41] = False
    assert mask[inside].all() and not mask[outside].any()
