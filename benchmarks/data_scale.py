"""Annotations of COCO's size (118,000 images, 860,000 boxes with polygons): load time and memory against pycocotools.

python benchmarks/data_scale.py [--images N --boxes N]

Each side loads in a fresh process. Memory is what the process holds afterwards beyond what it held before (resident,
after a garbage collection), and the peak on the way. Time is CPU time.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from data_common import describe_machine, write_result

POINTS = 22  # per polygon on average, about COCO's


def make(file: Path, images: int, boxes: int) -> None:
    rng = np.random.default_rng(0)
    owners = np.sort(rng.integers(0, images, boxes))
    with file.open("w") as out:
        out.write('{"info": {}, "licenses": [], "images": [')
        for i in range(images):
            item = {"license": 1, "file_name": f"{i:012d}.jpg", "coco_url": f"http://images/{i:012d}.jpg"}
            item |= {"height": 480, "width": 640, "date_captured": "2013-11-14 17:02:52", "id": i}
            out.write((", " if i else "") + json.dumps(item))
        out.write('], "annotations": [')
        shapes = []  # a few hundred shapes, again and again: writing should not take longer than reading
        for _ in range(500):
            points = rng.random((int(rng.integers(4, 2 * POINTS - 4)), 2)) * (200, 150) + (100, 100)
            low, size = points.min(0).round(2), np.ptp(points, axis=0).round(2)
            box = [*low.tolist(), *size.tolist()]
            shape = {"segmentation": [points.round(2).reshape(-1).tolist()], "area": round(float(size.prod()) / 2, 4)}
            shapes.append(json.dumps({**shape, "iscrowd": 0, "bbox": box})[:-1])
        for k, owner in enumerate(owners.tolist()):
            comma = ", " if k else ""
            out.write(f'{comma}{shapes[k % 500]}, "image_id": {owner}, "category_id": {k % 80 + 1}, "id": {k + 1}}}')
        names = [{"supercategory": "x", "id": i + 1, "name": f"class {i}"} for i in range(80)]
        out.write('], "categories": ' + json.dumps(names) + "}")


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def load(side: str, file: str) -> None:
    """In a process of its own: load, and print what it took."""
    if side == "pycocotools":
        from pycocotools.coco import COCO as read
    else:
        from recollect.data.coco import read
    gc.collect()
    before, start, wall = resident(), time.process_time(), time.perf_counter()
    if side == "pycocotools":
        held = read(file)
        count = len(held.anns)
    else:
        held, findings = read(Path(file), masks=side.endswith("masks"))
        assert not findings
        count = held.num_objects
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    gc.collect()
    taken = resident() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    answer = {"objects": count, "cpu_seconds": round(seconds, 2), "wall_seconds": round(wall, 2)}
    print("RESULT", json.dumps({**answer, "memory_mb": round(taken, 1), "peak_mb": round(peak, 1)}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        return load(*arguments.load)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "instances_train.json"
        make(file, arguments.images, arguments.boxes)
        result = {"images": arguments.images, "boxes": arguments.boxes, "file_mb": file.stat().st_size >> 20}
        for side in ("ours, boxes", "ours, boxes and masks", "pycocotools"):
            command = [sys.executable, __file__, "--load", side, str(file)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            result[side] = json.loads(output.partition("RESULT ")[2])
            print(side, result[side], flush=True)
    for side in ("ours, boxes", "ours, boxes and masks"):
        result[f"pycocotools / {side}"] = round(result["pycocotools"]["memory_mb"] / result[side]["memory_mb"], 1)
    write_result("data_scale", {**describe_machine(), "load_average": os.getloadavg(), **result})


if __name__ == "__main__":
    main()
