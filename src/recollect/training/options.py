"""What a user may say about a training: the arguments of `recollect.train` and of `recollect train`, written once."""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from recollect.decoding import Recollection
from recollect.recipe import Data, Recipe, Resize
from recollect.registry import ModelEntry, model_entry
from recollect.training.run import Settings

OUT_VARIABLE = "RECOLLECT_OUT"  # tells the processes that Lightning starts which folder the first one chose
MAY_CHANGE = {
    "data",
    "val",
    "images",
    "proposals",
    "resume",
    "devices",
    "nodes",
    "accelerator",
    "workers",
    "quiet",
    "log_every",
    "skip_nonfinite",
    "max_unreadable",
    "callbacks",
}  # fmt: skip  on resuming


@dataclass(frozen=True)
class Recollect:
    """Which earlier stages a decoder stage trains on. Giving any of these switches recollection on."""

    start: int | None = None
    """Index of the first stage that recollects, 1 (all, the default) or more: fewer passes, less memory."""
    reach: int | Literal["all"] | None = None
    """How many predecessors a stage reads: 1 plain, 2 selective (SQR, the default), "all" dense (DQR)."""
    repeat_last: bool = False
    """Run the last stage once more on its own outputs (DQRR)."""

    def rule(self) -> Recollection | None:
        """The rule that was asked for; None if nothing was said."""
        if self == Recollect():
            return None
        reach = 2 if self.reach is None else None if self.reach == "all" else self.reach
        return Recollection(1 if self.start is None else self.start, reach, self.repeat_last)


