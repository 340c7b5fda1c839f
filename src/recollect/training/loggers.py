"""Loggers by name, beside `metrics.csv`, which is always written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recollect.recipe import Recipe

NAMES = ("tensorboard", "wandb", "mlflow")


def make_loggers(names: Sequence[str], folder: Path, recipe: Recipe) -> list[Any]:
    """Lightning's loggers of these names; ValueError for an unknown one, or one whose package is not installed."""
    loggers = []
    for name in names:
        try:
            loggers.append(_make(name, folder, recipe))
        except (ImportError, ModuleNotFoundError) as error:
            raise ValueError(f"--logger {name} needs its package: pip install {name}") from error
    return loggers


def _make(name: str, folder: Path, recipe: Recipe) -> Any:
    from lightning.pytorch import loggers

    if name == "tensorboard":
        return loggers.TensorBoardLogger(folder, name="tensorboard", version="")
    if name == "wandb":
        return loggers.WandbLogger(name=folder.name, save_dir=folder, project="recollect", config=recipe.to_json())
    if name == "mlflow":
        return loggers.MLFlowLogger(run_name=folder.name, tracking_uri=f"file:{folder.resolve() / 'mlflow'}")
    raise ValueError(f"there is no logger {name!r}: use one of {', '.join(NAMES)}")
