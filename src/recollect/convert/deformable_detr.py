"""Names of Deformable DETR: MMDetection 2.x (and its fork for SQR), and the original code."""

from __future__ import annotations

from recollect.convert.backbones import MMDET_RESNET
from recollect.convert.rules import Rule, Table, under

# --- MMDetection 2.x, Fangyi-Chen/SQR


def _feed_forward(theirs: str, ours: str, norm: int) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.ffns.0.layers.0.0.*", f"{ours}.feedforward.linear1.*"),
        Rule(f"{theirs}.ffns.0.layers.1.*", f"{ours}.feedforward.linear2.*"),
        Rule(f"{theirs}.norms.{norm}.*", f"{ours}.feedforward.norm.*"),
    )


_MMDET_TRANSFORMER = (
    Rule("level_embeds", "encoder.level_embedding"),
    Rule("encoder.layers.{i}.attentions.0.*", "encoder.layers.{i}.attention.*"),
    Rule("encoder.layers.{i}.norms.0.*", "encoder.layers.{i}.norm.*"),
    *_feed_forward("encoder.layers.{i}", "encoder.layers.{i}", 1),
    Rule("decoder.layers.{s}.attentions.0.attn.*", "stages.{s}.self_attention.attention.*"),
    Rule("decoder.layers.{s}.norms.0.*", "stages.{s}.self_attention.norm.*"),
    Rule("decoder.layers.{s}.attentions.1.*", "stages.{s}.cross_attention.*"),
    Rule("decoder.layers.{s}.norms.1.*", "stages.{s}.cross_norm.*"),
    *_feed_forward("decoder.layers.{s}", "stages.{s}", 2),
    Rule("reference_points.*", "reference_points.*"),
    Rule("enc_output.*", "proposals.project.*"),
    Rule("enc_output_norm.*", "proposals.norm.*"),
    Rule("pos_trans.*", "proposals.position.*"),
    Rule("pos_trans_norm.*", "proposals.position_norm.*"),
)

MMDET2 = Table(
    source="mmdet2",
    families=("Deformable DETR",),
    marker="bbox_head.transformer.level_embeds",
    rules=(
        *MMDET_RESNET,
        Rule("neck.convs.{l}.conv.*", "neck.convs.{l}.*"),
        Rule("neck.convs.{l}.gn.*", "neck.norms.{l}.*"),
        Rule("neck.extra_convs.{l}.conv.*", "neck.extra_convs.{l}.*"),
        Rule("neck.extra_convs.{l}.gn.*", "neck.extra_norms.{l}.*"),
        Rule("bbox_head.query_embedding.weight", "query_embedding.weight"),
        *under("bbox_head.transformer.", "", _MMDET_TRANSFORMER),
        # Of a two-stage detector the last pair of heads, one more than stages, belongs to the encoder.
        Rule("bbox_head.cls_branches.{S}.*", "proposals.to_class.*", classes=True),
        Rule("bbox_head.reg_branches.{S}.*", "proposals.to_box.*"),
        Rule("bbox_head.cls_branches.{s}.*", "stages.{s}.to_class.*", classes=True),
        Rule("bbox_head.reg_branches.{s}.*", "stages.{s}.to_box.*"),
    ),
    options={
        "num_classes": ("bbox_head.cls_branches.0.bias", 0),
        "num_queries": ("bbox_head.query_embedding.weight", 0),
        "num_stages": ("bbox_head.transformer.decoder.layers.{s}.norms.0.weight", None),
    },
    counts={"S": "stages.{s}.cross_norm.weight"},
    checked="names and shapes of the full-size reference detectors; outputs of the reduced reference detectors",
)
