"""Any detector as a LightningModule: forward, backward, clip, step, and what to do when numbers go bad."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from recollect.matching import NonFinitePrediction
from recollect.recipe import Recipe
from recollect.structures import Target
from recollect.training.average import WeightAverage
from recollect.training.memory import explain_out_of_memory, is_out_of_memory
from recollect.training.nonfinite import (
    HELP,
    NonFiniteLoss,
    PredictionWatch,
    all_ranks,
    describe,
    distributed,
    save_batch,
)
from recollect.training.optimiser import build_optimiser, build_schedule


@dataclass
class Counts:
    """Where a training stands; saved in checkpoints.

    step: optimiser steps done. batches: forward passes done on each device. skipped: steps left out because a number
    was not finite. unreadable: images that could not be read and were replaced, with the reason.
    """

    step: int = 0
    batches: int = 0
    skipped: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


class TrainingModule(pl.LightningModule):
    """Trains a detector by its recipe.

    model: any detector of the contract (`model(images, targets) -> losses`). total: optimiser steps of the run.
    folder: where a bad batch is kept. skip_nonfinite: steps with non-finite numbers that are left out before stopping.
    unreadable_limit: images that may be unreadable before stopping.

    Optimisation is "manual" in Lightning's words, because a step with a bad number must not reach the weights, on any
    rank, while counters and schedule go on. `sums` collects losses on the device between two lines of the log.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        num_classes: int,
        total: int,
        folder: Path,
        *,
        skip_nonfinite: int = 0,
        unreadable_limit: int = 100,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.recipe, self.num_classes, self.total, self.folder = model, recipe, num_classes, total, folder
        self.skip_nonfinite, self.unreadable_limit = skip_nonfinite, unreadable_limit
        self.average = WeightAverage(model, recipe.ema) if recipe.ema else None
        self.counts = Counts()
        self.watch = PredictionWatch(model)
        self.sums: dict[str, Tensor] = {}
        self.images_seen = 0
        self.last_loss = float("nan")
        self.gradient_norm = float("nan")
        self._bad_step = False

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's optimiser; the schedule is kept beside it, because a checkpoint of ours holds both."""
        self.optimiser = build_optimiser(self.model, self.recipe)
        self.schedule = build_schedule(self.optimiser, self.recipe.schedule, self.total)
        return self.optimiser

    @property
    def best_model(self) -> nn.Module:
        """What is validated and kept: the average of the weights if there is one."""
        return self.model if self.average is None else self.average.model

    def on_fit_start(self) -> None:
        """The average lives where the model lives."""
        if self.average is not None:
            self.average.model.to(self.device)

    def training_step(self, batch: tuple[Sequence[Tensor], Sequence[Target]], batch_idx: int) -> None:
        """One forward and backward pass; every `accumulate`-th also steps the optimiser."""
        images, targets = batch
        self._note_unreadable(targets)
        accumulate = self.recipe.accumulate
        last = (self.counts.batches + 1) % accumulate == 0
        try:
            losses = self._losses(images, targets)
            if losses is not None:
                with contextlib.nullcontext() if last else self._no_sync():
                    self.manual_backward(torch.stack(list(losses.values())).sum() / accumulate)
                self._collect(losses)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise explain_out_of_memory(error, self.recipe, self.model, images, self.device) from error
            raise
        finally:
            self.watch.forget()
        self.counts.batches += 1
        self.images_seen += len(images)
        if last:
            self._step(images, targets)

    def _losses(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor] | None:
        """The losses, or None if they are not finite and that is tolerated."""
        losses: dict[str, Tensor] | None = None
        try:
            losses = self.model(images, targets)
            assert losses is not None
            fine = torch.isfinite(torch.stack([v.detach().float() for v in losses.values()])).all()
        except NonFinitePrediction:
            fine = torch.tensor(False, device=self.device)
        if self._scaler is not None and losses is not None:
            return losses  # fp16: the gradient scaler leaves out overflowing steps by itself
        if all_ranks(fine):
            return losses
        self._bad_step = True
        self._tolerate(losses, images, targets)
        return None

    def _step(self, images: Sequence[Tensor], targets: Sequence[Target]) -> None:
        """Clip, step, move schedule and average on."""
        optimiser = self.optimizers()
        if self._bad_step:
            self._bad_step = False
        else:
            self._bad_gradient = False
            optimiser.step()  # type: ignore[union-attr]  calls on_before_optimizer_step, which clips
            if self._bad_gradient:
                self._tolerate(None, images, targets)
            elif self.average is not None:
                self.average.update(self.model)
        optimiser.zero_grad(set_to_none=True)  # type: ignore[union-attr]
        self.schedule.step()
        self.counts.step += 1

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients' norm (already unscaled under fp16); a step with a norm that is not finite is emptied."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe.optimiser.clip_norm or float("inf"))
        self.gradient_norm = float(norm)
        if self._scaler is None and not torch.isfinite(norm):  # the same on every rank: gradients are reduced
            self._bad_gradient = True
            optimizer.zero_grad(set_to_none=True)  # parameters without gradients are not stepped

    def _tolerate(self, losses: dict[str, Tensor] | None, images: Sequence[Tensor], targets: Sequence[Target]) -> None:
        """Count a step with bad numbers, or stop the run if that was one too many."""
        self.counts.skipped += 1
        if losses is None and not self.watch.predictions:
            text = f"step {self.counts.step}: the norm of the gradients is not finite ({self.gradient_norm}); the "
            text += "weights are untouched."
        else:
            text = describe(losses, self.watch, targets, self.counts.step)
        if self.counts.skipped <= self.skip_nonfinite:
            self.say(f"{text} Left out: {self.counts.skipped} of {self.skip_nonfinite} tolerated.")
            return
        path = save_batch(
            self.folder / f"bad_batch_rank{self.global_rank}.pt", images, targets,
            step=self.counts.step, model=self.model.state_dict(), recipe=self.recipe.to_json(),
            num_classes=self.num_classes,
        )  # fmt: skip
        raise NonFiniteLoss(f"{text} The batch is kept: recollect replay {path}. {HELP}")

    def say(self, text: str) -> None:
        """A line to the user that does not tear the progress bar."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "say"):
                callback.say(text)
                return
        print(text, flush=True)

    def _note_unreadable(self, targets: Sequence[Target]) -> None:
        """Report every image that was replaced once; stop at the limit."""
        for target in targets:
            reason = target.pop("unreadable", None)
            if reason is None or reason in self.counts.unreadable:
                continue
            self.counts.unreadable[reason] = ""
            self.say(f"replaced by another image: {reason}")
            if len(self.counts.unreadable) > self.unreadable_limit:
                raise ValueError(
                    f"{len(self.counts.unreadable)} images could not be read, {self.unreadable_limit} are tolerated "
                    f"(--max-unreadable); the last: {reason}. `recollect check DIR` lists them all"
                )

    def _collect(self, losses: dict[str, Tensor]) -> None:
        for name, value in {**losses, "passes": torch.ones((), device=self.device)}.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def mean_losses(self) -> dict[str, float]:
        """Mean of `loss` and every term of it since the last call, over all ranks; one device-to-host copy."""
        if not self.sums:
            return {}
        together = torch.stack(list(self.sums.values()))
        if distributed():  # bad steps are left out on all ranks alike, so all have the same terms
            torch.distributed.all_reduce(together)
        *sums, passes = together.tolist()
        names = list(self.sums)[:-1]
        self.sums = {}
        means = {name: value / passes for name, value in zip(names, sums)}
        self.last_loss = sum(means.values())
        return {"loss": self.last_loss, **means}

    @property
    def learning_rate(self) -> float:
        """The highest of all groups' present rates."""
        return max(group["lr"] for group in self.optimiser.param_groups)

    def schedule_from(self, step: int) -> None:
        """Set the schedule to where it stands after `step` optimiser steps."""
        self.schedule.last_epoch = step
        for group, base, factor in zip(self.optimiser.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas):
            group["lr"] = base * factor(step)

    @property
    def _scaler(self) -> Any:
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _no_sync(self) -> Any:
        """Gradients of accumulated passes are reduced over ranks once, at the last."""
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if hasattr(wrapped, "no_sync") else contextlib.nullcontext()  # type: ignore[union-attr]
