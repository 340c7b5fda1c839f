"""Assigners against loops written from the papers' words, on random boxes; and their corners."""

import math

import pytest
import torch

from recollect.layers.anchors import AnchorGenerator, PointGenerator
from recollect.matching.assigner import scatter
from recollect.matching.atss import ATSSAssigner
from recollect.matching.fcos import FCOSAssigner
from recollect.matching.max_iou import MaxIoUAssigner
from recollect.matching.samplers import RandomSampler
from recollect.structures import IGNORED, NEGATIVE, Assignment, Priors

STRIDES, SIZES = (8, 16, 32), [(12, 16), (6, 8), (3, 4)]
RANGES = ((0, 24), (24, 48), (48, math.inf))


def random_target(seed, count=7, crowds=0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * torch.tensor([90.0, 60.0])
    size = 6 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * 60
    target = {"boxes": torch.cat((low, low + size), 1), "labels": torch.arange(count)}
    if crowds:
        order = torch.randperm(count, generator=generator)
        target["iscrowd"] = order < crowds
    return target


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def grid(anchors):
    return anchors.grid(SIZES, torch.float64, "cpu")


def ordinary(target):
    crowd = target.get("iscrowd", torch.zeros(len(target["boxes"]), dtype=torch.bool))
    return [(i, box.tolist()) for i, box in enumerate(target["boxes"]) if not crowd[i]]


@pytest.mark.parametrize("crowds", [0, 3])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("low_quality", [True, False])
def test_max_iou_against_loops(seed, low_quality, crowds):
    priors = grid(AnchorGenerator.retina(STRIDES, base=2))
    target = random_target(seed, crowds=crowds)
    found = MaxIoUAssigner(0.5, 0.4, 0.2, low_quality).assign(priors, target)
    objects = ordinary(target)
    table = [[iou(box, prior) for _, box in objects] for prior in priors.boxes.tolist()]
    expected = []
    for row in table:
        best = max(row)
        if best >= 0.5:
            expected.append(objects[row.index(best)][0])
        else:
            expected.append(NEGATIVE if best < 0.4 else IGNORED)
    for column, (place, _) in enumerate(objects):
        most = max(row[column] for row in table)
        for prior, row in enumerate(table):
            if low_quality and most >= 0.2 and abs(row[column] - most) < 1e-12:
                expected[prior] = place
    assert found.gt_index.tolist() == expected
    assert (found.gt_index >= 0).any() and (found.gt_index == IGNORED).any()


@pytest.mark.parametrize("crowds", [0, 3])
@pytest.mark.parametrize("radius", [None, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_fcos_against_loops(seed, radius, crowds):
    priors = grid(PointGenerator(STRIDES))
    target = random_target(seed, crowds=crowds)
    found = FCOSAssigner(RANGES, radius).assign(priors, target)
    expected = []
    for level, (stride, (rows, columns)) in enumerate(zip(STRIDES, SIZES)):
        for cell in range(rows * columns):
            x, y = (cell % columns + 0.5) * stride, (cell // columns + 0.5) * stride
            candidates = []
            for place, (x1, y1, x2, y2) in ordinary(target):
                sides = (x - x1, y - y1, x2 - x, y2 - y)
                near = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < (radius or math.inf) * stride
                if min(sides) > 0 and near and RANGES[level][0] <= max(sides) <= RANGES[level][1]:
                    candidates.append(((x2 - x1) * (y2 - y1), place))
            expected.append(min(candidates)[1] if candidates else NEGATIVE)
    assert found.gt_index.tolist() == expected
    assert found.positive.any()


@pytest.mark.parametrize("crowds", [0, 3])
@pytest.mark.parametrize("per_level", [3, 9])
@pytest.mark.parametrize("seed", range(4))
def test_atss_against_loops(seed, per_level, crowds):
    priors = grid(AnchorGenerator.retina(STRIDES, base=4, per_octave=1, ratios=(1.0,)))
    target = random_target(seed, crowds=crowds)
    found = ATSSAssigner(per_level).assign(priors, target)
    boxes = priors.boxes.tolist()
    centres = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes]
    best = [(-1.0, NEGATIVE)] * len(boxes)
    for place, box in ordinary(target):
        middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        candidates, start = [], 0
        for count in priors.counts:
            level = sorted(range(start, start + count), key=lambda i: math.dist(centres[i], middle))
            candidates += level[:per_level]
            start += count
        overlaps = [iou(box, boxes[i]) for i in candidates]
        mean = sum(overlaps) / len(overlaps)
        deviation = math.sqrt(sum((o - mean) ** 2 for o in overlaps) / (len(overlaps) - 1))
        for i, overlap in zip(candidates, overlaps):
            x, y = centres[i]
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= mean + deviation and inside and overlap > best[i][0]:
                best[i] = (overlap, place)
    assert found.gt_index.tolist() == [place for _, place in best]
    assert found.positive.any()


ASSIGNERS = {
    "max-IoU": MaxIoUAssigner(crowd=0.5),
    "FCOS": FCOSAssigner(RANGES),
    "ATSS": ATSSAssigner(crowd=0.5),
}


@pytest.mark.parametrize("assigner", ASSIGNERS.values(), ids=ASSIGNERS)
def test_without_objects_everything_is_background(assigner):
    priors = grid(AnchorGenerator.retina(STRIDES, per_octave=1, ratios=(1.0,)))
    found = assigner.assign(priors, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)})
    assert (found.gt_index == NEGATIVE).all() and len(found.gt_index) == len(priors.boxes)


@pytest.mark.parametrize("assigner", ASSIGNERS.values(), ids=ASSIGNERS)
def test_nothing_answers_for_a_crowd(assigner):
    priors = grid(AnchorGenerator.retina(STRIDES, per_octave=1, ratios=(1.0,)))
    target = {"boxes": torch.tensor([[0.0, 0.0, 64.0, 64.0]]), "labels": torch.tensor([0])}
    assert assigner.assign(priors, target).positive.any()
    assert not assigner.assign(priors, {**target, "iscrowd": torch.tensor([True])}).positive.any()
    both = {"boxes": torch.cat((target["boxes"], target["boxes"] + 30)), "iscrowd": torch.tensor([True, False])}
    found = assigner.assign(priors, both).gt_index
    assert set(found[found >= 0].tolist()) == {1}, "places count the crowd too"
    if not isinstance(assigner, FCOSAssigner):
        assert (found == IGNORED).any()


def test_an_object_that_overlaps_no_anchor_gets_none():
    priors = grid(AnchorGenerator.retina(STRIDES))
    target = {"boxes": torch.tensor([[900.0, 900.0, 950.0, 950.0]]), "labels": torch.tensor([0])}
    assert (MaxIoUAssigner().assign(priors, target).gt_index == NEGATIVE).all()


def test_fcos_wants_a_range_for_every_level():
    with pytest.raises(ValueError, match="5 levels, the maps have 3"):
        FCOSAssigner().assign(grid(PointGenerator(STRIDES)), random_target(0))


def test_scattering_undoes_a_selection():
    priors = Priors(torch.rand(6, 4), torch.tensor([8.0] * 4 + [16.0] * 2), (4, 2))
    mask = torch.tensor([True, False, True, True, False, True])
    chosen = priors.select(mask)
    assert chosen.counts == (3, 1) and torch.equal(chosen.boxes, priors.boxes[mask])
    whole = scatter(Assignment(torch.tensor([0, NEGATIVE, 2, 1]), torch.ones(4)), mask)
    assert whole.gt_index.tolist() == [0, IGNORED, NEGATIVE, 2, IGNORED, 1]


@pytest.mark.parametrize(
    "positives, negatives, ratio, expected",
    [(50, 50, None, (8, 24)), (3, 50, None, (3, 29)), (3, 50, 2, (3, 6)), (0, 50, 2, (0, 2)), (3, 4, None, (3, 4))],
)
def test_sampler(positives, negatives, ratio, expected):
    index = torch.tensor([0] * positives + [NEGATIVE] * negatives + [IGNORED] * 5)
    sampler = RandomSampler(32, 0.25, ratio)
    found = sampler.sample(Assignment(index, torch.zeros(len(index))), torch.Generator().manual_seed(0)).gt_index
    assert (int((found >= 0).sum()), int((found == NEGATIVE).sum())) == expected
    assert ((found == index) | (found == IGNORED)).all()
