"""An exponential moving average of the weights, which usually scores better than the weights themselves."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """Keeps a second copy of the detector whose state follows the trained one.

    decay: share of the old average kept at each step, e.g. 0.9998. It rises from 0.1 over the first steps
    ((1 + t) / (10 + t)), so that short runs are not averages of their beginning.
    Floating entries (weights and batch-norm statistics) are averaged, counters are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema={decay}: the decay lies between 0 and 1, for example 0.9998")
        self.decay, self.steps = decay, 0
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one optimiser step into the average."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averaged = self.model.state_dict()
        current = model.state_dict()
        floating = [k for k, v in averaged.items() if v.is_floating_point()]
        torch._foreach_lerp_([averaged[k] for k in floating], [current[k] for k in floating], 1 - keep)
        for key in averaged.keys() - set(floating):
            averaged[key].copy_(current[key])

    def state_dict(self) -> dict:
        """For a checkpoint."""
        return {"steps": self.steps, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """From a checkpoint."""
        self.steps = state["steps"]
        self.model.load_state_dict(state["model"])
