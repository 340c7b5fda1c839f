"""Numbers that go bad: stop before they reach the weights, say where they began, keep the batch for replay."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from recollect.matching import NonFinitePrediction
from recollect.recipe import Recipe
from recollect.structures import Prediction, Target
from recollect.training.building import build_model

BATCH_FORMAT = "recollect batch 1"
HELP = (
    "What usually helps: a lower learning rate, a longer warm-up, a smaller clip norm, bf16 or fp32 instead of fp16; "
    "--skip-nonfinite N goes on without such batches, N times at most"
)


class NonFiniteLoss(ValueError):
    """A loss or gradient is NaN or infinite; the message says which, for which images, and what helps."""


def distributed() -> bool:
    """Whether several processes train together."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return ready and torch.distributed.get_world_size() > 1


def all_ranks(fine: Tensor) -> bool:
    """Whether a boolean tensor is true on every rank."""
    if distributed():
        fine = fine.to(torch.int32)
        torch.distributed.all_reduce(fine, torch.distributed.ReduceOp.MIN)
    return bool(fine)


class PredictionWatch:
    """Looks at what a staged detector hands to its criterion.

    Keeps it until the next step, to say afterwards where numbers went bad; and, since a rank that stops inside the
    matching would leave the others waiting, lets all ranks of a distributed run stop there together.
    """

    def __init__(self, model: nn.Module) -> None:
        self.predictions: Sequence[Prediction] = ()
        criterion = getattr(model, "criterion", None)
        if isinstance(criterion, nn.Module):
            criterion.register_forward_pre_hook(self._look)

    def _look(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        predictions = inputs[0] if inputs else ()
        if not (isinstance(predictions, list | tuple) and all(isinstance(p, Prediction) for p in predictions)):
            return
        self.predictions = predictions
        if distributed():
            parts = [t.detach().sum() for p in predictions for t in (p.logits, p.boxes)]
            if not all_ranks(torch.isfinite(torch.stack([p.float() for p in parts])).all()):
                bad = self.images()
                raise NonFinitePrediction(bad, [])

    def forget(self) -> None:
        """Drop the predictions, and with them the graph they hold."""
        self.predictions = ()

    def images(self) -> list[int]:
        """Places in the batch of images with a prediction that is not finite."""
        bad: set[int] = set()
        for prediction in self.predictions:
            for tensor in (prediction.logits, prediction.boxes):
                rows = ~torch.isfinite(tensor.detach()).flatten(1).all(1)
                bad |= set(rows.nonzero().flatten().tolist())
        return sorted(bad)

    def origin(self) -> str:
        """The first stage, and its group, whose predictions are not finite; empty if all are finite."""
        for stage, prediction in enumerate(self.predictions):
            for name, tensor in (("logits", prediction.logits), ("boxes", prediction.boxes)):
                finite = torch.isfinite(tensor.detach()).all(-1).all(-1)  # [B, G]
                if not finite.all():
                    groups = sorted(set((~finite).nonzero()[:, 1].tolist()))
                    of = finite.shape[1]
                    return f"stage {stage} (of {len(self.predictions)}), group(s) {groups} of {of}: {name}"
        return ""


def describe(losses: dict[str, Tensor] | None, watch: PredictionWatch, targets: Sequence[Target], step: int) -> str:
    """One sentence: what is not finite, where it began, and on which images."""
    ids = [target.get("image_id", place) for place, target in enumerate(targets)]
    bad_images = watch.images()
    parts = [f"step {step}: numbers went bad before the optimiser step, the weights are untouched."]
    bad_losses = [k for k, v in (losses or {}).items() if not torch.isfinite(v).all()]
    if bad_losses:
        parts.append(f"Not finite: loss {', '.join(bad_losses)}.")
    if origin := watch.origin():
        parts.append(f"First in the predictions of {origin}.")
    if bad_images:
        parts.append(f"Image id(s) {[ids[i] for i in bad_images if i < len(ids)]}.")
    else:
        parts.append(f"Images of the batch: ids {ids}.")
    return " ".join(parts)


def save_batch(path: Path, images: Sequence[Tensor], targets: Sequence[Target], **state: Any) -> Path:
    """Write a batch and the model's state for `recollect replay`, as plain data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [
        {k: v.as_subclass(Tensor).cpu() if isinstance(v, Tensor) else v for k, v in target.items()}
        for target in targets
    ]
    pictures = [image.detach().as_subclass(Tensor).cpu() for image in images]
    torch.save({"format": BATCH_FORMAT, "images": pictures, "targets": plain, **state}, path)
    return path


@dataclass(frozen=True)
class Replay:
    """What a replayed batch did: its losses, where predictions went bad, and the first module with a bad output."""

    step: int
    losses: dict[str, float]
    origin: str
    first_module: str
    bad_weights: list[str]
    error: str

    @property
    def finite(self) -> bool:
        """Whether everything was finite this time."""
        numbers = all(math.isfinite(v) for v in self.losses.values())
        return numbers and not (self.origin or self.first_module or self.bad_weights or self.error)

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"batch of step {self.step}"]
        lines += [f"  {name}: {value:.6g}" for name, value in self.losses.items()]
        if self.bad_weights:
            lines.append(f"weights that are not finite: {', '.join(self.bad_weights[:5])}")
        if self.first_module:
            lines.append(f"first module with an output that is not finite: {self.first_module}")
        if self.origin:
            lines.append(f"first predictions that are not finite: {self.origin}")
        if self.error:
            lines.append(self.error)
        if self.finite:
            lines.append("all numbers are finite here: the cause was the precision, or the machine")
        return lines


def replay(path: Path, device: str | None = None) -> Replay:
    """Run a kept batch through the detector as it was. ValueError if the file is not one of ours."""
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file") from error
    except Exception as error:
        raise ValueError(f"{path} is torn, or not plain data: {error}") from error
    if not isinstance(kept, dict) or kept.get("format") != BATCH_FORMAT:
        raise ValueError(f"{path} is not a batch kept by recollect")
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    recipe = Recipe.from_json(kept["recipe"])
    model = build_model(recipe, kept["num_classes"])
    model.load_state_dict(kept["model"])
    model.to(on).train()
    bad_weights = [k for k, v in kept["model"].items() if v.is_floating_point() and not torch.isfinite(v).all()]
    watch, first = PredictionWatch(model), _FirstBadOutput(model)
    losses, error = {}, ""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision or "")
    try:
        with torch.autocast(on.type, half or torch.bfloat16, enabled=half is not None):
            found = model([image.to(on) for image in kept["images"]], kept["targets"])
        losses = {k: float(v) for k, v in found.items()}
    except NonFinitePrediction as fault:
        error = str(fault)
    return Replay(kept["step"], losses, watch.origin(), first.name, bad_weights, error)


class _FirstBadOutput:
    """Finds the first module, in the order they run, that returns a number that is not finite."""

    def __init__(self, model: nn.Module) -> None:
        self.name = ""
        for name, module in model.named_modules():
            module.register_forward_hook(functools.partial(self._look, name or type(model).__name__))

    def _look(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self.name and any(not torch.isfinite(t).all() for t in _tensors(output)):
            self.name = f"{name} ({type(module).__name__})"


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [t for v in value.values() for t in _tensors(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in _tensors(v)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [t for f in dataclasses.fields(value) for t in _tensors(getattr(value, f.name))]
    return []
