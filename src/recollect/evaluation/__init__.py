"""How good a detector is: COCO and VOC metrics, per class and per decoder stage."""

from recollect.evaluation.coco import CocoMetrics, evaluate_coco, percent
from recollect.evaluation.results import coco_results, gather
from recollect.evaluation.run import evaluate_model, predict_coco

__all__ = ["CocoMetrics", "coco_results", "evaluate_coco", "evaluate_model", "gather", "percent", "predict_coco"]
