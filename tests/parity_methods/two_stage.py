"""RPN and RoI heads against the reference's golden samples, outputs, losses, gradients and detections."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parity.golden import NotRepresentable, take
from parity.ledger import Ledger
from parity_methods.goldens import MethodCase
from parity_methods.parts import build_anchors, build_coder, build_max_iou
from recollect.detectors.dynamic_rcnn import DynamicStage
from recollect.detectors.roi_heads import RoIHead
from recollect.detectors.roi_stage import RoIStage
from recollect.detectors.rpn import RPNHead
from recollect.layers.roi_align import MultiLevelRoIAlign
from recollect.layers.roi_heads import BoxHead, MaskHead
from recollect.losses.boxes import giou_loss, l1, smooth_l1
from recollect.matching.samplers import RandomSampler
from recollect.ops.masks import encode_roi_masks, paste_masks
from recollect.ops.nms import PostProcess
from recollect.structures import IGNORED, NEGATIVE, ImageBatch

TOLERANCE = 1e-9
_CROSS_ENTROPY = {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0}


def image_batch(inputs: dict[str, Any]) -> ImageBatch:
    sizes = [(h, w) for h, w in inputs["img_shape"]]
    return ImageBatch(torch.zeros(len(sizes), 3, *inputs["batch_pad"]), sizes)


def build_sampler(config: dict[str, Any]) -> RandomSampler:
    take(config, {}, {"type": "RandomSampler", "neg_pos_ub": -1}, ("num", "pos_fraction", "add_gt_as_proposals"))
    return RandomSampler(config["num"], config["pos_fraction"])


def box_loss_of(config: dict[str, Any]) -> Any:
    """Our box loss with the reference's factor."""
    kind, factor = config["type"], config["loss_weight"]
    loss = {"L1Loss": l1, "GIoULoss": giou_loss, "SmoothL1Loss": partial(smooth_l1, beta=config.get("beta", 1.0))}[kind]
    return lambda values, target: factor * loss(values, target)


def close_losses(what: str, ours: dict[str, Tensor], reference: dict[str, Any], names: dict[str, str], ledger) -> None:
    tolerance = ledger.tolerance(TOLERANCE)
    for theirs, value in reference["losses"].items():
        if theirs.rpartition(".")[2] == "acc":
            continue
        total = torch.stack([v.double() for v in value]).sum() if isinstance(value, list) else value.reshape(())
        if names.get(theirs, theirs) not in ours:
            raise NotRepresentable(f"{what}: nothing of ours is the reference's {theirs}")
        ledger.close(f"{what}: {theirs}", ours[names.get(theirs, theirs)], total, tolerance)
    ledger.close(f"{what}: total", torch.stack(list(ours.values())).sum(), reference["total_loss"], tolerance)


# --- RPN


