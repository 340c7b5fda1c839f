"""What a training does when a number, an image, a worker or the memory gives out."""

import csv
import os
import signal

import lightning.pytorch as pl
import pytest
import torch

from recollect.cli import main
from recollect.data import open_dataset
from recollect.recipe import Recipe
from recollect.training.memory import explain_out_of_memory, is_out_of_memory
from recollect.training.nonfinite import NonFiniteLoss, replay
from tiny_data import make_rectangles


class Poison(pl.Callback):
    """Spoils numbers before the optimiser steps of these numbers."""

    def __init__(self, *steps, where="weight"):
        self.steps, self.where, self.kept, self.model = steps, where, None, None

    def on_train_batch_start(self, trainer, module, batch, index):
        if module.counts.step not in self.steps:
            return
        self.model = module.model
        if self.where == "weight":
            weight = module.model.stages[1].to_class.bias.data
            self.kept = weight.clone()
            weight[0] = float("nan")
        elif self.where == "boxes":
            batch[1][0]["boxes"] = batch[1][0]["boxes"] * float("nan")
        elif self.where == "gradient":
            weight = module.model.query_content.weight
            self.hook = weight.register_hook(lambda gradient: gradient * float("inf"))

    def on_train_batch_end(self, trainer, module, *_):
        if self.kept is not None:
            module.model.stages[1].to_class.bias.data.copy_(self.kept)
            self.kept = None
        if getattr(self, "hook", None) is not None:
            self.hook.remove()


def rows_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_bad_prediction_stops_before_the_step_and_names_its_place(fit, tmp_path, capsys):
    with pytest.raises(NonFiniteLoss) as caught:
        fit(callbacks=[Poison(2)], save_every=1)
    text = str(caught.value)
    assert "step 2" in text and "stage 1 (of 2), group(s) [0, 1] of 2: logits" in text and "Image id(s) [" in text
    assert "recollect replay" in text and "lower learning rate" in text and "--skip-nonfinite" in text
    kept = tmp_path / "run" / "bad_batch_rank0.pt"
    report = replay(kept)
    assert report.step == 2 and not report.finite and "stages.1.to_class" in report.first_module
    assert report.bad_weights == ["stages.1.to_class.bias"]
    assert main(["replay", str(kept)]) == 1 and "stages.1.to_class" in capsys.readouterr().out


def test_a_bad_label_is_named_by_its_loss_or_prediction(fit):
    with pytest.raises(ValueError, match=r"(?s)step 1.*(Not finite|finite)"):
        fit(callbacks=[Poison(1, where="boxes")])


@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_bad_steps_are_left_out_as_often_as_tolerated(fit, where, weights_of):
    result = fit(callbacks=[Poison(1, 2, where=where)], skip_nonfinite=2, steps=4, val="none")
    assert [row["skipped"] for row in rows_of(result.folder)] == ["0", "1", "2", "2"]
    assert all(torch.isfinite(v).all() for v in weights_of(result.folder).values() if v.is_floating_point())
    with pytest.raises(NonFiniteLoss, match="gradients" if where == "gradient" else "stage 1"):
        fit(out="more", callbacks=[Poison(0, 1, 2, where=where)], skip_nonfinite=2, steps=4, val="none")


def test_a_left_out_step_does_not_move_the_weights(fit, weights_of):
    copy = StopAfter(1)
    result = fit(steps=2, val="none", skip_nonfinite=1, callbacks=[copy, Poison(1)])
    after = weights_of(result.folder)
    moved = [k for k in after if not torch.equal(after[k], copy.state[k]) and "running" not in k and "num_b" not in k]
    assert moved == [] and copy.state is not None


class StopAfter(pl.Callback):
    """Keeps a copy of the weights after a step."""

    def __init__(self, step):
        self.step, self.state = step, None

    def on_train_batch_end(self, trainer, module, *_):
        if module.counts.step == self.step:
            self.state = {k: v.clone() for k, v in module.model.state_dict().items()}


def test_replay_refuses_files_that_are_not_ours(tmp_path):
    for content in (None, b"hello"):
        path = tmp_path / "x.pt"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.pt"):
            replay(path)
    torch.save({"a": 1}, tmp_path / "y.pt")
    with pytest.raises(ValueError, match="not a batch kept by recollect"):
        replay(tmp_path / "y.pt")


def test_unreadable_images_are_reported_once_counted_and_limited(fit, tmp_path, capsys):
    folder = make_rectangles(tmp_path / "d")
    for number in (1, 5):
        (folder / "images" / f"train_{number}.png").write_bytes(b"\x89PNG torn")
    result = fit(data=folder, steps=9, val="none")  # three epochs
    said = capsys.readouterr().err
    assert said.count("train_1.png") == said.count("train_5.png") == 1 and "replaced by another image" in said
    assert rows_of(result.folder)[-1]["unreadable"] == "2"
    with pytest.raises(ValueError, match=r"2 images could not be read, 1 are tolerated.*train_\d\.png"):
        fit(out="limited", data=folder, steps=9, max_unreadable=1, val="none")


class KillWorker(pl.Callback):
    def on_train_batch_end(self, trainer, module, *_):
        if module.counts.step == 1:
            loader = trainer.train_dataloader
            os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)


def test_a_killed_worker_ends_in_an_error_not_in_a_hang(fit):
    with pytest.raises(RuntimeError, match=r"reads images died at step \d+.*--workers.*--resume"):
        fit(steps=50, workers=1, callbacks=[KillWorker()], val="none")


class Hungry(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        def forward(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

        module.model.forward = forward


def test_out_of_memory_names_what_was_asked_and_three_dials(fit):
    with pytest.raises(RuntimeError) as caught:
        fit(callbacks=[Hungry()])
    text = str(caught.value)
    for part in ("batch 4", "64x64 pixels", "5 queries", "3 stage passes", "peak", "--accumulate 2", "--checkpointing",
                 "--recollection.start", "--size"):  # fmt: skip
        assert part in text, part
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert explain_out_of_memory(RuntimeError("x"), Recipe(), torch.nn.Linear(1, 1), [torch.zeros(3, 8, 8)],
                                 torch.device("cpu"))  # fmt: skip


@pytest.mark.parametrize("name", ["../../outside.png", "/etc/hostname", "link.png"])
def test_file_names_cannot_leave_the_dataset(tmp_path, name):
    """Annotations are data from strangers: a name that leads out of the folder is refused."""
    folder = make_rectangles(tmp_path / "d", train=1, val=1)
    annotations = folder / "instances_train.json"
    (tmp_path / "outside.png").write_bytes((folder / "images" / "train_0.png").read_bytes())
    if name == "link.png":
        (folder / "images" / "link.png").symlink_to(tmp_path / "outside.png")
    annotations.write_text(annotations.read_text().replace("train_0.png", name))
    with pytest.raises(ValueError, match=r"outside|link|leaves|folder"):
        open_dataset(folder, "train")[0]
