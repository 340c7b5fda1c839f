"""Running a detector over a dataset to score it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from recollect.evaluation.coco import CocoMetrics, IouType, evaluate_coco
from recollect.evaluation.results import coco_results, gather
from recollect.structures import Target

Progress = Callable[[int, int], None]
"""Called with (images done on this rank, images in the dataset)."""
Loader = Iterable[tuple[Sequence[Tensor], Sequence[Target]]]


class Scorable(Protocol):
    """What scoring needs of a dataset; `recollect.data.DetectionDataset` has it."""

    @property
    def image_ids(self) -> Sequence[int]:
        """The source's id of every image."""
        ...

    @property
    def category_ids(self) -> Sequence[int]:
        """The source's id of every label."""
        ...

    def __len__(self) -> int: ...

    def ground_truth(self) -> dict[str, Any]:
        """A COCO dict in the source's ids."""
        ...


def evaluate_model(
    model: nn.Module,
    loader: Loader,
    dataset: Scorable,
    *,
    device: torch.device | str,
    stages: bool = False,
    max_detections: int = 100,
    iou_type: IouType = "bbox",
    partial: bool = False,
    progress: Progress | None = None,
) -> CocoMetrics:
    """COCO metrics of a detector on a dataset, the same on every rank.

    loader: yields (images, targets) of this rank's share of the dataset; all ranks together must cover it.
    stages: also score every decoder stage alone (`CocoMetrics.stages`); the model must have `stage_detections`.
    max_detections: per image and class; the model must keep as many per image (`num_detections`) for more to count.
    partial: score only the images that the loaders gave, instead of refusing when some are missing.
    """
    found = predict_coco(model, loader, dataset, device=device, stages=stages, progress=progress)
    missing = [i for i in dataset.image_ids if i not in found]
    if missing and not partial:
        raise ValueError(
            f"the loaders gave {len(found)} of {len(dataset)} images (image {missing[0]} is missing): "
            "let them cover the dataset, or say partial=True"
        )
    if not found:
        raise ValueError("the loaders gave no image: there is nothing to score")
    truth = dataset.ground_truth()
    per_stage = [
        evaluate_coco(
            truth,
            [result for image in found.values() for result in image[stage]],
            iou_type=iou_type,
            max_detections=max_detections,
            image_ids=list(found),
        )
        for stage in range(len(next(iter(found.values()))))
    ]
    return replace(per_stage[-1], stages=tuple(per_stage)) if stages else per_stage[-1]


def predict_coco(
    model: nn.Module,
    loader: Loader,
    dataset: Scorable,
    *,
    device: torch.device | str,
    stages: bool = False,
    progress: Progress | None = None,
) -> dict[int, list[list[dict[str, Any]]]]:
    """COCO results of all ranks: image id -> one list per decoder stage, or a single one without `stages`."""
    if stages and not hasattr(model, "stage_detections"):
        raise ValueError(f"{type(model).__name__} has no decoder stages to score one by one")
    found: dict[int, list[list[dict[str, Any]]]] = {}
    with evaluating(model):
        for images, targets in loader:
            pictures = [image.to(device, non_blocking=True) for image in images]
            if stages:
                per_stage = model.stage_detections(pictures)  # type: ignore[operator]
            elif getattr(model, "needs_proposals", False):
                per_stage = [model(pictures, targets)]
            else:
                per_stage = [model(pictures)]
            for place, (image, target) in enumerate(zip(images, targets)):
                target = {"fed_size": tuple(image.shape[-2:]), **target}
                found.setdefault(
                    int(target["image_id"]),
                    [coco_results([stage[place]], [target], dataset.category_ids) for stage in per_stage],
                )
            if progress is not None:
                progress(len(found), len(dataset))
    return gather(found)


@contextmanager
def evaluating(model: nn.Module):
    """Evaluation mode and no gradients inside; the mode the model was in afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        model.train(was_training)
