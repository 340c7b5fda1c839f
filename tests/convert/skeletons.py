"""What the checkpoints of other projects hold: names and shapes, as their modules nest, without any computation.

Written down from the definition of the modules in each repository, not from our name tables, which they test.
Everything is full-size: 256 channels, 8 heads, 6 + 6 layers, ResNet-50. Build them under `torch.device("meta")`.
"""

from __future__ import annotations

import itertools

import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

C = 256


class Tree(nn.Module):
    """A module that only has children and parameters."""

    def __init__(self, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def linear(inputs: int = C, outputs: int = C, bias: bool = True) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias)


def norm(channels: int = C) -> nn.LayerNorm:
    return nn.LayerNorm(channels)


def layers(make, count: int = 6) -> nn.ModuleList:
    return nn.ModuleList(make(index) for index in range(count))


def mlp(*widths: int) -> Tree:
    return Tree(layers=nn.ModuleList(linear(a, b) for a, b in itertools.pairwise(widths)))


def resnet(frozen: bool) -> nn.Module:
    body = torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d if frozen else None)
    del body.fc
    return body


def joiner() -> nn.ModuleList:
    """DETR's backbone and position encoding, of which only the first has weights."""
    return nn.ModuleList([Tree(body=resnet(frozen=True)), nn.Identity()])


# --- facebookresearch/detr


def detr(classes: int = 91) -> nn.Module:
    transformer = nn.Transformer(C, 8, 6, 6, 2048)  # its layers and DETR's have the same parts
    del transformer.encoder.norm
    return Tree(
        transformer=transformer,
        class_embed=linear(C, classes + 1),
        bbox_embed=mlp(C, C, C, 4),
        query_embed=nn.Embedding(100, C),
        input_proj=nn.Conv2d(2048, C, 1),
        backbone=joiner(),
    )


# --- the original Deformable-DETR


def msda() -> Tree:
    return Tree(
        sampling_offsets=linear(C, 256), attention_weights=linear(C, 128), value_proj=linear(), output_proj=linear()
    )


def deformable_detr(refine: bool, two_stage: bool, classes: int = 91) -> nn.Module:
    encoder = Tree(
        layers=layers(
            lambda _: Tree(self_attn=msda(), norm1=norm(), linear1=linear(C, 1024), linear2=linear(1024), norm2=norm())
        )
    )
    decoder = Tree(
        layers=layers(
            lambda _: Tree(
                cross_attn=msda(), norm1=norm(), self_attn=nn.MultiheadAttention(C, 8), norm2=norm(),
                linear1=linear(C, 1024), linear2=linear(1024), norm3=norm(),
            )
        )
    )  # fmt: skip
    predictors = 7 if two_stage else 6
    if refine:
        class_embed = layers(lambda _: linear(C, classes), predictors)
        bbox_embed = layers(lambda _: mlp(C, C, C, 4), predictors)
        decoder.bbox_embed = bbox_embed
    else:
        one_class, one_box = linear(C, classes), mlp(C, C, C, 4)
        class_embed, bbox_embed = layers(lambda _: one_class), layers(lambda _: one_box)
    if two_stage:
        decoder.class_embed = class_embed
        more: dict = {
            "enc_output": linear(), "enc_output_norm": norm(), "pos_trans": linear(2 * C, 2 * C),
            "pos_trans_norm": norm(2 * C),
        }  # fmt: skip
        queries: dict = {}
    else:
        more = {"reference_points": linear(C, 2)}
        queries = {"query_embed": nn.Embedding(300, 2 * C)}
    projections = [(512, 1, 1), (1024, 1, 1), (2048, 1, 1), (2048, 3, 2)]
    return Tree(
        transformer=Tree(encoder=encoder, decoder=decoder, level_embed=nn.Parameter(torch.empty(4, C)), **more),
        class_embed=class_embed,
        bbox_embed=bbox_embed,
        input_proj=nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, C, kernel, stride), nn.GroupNorm(32, C))
            for width, kernel, stride in projections
        ),
        backbone=joiner(),
        **queries,
    )


# --- IDEA-Research/DAB-DETR


