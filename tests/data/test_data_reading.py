"""COCO files into arrays, the class contract, and reading images."""

import io
import json

import numpy as np
import pytest
import torch
from data_sets import annotation, coco_folder, edit, masked_folder, picture
from PIL import Image

from recollect.data import DataError, match_names, open_dataset, read_image
from recollect.data import json_stream as stream
from recollect.data.annotations import PackedStrings


def test_coco_with_gaps_crowds_and_masks(shared):
    dataset = open_dataset(shared / "data" / "coco_permissive", "train", masks=True)
    raw = json.loads((shared / "data/coco_permissive/instances_train.json").read_text())
    assert len(dataset) == 56 and dataset.num_objects == 414
    assert dataset.category_ids == sorted(c["id"] for c in raw["categories"]) and dataset.names[79] == "toothbrush"
    by_image = {}
    for item in raw["annotations"]:
        by_image.setdefault(item["image_id"], []).append(item)
    pycocotools = pytest.importorskip("pycocotools.mask")
    for index in range(0, 56, 5):
        image, target = dataset[index]
        items = by_image.get(target["image_id"], [])
        assert image.dtype == torch.uint8 and tuple(image.shape[1:]) == target["original_size"] == dataset.size(index)
        assert [dataset.category_ids[label] for label in target["labels"]] == [i["category_id"] for i in items]
        assert target["iscrowd"].tolist() == [bool(i["iscrowd"]) for i in items]
        for item, box, mask in zip(items, target["boxes"], target["masks"]):
            x, y, w, h = item["bbox"]
            assert torch.allclose(box, torch.tensor([x, y, x + w, y + h]).float(), atol=1e-3)
            height, width = target["original_size"]
            encoded = pycocotools.frPyObjects(item["segmentation"], height, width)
            encoded = pycocotools.merge(encoded) if isinstance(encoded, list) else encoded
            assert (pycocotools.decode(encoded) == mask.numpy()).all()
    truth = dataset.ground_truth()
    known = {item["id"]: item for item in raw["annotations"]}
    for item in truth["annotations"]:  # every digit survives the packing
        assert {key: known[item["id"]][key] for key in item} == item
    assert len(truth["annotations"]) == 414


def test_standard_layout_and_explicit_file(tmp_path):
    folder = coco_folder(tmp_path / "a")
    standard = tmp_path / "b"
    (standard / "annotations").mkdir(parents=True)
    (standard / "annotations" / "instances_train2017.json").write_text((folder / "instances_train.json").read_text())
    (folder / "images").rename(standard / "train2017")
    dataset = open_dataset(standard, "train")
    assert dataset.file(0).parent.name == "train2017" and dataset.names == ["cat", "dog"]
    again = open_dataset(standard / "annotations" / "instances_train2017.json")
    assert again.file(1) == dataset.file(1)
    with pytest.raises(DataError, match="holds no 'val' split, but train"):
        open_dataset(standard, "val")
    with pytest.raises(DataError, match=r"instances_train\.json .* data\.yaml"):
        open_dataset(tmp_path, "train")


def _dirty(key, **changes):
    def change(content):
        content["annotations"][3].update(changes)

    return key, change


@pytest.mark.parametrize(
    "expected, change",
    [
        _dirty("annotation 21.*category that is not listed.*category id 2.*known are 1, 3", category_id=2),
        _dirty("annotation 21: box with zero width or height.*width 0.*002.png.*64x48", bbox=[3, 4, 0, 5]),
        _dirty("annotation 21: box with negative width", bbox=[30, 4, -5, 5]),
        _dirty("annotation 21: box wholly outside the image.*left 70", bbox=[70, 4, 5, 5]),
        _dirty("annotation 21: box reaches beyond the image.*width 30", bbox=[50, 4, 30, 5]),
        _dirty("annotation 21: box with NaN", bbox=[float("nan"), 4, 30, 5]),
        _dirty("annotation 21: object without a usable box.*'x'", bbox=["x", 4, 30, 5]),
        _dirty("annotation 21: object without a usable box: bbox is None", bbox=None),
        _dirty("annotation 21: object of an image that is not listed: image id 99", image_id=99),
        _dirty("entry cannot be understood.*image_id is '2'", image_id="2"),
        ("no image at all", lambda c: c.update(images=[], annotations=[])),
        ("no object at all: 4 images", lambda c: c.update(annotations=[])),
        ("image id given twice: id 1", lambda c: c["images"][1].update(id=1)),
        ("category id or name given twice.*'cat'", lambda c: c["categories"][1].update(name="cat")),
        ("image file is missing.*listed in", lambda c: c["images"][2].update(file_name="gone.png")),
        ("file_name is None", lambda c: c["images"][2].update(file_name=None)),
        ("holds no 'categories'", lambda c: c.pop("categories")),
    ],
)
def test_dirt_gets_its_sentence(tmp_path, expected, change):
    folder = coco_folder(tmp_path)
    edit(folder / "instances_train.json", change)
    with pytest.raises(DataError, match=expected) as caught:
        open_dataset(folder, "train")
    assert "\n" not in str(caught.value) and "instances_train.json" in str(caught.value)


