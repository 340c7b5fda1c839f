"""Names of backbones: torchvision's, MMDetection's and detectron2's ResNets, as timm (and so ours) names them."""

from __future__ import annotations

from recollect.convert.rules import Rule, under

# torchvision, timm and MMDetection name a ResNet alike.
RESNET = (
    Rule("conv1.*", "conv1.*"),
    Rule("bn1.*", "bn1.*"),
    Rule("layer{l}.{b}.*", "layer{l}.{b}.*"),
)

MMDET_RESNET = under("backbone.", "backbone.body.", RESNET)
DETR_RESNET = under("backbone.0.body.", "backbone.body.", RESNET)
