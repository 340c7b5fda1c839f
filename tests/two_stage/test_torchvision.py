"""Witness: torchvision's Faster and Mask R-CNN with the same weights give the same detections and the same losses.

Deliberate differences, each set aside or accounted for below:
- resizing and the conversion to 0..1 belong to our data room, not to the detector;
- labels: ours count from 0 and the background is the last logit, torchvision's is class 0;
- torchvision restores an anchor's best match where low-quality matches are allowed, not the object that wanted it
  (objects stand apart here, so that no anchor is wanted by two);
- an image without a positive anchor counts as one more anchor in what the RPN's losses are divided by (MMDetection);
- torchvision bounds the size of decoded boxes above only, and drops detections thinner than 0.01 pixels;
- mask targets: ours are 0 or 1 (RoIAlign with the half-cell shift, cut at 0.5), torchvision's are the averages
  themselves without the shift;
- pasted masks: ours are sampled at pixel centres, torchvision rounds the box to whole pixels first (it differs by a
  pixel along the edges).
"""

import pytest
import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN, MaskRCNN, roi_heads
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor

import recollect
from helpers import make_images
from recollect.convert.rules import to_ours, to_theirs
from recollect.convert.two_stage import TORCHVISION_RCNN
from recollect.matching.samplers import RandomSampler
from recollect.ops.masks import crop_masks

CLASSES = 4
SIZES = [(64, 192), (192, 64)]


def their_model(kind):
    body = _resnet_fpn_extractor(resnet18(), 5)
    make = MaskRCNN if kind == "mask" else FasterRCNN
    everything: dict = {"rpn_batch_size_per_image": 10**6, "box_batch_size_per_image": 10**6}
    everything |= {f"rpn_pre_nms_top_n_{mode}": 200 for mode in ("train", "test")}
    everything |= {f"rpn_post_nms_top_n_{mode}": 60 for mode in ("train", "test")}
    model = make(body, CLASSES + 1, box_score_thresh=0.12, **everything)
    model.transform.resize = lambda image, target: (image, target)
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(0.5 + noise if name.endswith(("weight", "var")) else 0.1 * noise)
    with torch.no_grad():  # scores spread around the thresholds, boxes that move
        for last, spread in (
            (model.roi_heads.box_predictor.cls_score, 0.05),
            (model.roi_heads.box_predictor.bbox_pred, 0.02),
            (model.rpn.head.cls_logits, 0.1),
            (model.rpn.head.bbox_pred, 0.02),
        ):
            last.weight.copy_(torch.randn(last.weight.shape, generator=generator) * spread)
            last.bias.copy_(torch.randn(last.bias.shape, generator=generator) * 0.1)
    return model.double()


def our_model(kind, theirs):
    options = {"torchvision": True, "backbone": "resnet18.tv_in1k"}
    model = recollect.create_model(f"{kind}_rcnn_r50_fpn", num_classes=CLASSES, **options)
    model.load_state_dict(to_ours(TORCHVISION_RCNN, theirs.state_dict(), model.state_dict(keep_vars=True)).state)
    model.roi.post = type(model.roi.post)(score_threshold=0.12)
    model.rpn.candidates, model.rpn.proposals_kept = (200, 200), (60, 60)
    model.rpn.sampler = RandomSampler(10**6, 0.5)
    model.roi.stages[0].sampler = RandomSampler(10**6, 0.25)
    model.double()
    model.mean, model.std = (torch.tensor(v, dtype=torch.float64) for v in (model.backbone.mean, model.backbone.std))
    return model


@pytest.fixture(scope="module", params=["faster", "mask"])
def pair(request):
    theirs = their_model(request.param)
    return request.param, theirs, our_model(request.param, theirs)


