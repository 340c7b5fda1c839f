"""`recollect predict`: find objects in images."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import track

from recollect.registry import model_entry

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Arguments:
    """Find objects in images: `recollect predict runs/birds photo.jpg --draw out/`."""

    run: tyro.conf.Positional[Path]
    """Run folder or weights file."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Images, or folders of images."""
    draw: Path | None = None
    """Folder for copies of the images with what was found."""
    json: Path | None = None
    """File for what was found: one object per image."""
    threshold: float = 0.3
    """Only detections with at least this score."""
    proposals: Path | None = None
    """File for all boxes of every image whatever their score, for Fast R-CNN: run must be an RPN's."""
    batch: int = 1
    """Images per pass."""
    device: str | None = None
    """cpu, cuda, cuda:1; by default a GPU if there is one."""


def run(arguments: Arguments) -> int:
    """Predict, print a line per image, write what was asked for."""
    from recollect.api import load
    from recollect.data import write_proposals

    files = find_images(arguments.images)
    if not 0 <= arguments.threshold <= 1:
        raise ValueError(f"--threshold {arguments.threshold}: scores lie between 0 and 1")
    detector = load(arguments.run, arguments.device)
    console = Console(highlight=False)
    if arguments.draw is not None:
        arguments.draw.mkdir(parents=True, exist_ok=True)
    targets = drawing_names(files)
    records, proposals = [], {}
    if arguments.proposals is not None:
        check_proposals(detector.card["model"], files)
    least = arguments.threshold if arguments.proposals is None else 0.0
    found = detector.stream(files, least, batch=arguments.batch)
    bar = Console(stderr=True)
    for file, detections in zip(files, track(found, "predicting", len(files), console=bar, disable=len(files) < 2)):
        if arguments.proposals is not None:
            proposals[file.name] = (detections.boxes, detections.scores)
            detections = detections.filter(arguments.threshold)
        kinds = Counter(detections.names)
        what = ", ".join(f"{count} {name}" for name, count in kinds.most_common()) or "nothing"
        console.print(f"{file}: {what}", markup=False, soft_wrap=True)
        if arguments.draw is not None:
            detections.draw().save(arguments.draw / targets[file])
        if arguments.json is not None:
            records.append(detections.to_json())
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    if arguments.proposals is not None:
        write_proposals(arguments.proposals, proposals)
    return 0


def check_proposals(model: str, files: list[Path]) -> None:
    """Proposals are stored by file name and come from an RPN; ValueError if either cannot be."""
    if model_entry(model).family != "RPN":
        raise ValueError(f"--proposals: {model} makes no proposals; train rpn_r50_fpn or another RPN for them")
    counts = Counter(file.name for file in files)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"--proposals: two images are named {twice[0]}, but proposals are stored by file name")


def find_images(places: tuple[Path, ...]) -> list[Path]:
    """The image files named, and those in folders, sorted; ValueError for a place that holds none."""
    files: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise ValueError(f"{place}: there is no image in this folder ({', '.join(sorted(SUFFIXES))})")
            files += inside
        elif place.is_file():
            files.append(place)
        else:
            raise ValueError(f"{place}: there is no such file or folder")
    return files


def drawing_names(files: list[Path]) -> dict[Path, str]:
    """Name of the picture drawn for each file: its own as JPEG, numbered where two files share one."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        name, number = f"{file.stem}.jpg", 1
        while name in taken and file not in names:
            number += 1
            name = f"{file.stem}_{number}.jpg"
        names.setdefault(file, name)
        taken.add(name)
    return names
