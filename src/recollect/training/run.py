"""One training from beginning to end: `fit(recipe, train, val, settings)`."""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from recollect.backbones import Backbone
from recollect.convert.weights import load_weights, transfer_weights
from recollect.data import DetectionDataset, choose_workers, collate, evaluation_loader
from recollect.data.transforms import evaluation_transform, training_transform
from recollect.evaluation import CocoMetrics, evaluate_model
from recollect.recipe import Recipe
from recollect.training.building import build_model
from recollect.training.checkpoint import latest_checkpoint
from recollect.training.keeper import WEIGHTS, RunKeeper
from recollect.training.log import ProgressLine
from recollect.training.loggers import make_loggers
from recollect.training.memory import reuse_freed_memory
from recollect.training.module import TrainingModule
from recollect.training.optimiser import total_steps, warmup_steps
from recollect.training.pictures import draw_samples
from recollect.training.stream import Positions, Stream, fits_in_memory, stream_loader

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
RUN_FILE = "run.json"


@dataclass(frozen=True)
class Settings:
    """Where and how a recipe is run. None of this decides what is learned, unless a number goes bad.

    out: the run folder. devices: GPUs, or processes on a CPU; nodes: machines.
    validate_every, save_every, log_every: in optimiser steps; validation is by default once an epoch, at most twenty
        times a run. patience: validations without a better AP before stopping early.
    skip_nonfinite: steps with NaN or infinity that are left out before the run stops. max_unreadable: likewise for
        images that cannot be read, which are replaced.
    start_from: weights of a checkpoint to fine-tune. loggers: names from "tensorboard", "wandb", "mlflow".
    """

    out: Path
    devices: int = 1
    nodes: int = 1
    accelerator: str = "auto"
    workers: int | None = None
    validate_every: int | None = None
    save_every: int | None = None
    log_every: int = 20
    patience: int | None = None
    skip_nonfinite: int = 0
    max_unreadable: int = 100
    deterministic: bool = False
    start_from: Path | None = None
    checkpointing: bool = False
    loggers: tuple[str, ...] = ()
    quiet: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data, for `run.json`."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Settings:
        """The inverse of `to_json`; what this version does not know is an error."""
        known = {f.name for f in fields(Settings)}
        if unknown := set(data) - known:
            raise ValueError(f"run settings {sorted(unknown)} are not known to this version of recollect")
        start = data.get("start_from")
        return Settings(
            **{
                **data,
                "out": Path(data["out"]),
                "start_from": None if start is None else Path(start),
                "loggers": tuple(data["loggers"]),
            }
        )


@dataclass(frozen=True)
class Result:
    """What a training leaves behind: its folder, the last validation's metrics, and how long it took."""

    folder: Path
    weights: Path
    steps: int
    seconds: float
    best_ap: float | None
    metrics: CocoMetrics | None


class WorkerDied(RuntimeError):
    """A process that reads images was killed or crashed."""


