"""Dense heads against the reference's golden outputs, targets, losses, gradients and detections."""

from typing import Any

import torch
from torch import Tensor

from parity.golden import NotRepresentable, take
from parity.ledger import Ledger
from parity_methods.goldens import MethodCase
from parity_methods.parts import build_anchors, build_coder, build_max_iou
from recollect.detectors.atss import ATSSHead
from recollect.detectors.dense import DenseHead
from recollect.detectors.fcos import FCOSHead
from recollect.detectors.gfl import GFLHead
from recollect.detectors.retinanet import RetinaHead
from recollect.layers.anchors import PointGenerator
from recollect.layers.conv import group_norm
from recollect.losses.boxes import giou_loss, iou_loss, l1
from recollect.matching.atss import ATSSAssigner
from recollect.matching.fcos import FCOSAssigner
from recollect.ops.nms import PostProcess
from recollect.structures import IGNORED, ImageBatch

TOLERANCE = 1e-9
PREFIX = {"RetinaHead": "retina", "FCOSHead": "conv", "ATSSHead": "atss", "GFLHead": "gfl"}
LOSSES = {"loss_cls": "class", "loss_bbox": "box", "loss_centerness": "centreness", "loss_dfl": "distribution"}
OUTPUTS = {"cls_scores": "logits", "bbox_preds": "boxes", "centernesses": "centreness"}
_SHARED = ("type", "num_classes", "in_channels", "stacked_convs", "feat_channels", "norm_cfg", "test_cfg")
_FOCAL = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}
_CENTRENESS = {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0}


