"""Anchors and points on the cells of feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recollect.structures import Priors

Stride = int | tuple[int, int]
"""Pixels per cell; (horizontal, vertical) where they differ."""


class AnchorGenerator:
    """The same anchors on every cell of a level.

    cells: per level [A, 4] xyxy, relative to the cell's upper left corner. strides: per level.
    Cells stand row by row, the anchors of a cell together: prior (y * W + x) * A + a.
    """

    def __init__(self, cells: Sequence[Tensor], strides: Sequence[Stride]) -> None:
        if len(cells) != len(strides):
            raise ValueError(f"{len(cells)} levels of anchors but {len(strides)} strides")
        self.cells = [c.to(torch.float64) for c in cells]
        self.strides = [s if isinstance(s, tuple) else (s, s) for s in strides]
        self._cache: dict[tuple, Priors] = {}

    @property
    def per_cell(self) -> list[int]:
        """Anchors in a cell of each level."""
        return [len(c) for c in self.cells]

    @staticmethod
    def scaled(
        strides: Sequence[Stride],
        scales: Sequence[float],
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        *,
        scale_major: bool = True,
        centre: float = 0.0,
    ) -> AnchorGenerator:
        """Squares of side stride * scale (the smaller stride of two), at every height / width ratio of equal area.

        scale_major: all scales of the first ratio first; else all ratios of the first scale.
        centre: of the anchors within their cell, 0 its corner, 0.5 its middle.
        """
        cells = []
        for stride in strides:
            width, height = stride if isinstance(stride, tuple) else (stride, stride)
            middle = (centre * width, centre * height)
            cells.append(_shapes(min(width, height), scales, ratios, scale_major, middle))
        return AnchorGenerator(cells, strides)

    @staticmethod
    def retina(
        strides: Sequence[Stride] = (8, 16, 32, 64, 128),
        base: float = 4,
        per_octave: int = 3,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
    ) -> AnchorGenerator:
        """RetinaNet's: sides stride * base * 2^(i / per_octave)."""
        return AnchorGenerator.scaled(strides, [base * 2 ** (i / per_octave) for i in range(per_octave)], ratios)

    @staticmethod
    def of_sizes(
        strides: Sequence[Stride], sizes: Sequence[Sequence[float]], ratios: Sequence[float], rounded: bool = False
    ) -> AnchorGenerator:
        """Sides in pixels, given per level; `rounded` to whole pixels as torchvision does."""
        cells = [_shapes(1, level, ratios, True, (0.0, 0.0)) for level in sizes]
        return AnchorGenerator([c.round() for c in cells] if rounded else cells, strides)

    @staticmethod
    def explicit(
        strides: Sequence[Stride], sizes: Sequence[Sequence[tuple[float, float]]], centre: float = 0.5
    ) -> AnchorGenerator:
        """(width, height) of every anchor of every level, as in YOLO."""
        cells = []
        for stride, level in zip(strides, sizes):
            width, height = stride if isinstance(stride, tuple) else (stride, stride)
            half = torch.tensor(level, dtype=torch.float64) / 2
            middle = torch.tensor([centre * width, centre * height], dtype=torch.float64)
            cells.append(torch.cat((middle - half, middle + half), 1))
        return AnchorGenerator(cells, strides)

    @staticmethod
    def ssd(strides: Sequence[Stride], sizes: Sequence[float], ratios: Sequence[Sequence[float]]) -> AnchorGenerator:
        """SSD's, in the middle of each cell: a square of sizes[l], one of sqrt(sizes[l] * sizes[l + 1]), then one of
        sizes[l] at every ratio r of the level as 1 / r and r. sizes: one more than levels."""
        cells = []
        for stride, size, larger, level in zip(strides, sizes, sizes[1:], ratios):
            width, height = stride if isinstance(stride, tuple) else (stride, stride)
            shapes = [1.0, *(value for r in level for value in (1 / r, r))]
            anchors = _shapes(size, (1.0, math.sqrt(larger / size)), shapes, False, (width / 2, height / 2))
            cells.append(anchors[[0, len(shapes), *range(1, len(shapes))]])
        return AnchorGenerator(cells, strides)

    def __call__(self, maps: Sequence[Tensor]) -> Priors:
        """Priors on maps [B, C, H_l, W_l] per level, in the maps' device and float32 (float64 for such maps)."""
        if len(maps) != len(self.cells):
            raise ValueError(f"anchors are defined for {len(self.cells)} levels, not {len(maps)}")
        dtype = torch.float64 if maps[0].dtype == torch.float64 else torch.float32
        sizes = tuple((int(m.shape[-2]), int(m.shape[-1])) for m in maps)
        key = (sizes, dtype, maps[0].device)
        if key not in self._cache:
            if len(self._cache) >= 32:  # multi-scale training sees many sizes
                self._cache.clear()
            self._cache[key] = self.grid(sizes, dtype, maps[0].device)
        return self._cache[key]

    def grid(self, sizes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device | str) -> Priors:
        """Priors on maps of (height, width) `sizes`."""
        boxes, strides, counts = [], [], []
        for cells, (step_x, step_y), (height, width) in zip(self.cells, self.strides, sizes):
            y, x = torch.meshgrid(
                torch.arange(height, dtype=torch.float64) * step_y,
                torch.arange(width, dtype=torch.float64) * step_x,
                indexing="ij",
            )
            corner = torch.stack((x, y, x, y), -1).view(-1, 1, 4)
            level = (corner + cells).view(-1, 4)
            boxes.append(level)
            strides.append(torch.full((len(level),), float(step_x), dtype=torch.float64))
            counts.append(len(level))
        return Priors(torch.cat(boxes).to(device, dtype), torch.cat(strides).to(device, dtype), tuple(counts))

    def inside(self, sizes: Sequence[tuple[int, int]], height: int, width: int) -> Tensor:
        """[N] bool: whether a prior's cell on maps of `sizes` begins within an image of height x width pixels.

        The rest lies in the padding that batch mates caused and takes no part in training.
        """
        valid = []
        for cells, (step_x, step_y), (rows, columns) in zip(self.cells, self.strides, sizes):
            y = torch.arange(rows) * step_y < height
            x = torch.arange(columns) * step_x < width
            valid.append((y[:, None] & x).flatten().repeat_interleave(len(cells)))
        return torch.cat(valid)


class PointGenerator(AnchorGenerator):
    """One point per cell, `offset` strides from its corner; as a prior it is the square of one stride around it."""

    def __init__(self, strides: Sequence[int], offset: float = 0.5) -> None:
        cells = [torch.tensor([[offset - 0.5, offset - 0.5, offset + 0.5, offset + 0.5]]) * s for s in strides]
        super().__init__(cells, strides)


def _shapes(
    side: float,
    scales: Sequence[float],
    ratios: Sequence[float],
    scale_major: bool,
    centre: tuple[float, float],
) -> Tensor:
    """[A, 4] xyxy around `centre`: squares of `side` times every scale, at every height / width ratio."""
    scale, ratio = torch.tensor(scales, dtype=torch.float64), torch.tensor(ratios, dtype=torch.float64).sqrt()
    if scale_major:
        w, h = (scale / ratio[:, None]).flatten() * side, (scale * ratio[:, None]).flatten() * side
    else:
        w, h = (scale[:, None] / ratio).flatten() * side, (scale[:, None] * ratio).flatten() * side
    x, y = centre
    return torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), 1)
