"""Names of RPN, Fast, Faster, Mask and Cascade R-CNN: MMDetection 2.x and torchvision."""

from __future__ import annotations

from recollect.convert.backbones import MMDET_RESNET, RESNET
from recollect.convert.rules import Rule, Table, under

# --- MMDetection 2.x

FPN = (
    Rule("neck.lateral_convs.{l}.conv.*", "neck.laterals.{l}.conv.*"),
    Rule("neck.fpn_convs.{l}.conv.*", "neck.outputs.{l}.conv.*"),
)
RPN = (
    Rule("rpn_conv.*", "conv.*"),
    Rule("rpn_cls.*", "to_class.*"),
    Rule("rpn_reg.*", "to_box.*"),
)
BOX_HEAD = (
    Rule("shared_convs.{i}.conv.*", "convs.{i}.conv.*"),
    Rule("shared_convs.{i}.gn.*", "convs.{i}.norm.*"),
    Rule("shared_fcs.{i}.*", "layers.{i}.*"),
    Rule("fc_cls.*", "to_class.*"),
    Rule("fc_reg.*", "to_box.*"),
)
MASK_HEAD = (
    Rule("convs.{i}.conv.*", "convs.{i}.conv.*"),
    Rule("convs.{i}.gn.*", "convs.{i}.norm.*"),
    Rule("upsample.*", "upsample.*"),
    Rule("conv_logits.*", "to_mask.*"),
)

MMDET_RPN = Table(
    source="mmdet2",
    families=("RPN",),
    marker="rpn_head.rpn_cls.weight",
    rules=(*MMDET_RESNET, *FPN, *under("rpn_head.", "head.", RPN)),
    checked="names and shapes of the full-size reference detectors; outputs of the reduced reference head",
)
_BODY = (*MMDET_RESNET, *FPN, *under("rpn_head.", "rpn.", RPN))
_CHECKED = "names and shapes of the full-size reference detectors; outputs of the reduced reference heads"

MMDET_RCNN = Table(
    source="mmdet2",
    families=("Fast R-CNN", "Faster R-CNN", "Mask R-CNN"),
    marker="roi_head.bbox_head.fc_cls.weight",
    rules=(
        *_BODY,
        Rule("roi_head.shared_head.layer4.*", "roi.box_pool.stage.*"),
        *under("roi_head.bbox_head.", "roi.stages.0.box_head.", BOX_HEAD),
        *under("roi_head.mask_head.", "roi.stages.0.mask_head.", MASK_HEAD),
    ),
    checked=_CHECKED,
)

MMDET_CASCADE = Table(
    source="mmdet2",
    families=("Cascade R-CNN",),
    marker="roi_head.bbox_head.0.fc_cls.weight",
    rules=(
        *_BODY,
        *under("roi_head.bbox_head.{s}.", "roi.stages.{s}.box_head.", BOX_HEAD),
        *under("roi_head.mask_head.{s}.", "roi.stages.{s}.mask_head.", MASK_HEAD),
    ),
    checked=_CHECKED,
)

# --- torchvision, whose class 0 is the background

TORCHVISION_RCNN = Table(
    source="torchvision",
    families=("Faster R-CNN", "Mask R-CNN"),
    marker="roi_heads.box_predictor.cls_score.weight",
    rules=(
        *under("backbone.body.", "backbone.body.", RESNET),
        Rule("backbone.fpn.inner_blocks.{l}.0.*", "neck.laterals.{l}.conv.*"),
        Rule("backbone.fpn.layer_blocks.{l}.0.*", "neck.outputs.{l}.conv.*"),
        Rule("rpn.head.conv.0.0.*", "rpn.conv.*"),
        Rule("rpn.head.cls_logits.*", "rpn.to_class.*"),
        Rule("rpn.head.bbox_pred.*", "rpn.to_box.*"),
        Rule("roi_heads.box_head.fc6.*", "roi.stages.0.box_head.layers.0.*"),
        Rule("roi_heads.box_head.fc7.*", "roi.stages.0.box_head.layers.1.*"),
        Rule("roi_heads.box_predictor.cls_score.*", "roi.stages.0.box_head.to_class.*", first_to_last=1),
        Rule("roi_heads.box_predictor.bbox_pred.*", "roi.stages.0.box_head.to_box.*", without_first=4),
        Rule("roi_heads.mask_head.{i}.0.*", "roi.stages.0.mask_head.convs.{i}.conv.*"),
        Rule("roi_heads.mask_predictor.conv5_mask.*", "roi.stages.0.mask_head.upsample.*"),
        Rule("roi_heads.mask_predictor.mask_fcn_logits.*", "roi.stages.0.mask_head.to_mask.*", without_first=1),
    ),
    checked="detections and losses of torchvision's own model with random weights; build ours with torchvision=True",
)

TABLES = (MMDET_RPN, MMDET_RCNN, MMDET_CASCADE, TORCHVISION_RCNN)
