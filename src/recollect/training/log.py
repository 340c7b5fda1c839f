"""`metrics.csv` and the progress bar: what a person looks at while a training runs."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recollect.training.memory import megabytes, peak_memory

COLUMNS = (
    "step", "epoch", "loss", "lr", "gradient_norm", "images_per_second", "peak_memory_mb", "seconds", "skipped",
    "unreadable", "epoch_seconds", "AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "validation_seconds",
)  # fmt: skip


class MetricsFile:
    """A CSV table with one row per call, columns fixed by the first; resuming drops rows of steps to be repeated."""

    def __init__(self, path: Path, resume_step: int | None) -> None:
        self.path = path
        self.columns: list[str] = []
        if resume_step is None or not path.exists():
            path.unlink(missing_ok=True)
            return
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            self.columns = list(reader.fieldnames or [])
            rows = [row for row in reader if (row.get("step") or "").isdigit() and int(row["step"]) <= resume_step]
        unfinished = path.with_name(path.name + ".unfinished")
        with open(unfinished, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(unfinished, path)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; numbers are shortened to six digits."""
        new = not self.columns
        if new:
            self.columns = [*COLUMNS, *(k for k in row if k not in COLUMNS)]
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            if new:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


class ProgressLine(Callback):
    """A bar with loss, learning rate, images per second, memory and time left; plain lines where there is no terminal.

    quiet: say nothing but warnings. every_seconds: between plain lines.
    """

    def __init__(self, quiet: bool = False, every_seconds: float = 30.0, title: str = "") -> None:
        self.console = Console(stderr=True, highlight=False)
        self.quiet, self.every_seconds, self.title = quiet, every_seconds, title
        self.bar: Progress | None = None

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Begin to count."""
        self.began = self.last_line = time.monotonic()
        self.first_step, self.first_images = module.counts.step, module.images_seen
        if not trainer.is_global_zero:
            self.quiet = True
        if self.quiet or not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[facts]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self.console, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task(self.title or "training", total=module.total, completed=self.first_step, facts="")
        self.bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        """Show where the training stands."""
        if self.quiet:
            return
        now = time.monotonic()
        if self.bar is None and now - self.last_line < self.every_seconds and module.counts.step < module.total:
            return
        elapsed = now - self.began
        rate = (module.images_seen - self.first_images) * trainer.world_size / max(elapsed, 1e-9)
        facts = (
            "" if math.isnan(module.last_loss) else f"loss {module.last_loss:.3f}  "
        ) + f"lr {module.learning_rate:.2g}  {rate:.1f} images/s  {megabytes(peak_memory(module.device))}"
        if self.bar is not None:
            self.bar.update(self.task, completed=module.counts.step, facts=facts)
            return
        self.last_line = now
        done = module.counts.step - self.first_step
        left = elapsed / max(done, 1) * (module.total - module.counts.step)
        self.say(f"{self.title} step {module.counts.step}/{module.total}  {facts}  {_clock(left)} left".strip())

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Put the bar away."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        """Put the bar away before the error is shown."""
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
