"""A whole stage-wise analysis of one run, and two runs side by side, with bootstrap confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from recollect.analysis.average_precision import bootstrap_weights
from recollect.analysis.errors import Errors, error_breakdown
from recollect.analysis.fading import RATES, Fading, fading_analysis, rates
from recollect.analysis.oracle import StageWorth, stage_worth
from recollect.analysis.predictions import Objects, StagePredictions
from recollect.evaluation import CocoMetrics, evaluate_coco, percent
from recollect.evaluation.coco import usable_ground_truth

CONFIDENCE = 0.95
RATE_TITLES = {
    "fading_rate": "TP fading rate",
    "exacerbation_rate": "FP exacerbation rate",
    "recoverable_rate": "recoverable misses",
    "spoiled_rate": "(exacerbated + recoverable) / (FP + FN)",
}


@dataclass(frozen=True)
class Measure:
    """A number and its bootstrap resamples, all fractions."""

    value: float
    samples: np.ndarray

    def interval(self) -> tuple[float, float]:
        """The 95 % percentile interval; NaN without resamples."""
        known = self.samples[~np.isnan(self.samples)]
        if not known.size:
            return math.nan, math.nan
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(known, [tail, 1 - tail])
        return float(low), float(high)

    def __sub__(self, other: Measure) -> Measure:
        return Measure(self.value - other.value, self.samples - other.samples)

    def to_json(self) -> dict[str, float | None]:
        """value, low, high; null where there is none."""
        values = dict(zip(("value", "low", "high"), (self.value, *self.interval())))
        return {k: None if math.isnan(v) else v for k, v in values.items()}

    def text(self, signed: bool = False) -> str:
        """In percent, for a table."""
        low, high = self.interval()
        value = percent(self.value)
        value = f"+{value}" if signed and self.value > 0 else value
        return value if math.isnan(low) else f"{value} ({percent(low)} to {percent(high)})"


@dataclass(frozen=True)
class RunAnalysis:
    """Everything found about one run.

    name: for people. names: of the classes. stages: COCO metrics of every decoder stage alone, the last inference's.
    measures: title -> Measure: `AP of stage 1`, ..., `oracle AP` and the four rates.
    """

    name: str
    names: list[str]
    predictions: StagePredictions
    objects: Objects
    stages: list[CocoMetrics]
    fading: Fading
    worth: StageWorth
    errors: Errors
    measures: dict[str, Measure]

    @property
    def best_stage(self) -> dict[str, list[int]]:
        """How often each stage would have been best: for final true and false positives at IoU 0.75, and images."""
        count = len(self.stages)
        images = self.worth.best_for_image
        return {
            "true positives": self.worth.best_for_true.sum(0).tolist(),
            "false positives": self.worth.best_for_false.sum(0).tolist(),
            "images": np.bincount(images[images >= 0], minlength=count).tolist(),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data in full precision."""
        return {
            "name": self.name,
            "images": len(self.predictions.image_ids),
            "queries": self.predictions.scores.shape[2],
            "classes": self.names,
            "stages": [stage.to_json()["stats"] for stage in self.stages],
            "measures": {title: measure.to_json() for title, measure in self.measures.items()},
            "counts": self.fading.totals(),
            "best_stage": self.best_stage,
            "per_class": self.stages[-1].to_json()["per_class"],
            "errors": self.errors.to_json(),
        }


def analyse_run(
    name: str,
    predictions: StagePredictions,
    ground_truth: dict[str, Any],
    names: Sequence[str],
    category_ids: Sequence[int],
    *,
    bootstrap: int = 500,
    seed: int = 0,
    notice: Any = None,
) -> RunAnalysis:
    """Analyse what a run's stages said.

    ground_truth: COCO dict. names, category_ids: per label. bootstrap: resamples of images for the intervals, 0 for
    none; runs analysed with one seed on the same images are resampled alike, so their differences are paired.
    notice: called with a sentence about each step.
    """
    say = notice or (lambda _: None)
    images = predictions.image_ids.tolist()
    truth, _ = usable_ground_truth(ground_truth)
    objects = Objects.of(truth, images, category_ids)
    weights = bootstrap_weights(len(images), bootstrap, seed)
    say("COCO metrics of every stage")
    stages = [
        evaluate_coco(truth, predictions.coco_results(s, category_ids), image_ids=images)
        for s in range(predictions.num_stages)
    ]
    say("fading and exacerbation")
    fading = fading_analysis(predictions, objects)
    say("oracle and confidence intervals")
    worth = stage_worth(predictions, objects, weights)
    measures = {f"AP of stage {s + 1}": Measure(stage.ap, worth.stage_ap[s, 1:]) for s, stage in enumerate(stages)}
    measures["oracle AP"] = Measure(float(worth.oracle_ap[0]), worth.oracle_ap[1:])
    sampled = rates(weights @ fading.counts)
    for place, key in enumerate(RATES):
        measures[RATE_TITLES[key]] = Measure(fading.rates()[key], sampled[:, place])
    errors = error_breakdown(stages[-1])
    return RunAnalysis(name, list(names), predictions, objects, stages, fading, worth, errors, measures)


def differences(one: RunAnalysis, other: RunAnalysis) -> dict[str, Measure]:
    """`other` minus `one` for every measure both have, over the same resampled images.

    ValueError if the runs saw different images.
    """
    if one.predictions.image_ids.tolist() != other.predictions.image_ids.tolist():
        raise ValueError(f"{one.name} and {other.name} were analysed on different images, so they cannot be compared")
    return {
        title: other.measures[title] - measure for title, measure in one.measures.items() if title in other.measures
    }


def summary_tables(runs: Sequence[RunAnalysis]) -> list[Table]:
    """For the terminal: the measures side by side, and which stage would have been best."""
    sampled = any(len(m.samples) for m in runs[0].measures.values())
    title = "in percent" + (", with 95 % bootstrap intervals over images" if sampled else "")
    table = Table("", *(escape(run.name) for run in runs), title=title)
    change = differences(runs[0], runs[1]) if len(runs) == 2 else {}
    if change:
        table.add_column("difference")
    for measure in dict.fromkeys(t for run in runs for t in run.measures):
        cells = [run.measures[measure].text() if measure in run.measures else "" for run in runs]
        table.add_row(measure, *cells, *([change[measure].text(signed=True)] if measure in change else []))
    tables = [table]
    count = max(len(run.stages) for run in runs)
    best = Table("best stage for", *(f"stage {s + 1}" for s in range(count)), title="which stage would have been best")
    for run in runs:
        for kind, counts in run.best_stage.items():
            whole = max(1, sum(counts))
            shares = [f"{100 * n / whole:.1f} %" for n in counts]
            best.add_row(f"{escape(run.name)}: {kind}", *shares, *[""] * (count - len(counts)))
    kinds = Table("AP50 lost to", *(escape(run.name) for run in runs), title="errors of the final stage (TIDE)")
    for kind in runs[0].errors.kinds:
        cells = [f"{percent(r.errors.kinds[kind]['ap'])} ({r.errors.kinds[kind]['count']:.0f} errors)" for r in runs]
        kinds.add_row(kind, *cells)
    return [*tables, best, kinds]