def fit(
    recipe: Recipe,
    train: DetectionDataset,
    val: DetectionDataset | None,
    settings: Settings,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    source: dict[str, Any] | None = None,
) -> Result:
    """Train a detector by its recipe, and keep weights, checkpoints, metrics and pictures in the run folder.

    train, val: without transforms; the recipe's are used. val may be None: then the last weights are kept.
    resume: go on from the folder's last checkpoint. callbacks: Lightning callbacks of your own.
    source: where the data came from, kept in `run.json` so that `--resume RUN` needs nothing else.
    ValueError for a setting that cannot be; NonFiniteLoss, OutOfMemory, OSError as the run meets them.
    """
    folder = settings.out
    recipe = _resolve(recipe, settings)
    _check_classes(train, val)
    total = total_steps(recipe.schedule, len(train), recipe.batch)
    positions = Positions(recipe.batch, recipe.accumulate, 0, total, world=settings.devices * settings.nodes)
    del positions  # only to refuse a batch that does not divide, before any work
    progress = ProgressLine(quiet=settings.quiet)
    leading = int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0
    say = progress.say if leading else (lambda _: None)
    state = _open_folder(folder, resume, leading, say)
    if state is not None and state["step"] >= total:
        say(f"{folder} is complete: {state['step']} of {total} steps are done")
        return Result(folder, folder / WEIGHTS, state["step"], state["standing"]["seconds"],
                      state["standing"]["best"], None)  # fmt: skip

    pl.seed_everything(recipe.seed, verbose=False)
    reuse_freed_memory()
    model = build_model(recipe, len(train.names))
    if settings.checkpointing:
        model.checkpointing = True  # type: ignore[assignment]
    if settings.start_from is not None and state is None:
        _start_from(model, settings.start_from, say)
    _freeze(model, recipe.freeze)
    if leading:
        recipe.save(folder / "recipe.json")
        described = {"settings": settings.to_json(), "names": train.names, "source": source or {}}
        (folder / RUN_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    if not settings.quiet:
        _introduce(model, recipe, train, val, total, settings, say)

    module = TrainingModule(
        model, recipe, len(train.names), total, folder,
        skip_nonfinite=settings.skip_nonfinite, unreadable_limit=settings.max_unreadable,
    )  # fmt: skip
    per_epoch = len(train) / recipe.batch
    every = settings.validate_every or max(math.ceil(per_epoch), math.ceil(total / 20))
    card = {
        "model": recipe.model, "options": _plain_options(recipe.options), "names": train.names,
        "category_ids": train.category_ids, "recipe": recipe.to_json(),
    }  # fmt: skip
    samples = None if val is None else val.with_transform(evaluation_transform(recipe.data))
    keeper = RunKeeper(
        folder,
        steps_per_epoch=per_epoch,
        card=card,
        validate=None if samples is None else _validation(samples, settings, recipe),
        draw=None if samples is None else (lambda model, path: draw_samples(model, samples, path)),
        validate_every=every,
        save_every=settings.save_every or min(every, 500),
        log_every=settings.log_every,
        patience=settings.patience,
        state=state,
    )
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)  # what it would say is said above
    trainer = _trainer(recipe, settings, [progress, *callbacks, keeper], folder)
    start = 0 if state is None else state["step"]
    with warnings.catch_warnings():
        for text in ("The 'train_dataloader' does not have many workers", ".*in eval mode at the start", ".*LeafSpec"):
            warnings.filterwarnings("ignore", text)
        try:
            trainer.fit(module, _Loaders(recipe, train, settings, start, total, trainer))
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) or "Original Traceback" in str(error):
                raise
            raise WorkerDied(
                f"a process that reads images died at step {module.counts.step} ({str(error).splitlines()[0]}); most "
                f"often the system had no memory left. Take fewer --workers and go on with --resume {folder}"
            ) from error
    if module.counts.step < total and not keeper.stopped_early:
        raise KeyboardInterrupt(f"interrupted at step {module.counts.step}: go on with --resume {folder}")
    return Result(
        folder, folder / WEIGHTS, module.counts.step, keeper.standing.seconds, keeper.standing.best, keeper.metrics
    )


class _Loaders(pl.LightningDataModule):
    """The training loader, made once ranks are known."""

    def __init__(
        self, recipe: Recipe, train: DetectionDataset, settings: Settings, start: int, total: int, trainer: pl.Trainer
    ) -> None:
        super().__init__()
        self.recipe, self.train, self.settings, self.start, self.total = recipe, train, settings, start, total
        self.owner = trainer

    def train_dataloader(self) -> Any:
        """The stream of this rank, from the step where the run stands."""
        recipe, trainer = self.recipe, self.owner
        on_gpu = trainer.strategy.root_device.type == "cuda"
        workers = self.settings.workers if self.settings.workers is not None else recipe.data.workers
        if workers is None:
            workers = choose_workers(None) if on_gpu else 0  # a CPU that trains has no core to spare
        raw = self.train.with_transform(None)
        cache = workers == 0 and fits_in_memory(raw)
        stream = Stream(raw, training_transform(recipe.data), recipe.seed, cache)
        positions = Positions(
            recipe.batch, recipe.accumulate, self.start, self.total, trainer.global_rank, trainer.world_size
        )
        return stream_loader(stream, positions, workers, collate)


def _resolve(recipe: Recipe, settings: Settings) -> Recipe:
    """Fill in what the machine decides: the precision."""
    precision = recipe.precision
    if precision is None:
        on_gpu = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: use one of {', '.join(PRECISIONS)}")
    return replace(recipe, precision=precision)


