"""The order of images: the same whatever the devices, passes and workers, and after any cut."""

import numpy as np
import pytest
import torch

from recollect.data import collate, open_dataset, training_transform
from recollect.recipe import Data, Resize
from recollect.training.stream import Positions, Stream, fits_in_memory, stream_loader
from tiny_data import make_rectangles


class Numbers:
    """A dataset whose images hold their index; those in `broken` cannot be read."""

    def __init__(self, count, broken=()):
        self.count, self.broken, self.reads = count, set(broken), []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads.append(index)
        if index in self.broken:
            raise OSError(f"picture_{index}.jpg: cannot be read")
        return torch.full((3, 2, 2), index, dtype=torch.uint8), {"image_id": index}

    def size(self, index):
        return 2, 2


def test_two_devices_take_what_one_takes_with_the_same_batch():
    one = list(Positions(8, 1, 0, 5))
    two = [list(Positions(8, 1, 0, 5, rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*two)] == one
    passes = [list(Positions(8, 2, 0, 5, rank, 2)) for rank in (0, 1)]
    merged = [[p for part in (0, 1) for rank in (0, 1) for p in passes[rank][2 * step + part]] for step in range(5)]
    assert merged == one and {len(p) for rank in passes for p in rank} == {2}


def test_going_on_from_a_step():
    assert list(Positions(4, 2, 3, 7)) == list(Positions(4, 2, 0, 7))[6:]
    assert len(Positions(4, 2, 3, 7)) == 8


def test_every_epoch_is_a_fresh_permutation():
    stream = Stream(Numbers(7), None, seed=3, cache=False)
    ids = [stream[p][1]["image_id"] for p in range(21)]
    epochs = [ids[:7], ids[7:14], ids[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and len({tuple(e) for e in epochs}) == 3
    other = Stream(Numbers(7), None, seed=4, cache=False)
    assert [other[p][1]["image_id"] for p in range(7)] != epochs[0]


def test_an_image_that_cannot_be_read_is_replaced_by_its_neighbour():
    stream = Stream(Numbers(5, broken=[2, 3]), None, seed=0, cache=False)
    found = {int(stream[p][0][0, 0, 0]): stream[p][1].get("unreadable") for p in range(5)}
    assert set(found) == {0, 1, 4}
    reasons = [stream[p][1]["unreadable"] for p in range(5) if "unreadable" in stream[p][1]]
    assert sorted(reasons) == ["picture_2.jpg: cannot be read", "picture_3.jpg: cannot be read"]
    with pytest.raises(ValueError, match="20 images in a row could not be read; the first: picture_"):
        Stream(Numbers(30, broken=range(30)), None, seed=0, cache=False)[0]


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="no image"):
        Stream(Numbers(0), None, seed=0, cache=False)


def test_the_cache_reads_each_image_once_and_is_not_written_to():
    numbers = Numbers(3)

    def spoil(image, target):
        target["image_id"] = -1
        return image, target

    stream = Stream(numbers, spoil, seed=0, cache=True)
    for position in range(9):
        stream[position]
    assert sorted(numbers.reads) == [0, 1, 2] and {t["image_id"] for _, t in stream.cache.values()} == {0, 1, 2}
    assert fits_in_memory(numbers)


def test_augmentation_follows_from_seed_and_position_alone(tmp_path):
    """Not from worker processes, order of reading, or the global generator, which is left alone."""
    images = open_dataset(make_rectangles(tmp_path / "d"), "train")
    transform = training_transform(Data(resize=Resize((48, 64), 64), flip=0.5))
    stream = Stream(images, transform, seed=1, cache=False)
    before = torch.get_rng_state()
    alone = [stream[p] for p in range(12)]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    backwards = [stream[p] for p in reversed(range(12))][::-1]
    loader = stream_loader(stream, Positions(4, 1, 0, 3), 2, collate)
    workers = [sample for images, targets in loader for sample in zip(images, targets)]
    for (a, s), (b, t), (c, u) in zip(alone, backwards, workers):
        assert torch.equal(a, b) and torch.equal(a, c)
        assert torch.equal(s["boxes"], t["boxes"]) and torch.equal(s["boxes"], u["boxes"])
    assert len({image.shape for image, _ in alone}) == 2
    assert len({np.float32(t["boxes"].sum()).item() for _, t in alone}) > 3
