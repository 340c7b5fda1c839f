"""Fixtures for all tests. Data that a user does not have is skipped with its reason, and never in CI."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis.configuration import set_hypothesis_home_dir

ROOT = Path(__file__).resolve().parents[1]
set_hypothesis_home_dir(str(ROOT / ".venv" / ".hypothesis"))  # not in the tree: the house check reads every file there
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared():
    """The folder `shared` beside the checkout: golden values and small real datasets that are not in the repository."""
    if not SHARED.is_dir():
        reason = "the folder `shared` (golden values, small datasets) is not beside this checkout"
        if os.environ.get("CI"):
            pytest.fail(reason + ", and CI must have it")
        pytest.skip(reason)
    return SHARED


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)
