"""What every registered detector must do, shown on its tiny configuration. New detectors are found by themselves."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from detectors.scenes import make_scenes
from recollect import Recollection, create_model, list_models
from recollect.ops.boxes import pairwise_iou
from recollect.recipe import Recipe
from recollect.registry import model_entry

TINY = [name for name in list_models() if "tiny" in name]
STAGED = [name for name in TINY if model_entry(name).staged]
SIZES = [(60, 64), (64, 50), (44, 64), (64, 64), (50, 40)]  # all are padded to 64 x 64


def build(name):
    """The tiny model with three classes, and fewer stages where it has stages."""
    torch.manual_seed(0)
    options = {"num_stages": 3} if "num_stages" in model_entry(name).options else {}
    if "num_classes" in model_entry(name).options:
        options["num_classes"] = 3
    return create_model(name, **options)


def scattered(name):
    """The same with its weights moved at random, so that no two scores tie, and the 20 best detections kept."""
    model = build(name)
    model.num_detections = 20
    for module in model.modules():
        if hasattr(module, "post"):
            module.post = replace(module.post, score_threshold=0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def detect(model, images, targets):
    """Detections in evaluation mode; of the targets, only proposals that were made elsewhere are handed over."""
    return model.eval()(images, [{"proposals": t["proposals"].to(model.mean.dtype)} for t in targets])


def total(losses):
    return torch.stack([value.float() for value in losses.values()]).sum()


def same(a, b, tolerance):
    return all(
        one.keys() == two.keys()
        and torch.equal(one["labels"], two["labels"])
        and torch.allclose(one["boxes"], two["boxes"], atol=tolerance * 100, rtol=0)
        and torch.allclose(one["scores"], two["scores"], atol=tolerance, rtol=0)
        for one, two in zip(a, b, strict=True)
    )


def test_every_family_has_a_tiny_model():
    families = {model_entry(name).family for name in list_models()}
    assert families == {model_entry(name).family for name in TINY}


@pytest.mark.parametrize("name", list_models())
def test_recipes_are_plain_data(name):
    recipe = model_entry(name).recipe()
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize("name", TINY)
def test_a_training_step_reaches_every_parameter(name):
    model = build(name).train()
    images, targets = make_scenes(SIZES[:2], [2, 1])
    losses = model(images, targets)
    assert all(value.ndim == 0 and value.isfinite() and value >= 0 for value in losses.values()), losses
    total(losses).backward()
    idle = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_overfits_four_images(name):
    model = build(name).train()
    images, targets = make_scenes([(64, 64)] * 4, [1, 2, 1, 2])
    any_label = model_entry(name).family == "RPN"
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    for step in range(1, 241):
        optimiser.zero_grad()
        total(model(images, targets)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 15 == 0:
            missed = missing(detect(model, images, targets), targets, any_label)
            if not missed:
                return
            model.train()
    pytest.fail(f"after {step} steps {name} still misses {missed}")


def missing(detections, targets, any_label):
    """Objects (image, label) without a detection of their class and IoU over 0.6 among the image's four best."""
    missed = []
    for place, (found, target) in enumerate(zip(detections, targets)):
        best = {key: value[:4] for key, value in found.items()}
        for box, label in zip(target["boxes"], target["labels"]):
            overlap = pairwise_iou(box[None], best["boxes"].float())[0]
            if not ((overlap > 0.6) & (any_label | (best["labels"] == label))).any():
                missed.append((place, int(label)))
    return missed


@pytest.mark.parametrize("name", TINY)
def test_saved_and_reloaded_it_says_the_same(name, tmp_path):
    images, targets = make_scenes(SIZES[:2], [2, 1])
    model = scattered(name)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = scattered(name)  # with the same threshold and number of detections, which are not weights
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for one, two in zip(detect(model, images, targets), detect(again, images, targets)):
        assert one.keys() == two.keys() and len(one["scores"]) > 0
        assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", TINY)
