"""Deformable DETR (plain, refined, two-stage) and SQR-Deformable-DETR against the golden values of the reference.

The reference computes some constants in float32 even in a float64 run; its losses with those constants in float64 are
recorded too (`train_float64_constants`) and are the sharp comparison.
"""

from typing import Any

import torch
from torch import nn

from parity.golden import Case, NotRepresentable, image_batch, leaves, recollection, take, targets
from parity.ledger import Ledger
from parity.staged import NoBackbone, Run, check_detections, gradients, load, matched
from recollect.convert.deformable_detr import MMDET2
from recollect.detectors.deformable_detr import DeformableDETR, DeformableStage, EncoderProposals
from recollect.layers.deformable import DeformableEncoder
from recollect.layers.necks import ChannelMapper
from recollect.layers.transformer import mlp
from recollect.structures import Prediction

TOLERANCE, SHARP = 1e-5, 1e-9
_STAGE_OPTIONS = {
    "embed_dims": "channels",
    "num_heads": "heads",
    "ffn": "feedforward",
    "num_levels": "levels",
    "num_points": "points",
}
_ELSEWHERE = (
    "enc_layers", "num_layers", "num_query", "num_classes", "num_feats", "in_channels", "neck_groups", "start_q",
    "end_q", "max_per_img", "strides",
)  # fmt: skip
_LOSSES = {"loss_cls": "class", "loss_bbox": "l1", "loss_iou": "giou"}


def variant(case: Case) -> set[str]:
    """Of {"recollect", "refine", "two_stage"}, what the case's detector does."""
    words = {"sqr": "recollect", "plain": None, "refine": "refine", "twostage": "two_stage"}
    named = case.entry["variant"].split("_")
    if any(word not in words for word in named):
        raise NotRepresentable(f"{case.name}: variant {case.entry['variant']!r} means nothing to this suite")
    return {meaning for word in named if (meaning := words[word])}


def build(config: dict[str, Any], kind: set[str]) -> DeformableDETR:
    """Neck, encoder and decoder of a configuration."""
    sizes = take(config, _STAGE_OPTIONS, {"pos_offset": -0.5}, _ELSEWHERE)
    if 2 * config["num_feats"] != config["embed_dims"]:
        raise NotRepresentable(f"num_feats={config['num_feats']} is not half of embed_dims={config['embed_dims']}")
    channels, stages = config["embed_dims"], config["num_layers"]

    def heads() -> tuple[nn.Module, nn.Module]:
        return nn.Linear(channels, config["num_classes"]), mlp(channels, channels, 4, 3)

    refine = "refine" in kind
    shared = heads()
    extra = config["num_levels"] - len(config["in_channels"])
    return DeformableDETR(
        NoBackbone(),  # type: ignore[arg-type]
        ChannelMapper(config["in_channels"], channels, extra, config["neck_groups"]),
        DeformableEncoder(
            channels, config["enc_layers"], config["num_heads"], config["ffn"], config["num_levels"],
            config["num_points"], dropout=0.0,
        ),
        [
            DeformableStage(
                *(heads() if refine else shared), **sizes, dropout=0.0, refine=refine, detach=refine and index > 0
            )
            for index in range(stages)
        ],
        config["num_query"],
        channels,
        proposals=EncoderProposals(channels, *heads()) if "two_stage" in kind else None,
        num_detections=config["max_per_img"],
    )  # fmt: skip


def check_detector(case: Case, ledger: Ledger) -> None:
    """Training and inference."""
    kind, config = variant(case), case.config
    model = build(config, kind)
    load(model, MMDET2, case, ledger.dtype)
    if "recollect" in kind:
        model.recollection = recollection(config["start_q"], config["end_q"], config["num_layers"])
    known = {"inputs", "train", "train_slow", "train_float64_constants", "inference"}
    if set(case.data) - known:
        raise NotRepresentable(f"{case.name}: {sorted(set(case.data) - known)} mean nothing to this suite")
    _check_training(case, ledger, model)
    if "inference" in case.data:
        _check_inference(case, ledger, model)


