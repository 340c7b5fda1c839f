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


class ChannelMapper(nn.Module):
    """Deformable DETR's neck: 1x1 convolution and group norm per level, then coarser levels by 3x3 with stride 2.

    in_channels: per level. extra: coarser levels, the first made from the last level's features.
    bias: of the convolutions; the original code has one, MMDetection's has none.
    forward: [B, C_l, H_l, W_l] per level -> [B, channels, H_l, W_l] per level and extra level.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, extra: int = 1, norm_groups: int = 32, bias: bool = False
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, channels, 1, bias=bias) for c in in_channels)
        coarser = [in_channels[-1], *[channels] * extra][:extra]
        self.extra_convs = nn.ModuleList(nn.Conv2d(c, channels, 3, 2, 1, bias=bias) for c in coarser)
        self.norms = nn.ModuleList(nn.GroupNorm(norm_groups, channels) for _ in in_channels)
        self.extra_norms = nn.ModuleList(nn.GroupNorm(norm_groups, channels) for _ in coarser)
        for conv in [*self.convs, *self.extra_convs]:
            nn.init.xavier_uniform_(conv.weight)  # type: ignore[arg-type]
            if bias:
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map every level to the same number of channels and add the coarser ones."""
        maps = [norm(conv(feature)) for conv, norm, feature in zip(self.convs, self.norms, features)]
        coarse = features[-1]
        for conv, norm in zip(self.extra_convs, self.extra_norms):
            coarse = norm(conv(coarse))
            maps.append(coarse)
        return maps
