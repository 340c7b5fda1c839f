"""What every decoder stage said about every image, as plain arrays: the input of the stage-wise analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recollect.evaluation.results import original_size, to_original
from recollect.evaluation.run import Loader, Progress, Scorable, evaluating
from recollect.ops.boxes import cxcywh_to_xyxy


@dataclass(frozen=True)
class StagePredictions:
    """Predictions of the plain path, I images, S stages, N queries, and the D best detections of each stage.

    image_ids: [I]. scores, labels: [I, S, N], each query's best class and its score. boxes: [I, S, N, 4] xyxy in the
        pixels of the image files.
    top_scores, top_labels, top_queries: [I, S, D], each stage post-processed as the detector does: the best pairs of
        query and class, scores descending. The same query may stand there with several classes.
    """

    image_ids: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    top_scores: np.ndarray
    top_labels: np.ndarray
    top_queries: np.ndarray

    @property
    def num_stages(self) -> int:
        """S."""
        return self.scores.shape[1]

    @property
    def top_boxes(self) -> np.ndarray:
        """[I, S, D, 4] xyxy."""
        return np.take_along_axis(self.boxes, self.top_queries[..., None].astype(np.int64), axis=2)

    def coco_results(self, stage: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """The detections of one stage as COCO results, in the order of `image_ids`."""
        boxes = self.top_boxes[:, stage].copy()
        boxes[..., 2:] -= boxes[..., :2]
        count = boxes.shape[1]
        images = np.repeat(self.image_ids, count).tolist()
        categories = np.asarray(category_ids)[self.top_labels[:, stage]].ravel().tolist()
        rows = zip(images, categories, boxes.reshape(-1, 4).tolist(), self.top_scores[:, stage].ravel().tolist())
        return [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in rows]


@dataclass(frozen=True)
class Objects:
    """The objects of the images of some `StagePredictions`, T in all, ordered by image.

    image: [T] place in `image_ids`. label: [T] 0..K-1. xywh: [T, 4]. crowd: [T] bool. ids: [T] annotation ids.
    """

    image: np.ndarray
    label: np.ndarray
    xywh: np.ndarray
    crowd: np.ndarray
    ids: np.ndarray
    num_images: int
    num_classes: int

    @staticmethod
    def of(ground_truth: dict[str, Any], image_ids: Sequence[int], category_ids: Sequence[int]) -> Objects:
        """From a COCO ground truth; annotations of other images or categories are left out."""
        place = {image: i for i, image in enumerate(np.asarray(image_ids).tolist())}
        label = {category: k for k, category in enumerate(category_ids)}
        rows = [
            (place[a["image_id"]], label[a["category_id"]], a["bbox"], bool(a.get("iscrowd", 0)), a["id"])
            for a in ground_truth["annotations"]
            if a["image_id"] in place and a["category_id"] in label
        ]
        rows.sort(key=lambda row: row[0])
        image, labels, boxes, crowd, ids = zip(*rows) if rows else ([], [], [], [], [])
        return Objects(
            np.array(image, np.int64),
            np.array(labels, np.int64),
            np.array(boxes, np.float64).reshape(-1, 4),
            np.array(crowd, bool),
            np.array(ids, np.int64),
            len(place),
            len(label),
        )


def box_iou(xyxy: np.ndarray, xywh: np.ndarray, crowd: np.ndarray | bool = False) -> np.ndarray:
    """COCO's IoU of detections [..., 4] with objects [..., 4]; with a crowd, the share of the detection inside it.

    Computed from widths and heights in float64 in pycocotools' order of operations, so that matches agree to the bit.
    """
    x, y = xyxy[..., 0], xyxy[..., 1]
    w, h = xyxy[..., 2] - x, xyxy[..., 3] - y
    gx, gy, gw, gh = (xywh[..., i] for i in range(4))
    width = np.minimum(x + w, gx + gw) - np.maximum(x, gx)
    height = np.minimum(y + h, gy + gh) - np.maximum(y, gy)
    overlap = np.where((width > 0) & (height > 0), width * height, 0.0)
    union = np.where(crowd, w * h, w * h + gw * gh - overlap)
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)


def collect_stages(
    model: nn.Module,
    loader: Loader,
    dataset: Scorable,
    *,
    device: torch.device | str,
    limit: int | None = None,
    progress: Progress | None = None,
) -> StagePredictions:
    """Run a staged detector over images and keep what each decoder stage said, ordered by image id.

    limit: stop after about so many images. Raises ValueError for a detector without decoder stages.
    """
    if not hasattr(model, "decode_features"):
        raise ValueError(f"{type(model).__name__} has no decoder stages, so there is nothing to analyse stage by stage")
    found: dict[int, tuple[np.ndarray, ...]] = {}
    with evaluating(model):
        for images, targets in loader:
            for image, target, arrays in zip(images, targets, stage_arrays(model, images, targets, device)):
                del image
                found.setdefault(int(target["image_id"]), arrays)
            if progress is not None:
                progress(len(found), min(len(dataset), limit or len(dataset)))
            if limit is not None and len(found) >= limit:
                break
    if not found:
        raise ValueError("the loader gave no image: there is nothing to analyse")
    ids = sorted(found)[:limit]
    return StagePredictions(np.array(ids), *(np.stack(column) for column in zip(*(found[i] for i in ids))))


def stage_arrays(
    model: Any, images: Sequence[Tensor], targets: Sequence[dict[str, Any]], device: torch.device | str
) -> list[tuple[np.ndarray, ...]]:
    """Per image: scores, labels [S, N], boxes [S, N, 4], top scores, labels, queries [S, D], as in StagePredictions."""
    batch = model.collate([image.to(device, non_blocking=True) for image in images])
    _, predictions = model.decode_features(model.backbone(batch.tensors), batch)
    stages = []
    for prediction in predictions:
        scores, labels = model.criterion.classification.scores(prediction.logits[:, -1].float()).max(-1)
        whwh = batch.whwh().to(scores.dtype)[:, None]
        boxes = cxcywh_to_xyxy(prediction.boxes[:, -1].to(scores.dtype)) * whwh
        if model.clip:
            boxes = boxes.clamp(min=0).minimum(whwh)
        top = model.detections(prediction, batch)
        stages.append(
            (scores, labels, boxes, *(torch.stack([d[k] for d in top]) for k in ("scores", "labels", "queries")))
        )
    scores, labels, boxes, *top = (torch.stack(column, 1) for column in zip(*stages))
    rows = []
    for place, (image, target) in enumerate(zip(images, targets)):
        target = {"fed_size": tuple(image.shape[-2:]), **target}
        original_size(target)
        rows.append(
            (
                scores[place].double().cpu().numpy(),
                labels[place].cpu().numpy().astype(np.int32),
                to_original(boxes[place], target).cpu().numpy(),
                top[0][place].double().cpu().numpy(),
                *(t[place].cpu().numpy().astype(np.int32) for t in top[1:]),
            )
        )
    return rows
