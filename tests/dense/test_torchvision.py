"""Witness: torchvision's RetinaNet and FCOS with the same weights give the same detections and the same losses.

Deliberate differences, each set aside or accounted for below:
- resizing and the conversion to 0..1 belong to our data room, not to the detector;
- torchvision divides the padded size by a map's size to get the stride, which moves anchors where it does not divide;
  we place them at the nominal stride (equal here: the padded size is a multiple of 128);
- RetinaNet: torchvision normalises image by image and takes the mean, we divide by the positives of the batch (equal
  for one image); it restores an anchor's best match, not the object that wanted it, when matches are of low quality; it
  bounds the size of decoded boxes above only;
- FCOS: the box loss is not weighted by centreness (ours is, unless built with torchvision=True);
- labels 0..K-1 mean the same, but torchvision's COCO weights have an unused row 0 and gaps (91 classes).
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import RetinaNetHead, _default_anchorgen
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import recollect
from helpers import make_images, make_targets, total
from recollect.convert.dense import TORCHVISION_FCOS, TORCHVISION_RETINANET, TORCHVISION_RETINANET_V2
from recollect.convert.rules import read_options, to_ours
from recollect.structures import ImageBatch

CLASSES = 4
# Objects that do not overlap, of a size at which no two anchors tie: see the differences above.
APART = [[4.3, 6.1, 47.2, 50.4], [60.1, 5.7, 108.6, 44.2], [8.2, 61.3, 55.9, 97.8], [59.4, 58.1, 107.3, 96.6]]
TABLES = {
    "retinanet v1": TORCHVISION_RETINANET,
    "retinanet v2": TORCHVISION_RETINANET_V2,
    "fcos": TORCHVISION_FCOS,
}
SIZES = [(128, 112), (100, 128)]


def their_model(kind):
    extra = LastLevelP6P7(512 if kind == "retinanet v2" else 256, 256)
    body = _resnet_fpn_extractor(
        resnet18(norm_layer=nn.BatchNorm2d if kind == "retinanet v2" else FrozenBatchNorm2d),
        5,
        returned_layers=[2, 3, 4],
        extra_blocks=extra,
    )
    if kind == "fcos":
        model = FCOS(body, CLASSES, score_thresh=0.2, topk_candidates=300)
    elif kind == "retinanet v1":
        model = RetinaNet(body, CLASSES, anchor_generator=_default_anchorgen(), topk_candidates=300)
    else:
        anchors = _default_anchorgen()
        head = RetinaNetHead(256, 9, CLASSES, norm_layer=lambda channels: nn.GroupNorm(32, channels))
        head.regression_head._loss_type = "giou"
        model = RetinaNet(body, CLASSES, anchor_generator=anchors, head=head, topk_candidates=300)
    model.transform.resize = lambda image, target: (image, target)
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(0.5 + noise if name.endswith(("weight", "var")) else 0.1 * noise)
    last = model.head.classification_head.cls_logits
    with torch.no_grad():  # scores spread around the thresholds
        last.weight.copy_(torch.randn(last.weight.shape, generator=generator) * (0.3 if kind == "fcos" else 0.05))
        last.bias.copy_(torch.linspace(-2, 0, len(last.bias)))
    return model.double()


def our_model(kind, theirs):
    name, _, version = kind.partition(" ")
    options = {"torchvision": version or True, "backbone": "resnet18.tv_in1k"}
    model = recollect.create_model(f"{name}_r50_fpn", num_classes=CLASSES, **options)
    table = TABLES[kind]
    assert table.given == {"torchvision": options["torchvision"]}
    assert read_options(table, theirs.state_dict()) == {"num_classes": CLASSES}
    model.load_state_dict(to_ours(table, theirs.state_dict(), model.state_dict(keep_vars=True)).state)
    model.head.post = replace(model.head.post, candidates=300)
    model.double()
    model.mean, model.std = (torch.tensor(v, dtype=torch.float64) for v in (model.backbone.mean, model.backbone.std))
    return model


@pytest.fixture(scope="module", params=["retinanet v1", "retinanet v2", "fcos"])
def pair(request):
    theirs = their_model(request.param)
    return request.param, theirs, our_model(request.param, theirs)


def check_detections(theirs, ours, images):
    theirs.eval()
    ours.eval()
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    for a, b in zip(found, expected):
        assert len(b["boxes"]) >= 20
        assert torch.equal(a["labels"], b["labels"])
        torch.testing.assert_close(a["scores"], b["scores"], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(a["boxes"], b["boxes"], rtol=1e-9, atol=1e-7)


@pytest.mark.slow
def test_identical_detections_on_random_images(pair):
    _, theirs, ours = pair
    check_detections(theirs, ours, [image.double() / 255 for image in make_images(SIZES)])


@pytest.mark.slow
def test_identical_detections_on_a_real_image(pair, shared):
    _, theirs, ours = pair
    file = sorted((shared / "data" / "cards" / "images").glob("*.jpg"))[0]
    image = decode_image(str(file), ImageReadMode.RGB)[:, :128, :128].double() / 255
    check_detections(theirs, ours, [image])


@pytest.mark.slow
@pytest.mark.parametrize("counts", [[4], [4, 0], [2, 3]])
def test_identical_losses(pair, counts):
    kind, theirs, ours = pair
    images = [image.double() / 255 for image in make_images(SIZES[: len(counts)])]
    if kind == "fcos":
        targets = make_targets(counts, CLASSES, (96, 100))
        targets = [{**t, "boxes": t["boxes"].double()} for t in targets]
    else:
        places = torch.tensor(APART, dtype=torch.float64)
        targets = [{"boxes": places[:count], "labels": torch.arange(count) % CLASSES} for count in counts]
    theirs.train()
    theirs.backbone.body.eval()  # ours never trains batch norm's statistics
    ours.train()
    if kind == "fcos":
        found, expected = ours(images, targets), theirs(images, targets)
        pairs = {"class": "classification", "box": "bbox_regression", "centreness": "bbox_ctrness"}
        assert found.keys() == pairs.keys()
        for mine, other in pairs.items():
            torch.testing.assert_close(found[mine], expected[other], rtol=1e-6, atol=1e-9)
        assert float(total(found)) > 0
        return
    # Image by image, in the padding of the whole batch, for RetinaNet's normaliser differs in a batch.
    expected = theirs(images, targets)
    parts = []
    padded = ours.collate(images).padded_size
    for image, target in zip(images, targets):
        batch = ours.collate([image], padded)
        features = ours.neck(ours.backbone(batch.tensors))
        parts.append(ours.head.loss(features, [target], whole(batch)))
    for mine, other in {"class": "classification", "box": "bbox_regression"}.items():
        mean = sum(part[mine] for part in parts) / len(parts)
        torch.testing.assert_close(mean, expected[other], rtol=1e-6, atol=1e-9)


def whole(batch):
    """torchvision trains on priors in the padding too."""
    return ImageBatch(batch.tensors, [batch.padded_size] * len(batch.sizes))
