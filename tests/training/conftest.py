"""A tiny dataset, and a training small enough for a test."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import recollect
from recollect.training.checkpoint import read_checkpoint
from tiny_data import SMALL, make_rectangles


@pytest.fixture(scope="session")
def rectangles(tmp_path_factory) -> Path:
    return make_rectangles(tmp_path_factory.mktemp("data") / "rectangles")


@pytest.fixture
def fit(rectangles, tmp_path):
    """Train a small detector on the rectangles: `fit(out="name", ...)` -> Result."""

    def run(model: str | None = "sqr_adamixer_tiny", out: str = "run", **options: Any):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if "resume" in options:
                return recollect.train(None, quiet=True, accelerator="cpu", **options)
            return recollect.train(model, **{"data": rectangles, "out": tmp_path / out, **SMALL, **options})

    return run


@pytest.fixture
def weights_of():
    """The model's state in a run's last checkpoint."""
    return lambda folder: read_checkpoint(Path(folder) / "last.ckpt")["model"]


@pytest.fixture
def equal_states():
    """Whether two states are equal to the bit."""
    return lambda a, b: a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
