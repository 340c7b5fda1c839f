"""YOLO: data.yaml, and beside every image a text file of normalised boxes or polygons. Found, read, written."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import yaml

from recollect.data.annotations import Annotations, Builder
from recollect.data.findings import DataError, Finding
from recollect.data.images import SUFFIXES, image_size
from recollect.data.masks import POLYGONS
from recollect.data.splits import SPLIT_NAMES


def find(folder: Path, split: str) -> Path | None:
    """The YAML file of a folder, or a folder of images with labels beside it; None if there is neither."""
    for file in _yaml_files(folder):
        head = _load_yaml(file)
        if isinstance(head, dict) and any(head.get(name) for name in SPLIT_NAMES.get(split, (split,))):
            return file
    for name in SPLIT_NAMES.get(split, (split,)):
        for place in (folder / "images" / name, folder / name / "images", folder / name):
            if place.is_dir() and (labels := _labels_folder(place)) and next(labels.glob("*.txt"), None):
                return place
    return None


def splits(folder: Path) -> list[str]:
    """Names of the splits in the folder's YAML file."""
    keys = ("train", "val", "valid", "test")
    heads = [_load_yaml(file) for file in _yaml_files(folder)]
    return [key for head in heads if isinstance(head, dict) for key in keys if head.get(key)]


def read(
    place: Path, split: str, *, images: Path | None = None, masks: bool = False
) -> tuple[Annotations, list[Finding]]:
    """Read one split of what `find` found. Image sizes come from the image files: YOLO does not write them down."""
    builder = Builder(str(place), "yolo", masks=masks)
    if place.is_file():
        head = _load_yaml(place)
        if not isinstance(head, dict):
            raise DataError(f"{place}: not a data.yaml with train, val and names")
        names = _class_names(head.get("names"), head.get("nc"), place)
        entry = next((head[name] for name in SPLIT_NAMES.get(split, (split,)) if head.get(name)), None)
        if entry is None:
            raise DataError(f"{place}: holds no {split!r} split")
        files = _image_files(entry, head.get("path"), place)
        home = place.parent
    else:
        files = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)
        home = place
        names = _names_beside(place)
    if images is not None:
        files = [images / file.name for file in files]
    builder.categories = dict(enumerate(names))
    for number, file in enumerate(files, 1):
        _add(builder, number, file, home)
    if not names:  # nothing names the classes: their numbers must do
        builder.categories = {number: str(number) for number in sorted(set(builder.category))}
    return builder.build(home)


def _yaml_files(folder: Path) -> list[Path]:
    found = [folder / "data.yaml", folder / "data.yml", folder / "dataset.yaml"]
    return [f for f in found if f.is_file()] or sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])[:10]


def _load_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: not a YAML file that can be read: {reason}") from error


def _class_names(names: Any, count: Any, file: Path) -> list[str]:
    """Names in the order of their numbers. Values are never printed: a few lines of YAML can mean gigabytes."""
    if isinstance(names, dict):
        if not all(isinstance(key, int) and not isinstance(key, bool) for key in names):
            raise DataError(f"{file}: the keys of 'names' must be whole numbers from 0 on")
        if sorted(names) != list(range(len(names))):
            raise DataError(f"{file}: the keys of 'names' must run from 0 to {len(names) - 1} without gaps")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: 'names' must list the class names, found {type(names).__name__}")
    for index, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, (str, int, float)):
            kind = f"is a {type(name).__name__} to YAML" if name is not None else "is empty"
            raise DataError(f"{file}: class {index} {kind}: write its name in quotes")
    if isinstance(count, int) and count != len(names):
        raise DataError(f"{file}: 'nc' is {count}, but 'names' holds {len(names)}: correct the wrong one")
    return [str(name) for name in names]


def _names_beside(place: Path) -> list[str]:
    for parent in [place, *list(place.parents)[:2]]:
        for name in ("classes.txt", "obj.names", "labels.txt"):
            if (parent / name).is_file():
                lines = (parent / name).read_text(encoding="utf-8-sig", errors="replace").splitlines()
                return [line.strip() for line in lines if line.strip()]
    return []


