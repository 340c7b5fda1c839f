"""The suite itself: ladders become rules, and what cannot be expressed fails loudly."""

import pytest
import torch

from parity import adamixer, deformable
from parity.golden import Case, NotRepresentable, recollection, slices, take
from parity.ledger import Ledger
from recollect.decoding import Recollection


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 6, 7, 8])
def test_every_ladder_becomes_the_rule_it_came_from(stages):
    for reach in (1, 2, 3, None):
        for start in range(1, max(stages, 2)):
            rule = Recollection(start, reach)
            starts, ends = map(list, zip(*slices(rule, stages)))
            assert recollection(starts, ends, stages).groups(stages) == rule.groups(stages)


def test_the_references_own_ladders():
    sqr = recollection([0, 0, 1, 2, 4, 7], [1, 2, 4, 7, 12, 20], 6)
    assert sqr.groups(6) == [1, 2, 3, 5, 8, 13]
    # Deformable DETR's lists have one entry more than stages.
    assert recollection([0, 0, 1, 2, 4, 7, 12], [1, 2, 4, 7, 12, 20, 33], 6) == sqr
    assert recollection([0] * 6, [1, 2, 4, 8, 16, 32], 6).groups(6) == [1, 2, 4, 8, 16, 32]


def test_ladders_that_no_rule_expresses():
    with pytest.raises(NotRepresentable, match="no Recollection"):
        recollection([0, 1, 0, 2], [1, 2, 4, 7], 4)
    with pytest.raises(NotRepresentable, match="is shorter"):
        recollection([0, 0, 1], [1, 2, 4], 4)


def test_unknown_configuration_fails():
    with pytest.raises(NotRepresentable, match="means nothing"):
        take({"new_trick": 3}, {}, {})
    with pytest.raises(NotRepresentable, match=r"only 0\.0"):
        take({"dropout": 0.1}, {}, {"dropout": 0.0})
    with pytest.raises(NotRepresentable, match="means nothing"):
        deformable.variant(Case("x", {"variant": "sqr_dn"}))


CONFIG = {
    "num_stages": 4, "num_query": 5, "content_dim": 16, "feat_channels": 64, "n_groups": 2, "in_points": 4,
    "out_points": 6, "feedforward_channels": 24, "num_heads": 2, "num_classes": 3, "in_channels": [4, 6, 8, 10],
    "featmap_strides": [4, 8, 16, 32], "num_cls_fcs": 2, "start_q": [0, 0, 1, 2], "end_q": [1, 2, 4, 7],
    "max_per_img": 5, "stage_loss_weights": [1, 0.5, 2, 1],
}  # fmt: skip


def test_other_depths_and_widths_are_built():
    model = adamixer.build(CONFIG)
    assert len(model.stages) == 4 and model.criterion.stage_weights == [1, 0.5, 2, 1]
    assert model.stages[0].mixing.width == 32 and len(model.stages[0].class_layers) == 6
    config = {
        "embed_dims": 16, "num_heads": 2, "enc_layers": 1, "num_layers": 7, "num_levels": 3, "num_points": 2, "ffn": 24,
        "num_query": 5, "num_classes": 3, "num_feats": 8, "in_channels": [4, 6], "neck_groups": 4, "max_per_img": 5,
    }  # fmt: skip
    for kind in (set(), {"refine"}, {"refine", "two_stage"}):
        assert len(deformable.build(config, kind).stages) == 7
    with pytest.raises(NotRepresentable, match="not half"):
        deformable.build({**config, "num_feats": 9}, set())


def test_a_deviation_fails():
    ledger = Ledger("case", torch.float64)
    ledger.close("loss", torch.tensor(1.0 + 1e-8, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64), 1e-9)
    with pytest.raises(AssertionError, match="loss: 1e-08 > 1e-09"):
        ledger.verdict()
    ledger = Ledger("case", torch.float64)
    ledger.close("boxes", torch.tensor([float("nan")]), torch.tensor([1.0]), 1e-9)
    with pytest.raises(AssertionError, match="boxes: nan"):
        ledger.verdict()
    with pytest.raises(AssertionError, match="nothing was compared"):
        Ledger("case", torch.float64).verdict()


def test_missing_gradients_fail():
    ledger = Ledger("case", torch.float64)
    with pytest.raises(NotRepresentable, match="the reference has gradients for"):
        ledger.gradients("gradient", {}, {}, {"weight": [1.0, 1.0, 1.0]}, 1e-9)
    ledger.gradients("gradient", {"weight": torch.ones(1)}, {}, {"weight": None}, 1e-9)
    with pytest.raises(AssertionError, match="none where the reference has none"):
        ledger.verdict()
