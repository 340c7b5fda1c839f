"""The optimiser of a recipe, and how its learning rate moves."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recollect.recipe import Optimiser, Recipe, Schedule

ONE_CYCLE_RISE = 0.3  # share of a one-cycle schedule in which the rate rises (Smith and Topin 2019)
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1e-4 / 25


def parameter_groups(model: nn.Module, rule: Optimiser, lr: float) -> list[dict]:
    """Trainable parameters merged into one group per (learning rate, weight decay).

    ValueError if a part named in `rule` is found in no parameter, which is a typing mistake.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    unseen = {part for part, _ in rule.scales} | set(rule.no_decay)
    for name, parameter in model.named_parameters():
        factors = [(part, factor) for part, factor in rule.scales if part in name]
        undecayed = [part for part in rule.no_decay if part in name]
        unseen -= {part for part, _ in factors} | set(undecayed)
        if parameter.requires_grad:
            key = (lr * (factors[0][1] if factors else 1.0), 0.0 if undecayed else rule.weight_decay)
            groups.setdefault(key, []).append(parameter)
    if unseen:
        raise ValueError(f"the optimiser's rules name {sorted(unseen)}, which no parameter of the detector holds")
    if not groups:
        raise ValueError("every parameter of the detector is frozen: there is nothing to train")
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def build_optimiser(model: nn.Module, recipe: Recipe) -> Optimizer:
    """AdamW, or SGD with momentum, at the learning rate scaled for the recipe's batch."""
    rule = recipe.optimiser
    groups = parameter_groups(model, rule, recipe.scaled_lr())
    if rule.kind == "adamw":
        # One kernel for all parameters; fp16's gradient scaler unscales before clipping, which fused cannot.
        return torch.optim.AdamW(groups, betas=rule.betas, fused=recipe.precision != "fp16")
    if rule.kind == "sgd":
        return torch.optim.SGD(groups, momentum=rule.momentum)
    raise ValueError(f"optimiser kind {rule.kind!r}: use 'adamw' or 'sgd'")


def warmup_steps(schedule: Schedule, total: int) -> int:
    """Steps of the linear warm-up: the schedule's, but never more than a fifth of the run."""
    return 0 if schedule.shape == "one_cycle" else min(schedule.warmup_steps, total // 5)


def rate_factor(schedule: Schedule, step: int, total: int) -> float:
    """What the learning rate is multiplied by at `step` of `total` (0-based)."""
    if schedule.shape == "one_cycle":
        top = max(1.0, ONE_CYCLE_RISE * total - 1)
        if step <= top:
            return _cosine(ONE_CYCLE_START, 1.0, step / top)
        return _cosine(1.0, ONE_CYCLE_END, min(1.0, (step - top) / max(1.0, total - 1 - top)))
    warmup = warmup_steps(schedule, total)
    if step < warmup:
        warm = schedule.warmup_start + (1 - schedule.warmup_start) * step / warmup
    else:
        warm = 1.0
    if schedule.shape == "cosine":
        return warm * _cosine(1.0, 0.0, max(0, step - warmup) / max(1, total - warmup))
    if schedule.shape == "step":
        return warm * schedule.gamma ** sum(step >= drop * total for drop in schedule.drops)
    raise ValueError(f"schedule shape {schedule.shape!r}: use 'step', 'cosine' or 'one_cycle'")


def build_schedule(optimiser: Optimizer, schedule: Schedule, total: int) -> LambdaLR:
    """The schedule as torch knows it; `step()` it once after every optimiser step."""
    rate_factor(schedule, 0, total)  # a wrong shape is refused here, before any work
    return LambdaLR(optimiser, lambda step: rate_factor(schedule, min(step, total - 1), total))


def total_steps(schedule: Schedule, images: int, batch: int) -> int:
    """Optimiser steps of the whole run over a set of `images`."""
    total = schedule.steps if schedule.steps is not None else math.ceil(schedule.epochs * images / batch)
    if total < 1:
        raise ValueError(f"a run of {total} steps trains nothing: set --steps or --epochs to 1 or more")
    return total


def _cosine(begin: float, end: float, progress: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * progress)) / 2
