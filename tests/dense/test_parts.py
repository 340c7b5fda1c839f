"""Losses, coders, anchors, FPN and post-processing: against their definitions, and by gradcheck in float64."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from recollect.layers.anchors import AnchorGenerator, PointGenerator
from recollect.layers.box_coders import DeltaBoxCoder, DistanceBoxCoder, centreness, expected_bin
from recollect.layers.conv import group_norm
from recollect.layers.fpn import FPN
from recollect.losses import boxes as box_losses
from recollect.losses import focal as focal_losses
from recollect.ops.nms import PostProcess, SoftNMS, batched_nms, multiclass_nms, soft_nms


def random_boxes(count, seed=0, size=100.0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * size
    return torch.cat((low, low + 5 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * size / 2), 1)


def random_logits(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Losses


def test_quality_focal_is_focal_where_the_quality_is_zero_or_one():
    logits = random_logits(20, 3)
    hard = (random_logits(20, 3, seed=1) > 0).double()
    plain = focal_losses.focal(logits, hard, alpha=-1, gamma=2.0)
    torch.testing.assert_close(focal_losses.quality_focal(logits, hard), plain)


def test_quality_focal_against_its_equation():
    logits, quality = random_logits(9), torch.linspace(0, 1, 9, dtype=torch.float64)
    for x, y, found in zip(logits.tolist(), quality.tolist(), focal_losses.quality_focal(logits, quality).tolist()):
        p = 1 / (1 + math.exp(-x))
        entropy = -(y * math.log(p) + (1 - y) * math.log(1 - p))
        assert found == pytest.approx(abs(y - p) ** 2 * entropy)


def test_distribution_focal_is_least_at_the_two_bins_around():
    target = torch.tensor([2.25], dtype=torch.float64)
    best = torch.full((1, 5), -40.0, dtype=torch.float64)
    best[0, 2], best[0, 3] = math.log(0.75), math.log(0.25)
    least = focal_losses.distribution_focal(best, target)
    assert float(least) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert float(expected_bin(best, sides=1)) == pytest.approx(2.25)
    other = best + random_logits(1, 5, seed=3)
    assert float(focal_losses.distribution_focal(other, target)) > float(least)


def test_the_iou_family_agrees_on_identical_and_on_disjoint_boxes():
    same = random_boxes(4)
    for loss in (box_losses.iou_loss, box_losses.giou_loss, box_losses.diou_loss, box_losses.ciou_loss):
        assert loss(same, same).abs().max() < 1e-6
    far = same + 1000
    assert (box_losses.giou_loss(same, far) > 1).all() and (box_losses.diou_loss(same, far) > 1).all()
    assert (box_losses.iou_loss(same, far, linear=True) - 1).abs().max() < 1e-5


ELEMENTWISE = {
    "focal": lambda x: focal_losses.focal(x, (random_logits(6, 4, seed=5) > 0).double()),
    "quality focal": lambda x: focal_losses.quality_focal(x, random_logits(6, 4, seed=5).sigmoid()),
    "varifocal": lambda x: focal_losses.varifocal(x, random_logits(6, 4, seed=5).sigmoid() * (x > 0)),
    "gaussian focal": lambda x: focal_losses.gaussian_focal(
        x.sigmoid(), random_logits(6, 4, seed=5).sigmoid().round(decimals=1)
    ),
    "distribution focal": lambda x: focal_losses.distribution_focal(x, random_logits(6, seed=6).sigmoid() * 3),
    "expected bin": lambda x: expected_bin(x, sides=2),
    "balanced l1": lambda x: box_losses.balanced_l1(x, random_logits(6, 4, seed=5)),
    "smooth l1": lambda x: box_losses.smooth_l1(x, random_logits(6, 4, seed=5), 0.3),
    "delta decode": lambda x: DeltaBoxCoder(stds=(0.1, 0.1, 0.2, 0.2)).decode(random_boxes(6), x),
    "distance decode": lambda x: DistanceBoxCoder().decode(random_boxes(6), x.exp()),
}
ON_BOXES = {
    "iou": box_losses.iou_loss,
    "giou": box_losses.giou_loss,
    "diou": box_losses.diou_loss,
    "ciou": box_losses.ciou_loss,
    "bounded iou": box_losses.bounded_iou_loss,
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_gradients(name):
    assert gradcheck(ELEMENTWISE[name], random_logits(6, 4).requires_grad_())


@pytest.mark.parametrize("name", ON_BOXES)
def test_gradients_on_boxes(name):
    target = random_boxes(8, seed=1)
    near = target + 2 * random_logits(8, 4)  # overlapping, so that no IoU sits at its clamp
    assert gradcheck(lambda x: ON_BOXES[name](x, target), near.requires_grad_())


def test_gradients_of_the_pyramid():
    neck = FPN((2, 3), 4, 3, extra="output", relu_before_extra=True, norm=group_norm(2)).double()
    maps = [random_logits(1, 2, 5, 6).requires_grad_(), random_logits(1, 3, 3, 3).requires_grad_()]
    assert gradcheck(lambda *x: tuple(neck(x)), maps)


# --- Coders and anchors


@pytest.mark.parametrize("coder", [DeltaBoxCoder(), DeltaBoxCoder((0.1, 0, 0, 0.2), (0.1, 0.1, 0.2, 0.2)),
                                   DistanceBoxCoder()])  # fmt: skip
def test_decoding_undoes_encoding(coder):
    priors, boxes = random_boxes(50), random_boxes(50, seed=1)
    torch.testing.assert_close(coder.decode(priors, coder.encode(priors, boxes)), boxes)
    clipped = coder.decode(priors, coder.encode(priors, boxes), (40, 60))
    assert clipped[:, 0::2].max() <= 60 and clipped[:, 1::2].max() <= 40 and clipped.min() >= 0


def test_a_point_is_most_central_in_the_middle():
    sides = torch.tensor([[5.0, 5, 5, 5], [1, 5, 9, 5], [1, 1, 9, 9]])
    assert centreness(sides).tolist() == pytest.approx([1, 1 / 3, 1 / 9])


def test_points_stand_in_the_middle_of_their_cells():
    priors = PointGenerator((4, 8)).grid([(2, 3), (1, 2)], torch.float32, "cpu")
    assert priors.counts == (6, 2)
    assert priors.centres.tolist() == [[2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6], [4, 4], [12, 4]]
    assert priors.strides.tolist() == [4] * 6 + [8] * 2


def test_anchors_in_the_padding_are_known():
    anchors = AnchorGenerator.scaled((8, 16), [2], (1.0,))
    inside = anchors.inside([(4, 4), (2, 2)], height=16, width=24)
    assert inside.tolist() == [c < 3 and r < 2 for r in range(4) for c in range(4)] + [True, True, False, False]


def test_anchors_are_kept_for_the_next_call():
    anchors = AnchorGenerator.retina((8, 16))
    maps = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)]
    assert anchors(maps) is anchors(maps)
    assert anchors([m.double() for m in maps]).boxes.dtype == torch.float64
    with pytest.raises(ValueError, match="2 levels, not 1"):
        anchors(maps[:1])


def test_what_a_pyramid_cannot_be_is_refused():
    with pytest.raises(ValueError, match="'pool', 'input', 'lateral' or 'output', not 'conv'"):
        FPN((8, 8), extra="conv")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot give only 1 levels"):
        FPN((8, 8), levels=1)
    with pytest.raises(ValueError, match="reads 2 maps, not 1"):
        FPN((8, 8))([torch.zeros(1, 8, 4, 4)])


# --- Post-processing


def loop_soft_nms(boxes, scores, threshold, soft):
    """One box at a time, as the paper writes it."""
    remaining = [[s, i] for i, s in enumerate(scores.tolist()) if s >= soft.min_score]
    kept = []
    while remaining:
        remaining.sort(key=lambda pair: -pair[0])
        score, best = remaining.pop(0)
        kept.append((best, score))
        for pair in remaining:
            overlap = 1 - float(box_losses.iou_loss(boxes[best], boxes[pair[1]], linear=True, eps=0))
            if soft.method == "linear":
                pair[0] *= 1 - overlap if overlap > threshold else 1
            else:
                pair[0] *= math.exp(-(overlap**2) / soft.sigma)
        remaining = [pair for pair in remaining if pair[0] >= soft.min_score]
    return kept


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms_against_a_loop(method):
    boxes, scores = random_boxes(40, size=40), random_logits(40).sigmoid()
    soft = SoftNMS(method, 0.5, 0.1)
    kept, values = soft_nms(boxes, scores, 0.3, soft)
    expected = loop_soft_nms(boxes, scores, 0.3, soft)
    assert kept.tolist() == [i for i, _ in expected]
    assert values.tolist() == pytest.approx([s for _, s in expected])
    assert len(kept) > len(batched_nms(boxes, scores, torch.zeros(40, dtype=torch.long), 0.3))


def test_classes_do_not_suppress_each_other():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11]])
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.7]])
    _, values, labels, index = multiclass_nms(boxes, scores, score_threshold=0.2)
    assert values.tolist() == pytest.approx([0.9, 0.7]) and labels.tolist() == [0, 1] and index.tolist() == [0, 1]


def test_quality_multiplies_after_the_threshold():
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    scores, quality = torch.tensor([[0.3], [0.9]]), torch.tensor([1.0, 0.01])
    _, values, _, index = multiclass_nms(boxes, scores, score_threshold=0.2, factor=quality)
    assert index.tolist() == [0, 1] and values.tolist() == pytest.approx([0.3, 0.009])


def test_per_class_boxes_and_limits():
    boxes = random_boxes(30).view(10, 3, 4)
    found, values, labels, index = multiclass_nms(boxes, random_logits(10, 3).sigmoid(), max_detections=5)
    assert len(values) == 5 and (values.diff() <= 0).all()
    assert torch.equal(found, boxes[index, labels])


def test_nothing_above_the_threshold_is_no_detection():
    found, values, labels, index = multiclass_nms(random_boxes(5), torch.zeros(5, 3))
    assert found.shape == (0, 4) and not len(values) and not len(labels) and not len(index)
    kept, _ = soft_nms(random_boxes(3), torch.zeros(3), 0.5)
    assert not len(kept)


def test_candidates_by_prior_and_by_pair():
    scores = torch.tensor([[0.9, 0.8, 0.7], [0.6, 0.1, 0.1], [0.5, 0.1, 0.1]])
    chosen, kept = PostProcess(candidates=2).choose(scores, None)
    assert chosen.tolist() == [0, 1] and torch.equal(kept, scores)
    chosen, kept = PostProcess(candidates=2, pairs=True).choose(scores, None)
    assert chosen.tolist() == [0] and kept[0].tolist() == pytest.approx([0.9, 0.8, 0.0])
    chosen, _ = PostProcess(candidates=1).choose(scores, torch.tensor([0.1, 1.0, 0.9]))
    assert chosen.tolist() == [1]
