"""Pascal VOC: one XML file per image, split lists in ImageSets/Main. Found, read into arrays, written.

Corners are taken as they stand (left = xmin, width = xmax - xmin): most tools write them so, though the original VOC
counted pixels from 1 and meant the last pixel to be inside. Masks and part boxes are not read.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from array import array
from pathlib import Path
from xml.sax.saxutils import escape

from recollect.data.annotations import DIFFICULT, TRUNCATED, Annotations, Builder
from recollect.data.checks import find_image_folder
from recollect.data.findings import DataError, Finding
from recollect.data.images import SUFFIXES, image_size
from recollect.data.splits import SPLIT_NAMES, plain_number

NO_BOX = array("d", [float("nan")] * 4)
FLAGS = (("truncated", TRUNCATED), ("difficult", DIFFICULT))


def find(folder: Path, split: str) -> Path | None:
    """The split's list (or, for sets with a folder per split, the folder of its XML files); None if there is none."""
    for name in SPLIT_NAMES.get(split, (split,)):
        lists = [folder / "ImageSets" / "Main" / f"{name}.txt", folder / "ImageSets" / f"{name}.txt"]
        if (folder / "Annotations").is_dir():
            for place in [*lists, folder / f"{name}.txt"]:
                if place.is_file():
                    return place
        for place in (folder / name / "Annotations", folder / "Annotations" / name, folder / name):
            if place.is_dir() and next(place.glob("*.xml"), None):
                return place
    if split == "train" and not (folder / "ImageSets").is_dir():
        for place in (folder / "Annotations", folder):
            if place.is_dir() and next(place.glob("*.xml"), None):
                return place
    return None


def splits(folder: Path) -> list[str]:
    """Names of the split lists in the folder."""
    return sorted(p.stem for p in (folder / "ImageSets" / "Main").glob("*.txt"))


def stems_of(folder: Path, split: str) -> list[str]:
    """The names that a split list holds; none if it cannot be read."""
    try:
        return _read_list(folder / "ImageSets" / "Main" / f"{split}.txt", folder / "Annotations")
    except DataError:
        return []


def read(place: Path, *, images: Path | None = None, masks: bool = False) -> tuple[Annotations, list[Finding]]:
    """Read what `find` found. `masks` is for symmetry with the other readers: there are none."""
    listed = place.is_file()
    root = place.parent if place.is_dir() else _root_of_list(place)
    home = place if place.is_dir() else root / "Annotations"
    stems = _read_list(place, home) if listed else sorted(p.stem for p in home.glob("*.xml"))
    builder = Builder(str(place), "voc", masks=masks)
    if listed:
        every = sorted(p.stem for p in home.glob("*.xml"))
    else:
        every = stems
    trees = {stem: _parse(home / f"{stem}.xml") for stem in stems}
    names = {name for tree in trees.values() if not isinstance(tree, str) for name in _names(tree)}
    for stem in set(every) - set(stems):  # the other splits: the list of classes must be the same for all
        tree = _parse(home / f"{stem}.xml")
        names |= set() if isinstance(tree, str) else set(_names(tree))
    ordered = _class_file(root) or sorted(names)
    builder.categories = dict(enumerate(ordered, 1))
    ids = {name: id for id, name in builder.categories.items()}
    around = [root / "JPEGImages", root / "images", home, root, root.parent / "images", root.parent / "JPEGImages"]
    folder = images or find_image_folder(around, [f"{s}{e}" for s in stems[:5] for e in (".jpg", ".png", ".jpeg")][:15])
    files = {p.stem: p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES} if folder.is_dir() else {}
    present = set(files.values())
    for number, stem in enumerate(stems, 1):
        _add(builder, number, stem, home / f"{stem}.xml", trees[stem], files.get(stem), present, ids)
    return builder.build(folder)


def _root_of_list(place: Path) -> Path:
    for parent in place.parents:
        if (parent / "Annotations").is_dir():
            return parent
    return place.parent


def _read_list(place: Path, home: Path) -> list[str]:
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: the split list cannot be read ({error})") from error
    stems = []
    for line in (line.strip() for line in lines):
        if line:
            known = (home / f"{line}.xml").is_file() or len(line.split()) == 1
            stem = line if known else line.split()[0]  # lists per class say 1, 0 or -1 after the name
            stems.append(stem.removesuffix(".jpg").removesuffix(".xml"))
    return stems


def _class_file(root: Path) -> list[str]:
    for name in ("labels.txt", "classes.txt"):
        if (root / name).is_file():
            lines = (root / name).read_text(encoding="utf-8-sig", errors="replace").splitlines()
            return [line.strip() for line in lines if line.strip() and line.strip() != "__background__"]
    return []


