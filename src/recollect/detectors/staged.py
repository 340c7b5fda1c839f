"""What every detector with a staged query decoder shares: images in, recollection in training, detections out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recollect.backbones import Backbone
from recollect.decoding import Recollection, decode
from recollect.losses import SetCriterion
from recollect.ops.boxes import cxcywh_to_xyxy
from recollect.recipe import Data, Resize
from recollect.registry import Published, model_entry, register
from recollect.structures import ImageBatch, Prediction, Queries, Target


def detr_data() -> Data:
    """DETR's augmentation, which its successors kept: shorter side 480 to 800, every second image cropped before."""
    return Data(Resize(tuple(range(480, 801, 32)), 1333), crop=True, crop_resize=Resize((400, 500, 600), 4200))


@dataclass(frozen=True)
class Encoded:
    """What a detector makes of an image before its first decoder stage.

    queries: the initial ones, one group. memory: whatever the stages read of the image.
    proposals: predictions [B, 1, S, K] of a two-stage detector's encoder, for their own loss; class 0 is "an object".
    """

    queries: Queries
    memory: Any
    proposals: Prediction | None = None


def recollecting(build: Callable[..., nn.Module], published: Published | None = None) -> Callable[..., nn.Module]:
    """Register and return `sqr_NAME`: the registered entry function NAME, trained with selective query recollection.

    Recipe and options are those of `build`; its `recollection` option is Recollection() unless given.
    """
    entry = model_entry(build.__name__)

    def sqr(num_classes: int = inspect.signature(build).parameters["num_classes"].default, **options: Any) -> nn.Module:
        return build(num_classes, **{"recollection": Recollection(), **options})

    sqr.__name__ = sqr.__qualname__ = f"sqr_{entry.name}"
    sqr.__module__ = build.__module__
    sqr.__doc__ = f"`{entry.name}` trained with selective query recollection."
    add = register(
        entry.recipe,
        family=entry.family,
        paper="arXiv 2212.07593",
        staged=True,
        published=published,
        like=entry.like or build,
    )
    return add(sqr)


class StagedDetector(nn.Module):
    """A detector whose decoder refines queries stage by stage.

    A detector of this kind supplies `encode(features, batch) -> Encoded`, as a method of a subclass; its stages follow
    the signature `stage(queries, memory) -> (queries, prediction)`. Auxiliary losses, recollection, activation
    checkpointing, evaluation and per-stage analysis then work without a further line.

    backbone: images to features. stages: the decoder. criterion: the loss.
    recollection: used in training only; None trains plainly. It is in no checkpoint.
    num_detections: kept per image. clip: cut boxes at the image border (papers differ).
    one_class_per_query: a query is detected as its best class only (DETR), else as any number of classes.
    divisor: padded sizes are multiples of it.
    """

    def __init__(
        self,
        backbone: Backbone,
        stages: Sequence[nn.Module],
        criterion: SetCriterion,
        *,
        recollection: Recollection | None = None,
        num_detections: int = 100,
        clip: bool = True,
        one_class_per_query: bool = False,
        divisor: int = 32,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stages = nn.ModuleList(stages)
        self.criterion = criterion
        self.recollection = recollection
        self.checkpointing = False
        self.num_detections, self.clip, self.divisor = num_detections, clip, divisor
        self.one_class_per_query = one_class_per_query
        self.register_buffer("mean", torch.tensor(backbone.mean), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def encode(self, features: list[Tensor], batch: ImageBatch) -> Encoded:
        """Features to initial queries and memory; each detector writes its own."""
        raise NotImplementedError

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        images: [3, H, W] each, uint8 or float in 0..1, of any sizes. targets: one per image, in training.
        Detections are dicts of `boxes` [n, 4] xyxy in pixels of the image given, `scores` [n] (descending), `labels`.
        """
        batch = self.collate(images)
        if self.training:
            if targets is None:
                raise ValueError("in training mode the detector needs targets; call .eval() to predict")
            check_targets(targets, len(batch.sizes))
            encoded, predictions = self.decode_features(self.backbone(batch.tensors), batch)
            return self.criterion(predictions, targets, batch.whwh(), encoded.proposals)
        _, predictions = self.decode_features(self.backbone(batch.tensors), batch)
        return self.detections(predictions[-1], batch)

    def stage_detections(self, images: Sequence[Tensor]) -> list[list[dict[str, Tensor]]]:
        """What each decoder stage alone would have detected: one list of detections per stage, the last is `forward`'s.

        Every dict also holds `queries` [n], the index of the query behind each detection.
        """
        batch = self.collate(images)
        _, predictions = self.decode_features(self.backbone(batch.tensors), batch)
        return [self.detections(p, batch) for p in predictions]

    def collate(self, images: Sequence[Tensor], padded_size: tuple[int, int] | None = None) -> ImageBatch:
        """Normalise and pad."""
        return ImageBatch.collate(images, self.mean, self.std, self.divisor, padded_size)

    def decode_features(self, features: list[Tensor], batch: ImageBatch) -> tuple[Encoded, list[Prediction]]:
        """Backbone features to every stage's prediction; with recollection only in training mode."""
        encoded = self.encode(features, batch)
        rule = self.recollection if self.training else None
        return encoded, decode(list(self.stages), encoded.queries, encoded.memory, rule, self.checkpointing)

    def detections(self, prediction: Prediction, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """The `num_detections` best pairs of query and class of the plain path, per image. No NMS: matching was 1:1."""
        logits = prediction.logits[:, -1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        scores = self.criterion.classification.scores(logits)  # [B, N, K]
        boxes = cxcywh_to_xyxy(prediction.boxes[:, -1].to(scores.dtype)) * batch.whwh().to(scores.dtype)[:, None]
        if self.clip:
            boxes = boxes.clamp(min=0).minimum(batch.whwh().to(boxes.dtype)[:, None])
        if self.one_class_per_query:
            scores, labels = scores.max(-1)
            best, queries = scores.topk(min(self.num_detections, scores.shape[1]), dim=1)
            labels = labels.gather(1, queries)
        else:
            classes = scores.shape[-1]
            best, index = scores.flatten(1).topk(min(self.num_detections, scores[0].numel()), dim=1)
            queries, labels = index // classes, index % classes
        picked = boxes.gather(1, queries.unsqueeze(-1).expand(-1, -1, 4))
        return [
            {"boxes": b, "scores": s, "labels": label, "queries": q}
            for b, s, label, q in zip(picked, best, labels, queries)
        ]


def check_targets(targets: Sequence[Target], images: int) -> None:
    """ValueError for targets that no detector could learn from, naming the image, the box and the value."""
    if len(targets) != images:
        raise ValueError(f"{images} images but {len(targets)} targets")
    for place, target in enumerate(targets):
        name = f"image {target['image_id']}" if "image_id" in target else f"image {place} of the batch"
        boxes, labels = target["boxes"], target["labels"]
        if len(boxes) != len(labels):
            raise ValueError(f"{name}: {len(boxes)} boxes but {len(labels)} labels")
        if boxes.numel() and (boxes.ndim != 2 or boxes.shape[-1] != 4):
            raise ValueError(f"{name}: boxes must be [T, 4] xyxy, found {tuple(boxes.shape)}")
