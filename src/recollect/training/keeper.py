"""What happens around the steps: validation, the best weights, pictures, `metrics.csv`, checkpoints, early stopping."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from recollect.convert.weights import save_weights
from recollect.evaluation import CocoMetrics
from recollect.training.checkpoint import save_checkpoint
from recollect.training.log import MetricsFile
from recollect.training.memory import peak_memory
from recollect.training.module import Counts, TrainingModule
from recollect.training.nonfinite import distributed

WEIGHTS = "weights.safetensors"


@dataclass
class Standing:
    """How a run stands beside its weights: best AP and the step it was reached at, validations since, seconds so far.

    epoch_began: seconds at which the present epoch began.
    """

    best: float | None = None
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    epoch_began: float = 0.0


class RunKeeper(Checkpoint):
    """Keeps the run folder. Lightning calls it after all other callbacks.

    validate: scores the detector given to it, or None without a validation set. draw: writes sample pictures.
    steps_per_epoch: optimiser steps, may be a fraction. card: for the weights file.
    validate_every, save_every, log_every: optimiser steps. patience: validations without a better AP before stopping.
    state: of a checkpoint to go on from.
    """

    def __init__(
        self,
        folder: Path,
        *,
        steps_per_epoch: float,
        card: dict[str, Any],
        validate: Callable[[torch.nn.Module, TrainingModule], CocoMetrics] | None,
        draw: Callable[[torch.nn.Module, Path], None] | None,
        validate_every: int,
        save_every: int,
        log_every: int,
        patience: int | None,
        state: dict[str, Any] | None,
    ) -> None:
        self.folder, self.steps_per_epoch, self.card = folder, steps_per_epoch, card
        self.validate, self.draw = validate, draw
        self.validate_every, self.save_every, self.log_every = validate_every, save_every, log_every
        self.patience, self.state = patience, state
        self.standing = Standing()
        self.metrics: CocoMetrics | None = None
        self.stopped_early = False

    # --- begin, or go on where a checkpoint stands

    def on_train_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        """Restore the state, if there is one; open the table."""
        if self.state is not None:
            restore(self.state, trainer, module)
            self.standing = Standing(**self.state["standing"])
        step = module.counts.step if self.state is not None else None
        self.state = None
        if trainer.is_global_zero:
            self.table = MetricsFile(self.folder / "metrics.csv", step)
        self.began = time.monotonic() - self.standing.seconds
        self.logged_at, self.logged_images = time.monotonic(), module.images_seen
        self.seen_step = module.counts.step
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(module.device)

    # --- after every optimiser step

    def on_train_batch_end(self, trainer: pl.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Log, validate and save when due."""
        step = module.counts.step
        if step == self.seen_step:  # a pass that only accumulates
            return
        self.seen_step = step
        last = step >= module.total
        epoch_ends = int(step / self.steps_per_epoch) > int((step - 1) / self.steps_per_epoch)
        due = self.validate is not None and (last or step % self.validate_every == 0)
        if last or due or epoch_ends or step % self.log_every == 0:
            self._log(trainer, module, epoch_ends, due)
        if last or due or step % self.save_every == 0:
            self.save(trainer, module)
        if self.patience is not None and self.standing.stale >= self.patience and not last:
            self.stopped_early = True
            module.say(
                f"stopped at step {step}: no better AP in {self.standing.stale} validations; the best was "
                f"{100 * (self.standing.best or 0):.1f} at step {self.standing.best_step}"
            )
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        """A completed run always has weights, also without a validation set."""
        if trainer.is_global_zero and (self.validate is None or not (self.folder / WEIGHTS).exists()):
            self._save_weights(module, None)

    # --- parts

    def _log(self, trainer: pl.Trainer, module: TrainingModule, epoch_ends: bool, validate: bool) -> None:
        now = time.monotonic()
        self.standing.seconds = now - self.began
        losses = module.mean_losses()
        images = (module.images_seen - self.logged_images) * trainer.world_size
        row: dict[str, Any] = {
            "step": module.counts.step,
            "epoch": module.counts.step / self.steps_per_epoch,
            "lr": module.learning_rate,
            "gradient_norm": module.gradient_norm,
            "images_per_second": images / max(now - self.logged_at, 1e-9),
            "peak_memory_mb": round(peak_memory(module.device) / 1e6),
            "seconds": self.standing.seconds,
            "skipped": module.counts.skipped,
            "unreadable": len(module.counts.unreadable),
            **losses,
        }
        if epoch_ends:
            row["epoch_seconds"] = self.standing.seconds - self.standing.epoch_began
            self.standing.epoch_began = self.standing.seconds
        if validate:
            row |= self._validate(trainer, module)
            self.standing.seconds = time.monotonic() - self.began
        self.logged_at, self.logged_images = time.monotonic(), module.images_seen
        if trainer.is_global_zero:
            self.table.write(row)
            for logger in trainer.loggers:
                logger.log_metrics({k: float(v) for k, v in row.items() if k != "step"}, step=module.counts.step)

    def _validate(self, trainer: pl.Trainer, module: TrainingModule) -> dict[str, float]:
        assert self.validate is not None
        began = time.monotonic()
        self.metrics = metrics = self.validate(module.best_model, module)
        ap = metrics.stats["AP"]
        if self.standing.best is None or not ap < self.standing.best:  # also for a set without objects, AP NaN
            self.standing.best, self.standing.best_step, self.standing.stale = ap, module.counts.step, 0
            if trainer.is_global_zero:
                self._save_weights(module, metrics)
        else:
            self.standing.stale += 1
        if trainer.is_global_zero:
            if self.draw is not None:
                pictures = self.folder / "pictures"
                pictures.mkdir(exist_ok=True)
                self.draw(module.best_model, pictures / f"step_{module.counts.step:06d}.jpg")
            stats = "  ".join(f"{k} {100 * metrics.stats[k]:.1f}" for k in ("AP", "AP50", "AP75"))
            module.say(f"step {module.counts.step}: {stats}")
        seconds = time.monotonic() - began
        kept = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
        return {**{k: metrics.stats[k] for k in kept if k in metrics.stats}, "validation_seconds": seconds}

    def _save_weights(self, module: TrainingModule, metrics: CocoMetrics | None) -> None:
        measured = {} if metrics is None else {"metrics": {k: _plain(v) for k, v in metrics.stats.items()}}
        card = {**self.card, "step": module.counts.step, **measured}
        save_weights(self.folder / WEIGHTS, module.best_model, card)

    def save(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Write `last.ckpt`; every rank takes part, the first one writes."""
        self.standing.seconds = time.monotonic() - self.began
        random_states = random_state(module.device)
        if distributed():
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, random_states)
        else:
            gathered = [random_states]
        error: list[OSError | None] = [None]
        if trainer.is_global_zero:
            state = {
                "step": module.counts.step,
                "counts": asdict(module.counts),
                "standing": {k: _plain(v) for k, v in asdict(self.standing).items()},
                "model": module.model.state_dict(),
                "optimiser": module.optimiser.state_dict(),
                "average": None if module.average is None else module.average.state_dict(),
                "precision": trainer.precision_plugin.state_dict(),
                "random": gathered,
                "callbacks": {
                    callback.state_key: state
                    for callback in trainer.callbacks  # type: ignore[attr-defined]
                    if callback is not self and (state := callback.state_dict())
                },
            }
            try:
                save_checkpoint(self.folder, state)
            except OSError as fault:
                error = [fault]
        if distributed():
            torch.distributed.broadcast_object_list(error)
        if error[0] is not None:
            raise error[0]


def restore(state: dict[str, Any], trainer: pl.Trainer, module: TrainingModule) -> None:
    """Put a checkpoint's state back, on every rank."""
    module.model.load_state_dict(state["model"])
    module.optimiser.load_state_dict(state["optimiser"])
    if module.average is not None and state["average"] is not None:
        module.average.load_state_dict(state["average"])
    trainer.precision_plugin.load_state_dict(state["precision"])
    module.counts = Counts(**state["counts"])
    module.schedule_from(module.counts.step)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback.state_key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.state_key])
    if trainer.global_rank < len(state["random"]):
        set_random_state(state["random"][trainer.global_rank], module.device)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every random generator, as plain data."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, np.floating | float) else value
