"""The rule of recollection, on a stage so small that every number can be followed."""

import pytest
import torch
from torch import nn

from recollect.decoding import PLAIN, Recollection, decode
from recollect.structures import Prediction, Queries


class Stage(nn.Module):
    """Attends within each group, moves boxes, and keeps the group axis: the least a decoder stage can be."""

    def __init__(self, channels=8, classes=3):
        super().__init__()
        self.mix = nn.Linear(channels, channels)
        self.move = nn.Linear(channels, 4)
        self.name = nn.Linear(channels, classes)

    def forward(self, queries, memory):
        weights = torch.softmax(queries.content @ queries.content.transpose(-1, -2), -1)
        content = torch.tanh(self.mix(weights @ queries.content) + memory)
        boxes = torch.sigmoid(queries.boxes.detach() + self.move(content))
        return Queries(content, boxes), Prediction(self.name(content), boxes)


def setup(stages=6, batch=2, queries=4, channels=8):
    torch.manual_seed(1)
    decoder = nn.ModuleList(Stage(channels) for _ in range(stages)).double()
    start = Queries(torch.randn(batch, 1, queries, channels).double(), torch.rand(batch, 1, queries, 4).double())
    return decoder, start, torch.randn(channels).double()


@pytest.mark.parametrize(
    ("rule", "groups"),
    [
        (Recollection(), [1, 2, 3, 5, 8, 13]),
        (Recollection(start=2), [1, 1, 2, 3, 5, 8]),
        (Recollection(start=3), [1, 1, 1, 2, 3, 5]),
        (Recollection(start=4), [1, 1, 1, 1, 2, 3]),
        (Recollection(start=5), [1, 1, 1, 1, 1, 2]),
        (Recollection(reach=None), [1, 2, 4, 8, 16, 32]),
        (Recollection(reach=None, repeat_last=True), [1, 2, 4, 8, 16, 32, 32]),
        (Recollection(reach=3), [1, 2, 4, 7, 13, 24]),
        (PLAIN, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_groups_per_stage(rule, groups):
    assert rule.groups(6) == groups
    decoder, start, memory = setup()
    assert [p.logits.shape[1] for p in decode(decoder, start, memory, rule)] == groups


def test_published_numbers_of_passes():
    """Facts: 32 / 20 / 13 / 9 / 7 passes for the ladder, 63 dense, 95 dense and recurrent, 53 with a seventh stage."""
    assert [sum(Recollection(start=s).groups(6)) for s in range(1, 6)] == [32, 20, 13, 9, 7]
    assert sum(Recollection(reach=None).groups(6)) == 63
    assert sum(Recollection(reach=None, repeat_last=True).groups(6)) == 95
    assert sum(Recollection().groups(7)) == 53


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("rule", [Recollection(), Recollection(start=3), Recollection(reach=None)])
def test_last_group_is_the_plain_path_to_the_bit(stages, rule):
    decoder, start, memory = setup(stages)
    plain = decode(decoder, start, memory)
    for own, recollected in zip(plain, decode(decoder, start, memory, rule)):
        assert torch.equal(own.logits[:, -1], recollected.logits[:, -1])
        assert torch.equal(own.boxes[:, -1], recollected.boxes[:, -1])


def test_groups_stand_oldest_first():
    """The third stage holds the path that skipped the second, then what the second wrote: from q0, from the first."""
    decoder, start, memory = setup(3)
    third = decode(decoder, start, memory, Recollection())[2]
    a, b, c = decoder
    skipping = c(a(start, memory)[0], memory)[1]
    late = c(b(start, memory)[0], memory)[1]
    plain = c(b(a(start, memory)[0], memory)[0], memory)[1]
    for group, path in enumerate((skipping, late, plain)):
        torch.testing.assert_close(third.group(group).logits, path.logits, rtol=1e-12, atol=1e-12)


def test_groups_never_see_each_other():
    """Perturb one group; the others do not move."""
    decoder, start, memory = setup(1)
    two = Queries.cat([start, Queries(start.content + 1, start.boxes)])
    touched = Queries.cat([Queries(start.content * 3 - 1, start.boxes), Queries(start.content + 1, start.boxes)])
    (one,), (other,) = decode(decoder, two, memory), decode(decoder, touched, memory)
    assert torch.equal(one.logits[:, 1], other.logits[:, 1])
    assert not torch.allclose(one.logits[:, 0], other.logits[:, 0])


def test_gradients_flow_back_through_every_path():
    """The last stage's oldest group skips the stage before it, and still teaches the one before that."""
    decoder, start, memory = setup(3)
    third = decode(decoder, start, memory, Recollection())[2]
    third.group(0).logits.sum().backward()
    assert decoder[0].mix.weight.grad.abs().sum() > 0
    assert decoder[1].mix.weight.grad.abs().sum() == 0
    assert decoder[2].mix.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("rule", [None, Recollection(), Recollection(reach=None, repeat_last=True)])
def test_checkpointing_changes_nothing_but_memory(rule):
    gradients = []
    for checkpointing in (False, True):
        decoder, start, memory = setup()
        start.content.requires_grad_()
        predictions = decode(decoder, start, memory, rule, checkpointing)
        sum((p.logits**2).sum() + p.boxes.sum() for p in predictions).backward()
        gradients.append([start.content.grad, *(p.grad for p in decoder.parameters())])
    for kept, recomputed in zip(*gradients):
        torch.testing.assert_close(kept, recomputed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"start": 0}, {"reach": 0}, {"reach": -1}])
def test_a_rule_that_means_nothing_is_refused(options):
    with pytest.raises(ValueError, match="use 1"):
        Recollection(**options)
