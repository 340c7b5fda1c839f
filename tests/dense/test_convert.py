"""Name tables of the dense detectors: every key of the reference's full-size entries is consumed exactly once."""

import json

import pytest
import torch

import recollect
from recollect.convert.dense import MMDET_ATSS, MMDET_FCOS, MMDET_FCOS_TRICKS, MMDET_GFL, MMDET_RETINANET
from recollect.convert.rules import ConversionError, read_options, to_ours, to_theirs

CONFIGS = {
    "retinanet/retinanet_r50_fpn_1x_coco": (MMDET_RETINANET, "retinanet_r50_fpn", {}),
    "fcos/fcos_r50_caffe_fpn_gn-head_1x_coco": (MMDET_FCOS, "fcos_r50_fpn", {}),
    "fcos/fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_1x_coco": (
        MMDET_FCOS_TRICKS, "fcos_r50_fpn", {"tricks": True}
    ),
    "fcos/fcos_center_r50_caffe_fpn_gn-head_1x_coco": (MMDET_FCOS, "fcos_r50_fpn", {"tricks": False}),
    "atss/atss_r50_fpn_1x_coco": (MMDET_ATSS, "atss_r50_fpn", {}),
    "gfl/gfl_r50_fpn_1x_coco": (MMDET_GFL, "gfl_r50_fpn", {}),
    "retinanet/retinanet_x101_64x4d_fpn_1x_coco": (
        MMDET_RETINANET, "retinanet_r50_fpn", {"backbone": "resnext101_64x4d.tv_in1k"}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(shared):
    return json.loads((shared / "parity" / "methods" / "method_checkpoints.json").read_text())


def theirs(checkpoints, config):
    entry = checkpoints["configs"][config]
    name = entry["backbone"]
    backbone = checkpoints["resnet50_backbone"] if name == "resnet50_backbone" else checkpoints["backbones"][name]
    backbone = backbone.get("state_dict", backbone)
    shapes = {**backbone, **entry["state_dict"]}
    assert len(shapes) == entry["n_keys"]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}, entry


@pytest.mark.parametrize("config", CONFIGS)
def test_every_key_of_a_reference_checkpoint_is_consumed_once(checkpoints, config):
    table, name, options = CONFIGS[config]
    state, entry = theirs(checkpoints, config)
    with torch.device("meta"):
        model = recollect.create_model(name, num_classes=80, **options)
    assert read_options(table, state) == {"num_classes": 80}
    assert table.given.items() <= options.items()
    converted = to_ours(table, state, model.state_dict(keep_vars=True))
    assert len(converted.state) + len(converted.unused) == entry["n_keys"]
    assert set(converted.unused) <= {"bbox_head.integral.project"}
    back = to_theirs(table, converted.state, converted.unused)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}
    assert sum(p.numel() for p in model.parameters()) == entry["n_params"]


def test_a_key_too_many_or_too_few_is_an_error(checkpoints):
    state, _ = theirs(checkpoints, "atss/atss_r50_fpn_1x_coco")
    with torch.device("meta"):
        expected = recollect.create_model("atss_r50_fpn").state_dict(keep_vars=True)
    with pytest.raises(ConversionError, match=r"bbox_head\.novel\.weight"):
        to_ours(MMDET_ATSS, {**state, "bbox_head.novel.weight": torch.empty(1, device="meta")}, expected)
    del state["bbox_head.atss_cls.bias"]
    with pytest.raises(ConversionError, match=r"head\.to_class\.bias"):
        to_ours(MMDET_ATSS, state, expected)
