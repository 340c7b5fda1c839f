"""The order in which a training sees its images: a pure function of the seed and the position.

Training reads one endless stream of positions: epoch after epoch, each a fresh permutation. Optimiser step t takes
positions t * batch ... (t + 1) * batch - 1, whatever the number of devices, accumulated passes or worker processes;
the random transforms of a position are seeded by it. So a resumed run continues exactly, and two devices see what one
with twice the batch would.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from recollect.structures import Target

Sample = tuple[Tensor, Target]
CACHE_BYTES = 1 << 30  # sets smaller than this, decoded, are kept in memory
TRIES = 20  # neighbours tried in place of an image that cannot be read


class TrainingImages(Protocol):
    """What training needs of a dataset; `recollect.data.DetectionDataset` has it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image."""
        ...


class Positions(Sampler[list[int]]):
    """Positions of the stream for one rank, one list per forward pass, from optimiser step `start` to `stop`."""

    def __init__(self, batch: int, accumulate: int, start: int, stop: int, rank: int = 0, world: int = 1) -> None:
        if batch % (accumulate * world):
            raise ValueError(
                f"a total batch of {batch} does not divide into {world} device(s) x {accumulate} accumulated passes: "
                f"choose a multiple of {accumulate * world}"
            )
        self.batch, self.accumulate, self.start, self.stop = batch, accumulate, start, stop
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch // (self.accumulate * self.world)
        for step in range(self.start, self.stop):
            for part in range(self.accumulate):
                first = step * self.batch + (part * self.world + self.rank) * size
                yield list(range(first, first + size))


class Stream(Dataset[Sample]):
    """The sample at a position: image read, or replaced by a neighbour if it cannot be, and transformed.

    images: without transform. transform: random, seeded by `seed` and the position.
    A replaced sample's target holds `unreadable`, the reason.
    """

    def __init__(
        self, images: TrainingImages, transform: Callable[[Tensor, Target], Sample] | None, seed: int, cache: bool
    ) -> None:
        if len(images) == 0:
            raise ValueError("the training set holds no image")
        self.images, self.transform, self.seed = images, transform, seed
        self.cache: dict[int, Sample] | None = {} if cache else None

    def __getitem__(self, position: int) -> Sample:
        count = len(self.images)
        index = int(_permutation(count, self.seed, position // count)[position % count])
        reasons = []
        for shift in range(TRIES):
            try:
                image, target = self._read((index + shift) % count)
                break
            except (OSError, ValueError) as error:
                reasons.append(str(error))
        else:
            raise ValueError(f"{TRIES} images in a row could not be read; the first: {reasons[0]}")
        if self.transform is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(np.random.SeedSequence((self.seed, position)).generate_state(1, np.uint64)[0]))
                image, target = self.transform(image, target)
        if reasons:
            target = {**target, "unreadable": reasons[0]}
        return image, target

    def _read(self, index: int) -> Sample:
        if self.cache is None:
            return self.images[index]
        if index not in self.cache:
            self.cache[index] = self.images[index]
        image, target = self.cache[index]
        return image, dict(target)


@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def fits_in_memory(images: TrainingImages) -> bool:
    """Whether the whole set, decoded, is small."""
    total = 0
    for index in range(len(images)):
        height, width = images.size(index)
        total += 3 * height * width
        if total > CACHE_BYTES:
            return False
    return True


def stream_loader(stream: Stream, positions: Positions, workers: int, collate: Callable[[Sequence[Sample]], Any]):
    """A DataLoader over the stream; a worker that dies ends the run with an error."""
    return DataLoader(
        stream,
        batch_sampler=positions,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
