"""Every case of the shared parts' manifest. Another set: RECOLLECT_PARITY=folder pytest tests/parity_methods."""

import os

import pytest
import torch

from parity.golden import NotRepresentable
from parity.ledger import Ledger
from parity_methods import heads, losses, parts, two_stage
from parity_methods.goldens import METHODS, method_cases

CASES = method_cases()
CHECKS = {
    "FPN variants": parts.check_fpn,
    "anchor generators: base anchors, grids on small maps, valid flags": parts.check_anchors,
    "box coders": parts.check_coders,
    "MaxIoUAssigner, ATSSAssigner": parts.check_assigners,
}


def check_nms_and_roi_align(case, ledger):
    parts.check_nms(case, ledger)
    two_stage.check_roi_align(case, ledger)


def check_of(case):
    if case.kind.startswith("nms, batched_nms"):
        return check_nms_and_roi_align
    if case.kind.startswith("losses:"):
        return losses.check_losses
    if case.kind.startswith("GHMC / GHMR"):
        return losses.check_ghm
    if case.kind.startswith("dense head") and case.config["type"] in heads.PREFIX:
        return heads.check_head
    if case.kind.startswith("RoI head"):
        return two_stage.check_roi
    if case.kind.startswith("Dynamic R-CNN"):
        return two_stage.check_dynamic
    if case.kind == "dense head RPNHead":
        return two_stage.check_rpn
    return CHECKS.get(case.kind)


# Upsampling of a method that is not built yet; anything else without a check fails.
LATER = ("CARAFE",)


@pytest.mark.parametrize("case", [c for c in CASES if not c.kind.startswith(LATER)], ids=lambda c: c.name)
def test_golden(case):
    if check_of(case) is None:
        raise NotRepresentable(f"{case.name}: nothing here checks {case.kind!r}")
    ledger = Ledger(case.name, torch.float64)
    check_of(case)(case, ledger)
    ledger.verdict()


def test_there_are_golden_values():
    if not CASES and not os.environ.get("CI") and "RECOLLECT_PARITY" not in os.environ:
        pytest.skip("the golden values are not beside this checkout")
    assert CASES, f"no manifest in {METHODS}"
