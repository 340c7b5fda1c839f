"""How a detector is trained, as typed dataclasses that a Python function fills in.

A variant calls its base and replaces a field: `replace(adamixer_1x(), schedule=Schedule(epochs=36, ...))`.
The resolved recipe is saved as `recipe.json` beside a run's weights; the command line is generated from these classes.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Resize:
    """Scale the shorter side to one of `short`, keeping the ratio, unless the longer side would pass `long`."""

    short: tuple[int, ...] = (800,)
    long: int = 1333


@dataclass(frozen=True)
class Data:
    """What the detector is fed in training. Evaluation resizes to the largest `resize.short`.

    crop: the DETR crop policy: for every second image, resize the shorter side to one of `crop_resize` (longer side
    up to `crop_long`), cut a random rectangle with sides in `crop_size`, then resize as above.
    photometric, zoom_out, iou_crop: probabilities of the steps that SSD introduced: colours distorted, the image set
    into a canvas up to `zoom_out_to` times as wide, a rectangle cut that overlaps objects by a drawn amount.
    jitter: large-scale jitter in place of `resize`: the image is scaled to a drawn factor of `jitter_size` and cut to
    that size; (0.1, 2.0) is usual.
    mosaic, mixup, copy_paste: probabilities of joining four images, blending two, pasting objects of another by their
    masks.
    """

    resize: Resize = Resize()
    flip: float = 0.5
    crop: bool = False
    crop_resize: Resize = Resize((400, 500, 600), 1333)
    crop_size: tuple[int, int] = (384, 600)
    photometric: float = 0.0
    zoom_out: float = 0.0
    zoom_out_to: float = 4.0
    iou_crop: float = 0.0
    jitter: tuple[float, float] | None = None
    jitter_size: int = 1024
    mosaic: float = 0.0
    mosaic_size: int = 1024
    mixup: float = 0.0
    copy_paste: float = 0.0
    min_box: float = 1.0  # boxes thinner than this after a crop, in pixels, are dropped
    workers: int | None = None  # processes that read images; None chooses by the machine


@dataclass(frozen=True)
class Optimiser:
    """AdamW, with learning rates by layer.

    lr holds for a total batch of `batch`; at another batch size it is scaled by sqrt(size / batch), the rule for
    adaptive optimisers (Malladi et al. 2022, arXiv 2205.10287), or by size / batch for SGD (Goyal et al. 2017, arXiv
    1706.02677).
    scales: (part of a parameter's name, factor); the first part found in the name decides. Example:
    (("backbone.", 0.1),).
    no_decay: parts of names that get no weight decay.
    """

    lr: float = 1e-4
    batch: int = 16
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 0.1
    scales: tuple[tuple[str, float], ...] = ()
    no_decay: tuple[str, ...] = ()
    kind: str = "adamw"  # or "sgd", with momentum
    momentum: float = 0.9


@dataclass(frozen=True)
class Schedule:
    """How long, and how the learning rate moves.

    epochs, or steps if given. drops: fractions of the whole schedule after which the rate is multiplied by `gamma`.
    warmup_steps: the rate rises linearly from `warmup_start` times its value.
    """

    epochs: int = 12
    steps: int | None = None
    shape: str = "step"  # or "cosine", "one_cycle"
    drops: tuple[float, ...] = (8 / 12, 11 / 12)
    gamma: float = 0.1
    warmup_steps: int = 500
    warmup_start: float = 0.001


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training, apart from the images."""

    model: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # arguments of the model's entry function
    data: Data = Data()
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    batch: int = 16  # total, over all devices and accumulated steps
    accumulate: int = 1  # optimiser steps gather this many forward passes
    seed: int = 0
    precision: str | None = None  # None: bf16 on a GPU that has it, float32 on a CPU
    ema: float | None = None  # decay of the moving average of the weights, e.g. 0.9998
    freeze: tuple[str, ...] = ()  # parts of parameters' names that are not trained, e.g. "backbone."

    def scaled_lr(self) -> float:
        """The learning rate at this recipe's batch size."""
        power = 1.0 if self.optimiser.kind == "sgd" else 0.5
        return self.optimiser.lr * (self.batch / self.optimiser.batch) ** power

    def to_json(self) -> dict[str, Any]:
        """Plain data, for `recipe.json`."""
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Recipe:
        """Read what `save` wrote; ValueError naming the file for anything else."""
        try:
            return Recipe.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a recipe written by recollect: {error}") from error

    @staticmethod
    def from_json(data: dict[str, Any]) -> Recipe:
        """The inverse of `to_json`."""
        pipeline = dict(data["data"])
        for key in ("resize", "crop_resize"):
            pipeline[key] = Resize(**_tuples(pipeline[key]))
        return Recipe(
            **{
                **_tuples(data),
                "data": Data(**_tuples(pipeline)),
                "optimiser": Optimiser(**_tuples(data["optimiser"])),
                "schedule": Schedule(**_tuples(data["schedule"])),
            }
        )


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON knows only lists; the dataclasses hold tuples."""

    def convert(value: Any) -> Any:
        return tuple(convert(v) for v in value) if isinstance(value, list) else value

    return {key: convert(value) for key, value in fields.items()}