def check_rpn(case: MethodCase, ledger: Ledger) -> None:
    config, data, dtype, tolerance = case.config, case.data, ledger.dtype, ledger.tolerance(TOLERANCE)
    train, test = config["train_cfg"], config["test_cfg"]
    take(train, {}, {"pos_weight": -1, "debug": False}, ("assigner", "sampler", "allowed_border"))
    take(test, {}, {"min_bbox_size": 0}, ("nms_pre", "max_per_img", "nms"))
    take(config, {}, {"type": "RPNHead", "loss_cls": {**_CROSS_ENTROPY, "use_sigmoid": True}},
         ("in_channels", "feat_channels", "anchor_generator", "bbox_coder", "loss_bbox", "train_cfg",
          "test_cfg"))  # fmt: skip
    build_coder(config["bbox_coder"])

    def build(min_size: float = 0) -> RPNHead:
        head = RPNHead(
            config["in_channels"],
            config["feat_channels"],
            anchors=build_anchors(config["anchor_generator"]),
            border=None if train["allowed_border"] < 0 else train["allowed_border"],
            candidates=(test["nms_pre"],) * 2,
            proposals=(test["max_per_img"],) * 2,
            iou_threshold=test["nms"]["iou_threshold"],
            min_size=min_size,
            box_loss=box_loss_of(config["loss_bbox"]),
            assigner=build_max_iou(train["assigner"]),
            sampler=build_sampler(train["sampler"]),
        )
        head.load_state_dict({names[theirs]: value for theirs, value in data["state_dict"].items()})
        return head.to(dtype)

    rooms = {"rpn_conv": "conv", "rpn_cls": "to_class", "rpn_reg": "to_box"}
    names = {n: f"{rooms[n.partition('.')[0]]}.{n.partition('.')[2]}" for n in data["state_dict"]}
    head = build()
    inputs, batch = data["inputs"], image_batch(data["inputs"])
    targets = [{"boxes": b, "labels": torch.zeros_like(k)} for b, k in zip(inputs["gt_bboxes"], inputs["gt_labels"])]
    maps = [f.to(dtype).requires_grad_() for f in inputs["feats"]]

    outputs, priors = head(maps)
    for theirs, ours, depth in (("cls_scores", "logits", 1), ("bbox_preds", "boxes", 4)):
        flat = [m.permute(0, 2, 3, 1).reshape(len(m), -1, depth) for m in data["train"]["outputs"][theirs]]
        ledger.close(f"outputs: {ours}", outputs[ours], torch.cat(flat, 1), tolerance)
    assigned = head.assign(outputs, priors, maps, targets, batch)
    golden = data["train"]["targets"]
    ledger.same("labels", (assigned.gt_index < 0).int(), golden["labels"])
    ledger.same("sampled", (assigned.gt_index != IGNORED).byte(), golden["label_weights"])
    ledger.same("positives", torch.stack((assigned.image, assigned.prior), 1), golden["pos_index"].long())
    encoded = head.coder.encode(assigned.prior_boxes, assigned.boxes)
    ledger.close("targets", encoded, golden["pos_bbox_targets"], tolerance)

    ours_of = {"loss_rpn_cls": "rpn_class", "loss_rpn_bbox": "rpn_box"}
    for kind, objects in (
        ("train", targets),
        ("train_no_objects", [{k: v[:0] for k, v in t.items()} for t in targets]),
    ):
        head.zero_grad()
        for one in maps:
            one.grad = None
        losses = head.loss(maps, objects, batch)
        close_losses(kind, losses, data[kind], ours_of, ledger)
        torch.stack(list(losses.values())).sum().backward()
        parameters = dict(head.named_parameters())
        grads = {theirs: parameters[ours].grad for theirs, ours in names.items()}
        ledger.gradients(
            f"{kind}: gradients", grads, data[kind].get("grads", {}), data[kind]["grad_summary"], tolerance
        )
        for one, norm in zip(maps, data[kind].get("feat_grad_norms", [])):
            ledger.close("gradient of features", one.grad.norm(), torch.tensor(norm, dtype=torch.float64), tolerance)

    head.eval()
    small = build(12.0).eval()
    for kind, which in (("rescale_false", head), ("min_bbox_size_12", small)):
        for ours, reference in zip(which.detections(maps, batch), data["test"][kind]):
            both = torch.cat((ours["boxes"], ours["scores"][:, None]), 1)
            ledger.close(f"{kind}: proposals", both, reference["proposals_xyxy_score"], tolerance)


# --- RoI heads