def _trainer(recipe: Recipe, settings: Settings, callbacks: list[Callback], folder: Path) -> pl.Trainer:
    many = settings.devices * settings.nodes > 1
    assert recipe.precision is not None
    return pl.Trainer(
        accelerator=settings.accelerator if torch.cuda.is_available() else "cpu",
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=DDPStrategy(gradient_as_bucket_view=True) if many else "auto",
        precision=PRECISIONS[recipe.precision],  # type: ignore[arg-type]
        max_epochs=1,  # the stream knows how long the run is
        callbacks=callbacks,
        logger=make_loggers(settings.loggers, folder, recipe) or False,
        deterministic=settings.deterministic,
        use_distributed_sampler=False,
        sync_batchnorm=many and torch.cuda.is_available(),  # torch has none for CPUs
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _validation(val: DetectionDataset, settings: Settings, recipe: Recipe):
    def validate(model: nn.Module, module: TrainingModule) -> CocoMetrics:
        # One image at a time: what it is padded with must not depend on how images were shared out over ranks.
        workers = choose_workers(settings.workers) if module.device.type == "cuda" else 0
        loader = evaluation_loader(val, 1, workers=workers)
        with module.trainer.precision_plugin.forward_context():
            return evaluate_model(model, loader, val, device=module.device)

    return validate


def _open_folder(folder: Path, resume: bool, leading: bool, say) -> dict[str, Any] | None:
    """The state to go on from. A folder that already holds a run is not overwritten."""
    if resume:
        if not (folder / "recipe.json").exists():
            raise ValueError(f"{folder} is no run folder: it has no recipe.json to resume from")
        state = latest_checkpoint(folder, say)
        say(f"resuming {folder} " + ("from the beginning: it has no checkpoint" if state is None
                                     else f"at step {state['step']}"))  # fmt: skip
        return state
    if leading and (folder / "recipe.json").exists():
        raise ValueError(f"{folder} already holds a run: choose another --out, or go on with --resume {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    return None


def _check_classes(train: DetectionDataset, val: DetectionDataset | None) -> None:
    if len(train) == 0:
        raise ValueError("the training set holds no image")
    if val is not None and val.names != train.names:
        only = sorted(set(train.names) ^ set(val.names))
        raise ValueError(
            f"training and validation set have different classes: {only or 'in another order'}; give both the same "
            "categories"
        )


def _freeze(model: nn.Module, parts: Sequence[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        if not any(part in name for name in names):
            tops = sorted({name.split(".")[0] for name in names})
            raise ValueError(f"--freeze {part}: no parameter's name holds that; the detector has {', '.join(tops)}")
    for name, parameter in model.named_parameters():
        if any(part in name for part in parts):
            parameter.requires_grad_(False)
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, Backbone) and not any(p.requires_grad for p in backbone.parameters()):
        backbone.norm = "eval"  # a frozen backbone keeps its batch-norm statistics too
        backbone.train()


def _start_from(model: nn.Module, path: Path, say) -> None:
    """Fine-tuning: load what fits, and say what does not."""
    weights = path / WEIGHTS if path.is_dir() else path
    state, card = load_weights(weights)
    fresh, unused = transfer_weights(model, state)
    say(f"started from {weights} ({card['model']}, {len(card['names'])} classes)")
    if fresh:
        say(f"re-initialised, because the file has no such entry or another shape ({len(fresh)}): {', '.join(fresh)}")
    if surplus := sorted(set(unused) - set(fresh)):
        say(f"not used from the file ({len(surplus)}): {', '.join(surplus)}")


def _introduce(
    model: nn.Module,
    recipe: Recipe,
    train: DetectionDataset,
    val: DetectionDataset | None,
    total: int,
    settings: Settings,
    say,
) -> None:
    """What will happen, in a few lines."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parameters = sum(p.numel() for p in model.parameters())
    rule = getattr(model, "recollection", None)
    stages = getattr(model, "stages", ())
    say(
        f"{recipe.model}: {parameters / 1e6:.1f} M parameters, {trainable / 1e6:.1f} M trained; recollection "
        + (f"on, groups per stage {rule.groups(len(stages))}" if rule is not None else "off")
    )
    say(f"train: {train.describe()}")
    say(f"val: {val.describe()}" if val is not None else "no validation set: the last weights are kept")
    optimiser = recipe.optimiser
    say(
        f"{total} steps ({total * recipe.batch / len(train):.1f} epochs) of {recipe.batch} images"
        + (f" on {settings.devices * settings.nodes} devices" if settings.devices * settings.nodes > 1 else "")
        + (f", {recipe.accumulate} accumulated passes each" if recipe.accumulate > 1 else "")
        + f"; warm-up {warmup_steps(recipe.schedule, total)} steps; {recipe.precision}"
    )
    ratio, rule = f"({recipe.batch} / {optimiser.batch})", "the linear rule for SGD"
    if optimiser.kind != "sgd":
        ratio, rule = f"sqrt{ratio}", "the square-root rule for adaptive optimisers"
    say(f"learning rate {recipe.scaled_lr():.3g} = {optimiser.lr:g} x {ratio}, {rule}")


def _plain_options(options: dict[str, Any]) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in options.items() if k != "recollection"}
