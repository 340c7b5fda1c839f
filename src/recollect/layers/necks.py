"""Necks: from backbone features to the maps a head or decoder reads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class SharedNormChannelMapper(nn.Module):
    """AdaMixer's neck: a 1x1 convolution per level, then one group norm shared by all levels. No top-down path.

    in_channels: per level. forward: [B, C_l, H_l, W_l] per level -> [B, channels, H_l, W_l].
    """

    def __init__(self, in_channels: Sequence[int], channels: int, norm_groups: int = 32) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.norm = nn.GroupNorm(norm_groups, channels)
        for conv in self.convs:
            nn.init.xavier_uniform_(conv.weight)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map every level to the same number of channels."""
        return [self.norm(conv(feature)) for conv, feature in zip(self.convs, features)]
