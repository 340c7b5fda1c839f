"""Small datasets on disk for the tests of the data room."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed=0, width=64, height=48):
    """A smooth random picture: unlike any other seed's, also after a perceptual hash."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def annotation(id, image, box, category=1, **more):
    return {"id": id, "image_id": image, "category_id": category, "bbox": list(box), "iscrowd": 0, **more}


def coco_folder(folder, train=None, val=None, categories=((1, "cat"), (3, "dog")), images=4, sizes=None):
    """A COCO folder with `images` pictures in train and half as many in val; annotations as given."""
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    number = 0
    for split, count, objects in (("train", images, train), ("val", max(1, images // 2), val)):
        listed = []
        for _ in range(count):
            number += 1
            width, height = (sizes or {}).get(number, (64, 48))
            name = f"{number:03d}.png"
            picture(number, width, height).save(folder / "images" / name)
            listed.append({"id": number, "file_name": name, "width": width, "height": height})
        if objects is None:
            objects = [
                annotation(10 * i["id"] + k, i["id"], (2 + 9 * k, 3 + k, 20, 12 + 9 * k), (1, 3)[k], area=100.0)
                for i in listed
                for k in range(2)
            ]
        names = [{"id": id, "name": name} for id, name in categories]
        content = {"images": listed, "annotations": objects, "categories": names}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def edit(file, change):
    """Change the JSON in a file by a function."""
    content = json.loads(Path(file).read_text())
    change(content)
    Path(file).write_text(json.dumps(content))


def masked_folder(folder, images=3):
    """A COCO folder whose objects have polygons (an ellipse and an L) that their boxes enclose."""
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ellipse = np.stack((30 + 14 * np.cos(turn), 22 + 9 * np.sin(turn)), 1).round(2).reshape(-1).tolist()
    shape = [40.0, 5.0, 60.0, 5.0, 60.0, 9.0, 45.0, 9.0, 45.0, 40.0, 40.0, 40.0]

    def objects(first, count):
        made = []
        for image in range(first, first + count):
            for k, ring in enumerate((ellipse, shape)):
                points = np.reshape(ring, (-1, 2))
                low, size = points.min(0), np.ptp(points, axis=0)
                box = [*low.tolist(), *size.tolist()]
                made.append(annotation(10 * image + k, image, box, (1, 3)[k], segmentation=[ring]))
        return made

    return coco_folder(folder, objects(1, images), objects(images + 1, max(1, images // 2)), images=images)
