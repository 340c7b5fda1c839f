"""Multi-scale deformable attention and its encoder (Zhu et al., ICLR 2021, arXiv 2010.04159, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recollect.layers.position import padding_at, sine_position_2d
from recollect.layers.transformer import FeedForward, xavier_
from recollect.ops.deformable_attention import deformable_attention


@dataclass(frozen=True)
class Pyramid:
    """Feature maps of several levels as one sequence of cells.

    cells: [B, S, C]. shapes: (height, width) per level. padding: [B, S], True where padded.
    valid: [B, L, 4], the part of each map that is image, as width, height, width, height.
    """

    cells: Tensor
    shapes: list[tuple[int, int]]
    padding: Tensor
    valid: Tensor

    def centres(self) -> tuple[Tensor, Tensor]:
        """Every cell's centre x, y in fractions of the unpadded image [B, S, 2], and its level [S]."""
        centres, levels, like = [], [], self.valid
        for level, (h, w) in enumerate(self.shapes):
            y = (torch.arange(h, dtype=like.dtype, device=like.device) + 0.5) / h
            x = (torch.arange(w, dtype=like.dtype, device=like.device) + 0.5) / w
            centres.append(torch.stack((x.repeat(h), y.repeat_interleave(w)), -1))
            levels.append(torch.full((h * w,), level, device=like.device))
        of_cell = torch.cat(levels)
        return torch.cat(centres) / self.valid[:, of_cell, :2], of_cell


class DeformableAttention(nn.Module):
    """Every query reads `points` places on each of `levels` maps, around its reference.

    forward: queries [B, Q, C], references [B, Q, 4] -> [B, Q, C]. A reference is cxcywh in fractions of the unpadded
    image; offsets are in cells if its size is zero (a point), else in fractions of half its size. Padded cells are
    read as zero. The image's cells are projected to values once, however many queries there are.
    """

    def __init__(self, channels: int, heads: int = 8, levels: int = 4, points: int = 4) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """At first head h looks along the angle 2 pi h / heads, its points 1, 2, ... cells away, all alike."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.points + 1)
        offsets = (direction[:, None] * distance[:, None]).unsqueeze(1)  # [H, 1, P, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        for zero in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(zero)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, references: Tensor, image: Pyramid) -> Tensor:
        """Read the image; see the class."""
        batch, count, _ = queries.shape
        layout = (batch, count, self.heads, self.levels, self.points)
        values = self.value_proj(image.cells).masked_fill(image.padding.unsqueeze(-1), 0.0)
        weights = self.attention_weights(queries).view(*layout[:3], -1).softmax(-1).view(layout)
        locations = self.sampling_points(queries, references, image)
        read = deformable_attention(values.unflatten(-1, (self.heads, -1)), image.shapes, locations, weights)
        return self.output_proj(read)

    def sampling_points(self, queries: Tensor, references: Tensor, image: Pyramid) -> Tensor:
        """Where it reads: [B, Q, H, L, P, 2] x, y in fractions of the padded map of each level."""
        layout = (*queries.shape[:2], self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(queries).view(*layout, 2).to(references.dtype)
        references = references.unsqueeze(2) * image.valid.unsqueeze(1)  # [B, Q, L, 4], in fractions of the padded map
        centre, size = references.split(2, -1)
        cell = torch.tensor([(1 / w, 1 / h) for h, w in image.shapes], dtype=size.dtype, device=size.device)
        unit = torch.where(size > 0, size * (0.5 / self.points), cell)
        return centre[:, :, None, :, None] + offsets * unit[:, :, None, :, None]


class DeformableEncoderLayer(nn.Module):
    """Every cell of every level reads `points` places on all levels; then feed-forward."""

    def __init__(self, channels: int, heads: int, hidden: int, levels: int, points: int, dropout: float) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, heads, levels, points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)
        self.feedforward = FeedForward(channels, hidden, dropout)
        xavier_(self.feedforward)

    def forward(self, image: Pyramid, position: Tensor, references: Tensor) -> Pyramid:
        """Positions [B, S, C] and references [B, S, 4] of the cells -> the image with new cells."""
        read = self.attention(image.cells + position, references, image)
        return replace(image, cells=self.feedforward(self.norm(image.cells + self.dropout(read))))


class DeformableEncoder(nn.Module):
    """Cells of all levels attend to cells of all levels. A learned vector tells levels apart."""

    def __init__(
        self, channels: int, layers: int, heads: int, hidden: int, levels: int, points: int, dropout: float
    ) -> None:
        super().__init__()
        self.level_embedding = nn.Parameter(torch.randn(levels, channels))
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(channels, heads, hidden, levels, points, dropout) for _ in range(layers)
        )

    def forward(self, maps: Sequence[Tensor], padding: Tensor) -> Pyramid:
        """Maps [B, C, H_l, W_l] and the images' padding mask [B, H, W] -> the encoded image."""
        dtype = torch.promote_types(maps[0].dtype, torch.float32)
        shapes = [(m.shape[-2], m.shape[-1]) for m in maps]
        masks = [padding_at(padding, shape) for shape in shapes]
        filled = [torch.stack(((~m[:, 0]).to(dtype).mean(1), (~m[:, :, 0]).to(dtype).mean(1)), -1) for m in masks]
        image = Pyramid(
            cells=torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1),
            shapes=shapes,
            padding=torch.cat([m.flatten(1) for m in masks], 1),
            valid=torch.stack(filled, 1).repeat(1, 1, 2),
        )
        channels = image.cells.shape[-1]
        sines = [sine_position_2d(m, channels, image.cells.dtype, offset=-0.5).flatten(1, 2) for m in masks]
        centres, level = image.centres()
        position = torch.cat(sines, 1) + self.level_embedding[level]
        references = F.pad(centres, (0, 2))  # points
        for layer in self.layers:
            image = layer(image, position, references)
        return image
