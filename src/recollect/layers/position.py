"""Sine encodings of positions, as DETR and its successors use them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sine_encoding(values: Tensor, channels: int, temperature: float = 10000.0) -> Tensor:
    """[...] -> [..., channels]: sine and cosine of 2 pi times the value at growing wavelengths, interleaved."""
    index = torch.arange(channels, dtype=values.dtype, device=values.device)
    wavelength = temperature ** (2 * (index // 2) / channels)
    angle = (values * 2 * math.pi).unsqueeze(-1) / wavelength
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2)


def sine_position_2d(
    padding: Tensor, channels: int, dtype: torch.dtype, temperature: float = 10000.0, offset: float = 0.0
) -> Tensor:
    """Position of every cell, in fractions of the unpadded map, half the channels for y and half for x.

    padding: [B, H, W], True where padded. offset: -0.5 takes the middle of a cell, 0 (DETR's) its far end.
    Returns [B, H, W, channels] in `dtype`.
    """
    inside = (~padding).to(torch.promote_types(dtype, torch.float32))  # bf16 cannot count cells
    y, x = inside.cumsum(1), inside.cumsum(2)
    y = (y + offset) / (y[:, -1:] + 1e-6)
    x = (x + offset) / (x[:, :, -1:] + 1e-6)
    encoded = [sine_encoding(part, channels // 2, temperature) for part in (y, x)]
    return torch.cat(encoded, -1).to(dtype)


def padding_at(padding: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """The images' padding mask [B, H, W] at a feature map's (height, width), nearest neighbour."""
    return F.interpolate(padding[None].float(), size=tuple(size))[0].bool()
