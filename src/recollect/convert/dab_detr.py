"""Names of DAB-DETR: IDEA-Research/DAB-DETR and detrex.

What our stages share (position and size networks, the final norm, the heads) the files hold once.
"""

from __future__ import annotations

from recollect.convert.backbones import DETECTRON2_RESNET, DETR_RESNET, FROZEN
from recollect.convert.rules import Rule, Table
from recollect.convert.transformers import detr_feed_forward, mlp, mmdet_feed_forward

_SHARED = "stages.{s}.shared."


def _shared_networks(norm: str) -> tuple[Rule, ...]:
    decoder = "transformer.decoder."
    return (
        *mlp(f"{decoder}ref_point_head.layers", f"{_SHARED}position", 2),
        *mlp(f"{decoder}query_scale.layers", f"{_SHARED}scale", 2),
        *mlp(f"{decoder}ref_anchor_head.layers", f"{_SHARED}size", 2),
        Rule(f"{decoder}{norm}.*", f"{_SHARED}norm.*"),
        Rule("class_embed.*", f"{_SHARED}to_class.*", classes=True),
        *mlp("bbox_embed.layers", f"{_SHARED}to_box", 3, copies=(f"{decoder}bbox_embed.layers",)),
    )


_OPTIONS = {"num_classes": ("class_embed.bias", 0)}
_LAYER = "transformer.decoder.layers.{s}."

OFFICIAL = Table(
    source="dab-detr",
    families=("DAB-DETR",),
    marker="transformer.decoder.layers.0.ca_qpos_sine_proj.weight",
    rules=(
        *DETR_RESNET,
        Rule("input_proj.*", "encoder.project.*"),
        Rule("refpoint_embed.weight", "anchors.weight"),
        Rule("transformer.encoder.layers.{i}.self_attn.*", "encoder.layers.{i}.attention.*"),
        Rule("transformer.encoder.layers.{i}.norm1.*", "encoder.layers.{i}.norm.*"),
        *detr_feed_forward("transformer.encoder.layers.{i}", "encoder.layers.{i}", 2, prelu=True),
        *mlp("transformer.encoder.query_scale.layers", "encoder.position_scale", 2),
        Rule(f"{_LAYER}sa_qcontent_proj.*", "stages.{s}.self_attention.query_content.*"),
        Rule(f"{_LAYER}sa_qpos_proj.*", "stages.{s}.self_attention.query_position.*"),
        Rule(f"{_LAYER}sa_kcontent_proj.*", "stages.{s}.self_attention.key_content.*"),
        Rule(f"{_LAYER}sa_kpos_proj.*", "stages.{s}.self_attention.key_position.*"),
        Rule(f"{_LAYER}sa_v_proj.*", "stages.{s}.self_attention.value.*"),
        Rule(f"{_LAYER}self_attn.out_proj.*", "stages.{s}.self_attention.out.*"),
        Rule(f"{_LAYER}norm1.*", "stages.{s}.self_attention.norm.*"),
        Rule(f"{_LAYER}ca_qcontent_proj.*", "stages.{s}.cross_attention.query_content.*"),
        Rule(f"{_LAYER}ca_qpos_proj.*", "stages.{s}.cross_attention.query_position.*"),
        Rule(f"{_LAYER}ca_kcontent_proj.*", "stages.{s}.cross_attention.key_content.*"),
        Rule(f"{_LAYER}ca_kpos_proj.*", "stages.{s}.cross_attention.key_position.*"),
        Rule(f"{_LAYER}ca_v_proj.*", "stages.{s}.cross_attention.value.*"),
        Rule(f"{_LAYER}ca_qpos_sine_proj.*", "stages.{s}.cross_attention.query_sine.*"),
        Rule(f"{_LAYER}cross_attn.out_proj.*", "stages.{s}.cross_attention.out.*"),
        Rule(f"{_LAYER}norm2.*", "stages.{s}.cross_attention.norm.*"),
        *detr_feed_forward(_LAYER.removesuffix("."), "stages.{s}", 3, prelu=True),
        *_shared_networks("norm"),
    ),
    options={
        **_OPTIONS,
        "num_queries": ("refpoint_embed.weight", 0),
        "num_stages": (f"{_LAYER}norm1.weight", None),
    },
    filled=FROZEN,
    checked="names as the repository's modules define them; the shapes are ours; no published file was at hand",
)


def _conditional(block: int, ours: str) -> tuple[Rule, ...]:
    theirs = f"{_LAYER}attentions.{block}."
    names = {
        "query_content_proj": "query_content",
        "query_pos_proj": "query_position",
        "query_pos_sine_proj": "query_sine",
        "key_content_proj": "key_content",
        "key_pos_proj": "key_position",
        "value_proj": "value",
        "out_proj": "out",
    }
    return tuple(Rule(f"{theirs}{name}.*", f"stages.{{s}}.{ours}.{mine}.*") for name, mine in names.items())


DETREX = Table(
    source="detrex",
    families=("DAB-DETR",),
    marker="anchor_box_embed.weight",
    rules=(
        *DETECTRON2_RESNET,
        Rule("input_proj.*", "encoder.project.*"),
        Rule("anchor_box_embed.weight", "anchors.weight"),
        Rule("transformer.encoder.layers.{i}.attentions.0.attn.*", "encoder.layers.{i}.attention.*"),
        Rule("transformer.encoder.layers.{i}.norms.0.*", "encoder.layers.{i}.norm.*"),
        *mmdet_feed_forward("transformer.encoder.layers.{i}", "encoder.layers.{i}", 1, prelu=True),
        *mlp("transformer.encoder.query_scale.layers", "encoder.position_scale", 2),
        *_conditional(0, "self_attention"),
        Rule(f"{_LAYER}norms.0.*", "stages.{s}.self_attention.norm.*"),
        *_conditional(1, "cross_attention"),
        Rule(f"{_LAYER}norms.1.*", "stages.{s}.cross_attention.norm.*"),
        *mmdet_feed_forward(_LAYER.removesuffix("."), "stages.{s}", 2, prelu=True),
        *_shared_networks("post_norm_layer"),
    ),
    options={
        **_OPTIONS,
        "num_queries": ("anchor_box_embed.weight", 0),
        "num_stages": (f"{_LAYER}norms.0.weight", None),
    },
    filled=FROZEN,
    checked="names as the repository's modules define them; the shapes are ours; no published file was at hand",
)

TABLES = (
    OFFICIAL,
    DETREX,
)
