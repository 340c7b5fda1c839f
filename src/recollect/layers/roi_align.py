"""Features of regions of interest: RoIAlign over the levels of a pyramid (Mask R-CNN, arXiv 1703.06870, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from recollect.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from recollect.ops.precision import full_precision


def scale_boxes(boxes: Tensor, factor: float) -> Tensor:
    """[..., 4] xyxy about their centres: 1.3 makes them 30 % wider and higher (Double-Head R-CNN)."""
    if factor == 1:
        return boxes
    box = xyxy_to_cxcywh(boxes)
    return cxcywh_to_xyxy(torch.cat((box[..., :2], box[..., 2:] * factor), -1))


class MultiLevelRoIAlign(nn.Module):
    """Each box is read from one level, chosen by its size: level floor(log2(sqrt(w h) / finest)) of those given (FPN).

    size: cells per side of what comes out. strides: of the levels, finest first; further maps are not read.
    finest: boxes of less than twice this many pixels (root of the area) go to the finest level.
    sampling: points per cell and direction; 0 takes as many as the box has map cells per output cell.
    aligned: cell centres lie half a cell from their corners; False is what torchvision's own detectors use.
    scale: factor on the boxes before they are read (and before their level is chosen by the unscaled box).
    """

    def __init__(
        self,
        size: int,
        strides: Sequence[int] = (4, 8, 16, 32),
        *,
        finest: float = 56.0,
        sampling: int = 0,
        aligned: bool = True,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.size, self.strides, self.finest = size, tuple(strides), finest
        self.sampling, self.aligned, self.scale = sampling, aligned, scale

    def levels(self, boxes: Tensor) -> Tensor:
        """[n, 4] -> [n] level of each box."""
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
        return torch.log2(side / self.finest + 1e-6).floor().clamp(0, len(self.strides) - 1).long()

    def forward(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Maps [B, C, H_l, W_l] and boxes [n_i, 4] of each image -> [sum n_i, C, size, size], in the boxes' order.

        Read in float32 or better, also under autocast: coordinates have no business in half precision.
        """
        image = [torch.full_like(one[:, :1], index) for index, one in enumerate(boxes)]
        every = torch.cat(list(boxes))
        regions = torch.cat((torch.cat(image), scale_boxes(every, self.scale)), 1)
        with torch.autocast(every.device.type, enabled=False):
            if len(self.strides) == 1:
                return self._read(maps[0], regions, self.strides[0])
            level = self.levels(every)
            places = [(level == index).nonzero().flatten() for index in range(len(self.strides))]
            read = [self._read(m, regions[p], s) for m, p, s in zip(maps, places, self.strides)]
            return torch.cat(read)[torch.cat(places).argsort()]

    def _read(self, feature: Tensor, regions: Tensor, stride: int) -> Tensor:
        wide = full_precision(feature)
        read = roi_align(wide, regions.to(wide.dtype), self.size, 1 / stride, self.sampling, self.aligned)
        return read.to(feature.dtype)
