"""The loss of set prediction (DETR, section 3.1), over any list of stage predictions with any number of groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from recollect.losses.classification import FocalClassification, SoftmaxClassification
from recollect.losses.normaliser import mean_over_ranks
from recollect.matching.hungarian import HungarianMatcher, Matches, Objects
from recollect.ops.boxes import cxcywh_to_xyxy, giou, xyxy_to_cxcywh
from recollect.structures import Prediction, Target


class SetCriterion(nn.Module):
    """Match every group of every stage to the objects, then classification + L1 + GIoU.

    The loss of a stage is the sum over its groups of the ordinary loss; each group's is divided by the number of
    matched pairs (mean over ranks, at least 1). Matching and losses run in float32 or better, also under autocast.

    l1, giou: weights of the box losses; cost_l1, cost_giou: of the matching costs.
    l1_format: coordinates in which L1 is taken, in loss and cost, normalised by the image size in both cases.
    stage_weights: factor per stage, default 1.
    """

    def __init__(
        self,
        classification: FocalClassification | SoftmaxClassification,
        *,
        l1: float = 5.0,
        giou: float = 2.0,
        cost_l1: float = 5.0,
        cost_giou: float = 2.0,
        l1_format: Literal["cxcywh", "xyxy"] = "cxcywh",
        stage_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.classification = classification
        self.matcher = HungarianMatcher(classification, cost_l1, cost_giou, l1_format)
        self.l1, self.giou, self.l1_format = l1, giou, l1_format
        self.stage_weights = stage_weights

    def forward(
        self,
        predictions: Sequence[Prediction],
        targets: Sequence[Target],
        whwh: Tensor,
        proposals: Prediction | None = None,
    ) -> dict[str, Tensor]:
        """Losses of all stages, and of class-agnostic `proposals` if a detector makes any.

        predictions: one per stage. targets: one per image, `boxes` xyxy in pixels. whwh: [B, 4] image sizes in pixels.
        Returns `stage{s}_class`, `stage{s}_l1`, `stage{s}_giou` (and `proposals_*`), scalars that sum to the loss.
        """
        counts = [p.logits.shape[1] for p in predictions]
        stages = Prediction(torch.cat([p.logits for p in predictions], 1), torch.cat([p.boxes for p in predictions], 1))
        sets = {"stage": stages} if proposals is None else {"stage": stages, "proposals": proposals}
        losses: dict[str, Tensor] = {}
        for kind, parts in self.per_group(sets, targets, whwh).items():
            for name, per_group in parts.items():
                if kind != "stage":
                    losses[f"{kind}_{name}"] = per_group.sum()
                    continue
                for stage, groups in enumerate(per_group.split(counts)):
                    weight = 1.0 if self.stage_weights is None else self.stage_weights[stage]
                    losses[f"stage{stage}_{name}"] = groups.sum() * weight
        return losses

    def per_group(
        self, sets: dict[str, Prediction], targets: Sequence[Target], whwh: Tensor
    ) -> dict[str, dict[str, Tensor]]:
        """The losses of every group: {"stage": {"class": [G], "l1": [G], "giou": [G]}, ...}, matched in one go."""
        with torch.autocast(whwh.device.type, enabled=False):
            full = {k: Prediction(_full_precision(p.logits), _full_precision(p.boxes)) for k, p in sets.items()}
            objects = {k: gather_objects(targets, whwh.to(p.boxes.dtype), k == "proposals") for k, p in full.items()}
            matches = self.matcher.match([(full[k], objects[k]) for k in full])
            return {k: self.losses(full[k], objects[k], m) for k, m in zip(full, matches)}

    def losses(self, prediction: Prediction, objects: Objects, matches: Matches) -> dict[str, Tensor]:
        """Classification, L1 and GIoU of each group [G] under a given matching."""
        images, groups, queries, _ = prediction.logits.shape
        logits, boxes = prediction.logits, prediction.boxes
        normaliser = mean_over_ranks(matches.per_group, boxes)

        background = logits.shape[-1] - isinstance(self.classification, SoftmaxClassification)
        labels = logits.new_full((images, groups, queries), background, dtype=torch.long)
        labels[matches.image, matches.group, matches.query] = objects.labels[matches.image, matches.object]

        predicted = boxes[matches.image, matches.group, matches.query]
        truth = objects.boxes[matches.image, matches.object]
        corners, truth_corners = cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(truth)
        if self.l1_format == "cxcywh":
            l1 = (predicted - truth).abs().sum(-1)
        else:
            l1 = (corners - truth_corners).abs().sum(-1)
        whwh = objects.whwh[matches.image]
        overlap = giou(corners * whwh, truth_corners * whwh, eps=1e-7)

        def per_group(values: Tensor) -> Tensor:
            return values.new_zeros(groups).index_add(0, matches.group, values) / normaliser

        return {
            "class": self.classification.loss(logits, labels, normaliser),
            "l1": self.l1 * per_group(l1),
            "giou": self.giou * per_group(1 - overlap),
        }


def gather_objects(targets: Sequence[Target], whwh: Tensor, class_agnostic: bool = False) -> Objects:
    """Targets as padded tensors on the device and in the dtype of `whwh`."""
    boxes = [t["boxes"].as_subclass(Tensor).to(whwh).reshape(-1, 4) for t in targets]
    labels = [t["labels"].to(whwh.device) for t in targets]
    if class_agnostic:
        labels = [torch.zeros_like(one) for one in labels]
    normalised = xyxy_to_cxcywh(pad_sequence(boxes, batch_first=True) / whwh[:, None])
    return Objects(pad_sequence(labels, batch_first=True), normalised, [len(b) for b in boxes], whwh)


def _full_precision(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
