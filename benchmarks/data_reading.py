"""Decode + resize on one core: ours (uint8 to the model) against Pillow with float normalisation on the CPU.

`python benchmarks/data_reading.py`. The other side is what torchvision's reference scripts do for a PIL backend: open,
convert, resize with Pillow, to a float tensor, normalise. CPU seconds are counted, not wall time, and the sides are
interleaved, so that other work on the machine weighs on both alike. Also: memory over 10,000 samples with workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from data_common import describe_machine, write_result
from PIL import Image

from recollect.data import evaluation_loader, evaluation_transform, open_dataset
from recollect.data.images import read_image
from recollect.data.transforms import resized
from recollect.recipe import Data, Resize

MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def noise_picture(seed: int) -> Image.Image:
    """640x480 with the 1/f spectrum of photographs."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.fft.fftfreq(480), np.fft.fftfreq(640), indexing="ij")
    falloff = 1 / np.maximum(np.hypot(x, y), 1 / 640)
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(480, 640))) * falloff).real for _ in range(3)]
    stack = np.stack([(p - p.mean()) / p.std() * 45 + 120 for p in planes], 2)
    return Image.fromarray(stack.clip(0, 255).astype(np.uint8))


def make_set(folder: Path, count: int) -> None:
    (folder / "images").mkdir()
    images, objects = [], []
    for index in range(count):
        noise_picture(index).save(folder / "images" / f"{index}.jpg", quality=90)
        images.append({"id": index, "file_name": f"{index}.jpg", "width": 640, "height": 480})
        objects.append({"id": index + 1, "image_id": index, "category_id": 1, "bbox": [9, 9, 200, 100], "area": 20000})
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "x"}]}
    (folder / "instances_val.json").write_text(json.dumps(content))


def reference(path: Path, size: tuple[int, int]) -> torch.Tensor:
    with Image.open(path) as opened:
        image = opened.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return (pixels - MEAN) / STD


def throughput(folder: Path, count: int, rounds: int) -> dict:
    dataset = open_dataset(folder, "val").with_transform(evaluation_transform(Data(resize=Resize((800,), 1333))))
    size = resized((480, 640), 800, 1333)
    sides = {
        "ours": lambda i: dataset[i],
        "pillow, float, normalised": lambda i: reference(dataset.file(i), size),
        "ours, decode only": lambda i: read_image(dataset.file(i)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round in range(rounds + 1):
        for name, read in sides.items():
            start = time.process_time()
            for index in range(count):
                read(index)
            if round:  # the first warms up
                seconds[name].append((time.process_time() - start) / count)
    rates = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    ratio = rates["ours"] / rates["pillow, float, normalised"]
    return {"images_per_cpu_second": rates, "ratio": ratio, "rounds": rounds, "images": count}


def memory(folder: Path, samples: int, workers: int) -> dict:
    """Unique memory of all worker processes, in MB, as samples go by."""
    dataset = open_dataset(folder, "val").with_transform(evaluation_transform(Data(resize=Resize((64,), 128))))
    seen, curve = 0, []
    # one pass over the same images again and again, by the same workers
    loader = evaluation_loader(Repeated(dataset, samples), 10, workers=workers)
    for images, _ in loader:
        seen += len(images)
        if seen % (samples // 10) == 0:
            iterator = loader._iterator  # pyright: ignore
            curve.append((seen, sum(unique_memory(w.pid) for w in iterator._workers)))
    return {"samples": samples, "workers": workers, "unique_mb_by_samples": curve}


class Repeated(torch.utils.data.Dataset):
    def __init__(self, dataset, length: int) -> None:
        self.dataset, self.length = dataset, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        return self.dataset[index % len(self.dataset)]


def unique_memory(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    lines = [line.split() for line in text.splitlines() if line.startswith(("Private_Clean", "Private_Dirty"))]
    return round(sum(int(line[1]) for line in lines) / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=10_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        make_set(Path(name), arguments.images)
        result = {
            "reading": throughput(Path(name), arguments.images, arguments.rounds),
            "load_average": os.getloadavg(),
        }
        print(json.dumps(result, indent=1), flush=True)
        if arguments.samples:
            result["memory"] = memory(Path(name), arguments.samples, 2)
    write_result("data_reading", {**describe_machine(), **result})


if __name__ == "__main__":
    main()