def build_head(config: dict[str, Any]) -> DenseHead:
    """Our head of a reference configuration; NotRepresentable for whatever we cannot express."""
    kind, test, norm = config["type"], config["test_cfg"], config.get("norm_cfg")
    take(test, {}, {"min_bbox_size": 0}, ("nms_pre", "score_thr", "nms", "max_per_img"))
    take(test["nms"], {}, {"type": "nms"}, ("iou_threshold",))
    common: dict[str, Any] = {
        "num_classes": config["num_classes"],
        "in_channels": config["in_channels"],
        "channels": config["feat_channels"],
        "convs": config["stacked_convs"],
        "norm": group_norm(norm["num_groups"]) if norm else None,
        "post": PostProcess(test["nms_pre"], test["score_thr"], test["nms"]["iou_threshold"], test["max_per_img"]),
    }
    if kind == "FCOSHead":
        fixed = {"loss_cls": _FOCAL, "loss_centerness": _CENTRENESS, "train_cfg": None}
        own = ("strides", "regress_ranges", "loss_bbox", "norm_on_bbox", "centerness_on_reg", "center_sampling")
        take(config, {}, fixed, (*_SHARED, *own, "center_sample_radius", "conv_bias"))
        radius = config.get("center_sample_radius", 1.5) if config.get("center_sampling") else None
        bias = config.get("conv_bias", "auto")
        return FCOSHead(
            priors=PointGenerator(config["strides"]),
            assigner=FCOSAssigner([tuple(r) for r in config["regress_ranges"]], radius),
            tower_bias=None if bias == "auto" else bias,
            normalised=config.get("norm_on_bbox", False),
            centreness_on_box=config.get("centerness_on_reg", False),
            box_loss={"IoULoss": iou_loss, "GIoULoss": giou_loss}[config["loss_bbox"]["type"]],
            **common,
        )
    train = take(config["train_cfg"], {}, {"allowed_border": -1, "pos_weight": -1, "debug": False}, ("assigner",))
    assert not train
    assigner = config["train_cfg"]["assigner"]
    common["priors"] = build_anchors(config["anchor_generator"])
    if kind == "RetinaHead":
        fixed = {"loss_cls": _FOCAL, "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0}}
        take(config, {}, fixed, (*_SHARED, "train_cfg", "anchor_generator", "bbox_coder"))
        return RetinaHead(
            coder=build_coder(config["bbox_coder"]), assigner=build_max_iou(assigner), box_loss=l1, **common
        )
    take(assigner, {}, {"type": "ATSSAssigner"}, ("topk",))
    common["assigner"] = ATSSAssigner(assigner["topk"])
    if kind == "ATSSHead":
        take(config, {}, {"loss_cls": _FOCAL, "loss_centerness": _CENTRENESS},
             (*_SHARED, "train_cfg", "anchor_generator", "bbox_coder", "loss_bbox"))  # fmt: skip
        take(config["loss_bbox"], {}, {"type": "GIoULoss"}, ("loss_weight",))
        coder = build_coder(config["bbox_coder"])
        return ATSSHead(coder=coder, box_weight=config["loss_bbox"]["loss_weight"], **common)
    if kind == "GFLHead":
        quality = {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0}
        take(config, {}, {"loss_cls": quality},
             (*_SHARED, "train_cfg", "anchor_generator", "loss_bbox", "loss_dfl", "reg_max"))  # fmt: skip
        return GFLHead(
            bins=config["reg_max"],
            box_weight=config["loss_bbox"]["loss_weight"],
            distribution_weight=config["loss_dfl"]["loss_weight"],
            **common,
        )
    raise NotRepresentable(f"dense head {kind}")


def our_name(theirs: str, prefix: str) -> str | None:
    """The reference's parameter name in our head; None for the integral's fixed bins."""
    room, _, rest = theirs.partition(".")
    if room in ("cls_convs", "reg_convs"):
        return {"cls_convs": "class_tower.", "reg_convs": "box_tower."}[room] + rest.replace("gn.", "norm.")
    if theirs == "integral.project":
        return None
    last = {f"{prefix}_cls": "to_class", f"{prefix}_reg": "to_box", f"{prefix}_centerness": "to_centreness"}
    return f"{last.get(room, room)}.{rest}"


def check_head(case: MethodCase, ledger: Ledger) -> None:
    """Everything a dense head's file holds."""
    data, dtype, tolerance = case.data, ledger.dtype, ledger.tolerance(TOLERANCE)
    head = build_head(case.config)
    names = {theirs: our_name(theirs, PREFIX[case.config["type"]]) for theirs in data["state_dict"]}
    head.load_state_dict({ours: data["state_dict"][theirs] for theirs, ours in names.items() if ours})
    head.to(dtype)

    inputs = data["inputs"]
    batch = ImageBatch(torch.zeros(len(inputs["img_shape"]), 3, *inputs["batch_pad"]), inputs["img_shape"])
    for shape, padded in zip(inputs["img_shape"], inputs["pad_shape"]):
        own = [-(-side // head.divisor) * head.divisor for side in shape]
        if own != list(padded):
            raise NotRepresentable(f"{case.name}: an image of {shape} padded to {padded} by itself")
    targets = [{"boxes": b, "labels": k} for b, k in zip(inputs["gt_bboxes"], inputs["gt_labels"])]

    features = [f.to(dtype).requires_grad_() for f in inputs["feats"]]
    head.train()
    outputs, priors = head(features)
    check_outputs(head, outputs, priors, data["train"]["outputs"], ledger, tolerance)
    check_assignment(head, outputs, priors, features, targets, batch, data["train"]["targets"], ledger, tolerance)

    losses = head.loss(features, targets, batch)
    check_losses("losses", losses, data["train"], ledger, tolerance)
    torch.stack(list(losses.values())).sum().backward()
    grads = {theirs: dict(head.named_parameters())[ours].grad for theirs, ours in names.items() if ours}
    ledger.gradients("gradients", grads, data["train"]["grads"], data["train"]["grad_summary"], tolerance)
    for feature, norm in zip(features, data["train"]["feat_grad_norms"]):
        ledger.close("gradient of features", feature.grad.norm(), torch.tensor(norm, dtype=torch.float64), tolerance)
    smallest = data["train"]["feat_grad_smallest_levels"]
    for feature, reference in zip(features[-len(smallest) :], smallest):
        ledger.close("gradient of coarse features", feature.grad, reference, tolerance)

    head.zero_grad()
    nothing = [{"boxes": t["boxes"][:0], "labels": t["labels"][:0]} for t in targets]
    losses = head.loss(features, nothing, batch)
    check_losses("without objects", losses, data["train_no_objects"], ledger, tolerance)
    torch.stack(list(losses.values())).sum().backward()
    grads = {theirs: dict(head.named_parameters())[ours].grad for theirs, ours in names.items() if ours}
    ledger.gradients("gradients without objects", grads, {}, data["train_no_objects"]["grad_summary"], tolerance)

    head.eval()
    with torch.no_grad():
        found = head.detections(features, batch)
    for kind, scale in (("rescale_false", None), ("rescale_true", inputs["scale_factor"])):
        for image, (ours, reference) in enumerate(zip(found, data["test"][kind])):
            boxes = ours["boxes"] if scale is None else ours["boxes"] / scale[image].to(dtype)
            ledger.same(f"{kind}: labels", ours["labels"], reference["labels"])
            both = torch.cat((boxes, ours["scores"][:, None]), 1)
            ledger.close(f"{kind}: boxes and scores", both, reference["boxes_xyxy_score"], tolerance)


def check_outputs(head, outputs, priors, reference, ledger, tolerance) -> None:
    for theirs, ours in OUTPUTS.items():
        if theirs in reference:
            flat = [maps.permute(0, 2, 3, 1).flatten(1, 2) for maps in reference[theirs]]
            depth = outputs[ours].shape[-1]
            flat = torch.cat([one.unflatten(-1, (-1, depth)).flatten(1, 2) for one in flat], 1)
            ledger.close(f"outputs: {ours}", outputs[ours], flat, tolerance)


def check_assignment(head, outputs, priors, features, targets, batch, reference, ledger, tolerance) -> None:
    assigned = head.assign(outputs, priors, features, targets, batch)
    labels = torch.full_like(assigned.gt_index, head.num_classes)
    labels[assigned.image, assigned.prior] = assigned.labels
    if "labels_per_level" in reference:  # FCOS: level by level, the images of a level one after the other
        levels = list(labels.split(priors.counts, 1))
        ledger.same("labels", torch.cat([one.flatten() for one in levels]), torch.cat(reference["labels_per_level"]))
        place = torch.arange(labels.numel()).view(labels.shape)
        order = torch.cat([one.flatten() for one in place.split(priors.counts, 1)])
        ours = (assigned.image * labels.shape[1] + assigned.prior)[:, None] == order
        position = ours.long().argmax(1)
        by_position = position.argsort()
        ledger.same("positives", position[by_position], reference["pos_index_in_concatenation"].long())
    else:
        ledger.same("labels", labels, reference["labels"].long())
        ledger.same("ignored", (assigned.gt_index != IGNORED).byte(), reference["label_weights"])
        index = torch.stack((assigned.image, assigned.prior), 1)
        by_position = torch.arange(len(index))
        ledger.same("positives", index, reference["pos_index"].long())
    ledger.close("targets", regressed(head, assigned)[by_position], reference["pos_bbox_targets"], tolerance)


def regressed(head: DenseHead, assigned) -> Tensor:
    """What the positives are told to regress, in the reference's form."""
    if isinstance(head, GFLHead):
        return assigned.boxes
    encoded = head.coder.encode(assigned.prior_boxes, assigned.boxes)
    return encoded / assigned.strides[:, None] if isinstance(head, FCOSHead) and head.normalised else encoded


def check_losses(what, losses, reference, ledger, tolerance) -> None:
    for theirs, values in reference["losses"].items():
        total = torch.stack([v.double() for v in values]).sum() if isinstance(values, list) else values
        ledger.close(f"{what}: {theirs}", losses[LOSSES[theirs]], total, tolerance)
    ledger.close(f"{what}: total", torch.stack(list(losses.values())).sum(), reference["total_loss"], tolerance)
