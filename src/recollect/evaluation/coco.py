"""COCO's detection metrics, computed by hotcoco: pycocotools' numbers to the last bit, about 150 times faster."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from hotcoco import COCO, COCOeval
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

IouType = Literal["bbox", "segm"]


_COMPACT: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 0)}  # all numbers within 80 characters


@dataclass(frozen=True)
class CocoMetrics:
    """What one evaluation found. All values are fractions; NaN where there is no object to find (`-1` in pycocotools).

    stats: AP (over IoU 0.50:0.95), AP50, AP75, APs, APm, APl, AR1, AR10, AR100 (or
        `AR{max_detections}`), ARs, ARm, ARl. With other IoU thresholds, AP is over those, and AP50 and AP75 are there
        if they are among them.
    per_class: class name -> AP, AP50, AP75, APs, APm, APl, AR and the number of `objects` that count.
    notes: what was put right in the ground truth before scoring, in sentences.
    stages: with per-stage evaluation, the metrics of every decoder stage alone; the last equals this one.
    evaluator: hotcoco's evaluator, for `errors_by_kind`, confusion matrices, calibration.
    """

    stats: dict[str, float]
    per_class: dict[str, dict[str, float]]
    iou_type: IouType = "bbox"
    max_detections: int = 100
    images: int = 0
    notes: tuple[str, ...] = ()
    stages: tuple[CocoMetrics, ...] = ()
    evaluator: Any = field(default=None, repr=False, compare=False)

    @property
    def ap(self) -> float:
        """AP over all classes, 0..1."""
        return self.stats["AP"]

    def inputs(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """(ground truth, results) behind these metrics, of the images that were scored: to score them otherwise."""
        scored = set(self.evaluator.params.img_ids)
        truth = self.evaluator.coco_gt.dataset
        for part in ("images", "annotations"):
            key = "id" if part == "images" else "image_id"
            truth[part] = [row for row in truth[part] if row[key] in scored]
        # hotcoco adds a box to a mask and an outline to a box; given again, they would change what is measured
        fields = ("image_id", "category_id", "score", "bbox" if self.iou_type == "bbox" else "segmentation")
        results = self.evaluator.coco_dt.dataset["annotations"]
        return truth, [{k: r[k] for k in fields} for r in results if r["image_id"] in scored]

    def rescored(
        self, *, iou_thresholds: Sequence[float] | None = None, classes: Sequence[str] | None = None
    ) -> CocoMetrics:
        """The same detections at other IoU thresholds, or for some classes only; see `evaluate_coco`."""
        truth, results = self.inputs()
        again = evaluate_coco(
            truth, results, iou_type=self.iou_type, max_detections=self.max_detections,
            iou_thresholds=iou_thresholds, classes=classes,
        )  # fmt: skip
        stages = tuple(s.rescored(iou_thresholds=iou_thresholds, classes=classes) for s in self.stages)
        return replace(again, notes=self.notes, stages=stages)

    def to_json(self) -> dict[str, Any]:
        """Plain data in full precision; null where there is no object to find."""
        data: dict[str, Any] = {
            "iou_type": self.iou_type,
            "max_detections": self.max_detections,
            "images": self.images,
            "stats": {k: _json_number(v) for k, v in self.stats.items()},
            "per_class": {n: {k: _json_number(v) for k, v in row.items()} for n, row in self.per_class.items()},
        }
        if self.notes:
            data["notes"] = list(self.notes)
        if self.stages:
            data["stages"] = [{k: _json_number(v) for k, v in stage.stats.items()} for stage in self.stages]
        return data

    def table(self, per_class: bool = False) -> Table:
        """A table for the terminal, in percent: the summary (one row per stage if there are any), or one per class."""
        if per_class:
            columns = [c for c in next(iter(self.per_class.values()), {}) if c != "objects"]
            table = Table("class", *columns, "objects", title=f"{self.iou_type} AP per class", **_COMPACT)
            for name, row in sorted(self.per_class.items(), key=lambda item: _worst_last(item[1]["AP"])):
                table.add_row(escape(name), *(percent(row[c]) for c in columns), f"{row['objects']:.0f}")
        else:
            title = f"{self.iou_type} AP on {self.images} images, at most {self.max_detections} detections each"
            table = Table(*(["stage"] if self.stages else []), *self.stats, title=title, **_COMPACT)
            for place, metrics in enumerate(self.stages or (self,)):
                stage = [str(place + 1)] if self.stages else []
                table.add_row(*stage, *(percent(v) for v in metrics.stats.values()))
        for column in table.columns[0 if not per_class else 1 :]:
            column.justify = "right"
        return table


def evaluate_coco(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    iou_type: IouType = "bbox",
    max_detections: int = 100,
    iou_thresholds: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    image_ids: Sequence[int] | None = None,
) -> CocoMetrics:
    """Score detections against a COCO ground truth.

    ground_truth: a COCO dict (`images`, `annotations`, `categories`); it is not changed.
    results: COCO results: `image_id`, `category_id`, `bbox` [x, y, w, h] or `segmentation`, `score`. None scores AP 0.
    max_detections: per image and class, the best by score. iou_thresholds: default 0.50:0.05:0.95.
    classes: score only these, by name. image_ids: score only these images.
    Raises ValueError for results that no image or category of the ground truth answers to, NaN, or missing fields.
    """
    truth, notes = usable_ground_truth(ground_truth, iou_type)
    check_results(results, truth, iou_type)
    categories = chosen_categories(truth, classes)
    evaluator = run_hotcoco(
        truth,
        results,
        iou_type,
        limits=sorted({1, 10, max_detections}),
        thresholds=iou_thresholds,
        category_ids=[c["id"] for c in categories],
        image_ids=image_ids,
    )
    return _metrics(evaluator, categories, iou_type, max_detections, notes)


def run_hotcoco(
    truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    iou_type: str,
    *,
    limits: Sequence[int],
    thresholds: Sequence[float] | None = None,
    category_ids: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    by_class: bool = True,
) -> Any:
    """Match and accumulate, without printing. `truth` and `results` have been checked. Returns the COCOeval."""
    ground = COCO(truth)
    evaluator = COCOeval(ground, ground.load_res(list(results)), iou_type)
    params = evaluator.params
    params.max_dets = list(limits)
    params.use_cats = by_class
    if category_ids is not None:
        params.cat_ids = sorted(category_ids)
    if image_ids is not None:
        known = {image["id"] for image in truth["images"]}
        unknown = [i for i in image_ids if i not in known]
        if unknown:
            raise ValueError(f"image_ids holds {unknown[:3]}, which the ground truth does not have")
        params.img_ids = sorted(set(image_ids))
    if thresholds is not None:
        bad = [t for t in thresholds if not 0 < t <= 1]
        if bad or not len(thresholds):
            raise ValueError(f"IoU thresholds must lie above 0 and up to 1, found {bad or 'none at all'}")
        params.iou_thrs = [float(t) for t in thresholds]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about limits and thresholds that we chose on purpose
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _metrics(
    evaluator: Any, categories: list[dict[str, Any]], iou_type: IouType, max_detections: int, notes: tuple[str, ...]
) -> CocoMetrics:
    params, arrays = evaluator.params, evaluator.eval
    # [thresholds, recalls, classes, sizes, limits] and [thresholds, classes, sizes, limits]; -1 where no object is
    precision, recall = np.asarray(arrays["precision"]), np.asarray(arrays["recall"])
    thresholds, limits = np.asarray(params.iou_thrs), list(params.max_dets)
    place = {c: k for k, c in enumerate(params.cat_ids)}
    last = limits.index(max_detections)

    def at(threshold: float) -> np.ndarray:
        return np.flatnonzero(np.isclose(thresholds, threshold))

    def numbers(p: np.ndarray, r: np.ndarray) -> dict[str, float]:
        """From precision and recall of some classes, the sizes and limits still there."""
        stats = {"AP": _mean(p[:, :, :, 0, last])}
        for name, threshold in (("AP50", 0.5), ("AP75", 0.75)):
            if len(at(threshold)):
                stats[name] = _mean(p[at(threshold)][:, :, :, 0, last])
        for size, name in enumerate(("APs", "APm", "APl"), 1):
            stats[name] = _mean(p[:, :, :, size, last])
        return stats

    stats = numbers(precision, recall)
    for index, limit in enumerate(limits):
        if limit <= max_detections:
            stats[f"AR{limit}"] = _mean(recall[:, :, 0, index])
    for size, name in enumerate(("ARs", "ARm", "ARl"), 1):
        stats[name] = _mean(recall[:, :, size, last])

    scored = set(params.img_ids)
    counts = Counter(
        a["category_id"]
        for a in evaluator.coco_gt.dataset["annotations"]
        if a["image_id"] in scored and not a.get("iscrowd")
    )
    names = Counter(c["name"] for c in categories)
    per_class: dict[str, dict[str, float]] = {}
    for category in categories:
        k = place[category["id"]]
        name = category["name"] if names[category["name"]] == 1 else f"{category['name']} (id {category['id']})"
        row = numbers(precision[:, :, k : k + 1], recall[:, k : k + 1])
        row["AR"] = _mean(recall[:, k, 0, last])
        per_class[name] = {**row, "objects": float(counts[category["id"]])}
    return CocoMetrics(stats, per_class, iou_type, max_detections, len(scored), notes, evaluator=evaluator)


# --- Checking what users bring


def usable_ground_truth(ground_truth: dict[str, Any], iou_type: str = "bbox") -> tuple[dict[str, Any], tuple[str, ...]]:
    """The ground truth with what scoring needs, and a sentence for everything that was put right.

    Annotation ids must be unique and at least 1 (COCO's matching reads 0 as "unmatched"): others are renumbered.
    A missing `area` becomes that of the box, a missing `iscrowd` 0. ValueError for what cannot be put right.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(ground_truth, dict) or not isinstance(ground_truth.get(key), list):
            raise ValueError(f"the ground truth has no list {key!r}: is it a COCO instances file?")
    images = {image["id"] for image in ground_truth["images"]}
    if not images:
        raise ValueError("the ground truth holds no image: there is nothing to score")
    if len(images) < len(ground_truth["images"]):
        repeated = [i for i, n in Counter(image["id"] for image in ground_truth["images"]).items() if n > 1]
        raise ValueError(f"the ground truth lists image id {repeated[0]} more than once")
    categories = {category["id"] for category in ground_truth["categories"]}
    needed = "bbox" if iou_type == "bbox" else "segmentation"
    annotations, missing_area = [], 0
    for place, annotation in enumerate(ground_truth["annotations"]):
        what = f"annotation {annotation.get('id', f'number {place}')} of the ground truth"
        if annotation.get("image_id") not in images:
            raise ValueError(f"{what} is for image id {annotation.get('image_id')}, which it does not list")
        if annotation.get("category_id") not in categories:
            raise ValueError(f"{what} has category id {annotation.get('category_id')}, which it does not list")
        if needed not in annotation:
            raise ValueError(f"{what} has no {needed!r}, so {iou_type} AP cannot be scored")
        if "bbox" in annotation and not _is_box(annotation["bbox"]):
            raise ValueError(f"{what} has the box {annotation['bbox']}: give [x, y, width, height]")
        if "area" not in annotation or "iscrowd" not in annotation:
            annotation = {"iscrowd": 0, **annotation}
            if "area" not in annotation:
                if "bbox" not in annotation:
                    raise ValueError(f"{what} has neither area nor bbox")
                missing_area += 1
                annotation["area"] = float(annotation["bbox"][2] * annotation["bbox"][3])
        annotations.append(annotation)
    notes = []
    if missing_area:
        notes.append(f"{missing_area} annotations had no area: taken from the box")
    ids = Counter(a.get("id") for a in annotations)
    odd = [i for i, n in ids.items() if n > 1 or not isinstance(i, int) or i < 1]
    if odd:
        annotations = [{**a, "id": number} for number, a in enumerate(annotations, 1)]
        notes.append(
            f"{len(annotations)} annotations were renumbered: id {odd[0]} is "
            + ("repeated" if ids[odd[0]] > 1 else "not a whole number of 1 or more, and COCO reads 0 as unmatched")
        )
    return {**ground_truth, "annotations": annotations}, tuple(notes)


def check_results(results: Sequence[dict[str, Any]], truth: dict[str, Any], iou_type: str = "bbox") -> None:
    """ValueError, with the first offender and how many there are, for results that cannot be scored against `truth`."""
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    needed = ("bbox", "score") if iou_type == "bbox" else ("segmentation", "score")
    no_image: Counter[Any] = Counter()
    no_category: Counter[Any] = Counter()
    for place, result in enumerate(results):
        try:
            if result["image_id"] not in images:
                no_image[result["image_id"]] += 1
            if result["category_id"] not in categories:
                no_category[result["category_id"]] += 1
            score, shape = result["score"], result[needed[0]]
        except (KeyError, TypeError):
            raise ValueError(f"result {place} is no COCO result: it needs image_id, category_id, {needed}") from None
        if not isinstance(score, (int, float)) or not math.isfinite(score):
            raise ValueError(f"result {place} (image id {result['image_id']}) has the score {score}")
        if needed[0] == "bbox" and not (_is_box(shape) and shape[2] >= 0 and shape[3] >= 0):
            raise ValueError(
                f"result {place} (image id {result['image_id']}) has the box {shape}: "
                "give [x, y, width, height], finite, of no negative size"
            )
    if no_image:
        raise ValueError(
            f"{no_image.total()} results are for image ids that the ground truth does not have ({_some(no_image)}): "
            "are they results of another split?"
        )
    if no_category:
        raise ValueError(
            f"{no_category.total()} results have category ids that the ground truth does not have "
            f"({_some(no_category)}; it has {_some(categories)}): are they labels 0..K-1 instead of category ids?"
        )


def chosen_categories(truth: dict[str, Any], classes: Sequence[str] | None) -> list[dict[str, Any]]:
    """The categories to score, in the order of their ids; ValueError for a name that is not there."""
    categories = sorted(truth["categories"], key=lambda c: c["id"])
    if not categories:
        raise ValueError("the ground truth has no category")
    if classes is None:
        return categories
    names = {c["name"] for c in categories}
    unknown = [name for name in classes if name not in names]
    if unknown or not classes:
        raise ValueError(f"there is no class {', '.join(unknown) or 'given'}; the ground truth has {_some(names)}")
    return [c for c in categories if c["name"] in set(classes)]


def percent(value: float, digits: int = 1) -> str:
    """A fraction as percent for people; a dash where there is nothing to measure."""
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f}"


def _some(values: Any, count: int = 5) -> str:
    values = sorted(values, key=str)
    return ", ".join(str(v) for v in values[:count]) + (f", ... {len(values)} in all" if len(values) > count else "")


def _is_box(box: Any) -> bool:
    try:
        return len(box) == 4 and all(math.isfinite(v) for v in box)
    except TypeError:
        return False


def _mean(values: np.ndarray) -> float:
    found = values[values > -1]
    return float(np.mean(found)) if found.size else math.nan


def _json_number(value: float) -> float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _worst_last(value: float) -> float:
    return math.inf if math.isnan(value) else -value
