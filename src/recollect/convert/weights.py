"""Weights that leave the project: safetensors with a JSON card in the metadata, so a file is data and never code."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from recollect.registry import create_model

CARD_KEY = "recollect"
_TRAINING_ONLY = ("recollection", "backbone_weights")  # options that decide nothing once the weights are there


def save_weights(path: str | Path, model: nn.Module, card: dict[str, Any]) -> None:
    """Write the model's state and its card, replacing the file only once the new one is complete.

    card: plain data with `model` (a registered name), `options` (arguments of `create_model`), `names` (class names in
    label order), and whatever else belongs to it (`category_ids`, `recipe`, `metrics`). The version is added here.
    """
    path = Path(path)
    options = {k: v for k, v in card.get("options", {}).items() if k not in _TRAINING_ONLY}
    text = json.dumps({**card, "options": options, "recollect": version("recollect")})
    # safetensors refuses tensors that share memory, so every entry becomes its own.
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        save_file(state, unfinished, {CARD_KEY: text})
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        unfinished.chmod(0o666 & ~_umask())  # safetensors makes it readable by its owner alone
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(f"weights could not be written to {path}: {error}") from error


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_weights` wrote: (state_dict, card). ValueError naming the file for anything else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such weights file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file, or it is torn: {error}") from error
    if CARD_KEY not in metadata:
        raise ValueError(f"{path} holds tensors but no recollect card: it was not written by recollect")
    try:
        card = json.loads(metadata[CARD_KEY])
        if not isinstance(card["model"], str) or not all(isinstance(n, str) for n in card["names"]):
            raise TypeError("model and names must be text")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has a recollect card that cannot be read: {error!r}") from error
    return state, card


def model_from_weights(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build the detector that a weights file names and load it, in evaluation mode: (model, card)."""
    state, card = load_weights(path)
    model = create_model(card["model"], num_classes=len(card["names"]), **card.get("options", {}))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {card['model']}: {error}") from error
    return model.eval(), card


def transfer_weights(model: nn.Module, state: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Load whatever of `state` fits `model` by name and shape, to fine-tune with other classes.

    Returns (left as initialised, not used): names of the model's entries that `state` lacks or holds in another
    shape, and names of `state` that the model has no place for. ValueError if nothing fits.
    """
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    if not any(key in dict(model.named_parameters()) for key in fitting):
        raise ValueError("none of the weights fit the detector: name the same detector, or one of its family")
    model.load_state_dict(fitting, strict=False)
    return [k for k in own if k not in fitting], [k for k in state if k not in fitting]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