def build_roi_head(config: dict[str, Any]) -> RoIHead:
    """Our RoI head of a reference configuration; NotRepresentable for whatever we cannot express."""
    cascade = config["type"] == "CascadeRoIHead"
    take(config, {}, {}, ("type", "num_stages", "stage_loss_weights", "bbox_roi_extractor", "bbox_head", "train_cfg",
         "test_cfg", "mask_roi_extractor", "mask_head"))  # fmt: skip
    if config["type"] not in ("CascadeRoIHead", "StandardRoIHead"):
        raise NotRepresentable(f"RoI head {config['type']}")
    heads = config["bbox_head"] if cascade else [config["bbox_head"]]
    trains = config["train_cfg"] if cascade else [config["train_cfg"]]
    weights = config["stage_loss_weights"] if cascade else [1]
    stages = []
    for head, train, weight in zip(heads, trains, weights):
        take(train, {}, {"pos_weight": -1, "debug": False}, ("assigner", "sampler", "mask_size"))
        if not train["sampler"]["add_gt_as_proposals"]:
            raise NotRepresentable("stages that do not add the objects' own boxes")
        stages.append(
            RoIStage(
                build_box_head(head),
                build_max_iou(train["assigner"]),
                build_sampler(train["sampler"]),
                mask_head=build_mask_head(config["mask_head"]) if "mask_head" in config else None,
                coder=build_coder(head["bbox_coder"]),
                box_loss=box_loss_of(head["loss_bbox"]),
                decoded=head.get("reg_decoded_bbox", False),
                weight=weight,
            )
        )
    test = config["test_cfg"]
    take(test, {}, {"mask_thr_binary": 0.5}, ("score_thr", "nms", "max_per_img"))
    post = PostProcess(0, test["score_thr"], test["nms"]["iou_threshold"], test["max_per_img"])
    box_pool = build_pool(config["bbox_roi_extractor"])
    mask_pool = build_pool(config["mask_roi_extractor"]) if "mask_roi_extractor" in config else None
    return RoIHead(stages, heads[0]["num_classes"], box_pool, mask_pool, post=post)


def build_pool(config: dict[str, Any]) -> MultiLevelRoIAlign:
    take(config, {}, {"type": "SingleRoIExtractor"}, ("roi_layer", "out_channels", "featmap_strides", "finest_scale"))
    take(config["roi_layer"], {}, {"type": "RoIAlign", "sampling_ratio": 0}, ("output_size",))
    size, strides = config["roi_layer"]["output_size"], config["featmap_strides"]
    return MultiLevelRoIAlign(size, strides, finest=config.get("finest_scale", 56))


def build_box_head(config: dict[str, Any]) -> BoxHead:
    own = ("in_channels", "fc_out_channels", "roi_feat_size", "num_classes", "bbox_coder", "loss_bbox")
    ways = ("reg_class_agnostic", "reg_decoded_bbox")
    take(config, {}, {"type": "Shared2FCBBoxHead", "loss_cls": _CROSS_ENTROPY}, (*own, *ways))
    return BoxHead(
        config["num_classes"],
        config["in_channels"],
        config["roi_feat_size"],
        width=config["fc_out_channels"],
        class_agnostic=config.get("reg_class_agnostic", False),
    )


def build_mask_head(config: dict[str, Any]) -> MaskHead:
    loss = {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0}
    take(config, {}, {"type": "FCNMaskHead", "loss_mask": loss},
         ("num_convs", "in_channels", "conv_out_channels", "num_classes"))  # fmt: skip
    return MaskHead(config["num_classes"], config["in_channels"], config["conv_out_channels"], config["num_convs"])


def our_name(theirs: str, cascade: bool) -> str:
    """The reference's name of a parameter -> ours."""
    head, *rest = theirs.split(".")
    stage = rest.pop(0) if cascade else "0"
    rooms = {"fc_cls": "to_class", "fc_reg": "to_box", "shared_fcs": "layers", "conv_logits": "to_mask"}
    rest[0] = rooms.get(rest[0], rest[0])
    return ".".join(["stages", stage, {"bbox_head": "box_head", "mask_head": "mask_head"}[head], *rest])


