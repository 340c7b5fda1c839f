"""AdaMixer with and without recollection: what the design promises, on a tiny configuration."""

import pytest
import torch

from helpers import make_images, make_targets, total
from recollect import Recollection, create_model
from recollect.detectors.adamixer import AdaMixerStage, Memory
from recollect.structures import Queries


def tiny(name="sqr_adamixer_tiny", **options):
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, **{"num_queries": 6, "num_stages": 3, **options}).double()
    for stage in model.stages:  # the paper's zeros would let many a mistake pass unseen
        torch.nn.init.normal_(stage.to_box.weight, std=0.05)
        torch.nn.init.normal_(stage.sampling_offsets.weight, std=0.05)
        torch.nn.init.normal_(stage.mixing.generator.weight, std=0.05)
    return model


SIZES = [(64, 64), (60, 64), (64, 50), (40, 33), (64, 64)]


def test_evaluation_is_identical_with_recollection_on_and_off():
    with_, without = tiny(), tiny("adamixer_tiny")
    assert with_.recollection and not without.recollection
    assert with_.state_dict().keys() == without.state_dict().keys()
    for a, b in zip(with_.eval()(make_images(SIZES)), without.eval()(make_images(SIZES))):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_last_group_in_training_is_the_plain_path():
    model = tiny()
    model.backbone.eval()
    batch = model.collate(make_images(SIZES[:2]))
    features = model.backbone(batch.tensors)
    _, recollected = model.decode_features(features, batch)
    model.recollection = None
    _, plain = model.decode_features(features, batch)
    assert [p.logits.shape[1] for p in recollected] == [1, 2, 3]
    for one, other in zip(plain, recollected):
        assert torch.equal(one.logits[:, -1], other.logits[:, -1])
        assert torch.equal(one.boxes[:, -1], other.boxes[:, -1])
    groups = recollected[2].boxes.detach()
    assert not torch.allclose(groups[:, 0], groups[:, 2])  # every group carries its own boxes


