"""The second stage of two-stage detectors: a loop of proposals -> samples -> RoI features -> boxes and masks.

Papers: Fast R-CNN (arXiv 1504.08083), Faster R-CNN (1506.01497), Mask R-CNN (1703.06870), Cascade R-CNN (1712.00726).
Conventions follow MMDetection 2.x (Apache-2.0); this file is our own.

One stage is Faster or Mask R-CNN, three are Cascade R-CNN. A method of this family overrides one of the hooks of
`RoIHead` (`box_features`, `mask_samples`, `mask_features`, `mask_logits`) or of `RoIStage` (`sample`, `losses`);
docs/adding_a_method.md shows how HTC, PointRend, Double-Head and Dynamic R-CNN do.

Shapes: B images, R boxes of all images, P of them positive, K classes, C channels, M cells of a mask per side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recollect.detectors.roi_stage import RoIStage, Sampled, of_class
from recollect.ops.masks import crop_masks
from recollect.ops.nms import PostProcess, multiclass_nms
from recollect.ops.precision import full_precision
from recollect.structures import ImageBatch, Target

Maps = Sequence[Tensor]
"""Feature maps [B, C, H_l, W_l], finest first."""
POST = PostProcess()


class RoIFeatures(Protocol):
    """Reads features of boxes; layers.roi_align.MultiLevelRoIAlign, alone or followed by more layers."""

    def __call__(self, maps: Maps, boxes: Sequence[Tensor]) -> Tensor: ...  # noqa: D102


class RoIHead(nn.Module):
    """Stages one after the other: each trains on, and refines, the boxes that the one before it wrote.

    stages: RoIStage modules. box_pool, mask_pool: features of boxes, for box heads and mask heads (None: the same).
    post: score and NMS thresholds, and how many detections are kept.
    """

    def __init__(
        self,
        stages: Sequence[RoIStage],
        num_classes: int,
        box_pool: RoIFeatures,
        mask_pool: RoIFeatures | None = None,
        *,
        post: PostProcess = POST,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.num_classes, self.post = num_classes, post
        self.box_pool, self.mask_pool = box_pool, mask_pool

    # --- Hooks: what methods of this family change

    def box_features(self, stage: int, maps: Maps, boxes: Sequence[Tensor]) -> Tensor:
        """What the box head of `stage` reads of boxes [n_i, 4] of each image, in any form that the head takes."""
        del stage
        return self.box_pool(maps, boxes)

    def mask_samples(
        self, stage: int, sampled: Sequence[Sampled], refined: Sequence[Tensor], targets: Sequence[Target]
    ) -> Sequence[Sampled]:
        """What the mask head of `stage` trains on: the box head's positives. refined: what that made of them."""
        del stage, refined, targets
        return sampled

    def mask_features(self, stage: int, maps: Maps, boxes: Sequence[Tensor]) -> Tensor:
        """What the mask head of `stage` reads of boxes [n_i, 4] of each image."""
        del stage
        return (self.mask_pool or self.box_pool)(maps, boxes)

    def mask_logits(self, stage: int, maps: Maps, boxes: Sequence[Tensor]) -> Tensor:
        """[R, K or 1, M, M] of boxes [n_i, 4] of each image."""
        return full_precision(self.stages[stage].mask_head(self.mask_features(stage, maps, boxes)))  # type: ignore

    # --- Training

    def losses(
        self, maps: Maps, proposals: Sequence[Tensor], targets: Sequence[Target], batch: ImageBatch
    ) -> dict[str, Tensor]:
        """Losses of every stage: `class`, `box` and `mask`, in a cascade preceded by `stage{s}_`."""
        losses: dict[str, Tensor] = {}
        boxes = list(proposals)
        for index, stage in enumerate(self.stages):
            assert isinstance(stage, RoIStage)
            sampled = []
            for image, (one, target) in enumerate(zip(boxes, targets)):

                def judge(asked: Tensor, image: int = image, index: int = index) -> tuple[Tensor, Tensor]:
                    return self._boxes(index, [m[image : image + 1] for m in maps], [asked])

                sampled.append(stage.sample(one, target, self.num_classes, judge))
            logits, deltas = self._boxes(index, maps, [s.boxes for s in sampled])
            with torch.autocast(logits.device.type, enabled=False):
                found = stage.losses(logits, deltas, sampled)
                boxes = self._refined(stage, sampled, logits, deltas, batch)
            if stage.mask_head is not None:
                found["mask"] = self.mask_loss(index, maps, self.mask_samples(index, sampled, boxes, targets), targets)
            prefix = f"stage{index}_" if len(self.stages) > 1 else ""
            losses |= {prefix + name: value * stage.weight for name, value in found.items()}
            boxes = [b[~s.own] for b, s in zip(boxes, sampled)]
        return losses

    def _boxes(self, stage: int, maps: Maps, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        logits, deltas = self.stages[stage].box_head(self.box_features(stage, maps, boxes))  # type: ignore[operator]
        return full_precision(logits), full_precision(deltas)

    def _refined(
        self, stage: RoIStage, sampled: Sequence[Sampled], logits: Tensor, deltas: Tensor, batch: ImageBatch
    ) -> list[Tensor]:
        boxes = [s.boxes for s in sampled]
        parts = zip(sampled, per_image(logits, boxes), per_image(deltas, boxes), batch.sizes)
        return [stage.refine(s.boxes, score, delta, size, s.labels) for s, score, delta, size in parts]

    def mask_loss(self, stage: int, maps: Maps, sampled: Sequence[Sampled], targets: Sequence[Target]) -> Tensor:
        """Binary cross-entropy of each positive's mask of its own class, mean over positives and cells."""
        logits = self.mask_logits(stage, maps, [s.positives for s in sampled])
        labels = torch.cat([s.labels[: len(s.gt_index)] for s in sampled])
        logits = of_class(logits, labels)
        if not len(logits):
            return logits.sum() * 0
        truth = [crop_masks(masks_of(t), s.positives, s.gt_index, logits.shape[-1]) for s, t in zip(sampled, targets)]
        return F.binary_cross_entropy_with_logits(logits, torch.cat(truth).to(logits))

    # --- Inference

    def detections(self, maps: Maps, proposals: Sequence[Tensor], batch: ImageBatch) -> list[dict[str, Tensor]]:
        """Per image `boxes`, `scores`, `labels`; with mask heads `roi_masks` [n, M, M], probabilities in the box."""
        boxes, total, logits, deltas = list(proposals), None, None, None
        for index, stage in enumerate(self.stages):
            assert isinstance(stage, RoIStage)
            if index and logits is not None and deltas is not None:
                before = self.stages[index - 1]
                parts = zip(boxes, per_image(logits, boxes), per_image(deltas, boxes), batch.sizes)
                boxes = [before.refine(*part) for part in parts]  # type: ignore[operator]
            logits, deltas = self._boxes(index, maps, boxes)
            total = logits if total is None else total + logits
        assert total is not None and deltas is not None
        scores = (total / len(self.stages)).softmax(-1)[:, :-1]
        coder = self.stages[-1].coder
        found = []
        for box, score, delta, size in zip(boxes, per_image(scores, boxes), per_image(deltas, boxes), batch.sizes):
            decoded = coder.decode(box[:, None], delta, size)  # type: ignore[union-attr]
            found.append(self.detect(decoded, score))
        if self.has_masks:
            for one, masks in zip(found, self.masks(maps, found)):
                one["roi_masks"] = masks
        return found

    def detect(self, boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """One image's boxes [n, K or 1, 4] and scores [n, K] to detections, best first."""
        kept, best, labels, _ = multiclass_nms(
            boxes[:, 0] if boxes.shape[1] == 1 else boxes,
            scores,
            score_threshold=self.post.score_threshold,
            iou_threshold=self.post.iou_threshold,
            max_detections=self.post.max_detections,
            soft=self.post.soft,
        )
        return {"boxes": kept, "scores": best, "labels": labels}

    def limit_detections(self, count: int) -> None:
        """Keep at most so many detections per image."""
        self.post = replace(self.post, max_detections=count)

    @property
    def has_masks(self) -> bool:
        """Whether any stage has a mask head."""
        return any(stage.mask_head is not None for stage in self.stages)

    def masks(self, maps: Maps, found: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """Mask probabilities [n, M, M] of every image's detections, mean over the stages that have a mask head."""
        boxes, labels = [f["boxes"] for f in found], torch.cat([f["labels"] for f in found])
        stages = [i for i, stage in enumerate(self.stages) if stage.mask_head is not None]
        each = [of_class(self.mask_logits(stage, maps, boxes), labels).sigmoid() for stage in stages]
        mean = each[0] if len(each) == 1 else torch.stack(each).mean(0)
        return per_image(mean, boxes)


def per_image(values: Tensor, boxes: Sequence[Tensor]) -> list[Tensor]:
    """Values [R, ...] of all images' boxes [n_i, 4], apart. One image's number of boxes stays open for the exporter."""
    return [values] if len(boxes) == 1 else list(values.split([len(b) for b in boxes]))


def masks_of(target: Target) -> Tensor | list:
    """The target's masks; ValueError that says how to get them if it has none."""
    if "masks" not in target:
        name = f"image {target['image_id']}" if "image_id" in target else "an image of the batch"
        raise ValueError(f"{name}: the target has no masks, which this detector learns: open_dataset(..., masks=True)")
    return target["masks"]
