"""The report: one HTML file that needs nothing else, with the numbers and an image browser with a stage slider."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from recollect.analysis.curves import CURVES, Curves
from recollect.analysis.matching import IGNORED
from recollect.analysis.run_analysis import RunAnalysis, differences
from recollect.analysis.sampling import recorded_points
from recollect.data import read_image

KINDS = ("tp", "fading", "fp", "exacerbated", "ignored")  # as in page.js
VISIBLE = 0.2  # exacerbated detections below this score are too many to browse
CURVE_POINTS = 400


@dataclass(frozen=True)
class ReportRun:
    """A run's analysis with what the report shows beside it.

    curves: of its metrics.csv. points: image id -> query -> [S, P, 2] sampling points in fractions of the image.
    """

    analysis: RunAnalysis
    curves: Curves = field(default_factory=dict)
    points: dict[int, dict[int, np.ndarray]] = field(default_factory=dict)


def write_report(
    path: Path, runs: Sequence[ReportRun], dataset: Any, chosen: Sequence[int], *, title: str, subtitle: str = ""
) -> None:
    """Write the report.

    runs: one, or two or more on the same images. dataset: the DetectionDataset that was analysed. chosen: places in the
    analysis's `image_ids` of the images to browse (`choose_images`).
    """
    index_of = {image: index for index, image in enumerate(dataset.image_ids)}
    first = runs[0].analysis
    images = []
    for place in chosen:
        index = index_of[int(first.predictions.image_ids[place])]
        images.append(_image(dataset, index, place, runs))
    data = {
        "subtitle": subtitle,
        "classes": first.names,
        "resampled": any(len(m.samples) for m in first.measures.values()),
        "runs": [
            {
                "name": run.analysis.name,
                "stages": len(run.analysis.stages),
                "points": bool(run.points),
                "summary": run.analysis.to_json(),
                "curves": {c: _thin(run.curves[c]) for c in CURVES if c in run.curves},
            }
            for run in runs
        ],
        "differences": None
        if len(runs) != 2
        else {t: m.to_json() for t, m in differences(runs[0].analysis, runs[1].analysis).items()},
        "images": images,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_page(title, data), encoding="utf-8")


def render_page(title: str, data: dict[str, Any]) -> str:
    """The page around its data. Nothing in the data can end the script element or become markup."""
    page = files("recollect.analysis") / "report_page"
    script, style = ((page / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    template = string.Template((page / "page.html").read_text(encoding="utf-8"))
    return template.substitute(title=html.escape(title), style=style, script=script, data=text)


def choose_images(runs: Sequence[RunAnalysis], count: int = 200) -> list[int]:
    """Places of the images most worth browsing: in turn the next of most fading, most visibly exacerbated, most
    missed, worst, and best, and of those spread over the set; in the order of the dataset."""
    total = len(runs[0].predictions.image_ids)
    if total <= count:
        return list(range(total))
    last = runs[-1]
    fading = sum(r.fading.counts[:, 1] for r in runs)
    missed = sum(r.fading.counts[:, 4] for r in runs)
    exacerbated = sum(_visibly_exacerbated(r).sum(1) for r in runs)
    ap = np.nan_to_num(last.worth.image_ap, nan=0.5)
    spread = np.argsort(np.random.default_rng(0).permutation(total))
    orders = [np.argsort(-np.asarray(key), kind="stable") for key in (fading, exacerbated, missed, -ap, ap, spread)]
    chosen: dict[int, None] = {}
    for rank in range(total):
        for order in orders:
            if len(chosen) < count:
                chosen[int(order[rank])] = None
    return sorted(chosen)


def record_points(
    model: Any, dataset: Any, analysis: RunAnalysis, chosen: Sequence[int], *, device: Any, queries: int = 6
) -> dict[int, dict[int, np.ndarray]]:
    """Sampling points of the most telling queries of the chosen images, by running the model on each once more.

    dataset: with the transform of the analysis. Returns {} for a detector whose stages do not sample points.
    """
    index_of = {image: index for index, image in enumerate(dataset.image_ids)}
    found: dict[int, dict[int, np.ndarray]] = {}
    was_training = model.training
    model.eval()
    with torch.inference_mode(), recorded_points(model) as points:
        for place in chosen:
            image_id = int(analysis.predictions.image_ids[place])
            image, _ = dataset[index_of[image_id]]
            model([image.to(device)])
            if not points:
                break
            stages = [stage[0].float().cpu().numpy() for stage in points]
            telling = _telling(analysis, place, queries)
            found[image_id] = {q: np.stack([stage[q] for stage in stages]) for q in telling}
    model.train(was_training)
    return found


def _visibly_exacerbated(run: RunAnalysis) -> np.ndarray:
    """[I, N]."""
    return run.fading.exacerbated & (run.predictions.scores[:, -1] >= VISIBLE)


def _telling(run: RunAnalysis, place: int, count: int) -> list[int]:
    """Queries of an image: fading and visibly exacerbated ones first, then those with the highest final score."""
    special = run.fading.fading[place] | _visibly_exacerbated(run)[place]
    return np.lexsort((-run.predictions.scores[place, -1], ~special))[:count].tolist()


def _image(dataset: Any, index: int, place: int, runs: Sequence[ReportRun]) -> dict[str, Any]:
    height, width = dataset.size(index)
    objects = runs[0].analysis.objects
    mine = np.flatnonzero(objects.image == place)
    truth = [
        [*np.round(objects.xywh[t], 1).tolist(), int(objects.label[t]), int(objects.crowd[t])] for t in mine.tolist()
    ]
    return {
        "id": int(dataset.image_ids[index]),
        "file": Path(dataset.file(index)).name,
        "w": int(width),
        "h": int(height),
        "src": picture(dataset.file(index)),
        "truth": truth,
        "runs": [_said(run, place, mine) for run in runs],
    }


def _said(run: ReportRun, place: int, mine: np.ndarray, most: int = 60) -> dict[str, Any]:
    """What one run said about one image: its most visible queries, those that matched or faded among them."""
    analysis = run.analysis
    predictions, fading = analysis.predictions, analysis.fading
    scores = predictions.scores[place]  # [S, N]
    final = fading.matched[place, -1]
    kind = np.where(final >= 0, np.where(fading.fading[place], 1, 0), np.where(fading.exacerbated[place], 3, 2))
    kind = np.where(final == IGNORED, 4, kind)
    keep = np.lexsort((-scores.max(0), final < 0))[:most]
    keep = keep[(final[keep] >= 0) | (scores[:, keep].max(0) >= 0.05)]
    points = run.points.get(int(predictions.image_ids[place]), {})
    local = {int(t): i for i, t in enumerate(mine)}
    ap = float(analysis.worth.image_ap[place])
    return {
        "ap": None if math.isnan(ap) else ap,
        "counts": {
            "fading": int(fading.fading[place].sum()),
            "exacerbated": int(_visibly_exacerbated(analysis)[place].sum()),
            "missed": int(fading.missed[mine].sum()),
            "recoverable": int(fading.recoverable[mine].sum()),
        },
        "missed": np.flatnonzero(fading.missed[mine]).tolist(),
        "recoverable": np.flatnonzero(fading.recoverable[mine]).tolist(),
        "total": int(scores.shape[1]),
        "queries": [
            {
                "i": q,
                "k": int(kind[q]),
                "b": int(fading.better_stage[place, q]),
                "m": local.get(int(final[q]), -1),
                "s": np.round(scores[:, q], 3).tolist(),
                "l": predictions.labels[place, :, q].tolist(),
                "x": np.round(predictions.boxes[place, :, q], 1).tolist(),
                "p": [_packed(stage) for stage in points[q]] if q in points else None,
            }
            for q in keep.tolist()
        ],
    }


def _packed(points: np.ndarray) -> str:
    """[P, 2] fractions as thousandths in int16, base64."""
    thousandths = np.clip(np.round(points * 1000), -32768, 32767).astype("<i2")
    return base64.b64encode(thousandths.tobytes()).decode("ascii")


def picture(path: Path, side: int = 560) -> str:
    """A small JPEG of an image file as a data URL, upright."""
    pixels = read_image(path).permute(1, 2, 0).contiguous().numpy()
    small = Image.fromarray(pixels)
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _thin(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    """At most CURVE_POINTS means of neighbouring points."""
    step = max(1, -(-len(points) // CURVE_POINTS))
    groups = [points[i : i + step] for i in range(0, len(points), step)]
    return [[g[-1][0], float(f"{sum(v for _, v in g) / len(g):.5g}")] for g in groups]
