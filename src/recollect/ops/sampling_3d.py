"""AdaMixer's adaptive 3-D sampling (Gao et al., CVPR 2022, section 3.2): bilinear in the plane, soft over levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def level_weights(z: Tensor, strides: Sequence[int], tau: float = 2.0) -> Tensor:
    """Soft choice of a pyramid level: softmax over levels l of -(z - log2 stride_l)^2 / tau. [...] -> [..., L]."""
    levels = torch.tensor(strides, dtype=z.dtype, device=z.device).log2()
    return torch.softmax(-((z.unsqueeze(-1) - levels) ** 2) / tau, dim=-1)


def sample_3d(features: Sequence[Tensor], points: Tensor, strides: Sequence[int], tau: float = 2.0) -> Tensor:
    """Read features at 3-D points.

    features: one [B, C, H_l, W_l] map per level, each split into M channel groups.
    points: [B, Q, M, P, 3] as x, y in pixels of the padded image and z = log2 of a scale in pixels.
    Returns [B, Q, M, P, C / M]. Points outside read zeros.
    """
    batch, queries, groups, num_points, _ = points.shape
    weights = level_weights(points[..., 2], strides, tau)  # [B, Q, M, P, L]
    weights = weights.permute(4, 0, 2, 1, 3).reshape(len(strides), batch * groups, 1, queries, num_points)
    plane = points[..., :2].transpose(1, 2).reshape(batch * groups, queries, num_points, 2)
    sampled = 0
    for feature, stride, weight in zip(features, strides, weights):
        _, channels, height, width = feature.shape
        size = torch.tensor([width * stride, height * stride], dtype=plane.dtype, device=plane.device)
        maps = feature.reshape(batch * groups, channels // groups, height, width)
        grid = (plane / size * 2 - 1).to(maps.dtype)
        read = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        sampled = sampled + read * weight.to(read.dtype)
    assert isinstance(sampled, Tensor)
    # [B * M, C / M, Q, P] -> [B, Q, M, P, C / M]
    return sampled.view(batch, groups, -1, queries, num_points).permute(0, 3, 1, 4, 2)
