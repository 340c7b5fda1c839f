"""Batches: which images, in which order, on which rank, and how they are put together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from recollect.data.sampling import epoch_order
from recollect.structures import Target

Batch = tuple[list[Tensor], list[Target]]
Seeded = tuple[int, int]  # index of the image, seed of its augmentation


def collate(samples: Sequence[tuple[Tensor, Target]]) -> Batch:
    """Images and targets as two lists: images differ in size, the model pads them."""
    return [image for image, _ in samples], [target for _, target in samples]


def training_loader(
    dataset: Dataset,
    batch: int,
    *,
    seed: int = 0,
    groups: np.ndarray | None = None,
    workers: int | None = None,
    rank: int | None = None,
    world: int | None = None,
) -> TrainingLoader:
    """Batches of `batch` images per process, shuffled anew every epoch; the last, smaller one is left out.

    The order and every augmentation follow from seed and epoch alone: they do not depend on the number of workers, and
    a resumed loader (`state_dict`, `load_state_dict`) goes on exactly where it stopped.
    groups [I]: batches are of one group where possible; `shapes(dataset)` parts upright from wide images.
    rank and world are taken from torch.distributed if not given; all ranks get equally many batches.
    """
    length = len(dataset)  # pyright: ignore[reportArgumentType]
    sampler = TrainingBatches(length, batch, seed=seed, groups=groups, rank=rank, world=world)
    return TrainingLoader(dataset, sampler, workers)


def evaluation_loader(
    dataset: Dataset,
    batch: int,
    *,
    workers: int | None = None,
    rank: int | None = None,
    world: int | None = None,
) -> DataLoader:
    """Every image exactly once, in order; over several ranks each gets its share, none dropped and none doubled."""
    sampler = EvaluationShare(len(dataset), rank=rank, world=world)  # pyright: ignore[reportArgumentType]
    return DataLoader(dataset, batch, sampler=sampler, collate_fn=collate, **_workers(workers))


def choose_workers(workers: int | None) -> int:
    """Processes that read images: as told, else one less than this machine's free cores, at most eight."""
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, cores - 1))


def _workers(workers: int | None) -> dict[str, Any]:
    count = choose_workers(workers)
    return {
        "num_workers": count,
        "worker_init_fn": _start_worker,
        "persistent_workers": count > 0,
        "pin_memory": torch.cuda.is_available(),
    }


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)  # the workers are the parallelism


def place(rank: int | None, world: int | None) -> tuple[int, int]:
    """(rank, world): as told, else torch.distributed's, else alone."""
    if rank is not None and world is not None:
        return rank, world
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class EvaluationShare(Sampler[int]):
    """This rank's images: every world-th, from rank on. Shares differ by one image at most."""

    def __init__(self, length: int, *, rank: int | None = None, world: int | None = None) -> None:
        self.length, self.rank, self.world = length, rank, world

    def _range(self) -> range:
        rank, world = place(self.rank, self.world)
        return range(rank, self.length, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self._range())

    def __len__(self) -> int:
        return len(self._range())


class TrainingBatches(Sampler[list[Seeded]]):
    """This rank's batches of one epoch, as (index, seed of its augmentation).

    `set_epoch(epoch)` starts another epoch; `start` is the batch of the epoch to begin with.
    """

    def __init__(
        self,
        length: int,
        batch: int,
        *,
        seed: int = 0,
        groups: np.ndarray | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        if length < 1 or batch < 1:
            raise ValueError(f"cannot make batches of {batch} from {length} images")
        self.length, self.batch, self.seed, self.groups = length, batch, seed, groups
        self.rank, self.world = rank, world
        self.epoch, self.start = 0, 0

    @property
    def sampler(self) -> TrainingBatches:
        """Itself: where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Begin that epoch; going on with the present one keeps the place in it."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def order(self) -> np.ndarray:
        """The epoch's images, over all ranks."""
        return epoch_order(self.length, self.seed, self.epoch, groups=self.groups, batch=self.batch)

    def batches(self) -> list[np.ndarray]:
        """The epoch's batches of all ranks. A dataset smaller than one batch fills it up by repeating itself."""
        order = self.order()
        _, world = place(self.rank, self.world)
        whole = len(order) // (self.batch * world) * world
        if whole == 0:
            order = np.resize(order, self.batch * world)
            whole = world
        return list(order[: whole * self.batch].reshape(whole, self.batch))

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        _, world = place(self.rank, self.world)
        return max(1, self.length // (self.batch * world))

    def __iter__(self) -> Iterator[list[Seeded]]:
        rank, world = place(self.rank, self.world)
        batches = self.batches()[rank::world]
        for number in range(self.start, len(batches)):
            seeds = np.random.SeedSequence([self.seed, self.epoch, number, rank]).generate_state(self.batch, np.uint32)
            yield [(int(i), int(s)) for i, s in zip(batches[number], seeds)]


class _Reseeding(Dataset[tuple[Tensor, Target]]):
    """Reads an image under the seed that came with its index, so that nothing depends on which worker reads it."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: Seeded) -> tuple[Tensor, Target]:
        number, seed = index
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            return self.dataset[number]
        finally:
            torch.set_rng_state(before)


class TrainingLoader(DataLoader):
    """A DataLoader that knows how many batches were taken, and can go on from there."""

    def __init__(self, dataset: Any, batches: TrainingBatches, workers: int | None) -> None:
        # its own generator, so that starting an epoch leaves the caller's alone
        options = {"collate_fn": collate, "generator": torch.Generator(), **_workers(workers)}
        super().__init__(_Reseeding(dataset), batch_sampler=batches, **options)
        self.batches = batches
        self.taken = 0

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.taken = self.batches.start
        for batch in super().__iter__():
            self.taken += 1
            yield batch
        self.batches.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Begin that epoch."""
        self.batches.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Seed, epoch, and the batches of it already taken."""
        return {"seed": self.batches.seed, "epoch": self.batches.epoch, "taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self.batches.seed, self.batches.epoch = state["seed"], state["epoch"]
        self.batches.start = self.taken = state["taken"] % len(self.batches)
        if state["taken"] and not self.batches.start:
            self.batches.epoch += 1