def _check_training(case: Case, ledger: Ledger, model: DeformableDETR) -> None:
    dtype, inputs, recorded = ledger.dtype, case.data["inputs"], dict(case.data["train"])
    tolerance = ledger.tolerance(TOLERANCE)
    model.train()
    features = leaves(inputs["feats"], dtype)
    batch, objects = image_batch(inputs, dtype), targets(inputs, dtype)
    run = Run(model, features, batch)
    losses = model.criterion(run.predictions, objects, batch.whwh(), run.encoded.proposals)
    total = torch.stack(list(losses.values())).sum()
    total.backward()

    every = Prediction(run.logits.transpose(0, 1), run.boxes.transpose(0, 1))
    sets = {"stage": every}
    if run.encoded.proposals is not None:
        sets["proposals"] = run.encoded.proposals
    per_group = model.criterion.per_group(sets, objects, batch.whwh())
    for part, allowed in (("train", TOLERANCE), ("train_slow", TOLERANCE), ("train_float64_constants", SHARP)):
        if part not in case.data:
            continue
        found = {
            f"{kind}{group}_{name}": value
            for kind, parts in per_group.items()
            for name, values in parts.items()
            for group, value in enumerate(values)
        }
        for name, reference in case.data[part]["losses"].items():
            ours = found.pop(_loss_name(name, sum(run.groups)))
            label = name.split(".")[-1]
            ledger.close(f"{part}: {label} per group", ours, reference.reshape(()), ledger.tolerance(allowed))
        ledger.true(f"{part}: no further loss", not found)
        ledger.close(f"{part}: total loss", total, case.data[part]["total_loss"], ledger.tolerance(allowed))
    recorded.pop("losses"), recorded.pop("total_loss")

    references = run.encoded.queries.boxes[:, 0]
    ours = {
        "all_cls_scores": run.logits,
        "all_bbox_preds_cxcywh": run.boxes,
        "init_reference": references,
        "inter_references_last": run.references[-1],
    }
    if run.encoded.proposals is not None:
        ours["enc_cls_scores"] = run.encoded.proposals.logits[:, 0]
        ours["enc_bbox_preds_cxcywh"] = run.encoded.proposals.boxes[:, 0]
    for name in ours:
        reference = recorded.pop(name)
        found = ours[name][..., : reference.shape[-1]] if "reference" in name else ours[name]  # points have no size
        ledger.close(f"train: {name}", found, reference, tolerance)
    ledger.same("train: matching of every group", matched(model, every, objects, batch), recorded.pop("gt_inds"))
    of_encoder = recorded.pop("gt_inds_encoder")
    if run.encoded.proposals is not None:
        found = matched(model, run.encoded.proposals, objects, batch, class_agnostic=True)
        ledger.same("train: matching of the encoder", found[0], of_encoder)
    ledger.gradients(
        "train: gradient of weights", gradients(model, MMDET2), recorded.pop("grads"), recorded.pop("grad_summary"),
        tolerance,
    )  # fmt: skip
    for feature, reference in zip(features, recorded.pop("feat_grads", [])):
        assert feature.grad is not None
        ledger.gradient("train: gradient of features", feature.grad, reference, tolerance)
    if any(value is not None for value in recorded.values()):
        raise NotRepresentable(f"{case.name}: {sorted(recorded)} of training mean nothing to this suite")


def _loss_name(theirs: str, groups: int) -> str:
    """`d{i}.` is group i of all stages', no prefix the last, `enc_` the encoder."""
    if theirs.startswith("enc_"):
        return f"proposals0_{_LOSSES[theirs.removeprefix('enc_')]}"
    prefix, _, kind = theirs.rpartition(".")
    return f"stage{int(prefix[1:]) if prefix else groups - 1}_{_LOSSES[kind]}"


def _check_inference(case: Case, ledger: Ledger, model: DeformableDETR) -> None:
    inputs = case.data["inputs"]
    model.eval()
    with torch.no_grad():
        run = Run(model, [f.to(ledger.dtype) for f in inputs["feats"]], image_batch(inputs, ledger.dtype))
    ledger.true("inference: one group per stage", run.groups == [1] * len(model.stages))
    tolerance = ledger.tolerance(TOLERANCE)
    ours = {"all_cls_scores": run.logits, "all_bbox_preds_cxcywh": run.boxes}
    if run.encoded.proposals is not None:
        ours["enc_cls_scores"] = run.encoded.proposals.logits[:, 0]
        ours["enc_bbox_preds_cxcywh"] = run.encoded.proposals.boxes[:, 0]
    for recorded in case.data["inference"].values():
        for name, value in ours.items():
            if recorded.get(name) is not None:
                ledger.close(f"inference: {name}", value, recorded[name], tolerance)
    check_detections(ledger, model, run, case, tolerance)
