"""FPN, anchors, coders, assigners and NMS against the reference's golden values."""

import torch

from parity.golden import NotRepresentable
from parity.ledger import Ledger
from parity_methods.goldens import MethodCase, as_double
from recollect.layers.anchors import AnchorGenerator
from recollect.layers.box_coders import DeltaBoxCoder, DistanceBoxCoder, YOLOBoxCoder
from recollect.layers.conv import group_norm
from recollect.layers.fpn import FPN, Resample
from recollect.matching.atss import ATSSAssigner
from recollect.matching.max_iou import MaxIoUAssigner
from recollect.ops.nms import SoftNMS, batched_nms, soft_nms
from recollect.structures import IGNORED, NEGATIVE, Priors

TOLERANCE = 1e-9


# --- FPN


def build_fpn(in_channels: list[int], channels: int, kwargs: dict) -> tuple[FPN, slice]:
    """An FPN, and which of the given maps it reads."""
    known = {"start_level", "end_level", "add_extra_convs", "num_outs", "relu_before_extra_convs", "norm_cfg"}
    known |= {"no_norm_on_lateral", "upsample_cfg", "extra_convs_on_inputs"}
    if set(kwargs) - known:
        raise NotRepresentable(f"FPN options {sorted(set(kwargs) - known)}")
    end = kwargs.get("end_level", -1)
    used = slice(kwargs.get("start_level", 0), len(in_channels) if end == -1 else end)
    extra = kwargs.get("add_extra_convs", False)
    if extra is True:
        extra = "on_input" if kwargs.get("extra_convs_on_inputs", True) else "on_output"
    norm = kwargs.get("norm_cfg")
    mode = kwargs.get("upsample_cfg", {}).get("mode", "nearest")
    return FPN(
        in_channels[used],
        channels,
        kwargs["num_outs"],
        extra=extra.removeprefix("on_") if extra else "pool",
        relu_before_extra=kwargs.get("relu_before_extra_convs", False),
        norm=group_norm(norm["num_groups"]) if norm else None,
        lateral_norm=not kwargs.get("no_norm_on_lateral", False),
        upsampler=lambda: Resample(mode),
    ), used


def fpn_names(state: dict[str, torch.Tensor], given: int) -> dict[str, str]:
    """Their name -> ours."""
    names = {}
    for name in state:
        room, index, rest = name.split(".", 2)
        rest = rest.replace("gn.", "norm.")
        if room == "lateral_convs":
            names[name] = f"laterals.{index}.{rest}"
        elif int(index) < given:
            names[name] = f"outputs.{index}.{rest}"
        else:
            names[name] = f"extras.{int(index) - given}.{rest}"
    return names


def check_fpn(case: MethodCase, ledger: Ledger) -> None:
    data, dtype, tolerance = case.data, ledger.dtype, ledger.tolerance(TOLERANCE)
    for variant, golden in data["variants"].items():
        neck, used = build_fpn(case.config["in_channels"], case.config["out_channels"], golden["kwargs"])
        names = fpn_names(golden["state_dict"], len(neck.in_channels))
        neck.load_state_dict({ours: golden["state_dict"][theirs] for theirs, ours in names.items()})
        neck.to(dtype)
        inputs = [x.to(dtype).requires_grad_() for x in data[golden["input"]]]
        outputs = neck(inputs[used])
        ledger.true(f"{variant}: levels", len(outputs) == len(golden["outputs"]))
        for level, (ours, reference) in enumerate(zip(outputs, golden["outputs"])):
            ledger.close(f"{variant}: level {level}", ours, reference, tolerance)
        loss = 0
        for output, seed in zip(outputs, golden["output_weights_seed"]):
            weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
            loss = loss + (output * weights).sum()
        loss.backward()
        parameters = dict(neck.named_parameters())
        for theirs, (norm, total, largest) in golden["grad_summary"].items():
            grad = parameters[names[theirs]].grad
            found = torch.stack((grad.norm(), grad.sum(), grad.abs().max()))
            ledger.close(
                f"{variant}: grad of {theirs}",
                found,
                torch.tensor([norm, total, largest], dtype=torch.float64),
                tolerance,
            )
        for index, norm in enumerate(golden["input_grad_norms"]):
            grad = inputs[index].grad
            if norm is None:
                ledger.true(f"{variant}: input {index} is not read", grad is None)
            else:
                ledger.close(
                    f"{variant}: grad of input {index}", grad.norm(), torch.tensor(norm, dtype=torch.float64), tolerance
                )