def _image_files(entry: Any, base: Any, file: Path) -> list[Path]:
    """Every image of a split: its entry is a folder, a text file that lists images, or a list of those."""
    entries = entry if isinstance(entry, list) else [entry]
    roots = [file.parent]
    if isinstance(base, str) and base:
        roots = [file.parent / base, file.parent, file.parent / Path(base).name]
    files: list[Path] = []
    for item in entries:
        if not isinstance(item, str):
            raise DataError(f"{file}: a split must be a path or a list of paths, found {type(item).__name__}")
        # some tools write ../train/images for a folder beside the file itself
        stripped = item.replace("\\", "/").removeprefix("./")
        while stripped.startswith("../"):
            stripped = stripped[3:]
        tried = [root / path for root in roots for path in dict.fromkeys((item, stripped))]
        place = next((p for p in tried if _exists(p)), None)
        if place is None:
            raise DataError(f"{file}: there is no {tried[0]}: correct the split's path")
        if place.is_dir():
            files += sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)
        else:
            try:
                lines = place.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{place}: the list of images cannot be read ({error})") from error
            for line in filter(None, map(str.strip, lines)):
                files.append(
                    next(
                        (p for p in (root / line for root in (place.parent, *roots)) if _exists(p)), place.parent / line
                    )
                )
    return files


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def label_file(image: Path) -> Path:
    """Where the labels of an image stand: the last folder called images becomes labels; else beside the image."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            return Path(*parts).with_suffix(".txt")
    return image.with_suffix(".txt")


def _labels_folder(images: Path) -> Path | None:
    folder = label_file(images / "x.jpg").parent
    return folder if folder.is_dir() else None


def _add(builder: Builder, number: int, image: Path, home: Path) -> None:
    labels = label_file(image)
    path = str(image.relative_to(home)) if image.is_relative_to(home) else str(image)
    try:
        height, width = image_size(image)
    except DataError:
        height = width = 0  # the doctor and the reader say so; boxes cannot be placed
        kind = "file-missing" if not _exists(image) else "file-unreadable"
        builder.find(kind, f"the objects of {labels} have no place", file=str(image), image=number - 1)
    builder.image(number, path, height, width, str(labels))
    try:
        lines = labels.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        builder.find("annotation-missing", f"for image {path!r}", file=str(labels))
        return
    except (OSError, UnicodeDecodeError) as error:
        builder.find("annotation-unreadable", str(error), file=str(labels), image=number - 1)
        return
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            category, values = _numbers(line)
        except ValueError as error:
            builder.find("entry-broken", f"line {place}: {error}", file=str(labels), annotation=place)
            continue
        if not height:
            continue
        points, segmentation = array("d", values), None
        if len(values) == 4:
            x, y, w, h = values
            box = array("d", ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height))
        else:
            xs, ys = [x * width for x in points[0::2]], [y * height for y in points[1::2]]
            box = array("d", (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)))
            segmentation = [[v for point in zip(xs, ys) for v in point]]
        builder.object(len(builder.ids) + 1, number, category, _rounded(box), segmentation=segmentation)


def _rounded(box: array[float]) -> array[float]:
    """To a thousandth of a pixel: files hold six decimals or so."""
    return array("d", (round(v, 3) for v in box))


def _numbers(line: str) -> tuple[int, list[float]]:
    fields = line.split()
    if len(fields) != 5 and (len(fields) < 7 or len(fields) % 2 == 0):
        raise ValueError(f"{len(fields)} numbers; a box has 5, a polygon 7, 9, 11, ...: {line.strip()[:60]!r}")
    values = [float(field) for field in fields]
    if not values[0].is_integer() or not 0 <= values[0] < 2**31:
        raise ValueError(f"the class is {fields[0]}, not a whole number from 0 on")
    return int(values[0]), values[1:]


def write(annotations: Annotations, folder: Path, split: str, files: list[Path]) -> list[str]:
    """Write one split; the images are copied already, to `files`. Returns what YOLO cannot say and was lost."""
    masks = annotations.segmentations is not None and bool((annotations.segmentations.kinds == POLYGONS).any())
    unpolygoned = 0
    for image, file in enumerate(files):
        height, width = int(annotations.heights[image]), int(annotations.widths[image])
        if not height or not width:
            height, width = image_size(annotations.path(image))
        lines = []
        rows = annotations.rows(image)
        for row in range(rows.start, rows.stop):
            if annotations.crowd[row]:
                continue
            label = int(annotations.labels[row])
            rings = annotations.segmentations.coco(row) if masks and annotations.segmentations is not None else None
            if isinstance(rings, list):
                values = [v / (height if i % 2 else width) for i, v in enumerate(_joined(rings))]
            else:
                unpolygoned += masks
                left, top, wide, high = annotations.boxes[row].tolist()
                values = [(left + wide / 2) / width, (top + high / 2) / height, wide / width, high / height]
            lines.append(" ".join([str(label), *(f"{v:.8g}" for v in values)]) + "\n")
        labels = label_file(file)
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text("".join(lines), encoding="utf-8")
    file = folder / "data.yaml"
    head = _load_yaml(file) if file.is_file() else {"path": "."}
    head = {**head, split: f"images/{split}", "nc": len(annotations.names), "names": dict(enumerate(annotations.names))}
    file.write_text(yaml.safe_dump(head, sort_keys=False, allow_unicode=True), encoding="utf-8")
    lost = []
    if annotations.crowd.any():
        lost.append(f"{split}: {int(annotations.crowd.sum())} crowd regions left out, YOLO has none")
    if annotations.flags.any():
        lost.append(f"{split}: the marks truncated and difficult left out, YOLO has none")
    if unpolygoned:
        lost.append(f"{split}: {unpolygoned} objects without polygons written as boxes")
    return lost


def _joined(rings: list[list[float]]) -> list[float]:
    """Several rings as one: from the first point of the first to each other ring, round it, and back."""
    if len(rings) == 1:
        return rings[0]
    start = rings[0][:2]
    joined = [*rings[0], *start]
    for ring in rings[1:]:
        joined += [*ring, *ring[:2], *start]
    return joined
