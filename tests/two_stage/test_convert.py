"""Name tables of the R-CNN family: every key of the reference's full-size entries is consumed exactly once."""

import json

import pytest
import torch

import recollect
from recollect.convert.rules import to_ours, to_theirs
from recollect.convert.two_stage import MMDET_CASCADE, MMDET_RCNN, MMDET_RPN

CONFIGS = {
    "rpn/rpn_r50_fpn_1x_coco": (MMDET_RPN, "rpn_r50_fpn"),
    "fast_rcnn/fast_rcnn_r50_fpn_1x_coco": (MMDET_RCNN, "fast_rcnn_r50_fpn"),
    "faster_rcnn/faster_rcnn_r50_fpn_1x_coco": (MMDET_RCNN, "faster_rcnn_r50_fpn"),
    "faster_rcnn/faster_rcnn_r50_caffe_c4_1x_coco": (MMDET_RCNN, "faster_rcnn_r50_c4"),
    "faster_rcnn/faster_rcnn_r50_caffe_dc5_1x_coco": (MMDET_RCNN, "faster_rcnn_r50_dc5"),
    "mask_rcnn/mask_rcnn_r50_fpn_1x_coco": (MMDET_RCNN, "mask_rcnn_r50_fpn"),
    "mask_rcnn/mask_rcnn_r50_caffe_c4_1x_coco": (MMDET_RCNN, "mask_rcnn_r50_c4"),
    "cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco": (MMDET_CASCADE, "cascade_rcnn_r50_fpn"),
    "cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco": (MMDET_CASCADE, "cascade_mask_rcnn_r50_fpn"),
}


@pytest.fixture(scope="module")
def checkpoints(shared):
    return json.loads((shared / "parity" / "methods" / "method_checkpoints.json").read_text())


@pytest.mark.parametrize("config", CONFIGS)
def test_every_key_of_a_reference_checkpoint_is_consumed_once(checkpoints, config):
    table, name = CONFIGS[config]
    entry = checkpoints["configs"][config]
    kind = entry["backbone"]
    backbone = checkpoints["resnet50_backbone"] if kind == "resnet50_backbone" else checkpoints["backbones"][kind]
    shapes = {**backbone.get("state_dict", backbone), **entry["state_dict"]}
    assert len(shapes) == entry["n_keys"]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    with torch.device("meta"):
        model = recollect.create_model(name, num_classes=80)
    converted = to_ours(table, state, model.state_dict(keep_vars=True))
    assert len(converted.state) + len(converted.unused) == entry["n_keys"]
    assert not converted.unused
    back = to_theirs(table, converted.state, converted.unused)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items() if k in back}
    assert {k for k in state if k not in back} <= {k for k in state if k.endswith("num_batches_tracked")}
    assert sum(p.numel() for p in model.parameters()) == entry["n_params"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == entry["n_trainable_params"]
