"""Heads on features of regions of interest: class and box, and masks (Fast R-CNN, Mask R-CNN)."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from recollect.layers.conv import Norm, conv_tower


class BoxHead(nn.Module):
    """Convolutions, then fully connected layers, then class and box: [R, C, S, S] -> [R, K + 1], [R, K or 1, 4].

    in_channels, size: C and S. class_agnostic: one box for all classes. The last logit is the background.
    convs, norm: 3x3 blocks. layers: fully connected ones of `width`; without any the features are averaged over a box.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 256,
        size: int = 7,
        *,
        width: int = 1024,
        layers: int = 2,
        convs: int = 0,
        norm: Norm | None = None,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        self.convs = conv_tower(in_channels, in_channels, convs, norm)
        widths = [in_channels * (size**2 if layers else 1), *[width] * layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.to_class = nn.Linear(widths[-1], num_classes + 1)
        self.to_box = nn.Linear(widths[-1], 4 * (1 if class_agnostic else num_classes))
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
        for layer, std in ((self.to_class, 0.01), (self.to_box, 0.001)):
            nn.init.normal_(layer.weight, std=std)
        for layer in (*self.layers, self.to_class, self.to_box):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and deltas."""
        x = self.convs(x)
        x = x.flatten(1) if len(self.layers) else x.mean((2, 3))
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.to_class(x), self.to_box(x).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """A small FCN: 3x3 convolutions, doubled in size, one mask per class. forward: [R, C, S, S] -> [R, K, 2 S, 2 S]."""

    def __init__(
        self, num_classes: int, in_channels: int = 256, channels: int = 256, convs: int = 4, norm: Norm | None = None
    ) -> None:
        super().__init__()
        self.convs = conv_tower(in_channels, channels, convs, norm)
        self.upsample = nn.ConvTranspose2d(channels if convs else in_channels, channels, 2, stride=2)
        self.to_mask = nn.Conv2d(channels, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.to_mask(F.relu(self.upsample(self.convs(x))))
