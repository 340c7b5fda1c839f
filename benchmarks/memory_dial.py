"""What a training step costs in memory and time at each setting of the memory dial: where recollection starts, and
activation checkpointing.

python benchmarks/memory_dial.py                        every setting, each in a fresh process, on the CPU or the GPU
python benchmarks/memory_dial.py --starts 1 5 --size 512
An interrupted run goes on where it stopped; delete the file of results to measure anew.

Prints the table of docs/recollection.md and writes benchmarks/results/memory_dial.json. On a CPU, memory is the peak of
the process and time is CPU time (so other work on the machine hardly matters); on a GPU, memory is the peak that torch
allocated and time is wall time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "memory_dial.json"
MODELS = ("adamixer_r50", "deformable_detr_r50")


def measure(model_name: str, start: int, checkpointing: bool, size: int, steps: int) -> dict[str, float]:
    """One setting, in this process. start 0 is plain training. The optimiser's own state is not included."""
    import torch

    from recollect import Recollection, create_model

    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    torch.set_num_threads(1)
    model = create_model(model_name, recollection=Recollection(start=start) if start else None).to(device).train()
    model.checkpointing = checkpointing
    low = torch.rand(10, 2) * size * 0.6
    targets = [{"boxes": torch.cat((low, low + size * 0.3), 1), "labels": torch.arange(10)}]
    images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8)]
    seconds = []
    for _ in range(steps):
        torch.manual_seed(0)
        clock = time.perf_counter if gpu else time.process_time
        before = clock()
        model.zero_grad(set_to_none=True)
        loss = torch.stack(list(model(images, targets).values())).sum()
        loss.backward()
        if gpu:
            torch.cuda.synchronize()
        seconds.append(clock() - before)
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"gib": peak / 2**30, "seconds": min(seconds), "loss": float(loss.detach())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--starts", nargs="+", type=int, default=[0, 5, 4, 3, 2, 1], help="0 is plain training")
    parser.add_argument("--size", type=int, default=256, help="side of the square image, in pixels")
    parser.add_argument("--steps", type=int, default=3, help="of which the fastest counts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "START", "CHECKPOINTING"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, start, checkpointing = options.one
        print(json.dumps(measure(name, int(start), checkpointing == "1", options.size, options.steps)))
        return

    import torch

    from recollect import Recollection

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    about = {
        "command": " ".join(["python", "benchmarks/memory_dial.py", *sys.argv[1:]]),
        "date": str(date.today()),
        "machine": gpu or f"{platform.machine()} CPU, {os.cpu_count()} cores, one thread",
        "torch": torch.__version__,
        "size": options.size,
        "batch": 1,
        "steps": options.steps,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    if options.out.is_file():  # go on with what an interrupted run has measured alike
        before = json.loads(options.out.read_text(encoding="utf-8"))
        rows = before["rows"] if all(before[k] == about[k] for k in about.keys() - {"command", "date"}) else []
    measured = {(row["start"], row["checkpointing"], row["model"]) for row in rows}
    for setting in itertools.product(options.starts, (False, True), options.models):
        if setting in measured:
            continue
        start, checkpointing, name = setting
        one = ["--one", name, str(start), str(int(checkpointing))]
        fixed = ["--size", str(options.size), "--steps", str(options.steps)]
        done = subprocess.run([sys.executable, __file__, *one, *fixed], check=True, stdout=subprocess.PIPE, text=True)
        passes = sum(Recollection(start=start).groups(6)) if start else 6
        row = {"model": name, "start": start, "passes": passes, "checkpointing": checkpointing}
        rows.append(row | json.loads(done.stdout.splitlines()[-1]))
        rows.sort(key=lambda r: (r["model"], r["passes"], r["checkpointing"]))
        options.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"{table(rows)}\nwritten to {options.out}")


def table(rows: list[dict]) -> str:
    """Markdown rows: model, recollection, passes, checkpointing, peak memory, step time."""
    lines = []
    for row in rows:
        rule = f"`Recollection(start={row['start']})`" if row["start"] else "plain"
        checkpointing = "yes" if row["checkpointing"] else "no"
        cells = (row["model"], rule, row["passes"], checkpointing, f"{row['gib']:.2f} GiB", f"{row['seconds']:.1f} s")
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
