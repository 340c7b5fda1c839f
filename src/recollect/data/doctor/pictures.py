"""What the image files themselves say: read every one once, whole, and keep a few bytes about it."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from recollect.data.annotations import Annotations
from recollect.data.findings import Finding
from recollect.data.images import PILLOW_FAULTS, brief, orientation, to_rgb, upright

THUMBNAIL = (17, 16)  # width, height of the grey picture that stands for the image in comparisons
NEAR_BITS = 16  # of 256: pictures whose difference hashes are closer than this are nearly the same
SAME_LEVELS = 3.0  # and if their thumbnails also differ by less than this many grey levels on average, the same
FLAT = 4.0  # a picture with less contrast than this, in grey levels, has no hash worth comparing
MODES = {"L": "mode-grey", "1": "mode-grey", "P": "mode-palette", "PA": "mode-palette", "CMYK": "mode-cmyk"}
MODES |= {"LA": "mode-alpha", "La": "mode-alpha", "RGBA": "mode-alpha", "RGBa": "mode-alpha", "F": "mode-float"}
MODES |= {"I": "mode-float"}


@dataclass(frozen=True)
class Facts:
    """About one image file.

    fault: the kind of finding that keeps it from being read, or "". size: (h, w) upright; stored: (h, w) as in
    the file. digest: of the bytes. thumbnail [16, 17] uint8 grey, upright.
    """

    fault: str = ""
    message: str = ""
    size: tuple[int, int] = (0, 0)
    stored: tuple[int, int] = (0, 0)
    orientation: int = 1
    mode: str = ""
    frames: int = 1
    digest: bytes = b""
    thumbnail: bytes = b""


def look_at(path: Path) -> Facts:
    """Read an image file to its end. Never raises."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Facts("file-missing")
    except (OSError, ValueError) as error:
        return Facts("file-unreadable", str(error))
    if not data:
        return Facts("file-empty")
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PillowImage.open(io.BytesIO(data)) as image:
                width, height = image.size
                turned, mode, frames = orientation(image), image.mode, int(getattr(image, "n_frames", 1))
                if image.format == "PNG" and data[24] == 16:
                    mode = "I;16"  # Pillow reads 16-bit colour as 8-bit, and says so nowhere
                elif mode == "P" and "transparency" in image.info:
                    mode = "PA"
                image.draft("RGB", (THUMBNAIL[0] * 4, THUMBNAIL[1] * 4))  # a JPEG is still read to its end
                image.load()
                small = upright(to_rgb(image)).resize(THUMBNAIL, PillowImage.Resampling.BOX).convert("L")
    except PILLOW_FAULTS as error:
        fault = "file-truncated" if "truncated" in str(error) else "file-unreadable"
        return Facts(fault, brief(error), digest=digest)
    size = (width, height) if turned >= 5 else (height, width)
    return Facts("", "", size, (height, width), turned, mode, frames, digest, small.tobytes())


def look_at_all(paths: Sequence[Path], workers: int, progress: Callable[[int], None] | None = None) -> list[Facts]:
    """Facts of every file, in order. Threads suffice: decoding does not hold Python's lock."""
    facts = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for number, fact in enumerate(pool.map(look_at, paths), 1):
            facts.append(fact)
            if progress is not None:
                progress(number)
    return facts


def file_findings(annotations: Annotations, facts: Sequence[Facts], split: str) -> list[Finding]:
    """What is wrong with the files, or worth knowing."""
    findings = []
    for image, fact in enumerate(facts):

        def found(kind: str, value: str = "", image: int = image) -> Finding:
            return Finding(kind, str(annotations.path(image)), value, image=image, split=split)

        if fact.fault:
            findings.append(found(fact.fault, fact.message or f"listed in {annotations.source(image)}"))
            continue
        declared = int(annotations.heights[image]), int(annotations.widths[image])
        known = min(declared) > 0
        if fact.orientation != 1:
            value = f"orientation {fact.orientation}, stored as {fact.stored[1]}x{fact.stored[0]}"
            unrotated = known and declared == fact.stored != fact.size
            findings.append(found("exif-unrotated-boxes" if unrotated else "exif-rotated", value))
        if known and declared not in (fact.size, fact.stored):
            value = f"declared {declared[1]}x{declared[0]} in {annotations.source(image)}"
            findings.append(found("size-wrong", f"{value}, read {fact.size[1]}x{fact.size[0]}"))
        elif known and fact.orientation == 1 and declared != fact.size:
            raise AssertionError("stored and upright sizes agree without a rotation")
        if fact.frames > 1:
            findings.append(found("file-animated", f"{fact.frames} frames"))
        kind = "mode-16-bit" if fact.mode.startswith("I;16") else MODES.get(fact.mode)
        if kind:
            findings.append(found(kind, f"mode {fact.mode}"))
    return findings


def repeated_pictures(splits: dict[str, tuple[Annotations, list[Facts]]]) -> list[Finding]:
    """The same picture twice in a split, or in train and another split: by bytes, else by what is seen.

    Compares 16x16-bit difference hashes of all pairs by matrix products: 118,000 images take minutes, 10,000 a second.
    """
    places = [(s, i) for s, (_, facts) in splits.items() for i, f in enumerate(facts) if not f.fault]
    facts = [splits[split][1][image] for split, image in places]
    findings = []
    first: dict[bytes, int] = {}
    twin = np.zeros(len(places), dtype=bool)  # has the bytes of an earlier one
    for number, fact in enumerate(facts):
        other = first.setdefault(fact.digest, number)
        if other != number:
            twin[number] = True
            findings.append(_pair(splits, places, other, number, same=True, remark="identical files"))
    grey = np.frombuffer(b"".join(f.thumbnail for f in facts), np.uint8).reshape(-1, THUMBNAIL[1], THUMBNAIL[0])
    grey = grey.astype(np.float32)
    signs = np.where(grey[:, :, 1:] > grey[:, :, :-1], 1, -1).reshape(len(grey), -1).astype(np.float32)
    usable = np.flatnonzero(~twin & (grey.reshape(len(grey), -1).std(1) >= FLAT)) if len(grey) else np.zeros(0, int)
    block = 1024
    for start in range(0, len(usable), block):
        rows = usable[start : start + block]
        columns = usable[start:]
        distance = (256 - signs[rows] @ signs[columns].T) / 2
        for a, b in zip(*np.nonzero(distance < NEAR_BITS)):
            if b <= a:
                continue
            one, two = int(rows[a]), int(columns[b])
            levels = float(np.abs(grey[one] - grey[two]).mean())
            same = levels < SAME_LEVELS and float(distance[a, b]) < NEAR_BITS / 2
            remark = f"hashes differ in {int(distance[a, b])} of 256 bits, thumbnails by {levels:.1f} grey levels"
            findings.append(_pair(splits, places, one, two, same=same, remark=remark))
    return findings


def _pair(
    splits: dict[str, tuple[Annotations, list[Facts]]],
    places: list[tuple[str, int]],
    one: int,
    two: int,
    *,
    same: bool,
    remark: str,
) -> Finding:
    """A finding about the later of two pictures; about the one in train, if the other is held out."""
    if places[one][0] == places[two][0] or places[two][0] == "train":
        one, two = two, one
    (split, image), (other_split, other_image) = places[one], places[two]
    if split == other_split:
        kind = "image-twice" if same else "image-near-twice"
    else:
        kind = "image-in-both" if same else "image-near-in-both"
    file, other = splits[split][0].path(image), splits[other_split][0].path(other_image)
    return Finding(kind, str(file), f"and {other} ({other_split}): {remark}", image=image, split=split)
