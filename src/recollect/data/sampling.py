"""Which images, how often: subsets, several datasets as one, rare classes repeated, batches of like shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from recollect.data.annotations import Annotations, PackedStrings
from recollect.data.classes import match_names
from recollect.data.dataset import DetectionDataset
from recollect.data.findings import DataError
from recollect.data.masks import Segmentations


def take(dataset: DetectionDataset, images: Sequence[int] | np.ndarray) -> DetectionDataset:
    """Those images only, in that order; an image may come several times."""
    return _with(dataset, dataset.annotations.select(np.asarray(images, dtype=np.int64)))


def only_classes(dataset: DetectionDataset, names: Sequence[str], *, keep_bare: bool = False) -> DetectionDataset:
    """Only objects of those classes; labels follow the order of `names`.

    Images that hold none of them are left out unless `keep_bare`: kept, they teach what is not an object.
    DataError for a name that the dataset does not have.
    """
    annotations = dataset.annotations
    unknown = [name for name in names if name not in annotations.names]
    if unknown or not names:
        known = ", ".join(annotations.names)
        raise DataError(f"{annotations.file}: has no class {unknown[0] if unknown else ''!r}; it has {known:.300}")
    wanted = np.isin(annotations.labels, [annotations.names.index(name) for name in names])
    images = np.arange(len(annotations))
    if not keep_bare:
        images = np.unique(annotations.images_of_rows()[wanted])
    return _with(dataset, match_names(annotations.select(images, wanted), list(names)))


def repeat_factors(annotations: Annotations, threshold: float) -> np.ndarray:
    """[I]: how often to show each image so that rare classes are seen (Gupta et al. 2019, LVIS, arXiv 1908.03195).

    A class in the share f of the images asks for max(1, sqrt(threshold / f)); an image is repeated for the rarest class
    in it.
    """
    owner = annotations.images_of_rows()
    pairs = np.unique(np.stack((annotations.labels[~annotations.crowd], owner[~annotations.crowd]), 1), axis=0)
    share = np.bincount(pairs[:, 0], minlength=len(annotations.names)) / max(1, len(annotations))
    with np.errstate(divide="ignore"):
        asked = np.maximum(1.0, np.sqrt(threshold / share))
    factors = np.ones(len(annotations))
    np.maximum.at(factors, pairs[:, 1], asked[pairs[:, 0]])
    return factors


def repeat_rare(dataset: DetectionDataset, threshold: float = 0.001, *, seed: int = 0) -> DetectionDataset:
    """The dataset with images of rare classes repeated by `repeat_factors`; fractions are settled by chance, once."""
    factors = repeat_factors(dataset.annotations, threshold)
    chance = np.random.default_rng(seed).random(len(factors))
    times = np.floor(factors).astype(np.int64) + (chance < factors % 1)
    return take(dataset, np.repeat(np.arange(len(factors)), times))


def concatenate(datasets: Sequence[DetectionDataset]) -> DetectionDataset:
    """Several datasets as one, with the first one's transform.

    Labels follow the first dataset's class names; DataError if another has objects of a class that it does not list.
    Image and annotation ids are numbered anew from 1.
    """
    if not datasets:
        raise DataError("no dataset to concatenate")
    first = datasets[0].annotations
    parts = [match_names(dataset.annotations, first.names) for dataset in datasets]
    masks = all(dataset.masks for dataset in datasets)
    starts = np.cumsum([0, *(part.num_objects for part in parts)])
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts)]
    count = sum(map(len, parts))

    def joined(column: str) -> np.ndarray:
        return np.concatenate([getattr(part, column) for part in parts])

    everything = replace(
        first,
        file=" + ".join(part.file for part in parts),
        folder=Path("/"),
        format="joined",
        image_ids=np.arange(1, count + 1),
        paths=PackedStrings(str(part.path(i).absolute()) for part in parts for i in range(len(part))),
        heights=joined("heights"),
        widths=joined("widths"),
        offsets=np.concatenate([*offsets, starts[-1:]]).astype(np.int64),
        ids=np.arange(1, starts[-1] + 1),
        boxes=joined("boxes"),
        labels=joined("labels"),
        crowd=joined("crowd"),
        areas=joined("areas"),
        flags=joined("flags"),
        sources=PackedStrings(part.source(i) for part in parts for i in range(len(part))),
        segmentations=Segmentations.cat([p.segmentations for p in parts if p.segmentations]) if masks else None,
    )
    return DetectionDataset(everything, transform=datasets[0].transform, masks=masks)


def shapes(dataset: DetectionDataset) -> np.ndarray:
    """[I]: 0 for images higher than wide, 1 for the others; batches of one kind waste less on padding."""
    sizes = np.array([dataset.size(index) for index in range(len(dataset))]).reshape(-1, 2)
    return (sizes[:, 1] >= sizes[:, 0]).astype(np.int64)


def epoch_order(length: int, seed: int, epoch: int, *, groups: np.ndarray | None = None, batch: int = 1) -> np.ndarray:
    """The images of one epoch, each once, in an order that seed and epoch decide.

    groups [I]: every `batch` images in a row, counted from the start, are of one group as far as the numbers allow; the
    left-overs of all groups come last.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(length)
    if groups is None or batch == 1:
        return order
    whole, rest = [], []
    for group in np.unique(groups):
        members = order[groups[order] == group]
        full = len(members) // batch * batch
        whole.append(members[:full].reshape(-1, batch))
        rest.append(members[full:])
    batches = np.concatenate(whole)
    return np.concatenate((batches[rng.permutation(len(batches))].reshape(-1), *rest))


def _with(dataset: DetectionDataset, annotations: Annotations) -> DetectionDataset:
    return DetectionDataset(annotations, transform=dataset.transform, masks=dataset.masks)
