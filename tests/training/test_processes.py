"""Several processes, and processes that are killed: what only shows when the operating system has a hand in it."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

import recollect
from recollect import create_model
from recollect.convert.weights import load_weights
from recollect.training.checkpoint import read_checkpoint
from tiny_data import SMALL, make_rectangles

FLAGS = ["--size", "64", "--queries", "5", "--batch", "4", "--log-every", "1", "--accelerator", "cpu", "--workers", "0"]


def rows_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def recollect_train(*words):
    command = [sys.executable, "-m", "recollect.cli", "train", *map(str, words), *FLAGS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sqr_adamixer_tiny"])
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, model):
    """Every fourth image is empty, so some ranks see no object; five validation images do not divide by two.

    The backbone comes from a file, so its batch norm keeps its statistics: those of a batch would differ.
    """
    data = make_rectangles(tmp_path / "data", val=5)
    weights = tmp_path / "backbone.pt"
    torch.manual_seed(1)
    torch.save(create_model(model).backbone.body.state_dict(), weights)
    shared = [model, "--data", data, "--steps", 20, "--stages", 2, "--lr", 1e-4, "--backbone-weights", weights]
    recollect_train(*shared, "--out", tmp_path / "one")
    said = recollect_train(*shared, "--out", tmp_path / "two", "--devices", 2)
    assert "on 2 devices" in said
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert len(one) == len(two) == 20
    for a, b in zip(one, two):
        for column in ("loss", "stage0_class", "stage1_giou", "gradient_norm"):
            assert float(a[column]) == pytest.approx(float(b[column]), rel=2e-3), (a["step"], column)
    assert float(one[-1]["AP"] or 0) == pytest.approx(float(two[-1]["AP"] or 0), abs=1e-3)
    first, second = (read_checkpoint(tmp_path / run / "last.ckpt") for run in ("one", "two"))
    for key, value in first["model"].items():
        assert torch.allclose(value.float(), second["model"][key].float(), atol=2e-4), key
    assert len(second["random"]) == 2


class KillIn(pl.Callback):
    """kill -9 of this very process at a chosen place."""

    def __init__(self, place, step):
        self.place, self.step = place, step

    def on_train_batch_end(self, trainer, module, *_):
        if module.counts.step != self.step:
            return
        if self.place == "training":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.place == "validation":
            trainer.callbacks[-1].validate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        if self.place == "checkpoint":
            save = torch.save

            def torn(state, file):
                save(state, file)
                file.truncate(file.tell() // 2)
                os.kill(os.getpid(), signal.SIGKILL)

            torch.save = torn


def run_and_be_killed(place, step, **options):
    """Train in a process of its own, which kills itself there; a fork would inherit torch's locks."""
    text = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    command = [sys.executable, __file__, place, str(step), json.dumps(text)]
    paths = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=paths)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["training", "validation", "checkpoint"])
def test_a_run_killed_anywhere_goes_on_bit_equal(fit, rectangles, tmp_path, weights_of, equal_states, place):
    options = {"steps": 6, "save_every": 2, "validate_every": 4, "ema": 0.9}
    cut = {**SMALL, **options, "model": "sqr_adamixer_tiny", "data": rectangles, "out": tmp_path / "cut"}
    run_and_be_killed(place, 5 if place == "training" else 4, **cut)
    whole, resumed = fit(out="whole", **options), fit(resume=tmp_path / "cut")
    assert equal_states(weights_of(whole.folder), weights_of(resumed.folder))
    assert equal_states(load_weights(whole.weights)[0], load_weights(resumed.weights)[0])
    assert [row["step"] for row in rows_of(resumed.folder)] == [str(step) for step in range(1, 7)]


if __name__ == "__main__":  # the process that is to be killed
    words = json.loads(sys.argv[3])
    if "size" in words:
        words["size"] = tuple(words["size"])
    recollect.train(words.pop("model", None), callbacks=[KillIn(sys.argv[1], int(sys.argv[2]))], **words)
