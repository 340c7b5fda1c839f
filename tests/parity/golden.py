"""Reading a set of golden values: a folder with a manifest and tensors, RECOLLECT_PARITY or the one beside us."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from recollect.decoding import Recollection
from recollect.structures import ImageBatch

FOLDER = Path(os.environ.get("RECOLLECT_PARITY") or Path(__file__).resolve().parents[3] / "shared" / "parity")


class NotRepresentable(AssertionError):
    """A case asks for something that recollect cannot express. Never a skip: it fails the suite."""


@dataclass(frozen=True)
class Case:
    """One entry of the manifest with its tensors. `entry`: the manifest's; `data`: the file's."""

    name: str
    entry: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return self.entry["config"]

    @property
    def data(self) -> dict[str, Any]:
        return _load(self.entry["file"])

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """Weights under the reference's names: in the case's own file, or in the file it names."""
        holder = _load(self.entry["weights"]) if "weights" in self.entry else self.data
        return holder["state_dict"]


@cache
def _load(file: str) -> dict[str, Any]:
    return torch.load(FOLDER / file, weights_only=True)


def cases() -> list[Case]:
    """Every case of the manifest; none if the folder is missing (the test that needs it says so)."""
    path = FOLDER / "manifest.json"
    if not path.is_file():
        return []
    return [Case(name, entry) for name, entry in json.loads(path.read_text())["cases"].items()]


def take(config: dict[str, Any], known: dict[str, str], fixed: dict[str, Any], ignored: tuple[str, ...] = ()) -> dict:
    """A case's configuration under our argument names.

    known: their key to our argument. fixed: keys that may only have this value, because nothing else exists here.
    ignored: keys read elsewhere. Any other key is something we would silently not do, so it fails.
    """
    options = {}
    for key, value in config.items():
        if key in known:
            options[known[key]] = value
        elif key in fixed:
            if value != fixed[key]:
                raise NotRepresentable(f"{key}={value!r}: only {fixed[key]!r} can be expressed")
        elif key not in ignored:
            raise NotRepresentable(f"the configuration has {key}={value!r}, which means nothing to this suite")
    return options


def recollection(starts: list[int], ends: list[int], stages: int) -> Recollection:
    """The rule behind slices of the running list of groups: stage s reads groups starts[s] to ends[s]."""
    if min(len(starts), len(ends)) < stages:
        raise NotRepresentable(f"{stages} stages, but the ladder {starts}, {ends} is shorter")
    ladder = list(zip(starts, ends))[:stages]
    reaches = [1, 2, None, *range(3, stages + 1)]
    for rule in (Recollection(start, reach) for reach in reaches for start in range(1, max(stages, 2))):
        if slices(rule, stages) == ladder:
            return rule
    raise NotRepresentable(f"no Recollection(start, reach) reads the groups {ladder}")


def slices(rule: Recollection, stages: int) -> list[tuple[int, int]]:
    """The inverse: where in the running list of groups (0: the initial queries) each stage reads."""
    edges = [0, 1]  # the outputs' edges in the running list: the initial queries are group 0
    result = []
    for stage, groups in enumerate(rule.groups(stages)):
        sources = rule.sources(stage)
        result.append((edges[sources[0]], edges[sources[-1] + 1]))
        edges.append(edges[-1] + groups)
    return result


def image_batch(inputs: dict[str, Any], dtype: torch.dtype) -> ImageBatch:
    """The batch that a case's features stand for: image sizes and the padded size, no pixels."""
    height, width = inputs["pad_shape"]
    images = torch.zeros(1, 1, 1, 1, dtype=dtype).expand(len(inputs["img_shape"]), 3, height, width)
    return ImageBatch(images, [(h, w) for h, w in inputs["img_shape"]])


def targets(inputs: dict[str, Any], dtype: torch.dtype) -> list[dict[str, Any]]:
    """The case's objects in our form."""
    pairs = zip(inputs["gt_bboxes"], inputs["gt_labels"])
    return [{"boxes": boxes.to(dtype), "labels": labels.long()} for boxes, labels in pairs]


def leaves(values: Iterable[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Copies that gather gradients."""
    return [value.detach().to(dtype, copy=True).requires_grad_() for value in values]
