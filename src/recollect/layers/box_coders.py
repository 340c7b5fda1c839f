"""Between boxes and the numbers that a head regresses. All boxes are xyxy in pixels.

A coder has `encode(priors, boxes)` and `decode(priors, values, max_size=None)` over any leading dimensions; `max_size`
(height, width) clips decoded boxes at the image border.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recollect.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

Size = tuple[int, int] | None


def clip(boxes: Tensor, max_size: Size) -> Tensor:
    """Cut [..., 4] xyxy at 0 and at (height, width); None leaves them."""
    if max_size is None:
        return boxes
    height, width = max_size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack((x, y), -1).flatten(-2)


@dataclass(frozen=True)
class DeltaBoxCoder:
    """Centre shift in units of the prior's size, and log of the size ratio (R-CNN), then standardised.

    means, stds: of (dx, dy, dw, dh). max_ratio: decoded sizes stay within this factor of the prior's, either way.
    centre_clamp: decoded centres move at most so many pixels (YOLOF), which also drops the lower bound on sizes.
    """

    means: Sequence[float] = (0.0, 0.0, 0.0, 0.0)
    stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
    max_ratio: float = 1000 / 16
    centre_clamp: float | None = None

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """[..., 4], [..., 4] -> deltas [..., 4]."""
        prior, box = xyxy_to_cxcywh(priors), xyxy_to_cxcywh(boxes)
        shift = (box[..., :2] - prior[..., :2]) / prior[..., 2:]
        growth = (box[..., 2:] / prior[..., 2:]).log()
        deltas = torch.cat((shift, growth), -1)
        return (deltas - deltas.new_tensor(self.means)) / deltas.new_tensor(self.stds)

    def decode(self, priors: Tensor, values: Tensor, max_size: Size = None) -> Tensor:
        """[..., 4], [..., 4] -> boxes [..., 4]."""
        deltas = values * values.new_tensor(self.stds) + values.new_tensor(self.means)
        prior = xyxy_to_cxcywh(priors)
        shift = deltas[..., :2] * prior[..., 2:]
        limit = math.log(self.max_ratio)
        if self.centre_clamp is None:
            growth = deltas[..., 2:].clamp(-limit, limit)
        else:
            shift = shift.clamp(-self.centre_clamp, self.centre_clamp)
            growth = deltas[..., 2:].clamp(max=limit)
        centre, size = prior[..., :2] + shift, prior[..., 2:] * growth.exp()
        return clip(cxcywh_to_xyxy(torch.cat((centre, size), -1)), max_size)


@dataclass(frozen=True)
class DistanceBoxCoder:
    """Distances from the prior's centre to the box's left, top, right and bottom side (FCOS), in pixels.

    A head that regresses strides multiplies before it decodes.
    relative: distances are in units of so many widths (left, right) or heights (top, bottom) of the prior instead, one
        factor or one per side (FSAF); None for pixels.
    """

    relative: float | Sequence[float] | None = None

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """[..., 4], [..., 4] -> l, t, r, b [..., 4]; negative where the centre is outside the box."""
        centre = (priors[..., :2] + priors[..., 2:]) / 2
        return torch.cat((centre - boxes[..., :2], boxes[..., 2:] - centre), -1) / self._unit(priors)

    def decode(self, priors: Tensor, values: Tensor, max_size: Size = None) -> Tensor:
        """[..., 4], [..., 4] -> boxes [..., 4]."""
        centre = (priors[..., :2] + priors[..., 2:]) / 2
        values = values * self._unit(priors)
        return clip(torch.cat((centre - values[..., :2], centre + values[..., 2:]), -1), max_size)

    def _unit(self, priors: Tensor) -> Tensor | float:
        if self.relative is None:
            return 1.0
        size = priors[..., 2:] - priors[..., :2]
        return torch.cat((size, size), -1) * priors.new_tensor(self.relative)


@dataclass(frozen=True)
class YOLOBoxCoder:
    """Centre as a place within the cell around the prior's centre (0..1, after a sigmoid), and log of the size ratio.

    stride: pixels per cell.
    """

    stride: float
    eps: float = 1e-6

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """[..., 4], [..., 4] -> x, y in 0..1, log of width and height ratios [..., 4]."""
        prior, box = xyxy_to_cxcywh(priors), xyxy_to_cxcywh(boxes)
        place = (box[..., :2] - prior[..., :2]) / self.stride + 0.5
        growth = (box[..., 2:] / prior[..., 2:]).clamp(min=self.eps).log()
        return torch.cat((place.clamp(self.eps, 1 - self.eps), growth), -1)

    def decode(self, priors: Tensor, values: Tensor, max_size: Size = None) -> Tensor:
        """[..., 4], [..., 4] -> boxes [..., 4]."""
        prior = xyxy_to_cxcywh(priors)
        centre = prior[..., :2] + (values[..., :2] - 0.5) * self.stride
        return clip(cxcywh_to_xyxy(torch.cat((centre, prior[..., 2:] * values[..., 2:].exp()), -1)), max_size)


def expected_bin(logits: Tensor, sides: int = 4) -> Tensor:
    """The mean of a distribution over bins 0..M per side (GFL's integral): [..., sides * (M + 1)] -> [..., sides]."""
    probabilities = F.softmax(logits.unflatten(-1, (sides, -1)), -1)
    bins = torch.arange(probabilities.shape[-1], dtype=logits.dtype, device=logits.device)
    return probabilities @ bins


def centreness(distances: Tensor) -> Tensor:
    """How central a point is in its box (FCOS, equation 3): l, t, r, b > 0 [..., 4] -> [...] in 0..1."""
    horizontal, vertical = distances[..., 0::2], distances[..., 1::2]
    ratios = horizontal.amin(-1) / horizontal.amax(-1) * (vertical.amin(-1) / vertical.amax(-1))
    return ratios.clamp(min=0).sqrt()
