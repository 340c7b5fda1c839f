import pytest
import torch

import recollect
from recollect.analysis.sampling import recorded_points


@pytest.mark.parametrize("name", ["adamixer_tiny", "deformable_detr_refine_tiny", "detr_tiny"])
def test_points_of_every_stage_in_fractions_of_the_image(name):
    model = recollect.create_model(name, num_classes=2).eval()
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for h, w in ((64, 96), (64, 64))]
    with torch.no_grad():
        with recorded_points(model) as found:
            watched = model.stage_detections(images)
            count = len(found)
            model.stage_detections(images)
            assert len(found) == count  # the next pass starts anew
        plain = model.stage_detections(images)
    assert torch.equal(plain[-1][0]["scores"], watched[-1][0]["scores"])
    assert not any("sampling_points" in vars(m) for m in model.modules()) and "collate" not in vars(model)
    if name == "detr_tiny":
        assert found == []
        return
    assert len(found) == len(model.stages)
    assert all(stage.shape[0] == 2 and stage.shape[-1] == 2 for stage in found)
    # offsets cancel at the start, and the first centres are the same fractions of the wide and the small, padded image
    centres = found[0].mean(2)
    assert torch.allclose(centres[0], centres[1], atol=1e-4)
    assert (centres > 0).all() and (centres < 1).all() and centres.std(1).min() > 0.05


def test_adamixer_looks_around_its_boxes():
    model = recollect.create_model("adamixer_tiny", num_classes=2).eval()
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    with torch.no_grad(), recorded_points(model) as found:
        model.stage_detections([image])
    # at the start a regular 4 x 4 grid over the initial box: its mean is the box's centre, on a 5 x 4 grid
    centres = found[0][0].mean(1)
    side = torch.arange(5)
    assert torch.allclose(centres[:5, 0], (side + 0.5) / 5, atol=1e-4)
    assert torch.allclose(centres[:5, 1], torch.full((5,), 0.125), atol=1e-4)
