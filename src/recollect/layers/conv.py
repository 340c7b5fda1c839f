"""Convolution, norm and activation as one block, and the towers that dense heads and RoI heads build of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
"""Makes a norm for a number of channels, for example `group_norm(32)` or `nn.BatchNorm2d`."""


def group_norm(groups: int = 32) -> Norm:
    """A maker of group norms."""
    return lambda channels: nn.GroupNorm(groups, channels)


def conv_norm_act(
    in_channels: int,
    channels: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    norm: Norm | None = None,
    activation: bool = True,
    bias: bool | None = None,
) -> nn.Sequential:
    """Convolution ("same" padding at stride 1), then `norm` and ReLU if wanted; parts named conv, norm, act.

    bias: of the convolution; None gives one only where no norm follows.
    """
    bias = norm is None if bias is None else bias
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=bias)
    if norm is not None:
        parts["norm"] = norm(channels)
    if activation:
        parts["act"] = nn.ReLU()
    return nn.Sequential(parts)


def conv_tower(
    in_channels: int, channels: int, depth: int, norm: Norm | None = None, bias: bool | None = None
) -> nn.Sequential:
    """`depth` 3x3 blocks in a row."""
    blocks = [conv_norm_act(channels if i else in_channels, channels, norm=norm, bias=bias) for i in range(depth)]
    return nn.Sequential(*blocks)


class Scale(nn.Module):
    """One learnable factor (FCOS has one per level)."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        """x * scale."""
        return x * self.scale


def init_normal(module: nn.Module, std: float = 0.01) -> None:
    """Every convolution in `module`: weights from N(0, std), biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
