"""Masks as they stand in the file (polygons, run lengths), packed into one buffer and decoded only when asked for."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco.mask  # pyright: ignore[reportMissingModuleSource]
import numpy as np

NONE, POLYGONS, RUNS, COMPRESSED = 0, 1, 2, 3


@dataclass(frozen=True)
class Segmentations:
    """T encoded masks.

    kinds [T]: NONE, POLYGONS (float32 x, y, rings parted by a NaN), RUNS (int32 lengths, column by column, starting
    with background) or COMPRESSED (COCO's string of the same). offsets [T + 1] into buffer, in bytes.
    sizes [T, 2]: height and width that run lengths were written for; 0 for polygons.
    """

    kinds: np.ndarray
    offsets: np.ndarray
    buffer: np.ndarray
    sizes: np.ndarray

    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        return self.kinds.nbytes + self.offsets.nbytes + self.buffer.nbytes + self.sizes.nbytes

    def select(self, rows: np.ndarray) -> Segmentations:
        """Those rows, in that order."""
        if len(rows) == len(self.kinds) and bool((rows == np.arange(len(rows))).all()):
            return self
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        buffer = np.empty(int(offsets[-1]), np.uint8)
        for row, start, end in zip(rows, offsets[:-1], offsets[1:]):
            buffer[start:end] = self.buffer[self.offsets[row] : self.offsets[row + 1]]
        return Segmentations(self.kinds[rows], offsets, buffer, self.sizes[rows])

    @staticmethod
    def cat(parts: Sequence[Segmentations]) -> Segmentations:
        """All rows of all parts."""
        starts = np.cumsum([0, *(len(part.buffer) for part in parts)])
        offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts)]
        return Segmentations(
            np.concatenate([part.kinds for part in parts]),
            np.concatenate([*offsets, starts[-1:]]),
            np.concatenate([part.buffer for part in parts]),
            np.concatenate([part.sizes for part in parts]),
        )

    def without(self, rows: list[int]) -> Segmentations:
        """The same, but those rows have no mask."""
        kinds = self.kinds.copy()
        kinds[rows] = NONE
        return Segmentations(kinds, self.offsets, self.buffer, self.sizes)

    def coco(self, row: int) -> Any:
        """As COCO JSON writes it: a list of polygons, a dict of run lengths, or None.

        Coordinates are stored as float32 and given as the shortest decimal number that means the same float32, so
        values of up to seven digits come back exactly as they were written.
        """
        payload = self.buffer[self.offsets[row] : self.offsets[row + 1]]
        kind = self.kinds[row]
        if kind == POLYGONS:
            flat = np.frombuffer(payload.tobytes(), np.float32)
            exact = flat.astype(str).astype(np.float64)
            rings = np.split(exact, np.flatnonzero(np.isnan(flat)))
            return [rings[0].tolist(), *(ring[1:].tolist() for ring in rings[1:])]
        size = self.sizes[row].tolist()
        if kind == RUNS:
            return {"size": size, "counts": np.frombuffer(payload.tobytes(), np.int32).tolist()}
        if kind == COMPRESSED:
            return {"size": size, "counts": payload.tobytes().decode("ascii")}
        return None

    def decode(self, row: int, height: int, width: int) -> np.ndarray | None:
        """[height, width] bool, or None if the object has no mask. ValueError if it cannot be decoded."""
        return decode(self.coco(row), height, width)

    class Builder:
        """Packs masks one by one."""

        def __init__(self) -> None:
            self.kinds = bytearray()
            self.ends = array("q")
            self.payload = bytearray()
            self.sizes = array("i")

        def add(self, segmentation: Any) -> str:
            """Pack one; what is not understood is packed as none and described in the string returned."""
            kind, payload, size, fault = NONE, b"", (0, 0), ""
            try:
                if isinstance(segmentation, dict):
                    kind, payload, size = _pack_runs(segmentation)
                elif segmentation:
                    kind, payload = POLYGONS, _pack_polygons(segmentation)
            except (TypeError, ValueError, OverflowError, KeyError) as error:
                kind, fault = NONE, str(error) or "not understood"
            self.kinds.append(kind)
            self.payload += payload if kind else b""
            self.ends.append(len(self.payload))
            self.sizes.extend(size if kind else (0, 0))
            return fault

        def build(self) -> Segmentations:
            """The packed masks."""
            return Segmentations(
                np.frombuffer(bytes(self.kinds), np.uint8),
                np.concatenate(([0], np.array(self.ends, dtype=np.int64))),
                np.frombuffer(self.payload, np.uint8),
                np.array(self.sizes, dtype=np.int32).reshape(-1, 2),
            )


def decode(segmentation: Any, height: int, width: int) -> np.ndarray | None:
    """[height, width] bool from COCO's polygons or run lengths; ValueError if they cannot be decoded."""
    if segmentation is None:
        return None
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"the mask was written for {segmentation['size']}, the image has {[height, width]}")
        counts = segmentation["counts"]
        runs = _uncompress(counts) if isinstance(counts, str) else np.asarray(counts, dtype=np.int64)
        if (runs < 0).any() or int(runs.sum()) != height * width:
            raise ValueError(f"the run lengths cover {int(runs.sum())} pixels, the image has {height * width}")
        values = np.arange(len(runs)) % 2 == 1
        return np.repeat(values, runs).reshape(width, height).T
    # the painter of COCO works at five times the size: clip what lies far outside before it takes the memory for it
    rings = [np.clip(np.asarray(ring), -4.0 * (height + width), 4.0 * (height + width)) for ring in segmentation]
    parts = hotcoco.mask.frPyObjects([ring.tolist() for ring in rings], height, width)
    merged = hotcoco.mask.merge(parts) if isinstance(parts, list) else parts
    return hotcoco.mask.decode(merged).astype(bool)