# --- Anchors


def build_anchors(config: dict) -> AnchorGenerator:
    strides = [tuple(s) if isinstance(s, list) else s for s in config["strides"]]
    if config["type"] == "YOLOAnchorGenerator":
        return AnchorGenerator.explicit(strides, config["base_sizes"])
    if config["type"] == "SSDAnchorGenerator":
        low, high = (round(100 * r) for r in config["basesize_ratio_range"])
        step = (high - low) // (len(strides) - 2)
        ratios = list(range(low, high + 1, step))
        first = {(300, 15): 7, (300, 20): 10, (512, 10): 4, (512, 15): 7}[config["input_size"], low]
        sizes = [int(config["input_size"] * r / 100) for r in [first, *ratios, ratios[-1] + step]]
        return AnchorGenerator.ssd(strides, sizes, config["ratios"])
    if config["type"] != "AnchorGenerator":
        raise NotRepresentable(f"anchors of {config['type']}")
    if "octave_base_scale" in config:
        return AnchorGenerator.retina(
            strides, config["octave_base_scale"], config["scales_per_octave"], config["ratios"]
        )
    return AnchorGenerator.scaled(
        strides,
        config["scales"],
        config["ratios"],
        scale_major=config.get("scale_major", True),
        centre=config.get("center_offset", 0.0),
    )


def check_anchors(case: MethodCase, ledger: Ledger) -> None:
    tolerance = ledger.tolerance(TOLERANCE)
    for variant, golden in case.data.items():
        generator = build_anchors(golden["config"])
        for level, reference in enumerate(golden["base_anchors"]):
            ledger.close(f"{variant}: cell {level}", generator.cells[level].to(ledger.dtype), reference, tolerance)
        sizes = [tuple(s) for s in golden["featmap_sizes"]]
        priors = generator.grid(sizes, ledger.dtype, "cpu")
        ledger.true(f"{variant}: counts", list(priors.counts) == [len(g) for g in golden["grid_anchors"]])
        ledger.close(f"{variant}: grid", priors.boxes, torch.cat(golden["grid_anchors"]), tolerance)
        valid = torch.cat(golden["valid_flags_pad_40_60"]).bool()
        ledger.same(f"{variant}: valid", generator.inside(sizes, 40, 60), valid)
        ledger.true(f"{variant}: anchors per cell", generator.per_cell == list(golden["num_base_anchors"]))


# --- Box coders


def build_coder(config: dict) -> DeltaBoxCoder:
    if config["type"] != "DeltaXYWHBBoxCoder":
        raise NotRepresentable(f"coder {config['type']}")
    return DeltaBoxCoder(
        tuple(config.get("target_means", (0.0,) * 4)),
        tuple(config.get("target_stds", (1.0,) * 4)),
        centre_clamp=config.get("ctr_clamp", 32) if config.get("add_ctr_clamp") else None,
    )


