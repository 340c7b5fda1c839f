"""All annotations of one split as a few flat arrays: a million boxes take tens of megabytes, in every worker together.

Python objects are counted by reference, so a list of dicts is copied page by page into every worker that touches it.
Arrays are not.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recollect.data.findings import DataError, Finding
from recollect.data.masks import Segmentations

TRUNCATED, DIFFICULT = 1, 2


class PackedStrings(Sequence[str]):
    """Many strings in one buffer of bytes."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [s.encode("utf-8", "surrogateescape") for s in strings]
        self.offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self.buffer = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.buffer[self.offsets[index] : self.offsets[index + 1]].tobytes().decode("utf-8", "surrogateescape")


NAMED_BY_ANNOTATIONS = ("coco", "voc")  # YOLO's data.yaml says itself where its folders are


@dataclass(frozen=True)
class Annotations:
    """One split of a dataset. I images, T objects (sorted by image), K classes.

    file: what was read, for messages. folder: what image paths are relative to. format: "coco", "voc" or "yolo".
    names [K], category_ids [K]: class names and the ids the file uses for them; the label is the index.
    image_ids [I], paths [I], heights [I], widths [I] (0 where the file does not say).
    offsets [I + 1]: objects of image i are rows offsets[i]:offsets[i + 1].
    ids [T]: annotation ids as in the file. boxes [T, 4]: left, top, width, height in pixels, float64 as written.
    labels [T], crowd [T] bool, areas [T] (of the mask where there is one), flags [T]: TRUNCATED | DIFFICULT.
    sources [I]: the annotation file of each image, where images have their own.
    segmentations: polygons and run lengths of the T objects, still encoded; None if they were not asked for.
    """

    file: str
    folder: Path
    format: str
    names: list[str]
    category_ids: list[int]
    image_ids: np.ndarray
    paths: PackedStrings
    heights: np.ndarray
    widths: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    flags: np.ndarray
    sources: PackedStrings | None = None
    segmentations: Segmentations | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_objects(self) -> int:
        """T."""
        return len(self.ids)

    def path(self, image: int) -> Path:
        """The image file. DataError if an annotation file of COCO or VOC names one outside the images' folder."""
        name = self.paths[image]
        strange = name.startswith(("/", "\\")) or ":" in name.split("/")[0] or ".." in name.split("/")
        if strange and self.format in NAMED_BY_ANNOTATIONS:
            raise DataError(f"{self.source(image)}: file name {name!r} leaves the images' folder {self.folder}")
        return self.folder / name

    def source(self, image: int) -> str:
        """The file that annotates the image."""
        return self.file if self.sources is None else self.sources[image]

    def rows(self, image: int) -> slice:
        """The image's objects."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    def images_of_rows(self) -> np.ndarray:
        """[T]: the image of each object."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        arrays = [self.image_ids, self.heights, self.widths, self.offsets, self.ids, self.boxes, self.labels]
        arrays += [self.crowd, self.areas, self.flags, self.paths.buffer, self.paths.offsets]
        if self.sources is not None:
            arrays += [self.sources.buffer, self.sources.offsets]
        segmentations = 0 if self.segmentations is None else self.segmentations.nbytes()
        return sum(a.nbytes for a in arrays) + segmentations

    def select(self, images: np.ndarray, keep: np.ndarray | None = None) -> Annotations:
        """A copy that holds the given images, in that order, and of their objects those where `keep` [T] is true."""
        images = np.asarray(images, dtype=np.int64)
        counts = np.diff(self.offsets)[images]
        starts = self.offsets[:-1][images]
        first = np.cumsum(counts) - counts
        rows = np.arange(int(counts.sum())) - np.repeat(first - starts, counts)
        owners = np.repeat(np.arange(len(images)), counts)
        if keep is not None:
            kept = keep[rows]
            rows, owners = rows[kept], owners[kept]
        return replace(
            self,
            image_ids=self.image_ids[images],
            paths=PackedStrings(self.paths[int(i)] for i in images),
            heights=self.heights[images],
            widths=self.widths[images],
            offsets=np.searchsorted(owners, np.arange(len(images) + 1)).astype(np.int64),
            ids=self.ids[rows],
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            crowd=self.crowd[rows],
            areas=self.areas[rows],
            flags=self.flags[rows],
            sources=None if self.sources is None else PackedStrings(self.sources[int(i)] for i in images),
            segmentations=None if self.segmentations is None else self.segmentations.select(rows),
        )


