"""Proposals from an RPN through a file to Fast R-CNN: the same boxes, moved with the image, missed by name."""

import json

import pytest
import torch
from PIL import Image

import recollect
from detectors.scenes import make_scenes
from recollect.api import _open
from recollect.cli.predict import Arguments, run
from recollect.convert.weights import save_weights
from recollect.data import DataError, open_dataset, with_proposals, write_proposals
from recollect.data.proposals import ProposalFile
from recollect.data.transforms import Flip, ShortestSide
from recollect.evaluation import evaluate_model
from recollect.recipe import Resize
from recollect.registry import model_entry

SIZES = [(64, 80), (72, 64)]


@pytest.fixture
def scenes(tmp_path):
    """Two images in COCO format."""
    images, targets = make_scenes(SIZES, [2, 1])
    (tmp_path / "images").mkdir()
    truth = {"images": [], "annotations": [], "categories": [{"id": i, "name": f"c{i}"} for i in range(1, 4)]}
    for number, (image, target) in enumerate(zip(images, targets), 1):
        name = f"{number}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "images" / name)
        truth["images"].append({"id": number, "file_name": name, "height": image.shape[1], "width": image.shape[2]})
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist()):
            left, top, right, bottom = box
            truth["annotations"].append({
                "id": len(truth["annotations"]) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0,
                "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
            })  # fmt: skip
    for split in ("train", "val"):
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(truth))
    return tmp_path


def save(path, name, names):
    torch.manual_seed(0)
    model = recollect.create_model(name, num_classes=len(names))
    card = {"model": name, "options": {}, "names": names, "category_ids": [1, 2, 3]}
    recipe = model_entry(name).recipe()
    save_weights(path, model, {**card, "recipe": recipe.to_json(), "recollect": "test"})


def test_from_an_rpn_to_fast_rcnn(scenes, tmp_path):
    save(tmp_path / "rpn.safetensors", "rpn_tiny", ["c1", "c2", "c3"])
    file = tmp_path / "proposals.safetensors"
    run(Arguments(tmp_path / "rpn.safetensors", (scenes / "images",), proposals=file))
    held = ProposalFile(file)
    assert sorted(held) == ["1.png", "2.png"]
    detector = recollect.load(tmp_path / "rpn.safetensors", "cpu")
    assert torch.equal(held["1.png"], detector.predict(scenes / "images" / "1.png", 0.0).boxes)

    dataset = _open(scenes, "val", proposals=file)
    torch.manual_seed(0)
    model = recollect.create_model("fast_rcnn_tiny", num_classes=3)
    loader = [([dataset[i][0]], [dataset[i][1]]) for i in range(2)]
    assert evaluate_model(model, loader, dataset, device="cpu").stats["AP"] >= 0
    losses = model.train()([image for images, _ in loader for image in images], [t for _, ts in loader for t in ts])
    assert all(value.isfinite() for value in losses.values())


def test_only_an_rpn_makes_proposals(scenes, tmp_path):
    save(tmp_path / "faster.safetensors", "faster_rcnn_tiny", ["c1", "c2", "c3"])
    with pytest.raises(ValueError, match="faster_rcnn_tiny makes no proposals"):
        run(Arguments(tmp_path / "faster.safetensors", (scenes / "images",), proposals=tmp_path / "p.safetensors"))


def test_proposals_move_with_the_image(scenes, tmp_path):
    file = tmp_path / "p.safetensors"
    boxes = torch.tensor([[10.0, 5.0, 30.0, 25.0], [0.0, 0.0, 80.0, 64.0]])
    write_proposals(file, {"1.png": (boxes, torch.ones(2)), "2.png": (boxes[:0], torch.ones(0))})
    dataset = with_proposals(open_dataset(scenes, "train"), file)
    _, plain = dataset[0]
    assert torch.equal(plain["proposals"].as_subclass(torch.Tensor), boxes)
    image, target = Flip(1.0)(*ShortestSide(Resize((128,), 512))(*dataset[0]))
    assert tuple(image.shape[-2:]) == (128, 160)
    assert target["proposals"].tolist() == [[100.0, 10.0, 140.0, 50.0], [0.0, 0.0, 160.0, 128.0]]
    assert len(dataset[1][1]["proposals"]) == 0


def test_an_image_without_proposals_is_named(scenes, tmp_path):
    file = tmp_path / "p.safetensors"
    write_proposals(file, {"1.png": (torch.zeros(0, 4), torch.zeros(0))})
    with pytest.raises(DataError, match=r"1 of 2 images, the first 2\.png"):
        with_proposals(open_dataset(scenes, "train"), file)
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(DataError, match="holds no proposals"):
        ProposalFile(tmp_path / "torn.safetensors")
    model = recollect.create_model("fast_rcnn_tiny", num_classes=3).eval()
    with pytest.raises(ValueError, match="image 0: the target has no proposals"):
        model([torch.zeros(3, 64, 64)])