def check_coders(case: MethodCase, ledger: Ledger) -> None:
    data, dtype, tolerance = case.data, ledger.dtype, ledger.tolerance(TOLERANCE)
    boxes, objects, deltas = (data[k].to(dtype) for k in ("boxes", "gts", "deltas"))
    for variant, golden in data["cases"].items():
        config = golden.get("config", {})
        if variant == "distance":
            check_distance(golden, data, ledger)
            continue
        if config["type"] in NOT_BUILT:
            continue
        if config["type"] in ("TBLRBBoxCoder", "YOLOBBoxCoder"):
            check_other_coder(variant, golden, data, ledger)
            continue
        coder = build_coder(config)
        border = (90, 120) if config.get("clip_border", True) else None
        if "decode_batch2_max_shapes" in golden:
            found = [
                coder.decode(boxes, deltas, (90, 120)),
                coder.decode(objects, deltas.flip(0), (60, 100)),
            ]
            ledger.close(f"{variant}: decode", torch.stack(found), golden["decode_batch2_max_shapes"], tolerance)
            continue
        ledger.close(f"{variant}: encode", coder.encode(boxes, objects), golden["encode"], tolerance)
        ledger.close(f"{variant}: decode", coder.decode(boxes, deltas), golden["decode"], tolerance)
        found = coder.decode(boxes, deltas, border)
        ledger.close(f"{variant}: clipped", found, golden["decode_max_shape_90_120"], tolerance)
        per_class = data["deltas_class"].to(dtype).view(len(boxes), -1, 4)
        found = coder.decode(boxes[:, None], per_class, border).flatten(1)
        ledger.close(f"{variant}: per class", found, golden["decode_class_max_shape_90_120"], tolerance)
        narrow = DeltaBoxCoder(coder.means, coder.stds, 2.0, coder.centre_clamp)
        ledger.close(f"{variant}: narrow", narrow.decode(boxes, deltas), golden["decode_wh_ratio_clip_0p5"], tolerance)


# Pixels counted inclusively as before 2019, which nothing here uses; and SABL's, which comes with SABL.
NOT_BUILT = ("LegacyDeltaXYWHBBoxCoder", "BucketingBBoxCoder")


def check_other_coder(variant: str, golden: dict, data: dict, ledger: Ledger) -> None:
    dtype, tolerance, config = ledger.dtype, ledger.tolerance(TOLERANCE), golden["config"]
    boxes, objects = data["boxes"].to(dtype), data["gts"].to(dtype)
    if config["type"] == "YOLOBBoxCoder":
        coder, values, order = YOLOBoxCoder(golden["stride"]), data["yolo_input"].to(dtype), [0, 1, 2, 3]
    else:
        order = [2, 0, 3, 1]  # theirs is top, bottom, left, right
        factor = config["normalizer"]
        coder = DistanceBoxCoder(factor if isinstance(factor, float) else [factor[i] for i in order])
        values = data["tblr_input"].to(dtype)[:, order]
    ledger.close(f"{variant}: encode", coder.encode(boxes, objects), golden["encode"][:, order], tolerance)
    ledger.close(f"{variant}: decode", coder.decode(boxes, values), golden["decode"], tolerance)
    if "decode_max_shape_90_120" in golden:
        clipped = coder.decode(boxes, values, (90, 120) if config.get("clip_border", True) else None)
        ledger.close(f"{variant}: clipped", clipped, golden["decode_max_shape_90_120"], tolerance)


def check_distance(golden: dict, data: dict, ledger: Ledger) -> None:
    dtype, tolerance = ledger.dtype, ledger.tolerance(TOLERANCE)
    boxes, distances = data["boxes"].to(dtype), 8 * data["tblr_input"].to(dtype)
    coder = DistanceBoxCoder()
    ledger.close("distance: decode", coder.decode(boxes, distances), golden["decode"], tolerance)
    clipped = coder.decode(boxes, distances, (90, 120))
    ledger.close("distance: clipped", clipped, golden["decode_max_shape_90_120"], tolerance)
    objects = golden["encode_boxes"].to(dtype)
    ledger.close("distance: encode", coder.encode(boxes, objects), golden["encode"], tolerance)
    limited = coder.encode(boxes, objects).clamp(0, 16 - 0.1)
    ledger.close("distance: limited", limited, golden["encode_max_dis_16_eps_0p1"], tolerance)


# --- Assigners


