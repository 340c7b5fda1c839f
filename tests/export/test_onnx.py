"""Export to ONNX with NMS inside, and the verification that guards it."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.io import ImageReadMode, decode_image

import recollect

pytest.importorskip("onnxruntime")

from recollect.export import ExportError, export_onnx

TINY = ["retinanet_tiny", "fcos_tiny", "atss_tiny", "gfl_tiny"]


def vivid(name):
    """Scores around the threshold instead of 0.01 everywhere."""
    torch.manual_seed(0)
    model = recollect.create_model(name, num_classes=3).eval()
    with torch.no_grad():
        nn.init.normal_(model.head.to_class.weight, std=0.02)
        nn.init.constant_(model.head.to_class.bias, -2.0)
    return model


@pytest.fixture(scope="module")
def photographs(shared):
    files = sorted((shared / "data" / "cards" / "images").glob("*.jpg"))[:2]
    return [decode_image(str(file), ImageReadMode.RGB)[:, :90, :120].clone() for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_it_finds_what_torch_finds(name, photographs, tmp_path):
    import onnxruntime

    model, path = vivid(name), tmp_path / "model.onnx"
    measured = export_onnx(model, path, photographs, names=["a", "b", "c"])
    assert measured["detections"] > 10
    session = onnxruntime.InferenceSession(str(path))
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["names"]) == ["a", "b", "c"] and json.loads(properties["size"]) == [90, 120]
    assert [one.name for one in session.get_outputs()] == ["boxes", "scores", "labels"]
    with torch.no_grad():  # an image that verified nothing: other objects, another number of them
        other = photographs[0].flip(2)
        expected = model([other])[0]
    boxes, scores, labels = session.run(None, {"image": other.numpy()})
    assert labels.tolist() == expected["labels"].tolist()
    torch.testing.assert_close(torch.from_numpy(boxes), expected["boxes"], rtol=0, atol=0.05)
    torch.testing.assert_close(torch.from_numpy(scores), expected["scores"], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_an_image_without_detections_runs(photographs, tmp_path):
    import onnxruntime

    model = vivid("atss_tiny")

    def best(image):
        with torch.no_grad():
            return float(model.head(model.neck(model.backbone(model.collate([image]).tensors)))[0]["logits"].max())

    silent, speaking = sorted([torch.zeros_like(photographs[0]), photographs[0]], key=best)
    between = torch.tensor([best(silent), best(speaking)]).mean().sigmoid()
    model.head.post = replace(model.head.post, score_threshold=float(between))
    path = tmp_path / "model.onnx"
    assert export_onnx(model, path, [speaking, silent])["detections"] > 0
    boxes, scores, labels = onnxruntime.InferenceSession(str(path)).run(None, {"image": silent.numpy()})
    assert boxes.shape == (0, 4) and not len(scores) and not len(labels)


@pytest.mark.slow
def test_disagreement_leaves_no_file(photographs, tmp_path, monkeypatch):
    from recollect.export import onnx as room

    def write_another(model, path, image, opset):
        another = vivid("atss_tiny")
        nn.init.constant_(another.head.to_class.bias, -1.0)
        write(another, path, image, opset)

    write = room._write
    monkeypatch.setattr(room, "_write", write_another)
    with pytest.raises(ExportError, match="image 0: torch finds"):
        export_onnx(vivid("atss_tiny"), tmp_path / "model.onnx", photographs[:1])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_images_that_verify_nothing_are_refused(photographs, tmp_path):
    model = recollect.create_model("atss_tiny", num_classes=3)
    with pytest.raises(ExportError, match="finds nothing in the images"):
        export_onnx(model, tmp_path / "model.onnx", photographs[:1])
    with pytest.raises(ExportError, match="at least one image"):
        export_onnx(model, tmp_path / "model.onnx", [])
    with pytest.raises(ExportError, match=r"image 1 is \(3, 45, 60\)"):
        export_onnx(model, tmp_path / "model.onnx", [photographs[0], photographs[0][:, ::2, ::2]])
    assert not list(tmp_path.iterdir())