@dataclass(frozen=True)
class Options:
    """Everything about a training except the detector's name. What is not given comes from the detector's recipe."""

    data: str | None = None
    """Dataset: a folder with its images and annotations, or a COCO JSON file."""
    val: str | None = None
    """Validation set; by default the `val` split of --data; "none" trains without."""
    images: str | None = None
    """Folder of the pictures, where it is not found by itself."""
    proposals: str | None = None
    """Proposals for Fast R-CNN: a file that `recollect predict RPN_RUN IMAGES --proposals FILE` wrote."""

    epochs: int | None = None
    """How often every image is seen."""
    steps: int | None = None
    """Optimiser steps, instead of epochs."""
    batch: int | None = None
    """Images per optimiser step in all: over all devices and accumulated passes. The learning rate follows."""
    accumulate: int = 1
    """Passes per optimiser step: the same batch with less memory."""
    size: tuple[int, ...] = ()
    """Shorter side of the images in pixels; several numbers train at several scales. The longer side follows."""
    lr: float | None = None
    """Learning rate at the recipe's own batch size; scaled by sqrt(batch / that), for SGD by batch / that."""
    weight_decay: float | None = None
    """Weight decay."""
    optimiser: Literal["adamw", "sgd"] | None = None
    """Kind of optimiser."""
    schedule: Literal["step", "cosine", "one_cycle"] | None = None
    """How the learning rate falls."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises, never more than a fifth of the run."""
    clip_norm: float | None = None
    """Largest norm of the gradients; 0 does not clip."""
    ema: float | None = None
    """Decay of a moving average of the weights, which is then validated and kept, e.g. 0.9998."""
    freeze: tuple[str, ...] = ()
    """Parts of parameters' names that are not trained, e.g. backbone."""
    no_flip: bool = False
    """Do not mirror training images (letters, digits, left and right shoes)."""

    backbone: str | None = None
    """Name of any timm model."""
    backbone_weights: str | None = None
    """A file, "pretrained" (timm's, from its hub; the default of full-size detectors) or "none"."""
    backbone_options: tuple[str, ...] = ()
    """Further arguments of the timm model as name=value, e.g. pad_type=same."""
    queries: int | None = None
    """Number of queries."""
    stages: int | None = None
    """Number of decoder stages."""
    recollection: Recollect = field(default_factory=Recollect)
    no_recollection: bool = False
    """Train plainly."""
    checkpointing: bool = False
    """Recompute the decoder in the backward pass: less memory, about a third more time."""

    out: Path | None = None
    """Run folder; by default runs/1, runs/2, ..."""
    start_from: Path | None = None
    """Run folder or weights file to fine-tune; it may have other classes."""
    resume: Path | None = None
    """Run folder to go on with, exactly where its last checkpoint stands."""
    seed: int | None = None
    """Of initial weights, order of images and augmentation."""
    devices: int = 1
    """GPUs to train on; without a GPU, processes."""
    nodes: int = 1
    """Machines."""
    accelerator: str = "auto"
    """"cpu" keeps off a GPU."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """By default bf16 on a GPU that has it, else fp32."""
    workers: int | None = None
    """Processes that read images; by default as many as the machine can spare."""
    deterministic: bool = False
    """The same bits every time on a GPU too, somewhat slower; a CPU always is."""
    validate_every: int | None = None
    """Steps between validations; by default an epoch, and at most twenty in all."""
    save_every: int | None = None
    """Steps between checkpoints; by default at every validation, and every 500 steps."""
    log_every: int = 20
    """Steps between rows of metrics.csv."""
    patience: int | None = None
    """Stop early after so many validations without a better AP."""
    skip_nonfinite: int = 0
    """Leave out so many steps with NaN or infinity before stopping."""
    max_unreadable: int = 100
    """Replace so many images that cannot be read before stopping."""
    logger: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Loggers beside metrics.csv."""
    quiet: bool = False
    """No progress bar and no introduction."""

    def recipe(self, model: str) -> Recipe:
        """The detector's recipe with what was said replaced."""
        entry = model_entry(model)
        base = entry.recipe()
        optimiser = _given(base.optimiser, lr=self.lr, weight_decay=self.weight_decay, kind=self.optimiser,
                           clip_norm=self.clip_norm)  # fmt: skip
        schedule = _given(base.schedule, shape=self.schedule, warmup_steps=self.warmup_steps)
        if self.steps is not None and self.epochs is not None:
            raise ValueError("--steps and --epochs exclude each other: give one of them")
        if self.steps is not None or self.epochs is not None:
            schedule = replace(schedule, steps=self.steps, epochs=self.epochs or schedule.epochs)
        for name in ("epochs", "steps", "batch", "accumulate", "queries", "stages", "devices", "nodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: give 1 or more")
        data = base.data if not self.size else _resize(base.data, self.size)
        recipe = replace(
            base, model=model, options={**base.options, **self._model_options(entry)}, optimiser=optimiser,
            schedule=schedule, data=replace(data, flip=0.0) if self.no_flip else data,
            accumulate=self.accumulate, freeze=self.freeze or base.freeze,
        )  # fmt: skip
        return _given(recipe, batch=self.batch, seed=self.seed, precision=self.precision, ema=self.ema)

    def settings(self, out: Path) -> Settings:
        """Where and how to run."""
        own = {f.name for f in fields(Options)}
        shared = {f.name: getattr(self, f.name) for f in fields(Settings) if f.name in own and f.name != "out"}
        return Settings(out=out, loggers=self.logger, **shared)

    def source(self) -> dict[str, Any]:
        """Where the data is, for `run.json`."""
        return {"data": self.data, "val": self.val, "images": self.images, "proposals": self.proposals}

    def given(self) -> dict[str, Any]:
        """What differs from the defaults."""
        defaults = {f.name: f.default_factory() if f.default is MISSING else f.default for f in fields(self)}  # type: ignore[misc]
        return {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}

    def _model_options(self, entry: ModelEntry) -> dict[str, Any]:
        options: dict[str, Any] = {}
        wishes = {"backbone": self.backbone, "num_queries": self.queries, "num_stages": self.stages}
        options |= {k: v for k, v in wishes.items() if v is not None}
        if self.backbone_options:
            options["backbone_options"] = dict(_name_and_value(text) for text in self.backbone_options)
        weights = self.backbone_weights
        if weights is None and "backbone_weights" in entry.options and not entry.name.endswith("_tiny"):
            weights = "pretrained"
        if weights is not None and weights != "none":
            if weights != "pretrained" and not Path(weights).is_file():
                raise ValueError(f"--backbone-weights {weights}: there is no such file")
            options["backbone_weights"] = weights
        rule = self.recollection.rule()
        if self.no_recollection:
            if rule is not None:
                raise ValueError("--no-recollection excludes the --recollection flags")
            if "recollection" in entry.options or entry.staged:
                options["recollection"] = None
        elif rule is not None:
            if not entry.staged:
                raise ValueError(f"{entry.name} has no decoder stages, so recollection does not apply to it")
            options["recollection"] = rule
        for option in options:
            if option not in entry.options:
                raise ValueError(f"{entry.name} has no option {option}; it has {', '.join(entry.options)}")
        return options


def choose_folder(out: Path | None) -> Path:
    """The run folder: as told, else the next free `runs/N`. All processes of a distributed run agree on it."""
    if out is not None:
        return out
    if OUT_VARIABLE in os.environ:
        return Path(os.environ[OUT_VARIABLE])
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        raise ValueError("give --out RUN: several processes were started, and they must agree on the folder")
    number = 1
    while Path("runs", str(number)).exists():
        number += 1
    folder = Path("runs", str(number))
    return folder


def _given(record: Any, **changes: Any) -> Any:
    return replace(record, **{k: v for k, v in changes.items() if v is not None})


def _resize(data: Data, sizes: tuple[int, ...]) -> Data:
    """Shorter sides as told; the longer side, and the crop policy, in proportion to the recipe's."""
    if min(sizes) < 16:
        raise ValueError(f"--size {min(sizes)}: images need 16 pixels or more")
    scale = max(sizes) / max(data.resize.short)
    return replace(
        data,
        resize=Resize(tuple(sizes), round(data.resize.long * scale)),
        crop_resize=Resize(
            tuple(round(s * scale) for s in data.crop_resize.short), round(data.crop_resize.long * scale)
        ),
        crop_size=(round(data.crop_size[0] * scale), round(data.crop_size[1] * scale)),
    )


def _name_and_value(text: str) -> tuple[str, Any]:
    """name=value, with true, false and numbers understood."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--backbone-options {text}: write name=value, for example pad_type=same")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value
