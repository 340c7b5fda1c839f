"""Weights files: data and never code, whole or refused by name."""

import pickle
import stat

import pytest
import torch
from safetensors.torch import save_file

from recollect import create_model
from recollect.convert.weights import load_weights, model_from_weights, save_weights, transfer_weights

CARD = {"model": "adamixer_tiny", "options": {"num_queries": 4, "num_stages": 2}, "names": ["a", "b"]}


@pytest.fixture(scope="module")
def model():
    return create_model("adamixer_tiny", num_classes=2, **CARD["options"])


@pytest.fixture
def file(model, tmp_path):
    save_weights(tmp_path / "w.safetensors", model, CARD)
    return tmp_path / "w.safetensors"


def test_round_trip(model, file):
    again, card = model_from_weights(file)
    assert not again.training and card["names"] == ["a", "b"] and card["recollect"]
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444 and [p.name for p in file.parent.iterdir()] == [file.name]


def test_what_only_training_needs_is_not_in_the_card(model, tmp_path):
    options = {**CARD["options"], "recollection": None, "backbone_weights": "/nowhere"}
    save_weights(tmp_path / "w.safetensors", model, {**CARD, "options": options})
    assert load_weights(tmp_path / "w.safetensors")[1]["options"] == CARD["options"]


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda p: p.unlink(), "there is no such weights file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "torn"),
        (lambda p: p.write_bytes(b"\x00" * 64), "not a safetensors file"),
        (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "not a safetensors file"),
        (lambda p: save_file({"a": torch.zeros(1)}, p), "no recollect card"),
        (lambda p: save_file({"a": torch.zeros(1)}, p, {"recollect": "[]"}), "cannot be read"),
        (lambda p: save_file({"a": torch.zeros(1)}, p, {"recollect": "{"}), "cannot be read"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_by_name(file, spoil, says):
    spoil(file)
    with pytest.raises(ValueError, match=says) as caught:
        load_weights(file)
    assert str(file) in str(caught.value)


def test_weights_of_another_shape_are_refused(model, tmp_path):
    save_weights(tmp_path / "w.safetensors", model, {**CARD, "names": ["a", "b", "c"]})
    with pytest.raises(ValueError, match="does not fit adamixer_tiny"):
        model_from_weights(tmp_path / "w.safetensors")


def test_a_model_name_in_a_card_is_only_looked_up(model, tmp_path):
    save_weights(tmp_path / "w.safetensors", model, {**CARD, "model": "os.system"})
    with pytest.raises(ValueError, match=r"there is no detector named 'os\.system'"):
        model_from_weights(tmp_path / "w.safetensors")


def test_the_old_file_survives_a_failed_write(model, file, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recollect.convert.weights.os.fsync", full)
    with pytest.raises(OSError, match=r"w\.safetensors.*No space left"):
        save_weights(file, model, CARD)
    assert file.read_bytes() == before and len(list(file.parent.iterdir())) == 1


def test_transfer_keeps_what_fits(model):
    other = create_model("adamixer_tiny", num_classes=5, **CARD["options"])
    fresh, unused = transfer_weights(other, model.state_dict())
    assert fresh == unused and set(fresh) == {f"stages.{s}.to_class.{k}" for s in (0, 1) for k in ("weight", "bias")}
    assert torch.equal(other.query_content.weight, model.query_content.weight)
    with pytest.raises(ValueError, match="none of the weights fit"):
        transfer_weights(other, {"something": torch.zeros(3)})