def test_batch_mates_never_change_a_result(name):
    model = scattered(name).double()
    images, targets = make_scenes(SIZES, [2, 1, 0, 3, 1])
    alone = [detect(model, [i], [t])[0] for i, t in zip(images, targets)]
    for count in (2, 3, 5):
        order = list(range(count))[::-1]
        together = detect(model, [images[i] for i in order], [targets[i] for i in order])
        assert same(together, [alone[i] for i in order], 1e-9), f"batch of {count}"


@pytest.mark.parametrize("counts", [(2, 0), (0, 0)], ids=["one-empty", "all-empty"])
@pytest.mark.parametrize("name", TINY)
def test_images_without_objects(name, counts):
    model = build(name).train()
    losses = model(*make_scenes(SIZES[:2], list(counts)))
    assert all(value.isfinite() for value in losses.values()), losses
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_stays_finite(name):
    model = build(name).bfloat16()
    model.num_detections = 20
    images, targets = make_scenes(SIZES[:2], [2, 1])
    losses = model.train()(images, targets)
    assert all(value.isfinite() for value in losses.values()), losses
    total(losses).backward()
    for found in detect(model, images, targets):
        assert found["boxes"].isfinite().all() and found["scores"].isfinite().all()


RULES = [Recollection(), Recollection(start=2), Recollection(reach=None), Recollection(reach=None, repeat_last=True)]


@pytest.mark.parametrize("name", STAGED)
def test_evaluation_is_identical_with_recollection_on_and_off(name):
    model = scattered(name)
    images, targets = make_scenes(SIZES[:2], [2, 1])
    model.recollection = None
    keys, plain = model.state_dict().keys(), detect(model, images, targets)
    for model.recollection in RULES:
        for one, two in zip(detect(model, images, targets), plain):
            assert all(torch.equal(one[key], two[key]) for key in two)
        assert model.state_dict().keys() == keys


@pytest.mark.parametrize("name", STAGED)
def test_recollected_groups_differ_and_the_last_is_inference(name):
    """Every group carries its own boxes and contents through refinement; the last one is the plain path."""
    model = scattered(name).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images, _ = make_scenes(SIZES[:2], [2, 1])
    batch = model.collate(images)
    with torch.no_grad():
        features = model.backbone.eval()(batch.tensors)
        _, plain = model.eval().decode_features(features, batch)
        model.recollection = Recollection()
        _, groups = model.train().decode_features(features, batch)
    assert [p.logits.shape[1] for p in groups] == [1, 2, 3]
    for one, two in zip(groups, plain):
        assert torch.allclose(one.logits[:, -1], two.logits[:, -1], atol=1e-10, rtol=0)
        assert torch.allclose(one.boxes[:, -1], two.boxes[:, -1], atol=1e-10, rtol=0)
    for stage in groups[1:]:
        for group in range(stage.boxes.shape[1] - 1):
            assert (stage.boxes[:, group] - stage.boxes[:, -1]).abs().max() > 1e-4
            assert (stage.logits[:, group] - stage.logits[:, -1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", [name for name in STAGED if name.startswith("sqr_")])
def test_checkpointing_changes_neither_losses_nor_gradients(name):
    model = build(name).double().train()
    images, targets = make_scenes(SIZES[:2], [2, 1])
    seen = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        losses = model(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        seen.append((losses, {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}))
    (losses, gradients), (again, again_gradients) = seen
    assert losses.keys() == again.keys() and gradients.keys() == again_gradients.keys()
    for key, loss in losses.items():
        assert torch.allclose(loss, again[key], rtol=1e-10, atol=1e-12), key
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, again_gradients[key], rtol=1e-8, atol=1e-10), key


@pytest.mark.parametrize("name", [name for name in STAGED if name.startswith("sqr_")])
def test_the_repeated_last_stage_has_a_loss_of_its_own(name):
    model = build(name).train()
    scenes = make_scenes(SIZES[:2], [2, 1])
    model.recollection = Recollection(reach=None)
    dense = model(*scenes)
    model.recollection = Recollection(reach=None, repeat_last=True)
    repeated = model(*scenes)
    assert {key for key in repeated if key not in dense} == {"stage3_class", "stage3_l1", "stage3_giou"}
