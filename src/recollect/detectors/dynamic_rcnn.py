"""Dynamic R-CNN: the IoU that makes a positive, and the bend of the box loss, follow what the proposals have become.

Paper: Dynamic R-CNN: Towards High Quality Object Detection via Dynamic Training (Zhang et al., ECCV 2020, arXiv
2004.06002). Conventions follow MMDetection 2.x (Apache-2.0); this file is our own. Published COCO val2017 box AP,
R50-FPN, MMDetection 2.x, 1x: 38.9.

Deviations: a batch without a positive counts the bend it had (the reference stops with an error); statistics are
buffers, so a resumed training goes on with them. As in the reference, every rank of a distributed run follows its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recollect.detectors.faster_rcnn import pool, pyramid
from recollect.detectors.roi_heads import RoIHead
from recollect.detectors.roi_stage import RoIStage, Sampled
from recollect.detectors.rpn import RPNHead, two_stage_1x
from recollect.detectors.two_stage import TwoStageDetector
from recollect.layers.roi_heads import BoxHead
from recollect.losses.boxes import smooth_l1
from recollect.matching.max_iou import MaxIoUAssigner
from recollect.registry import Published, register


class DynamicStage(RoIStage):
    """Sections 4.1 and 4.2: every `interval` steps, the IoU threshold becomes the mean of recent values and the bend of
    the smooth L1 loss their median.

    overlaps: which of an image's best overlaps is its value. positives: which of the smallest box errors, per image.
    threshold, beta: to begin with; the threshold never falls below, the bend never rises above.
    """

    threshold: Tensor
    beta: Tensor
    history: Tensor
    seen: Tensor

    def __init__(
        self,
        box_head: nn.Module,
        *,
        overlaps: int = 75,
        positives: int = 10,
        interval: int = 100,
        threshold: float = 0.4,
        beta: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(box_head, self._rule(threshold), **options)
        self.overlaps, self.errors, self.first = overlaps, positives, (threshold, beta)
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float64))
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float64))
        self.register_buffer("history", torch.zeros(interval, 2, dtype=torch.float64))
        self.register_buffer("seen", torch.tensor(0))

    @staticmethod
    def _rule(threshold: float) -> MaxIoUAssigner:
        return MaxIoUAssigner(threshold, threshold, low_quality=False)

    def sample(self, *arguments: Any) -> Sampled:
        """As ever, at the present threshold."""
        self.assigner = self._rule(float(self.threshold))
        return super().sample(*arguments)

    def losses(self, logits: Tensor, deltas: Tensor, sampled: Sequence[Sampled]) -> dict[str, Tensor]:
        """As ever, at the present bend; then the step's statistics are noted."""
        self.box_loss = partial(smooth_l1, beta=float(self.beta))
        found = super().losses(logits, deltas, sampled)
        with torch.no_grad():
            self._note(sampled)
        return found

    def _note(self, sampled: Sequence[Sampled]) -> None:
        best = [s.assignment.overlap for s in sampled]
        overlap = torch.stack([one.topk(min(self.overlaps, len(one))).values[-1] for one in best if len(one)]).mean()
        boxes, truth = torch.cat([s.positives for s in sampled]), torch.cat([s.truth for s in sampled])
        error = self.beta
        if len(boxes):
            shift = self.coder.encode(boxes, truth)[:, :2].abs().mean(1)
            error = shift.kthvalue(min(self.errors * len(sampled), len(shift))).values
        place = int(self.seen) % len(self.history)
        self.history[place] = torch.stack((overlap, error.to(overlap)))
        self.seen += 1
        if place + 1 == len(self.history):
            self.threshold.copy_(self.history[:, 0].mean().clamp(min=self.first[0]))
            median = self.history[:, 1].quantile(0.5)  # of an even number, the mean of the middle two
            self.beta.copy_(median.clamp(max=self.first[1]) if median > 1e-15 else torch.tensor(self.first[1]))


@register(
    two_stage_1x,
    family="Faster R-CNN",
    paper="arXiv 2004.06002",
    published=Published(38.9, "MMDetection 2.x model zoo: R50-FPN, 1x"),
)
def dynamic_rcnn_r50_fpn(
    num_classes: int = 80,
    *,
    backbone: str = "resnet50.tv_in1k",
    backbone_weights: str | Path | None = None,
    backbone_options: dict[str, Any] | None = None,
) -> TwoStageDetector:
    """Faster R-CNN whose second stage trains dynamically; detects as Faster R-CNN does."""
    body, neck = pyramid(backbone, backbone_weights, backbone_options)
    roi = RoIHead([DynamicStage(BoxHead(num_classes))], num_classes, pool(7))
    return TwoStageDetector(body, neck, RPNHead(proposals=(2000, 1000)), roi)
