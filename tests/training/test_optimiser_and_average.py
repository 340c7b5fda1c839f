"""Parameter groups, schedules and the moving average."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from recollect.recipe import Optimiser, Recipe, Schedule
from recollect.training.average import WeightAverage
from recollect.training.optimiser import build_optimiser, parameter_groups, rate_factor, total_steps, warmup_steps


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)
        self.offsets = nn.Linear(2, 1)


def test_groups_are_merged_by_rate_and_decay():
    rule = Optimiser(scales=(("backbone.", 0.1), ("offsets", 0.1)), no_decay=("bias",), weight_decay=0.5)
    groups = parameter_groups(Net(), rule, 1.0)
    found = {(g["lr"], g["weight_decay"]): len(g["params"]) for g in groups}
    assert found == {(0.1, 0.5): 2, (0.1, 0.0): 2, (1.0, 0.5): 1, (1.0, 0.0): 1}


def test_frozen_parameters_are_left_out_and_typing_mistakes_refused():
    net = Net()
    net.backbone.requires_grad_(False)
    assert sum(len(g["params"]) for g in parameter_groups(net, Optimiser(), 1.0)) == 4
    with pytest.raises(ValueError, match="bakcbone"):
        parameter_groups(net, Optimiser(scales=(("bakcbone.", 0.1),)), 1.0)
    with pytest.raises(ValueError, match="nothing to train"):
        parameter_groups(net.requires_grad_(False), Optimiser(), 1.0)


def test_kinds_of_optimiser():
    assert isinstance(build_optimiser(Net(), Recipe()), torch.optim.AdamW)
    with pytest.raises(ValueError, match="'adam9'"):
        build_optimiser(Net(), Recipe(optimiser=Optimiser(kind="adam9")))


def test_step_schedule_with_warmup():
    schedule = Schedule(drops=(0.5, 0.75), gamma=0.1, warmup_steps=4, warmup_start=0.0)
    factors = [rate_factor(schedule, step, 40) for step in range(40)]
    assert factors[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert factors[19:21] == [1.0, 0.1] and factors[29] == 0.1 and factors[30] == pytest.approx(0.01)


def test_cosine_and_one_cycle():
    cosine = [rate_factor(Schedule(shape="cosine", warmup_steps=0), s, 100) for s in range(100)]
    assert cosine[0] == 1 and cosine[50] == pytest.approx(0.5) and cosine[-1] < 0.001
    cycle = [rate_factor(Schedule(shape="one_cycle"), s, 100) for s in range(100)]
    assert cycle[0] == pytest.approx(1 / 25) and max(cycle) == cycle[29] == 1 and cycle[-1] == pytest.approx(4e-6)
    with pytest.raises(ValueError, match="'cosin'"):
        rate_factor(Schedule(shape="cosin"), 0, 10)


def test_warmup_is_a_fifth_of_the_run_at_most():
    assert warmup_steps(Schedule(warmup_steps=500), 10_000) == 500
    assert warmup_steps(Schedule(warmup_steps=500), 100) == 20


def test_total_steps_see_every_image_epochs_times():
    assert total_steps(Schedule(epochs=3), images=10, batch=4) == 8
    assert total_steps(Schedule(epochs=3, steps=5), images=10, batch=4) == 5
    with pytest.raises(ValueError, match="trains nothing"):
        total_steps(Schedule(steps=0), 10, 4)


def test_learning_rate_follows_the_total_batch():
    recipe = Recipe(optimiser=Optimiser(lr=1.0, batch=16), batch=4)
    assert recipe.scaled_lr() == 0.5 and replace(recipe, batch=64).scaled_lr() == 2.0


def test_the_average_is_the_formula_and_copies_counters():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = WeightAverage(net, 0.5)
    expected = net[0].weight.item()
    for step in range(1, 6):
        with torch.no_grad():
            net[0].weight += 1
        net(torch.randn(4, 1))
        average.update(net)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * net[0].weight.item()
        assert average.model[0].weight.item() == pytest.approx(expected)
    assert average.model[1].num_batches_tracked.item() == 5
    again = WeightAverage(net, 0.5)
    again.load_state_dict(average.state_dict())
    assert again.steps == 5 and torch.equal(again.model[0].weight, average.model[0].weight)
    with pytest.raises(ValueError, match="between 0 and 1"):
        WeightAverage(net, 1.0)
