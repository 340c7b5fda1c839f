"""A training from beginning to end, its knobs, and going on after it was cut off."""

import csv
import json

import lightning.pytorch as pl
import pytest
import torch

import recollect
from recollect.convert.weights import load_weights, model_from_weights
from recollect.recipe import Recipe
from recollect.training.checkpoint import read_checkpoint


def rows_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


class CutOff(pl.Callback):
    """Raises after so many optimiser steps, as a crash would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, *_):
        if module.counts.step == self.step:
            raise RuntimeError("cut off")


def test_run_folder_holds_everything_that_is_promised(fit, tmp_path):
    result = fit(validate_every=2)
    names = {p.name for p in result.folder.iterdir()}
    assert {"recipe.json", "metrics.csv", "weights.safetensors", "last.ckpt", "pictures"} <= names
    assert sorted(p.name for p in (result.folder / "pictures").iterdir()) == ["step_000002.jpg", "step_000004.jpg"]
    recipe = Recipe.load(result.folder / "recipe.json")
    assert (recipe.model, recipe.batch, recipe.precision) == ("sqr_adamixer_tiny", 4, "fp32")
    state, card = load_weights(result.weights)
    assert card["names"] == ["red", "green"] and card["category_ids"] == [3, 7]
    model, _ = model_from_weights(result.weights)
    assert model.state_dict().keys() == state.keys()
    rows = rows_of(result.folder)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [bool(row["AP"]) for row in rows] == [False, True, False, True]
    assert [bool(row["epoch_seconds"]) for row in rows] == [False, False, True, False]  # 12 images, 4 a step
    for column in ("loss", "lr", "gradient_norm", "images_per_second", "peak_memory_mb", "seconds", "stage1_giou"):
        assert all(float(row[column]) > 0 for row in rows), column


def test_a_run_without_validation_keeps_its_last_weights(fit, weights_of, equal_states):
    result = fit(val="none")
    assert equal_states(load_weights(result.weights)[0], weights_of(result.folder))
    assert result.best_ap is None


def test_a_run_folder_is_not_overwritten(fit):
    fit(steps=1)
    with pytest.raises(ValueError, match=r"already holds a run.*--resume"):
        fit(steps=1)


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "accumulate": 2, "schedule": "cosine"}])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(fit, tmp_path, weights_of, equal_states, options):
    whole = fit(out="whole", steps=6, save_every=2, validate_every=3, **options)
    with pytest.raises(RuntimeError, match="cut off"):
        fit(out="cut", steps=6, save_every=2, validate_every=3, callbacks=[CutOff(5)], **options)
    assert read_checkpoint(tmp_path / "cut" / "last.ckpt")["step"] == 4
    resumed = fit(resume=tmp_path / "cut")
    assert equal_states(weights_of(whole.folder), weights_of(resumed.folder))
    assert equal_states(load_weights(whole.weights)[0], load_weights(resumed.weights)[0])
    one, other = (read_checkpoint(folder / "last.ckpt") for folder in (whole.folder, resumed.folder))
    assert str(one["optimiser"]["param_groups"]) == str(other["optimiser"]["param_groups"])
    assert one["standing"]["best"] == other["standing"]["best"]
    assert torch.equal(one["random"][0]["torch"], other["random"][0]["torch"])
    assert [row["step"] for row in rows_of(resumed.folder)] == ["1", "2", "3", "4", "5", "6"]
    assert [r["loss"] for r in rows_of(whole.folder)] == [r["loss"] for r in rows_of(resumed.folder)]


def test_a_complete_run_is_not_trained_further(fit, weights_of, equal_states):
    result = fit(steps=2)
    before = weights_of(result.folder)
    again = fit(resume=result.folder)
    assert again.steps == 2 and equal_states(before, weights_of(result.folder))


def test_a_run_cut_off_before_its_first_checkpoint_begins_again(fit, tmp_path, weights_of, equal_states):
    with pytest.raises(RuntimeError, match="cut off"):
        fit(out="cut", steps=3, callbacks=[CutOff(1)])
    assert not (tmp_path / "cut" / "last.ckpt").exists()
    assert equal_states(weights_of(fit(resume=tmp_path / "cut").folder), weights_of(fit(out="whole", steps=3).folder))


def test_what_a_resumed_run_may_not_change(fit, tmp_path):
    fit(steps=1)
    with pytest.raises(ValueError, match=r"resumed run goes on as it began: batch cannot be changed"):
        recollect.train(resume=tmp_path / "run", batch=8)
    with pytest.raises(ValueError, match="no run folder"):
        recollect.train(resume=tmp_path / "elsewhere")


def test_accumulated_passes_take_the_same_images(fit):
    """Only the normalisers differ: each pass divides by its own objects."""
    whole, parts = fit(out="whole", steps=3, val="none"), fit(out="parts", steps=3, accumulate=2, val="none")
    for a, b in zip(rows_of(whole.folder), rows_of(parts.folder)):
        assert float(a["lr"]) == float(b["lr"]) and float(a["images_per_second"]) > 0
    with pytest.raises(ValueError, match=r"batch of 4 does not divide into 1 device\(s\) x 3 accumulated"):
        fit(out="wrong", accumulate=3)


def test_early_stopping(fit, capsys):
    result = fit(steps=6, validate_every=1, patience=2, lr=1e-12)
    assert result.steps == 3 and (result.folder / "weights.safetensors").exists()
    assert "no better AP in 2 validations" in capsys.readouterr().err


def test_frozen_parts_do_not_move(fit, weights_of):
    before, after = weights_of(fit(out="one", steps=1).folder), weights_of(fit(out="two", freeze=("backbone.",)).folder)
    result = fit(out="three", steps=1, freeze=("backbone.",))
    frozen = weights_of(result.folder)
    assert all(torch.equal(frozen[k], after[k]) for k in frozen if k.startswith("backbone."))
    assert not all(torch.equal(before[k], after[k]) for k in before if k.startswith("backbone."))
    with pytest.raises(
        ValueError, match="--freeze backbon_e: no parameter's name holds that; the detector has backbone"
    ):
        fit(out="wrong", freeze=("backbon_e",))


def test_fine_tuning_with_other_classes_says_what_is_new(fit, tmp_path, capsys):
    from tiny_data import make_rectangles

    first = fit(steps=2)
    three = make_rectangles(tmp_path / "three", names=("red", "green", "blue"))
    second = fit(out="second", data=three, start_from=first.folder, steps=1, lr=1e-12)
    said = capsys.readouterr().err
    assert (
        "re-initialised" in said and "stages.1.to_class.weight" in said and "backbone" not in said.split("re-init")[1]
    )
    old, new = load_weights(first.weights)[0], load_weights(second.weights)[0]
    assert new["stages.0.to_class.weight"].shape[0] == 3
    assert torch.allclose(old["query_content.weight"], new["query_content.weight"], atol=1e-6)


def test_the_learning_rate_rule_is_printed(fit, capsys):
    fit(steps=1, quiet=False)
    assert "learning rate 0.0005 = 0.001 x sqrt(4 / 16)" in capsys.readouterr().err


def test_callbacks_of_the_user_are_called_and_their_state_is_kept(fit, tmp_path):
    class Counter(CutOff):
        seen = 0

        def on_train_batch_end(self, trainer, module, *rest):
            self.seen += 1
            super().on_train_batch_end(trainer, module, *rest)

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    with pytest.raises(RuntimeError, match="cut off"):
        fit(out="cut", steps=4, save_every=2, callbacks=[Counter(3)])
    counter = Counter(None)
    fit(resume=tmp_path / "cut", callbacks=[counter])
    assert counter.seen == 4


def test_the_optimisers_rules_of_a_recipe_are_followed(fit, rectangles):
    """SGD, one-cycle and per-layer rates reach the optimiser."""
    seen = {}

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            seen[module.counts.step] = [(g["lr"], g["weight_decay"]) for g in module.optimiser.param_groups]
            seen["kind"] = type(module.optimiser).__name__

    fit(optimiser="sgd", schedule="one_cycle", steps=10, lr=1e-3, val="none", callbacks=[Look()])
    rates = [seen[step][0][0] for step in range(1, 10)]
    assert seen["kind"] == "SGD" and max(rates) == rates[1] == pytest.approx(2.5e-4) and rates[-1] < 1e-6


def test_settings_of_another_version_are_refused(fit, tmp_path):
    fit(steps=1)
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    described["settings"]["warp"] = 9
    (tmp_path / "run" / "run.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="warp"):
        fit(resume=tmp_path / "run")


def test_different_classes_in_training_and_validation_are_refused(fit, rectangles, tmp_path):
    from tiny_data import make_rectangles

    other = make_rectangles(tmp_path / "other", names=("red", "blue"))
    with pytest.raises(ValueError, match=r"different classes.*blue"):
        fit(val=other)