def test_reach_one_is_the_plain_loss():
    targets = make_targets([3, 0], size=(60, 60))
    losses = [
        tiny("adamixer_tiny", recollection=r)(make_images(SIZES[:2]), targets) for r in (None, Recollection(reach=1))
    ]
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_batch_mates_never_change_a_result(batch):
    """At the same padded size the same image gives the same losses' inputs, whatever stands beside it."""
    model = tiny().eval()
    images = make_images(SIZES)[:batch]
    together = model.decode_features(*_features(model, images))[1][-1]
    for index, image in enumerate(images):
        alone = model.decode_features(*_features(model, [image]))[1][-1]
        torch.testing.assert_close(together.boxes[index], alone.boxes[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(together.logits[index], alone.logits[0], rtol=1e-9, atol=1e-9)
    order = torch.randperm(batch).tolist()
    permuted = model.decode_features(*_features(model, [images[i] for i in order]))[1][-1]
    torch.testing.assert_close(permuted.logits, together.logits[order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_batch_mates_never_change_recollected_groups(batch):
    """The reference code slices its groups with a literal 2, which is wrong for any other batch size."""
    model = tiny()
    model.backbone.eval()
    images = make_images(SIZES)[:batch]
    together = model.decode_features(*_features(model, images))[1][-1]
    for index, image in enumerate(images):
        alone = model.decode_features(*_features(model, [image]))[1][-1]
        torch.testing.assert_close(together.logits[index], alone.logits[0], rtol=1e-9, atol=1e-9)


def _features(model, images):
    batch = model.collate(images, (64, 64))
    return model.backbone(batch.tensors), batch


@pytest.mark.parametrize("stages", [1, 2, 4, 7])
def test_any_number_of_stages_learns_in_every_stage(stages):
    model = tiny(num_stages=stages)
    losses = model(make_images(SIZES[:2]), make_targets([2, 3], size=(60, 60)))
    assert len(losses) == 3 * stages
    total(losses).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert silent == []
    for stage in model.stages:
        assert all(p.grad.abs().sum() > 0 for p in (stage.to_class.weight, stage.mixing.out.weight, stage.iof_scale))


def test_recollection_supervises_later_stages_more():
    """Same forward pass, more groups: the last stage's loss is a sum over three of them."""
    images, targets = make_images(SIZES[:2]), make_targets([2, 3], size=(60, 60))
    plain, recollected = tiny("adamixer_tiny")(images, targets), tiny()(images, targets)
    torch.testing.assert_close(plain["stage0_class"], recollected["stage0_class"])
    assert recollected["stage2_class"] > 2 * plain["stage2_class"]


def test_a_frozen_backbone_trains_the_decoder():
    model = tiny()
    model.backbone.requires_grad_(False)
    total(model(make_images(SIZES[:2]), make_targets([2, 3], size=(60, 60)))).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.stages[0].to_class.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("counts", [[0, 3], [0, 0], [20, 1]])
def test_images_without_objects_and_with_more_than_queries(counts):
    model = tiny()
    losses = model(make_images(SIZES[:2]), make_targets(counts, size=(60, 60)))
    loss = total(losses)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    if not sum(counts):
        assert all(value == 0 for name, value in losses.items() if not name.endswith("class"))


def test_bfloat16_stays_finite():
    model = tiny().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = total(model(make_images(SIZES[:2]), make_targets([2, 3], size=(60, 60))))
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_groups_never_see_each_other():
    model = tiny()
    stage: AdaMixerStage = model.stages[0]
    maps = [torch.randn(1, 64, 64 // s, 64 // s).double() for s in (4, 8, 16, 32)]
    memory = Memory(maps, torch.tensor([[64.0, 64, 64, 64]]).double())
    content, xyzr = torch.randn(1, 3, 6, 64).double(), torch.tensor([32.0, 32, 5, 0]).double().expand(1, 3, 6, 4)
    touched = content.clone()
    touched[:, 1] += 1
    one, other = (stage(Queries(c, xyzr), memory)[1].logits for c in (content, touched))
    assert torch.equal(one[:, [0, 2]], other[:, [0, 2]])
    assert not torch.allclose(one[:, 1], other[:, 1])


def test_feature_maps_are_never_copied_per_group(monkeypatch):
    """However many groups there are, each level's map reaches grid_sample with the batch's own number of rows."""
    import torch.nn.functional as F

    rows = []
    real = F.grid_sample
    monkeypatch.setattr(F, "grid_sample", lambda maps, *a, **k: (rows.append(maps.shape[0]), real(maps, *a, **k))[1])
    model = tiny()
    model(make_images(SIZES[:2]), make_targets([2, 3], size=(60, 60)))
    assert set(rows) == {2 * 2}  # batch x mixing groups


def test_stage_detections_end_with_the_detector_s_own():
    model = tiny().eval()
    stages = model.stage_detections(make_images(SIZES[:2]))
    final = model(make_images(SIZES[:2]))
    assert len(stages) == 3
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(stages[-1], final))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(make_images([(64, 64)])), "needs targets"),
        (lambda m: m(make_images([(64, 64)]), make_targets([1, 1])), "1 images but 2 targets"),
        (
            lambda m: m([torch.zeros(1, 64, 64)], make_targets([1])),
            r"image 0 of the batch must be a tensor \[3, H, W\]",
        ),
        (lambda m: m([torch.zeros(3, 64, 64, dtype=torch.int32)], make_targets([1])), "give uint8"),
        (lambda m: create_model("sqr_adamixr_tiny"), "did you mean"),
        (lambda m: create_model("adamixer_tiny", querys=3), "has no option 'querys'"),
        (lambda m: create_model("adamixer_r50", backbone="resnet5000"), "no model"),
        (lambda m: create_model("adamixer_tiny", initial_boxes="circle"), "'image' or 'grid'"),
        (lambda m: create_model("adamixer_tiny", backbone_weights="missing.safetensors"), "no such file"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny())


def test_full_size_configurations_have_the_reference_s_parameters():
    """Counts of the reference's configs, from shared/parity/full_checkpoints.json, less what it never trains."""
    from recollect.registry import model_entry

    with torch.device("meta"):
        small = create_model("sqr_adamixer_r50")
        large = create_model("sqr_adamixer_r101_7stages")
    # the reference also holds `init_proposal_bboxes` (N x 4), which never gets a gradient
    assert sum(p.numel() for p in small.parameters()) == 134_790_904 - 100 * 4
    assert sum(p.numel() for p in large.parameters()) == 172_213_748 - 300 * 4
    assert len(large.stages) == 7 and large.query_content.num_embeddings == 300
    assert model_entry("sqr_adamixer_r50").recollects


def test_inference_runs_the_plain_path_alone():
    """Not only the same result: no further group is even computed."""
    model = tiny().eval()
    _, predictions = model.decode_features(*_features(model, make_images(SIZES[:2])))
    assert [p.logits.shape[1] for p in predictions] == [1, 1, 1]


def test_boxes_carry_no_gradient_from_stage_to_stage():
    """Section 3.4: contents do, boxes do not; so the first stage's box layer learns from its own loss alone."""
    model = tiny()
    _, predictions = model.decode_features(*_features(model, make_images(SIZES[:2])))
    predictions[1].boxes.sum().backward()
    first = model.stages[0]
    assert first.to_box.weight.grad is None or first.to_box.weight.grad.abs().sum() == 0
    assert first.mixing.out.weight.grad.abs().sum() > 0
