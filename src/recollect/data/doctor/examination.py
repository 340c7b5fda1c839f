"""The examination: every check, over every split, into one report."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recollect.data import voc
from recollect.data.annotations import Annotations
from recollect.data.checks import check_annotations
from recollect.data.classes import check_names, compare_classes
from recollect.data.doctor.objects import object_findings
from recollect.data.doctor.pictures import Facts, file_findings, look_at_all, repeated_pictures
from recollect.data.findings import KINDS, SEVERITIES, DataError, Finding, errors_of
from recollect.data.images import SUFFIXES
from recollect.data.loading import choose_workers
from recollect.data.opening import read_annotations, splits_of


@dataclass
class Report:
    """What the doctor found.

    splits: annotations by split. facts: about the image files, by split; empty if they were not looked at.
    """

    path: str
    splits: dict[str, Annotations]
    findings: list[Finding]
    facts: dict[str, list[Facts]] = field(default_factory=dict)

    @property
    def errors(self) -> list[Finding]:
        """Findings that forbid training."""
        return errors_of(self.findings)

    def counts(self) -> dict[str, int]:
        """Items found, by severity."""
        counted = Counter[str]()
        for finding in self.findings:
            counted[finding.severity] += finding.count
        return {severity: counted[severity] for severity in SEVERITIES}

    def by_kind(self) -> dict[str, list[Finding]]:
        """Findings by kind, errors first, in the order of KINDS."""
        groups = {kind: [f for f in self.findings if f.kind == kind] for kind in KINDS}
        order = sorted((k for k in groups if groups[k]), key=lambda k: SEVERITIES.index(KINDS[k].severity))
        return {kind: groups[kind] for kind in order}

    def text(self, examples: int = 3) -> str:
        """For a terminal: each kind with its count, remedy and a few examples."""
        lines = []
        for split, part in self.splits.items():
            lines.append(f"{split}: {len(part)} images, {part.num_objects} objects in {part.file}")
            counts = np.bincount(part.labels, minlength=len(part.names))
            mapping = zip(part.names, part.category_ids, counts)
            classes = [f"{label}={name} (id {id}): {count}" for label, (name, id, count) in enumerate(mapping)]
            lines.append("  " + ", ".join(classes[:20]) + (" ..." if len(classes) > 20 else ""))
        for kind, findings in self.by_kind().items():
            about = KINDS[kind]
            fix = f"; --fix: {about.fix}" if about.fix else ""
            lines.append(f"{about.severity:7} {sum(f.count for f in findings):6}  {about.title} ({about.remedy}{fix})")
            for finding in findings[:examples]:
                which = "" if finding.annotation is None else f", annotation {finding.annotation}"
                where = f"[{finding.split}] " if finding.split else ""
                lines.append(f"                  {where}{finding.file}{which}: {finding.value}")
            if len(findings) > examples:
                lines.append(f"                  ... and {len(findings) - examples} more (--json lists all)")
        lines.append(", ".join(f"{count} {severity}s" for severity, count in self.counts().items()))
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain data: counts, statistics, and every finding."""
        return {
            "dataset": self.path,
            "counts": self.counts(),
            "splits": {split: statistics(annotations) for split, annotations in self.splits.items()},
            "findings": [finding.to_json() for finding in self.findings],
        }