def check_detections(kind, theirs, ours, images):
    theirs.eval()
    ours.eval()
    theirs.transform.postprocess = lambda result, *_: result  # RoI masks, not yet pasted
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    for a, b in zip(found, expected):
        assert len(b["boxes"]) >= 20
        assert torch.equal(a["labels"], b["labels"] - 1)
        torch.testing.assert_close(a["scores"], b["scores"], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(a["boxes"], b["boxes"], rtol=1e-9, atol=1e-7)
        if kind == "mask":
            torch.testing.assert_close(a["roi_masks"], b["masks"][:, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_identical_detections_on_random_images(pair):
    check_detections(*pair, [image.double() / 255 for image in make_images(SIZES)])


@pytest.mark.slow
def test_identical_detections_on_a_real_image(pair, shared):
    file = sorted((shared / "data" / "cards" / "images").glob("*.jpg"))[0]
    check_detections(*pair, [decode_image(str(file), ImageReadMode.RGB)[:, :128, :128].double() / 255])


@pytest.mark.slow
@pytest.mark.parametrize("counts", [[3], [2, 0], [2, 3]])
def test_identical_losses(pair, counts, monkeypatch):
    kind, theirs, ours = pair
    images = [image.double() / 255 for image in make_images(SIZES[: len(counts)])]
    targets = [apart(count, image.shape[-2:]) for count, image in zip(counts, images)]
    monkeypatch.setattr(
        roi_heads,
        "project_masks_on_boxes",
        lambda masks, boxes, matched, size: crop_masks(masks, boxes, matched, size),
    )
    theirs.train()
    theirs.backbone.body.eval()  # the statistics of batch norm stay, as in ours
    ours.train()
    theirs_targets = [{**t, "labels": t["labels"] + 1} for t in targets]
    expected, found = theirs(images, theirs_targets), ours(images, targets)
    pairs = {"class": "loss_classifier", "box": "loss_box_reg"}
    pairs |= {"rpn_class": "loss_objectness", "rpn_box": "loss_rpn_box_reg"}
    if kind == "mask":
        pairs["mask"] = "loss_mask"
    assert found.keys() == pairs.keys()
    if 0 in counts:
        ratio = float(expected["loss_objectness"].detach() / found["rpn_class"].detach())
        assert 1 < ratio < 1.001
        found = {k: v * ratio if k.startswith("rpn_") else v for k, v in found.items()}
    for mine, other in pairs.items():
        torch.testing.assert_close(found[mine], expected[other], rtol=1e-6, atol=1e-9, check_dtype=False)


def apart(count, size):
    """Up to three objects in a row along the longer side."""
    low = 4 + 8 * torch.rand(count, 2, dtype=torch.float64)
    boxes = torch.cat((low, low + 36 + 12 * torch.rand(count, 2, dtype=torch.float64)), 1)
    along = 0 if size[1] > size[0] else 1
    boxes[:, along::2] += 64 * torch.arange(count)[:, None]
    return {"boxes": boxes, "labels": torch.randint(0, CLASSES, (count,)), "masks": ellipses(boxes, size)}


def ellipses(boxes, size):
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    inside = ((x - centre[:, 0, None, None]) / half[:, 0, None, None]) ** 2
    return (inside + ((y - centre[:, 1, None, None]) / half[:, 1, None, None]) ** 2 <= 1).to(torch.uint8)


def test_the_way_back_leaves_only_the_background_row_behind(pair):
    _, theirs, ours = pair
    state = theirs.state_dict()
    converted = to_ours(TORCHVISION_RCNN, state, ours.state_dict(keep_vars=True))
    back = to_theirs(TORCHVISION_RCNN, converted.state, converted.unused)
    counters = {k for k in state if k.endswith("num_batches_tracked")}
    assert back.keys() - counters == state.keys() - counters
    for name, value in back.items():
        rows = 4 if "box_predictor.bbox_pred" in name else 1 if "mask_fcn_logits" in name else 0
        assert torch.equal(value[rows:] if rows else value, state[name][rows:] if rows else state[name]), name
