"""Reading the golden values of the shared parts: RECOLLECT_PARITY/methods, or the folder beside the checkout."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from parity.golden import FOLDER

METHODS = FOLDER / "methods"


@dataclass(frozen=True)
class MethodCase:
    """One entry of the manifest with its tensors."""

    name: str
    entry: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.entry["kind"]

    @property
    def config(self) -> dict[str, Any]:
        return self.entry["config"]

    @property
    def data(self) -> dict[str, Any]:
        return _load(self.entry["file"])


@cache
def _load(file: str) -> dict[str, Any]:
    return torch.load(METHODS / file, weights_only=True)


def method_cases() -> list[MethodCase]:
    """Every case of the manifest; none if the folder is missing (the test that needs it says so)."""
    path = METHODS / "manifest.json"
    if not path.is_file():
        return []
    return [MethodCase(name, entry) for name, entry in json.loads(path.read_text())["cases"].items()]


def as_double(value: Any) -> Any:
    """Every float tensor inside as float64."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: as_double(v) for k, v in value.items()}
    return [as_double(v) for v in value] if isinstance(value, list) else value