def examine(
    path: str | Path,
    *,
    val: str | Path | None = None,
    format: str | None = None,
    queries: int | None = None,
    fed: tuple[int, int] | None = None,
    pictures: bool = True,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Examine every split of a dataset.

    val: where the val split is, if not beside train. queries: how many objects the model can find in an image.
    fed: (short, long) sides that images will be resized to. pictures: read every image file to its end, too.
    progress: called with (split, images looked at, images in all).
    DataError only if there is no dataset at all; everything else is in the report.
    """
    places = {split: Path(path) for split in splits_of(Path(path), format)}
    if val is not None:
        places["val"] = Path(val)
    if not places:
        read_annotations(path, "train", format=format)  # raises, saying what was looked for
    report = Report(str(path), {}, [])
    for split, place in places.items():
        try:
            annotations, findings = read_annotations(place, split, format=format, masks=True)
        except DataError as error:
            report.findings.append(Finding("annotation-unreadable", str(place), str(error), split=split))
            continue
        report.splits[split] = annotations
        found = [*findings, *check_annotations(annotations), *check_names(annotations)]
        found += [*object_findings(annotations, queries=queries, fed=fed), *_empty_classes(annotations, split)]
        found += _corners_for_sizes(annotations)
        if pictures:
            done = None if progress is None else _step(progress, split, len(annotations))
            paths = [annotations.path(image) for image in range(len(annotations))]
            facts = look_at_all(paths, max(1, choose_workers(workers)), done)
            report.facts[split] = facts
            # the files were looked at more closely than when listing folders
            found = [f for f in found if f.kind != "file-missing"] + file_findings(annotations, facts, split)
        report.findings += [dataclasses.replace(f, split=split) for f in found]
    for split in ("val", "test"):
        if "train" in report.splits and split in report.splits:
            found = compare_classes(report.splits["train"], report.splits[split])
            report.findings += [dataclasses.replace(f, split=split) for f in found]
    if report.facts:
        report.findings += repeated_pictures({s: (report.splits[s], f) for s, f in report.facts.items()})
    report.findings += _unlisted(report.splits)
    return report


def _step(progress: Callable[[str, int, int], None], split: str, total: int) -> Callable[[int], None]:
    return lambda number: progress(split, number, total)


def _empty_classes(annotations: Annotations, split: str) -> list[Finding]:
    if split != "train":
        return []
    counts = np.bincount(annotations.labels, minlength=len(annotations.names))
    empty = [name for name, count in zip(annotations.names, counts) if not count]
    return [Finding("category-empty", annotations.file, repr(name)) for name in empty]


def _corners_for_sizes(annotations: Annotations) -> list[Finding]:
    """COCO boxes that hold right and bottom where width and height belong: the commonest mistake of all."""
    owner = annotations.images_of_rows()
    limits = np.stack((annotations.widths[owner], annotations.heights[owner]), 1)
    boxes = annotations.boxes
    usable = np.isfinite(boxes).all(1) & (limits > 0).all(1)
    beyond = (boxes[:, :2] + boxes[:, 2:] > limits + 1).any(1) & usable
    as_corners = (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes[:, 2:] <= limits + 1).all(1)
    if annotations.format == "coco" and usable.any() and beyond.mean() > 0.2 and bool((as_corners | ~usable).all()):
        share = f"{beyond.mean():.0%} of the boxes reach beyond their image, none if read as corners"
        return [Finding("box-corners", annotations.file, share)]
    return []


def _unlisted(splits: dict[str, Annotations]) -> list[Finding]:
    """Images and annotation files that lie there and are used by no split."""
    findings = []
    used: dict[Path, set[str]] = {}
    for part in splits.values():
        for image in range(len(part)):
            path = part.path(image)
            used.setdefault(path.parent, set()).add(path.name)
    for folder, names in used.items():
        if folder.is_dir():
            left = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name not in names)
            if left:
                findings.append(Finding("file-unlisted", str(folder), _few(left), count=len(left)))
    listed: dict[Path, set[str]] = {}
    for part in splits.values():
        if part.format == "voc" and part.sources is not None:
            for source in map(Path, part.sources):
                listed.setdefault(source.parent, set()).add(source.stem)
    for folder, stems in listed.items():
        every = {stem for name in voc.splits(folder.parent) for stem in voc.stems_of(folder.parent, name)}
        left = sorted(p.name for p in folder.glob("*.xml") if p.stem not in stems | every)
        if left:
            findings.append(Finding("annotation-unlisted", str(folder), _few(left), count=len(left)))
    return findings


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")


def statistics(annotations: Annotations) -> dict[str, Any]:
    """Counts by class, objects per image, and box sizes of one split."""
    counts = np.bincount(annotations.labels, minlength=len(annotations.names))
    per_image = np.diff(annotations.offsets)
    side = np.sqrt(np.abs(annotations.boxes[:, 2:].prod(1)))
    side = side[np.isfinite(side)]
    return {
        "images": len(annotations),
        "objects": annotations.num_objects,
        "crowds": int(annotations.crowd.sum()),
        "classes": [
            {"label": label, "name": name, "source_id": id, "objects": int(count)}
            for label, (name, id, count) in enumerate(zip(annotations.names, annotations.category_ids, counts))
        ],
        "objects_per_image": {"mean": float(per_image.mean()), "max": int(per_image.max())} if len(per_image) else {},
        "box_side_px": dict(zip(("p1", "median", "p99"), np.percentile(side, (1, 50, 99)).tolist()))
        if len(side)
        else {},
    }