def test_repair_while_opening(tmp_path):
    folder = coco_folder(tmp_path)
    edit(folder / "instances_train.json", lambda c: c["annotations"][3].update(bbox=[50, 4, 30, 5]))
    edit(folder / "instances_train.json", lambda c: c["annotations"][4].update(bbox=[50, 4, 0, 5]))
    dataset = open_dataset(folder, "train", repair=True)
    assert dataset.num_objects == 7
    assert dataset[1][1]["boxes"][1].tolist() == [50, 4, 64, 9]


def test_rounding_is_forgiven_and_clipped(tmp_path):
    folder = coco_folder(tmp_path)
    edit(folder / "instances_train.json", lambda c: c["annotations"][0].update(bbox=[-0.5, 0, 65, 48]))
    assert open_dataset(folder, "train")[0][1]["boxes"][0].tolist() == [0, 0, 64, 48]


def test_annotation_id_zero_is_renumbered_for_scoring(tmp_path):
    folder = coco_folder(tmp_path)
    edit(folder / "instances_val.json", lambda c: c["annotations"][0].update(id=0))
    ids = [item["id"] for item in open_dataset(folder, "val").ground_truth()["annotations"]]
    assert ids == [1, 2, 3, 4]


def test_classes_compare_by_name(tmp_path):
    folder = coco_folder(tmp_path)
    train = open_dataset(folder, "train")
    edit(
        folder / "instances_val.json",
        lambda c: c.update(categories=[{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}]),
    )
    val = open_dataset(folder, "val", names=train.names)
    assert val.names == train.names and val.category_ids == [3, 1]
    assert val[0][1]["labels"].tolist() == [1, 0]
    more = match_names(val.annotations, ["dog", "bird", "cat"])
    assert more.category_ids == [1, 4, 3] and more.labels[:2].tolist() == [0, 2]
    edit(folder / "instances_val.json", lambda c: c["categories"][0].update(name="Cat "))
    with pytest.raises(DataError, match=r"'Cat ' has 2 objects here.*did you mean 'cat'\?"):
        open_dataset(folder, "val", names=train.names)
    assert "0=cat(1), 1=dog(3)" in train.describe()


def test_masks_are_lazy_and_survive_the_crop_of_rows(tmp_path):
    dataset = open_dataset(masked_folder(tmp_path), "train", masks=True)
    assert "masks" not in open_dataset(tmp_path, "train")[0][1]
    masks = dataset[0][1]["masks"]
    assert masks.dtype == torch.bool and masks.shape == (2, 48, 64)
    boxes = dataset[0][1]["boxes"]
    for mask, box in zip(masks, boxes):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        extent = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert (extent - box).abs().max() <= 1
    picked = dataset.annotations.select(np.array([2, 0]))
    assert picked.segmentations.coco(0) == dataset.annotations.segmentations.coco(4)