def dab_detr(classes: int = 91) -> nn.Module:
    def encoder_layer(_: int) -> Tree:
        return Tree(
            self_attn=nn.MultiheadAttention(C, 8), linear1=linear(C, 2048), linear2=linear(2048), norm1=norm(),
            norm2=norm(), activation=nn.PReLU(),
        )  # fmt: skip

    def decoder_layer(index: int) -> Tree:
        first = {"ca_qpos_proj": linear()} if index == 0 else {}
        own = ("sa_qcontent_proj", "sa_qpos_proj", "sa_kcontent_proj", "sa_kpos_proj", "sa_v_proj")
        across = ("ca_qcontent_proj", "ca_kcontent_proj", "ca_kpos_proj", "ca_v_proj", "ca_qpos_sine_proj")
        return Tree(
            **{name: linear() for name in own + across}, **first,
            self_attn=Tree(out_proj=linear()), cross_attn=Tree(out_proj=linear()),
            norm1=norm(), norm2=norm(), norm3=norm(), linear1=linear(C, 2048), linear2=linear(2048),
            activation=nn.PReLU(),
        )  # fmt: skip

    bbox_embed = mlp(C, C, C, 4)
    decoder = Tree(
        layers=layers(decoder_layer), norm=norm(), query_scale=mlp(C, C, C), ref_point_head=mlp(2 * C, C, C),
        ref_anchor_head=mlp(C, C, 2), bbox_embed=bbox_embed,
    )  # fmt: skip
    return Tree(
        transformer=Tree(encoder=Tree(layers=layers(encoder_layer), query_scale=mlp(C, C, C)), decoder=decoder),
        class_embed=linear(C, classes),
        bbox_embed=bbox_embed,
        refpoint_embed=nn.Embedding(300, 4),
        input_proj=nn.Conv2d(2048, C, 1),
        backbone=joiner(),
    )


# --- detrex: mmcv's blocks and detectron2's backbone


def mmcv_ffn(hidden: int, prelu: bool = False) -> Tree:
    activation: nn.Module = nn.PReLU() if prelu else nn.ReLU()
    body = nn.Sequential(nn.Sequential(linear(C, hidden), activation, nn.Dropout()), linear(hidden), nn.Dropout())
    return Tree(activation=activation, layers=body) if prelu else Tree(layers=body)


def detectron2_conv(inputs: int, outputs: int, kernel: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, bias=False)
    conv.norm = FrozenBatchNorm2d(outputs)
    return conv


def detectron2_resnet() -> nn.Module:
    stages, inputs = {}, 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width, rows = 64 * 2**stage, []
        for _ in range(blocks):
            parts = {
                "conv1": detectron2_conv(inputs, width, 1), "conv2": detectron2_conv(width, width, 3),
                "conv3": detectron2_conv(width, 4 * width, 1),
            }  # fmt: skip
            if not rows:
                parts["shortcut"] = detectron2_conv(inputs, 4 * width, 1)
            rows.append(Tree(**parts))
            inputs = 4 * width
        stages[f"res{stage + 2}"] = nn.Sequential(*rows)
    return Tree(stem=Tree(conv1=detectron2_conv(3, 64, 7)), **stages)


def detrex_dab_detr(classes: int = 80) -> nn.Module:
    def encoder_layer(_: int) -> Tree:
        return Tree(
            attentions=nn.ModuleList([Tree(attn=nn.MultiheadAttention(C, 8))]),
            ffns=nn.ModuleList([mmcv_ffn(2048, prelu=True)]), norms=layers(lambda _: norm(), 2),
        )  # fmt: skip

    def decoder_layer(index: int) -> Tree:
        names = ("query_content_proj", "query_pos_proj", "key_content_proj", "key_pos_proj", "value_proj", "out_proj")
        own = Tree(**{name: linear() for name in names})
        across = Tree(**{name: linear() for name in (*names, "query_pos_sine_proj")})
        if index:
            del across.query_pos_proj
        return Tree(
            attentions=nn.ModuleList([own, across]), ffns=nn.ModuleList([mmcv_ffn(2048, prelu=True)]),
            norms=layers(lambda _: norm(), 3),
        )  # fmt: skip

    bbox_embed = mlp(C, C, C, 4)
    decoder = Tree(
        layers=layers(decoder_layer), query_scale=mlp(C, C, C), ref_point_head=mlp(2 * C, C, C),
        ref_anchor_head=mlp(C, C, 2), post_norm_layer=norm(), bbox_embed=bbox_embed,
    )  # fmt: skip
    return Tree(
        backbone=detectron2_resnet(),
        input_proj=nn.Conv2d(2048, C, 1),
        transformer=Tree(encoder=Tree(layers=layers(encoder_layer), query_scale=mlp(C, C, C)), decoder=decoder),
        anchor_box_embed=nn.Embedding(300, 4),
        class_embed=linear(C, classes),
        bbox_embed=bbox_embed,
    )


