"""Any format as any other: `recollect convert-data`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from recollect.data import coco, voc, yolo
from recollect.data.annotations import Annotations
from recollect.data.checks import check_annotations
from recollect.data.classes import match_names
from recollect.data.findings import DataError, refuse
from recollect.data.opening import FORMATS, read_annotations, splits_of

WRITERS: dict[str, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo}


@dataclass
class Conversion:
    """What was written. images, objects: counts by split. lost: what the new format cannot say."""

    format: str
    images: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def convert_dataset(
    source: str | Path, destination: str | Path, format: str, *, source_format: str | None = None
) -> Conversion:
    """Write every split of `source` as `format` ("coco", "voc" or "yolo") into a new folder, images copied.

    DataError if the source has errors, or if the destination holds anything.
    """
    source, destination = Path(source), Path(destination)
    splits = splits_of(source, source_format)
    if not splits:
        read_annotations(source, "train", format=source_format)  # raises, saying what was looked for
    loaded: dict[str, Annotations] = {}
    for split in splits:
        annotations, findings = read_annotations(source, split, format=source_format, masks=True)
        refuse([*findings, *check_annotations(annotations)], source)
        loaded[split] = annotations
    return write_dataset(loaded, destination, format)


Rewrite = Callable[[Path], tuple[bytes, str] | None]


def write_dataset(
    loaded: dict[str, Annotations], destination: Path, format: str, rewrite: Rewrite | None = None
) -> Conversion:
    """Write splits that share one class list; the first split's order of classes holds.

    rewrite: gives new bytes and suffix for image files that shall not be copied as they are.
    """
    if format not in FORMATS:
        raise DataError(f"there is no dataset format {format!r}; known are {', '.join(FORMATS)}")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise DataError(f"{destination}: is there already; name a new folder")
    names = next(iter(loaded.values())).names
    done = Conversion(format)
    taken: set[str] = set()
    for split, given in loaded.items():
        annotations = match_names(given, names)
        folder = {"coco": "images", "voc": "JPEGImages", "yolo": f"images/{split}"}[format]
        files = copy_images(annotations, destination / folder, taken, rewrite)
        done.lost += WRITERS[format].write(annotations, destination, split, files)
        done.images[split] = len(annotations)
        done.objects[split] = int((~annotations.crowd).sum()) if format != "coco" else annotations.num_objects
    return done


def copy_images(annotations: Annotations, folder: Path, taken: set[str], rewrite: Rewrite | None = None) -> list[Path]:
    """Copy every image under a name of its own: stems that occur twice get the names of their folders before them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for image in np.arange(len(annotations)):
        source = annotations.path(int(image))
        name = Path(annotations.paths[int(image)]).name
        if Path(name).stem in taken:
            name = "_".join(p for p in Path(annotations.paths[int(image)]).parts if p not in ("/", "..", "."))
        number = 2
        while Path(name).stem in taken:
            name, number = f"{source.stem}_{number}{source.suffix}", number + 1
        taken.add(Path(name).stem)
        new = None if rewrite is None else rewrite(source)
        try:
            if new is None:
                shutil.copyfile(source, folder / name)
            else:
                name = Path(name).stem + new[1]
                (folder / name).write_bytes(new[0])
        except OSError as error:
            raise DataError(f"{source}: cannot be copied ({error.strerror})") from error
        files.append(folder / name)
    return files