def test_run_lengths_compressed_and_not(tmp_path):
    pycocotools = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((48, 64), bool)
    mask[5:20, 7:30] = True
    mask[9:12, 10:14] = False
    packed = pycocotools.encode(np.asfortranarray(mask.astype(np.uint8)))
    from recollect.data.masks import encode

    compressed = {"size": [48, 64], "counts": packed["counts"].decode()}
    objects = [annotation(1, 1, (7, 5, 23, 15), segmentation=compressed)]
    objects.append(annotation(2, 1, (7, 5, 23, 15), 3, segmentation=encode(mask)))
    dataset = open_dataset(coco_folder(tmp_path, objects), "train", masks=True)
    assert (dataset[0][1]["masks"].numpy() == mask).all()
    for broken in ("0[1", "zzzz", "\x01"):
        edit(
            tmp_path / "instances_train.json",
            lambda c, broken=broken: c["annotations"][0]["segmentation"].update(counts=broken),
        )
        with pytest.raises(DataError, match="annotation 1: mask cannot be decoded"):
            open_dataset(tmp_path, "train", masks=True)[0]


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_json_in_small_pieces(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(stream, "CHUNK", chunk)
    content = {"a": [1, -2.5e3, 'x\\"ü\n', {"b": [[], {}]}, None, True], "c": {"d": 12345678901}, "a2": [], "e": 7}
    file = tmp_path / "x.json"
    for indent in (None, 2):
        file.write_text(json.dumps(content, indent=indent, ensure_ascii=indent is None), encoding="utf-8")
        read = list(stream.stream_object(file, {"a", "a2"}))
        assert read == [*(("a", v) for v in content["a"]), ("c", content["c"]), ("a2", []), ("e", 7)]
    for text, message in (
        ('{"a": [1, 2', "the file ends"),
        ('{"a": [1 2]}', "found '2]}'"),
        ('{"a": 1} x', "something follows"),
        ("[1]", "expected an object"),
        ('{"c": tru}', "found 'tru}'"),
        ('{"c": ' + "[" * 100_000, "nested too deeply|the file ends"),
        ("", "the file ends"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=f"line 1, character.*({message})"):
            list(stream.stream_object(file, {"a"}))
    file.write_bytes(b'{"c": "\xff"}')
    with pytest.raises(DataError, match="UTF-8"):
        list(stream.stream_object(file, {"a"}))


def test_packed_strings():
    strings = ["", "a/b.png", "ü", "x" * 300]
    packed = PackedStrings(strings)
    assert list(packed) == strings and packed[-1] == strings[-1] and packed[1:3] == strings[1:3]


def _bytes(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_every_mode_becomes_rgb(tmp_path):
    base = picture(5)
    for mode in ("L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB"):
        if mode == "I;16":
            image = Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)
        elif mode == "F":
            image = Image.fromarray(np.asarray(base.convert("L")).astype(np.float32) / 255)
        elif mode == "I":
            image = Image.fromarray(np.asarray(base.convert("L")).astype(np.int32) * 257)
        else:
            image = base.convert(mode)
        format = {"YCbCr": "JPEG", "CMYK": "JPEG", "HSV": "TIFF", "LAB": "TIFF", "F": "TIFF", "I": "TIFF"}.get(
            mode, "PNG"
        )
        if mode == "HSV":
            image, format = image.convert("RGB"), "BMP"
        file = tmp_path / f"x.{format.lower()}"
        file.write_bytes(_bytes(image, format, **({"quality": 95} if format == "JPEG" else {})))
        read = read_image(file)
        assert read.shape == (3, 48, 64) and read.dtype == torch.uint8
        if mode in ("L", "LA", "I;16", "F", "I"):
            grey = torch.from_numpy(np.asarray(base.convert("L")).copy())
            assert (read.int() - grey.int()).abs().max() <= 1, mode
        elif mode not in ("1", "P", "LAB"):
            wanted = np.asarray(base).transpose(2, 0, 1).astype(int)
            assert np.abs(read.numpy().astype(int) - wanted).mean() < 8, mode


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_rotation(tmp_path, format, turn):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = turn
    file = tmp_path / f"x.{format.lower()}"
    picture(1).save(file, format, exif=exif, **({"quality": 95} if format == "JPEG" else {}))
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB")).transpose(2, 0, 1)
    read = read_image(file)
    assert (read.numpy() == wanted).all()
    from recollect.data import image_size

    assert image_size(file) == tuple(read.shape[1:])


def test_unreadable_images_say_so(tmp_path):
    whole = _bytes(picture(2, 300, 200), "JPEG")
    png = _bytes(picture(2, 300, 200), "PNG")
    cases = {
        "truncated.jpg": (whole[: len(whole) // 2], "ends too early"),
        "truncated.png": (png[: len(png) // 2], "ends too early|no readable image"),
        "empty.jpg": (b"", "no bytes"),
        "text.jpg": (b"hello", "no readable image"),
        "head.jpg": (whole[:20], "no readable image|ends too early"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name}.*({message})"):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match=r"gone\.jpg: image file is missing"):
        read_image(tmp_path / "gone.jpg")
    huge = bytearray(png)
    huge[16:24] = (60000).to_bytes(4, "big") * 2
    (tmp_path / "bomb.png").write_bytes(huge)
    with pytest.raises(DataError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")


def test_declared_size_must_be_the_files(tmp_path):
    folder = coco_folder(tmp_path)
    edit(folder / "instances_train.json", lambda c: c["images"][0].update(width=65))
    with pytest.raises(DataError, match=r"001\.png: declared size is not the file's: 65x48 declared in .*64x48 read"):
        open_dataset(folder, "train")[0]
    edit(folder / "instances_train.json", lambda c: [c["images"][0].pop(k) for k in ("width", "height")])
    dataset = open_dataset(folder, "train")
    assert dataset.size(0) == (48, 64) == dataset[0][1]["original_size"]
