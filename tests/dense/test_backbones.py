"""Every family of backbones in a dense detector: strides, channels, freezing, gradients, sizes of the image."""

import pytest
import torch

import recollect
from helpers import make_images, make_targets, total
from recollect.backbones import Backbone

SMALL_SWIN = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
FAMILIES = {
    "resnet18.tv_in1k": ({}, (128, 256, 512)),
    "resnext26ts": ({}, None),
    "vgg11": ({"mlp_ratio": 0.01}, (512, 512, 512)),
    "hrnet_w18_small": ({}, (32, 64, 128)),
    "regnetx_002": ({}, (56, 152, 368)),
    "res2net50_48w_2s": ({"layers": (1, 1, 1, 1)}, (512, 1024, 2048)),
    "resnest14d": ({}, (512, 1024, 2048)),
    "swin_tiny_patch4_window7_224": (SMALL_SWIN, (48, 96, 192)),
    "convnext_atto": ({}, (80, 160, 320)),
    "mobilenetv2_100": ({}, (32, 96, 320)),
}
# The models that facts/methods.md names, with the widths that detectors rely on.
NAMED = {
    "resnet50.tv_in1k": [256, 512, 1024, 2048],
    "resnext101_32x4d.gluon_in1k": [256, 512, 1024, 2048],
    "vgg16.tv_in1k": [256, 512, 512, 512],
    "hrnet_w32.ms_in1k": [32, 64, 128, 256],
    "regnetx_032.pycls_in1k": [96, 192, 432, 1008],
    "res2net101d.in1k": [256, 512, 1024, 2048],
    "resnest50d.in1k": [256, 512, 1024, 2048],
    "swin_small_patch4_window7_224.ms_in1k": [96, 192, 384, 768],
    "convnext_tiny.fb_in1k": [96, 192, 384, 768],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_dense_detector_trains_and_predicts_on_it(name):
    options, channels = FAMILIES[name]
    model = recollect.create_model("atss_tiny", num_classes=3, backbone=name, backbone_options=options)
    if channels is not None:
        assert tuple(model.backbone.channels) == channels
    losses = model(make_images([(70, 97), (64, 64)]), make_targets([2, 1], size=(64, 64)))
    assert all(value.isfinite() for value in losses.values())
    total(losses).backward()
    assert sum(p.grad.abs().sum() for p in model.backbone.parameters() if p.grad is not None) > 0
    model.eval()
    maps = model.backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(model.backbone.channels, (8, 16, 32))
    ]
    assert len(model(make_images([(70, 97)]))) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_its_first_stage_is_frozen_and_only_that(name):
    options, _ = FAMILIES[name]
    body = Backbone(name, (8, 16, 32), frozen_stages=1, **options)
    frozen = [not p.requires_grad for p in body.body.parameters()]
    count = frozen.index(False)
    assert 0 < count < len(frozen) and not any(frozen[count:])
    assert all(p.requires_grad for p in body.norms.parameters())
    body.train()
    sum(m.square().mean() for m in body(torch.rand(1, 3, 64, 64))).backward()
    assert all(p.grad is None for p in body.parameters() if not p.requires_grad)
    assert any(p.grad is not None for p in body.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_named_models_have_the_widths_that_are_relied_on(name):
    with torch.device("meta"):
        body = Backbone(name, (4, 8, 16, 32))
    assert body.channels == NAMED[name]


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto"])
def test_maps_of_a_transformer_are_normalised(name):
    body = Backbone(name, (8, 16), frozen_stages=0, **FAMILIES[name][0])
    for maps in body(torch.rand(1, 3, 64, 96)):
        mean = maps.mean(1)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
        assert maps.is_contiguous()
