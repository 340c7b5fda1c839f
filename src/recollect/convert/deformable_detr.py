"""Names of Deformable DETR, plain, refined and two-stage: MMDetection 2.x (and its fork for SQR), 3.x, the original.

Without refinement all stages share one pair of heads, of which every file holds as many copies as there are stages; so
does our model. Of a two-stage detector the last pair, one more than stages, belongs to the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recollect.convert.backbones import DETR_RESNET, FROZEN, MMDET_RESNET
from recollect.convert.rules import Rule, Table, under
from recollect.convert.transformers import detr_feed_forward, mlp, mmdet_feed_forward

_STAGES = {"S": "stages.{s}.cross_norm.weight"}

_MMDET_NECK = (
    Rule("neck.convs.{l}.conv.*", "neck.convs.{l}.*"),
    Rule("neck.convs.{l}.gn.*", "neck.norms.{l}.*"),
    Rule("neck.extra_convs.{l}.conv.*", "neck.extra_convs.{l}.*"),
    Rule("neck.extra_convs.{l}.gn.*", "neck.extra_norms.{l}.*"),
)
_MMDET_HEADS = (
    Rule("bbox_head.cls_branches.{S}.*", "proposals.to_class.*", classes=True),
    Rule("bbox_head.reg_branches.{S}.*", "proposals.to_box.*"),
    Rule("bbox_head.cls_branches.{s}.*", "stages.{s}.to_class.*", classes=True),
    Rule("bbox_head.reg_branches.{s}.*", "stages.{s}.to_box.*"),
)

MMDET2 = Table(
    source="mmdet2",
    families=("Deformable DETR",),
    marker="bbox_head.transformer.level_embeds",
    rules=(
        *MMDET_RESNET,
        *_MMDET_NECK,
        Rule("bbox_head.query_embedding.weight", "query_embedding.weight"),
        *under(
            "bbox_head.transformer.",
            "",
            (
                Rule("level_embeds", "encoder.level_embedding"),
                Rule("encoder.layers.{i}.attentions.0.*", "encoder.layers.{i}.attention.*"),
                Rule("encoder.layers.{i}.norms.0.*", "encoder.layers.{i}.norm.*"),
                *mmdet_feed_forward("encoder.layers.{i}", "encoder.layers.{i}", 1),
                Rule("decoder.layers.{s}.attentions.0.attn.*", "stages.{s}.self_attention.attention.*"),
                Rule("decoder.layers.{s}.norms.0.*", "stages.{s}.self_attention.norm.*"),
                Rule("decoder.layers.{s}.attentions.1.*", "stages.{s}.cross_attention.*"),
                Rule("decoder.layers.{s}.norms.1.*", "stages.{s}.cross_norm.*"),
                *mmdet_feed_forward("decoder.layers.{s}", "stages.{s}", 2),
                Rule("reference_points.*", "reference_points.*"),
                Rule("enc_output.*", "proposals.project.*"),
                Rule("enc_output_norm.*", "proposals.norm.*"),
                Rule("pos_trans.*", "proposals.position.*"),
                Rule("pos_trans_norm.*", "proposals.position_norm.*"),
            ),
        ),
        *_MMDET_HEADS,
    ),
    options={
        "num_classes": ("bbox_head.cls_branches.0.bias", 0),
        "num_queries": ("bbox_head.query_embedding.weight", 0),
        "num_stages": ("bbox_head.transformer.decoder.layers.{s}.norms.0.weight", None),
    },
    counts=_STAGES,
    checked="names and shapes of the full-size reference detectors; outputs of the reduced reference detectors",
)

MMDET3 = Table(
    source="mmdet3",
    families=("Deformable DETR",),
    marker="encoder.layers.0.self_attn.sampling_offsets.weight",
    rules=(
        *MMDET_RESNET,
        *_MMDET_NECK,
        Rule("query_embedding.weight", "query_embedding.weight"),
        Rule("level_embed", "encoder.level_embedding"),
        Rule("encoder.layers.{i}.self_attn.*", "encoder.layers.{i}.attention.*"),
        Rule("encoder.layers.{i}.norms.0.*", "encoder.layers.{i}.norm.*"),
        *mmdet_feed_forward("encoder.layers.{i}", "encoder.layers.{i}", 1, block="ffn"),
        Rule("decoder.layers.{s}.self_attn.attn.*", "stages.{s}.self_attention.attention.*"),
        Rule("decoder.layers.{s}.norms.0.*", "stages.{s}.self_attention.norm.*"),
        Rule("decoder.layers.{s}.cross_attn.*", "stages.{s}.cross_attention.*"),
        Rule("decoder.layers.{s}.norms.1.*", "stages.{s}.cross_norm.*"),
        *mmdet_feed_forward("decoder.layers.{s}", "stages.{s}", 2, block="ffn"),
        Rule("reference_points_fc.*", "reference_points.*"),
        Rule("memory_trans_fc.*", "proposals.project.*"),
        Rule("memory_trans_norm.*", "proposals.norm.*"),
        Rule("pos_trans_fc.*", "proposals.position.*"),
        Rule("pos_trans_norm.*", "proposals.position_norm.*"),
        *_MMDET_HEADS,
    ),
    options={
        "num_classes": ("bbox_head.cls_branches.0.bias", 0),
        "num_queries": ("query_embedding.weight", 0),
        "num_stages": ("decoder.layers.{s}.norms.0.weight", None),
    },
    counts=_STAGES,
    checked="names as the repository's modules define them; the shapes are ours; no published file was at hand",
)


def _original(refine: bool, two_stage: bool) -> Table:
    """The decoder of the original code also holds the heads that it uses, under their own names once more."""

    def held(template: str, holds: bool) -> tuple[str, ...]:
        return (f"transformer.decoder.{template}",) if holds else ()

    heads = []
    for number, ours in (("{S}", "proposals"), ("{s}", "stages.{s}")):
        of_class, of_box = f"class_embed.{number}", f"bbox_embed.{number}.layers"
        heads += [
            Rule(f"{of_class}.*", f"{ours}.to_class.*", copies=held(f"{of_class}.*", two_stage), classes=True),
            *mlp(of_box, f"{ours}.to_box", 3, copies=held(of_box, refine)),
        ]
    return Table(
        source="deformable-detr",
        families=("Deformable DETR",),
        marker="transformer.decoder."
        + (
            "class_embed.0.bias"
            if two_stage
            else "bbox_embed.0.layers.0.bias"
            if refine
            else "layers.0.cross_attn.sampling_offsets.bias"
        ),
        rules=(
            *DETR_RESNET,
            *(Rule(f"input_proj.{level}.0.*", f"neck.convs.{level}.*") for level in range(3)),
            *(Rule(f"input_proj.{level}.1.*", f"neck.norms.{level}.*") for level in range(3)),
            Rule("input_proj.3.0.*", "neck.extra_convs.0.*"),
            Rule("input_proj.3.1.*", "neck.extra_norms.0.*"),
            Rule("query_embed.weight", "query_embedding.weight"),
            Rule("transformer.level_embed", "encoder.level_embedding"),
            Rule("transformer.encoder.layers.{i}.self_attn.*", "encoder.layers.{i}.attention.*"),
            Rule("transformer.encoder.layers.{i}.norm1.*", "encoder.layers.{i}.norm.*"),
            *detr_feed_forward("transformer.encoder.layers.{i}", "encoder.layers.{i}", 2),
            Rule("transformer.decoder.layers.{s}.self_attn.*", "stages.{s}.self_attention.attention.*"),
            Rule("transformer.decoder.layers.{s}.norm2.*", "stages.{s}.self_attention.norm.*"),
            Rule("transformer.decoder.layers.{s}.cross_attn.*", "stages.{s}.cross_attention.*"),
            Rule("transformer.decoder.layers.{s}.norm1.*", "stages.{s}.cross_norm.*"),
            *detr_feed_forward("transformer.decoder.layers.{s}", "stages.{s}", 3),
            Rule("transformer.reference_points.*", "reference_points.*"),
            Rule("transformer.enc_output.*", "proposals.project.*"),
            Rule("transformer.enc_output_norm.*", "proposals.norm.*"),
            Rule("transformer.pos_trans.*", "proposals.position.*"),
            Rule("transformer.pos_trans_norm.*", "proposals.position_norm.*"),
            *heads,
        ),
        given={"neck_bias": True},
        options={
            "num_classes": ("class_embed.0.bias", 0),
            "num_queries": ("query_embed.weight", 0),
            "num_stages": ("transformer.decoder.layers.{s}.norm1.weight", None),
        },
        counts=_STAGES,
        variant=lambda ours: (_refines(ours), "proposals.norm.weight" in ours) == (refine, two_stage),
        filled=FROZEN,
        checked="names as the repository's modules define them; the shapes are ours; no published file was at hand",
    )


def _refines(ours: Mapping[str, Tensor]) -> bool:
    """Only with refinement every stage has heads of its own."""
    first, second = (ours.get(f"stages.{stage}.to_class.bias") for stage in (0, 1))
    return first is not second


ORIGINAL = _original(refine=False, two_stage=False)
ORIGINAL_REFINE = _original(refine=True, two_stage=False)
ORIGINAL_TWO_STAGE = _original(refine=True, two_stage=True)

TABLES = (MMDET2, MMDET3, ORIGINAL_TWO_STAGE, ORIGINAL_REFINE, ORIGINAL)
