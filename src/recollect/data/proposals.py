"""Proposals made elsewhere, for Fast R-CNN: a file that an RPN wrote, and a dataset that hands them out.

The file is safetensors: `<name of the image file>/boxes` [n, 4] float32 xyxy in the pixels of that file (after EXIF
rotation), `<name>/scores` [n], best first. One file may serve several splits, as long as their images differ in name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recollect.data.dataset import DetectionDataset
from recollect.data.findings import DataError


def write_proposals(path: str | Path, proposals: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Write boxes [n, 4] and scores [n] of every image, by the name of its file."""
    tensors = {}
    for name, (boxes, scores) in proposals.items():
        tensors[f"{name}/boxes"] = boxes.float().cpu().contiguous()
        tensors[f"{name}/scores"] = scores.float().cpu().contiguous()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "recollect proposals"})


class ProposalFile(Mapping[str, Tensor]):
    """Reads what `write_proposals` wrote, image by image. limit: at most so many of each image, the best."""

    def __init__(self, path: str | Path, limit: int | None = 1000) -> None:
        self.path, self.limit = Path(path), limit
        self._file: Any = None
        self._names = {key.rpartition("/")[0] for key in self._open().keys()}  # noqa: SIM118  no mapping

    def _open(self) -> Any:
        if self._file is None:
            try:
                self._file = safe_open(self.path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise DataError(
                    f"{self.path} holds no proposals ({error}); `recollect predict RPN_RUN IMAGES --proposals FILE` "
                    "writes them"
                ) from error
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # every process that reads images opens it for itself

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Tensor:
        """Boxes [n, 4] xyxy of the image whose file has this name."""
        if name not in self._names:
            raise DataError(f"{self.path} holds no proposals for the image {name}; write them anew over all images")
        return self._open().get_tensor(f"{name}/boxes")[: self.limit]


def with_proposals(dataset: DetectionDataset, path: str | Path, limit: int | None = 1000) -> DetectionDataset:
    """The same dataset, whose targets also hold `proposals` [n, 4], which transforms move like objects.

    DataError naming the first image that the file does not know.
    """
    file = ProposalFile(path, limit)
    missing = [i for i in range(len(dataset)) if dataset.file(i).name not in file]
    if missing:
        raise DataError(
            f"{path} holds no proposals for {len(missing)} of {len(dataset)} images, the first "
            f"{dataset.file(missing[0]).name}; write them with `recollect predict RPN_RUN IMAGES --proposals FILE`"
        )
    other = copy.copy(dataset)
    other.proposals = file
    return other
