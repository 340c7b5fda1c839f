"""What can be wrong with a dataset, as one table: kind, severity, remedy. Readers and the doctor speak through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


class DataError(ValueError):
    """A dataset, or one item of it, cannot be used. The message names file, item, value and remedy."""


@dataclass(frozen=True)
class Kind:
    """A kind of finding. `fix` says what `--fix` does about it; empty if only a person can decide."""

    severity: str
    title: str
    remedy: str
    fix: str = ""


KINDS: dict[str, Kind] = {
    # files
    "file-missing": Kind(ERROR, "image file is missing", "restore the file, or delete its entry", "entry dropped"),
    "file-empty": Kind(ERROR, "image file has no bytes", "fetch the file again", "entry dropped"),
    "file-unreadable": Kind(ERROR, "file is no readable image", "fetch or re-encode the file", "entry dropped"),
    "file-truncated": Kind(ERROR, "image file ends too early", "fetch the file again", "entry dropped"),
    "file-animated": Kind(WARNING, "image has several frames", "only the first is read", "first frame written"),
    "file-unlisted": Kind(NOTE, "image file without an entry", "it is not used; add it if it should be"),
    "annotation-unreadable": Kind(
        ERROR, "annotation file cannot be read", "repair or delete the file", "entry dropped"
    ),
    "annotation-missing": Kind(WARNING, "image without an annotation file", "it counts as an image without objects"),
    "annotation-unlisted": Kind(NOTE, "annotation file that no split lists", "it is not used; list it if it should be"),
    # sizes and pixel formats
    "size-wrong": Kind(
        ERROR,
        "declared size is not the file's",
        "boxes may belong to another version of the image: look at it, then correct the declared size",
        "declared size corrected",
    ),
    "exif-rotated": Kind(
        NOTE,
        "EXIF rotation",
        "recollect reads images upright: draw a few boxes to see that they fit",
    ),
    "exif-unrotated-boxes": Kind(
        ERROR,
        "EXIF rotation, but the declared size is that of the unrotated image",
        "the boxes were drawn on unrotated pixels: remove the EXIF tag from the image",
        "EXIF tag removed",
    ),
    "mode-16-bit": Kind(
        WARNING, "16-bit image", "read as value / 256: rescale darker images yourself", "written as 8-bit"
    ),
    "mode-float": Kind(WARNING, "floating-point or 32-bit image", "write it as 8-bit yourself", "written as 8-bit"),
    "mode-palette": Kind(NOTE, "palette image", "it is read as RGB"),
    "mode-cmyk": Kind(NOTE, "CMYK image", "it is read as RGB"),
    "mode-grey": Kind(NOTE, "greyscale image", "it is read as RGB"),
    "mode-alpha": Kind(NOTE, "image with alpha", "transparency is ignored when it is read"),
    # boxes and masks
    "box-missing": Kind(
        ERROR, "object without a usable box", "give it a box of four numbers", "box taken from its mask, or dropped"
    ),
    "box-not-finite": Kind(ERROR, "box with NaN or infinity", "correct or delete it", "dropped"),
    "box-empty": Kind(ERROR, "box with zero width or height", "correct or delete it", "dropped"),
    "box-inverted": Kind(
        ERROR, "box with negative width or height", "swap its corners or delete it", "corners swapped"
    ),
    "box-outside": Kind(ERROR, "box wholly outside the image", "correct or delete it", "dropped"),
    "box-beyond": Kind(ERROR, "box reaches beyond the image", "correct it", "clipped"),
    "box-corners": Kind(
        ERROR,
        "boxes seem to hold corners, where COCO has left, top, width, height",
        "write width and height in place of right and bottom",
    ),
    "box-whole-image": Kind(WARNING, "box covers the whole image", "see whether it means an object"),
    "box-tiny": Kind(WARNING, "box under 2 pixels wide or high", "delete it if it is a slip of the mouse"),
    "box-tiny-fed": Kind(WARNING, "box under 2 pixels once resized for the model", "train at a larger size"),
    "box-huge": Kind(NOTE, "box covers over 95 % of the image", "see whether it is as meant"),
    "box-size-unusual": Kind(NOTE, "box of a size unusual for its class", "see whether the class is right"),
    "box-duplicate": Kind(WARNING, "same box and class twice", "delete one", "second one dropped"),
    "box-near-duplicate": Kind(WARNING, "nearly the same box twice", "delete one of them"),
    "box-two-classes": Kind(WARNING, "same box with two classes", "keep the right one"),
    "mask-broken": Kind(ERROR, "mask cannot be decoded", "draw it again or delete it", "mask dropped"),
    "mask-box-differ": Kind(WARNING, "mask and box disagree", "correct the wrong one", "box taken from the mask"),
    "too-many-objects": Kind(
        WARNING,
        "more objects in an image than the model has queries",
        "raise the number of queries, or tile the images",
    ),
    # entries
    "entry-broken": Kind(ERROR, "entry cannot be understood", "correct or delete it", "dropped"),
    "image-unknown": Kind(
        ERROR, "object of an image that is not listed", "list the image or delete the object", "dropped"
    ),
    "image-id-twice": Kind(ERROR, "image id given twice", "give every image its own id", "second one dropped"),
    "image-listed-twice": Kind(WARNING, "image file listed twice", "list it once"),
    "annotation-id-zero": Kind(
        NOTE,
        "annotation id 0, which COCO scoring takes for unmatched",
        "recollect renumbers it when it scores",
        "renumbered",
    ),
    "annotation-id-twice": Kind(
        WARNING, "annotation id given twice", "recollect renumbers when it scores", "renumbered"
    ),
    # classes
    "category-unknown": Kind(ERROR, "object of a category that is not listed", "list it or correct the id", "dropped"),
    "category-twice": Kind(ERROR, "category id or name given twice", "give every class one id and one name"),
    "category-similar": Kind(WARNING, "class names that differ only in case or spaces", "make them one class"),
    "category-empty": Kind(WARNING, "class without objects", "it cannot be learned; leave it out"),
    "category-only-val": Kind(WARNING, "class in val that train never shows", "move images so that both hold it"),
    "category-stranger": Kind(ERROR, "class in val that train does not list", "give both the same list of classes"),
    "category-lists-differ": Kind(NOTE, "train and val list different classes", "classes are matched by name"),
    # images among each other
    "image-twice": Kind(WARNING, "same picture twice", "keep one"),
    "image-near-twice": Kind(NOTE, "nearly the same picture twice", "keep one, unless they are frames of a film"),
    "image-in-both": Kind(
        ERROR, "same picture in train and val", "keep it on one side: scores are wrong otherwise", "dropped from train"
    ),
    "image-near-in-both": Kind(WARNING, "nearly the same picture in train and val", "scores may be too good"),
    "image-no-objects": Kind(NOTE, "images without objects", "fine if they really hold none"),
    "dataset-empty": Kind(ERROR, "no image at all", "point at the right folder or split"),
    "dataset-no-objects": Kind(ERROR, "no object at all", "point at the right folder or split"),
}


@dataclass(frozen=True)
class Finding:
    """One thing found.

    kind: a key of KINDS. file: the file at fault. value: what was found there, for a person.
    image: index of the image in its dataset, split: that dataset's. annotation: the object's id in its file.
    row: index of the object in its dataset. count: how many items it stands for.
    """

    kind: str
    file: str
    value: str = ""
    image: int | None = None
    annotation: int | None = None
    row: int | None = None
    split: str = ""
    count: int = 1

    @property
    def severity(self) -> str:
        """error, warning or note."""
        return KINDS[self.kind].severity

    def __str__(self) -> str:
        kind = KINDS[self.kind]
        which = "" if self.annotation is None else f", annotation {self.annotation}"
        value = f": {self.value}" if self.value else ""
        return f"{self.file}{which}: {kind.title}{value} ({kind.remedy})"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        kind = KINDS[self.kind]
        return {
            "kind": self.kind,
            "severity": kind.severity,
            "title": kind.title,
            "file": self.file,
            "split": self.split,
            "annotation": self.annotation,
            "value": self.value,
            "count": self.count,
            "remedy": kind.remedy,
            "fix": kind.fix,
        }


def errors_of(findings: Sequence[Finding]) -> list[Finding]:
    """Those that forbid training."""
    return [f for f in findings if f.severity == ERROR]


def refuse(findings: Sequence[Finding], folder: object) -> None:
    """Raise DataError for the first error among the findings; it says how many there are and how to see them all."""
    errors = errors_of(findings)
    if errors:
        others = f"; {len(errors) - 1} more errors" if len(errors) > 1 else ""
        raise DataError(
            f"{errors[0]}{others}. `recollect check {folder}` lists all findings, with --fix it writes a repaired copy"
        )
