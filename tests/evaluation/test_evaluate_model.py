"""Scoring a detector over a dataset, on one rank and on several."""

import os

import pytest
import torch
from torch import nn

from recollect.evaluation import coco_results, evaluate_model, gather
from recollect.evaluation.results import encode_mask


class Dataset:
    """Images of 40 x 60 pixels, one object each, at a place that tells the image."""

    names, category_ids = ["cat", "dog"], [3, 7]

    def __init__(self, count=6):
        self.image_ids = [10 + i for i in range(count)]

    def __len__(self):
        return len(self.image_ids)

    def box(self, i):
        return [float(i), 2.0, i + 12.0, 20.0]

    def __getitem__(self, i):
        image = torch.full((3, 80, 120), i, dtype=torch.uint8)  # fed at twice the size
        return image, {"image_id": self.image_ids[i], "original_size": (40, 60), "fed_size": (80, 120)}

    def ground_truth(self):
        return {
            "images": [{"id": i, "width": 60, "height": 40} for i in self.image_ids],
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
            "annotations": [
                {"id": n + 1, "image_id": i, "category_id": self.category_ids[n % 2], "iscrowd": 0, "area": 216.0,
                 "bbox": [self.box(n)[0], 2.0, 12.0, 18.0]}
                for n, i in enumerate(self.image_ids)
            ],
        }  # fmt: skip

    def loader(self, indices=None):
        for i in range(len(self)) if indices is None else indices:
            image, target = self[i]
            yield [image], [target]


class Model(nn.Module):
    """Finds every object; its first stage only those of even images, and badly."""

    def stage_detections(self, images):
        assert not self.training and not torch.is_grad_enabled()
        first, last = [], []
        for image in images:
            i = int(image[0, 0, 0])
            box = 2 * torch.tensor([Dataset().box(i)])
            score = torch.tensor([0.5 + i / 100])
            last.append({"boxes": box, "scores": score, "labels": torch.tensor([i % 2])})
            rough = box if i % 2 else box + torch.tensor([0, 0, 0, 9.0])  # IoU 0.8 on even images
            first.append({"boxes": rough, "scores": score, "labels": torch.tensor([0])})
        return [first, last]

    def forward(self, images):
        return self.stage_detections(images)[-1]


def test_a_model_over_a_dataset():
    data, model, calls = Dataset(), Model().train(), []
    metrics = evaluate_model(model, data.loader(), data, device="cpu", progress=lambda *a: calls.append(a))
    assert metrics.ap == pytest.approx(1)
    assert metrics.images == 6 and metrics.stages == ()
    assert calls[-1] == (6, 6)
    assert model.training  # as it was


def test_every_stage_alone():
    data = Dataset()
    metrics = evaluate_model(Model(), data.loader(), data, device="cpu", stages=True)
    first, last = metrics.stages
    assert last.stats == metrics.stats and metrics.ap == pytest.approx(1)
    # cats: 3 found at IoU 0.8, 3 false ones among them in score order; dogs: never found
    assert first.per_class["dog"]["AP"] == 0
    assert first.per_class["cat"]["AP75"] < 1 and first.per_class["cat"]["AP75"] > 0
    assert len(metrics.to_json()["stages"]) == 2
    assert metrics.table().row_count == 2
    with pytest.raises(ValueError, match="no decoder stages"):
        evaluate_model(nn.Identity(), data.loader(), data, device="cpu", stages=True)


def test_images_that_no_loader_gave_are_named():
    data = Dataset()
    with pytest.raises(ValueError, match="5 of 6 images"):
        evaluate_model(Model(), data.loader(range(5)), data, device="cpu")
    metrics = evaluate_model(Model(), data.loader(range(2)), data, device="cpu", partial=True)
    assert metrics.images == 2 and metrics.ap == pytest.approx(1)
    with pytest.raises(ValueError, match="gave no image"):
        evaluate_model(Model(), [], data, device="cpu", partial=True)


def test_boxes_go_back_to_the_file_and_its_category_ids():
    target = {"image_id": 5, "original_size": (50, 200), "fed_size": (100, 100)}
    found = {
        "boxes": torch.tensor([[10.0, 20.0, 30.0, 60.0]]),
        "scores": torch.tensor([0.25]),
        "labels": torch.tensor([1]),
        "masks": torch.zeros(1, 100, 100).index_fill_(1, torch.arange(50), 1.0),
    }
    (row,) = coco_results([found], [target], [3, 90])
    assert row["image_id"] == 5 and row["category_id"] == 90 and row["score"] == 0.25
    assert row["bbox"] == [20.0, 10.0, 40.0, 20.0]
    assert row["segmentation"]["size"] == [50, 200]
    from pycocotools import mask

    area = mask.area({"size": [50, 200], "counts": row["segmentation"]["counts"].encode()})
    assert area == 25 * 200
    with pytest.raises(ValueError, match="label 1"):
        coco_results([found], [target], [3])
    with pytest.raises(ValueError, match="fed_size"):
        coco_results([found], [{"image_id": 5, "original_size": (4, 4)}], [3, 90])


def test_masks_at_file_size_are_kept_exactly():
    mask = torch.rand(13, 17) > 0.5
    from pycocotools import mask as reference

    code = encode_mask(mask, (13, 17))
    assert (reference.decode({**code, "counts": code["counts"].encode()}) == mask.numpy()).all()


def _rank(rank, ranks, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    data = Dataset(5)
    share = [0, 2, 4] if rank == 0 else [1, 3, 0]  # image 0 twice, so that all have equally many
    metrics = evaluate_model(Model(), data.loader(share), data, device="cpu", stages=True)
    torch.save({"metrics": metrics.to_json(), "all": list(gather({rank: 0}))}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_several_ranks_equal_one_to_the_bit(tmp_path):
    torch.multiprocessing.spawn(_rank, (2, str(tmp_path)), nprocs=2)
    data = Dataset(5)
    alone = evaluate_model(Model(), data.loader(), data, device="cpu", stages=True).to_json()
    for rank in range(2):
        said = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert said["metrics"] == alone
        assert said["all"] == [0, 1]


def test_order_of_the_loader_does_not_matter():
    data = Dataset(5)
    one = evaluate_model(Model(), data.loader(), data, device="cpu").to_json()
    other = evaluate_model(Model(), data.loader([4, 1, 3, 0, 2]), data, device="cpu").to_json()
    assert one == other
    assert one["stats"]["AP"] > 0.99
