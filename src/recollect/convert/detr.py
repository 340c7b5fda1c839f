"""Names of DETR: facebookresearch/detr, MMDetection 2.x and 3.x.

Our stages share one norm and one pair of heads, of which the files have one copy.
"""

from __future__ import annotations

from recollect.convert.backbones import DETR_RESNET, FROZEN, MMDET_RESNET
from recollect.convert.rules import Rule, Table, under
from recollect.convert.transformers import detr_feed_forward, mlp, mmdet_feed_forward

FACEBOOK = Table(
    source="detr",
    families=("DETR",),
    marker="transformer.decoder.layers.0.multihead_attn.in_proj_weight",
    rules=(
        *DETR_RESNET,
        Rule("input_proj.*", "encoder.project.*"),
        Rule("transformer.encoder.layers.{i}.self_attn.*", "encoder.layers.{i}.attention.*"),
        Rule("transformer.encoder.layers.{i}.norm1.*", "encoder.layers.{i}.norm.*"),
        *detr_feed_forward("transformer.encoder.layers.{i}", "encoder.layers.{i}", 2),
        Rule("transformer.decoder.layers.{s}.self_attn.*", "stages.{s}.self_attention.attention.*"),
        Rule("transformer.decoder.layers.{s}.norm1.*", "stages.{s}.self_attention.norm.*"),
        Rule("transformer.decoder.layers.{s}.multihead_attn.*", "stages.{s}.cross_attention.attention.*"),
        Rule("transformer.decoder.layers.{s}.norm2.*", "stages.{s}.cross_attention.norm.*"),
        *detr_feed_forward("transformer.decoder.layers.{s}", "stages.{s}", 3),
        Rule("transformer.decoder.norm.*", "stages.{s}.norm.*"),
        Rule("query_embed.weight", "query_embedding.weight"),
        Rule("class_embed.*", "stages.{s}.to_class.*", classes=True),
        *mlp("bbox_embed.layers", "stages.{s}.to_box", 3),
    ),
    options={
        "num_classes": ("class_embed.bias", 0),
        "num_queries": ("query_embed.weight", 0),
        "num_stages": ("transformer.decoder.layers.{s}.norm1.weight", None),
    },
    filled=FROZEN,
    no_object=True,
    checked="names as the repository's modules define them; the shapes are ours; no published file was at hand",
)


def _mmdet_heads(prefix: str = "bbox_head.") -> tuple[Rule, ...]:
    return under(
        prefix,
        "stages.{s}.",
        (
            Rule("fc_cls.*", "to_class.*", classes=True),
            Rule("reg_ffn.layers.0.0.*", "to_box.0.*"),
            Rule("reg_ffn.layers.1.*", "to_box.2.*"),
            Rule("fc_reg.*", "to_box.4.*"),
        ),
    )


MMDET2 = Table(
    source="mmdet2",
    families=("DETR",),
    marker="bbox_head.transformer.decoder.post_norm.weight",
    rules=(
        *MMDET_RESNET,
        Rule("bbox_head.input_proj.*", "encoder.project.*"),
        *under(
            "bbox_head.transformer.",
            "",
            (
                Rule("encoder.layers.{i}.attentions.0.attn.*", "encoder.layers.{i}.attention.*"),
                Rule("encoder.layers.{i}.norms.0.*", "encoder.layers.{i}.norm.*"),
                *mmdet_feed_forward("encoder.layers.{i}", "encoder.layers.{i}", 1),
                Rule("decoder.layers.{s}.attentions.0.attn.*", "stages.{s}.self_attention.attention.*"),
                Rule("decoder.layers.{s}.norms.0.*", "stages.{s}.self_attention.norm.*"),
                Rule("decoder.layers.{s}.attentions.1.attn.*", "stages.{s}.cross_attention.attention.*"),
                Rule("decoder.layers.{s}.norms.1.*", "stages.{s}.cross_attention.norm.*"),
                *mmdet_feed_forward("decoder.layers.{s}", "stages.{s}", 2),
                Rule("decoder.post_norm.*", "stages.{s}.norm.*"),
            ),
        ),
        Rule("bbox_head.query_embedding.weight", "query_embedding.weight"),
        *_mmdet_heads(),
    ),
    options={
        "num_classes": ("bbox_head.fc_cls.bias", 0),
        "num_queries": ("bbox_head.query_embedding.weight", 0),
        "num_stages": ("bbox_head.transformer.decoder.layers.{s}.norms.0.weight", None),
    },
    no_object=True,
    checked="names and shapes of the full-size reference detector",
)

MMDET3 = Table(
    source="mmdet3",
    families=("DETR",),
    marker="bbox_head.reg_ffn.layers.1.weight",
    rules=(
        *MMDET_RESNET,
        Rule("neck.convs.0.conv.*", "encoder.project.*"),
        Rule("encoder.layers.{i}.self_attn.attn.*", "encoder.layers.{i}.attention.*"),
        Rule("encoder.layers.{i}.norms.0.*", "encoder.layers.{i}.norm.*"),
        *mmdet_feed_forward("encoder.layers.{i}", "encoder.layers.{i}", 1, block="ffn"),
        Rule("decoder.layers.{s}.self_attn.attn.*", "stages.{s}.self_attention.attention.*"),
        Rule("decoder.layers.{s}.norms.0.*", "stages.{s}.self_attention.norm.*"),
        Rule("decoder.layers.{s}.cross_attn.attn.*", "stages.{s}.cross_attention.attention.*"),
        Rule("decoder.layers.{s}.norms.1.*", "stages.{s}.cross_attention.norm.*"),
        *mmdet_feed_forward("decoder.layers.{s}", "stages.{s}", 2, block="ffn"),
        Rule("decoder.post_norm.*", "stages.{s}.norm.*"),
        Rule("query_embedding.weight", "query_embedding.weight"),
        *_mmdet_heads(),
    ),
    options={
        "num_classes": ("bbox_head.fc_cls.bias", 0),
        "num_queries": ("query_embedding.weight", 0),
        "num_stages": ("decoder.layers.{s}.norms.0.weight", None),
    },
    no_object=True,
    checked="names as the repository's modules define them; the shapes are ours; no published file was at hand",
)

TABLES = (
    FACEBOOK,
    MMDET2,
    MMDET3,
)
