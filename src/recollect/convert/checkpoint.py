"""Reading files of other projects without running what is in them."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Where a file may hold its weights, and a prefix that data-parallel training leaves on names.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state")
_OTHER_WEIGHTS = ("ema_state_dict", "model_ema", "ema_model", "ema")
_PREFIX = "module."


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors under its names, class names if it knows them, and remarks for the user."""

    path: Path
    state: dict[str, Tensor]
    names: list[str] | None
    notes: tuple[str, ...]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a torch checkpoint (only plain data: `weights_only=True`) or a safetensors file.

    ValueError, naming the file and what to do, for anything else: missing, torn, foreign, or holding objects that
    would run code when loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state, notes = _find_state(path, content)
    return Checkpoint(path, state, _class_names(content), tuple(notes))


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file, or it is torn: {error}") from error


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path} is empty: the download failed")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
    if not start.startswith((b"PK", b"\x80")) and b"ustar" not in start:
        raise ValueError(f"{path} is no torch checkpoint: it begins with {start[:24]!r}. A web page, saved instead?")
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is torn: it begins like a torch checkpoint and has no end. Fetch it again")
    try:
        # argparse.Namespace, in the checkpoints of DETR and its relatives, only holds attributes.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(
            r"Unsupported (?:global|class) ([\w.]+)", str(error)
        )
        if found is None:
            raise ValueError(f"{path} is torn or no torch checkpoint: {_first_line(error)}") from error
        raise ValueError(
            f"{path} is refused: it holds an object of {found[1]}, and loading that could run any code that whoever "
            "made the file put there. If you trust it, keep only its tensors, where the project that wrote it is "
            "installed:  python -c \"import torch; c = torch.load('FILE', weights_only=False); "
            "torch.save({'state_dict': c.get('state_dict', c.get('model'))}, 'CLEAN.pth')\"  and convert CLEAN.pth"
        ) from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is torn or no torch checkpoint: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _find_state(path: Path, content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The weights among what the file holds."""
    notes: list[str] = []
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    state: Any = content
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            state = content[wrapper]
            others = [name for name in _OTHER_WEIGHTS if isinstance(content.get(name), Mapping)]
            if others:
                notes.append(f"took {wrapper!r} of the file; it also holds averaged weights in {', '.join(others)}")
            break
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    others = [str(name) for name in state if str(name) not in tensors]
    if not tensors:
        raise ValueError(f"{path} holds no tensors; its entries are {', '.join(others[:10]) or 'none'}")
    if others:
        raise ValueError(f"{path}: entries that are not tensors among the weights: {', '.join(others[:10])}")
    if all(name.startswith(_PREFIX) for name in tensors):
        tensors = {name.removeprefix(_PREFIX): value for name, value in tensors.items()}
        notes.append(f"dropped the prefix {_PREFIX!r} of all names, which data-parallel training left")
    return tensors, notes


def _class_names(content: Any) -> list[str] | None:
    """MMDetection 2.x keeps them in meta.CLASSES, 3.x in meta.dataset_meta.classes."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return None
    inner = meta.get("dataset_meta")
    for holder in (meta, inner if isinstance(inner, Mapping) else {}):
        for key in ("CLASSES", "classes"):
            names = holder.get(key)
            if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
                return list(names)
    return None
