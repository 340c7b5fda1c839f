"""What both families of golden detectors share: recording a decoder's run, matching, detections."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parity.golden import Case
from parity.ledger import Ledger
from recollect.convert.rules import Table, to_ours, to_theirs
from recollect.detectors.staged import Encoded, StagedDetector
from recollect.losses.set_criterion import gather_objects
from recollect.structures import ImageBatch, Prediction, Queries


class NoBackbone(nn.Module):
    """Stands where the backbone would: the golden values start at its features."""

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def load(model: nn.Module, table: Table, case: Case, dtype: torch.dtype) -> None:
    """The case's weights, through the name table, then upcast."""
    model.load_state_dict(to_ours(table, case.state, model.state_dict(keep_vars=True)).state)
    model.to(dtype)


def gradients(model: nn.Module, table: Table) -> dict[str, Tensor]:
    """Of every parameter that got one, under the reference's names."""
    return to_theirs(table, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})


class Run:
    """One pass of neck and decoder over a case's features, with everything the stages wrote."""

    def __init__(self, model: StagedDetector, features: Sequence[Tensor], batch: ImageBatch) -> None:
        self.written: list[Queries] = []
        hooks = [stage.register_forward_hook(self._note) for stage in model.stages]
        self.encoded: Encoded
        self.encoded, self.predictions = model.decode_features(list(features), batch)
        for hook in hooks:
            hook.remove()
        self.batch = batch

    def _note(self, _stage: nn.Module, _read: Any, output: tuple[Queries, Prediction]) -> None:
        self.written.append(output[0])

    @property
    def logits(self) -> Tensor:
        """[groups of all stages, B, N, K]."""
        return torch.cat([p.logits for p in self.predictions], 1).transpose(0, 1)

    @property
    def boxes(self) -> Tensor:
        """[groups of all stages, B, N, 4] normalised cxcywh."""
        return torch.cat([p.boxes for p in self.predictions], 1).transpose(0, 1)

    @property
    def contents(self) -> Tensor:
        """[groups of all stages, B, N, C]."""
        return torch.cat([q.content for q in self.written], 1).transpose(0, 1)

    @property
    def references(self) -> Tensor:
        """[groups of all stages, B, N, D], the boxes in the form that the detector refines."""
        return torch.cat([q.boxes for q in self.written], 1).transpose(0, 1)

    @property
    def groups(self) -> list[int]:
        """Per stage."""
        return [p.logits.shape[1] for p in self.predictions]


def matched(
    model: StagedDetector, prediction: Prediction, targets: list, batch: ImageBatch, class_agnostic: bool = False
) -> Tensor:
    """[G, B, N]: 0 for no object, k for object k - 1, as the golden values write it."""
    objects = gather_objects(targets, batch.whwh(), class_agnostic)
    (found,) = model.criterion.matcher.match([(prediction, objects)])
    result = torch.zeros(prediction.logits.shape[:3], dtype=torch.int64)
    result[found.image, found.group, found.query] = found.object + 1
    return result.transpose(0, 1)


def check_detections(ledger: Ledger, model: StagedDetector, run: Run, case: Case, tolerance: float) -> None:
    """The final boxes, scores and classes, in the fed image's pixels and in the original's."""
    for kind, recorded in case.data.get("inference", {}).items():
        if not recorded:
            continue
        found = model.detections(run.predictions[-1], run.batch)
        for image, (ours, reference) in enumerate(zip(found, recorded["det_bboxes_xyxy_score"], strict=True)):
            scale = case.data["inputs"]["scale_factor"][image].double() if kind == "rescale_true" else 1
            ledger.close(f"inference: boxes, {kind}", ours["boxes"].double() / scale, reference[:, :4], tolerance)
            ledger.close(f"inference: scores, {kind}", ours["scores"], reference[:, 4], tolerance)
            ledger.same(f"inference: classes, {kind}", ours["labels"], recorded["det_labels"][image])
            for label, per_class in enumerate(recorded.get("per_class", [[]] * len(found))[image]):
                of_class = ours["labels"] == label
                rows = torch.cat((ours["boxes"].double() / scale, ours["scores"].double()[:, None]), 1)[of_class]
                # The reference orders these as its unsorted topk left them.
                ledger.close(
                    f"inference: per class, {kind}",
                    rows,
                    per_class[per_class[:, 4].argsort(descending=True)],
                    tolerance,
                )
