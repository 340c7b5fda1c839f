"""Checkpoints that survive: written beside the old one, checked when read, the previous one kept.

A checkpoint is a torch file of plain data (`torch.load(weights_only=True)`), so opening one never runs code.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
FORMAT = "recollect checkpoint 1"


class CheckpointError(ValueError):
    """A file that is no whole checkpoint of ours."""


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write `last.ckpt`; what it was becomes `previous.ckpt`. At every instant one of the two is whole.

    OSError naming the file if it cannot be written; the old ones are then as they were.
    """
    last, unfinished = folder / LAST, folder / f"{LAST}.unfinished"
    try:
        with open(unfinished, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        kept = f"the checkpoint of before is intact: {last}" if last.exists() else "there was none before"
        raise OSError(
            f"the checkpoint could not be written to {last} ({_reason(error)}); {kept}. Free some disk space, then "
            f"go on with --resume {folder}"
        ) from error
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    os.replace(unfinished, last)
    _sync_folder(folder)
    return last


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint in a file; CheckpointError if it is torn, foreign or not plain data."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares every part with its checksum
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a torn zip, or a pickle that would run code, fails in many ways
        raise CheckpointError(f"{path} is torn, or not a checkpoint of plain data: {_reason(error)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of recollect")
    return state


def latest_checkpoint(folder: Path, say) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, or None if it never wrote one.

    say: called with a sentence for every file that had to be passed over. CheckpointError if none of them is whole.
    """
    faults = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = read_checkpoint(path)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            say(f"{fault}; using {path} (step {state['step']}) instead")
        return state
    if faults:
        raise CheckpointError("no checkpoint of the run can be used: " + "; ".join(faults))
    return None


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__
    text = str(error).strip().splitlines()
    if isinstance(cause, OSError) and not isinstance(error, OSError):
        return str(cause)
    return text[0] if text else type(error).__name__


def _sync_folder(folder: Path) -> None:
    """Make the renames themselves survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
