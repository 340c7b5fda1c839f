"""`--fix`: a repaired copy of a dataset in its own format, and a list of every change."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from PIL import Image as PillowImage

from recollect.data.classes import match_names
from recollect.data.conversion import Conversion, write_dataset
from recollect.data.doctor.examination import Report
from recollect.data.findings import KINDS, DataError
from recollect.data.images import to_rgb
from recollect.data.repair import repair_annotations

CHANGES = "changes.txt"
REWRITTEN = {"file-animated", "mode-16-bit", "mode-float", "exif-unrotated-boxes"}


def fix_dataset(report: Report, destination: str | Path) -> list[str]:
    """Write what `report` examined, repaired, into a new folder; `changes.txt` there lists every change.

    Nothing in the source is touched. Classes are left alone: which names mean the same is for a person to decide.
    DataError if the destination holds anything, or if nothing would be left.
    """
    destination = Path(destination)
    changes: list[str] = []
    repaired = {}
    formats = {annotations.format for annotations in report.splits.values()}
    if len(formats) != 1:
        raise DataError(f"{report.path}: its splits have different formats ({', '.join(sorted(formats)) or 'none'})")
    names = next(iter(report.splits.values())).names
    for split, given in report.splits.items():
        annotations = match_names(given, names)
        heights, widths = annotations.heights.copy(), annotations.widths.copy()
        findings = [f for f in report.findings if f.split == split]
        for finding in findings:
            if finding.kind == "size-wrong" and finding.image is not None:
                heights[finding.image], widths[finding.image] = report.facts[split][finding.image].size
        for image, facts in enumerate(report.facts.get(split, [])):
            if not heights[image]:
                heights[image], widths[image] = facts.size
        mended, lines = repair_annotations(replace(annotations, heights=heights, widths=widths), findings)
        changes += [f"{split}: {line}" for line in lines]
        if not len(mended):
            raise DataError(f"{report.path}: nothing would be left of {split}")
        repaired[split] = mended
    rewrite = {}
    for finding in report.findings:
        if finding.kind in REWRITTEN and finding.image is not None:
            rewrite[str(report.splits[finding.split].path(finding.image))] = finding.kind
            changes.append(f"{finding.split}: {finding}: {KINDS[finding.kind].fix}")
    done: Conversion = write_dataset(repaired, destination, formats.pop(), rewritten(rewrite))
    changes += done.lost
    (destination / CHANGES).write_text("".join(f"{line}\n" for line in changes), encoding="utf-8")
    return changes


class rewritten:
    """Gives the new bytes and suffix of the image files that have to be written anew."""

    def __init__(self, kinds: dict[str, str]) -> None:
        self.kinds = kinds

    def __call__(self, path: Path) -> tuple[bytes, str] | None:
        """(content, suffix), or None if the file can be copied as it is."""
        kind = self.kinds.get(str(path))
        if kind is None:
            return None
        buffer = io.BytesIO()
        with PillowImage.open(path) as image:
            image.load()
            if kind == "exif-unrotated-boxes":
                image.info.pop("exif", None)
                quality = {"quality": 95} if image.format == "JPEG" else {}
                image.save(buffer, image.format, exif=b"", **quality)
                return buffer.getvalue(), path.suffix
            to_rgb(image).save(buffer, "PNG")
        return buffer.getvalue(), ".png"
