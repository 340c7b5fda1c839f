"""Assignment of points inside boxes, by scale (FCOS, Tian et al. 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from recollect.matching.assigner import all_negative, from_candidates, objects_and_crowds
from recollect.structures import NEGATIVE, Assignment, Priors, Target


@dataclass(frozen=True)
class FCOSAssigner:
    """A point answers for the smallest object around it whose farthest side lies in the range of the point's level.

    ranges: per level (low, high), both inclusive, in pixels.
    radius: only points within so many strides of the object's centre (and inside the object) answer; None: all inside.
    """

    ranges: Sequence[tuple[float, float]] = ((0, 64), (64, 128), (128, 256), (256, 512), (512, float("inf")))
    radius: float | None = None

    reads_predictions: ClassVar[bool] = False

    @torch.no_grad()
    def assign(self, priors: Priors, target: Target, predictions: dict[str, Tensor] | None = None) -> Assignment:
        """See `matching.assigner`; `predictions` are not read."""
        if len(self.ranges) != len(priors.counts):
            raise ValueError(f"FCOS has scale ranges for {len(self.ranges)} levels, the maps have {len(priors.counts)}")
        boxes, places, _ = objects_and_crowds(target, priors.boxes)
        if not len(boxes) or not len(priors.boxes):
            return all_negative(priors)
        points = priors.centres[:, None]  # [N, 1, 2]
        sides = torch.cat((points - boxes[:, :2], boxes[:, 2:] - points), -1)  # [N, T, 4]
        answers = sides.amin(-1) > 0
        if self.radius is not None:
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            answers &= (points - centres).abs().amax(-1) < self.radius * priors.strides[:, None]
        counts = torch.tensor(priors.counts, device=boxes.device)
        limits = boxes.new_tensor(self.ranges).repeat_interleave(counts, 0)  # [N, 2]
        farthest = sides.amax(-1)
        answers &= (farthest >= limits[:, :1]) & (farthest <= limits[:, 1:])
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        smallest, index = torch.where(answers, areas, float("inf")).min(1)
        chosen = torch.where(smallest.isfinite(), index, NEGATIVE)
        return from_candidates(chosen, places, torch.zeros_like(smallest))
