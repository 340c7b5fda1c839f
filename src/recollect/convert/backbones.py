"""Backbones, as timm (and so ours) names them: torchvision's, MMDetection's and detectron2's ResNets, Swin."""

from __future__ import annotations

from pathlib import Path

import timm
from safetensors.torch import save_file

from recollect.convert.checkpoint import read_checkpoint
from recollect.convert.rules import ConversionError, Rule, Table, fits, renamed, to_ours, under
from recollect.registry import list_models

# --- Inside detectors. torchvision, timm and MMDetection name a ResNet alike

RESNET = (
    Rule("conv1.*", "conv1.*"),
    Rule("bn1.*", "bn1.*"),
    Rule("layer{l}.{b}.*", "layer{l}.{b}.*"),
)

MMDET_RESNET = under("backbone.", "backbone.body.", RESNET)
DETR_RESNET = under("backbone.0.body.", "backbone.body.", RESNET)
FROZEN = ("*num_batches_tracked",)  # of frozen batch norms, which count nothing


def _detectron2_block(theirs: str, ours: str) -> tuple[Rule, ...]:
    rules = []
    for conv in (1, 2, 3):
        rules += [
            Rule(f"{theirs}.conv{conv}.norm.*", f"{ours}.bn{conv}.*"),
            Rule(f"{theirs}.conv{conv}.weight", f"{ours}.conv{conv}.weight"),
        ]
    return (
        *rules,
        Rule(f"{theirs}.shortcut.norm.*", f"{ours}.downsample.1.*"),
        Rule(f"{theirs}.shortcut.weight", f"{ours}.downsample.0.weight"),
    )


DETECTRON2_RESNET = under(
    "backbone.",
    "backbone.body.",
    (
        Rule("stem.conv1.norm.*", "bn1.*"),
        Rule("stem.conv1.weight", "conv1.weight"),
        *(rule for stage in (1, 2, 3, 4) for rule in _detectron2_block(f"res{stage + 1}.{{b}}", f"layer{stage}.{{b}}")),
    ),
)

# --- Files that hold a backbone alone

_SWIN_BLOCK = (
    Rule("attn.relative_position_index", None, why="a constant that follows from the window's size"),
    Rule("attn.*", "attn.*"),
    Rule("norm1.*", "norm1.*"),
    Rule("norm2.*", "norm2.*"),
    Rule("mlp.0.*", "mlp.fc1.*"),
    Rule("mlp.3.*", "mlp.fc2.*"),
)

TORCHVISION_SWIN = Table(
    source="torchvision",
    families=("backbone",),
    marker="features.1.0.attn.relative_position_bias_table",
    rules=(
        Rule("features.0.0.*", "patch_embed.proj.*"),
        Rule("features.0.2.*", "patch_embed.norm.*"),
        *(
            rule
            for stage in range(4)
            for rule in under(f"features.{2 * stage + 1}.{{b}}.", f"layers.{stage}.blocks.{{b}}.", _SWIN_BLOCK)
        ),
        *(Rule(f"features.{2 * stage}.*", f"layers.{stage}.downsample.*") for stage in (1, 2, 3)),
        Rule("norm.*", "norm.*"),
        Rule("head.*", "head.fc.*"),
    ),
    checked="outputs of torchvision's own model",
)
SAME_NAMES = Table(
    source="timm",
    families=("backbone",),
    marker="*",
    rules=(Rule("*", "*"),),
    checked="names and shapes of timm's own model, which torchvision's ResNets share",
)
TABLES = (TORCHVISION_SWIN, SAME_NAMES)


def is_backbone(name: str) -> bool:
    """Whether a name is none of our detectors but a timm model."""
    return name not in list_models() and timm.is_model(name)


def convert_backbone(
    checkpoint: str | Path, name: str, out: str | Path, *, source: str | None = None
) -> tuple[str, ...]:
    """Write a backbone's weights under timm's names, for `backbone_weights`: remarks for the user.

    name: timm model. A classifier in the file is kept. Raises ValueError as `convert` does.
    """
    read = read_checkpoint(checkpoint)
    tables = [t for t in TABLES if source in (None, t.source)]
    table = next((t for t in tables if any(fits(t.marker, entry) for entry in read.state)), None)
    if table is None:
        raise ConversionError(f"{read.path}: no name table of {source!r} covers this backbone; leave --source out")
    classifier = timm.get_pretrained_cfg_value(name, "classifier")
    heads = {renamed(table, entry): value for entry, value in read.state.items()}
    head = heads.get(f"{classifier}.weight") if isinstance(classifier, str) else None
    model = timm.create_model(name, num_classes=0 if head is None else int(head.shape[0]))
    try:
        converted = to_ours(table, read.state, model.state_dict(keep_vars=True))
    except ConversionError as error:
        raise ConversionError(f"{read.path}, read as {table.source}, for {name}: {error}") from error
    save_file({entry: value.clone().contiguous() for entry, value in converted.state.items()}, out)
    return (*read.notes, f"read as {table.source}; this table was checked against: {table.checked}")
