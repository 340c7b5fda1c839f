"""Loaders and samplers: every image once, the same order every time, resumed where it stopped."""

import numpy as np
import pytest
import torch
from data_sets import coco_folder

from recollect.data import (
    DataError,
    concatenate,
    epoch_order,
    evaluation_loader,
    evaluation_transform,
    only_classes,
    open_dataset,
    repeat_rare,
    shapes,
    take,
    training_loader,
    training_transform,
)
from recollect.data.loading import EvaluationShare, TrainingBatches
from recollect.data.sampling import repeat_factors
from recollect.recipe import Data, Resize


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    sizes = {number: (48, 64) for number in (2, 3, 7)}
    folder = coco_folder(tmp_path_factory.mktemp("set"), images=10, sizes=sizes)
    return open_dataset(folder, "train")


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_evaluation_shares_neither_drop_nor_double(length, world):
    shares = [list(EvaluationShare(length, rank=rank, world=world)) for rank in range(world)]
    assert sorted(i for share in shares for i in share) == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [len(EvaluationShare(length, rank=r, world=world)) for r in range(world)] == [len(s) for s in shares]


def test_training_batches_over_ranks():
    for epoch in range(3):
        ranks = []
        for rank in range(2):
            batches = TrainingBatches(21, 3, seed=5, rank=rank, world=2)
            batches.set_epoch(epoch)
            ranks.append([[i for i, _ in batch] for batch in batches])
            assert len(ranks[-1]) == len(batches) == 3
        seen = [i for batches in ranks for batch in batches for i in batch]
        assert len(seen) == len(set(seen)) == 18
    small = [len(batch) for batch in TrainingBatches(2, 4, rank=0, world=2)]
    assert small == [4]


def _fed(loader):
    return [(image.clone(), target["image_id"]) for images, targets in loader for image, target in zip(images, targets)]


def test_the_same_batches_whatever_the_workers_and_after_resuming(dataset):
    data = Data(resize=Resize((20, 30, 40), 80), crop=True, crop_resize=Resize((30,), 60), crop_size=(16, 30))
    ready = dataset.with_transform(training_transform(data))
    one, two = (training_loader(ready, 2, seed=3, workers=workers) for workers in (0, 1))
    for epoch in range(2):
        one.set_epoch(epoch)
        two.set_epoch(epoch)
        pairs = list(zip(_fed(one), _fed(two), strict=True))
        assert len(pairs) == 10 and all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in pairs)
    whole = _fed(one)
    before = torch.get_rng_state()
    iterator = iter(one)
    for _ in range(2):
        next(iterator)
    state = one.state_dict()
    resumed = training_loader(ready, 2, seed=99, workers=0)
    resumed.load_state_dict(state)
    rest = _fed(resumed)
    assert len(rest) == 6 and all(torch.equal(a[0], b[0]) for a, b in zip(whole[4:], rest))
    assert torch.equal(before, torch.get_rng_state())  # augmentation leaves the caller's generator alone
    again = training_loader(ready, 2, seed=4, workers=0)
    assert [i for _, i in _fed(again)] != [i for _, i in whole]


def test_evaluation_loader_in_order(dataset):
    ready = dataset.with_transform(evaluation_transform(Data(resize=Resize((32,), 64))))
    targets = [t for _, ts in evaluation_loader(ready, 3, workers=0) for t in ts]
    assert [t["image_id"] for t in targets] == dataset.image_ids
    assert all(min(t["fed_size"]) == 32 and max(t["original_size"]) == 64 for t in targets)


def test_batches_of_like_shape(dataset):
    groups = shapes(dataset)
    assert groups.tolist() == [1, 0, 0, 1, 1, 1, 0, 1, 1, 1]
    for epoch in range(4):
        order = epoch_order(10, 1, epoch, groups=groups, batch=2)
        assert sorted(order.tolist()) == list(range(10))
        assert sum(len(set(groups[pair])) > 1 for pair in order.reshape(-1, 2)) == 1  # 3 and 7 images: one mixed pair
    assert not np.array_equal(epoch_order(10, 1, 0), epoch_order(10, 1, 1))


def test_subsets_and_concatenation(dataset):
    few = take(dataset, [3, 0, 3])
    assert few.image_ids == [4, 1, 4] and torch.equal(few[2][0], dataset[3][0])
    assert torch.equal(few[0][1]["boxes"], dataset[3][1]["boxes"])
    dogs = only_classes(dataset, ["dog"])
    assert dogs.names == ["dog"] and dogs.num_objects == 10 and set(dogs[0][1]["labels"].tolist()) == {0}
    both = concatenate([dataset, few])
    assert len(both) == 13 and both.image_ids == list(range(1, 14)) and both.num_objects == 26
    assert torch.equal(both[10][0], dataset[3][0]) and both[10][1]["labels"].tolist() == [0, 1]
    assert len({a["id"] for a in both.ground_truth()["annotations"]}) == 26
    with pytest.raises(DataError, match="has no class 'bird'; it has cat, dog"):
        only_classes(dataset, ["bird"])
    with pytest.raises(DataError, match="'cat' has 10 objects"):
        concatenate([dogs, dataset])


def test_rare_classes_are_repeated(dataset):
    annotations = dataset.annotations
    labels = annotations.labels.copy()
    labels[:] = 0
    labels[1] = 1  # class 1 is in one image of ten
    from dataclasses import replace

    rare = replace(annotations, labels=labels)
    factors = repeat_factors(rare, 0.4)
    assert factors.tolist() == pytest.approx([2.0] + [1.0] * 9)
    from recollect.data import DetectionDataset

    more = repeat_rare(DetectionDataset(rare), 0.4)
    assert more.image_ids == [1, 1, *range(2, 11)]


def test_digits_are_deterministic_and_held_out(tmp_path):
    pytest.importorskip("sklearn")
    from recollect.data.digits import make_digit_scenes

    one = make_digit_scenes(tmp_path / "a", train=6, val=3)
    two = make_digit_scenes(tmp_path / "b", train=6, val=3)
    for file in sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file()):
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    other = make_digit_scenes(tmp_path / "c", train=1, val=1, seed=1)
    assert (other / "instances_train.json").read_bytes() != (one / "instances_train.json").read_bytes()
    train = open_dataset(one, "train")
    assert train.names == [str(d) for d in range(10)] and len(train) == 6
    for index in range(6):
        image, target = train[index]
        boxes = target["boxes"]
        assert image.shape == (3, 128, 128) and 2 <= len(boxes) <= 6
        sides = (boxes[:, 2:] - boxes[:, :2]).amax(1)
        assert (sides >= 9).all() and (sides <= 70).all()
