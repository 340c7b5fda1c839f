"""Checkpoints: at every instant one of the two is whole; a torn, foreign or malicious file is recognised."""

import os
import pickle
import resource
import signal
import zipfile

import pytest
import torch

from recollect.training.checkpoint import CheckpointError, latest_checkpoint, read_checkpoint, save_checkpoint


def state(step):
    return {"step": step, "model": {"w": torch.full((1000,), float(step))}}


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_the_newest_is_read_and_the_one_before_is_kept(tmp_path):
    assert latest_checkpoint(tmp_path, print) is None
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step))
    assert latest_checkpoint(tmp_path, print)["step"] == 3
    assert read_checkpoint(tmp_path / "previous.ckpt")["step"] == 2
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p.write_bytes(p.read_bytes()[:500]),
        lambda p: p.write_bytes(b""),
        flip_a_byte,
        lambda p: p.write_text("hello"),
        lambda p: torch.save({"epoch": 3, "state_dict": {}}, p),
        lambda p: p.unlink(),  # killed between the two renames
    ],
    ids=["torn", "empty", "damaged", "text", "foreign", "gone"],
)
def test_a_bad_file_is_passed_over_for_the_previous_one(tmp_path, spoil):
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    spoil(tmp_path / "last.ckpt")
    said = []
    found = latest_checkpoint(tmp_path, said.append)
    assert found["step"] == 1 and torch.equal(found["model"]["w"], torch.ones(1000))
    assert all("last.ckpt" in line and "using" in line for line in said)
    assert bool(said) == (tmp_path / "last.ckpt").exists()


def test_no_whole_checkpoint_is_an_error_that_names_them(tmp_path):
    save_checkpoint(tmp_path, state(1))
    (tmp_path / "last.ckpt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"no checkpoint of the run can be used.*last\.ckpt"):
        latest_checkpoint(tmp_path, print)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_opening_a_checkpoint_never_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "recollect checkpoint 1", "step": Attack()}, "last.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint of plain data"):
        read_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "raw.ckpt")
    with zipfile.ZipFile("zip.ckpt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Attack()))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "zip.ckpt")
    assert not (tmp_path / "attacked").exists()


def test_a_full_disk_is_a_sentence_and_leaves_the_last_one_whole(tmp_path):
    """The limit on file sizes stands for a full disk: the write itself fails."""
    save_checkpoint(tmp_path, state(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        with pytest.raises(OSError, match=r"could not be written.*File too large.*intact.*--resume"):
            save_checkpoint(tmp_path, state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert latest_checkpoint(tmp_path, print)["step"] == 1