def check_assigners(case: MethodCase, ledger: Ledger) -> None:
    data = as_double(case.data)
    for variant, golden in data["max_iou"].items():
        config = golden["config"]
        assigner = build_max_iou(config)
        for situation in ("with_ignore", "without_ignore", "no_gts", "no_boxes"):
            if situation in golden:
                boxes = data["boxes"][: len(golden[situation]["gt_inds"])]
                priors = Priors(boxes, torch.ones(len(boxes)), (len(boxes),))
                check_assignment(f"{variant}: {situation}", assigner, priors, data, situation, golden, ledger)
    counts = tuple(data["atss_num_level"])
    priors = Priors(data["atss_anchors"], torch.ones(sum(counts)), counts)
    for variant, golden in data["atss"].items():
        per_level = int(variant.removeprefix("topk").split("_")[0])
        crowd = golden.get("config", {}).get("ignore_iof_thr")
        crowd = ATSS_CROWD if crowd is None and variant.endswith("_ignore") else crowd
        for situation in [s for s in ("assign", "no_gts") if s in golden]:
            kind = "with_ignore" if variant.endswith("_ignore") else situation
            golden_here = {kind: golden[situation]}
            assigner = ATSSAssigner(per_level, crowd)
            check_assignment(f"{variant}: {situation}", assigner, priors, data, kind, golden_here, ledger)


ATSS_CROWD = 0.5


def build_max_iou(config: dict) -> MaxIoUAssigner:
    known = {"pos_iou_thr", "neg_iou_thr", "min_pos_iou", "match_low_quality", "ignore_iof_thr", "type"}
    known |= {"gt_max_assign_all", "ignore_wrt_candidates"}
    if set(config) - known:
        raise NotRepresentable(f"MaxIoUAssigner options {sorted(set(config) - known)}")
    negative, crowd = config["neg_iou_thr"], config.get("ignore_iof_thr", -1)
    return MaxIoUAssigner(
        config["pos_iou_thr"],
        tuple(negative) if isinstance(negative, list) else negative,
        config.get("min_pos_iou", 0.0),
        config.get("match_low_quality", True),
        config.get("gt_max_assign_all", True),
        crowd if crowd > 0 else None,
        config.get("ignore_wrt_candidates", True),
    )


def check_assignment(name, assigner, priors, data, situation, golden, ledger) -> None:
    objects = data["gts"][:0] if situation == "no_gts" else data["gts"]
    crowds = data["gts_ignore"] if situation == "with_ignore" else data["gts"][:0]
    target = {
        "boxes": torch.cat((objects, crowds)),
        "iscrowd": torch.arange(len(objects) + len(crowds)) >= len(objects),
    }
    found = assigner.assign(priors, target)
    reference = golden[situation]["gt_inds"].long()
    expected = torch.where(reference > 0, reference - 1, torch.where(reference == 0, NEGATIVE, IGNORED))
    ledger.same(f"{name}: objects", found.gt_index, expected)
    overlaps = golden[situation]["max_overlaps"]
    matter = overlaps > 0
    ledger.close(f"{name}: overlaps", found.overlap[matter], overlaps[matter], TOLERANCE)
    labels = data["gt_labels"]
    ours = torch.where(found.positive, labels[found.gt_index.clamp(min=0, max=len(labels) - 1)], -1)
    ledger.same(f"{name}: labels", ours, golden[situation]["labels"].long())


# --- NMS


def check_nms(case: MethodCase, ledger: Ledger) -> None:
    data = case.data
    boxes, scores, classes = data["boxes"], data["scores"], data["classes"]
    one = torch.zeros_like(classes)
    for variant, golden in data["nms"].items():
        threshold = float(variant.partition("thr")[2].partition("_")[0])
        if variant.endswith("off1"):  # pixels counted inclusively, as before 2019; nothing uses it
            continue
        groups = classes if variant.startswith("batched") else one
        kept = batched_nms(boxes, scores, groups, threshold)
        ledger.same(variant, kept, (golden["inds"] if isinstance(golden, dict) else golden).long())
    for variant, golden in data["soft"].items():
        rest = variant.removeprefix("batched_")
        method, threshold, minimum, *offset = rest.split("_")
        if offset == ["off1"] or method == "naive":
            continue
        soft = SoftNMS(method, 0.5, float(minimum.removeprefix("min")))
        groups = classes if variant.startswith("batched") else one
        kept, values = soft_nms(boxes, scores, float(threshold.removeprefix("thr")), soft, groups)
        ledger.same(f"{variant}: kept", kept, golden["inds"].long())
        ledger.close(f"{variant}: scores", values, golden["dets"][:, 4], 1e-5)
        ledger.close(f"{variant}: boxes", boxes[kept], golden["dets"][:, :4], 1e-5)
