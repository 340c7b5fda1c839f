"""Boxes, masks and labels stay in step under every transform, whatever is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from data_sets import coco_folder, edit, masked_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from recollect.data import evaluation_transform, open_dataset, training_transform
from recollect.data.dataset import boxes_of
from recollect.data.transforms import resized
from recollect.recipe import Data, Resize

BASE = Data(resize=Resize((40, 60), 90), flip=0.0)
PIPELINES = {
    "flip": replace(BASE, flip=1.0),
    "multi-scale": replace(BASE, resize=Resize((20, 47, 100), 120)),
    "crop": replace(BASE, crop=True, crop_resize=Resize((30, 70), 100), crop_size=(16, 50)),
    "photometric": replace(BASE, photometric=1.0),
    "zoom-out": replace(BASE, zoom_out=1.0),
    "iou-crop": replace(BASE, iou_crop=1.0),
    "jitter": replace(BASE, jitter=(0.3, 2.0), jitter_size=64),
    "mosaic": replace(BASE, mosaic=1.0, mosaic_size=80),
    "mixup": replace(BASE, mixup=1.0),
    "copy-paste": replace(BASE, copy_paste=1.0),
    "all": replace(
        *(BASE,), flip=0.5, crop=True, crop_resize=Resize((30, 70), 100), crop_size=(16, 50), photometric=0.5,
        zoom_out=0.5, iou_crop=0.5, jitter=(0.3, 2.0), jitter_size=64, mosaic=0.5, mosaic_size=80, mixup=0.5,
        copy_paste=0.5,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(masked_folder(tmp_path_factory.mktemp("masked"), images=4), "train", masks=True)


class _Made:
    """A dataset of one drawn image with drawn objects, each a solid rectangle of its own grey level on black."""

    masks = True

    def __init__(self, height, width, boxes):
        self.size, self.boxes = (height, width), boxes

    def with_transform(self, _):
        return self

    def __len__(self):
        return 1

    def __getitem__(self, _):
        height, width = self.size
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        masks = torch.zeros(len(self.boxes), height, width, dtype=torch.bool)
        for place, (x1, y1, x2, y2) in enumerate(self.boxes):
            masks[place, y1:y2, x1:x2] = True
            image[:, y1:y2, x1:x2] = 50
        boxes = torch.tensor(self.boxes, dtype=torch.float32).reshape(-1, 4)
        count = len(self.boxes)
        return tv_tensors.Image(image), {
            "boxes": boxes_of(boxes, self.size),
            "labels": torch.arange(count),
            "iscrowd": torch.arange(count) % 5 == 4,
            "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
            "masks": tv_tensors.Mask(masks),
            "image_id": 3,
            "original_size": self.size,
            "fed_size": self.size,
        }


@st.composite
def scenes(draw):
    height, width = draw(st.integers(8, 90)), draw(st.integers(8, 90))
    boxes = []
    for _ in range(draw(st.integers(0, 6))):
        x, y = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
        boxes.append((x, y, draw(st.integers(x + 1, width)), draw(st.integers(y + 1, height))))
    return _Made(height, width, boxes)


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(scene=scenes(), seed=st.integers(0, 2**31 - 1))
def test_everything_stays_in_step(name, scene, seed):
    torch.manual_seed(seed)
    transform = training_transform(PIPELINES[name], scene)
    given_image, given_target = scene[0]
    image, target = transform(given_image, given_target)
    height, width = image.shape[-2:]
    assert image.dtype == torch.uint8 and target["fed_size"] == (height, width)
    boxes = target["boxes"]
    count = len(boxes)
    assert isinstance(boxes, tv_tensors.BoundingBoxes) and boxes.canvas_size == (height, width)
    assert all(len(target[key]) == count for key in ("labels", "iscrowd", "area", "masks"))
    plain = boxes.as_subclass(torch.Tensor)
    assert torch.isfinite(plain).all() and (plain >= 0).all()
    assert (plain[:, 0::2] <= width).all() and (plain[:, 1::2] <= height).all()
    assert (plain[:, 2:] > plain[:, :2]).all()
    masks = target["masks"]
    assert masks.shape == (count, height, width) and masks.dtype == torch.bool
    # nothing invented: only labels that were there, at most as often as images were joined; no crowds
    there = given_target["labels"][~given_target["iscrowd"]]
    copies = {"mosaic": 4, "mixup": 2, "copy-paste": 2, "all": 16}.get(name, 1)
    if name != "all":
        assert not target["iscrowd"].any()
    assert all(int((target["labels"] == label).sum()) <= copies for label in target["labels"])
    assert set(target["labels"].tolist()) <= set(there.tolist())
    # the extent of a mask is its box, to within a pixel of the size it was resized from
    scale = max(1.0, max(height, width) / 8)
    for mask, box in zip(masks.as_subclass(torch.Tensor), plain):
        if mask.any():
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            extent = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert (extent - box).abs().max() <= scale
    if name in ("flip", "multi-scale", "photometric", "zoom-out"):
        assert count == len(there)
    assert target["image_id"] == 3 and target["original_size"] == scene.size


def test_masks_equal_boxes_at_full_size(dataset):
    for seed in range(12):
        torch.manual_seed(seed)
        for name in ("crop", "iou-crop", "jitter", "mosaic", "copy-paste"):
            _, target = training_transform(PIPELINES[name], dataset)(*dataset[seed % 4])
            for mask, box in zip(target["masks"].as_subclass(torch.Tensor), target["boxes"].as_subclass(torch.Tensor)):
                if not mask.any():  # thinner than a pixel once resized
                    continue
                rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
                extent = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
                assert (extent - box).abs().max() <= 4.1, name  # enlarged up to four times after the cut


def test_pixels_move_with_their_boxes():
    """A bright rectangle is where its box says, after the flip and the resize."""
    scene = _Made(40, 80, [(10, 6, 30, 26)])
    image, target = training_transform(replace(BASE, flip=1.0, resize=Resize((80,), 200)))(*scene[0])
    assert tuple(image.shape) == (3, 80, 160)
    assert target["boxes"].tolist() == [[100, 12, 140, 52]]
    assert image[0, 14:50, 102:138].min() == 50 and image[0, :, :98].max() == 0 and image[0, 54:].max() == 0
    assert target["area"].tolist() == [1600]


def test_copy_paste_covers_what_lies_beneath(dataset):
    torch.manual_seed(1)
    covered = 0
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = training_transform(replace(BASE, copy_paste=1.0, resize=Resize((48,), 64)), dataset)(
            *dataset[0]
        )
        masks = target["masks"].as_subclass(torch.Tensor)
        covered += len(masks) > 2
        assert image.shape == (3, 48, 64) and (target["area"] <= 48 * 64).all()
    assert covered > 10


def test_crowds_are_dropped_in_training_only(tmp_path):
    folder = coco_folder(tmp_path)
    edit(folder / "instances_train.json", lambda c: c["annotations"][0].update(iscrowd=1))
    dataset = open_dataset(folder, "train")
    assert len(dataset.with_transform(training_transform(BASE))[0][1]["labels"]) == 1
    target = dataset.with_transform(evaluation_transform(BASE))[0][1]
    assert target["iscrowd"].tolist() == [True, False] and target["fed_size"] == (60, 80)


def test_mixing_needs_a_dataset_and_masks(tmp_path):
    with pytest.raises(ValueError, match="mosaic takes objects from other images"):
        training_transform(PIPELINES["mosaic"])
    plain = open_dataset(coco_folder(tmp_path), "train")
    with pytest.raises(ValueError, match="open the dataset with masks=True"):
        training_transform(PIPELINES["copy-paste"], plain)
    assert len(plain.with_transform(training_transform(PIPELINES["mosaic"], plain))[0][1]["labels"]) > 2


def test_resize_rule():
    assert resized((480, 640), 800, 1333) == (800, 1067)
    assert resized((400, 1000), 800, 1333) == (533, 1333)
    assert resized((3, 3000), 8, 10) == (1, 10)
    data = Data(resize=Resize((480, 800), 1333))
    image = tv_tensors.Image(torch.zeros(3, 48, 64, dtype=torch.uint8))
    target = {"boxes": boxes_of(torch.zeros(0, 4), (48, 64)), "labels": torch.zeros(0, dtype=torch.int64)}
    target |= {"iscrowd": torch.zeros(0, dtype=torch.bool), "area": torch.zeros(0)}
    image, target = evaluation_transform(data)(image, target)
    assert target["fed_size"] == (800, 1067) == tuple(image.shape[1:])


def test_same_seed_same_picture(dataset):
    transform = training_transform(PIPELINES["all"], dataset)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(int(torch.randint(9, ())))  # nothing may hang on numpy's global generator
        results.append(transform(*dataset[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1]["boxes"], results[1][1]["boxes"])