def _parse(file: Path) -> ElementTree.Element | str:
    """The file's tree, or why there is none."""
    try:
        data = file.read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            return "it declares entities, which annotation files do not need"
        return ElementTree.fromstring(data)
    except FileNotFoundError:
        return ""
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        return str(error)


def _names(tree: ElementTree.Element) -> list[str]:
    return [name for item in tree.iter("object") if (name := (item.findtext("name") or "").strip())]


def _add(
    builder: Builder,
    number: int,
    stem: str,
    file: Path,
    tree: ElementTree.Element | str,
    image: str | None,
    present: set[str],
    ids: dict[str, int],
) -> None:
    if isinstance(tree, str):
        if tree:
            builder.find("annotation-unreadable", tree, file=str(file), image=number - 1)
        else:
            builder.find("annotation-missing", f"listed in {builder.file}", file=str(file))
        builder.image(number, image or f"{stem}.jpg", source=str(file))
        return
    told = Path((tree.findtext("filename") or "").strip().replace("\\", "/")).name
    path = told if told in present else image or told or f"{stem}.jpg"
    height, width = (_whole(tree.findtext(f"size/{side}")) for side in ("height", "width"))
    builder.image(number, path, height, width, str(file))
    for place, item in enumerate(tree.iter("object"), 1):
        name = (item.findtext("name") or "").strip()
        if not name:
            builder.find("category-unknown", f"object {place} has no name", file=str(file), annotation=place)
            continue
        try:
            left, top, right, bottom = (
                float(item.findtext(f"bndbox/{side}") or "missing") for side in ("xmin", "ymin", "xmax", "ymax")
            )
            box = array("d", (left, top, right - left, bottom - top))
        except ValueError as error:
            builder.find("box-missing", f"object {place}, {name!r}: {error}", file=str(file), annotation=place)
            box = NO_BOX
        flags = sum(flag for key, flag in FLAGS if _whole(item.findtext(key)) > 0)
        if name not in ids:
            known = ", ".join(ids)
            builder.find("category-unknown", f"{name!r}; known are {known:.200}", file=str(file), annotation=place)
            continue
        builder.object(len(builder.ids) + 1, number, ids[name], box, flags=flags)


def _whole(text: str | None) -> int:
    try:
        value = float(text or 0)
        return int(value) if 0 <= value < 2**31 else 0
    except (ValueError, OverflowError):
        return 0


def write(annotations: Annotations, folder: Path, split: str, files: list[Path]) -> list[str]:
    """Write one split; the images are copied already, to `files`. Returns what VOC cannot say and was lost."""
    home, lists = folder / "Annotations", folder / "ImageSets" / "Main"
    home.mkdir(parents=True, exist_ok=True)
    lists.mkdir(parents=True, exist_ok=True)
    for image, file in enumerate(files):
        height, width = int(annotations.heights[image]), int(annotations.widths[image])
        if not height or not width:
            height, width = image_size(annotations.path(image))
        rows = annotations.rows(image)
        objects = []
        for row in range(rows.start, rows.stop):
            if annotations.crowd[row]:
                continue
            left, top, wide, high = annotations.boxes[row].tolist()
            corners = zip(("xmin", "ymin", "xmax", "ymax"), (left, top, left + wide, top + high))
            box = "".join(f"<{side}>{plain_number(value)}</{side}>" for side, value in corners)
            flags = "".join(f"<{key}>{int(annotations.flags[row] & flag > 0)}</{key}>" for key, flag in FLAGS)
            name = escape(annotations.names[annotations.labels[row]])
            objects.append(f"<object><name>{name}</name>{flags}<bndbox>{box}</bndbox></object>\n")
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        head = f"<folder>JPEGImages</folder><filename>{escape(file.name)}</filename>{size}"
        text = f"<annotation>{head}\n{''.join(objects)}</annotation>\n"
        (home / f"{file.stem}.xml").write_text(text, encoding="utf-8")
    (lists / f"{split}.txt").write_text("".join(f"{file.stem}\n" for file in files), encoding="utf-8")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in annotations.names), encoding="utf-8")
    lost = []
    if annotations.crowd.any():
        lost.append(f"{split}: {int(annotations.crowd.sum())} crowd regions left out, VOC has none")
    if annotations.segmentations is not None and annotations.segmentations.kinds.any():
        lost.append(f"{split}: masks left out, VOC files hold boxes")
    return lost
