"""Matching and losses: against their definitions, and in the corners where training runs die."""

import itertools

import pytest
import torch

from helpers import make_targets, total
from recollect.losses import FocalClassification, SetCriterion, SoftmaxClassification
from recollect.losses.set_criterion import gather_objects
from recollect.matching import NonFinitePrediction
from recollect.structures import Prediction

WHWH = torch.tensor([[128.0, 96, 128, 96], [120, 90, 120, 90]]).double()


def predictions(groups=(1, 2, 3), batch=2, queries=5, classes=3, seed=3):
    generator = torch.Generator().manual_seed(seed)

    def one(g):
        centre = 0.2 + 0.6 * torch.rand(batch, g, queries, 2, generator=generator)
        size = 0.05 + 0.3 * torch.rand(batch, g, queries, 2, generator=generator)
        logits = torch.randn(batch, g, queries, classes, generator=generator)
        return Prediction(logits.double(), torch.cat((centre, size), -1).double())

    return [one(g) for g in groups]


def criterion(kind="focal", **options):
    return SetCriterion(FocalClassification() if kind == "focal" else SoftmaxClassification(), **options)


@pytest.mark.parametrize("kind", ["focal", "softmax"])
@pytest.mark.parametrize("counts", [[3, 2], [0, 4], [0, 0], [7, 1], [9, 9]])
def test_loss_of_a_stage_is_the_sum_of_its_groups_computed_alone(kind, counts):
    classes = 3 + (kind == "softmax")
    targets, stages = make_targets(counts), predictions(classes=classes)
    together = criterion(kind)(stages, targets, WHWH)
    for stage, prediction in enumerate(stages):
        for part in ("class", "l1", "giou"):
            alone = [criterion(kind)([prediction.group(g)], targets, WHWH) for g in range(prediction.logits.shape[1])]
            expected = sum(losses[f"stage0_{part}"] for losses in alone)
            torch.testing.assert_close(together[f"stage{stage}_{part}"], expected, rtol=1e-12, atol=1e-12)
    assert torch.isfinite(total(together))


def test_matching_is_the_cheapest_of_all_assignments():
    (prediction,) = predictions(groups=(2,), queries=4)
    objects = gather_objects(make_targets([3, 2]), WHWH)
    matcher = criterion().matcher
    (matches,) = matcher.match([(prediction, objects)])
    for image, count in enumerate([3, 2]):
        one = slice(image, image + 1)
        costs = matcher.cost(prediction.logits[one], prediction.boxes[one], objects, one)[0]
        for group in range(2):
            mine = (matches.image == image) & (matches.group == group)
            own = costs[group][matches.query[mine], matches.object[mine]].sum()
            best = min(
                sum(costs[group][q, t] for t, q in enumerate(p)) for p in itertools.permutations(range(4), count)
            )
            torch.testing.assert_close(own, best)


def test_costs_follow_their_definition():
    """One query, one object, every term by hand."""
    logits = torch.tensor([[[[0.3, -1.0]]]]).double()
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.4]]]]).double()
    whwh = torch.tensor([[100.0, 50, 100, 50]]).double()
    target = {"boxes": torch.tensor([[45.0, 15, 65, 35]]), "labels": torch.tensor([1])}
    cost = criterion().matcher.cost(logits, boxes, gather_objects([target], whwh), slice(0, 1))
    p = torch.tensor(-1.0).double().sigmoid()
    focal = -torch.log(p) * 0.25 * (1 - p) ** 2 + torch.log(1 - p) * 0.75 * p**2
    l1 = 0.05 + 0.0 + 0.0 + 0.0  # centre x 0.55 against 0.5; the rest agrees
    overlap, union, hull = 15 * 20.0, 400 + 400 - 300.0, 25 * 20.0
    giou = overlap / union - (hull - union) / hull
    expected = 2 * focal + 5 * l1 - 2 * giou
    torch.testing.assert_close(cost.flatten()[0], expected, rtol=1e-7, atol=1e-7)


def test_more_objects_than_queries_matches_every_query_once():
    (prediction,) = predictions(groups=(3,), queries=5)
    (matches,) = criterion().matcher.match([(prediction, gather_objects(make_targets([9, 2]), WHWH))])
    assert matches.per_group == 5 + 2
    first = matches.query[(matches.image == 0) & (matches.group == 1)]
    assert sorted(first.tolist()) == list(range(5))


def test_one_copy_to_the_host(monkeypatch):
    """All stages, groups and images of a step, and the proposals, share one transfer."""
    copies = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self, *a, **k: (copies.append(self.shape), real(self, *a, **k))[1])
    proposals = predictions(groups=(1,), queries=30, classes=1)[0]
    losses = criterion()(predictions(), make_targets([3, 2]), WHWH, proposals)
    assert len(copies) == 1
    assert {"proposals_class", "proposals_l1", "proposals_giou"} <= losses.keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_prediction_names_its_images(value):
    stages = predictions()
    stages[1].boxes[1, 0, 2, 0] = value
    with pytest.raises(NonFinitePrediction, match=r"image\(s\) \[1\]") as caught:
        criterion()(stages, make_targets([3, 2]), WHWH)
    assert caught.value.images == [1] and caught.value.groups == [1]


def test_stage_weights_scale_their_stage():
    stages, targets = predictions(), make_targets([3, 2])
    plain, weighted = (criterion(stage_weights=w)(stages, targets, WHWH) for w in (None, (1, 0.5, 0)))
    torch.testing.assert_close(weighted["stage1_l1"], plain["stage1_l1"] * 0.5)
    assert weighted["stage2_giou"] == 0


def test_half_precision_predictions_are_matched_in_full():
    stages = [Prediction(p.logits.bfloat16() * 50, p.boxes.bfloat16()) for p in predictions()]
    losses = criterion()(stages, make_targets([3, 2]), WHWH.float())
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