def check_roi(case: MethodCase, ledger: Ledger) -> None:
    config, data, dtype, tolerance = case.config, case.data, ledger.dtype, ledger.tolerance(TOLERANCE)
    head = build_roi_head(config)
    cascade, masks = config["type"] == "CascadeRoIHead", "mask_head" in config
    names = {theirs: our_name(theirs, cascade) for theirs in data["state_dict"]}
    head.load_state_dict({ours: data["state_dict"][theirs] for theirs, ours in names.items()})
    head.to(dtype)
    inputs, batch = data["inputs"], image_batch(data["inputs"])
    targets: list[dict[str, Any]] = [
        {"boxes": b.to(dtype), "labels": k.long()} for b, k in zip(inputs["gt_bboxes"], inputs["gt_labels"])
    ]
    if masks:
        for target, mask in zip(targets, inputs["gt_masks"]):
            target["masks"] = mask
    maps = [f.to(dtype).requires_grad_() for f in inputs["feats"]]
    proposals = [p.to(dtype) for p in inputs["proposals"]]

    seen = record(head)
    losses = head.losses(maps, proposals, targets, batch)
    ours_of = {"loss_cls": "class", "loss_bbox": "box", "loss_mask": "mask"}
    named = {}
    for theirs in data["train"]["losses"]:
        stage, _, kind = theirs.rpartition(".")
        named[theirs] = (f"stage{stage[1:]}_" if stage else "") + ours_of.get(kind, kind)
    close_losses("train", losses, data["train"], named, ledger)
    check_samples(head, seen, data["train"]["stages"], proposals, targets, ledger, tolerance)
    torch.stack(list(losses.values())).sum().backward()
    parameters = dict(head.named_parameters())
    grads = {theirs: parameters[ours].grad for theirs, ours in names.items()}
    ledger.gradients("gradients", grads, data["train"]["grads"], data["train"]["grad_summary"], tolerance)
    for one, norm in zip(maps, data["train"]["feat_grad_norms"]):
        ledger.close("gradient of features", one.grad.norm(), torch.tensor(norm, dtype=torch.float64), tolerance)
    for one, reference in zip(maps[1:], data["train"]["feat_grads"]):
        ledger.close("gradient of coarse features", one.grad, reference, tolerance)

    head.zero_grad()
    nothing = [{k: v[:0] for k, v in t.items()} for t in targets]
    losses = head.losses(maps, proposals, nothing, batch)
    close_losses("without objects", losses, data["train_no_objects"], named, ledger)
    torch.stack(list(losses.values())).sum().backward()
    grads = {theirs: parameters[ours].grad for theirs, ours in names.items()}
    ledger.gradients("gradients without objects", grads, {}, data["train_no_objects"]["grad_summary"], tolerance)

    head.eval()
    with torch.no_grad():
        found = head.detections(maps, proposals, batch)
    for kind, sizes in (("rescale_false", inputs["img_shape"]), ("rescale_true", inputs["ori_shape"])):
        for image, (ours, reference) in enumerate(zip(found, data["test"][kind])):
            scale = inputs["scale_factor"][image].to(dtype) if kind == "rescale_true" else torch.ones(4, dtype=dtype)
            boxes = ours["boxes"] / scale
            ledger.same(f"{kind}: labels", ours["labels"], reference["labels"])
            both = torch.cat((boxes, ours["scores"][:, None]), 1)
            ledger.close(f"{kind}: boxes and scores", both, reference["boxes_xyxy_score"], tolerance)
            if masks:
                check_masks(kind, ours["roi_masks"], boxes, tuple(sizes[image]), reference, ledger, tolerance)


def check_masks(kind, roi_masks, boxes, size, reference, ledger, tolerance) -> None:
    if "mask_logits_of_label" in reference:
        ledger.close(f"{kind}: mask probabilities", roi_masks, reference["mask_logits_of_label"].sigmoid(), tolerance)
    shape = tuple(reference["masks_shape"])
    bits = np.unpackbits(reference["masks_packbits_last_axis"].numpy(), axis=-1)[..., : shape[2]]
    pasted = paste_masks(roi_masks, boxes, size)
    ledger.true(f"{kind}: masks' size", tuple(pasted.shape) == shape)
    ledger.same(f"{kind}: masks", pasted, torch.from_numpy(bits).bool())
    import hotcoco.mask

    for encoded, whole in zip(encode_roi_masks(roi_masks, boxes, size), bits):
        ledger.true(f"{kind}: run lengths", bool((hotcoco.mask.decode(encoded) == whole).all()))