def encode(mask: np.ndarray) -> dict[str, Any]:
    """[H, W] bool as uncompressed run lengths."""
    flat = np.ascontiguousarray(mask.T).reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], edges, [len(flat)]))).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if len(flat) and flat[0] else runs}


def _pack_polygons(rings: Any) -> bytes:
    if not isinstance(rings, (list, tuple)):
        raise ValueError(f"a segmentation is a list of polygons or run lengths, not {type(rings).__name__}")
    if not isinstance(rings[0], (list, tuple)):
        rings = [rings]  # a single flat polygon
    packed = array("f")
    for ring in rings:
        if len(ring) < 6 or len(ring) % 2:
            raise ValueError(f"a polygon needs x, y of three points or more, found {len(ring)} numbers")
        if packed:
            packed.append(float("nan"))
        points = array("f", ring)
        if not np.isfinite(np.frombuffer(points, np.float32)).all():
            raise ValueError("a polygon holds NaN or infinity")
        packed += points
    return packed.tobytes()


def _pack_runs(runs: dict[str, Any]) -> tuple[int, bytes, tuple[int, int]]:
    if "counts" not in runs or "size" not in runs:
        raise ValueError("run lengths need 'counts' and 'size'")
    height, width = (int(v) for v in runs["size"])
    if not (0 < height < 2**31 and 0 < width < 2**31):
        raise ValueError(f"the mask's size is {runs['size']}")
    counts = runs["counts"]
    if isinstance(counts, str):
        return COMPRESSED, counts.encode("ascii"), (height, width)
    return RUNS, array("i", counts).tobytes(), (height, width)


def _uncompress(text: str) -> np.ndarray:
    """COCO's string of run lengths: six bits a character from '0' on, the sixth says that more follow; from the third
    run on, the difference to the last run but one is written."""
    runs: list[int] = []
    value, shift = 0, 0
    for code in text.encode("ascii"):
        bits = code - 48
        if not 0 <= bits < 64:
            raise ValueError(f"the run-length string holds the character {chr(code)!r}")
        value |= (bits & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("a run length has too many digits")
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            if len(runs) > 2:
                value += runs[-2]
            runs.append(value)
            value, shift = 0, 0
    if shift:
        raise ValueError("the run-length string ends in the middle of a number")
    return np.array(runs, dtype=np.int64)
