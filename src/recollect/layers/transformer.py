"""Transformer blocks shared by query-based detectors, all post-norm: norm(x + block(x)).

The two folds of the group axis are written here: queries talk among themselves within a group ([B * G, N, C]), and
all groups read the image together ([B, G * N, C]), so that the image's keys and values are computed once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor, nn

from recollect.layers.position import padding_at, sine_position_2d


def mlp(channels: int, hidden: int, out: int, layers: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    widths = [channels, *[hidden] * (layers - 1), out]
    blocks: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        blocks += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*blocks[:-1])


def xavier_(module: nn.Module) -> None:
    """Xavier uniform for every matrix in a module; vectors stay as they are."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class FeedForward(nn.Module):
    """Two linear layers. forward: [..., C] -> [..., C], residual and norm included."""

    def __init__(self, channels: int, hidden: int, dropout: float = 0.0, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.activation = activation or nn.ReLU()
        self.linear2 = nn.Linear(hidden, channels)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to every position alike."""
        hidden = self.dropout(self.activation(self.linear1(x)))
        return self.norm(x + self.dropout(self.linear2(hidden)))


class GroupSelfAttention(nn.Module):
    """Self-attention among the queries of each group; groups do not see each other."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)

    def forward(self, content: Tensor, position: Tensor | None = None) -> Tensor:
        """[B, G, N, C], and what is added to queries and keys, broadcast to that shape -> [B, G, N, C]."""
        placed = content if position is None else content + position
        folded = placed.flatten(0, 1)
        attended, _ = self.attention(folded, folded, content.flatten(0, 1), need_weights=False)
        return self.norm(content + self.dropout(attended.view_as(content)))


class ImageCrossAttention(nn.Module):
    """Dense attention of the queries of all groups to the cells of an image."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)

    def forward(self, content: Tensor, position: Tensor, image: EncodedImage) -> Tensor:
        """[B, G, N, C], and what is added to the queries, broadcast to that shape -> [B, G, N, C]."""
        queries = (content + position).flatten(1, 2)
        keys = image.cells + image.position
        attended, _ = self.attention(queries, keys, image.cells, key_padding_mask=image.padding, need_weights=False)
        return self.norm(content + self.dropout(attended.view_as(content)))


class EncoderLayer(nn.Module):
    """DETR's encoder layer: dense self-attention of the cells of an image, then feed-forward."""

    def __init__(
        self,
        channels: int,
        heads: int,
        hidden: int,
        dropout: float = 0.0,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)
        self.feedforward = FeedForward(channels, hidden, dropout, activation)

    def forward(self, cells: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        """[B, S, C], positions of the same shape, padding [B, S] -> [B, S, C]."""
        placed = cells + position
        attended, _ = self.attention(placed, placed, cells, key_padding_mask=padding, need_weights=False)
        return self.feedforward(self.norm(cells + self.dropout(attended)))


@dataclass(frozen=True)
class EncodedImage:
    """One feature map as a sequence: cells and their positions [B, S, C], padding [B, S], True where padded."""

    cells: Tensor
    position: Tensor
    padding: Tensor


class ImageEncoder(nn.Module):
    """DETR's encoder: one map projected to `channels`, sine positions, dense self-attention over its cells.

    temperature: of the sine positions. scale_position: multiply positions by a function of the content before every
    layer (Conditional DETR, DAB-DETR). prelu: learned slope in the feed-forwards, else ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        layers: int,
        heads: int,
        hidden: int,
        dropout: float = 0.0,
        *,
        temperature: float = 10000.0,
        scale_position: bool = False,
        prelu: bool = False,
    ) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, channels, 1)
        self.layers = nn.ModuleList(
            EncoderLayer(channels, heads, hidden, dropout, nn.PReLU() if prelu else None) for _ in range(layers)
        )
        self.position_scale = mlp(channels, channels, channels, 2) if scale_position else None
        self.temperature = temperature
        xavier_(self.layers)
        if self.position_scale is not None:
            xavier_(self.position_scale)

    def forward(self, feature: Tensor, padding: Tensor) -> EncodedImage:
        """A map [B, C', H', W'] and the images' padding mask [B, H, W]."""
        mask = padding_at(padding, feature.shape[-2:])
        cells = self.project(feature).flatten(2).transpose(1, 2)
        position = sine_position_2d(mask, cells.shape[-1], cells.dtype, self.temperature).flatten(1, 2)
        padded = mask.flatten(1)
        for layer in self.layers:
            scaled = position if self.position_scale is None else position * self.position_scale(cells)
            cells = layer(cells, scaled, padded)
        return EncodedImage(cells, position, padded)
