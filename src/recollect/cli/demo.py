"""`recollect demo`: recollection at work on handwritten digits, on two CPU cores, in about ten minutes."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

ARMS = {"plain": "adamixer_tiny", "SQR": "sqr_adamixer_tiny"}
TRAINING = ("--batch", "8", "--no-flip", "--workers", "0", "--accelerator", "cpu", "--log-every", "10")
GOAL = 0.6  # AP50 that both must reach


@dataclass(frozen=True)
class Size:
    """How much the demo does."""

    train: int = 4000
    val: int = 200
    steps: int = 800


QUICK = Size(24, 8, 6)


@dataclass(frozen=True)
class Arguments:
    """Train a tiny AdaMixer on handwritten digits, plainly and with recollection from the same seed, side by side on
    two CPU cores, and compare them stage by stage."""

    quick: bool = False
    """Only see that everything runs, in under a minute."""
    out: Path | None = None
    """Folder for data, runs and pictures; by default runs/demo, runs/demo-2, ..."""
    seed: int = 0
    """Of data, weights and order of images."""


@dataclass(frozen=True)
class Arm:
    """One of the two trainings, as far as it got."""

    folder: Path
    process: subprocess.Popen[bytes]

    def last_row(self) -> dict[str, str]:
        """The newest row of its metrics."""
        try:
            with open(self.folder / "metrics.csv", newline="", encoding="utf-8") as file:
                return (list(csv.DictReader(file)) or [{}])[-1]
        except FileNotFoundError:
            return {}


def run(arguments: Arguments) -> int:
    """Make the scenes, train both, compare, draw."""
    from recollect.data.digits import make_digit_scenes

    began = time.monotonic()
    console = Console(highlight=False)
    size = QUICK if arguments.quick else Size()
    out = arguments.out or _free_folder()
    if any((out / name).exists() for name in ARMS):
        raise ValueError(f"{out} already holds a demo: choose another --out")
    console.print(f"Drawing {size.train + size.val} scenes with real handwritten digits in {out / 'data'} ...")
    data = make_digit_scenes(out / "data", train=size.train, val=size.val, seed=arguments.seed)
    console.print(
        f"Training {' and '.join(ARMS.values())} from seed {arguments.seed}, {size.steps} steps each, side by side on "
        "one CPU core each."
    )
    _train(out, data, size, arguments.seed)
    goal = _compare(out, data, size, console)
    _draw(out, data)
    console.print(f"Pictures of truth, plain and SQR side by side: {out / 'pictures'}")
    console.print(f"All in {(time.monotonic() - began) / 60:.1f} minutes.")
    if not goal and not arguments.quick:
        raise ValueError(f"the demo promises an AP50 of {100 * GOAL:.0f} or more for both, and missed it")
    return 0


def _free_folder() -> Path:
    folder, number = Path("runs", "demo"), 1
    while folder.exists():
        number += 1
        folder = Path("runs", f"demo-{number}")
    return folder


def _train(out: Path, data: Path, size: Size, seed: int) -> None:
    """Both trainings at once, each a process with one thread; ValueError with its last words if one fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    arms: dict[str, Arm] = {}
    steps = str(size.steps)
    for name, model in ARMS.items():
        folder = out / name
        command = [
            sys.executable, "-m", "recollect.cli", "train", model, "--data", str(data), "--out", str(folder),
            "--steps", steps, "--validate-every", steps, "--seed", str(seed), *TRAINING,
        ]  # fmt: skip
        with open(out / f"{name}.log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        arms[name] = Arm(folder, process)
    bar = Progress(TextColumn("{task.description:>6}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"),
                   TextColumn("{task.fields[facts]}"), TimeElapsedColumn(), console=Console(stderr=True))  # fmt: skip
    try:
        with bar:
            tasks = {name: bar.add_task(name, total=size.steps, facts="") for name in arms}
            while any(arm.process.poll() is None for arm in arms.values()):
                for name, arm in arms.items():
                    row = arm.last_row()
                    facts = f"loss {float(row['loss']):.2f}" if row.get("loss") else ""
                    bar.update(tasks[name], completed=int(row.get("step") or 0), facts=facts)
                    if arm.process.poll():
                        raise ValueError(f"the training {name} failed: {_last_line(out / f'{name}.log')}")
                time.sleep(0.5)
            for name in arms:
                bar.update(tasks[name], completed=size.steps)
    finally:
        for arm in arms.values():
            if arm.process.poll() is None:
                arm.process.terminate()
                arm.process.wait()
    for name, arm in arms.items():
        if arm.process.returncode:
            raise ValueError(f"the training {name} failed: {_last_line(out / f'{name}.log')}")


def _compare(out: Path, data: Path, size: Size, console: Console) -> bool:
    """AP per decoder stage for both; whether both reached the goal."""
    from recollect.api import evaluate

    metrics = {name: evaluate(out / name, data, stages=True) for name in ARMS}
    seconds = {}
    for name in ARMS:
        with open(out / name / "metrics.csv", newline="", encoding="utf-8") as file:
            seconds[name] = float(list(csv.DictReader(file))[-1]["seconds"])
    table = Table("decoder stage", *(f"{name} {value}" for name in ARMS for value in ("AP", "AP50")),
                  title=f"{size.val} held-out scenes, COCO metrics in percent")  # fmt: skip
    for column in table.columns:
        column.justify = "right"
    rows = zip(*(metrics[name].stages for name in ARMS))
    for stage, both in enumerate(rows, 1):
        table.add_row(str(stage), *(f"{100 * m.stats[k]:.1f}" for m in both for k in ("AP", "AP50")))
    table.add_section()
    times = [text for name in ARMS for text in (f"{seconds[name] / 60:.1f}", "min")]
    table.add_row("training time", *times)
    console.print(table)
    ratio = seconds["SQR"] / seconds["plain"]
    console.print(
        f"Equal steps are not equal time: both took {size.steps} steps, and a step with recollection took {ratio:.1f} "
        f"times as long here. In the time of SQR the plain one could have taken about {round(size.steps * ratio)}, and "
        "on so short a schedule more steps help a lot: this table compares steps, not minutes. At inference both cost "
        "the same."
    )
    return all(m.stats["AP50"] >= GOAL for m in metrics.values())


def _draw(out: Path, data: Path, count: int = 6, threshold: float = 0.3) -> None:
    """Truth, plain and SQR beside each other for some held-out scenes."""
    import torch

    from recollect.api import load
    from recollect.data import open_dataset
    from recollect.structures import Detections
    from recollect.training.pictures import sheet

    scenes = open_dataset(data, "val")
    detectors = {name: load(out / name, "cpu") for name in ARMS}
    (out / "pictures").mkdir(exist_ok=True)
    for index in range(min(count, len(scenes))):
        image, target = scenes.raw(index)
        image = image.as_subclass(torch.Tensor)
        labels = target["labels"]
        size = (int(image.shape[-2]), int(image.shape[-1]))
        boxes = target["boxes"].as_subclass(torch.Tensor)
        truth = Detections(boxes, torch.ones(len(labels)), labels, tuple(scenes.names), size)
        found = [detector.predict(image, threshold) for detector in detectors.values()]
        tiles = [_enlarged(image, one) for one in (truth, *found)]
        sheet(tiles, columns=3).save(out / "pictures" / f"scene_{index + 1}.png")


def _enlarged(image, detections, factor: int = 3):
    """The picture of some detections, drawn large enough to read."""
    from dataclasses import replace

    import torch

    large = torch.nn.functional.interpolate(image[None], scale_factor=factor)[0]
    size = (detections.size[0] * factor, detections.size[1] * factor)
    return replace(detections, boxes=detections.boxes * factor, size=size).draw(large)


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