class Builder:
    """Gathers images and objects in any order, without keeping Python objects, and joins them into Annotations."""

    def __init__(self, file: str, format: str, *, masks: bool) -> None:
        self.file, self.format = file, format
        self.findings: list[Finding] = []
        self.categories: dict[int, str] = {}
        self.image_ids, self.heights, self.widths = array("q"), array("i"), array("i")
        self.image_paths: list[str] = []
        self.image_sources: list[str] = []
        self.ids, self.owners, self.category = array("q"), array("q"), array("q")
        self.boxes, self.areas = array("d"), array("d")
        self.crowd, self.flags = bytearray(), bytearray()
        self.segmentations = Segmentations.Builder() if masks else None

    def find(
        self,
        kind: str,
        value: str = "",
        *,
        annotation: int | None = None,
        file: str | None = None,
        image: int | None = None,
    ) -> None:
        """Note something that the arrays cannot say."""
        self.findings.append(Finding(kind, file or self.file, value, image=image, annotation=annotation))

    def image(self, id: int, path: str, height: int = 0, width: int = 0, source: str | None = None) -> None:
        """Add an image; sizes of 0 mean that the file does not say."""
        self.image_ids.append(id)
        self.heights.append(height)
        self.widths.append(width)
        self.image_paths.append(path)
        if source is not None:
            self.image_sources.append(source)

    def object(
        self,
        id: int,
        image_id: int,
        category: int,
        box: array[float],
        *,
        area: float = float("nan"),
        crowd: bool = False,
        flags: int = 0,
        segmentation: Any = None,
    ) -> None:
        """Add an object: `box` holds left, top, width, height; an area of NaN means width * height."""
        self.ids.append(id)
        self.owners.append(image_id)
        self.category.append(category)
        self.boxes.extend(box)
        self.areas.append(area)
        self.crowd.append(crowd)
        self.flags.append(flags)
        if self.segmentations is not None:
            fault = self.segmentations.add(segmentation)
            if fault:
                self.find("mask-broken", fault, annotation=id)

    def build(self, folder: Path) -> tuple[Annotations, list[Finding]]:
        """Join objects to images and categories to labels; what does not join becomes a finding."""
        image_ids = np.array(self.image_ids, dtype=np.int64)
        unique, first = np.unique(image_ids, return_index=True)
        again = np.setdiff1d(np.arange(len(image_ids)), first)
        for index in again:
            self.find("image-id-twice", f"id {image_ids[index]} for {self.image_paths[index]!r}")
        category_ids = np.array(sorted(self.categories), dtype=np.int64)
        owners = np.array(self.owners, dtype=np.int64)
        ids = np.array(self.ids, dtype=np.int64)
        image, known_image = _lookup(unique, owners)
        image = first[image] if len(first) else image
        labels, known_category = _lookup(category_ids, np.array(self.category, dtype=np.int64))
        for row in np.flatnonzero(~known_image):
            self.find("image-unknown", f"image id {owners[row]}", annotation=int(ids[row]))
        for row in np.flatnonzero(known_image & ~known_category):
            value = f"category id {self.category[int(row)]} in image {self.image_paths[image[row]]!r}"
            self.find("category-unknown", f"{value}; known are {_some(self.categories)}", annotation=int(ids[row]))
        kept = np.flatnonzero(known_image & known_category)
        rows = kept[np.argsort(image[kept], kind="stable")]
        boxes = np.array(self.boxes, dtype=np.float64).reshape(-1, 4)[rows]
        areas = np.array(self.areas, dtype=np.float64)[rows]
        annotations = Annotations(
            file=self.file,
            folder=folder,
            format=self.format,
            names=[self.categories[int(c)] for c in category_ids],
            category_ids=category_ids.tolist(),
            image_ids=image_ids,
            paths=PackedStrings(self.image_paths),
            heights=np.array(self.heights, dtype=np.int32),
            widths=np.array(self.widths, dtype=np.int32),
            offsets=np.searchsorted(image[rows], np.arange(len(image_ids) + 1)).astype(np.int64),
            ids=ids[rows],
            boxes=boxes,
            labels=labels[rows].astype(np.int32),
            crowd=np.frombuffer(bytes(self.crowd), np.uint8)[rows].astype(bool),
            areas=np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas),
            flags=np.frombuffer(bytes(self.flags), np.uint8)[rows],
            sources=PackedStrings(self.image_sources) if self.image_sources else None,
            segmentations=None if self.segmentations is None else self.segmentations.build().select(rows),
        )
        if len(again):
            annotations = annotations.select(np.sort(first))
        return annotations, self.findings


def _lookup(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each wanted value among the sorted known ones, and whether it is there."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    index = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return index, known[index] == wanted


def _some(values: Iterable[Any], most: int = 8) -> str:
    values = list(values)
    return ", ".join(map(str, values[:most])) + (f", ... ({len(values)} in all)" if len(values) > most else "")
