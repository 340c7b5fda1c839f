"""Feature pyramid network (Lin et al. 2017, arXiv 1612.03144), with every way of adding coarser levels in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from recollect.layers.conv import Norm, conv_norm_act


class Resample(nn.Module):
    """Interpolate a map to a given (height, width). Any module of this signature may be an FPN's upsampler."""

    def __init__(self, mode: str = "nearest") -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, C, h, w] -> [B, C, *size]."""
        return F.interpolate(x, size=size, mode=self.mode)


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down path of sums, a 3x3 convolution per level, and extra coarser levels.

    in_channels: of the maps given, finest first (choose them by the backbone's `strides`).
    levels: maps that come out; those beyond the given ones are extra, each half the size of the one before:
    extra: "pool" takes every second cell of the last output (Faster R-CNN); else a 3x3 stride-2 convolution of the
        last input ("input", RetinaNet), of the last lateral ("lateral") or of the last output ("output", FCOS).
    relu_before_extra: ReLU before every extra convolution but the first.
    norm: after every convolution (then without bias); lateral_norm: also after the lateral ones.
    upsampler: makes the module that upsamples one level, called with (map, size); one per merge.

    forward: [B, C_l, H_l, W_l] per given map -> [B, channels, ...] per level.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        levels: int = 5,
        *,
        extra: Literal["pool", "input", "lateral", "output"] = "pool",
        relu_before_extra: bool = False,
        norm: Norm | None = None,
        lateral_norm: bool = True,
        upsampler: Callable[[], nn.Module] = Resample,
    ) -> None:
        super().__init__()
        if extra not in ("pool", "input", "lateral", "output"):
            raise ValueError(f"extra levels of an FPN come from 'pool', 'input', 'lateral' or 'output', not {extra!r}")
        given = len(in_channels)
        if levels < given:
            raise ValueError(f"an FPN over {given} maps cannot give only {levels} levels; choose fewer strides")
        self.in_channels, self.levels, self.extra = tuple(in_channels), levels, extra
        self.relu_before_extra = relu_before_extra
        lateral = norm if lateral_norm else None
        self.laterals = nn.ModuleList(
            conv_norm_act(c, channels, 1, norm=lateral, activation=False) for c in in_channels
        )
        self.outputs = nn.ModuleList(
            conv_norm_act(channels, channels, norm=norm, activation=False) for _ in in_channels
        )
        self.upsamplers = nn.ModuleList(upsampler() for _ in range(given - 1))
        extras = 0 if extra == "pool" else levels - given
        first = in_channels[-1] if extra == "input" else channels
        self.extras = nn.ModuleList(
            conv_norm_act(channels if i else first, channels, stride=2, norm=norm, activation=False)
            for i in range(extras)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps, finest first, to pyramid levels, finest first."""
        if len(features) != len(self.in_channels):
            raise ValueError(f"this FPN reads {len(self.in_channels)} maps, not {len(features)}")
        laterals = [lateral(feature) for lateral, feature in zip(self.laterals, features)]
        for i in range(len(laterals) - 1, 0, -1):
            size = laterals[i - 1].shape[-2:]
            laterals[i - 1] = laterals[i - 1] + self.upsamplers[i - 1](laterals[i], size)
        maps = [output(lateral) for output, lateral in zip(self.outputs, laterals)]
        if self.extra == "pool":
            while len(maps) < self.levels:
                maps.append(F.max_pool2d(maps[-1], 1, stride=2))
            return maps
        source = {"input": features[-1], "lateral": laterals[-1], "output": maps[-1]}[self.extra]
        for i, conv in enumerate(self.extras):
            maps.append(conv(F.relu(source) if i and self.relu_before_extra else source))
            source = maps[-1]
        return maps
