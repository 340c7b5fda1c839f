"""COCO JSON: found, read into arrays, written."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

from recollect.data.annotations import DIFFICULT, TRUNCATED, Annotations, Builder
from recollect.data.checks import find_image_folder
from recollect.data.findings import DataError, Finding
from recollect.data.images import image_size
from recollect.data.json_stream import stream_object
from recollect.data.splits import SPLIT_NAMES

NO_BOX = array("d", [float("nan")] * 4)


def find(folder: Path, split: str) -> Path | None:
    """The split's JSON file in a folder, in any of the usual layouts; None if there is none."""
    for name in SPLIT_NAMES.get(split, (split,)):
        patterns = [f"instances_{name}.json", f"{name}.json", f"annotations/instances_{name}20*.json"]
        patterns += [f"annotations/instances_{name}.json", f"annotations/{name}.json"]
        patterns += [f"{name}/_annotations.coco.json", f"{name}/annotations.json", f"annotations/*{name}*.json"]
        for pattern in patterns:
            found = sorted(folder.glob(pattern))
            if found:
                return found[-1]  # the latest year
    return None


def read(file: Path, *, images: Path | None = None, masks: bool = False) -> tuple[Annotations, list[Finding]]:
    """Read a COCO instances file. images: where the pictures are; found by looking if not given.

    DataError if the file is no such file; whatever is wrong with single entries is in the findings.
    """
    builder = Builder(str(file), "coco", masks=masks)
    seen: set[str] = set()
    readers = {"images": _add_image, "annotations": _add_object, "categories": _add_category}
    for key, value in stream_object(file, readers):
        if key in readers:
            seen.add(key)
            if isinstance(value, list):  # an empty list comes whole
                continue
            if not isinstance(value, dict):
                builder.find("entry-broken", f"{key} holds {value!r:.60}")
                continue
            try:
                readers[key](builder, value)
            except (TypeError, ValueError, OverflowError, KeyError) as error:
                builder.find("entry-broken", f"in {key}: {_brief(value)}: {_reason(error)}")
    for key in readers:
        if key not in seen and key != "annotations":
            raise DataError(f"{file}: holds no {key!r}; is it a COCO instances file?")
    base = file.parent
    stem = file.stem.removeprefix("instances_")
    around = [base / "images", base, base / stem, base.parent / stem, base.parent / "images" / stem]
    around += [base / "images" / stem, base.parent / "images", base.parent]
    folder = images or find_image_folder(around, builder.image_paths)
    return builder.build(folder)


def _add_image(builder: Builder, item: dict[str, Any]) -> None:
    id, path = _integer(item["id"], "id"), item["file_name"]
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"file_name is {path!r}")
    height, width = (_integer(item.get(key) or 0, key) for key in ("height", "width"))
    if not (0 <= height < 2**31 and 0 <= width < 2**31):
        raise ValueError(f"the size is {width}x{height}")
    builder.image(id, path.replace("\\", "/"), height, width)


def _add_object(builder: Builder, item: dict[str, Any]) -> None:
    id = _integer(item.get("id", 0), "id")
    image, category = _integer(item["image_id"], "image_id"), _integer(item["category_id"], "category_id")
    box = item.get("bbox")
    try:
        if isinstance(box, str) or box is None or len(box) != 4:
            raise ValueError
        box = array("d", box)
    except (TypeError, ValueError, OverflowError):
        builder.find("box-missing", f"bbox is {box!r:.60}", annotation=id)
        box = NO_BOX
    area = item.get("area")
    flags = (TRUNCATED if item.get("truncated") else 0) | (DIFFICULT if item.get("difficult") else 0)
    builder.object(
        id,
        image,
        category,
        box,
        area=float(area) if area is not None else float("nan"),
        crowd=bool(item.get("iscrowd", 0)),
        flags=flags,
        segmentation=item.get("segmentation"),
    )


def _add_category(builder: Builder, item: dict[str, Any]) -> None:
    id, name = _integer(item["id"], "id"), item["name"]
    if not isinstance(name, str):
        raise ValueError(f"the name is {name!r}")
    if id in builder.categories or name in builder.categories.values():
        builder.find("category-twice", f"id {id}, name {name!r}")
    builder.categories[id] = name


def _integer(value: Any, key: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key} is {value!r:.40}, not a whole number")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{key} {value} is too large")
    return value


def _reason(error: Exception) -> str:
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def _brief(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 100 else text[:100] + "..."


def to_coco(annotations: Annotations, *, renumber: bool | None = None) -> dict[str, Any]:
    """The COCO dict of the annotations, in source ids, for scoring or writing.

    Annotation ids are kept where all are at least 1 and none occurs twice, else they are renumbered from 1: COCO
    scoring takes id 0 for "unmatched". Boxes are as in the file. With segmentations if they were read.
    """
    ids = annotations.ids
    if renumber is None:
        renumber = bool(len(ids)) and (int(ids.min()) < 1 or len(set(ids.tolist())) < len(ids))
    owner = annotations.images_of_rows()
    objects = []
    for row in range(annotations.num_objects):
        item: dict[str, Any] = {
            "id": row + 1 if renumber else int(ids[row]),
            "image_id": int(annotations.image_ids[owner[row]]),
            "category_id": annotations.category_ids[annotations.labels[row]],
            "bbox": annotations.boxes[row].tolist(),
            "area": float(annotations.areas[row]),
            "iscrowd": int(annotations.crowd[row]),
        }
        if annotations.flags[row] & TRUNCATED:
            item["truncated"] = 1
        if annotations.flags[row] & DIFFICULT:
            item["difficult"] = 1
        if annotations.segmentations is not None:
            segmentation = annotations.segmentations.coco(row)
            if segmentation is not None:
                item["segmentation"] = segmentation
        objects.append(item)
    images = [
        {
            "id": int(id),
            "file_name": path,
            "height": int(height),
            "width": int(width),
        }
        for id, path, height, width in zip(
            annotations.image_ids, annotations.paths, annotations.heights, annotations.widths
        )
    ]
    categories = [{"id": id, "name": name} for id, name in zip(annotations.category_ids, annotations.names)]
    return {"info": {}, "licenses": [], "images": images, "annotations": objects, "categories": categories}


def write(annotations: Annotations, folder: Path, split: str, files: list[Path]) -> list[str]:
    """Write one split; the images are copied already, to `files` under folder/images. COCO can say everything."""
    content = to_coco(annotations)
    for image, file in zip(content["images"], files):
        image["file_name"] = str(file.relative_to(folder / "images").as_posix())
        if not image["height"]:
            image["height"], image["width"] = image_size(file)
    (folder / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return []
