"""How good a detector is: COCO and VOC metrics, per class and per decoder stage."""

from recollect.evaluation.coco import CocoMetrics, evaluate_coco, percent
from recollect.evaluation.proposals import evaluate_proposals
from recollect.evaluation.results import coco_results, gather
from recollect.evaluation.run import evaluate_model, predict_coco
from recollect.evaluation.voc import VocMetrics, evaluate_voc

__all__ = [
    "CocoMetrics",
    "VocMetrics",
    "coco_results",
    "evaluate_coco",
    "evaluate_model",
    "evaluate_proposals",
    "evaluate_voc",
    "gather",
    "percent",
    "predict_coco",
]
