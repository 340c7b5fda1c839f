"""Names of Sparse R-CNN: MMDetection, alike in 2.x and 3.x."""

from __future__ import annotations

from recollect.convert.backbones import MMDET_RESNET
from recollect.convert.rules import Rule, Table, under

_STAGE = (
    Rule("attention.attn.*", "self_attention.attention.*"),
    Rule("attention_norm.*", "self_attention.norm.*"),
    Rule("instance_interactive_conv.dynamic_layer.*", "interaction.generator.*"),
    Rule("instance_interactive_conv.norm_in.*", "interaction.norm1.*"),
    Rule("instance_interactive_conv.norm_out.*", "interaction.norm2.*"),
    Rule("instance_interactive_conv.fc_layer.*", "interaction.out.*"),
    Rule("instance_interactive_conv.fc_norm.*", "interaction.norm3.*"),
    Rule("instance_interactive_conv_norm.*", "interaction_norm.*"),
    Rule("ffn.layers.0.0.*", "feedforward.linear1.*"),
    Rule("ffn.layers.1.*", "feedforward.linear2.*"),
    Rule("ffn_norm.*", "feedforward.norm.*"),
    Rule("cls_fcs.{i}.*", "class_layers.{i}.*"),
    Rule("reg_fcs.{i}.*", "box_layers.{i}.*"),
    Rule("fc_cls.*", "to_class.*", classes=True),
    Rule("fc_reg.*", "to_box.*"),
)

MMDET = Table(
    source="mmdet",
    families=("Sparse R-CNN",),
    marker="roi_head.bbox_head.0.instance_interactive_conv.dynamic_layer.weight",
    rules=(
        *MMDET_RESNET,
        Rule("neck.lateral_convs.{l}.conv.*", "neck.laterals.{l}.conv.*"),
        Rule("neck.fpn_convs.{l}.conv.*", "neck.outputs.{l}.conv.*"),
        Rule("rpn_head.init_proposal_bboxes.weight", "proposal_boxes.weight"),
        Rule("rpn_head.init_proposal_features.weight", "proposal_features.weight"),
        *under("roi_head.bbox_head.{s}.", "stages.{s}.", _STAGE),
    ),
    options={
        "num_classes": ("roi_head.bbox_head.0.fc_cls.bias", 0),
        "num_queries": ("rpn_head.init_proposal_features.weight", 0),
        "num_stages": ("roi_head.bbox_head.{s}.fc_cls.bias", None),
    },
    checked="names and shapes of the full-size reference detector",
)

TABLES = (MMDET,)