# --- MMDetection 3.x


def conv_module(inputs: int, kernel: int, gn: bool) -> Tree:
    parts: dict = {"conv": nn.Conv2d(inputs, C, kernel, bias=not gn)}
    return Tree(**parts, **({"gn": nn.GroupNorm(32, C)} if gn else {}))


def mmdet3_detr(classes: int = 80) -> nn.Module:
    def wrapped() -> Tree:
        return Tree(attn=nn.MultiheadAttention(C, 8))

    return Tree(
        backbone=resnet(frozen=False),
        neck=Tree(convs=nn.ModuleList([conv_module(2048, 1, gn=False)])),
        encoder=Tree(
            layers=layers(lambda _: Tree(self_attn=wrapped(), ffn=mmcv_ffn(2048), norms=layers(lambda _: norm(), 2)))
        ),
        decoder=Tree(
            layers=layers(
                lambda _: Tree(
                    self_attn=wrapped(), cross_attn=wrapped(), ffn=mmcv_ffn(2048), norms=layers(lambda _: norm(), 3)
                )
            ),
            post_norm=norm(),
        ),
        query_embedding=nn.Embedding(100, C),
        bbox_head=Tree(
            fc_cls=linear(C, classes + 1),
            reg_ffn=Tree(
                layers=nn.Sequential(nn.Sequential(linear(), nn.ReLU(), nn.Dropout()), linear(), nn.Dropout())
            ),
            fc_reg=linear(C, 4),
        ),
    )


def mmdet3_deformable_detr(refine: bool, two_stage: bool, classes: int = 80) -> nn.Module:
    def box_branch() -> nn.Sequential:
        return nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU(), linear(C, 4))

    predictors = 7 if two_stage else 6
    if refine:
        of_class, of_box = layers(lambda _: linear(C, classes), predictors), layers(lambda _: box_branch(), predictors)
    else:
        one_class, one_box = linear(C, classes), box_branch()
        of_class, of_box = layers(lambda _: one_class, predictors), layers(lambda _: one_box, predictors)
    if two_stage:
        more: dict = {
            "memory_trans_fc": linear(), "memory_trans_norm": norm(), "pos_trans_fc": linear(2 * C, 2 * C),
            "pos_trans_norm": norm(2 * C),
        }  # fmt: skip
    else:
        more = {"query_embedding": nn.Embedding(300, 2 * C), "reference_points_fc": linear(C, 2)}
    return Tree(
        backbone=resnet(frozen=False),
        neck=Tree(
            convs=nn.ModuleList(conv_module(width, 1, gn=True) for width in (512, 1024, 2048)),
            extra_convs=nn.ModuleList([conv_module(2048, 3, gn=True)]),
        ),
        encoder=Tree(
            layers=layers(lambda _: Tree(self_attn=msda(), ffn=mmcv_ffn(1024), norms=layers(lambda _: norm(), 2)))
        ),
        decoder=Tree(
            layers=layers(
                lambda _: Tree(
                    self_attn=Tree(attn=nn.MultiheadAttention(C, 8)), cross_attn=msda(), ffn=mmcv_ffn(1024),
                    norms=layers(lambda _: norm(), 3),
                )
            )
        ),
        level_embed=nn.Parameter(torch.empty(4, C)),
        bbox_head=Tree(cls_branches=of_class, reg_branches=of_box),
        **more,
    )  # fmt: skip
