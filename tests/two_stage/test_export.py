"""The R-CNN family as ONNX, with proposals, RoIAlign, NMS and masks inside."""

import pytest
import torch
from torchvision.io import ImageReadMode, decode_image

import recollect

pytest.importorskip("onnxruntime")

from recollect.export import export_onnx


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rpn_tiny", "faster_rcnn_tiny", "cascade_mask_rcnn_tiny"])
def test_it_finds_what_torch_finds(name, shared, tmp_path):
    import onnxruntime

    files = sorted((shared / "data" / "cards" / "images").glob("*.jpg"))[:2]
    images = [decode_image(str(file), ImageReadMode.RGB)[:, :90, :120].clone() for file in files]
    torch.manual_seed(0)
    model = recollect.create_model(name, num_classes=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    path = tmp_path / "model.onnx"
    assert export_onnx(model, path, images)["detections"] > 10
    session = onnxruntime.InferenceSession(str(path))
    with torch.no_grad():  # an image that verified nothing, with another number of proposals and objects
        other = images[0].flip(2)
        expected = model([other])[0]
    found = dict(zip((o.name for o in session.get_outputs()), session.run(None, {"image": other.numpy()})))
    assert found.keys() == expected.keys() and len(expected["scores"]) > 0
    assert found["labels"].tolist() == expected["labels"].tolist()
    torch.testing.assert_close(torch.from_numpy(found["boxes"]), expected["boxes"], rtol=0, atol=0.05)
    if "roi_masks" in expected:
        torch.testing.assert_close(torch.from_numpy(found["roi_masks"]), expected["roi_masks"], rtol=0, atol=1e-2)