def record(head: RoIHead) -> list[dict[str, Any]]:
    """What every stage sampled and said in the next training pass."""
    seen: list[dict[str, Any]] = [{"input": [], "sampled": []} for _ in head.stages]
    for stage, notes in zip(head.stages, seen):

        def sample(boxes, *rest, stage=stage, notes=notes, original=stage.sample):
            if len(notes["input"]) < 3:
                notes["input"].append(boxes)
                notes["sampled"].append(original(boxes, *rest))
                return notes["sampled"][-1]
            return original(boxes, *rest)

        stage.sample = sample
        stage.box_head.register_forward_hook(note(notes, "boxes"))
        if stage.mask_head is not None:
            stage.mask_head.register_forward_hook(note(notes, "masks"))
    return seen


def note(notes: dict[str, Any], name: str):
    """A forward hook that keeps what a module says first."""

    def hook(module, inputs, said) -> None:
        notes.setdefault(name, said)

    return hook


def check_samples(head, seen, golden, proposals, targets, ledger, tolerance) -> None:
    ledger.true("stages", len(golden) == len(head.stages))
    for index, (stage, ours, reference) in enumerate(zip(head.stages, seen, golden)):
        what = f"stage {index}"
        for image, sample in enumerate(reference["samples"]):
            ledger.close(f"{what}: input boxes", ours["input"][image], sample["input_boxes"], tolerance)
            sampled, everything = ours["sampled"][image], ours["sampled"][image].assignment
            positive = (everything.gt_index >= 0).nonzero().flatten()
            ledger.same(f"{what}: positives", positive, sample["pos_inds"].long())
            negative = (everything.gt_index == NEGATIVE).nonzero().flatten()
            ledger.same(f"{what}: negatives", negative, sample["neg_inds"].long())
            ledger.same(f"{what}: objects", sampled.gt_index, sample["pos_assigned_gt_inds"].long())
            ledger.same(f"{what}: own boxes", sampled.own[: len(positive)].byte(), sample["pos_is_gt"])
        every = ours["sampled"]
        labels = torch.cat([s.labels for s in every])
        ledger.same(f"{what}: labels", labels, reference["labels"].long())
        logits, deltas = ours["boxes"]
        ledger.close(f"{what}: logits", logits, reference["cls_score"], tolerance)
        ledger.close(f"{what}: deltas", deltas.flatten(1), reference["bbox_pred"], tolerance)
        positives, truth = torch.cat([s.positives for s in every]), torch.cat([s.truth for s in every])
        encoded = truth if stage.decoded else stage.coder.encode(positives, truth)
        chosen = labels < head.num_classes
        ledger.close(f"{what}: box targets", encoded, reference["bbox_targets"][chosen], tolerance)
        if "mask_targets" in reference:
            check_mask_targets(what, every, targets, ours["masks"], labels[chosen], reference, ledger, tolerance)


def check_mask_targets(what, sampled, targets, logits, labels, reference, ledger, tolerance) -> None:
    from recollect.ops.masks import crop_masks

    size = logits.shape[-1]
    cropped = [crop_masks(t["masks"], s.positives, s.gt_index, size) for s, t in zip(sampled, targets)]
    ledger.same(f"{what}: mask targets", torch.cat(cropped).byte(), reference["mask_targets"])
    chosen = logits[torch.arange(len(labels)), labels]
    ledger.close(f"{what}: mask logits", chosen, reference["mask_logits_of_label"], tolerance)


