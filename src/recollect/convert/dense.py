"""Names of RetinaNet, FCOS, ATSS and GFL: MMDetection 2.x and torchvision."""

from __future__ import annotations

from recollect.convert.backbones import FROZEN, MMDET_RESNET, RESNET
from recollect.convert.rules import Rule, Table, under

# --- MMDetection 2.x

MMDET_FPN = (
    Rule("neck.lateral_convs.{l}.conv.*", "neck.laterals.{l}.conv.*"),
    Rule("neck.lateral_convs.{l}.gn.*", "neck.laterals.{l}.norm.*"),
    # Over three maps of the backbone, so that the convolutions from the fourth on make the extra levels.
    Rule("neck.fpn_convs.3.conv.*", "neck.extras.0.conv.*"),
    Rule("neck.fpn_convs.4.conv.*", "neck.extras.1.conv.*"),
    Rule("neck.fpn_convs.{l}.conv.*", "neck.outputs.{l}.conv.*"),
    Rule("neck.fpn_convs.{l}.gn.*", "neck.outputs.{l}.norm.*"),
)

MMDET_TOWERS = (
    Rule("cls_convs.{i}.conv.*", "class_tower.{i}.conv.*"),
    Rule("cls_convs.{i}.gn.*", "class_tower.{i}.norm.*"),
    Rule("reg_convs.{i}.conv.*", "box_tower.{i}.conv.*"),
    Rule("reg_convs.{i}.gn.*", "box_tower.{i}.norm.*"),
    Rule("scales.{l}.scale", "scales.{l}.scale"),
)


def _mmdet(family: str, prefix: str, *more: Rule, anchors: int = 1, marker: str = "", **given: bool) -> Table:
    """The four heads differ in the names of their last convolutions."""
    return Table(
        source="mmdet2",
        families=(family,),
        marker=marker or f"bbox_head.{prefix}_cls.weight",
        rules=(
            *MMDET_RESNET,
            *MMDET_FPN,
            *under("bbox_head.", "head.", MMDET_TOWERS),
            Rule(f"bbox_head.{prefix}_cls.*", "head.to_class.*", classes=anchors == 1),
            Rule(f"bbox_head.{prefix}_reg.*", "head.to_box.*"),
            Rule(f"bbox_head.{prefix}_centerness.*", "head.to_centreness.*"),
            *more,
        ),
        given=given,
        options={"num_classes": (f"bbox_head.{prefix}_cls.bias", 0, anchors)},
        checked="names and shapes of the full-size reference detectors; outputs of the reduced reference heads",
    )


_BINS = Rule("bbox_head.integral.project", None, why="the numbers 0..M, which follow from the shape")

MMDET_RETINANET = _mmdet("RetinaNet", "retina", anchors=9)
# Only with the tricks do the towers' convolutions have biases. Centre sampling alone cannot be told from a file.
MMDET_FCOS_TRICKS = _mmdet("FCOS", "conv", marker="bbox_head.cls_convs.0.conv.bias", tricks=True)
MMDET_FCOS = _mmdet("FCOS", "conv")
MMDET_ATSS = _mmdet("ATSS", "atss")
MMDET_GFL = _mmdet("GFL", "gfl", _BINS)

# --- torchvision

TORCHVISION_FPN = (
    *under("backbone.body.", "backbone.body.", RESNET),
    Rule("backbone.fpn.inner_blocks.{l}.0.*", "neck.laterals.{l}.conv.*"),
    Rule("backbone.fpn.layer_blocks.{l}.0.*", "neck.outputs.{l}.conv.*"),
    Rule("backbone.fpn.extra_blocks.p6.*", "neck.extras.0.conv.*"),
    Rule("backbone.fpn.extra_blocks.p7.*", "neck.extras.1.conv.*"),
)
_BRANCHES = (("head.classification_head", "head.class_tower"), ("head.regression_head", "head.box_tower"))


def _torchvision_retinanet(version: str, marker: str) -> Table:
    return Table(
        source="torchvision",
        families=("RetinaNet",),
        marker=marker,
        rules=(
            *TORCHVISION_FPN,
            *(Rule(f"{theirs}.conv.{{i}}.0.*", f"{ours}.{{i}}.conv.*") for theirs, ours in _BRANCHES),
            *(Rule(f"{theirs}.conv.{{i}}.1.*", f"{ours}.{{i}}.norm.*") for theirs, ours in _BRANCHES),
            Rule("head.classification_head.cls_logits.*", "head.to_class.*"),
            Rule("head.regression_head.bbox_reg.*", "head.to_box.*"),
        ),
        given={"torchvision": version},
        options={"num_classes": ("head.classification_head.cls_logits.bias", 0, 9)},
        filled=FROZEN if version == "v1" else (),
        checked="detections and losses of torchvision's own model with random weights",
    )


TORCHVISION_RETINANET = _torchvision_retinanet("v1", "head.classification_head.conv.0.0.bias")
TORCHVISION_RETINANET_V2 = _torchvision_retinanet("v2", "head.classification_head.conv.0.1.weight")

TORCHVISION_FCOS = Table(
    source="torchvision",
    families=("FCOS",),
    marker="head.regression_head.bbox_ctrness.weight",
    rules=(
        *TORCHVISION_FPN,
        # A tower is convolution, norm, ReLU, four times in one row.
        *(
            Rule(f"{theirs}.conv.{3 * i + j}.*", f"{ours}.{i}.{part}.*")
            for theirs, ours in _BRANCHES
            for i in range(4)
            for j, part in enumerate(("conv", "norm"))
        ),
        Rule("head.classification_head.cls_logits.*", "head.to_class.*", classes=True),
        Rule("head.regression_head.bbox_reg.*", "head.to_box.*"),
        Rule("head.regression_head.bbox_ctrness.*", "head.to_centreness.*"),
    ),
    given={"torchvision": True},
    options={"num_classes": ("head.classification_head.cls_logits.bias", 0)},
    filled=(*FROZEN, "head.scales.*"),
    checked="detections and losses of torchvision's own model with random weights",
)

TABLES = (
    MMDET_RETINANET,
    MMDET_FCOS_TRICKS,
    MMDET_FCOS,
    MMDET_ATSS,
    MMDET_GFL,
    TORCHVISION_RETINANET,
    TORCHVISION_RETINANET_V2,
    TORCHVISION_FCOS,
)
