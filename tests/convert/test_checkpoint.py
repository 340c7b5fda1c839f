"""Files as they come: wrapped, prefixed, torn, foreign, hostile."""

import argparse
import pickle

import pytest
import torch
from safetensors.torch import save_file

from recollect.convert.checkpoint import read_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def saved(tmp_path, content, name="file.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_finds_the_weights(tmp_path, wrapper):
    read = read_checkpoint(saved(tmp_path, STATE if wrapper is None else {wrapper: STATE, "epoch": 3}))
    assert set(read.state) == set(STATE) and torch.equal(read.state["a.weight"], STATE["a.weight"])
    assert read.names is None and read.notes == ()


def test_safetensors(tmp_path):
    save_file(STATE, tmp_path / "file.safetensors")
    assert set(read_checkpoint(tmp_path / "file.safetensors").state) == set(STATE)


def test_old_format(tmp_path):
    torch.save({"model": STATE}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert set(read_checkpoint(tmp_path / "old.pth").state) == set(STATE)


def test_names_and_prefix_and_averaged_weights(tmp_path):
    wrapped = {f"module.{name}": value for name, value in STATE.items()}
    read = read_checkpoint(saved(tmp_path, {"model": wrapped, "ema_model": wrapped}))
    assert set(read.state) == set(STATE)
    assert any("ema_model" in note for note in read.notes) and any("module." in note for note in read.notes)
    assert read_checkpoint(saved(tmp_path, {"state_dict": STATE, "meta": {"CLASSES": ("cat", "dog")}})).names == [
        "cat",
        "dog",
    ]
    meta = {"dataset_meta": {"classes": ("cat",)}}
    assert read_checkpoint(saved(tmp_path, {"state_dict": STATE, "meta": meta})).names == ["cat"]


def test_namespace_of_arguments_is_plain_data(tmp_path):
    """DETR and its relatives keep `args` beside the weights."""
    assert set(read_checkpoint(saved(tmp_path, {"model": STATE, "args": argparse.Namespace(lr=0.1)})).state) == set(
        STATE
    )


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_is_refused_and_not_run(tmp_path):
    proof = tmp_path / "ran"
    path = saved(tmp_path, {"state_dict": STATE, "hub": Bomb(proof)})
    with pytest.raises(ValueError, match=r"file\.pth is refused.*open.*weights_only=False"):
        read_checkpoint(path)
    assert not proof.exists()


def test_torn_and_foreign_files(tmp_path):
    whole = saved(tmp_path, {"state_dict": STATE}).read_bytes()
    cases = {
        "half.pth": (whole[: len(whole) // 2], "torn"),
        "empty.pth": (b"", "empty"),
        "page.pth": (b"<!DOCTYPE html><html>", "no torch checkpoint.*DOCTYPE"),
        "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        "pickle.pth": (pickle.dumps({"a": 1}, protocol=2), "torn or no torch checkpoint|holds no tensors"),
        "cut.safetensors": (b"\x10\x00", "not a safetensors file"),
    }
    for name, (content, expected) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"(?s){name}.*({expected})"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(ValueError, match=r"none\.pth: there is no such file"):
        read_checkpoint(tmp_path / "none.pth")


def test_other_contents(tmp_path):
    with pytest.raises(ValueError, match="holds a list"):
        read_checkpoint(saved(tmp_path, [1, 2]))
    with pytest.raises(ValueError, match="holds no tensors; its entries are epoch"):
        read_checkpoint(saved(tmp_path, {"epoch": 1}))
    with pytest.raises(ValueError, match="not tensors among the weights: extra"):
        read_checkpoint(saved(tmp_path, {"state_dict": {**STATE, "extra": 3}}))