# --- RoIAlign


def check_roi_align(case: MethodCase, ledger: Ledger) -> None:
    """Ours takes squares and averages; the golden cells are 5 x 4, so torchvision's operator itself is compared too."""
    from torchvision.ops import roi_align

    data = case.data["roi"]
    regions, scale = data["rois"].double(), data["spatial_scale"]
    for variant, golden in data["outputs"].items():
        aligned, sampling, kind = variant.split("_")
        if kind != "avg":
            continue
        feature = data["feat"].double().requires_grad_()
        options = int(sampling.removeprefix("sr")), aligned == "alignedTrue"
        output = roi_align(feature, regions, (5, 4), scale, *options)
        ledger.close(variant, output, golden["output"], ledger.tolerance(TOLERANCE))
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9)).double()
        (output * weights).sum().backward()
        ledger.close(
            f"{variant}: gradient", feature.grad, golden["feat_grad_of_sum_output_times_w"], ledger.tolerance(TOLERANCE)
        )
        pool = MultiLevelRoIAlign(5, (round(1 / scale),), sampling=options[0], aligned=options[1])
        order = [i for i in range(2) for _ in range(int((regions[:, 0] == i).sum()))]
        boxes = [regions[regions[:, 0] == i, 1:] for i in range(2)]
        places = torch.cat([(regions[:, 0] == i).nonzero().flatten() for i in range(2)])
        direct = roi_align(feature, regions[places], 5, scale, *options)
        ledger.true(f"{variant}: images", order == regions[places, 0].long().tolist())
        ledger.close(f"{variant}: ours", pool([feature], boxes), direct, ledger.tolerance(TOLERANCE))


# --- Dynamic R-CNN


def check_dynamic(case: MethodCase, ledger: Ledger) -> None:
    """Statistics, thresholds and losses of many steps without an update of the weights."""
    config, data, dtype, tolerance = case.config, case.data, ledger.dtype, ledger.tolerance(TOLERANCE)
    train = config["train_cfg"]
    rule = take(
        train["dynamic_rcnn"],
        {
            "iou_topk": "overlaps",
            "beta_topk": "positives",
            "update_iter_interval": "interval",
            "initial_iou": "threshold",
            "initial_beta": "beta",
        },
        {},
    )
    head = config["bbox_head"]
    stage = DynamicStage(
        build_box_head(head), coder=build_coder(head["bbox_coder"]), sampler=build_sampler(train["sampler"]), **rule
    )
    roi = RoIHead([stage], head["num_classes"], build_pool(config["bbox_roi_extractor"]))
    names = {theirs: our_name(theirs, False) for theirs in data["state_dict"]}
    state = {ours: data["state_dict"][theirs] for theirs, ours in names.items()}
    roi.load_state_dict({**roi.state_dict(), **state})
    roi.to(dtype)
    maps, height, width = [data["feat"].to(dtype)], 96, 128
    batch = ImageBatch(torch.zeros(2, 3, height, width), [(height, width)] * 2)
    for step, golden in enumerate(data["iterations"]):
        targets = [{"boxes": b.to(dtype), "labels": k.long()} for b, k in zip(golden["gt_bboxes"], golden["gt_labels"])]
        with torch.no_grad():
            losses = roi.losses(maps, [p.to(dtype) for p in golden["proposals"]], targets, batch)
        for ours, theirs in (("class", "loss_cls"), ("box", "loss_bbox")):
            ledger.close(ours, losses[ours], golden[theirs], tolerance)
        place = step % len(stage.history)
        noted = torch.tensor([golden["cur_iou"], golden["cur_beta"]], dtype=torch.float64)
        ledger.close("statistics", stage.history[place], noted, tolerance)
        after = torch.tensor([golden["iou_thr_after"], golden["beta_after"]], dtype=torch.float64)
        ledger.close("threshold and bend", torch.stack((stage.threshold, stage.beta)), after, tolerance)
