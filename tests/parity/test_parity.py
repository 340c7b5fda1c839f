"""Every case of the manifest, in float64 and in float32. Another set: RECOLLECT_PARITY=folder pytest tests/parity."""

import os

import pytest
import torch

from parity import adamixer, deformable
from parity.golden import FOLDER, Case, NotRepresentable, cases
from parity.ledger import Ledger

CASES = cases()


def check(case: Case, ledger: Ledger) -> None:
    """By what a case is, never by its name."""
    config = case.config
    if config.get("type") == "AdaMixerDecoderStage":
        adamixer.check_stage(case, ledger)
    elif "content_dim" in config:
        adamixer.check_detector(case, ledger)
    elif "embed_dims" in config:
        deformable.check_detector(case, ledger)
    else:
        raise NotRepresentable(f"{case.name}: no detector here has a configuration like {sorted(config)}")


def holds_weights_only(case: Case) -> bool:
    """Entries that other cases name as their `weights`; those load every entry of them."""
    return any(other.entry.get("weights") == case.entry["file"] for other in CASES)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", [c for c in CASES if not holds_weights_only(c)], ids=lambda c: c.name)
def test_golden(case, dtype):
    ledger = Ledger(case.name, dtype)
    check(case, ledger)
    ledger.verdict()


def test_there_are_golden_values():
    if not CASES and not os.environ.get("CI") and "RECOLLECT_PARITY" not in os.environ:
        pytest.skip("the golden values are not beside this checkout")
    assert CASES, f"no manifest in {FOLDER}"
