"""VOC, YOLO and torch datasets; conversion; fuzzed files of every kind."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from data_sets import coco_folder, masked_folder, picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset

from recollect.cli import main
from recollect.data import DataError, convert_dataset, open_dataset, read_image
from recollect.data.doctor import examine


def objects_of(dataset):
    """What a dataset says, apart from ids: {stem: sorted [(name, box)]}."""
    part, owner = dataset.annotations, dataset.annotations.images_of_rows()
    said = {part.path(i).stem: [] for i in range(len(part))}
    for row in range(part.num_objects):
        said[part.path(owner[row]).stem].append((part.names[part.labels[row]], *part.boxes[row].round(2).tolist()))
    return {stem: sorted(rows) for stem, rows in said.items()}


@pytest.mark.parametrize("first", ["coco", "voc", "yolo"])
@pytest.mark.parametrize("second", ["coco", "voc", "yolo"])
def test_any_format_as_any_other(tmp_path, first, second):
    coco_folder(tmp_path / "start")
    convert_dataset(tmp_path / "start", tmp_path / "one", first)
    done = convert_dataset(tmp_path / "one", tmp_path / "two", second)
    assert done.images == {"train": 4, "val": 2} and done.objects == {"train": 8, "val": 4}
    names = open_dataset(tmp_path / "start", "train").names
    for split in ("train", "val"):
        start = open_dataset(tmp_path / "start", split)
        end = open_dataset(tmp_path / "two", split, names=names)
        assert objects_of(start) == objects_of(end) and end.annotations.format == second
        index = [end.file(i).name for i in range(len(end))].index("001.png" if split == "train" else "005.png")
        assert torch.equal(start[0][0], end[index][0])
        assert open_dataset(tmp_path / "two", split, format=second).num_objects == start.num_objects
    with pytest.raises(DataError, match="there already"):
        convert_dataset(tmp_path / "start", tmp_path / "two", second)


def test_conversion_says_what_it_loses(shared, tmp_path):
    source = shared / "data" / "coco_permissive"
    lost = convert_dataset(source, tmp_path / "yolo", "yolo").lost
    assert "train: 5 crowd regions left out, YOLO has none" in lost
    before, after = open_dataset(source, "val", masks=True), open_dataset(tmp_path / "yolo", "val", masks=True)
    order = [after.image_ids[[after.file(j).name for j in range(45)].index(before.file(i).name)] - 1 for i in range(8)]
    for i, j in enumerate(order):
        one, two = before[i][1], after[j][1]
        assert torch.equal(one["labels"][~one["iscrowd"]], two["labels"])
        masks = one["masks"][~one["iscrowd"]]
        agree = (masks & two["masks"]).flatten(1).sum(1) / (masks | two["masks"]).flatten(1).sum(1).clamp(min=1)
        assert (agree > 0.97).all()


def test_voc_flags_subfolders_and_lists(tmp_path):
    convert_dataset(coco_folder(tmp_path / "coco"), tmp_path / "voc", "voc")
    home = tmp_path / "voc"
    file = home / "Annotations" / "001.xml"
    text = (
        file.read_text()
        .replace("<difficult>0", "<difficult>1", 1)
        .replace("<filename>001.png", "<filename>a/wrong.jpg")
    )
    file.write_text(text)
    (home / "ImageSets" / "Main" / "train.txt").write_text("001  1\n002 -1\n")
    dataset = open_dataset(home, "train")
    assert len(dataset) == 2 and dataset.file(0).name == "001.png"
    assert [a.get("difficult") for a in dataset.ground_truth()["annotations"]] == [1, None, None, None]
    with pytest.raises(DataError, match="no 'test' split, but train, val"):
        open_dataset(home, "test")
    file.write_text('<!DOCTYPE x [<!ENTITY a "aaaa">]><annotation>&a;</annotation>')
    with pytest.raises(DataError, match="declares entities"):
        open_dataset(home, "train")


def test_yolo_without_yaml_and_odd_paths(tmp_path):
    convert_dataset(coco_folder(tmp_path / "coco"), tmp_path / "yolo", "yolo")
    home = tmp_path / "yolo"
    text = (home / "data.yaml").read_text()
    (home / "data.yaml").write_text(text.replace("images/train", "../images/train").replace("path: .", "path: ../gone"))
    assert len(open_dataset(home, "train")) == 4
    (home / "list.txt").write_text("images/train/001.png\n./images/train/003.png\n")
    (home / "data.yaml").write_text("train: list.txt\nval: [images/val]\nnames: [cat, dog]\n")
    assert len(open_dataset(home, "train")) == 2 and len(open_dataset(home, "val")) == 2
    assert open_dataset(home / "data.yaml", "val").names == ["cat", "dog"]
    (home / "data.yaml").unlink()
    assert open_dataset(home, "train").names == ["0", "1"]
    (home / "classes.txt").write_text("cat\ndog\n")
    assert open_dataset(home, "train").names == ["cat", "dog"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("names: [yes, dog]\ntrain: images/train", "class 0 is a bool to YAML: write its name in quotes"),
        ("names: {1: cat, 2: dog}\ntrain: images/train", "from 0 to 1 without gaps"),
        ("nc: 3\nnames: [cat, dog]\ntrain: images/train", "'nc' is 3, but 'names' holds 2"),
        ("names: cat\ntrain: images/train", "'names' must list the class names, found str"),
        ("names: [cat, dog]\ntrain: nowhere", "there is no .*nowhere"),
        ("names: [cat\ntrain", "not a YAML file that can be read"),
        ("names: [cat, dog]\ntrain: {a: 1}", "a split must be a path"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nnames: [*b,*b]\ntrain: images/train", "class 0 is a list to YAML"),
    ],
)
def test_yolo_yaml_faults(tmp_path, text, message):
    convert_dataset(coco_folder(tmp_path / "coco"), tmp_path / "yolo", "yolo")
    (tmp_path / "yolo" / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "yolo", "train")


class _Made(Dataset):
    def __init__(self, **changes):
        self.changes = changes

    def __len__(self):
        return 3

    def __getitem__(self, index):
        target = {"boxes": [[1, 2, 11, 12], [3, 4, 9, 30]], "labels": [0, 1], **self.changes}
        return target.pop("image", picture(index)), target


def test_any_torch_dataset():
    dataset = open_dataset(_Made(masks=torch.ones(2, 48, 64)), names=["cat", "dog"])
    image, target = dataset[1]
    assert image.dtype == torch.uint8 and target["image_id"] == 1 and target["original_size"] == (48, 64)
    assert dataset.num_objects == 6 and dataset.size(2) == (48, 64) and dataset.category_ids == [0, 1]
    truth = dataset.ground_truth()
    assert truth["annotations"][1]["bbox"] == [3, 4, 6, 26] and truth["annotations"][0]["id"] == 1
    assert truth["annotations"][0]["segmentation"]["counts"] == [0, 48 * 64]
    from recollect.data import evaluation_transform
    from recollect.recipe import Data, Resize

    fed = dataset.with_transform(evaluation_transform(Data(resize=Resize((96,), 200))))[0]
    assert fed[1]["boxes"].tolist()[0] == [2, 4, 22, 24]
    floats = open_dataset(_Made(image=torch.rand(3, 40, 40)), names=["cat", "dog"])
    assert floats[0][0].dtype == torch.uint8


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": [0, 2]}, "item 0 of _Made: label 2 of box 1 is not in 0..1"),
        ({"labels": [0]}, "2 boxes but 1 labels"),
        ({"boxes": [[1, 2, 1, 12], [3, 4, 9, 30]]}, r"box 0 is \[1.0, 2.0, 1.0, 12.0\], the image 64x48"),
        ({"boxes": [[1, 2, 100, 12], [3, 4, 9, 30]]}, "inside the image"),
        ({"boxes": [[1, 2, float("nan"), 12], [3, 4, 9, 30]]}, "box 0"),
        ({"image": torch.zeros(1, 8, 8)}, r"must be \[3, H, W\] in RGB order"),
        ({"image": torch.full((3, 40, 40), 2.0)}, r"must lie in 0..1"),
        ({"image": torch.zeros(3, 40, 40, dtype=torch.int32)}, "is torch.int32"),
    ],
)
def test_torch_dataset_faults(changes, message):
    with pytest.raises(DataError, match=message):
        open_dataset(_Made(**changes), names=["cat", "dog"])[0]
    with pytest.raises(DataError, match="needs names"):
        open_dataset(_Made())


def mutated(data, seed):
    """The bytes with a few of them changed, dropped, doubled or cut off."""
    rng = random.Random(seed)
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        if not data:
            break
        at = rng.randrange(len(data))
        choice = rng.randrange(6)
        if choice == 0:
            data[at] = rng.randrange(256)
        elif choice == 1:
            del data[at : at + rng.randint(1, 20)]
        elif choice == 2:
            data[at:at] = data[at : at + rng.randint(1, 30)]
        elif choice == 3:
            data[at:at] = rng.choice(
                [b"-", b"null", b"1e999", b"NaN", b"{", b"]", b'"', b"99999999999999999999", b"\0", b"<"]
            )
        elif choice == 4:
            data = data[:at]
        else:
            data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.fixture(scope="module")
def three_formats(tmp_path_factory):
    home = tmp_path_factory.mktemp("formats")
    masked_folder(home / "coco", images=2)
    for format in ("voc", "yolo"):
        convert_dataset(home / "coco", home / format, format)
    return home


FUZZED = {
    "coco": "instances_train.json",
    "voc": "Annotations/001.xml",
    "voc-list": "ImageSets/Main/train.txt",
    "yolo": "data.yaml",
    "yolo-label": "labels/train/001.txt",
    "yolo-image": "images/train/001.png",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FUZZED)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(0, 2**31 - 1))
def test_fuzzed_files(three_formats, kind, seed):
    """A sample or one of our errors, and no image lost: the doctor never raises anything else either."""
    home = three_formats / kind.split("-")[0]
    file = home / FUZZED[kind]
    whole = file.read_bytes()
    try:
        file.write_bytes(mutated(whole, seed))
        try:
            dataset = open_dataset(home, "train", masks=True)
            for index in range(len(dataset)):
                image, target = dataset[index]
                assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
                assert image.dtype == torch.uint8 and torch.isfinite(target["boxes"]).all()
        except DataError as error:
            assert str(error) and "\n" not in str(error)
        try:
            report = examine(home, workers=1)
            report.text()
            json.dumps(report.to_json())
        except DataError:
            pass
    finally:
        file.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(0, 2**31 - 1))
def test_fuzzed_images(tmp_path_factory, format, seed):
    folder = tmp_path_factory.mktemp("images")
    try:
        file = folder / f"x.{format.lower()}"
        picture(seed % 5, 90, 60).save(file, format)
        file.write_bytes(mutated(file.read_bytes(), seed))
        try:
            image = read_image(file)
            assert image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3
        except DataError as error:
            assert file.name in str(error)
    finally:
        shutil.rmtree(folder)


def test_convert_and_browse_verbs(tmp_path, capsys):
    coco_folder(tmp_path / "a")
    assert main(["convert-data", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "yolo"]) == 0
    assert "train: 4 images, 8 objects" in capsys.readouterr().out
    picture_file = tmp_path / "grid.png"
    assert main(["browse", str(tmp_path / "b"), "--out", str(picture_file), "--count", "3"]) == 0
    grid = np.asarray(Image.open(picture_file))
    assert grid.shape[1] == 4 * 320 and grid[:, :960].std() > 20 and (grid[:, 960:] == 255).all()
    assert "0=cat(0), 1=dog(1)" in capsys.readouterr().out
    assert main(["convert-data", str(tmp_path / "a"), str(tmp_path / "c"), "--to", "xml"]) == 1
    assert "there is no dataset format 'xml'" in capsys.readouterr().err
