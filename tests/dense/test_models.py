"""The four dense detectors, through the contract every detector keeps."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from torchvision.ops import box_iou

import recollect
from helpers import make_images, make_targets, total
from recollect.convert.weights import model_from_weights, save_weights
from recollect.detectors.dense import DenseDetector, DenseHead
from recollect.detectors.retinanet import dense_1x, dense_2x
from recollect.registry import model_entry

TINY = ["retinanet_tiny", "fcos_tiny", "atss_tiny", "gfl_tiny"]
FULL = ["retinanet_r50_fpn", "fcos_r50_fpn", "atss_r50_fpn", "gfl_r50_fpn"]
CLASSES = 3
SKELETON = ("predict", "losses", "decode", "scores", "own_priors", "loss", "assign", "usable", "detect", "detections",
            "forward")  # fmt: skip


@pytest.fixture(params=TINY)
def model(request):
    torch.manual_seed(0)
    return recollect.create_model(request.param, num_classes=CLASSES)


def say_something(model: DenseDetector, seed: int = 0) -> DenseDetector:
    """Scores around the threshold instead of 0.01 everywhere, so that there is something to compare."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = model.head.to_class.weight
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
        nn.init.constant_(model.head.to_class.bias, -2.0)
    return model


def test_images_of_different_sizes_give_finite_losses_and_gradients(model):
    losses = model(make_images([(96, 128), (60, 90)]), make_targets([3, 5], CLASSES, (60, 90)))
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    total(losses).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_a_batch_without_objects_has_finite_losses_and_trains(model):
    losses = model(make_images([(64, 96), (60, 90)]), make_targets([0, 0]))
    assert all(value.isfinite() for value in losses.values())
    assert all(value.item() == 0 for name, value in losses.items() if name != "class")
    total(losses).backward()
    assert model.head.to_class.weight.grad.abs().sum() > 0


def test_detections_keep_the_contract(model):
    say_something(model).eval()
    sizes = [(96, 128), (60, 90)]
    for found, (height, width) in zip(model(make_images(sizes)), sizes):
        assert found.keys() == {"boxes", "scores", "labels"}
        boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
        assert 0 < len(boxes) == len(scores) == len(labels) <= 100
        assert (scores.diff() <= 0).all() and labels.dtype == torch.long
        assert labels.min() >= 0 and labels.max() < CLASSES
        assert boxes.min() >= 0 and boxes[:, 0::2].max() <= width and boxes[:, 1::2].max() <= height


def test_detections_do_not_depend_on_batch_mates(model):
    say_something(model).eval().double()
    images = make_images([(96, 128), (60, 90), (96, 70)])
    with torch.no_grad():
        together = model(images)
        for image, expected in zip(images, together):
            batch = model.collate([image], (96, 128))
            (alone,) = model.head.detections(model.neck(model.backbone(batch.tensors)), batch)
            assert torch.equal(alone["labels"], expected["labels"])
            torch.testing.assert_close(alone["boxes"], expected["boxes"], rtol=0, atol=1e-9)
            torch.testing.assert_close(alone["scores"], expected["scores"], rtol=0, atol=1e-9)


def test_losses_and_detections_under_bf16(model):
    images, targets = make_images([(96, 128)]), make_targets([4], CLASSES)
    model.backbone.eval()
    reference = model(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images, targets)
    say_something(model).eval()
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = model(images)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(reference[name].item(), rel=0.05), name
    assert len(found["boxes"]) and found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_the_loss_is_the_same_in_any_place_of_the_batch(model):
    model.backbone.eval()  # batch norm's statistics would depend on the batch
    model.double()
    images, targets = make_images([(96, 128), (96, 128)]), make_targets([3, 2], CLASSES)
    forth, back = model(images, targets), model(images[::-1], targets[::-1])
    for name, value in forth.items():
        torch.testing.assert_close(value, back[name], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_it_learns_one_image_by_heart(model):
    (image,), (target,) = make_images([(96, 96)]), make_targets([3], CLASSES, (96, 96), seed=4)
    optimiser = AdamW(model.parameters(), 3e-3)
    model.train()
    first = float(total(model([image], [target])))
    for _ in range(70):
        optimiser.zero_grad()
        loss = total(model([image], [target]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
    assert float(loss) < 0.5 * first
    with torch.no_grad():  # batch norm as in training: its running statistics lag behind seventy steps
        batch = model.collate([image])
        (found,) = model.head.detections(model.neck(model.backbone(batch.tensors)), batch)
    best = found["boxes"][: len(target["boxes"])]
    assert (box_iou(target["boxes"], best).amax(1) > 0.6).all()


@pytest.mark.parametrize("name", TINY)
def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    model = say_something(recollect.create_model(name, num_classes=CLASSES)).eval()
    save_weights(tmp_path / "weights.safetensors", model, {"model": name, "names": ["a", "b", "c"]})
    other, _ = model_from_weights(tmp_path / "weights.safetensors")
    images = make_images([(64, 96)])
    for a, b in zip(model(images), other(images)):
        assert len(a["boxes"]) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", FULL)
def test_recipes_and_full_size_models(name):
    with torch.device("meta"):
        model = recollect.create_model(name, num_classes=80)
    assert 30e6 < sum(p.numel() for p in model.parameters()) < 40e6
    recipe = model_entry(name).recipe()
    assert recipe.optimiser.kind == "sgd" and recipe.optimiser.lr == 0.01 and recipe.schedule.epochs == 12


def test_the_learning_rate_of_sgd_is_scaled_linearly():
    recipe = replace(dense_1x(), batch=4)
    assert recipe.scaled_lr() == pytest.approx(0.01 / 4)
    assert dense_2x().schedule.epochs == 24


def test_a_dense_detector_overrides_at_most_four_methods_of_the_skeleton(model):
    own = [name for name in SKELETON if name in vars(type(model.head))]
    assert "losses" in own and len(own) <= 4
    assert all(hasattr(DenseHead, name) for name in SKELETON)


def test_without_targets_training_says_what_to_do(model):
    with pytest.raises(ValueError, match=r"call \.eval\(\)"):
        model(make_images([(64, 64)]))


def test_the_number_of_detections_can_be_set(model):
    say_something(model).eval()
    model.num_detections = 7
    assert [len(found["boxes"]) for found in model(make_images([(96, 128)]))] == [7]


def test_conventions_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="'v3'"):
        recollect.create_model("retinanet_r50_fpn", torchvision="v3")
