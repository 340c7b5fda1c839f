"""One stage of a second stage: which boxes it trains on, its losses, and the boxes it hands on.

Conventions follow MMDetection 2.x (Apache-2.0); this file is our own. Deviation: losses are divided by the samples'
mean over ranks (MMDetection: per rank).

Shapes: n boxes of an image, R of all images, P of them positive, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recollect.layers.box_coders import DeltaBoxCoder
from recollect.losses.boxes import l1
from recollect.losses.normaliser import mean_over_ranks
from recollect.matching.assigner import Assigner, objects_and_crowds
from recollect.matching.ohem import OHEMSampler
from recollect.matching.samplers import RandomSampler
from recollect.ops.precision import full_precision
from recollect.structures import NEGATIVE, Assignment, Priors, Target

Size = tuple[int, int]
SAMPLER = RandomSampler(512, 0.25)
CODER = DeltaBoxCoder(stds=(0.1, 0.1, 0.2, 0.2))


@dataclass(frozen=True)
class Sampled:
    """The boxes of one image that a stage trains on, positives first.

    boxes: [n, 4]. labels: [n], K for background. gt_index: [p], the object each positive answers for; truth: [p, 4],
    its box. own: [n] bool, boxes that are an object's own, added to the proposals. assignment: of all boxes, before
    sampling.
    """

    boxes: Tensor
    labels: Tensor
    gt_index: Tensor
    truth: Tensor
    own: Tensor
    assignment: Assignment

    @property
    def positives(self) -> Tensor:
        """[p, 4]."""
        return self.boxes[: len(self.gt_index)]


class RoIStage(nn.Module):
    """Samples boxes, and judges what its heads say of them.

    assigner, sampler: who answers for what, and what is kept for the loss. box_loss: of (deltas, target deltas),
    elementwise; or with `decoded` of boxes, [P, 4], [P, 4] -> [P]. weight: of the stage's losses.
    """

    def __init__(
        self,
        box_head: nn.Module,
        assigner: Assigner,
        sampler: RandomSampler | OHEMSampler = SAMPLER,
        *,
        mask_head: nn.Module | None = None,
        coder: DeltaBoxCoder = CODER,
        box_loss: Callable[[Tensor, Tensor], Tensor] = l1,
        decoded: bool = False,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.box_head, self.mask_head = box_head, mask_head
        self.assigner, self.sampler, self.coder = assigner, sampler, coder
        self.box_loss, self.decoded, self.weight = box_loss, decoded, weight

    @torch.no_grad()
    def sample(
        self, boxes: Tensor, target: Target, num_classes: int, judge: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> Sampled:
        """Boxes [n, 4] of one image, preceded by the objects' own, to what the stage trains on.

        judge: boxes -> (logits, deltas), asked only by samplers that look for hard examples.
        """
        objects, places, _ = objects_and_crowds(target, boxes)
        labels = target["labels"].to(boxes.device)
        found = self.assigner.assign(Priors(boxes, boxes.new_ones(len(boxes)), (len(boxes),)), target)
        boxes = torch.cat((objects, boxes))
        overlap = torch.cat((torch.ones_like(objects[:, 0]), found.overlap))
        everything = Assignment(torch.cat((places, found.gt_index)), overlap)
        if isinstance(self.sampler, OHEMSampler):
            classes = labels.new_full((len(boxes),), num_classes)
            classes[everything.positive] = labels[everything.gt_index[everything.positive]]
            hardness = F.cross_entropy(full_precision(judge(boxes)[0]), classes, reduction="none")
            chosen = self.sampler.sample_hard(everything, hardness)
        else:
            chosen = self.sampler.sample(everything)
        positive = chosen.positive.nonzero().flatten()
        negative = (chosen.gt_index == NEGATIVE).nonzero().flatten()
        kept, gt_index = torch.cat((positive, negative)), chosen.gt_index[positive]
        every_label = torch.cat((labels[gt_index], labels.new_full((len(negative),), num_classes)))
        truth = target["boxes"].as_subclass(Tensor).to(boxes).reshape(-1, 4)[gt_index]
        return Sampled(boxes[kept], every_label, gt_index, truth, kept < len(objects), everything)

    def losses(self, logits: Tensor, deltas: Tensor, sampled: Sequence[Sampled]) -> dict[str, Tensor]:
        """`class` and `box`, both divided by the number of samples. logits: [R, K + 1]; deltas: [R, K or 1, 4]."""
        labels = torch.cat([s.labels for s in sampled])
        count = mean_over_ranks(len(labels), logits)
        positive = labels < logits.shape[-1] - 1
        values = of_class(deltas[positive], labels[positive])
        boxes, truth = torch.cat([s.positives for s in sampled]), torch.cat([s.truth for s in sampled])
        if self.decoded:
            box = self.box_loss(self.coder.decode(boxes, values), truth)
        else:
            box = self.box_loss(values, self.coder.encode(boxes, truth))
        return {"class": F.cross_entropy(logits, labels, reduction="sum") / count, "box": box.sum() / count}

    @torch.no_grad()
    def refine(self, boxes: Tensor, logits: Tensor, deltas: Tensor, size: Size, labels: Tensor | None = None) -> Tensor:
        """Boxes [n, 4] moved by the deltas of their class (`labels`, where not background), else of their likeliest."""
        likeliest = logits[:, :-1].argmax(1)
        if labels is not None:
            likeliest = torch.where(labels < logits.shape[-1] - 1, labels, likeliest)
        return self.coder.decode(boxes, of_class(deltas, likeliest), size)


def of_class(values: Tensor, labels: Tensor) -> Tensor:
    """[n, K or 1, ...], [n] -> [n, ...]: each row's values for its class, or the only ones there are."""
    return values[:, 0] if values.shape[1] == 1 else values[torch.arange(labels.shape[0], device=labels.device), labels]
