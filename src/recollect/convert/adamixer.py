"""Names of AdaMixer and SQR-AdaMixer: MCG-NJU/AdaMixer and Fangyi-Chen/SQR, both forks of MMDetection 2.x."""

from __future__ import annotations

from recollect.convert.backbones import MMDET_RESNET
from recollect.convert.rules import Rule, Table, under

STAGE = (
    Rule("iof_tau", "iof_scale"),
    Rule("attention.attn.*", "attention.*"),
    Rule("attention_norm.*", "attention_norm.*"),
    Rule("sampling_n_mixing.sampling_offset_generator.0.*", "sampling_offsets.*"),
    Rule("sampling_n_mixing.adaptive_mixing.parameter_generator.0.*", "mixing.generator.*"),
    Rule("sampling_n_mixing.adaptive_mixing.out_proj.*", "mixing.out.*"),
    Rule("sampling_n_mixing.norm.*", "mixing_norm.*"),
    Rule("ffn.layers.0.0.*", "feedforward.0.*"),
    Rule("ffn.layers.1.*", "feedforward.2.*"),
    Rule("ffn_norm.*", "feedforward_norm.*"),
    Rule("cls_fcs.{i}.*", "class_layers.{i}.*"),
    Rule("reg_fcs.{i}.*", "box_layers.{i}.*"),
    Rule("fc_cls.*", "to_class.*", classes=True),
    Rule("fc_reg.*", "to_box.*"),
)

ADAMIXER = Table(
    source="adamixer",
    families=("AdaMixer",),
    marker="roi_head.bbox_head.0.iof_tau",
    rules=(
        *MMDET_RESNET,
        Rule("neck.lateral_convs.{l}.conv.*", "neck.convs.{l}.*"),
        Rule("neck.gn_out.*", "neck.norm.*"),
        Rule("rpn_head.init_content_features.weight", "query_content.weight"),
        Rule("rpn_head.init_proposal_bboxes.weight", None, why="the code never reads it: boxes start as the image"),
        *under("roi_head.bbox_head.{s}.", "stages.{s}.", STAGE),
    ),
    options={
        "num_classes": ("roi_head.bbox_head.0.fc_cls.bias", 0),
        "num_queries": ("rpn_head.init_content_features.weight", 0),
        "num_stages": ("roi_head.bbox_head.{s}.iof_tau", None),
    },
    checked="names and shapes of the full-size reference detectors; outputs of the reduced reference detectors",
)

TABLES = (ADAMIXER,)
